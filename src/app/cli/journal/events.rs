//! `journal export`: events of the journal's file as JSON lines. Those of a running relay are `tail`'s.

use std::{io::Write as _, sync::Arc, time::Duration};

use clap::Args;

use super::{Where, moment, pattern};
use crate::{
    app::cli::{Done, Failed, out, progress::Progress},
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

/// `journal export`
#[derive(Debug, Args)]
pub(in crate::app::cli) struct Export {
    #[command(flatten)]
    journal: Where,
    /// Only topics of this pattern: channel.tips, channel.**
    #[arg(long, value_parser = pattern)]
    topic: Option<Pattern>,
    /// Only events for which this Jinja expression is true.
    #[arg(long)]
    when: Option<String>,
    /// From: a time (RFC 3339), or an age such as 2h [default: the oldest]
    #[arg(long, value_parser = moment)]
    from: Option<UnixMillis>,
    /// Until: a time or an age [default: the newest]
    #[arg(long, value_parser = moment)]
    until: Option<UnixMillis>,
    /// Only the last N events.
    #[arg(short = 'n', long, value_name = "N")]
    last: Option<usize>,
    /// Waits for more events and prints them, whether a relay runs or not.
    #[arg(short, long, conflicts_with = "until")]
    follow: bool,
}

pub(super) fn export(export: &Export) -> Done {
    let when = export.when.as_deref().map(Condition::compile).transpose();
    let when = when.map_err(|error| Failed::new(Failed::USAGE, format!("--when: {error}")))?;
    let store = export.journal.open()?;
    let last = store.bounds()?.map_or(0, |(_, last)| last);
    let mut progress = Progress::new();
    let mut after = match export.last {
        Some(last) => store.before_newest(last, u64::MAX)?,
        None => 0,
    };
    loop {
        after = print(&store, export, when.as_ref(), after, |at| {
            progress.show(|| format!("event {at} of {last}"));
        })?;
        if !export.follow {
            return Ok(());
        }
        pause(FOLLOW);
    }
}

#[expect(clippy::disallowed_methods, reason = "a command without a runtime has nothing to block")]
pub(super) fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Prints events after `after` that were received within the times, as the clock was then; answers how far
/// it came. A clock may have stepped, so each event is looked at.
fn print(
    store: &Store,
    export: &Export,
    when: Option<&Condition>,
    mut after: Seq,
    mut progress: impl FnMut(Seq),
) -> Result<Seq, Failed> {
    let times = export.from.unwrap_or(0)..=export.until.unwrap_or(UnixMillis::MAX);
    let mut out = out::json();
    loop {
        let read = store.read(after, READ, READ_BYTES)?;
        let Some(through) = read.through else { return Ok(after) };
        after = through;
        if read.damaged > 0 {
            out::aside(&format!("{} damaged events left out", read.damaged));
        }
        for record in read.records {
            let event = &record.event;
            let topic = export.topic.as_ref();
            let holds =
                |when: &Condition| when.holds(&View::of(Arc::clone(&record))).unwrap_or(false);
            if times.contains(&event.received)
                && topic.is_none_or(|pattern| pattern.matches(&event.place.topic))
                && when.is_none_or(holds)
            {
                writeln!(out, "{}", record.line(&event.message))?;
            }
        }
        out.flush()?;
        progress(after);
    }
}
