//! Links that die, loudly or in silence.

use std::time::Duration;

use astro_sim::{End, Options};
use tokio::time::Instant;

use super::{
    ROOM, SOON,
    bench::{Bench, Want, millis, targets},
    long,
};
use crate::support::wait::until;

const WANTS: [Want<'_>; 3] = [
    ("a", "channel.tips", Some(ROOM)),
    ("a", "channel.follow", Some(ROOM)),
    ("b", "channel.contests", Some(ROOM)),
];

#[tokio::test]
async fn a_half_open_link_is_noticed() {
    // The default figures are 15 s and 10 s.
    let (ping_after, ping_timeout, deadline) =
        if long() { (15_000, 10_000, 30) } else { (300, 300, 2) };
    let bench = Bench::with(Options::default(), targets(&WANTS), |astro| {
        astro.ping_after = millis(ping_after);
        astro.ping_timeout = millis(ping_timeout);
    })
    .await;
    bench.confirmed(3).await;
    bench.carries("channel.tips", ROOM, 1).await;
    bench.sim.silence(None, true);
    let start = Instant::now();
    let deadline = Duration::from_secs(deadline);
    until("it is noticed, and all stands again", deadline, async || {
        bench.connection(2).filter(|record| record.subscriptions.len() == 3)
    })
    .await;
    println!("a silent link was replaced after {:?}", start.elapsed());
    bench.carries("channel.tips", ROOM, 2).await;
    let gaps = bench.gaps().await;
    assert_eq!(gaps.len(), 2, "one a channel: {gaps:?}");
    assert!(gaps[0]["cause"].as_str().unwrap().contains("silent"), "{gaps:?}");
}

#[tokio::test]
async fn a_quiet_link_that_answers_pings_is_left_alone() {
    let options = Options { ping_every: Duration::from_mins(10), ..Options::default() };
    let bench = Bench::with(options, targets(&WANTS), |astro| {
        astro.ping_after = millis(50);
        astro.ping_timeout = millis(5_000);
    })
    .await;
    bench.confirmed(3).await;
    // The relay's pings are answered by the simulation's WebSocket; each counts as heard.
    let heard = bench.heard(1);
    until("pings went to and fro", SOON, async || {
        (bench.heard(1) > heard.map(|at| at + 1_000)).then_some(())
    })
    .await;
    assert_eq!(bench.sim.stats().opened, 1);
}

#[tokio::test]
async fn a_dropped_link_is_back_within_two_seconds() {
    let ends = [End::Reset, End::Fin, End::Close(1000), End::Close(1011), End::Close(4321)];
    let bench = Bench::start(Options::default(), &WANTS).await;
    bench.confirmed(3).await;
    let mut times = Vec::new();
    for (turn, end) in (2..).zip(ends.into_iter().cycle().take(20)) {
        bench.sim.end(None, end);
        let start = Instant::now();
        until(&format!("{end:?}: all stands again"), SOON, async || {
            bench.connection(turn).filter(|record| record.subscriptions.len() == 3)
        })
        .await;
        times.push(start.elapsed());
        bench.carries("channel.tips", ROOM, turn).await;
    }
    times.sort_unstable();
    println!("back after p50 {:?}, at most {:?}", times[10], times[19]);
    assert!(times[19] < Duration::from_secs(2), "{times:?}");
    assert_eq!(bench.gaps().await.len(), 40, "one a channel and drop");
}
