//! `/api/history`: the last 24 hours, minute by minute, for the charts of the page.
//!
//! A task reads what the tables and the journal say every few seconds and adds it to the present minute.
//! It is held in memory only, and never takes more than [`SINKS`] sinks times [`MINUTES`] minutes: some
//! hundred kilobytes. Whoever wants more has the metrics.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    extract::{Query, State as Extract},
    http::StatusCode,
    response::Response,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::{State, json as answer, relay_status::RelayStatus, status::lag};
use crate::{
    astro::session::SubscriptionState,
    base::{
        clock::{self, UnixMillis},
        json,
        sync::lock,
    },
    delivery::status::STANDBY,
    gateway::table::ConnectionRow,
    journal::Journal,
};

/// How far back it goes.
const MINUTES: usize = 24 * 60;

/// Sinks that are in it; others are left out.
const SINKS: usize = 12;

/// How often the present minute is added to.
const EVERY: Duration = Duration::from_secs(2);

const MINUTE: UnixMillis = 60_000;

/// Minutes by which the clock may be behind the newest one before that counts as having been ahead.
const BEHIND: u64 = 1;

/// What there is of each minute.
#[derive(Debug, Default)]
pub struct History(Mutex<Minutes>);

/// The task that writes it.
pub(crate) struct Sampler {
    pub history: Arc<History>,
    pub status: Arc<RelayStatus>,
    pub journal: Journal,
}

#[derive(Debug, Default)]
struct Minutes {
    /// Oldest first, without a hole.
    relay: VecDeque<RelayMinute>,
    sinks: BTreeMap<String, SinkMinutes>,
    /// The number of the newest minute, counted since the epoch.
    newest: u64,
    /// The newest event at the last sample.
    last: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default)]
struct RelayMinute {
    events: u32,
    astro: Health,
}

#[derive(Debug, Default)]
struct SinkMinutes {
    minutes: VecDeque<SinkMinute>,
    /// The minute of the last sample.
    seen: u64,
    /// Its counters at the last sample.
    delivered: u64,
    delivery_ms: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct SinkMinute {
    delivered: u32,
    /// Of the events delivered in it: how long they had been here, added up, and the longest.
    delivery_ms: u32,
    slowest_ms: u32,
    /// The most that were queued.
    queued: u32,
    health: Health,
}

/// The worst that was seen in a minute.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Health {
    /// Nobody looked: the relay did not run, or the sink was not configured.
    #[default]
    Unknown,
    Working,
    NotWorking,
}

/// What a sample says of a sink.
struct SinkSample<'s> {
    name: &'s str,
    health: Health,
    delivered: u64,
    delivery_ms: u64,
    slowest_ms: u64,
    queued: u64,
}

impl Sampler {
    /// Samples until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            self.sample(clock::now());
        }
    }

    fn sample(&self, now: UnixMillis) {
        let astro = self.status.gateway.read(|state| {
            let fails = |row: &ConnectionRow| !row.phase.is_open() && row.last_error.is_some();
            if state.connections.values().any(fails) {
                return Health::NotWorking;
            }
            let mut health = Health::Unknown;
            for (_, row) in state.assigned() {
                health = health.max(match row.state {
                    SubscriptionState::Confirmed(_) => Health::Working,
                    SubscriptionState::Refused(_) => Health::NotWorking,
                    SubscriptionState::Waiting | SubscriptionState::Pending => Health::Unknown,
                });
            }
            health
        });
        let mut history = lock(&self.history.0);
        history.begin(now);
        history.relay(self.journal.figures().last, astro);
        self.status.sinks.sample(|name, sink| {
            let (queued, _) = lag(&self.status, &self.journal, name);
            history.sink(&SinkSample {
                name,
                health: match sink.state {
                    "up" => Health::Working,
                    // What another member drives, that one knows.
                    "connecting" | STANDBY => Health::Unknown,
                    _ => Health::NotWorking,
                },
                delivered: sink.delivered,
                delivery_ms: sink.delivery_ms,
                slowest_ms: sink.slowest_ms,
                queued,
            });
        });
    }
}

