//! The two threads behind the journal.
//!
//! The writer takes what is new in memory (events, cursors, dead letters) and commits it, as much at
//! once as there is; it alone writes. Between times it keeps the limits: size, age, free space. The
//! syncer forces the write-ahead log to disk on its interval and moves it into the database, so that
//! neither a sync nor a checkpoint stands in the way of a commit.
//!
//! A sync that failed is never simply tried again: the system may have dropped the pages and call
//! them clean. Nothing counts as synced until the file was reopened by everybody and its write-ahead
//! log read with its sums and copied into the database, which writes all of it anew; what was dropped
//! is written once more from memory.
//!
//! The one thing to know: whatever fails, the threads go on; [`Health`] says what is wrong.

use std::{
    fs::File,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use tokio::time::Instant;
use tracing::{error, info, warn};

use super::{
    Demand, Health, Journal, Shared, State,
    age::Ages,
    file::{self, Files, Inode, Lock, Mark, Marked},
    reader::Reader,
    store::{self, Store, StoreError, Write},
};
use crate::{
    base::{clock, event::Seq},
    config::Sync,
};

/// Why a journal is degraded whose content is broken.
pub(super) const CORRUPT: &str = "the file is broken";

/// Events in one transaction: large enough that the commit costs little, small enough that cursors
/// do not wait.
const TRANSACTION: usize = 1024;

/// Bytes of events in one transaction, about: less than the writer's page cache.
const TRANSACTION_BYTES: usize = 1024 * 1024;

/// How long events gather after a transaction, where nobody waits for them to be on disk. A transaction
/// has its price, and so has waking this thread: under a flood both are paid half as often.
const GATHER: Duration = Duration::from_millis(1);

/// Fewer events in a transaction are no flood: the next is written, and read, at once.
const GATHER_FROM: usize = 16;

/// How often limits are kept and other processes' requests are looked for.
const UPKEEP: Duration = Duration::from_secs(1);

/// How long a failing disk is left alone before it is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The same after a recovery that failed: it reads the whole file each time.
const RETRY_RECOVERY: Duration = Duration::from_secs(30);

/// So much of the write-ahead log is moved into the database at once, by the syncer.
const CHECKPOINT: u64 = 4 * 1024 * 1024;

/// A write-ahead log that is so full is moved by the writer itself: while it waits nothing is added,
/// so that the log begins again from its front. Writing over the same blocks was measured to cost less
/// than half of what it costs to write ever new ones.
const CHECKPOINT_SELF: u64 = 16 * 1024 * 1024;

/// A write-ahead log of this size (somebody was reading in it for long) is moved as a whole and cut;
/// so is one of a quarter of `max_size`, for it takes its space beside the database.
const CHECKPOINT_ALL: u64 = 64 * 1024 * 1024;

/// A smaller one is not cut: each time costs two syncs.
const CHECKPOINT_NONE: u64 = 512 * 1024;

/// How often the log's fill is looked at, in bytes.
const LOOK: u64 = 1024 * 1024;

/// A page of the database.
const PAGE: u64 = 4096;

/// What a transaction adds to the log beside its events, about: the pages of cursors and of the tree.
const COMMIT: u64 = 16 * 1024;

/// Part of `max_size` that is removed at once when it is exceeded.
const REMOVE_SHARE: u64 = 20;

/// Starts the threads. Without files they are to be opened yet.
pub(super) fn start(journal: &Journal, files: Option<Files>) {
    let shared = Arc::clone(&journal.0);
    let syncing = Arc::new(Syncing::default());
    shared.lock().threads = 2;
    let mut writer = Writer {
        shared: Arc::clone(&shared),
        store: None,
        mark: None,
        ages: Ages::default(),
        syncing: Arc::clone(&syncing),
        in_doubt: false,
        lock: None,
        known: Vec::new(),
        identity: None,
        others: None,
        upkeep_at: Instant::now(),
        retry_at: Instant::now(),
        data_version: 0,
        written_since: 0,
        logged: 0,
        recount: true,
        low: false,
    };
    if let Some(files) = files {
        writer.take(files);
    }
    spawn("journal-writer", Arc::clone(&shared), move || writer.run());
    spawn("journal-syncer", Arc::clone(&shared), move || sync_loop(&shared, &syncing));
}

pub(super) fn spawn(name: &str, shared: Arc<Shared>, run: impl FnOnce() + Send + 'static) {
    let ended = Ended(shared);
    let thread = thread::Builder::new().name(name.into()).spawn(move || {
        let _ended = ended;
        run();
    });
    if let Err(error) = thread {
        error!(%error, name, "cannot start a thread of the journal");
    }
}

/// Counts a thread out when it ends, however it ends.
struct Ended(Arc<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.threads -= 1;
        let early = state.demand < Demand::End;
        if early {
            // It ended by a panic: until the process ends, events live in memory.
            state.health = Health::Degraded("a thread of the journal has ended".into());
            self.0.publish(&state);
        }
        drop(state);
        if early {
            error!("a thread of the journal has panicked; nothing is written any more");
            self.0.failed.send_replace(true);
        }
        self.0.ended.notify_all();
        self.0.progress.send_modify(|count| *count += 1);
    }
}

