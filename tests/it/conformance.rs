//! What every sink must do, whatever it carries to: one suite, a row for each destination.
//!
//! A row is a [`Destination`], with what else it can be (killed, crowded, choosy, finished), and a line
//! with the cases that it can fail. What only one transport does is tested in its own file.
//!
//! The one thing to know: no transport can do everything (core NATS never asks for patience, standard
//! output refuses nothing), and a case that cannot fail is not listed. [`every_kind_has_its_rows`]
//! sees to it that each kind has every case, or the nearest that is true of it.

mod mqtt;
mod nats;
mod redis;
mod stdout;
mod webhook;

use std::{collections::BTreeSet, time::Duration};

use astro_relay::{
    base::event::Seq,
    sink::{Cause, Failure, KINDS, Outgoing},
};
use futures_util::FutureExt;
use serde_json::Value;

use crate::support::{
    carry::{PATIENCE, connect, deliver, first_arrivals, within},
    driven::Driven,
    sinks::{batch, open},
    wait::until,
};

/// A destination as the suite sees it.
pub trait Destination: Sized {
    /// The kind of sink that carries to it.
    const KIND: &'static str;
    /// Where events go.
    const ADDRESS: &'static str;
    /// Whether what it has accepted survives its end.
    const DURABLE: bool = true;
    /// How many events it may have acknowledged and not yet kept when it dies.
    const ACKNOWLEDGED_EARLY: u64 = 0;
    /// Whether it recognises an event that comes again.
    const RECOGNISES: bool = false;
    /// Whether connecting needs it to be there: a webhook dials with its first request.
    const DIALS: bool = true;

    /// Starts it, with somebody who notes what arrives.
    async fn start() -> Self;
    /// The settings of a sink that carries to it.
    fn settings(&self) -> Value;
    /// The numbers of the events that have arrived so far, in their order.
    async fn received(&self) -> Vec<Seq>;
    /// Opens a sink that carries to it.
    fn open(&self) -> Driven {
        open(Self::KIND, self.settings()).unwrap()
    }
    /// Events for it.
    fn events(numbers: impl IntoIterator<Item = Seq>) -> Vec<Outgoing> {
        batch(numbers, Self::ADDRESS)
    }
}

/// One that can be killed.
pub trait Killable: Destination {
    /// Ends it at once, with all its connections: `kill -9`, where it keeps what it has accepted.
    async fn kill(&mut self);
    /// Starts it again with what it has kept, and waits until arrivals are noted again.
    async fn restart(&mut self);
}

/// One that can ask for patience.
pub trait CanBeBusy: Destination {
    /// From now on it asks for patience, at once or after some events.
    async fn make_busy(&mut self);
    /// It takes events again.
    async fn make_free(&mut self);
}

/// One that does not like every event.
pub trait Rejects: Destination {
    /// Makes `outgoing` one that it does not like.
    fn spoil(outgoing: &mut Outgoing);
}

/// One that can say that it wants nothing more.
pub trait CanBeGone: Destination {
    /// From now on it wants nothing.
    fn finish(&mut self);
}

async fn sink_of<F: Destination>(destination: &F) -> Driven {
    let mut sink = destination.open();
    connect_again(&mut sink).await;
    sink
}

/// Connects as the delivery does: a server that accepts connections may not be ready yet.
async fn connect_again(sink: &mut Driven) {
    until("the sink connects", PATIENCE, async || connect(sink).await.ok()).await;
}

/// Waits until the event number `last` has arrived; says what has arrived until then.
async fn received_until<F: Destination>(destination: &F, last: Seq) -> Vec<Seq> {
    until("the last event arrives", PATIENCE, async || {
        let received = destination.received().await;
        received.contains(&last).then_some(received)
    })
    .await
}

fn is_down(failure: &Failure) -> bool {
    matches!(failure.cause, Cause::Down(_))
}

fn all(numbers: impl IntoIterator<Item = Seq>) -> Vec<Seq> {
    numbers.into_iter().collect()
}

pub async fn accepts_in_order<F: Destination>() {
    let destination = F::start().await;
    let mut sink = sink_of(&destination).await;
    deliver(&mut sink, &F::events(1..=1)).await.unwrap();
    deliver(&mut sink, &F::events(2..=257)).await.unwrap();
    deliver(&mut sink, &F::events(258..=300)).await.unwrap();
    assert_eq!(received_until(&destination, 300).await, all(1..=300));
}

pub async fn connects_when_the_server_comes_up<F: Killable>() {
    let mut destination = F::start().await;
    destination.kill().await;
    let mut sink = destination.open();
    for _ in 0..2 {
        match connect(&mut sink).await {
            Err(failure) => assert!(is_down(&failure), "{failure:?}"),
            Ok(()) => assert!(!F::DIALS, "connected to nobody"),
        }
        // Without a connection nothing is accepted, and nothing is waited for.
        let failure = deliver(&mut sink, &F::events(1..=3)).await.unwrap_err();
        assert!(is_down(&failure) && failure.accepted == 0, "{failure:?}");
    }
    destination.restart().await;
    connect_again(&mut sink).await;
    deliver(&mut sink, &F::events(1..=3)).await.unwrap();
    assert_eq!(received_until(&destination, 3).await, all(1..=3));
}

