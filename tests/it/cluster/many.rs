//! Many channels over three members, within the gateway's limits of commands; one of the members dies. With
//! `ASTRO_RELAY_LONG=1` they are ten thousand.

use std::{collections::HashSet, time::Duration};

use tokio::time::Instant;

use super::{
    bench::channels,
    members::{page, stand},
    setup::Small,
};
use crate::support::{
    daemon::Relay,
    journal::{long, say},
    nats_server::NatsServer,
    process::resources,
    wait::until,
};

/// Within this time all must stand after the start.
const START: Duration = Duration::from_mins(1);

/// The rooms that some connection is subscribed to, and the subscriptions of all connections.
fn held(small: &Small) -> (HashSet<String>, usize) {
    let connections = small.sim.connections();
    let open = connections.into_iter().filter(|connection| connection.ended.is_none());
    let rooms = open.flat_map(|one| one.subscriptions).map(|(_, room)| room);
    let all: Vec<String> = rooms.collect();
    let count = all.len();
    (all.into_iter().collect(), count)
}

/// Waits until two members hold each channel, and sees to it that one does all the time; answers how often it
/// looked. To look is dear where there are many: whoever does it all the time keeps the gateway from its work.
async fn held_twice(small: &Small, count: usize) -> usize {
    let end = Instant::now() + 2 * START;
    let mut looks = 0;
    loop {
        let (rooms, all) = held(small);
        looks += 1;
        assert_eq!(rooms.len(), count, "a channel is without a holder");
        if all == 2 * count {
            return looks;
        }
        assert!(Instant::now() < end, "{all} subscriptions to {count} channels");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_channels_stand_in_time_and_none_is_without_a_holder() {
    // Few enough that one connection may subscribe to all of them at once.
    let count = if long() { 10_000 } else { 90 };
    let server = NatsServer::start("").await;
    server.streams().await;
    let small = Small::start().await;
    let url = server.url();
    let channels = channels(1..count, "channel.tips");
    let mut members = ["a", "b", "c"]
        .map(|name| small.member(&format!("url = {url:?}\nmember = {name:?}"), &channels));
    let logs =
        |members: &[Relay]| members.iter().map(Relay::log).collect::<Vec<_>>().join("\n--\n");

    let began = Instant::now();
    members.iter_mut().for_each(Relay::start);
    stand(&members.iter().collect::<Vec<_>>()).await;
    held_twice(&small, count).await;
    let took = began.elapsed();
    let limited = small.sim.stats().rate_limited;
    say(&format!("{count} channels stand after {took:?}; {limited} commands were too many"));
    assert!(took < START, "{took:?}\n{}", logs(&members));
    for relay in &members {
        let (memory, files) = resources(relay.pid().unwrap()).unwrap();
        let page = page(relay).await.unwrap();
        let name = page["member"].as_str().unwrap();
        let channels = &page["members"][name]["channels"];
        say(&format!("{name} holds {channels} channels: {memory} KiB, {files} open files"));
    }

    let began = Instant::now();
    let [left @ .., killed] = &mut members;
    let open = small.sim.stats().open;
    killed.kill().await;
    until("the gateway has noticed", START, async || (small.sim.stats().open < open).then_some(()))
        .await;
    let looks = held_twice(&small, count).await;
    stand(&left.iter().collect::<Vec<_>>()).await;
    held_twice(&small, count).await;
    let took = began.elapsed();
    say(&format!("one was killed: all are held twice again after {took:?}; looked {looks} times"));
    for relay in left.iter() {
        let (memory, _) = resources(relay.pid().unwrap()).unwrap();
        say(&format!("{memory} KiB with all channels"));
    }
}
