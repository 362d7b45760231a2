//! The MQTT sink against mosquitto, and against a broker that plays by a script.

use std::time::Duration;

use astro_relay::sink::Cause;
use serde_json::json;

use crate::support::{
    carry::{connect, deliver},
    mosquitto::{Listener, Mosquitto, Options},
    sinks::{batch, id, open},
};

#[tokio::test]
async fn metadata_travels_beside_the_payload() {
    let broker = Mosquitto::start(Options::default()).await;
    let listener = Listener::start(broker.port, "astro/main/#").await;
    let mut sink =
        open("mqtt", json!({"url": broker.url(), "retain": format!("id == {:?}", id(2))})).unwrap();
    connect(&mut sink).await.unwrap();
    let mut events = batch(1..=2, "astro/main/channel/tips");
    events[1].expires_in = Some(Duration::from_secs(30));
    deliver(&mut sink, &events).await.unwrap();

    let heard = listener.wait_for(2).await;
    assert_eq!(heard[0].payload, events[0].payload);
    let properties = heard[1].properties.clone().unwrap();
    let pairs: Vec<(&str, &str)> =
        properties.user_properties.iter().map(|(name, value)| (&**name, &**value)).collect();
    assert_eq!(
        pairs,
        [
            ("id", &*id(2)),
            ("topic", "channel.tips"),
            ("room", "room"),
            ("channel", "main"),
            ("ts", "2024-02-15T14:52:42Z"),
            ("origin", "live"),
        ]
    );
    assert_eq!(properties.content_type.as_deref(), Some("application/json"));
    assert!(properties.message_expiry_interval.is_some_and(|left| (29..=30).contains(&left)));

    // Only the second is kept by the broker: who comes late hears that one.
    let late = Listener::start(broker.port, "astro/main/channel/tips").await;
    assert_eq!(late.wait_for(1).await[0].payload, events[1].payload);
    sink.close().await;
}

#[tokio::test]
async fn every_version_and_quality_accepts_in_order() {
    let broker = Mosquitto::start(Options::default()).await;
    for version in ["5", "3.1.1"] {
        for qos in 0..=2 {
            let listener = Listener::start(broker.port, "order/#").await;
            let settings = json!({"url": broker.url(), "version": version, "qos": qos});
            let mut sink = open("mqtt", settings).unwrap();
            connect(&mut sink).await.unwrap();
            deliver(&mut sink, &batch(1..=300, "order/x")).await.unwrap();
            deliver(&mut sink, &batch(301..=500, "order/x")).await.unwrap();
            listener.wait_for(500).await;
            assert_eq!(
                listener.numbers(),
                (1..=500).collect::<Vec<_>>(),
                "version {version}, QoS {qos}"
            );
            sink.close().await;
        }
    }
}
