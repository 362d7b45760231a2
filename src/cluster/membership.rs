//! The task that keeps this member among the others: it announces itself, hears of the others, decides
//! which channels it holds, and leaves in order.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_nats::jetstream::kv::{Operation, Watch};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{
    Cluster,
    connection::Storage,
    cursor,
    error::ClusterError,
    holding, lease,
    report::Configured,
    servers::Failing,
    uptime::Uptimes,
    view::{MEMBER, Member, View},
};
use crate::{
    base::{
        clock::{self, Moment},
        supervisor::Factory,
        sync::lock,
    },
    gateway::{
        Away, Targets,
        table::{SubscriptionRow, Table},
    },
    journal::Journal,
};

/// How long to wait before what failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What happens within this time is looked at at once.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// A member that starts takes up channels when it has heard of no other for so long: those that start together
/// see one another before the first of them takes up all. One that comes to members which hold channels does
/// not wait: a channel that it shared is held once meanwhile.
const SETTLE: Duration = Duration::from_secs(1);

/// It waits no longer than that.
const SETTLE_LONGEST: Duration = Duration::from_secs(5);

/// Events that a member which leaves may still have to publish when its tasks are stopped.
const FEW: u64 = 200;

/// What a member is configured with stands under this key, beside the cursors of the sinks. No sink can have
/// this name.
pub(super) const CONFIGURED: &str = "configured.";

pub(crate) struct Parts {
    /// What is configured.
    pub(crate) all: watch::Receiver<Targets>,
    /// What this member holds of it.
    pub(crate) held: watch::Sender<Targets>,
    pub(crate) table: Arc<Table>,
    /// For reports of gaps.
    pub(crate) journal: Journal,
    /// How long this relay did not run before this start.
    pub(crate) away: Option<Away>,
}

struct Membership {
    cluster: Cluster,
    parts: Arc<Parts>,
    /// What this member is configured with. What changes after it was published is published again.
    configured: watch::Receiver<Configured>,
    /// Whether what has changed of it is still to be published.
    is_unpublished: bool,
    began: Instant,
    /// Members that took part when channels were assigned last, or, before that, when it was looked last.
    before: BTreeSet<String>,
    /// When the members were known for the first time, and when they changed last before channels were assigned.
    known: Option<(Instant, Instant)>,
    /// Channels that others held before, and those others, until one of them is known to have done so for long
    /// enough.
    taken: BTreeMap<Arc<str>, Vec<String>>,
    uptimes: Uptimes,
    /// Whether channels were ever assigned.
    assigned: bool,
    announced: Member,
    /// What others are configured with, by the digest that they say.
    compared: HashMap<String, u64>,
    /// Since when NATS does nothing of what it is asked.
    failing: Failing,
}

pub(crate) fn factory(cluster: &Cluster, parts: Parts) -> Factory {
    let (cluster, parts) = (cluster.clone(), Arc::new(parts));
    Box::new(move |stop| Ok(Box::pin(Membership::new(&cluster, &parts).run(stop))))
}

impl Membership {
    fn new(cluster: &Cluster, parts: &Arc<Parts>) -> Self {
        Self {
            cluster: cluster.clone(),
            parts: Arc::clone(parts),
            configured: cluster.0.configured.subscribe(),
            is_unpublished: false,
            began: Instant::now(),
            before: BTreeSet::new(),
            known: None,
            taken: BTreeMap::new(),
            uptimes: Uptimes::new(Arc::clone(&parts.table)),
            assigned: false,
            announced: Member::default(),
            compared: HashMap::new(),
            failing: Failing::default(),
        }
    }

    async fn run(mut self, stop: CancellationToken) {
        loop {
            let failed = match Box::pin(self.begin(&stop)).await {
                Ok(None) => None,
                Ok(Some((storage, watch))) => self.keep(&storage, watch, &stop).await,
                Err(error) => {
                    if matches!(error, ClusterError::Unavailable(_)) {
                        self.on_failure().await;
                    }
                    Some(error.to_string())
                }
            };
            let Some(why) = failed else { break };
            self.cluster.set_trouble(&why);
            // Without the others, everything is ours after a while: two that hold a channel do no harm.
            if self.began.elapsed() >= self.cluster.settings().lease.0 {
                self.assign(false);
            }
            self.finish_draining_alone();
            if stop.run_until_cancelled(sleep(RETRY)).await.is_none() {
                break;
            }
        }
    }

