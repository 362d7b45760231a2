//! The journal's file: SQLite in WAL mode.
//!
//! # Format (version 1, `PRAGMA user_version`)
//!
//! | table | holds |
//! |---|---|
//! | `batches` | one row for each batch of events that follow each other: the first's number, how many, when the last was received by the wall clock, and when the first by the journal's own [`age`]; the events are in `body`, see [`super::batch`] |
//! | `runs` | one row an opening of the journal: the first number it gave, and the last |
//! | `cursors` | per sink the number through which the far side has accepted |
//! | `dead_letters` | events that a far side refused, whole, with reason and time |
//! | `replays` | requests to hand events on again, with their progress |
//! | `state` | what is known of each channel's session, element by element; added later, without a new version: who does not know it leaves it alone |
//! | `meta` | `format` (the same as `user_version`), `reserved` (numbers up to it may have been given), `removed` (retention has removed numbers up to it), `clean` (closed in order), `alive` (when the relay last ended in order), `off …` (the times that the machine was off) |
//!
//! SQLite does not sum its pages, so each row carries a CRC-32 over all that matters in it: what has a
//! wrong sum is never handed out. Events are only ever removed from the front, and only
//! whole batches of them; hence a number missing inside a run is a loss, and can be counted.
//!
//! The format is written down twice, and a file counts as one of a newer relay only where both agree:
//! a flipped bit in the header must not keep a relay from starting.
//!
//! Commits are not synced (`synchronous=NORMAL`): [`super::writer`] forces the WAL to disk on its
//! interval, from a thread of its own; with `sync = "always"` each commit is (`FULL`).
//!
//! The one thing to know: this file knows SQL and nothing of tasks; every call blocks.

use std::{
    borrow::Cow,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use rusqlite::{
    Connection, OpenFlags, OptionalExtension, Params, Row, Transaction, TransactionBehavior,
    config::DbConfig, params,
};

use super::{
    age::{self, Ages},
    batch::{self, Encoder, Places},
    file as mark,
};
use crate::base::{
    clock::{self, UnixMillis},
    event::{Event, Origin, Record, Seq, Waited},
};

/// The format that this version writes.
const FORMAT: i64 = 1;

/// `AREL`: tells a journal from any other SQLite file.
const APPLICATION_ID: i64 = 0x4152_454c;

/// How many numbers are set aside at once. After a crash the numbering goes on behind them, so that a
/// number that was given but not kept is never given again. A million is a minute at 16,000 a second.
pub(super) const RESERVE: Seq = 1_000_000;

/// After a crash at least so many numbers are left out: what is set aside is renewed at its half.
pub(super) const LEFT_OUT: Seq = RESERVE / 2;

/// How long another process (the command line) may hold the file.
const BUSY: Duration = Duration::from_secs(5);

/// SQLite's own choice; what is counted in pages is not exact where it was another.
const PAGE: u64 = 4096;

/// What a dead letter costs beside its texts: its other columns and its place in the database.
const LETTER: u64 = 256;

/// Page cache of a connection that reads: it reads in order, more is of no use.
const CACHE_KIB: i64 = 512;

/// Page cache of the writer: a whole transaction, so that none of its pages is written twice.
const WRITER_CACHE_KIB: i64 = 2 * 1024;

const SCHEMA: &str = "
CREATE TABLE batches(
  first INTEGER PRIMARY KEY, count INTEGER NOT NULL, received INTEGER NOT NULL,
  crc INTEGER NOT NULL, time INTEGER, body BLOB NOT NULL);
CREATE TABLE runs(first INTEGER PRIMARY KEY, last INTEGER);
CREATE TABLE cursors(sink TEXT PRIMARY KEY, seq INTEGER NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE dead_letters(
  number INTEGER PRIMARY KEY AUTOINCREMENT, sink TEXT NOT NULL, at INTEGER NOT NULL,
  reason TEXT NOT NULL, retry INTEGER NOT NULL DEFAULT 0,
  seq INTEGER NOT NULL, received INTEGER NOT NULL, origin TEXT NOT NULL, id TEXT NOT NULL,
  key TEXT, topic TEXT NOT NULL, room TEXT NOT NULL, channel TEXT NOT NULL, ts TEXT NOT NULL,
  data_start INTEGER NOT NULL, data_end INTEGER NOT NULL, message TEXT NOT NULL,
  crc INTEGER NOT NULL, time INTEGER);
CREATE TABLE replays(
  number INTEGER PRIMARY KEY AUTOINCREMENT, sink TEXT NOT NULL, at INTEGER NOT NULL,
  position INTEGER NOT NULL, until INTEGER NOT NULL, topic TEXT);
CREATE TABLE meta(key TEXT PRIMARY KEY, value INTEGER NOT NULL);
";

/// Added to files of the same format that were made before it.
const STATE_SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS state(
  channel TEXT NOT NULL, element TEXT NOT NULL, value TEXT NOT NULL, at INTEGER NOT NULL,
  crc INTEGER NOT NULL, PRIMARY KEY(channel, element)) WITHOUT ROWID;
";

/// Tables of what are no events, and may grow.
const OTHERS: [&str; 3] = ["dead_letters", "state", "replays"];

/// Tables that got the journal's time later.
const TIMED: [&str; 2] = ["batches", "dead_letters"];

const EVENT_COLUMNS: &str = "seq, received, origin, id, key, topic, room, channel, ts, data_start, \
     data_end, message, crc, time";

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite says no.
    #[error("the journal's database failed")]
    Sql(#[from] rusqlite::Error),
    /// The directory or the file cannot be made or read.
    #[error("cannot use {}", path.display())]
    Io {
        /// What.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A newer version of the relay wrote it: it is left untouched.
    #[error(
        "{} has format {found}, written by a newer astro-relay; this one reads up to {FORMAT}. It is left untouched", path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: i64,
    },
    /// Another process has it.
    #[error("{} is in use by {holder}", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// Who has it.
        holder: String,
    },
    /// It gave numbers already that this run would give again.
    #[error("the journal's numbers are beyond the clock's; restart the relay to take it up")]
    Numbers,
    /// Whoever read ended before it was done.
    #[error("reading the journal was interrupted")]
    Unread,
    /// The disk had failed; come again. Or the journal was closed.
    #[error("the journal is being opened anew, or is closed")]
    Reopening,
}

impl StoreError {
    /// Whether the file's content is at fault, and not the disk or another process.
    pub fn is_corrupt(&self) -> bool {
        use rusqlite::ErrorCode as Code;
        match self {
            Self::Sql(error) => match error {
                rusqlite::Error::SqliteFailure(failure, _) => {
                    // A length beyond all reason, or a number that is there and is not found: the
                    // tree is broken, though SQLite has not noticed.
                    matches!(
                        failure.code,
                        Code::DatabaseCorrupt
                            | Code::NotADatabase
                            | Code::TooBig
                            | Code::ConstraintViolation
                    )
                    // A missing table or column in a file of our format.
                        || failure.extended_code == 1
                        // The file ends before a page that it should have.
                        || failure.extended_code == rusqlite::ffi::SQLITE_IOERR_SHORT_READ
                }
                // The same, with the place in the statement.
                rusqlite::Error::SqlInputError { .. }
                | rusqlite::Error::InvalidColumnType(..)
                | rusqlite::Error::FromSqlConversionFailure(..)
                | rusqlite::Error::IntegralValueOutOfRange(..)
                | rusqlite::Error::Utf8Error(..) => true,
                _ => false,
            },
            Self::Io { .. }
            | Self::Newer { .. }
            | Self::Locked { .. }
            | Self::Numbers
            | Self::Unread
            | Self::Reopening => false,
        }
    }

    /// Whether a relay must not start for it: another one runs, or a newer one has been here. With
    /// anything else it runs from memory until the disk works.
    pub fn forbids_start(&self) -> bool {
        matches!(self, Self::Newer { .. } | Self::Locked { .. })
    }

    /// Whether the disk itself failed, a sync among its failures.
    pub fn is_io(&self) -> bool {
        matches!(self, Self::Sql(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::SystemIoFailure))
    }

    /// Whether a sync failed: what was written since the last one may be on the disk or not.
    pub(super) fn is_sync(&self) -> bool {
        use rusqlite::ffi::{SQLITE_IOERR_DIR_FSYNC, SQLITE_IOERR_FSYNC};
        matches!(self, Self::Sql(rusqlite::Error::SqliteFailure(failure, _))
            if [SQLITE_IOERR_FSYNC, SQLITE_IOERR_DIR_FSYNC].contains(&failure.extended_code))
    }

    /// Whether there is no room.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Sql(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull))
    }
}

