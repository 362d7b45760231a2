//! What the journal's handles and its two threads share.

use std::{
    path::Path,
    sync::{Condvar, Mutex, MutexGuard},
};

use tokio::sync::watch;

use super::{
    Health,
    error::StoreError,
    mark::UnreportedGap,
    memory::{Demand, Memory},
    open::LastRun,
    reader::SharedReader,
    store::Store,
};
use crate::{
    base::{event::Seq, sync::lock},
    config::{self, Sync},
};

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
    pub(super) config: config::Journal,
    pub(super) unreported: UnreportedGap,
    pub(super) last_run: Mutex<LastRun>,
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

impl Shared {
    pub(super) fn new(
        memory: Memory,
        reader: Option<SharedReader>,
        config: config::Journal,
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
            config,
            unreported: UnreportedGap::default(),
            last_run: Mutex::default(),
        };
        shared.publish(&shared.lock());
        shared
    }

    /// `None`: it lives in memory only.
    pub(super) fn dir(&self) -> Option<&Path> {
        Some(&*self.config.dir).filter(|dir| !dir.as_os_str().is_empty())
    }

    /// What is no longer in memory is read with it; `None` while there is no file.
    pub(super) fn reader(&self) -> Option<&SharedReader> {
        self.reader.as_ref().filter(|reader| reader.was_opened())
    }

    /// A panic elsewhere while the lock was held left nothing half done: every change under it is
    /// small and ordered.
    pub(super) fn lock(&self) -> MutexGuard<'_, Memory> {
        lock(&self.memory)
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
        memory.evict(self.config.memory.bytes());
        if self.reader().is_none() {
            memory.numbers.oldest = memory.ring.first().unwrap_or(memory.numbers.last + 1);
        }
    }

    /// Tells readers how far they may read, and how the journal is. Under the lock: two that append at
    /// once would otherwise tell in the wrong order, and an event would lie until the next one comes.
    pub(super) fn publish(&self, memory: &Memory) {
        let (numbers, health) = (&memory.numbers, &memory.disk.health);
        let readable = match (self.config.sync, health) {
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
