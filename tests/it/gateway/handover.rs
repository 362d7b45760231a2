//! `reconnect`: the successor is opened, restored by its token, and nothing is lost or heard twice.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use astro_relay::{base::clock, config::Astro, gateway::table::Phase, journal::Journal};
use astro_sim::{End, Ended, Load, Options, Reception, Refusal};

use super::{
    OTHER, ROOM, SOON,
    bench::{Bench, Want, targets},
    long,
};
use crate::support::wait::until;

const TOPIC: &str = "channel.activities";
const WANTS: [Want<'_>; 2] = [("a", TOPIC, Some(ROOM)), ("b", TOPIC, Some(OTHER))];

/// A room that is wanted later.
const THIRD: &str = "2f2e2d2c2b2a292827262524";

/// Messages a second while connections are handed over.
const RATE: u64 = 1000;

/// Messages between two handovers: longer than a server that sends us round and round would wait.
const BETWEEN: u64 = 300;

/// Reads the journal until `done` and all that was published stands there: numbered from 0, each
/// number once, in order. Says how many there were.
async fn whole_and_in_order(bench: &Bench, done: &AtomicBool) -> u64 {
    let mut at = 0;
    let mut expected = 0;
    loop {
        let end = done.load(Ordering::SeqCst) && expected == bench.sim.stats().published;
        if end {
            return expected;
        }
        let next = bench.journal.next(at, 10_000, usize::MAX);
        let published = bench.sim.stats().published;
        let Ok(batch) = tokio::time::timeout(SOON, next).await else {
            panic!("{expected} came of {published}")
        };
        let batch = batch.unwrap();
        assert_eq!(batch.lost, 0);
        for record in &batch.records {
            let data: serde_json::Value = serde_json::from_slice(record.event.data()).unwrap();
            assert_eq!(
                data["n"], expected,
                "lost, twice or out of order: {}",
                record.event.place.topic
            );
            expected += 1;
        }
        at = batch.through;
    }
}

/// Hands over so many times.
async fn move_often(bench: &Bench, rounds: u64) {
    for round in 1..=rounds {
        let before = bench.journal.figures().last;
        assert_eq!(bench.sim.drain(None), 1, "one connection stands");
        until(&format!("handover {round} is done"), SOON, async || {
            let stats = bench.sim.stats();
            (stats.tokens_used == round && stats.open == 1).then_some(())
        })
        .await;
        until("messages flow", SOON, async || {
            (bench.journal.figures().last >= before + BETWEEN).then_some(())
        })
        .await;
    }
}

async fn moving(bench: &Bench) {
    until("it moves", SOON, async || {
        let state = bench.state();
        state.connections.values().any(|row| row.phase == Phase::Moving).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_duplicated_over_many_handovers() {
    let benches = if long() { 40 } else { 1 };
    for _ in 0..benches {
        nothing_is_lost_or_duplicated_over(25).await;
    }
}

/// As many as come in quick succession before the hourly budget counts.
async fn nothing_is_lost_or_duplicated_over(rounds: u64) {
    let bench = Bench::start(Options::default(), &WANTS).await;
    bench.confirmed(2).await;
    let done = AtomicBool::new(false);
    let traffic = async {
        let rooms = vec![ROOM.to_owned(), OTHER.to_owned()];
        let mut first = 0;
        while !done.load(Ordering::SeqCst) {
            let rooms = rooms.clone();
            let load = Load { messages: 500, rate: Some(RATE), rooms, first, ..Load::default() };
            bench.sim.load(&load).await;
            first += load.messages;
        }
    };
    let moves = async {
        move_often(&bench, rounds).await;
        done.store(true, Ordering::SeqCst);
    };
    let (messages, (), ()) = tokio::join!(whole_and_in_order(&bench, &done), traffic, moves);
    println!("{rounds} handovers, {messages} messages: none lost, none twice, all in order");

    let stats = bench.sim.stats();
    assert_eq!((stats.opened, stats.tokens_used), (rounds + 1, rounds), "never a plain connect");
    let records = bench.sim.connections();
    for record in records.iter().filter(|record| record.id > 1) {
        assert!(record.restored && record.commands.is_empty(), "nothing is subscribed again");
        assert_eq!(record.subscriptions.len(), 2);
    }
    let last = records.last().unwrap().id;
    for record in records.iter().filter(|record| record.id != last) {
        assert_eq!(record.ended, Some(Ended::ByClient), "the old one is closed by us");
    }
    assert!(bench.state().gaps.is_empty());
}

#[tokio::test]
async fn a_refused_token_is_used_once_and_the_old_link_is_read_meanwhile() {
    let bench = Bench::start(Options::default(), &WANTS).await;
    bench.confirmed(2).await;
    bench.sim.faults(|faults| {
        faults.refuse_reconnect = true;
        faults.response_delay = Duration::from_millis(400);
    });
    bench.sim.drain(None);
    until("the new connection asks", SOON, async || (bench.sim.stats().opened == 2).then_some(()))
        .await;
    bench.carries(TOPIC, ROOM, 1).await;
    assert!(bench.connection(2).unwrap().subscriptions.is_empty(), "it came through the old one");
    until("it has moved", SOON, async || bench.connection(1).unwrap().ended).await;
    assert_eq!(bench.connection(1).unwrap().ended, Some(Ended::ByClient));
    let record = bench.connection(2).unwrap();
    assert_eq!((record.restored, record.subscriptions.len(), record.commands.len()), (false, 2, 2));
    let tokens = bench.sim.attempts().iter().filter(|attempt| attempt.with_token).count();
    assert_eq!((tokens, bench.sim.stats().tokens_refused), (1, 1));
    bench.carries(TOPIC, OTHER, 2).await;
    assert_eq!(bench.received(2).await.len(), 2, "no gap, no twin");
}

#[tokio::test]
async fn a_move_without_a_token_waits_for_a_subscription_that_fails_for_a_moment() {
    let bench = Bench::start(Options::default(), &WANTS).await;
    bench.confirmed(2).await;
    bench.sim.faults(|faults| {
        faults.refuse_reconnect = true;
        faults.refusals = vec![Refusal::of("err_internal_error").room(OTHER).times(1)];
    });
    bench.sim.drain(None);
    until("it failed on the new connection", SOON, async || {
        let commands = bench.connection(2)?.commands;
        commands.iter().any(|command| command.error.is_some()).then_some(())
    })
    .await;
    bench.carries(TOPIC, OTHER, 1).await;
    until("it has moved", SOON, async || bench.connection(1).unwrap().ended).await;
    assert_eq!(bench.connection(2).unwrap().subscriptions.len(), 2, "no sooner than that");
    bench.carries(TOPIC, OTHER, 2).await;
    assert_eq!(bench.received(2).await.len(), 2, "no gap");
}

#[tokio::test]
async fn a_move_without_a_token_does_not_wait_for_a_subscription_that_is_refused() {
    let bench = Bench::start(Options::default(), &WANTS).await;
    bench.confirmed(2).await;
    bench.sim.faults(|faults| {
        faults.refuse_reconnect = true;
        faults.refusals = vec![Refusal::of("err_unauthorized").room(OTHER)];
    });
    bench.sim.drain(None);
    until("it has moved", SOON, async || bench.connection(1).unwrap().ended).await;
    assert_eq!(bench.connection(1).unwrap().ended, Some(Ended::ByClient));
    until("what is missing now is reported", SOON, async || {
        (bench.gaps().await.len() == 1).then_some(())
    })
    .await;
    assert_eq!(bench.gaps().await[0]["channel"], "b");
    bench.carries(TOPIC, ROOM, 1).await;
}

#[tokio::test]
async fn a_token_that_was_not_presented_may_be_used_again() {
    let bench = Bench::start(Options::default(), &WANTS).await;
    bench.confirmed(2).await;
    let refuse = |status| Reception::Refuse { status, retry_after: None };
    bench.sim.faults(|faults| faults.next.extend([refuse(502), refuse(429)]));
    bench.sim.drain(None);
    until("it has moved", SOON, async || bench.connection(1).unwrap().ended).await;
    let attempts: Vec<_> =
        bench.sim.attempts().iter().map(|a| (a.with_token, a.refused)).skip(1).collect();
    assert_eq!(attempts, [(true, Some(502)), (true, Some(429)), (true, None)]);
    assert!(bench.connection(2).unwrap().restored);
    assert!(bench.connection(2).unwrap().commands.is_empty());
    bench.carries(TOPIC, ROOM, 1).await;
    assert_eq!(bench.gaps().await.len(), 0);
}

#[tokio::test]
async fn an_old_link_that_ends_before_the_new_one_is_welcomed_may_leave_a_gap() {
    let bench = new_link_before_its_welcome().await;
    bench.carries(TOPIC, ROOM, 1).await;
    // Whether the server sends anything on the new one before it has welcomed it is not known.
    let events = bench.received(4).await;
    let topics: Vec<_> = events.iter().map(|event| &*event.place.topic).collect();
    assert_eq!(topics, ["relay.gap", "relay.gap", TOPIC, TOPIC], "told before what came after");
    assert_eq!((events[2].data(), events[3].data()), (&b"0"[..], &b"1"[..]));
    assert!(bench.connection(2).unwrap().commands.is_empty());
}

/// The old link has ended, the new one is open and not yet welcomed; on that, message 0 has come.
async fn new_link_before_its_welcome() -> Bench {
    let patient = |astro: &mut Astro| astro.welcome_grace = Astro::default().welcome_grace;
    let bench = Bench::with(Options::default(), targets(&WANTS), patient).await;
    bench.confirmed(2).await;
    bench.sim.faults(|faults| faults.welcome_delay = Duration::from_secs(1));
    bench.sim.drain(None);
    until("the new one is open", SOON, async || (bench.sim.stats().open == 2).then_some(())).await;
    bench.sim.end(Some(1), End::Fin);
    until("the old one has ended", SOON, async || (bench.sim.stats().open == 1).then_some(()))
        .await;
    bench.sim.publish(TOPIC, ROOM, 0);
    bench
}

async fn has_0(journal: &Journal) {
    until("what was read is in the journal", SOON, async || {
        let last = journal.figures().last;
        let batch = journal.read(0, last, usize::MAX, usize::MAX).await.unwrap();
        batch.records.iter().any(|record| record.event.data() == b"0").then_some(())
    })
    .await;
}

#[tokio::test]
async fn events_of_a_new_link_that_fails_are_appended() {
    let bench = new_link_before_its_welcome().await;
    bench.sim.end(Some(2), End::Fin);
    has_0(&bench.journal).await;
    bench.confirmed(2).await;
    until("both gaps are reported", SOON, async || (bench.gaps().await.len() == 2).then_some(()))
        .await;
}

#[tokio::test]
async fn events_of_a_new_link_that_must_move_are_appended() {
    let bench = new_link_before_its_welcome().await;
    bench.sim.drain(Some(2));
    has_0(&bench.journal).await;
}

#[tokio::test]
async fn events_of_a_new_link_are_appended_at_a_stop() {
    let bench = new_link_before_its_welcome().await;
    let journal = bench.journal.clone();
    // What the relay has read cannot be seen from outside: give it the time.
    until("the message has left", SOON, async || {
        (bench.connection(2)?.sent.len() == 1).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    bench.stop().await;
    has_0(&journal).await;
}

#[tokio::test]
async fn events_of_a_new_link_that_fails_are_appended_while_the_old_one_lives() {
    let bench = Bench::start(Options::default(), &WANTS).await;
    bench.confirmed(2).await;
    bench.sim.faults(|faults| faults.welcome_delay = Duration::from_secs(1));
    bench.sim.drain(None);
    until("the new one is open", SOON, async || (bench.sim.stats().open == 2).then_some(())).await;
    let message = format!(r#"{{"type":"message","topic":"{TOPIC}","room":"{ROOM}","data":0}}"#);
    bench.sim.send_fragmented(Some(2), &message, 1);
    bench.sim.end(Some(2), End::Fin);
    has_0(&bench.journal).await;
}

#[tokio::test]
async fn a_gap_between_the_old_link_and_the_new_one_is_reported() {
    let bench = Bench::start(Options::default(), &WANTS).await;
    bench.confirmed(2).await;
    bench.sim.faults(|faults| faults.upgrade_delay = Duration::from_millis(500));
    bench.sim.drain(None);
    moving(&bench).await;
    bench.sim.end(Some(1), End::Reset);
    bench.sim.publish(TOPIC, ROOM, "\"nobody hears this\"");
    let mut channels: Vec<_> = bench
        .received(2)
        .await
        .iter()
        .map(|event| {
            assert_eq!(&*event.place.topic, "relay.gap");
            event.place.channel.to_string()
        })
        .collect();
    channels.sort();
    assert_eq!(channels, ["a", "b"]);
    assert!(bench.connection(2).unwrap().commands.is_empty(), "restored all the same");
    bench.carries(TOPIC, OTHER, 1).await;
}

#[tokio::test]
async fn a_gap_between_the_old_link_and_the_new_one_is_reported_however_long_the_move_takes() {
    let bench = Bench::start(Options::default(), &WANTS).await;
    bench.confirmed(2).await;
    bench.sim.faults(|faults| faults.upgrade_delay = Duration::from_secs(6));
    bench.sim.drain(None);
    moving(&bench).await;
    let lost = clock::now();
    bench.sim.end(Some(1), End::Reset);
    until("the outage is seen", SOON, async || (bench.state().outages.len() == 2).then_some(()))
        .await;
    assert_eq!(bench.count("confirmed"), 0, "nothing is received now");
    // What is newly wanted meanwhile says nothing of the rest.
    bench.targets.send_replace(targets(&[WANTS[0], WANTS[1], ("c", TOPIC, Some(THIRD))]));
    bench.confirmed(3).await;
    let gaps = bench.gaps().await;
    assert_eq!(gaps.len(), 2, "{gaps:?}");
    for gap in &gaps {
        let time = |name: &str| clock::parse_rfc3339(gap[name].as_str().unwrap()).unwrap();
        assert!(time("from").abs_diff(lost) < 1_000, "since the last frame: {gap}, lost {lost}");
        assert!(time("to") > lost + 5_000, "until it is restored: {gap}, lost {lost}");
    }
    bench.carries(TOPIC, OTHER, 1).await;
}

#[tokio::test]
async fn a_connection_that_must_move_at_once_is_moved_again() {
    let bench = Bench::start(Options::default(), &WANTS).await;
    bench.confirmed(2).await;
    for round in 1..=5 {
        // The newest is told before it has said a word: its welcome is late.
        bench.sim.faults(|faults| faults.welcome_delay = Duration::from_millis(20));
        bench.sim.drain(None);
        until("the next is open", SOON, async || {
            (bench.sim.stats().tokens_used >= round).then_some(())
        })
        .await;
    }
    until("one stands", SOON, async || (bench.sim.stats().open == 1).then_some(())).await;
    bench.confirmed(2).await;
    bench.carries(TOPIC, ROOM, 1).await;
    bench.carries(TOPIC, OTHER, 2).await;
}

#[tokio::test]
async fn a_stop_while_moving_is_a_stop() {
    let bench = Bench::start(Options::default(), &WANTS).await;
    bench.confirmed(2).await;
    bench.sim.faults(|faults| faults.every = Reception::NeverUpgrades);
    bench.sim.drain(None);
    moving(&bench).await;
    bench.stop().await;
}

#[tokio::test]
async fn a_move_that_waits_is_given_up_when_the_old_link_ends_and_the_server_has_its_time() {
    let bench = Bench::start(Options::default(), &WANTS).await;
    bench.confirmed(2).await;
    let refuse = Reception::Refuse { status: 502, retry_after: Some("3".to_owned()) };
    let begin = tokio::time::Instant::now();
    bench.sim.faults(|faults| faults.next.push_back(refuse));
    bench.sim.drain(None);
    moving(&bench).await;
    until("the upgrade was refused", SOON, async || {
        let mut refused = false;
        bench.sim.faults(|faults| refused = faults.next.is_empty());
        refused.then_some(())
    })
    .await;
    bench.sim.end(Some(1), End::Fin);
    until("it is open again", SOON, async || {
        let state = bench.state();
        state.connections.values().all(|row| row.phase == Phase::Open).then_some(())
    })
    .await;
    assert!(begin.elapsed() >= Duration::from_secs(3), "the server asked for that");
    until("both gaps are reported", SOON, async || (bench.gaps().await.len() == 2).then_some(()))
        .await;
    bench.carries(TOPIC, ROOM, 1).await;
}

#[tokio::test]
async fn what_comes_on_the_new_link_is_not_held_back_when_the_old_one_has_ended() {
    let bench = Bench::start(Options::default(), &WANTS).await;
    bench.confirmed(2).await;
    bench.sim.faults(|faults| {
        faults.refuse_reconnect = true;
        faults.response_delay = Duration::from_hours(1);
    });
    bench.sim.drain(None);
    until("there is a new one", SOON, async || (bench.sim.stats().opened == 2).then_some(())).await;
    let message = format!(r#"{{"type":"message","topic":"{TOPIC}","room":"{ROOM}","data":0}}"#);
    bench.sim.send_fragmented(Some(2), &message, 1);
    bench.sim.end(Some(1), End::Fin);
    let begin = tokio::time::Instant::now();
    until("it is in the journal", SOON, async || {
        let batch = bench.journal.try_next(0, 100, usize::MAX)?;
        batch.records.iter().any(|record| &*record.event.place.topic == TOPIC).then_some(())
    })
    .await;
    assert!(begin.elapsed() < Duration::from_secs(8), "not when it is given up");
    let state = bench.state();
    assert!(
        !state.subscriptions.values().any(|row| row.state.as_str() == "confirmed"),
        "what is not answered is not confirmed"
    );
}
