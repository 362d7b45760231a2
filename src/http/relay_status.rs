//! The status of the whole relay: what `/status` shows, and why the relay is not ready.
//!
//! A projection of the tables of gateway, channels and deliveries. Beside them it has only what belongs to
//! none of them: what the last reload brought, and what the configuration lacks.

mod reason;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{sync::watch, time::Instant};

use crate::{
    astro::session::{Subscription, SubscriptionState},
    base::{
        clock::{self, UnixMillis},
        json, metrics,
        sync::lock,
        text::excerpt,
    },
    channel::{
        sessions::{SessionStatus, Sessions},
        silence::Silences,
        token_status::{ShownToken, Tokens},
    },
    cluster::{Cluster, report},
    config::difference::Report,
    delivery::status::{STANDBY, Status, StatusSnapshot},
    gateway::table::{self, ConnectionRow, Slot, SubscriptionRow, Table},
    http::health::{self, Health, Memory},
    journal::Journal,
};

pub use self::reason::{Reason, about_refusal};

/// Problems of a configuration that are shown.
const LINES: usize = 100;

/// A token that ends within a week is worth a word.
const SOON: UnixMillis = 7 * 24 * 60 * 60 * 1000;

/// Bytes of one of them.
const TEXT: usize = 1000;

#[derive(Debug, Default)]
pub struct RelayStatus {
    started: UnixMillis,
    pub gateway: Arc<Table>,
    pub sinks: Arc<Status>,
    pub sessions: Arc<Sessions>,
    pub tokens: Arc<Tokens>,
    pub silences: Arc<Silences>,
    cluster: OnceLock<Cluster>,
    configuration: Mutex<Configuration>,
    changes: watch::Sender<u64>,
    /// Where Astro's gateway is.
    astro: String,
    /// Where dead letters are counted; none in a relay that has no journal yet.
    journal: Option<Journal>,
    /// The sinks that had some when they were last counted for the metrics.
    had_letters: Mutex<BTreeSet<String>>,
    memory: Memory,
}

#[derive(Debug, Clone, Default)]
struct Configuration {
    /// What became of the latest request to load it again.
    reload: Option<Report>,
    /// What it lacks, so that nothing can be relayed.
    lacks: Vec<&'static str>,
    /// Whether it has `http.admin_token`.
    admin: bool,
}

impl RelayStatus {
    /// That of a relay that starts now.
    pub fn new(now: UnixMillis) -> Self {
        Self { started: now, ..Self::default() }
    }

    /// With the journal whose dead letters count, and where Astro's gateway is.
    #[must_use]
    pub fn with(self, journal: Journal, astro: String) -> Self {
        Self { journal: Some(journal), astro, ..self }
    }

