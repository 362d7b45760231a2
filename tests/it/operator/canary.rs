//! No secret anywhere: every credential of a relay is a word that occurs nowhere else, everything that
//! can fail with it fails, everything is logged, and then all that came out is searched for the words.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use astro_relay::sim::{Options, Refusal, Sim};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use reqwest::Client;
use serde_json::json;
use tokio::process::{Child, Command};

use super::{PATIENCE, ROOM};
use crate::support::{
    mosquitto::{self, Mosquitto},
    nats_server::NatsServer,
    process::free_port,
    receiver::{Answer, Receiver},
    redis_server::{Durability, RedisServer},
    wait::until,
};

/// The words. Each is a credential of its own, and long enough to be found by accident nowhere.
const CANARIES: [&str; 13] = [
    "canary-astro-file-token",
    "canary-astro-plain-token",
    "canary-mqtt-password",
    "canary-mqtt-refused-password",
    "canary-nats-token",
    "canary-nats-password",
    "canary-redis-password",
    "canary-redis-away-password",
    "canary-webhook-bearer",
    "canary-webhook-path",
    "canary-webhook-away-path",
    "canary-admin-token",
    "canary-shown-by-a-stranger",
];

/// What signs a webhook, as its base64 must look.
const SIGNING: &str = "canary-webhook-signing-secret";

fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// Ports of real servers, and one where nobody is.
struct Places {
    mqtt: u16,
    refusing: u16,
    nats: u16,
    redis: u16,
    webhook: String,
    nowhere: u16,
}

fn configuration(dir: &Path, sim: &Sim, listen: u16, places: &Places) -> PathBuf {
    let Places { mqtt, refusing, nats, redis, webhook, nowhere } = places;
    let file = |name: &str, secret: &str| write(dir, name, secret).display().to_string();
    let journal = dir.join("journal");
    std::fs::create_dir_all(&journal).unwrap();
    let local = ["127.0.0.0/8"];
    let short = "2s";
    let webhooks = json!({
        "refused": { "type": "webhook", "url": webhook, "allow_addresses": local, "timeout": short,
            "bearer_token": "canary-webhook-bearer",
            "secret": format!("whsec_{}", BASE64_STANDARD.encode(SIGNING)) },
        "hidden": { "type": "webhook", "allow_addresses": local, "timeout": short,
            "url_file": file("url", &format!("{webhook}/canary-webhook-path")) },
        "away": { "type": "webhook", "allow_addresses": local, "timeout": short,
            "url_file": file("away", &format!("http://127.0.0.1:{nowhere}/canary-webhook-away-path")) },
    });
    let mut sinks = json!({
        "mqtt": { "type": "mqtt", "url": format!("mqtt://127.0.0.1:{mqtt}"), "user": "relay",
            "password_file": file("mqtt", "canary-mqtt-password"), "timeout": short },
        "mqtt-refused": { "type": "mqtt", "url": format!("mqtt://127.0.0.1:{refusing}"), "timeout": short,
            "user": "relay", "password": "canary-mqtt-refused-password", "version": "3.1.1" },
        "nats": { "type": "nats", "url": format!("nats://127.0.0.1:{nats}"), "timeout": short,
            "token": "canary-nats-token" },
        "nats-away": { "type": "nats", "url": format!("nats://127.0.0.1:{nowhere}"), "user": "relay",
            "password": "canary-nats-password", "timeout": short },
        "redis": { "type": "redis", "url": format!("redis://127.0.0.1:{redis}"), "timeout": short,
            "password_file": file("redis", "canary-redis-password") },
        "redis-away": { "type": "redis", "url": format!("redis://127.0.0.1:{nowhere}"),
            "password": "canary-redis-away-password", "timeout": short },
    });
    sinks.as_object_mut().unwrap().extend(webhooks.as_object().unwrap().clone());
    let config = json!({
        "astro": { "url": sim.url(), "api_url": sim.api_url() },
        "journal": { "dir": journal },
        "http": { "listen": format!("127.0.0.1:{listen}"), "admin_token": "canary-admin-token" },
        "log": { "level": "trace", "format": "json" },
        "channels": {
            "main": { "room": ROOM, "token_file": file("token", "canary-astro-file-token\n"),
                "topics": ["channel.tips"] },
            "other": { "token": "canary-astro-plain-token", "token_type": "oauth2",
                "topics": ["channel.follow"] },
        },
        "sinks": sinks,
    });
    write(dir, "astro-relay.toml", &toml::to_string(&config).unwrap())
}

fn relay(config: &Path, command: &[&str]) -> Command {
    let mut relay = Command::new(env!("CARGO_BIN_EXE_astro-relay"));
    relay.args(command).arg("--config").arg(config).kill_on_drop(true).stdin(Stdio::null());
    relay
}

async fn signal(child: &Child, name: &str) {
    let pid = child.id().unwrap().to_string();
    let sent = Command::new("kill").args(["-s", name, &pid]).status().await.unwrap();
    assert!(sent.success());
}

