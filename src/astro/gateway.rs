//! The gateway: everything that is wanted, spread over as few connections as its limits allow.
//!
//! It owns no socket itself: each [`super::link`] does. What the links share is the [`Hub`]: the
//! intake into the journal with its removal of twins, the credentials, and the outages that are to be
//! told as gaps.
//!
//! The one thing to know: what is *wanted* comes in through a watch and may change at any time; what
//! *stands* is kept by each link's session.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{
    activities::Activities,
    dial::Dialer,
    link::Link,
    seen::{Seen, Verdict},
    session::{Limits, Session, Standing, Subscription, Wanted},
};
use crate::{
    clock,
    config::{Astro, Config, Secret, SecretRef},
    event::{self, Event, UnixMillis},
    journal::Journal,
    metrics::{self, GAP_SECONDS, GAPS, TWINS},
    status::{self, Status},
};

/// Links are opened one after another at this distance: the gateway answers 429 to a rush.
const STAGGER: Duration = Duration::from_millis(200);

/// What overflows is collected for this long before another connection is opened for it.
const COLLECT: Duration = Duration::from_millis(300);

/// Messages of the run before that are remembered, so that a twin over a restart is recognised.
const REMEMBERED_RUN: usize = 4096;

/// All that is wanted.
pub type Wants = Arc<HashSet<Arc<Subscription>>>;

/// What the configuration wants of the gateway.
#[derive(Debug, Clone, Default)]
pub struct Targets {
    /// The subscriptions.
    pub subscriptions: Vec<Arc<Subscription>>,
    /// The credential of each channel.
    pub tokens: HashMap<Arc<str>, SecretRef>,
}

impl Targets {
    /// From the configuration.
    pub fn of(config: &Config) -> Self {
        let mut targets = Self::default();
        for (label, channel) in &config.channels {
            let label: Arc<str> = label.as_str().into();
            for topic in &channel.topics {
                targets.subscriptions.push(Arc::new(Subscription {
                    channel: Arc::clone(&label),
                    topic: topic.as_str().into(),
                    room: channel.room.as_deref().map(Into::into),
                    token_type: channel.token_type,
                }));
            }
            targets.tokens.insert(label, channel.token.clone());
        }
        targets
    }
}

/// What the links share.
#[derive(Debug)]
pub(super) struct Hub {
    pub(super) config: Astro,
    pub(super) limits: Limits,
    pub(super) dialer: Dialer,
    pub(super) journal: Journal,
    pub(super) status: Arc<Status>,
    activities: Arc<Activities>,
    seen: Mutex<Seen>,
    tokens: Mutex<HashMap<Arc<str>, SecretRef>>,
    outages: Mutex<HashMap<Arc<str>, Outage>>,
    overflow: Mutex<Vec<Arc<Subscription>>>,
    overflowed: Notify,
    connections: AtomicU64,
}

/// A channel's time without a connection.
#[derive(Debug)]
struct Outage {
    from: UnixMillis,
    cause: String,
    /// What stood before, and is not yet answered again.
    missing: HashSet<Arc<Subscription>>,
    concerned: Vec<Arc<Subscription>>,
    room: Arc<str>,
}

/// The gateway.
#[derive(Debug)]
pub struct Gateway {
    hub: Arc<Hub>,
    targets: watch::Receiver<Targets>,
}

impl Gateway {
    /// A gateway that keeps what `targets` says, now and later.
    pub fn new(
        config: &Astro,
        journal: Journal,
        status: Arc<Status>,
        activities: Arc<Activities>,
        targets: watch::Receiver<Targets>,
    ) -> Result<Self, super::dial::DialerError> {
        let mut seen = Seen::default();
        match journal.newest(REMEMBERED_RUN) {
            Ok(records) => {
                for record in &records {
                    drop(seen.admit(&record.event));
                    activities.note(&record.event);
                }
            }
            // Twins over the restart are then told apart by the far side only.
            Err(error) => warn!(%error, "what was heard before the start cannot be read"),
        }
        let tokens = targets.borrow().tokens.clone();
        let hub = Hub {
            limits: Limits::from(config),
            dialer: Dialer::new(config)?,
            config: config.clone(),
            journal,
            status,
            activities,
            seen: Mutex::new(seen),
            tokens: Mutex::new(tokens),
            outages: Mutex::default(),
            overflow: Mutex::default(),
            overflowed: Notify::new(),
            connections: AtomicU64::new(0),
        };
        Ok(Self { hub: Arc::new(hub), targets })
    }

    /// The relay did not run since `from`: that is a gap for all that is wanted.
    pub fn was_away(&self, from: UnixMillis) {
        let subscriptions = self.targets.borrow().subscriptions.clone();
        self.hub.missing(subscriptions.iter().map(|s| (s, None)), from, "the relay did not run");
    }

