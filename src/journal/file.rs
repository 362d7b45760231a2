//! Opening the journal's directory: the lock, the high-water mark, and what to do with a file that is
//! broken.
//!
//! `journal.lock` belongs to the one process that writes. `journal.mark` holds the last number that
//! was written and how many events there were, without any sync: when the database comes up shorter
//! than the mark says, or not at all, what is missing can be counted. It also holds when the relay last
//! ran, on every clock; an idle relay writes nothing else.
//!
//! A broken database is copied, row by row as far as it can be read, into `journal.db.new`, which
//! becomes `journal.db.recovered` once it is complete. Only then is the broken one set aside under a
//! name of its own (`journal.db.broken-<time>`) and the new one put into its place. An end at any
//! point of this loses nothing: the next start begins the copy again, or finishes the exchange.
//!
//! The one thing to know: what is missing is counted from the runs, hence exactly, as long as they or
//! the mark can be read. With both gone there is nothing left to count by; nor after a loss of power,
//! which takes what was not synced and the mark's word of it together.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::time::{Duration, Instant};
use tracing::{error, info, warn};

use super::{
    Cursor, Health, Journal, Limits, Shared, State,
    age::{Ages, Anchor},
    channel_state::StateBudget,
    reader::Reader,
    store::{self, LEFT_OUT, Run, Store, StoreError, Write, given},
    writer,
};
use crate::{
    base::{
        clock::{self, Moment, UnixMillis},
        event::Seq,
    },
    config::{self, Sync},
};

/// How long recovery goes on without finding a single event, before what is left is given up.
const RECOVERY: Duration = Duration::from_secs(20);

/// Bytes of events read at once in recovery, about. By bytes and not by number: a reading then ends
/// with a row, and the next begins with one. A search for the middle of a row may lead the database
/// into the broken page behind it.
const RECOVER_BYTES: usize = 128 * 1024;

/// So that only one row is read.
const ONE_ROW: usize = 1;

/// So many numbers behind a broken place are tried one by one: more than a few lost leaves of the
/// tree cover (eight rows of 64 events each). Beyond it is a lost inner page, a gap in the numbering,
/// or ruin.
const STEPS: Seq = 4096;

/// Broken files that are kept to be looked at; each may be as large as the journal.
const SET_ASIDE: usize = 3;

/// The lock's file.
const LOCK: &str = "journal.lock";

/// The high-water mark's file.
const MARK: &str = "journal.mark";

/// How often an idle relay writes down that it runs. Each time costs the disk some blocks, however
/// little is written; after a crash of an idle relay the gap that is told begins as much too early.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// What SQLite keeps beside a database, and the database itself. The log first: a new database must
/// never stand beside the log of another.
const COMPANIONS: [&str; 3] = ["-wal", "-shm", ""];

/// What was found when the journal was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Opened {
    /// Events that had been written and are gone.
    pub lost: u64,
    /// Where a broken file was set aside.
    pub set_aside: Option<PathBuf>,
    /// When the relay last ran with this journal, by the wall clock as it was then.
    pub heartbeat: Option<UnixMillis>,
    /// How long it did not run. Within one boot of the machine no step of the wall clock touches this.
    pub downtime: Option<Duration>,
    /// Whether that is known, and not only what the wall clock says.
    pub downtime_is_certain: bool,
    /// Events that are there.
    pub events: u64,
    /// Sinks whose position was broken: they begin with the earliest event.
    pub cursors_lost: Vec<String>,
    /// Positions were lost with the names of their sinks: whichever sink has none begins with the
    /// earliest event.
    pub cursors_unknown: bool,
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
    pub(super) missing: Missing,
    /// What stands in it, and since when.
    written: Option<(Marked, Instant)>,
}

/// For how long something has been missing that is not yet told: the next start shall take the relay
/// to have been away since then.
#[derive(Debug, Clone, Default)]
pub(super) struct Missing(Arc<Mutex<Option<(Moment, Duration)>>>);

impl Missing {
    pub(super) fn set(&self, time: Option<Duration>) {
        let since = time.map(|time| (Moment::now(), time));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    fn time(&self) -> Duration {
        let since = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.map_or(Duration::ZERO, |(at, before)| before + at.elapsed())
    }

    fn line(&self) -> String {
        let text = format!("{:020}", super::millis(self.time()));
        format!("{text} {:08x}\n", crc32fast::hash(text.as_bytes()))
    }

    fn parse(line: &str) -> Option<Duration> {
        let (text, sum) = line.trim_end().rsplit_once(' ')?;
        let whole = u32::from_str_radix(sum, 16).ok()? == crc32fast::hash(text.as_bytes());
        whole.then(|| text.parse().ok().map(Duration::from_millis)).flatten()
    }
}

/// What the mark says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Marked {
    /// The last number that was written.
    pub(super) last: Seq,
    /// Events that were there then.
    pub(super) events: u64,
}

