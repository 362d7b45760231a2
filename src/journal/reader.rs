//! The connection that reads the journal beside its writer.
//!
//! It is given up while the file is reopened after a failed sync. SQLite
//! then trusts nothing that a connection remembers of the write-ahead log, and reads it once more with
//! its sums; who reads meanwhile gets an error and comes again. It is given up too when the journal is
//! closed, by the writer.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering},
};

use super::{error::StoreError, store::Store};
use crate::base::sync::lock;

#[derive(Debug)]
pub(super) struct SharedReader {
    store: Mutex<Option<Store>>,
    /// Whether there ever was one: a relay may have started without its disk.
    opened: AtomicBool,
}

impl SharedReader {
    /// `None`: the file could not be opened yet.
    pub(super) fn new(store: Option<Store>) -> Self {
        Self { opened: AtomicBool::new(store.is_some()), store: Mutex::new(store) }
    }

    /// Whether there is a file to read in, or was one.
    pub(super) fn was_opened(&self) -> bool {
        self.opened.load(Ordering::Acquire)
    }

    /// Reads with it. Blocks on the disk, and on whoever reads already.
    pub(super) fn read<T>(
        &self,
        what: impl FnOnce(&Store) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        lock(&self.store).as_ref().map_or(Err(StoreError::Reopening), what)
    }

    pub(super) fn replace(&self, store: Store) {
        *lock(&self.store) = Some(store);
        self.opened.store(true, Ordering::Release);
    }

    /// Closes it, and leaves the write-ahead log as it is.
    pub(super) fn close(&self) -> Result<(), StoreError> {
        lock(&self.store).take().map_or(Ok(()), Store::abandon)
    }
}
