//! `journal tail` and `journal export`: events as JSON lines.

use std::{io::Write as _, ops::RangeInclusive, sync::Arc, time::Duration};

use clap::Args;

use super::{Where, failed, moment, pattern};
use crate::{
    app::cli::{Done, Failed, out},
    base::{
        clock::UnixMillis,
        event::Seq,
        template::{Condition, View},
    },
    delivery::route::Pattern,
    journal::store::Store,
};

/// Events read at once.
const READ: usize = 256;

/// Bytes of events read at once.
const READ_BYTES: usize = 1024 * 1024;

/// How often `--follow` looks for more.
const FOLLOW: Duration = Duration::from_millis(300);

/// Which events.
#[derive(Debug, Args)]
struct Wanted {
    /// Only topics of this pattern: channel.tips, channel.**
    #[arg(long, value_parser = pattern)]
    topic: Option<Pattern>,
    /// Only events for which this Jinja expression is true.
    #[arg(long)]
    when: Option<String>,
}

/// `journal tail`
#[derive(Debug, Args)]
pub(in crate::app::cli) struct Tail {
    #[command(flatten)]
    journal: Where,
    #[command(flatten)]
    wanted: Wanted,
    /// How many.
    #[arg(short = 'n', long, default_value_t = 20)]
    lines: usize,
    /// Goes on with what comes.
    #[arg(short, long)]
    follow: bool,
}

/// `journal export`
#[derive(Debug, Args)]
pub(in crate::app::cli) struct Export {
    #[command(flatten)]
    journal: Where,
    #[command(flatten)]
    wanted: Wanted,
    /// From: a time (RFC 3339), or an age such as 2h [default: the oldest]
    #[arg(long, value_parser = moment)]
    from: Option<UnixMillis>,
    /// Until: a time or an age [default: the newest]
    #[arg(long, value_parser = moment)]
    until: Option<UnixMillis>,
}

pub(super) fn tail(tail: &Tail) -> Done {
    let store = tail.journal.open()?;
    let mut after = store.before_newest(tail.lines).map_err(failed)?;
    loop {
        after = print(&store, &tail.wanted, after, &(0..=UnixMillis::MAX))?;
        if !tail.follow {
            return Ok(());
        }
        pause();
    }
}

#[expect(clippy::disallowed_methods, reason = "a command without a runtime has nothing to block")]
fn pause() {
    std::thread::sleep(FOLLOW);
}

pub(super) fn export(export: &Export) -> Done {
    let times = export.from.unwrap_or(0)..=export.until.unwrap_or(UnixMillis::MAX);
    print(&export.journal.open()?, &export.wanted, 0, &times).map(|_| ())
}

/// Prints events after `after` that were received within `times`, as the clock was then; answers how far
/// it came. A clock may have stepped, so each event is looked at.
fn print(
    store: &Store,
    wanted: &Wanted,
    mut after: Seq,
    times: &RangeInclusive<UnixMillis>,
) -> Result<Seq, Failed> {
    let when = wanted.when.as_deref().map(Condition::compile).transpose();
    let when = when.map_err(|error| Failed::new(Failed::USAGE, format!("--when: {error}")))?;
    let mut out = out::json();
    loop {
        let read = store.read(after, READ, READ_BYTES).map_err(failed)?;
        let Some(through) = read.through else { return Ok(after) };
        after = through;
        if read.damaged > 0 {
            out::aside(&format!("{} damaged events left out", read.damaged));
        }
        for record in read.records {
            let event = &record.event;
            let topic = wanted.topic.as_ref();
            let holds =
                |when: &Condition| when.holds(&View::of(Arc::clone(&record))).unwrap_or(false);
            if times.contains(&event.received)
                && topic.is_none_or(|pattern| pattern.matches(&event.place.topic))
                && when.as_ref().is_none_or(holds)
            {
                writeln!(out, "{}", record.line(&event.message))?;
            }
        }
        out.flush()?;
    }
}
