//! The journal: one log of events, one cursor a sink.
//!
//! ```text
//!  gateway ──append──▶ ring ──▶ writer thread ──▶ journal.db-wal ──▶ journal.db
//!                       │            syncer thread: fdatasync, checkpoints
//!                       └──next──▶ delivery ◀──next (behind the ring)── journal.db
//! ```
//!
//! An event is appended once and gets a number. The newest events stand in a bounded [`ring`] in memory.
//! The [`writer`], a thread of its own, writes them to the [`store`], as many in one transaction as there
//! are. Sinks that keep up read from the ring, sinks that lag read from the file. Whoever appends waits
//! for the disk only, while too much is unwritten, and for a bounded time ([`backpressure`]).
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
//! Numbers only grow, and no number is assigned twice, not even after a crash: a run (an opening of the
//! journal) that follows one that did not end in order leaves out a million numbers behind the last that
//! is known of ([`runs`]). Each run writes down its first number, and when it has ended its last; a number
//! inside a run was an event, a number between two runs never was. That makes loss countable: a reader
//! that finds no event for a number inside a run knows that one is gone ([`Batch::lost`]). Runs are kept
//! as long as anything is kept, or any sink stands, before their end. Where retention has removed all
//! there was, `removed` says how far the run had come. Numbers are small integers from 1, for people see
//! them, and JavaScript and Redis take them: with the run in their high bits they would be too large for that.
//!
//! # The mark
//!
//! A database can come up shorter than it was: its log was deleted, a page is broken, another file was
//! put in its place. The [`mark`] beside it holds the last number and how many events there were, so that
//! what is missing is counted and reported at the next start. It also holds when the relay last ran, by
//! the wall clock and by the clock that counts suspended time. An idle relay writes nothing else.
//!
//! # Sync, and a sync that failed
//!
//! A commit is not synced by itself. The [`syncer`], a second thread, syncs the log within `journal.sync`
//! of any commit: events, cursors, dead letters and state alike. A sync that failed is never simply tried
//! again, for the system may have dropped the pages and call them clean. From then on nothing counts as
//! synced until every connection has reopened the file, the write-ahead log was verified by its checksums
//! and moved into the database as a whole, and what was dropped was written again from memory.
//!
//! # What counts as lost
//!
//! Lost is what was accepted here and a sink will never get: removed by retention before the sink had it,
//! pushed out of memory while the disk failed, or gone with a broken file ([`recovery`] takes over what
//! can be read). Each is counted for each sink and logged as an error, within seconds where retention has
//! removed it ([`losses`]), and reported by an event `relay.gap` when the sink comes to it.
//! A reading that failed is no loss: it is an error, and is tried again. Nothing is deleted because a sink
//! is misconfigured, or because of another sink.
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
//! | events on disk | `max_size`, `max_age`; `keep_delivered` for what every sink has, or waits for a removed one | the oldest go, and are reported as lost to whom they were still to be given |
//! | events in memory | `memory` | the oldest that are written go from the ring; while the disk fails, the oldest |
//! | dead letters of one sink | `max_dead_letters` | the sink is held; nothing goes ([`SetAside::Full`]) |
//! | dead letters not yet written | a number, and `memory` | who sets one aside waits ([`SetAside::Wait`]) |
//! | state of one channel | a number of bytes ([`channel_state`]) | the rest is not written; it is fetched again |
//! | what was published of the state, for each sink | a larger number ([`channel_state`]) | the rest is not written; what vanishes while the relay is down is not cleared |
//!
//! # Without a disk
//!
//! A disk that is full, read-only, gone or broken, at the start or later, ends nothing. The ring alone
//! carries on within its bound and the writer tries the disk once a second. A relay that *started* without
//! its files assigns numbers that no run before can have reached, and finds what is in the files only
//! later; sinks have gone on meanwhile, so what they had still to get of the old is handed to them as by a
//! replay: all of it, but behind the new, and not marked as replayed; until then it is not history. What
//! publishes in the log of a cluster begins again with the old: the log knows what it has. Files
//! that are removed or replaced while they are open are noticed by their inodes and made again. Only another
//! relay that has the journal, or one of a newer version, keeps this one from starting.
//!
//! # A crash
//!
//! A sink's cursor is saved soon after it moves, at once where delivery waits for that, and
//! [`Journal::saved`] tells how far. Delivery keeps what is sent but not saved within its window, so that a
//! crash repeats no more than that; a loss of power repeats what `journal.sync` had not covered besides.
//!
//! What must not wait for a disk takes the lock of [`memory`] only, and nothing touches the disk under it.

