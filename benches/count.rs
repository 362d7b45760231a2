//! How many instructions each step of an event's way takes, and whether that is still within its limit.
//!
//! `cargo bench --bench count`: times depend on the machine and its mood, instructions do not, and so
//! this can be a check. It runs itself under valgrind, each step by itself, once over some events and
//! once over three times as many; the difference is the events' alone, start and preparation fall out.
//! `… --bench count -- STEP EVENTS` only does the step, to be looked at with callgrind or perf.
//!
//! It does not count what the kernel does, nor how long anything waits. The journal's and the sinks'
//! threads, the socket and TLS are not in it: [`Store::write`] is what the journal's thread does, called
//! from here. The allocator is the C library's; the relay's own is `jemalloc`.
//!
//! A limit is a count that was seen and a tenth. What made a step dearer on
//! purpose raises its limit, in the same change, and says why.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "it prints, and what fails here fails the check"
)]

mod steps;

use std::{process::Command, process::ExitCode, sync::Arc};

use anyhow::{Context, bail, ensure};
use astro_relay::{
    astro::session::{Effects, Session, Subscription, Wanted},
    base::event::{Event, Record},
    config::{Secret, TokenType},
    delivery::route::Rendered,
    gateway::seen::Seen,
    journal::{
        Journal,
        store::{Store, Write},
    },
};
use futures_util::FutureExt;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use steps::{BATCH, CHANNEL, RECEIVED, ROOM, TOPIC, configured, frame, happening, record, route};

/// Events of the shorter of the two runs: whole batches and whole transactions, and so many that what
/// differs from one start to the next (a random seed of some map) is less than one instruction an event.
const EVENTS: u64 = 4096;

/// Events of one transaction of the journal, as under load.
const TRANSACTION: u64 = 1024;

/// A step, and the most that it may take.
struct Step {
    name: &'static str,
    what: &'static str,
    /// Instructions an event.
    limit: u64,
    run: fn(u64),
}

/// The limits are a tenth above what rustc 1.95 and valgrind 3.19 counted on x86-64 with AVX2 (beyond
/// that valgrind shows every program the same processor). One program counts the same each time, mostly
/// to the instruction; where it makes maps with random seeds, which templates and conditions do, to
/// 2 %. The tenth is for the compiler, which lays out anew what has not changed (3 % were seen).
///
/// `read` walks a message once: it finds what makes the key by which a repeat is recognised, in whose place
/// `duplicates` has little left to do, and whether a personal field may be in it, so that `message` and those
/// after it have nothing to look for. `redacted` finds one, reads the message as JSON once more, and goes
/// through all of it at any depth.
const STEPS: &[Step] = &[
    Step { name: "read", what: "a frame to an event", limit: 9_820, run: read },
    Step { name: "duplicates", what: "whether it was there before", limit: 290, run: duplicates },
    Step { name: "append", what: "into the journal's memory, and out", limit: 1_460, run: append },
    Step { name: "write", what: "into the journal's file", limit: 2_490, run: write },
    Step { name: "message", what: "rendered for NATS, as it came", limit: 330, run: message },
    Step { name: "redacted", what: "personal fields taken out", limit: 23_640, run: redacted },
    Step { name: "condition", what: "a condition over its data", limit: 23_470, run: condition },
    Step { name: "template", what: "a template over its data", limit: 24_430, run: template },
];

fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    match arguments.as_slice() {
        [] => judge(),
        [name, events] => {
            let step = STEPS.iter().find(|step| step.name == name).context("no such step")?;
            (step.run)(events.parse().context("how many events?")?);
            Ok(ExitCode::SUCCESS)
        }
        _ => bail!("STEP EVENTS, or nothing"),
    }
}

/// Counts every step, prints what came out, and says whether all are within their limits.
fn judge() -> anyhow::Result<ExitCode> {
    println!("{:<10} {:>12} {:>8}", "step", "instructions", "limit");
    let mut code = ExitCode::SUCCESS;
    for step in STEPS {
        let (short, long) = (count(step, EVENTS)?, count(step, 3 * EVENTS)?);
        ensure!(long > short, "{} over three times the events takes no more", step.name);
        let each = (long - short) / (2 * EVENTS);
        let verdict = if each > step.limit {
            code = ExitCode::FAILURE;
            "TOO MANY"
        } else if each < step.limit * 3 / 4 {
            "the limit can be lowered"
        } else {
            ""
        };
        println!("{:<10} {each:>12} {:>8}  {:<36}{verdict}", step.name, step.limit, step.what);
    }
    Ok(code)
}

/// The instructions of this program doing that step so many times, in all.
fn count(step: &Step, events: u64) -> anyhow::Result<u64> {
    let dir = tempfile::tempdir()?;
    let counts = dir.path().join("counts");
    // Where it need not simulate caches, the quickest of valgrind's tools that count exactly.
    let output = Command::new("valgrind")
        .args(["--tool=cachegrind", "--cache-sim=no", "--error-exitcode=1"])
        .arg(format!("--cachegrind-out-file={}", counts.display()))
        .arg(std::env::current_exe()?)
        .args([step.name, &events.to_string()])
        .output()
        .context("valgrind cannot be started: without it nothing can be counted")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(&counts).context("valgrind left no counts")?;
    let total = text.lines().find_map(|line| line.strip_prefix("summary:"));
    total
        .context("no sum in valgrind's counts")?
        .trim()
        .parse()
        .context("valgrind's sum is no number")
}

