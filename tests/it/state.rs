//! The live session: what the relay knows of it is what the server has, whatever happens.

use std::{collections::BTreeMap, time::Duration};

use astro_relay::{base::clock, config::SecretRef};
use astro_sim::{End, Options, RestFault, SessionKeys, SessionReset, Sim, Token};
use serde_json::{Map, Value, json};

use crate::support::{
    relay::{ROOM, Running, TOKEN, configure},
    wait::until,
};

const TOPICS: &[&str] =
    &["channel.session.update", "channel.session.reset", "channel.stream.status"];

/// How long the relay may take to catch up, on a machine that is busy.
const SOON: Duration = Duration::from_mins(1);

async fn start(options: Options) -> Sim {
    let options = Options { tokens: vec![Token::owner(TOKEN, ROOM)], ..options };
    Sim::start(([127, 0, 0, 1], 0).into(), options).await.unwrap()
}

/// What somebody knows who hears of every change, and of nothing else.
async fn followed(relay: &Running) -> BTreeMap<String, Value> {
    let mut known = BTreeMap::new();
    for change in relay.said("relay.session").await {
        let element = change["element"].as_str().unwrap().to_owned();
        let before = match change.get("after") {
            Some(after) => known.insert(element, after.clone()),
            None => known.remove(&element),
        };
        assert_eq!(before.as_ref(), change.get("before"), "{change}");
    }
    known
}

fn on_the_server(sim: &Sim) -> BTreeMap<String, Value> {
    serde_json::from_value(sim.session(ROOM)["data"].clone()).unwrap()
}

/// Numbers alike, whether `5` or `5.0`.
fn alike(known: &BTreeMap<String, Value>, server: &BTreeMap<String, Value>) -> bool {
    fn plain(value: &Value) -> Value {
        match value {
            Value::Number(number) => json!(number.as_f64()),
            Value::Array(list) => list.iter().map(plain).collect(),
            Value::Object(fields) => {
                fields.iter().map(|(name, value)| (name.clone(), plain(value))).collect()
            }
            other => other.clone(),
        }
    }
    let plain = |map: &BTreeMap<String, Value>| -> BTreeMap<String, Value> {
        map.iter()
            .filter(|(name, _)| !name.contains('.'))
            .map(|(name, value)| (name.clone(), plain(value)))
            .collect()
    };
    plain(known) == plain(server)
}

async fn wait_alike(relay: &Running, sim: &Sim) {
    until("the relay knows what the server has", SOON, async || {
        alike(&followed(relay).await, &on_the_server(sim)).then_some(())
    })
    .await;
}

fn set(sim: &Sim, element: &str, value: Value) {
    sim.update_session(ROOM, Map::from_iter([(element.to_owned(), value)]));
}

#[tokio::test]
async fn a_change_is_reported_and_survives_a_restart() {
    let sim = start(Options::default()).await;
    let dir = tempfile::tempdir().unwrap();
    let config = configure(&sim, dir.path(), TOPICS, "");
    set(&sim, "tip-goal", json!({"amount": 7}));
    let relay = Running::start(config.clone()).await;
    wait_alike(&relay, &sim).await;
    relay.wait_subscribed().await;
    set(&sim, "tip-goal", json!({"amount": 8}));
    sim.publish("channel.stream.status", ROOM, json!({"isLive": true}));
    until("all is heard", SOON, async || {
        followed(&relay).await.contains_key("stream.status").then_some(())
    })
    .await;
    let told = relay.said("relay.session").await;
    let [.., goal, live] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!(
        goal,
        &json!({"channel": "main", "element": "tip-goal", "source": "live", "provider": "twitch",
                "before": {"amount": 7}, "after": {"amount": 8}})
    );
    let since = live["after"]["since"].clone();
    assert_eq!(live["after"], json!({"isLive": true, "status": "online", "since": since}));
    assert_eq!(told[0]["source"], "fetched");
    assert_eq!(told.len(), 64, "each element once, and two changes");
    let page = relay.status.snapshot().sessions["main"].clone();
    assert_eq!((page.elements, page.error), (63, None));
    relay.stop().await;

    // While it is away the goal changes, and the server's API is of no use.
    set(&sim, "tip-goal", json!({"amount": 9}));
    let relay = Running::start(config).await;
    wait_alike(&relay, &sim).await;
    let told = relay.said("relay.session").await;
    assert_eq!(told.len(), 65, "what had been kept is not told again");
    assert_eq!(told[64]["before"], json!({"amount": 8}));
    let live = relay.journal.stored_state().unwrap();
    let live = live.iter().find(|kept| &*kept.element == "stream.status").unwrap();
    let live: Value = serde_json::from_str(live.value.as_deref().unwrap()).unwrap();
    assert_eq!(live, json!({"isLive": true, "status": "online", "since": since}), "its age too");
    relay.stop().await;
}