    /// A request to NATS failed. A server that is reached and does nothing for long is left for another.
    async fn on_failure(&mut self) {
        let connection = &self.cluster.0.connection;
        if self.failing.failed(connection.is_reached()) && connection.try_another().await {
            warn!("the NATS server does nothing of what it is asked: another one is tried");
        }
    }

    /// Finds or makes what the cluster keeps at NATS, and begins to hear of the others.
    async fn begin(
        &mut self,
        stop: &CancellationToken,
    ) -> Result<Option<(Arc<Storage>, Watch)>, ClusterError> {
        let sinks = self.configured.borrow_and_update().sinks();
        let ensured = Box::pin(self.cluster.0.connection.ensure(&sinks));
        let Some(storage) = stop.run_until_cancelled(ensured).await else { return Ok(None) };
        let storage = storage?;
        // The version is no reason why this member would not be ready.
        let about_version = self.cluster.0.connection.about_version();
        for remark in storage.remarks.iter().chain(&about_version) {
            warn!(remark, "about the cluster at NATS");
        }
        // A sink's place is taken before any event is published.
        for sink in sinks {
            let start = self.cluster.start_of(&sink);
            cursor::ensure((&storage.cursors, &storage.log), &sink, start).await?;
        }
        self.publish_configuration(&storage).await?;
        let watch = storage.leases.watch_with_history(">").await.map_err(|error| {
            ClusterError::Unavailable(format!("the members cannot be heard of: {error}"))
        })?;
        let storage = Arc::new(storage);
        self.cluster.0.storage.send_replace(Some(Arc::clone(&storage)));
        Ok(Some((storage, watch)))
    }

    async fn publish_configuration(&self, storage: &Storage) -> Result<(), ClusterError> {
        let key = format!("{CONFIGURED}{}", self.cluster.member());
        let value = self.cluster.0.configured.borrow().to_json();
        let put = storage.cursors.put(key, value.into()).await;
        put.map(drop).map_err(|error| ClusterError::Unavailable(error.to_string()))
    }

    /// Takes part in the cluster; answers why that ended, `None`: at a stop.
    async fn keep(
        &mut self,
        storage: &Storage,
        mut watch: Watch,
        stop: &CancellationToken,
    ) -> Option<String> {
        let cluster = self.cluster.clone();
        let parts = Arc::clone(&self.parts);
        let time = cluster.settings().lease.0;
        let pace = lease::renewal(time);
        let mut table = parts.table.changes();
        let mut all = parts.all.clone();
        let mut draining = cluster.draining();
        let mut gone = cluster.0.gone.subscribe();
        gone.mark_unchanged();
        let mut announce_at = Instant::now();
        let mut decide_at = Some(Instant::now());
        let mut failures = 0_u32;
        let began = Moment::now();
        loop {
            let silent = cluster.0.view.borrow().own_seen().map(|time| time.min(began.elapsed()));
            if silent.is_some_and(|silent| silent > time * 2) && failures == 0 {
                // What we say arrives, and we do not hear it.
                return Some("no changes of the members are received any more".into());
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => {
                    self.delete_own_key(storage).await;
                    return None;
                }
                () = sleep_until(announce_at) => {
                    if self.announce(storage).await {
                        failures = 0;
                        if self.is_unpublished {
                            self.on_configured(storage).await;
                        }
                        announce_at = Instant::now() + pace;
                        decide_at.get_or_insert_with(Instant::now);
                    } else {
                        failures += 1;
                        announce_at = Instant::now() + RETRY.min(pace / 2);
                        let why = cluster.0.connection.failure();
                        cluster.set_trouble(&why);
                        self.on_failure().await;
                        if failures.is_multiple_of(20) {
                            return Some(why);
                        }
                    }
                }
                entry = watch.next() => match entry {
                    Some(Ok(entry)) => {
                        self.on_entry(&entry);
                        decide_at.get_or_insert_with(|| Instant::now() + DEBOUNCE);
                    }
                    Some(Err(error)) => return Some(format!("the members cannot be heard of: {error}")),
                    None => return Some("the members cannot be heard of".into()),
                },
                Ok(()) = table.changed() => {
                    self.uptimes.update();
                    decide_at.get_or_insert_with(|| Instant::now() + DEBOUNCE);
                }
                Ok(()) = all.changed() => drop(decide_at.get_or_insert_with(Instant::now)),
                Ok(()) = self.configured.changed() => {
                    self.on_configured(storage).await;
                    announce_at = Instant::now();
                }
                Ok(()) = draining.changed() => announce_at = Instant::now(),
                Ok(()) = gone.changed() => return Some("the log or a bucket is not there".into()),
                () = clock::until(decide_at) => {
                    decide_at = self.settles_at();
                    if decide_at.is_none() && self.decide(storage).await {
                        announce_at = Instant::now();
                    }
                }
            }
        }
    }