struct Writer {
    shared: Arc<Shared>,
    /// `None` while the disk fails.
    store: Option<Store>,
    /// `None` until the files were opened once.
    mark: Option<Mark>,
    ages: Ages,
    syncing: Arc<Syncing>,
    /// A sync has failed, and the file was not reopened since.
    in_doubt: bool,
    /// `None` until the files were opened once, and while it is taken anew.
    lock: Option<Lock>,
    /// The files that are open.
    known: Vec<Inode>,
    /// Which journal it is; `None` until the files were opened once.
    identity: Option<u64>,
    /// Bytes in the file that are no events; `None`: they are to be counted.
    others: Option<u64>,
    upkeep_at: Instant,
    retry_at: Instant,
    data_version: i64,
    /// Bytes of events written since the limits were looked at.
    written_since: u64,
    /// Bytes written since the log was looked at.
    logged: u64,
    /// Whether the dead letters must be counted anew.
    recount: bool,
    /// Whether it was told that the disk is nearly full.
    low: bool,
}

#[expect(clippy::disallowed_methods, reason = "the writer has a thread of its own")]
fn gather() {
    thread::sleep(GATHER);
}

/// However the writer ends, the syncer ends too.
impl Drop for Writer {
    fn drop(&mut self) {
        self.syncing.stop();
    }
}

impl Writer {
    fn take(&mut self, files: Files) {
        let Files { store, mark, lock, ages, known, identity } = files;
        self.store = Some(store);
        self.take_mark(mark);
        self.lock = Some(lock);
        self.ages = ages;
        self.known = known;
        self.identity = Some(identity);
    }

    fn take_mark(&mut self, mut mark: Mark) {
        mark.missing = self.shared.missing.clone();
        self.mark = Some(mark);
    }

    fn set_mark(&mut self, marked: Marked) -> Result<(), StoreError> {
        self.mark.as_mut().map_or(Ok(()), |mark| mark.set(marked, &self.ages))
    }

