//! The handover from a connection that is about to go to the next one.
//!
//! With a token the next connection is ready as soon as it is welcomed: the server has restored the
//! subscriptions. Without one it is ready when every subscription has been answered, which a failure that
//! is tried again in a moment is not; until then the old connection is read.
//!
//! A token is presented once. Where the attempt failed before anybody can have looked at it, it may be
//! presented again.

use std::{pin::Pin, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Hub, Wants, connection::Connection};
use crate::{
    astro::{
        dial::{DialError, Socket},
        session::{Ended, NamedRooms, Session},
    },
    base::{
        clock,
        event::Event,
        metrics::{self, HANDOVERS},
    },
    config::Secret,
};

type Dialing = Pin<Box<dyn Future<Output = Result<(Socket, Session), DialError>> + Send>>;

pub(super) struct Handover {
    /// The link's number.
    link: u64,
    token: Option<Secret>,
    stage: Stage,
    /// When it begins to dial.
    starts: Instant,
    /// The old connection has ended: nothing is to be read before what comes on the next one.
    old_ended: bool,
    /// The events of a connection that was given up before it was ready.
    events: Vec<Event>,
}

enum Stage {
    Dialing(Dialing),
    AwaitingWelcome(Box<Connection>),
    Done,
}

/// How far the handover is.
pub(super) enum Outcome {
    Going,
    Ready {
        connection: Box<Connection>,
        restored: bool,
    },
    /// This token was not used yet.
    NotYet {
        token: Secret,
        why: String,
        asked: Option<Duration>,
    },
    /// The token was refused; it is not used again.
    TokenSpent(String),
    /// It could not be opened, or ended before it was ready.
    Failed {
        why: String,
        asked: Option<Duration>,
    },
}

impl Handover {
    /// By token, after a wait: the server restores the subscriptions of `before`.
    pub(super) fn restored(
        link: u64,
        hub: &Arc<Hub>,
        token: Secret,
        before: &Session,
        wait: Duration,
    ) -> Self {
        let session = Session::restored(hub.next_connection(), before, Instant::now());
        let (hub, shown) = (Arc::clone(hub), token.clone());
        let dialing = async move {
            clock::sleep(wait).await;
            hub.dialer.dial(Some(&shown)).await.map(|socket| (socket, session))
        };
        Self::new(link, Some(token), Box::pin(dialing), wait)
    }

    fn new(link: u64, token: Option<Secret>, dialing: Dialing, wait: Duration) -> Self {
        Self {
            link,
            token,
            stage: Stage::Dialing(dialing),
            starts: Instant::now() + wait,
            old_ended: false,
            events: Vec::new(),
        }
    }

    /// Without a token, after a wait: everything is subscribed again. `named`: the rooms on the old connection.
    pub(super) fn plain(
        link: u64,
        hub: &Arc<Hub>,
        wants: Wants,
        named: NamedRooms,
        wait: Duration,
    ) -> Self {
        let hub = Arc::clone(hub);
        let dialing = async move {
            clock::sleep(wait).await;
            let (socket, wanted) = tokio::join!(hub.dialer.dial(None), hub.credentials(&wants));
            let (number, config) = (hub.next_connection(), Arc::clone(&hub.config));
            let mut session = Session::new(number, wanted, config, Instant::now());
            session.continue_rooms(&named);
            Ok((socket?, session))
        };
        Self::new(link, None, Box::pin(dialing), wait)
    }

    /// Whether it has not begun to dial.
    pub(super) fn waits(&self) -> bool {
        matches!(self.stage, Stage::Dialing(_)) && self.starts > Instant::now()
    }

    /// The old connection has ended: the next one is ready as soon as it is welcomed.
    pub(super) fn old_has_ended(&mut self) {
        self.old_ended = true;
    }

    /// Whether the server has welcomed it: only then is it certain that messages come on it.
    pub(super) fn is_welcomed(&self) -> bool {
        matches!(&self.stage, Stage::AwaitingWelcome(connection) if connection.session.welcomed())
    }

    /// The events that were held back, of a handover that is given up.
    pub(super) fn take_events(&mut self) -> Vec<Event> {
        self.give_up();
        std::mem::take(&mut self.events)
    }

