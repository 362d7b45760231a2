//! The gateway against the simulated Astro: what Astro sent, and what is in the journal.
#![expect(
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a JSON value indexed by name is null, or a test fails; figures are shown"
)]

mod bench;
mod clocks;
mod duplicates;
mod gaps;
mod garbage;
mod handover;
mod limits;
mod liveness;
mod refusals;
mod reload;
mod revisions;
mod tls;
mod waiting;

use std::time::Duration;

/// A room of nobody in particular.
const ROOM: &str = "0f0e0d0c0b0a090807060504";
/// Another one.
const OTHER: &str = "1f1e1d1c1b1a191817161514";

/// How long anything may take that takes no time: the machine may be busy.
const SOON: Duration = Duration::from_secs(20);

/// Whether the tests that take minutes run with their full numbers.
#[expect(clippy::disallowed_methods, reason = "whoever runs the tests says so in the environment")]
fn long() -> bool {
    std::env::var_os("ASTRO_RELAY_LONG").is_some_and(|value| value == "1")
}
