//! One connection to the gateway, kept open: the states of its life.
//!
//! [`Link::dialing`] until a connection is open, [`Link::connected`] until it has ended. When the server
//! says `reconnect`, the connection that takes over is opened while the old one goes on being read; both
//! feed the same intake, which takes duplicates out.
//!
//! What is read is appended to the journal and the next frame is read. The one thing that is waited for is
//! a disk that is behind, see [`crate::journal::Journal::ready`].
//!
//! Timers stand still while the machine is suspended. When it wakes, a connection that has been silent
//! for too long by a clock that went on is dead.

mod connection;
mod handover;
mod reconnect;

use std::{collections::HashSet, pin::Pin, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, info_span, warn};

use self::{
    connection::{Connection, Step},
    handover::{Handover, Outcome},
    reconnect::ReconnectPolicy,
};
use super::{hub::Hub, table::Phase};
use crate::{
    astro::session::{
        Effects, Ended, NamedRooms, Session, Subscription, SubscriptionState, Unplaced, Unreadable,
        Wanted,
    },
    base::{
        clock,
        event::Event,
        metrics::{self, CONNECTS},
    },
    config::Secret,
};

/// What is wanted of one link.
pub(super) type Wants = Arc<[Arc<Subscription>]>;

/// How often the token of a refused subscription is read, in case it has changed.
const REREAD: Duration = Duration::from_secs(2);

pub(super) struct Link {
    number: u64,
    hub: Arc<Hub>,
    wants: watch::Receiver<Wants>,
    stop: CancellationToken,
    policy: ReconnectPolicy,
    /// Of the connection before.
    unreadable: Unreadable,
    /// The same, with what was wanted then: of other channels it says nothing.
    unplaced: (Unplaced, Wants),
    named_rooms: NamedRooms,
}

/// An open connection, and the one that takes over while it moves.
struct Connected {
    current: Connection,
    opened: Instant,
    handover: Option<Handover>,
    /// The current connection ended while it moved.
    lost: Option<Lost>,
    tokens: Tokens,
    /// Events of handovers that were given up. They wait for what the current connection has still to
    /// say, for a moment.
    left_behind: Vec<Event>,
}

/// Tokens that are being read, while the connection goes on.
#[derive(Default)]
struct Tokens {
    reads: FuturesUnordered<Pin<Box<dyn Future<Output = Read> + Send>>>,
    /// Those of refused subscriptions are among them.
    again: bool,
}

/// Tokens that were read.
enum Read {
    /// What has been wanted lately, each with its token.
    Fresh(Vec<Wanted>),
    /// The tokens of channels with refused subscriptions, as they are now.
    Again(Vec<(Arc<str>, Secret)>),
}

struct Lost {
    cause: String,
    at: Instant,
    /// The next connection had been welcomed already: by token, it has got what the old one could not.
    covered: bool,
}

/// What comes after a connection.
enum After {
    Stopped,
    /// Nothing is wanted on it any more.
    Idle,
    Lost,
}

impl Connected {
    fn new(current: Connection) -> Self {
        Self {
            current,
            opened: Instant::now(),
            handover: None,
            lost: None,
            tokens: Tokens::default(),
            left_behind: Vec::new(),
        }
    }

    /// The handover is given up; the events of its connection are not.
    fn give_up_handover(&mut self) {
        if let Some(mut handover) = self.handover.take() {
            self.left_behind.append(&mut handover.take_events());
        }
    }

    /// Whether nothing is wanted on it any more.
    fn is_idle(&self) -> bool {
        self.current.session.is_empty() && self.handover.is_none() && self.tokens.reads.is_empty()
    }
}

impl Link {
    pub(super) fn new(
        number: u64,
        hub: Arc<Hub>,
        wants: watch::Receiver<Wants>,
        stop: CancellationToken,
    ) -> Self {
        let policy = ReconnectPolicy::new(hub.config.backoff_max.0);
        let (unreadable, named_rooms) = (Unreadable::default(), NamedRooms::new());
        let unplaced = <(Unplaced, Wants)>::default();
        Self { number, hub, wants, stop, policy, unreadable, unplaced, named_rooms }
    }

    /// Keeps a connection until it is stopped, or nothing is wanted on it.
    pub(super) async fn run(mut self, delay: Duration) -> u64 {
        let number = self.number;
        async {
            self.phase(Phase::Waiting, None);
            let mut wait = delay;
            while self.waiting(wait).await.is_some() {
                let Some(connection) = self.dialing().await else { break };
                match self.connected(connection).await {
                    After::Stopped | After::Idle => break,
                    After::Lost => wait = self.policy.wait(Instant::now()),
                }
            }
            self.hub.table.remove_connection(number);
        }
        .instrument(info_span!("link", number))
        .await;
        number
    }

