//! Who drives a sink: one member, by a lease.
//!
//! The task of a lease takes it, renews it, and gives it back. While it is held there is a [`Term`]; the
//! tasks of the sink (events, state, commands) run in it, see [`while_driven`], and end with it:
//!
//! - *handed over*: this member leaves, or another is to have the sink. The tasks end in order, with all that
//!   was sent acknowledged, then the lease is given back: the next driver repeats nothing.
//! - *lost*: the lease was not renewed in time, or somebody else has moved the cursor. The tasks are dropped
//!   where they stand.

use std::{
    collections::BTreeSet,
    future::{Future as _, poll_fn},
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU32, Ordering},
    },
    task::Poll,
    time::Duration,
};

use async_nats::jetstream::kv::{CreateErrorKind, Operation, UpdateErrorKind};
use bytes::Bytes;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{
    Cluster, assignment,
    connection::Storage,
    lease::{self, Lease},
    view::{Holder, SINK},
};
use crate::base::{
    clock::{self, Moment},
    supervisor::{Factory, Work},
    sync::lock,
};

/// How long a sink is free before a member takes it that is not the one to have it.
const SECOND_CHOICE: Duration = Duration::from_secs(1);

/// How often it is tried to take a lease that may be free.
const TRY: Duration = Duration::from_millis(250);

/// After so many terms one after the other whose lease the servers did not keep, its bucket is made again.
const VANISHED: u32 = 3;

/// A bucket that could not be deleted is not tried again for so long.
const DELETE_AGAIN: Duration = Duration::from_mins(10);

/// A sink is handed over to the member that is to have it when that has been so for this many lease times.
const SETTLED: u32 = 3;

/// The lease of a sink, as its tasks see it.
#[derive(Debug)]
pub(crate) struct SinkLease {
    pub(super) sink: Arc<str>,
    term: watch::Sender<Option<Term>>,
    /// Tasks of the sink that run.
    users: watch::Sender<usize>,
    /// Terms one after the other that ended because the servers did not have the lease any more.
    vanished: AtomicU32,
}

/// The time for which this member drives a sink.
#[derive(Debug, Clone)]
pub(crate) struct Term {
    lease: Arc<Mutex<Lease>>,
    /// The tasks are to end in order.
    pub(super) ending: CancellationToken,
    /// They are to end at once.
    pub(super) lost: CancellationToken,
}

impl Term {
    fn begin(lease: Lease) -> Self {
        let lease = Arc::new(Mutex::new(lease));
        Self { lease, ending: CancellationToken::new(), lost: CancellationToken::new() }
    }

    fn lease(&self) -> MutexGuard<'_, Lease> {
        lock(&self.lease)
    }

    /// Whether anything may be handed out at this moment. Once it may not, the term is over for all: a renewal
    /// whose answer comes later does not bring it back, as tasks have ended by then.
    pub(super) fn may_act(&self) -> bool {
        let may_act = !self.lost.is_cancelled() && self.lease().may_act();
        if !may_act {
            self.lost.cancel();
        }
        may_act
    }

    pub(super) fn age(&self) -> Duration {
        self.lease().age()
    }

    /// Ends when nothing may be handed out any more. Whoever polls it before each step of a task takes no
    /// step that is not permitted, even where the process was stopped for a while and nobody has noticed yet.
    async fn over(&self) {
        let mut lost = pin!(self.lost.cancelled());
        poll_fn(|cx| if self.may_act() { lost.as_mut().poll(cx) } else { Poll::Ready(()) }).await;
    }
}

/// A task of a sink that runs; counted until it is dropped.
struct User(Arc<SinkLease>);

impl User {
    fn of(lease: &Arc<SinkLease>) -> Self {
        lease.users.send_modify(|count| *count += 1);
        Self(Arc::clone(lease))
    }
}

impl Drop for User {
    fn drop(&mut self) {
        self.0.users.send_modify(|count| *count = count.saturating_sub(1));
    }
}

impl SinkLease {
    pub(super) fn new(sink: &str) -> Self {
        let (term, users) = (watch::Sender::new(None), watch::Sender::new(0));
        Self { sink: sink.into(), term, users, vanished: AtomicU32::new(0) }
    }

    /// The term, while there is one.
    pub(super) fn term(&self) -> Option<Term> {
        self.term.borrow().clone()
    }
}

/// Makes the work of a sink's task for a term; called on a thread where it may block.
pub(crate) type MakeWork = Box<dyn Fn(&Term, CancellationToken) -> Result<Work, String> + Send>;

