//! The endpoint: who may ask for what, and what is answered.

use astro_relay::app::relay::Relay;
use astro_sim::{Load, Options, Refusal, Sim};
use reqwest::{Client, Response, header};
use serde_json::{Value, json};

use super::{ADMIN, PATIENCE, ROOM, Running, channel};
use crate::support::{
    receiver::{Answer, Receiver},
    relay::configure,
    wait::until,
};

fn hook(url: &str) -> String {
    format!(
        "[sinks.shop]\ntype = \"webhook\"\nurl = {url:?}\nallow_addresses = [\"127.0.0.0/8\"]\n\
         payload = \"data\"\n"
    )
}

#[tokio::test]
async fn changing_needs_the_token_and_a_name_of_ours() {
    let relay = Running::start(&channel(&["channel.tips"])).await;
    let client = Client::builder().no_proxy().build().unwrap();
    for (path, host, token, expected) in [
        ("/status", "localhost", None, 200),
        ("/status", "127.0.0.1:80", None, 200),
        ("/status", "attacker.example", None, 421),
        ("/events", "attacker.example", Some(ADMIN), 421),
        ("/livez", "attacker.example", None, 421),
    ] {
        let mut request = client.get(relay.url(path)).header(header::HOST, host);
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), expected, "{path} at {host}");
        assert!(answer.headers().get(header::ACCESS_CONTROL_ALLOW_ORIGIN).is_none());
        assert_eq!(answer.headers()[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
    }
    for path in ["/reload", "/api/dead-letters/retry", "/api/sinks/shop/retry"] {
        for token in [None, Some("wrong"), Some("")] {
            let mut request = client.post(relay.url(path)).body("{\"sink\":\"shop\"}");
            if let Some(token) = token {
                request = request.bearer_auth(token);
            }
            assert_eq!(request.send().await.unwrap().status(), 401, "{path} with {token:?}");
        }
    }
    // A page of somebody else's asks first, and hears no.
    let preflight = client.request(reqwest::Method::OPTIONS, relay.url("/reload"));
    let preflight = preflight.header(header::ORIGIN, "https://attacker.example");
    let answer = preflight.send().await.unwrap();
    assert_eq!(answer.status(), 401);
    assert!(answer.headers().get(header::ACCESS_CONTROL_ALLOW_ORIGIN).is_none());
    let large = relay.post("/api/dead-letters/retry", &"x".repeat(100_000)).await;
    assert_eq!(large.status(), 413);
}

#[tokio::test]
async fn dead_letters_are_listed_tried_again_and_dropped() {
    let receiver = Receiver::start();
    receiver.script(vec![Answer::Status(422); 3]);
    let relay =
        Running::start(&format!("{}{}", channel(&["channel.tips"]), hook(&receiver.url()))).await;
    relay.subscribed(1).await;
    relay.sink_is("shop", "up").await;
    for n in 1..4 {
        let user = json!({ "username": "<script>", "email": "donor@example.org" });
        relay.sim.publish("channel.tips", ROOM, json!({ "n": n, "donation": { "user": user } }));
    }
    let letters = until("they are set aside", PATIENCE, async || {
        let letters: Value = relay.get("/api/dead-letters").await.json().await.unwrap();
        (letters.as_array().unwrap().len() == 3).then_some(letters)
    })
    .await;
    let text = letters.to_string();
    assert!(text.contains("<script>") && !text.contains("donor@"), "{text}");
    assert_eq!(letters[0]["event"]["message"]["data"]["n"], 3, "the newest first");
    assert_eq!(letters[0]["topic"], "channel.tips");
    let none: Value = relay.get("/api/dead-letters?sink=other").await.json().await.unwrap();
    assert_eq!(none, json!([]));

    for (body, expected) in [("", 400), ("{}", 400), ("{\"all\":true}", 400), ("[1]", 400)] {
        assert_eq!(relay.post("/api/dead-letters/drop", body).await.status(), expected, "{body}");
    }
    let number = letters[0]["number"].as_i64().unwrap();
    let body = json!({ "numbers": [number] }).to_string();
    let dropped: Value = relay.post("/api/dead-letters/drop", &body).await.json().await.unwrap();
    assert_eq!(dropped, json!({ "count": 1 }));
    let body = json!({ "sink": "removed" }).to_string();
    assert_eq!(relay.post("/api/dead-letters/retry", &body).await.status(), 404);
    // What the receiver refused, it takes now.
    let body = json!({ "sink": "shop" }).to_string();
    let retried: Value = relay.post("/api/dead-letters/retry", &body).await.json().await.unwrap();
    assert_eq!(retried, json!({ "count": 2 }));
    until("they are delivered and gone", PATIENCE, async || {
        let letters: Value = relay.get("/api/dead-letters").await.json().await.unwrap();
        (receiver.received().len() == 5 && letters == json!([])).then_some(())
    })
    .await;
    assert_eq!(receiver.numbers(), [1, 2, 3, 1, 2]);
}