pub async fn loses_nothing_when_the_server_is_killed<F: Killable>() {
    const BATCH: u64 = 256;
    let mut destination = F::start().await;
    let mut sink = sink_of(&destination).await;
    let mut next = 1;
    let mut deaths = Vec::new();
    for kills in 1..=3 {
        // A batch is always under way, so that the kill falls into one.
        let killed_after = next + 300;
        let carry = async {
            loop {
                match sink.deliver(&F::events(next..next + BATCH)).await {
                    Ok(()) => next += BATCH,
                    Err(failure) => break failure,
                }
            }
        };
        let kill = async {
            received_until(&destination, killed_after).await;
            destination.kill().await;
        };
        let (failure, ()) =
            within("the kill is noticed", async { tokio::join!(carry, kill) }).await;
        assert!(is_down(&failure), "{failure:?}");
        next += u64::try_from(failure.accepted).unwrap();
        deaths.push(next);
        destination.restart().await;
        connect_again(&mut sink).await;
        // What had been accepted is not sent again; all else is.
        deliver(&mut sink, &F::events(next..next + BATCH)).await.unwrap();
        next += BATCH;
        let received = received_until(&destination, next - 1).await;
        let first = first_arrivals(&received);
        assert!(first.is_sorted(), "an inversion: {first:?}");
        if F::DURABLE {
            // What the server acknowledged and did not keep is its own loss, and it is just before
            // its death.
            let early =
                |n: &Seq| deaths.iter().any(|at| n < at && n + F::ACKNOWLEDGED_EARLY >= *at);
            let missing: Vec<_> = (1..next).filter(|n| !first.contains(n)).collect();
            assert!(missing.iter().all(early), "{missing:?} are lost, deaths at {deaths:?}");
        }
        let repeats = u64::try_from(received.len() - first.len()).unwrap();
        let most = if F::RECOGNISES { 0 } else { BATCH * kills };
        assert!(repeats <= most, "{repeats} repeats after {kills} kills");
    }
}

pub async fn a_reconnect_leaves_nothing_behind<F: Destination>() {
    let destination = F::start().await;
    let mut sink = sink_of(&destination).await;
    let events = F::events(1..=200);
    deliver(&mut sink, &events[..10]).await.unwrap();
    for _ in 0..5 {
        // Given up at once, and given up when something is on its way.
        drop(sink.deliver(&events[10..]).now_or_never());
        connect_again(&mut sink).await;
        drop(tokio::time::timeout(Duration::from_millis(1), sink.deliver(&events[10..])).await);
        connect_again(&mut sink).await;
    }
    deliver(&mut sink, &events[10..]).await.unwrap();
    let received = received_until(&destination, 200).await;
    assert_eq!(first_arrivals(&received), all(1..=200));
}

pub async fn reports_busy_until_there_is_room<F: CanBeBusy>() {
    let mut destination = F::start().await;
    let mut sink = sink_of(&destination).await;
    destination.make_busy().await;
    let mut done = 0;
    let events = F::events(1..=60);
    let failure = loop {
        match deliver(&mut sink, &events[done..done + 10]).await {
            Ok(()) => done += 10,
            Err(failure) => break failure,
        }
    };
    assert!(matches!(failure.cause, Cause::Busy { .. }), "{failure:?}");
    done += failure.accepted;
    // It asks again for as long as it takes.
    let again = deliver(&mut sink, &events[done..]).await.unwrap_err();
    assert!(matches!(again.cause, Cause::Busy { .. }), "{again:?}");
    done += again.accepted;
    destination.make_free().await;
    deliver(&mut sink, &events[done..]).await.unwrap();
    assert_eq!(first_arrivals(&received_until(&destination, 60).await), all(1..=60));
}

pub async fn a_rejected_event_does_not_stop_the_others<F: Rejects>() {
    let destination = F::start().await;
    let mut sink = sink_of(&destination).await;
    let mut events = F::events(1..=21);
    F::spoil(&mut events[4]);
    let failure = deliver(&mut sink, &events[..20]).await.unwrap_err();
    assert!(matches!(failure.cause, Cause::Rejected { .. }), "{failure:?}");
    assert_eq!(failure.accepted, 4);
    deliver(&mut sink, &events[5..20]).await.unwrap();
    assert_eq!(received_until(&destination, 20).await, all((1..=4).chain(6..=20)));

    // Handed over once more, as by a replay, they go out once more; the destination may know better.
    deliver(&mut sink, &events[5..20]).await.unwrap();
    deliver(&mut sink, &events[20..]).await.unwrap();
    let again = if F::RECOGNISES { 0 } else { 15 };
    let expected = (1..=4).chain(6..=20).chain((6..=20).take(again)).chain([21]);
    assert_eq!(received_until(&destination, 21).await, all(expected));
}