/// An event that a far side refused.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// Its number, from 1; 0 before it is kept.
    pub number: i64,
    /// The sink.
    pub sink: String,
    /// When it was refused.
    pub at: UnixMillis,
    /// The far side's words.
    pub reason: String,
    /// Whether somebody asked for it to be tried again.
    pub retry: bool,
    /// The event.
    pub record: Arc<Record>,
}

impl DeadLetter {
    /// Bytes that it takes in the journal, about: for its sink's budget.
    pub(super) fn bytes(&self) -> u64 {
        let texts = self.record.event.message.len() + self.reason.len();
        LETTER + u64::try_from(texts).unwrap_or(u64::MAX)
    }
}

/// The dead letters of a sink.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Letters {
    /// How many.
    pub count: u64,
    /// Bytes that they take, about.
    pub bytes: u64,
}

/// A dead letter that was tried again and rejected again.
#[derive(Debug, Clone)]
pub struct RejectedAgain {
    /// Its number.
    pub number: i64,
    /// When it was rejected.
    pub at: UnixMillis,
    /// The destination's words.
    pub reason: String,
}

/// A request to hand events on again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replay {
    /// Its number.
    pub number: i64,
    /// The sink.
    pub sink: String,
    /// The last event that was handed on, or the one before the first.
    pub position: Seq,
    /// The last event that is wanted.
    pub until: Seq,
    /// A topic pattern, if one is wanted.
    pub topic: Option<String>,
}

/// An opening of the journal: the first number that it gave, and the last where it has ended.
pub type Run = (Seq, Option<Seq>);

/// How many numbers after `after`, through `through`, were given to events in these runs.
pub fn given(runs: &[Run], after: Seq, through: Seq) -> u64 {
    let inside = |(first, last): &Run| {
        let low = (*first).max(after + 1);
        (last.unwrap_or(through).min(through) + 1).saturating_sub(low)
    };
    runs.iter().map(inside).sum()
}

/// A sink's position as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptCursor {
    /// The sink.
    pub sink: String,
    /// Through which event; `None`: its sum is wrong.
    pub seq: Option<Seq>,
}

/// An element of a channel's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateElement {
    /// The channel's label.
    pub channel: Box<str>,
    /// The element's name.
    pub element: Box<str>,
    /// Its value as JSON; `None`: it is gone.
    pub value: Option<Box<str>>,
    /// When it became that, or was gone.
    pub at: UnixMillis,
}

/// How large the value of an element is.
#[derive(Debug)]
pub(super) struct StateSize {
    pub(super) channel: Box<str>,
    pub(super) element: Box<str>,
    pub(super) value: usize,
}

/// What is written in one transaction.
#[derive(Debug, Default)]
pub struct Write {
    /// Events, in order.
    pub records: Vec<Arc<Record>>,
    /// Positions that have moved.
    pub cursors: Vec<(Arc<str>, Seq)>,
    /// Events that were refused.
    pub dead: Vec<DeadLetter>,
    /// Dead letters that were tried again in vain.
    pub refused: Vec<RejectedAgain>,
    /// Progress of replays: number and position; `None` where it is done.
    pub replays: Vec<(i64, Option<Seq>)>,
    /// Dead letters that are dealt with.
    pub settled: Vec<i64>,
    /// Elements of channels' states.
    pub state: Vec<StateElement>,
}

impl Write {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
            && self.cursors.is_empty()
            && self.dead.is_empty()
            && self.refused.is_empty()
            && self.replays.is_empty()
            && self.settled.is_empty()
            && self.state.is_empty()
    }
}

/// How full the write-ahead log is, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Log {
    /// Since it was begun from its front.
    pub(super) bytes: u64,
    /// Of these, what the database does not have yet.
    pub(super) unmoved: u64,
}

/// Events read from disk.
#[derive(Debug, Default)]
pub struct Read {
    /// In order.
    pub records: Vec<Arc<Record>>,
    /// Rows in between whose sum is wrong.
    pub damaged: u64,
    /// The last row looked at, damaged or not.
    pub through: Option<Seq>,
}

/// A row, and how old it is.
struct RowAge {
    first: Seq,
    count: u64,
    waited: Waited,
    age_to_delete: Duration,
}

/// A connection to the journal's file.
#[derive(Debug)]
pub struct Store {
    db: Connection,
    reserved: Seq,
    encoder: Encoder,
    ages: Ages,
    /// Whether it has a write-ahead log. Without one each commit is synced.
    logs: bool,
}

