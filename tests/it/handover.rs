//! Moving from one connection to another: nothing is lost, nothing twice, nothing out of order.

use std::time::Duration;

use astro_sim::{End, Options, Sim, Token};
use serde_json::json;

use astro_relay::gateway::table::Phase;

use crate::support::{
    relay::{ROOM, Running, TOKEN, configure},
    wait::until,
};

const SOON: Duration = Duration::from_mins(1);

async fn start() -> (Sim, tempfile::TempDir, Running) {
    let options = Options { tokens: vec![Token::owner(TOKEN, ROOM)], ..Options::default() };
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), options).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let relay = Running::start(configure(&sim, dir.path(), &["channel.tips"], "")).await;
    relay.wait_subscribed().await;
    (sim, dir, relay)
}

async fn heard(relay: &Running) -> Vec<u64> {
    let tips = relay.said("channel.tips").await;
    tips.iter().map(|data| data["n"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn messages_under_way_on_the_old_connection_are_appended_in_order() {
    let (sim, _dir, relay) = start().await;
    let mut n = 0;
    for turn in 1..=5_u64 {
        // More than the relay reads at once: some of it lies unread when the new connection stands.
        sim.drain(None);
        for _ in 0..4000 {
            n += 1;
            sim.publish("channel.tips", ROOM, json!({ "n": n }));
        }
        until("it has moved", SOON, async || (sim.stats().tokens_used == turn).then_some(())).await;
        for _ in 0..10 {
            n += 1;
            sim.publish("channel.tips", ROOM, json!({ "n": n }));
        }
        until("it is settled", SOON, async || (sim.stats().open == 1).then_some(())).await;
    }
    until("all is heard", SOON, async || (heard(&relay).await.len() as u64 >= n).then_some(()))
        .await;
    assert_eq!(heard(&relay).await, (1..=n).collect::<Vec<_>>());
    assert_eq!(relay.said("relay.gap").await, [json!(null); 0]);
    relay.stop().await;
}

#[tokio::test]
async fn a_connection_that_ends_before_its_successor_is_open_leaves_a_gap() {
    let (sim, _dir, relay) = start().await;
    sim.faults(|faults| faults.upgrade_delay = Duration::from_millis(300));
    sim.drain(None);
    until("it is moving", SOON, async || {
        let state = relay.status.gateway.snapshot();
        state.connections.values().any(|row| row.phase == Phase::Moving).then_some(())
    })
    .await;
    sim.end(None, End::Reset);
    until("the gap is told", SOON, async || {
        // What was recovered of it is told again.
        let gaps = relay.said("relay.gap").await;
        let first = gaps.iter().filter(|gap| gap.get("recovery").is_none());
        (first.count() == 1).then_some(())
    })
    .await;
    assert_eq!(sim.stats().tokens_used, 1, "and it was restored all the same");
    relay.stop().await;
}
