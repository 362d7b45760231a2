//! The limits: size, age, free space, and the length of the write-ahead log; and what other processes have
//! asked for.

use std::{path::Path, sync::Arc, time::Duration};

use tokio::time::Instant;
use tracing::{debug, warn};

use super::Writer;
use crate::{
    base::event::Seq,
    journal::{directory, error::StoreError},
};

pub(super) const INTERVAL: Duration = Duration::from_secs(1);

/// Part of `max_size` that is removed at once when it is exceeded.
const REMOVE_SHARE: u64 = 20;

/// So much of the write-ahead log is moved into the database at once, by the syncer.
const CHECKPOINT: u64 = 4 * 1024 * 1024;

/// A write-ahead log of this size (somebody was reading in it for long) is moved as a whole and cut; so is
/// one of a quarter of `max_size`, for it takes its space beside the database.
const LONGEST_LOG: u64 = 64 * 1024 * 1024;

/// A shorter one is not cut: each time costs two syncs.
pub(super) const SHORTEST_LOG: u64 = 512 * 1024;

/// A log that could not be cut, because somebody reads in it, is left alone for so long.
pub(super) const CUT_AGAIN: Duration = Duration::from_secs(30);

/// So many attempts in a row, and it is somebody else who keeps the log from being cut.
const LASTS: u32 = 3;

/// So much of a nearly full disk is left for the write-ahead log, at most: it cannot use the database's free
/// pages.
const LOG_SPACE: u64 = 4 * 1024 * 1024;

/// The same where `min_free` is to be left. The journal alone stops long before, at half of that.
pub(super) fn log_space(min_free: u64) -> u64 {
    (min_free / 8).min(LOG_SPACE)
}

/// What is to be looked after, and when.
#[derive(Debug)]
pub(super) struct Upkeep {
    /// When it is time for it.
    pub(super) at: Instant,
    /// The log is not cut before.
    pub(super) cut_at: Instant,
    /// So often in a row it could not be cut.
    busy: u32,
    /// Bytes of events written since the limits were looked at.
    pub(super) written_since: u64,
    data_version: i64,
    /// Whether the dead letters must be counted again.
    pub(super) recount: bool,
    /// Whether it was reported that the disk is nearly full.
    low: bool,
    /// Whether it was reported that history was deleted on a full disk.
    full: bool,
    /// Through which event what every sink has was removed from a full disk.
    pub(super) freed_through: Seq,
}

impl Default for Upkeep {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            at: now,
            cut_at: now,
            busy: 0,
            written_since: 0,
            data_version: 0,
            recount: true,
            low: false,
            full: false,
            freed_through: 0,
        }
    }
}

impl Writer {
    /// Looks after the limits once in a while, and at what has failed.
    pub(super) fn maintain_when_due(&mut self) {
        if self.store.is_none() {
            return;
        }
        if self.syncing.has_failed() {
            self.in_doubt = true;
            self.degrade("a sync failed".into());
            return;
        }
        if self.shared.lock().disk.corrupt {
            self.degrade_corrupt();
            return;
        }
        let now = Instant::now();
        if now < self.upkeep.at && !self.much_was_written() {
            return;
        }
        self.upkeep.at = now + INTERVAL;
        if self.was_replaced() {
            return;
        }
        if let Err(failure) = self.maintain() {
            self.failed(&failure);
        }
    }

    /// A burst may fill the disk between two times.
    fn much_was_written(&self) -> bool {
        let Some(dir) = self.shared.dir() else { return false };
        let config = &self.shared.config;
        // A quarter of the free space may be gone before it is looked at again.
        let due = (config.max_size.0 / REMOVE_SHARE).min(match config.min_free.0 {
            0 => u64::MAX,
            free => free / 4,
        });
        self.upkeep.written_since > due || self.is_to_be_cut(dir)
    }

    /// Whether the write-ahead log has become too long.
    fn is_to_be_cut(&self, dir: &Path) -> bool {
        Instant::now() >= self.upkeep.cut_at && directory::wal_size(dir) > self.longest_log()
    }

    fn longest_log(&self) -> u64 {
        (self.shared.config.max_size.0 / 4).clamp(SHORTEST_LOG, LONGEST_LOG)
    }