impl Minutes {
    /// A sample of this moment follows. A clock that was set back a little adds to the newest minute. Of one
    /// that was far ahead, what was sampled meanwhile goes: it is of no minute that has been.
    fn begin(&mut self, now: UnixMillis) {
        let minute = now / MINUTE;
        let ahead = self.newest.saturating_sub(minute);
        if ahead > BEHIND {
            let ahead = usize::try_from(ahead).unwrap_or(usize::MAX);
            self.newest = minute;
            remove_newest(&mut self.relay, ahead);
            for sink in self.sinks.values_mut() {
                remove_newest(&mut sink.minutes, ahead);
                sink.seen = sink.seen.min(minute);
            }
        }
        let missing = if self.relay.is_empty() { 1 } else { minute.saturating_sub(self.newest) };
        self.newest = self.newest.max(minute);
        for _ in 0..missing.min(MINUTES as u64) {
            push(&mut self.relay, RelayMinute::default());
            for sink in self.sinks.values_mut() {
                push(&mut sink.minutes, SinkMinute::default());
            }
        }
        // Of a sink that is no longer configured nothing is left after a day.
        let oldest = self.newest.saturating_sub(MINUTES as u64);
        self.sinks.retain(|_, sink| sink.seen > oldest || oldest == 0);
    }

    fn relay(&mut self, last: u64, astro: Health) {
        let events = last.saturating_sub(self.last.unwrap_or(last));
        self.last = Some(last);
        if let Some(minute) = self.relay.back_mut() {
            minute.events = minute.events.saturating_add(small(events));
            minute.astro = minute.astro.max(astro);
        }
    }

    fn sink(&mut self, sample: &SinkSample<'_>) {
        if !self.sinks.contains_key(sample.name) {
            if self.sinks.len() >= SINKS {
                return;
            }
            let minutes = VecDeque::from([SinkMinute::default()]);
            let SinkSample { name, delivered, delivery_ms, .. } = *sample;
            let sink = SinkMinutes { minutes, seen: self.newest, delivered, delivery_ms };
            self.sinks.insert(name.to_owned(), sink);
        }
        let Some(sink) = self.sinks.get_mut(sample.name) else { return };
        sink.seen = self.newest;
        // A sink that was taken out and came back counts from 0.
        let since = |now: u64, before: u64| small(now.checked_sub(before).unwrap_or(now));
        let delivered = since(sample.delivered, sink.delivered);
        let delivery_ms = since(sample.delivery_ms, sink.delivery_ms);
        (sink.delivered, sink.delivery_ms) = (sample.delivered, sample.delivery_ms);
        if let Some(minute) = sink.minutes.back_mut() {
            minute.delivered = minute.delivered.saturating_add(delivered);
            minute.delivery_ms = minute.delivery_ms.saturating_add(delivery_ms);
            minute.slowest_ms = minute.slowest_ms.max(small(sample.slowest_ms));
            minute.queued = minute.queued.max(small(sample.queued));
            minute.health = minute.health.max(sample.health);
        }
    }

    /// The newest of it. Each list ends with the present minute; that of a sink that came later is shorter.
    fn to_json(&self, minutes: usize) -> Value {
        let sinks = self.sinks.iter().map(|(name, sink)| {
            let of = |read: &dyn Fn(&SinkMinute) -> Value| newest(&sink.minutes, minutes, read);
            let mean = |minute: &SinkMinute| match minute.delivered {
                0 => Value::Null,
                delivered => {
                    let mean = f64::from(minute.delivery_ms) / f64::from(delivered);
                    ((mean * 10.0).round() / 10.0).into()
                }
            };
            let lists = json!({
                "delivered": of(&|minute| minute.delivered.into()),
                "mean_ms": of(&mean),
                "slowest_ms": of(&|minute| minute.slowest_ms.into()),
                "queued": of(&|minute| minute.queued.into()),
                "health": of(&|minute| minute.health.as_str().into()),
            });
            (name.clone(), lists)
        });
        json!({
            "until": (self.newest + 1) * MINUTE,
            "step": MINUTE,
            "events": newest(&self.relay, minutes, &|minute| minute.events.into()),
            "astro": newest(&self.relay, minutes, &|minute| minute.astro.as_str().into()),
            "sinks": sinks.collect::<serde_json::Map<_, _>>(),
        })
    }
}

fn newest<T>(all: &VecDeque<T>, minutes: usize, read: &dyn Fn(&T) -> Value) -> Vec<Value> {
    all.iter().skip(all.len().saturating_sub(minutes)).map(read).collect()
}

fn push<T>(minutes: &mut VecDeque<T>, minute: T) {
    if minutes.len() >= MINUTES {
        minutes.pop_front();
    }
    minutes.push_back(minute);
}

/// Removes so many of the newest. The present minute is always there.
fn remove_newest<T: Default>(minutes: &mut VecDeque<T>, count: usize) {
    minutes.truncate(minutes.len().saturating_sub(count));
    if minutes.is_empty() {
        minutes.push_back(T::default());
    }
}

