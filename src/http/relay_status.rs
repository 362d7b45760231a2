//! The status of the whole relay: what `/status` shows, and why the relay is not ready.
//!
//! A projection of the tables of gateway, channels and deliveries. Beside them it has only what belongs to
//! none of them: what the last reload brought, and what the configuration lacks.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{sync::watch, time::Instant};

use crate::{
    astro::session::{Subscription, SubscriptionState},
    base::{
        clock::{self, UnixMillis},
        text::excerpt,
    },
    channel::{
        sessions::{SessionStatus, Sessions},
        silence::Silences,
        token_status::{ShownToken, Tokens},
    },
    cluster::{Cluster, report},
    config::difference::Report,
    delivery::status::{self, Pages, Status},
    gateway::table::{self, ConnectionRow, Slot, SubscriptionRow, Table},
};

/// Problems of a configuration that are shown.
const LINES: usize = 100;

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
}

#[derive(Debug, Clone, Default)]
struct Configuration {
    /// What became of the latest request to load it again.
    reload: Option<Report>,
    /// What it lacks, so that nothing can be relayed.
    lacks: Vec<&'static str>,
}

impl RelayStatus {
    /// That of a relay that starts now.
    pub fn new(now: UnixMillis) -> Self {
        Self { started: now, ..Self::default() }
    }

    fn configuration(&self) -> MutexGuard<'_, Configuration> {
        self.configuration.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many channels and sinks are configured.
    pub fn configured(&self, channels: usize, sinks: usize) {
        let lacks = [(channels, "no channel is configured"), (sinks, "no sink is configured")];
        let lacks = lacks.into_iter().filter(|(count, _)| *count == 0);
        self.configuration().lacks = lacks.map(|(_, reason)| reason).collect();
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
        self.configuration().reload = Some(report);
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

    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            started: self.started,
            gateway: self.gateway.snapshot(),
            sinks: self.sinks.pages(),
            sessions: self.sessions.snapshot(),
            tokens: self.tokens.snapshot(),
            silences: self.silences.snapshot(),
            cluster: self.cluster().map(Cluster::report),
            configuration: self.configuration().clone(),
        }
    }
}

/// The status as it was at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    started: UnixMillis,
    pub gateway: table::State,
    pub sinks: Pages,
    pub sessions: BTreeMap<String, SessionStatus>,
    pub tokens: BTreeMap<String, ShownToken>,
    pub silences: BTreeMap<Arc<Subscription>, Duration>,
    cluster: Option<report::Report>,
    configuration: Configuration,
}

