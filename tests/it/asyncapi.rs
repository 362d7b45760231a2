//! What the relay emits is what `docs/asyncapi.json` describes.

use std::{collections::BTreeSet, time::Duration};

use astro_relay::{astro::topics::CATALOGUE, base::clock};
use astro_sim::{End, Options, RestFault, Sim, Token, Traffic};
use serde_json::{Value, json};

use crate::support::{
    asyncapi::{DOCUMENT, accepts, problems},
    relay::{ROOM, Running, TOKEN, configure},
    wait::until,
};

const SOON: Duration = Duration::from_mins(1);

/// Lets the connection break while something happens, and waits for what became of the gap.
async fn gap(sim: &Sim, relay: &Running, before: usize) {
    sim.listen(false);
    sim.end(None, End::Reset);
    until("it is cut off", SOON, async || (!relay.subscribed()).then_some(())).await;
    let tip = json!({"username": "mossy", "amount": 5});
    sim.activity(
        ROOM,
        json!({"type": "tip", "createdAt": clock::rfc3339(clock::now()), "data": tip}),
    );
    sim.listen(true);
    until("what became of the gap", SOON, async || {
        let gaps = relay.said("relay.gap").await;
        let told = gaps.iter().filter(|gap| gap.get("recovery").is_some()).count();
        (told > before).then_some(())
    })
    .await;
}

#[tokio::test]
async fn every_event_that_the_relay_emits_is_as_described() {
    let options = Options { tokens: vec![Token::owner(TOKEN, ROOM)], ..Options::default() };
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), options).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let topics: Vec<&str> = CATALOGUE.iter().map(|topic| topic.name).collect();
    let relay = Running::start(configure(&sim, dir.path(), &topics, "")).await;
    relay.wait_subscribed().await;
    let mut traffic = Traffic::new(7, &[ROOM.to_owned()]);
    until("events of most topics", SOON, async || {
        for _ in 0..10 {
            sim.perform(traffic.next(clock::now()).unwrap());
        }
        let events = relay.events().await;
        let topics = events.iter().map(|record| &*record.event.place.topic);
        (topics.collect::<BTreeSet<_>>().len() > 15).then_some(())
    })
    .await;
    // One gap of which something is fetched, and one of which nothing can be.
    gap(&sim, &relay, 0).await;
    sim.fail_rest(std::iter::repeat_with(|| RestFault::status(403)).take(12));
    gap(&sim, &relay, 1).await;

    let events = relay.events().await;
    for record in &events {
        accepts(&record.event);
    }
    let seen: BTreeSet<&str> = events.iter().map(|record| &*record.event.place.topic).collect();
    for own in ["relay.gap", "relay.backfill", "relay.session", "relay.status"] {
        assert!(seen.contains(own), "{own} is not among {seen:?}");
    }
    let backfills = relay.said("relay.backfill").await;
    let some = |field: &str| backfills.iter().any(|one| one.get(field).is_some());
    assert!(some("error") && backfills.iter().any(|one| one["recovered"] != 0), "{backfills:?}");
    relay.stop().await;
}

#[test]
fn every_example_is_as_described() {
    let mut count = 0;
    for message in DOCUMENT["components"]["messages"].as_object().unwrap().values() {
        for example in message["examples"].as_array().into_iter().flatten() {
            let found = problems(message["name"].as_str().unwrap(), &example["payload"]);
            assert!(found.is_empty(), "{}: {found:#?}", example["name"]);
            count += 1;
        }
    }
    assert!(count > 40, "{count}");
}

#[test]
fn a_field_that_is_not_described_is_noticed() {
    let messages = &DOCUMENT["components"]["messages"];
    let gap = |name: &str| -> Value {
        let examples = messages["RelayGap"]["examples"].as_array().unwrap();
        examples.iter().find(|one| one["name"] == name).unwrap()["payload"].clone()
    };
    let good = gap("what became of it");
    for (path, value) in [
        ("/data", json!({"cause": "c", "sink": "home", "count": -1})),
        ("/data/recovery", json!({"found": 1, "recovered": 1, "complete": true, "new": 1})),
        ("/data/subscriptions/0/history", json!("yes")),
        ("/data/from", json!("yesterday")),
        ("/data/subscriptions/1", json!({"topic": "t", "room": "r", "restored": true})),
    ] {
        let mut bad = good.clone();
        *bad.pointer_mut(path).unwrap() = value;
        assert!(!problems("relay.gap", &bad).is_empty(), "{path}");
    }
    assert_eq!(problems("relay.gap", &good), [""; 0]);
}
