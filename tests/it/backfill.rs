//! What was missed of a channel's activities is fetched from the history: each once, oldest first.

use std::{collections::HashMap, time::Duration};

use astro_relay::{
    base::clock::{self, UnixMillis},
    journal::store::Store,
};
use astro_sim::{End, Options, RestFault, Sim, Token};
use serde_json::{Value, json};

use crate::support::{
    nats_server::NatsServer,
    relay::{ROOM, Running, TOKEN, configure},
    wait::until,
};

const SOON: Duration = Duration::from_mins(1);
const TOPICS: &[&str] = &["channel.activities"];
const MINUTE: UnixMillis = 60_000;

async fn start() -> Sim {
    let options = Options { tokens: vec![Token::owner(TOKEN, ROOM)], ..Options::default() };
    Sim::start(([127, 0, 0, 1], 0).into(), options).await.unwrap()
}

/// Lets a tip happen at that time; answers its id.
fn tip(sim: &Sim, n: u64, at: UnixMillis) -> String {
    let at = clock::rfc3339(at);
    let data = json!({"username": "mossy", "amount": n});
    sim.activity(ROOM, json!({"type": "tip", "createdAt": at, "data": data}))
}

/// A journal of a relay that last ran that long ago.
fn ran_before(dir: &std::path::Path, ago: UnixMillis) {
    let mut store = Store::open(dir, false).unwrap();
    store.begin_run(0, 0, 1).unwrap();
    store.close(0, clock::now() - ago).unwrap();
}

async fn report(relay: &Running) -> Value {
    until("the report", SOON, async || relay.said("relay.backfill").await.pop()).await
}

/// The activities in a stream: amount, id and origin, in order.
async fn stored(server: &NatsServer) -> Vec<(u64, String, String)> {
    let Ok(mut stream) = server.streams().await.get_stream("ASTRO").await else {
        return Vec::new();
    };
    let state = stream.info().await.unwrap().state.clone();
    let mut found = Vec::new();
    for sequence in state.first_sequence..=state.last_sequence {
        let message = stream.get_raw_message(sequence).await.unwrap();
        let text: Value = serde_json::from_slice(&message.payload).unwrap();
        if text["topic"] == "channel.activities" {
            let data = &text["data"];
            assert_eq!(data["_id"], data["activityId"]);
            found.push((
                data["data"]["amount"].as_u64().unwrap(),
                data["_id"].as_str().unwrap().to_owned(),
                text["id"].as_str().unwrap().to_owned(),
            ));
        }
    }
    found
}

#[tokio::test]
async fn ten_minutes_and_two_hundred_activities_later_each_is_there_once() {
    let (sim, server) = (start().await, NatsServer::start("").await);
    server.streams().await;
    let dir = tempfile::tempdir().unwrap();
    ran_before(dir.path(), 10 * MINUTE);
    let now = clock::now();
    let missed: Vec<String> =
        (0..200).map(|n| tip(&sim, n, now - 10 * MINUTE + n * 3000)).collect();
    // Long before the gap: nobody missed it.
    tip(&sim, 9999, now - 60 * MINUTE);
    let more = format!(
        "[sinks.events]\ntype = \"nats\"\nurl = {:?}\njetstream = true\ncreate_stream = true\n",
        server.url()
    );
    sim.fail_rest([RestFault::Pass, RestFault::status(503)]);
    let relay = Running::start(configure(&sim, dir.path(), TOPICS, &more)).await;
    relay.wait_subscribed().await;
    // While the history is fetched, life goes on, and the history has that too.
    let live: Vec<String> = (200..230).map(|n| tip(&sim, n, clock::now())).collect();
    let told = report(&relay).await;
    assert_eq!(told["complete"], true, "{told}");
    let recovered = told["recovered"].as_u64().unwrap();
    assert!((200..=230).contains(&recovered), "{told}");
    until("all is stored", SOON, async || (stored(&server).await.len() >= 230).then_some(())).await;
    let found = stored(&server).await;
    let mut times: HashMap<&str, usize> = HashMap::new();
    for (_, id, _) in &found {
        *times.entry(id).or_default() += 1;
    }
    assert_eq!(times.len(), 230);
    assert!(missed.iter().chain(&live).all(|id| times.get(id.as_str()) == Some(&1)), "{times:?}");
    let old: Vec<u64> = found.iter().map(|(n, ..)| *n).filter(|n| *n < 200).collect();
    assert_eq!(old, (0..200).collect::<Vec<_>>(), "oldest first");
    assert!(
        found.iter().filter(|(n, ..)| *n < 200).all(|(_, a, id)| *id == format!("activity-{a}"))
    );
    let records = relay.events().await;
    let of = |topic: &str| {
        records.iter().position(|record| &*record.event.place.topic == topic).unwrap()
    };
    assert!(of("relay.gap") < of("channel.activities"));
    relay.stop().await;
}

#[tokio::test]
async fn activities_from_before_the_gap_are_not_repeated() {
    let sim = start().await;
    let dir = tempfile::tempdir().unwrap();
    let relay = Running::start(configure(&sim, dir.path(), TOPICS, "")).await;
    relay.wait_subscribed().await;
    let mut ids: Vec<String> = (0..20).map(|n| tip(&sim, n, clock::now())).collect();
    let heard = async |relay: &Running| -> Vec<String> {
        let said = relay.said("channel.activities").await;
        said.iter().map(|data| data["_id"].as_str().unwrap().to_owned()).collect()
    };
    until("all is heard", SOON, async || (heard(&relay).await.len() == 20).then_some(())).await;
    sim.listen(false);
    sim.end(None, End::Reset);
    until("it is cut off", SOON, async || (!relay.subscribed()).then_some(())).await;
    ids.extend((20..30).map(|n| tip(&sim, n, clock::now())));
    sim.listen(true);
    let told = report(&relay).await;
    assert_eq!((&told["recovered"], &told["complete"]), (&json!(10), &json!(true)), "{told}");
    assert_eq!(heard(&relay).await, ids);
    relay.stop().await;

    // After a restart the journal is what is remembered.
    ids.extend((30..35).map(|n| tip(&sim, n, clock::now())));
    let relay = Running::start(configure(&sim, dir.path(), TOPICS, "")).await;
    until("the second report", SOON, async || {
        (relay.said("relay.backfill").await.len() == 2).then_some(())
    })
    .await;
    assert_eq!(relay.said("relay.backfill").await[1]["recovered"], 5);
    assert_eq!(heard(&relay).await, ids);
    relay.stop().await;
}

#[tokio::test]
async fn a_refused_history_is_reported_and_without_backfill_none_is_fetched() {
    let sim = start().await;
    let dir = tempfile::tempdir().unwrap();
    ran_before(dir.path(), 10 * MINUTE);
    sim.fail_rest([RestFault::status(403)]);
    let relay = Running::start(configure(&sim, dir.path(), TOPICS, "")).await;
    let told = report(&relay).await;
    assert_eq!(told["error"], "HTTP 403: simulated");
    assert_eq!((&told["recovered"], &told["complete"]), (&json!(0), &json!(false)));
    relay.stop().await;

    let asked = sim.stats().rest_requests;
    let more = "[backfill]\nenabled = false\n";
    let relay = Running::start(configure(&sim, dir.path(), TOPICS, more)).await;
    until("the second gap", SOON, async || {
        (relay.said("relay.gap").await.len() == 2).then_some(())
    })
    .await;
    relay.stop().await;
    assert_eq!(sim.stats().rest_requests, asked);
}
