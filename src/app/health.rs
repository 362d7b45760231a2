//! Whether the relay does what it is there for, reported to those who rely on it.
//!
//! From the status it works out the health of the relay (the words of [`crate::http::health`], whether what is
//! published can be relied upon: `online`, `degraded`, `offline`, and why), that of each channel, and some
//! figures. All are in the [`StateStore`], from which publishers take them; a change
//! of the relay's health is also an event on [`TOPIC`]. What is a reason is not decided here, see
//! [`Snapshot::why`].
//!
//! `online` and `offline` are reported at once, `degraded` when it has lasted for [`DEBOUNCE`]: between the
//! end of a connection and the last subscription on the next it is always so.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    base::{
        clock::{self, UnixMillis},
        event,
    },
    channel::store::{Section, StateKey, StateStore, word},
    gateway::table,
    http::{
        health::{Health, State},
        lag,
        relay_status::{RelayStatus, Snapshot},
    },
    journal::Journal,
};

/// The topic of a change of the relay's health.
pub const TOPIC: &str = "relay.status";

/// How long it must be degraded before that is reported.
const DEBOUNCE: Duration = Duration::from_secs(1);

/// Between two looks at the status there is at least this: with thousands of subscriptions each takes a
/// millisecond, and as many confirmations come one by one.
const PACE: Duration = Duration::from_millis(50);

/// Figures are published no more often than this, unless a connection comes or goes.
const FIGURES: Duration = Duration::from_secs(10);

/// While the health stays what it is, another reason for it is an event no more often than this: the
/// errors of a destination that is down may differ with every attempt.
const REASON: Duration = Duration::from_mins(1);

/// Whether what is published of the relay can be relied upon. It is the word that consumers of current state
/// compare (`status`); the word for people (`health`) stands beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Availability {
    /// All that is wanted works.
    Online,
    /// Some of it does not.
    Degraded,
    /// Nothing can be received.
    Offline,
}

impl Availability {
    fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Degraded => "degraded",
            Self::Offline => "offline",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Verdict {
    availability: Availability,
    health: State,
    reason: Option<String>,
}

impl Verdict {
    fn offline(reason: &str) -> Self {
        let (availability, health) = (Availability::Offline, State::NotWorking);
        Self { availability, health, reason: Some(reason.to_owned()) }
    }

    fn of(snapshot: &Snapshot, health: &Health) -> Self {
        let availability = match health.state {
            _ if !snapshot.receives() => Availability::Offline,
            State::Working => Availability::Online,
            State::Degraded | State::NotWorking => Availability::Degraded,
        };
        Self { availability, health: health.state, reason: health.summary() }
    }
}

/// The task.
#[derive(Debug)]
pub struct HealthReporter {
    status: Arc<RelayStatus>,
    journal: Journal,
    store: Arc<StateStore>,
    /// Whether each channel was published as online.
    channels: HashMap<Arc<str>, bool>,
    /// What was reported, and since when the health is that.
    reported: (Verdict, UnixMillis),
    /// The last event, and when that was.
    event: Option<(Verdict, Instant)>,
    /// Since when it has been degraded, where that is not reported yet.
    degraded: Option<Instant>,
    /// The word for the connections to Astro that was published with the figures.
    astro: &'static str,
}

impl HealthReporter {
    /// What is known at once is in the store at once.
    pub fn new(status: Arc<RelayStatus>, journal: Journal, store: Arc<StateStore>) -> Self {
        let reported = (Verdict::offline("the relay has just been started"), clock::now());
        let (channels, event, degraded, astro) = (HashMap::new(), None, None, "");
        let mut health =
            Self { status, journal, store, channels, reported, event, degraded, astro };
        health.publish();
        let snapshot = health.status.snapshot();
        health.publish_channels(&snapshot.gateway);
        health.publish_figures(&snapshot);
        health
    }

    /// Reports until it is stopped, and then that.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut gateway = self.status.gateway.changes();
        let mut sinks = self.status.sinks.changes();
        let mut configuration = self.status.changes();
        let mut figures = interval(FIGURES);
        figures.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let work = async {
            loop {
                self.refresh();
                let due = self.degraded.map(|since| since + DEBOUNCE);
                tokio::select! {
                    Ok(()) = gateway.changed() => {}
                    Ok(()) = sinks.changed() => {}
                    Ok(()) = configuration.changed() => {}
                    _ = figures.tick() => self.publish_figures(&self.status.snapshot()),
                    () = clock::until(due) => {}
                }
                sleep(PACE).await;
            }
        };
        stop.run_until_cancelled(work).await;
        self.report(Verdict::offline("the relay was stopped"));
    }

