//! The journal: one log of events, one cursor a sink.
//!
//! ```text
//!  gateway ──append──▶ ring ──▶ writer thread ──▶ journal.db-wal ──▶ journal.db
//!                       │            syncer thread: fdatasync, checkpoints
//!                       └──next──▶ delivery ◀──next (behind the ring)── journal.db
//! ```
//!
//! An event is appended once and gets a number. The newest events stand in a bounded ring in memory. The
//! writer, a thread of its own, writes them to [`store`], many in one transaction when many come. Sinks
//! that keep up read from the ring, sinks that lag read from the file. Whoever appends waits for the disk
//! only while too much is unwritten, and for a bounded time ([`Journal::ready`]).
//!
//! # What may be read
//!
//! A sink reads only what is *written*: committed to the write-ahead log, which survives the end of the
//! process. With `sync = "always"` it reads only what is *synced*, which survives a loss of power. So no
//! sink ever has an event that another sink can never get. While the disk fails there is nothing written
//! to wait for: then sinks read from memory, and [`Health`] says so.
//!
//! # Numbers and runs
//!
//! Numbers only grow, and no number is given twice, not even after a crash: the file says up to which
//! number some may have been given (`reserved`), and the next run begins behind that. So there are holes
//! between runs. Each run writes down its first number, and when it has ended its last; a number inside a
//! run was an event, a number between two runs never was. That makes loss countable: a reader that finds
//! no event for a number inside a run knows that one is gone ([`Batch::lost`]). Runs are kept as long as
//! anything is kept, or any sink stands, before their end. Where retention has removed all there was,
//! `removed` says how far the run had come.
//!
//! # The mark
//!
//! A database can come up shorter than it was: its log was deleted, a page is broken, another file was
//! put in its place. `journal.mark` is a small file beside it that is written over in place with each
//! commit. It holds the last number and how many events there were, so that what is missing is counted
//! and told at the next start. It also holds when the relay last ran, on every clock. An idle relay
//! writes nothing but the mark.
//!
//! # Sync, and doubt
//!
//! A commit is not synced by itself. The syncer, a second thread, syncs the log within `journal.sync` of
//! any commit: events, cursors, dead letters and state alike. A sync that failed is never simply tried
//! again, for the system may have dropped the pages and call them clean. From then on nothing counts as
//! synced until the file was opened anew by everybody, its log was read with its sums and moved into the
//! database as a whole, and what was dropped was written once more from memory.
//!
//! # What counts as lost
//!
//! Lost is what was accepted here and a sink will never get: removed by retention before the sink had it,
//! pushed out of memory while the disk failed, or gone with a broken file. Each is counted for each sink,
//! logged as an error, and told by an event `relay.gap`. A reading that failed is no loss: it is an error,
//! and is tried again. Nothing is deleted because a sink is misconfigured, or because of another sink.
//!
//! # Ages
//!
//! How old an event is means how long it has waited, by a clock that does not step ([`age`]). The wall
//! clock is written down for people and decides nothing, except how long a machine was switched off.
//!
//! # Budgets
//!
//! | what | limit | beyond it |
//! |---|---|---|
//! | events on disk | `max_size`, `max_age`; `keep_delivered` for what every sink has | the oldest go, and are told as lost to whom they were still to be given |
//! | events in memory | `memory` | the oldest that are written go from the ring; while the disk fails, the oldest |
//! | dead letters of one sink | `max_dead_letters` | the sink is held; nothing goes ([`SetAside::Full`]) |
//! | dead letters not yet written | a number, and `memory` | who sets one aside waits ([`SetAside::Wait`]) |
//! | state of one channel | `budget` | the rest is not written; it is fetched again |
//!
//! # Without a disk
//!
//! A disk that is full, read-only, gone or broken, at the start or later, ends nothing. The ring alone
//! carries on within its bound and the writer tries the disk once a second. A relay that *started* without
//! its files gives numbers that no run before can have reached, and finds what is in the files only later;
//! sinks have gone on meanwhile, so what they had still to get of the old is handed to them as a replay:
//! all of it, but behind the new. Files that are removed or replaced while they are open are noticed by
//! their inodes and made anew. Only another relay that has the journal, or one of a newer version, keeps
//! this one from starting.
//!
//! # A crash
//!
//! A sink's cursor is saved right after it moves, and [`Journal::saved`] tells how far. Delivery keeps what
//! is sent but not saved within its window, so that a crash repeats no more than that; a loss of power
//! repeats what `journal.sync` had not covered besides.
//!
//! What must not wait for a disk takes [`State`]'s lock only, and nothing touches the disk under it.

