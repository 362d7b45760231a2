//! What each part says of itself, for `/status`, `/readyz` and the metrics.
//!
//! Every part writes its own page when something changes, and reads nobody else's. Whether the relay
//! is ready, and why not, is worked out here, from the pages alone.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Serialize, Serializer};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::{
    base::{
        clock::{Moment, UnixMillis},
        text::excerpt,
    },
    config::difference::Report,
};

/// Gaps that are remembered for the page.
const GAPS: usize = 100;

/// Bytes of a text on a page that others may have written: an error, a remark, a cause.
const TEXT: usize = 1000;

/// Problems of a configuration that are on the page.
const LINES: usize = 100;

/// When something that costs the more the more subscriptions there are is done again: soon after there is
/// a reason, but never for more than a small share of the time. With ten thousand subscriptions a look at
/// all pages takes milliseconds, and as many confirmations come one by one.
#[derive(Debug)]
pub(crate) struct Looks {
    pace: Duration,
    next: Instant,
    due: bool,
}

impl Looks {
    /// Between two looks at all pages there is at least this: one is written with every message that is
    /// heard.
    pub(crate) const PACE: Duration = Duration::from_millis(20);

    /// Of so many parts of the time, looking may take one: with ten thousand subscriptions that is a
    /// look in about a second, while they change.
    const SHARE: u32 = 2000;

    /// One that leaves at least `pace` between two looks.
    pub(crate) fn new(pace: Duration) -> Self {
        Self { pace, next: Instant::now(), due: false }
    }

    /// There is a reason to look.
    pub(crate) fn wish(&mut self) {
        self.due = true;
    }

    /// Waits until it is time to look; for ever where there is no reason.
    pub(crate) async fn due(&self) {
        if self.due {
            sleep_until(self.next).await;
        } else {
            std::future::pending::<()>().await;
        }
    }

    /// A look has been taken that began then.
    pub(crate) fn looked(&mut self, began: Instant) {
        self.next = Instant::now() + self.pace.max(began.elapsed() * Self::SHARE);
        self.due = false;
    }
}

/// All pages.
#[derive(Debug, Default)]
pub struct Status {
    pages: Mutex<Pages>,
    /// Grows when a connection's page was written.
    connections: watch::Sender<u64>,
    /// Grows when a sink has another state.
    sinks: watch::Sender<u64>,
    /// Each grows when somebody asks for that sink to be tried now.
    retries: Mutex<BTreeMap<String, watch::Sender<u64>>>,
}

/// The pages as they are now.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Pages {
    /// When the relay started.
    pub started: UnixMillis,
    /// Connections to the gateway by number.
    pub connections: BTreeMap<u64, Connection>,
    /// How many subscriptions are wanted, on a page or not yet.
    pub wanted: usize,
    /// Subscriptions that no connection has room for, as `channel/topic`.
    pub left_out: Vec<String>,
    /// Sinks by name.
    pub sinks: BTreeMap<String, Sink>,
    /// The latest gaps, oldest first.
    pub gaps: VecDeque<Gap>,
    /// How many there have been since the start.
    pub gaps_told: u64,
    /// When the last event was heard since the start.
    pub last_event: Option<UnixMillis>,
    /// The state of each channel that has one, by label.
    pub sessions: BTreeMap<String, Session>,
    /// What became of the latest request to load the configuration anew.
    pub reload: Option<Report>,
    /// What is missing from the configuration, so that nothing can be relayed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unconfigured: Vec<&'static str>,
    /// Tasks of the relay that do not work, and why.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tasks: BTreeMap<String, String>,
}

/// One place in the gateway: a connection, or the attempt to have one.
#[derive(Debug, Clone, Serialize)]
pub struct Connection {
    /// What it does.
    pub state: Phase,
    /// Since when.
    pub since: UnixMillis,
    /// Attempts since it last worked.
    pub attempts: u32,
    /// Why it ended, or could not be opened, the last time.
    pub last_error: Option<String>,
    /// When the last frame came.
    pub heard: Option<UnixMillis>,
    /// The same for whoever measures: no step of the clock changes it.
    #[serde(skip)]
    pub heard_at: Option<Moment>,
    /// Why some of what comes cannot be relayed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<String>,
    /// What is wanted on it, and what of it stands.
    pub subscriptions: Vec<Subscription>,
}

/// What a connection does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Being opened.
    Dialing,
    /// Waiting to be opened again.
    Waiting,
    /// Open.
    Open,
    /// Open, and its successor is being opened.
    Moving,
}