fn small(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

impl Health {
    fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Working => "working",
            Self::NotWorking => "not working",
        }
    }
}

/// What is asked for.
#[derive(Debug, Deserialize)]
pub(super) struct Span {
    /// So many minutes; the whole day where it is not said.
    #[serde(default = "whole_day")]
    minutes: usize,
}

fn whole_day() -> usize {
    MINUTES
}

pub(super) async fn history(Extract(state): Extract<State>, Query(span): Query<Span>) -> Response {
    let mut history = lock(&state.history.0).to_json(span.minutes.clamp(1, MINUTES));
    let gaps = state.status.gateway.read(|gateway| json!(gateway.gaps));
    json::set(&mut history, "gaps", gaps);
    answer(StatusCode::OK, &history)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(name: &str, health: Health, delivered: u64, delivery_ms: u64) -> SinkSample<'_> {
        SinkSample { name, health, delivered, delivery_ms, slowest_ms: delivery_ms, queued: 7 }
    }

    #[test]
    fn minutes_are_added_up_and_a_pause_is_unknown() {
        use Health::{NotWorking, Unknown, Working};
        let mut minutes = Minutes::default();
        for (now, last, health, delivered) in [
            // What was there before is not of this minute.
            (600_000, 100, Unknown, 50),
            (602_000, 103, NotWorking, 52),
            (604_000, 104, Working, 54),
            // A clock that is set back goes on with the newest minute.
            (540_000, 105, Working, 54),
            // Two minutes later.
            (720_000, 115, Working, 64),
        ] {
            minutes.begin(now);
            minutes.relay(last, health);
            minutes.sink(&sample("home", health, delivered, delivered * 3));
        }
        let json = minutes.to_json(MINUTES);
        assert_eq!(json["until"], 780_000);
        assert_eq!(json["events"], json!([5, 0, 10]));
        assert_eq!(json["astro"], json!(["not working", "unknown", "working"]));
        let home = &json["sinks"]["home"];
        assert_eq!(home["delivered"], json!([4, 0, 10]));
        assert_eq!(home["mean_ms"], json!([3.0, null, 3.0]));
        assert_eq!(home["queued"], json!([7, 0, 7]));
        assert_eq!(home["health"], json!(["not working", "unknown", "working"]));
        assert_eq!(minutes.to_json(1)["events"], json!([10]));
    }

    #[test]
    fn a_clock_that_jumps_ahead_and_back_leaves_the_minutes_in_their_places() {
        use Health::Working;
        let mut minutes = Minutes::default();
        for (now, last) in [
            (600_000, 100),
            (602_000, 105),
            // An hour ahead, and back.
            (4_200_000, 110),
            (660_000, 112),
            (720_000, 115),
            (722_000, 116),
        ] {
            minutes.begin(now);
            minutes.relay(last, Working);
            minutes.sink(&sample("home", Working, last, last));
        }
        let json = minutes.to_json(MINUTES);
        assert_eq!(json["until"], 780_000);
        assert_eq!(json["events"], json!([5, 2, 4]));
        assert_eq!(json["sinks"]["home"]["delivered"], json!([5, 2, 4]));
        // Back to before all that there is: it begins again.
        minutes.begin(60_000);
        minutes.relay(118, Working);
        minutes.sink(&sample("home", Working, 118, 118));
        let json = minutes.to_json(MINUTES);
        assert_eq!((&json["until"], &json["events"]), (&json!(120_000), &json!([2])));
        assert_eq!(json["sinks"]["home"]["delivered"], json!([2]));
    }

    #[test]
    fn it_never_grows_beyond_a_day_and_some_sinks() {
        let mut minutes = Minutes::default();
        for minute in 0..2 * MINUTES as u64 {
            minutes.begin(minute * MINUTE);
            minutes.relay(minute, Health::Working);
            for sink in 0..SINKS + 3 {
                minutes.sink(&sample(&format!("sink{sink}"), Health::Working, minute, minute));
            }
        }
        assert_eq!((minutes.relay.len(), minutes.sinks.len()), (MINUTES, SINKS));
        let held: usize = minutes.sinks.values().map(|sink| sink.minutes.len()).sum();
        let bytes = held * size_of::<SinkMinute>() + MINUTES * size_of::<RelayMinute>();
        assert!(bytes <= 400 * 1024, "{bytes}");
        // A jump of the clock of years is a day without anything.
        minutes.begin(u64::from(u32::MAX) * MINUTE);
        assert_eq!((minutes.relay.len(), minutes.sinks.len()), (MINUTES, 0));
    }
}
