//! Reloading the configuration.

use std::{sync::mpsc, time::Duration};

use astro_relay::{
    app::relay::Relay,
    loading::{Sources, load},
};
use astro_sim::{Options as SimOptions, Refusal, Sim, Token};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::oneshot, time::Instant};

use super::{PATIENCE, ROOM, Running, channel};
use crate::support::{
    daemon::Relay as Daemon,
    mosquitto::{Listener, Mosquitto, Options},
    wait::until,
};

fn mqtt(name: &str, url: &str, more: &str) -> String {
    format!(
        "[sinks.{name}]\ntype = \"mqtt\"\nurl = {url:?}\ntopic = \"{name}/{{{{ topic }}}}\"\n\
         payload = \"data\"\n{more}\n"
    )
}

fn publish(relay: &Running, topic: &str, numbers: std::ops::Range<u64>) {
    for n in numbers {
        relay.sim.publish(topic, ROOM, json!({ "n": n }));
    }
}

#[tokio::test]
async fn channels_and_sinks_come_go_and_change_and_nothing_is_lost() {
    let broker = Mosquitto::start(Options::default()).await;
    let home = Listener::start(broker.port, "home/#").await;
    let second = Listener::start(broker.port, "second/#").await;
    let stuck = Listener::start(broker.port, "stuck/#").await;
    // Accepts, and never says a word: connecting to it takes the sink's whole timeout.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nowhere = format!("mqtt://{}", silent.local_addr().unwrap());
    let (ours, gone) = (broker.url(), mqtt("gone", &broker.url(), ""));
    let first = format!(
        "{}{}{}{gone}",
        channel(&["channel.tips"]),
        mqtt("home", &ours, ""),
        mqtt("stuck", &nowhere, "timeout = \"1h\"")
    );
    let relay = Running::start(&first).await;
    relay.subscribed(1).await;
    relay.sink_is("home", "up").await;
    publish(&relay, "channel.tips", 1..4);
    home.wait_for(3).await;

    relay.rewrite(&format!(
        "{}{}{}{}",
        channel(&["channel.tips", "channel.follow"]),
        mqtt("home", &ours, "qos = 2"),
        mqtt("stuck", &ours, ""),
        mqtt("second", &ours, "")
    ));
    let before = Instant::now();
    let (code, report) = relay.reload().await;
    // The stuck sink has its deadline of 8 s with the supervisor; nobody waits for it here.
    assert!(before.elapsed() < Duration::from_secs(6), "{:?}", before.elapsed());
    assert_eq!(code, 200, "{report}");
    for (key, expected) in [
        ("channels_changed", json!(["main"])),
        ("sinks_added", json!(["second"])),
        ("sinks_removed", json!(["gone"])),
        ("sinks_changed", json!(["home", "stuck"])),
        ("needs_restart", json!([])),
        ("problems", json!([])),
    ] {
        assert_eq!(report[key], expected, "{key}: {report}");
    }
    relay.subscribed(2).await;
    publish(&relay, "channel.tips", 4..6);
    publish(&relay, "channel.follow", 6..8);
    home.wait_for(7).await;
    second.wait_for(4).await;
    stuck.wait_for(7).await;
    assert_eq!(home.numbers(), (1..8).collect::<Vec<_>>(), "each once, in order");
    assert_eq!(second.numbers(), (4..8).collect::<Vec<_>>(), "a new sink begins now");
    assert_eq!(stuck.numbers(), (1..8).collect::<Vec<_>>(), "its place was kept");
    let status =
        relay.until("the page is gone", |status| status["pages"]["sinks"]["gone"].is_null()).await;
    assert_eq!(status["pages"]["reload"]["by"], "http");

    // What went and comes back goes on where it was.
    relay.rewrite(&format!("{}{}", channel(&["channel.tips"]), mqtt("home", &ours, "qos = 2")));
    assert_eq!(relay.reload().await.1["sinks_removed"], json!(["second", "stuck"]));
    relay.subscribed(1).await;
    relay.until("they are gone", |status| status["pages"]["sinks"]["stuck"].is_null()).await;
    publish(&relay, "channel.tips", 8..10);
    home.wait_for(9).await;
    relay.rewrite(&format!(
        "{}{}{}",
        channel(&["channel.tips"]),
        mqtt("home", &ours, "qos = 2"),
        mqtt("second", &ours, "")
    ));
    assert_eq!(relay.reload().await.1["sinks_added"], json!(["second"]));
    second.wait_for(6).await;
    assert_eq!(second.numbers(), (4..10).collect::<Vec<_>>());
}