    /// Reads the status, and reports what is new.
    fn refresh(&mut self) {
        let snapshot = self.status.snapshot();
        self.publish_channels(&snapshot.gateway);
        // Automations depend on this one: it does not wait for the figures' time.
        if self.astro != connections(&snapshot.gateway) {
            self.publish_figures(&snapshot);
        }
        let verdict = Verdict::of(&snapshot, &self.status.health(&snapshot));
        let degraded = Availability::Degraded;
        if verdict.availability == degraded && self.reported.0.availability != degraded {
            let since = *self.degraded.get_or_insert_with(Instant::now);
            if since.elapsed() < DEBOUNCE {
                return;
            }
        }
        self.degraded = None;
        self.report(verdict);
    }

    fn report(&mut self, verdict: Verdict) {
        let words = |verdict: &Verdict| (verdict.availability, verdict.health);
        if words(&verdict) != words(&self.reported.0) {
            let reason = verdict.reason.as_deref().unwrap_or_default();
            let (status, health) = (verdict.availability.as_str(), verdict.health.as_str());
            info!(status, health, reason, "the relay's health has changed");
            self.reported.1 = clock::now();
        }
        self.reported.0 = verdict.clone();
        self.publish();
        let now = Instant::now();
        let is_new = self.event.as_ref().is_none_or(|(last, at)| {
            words(last) != words(&verdict) || (*last != verdict && *at + REASON <= now)
        });
        if is_new {
            self.event = Some((verdict, now));
            let none: Arc<str> = "".into();
            let data = self.to_json();
            self.journal.append(&mut vec![event::own(TOPIC, &none, &none, &data, clock::now())]);
        }
    }

    fn to_json(&self) -> Value {
        let (Verdict { availability, health, reason }, since) = &self.reported;
        json!({
            "status": availability.as_str(),
            "health": health.as_str(),
            "reason": reason,
            "since": clock::rfc3339(*since),
            "version": env!("CARGO_PKG_VERSION"),
        })
    }

    fn publish(&self) {
        let status = (&self.to_json()).into();
        self.store.insert([(StateKey::relay(Section::Status), Some(status))]);
    }

    /// A channel is online when all of its subscriptions are confirmed.
    fn publish_channels(&mut self, gateway: &table::State) {
        let mut online: BTreeMap<&Arc<str>, bool> = BTreeMap::new();
        for (subscription, row) in &gateway.subscriptions {
            *online.entry(&subscription.channel).or_insert(true) &= row.state.is_confirmed();
        }
        self.channels.retain(|label, _| {
            let is_wanted = online.contains_key(label);
            // What another member of the cluster holds is that member's to tell.
            let elsewhere = || self.status.cluster().is_some_and(|one| one.is_configured(label));
            if !is_wanted && !elsewhere() {
                self.store.insert([(StateKey::of(label, Section::Status), None)]);
            }
            is_wanted
        });
        for (label, online) in online {
            if self.channels.get(label) != Some(&online) {
                self.channels.insert(Arc::clone(label), online);
                let key = StateKey::of(label, Section::Status);
                self.store.insert([(key, Some(word(online)))]);
            }
        }
    }

    fn publish_figures(&mut self, snapshot: &Snapshot) {
        let gateway = &snapshot.gateway;
        let waiting = |name: &String| lag(&self.status, &self.journal, name).0;
        let lag = snapshot.sinks.sinks.keys().map(waiting).max();
        let dead: u64 = self.status.dead_letter_counts().values().sum();
        self.astro = connections(gateway);
        let figures = json!({
            "lag": lag.unwrap_or(0),
            "last_event": gateway.last_event.map(clock::rfc3339),
            "gaps": gateway.gap_count,
            "dead_letters": dead,
            "version": env!("CARGO_PKG_VERSION"),
            "astro": self.astro,
        });
        self.store.insert([(StateKey::relay(Section::Diagnostics), Some((&figures).into()))]);
    }
}