/// Opens the journal, or begins without it where the disk does not let it be opened: the writer tries
/// again until it does.
pub(super) fn open(config: &config::Journal) -> Result<(Journal, Opened), StoreError> {
    match open_files(config) {
        Err(error) if !error.forbids_start() => Ok(begin_in_memory(config, &error)),
        opened => opened,
    }
}

fn limits(config: &config::Journal) -> Limits {
    Limits {
        dir: Some(config.dir.clone()),
        max_size: config.max_size.0,
        max_age: config.max_age.0,
        keep_delivered: config.keep_delivered.0,
        min_free: config.min_free.0,
        memory: config.memory.bytes().max(64 * 1024),
        max_dead_letters: config.max_dead_letters.0,
    }
}

/// Numbers are given that no earlier run can have reached: microseconds since 1970.
fn begin_in_memory(config: &config::Journal, error: &StoreError) -> (Journal, Opened) {
    let reason = writer::describe(error);
    error!(
        reason,
        dir = %config.dir.display(),
        "the journal cannot be opened; events are kept in memory until it can"
    );
    // Often it can still be read.
    let (marked, anchor) = read_mark(&config.dir);
    let first = clock::now_micros().max(marked.last.saturating_add(2 * store::RESERVE));
    let opened = Opened {
        heartbeat: anchor.as_ref().map(|anchor| anchor.wall),
        downtime: anchor.as_ref().map(Anchor::ago),
        ..Opened::default()
    };
    let state = State::new(first, vec![(first, None)], first, Health::Degraded(reason));
    let reader = Some(Reader::new(None));
    let journal = Journal(Arc::new(Shared::new(state, reader, config.sync, limits(config))));
    writer::start(&journal, None);
    (journal, opened)
}

/// The files of an open journal.
pub(super) struct Files {
    pub(super) store: Store,
    pub(super) mark: Mark,
    pub(super) lock: Lock,
    pub(super) ages: Ages,
    /// Which files they are.
    pub(super) known: Vec<Inode>,
    /// Which journal it is.
    pub(super) identity: u64,
}

/// Opens the files and begins a run in them that gives no number below `at_least`.
pub(super) fn open_run(
    dir: &Path,
    always: bool,
    at_least: Seq,
) -> Result<(Files, State, Opened), StoreError> {
    make_dir(dir)?;
    let lock = lock(dir)?;
    restrict(dir);
    let (mut mark, marked, anchor, missing) = Mark::open(dir)?;
    let from = Before { always, marked, anchor: anchor.as_ref(), at_least };
    let (begun, opened) = match begin(dir, from, false) {
        Err(error) if error.is_corrupt() => {
            let recovered = recover(dir, marked, None)?;
            let (begun, mut opened) = begin(dir, from, true)?;
            opened.lost += recovered.lost;
            opened.set_aside = recovered.set_aside;
            opened.cursors_unknown = recovered.cursors_unknown;
            (begun, opened)
        }
        begun => begun?,
    };
    let mut opened = opened;
    opened.heartbeat = opened.heartbeat.map(|alive| alive.saturating_sub(super::millis(missing)));
    opened.downtime = opened.downtime.map(|away| away + missing);
    let Begun { store, state, ages } = begun;
    if opened.lost > 0 {
        error!(lost = opened.lost, "events that were in the journal are gone");
    }
    let state = State { sinks_unknown: opened.cursors_unknown, ..state };
    mark.set(Marked { last: state.last, events: opened.events }, &ages)?;
    let (known, identity) = (inodes(dir), store.identity()?);
    restrict(dir);
    Ok((Files { store, mark, lock, ages, known, identity }, state, opened))
}

fn open_files(config: &config::Journal) -> Result<(Journal, Opened), StoreError> {
    let dir = config.dir.as_path();
    let (files, state, opened) = open_run(dir, config.sync == Sync::Always, 1)?;
    let mut reader = Store::open_reader(dir)?;
    reader.set_ages(files.ages.clone());
    let shared = Shared::new(state, Some(Reader::new(Some(reader))), config.sync, limits(config));
    let journal = Journal(Arc::new(shared));
    writer::start(&journal, Some(files));
    Ok((journal, opened))
}

