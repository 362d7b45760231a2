//! Every metric: its name, its labels, its help. Names follow Prometheus' conventions.
//!
//! Labels come from the configuration (sink, channel) or from short fixed lists, never from an event.
//!
//! The recorder keeps every sample of a histogram until it is asked to add them up;
//! [`SinkMetrics::delivered`] asks it to, whether or not anybody ever reads the metrics.

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

/// The metrics: kind, constant, name, help.
macro_rules! define_metrics {
    ($($kind:ident $constant:ident $name:literal $([$unit:ident])? $help:literal)*) => {
        $(#[doc = $help] pub const $constant: &str = $name;)*

        fn describe() {
            $($kind!($constant, $(Unit::$unit,)? $help);)*
        }
    };
}

define_metrics! {
    describe_counter MESSAGES "astro_relay_messages_total"
        "Messages read from the gateway"
    describe_counter UNPLACED "astro_relay_messages_without_channel_total"
        "Messages that belong to no channel because several come into question"
    describe_counter DUPLICATES "astro_relay_duplicates_total"
        "Messages received twice and taken once"
    describe_counter SKIPPED "astro_relay_frames_skipped_total"
        "Frames skipped, by reason"
    describe_counter CONNECTS "astro_relay_connects_total"
        "Attempts to connect to the gateway, by outcome"
    describe_counter HANDOVERS "astro_relay_handovers_total"
        "Connections handed over by a reconnect token, by outcome"
    describe_gauge CONNECTIONS "astro_relay_connections"
        "Open connections to the gateway"
    describe_gauge SUBSCRIPTIONS "astro_relay_subscriptions"
        "Subscriptions, by state"
    describe_counter REFUSALS "astro_relay_subscription_refusals_total"
        "Subscriptions refused by the gateway"
    describe_counter RATE_LIMITED "astro_relay_rate_limited_total"
        "Times that the gateway's command rate was exceeded"
    describe_counter GAPS "astro_relay_gaps_total"
        "Times without a connection, by channel"
    describe_counter GAP_SECONDS "astro_relay_gap_seconds_total" [Seconds]
        "Time without a connection, by channel"
    describe_counter BACKFILLED "astro_relay_backfilled_total"
        "Activities, tips and redemptions recovered out of their histories, by channel"
    describe_counter TOKEN_REFRESHES "astro_relay_token_refreshes_total"
        "Refreshes of OAuth2 tokens, by channel and outcome"
    describe_gauge TOKEN_EXPIRY "astro_relay_token_expiry_timestamp_seconds" [Seconds]
        "When a channel's token ends, where that is known"
    describe_gauge TOKEN_REFRESHED "astro_relay_token_refreshed_timestamp_seconds" [Seconds]
        "When a channel's OAuth2 token was last refreshed"
    describe_counter STATE_LEFT_OUT "astro_relay_state_left_out_total"
        "Values that were too many or too large for a channel's state, by channel"
    describe_counter DELIVERED "astro_relay_delivered_total"
        "Events accepted by a sink's destination"
    describe_counter FILTERED "astro_relay_filtered_total"
        "Events that a sink did not want, by reason"
    describe_counter RETRIES "astro_relay_retries_total"
        "Attempts that failed and are repeated, by sink and cause"
    describe_counter DEAD_LETTERS "astro_relay_dead_letters_total"
        "Events refused by a sink's destination and set aside"
    describe_counter LOST "astro_relay_lost_total"
        "Events that a sink will never get: retention or the disk was faster"
    describe_gauge LAG_EVENTS "astro_relay_sink_lag_events"
        "Events waiting for a sink"
    describe_gauge LAG_SECONDS "astro_relay_sink_lag_seconds" [Seconds]
        "Age of the oldest event waiting for a sink"
    describe_gauge SINK_UP "astro_relay_sink_up"
        "Whether the link of a sink stands, and its destination takes events"
    describe_histogram DELIVERY_SECONDS "astro_relay_delivery_seconds" [Seconds]
        "From the socket to the destination's acceptance"
    describe_counter SINK_NOTES "astro_relay_sink_notes_total"
        "What a sink counts of its own: receivers, duplicates"
    describe_counter COMMANDS "astro_relay_commands_total"
        "Commands from outside, by origin, command and outcome"
    describe_gauge JOURNAL_BYTES "astro_relay_journal_bytes" [Bytes]
        "Size of the journal on disk"
    describe_gauge JOURNAL_SOUND "astro_relay_journal_sound"
        "Whether events are written to disk, or kept in memory as configured"
    describe_counter LOG_LINES_DROPPED "astro_relay_log_lines_dropped_total"
        "Lines of the log that could not be written"
    describe_counter HTTP_CLOSED "astro_relay_http_connections_closed_total"
        "Connections to the endpoint closed early, by reason"
    describe_gauge HEALTH "astro_relay_health"
        "The health of the relay: 1 for the state that holds (working, degraded, not working)"
    describe_gauge HEALTH_REASONS "astro_relay_health_reasons"
        "Reasons why the relay does not work as configured, and notices, by kind"
    describe_gauge LAST_EVENT "astro_relay_last_event_timestamp_seconds" [Seconds]
        "When the last event was received"
    describe_gauge DEAD_LETTERS_WAITING "astro_relay_dead_letters_waiting"
        "Dead letters that wait to be retried or dropped"
    describe_gauge CLUSTER_MEMBERS "astro_relay_cluster_members"
        "Members of the cluster that this one sees alive"
    describe_gauge CLUSTER_CHANNELS "astro_relay_cluster_channels"
        "Channels that this member holds"
    describe_gauge CLUSTER_DRIVES "astro_relay_cluster_drives"
        "Whether this member drives a sink, by sink"
    describe_gauge CLUSTER_LEASE_AGE "astro_relay_cluster_lease_age_seconds" [Seconds]
        "Age of the renewal that the lease of a driven sink rests on, by sink"
    describe_gauge CLUSTER_WAITING "astro_relay_cluster_waiting_events"
        "Events of this member's journal that are not in the log yet"
    describe_gauge CLUSTER_WORKS "astro_relay_cluster_works"
        "Whether NATS is reached and the cluster works"
    describe_gauge CLUSTER_DIFFERENCES "astro_relay_cluster_differences"
        "Members with another configuration or version, or this one's name"
    describe_gauge CLUSTER_CLOCK "astro_relay_cluster_clock_offset_seconds" [Seconds]
        "How far the clock of the NATS servers is ahead of this member's"
    describe_counter CLUSTER_PUBLISHED "astro_relay_cluster_published_total"
        "Events that this member brought into the log"
    describe_counter CLUSTER_DUPLICATES "astro_relay_cluster_duplicates_total"
        "Events that this member published and the log had already"
    describe_gauge BUILD_INFO "astro_relay_build_info"
        "The version that runs"
}

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
    begin();
    Some(handle)
}