    /// Keeps the connections until it is told to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        let maximum = self.hub.config.max_subscriptions_per_connection.max(1);
        let first = self.targets.borrow_and_update().subscriptions.clone();
        let (wants, _) = watch::channel::<Wants>(Arc::new(first.iter().cloned().collect()));
        let mut links = Links { running: FuturesUnordered::new(), places: HashMap::new(), next: 1 };
        for (turn, share) in (0..).zip(first.chunks(maximum)) {
            links.open(&self.hub, share.to_vec(), &wants, &stop, STAGGER * turn);
        }
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(number) = links.running.next() => drop(links.places.remove(&number)),
                () = self.hub.overflowed.notified() => {
                    tokio::select! {
                        () = stop.cancelled() => break,
                        () = tokio::time::sleep(COLLECT) => {}
                        () = links.drive() => {}
                    }
                    let moved = std::mem::take(&mut *lock(&self.hub.overflow));
                    links.place_new(&self.hub, moved, maximum, &wants, &stop);
                }
                changed = self.targets.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    let targets = self.targets.borrow_and_update().clone();
                    *lock(&self.hub.tokens) = targets.tokens;
                    let before = Arc::clone(&wants.borrow());
                    let now: Wants = Arc::new(targets.subscriptions.iter().cloned().collect());
                    let fresh: Vec<_> = targets
                        .subscriptions
                        .into_iter()
                        .filter(|subscription| !before.contains(subscription))
                        .collect();
                    wants.send_replace(now);
                    links.add(&self.hub, fresh, maximum, &wants, &stop);
                }
            }
        }
        while links.running.next().await.is_some() {}
    }
}

type Running = FuturesUnordered<std::pin::Pin<Box<dyn Future<Output = u64> + Send>>>;

/// The links that run.
struct Links {
    running: Running,
    places: HashMap<u64, Place>,
    next: u64,
}

struct Place {
    more: mpsc::Sender<Vec<Arc<Subscription>>>,
    taken: usize,
    /// The gateway would not take more on it.
    full: bool,
}

impl Links {
    fn open(
        &mut self,
        hub: &Arc<Hub>,
        wanted: Vec<Arc<Subscription>>,
        wants: &watch::Sender<Wants>,
        stop: &CancellationToken,
        delay: Duration,
    ) {
        if self.places.len() >= hub.config.max_connections {
            error!(
                subscriptions = wanted.len(),
                max_connections = hub.config.max_connections,
                "there are more subscriptions than connections may carry; these are left out"
            );
            return;
        }
        let number = self.next;
        self.next += 1;
        let (more, inbox) = mpsc::channel(16);
        self.places.insert(number, Place { more, taken: wanted.len(), full: false });
        let link =
            Link::new(number, Arc::clone(hub), wanted, wants.subscribe(), inbox, stop.clone());
        self.running.push(Box::pin(link.run(delay)));
    }

    /// Further subscriptions: onto connections with room, or onto new ones.
    fn add(
        &mut self,
        hub: &Arc<Hub>,
        mut fresh: Vec<Arc<Subscription>>,
        maximum: usize,
        wants: &watch::Sender<Wants>,
        stop: &CancellationToken,
    ) {
        for place in self.places.values_mut().filter(|place| !place.full) {
            let room = maximum.saturating_sub(place.taken).min(fresh.len());
            if room > 0 {
                let share: Vec<_> = fresh.drain(..room).collect();
                place.taken += share.len();
                if let Err(error) = place.more.try_send(share) {
                    let (mpsc::error::TrySendError::Full(share)
                    | mpsc::error::TrySendError::Closed(share)) = error;
                    place.full = true;
                    fresh.extend(share);
                }
            }
        }
        self.place_new(hub, fresh, maximum, wants, stop);
    }

    fn place_new(
        &mut self,
        hub: &Arc<Hub>,
        fresh: Vec<Arc<Subscription>>,
        maximum: usize,
        wants: &watch::Sender<Wants>,
        stop: &CancellationToken,
    ) {
        for (turn, share) in (0..).zip(fresh.chunks(maximum)) {
            info!(subscriptions = share.len(), "opening another connection to the gateway");
            self.open(hub, share.to_vec(), wants, stop, STAGGER * turn);
        }
    }

    /// Lets the links run while something else is waited for.
    async fn drive(&mut self) {
        while let Some(number) = self.running.next().await {
            self.places.remove(&number);
        }
        std::future::pending().await
    }
}

