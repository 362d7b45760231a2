//! Times without a connection, and what is told of them.

use astro_relay::{
    app::relay::Relay,
    base::clock::{self, UnixMillis},
    config::{Channel, Config, SecretRef, TokenType},
};
use astro_sim::{End, Load, Options, Refusal, Sim, Success, Token};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{
    OTHER, ROOM, SOON,
    bench::{Bench, Want, millis, targets},
};
use crate::support::wait::until;

const WANTS: [Want<'_>; 3] = [
    ("a", "channel.tips", Some(ROOM)),
    ("a", "channel.follow", Some(ROOM)),
    ("b", "channel.tips", Some(OTHER)),
];

fn time(gap: &Value, name: &str) -> UnixMillis {
    clock::parse_rfc3339(gap[name].as_str().unwrap()).unwrap()
}

/// Whether each topic of a gap was restored.
fn restored(gap: &Value) -> Vec<(&str, bool)> {
    let all = gap["subscriptions"].as_array().unwrap().iter();
    all.map(|s| (s["topic"].as_str().unwrap(), s["restored"].as_bool().unwrap())).collect()
}

#[tokio::test]
async fn a_lost_link_is_one_gap_a_channel_with_its_true_bounds() {
    let bench = Bench::start(Options::default(), &WANTS).await;
    bench.confirmed(3).await;
    bench.sim.listen(false);
    bench.carries("channel.tips", ROOM, 1).await;
    let lost = clock::now();
    bench.sim.end(None, End::Reset);
    bench.sim.publish("channel.tips", ROOM, "\"nobody hears this\"");
    bench.confirmed(0).await;
    bench.sim.listen(true);
    bench.confirmed(3).await;
    let back = clock::now();
    until("both are told", SOON, async || (bench.gaps().await.len() == 2).then_some(())).await;
    let mut gaps = bench.gaps().await;
    gaps.sort_by_key(|gap| gap["channel"].to_string());
    for (gap, channel) in gaps.iter().zip(["a", "b"]) {
        assert_eq!(gap["channel"], channel);
        assert!(time(gap, "from") <= lost && lost - time(gap, "from") < 1000, "{gap}");
        assert!(time(gap, "to").abs_diff(back) < 1000, "{gap}");
        assert!(!gap["cause"].as_str().unwrap().is_empty());
    }
    assert_eq!(restored(&gaps[0]), [("channel.follow", true), ("channel.tips", true)]);
    assert_eq!(restored(&gaps[1]), [("channel.tips", true)]);
    assert_eq!(bench.state().gaps.len(), 2);
    bench.carries("channel.tips", OTHER, 2).await;
    assert_eq!(bench.gaps().await.len(), 2, "each is told once");
}

#[tokio::test]
async fn a_gap_names_the_subscriptions_that_did_not_come_back() {
    let bench = Bench::start(Options::default(), &WANTS).await;
    bench.confirmed(3).await;
    bench.sim.faults(|faults| {
        faults.refusals = vec![Refusal::of("err_unauthorized").topic("channel.follow")];
    });
    bench.sim.end(None, End::Reset);
    until("both are told", SOON, async || (bench.gaps().await.len() == 2).then_some(())).await;
    let gaps = bench.gaps().await;
    let gap = gaps.iter().find(|gap| gap["channel"] == "a").unwrap();
    assert_eq!(restored(gap), [("channel.follow", false), ("channel.tips", true)]);
}

#[tokio::test]
async fn a_gap_waits_for_a_subscription_that_is_tried_again_in_a_moment() {
    let bench = Bench::start(Options::default(), &WANTS[..2]).await;
    bench.confirmed(2).await;
    bench.sim.faults(|faults| {
        faults.refusals = vec![Refusal::of("err_internal_error").topic("channel.follow").times(1)];
    });
    bench.sim.end(None, End::Reset);
    until("it is told", SOON, async || (!bench.gaps().await.is_empty()).then_some(())).await;
    let gaps = bench.gaps().await;
    assert_eq!(restored(&gaps[0]), [("channel.follow", true), ("channel.tips", true)]);
    bench.confirmed(2).await;
    assert_eq!(bench.gaps().await.len(), 1, "it is told once");
}