    /// Whether each commit is synced when it returns.
    fn syncs_each(&self) -> bool {
        self.shared.sync == Sync::Always
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
            self.keep_up();
            let flood = GATHER_FROM..TRANSACTION;
            if !stop && self.shared.sync != Sync::Always && flood.contains(&write.records.len()) {
                gather();
            }
            if stop
                && (self.store.is_none() || self.shared.lock().unwritten(1, usize::MAX).is_empty())
            {
                break;
            }
        }
        self.end();
    }

    /// Waits until something is to be written, or it is time for upkeep.
    fn wait(&self) -> (Write, bool) {
        let mut state = self.shared.lock();
        loop {
            let now = Instant::now();
            let stop = state.demand == Demand::End;
            let until = if self.store.is_some() { self.upkeep_at } else { self.retry_at };
            if self.store.is_some() {
                let broken = state.health == Health::Degraded(CORRUPT.into());
                let due = now >= self.upkeep_at;
                if state.demand > Demand::Nothing || due || broken {
                    let write = state.unwritten(TRANSACTION, TRANSACTION_BYTES);
                    let rest = write.records.last().is_some_and(|last| last.seq < state.last);
                    if state.demand == Demand::Write && !rest {
                        state.demand = Demand::Nothing;
                    }
                    if !write.is_empty() || due || stop || broken {
                        return (write, stop);
                    }
                }
            } else if now >= until || stop {
                return (Write::default(), stop);
            }
            let wait = until.saturating_duration_since(now).max(Duration::from_millis(1));
            state = self
                .shared
                .work
                .wait_timeout(state, wait)
                .map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state);
        }
    }

    fn written(&mut self, write: &Write) {
        // Before the state says so: the syncer must not take it for synced.
        self.syncing.committed(write.records.last().map(|last| last.seq));
        // The mark comes first: what is told as written is marked as written.
        let last = write.records.last().map(|record| record.seq);
        let marked = last.map(|last| self.shared.lock().marked_through(last));
        let marking = marked.map_or(Ok(()), |marked| self.set_mark(marked));
        let synced = self.syncs_each();
        let mut state = self.shared.lock();
        if let Some(last) = write.records.last() {
            state.written = last.seq;
            // What the ring has dropped meanwhile, it has taken off already.
            let first = state.ring.front().map_or(Seq::MAX, |record| record.seq);
            let here = write.records.iter().filter(|record| record.seq >= first);
            let bytes: usize = here.map(|record| record.event.weight()).sum();
            state.unwritten_bytes = state.unwritten_bytes.saturating_sub(bytes);
            if synced {
                state.synced = last.seq;
            }
            let all = write.records.iter().map(|record| record.event.weight());
            let all = u64::try_from(all.sum::<usize>()).unwrap_or(0);
            self.written_since += all;
            self.logged += all;
        }
        // Each of these may stand on a page of its own.
        let rows = write.dead.len() + write.refused.len() + write.settled.len() + write.state.len();
        let dead: u64 = write.dead.iter().map(store::DeadLetter::bytes).sum();
        self.logged += COMMIT + PAGE * u64::try_from(rows).unwrap_or(0) + dead;
        if rows > 0 {
            self.others = None;
        }
        for (sink, seq) in &write.cursors {
            if let Some(cursor) = state.cursors.get_mut(sink) {
                cursor.saved = Some(*seq);
            }
        }
        let dead: usize =
            state.dead.drain(..write.dead.len()).map(|letter| letter.record.event.weight()).sum();
        state.dead_bytes = state.dead_bytes.saturating_sub(dead);
        state.refused.drain(..write.refused.len());
        state.settled.drain(..write.settled.len());
        self.recount |= !write.refused.is_empty() || !write.settled.is_empty();
        for (number, position) in &write.replays {
            if state.replays.get(number) == Some(position) {
                state.replays.remove(number);
            }
        }
        for kept in &write.state {
            let key = (kept.channel.clone(), kept.element.clone());
            if state.kept.get(&key) == Some(kept) {
                state.kept.remove(&key);
            }
        }
        self.shared.evict(&mut state);
        if state.unwritten_bytes <= self.shared.limits.memory / 2 {
            state.late = false;
        }
        self.shared.publish(&state);
        state.durable = synced;
        drop(state);
        self.shared.progress.send_modify(|count| *count += 1);
        if let Err(failure) = marking.and_then(|()| self.move_log()) {
            self.failed(&failure);
        }
    }

    /// Keeps the write-ahead log short.
    fn move_log(&mut self) -> Result<(), StoreError> {
        let Some(store) = &self.store else { return Ok(()) };
        if self.logged < LOOK {
            return Ok(());
        }
        self.logged = 0;
        let log = store.log()?;
        if log.bytes > CHECKPOINT_SELF {
            store.checkpoint(false)?;
        } else if log.unmoved > CHECKPOINT {
            self.syncing.move_log();
        }
        Ok(())
    }

    /// The disk said no: memory carries on, and the disk is tried again.
    fn failed(&mut self, failure: &StoreError) {
        // What was to be written is still to be written.
        self.shared.hurry(self.shared.lock());
        if failure.is_full() && self.make_room() {
            return;
        }
        self.in_doubt |= failure.is_sync();
        self.degrade(if failure.is_corrupt() { CORRUPT.into() } else { describe(failure) });
    }

    fn degrade(&mut self, reason: String) {
        let mut state = self.shared.lock();
        if !matches!(state.health, Health::Degraded(_)) {
            error!(reason, "the journal cannot be written; events are kept in memory");
        }
        state.health = Health::Degraded(reason);
        self.shared.evict(&mut state);
        self.shared.publish(&state);
        drop(state);
        self.shared.progress.send_modify(|count| *count += 1);
        self.store = None;
        self.retry_at = Instant::now() + RETRY;
    }

    /// Says why it is degraded now.
    fn say(&self, reason: String) {
        let mut state = self.shared.lock();
        state.health = Health::Degraded(reason);
        self.shared.publish(&state);
    }

    /// Opens the file anew. What a failed sync left in doubt is written again by the checkpoint.
    fn reopen(&mut self) {
        let Some(dir) = self.shared.limits.dir.clone() else { return };
        let broken = self.shared.lock().health == Health::Degraded(CORRUPT.into());
        self.retry_at = Instant::now() + if broken { RETRY_RECOVERY } else { RETRY };
        let reopened = if self.identity.is_none() {
            self.open_late(&dir)
        } else {
            self.try_reopen(&dir, broken)
        };
        match reopened {
            Ok(()) => {
                info!("the journal works again");
                self.shared.progress.send_modify(|count| *count += 1);
            }
            Err(failure) if failure.is_corrupt() && !broken => {
                self.say(CORRUPT.into());
                self.retry_at = Instant::now();
            }
            // What was broken stays so until it was recovered, whatever hinders that now.
            Err(failure) if broken => {
                error!(error = describe(&failure), "the broken journal cannot be recovered now");
            }
            Err(failure) => self.say(describe(&failure)),
        }
    }

    /// Opens the files for the first time, after events were taken in: what stands in them is from
    /// before. Sinks have gone on with what is new, so that what they had still to get of the old is
    /// handed to them as a replay.
    fn open_late(&mut self, dir: &Path) -> Result<(), StoreError> {
        let first = self.shared.lock().runs.first().map_or(1, |(first, _)| *first);
        let (files, found, opened) = file::open_run(dir, self.shared.sync == Sync::Always, first)?;
        if found.last + 1 != first {
            return Err(StoreError::Numbers);
        }
        let mut reader = Store::open_reader(dir)?;
        reader.set_ages(files.ages.clone());
        let before = files.store.last_before(first)?;
        let backlogs = self.shared.lock().take_up(found, before);
        for replay in &backlogs {
            files.store.request_replay(replay, clock::now())?;
        }
        if opened.lost > 0 {
            error!(lost = opened.lost, "events that were in the journal are gone");
        }
        self.take(files);
        if let Some(old) = &self.shared.reader {
            old.replace(reader);
        }
        let mut state = self.shared.lock();
        state.health = Health::Sound;
        self.shared.publish(&state);
        drop(state);
        self.upkeep_at = Instant::now();
        self.recount = true;
        self.shared.requests.send_modify(|count| *count += 1);
        Ok(())
    }

    fn try_reopen(&mut self, dir: &Path, broken: bool) -> Result<(), StoreError> {
        file::make_dir(dir)?;
        // A little more than where it was given up, so that it is not given up again at once.
        if free(dir).is_some_and(|free| free < self.shared.limits.min_free / 4 * 3) {
            return Err(StoreError::Io {
                path: dir.to_owned(),
                source: std::io::ErrorKind::StorageFull.into(),
            });
        }
        // The directory may be another one than before: mounted anew, or restored.
        self.lock = None;
        self.lock = Some(file::lock(dir)?);
        let (mark, ..) = Mark::open(dir)?;
        self.take_mark(mark);
        let (last, marked, runs) = {
            let state = self.shared.lock();
            (state.last, state.marked(), state.runs.clone())
        };
        let mut lost = 0;
        if broken {
            lost = file::recover(dir, marked, Some(&runs))?.lost;
        }
        if self.in_doubt {
            // The file is given up only for a disk that takes something again.
            self.set_mark(marked)?;
            self.mark.as_ref().map_or(Ok(()), Mark::sync)?;
            self.shared.reader.as_ref().map_or(Ok(()), Reader::close)?;
        }
        if file::inodes(dir).first() != self.known.first() {
            // Nothing of the file that is gone may be read or written on, nor its log beside a new one.
            self.shared.reader.as_ref().map_or(Ok(()), Reader::close)?;
            file::remove_orphans(dir)?;
        }
        let mut store = file::reopen(dir, self.shared.sync == Sync::Always)?;
        // One that was recovered just now is ours.
        if !broken && self.identity != Some(store.identity()?) && store.bounds()?.is_some() {
            store.abandon()?;
            file::set_foreign_aside(dir)?;
            store = file::reopen(dir, self.shared.sync == Sync::Always)?;
        }
        store.set_ages(self.ages.clone());
        if let Some(identity) = self.identity {
            store.set_identity(identity)?;
        }
        if self.in_doubt || store.runs()? != runs {
            store.set_books(&runs, last)?;
        }
        let letters: u64 = store.letters_of_sinks()?.iter().map(|(_, letters)| letters.count).sum();
        store.checkpoint(true)?;
        store.probe()?;
        let mut reader = Store::open_reader(dir)?;
        reader.set_ages(self.ages.clone());
        let bounds = store.bounds()?;
        if lost > 0 {
            error!(lost, "events that were in the journal are gone");
        }
        if let Some(old) = &self.shared.reader {
            old.replace(reader);
        }
        file::restrict(dir);
        self.known = file::inodes(dir);
        self.store = Some(store);
        self.go_on(bounds, letters);
        Ok(())
    }

    /// The files are open again, and hold these events and so many dead letters.
    fn go_on(&mut self, bounds: Option<(Seq, Seq)>, letters: u64) {
        let last = bounds.map_or(0, |(_, last)| last);
        let mut state = self.shared.lock();
        let known: u64 = state.letters.values().map(|letters| letters.count).sum();
        let known = known.saturating_sub(u64::try_from(state.dead.len()).unwrap_or(0));
        if letters < known {
            error!(lost = known - letters, "dead letters that were in the journal are gone");
        }
        // What is there is there; what is not, and is still in memory, is written next.
        state.written = last.min(state.last);
        let written = state.written;
        let unwritten = state.ring.iter().filter(|record| record.seq > written);
        state.unwritten_bytes = unwritten.map(|record| record.event.weight()).sum();
        // The checkpoint has brought all of it to the disk itself.
        state.synced = written;
        state.durable = true;
        for cursor in state.cursors.values_mut() {
            cursor.saved = None;
        }
        state.oldest = bounds.map_or(written + 1, |(first, _)| first);
        state.health = Health::Sound;
        self.shared.publish(&state);
        drop(state);
        self.in_doubt = false;
        self.syncing.begin_anew(written);
        self.upkeep_at = Instant::now();
        self.recount = true;
    }

    /// Keeps the limits, once in a while.
    fn keep_up(&mut self) {
        if self.store.is_none() {
            return;
        }
        if self.syncing.has_failed() {
            self.in_doubt = true;
            self.degrade("a sync failed".into());
            return;
        }
        if self.shared.lock().health == Health::Degraded(CORRUPT.into()) {
            self.degrade(CORRUPT.into());
            self.retry_at = Instant::now();
            return;
        }
        let now = Instant::now();
        if now < self.upkeep_at && !self.over_size() {
            return;
        }
        self.upkeep_at = now + UPKEEP;
        if self.was_replaced() {
            return;
        }
        if let Err(failure) = self.upkeep() {
            self.failed(&failure);
        }
    }

    /// Sees whether somebody has removed or replaced the files, which stay open here and would be written
    /// on without a trace.
    fn was_replaced(&mut self) -> bool {
        let Some(dir) = self.shared.limits.dir.clone() else { return false };
        let now = file::inodes(&dir);
        if now == self.known {
            return false;
        }
        // Where the database is still the one that is open, nothing of it may be lost with its log.
        if now.first() == self.known.first()
            && let Some(store) = &self.store
            && let Err(error) = store.checkpoint(true)
        {
            warn!(error = describe(&error), "the journal's log was not moved");
        }
        self.degrade("its files were removed or replaced".into());
        self.retry_at = Instant::now();
        true
    }

    /// A burst may fill the file between two upkeeps.
    fn over_size(&self) -> bool {
        let limits = &self.shared.limits;
        let Some(dir) = &limits.dir else { return false };
        // A quarter of the free space may be gone before it is looked at again.
        let due = (limits.max_size / REMOVE_SHARE).min(match limits.min_free {
            0 => u64::MAX,
            free => free / 4,
        });
        self.written_since > due || wal_size(dir) > self.largest_log()
    }

    /// How large the write-ahead log may become.
    fn largest_log(&self) -> u64 {
        (self.shared.limits.max_size / 4).clamp(CHECKPOINT_NONE, CHECKPOINT_ALL)
    }

    fn upkeep(&mut self) -> Result<(), StoreError> {
        let Some(dir) = self.shared.limits.dir.clone() else { return Ok(()) };
        self.written_since = 0;
        let (written, delivered, held) = {
            let state = self.shared.lock();
            (state.written, state.delivered(), state.marked().events)
        };
        let largest_log = self.largest_log();
        let Some(store) = &mut self.store else { return Ok(()) };
        if wal_size(&dir) > largest_log {
            store.checkpoint(true)?;
        }
        let limits = &self.shared.limits;
        // Too old for any sink; and delivered, and too old for history.
        remove_older(store, limits.max_age, Seq::MAX)?;
        remove_older(store, limits.keep_delivered, delivered)?;
        let others = match self.others.filter(|_| !self.recount) {
            Some(others) => others,
            None => store.other_bytes()?,
        };
        self.others = Some(others);
        let mut size = store.size()?;
        while size.saturating_sub(others) > limits.max_size && store.bounds()?.is_some() {
            store.remove_oldest((held / REMOVE_SHARE).max(1))?;
            size = store.size()?;
        }
        let free = free(&dir).unwrap_or(u64::MAX);
        if free < limits.min_free {
            // What every sink has goes; the freed pages are used again.
            store.remove_through(delivered)?;
            if !std::mem::replace(&mut self.low, true) {
                warn!("the disk is nearly full; the journal's history is let go");
            }
        } else {
            self.low = false;
        }
        let full = free < limits.min_free / 2;
        self.count(written, size)?;
        if full {
            self.degrade("the disk is full".into());
        }
        Ok(())
    }

    /// Brings the figures up to date, and looks for what other processes have asked for.
    fn count(&mut self, written: Seq, size: u64) -> Result<(), StoreError> {
        let Some(store) = &mut self.store else { return Ok(()) };
        let oldest = store.bounds()?.map_or(written + 1, |(first, _)| first);
        let version = store.data_version()?;
        let asked = std::mem::replace(&mut self.data_version, version) != version;
        let counts = (asked || std::mem::take(&mut self.recount))
            .then(|| store.letters_of_sinks())
            .transpose()?;
        let mut waiting = Vec::new();
        for (sink, at) in self.shared.lock().behind_ring() {
            waiting.push((sink, store.waited_since(at + 1)?));
        }
        let mut state = self.shared.lock();
        state.oldest = oldest;
        state.size = size;
        let fewer = counts.is_some();
        if let Some(counts) = counts {
            let State { dead, letters, .. } = &mut *state;
            *letters = counts.into_iter().collect();
            for letter in dead {
                let sink = letters.entry(letter.sink.clone()).or_default();
                sink.count += 1;
                sink.bytes += letter.bytes();
            }
        }
        for (sink, waits) in waiting {
            if let Some(cursor) = state.cursors.get_mut(&sink) {
                cursor.waits = waits;
            }
        }
        let pruned = state.prune_runs();
        let marked = state.marked();
        drop(state);
        if let Some(before) = pruned {
            store.prune_runs(before)?;
        }
        if fewer {
            // Who was held because its letters had no room may go on.
            self.shared.progress.send_modify(|count| *count += 1);
        }
        if asked {
            self.shared.requests.send_modify(|count| *count += 1);
        }
        self.mark.as_mut().map_or(Ok(()), |mark| mark.refresh(marked, &self.ages))
    }

    /// Lets history go on a full disk; answers whether there was any.
    fn make_room(&mut self) -> bool {
        let delivered = self.shared.lock().delivered();
        let Some(store) = &mut self.store else { return false };
        // A full disk leaves no room for the removal itself but in a log that was emptied.
        let removed = store
            .remove_through(delivered)
            .or_else(|_| store.checkpoint(true).and_then(|()| store.remove_through(delivered)));
        // Where this fails too, the caller finds the disk as full as it was.
        let removed = removed.unwrap_or(0);
        if removed > 0 {
            warn!(removed, "the disk is full; the journal's history was let go");
        }
        if removed > 0
            && let Ok(bounds) = store.bounds()
        {
            let mut state = self.shared.lock();
            state.oldest = bounds.map_or(state.written + 1, |(first, _)| first);
        }
        removed > 0 && store.checkpoint(true).is_ok()
    }

    fn end(mut self) {
        self.syncing.stop();
        // Numbers count as given even where their events never came to the disk: what is missing
        // of them can be told at the next start, and none is given twice.
        let (last, marked, unwritten) = {
            let state = self.shared.lock();
            let unwritten = state.given(state.written, state.last);
            (state.last, state.marked_through(state.last), unwritten)
        };
        if let Err(error) = self.set_mark(marked) {
            warn!(%error, "the journal's mark was not written");
        }
        // Before the writer's own: who closes the file last removes its log, by name. Whoever still
        // holds the journal would do that later, when another log may stand there.
        if let Some(Err(error)) = self.shared.reader.as_ref().map(Reader::close) {
            warn!(error = describe(&error), "the journal's reader was not closed in order");
        }
        match self.store.take().map(|store| store.close(last, clock::now())) {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                error!(error = describe(&error), "the journal was not closed in order");
            }
            None if self.shared.lock().nothing_unwritten() => {}
            None => {
                error!(unwritten, "the journal was not written to the end: the disk fails");
            }
        }
    }
}

