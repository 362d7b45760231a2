//! The journal's database: SQLite in WAL mode. Format and tables: [`schema`].
//!
//! SQLite does not sum its pages, so each row carries a CRC-32 over all that matters in it: what has a
//! wrong sum is never handed out.
//!
//! Commits are not synced (`synchronous=NORMAL`): [`super::syncer`] forces the log to disk on its
//! interval; with `sync = "always"` each commit is (`FULL`).
//!
//! This file and those below it know SQL and nothing of tasks; every call blocks.

mod changes;
mod copy;
mod events;
mod numbers;
mod requests;
mod schema;
mod state;

use std::{path::Path, sync::Arc, time::Duration};

use rusqlite::{
    Connection, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, config::DbConfig,
    params,
};

pub(crate) use self::requests::LetterChange;
pub use self::{
    changes::Changes,
    requests::{DeadLetter, Replay},
    state::StateElement,
};
pub(super) use self::{
    copy::Copied,
    requests::{Letters, RejectedAgain},
};
use super::{age::Ages, batch::Encoder, directory, error::StoreError, mark};
use crate::base::{
    clock::{self, UnixMillis},
    event::{Record, Seq},
};

/// How long another process (the command line) may hold the file.
const BUSY: Duration = Duration::from_secs(5);

/// How long one that reads may keep the log from being cut.
const BRIEF: Duration = Duration::from_millis(100);

/// Bytes of a page of a new database. A commit writes whole pages, and most change some hundred bytes in two of
/// them: with SQLite's own choice of 4096 an SD card wears twice as fast. A file that was made with another
/// keeps it.
const PAGE: u32 = 1024;

/// Page cache of a connection that reads: it reads in order, more is of no use.
const CACHE_KIB: i64 = 512;

/// Page cache of the writer: a whole transaction, so that none of its pages is written twice.
const WRITER_CACHE_KIB: i64 = 2 * 1024;

/// Tables of what are no events, and may grow.
const OTHERS: [&str; 3] = ["dead_letters", "state", "replays"];

/// What is written in one transaction.
#[derive(Debug, Default)]
pub struct Write {
    /// Events, in order.
    pub records: Vec<Arc<Record>>,
    /// Positions that have moved.
    pub cursors: Vec<(Arc<str>, Seq)>,
    /// All else.
    pub changes: Arc<Changes>,
}

impl Write {
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.cursors.is_empty() && self.changes.is_empty()
    }
}

/// A connection to the journal's database.
#[derive(Debug)]
pub struct Store {
    db: Connection,
    encoder: Encoder,
    ages: Ages,
    /// Whether it has a write-ahead log. Without one each commit is synced.
    logs: bool,
}

impl Store {
    /// Opens the file for writing; makes it where there is none.
    pub fn open(dir: &Path, always_sync: bool) -> Result<Self, StoreError> {
        let path = directory::database(dir);
        let fresh = !path.exists();
        if fresh {
            directory::open_private(&path)?;
        }
        let db = Connection::open(&path)?;
        db.busy_timeout(BUSY)?;
        if fresh {
            db.pragma_update(None, "page_size", PAGE)?;
        } else {
            schema::refuse_newer(&db, path.clone())?;
            schema::refuse_read_only(&db, &path)?;
        }
        let logs = schema::begin_log(&db)?;
        let synchronous = if always_sync || !logs { "FULL" } else { "NORMAL" };
        db.execute_batch(&format!(
            "PRAGMA synchronous={synchronous};
             PRAGMA wal_autocheckpoint=0; PRAGMA cache_size=-{WRITER_CACHE_KIB};
             PRAGMA temp_store=MEMORY; PRAGMA foreign_keys=OFF; PRAGMA cell_size_check=ON;"
        ))?;
        db.set_prepared_statement_cache_capacity(32);
        schema::make(&db)?;
        Ok(Self { logs, ..Self::of(db) })
    }

    fn of(db: Connection) -> Self {
        Self { db, encoder: Encoder::default(), ages: Ages::default(), logs: true }
    }

    /// Makes a new file to copy into: it is complete, and on disk, after [`Store::finish`].
    pub(super) fn create(path: &Path) -> Result<Self, StoreError> {
        directory::open_private(path)?;
        let db = Connection::open(path)?;
        db.pragma_update(None, "page_size", PAGE)?;
        db.execute_batch("PRAGMA journal_mode=MEMORY; PRAGMA synchronous=OFF")?;
        schema::make(&db)?;
        Ok(Self::of(db))
    }

