//! The gateway: everything that is wanted, spread over as few connections as its limits allow.
//!
//! It owns no socket itself: each [`crate::gateway::link`] does. What the links share is the [`Hub`]: the
//! intake into the journal with its removal of twins, the credentials, and the outages that are to be
//! told as gaps.
//!
//! The one thing to know: what is *wanted* comes in through a watch and may change at any time; what
//! *stands* is kept by each link's session.

pub mod activities;
pub mod gaps;
pub mod health;
mod link;
pub mod seen;
pub mod status;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, future::join_all, stream::FuturesUnordered};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, interval},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::{
    astro::{
        dial::Dialer,
        session::{Limits, Session, Standing, Subscription, Wanted},
    },
    base::{
        clock::{self, Moment, UnixMillis},
        event::{self, Event, Origin},
        metrics::{self, GAP_SECONDS, GAPS, TWINS},
    },
    config::{Astro, Config, Secret, SecretRef, TokenType},
    gateway::{
        activities::Activities,
        gaps::{Gaps, Outage, Over, Since},
        link::Link,
        seen::Seen,
        status::Status,
    },
    journal::Journal,
};

/// Links are opened one after another at this distance: the gateway answers 429 to a rush.
const STAGGER: Duration = Duration::from_millis(200);

/// The gateway's task is polled at least this often.
const ALIVE: Duration = Duration::from_secs(5);

/// What overflows is collected for this long before another connection is opened for it.
const COLLECT: Duration = Duration::from_millis(300);

/// Messages of the run before that are remembered, so that a twin over a restart is recognised.
const REMEMBERED_RUN: usize = 4096;

/// What is wanted of one link.
pub(crate) type Wants = Arc<[Arc<Subscription>]>;

/// That the relay did not run.
#[derive(Debug, Clone, Copy)]
pub struct Away {
    /// Since when, by the wall clock as it was then.
    pub at: UnixMillis,
    /// For how long until now, where that is known and not only said by the wall clock.
    pub time: Option<Duration>,
}

/// What the configuration wants of the gateway.
#[derive(Debug, Clone, Default)]
pub struct Targets {
    /// The subscriptions.
    pub subscriptions: Vec<Arc<Subscription>>,
    /// What each channel is spoken for with.
    pub channels: HashMap<Arc<str>, Account>,
}

/// In whose name a channel's requests are made.
#[derive(Debug, Clone)]
pub struct Account {
    /// The credential.
    pub token: SecretRef,
    /// What kind it is.
    pub token_type: TokenType,
    /// The room that is configured, if one is.
    pub room: Option<Arc<str>>,
}

impl Targets {
    /// From the configuration.
    pub fn of(config: &Config) -> Self {
        let mut targets = Self::default();
        for (label, channel) in &config.channels {
            let label: Arc<str> = label.as_str().into();
            let room: Option<Arc<str>> = channel.room.as_deref().map(Into::into);
            for topic in &channel.topics {
                targets.subscriptions.push(Arc::new(Subscription {
                    channel: Arc::clone(&label),
                    topic: topic.as_str().into(),
                    room: room.clone(),
                    token_type: channel.token_type,
                }));
            }
            let (token, token_type) = (channel.token.clone(), channel.token_type);
            targets.channels.insert(label, Account { token, token_type, room });
        }
        targets
    }
}

/// What the links share.
#[derive(Debug)]
pub(crate) struct Hub {
    pub(crate) config: Astro,
    pub(crate) limits: Limits,
    pub(crate) dialer: Dialer,
    pub(crate) journal: Journal,
    pub(crate) status: Arc<Status>,
    activities: Arc<Activities>,
    seen: Mutex<Seen>,
    channels: Mutex<HashMap<Arc<str>, Account>>,
    pub(crate) gaps: Arc<Gaps>,
    overflow: Mutex<Vec<(u64, Vec<Arc<Subscription>>)>>,
    overflowed: Notify,
    connections: AtomicU64,
}

/// The gateway.
#[derive(Debug)]
pub struct Gateway {
    hub: Arc<Hub>,
    targets: watch::Receiver<Targets>,
}

