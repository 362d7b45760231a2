//! The writer: a thread that takes what is new in memory and commits it, as much at once as there is; it
//! alone writes. Between times it keeps the limits ([`maintenance`]). Whatever fails, it goes on from
//! memory and tries the disk again ([`reopen`]); [`Health`] says what is wrong.

mod maintenance;
mod reopen;

use std::{sync::Arc, thread, time::Duration};

use tokio::time::Instant;
use tracing::{error, warn};

use self::maintenance::{INTERVAL, Upkeep};
use super::{
    Health,
    error::StoreError,
    mark::Marked,
    memory::Demand,
    open::JournalFiles,
    reader::SharedReader,
    shared::Shared,
    store::{Store, Write},
    syncer::{self, Syncing},
};
use crate::{base::clock, config::Sync};

/// Events in one transaction: large enough that the commit costs little, small enough that cursors
/// do not wait.
const TRANSACTION: usize = 1024;

/// Bytes of events in one transaction, about: less than the writer's page cache.
const TRANSACTION_BYTES: usize = 1024 * 1024;

/// Starts the threads. Without files they are to be opened yet.
pub(super) fn start(shared: &Arc<Shared>, files: Option<(Store, JournalFiles)>) {
    let syncing = Arc::new(Syncing::default());
    shared.lock().threads = 2;
    let mut writer = Writer {
        shared: Arc::clone(shared),
        store: None,
        files: None,
        syncing: Arc::clone(&syncing),
        in_doubt: false,
        retry_at: Instant::now(),
        save_at: None,
        saved_at: Instant::now(),
        upkeep: Upkeep::default(),
    };
    if let Some((store, files)) = files {
        writer.adopt(store, files);
    }
    spawn("journal-writer", Arc::clone(shared), move || writer.run());
    let shared = Arc::clone(shared);
    spawn("journal-syncer", Arc::clone(&shared), move || syncer::run(&shared, &syncing));
}

fn spawn(name: &str, shared: Arc<Shared>, run: impl FnOnce() + Send + 'static) {
    let ended = ThreadGuard(shared);
    let thread = thread::Builder::new().name(name.into()).spawn(move || {
        let _ended = ended;
        run();
    });
    if let Err(error) = thread {
        error!(%error, name, "cannot start a thread of the journal");
    }
}

/// Counts a thread out when it ends, however it ends.
struct ThreadGuard(Arc<Shared>);

impl Drop for ThreadGuard {
    fn drop(&mut self) {
        let mut memory = self.0.lock();
        memory.threads -= 1;
        let early = memory.demand < Demand::End;
        if early {
            // It ended by a panic: until the process ends, events live in memory.
            memory.disk.health = Health::Degraded("a thread of the journal has ended".into());
            self.0.publish(&memory);
        }
        drop(memory);
        if early {
            error!("a thread of the journal has panicked; nothing is written any more");
            self.0.signals.failed.send_replace(true);
        }
        self.0.ended.notify_all();
        self.0.made_progress();
    }
}

struct Writer {
    shared: Arc<Shared>,
    /// `None` while the disk fails.
    store: Option<Store>,
    /// `None` until the files were opened once.
    files: Option<JournalFiles>,
    syncing: Arc<Syncing>,
    /// A sync has failed, and the file was not reopened since.
    in_doubt: bool,
    retry_at: Instant,
    /// When the cursors that have moved are to be saved.
    save_at: Option<Instant>,
    /// When they were last looked at.
    saved_at: Instant,
    upkeep: Upkeep,
}

/// However the writer ends, the syncer ends too.
impl Drop for Writer {
    fn drop(&mut self) {
        self.syncing.stop();
    }
}

impl Writer {
    fn adopt(&mut self, store: Store, files: JournalFiles) {
        self.store = Some(store);
        let mark = files.mark.with(self.shared.unreported.clone());
        self.files = Some(JournalFiles { mark, ..files });
    }

    fn set_mark(&mut self, marked: Marked) -> Result<(), StoreError> {
        self.files.as_mut().map_or(Ok(()), |files| files.mark.set(marked, &files.ages))
    }

    /// Whether each commit is synced when it returns.
    fn syncs_each(&self) -> bool {
        self.shared.config.sync == Sync::Always
            || self.store.as_ref().is_some_and(|store| !store.has_log())
    }

    fn run(mut self) {
        loop {
            let (write, stop) = self.wait();
            if self.store.is_none() {
                self.reopen();
            }
            if let Some(store) = &mut self.store
                && !write.is_empty()
            {
                match store.write(&write) {
                    Ok(()) => self.written(&write),
                    Err(error) => self.failed(&error),
                }
            }
            self.maintain_when_due();
            if stop && (self.store.is_none() || self.shared.lock().is_written()) {
                break;
            }
        }
        self.end();
    }

