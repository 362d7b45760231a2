//! Several relays as one, on NATS JetStream. `docs/cluster.md` is its manual.
//!
//! ```text
//!  Astro ──▶ member A ─ journal ─ outbox ─┐                  ┌─▶ A drives sink "home" ──▶ MQTT
//!       ╲──▶ member B ─ journal ─ outbox ─┼─▶ log (a stream) ┼─▶ C drives sink "shop" ──▶ webhook
//!        ╲─▶ member C ─ journal ─ outbox ─┘                  └─▶ B drives sink "bus"  ──▶ NATS
//! ```
//!
//! The distributed work is JetStream's: a replicated stream is the log, its duplicate window removes the
//! copies that several members have of an event, buckets hold leases and cursors. What is ours is which
//! member holds which channel ([`assignment`], [`holding`], [`membership`]) and which drives which sink
//! ([`driver`]).
//!
//! # Principle
//!
//! Correctness never rests on who is believed to be alive. Two members may hold a channel: the log keeps one
//! copy of each event, and each member publishes a channel's events in order ([`outbox`]). Two members may
//! believe that they drive a sink: the [`lease`] is timed so that the one has stopped before the other can
//! begin, and only one of them can move the cursor ([`log`]). What a member knows of the others ([`view`])
//! decides only who does the work.
//!
//! A relay without `[cluster]` has nothing of this.

pub(crate) mod alone;
pub mod assignment;
pub(crate) mod collisions;
pub(crate) mod connection;
mod copies;
mod cursor;
pub(crate) mod driver;
mod error;
pub(crate) mod gaps;
mod holding;
pub(crate) mod inspect;
pub mod lease;
pub(crate) mod letters;
pub(crate) mod log;
mod log_range;
pub(crate) mod membership;
mod message;
pub(crate) mod outbox;
mod parts;
mod reading;
pub mod report;
pub(crate) mod republish;
mod requests;
mod servers;
pub(crate) mod shared;
pub(crate) mod state;
pub(crate) mod storage_check;
mod uptime;
pub mod view;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::{
    Client,
    jetstream::{Context, kv::CreateErrorKind},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use tokio::sync::watch;
use tracing::error;

pub use self::error::ClusterError;
use self::{
    connection::{Connection, Storage},
    copies::Copies,
    driver::SinkLease,
    holding::Holding,
    letters::Index,
    log::LogSource,
    report::Configured,
    view::View,
};
use crate::{
    base::{clock::ServerClock, event::Record, metrics, sync::lock},
    config::{self, Start},
};

/// This member's part in a cluster; clones share it.
#[derive(Debug, Clone)]
pub struct Cluster(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    member: Arc<str>,
    /// This start of the member.
    run: Arc<str>,
    connection: Connection,
    /// The stream and the buckets, as soon as they are there.
    storage: watch::Sender<Option<Arc<Storage>>>,
    /// The log has gone away.
    gone: watch::Sender<u64>,
    /// Why the cluster does not work.
    trouble: watch::Sender<Option<String>>,
    view: watch::Sender<View>,
    /// Channels were assigned to this member, or none.
    has_assigned: AtomicBool,
    draining: watch::Sender<bool>,
    /// Others have taken over what was ours.
    drained: watch::Sender<bool>,
    holding: Mutex<Holding>,
    leases: Mutex<BTreeMap<String, Arc<SinkLease>>>,
    sources: Mutex<BTreeMap<String, std::sync::Weak<LogSource>>>,
    /// What is configured here, by digest, and where its sinks begin.
    configured: watch::Sender<Configured>,
    outbox: OutboxFigures,
    /// The dead letters and replays that there are.
    letters: Mutex<Index>,
    /// Changes when something is asked for of a sink.
    requests: watch::Sender<u64>,
    copies: Mutex<Copies>,
    /// Copies are not recognised: each channel is held once.
    single: AtomicBool,
    /// Channels and sinks that another member is configured with differently.
    differences: Mutex<BTreeMap<String, Vec<String>>>,
    /// What those members are configured with.
    others: Mutex<BTreeMap<String, Configured>>,
}

#[derive(Debug, Default)]
struct OutboxFigures {
    waiting: AtomicU64,
    /// Events that this member brought into the log, and those that were there already.
    stored: AtomicU64,
    duplicates: AtomicU64,
    failing: Mutex<Option<String>>,
}

impl Cluster {
    /// Begins to connect; returns whether or not a server of NATS answers.
    pub async fn begin(
        settings: &config::Cluster,
        configured: Configured,
    ) -> Result<Self, ClusterError> {
        let member: Arc<str> = connection::member_name(settings).into();
        let run: Arc<str> = ulid::Ulid::new().to_string().into();
        let connection = Connection::begin(settings, &member).await?;
        let view = View::new(Arc::clone(&member), Arc::clone(&run), settings.lease.0);
        Ok(Self(Arc::new(Inner {
            member,
            run,
            connection,
            storage: watch::Sender::new(None),
            gone: watch::Sender::new(0),
            trouble: watch::Sender::new(None),
            view: watch::Sender::new(view),
            has_assigned: AtomicBool::new(false),
            draining: watch::Sender::new(false),
            drained: watch::Sender::new(false),
            holding: Mutex::default(),
            leases: Mutex::default(),
            sources: Mutex::default(),
            configured: watch::Sender::new(configured),
            outbox: OutboxFigures::default(),
            letters: Mutex::default(),
            requests: watch::Sender::new(0),
            copies: Mutex::default(),
            single: AtomicBool::new(false),
            differences: Mutex::default(),
            others: Mutex::default(),
        })))
    }