mod age;
mod backpressure;
mod batch;
mod channel_state;
mod file;
mod follow;
mod reader;
pub mod store;
mod writer;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

pub use self::{
    file::Opened,
    follow::Follower,
    store::{DeadLetter, Letters, Replay, StateElement, StoreError},
};
use self::{
    file::{Marked, Missing},
    reader::Reader,
    store::{RejectedAgain, Run, Store, Write, given},
};
use crate::{
    base::{
        clock::{self, UnixMillis},
        event::{Event, Record, Seq, Waited},
        text,
    },
    config::{self, Start, Sync},
};

/// Dead letters that wait in memory for the disk, at most: several sinks' windows full of them.
const DEAD_IN_MEMORY: usize = 4096;

/// Bytes of the reason of a dead letter: a server may give one of any length.
const REASON: usize = 1000;

/// Cursors of the relay's own parts begin like this.
const OWN: &str = "relay.";

/// Runs that are kept for the sake of sinks that are no longer configured.
const MANY_RUNS: usize = 256;

/// Dead letters that are handed out at once to be tried again.
const RETRY_AT_ONCE: usize = 64;

/// A handle to the journal; clones share it.
#[derive(Debug, Clone)]
pub struct Journal(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Wakes the writer thread.
    work: Condvar,
    /// A thread has ended.
    ended: Condvar,
    /// The last event that may be read.
    readable: watch::Sender<Seq>,
    /// Grows when cursors were saved or room was made.
    progress: watch::Sender<u64>,
    /// Grows when somebody made a request.
    requests: watch::Sender<u64>,
    /// How it is, for whoever shows it.
    health: watch::Sender<Health>,
    /// A thread of the journal has panicked.
    failed: watch::Sender<bool>,
    /// `None` without a directory.
    reader: Option<Reader>,
    sync: Sync,
    limits: Limits,
    missing: Missing,
}

/// The journal's limits; see [`config::Journal`].
#[derive(Debug, Clone)]
struct Limits {
    dir: Option<PathBuf>,
    max_size: u64,
    max_age: Duration,
    keep_delivered: Duration,
    min_free: u64,
    memory: usize,
    /// Bytes of the dead letters of one sink.
    max_dead_letters: u64,
}

#[derive(Debug)]
struct State {
    ring: VecDeque<Arc<Record>>,
    ring_bytes: usize,
    /// Bytes in the ring that are not on disk.
    unwritten_bytes: usize,
    last: Seq,
    written: Seq,
    synced: Seq,
    durable: bool,
    /// The first event that is still kept, on disk or in memory.
    oldest: Seq,
    last_received: UnixMillis,
    runs: Vec<Run>,
    cursors: HashMap<Arc<str>, Cursor>,
    /// Positions were lost, and it is not known whose.
    sinks_unknown: bool,
    /// Intake has waited for the disk in vain, and waits no more until it has caught up.
    late: bool,
    dead: Vec<DeadLetter>,
    /// Bytes of the events in `dead`.
    dead_bytes: usize,
    /// Each sink's dead letters, those that are not yet written among them.
    letters: HashMap<String, Letters>,
    /// Dead letters that were tried again in vain, with the new reason.
    refused: Vec<RejectedAgain>,
    settled: Vec<i64>,
    replays: HashMap<i64, Option<Seq>>,
    /// Elements of channels' states that are not yet written.
    kept: HashMap<(Box<str>, Box<str>), StateElement>,
    budget: channel_state::StateBudget,
    health: Health,
    size: u64,
    demand: Demand,
    threads: usize,
}

/// What the writer is to do, the more of it the further down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Demand {
    /// Nothing before it is time for upkeep.
    Nothing,
    /// To write what is new.
    Write,
    /// To write it, and to end.
    End,
}

#[derive(Debug, Clone, Copy)]
struct Cursor {
    at: Seq,
    /// How far it is on disk; `None`: not at all, or not known.
    saved: Option<Seq>,
    /// Whether a configured sink uses it.
    active: bool,
    /// How long the event after it waits, where only the disk still has that.
    waits: Option<Waited>,
}

impl Cursor {
    fn new(at: Seq, saved: Option<Seq>) -> Self {
        Self { at, saved, active: true, waits: None }
    }
}

/// How the journal is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Health {
    /// Everything is written.
    #[default]
    Sound,
    /// Events live in memory only, by configuration.
    MemoryOnly,
    /// Events live in memory only, because of this.
    Degraded(String),
}

