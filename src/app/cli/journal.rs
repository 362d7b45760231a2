//! `astro-relay journal`, `dead-letters` and `replay`: looking into the journal, and asking things of it.
//!
//! They open the journal's file beside the relay, running or not. What they ask for is written into
//! the file, and a running relay takes it up within a second.

use std::{io::Write as _, ops::RangeInclusive, path::PathBuf, sync::Arc, time::Duration};

use clap::{Args, Subcommand};
use serde_json::json;

use super::{Done, Failed, Source, out};
use crate::{
    base::{
        clock::{self, UnixMillis},
        event::{Seq, Waited},
        template::{Condition, View},
        text::{EXCERPT, excerpt},
    },
    delivery::route::Pattern,
    journal::{
        DeadLetter, Replay,
        store::{self, Store},
    },
};

/// Events read at once.
const READ: usize = 256;

/// Bytes of events read at once.
const READ_BYTES: usize = 1024 * 1024;

/// How often a follower looks for more.
const FOLLOW: Duration = Duration::from_millis(300);

/// `journal …`
#[derive(Debug, Subcommand)]
pub(super) enum JournalCommand {
    /// Its size and range, and where each sink stands.
    Status(Where),
    /// Its newest events.
    Tail(Tail),
    /// Its events as JSON lines.
    Export(Export),
}

/// `dead-letters …`
#[derive(Debug, Subcommand)]
pub(super) enum DeadLetterCommand {
    /// One line each.
    List(Chosen),
    /// Whole, as JSON lines.
    Show(Chosen),
    /// Hands them to their sink again.
    Retry(Chosen),
    /// Lets them go.
    Drop(Chosen),
}

