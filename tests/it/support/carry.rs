//! Driving a sink by hand, as the delivery would, and looking at what arrived.

use std::{collections::HashSet, time::Duration};

use astro_relay::{
    base::event::Seq,
    sink::{Cause, Failure, Outgoing},
};

use super::{driven::Driven, wait::until};

/// How long a server may take for what the tests ask of it. The machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Connects within [`PATIENCE`].
pub async fn connect(sink: &mut Driven) -> Result<(), Failure> {
    within("connect", sink.connect()).await
}

/// Delivers within [`PATIENCE`].
pub async fn deliver(sink: &mut Driven, batch: &[Outgoing]) -> Result<(), Failure> {
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

/// Lets the clock of the timers, and of [`astro_relay::base::clock::Moment`], jump.
pub async fn pass(time: Duration) {
    if !time.is_zero() {
        tokio::time::pause();
        tokio::time::advance(time).await;
        tokio::time::resume();
    }
}

/// Delivers all of `events` as the delivery does, but without its waits; says what was refused and
/// what else went wrong on the way. Gives up after a hundred failures.
pub async fn carry_all(sink: &mut Driven, events: &[Outgoing]) -> (Vec<Seq>, Vec<String>) {
    carry_over(sink, events, Duration::ZERO).await
}

/// The same, with so much time between a failure and the next attempt.
pub async fn carry_over(
    sink: &mut Driven,
    events: &[Outgoing],
    wait: Duration,
) -> (Vec<Seq>, Vec<String>) {
    let (mut refused, mut failures) = (Vec::new(), Vec::new());
    let mut rest = events;
    while !rest.is_empty() {
        let Err(failure) = deliver(sink, rest).await else { break };
        rest = &rest[failure.accepted..];
        match failure.cause {
            Cause::Rejected { .. } => {
                refused.push(rest[0].record.seq);
                rest = &rest[1..];
            }
            cause => {
                failures.push(format!("{}: {cause}", rest[0].record.seq));
                assert!(failures.len() < 100, "no end: {failures:#?}");
                pass(wait).await;
                if matches!(cause, Cause::Down(_)) {
                    until("the sink connects", PATIENCE, async || sink.connect().await.ok()).await;
                }
            }
        }
    }
    (refused, failures)
}
