//! `astro-relay check --connect` as a process, against real servers whose access lists forbid some of
//! what the sinks would do.

use std::{
    path::Path,
    process::{Output, Stdio},
};

use astro_sim::{Options, RestFault, Sim};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use redis::AsyncCommands as _;
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, net::TcpListener, process::Command};

use crate::support::{
    carry::{PATIENCE, within},
    mosquitto::{self, Mosquitto},
    mount::{Small, may_mount},
    nats_server::NatsServer,
    process::free_port,
    receiver::Receiver,
    redis_server::{Durability, RedisServer},
    wait::until,
};

async fn check(sim: &Sim, sinks: Value) -> Output {
    check_with(sim, json!({ "journal": { "dir": "" }, "sinks": sinks })).await
}

/// With other sections than those of Astro and the channels.
async fn check_with(sim: &Sim, more: Value) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let claims = BASE64_URL_SAFE_NO_PAD.encode(r#"{"exp":4102444800}"#);
    let mut config = json!({
        "astro": { "url": sim.url(), "api_url": sim.api_url() },
        "channels": {
            "main": { "token": format!("e30.{claims}.x"), "topics": ["channel.tips"] },
            "other": { "token": "k", "token_type": "apikey", "topics": ["channel.follow"] },
        },
    });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let file = dir.path().join("astro-relay.toml");
    std::fs::write(&file, toml::to_string(&config).unwrap()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_astro-relay"));
    command.args(["check", "--connect", "--config"]).arg(&file);
    command.stdin(Stdio::null()).kill_on_drop(true);
    within("the check ends", command.output()).await.unwrap()
}

async fn sim() -> Sim {
    Sim::start(([127, 0, 0, 1], 0).into(), Options::default()).await.unwrap()
}

/// The lines that were said, without their margins.
fn lines(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().map(|line| line.trim().to_owned()).collect()
}

fn said(lines: &[String], wanted: &str) {
    assert!(lines.iter().any(|line| line.contains(wanted)), "{wanted:?} in {lines:#?}");
}

fn not_said(lines: &[String], unwanted: &str) {
    assert!(!lines.iter().any(|line| line.contains(unwanted)), "{unwanted:?} in {lines:#?}");
}

#[tokio::test]
async fn far_sides_tell_what_they_can_and_get_no_event() {
    let acl = "topic write astro/main/#\ntopic write old/#\n";
    let options = mosquitto::Options { acl, ..mosquitto::Options::default() };
    let (sim, broker) = (sim().await, Mosquitto::start(options).await);
    let (url, receiver) = (broker.url(), Receiver::start());
    let output = check(
        &sim,
        json!({
            "home": { "type": "mqtt", "url": url, "channels": ["main"] },
            "half": { "type": "mqtt", "url": url, "topics": ["channel.**"] },
            "old": { "type": "mqtt", "url": url, "version": "3.1.1", "topic": "old/{{ topic }}" },
            "own": { "type": "mqtt", "url": url, "topic": "old/{{ data.name }}" },
            "idle": { "type": "mqtt", "url": url, "topics": ["channel.contests"] },
            "hook": { "type": "webhook", "url": receiver.url(), "allow_addresses": ["127.0.0.1"] },
            "gone": { "type": "webhook", "url": format!("http://127.0.0.1:{}/", free_port()),
                "allow_addresses": ["127.0.0.1"] },
            "out": { "type": "stdout" },
        }),
    )
    .await;
    let lines = lines(&output);
    said(&lines, "token of main: expires at 2100-01-01T00:00:00Z, in ");
    said(&lines, "token of other: does not say when it expires");
    said(&lines, "may publish to astro/main/channel/tips, astro/main/relay/gap");
    // The reason is a code, or that the broker hangs up: mosquitto 2.0.11 does either.
    said(&lines, "may not publish to astro/other/channel/follow: ");
    said(&lines, ", asked at astro/other/channel/follow/$check");
    said(&lines, "whether it may publish is not known, MQTT 3.1.1 has no word for a refusal");
    said(&lines, "where some events go depends on their data");
    said(&lines, "nothing that is subscribed goes to this sink");
    said(
        &lines,
        "is not known, a webhook says nothing before it gets one: astro-relay send-test --sink hook",
    );
    not_said(&lines, "--sink out");
    said(&lines, "sink gone (webhook): failed: ");
    let asked: Vec<_> = receiver.received().iter().map(|one| one.method.clone()).collect();
    assert_eq!(asked, [reqwest::Method::OPTIONS], "no event is sent");
    assert_eq!(output.status.code(), Some(69), "two sinks cannot do what they should");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("2 of the subscriptions and sinks"), "{stderr}");
}

