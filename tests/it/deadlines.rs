//! Limits in time: what a slow destination may take, and what a hung one may not.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use astro_relay::{
    base::event::{self, Event, Seq},
    config::{SinkConfig, Start},
    delivery::{Delivery, route::Route, status::Status},
    journal::Journal,
    sink::{self, Cause, Failure, Opening, Outgoing, Purpose, Sink},
};
use async_trait::async_trait;
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::support::{
    carry::{PATIENCE, connect, deliver},
    receiver::{Answer, Receiver},
    scripted_broker::{Play, ScriptedBroker, silent},
    scripted_nats::{self, ScriptedNats},
    sinks::{batch, config, install_tls, open_with},
    wait::until,
};

/// Memory for the events of a test.
const MEMORY: usize = 1024 * 1024;

/// The sink's name.
const NAME: &str = "test";

fn events(count: u64) -> Vec<Event> {
    let make =
        |n| event::own("channel.tips", &"main".into(), &"room".into(), &json!({ "n": n }), n);
    (1..=count).map(make).collect()
}

/// A delivery of `count` events through `sink`, all of them in one batch.
fn delivery(
    config: &SinkConfig,
    sink: Box<dyn Sink>,
    count: u64,
) -> (Delivery, Arc<Status>, Journal) {
    let config = SinkConfig { start: Start::Earliest, ..config.clone() };
    let journal = Journal::in_memory(MEMORY);
    journal.append(&mut events(count));
    let status = Arc::new(Status::default());
    let route = Route::new(NAME, &config, sink::kind(&config.kind).unwrap()).unwrap();
    let parts = (journal.clone(), Arc::clone(&status));
    let delivery = Delivery::new(NAME, &config, sink, route, parts.0, parts.1).unwrap();
    (delivery, status, journal)
}

/// Runs it until `done`, and stops it.
async fn run(delivery: Delivery, done: impl Future<Output = ()>) {
    let stop = CancellationToken::new();
    tokio::join!(delivery.run(stop.clone()), async {
        done.await;
        stop.cancel();
    });
}

/// A batch takes longer than the sink's timeout, and each of its events less: that is no failure.
#[tokio::test]
async fn a_webhook_may_take_its_timeout_for_each_event() {
    const EVENTS: u64 = 40;
    const TIMEOUT: Duration = Duration::from_secs(2);
    const EACH: Duration = Duration::from_millis(100);
    install_tls();
    let receiver = Receiver::start();
    receiver.room("room", Some(Answer::Late(EACH)));
    let mut config = config("webhook", TIMEOUT);
    config.settings =
        json!({ "url": { "value": receiver.url() }, "allow_addresses": ["127.0.0.1"] });
    let opening = Opening { name: NAME, config: &config, purpose: Purpose::Relay };
    let sink = (sink::kind("webhook").unwrap().open)(&opening).unwrap();
    let (delivery, status, _journal) = delivery(&config, sink, EVENTS);
    let began = Instant::now();
    run(delivery, async {
        until("all is delivered", PATIENCE, async || {
            (status.snapshot().sinks[NAME].delivered == EVENTS).then_some(())
        })
        .await;
    })
    .await;
    assert!(began.elapsed() > TIMEOUT, "the batch as a whole was slow");
    assert_eq!(status.snapshot().sinks[NAME].last_error, None);
    let requests = receiver.received();
    let body = |request: &crate::support::receiver::Received| -> serde_json::Value {
        serde_json::from_slice(&request.body).unwrap()
    };
    let numbers: Vec<_> = requests.iter().map(|r| body(r)["data"]["n"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=EVENTS).collect::<Vec<_>>(), "each once, in order");
}

/// A destination that does what a script says, and notes when it was sent something.
struct Scripted {
    script: Vec<Reply>,
    in_flight: usize,
    asked: Arc<Mutex<Vec<(Instant, usize)>>>,
}

enum Reply {
    Never,
    Busy(Duration),
}

#[async_trait]
impl Sink for Scripted {
    async fn connect(&mut self) -> Result<(), Failure> {
        // One that never answers is another one after a new connection.
        if std::mem::take(&mut self.in_flight) > 0 {
            self.script.pop();
        }
        Ok(())
    }

    async fn send(&mut self, events: &[Outgoing]) -> Result<usize, Failure> {
        if self.in_flight > 0 {
            return Ok(0);
        }
        self.asked.lock().unwrap().push((Instant::now(), events.len()));
        self.in_flight = events.len();
        Ok(events.len())
    }