impl Connection {
    /// Whether it is there for this subscription.
    pub fn shows(&self, channel: &str, topic: &str) -> bool {
        self.subscriptions.iter().any(|one| &*one.channel == channel && &*one.topic == topic)
    }
}

impl Phase {
    /// Whether messages come.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Open | Self::Moving)
    }
}

/// What stands of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// To be asked for.
    Waiting,
    /// Asked for, not answered.
    Pending,
    /// Ours.
    Confirmed,
    /// Not ours.
    Refused,
}

impl Standing {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Waiting, Self::Pending, Self::Confirmed, Self::Refused];

    /// Its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Pending => "pending",
            Self::Confirmed => "confirmed",
            Self::Refused => "refused",
        }
    }

    /// Whether the gateway has answered.
    pub fn is_answered(self) -> bool {
        matches!(self, Self::Confirmed | Self::Refused)
    }
}

/// One subscription.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Subscription {
    /// The channel's label.
    #[serde(serialize_with = "text")]
    pub channel: Arc<str>,
    /// The topic.
    #[serde(serialize_with = "text")]
    pub topic: Arc<str>,
    /// The room, canonical where it is known.
    #[serde(serialize_with = "optional_text")]
    pub room: Option<Arc<str>>,
    /// What stands of it.
    pub state: Standing,
    /// The gateway's error code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The gateway's text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// When it is tried again; absent where it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<UnixMillis>,
    /// When the gateway confirmed it: before that, something may have been missed. A connection that
    /// was restored keeps the time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confirmed_at: Option<UnixMillis>,
}

/// The state of one channel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Session {
    /// How many elements are known.
    pub elements: usize,
    /// When it was last fetched.
    pub fetched_at: Option<UnixMillis>,
    /// Why it could not be fetched the last time.
    pub error: Option<String>,
    /// How many values were left out of it: too many or too large ones.
    #[serde(skip_serializing_if = "is_zero")]
    pub left_out: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks by reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// One sink.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Sink {
    /// Its kind.
    pub kind: String,
    /// `connecting`, `up`, `down` (no connection), `busy` (asks for patience), `held` (denies us, or its
    /// dead letters are full), `rejecting` (no event is accepted any more), `gone` (wants nothing more),
    /// `failed` (its task did).
    pub state: &'static str,
    /// Since when.
    pub since: UnixMillis,
    /// Events that its far side has accepted since the start.
    pub delivered: u64,
    /// Events set aside since the start.
    pub dead_letters: u64,
    /// Events that its destination has rejected since it accepted one.
    pub rejected_in_a_row: u64,
    /// Events lost since the start.
    pub lost: u64,
    /// Events that wait.
    pub lag_events: u64,
    /// Age of the oldest of them, in seconds.
    pub lag_seconds: f64,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// When that was.
    pub last_error_at: Option<UnixMillis>,
    /// What an operator should know of its far side.
    pub remarks: Vec<String>,
}

/// A time without a connection.
#[derive(Debug, Clone, Serialize)]
pub struct Gap {
    /// The channel.
    pub channel: String,
    /// From.
    pub from: UnixMillis,
    /// To.
    pub to: UnixMillis,
    /// Why.
    pub cause: String,
}

/// A server's own words may be of any length.
fn shorten(text: &mut String) {
    if text.len() > TEXT {
        *text = excerpt(text, TEXT);
    }
}

