//! The live state beside the events, until `publish` does it on connections of its own.

use tokio::time::{Instant, timeout, timeout_at};
use tracing::warn;

use super::{Arc, Board, Cause, Delivery, Duration, GOODBYE, Keeping, StoreError, describe};

impl Delivery {
    /// The destination also keeps what stands on `board`. Blocks on the disk.
    pub fn keeping(mut self, board: Arc<Board>) -> Result<Self, StoreError> {
        self.keeping = Some(Keeping::new(&self.page.name, board, self.reader.journal.clone())?);
        Ok(self)
    }

    /// Has the destination keep what has changed of the state, a piece of it.
    pub(super) async fn publish_state(&mut self) {
        let Some(keeping) = self.keeping.as_mut().filter(|keeping| keeping.is_due()) else {
            return;
        };
        if !self.link.sink.watches_state() {
            keeping.doubt();
        }
        let piece = keeping.piece(&self.route);
        let mut done = 0;
        loop {
            let rest = piece.parts.get(done..).unwrap_or_default();
            let limit = self
                .config
                .timeout
                .0
                .saturating_mul(u32::try_from(rest.len() + 1).unwrap_or(u32::MAX));
            let failure = match timeout(limit, self.link.sink.keep(rest)).await {
                Ok(Ok(())) => break,
                Ok(Err(failure)) => failure,
                Err(_) => super::no_timeout(),
            };
            done += failure.accepted.min(rest.len());
            let Some(keeping) = &mut self.keeping else { return };
            match (&failure.cause, piece.parts.get(done)) {
                (Cause::Rejected { reason }, Some(part)) => {
                    let path = part.path.text();
                    if !std::mem::replace(&mut keeping.complained, true) {
                        warn!(sink = %self.page.name, path, reason, "the destination does not keep this");
                    }
                    done += 1;
                }
                (cause, _) => {
                    keeping.said(&piece, done);
                    keeping.failed();
                    return self.state_failed(cause);
                }
            }
        }
        if let Some(keeping) = &mut self.keeping {
            keeping.said(&piece, piece.parts.len());
        }
        self.report();
    }

    fn state_failed(&mut self, cause: &Cause) {
        if let Cause::Down(_) | Cause::Gone { .. } = cause {
            self.failed(cause, false);
        } else {
            let text = describe(cause);
            self.waiting.complain(&self.page.name, "state", &text, Duration::ZERO);
        }
    }

    /// Reports that the relay goes, where its destination keeps what it was.
    pub(super) async fn farewell(&mut self) {
        if self.keeping.is_some() {
            let until = Instant::now() + super::FINISH;
            while self.link.connected && self.flight.handed > 0 {
                match timeout_at(until, self.link.sink.acknowledged()).await {
                    Ok(outcome) => self.outcome(outcome),
                    Err(_) => return,
                }
            }
        }
        let Some(keeping) = self.keeping.as_ref().filter(|_| self.link.connected) else { return };
        let parts = keeping.farewell();
        if parts.is_empty() {
            return;
        }
        let end = Instant::now() + GOODBYE;
        match timeout_at(end, self.link.sink.keep(&parts)).await {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => {
                let error = describe(&failure.cause);
                warn!(sink = %self.page.name, error, "the destination does not know that the relay goes");
            }
            Err(_) => {
                warn!(sink = %self.page.name, "the destination does not know that the relay goes")
            }
        }
    }
}

/// Waits until there is state to publish; for ever, where none is.
pub(super) async fn due(keeping: &mut Option<Keeping>) {
    match keeping {
        Some(keeping) => keeping.due().await,
        None => std::future::pending().await,
    }
}