/// Its file in the journal's directory.
pub fn file(dir: &Path) -> PathBuf {
    dir.join("journal.db")
}

/// SQLite's write-ahead log beside it.
pub fn wal(dir: &Path) -> PathBuf {
    dir.join("journal.db-wal")
}

impl Store {
    /// Opens the file for writing; makes it where there is none.
    pub fn open(dir: &Path, always_sync: bool) -> Result<Self, StoreError> {
        Self::open_file(file(dir), always_sync)
    }

    fn open_file(path: PathBuf, always_sync: bool) -> Result<Self, StoreError> {
        let fresh = !path.exists();
        if fresh {
            make_private(&path)?;
        }
        let db = Connection::open(&path)?;
        db.busy_timeout(BUSY)?;
        if !fresh {
            known_format(&db, path)?;
        }
        let logs = begin_log(&db)?;
        let synchronous = if always_sync || !logs { "FULL" } else { "NORMAL" };
        db.execute_batch(&format!(
            "PRAGMA synchronous={synchronous};
             PRAGMA wal_autocheckpoint=0; PRAGMA cache_size=-{WRITER_CACHE_KIB};
             PRAGMA temp_store=MEMORY; PRAGMA foreign_keys=OFF; PRAGMA cell_size_check=ON;"
        ))?;
        db.set_prepared_statement_cache_capacity(32);
        let found: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if found == 0 {
            db.execute_batch(&format!(
                "BEGIN IMMEDIATE; {SCHEMA} INSERT INTO meta VALUES('format', {FORMAT});
                 PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={FORMAT}; COMMIT;"
            ))?;
        }
        db.execute_batch(STATE_SCHEMA)?;
        for table in TIMED {
            add_time(&db, table)?;
        }
        let reserved = meta(&db, "reserved")?.unwrap_or(0);
        Ok(Self { db, reserved, encoder: Encoder::default(), ages: Ages::default(), logs })
    }

    /// Makes a new file to copy into. It is complete only after [`Store::finish`].
    pub(super) fn create(path: &Path) -> Result<Self, StoreError> {
        let mut store = Self::open_file(path.to_owned(), false)?;
        store.ages = Ages::to_copy();
        // The whole copy must not stand in the write-ahead log once more.
        store.db.execute_batch("PRAGMA wal_autocheckpoint=1000")?;
        Ok(store)
    }

    /// Brings all into the one file, and to disk.
    pub(super) fn finish(self) -> Result<(), StoreError> {
        self.checkpoint(true)?;
        self.db.close().map_err(|(_, error)| error.into())
    }

    /// Opens the file for reading only: while the relay runs, or while it does not.
    pub fn open_reader(dir: &Path) -> Result<Self, StoreError> {
        let path = file(dir);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(&path, flags)?;
        db.busy_timeout(BUSY)?;
        known_format(&db, path)?;
        db.execute_batch(&format!(
            "PRAGMA query_only=ON; PRAGMA cache_size=-{CACHE_KIB}; PRAGMA cell_size_check=ON;"
        ))?;
        let ages = Ages::default();
        let mut store = Self { db, reserved: 0, encoder: Encoder::default(), ages, logs: true };
        store.ages = Ages::from_here(mark::read_mark(dir).1.as_ref(), store.offs()?);
        Ok(store)
    }

    /// Opens a broken file, to copy out of it what can be read; leaves it as it is.
    pub(super) fn open_broken(path: &Path) -> Result<Self, StoreError> {
        let db = Connection::open(path)?;
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        // A file of a former version is read in the same way. Where nothing can be added, nothing can
        // be read either, and that is found when it is read.
        for table in TIMED {
            if let Err(error) = add_time(&db, table) {
                tracing::debug!(table, %error, "no times in the broken journal");
            }
        }
        db.execute_batch("PRAGMA query_only=ON; PRAGMA cell_size_check=ON;")?;
        Ok(Self { db, reserved: 0, encoder: Encoder::default(), ages: Ages::to_copy(), logs: true })
    }

