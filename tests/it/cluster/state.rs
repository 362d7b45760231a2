//! The state of channels at a destination, spoken by the member that drives the sink, whoever holds them.

use std::collections::BTreeMap;

use astro_sim::{Options, Sim};

use super::{
    bench::{PATIENCE, TOPIC, room},
    members::stand,
    setup::Small,
};
use crate::support::{
    daemon::Relay,
    mosquitto::{self, Listener, Mosquitto},
    nats_server::NatsServer,
    process::free_port,
    wait::until,
};

const CHANNELS: usize = 6;

/// The newest status of each channel.
fn statuses(listener: &Listener) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for publish in listener.heard() {
        let topic = String::from_utf8(publish.topic.to_vec()).unwrap();
        let payload = String::from_utf8(publish.payload.to_vec()).unwrap();
        if let Some(channel) =
            topic.strip_suffix("/status").filter(|topic| !topic.ends_with("relay"))
        {
            found.insert(channel.to_owned(), payload);
        }
    }
    found
}

fn all_online(listener: &Listener) -> bool {
    let statuses = statuses(listener);
    statuses.len() == CHANNELS && statuses.values().all(|status| status == "online")
}

/// Each channel is held by one of two members: whoever drives the sink publishes the state of all. When that
/// member leaves, the other says that all is online, and nothing is cleared.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_driver_publishes_the_state_of_all_channels() {
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), Options::default()).await.unwrap();
    let server = NatsServer::start("").await;
    let broker = Mosquitto::start(mosquitto::Options::default()).await;
    let listener = Listener::start(broker.port, "astro/+/status").await;
    let everything = Listener::start(broker.port, "astro/#").await;
    let (url, api, nats, mqtt) = (sim.url(), sim.api_url(), server.url(), broker.url());
    let member = |number| {
        let channels: Vec<String> = (0..CHANNELS)
            .map(|n| {
                let room = room(n);
                format!(
                    "[channels.c{n}]\nroom = {room:?}\ntoken = \"secret\"\ntoken_type = \"apikey\"\n\
                     topics = [{TOPIC:?}]\n"
                )
            })
            .collect();
        Relay::written(|port, journal| {
            format!(
                "[astro]\nurl = {url:?}\napi_url = {api:?}\n{}\
                 [cluster]\nurl = {nats:?}\nmember = \"relay-{number}\"\nreplicas = 1\nlease = \"4s\"\ncopies = 1\n\
                 [http]\nlisten = \"127.0.0.1:{port}\"\n[log]\nformat = \"text\"\n\
                 [journal]\ndir = {journal:?}\nmin_free = \"0B\"\n\
                 [sinks.home]\ntype = \"mqtt\"\nurl = {mqtt:?}\nstate = true\n",
                channels.concat()
            )
        })
    };
    let mut members = [member(1), member(2)];
    members.iter_mut().for_each(Relay::start);
    let logs = |members: &[Relay; 2]| format!("{}\n----\n{}", members[0].log(), members[1].log());
    let online = until("all channels are online", PATIENCE * 2, async || {
        all_online(&listener).then_some(())
    });
    let online = tokio::time::timeout(PATIENCE, online).await.is_ok();
    assert!(online, "{:?}\n{}", statuses(&listener), logs(&members));
    // Both hold some, and one of them drives the sink.
    let driver = until("a member drives the sink", PATIENCE, async || {
        let mut held = 0;
        let mut driver = None;
        for relay in &members {
            let answer = relay.get("/status").await?;
            let status: serde_json::Value =
                serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()?;
            let shown = &status["pages"]["cluster"];
            let channels = shown["members"][shown["member"].as_str()?]["channels"].as_u64()?;
            if shown["members"].as_object()?.len() < 2 || channels == 0 {
                return None;
            }
            held += channels;
            driver = shown["sinks"]["home"]["driver"].as_str().map(ToOwned::to_owned);
        }
        driver.filter(|_| held == CHANNELS as u64)
    })
    .await;
    let before = listener.count();
    members[usize::from(driver == "relay-2")].stop().await;
    let again = until("the other says that all is online", PATIENCE * 2, async || {
        (listener.count() > before && all_online(&listener)).then_some(())
    });
    let again = tokio::time::timeout(PATIENCE, again).await.is_ok();
    assert!(again, "{:?}\n{}", statuses(&listener), logs(&members));
    let cleared = everything.heard().into_iter().filter(|publish| publish.payload.is_empty());
    let cleared: Vec<_> = cleared.map(|publish| publish.topic).collect();
    assert!(cleared.is_empty(), "{cleared:?}\n{}", logs(&members));
}

/// What the sinks have still to get waits in the log: the journal does not know of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_diagnostics_count_what_waits_in_the_log() {
    const EVENTS: u64 = 20;
    let server = NatsServer::start("").await;
    server.streams().await;
    let broker = Mosquitto::start(mosquitto::Options::default()).await;
    let listener = Listener::start(broker.port, "astro/relay/diagnostics").await;
    let small = Small::start().await;
    // Nobody listens there.
    let nowhere = format!("http://127.0.0.1:{}/", free_port());
    let sinks = format!(
        "[sinks.home]\ntype = \"mqtt\"\nurl = {:?}\nstate = true\n\
         [sinks.down]\ntype = \"webhook\"\nurl = {nowhere:?}\nallow_addresses = [\"127.0.0.1\"]\n",
        broker.url()
    );
    let mut relay = small.member(&format!("url = {:?}\nmember = \"a\"", server.url()), &sinks);
    relay.start();
    stand(&[&relay]).await;
    small.load(0, EVENTS).await;
    let counted = until("they are counted", PATIENCE * 2, async || {
        let newest = listener.heard().pop()?;
        let figures: serde_json::Value = serde_json::from_slice(&newest.payload).ok()?;
        (figures["lag"].as_u64()? >= EVENTS).then_some(())
    });
    let counted = tokio::time::timeout(PATIENCE, counted).await.is_ok();
    let figures = listener.heard().pop().map(|newest| newest.payload);
    assert!(counted, "{figures:?}\n{}", relay.log());
    until("their age is measured", PATIENCE, async || {
        let metrics = relay.get("/metrics").await?;
        let name = "astro_relay_sink_lag_seconds{sink=\"down\"} ";
        let age = metrics.lines().find_map(|line| line.strip_prefix(name))?;
        age.trim().parse::<f64>().ok().filter(|age| *age > 0.0)
    })
    .await;
}