    async fn acknowledged(&mut self) -> Result<usize, Failure> {
        if self.in_flight == 0 {
            return std::future::pending().await;
        }
        match self.script.last() {
            None => Ok(std::mem::take(&mut self.in_flight)),
            Some(Reply::Never) => std::future::pending().await,
            Some(Reply::Busy(wait)) => {
                let cause = Cause::Busy { wait: Some(*wait), reason: "later".into() };
                self.script.pop();
                self.in_flight = 0;
                Err(Failure::after(0, cause))
            }
        }
    }

    async fn close(&mut self, _until: Instant) -> Vec<(Seq, u8)> {
        Vec::new()
    }
}

/// How long the delivery waited between its first two attempts, and how many events it had in hand.
async fn between_attempts(script: Vec<Reply>) -> (Duration, usize) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let sink = Box::new(Scripted { script, in_flight: 0, asked: Arc::clone(&asked) });
    let (delivery, _, _journal) = delivery(&config("stdout", Duration::from_secs(2)), sink, 9);
    run(delivery, async {
        until("it is tried again", Duration::from_hours(48), async || {
            (asked.lock().unwrap().len() == 2).then_some(())
        })
        .await;
    })
    .await;
    let asked = asked.lock().unwrap();
    (asked[1].0 - asked[0].0, asked[0].1)
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_hangs_is_noticed_after_four_times_its_timeout() {
    let (waited, events) = between_attempts(vec![Reply::Never]).await;
    assert_eq!(events, 9);
    // Four times two seconds, and the first wait of the backoff.
    let expected = Duration::from_secs(8)..Duration::from_secs(9);
    assert!(expected.contains(&waited), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_destination_may_ask_for_an_hour_at_most() {
    let (waited, _) = between_attempts(vec![Reply::Busy(Duration::from_mins(10))]).await;
    let expected = Duration::from_mins(10)..Duration::from_mins(11);
    assert!(expected.contains(&waited), "{waited:?}");
    let (waited, _) = between_attempts(vec![Reply::Busy(Duration::MAX)]).await;
    let expected = Duration::from_hours(1)..Duration::from_mins(61);
    assert!(expected.contains(&waited), "{waited:?}");
}

/// The broker answers the keep-alive and nothing else. The sink says so by itself, in its own time.
#[tokio::test]
async fn mqtt_gives_up_a_broker_that_does_not_acknowledge() {
    let script = |number, before| match (number, before) {
        (3, 0) => Play::Ignore,
        _ => Play::Answer(rumqttc_v5::PubAckReason::Success),
    };
    let broker = ScriptedBroker::start(silent(), script).await;
    let settings = json!({ "url": broker.url(), "keep_alive": "1s", "availability_topic": "" });
    let mut sink = open_with("mqtt", settings, Duration::from_millis(2500)).unwrap();
    connect(&mut sink).await.unwrap();
    let failure = deliver(&mut sink, &batch(1..=5, "a")).await.unwrap_err();
    assert!(matches!(failure, Failure { accepted: 2, cause: Cause::Down(_) }), "{failure:?}");
    assert!(failure.cause.to_string().contains("within 2s 500ms"), "{failure:?}");
    connect(&mut sink).await.unwrap();
    deliver(&mut sink, &batch(3..=5, "a")).await.unwrap();
}

#[tokio::test]
async fn mqtt_waits_for_a_slow_broker() {
    let script = |_, _| Play::Late(Duration::from_millis(100));
    let broker = ScriptedBroker::start(silent(), script).await;
    let settings = json!({ "url": broker.url(), "availability_topic": "" });
    let timeout = Duration::from_secs(2);
    let mut sink = open_with("mqtt", settings, timeout).unwrap();
    connect(&mut sink).await.unwrap();
    let began = Instant::now();
    deliver(&mut sink, &batch(1..=30, "a")).await.unwrap();
    assert!(began.elapsed() > timeout, "the batch as a whole was slow");
}

/// A stream that acknowledges nothing, on a server that is well.
#[tokio::test]
async fn nats_gives_up_a_stream_that_does_not_answer() {
    let server = ScriptedNats::start(|_: &str| scripted_nats::Play::Ignore).await;
    let settings = json!({ "url": server.url(), "jetstream": true });
    let mut sink = open_with("nats", settings, Duration::from_secs(1)).unwrap();
    connect(&mut sink).await.unwrap();
    let failure = deliver(&mut sink, &batch(1..=5, "astro.a")).await.unwrap_err();
    assert!(matches!(failure, Failure { accepted: 0, cause: Cause::Down(_) }), "{failure:?}");
    assert!(failure.cause.to_string().contains("within 1s"), "{failure:?}");
}