    fn maintain(&mut self) -> Result<(), StoreError> {
        let shared = Arc::clone(&self.shared);
        let Some(dir) = shared.dir() else { return Ok(()) };
        self.upkeep.written_since = 0;
        let config = &shared.config;
        let (delivered, history, held, moved) = {
            let memory = self.shared.lock();
            let history = memory.history_through(config.keep_delivered.0);
            let held = memory.marked(memory.numbers.written).events;
            (memory.delivered(), history, held, memory.moved_on_disk())
        };
        if self.is_to_be_cut(dir) {
            self.cut_log(dir)?;
        }
        let Some(store) = &mut self.store else { return Ok(()) };
        if store.unmoved_log()? > CHECKPOINT {
            self.syncing.move_log();
        }
        // Too old for any sink; and delivered, and too old for history.
        store.remove_older(config.max_age.0, Seq::MAX, &moved)?;
        store.remove_older(config.keep_delivered.0, history, &moved)?;
        let mut size = store.size()?;
        if size > config.max_size.0 {
            // What are no events has budgets of its own.
            let others = store.other_bytes()?;
            while size.saturating_sub(others) > config.max_size.0 && store.bounds()?.is_some() {
                store.remove_oldest((held / REMOVE_SHARE).max(1), &moved)?;
                size = store.size()?;
            }
        }
        let least = config.min_free.0;
        let free = || directory::free_space(dir).unwrap_or(u64::MAX);
        let low = free() < least;
        let was_low = std::mem::replace(&mut self.upkeep.low, low);
        let mut unused = 0;
        if low {
            // What every sink has goes; the freed pages are used again.
            store.remove_through(delivered, &moved)?;
            unused = store.unused()?;
            if !was_low {
                warn!("the disk is nearly full; the journal's history is deleted");
            }
            // The log's space can be had back.
            if directory::wal_size(dir) > SHORTEST_LOG && Instant::now() >= self.upkeep.cut_at {
                self.cut_log(dir)?;
            }
        }
        self.refresh_figures(size)?;
        let left = free();
        if left >= least.max(LOG_SPACE) {
            self.upkeep.full = false;
        }
        if low && (left.saturating_add(unused) < least / 2 || left < log_space(least)) {
            self.degrade("the disk is full".into());
        }
        Ok(())
    }

    /// Moves all of the write-ahead log into the database, and cuts it. Where somebody reads in it, that is
    /// put off.
    fn cut_log(&mut self, dir: &Path) -> Result<(), StoreError> {
        let Some(store) = &self.store else { return Ok(()) };
        match store.checkpoint(true) {
            Err(error) if error.is_busy() => {
                // The syncer may be moving it at the moment.
                self.upkeep.busy += 1;
                let lasts = self.upkeep.busy >= LASTS;
                self.upkeep.cut_at = Instant::now() + if lasts { CUT_AGAIN } else { INTERVAL };
                if lasts {
                    let size = directory::wal_size(dir);
                    warn!(size, "somebody reads in the journal for long: its log grows meanwhile");
                }
                Ok(())
            }
            cut => {
                self.upkeep.busy = 0;
                cut
            }
        }
    }

    /// Brings the figures up to date, and looks for what other processes have asked for.
    fn refresh_figures(&mut self, size: u64) -> Result<(), StoreError> {
        let Some(store) = &mut self.store else { return Ok(()) };
        let bounds = store.bounds()?;
        let version = store.data_version()?;
        let asked = std::mem::replace(&mut self.upkeep.data_version, version) != version;
        let letters = (asked || std::mem::take(&mut self.upkeep.recount))
            .then(|| store.letters_of_sinks())
            .transpose()?;
        let mut waiting = Vec::new();
        for (sink, at) in self.shared.lock().behind_ring() {
            waiting.push((sink, store.waited_since(at + 1)?));
        }
        let mut memory = self.shared.lock();
        memory.numbers.oldest = bounds.map_or(memory.numbers.written + 1, |(first, _)| first);
        memory.disk.size = size;
        let recounted = letters.is_some();
        if let Some(letters) = letters {
            memory.count_letters(letters);
        }
        for (sink, waits) in waiting {
            if let Some(cursor) = memory.cursors.by_sink.get_mut(&sink) {
                cursor.waits = waits;
            }
        }
        let pruned = memory.prune_runs();
        let marked = memory.marked(memory.numbers.written);
        drop(memory);
        if let Some(before) = pruned {
            store.prune_runs(before)?;
        }
        if recounted {
            // A sink that was held because its letters had no room may go on.
            self.shared.made_progress();
        }
        if asked {
            self.shared.signals.requests.send_modify(|count| *count += 1);
        }
        self.files.as_mut().map_or(Ok(()), |files| files.mark.refresh(marked, &files.ages))
    }

    /// Deletes history on a full disk; answers whether there was any.
    pub(super) fn make_room(&mut self) -> bool {
        let (delivered, moved) = {
            let memory = self.shared.lock();
            (memory.delivered(), memory.moved_on_disk())
        };
        let Some(store) = &mut self.store else { return false };
        // Where this fails, the caller finds the disk as full as it was.
        let removed = store.remove_delivered(delivered, &moved).unwrap_or(0);
        if removed == 0 {
            return false;
        }
        if std::mem::replace(&mut self.upkeep.full, true) {
            debug!(removed, "more of the journal's history was deleted");
        } else {
            warn!(removed, "the disk is full; the journal's history was deleted");
        }
        if let Ok(bounds) = store.bounds() {
            let mut memory = self.shared.lock();
            memory.numbers.oldest = bounds.map_or(memory.numbers.written + 1, |(first, _)| first);
        }
        store.checkpoint(true).is_ok()
    }

    /// Sees whether somebody has removed or replaced the files, which stay open here and would be written
    /// on without a trace.
    fn was_replaced(&mut self) -> bool {
        let (Some(dir), Some(files)) = (self.shared.dir(), &self.files) else { return false };
        let now = directory::inodes(dir);
        if now == files.inodes {
            return false;
        }
        // Where the database is still the one that is open, nothing of it may be lost with its log.
        if now.first() == files.inodes.first()
            && let Some(store) = &self.store
            && let Err(error) = store.checkpoint(true)
        {
            warn!(error = error.describe(), "the journal's log was not moved");
        }
        self.degrade("its files were removed or replaced".into());
        self.retry_at = Instant::now();
        true
    }
}
