//! astro-relay stays connected to StreamElements' Astro gateway and forwards each event to MQTT, NATS,
//! Redis and webhooks: at least once from the moment it is written to the journal, in order per sink (a
//! webhook: per room), and with a report of what was missed.
//!
//! ```text
//!                gateway                                          delivery (one task a sink)
//!   Astro ──▶ gateway::link ──▶ astro::session ──▶ journal ──▶ delivery::route ──▶ sink ──▶ destination
//!             dials, reads      decides, pure      one log,    wanted? address,    mqtt nats redis
//!                  │                               many        payload             webhook stdout
//!                  ▼                               cursors
//!             gateway::table                       │
//!             what each subscription's state is    ├──▶ http (/events, page), cli (export, replay)
//!                  │                               └──▶ channel::keeper (the session of each channel)
//!                  ▼                                          │
//!             app::health ──────▶ channel::store ◀────────────┘
//!                                 what holds now
//!                                        │    publish (one task a sink with `state`)
//!                                        └──▶ publish::keeping ──▶ a connection of its own ──▶ destination
//!
//!                                             command (one task a sink with `commands`)
//!   astro::rest ◀── command::executor ◀────── command::listener ◀── a connection of its own ◀── destination
//!                   once each                 http
//! ```
//!
//! A relay does three things for a destination: events, state, commands. They fail differently, so each
//! has a task and a connection of its own, and goes on while another is refused.
//!
//! # Rooms
//!
//! Lowest first. A room imports only rooms above it in this list; `tests/it/module_graph.rs` computes that.
//!
//! | room | what it is |
//! |---|---|
//! | [`base`] | clock, events as data, JSON, templates, TLS, logging, supervisor: knows neither Astro nor sinks |
//! | [`config`] | the typed configuration, its values and secrets; pure |
//! | [`astro`] | the protocol: frames, the decisions of one connection, REST, topics |
//! | [`journal`] | the durable log, cursors, dead letters; how it survives is written at the head of `journal.rs` |
//! | [`gateway`] | what is wanted, one table of what has become of it, the connections, gaps |
//! | [`channel`] | what the relay adds per channel: the live session, backfill, the store of current state |
//! | [`sink`] | the contract of a destination, and the kinds |
//! | [`delivery`] | from the journal to one sink: route, window, retry, dead letters |
//! | [`publish`] | current state at a destination; Home Assistant |
//! | [`command`] | requests from outside: allowed, executed at most once, answered |
//! | [`cluster`] | several relays as one: who holds which channel, who drives which sink; the shared log |
//! | [`loading`] | files, environment and arguments become a [`config::Config`], or every problem at once |
//! | [`http`] | the endpoint and the page |
//! | [`app`] | assembly, reload, health, the command line |
//!
//! # Invariants
//!
//! 1. The gateway knows no sink. It appends to the journal and reads the next frame; it waits for nothing but
//!    the disk, and for that within the bound of [`journal`]'s backpressure.
//! 2. A sink knows no journal, no retry and no metrics. It sends events and reports what became of them: a
//!    failure has a kind ([`sink::Cause`]), and [`delivery`] decides what follows. Nothing leaves the journal
//!    because a destination is misconfigured.
//! 3. [`delivery`] is the only place where the journal meets a sink.
//! 4. [`astro::session`], [`astro::wire`], [`base::backoff`], [`base::event`] and [`delivery::route`] do no
//!    I/O and start nothing: frames and times go in, effects come out.
//! 5. Only [`base::supervisor`] spawns tasks; one that ends before it is stopped has failed. Threads (the
//!    journal's, those of [`base::files`], the log's) are marked where they start.
//! 6. Only [`base::environment`] and [`config::secret`] read the environment. A
//!    relay listens on one port at most: that of [`http`], bound in [`app::relay`].
//! 7. Every queue, batch, wait and file has a limit, and the limit has a name.
//! 8. A command from outside goes through [`command`]: allowed by the configuration, executed at most once,
//!    logged and counted.
//! 9. Events are edges and go through the journal; state is a level, is held in [`channel::store`], and is
//!    never queued.
//! 10. A secret is a [`config::Secret`]: it cannot be printed.
//!
//! `tests/it/tidy.rs` and `.clippy.toml` hold the code to these.
//!
//! # A tour of five minutes
//!
//! [`base::event`] (what travels), [`sink`] with `sink/stdout.rs` (the contract, and the smallest sink),
//! [`delivery`] (the one loop), [`astro::session`] (what a connection decides), [`journal`] (one log, many
//! cursors). After these the rest is detail: [`app::relay`] puts the parts together. The simulated Astro
//! behind the demo and the tests is a crate of its own, `sim/`.
//!
//! # Where the next line goes
//!
//! | for | go to |
//! |---|---|
//! | an error code of Astro | `astro/session/commands.rs` (`on_response`); its case in `astro/session/tests.rs` (`each_error_has_its_consequence`); the simulated Astro sends it: `sim/src/faults.rs` |
//! | another rule of the protocol | [`astro::session`]; a field of a frame: [`astro::wire`]; a topic: [`astro::topics`] |
//! | a kind of activity: its name, and what its amount counts | `astro/activity.rs` (`KINDS`); its event in Home Assistant: `delivery/ha_event/kinds.rs`; a family of the session there: `publish/homeassistant/element.rs` |
//! | a history that is fetched after a gap | `astro/rest/history.rs`; what tells its items apart: `base/event/key.rs`; their form: `channel/backfill/message.rs` |
//! | a new kind of sink | its file under `sink/`, its `mod` in `sink.rs` and its row in [`sink::KINDS`]. Tests and documents want it, too, and fail until they have it: `tests/it/conformance.rs` with a file under `conformance/`, `tests/it/cli_send_test.rs`, `config/astro-relay.toml`, the snapshots of `loading/load/` that list the kinds |
//! | its state, its commands | a file under `publish/`, a row in [`publish::KINDS`]; a file under `command/` and a row in [`command::LISTENERS`] |
//! | where a delivery reads (journal or log) | [`delivery::source`]; the log: `cluster/log.rs` |
//! | which member does what | `cluster/assignment.rs` (pure), `cluster/membership.rs`, `cluster/driver.rs` |
//! | when a cursor moves | `delivery/outcome.rs` decides, `delivery/reader.rs` (`advance`) moves it |
//! | where a cursor is saved | `journal/memory.rs` (`begin_write`) hands it to the thread of `journal/writer.rs`, `journal/store.rs` (`write`) and `journal/store/numbers.rs` (`set_cursor`) write it |
//! | what a failure of a destination leads to | the kind makes it a [`sink::Cause`] (`sink/webhook/answer.rs`, `sink/mqtt/lost.rs`, `sink/redis/answer.rs`, `sink/nats/refusal.rs`), then `delivery/outcome.rs` and `delivery/waiting.rs` |
//! | where the last will is set | `publish/mqtt.rs` (`will`), or for a sink without state `sink/mqtt/availability.rs`; `sink/mqtt/connection/v4.rs` and `v5.rs` pass it to the broker |
//! | a new command from outside | [`config::Action`], `command/parse.rs`, `command/executor.rs` |
//! | a new command of the program | a file under `app/cli/` and its line in `app/cli.rs` |
//! | a key of the configuration | [`config`] (a sink's own: its `Settings`), with a comment in `config/astro-relay.toml`; a rule about it: `loading/check/` |
//! | a kind of token, its refresh | its scheme: `astro/rest/call.rs`; the OAuth2 server: `astro/rest/oauth.rs`; the task: `channel/tokens.rs` |
//! | a reason in health (`/readyz`, page, `status`) | its sort, and what to do: `http/relay_status/reason.rs`; who collects: `http/relay_status.rs`; of a sink: `delivery/status.rs`; of any other task: `delivery/health.rs` (`TaskHealth`). The model: [`http::health`] |
//! | an event in words for people | [`astro::summary`] |
//! | an example of a topic, for `check` and `topics` | `docs/asyncapi.json`, read by [`astro::samples`] |
//! | a metric | [`base::metrics`] |
//! | a part that waits for certain events | [`journal::Journal::follow`] |

pub mod app;
pub mod astro;
pub mod base;
pub mod channel;
pub mod cluster;
pub mod command;
pub mod config;
pub mod delivery;
pub mod gateway;
pub mod http;
pub mod journal;
pub mod loading;
pub mod publish;
pub mod sink;