/// How many of the connections to Astro are open, in a word.
fn connections(gateway: &table::State) -> &'static str {
    match gateway.open_connections() {
        0 => "disconnected",
        all if all == gateway.connections.len() => "connected",
        _ => "partly connected",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        astro::session::{Refusal, Subscription, SubscriptionState},
        config::TokenType,
        delivery::status::Sink,
        gateway::table::{ConnectionRow, Phase, Slot, SubscriptionRow},
    };

    fn verdict(snapshot: &Snapshot) -> Verdict {
        Verdict::of(snapshot, &RelayStatus::new(0).health(snapshot))
    }

    fn refused() -> SubscriptionState {
        let now = Instant::now();
        SubscriptionState::Refused(Refusal::new("err_bad_request", "", None, now))
    }

    /// One connection with the topics a, b, … of one channel.
    fn gateway(phase: Phase, states: &[SubscriptionState]) -> table::State {
        let mut state = table::State::default();
        state.connections.insert(0, ConnectionRow { phase, ..ConnectionRow::default() });
        for (topic, subscription_state) in ["a", "b"].iter().zip(states) {
            let subscription = Subscription {
                channel: "main".into(),
                topic: (*topic).into(),
                room: None,
                token_type: TokenType::Jwt,
                token_room: None,
            };
            let mut row = SubscriptionRow::new(0);
            (row.slot, row.state) = (Slot::On(0), subscription_state.clone());
            state.subscriptions.insert(Arc::new(subscription), row);
        }
        state
    }

    #[test]
    fn all_must_work_for_online_and_a_connection_be_open_for_not_being_offline() {
        let confirmed = || SubscriptionState::Confirmed(None);
        let (pending, waiting) = (SubscriptionState::Pending, SubscriptionState::Waiting);
        for (phase, states, sink, health, reason) in [
            (Phase::Open, [confirmed(), confirmed()], "up", "online", None),
            (Phase::Moving, [confirmed(), confirmed()], "up", "online", None),
            (
                Phase::Open,
                [confirmed(), confirmed()],
                "down",
                "degraded",
                Some("sink home is down"),
            ),
            (Phase::Open, [confirmed(), refused()], "up", "degraded", Some("main/b refused")),
            (Phase::Open, [confirmed(), pending], "up", "degraded", Some("main/b is pending")),
            (
                Phase::Waiting,
                [waiting.clone(), waiting.clone()],
                "up",
                "offline",
                Some("connection 0"),
            ),
            (Phase::Dialing, [waiting.clone(), waiting], "down", "offline", Some("; and 1 more")),
        ] {
            let mut snapshot = Snapshot::default();
            snapshot.gateway = gateway(phase, &states);
            let sink = Sink { state: sink, ..Sink::default() };
            snapshot.sinks.sinks.insert("home".into(), sink);
            let verdict = verdict(&snapshot);
            assert_eq!(verdict.availability.as_str(), health, "{snapshot:?}");
            match (reason, &verdict.reason) {
                (None, None) => {}
                (Some(part), Some(reason)) => assert!(reason.contains(part), "{reason}"),
                other => panic!("{other:?}"),
            }
        }
        // A relay that wants nothing of Astro lacks nothing.
        let lacks_nothing = verdict(&Snapshot::default());
        let (availability, health) = (Availability::Online, State::Working);
        assert_eq!(lacks_nothing, Verdict { availability, health, reason: None });
        // What has no connection yet is not online.
        let mut unassigned = Snapshot::default();
        unassigned.gateway = gateway(Phase::Open, &[SubscriptionState::Waiting]);
        unassigned.gateway.subscriptions.values_mut().for_each(|row| row.slot = Slot::Unassigned);
        let unassigned = verdict(&unassigned);
        assert_eq!(unassigned.availability, Availability::Degraded);
        assert_eq!(unassigned.reason.unwrap(), "1 subscription is not yet asked for");
    }

    #[test]
    fn before_the_gateway_has_begun_the_relay_is_not_ready() {
        let wanted = gateway(Phase::Open, &[SubscriptionState::Waiting]).subscriptions;
        let table = table::Table::default();
        table.expect(&wanted.into_keys().collect::<Vec<_>>());
        let mut snapshot = Snapshot::default();
        snapshot.gateway = table.snapshot();
        let verdict = verdict(&snapshot);
        assert_eq!(verdict.availability, Availability::Offline);
        assert_eq!(verdict.reason.unwrap(), "1 subscription is not yet asked for");
    }

    #[test]
    fn what_receives_nothing_or_delivers_nothing_does_not_work() {
        let confirmed = || SubscriptionState::Confirmed(None);
        for (states, sinks, availability, health) in [
            ([confirmed(), confirmed()], ["up", "up"], "online", "working"),
            ([confirmed(), refused()], ["up", "up"], "degraded", "degraded"),
            // The connection is open, and nothing comes over it.
            ([refused(), refused()], ["up", "up"], "offline", "not working"),
            ([confirmed(), confirmed()], ["up", "down"], "degraded", "degraded"),
            ([confirmed(), confirmed()], ["busy", "down"], "degraded", "degraded"),
            // What is received is still right, so it stays available.
            ([confirmed(), confirmed()], ["held", "down"], "degraded", "not working"),
        ] {
            let mut snapshot = Snapshot::default();
            snapshot.gateway = gateway(Phase::Open, &states);
            for (name, state) in ["home", "shop"].into_iter().zip(sinks) {
                let left_up = Some(clock::Moment::now());
                let sink = Sink { state, left_up, matched: 1, ..Sink::default() };
                snapshot.sinks.sinks.insert(name.into(), sink);
            }
            let verdict = verdict(&snapshot);
            let words = (verdict.availability.as_str(), verdict.health.as_str());
            assert_eq!(words, (availability, health), "{snapshot:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_of_the_connection_is_published_at_once() {
        let (status, store) = (Arc::new(RelayStatus::new(0)), Arc::new(StateStore::default()));
        let journal = Journal::in_memory(1 << 20);
        let health = HealthReporter::new(Arc::clone(&status), journal, Arc::clone(&store));
        let stop = CancellationToken::new();
        let astro = || {
            let key = StateKey::relay(Section::Diagnostics);
            store.snapshot(|entries, _| entries[&key].value.read()["astro"].clone())
        };
        let script = async {
            assert_eq!(astro(), "disconnected");
            for (phase, word) in [
                (Phase::Open, "connected"),
                (Phase::Waiting, "disconnected"),
                (Phase::Open, "connected"),
            ] {
                status.gateway.replace(gateway(phase, &[]));
                sleep(2 * PACE).await;
                assert_eq!(astro(), word);
            }
            stop.cancel();
        };
        tokio::join!(health.run(stop.clone()), script);
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_degradation_is_not_reported() {
        let (status, store) = (Arc::new(RelayStatus::new(0)), Arc::new(StateStore::default()));
        let journal = Journal::in_memory(1 << 20);
        status.gateway.replace(gateway(Phase::Waiting, &[SubscriptionState::Waiting]));
        let health = HealthReporter::new(Arc::clone(&status), journal.clone(), Arc::clone(&store));
        let stop = CancellationToken::new();
        let value = |key: StateKey| {
            store.snapshot(|entries, _| entries.get(&key).map(|entry| entry.value.read()))
        };
        let relay = || value(StateKey::relay(Section::Status)).unwrap()["status"].clone();
        let channel = || value(StateKey::of("main", Section::Status)).unwrap();
        let sink = |state: &'static str| status.sinks.sink("home", |page| page.state = state);
        let script = async {
            assert_eq!((relay(), channel()), (json!("offline"), json!("offline")));
            sink("up");
            let confirmed = SubscriptionState::Confirmed(None);
            status.gateway.replace(gateway(Phase::Open, &[confirmed]));
            sleep(2 * PACE).await;
            assert_eq!((relay(), channel()), (json!("online"), json!("online")));
            // A blip, and then an outage.
            sink("down");
            sleep(DEBOUNCE * 9 / 10).await;
            sink("up");
            sleep(2 * DEBOUNCE).await;
            sink("down");
            sleep(DEBOUNCE * 9 / 10).await;
            assert_eq!(relay(), "online", "not yet");
            sleep(DEBOUNCE / 5 + 2 * PACE).await;
            assert_eq!((relay(), channel()), (json!("degraded"), json!("online")));
            status.gateway.replace(table::State::default());
            sleep(2 * PACE).await;
            assert_eq!(value(StateKey::of("main", Section::Status)), None, "no longer wanted");
            stop.cancel();
        };
        tokio::join!(health.run(stop.clone()), script);
        let events = journal.read(0, journal.figures().last, 100, usize::MAX).await.unwrap();
        let word = |data: &[u8]| serde_json::from_slice::<Value>(data).unwrap()["status"].clone();
        let reported: Vec<_> =
            events.records.iter().map(|record| word(record.event.data())).collect();
        assert_eq!(reported, ["offline", "online", "degraded", "offline"]);
    }
}
