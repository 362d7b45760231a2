//! Whether the relay does what it is there for, told to those who rely on it.
//!
//! From the status pages it works out the relay's status (`online`, `degraded`, `offline`, and why), that
//! of each channel, and some figures. All stand on the [`StateStore`], from which sinks have them kept; a
//! change of the relay's status is also an event on [`TOPIC`]. It does not decide what is ready: that is
//! [`Pages::reasons`].
//!
//! The one thing to know: `online` and `offline` are told at once, `degraded` when it has lasted for
//! [`SETTLE`]. Between the end of a connection and the last subscription on the next it is always so.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use foldhash::fast::FixedState;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    base::{
        clock::{self, UnixMillis},
        event,
    },
    channel::store::{Section, StateKey, StateStore, word},
    gateway::{
        Targets,
        status::{Looks, Pages, Standing, Status},
    },
    journal::Journal,
};

/// The topic of a change of the relay's status.
pub const TOPIC: &str = "relay.status";

/// How long it must be degraded before it is told.
const SETTLE: Duration = Duration::from_secs(1);

/// Figures are told no more often than this: somebody looks at them, nothing depends on them.
const FIGURES: Duration = Duration::from_secs(10);

/// While the status stays what it is, another reason for it is an event no more often than this: the
/// errors of a far side that is down may differ with every attempt.
const REASON: Duration = Duration::from_mins(1);

/// How the relay is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    /// All that is wanted works.
    Online,
    /// Some of it does not.
    Degraded,
    /// Nothing can be heard.
    Offline,
}

impl Health {
    fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Degraded => "degraded",
            Self::Offline => "offline",
        }
    }
}

/// What is found on the pages.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Verdict {
    health: Health,
    reason: Option<String>,
}

/// What was told, and since when it is so.
#[derive(Debug, Clone)]
struct Told {
    verdict: Verdict,
    since: UnixMillis,
}

/// What each channel is to have, by label.
type Wanted = BTreeMap<Arc<str>, Channel>;

/// What one channel is to have.
#[derive(Debug, Clone, Default)]
struct Channel {
    /// So many subscriptions.
    count: usize,
    /// Whether it was said to be online.
    online: Option<bool>,
}

/// Which topics of each channel stand, by label.
type StandingTopics<'a> = HashMap<&'a str, Vec<&'a str>, FixedState>;

/// The task.
#[derive(Debug)]
pub struct Presence {
    status: Arc<Status>,
    journal: Journal,
    store: Arc<StateStore>,
    targets: watch::Receiver<Targets>,
    /// What each channel is to have, from `targets`.
    wanted: Wanted,
    told: Told,
    /// What the last event said, and when.
    event: Option<(Verdict, Instant)>,
    /// Since when it has been degraded, where that is not told yet.
    degraded: Option<Instant>,
}

impl Presence {
    /// One for what `targets` says, now and later. What it knows at once stands on the store at once.
    pub fn new(
        status: Arc<Status>,
        journal: Journal,
        store: Arc<StateStore>,
        mut targets: watch::Receiver<Targets>,
    ) -> Self {
        let wanted = wanted(&targets.borrow_and_update());
        let reason = Some("the relay has just been started".to_owned());
        let told =
            Told { verdict: Verdict { health: Health::Offline, reason }, since: clock::now() };
        let mut presence =
            Self { status, journal, store, targets, wanted, told, event: None, degraded: None };
        presence.post();
        let Self { status, store, wanted, .. } = &mut presence;
        status.look(|pages| channels(store, wanted, &standing(pages)));
        presence.figures();
        presence
    }

