//! What every part stands on: time, events as data, text, files, connections, logs, tasks. It knows
//! neither Astro nor sinks, and reads no configuration.

pub mod backoff;
pub mod clock;
pub mod environment;
pub mod event;
pub mod fault;
pub mod files;
pub mod json;
pub mod log;
pub mod metrics;
pub mod nearest;
pub mod proxy;
pub mod replace;
pub mod supervisor;
pub(crate) mod sync;
pub mod systemd;
pub mod tcp;
pub mod template;
pub mod terminal;
pub mod text;
pub mod tls;