    /// What is configured has changed: a new sink's place is taken, and published to the others. What fails is tried again
    /// with the next announcement.
    async fn on_configured(&mut self, storage: &Storage) {
        self.is_unpublished = false;
        let sinks = self.cluster.0.configured.borrow().sinks();
        for sink in sinks {
            let start = self.cluster.start_of(&sink);
            if let Err(error) = cursor::ensure((&storage.cursors, &storage.log), &sink, start).await
            {
                self.is_unpublished = true;
                warn!(%error, "a new sink's place in the log cannot be had now");
            }
        }
        if let Err(error) = self.publish_configuration(storage).await {
            self.is_unpublished = true;
            warn!(%error, "the others cannot be told what is configured");
        }
    }

    fn on_entry(&self, entry: &async_nats::jetstream::kv::Entry) {
        let cluster = &self.cluster;
        if entry.operation == Operation::Put {
            let is_ours = entry.key.strip_prefix(MEMBER) == Some(cluster.member());
            if is_ours && entry.delta == 0 {
                cluster.0.connection.set_server_time(entry.created);
            }
            let stored = clock::millis(entry.created);
            cluster.0.view.send_modify(|view| {
                view.put(&entry.key, &entry.value, stored, Moment::now());
            });
        } else {
            cluster.0.view.send_modify(|view| view.removed(&entry.key));
        }
    }

    /// Publishes that this member is there, and how it is; whether that worked.
    async fn announce(&mut self, storage: &Storage) -> bool {
        let member = self.own();
        let cluster = &self.cluster;
        let value = Bytes::from(serde_json::to_vec(&member).unwrap_or_default());
        let key = format!("{MEMBER}{}", cluster.member());
        // Nobody stops because of this: it may take longer than a renewal.
        let patience = cluster.settings().lease.0 / 2;
        let put = timeout(patience, storage.leases.put(key, value)).await;
        if matches!(put, Ok(Ok(_))) {
            self.announced = member;
            self.failing = Failing::default();
            cluster.0.trouble.send_replace(None);
            return true;
        }
        false
    }

    /// What this member says of itself.
    fn own(&self) -> Member {
        let cluster = &self.cluster;
        let figures = &cluster.0.outbox;
        Member {
            version: env!("CARGO_PKG_VERSION").into(),
            run: cluster.run().into(),
            started: match self.announced.started {
                0 => clock::now(),
                at => at,
            },
            clock: clock::now(),
            draining: cluster.is_draining(),
            set: self.set(),
            stands: self.stands(),
            config: cluster.0.configured.borrow().digest(),
            channels: lock(&cluster.0.holding).len(),
            waiting: cluster.0.outbox.waiting.load(Ordering::Relaxed),
            stored: figures.stored.load(Ordering::Relaxed),
            duplicates: figures.duplicates.load(Ordering::Relaxed),
            single: cluster.0.single.load(Ordering::Relaxed),
        }
    }

