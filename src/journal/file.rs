//! Opening the journal's directory: the lock, the high-water mark, and what to do with a file that is
//! broken.
//!
//! `journal.lock` belongs to the one process that writes. `journal.mark` holds the last number that
//! was written, without any sync: when the database comes up shorter than the mark says, what is
//! missing can be counted. A broken database is set aside under a name of its own
//! (`journal.db.broken-<time>`), what can be read of it is copied into a new one row by row, and the
//! rest is told.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Seek, SeekFrom, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::time::{Duration, Instant};
use tracing::{error, info, warn};

use super::{
    Cursor, Health, Journal, Limits, Shared, State,
    store::{self, Store, StoreError, Write},
    writer,
};
use crate::{
    clock,
    config::{self, Sync},
    event::{Seq, UnixMillis},
};

/// How long the recovery of a broken file may take before what is left of it is given up.
const RECOVERY: Duration = Duration::from_secs(20);

/// Rows read at once in recovery.
const RECOVER_ROWS: usize = 256;

/// What was found when the journal was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Opened {
    /// Events that had been written and are gone.
    pub lost: u64,
    /// Where a broken file was set aside.
    pub set_aside: Option<PathBuf>,
    /// When the relay last ran with this journal.
    pub alive: Option<UnixMillis>,
    /// Events that are there.
    pub events: u64,
    /// Sinks whose position was broken: they begin with the earliest event.
    pub cursors_lost: Vec<String>,
}

/// The lock of the one process that writes; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

/// The high-water mark beside the database.
#[derive(Debug)]
pub(super) struct Mark {
    file: File,
}

pub(super) fn open(config: &config::Journal) -> Result<(Journal, Opened), StoreError> {
    let dir = config.dir.as_path();
    make_dir(dir)?;
    let lock = lock(dir)?;
    let (mut mark, marked) = Mark::open(dir)?;
    let (mut store, mut opened) = open_or_recover(dir, config.sync == Sync::Always)?;
    let next = store.begin_run(marked)?;
    let bounds = store.bounds()?;
    let last = bounds.map_or(0, |(_, last)| last);
    let runs = store.runs()?;
    if opened.set_aside.is_none() && marked > last {
        // Numbers that were written and are not there: the write-ahead log was lost or cut.
        opened.lost = given(&runs, last, marked);
    }
    if opened.lost > 0 {
        error!(lost = opened.lost, "events that were in the journal are gone");
    }
    opened.alive = store.alive()?;
    let oldest = bounds.map_or(next, |(first, _)| first);
    opened.events = given(&runs, oldest.saturating_sub(1), last);
    let mut state = State::new(next, runs, oldest, Health::Sound);
    state.last_received = store.received_at(last)?.unwrap_or(0);
    for kept in store.cursors()? {
        let at = kept.seq.filter(|seq| *seq < next).unwrap_or_else(|| {
            warn!(
                sink = kept.sink,
                "the sink's position was broken; beginning with the earliest event"
            );
            opened.cursors_lost.push(kept.sink.clone());
            oldest.saturating_sub(1)
        });
        let name: Arc<str> = kept.sink.into();
        state.cursors.insert(name, Cursor { at, saved: at, active: false });
    }
    state.dead_count = store.dead_letter_counts()?.into_iter().collect();
    state.size = store.size()?;
    let reader = Store::open_reader(dir)?;
    let limits = Limits {
        dir: Some(dir.to_owned()),
        max_size: config.max_size.0,
        max_age: config.max_age.0,
        keep_delivered: config.keep_delivered.0,
        min_free: config.min_free.0,
        memory: config.memory.bytes().max(64 * 1024),
    };
    mark.set(next - 1)?;
    let journal = Journal(Arc::new(Shared::new(state, Some(reader), config.sync, limits)));
    writer::start(&journal, store, mark, lock);
    Ok((journal, opened))
}

/// Opens the database, and sets it aside if it is broken.
pub(super) fn open_or_recover(dir: &Path, always: bool) -> Result<(Store, Opened), StoreError> {
    // A database of a newer format is left untouched; a broken one is found out by reading the few
    // rows that every start reads. What is broken further inside is found when it is read.
    let open = || {
        let store = Store::open(dir, always)?;
        store.bounds()?;
        store.runs()?;
        store.cursors()?;
        store.replays()?;
        store.dead_letter_counts()?;
        store.alive()?;
        store.size()?;
        Ok(store)
    };
    match open() {
        Ok(store) => Ok((store, Opened::default())),
        Err(error @ StoreError::Newer { .. }) => Err(error),
        Err(error) if error.is_corrupt() => recover(dir, always),
        Err(error) => Err(error),
    }
}

/// Sets the broken file aside and copies what can be read of it into a new one.
pub(super) fn recover(dir: &Path, always: bool) -> Result<(Store, Opened), StoreError> {
    let broken = set_aside(dir)?;
    error!(set_aside = %broken.display(), "the journal is broken; recovering what can be read");
    let mut store = Store::open(dir, always)?;
    let mut opened = Opened { set_aside: Some(broken.clone()), ..Opened::default() };
    let marked = Mark::open(dir)?.1;
    let found = Store::open_broken(&broken).and_then(|old| copy(&old, &mut store));
    let (kept, last, runs) = found.unwrap_or_else(|error| {
        error!(%error, "nothing could be read of the broken journal");
        (0, 0, Vec::new())
    });
    let first = store.bounds()?.map_or(0, |(first, _)| first);
    let known = if runs.is_empty() { vec![(1, None)] } else { runs };
    let end = marked.max(last);
    // Where the front of the file is lost too, the oldest event that was there is not known: count
    // from the first that was found.
    opened.lost = given(&known, first.saturating_sub(1), end).saturating_sub(kept);
    store.set_runs(&known)?;
    info!(kept, lost = opened.lost, "journal recovered");
    Ok((store, opened))
}