/// It may have been renamed by somebody who does not know that its name is the place of its cursor.
#[tokio::test]
async fn what_waits_for_a_removed_sink_is_said_at_a_reload_and_at_a_start() {
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), SimOptions::default()).await.unwrap();
    let sink = "[sinks.shop]\ntype = \"webhook\"\nurl = \"http://127.0.0.1:9/\"\n\
                allow_addresses = [\"127.0.0.0/8\"]\n";
    let mut relay = Daemon::new(&sim.url(), &sim.api_url(), "channel.tips", ROOM, sink);
    relay.start();
    let figure = async |begin: &str| {
        let metrics = relay.get("/metrics").await?;
        let line = metrics.lines().find(|line| line.starts_with(begin))?;
        line.rsplit(' ').next()?.parse::<f64>().ok()
    };
    until("it is subscribed", PATIENCE, async || {
        figure("astro_relay_subscriptions{state=\"confirmed\"").await.filter(|n| *n > 0.0)
    })
    .await;
    for n in 0..20 {
        sim.publish("channel.tips", ROOM, json!({ "n": n }));
    }
    until("they wait", PATIENCE, async || {
        figure("astro_relay_sink_lag_events{sink=\"shop\"").await.filter(|n| *n >= 20.0)
    })
    .await;
    let config = std::fs::read_to_string(relay.config()).unwrap();
    std::fs::write(relay.config(), config.replace("sinks.shop", "sinks.renamed")).unwrap();
    let said = |log: &str| {
        let lines = log.lines().filter(|line| line.contains("WARN") && line.contains("shop"));
        lines.filter(|line| line.contains("events wait for a sink that is no longer")).count()
    };
    relay.signal("HUP").await;
    until("it is said", PATIENCE, async || (said(&relay.log()) == 1).then_some(())).await;
    relay.stop().await;
    relay.start();
    until("it is said again", PATIENCE, async || (said(&relay.log()) == 2).then_some(())).await;
    relay.stop().await;
}

#[tokio::test]
async fn a_reload_names_the_sinks_whose_state_stays_at_the_destination() {
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), SimOptions::default()).await.unwrap();
    let sink = |name: &str, state: bool| {
        let topic = format!("state = true\nstate_topic = \"{name}/{{{{ channel }}}}\"");
        mqtt(name, "mqtt://127.0.0.1:9", if state { &topic } else { "" })
    };
    let sinks = ["gone", "without", "still"].map(|name| sink(name, true)).concat();
    let mut relay = Daemon::new(&sim.url(), &sim.api_url(), "channel.tips", ROOM, &sinks);
    relay.start();
    until("it is subscribed", PATIENCE, async || {
        relay.get("/status").await.filter(|status| status.contains("\"confirmed\""))
    })
    .await;
    let config = std::fs::read_to_string(relay.config()).unwrap();
    let config = config
        .replace(&sink("gone", true), &sink("renamed", true))
        .replace(&sink("without", true), &sink("without", false));
    std::fs::write(relay.config(), config).unwrap();
    relay.signal("HUP").await;
    until("it is reloaded", PATIENCE, async || {
        relay.log().contains("the configuration was reloaded").then_some(())
    })
    .await;
    let log = relay.log();
    let mut warned = log.lines().filter(|line| line.contains("no longer publishes state"));
    for name in ["gone", "without"] {
        let line = warned.next().unwrap_or_else(|| panic!("{name}: {log}"));
        assert!(line.contains("WARN") && line.contains(name), "{line}");
    }
    assert_eq!(warned.next(), None);
    relay.stop().await;
}

/// Where a sink begins that is to have the last two hours, only the disk knows.
#[tokio::test]
async fn a_reload_that_waits_for_the_disk_holds_up_nothing_else() {
    let relay = Running::start(&channel(&["channel.tips"])).await;
    relay.subscribed(1).await;
    publish(&relay, "channel.tips", 1..2);
    relay.journal.next(0, 1, usize::MAX).await.unwrap();
    let (begin, begun) = oneshot::channel();
    let (end, ended) = mpsc::channel();
    let journal = relay.journal.clone();
    // The journal's file is being read until the relay has answered.
    let reading = tokio::task::spawn_blocking(move || {
        let (mut begin, mut answered) = (Some(begin), false);
        let read = journal.newest(1, |_| {
            if let Some(begin) = begin.take() {
                begin.send(()).unwrap();
                answered = ended.recv_timeout(PATIENCE).is_ok();
            }
        });
        read.map(|()| answered)
    });
    begun.await.unwrap();
    let late = mqtt("late", "mqtt://127.0.0.1:9", "start = \"2h\"");
    relay.rewrite(&format!("{}{late}", channel(&["channel.tips"])));
    let asking = async {
        until("the new sink is known", PATIENCE, async || {
            let text = relay.get("/readyz").await.text().await.unwrap();
            (!text.contains("no sink is configured")).then_some(())
        })
        .await;
        end.send(()).is_ok()
    };
    let ((code, report), in_time) = tokio::join!(relay.reload(), asking);
    assert_eq!((code, &report["sinks_added"]), (200, &json!(["late"])), "{report}");
    assert!(in_time && reading.await.unwrap().unwrap(), "it answers while the reload waits");
}

