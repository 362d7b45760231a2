//! The handle that requests a reload of the configuration.

use tokio::sync::{mpsc, oneshot};

use crate::config::difference::Report;

#[derive(Debug, Clone)]
pub struct Reloads(pub mpsc::Sender<Request>);

/// One request, and where its answer goes.
#[derive(Debug)]
pub struct Request {
    /// What causes it: `signal`, `http` or `file`.
    pub by: &'static str,
    pub answer: oneshot::Sender<Report>,
}

impl Reloads {
    /// Requests a reload and waits for its result; `None`: the relay is stopping.
    pub async fn request(&self, by: &'static str) -> Option<Report> {
        let (answer, answered) = oneshot::channel();
        self.0.send(Request { by, answer }).await.ok()?;
        answered.await.ok()
    }
}
