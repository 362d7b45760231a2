//! One place in the gateway: the actor that keeps a connection, and its successor while it moves.
//!
//! Its states are functions: [`Link::dialing`] until a connection is open, [`Link::holding`] until it
//! has ended. When the server says `reconnect`, the successor is opened while the old connection goes
//! on being read; both feed the same intake, which takes twins out.
//!
//! Nothing here waits for a sink. What is read is appended to the journal and the next frame is read,
//! see [`crate::journal::Journal::ready`] for the one thing that is waited for: a disk that is behind.
//!
//! Timers stand still while the machine is suspended. When it wakes, a connection that has been silent
//! for too long by a clock that went on is dead.

mod connection;
mod successor;
mod tempo;

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
    successor::{Outcome, Successor},
    tempo::Tempo,
};
use crate::{
    astro::session::{Effects, Ended, Session, Standing, Subscription, Wanted},
    base::{
        clock::{self, UnixMillis},
        event::Event,
        metrics::{self, CONNECTS},
    },
    config::Secret,
    gateway::{
        Hub, Wants,
        status::{self, Looks, Phase},
    },
};

/// The page is written no more often than this: hundreds of confirmations come one by one, and each
/// would bring all the others along.
const SHOW: Duration = Duration::from_millis(50);

/// How often the token of a refused subscription is looked at for a change, and the page is told when
/// something was heard last.
const LOOK: Duration = Duration::from_secs(2);

/// A connection that is told to move sooner than this is counted like one that was lost: a server
/// that sends us round and round is not followed for ever.
const HASTY: Duration = Duration::from_millis(250);

/// One place in the gateway.
pub(crate) struct Link {
    number: u64,
    hub: Arc<Hub>,
    wants: watch::Receiver<Wants>,
    stop: CancellationToken,
    tempo: Tempo,
}

/// What is held: a connection, and its successor while it moves.
struct Held {
    current: Connection,
    opened: Instant,
    /// When the page is written again.
    shows: Looks,
    successor: Option<Successor>,
    /// The current connection ended while it moved.
    lost: Option<Lost>,
    tokens: Tokens,
    /// What successors heard that were given up. It waits for what the current connection has still to
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
    /// What is wanted since a moment, each with its token.
    Fresh(Vec<Wanted>),
    /// The tokens of channels with refused subscriptions, as they are now.
    Again(Vec<(Arc<str>, Secret)>),
}

struct Lost {
    cause: String,
    /// The successor had been welcomed already: by token, it has heard what the old one could not.
    covered: bool,
}

impl Held {
    /// The successor is given up; what it heard is not.
    fn give_up_successor(&mut self) {
        if let Some(mut successor) = self.successor.take() {
            self.left_behind.append(&mut successor.take_heard());
        }
    }

    /// Nothing comes any more that would have to be read before.
    fn hand_on_left_behind(&mut self, hub: &Hub) {
        hub.intake(&mut self.left_behind);
    }
}

/// What comes after a connection.
enum After {
    Stopped,
    /// Nothing is wanted on it any more.
    Idle,
    Lost,
}

impl Link {
    pub(crate) fn new(
        number: u64,
        hub: Arc<Hub>,
        wants: watch::Receiver<Wants>,
        stop: CancellationToken,
    ) -> Self {
        let tempo = Tempo::new(hub.config.backoff_max.0);
        Self { number, hub, wants, stop, tempo }
    }

    /// Keeps a connection until it is told to stop, or nothing is wanted on it.
    pub(crate) async fn run(mut self, delay: Duration) -> u64 {
        let number = self.number;
        let span = info_span!("link", number);
        async {
            self.phase(Phase::Waiting, None);
            let mut wait = delay;
            while self.waiting(wait).await.is_some() {
                let Some(connection) = self.dialing().await else { break };
                match self.holding(connection).await {
                    After::Stopped | After::Idle => break,
                    After::Lost => wait = self.tempo.wait(Instant::now(), None),
                }
            }
            self.hub.status.no_connection(self.number);
        }
        .instrument(span)
        .await;
        number
    }