/// What became of an event that was to be set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetAside {
    /// It is a dead letter.
    Stored,
    /// Too many letters wait in memory for the disk, and it is not among them: it is to be set aside
    /// again when [`Journal::progress`] changes.
    Wait,
    /// The dead letters of this sink take all of `journal.max_dead_letters`, and it is not among them:
    /// the sink is to be held.
    Full,
    /// The journal has no directory: it was counted, and is not kept.
    Lost,
}

/// What [`Journal::next`] found.
#[derive(Debug, Default)]
pub struct Batch {
    /// Events in order, none missing between them.
    pub records: Vec<Arc<Record>>,
    /// Events that should have stood before them, and are gone.
    pub lost: u64,
    /// The cursor's next position if all of this is dealt with.
    pub through: Seq,
}

/// The journal in figures.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// The first event that is kept.
    pub oldest: Seq,
    /// The last event.
    pub last: Seq,
    /// Through which event the disk has them.
    pub written: Seq,
    /// Through which event they survive a loss of power.
    pub synced: Seq,
    /// Whether everything that is written does: cursors and dead letters too.
    pub durable: bool,
    /// Bytes on disk.
    pub size: u64,
    /// Bytes of events in memory.
    pub memory: usize,
    /// How it is.
    pub health: Health,
}

impl Journal {
    /// Opens the journal that is configured, and starts its threads.
    pub fn open(config: &config::Journal) -> Result<(Self, Opened), StoreError> {
        if config.dir.as_os_str().is_empty() {
            let journal = Self::in_memory(config.memory.bytes());
            return Ok((journal, Opened::default()));
        }
        file::open(config)
    }

    /// A journal that lives in memory only.
    pub fn in_memory(memory: usize) -> Self {
        let limits = Limits {
            dir: None,
            max_size: u64::MAX,
            max_age: Duration::MAX,
            keep_delivered: Duration::ZERO,
            min_free: 0,
            memory,
            max_dead_letters: u64::MAX,
        };
        let state = State::new(1, vec![(1, None)], 1, Health::MemoryOnly);
        Self(Arc::new(Shared::new(state, None, Sync::Never, limits)))
    }

    /// Appends `events` in order and leaves the vector empty. Never waits: see [`Journal::ready`].
    pub fn append(&self, events: &mut Vec<Event>) {
        self.append_waited(events, Waited::now());
    }

    /// The same for events that were heard some time ago.
    pub fn append_waited(&self, events: &mut Vec<Event>, waited: Waited) {
        if !events.is_empty() {
            self.add(events.drain(..), waited);
        }
    }

    fn add(&self, events: impl Iterator<Item = Event>, waited: Waited) {
        let shared = &*self.0;
        let mut state = shared.lock();
        for mut event in events {
            event.received = age::received(event.received, state.last_received);
            state.last_received = event.received;
            state.last += 1;
            let weight = event.weight();
            state.ring_bytes += weight;
            state.unwritten_bytes += weight;
            let seq = state.last;
            state.ring.push_back(Arc::new(Record { seq, event, waited }));
        }
        shared.evict(&mut state);
        if shared.limits.dir.is_none() {
            state.written = state.last;
            state.unwritten_bytes = 0;
        }
        shared.publish(&state);
        shared.hurry(state);
    }