mod age;
mod backpressure;
mod batch;
mod channel_state;
mod directory;
mod error;
mod follow;
mod losses;
mod mark;
mod memory;
mod open;
mod pending;
mod reader;
mod recovery;
mod requests;
mod ring;
pub mod runs;
mod shared;
mod start;
pub mod store;
mod syncer;
mod writer;

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

pub use self::{
    directory::database,
    error::StoreError,
    follow::Follower,
    open::Opened,
    requests::SetAside,
    store::{DeadLetter, Replay, StateElement},
};
use self::{
    memory::{Cursor, Demand, Memory},
    shared::Shared,
};
use crate::{
    base::{
        clock::{self, UnixMillis},
        event::{Event, Record, Seq, Waited},
        sync::lock,
    },
    config::{self, Size, Start, Sync},
};

/// The cursor of what publishes a member's events in the log of its cluster. No sink can have this name: theirs
/// have no dot.
pub const OUTBOX: &str = "relay.cluster";

/// A handle to the journal; clones share it.
#[derive(Debug, Clone)]
pub struct Journal(Arc<Shared>);

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

/// Events that were read.
#[derive(Debug, Default)]
pub struct Batch {
    /// Events in order, none missing between them.
    pub records: Vec<Arc<Record>>,
    /// Events that should have stood before them, and are gone.
    pub lost: u64,
    /// The cursor's next position if all of this is done.
    pub through: Seq,
}

/// What waits for a sink that is no longer configured: it is delivered to one of that name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeftBehind {
    pub sink: String,
    /// Events that it has still to get and that are there.
    pub events: u64,
    /// Whether these are all that it has still to get.
    pub whole: bool,
    pub dead_letters: u64,
}

/// The journal in figures.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// The first event that is kept.
    pub oldest: Seq,
    /// The last event.
    pub last: Seq,
    /// Events that are kept: fewer than their numbers where a crash has left some out.
    pub events: u64,
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
    pub health: Health,
}

impl Journal {
    /// Opens the journal that is configured, and starts its threads.
    pub fn open(config: &config::Journal) -> Result<(Self, Opened), StoreError> {
        if config.dir.as_os_str().is_empty() {
            return Ok((Self::in_memory(config.memory.bytes()), Opened::default()));
        }
        start::open(config)
    }

    /// A journal that lives in memory only.
    pub fn in_memory(memory: usize) -> Self {
        let config = config::Journal {
            dir: PathBuf::new(),
            memory: Size(memory as u64),
            sync: Sync::Never,
            ..config::Journal::default()
        };
        let memory = Memory::new(1, vec![(1, None)], 1, Health::MemoryOnly);
        Self(Arc::new(Shared::new(memory, None, config)))
    }

    /// Appends `events` in order and leaves the vector empty. Never waits: see [`Journal::ready`].
    pub fn append(&self, events: &mut Vec<Event>) {
        self.append_waited(events, Waited::now());
    }

    /// The same for events that have waited already.
    pub fn append_waited(&self, events: &mut Vec<Event>, waited: Waited) {
        if events.is_empty() {
            return;
        }
        let shared = &*self.0;
        let mut memory = shared.lock();
        for event in events.drain(..) {
            memory.append(event, waited);
        }
        shared.evict(&mut memory);
        if shared.dir().is_none() {
            memory.numbers.written = memory.numbers.last;
            memory.ring.unwritten_bytes = 0;
        }
        shared.publish(&memory);
        shared.notify_writer(memory);
    }