fn wal_size(dir: &Path) -> u64 {
    std::fs::metadata(store::wal(dir)).map_or(0, |meta| meta.len())
}

/// Removes events older than that, no further than through `at_most`.
fn remove_older(store: &mut Store, age: Duration, at_most: Seq) -> Result<(), StoreError> {
    let Some((_, last)) = store.bounds()? else { return Ok(()) };
    if store.oldest_age()?.is_none_or(|oldest| oldest <= age) {
        return Ok(());
    }
    let keep = store.first_to_keep(age)?.unwrap_or(last + 1);
    store.remove_through((keep - 1).min(at_most)).map(|_| ())
}

/// Bytes free for us on the file system of `dir`; `None` where it does not say.
fn free(dir: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// An error with its causes, in one line.
pub(super) fn describe(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// What the writer tells the syncer.
#[derive(Debug, Default)]
struct Syncing {
    target: Mutex<Target>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Target {
    written: Seq,
    /// Commits that were made, of events or of anything else.
    commits: u64,
    /// How many of them a sync has covered.
    synced: u64,
    /// The write-ahead log is to be moved.
    log: bool,
    failed: bool,
    stop: bool,
}

/// What the syncer is to do.
struct Due {
    written: Seq,
    commits: u64,
    /// Something was committed since the last sync.
    sync: bool,
    log: bool,
}

impl Syncing {
    fn lock(&self) -> MutexGuard<'_, Target> {
        self.target.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something was committed, and events through `written` if there were any.
    fn committed(&self, written: Option<Seq>) {
        let mut target = self.lock();
        target.written = written.unwrap_or(target.written);
        target.commits += 1;
    }

    fn move_log(&self) {
        self.lock().log = true;
    }

    fn has_failed(&self) -> bool {
        self.lock().failed
    }

    /// The file was reopened, and all of it through `written` is on the disk.
    fn begin_anew(&self, written: Seq) {
        let mut target = self.lock();
        target.written = written;
        target.synced = target.commits;
        target.failed = false;
    }

    fn stop(&self) {
        self.lock().stop = true;
        self.changed.notify_all();
    }

    /// Waits out the interval; answers what to do, or `None` at the end. After a failure there is nothing
    /// to sync until the file was reopened.
    fn next(&self, interval: Duration) -> Option<Due> {
        let (mut target, _) = self
            .changed
            .wait_timeout_while(self.lock(), interval, |target| !target.stop)
            .unwrap_or_else(PoisonError::into_inner);
        let log = std::mem::take(&mut target.log) && !target.failed;
        let sync = target.commits > target.synced && !target.failed;
        let due = Due { written: target.written, commits: target.commits, sync, log };
        (!target.stop).then_some(due)
    }

    /// A sync has covered so many commits. Answers how many there are by now; none is added while the
    /// answer is held.
    fn synced(&self, commits: u64) -> MutexGuard<'_, Target> {
        let mut target = self.lock();
        // The file may have been reopened meanwhile.
        target.synced = target.synced.max(commits);
        target
    }

    fn fail(&self) {
        self.lock().failed = true;
    }
}

fn sync_loop(shared: &Shared, syncing: &Syncing) {
    let Some(dir) = shared.limits.dir.clone() else { return };
    let interval = match shared.sync {
        Sync::Every(interval) => interval,
        Sync::Always | Sync::Never => UPKEEP,
    };
    while let Some(due) = syncing.next(interval) {
        if matches!(shared.sync, Sync::Every(_)) && due.sync {
            // SQLite's locks are on the database and the shared memory, never on the log: opening
            // and closing the log disturbs none of them.
            match File::open(store::wal(&dir)).and_then(|wal| wal.sync_data()) {
                Ok(()) => {
                    let all = syncing.synced(due.commits);
                    let mut state = shared.lock();
                    state.synced = state.synced.max(due.written.min(state.written));
                    state.durable = all.commits == due.commits;
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    error!(%error, "a sync of the journal failed");
                    syncing.fail();
                    shared.work.notify_one();
                    // What it dropped must not be moved into the database.
                    continue;
                }
            }
        }
        if due.log {
            let moved = Store::open_checkpointer(&dir).and_then(|store| store.checkpoint(false));
            match moved {
                Ok(()) => {}
                // It syncs the log before it moves anything. The system tells a failure once, to
                // whoever asks first: the next sync of the log may succeed and mean nothing.
                Err(error) if error.is_io() => {
                    error!(error = describe(&error), "a checkpoint of the journal failed");
                    syncing.fail();
                    shared.work.notify_one();
                }
                // The writer meets the same disk and judges; this was an attempt to be early.
                Err(error) => tracing::debug!(error = describe(&error), "checkpoint put off"),
            }
        }
    }
}
