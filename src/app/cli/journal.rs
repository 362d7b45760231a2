//! `astro-relay journal`, `dead-letters` and `replay`: looking into the journal, and asking things of it.
//!
//! They open the journal's file beside the relay, running or not. What they ask for is written into
//! the file, and a running relay takes it up within a second. In a cluster dead letters and replays are
//! shared: there they ask NATS, from any member's machine.

mod dead_letters;
mod events;
mod replay;

use std::{
    cell::OnceCell,
    fs,
    io::{self, Write as _},
    path::PathBuf,
    time::Duration,
};

use clap::{Args, Subcommand};

pub(super) use self::{
    dead_letters::{DeadLetterCommand, dead_letters},
    replay::{ReplayArgs, replay},
};
use super::{Done, Failed, Source, out};
use crate::{
    base::{
        clock::{self, UnixMillis},
        event::{Seq, Waited},
    },
    config::{self, Config},
    delivery::route::Pattern,
    journal::{StoreError, database, runs::assigned_between, store::Store},
};

/// `journal …`
#[derive(Debug, Subcommand)]
pub(super) enum JournalCommand {
    /// Its size and range, and where each sink stands.
    Status(Where),
    /// Its events as JSON lines.
    Export(events::Export),
}

/// Which journal.
#[derive(Debug, Args)]
pub(super) struct Where {
    #[command(flatten)]
    source: Source,
    /// The journal's directory [default: as configured]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The configuration, once it was needed.
    #[arg(skip)]
    loaded: OnceCell<Config>,
}

impl Where {
    /// Loaded once: it may come from a pipe. The journal needs none of its secrets; a cluster's are read when
    /// it is connected to.
    fn config(&self) -> Result<&Config, Failed> {
        if let Some(config) = self.loaded.get() {
            return Ok(config);
        }
        let config = self.source.load_without_secrets()?;
        Ok(self.loaded.get_or_init(|| config))
    }

    /// The cluster that this configuration is of, unless a directory is named: what its members share is not
    /// in their journals.
    fn cluster(&self) -> Result<Option<config::Cluster>, Failed> {
        match &self.dir {
            Some(_) => Ok(None),
            None => Ok(self.config()?.cluster.clone()),
        }
    }

    /// Fails where no sink of that name is configured: a cursor and dead letters are kept for one that was
    /// removed, and nobody delivers them. Where a directory is named, its relay's configuration is not known.
    fn require_sink(&self, sink: &str) -> Done {
        if self.dir.is_some() {
            return Ok(());
        }
        let known = &self.config()?.sinks;
        if known.contains_key(sink) {
            return Ok(());
        }
        let names: Vec<_> = known.keys().map(String::as_str).collect();
        let text = format!("the configuration has no sink {sink:?}; known: {}", names.join(", "));
        Err(Failed::new(Failed::USAGE, text))
    }

    fn open(&self) -> Result<Store, Failed> {
        let dir = match &self.dir {
            Some(dir) => dir.clone(),
            None => self.config()?.journal.dir.clone(),
        };
        if dir.as_os_str().is_empty() {
            return Err(Failed::new(Failed::CONFIG, "the journal is in memory only (journal.dir)"));
        }
        let file = database(&dir);
        match fs::metadata(&file) {
            Ok(_) => Ok(Store::open_reader(&dir)?),
            Err(error) => {
                let text = match error.kind() {
                    io::ErrorKind::NotFound => format!("there is no journal at {}", file.display()),
                    // Such as a directory of another user's.
                    _ => format!("cannot open the journal at {}: {error}", file.display()),
                };
                Err(Failed::new(Failed::IO, text))
            }
        }
    }
}

pub(super) fn journal(command: JournalCommand) -> Done {
    match command {
        JournalCommand::Status(journal) => status(&journal),
        JournalCommand::Export(export) => events::export(&export),
    }
}

fn status(journal: &Where) -> Done {
    let store = journal.open()?;
    let read = || -> Result<_, StoreError> {
        let (runs, dead) = (store.runs()?, store.dead_letter_counts()?);
        Ok((store.bounds()?, store.size()?, store.cursors()?, runs, dead))
    };
    let (bounds, size, cursors, runs, dead) = read()?;
    let mut out = out::text();
    let age = |seq: Seq| -> Result<String, Failed> {
        let waited = store.waited_since(seq)?;
        let waited = waited.map_or(Duration::ZERO, Waited::so_far);
        Ok(humantime::format_duration(Duration::from_secs(waited.as_secs())).to_string())
    };
    match bounds {
        None => writeln!(out, "no events, {}", human(size))?,
        Some((first, last)) => {
            let (size, oldest) = (human(size), age(first)?);
            writeln!(out, "events {first} to {last}, {size}, the oldest {oldest} ago")?;
        }
    }
    let last = bounds.map_or(0, |(_, last)| last);
    for cursor in cursors {
        let Some(at) = cursor.seq else {
            writeln!(out, "sink {}: its position is broken", cursor.sink)?;
            continue;
        };
        let waiting = assigned_between(&runs, at, last);
        let lag = if waiting > 0 {
            format!("{waiting} events queued, the oldest {} ago", age(at + 1)?)
        } else {
            "nothing queued".to_owned()
        };
        let letters = dead.iter().find(|(sink, _)| *sink == cursor.sink).map_or(0, |(_, n)| *n);
        writeln!(out, "sink {}: at {at} of {last}; {lag}; {letters} dead letters", cursor.sink)?;
    }
    Ok(())
}

fn human(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

fn pattern(text: &str) -> Result<Pattern, String> {
    Pattern::parse(text).map_err(|error| error.to_string())
}

/// A time as RFC 3339, or as an age.
fn moment(text: &str) -> Result<UnixMillis, String> {
    clock::moment(text, clock::now()).ok_or_else(|| {
        "a time such as 2026-01-31T20:00:00Z, or an age such as 2h, was expected".into()
    })
}
