//! Requests to fetch a channel's session now, from whoever has changed something in it.

use std::sync::Arc;

use tokio::sync::{Mutex, mpsc, oneshot};

use super::state::Source;
use crate::{astro::rest::SessionDocument, base::event::Seq};

/// Requests that may wait for the keeper: commands come one at a time for each channel.
const REQUESTS: usize = 64;

/// What became of a fetch.
pub type Outcome = Result<(), String>;

#[derive(Debug, Clone)]
pub struct Refreshes(mpsc::Sender<RefreshRequest>);

/// The keeper's end; it outlives a keeper that fails.
pub type RefreshRequests = Arc<Mutex<mpsc::Receiver<RefreshRequest>>>;

#[derive(Debug)]
pub struct RefreshRequest {
    pub channel: Arc<str>,
    /// What the server has answered to a change: there is nothing to fetch.
    pub(super) answered: Option<Answered>,
    pub(super) done: oneshot::Sender<Outcome>,
}

/// A session with which the server has answered a change.
#[derive(Debug)]
pub struct Answered {
    /// The last event when the change was sent.
    pub since: Seq,
    pub document: SessionDocument,
    pub source: Source,
}

impl RefreshRequest {
    /// Whoever asked may have left.
    pub fn answer(self, outcome: Outcome) {
        drop(self.done.send(outcome));
    }
}

pub fn refreshes() -> (Refreshes, RefreshRequests) {
    let (sender, requests) = mpsc::channel(REQUESTS);
    (Refreshes(sender), Arc::new(Mutex::new(requests)))
}

impl Refreshes {
    /// Waits until the session is fetched or cannot be.
    pub async fn request(&self, channel: &str) -> Outcome {
        let (done, outcome) = oneshot::channel();
        let sent =
            self.0.send(RefreshRequest { channel: channel.into(), answered: None, done }).await;
        let gone = || "nobody keeps the session now".to_owned();
        sent.map_err(|_| gone())?;
        outcome.await.map_err(|_| gone())?
    }

    /// Does not wait. Where too many ask, a fetch is to come anyway.
    pub fn request_later(&self, channel: &str) {
        self.send(channel, None);
    }

    /// Hands on a session with which the server has answered a change. Does not wait.
    pub fn take_in(&self, channel: &str, answered: Answered) {
        self.send(channel, Some(answered));
    }

    fn send(&self, channel: &str, answered: Option<Answered>) {
        let (done, _) = oneshot::channel();
        drop(self.0.try_send(RefreshRequest { channel: channel.into(), answered, done }));
    }
}
