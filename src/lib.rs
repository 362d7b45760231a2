//! astro-relay

pub mod astro;
pub mod backoff;
pub mod cli;
pub mod clock;
pub mod config;
pub mod event;
pub mod sink;
pub mod template;