    /// Opens a connection, however long it takes; `None`: it is no longer wanted.
    async fn dialing(&mut self) -> Option<Connection> {
        loop {
            self.phase(Phase::Dialing, None);
            self.tempo.tried(Instant::now());
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
                    let limits = self.hub.limits.clone();
                    let session = Session::new(number, wanted, limits, Instant::now());
                    return Some(Connection::new(socket, session));
                }
                Err(error) => error,
            };
            let wait = self.tempo.wait(Instant::now(), error.retry_after());
            metrics::add_for(CONNECTS, "outcome", "failed", 1);
            warn!(%error, ?wait, "cannot connect to the gateway; trying again");
            self.phase(Phase::Waiting, Some(error.to_string()));
            self.waiting(wait).await?;
        }
    }

    /// `None`: it is no longer wanted.
    async fn waiting(&mut self, wait: Duration) -> Option<()> {
        tokio::select! {
            () = self.unwanted() => None,
            () = clock::sleep(wait) => Some(()),
        }
    }

    /// Waits until this link is told to stop, or nothing is wanted on it.
    async fn unwanted(&mut self) {
        let nothing = async {
            if self.wants.wait_for(|wants| wants.is_empty()).await.is_err() {
                // The gateway itself is gone, and has told us to stop.
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = nothing => {}
        }
    }

    /// Keeps a connection until it has ended, moving to a successor when the server says so.
    async fn holding(&mut self, current: Connection) -> After {
        let hub = Arc::clone(&self.hub);
        let now = Instant::now();
        let shows = Looks::new(SHOW);
        let mut held = Held {
            current,
            opened: now,
            shows,
            successor: None,
            lost: None,
            tokens: Tokens::default(),
            left_behind: Vec::new(),
        };
        let mut sleeps = clock::sleeps();
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.phase(Phase::Open, None);
        self.show(&mut held);
        self.hub.settle(held.current.session.answers());
        loop {
            let after = tokio::select! {
                () = self.stop.cancelled() => Some(After::Stopped),
                step = held.current.step(&hub), if held.lost.is_none() => {
                    self.on_step(step, &mut held)
                }
                outcome = advance(&mut held.successor, &hub), if held.successor.is_some() => {
                    self.on_outcome(outcome, &mut held).await
                }
                Ok(()) = self.wants.changed() => {
                    self.reconcile(&mut held);
                    None
                }
                Some(read) = held.tokens.reads.next() => self.on_tokens(read, &mut held),
                () = held.shows.due() => {
                    self.show(&mut held);
                    None
                }
                _ = look.tick() => {
                    held.hand_on_left_behind(&hub);
                    self.look(&mut held);
                    None
                }
                Ok(()) = sleeps.changed() => self.on_sleep(&mut held),
            };
            let Some(after) = after else { continue };
            match (&after, &held.lost) {
                (After::Lost, _) => {}
                (_, None) => held.current.leave(&hub).await,
                // Whether its successor would have been restored will not be known.
                (_, Some(lost)) => {
                    hub.outage(&held.current.session, held.current.heard, &lost.cause);
                }
            }
            held.give_up_successor();
            held.hand_on_left_behind(&hub);
            return after;
        }
    }

    fn on_step(&mut self, step: Step, held: &mut Held) -> Option<After> {
        self.hub.overflow(self.number, step.overflow);
        if step.changed {
            held.shows.wish();
            if step.ended.is_some() {
                self.show(held);
            }
            if held.is_idle() {
                return Some(After::Idle);
            }
        }
        match step.ended? {
            Ended::Moved(token) if held.successor.is_none() => {
                info!("the gateway asks to reconnect");
                self.phase(Phase::Moving, None);
                let now = Instant::now();
                let mut wait = Duration::ZERO;
                if held.opened + HASTY > now {
                    wait = self.tempo.over_budget(now);
                    self.tempo.tried(now + wait);
                }
                held.successor = Some(self.successor(token, held, wait));
                None
            }
            Ended::Moved(_) => {
                debug!("another reconnect while moving");
                None
            }
            Ended::Lost(cause) => match &held.successor {
                None => Some(self.lost(held, &cause)),
                Some(successor) => {
                    // It may yet be restored: whether there is a gap is known then.
                    debug!(cause, "the old connection ended while moving");
                    held.lost = Some(Lost { cause, covered: successor.is_welcomed() });
                    held.hand_on_left_behind(&self.hub);
                    None
                }
            },
        }
    }

    /// The machine has slept. For a connection that was silent for longer than the gateway would have
    /// waited for us, that was the end.
    fn on_sleep(&mut self, held: &mut Held) -> Option<After> {
        let silent = held.current.heard.elapsed();
        if silent < held.current.session.patience_with_silence() {
            return None;
        }
        held.give_up_successor();
        Some(match held.lost.take() {
            Some(lost) => self.lost(held, &lost.cause),
            None => self.lost(held, "the machine was suspended"),
        })
    }

    async fn on_outcome(&mut self, outcome: Outcome, held: &mut Held) -> Option<After> {
        let (why, asked, token) = match outcome {
            Outcome::Going => return None,
            Outcome::Ready { connection, restored } => {
                self.moved(*connection, restored, held).await;
                return None;
            }
            Outcome::TokenSpent(why) => {
                warn!(why, "the reconnect token was refused; connecting anew");
                (why, None, None)
            }
            Outcome::NotYet { token, why, asked } => (why, asked, Some(token)),
            Outcome::Failed { why, asked } => (why, asked, None),
        };
        held.give_up_successor();
        if let Some(lost) = held.lost.take() {
            return Some(self.lost(held, &lost.cause));
        }
        // The old connection is read meanwhile: there is time.
        let now = Instant::now();
        let wait = self.tempo.wait(now, asked);
        self.tempo.tried(now + wait);
        warn!(why, ?wait, "the successor could not be opened; trying again");
        held.successor = Some(if let Some(token) = token {
            self.successor(token, held, wait)
        } else {
            Successor::plain(self.number, &self.hub, self.wants.borrow().clone(), wait)
        });
        None
    }

    fn successor(&self, token: Secret, held: &Held, wait: Duration) -> Successor {
        Successor::restored(self.number, &self.hub, token, &held.current.session, wait)
    }

    /// The successor stands: what the old connection had still to say is read, then it is forgotten.
    async fn moved(&mut self, mut next: Connection, restored: bool, held: &mut Held) {
        match held.lost.take() {
            None => held.current.leave(&self.hub).await,
            Some(lost) if restored && lost.covered => {}
            Some(lost) => {
                self.hub.outage(&held.current.session, held.current.heard, &lost.cause);
                next.session.missed(clock::now());
            }
        }
        held.hand_on_left_behind(&self.hub);
        // A gap is told before what came after it.
        self.hub.settle(next.session.answers());
        next.release(&self.hub);
        info!(restored, "moved to another connection");
        held.current = next;
        held.opened = Instant::now();
        held.successor = None;
        self.tempo.moved();
        self.phase(Phase::Open, None);
        self.reconcile(held);
        self.show(held);
    }

    /// Brings what is wanted on a connection in line with what is wanted now. Where something is new,
    /// that is when its token has been read: what goes and what comes may be the same to the gateway.
    fn reconcile(&mut self, held: &mut Held) {
        let wants = self.wants.borrow_and_update().clone();
        let known: HashSet<_> = held.current.session.standings().map(|(known, _)| known).collect();
        let fresh: Vec<_> = wants.iter().filter(|one| !known.contains(one)).cloned().collect();
        drop(known);
        if fresh.is_empty() {
            self.adopt(Vec::new(), held);
            return;
        }
        let hub = Arc::clone(&self.hub);
        let read = async move { Read::Fresh(hub.credentials(&fresh).await) };
        held.tokens.reads.push(Box::pin(read));
    }

    /// Leaves what is no longer wanted, and takes on what is new as far as it is wanted still.
    fn adopt(&self, mut fresh: Vec<Wanted>, held: &mut Held) {
        let session = &mut held.current.session;
        let wants = self.wants.borrow().clone();
        let wanted: HashSet<&Subscription> = wants.iter().map(|one| &**one).collect();
        let known: HashSet<_> = session.standings().map(|(known, _)| Arc::clone(known)).collect();
        fresh.retain(|one| {
            wanted.contains(&*one.subscription) && !known.contains(&one.subscription)
        });
        let mut effects = Effects::default();
        if known.iter().any(|known| !wanted.contains(&**known)) {
            session.retain(|subscription| wanted.contains(subscription), &mut effects);
        }
        session.add(fresh, &mut effects);
        held.current.take(effects, &self.hub);
    }

    /// Takes in tokens that were read.
    fn on_tokens(&mut self, read: Read, held: &mut Held) -> Option<After> {
        match read {
            Read::Fresh(fresh) => self.adopt(fresh, held),
            Read::Again(tokens) => {
                held.tokens.again = false;
                let mut effects = Effects::default();
                for (channel, token) in tokens {
                    held.current.session.renew(&channel, &token, &mut effects);
                }
                held.current.take(effects, &self.hub);
            }
        }
        held.is_idle().then_some(After::Idle)
    }

    /// A refused subscription is asked for at once when its token has changed.
    fn look(&self, held: &mut Held) {
        let current = &held.current;
        let (heard, unreadable) = (current.heard, current.session.unreadable(Instant::now()));
        self.hub.status.connection(self.number, |page| {
            page.heard = Some(clock::ago(heard.elapsed()));
            page.heard_at = Some(heard);
            page.unreadable = unreadable;
        });
        let refused: HashSet<Arc<str>> = current
            .session
            .standings()
            .filter(|(_, standing)| matches!(standing, Standing::Refused(_)))
            .map(|(subscription, _)| Arc::clone(&subscription.channel))
            .collect();
        if refused.is_empty() || held.tokens.again {
            return;
        }
        held.tokens.again = true;
        let hub = Arc::clone(&self.hub);
        held.tokens.reads.push(Box::pin(async move {
            let tokens = hub.tokens(refused.iter().map(|channel| &**channel)).await;
            // A token that cannot be read now was reported when it was needed.
            let read = tokens.into_iter().filter_map(|(label, token)| Some((label, token.ok()?)));
            Read::Again(read.map(|(label, token)| (label.into(), token)).collect())
        }));
    }

    fn lost(&mut self, held: &Held, cause: &str) -> After {
        let now = Instant::now();
        let session = &held.current.session;
        warn!(cause, "the connection to the gateway was lost");
        self.hub.outage(session, held.current.heard, cause);
        self.tempo.ended(session.proven(now), now - held.opened);
        self.phase(Phase::Waiting, Some(cause.to_owned()));
        After::Lost
    }

    /// Writes what stands on the page.
    fn show(&self, held: &mut Held) {
        let now = Instant::now();
        let session = &held.current.session;
        self.hub.status.connection(self.number, |page| {
            let mut shown = 0;
            for (standing, confirmed_at) in session.standings().zip(session.confirmed_at()) {
                match page.subscriptions.get_mut(shown) {
                    Some(shown) if says(shown, standing, confirmed_at) => {}
                    Some(shown) => *shown = self::page(standing, confirmed_at, now),
                    None => page.subscriptions.push(self::page(standing, confirmed_at, now)),
                }
                shown += 1;
            }
            page.subscriptions.truncate(shown);
            page.heard = Some(clock::ago(held.current.heard.elapsed()));
            page.heard_at = Some(held.current.heard);
        });
        held.shows.looked(now);
    }

    fn phase(&self, state: Phase, error: Option<String>) {
        let attempts = self.tempo.attempts();
        self.hub.status.connection(self.number, |page| {
            page.state = state;
            page.since = clock::now();
            page.attempts = attempts;
            if let Some(error) = error {
                page.last_error = Some(error);
            }
            if matches!(state, Phase::Dialing | Phase::Waiting) {
                for subscription in &mut page.subscriptions {
                    subscription.state = status::Standing::Waiting;
                }
            }
        });
    }
}