    /// Opens a connection, however long it takes; `None`: it is no longer wanted.
    async fn dialing(&mut self) -> Option<Connection> {
        loop {
            self.phase(Phase::Dialing, None);
            self.policy.attempted(Instant::now());
            let hub = Arc::clone(&self.hub);
            let wants = self.wants.borrow_and_update().clone();
            let dialing = async { tokio::join!(hub.dialer.dial(None), hub.credentials(&wants)) };
            let (outcome, wanted) = tokio::select! {
                () = self.unwanted() => return None,
                outcome = dialing => outcome,
            };
            let error = match outcome {
                Ok(socket) => {
                    metrics::add_for(CONNECTS, "outcome", "open", 1);
                    info!("connected to the gateway");
                    let number = self.hub.next_connection();
                    let config = Arc::clone(&self.hub.config);
                    let mut session = Session::new(number, wanted, config, Instant::now());
                    session.continue_unreadable(std::mem::take(&mut self.unreadable));
                    let (unplaced, wanted_then) = std::mem::take(&mut self.unplaced);
                    if wanted_then == wants {
                        session.continue_unplaced(unplaced);
                    }
                    session.continue_rooms(&self.named_rooms);
                    return Some(Connection::new(self.number, socket, session));
                }
                Err(error) => error,
            };
            let now = Instant::now();
            self.policy.asked(now, error.retry_after());
            let wait = self.policy.wait(now);
            metrics::add_for(CONNECTS, "outcome", "failed", 1);
            warn!(%error, ?wait, "cannot connect to the gateway; trying again");
            self.phase(Phase::Waiting, Some(&error.to_string()));
            self.waiting(wait).await?;
        }
    }

    /// `None`: it is no longer wanted.
    async fn waiting(&mut self, wait: Duration) -> Option<()> {
        self.hub.table.waits(self.number, wait);
        tokio::select! {
            () = self.unwanted() => None,
            () = clock::sleep(wait) => Some(()),
        }
    }

    /// Waits until this link is stopped, or nothing is wanted on it.
    async fn unwanted(&mut self) {
        tokio::select! {
            () = self.stop.cancelled() => {}
            Ok(_) = self.wants.wait_for(|wants| wants.is_empty()) => {}
        }
    }

    /// Keeps a connection until it has ended, moving to another when the server says so.
    async fn connected(&mut self, current: Connection) -> After {
        let hub = Arc::clone(&self.hub);
        let mut open = Connected::new(current);
        let mut sleeps = clock::sleeps();
        let mut targets = hub.targets.clone();
        let mut pings = hub.table.pings();
        let mut reread = interval(REREAD);
        reread.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.phase(Phase::Open, None);
        hub.table.frame(self.number, open.current.last_frame);
        hub.update(self.number, &open.current.session.updates());
        // What has changed while it was being dialled counts as seen.
        self.reconcile(&mut open);
        loop {
            let after = tokio::select! {
                () = self.stop.cancelled() => Some(After::Stopped),
                step = open.current.step(&hub), if open.lost.is_none() => {
                    self.on_step(step, &mut open)
                }
                outcome = advance(&mut open.handover, &hub), if open.handover.is_some() => {
                    self.on_handover(outcome, &mut open).await
                }
                // What a connection that has ended knows is no longer so: this waits for the next one.
                Ok(()) = self.wants.changed(), if open.lost.is_none() => {
                    self.reconcile(&mut open);
                    None
                }
                Some(read) = open.tokens.reads.next(), if open.lost.is_none() => {
                    self.on_tokens(read, &mut open)
                }
                _ = reread.tick() => {
                    hub.append(&mut open.left_behind);
                    hub.table.count_messages(&open.current.session.take_message_counts());
                    let (session, now) = (&open.current.session, Instant::now());
                    let (unreadable, unplaced) = (session.unreadable(now), session.unplaced(now));
                    hub.table.problems(self.number, unreadable, unplaced);
                    self.reread_tokens(&mut open);
                    // Not for the moment that a move takes.
                    if let Some(lost) = open.lost.as_ref().filter(|lost| lost.at.elapsed() >= REREAD) {
                        // Afterwards nothing is confirmed any more: then nothing would be missing.
                        hub.lost(self.number, &lost.cause);
                        self.phase(Phase::Dialing, Some(&lost.cause));
                    }
                    None
                }
                Ok(()) = targets.changed() => {
                    self.renew_tokens(&mut open);
                    None
                }
                Ok(()) = pings.changed(), if open.lost.is_none() => {
                    self.ping(&mut open);
                    None
                }
                Ok(()) = sleeps.changed() => self.on_sleep(&mut open),
            };
            let Some(after) = after else { continue };
            match (&after, &open.lost) {
                (After::Lost, _) => {}
                (_, None) => open.current.leave(&hub).await,
                // Whether the next connection would have been restored will not be known.
                (_, Some(lost)) => hub.lost(self.number, &lost.cause),
            }
            open.give_up_handover();
            hub.append(&mut open.left_behind);
            return after;
        }
    }

