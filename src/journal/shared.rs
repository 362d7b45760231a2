//! What the journal's handles and its two threads share.

use std::{
    path::PathBuf,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

use super::{
    Health,
    error::StoreError,
    mark::UnreportedGap,
    memory::{Demand, Memory},
    reader::SharedReader,
    store::Store,
};
use crate::{
    base::event::Seq,
    config::{self, Sync},
};

/// Bytes of events in memory, at least.
const LEAST_MEMORY: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct Shared {
    memory: Mutex<Memory>,
    /// Wakes the writer thread.
    pub(super) work: Condvar,
    /// A thread has ended.
    pub(super) ended: Condvar,
    pub(super) signals: Signals,
    /// `None` without a directory.
    pub(super) reader: Option<SharedReader>,
    pub(super) sync: Sync,
    pub(super) limits: JournalLimits,
    pub(super) unreported: UnreportedGap,
}

/// What others wait for.
#[derive(Debug)]
pub(super) struct Signals {
    /// The last event that may be read.
    pub(super) readable: watch::Sender<Seq>,
    /// Grows when something was saved, or there is room.
    pub(super) progress: watch::Sender<u64>,
    /// Grows when somebody made a request.
    pub(super) requests: watch::Sender<u64>,
    pub(super) health: watch::Sender<Health>,
    /// A thread of the journal has panicked.
    pub(super) failed: watch::Sender<bool>,
}

/// The journal's limits; see [`config::Journal`].
#[derive(Debug, Clone)]
pub(super) struct JournalLimits {
    pub(super) dir: Option<PathBuf>,
    pub(super) max_size: u64,
    pub(super) max_age: Duration,
    pub(super) keep_delivered: Duration,
    pub(super) min_free: u64,
    pub(super) memory: usize,
    /// Bytes of the dead letters of one sink.
    pub(super) max_dead_letters: u64,
}

impl JournalLimits {
    pub(super) fn of(config: &config::Journal) -> Self {
        Self {
            dir: Some(config.dir.clone()),
            max_size: config.max_size.0,
            max_age: config.max_age.0,
            keep_delivered: config.keep_delivered.0,
            min_free: config.min_free.0,
            memory: config.memory.bytes().max(LEAST_MEMORY),
            max_dead_letters: config.max_dead_letters.0,
        }
    }

    pub(super) fn in_memory(memory: usize) -> Self {
        Self { dir: None, memory, ..Self::of(&config::Journal::default()) }
    }
}

impl Shared {
    pub(super) fn new(
        memory: Memory,
        reader: Option<SharedReader>,
        sync: Sync,
        limits: JournalLimits,
    ) -> Self {
        let shared = Self {
            memory: Mutex::new(memory),
            work: Condvar::new(),
            ended: Condvar::new(),
            signals: Signals {
                readable: watch::channel(0).0,
                progress: watch::channel(0).0,
                requests: watch::channel(0).0,
                health: watch::channel(Health::Sound).0,
                failed: watch::channel(false).0,
            },
            reader,
            sync,
            limits,
            unreported: UnreportedGap::default(),
        };
        shared.publish(&shared.lock());
        shared
    }

    /// What is no longer in memory is read with it; `None` while there is no file.
    pub(super) fn reader(&self) -> Option<&SharedReader> {
        self.reader.as_ref().filter(|reader| reader.was_opened())
    }

    /// A panic elsewhere while the lock was held left nothing half done: every change under it is
    /// small and ordered.
    pub(super) fn lock(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has what is new written now, and not only with what is written next.
    pub(super) fn notify_writer(&self, mut memory: MutexGuard<'_, Memory>) {
        memory.demand = memory.demand.max(Demand::Write);
        drop(memory);
        self.work.notify_one();
    }

    pub(super) fn made_progress(&self) {
        self.signals.progress.send_modify(|count| *count += 1);
    }

    /// Keeps what is in memory within its bound.
    pub(super) fn evict(&self, memory: &mut Memory) {
        memory.evict(self.limits.memory);
        if self.reader().is_none() {
            memory.numbers.oldest = memory.ring.first().unwrap_or(memory.numbers.last + 1);
        }
    }

    /// Tells readers how far they may read, and how the journal is. Under the lock: two that append at
    /// once would otherwise tell in the wrong order, and an event would lie until the next one comes.
    pub(super) fn publish(&self, memory: &Memory) {
        let (numbers, health) = (&memory.numbers, &memory.disk.health);
        let readable = match (self.sync, health) {
            (Sync::Always, Health::Sound) => numbers.synced,
            (_, Health::Sound) => numbers.written,
            (_, Health::MemoryOnly | Health::Degraded(_)) => numbers.last,
        };
        self.signals.readable.send_if_modified(|seq| std::mem::replace(seq, readable) != readable);
        self.signals.health.send_if_modified(|known| {
            let changed = known != health;
            if changed {
                known.clone_from(health);
            }
            changed
        });
    }

    /// Reads in the file; `None` while there is none. Blocks on the disk.
    pub(super) fn read_file<T>(
        &self,
        what: impl FnOnce(&Store) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        let read = self.reader().map(|reader| reader.read(what)).transpose();
        read.inspect_err(|error| self.report_read_error(error))
    }

    /// Where the file itself is broken, the writer looks into it.
    fn report_read_error(&self, error: &StoreError) {
        if error.is_corrupt() {
            self.lock().disk.corrupt = true;
            self.work.notify_one();
        }
    }
}
