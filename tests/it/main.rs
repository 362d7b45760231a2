//! One integration binary: the relay against real servers and the simulated Astro.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should panic"
)]
#![expect(unreachable_pub, reason = "nobody links a test")]

mod conformance;
mod sink_mqtt;
mod sink_nats;
mod support;