/// A file on some file system: removed and made anew, it is another.
pub(super) type Inode = Option<(u64, u64)>;

/// Which files stand in the directory under the journal's names now.
pub(super) fn inodes(dir: &Path) -> Vec<Inode> {
    use std::os::unix::fs::MetadataExt;
    let paths = [store::file(dir), dir.join(MARK), dir.join(LOCK)];
    let inode = |path: &PathBuf| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    paths.iter().map(inode).collect()
}

/// Events hold personal data: the journal's files are for their owner alone, whoever made them.
pub(super) fn restrict(dir: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with("journal.");
        let Some(meta) = entry.metadata().ok().filter(|meta| ours && meta.is_file()) else {
            continue;
        };
        if meta.permissions().mode() & 0o077 != 0
            && let Err(error) = fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o600))
        {
            warn!(path = %entry.path().display(), %error, "others may read the journal's file");
        }
    }
}

/// A log without its database belongs to one that is gone.
pub(super) fn remove_orphans(dir: &Path) -> Result<(), StoreError> {
    if store::file(dir).exists() {
        return Ok(());
    }
    for suffix in COMPANIONS {
        remove(&companion(dir, "", suffix))?;
    }
    Ok(())
}

/// Moves away what stands where the journal's database was: it is another journal's.
pub(super) fn set_foreign_aside(dir: &Path) -> Result<(), StoreError> {
    let suffix = format!(".other-{}", clock::now());
    for companion_suffix in COMPANIONS {
        let from = companion(dir, "", companion_suffix);
        if from.exists() {
            rename(&from, &companion(dir, &suffix, companion_suffix))?;
        }
    }
    let path = companion(dir, &suffix, "");
    error!(set_aside = %path.display(), "another journal stood in the directory; it was set aside");
    Ok(())
}

/// What is known when a run begins.
#[derive(Debug, Clone, Copy)]
struct Before<'a> {
    always: bool,
    marked: Marked,
    anchor: Option<&'a Anchor>,
    at_least: Seq,
}

/// Opens the database and begins a run. Reads all the rows that every start reads: a database of a
/// newer format is left untouched, and what is broken further inside is found when it is read.
fn begin(dir: &Path, from: Before<'_>, recovered: bool) -> Result<(Begun, Opened), StoreError> {
    let Before { always, marked, anchor, at_least } = from;
    finish_exchange(dir)?;
    let mut store = Store::open(dir, always)?;
    let ages = take_up_time(&mut store, anchor)?;
    let mut opened = Opened::default();
    let (first, last) = store.bounds()?.unwrap_or_default();
    // What retention has removed was there.
    let last = last.max(store.removed()?);
    let cursors = store.cursors()?;
    let before = store.runs()?;
    // What a sink has accepted had a number, and what was marked as written had one.
    let accepted = cursors.iter().filter_map(|cursor| cursor.seq).max().unwrap_or(0);
    opened.lost = if marked.last > last || recovered {
        // The write-ahead log was lost or cut, or the whole database; perhaps the books with it.
        marked.events.saturating_sub(given(&before, first.saturating_sub(1), last))
    } else {
        given(&before, last, accepted)
    };
    let known = marked.last.max(accepted);
    if !recovered {
        // What is missing stands at the end; in front of it only retention removes.
        opened.lost = opened.lost.min(known.saturating_sub(last));
    }
    let next = store.begin_run_from(known, opened.lost, at_least)?;
    let runs = store.runs()?;
    opened.heartbeat = anchor.map(|anchor| anchor.wall).or(store.alive()?);
    opened.downtime_is_certain = anchor.is_some_and(Anchor::is_of_this_boot);
    opened.downtime = match (anchor, opened.heartbeat) {
        (Some(anchor), _) => Some(anchor.ago()),
        (None, Some(alive)) => clock::now().checked_sub(alive).map(Duration::from_millis),
        (None, None) => None,
    };
    let bounds = store.bounds()?;
    let oldest = bounds.map_or(next, |(first, _)| first);
    opened.events = given(&runs, oldest.saturating_sub(1), last);
    let mut state = State::new(next, runs, oldest, Health::Sound);
    state.last_received = store.received_at(last)?.unwrap_or(0);
    for kept in cursors {
        let at = kept.seq.filter(|seq| *seq < next).unwrap_or_else(|| {
            warn!(
                sink = kept.sink,
                "the sink's position was broken; beginning with the earliest event"
            );
            opened.cursors_lost.push(kept.sink.clone());
            oldest.saturating_sub(1)
        });
        // It holds back retention until it is known which sinks there are: see [`Journal::sinks`].
        state.cursors.insert(kept.sink.into(), Cursor::new(at, Some(at)));
    }
    store.replays()?;
    state.letters = store.letters_of_sinks()?.into_iter().collect();
    state.budget = StateBudget::of(store.state_sizes()?);
    state.size = store.size()?;
    Ok((Begun { store, state, ages }, opened))
}