    pub(super) fn finish(self, path: &Path) -> Result<(), StoreError> {
        self.db.close().map_err(|(_, error)| error)?;
        std::fs::File::open(path)
            .and_then(|file| file.sync_all())
            .map_err(|source| StoreError::Io { path: path.to_owned(), source })
    }

    /// Opens the file for reading only: while the relay runs, or while it does not.
    pub fn open_reader(dir: &Path) -> Result<Self, StoreError> {
        let path = directory::database(dir);
        let db = Connection::open_with_flags(&path, existing())?;
        db.busy_timeout(BUSY)?;
        schema::refuse_newer(&db, path)?;
        db.execute_batch(&format!(
            "PRAGMA query_only=ON; PRAGMA cache_size=-{CACHE_KIB}; PRAGMA cell_size_check=ON;"
        ))?;
        let mut store = Self::of(db);
        store.ages = Ages::from_here(mark::read(dir).anchor.as_ref(), store.offs()?);
        Ok(store)
    }

    /// Opens the file to move its write-ahead log, without disturbing the writer.
    pub(super) fn open_checkpointer(dir: &Path) -> Result<Self, StoreError> {
        let db = Connection::open_with_flags(directory::database(dir), existing())?;
        db.execute_batch(&format!(
            "PRAGMA synchronous=NORMAL; PRAGMA cache_size=-{CACHE_KIB}; PRAGMA wal_autocheckpoint=0;"
        ))?;
        Ok(Self::of(db))
    }

    /// Opens a broken file, to copy out of it what can be read; leaves it as it is.
    pub(super) fn open_broken(dir: &Path) -> Result<Self, StoreError> {
        let db = Connection::open(directory::database(dir))?;
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        db.execute_batch("PRAGMA query_only=ON; PRAGMA cell_size_check=ON;")?;
        Ok(Self::of(db))
    }

    pub(super) fn ages(&self) -> &Ages {
        &self.ages
    }

    /// How ages are told. Every connection of one process is told the same.
    pub(super) fn set_ages(&mut self, ages: Ages) {
        self.ages = ages;
    }

    /// Writes all of it, or none.
    pub fn write(&mut self, write: &Write) -> Result<(), StoreError> {
        let transaction = begin(&self.db)?;
        events::insert(&transaction, &write.records, &self.ages, &mut self.encoder)?;
        for (sink, seq) in &write.cursors {
            numbers::set_cursor(&transaction, sink, *seq)?;
        }
        let changes = &write.changes;
        requests::write(&transaction, changes, &self.ages)?;
        for element in changes.state.values() {
            state::write(&transaction, element)?;
        }
        Ok(transaction.commit()?)
    }

    /// Bytes in use: the database without its free pages.
    pub fn size(&self) -> Result<u64, StoreError> {
        let free = self.pragma("freelist_count")?;
        Ok(self.pragma("page_count")?.saturating_sub(free) * self.pragma("page_size")?)
    }

    /// Bytes of its free pages: what is written takes them first.
    pub(super) fn unused(&self) -> Result<u64, StoreError> {
        Ok(self.pragma("freelist_count")? * self.pragma("page_size")?)
    }

    /// A number that SQLite tells of the database.
    fn pragma(&self, name: &str) -> Result<u64, StoreError> {
        let mut statement = self.db.prepare_cached(&format!("PRAGMA {name}"))?;
        Ok(unsigned(statement.query_row([], |row| row.get(0))?))
    }

    /// Bytes of everything but events: they have budgets of their own.
    pub(super) fn other_bytes(&self) -> Result<u64, StoreError> {
        let mut statement = self.db.prepare_cached(
            "SELECT coalesce(sum(pgsize), 0) FROM dbstat WHERE name = ?1 AND aggregate = TRUE",
        )?;
        let page = self.pragma("page_size")?;
        let mut bytes = 0;
        for table in OTHERS {
            // Without rows each has a page, which is no room that anything takes from the events.
            bytes += unsigned(statement.query_row([table], |row| row.get(0))?).saturating_sub(page);
        }
        Ok(bytes)
    }

