//! One place in the gateway: the actor that keeps a connection, and its successor while it moves.
//!
//! Its states are functions: [`Link::dialing`] until a connection is open, [`Link::holding`] until it
//! has ended. When the server says `reconnect`, the successor is opened while the old connection goes
//! on being read; both feed the same intake, which takes twins out.
//!
//! The one thing to know: nothing here waits for a sink. What is read is appended to the journal and
//! the next frame is read.

mod connection;
mod successor;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, info_span, warn};

use self::{
    connection::Connection,
    successor::{Outcome, Successor},
};
use super::{
    dial::DialError,
    gateway::{Hub, Wants},
    session::{Effects, Ended, Session, Standing, Subscription},
};
use crate::{
    backoff::Backoff,
    clock,
    event::UnixMillis,
    metrics::{self, CONNECTS},
    status::{self, Phase},
};

/// The ceiling of the first wait: a link that was lost is back within two seconds.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// Connections that may be opened in quick succession before the hourly budget counts: enough for a
/// bad evening, little enough to harm nobody.
const WARM_UP: usize = 20;

/// One connection in this time, in the long run: sixty an hour, whatever the server does.
const BUDGET: Duration = Duration::from_secs(61);

/// A connection that lived this long does not count against the budget.
const LIVED: Duration = Duration::from_secs(60);

/// How often the token of a refused subscription is looked at for a change.
const TOKEN_WATCH: Duration = Duration::from_secs(2);

/// One place in the gateway.
pub(super) struct Link {
    number: u64,
    hub: Arc<Hub>,
    wanted: Vec<Arc<Subscription>>,
    wants: watch::Receiver<Wants>,
    more: mpsc::Receiver<Vec<Arc<Subscription>>>,
    stop: CancellationToken,
    backoff: Backoff,
    /// When connections were opened that soon ended again.
    opened: VecDeque<Instant>,
}

/// The old connection ended while its successor was on its way.
struct Lost {
    cause: String,
    /// The successor was not open yet: what happened in between nobody has heard.
    missed: bool,
}

/// What comes after a connection.
enum After {
    Stopped,
    Lost {
        proven: bool,
        lived: Duration,
    },
    /// Nothing is wanted on it any more.
    Idle,
}

impl Link {
    pub(super) fn new(
        number: u64,
        hub: Arc<Hub>,
        wanted: Vec<Arc<Subscription>>,
        wants: watch::Receiver<Wants>,
        more: mpsc::Receiver<Vec<Arc<Subscription>>>,
        stop: CancellationToken,
    ) -> Self {
        let backoff = Backoff::new(FIRST_WAIT, hub.config.backoff_max.0);
        Self { number, hub, wanted, wants, more, stop, backoff, opened: VecDeque::new() }
    }