#[tokio::test]
async fn no_secret_is_in_a_log_a_metric_a_page_or_the_journal() {
    let broker = Mosquitto::start(mosquitto::Options::default()).await;
    let strict = mosquitto::Options { extra: "allow_anonymous false\n", ..Default::default() };
    let refusing = Mosquitto::start(strict).await;
    let nats = NatsServer::start("").await;
    let redis = RedisServer::start(Durability::Memory).await;
    let receiver = Receiver::start();
    receiver.script((0..6).map(|n| Answer::Status([500, 401, 422][n % 3])));
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), Options::default()).await.unwrap();
    sim.faults(|faults| {
        faults.refusals.push(Refusal::of("err_unauthorized").topic("channel.follow"));
    });
    let dir = tempfile::tempdir().unwrap();
    let listen = free_port();
    let places = Places {
        mqtt: broker.port,
        refusing: refusing.port,
        nats: nats.port,
        redis: redis.server.address.port(),
        webhook: receiver.url(),
        nowhere: free_port(),
    };
    let config = configuration(dir.path(), &sim, listen, &places);
    let log = dir.path().join("log");
    let out = std::fs::File::create(&log).unwrap();
    let mut child =
        relay(&config, &["run"]).stdout(out.try_clone().unwrap()).stderr(out).spawn().unwrap();
    let client = Client::builder().no_proxy().build().unwrap();
    let url = |path: &str| format!("http://127.0.0.1:{listen}{path}");
    let text = async |path: &str| client.get(url(path)).send().await.ok()?.text().await.ok();
    let wait = async |what: &str, path: &str, parts: &[&str]| {
        until(what, PATIENCE, async || {
            let text = text(path).await?;
            parts.iter().all(|part| text.contains(part)).then_some(())
        })
        .await;
    };

    wait("it is subscribed", "/status", &["\"confirmed\"", "\"refused\""]).await;
    for n in 0..3 {
        sim.publish("channel.tips", ROOM, json!({ "n": n }));
    }
    for state in ["mqtt-refused", "nats-away", "redis-away", "away"] {
        let part = format!("sink {state} is down");
        wait("its sinks fail", "/readyz", &[&part]).await;
    }
    // Handed over with a token, and once more with one that is worth nothing.
    sim.drain(None);
    wait("it moves", "/metrics", &["astro_relay_handovers_total{outcome=\"restored\"}"]).await;
    sim.faults(|faults| faults.refuse_reconnect = true);
    sim.drain(None);
    wait("it connects anew", "/metrics", &["astro_relay_handovers_total{outcome=\"anew\"}"]).await;
    for token in ["canary-admin-token", "canary-shown-by-a-stranger"] {
        for path in ["/reload", "/api/dead-letters/retry"] {
            let request = client.post(url(path)).bearer_auth(token).body("{\"sink\":\"refused\"}");
            request.send().await.unwrap();
        }
    }
    // A configuration that is wrong right behind a secret.
    let sound = std::fs::read_to_string(&config).unwrap();
    let broken = sound.replace("canary-nats-token\"", "canary-nats-token\" oops");
    std::fs::write(&config, broken).unwrap();
    signal(&child, "HUP").await;
    wait("the reload is refused", "/status", &["\"by\":\"signal\"", "is not TOML"]).await;
    std::fs::write(&config, sound.replace("url = \"nats", "urk = \"nats")).unwrap();
    signal(&child, "HUP").await;
    wait("the reload is refused", "/status", &["\"by\":\"signal\"", "urk"]).await;
    std::fs::write(&config, &sound).unwrap();

    let mut said: Vec<(String, Vec<u8>)> = Vec::new();
    for path in ["/", "/status", "/metrics", "/readyz", "/api/dead-letters"] {
        said.push((path.into(), text(path).await.unwrap().into_bytes()));
    }
    for command in [&["status"][..], &["check"], &["check", "--connect"], &["send-test"]] {
        let output = relay(&config, command).output().await.unwrap();
        said.push((command.join(" "), [output.stdout, output.stderr].concat()));
    }
    signal(&child, "TERM").await;
    assert!(child.wait().await.unwrap().success());
    let log = std::fs::read(&log).unwrap();
    let text = String::from_utf8_lossy(&log).into_owned();
    // It was really driven to where secrets are near, and really logged.
    for part in [
        "\"level\":\"TRACE\"",
        "\"level\":\"DEBUG\"",
        "err_unauthorized",
        "the reconnect token was refused",
        "a request came with a wrong admin token",
        "the new configuration cannot be used",
        "without any password configured",
        "HTTP 422",
    ] {
        assert!(text.contains(part), "the log has no {part}");
    }
    said.push(("the log".into(), log));
    for entry in std::fs::read_dir(dir.path().join("journal")).unwrap() {
        let path = entry.unwrap().path();
        said.push((path.display().to_string(), std::fs::read(&path).unwrap()));
    }

    let all: usize = said.iter().map(|(_, bytes)| bytes.len()).sum();
    assert!(all > 50_000, "everything was said at the finest level: {all} bytes");
    let encoded = BASE64_STANDARD.encode(SIGNING);
    let words = CANARIES.iter().copied().chain([SIGNING, &*encoded, "reconnect_token="]);
    let mut found = Vec::new();
    for word in words {
        for (place, bytes) in &said {
            if let Some(at) = bytes.windows(word.len()).position(|window| window == word.as_bytes())
            {
                let around = bytes.get(at.saturating_sub(200)..(at + 100).min(bytes.len()));
                let around = String::from_utf8_lossy(around.unwrap_or_default()).into_owned();
                found.push(format!("{word} in {place}: …{around}…"));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n\n"));
}