impl Gateway {
    /// A gateway that keeps what `targets` says, now and later. `gaps` outlives it.
    pub fn new(
        config: &Astro,
        journal: Journal,
        status: Arc<Status>,
        (activities, gaps): (Arc<Activities>, Arc<Gaps>),
        targets: watch::Receiver<Targets>,
    ) -> Result<Self, crate::astro::dial::DialerError> {
        let mut seen = Seen::default();
        match journal.newest(REMEMBERED_RUN) {
            Ok(records) => {
                for record in &records {
                    seen.remember(&record.event);
                }
                let live = |event: &Event| {
                    event.origin == Origin::Live && !event.place.topic.starts_with("relay.")
                };
                let mut heard =
                    records.iter().rev().map(|record| &record.event).filter(|e| live(e));
                gaps.heard_before(heard.find_map(|event| clock::parse_rfc3339(&event.ts)));
            }
            // Twins over the restart are then told apart by the far side only.
            Err(error) => warn!(%error, "what was heard before the start cannot be read"),
        }
        let channels = targets.borrow().channels.clone();
        let hub = Hub {
            limits: Limits::from(config),
            dialer: Dialer::new(config)?,
            config: config.clone(),
            journal,
            status,
            activities,
            seen: Mutex::new(seen),
            channels: Mutex::new(channels),
            gaps,
            overflow: Mutex::default(),
            overflowed: Notify::new(),
            connections: AtomicU64::new(0),
        };
        let gateway = Self { hub: Arc::new(hub), targets };
        gateway.take_over();
        gateway.hub.status.wanted(distinct(&gateway.targets.borrow().subscriptions).len());
        Ok(gateway)
    }

    /// Where the pages still show connections, a gateway before this one has failed. What each of them
    /// heard last is where the gap of its subscriptions begins.
    fn take_over(&self) {
        let status = &self.hub.status;
        let pages = status.pages().connections;
        let wanted = self.targets.borrow().subscriptions.clone();
        let mut shown = HashSet::new();
        let missing = |page: &status::Connection, on_it: &[&Arc<Subscription>]| {
            if let Some(heard) = page.heard_at {
                let all = on_it.iter().map(|subscription| (*subscription, None));
                let cause = "the gateway failed and was started anew";
                self.hub.gaps.missing(all, Since::Moment(heard, Duration::ZERO), cause);
            }
        };
        for (number, page) in &pages {
            let on_it: Vec<_> =
                wanted.iter().filter(|wanted| page.shows(&wanted.channel, &wanted.topic)).collect();
            missing(page, &on_it);
            shown.extend(on_it.into_iter().cloned());
            status.no_connection(*number);
        }
        // What was on no page yet, or on its way from one to another.
        let first = pages.values().filter(|page| page.heard_at.is_some());
        if let Some(page) = first.max_by_key(|page| page.heard_at.map(Moment::elapsed)) {
            let rest: Vec<_> = wanted.iter().filter(|wanted| !shown.contains(*wanted)).collect();
            missing(page, &rest);
        }
        self.hub.remember_gaps();
    }

    /// The relay did not run: that is a gap for all that is wanted.
    pub fn was_away(&self, away: Away) {
        let subscriptions = self.targets.borrow().subscriptions.clone();
        let all = subscriptions.iter().map(|subscription| (subscription, None));
        let since = match away.time {
            Some(time) => Since::Moment(Moment::now(), time),
            None => Since::Before(away.at),
        };
        self.hub.gaps.missing(all, since, "the relay did not run");
        self.hub.remember_gaps();
    }

    /// Keeps the connections until it is told to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        let hub = Arc::clone(&self.hub);
        let mut links = Links::new(hub, stop.clone());
        let mut alive = interval(ALIVE);
        links.want(self.targets.borrow_and_update().subscriptions.clone());
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                changed = next_targets(&mut self.targets) => {
                    *lock(&self.hub.channels) = changed.channels;
                    links.want(changed.subscriptions);
                }
                () = self.hub.overflowed.notified() => links.collect_at = Some(Instant::now() + COLLECT),
                () = until(links.collect_at), if links.collect_at.is_some() => {
                    links.collect_at = None;
                    links.spread();
                }
                Some(number) = links.running.next() => links.ended(number),
                // An essential task is to show that it lives. And the wall clock may have stepped.
                _ = alive.tick() => self.hub.remember_gaps(),
            }
        }
        // What comes from here on may not be heard any more, however long the relay takes to end.
        let stopped = Moment::now();
        let missing = || self.hub.gaps.longest().unwrap_or_default().max(stopped.elapsed());
        self.hub.journal.set_unreported_gap(Some(missing()));
        while links.running.next().await.is_some() {}
        self.hub.journal.set_unreported_gap(Some(missing()));
    }
}

/// A subscription that is wanted twice is one subscription.
fn distinct(all: &[Arc<Subscription>]) -> HashSet<Arc<Subscription>> {
    all.iter().cloned().collect()
}

/// The next targets. They never change again when nobody is left to change them.
async fn next_targets(targets: &mut watch::Receiver<Targets>) -> Targets {
    if targets.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
    targets.borrow_and_update().clone()
}

async fn until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at).await;
    }
}

type Running = FuturesUnordered<std::pin::Pin<Box<dyn Future<Output = u64> + Send>>>;

/// The links that run, and what is wanted of each.
struct Links {
    hub: Arc<Hub>,
    stop: CancellationToken,
    running: Running,
    places: BTreeMap<u64, Place>,
    next: u64,
    /// What no connection has room for.
    left_out: Vec<Arc<Subscription>>,
    /// When what has overflowed is spread over other connections.
    collect_at: Option<Instant>,
}