    /// These channels and sinks are configured; and `http.admin_token`, or not.
    pub fn configured<'a>(
        &self,
        channels: impl Iterator<Item = &'a String>,
        sinks: usize,
        admin: bool,
    ) {
        let channels = channels.map(|label| metrics::channel(label)).count();
        let lacks = [(channels, "no channel is configured"), (sinks, "no sink is configured")];
        let lacks = lacks.into_iter().filter(|(count, _)| *count == 0);
        {
            let mut configuration = lock(&self.configuration);
            configuration.lacks = lacks.map(|(_, reason)| reason).collect();
            configuration.admin = admin;
        }
        self.changes.send_modify(|count| *count += 1);
    }

    /// The configuration was loaded again, or could not be.
    pub fn reloaded(&self, mut report: Report) {
        for lines in [&mut report.problems, &mut report.warnings] {
            lines.truncate(LINES);
            for line in lines {
                *line = excerpt(line, TEXT);
            }
        }
        lock(&self.configuration).reload = Some(report);
        self.changes.send_modify(|count| *count += 1);
    }

    /// The relay is a member of a cluster.
    pub fn in_cluster(&self, cluster: Cluster) {
        // Once, at the start.
        drop(self.cluster.set(cluster));
    }

    /// The relay's part in a cluster.
    pub fn cluster(&self) -> Option<&Cluster> {
        self.cluster.get()
    }

    /// Changes with the configuration.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// How many dead letters each sink has: in a cluster those that all members share.
    pub fn dead_letter_counts(&self) -> BTreeMap<String, u64> {
        if let Some(cluster) = self.cluster() {
            return cluster.dead_letter_counts();
        }
        let counts = self.journal.as_ref().map(Journal::dead_letter_counts);
        counts.unwrap_or_default().into_iter().collect()
    }

    /// The same for the metrics: a sink whose letters are gone is 0 there, and not what it was.
    pub(super) fn counted_letters(&self) -> BTreeMap<String, u64> {
        let counts = self.dead_letter_counts();
        let had = counts.keys().cloned().collect();
        let before = std::mem::replace(&mut *lock(&self.had_letters), had);
        let mut counted: BTreeMap<_, _> = before.into_iter().map(|sink| (sink, 0)).collect();
        counted.extend(counts);
        counted
    }

    pub fn snapshot(&self) -> Snapshot {
        let sinks = self.sinks.snapshot();
        let counts = self.dead_letter_counts();
        // Those of a sink that is no longer configured wait for nobody.
        let counts = counts.into_iter().filter(|(sink, _)| sinks.sinks.contains_key(sink));
        Snapshot {
            started: self.started,
            astro: self.astro.clone(),
            gateway: self.gateway.snapshot(),
            dead_letters: counts.filter(|(_, count)| *count > 0).collect(),
            sinks,
            sessions: self.sessions.snapshot(),
            tokens: self.tokens.snapshot(),
            silences: self.silences.snapshot(),
            cluster: self.cluster().map(Cluster::report),
            configuration: lock(&self.configuration).clone(),
        }
    }

    /// The health that a snapshot of this shows. The first reason is reported at its beginning only if this is
    /// called now and then.
    pub fn health(&self, snapshot: &Snapshot) -> Health {
        let admin = snapshot.configuration.admin;
        let reasons = snapshot.why().map(|reason| reason.listed(admin)).collect();
        self.memory.health(reasons, snapshot.at_least(), clock::now())
    }
}

/// The status as it was at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    started: UnixMillis,
    astro: String,
    pub gateway: table::State,
    pub sinks: StatusSnapshot,
    /// Of each sink that has some, how many.
    pub dead_letters: BTreeMap<String, u64>,
    pub sessions: BTreeMap<String, SessionStatus>,
    pub tokens: BTreeMap<String, ShownToken>,
    pub silences: BTreeMap<Arc<Subscription>, Duration>,
    cluster: Option<report::Report>,
    configuration: Configuration,
}

impl Snapshot {
    /// Why the relay does not work as configured; empty: it does. Notices are no such reasons.
    pub fn reasons(&self) -> Vec<String> {
        let serious = self.why().filter(|reason| !reason.is_notice());
        serious.map(|reason| reason.to_string()).collect()
    }

    /// Whether events come, or will as soon as the gateway has answered.
    pub fn receives(&self) -> bool {
        let state = &self.gateway;
        let may_come = |row: &SubscriptionRow| {
            !matches!(row.state, SubscriptionState::Refused(_)) && row.slot != Slot::LeftOut
        };
        state.subscriptions.is_empty()
            || (state.open_connections() > 0 && state.subscriptions.values().any(may_come))
    }

    /// Whether a sink takes events.
    fn delivers(&self) -> bool {
        let sinks = &self.sinks.sinks;
        sinks.is_empty() || sinks.values().any(|sink| sink.delivers() || sink.state == STANDBY)
    }

    /// The health at best, whatever the single reasons are.
    fn at_least(&self) -> health::State {
        if self.receives() && self.delivers() {
            health::State::Working
        } else {
            health::State::NotWorking
        }
    }

