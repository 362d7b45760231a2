//! What every sink must do, whatever it carries to: one suite, a row for each far side.
//!
//! A row is a [`FarSide`] and a line with [`suite!`] at the end of this file. What only one transport
//! does is tested in its own file.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use astro_relay::{
    event::Seq,
    sink::{Cause, Failure, Outgoing, Sink},
};
use futures_util::FutureExt;
use serde_json::{Value, json};

use crate::support::{
    carry::{PATIENCE, connect, deliver, first_arrivals, within},
    mosquitto::{self, Mosquitto},
    nats_server::{self, NatsServer},
    scripted_broker::{Play, ScriptedBroker, silent},
    sinks::{batch, open},
    wait::until,
};

/// A far side as the suite sees it.
pub trait FarSide: Sized {
    /// The kind of sink that carries to it.
    const KIND: &'static str;
    /// Where events go.
    const ADDRESS: &'static str;
    /// Whether what it has accepted survives its `kill -9`.
    const DURABLE: bool = true;

    /// Starts it, with somebody who notes what arrives.
    async fn start() -> Self;
    /// The settings of a sink that carries to it.
    fn settings(&self) -> Value;
    /// The numbers of the events that have arrived so far, in their order.
    async fn received(&self) -> Vec<Seq>;
    /// `kill -9`. False: it cannot be killed.
    async fn kill(&mut self) -> bool;
    /// Starts it again with what it has kept, and waits until arrivals are noted again.
    async fn restart(&mut self);
    /// From now on it asks for patience after some events. False: it never does.
    async fn make_busy(&mut self) -> bool {
        false
    }
    /// It takes events again.
    async fn make_free(&mut self) {}
    /// Makes `outgoing` one that it will never accept. False: it takes everything.
    fn spoil(_outgoing: &mut Outgoing) -> bool {
        false
    }
}

async fn sink_of<F: FarSide>(far: &F) -> Box<dyn Sink> {
    let mut sink = open(F::KIND, far.settings()).unwrap();
    connect_again(&mut sink).await;
    sink
}

/// Connects as the delivery does: a server that accepts connections may not be ready yet.
async fn connect_again(sink: &mut Box<dyn Sink>) {
    until("the sink connects", PATIENCE, async || connect(sink).await.ok()).await;
}

