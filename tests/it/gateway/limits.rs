//! The published limits: commands a second, subscriptions a connection, connections.

use std::time::Duration;

use astro_sim::Options;

use super::{
    ROOM, SOON,
    bench::{Bench, topics},
    long,
};
use crate::support::wait::until;

/// How many subscriptions each connection that is open has.
fn spread(bench: &Bench) -> Vec<usize> {
    let open = bench.sim.connections().into_iter().filter(|record| record.ended.is_none());
    open.map(|record| record.subscriptions.len()).collect()
}

/// What no connection has room for.
fn left_out(bench: &Bench) -> Vec<String> {
    bench.state().left_out().iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn many_subscriptions_are_confirmed_within_the_command_rate() {
    // A hundred go at once; 500 take 40 s and no less.
    let (number, deadline) = if long() { (500, 50) } else { (100, 5) };
    let bench = Bench::with(Options::default(), topics(number), |astro| {
        astro.max_subscriptions_per_connection = 1000;
    })
    .await;
    let start = tokio::time::Instant::now();
    bench.confirmed_within(number, Duration::from_secs(deadline)).await;
    println!("{number} subscriptions stood after {:?}", start.elapsed());
    assert_eq!(bench.sim.stats().rate_limited, 0);
    assert_eq!(spread(&bench), [number]);
}

#[tokio::test]
async fn more_than_a_connection_may_carry_go_over_several() {
    let bench = Bench::with(Options::default(), topics(25), |astro| {
        astro.max_subscriptions_per_connection = 10;
    })
    .await;
    bench.confirmed(25).await;
    assert_eq!(spread(&bench), [10, 10, 5]);
    bench.carries("topic.number0", ROOM, 1).await;
    bench.carries("topic.number24", ROOM, 2).await;
    bench.stop().await;
}

#[tokio::test]
async fn overflow_moves_to_another_connection() {
    let options = Options { subscriptions_per_connection: Some(8), ..Options::default() };
    let bench = Bench::with(options, topics(20), |_| {}).await;
    bench.confirmed(20).await;
    let mut spread = spread(&bench);
    spread.sort_unstable();
    assert_eq!(spread, [4, 8, 8]);
    assert_eq!(bench.count("refused"), 0);
    for n in 0..20 {
        bench.carries(&format!("topic.number{n}"), ROOM, n).await;
    }
    // Further ones go where there is room: two of three connections are known to be full.
    bench.targets.send_replace(topics(24));
    bench.confirmed(24).await;
    assert_eq!(bench.sim.stats().opened, 3);
    // And room that is made is used.
    let mut fewer = topics(25);
    drop(fewer.subscriptions.drain(..2));
    bench.targets.send_replace(fewer);
    bench.confirmed(23).await;
    assert_eq!(bench.sim.stats().opened, 3);
}

#[tokio::test]
async fn a_limit_that_no_connection_can_mend_is_a_refusal() {
    let options = Options { subscriptions_per_connection: Some(0), ..Options::default() };
    let bench = Bench::with(options, topics(3), |_| {}).await;
    until("all are refused", SOON, async || (bench.count("refused") == 3).then_some(())).await;
    assert_eq!(bench.sim.stats().opened, 1, "no connection after another");
    let refusal = bench.refusal("topic.number0").unwrap();
    assert!(refusal.text.contains("limit") && refusal.retry_at.is_some());
}

#[tokio::test]
async fn subscriptions_beyond_max_connections_are_left_out_and_shown() {
    let bench = Bench::with(Options::default(), topics(12), |astro| {
        astro.max_subscriptions_per_connection = 5;
        astro.max_connections = 2;
    })
    .await;
    bench.confirmed(10).await;
    assert_eq!(spread(&bench), [5, 5]);
    assert_eq!(left_out(&bench), ["main/topic.number10", "main/topic.number11"]);
    let reasons = bench.reasons();
    assert!(reasons[0].contains("topic.number10") && reasons[0].contains("max_connections"));
    // When there is room, they come in.
    let mut fewer = topics(12);
    drop(fewer.subscriptions.drain(..2));
    bench.targets.send_replace(fewer);
    until("all have a place", SOON, async || left_out(&bench).is_empty().then_some(())).await;
    // Ten of those before are still confirmed: these two are what is waited for.
    for topic in ["topic.number10", "topic.number11"] {
        until("it has its place", SOON, async || {
            bench.row(topic).filter(|row| row.state.is_confirmed())
        })
        .await;
    }
    bench.confirmed(10).await;
    bench.carries("topic.number11", ROOM, 1).await;
    assert_eq!(bench.sim.stats().opened, 2);
}