#[tokio::test]
async fn what_cannot_be_used_changes_nothing_and_what_cannot_change_is_named() {
    let broker = Mosquitto::start(Options::default()).await;
    let home = Listener::start(broker.port, "home/#").await;
    let rest = format!("{}{}", channel(&["channel.tips"]), mqtt("home", &broker.url(), ""));
    let relay = Running::start(&rest).await;
    relay.subscribed(1).await;
    relay.sink_is("home", "up").await;

    relay.rewrite("[sinks.home]\ntype = \"mqtt\"\nurll = \"hunter2\"\n");
    let (code, report) = relay.reload().await;
    assert_eq!(code, 422);
    let text = report["problems"].to_string();
    assert!(text.contains("astro-relay.toml:") && text.contains("urll"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
    let status = relay.status().await;
    assert_eq!(status["pages"]["reload"]["problems"], report["problems"]);
    publish(&relay, "channel.tips", 1..3);
    home.wait_for(2).await;

    // Only what is under a section that needs a restart has changed.
    relay.rewrite(&format!("log.format = \"text\"\n{rest}"));
    let text = std::fs::read_to_string(relay.file()).unwrap();
    let other = text.replace("127.0.0.1:0", "127.0.0.1:1").replace("journal\"", "elsewhere\"");
    std::fs::write(relay.file(), other).unwrap();
    for _ in 0..2 {
        let (code, report) = relay.reload().await;
        assert_eq!(code, 200, "{report}");
        let keys = json!(["http.listen", "journal.dir", "log.format"]);
        assert_eq!(report["needs_restart"], keys, "told again every time: {report}");
        assert_eq!((&report["sinks_changed"], &report["applied"]), (&json!([]), &json!([])));
    }
}

#[tokio::test]
async fn a_file_that_is_watched_needs_no_asking() {
    let watched = format!("reload.watch = true\n{}", channel(&["channel.tips"]));
    let relay = Running::start(&watched).await;
    relay.subscribed(1).await;
    relay.rewrite(&watched.replace("channel.tips\"", "channel.tips\", \"channel.follow\""));
    relay.subscribed(2).await;
    assert_eq!(relay.status().await["pages"]["reload"]["by"], "file");
    // Exchanged by renaming, as editors and mounted volumes do it; and broken.
    let other = relay.dir.path().join("other");
    std::fs::write(&other, "no = [").unwrap();
    std::fs::rename(&other, relay.file()).unwrap();
    let broken = |status: &Value| {
        status["pages"]["reload"]["problems"].as_array().is_some_and(|list| !list.is_empty())
    };
    relay.until("it is told", broken).await;
    relay.subscribed(2).await;
    relay.rewrite(&channel(&["channel.tips"]));
    relay.subscribed(1).await;
    // That file no longer wants to be watched.
    assert_eq!(relay.status().await["pages"]["reload"]["applied"], json!(["reload.watch"]));
}

/// A channel under another label is another subscription to us, and the same one to the gateway:
/// leaving the old one must not take the new one's messages away.
#[tokio::test]
async fn a_renamed_channel_goes_on_being_heard() {
    let broker = Mosquitto::start(Options::default()).await;
    let home = Listener::start(broker.port, "home/#").await;
    let topics = ["channel.tips", "channel.follow", "channel.activities", "channel.chatstats"];
    let sink = mqtt("home", &broker.url(), "");
    let relay = Running::start(&format!("{}{sink}", channel(&topics))).await;
    relay.subscribed(4).await;
    relay.sink_is("home", "up").await;
    let mut numbers = 0;
    for label in ["other", "third", "main"] {
        relay.rewrite(&format!("{}{sink}", channel(&topics).replace("main", label)));
        assert_eq!(relay.reload().await.0, 200);
        relay
            .until("the new label stands", |status| {
                let text = status["pages"]["connections"].to_string();
                text.matches(&format!("\"channel\":\"{label}\"")).count() == 4
                    && text.matches("\"confirmed\"").count() == 4
                    && text.matches("\"topic\"").count() == 4
            })
            .await;
        for topic in topics {
            publish(&relay, topic, numbers + 1..numbers + 2);
            numbers += 1;
        }
        home.wait_for(usize::try_from(numbers).unwrap()).await;
    }
}

/// Neither the label nor the name of the token's file is another. Because of the topic that is refused, the relay
/// has read the token before the reload.
#[tokio::test]
async fn a_label_with_the_token_of_another_account_is_subscribed_anew_at_a_reload() {
    const OTHER: &str = "6b2e2007760aeb7729487dab";
    const REFUSED: &str = "channel.follow";
    let jwt = |room: &str, number: u32| {
        let claims = json!({ "channel": room, "jti": number }).to_string();
        format!("{}.{}.c2ln", BASE64.encode(r#"{"alg":"none"}"#), BASE64.encode(claims))
    };
    let [first, refreshed, other] = [jwt(ROOM, 1), jwt(ROOM, 2), jwt(OTHER, 3)];
    let owners = [(&first, ROOM), (&refreshed, ROOM), (&other, OTHER)];
    let tokens = owners.map(|(token, room)| Token::owner(token, room)).to_vec();
    let options = SimOptions { tokens, ..SimOptions::default() };
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), options).await.unwrap();
    let unauthorized = Refusal::of("err_unauthorized").topic(REFUSED);
    sim.faults(|faults| faults.refusals.push(unauthorized));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, &first).unwrap();
    let topics = ["channel.tips", REFUSED];
    let rest = format!("[channels.main]\ntoken_file = {file:?}\ntopics = {topics:?}\n");
    let relay = Running::start_on(sim, &rest).await;
    let commands = async |number: u64| {
        until("the commands", PATIENCE, async || {
            (relay.sim.stats().commands >= number).then_some(())
        })
        .await;
    };
    let is_confirmed_for = |status: &Value, room: &str| {
        let mut connections = status["pages"]["connections"].as_object().unwrap().values();
        connections.next().is_some_and(|connection| {
            let all = connection["subscriptions"].as_array().unwrap();
            let state = |topic: &str| all.iter().find(|one| one["topic"] == topic);
            state(REFUSED).is_some_and(|one| one["state"] == "refused")
                && state("channel.tips")
                    .is_some_and(|one| one["room"] == room && one["state"] == "confirmed")
        })
    };
    relay.until("it is subscribed", |status| is_confirmed_for(status, ROOM)).await;
    let mut expected = 2;
    for (token, changed, room) in [(&refreshed, json!([]), ROOM), (&other, json!(["main"]), OTHER)]
    {
        std::fs::write(&file, token).unwrap();
        // What was refused is asked for with it.
        expected += 1;
        commands(expected).await;
        let (code, report) = relay.reload().await;
        assert_eq!((code, &report["channels_changed"]), (200, &changed), "{report}");
        relay.until("its own room is confirmed", |status| is_confirmed_for(status, room)).await;
    }
    // Of the refreshed token nothing. Of the other one the tips are left, and both are asked for.
    expected += 3;
    commands(expected).await;
    assert_eq!(relay.sim.stats().commands, expected);
    let connection = &relay.sim.connections()[0];
    let subscribed: Vec<_> = connection.subscriptions.iter().map(|(_, room)| &**room).collect();
    assert_eq!(subscribed, [OTHER]);
}

#[tokio::test]
async fn one_that_others_could_reach_does_not_start() {
    let text = "http.listen = \"0.0.0.0:0\"\njournal.dir = \"\"\n";
    let refused = load(&Sources { text: Some(text.into()), ..Sources::default() }).unwrap_err();
    assert!(refused.to_string().contains("http.admin_token is needed"), "{refused}");
    // A name that is checked as harmless, and leads elsewhere, is found out when it is listened on.
    let text = text.replace("0.0.0.0", "127.0.0.1");
    let mut config = load(&Sources { text: Some(text), ..Sources::default() }).unwrap().config;
    config.http.listen = "0.0.0.0:0".into();
    let refused = Relay::new(config, None).await.unwrap_err();
    assert!(refused.to_string().contains("http.admin_token is needed"), "{refused}");
}

#[tokio::test]
async fn reloads_that_are_asked_for_all_at_once_are_each_answered() {
    let relay = Running::start(&channel(&["channel.tips"])).await;
    let asking: Vec<_> = (0..20).map(|_| relay.reload()).collect();
    for (code, report) in futures_util::future::join_all(asking).await {
        assert_eq!((code, &report["problems"]), (200, &json!([])));
    }
    until("it is still there", PATIENCE, async || {
        (relay.get("/livez").await.status() == 200).then_some(())
    })
    .await;
}