#[tokio::test]
async fn the_right_to_publish_state_and_to_home_assistant_is_asked_for() {
    let acl = "topic write astro/+/channel/#\ntopic write astro/+/relay/#\n\
               topic write astro/relay/#\ntopic write astro/+/status/#\n";
    let options = mosquitto::Options { acl, ..mosquitto::Options::default() };
    let (sim, broker) = (sim().await, Mosquitto::start(options).await);
    let home = json!({ "type": "mqtt", "url": broker.url(), "homeassistant": true });
    let output = check(&sim, json!({ "home": home })).await;
    let lines = lines(&output);
    said(&lines, "may publish to astro/main/channel/tips, ");
    said(&lines, ", astro/main/status/$check, ");
    let below = "astro/main/event/tip/$check, astro/other/event/follow/$check";
    said(&lines, &format!("may not publish to {below}: "));
    let discovery = "may not publish to homeassistant/sensor/astro-relay-home/check/config: ";
    said(&lines, discovery);
    let whole = lines.iter().find(|line| line.contains(discovery)).unwrap();
    assert!(!whole.contains("single"), "it is asked exactly: {whole}");
    assert_eq!(output.status.code(), Some(69), "{lines:#?}");
}

#[tokio::test]
async fn rights_to_the_single_topics_of_the_state_are_no_failure() {
    let acl = "topic write astro/+/channel/#\ntopic write astro/+/relay/#\n\
               topic write astro/relay/status\ntopic write astro/relay/diagnostics\n\
               topic write astro/+/status\ntopic write astro/+/event/+\n\
               topic write homeassistant/+/astro-relay-home/+/config\n";
    let options = mosquitto::Options { acl, ..mosquitto::Options::default() };
    let (sim, broker) = (sim().await, Mosquitto::start(options).await);
    let home = json!({ "type": "mqtt", "url": broker.url(), "homeassistant": true });
    let output = check(&sim, json!({ "home": home })).await;
    let lines = lines(&output);
    said(&lines, "astro/main/status/$check, ");
    said(&lines, "if the rights are given for single topics, status shows whether they suffice");
    assert_eq!(output.status.code(), Some(0), "{lines:#?}");
}

