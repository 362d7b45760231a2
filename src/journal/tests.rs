//! The journal's sums, which everything that is told as lost depends on. The journal as a whole is
//! tested from outside, in `tests/it/journal`.

use std::sync::Arc;

use rusqlite::{Connection, OpenFlags, ffi};

use super::{
    Demand, Health, Journal, State,
    file::{Marked, border},
    store::{StoreError, begin_log, given},
    writer,
};

#[test]
fn numbers_that_were_left_out_are_not_counted() {
    let runs = [(1, Some(10)), (1_000_001, Some(1_000_005)), (2_000_001, None)];
    assert_eq!(given(&runs, 0, 2_000_003), 10 + 5 + 3);
    assert_eq!(given(&runs, 10, 1_000_000), 0);
    assert_eq!(given(&runs, 7, 1_000_002), 3 + 2);
    assert_eq!(given(&runs, 1_000_003, 1_999_999), 2);
    assert_eq!(given(&runs, 2_000_002, 2_000_002), 0);
    assert_eq!(given(&[], 0, 100), 0);
}

#[test]
fn the_mark_is_believed_only_whole() {
    let marked = Marked { last: 12_345, events: 678 };
    let line = marked.line();
    assert_eq!(Marked::parse(&line), Some(marked));
    assert_eq!(Marked { last: u64::MAX, events: u64::MAX }.line().len(), line.len());
    for broken in ["", "trash", &line[..30], &line.replace('8', "9"), &line.replace("678", "679")] {
        assert_eq!(Marked::parse(broken), None, "{broken:?}");
    }
}

#[test]
fn the_first_number_that_can_be_read_is_found_by_halving() {
    for first in [101, 102, 150, 199, 200] {
        assert_eq!(border(100, 200, |seq| seq >= first), first);
    }
}

#[test]
fn a_new_journal_has_nothing_to_count() {
    let state = State::new(1, vec![(1, None)], 1, Health::Sound);
    assert_eq!((state.given(0, 100), state.marked()), (0, Marked::default()));
}

#[tokio::test]
async fn a_panicked_thread_is_noticed() {
    let journal = Journal::in_memory(1 << 20);
    journal.0.lock().threads = 1;
    writer::spawn("test", Arc::clone(&journal.0), || panic!("as the test says"));
    journal.thread_failed().await;
    let health = journal.figures().health;
    assert!(matches!(health, Health::Degraded(_)), "{health:?}");
    assert_eq!(*journal.health().borrow(), health);
    // A thread that ends in order is none.
    let journal = Journal::in_memory(1 << 20);
    journal.0.lock().threads = 1;
    journal.0.lock().demand = Demand::End;
    writer::spawn("test", Arc::clone(&journal.0), || ());
    journal.close();
    assert!(!*journal.0.failed.borrow());
}

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

#[test]
fn a_failed_sync_is_told_from_what_passes() {
    let error =
        |code| -> StoreError { rusqlite::Error::SqliteFailure(ffi::Error::new(code), None).into() };
    for code in [ffi::SQLITE_IOERR_FSYNC, ffi::SQLITE_IOERR_WRITE] {
        assert!(error(code).is_io());
    }
    for code in [ffi::SQLITE_BUSY, ffi::SQLITE_LOCKED, ffi::SQLITE_FULL, ffi::SQLITE_CORRUPT] {
        assert!(!error(code).is_io());
    }
}
