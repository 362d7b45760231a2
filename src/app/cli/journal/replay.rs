//! `replay`: asks for events to be handed to a sink again.
//!
//! What the sink does not want (topics, channels, condition, age) it is not sent again either. So the events
//! are counted by the sink's own route before anything is asked for.

use std::{io::Write as _, time::Duration};

use clap::Args;

use super::{Where, failed, moment, pattern};
use crate::{
    app::cli::{Done, Failed, out, progress::Progress},
    base::{
        clock::{self, UnixMillis},
        event::Seq,
        text::{EXCERPT, counted, excerpt},
    },
    delivery::{
        replay_preview::{Preview, UNRENDERED},
        route::{Pattern, Route, Skip},
    },
    journal::{Replay, store::Store},
    sink,
};

/// Events read at once, and bytes of them.
const READ: usize = 256;
const READ_BYTES: usize = 1024 * 1024;

/// How often it is looked how far it is.
const LOOK: Duration = Duration::from_millis(300);

/// `replay`
#[derive(Debug, Args)]
pub(in crate::app::cli) struct ReplayArgs {
    #[command(flatten)]
    journal: Where,
    /// The sink that gets them.
    #[arg(long)]
    sink: String,
    /// From: a time (RFC 3339), or an age such as 2h
    #[arg(long, value_parser = moment)]
    from: UnixMillis,
    /// Until: a time or an age [default: now]
    #[arg(long, value_parser = moment)]
    until: Option<UnixMillis>,
    /// Only topics of this pattern.
    #[arg(long, value_parser = pattern)]
    topic: Option<Pattern>,
    /// Says what would be sent, and sends nothing.
    #[arg(long)]
    dry_run: bool,
    /// Waits until all of it was sent, and shows how far it is.
    #[arg(long, conflicts_with = "dry_run")]
    wait: bool,
}

pub(in crate::app::cli) fn replay(args: &ReplayArgs) -> Done {
    let store = args.journal.open()?;
    let known = store.cursors().map_err(failed)?;
    if !known.iter().any(|cursor| cursor.sink == args.sink) {
        let names: Vec<_> = known.iter().map(|cursor| cursor.sink.as_str()).collect();
        let text =
            format!("the journal knows no sink {:?}; known: {}", args.sink, names.join(", "));
        return Err(Failed::new(Failed::USAGE, text));
    }
    let Some((first, until)) = store.between(args.from, args.until).map_err(failed)? else {
        return Ok(writeln!(out::text(), "no events in that time")?);
    };
    let replay = Replay {
        number: 0,
        sink: args.sink.clone(),
        position: first - 1,
        until,
        topic: args.topic.as_ref().map(ToString::to_string),
    };
    let counted = Counted::of(args, &store, &replay)?;
    counted.print(args)?;
    if args.dry_run || counted.fits() == Some(0) {
        return Ok(());
    }
    store
        .allow_requests()
        .and_then(|()| store.request_replay(&replay, clock::now()))
        .map_err(failed)?;
    writeln!(
        out::text(),
        "events {first} to {until} will be handed to {} again, marked as replayed",
        args.sink
    )?;
    if args.wait { wait(&store, &replay) } else { Ok(()) }
}

/// What of the time fits.
#[derive(Debug, Default)]
struct Counted {
    preview: Preview,
    /// Whether the sink's route has judged; else only the pattern on the command line.
    judged: bool,
}

impl Counted {
    fn of(args: &ReplayArgs, store: &Store, replay: &Replay) -> Result<Self, Failed> {
        let mut preview = Preview::default();
        // Without a configuration that can be read (`--dir` alone) the sink's own choice is not known.
        let config = args.journal.source.load_with_file().ok().map(|loaded| loaded.config);
        let sink = config.as_ref().and_then(|config| config.sinks.get(&args.sink));
        let kind = sink.and_then(|sink| sink::kind(&sink.kind));
        let mut route =
            sink.zip(kind).and_then(|(config, kind)| Route::new(&args.sink, config, kind).ok());
        let mut progress = Progress::beside_a_line();
        let mut after = replay.position;
        while after < replay.until {
            let read = store.read(after, READ, READ_BYTES).map_err(failed)?;
            let Some(through) = read.through else { break };
            for record in read.records.iter().filter(|record| record.seq <= replay.until) {
                preview.add(route.as_mut(), args.topic.as_ref(), record);
            }
            after = through;
            progress.show(|| format!("counting: event {after} of {}", replay.until));
        }
        Ok(Self { preview, judged: route.is_some() })
    }

    /// How many would be sent, where that is known.
    fn fits(&self) -> Option<u64> {
        self.judged.then(|| self.preview.sent.values().sum())
    }

    fn print(&self, args: &ReplayArgs) -> Done {
        let mut out = out::text();
        let all = counted(self.preview.events, "event");
        match self.fits() {
            None => writeln!(
                out,
                "{all} in that time; which of them fit sink {} is not known without its configuration",
                args.sink
            )?,
            Some(fit) => writeln!(out, "{all} in that time, {fit} for sink {}", args.sink)?,
        }
        for (topic, count) in &self.preview.sent {
            writeln!(out, "  {count:>8}  {}", excerpt(topic, EXCERPT))?;
        }
        for (reason, why) in [
            (Skip::Condition.as_str(), "left out: not selected by its condition (when)"),
            (Skip::ConditionError.as_str(), "left out: on which its condition fails"),
            (Skip::Age.as_str(), "left out: older than its max_age"),
            (UNRENDERED, "cannot be rendered: dead letters"),
        ] {
            if let Some(count) = self.preview.skipped.get(reason) {
                writeln!(out, "  {count:>8}  {why}")?;
            }
        }
        Ok(())
    }
}

/// Waits until the running relay has done it.
fn wait(store: &Store, asked: &Replay) -> Done {
    let mut progress = Progress::beside_a_line();
    let total = asked.until - asked.position;
    loop {
        let replays = store.replays().map_err(failed)?;
        // The request is gone when it is done; its number was given by the file.
        let ours = replays.into_iter().filter(|one| one.sink == asked.sink);
        let Some(ours) = ours.filter(|one| one.until == asked.until).max_by_key(|one| one.number)
        else {
            return Ok(writeln!(out::text(), "done")?);
        };
        let done: Seq = ours.position.saturating_sub(asked.position);
        progress
            .show(|| format!("{done} of {total} events; Ctrl-C ends the waiting, not the replay"));
        super::events::pause(LOOK);
    }
}
