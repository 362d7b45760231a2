//! `replay`: asks for events to be handed to a sink again.
//!
//! What the sink does not want (topics, channels, condition, age) it is not sent again either. So the events
//! are counted by the sink's own route before anything is asked for.

use std::{io::Write as _, sync::Arc, time::Duration};

use clap::Args;

use super::{Where, moment, pattern};
use crate::{
    app::cli::{Done, Failed, client::quiet, on_runtime, out, progress::Progress},
    base::{
        clock::{self, UnixMillis},
        event::{Record, Seq},
        text::{EXCERPT, counted, excerpt},
    },
    cluster::shared::SharedRequests,
    config,
    delivery::{
        replay_preview::{CHOICE_FAILS, Choice, NOT_CHOSEN, Preview, UNRENDERED},
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
    /// Only events for which this holds, in the language of a sink's `when`.
    #[arg(long, value_name = "CONDITION")]
    when: Option<String>,
    /// Says what would be sent, and sends nothing.
    #[arg(long)]
    dry_run: bool,
    /// Waits until all of it was sent, and shows how far it is.
    #[arg(long, conflicts_with = "dry_run")]
    wait: bool,
}

pub(in crate::app::cli) fn replay(args: &ReplayArgs) -> Done {
    if args.until.is_some_and(|until| until < args.from) {
        return Err(Failed::new(Failed::USAGE, "--until is before --from"));
    }
    if let Some(settings) = args.journal.cluster()? {
        return on_runtime(1, &quiet(), from_log(args, &settings));
    }
    args.journal.require_sink(&args.sink)?;
    let store = args.journal.open()?;
    let known = store.cursors()?;
    if !known.iter().any(|cursor| cursor.sink == args.sink) {
        let names: Vec<_> = known.iter().map(|cursor| cursor.sink.as_str()).collect();
        let text =
            format!("the journal knows no sink {:?}; known: {}", args.sink, names.join(", "));
        return Err(Failed::new(Failed::USAGE, text));
    }
    let Some((first, until)) = store.between(args.from, args.until)? else {
        return Ok(writeln!(out::text(), "no events in that time")?);
    };
    let replay = asked_for(args, first, until);
    let counted = Counted::of(args, &store, &replay)?;
    counted.print(args)?;
    if args.dry_run || counted.fits() == Some(0) {
        return Ok(());
    }
    store.allow_requests()?;
    store.request_replay(&replay)?;
    accepted(args, &replay)?;
    if args.wait { wait(&store, &replay) } else { Ok(()) }
}

fn asked_for(args: &ReplayArgs, first: Seq, until: Seq) -> Replay {
    Replay {
        number: 0,
        at: clock::now(),
        sink: args.sink.clone(),
        position: first - 1,
        until,
        topic: args.topic.as_ref().map(ToString::to_string),
        when: args.when.clone(),
    }
}

fn accepted(args: &ReplayArgs, replay: &Replay) -> Done {
    Ok(writeln!(
        out::text(),
        "events {} to {} will be handed to {} again, marked as replayed",
        replay.position + 1,
        replay.until,
        args.sink
    )?)
}

/// In a cluster: out of the log, by whichever member drives the sink.
async fn from_log(args: &ReplayArgs, settings: &config::Cluster) -> Done {
    args.journal.require_sink(&args.sink)?;
    let shared = SharedRequests::connect(settings).await?;
    let range = shared.between(args.from, args.until).await?;
    let Some((first, until)) = range else {
        return Ok(writeln!(out::text(), "no events in that time")?);
    };
    let replay = asked_for(args, first, until);
    let mut counting = Counting::new(args, &replay)?;
    let mut after = replay.position;
    while after < until {
        let read = shared.read(after, until, READ, READ_BYTES).await?;
        counting.add(&read.records, read.through, until);
        after = read.through.max(after + 1);
    }
    let counted = counting.done();
    counted.print(args)?;
    if args.dry_run || counted.fits() == Some(0) {
        return Ok(());
    }
    let key = shared.request_replay(&replay).await?;
    accepted(args, &replay)?;
    if !args.wait {
        return Ok(());
    }
    let mut progress = Progress::beside_a_line();
    loop {
        let Some(now) = shared.replay(&key).await? else {
            return Ok(writeln!(out::text(), "done")?);
        };
        progress.show(|| so_far(&replay, &now));
        tokio::time::sleep(LOOK).await;
    }
}

fn so_far(asked: &Replay, now: &Replay) -> String {
    let (done, total) = (now.position.saturating_sub(asked.position), asked.until - asked.position);
    format!("{done} of {total} events; Ctrl-C ends the waiting, not the replay")
}

/// What of the time fits.
#[derive(Debug, Default)]
struct Counted {
    preview: Preview,
    /// Whether the sink's route has judged; else only the pattern on the command line.
    judged: bool,
}

/// Counts events by the sink's own route.
struct Counting {
    preview: Preview,
    choice: Choice,
    route: Option<Route>,
    progress: Progress,
}

impl Counting {
    fn new(args: &ReplayArgs, replay: &Replay) -> Result<Self, Failed> {
        let choice = Choice::of_replay(replay)
            .map_err(|error| Failed::new(Failed::USAGE, format!("--when: {error}")))?;
        // Without a configuration that can be read (`--dir` alone) the sink's own choice is not known.
        let config = args.journal.config().ok();
        let sink = config.and_then(|config| config.sinks.get(&args.sink));
        let kind = sink.and_then(|sink| sink::kind(&sink.kind));
        let route =
            sink.zip(kind).and_then(|(config, kind)| Route::new(&args.sink, config, kind).ok());
        let (preview, progress) = (Preview::default(), Progress::beside_a_line());
        Ok(Self { preview, choice, route, progress })
    }

    fn add(&mut self, records: &[Arc<Record>], through: Seq, until: Seq) {
        for record in records.iter().filter(|record| record.seq <= until) {
            self.preview.add(self.route.as_mut(), &self.choice, record);
        }
        self.progress.show(|| format!("counting: event {through} of {until}"));
    }

    fn done(self) -> Counted {
        Counted { preview: self.preview, judged: self.route.is_some() }
    }
}

impl Counted {
    fn of(args: &ReplayArgs, store: &Store, replay: &Replay) -> Result<Self, Failed> {
        let mut counting = Counting::new(args, replay)?;
        let mut after = replay.position;
        while after < replay.until {
            let read = store.read(after, READ, READ_BYTES)?;
            let Some(through) = read.through else { break };
            counting.add(&read.records, through, replay.until);
            after = through;
        }
        Ok(counting.done())
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
            (NOT_CHOSEN, "left out: not selected by --when"),
            (CHOICE_FAILS, "left out: on which --when fails"),
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
    loop {
        let replays = store.replays()?;
        // The request is gone when it is done; its number was given by the file.
        let ours = replays.into_iter().filter(|one| one.sink == asked.sink);
        let Some(ours) = ours.filter(|one| one.until == asked.until).max_by_key(|one| one.number)
        else {
            return Ok(writeln!(out::text(), "done")?);
        };
        progress.show(|| so_far(asked, &ours));
        super::events::pause(LOOK);
    }
}
