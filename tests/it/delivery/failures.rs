//! A destination that takes no events: who waits, for how long, what goes on meanwhile, and who is told.

use std::time::Duration;

use astro_relay::{
    config::Start,
    journal::Journal,
    sink::{Cause, ClosedByPeer},
};
use serde_json::json;
use tokio::time::Instant;

use super::{
    HOUR, memory,
    scripted::{Answer, Running, Scripted, busy, down},
};
use crate::support::{
    journal::{PATIENCE, close, config, events, open, settled},
    wait::until,
};

fn denied(reason: &str) -> Cause {
    Cause::Denied { reason: reason.into() }
}

fn start(journal: &Journal, destination: &Scripted) -> Running {
    Running::start("destination", journal, destination, |config| {
        config.start = Start::Earliest;
        // Not the reports of what it rejects.
        config.topics = Some(vec!["channel.*".into()]);
    })
}

/// How many events the destination has rejected for good: without a directory there are no dead letters.
fn lost(running: &Running) -> u64 {
    running.page().lost
}

async fn is_state(running: &Running, state: &str) {
    until(state, HOUR, async || (running.page().state == state).then_some(())).await;
}

async fn all_arrive(journal: &Journal) {
    until("all of it has arrived", HOUR, async || {
        (journal.lag("destination").0 == 0).then_some(())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_denial_holds_the_sink_and_nothing_is_lost_or_out_of_order() {
    let (journal, destination) = (memory(), Scripted::new());
    destination.script((0..20).map(|_| Answer::After(0, denied("HTTP 404 Not Found"))));
    let running = start(&journal, &destination);
    journal.append(&mut events(0..500));
    is_state(&running, "held").await;
    let page = running.page();
    assert!(page.last_error.unwrap().contains("HTTP 404"), "the reason stands on the page");
    let reasons = running.status.snapshot().reasons();
    assert!(reasons.iter().any(|reason| reason.contains("destination is held")), "{reasons:?}");
    // Tried soon at first, and then about once a minute.
    tokio::time::sleep(Duration::from_mins(10)).await;
    assert!(
        (9..=15).contains(&destination.delivered_at().len()),
        "{:?}",
        destination.delivered_at()
    );
    assert_eq!(running.page().state, "held", "a new connection proves nothing");
    all_arrive(&journal).await;
    assert_eq!(destination.accepted(), (0..500).collect::<Vec<_>>());
    assert_eq!(lost(&running), 0);
    assert_eq!(running.page().state, "up");
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_retry_request_ends_every_wait() {
    let gone = || Cause::Gone { reason: "HTTP 410 Gone".into() };
    let patience = || busy(Some(Duration::from_mins(50)));
    for (state, cause) in [
        ("gone", Box::new(gone) as Box<dyn Fn() -> Cause>),
        ("busy", Box::new(patience)),
        ("held", Box::new(|| denied("HTTP 403 Forbidden"))),
        ("down", Box::new(down)),
    ] {
        let (journal, destination) = (memory(), Scripted::new());
        destination.script([Answer::After(3, cause())]);
        destination.connects([None, Some(cause()), Some(cause())]);
        let running = start(&journal, &destination);
        journal.append(&mut events(0..10));
        is_state(&running, state).await;
        let asked = Instant::now();
        for _ in 0..4 {
            assert!(running.status.retry_sink("destination"));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        all_arrive(&journal).await;
        assert!(asked.elapsed() < Duration::from_secs(1), "{state}: {:?}", asked.elapsed());
        assert_eq!(destination.accepted(), (0..10).collect::<Vec<_>>(), "{state}");
        is_state(&running, "up").await;
        assert!(!running.status.retry_sink("nobody"));
        running.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_lost_while_events_wait_is_made_again_at_once() {
    let (journal, destination) = (memory(), Scripted::new());
    destination.script([Answer::After(0, busy(Some(Duration::from_mins(30))))]);
    let running = start(&journal, &destination);
    journal.append(&mut events(0..10));
    is_state(&running, "busy").await;
    let begin = Instant::now();
    for _ in 0..5 {
        let before = destination.connected_at().len();
        destination.lose();
        until("it connects again", HOUR, async || {
            (destination.connected_at().len() > before).then_some(())
        })
        .await;
        is_state(&running, "busy").await;
        tokio::time::sleep(Duration::from_mins(1)).await;
    }
    assert!(begin.elapsed() < Duration::from_mins(6), "{:?}", begin.elapsed());
    assert_eq!(destination.delivered_at().len(), 1, "the wait is kept");
    all_arrive(&journal).await;
    assert!(begin.elapsed() >= Duration::from_mins(29));
    running.stop().await;
}

/// Two clients with one name throw each other out: each gets to work for a moment.
#[tokio::test(start_paused = true)]
async fn connections_that_end_at_once_are_made_with_backoff() {
    let (journal, destination) = (memory(), Scripted::new());
    destination.script((0..10_000).map(|_| Answer::After(1, down())));
    let running = start(&journal, &destination);
    journal.append(&mut events(0..5000));
    tokio::time::sleep(HOUR).await;
    let tries = destination.connected_at().len();
    assert!(tries < 250, "{tries} connections in an hour");
    destination.script([]);
    all_arrive(&journal).await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_event_that_ends_the_connection_again_and_again_becomes_a_dead_letter() {
    let (journal, destination) = (memory(), Scripted::new());
    destination.hangs_up_at(|n| n == 30);
    let running = start(&journal, &destination);
    journal.append(&mut events(0..100));
    let begin = Instant::now();
    all_arrive(&journal).await;
    assert!(begin.elapsed() >= Duration::from_mins(1), "{:?}", begin.elapsed());
    assert!(begin.elapsed() <= Duration::from_mins(10), "{:?}", begin.elapsed());
    assert_eq!(destination.accepted(), (0..100).filter(|n| *n != 30).collect::<Vec<_>>());
    assert_eq!(lost(&running), 1);
    assert_eq!(running.page().state, "up");
    running.stop().await;
}

/// One that is stopped and keeps its connections. A slow one is none.
#[tokio::test(start_paused = true)]
async fn a_destination_that_answers_nothing_for_ten_seconds_is_reported() {
    let (journal, destination) = (memory(), Scripted::new());
    let slow = |seconds| Answer::Slow(Duration::from_secs(seconds));
    destination.script([slow(9), slow(9), slow(25)]);
    let running = start(&journal, &destination);
    let reasons = || running.status.snapshot().reasons();
    is_state(&running, "up").await;
    for n in 0..2 {
        journal.append(&mut events(n..=n));
        until("it is accepted", HOUR, async || {
            assert_eq!(reasons(), [""; 0]);
            (journal.lag("destination").0 == 0).then_some(())
        })
        .await;
    }
    journal.append(&mut events(2..3));
    let found = until("it is reported", HOUR, async || reasons().pop()).await;
    assert!(found.starts_with("sink destination has accepted nothing since "), "{found}");
    let after = destination.delivered_at()[2].elapsed().as_secs();
    assert!((10..12).contains(&after), "{after}");
    assert_eq!(running.page().state, "up");
    all_arrive(&journal).await;
    until("it is over", HOUR, async || reasons().is_empty().then_some(())).await;
    running.stop().await;
}

/// While it comes back nobody can connect, and that does not excuse the event.
#[tokio::test(start_paused = true)]
async fn an_event_of_which_the_destination_dies_becomes_a_dead_letter() {
    let (journal, destination) = (memory(), Scripted::new());
    destination.hangs_up_at(|n| n == 30);
    destination.connects((0..1000).map(|n| (n % 2 > 0).then(down)));
    let running = start(&journal, &destination);
    journal.append(&mut events(0..100));
    all_arrive(&journal).await;
    assert_eq!(destination.accepted(), (0..100).filter(|n| *n != 30).collect::<Vec<_>>());
    assert_eq!(lost(&running), 1);
    running.stop().await;
}

/// One that is restarted over and over, or in front of which something else ends connections.
#[tokio::test(start_paused = true)]
async fn a_destination_that_ends_every_connection_loses_no_event() {
    let (journal, destination) = (memory(), Scripted::new());
    destination.hangs_up_at(|_| true);
    destination.hangs_up_when_idle(true);
    let running = start(&journal, &destination);
    journal.append(&mut events(0..100));
    tokio::time::sleep(5 * HOUR).await;
    assert_eq!(lost(&running), 0);
    assert_eq!(running.page().state, "down");
    // One that stands still, but ends at every event, costs no more than a few.
    destination.hangs_up_when_idle(false);
    tokio::time::sleep(5 * HOUR).await;
    assert_eq!(lost(&running), 3);
    destination.hangs_up_at(|_| false);
    all_arrive(&journal).await;
    assert_eq!(destination.accepted(), (3..100).collect::<Vec<_>>());
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn timeouts_and_refused_connections_are_not_blamed_on_an_event() {
    let (journal, destination) = (memory(), Scripted::new());
    destination.script((0..200).map(|_| Answer::After(0, down())));
    let running = start(&journal, &destination);
    journal.append(&mut events(0..10));
    tokio::time::sleep(HOUR).await;
    all_arrive(&journal).await;
    assert_eq!(lost(&running), 0);
    running.stop().await;
}

#[test]
fn a_close_by_the_peer_is_down() {
    let cause = Cause::closed("reset");
    assert!(cause.is_closed_by_peer() && !down().is_closed_by_peer());
    let Cause::Down(error) = cause else { panic!("{cause}") };
    assert!(error.is::<ClosedByPeer>());
    assert_eq!(error.to_string(), "reset");
}

#[tokio::test(start_paused = true)]
async fn without_a_directory_a_rejected_event_is_lost_and_reported() {
    let (journal, destination, watcher) = (memory(), Scripted::new(), Scripted::new());
    destination.poison(|n| n == 3);
    let running = start(&journal, &destination);
    let watching = Running::start("watcher", &journal, &watcher, |config| {
        config.topics = Some(vec!["relay.gap".into()]);
    });
    journal.append(&mut events(0..5));
    until("it is reported", HOUR, async || (!watcher.gaps().is_empty()).then_some(())).await;
    all_arrive(&journal).await;
    assert_eq!(destination.accepted(), [0, 1, 2, 4]);
    let cause = "rejected, and not kept without journal.dir";
    assert_eq!(watcher.gaps(), [json!({"cause": cause, "sink": "destination", "count": 1})]);
    let page = running.page();
    assert_eq!((page.state, page.lost, page.dead_letters), ("up", 1, 0));
    assert!(journal.dead_letter_counts().is_empty(), "no letter waits for anybody");
    let reason = format!("sink destination: 1 event lost, {cause}");
    assert_eq!(running.status.snapshot().reasons(), [reason]);
    running.stop().await;
    watching.stop().await;
}

#[tokio::test(start_paused = true)]
async fn many_events_that_are_rejected_without_a_directory_are_reported_in_few_gaps() {
    let (journal, destination, watcher) = (memory(), Scripted::new(), Scripted::new());
    destination.poison(|n| n < 50);
    let running = start(&journal, &destination);
    let watching = Running::start("watcher", &journal, &watcher, |config| {
        config.topics = Some(vec!["relay.gap".into()]);
    });
    journal.append(&mut events(0..50));
    until("all of them are reported", HOUR, async || {
        let counts = watcher.gaps().into_iter().filter_map(|gap| gap["count"].as_u64());
        (counts.sum::<u64>() == 50).then_some(())
    })
    .await;
    assert_eq!(lost(&running), 50);
    assert!(watcher.gaps().len() <= 3, "{:?}", watcher.gaps());
    running.stop().await;
    watching.stop().await;
}

#[tokio::test(start_paused = true)]
async fn many_rejections_in_a_row_make_the_sink_not_ready() {
    let (journal, destination) = (memory(), Scripted::new());
    destination.poison(|n| n < 50);
    let running = start(&journal, &destination);
    journal.append(&mut events(0..50));
    is_state(&running, "rejecting").await;
    all_arrive(&journal).await;
    let page = running.page();
    assert_eq!((page.state, page.rejected_in_a_row), ("rejecting", 50));
    assert!(page.last_error.unwrap().contains("were all rejected: as the test says"));
    journal.append(&mut events(50..51));
    is_state(&running, "up").await;
    running.stop().await;
}

/// Thousands in a row: none may be lost between the template and the disk.
#[tokio::test]
async fn events_that_cannot_be_rendered_count_in_the_window() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(&config(dir.path()));
    crate::support::journal::append(&journal, events(0..10_000)).await;
    let destination = Scripted::new();
    let running = Running::start("destination", &journal, &destination, |config| {
        config.start = Start::Earliest;
        config.window = 16;
        // A number has no items.
        config.payload = "{{ id if id[-3:] == '000' else 3 | items }}".into();
    });
    until("all is dealt with", 2 * PATIENCE, async || {
        let dead = journal.dead_letter_counts().get("destination").copied().unwrap_or(0);
        assert!(dead <= 10_000 - journal.lag("destination").0 + 16, "no more than a window ahead");
        (journal.lag("destination").0 == 0).then_some(())
    })
    .await;
    settled(&journal, &["destination"]).await;
    assert_eq!(destination.accepted().len(), 10);
    let store = astro_relay::journal::store::Store::open_reader(dir.path()).unwrap();
    assert_eq!(store.dead_letters(Some("destination")).unwrap().len(), 9_990);
    running.stop().await;
    close(journal).await;
}

#[tokio::test]
async fn a_sink_with_full_dead_letters_is_held_until_some_are_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.max_dead_letters.0 = 16 * 1024;
    let (journal, _) = open(&config);
    crate::support::journal::append(&journal, events(0..500)).await;
    let destination = Scripted::new();
    destination.poison(|n| n < 400);
    let running = start(&journal, &destination);
    is_state(&running, "held").await;
    assert!(running.page().last_error.unwrap().contains("max_dead_letters"));
    let store = astro_relay::journal::store::Store::open_reader(dir.path()).unwrap();
    store.allow_requests().unwrap();
    let mut dropped = 0;
    until("all is dealt with", 2 * PATIENCE, async || {
        assert_eq!(running.page().lost, 0);
        dropped += store.drop_dead_letters(None, Some("destination")).unwrap();
        (journal.lag("destination").0 == 0).then_some(())
    })
    .await;
    settled(&journal, &["destination"]).await;
    dropped += store.drop_dead_letters(None, Some("destination")).unwrap();
    assert_eq!(dropped, 400, "each was set aside, none was deleted");
    assert_eq!(destination.accepted(), (400..500).collect::<Vec<_>>());
    is_state(&running, "up").await;
    running.stop().await;
    close(journal).await;
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_shown_until_an_event_is_accepted() {
    let (journal, destination) = (memory(), Scripted::new());
    destination.panics_at(|n| n == 0);
    let running = start(&journal, &destination);
    journal.append(&mut events(0..10));
    is_state(&running, "failed").await;
    let page = running.page();
    assert!(page.last_error.unwrap().contains("as the test says"), "with what it said");
    let status = running.fails().await;
    // The supervisor restarts it: it does not work before it has delivered.
    let again = Running::start_with(status, "destination", &journal, &destination, |_| ());
    is_state(&again, "failed").await;
    let status = again.fails().await;
    destination.panics_at(|_| false);
    let again = Running::start_with(status, "destination", &journal, &destination, |_| ());
    all_arrive(&journal).await;
    is_state(&again, "up").await;
    assert_eq!(destination.accepted(), (0..10).collect::<Vec<_>>());
    again.stop().await;
}

/// One with several on their way at once, some of which are accepted behind one that is not.
#[tokio::test]
async fn events_accepted_behind_the_cursor_are_not_sent_again_after_a_stop() {
    let dir = tempfile::tempdir().unwrap();
    let destination = Scripted::new();
    destination.takes_several(8);
    destination.withholds(|n| n % 5 == 2);
    for round in 0..4 {
        let (journal, _) = open(&config(dir.path()));
        crate::support::journal::append(&journal, events(round * 20..(round + 1) * 20)).await;
        let running = start(&journal, &destination);
        until("all that is not withheld is accepted", PATIENCE, async || {
            (destination.on_its_way() > 0 && destination.is_stuck()).then_some(())
        })
        .await;
        running.stop().await;
        close(journal).await;
    }
    destination.withholds(|_| false);
    let (journal, _) = open(&config(dir.path()));
    let running = start(&journal, &destination);
    all_arrive(&journal).await;
    running.stop().await;
    close(journal).await;
    let mut accepted = destination.accepted();
    assert_eq!(accepted.len(), 80, "none twice: {accepted:?}");
    accepted.sort_unstable();
    assert_eq!(accepted, (0..80).collect::<Vec<_>>());
}