#[tokio::test]
async fn what_was_refused_for_its_token_is_a_gap_from_its_beginning_when_it_is_confirmed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    std::fs::write(&path, "t\n").unwrap();
    let options = Options { tokens: vec![Token::owner("t", ROOM)], ..Options::default() };
    let mut wanted = targets(&WANTS[..2]);
    wanted.channels.get_mut("a").unwrap().token = SecretRef::File(path.clone());
    let bench = Bench::with(options, wanted, |_| {}).await;
    bench.confirmed(2).await;
    std::fs::write(&path, "ended\n").unwrap();
    let lost = clock::now();
    bench.sim.end(None, End::Reset);
    until("it is told", SOON, async || (!bench.gaps().await.is_empty()).then_some(())).await;
    std::fs::write(&path, "t\n").unwrap();
    bench.confirmed(2).await;
    until("it is told again", SOON, async || (bench.gaps().await.len() == 2).then_some(())).await;
    let gaps = bench.gaps().await;
    for (gap, is_restored) in gaps.iter().zip([false, true]) {
        let expected = [("channel.follow", is_restored), ("channel.tips", is_restored)];
        assert_eq!(restored(gap), expected);
        assert!(time(gap, "from").abs_diff(lost) < 1000, "{gap}, lost {lost}");
        assert_eq!(gap["cause"], gaps[0]["cause"]);
    }
}

#[tokio::test]
async fn a_gap_ends_when_its_subscriptions_are_no_longer_wanted() {
    let bench = Bench::start(Options::default(), &WANTS).await;
    bench.confirmed(3).await;
    bench.sim.listen(false);
    bench.sim.end(None, End::Reset);
    bench.confirmed(0).await;
    // Of one channel a topic is dropped, the other is dropped as a whole.
    bench.targets.send_replace(targets(&WANTS[..1]));
    until("what is gone is told at once", SOON, async || {
        (bench.gaps().await.len() == 1).then_some(())
    })
    .await;
    bench.sim.listen(true);
    bench.confirmed(1).await;
    until("both are told", SOON, async || (bench.gaps().await.len() == 2).then_some(())).await;
    let gaps = bench.gaps().await;
    assert_eq!(restored(&gaps[0]), [("channel.tips", false)]);
    assert_eq!(restored(&gaps[1]), [("channel.follow", false), ("channel.tips", true)]);
}

#[tokio::test]
async fn a_second_loss_before_all_is_back_is_the_same_gap() {
    let bench = Bench::start(Options::default(), &WANTS[..2]).await;
    bench.confirmed(2).await;
    let lost = clock::now();
    // The second subscription is not answered before the link is lost again.
    bench.sim.faults(|faults| {
        faults.refusals = vec![Refusal::of("rate_limit_exceeded").topic("channel.follow").times(1)];
    });
    bench.sim.end(None, End::Reset);
    until("half of it stands", SOON, async || {
        bench.connection(2).filter(|record| record.subscriptions.len() == 1)
    })
    .await;
    bench.sim.end(None, End::Reset);
    bench.confirmed(2).await;
    until("it is told", SOON, async || (!bench.gaps().await.is_empty()).then_some(())).await;
    let gaps = bench.gaps().await;
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    assert!(time(&gaps[0], "from").abs_diff(lost) < 1000);
}

#[tokio::test]
async fn a_gateway_that_failed_leaves_a_gap_and_no_stale_page() {
    let mut bench = Bench::start(Options::default(), &WANTS).await;
    bench.confirmed(3).await;
    bench.sim.publish("channel.tips", ROOM, 1);
    let failed = clock::now();
    bench.fail().await;
    bench.confirmed(3).await;
    until("both are told", SOON, async || (bench.gaps().await.len() == 2).then_some(())).await;
    for gap in bench.gaps().await {
        assert_eq!(gap["cause"], "the gateway failed and was restarted");
        assert!(time(&gap, "from") <= failed && failed - time(&gap, "from") < 3_000, "{gap}");
    }
    assert_eq!(bench.state().connections.len(), 1);
    bench.carries("channel.tips", ROOM, 2).await;
    bench.stop().await;
}

