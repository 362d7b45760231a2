//! The simulated Astro, looked at by a client that knows nothing of the relay.
#![expect(
    clippy::indexing_slicing,
    reason = "a JSON value indexed by name is null, or a test fails"
)]

mod client;
mod faults;
mod fixtures;
mod gateway;
mod http;
mod publishing;

use astro_relay::sim::{Options, Sim};

/// A room that is nobody's.
const ROOM: &str = "0f0e0d0c0b0a090807060504";
/// Another one.
const OTHER: &str = "1f1e1d1c1b1a191817161514";

async fn start(options: Options) -> Sim {
    Sim::start(([127, 0, 0, 1], 0).into(), options).await.unwrap()
}