#[tokio::test]
async fn the_state_of_a_room_is_not_restored_for_another_one_with_the_same_label() {
    const OTHER: &str = "1f0e0d0c0b0a090807060504";
    let tokens = vec![Token::owner(TOKEN, ROOM), Token::owner("tok-other", OTHER)];
    let options = Options { tokens, ..Options::default() };
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), options).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut config = configure(&sim, dir.path(), TOPICS, "");
    let relay = Running::start(config.clone()).await;
    relay.wait_subscribed().await;
    sim.publish("channel.stream.status", ROOM, json!({"isLive": true}));
    until("it is received", SOON, async || {
        followed(&relay).await.contains_key("stream.status").then_some(())
    })
    .await;
    relay.stop().await;

    let main = config.channels.get_mut("main").unwrap();
    (main.room, main.token) = (Some(OTHER.into()), SecretRef::Value("tok-other".into()));
    let relay = Running::start(config).await;
    until("it is reported to be gone", SOON, async || {
        (!followed(&relay).await.contains_key("stream.status")).then_some(())
    })
    .await;
    let stored = relay.journal.stored_state().unwrap();
    assert!(stored.iter().all(|kept| &*kept.element != "stream.status"));
    relay.stop().await;
}

#[tokio::test]
async fn an_api_that_fails_is_shown_and_asked_again() {
    let sim = start(Options::default()).await;
    let dir = tempfile::tempdir().unwrap();
    sim.fail_rest([401, 404].map(RestFault::status));
    let more = "[session]\nrefresh = \"100ms\"\n";
    let mut config = configure(&sim, dir.path(), TOPICS, more);
    config.astro.retry_refused = astro_relay::config::Period(Duration::from_millis(50));
    let relay = Running::start(config).await;
    until("the page tells", SOON, async || {
        let error =
            relay.status.sessions.snapshot().get("main").and_then(|status| status.error.clone());
        error.map(|error| assert_eq!(error, "HTTP 401: simulated"))
    })
    .await;
    wait_alike(&relay, &sim).await;
    assert_eq!(relay.status.snapshot().sessions["main"].error, None);
    // The gateway does not say this one: only the interval finds it.
    sim.set_tokens(vec![]);
    let asked = sim.stats().rest_requests;
    until("it is asked at the interval", SOON, async || {
        (sim.stats().rest_requests > asked + 3).then_some(())
    })
    .await;
    relay.stop().await;
}

/// Random orders of everything that can happen, with the server's session as the truth.
async fn in_a_random_order(seed: u64, options: Options) {
    let mut random = fastrand::Rng::with_seed(seed);
    let sim = start(options).await;
    let dir = tempfile::tempdir().unwrap();
    let config = configure(&sim, dir.path(), TOPICS, "");
    let mut relay = Running::start(config.clone()).await;
    for round in 0..40 {
        match random.u32(..12) {
            0..6 => {
                let kind = random.choice(["tip", "follow", "cheer", "subscriber", "raid"]).unwrap();
                let amount = random.u32(1..50);
                let data = json!({"username": format!("u{round}"), "amount": amount});
                sim.activity(ROOM, json!({"type": kind, "data": data}));
            }
            6 => set(&sim, "tip-goal", json!({"amount": round})),
            7 => sim.reset_session(ROOM),
            8 => sim.end(None, End::Reset),
            9 => {
                sim.drain(None);
            }
            10 => sim.fail_rest([RestFault::Delay(Duration::from_millis(random.u64(..80)))]),
            _ if round % 3 == 0 => {
                relay.stop().await;
                relay = Running::start(config.clone()).await;
            }
            _ => relay.wait_subscribed().await,
        }
        tokio::task::yield_now().await;
    }
    wait_alike(&relay, &sim).await;
    relay.stop().await;
    sim.stop().await;
}

#[tokio::test]
async fn in_every_order_the_relay_ends_with_what_the_server_has() {
    for seed in 0..6 {
        in_a_random_order(seed, Options::default()).await;
    }
}

#[tokio::test]
async fn the_older_spelling_comes_to_the_same() {
    for seed in 10..13 {
        let options = Options {
            session_keys: SessionKeys::Older,
            session_reset: SessionReset::Session,
            ..Options::default()
        };
        in_a_random_order(seed, options).await;
    }
}

#[tokio::test]
async fn a_reset_changes_the_figures_of_the_session_alone_and_says_since_when() {
    let sim = start(Options::default()).await;
    let dir = tempfile::tempdir().unwrap();
    set(&sim, "tip-goal", json!({"amount": 40}));
    sim.activity(ROOM, json!({"type": "tip", "data": {"username": "mossy", "amount": 5}}));
    let relay = Running::start(configure(&sim, dir.path(), TOPICS, "")).await;
    relay.wait_subscribed().await;
    wait_alike(&relay, &sim).await;
    let before = relay.said("relay.session").await.len();
    sim.reset_session(ROOM);
    until("it is heard", SOON, async || {
        let changes = relay.said("relay.session").await;
        changes.iter().any(|change| change["source"] == "reset").then_some(())
    })
    .await;
    wait_alike(&relay, &sim).await;
    let changes = relay.said("relay.session").await.split_off(before);
    let others: Vec<_> = changes
        .iter()
        .filter(|change| !change["element"].as_str().unwrap().contains("session"))
        .collect();
    assert!(others.is_empty(), "{others:?}");
    let known = followed(&relay).await;
    assert_eq!(known["tip-goal"]["amount"], 45);
    assert_eq!(known["tip-latest"]["name"], "mossy");
    assert_eq!(known["tip-session"]["amount"], 0);
    let last = sim.session(ROOM)["lastReset"].as_str().and_then(clock::parse_rfc3339).unwrap();
    until("the time is known", SOON, async || {
        let shown = relay.status.sessions.snapshot()["main"].last_reset?;
        (shown.abs_diff(last) < 10_000).then_some(())
    })
    .await;
    relay.stop().await;
}