    /// Tells until it is told to stop, and then that.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut connections = self.status.connections();
        let mut sinks = self.status.sinks();
        let mut figures = interval(FIGURES);
        figures.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looks = Looks::new(Looks::PACE);
        loop {
            let began = Instant::now();
            self.look();
            looks.looked(began);
            looks.wish();
            let settled = self.degraded.map(|since| since + SETTLE);
            tokio::select! {
                () = stop.cancelled() => break,
                Ok(()) = connections.changed() => {}
                Ok(()) = sinks.changed() => {}
                Ok(()) = self.targets.changed() => self.adopt(),
                _ = figures.tick() => self.figures(),
                () = sleep_until(settled.unwrap_or_else(Instant::now)), if settled.is_some() => {}
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = looks.due() => {}
            }
        }
        let reason = Some("the relay was stopped".to_owned());
        self.tell(Verdict { health: Health::Offline, reason });
    }

    /// Looks at the pages, and tells what is new.
    fn look(&mut self) {
        let Self { status, store, wanted, .. } = self;
        let verdict = status.look(|pages| {
            let standing = standing(pages);
            channels(store, wanted, &standing);
            judge(pages, wanted, &standing)
        });
        if verdict.health == Health::Degraded && self.told.verdict.health != Health::Degraded {
            let since = *self.degraded.get_or_insert_with(Instant::now);
            if since.elapsed() < SETTLE {
                return;
            }
        }
        self.degraded = None;
        self.tell(verdict);
    }

    fn tell(&mut self, verdict: Verdict) {
        if verdict.health != self.told.verdict.health {
            let reason = verdict.reason.as_deref().unwrap_or_default();
            info!(status = verdict.health.as_str(), reason, "the relay's status has changed");
            self.told.since = clock::now();
        }
        self.told.verdict = verdict;
        self.post();
        let now = Instant::now();
        let news = self.event.as_ref().is_none_or(|(last, at)| {
            last.health != self.told.verdict.health
                || (*last != self.told.verdict && *at + REASON <= now)
        });
        if news {
            self.event = Some((self.told.verdict.clone(), now));
            let nobody: Arc<str> = "".into();
            let data = self.told.to_json();
            let mut events = vec![event::own(TOPIC, &nobody, &nobody, &data, clock::now())];
            self.journal.append(&mut events);
        }
    }

    fn post(&self) {
        self.store
            .insert([(StateKey::relay(Section::Status), Some((&self.told.to_json()).into()))]);
    }

    /// Takes up the channels as they are wanted now; the status of those that are not goes.
    fn adopt(&mut self) {
        self.wanted = wanted(&self.targets.borrow_and_update());
        let of = |key: &StateKey| key.section == Section::Status && !key.channel.is_empty();
        self.store.remove(|key| of(key) && !self.wanted.contains_key(&*key.channel));
    }

    fn figures(&self) {
        let (sinks, last_event, gaps, astro) = self.status.look(|pages| {
            let sinks: Vec<String> = pages.sinks.keys().cloned().collect();
            (sinks, pages.last_event.map(clock::rfc3339), pages.gaps_told, link(pages))
        });
        let lag = sinks.iter().map(|name| self.journal.lag(name).0).max().unwrap_or(0);
        let dead: u64 = self.journal.dead_letter_counts().values().sum();
        let figures = json!({
            "lag": lag,
            "last_event": last_event,
            "gaps": gaps,
            "dead_letters": dead,
            "version": env!("CARGO_PKG_VERSION"),
            "astro": astro,
        });
        self.store.insert([(StateKey::relay(Section::Diagnostics), Some((&figures).into()))]);
    }
}

impl Told {
    fn to_json(&self) -> Value {
        json!({
            "status": self.verdict.health.as_str(),
            "reason": self.verdict.reason,
            "since": clock::rfc3339(self.since),
            "version": env!("CARGO_PKG_VERSION"),
        })
    }
}

/// How many subscriptions each channel has.
fn wanted(targets: &Targets) -> Wanted {
    let mut wanted = Wanted::new();
    for subscription in &targets.subscriptions {
        wanted.entry(Arc::clone(&subscription.channel)).or_default().count += 1;
    }
    wanted
}

/// What stands on connections that are open. While they move, it may stand on two of them.
fn standing(pages: &Pages) -> StandingTopics<'_> {
    let mut standing = StandingTopics::default();
    for connection in pages.connections.values().filter(|page| page.state.is_open()) {
        for subscription in &connection.subscriptions {
            if subscription.state == Standing::Confirmed {
                let topics = standing.entry(&subscription.channel).or_default();
                if !topics.contains(&&*subscription.topic) {
                    topics.push(&subscription.topic);
                }
            }
        }
    }
    standing
}

/// A channel is online when all of its subscriptions stand. What was said already is not said again.
fn channels(store: &StateStore, wanted: &mut Wanted, standing: &StandingTopics<'_>) {
    store.insert(wanted.iter_mut().filter_map(|(label, channel)| {
        let online = Some(stands(standing, label) >= channel.count);
        if std::mem::replace(&mut channel.online, online) == online {
            return None;
        }
        Some((StateKey::of(label, Section::Status), online.map(word)))
    }));
}

/// How many subscriptions of a channel stand.
fn stands(standing: &StandingTopics<'_>, label: &str) -> usize {
    standing.get(label).map_or(0, Vec::len)
}

/// The link to Astro in a word or two.
fn link(pages: &Pages) -> &'static str {
    let open = pages.connections.values().filter(|page| page.state.is_open()).count();
    match open {
        0 => "disconnected",
        all if all == pages.connections.len() => "connected",
        _ => "partly connected",
    }
}