    /// The members that channels were assigned to last. Those that are seen now may be others already, for which
    /// what this member holds says nothing yet.
    fn set(&self) -> u64 {
        View::set(&self.before.iter().map(String::as_str).collect())
    }

    async fn delete_own_key(&self, storage: &Storage) {
        let key = format!("{MEMBER}{}", self.cluster.member());
        let patience = lease::patience(self.cluster.settings().lease.0);
        // Where it does not work, the server forgets it by itself.
        drop(timeout(patience, storage.leases.delete(key)).await);
    }

    /// Until when it is waited for other members before channels are taken up.
    fn settles_at(&mut self) -> Option<Instant> {
        let view = self.cluster.0.view.borrow();
        if self.assigned || !view.is_known() || view.others_hold() {
            return None;
        }
        let takers = view.takers(self.cluster.is_draining());
        let now = Instant::now();
        let (first, changed) = self.known.get_or_insert((now, now));
        if !self.before.iter().eq(takers.iter().copied()) {
            self.before = takers.into_iter().map(ToOwned::to_owned).collect();
            *changed = now;
        }
        Some((*changed + SETTLE).min(*first + SETTLE_LONGEST)).filter(|at| *at > now)
    }

    /// Decides again what this member holds; whether there is something to announce at once.
    async fn decide(&mut self, storage: &Storage) -> bool {
        self.cluster.0.view.send_if_modified(|view| {
            view.tidy_up();
            false
        });
        if !self.cluster.0.view.borrow().is_known() {
            return false;
        }
        // Who lacks a channel is none of its holders.
        let is_compared = self.compare(storage).await;
        self.assign(is_compared);
        self.report_orphans();
        self.adopt_single_copy();
        if self.cluster.is_draining() {
            self.finish_draining();
        }
        let (cluster, last) = (&self.cluster, &self.announced);
        (self.set(), self.stands(), cluster.is_draining(), lock(&cluster.0.holding).len())
            != (last.set, last.stands, last.draining, last.channels)
    }

    /// Takes up the channels that are ours now, and gives up those that are not. `is_compared`: it is known what the
    /// others are configured with. Else one may be taken for a holder that lacks the channel, so none is given up.
    fn assign(&mut self, is_compared: bool) {
        let cluster = self.cluster.clone();
        let targets = self.parts.all.borrow().clone();
        let draining = cluster.is_draining();
        let view = cluster.0.view.borrow().clone();
        let takers = view.takers(draining);
        let holders = |channel: &str| cluster.holders(channel, takers.iter().copied());
        let ours = holding::assigned(cluster.member(), targets.channels.keys(), holders);
        let set = View::set(&takers);
        // Nobody is left who could take over what a member that leaves has.
        let released = !takers.is_empty() && view.others_stand(set) && (draining || self.stands());
        let fresh: Vec<Arc<str>> = {
            let mut holding = lock(&cluster.0.holding);
            let fresh = ours.iter().filter(|channel| !holding.has(channel)).cloned().collect();
            holding.forget(|channel| targets.channels.contains_key(channel));
            // Who leaves keeps what it has to the end.
            holding.assign(&ours, is_compared && released && !draining);
            fresh
        };
        if let Some(away) = self.parts.away.filter(|_| !self.assigned) {
            // Whether others held the channels meanwhile is asked before it is reported.
            for subscription in &targets.subscriptions {
                if fresh.contains(&subscription.channel) {
                    self.parts.table.was_away(subscription, away);
                }
            }
        }
        if self.assigned {
            for channel in fresh {
                let before = self.before.iter().map(String::as_str);
                let holders = cluster.holders(&channel, before);
                let holders = holders.into_iter().map(ToOwned::to_owned).collect();
                self.taken.insert(channel, holders);
            }
        }
        self.before = takers.iter().map(|name| (*name).to_owned()).collect();
        self.assigned = true;
        let held = {
            let holding = lock(&cluster.0.holding);
            let subscriptions = targets.subscriptions.iter();
            let held = subscriptions.filter(|one| holding.has(&one.channel)).cloned();
            let elsewhere = targets.channels.keys().filter(|channel| !holding.has(channel));
            Targets {
                subscriptions: held.collect(),
                channels: targets.channels.clone(),
                refreshed: targets.refreshed,
                elsewhere: elsewhere.cloned().collect(),
            }
        };
        self.parts.table.expect(&held.subscriptions);
        cluster.0.has_assigned.store(true, Ordering::Relaxed);
        self.parts.held.send_if_modified(|known| {
            let is_same = known.subscriptions == held.subscriptions
                && known.channels == held.channels
                && known.elsewhere == held.elsewhere
                && known.refreshed == held.refreshed;
            if !is_same {
                info!(
                    channels = lock(&cluster.0.holding).len(), of = held.channels.len(),
                    members = ?takers, "the channels of this member have changed"
                );
                *known = held;
            }
            !is_same
        });
    }