/// A run that has begun.
struct Begun {
    store: Store,
    state: State,
    ages: Ages,
}

/// Carries the journal's time on from where it stood, and never back.
pub(super) fn take_up_time(store: &mut Store, anchor: Option<&Anchor>) -> Result<Ages, StoreError> {
    let last = store.last_time()?;
    let anchor = match (anchor, last) {
        (Some(anchor), Some((time, _))) => {
            Some(Anchor { time: anchor.time.max(time), ..anchor.clone() })
        }
        (Some(anchor), None) => Some(anchor.clone()),
        // The mark is lost: the last event is the last word.
        (None, Some((time, wall))) => {
            Some(Anchor { time, wall, since_boot: 0, boot: String::new(), off: None })
        }
        (None, None) => None,
    };
    let ages = Ages::from_here(anchor.as_ref(), store.offs()?);
    store.set_offs(ages.offs())?;
    store.set_ages(ages.clone());
    Ok(ages)
}

/// Opens the database while the relay runs.
pub(super) fn reopen(dir: &Path, always: bool) -> Result<Store, StoreError> {
    finish_exchange(dir)?;
    let store = Store::open(dir, always)?;
    store.bounds()?;
    store.runs()?;
    store.cursors()?;
    store.replays()?;
    store.letters_of_sinks()?;
    store.size()?;
    Ok(store)
}

/// Copies what can be read of the broken database into a new one, and puts that into its place.
/// `runs` are the books where the relay still has them.
pub(super) fn recover(
    dir: &Path,
    marked: Marked,
    runs: Option<&[Run]>,
) -> Result<Opened, StoreError> {
    error!("the journal is broken; recovering what can be read");
    let path = companion(dir, ".new", "");
    for suffix in COMPANIONS {
        remove(&companion(dir, ".new", suffix))?;
    }
    let mut new = Store::create(&path)?;
    let copied = match Store::open_broken(&store::file(dir)) {
        Ok(old) => copy(&old, &mut new, marked.last)?,
        Err(error) => {
            error!(%error, "nothing can be read of the broken journal");
            Copied::default()
        }
    };
    // While the relay runs it has the books, and what is missing at the end counts here; at a start
    // that is counted later.
    let end = runs.map_or(copied.last, |_| marked.last);
    let books = runs.map(<[Run]>::to_vec).or(copied.runs).unwrap_or(copied.ranges);
    let first = new.bounds()?.map_or(end + 1, |(first, _)| first);
    let mut lost = given(&books, first.saturating_sub(1), end).saturating_sub(copied.kept);
    if runs.is_some() {
        // Where the front of the file is lost too, the mark knows more.
        lost = lost.max(marked.events.saturating_sub(copied.kept));
    }
    new.set_books(&books, end.max(marked.last))?;
    new.finish()?;
    rename(&path, &companion(dir, ".recovered", ""))?;
    sync_dir(dir)?;
    let set_aside = finish_exchange(dir)?;
    info!(kept = copied.kept, lost, "journal recovered");
    Ok(Opened { lost, set_aside, cursors_unknown: copied.cursors_unknown, ..Opened::default() })
}

/// Sets the broken database aside and puts the recovered one into its place, if there is one.
fn finish_exchange(dir: &Path) -> Result<Option<PathBuf>, StoreError> {
    let recovered = companion(dir, ".recovered", "");
    if !recovered.exists() {
        return Ok(None);
    }
    let suffix = format!(".broken-{}", clock::now());
    for companion_suffix in COMPANIONS {
        let from = companion(dir, "", companion_suffix);
        if from.exists() {
            rename(&from, &companion(dir, &suffix, companion_suffix))?;
        }
    }
    rename(&recovered, &store::file(dir))?;
    sync_dir(dir)?;
    let broken = companion(dir, &suffix, "");
    error!(set_aside = %broken.display(), "the broken journal was set aside");
    limit_set_aside(dir);
    Ok(Some(broken))
}