impl Hub {
    /// A number for a connection, for its nonces.
    pub(super) fn next_connection(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Takes events in: twins out, the rest into the journal, in order.
    pub(super) fn intake(&self, events: &mut Vec<Event>) {
        if events.is_empty() {
            return;
        }
        let before = events.len();
        {
            let mut seen = lock(&self.seen);
            events.retain_mut(|event| match seen.admit(event) {
                Verdict::New => self.activities.hear(event),
                Verdict::Twin => false,
                Verdict::Namesake(key) => {
                    event.distinct_key = Some(key);
                    self.activities.hear(event)
                }
            });
        }
        metrics::add(TWINS, u64::try_from(before - events.len()).unwrap_or(0));
        self.journal.append(events);
    }

    /// The token of a channel, read now.
    pub(super) fn token(&self, channel: &str) -> Result<Secret, String> {
        let reference = lock(&self.tokens).get(channel).cloned();
        reference
            .ok_or_else(|| "the channel has no token".to_owned())?
            .read()
            .map_err(|error| error.to_string())
    }

    /// What is wanted, each with its token as it is now.
    pub(super) fn credentials(&self, subscriptions: &[Arc<Subscription>]) -> Vec<Wanted> {
        let mut tokens: HashMap<&str, Result<Secret, String>> = HashMap::new();
        subscriptions
            .iter()
            .map(|subscription| {
                let channel = &*subscription.channel;
                let token = tokens.entry(channel).or_insert_with(|| self.token(channel)).clone();
                Wanted { subscription: Arc::clone(subscription), token }
            })
            .collect()
    }

    /// Subscriptions that a connection would not take.
    pub(super) fn overflow(&self, subscriptions: Vec<Arc<Subscription>>) {
        lock(&self.overflow).extend(subscriptions);
        self.overflowed.notify_one();
    }

    /// A connection was lost, and not restored: what stood on it is missing from its last frame on.
    pub(super) fn outage(&self, session: &Session, cause: &str) {
        let silent = Instant::now().saturating_duration_since(session.heard_at()).as_millis();
        let from = clock::now().saturating_sub(u64::try_from(silent).unwrap_or(0));
        let stood = session.standings().filter_map(|(subscription, standing)| match standing {
            Standing::Confirmed(room) => Some((subscription, room.clone())),
            Standing::Waiting | Standing::Pending | Standing::Refused(_) => None,
        });
        self.missing(stood, from, cause);
    }

    fn missing<'a>(
        &self,
        subscriptions: impl Iterator<Item = (&'a Arc<Subscription>, Option<Arc<str>>)>,
        from: UnixMillis,
        cause: &str,
    ) {
        let mut outages = lock(&self.outages);
        for (subscription, room) in subscriptions {
            let room = room.or_else(|| subscription.room.clone()).unwrap_or_else(|| "".into());
            let outage =
                outages.entry(Arc::clone(&subscription.channel)).or_insert_with(|| Outage {
                    from,
                    cause: cause.to_owned(),
                    missing: HashSet::new(),
                    concerned: Vec::new(),
                    room,
                });
            outage.from = outage.from.min(from);
            outage.missing.insert(Arc::clone(subscription));
            if !outage.concerned.contains(subscription) {
                outage.concerned.push(Arc::clone(subscription));
            }
        }
    }

    /// What stands has changed: outages of which nothing is missing any more are told.
    pub(super) fn settle(&self, session: &Session) {
        let mut outages = lock(&self.outages);
        if outages.is_empty() {
            return;
        }
        let mut refused = HashSet::new();
        for (subscription, standing) in session.standings() {
            let answered = match standing {
                Standing::Confirmed(_) => true,
                Standing::Refused(_) => refused.insert(Arc::clone(subscription)),
                Standing::Waiting | Standing::Pending => false,
            };
            if answered && let Some(outage) = outages.get_mut(&subscription.channel) {
                outage.missing.remove(subscription);
            }
        }
        let over: Vec<_> = outages.extract_if(|_, outage| outage.missing.is_empty()).collect();
        drop(outages);
        let now = clock::now();
        let mut events: Vec<_> = over
            .iter()
            .map(|(channel, outage)| self.tell(channel, outage, &refused, now))
            .collect();
        self.journal.append(&mut events);
    }

    fn tell(
        &self,
        channel: &Arc<str>,
        outage: &Outage,
        refused: &HashSet<Arc<Subscription>>,
        now: UnixMillis,
    ) -> Event {
        let seconds = Duration::from_millis(now.saturating_sub(outage.from)).as_secs_f64();
        warn!(%channel, seconds, cause = outage.cause, "events may have been missed");
        metrics::add_for(GAPS, "channel", channel, 1);
        metrics::add_for(GAP_SECONDS, "channel", channel, whole(seconds));
        let cause = outage.cause.clone();
        self.status.gap(status::Gap {
            channel: channel.to_string(),
            from: outage.from,
            to: now,
            cause,
        });
        let subscriptions: Vec<_> = outage
            .concerned
            .iter()
            .map(|subscription| {
                serde_json::json!({
                    "topic": &*subscription.topic,
                    "room": subscription.room.as_deref().unwrap_or(&outage.room),
                    "restored": !refused.contains(subscription),
                })
            })
            .collect();
        let data = serde_json::json!({
            "from": clock::rfc3339(outage.from),
            "to": clock::rfc3339(now),
            "seconds": seconds,
            "cause": outage.cause,
            "channel": &**channel,
            "subscriptions": subscriptions,
        });
        event::own("relay.gap", channel, &outage.room, &data, now)
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