/// Of a destination that refuses nothing: what is odd about one event is not the others' trouble.
pub async fn an_unusual_event_does_not_harm_the_others<F: Rejects>() {
    let destination = F::start().await;
    let mut sink = sink_of(&destination).await;
    let mut events = F::events(1..=20);
    F::spoil(&mut events[4]);
    deliver(&mut sink, &events).await.unwrap();
    deliver(&mut sink, &F::events(21..=21)).await.unwrap();
    assert_eq!(received_until(&destination, 21).await, all(1..=21));
}

pub async fn reports_gone<F: CanBeGone>() {
    for before in [0, 10] {
        let mut destination = F::start().await;
        let mut sink = sink_of(&destination).await;
        if before > 0 {
            deliver(&mut sink, &F::events(1..=before)).await.unwrap();
            received_until(&destination, before).await;
        }
        destination.finish();
        let mut next = before + 1;
        let failure = until("the end is told", PATIENCE, async || {
            let outcome = deliver(&mut sink, &F::events(next..next + 10)).await;
            next += 10;
            outcome.err()
        })
        .await;
        assert!(matches!(failure.cause, Cause::Gone { .. }), "{failure:?}");
    }
}

pub async fn closes_after_the_last_event<F: Destination>() {
    let destination = F::start().await;
    let mut sink = sink_of(&destination).await;
    deliver(&mut sink, &F::events(1..=10)).await.unwrap();
    within("close", sink.close()).await;
    assert_eq!(received_until(&destination, 10).await, all(1..=10));
}

/// The tests of all rows. The first three cases are everybody's.
macro_rules! rows {
    ($($row:ident: $destination:ty, $($case:ident)+;)+) => {
        $(
            mod $row {
                use super::*;

                #[tokio::test]
                async fn accepts_in_order() {
                    super::accepts_in_order::<$destination>().await;
                }
                #[tokio::test]
                async fn a_reconnect_leaves_nothing_behind() {
                    super::a_reconnect_leaves_nothing_behind::<$destination>().await;
                }
                #[tokio::test]
                async fn closes_after_the_last_event() {
                    super::closes_after_the_last_event::<$destination>().await;
                }
                $(
                    #[tokio::test]
                    async fn $case() {
                        super::$case::<$destination>().await;
                    }
                )+
            }
        )+

        /// Each row's kind, and its cases beside everybody's.
        const ROWS: &[(&str, &[&str])] =
            &[$((<$destination as Destination>::KIND, &[$(stringify!($case)),+])),+];
    };
}

rows! {
    mqtt_5: mqtt::Mqtt<5>,
        connects_when_the_server_comes_up
        loses_nothing_when_the_server_is_killed
        a_rejected_event_does_not_stop_the_others;
    mqtt_3: mqtt::Mqtt<3>,
        connects_when_the_server_comes_up
        loses_nothing_when_the_server_is_killed
        a_rejected_event_does_not_stop_the_others;
    mqtt_scripted: mqtt::ScriptedMqtt,
        reports_busy_until_there_is_room
        a_rejected_event_does_not_stop_the_others;
    nats_core: nats::Nats,
        connects_when_the_server_comes_up
        loses_nothing_when_the_server_is_killed
        a_rejected_event_does_not_stop_the_others;
    nats_jetstream: nats::JetStream,
        connects_when_the_server_comes_up
        loses_nothing_when_the_server_is_killed
        reports_busy_until_there_is_room
        a_rejected_event_does_not_stop_the_others;
    redis_pubsub: redis::Pubsub,
        connects_when_the_server_comes_up
        loses_nothing_when_the_server_is_killed
        reports_busy_until_there_is_room
        a_rejected_event_does_not_stop_the_others;
    redis_stream: redis::Stream,
        connects_when_the_server_comes_up
        loses_nothing_when_the_server_is_killed
        reports_busy_until_there_is_room
        a_rejected_event_does_not_stop_the_others;
    webhook_receiver: webhook::Webhook,
        connects_when_the_server_comes_up
        loses_nothing_when_the_server_is_killed
        reports_busy_until_there_is_room
        a_rejected_event_does_not_stop_the_others
        reports_gone;
    stdout_reader: stdout::Reader,
        reports_busy_until_there_is_room
        an_unusual_event_does_not_harm_the_others
        reports_gone;
}

/// What each kind must be tried with: one of each line.
const NEEDED: &[&[&str]] = &[
    // A reader of standard output that has gone does not come back.
    &["connects_when_the_server_comes_up", "reports_gone"],
    &["loses_nothing_when_the_server_is_killed", "reports_gone"],
    &["reports_busy_until_there_is_room"],
    // Standard output takes everything.
    &["a_rejected_event_does_not_stop_the_others", "an_unusual_event_does_not_harm_the_others"],
];

#[test]
fn every_kind_has_its_rows() {
    for kind in KINDS {
        let rows = ROWS.iter().filter(|(name, _)| *name == kind.name);
        let cases: BTreeSet<&str> = rows.flat_map(|(_, cases)| *cases).copied().collect();
        for needed in NEEDED {
            assert!(needed.iter().any(|case| cases.contains(case)), "{}: {needed:?}", kind.name);
        }
    }
}