    fn give_up(&mut self) {
        if let Stage::AwaitingWelcome(mut connection) =
            std::mem::replace(&mut self.stage, Stage::Done)
        {
            self.events.append(&mut connection.take_held());
        }
    }

    /// Goes one step further. May be dropped at any await.
    pub(super) async fn advance(&mut self, hub: &Hub) -> Outcome {
        // A step that was dropped may have made it ready.
        if self.is_ready() {
            return self.ready(None);
        }
        match &mut self.stage {
            Stage::Dialing(dialing) => match dialing.await {
                Ok((socket, mut session)) => {
                    session.opened(Instant::now());
                    self.stage = Stage::AwaitingWelcome(Box::new(Connection::held(
                        self.link, socket, session,
                    )));
                    Outcome::Going
                }
                Err(error) => self.not_opened(&error),
            },
            Stage::AwaitingWelcome(connection) => {
                let step = connection.step(hub).await;
                hub.overflow(self.link, &step.overflow);
                match step.ended {
                    Some(Ended::Lost(why)) => self.failed(why, None),
                    ended if self.is_ready() => self.ready(ended),
                    Some(Ended::Handover(token)) => self.moved_on(token),
                    None => Outcome::Going,
                }
            }
            Stage::Done => std::future::pending().await,
        }
    }

    /// Whether the next connection can take over.
    fn is_ready(&self) -> bool {
        let Stage::AwaitingWelcome(connection) = &self.stage else { return false };
        let (restored, session) = (self.token.is_some(), &connection.session);
        session.welcomed()
            && !connection.is_lost()
            && (restored || self.old_ended || session.all_answered())
    }

    /// `ended`: of a server that goes as soon as it has welcomed us.
    fn ready(&mut self, ended: Option<Ended>) -> Outcome {
        let restored = self.token.is_some();
        metrics::add_for(HANDOVERS, "outcome", if restored { "restored" } else { "anew" }, 1);
        match std::mem::replace(&mut self.stage, Stage::Done) {
            Stage::AwaitingWelcome(mut connection) => {
                if let Some(ended) = ended {
                    connection.ends_later(ended);
                }
                Outcome::Ready { connection, restored }
            }
            Stage::Dialing(_) | Stage::Done => Outcome::Going,
        }
    }

    /// The server sends us on before it has welcomed us: what it restored, the next one restores.
    fn moved_on(&mut self, token: Secret) -> Outcome {
        let why = "it was asked to move before it was ready".to_owned();
        if self.token.is_none() {
            return self.failed(why, None);
        }
        self.give_up();
        Outcome::NotYet { token, why, asked: None }
    }

    fn not_opened(&mut self, error: &DialError) -> Outcome {
        let asked = error.retry_after();
        match self.token.take() {
            Some(token) if !error.token_was_seen() => {
                self.stage = Stage::Done;
                Outcome::NotYet { token, why: error.to_string(), asked }
            }
            token => {
                self.token = token;
                self.failed(error.to_string(), asked)
            }
        }
    }

    fn failed(&mut self, why: String, asked: Option<Duration>) -> Outcome {
        self.give_up();
        metrics::add_for(HANDOVERS, "outcome", "failed", 1);
        if self.token.is_some() { Outcome::TokenSpent(why) } else { Outcome::Failed { why, asked } }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, SinkExt};
    use tokio::task::yield_now;
    use tokio_tungstenite::tungstenite::Message;

    use super::*;
    use crate::gateway::link::tests::{WELCOME, hub, session, sockets};

    #[tokio::test(start_paused = true)]
    async fn what_became_ready_in_a_dropped_step_is_ready_at_once() {
        let hub = hub();
        let (client, mut server) = sockets().await;
        let connection = Connection::held(1, client, session(&[]));
        let mut handover = Handover {
            link: 1,
            token: Some(Secret::new("token")),
            stage: Stage::AwaitingWelcome(Box::new(connection)),
            starts: Instant::now(),
            old_ended: false,
            events: Vec::new(),
        };
        server.send(Message::text(WELCOME)).await.unwrap();
        while !handover.is_welcomed() {
            assert!(handover.advance(&hub).now_or_never().is_none(), "it is dropped half way");
            yield_now().await;
        }
        let outcome = handover.advance(&hub).now_or_never();
        assert!(matches!(outcome, Some(Outcome::Ready { restored: true, .. })));
    }
}
