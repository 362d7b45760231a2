//! The REST API and the control side.

use std::time::Duration;

use astro_sim::{
    ActivitiesQuery, Documents, MessageIds, OAuthClient, Options, ResetAnswer, RestFault, Secret,
    SessionKeys, SessionReset, SessionUpdate, Token,
};
use serde_json::{Value, json};

use crate::{
    OTHER, ROOM,
    client::{Client, request, request_as, request_with},
    start,
};

const SESSIONS: &str = "/kappa/v2/sessions";

#[tokio::test]
async fn a_session_is_read_changed_and_reset() {
    let sim = start(Options::default()).await;
    let mut client = Client::welcomed(&sim).await;
    for topic in ["channel.session.update", "channel.session.reset"] {
        client.subscribe(topic, ROOM).await;
    }
    let path = format!("{SESSIONS}/{ROOM}");
    let session = request(&sim, "GET", &path, "").await.unwrap().json();
    assert_eq!(session["channel"], ROOM);
    assert_eq!(session["data"]["follower-latest"]["name"], "");
    assert_eq!(session["settings"]["autoReset"], true);

    let body = r#"{"follower-latest":{"name":"mossy"}}"#;
    assert_eq!(request(&sim, "PUT", &path, body).await.unwrap().status, 200);
    let update = client.json().await;
    assert_eq!(update["topic"], "channel.session.update");
    let expected = json!({ "key": "follower-latest", "name": "follower-latest",
        "data": { "name": "mossy" }, "provider": "twitch", "channel": ROOM });
    assert_eq!(update["data"], expected);
    let answer = request(&sim, "PUT", &format!("{path}/reload"), "").await.unwrap();
    assert_eq!(answer.json()["data"]["follower-latest"]["name"], "mossy");

    let fresh = request(&sim, "PUT", &format!("{path}/reset"), "").await.unwrap().json();
    assert_ne!(fresh["_id"], session["_id"]);
    let reset = client.json().await;
    assert_eq!(reset["topic"], "channel.session.reset");
    assert_eq!(reset["data"]["follower-latest"]["name"], "mossy", "a reset keeps the latest");

    let settings = format!("{path}/settings");
    let changed = request(&sim, "PUT", &settings, r#"{"calendar":true}"#).await.unwrap().json();
    assert_eq!(changed, json!({ "autoReset": true, "calendar": true }));
    assert_eq!(request(&sim, "GET", &settings, "").await.unwrap().json(), changed);
    assert_eq!(request(&sim, "PUT", &path, "[]").await.unwrap().status, 400);
}

#[tokio::test]
async fn session_messages_have_the_older_form_too() {
    let options = Options {
        session_keys: SessionKeys::Older,
        session_reset: SessionReset::Session,
        ..Options::default()
    };
    let sim = start(options).await;
    let mut client = Client::welcomed(&sim).await;
    for topic in ["channel.session.update", "channel.session.reset"] {
        client.subscribe(topic, ROOM).await;
    }
    let follow = json!({ "type": "follow", "data": { "username": "mossy" } });
    sim.activity(ROOM, follow);
    assert_eq!(client.json().await["data"]["key"], "latest_follower");
    sim.reset_session(ROOM);
    loop {
        let message = client.json().await;
        if message["topic"] == "channel.session.reset" {
            assert_eq!(message["data"]["session"]["channel"], ROOM);
            break;
        }
    }
}

#[tokio::test]
async fn the_older_documents_are_supported_too() {
    let options = Options { reload: false, reset_answer: ResetAnswer::Ok, ..Options::march_2026() };
    assert_eq!(options.session_update, SessionUpdate::Value);
    assert_eq!(options.documents, Documents::March2026);
    let sim = start(options).await;
    let mut client = Client::welcomed(&sim).await;
    client.subscribe("channel.session.update", ROOM).await;
    let path = format!("{SESSIONS}/{ROOM}");
    let body = r#"{"follower-latest":{"name":"mossy"}}"#;
    let session = request(&sim, "PUT", &path, body).await.unwrap().json();
    assert_eq!(session.get("__v"), None);
    let update = client.json().await;
    assert_eq!(update["data"], json!({ "key": "follower-latest", "data": { "name": "mossy" } }));
    let reload = request(&sim, "PUT", &format!("{path}/reload"), "").await.unwrap();
    assert_eq!(reload.status, 404);
    let reset = request(&sim, "PUT", &format!("{path}/reset"), "").await.unwrap();
    assert_eq!((reset.status, reset.body.as_str()), (200, "ok"));
    let session = request(&sim, "GET", &path, "").await.unwrap().json();
    assert_eq!(session["data"]["follower-latest"]["name"], "");
}

#[tokio::test]
async fn an_update_names_the_activity_that_caused_it() {
    let sim = start(Options::default()).await;
    let mut client = Client::welcomed(&sim).await;
    client.subscribe("channel.session.update", ROOM).await;
    let follow = json!({ "type": "follow", "provider": "kick", "data": { "username": "mossy" } });
    let id = sim.activity(ROOM, follow);
    let update = client.json().await;
    assert_eq!(update["data"]["data"], json!({ "name": "mossy", "activityId": id }));
    assert_eq!(update["data"]["provider"], "kick");
    let session = sim.session(ROOM);
    assert_eq!(session["data"]["follower-latest"], json!({ "name": "mossy" }));
    assert_eq!((&session["__v"], &session["settings"]["resetOnStart"]), (&json!(0), &json!(false)));
}

#[tokio::test]
async fn tips_and_redemptions_are_listed_a_page_at_a_time() {
    let sim = start(Options::default()).await;
    for n in 0..3 {
        let tip = json!({ "_id": n.to_string(), "createdAt": format!("2026-01-01T00:00:0{n}Z") });
        sim.publish("channel.tips", ROOM, &tip);
    }
    sim.publish("channel.loyalty.redemptions", ROOM, json!({ "_id": "r" }));
    let list = async |path: &str| -> (Vec<Value>, Value) {
        let page = request(&sim, "GET", &format!("/kappa/v2/{path}"), "").await.unwrap().json();
        let ids = page["docs"].as_array().unwrap().iter().map(|doc| doc["_id"].clone());
        (ids.collect(), page["total"].clone())
    };
    let ids = |all: &[&str]| all.iter().map(|&id| Value::from(id)).collect::<Vec<_>>();
    let tips = format!("tips/{ROOM}");
    assert_eq!(list(&tips).await, (ids(&["2", "1", "0"]), json!(3)));
    let oldest = list(&format!("{tips}?sort=createdAt&limit=2")).await;
    assert_eq!(oldest, (ids(&["0", "1"]), json!(3)));
    assert_eq!(list(&format!("{tips}?limit=2&offset=2")).await, (ids(&["0"]), json!(3)));
    let span = "after=2026-01-01T00:00:01Z&before=2026-01-01T00:00:01Z";
    assert_eq!(list(&format!("{tips}?{span}")).await, (ids(&["1"]), json!(1)));
    assert_eq!(list(&format!("store/{ROOM}/redemptions")).await, (ids(&["r"]), json!(1)));
    // The list of redemptions knows no time.
    let redemptions = format!("store/{ROOM}/redemptions?after=2099-01-01T00:00:00Z");
    assert_eq!(list(&redemptions).await, (ids(&["r"]), json!(1)));
    sim.publish("channel.loyalty.redemptions", ROOM, json!({ "_id": "d", "completed": true }));
    let pending = format!("store/{ROOM}/redemptions?pending=true");
    assert_eq!(list(&pending).await, (ids(&["r"]), json!(1)));
    let sorted =
        json!({ "_id": "3", "createdAt": "2025-01-01T00:00:00Z", "donation": { "amount": 9 } });
    sim.publish("channel.tips", ROOM, sorted);
    let dearest = list(&format!("{tips}?sort=-donation.amount&limit=1")).await;
    assert_eq!(dearest, (ids(&["3"]), json!(4)));
    assert_eq!(list(&format!("{tips}?sort=createdAt&limit=1")).await, (ids(&["3"]), json!(4)));
    for bad in ["sort=amount", "offset=-1", "limit=101"] {
        let answer = request(&sim, "GET", &format!("/kappa/v2/{tips}?{bad}"), "").await.unwrap();
        assert_eq!(answer.status, 400, "{bad}");
    }
}

#[tokio::test]
async fn a_moderated_tip_is_pending_or_recent() {
    let sim = start(Options::default()).await;
    for (id, approved) in [("a", "pending"), ("b", "pending"), ("a", "allowed")] {
        let tip = json!({ "_id": id, "approved": approved });
        sim.publish("channel.tips.moderation", ROOM, tip);
    }
    let path = format!("/kappa/v2/tips/{ROOM}/moderation");
    let answer = request(&sim, "GET", &path, "").await.unwrap().json();
    let expected = json!({
        "recent": [{ "_id": "a", "approved": "allowed" }],
        "pending": [{ "_id": "b", "approved": "pending" }],
    });
    assert_eq!(answer, expected);
}

#[tokio::test]
async fn the_list_of_activities_can_want_its_parameters() {
    let complete = "after=0&before=9999999999999&limit=25&mincheer=0&minhost=0&minsub=0&mintip=0&origin=x&types=follow";
    for (activities, bare) in [
        (ActivitiesQuery::AsSent, (200, 1)),
        (ActivitiesQuery::ListedTypes, (200, 0)),
        (ActivitiesQuery::PublishedTypes, (200, 0)),
        (ActivitiesQuery::Complete, (400, 0)),
    ] {
        let sim = start(Options { activities, ..Options::default() }).await;
        sim.activity(ROOM, json!({ "type": "follow", "data": { "username": "mossy" } }));
        for (query, (status, count)) in [("limit=25", bare), (complete, (200, 1))] {
            let path = format!("/kappa/v2/activities/{ROOM}?{query}");
            let answer = request(&sim, "GET", &path, "").await.unwrap();
            assert_eq!(answer.status, status, "{activities:?} {query}");
            let listed = answer.json().as_array().map_or(0, Vec::len);
            assert_eq!(listed, count, "{activities:?} {query}");
        }
        let path = format!("/kappa/v2/activities/{ROOM}?{complete}&types=kicks");
        let expected = if activities == ActivitiesQuery::PublishedTypes { 400 } else { 200 };
        assert_eq!(request(&sim, "GET", &path, "").await.unwrap().status, expected);
    }
}

#[tokio::test]
async fn each_kind_of_token_has_its_scheme_and_its_scopes() {
    let typed = |token: &str, kind: &str, scope: &str| Token {
        token_type: Some(kind.to_owned()),
        scopes: vec![scope.to_owned()],
        ..Token::owner(token, ROOM)
    };
    let tokens = vec![
        typed("jwt", "jwt", "*"),
        typed("oauth", "oauth2", "session:read"),
        typed("key", "apikey", "tips:read"),
    ];
    let sim = start(Options { tokens, ..Options::default() }).await;
    for (authorization, path, status) in [
        ("Bearer jwt", "sessions", 200),
        ("OAuth jwt", "sessions", 401),
        ("OAuth oauth", "sessions", 200),
        ("oAuth oauth", "sessions", 200),
        ("Bearer oauth", "sessions", 401),
        ("OAuth oauth", "tips", 403),
        ("Bearer key", "tips", 200),
        ("Bearer key", "activities", 403),
        ("Basic jwt", "sessions", 401),
    ] {
        let answer = request_with(&sim, authorization, &format!("/kappa/v2/{path}/{ROOM}")).await;
        assert_eq!(answer.status, status, "{authorization} {path}");
    }
}

#[tokio::test]
async fn an_access_token_is_refreshed_and_the_refresh_token_replaced() {
    let client = OAuthClient {
        id: "app".to_owned(),
        secret: Secret::new("app-secret"),
        refresh_token: Secret::new("first"),
        rooms: vec![ROOM.to_owned()],
        scopes: vec!["session:read".to_owned()],
        lifetime: Duration::from_hours(7 * 24),
        reusable: false,
    };
    let tokens = vec![Token::owner("mine", ROOM)];
    let sim = start(Options { tokens, clients: vec![client], ..Options::default() }).await;
    let refresh = async |grant: &str, secret: &str, token: &str| {
        let body = format!(
            "grant_type={grant}&client_id=app&client_secret={secret}&refresh_token={token}"
        );
        request(&sim, "POST", "/oauth2/token", &body).await.unwrap()
    };
    let first = refresh("refresh_token", "app-secret", "first").await.json();
    assert_eq!((&first["expires_in"], &first["scope"]), (&json!(604_800), &json!("session:read")));
    let authorization = format!("OAuth {}", first["access_token"].as_str().unwrap());
    let path = format!("{SESSIONS}/{ROOM}");
    assert_eq!(request_with(&sim, &authorization, &path).await.status, 200);
    let next = first["refresh_token"].as_str().unwrap();
    assert_eq!(refresh("refresh_token", "app-secret", next).await.status, 200);
    for (grant, secret, token, status, error) in [
        ("refresh_token", "app-secret", "first", 400, "invalid_grant"),
        ("refresh_token", "other", "first", 401, "invalid_client"),
        ("password", "app-secret", "first", 400, "unsupported_grant_type"),
    ] {
        let answer = refresh(grant, secret, token).await;
        assert_eq!((answer.status, &answer.json()["error"]), (status, &json!(error)), "{error}");
    }
}

#[tokio::test]
async fn ids_may_differ_by_connection() {
    let sim = start(Options { message_ids: MessageIds::PerConnection, ..Options::default() }).await;
    let (mut one, mut other) = (Client::welcomed(&sim).await, Client::welcomed(&sim).await);
    one.subscribe("channel.tips", ROOM).await;
    other.subscribe("channel.tips", ROOM).await;
    sim.publish("channel.tips", ROOM, json!({ "_id": "1" }));
    let (one, other) = (one.json().await, other.json().await);
    assert_ne!(one["id"], other["id"]);
    assert_eq!(one["data"], other["data"]);
}

#[tokio::test]
async fn the_history_lists_what_was_published() {
    let sim = start(Options::default()).await;
    let mut client = Client::welcomed(&sim).await;
    client.subscribe("channel.activities", ROOM).await;
    for (kind, amount) in [("tip", 5), ("cheer", 100), ("tip", 9)] {
        let data = json!({ "username": "mossy", "amount": amount });
        let id = sim.activity(ROOM, json!({ "type": kind, "data": data }));
        let live = client.json().await["data"].clone();
        assert_eq!((&live["_id"], &live["activityId"]), (&json!(id), &json!(id)));
    }
    let path = format!("/kappa/v2/activities/{ROOM}");
    let all = request(&sim, "GET", &path, "").await.unwrap().json();
    let amounts = |page: &Value| {
        let page = page.as_array().unwrap().iter();
        page.map(|item| item["data"]["amount"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(amounts(&all), [9, 100, 5], "newest first");
    let tips = request(&sim, "GET", &format!("{path}?types=tip&limit=1"), "").await.unwrap();
    assert_eq!(amounts(&tips.json()), [9]);
    assert_eq!(request(&sim, "GET", &format!("{path}?limit=1000"), "").await.unwrap().status, 400);
    let top = format!("{SESSIONS}/{ROOM}/top?type=tip&interval=alltime");
    let top = request(&sim, "GET", &top, "").await.unwrap().json();
    assert_eq!(top["users"], json!([{ "username": "mossy", "amount": 14.0 }]));
}

#[tokio::test]
async fn the_api_wants_a_bearer_token_for_the_channel() {
    let options = Options { tokens: vec![Token::owner("mine", ROOM)], ..Options::default() };
    let sim = start(options).await;
    let status = async |token, room| {
        let path = format!("{SESSIONS}/{room}");
        request_as(&sim, token, "GET", &path, "").await.unwrap()
    };
    assert_eq!(status(Some("mine"), ROOM).await.status, 200);
    assert_eq!(status(Some("other"), ROOM).await.status, 401);
    assert_eq!(status(Some("mine"), OTHER).await.status, 403);
    let missing = status(None, ROOM).await;
    assert_eq!(missing.status, 401);
    assert!(missing.body.starts_with(r#""error":"#) || !missing.body.starts_with('{'));
    assert!(serde_json::from_str::<Value>(&missing.body).is_err());
    let error = status(Some("other"), ROOM).await.json();
    assert_eq!(
        error,
        json!({ "statusCode": 401, "error": "Unauthorized", "message": "invalid token" })
    );
    let sim = start(Options::default()).await;
    assert_eq!(request(&sim, "GET", &format!("{SESSIONS}/short"), "").await.unwrap().status, 400);
}

#[tokio::test]
async fn the_api_fails_as_told() {
    let sim = start(Options::default()).await;
    let path = format!("{SESSIONS}/{ROOM}");
    sim.fail_rest([
        RestFault::Status { status: 429, retry_after: Some("7".into()), broken_body: true },
        RestFault::status(503),
        RestFault::Pass,
        RestFault::DropAfter,
        RestFault::Delay(Duration::from_millis(20)),
    ]);
    let answer = request(&sim, "GET", &path, "").await.unwrap();
    assert_eq!(answer.status, 429);
    assert!(answer.head.contains("retry-after: 7") && !answer.body.starts_with('{'));
    assert_eq!(request(&sim, "GET", &path, "").await.unwrap().status, 503);
    assert_eq!(request(&sim, "GET", &path, "").await.unwrap().status, 200);
    let body = r#"{"tip-goal":{"amount":3}}"#;
    assert!(request(&sim, "PUT", &path, body).await.is_none(), "no answer");
    assert_eq!(sim.session(ROOM)["data"]["tip-goal"]["amount"], 3, "but it is done");
    assert_eq!(request(&sim, "GET", &path, "").await.unwrap().status, 200);
    assert_eq!(sim.stats().rest_requests, 5);
}

#[tokio::test]
async fn a_request_without_an_upgrade_is_not_for_the_gateway() {
    let sim = start(Options::default()).await;
    for path in ["/", "/index.html", "/?reconnect_token=x", "/kappa/v2/users"] {
        let answer = request(&sim, "GET", path, "").await;
        assert_eq!(answer.unwrap().status, 404, "{path}");
    }
    assert!(sim.attempts().is_empty());
}

#[tokio::test]
async fn a_request_that_hangs_ends_with_the_simulation() {
    let sim = start(Options::default()).await;
    sim.fail_rest([RestFault::Hang]);
    let stream = tokio::net::TcpStream::connect(sim.address()).await.unwrap();
    let get =
        format!("GET {SESSIONS}/{ROOM} HTTP/1.1\r\nHost: s\r\nAuthorization: Bearer t\r\n\r\n");
    let (mut read, mut write) = stream.into_split();
    tokio::io::AsyncWriteExt::write_all(&mut write, get.as_bytes()).await.unwrap();
    crate::wait::until("it hangs", crate::client::SOON, async || {
        (sim.stats().rest_requests == 1).then_some(())
    })
    .await;
    sim.stop().await;
    let mut rest = Vec::new();
    let reading = tokio::io::AsyncReadExt::read_to_end(&mut read, &mut rest);
    tokio::time::timeout(crate::client::SOON, reading).await.expect("it ends").unwrap();
}

#[tokio::test]
async fn the_simulation_is_controlled_from_outside() {
    let sim = start(Options::default()).await;
    let mut client = Client::welcomed(&sim).await;
    client.subscribe("channel.tips", ROOM).await;
    let post = async |path: &str, body: &str| {
        request(&sim, "POST", &format!("/control/{path}"), body).await.unwrap()
    };
    let to = format!("publish?topic=channel.tips&room={ROOM}");
    let id = post(&to, r#"{"a":1}"#).await.json()["id"].clone();
    assert_eq!(client.json().await["id"], id);
    assert_eq!(post(&to, "no json").await.status, 400);

    let raw = format!(r#"{{"type":"message", "topic":"channel.tips","room":"{ROOM}"}}"#);
    assert_eq!(post("raw", &raw).await.json()["connections"], 1);
    assert_eq!(client.text().await, raw);

    let load = format!("load?n=10&topic=channel.tips&rooms={ROOM},{OTHER}");
    let loaded = post(&load, "").await.json();
    assert_eq!((&loaded["messages"], &loaded["sent"]), (&json!(10), &json!(5)));
    for n in (0..10).step_by(2) {
        assert_eq!(client.json().await["data"]["n"], n);
    }
    let follow = r#"{"type":"follow","data":{"username":"mossy"}}"#;
    assert!(post(&format!("activity?room={ROOM}"), follow).await.json()["_id"].is_string());
    assert_eq!(post("drain", "").await.json()["told"], 1);
    assert_eq!(client.json().await["type"], "reconnect");

    let stats = request(&sim, "GET", "/control/stats", "").await.unwrap().json();
    assert_eq!((&stats["open"], &stats["sent"]), (&json!(1), &json!(7)));
    let connections = request(&sim, "GET", "/control/connections", "").await.unwrap();
    assert_eq!(connections.json()[0]["subscriptions"], json!([["channel.tips", ROOM]]));
}

#[tokio::test]
async fn every_fault_can_be_caused_from_outside() {
    let sim = start(Options::default()).await;
    let mut client = Client::welcomed(&sim).await;
    let fault = async |query: &str| {
        let path = format!("/control/fault?kind={query}");
        request(&sim, "POST", &path, "").await.unwrap().status
    };
    for query in [
        "malformed&what=binary",
        "error&error=err_internal_error&topic=channel.tips&times=1",
        "no_errors",
        "refuse_reconnect",
        "duplicate&on=false",
        "upgrade_delay&ms=0",
        "welcome_delay&ms=0",
        "response_delay&ms=0",
        "answer_delay&ms=0",
        "trickle&ms=0",
        "refuse&status=429&retry_after=2&times=1",
        "deaf&times=1",
        "accept",
        "rest_status&status=500&times=1",
        "shut&ms=1",
        "silent&connection=1&on=false",
        "close&code=4000&connection=1",
    ] {
        // The port opens again within moments after it was shut.
        assert_eq!(fault(query).await, 204, "{query}");
        crate::wait::until("the port is open", crate::client::SOON, async || {
            tokio::net::TcpStream::connect(sim.address()).await.ok()
        })
        .await;
    }
    assert!(client.frame().await.unwrap().unwrap().is_binary());
    assert_eq!(client.end().await.unwrap(), Some(4000));
    for query in ["nonsense", "malformed&what=nothing"] {
        assert_eq!(fault(query).await, 400, "{query}");
    }
    sim.faults(|faults| {
        assert!(faults.refuse_reconnect && !faults.duplicate && faults.refusals.is_empty());
        assert_eq!(faults.next.len(), 2);
    });
}
