//! What was missed of a channel's activities, tips and redemptions is fetched from their histories: each
//! once, oldest first.

use std::{collections::HashMap, sync::Arc, time::Duration};

use astro_relay::{
    base::{
        clock::{self, UnixMillis},
        event::{Origin, Record},
    },
    config::TokenType,
    journal::store::Store,
};
use astro_sim::{ActivitiesQuery, Canonical, End, Options, RestFault, Sim, Token};
use serde_json::{Value, json};

use crate::support::{
    asyncapi::accepts,
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
    store.begin_run(0, 0, None).unwrap();
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

#[tokio::test]
async fn a_history_that_does_not_exist_is_reported_at_once() {
    // Activities that answer 400 are requested in four forms.
    for (status, requests) in [(404, 1), (400, 4)] {
        let sim = start().await;
        let dir = tempfile::tempdir().unwrap();
        ran_before(dir.path(), 10 * MINUTE);
        sim.fail_rest(std::iter::repeat_n(RestFault::status(status), requests));
        let relay = Running::start(configure(&sim, dir.path(), TOPICS, "")).await;
        let told = report(&relay).await;
        assert_eq!(told["error"], format!("HTTP {status}: simulated"), "{told}");
        assert_eq!((&told["recovered"], &told["complete"]), (&json!(0), &json!(false)));
        relay.stop().await;
    }
}

#[tokio::test]
async fn gaps_that_wait_for_their_next_attempt_do_not_hold_up_others() {
    const OTHERS: [&str; 2] = ["0f0e0d0c0b0a090807060598", "0f0e0d0c0b0a090807060599"];
    let rooms = [ROOM, OTHERS[0], OTHERS[1]];
    let tokens = ["tok-canary", "tok-1", "tok-2"];
    let owners = tokens.iter().zip(rooms).map(|(token, room)| Token::owner(token, room));
    let options = Options { tokens: owners.collect(), ..Options::default() };
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), options).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    ran_before(dir.path(), 10 * MINUTE);
    let at = clock::rfc3339(clock::now() - 5 * MINUTE);
    let mut missed = rooms.map(|room| {
        let data = json!({"username": "mossy", "amount": 5});
        sim.activity(room, json!({"type": "tip", "createdAt": at, "data": data}))
    });
    missed.sort();
    let channel = |(n, room): (usize, &&str)| {
        format!("[channels.other{n}]\nroom = {room:?}\ntoken = \"tok-{n}\"\ntopics = {TOPICS:?}\n")
    };
    let more: String = (1..).zip(&OTHERS).map(channel).collect();
    let config = || configure(&sim, dir.path(), TOPICS, &more);
    // Two of the three are to wait for ten minutes.
    let fault =
        RestFault::Status { status: 503, retry_after: Some("600".to_owned()), broken_body: false };
    sim.fail_rest([fault.clone(), fault]);
    let relay = Running::start(config()).await;
    let told = report(&relay).await;
    assert_eq!((&told["recovered"], &told["complete"]), (&json!(1), &json!(true)), "{told}");
    assert_eq!(relay.said("relay.backfill").await.len(), 1);
    relay.stop().await;

    // They are not done: after a restart they are filled.
    let relay = Running::start(config()).await;
    let mut found = until("all is fetched", SOON, async || {
        let found = received(&relay, "channel.activities").await;
        (found.len() >= 3).then_some(found)
    })
    .await;
    found.sort();
    assert_eq!(found, missed.map(|id| (id, true)));
    relay.stop().await;
}

/// A tip as the gateway tells it, and as the REST API lists it.
fn tipped(sim: &Sim, n: u64, at: UnixMillis, approved: &str) -> String {
    let id = format!("{n:024x}");
    let tip = json!({
        "_id": id, "channel": ROOM, "createdAt": clock::rfc3339(at), "approved": approved,
        "status": "success", "provider": "paypal",
        "donation": {"amount": n, "currency": "USD", "message": "", "user": {"username": "mossy"}},
    });
    sim.publish("channel.tips", ROOM, tip);
    id
}

fn redeemed(sim: &Sim, n: u64) -> String {
    let id = format!("{:024x}", 0xf000 + n);
    let now = clock::rfc3339(clock::now());
    let redemption = json!({"_id": id, "channel": ROOM, "createdAt": now, "completed": false,
        "item": {"name": "foghorn", "cost": 900}, "redeemer": {"username": "mossy"}});
    sim.publish("channel.loyalty.redemptions", ROOM, redemption);
    id
}

/// The report of what became of the gaps, once there are so many.
async fn recoveries(relay: &Running, count: usize) -> Vec<Value> {
    until("the gaps are told again", SOON, async || {
        let all = relay.said("relay.gap").await;
        let told: Vec<Value> =
            all.into_iter().filter(|gap| gap.get("recovery").is_some()).collect();
        (told.len() == count).then_some(told)
    })
    .await
}

