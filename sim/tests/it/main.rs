//! The simulated Astro, looked at by a client that knows nothing of the relay.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on should panic, and nothing is outside of it"
)]

mod client;
mod faults;
mod fixtures;
mod gateway;
mod http;
mod publishing;
mod wait;

use astro_sim::{Options, Sim};
use serde_json::Value;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// A room that is nobody's.
const ROOM: &str = "0f0e0d0c0b0a090807060504";
/// Another one.
const OTHER: &str = "1f1e1d1c1b1a191817161514";

async fn start(options: Options) -> Sim {
    Sim::start(([127, 0, 0, 1], 0).into(), options).await.unwrap()
}

fn is_rfc3339(ts: &Value) -> bool {
    ts.as_str().is_some_and(|ts| OffsetDateTime::parse(ts, &Rfc3339).is_ok())
}
