//! astro-relay

pub mod astro;
pub mod backoff;
pub mod cli;
pub mod clock;
pub mod config;
pub mod event;
pub mod journal;
pub mod metrics;
pub mod sink;
pub mod status;
pub mod template;
pub mod tls;
