//! astro-relay

pub mod clock;
pub mod config;
pub mod event;
pub mod sim;
pub mod sink;
pub mod template;