    fn on_step(&mut self, step: Step, open: &mut Connected) -> Option<After> {
        self.hub.overflow(self.number, &step.overflow);
        if open.is_idle() {
            return Some(After::Idle);
        }
        match step.ended? {
            Ended::Handover(token) if open.handover.is_none() => {
                info!("the gateway asks to reconnect");
                self.phase(Phase::Moving, None);
                // A server that sends us round and round is not followed for ever.
                let now = Instant::now();
                let wait = self.policy.over_budget(now);
                self.policy.attempted(now);
                open.handover = Some(self.handover(token, open, wait));
                None
            }
            Ended::Handover(_) => {
                debug!("another reconnect while moving");
                None
            }
            Ended::Lost(cause) => match &mut open.handover {
                None => Some(self.lost(open, &cause)),
                // It took its time because the old connection was read meanwhile.
                Some(handover) if handover.waits() => Some(self.lost(open, &cause)),
                Some(handover) => {
                    // It may yet be restored: whether there is a gap is known then.
                    debug!(cause, "the old connection ended while moving");
                    let covered = handover.is_welcomed();
                    handover.old_has_ended();
                    open.lost = Some(Lost { cause, at: Instant::now(), covered });
                    self.hub.append(&mut open.left_behind);
                    None
                }
            },
        }
    }

    /// Somebody needs to know whether the connection holds.
    fn ping(&self, open: &mut Connected) {
        let mut effects = Effects::default();
        open.current.session.ping(Instant::now(), &mut effects);
        if effects.ping {
            open.current.take(effects, &self.hub);
        }
    }

    /// The machine has slept. For a connection that was silent for longer than the gateway would have
    /// waited for us, that was the end.
    fn on_sleep(&mut self, open: &mut Connected) -> Option<After> {
        let silent = open.current.last_frame.elapsed();
        if silent < open.current.session.patience_with_silence() {
            return None;
        }
        open.give_up_handover();
        let cause = open.lost.take().map(|lost| lost.cause);
        Some(self.lost(open, cause.as_deref().unwrap_or("the machine was suspended")))
    }

    async fn on_handover(&mut self, outcome: Outcome, open: &mut Connected) -> Option<After> {
        let (why, asked, token) = match outcome {
            Outcome::Going => return None,
            Outcome::Ready { connection, restored } => {
                self.move_to(*connection, restored, open).await;
                return None;
            }
            Outcome::TokenSpent(why) => {
                warn!(why, "the reconnect token was refused; connecting again without it");
                (why, None, None)
            }
            Outcome::NotYet { token, why, asked } => (why, asked, Some(token)),
            Outcome::Failed { why, asked } => (why, asked, None),
        };
        open.give_up_handover();
        let now = Instant::now();
        self.policy.asked(now, asked);
        if let Some(lost) = open.lost.take() {
            return Some(self.lost(open, &lost.cause));
        }
        // The old connection is read meanwhile: there is time.
        let wait = self.policy.wait(now);
        self.policy.attempted(now);
        warn!(why, ?wait, "the next connection could not be opened; trying again");
        open.handover = Some(if let Some(token) = token {
            self.handover(token, open, wait)
        } else {
            let named = open.current.session.named_rooms();
            Handover::plain(self.number, &self.hub, self.wants.borrow().clone(), named, wait)
        });
        None
    }

    fn handover(&self, token: Secret, open: &Connected, wait: Duration) -> Handover {
        Handover::restored(self.number, &self.hub, token, &open.current.session, wait)
    }

    /// The next connection is ready: what the old one had still to say is read, then it is forgotten.
    async fn move_to(&mut self, mut next: Connection, restored: bool, open: &mut Connected) {
        match open.lost.take() {
            None => open.current.leave(&self.hub).await,
            Some(lost) if restored && lost.covered => {}
            Some(lost) => {
                self.hub.lost(self.number, &lost.cause);
                next.session.missed(clock::now());
            }
        }
        self.hub.append(&mut open.left_behind);
        next.session.continue_unreadable(open.current.session.take_unreadable());
        next.session.continue_unplaced(open.current.session.take_unplaced());
        // A gap is reported before what came after it.
        self.hub.table.frame(self.number, next.last_frame);
        self.hub.update(self.number, &next.session.updates());
        next.release(&self.hub);
        info!(restored, "moved to another connection");
        open.current = next;
        open.handover = None;
        self.policy.handed_over(open.opened.elapsed());
        open.opened = Instant::now();
        self.phase(Phase::Open, None);
        self.reconcile(open);
    }

