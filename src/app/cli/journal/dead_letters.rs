//! `dead-letters`: lists, shows, retries and drops what a destination rejected.

use std::io::Write as _;

use clap::{Args, Subcommand};
use serde_json::json;

use super::{Where, failed};
use crate::{
    app::cli::{Done, Failed, out},
    base::{
        clock,
        text::{EXCERPT, excerpt},
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
    /// Deletes them.
    Drop(Selection),
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
        DeadLetterCommand::Drop(selection) => {
            change(selection, "deleted", Store::drop_dead_letters)
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

fn change(selection: &Selection, what: &str, change: Change) -> Done {
    let store = selection.journal.open()?;
    let numbers = (!selection.numbers.is_empty()).then_some(&*selection.numbers);
    let done = store
        .allow_requests()
        .and_then(|()| change(&store, numbers, selection.sink.as_deref()))
        .map_err(failed)?;
    Ok(writeln!(out::text(), "{done} dead letters {what}")?)
}
