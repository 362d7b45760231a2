//! The handle with which a reload of the configuration is asked for.

use tokio::sync::{mpsc, oneshot};

use crate::config::difference::Report;

/// A handle to ask with.
#[derive(Debug, Clone)]
pub struct Reloads(pub mpsc::Sender<Request>);

/// One request, and where its answer goes.
#[derive(Debug)]
pub struct Request {
    /// Who asks: `signal`, `http` or `file`.
    pub by: &'static str,
    /// Where what became of it goes.
    pub answer: oneshot::Sender<Report>,
}

impl Reloads {
    /// Asks, and waits for what became of it; `None`: the relay is stopping.
    pub async fn request(&self, by: &'static str) -> Option<Report> {
        let (answer, answered) = oneshot::channel();
        self.0.send(Request { by, answer }).await.ok()?;
        answered.await.ok()
    }
}
