//! Delivery to a destination that does what the test says: order, retries, the window, dead letters.

mod backlog;
mod failures;
mod requests;
mod scripted;
mod state;
mod webhook;

use std::{sync::Arc, time::Duration};

use astro_relay::{
    config::{self, Period, Size, Start},
    delivery::status::Status,
    journal::Journal,
    sink::Cause,
};
use fastrand::Rng;
use tokio::time::Instant;

use self::scripted::{Answer, Running, Scripted, busy, down};
use crate::support::{
    journal::{PATIENCE, append, close, config, event, event_of, events, open},
    wait::until,
};

const HOUR: Duration = Duration::from_hours(1);

/// A journal without a disk: its clock may be paused.
fn memory() -> Journal {
    Journal::in_memory(64 << 20)
}

#[tokio::test(start_paused = true)]
async fn each_event_arrives_once_and_in_order_despite_random_failures() {
    for seed in 0..60 {
        let mut random = Rng::with_seed(seed);
        let poison = move |n: u64| (n + seed).is_multiple_of(41);
        let (journal, destination) = (memory(), Scripted::new());
        let answers = (0..random.usize(..60)).map(|_| match random.u8(..6) {
            0 => Answer::After(random.usize(..40), down()),
            1 => Answer::After(
                random.usize(..40),
                busy(random.bool().then_some(Duration::from_secs(9))),
            ),
            2 => Answer::Hang,
            3 => Answer::After(usize::MAX, down()),
            _ => Answer::Accept,
        });
        destination.script(answers);
        destination.poison(poison);
        destination.connects((0..random.usize(..5)).map(|_| random.bool().then(down)));
        if seed % 2 == 0 {
            destination.answers_later(random.fork());
        }
        let running = Running::start("destination", &journal, &destination, |config| {
            config.start = Start::Earliest;
            // Not the reports of what it rejects.
            config.topics = Some(vec!["channel.*".into()]);
            config.window = random.usize(1..200);
            // One that hangs, which no real sink does, is given up after this for each of its events.
            config.timeout = Period(Duration::from_millis(200));
        });
        for first in (0..600).step_by(50) {
            journal.append(&mut events(first..first + 50));
            tokio::time::sleep(Duration::from_millis(random.u64(..3000))).await;
        }
        let expected: Vec<_> = (0..600).filter(|n| !poison(*n)).collect();
        // The last of it may come with the news that the link is lost. Sixty failures may each cost
        // the longest wait.
        until("all of it has arrived", 3 * HOUR, async || {
            let up = running.status.snapshot().sinks["destination"].state == "up";
            (up && journal.lag("destination").0 == 0).then_some(())
        })
        .await;
        assert_eq!(destination.accepted(), expected, "seed {seed}");
        let dead = (0..600).filter(|n| poison(*n)).count();
        let row = running.status.snapshot().sinks["destination"].clone();
        // Without a directory there are no dead letters.
        assert_eq!(row.lost, u64::try_from(dead).unwrap(), "seed {seed}");
        assert_eq!(row.delivered, u64::try_from(expected.len()).unwrap());
        // The last of it may have been taken by a destination that went away at once.
        until("it is up again", HOUR, async || {
            (running.status.snapshot().sinks["destination"].state == "up").then_some(())
        })
        .await;
        running.stop().await;
        assert!(destination.closed());
    }
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_destination_is_tried_with_backoff() {
    let (journal, destination) = (memory(), Scripted::new());
    destination.connects(std::iter::repeat_with(|| Some(down())).take(100_000));
    let running = Running::start("destination", &journal, &destination, |config| {
        config.start = Start::Earliest;
    });
    journal.append(&mut events(0..10));
    tokio::time::sleep(HOUR).await;
    let tries = destination.connected_at();
    let waits: Vec<_> = tries.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(tries.len() < 160, "{} attempts in an hour", tries.len());
    assert!(waits[4..].iter().all(|wait| *wait >= Duration::from_secs(5)), "the breaker is open");
    assert!(waits.iter().all(|wait| *wait <= Duration::from_secs(61)), "{waits:?}");
    assert_eq!(running.status.snapshot().sinks["destination"].state, "down");
    // It comes back, and nothing is missing.
    destination.connects([]);
    until("all of it has arrived", HOUR, async || {
        (destination.accepted().len() == 10).then_some(())
    })
    .await;
    running.stop().await;
}

/// Age is a matter of the wall clock, which nobody can pause.
#[tokio::test]
async fn events_older_than_max_age_after_an_outage_are_skipped() {
    let (journal, destination) = (memory(), Scripted::new());
    let age = Duration::from_secs(3);
    let away = Duration::from_millis(3100);
    destination.script([Answer::After(1, busy(Some(away))), Answer::Accept]);
    let running = Running::start("destination", &journal, &destination, |config| {
        config.start = Start::Earliest;
        config.max_age = Some(Period(age));
    });
    journal.append(&mut events(0..4));
    until("it was tried", PATIENCE, async || (!destination.batches().is_empty()).then_some(()))
        .await;
    until("all is dealt with", PATIENCE, async || {
        (journal.lag("destination").0 == 0).then_some(())
    })
    .await;
    journal.append(&mut events(4..6));
    until("what is new arrives", PATIENCE, async || {
        (destination.accepted().len() == 3).then_some(())
    })
    .await;
    assert_eq!(destination.accepted(), [0, 4, 5]);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_busy_destination_is_waited_for_as_long_as_it_asks() {
    let (journal, destination) = (memory(), Scripted::new());
    destination.script([Answer::After(3, busy(Some(Duration::from_secs(700)))), Answer::Accept]);
    journal.append(&mut events(0..10));
    let running = Running::start("destination", &journal, &destination, |config| {
        config.start = Start::Earliest;
    });
    until("the rest has arrived", HOUR, async || {
        (destination.accepted().len() == 10).then_some(())
    })
    .await;
    let at = destination.delivered_at();
    assert!(at[1] - at[0] >= Duration::from_secs(700));
    assert_eq!(destination.connected_at().len(), 1, "the link was kept");
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_is_gone_is_tried_again_after_an_hour() {
    let (journal, destination) = (memory(), Scripted::new());
    destination.script([Answer::After(2, Cause::Gone { reason: "410".into() })]);
    journal.append(&mut events(0..10));
    let running = Running::start("destination", &journal, &destination, |config| {
        config.start = Start::Earliest;
    });
    tokio::time::sleep(Duration::from_mins(59)).await;
    assert_eq!((destination.accepted(), destination.delivered_at().len()), (vec![0, 1], 1));
    assert_eq!(running.status.snapshot().sinks["destination"].state, "gone");
    assert_eq!(journal.lag("destination").0, 8, "what is left waits for a human");
    until("it is asked again", 2 * Duration::from_mins(1), async || {
        (destination.accepted() == (0..10).collect::<Vec<_>>()).then_some(())
    })
    .await;
    assert_eq!(running.status.snapshot().sinks["destination"].state, "up");
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_hanging_destination_delays_no_other() {
    let journal = memory();
    let (hanging, well) = (Scripted::new(), Scripted::new());
    hanging.script(std::iter::repeat_with(|| Answer::Hang).take(10_000));
    let earliest = |config: &mut config::SinkConfig| config.start = Start::Earliest;
    let one = Running::start("hanging", &journal, &hanging, earliest);
    let two = Running::start("well", &journal, &well, earliest);
    let begin = Instant::now();
    for n in 0..1000 {
        journal.append(&mut vec![event(n)]);
        until("the other has it", Duration::from_millis(50), async || {
            (well.accepted().len() as u64 > n).then_some(())
        })
        .await;
    }
    assert!(begin.elapsed() < Duration::from_secs(50));
    assert!(hanging.accepted().is_empty());
    tokio::time::sleep(HOUR).await;
    let batches = hanging.batches();
    assert!(
        batches.len() > 10 && batches.iter().all(|batch| batch[0] == 0),
        "always the same first"
    );
    one.stop().await;
    two.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_finishes_what_is_in_flight_and_sends_nothing_new() {
    let (journal, destination) = (memory(), Scripted::new());
    destination.script([Answer::Slow(Duration::from_secs(4)), Answer::Accept]);
    journal.append(&mut events(0..1000));
    let running = Running::start("destination", &journal, &destination, |config| {
        config.start = Start::Earliest;
        config.window = 100;
    });
    until("it is at work", HOUR, async || (destination.batches().len() == 1).then_some(())).await;
    let begin = Instant::now();
    running.stop().await;
    assert!(begin.elapsed() <= Duration::from_secs(4));
    assert_eq!(destination.accepted(), (0..50).collect::<Vec<_>>());
    assert_eq!(journal.lag("destination").0, 950);
    assert!(destination.closed());
    // One that is being connected to is not waited for.
    let destination = Scripted::new();
    destination.hang_connecting();
    let running = Running::start("destination", &journal, &destination, |_| ());
    until("it connects", HOUR, async || (destination.connected_at().len() == 1).then_some(()))
        .await;
    let begin = Instant::now();
    running.stop().await;
    assert!(begin.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn events_are_sent_before_those_before_them_are_acknowledged() {
    let (journal, destination) = (memory(), Scripted::new());
    destination.answers_later(Rng::with_seed(7));
    let running = Running::start("destination", &journal, &destination, |config| {
        config.start = Start::Earliest;
        config.window = 100;
    });
    journal.append(&mut events(0..1000));
    let all = async || (journal.lag("destination").0 == 0).then_some(());
    until("all of it has arrived", HOUR, all).await;
    assert_eq!(destination.accepted(), (0..1000).collect::<Vec<_>>());
    let overlaps = destination.overlaps();
    assert!(overlaps > 10, "{overlaps}");
    // One alone is answered for too, though nothing comes behind it.
    journal.append(&mut events(1000..1001));
    until("it has arrived", HOUR, all).await;
    // At an end nothing is left on its way, and nothing new goes out.
    destination.script((0..1000).map(|_| Answer::Slow(Duration::from_secs(1))));
    journal.append(&mut events(1001..3000));
    until("it is at work", HOUR, async || (destination.overlaps() > overlaps).then_some(())).await;
    running.stop().await;
    let accepted = destination.accepted();
    assert!(accepted.len() < 3000, "{}", accepted.len());
    assert!(
        accepted.iter().copied().eq(0..3000 - journal.lag("destination").0),
        "{}",
        accepted.len()
    );
    assert!(destination.closed());
}

#[tokio::test(start_paused = true)]
async fn lost_events_are_counted_and_reported_in_one_gap() {
    let journal = Journal::in_memory(30_000);
    let (destination, watcher) = (Scripted::new(), Scripted::new());
    journal.register("destination", Start::End).unwrap();
    for first in (0..1000).step_by(100) {
        journal.append(&mut events(first..first + 100));
    }
    let kept = journal.figures().last - journal.figures().oldest + 1;
    // The first attempts fail: the loss must not be told again with each of them.
    destination.script((0..5).map(|_| Answer::After(0, down())));
    let running = Running::start("destination", &journal, &destination, |_| ());
    let watching = Running::start("watcher", &journal, &watcher, |config| {
        config.topics = Some(vec!["relay.gap".into()]);
    });
    until("the rest has arrived", HOUR, async || (journal.lag("destination").0 == 0).then_some(()))
        .await;
    until("the gap was told", HOUR, async || (journal.lag("watcher").0 == 0).then_some(())).await;
    let lost = 1000 - kept;
    assert_eq!(running.status.snapshot().sinks["destination"].lost, lost);
    let arrived = destination.accepted();
    assert_eq!(arrived, (lost..1000).collect::<Vec<_>>());
    let gaps = watcher.gaps();
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    assert_eq!((&gaps[0]["sink"], &gaps[0]["count"]), (&"destination".into(), &lost.into()));
    running.stop().await;
    watching.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_loss_that_was_reported_is_not_counted_again_when_the_sink_reads_on() {
    let journal = Journal::in_memory(30_000);
    let (destination, watcher) = (Scripted::new(), Scripted::new());
    journal.register("destination", Start::End).unwrap();
    journal.append(&mut events(0..1000));
    let lost = journal.figures().oldest - 1;
    assert_eq!(journal.take_losses(), [("destination".into(), lost)]);
    let running = Running::start("destination", &journal, &destination, |_| ());
    let watching = Running::start("watcher", &journal, &watcher, |config| {
        config.topics = Some(vec!["relay.gap".into()]);
    });
    until("the rest has arrived", HOUR, async || (journal.lag("destination").0 == 0).then_some(()))
        .await;
    until("the gap is reported", HOUR, async || (watcher.gaps().len() == 1).then_some(())).await;
    assert_eq!(watcher.gaps()[0]["count"], lost);
    assert_eq!(running.page().lost, 0);
    running.stop().await;
    watching.stop().await;
}

#[tokio::test]
async fn unsaved_events_never_exceed_the_window() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(&config(dir.path()));
    for (window, name, ahead) in [
        (1, "a", false),
        (2, "b", false),
        (7, "c", false),
        (64, "d", false),
        (1, "e", true),
        (2, "f", true),
        (7, "g", true),
        (64, "h", true),
    ] {
        let destination = Scripted::new();
        if ahead {
            destination.answers_later(Rng::with_seed(1));
        }
        destination.watch_window(&journal, name);
        destination.poison(|n| n.is_multiple_of(19));
        let running = Running::start(name, &journal, &destination, |config| {
            config.window = window;
            config.start = Start::Earliest;
        });
        append(&journal, events(0..300)).await;
        until("all of it has arrived", PATIENCE, async || (journal.lag(name).0 == 0).then_some(()))
            .await;
        assert!(
            destination.most_in_flight() <= window,
            "{} of {window}",
            destination.most_in_flight()
        );
        assert!(destination.most_in_flight() >= window.div_ceil(2).min(2), "the window is used");
        running.stop().await;
    }
    close(journal).await;
}

/// A cursor is saved within milliseconds, an answer may take much longer.
#[tokio::test]
async fn a_full_window_opens_when_the_cursor_is_saved() {
    let dir = tempfile::tempdir().unwrap();
    // All of it stands in memory, so that the next batch is always there.
    let memory = Size(1024 * 1024);
    let (journal, _) = open(&config::Journal { memory, ..config(dir.path()) });
    append(&journal, events(0..400)).await;
    let destination = Scripted::new();
    destination.answers_behind();
    let running = Running::start("destination", &journal, &destination, |config| {
        config.start = Start::Earliest;
        config.window = 8;
    });
    until("all of it has arrived", PATIENCE, async || {
        (journal.lag("destination").0 == 0).then_some(())
    })
    .await;
    assert_eq!(destination.accepted(), (0..400).collect::<Vec<_>>());
    // The last is waited for, and what is on its way when the journal looks for requests.
    assert!(destination.waits() < 10, "{} of {}", destination.waits(), destination.overlaps());
    running.stop().await;
    close(journal).await;
}

#[tokio::test]
async fn a_sink_continues_at_its_cursor_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut expected = 0;
    let destination = Scripted::new();
    for round in 0..4 {
        let (journal, opened) = open(&config(dir.path()));
        assert_eq!(opened.lost, 0);
        let running = Running::start("destination", &journal, &destination, |config| {
            config.start = Start::Earliest;
        });
        append(&journal, events(round * 500..(round + 1) * 500)).await;
        expected += 250;
        until("some has arrived", PATIENCE, async || {
            (destination.accepted().len() >= expected).then_some(())
        })
        .await;
        running.stop().await;
        close(journal).await;
    }
    let (journal, _) = open(&config(dir.path()));
    let running = Running::start("destination", &journal, &destination, |_| ());
    until("all of it has arrived", PATIENCE, async || {
        (journal.lag("destination").0 == 0).then_some(())
    })
    .await;
    assert_eq!(destination.accepted(), (0..2000).collect::<Vec<_>>());
    running.stop().await;
    close(journal).await;
}

/// What every part says of itself, for one test.
fn status() -> Arc<Status> {
    Arc::new(Status::default())
}

/// Of large events fewer are on their way: a window is bounded in bytes too.
#[tokio::test(start_paused = true)]
async fn a_window_of_large_events_is_bounded_in_bytes() {
    const LARGE: usize = 100 * 1024;
    let (journal, destination) = (memory(), Scripted::new());
    destination.answers_behind();
    destination.script([Answer::Hang]);
    let running = Running::start("destination", &journal, &destination, |config| {
        config.start = Start::Earliest;
        config.window = 2048;
        config.timeout = Period(Duration::from_secs(1));
    });
    let count = 300;
    journal.append(&mut (0..count).map(|n| event_of(n, LARGE)).collect());
    // Each counts with its payload, and the last reading may go beyond the bound.
    let bound = (2048 * 2048 + 2 * 1024 * 1024) / LARGE;
    let mut most = 0;
    until("it hangs", HOUR, async || {
        most = most.max(destination.on_its_way());
        (destination.connected_at().len() > 1).then_some(())
    })
    .await;
    assert!((2..=bound).contains(&most), "{most} of at most {bound}");
    until("all is dealt with", HOUR, async || (journal.lag("destination").0 == 0).then_some(()))
        .await;
    assert_eq!(destination.accepted(), (0..count).collect::<Vec<_>>());
    running.stop().await;
}