/// Whether everything of a topic was fetched, by id, in order.
async fn received(relay: &Running, topic: &str) -> Vec<(String, bool)> {
    let events = relay.events().await;
    let of_topic = events.iter().filter(|record| &*record.event.place.topic == topic);
    let told = of_topic.map(|record| {
        let data: Value = serde_json::from_slice(record.event.data()).unwrap();
        let fetched = record.event.origin == Origin::Backfilled;
        (data["_id"].as_str().unwrap().to_owned(), fetched)
    });
    told.collect()
}

async fn cut_off(sim: &Sim, relay: &Running) {
    sim.listen(false);
    sim.end(None, End::Reset);
    until("it is cut off", SOON, async || (!relay.subscribed()).then_some(())).await;
}

#[tokio::test]
async fn missed_tips_and_redemptions_are_fetched_and_the_gap_tells_what_was_not() {
    const ALL: &[&str] = &[
        "channel.activities", "channel.tips", "channel.loyalty.redemptions", "channel.chat.message",
    ];
    let sim = start().await;
    let dir = tempfile::tempdir().unwrap();
    let relay = Running::start(configure(&sim, dir.path(), ALL, "")).await;
    relay.wait_subscribed().await;
    let live = tipped(&sim, 1, clock::now(), "allowed");
    until("it is received", SOON, async || {
        (received(&relay, "channel.tips").await.len() == 1).then_some(())
    })
    .await;
    cut_off(&sim, &relay).await;
    // The list is sorted by time, and says nothing of what has the same.
    let now = clock::now();
    let missed: Vec<String> = (2..5).map(|n| tipped(&sim, n, now + n, "allowed")).collect();
    for (n, approved) in [(5, "pending"), (6, "rejected")] {
        tipped(&sim, n, clock::now(), approved);
    }
    let redemptions = [redeemed(&sim, 1), redeemed(&sim, 2)];
    tip(&sim, 7, clock::now());
    sim.publish("channel.chat.message", ROOM, json!({"text": "nobody hears this"}));
    sim.listen(true);
    let told = recoveries(&relay, 1).await.remove(0);
    let of = |topic: &str| -> &Value {
        let all = told["subscriptions"].as_array().unwrap();
        all.iter().find(|one| one["topic"] == topic).unwrap()
    };
    for (topic, recovered) in
        [("channel.tips", 3), ("channel.loyalty.redemptions", 2), ("channel.activities", 1)]
    {
        let one = of(topic);
        assert_eq!(
            (&one["recovered"], &one["complete"]),
            (&json!(recovered), &json!(true)),
            "{one}"
        );
    }
    let chat = of("channel.chat.message");
    assert_eq!((&chat["history"], &chat["recovered"]), (&json!(false), &json!(0)));
    assert_eq!(chat["reason"], "Astro has no history of this topic");
    assert_eq!(told["recovery"]["recovered"], 6);
    assert_eq!(told["recovery"]["complete"], false, "of the chat nothing can be had");
    let fetched = |ids: &[String]| ids.iter().map(|id| (id.clone(), true)).collect::<Vec<_>>();
    let tips = received(&relay, "channel.tips").await;
    assert_eq!(tips[0], (live, false));
    assert_eq!(tips[1..], fetched(&missed), "oldest first, and none that never came through");
    assert_eq!(received(&relay, "channel.loyalty.redemptions").await, fetched(&redemptions));
    // The gap was told at once, before anything was fetched.
    let records = relay.events().await;
    let first = |topic: &str, fetched: bool| {
        let is_it = |record: &Arc<Record>| {
            &*record.event.place.topic == topic
                && (record.event.origin == Origin::Backfilled) == fetched
        };
        records.iter().position(is_it).unwrap()
    };
    assert!(first("relay.gap", false) < first("channel.tips", true));

    // The live copy of a fetched tip would have had the same key.
    let fetched = &records[first("channel.tips", true)].event;
    let live = records.iter().find(|record| &*record.event.place.topic == "channel.tips").unwrap();
    let prefix = |key: &str| key.rsplit_once('-').unwrap().0.to_owned();
    assert_eq!(prefix(fetched.key()), format!("tip-{}", missed[0]));
    assert!(prefix(live.event.key()).starts_with("tip-"));
    relay.stop().await;
}

