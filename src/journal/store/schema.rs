//! The tables. Format version 1 (`PRAGMA user_version`):
//!
//! | table | holds |
//! |---|---|
//! | `batches` | one row for each batch of events that follow each other: the first's number, how many, when the last was received by the wall clock, and when the first by the journal's own time ([`crate::journal::age`]); the events are in `body`, see [`crate::journal::batch`] |
//! | `runs` | one row an opening of the journal: the first number it assigned, and the last |
//! | `cursors` | per sink the number through which the destination has accepted |
//! | `dead_letters` | events that a destination rejected, whole, with reason and time |
//! | `replays` | requests to hand events on again, with their progress |
//! | `state` | what is known of each channel's session, element by element; added later, without a new version: who does not know it leaves it alone |
//! | `meta` | `format` (the same as `user_version`), `identity` (of this journal), `removed` (retention has removed numbers up to it), `clean` (closed in order), `off …` (the times that the machine was off), `alive` (when the relay last ran, by the wall clock: for where the mark is missing); of a former version: `reserved` |
//!
//! The format is written down twice, and a file counts as one of a newer relay only where both agree:
//! a flipped bit in the header must not keep a relay from starting.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, MAIN_DB, config::DbConfig};

use super::{meta, unsigned};
use crate::journal::error::{FORMAT, StoreError, corrupt};

/// `AREL`: tells a journal from any other SQLite file.
const APPLICATION_ID: i64 = 0x4152_454c;

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
  position INTEGER NOT NULL, until INTEGER NOT NULL, topic TEXT, condition TEXT);
CREATE TABLE meta(key TEXT PRIMARY KEY, value INTEGER NOT NULL);
";

/// Added to files of the same format that were made before it.
const STATE_SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS state(
  channel TEXT NOT NULL, element TEXT NOT NULL, value TEXT NOT NULL, at INTEGER NOT NULL,
  crc INTEGER NOT NULL, PRIMARY KEY(channel, element)) WITHOUT ROWID;
";

/// Columns that tables got later, with their types.
const ADDED: [(&str, &str, &str); 3] = [
    ("batches", "time", "INTEGER"),
    ("dead_letters", "time", "INTEGER"),
    ("replays", "condition", "TEXT"),
];

/// Makes the tables, and adds to a former version's what it lacks.
pub(super) fn make(db: &Connection) -> Result<(), StoreError> {
    let found: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if found == 0 {
        db.execute_batch(&format!(
            "BEGIN IMMEDIATE; {SCHEMA} INSERT INTO meta VALUES('format', {FORMAT});
             PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={FORMAT}; COMMIT;"
        ))?;
    }
    db.execute_batch(STATE_SCHEMA)?;
    for (table, column, kind) in ADDED {
        if !has_column(db, table, column)? {
            db.execute_batch(&format!("ALTER TABLE {table} ADD COLUMN {column} {kind}"))?;
        }
    }
    Ok(())
}

/// Whether a table has a column: that of a former version lacks some.
pub(super) fn has_column(db: &Connection, table: &str, column: &str) -> Result<bool, StoreError> {
    let sql = "SELECT count(*) FROM pragma_table_info(?1) WHERE name = ?2";
    Ok(db.query_row(sql, [table, column], |row| row.get(0))?)
}

/// Refuses a file of a newer relay, and leaves it as it is.
pub(super) fn refuse_newer(db: &Connection, path: PathBuf) -> Result<(), StoreError> {
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

/// SQLite only reads a file whose header says that a newer version of it must write it, and says so at the
/// first write, as it does where the file itself is read-only.
pub(super) fn refuse_read_only(db: &Connection, path: &Path) -> Result<(), StoreError> {
    let may_write = rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok();
    if may_write && db.is_readonly(MAIN_DB)? {
        return Err(corrupt("the header names a version that SQLite does not write"));
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use rusqlite::OpenFlags;

    use super::*;

    /// SQLite turns nothing on there, and says so only to who looks.
    #[test]
    fn a_file_system_without_shared_memory_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let flags = OpenFlags::default();
        let path = dir.path().join("with");
        let with = Connection::open_with_flags(path, flags).unwrap();
        assert!(begin_log(&with).unwrap());
        let path = dir.path().join("without");
        let without = Connection::open_with_flags_and_vfs(path, flags, c"unix-dotfile").unwrap();
        assert!(!begin_log(&without).unwrap());
    }
}