/// What is wanted of one link.
struct Place {
    wants: watch::Sender<Wants>,
    /// How many it may carry: as configured, or fewer where the gateway would not take more.
    limit: usize,
}

impl Links {
    fn new(hub: Arc<Hub>, stop: CancellationToken) -> Self {
        Self {
            hub,
            stop,
            running: FuturesUnordered::new(),
            places: BTreeMap::new(),
            next: 1,
            left_out: Vec::new(),
            collect_at: None,
        }
    }

    /// All that is wanted, from now on.
    fn want(&mut self, all: Vec<Arc<Subscription>>) {
        let wanted = distinct(&all);
        self.hub.status.wanted(wanted.len());
        self.hub.no_longer_missing(|subscription| !wanted.contains(subscription));
        let mut placed = HashSet::new();
        for place in self.places.values() {
            place.keep(|subscription| wanted.contains(subscription));
            placed.extend(place.wants.borrow().iter().cloned());
        }
        self.left_out.clear();
        let fresh = all.into_iter().filter(|subscription| placed.insert(Arc::clone(subscription)));
        self.place(fresh.collect());
    }

    /// Finds places for subscriptions: on connections with room, or on new ones.
    fn place(&mut self, mut fresh: Vec<Arc<Subscription>>) {
        for place in self.places.values() {
            let room = place.limit.saturating_sub(place.wants.borrow().len()).min(fresh.len());
            if room > 0 {
                place.take(fresh.drain(..room));
            }
        }
        let mut turn = 0;
        let maximum = self.hub.config.max_subscriptions_per_connection.max(1);
        while !fresh.is_empty() && self.places.len() < self.hub.config.max_connections {
            let share = fresh.drain(..maximum.min(fresh.len())).collect();
            self.open(share, maximum, STAGGER * turn);
            turn += 1;
        }
        if !fresh.is_empty() {
            error!(
                subscriptions = fresh.len(),
                max_connections = self.hub.config.max_connections,
                "there are more subscriptions than connections may carry; these are left out"
            );
            self.hub.no_longer_missing(|subscription| fresh.contains(subscription));
            self.left_out.append(&mut fresh);
        }
        self.hub.status.left_out(self.left_out.iter().map(ToString::to_string).collect());
    }

    fn open(&mut self, share: Wants, limit: usize, delay: Duration) {
        let number = self.next;
        self.next += 1;
        debug!(number, subscriptions = share.len(), "another connection to the gateway");
        let (wants, inbox) = watch::channel(share);
        self.places.insert(number, Place { wants, limit });
        let link = Link::new(number, Arc::clone(&self.hub), inbox, self.stop.clone());
        self.running.push(Box::pin(link.run(delay)));
    }

    /// Moves what connections would not take to others.
    fn spread(&mut self) {
        let overflow = std::mem::take(&mut *lock(&self.hub.overflow));
        let mut moving = Vec::new();
        for (number, subscriptions) in overflow {
            let Some(place) = self.places.get_mut(&number) else { continue };
            // What is no longer wanted there has been dealt with.
            let wants = place.wants.borrow().clone();
            moving.extend(wants.iter().filter(|s| subscriptions.contains(s)).cloned());
            place.keep(|subscription| !subscriptions.contains(subscription));
            place.limit = place.wants.borrow().len();
            info!(number, limit = place.limit, "the gateway takes no more on this connection");
        }
        self.place(moving);
    }

    /// A link has ended: nothing was wanted of it. What has been wanted since needs another.
    fn ended(&mut self, number: u64) {
        let Some(place) = self.places.remove(&number) else { return };
        let mut homeless = place.wants.borrow().to_vec();
        homeless.append(&mut self.left_out);
        if !self.stop.is_cancelled() {
            self.place(homeless);
        }
    }
}

impl Place {
    fn keep(&self, keep: impl Fn(&Arc<Subscription>) -> bool) {
        self.wants.send_if_modified(|wants| {
            let kept: Wants = wants.iter().filter(|s| keep(s)).cloned().collect();
            let modified = kept.len() != wants.len();
            *wants = kept;
            modified
        });
    }

    fn take(&self, more: impl Iterator<Item = Arc<Subscription>>) {
        self.wants.send_modify(|wants| *wants = wants.iter().cloned().chain(more).collect());
    }
}

