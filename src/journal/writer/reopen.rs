//! Degraded, and back: after a failure events live in memory, and the files are tried again until they can
//! be used.

use std::{path::Path, sync::Arc, time::Duration};

use tokio::time::Instant;
use tracing::{debug, error, info};

use super::{
    Writer,
    maintenance::{CUT_AGAIN, SHORTEST_LOG, log_space},
};
use crate::{
    base::{event::Seq, sync::lock},
    config::Sync,
    journal::{
        Health, directory,
        error::StoreError,
        mark::Mark,
        memory::{Memory, Numbers},
        open::{self, JournalFiles},
        reader::SharedReader,
        recovery,
        store::{Replay, Store},
    },
};

/// How long a failing disk is left alone before it is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The same after a recovery that failed: it reads the whole file each time.
const RETRY_RECOVERY: Duration = Duration::from_secs(30);

/// Why a journal is degraded whose content is broken.
const CORRUPT: &str = "the file is broken";

impl Writer {
    pub(super) fn degrade(&mut self, reason: String) {
        let mut memory = self.shared.lock();
        if !matches!(memory.disk.health, Health::Degraded(_)) {
            error!(reason, "the journal cannot be written; events are kept in memory");
        }
        memory.disk.health = Health::Degraded(reason);
        self.shared.evict(&mut memory);
        self.shared.publish(&memory);
        drop(memory);
        self.shared.made_progress();
        self.store = None;
        self.retry_at = Instant::now() + RETRY;
    }

    /// The file is to be recovered at once.
    pub(super) fn degrade_corrupt(&mut self) {
        self.shared.lock().disk.corrupt = true;
        self.degrade(CORRUPT.into());
        self.retry_at = Instant::now();
    }

    /// Tries the files again.
    pub(super) fn reopen(&mut self) {
        let shared = Arc::clone(&self.shared);
        let Some(dir) = shared.dir() else { return };
        let corrupt = self.shared.lock().disk.corrupt;
        self.retry_at = Instant::now() + if corrupt { RETRY_RECOVERY } else { RETRY };
        let reopened = match self.files.take() {
            None => self.open_late(dir),
            Some(mut files) => {
                let reopened = self.try_reopen(dir, &mut files, corrupt);
                self.files = Some(files);
                reopened
            }
        };
        match reopened {
            Ok(()) => {
                info!("the journal works again");
                self.upkeep.at = Instant::now();
                self.upkeep.recount = true;
                self.shared.made_progress();
            }
            Err(failure) if failure.is_corrupt() && !corrupt => self.degrade_corrupt(),
            // What was broken stays so until it was recovered, whatever hinders that now.
            Err(failure) if corrupt => {
                error!(error = failure.describe(), "the broken journal cannot be recovered now");
            }
            Err(failure) => {
                let mut memory = self.shared.lock();
                memory.disk.health = Health::Degraded(failure.describe());
                self.shared.publish(&memory);
            }
        }
    }

    /// Opens the files for the first time, after events were taken in: what stands in them is from
    /// before. Sinks have gone on with what is new, so that what they had still to get of the old is
    /// handed to them as by a replay, but as it is: nobody asked to have it once more. What publishes in the
    /// log of a cluster begins again with the old. Nothing in memory changes before all that can fail is done.
    fn open_late(&mut self, dir: &Path) -> Result<(), StoreError> {
        let first = self.shared.lock().numbers.runs.first().map_or(1, |(first, _)| *first);
        let always_sync = self.shared.config.sync == Sync::Always;
        let (store, files, found, opened) = open::open_files(dir, always_sync, Some(first))?;
        // The files say it once: from now on they say that the relay runs.
        lock(&self.shared.last_run).found(opened);
        let mut reader = Store::open_reader(dir)?;
        reader.set_ages(files.ages.clone());
        let before = store.last_kept()?.min(first.saturating_sub(1));
        let published = found.published();
        self.adopt_found(&store, found, before)?;
        self.adopt(store, files);
        if let Some(old) = &self.shared.reader {
            old.replace(reader);
        }
        let mut memory = self.shared.lock();
        memory.disk.health = Health::Sound;
        memory.disk.corrupt = false;
        memory.cursors.found_late = published;
        if let Some(published) = published {
            // Not before the files can be read.
            memory.put_back(published, before);
        }
        self.shared.publish(&memory);
        drop(memory);
        self.shared.signals.requests.send_modify(|count| *count += 1);
        Ok(())
    }

    /// Asks for the replays that the sinks need of what was found, and takes it over into memory.
    fn adopt_found(&self, store: &Store, found: Memory, before: Seq) -> Result<(), StoreError> {
        let mut requested: Vec<Replay> = Vec::new();
        loop {
            let mut memory = self.shared.lock();
            let mut backlogs = memory.backlogs(&found, before);
            // There are more where a sink was registered meanwhile.
            backlogs.retain(|replay| requested.iter().all(|known| known.sink != replay.sink));
            if backlogs.is_empty() {
                memory.adopt(found, requested);
                return Ok(());
            }
            drop(memory);
            store.request_replays(&mut backlogs)?;
            requested.append(&mut backlogs);
        }
    }

