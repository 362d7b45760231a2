//! Events that prove themselves, and journals to put them into.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use astro_relay::{
    base::{
        clock,
        event::{Event, Origin, Place, Record, Seq, Waited},
    },
    config::{self, Period, Size, Sync},
    journal::{Health, Journal, Opened, StoreError},
};

use tokio::time::Instant;

use super::wait::until;

/// How long the journal may take for what a test waits for. The machine may be busy.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// A journal in `dir` that keeps everything and little in memory.
pub fn config(dir: &Path) -> config::Journal {
    config::Journal {
        dir: dir.to_owned(),
        memory: Size(64 * 1024),
        min_free: Size(0),
        max_size: Size(1 << 30),
        max_dead_letters: Size(16 << 20),
        max_age: Period(Duration::from_hours(1000)),
        keep_delivered: Period(Duration::from_hours(1000)),
        sync: Sync::Every(Duration::from_millis(20)),
    }
}

/// Opens it, and fails the test where it cannot.
pub fn open(config: &config::Journal) -> (Journal, Opened) {
    let end = Instant::now() + PATIENCE;
    loop {
        match Journal::open(config) {
            // A child process of another test holds a copy of every open file, and with it the lock,
            // from its fork to its exec.
            Err(StoreError::Locked { .. }) if Instant::now() < end => std::thread::yield_now(),
            opened => return opened.expect("the journal opens"),
        }
    }
}

/// Event `n`; its message carries its number and a digest of itself.
pub fn event(n: u64) -> Event {
    event_of(n, usize::try_from(n % 7).unwrap() * 90)
}

/// Event `n` with that much padding.
pub fn event_of(n: u64, padding: usize) -> Event {
    let pad: String = "lanterns of the harbour ".chars().cycle().take(padding).collect();
    let body = format!(r#""n":{n},"pad":"{pad}""#);
    let message = format!(r#"{{{body},"digest":{}}}"#, crc32fast::hash(body.as_bytes()));
    Event {
        id: format!("01J{n:023}").into(),
        distinct_key: n.is_multiple_of(5).then(|| format!("key-{n}").into()),
        place: Place::of(format!("channel.{}", n % 3), "room", "main"),
        ts: "2026-01-02T03:04:05Z".into(),
        received: clock::now(),
        origin: Origin::Live,
        data: 1..message.len() - 1,
        message: message.into(),
        may_have_personal_fields: true,
    }
}

/// The events of these numbers.
pub fn events(numbers: impl IntoIterator<Item = u64>) -> Vec<Event> {
    numbers.into_iter().map(event).collect()
}

/// Appends them as the gateway does: some at a time, and with patience for the disk.
pub async fn append(journal: &Journal, events: Vec<Event>) {
    let mut events = events.into_iter();
    loop {
        let mut some: Vec<_> = events.by_ref().take(32).collect();
        if some.is_empty() {
            break;
        }
        journal.append(&mut some);
        journal.ready().await;
    }
}

/// Appends them as if each had been heard so long ago.
pub async fn append_aged(journal: &Journal, events: impl IntoIterator<Item = (Event, Duration)>) {
    for (event, age) in events {
        let since = clock::now() - u64::try_from(age.as_millis()).unwrap();
        let event = Event { received: since, ..event };
        journal.append_waited(&mut vec![event], Waited::already(age));
        journal.ready().await;
    }
}

/// The number of an event; fails the test if a single byte of it is wrong.
pub fn number(record: &Record) -> u64 {
    let text = std::str::from_utf8(&record.event.message).expect("text");
    let (body, digest) = text
        .strip_prefix('{')
        .and_then(|text| text.strip_suffix('}'))
        .and_then(|text| text.rsplit_once(r#","digest":"#))
        .expect("an event of the tests");
    assert_eq!(digest, crc32fast::hash(body.as_bytes()).to_string(), "wrong bytes: {text}");
    let value: serde_json::Value = serde_json::from_str(text).expect("JSON");
    let n = value["n"].as_u64().expect("a number");
    let expected = event_of(n, value["pad"].as_str().unwrap().len());
    let told = Event { received: expected.received, ..record.event.clone() };
    assert_eq!(told, expected, "all fields come back as they were");
    n
}

/// What a sink gets of a journal, in order: the numbers, and how many it was told to be lost.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Got {
    pub numbers: Vec<u64>,
    pub lost: u64,
    pub through: Seq,
}

/// Reads everything after `after`, through the last event that there is now.
pub async fn read_all(journal: &Journal, after: Seq) -> Got {
    read_some(journal, after, journal.figures().last).await
}

/// Reads everything after `after`, through `last`; waits out a journal that repairs itself.
pub async fn read_some(journal: &Journal, after: Seq, last: Seq) -> Got {
    let mut got = Got { through: after, ..Got::default() };
    while got.through < last {
        let batch = until("the journal can be read", PATIENCE, async || {
            journal.read(got.through, last, 300, 64 * 1024).await.ok()
        })
        .await;
        assert!(batch.through > got.through, "reading gets on: {batch:?}");
        let numbers: Vec<_> = batch.records.iter().map(|record| number(record)).collect();
        let in_order = batch.records.windows(2).all(|pair| pair[0].seq < pair[1].seq);
        assert!(in_order && batch.records.iter().all(|record| record.seq > got.through));
        got.numbers.extend(numbers);
        got.lost += batch.lost;
        got.through = batch.through;
    }
    got
}

/// Waits until everything is on disk: events, and the cursors of these sinks.
pub async fn settled(journal: &Journal, sinks: &[&str]) {
    until("everything is written", PATIENCE, async || {
        let figures = journal.figures();
        let (sound, lag) = (figures.health == Health::Sound, figures.last - figures.written);
        let saved = sinks.iter().all(|sink| journal.saved(sink) == position(journal, sink));
        (sound && lag == 0 && saved).then_some(())
    })
    .await;
}

/// Waits until a loss of power would take nothing more: events, cursors and all else.
pub async fn synced(journal: &Journal) {
    until("all of it is synced", PATIENCE, async || {
        let figures = journal.figures();
        (figures.synced == figures.last && figures.durable).then_some(())
    })
    .await;
}

/// Where that sink stands.
pub fn position(journal: &Journal, sink: &str) -> Seq {
    journal.register(sink, config::Start::Earliest).expect("a position")
}

/// Closes it, which blocks.
pub async fn close(journal: Journal) {
    tokio::task::spawn_blocking(move || journal.close()).await.unwrap();
}

/// The directory as a crash would leave it now: a copy of its files.
pub fn crashed(dir: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for (name, bytes) in contents(dir) {
        fs::write(copy.path().join(name), bytes).unwrap();
    }
    copy
}

/// Every file of the directory but SQLite's shared memory, which does not survive its process.
pub fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file() && path.extension().is_none_or(|end| end != "db-shm"))
        .map(|path| (path.file_name().unwrap().into(), fs::read(&path).unwrap()))
        .collect()
}

/// Tells a figure of a run; seen with `--nocapture`.
#[expect(clippy::print_stdout, reason = "figures are for whoever runs the test")]
pub fn say(figure: &str) {
    println!("{figure}");
}

/// Whether the long runs are wanted.
#[expect(clippy::disallowed_methods, reason = "a test is told from outside how long it may take")]
pub fn long() -> bool {
    std::env::var_os("ASTRO_RELAY_LONG").is_some()
}
