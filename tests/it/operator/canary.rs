//! No secret anywhere: every credential of a relay is a word that occurs nowhere else, everything that
//! can fail with it fails, everything is logged, and then all that came out is searched for the words.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use astro_sim::{Options, Refusal, Sim};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use reqwest::Client;
use serde_json::json;
use tokio::process::{Child, Command};

use super::{PATIENCE, ROOM};
use crate::support::{
    mosquitto::{self, Mosquitto},
    nats_server::NatsServer,
    process::{free_port, signal},
    receiver::{Answer, Receiver},
    redis_server::{Durability, RedisServer},
    sinks::install_tls,
    wait::until,
};

/// The words. Each is a credential of its own, and long enough to be found by accident nowhere.
const CANARIES: [&str; 13] = [
    "canary-astro-file-token", "canary-astro-plain-token", "canary-mqtt-password",
    "canary-mqtt-refused-password", "canary-nats-token", "canary-nats-password",
    "canary-redis-password", "canary-redis-away-password", "canary-webhook-bearer",
    "canary-webhook-path", "canary-webhook-away-path", "canary-admin-token",
    "canary-shown-by-a-stranger",
];

/// A filter that opens whatever a library could say, module by module.
const EVERYTHING: &str = "trace,tungstenite=trace,tungstenite::protocol=trace,tokio_tungstenite=trace,\
    hyper=trace,hyper_util=trace,h2=trace,reqwest=trace,reqwest::connect=trace,rustls=trace,\
    async_nats=trace,async_nats::connection=trace,rumqttc=trace,rumqttc::state=trace,\
    rumqttc_v5=trace,rumqttc_v4=trace,redis=trace,mio=trace,tokio_util=trace,log=trace";

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
        "log": { "level": EVERYTHING, "format": "json" },
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

/// The relay as a process, and what it says.
struct Daemon {
    child: Child,
    client: Client,
    listen: u16,
    config: PathBuf,
    log: PathBuf,
}

impl Daemon {
    fn start(dir: &Path, sim: &Sim, places: &Places) -> Self {
        let listen = free_port();
        let config = configuration(dir, sim, listen, places);
        let log = dir.join("log");
        let out = std::fs::File::create(&log).unwrap();
        let mut command = relay(&config, &["run"]);
        let child = command.stdout(out.try_clone().unwrap()).stderr(out).spawn().unwrap();
        astro_relay::base::tls::install_provider();
        Self { child, client: Client::builder().no_proxy().build().unwrap(), listen, config, log }
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.listen)
    }

    async fn text(&self, path: &str) -> Option<String> {
        self.client.get(self.url(path)).send().await.ok()?.text().await.ok()
    }

    /// Waits until all of this is in what a path answers.
    async fn wait(&self, what: &str, path: &str, parts: &[&str]) {
        until(what, PATIENCE, async || {
            let text = self.text(path).await?;
            parts.iter().all(|part| text.contains(part)).then_some(())
        })
        .await;
    }

    /// Brings it to everything that can go wrong near a secret.
    /// Answers what the endpoint said to a stranger.
    async fn drive(&self, sim: &Sim) -> Vec<(String, Vec<u8>)> {
        let mut said = Vec::new();
        self.wait("it is subscribed", "/status", &["\"confirmed\"", "\"refused\""]).await;
        for n in 0..3 {
            sim.publish("channel.tips", ROOM, json!({ "n": n }));
        }
        for state in ["mqtt-refused", "nats-away", "redis", "redis-away", "away"] {
            // A login that is refused holds a sink; one that is not there is down.
            until("its sinks fail", PATIENCE, async || {
                let text = self.text("/readyz").await?;
                let is = |word: &str| text.contains(&format!("sink {state} is {word}"));
                (is("down") || is("held")).then_some(())
            })
            .await;
        }
        // Handed over with a token, and once more with one that is worth nothing.
        let handover = |outcome| format!("astro_relay_handovers_total{{outcome=\"{outcome}\"}}");
        sim.drain(None);
        self.wait("it moves", "/metrics", &[&handover("restored")]).await;
        sim.faults(|faults| faults.refuse_reconnect = true);
        sim.drain(None);
        self.wait("it connects again", "/metrics", &[&handover("anew")]).await;
        for token in ["canary-admin-token", "canary-shown-by-a-stranger"] {
            for path in ["/reload", "/api/dead-letters/retry"] {
                let request = self.client.post(self.url(path)).bearer_auth(token);
                let answer = request.body("{\"sink\":\"refused\"}").send().await.unwrap();
                said.push((
                    format!("the answer at {path}"),
                    answer.bytes().await.unwrap().to_vec(),
                ));
            }
        }
        // Configurations that are wrong right behind a secret.
        let sound = std::fs::read_to_string(&self.config).unwrap();
        let syntax = sound.replace("canary-nats-token\"", "canary-nats-token\" oops");
        let unknown = sound.replace("url = \"nats", "urk = \"nats");
        for (wrong, part) in [(syntax, "is not TOML"), (unknown, "urk")] {
            std::fs::write(&self.config, wrong).unwrap();
            signal(self.child.id().unwrap(), "HUP").await;
            self.wait("the reload is refused", "/status", &["\"by\":\"signal\"", part]).await;
        }
        std::fs::write(&self.config, &sound).unwrap();
        said
    }

    /// Ends it; answers all that it and its commands said.
    async fn end(mut self) -> Vec<(String, Vec<u8>)> {
        let mut said: Vec<(String, Vec<u8>)> = Vec::new();
        for path in ["/", "/status", "/metrics", "/readyz", "/api/dead-letters"] {
            said.push((path.into(), self.text(path).await.unwrap().into_bytes()));
        }
        for command in [
            &["status"][..],
            &["status", "--json"],
            &["check"],
            &["check", "--connect"],
            &["send-test"],
            &["dead-letters", "list"],
            &["dead-letters", "show"],
            &["journal", "export"],
            &["session", "show", "--channel", "main"],
        ] {
            let output = relay(&self.config, command).output().await.unwrap();
            said.push((command.join(" "), [output.stdout, output.stderr].concat()));
        }
        signal(self.child.id().unwrap(), "TERM").await;
        assert!(self.child.wait().await.unwrap().success());
        said.push(("the log".into(), std::fs::read(&self.log).unwrap()));
        for entry in std::fs::read_dir(self.config.with_file_name("journal")).unwrap() {
            let path = entry.unwrap().path();
            said.push((path.display().to_string(), std::fs::read(&path).unwrap()));
        }
        said
    }
}

