//! Loads, demo traffic, and the records of what was sent.

use std::collections::{BTreeSet, HashMap};

use astro_sim::{Load, Options, Traffic};

use crate::{OTHER, ROOM, client::Client, start};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_arrives_whole_in_order_and_as_recorded() {
    const MESSAGES: u64 = 20_000;
    let sim = start(Options { keep_sent: 15_000, ..Options::default() }).await;
    let mut client = Client::welcomed(&sim).await;
    for room in [ROOM, OTHER] {
        client.subscribe("channel.activities", room).await;
    }
    let load = Load {
        messages: MESSAGES,
        rooms: vec![ROOM.into(), OTHER.into()],
        first: 7,
        ..Load::default()
    };
    let reading = async {
        let mut ids = Vec::new();
        for n in 0..MESSAGES {
            let message = client.json().await;
            assert_eq!(message["data"]["n"], n + 7);
            assert_eq!(message["room"], if n % 2 == 1 { ROOM } else { OTHER });
            assert!(message["data"]["sent"].as_u64().unwrap() > 1_600_000_000_000_000);
            ids.push(message["id"].as_str().unwrap().to_owned());
        }
        ids
    };
    let (loaded, ids) = tokio::join!(sim.load(&load), reading);
    assert_eq!((loaded.messages, loaded.sent), (MESSAGES, MESSAGES));
    assert!(ids.is_sorted_by(|a, b| a < b), "ids only grow");
    let record = &sim.connections()[0];
    assert_eq!(record.sent, ids[..15_000]);
    assert_eq!(record.sent_unremembered, MESSAGES - 15_000);
    assert_eq!(sim.stats().sent, MESSAGES);
}

#[tokio::test]
async fn a_load_keeps_its_rate_and_its_size() {
    let sim = start(Options::default()).await;
    let mut client = Client::welcomed(&sim).await;
    client.subscribe("channel.activities", ROOM).await;
    let load = Load { messages: 100, rate: Some(500), rooms: vec![ROOM.into()], ..Load::default() };
    let loaded = sim.load(&load).await;
    assert!(loaded.took.as_millis() >= 198, "{:?}", loaded.took);
    let text = client.text().await;
    assert!((500..700).contains(&text.len()), "{}", text.len());
}

#[tokio::test]
async fn a_message_without_a_subscriber_is_not_sent_later() {
    let sim = start(Options::default()).await;
    let mut client = Client::welcomed(&sim).await;
    sim.publish("channel.tips", ROOM, "1");
    client.subscribe("channel.tips", ROOM).await;
    let id = sim.publish("channel.tips", ROOM, "2");
    assert_eq!(client.json().await["id"], id);
    assert_eq!(sim.connections()[0].sent, [id]);
    assert_eq!((sim.stats().published, sim.stats().sent), (2, 1));
}

#[tokio::test]
async fn demo_traffic_agrees_with_session_and_history() {
    let sim = start(Options::default()).await;
    let mut client = Client::welcomed(&sim).await;
    for topic in ["channel.activities", "channel.session.update"] {
        client.subscribe(topic, ROOM).await;
    }
    let mut traffic = Traffic::new(1, &[ROOM.to_owned()]);
    for n in 0..200 {
        sim.perform(traffic.next(1_700_000_000_000 + n).unwrap());
    }
    // A mark that ends what is read.
    sim.publish("channel.activities", ROOM, r#""done""#);
    let (mut elements, mut activities) = (HashMap::new(), BTreeSet::new());
    loop {
        let message = client.json().await;
        let data = &message["data"];
        if *data == "done" {
            break;
        }
        if message["topic"] == "channel.activities" {
            activities.insert(data["_id"].as_str().unwrap().to_owned());
        } else {
            let mut value = data["data"].clone();
            // The activity that caused it is named in the update alone.
            if let Some(fields) = value.as_object_mut() {
                assert!(
                    activities.contains(fields.remove("activityId").unwrap().as_str().unwrap())
                );
            }
            elements.insert(data["key"].as_str().unwrap().to_owned(), value);
        }
    }
    assert!(activities.len() > 20);
    let session = sim.session(ROOM);
    assert!(elements.contains_key("follower-latest"));
    for (key, value) in elements {
        assert_eq!(session["data"][&key], value, "{key}");
    }
}

#[tokio::test]
async fn demo_traffic_plays_in_time() {
    let sim = start(Options::default()).await;
    let mut client = Client::welcomed(&sim).await;
    client.subscribe("channel.chat.message", ROOM).await;
    let mut traffic = Traffic::new(1, &[ROOM.to_owned()]);
    tokio::select! {
        () = sim.play(&mut traffic, 1000.0) => unreachable!("it has no end"),
        message = client.json() => assert!(message["data"].is_object()),
    }
}
