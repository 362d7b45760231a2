//! Everything that is StreamElements': the frames of the gateway, what one connection decides, and
//! the actor that holds the connections. Sources of its rules: the vendor's documents of the Astro
//! gateway, in their older and their newer (March 2026) revision; where they differ, both work.

pub mod activity;
pub mod dial;
mod proxied;
pub mod rest;
pub mod samples;
pub mod session;
pub mod summary;
pub mod token;
pub mod topics;
pub mod wire;
