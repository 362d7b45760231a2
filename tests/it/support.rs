//! What the tests share: real servers as child processes, and waiting for a condition.

pub mod process;
pub mod receiver;
pub mod redis_server;
pub mod sinks;
pub mod wait;