fn read(events: u64) {
    let frames: Vec<Utf8Bytes> = (0..BATCH).map(|number| frame(number).into()).collect();
    let now = Instant::now();
    let mut session = subscribed(now);
    let mut effects = Effects::default();
    for _ in 0..events / BATCH {
        for frame in &frames {
            session.on_text(frame.clone(), RECEIVED, now, &mut effects);
        }
        assert!(effects.events.drain(..).all(|event| &*event.place.channel == CHANNEL));
    }
    assert_eq!(session.take_counts().messages, events);
}

/// A session with its one subscription, which the gateway has confirmed.
fn subscribed(now: Instant) -> Session {
    let (channel, topic) = (CHANNEL.into(), TOPIC.into());
    let subscription =
        Subscription { channel, topic, room: None, token_type: TokenType::Jwt, token_room: None };
    let wanted = Wanted { subscription: Arc::new(subscription), token: Ok(Secret::new("t")) };
    let config = configured("[channels.main]\ntoken = \"t\"\ntopics = [\"channel.activities\"]\n");
    let mut session = Session::new(1, vec![wanted], config.astro.into(), now);
    let mut effects = Effects::default();
    session.on_text(r#"{"type":"welcome"}"#.into(), RECEIVED, now, &mut effects);
    let asked: Value = serde_json::from_str(&effects.send[0]).unwrap();
    let answer = json!({"type": "response", "nonce": asked["nonce"], "data": {"room": ROOM}});
    session.on_text(answer.to_string().into(), RECEIVED, now, &mut effects);
    assert!(session.all_answered() && effects.updates.last().unwrap().state.is_confirmed());
    session
}

fn duplicates(events: u64) {
    // The table is as full as the relay's own is, at 1/32 of its size. It remembers at most twice as
    // many; the cycle is longer, so that each of its events is new again when its turn comes.
    let mut seen = Seen::new(896);
    let cycle: Vec<Event> = (0..8 * BATCH).map(happening).collect();
    for event in cycle.iter().cycle().zip(0..events).map(|(event, _)| event) {
        assert!(seen.admit(event));
    }
}

/// With the copy of the event that goes in, and its end: a half of it.
fn append(events: u64) {
    let journal = Journal::in_memory(4 << 20);
    let batch: Vec<Event> = (0..BATCH).map(happening).collect();
    let mut fresh = Vec::new();
    for number in 1..=events / BATCH {
        fresh.extend_from_slice(&batch);
        journal.append(&mut fresh);
        let read = journal.read((number - 1) * BATCH, number * BATCH, 256, 1 << 20);
        let records = read.now_or_never().unwrap().unwrap().records;
        assert_eq!(records.last().unwrap().seq, number * BATCH);
    }
}

/// Transactions as the journal's thread writes them, one after the other; the write-ahead log is moved
/// by another thread, and is not in it.
fn write(events: u64) {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path(), false).unwrap();
    let first = store.begin_run(0, 0, None).unwrap();
    let records = (0..TRANSACTION).map(|number| record(first + number, happening(number)));
    let mut write = Write { records: records.collect(), ..Write::default() };
    for _ in 0..events / TRANSACTION {
        write.cursors = vec![("out".into(), write.records.last().unwrap().seq)];
        store.write(&write).unwrap();
        for record in &mut write.records {
            Arc::get_mut(record).unwrap().seq += TRANSACTION;
        }
    }
    assert_eq!(store.bounds().unwrap(), Some((first, first + events - 1)));
}

fn message(events: u64) {
    render("", happening, events);
}

/// A field that is taken out by default stands in the data.
fn redacted(events: u64) {
    let personal = |number| {
        let plain = happening(number);
        let text = std::str::from_utf8(&plain.message).unwrap();
        let message = text.replace("\"provider\"", "\"transactionId\":\"t\",\"provider\"");
        let data = plain.data.start..plain.data.end + (message.len() - text.len());
        Event { data, message: message.into(), may_have_personal_fields: true, ..plain.clone() }
    };
    render("", personal, events);
}

fn condition(events: u64) {
    render("when = \"data.data.amount >= 5\"", happening, events);
}

fn template(events: u64) {
    render("payload = \"{{ data.data.username }} {{ data.data.amount }}\"", happening, events);
}

/// Routes and renders for a NATS sink that is configured with `more`, and otherwise by default.
fn render(more: &str, make: impl Fn(u64) -> Event, events: u64) {
    let batch: Vec<Arc<Record>> = (0..BATCH).map(|seq| record(seq, make(seq))).collect();
    let mut route = route(more);
    for _ in 0..events / BATCH {
        for record in &batch {
            let Rendered::Wanted(outgoing, _) = route.render(record) else { panic!() };
            assert_eq!(&*outgoing.address, "astro.main.channel.activities");
        }
    }
}
