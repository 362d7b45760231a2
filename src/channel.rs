//! What the relay adds for each channel: its live session, the state store that sinks publish from, and
//! what a gap missed, fetched from the history.

pub mod backfill;
pub mod keeper;
pub mod refresh;
pub mod sessions;
pub mod silence;
pub mod state;
pub mod store;
pub mod token_status;
pub mod tokens;