/// Counters without labels from the configuration are there from the start: the increase of one that appears
/// with its first increment is seen by nobody.
fn begin() {
    for name in [MESSAGES, UNPLACED, DUPLICATES, REFUSALS, RATE_LIMITED, LOG_LINES_DROPPED] {
        counter!(name).increment(0);
    }
    for (name, label, words) in [
        (CONNECTS, "outcome", &["open", "failed"][..]),
        (HANDOVERS, "outcome", &["restored", "anew", "failed"]),
        (SKIPPED, "reason", &["invalid", "oversized", "binary", "unknown"]),
        (HTTP_CLOSED, "reason", &["crowded", "not_reading"]),
    ] {
        for word in words {
            counter!(name, label => *word).increment(0);
        }
    }
}

/// A channel is configured: its counters are there from now on.
pub fn channel(label: &str) {
    for name in [GAPS, GAP_SECONDS, BACKFILLED, STATE_LEFT_OUT] {
        counter!(name, "channel" => label.to_owned()).increment(0);
    }
}

/// A sink is no longer configured: what it showed as now is not so any more, and it is neither up nor down. Its
/// counters stay as they are, for a counter that goes away looks like a restart.
pub(crate) fn no_sink(sink: &str) {
    sink_stands_by(sink);
    gauge!(SINK_UP, "sink" => sink.to_owned()).set(f64::NAN);
}

/// Another member of the cluster drives a sink: nothing waits here.
pub(crate) fn sink_stands_by(sink: &str) {
    for name in [LAG_EVENTS, LAG_SECONDS, SINK_UP, DEAD_LETTERS_WAITING] {
        gauge!(name, "sink" => sink.to_owned()).set(0.0);
    }
}

/// A sink is no longer configured in the cluster: whether anybody drives it is no question any more.
pub(crate) fn no_lease(sink: &str) {
    for name in [CLUSTER_DRIVES, CLUSTER_LEASE_AGE] {
        gauge!(name, "sink" => sink.to_owned()).set(f64::NAN);
    }
}

/// A channel is no longer configured: nothing is known of its token.
pub(crate) fn no_token(channel: &str) {
    for name in [TOKEN_EXPIRY, TOKEN_REFRESHED] {
        gauge!(name, "channel" => channel.to_owned()).set(f64::NAN);
    }
}

/// A token was refreshed, or could not be.
pub(crate) fn token_refresh(channel: &str, outcome: &'static str) {
    counter!(TOKEN_REFRESHES, "channel" => channel.to_owned(), "outcome" => outcome).increment(1);
}

/// Adds to a counter without labels of its own, if there is anything to add.
pub fn add(name: &'static str, amount: u64) {
    if amount > 0 {
        counter!(name).increment(amount);
    }
}

/// Adds to a counter with one label, if there is anything to add.
pub(crate) fn add_for(name: &'static str, label: &'static str, value: &str, amount: u64) {
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
        for reason in ["place", "condition", "condition_error", "age"] {
            counter!(FILTERED, "sink" => name.clone(), "reason" => reason).increment(0);
        }
        for cause in ["down", "busy", "rejected", "denied", "gone"] {
            counter!(RETRIES, "sink" => name.clone(), "cause" => cause).increment(0);
        }
        counter!(LOST, "sink" => name.clone()).increment(0);
        Self {
            delivered: counter!(DELIVERED, "sink" => name.clone()),
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

    /// An event was set aside.
    pub fn dead(&self) {
        self.dead.increment(1);
    }

    /// Whether the link stands.
    pub fn up(&self, up: bool) {
        self.up.set(if up { 1.0 } else { 0.0 });
    }

    /// Events were not wanted.
    pub(crate) fn filtered(&self, reason: &'static str, events: u64) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sink_that_is_no_longer_configured_is_neither_up_nor_down() {
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            let shows = |value: &str| {
                let (text, line) =
                    (recorder.handle().render(), format!("{SINK_UP}{{sink=\"home\"}} {value}\n"));
                assert!(text.contains(&line), "{line} in {text}");
            };
            SinkMetrics::new("home").up(true);
            shows("1");
            sink_stands_by("home");
            shows("0");
            no_sink("home");
            shows("NaN");
        });
    }
}
