//! Subscriptions that Astro refuses: the others go on, the page says why, and when it is tried again.

use std::time::Duration;

use astro_relay::config::SecretRef;
use astro_sim::{Options, Refusal, Sim, Token};

use super::{
    OTHER, ROOM, SOON,
    bench::{Bench, millis, targets, topics},
};
use crate::support::wait::until;

#[tokio::test]
async fn every_refusal_is_shown_and_the_others_go_on() {
    // The code, and whether it is tried again by itself.
    let codes = [
        ("err_internal_error", true),
        ("err_deadline_exceeded", true),
        ("err_unauthorized", true),
        ("err_bad_request", false),
        ("invalid_message", false),
        ("invalid_message_type", false),
        ("err_from_the_future", true),
    ];
    for revision in [Options::default(), Options::first_revision()] {
        let sim = Sim::start(([127, 0, 0, 1], 0).into(), revision).await.unwrap();
        sim.faults(|faults| {
            faults.refusals = codes.iter().map(|(code, _)| Refusal::of(code).topic(code)).collect();
        });
        let mut wants: Vec<_> = codes.iter().map(|(code, _)| ("a", *code, Some(ROOM))).collect();
        wants.push(("b", "channel.tips", Some(OTHER)));
        let bench = Bench::at(sim, targets(&wants), |_| {});
        bench.confirmed(1).await;
        until("all are answered", SOON, async || (bench.count("refused") == 7).then_some(())).await;
        bench.carries("channel.tips", OTHER, 1).await;
        for (code, again) in codes {
            let refusal = bench.refusal(code).unwrap();
            assert_eq!(&*refusal.code, code);
            assert!(!refusal.text.is_empty(), "{code}");
            assert_eq!(refusal.retry_at.is_some(), again, "{code}");
            let reasons = bench.reasons();
            assert!(reasons.iter().any(|reason| reason.contains(code)), "{reasons:?}");
        }
        bench.sim.faults(|faults| faults.refusals.clear());
        // Two seconds after the first failure; those for credentials wait for minutes.
        bench.confirmed(3).await;
        assert_eq!(bench.sim.stats().opened, 1, "on the same connection");
    }
}

#[tokio::test]
async fn a_refusal_with_an_unknown_code_is_tried_again() {
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), Options::default()).await.unwrap();
    sim.faults(|faults| faults.refusals = vec![Refusal::of("err_new").times(1)]);
    let wanted = targets(&[("a", "channel.tips", Some(ROOM))]);
    let bench = Bench::at(sim, wanted, |astro| astro.retry_refused = millis(300));
    bench.confirmed(1).await;
    let commands = bench.connection(1).unwrap().commands;
    assert_eq!(commands[0].error.as_deref(), Some("err_new"));
    assert_eq!(commands.len(), 2);
}

#[tokio::test]
async fn a_rate_limit_answer_costs_five_seconds_and_no_subscription() {
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), Options::default()).await.unwrap();
    let limited = Refusal { skip: 3, every: 5, ..Refusal::of("rate_limit_exceeded") }.times(2);
    sim.faults(|faults| faults.refusals = vec![limited]);
    let bench = Bench::at(sim, topics(10), |_| {});
    bench.confirmed(10).await;
    let record = bench.connection(1).unwrap();
    assert_eq!(record.subscriptions.len(), 10, "what is shown is what is");
    let refused = record.commands.iter().find(|command| command.error.is_some()).unwrap();
    let next = record.commands.iter().find(|command| command.at > refused.at + 1000).unwrap();
    let quiet = next.at - refused.at;
    assert!((4_900..7_000).contains(&quiet), "{quiet} ms");
}

#[tokio::test]
async fn a_refused_token_is_tried_again_when_its_file_changes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    std::fs::write(&path, "stale\n").unwrap();
    let tokens = vec![Token::owner("fresh", ROOM), Token::owner("t", OTHER)];
    let options = Options { tokens, ..Options::default() };
    let mut wanted = targets(&[
        ("renewed", "channel.tips", Some(ROOM)),
        ("renewed", "channel.follow", Some(ROOM)),
        ("steady", "channel.tips", Some(OTHER)),
    ]);
    wanted.channels.get_mut("renewed").unwrap().token = SecretRef::File(path.clone());
    let bench = Bench::with(options, wanted, |_| {}).await;
    bench.confirmed(1).await;
    until("it is refused", SOON, async || (bench.count("refused") == 2).then_some(())).await;
    assert_eq!(&*bench.refusal("channel.follow").unwrap().code, "err_unauthorized");
    bench.carries("channel.tips", OTHER, 1).await;

    std::fs::write(&path, "fresh\n").unwrap();
    bench.confirmed_within(3, Duration::from_secs(6)).await;
    bench.carries("channel.tips", ROOM, 2).await;
    let record = bench.connection(1).unwrap();
    let steady = record.commands.iter().filter(|c| c.room.as_deref() == Some(OTHER)).count();
    assert_eq!((steady, bench.sim.stats().opened), (1, 1), "nobody else was disturbed");
    assert_eq!(bench.gaps().await.len(), 0);
}

#[tokio::test]
async fn a_token_that_cannot_be_read_is_a_refusal_until_it_can() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    let mut wanted = targets(&[("a", "channel.tips", Some(ROOM))]);
    wanted.channels.get_mut("a").unwrap().token = SecretRef::File(path.clone());
    let bench = Bench::with(Options::default(), wanted, |_| {}).await;
    let page = until("it is refused", SOON, async || bench.refusal("channel.tips")).await;
    assert_eq!(&*page.code, "no_token");
    assert_eq!(bench.sim.stats().commands, 0);
    std::fs::write(&path, "t").unwrap();
    bench.confirmed(1).await;
}

#[tokio::test]
async fn a_subscription_that_is_not_answered_is_asked_for_again() {
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), Options::default()).await.unwrap();
    sim.faults(|faults| faults.response_delay = Duration::from_millis(700));
    let wanted = targets(&[("a", "channel.tips", Some(ROOM))]);
    let bench = Bench::at(sim, wanted, |astro| astro.response_timeout = millis(200));
    bench.confirmed(1).await;
    until("it was asked for more than once", SOON, async || {
        (bench.sim.stats().commands >= 2).then_some(())
    })
    .await;
    bench.carries("channel.tips", ROOM, 1).await;
}
