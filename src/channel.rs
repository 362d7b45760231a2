//! What the relay adds for each channel: its live session, the state store that sinks publish from, and
//! what a gap missed, fetched from the history.

pub mod backfill;
pub mod keeper;
pub mod refresh;
pub mod sessions;
pub mod state;
pub mod store;

/// The former names, until every publisher uses those of [`store`].
pub mod board {
    pub use super::store::{
        Entry as Item, RELAY, Section, StateKey as Path, StateStore as Board, offline, word,
    };
}
