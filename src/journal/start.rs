//! Starting the journal: with its files, or from memory where the disk does not let them be opened.

use std::{
    path::Path,
    sync::{Arc, Mutex},
};

use tracing::error;

use super::{
    Health, Journal,
    age::Anchor,
    error::StoreError,
    mark::{self, MarkContent},
    memory::Memory,
    open::{JournalFiles, LastRun, Opened, open_files},
    reader::SharedReader,
    runs::LEFT_OUT,
    shared::Shared,
    store::Store,
    writer,
};
use crate::{
    base::clock,
    config::{self, Size, Sync},
};

/// Bytes of events in memory, at least.
const LEAST_MEMORY: Size = Size(64 * 1024);

/// Opens the journal, or begins without it where the disk does not let it be opened: the writer tries
/// again until it does.
pub(super) fn open(config: &config::Journal) -> Result<(Journal, Opened), StoreError> {
    open_with(config, Store::open_reader)
}

fn open_with(
    config: &config::Journal,
    open_reader: impl FnOnce(&Path) -> Result<Store, StoreError>,
) -> Result<(Journal, Opened), StoreError> {
    let (store, files, memory, opened) =
        match open_files(&config.dir, config.sync == Sync::Always, None) {
            Ok(found) => found,
            Err(error) if error.forbids_start() => return Err(error),
            Err(error) => return Ok(begin_in_memory(config, &error)),
        };
    match open_reader(&config.dir) {
        Ok(mut reader) => {
            reader.set_ages(files.ages.clone());
            let files = Some((store, files));
            Ok((start(config, memory, Some(reader), files, LastRun::Known), opened))
        }
        Err(error) => {
            // The writer opens them itself.
            drop((store, files));
            let (journal, _) = begin_in_memory(config, &error);
            // The files were open, and since then the mark says that the relay runs.
            Ok((journal, opened))
        }
    }
}

fn start(
    config: &config::Journal,
    memory: Memory,
    reader: Option<Store>,
    files: Option<(Store, JournalFiles)>,
    last_run: LastRun,
) -> Journal {
    let reader = Some(SharedReader::new(reader));
    let config = config::Journal { memory: config.memory.max(LEAST_MEMORY), ..config.clone() };
    let mut shared = Shared::new(memory, reader, config);
    shared.last_run = Mutex::new(last_run);
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
    let last_run = if opened.heartbeat.is_some() { LastRun::Known } else { LastRun::Unknown };
    (start(config, memory, None, None, last_run), opened)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::base::event::own;

    #[tokio::test]
    async fn a_reader_that_cannot_be_opened_ends_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let config = config::Journal { dir: dir.path().to_owned(), ..config::Journal::default() };
        let (journal, _) = open(&config).unwrap();
        journal.close();
        let no_files_left = |dir: &Path| {
            let source = std::io::Error::from_raw_os_error(24);
            Err(StoreError::Io { path: dir.to_owned(), source })
        };
        let (journal, opened) = open_with(&config, no_files_left).unwrap();
        assert!(opened.heartbeat.is_some(), "what was found is known");
        let mut health = journal.health();
        let sound = health.wait_for(|health| *health == Health::Sound);
        tokio::time::timeout(Duration::from_mins(1), sound).await.expect("it is sound").unwrap();
        let nobody = "".into();
        journal.append(&mut vec![own("t", &nobody, &nobody, &serde_json::json!({}), clock::now())]);
        journal.close();
        let (journal, opened) = open(&config).unwrap();
        assert_eq!((opened.events, opened.lost), (1, 0));
        journal.close();
    }
}