    /// Opens the file to move its write-ahead log, without disturbing the writer.
    pub(super) fn open_checkpointer(dir: &Path) -> Result<Self, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(file(dir), flags)?;
        db.execute_batch(&format!(
            "PRAGMA synchronous=NORMAL; PRAGMA cache_size=-{CACHE_KIB}; PRAGMA wal_autocheckpoint=0;"
        ))?;
        Ok(Self { db, reserved: 0, encoder: Encoder::default(), ages: Ages::default(), logs: true })
    }

    /// A number that is surely not smaller than the last one given; for a file whose order is broken.
    pub(super) fn highest_guess(&self) -> Seq {
        let last = self.bounds().ok().flatten().map_or(0, |(_, last)| last);
        let reserved = meta(&self.db, "reserved").ok().flatten().unwrap_or(0);
        last.max(reserved)
    }

    /// Takes over the books of a file that was recovered: its runs, and numbers up to `last` count as
    /// given.
    pub(super) fn set_books(&mut self, runs: &[Run], last: Seq) -> Result<(), StoreError> {
        let transaction = begin(&self.db)?;
        transaction.execute("DELETE FROM runs", [])?;
        for (first, last) in runs {
            transaction.execute(
                "INSERT INTO runs(first, last) VALUES(?1, ?2)",
                params![signed(*first), last.map(signed)],
            )?;
        }
        let reserved = last + RESERVE;
        set_meta(&transaction, "reserved", reserved)?;
        transaction.commit()?;
        self.reserved = reserved;
        Ok(())
    }

    /// Begins a run: decides where the numbering goes on, and closes the books of the run before.
    /// `known` is the last number of which it is known from elsewhere that it was given; `lost` events
    /// before it are not there, and are written down as a run of their own, so that each sink can be
    /// told.
    pub fn begin_run(&mut self, known: Seq, lost: u64) -> Result<Seq, StoreError> {
        self.begin_run_from(known, lost, 1)
    }

    /// The same, for a run that has given numbers from `at_least` on before it had a file.
    pub(super) fn begin_run_from(
        &mut self,
        known: Seq,
        lost: u64,
        at_least: Seq,
    ) -> Result<Seq, StoreError> {
        let last = self.bounds()?.map_or(0, |(_, last)| last).max(self.removed()?);
        let ended: Option<i64> =
            self.db.query_row("SELECT max(last) FROM runs", [], |row| row.get(0))?;
        let clean = meta(&self.db, "clean")?.unwrap_or(0) == 1;
        let reserved = if clean { 0 } else { self.reserved };
        let first = last.max(known).max(ended.map_or(0, unsigned)).max(reserved) + 1;
        let first = first.max(at_least);
        self.reserved = first + RESERVE;
        let transaction = begin(&self.db)?;
        transaction.execute(
            "UPDATE runs SET last = max(first - 1, ?1) WHERE last IS NULL",
            [signed(last)],
        )?;
        // A run that gave no number says nothing, and a relay that cannot start makes many of them.
        transaction.execute("DELETE FROM runs WHERE last < first", [])?;
        let lost = lost.min(known.saturating_sub(last));
        if lost > 0 {
            transaction.execute(
                "INSERT OR REPLACE INTO runs(first, last) VALUES(?1, ?2)",
                params![signed(known - lost + 1), signed(known)],
            )?;
        }
        transaction.execute(
            "INSERT OR REPLACE INTO runs(first, last) VALUES(?1, NULL)",
            [signed(first)],
        )?;
        set_meta(&transaction, "reserved", self.reserved)?;
        set_meta(&transaction, "clean", 0)?;
        transaction.commit()?;
        Ok(first)
    }

    /// Writes all of it, or none.
    pub fn write(&mut self, write: &Write) -> Result<(), StoreError> {
        let transaction = begin(&self.db)?;
        {
            let mut rest = write.records.as_slice();
            while let Some((batch, after)) = rest.split_at_checked(batch::length(rest).max(1)) {
                insert_batch(&transaction, batch, &self.ages, &mut self.encoder)?;
                rest = after;
            }
            let mut cursor = transaction.prepare_cached(
                "INSERT OR REPLACE INTO cursors(sink, seq, crc) VALUES(?1, ?2, ?3)",
            )?;
            for (sink, seq) in &write.cursors {
                cursor.execute(params![&**sink, signed(*seq), cursor_checksum(sink, *seq)])?;
            }
        }
        for letter in &write.dead {
            insert_dead_letter(&transaction, letter, &self.ages)?;
        }
        for again in &write.refused {
            transaction
                .prepare_cached(
                    "UPDATE dead_letters SET reason = ?2, at = ?3, retry = 0 WHERE number = ?1",
                )?
                .execute(params![again.number, again.reason, signed(again.at)])?;
        }
        for number in &write.settled {
            transaction.execute("DELETE FROM dead_letters WHERE number = ?1", [number])?;
        }
        for (number, position) in &write.replays {
            match position {
                Some(position) => transaction.execute(
                    "UPDATE replays SET position = ?2 WHERE number = ?1",
                    params![number, signed(*position)],
                )?,
                None => transaction.execute("DELETE FROM replays WHERE number = ?1", [number])?,
            };
        }
        write_state(&transaction, &write.state)?;
        let last = write.records.last().map_or(0, |record| record.seq);
        let mut reserved = self.reserved;
        if last + LEFT_OUT > reserved {
            reserved = last + RESERVE;
            set_meta(&transaction, "reserved", reserved)?;
        }
        transaction.commit()?;
        self.reserved = reserved;
        Ok(())
    }

    /// Events after `after`, in order: at most `limit`, and about `max_bytes`; where only the bytes
    /// limit it, to the end of a row.
    pub fn read(&self, after: Seq, limit: usize, max_bytes: usize) -> Result<Read, StoreError> {
        let mut statement = self.db.prepare_cached(
            "SELECT first, count, received, crc, body, time FROM batches WHERE first >= coalesce(
             (SELECT first FROM batches WHERE first <= ?1 ORDER BY first DESC LIMIT 1), 0)
             ORDER BY first",
        )?;
        let mut rows = statement.query([signed(after.saturating_add(1))])?;
        let mut read = Read::default();
        let (mut events, mut bytes) = (0, 0);
        let mut places = Places::default();
        let mut before = 0;
        while let Some(row) = rows.next()? {
            let batch = batch_row(row)?;
            // A page that leads backwards would be read for ever.
            if batch.first <= before {
                return Err(corrupt("rows out of order"));
            }
            before = batch.last().ok_or_else(|| corrupt("a row of no possible size"))?;
            if before <= after {
                continue;
            }
            let wanted = limit.saturating_sub(events);
            let body = row.get_ref(4)?.as_blob().unwrap_or_default();
            let sound = row.get::<_, u32>(3).is_ok_and(|sum| sum == batch::sum(batch, body));
            let decode = || batch::decode(batch, body, after + 1, wanted, &mut places);
            if let Some(records) = sound.then(decode).flatten() {
                read.through = records.last().map(|(seq, _)| *seq);
                events += records.len();
                bytes += records.iter().map(|(_, event)| event.weight()).sum::<usize>();
                let waited = self.waited(row.get(5)?, batch.received);
                let record = |(seq, event)| Arc::new(Record { seq, event, waited });
                read.records.extend(records.into_iter().map(record));
            } else {
                bytes += body.len();
                read.damaged += before - batch.first.max(after + 1) + 1;
                read.through = Some(before);
            }
            if events >= limit || bytes >= max_bytes {
                break;
            }
        }
        Ok(read)
    }

    /// All elements of all channels' states whose sum is right.
    pub fn state(&self) -> Result<Vec<StateElement>, StoreError> {
        let mut statement =
            self.db.prepare("SELECT channel, element, value, at, crc FROM state")?;
        let mut rows = statement.query([])?;
        let mut state = Vec::new();
        while let Some(row) = rows.next()? {
            let kept = StateElement {
                channel: row.get::<_, String>(0)?.into(),
                element: row.get::<_, String>(1)?.into(),
                value: Some(row.get::<_, String>(2)?.into()),
                at: unsigned(row.get(3)?),
            };
            if row.get::<_, u32>(4)? == state_checksum(&kept) {
                state.push(kept);
            }
        }
        Ok(state)
    }

    /// The position after which the newest `count` events come.
    pub fn before_newest(&self, count: usize) -> Result<Seq, StoreError> {
        let mut statement =
            self.db.prepare("SELECT first, count, received FROM batches ORDER BY first DESC")?;
        let mut rows = statement.query([])?;
        let mut wanted = u64::try_from(count).unwrap_or(u64::MAX);
        while let Some(row) = rows.next()? {
            let batch = batch_row(row)?;
            if batch.count >= wanted {
                return Ok((batch.first + batch.count - wanted).saturating_sub(1));
            }
            wanted -= batch.count;
        }
        Ok(0)
    }

    /// The first and the last event that are there.
    pub fn bounds(&self) -> Result<Option<(Seq, Seq)>, StoreError> {
        let row = |order: &str| {
            let sql = format!(
                "SELECT first, count, received FROM batches ORDER BY first {order} LIMIT 1"
            );
            let mut statement = self.db.prepare_cached(&sql)?;
            Ok::<_, StoreError>(statement.query_row([], |row| Ok(batch_row(row))).optional()?)
        };
        let (Some(first), Some(last)) = (row("ASC")?, row("DESC")?) else { return Ok(None) };
        let last = last?.last().ok_or_else(|| corrupt("a row of no possible size"))?;
        Ok(Some((first?.first, last)))
    }

    /// The last number before that one which was kept, or was removed by retention.
    pub(super) fn last_before(&self, first: Seq) -> Result<Seq, StoreError> {
        let last = self.bounds()?.map_or(0, |(_, last)| last).max(self.removed()?);
        Ok(last.min(first.saturating_sub(1)))
    }

    /// The runs: the first number of each, and the last where it has ended.
    pub fn runs(&self) -> Result<Vec<Run>, StoreError> {
        let mut statement = self.db.prepare("SELECT first, last FROM runs ORDER BY first")?;
        let rows = statement.query_map([], |row| {
            Ok((unsigned(row.get(0)?), row.get::<_, Option<i64>>(1)?.map(unsigned)))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// All cursors.
    pub fn cursors(&self) -> Result<Vec<KeptCursor>, StoreError> {
        let mut statement = self.db.prepare("SELECT sink, seq, crc FROM cursors ORDER BY sink")?;
        let rows = statement.query_map([], |row| {
            let sink: String = row.get(0)?;
            let seq = unsigned(row.get(1)?);
            let sound = row.get::<_, u32>(2)? == cursor_checksum(&sink, seq);
            Ok(KeptCursor { sink, seq: sound.then_some(seq) })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The first event received at or after that time of the wall clock as it is now; `None` if all are
    /// older.
    pub fn first_since(&self, since: UnixMillis) -> Result<Option<Seq>, StoreError> {
        let Some(age) = clock::now().checked_sub(since) else { return Ok(None) };
        let age = Duration::from_millis(age);
        self.first_where(|row| row.waited.so_far() <= age)
    }

    /// The first event that is not too old to be kept; `None` if all are.
    pub(super) fn first_to_keep(&self, age: Duration) -> Result<Option<Seq>, StoreError> {
        self.first_where(|row| row.age_to_delete <= age)
    }

    /// How old the first row is, for deleting it.
    pub(super) fn oldest_age(&self) -> Result<Option<Duration>, StoreError> {
        Ok(self.row_from(0)?.map(|row| row.age_to_delete))
    }

    /// The first event of the first row of which that holds, as it holds for all behind it: ages only
    /// fall as numbers grow, so a search by halves needs no index.
    fn first_where(&self, young: impl Fn(&RowAge) -> bool) -> Result<Option<Seq>, StoreError> {
        let Some((mut low, mut high)) = self.bounds()? else { return Ok(None) };
        let mut found = None;
        while low <= high {
            let middle = low + (high - low) / 2;
            match self.row_from(middle)? {
                Some(row) if !young(&row) => low = row.first + row.count.max(1),
                Some(row) => {
                    found = Some(row.first);
                    high = middle.saturating_sub(1);
                }
                None => high = middle.saturating_sub(1),
            }
            if high == 0 {
                break;
            }
        }
        Ok(found)
    }

    /// The first row that begins at that number or behind it.
    fn row_from(&self, seq: Seq) -> Result<Option<RowAge>, StoreError> {
        let mut statement = self.db.prepare_cached(
            "SELECT first, count, received, time FROM batches WHERE first >= ?1
             ORDER BY first LIMIT 1",
        )?;
        let mut rows = statement.query([signed(seq)])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let batch = batch_row(row)?;
        let time: Option<i64> = row.get(3)?;
        let waited = self.waited(time, batch.received);
        let age_to_delete = time
            .and_then(age::unpack)
            .map_or_else(|| waited.so_far(), |time| self.ages.age_to_delete(time));
        Ok(Some(RowAge { first: batch.first, count: batch.count, waited, age_to_delete }))
    }

    fn waited(&self, time: Option<i64>, received: UnixMillis) -> Waited {
        self.ages.waited(time.and_then(age::unpack), received)
    }

    /// How ages are told. Every connection of one process is told the same.
    pub(super) fn set_ages(&mut self, ages: Ages) {
        self.ages = ages;
    }

    /// The journal's time of the last row, and the wall clock's.
    pub(super) fn last_time(&self) -> Result<Option<(u64, UnixMillis)>, StoreError> {
        let mut statement =
            self.db.prepare("SELECT time, received FROM batches ORDER BY first DESC LIMIT 1")?;
        let mut rows = statement.query([])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let time = row.get::<_, Option<i64>>(0)?.and_then(age::unpack);
        let received = unsigned(row.get(1)?);
        Ok(time.map(|time| (time, received)))
    }

    /// The times that the machine was off, as they were written down, but for those before the first
    /// event.
    pub(super) fn offs(&self) -> Result<Vec<(u64, u64)>, StoreError> {
        let mut statement =
            self.db.prepare("SELECT key, value FROM meta WHERE key LIKE 'off %'")?;
        let rows =
            statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))?;
        let mut offs = Vec::new();
        for row in rows {
            let (key, length) = row?;
            if let Some(time) = key.strip_prefix("off ").and_then(|time| time.parse().ok()) {
                offs.push((time, unsigned(length)));
            }
        }
        Ok(offs)
    }

    /// Writes them down.
    pub(super) fn set_offs(&self, offs: &[(u64, u64)]) -> Result<(), StoreError> {
        for (time, length) in offs {
            set_meta(&self.db, &format!("off {time:020}"), *length)?;
        }
        Ok(())
    }

    /// Removes events from the front, no further than through `through`, in whole batches; answers how
    /// many.
    pub fn remove_through(&mut self, through: Seq) -> Result<u64, StoreError> {
        let which = "FROM batches WHERE first <= ?1 AND first + count - 1 <= ?1";
        let transaction = begin(&self.db)?;
        let events: i64 = transaction
            .prepare_cached(&format!("SELECT coalesce(sum(count), 0) {which}"))?
            .query_row([signed(through)], |row| row.get(0))?;
        if events > 0 {
            let last: i64 = transaction
                .prepare_cached(&format!("SELECT max(first + count - 1) {which}"))?
                .query_row([signed(through)], |row| row.get(0))?;
            transaction.prepare_cached(&format!("DELETE {which}"))?.execute([signed(through)])?;
            set_meta(&transaction, "removed", unsigned(last))?;
        }
        transaction.commit()?;
        Ok(unsigned(events))
    }

    /// The last number that retention has removed. Where nothing is left behind it, it alone tells that
    /// the numbers before it were given.
    pub(super) fn removed(&self) -> Result<Seq, StoreError> {
        Ok(meta(&self.db, "removed")?.unwrap_or(0))
    }

    /// Takes that over from a file that was recovered.
    pub(super) fn set_removed(&self, removed: Seq) -> Result<(), StoreError> {
        set_meta(&self.db, "removed", removed)
    }

    /// Forgets runs that ended before that number: there is nobody left to whom they could tell a loss.
    pub(super) fn prune_runs(&self, before: Seq) -> Result<(), StoreError> {
        self.db.execute("DELETE FROM runs WHERE last < ?1", [signed(before)])?;
        Ok(())
    }

    /// Removes the oldest batches that hold `count` events or somewhat more; answers how many that were.
    pub fn remove_oldest(&mut self, count: u64) -> Result<u64, StoreError> {
        let through = {
            let mut statement = self
                .db
                .prepare_cached("SELECT first, count, received FROM batches ORDER BY first")?;
            let mut rows = statement.query([])?;
            let (mut events, mut through) = (0, 0);
            while events < count
                && let Some(row) = rows.next()?
            {
                let batch = batch_row(row)?;
                events += batch.count;
                through = batch.last().ok_or_else(|| corrupt("a row of no possible size"))?;
            }
            through
        };
        self.remove_through(through)
    }

    /// The wall clock's time at which that event was received, or the next one that is there.
    pub fn received_at(&self, seq: Seq) -> Result<Option<UnixMillis>, StoreError> {
        let read = self.read(seq.saturating_sub(1), batch::EVENTS, 1)?;
        Ok(read.records.first().map(|record| record.event.received))
    }

    /// How long that event, or the next one that is there, has waited.
    pub fn waited_since(&self, seq: Seq) -> Result<Option<Waited>, StoreError> {
        let read = self.read(seq.saturating_sub(1), batch::EVENTS, 1)?;
        Ok(read.records.first().map(|record| record.waited))
    }

    /// Bytes in use: the database without its free pages.
    pub fn size(&self) -> Result<u64, StoreError> {
        let pragma = |name: &str| {
            self.db.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i64>(0))
        };
        let pages = pragma("page_count")? - pragma("freelist_count")?;
        Ok(unsigned(pages * pragma("page_size")?))
    }

    /// Moves what the write-ahead log holds into the database: as much as is possible without making
    /// anybody wait, or all of it. All of it or an error: what was not moved is not known to be safe.
    pub fn checkpoint(&self, all: bool) -> Result<(), StoreError> {
        let mode = if all { "TRUNCATE" } else { "PASSIVE" };
        let busy: bool =
            self.db.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| row.get(0))?;
        if all && busy {
            let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
            let text = "somebody reads in the journal".to_owned();
            return Err(rusqlite::Error::SqliteFailure(code, Some(text)).into());
        }
        Ok(())
    }

    /// How full the write-ahead log is.
    pub(super) fn log(&self) -> Result<Log, StoreError> {
        let (pages, moved) = self
            .db
            .prepare_cached("PRAGMA wal_checkpoint(NOOP)")?
            .query_row([], |row| Ok((row.get::<_, i64>(1)?, row.get::<_, i64>(2)?)))?;
        let bytes = |pages: i64| unsigned(pages) * PAGE;
        Ok(Log { bytes: bytes(pages), unmoved: bytes(pages - moved) })
    }

    /// Whether it has a write-ahead log.
    pub(super) fn has_log(&self) -> bool {
        self.logs
    }

    /// A number that tells this journal from every other; made at its first opening.
    pub(super) fn identity(&self) -> Result<u64, StoreError> {
        if let Some(identity) = meta(&self.db, "identity")? {
            return Ok(identity);
        }
        let identity = u64::from(fastrand::u32(1..));
        set_meta(&self.db, "identity", identity)?;
        Ok(identity)
    }

    /// It goes on for a journal whose file is gone.
    pub(super) fn set_identity(&self, identity: u64) -> Result<(), StoreError> {
        set_meta(&self.db, "identity", identity)
    }

    /// Bytes of everything but events: they have budgets of their own.
    pub(super) fn other_bytes(&self) -> Result<u64, StoreError> {
        let mut statement = self.db.prepare_cached(
            "SELECT coalesce(sum(pgsize), 0) FROM dbstat WHERE name = ?1 AND aggregate = TRUE",
        )?;
        let mut bytes = 0;
        for table in OTHERS {
            // Without rows each has a page, which is no room that anything takes from the events.
            bytes += unsigned(statement.query_row([table], |row| row.get(0))?).saturating_sub(PAGE);
        }
        Ok(bytes)
    }

    /// What each element of the channels' states takes.
    pub(super) fn state_sizes(&self) -> Result<Vec<StateSize>, StoreError> {
        let mut statement =
            self.db.prepare("SELECT channel, element, octet_length(value) FROM state")?;
        let rows = statement.query_map([], |row| {
            let (channel, element): (String, String) = (row.get(0)?, row.get(1)?);
            let value = length(row.get(2)?).unwrap_or(0);
            Ok(StateSize { channel: channel.into(), element: element.into(), value })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Whether it takes a write is seen by writing.
    pub(super) fn probe(&self) -> Result<(), StoreError> {
        set_meta(&self.db, "alive", clock::now())
    }

    /// A number that changes when another process has written.
    pub fn data_version(&self) -> Result<i64, StoreError> {
        Ok(self.db.query_row("PRAGMA data_version", [], |row| row.get(0))?)
    }

    /// When the relay last ran, where a former version wrote it down; this one does in the mark.
    pub fn alive(&self) -> Result<Option<UnixMillis>, StoreError> {
        meta(&self.db, "alive")
    }

    /// Says that the journal was closed in order; `last` is the last number that was given.
    pub fn close(self, last: Seq, alive: UnixMillis) -> Result<(), StoreError> {
        let transaction = begin(&self.db)?;
        set_meta(&transaction, "alive", alive)?;
        set_meta(&transaction, "clean", 1)?;
        transaction.execute(
            "UPDATE runs SET last = max(first - 1, ?1) WHERE last IS NULL",
            [signed(last)],
        )?;
        transaction.commit()?;
        self.checkpoint(true)?;
        self.db.close().map_err(|(_, error)| error.into())
    }

    /// Closes it and leaves the write-ahead log as it is, even where nobody else has it open.
    pub(super) fn abandon(self) -> Result<(), StoreError> {
        self.db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        self.db.close().map_err(|(_, error)| error.into())
    }

    /// Dead letters, oldest first; of one sink, or of all.
    pub fn dead_letters(&self, sink: Option<&str>) -> Result<Vec<DeadLetter>, StoreError> {
        self.letters("?1 IS NULL OR sink = ?1 ORDER BY number", params![sink])
    }

    /// Dead letters of `sink` that somebody wants to be tried again, oldest first: at most `limit`.
    pub fn to_retry(&self, sink: &str, limit: usize) -> Result<Vec<DeadLetter>, StoreError> {
        self.letters("sink = ?1 AND retry ORDER BY number LIMIT ?2", params![sink, place(limit)])
    }

    fn letters(&self, which: &str, params: impl Params) -> Result<Vec<DeadLetter>, StoreError> {
        let mut statement = self.db.prepare_cached(&format!(
            "SELECT number, sink, at, reason, retry, {EVENT_COLUMNS} FROM dead_letters WHERE {which}"
        ))?;
        let mut places = Places::default();
        let mut rows = statement.query(params)?;
        let mut letters = Vec::new();
        while let Some(row) = rows.next()? {
            let Some(record) = record(row, 5, &self.ages, &mut places) else { continue };
            letters.push(DeadLetter {
                number: row.get(0)?,
                sink: row.get(1)?,
                at: unsigned(row.get(2)?),
                reason: row.get(3)?,
                retry: row.get(4)?,
                record: Arc::new(record),
            });
        }
        Ok(letters)
    }

    /// The dead letters that each sink has, in figures.
    pub fn letters_of_sinks(&self) -> Result<Vec<(String, Letters)>, StoreError> {
        let mut statement = self.db.prepare_cached(
            "SELECT sink, count(*), sum(?1 + octet_length(message) + octet_length(reason))
             FROM dead_letters GROUP BY sink",
        )?;
        let rows = statement.query_map([signed(LETTER)], |row| {
            let letters = Letters { count: unsigned(row.get(1)?), bytes: unsigned(row.get(2)?) };
            Ok((row.get(0)?, letters))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// How many dead letters each sink has.
    pub fn dead_letter_counts(&self) -> Result<Vec<(String, u64)>, StoreError> {
        let letters = self.letters_of_sinks()?.into_iter();
        Ok(letters.map(|(sink, letters)| (sink, letters.count)).collect())
    }

    /// Asks for dead letters to be tried again; answers how many.
    pub fn retry_dead_letters(
        &self,
        numbers: Option<&[i64]>,
        sink: Option<&str>,
    ) -> Result<usize, StoreError> {
        self.each_dead_letter("UPDATE dead_letters SET retry = 1", numbers, sink)
    }

    /// Lets dead letters go; answers how many.
    pub fn drop_dead_letters(
        &self,
        numbers: Option<&[i64]>,
        sink: Option<&str>,
    ) -> Result<usize, StoreError> {
        self.each_dead_letter("DELETE FROM dead_letters", numbers, sink)
    }

    fn each_dead_letter(
        &self,
        what: &str,
        numbers: Option<&[i64]>,
        sink: Option<&str>,
    ) -> Result<usize, StoreError> {
        let Some(numbers) = numbers else {
            let sql = format!("{what} WHERE ?1 IS NULL OR sink = ?1");
            return Ok(self.db.execute(&sql, [sink])?);
        };
        let sql = format!("{what} WHERE number = ?2 AND (?1 IS NULL OR sink = ?1)");
        let mut done = 0;
        for number in numbers {
            done += self.db.execute(&sql, params![sink, number])?;
        }
        Ok(done)
    }

    /// Asks for events to be handed on again.
    pub fn request_replay(&self, replay: &Replay, at: UnixMillis) -> Result<(), StoreError> {
        self.db.execute(
            "INSERT INTO replays(sink, at, position, until, topic) VALUES(?1, ?2, ?3, ?4, ?5)",
            params![
                replay.sink,
                signed(at),
                signed(replay.position),
                signed(replay.until),
                replay.topic
            ],
        )?;
        Ok(())
    }

    /// Requests that are not done, oldest first.
    pub fn replays(&self) -> Result<Vec<Replay>, StoreError> {
        let mut statement = self.db.prepare_cached(
            "SELECT number, sink, position, until, topic FROM replays ORDER BY number",
        )?;
        let rows = statement.query_map([], |row| {
            Ok(Replay {
                number: row.get(0)?,
                sink: row.get(1)?,
                position: unsigned(row.get(2)?),
                until: unsigned(row.get(3)?),
                topic: row.get(4)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Lets a connection that only reads write too: for requests from the command line.
    pub fn allow_requests(&self) -> Result<(), StoreError> {
        Ok(self.db.execute_batch("PRAGMA query_only=OFF")?)
    }
}

/// Turns the write-ahead log on. SQLite answers in which mode it is, and where the file system does not
/// let several processes share memory that is another one.
pub(super) fn begin_log(db: &Connection) -> Result<bool, StoreError> {
    let mode: String = db.query_row("PRAGMA journal_mode=WAL", [], |row| row.get(0))?;
    let logs = mode == "wal";
    if !logs {
        tracing::warn!(
            mode,
            "this file system has no write-ahead log for the journal; each commit is synced instead"
        );
    }
    Ok(logs)
}

/// Makes a file that only its owner may read: events hold personal data. SQLite gives the files beside
/// it the same mode.
fn make_private(path: &Path) -> Result<(), StoreError> {
    use std::os::unix::fs::OpenOptionsExt;
    let file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
    file.map(drop).map_err(|source| StoreError::Io { path: path.to_owned(), source })
}

/// A transaction that writes. One that began by reading could find at its first write that another
/// process has written meanwhile, and fail for that.
fn begin(db: &Connection) -> Result<Transaction<'_>, StoreError> {
    Ok(Transaction::new_unchecked(db, TransactionBehavior::Immediate)?)
}

/// Refuses a file of a newer relay, and leaves it as it is.
fn known_format(db: &Connection, path: PathBuf) -> Result<(), StoreError> {
    let found: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if found <= FORMAT {
        return Ok(());
    }
    if meta(db, "format")? != Some(unsigned(found)) {
        return Err(corrupt("the header names a format that the file does not have"));
    }
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    Err(StoreError::Newer { path, found })
}

/// Adds the journal's time to a table that was made before it had one.
fn add_time(db: &Connection, table: &str) -> Result<(), StoreError> {
    let known: bool = db.query_row(
        "SELECT count(*) FROM pragma_table_info(?1) WHERE name = 'time'",
        [table],
        |row| row.get(0),
    )?;
    if !known {
        db.execute_batch(&format!("ALTER TABLE {table} ADD COLUMN time INTEGER"))?;
    }
    Ok(())
}

fn insert_dead_letter(db: &Connection, letter: &DeadLetter, ages: &Ages) -> Result<(), StoreError> {
    let (record, event) = (&letter.record, &letter.record.event);
    db.prepare_cached(
        "INSERT INTO dead_letters(sink, at, reason, seq, received, origin, id, key, topic, room,
         channel, ts, data_start, data_end, message, crc, time)
         VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16,?17)",
    )?
    .execute(params![
        letter.sink,
        signed(letter.at),
        letter.reason,
        signed(record.seq),
        signed(event.received),
        event.origin.as_str(),
        &*event.id,
        event.distinct_key.as_deref(),
        &*event.place.topic,
        &*event.place.room,
        &*event.place.channel,
        &*event.ts,
        place(event.data.start),
        place(event.data.end),
        text(&event.message),
        checksum(record),
        age::pack(ages.time(record.age())),
    ])?;
    Ok(())
}

fn meta(db: &Connection, key: &str) -> Result<Option<u64>, StoreError> {
    Ok(db
        .query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get::<_, i64>(0))
        .optional()?
        .map(unsigned))
}

fn set_meta(db: &Connection, key: &str, value: u64) -> Result<(), StoreError> {
    db.prepare_cached("INSERT OR REPLACE INTO meta(key, value) VALUES(?1, ?2)")?
        .execute(params![key, signed(value)])?;
    Ok(())
}

/// Reads an event from columns `from..`; `None` where its sum is wrong.
fn record(row: &Row<'_>, from: usize, ages: &Ages, places: &mut Places) -> Option<Record> {
    let text = |column| row.get_ref(from + column).ok()?.as_str().ok();
    let (topic, room, channel, message) = (text(5)?, text(6)?, text(7)?, text(11)?);
    let event = Event {
        received: unsigned(row.get(from + 1).ok()?),
        origin: Origin::from_word(text(2)?)?,
        id: text(3)?.into(),
        distinct_key: row.get_ref(from + 4).ok()?.as_str_or_null().ok()?.map(Into::into),
        place: places.of(topic, room, channel),
        ts: text(8)?.into(),
        data: length(row.get(from + 9).ok()?)?..length(row.get(from + 10).ok()?)?,
        message: Bytes::copy_from_slice(message.as_bytes()),
    };
    let time: Option<i64> = row.get(from + 13).ok()?;
    let waited = ages.waited(time.and_then(age::unpack), event.received);
    let record = Record { seq: unsigned(row.get(from).ok()?), event, waited };
    (row.get::<_, u32>(from + 12).ok()? == checksum(&record)).then_some(record)
}

/// Writes one batch as a row.
fn insert_batch(
    db: &Connection,
    records: &[Arc<Record>],
    ages: &Ages,
    encoder: &mut Encoder,
) -> Result<(), StoreError> {
    let (Some(first), Some(last)) = (records.first(), records.last()) else { return Ok(()) };
    let row = batch::Row {
        first: first.seq,
        count: u64::try_from(records.len()).unwrap_or(u64::MAX),
        received: last.event.received,
    };
    let body = encoder.encode(records);
    db.prepare_cached(
        "INSERT INTO batches(first, count, received, crc, time, body)
         VALUES(?1, ?2, ?3, ?4, ?5, ?6)",
    )?
    .execute(params![
        signed(row.first),
        signed(row.count),
        signed(row.received),
        batch::sum(row, body),
        age::pack(ages.time(first.age())),
        body,
    ])?;
    Ok(())
}

fn batch_row(row: &Row<'_>) -> Result<batch::Row, StoreError> {
    Ok(batch::Row {
        first: unsigned(row.get(0)?),
        count: unsigned(row.get(1)?),
        received: unsigned(row.get(2)?),
    })
}

/// Over everything that is handed out again.
fn checksum(record: &Record) -> u32 {
    let event = &record.event;
    let mut crc = crc32fast::Hasher::new();
    let key = event.distinct_key.as_deref().unwrap_or("");
    for number in [
        record.seq,
        event.received,
        u64::try_from(event.data.start).unwrap_or(u64::MAX),
        u64::try_from(event.data.end).unwrap_or(u64::MAX),
        u64::from(event.distinct_key.is_some()),
    ] {
        crc.update(&number.to_le_bytes());
    }
    for part in [
        event.origin.as_str().as_bytes(),
        event.id.as_bytes(),
        key.as_bytes(),
        event.place.topic.as_bytes(),
        event.place.room.as_bytes(),
        event.place.channel.as_bytes(),
        event.ts.as_bytes(),
        &event.message,
    ] {
        // With its length, so that nothing can slip from one field into the next.
        crc.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
        crc.update(part);
    }
    crc.finalize()
}

fn cursor_checksum(sink: &str, seq: Seq) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(sink.as_bytes());
    crc.update(&seq.to_le_bytes());
    crc.finalize()
}

fn write_state(db: &Connection, state: &[StateElement]) -> Result<(), StoreError> {
    for kept in state {
        match &kept.value {
            Some(value) => db
                .prepare_cached(
                    "INSERT OR REPLACE INTO state(channel, element, value, at, crc)
                     VALUES(?1, ?2, ?3, ?4, ?5)",
                )?
                .execute(params![
                    kept.channel,
                    kept.element,
                    value,
                    signed(kept.at),
                    state_checksum(kept)
                ])?,
            None => db
                .prepare_cached("DELETE FROM state WHERE channel = ?1 AND element = ?2")?
                .execute([&kept.channel, &kept.element])?,
        };
    }
    Ok(())
}

fn state_checksum(kept: &StateElement) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    for part in [&*kept.channel, &kept.element, kept.value.as_deref().unwrap_or_default()] {
        crc.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
        crc.update(part.as_bytes());
    }
    crc.update(&kept.at.to_le_bytes());
    crc.finalize()
}

fn corrupt(text: &str) -> StoreError {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
    rusqlite::Error::SqliteFailure(code, Some(text.to_owned())).into()
}

/// The message as text: it was read as UTF-8, so nothing is lost here.
fn text(message: &Bytes) -> Cow<'_, str> {
    // The usual way is several times as fast as the one that can replace what is wrong.
    std::str::from_utf8(message).map_or_else(|_| String::from_utf8_lossy(message), Cow::Borrowed)
}

/// SQLite's integers are signed; numbers and times stay far below the sign.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// A position in a message, or a count of rows.
fn place(position: usize) -> i64 {
    i64::try_from(position).unwrap_or(i64::MAX)
}

fn length(position: i64) -> Option<usize> {
    usize::try_from(position).ok()
}