/// A task that works while its sink is driven here, and waits otherwise.
pub(crate) fn while_driven(lease: Arc<SinkLease>, make: MakeWork) -> Factory {
    let make = Arc::new(Mutex::new(make));
    Box::new(move |stop| {
        let (lease, make) = (Arc::clone(&lease), Arc::clone(&make));
        Ok(Box::pin(async move {
            let mut terms = lease.term.subscribe();
            loop {
                let begun = async {
                    let begins = terms.wait_for(|term| term.as_ref().is_some_and(Term::may_act));
                    begins.await.ok()?.clone()
                };
                let Some(Some(term)) = stop.run_until_cancelled(begun).await else { return };
                let user = User::of(&lease);
                let ending = stop.child_token();
                let (making, for_term, for_work) =
                    (Arc::clone(&make), term.clone(), ending.clone());
                let made = tokio::task::spawn_blocking(move || lock(&making)(&for_term, for_work));
                let mut work = match made.await {
                    Ok(Ok(work)) => work,
                    // The supervisor shows it, and starts this task again.
                    Ok(Err(error)) => {
                        error!(sink = %lease.sink, error, "a task of the sink cannot be started");
                        return;
                    }
                    Err(_) => return,
                };
                let ended = tokio::select! {
                    biased;
                    () = term.over() => false,
                    () = &mut work => true,
                    () = term.ending.cancelled() => {
                        ending.cancel();
                        tokio::select! {
                            biased;
                            () = term.over() => {}
                            () = &mut work => {}
                        }
                        false
                    }
                };
                drop(work);
                drop(user);
                // It ended although nobody wanted it to.
                if ended && !stop.is_cancelled() && term.may_act() && !term.ending.is_cancelled() {
                    return;
                }
                let over = terms.wait_for(|now| now.as_ref().is_none_or(|now| !now.is(&term)));
                if stop.run_until_cancelled(over).await.is_none() {
                    return;
                }
            }
        }))
    })
}

impl Term {
    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.lease, &other.lease)
    }
}

/// The task of a lease.
pub(crate) fn factory(cluster: &Cluster, lease: &Arc<SinkLease>) -> Factory {
    let (cluster, lease) = (cluster.clone(), Arc::clone(lease));
    Box::new(move |stop| {
        let task = LeaseTask { cluster: cluster.clone(), lease: Arc::clone(&lease) };
        Ok(Box::pin(task.run(stop)))
    })
}

impl Cluster {
    /// The sinks whose leases the servers do not keep; another member says it of those that it drives.
    pub(super) fn forgotten_leases(&self) -> Vec<String> {
        let view = self.0.view.borrow().clone();
        let leases = lock(&self.0.leases);
        let is_elsewhere =
            |sink: &str| view.holder(sink).is_some_and(|holder| holder.run != self.run());
        let is_forgotten = |lease: &&Arc<SinkLease>| {
            lease.vanished.load(Ordering::Relaxed) > 1 && !is_elsewhere(&lease.sink)
        };
        leases.values().filter(is_forgotten).map(|lease| lease.sink.to_string()).collect()
    }
}

/// Takes, renews and gives back one lease.
struct LeaseTask {
    cluster: Cluster,
    lease: Arc<SinkLease>,
}

/// A lease that is held.
struct Held {
    term: Term,
    revision: u64,
    /// When the first request was sent whose outcome is not known.
    unknown: Option<Moment>,
    value: Bytes,
}

/// Why a term ends.
#[derive(Debug, PartialEq, Eq)]
enum End {
    HandedOver,
    Lost,
}

impl LeaseTask {
    fn key(&self) -> String {
        format!("{SINK}{}", self.lease.sink)
    }

    async fn run(self, stop: CancellationToken) {
        let mut not_deleted: Option<Instant> = None;
        loop {
            let taken = async {
                let storage = self.cluster.storage().await;
                let held = self.take(&storage).await;
                (storage, held)
            };
            let Some((storage, held)) = stop.run_until_cancelled(taken).await else { return };
            let sink = &self.lease.sink;
            info!(%sink, "this member drives the sink now");
            self.lease.term.send_replace(Some(held.term.clone()));
            let term = held.term.clone();
            let (end, revision) = self.hold(&storage, held, &stop).await;
            // Nothing is handed out any more, whoever has missed the end.
            term.lost.cancel();
            if end == End::Lost {
                warn!(%sink, "this member drives the sink no more: the lease was lost");
            }
            self.lease.term.send_replace(None);
            self.idle().await;
            if end == End::HandedOver {
                // Where it is somebody else's by now, this fails, and so it should.
                let given = storage.leases.delete_expect_revision(self.key(), Some(revision));
                let handed_over = matches!(timeout(self.patience(), given).await, Ok(Ok(())));
                info!(%sink, handed_over, "this member drives the sink no more");
            } else if self.lease.vanished.load(Ordering::Relaxed) >= VANISHED
                && not_deleted.is_none_or(|at| at.elapsed() >= DELETE_AGAIN)
            {
                let remade = stop.run_until_cancelled(self.remake_bucket(&storage)).await;
                not_deleted = (remade == Some(false)).then(Instant::now);
            }
        }
    }

