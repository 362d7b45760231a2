//! astro-relay

pub mod astro;
pub mod backoff;
pub mod cli;
pub mod clock;
pub mod config;
pub mod delivery;
pub mod event;
pub mod http;
pub mod journal;
pub mod log;
pub mod metrics;
pub mod relay;
pub mod route;
pub mod sim;
pub mod sink;
pub mod state;
pub mod status;
pub mod supervisor;
pub mod systemd;
pub mod template;
pub mod tls;