    /// Keeps a connection until it is told to stop, or nothing is wanted on it.
    pub(super) async fn run(mut self, delay: Duration) -> u64 {
        let number = self.number;
        let span = info_span!("link", number);
        async {
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = sleep(delay) => {}
            }
            loop {
                let Some(connection) = self.dialing().await else { break };
                match self.holding(connection).await {
                    After::Stopped | After::Idle => break,
                    After::Lost { proven, lived } => {
                        if proven {
                            self.backoff.reset();
                        }
                        if lived < LIVED {
                            self.opened.push_back(Instant::now());
                        }
                        let wait = self.backoff.wait().max(self.over_budget());
                        if self.waiting(wait).await.is_none() {
                            break;
                        }
                    }
                }
            }
            self.hub.status.no_connection(self.number);
        }
        .instrument(span)
        .await;
        number
    }

    /// Opens a connection, however long it takes; `None`: stopped.
    async fn dialing(&mut self) -> Option<Connection> {
        loop {
            self.phase(Phase::Dialing, None);
            let hub = Arc::clone(&self.hub);
            let outcome = tokio::select! {
                () = self.stop.cancelled() => return None,
                outcome = hub.dialer.dial(None) => outcome,
            };
            let wait = match outcome {
                Ok(socket) => {
                    metrics::add_for(CONNECTS, "outcome", "open", 1);
                    info!("connected to the gateway");
                    let number = self.hub.next_connection();
                    let wanted = self.hub.credentials(&self.wanted);
                    let limits = self.hub.limits.clone();
                    let session = Session::new(number, wanted, limits, Instant::now());
                    return Some(Connection::new(socket, session));
                }
                Err(error) => {
                    let wait = self.wait_after(&error);
                    metrics::add_for(CONNECTS, "outcome", "failed", 1);
                    warn!(%error, ?wait, "cannot connect to the gateway; trying again");
                    self.phase(Phase::Waiting, Some(error.to_string()));
                    wait
                }
            };
            self.waiting(wait).await?;
        }
    }

    async fn waiting(&mut self, wait: Duration) -> Option<()> {
        tokio::select! {
            () = self.stop.cancelled() => None,
            () = sleep(wait) => Some(()),
        }
    }

    /// A server that says how long to wait is believed; one that drains (502) is like one that is down.
    fn wait_after(&mut self, error: &DialError) -> Duration {
        let wait = self.backoff.wait();
        match error {
            DialError::Refused { retry_after: Some(least), .. } => wait.max(*least),
            _ => wait,
        }
    }

    /// How long the next connection has to wait for the hourly budget.
    fn over_budget(&mut self) -> Duration {
        let now = Instant::now();
        let warm = BUDGET * u32::try_from(WARM_UP).unwrap_or(u32::MAX);
        while self.opened.front().is_some_and(|at| *at + warm < now) {
            self.opened.pop_front();
        }
        if self.opened.len() < WARM_UP {
            return Duration::ZERO;
        }
        let last = self.opened.back().copied().unwrap_or(now);
        (last + BUDGET).saturating_duration_since(now)
    }

    /// Keeps a connection until it has ended, moving to a successor when the server says so.
    async fn holding(&mut self, mut current: Connection) -> After {
        let opened = Instant::now();
        let mut successor: Option<Successor> = None;
        let mut lost: Option<Lost> = None;
        let mut token_watch = interval(TOKEN_WATCH);
        token_watch.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.phase(Phase::Open, None);
        self.changed(&mut current);
        loop {
            let hub = Arc::clone(&self.hub);
            tokio::select! {
                () = self.stop.cancelled() => {
                    if let Some(successor) = &mut successor {
                        successor.release(&hub);
                    }
                    current.close().await;
                    return After::Stopped;
                }
                step = current.step(&hub), if lost.is_none() => {
                    if step.changed {
                        self.changed(&mut current);
                        if current.session.is_empty() && successor.is_none() {
                            current.close().await;
                            return After::Idle;
                        }
                    }
                    self.pass_on(step.overflow);
                    match step.ended {
                        None => {}
                        Some(Ended::Moved(token)) if successor.is_none() => {
                            info!("the gateway asks to reconnect");
                            self.phase(Phase::Moving, None);
                            successor = Some(Successor::restored(&hub, token, &current.session));
                        }
                        Some(Ended::Moved(_)) => debug!("another reconnect while moving"),
                        Some(Ended::Lost(cause)) if successor.is_some() => {
                            // It may yet be restored: whether there is a gap is known then.
                            debug!(cause, "the old connection ended while moving");
                            let open = successor.as_ref().is_some_and(Successor::is_open);
                            lost = Some(Lost { cause, missed: !open });
                        }
                        Some(Ended::Lost(cause)) => {
                            return self.lost(&current.session, &cause, opened);
                        }
                    }
                }
                outcome = advance(&mut successor, &hub), if successor.is_some() => match outcome {
                    Outcome::Going => {}
                    Outcome::Ready { mut connection, restored } => {
                        if lost.is_none() && !current.finish(&hub).await {
                            let cause = "the old connection did not end".into();
                            lost = Some(Lost { cause, missed: true });
                        }
                        match lost.take() {
                            Some(Lost { cause, missed }) if missed || !restored => {
                                self.hub.outage(&current.session, &cause);
                                connection.session.missed(clock::now());
                            }
                            Some(_) | None => {}
                        }
                        info!(restored, "moved to another connection");
                        connection.release(&hub);
                        current = *connection;
                        successor = None;
                        self.backoff.reset();
                        self.phase(Phase::Open, None);
                        self.changed(&mut current);
                    }
                    Outcome::TokenSpent(why) => {
                        warn!(why, "the reconnect token was refused; connecting anew");
                        match lost.take() {
                            Some(Lost { cause, .. }) => {
                                return self.lost(&current.session, &cause, opened);
                            }
                            None => {
                                let wanted = hub.credentials(&self.wanted);
                                successor = Some(Successor::plain(&hub, wanted));
                            }
                        }
                    }
                    Outcome::Failed(why) => {
                        warn!(why, "the successor could not be opened");
                        match lost.take() {
                            Some(Lost { cause, .. }) => {
                                return self.lost(&current.session, &cause, opened);
                            }
                            None => {
                                let wait = self.backoff.wait();
                                let wanted = hub.credentials(&self.wanted);
                                successor = Some(Successor::plain_after(&hub, wanted, wait));
                            }
                        }
                    }
                },
                Some(more) = self.more.recv() => {
                    let wanted = hub.credentials(&more);
                    self.wanted.extend(more);
                    let mut effects = Effects::default();
                    current.session.add(wanted, &mut effects);
                    current.take(effects, &hub);
                }
                Ok(()) = self.wants.changed() => self.reduce(&mut current, &hub),
                _ = token_watch.tick() => self.look_at_tokens(&mut current, &hub),
            }
        }
    }

    /// Drops what is no longer wanted.
    fn reduce(&mut self, current: &mut Connection, hub: &Hub) {
        let wants = self.wants.borrow_and_update().clone();
        self.wanted.retain(|subscription| wants.contains(subscription));
        let mut effects = Effects::default();
        let keep = |subscription: &Subscription| wants.contains(subscription);
        if current.session.standings().any(|(subscription, _)| !keep(subscription)) {
            current.session.retain(keep, &mut effects);
            current.take(effects, hub);
        }
    }

    /// A refused subscription is asked for at once when its token has changed.
    fn look_at_tokens(&self, current: &mut Connection, hub: &Hub) {
        let refused: Vec<Arc<str>> = current
            .session
            .standings()
            .filter(|(_, standing)| matches!(standing, Standing::Refused(_)))
            .map(|(subscription, _)| Arc::clone(&subscription.channel))
            .collect();
        let mut effects = Effects::default();
        let mut last = None;
        for channel in refused {
            if last.as_ref() == Some(&channel) {
                continue;
            }
            if let Ok(token) = hub.token(&channel) {
                current.session.renew(&channel, &token, &mut effects);
            }
            last = Some(channel);
        }
        current.take(effects, hub);
    }

    fn pass_on(&mut self, moved: Vec<Arc<Subscription>>) {
        if moved.is_empty() {
            return;
        }
        self.wanted.retain(|subscription| !moved.contains(subscription));
        self.hub.overflow(moved);
    }

    fn lost(&mut self, session: &Session, cause: &str, opened: Instant) -> After {
        let now = Instant::now();
        warn!(cause, "the connection to the gateway was lost");
        self.hub.outage(session, cause);
        self.phase(Phase::Waiting, Some(cause.to_owned()));
        After::Lost { proven: session.proven(now), lived: now - opened }
    }

    /// What stands has changed: the page shows it, and a gap may be over.
    fn changed(&self, current: &mut Connection) {
        let now = Instant::now();
        let subscriptions = current
            .session
            .standings()
            .zip(current.session.confirmed_at())
            .map(|((subscription, standing), confirmed_at)| {
                page(subscription, standing, confirmed_at, now)
            })
            .collect();
        self.hub.status.connection(self.number, |page| {
            page.subscriptions = subscriptions;
            page.heard = Some(clock::now());
        });
        self.hub.settle(&current.session);
    }

    fn phase(&self, state: Phase, error: Option<String>) {
        let attempts = self.backoff.attempts();
        self.hub.status.connection(self.number, |page| {
            page.state = state;
            page.since = clock::now();
            page.attempts = attempts;
            if let Some(error) = error {
                page.last_error = Some(error);
            }
            if matches!(state, Phase::Dialing | Phase::Waiting) {
                for subscription in &mut page.subscriptions {
                    subscription.state = "waiting";
                }
            }
        });
    }
}

async fn advance(successor: &mut Option<Successor>, hub: &Hub) -> Outcome {
    match successor {
        Some(successor) => successor.advance(hub).await,
        None => std::future::pending().await,
    }
}

fn page(
    subscription: &Subscription,
    standing: &Standing,
    confirmed_at: Option<UnixMillis>,
    now: Instant,
) -> status::Subscription {
    let mut page = status::Subscription {
        channel: subscription.channel.to_string(),
        topic: subscription.topic.to_string(),
        room: subscription.room.as_deref().map(str::to_owned),
        state: "waiting",
        code: None,
        text: None,
        retry_at: None,
        confirmed_at: None,
    };
    match standing {
        Standing::Waiting => {}
        Standing::Pending => page.state = "pending",
        Standing::Confirmed(room) => {
            page.state = "confirmed";
            page.confirmed_at = confirmed_at;
            if let Some(room) = room {
                page.room = Some(room.to_string());
            }
        }
        Standing::Refused(refusal) => {
            page.state = "refused";
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
