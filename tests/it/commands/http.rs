//! Commands over HTTP, with the admin token.

use astro_relay::base::clock;
use astro_sim::RestFault;
use serde_json::{Value, json};

use super::{done, element, fetched_at, id, start};
use crate::operator::{Running, channel};

async fn post(relay: &Running, path: &str, body: &str) -> (u16, Value) {
    let answer = relay.post(path, body).await;
    let status = answer.status().as_u16();
    (status, answer.json().await.unwrap_or_default())
}

#[tokio::test]
async fn each_command_is_executed_and_answered() {
    let relay = start("http.commands = true\n", "").await;
    let body = r#"{"element":"tip_goal","value":{"amount":41},"transaction":"s"}"#;
    let (status, answer) = post(&relay, "/channels/main/session/set", body).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!((&answer["element"], &answer["transaction"]), (&json!("tip_goal"), &json!("s")));
    assert_eq!(element(&relay.sim, "tip-goal"), json!({"amount": 41}));
    let (status, answer) = post(&relay, "/channels/main/session/set/tip-goal", "12.0").await;
    assert_eq!((status, &answer["ok"]), (200, &json!(true)));
    assert_eq!(element(&relay.sim, "tip-goal").to_string(), r#"{"amount":12}"#);

    let before = id(&relay.sim);
    let reset = r#"{"transaction":"r"}"#;
    let first = post(&relay, "/channels/main/session/reset", reset).await;
    assert_eq!(first, (200, done("session/reset", "r")));
    let made = id(&relay.sim);
    assert_ne!(made, before);
    assert_eq!(post(&relay, "/channels/main/session/reset", reset).await, first);
    assert_eq!(id(&relay.sim), made, "a repeat is not executed");

    let (status, _) = post(&relay, "/channels/main/session/reload", "").await;
    assert_eq!(status, 200);
    let fetched = fetched_at(&relay).await;
    let refreshed = post(&relay, "/channels/main/refresh", r#"{"transaction":"f"}"#).await;
    assert_eq!(refreshed, (200, done("relay/refresh", "f")));
    assert!(fetched_at(&relay).await > fetched);
}

#[tokio::test]
async fn nothing_is_executed_without_the_token_and_the_permission() {
    let relay = start("http.commands = [\"session/reload\"]\n", "").await;
    let before = (id(&relay.sim), relay.sim.stats().rest_requests);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for token in [None, Some("wrong")] {
        let mut request = client.post(relay.url("/channels/main/session/reload"));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        assert_eq!(request.send().await.unwrap().status(), 401);
    }
    for (path, body, status) in [
        ("/channels/main/session/reset", "", 403),
        ("/channels/main/refresh", "", 403),
        ("/channels/main/session/set/tip-goal", "1", 403),
        ("/channels/main/session/set", "{", 400),
        ("/channels/main/session/drop", "", 404),
        ("/channels/other/session/reload", "", 404),
        ("/channels/main/session/reload", "now", 400),
    ] {
        let (answered, answer) = post(&relay, path, body).await;
        assert_eq!((answered, &answer["status"]), (status, &json!(status)), "{path}: {answer}");
        assert_eq!(answer["ok"], false);
    }
    let huge = format!("{{\"transaction\":\"{}\"}}", "x".repeat(20_000));
    assert_eq!(post(&relay, "/channels/main/session/reload", &huge).await.0, 413);
    assert_eq!(relay.get("/channels/main/session/reload").await.status(), 405);
    assert_eq!((id(&relay.sim), relay.sim.stats().rest_requests), before);
    assert_eq!(post(&relay, "/channels/main/session/reload", "").await.0, 200);

    let off = start("", "").await;
    assert_eq!(post(&off, "/channels/main/session/reload", "").await.0, 403);
}

#[tokio::test]
async fn an_error_of_the_api_is_reported_and_no_change_is_made_twice() {
    let relay = start("http.commands = true\n", "").await;
    let set = |value: u32, transaction: &str| {
        json!({"element": "tip-goal", "value": value, "transaction": transaction}).to_string()
    };
    // The session is read, and the change is lost on its way back.
    relay.sim.fail_rest([RestFault::Pass, RestFault::DropAfter]);
    let lost = post(&relay, "/channels/main/session/set", &set(77, "t")).await;
    assert_eq!((lost.0, &lost.1["status"]), (504, &json!(504)), "{lost:?}");
    assert_eq!(element(&relay.sim, "tip-goal"), json!({"amount": 77}));
    // Meanwhile somebody else has changed it: the repeat must not undo that.
    let other = serde_json::Map::from_iter([("tip-goal".to_owned(), json!({"amount": 78}))]);
    relay.sim.update_session(crate::operator::ROOM, other);
    assert_eq!(post(&relay, "/channels/main/session/set", &set(77, "t")).await, lost);
    assert_eq!(element(&relay.sim, "tip-goal"), json!({"amount": 78}));
    let (status, answer) = post(&relay, "/channels/main/session/set", &set(1, "t")).await;
    assert_eq!((status, &answer["status"]), (409, &json!(409)), "another command, the same number");

    relay.sim.fail_rest([RestFault::status(403)]);
    let (status, answer) = post(&relay, "/channels/main/session/reset", "").await;
    assert_eq!((status, &answer["status"]), (502, &json!(403)));
    // The token of these tests is a letter of this word.
    assert_eq!(answer["error"], "simula…ed");
    for (element, value, expected) in [
        ("tip-gaol", "1", 404),
        ("tip-latest", "1", 400),
        ("tip-goal", "12,5", 400),
        ("tip-goal", "[1]", 400),
    ] {
        let path = format!("/channels/main/session/set/{element}");
        let (status, answer) = post(&relay, &path, value).await;
        assert_eq!(status, expected, "{path} {value}: {answer}");
    }
    assert_eq!(element(&relay.sim, "tip-goal"), json!({"amount": 78}));
}

#[tokio::test]
async fn a_channel_without_a_session_is_an_error_and_a_new_channel_takes_commands() {
    let rest = format!("http.commands = true\n{}", channel(&["channel.tips"]));
    let relay = Running::start(&rest).await;
    let (status, answer) = post(&relay, "/channels/main/refresh", "").await;
    assert_eq!(status, 502, "{answer}");
    assert_eq!(answer["error"], "the relay keeps no session of this channel");
    assert_eq!(post(&relay, "/channels/new/session/reload", "").await.0, 404);
    let new = channel(&["channel.follow"]).replace("channels.main", "channels.new");
    relay.rewrite(&format!("{rest}{new}"));
    assert_eq!(relay.reload().await.0, 200);
    assert_eq!(post(&relay, "/channels/new/session/reload", "").await.0, 200);
}

#[tokio::test]
async fn what_the_server_answers_to_a_change_is_taken_in_at_once() {
    let relay = start("http.commands = true\n", "").await;
    // No event is going to bring it.
    relay.sim.silence(None, true);
    let asked = relay.sim.stats().rest_requests;
    let fetched = fetched_at(&relay).await;
    let body = r#"{"element":"tip-goal","value":{"amount":41}}"#;
    assert_eq!(post(&relay, "/channels/main/session/set", body).await.0, 200);
    relay
        .until("the answer is taken in", |status| {
            status["pages"]["sessions"]["main"]["fetched_at"].as_u64() > Some(fetched)
        })
        .await;
    assert_eq!(
        relay.sim.stats().rest_requests,
        asked + 2,
        "it was read and changed, and not fetched"
    );
    assert_eq!(post(&relay, "/channels/main/session/reset", "").await.0, 200);
    let session = relay.sim.session(crate::operator::ROOM);
    let time = |name: &str| clock::parse_rfc3339(session[name].as_str().unwrap());
    relay
        .until("the reset is taken in", |status| {
            let shown = &status["pages"]["sessions"]["main"];
            shown["last_reset"].as_u64() == time("lastReset")
                && shown["created_at"].as_u64() == time("createdAt")
                && shown["provider"] == "twitch"
        })
        .await;
    assert_eq!(relay.sim.stats().rest_requests, asked + 3);
}