    /// A channel whose holders before all died before it stood here had none since the last of them was heard of.
    /// The first of the new holders reports that. They may be found dead one after another.
    fn report_orphans(&mut self) {
        let (cluster, uptimes) = (&self.cluster, &mut self.uptimes);
        let view = cluster.0.view.borrow().clone();
        let mut orphans = Vec::new();
        self.taken.retain(|channel, holders| {
            let heard = holders.iter().filter_map(|holder| view.heard(holder));
            let heard = heard.min_by_key(|at| at.elapsed());
            let uptime = uptimes.of(channel);
            let was_there =
                uptime.zip(heard).is_some_and(|(uptime, at)| at.elapsed() < uptime.unbroken);
            if was_there || !lock(&cluster.0.holding).has(channel) {
                return false;
            }
            let is_alive = |holder: &String| view.alive().any(|(name, _)| name == holder);
            if holders.iter().any(is_alive) {
                return true;
            }
            orphans.extend(heard.map(|at| (Arc::clone(channel), at)));
            false
        });
        orphans.retain(|(channel, _)| cluster.is_first_holder(channel));
        let targets = self.parts.all.borrow();
        for (channel, at) in orphans {
            let all = targets.subscriptions.iter();
            let of_channel: Vec<_> = all.filter(|one| one.channel == channel).collect();
            let cause = "no member of the cluster held it";
            let mut reports = self.parts.table.had_no_holder(&of_channel, at, cause);
            self.parts.journal.append(&mut reports);
        }
    }

    /// Whether all that this member has to hold is answered for, one way or the other. A failure that is tried
    /// again in a moment is no answer.
    fn stands(&self) -> bool {
        if !self.assigned {
            return false;
        }
        let wanted = self.parts.held.borrow().subscriptions.len();
        self.parts.table.read(|state| {
            state.subscriptions.len() == wanted
                && !state.subscriptions.values().any(SubscriptionRow::is_waited_for)
        })
    }

    /// What one member has found out of copies holds for all.
    fn adopt_single_copy(&self) {
        if self.cluster.0.view.borrow().alive().any(|(_, member)| member.single) {
            self.cluster.reduce_to_one_copy();
        }
    }

    /// Whether the others have taken over what was ours.
    fn finish_draining(&self) {
        let cluster = &self.cluster;
        let view = cluster.0.view.borrow();
        let set = View::set(&view.takers(true));
        let announced = self.announced.draining;
        let sinks = lock(&cluster.0.leases).values().any(|lease| lease.term().is_some());
        // What waits still is published within the time of the stop; more than that is waited for here.
        let published = cluster.0.outbox.waiting.load(Ordering::Relaxed) <= FEW;
        if announced && !sinks && published && view.others_stand(set) {
            cluster.0.drained.send_replace(true);
        }
    }