    /// The servers accept leases and do not keep them: their bucket is deleted, and made again. Of a bucket that ran
    /// empty after a restart, servers of version 2.9 may find no key any more. `false`: it cannot be deleted.
    async fn remake_bucket(&self, storage: &Arc<Storage>) -> bool {
        let known = storage.leases.stream.cached_info();
        let name = &known.config.name;
        // Where that is not known now, the next term finds out.
        let Ok(found) = self.cluster.0.connection.found(name).await else { return true };
        let is_same = found.is_some_and(|found| found.cached_info().created == known.created);
        if is_same && self.cluster.is_current(storage) {
            let sink = &self.lease.sink;
            let deleted = self.cluster.context().delete_stream(name).await;
            // Another member may have been first.
            if let Err(error) = deleted
                && !matches!(self.cluster.0.connection.found(name).await, Ok(None))
            {
                error!(
                    %sink,
                    name,
                    %error,
                    "the servers do not keep the leases that they accept, and the bucket cannot be deleted: delete it \
                     by hand"
                );
                return false;
            }
            error!(
                %sink,
                name,
                "the servers do not keep the leases that they accept: the bucket was deleted, and is made again"
            );
            self.cluster.log_is_gone();
        }
        // It is another one by now, or will be.
        self.lease.vanished.store(0, Ordering::Relaxed);
        true
    }

    fn time(&self) -> Duration {
        self.cluster.settings().lease.0
    }

    fn patience(&self) -> Duration {
        lease::patience(self.time())
    }

