//! One integration binary: the relay against real servers and the simulated Astro.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on should panic, and nothing is outside of it"
)]
#![expect(unreachable_pub, reason = "nobody links a test")]

mod asyncapi;
mod backfill;
mod cli;
mod cli_check;
mod cli_diagnose;
mod cli_journal;
mod cli_send_test;
mod cli_session;
mod cli_setup;
mod cluster;
mod commands;
mod conformance;
mod crash;
mod deadlines;
mod delivery;
mod deploy;
mod documents;
mod end_to_end;
mod gateway;
mod handover;
mod home_assistant;
mod journal;
mod module_graph;
mod operator;
mod published_state;
mod rest;
mod secrets;
mod shipped_config;
mod sink_mqtt;
mod sink_nats;
mod sink_redis;
mod sink_stdout;
mod sink_webhook;
mod state;
mod support;
mod tidy;
mod tokens;
mod way;