    pub fn why(&self) -> impl Iterator<Item = Reason<'_>> {
        let state = &self.gateway;
        let connections = state.connections.iter().flat_map(|(&number, row)| {
            let is_open = row.phase.is_open();
            let closed = (!is_open).then_some(Reason::Connection(number, row));
            let unreadable = row.unreadable.as_deref().map(|why| Reason::Unreadable(number, why));
            let unplaced = row.unplaced.iter().map(move |topic| Reason::Unplaced(number, topic));
            let open = unreadable.into_iter().chain(unplaced).filter(move |_| is_open);
            closed.into_iter().chain(open)
        });
        let is_open =
            |number| state.connections.get(&number).is_some_and(|row| row.phase.is_open());
        // Where its connection is not open, that is the reason.
        let subscriptions = state.assigned().filter_map(move |(subscription, row)| {
            let counts = row.slot.connection().is_some_and(is_open) && !row.state.is_confirmed();
            counts.then(|| Reason::Subscription(subscription, &row.state, retry_at(&row.state)))
        });
        let left_out = state.left_out().into_iter().map(|one| Reason::LeftOut(one));
        let mut gateway = connections.chain(subscriptions).chain(left_out).peekable();
        // Before the gateway has begun there is no connection that could be the reason.
        let is_free = |row: &&SubscriptionRow| row.slot == Slot::Unassigned;
        let unassigned = state.subscriptions.values().filter(is_free).count();
        let not_asked = unassigned > 0 && gateway.peek().is_none();
        let silent = self.silences.iter().map(|(subscription, quiet)| {
            let token = self.tokens.get(&*subscription.channel);
            let doubt = token.and_then(|token| token.doubts.first()).map(String::as_str);
            Reason::Silent(subscription, *quiet, doubt)
        });
        let tokens = self.tokens.iter().flat_map(|(label, token)| {
            let soon = |at: &UnixMillis| *at < clock::now().saturating_add(SOON);
            let ends = token.expires_at.filter(|at| soon(at) && !token.refreshed);
            let reason = token.reason.as_deref().map(|why| Reason::Token(label, why));
            let doubts = token.doubts.iter().map(|doubt| Reason::TokenDoubt(label, doubt));
            let ends = ends.map(|at| Reason::TokenExpires(label, at));
            reason.into_iter().chain(ends).chain(doubts)
        });
        let sessions = self.sessions.iter().filter_map(|(label, session)| {
            let why = session.error.as_deref().filter(|_| session.is_failing)?;
            Some(Reason::Session(label, why))
        });
        gateway
            .chain(not_asked.then_some(Reason::NotAsked(unassigned)))
            .chain(silent)
            .chain(tokens)
            .chain(sessions)
            .chain(self.sinks.why().map(Reason::Sink))
            .chain(self.dead_letters.iter().filter_map(|(sink, count)| {
                let row = self.sinks.sinks.get(sink)?;
                // In a cluster the member that drives the sink says it.
                let why = row.last_dead_letter.as_deref();
                (row.state != STANDBY).then_some(Reason::DeadLetters(sink, *count, why))
            }))
            .chain(self.cluster_problems().map(Reason::Cluster))
            .chain(self.rejected().map(Reason::Rejected))
            .chain(self.configuration.lacks.iter().copied().map(Reason::Unconfigured))
    }

    /// The latest reload, if its configuration was rejected.
    fn rejected(&self) -> impl Iterator<Item = &Report> {
        self.configuration.reload.iter().filter(|report| !report.problems.is_empty())
    }

    fn cluster_problems(&self) -> impl Iterator<Item = &str> {
        self.cluster.iter().flat_map(|cluster| cluster.problems.iter().map(String::as_str))
    }

    /// As `/status` shows it. `lag` tells of a sink how many events wait, and for how long.
    pub fn to_json(&self, lag: impl Fn(&str) -> (u64, Duration)) -> Value {
        let state = &self.gateway;
        let connections: BTreeMap<u64, Value> = state
            .connections
            .iter()
            .map(|(number, row)| (*number, self.connection(*number, row)))
            .collect();
        let left_out: Vec<String> = state.left_out().iter().map(ToString::to_string).collect();
        let sinks = self.sinks.sinks.iter().map(|(name, sink)| {
            let (events, seconds) = lag(name);
            let mut sink = json!(sink);
            json::set(&mut sink, "lag_events", events.into());
            json::set(&mut sink, "lag_seconds", seconds.as_secs_f64().into());
            (name.as_str(), sink)
        });
        let mut json = json!({
            "started": self.started,
            "astro": self.astro,
            "connections": connections,
            "wanted": state.subscriptions.len(),
            "left_out": left_out,
            "sinks": sinks.collect::<BTreeMap<_, _>>(),
            "gaps": state.gaps,
            "gaps_running": state.outages,
            "gaps_told": state.gap_count,
            "last_event": state.last_event,
            "sessions": self.sessions,
            "tokens": self.tokens,
            "reload": self.configuration.reload,
        });
        if !self.configuration.lacks.is_empty() {
            json::set(&mut json, "unconfigured", json!(self.configuration.lacks));
        }
        if let Some(cluster) = &self.cluster {
            json::set(&mut json, "cluster", json!(cluster));
        }
        if !self.sinks.tasks.is_empty() {
            json::set(&mut json, "tasks", json!(self.sinks.tasks));
        }
        json
    }

    fn connection(&self, number: u64, row: &ConnectionRow) -> Value {
        let assigned = self.gateway.assigned();
        let on_it = assigned.filter(|(_, row)| row.slot.connection() == Some(number));
        let mut json = json!({
            "state": row.phase,
            "since": row.since,
            "down_since": row.down_since,
            "attempts": row.attempts,
            "next_attempt": row.next_attempt,
            "last_error": row.last_error,
            "last_error_at": row.last_error_at,
            "heard": row.last_frame.map(|at| clock::ago(at.elapsed())),
            "subscriptions": on_it.map(|(one, row)| subscription(one, row)).collect::<Vec<_>>(),
        });
        if let Some(why) = &row.unreadable {
            json::set(&mut json, "unreadable", json!(why));
        }
        json
    }
}