/// A relay that was just installed knows nothing of what happened before: that is no part of a gap.
#[tokio::test]
async fn a_first_restart_brings_nothing_from_before_the_relay_was_there() {
    let sim = start().await;
    let dir = tempfile::tempdir().unwrap();
    let topics = &["channel.activities", "channel.tips"];
    let now = clock::now();
    for n in 0..41 {
        tip(&sim, n, now - 60_000 + n * 500);
        tipped(&sim, n, now - 60_000 + n * 500, "allowed");
    }
    // No message is received at all, so that nothing but the gap's own report tells of the clocks.
    let relay = Running::start(configure(&sim, dir.path(), topics, "")).await;
    relay.wait_subscribed().await;
    relay.stop().await;
    let missed = [tip(&sim, 99, clock::now()), tipped(&sim, 99, clock::now(), "allowed")];
    let relay = Running::start(configure(&sim, dir.path(), topics, "")).await;
    let told = recoveries(&relay, 1).await.remove(0);
    assert_eq!(told["recovery"]["recovered"], 2, "{told}");
    assert_eq!(told["recovery"]["outside"], 82, "they are told, and left where they are");
    assert_eq!(told["recovery"].get("before_gap"), None);
    for (topic, id) in topics.iter().zip(&missed) {
        assert_eq!(received(&relay, topic).await, [(id.clone(), true)], "{topic}");
    }
    for report in relay.said("relay.backfill").await {
        assert_eq!((&report["recovered"], &report["outside"]), (&json!(1), &json!(41)));
    }
    relay.stop().await;
}

#[tokio::test]
async fn activities_are_fetched_whatever_the_list_wants_to_be_asked() {
    // Whether the types without a published name are listed too.
    for (activities, lists_all) in [
        (ActivitiesQuery::ListedTypes, true),
        (ActivitiesQuery::PublishedTypes, false),
        (ActivitiesQuery::Complete, true),
    ] {
        let tokens = vec![Token::owner(TOKEN, ROOM)];
        let options = Options { tokens, activities, ..Options::default() };
        let sim = Sim::start(([127, 0, 0, 1], 0).into(), options).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let relay = Running::start(configure(&sim, dir.path(), TOPICS, "")).await;
        relay.wait_subscribed().await;
        cut_off(&sim, &relay).await;
        let now = clock::now();
        let mut missed = vec![(tip(&sim, 5, now), true)];
        for (n, kind) in [(1, "kicks"), (2, "jewels")] {
            let data = json!({"username": "mossy", "amount": 100});
            let at = clock::rfc3339(now + n);
            let id = sim.activity(ROOM, json!({"type": kind, "createdAt": at, "data": data}));
            missed.extend(lists_all.then_some((id, true)));
        }
        // A type of the documents that the `OpenAPI` does not list.
        let data = json!({"username": "mossy", "amount": 100});
        let at = clock::rfc3339(now + 3);
        let id = sim.activity(ROOM, json!({"type": "stars", "createdAt": at, "data": data}));
        missed.push((id, true));
        sim.listen(true);
        let told = recoveries(&relay, 1).await.remove(0);
        assert_eq!(received(&relay, "channel.activities").await, missed, "{activities:?}");
        // A type that the relay does not name would not be listed.
        let report = report(&relay).await;
        for one in [&report, &told["subscriptions"][0]] {
            let recovered = (&one["recovered"], &one["complete"]);
            assert_eq!(recovered, (&json!(missed.len()), &json!(false)), "{one}");
            assert!(one["reason"].as_str().unwrap().contains("types"), "{one}");
        }
        assert_eq!(told["recovery"]["complete"], false);
        let events = relay.events().await;
        let own = events.iter().filter(|record| record.event.place.topic.starts_with("relay."));
        own.for_each(|record| accepts(&record.event));
        relay.stop().await;
    }
}

/// The REST API knows a channel by its id only.
#[tokio::test]
async fn what_a_channel_with_a_name_for_its_room_missed_is_fetched_by_the_canonical_room() {
    const NAME: &str = "mychannel";
    let canonical = Canonical::Table(HashMap::from([(NAME.to_owned(), ROOM.to_owned())]));
    let options =
        Options { tokens: vec![Token::owner(TOKEN, ROOM)], canonical, ..Options::default() };
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), options).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let config = || {
        let mut config = configure(&sim, dir.path(), TOPICS, "");
        let channel = config.channels.get_mut("main").unwrap();
        (channel.room, channel.token_type) = (Some(NAME.to_owned()), TokenType::Apikey);
        config
    };
    let relay = Running::start(config()).await;
    relay.wait_subscribed().await;
    cut_off(&sim, &relay).await;
    let mut missed = vec![(tip(&sim, 5, clock::now()), true)];
    sim.listen(true);
    recoveries(&relay, 1).await;
    relay.stop().await;

    // After a restart nothing but the configuration is known at first.
    missed.push((tip(&sim, 6, clock::now()), true));
    let relay = Running::start(config()).await;
    let told = recoveries(&relay, 2).await;
    assert_eq!(received(&relay, "channel.activities").await, missed, "{told:?}");
    for gap in relay.said("relay.gap").await {
        assert_eq!(gap["subscriptions"][0]["room"], ROOM, "{gap}");
    }
    let events = relay.events().await;
    let mut activities =
        events.iter().filter(|record| &*record.event.place.topic == "channel.activities");
    assert!(activities.all(|record| &*record.event.place.room == ROOM));
    relay.stop().await;
}
