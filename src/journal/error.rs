//! Why the journal's files cannot be used.

use std::path::PathBuf;

use rusqlite::{ErrorCode, ffi};

use crate::base::fault;

/// The format that this version writes.
pub(super) const FORMAT: i64 = 1;

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the journal's database failed")]
    Sql(#[from] rusqlite::Error),
    #[error("cannot use {}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error(
        "{} has format {found}, written by a newer astro-relay; this one reads up to {FORMAT}. It is left untouched", path.display()
    )]
    Newer { path: PathBuf, found: i64 },
    #[error("{} is in use by {holder}", path.display())]
    Locked { path: PathBuf, holder: String },
    /// It has assigned numbers already that this run would assign again.
    #[error("the journal's numbers are beyond the clock's; restart the relay to take it up")]
    Numbers,
    /// Whoever read ended before it was done.
    #[error("reading the journal was interrupted")]
    Unread,
    #[error("the journal is being reopened, or is closed")]
    Reopening,
    /// What is kept elsewhere cannot be had.
    #[error("{0}")]
    Elsewhere(String),
}

impl StoreError {
    /// Whether the file's content is at fault, and not the disk or another process.
    pub fn is_corrupt(&self) -> bool {
        use ErrorCode as Code;
        let Self::Sql(error) = self else { return false };
        match error {
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
                    || failure.extended_code == ffi::SQLITE_IOERR_SHORT_READ
            }
            // The same, with the place in the statement.
            rusqlite::Error::SqlInputError { .. }
            | rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::Utf8Error(..) => true,
            _ => false,
        }
    }

    /// Whether a relay must not start for it: another one runs, or a newer one has been here. With
    /// anything else it runs from memory until the disk works.
    pub fn forbids_start(&self) -> bool {
        matches!(self, Self::Newer { .. } | Self::Locked { .. })
    }

    /// Whether the disk itself failed, a sync among its failures.
    pub(super) fn is_io(&self) -> bool {
        self.code() == Some(ErrorCode::SystemIoFailure)
    }

    /// Whether a sync failed: what was written since the last one may be on the disk or not.
    pub(super) fn is_sync(&self) -> bool {
        matches!(self, Self::Sql(rusqlite::Error::SqliteFailure(failure, _))
            if [ffi::SQLITE_IOERR_FSYNC, ffi::SQLITE_IOERR_DIR_FSYNC].contains(&failure.extended_code))
    }

    pub(super) fn is_full(&self) -> bool {
        self.code() == Some(ErrorCode::DiskFull)
    }

    /// Whether another process holds what was needed.
    pub(super) fn is_busy(&self) -> bool {
        self.code() == Some(ErrorCode::DatabaseBusy)
    }

    fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Sql(error) => error.sqlite_error_code(),
            _ => None,
        }
    }

    /// With its causes, in one line.
    pub(super) fn describe(&self) -> String {
        fault::chain(self)
    }
}

pub(super) fn corrupt(text: &str) -> StoreError {
    let code = ffi::Error::new(ffi::SQLITE_CORRUPT);
    rusqlite::Error::SqliteFailure(code, Some(text.to_owned())).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_disk_is_told_from_what_passes() {
        let error = |code| -> StoreError {
            rusqlite::Error::SqliteFailure(ffi::Error::new(code), None).into()
        };
        for code in [ffi::SQLITE_IOERR_FSYNC, ffi::SQLITE_IOERR_WRITE] {
            assert!(error(code).is_io());
        }
        for code in [ffi::SQLITE_BUSY, ffi::SQLITE_LOCKED, ffi::SQLITE_FULL, ffi::SQLITE_CORRUPT] {
            assert!(!error(code).is_io());
        }
    }
}
