//! Runs a kind of sink that takes a whole batch at a time. For the kinds that are not yet converted to
//! [`Sink`]; it goes with the last of them.

use std::{future::Future, pin::Pin, sync::Arc};

use async_trait::async_trait;
use tokio::{
    sync::Mutex,
    time::{Instant, timeout_at},
};

use super::{Cause, Desk, Failure, Outgoing, Part, Permission, Report, Sink};

/// The contract of old: a batch is answered as a whole or as a prefix.
#[async_trait]
pub(super) trait BatchSink: Send {
    /// Connects, or connects again: whatever stood before is dropped first.
    async fn connect(&mut self) -> Result<(), Failure>;

    /// Hands over `batch` (never empty), in order. `Ok`: all of it is accepted. When it is dropped, the
    /// outcome is unknown, and `connect` comes next.
    async fn deliver(&mut self, batch: &[Outgoing]) -> Result<(), Failure>;

    /// Not called any more.
    async fn deliver_ahead(
        &mut self,
        flight: &[Outgoing],
        _fresh: usize,
    ) -> Result<usize, Failure> {
        self.deliver(flight).await.map(|()| flight.len())
    }

    async fn keep(&mut self, _parts: &[Part]) -> Result<(), Failure> {
        Err(Failure::down("this kind of sink keeps no state"))
    }

    fn watches_state(&self) -> bool {
        false
    }

    /// Keeps the link alive with nothing in flight. Safe to drop.
    async fn idle(&mut self) -> Failure {
        std::future::pending().await
    }

    async fn may_publish(&mut self, address: &str) -> Result<Permission, Failure> {
        let _ = address;
        Ok(Permission::Unknown("this kind of destination does not tell"))
    }

    fn take_commands(&mut self, desk: &Desk) {
        let _ = desk;
    }

    async fn close(&mut self);

    fn tally(&mut self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }

    fn remarks(&self) -> Vec<String> {
        Vec::new()
    }
}

type Call = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>;

/// A [`BatchSink`] as a [`Sink`]. What is in flight is one batch.
pub(super) struct Batched {
    sink: Arc<Mutex<Box<dyn BatchSink>>>,
    flight: Vec<Outgoing>,
    call: Option<Call>,
    facts: Option<Vec<String>>,
}

impl Batched {
    pub(super) fn boxed(sink: impl BatchSink + 'static) -> Box<dyn Sink> {
        let sink: Box<dyn BatchSink> = Box::new(sink);
        let sink = Arc::new(Mutex::new(sink));
        Box::new(Self { sink, flight: Vec::new(), call: None, facts: None })
    }

    fn begin(&mut self) {
        if self.flight.is_empty() {
            return;
        }
        let (sink, batch) = (Arc::clone(&self.sink), self.flight.clone());
        self.call = Some(Box::pin(async move { sink.lock_owned().await.deliver(&batch).await }));
    }

    fn end(&mut self) {
        self.call = None;
        self.flight.clear();
    }
}

#[async_trait]
impl Sink for Batched {
    async fn connect(&mut self) -> Result<(), Failure> {
        self.end();
        self.sink.lock().await.connect().await
    }

    async fn send(&mut self, events: &[Outgoing]) -> Result<usize, Failure> {
        if !self.flight.is_empty() {
            return Ok(0);
        }
        self.flight = events.to_vec();
        self.begin();
        Ok(events.len())
    }

    async fn acknowledged(&mut self) -> Result<usize, Failure> {
        let Some(call) = &mut self.call else { return Err(self.sink.lock().await.idle().await) };
        let outcome = call.await;
        self.call = None;
        match outcome {
            Ok(()) => Ok(std::mem::take(&mut self.flight).len()),
            Err(failure) => {
                if matches!(failure.cause, Cause::Rejected { .. }) {
                    self.flight.drain(..(failure.accepted + 1).min(self.flight.len()));
                    self.begin();
                } else {
                    self.end();
                }
                Err(failure)
            }
        }
    }

    async fn close(&mut self, until: Instant) -> Vec<bool> {
        let mut accepted = vec![false; self.flight.len()];
        if let Some(call) = self.call.take() {
            let count = match timeout_at(until, call).await {
                Ok(Ok(())) => accepted.len(),
                Ok(Err(failure)) => failure.accepted,
                Err(_) => 0,
            };
            accepted.iter_mut().take(count).for_each(|accepted| *accepted = true);
        }
        self.end();
        self.sink.lock().await.close().await;
        accepted
    }

    fn report(&mut self) -> Report {
        let Ok(mut sink) = self.sink.try_lock() else { return Report::default() };
        let facts = sink.remarks();
        let news = (self.facts.as_ref() != Some(&facts)).then(|| facts.clone());
        self.facts = Some(facts);
        Report { counts: sink.tally(), facts: news }
    }

    async fn keep(&mut self, parts: &[Part]) -> Result<(), Failure> {
        self.sink.lock().await.keep(parts).await
    }

    fn watches_state(&self) -> bool {
        self.sink.try_lock().is_ok_and(|sink| sink.watches_state())
    }

    async fn may_publish(&mut self, address: &str) -> Result<Permission, Failure> {
        self.sink.lock().await.may_publish(address).await
    }

    fn take_commands(&mut self, desk: &Desk) {
        if let Ok(mut sink) = self.sink.try_lock() {
            sink.take_commands(desk);
        }
    }
}
