//! `dead-letters`: lists, shows, retries and drops what a destination rejected.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal as _, Write as _},
};

use clap::{Args, Subcommand};
use serde_json::json;

use super::Where;
use crate::{
    app::cli::{Done, Failed, client::quiet, on_runtime, out},
    base::{
        clock,
        text::{EXCERPT, counted, excerpt},
    },
    cluster::shared::{SharedRequests, Which},
    journal::{DeadLetter, store::LetterChange},
};

/// `dead-letters …`
#[derive(Debug, Subcommand)]
pub(in crate::app::cli) enum DeadLetterCommand {
    /// Lists them, one line each.
    List(Selection),
    /// Prints them in full, as JSON lines.
    Show(Selection),
    /// Delivers them to their sink again.
    Retry(Selection),
    /// Deletes them, for good. Asks before it does.
    Drop(Drop),
}

/// `dead-letters drop`
#[derive(Debug, Args)]
pub(in crate::app::cli) struct Drop {
    #[command(flatten)]
    selection: Selection,
    /// Does not ask.
    #[arg(short, long)]
    yes: bool,
}

/// Which dead letters.
#[derive(Debug, Args)]
pub(in crate::app::cli) struct Selection {
    #[command(flatten)]
    journal: Where,
    /// Only those of this sink.
    #[arg(long)]
    sink: Option<String>,
    /// Their numbers [default: all]
    numbers: Vec<i64>,
}

pub(in crate::app::cli) fn dead_letters(command: &DeadLetterCommand) -> Done {
    match command {
        DeadLetterCommand::List(selection) => list(selection),
        DeadLetterCommand::Show(selection) => show(selection),
        DeadLetterCommand::Retry(selection) => {
            change(selection, selection.which().numbers, LetterChange::Retry)
        }
        DeadLetterCommand::Drop(drop) => {
            let selection = &drop.selection;
            // Without a terminal nobody can be asked: then the numbers that were given say it.
            if drop.yes || !io::stdin().is_terminal() && !selection.numbers.is_empty() {
                return change(selection, selection.which().numbers, LetterChange::Drop);
            }
            match confirmed(selection)? {
                Some(numbers) => change(selection, Some(&numbers), LetterChange::Drop),
                None => Ok(writeln!(out::text(), "nothing was deleted")?),
            }
        }
    }
}

fn letters(selection: &Selection) -> Result<Vec<DeadLetter>, Failed> {
    if let Some(settings) = selection.journal.cluster()? {
        return on_runtime(1, &quiet(), async move {
            let shared = SharedRequests::connect(&settings).await?;
            Ok(shared.letters(selection.which(), (usize::MAX, usize::MAX)).await?)
        });
    }
    let store = selection.journal.open()?;
    let mut letters = store.dead_letters(selection.sink.as_deref())?;
    let numbers = &selection.numbers;
    letters.retain(|letter| numbers.is_empty() || numbers.contains(&letter.number));
    Ok(letters)
}

fn list(selection: &Selection) -> Done {
    let mut out = out::text();
    for letter in letters(selection)? {
        let event = &letter.record.event;
        writeln!(
            out,
            "{:>6}  {}  {:<12}  {:<28}  {}{}",
            letter.number,
            clock::rfc3339(letter.at),
            letter.sink,
            excerpt(&event.place.topic, EXCERPT),
            letter.reason,
            if letter.retry { "  (to be tried again)" } else { "" },
        )?;
    }
    Ok(())
}

fn show(selection: &Selection) -> Done {
    let mut out = out::json();
    for letter in letters(selection)? {
        let about = json!({
            "number": letter.number, "sink": letter.sink, "at": clock::rfc3339(letter.at),
            "reason": letter.reason, "retry": letter.retry,
        });
        let mut text = about.to_string();
        text.pop();
        writeln!(out, "{text},\"event\":{}}}", letter.record.line(&letter.record.event.message))?;
    }
    Ok(())
}

impl Selection {
    fn which(&self) -> Which<'_> {
        let numbers = (!self.numbers.is_empty()).then_some(&*self.numbers);
        Which { sink: self.sink.as_deref(), numbers }
    }
}

