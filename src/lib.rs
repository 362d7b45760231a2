//! astro-relay stays connected to StreamElements' Astro gateway and hands each event to MQTT, NATS,
//! Redis and webhooks: at least once from the moment it is written to the journal, in order per sink (a
//! webhook: per room), and with a report of what was missed.
//!
//! ```text
//!             gateway                                       delivery (one a sink)
//!   Astro ──▶ gateway::link ──▶ astro::session ──▶ journal ──▶ route ──▶ sink ──▶ destination
//!             dial, socket    decisions, pure      │         wants it?  mqtt nats redis
//!                             which channel?       │         address,   webhook stdout
//!                                                  │         payload
//!                              http, /events ◀─────┤
//!                              cli (replay, tail) ◀┤
//!                            channel::keeper ◀─────┘
//!                                    │
//!             app::health ─────▶ channel::store ──▶ publish ──▶ destination, for sinks with `state`
//!
//!   destination ──▶ sink, http ──▶ command (may it? once!) ──▶ astro::rest, state
//! ```
//!
//! # Invariants
//!
//! 1. The gateway knows no sink. It appends to the journal and reads the next frame.
//! 2. A sink knows no journal, no retry and no metrics. It carries events and says what came of each: a
//!    failure has a kind ([`sink::Cause`]), and what is done about it is decided in [`delivery`]. Nothing
//!    leaves the journal because a destination is misconfigured.
//! 3. [`delivery`] is the only place where the journal meets a sink.
//! 4. [`astro::session`], [`astro::wire`], [`base::backoff`], [`base::event`] and [`delivery::route`] do no I/O and start
//!    nothing: frames and times go in, effects come out.
//! 5. Only [`base::supervisor`] spawns; a task that ends without being told to has failed. (The journal's
//!    two threads, those of [`base::files`] and the simulator are the exceptions, each marked where it stands.)
//! 6. Only [`base::environment`] reads the environment; only [`app::relay`] opens a listening port, for [`http`].
//! 7. Every queue, batch, wait and file has a limit, and the limit has a name.
//! 8. A command from outside goes through [`command`]: allowed by the configuration, executed at most
//!    once, logged and counted. Who hears it knows nothing of what executes it.
//! 9. Events are edges and go through the journal; state is a level, is in the [`channel::store`], and is
//!    never queued.
//! 10. A secret is a [`config::Secret`]: it cannot be printed.
//!
//! `tests/it/tidy.rs` and `.clippy.toml` hold the code to these.
//!
//! # A tour of five minutes
//!
//! [`base::event`] (what travels), [`sink`] with `sink/stdout.rs` (the contract, and the smallest sink),
//! [`delivery`] (the one loop), [`astro::session`] (what a connection decides), [`journal`] (one log,
//! many cursors). After these the rest is detail: [`app::relay`] puts the parts together, [`astro_sim`] is the
//! simulated Astro behind the demo and the tests.
//!
//! # Where the next line goes
//!
//! A new kind of sink: one file under `sink/` and one row in [`sink::KINDS`]. A new rule of the
//! protocol: [`astro::session`], with its case in the table of its tests. A new key of the
//! configuration: [`config`], and `config/astro-relay.toml`. A new command: one file under [`app::cli`].
//! A part of the relay that waits for certain events: [`journal::Journal::follow`].

pub mod app;
pub mod astro;
pub mod base;
pub mod channel;
pub mod command;
pub mod config;
pub mod delivery;
pub mod gateway;
pub mod http;
pub mod journal;
pub mod loading;
pub mod publish;
pub mod sink;