/// It can be read once.
#[tokio::test]
async fn a_configuration_from_a_pipe_is_checked_like_a_file() {
    let sim = sim().await;
    let config = json!({
        "astro": { "url": sim.url(), "api_url": sim.api_url() },
        "journal": { "dir": "" },
        "channels": {
            "main": { "token": "k", "token_type": "apikey", "topics": ["channel.follow"] },
        },
        "sinks": { "out": { "type": "stdout" } },
    });
    let mut command = Command::new(env!("CARGO_BIN_EXE_astro-relay"));
    command.args(["check", "--connect", "--config", "/dev/stdin"]).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    pipe.write_all(toml::to_string(&config).unwrap().as_bytes()).await.unwrap();
    drop(pipe);
    let output = within("the check ends", child.wait_with_output()).await.unwrap();
    let lines = lines(&output);
    said(&lines, "token of main: ");
    said(&lines, "main channel.follow: confirmed");
    said(&lines, "sink out (stdout): reachable");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[tokio::test]
async fn an_expiry_in_milliseconds_is_out_of_range() {
    let claims = BASE64_URL_SAFE_NO_PAD.encode(r#"{"exp":4102444800000}"#);
    let channel = json!({ "token": format!("e30.{claims}.x"), "topics": ["channel.tips"] });
    let (channels, sinks) = (json!({ "main": channel }), json!({ "out": { "type": "stdout" } }));
    let more = json!({ "journal": { "dir": "" }, "channels": channels, "sinks": sinks });
    let output = check_with(&sim().await, more).await;
    let lines = lines(&output);
    said(&lines, "token of main: says a time out of range (milliseconds?)");
    not_said(&lines, "expires at");
}

#[tokio::test]
async fn every_address_is_asked_about_however_many_there_are() {
    let labels: Vec<String> = (0..40).map(|number| format!("c{number:02}")).collect();
    let (denied, others) = labels.split_last().unwrap();
    let rights = others.iter().map(|label| format!("topic write astro/{label}/#\n"));
    let acl = rights.collect::<Vec<_>>().concat();
    let options = mosquitto::Options { acl: &acl, ..mosquitto::Options::default() };
    let (sim, broker) = (sim().await, Mosquitto::start(options).await);
    let channel = |label: &String| {
        let topics = ["channel.follow"];
        (label.clone(), json!({ "token": label, "token_type": "apikey", "topics": topics }))
    };
    let channels: Value = labels.iter().map(channel).collect::<serde_json::Map<_, _>>().into();
    let sinks = json!({ "home": { "type": "mqtt", "url": broker.url() } });
    let more = json!({ "journal": { "dir": "" }, "channels": channels, "sinks": sinks });
    let output = check_with(&sim, more).await;
    let lines = lines(&output);
    said(&lines, &format!("may not publish to astro/{denied}/channel/follow: "));
    said(&lines, &format!("may not publish to astro/{denied}/relay/gap: "));
    said(&lines, "may publish to astro/c00/channel/follow, ");
    assert_eq!(output.status.code(), Some(69), "{lines:#?}");
}

#[tokio::test]
async fn a_port_and_a_journal_that_cannot_be_had_are_named() {
    let (sim, other, dir) = (sim().await, Receiver::start(), tempfile::tempdir().unwrap());
    let listen = other.url().replace("http://", "").replace("/hook", "");
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let sinks = json!({ "out": { "type": "stdout" } });
    let of = |journal: &Path| {
        let (sinks, listen) = (sinks.clone(), listen.clone());
        json!({ "http": { "listen": listen }, "journal": { "dir": journal }, "sinks": sinks })
    };
    let output = check_with(&sim, of(&file.join("journal"))).await;
    let found = lines(&output);
    let in_use = format!("http.listen: {listen} is in use by another program: choose another port");
    said(&found, &in_use);
    said(&found, &format!("journal.dir: {} is no directory", file.display()));
    assert_eq!(output.status.code(), Some(69), "{found:#?}");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("the relay could not start like this"), "{stderr}");
    // Without its directory it starts all the same.
    let journal = json!({ "dir": file.join("journal") });
    let silent = json!({ "http": { "listen": "" }, "journal": journal, "sinks": sinks.clone() });
    let output = check_with(&sim, silent).await;
    assert_eq!(output.status.code(), Some(69), "{output:?}");
    let stderr = String::from_utf8_lossy(&output.stderr);
    let in_memory = stderr.contains("the relay would keep events in memory only");
    assert!(in_memory && !stderr.contains("could not start"), "{stderr}");
    // Root may write everywhere but there.
    if may_mount() {
        let small = Small::new(64);
        small.read_only(true);
        let found = lines(&check_with(&sim, of(&small.path().join("a/b"))).await);
        let there =
            format!("journal.dir: {} cannot be written by this user", small.path().display());
        said(&found, &there);
    }
}

#[tokio::test]
async fn a_nats_server_tells_and_its_streams_keep_nothing() {
    let users = r#"authorization { users: [
        { user: relay, password: hunter2, permissions: { publish: { deny: "secret.>" } } }
        { user: all, password: all }
    ] }"#;
    let (sim, server) = (sim().await, NatsServer::start(users).await);
    let (url, user) = (server.url(), async_nats::ConnectOptions::new);
    let context = async_nats::jetstream::new(
        server.client(user().user_and_password("all".into(), "all".into())).await,
    );
    let login = |mut sink: Value| {
        let own = json!({ "type": "nats", "url": url, "user": "relay", "password": "hunter2" });
        sink.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
        sink
    };
    let config = async_nats::jetstream::stream::Config {
        name: "KEPT".into(),
        subjects: vec!["kept.>".into()],
        duplicate_window: std::time::Duration::from_secs(1),
        ..Default::default()
    };
    until("the stream is made", PATIENCE, async || context.create_stream(&config).await.ok()).await;
    let kept = json!({ "jetstream": true, "stream": "KEPT", "subject": "kept.{{ topic }}" });
    let missing = json!({ "jetstream": true, "stream": "MISSING", "subject": "missing.{{ topic }}",
        "create_stream": true, "state": true });
    let output = check(
        &sim,
        json!({
            "core": login(json!({ "topics": ["channel.tips"] })),
            "secret": login(json!({ "subject": "secret.{{ topic }}" })),
            "kept": login(kept),
            "missing": login(missing),
        }),
    )
    .await;
    let lines = lines(&output);
    said(&lines, "the stream \"MISSING\" does not exist yet");
    said(&lines, "the key-value bucket \"astro_state\" (state = true) does not exist yet");
    for name in ["MISSING", "KV_astro_state"] {
        assert!(context.get_stream(name).await.is_err(), "{name} was made");
    }
    said(&lines, "may publish to astro.main.channel.tips");
    said(&lines, "may publish to kept.channel.follow, kept.channel.tips, kept.relay.gap");
    said(&lines, "may not publish to secret.channel.tips: Permissions Violation");
    said(&lines, "give the stream a longer duplicate_window");
    assert_eq!(output.status.code(), Some(69), "{lines:#?}");
    let stream = context.get_stream("KEPT").await.unwrap();
    assert_eq!(stream.cached_info().state.messages, 0, "a question is no event");
}