#[tokio::test]
async fn a_gateway_that_fails_while_something_is_missing_does_not_shorten_the_gap() {
    let mut bench = Bench::start(Options::default(), &WANTS).await;
    bench.confirmed(3).await;
    bench.sim.listen(false);
    let lost = clock::now();
    bench.sim.end(None, End::Reset);
    bench.confirmed(0).await;
    until("some time has passed", SOON, async || (clock::now() > lost + 3_000).then_some(())).await;
    bench.fail().await;
    bench.sim.listen(true);
    bench.confirmed(3).await;
    until("both are told", SOON, async || (bench.gaps().await.len() == 2).then_some(())).await;
    for gap in bench.gaps().await {
        assert!(time(&gap, "from").abs_diff(lost) < 1_000, "{gap}, lost {lost}");
    }
}

#[tokio::test]
async fn a_gap_is_reported_before_the_events_after_it() {
    let bench = Bench::start(Options::default(), &WANTS[..1]).await;
    bench.confirmed(1).await;
    let done = std::sync::atomic::AtomicBool::new(false);
    let traffic = async {
        let mut first = 0;
        while !done.load(std::sync::atomic::Ordering::SeqCst) {
            let load = Load {
                messages: 1000,
                rate: Some(5000),
                topic: "channel.tips".into(),
                rooms: vec![ROOM.into()],
                first,
                ..Load::default()
            };
            bench.sim.load(&load).await;
            first += load.messages;
        }
    };
    let losses = async {
        for told in 1..=10 {
            let before = bench.journal.figures().last;
            until("messages flow", SOON, async || {
                (bench.journal.figures().last > before + 100).then_some(())
            })
            .await;
            bench.sim.end(None, End::Reset);
            until("it is told", SOON, async || (bench.state().gaps.len() == told).then_some(()))
                .await;
        }
        done.store(true, std::sync::atomic::Ordering::SeqCst);
    };
    tokio::join!(traffic, losses);
    let (mut next, mut gap_before, mut jumps) = (0, false, 0);
    for event in bench.events().await {
        if &*event.place.topic == "relay.gap" {
            gap_before = true;
            continue;
        }
        let data: Value = serde_json::from_slice(event.data()).unwrap();
        let n = data["n"].as_u64().unwrap();
        assert!(n == next || gap_before, "{next} to {n} is missing, and not yet told");
        jumps += usize::from(n != next);
        (next, gap_before) = (n + 1, false);
    }
    assert!(jumps > 0, "something was missed");
}

#[tokio::test]
async fn leaving_all_rooms_of_a_topic_reports_a_gap_of_the_others() {
    let options = Options { success: Success::WithoutRoom, ..Options::first_revision() };
    let wants = [("a", "channel.tips", Some(ROOM)), ("b", "channel.tips", None)];
    let bench = Bench::start(options, &wants).await;
    bench.confirmed(2).await;
    bench.targets.send_replace(targets(&wants[..1]));
    until("it is told", SOON, async || (bench.gaps().await.len() == 1).then_some(())).await;
    let gaps = bench.gaps().await;
    assert_eq!(
        (&gaps[0]["channel"], restored(&gaps[0])),
        (&"a".into(), vec![("channel.tips", true)])
    );
    bench.confirmed(1).await;
}

#[tokio::test]
async fn what_the_next_connection_will_not_take_is_a_gap_until_another_has_it() {
    let bench = Bench::start(Options::default(), &WANTS).await;
    bench.confirmed(3).await;
    bench.sim.faults(|faults| {
        faults.refuse_reconnect = true;
        let full = Refusal { message: "limit reached".into(), ..Refusal::of("err_bad_request") };
        faults.refusals = vec![full.room(OTHER).times(1)];
    });
    bench.sim.drain(None);
    until("it is told", SOON, async || (!bench.gaps().await.is_empty()).then_some(())).await;
    bench.confirmed(3).await;
    let gaps = bench.gaps().await;
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    assert_eq!(
        (&gaps[0]["channel"], restored(&gaps[0])),
        (&"b".into(), vec![("channel.tips", true)])
    );
    // From the moment at which it was refused, not that at which it was given to another.
    assert!(gaps[0]["seconds"].as_f64().unwrap() >= 0.3, "{gaps:?}");
    bench.carries("channel.tips", OTHER, 1).await;
    assert_eq!(bench.gaps().await.len(), 1, "it is told once");
}