    /// Brings what is wanted on a connection in line with what is wanted now. Where something is new,
    /// that is when its token has been read: what goes and what comes may be the same to the gateway.
    fn reconcile(&mut self, open: &mut Connected) {
        let wants = self.wants.borrow_and_update().clone();
        let known: HashSet<_> = open.current.session.subscriptions().map(|(one, _)| one).collect();
        let fresh: Vec<_> = wants.iter().filter(|one| !known.contains(one)).cloned().collect();
        drop(known);
        if fresh.is_empty() {
            self.adopt(Vec::new(), open);
            return;
        }
        let hub = Arc::clone(&self.hub);
        let read = async move { Read::Fresh(hub.credentials(&fresh).await) };
        open.tokens.reads.push(Box::pin(read));
    }

    /// Leaves what is no longer wanted, and takes on what is new as far as it is wanted still.
    fn adopt(&self, mut fresh: Vec<Wanted>, open: &mut Connected) {
        let session = &mut open.current.session;
        let wants = self.wants.borrow().clone();
        let wanted: HashSet<&Subscription> = wants.iter().map(|one| &**one).collect();
        let known: HashSet<_> = session.subscriptions().map(|(one, _)| Arc::clone(one)).collect();
        fresh.retain(|one| {
            wanted.contains(&*one.subscription) && !known.contains(&one.subscription)
        });
        let mut effects = Effects::default();
        if known.iter().any(|known| !wanted.contains(&**known)) {
            session.retain(|subscription| wanted.contains(subscription));
        }
        session.add(fresh);
        // What was unwanted for a moment only has a new row, and the old state.
        effects.updates.extend(session.updates());
        open.current.take(effects, &self.hub);
    }

    /// Takes in tokens that were read.
    fn on_tokens(&mut self, read: Read, open: &mut Connected) -> Option<After> {
        match read {
            Read::Fresh(fresh) => self.adopt(fresh, open),
            Read::Again(tokens) => {
                open.tokens.again = false;
                let mut effects = Effects::default();
                for (channel, token) in tokens {
                    open.current.session.renew(&channel, &token, &mut effects);
                }
                open.current.take(effects, &self.hub);
            }
        }
        open.is_idle().then_some(After::Idle)
    }

    /// A refused subscription is asked for at once when its token has changed.
    fn reread_tokens(&self, open: &mut Connected) {
        if open.tokens.again {
            return;
        }
        let subscriptions = open.current.session.subscriptions();
        let refused: HashSet<Arc<str>> = subscriptions
            .filter(|(_, state)| matches!(state, SubscriptionState::Refused(_)))
            .map(|(subscription, _)| Arc::clone(&subscription.channel))
            .collect();
        if !refused.is_empty() {
            open.tokens.again = true;
            self.read_again(refused, open);
        }
    }

    /// A token may have been refreshed: what is asked for from now on is asked for with the new one.
    fn renew_tokens(&self, open: &mut Connected) {
        let is_refreshed = |label: &Arc<str>| {
            let targets = self.hub.targets.borrow();
            targets.channels.get(label).is_some_and(|account| account.refresh.is_some())
        };
        let subscriptions = open.current.session.subscriptions();
        let all: HashSet<Arc<str>> =
            subscriptions.map(|(subscription, _)| Arc::clone(&subscription.channel)).collect();
        let refreshed: HashSet<_> = all.into_iter().filter(is_refreshed).collect();
        if !refreshed.is_empty() {
            self.read_again(refreshed, open);
        }
    }

    fn read_again(&self, channels: HashSet<Arc<str>>, open: &mut Connected) {
        let hub = Arc::clone(&self.hub);
        open.tokens.reads.push(Box::pin(async move {
            let tokens = hub.tokens(channels.iter().map(|channel| &**channel)).await;
            // A token that cannot be read now was reported when it was needed.
            let read = tokens.into_iter().filter_map(|(label, token)| Some((label, token.ok()?)));
            Read::Again(read.map(|(label, token)| (label.into(), token)).collect())
        }));
    }

    fn lost(&mut self, open: &mut Connected, cause: &str) -> After {
        let now = Instant::now();
        warn!(cause, "the connection to the gateway was lost");
        self.hub.lost(self.number, cause);
        self.unreadable = open.current.session.take_unreadable();
        self.unplaced = (open.current.session.take_unplaced(), self.wants.borrow().clone());
        self.named_rooms = open.current.session.named_rooms();
        self.policy.ended(open.current.session.proven(now), now - open.opened);
        self.phase(Phase::Waiting, Some(cause));
        After::Lost
    }

    fn phase(&self, phase: Phase, error: Option<&str>) {
        self.hub.table.phase(self.number, phase, self.policy.attempts(), error);
    }
}

async fn advance(handover: &mut Option<Handover>, hub: &Hub) -> Outcome {
    match handover {
        Some(handover) => handover.advance(hub).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