#[tokio::test]
async fn a_redis_server_tells_and_nothing_is_run() {
    let user = "relay on >hunter2 ~astro:* &astro:* +@all -@admin -@dangerous";
    let more: Vec<&str> = ["--user"].into_iter().chain(user.split(' ')).collect();
    let (sim, server) = (sim().await, RedisServer::start_with(Durability::Memory, &more).await);
    let login = |mut sink: Value| {
        let own =
            json!({ "type": "redis", "url": server.url(), "user": "relay", "password": "hunter2" });
        sink.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
        sink
    };
    let output = check(
        &sim,
        json!({
            "heard": login(json!({ "topics": ["channel.tips"] })),
            "forbidden": login(json!({ "channel": "other:{{ topic }}", "topics": ["channel.tips"] })),
            "kept": login(json!({ "mode": "stream" })),
            "elsewhere": login(json!({ "mode": "stream", "key": "other" })),
        }),
    )
    .await;
    let lines = lines(&output);
    said(&lines, "may publish to astro:main:channel.tips");
    said(&lines, "may publish to astro:events");
    said(&lines, "may not publish to other:channel.tips: NOPERM");
    said(&lines, "may not publish to other: NOPERM");
    not_said(&lines, "is not known");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("2 of the subscriptions and sinks"), "{stderr}");
    let client = redis::Client::open(server.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let there: bool = connection.exists("astro:events").await.unwrap();
    assert!(!there, "a question is no event");
}