    /// Which sinks there are: the positions of all others hold nothing back any more, but for what
    /// `keep_delivered` leaves them.
    pub fn sinks<'a>(&self, names: impl IntoIterator<Item = &'a str>) {
        let names: Vec<_> = names.into_iter().collect();
        for (sink, cursor) in &mut self.0.lock().cursors.by_sink {
            cursor.set_active(names.contains(&&**sink));
        }
    }

    /// Takes up a sink's cursor; a sink without one begins at `start`. Answers its position.
    pub fn register(&self, sink: &str, start: Start) -> Result<Seq, StoreError> {
        let start = {
            let mut memory = self.0.lock();
            let last = memory.numbers.last;
            if let Some(cursor) = memory.cursors.by_sink.get_mut(sink) {
                cursor.set_active(true);
                cursor.at = cursor.at.min(last);
                (cursor.read, cursor.put_back) = (cursor.at, false);
                let at = cursor.at;
                memory.cursors.backlogs_begin_again(sink);
                return Ok(at);
            }
            if memory.cursors.unknown { Start::Earliest } else { start }
        };
        let at = self.position(start)?;
        let mut memory = self.0.lock();
        // Saved once before anything else happens, so that a restart does not begin again. One that files brought
        // which were opened while the disk was asked stays where it is.
        let cursor =
            memory.cursors.by_sink.entry(sink.into()).or_insert_with(|| Cursor::new(at, None));
        cursor.set_active(true);
        let at = cursor.at;
        memory.cursors.save_within(Duration::ZERO);
        self.0.notify_writer(memory);
        Ok(at)
    }

    fn position(&self, start: Start) -> Result<Seq, StoreError> {
        let (oldest, last) = {
            let memory = self.0.lock();
            (memory.numbers.oldest, memory.numbers.last)
        };
        Ok(match start {
            Start::End => last,
            Start::Earliest => oldest.saturating_sub(1),
            Start::Age(age) => {
                let since = clock::now().saturating_sub(clock::millis_of(age));
                self.first_since(since)?.map_or(last, |seq| seq - 1)
            }
        })
    }

    /// The first event received at or after that time of the wall clock as it is now.
    pub fn first_since(&self, since: UnixMillis) -> Result<Option<Seq>, StoreError> {
        let Some(age) = clock::now().checked_sub(since).map(Duration::from_millis) else {
            return Ok(None);
        };
        let found = self.0.read_file(|store| store.first_since(since))?.flatten();
        if found.is_some() {
            return Ok(found);
        }
        let memory = self.0.lock();
        Ok(memory.ring.after(0).find(|record| record.age() <= age).map(|record| record.seq))
    }

    /// Where a sink's cursor is; `None`: it has none.
    pub(crate) fn cursor(&self, sink: &str) -> Option<Seq> {
        self.0.lock().cursors.by_sink.get(sink).map(|cursor| cursor.at)
    }

    /// Puts a sink's cursor there, unless it is further; before anything is read from there.
    pub(crate) fn set_cursor(&self, sink: &str, at: Seq) {
        let mut memory = self.0.lock();
        let cursors = &mut memory.cursors;
        cursors.by_sink.entry(sink.into()).or_insert_with(|| Cursor::new(at, None));
        drop(memory);
        self.advance(sink, at);
    }

    /// Where the reader of a cursor is to begin again, if that was put back; from now on it moves again.
    pub(crate) fn put_back(&self, sink: &str) -> Option<Seq> {
        let mut memory = self.0.lock();
        let cursor = memory.cursors.by_sink.get_mut(sink).filter(|cursor| cursor.put_back)?;
        (cursor.read, cursor.put_back) = (cursor.at, false);
        Some(cursor.at)
    }

    /// Where files could be opened only after the start: through which event what stands in them was published in
    /// the log of a cluster, or delivered. Once.
    pub(crate) fn take_found_late(&self) -> Option<Seq> {
        self.0.lock().cursors.found_late.take()
    }

    /// A sink no longer uses its cursor: after `keep_delivered` it holds nothing back any more.
    pub fn unregister(&self, sink: &str) {
        if let Some(cursor) = self.0.lock().cursors.by_sink.get_mut(sink) {
            cursor.set_active(false);
        }
    }

    /// Waits for events after `after`: at most `limit` of them and about `max_bytes`.
    pub async fn next(
        &self,
        after: Seq,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Batch, StoreError> {
        let mut readable = self.0.signals.readable.subscribe();
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

    /// The same without waiting; `None` where nothing is there yet, or the disk must be asked.
    pub fn try_next(&self, after: Seq, limit: usize, max_bytes: usize) -> Option<Batch> {
        let through = *self.0.signals.readable.borrow();
        let memory = self.0.lock();
        let in_memory = memory.ring.first().is_some_and(|first| first <= after + 1);
        (through > after && in_memory).then(|| memory.read_ring(after, through, limit, max_bytes))
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
        let before_ring = {
            let memory = self.0.lock();
            let first = memory.ring.first();
            if first.is_some_and(|first| first <= after + 1) || self.0.reader().is_none() {
                return Ok(memory.read_ring(after, through, limit, max_bytes));
            }
            first.map_or(memory.numbers.last, |first| first - 1)
        };
        let shared = Arc::clone(&self.0);
        let read = tokio::task::spawn_blocking(move || {
            let read = shared.read_file(|store| store.read(after, limit, max_bytes))?;
            read.ok_or(StoreError::Reopening)
        });
        // What was not read is not known to be gone.
        let mut read = read.await.unwrap_or(Err(StoreError::Unread))?;
        // The writer may have gone on meanwhile; what may be read was decided above.
        read.records.retain(|record| record.seq <= through);
        let end = match read.through {
            Some(end) => end.min(through),
            // Nothing on disk after `after`: what stood before the ring is gone.
            None => before_ring.clamp(after, through),
        };
        Ok(self.0.lock().batch(after, read.records, end))
    }

    /// Shows `each` the newest events, oldest first, at most `limit` of them, and less of large ones: the
    /// last that were received before the relay was started. Few are in memory at a time.
    pub fn newest(&self, limit: usize, mut each: impl FnMut(&Record)) -> Result<(), StoreError> {
        const PAGE: usize = 256;
        const PAGE_BYTES: usize = 1024 * 1024;
        /// As they are on the disk.
        const MOST_BYTES: u64 = 16 * 1024 * 1024;
        let read = self.0.read_file(|store| {
            let mut after = store.before_newest(limit, MOST_BYTES)?;
            loop {
                let read = store.read(after, PAGE, PAGE_BYTES)?;
                read.records.iter().for_each(|record| each(record));
                match read.through {
                    Some(through) if through > after => after = through,
                    _ => return Ok(()),
                }
            }
        });
        read.map(|_| ())
    }

    /// The destination of `sink` has accepted everything through `seq`: that is saved at once.
    pub fn advance(&self, sink: &str, seq: Seq) {
        self.advance_by(sink, seq, Duration::ZERO);
    }

    /// The same, saved within half of the time in which it is to be synced: what moves meanwhile is saved with
    /// it, in one page of the disk.
    pub(crate) fn advance_soon(&self, sink: &str, seq: Seq) {
        let within = match self.0.config.sync {
            Sync::Every(interval) => interval / 2,
            Sync::Always | Sync::Never => Duration::ZERO,
        };
        self.advance_by(sink, seq, within);
    }

    fn advance_by(&self, sink: &str, seq: Seq, within: Duration) {
        self.advance_lazily(sink, seq);
        if self.0.dir().is_none() {
            return self.0.made_progress();
        }
        let mut memory = self.0.lock();
        if memory.cursors.save_within(within) {
            self.0.notify_writer(memory);
        }
    }

    /// The same, saved when anything is written anyway, at the latest within a second.
    pub(crate) fn advance_lazily(&self, sink: &str, seq: Seq) {
        let memory_only = self.0.dir().is_none();
        let mut memory = self.0.lock();
        let cursor = memory.cursors.by_sink.get_mut(sink);
        if let Some(cursor) = cursor.filter(|cursor| !cursor.put_back) {
            cursor.at = cursor.at.max(seq);
            if memory_only {
                cursor.saved = Some(cursor.at);
            }
        }
    }

    /// Through which event the cursor of `sink` is saved. In a degraded journal nothing is, and
    /// nobody waits for it.
    pub fn saved(&self, sink: &str) -> Seq {
        let memory = self.0.lock();
        match (memory.cursors.by_sink.get(sink), &memory.disk.health) {
            (Some(cursor), Health::Sound) => cursor.saved.unwrap_or(0),
            (Some(cursor), Health::MemoryOnly | Health::Degraded(_)) => cursor.at,
            (None, _) => 0,
        }
    }

    /// Changes when something was saved, or there is room.
    pub fn progress(&self) -> watch::Receiver<u64> {
        self.0.signals.progress.subscribe()
    }

    /// Something has been missing for so long and is not yet reported: a relay that ends now has been away
    /// since then, see [`Opened::downtime`]. `None`: nothing is.
    pub fn set_unreported_gap(&self, time: Option<Duration>) {
        self.0.unreported.set(time);
    }

    /// What files that could be opened only after the start say of when the relay last ran, where nothing has
    /// said it before. Once.
    pub fn take_last_run(&self) -> Option<Opened> {
        lock(&self.0.last_run).take()
    }

    pub fn figures(&self) -> Figures {
        let memory = self.0.lock();
        let (numbers, disk) = (&memory.numbers, &memory.disk);
        Figures {
            oldest: memory.oldest_kept(),
            last: numbers.last,
            events: memory.assigned(memory.oldest_kept().saturating_sub(1), numbers.last),
            written: numbers.written,
            synced: numbers.synced,
            durable: disk.durable,
            size: disk.size,
            memory: memory.ring.bytes,
            health: disk.health.clone(),
        }
    }

    /// Events that `sink` has still to get, none of those that are gone, and how long the oldest of them waits.
    pub fn lag(&self, sink: &str) -> (u64, Duration) {
        let memory = self.0.lock();
        let Some(cursor) = memory.cursors.by_sink.get(sink) else { return (0, Duration::ZERO) };
        let events = memory.lag(sink, cursor);
        if events == 0 {
            return (0, Duration::ZERO);
        }
        let next = memory.lags_behind(sink, cursor) + 1;
        let in_ring = memory.ring.get(next).map(|record| record.waited);
        // Of the rest only the disk knows; the writer looks it up once in a while.
        (events, in_ring.or(cursor.waits).map_or(Duration::ZERO, Waited::so_far))
    }

    /// How it is, now and when that changes.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.0.signals.health.subscribe()
    }

    /// Waits until a thread of the journal has panicked: without it nothing is written any more, and the
    /// process is to end.
    pub async fn thread_failed(&self) {
        let mut failed = self.0.signals.failed.subscribe();
        if failed.wait_for(|failed| *failed).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Writes what is left, closes the file in order and ends the threads. Blocks.
    pub fn close(&self) {
        let mut memory = self.0.lock();
        memory.demand = Demand::End;
        self.0.work.notify_all();
        while memory.threads > 0 {
            memory = self.0.ended.wait(memory).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
impl Journal {
    /// One whose disk does not answer: its writer writes nothing, and does not end.
    pub(crate) fn on_hung_disk(memory: usize) -> Self {
        let config = config::Journal {
            dir: "/nowhere".into(),
            memory: Size(memory as u64),
            ..config::Journal::default()
        };
        let mut memory = Memory::new(1, vec![(1, None)], 1, Health::Sound);
        memory.threads = 1;
        Self(Arc::new(Shared::new(memory, None, config)))
    }

    /// Its disk has answered: all of it is written.
    pub(crate) fn disk_answers(&self) {
        let mut memory = self.0.lock();
        memory.numbers.written = memory.numbers.last;
        self.0.publish(&memory);
    }

    /// Its writer has ended.
    pub(crate) fn writer_ends(&self) {
        self.0.lock().threads = 0;
        self.0.ended.notify_all();
    }
}