/// Which journal.
#[derive(Debug, Args)]
pub(super) struct Where {
    #[command(flatten)]
    source: Source,
    /// The journal's directory [default: as configured]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Which events.
#[derive(Debug, Args)]
pub(super) struct Wanted {
    /// Only topics of this pattern: channel.tips, channel.**
    #[arg(long, value_parser = pattern)]
    topic: Option<Pattern>,
    /// Only events for which this Jinja expression is true.
    #[arg(long)]
    when: Option<String>,
}

/// `journal tail`
#[derive(Debug, Args)]
pub(super) struct Tail {
    #[command(flatten)]
    place: Where,
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
pub(super) struct Export {
    #[command(flatten)]
    place: Where,
    #[command(flatten)]
    wanted: Wanted,
    /// From: a time (RFC 3339), or an age such as 2h [default: the oldest]
    #[arg(long, value_parser = moment)]
    from: Option<UnixMillis>,
    /// Until: a time or an age [default: the newest]
    #[arg(long, value_parser = moment)]
    until: Option<UnixMillis>,
}

/// Which dead letters.
#[derive(Debug, Args)]
pub(super) struct Chosen {
    #[command(flatten)]
    place: Where,
    /// Only those of this sink.
    #[arg(long)]
    sink: Option<String>,
    /// Their numbers [default: all]
    numbers: Vec<i64>,
}

/// `replay`
#[derive(Debug, Args)]
pub(super) struct ReplayArgs {
    #[command(flatten)]
    place: Where,
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
}

impl Where {
    fn open(&self) -> Result<Store, Failed> {
        let dir = match &self.dir {
            Some(dir) => dir.clone(),
            None => self.source.load()?.journal.dir,
        };
        if dir.as_os_str().is_empty() {
            return Err(Failed::new(Failed::CONFIG, "the journal is in memory only (journal.dir)"));
        }
        let file = store::file(&dir);
        if !file.exists() {
            return Err(Failed::new(
                Failed::IO,
                format!("there is no journal at {}", file.display()),
            ));
        }
        Store::open_reader(&dir).map_err(|error| failed(&error))
    }
}

fn failed(error: &store::StoreError) -> Failed {
    Failed::of(Failed::IO, error)
}

pub(super) fn journal(command: JournalCommand) -> Done {
    match command {
        JournalCommand::Status(place) => status(&place),
        JournalCommand::Tail(tail) => follow(&tail),
        JournalCommand::Export(export) => {
            let store = export.place.open()?;
            let times = export.from.unwrap_or(0)..=export.until.unwrap_or(UnixMillis::MAX);
            print(&store, &export.wanted, 0, &times).map(|_| ())
        }
    }
}

fn status(place: &Where) -> Done {
    let store = place.open()?;
    let read = || -> Result<_, store::StoreError> {
        let (runs, dead) = (store.runs()?, store.dead_letter_counts()?);
        Ok((store.bounds()?, store.size()?, store.cursors()?, runs, dead))
    };
    let (bounds, size, cursors, runs, dead) = read().map_err(|error| failed(&error))?;
    let mut out = out::text();
    let age = |seq: Seq| -> Result<String, store::StoreError> {
        let waited = store.waited_since(seq)?.map_or(Duration::ZERO, Waited::so_far);
        Ok(humantime::format_duration(Duration::from_secs(waited.as_secs())).to_string())
    };
    match bounds {
        None => writeln!(out, "no events, {}", human(size))?,
        Some((first, last)) => {
            let oldest = age(first).map_err(|error| failed(&error))?;
            writeln!(out, "events {first} to {last}, {}, the oldest {} ago", human(size), oldest)?;
        }
    }
    let last = bounds.map_or(0, |(_, last)| last);
    for cursor in cursors {
        let Some(at) = cursor.seq else {
            writeln!(out, "sink {}: its position is broken", cursor.sink)?;
            continue;
        };
        let waiting = store::given(&runs, at, last);
        let lag = if waiting > 0 {
            let oldest = age(at + 1).map_err(|error| failed(&error))?;
            format!("{waiting} events wait, the oldest {oldest} ago")
        } else {
            "nothing waits".to_owned()
        };
        let set_aside = dead.iter().find(|(sink, _)| *sink == cursor.sink).map_or(0, |(_, n)| *n);
        writeln!(out, "sink {}: at {at} of {last}; {lag}; {set_aside} dead letters", cursor.sink)?;
    }
    Ok(())
}

fn human(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

fn follow(tail: &Tail) -> Done {
    let store = tail.place.open()?;
    let mut after = store.before_newest(tail.lines).map_err(|error| failed(&error))?;
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
        let read = store.read(after, READ, READ_BYTES).map_err(|error| failed(&error))?;
        let Some(through) = read.through else { return Ok(after) };
        after = through;
        if read.damaged > 0 {
            out::aside(&format!("{} damaged events left out", read.damaged));
        }
        for record in read.records {
            let event = &record.event;
            if !times.contains(&event.received) {
                continue;
            }
            let topic =
                wanted.topic.as_ref().is_none_or(|pattern| pattern.matches(&event.place.topic));
            let holds =
                |when: &Condition| when.holds(&View::of(Arc::clone(&record))).unwrap_or(false);
            if topic && when.as_ref().is_none_or(holds) {
                writeln!(out, "{}", record.line(&record.event.message))?;
            }
        }
        out.flush()?;
    }
}

pub(super) fn dead_letters(command: &DeadLetterCommand) -> Done {
    let (chosen, act): (_, fn(&Store, &Chosen) -> Done) = match command {
        DeadLetterCommand::List(chosen) => (chosen, list),
        DeadLetterCommand::Show(chosen) => (chosen, show),
        DeadLetterCommand::Retry(chosen) => (chosen, retry),
        DeadLetterCommand::Drop(chosen) => (chosen, let_go),
    };
    act(&chosen.place.open()?, chosen)
}

fn letters(store: &Store, chosen: &Chosen) -> Result<Vec<DeadLetter>, Failed> {
    let mut letters = store.dead_letters(chosen.sink.as_deref()).map_err(|error| failed(&error))?;
    letters.retain(|letter| chosen.numbers.is_empty() || chosen.numbers.contains(&letter.number));
    Ok(letters)
}

fn list(store: &Store, chosen: &Chosen) -> Done {
    let mut out = out::text();
    for letter in letters(store, chosen)? {
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

fn show(store: &Store, chosen: &Chosen) -> Done {
    let mut out = out::json();
    for letter in letters(store, chosen)? {
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

fn retry(store: &Store, chosen: &Chosen) -> Done {
    act(store, chosen, "to be tried again", Store::retry_dead_letters)
}

fn let_go(store: &Store, chosen: &Chosen) -> Done {
    act(store, chosen, "let go", Store::drop_dead_letters)
}

type Act = fn(&Store, Option<&[i64]>, Option<&str>) -> Result<usize, store::StoreError>;

fn act(store: &Store, chosen: &Chosen, what: &str, act: Act) -> Done {
    let numbers = (!chosen.numbers.is_empty()).then_some(&*chosen.numbers);
    let done = store
        .allow_requests()
        .and_then(|()| act(store, numbers, chosen.sink.as_deref()))
        .map_err(|error| failed(&error))?;
    Ok(writeln!(out::text(), "{done} dead letters {what}")?)
}

pub(super) fn replay(args: &ReplayArgs) -> Done {
    let store = args.place.open()?;
    let known = store.cursors().map_err(|error| failed(&error))?;
    if !known.iter().any(|cursor| cursor.sink == args.sink) {
        let names: Vec<_> = known.iter().map(|cursor| cursor.sink.as_str()).collect();
        let text =
            format!("the journal knows no sink {:?}; known: {}", args.sink, names.join(", "));
        return Err(Failed::new(Failed::USAGE, text));
    }
    let range = || -> Result<_, store::StoreError> {
        let last = store.bounds()?.map_or(0, |(_, last)| last);
        let until = match args.until {
            None => last,
            Some(time) => store.first_since(time + 1)?.map_or(last, |seq| seq - 1),
        };
        Ok(store.first_since(args.from)?.map(|first| (first, until)))
    };
    let Some((first, until)) = range().map_err(|error| failed(&error))? else {
        return Ok(writeln!(out::text(), "no events in that time")?);
    };
    let replay = Replay {
        number: 0,
        sink: args.sink.clone(),
        position: first - 1,
        until,
        topic: args.topic.as_ref().map(ToString::to_string),
    };
    store
        .allow_requests()
        .and_then(|()| store.request_replay(&replay, clock::now()))
        .map_err(|error| failed(&error))?;
    Ok(writeln!(
        out::text(),
        "events {first} to {until} will be handed to {} again, marked as replayed",
        args.sink
    )?)
}

fn pattern(text: &str) -> Result<Pattern, String> {
    Pattern::parse(text).map_err(|error| error.to_string())
}

/// A time as RFC 3339, or as an age.
fn moment(text: &str) -> Result<UnixMillis, String> {
    if let Some(time) = clock::parse_rfc3339(text) {
        return Ok(time);
    }
    humantime::parse_duration(text)
        .map(|age| clock::now().saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX)))
        .map_err(|_| {
            "a time such as 2026-01-31T20:00:00Z, or an age such as 2h, was expected".into()
        })
}