    /// Which sinks there are: the positions of all others hold nothing back any more.
    pub fn sinks<'a>(&self, names: impl IntoIterator<Item = &'a str>) {
        let names: Vec<_> = names.into_iter().collect();
        for (sink, cursor) in &mut self.0.lock().cursors {
            cursor.active = names.contains(&&**sink);
        }
    }

    /// Takes up a sink's cursor; a sink without one begins at `start`. Answers its position.
    pub fn register(&self, sink: &str, start: Start) -> Result<Seq, StoreError> {
        let name: Arc<str> = sink.into();
        let known = {
            let mut state = self.0.lock();
            let last = state.last;
            state.cursors.get_mut(&name).map(|cursor| {
                cursor.active = true;
                cursor.at = cursor.at.min(last);
                cursor.at
            })
        };
        if let Some(at) = known {
            return Ok(at);
        }
        let start = if self.0.lock().sinks_unknown { Start::Earliest } else { start };
        let at = self.position(start)?;
        let mut state = self.0.lock();
        // Saved once before anything else happens, so that a restart does not begin anew.
        state.cursors.insert(name, Cursor::new(at, None));
        self.0.hurry(state);
        Ok(at)
    }

    fn position(&self, start: Start) -> Result<Seq, StoreError> {
        let (oldest, last) = {
            let state = self.0.lock();
            (state.oldest, state.last)
        };
        Ok(match start {
            Start::End => last,
            Start::Earliest => oldest.saturating_sub(1),
            Start::Age(age) => {
                let since = clock::now().saturating_sub(millis(age));
                self.first_since(since)?.map_or(last, |seq| seq - 1)
            }
        })
    }

    /// The first event received at or after that time of the wall clock as it is now.
    pub fn first_since(&self, since: UnixMillis) -> Result<Option<Seq>, StoreError> {
        let Some(age) = clock::now().checked_sub(since).map(Duration::from_millis) else {
            return Ok(None);
        };
        if let Some(reader) = self.0.reader() {
            let found = reader.read(|store| store.first_since(since))?;
            if found.is_some() {
                return Ok(found);
            }
        }
        let state = self.0.lock();
        Ok(state.ring.iter().find(|record| record.age() <= age).map(|record| record.seq))
    }

    /// A sink no longer uses its cursor: it holds nothing back any more.
    pub fn unregister(&self, sink: &str) {
        if let Some(cursor) = self.0.lock().cursors.get_mut(sink) {
            cursor.active = false;
        }
    }

    /// Waits for events after `after`: at most `limit` of them and about `max_bytes`.
    pub async fn next(
        &self,
        after: Seq,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Batch, StoreError> {
        let mut readable = self.0.readable.subscribe();
        loop {
            let through = *readable.borrow_and_update();
            if through > after {
                return self.read(after, through, limit, max_bytes).await;
            }
            if readable.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// What is there after `after` and need not be waited for: it still stands in memory.
    pub fn try_next(&self, after: Seq, limit: usize, max_bytes: usize) -> Option<Batch> {
        let through = *self.0.readable.borrow();
        let state = self.0.lock();
        let in_memory = state.ring.front().is_some_and(|first| first.seq <= after + 1);
        (through > after && in_memory).then(|| state.in_ring(after, through, limit, max_bytes))
    }

    /// Reads what is there after `after`, through `through`.
    pub async fn read(
        &self,
        after: Seq,
        through: Seq,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Batch, StoreError> {
        if through <= after {
            return Ok(Batch { through: after, ..Batch::default() });
        }
        let shared = &self.0;
        let before_ring = {
            let state = shared.lock();
            match state.ring.front() {
                Some(first) if first.seq <= after + 1 || shared.reader().is_none() => {
                    return Ok(state.in_ring(after, through, limit, max_bytes));
                }
                None if shared.reader().is_none() => {
                    return Ok(state.in_ring(after, through, limit, max_bytes));
                }
                Some(first) => first.seq - 1,
                None => state.last,
            }
        };
        let journal = self.clone();
        let read = tokio::task::spawn_blocking(move || {
            let reader = journal.0.reader().ok_or(StoreError::Reopening)?;
            reader.read(|store| store.read(after, limit, max_bytes))
        });
        // What was not read is not known to be gone.
        let read = read.await.unwrap_or(Err(StoreError::Unread));
        let mut read = read.inspect_err(|error| shared.suspect(error))?;
        // The writer may have gone on meanwhile; what may be read was decided above.
        read.records.retain(|record| record.seq <= through);
        let end = match read.through {
            Some(end) => end.min(through),
            // Nothing on disk after `after`: what stood before the ring is gone.
            None => before_ring.clamp(after, through),
        };
        Ok(shared.lock().batch(after, read.records, end))
    }

    /// Something has been missing for so long and is not yet told: a relay that ends now has been away
    /// since then, see [`Opened::downtime`]. `None`: nothing is.
    pub fn set_unreported_gap(&self, time: Option<Duration>) {
        self.0.missing.set(time);
    }

    /// The destination of `sink` has accepted everything through `seq`.
    pub fn advance(&self, sink: &str, seq: Seq) {
        self.advance_lazily(sink, seq);
        if self.0.limits.dir.is_none() {
            self.0.progress.send_modify(|count| *count += 1);
        } else {
            self.0.hurry(self.0.lock());
        }
    }

    /// The same, saved with what is written next, at the latest within a second.
    fn advance_lazily(&self, sink: &str, seq: Seq) {
        let memory_only = self.0.limits.dir.is_none();
        if let Some(cursor) = self.0.lock().cursors.get_mut(sink) {
            cursor.at = cursor.at.max(seq);
            if memory_only {
                cursor.saved = Some(cursor.at);
            }
        }
    }

    /// Through which event the cursor of `sink` is saved. In a degraded journal nothing is, and
    /// nobody waits for it.
    pub fn saved(&self, sink: &str) -> Seq {
        let state = self.0.lock();
        match (state.cursors.get(sink), &state.health) {
            (Some(cursor), Health::Sound) => cursor.saved.unwrap_or(0),
            (Some(cursor), Health::MemoryOnly | Health::Degraded(_)) => cursor.at,
            (None, _) => 0,
        }
    }

    /// Changes when cursors were saved.
    pub fn progress(&self) -> watch::Receiver<u64> {
        self.0.progress.subscribe()
    }

    /// Sets an event aside that the destination of `sink` rejected. Nothing is deleted for it: where
    /// there is no room, the answer says so, and the event stays where it is.
    pub fn dead_letter(&self, sink: &str, record: &Arc<Record>, reason: &str) -> SetAside {
        let mut state = self.0.lock();
        let letter = DeadLetter {
            number: 0,
            sink: sink.to_owned(),
            at: clock::now(),
            reason: text::excerpt(reason, REASON),
            retry: false,
            record: Arc::clone(record),
        };
        if self.0.limits.dir.is_none() {
            // Nobody could look at it.
            state.letters.entry(sink.to_owned()).or_default().count += 1;
            return SetAside::Lost;
        }
        if state.letters_full(sink, self.0.limits.max_dead_letters) {
            return SetAside::Full;
        }
        if state.dead.len() >= DEAD_IN_MEMORY || state.dead_bytes > self.0.limits.memory {
            return SetAside::Wait;
        }
        let letters = state.letters.entry(sink.to_owned()).or_default();
        letters.count += 1;
        letters.bytes += letter.bytes();
        state.dead_bytes += record.event.weight();
        state.dead.push(letter);
        self.0.hurry(state);
        SetAside::Stored
    }

    /// Whether the dead letters of `sink` take all of their budget: then the sink is to be held.
    pub fn dead_letters_full(&self, sink: &str) -> bool {
        self.0.lock().letters_full(sink, self.0.limits.max_dead_letters)
    }

    /// A dead letter was tried again and rejected again: it stays, with the new reason, and is no
    /// longer asked for.
    pub fn rejected_again(&self, number: i64, reason: &str) {
        let mut state = self.0.lock();
        let reason = text::excerpt(reason, REASON);
        state.refused.push(RejectedAgain { number, at: clock::now(), reason });
        self.0.hurry(state);
    }

    /// Changes when somebody asks for a replay or for dead letters to be tried again.
    pub fn requests(&self) -> watch::Receiver<u64> {
        self.0.requests.subscribe()
    }

    /// What is asked for of `sink`: dead letters to try again (some of them; there may be more), and
    /// replays. Blocks on the disk.
    pub fn pending_requests(
        &self,
        sink: &str,
    ) -> Result<(Vec<DeadLetter>, Vec<Replay>), StoreError> {
        let Some(reader) = self.0.reader() else { return Ok((Vec::new(), Vec::new())) };
        // What is done and not yet written down counts as done. It is looked at before the disk: what
        // is written down in between is seen there.
        let (settled, positions) = {
            let state = self.0.lock();
            let refused = state.refused.iter().map(|refused| refused.number);
            let settled: Vec<_> = state.settled.iter().copied().chain(refused).collect();
            (settled, state.replays.clone())
        };
        let (mut letters, mut replays) = reader.read(|store| {
            Ok((store.to_retry(sink, RETRY_AT_ONCE + settled.len())?, store.replays()?))
        })?;
        letters.retain(|letter| !settled.contains(&letter.number));
        replays.retain_mut(|replay| match positions.get(&replay.number) {
            _ if replay.sink != sink => false,
            Some(None) => false,
            Some(Some(position)) => {
                replay.position = *position;
                true
            }
            None => true,
        });
        Ok((letters, replays))
    }

    /// A dead letter is dealt with.
    pub fn remove_dead_letter(&self, number: i64) {
        let mut state = self.0.lock();
        state.settled.push(number);
        self.0.hurry(state);
    }

    /// A replay has come to `position`; `None`: it is done.
    pub fn replay_progress(&self, number: i64, position: Option<Seq>) {
        let mut state = self.0.lock();
        state.replays.insert(number, position);
        self.0.hurry(state);
    }

    /// Writes elements of channels' states down, over what was there, as far as each channel has room. Without a directory nothing
    /// outlives the process, and nothing is kept.
    pub fn store_state(&self, elements: impl IntoIterator<Item = StateElement>) {
        if self.0.limits.dir.is_none() {
            return;
        }
        let mut state = self.0.lock();
        for kept in elements {
            let kept = state.budget.admit(kept);
            state.kept.insert((kept.channel.clone(), kept.element.clone()), kept);
        }
        self.0.hurry(state);
    }

    /// All elements of channels' states. Blocks on the disk.
    pub fn stored_state(&self) -> Result<Vec<StateElement>, StoreError> {
        let mut found =
            self.0.reader().map_or(Ok(Vec::new()), |reader| reader.read(Store::state))?;
        // Most of the time everything is written.
        let newer = self.0.lock().kept.clone();
        if !newer.is_empty() {
            let key = |kept: &StateElement| (kept.channel.clone(), kept.element.clone());
            found.retain(|kept| !newer.contains_key(&key(kept)));
            found.extend(newer.into_values().filter(|kept| kept.value.is_some()));
        }
        Ok(found)
    }

    /// The newest events, at most `limit`: what the relay heard last before it was started.
    pub fn newest(&self, limit: usize) -> Result<Vec<Arc<Record>>, StoreError> {
        let Some(reader) = self.0.reader() else { return Ok(Vec::new()) };
        reader.read(|store| {
            let after = store.before_newest(limit)?;
            Ok(store.read(after, limit, usize::MAX)?.records)
        })
    }

    /// The journal in figures.
    pub fn figures(&self) -> Figures {
        let state = self.0.lock();
        Figures {
            oldest: state.oldest,
            last: state.last,
            written: state.written,
            synced: state.synced,
            durable: state.durable,
            size: state.size,
            memory: state.ring_bytes,
            health: state.health.clone(),
        }
    }

    /// Events that `sink` has still to get, and how long the oldest of them waits.
    pub fn lag(&self, sink: &str) -> (u64, Duration) {
        let state = self.0.lock();
        let Some(cursor) = state.cursors.get(sink) else { return (0, Duration::ZERO) };
        let events = state.given(cursor.at, state.last);
        if events == 0 {
            return (0, Duration::ZERO);
        }
        let in_ring = state.ring.front().and_then(|first| {
            let index = usize::try_from((cursor.at + 1).checked_sub(first.seq)?).ok()?;
            state.ring.get(index)
        });
        // Of the rest only the disk knows; the writer looks it up once in a while.
        let waited = in_ring.map(|record| record.waited).or(cursor.waits);
        (events, waited.map_or(Duration::ZERO, Waited::so_far))
    }

    /// How many dead letters each sink has.
    pub fn dead_letter_counts(&self) -> HashMap<String, u64> {
        let state = self.0.lock();
        state.letters.iter().map(|(sink, letters)| (sink.clone(), letters.count)).collect()
    }

    /// How it is, now and when that changes.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.0.health.subscribe()
    }

    /// Waits until a thread of the journal has panicked: without it nothing is written any more, and the
    /// process is to end.
    pub async fn thread_failed(&self) {
        let mut failed = self.0.failed.subscribe();
        if failed.wait_for(|failed| *failed).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Writes what is left, closes the file in order and ends the threads. Blocks.
    pub fn close(&self) {
        let mut state = self.0.lock();
        state.demand = Demand::End;
        self.0.work.notify_all();
        while state.threads > 0 {
            state = self.0.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Shared {
    fn new(state: State, reader: Option<Reader>, sync: Sync, limits: Limits) -> Self {
        let shared = Self {
            state: Mutex::new(state),
            work: Condvar::new(),
            ended: Condvar::new(),
            readable: watch::channel(0).0,
            progress: watch::channel(0).0,
            requests: watch::channel(0).0,
            health: watch::channel(Health::Sound).0,
            failed: watch::channel(false).0,
            reader,
            sync,
            limits,
            missing: Missing::default(),
        };
        shared.publish(&shared.lock());
        shared
    }

    /// What is no longer in the ring is read with it; `None` while there is no file.
    fn reader(&self) -> Option<&Reader> {
        self.reader.as_ref().filter(|reader| reader.was_opened())
    }

    /// A panic elsewhere while the lock was held left nothing half done: every change under it is
    /// small and ordered.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has what is new written now, and not only with what is written next.
    fn hurry(&self, mut state: MutexGuard<'_, State>) {
        state.demand = state.demand.max(Demand::Write);
        drop(state);
        self.work.notify_one();
    }

    /// Tells readers how far they may read. Under the lock: two that append at once would otherwise
    /// tell in the wrong order, and an event would lie until the next one comes.
    fn publish(&self, state: &State) {
        let readable = match (self.sync, &state.health) {
            (Sync::Always, Health::Sound) => state.synced,
            (_, Health::Sound) => state.written,
            (_, Health::MemoryOnly | Health::Degraded(_)) => state.last,
        };
        self.readable.send_if_modified(|seq| std::mem::replace(seq, readable) != readable);
        self.health.send_if_modified(|health| {
            let changed = *health != state.health;
            if changed {
                health.clone_from(&state.health);
            }
            changed
        });
    }

    /// Keeps the ring within its bound. What is not on disk stays as long as the disk works; a disk
    /// that is twice as far behind as it may be does not.
    fn evict(&self, state: &mut State) {
        let limit = self.limits.memory;
        while state.ring_bytes > limit
            && let Some(first) = state.ring.front()
        {
            let unwritten = first.seq > state.written;
            if unwritten && state.health == Health::Sound && state.ring_bytes < 2 * limit {
                break;
            }
            let weight = first.event.weight();
            if unwritten {
                state.unwritten_bytes = state.unwritten_bytes.saturating_sub(weight);
            }
            state.ring_bytes -= weight;
            state.ring.pop_front();
        }
        if self.reader().is_none() {
            state.oldest = state.ring.front().map_or(state.last + 1, |first| first.seq);
        }
    }

    /// An error that says that the file itself is broken: the writer looks into it.
    fn suspect(&self, error: &StoreError) {
        if error.is_corrupt() {
            let mut state = self.lock();
            if state.health == Health::Sound {
                state.health = Health::Degraded(writer::CORRUPT.into());
                self.publish(&state);
            }
            drop(state);
            self.work.notify_one();
        }
    }
}

impl State {
    fn new(next: Seq, runs: Vec<Run>, oldest: Seq, health: Health) -> Self {
        let last = next - 1;
        Self {
            ring: VecDeque::new(),
            ring_bytes: 0,
            unwritten_bytes: 0,
            last,
            written: last,
            synced: last,
            durable: true,
            oldest,
            last_received: 0,
            runs,
            cursors: HashMap::new(),
            sinks_unknown: false,
            late: false,
            dead: Vec::new(),
            dead_bytes: 0,
            letters: HashMap::new(),
            refused: Vec::new(),
            settled: Vec::new(),
            replays: HashMap::new(),
            kept: HashMap::new(),
            budget: channel_state::StateBudget::default(),
            health,
            size: 0,
            demand: Demand::Nothing,
            threads: 0,
        }
    }

    /// How many numbers after `after`, through `through`, were given to events.
    fn given(&self, after: Seq, through: Seq) -> u64 {
        given(&self.runs, after, through.min(self.last))
    }

    /// Forgets runs that ended before everything that is kept and before every cursor. Answers where
    /// that is, if there were any.
    fn prune_runs(&mut self) -> Option<Seq> {
        // A cursor that no sink uses any more counts as long as that costs little.
        let all = self.runs.len() < MANY_RUNS;
        let cursors = self.cursors.values().filter(|cursor| all || cursor.active);
        let before = cursors.map(|cursor| cursor.at + 1).fold(self.oldest, Seq::min);
        let count = self.runs.len();
        self.runs.retain(|(_, last)| last.is_none_or(|last| last >= before));
        (self.runs.len() < count).then_some(before)
    }

    /// What the mark is to say.
    fn marked(&self) -> Marked {
        self.marked_through(self.written)
    }

    fn marked_through(&self, last: Seq) -> Marked {
        Marked { last, events: self.given(self.oldest.saturating_sub(1), last) }
    }

    /// Makes a batch of what was found after `after`, through `end`: it ends before the first hole in
    /// it, and a hole before it is counted.
    fn batch(&self, after: Seq, mut records: Vec<Arc<Record>>, mut end: Seq) -> Batch {
        let hole = records.windows(2).position(|pair| match pair {
            [one, next] => next.seq != one.seq + 1 && self.given(one.seq, next.seq - 1) > 0,
            _ => false,
        });
        if let Some(index) = hole {
            records.truncate(index + 1);
        }
        // Rows behind the last may be gone as well: they stand before the next batch.
        if let Some(last) = records.last() {
            end = last.seq;
        }
        let before = records.first().map_or(end, |first| first.seq - 1);
        Batch { lost: self.given(after, before), records, through: end }
    }

    /// Sinks whose next event the ring no longer has, and where they stand.
    fn behind_ring(&self) -> Vec<(Arc<str>, Seq)> {
        let Some(first) = self.ring.front() else { return Vec::new() };
        let behind = self.cursors.iter().filter(|(_, cursor)| cursor.at + 1 < first.seq);
        behind.map(|(sink, cursor)| (Arc::clone(sink), cursor.at)).collect()
    }

    fn in_ring(&self, after: Seq, through: Seq, limit: usize, max_bytes: usize) -> Batch {
        let first = self.ring.front().map_or(self.last + 1, |record| record.seq);
        let skip = usize::try_from((after + 1).saturating_sub(first)).unwrap_or(usize::MAX);
        let mut bytes = 0;
        let records: Vec<_> = self
            .ring
            .iter()
            .skip(skip)
            .take(limit)
            .take_while(|record| {
                let fits = bytes < max_bytes && record.seq <= through;
                bytes += record.event.weight();
                fits
            })
            .cloned()
            .collect();
        self.batch(after, records, through)
    }

    /// What the disk has still to get.
    fn unwritten(&self, limit: usize, max_bytes: usize) -> Write {
        let first = self.ring.front().map_or(self.last + 1, |record| record.seq);
        let skip = usize::try_from((self.written + 1).saturating_sub(first)).unwrap_or(usize::MAX);
        let mut bytes = 0;
        let fits = |record: &&Arc<Record>| {
            let room = bytes < max_bytes;
            bytes += record.event.weight();
            room
        };
        let unwritten = self.ring.iter().skip(skip).take(limit).take_while(fits);
        Write {
            records: unwritten.cloned().collect(),
            cursors: self
                .cursors
                .iter()
                .filter(|(_, cursor)| cursor.saved != Some(cursor.at))
                .map(|(sink, cursor)| (Arc::clone(sink), cursor.at))
                .collect(),
            dead: self.dead.clone(),
            refused: self.refused.clone(),
            replays: self.replays.iter().map(|(number, at)| (*number, *at)).collect(),
            settled: self.settled.clone(),
            state: self.kept.values().cloned().collect(),
        }
    }

    /// Takes up what was found in files that could be opened only now; `before` is the last number in
    /// them. Answers what the sinks have still to get of it.
    fn take_up(&mut self, found: Self, before: Seq) -> Vec<Replay> {
        self.runs = found.runs;
        self.oldest = found.oldest;
        self.size = found.size;
        let mut letters = found.letters;
        for letter in &self.dead {
            let sink = letters.entry(letter.sink.clone()).or_default();
            sink.count += 1;
            sink.bytes += letter.bytes();
        }
        self.letters = letters;
        let (mut backlogs, mut known) = (Vec::new(), HashSet::new());
        for (sink, mut cursor) in found.cursors {
            known.insert(Arc::clone(&sink));
            if let Some(live) = self.cursors.get_mut(&sink) {
                live.saved = None;
                // The relay's own parts follow what is new.
                if !sink.starts_with(OWN) && given(&self.runs, cursor.at, before) > 0 {
                    let (number, topic) = (0, None);
                    let (sink, position) = (sink.to_string(), cursor.at);
                    backlogs.push(Replay { number, sink, position, until: before, topic });
                }
            } else {
                // No configured sink uses it.
                cursor.active = false;
                self.cursors.insert(sink, cursor);
            }
        }
        // Positions were lost, and it is not known whose: then everybody gets what there is.
        let unknown = self.cursors.iter().filter(|(sink, cursor)| {
            found.sinks_unknown && cursor.active && !known.contains(*sink) && !sink.starts_with(OWN)
        });
        let position = self.oldest.saturating_sub(1);
        if given(&self.runs, position, before) > 0 {
            backlogs.extend(unknown.map(|(sink, _)| {
                let (number, sink, topic) = (0, sink.to_string(), None);
                Replay { number, sink, position, until: before, topic }
            }));
        }
        backlogs
    }

    fn nothing_unwritten(&self) -> bool {
        self.written == self.last && self.dead.is_empty()
    }

    fn letters_full(&self, sink: &str, most: u64) -> bool {
        self.letters.get(sink).is_some_and(|letters| letters.bytes >= most)
    }

    /// Through which event every sink has got everything.
    fn delivered(&self) -> Seq {
        let active = self.cursors.values().filter(|cursor| cursor.active);
        active.map(|cursor| cursor.at).min().unwrap_or(self.last)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