impl Held {
    /// Whether nothing is wanted on it any more.
    fn is_idle(&self) -> bool {
        self.current.session.is_empty() && self.successor.is_none() && self.tokens.reads.is_empty()
    }
}

async fn advance(successor: &mut Option<Successor>, hub: &Hub) -> Outcome {
    match successor {
        Some(successor) => successor.advance(hub).await,
        None => std::future::pending().await,
    }
}

/// Whether the page says so already: most of what is on it has not changed.
fn says(
    page: &status::Subscription,
    (subscription, standing): (&Arc<Subscription>, &Standing),
    confirmed_at: Option<UnixMillis>,
) -> bool {
    let same = Arc::ptr_eq(&page.channel, &subscription.channel)
        && Arc::ptr_eq(&page.topic, &subscription.topic);
    same && match standing {
        Standing::Waiting => page.state == status::Standing::Waiting,
        Standing::Pending => page.state == status::Standing::Pending,
        Standing::Confirmed(room) => {
            let room = room.as_ref().or(subscription.room.as_ref());
            page.state == status::Standing::Confirmed
                && page.confirmed_at == confirmed_at
                && page.room.as_ref().map(Arc::as_ptr) == room.map(Arc::as_ptr)
        }
        // When it is tried again is told by another clock.
        Standing::Refused(_) => false,
    }
}

fn page(
    (subscription, standing): (&Arc<Subscription>, &Standing),
    confirmed_at: Option<UnixMillis>,
    now: Instant,
) -> status::Subscription {
    let mut page = status::Subscription {
        channel: Arc::clone(&subscription.channel),
        topic: Arc::clone(&subscription.topic),
        room: subscription.room.clone(),
        state: status::Standing::Waiting,
        code: None,
        text: None,
        retry_at: None,
        confirmed_at: None,
    };
    match standing {
        Standing::Waiting => {}
        Standing::Pending => page.state = status::Standing::Pending,
        Standing::Confirmed(room) => {
            page.state = status::Standing::Confirmed;
            page.confirmed_at = confirmed_at;
            if room.is_some() {
                page.room.clone_from(room);
            }
        }
        Standing::Refused(refusal) => {
            page.state = status::Standing::Refused;
            page.code = Some(refusal.code.to_string());
            page.text = Some(refusal.text.to_string());
            page.retry_at = refusal.retry_at.map(|at| {
                let wait = at.saturating_duration_since(now).as_millis();
                clock::now() + u64::try_from(wait).unwrap_or(0)
            });
        }
    }
    page
}
