//! Recovery of a broken database: what can be read of it is copied into a new one, and the broken one is
//! set aside under a name of its own. An end at any point of this loses nothing: the next start begins the
//! copy again, or finishes the exchange.
//!
//! What is missing is counted from the runs, hence exactly, as long as they or the mark can be read. With
//! both gone there is nothing left to count by; nor after a loss of power, which takes what was not synced
//! and the mark's word of it together.

use std::path::{Path, PathBuf};

use tracing::{error, info};

use super::{
    directory,
    error::StoreError,
    mark::Marked,
    runs::{Run, assigned_between},
    store::{Copied, Store},
};

#[derive(Debug)]
pub(super) struct Recovered {
    /// Events that are gone.
    pub(super) lost: u64,
    /// Where the broken file was set aside.
    pub(super) set_aside: Option<PathBuf>,
    /// Positions were lost, and it is not known whose.
    pub(super) cursors_unknown: bool,
}

/// Recovers the database. `runs` are those of a relay that runs: it knows them all.
pub(super) fn recover(
    dir: &Path,
    marked: Marked,
    runs: Option<&[Run]>,
) -> Result<Recovered, StoreError> {
    error!("the journal is broken; recovering what can be read");
    let path = directory::unfinished(dir);
    directory::remove_unfinished(dir)?;
    let new = Store::create(&path)?;
    let copied = match Store::open_broken(dir) {
        Ok(old) => old.copy_into(&new)?,
        Err(error) => {
            error!(%error, "nothing can be read of the broken journal");
            Copied { cursors_unknown: true, ..Copied::default() }
        }
    };
    let bounds = new.bounds()?;
    // While the relay runs, what is missing at the end counts here; at a start that is counted later.
    let end = if runs.is_some() { marked.last } else { bounds.map_or(0, |(_, last)| last) };
    let known = runs.unwrap_or(&copied.runs);
    let first = bounds.map_or(end + 1, |(first, _)| first);
    let mut lost =
        assigned_between(known, first.saturating_sub(1), end).saturating_sub(copied.events);
    if runs.is_some() {
        // Where the front of the file is lost too, the mark knows more.
        lost = lost.max(marked.events.saturating_sub(copied.events));
    }
    new.set_runs(known)?;
    new.finish(&path)?;
    let set_aside = directory::finish_recovered(dir)?;
    info!(kept = copied.events, lost, "journal recovered");
    Ok(Recovered { lost, set_aside, cursors_unknown: copied.cursors_unknown })
}
