//! The rows for MQTT: mosquitto, and a broker that plays what mosquitto never does.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use astro_relay::{base::event::Seq, sink::Outgoing};
use serde_json::{Value, json};

use super::{CanBeBusy, Destination, Killable, Rejects};
use crate::support::{
    mosquitto::{self, Mosquitto},
    scripted_broker::{Play, ScriptedBroker, silent},
};

/// mosquitto, in one of the two versions.
pub struct Mqtt<const VERSION: u8> {
    broker: Mosquitto,
    listener: mosquitto::Listener,
}

impl<const VERSION: u8> Destination for Mqtt<VERSION> {
    const KIND: &'static str = "mqtt";
    const ADDRESS: &'static str = "astro/main/channel/tips";
    /// mosquitto writes at the end of a turn of its loop what it has acknowledged within it: no more
    /// than a window.
    const ACKNOWLEDGED_EARLY: u64 = 64;

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
}

impl<const VERSION: u8> Killable for Mqtt<VERSION> {
    /// mosquitto acknowledges before it saves: `kill -9` can take with it what was acknowledged last,
    /// and then nobody can tell whether the sink claimed too much. Told to end, it saves all of that,
    /// and hangs up in the middle of a batch all the same.
    async fn kill(&mut self) {
        self.broker.server.end().await;
    }

    async fn restart(&mut self) {
        // The listener's session lasts: it need not be there for what arrives.
        self.broker.server.restart().await;
    }
}

impl<const VERSION: u8> Rejects for Mqtt<VERSION> {
    fn spoil(outgoing: &mut Outgoing) {
        outgoing.address = "x".repeat(70_000).into();
    }
}

/// A broker that has a quota.
pub struct ScriptedMqtt {
    broker: ScriptedBroker,
    full: Arc<AtomicBool>,
    accepted: Arc<Mutex<Vec<Seq>>>,
}

impl Destination for ScriptedMqtt {
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
}

impl CanBeBusy for ScriptedMqtt {
    async fn make_busy(&mut self) {
        self.full.store(true, Ordering::Relaxed);
    }

    async fn make_free(&mut self) {
        self.full.store(false, Ordering::Relaxed);
    }
}

impl Rejects for ScriptedMqtt {
    fn spoil(outgoing: &mut Outgoing) {
        outgoing.payload = r#"{"n":5000}"#.into();
    }
}
