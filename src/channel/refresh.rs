//! Requests to fetch a channel's session now, from whoever has changed something in it.

use std::sync::Arc;

use tokio::sync::{Mutex, mpsc, oneshot};

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
    pub(super) done: oneshot::Sender<Outcome>,
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
        let sent = self.0.send(RefreshRequest { channel: channel.into(), done }).await;
        let gone = || "nobody keeps the session now".to_owned();
        sent.map_err(|_| gone())?;
        outcome.await.map_err(|_| gone())?
    }

    /// Does not wait. Where too many ask, a fetch is to come anyway.
    pub fn request_later(&self, channel: &str) {
        let (done, _) = oneshot::channel();
        drop(self.0.try_send(RefreshRequest { channel: channel.into(), done }));
    }
}
