//! The relay put together, its health, the reload, and the command line.

pub mod cli;
pub mod health;
mod journal_health;
pub mod relay;
pub mod reload;
pub mod sink_tasks;