/// A destination that is well again: whoever knows it has the sink tried at once.
#[tokio::test]
async fn a_sink_that_waits_is_tried_when_somebody_asks_or_the_configuration_is_loaded_anew() {
    let receiver = Receiver::start();
    let relay =
        Running::start(&format!("{}{}", channel(&["channel.tips"]), hook(&receiver.url()))).await;
    relay.subscribed(1).await;
    relay.sink_is("shop", "up").await;
    for (round, by_reload) in [(1, false), (2, true)] {
        receiver.script([Answer::Status(410)]);
        relay.sim.publish("channel.tips", ROOM, json!({ "n": round }));
        relay.sink_is("shop", "gone").await;
        let ready = relay.get("/readyz").await;
        assert_eq!(ready.status(), 503);
        assert!(ready.text().await.unwrap().contains("sink shop is gone: gone: HTTP 410"));
        if by_reload {
            // Nothing has changed in it; elsewhere something may have.
            assert_eq!(relay.reload().await.0, 200);
        } else {
            assert_eq!(relay.post("/api/sinks/nobody/retry", "").await.status(), 404);
            assert_eq!(relay.post("/api/sinks/shop/retry", "").await.status(), 200);
        }
        relay.sink_is("shop", "up").await;
    }
    assert_eq!(receiver.accepted(), [1, 2]);
}

#[tokio::test]
async fn the_past_that_a_follower_gets_is_bounded_in_bytes() {
    let relay = Running::start(&channel(&["channel.tips"])).await;
    relay.subscribed(1).await;
    let through_the_last = async |mut stream: Response| {
        const LAST: &str = "\"n\":10,";
        let (mut text, mut looked) = (String::new(), 0);
        while !text[looked..].contains(LAST) {
            looked = text.len().saturating_sub(LAST.len());
            text.push_str(std::str::from_utf8(&stream.chunk().await.unwrap().unwrap()).unwrap());
        }
        text
    };
    let live = relay.get("/events?topic=channel.tips").await;
    let text = "x".repeat(1024 * 1024);
    for n in 1..=10 {
        relay.sim.publish("channel.tips", ROOM, json!({ "n": n, "text": text }));
    }
    // All are in.
    through_the_last(live).await;

    let past = through_the_last(relay.get("/events?last=100").await).await;
    assert!(past.len() < 6 * 1024 * 1024, "{} bytes", past.len());
}