/// Why the relay is not ready. It is formatted where somebody reads it: there may be as many as there are
/// subscriptions.
#[derive(Debug, Clone, Copy)]
pub enum Reason<'a> {
    Connection(u64, &'a ConnectionRow),
    /// Some of what comes on a connection cannot be relayed.
    Unreadable(u64, &'a str),
    Subscription(&'a Subscription, &'a SubscriptionState),
    LeftOut(&'a Subscription),
    /// So many have no connection yet.
    NotAsked(usize),
    /// It brings nothing although its channel is live; and what is odd about its token.
    Silent(&'a Subscription, Duration, Option<&'a str>),
    /// A channel's token cannot be refreshed.
    Token(&'a str, &'a str),
    Sink(status::Reason<'a>),
    Cluster(&'a str),
    Unconfigured(&'static str),
}

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connection(number, row) => {
                let why = row.last_error.as_deref().unwrap_or("not yet connected");
                write!(f, "connection {number} to Astro: {why}")
            }
            Self::Unreadable(number, why) => write!(f, "connection {number} to Astro: {why}"),
            Self::Subscription(subscription, SubscriptionState::Refused(refusal)) => {
                write!(f, "subscription {subscription} refused: {} {}", refusal.code, refusal.text)
            }
            Self::Subscription(subscription, state) => {
                write!(f, "subscription {subscription} is {}", state.as_str())
            }
            Self::LeftOut(subscription) => {
                write!(f, "subscription {subscription} is left out: max_connections")
            }
            Self::NotAsked(count) => write!(f, "{count} subscriptions are not yet asked for"),
            Self::Silent(subscription, quiet, doubt) => {
                let minutes = Duration::from_secs(quiet.as_secs() / 60 * 60);
                let quiet = humantime::format_duration(minutes);
                write!(
                    f,
                    "subscription {subscription} is confirmed and has brought nothing for {quiet} while \
                     the channel is live"
                )?;
                doubt.map_or(Ok(()), |doubt| write!(f, "; of its token: {doubt}"))
            }
            Self::Token(label, why) => write!(f, "token of {label} {why}"),
            Self::Sink(reason) => reason.fmt(f),
            Self::Cluster(why) => f.write_str(why),
            Self::Unconfigured(what) => f.write_str(what),
        }
    }
}

impl Snapshot {
    /// Why the relay is not ready; empty: it is.
    pub fn reasons(&self) -> Vec<String> {
        self.why().map(|reason| reason.to_string()).collect()
    }

    pub fn why(&self) -> impl Iterator<Item = Reason<'_>> {
        let state = &self.gateway;
        let connections = state.connections.iter().filter_map(|(number, row)| {
            if row.phase.is_open() {
                row.unreadable.as_deref().map(|why| Reason::Unreadable(*number, why))
            } else {
                Some(Reason::Connection(*number, row))
            }
        });
        let is_open =
            |number| state.connections.get(&number).is_some_and(|row| row.phase.is_open());
        // Where its connection is not open, that is the reason.
        let subscriptions = state.assigned().filter_map(move |(subscription, row)| {
            let counts = row.slot.connection().is_some_and(is_open) && !row.state.is_confirmed();
            counts.then_some(Reason::Subscription(subscription, &row.state))
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
        let tokens = self.tokens.iter().filter_map(|(label, token)| {
            token.reason.as_deref().map(|why| Reason::Token(label, why))
        });
        gateway
            .chain(not_asked.then_some(Reason::NotAsked(unassigned)))
            .chain(silent)
            .chain(tokens)
            .chain(self.sinks.why().map(Reason::Sink))
            .chain(self.cluster_problems().map(Reason::Cluster))
            .chain(self.configuration.lacks.iter().copied().map(Reason::Unconfigured))
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
            insert(&mut sink, "lag_events", events.into());
            insert(&mut sink, "lag_seconds", seconds.as_secs_f64().into());
            (name.as_str(), sink)
        });
        let mut json = json!({
            "started": self.started,
            "connections": connections,
            "wanted": state.subscriptions.len(),
            "left_out": left_out,
            "sinks": sinks.collect::<BTreeMap<_, _>>(),
            "gaps": state.gaps,
            "gaps_told": state.gap_count,
            "last_event": state.last_event,
            "sessions": self.sessions,
            "tokens": self.tokens,
            "reload": self.configuration.reload,
        });
        if !self.configuration.lacks.is_empty() {
            insert(&mut json, "unconfigured", json!(self.configuration.lacks));
        }
        if let Some(cluster) = &self.cluster {
            insert(&mut json, "cluster", json!(cluster));
        }
        if !self.sinks.tasks.is_empty() {
            insert(&mut json, "tasks", json!(self.sinks.tasks));
        }
        json
    }

    fn connection(&self, number: u64, row: &ConnectionRow) -> Value {
        let assigned = self.gateway.assigned();
        let on_it = assigned.filter(|(_, row)| row.slot.connection() == Some(number));
        let mut json = json!({
            "state": row.phase,
            "since": row.since,
            "attempts": row.attempts,
            "last_error": row.last_error,
            "heard": row.last_frame.map(|at| clock::ago(at.elapsed())),
            "subscriptions": on_it.map(|(one, row)| subscription(one, row)).collect::<Vec<_>>(),
        });
        if let Some(why) = &row.unreadable {
            insert(&mut json, "unreadable", json!(why));
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
            insert(&mut json, "confirmed_at", json!(row.confirmed_at));
            insert(&mut json, "messages", row.messages.into());
        }
        SubscriptionState::Refused(refusal) => {
            insert(&mut json, "code", json!(refusal.code));
            insert(&mut json, "text", json!(refusal.text));
            if let Some(at) = refusal.retry_at {
                let wait = at.saturating_duration_since(Instant::now()).as_millis();
                insert(
                    &mut json,
                    "retry_at",
                    json!(clock::now() + u64::try_from(wait).unwrap_or(0)),
                );
            }
        }
        SubscriptionState::Waiting | SubscriptionState::Pending => {}
    }
    json
}

fn insert(object: &mut Value, name: &str, value: Value) {
    if let Some(object) = object.as_object_mut() {
        object.insert(name.to_owned(), value);
    }
}