    /// Where no server is reached, or ever was, there is nobody to hand over to. Anything else that fails may
    /// work again at once, and the others do not have yet what is ours.
    fn finish_draining_alone(&self) {
        let cluster = &self.cluster;
        let is_alone = !cluster.0.connection.is_reached() || !cluster.0.view.borrow().is_known();
        if cluster.is_draining() && is_alone {
            cluster.0.drained.send_replace(true);
        }
    }

    /// Compares what others are configured with, where their digest is another; whether all of that is known.
    async fn compare(&mut self, storage: &Storage) -> bool {
        let cluster = self.cluster.clone();
        let own = cluster.0.configured.borrow().clone();
        let others: Vec<(String, u64)> = {
            let view = cluster.0.view.borrow();
            let others = view.alive().filter(|(name, _)| *name != cluster.member());
            others.map(|(name, member)| (name.to_owned(), member.config)).collect()
        };
        lock(&cluster.0.differences).retain(|name, _| {
            others.iter().any(|(other, digest)| other == name && *digest != own.digest())
        });
        let differ: Vec<String> = lock(&cluster.0.differences).keys().cloned().collect();
        lock(&cluster.0.others).retain(|name, _| differ.contains(name));
        // One that was away is compared again when it is back.
        self.compared.retain(|name, _| differ.contains(name));
        let mut is_known = true;
        for (name, digest) in others {
            let both = digest ^ own.digest();
            if digest == own.digest() || self.compared.get(&name) == Some(&both) {
                continue;
            }
            let found = storage.cursors.get(format!("{CONFIGURED}{name}")).await;
            let Ok(found) = found else { return false };
            let Some(value) = found else {
                is_known = false;
                continue;
            };
            // A server may answer with an older one: then it is asked again.
            let is_current = Configured::digest_of(&value) == digest;
            is_known &= is_current;
            let differences = own.differences(&value);
            if differences.is_empty() {
                continue;
            }
            let known = lock(&cluster.0.differences).insert(name.clone(), differences.clone());
            if known.as_ref() != Some(&differences) {
                let list = differences.join(", ");
                error!(member = name, differences = list, "a member has another configuration");
            }
            if let Ok(other) = serde_json::from_slice(&value) {
                lock(&cluster.0.others).insert(name.clone(), other);
            }
            if is_current {
                self.compared.insert(name, both);
            }
        }
        is_known
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use serde_json::json;

    use super::*;
    use crate::{
        astro::session::{Refusal, Subscription, SubscriptionState},
        base::tls,
        config::{self, Config, TokenType},
        gateway::table::{Slot, State},
    };

    /// That of a member `b`, which reaches no server.
    async fn membership() -> Membership {
        tls::install_provider();
        let settings = json!({ "url": "nats://127.0.0.1:1", "member": "b" });
        let settings: config::Cluster = serde_json::from_value(settings).unwrap();
        let configured = Configured::of(&Config::default());
        let cluster = Cluster::begin(&settings, configured).await.unwrap();
        let parts = Parts {
            all: watch::channel(Targets::default()).1,
            held: watch::Sender::new(Targets::default()),
            table: Arc::default(),
            journal: Journal::in_memory(1024 * 1024),
            away: None,
        };
        Membership::new(&cluster, &Arc::new(parts))
    }

    fn says(membership: &Membership, name: &str, draining: bool) {
        let run = if name == "b" { membership.cluster.run() } else { "another" };
        let member = Member { run: run.into(), draining, ..Member::default() };
        let value = serde_json::to_vec(&member).unwrap();
        membership.cluster.0.view.send_modify(|view| {
            view.put(&format!("{MEMBER}{name}"), &value, 0, Moment::now());
        });
    }

    #[tokio::test]
    async fn a_member_says_that_it_stands_for_the_members_that_channels_were_assigned_to() {
        let mut membership = membership().await;
        says(&membership, "a", false);
        says(&membership, "b", false);
        membership.assign(true);
        let both = View::set(&["a", "b"].into());
        assert_eq!((membership.own().set, membership.own().stands), (both, true));
        // It is seen that `a` leaves, and nothing was taken over yet: `a` must not take it for done.
        says(&membership, "a", true);
        assert_eq!(membership.own().set, both);
        membership.assign(true);
        assert_eq!(membership.own().set, View::set(&["b"].into()));
    }

    #[tokio::test]
    async fn nothing_is_given_up_while_it_is_not_known_what_the_others_have() {
        let mut membership = membership().await;
        let channel = json!({ "token": { "value": "t" }, "topics": [] });
        let channels: BTreeMap<_, _> =
            (0..20).map(|n| (format!("c{n}"), channel.clone())).collect();
        let config: Config = serde_json::from_value(json!({ "channels": channels })).unwrap();
        membership.cluster.configured(Configured::of(&config));
        let all = watch::channel(Targets::of(&config)).1;
        Arc::get_mut(&mut membership.parts).unwrap().all = all;
        membership.cluster.0.single.store(true, Ordering::Relaxed);
        let held = |membership: &Membership| lock(&membership.cluster.0.holding).len();
        says(&membership, "b", false);
        membership.assign(true);
        assert_eq!(held(&membership), 20);
        // Another takes its share, and all of that stands.
        let set = View::set(&["a", "b"].into());
        let other = Member { run: "another".into(), set, stands: true, ..Member::default() };
        let value = serde_json::to_vec(&other).unwrap();
        membership.cluster.0.view.send_modify(|view| {
            view.put(&format!("{MEMBER}a"), &value, 0, Moment::now());
        });
        membership.assign(false);
        assert_eq!(held(&membership), 20, "it may lack what it would have to hold");
        membership.assign(true);
        assert!((1..20).contains(&held(&membership)));
    }

    #[tokio::test]
    async fn a_member_does_not_stand_while_a_subscription_fails_for_a_moment() {
        let mut membership = membership().await;
        says(&membership, "b", false);
        membership.assign(true);
        let (channel, topic) = ("main".into(), "channel.tips".into());
        let tips = Subscription {
            channel,
            topic,
            room: None,
            token_type: TokenType::Jwt,
            token_room: None,
        };
        let tips = Arc::new(tips);
        membership.parts.held.send_modify(|held| held.subscriptions.push(Arc::clone(&tips)));
        let stands = |code: &str, seconds| {
            let wait = Some(Duration::from_secs(seconds));
            let refusal = Refusal::new(code, "no", wait, Instant::now());
            let mut row = SubscriptionRow::new(0);
            row.slot = Slot::On(1);
            row.state = SubscriptionState::Refused(refusal);
            let subscriptions = [(Arc::clone(&tips), row)].into();
            membership.parts.table.replace(State { subscriptions, ..State::default() });
            membership.stands()
        };
        assert!(!stands("err_internal_error", 2));
        assert!(stands("err_internal_error", 16), "one that goes on failing holds nobody up");
        assert!(stands("err_unauthorized", 2));
    }

    #[tokio::test]
    async fn what_is_configured_while_a_member_begins_is_published_afterwards() {
        let mut membership = membership().await;
        membership.cluster.configured(Configured::default());
        let stop = CancellationToken::new();
        drop(Box::pin(membership.begin(&stop)).now_or_never());
        assert!(!membership.configured.has_changed().unwrap(), "it is published as it begins");
        membership.cluster.configured(Configured::default());
        assert!(membership.configured.has_changed().unwrap());
    }

    #[tokio::test]
    async fn a_member_that_leaves_has_handed_over_only_where_no_server_is_reached() {
        let mut membership = membership().await;
        let (reaches, reached) = watch::channel(true);
        Arc::get_mut(&mut membership.cluster.0).unwrap().connection.reached = reached;
        membership.cluster.0.draining.send_replace(true);
        let is_drained = |membership: &Membership| *membership.cluster.0.drained.borrow();
        says(&membership, "b", false);
        membership.finish_draining_alone();
        assert!(!is_drained(&membership), "whatever failed may work again at once");
        reaches.send_replace(false);
        membership.finish_draining_alone();
        assert!(is_drained(&membership));
    }
}