    pub fn member(&self) -> &str {
        &self.0.member
    }

    fn run(&self) -> &str {
        &self.0.run
    }

    fn settings(&self) -> &config::Cluster {
        &self.0.connection.settings
    }

    fn client(&self) -> &Client {
        &self.0.connection.client
    }

    fn context(&self) -> &Context {
        &self.0.connection.context
    }

    /// Bytes that the server takes in one message.
    fn max_payload(&self) -> usize {
        self.client().max_payload()
    }

    fn clock(&self) -> ServerClock {
        self.0.connection.clock()
    }

    /// How far the servers' clock is ahead of ours, in milliseconds (negative: behind); 0: not known.
    fn ahead(&self) -> i64 {
        self.0.connection.ahead()
    }

    /// The stream and the buckets, as soon as they are there.
    async fn storage(&self) -> Arc<Storage> {
        let mut storage = self.0.storage.subscribe();
        loop {
            if let Some(storage) = storage.borrow_and_update().clone() {
                return storage;
            }
            // The sender is here.
            drop(storage.changed().await);
        }
    }

    fn log_is_gone(&self) {
        self.0.gone.send_modify(|count| *count += 1);
    }

    /// The cluster does not work, for this reason. The log says it once.
    fn set_trouble(&self, why: &str) {
        let known = self.0.trouble.send_replace(Some(why.to_owned()));
        if known.as_deref() != Some(why) {
            tracing::warn!(why, "the cluster does not work now; events wait in the local journal");
        }
    }

    fn views(&self) -> watch::Receiver<View> {
        self.0.view.subscribe()
    }

    fn draining(&self) -> watch::Receiver<bool> {
        self.0.draining.subscribe()
    }

    fn is_draining(&self) -> bool {
        *self.0.draining.borrow()
    }

    /// Leaves: others take over channels and sinks. Waits for that, within `limit`.
    pub async fn leave(&self, limit: Duration) {
        self.0.draining.send_replace(true);
        let mut drained = self.0.drained.subscribe();
        let left = tokio::time::timeout(limit, drained.wait_for(|drained| *drained)).await;
        if left.is_err() {
            tracing::warn!("the other members have not taken over everything in time");
        }
    }

    /// The other members that were heard of lately, whether or not they are thought to be alive: one that is slow
    /// may look dead.
    fn others(&self) -> Vec<String> {
        let view = self.0.view.borrow();
        view.known().filter(|name| *name != self.member()).map(ToOwned::to_owned).collect()
    }

    /// Whether a member renews its key, as far as that is seen.
    fn is_alive(&self, member: &str) -> bool {
        self.0.view.borrow().alive().any(|(name, _)| name == member)
    }

    /// How many members hold each channel.
    fn copies(&self) -> usize {
        if self.0.single.load(Ordering::Relaxed) { 1 } else { self.settings().copies }
    }

    /// Whether this member is the first of those that hold a channel.
    fn is_first_holder(&self, channel: &str) -> bool {
        let view = self.0.view.borrow();
        let takers = view.takers(false);
        let takers = takers.iter().copied().filter(|member| self.can_hold(member, channel));
        assignment::holders(channel, takers, 1).first() == Some(&self.member())
    }

