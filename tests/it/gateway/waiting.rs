//! A gateway that is not there, or does not want us.

use std::time::Duration;

use astro_sim::{End, Options, Reception, Sim};

use super::{
    ROOM, SOON,
    bench::{Bench, Want, millis, targets},
};
use crate::support::wait::until;

const WANTS: [Want<'_>; 1] = [("a", "channel.tips", Some(ROOM))];

async fn meeting(receptions: impl IntoIterator<Item = Reception>) -> Sim {
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), Options::default()).await.unwrap();
    sim.faults(|faults| faults.next.extend(receptions));
    sim
}

/// Waits until the page of the connection says this of its last failure.
async fn says(bench: &Bench, words: &str) {
    until(&format!("the page says {words:?}"), SOON, async || {
        let state = bench.state();
        let error = state.connections.values().next()?.last_error.clone()?;
        error.contains(words).then_some(())
    })
    .await;
}

#[tokio::test]
async fn retry_after_is_kept() {
    let refuse = || Reception::Refuse { status: 429, retry_after: Some("1".into()) };
    let bench = Bench::at(meeting([refuse(), refuse()]).await, targets(&WANTS), |_| {});
    says(&bench, "429").await;
    bench.confirmed(1).await;
    let attempts = bench.sim.attempts();
    let waits: Vec<_> = attempts.windows(2).map(|pair| pair[1].at - pair[0].at).collect();
    assert_eq!(waits.len(), 2);
    assert!(waits.iter().all(|wait| *wait >= 1000), "{waits:?} ms");
}

#[tokio::test]
async fn a_server_that_drains_is_asked_again() {
    let refuse = || Reception::Refuse { status: 502, retry_after: None };
    let bench = Bench::at(meeting([refuse(), refuse()]).await, targets(&WANTS), |_| {});
    says(&bench, "the gateway answered 502").await;
    assert!(bench.reasons()[0].contains("502"));
    bench.confirmed(1).await;
    assert_eq!(bench.sim.stats().refused, 2);
}

#[tokio::test]
async fn a_closed_port_is_tried_again() {
    let sim = meeting([]).await;
    sim.listen(false);
    let bench = Bench::at(sim, targets(&WANTS), |astro| astro.backoff_max = millis(100));
    says(&bench, "TCP failed").await;
    bench.sim.listen(true);
    bench.confirmed(1).await;
}

#[tokio::test]
async fn an_unknown_host_name_is_shown() {
    let bench = Bench::at(meeting([]).await, targets(&WANTS), |astro| {
        astro.url = "ws://nowhere.invalid:1".into();
        astro.connect_timeout = millis(1_000);
    });
    says(&bench, "name").await;
    bench.stop().await;
}

#[tokio::test]
async fn every_stage_has_its_deadline() {
    let sim = meeting([Reception::NeverUpgrades]).await;
    let bench = Bench::at(sim, targets(&WANTS), |astro| astro.connect_timeout = millis(200));
    says(&bench, "no upgrade within the deadline").await;
    bench.confirmed(1).await;

    // An upgrade that is late is given up; once it is in time, all is well.
    let sim = meeting([]).await;
    sim.faults(|faults| faults.upgrade_delay = Duration::from_millis(600));
    let bench = Bench::at(sim, targets(&WANTS), |astro| astro.connect_timeout = millis(200));
    says(&bench, "no upgrade within the deadline").await;
    bench.sim.faults(|faults| faults.upgrade_delay = Duration::ZERO);
    bench.confirmed(1).await;

    // A late welcome costs the grace time, and nothing is asked for twice.
    let sim = meeting([]).await;
    sim.faults(|faults| faults.welcome_delay = Duration::from_millis(500));
    let bench = Bench::at(sim, targets(&WANTS), |astro| astro.welcome_grace = millis(100));
    bench.confirmed(1).await;
    let record = bench.connection(1).unwrap();
    assert!(record.commands[0].at < record.opened + 450, "before the welcome");
    let heard = bench.heard(1);
    until("the welcome has come", SOON, async || (bench.heard(1) > heard).then_some(())).await;
    bench.carries("channel.tips", ROOM, 1).await;
    assert_eq!(bench.connection(1).unwrap().commands.len(), 1);
}

#[tokio::test]
async fn a_connection_that_never_says_a_word_is_given_up() {
    let sim = meeting([Reception::Silent]).await;
    let bench = Bench::at(sim, targets(&WANTS), |astro| {
        astro.ping_after = millis(200);
        astro.ping_timeout = millis(200);
    });
    says(&bench, "silent").await;
    bench.confirmed(1).await;
}

#[tokio::test]
async fn a_server_that_accepts_and_closes_is_not_flooded_with_attempts() {
    let sim = meeting([]).await;
    sim.faults(|faults| {
        faults.every = Reception::Close { after: Duration::ZERO, end: End::Close(1011) };
    });
    let bench = Bench::at(sim, targets(&WANTS), |_| {});
    until("it was tried again", SOON, async || (bench.sim.stats().opened >= 3).then_some(())).await;
    says(&bench, "1011").await;
    // None is shown for as long as it is open; being accepted proves nothing.
    until("its attempts are counted on", SOON, async || {
        (bench.state().connections[&1].attempts >= 2).then_some(())
    })
    .await;
    bench.sim.faults(|faults| faults.every = Reception::Accept);
    bench.confirmed(1).await;
    assert_eq!(bench.gaps().await.len(), 0, "nothing had stood");
}
