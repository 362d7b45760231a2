//! Every metric: its name, its labels, its help. Names follow Prometheus' conventions.
//!
//! Labels come from the configuration (sink, channel) or from short fixed lists, never from an event.
//!
//! The one thing to know: the recorder keeps every sample of a histogram until it is told to add them
//! up; [`SinkMetrics::delivered`] tells it to, whether or not anybody ever asks for the metrics.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// Upper bounds of the delivery time, in seconds: from a local broker to one that is away for a while.
const DELIVERY_BUCKETS: &[f64] =
    &[0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0];

/// Samples that the recorder may keep before they are added up: 24 bytes each, a hundred kilobytes.
const SAMPLES: u64 = 4096;

/// The recorder of this process, and how many samples it was given.
static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();
static SAMPLED: AtomicU64 = AtomicU64::new(0);

/// Metrics of the gateway.
pub const MESSAGES: &str = "astro_relay_messages_total";
/// Twins taken out.
pub const DUPLICATES: &str = "astro_relay_duplicates_total";
/// Frames that were skipped, by reason.
pub const SKIPPED: &str = "astro_relay_frames_skipped_total";
/// Connections opened, and attempts that failed, by outcome.
pub const CONNECTS: &str = "astro_relay_connects_total";
/// Handovers by token.
pub const HANDOVERS: &str = "astro_relay_handovers_total";
/// Connections that stand.
pub const CONNECTIONS: &str = "astro_relay_connections";
/// Subscriptions by state.
pub const SUBSCRIPTIONS: &str = "astro_relay_subscriptions";
/// Refusals of subscriptions.
pub const REFUSALS: &str = "astro_relay_subscription_refusals_total";
/// Rate limit answers.
pub const RATE_LIMITED: &str = "astro_relay_rate_limited_total";
/// Gaps told.
pub const GAPS: &str = "astro_relay_gaps_total";
/// Time without a connection.
pub const GAP_SECONDS: &str = "astro_relay_gap_seconds_total";
/// Activities recovered out of the history.
pub const BACKFILLED: &str = "astro_relay_backfilled_total";
/// Values that were too many or too large for a channel's state, by channel.
pub const STATE_LEFT_OUT: &str = "astro_relay_state_left_out_total";
/// Events accepted by the far side of a sink.
pub const DELIVERED: &str = "astro_relay_delivered_total";
/// Events that a sink did not want, by reason.
pub const FILTERED: &str = "astro_relay_filtered_total";
/// Attempts that failed and are repeated, by cause.
pub const RETRIES: &str = "astro_relay_retries_total";
/// Dead letters.
pub const DEAD_LETTERS: &str = "astro_relay_dead_letters_total";
/// Events that a sink will never get.
pub const LOST: &str = "astro_relay_lost_total";
/// Events waiting for a sink.
pub const LAG_EVENTS: &str = "astro_relay_sink_lag_events";
/// Age of the oldest event waiting for a sink.
pub const LAG_SECONDS: &str = "astro_relay_sink_lag_seconds";
/// Whether a sink's link stands.
pub const SINK_UP: &str = "astro_relay_sink_up";
/// From the socket to the far side's acceptance.
pub const DELIVERY_SECONDS: &str = "astro_relay_delivery_seconds";
/// What a sink counts of its own.
pub const SINK_NOTES: &str = "astro_relay_sink_notes_total";
/// Commands from outside, by origin, command and outcome.
pub const COMMANDS: &str = "astro_relay_commands_total";
/// The journal on disk.
pub const JOURNAL_BYTES: &str = "astro_relay_journal_bytes";
/// Whether events are written to disk.
pub const JOURNAL_SOUND: &str = "astro_relay_journal_sound";
/// Lines of the log that could not be written.
pub const LOG_LINES_DROPPED: &str = "astro_relay_log_lines_dropped_total";
/// Connections to the endpoint that were closed early, by reason.
pub const HTTP_CLOSED: &str = "astro_relay_http_connections_closed_total";
/// The version that runs.
pub const BUILD_INFO: &str = "astro_relay_build_info";

/// Installs the recorder of this process. `None` where one is installed already.
pub fn install() -> Option<PrometheusHandle> {
    let builder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full(DELIVERY_SECONDS.into()), DELIVERY_BUCKETS)
        .ok()?;
    let handle = builder.install_recorder().ok()?;
    // Only one recorder is ever installed.
    drop(RECORDER.set(handle.clone()));
    describe();
    gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    Some(handle)
}