/// The numbers of those of which somebody at the terminal has said that they may be deleted. More may come
/// before the answer does.
fn confirmed(selection: &Selection) -> Result<Option<Vec<i64>>, Failed> {
    if !io::stdin().is_terminal() {
        let text = "this would delete all of them: name their numbers, or say --yes";
        return Err(Failed::new(Failed::USAGE, text));
    }
    let (mut of, mut numbers) = (BTreeMap::<String, u64>::new(), Vec::new());
    for letter in letters(selection)? {
        numbers.push(letter.number);
        *of.entry(letter.sink).or_default() += 1;
    }
    if of.is_empty() {
        return Ok(Some(numbers));
    }
    let sinks: Vec<String> = of.iter().map(|(sink, count)| format!("{sink}: {count}")).collect();
    let count = counted(of.values().sum(), "dead letter");
    let question = format!("delete {count} for good ({})?", sinks.join(", "));
    let is_yes = out::confirmed(&question, &mut io::stdin().lock(), &mut out::conversation())?;
    Ok(is_yes.then_some(numbers))
}

fn change(selection: &Selection, numbers: Option<&[i64]>, change: LetterChange) -> Done {
    let which = Which { numbers, ..selection.which() };
    if let (LetterChange::Retry, Some(sink)) = (change, &selection.sink) {
        selection.journal.require_sink(sink)?;
    }
    let done = if let Some(settings) = selection.journal.cluster()? {
        on_runtime(1, &quiet(), async move {
            let shared = SharedRequests::connect(&settings).await?;
            Ok(match change {
                LetterChange::Retry => shared.retry(which).await?,
                LetterChange::Drop => shared.drop(which).await?,
            })
        })?
    } else {
        let store = selection.journal.open()?;
        store.change_dead_letters(change, which.numbers, which.sink)?
    };
    if done == 0 && !selection.numbers.is_empty() {
        let text = format!("there is no such dead letter{}", of_sink(selection));
        return Err(Failed::new(Failed::USAGE, text));
    }
    if let (0, Some(sink)) = (done, &selection.sink) {
        selection.journal.require_sink(sink)?;
    }
    let done = counted(u64::try_from(done).unwrap_or(u64::MAX), "dead letter");
    let what = match change {
        LetterChange::Retry => "to be tried again",
        LetterChange::Drop => "deleted",
    };
    writeln!(out::text(), "{done}{} {what}", of_sink(selection))?;
    if let LetterChange::Retry = change
        && let Err(error) = name_removed_sinks(selection)
    {
        // What was asked for is accepted all the same.
        let why = error.text();
        out::aside(&format!("cannot tell whether all of their sinks are configured: {why}"));
    }
    Ok(())
}

/// Names the sinks that are no longer configured: nobody tries their dead letters.
fn name_removed_sinks(selection: &Selection) -> Done {
    if selection.journal.dir.is_some() || selection.sink.is_some() {
        return Ok(());
    }
    let known = &selection.journal.config()?.sinks;
    let mut of = counts(selection)?;
    of.retain(|sink, _| !known.contains_key(sink));
    for (sink, count) in of {
        let count = counted(count, "dead letter");
        out::aside(&format!(
            "{count} of sink {sink}: it is not configured, and they wait until a sink of this name is"
        ));
    }
    Ok(())
}

/// How many of them each sink has.
fn counts(selection: &Selection) -> Result<BTreeMap<String, u64>, Failed> {
    if selection.numbers.is_empty() && selection.journal.cluster()?.is_none() {
        // Without reading them.
        return Ok(selection.journal.open()?.dead_letter_counts()?.into_iter().collect());
    }
    let mut of = BTreeMap::<String, u64>::new();
    for letter in letters(selection)? {
        *of.entry(letter.sink).or_default() += 1;
    }
    Ok(of)
}

fn of_sink(selection: &Selection) -> String {
    selection.sink.as_ref().map(|sink| format!(" of sink {sink}")).unwrap_or_default()
}