/// Waits until the event number `last` has arrived; says what has arrived until then.
async fn received_until<F: FarSide>(far: &F, last: Seq) -> Vec<Seq> {
    until("the last event arrives", PATIENCE, async || {
        let received = far.received().await;
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

pub async fn accepts_in_order<F: FarSide>() {
    let far = F::start().await;
    let mut sink = sink_of(&far).await;
    deliver(&mut sink, &batch(1..=1, F::ADDRESS)).await.unwrap();
    deliver(&mut sink, &batch(2..=257, F::ADDRESS)).await.unwrap();
    deliver(&mut sink, &batch(258..=300, F::ADDRESS)).await.unwrap();
    assert_eq!(received_until(&far, 300).await, all(1..=300));
}

pub async fn connects_when_the_server_comes_up<F: FarSide>() {
    let mut far = F::start().await;
    if !far.kill().await {
        return;
    }
    let mut sink = open(F::KIND, far.settings()).unwrap();
    for _ in 0..2 {
        let failure = connect(&mut sink).await.unwrap_err();
        assert!(is_down(&failure), "{failure:?}");
        // Without a connection nothing is accepted, and nothing is waited for.
        let failure = deliver(&mut sink, &batch(1..=3, F::ADDRESS)).await.unwrap_err();
        assert!(is_down(&failure) && failure.accepted == 0, "{failure:?}");
    }
    far.restart().await;
    connect_again(&mut sink).await;
    deliver(&mut sink, &batch(1..=3, F::ADDRESS)).await.unwrap();
    assert_eq!(received_until(&far, 3).await, all(1..=3));
}

pub async fn loses_nothing_when_the_server_is_killed<F: FarSide>() {
    const BATCH: u64 = 256;
    let mut far = F::start().await;
    let mut sink = sink_of(&far).await;
    let mut next = 1;
    for kills in 1..=3 {
        // A batch is always under way, so that the kill falls into one.
        let killed_after = next + 300;
        let carry = async {
            loop {
                match sink.deliver(&batch(next..next + BATCH, F::ADDRESS)).await {
                    Ok(()) => next += BATCH,
                    Err(failure) => break failure,
                }
            }
        };
        let kill = async {
            received_until(&far, killed_after).await;
            far.kill().await
        };
        let (failure, killed) =
            within("the kill is noticed", async { tokio::join!(carry, kill) }).await;
        if !killed {
            return;
        }
        assert!(is_down(&failure), "{failure:?}");
        next += u64::try_from(failure.accepted).unwrap();
        far.restart().await;
        connect_again(&mut sink).await;
        // What had been accepted is not sent again; all else is.
        deliver(&mut sink, &batch(next..next + BATCH, F::ADDRESS)).await.unwrap();
        next += BATCH;
        let received = received_until(&far, next - 1).await;
        let first = first_arrivals(&received);
        assert!(first.is_sorted(), "an inversion: {first:?}");
        if F::DURABLE {
            assert_eq!(first, all(1..next));
        }
        let repeats = u64::try_from(received.len() - first.len()).unwrap();
        assert!(repeats <= BATCH * kills, "{repeats} repeats after {kills} kills");
    }
}

pub async fn a_delivery_that_is_given_up_leaves_nothing_behind<F: FarSide>() {
    let far = F::start().await;
    let mut sink = sink_of(&far).await;
    let events = batch(1..=200, F::ADDRESS);
    deliver(&mut sink, &events[..10]).await.unwrap();
    for _ in 0..5 {
        // Given up at once, and given up when something is on its way.
        drop(sink.deliver(&events[10..]).now_or_never());
        connect_again(&mut sink).await;
        drop(tokio::time::timeout(Duration::from_millis(1), sink.deliver(&events[10..])).await);
        connect_again(&mut sink).await;
    }
    deliver(&mut sink, &events[10..]).await.unwrap();
    let received = received_until(&far, 200).await;
    assert_eq!(first_arrivals(&received), all(1..=200));
}

pub async fn waits_when_it_is_asked_to<F: FarSide>() {
    let mut far = F::start().await;
    if !far.make_busy().await {
        return;
    }
    let mut sink = sink_of(&far).await;
    let mut done = 0;
    let events = batch(1..=60, F::ADDRESS);
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
    far.make_free().await;
    deliver(&mut sink, &events[done..]).await.unwrap();
    assert_eq!(first_arrivals(&received_until(&far, 60).await), all(1..=60));
}

pub async fn one_that_is_refused_does_not_stop_the_others<F: FarSide>() {
    let far = F::start().await;
    let mut sink = sink_of(&far).await;
    let mut events = batch(1..=20, F::ADDRESS);
    if !F::spoil(&mut events[4]) {
        return;
    }
    let failure = deliver(&mut sink, &events).await.unwrap_err();
    assert!(matches!(failure.cause, Cause::Refused { .. }), "{failure:?}");
    assert_eq!(failure.accepted, 4);
    deliver(&mut sink, &events[5..]).await.unwrap();
    assert_eq!(received_until(&far, 20).await, all((1..=4).chain(6..=20)));
}

pub async fn says_goodbye<F: FarSide>() {
    let far = F::start().await;
    let mut sink = sink_of(&far).await;
    deliver(&mut sink, &batch(1..=10, F::ADDRESS)).await.unwrap();
    within("close", sink.close()).await;
    assert_eq!(received_until(&far, 10).await, all(1..=10));
}

/// The tests of one row.
macro_rules! suite {
    ($name:ident: $far:ty) => {
        mod $name {
            use super::*;

            #[tokio::test]
            async fn accepts_in_order() {
                super::accepts_in_order::<$far>().await;
            }
            #[tokio::test]
            async fn connects_when_the_server_comes_up() {
                super::connects_when_the_server_comes_up::<$far>().await;
            }
            #[tokio::test]
            async fn loses_nothing_when_the_server_is_killed() {
                super::loses_nothing_when_the_server_is_killed::<$far>().await;
            }
            #[tokio::test]
            async fn a_delivery_that_is_given_up_leaves_nothing_behind() {
                super::a_delivery_that_is_given_up_leaves_nothing_behind::<$far>().await;
            }
            #[tokio::test]
            async fn waits_when_it_is_asked_to() {
                super::waits_when_it_is_asked_to::<$far>().await;
            }
            #[tokio::test]
            async fn one_that_is_refused_does_not_stop_the_others() {
                super::one_that_is_refused_does_not_stop_the_others::<$far>().await;
            }
            #[tokio::test]
            async fn says_goodbye() {
                super::says_goodbye::<$far>().await;
            }
        }
    };
}

suite!(mqtt_5: Mqtt<5>);
suite!(mqtt_3: Mqtt<3>);
suite!(mqtt_scripted: ScriptedMqtt);
suite!(nats_core: Nats);
suite!(nats_jetstream: JetStream);

/// mosquitto, in one of the two versions.
pub struct Mqtt<const VERSION: u8> {
    broker: Mosquitto,
    listener: mosquitto::Listener,
}

impl<const VERSION: u8> FarSide for Mqtt<VERSION> {
    const KIND: &'static str = "mqtt";
    const ADDRESS: &'static str = "astro/main/channel/tips";

    async fn start() -> Self {
        let options = mosquitto::Options { durable: true, ..mosquitto::Options::default() };
        let broker = Mosquitto::start(options).await;
        let listener = mosquitto::Listener::start(broker.port, "astro/main/#").await;
        Self { broker, listener }
    }

    fn settings(&self) -> Value {
        let version = if VERSION == 3 { "3.1.1" } else { "5" };
        json!({ "url": self.broker.url(), "version": version })
    }

    async fn received(&self) -> Vec<Seq> {
        self.listener.numbers()
    }

    async fn kill(&mut self) -> bool {
        self.broker.server.kill().await;
        true
    }

    async fn restart(&mut self) {
        // The listener's session lasts: it need not be there for what arrives.
        self.broker.server.restart().await;
    }

    fn spoil(outgoing: &mut Outgoing) -> bool {
        outgoing.address = "x".repeat(70_000).into();
        true
    }
}

/// A broker that has a quota.
pub struct ScriptedMqtt {
    broker: ScriptedBroker,
    full: Arc<AtomicBool>,
    accepted: Arc<Mutex<Vec<Seq>>>,
}

impl FarSide for ScriptedMqtt {
    const KIND: &'static str = "mqtt";
    const ADDRESS: &'static str = "astro/main/channel/tips";

    async fn start() -> Self {
        let full = Arc::new(AtomicBool::new(false));
        let accepted: Arc<Mutex<Vec<Seq>>> = Arc::default();
        let (is_full, notes) = (Arc::clone(&full), Arc::clone(&accepted));
        let script = move |number, _| {
            let reason = match number {
                // Its refusal of number 5000 is for ever.
                5000 => rumqttc_v5::PubAckReason::TopicNameInvalid,
                25.. if is_full.load(Ordering::Relaxed) => rumqttc_v5::PubAckReason::QuotaExceeded,
                _ => {
                    notes.lock().unwrap().push(number);
                    rumqttc_v5::PubAckReason::Success
                }
            };
            Play::Answer(reason)
        };
        Self { broker: ScriptedBroker::start(silent(), script).await, full, accepted }
    }

    fn settings(&self) -> Value {
        json!({ "url": self.broker.url() })
    }

    async fn received(&self) -> Vec<Seq> {
        self.accepted.lock().unwrap().clone()
    }

    async fn kill(&mut self) -> bool {
        false
    }

    async fn restart(&mut self) {}

    async fn make_busy(&mut self) -> bool {
        self.full.store(true, Ordering::Relaxed);
        true
    }

    async fn make_free(&mut self) {
        self.full.store(false, Ordering::Relaxed);
    }

    fn spoil(outgoing: &mut Outgoing) -> bool {
        outgoing.payload = r#"{"n":5000}"#.into();
        true
    }
}

/// nats-server, without streams.
pub struct Nats {
    server: NatsServer,
    listener: nats_server::Listener,
}

impl FarSide for Nats {
    const KIND: &'static str = "nats";
    const ADDRESS: &'static str = "astro.main.channel.tips";
    /// What a listener has not read when the server dies is gone.
    const DURABLE: bool = false;

    async fn start() -> Self {
        let server = NatsServer::start("").await;
        let listener = nats_server::Listener::start(&server, "astro.>").await;
        Self { server, listener }
    }

    fn settings(&self) -> Value {
        json!({ "url": self.server.url() })
    }

    async fn received(&self) -> Vec<Seq> {
        self.listener.numbers()
    }

    async fn kill(&mut self) -> bool {
        self.server.server.kill().await;
        true
    }

    async fn restart(&mut self) {
        self.server.server.restart().await;
        self.listener.settle().await;
    }

    fn spoil(outgoing: &mut Outgoing) -> bool {
        outgoing.payload = vec![b'x'; 2 * 1024 * 1024].into();
        true
    }
}

/// A stream.
pub struct JetStream {
    server: NatsServer,
    /// What has been read of it so far.
    read: Mutex<Vec<Seq>>,
}

impl FarSide for JetStream {
    const KIND: &'static str = "nats";
    const ADDRESS: &'static str = "astro.main.channel.tips";

    async fn start() -> Self {
        let server = NatsServer::start("").await;
        server.streams().await;
        Self { server, read: Mutex::default() }
    }

    fn settings(&self) -> Value {
        json!({ "url": self.server.url(), "jetstream": true, "create_stream": true })
    }

    async fn received(&self) -> Vec<Seq> {
        // Whoever publishes meanwhile is faster than reading all of it each time.
        let mut read = self.read.lock().unwrap().clone();
        read.extend(self.server.stored_after("ASTRO", read.len()).await);
        self.read.lock().unwrap().clone_from(&read);
        read
    }

    async fn kill(&mut self) -> bool {
        self.server.server.kill().await;
        true
    }

    async fn restart(&mut self) {
        self.server.server.restart().await;
    }

    async fn make_busy(&mut self) -> bool {
        use async_nats::jetstream::stream::{Config, DiscardPolicy};
        let config = Config {
            name: "ASTRO".into(),
            subjects: vec!["astro.>".into()],
            max_messages: 25,
            discard: DiscardPolicy::New,
            ..Config::default()
        };
        self.server.streams().await.create_stream(config).await.unwrap();
        true
    }

    async fn make_free(&mut self) {
        let context = self.server.streams().await;
        let mut config = context.get_stream("ASTRO").await.unwrap().cached_info().config.clone();
        config.max_messages = -1;
        context.update_stream(config).await.unwrap();
    }

    fn spoil(outgoing: &mut Outgoing) -> bool {
        outgoing.payload = vec![b'x'; 2 * 1024 * 1024].into();
        true
    }
}
