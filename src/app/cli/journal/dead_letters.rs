//! `dead-letters`: lists, shows, retries and drops what a destination rejected.

use std::{
    collections::BTreeMap,
    io::{self, BufRead as _, IsTerminal as _, Write as _},
};

use clap::{Args, Subcommand};
use serde_json::json;

use super::{Where, failed};
use crate::{
    app::cli::{Done, Failed, out},
    base::{
        clock,
        text::{EXCERPT, counted, excerpt},
    },
    journal::{DeadLetter, StoreError, store::Store},
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
            change(selection, "to be tried again", Store::retry_dead_letters)
        }
        DeadLetterCommand::Drop(drop) => {
            if !drop.yes && !confirmed(&drop.selection)? {
                return Ok(writeln!(out::text(), "nothing was deleted")?);
            }
            change(&drop.selection, "deleted", Store::drop_dead_letters)
        }
    }
}

fn letters(selection: &Selection) -> Result<Vec<DeadLetter>, Failed> {
    let store = selection.journal.open()?;
    let mut letters = store.dead_letters(selection.sink.as_deref()).map_err(failed)?;
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

type Change = fn(&Store, Option<&[i64]>, Option<&str>) -> Result<usize, StoreError>;

/// Whether somebody has said that these may be deleted. Without a terminal nobody can be asked: then the
/// numbers that were given say it.
fn confirmed(selection: &Selection) -> Result<bool, Failed> {
    if !io::stdin().is_terminal() {
        if selection.numbers.is_empty() {
            let text = "this would delete all of them: name their numbers, or say --yes";
            return Err(Failed::new(Failed::USAGE, text));
        }
        return Ok(true);
    }
    let mut of: BTreeMap<String, u64> = BTreeMap::new();
    for letter in letters(selection)? {
        *of.entry(letter.sink).or_default() += 1;
    }
    if of.is_empty() {
        return Ok(true);
    }
    let sinks: Vec<String> = of.iter().map(|(sink, count)| format!("{sink}: {count}")).collect();
    let count = counted(of.values().sum(), "dead letter");
    let mut ask = out::conversation();
    write!(ask, "delete {count} for good ({})? [y/N] ", sinks.join(", "))?;
    ask.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn change(selection: &Selection, what: &str, change: Change) -> Done {
    let store = selection.journal.open()?;
    let numbers = (!selection.numbers.is_empty()).then_some(&*selection.numbers);
    let done = store
        .allow_requests()
        .and_then(|()| change(&store, numbers, selection.sink.as_deref()))
        .map_err(failed)?;
    if done == 0 && !selection.numbers.is_empty() {
        let text = format!("there is no such dead letter{}", of_sink(selection));
        return Err(Failed::new(Failed::USAGE, text));
    }
    let done = counted(u64::try_from(done).unwrap_or(u64::MAX), "dead letter");
    Ok(writeln!(out::text(), "{done}{} {what}", of_sink(selection))?)
}

fn of_sink(selection: &Selection) -> String {
    selection.sink.as_ref().map(|sink| format!(" of sink {sink}")).unwrap_or_default()
}
