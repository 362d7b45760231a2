//! Everything that is StreamElements': the frames of the gateway, what one connection decides, how one is
//! opened, the REST API, topics and activities. It holds no connection: that is for [`crate::gateway`].
//! Sources of its rules: the vendor's documents of the Astro gateway, in their older and their newer
//! (March 2026) revision; where they differ, both work.

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