    /// Waits until something is to be written, or it is time for something else.
    fn wait(&mut self) -> (Write, bool) {
        let mut memory = self.shared.lock();
        loop {
            let now = Instant::now();
            let stop = memory.demand == Demand::End;
            let until = if self.store.is_some() { self.upkeep.at } else { self.retry_at };
            let due = now >= until || stop;
            if let Some(within) = memory.cursors.save_within.take() {
                self.save_at = Some(self.save_at.unwrap_or(now + within).min(now + within));
                memory.cursors.scheduled = true;
            }
            let save_at = self.save_at.filter(|_| self.store.is_some());
            let wakes = due || save_at.is_some_and(|at| now >= at);
            // Under load maintenance is never due for long.
            let save = wakes || now >= self.saved_at + INTERVAL;
            if self.store.is_none() {
                if due {
                    return (Write::default(), stop);
                }
            } else if wakes || memory.demand > Demand::Nothing || memory.disk.corrupt {
                let write = memory.begin_write(TRANSACTION, TRANSACTION_BYTES, save);
                if save {
                    (self.save_at, self.saved_at) = (None, now);
                }
                let rest = write.records.last().is_some_and(|last| last.seq < memory.numbers.last);
                if memory.demand == Demand::Write && !rest {
                    memory.demand = Demand::Nothing;
                }
                if !write.is_empty() || due || memory.disk.corrupt {
                    return (write, stop);
                }
            }
            let until = save_at.map_or(until, |at| until.min(at));
            let wait = until.saturating_duration_since(now).max(Duration::from_millis(1));
            memory = self
                .shared
                .work
                .wait_timeout(memory, wait)
                .map_or_else(|poisoned| poisoned.into_inner().0, |(memory, _)| memory);
        }
    }

    fn written(&mut self, write: &Write) {
        let last = write.records.last().map(|last| last.seq);
        // Before memory says so: the syncer must not take it for synced.
        self.syncing.committed(last);
        // The mark comes first: what is reported as written is marked as written.
        let marked = last.map(|last| self.shared.lock().marked(last));
        let marking = marked.map_or(Ok(()), |marked| self.set_mark(marked));
        let synced = self.syncs_each();
        let bytes: usize = write.records.iter().map(|record| record.event.weight()).sum();
        self.upkeep.written_since += u64::try_from(bytes).unwrap_or(0);
        self.upkeep.recount |=
            !write.changes.rejected.is_empty() || !write.changes.removed.is_empty();
        let mut memory = self.shared.lock();
        memory.written(write, synced);
        self.shared.evict(&mut memory);
        if memory.ring.unwritten_bytes <= self.shared.config.memory.bytes() / 2 {
            (memory.disk.behind, memory.disk.waits_since) = (false, None);
        }
        self.shared.publish(&memory);
        drop(memory);
        self.shared.made_progress();
        if let Err(failure) = marking {
            self.failed(&failure);
        }
    }

    /// The disk said no: memory carries on, and the disk is tried again.
    fn failed(&mut self, failure: &StoreError) {
        let mut memory = self.shared.lock();
        memory.pending.failed();
        self.shared.notify_writer(memory);
        if failure.is_full() && self.make_room() {
            return;
        }
        self.in_doubt |= failure.is_sync();
        if failure.is_corrupt() {
            self.degrade_corrupt();
        } else {
            self.degrade(failure.describe());
        }
    }

    fn end(mut self) {
        self.syncing.stop();
        // Numbers count as assigned even where their events never came to the disk: what is missing
        // of them can be reported at the next start, and none is assigned twice.
        let (last, marked, unwritten, letters) = {
            let memory = self.shared.lock();
            let letters = memory.pending.dead_letters().count();
            (memory.numbers.last, memory.marked_at_end(), memory.missing_at_end(), letters)
        };
        if let Err(error) = self.set_mark(marked) {
            warn!(%error, "the journal's mark was not written");
        }
        // Before the writer's own: who closes the file last removes its log, by name. Whoever still
        // holds the journal would do that later, when another log may stand there.
        if let Some(Err(error)) = self.shared.reader.as_ref().map(SharedReader::close) {
            warn!(error = error.describe(), "the journal's reader was not closed in order");
        }
        match self.store.take().map(|store| store.close(last, clock::now())) {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                error!(error = error.describe(), "the journal was not closed in order");
            }
            None if unwritten == 0 && letters == 0 => {}
            None => error!(unwritten, "the journal was not written to the end: the disk fails"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Journal;

    #[tokio::test]
    async fn a_panicked_thread_is_noticed() {
        let journal = Journal::in_memory(1 << 20);
        journal.0.lock().threads = 1;
        spawn("test", Arc::clone(&journal.0), || panic!("as the test says"));
        journal.thread_failed().await;
        let health = journal.figures().health;
        assert!(matches!(health, Health::Degraded(_)), "{health:?}");
        assert_eq!(*journal.health().borrow(), health);
        // A thread that ends in order is none.
        let journal = Journal::in_memory(1 << 20);
        journal.0.lock().threads = 1;
        journal.0.lock().demand = Demand::End;
        spawn("test", Arc::clone(&journal.0), || ());
        journal.close();
        assert!(!*journal.0.signals.failed.borrow());
    }
}