/// Removes the oldest of the files that were set aside.
fn limit_set_aside(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let name = |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().into_string().ok();
    let broken = |name: &String| {
        let time = name.strip_prefix("journal.db.broken-");
        time.is_some_and(|time| time.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let mut names: Vec<_> = entries.filter_map(name).filter(broken).collect();
    // Their names end in a time of as many digits for the next centuries.
    names.sort_unstable();
    names.truncate(names.len().saturating_sub(SET_ASIDE));
    for name in names {
        for suffix in COMPANIONS {
            if let Err(error) = remove(&dir.join(format!("{name}{suffix}"))) {
                warn!(%error, "an old broken journal cannot be removed");
            }
        }
    }
}

/// What was copied.
#[derive(Debug, Default)]
struct Copied {
    kept: u64,
    last: Seq,
    /// `None`: they cannot be read.
    runs: Option<Vec<Run>>,
    /// The runs as they show in the events themselves.
    ranges: Vec<Run>,
    cursors_unknown: bool,
}

/// Copies sound rows; steps over what cannot be read.
fn copy(old: &Store, new: &mut Store, marked: Seq) -> Result<Copied, StoreError> {
    let mut copied = Copied::default();
    copy_events(old, new, marked, &mut copied)?;
    let mut write = Write::default();
    match old.cursors() {
        Ok(cursors) => {
            let earliest = new.bounds()?.map_or(0, |(first, _)| first.saturating_sub(1));
            for kept in cursors {
                write.cursors.push((kept.sink.into(), kept.seq.unwrap_or(earliest)));
            }
        }
        Err(error) => {
            error!(%error, "the positions of the sinks are lost; they begin with the earliest event");
            copied.cursors_unknown = true;
        }
    }
    write.dead = old.dead_letters(None).unwrap_or_else(|error| {
        error!(%error, "the dead letters are lost");
        Vec::new()
    });
    // A file from before the table has none, and what is lost of it is fetched again.
    write.state = old.state().unwrap_or_default();
    new.write(&write)?;
    // Without them, ages are counted from the last time the machine was off.
    new.set_offs(&old.offs().unwrap_or_default())?;
    new.set_removed(old.removed().unwrap_or(0))?;
    copied.runs = old.runs().ok().filter(|runs| !runs.is_empty());
    Ok(copied)
}

impl Copied {
    fn note(&mut self, seq: Seq) {
        self.kept += 1;
        self.last = seq;
        match self.ranges.last_mut() {
            // A smaller jump is a loss; only a run that was not closed leaves out more.
            Some((_, Some(last))) if *last + LEFT_OUT > seq => *last = seq,
            _ => self.ranges.push((seq, Some(seq))),
        }
    }
}

fn copy_events(
    old: &Store,
    new: &mut Store,
    marked: Seq,
    copied: &mut Copied,
) -> Result<(), StoreError> {
    let limit = old.highest_guess().max(marked);
    let mut give_up = Instant::now() + RECOVERY;
    let mut after = 0;
    while Instant::now() < give_up {
        // A smaller reading may still get the row before the broken page.
        let read = old
            .read(after, usize::MAX, RECOVER_BYTES)
            .or_else(|_| old.read(after, usize::MAX, ONE_ROW));
        let Ok(read) = read else {
            match next_readable(old, after, limit) {
                Some(next) => after = next,
                None => break,
            }
            continue;
        };
        let Some(through) = read.through else { break };
        after = through;
        for record in &read.records {
            copied.note(record.seq);
        }
        if !read.records.is_empty() {
            give_up = Instant::now() + RECOVERY;
            new.write(&Write { records: read.records, ..Write::default() })?;
        }
    }
    Ok(())
}

/// The first position after `after` that can be read from. Reading always gets further from one
/// position than from the one before, so that beyond [`STEPS`] halving finds the border.
fn next_readable(old: &Store, after: Seq, limit: Seq) -> Option<Seq> {
    let readable = |seq: Seq| old.read(seq, usize::MAX, ONE_ROW).is_ok();
    let near = (after + STEPS).min(limit);
    if let Some(found) = (after + 1..=near).find(|seq| readable(*seq)) {
        return Some(found);
    }
    let (mut bad, mut leap) = (near, STEPS);
    loop {
        if bad >= limit {
            return None;
        }
        let good = bad.saturating_add(leap).min(limit);
        if readable(good) {
            return Some(border(bad, good, readable));
        }
        (bad, leap) = (good, leap.saturating_mul(2));
    }
}

/// Between a position that cannot be read from and one that can: the first that can.
pub(super) fn border(mut bad: Seq, mut good: Seq, readable: impl Fn(Seq) -> bool) -> Seq {
    while good - bad > 1 {
        let middle = bad + (good - bad) / 2;
        if readable(middle) {
            good = middle;
        } else {
            bad = middle;
        }
    }
    good
}

fn companion(dir: &Path, name: &str, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{name}{suffix}", store::file(dir).display()))
}

fn rename(from: &Path, to: &Path) -> Result<(), StoreError> {
    fs::rename(from, to).map_err(|source| StoreError::Io { path: from.to_owned(), source })
}

fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::Io { path: path.to_owned(), source })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// A name that was made or changed survives a loss of power.
fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|source| StoreError::Io { path: dir.to_owned(), source })
}