/// Where a word stands in what was said, with some of what stands around it.
fn find(word: &str, said: &[(String, Vec<u8>)]) -> Vec<String> {
    let search = |(place, bytes): &(String, Vec<u8>)| {
        let at = bytes.windows(word.len()).position(|window| window == word.as_bytes())?;
        let around = bytes.get(at.saturating_sub(200)..(at + 100).min(bytes.len()))?;
        Some(format!("{word} in {place}: …{}…", String::from_utf8_lossy(around)))
    };
    said.iter().filter_map(search).collect()
}

#[tokio::test]
async fn no_secret_is_in_a_log_a_metric_a_page_or_the_journal() {
    install_tls();
    let broker = Mosquitto::start(mosquitto::Options::default()).await;
    let strict = mosquitto::Options { extra: "allow_anonymous false\n", ..Default::default() };
    let refusing = Mosquitto::start(strict).await;
    let nats = NatsServer::start("").await;
    let redis = RedisServer::start_with(Durability::Memory, &["--requirepass", "another"]).await;
    let receiver = Receiver::start();
    receiver.script((0..6).map(|n| Answer::Status([422, 500, 401][n % 3])));
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), Options::default()).await.unwrap();
    sim.faults(|faults| {
        faults.refusals.push(Refusal::of("err_unauthorized").topic("channel.follow"));
    });
    let dir = tempfile::tempdir().unwrap();
    let places = Places {
        mqtt: broker.port,
        refusing: refusing.port,
        nats: nats.port,
        redis: redis.server.address.port(),
        webhook: receiver.url(),
        nowhere: free_port(),
    };
    let daemon = Daemon::start(dir.path(), &sim, &places);
    let mut said = daemon.drive(&sim).await;
    said.extend(daemon.end().await);

    // It was really driven to where secrets are near, and really logged: the search finds that.
    for part in [
        "\"level\":\"DEBUG\"",
        "err_unauthorized",
        "the reconnect token was refused",
        "a request came with a wrong admin token",
        "the new configuration was rejected",
        "HTTP 422",
    ] {
        let found = find(part, &said);
        assert!(found.iter().any(|place| place.contains(" in the log: ")), "no {part} in the log");
    }
    let encoded = BASE64_STANDARD.encode(SIGNING);
    let words = CANARIES.iter().copied().chain([SIGNING, &*encoded, "reconnect_token="]);
    let found: Vec<_> = words.flat_map(|word| find(word, &said)).collect();
    assert!(found.is_empty(), "{}", found.join("\n\n"));
}
