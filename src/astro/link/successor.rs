//! The successor of a connection that is about to go.
//!
//! With a token it is ready as soon as it is welcomed: the server has restored what stood. Without
//! one it is ready when every subscription has been answered; until then the old connection is read.

use std::{pin::Pin, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use super::{
    super::{
        dial::{DialError, Socket},
        gateway::Hub,
        session::{Session, Wanted},
    },
    connection::Connection,
};
use crate::{
    config::Secret,
    metrics::{self, HANDOVERS},
};

type Dialing = Pin<Box<dyn Future<Output = Result<Socket, DialError>> + Send>>;

pub(super) struct Successor {
    /// Waits for its connection; `None` when that is open.
    session: Option<Session>,
    restored: bool,
    stage: Stage,
}

enum Stage {
    Dialing(Dialing),
    Greeting(Box<Connection>),
    Done,
}

/// How far the successor is.
pub(super) enum Outcome {
    Going,
    Ready {
        connection: Box<Connection>,
        restored: bool,
    },
    /// The token was refused; it is not used again.
    TokenSpent(String),
    /// It could not be opened, or ended before it was ready.
    Failed(String),
}

impl Successor {
    /// By token: what stood in `before` is restored by the server.
    pub(super) fn restored(hub: &Arc<Hub>, token: Secret, before: &Session) -> Self {
        let session = Session::restored(hub.next_connection(), before, Instant::now());
        let hub = Arc::clone(hub);
        let dialing = Box::pin(async move { hub.dialer.dial(Some(&token)).await });
        Self { session: Some(session), restored: true, stage: Stage::Dialing(dialing) }
    }

    /// Without a token: everything is subscribed again.
    pub(super) fn plain(hub: &Arc<Hub>, wanted: Vec<Wanted>) -> Self {
        Self::plain_after(hub, wanted, Duration::ZERO)
    }

    /// The same, after a wait.
    pub(super) fn plain_after(hub: &Arc<Hub>, wanted: Vec<Wanted>, wait: Duration) -> Self {
        let limits = hub.limits.clone();
        let session = Session::new(hub.next_connection(), wanted, limits, Instant::now());
        let hub = Arc::clone(hub);
        let dialing = Box::pin(async move {
            sleep(wait).await;
            hub.dialer.dial(None).await
        });
        Self { session: Some(session), restored: false, stage: Stage::Dialing(dialing) }
    }

    /// Whether its connection is open: the server sends on it what happens from now on.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Greeting(_))
    }

    /// It is given up; what it has heard has been heard.
    pub(super) fn release(&mut self, hub: &Hub) {
        if let Stage::Greeting(connection) = &mut self.stage {
            connection.release(hub);
        }
    }

    /// Goes one step further. May be dropped at any await.
    pub(super) async fn advance(&mut self, hub: &Hub) -> Outcome {
        match &mut self.stage {
            Stage::Dialing(dialing) => match dialing.await {
                Ok(socket) => {
                    let Some(mut session) = self.session.take() else { return self.failed("") };
                    session.opened(Instant::now());
                    self.stage =
                        Stage::Greeting(Box::new(Connection::holding_back(socket, session)));
                    Outcome::Going
                }
                Err(error) => self.failed(&error.to_string()),
            },
            Stage::Greeting(connection) => {
                let step = connection.step(hub).await;
                if let Some(ended) = step.ended {
                    // What it has heard has been heard.
                    connection.release(hub);
                    return self.failed(&format!("{ended:?}"));
                }
                let session = &connection.session;
                if session.welcomed() && (self.restored || session.settled()) {
                    return self.ready();
                }
                Outcome::Going
            }
            Stage::Done => std::future::pending().await,
        }
    }

    fn ready(&mut self) -> Outcome {
        let restored = self.restored;
        metrics::add_for(HANDOVERS, "outcome", if restored { "restored" } else { "anew" }, 1);
        match std::mem::replace(&mut self.stage, Stage::Done) {
            Stage::Greeting(connection) => Outcome::Ready { connection, restored },
            Stage::Dialing(_) | Stage::Done => Outcome::Going,
        }
    }

    fn failed(&mut self, why: &str) -> Outcome {
        self.stage = Stage::Done;
        metrics::add_for(HANDOVERS, "outcome", "failed", 1);
        if self.restored { Outcome::TokenSpent(why.into()) } else { Outcome::Failed(why.into()) }
    }
}