/// How many numbers after `after`, through `through`, were given in these runs.
fn given(runs: &[(Seq, Option<Seq>)], after: Seq, through: Seq) -> u64 {
    let inside = |(first, last): &(Seq, Option<Seq>)| {
        let low = (*first).max(after + 1);
        (last.unwrap_or(through).min(through) + 1).saturating_sub(low)
    };
    runs.iter().map(inside).sum()
}

type Copied = (u64, Seq, Vec<(Seq, Option<Seq>)>);

/// Copies sound rows; steps over pages that cannot be read.
fn copy(old: &Store, new: &mut Store) -> Result<Copied, StoreError> {
    let deadline = Instant::now() + RECOVERY;
    let mut after = 0;
    let mut kept = 0;
    let mut step = 1;
    let mut last_good = 0;
    let limit = old.highest_guess();
    while Instant::now() < deadline {
        match old.read(after, RECOVER_ROWS, usize::MAX) {
            Ok(read) => {
                let Some(through) = read.through else { break };
                kept += u64::try_from(read.records.len()).unwrap_or(0);
                last_good = read.records.last().map_or(last_good, |record| record.seq);
                after = through;
                step = 1;
                new.write(&Write { records: read.records, ..Write::default() })?;
            }
            // A smaller reading may still get the rows before the broken page.
            Err(_) => match old.read(after, 1, usize::MAX) {
                Ok(read) if read.through.is_some_and(|through| through > after) => {
                    kept += u64::try_from(read.records.len()).unwrap_or(0);
                    after = read.through.unwrap_or(after);
                    last_good = read.records.last().map_or(last_good, |record| record.seq);
                    new.write(&Write { records: read.records, ..Write::default() })?;
                }
                Ok(_) | Err(_) => {
                    after += step;
                    step = (step * 2).min(1024);
                    if after > limit {
                        break;
                    }
                }
            },
        }
    }
    let mut write = Write::default();
    for kept in old.cursors().unwrap_or_default() {
        if let Some(seq) = kept.seq {
            write.cursors.push((kept.sink.into(), seq));
        }
    }
    write.dead = old.dead_letters(None).unwrap_or_default();
    // A file from before the table has none.
    write.state = old.state().unwrap_or_default();
    write.alive = old.alive().ok().flatten();
    new.write(&write)?;
    Ok((kept, last_good, old.runs().unwrap_or_default()))
}

/// Renames the database and its companions; answers the new name.
fn set_aside(dir: &Path) -> Result<PathBuf, StoreError> {
    let from = store::file(dir);
    let time = clock::now();
    let to = dir.join(format!("journal.db.broken-{time}"));
    for suffix in ["", "-wal", "-shm"] {
        let companion = |base: &Path| PathBuf::from(format!("{}{suffix}", base.display()));
        let (source, target) = (companion(&from), companion(&to));
        match fs::rename(&source, &target) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(StoreError::Io { path: source, source: error });
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(to)
}

fn make_dir(dir: &Path) -> Result<(), StoreError> {
    use std::os::unix::fs::DirBuilderExt;
    // Events hold personal data: nobody else's business.
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| StoreError::Io { path: dir.to_owned(), source })
}

fn lock(dir: &Path) -> Result<Lock, StoreError> {
    let path = dir.join("journal.lock");
    let failed = |source| StoreError::Io { path: path.clone(), source };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Who has it is a courtesy; that somebody has it is what counts.
            let read = file.read_to_string(&mut holder);
            let holder = match read {
                Ok(_) if !holder.trim().is_empty() => format!("process {}", holder.trim()),
                Ok(_) | Err(_) => "another process".into(),
            };
            return Err(StoreError::Locked { path, holder });
        }
        Err(fs::TryLockError::Error(source)) => return Err(failed(source)),
    }
    let id = std::process::id().to_string();
    file.set_len(0).and_then(|()| file.write_all(id.as_bytes())).map_err(failed)?;
    Ok(Lock { _file: file })
}

impl Mark {
    /// Opens it, and answers the last number that it holds; 0 where it is new or broken.
    pub(super) fn open(dir: &Path) -> Result<(Self, Seq), StoreError> {
        let path = dir.join("journal.mark");
        let failed = |source| StoreError::Io { path: path.clone(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        let mut bytes = Vec::new();
        std::io::Read::by_ref(&mut file).take(64).read_to_end(&mut bytes).map_err(failed)?;
        let text = String::from_utf8_lossy(&bytes);
        let mut words = text.split_whitespace();
        let seq = words.next().and_then(|word| word.parse::<Seq>().ok()).unwrap_or(0);
        let sum = words.next().and_then(|word| u32::from_str_radix(word, 16).ok());
        let sound = sum == Some(crc32fast::hash(&seq.to_le_bytes()));
        Ok((Self { file }, if sound { seq } else { 0 }))
    }

    /// Writes the number down, without waiting for the disk.
    pub(super) fn set(&mut self, seq: Seq) -> Result<(), StoreError> {
        let line = format!("{seq:020} {:08x}\n", crc32fast::hash(&seq.to_le_bytes()));
        self.file
            .seek(SeekFrom::Start(0))
            .and_then(|_| self.file.write_all(line.as_bytes()))
            .map_err(|source| StoreError::Io { path: "journal.mark".into(), source })
    }
}