impl Hub {
    /// A number for a connection, for its nonces.
    pub(crate) fn next_connection(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Takes events in: twins out, the rest into the journal, in order.
    pub(crate) fn intake(&self, events: &mut Vec<Event>) {
        if events.is_empty() {
            return;
        }
        let before = events.len();
        let mut seen = lock(&self.seen);
        events.retain(|event| seen.admit(event));
        drop(seen);
        let twins = before - events.len();
        let last = events.last().map(|event| event.received);
        let twins = twins + self.activities.hear(events, &self.journal);
        metrics::add(TWINS, u64::try_from(twins).unwrap_or(0));
        if let Some(last) = last {
            self.status.heard(last);
        }
    }

    /// The tokens of channels, read now and side by side: a file that does not answer costs a second,
    /// however many there are.
    pub(crate) async fn tokens<'c>(
        &self,
        channels: impl IntoIterator<Item = &'c str>,
    ) -> HashMap<&'c str, Result<Secret, String>> {
        let reads = channels.into_iter().map(|channel| {
            let account = lock(&self.channels).get(channel).cloned();
            async move {
                let Some(account) = account else {
                    return (channel, Err("the channel has no token".to_owned()));
                };
                let token = account.token.read_token_soon().await;
                (channel, token.map_err(|error| error.to_string()))
            }
        });
        join_all(reads).await.into_iter().collect()
    }

    /// What is wanted, each with its token as it is now.
    pub(crate) async fn credentials(&self, subscriptions: &[Arc<Subscription>]) -> Vec<Wanted> {
        let channels: HashSet<&str> =
            subscriptions.iter().map(|subscription| &*subscription.channel).collect();
        let tokens = self.tokens(channels).await;
        subscriptions
            .iter()
            .filter_map(|subscription| {
                let token = tokens.get(&*subscription.channel)?.clone();
                Some(Wanted { subscription: Arc::clone(subscription), token })
            })
            .collect()
    }

    /// Subscriptions that a link's connection would not take.
    pub(crate) fn overflow(&self, link: u64, subscriptions: Vec<Arc<Subscription>>) {
        if !subscriptions.is_empty() {
            lock(&self.overflow).push((link, subscriptions));
            self.overflowed.notify_one();
        }
    }

    /// A connection was lost, and not restored: what stood on it is missing from its last frame on.
    pub(crate) fn outage(&self, session: &Session, heard: Moment, cause: &str) {
        let stood = session.standings().filter_map(|(subscription, standing)| match standing {
            Standing::Confirmed(room) => Some((subscription, room.clone())),
            Standing::Waiting | Standing::Pending | Standing::Refused(_) => None,
        });
        self.gaps.missing(stood, Since::Moment(heard, Duration::ZERO), cause);
        self.remember_gaps();
    }

    /// The gateway no longer sends these, for a moment.
    pub(crate) fn interrupted(&self, subscriptions: &[Arc<Subscription>]) {
        if !subscriptions.is_empty() {
            let all = subscriptions.iter().map(|subscription| (subscription, None));
            self.gaps.missing(
                all,
                Since::Moment(Moment::now(), Duration::ZERO),
                "all rooms of the topic were left",
            );
            self.remember_gaps();
        }
    }

    /// These were answered, and stand or do not: gaps of which nothing is missing any more are told.
    pub(crate) fn settle<'a>(&self, answered: impl Iterator<Item = (&'a Arc<Subscription>, bool)>) {
        self.tell_all(&self.gaps.answered(answered));
    }

    /// Nobody asks for these any more: no gap waits for them.
    fn no_longer_missing(&self, which: impl Fn(&Arc<Subscription>) -> bool) {
        self.tell_all(&self.gaps.gone(which));
    }

    /// Lets the journal remember since when something is missing: a relay that ends before that is
    /// told has been away since then.
    fn remember_gaps(&self) {
        self.journal.set_unreported_gap(self.gaps.longest());
    }

    fn tell_all(&self, over: &[Over]) {
        if over.is_empty() {
            return;
        }
        let mut events: Vec<_> =
            over.iter().map(|(channel, outage)| self.tell(channel, outage)).collect();
        self.journal.append(&mut events);
        self.remember_gaps();
    }

    fn tell(&self, channel: &Arc<str>, outage: &Outage) -> Event {
        let bounds = self.gaps.bounds(outage);
        let (seconds, cause) = (bounds.seconds(), outage.cause.clone());
        warn!(%channel, seconds, cause, "events may have been missed");
        metrics::add_for(GAPS, "channel", channel, 1);
        metrics::add_for(GAP_SECONDS, "channel", channel, whole(seconds));
        let (channel_name, from, to) = (channel.to_string(), bounds.from, bounds.to);
        self.status.gap(status::Gap { channel: channel_name, from, to, cause });
        let data = outage.report(channel, &bounds);
        event::own("relay.gap", channel, &outage.room, &data, clock::now())
    }
}

/// Seconds as a counter takes them: a gap that was there counts, however short.
fn whole(seconds: f64) -> u64 {
    Duration::try_from_secs_f64(seconds.ceil()).map_or(0, |duration| duration.as_secs())
}

/// What is locked here is changed in small whole steps: a panic elsewhere leaves it usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
