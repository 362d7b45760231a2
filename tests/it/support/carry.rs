//! Driving a sink by hand, as the delivery would, and looking at what arrived.

use std::{collections::HashSet, time::Duration};

use astro_relay::{
    event::Seq,
    sink::{Failure, Outgoing, Sink},
};

/// How long a server may take for what the tests ask of it. The machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Connects within [`PATIENCE`].
pub async fn connect(sink: &mut Box<dyn Sink>) -> Result<(), Failure> {
    within("connect", sink.connect()).await
}

/// Delivers within [`PATIENCE`].
pub async fn deliver(sink: &mut Box<dyn Sink>, batch: &[Outgoing]) -> Result<(), Failure> {
    within("deliver", sink.deliver(batch)).await
}

/// Fails the test when something takes longer than [`PATIENCE`].
pub async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work)
        .await
        .unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

/// The number of the event with this payload.
pub fn number(payload: &[u8]) -> Option<Seq> {
    let value: serde_json::Value = serde_json::from_slice(payload).ok()?;
    value.get("n")?.as_u64()
}

/// Each number at its first arrival.
pub fn first_arrivals(received: &[Seq]) -> Vec<Seq> {
    let mut seen = HashSet::new();
    received.iter().copied().filter(|number| seen.insert(*number)).collect()
}