    /// Opens the files again. What a failed sync left in doubt is written again by the checkpoint.
    fn try_reopen(
        &mut self,
        dir: &Path,
        files: &mut JournalFiles,
        corrupt: bool,
    ) -> Result<(), StoreError> {
        directory::make(dir)?;
        let is_ours = directory::inodes(dir).first() == files.inodes.first();
        self.look_for_space(dir, is_ours && !corrupt && !self.in_doubt)?;
        // The directory may be another one than before: mounted again, or restored.
        files.lock = None;
        files.lock = Some(directory::lock(dir)?);
        files.mark = Mark::open(dir)?.0.with(self.shared.unreported.clone());
        let (marked, runs) = {
            let memory = self.shared.lock();
            (memory.marked(memory.numbers.written), memory.numbers.runs.clone())
        };
        if corrupt {
            let lost = recovery::recover(dir, marked, Some(&runs))?.lost;
            if lost > 0 {
                error!(lost, "events that were in the journal are gone");
            }
        }
        let replaced = directory::inodes(dir).first() != files.inodes.first();
        if self.in_doubt {
            // The file is given up only for a disk that takes something again.
            files.mark.set(marked, &files.ages)?;
            files.mark.sync()?;
        }
        if self.in_doubt || replaced {
            // Nothing that is remembered of the file may be read any more.
            self.shared.reader.as_ref().map_or(Ok(()), SharedReader::close)?;
        }
        if replaced {
            // Nor may the log of a file that is gone stand beside a new one.
            directory::remove_orphans(dir)?;
        }
        let store = self.open_ours(dir, files, corrupt)?;
        store.set_runs(&runs)?;
        let letters: u64 = store.letters_of_sinks()?.iter().map(|(_, letters)| letters.count).sum();
        match store.checkpoint(true) {
            // Somebody reads in it: that hinders nobody from writing.
            Err(error) if error.is_busy() && !self.in_doubt => {}
            moved => moved?,
        }
        store.probe()?;
        let mut reader = Store::open_reader(dir)?;
        reader.set_ages(files.ages.clone());
        let (bounds, replays) = (store.bounds()?, store.replays()?);
        if let Some(old) = &self.shared.reader {
            old.replace(reader);
        }
        directory::restrict(dir);
        files.inodes = directory::inodes(dir);
        self.store = Some(store);
        self.go_on(bounds, letters, replays);
        Ok(())
    }

    /// Looks whether the disk has space enough to go on; an error where it has not. `sound`: the files are those
    /// that were open, so that space can be made in them.
    fn look_for_space(&mut self, dir: &Path, sound: bool) -> Result<(), StoreError> {
        let Some(mut free) = directory::free_space(dir) else { return Ok(()) };
        // A little more than where it was given up, so that it is not given up again at once.
        let min_free = self.shared.config.min_free.0;
        let (least, log) = (min_free / 4 * 3, log_space(min_free) / 2 * 3);
        let mut for_log = free;
        if sound && free < least.max(SHORTEST_LOG) {
            if let Err(error) = self.free_space(dir) {
                debug!(error = error.describe(), "no space can be made on the full disk");
                let wait = if error.is_busy() { RETRY } else { CUT_AGAIN };
                self.upkeep.cut_at = Instant::now() + wait;
            }
            let unused = self.shared.read_file(Store::unused)?.unwrap_or(0);
            for_log = directory::free_space(dir).unwrap_or(u64::MAX);
            free = for_log.saturating_add(unused);
        }
        if free < least || for_log < log {
            let source = std::io::ErrorKind::StorageFull.into();
            return Err(StoreError::Io { path: dir.to_owned(), source });
        }
        Ok(())
    }

    /// Makes space on a full disk, where there is something to make it of: cuts the log, and removes what every
    /// sink has got meanwhile, whose pages are used again.
    fn free_space(&mut self, dir: &Path) -> Result<(), StoreError> {
        let (delivered, oldest, written, moved) = {
            let memory = self.shared.lock();
            let Numbers { oldest, written, .. } = memory.numbers;
            (memory.delivered(), oldest, written, memory.moved_on_disk())
        };
        let delivered = delivered.min(written);
        let is_new = delivered >= oldest && delivered > self.upkeep.freed_through;
        let is_due = Instant::now() >= self.upkeep.cut_at;
        if !(is_due && (is_new || directory::wal_size(dir) > SHORTEST_LOG)) {
            return Ok(());
        }
        let mut store = Store::open(dir, self.shared.config.sync == Sync::Always)?;
        if is_new {
            store.remove_delivered(delivered, &moved)?;
            self.upkeep.freed_through = delivered;
        }
        store.checkpoint(true)
    }

    /// Opens the database, and reads what every opening reads; another journal's is set aside.
    fn open_ours(
        &self,
        dir: &Path,
        files: &JournalFiles,
        recovered: bool,
    ) -> Result<Store, StoreError> {
        let open = || {
            directory::put_recovered_in_place(dir)?;
            let store = Store::open(dir, self.shared.config.sync == Sync::Always)?;
            store.bounds()?;
            store.runs()?;
            store.cursors()?;
            store.replays()?;
            store.letters_of_sinks()?;
            store.size()?;
            Ok::<_, StoreError>(store)
        };
        let mut store = open()?;
        // One that was recovered just now is ours.
        if !recovered && store.identity()? != files.identity && store.bounds()?.is_some() {
            store.abandon()?;
            directory::set_foreign_aside(dir)?;
            store = open()?;
        }
        store.set_ages(files.ages.clone());
        store.set_identity(files.identity)?;
        Ok(store)
    }

    /// The files are open again, and hold these events, so many dead letters, and these replays.
    fn go_on(&mut self, bounds: Option<(u64, u64)>, letters: u64, replays: Vec<Replay>) {
        let mut memory = self.shared.lock();
        let known: u64 = memory.letters.values().map(|letters| letters.count).sum();
        let waiting = memory.pending.dead_letters().count();
        let known = known.saturating_sub(u64::try_from(waiting).unwrap_or(0));
        if letters < known {
            error!(lost = known - letters, "dead letters that were in the journal are gone");
        }
        memory.reopened(bounds);
        memory.set_backlogs(replays);
        self.shared.publish(&memory);
        let written = memory.numbers.written;
        drop(memory);
        self.in_doubt = false;
        self.syncing.reset(written);
    }
}
