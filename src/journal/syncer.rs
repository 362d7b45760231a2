//! The syncer: forces the write-ahead log to disk on its interval and moves it into the database, so that
//! neither stands in the way of a commit. A failure is never simply tried again: see the head of [`journal`](super).

use std::{
    fs::File,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tracing::error;

use super::{directory, shared::Shared, store::Store};
use crate::{
    base::{event::Seq, sync::lock},
    config::Sync,
};

/// How often it looks for work where commits are not synced on an interval.
const INTERVAL: Duration = Duration::from_secs(1);

/// What the writer tells the syncer.
#[derive(Debug, Default)]
pub(super) struct Syncing {
    progress: Mutex<SyncProgress>,
    changed: Condvar,
}

#[derive(Debug, Clone, Copy, Default)]
struct SyncProgress {
    written: Seq,
    /// Commits that were made, of events or of anything else.
    commits: u64,
    /// How many of them a sync has covered.
    synced: u64,
    /// The write-ahead log is to be moved.
    move_log: bool,
    failed: bool,
    stop: bool,
}

impl Syncing {
    fn lock(&self) -> MutexGuard<'_, SyncProgress> {
        lock(&self.progress)
    }

    /// Something was committed, and events through `written` if there were any.
    pub(super) fn committed(&self, written: Option<Seq>) {
        let mut progress = self.lock();
        progress.written = written.unwrap_or(progress.written);
        progress.commits += 1;
        if progress.commits == progress.synced + 1 {
            self.changed.notify_all();
        }
    }

    pub(super) fn move_log(&self) {
        self.lock().move_log = true;
        self.changed.notify_all();
    }

    pub(super) fn has_failed(&self) -> bool {
        self.lock().failed
    }

    /// The file was reopened, and all of it through `written` is on the disk.
    pub(super) fn reset(&self, written: Seq) {
        let mut progress = self.lock();
        progress.written = written;
        progress.synced = progress.commits;
        progress.failed = false;
    }

    pub(super) fn stop(&self) {
        self.lock().stop = true;
        self.changed.notify_all();
    }

    /// Sleeps until there is something to do, waits out the interval, and answers how things are; `None` at
    /// the end. `syncs`: commits are synced on the interval.
    fn next(&self, interval: Duration, syncs: bool) -> Option<SyncProgress> {
        let rests = |progress: &mut SyncProgress| {
            let unsynced = syncs && !progress.failed && progress.commits > progress.synced;
            !(progress.stop || progress.move_log || unsynced)
        };
        let work = self.changed.wait_while(self.lock(), rests);
        let (mut progress, _) = self
            .changed
            .wait_timeout_while(
                work.unwrap_or_else(PoisonError::into_inner),
                interval,
                |progress| !progress.stop,
            )
            .unwrap_or_else(PoisonError::into_inner);
        let now = *progress;
        progress.move_log = false;
        (!now.stop).then_some(now)
    }

    /// A sync has covered what was committed then.
    fn synced(&self, then: SyncProgress, shared: &Shared) {
        // Nothing is committed while this is held.
        let mut progress = self.lock();
        // The file may have been reopened meanwhile.
        progress.synced = progress.synced.max(then.commits);
        let mut memory = shared.lock();
        let numbers = &mut memory.numbers;
        numbers.synced = numbers.synced.max(then.written.min(numbers.written));
        memory.disk.durable = progress.commits == then.commits;
    }

    fn fail(&self, shared: &Shared) {
        self.lock().failed = true;
        shared.work.notify_one();
    }
}

/// Works until it is stopped.
pub(super) fn run(shared: &Shared, syncing: &Syncing) {
    let Some(dir) = shared.dir() else { return };
    let interval = match shared.config.sync {
        Sync::Every(interval) => interval,
        Sync::Always | Sync::Never => INTERVAL,
    };
    let syncs = matches!(shared.config.sync, Sync::Every(_));
    while let Some(now) = syncing.next(interval, syncs) {
        // There is nothing to sync until the file was reopened.
        if now.failed {
            continue;
        }
        if syncs && now.commits > now.synced {
            // SQLite's locks are on the database and the shared memory, never on the log: opening
            // and closing the log disturbs none of them.
            match File::open(directory::wal(dir)).and_then(|wal| wal.sync_data()) {
                Ok(()) => syncing.synced(now, shared),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    error!(%error, "a sync of the journal failed");
                    syncing.fail(shared);
                    // What it dropped must not be moved into the database.
                    continue;
                }
            }
        }
        if now.move_log {
            match Store::open_checkpointer(dir).and_then(|store| store.checkpoint(false)) {
                Ok(()) => {}
                // It syncs the log before it moves anything. The system tells a failure once, to
                // whoever asks first: the next sync of the log may succeed and mean nothing.
                Err(error) if error.is_io() => {
                    error!(error = error.describe(), "a checkpoint of the journal failed");
                    syncing.fail(shared);
                }
                // The writer meets the same disk and judges; this was an attempt to be early.
                Err(error) => tracing::debug!(error = error.describe(), "checkpoint put off"),
            }
        }
    }
}
