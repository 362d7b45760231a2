//! Starting the journal: with its files, or from memory where the disk does not let them be opened.

use std::sync::Arc;

use tracing::error;

use super::{
    Health, Journal,
    age::Anchor,
    error::StoreError,
    mark::{self, MarkContent},
    memory::Memory,
    open::{JournalFiles, Opened, open_files},
    reader::SharedReader,
    runs::LEFT_OUT,
    shared::{JournalLimits, Shared},
    store::Store,
    writer,
};
use crate::{
    base::clock,
    config::{self, Sync},
};

/// Opens the journal, or begins without it where the disk does not let it be opened: the writer tries
/// again until it does.
pub(super) fn open(config: &config::Journal) -> Result<(Journal, Opened), StoreError> {
    match open_files(&config.dir, config.sync == Sync::Always, 1) {
        Ok((store, files, memory, opened)) => {
            let mut reader = Store::open_reader(&config.dir)?;
            reader.set_ages(files.ages.clone());
            Ok((start(config, memory, Some(reader), Some((store, files))), opened))
        }
        Err(error) if error.forbids_start() => Err(error),
        Err(error) => Ok(begin_in_memory(config, &error)),
    }
}

fn start(
    config: &config::Journal,
    memory: Memory,
    reader: Option<Store>,
    files: Option<(Store, JournalFiles)>,
) -> Journal {
    let reader = Some(SharedReader::new(reader));
    let shared = Shared::new(memory, reader, config.sync, JournalLimits::of(config));
    let journal = Journal(Arc::new(shared));
    writer::start(&journal.0, files);
    journal
}

/// Numbers are assigned that no earlier run can have reached: microseconds since 1970.
fn begin_in_memory(config: &config::Journal, error: &StoreError) -> (Journal, Opened) {
    let reason = error.describe();
    error!(
        reason,
        dir = %config.dir.display(),
        "the journal cannot be opened; events are kept in memory until it can"
    );
    // Often it can still be read.
    let MarkContent { marked, anchor, .. } = mark::read(&config.dir);
    let first = clock::now_micros().max(marked.last.saturating_add(2 * LEFT_OUT));
    let opened = Opened {
        heartbeat: anchor.as_ref().map(|anchor| anchor.wall),
        downtime: anchor.as_ref().map(Anchor::ago),
        ..Opened::default()
    };
    let memory = Memory::new(first, vec![(first, None)], first, Health::Degraded(reason));
    (start(config, memory, None, None), opened)
}