    /// Moves what the write-ahead log holds into the database: as much as is possible without making
    /// anybody wait, or all of it. All of it or an error: what was not moved is not known to be safe.
    pub(super) fn checkpoint(&self, all: bool) -> Result<(), StoreError> {
        let mode = if all { "TRUNCATE" } else { "PASSIVE" };
        // Whoever reads in it may do so for hours, and nothing is written meanwhile.
        self.db.busy_timeout(BRIEF)?;
        let busy =
            self.db.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| row.get(0));
        self.db.busy_timeout(BUSY)?;
        let busy: bool = busy?;
        if all && busy {
            let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
            let text = "somebody reads in the journal".to_owned();
            return Err(rusqlite::Error::SqliteFailure(code, Some(text)).into());
        }
        Ok(())
    }

    /// Bytes of the write-ahead log that the database does not have yet.
    pub(super) fn unmoved_log(&self) -> Result<u64, StoreError> {
        let pages = self
            .db
            .prepare_cached("PRAGMA wal_checkpoint(NOOP)")?
            .query_row([], |row| Ok(row.get::<_, i64>(1)? - row.get::<_, i64>(2)?))?;
        Ok(unsigned(pages) * self.pragma("page_size")?)
    }

    pub(super) fn has_log(&self) -> bool {
        self.logs
    }

    /// A number that tells this journal from every other; made at its first opening.
    pub(super) fn identity(&self) -> Result<u64, StoreError> {
        if let Some(identity) = meta(&self.db, "identity")? {
            return Ok(identity);
        }
        let identity = u64::from(fastrand::u32(1..));
        self.set_identity(identity)?;
        Ok(identity)
    }

    /// It goes on for a journal whose file is gone.
    pub(super) fn set_identity(&self, identity: u64) -> Result<(), StoreError> {
        set_meta(&self.db, "identity", identity)
    }

    /// Whether it takes a write is seen by writing.
    pub(super) fn probe(&self) -> Result<(), StoreError> {
        set_meta(&self.db, "alive", clock::now())
    }

    /// A number that changes when another process has written.
    pub(super) fn data_version(&self) -> Result<i64, StoreError> {
        Ok(self.db.query_row("PRAGMA data_version", [], |row| row.get(0))?)
    }

    /// Lets a connection that only reads write too: for requests from the command line.
    pub fn allow_requests(&self) -> Result<(), StoreError> {
        Ok(self.db.execute_batch("PRAGMA query_only=OFF")?)
    }

    /// Says that the journal was closed in order, and when; `last` is the last number that was assigned.
    pub fn close(self, last: Seq, at: UnixMillis) -> Result<(), StoreError> {
        let transaction = begin(&self.db)?;
        set_meta(&transaction, "alive", at)?;
        set_meta(&transaction, "clean", 1)?;
        numbers::end_run(&transaction, last)?;
        transaction.commit()?;
        self.checkpoint(true)?;
        self.db.close().map_err(|(_, error)| error.into())
    }

    /// Closes it and leaves the write-ahead log as it is, even where nobody else has it open.
    pub(super) fn abandon(self) -> Result<(), StoreError> {
        self.db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        self.db.close().map_err(|(_, error)| error.into())
    }
}

fn existing() -> OpenFlags {
    OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX
}

/// A transaction that writes. One that began by reading could find at its first write that another
/// process has written meanwhile, and fail for that.
fn begin(db: &Connection) -> Result<Transaction<'_>, StoreError> {
    Ok(Transaction::new_unchecked(db, TransactionBehavior::Immediate)?)
}

fn meta(db: &Connection, key: &str) -> Result<Option<u64>, StoreError> {
    let mut statement = db.prepare_cached("SELECT value FROM meta WHERE key = ?1")?;
    Ok(statement.query_row([key], |row| row.get::<_, i64>(0)).optional()?.map(unsigned))
}

fn set_meta(db: &Connection, key: &str, value: u64) -> Result<(), StoreError> {
    db.prepare_cached("INSERT OR REPLACE INTO meta(key, value) VALUES(?1, ?2)")?
        .execute(params![key, signed(value)])?;
    Ok(())
}

/// SQLite's integers are signed; numbers and times stay far below the sign.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// A length, a position in a text, or a count of rows.
fn from_usize(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn to_usize(number: i64) -> Option<usize> {
    usize::try_from(number).ok()
}

/// A sum over texts, each with its length, so that nothing can slip from one into the next.
fn sum_texts(crc: &mut crc32fast::Hasher, texts: &[&[u8]]) {
    for text in texts {
        crc.update(&u64::try_from(text.len()).unwrap_or(u64::MAX).to_le_bytes());
        crc.update(text);
    }
}