#[tokio::test]
async fn followers_see_events_without_personal_data_and_are_limited() {
    let relay = Running::start(&channel(&["channel.tips", "channel.follow"])).await;
    relay.subscribed(2).await;
    let user = json!({ "username": "a\nb", "email": "donor@example.org" });
    relay.sim.publish("channel.tips", ROOM, json!({ "donation": { "user": user } }));
    relay.sim.publish("channel.follow", ROOM, json!({ "n": 1 }));
    relay.until("the first is in", |status| !status["pages"]["last_event"].is_null()).await;

    let mut stream = relay.get("/events?last=10&whole=true&topic=channel.tips").await;
    let first = stream.chunk().await.unwrap().unwrap();
    let text = String::from_utf8(first.to_vec()).unwrap();
    assert!(text.contains("event: channel.tips") && !text.contains("donor@"), "{text}");
    let data = text.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
    let line: Value = serde_json::from_str(data).unwrap();
    assert_eq!(line["channel"], "main");
    assert_eq!(line["message"]["data"]["donation"]["user"], json!({ "username": "a\nb" }));
    assert_eq!(relay.get("/events?topic=a..b").await.status(), 400);

    let mut followers = vec![stream];
    for _ in 1..astro_relay::http::State::FOLLOWERS {
        followers.push(relay.get("/events").await);
    }
    assert!(followers.iter().all(|follower| follower.status() == 200));
    assert_eq!(relay.get("/events").await.status(), 503);
    assert_eq!(relay.get("/status").await.status(), 200, "the others go on");
    followers.pop();
    until("a place is free again", PATIENCE, async || {
        (relay.get("/events").await.status() == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn nobody_is_ready_before_it_has_begun() {
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), Options::default()).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let receiver = Receiver::start();
    let more = format!(
        "[sinks.shop]\ntype = \"webhook\"\nurl = {:?}\nallow_addresses = [\"127.0.0.1\"]\n",
        receiver.url()
    );
    let config = configure(&sim, dir.path(), &["channel.tips", "channel.follow"], &more);
    // Its tasks are there, and none of them has run.
    let relay = Relay::new(config, None).await.unwrap();
    let reasons = relay.status().snapshot().reasons();
    assert_eq!(reasons.len(), 2, "{reasons:?}");
    assert_eq!(reasons[0], "2 subscriptions are not yet asked for");
    assert!(reasons[1].starts_with("sink shop is connecting"), "{reasons:?}");
}

/// A server that refuses with an error text of almost a mebibyte.
#[tokio::test]
async fn an_error_of_any_length_is_told_in_a_few_words() {
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), Options::default()).await.unwrap();
    let long = "err_".to_owned() + &"y".repeat(900_000);
    sim.faults(|faults| faults.refusals.push(Refusal::of(&long).topic("channel.follow")));
    let relay = Running::start_on(sim, &channel(&["channel.tips", "channel.follow"])).await;
    let status = relay
        .until("it is refused", |status| {
            status["pages"]["connections"].to_string().contains("\"refused\"")
        })
        .await;
    assert!(status.to_string().len() < 20_000, "{}", status.to_string().len());
    let text = relay.get("/readyz").await.text().await.unwrap();
    assert!(text.contains("err_yyy") && text.len() < 3000, "{}", text.len());
}

/// A follower that reads on after what it has not read was removed.
#[tokio::test]
async fn a_follower_is_told_what_it_can_no_longer_get() {
    let keep = "journal.keep_delivered = \"0s\"\njournal.memory = \"64KiB\"\n";
    let sink = "[sinks.out]\ntype = \"stdout\"\nformat = \"json\"\ntopics = [\"none\"]\n";
    let relay = Running::start(&format!("{keep}{}{sink}", channel(&["channel.tips"]))).await;
    relay.subscribed(1).await;
    let mut stream = relay.get("/events?topic=channel.tips").await;
    let load = Load {
        messages: 300,
        topic: "channel.tips".into(),
        rooms: vec![ROOM.into()],
        size: 50_000,
        ..Load::default()
    };
    relay.sim.load(&load).await;
    relay
        .until("all is in and removed", |status| {
            let journal = &status["journal"];
            journal["oldest"].as_u64().unwrap() > 250 && journal["last"].as_u64().unwrap() >= 300
        })
        .await;
    let (mut lost, mut text) = (0, String::new());
    until("it is told", PATIENCE, async || {
        let chunk = stream.chunk().await.unwrap()?;
        text.push_str(&String::from_utf8_lossy(&chunk));
        while let Some(end) = text.find("\n\n") {
            let event: String = text.drain(..end + 2).collect();
            if let Some(data) = event.strip_prefix("event: lost\ndata: ") {
                let told: Value = serde_json::from_str(data.trim()).unwrap();
                lost += told["lost"].as_u64().unwrap();
            }
        }
        (lost > 0).then_some(())
    })
    .await;
}