#[tokio::test]
async fn without_transactions_redis_is_not_asked() {
    let user = "relay on >hunter2 ~* &* +@all -multi";
    let more: Vec<&str> = ["--user"].into_iter().chain(user.split(' ')).collect();
    let (sim, server) = (sim().await, RedisServer::start_with(Durability::Memory, &more).await);
    let sink = json!({ "type": "redis", "url": server.url(), "user": "relay",
        "password": "hunter2", "mode": "stream" });
    let output = check(&sim, json!({ "kept": sink })).await;
    let lines = lines(&output);
    said(&lines, "is not known, the user may not begin a transaction (MULTI)");
    assert_eq!(output.status.code(), Some(0), "{lines:#?}");
    let client = redis::Client::open(server.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let there: bool = connection.exists("astro:events").await.unwrap();
    assert!(!there, "outside of a transaction nothing is tried");
}

/// A channel whose session or history is to be fetched, and whose id nobody says.
#[tokio::test]
async fn a_token_that_is_no_jwt_and_an_id_that_nobody_says_are_told() {
    // The first revision of the protocol names no room in its answers.
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), Options::first_revision()).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let checked = async |room: Option<&str>| {
        let mut config = json!({
            "astro": { "url": sim.url(), "api_url": sim.api_url() },
            "journal": { "dir": "" },
            "channels": { "main": { "token": "abc", "topics": ["channel.activities"] } },
            "sinks": { "out": { "type": "stdout" } },
        });
        if let Some(room) = room {
            config["channels"]["main"]["room"] = room.into();
        }
        let file = dir.path().join("astro-relay.toml");
        std::fs::write(&file, toml::to_string(&config).unwrap()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_astro-relay"));
        command.args(["check", "--connect", "--config"]).arg(&file).stdin(Stdio::null());
        within("the check ends", command.output()).await.unwrap()
    };
    let output = checked(None).await;
    let unknown = "neither the token nor Astro says the channel's id";
    said(&lines(&output), "token of main: is no JWT, though token_type is jwt");
    said(&lines(&output), unknown);
    assert_eq!(output.status.code(), Some(69), "{output:?}");
    let output = checked(Some("5b2e2007760aeb7729487dab")).await;
    assert!(output.status.success(), "{output:?}");
    not_said(&lines(&output), unknown);
}

#[tokio::test]
async fn a_session_that_cannot_be_fetched_fails_the_check() {
    let sim = sim().await;
    let channel = json!({ "token": "k", "token_type": "apikey",
        "room": "5b2e2007760aeb7729487dab", "topics": ["channel.session.update"] });
    let (channels, sinks) = (json!({ "main": channel }), json!({ "out": { "type": "stdout" } }));
    let more = json!({ "journal": { "dir": "" }, "channels": channels, "sinks": sinks });
    let output = check_with(&sim, more.clone()).await;
    said(&lines(&output), "session of main: fetched, ");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    sim.fail_rest([RestFault::status(401)]);
    let output = check_with(&sim, more).await;
    said(&lines(&output), "session of main: cannot be fetched: HTTP 401: simulated");
    assert_eq!(output.status.code(), Some(69), "{output:?}");
}

#[tokio::test]
async fn an_api_that_does_not_answer_is_asked_for_one_session_only() {
    let (sim, api) = (sim().await, TcpListener::bind("127.0.0.1:0").await.unwrap());
    let channel = |room: &str| {
        json!({ "token": room, "token_type": "apikey", "room": room,
            "topics": ["channel.session.update"] })
    };
    let channels = json!({
        "a": channel("5b2e2007760aeb7729487daa"), "b": channel("5b2e2007760aeb7729487dab"),
        "c": channel("5b2e2007760aeb7729487dac"),
    });
    let api_url = format!("http://{}/kappa/v2", api.local_addr().unwrap());
    let more = json!({
        "astro": { "url": sim.url(), "api_url": api_url }, "channels": channels,
        "journal": { "dir": "" }, "sinks": { "out": { "type": "stdout" } },
    });
    let mut asked = 0;
    let hang_up = async {
        while let Ok(accepted) = api.accept().await {
            drop(accepted);
            asked += 1;
        }
    };
    let output = tokio::select! {
        output = check_with(&sim, more) => output,
        () = hang_up => panic!("nobody can connect any more"),
    };
    let lines = lines(&output);
    for label in ["a", "b", "c"] {
        said(&lines, &format!("session of {label}: cannot be fetched: no answer"));
    }
    assert!((1..=3).contains(&asked), "the attempts at one: {asked}");
    assert_eq!(output.status.code(), Some(69), "{lines:#?}");
}