fn subscription(subscription: &Subscription, row: &SubscriptionRow) -> Value {
    let mut json = json!({
        "channel": &*subscription.channel,
        "topic": &*subscription.topic,
        "room": row.room(subscription).map(|room| &**room),
        "state": row.state.as_str(),
    });
    match &row.state {
        SubscriptionState::Confirmed(_) => {
            json::set(&mut json, "confirmed_at", json!(row.confirmed_at));
            json::set(&mut json, "messages", row.messages.into());
        }
        SubscriptionState::Refused(refusal) => {
            json::set(&mut json, "code", json!(refusal.code));
            json::set(&mut json, "text", json!(refusal.text));
            if let Some(at) = retry_at(&row.state) {
                json::set(&mut json, "retry_at", json!(at));
            }
        }
        SubscriptionState::Waiting | SubscriptionState::Pending => {}
    }
    json
}

/// When a refused subscription is tried again, by the wall clock.
fn retry_at(state: &SubscriptionState) -> Option<UnixMillis> {
    let SubscriptionState::Refused(refusal) = state else { return None };
    let wait = refusal.retry_at?.saturating_duration_since(Instant::now());
    Some(clock::now() + clock::millis_of(wait))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{base::clock::Moment, delivery::status::Sink};

    #[test]
    fn a_session_that_cannot_be_fetched_is_a_reason_and_once_is_none() {
        let error = Some("HTTP 401: invalid token".to_owned());
        let session = SessionStatus { error, ..SessionStatus::default() };
        let mut snapshot = Snapshot::default();
        snapshot.sessions.insert("main".to_owned(), session.clone());
        assert_eq!(snapshot.reasons(), [""; 0]);
        let session = SessionStatus { is_failing: true, ..session };
        snapshot.sessions.insert("main".to_owned(), session);
        let reason = "the session of main cannot be fetched: HTTP 401: invalid token";
        assert_eq!(snapshot.reasons(), [reason]);
        let reason = snapshot.why().next().map(|reason| reason.listed(false)).unwrap();
        assert_eq!((reason.kind, reason.state), ("session", health::State::Degraded));
    }

    #[test]
    fn a_sink_that_stays_busy_and_accepts_nothing_does_not_deliver() {
        let health = |minutes, unanswered_since| {
            let mut snapshot = Snapshot::default();
            let left_up = Some(Moment::now().before(Duration::from_mins(minutes)));
            // As after a step of the wall clock.
            let since = clock::now().saturating_mul(2);
            let sink = Sink { state: "busy", since, left_up, unanswered_since, ..Sink::default() };
            snapshot.sinks.sinks.insert("hook".to_owned(), sink);
            RelayStatus::new(0).health(&snapshot).state
        };
        assert_eq!(health(2, None), health::State::NotWorking);
        assert_eq!(health(0, None), health::State::Degraded);
        assert_eq!(health(0, Some(1)), health::State::NotWorking);
    }

    #[test]
    fn a_sink_whose_dead_letters_are_gone_is_0_once() {
        let status = RelayStatus::new(0);
        lock(&status.had_letters).insert("removed".to_owned());
        assert_eq!(status.counted_letters(), BTreeMap::from([("removed".to_owned(), 0)]));
        assert_eq!(status.counted_letters(), BTreeMap::new());
    }

    #[test]
    fn a_doubt_about_a_token_is_a_sentence_of_its_own() {
        let doubt = "it lacks the scope tips:read for channel.tips";
        let reason = Reason::TokenDoubt("main", doubt).to_string();
        assert_eq!(reason, format!("token of main: {doubt}"));
    }
}