    /// The member that is to drive the sink.
    fn preferred<'m>(&self, takers: &BTreeSet<&'m str>) -> Option<&'m str> {
        let sink = &self.lease.sink;
        let can = takers.iter().copied().filter(|member| self.cluster.can_drive(member, sink));
        assignment::driver(sink, can)
    }

    /// Waits until no task of the sink runs any more.
    async fn idle(&self) {
        let mut users = self.lease.users.subscribe();
        // The sender is in the lease itself.
        drop(users.wait_for(|count| *count == 0).await);
    }

    /// Waits until the lease is free and ours.
    async fn take(&self, storage: &Storage) -> Held {
        let mut views = self.cluster.views();
        // When a request was sent whose outcome is not known.
        let mut unknown = None;
        let mut free_since = None;
        loop {
            let (is_known, is_free, is_preferred) = {
                let view = views.borrow_and_update();
                let takers = view.takers(self.cluster.is_draining());
                let own = self.cluster.member();
                let preferred = self.preferred(&takers);
                let holder = view.holder(&self.lease.sink);
                let is_free = holder.is_none_or(|holder| holder.run == self.cluster.run());
                let takes = takers.contains(own);
                (view.is_known() && takes, is_free, preferred == Some(own))
            };
            let since = if is_free {
                *free_since.get_or_insert_with(Instant::now)
            } else {
                // The servers keep that member's lease.
                self.lease.vanished.store(0, Ordering::Relaxed);
                free_since = None;
                Instant::now()
            };
            let is_ours = is_preferred || since.elapsed() >= SECOND_CHOICE;
            if is_known
                && is_free
                && is_ours
                && let Some(held) = self.create(storage, &mut unknown).await
            {
                return held;
            }
            // What the server forgets it does not announce.
            tokio::select! {
                () = sleep(TRY) => {}
                Ok(()) = views.changed() => {}
            }
        }
    }

    async fn create(&self, storage: &Storage, unknown: &mut Option<Moment>) -> Option<Held> {
        // What waits for a server would be stored long after this lease.
        if !self.cluster.0.connection.is_reached() {
            return None;
        }
        let holder = Holder {
            member: self.cluster.member().to_owned(),
            run: self.cluster.run().to_owned(),
            since: clock::now(),
        };
        let value = Bytes::from(serde_json::to_vec(&holder).unwrap_or_default());
        let held = |revision, sent| Held {
            term: Term::begin(Lease::taken(self.time(), sent)),
            revision,
            unknown: None,
            value: value.clone(),
        };
        let sent = Moment::now();
        match timeout(self.patience(), storage.leases.create(self.key(), value.clone())).await {
            Ok(Ok(revision)) => Some(held(revision, sent)),
            Ok(Err(error)) if error.kind() == CreateErrorKind::AlreadyExists => {
                let entry = storage.leases.entry(self.key()).await.ok()??;
                let is_ours = entry.operation == Operation::Put && self.is_ours(&entry.value);
                match unknown.take().filter(|_| is_ours) {
                    // The answer to an earlier request was lost.
                    Some(first) => Some(held(entry.revision, first)),
                    // Of a term of ours that ended before its lease did.
                    None if is_ours => {
                        let update =
                            storage.leases.update(self.key(), value.clone(), entry.revision);
                        let updated = timeout(self.patience(), update).await.ok()?.ok();
                        updated.map(|revision| held(revision, sent))
                    }
                    None => None,
                }
            }
            Ok(Err(_)) | Err(_) => {
                unknown.get_or_insert(sent);
                None
            }
        }
        .filter(|held| held.term.may_act())
    }

    fn is_ours(&self, value: &[u8]) -> bool {
        serde_json::from_slice::<Holder>(value).is_ok_and(|holder| holder.run == self.cluster.run())
    }

    /// Renews the lease until the term ends; answers why, and the last revision.
    async fn hold(
        &self,
        storage: &Storage,
        mut held: Held,
        stop: &CancellationToken,
    ) -> (End, u64) {
        let pace = lease::renewal(self.time());
        let mut renew_at = Instant::now() + pace;
        let mut views = self.cluster.views();
        let mut users = self.lease.users.subscribe();
        let mut draining = self.cluster.draining();
        // Since when another member is to have the sink.
        let mut misplaced: Option<Instant> = None;
        loop {
            let term = &held.term;
            if !term.may_act() {
                return (End::Lost, held.revision);
            }
            let leaves = stop.is_cancelled()
                || *draining.borrow_and_update()
                || misplaced.is_some_and(|at| at.elapsed() >= self.time() * SETTLED);
            if leaves {
                term.ending.cancel();
            }
            if term.ending.is_cancelled() && *users.borrow_and_update() == 0 {
                return (End::HandedOver, held.revision);
            }
            let left = term.lease().left();
            tokio::select! {
                () = sleep(renew_at.saturating_duration_since(Instant::now()).min(left)) => {
                    // Whoever was stopped meanwhile does not ask for what is another's by now.
                    let left = held.term.lease().left();
                    if !left.is_zero() && Instant::now() >= renew_at {
                        let renewed = timeout(left, self.renew(storage, &mut held)).await;
                        if renewed != Ok(true) {
                            return (End::Lost, held.revision);
                        }
                        let soon = held.unknown.is_some();
                        renew_at = Instant::now() + if soon { TRY } else { pace };
                    }
                }
                () = term.lost.cancelled() => return (End::Lost, held.revision),
                () = stop.cancelled(), if !term.ending.is_cancelled() => {}
                Ok(()) = draining.changed() => {}
                Ok(()) = users.changed(), if term.ending.is_cancelled() => {}
                Ok(()) = views.changed(), if !term.ending.is_cancelled() => {
                    let view = views.borrow_and_update();
                    let takers = view.takers(false);
                    let preferred = self.preferred(&takers);
                    if preferred == Some(self.cluster.member()) {
                        misplaced = None;
                    } else {
                        misplaced.get_or_insert_with(Instant::now);
                    }
                }
            }
        }
    }

    /// Renews it once; `false`: it is somebody else's, or nobody's.
    async fn renew(&self, storage: &Storage, held: &mut Held) -> bool {
        let sent = Moment::now();
        let update = storage.leases.update(self.key(), held.value.clone(), held.revision);
        match timeout(self.patience(), update).await {
            Ok(Ok(revision)) => {
                held.revision = revision;
                held.unknown = None;
                held.term.lease().renewed(sent);
                self.lease.vanished.store(0, Ordering::Relaxed);
                true
            }
            Ok(Err(error)) if error.kind() == UpdateErrorKind::WrongLastRevision => {
                let Ok(Ok(entry)) =
                    timeout(self.patience(), storage.leases.entry(self.key())).await
                else {
                    held.unknown.get_or_insert(sent);
                    return true;
                };
                if entry.is_none() {
                    self.lease.vanished.fetch_add(1, Ordering::Relaxed);
                }
                let entry = entry.filter(|entry| {
                    entry.operation == Operation::Put && self.is_ours(&entry.value)
                });
                let Some(entry) = entry else { return false };
                // An earlier request was stored whose answer was lost; which one is not known.
                if entry.revision > held.revision
                    && let Some(first) = held.unknown.take()
                {
                    held.revision = entry.revision;
                    held.term.lease().renewed(first);
                }
                true
            }
            Ok(Err(_)) | Err(_) => {
                held.unknown.get_or_insert(sent);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_term_that_was_over_is_not_brought_back_by_a_late_answer() {
        let term = Term::begin(Lease::taken(Duration::from_secs(10), Moment::now()));
        advance(Duration::from_secs(6)).await;
        let sent = Moment::now();
        assert!(term.may_act());
        advance(Duration::from_secs(1)).await;
        // A task polls at this moment, and ends; then the answer to a renewal comes.
        term.over().await;
        term.lease().renewed(sent);
        assert!(!term.may_act() && term.lost.is_cancelled());
    }
}