/// How the relay is, if each channel wants so many subscriptions, and so many stand.
fn judge(pages: &Pages, wanted: &Wanted, standing: &StandingTopics<'_>) -> Verdict {
    // What is wanted and stands on no page yet is no reason of any page.
    let lacking = || {
        let mut lacking = wanted.iter().filter(|(label, one)| stands(standing, label) < one.count);
        let (label, _) = lacking.next()?;
        Some(format!("the subscriptions of {label} are not confirmed"))
    };
    let mut reasons = pages.why();
    let reason = match (reasons.next(), reasons.count()) {
        (None, _) => lacking(),
        (Some(only), 0) => Some(only.to_string()),
        (Some(first), others) => Some(format!("{first}; and {others} more")),
    };
    let health = match &reason {
        _ if !wanted.is_empty() && link(pages) == "disconnected" => Health::Offline,
        Some(_) => Health::Degraded,
        None => Health::Online,
    };
    Verdict { health, reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::status::{Phase, Sink, Subscription};

    fn subscription(topic: &str, state: Standing) -> Subscription {
        Subscription {
            channel: "main".into(),
            topic: topic.into(),
            room: None,
            state,
            code: None,
            text: None,
            retry_at: None,
            confirmed_at: None,
        }
    }

    /// Pages of one connection and one sink.
    fn pages(phase: Phase, states: &[Standing], sink: &'static str) -> Pages {
        let status = Status::new(0);
        status.connection(0, |page| {
            page.state = phase;
            let topics = ["a", "b"].iter().zip(states);
            page.subscriptions = topics.map(|(topic, state)| subscription(topic, *state)).collect();
        });
        status.sink("home", |page| *page = Sink { state: sink, ..Sink::default() });
        status.pages()
    }

    #[test]
    fn all_must_stand_for_online_and_something_for_not_being_offline() {
        let both = [Standing::Confirmed; 2];
        for (phase, states, sink, health, reason) in [
            (Phase::Open, &both[..], "up", "online", None),
            (Phase::Moving, &both, "up", "online", None),
            (Phase::Open, &both, "down", "degraded", Some("sink home is down")),
            (
                Phase::Open,
                &[Standing::Confirmed, Standing::Refused],
                "up",
                "degraded",
                Some("main/b refused"),
            ),
            (
                Phase::Open,
                &[Standing::Confirmed, Standing::Pending],
                "up",
                "degraded",
                Some("main/b is pending"),
            ),
            (Phase::Open, &[], "up", "degraded", Some("of main are not confirmed")),
            (Phase::Waiting, &[Standing::Waiting; 2], "up", "offline", Some("connection 0")),
            (Phase::Dialing, &[], "down", "offline", Some("; and 1 more")),
        ] {
            let pages = pages(phase, states, sink);
            let wanted = Wanted::from([("main".into(), Channel { count: 2, online: None })]);
            let verdict = judge(&pages, &wanted, &standing(&pages));
            assert_eq!(verdict.health.as_str(), health, "{pages:?}");
            match (reason, &verdict.reason) {
                (None, None) => {}
                (Some(part), Some(reason)) => assert!(reason.contains(part), "{reason}"),
                other => panic!("{other:?}"),
            }
        }
        // Who wants nothing of Astro lacks nothing.
        let verdict = judge(&Status::new(0).pages(), &Wanted::new(), &StandingTopics::default());
        assert_eq!(verdict, Verdict { health: Health::Online, reason: None });
    }

    #[test]
    fn only_an_open_connection_counts_for_a_channel() {
        let both = [Standing::Confirmed; 2];
        let count = |phase| stands(&standing(&pages(phase, &both, "up")), "main");
        assert_eq!((count(Phase::Open), count(Phase::Dialing)), (2, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_over_before_it_is_settled_is_not_told() {
        let (status, store) = (Arc::new(Status::new(0)), Arc::new(StateStore::default()));
        let journal = Journal::in_memory(1 << 20);
        let wanted = crate::astro::session::Subscription {
            channel: "main".into(),
            topic: "a".into(),
            room: None,
            token_type: crate::config::TokenType::Jwt,
        };
        let targets = Targets { subscriptions: vec![Arc::new(wanted)], ..Targets::default() };
        let (_targets, targets) = watch::channel(targets);
        let presence =
            Presence::new(Arc::clone(&status), journal.clone(), Arc::clone(&store), targets);
        let stop = CancellationToken::new();
        let is = |key: StateKey| {
            store.snapshot(|entries, _| entries.get(&key).map(|entry| entry.value.read()))
        };
        let relay = || is(StateKey::relay(Section::Status)).unwrap()["status"].clone();
        let channel = || is(StateKey::of("main", Section::Status)).unwrap();
        let sink = |state: &'static str| status.sink("home", |page| page.state = state);
        let script = async {
            assert_eq!((relay(), channel()), (json!("offline"), json!("offline")));
            sink("up");
            status.connection(0, |page| {
                page.state = Phase::Open;
                page.subscriptions = vec![subscription("a", Standing::Confirmed)];
            });
            tokio::time::sleep(2 * Looks::PACE).await;
            assert_eq!((relay(), channel()), (json!("online"), json!("online")));
            // A blip, and then an outage.
            sink("down");
            tokio::time::sleep(SETTLE * 9 / 10).await;
            sink("up");
            tokio::time::sleep(2 * SETTLE).await;
            sink("down");
            tokio::time::sleep(SETTLE * 9 / 10).await;
            assert_eq!(relay(), "online", "not yet");
            tokio::time::sleep(10 * Looks::PACE).await;
            assert_eq!((relay(), channel()), (json!("degraded"), json!("online")));
            stop.cancel();
        };
        tokio::join!(presence.run(stop.clone()), script);
        let told = journal.read(0, journal.figures().last, 100, usize::MAX).await.unwrap();
        let word = |data: &[u8]| serde_json::from_slice::<Value>(data).unwrap()["status"].clone();
        let told: Vec<_> = told.records.iter().map(|record| word(record.event.data())).collect();
        assert_eq!(told, ["offline", "online", "degraded", "offline"]);
    }
}