impl Status {
    /// The pages of a relay that starts now.
    pub fn new(now: UnixMillis) -> Self {
        let pages = Mutex::new(Pages { started: now, ..Pages::default() });
        Self { pages, ..Self::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Pages> {
        // A page is replaced or changed field by field; a panic in between leaves it readable.
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of all pages.
    pub fn pages(&self) -> Pages {
        self.lock().clone()
    }

    /// Changes the page of a connection.
    pub fn connection(&self, number: u64, change: impl FnOnce(&mut Connection)) {
        let mut pages = self.lock();
        let page = pages.connections.entry(number).or_insert_with(|| Connection {
            state: Phase::Dialing,
            since: 0,
            attempts: 0,
            last_error: None,
            heard: None,
            heard_at: None,
            unreadable: None,
            subscriptions: Vec::new(),
        });
        change(page);
        page.last_error.iter_mut().for_each(shorten);
        for subscription in &mut page.subscriptions {
            subscription.code.iter_mut().chain(&mut subscription.text).for_each(shorten);
        }
        drop(pages);
        self.connections.send_modify(|count| *count += 1);
    }

    /// A connection is no longer wanted.
    pub fn no_connection(&self, number: u64) {
        self.lock().connections.remove(&number);
        self.connections.send_modify(|count| *count += 1);
    }

    /// Changes when the page of a connection does.
    pub fn connections(&self) -> watch::Receiver<u64> {
        self.connections.subscribe()
    }

    /// Looks at the pages without copying them.
    pub fn look<T>(&self, look: impl FnOnce(&Pages) -> T) -> T {
        look(&self.lock())
    }

    /// A channel's state is no longer kept.
    pub fn no_session(&self, channel: &str) {
        self.lock().sessions.remove(channel);
    }

    /// Writes the page of a channel's state.
    pub fn session(&self, channel: &str, mut page: Session) {
        page.error.iter_mut().for_each(shorten);
        self.lock().sessions.insert(channel.to_owned(), page);
    }

    /// So many subscriptions are wanted.
    pub fn wanted(&self, subscriptions: usize) {
        self.lock().wanted = subscriptions;
    }

    /// No connection has room for these.
    pub fn left_out(&self, subscriptions: Vec<String>) {
        self.lock().left_out = subscriptions;
    }

    /// Changes the page of a sink.
    pub fn sink(&self, name: &str, change: impl FnOnce(&mut Sink)) {
        let mut pages = self.lock();
        let before = pages.sinks.get(name).map(|page| page.state);
        let page = match before {
            // Most changes are to a page that is there.
            Some(_) => pages.sinks.get_mut(name),
            None => Some(pages.sinks.entry(name.to_owned()).or_default()),
        };
        let Some(page) = page else { return };
        change(page);
        page.last_error.iter_mut().chain(&mut page.remarks).for_each(shorten);
        let changed = before != Some(page.state);
        drop(pages);
        if changed {
            self.sinks.send_modify(|count| *count += 1);
        }
    }

    /// Changes when a sink has another state, comes or goes.
    pub fn sinks(&self) -> watch::Receiver<u64> {
        self.sinks.subscribe()
    }

    /// Changes when somebody asks for the sink of that name to be tried now.
    pub fn retries(&self, name: &str) -> watch::Receiver<u64> {
        let mut retries = self.retries.lock().unwrap_or_else(PoisonError::into_inner);
        retries.entry(name.to_owned()).or_default().subscribe()
    }

    /// Has a sink that waits (down, busy, held, gone) tried now, whatever it waits for. An answer: there is
    /// such a sink.
    pub fn retry_sink(&self, name: &str) -> bool {
        let there = self.look(|pages| pages.sinks.contains_key(name));
        let retries = self.retries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(retries) = retries.get(name).filter(|_| there) {
            retries.send_modify(|count| *count += 1);
        }
        there
    }

    /// The same for all sinks that are not up.
    pub fn retry_sinks(&self) {
        let waiting: Vec<String> = self.look(|pages| {
            let waiting = pages.sinks.iter().filter(|(_, sink)| sink.state != "up");
            waiting.map(|(name, _)| name.clone()).collect()
        });
        for name in waiting {
            self.retry_sink(&name);
        }
    }

    /// A sink is no longer configured.
    pub fn no_sink(&self, name: &str) {
        self.lock().sinks.remove(name);
        self.sinks.send_modify(|count| *count += 1);
    }

    /// So many channels and sinks are configured.
    pub fn configured(&self, channels: usize, sinks: usize) {
        let missing = [(channels, "no channel is configured"), (sinks, "no sink is configured")];
        let missing = missing.into_iter().filter(|(count, _)| *count == 0);
        self.lock().unconfigured = missing.map(|(_, reason)| reason).collect();
        self.sinks.send_modify(|count| *count += 1);
    }

    /// A task of the relay does not work, or (`None`) works again.
    pub fn task(&self, name: &str, reason: Option<&str>) {
        let mut pages = self.lock();
        match reason {
            Some(reason) => pages.tasks.insert(name.to_owned(), excerpt(reason, TEXT)),
            None => pages.tasks.remove(name),
        };
        drop(pages);
        self.sinks.send_modify(|count| *count += 1);
    }

    /// The configuration was loaded anew, or could not be.
    pub fn reloaded(&self, mut report: Report) {
        for lines in [&mut report.problems, &mut report.warnings] {
            lines.truncate(LINES);
            lines.iter_mut().for_each(shorten);
        }
        self.lock().reload = Some(report);
    }

    /// An event was heard.
    pub fn heard(&self, at: UnixMillis) {
        self.lock().last_event = Some(at);
    }

    /// There was a gap.
    pub fn gap(&self, mut gap: Gap) {
        shorten(&mut gap.cause);
        let mut pages = self.lock();
        pages.gaps_told += 1;
        if pages.gaps.len() >= GAPS {
            pages.gaps.pop_front();
        }
        pages.gaps.push_back(gap);
    }
}

/// Why the relay is not ready. It is put into words where somebody reads it: there may be as many as
/// there are subscriptions.
#[derive(Debug, Clone, Copy)]
pub enum Reason<'a> {
    /// A connection is not open.
    Connection(u64, &'a Connection),
    /// Some of what comes on a connection cannot be relayed.
    Unreadable(u64, &'a str),
    /// A subscription does not stand.
    Subscription(&'a Subscription),
    /// No connection has room for it.
    LeftOut(&'a str),
    /// So many are on no page yet.
    NotAsked(usize),
    /// A sink is not up.
    Sink(&'a str, &'a Sink),
    /// A task of the relay does not work.
    Task(&'a str, &'a str),
    /// Something is not configured.
    Unconfigured(&'static str),
}

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NOT_YET: &str = "not yet connected";
        match self {
            Self::Connection(number, Connection { last_error, .. }) => {
                let why = last_error.as_deref().unwrap_or(NOT_YET);
                write!(f, "connection {number} to Astro: {why}")
            }
            Self::Unreadable(number, why) => write!(f, "connection {number} to Astro: {why}"),
            Self::Subscription(Subscription { channel, topic, state, code, text, .. }) => {
                if *state != Standing::Refused {
                    return write!(f, "subscription {channel}/{topic} is {}", state.as_str());
                }
                let [code, text] = [code, text].map(|said| said.as_deref().unwrap_or_default());
                write!(f, "subscription {channel}/{topic} refused: {code} {text}")
            }
            Self::LeftOut(subscription) => {
                write!(f, "subscription {subscription} is left out: max_connections")
            }
            Self::NotAsked(count) => write!(f, "{count} subscriptions are not yet asked for"),
            Self::Sink(name, Sink { state, last_error, .. }) => {
                let why = last_error.as_deref().unwrap_or(NOT_YET);
                write!(f, "sink {name} is {state}: {why}")
            }
            Self::Task(name, why) => write!(f, "{name}: {why}"),
            Self::Unconfigured(what) => f.write_str(what),
        }
    }
}

impl Pages {
    /// The subscriptions of all connections.
    pub fn subscriptions(&self) -> impl Iterator<Item = &Subscription> {
        self.connections.values().flat_map(|page| &page.subscriptions)
    }

    /// Why the relay is not ready; empty: it is.
    pub fn reasons(&self) -> Vec<String> {
        self.why().map(|reason| reason.to_string()).collect()
    }

    /// The same, not yet in words.
    pub fn why(&self) -> impl Iterator<Item = Reason<'_>> {
        let connections = self.connections.iter().flat_map(|(number, page)| {
            let closed = (!page.state.is_open()).then_some(Reason::Connection(*number, page));
            let subscriptions = if closed.is_some() { &[] } else { page.subscriptions.as_slice() };
            let missing = subscriptions.iter().filter(|one| one.state != Standing::Confirmed);
            let unreadable = page.unreadable.as_deref().filter(|_| page.state.is_open());
            closed
                .into_iter()
                .chain(unreadable.map(|why| Reason::Unreadable(*number, why)))
                .chain(missing.map(Reason::Subscription))
        });
        let left_out = self.left_out.iter().map(|subscription| Reason::LeftOut(subscription));
        let mut gateway = connections.chain(left_out).peekable();
        let shown = self.subscriptions().count();
        // Before the gateway has begun there is no page that could say so.
        let unasked = self.wanted.saturating_sub(shown);
        let not_asked = unasked > 0 && gateway.peek().is_none();
        let sinks = self.sinks.iter().filter(|(_, sink)| sink.state != "up");
        let tasks = self.tasks.iter().map(|(name, why)| Reason::Task(name, why));
        gateway
            .chain(not_asked.then_some(Reason::NotAsked(unasked)))
            .chain(sinks.map(|(name, sink)| Reason::Sink(name, sink)))
            .chain(tasks)
            .chain(self.unconfigured.iter().copied().map(Reason::Unconfigured))
    }
}

fn text<S: Serializer>(text: &Arc<str>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(text)
}

#[expect(clippy::ref_option, reason = "serde calls it with what the field is")]
fn optional_text<S: Serializer>(text: &Option<Arc<str>>, to: S) -> Result<S::Ok, S::Error> {
    text.as_deref().serialize(to)
}