    /// The holders of a channel among these members, the first one first, as far as it is known what they have.
    /// Where a channel is not the same at all members, so many hold it in each form: one has a topic that another
    /// lacks.
    fn holders<'m>(
        &self,
        channel: &str,
        members: impl IntoIterator<Item = &'m str>,
    ) -> Vec<&'m str> {
        let own = self.0.configured.borrow().channel(channel);
        let others = lock(&self.0.others);
        let form = |member: &str| others.get(member).map_or(own, |other| other.channel(channel));
        assignment::holders_of_forms(channel, members, self.copies(), form)
    }

    /// Whether a member has a channel in its configuration, as far as that is known.
    fn can_hold(&self, member: &str, channel: &str) -> bool {
        lock(&self.0.others).get(member).is_none_or(|other| other.has_channel(channel))
    }

    /// Whether a member has a sink in its configuration, as far as that is known.
    fn can_drive(&self, member: &str, sink: &str) -> bool {
        lock(&self.0.others).get(member).is_none_or(|other| other.has_sink(sink))
    }

    /// Whether there is such a channel, whoever holds it.
    pub fn is_configured(&self, channel: &str) -> bool {
        self.0.configured.borrow().has_channel(channel)
    }

    /// Takes a transaction of a command: `false` if another member has it already. An error: that is not known, so the
    /// command is not executed. The outer one: no server was asked. The inner one: none has answered, and the claim may
    /// be stored yet.
    pub async fn claim_transaction(
        &self,
        transaction: &str,
    ) -> Result<Result<bool, String>, String> {
        let storage = self.0.storage.borrow().clone();
        let unknown = || {
            "whether another member executed it cannot be known: NATS does not answer".to_owned()
        };
        let unanswered = || {
            "NATS has not answered: whether another member executes it cannot be known. Give it again under \
             another transaction"
                .to_owned()
        };
        let storage = storage.ok_or_else(unknown)?;
        // What waits for a server would be stored long after the command was answered, and nobody could give it again.
        if !self.0.connection.is_reached() {
            return Err(unknown());
        }
        let key = URL_SAFE_NO_PAD.encode(transaction);
        let claim = Bytes::from(format!("{} {}", self.member(), ulid::Ulid::new()));
        Ok(match storage.done.create(&key, claim.clone()).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == CreateErrorKind::AlreadyExists => {
                // It may be ours: the client library asks again where an answer was lost.
                let found = storage.done.get(&key).await.map_err(|_| unanswered());
                found.map(|found| found.is_some_and(|found| found == claim))
            }
            Err(_) => Err(unanswered()),
        })
    }

    /// Whether channels were assigned to this member, or none: before that nothing is wanted of the gateway.
    pub fn has_assigned(&self) -> bool {
        self.0.has_assigned.load(Ordering::Relaxed)
    }

    /// Whether this member holds a channel.
    fn holds(&self, channel: &str) -> bool {
        lock(&self.0.holding).has(channel)
    }

    /// Whether another member may have events of a channel.
    fn may_be_elsewhere(&self, channel: &str) -> bool {
        !channel.is_empty() && self.0.view.borrow().known().any(|name| name != self.member())
    }

    fn set_waiting(&self, events: u64, failing: Option<String>) {
        self.0.outbox.waiting.store(events, Ordering::Relaxed);
        let mut known = lock(&self.0.outbox.failing);
        if *known != failing {
            *known = failing;
        }
    }

    /// A published event was a copy of one that the log had, or not.
    fn count_published(&self, recognised: bool) {
        let figures = &self.0.outbox;
        let count = if recognised { &figures.duplicates } else { &figures.stored };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// The log has this message of that member: looks whether copies are recognised at all.
    fn check_copies(&self, record: &Record, member: &str) {
        let may_be_held_twice =
            self.copies() > 1 && self.may_be_elsewhere(&record.event.place.channel);
        if may_be_held_twice && lock(&self.0.copies).read(record, member) {
            self.reduce_to_one_copy();
        }
    }

    /// Copies are not recognised: each channel is held by one member from now on.
    fn reduce_to_one_copy(&self) {
        if !self.0.single.swap(true, Ordering::Relaxed) {
            error!(
                "the gateway gives each connection other ids, so copies of an event cannot be recognised: from \
                 now on each channel is held by one member (copies = 1); until now its events came twice"
            );
        }
    }

    /// The lease of a sink, for its tasks.
    pub(crate) fn lease_of(&self, sink: &str) -> Arc<SinkLease> {
        let mut leases = lock(&self.0.leases);
        let lease = leases.entry(sink.to_owned());
        Arc::clone(lease.or_insert_with(|| Arc::new(SinkLease::new(sink))))
    }

    /// Where a sink begins whose cursor does not exist yet.
    fn start_of(&self, sink: &str) -> Start {
        self.0.configured.borrow().start_of(sink)
    }

    /// What is configured has changed.
    pub fn configured(&self, configured: Configured) {
        lock(&self.0.leases).retain(|sink, _| {
            let stays = configured.has_sink(sink);
            if !stays {
                metrics::no_lease(sink);
            }
            stays
        });
        self.0.configured.send_replace(configured);
    }

    /// A sink's source, while it is driven here.
    pub(crate) fn reads(&self, sink: &str, source: &Arc<LogSource>) {
        lock(&self.0.sources).insert(sink.to_owned(), Arc::downgrade(source));
    }

    /// Events that a sink has still to get, and how long the oldest of them has waited, while it is driven here.
    pub fn lag(&self, sink: &str) -> Option<(u64, Duration)> {
        lock(&self.0.sources).get(sink)?.upgrade().map(|source| source.lag())
    }
}
