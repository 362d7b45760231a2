//! What the relay adds for each channel: its live session, the state store that sinks publish from, and
//! what a gap missed, fetched from the history.

pub mod backfill;
pub mod board;
pub mod keeper;
pub mod state;