pub(super) fn make_dir(dir: &Path) -> Result<(), StoreError> {
    use std::os::unix::fs::DirBuilderExt;
    // Events hold personal data: nobody else's business.
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| StoreError::Io { path: dir.to_owned(), source })
}

pub(super) fn lock(dir: &Path) -> Result<Lock, StoreError> {
    let path = dir.join(LOCK);
    let failed = |source| StoreError::Io { path: path.clone(), source };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
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

/// What the mark says, for who only reads: the numbers, and when the relay last ran.
pub(super) fn read_mark(dir: &Path) -> (Marked, Option<Anchor>) {
    let read = File::open(dir.join(MARK)).and_then(|mut file| parse_mark(&mut file));
    read.map(|(marked, anchor, _)| (marked, anchor)).unwrap_or_default()
}

fn parse_mark(file: &mut File) -> io::Result<(Marked, Option<Anchor>, Duration)> {
    let mut bytes = Vec::new();
    io::Read::by_ref(file).take(512).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.lines();
    let marked = lines.next().and_then(Marked::parse).unwrap_or_default();
    let anchor = lines.next().and_then(Anchor::parse);
    Ok((marked, anchor, lines.next().and_then(Missing::parse).unwrap_or_default()))
}

impl Mark {
    /// Opens it, and answers what it says, with how long something had been missing then; nothing where
    /// it is new or broken.
    pub(super) fn open(dir: &Path) -> Result<(Self, Marked, Option<Anchor>, Duration), StoreError> {
        let path = dir.join(MARK);
        let failed = |source| StoreError::Io { path: path.clone(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        let (marked, anchor, missing) = parse_mark(&mut file).map_err(failed)?;
        let mark = Self { file, missing: Missing::default(), written: None };
        Ok((mark, marked, anchor, missing))
    }

    /// Writes it down, without waiting for the disk.
    pub(super) fn set(&mut self, marked: Marked, ages: &Ages) -> Result<(), StoreError> {
        let lines = marked.line() + &ages.anchor().line() + &self.missing.line();
        self.file.write_all_at(lines.as_bytes(), 0).map_err(Self::failed)?;
        self.written = Some((marked, Instant::now()));
        Ok(())
    }

    /// The same where it says something else, or is older than a heartbeat.
    pub(super) fn refresh(&mut self, marked: Marked, ages: &Ages) -> Result<(), StoreError> {
        let fresh = |(known, at): (Marked, Instant)| known == marked && at.elapsed() < HEARTBEAT;
        if self.written.is_some_and(fresh) { Ok(()) } else { self.set(marked, ages) }
    }

    /// Waits until the disk has it.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        self.file.sync_data().map_err(Self::failed)
    }

    fn failed(source: io::Error) -> StoreError {
        StoreError::Io { path: MARK.into(), source }
    }
}

impl Marked {
    /// Always of the same length, so that nothing of an older one is left behind it.
    pub(super) fn line(self) -> String {
        let Self { last, events } = self;
        format!("{last:020} {events:020} {:08x}\n", self.sum())
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let marked =
            Self { last: words.next()?.parse().ok()?, events: words.next()?.parse().ok()? };
        let sum = u32::from_str_radix(words.next()?, 16).ok()?;
        (sum == marked.sum()).then_some(marked)
    }

    fn sum(self) -> u32 {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&self.last.to_le_bytes());
        crc.update(&self.events.to_le_bytes());
        crc.finalize()
    }
}