fn config(sim: &Sim, dir: &std::path::Path) -> Config {
    let mut config = Config::default();
    config.astro.url = sim.url();
    config.astro.welcome_grace = millis(300);
    config.journal.dir = dir.into();
    config.http.listen = String::new();
    let channel = Channel {
        room: Some(ROOM.to_owned()),
        token: SecretRef::Value("t".into()),
        token_type: TokenType::Jwt,
        client_id: None,
        client_secret: None,
        refresh_token: None,
        topics: vec!["channel.tips".into()],
    };
    config.channels.insert("a".into(), channel);
    config
}

/// Runs a relay until its subscription stands, and stops it in order. Answers the gaps in its journal.
async fn run(config: &Config, expected: usize) -> Vec<Value> {
    let relay = Relay::new(config.clone(), None).await.unwrap();
    let (status, journal) = (relay.status(), relay.journal());
    let stop = CancellationToken::new();
    let watching = async {
        until("it stands", SOON, async || {
            let state = status.snapshot().gateway;
            state.subscriptions.values().any(|row| row.state.is_confirmed()).then_some(())
        })
        .await;
        // A gap is appended a moment after what it is about is confirmed again.
        let gaps = until("the gaps are in the journal", SOON, async || {
            let last = journal.figures().last;
            let batch = journal.read(0, last, usize::MAX, usize::MAX).await.unwrap();
            let records = batch.records.iter();
            let gaps = records.filter(|record| &*record.event.place.topic == "relay.gap");
            let gaps: Vec<Value> =
                gaps.map(|record| serde_json::from_slice(record.event.data()).unwrap()).collect();
            (gaps.len() >= expected).then_some(gaps)
        })
        .await;
        stop.cancel();
        gaps
    };
    let (_, gaps) = tokio::join!(relay.run(stop.clone(), || {}), watching);
    gaps
}

#[tokio::test]
async fn the_time_in_which_the_relay_did_not_run_is_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), Options::default()).await.unwrap();
    let config = config(&sim, dir.path());
    let gaps = run(&config, 0).await;
    assert!(gaps.is_empty(), "a first start has missed nothing: {gaps:?}");
    let stopped = clock::now();
    until("some time has passed", SOON, async || (clock::now() > stopped + 1_200).then_some(()))
        .await;
    let gaps = run(&config, 1).await;
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    assert_eq!(gaps[0]["cause"], "the relay did not run");
    assert!(time(&gaps[0], "from").abs_diff(stopped) < 1000, "{gaps:?}, stopped {stopped}");
    assert!(time(&gaps[0], "to") >= stopped + 1_200);
    assert_eq!(restored(&gaps[0]), [("channel.tips", true)]);
}

#[tokio::test]
async fn a_restart_while_something_is_missing_does_not_shorten_the_gap() {
    let dir = tempfile::tempdir().unwrap();
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), Options::default()).await.unwrap();
    let config = config(&sim, dir.path());
    let relay = Relay::new(config.clone(), None).await.unwrap();
    let (status, stop) = (relay.status(), CancellationToken::new());
    let standing = || {
        let state = status.snapshot().gateway;
        state.subscriptions.values().any(|row| row.state.is_confirmed())
    };
    let losing = async {
        until("it stands", SOON, async || standing().then_some(())).await;
        sim.listen(false);
        let lost = clock::now();
        sim.end(None, End::Reset);
        until("it is lost", SOON, async || (!standing()).then_some(())).await;
        until("some time has passed", SOON, async || (clock::now() > lost + 3_000).then_some(()))
            .await;
        stop.cancel();
        lost
    };
    let (_, lost) = tokio::join!(relay.run(stop.clone(), || {}), losing);
    sim.listen(true);
    let gaps = run(&config, 1).await;
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    assert!(time(&gaps[0], "from").abs_diff(lost) < 1_000, "{gaps:?}, lost {lost}");
}