fn describe() {
    describe_counter!(MESSAGES, "Messages read from the gateway");
    describe_counter!(DUPLICATES, "Messages received twice and taken once");
    describe_counter!(SKIPPED, "Frames skipped, by reason");
    describe_counter!(CONNECTS, "Attempts to connect to the gateway, by outcome");
    describe_counter!(HANDOVERS, "Connections handed over by a reconnect token, by outcome");
    describe_gauge!(CONNECTIONS, "Connections to the gateway that stand");
    describe_gauge!(SUBSCRIPTIONS, "Subscriptions, by state");
    describe_counter!(REFUSALS, "Subscriptions refused by the gateway");
    describe_counter!(RATE_LIMITED, "Times that the gateway's command rate was exceeded");
    describe_counter!(GAPS, "Times without a connection, by channel");
    describe_counter!(GAP_SECONDS, Unit::Seconds, "Time without a connection, by channel");
    describe_counter!(BACKFILLED, "Activities recovered out of the history, by channel");
    describe_counter!(
        STATE_LEFT_OUT,
        "Values that were too many or too large for a channel's state, by channel"
    );
    describe_counter!(DELIVERED, "Events accepted by the far side of a sink");
    describe_counter!(FILTERED, "Events that a sink did not want, by reason");
    describe_counter!(RETRIES, "Attempts that failed and are repeated, by sink and cause");
    describe_counter!(DEAD_LETTERS, "Events refused by the far side of a sink and set aside");
    describe_counter!(LOST, "Events that a sink will never get: retention or the disk was faster");
    describe_gauge!(LAG_EVENTS, "Events waiting for a sink");
    describe_gauge!(LAG_SECONDS, Unit::Seconds, "Age of the oldest event waiting for a sink");
    describe_gauge!(SINK_UP, "Whether the link of a sink stands, and its destination takes events");
    describe_histogram!(
        DELIVERY_SECONDS,
        Unit::Seconds,
        "From the socket to the far side's acceptance"
    );
    describe_counter!(SINK_NOTES, "What a sink counts of its own: receivers, duplicates");
    describe_counter!(COMMANDS, "Commands from outside, by origin, command and outcome");
    describe_gauge!(JOURNAL_BYTES, Unit::Bytes, "Size of the journal on disk");
    describe_gauge!(JOURNAL_SOUND, "Whether events are written to disk");
    describe_counter!(LOG_LINES_DROPPED, "Lines of the log that could not be written");
    describe_counter!(HTTP_CLOSED, "Connections to the endpoint closed early, by reason");
    describe_gauge!(BUILD_INFO, "The version that runs");
}

/// A sink is no longer configured: what it showed as now is not so any more. Its counters stay as
/// they are, for a counter that goes away looks like a restart.
pub fn no_sink(sink: &str) {
    for name in [LAG_EVENTS, LAG_SECONDS, SINK_UP] {
        gauge!(name, "sink" => sink.to_owned()).set(0.0);
    }
}

/// Adds to a counter without labels of its own, if there is anything to add.
pub fn add(name: &'static str, amount: u64) {
    if amount > 0 {
        counter!(name).increment(amount);
    }
}

/// Adds to a counter with one label, if there is anything to add.
pub fn add_for(name: &'static str, label: &'static str, value: &str, amount: u64) {
    if amount > 0 {
        counter!(name, label => value.to_owned()).increment(amount);
    }
}

/// A command came and was answered. `origin` is a sink's name or `http`.
pub fn command(origin: &str, command: &'static str, outcome: &'static str) {
    let origin = origin.to_owned();
    counter!(COMMANDS, "origin" => origin, "command" => command, "outcome" => outcome).increment(1);
}

/// The metrics of one sink, looked up once.
#[derive(Clone)]
pub struct SinkMetrics {
    sink: String,
    delivered: metrics::Counter,
    lost: metrics::Counter,
    dead: metrics::Counter,
    up: metrics::Gauge,
    delivery: metrics::Histogram,
}

impl std::fmt::Debug for SinkMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SinkMetrics({})", self.sink)
    }
}

impl SinkMetrics {
    /// Of the sink of that name.
    pub fn new(sink: &str) -> Self {
        let name = sink.to_owned();
        Self {
            delivered: counter!(DELIVERED, "sink" => name.clone()),
            lost: counter!(LOST, "sink" => name.clone()),
            dead: counter!(DEAD_LETTERS, "sink" => name.clone()),
            up: gauge!(SINK_UP, "sink" => name.clone()),
            delivery: histogram!(DELIVERY_SECONDS, "sink" => name.clone()),
            sink: name,
        }
    }

    /// Events were accepted that were received that long ago.
    pub fn delivered(&self, events: u64, since: Duration) {
        self.delivered.increment(events);
        self.delivery
            .record_many(since.as_secs_f64(), usize::try_from(events).unwrap_or(usize::MAX));
        let before = SAMPLED.fetch_add(events, Ordering::Relaxed);
        if before / SAMPLES != (before + events) / SAMPLES
            && let Some(recorder) = RECORDER.get()
        {
            recorder.run_upkeep();
        }
    }

    /// Events are gone.
    pub fn lost(&self, events: u64) {
        self.lost.increment(events);
    }

    /// An event was set aside.
    pub fn dead(&self) {
        self.dead.increment(1);
    }

    /// Whether the link stands.
    pub fn up(&self, up: bool) {
        self.up.set(if up { 1.0 } else { 0.0 });
    }

    /// Events were not wanted.
    pub fn filtered(&self, reason: &'static str, events: u64) {
        if events > 0 {
            counter!(FILTERED, "sink" => self.sink.clone(), "reason" => reason).increment(events);
        }
    }

    /// An attempt failed.
    pub fn retry(&self, cause: &'static str) {
        counter!(RETRIES, "sink" => self.sink.clone(), "cause" => cause).increment(1);
    }

    /// What the sink counts itself.
    pub fn note(&self, note: &'static str, amount: u64) {
        counter!(SINK_NOTES, "sink" => self.sink.clone(), "note" => note).increment(amount);
    }
}
