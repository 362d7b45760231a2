//! Size, age, and what is kept for whom.

use std::time::Duration;

use astro_relay::{
    app::relay::Relay,
    base::{clock, event::Event},
    config::{self, Config, Period, Size, Start},
    journal::{Health, Journal, SetAside, StateElement},
};

use crate::support::{
    journal::{
        PATIENCE, append, append_aged, close, config, crashed, event, events, open, position,
        read_all, settled,
    },
    wait::until,
};

#[tokio::test]
async fn events_dropped_from_memory_are_counted_as_lost() {
    let journal = Journal::in_memory(20_000);
    journal.register("late", Start::End).unwrap();
    append(&journal, events(0..500)).await;
    let figures = journal.figures();
    assert!(figures.memory <= 20_000, "{figures:?}");
    let got = read_all(&journal, 0).await;
    let kept = u64::try_from(got.numbers.len()).unwrap();
    assert!(kept > 10 && got.lost == 500 - kept, "{got:?}");
    assert_eq!(got.numbers, (500 - kept..500).collect::<Vec<_>>());
    // The loss is told before the events behind it.
    let batch = journal.next(0, 5, 1 << 20).await.unwrap();
    assert_eq!((batch.lost, batch.records[0].seq), (500 - kept, 500 - kept + 1));
    assert_eq!(journal.lag("late").0, kept, "what is gone does not wait");
}

#[tokio::test]
async fn an_event_larger_than_the_memory_is_lost_alone() {
    let journal = Journal::in_memory(4_000);
    journal.append(&mut vec![event(0), crate::support::journal::event_of(1, 10_000)]);
    let got = read_all(&journal, 0).await;
    assert_eq!((got.numbers, got.lost), (vec![], 2));
    journal.append(&mut vec![event(2)]);
    let got = read_all(&journal, 2).await;
    assert_eq!((got.numbers, got.lost), (vec![2], 0));
}

const HOUR: Duration = Duration::from_hours(1);

/// The cursor of what a member of a cluster has still to publish.
const TO_PUBLISH: &str = "relay.cluster";

#[tokio::test]
async fn events_older_than_max_age_are_removed_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let config = config::Journal { max_age: Period(HOUR), ..config(dir.path()) };
    let (journal, _) = open(&config);
    journal.register("slow", Start::Earliest).unwrap();
    append_aged(&journal, (0..300).map(|n| (event(n), 2 * HOUR))).await;
    append_aged(&journal, (300..900).map(|n| (event(n), HOUR / 2))).await;
    until("the old ones are gone", PATIENCE, async || {
        (journal.figures().oldest == 301).then_some(())
    })
    .await;
    let got = read_all(&journal, position(&journal, "slow")).await;
    assert_eq!(got.lost, 300);
    assert_eq!(got.numbers, (300..900).collect::<Vec<_>>());
    close(journal).await;
}

/// A sink that gets another name, and back.
#[tokio::test]
async fn what_waits_for_a_removed_sink_is_kept_as_long_as_what_is_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let config = config::Journal { keep_delivered: Period(HOUR), ..config(dir.path()) };
    let (journal, _) = open(&config);
    for sink in ["quick", "renamed"] {
        journal.register(sink, Start::Earliest).unwrap();
    }
    journal.unregister("renamed");
    append_aged(&journal, (0..300).map(|n| (event(n), 2 * HOUR))).await;
    journal.advance("renamed", 100);
    journal.advance("quick", 300);
    let oldest = until("what both have is gone", PATIENCE, async || {
        let oldest = journal.figures().oldest;
        (oldest > 101 - 64).then_some(oldest)
    })
    .await;
    assert!(oldest <= 101, "{oldest}");
    let got = read_all(&journal, position(&journal, "renamed")).await;
    assert_eq!((got.lost, got.numbers), (0, (100..300).collect()));
    close(journal).await;

    // From a start on it is so again: then nobody knows since when it is gone.
    let (journal, _) = open(&config);
    journal.sinks(["quick"]);
    journal.advance("renamed", 200);
    let oldest = until("more of it is gone", PATIENCE, async || {
        let oldest = journal.figures().oldest;
        (oldest > 201 - 64).then_some(oldest)
    })
    .await;
    assert!(oldest <= 201, "{oldest}");
    let got = read_all(&journal, position(&journal, "renamed")).await;
    assert_eq!((got.lost, got.numbers), (0, (200..300).collect()));
    close(journal).await;
}

#[tokio::test]
async fn delivered_events_are_removed_and_undelivered_ones_stay() {
    let dir = tempfile::tempdir().unwrap();
    let config = config::Journal { keep_delivered: Period(HOUR), ..config(dir.path()) };
    let (journal, _) = open(&config);
    for sink in ["quick", "slow"] {
        journal.register(sink, Start::Earliest).unwrap();
    }
    append_aged(&journal, (0..300).map(|n| (event(n), 2 * HOUR))).await;
    journal.advance("slow", 100);
    journal.advance("quick", 300);
    // What goes, goes in whole batches.
    let oldest = until("what both have is gone", PATIENCE, async || {
        let oldest = journal.figures().oldest;
        (oldest > 101 - 64).then_some(oldest)
    })
    .await;
    assert!(oldest <= 101, "{oldest}");
    settled(&journal, &["quick", "slow"]).await;
    let copy = crashed(dir.path());
    close(journal).await;

    // A start drops nothing before it knows which sinks there are.
    let config = config::Journal { dir: copy.path().to_owned(), ..config };
    let (journal, _) = open(&config);
    journal.append(&mut vec![event(300)]);
    until("the limits were looked at", PATIENCE, async || {
        (journal.figures().size > 0).then_some(())
    })
    .await;
    journal.register("quick", Start::End).unwrap();
    settled(&journal, &[]).await;
    assert_eq!(journal.figures().oldest, oldest);
    let got = read_all(&journal, position(&journal, "slow")).await;
    assert_eq!((got.lost, got.numbers), (0, (100..=300).collect()));
    journal.sinks(["quick", "slow"]);
    journal.advance("slow", 300);
    until("the rest is gone", PATIENCE, async || (journal.figures().oldest > 300).then_some(()))
        .await;
    close(journal).await;
}

#[tokio::test]
async fn size_removes_a_share_of_the_events_and_not_of_the_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let (journal, _) = open(&config);
    append(&journal, events(0..3000)).await;
    settled(&journal, &[]).await;
    let size = journal.figures().size;
    let copy = crashed(dir.path());
    close(journal).await;
    // After a crash a million numbers are left out: they must not count as events.
    let max_size = Size(size.max(1 << 20) + (256 << 10));
    let config = config::Journal { dir: copy.path().to_owned(), max_size, ..config };
    let (journal, _) = open(&config);
    for first in (3000..5000).step_by(50) {
        append(&journal, events(first..first + 50)).await;
        journal.ready().await;
    }
    settled(&journal, &[]).await;
    until("the size is kept", PATIENCE, async || {
        (journal.figures().size <= max_size.0).then_some(())
    })
    .await;
    let got = read_all(&journal, 0).await;
    let kept = u64::try_from(got.numbers.len()).unwrap();
    assert_eq!(got.lost + kept, 5000);
    assert!(kept > 2500, "more was removed than was needed: {kept} are left");
    close(journal).await;
}

/// Whatever the sink does: it may come back in a week.
#[tokio::test]
async fn what_retention_takes_from_a_sink_is_known_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (max_size, memory) = (Size(256 << 10), Size(1));
    let config = config::Journal { max_size, memory, ..config(dir.path()) };
    let (journal, _) = open(&config);
    journal.register("away", Start::Earliest).unwrap();
    // More than memory holds.
    append(&journal, events(0..30_000)).await;
    settled(&journal, &[]).await;
    let mut known = 0;
    until("all that is gone is known", PATIENCE, async || {
        known += journal.take_losses().iter().map(|(_, count)| count).sum::<u64>();
        (known > 0 && read_all(&journal, 0).await.lost == known).then_some(())
    })
    .await;
    close(journal).await;
}

/// Everything that was in the journal was too old, or too much, and nothing came behind it. Whoever had
/// not got it is told, whatever comes then.
#[tokio::test]
async fn removed_events_are_reported_after_a_stop_and_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let old = config::Journal { max_age: Period(HOUR), ..config(dir.path()) };
    let (journal, _) = open(&old);
    journal.register("slow", Start::Earliest).unwrap();
    append_aged(&journal, (0..300).map(|n| (event(n), 2 * HOUR))).await;
    until("all of it is gone", PATIENCE, async || (journal.figures().oldest > 300).then_some(()))
        .await;
    settled(&journal, &["slow"]).await;
    let killed = crashed(dir.path());
    let unmarked = crashed(dir.path());
    std::fs::remove_file(unmarked.path().join("journal.mark")).unwrap();
    close(journal).await;
    for (how, dir) in [("stop", &dir), ("kill", &killed), ("kill without a mark", &unmarked)] {
        let config = config::Journal { dir: dir.path().to_owned(), ..old.clone() };
        for start in 0..3 {
            let (journal, opened) = open(&config);
            assert_eq!(opened.lost, 0, "{how}: retention has told of it");
            append(&journal, events([300])).await;
            settled(&journal, &[]).await;
            let got = read_all(&journal, position(&journal, "slow")).await;
            assert_eq!((got.lost, got.numbers.len()), (300, start + 1), "{how}, start {start}");
            close(journal).await;
        }
    }
}

#[tokio::test]
async fn events_over_max_size_are_reported_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let config = config::Journal { max_size: Size(1), ..config(dir.path()) };
    let (journal, _) = open(&config);
    journal.register("slow", Start::Earliest).unwrap();
    append(&journal, events(0..500)).await;
    until("all of it is gone", PATIENCE, async || (journal.figures().oldest > 500).then_some(()))
        .await;
    let copy = crashed(dir.path());
    close(journal).await;
    let (journal, opened) = open(&config::Journal { dir: copy.path().to_owned(), ..config });
    assert_eq!(opened.lost, 0);
    assert_eq!(journal.take_losses(), [("slow".into(), 500)]);
    assert_eq!(journal.lag("slow").0, 0, "nothing of it waits");
    close(journal).await;
}

/// Dead letters, and the state of channels, take no room from the events that wait for others.
#[tokio::test]
async fn dead_letters_and_state_take_no_room_from_events() {
    let dir = tempfile::tempdir().unwrap();
    let config = config::Journal {
        max_size: Size(1 << 20),
        max_dead_letters: Size(3 << 20),
        ..config(dir.path())
    };
    let (journal, _) = open(&config);
    journal.register("waiting", Start::Earliest).unwrap();
    append(&journal, events(0..100)).await;
    let mut progress = journal.progress();
    loop {
        progress.mark_unchanged();
        let record = std::sync::Arc::new(astro_relay::base::event::Record::new(1, event(1)));
        match journal.dead_letter("refusing", &record, "no") {
            SetAside::Full => break,
            SetAside::Wait => progress.changed().await.unwrap(),
            SetAside::Stored => {}
            SetAside::Lost => panic!("this journal has a directory"),
        }
    }
    let element = |n: u32| StateElement {
        channel: "main".into(),
        element: format!("element-{n}").into(),
        value: Some("x".repeat(1000).into()),
        at: 1,
    };
    for n in 0..3000 {
        journal.store_state([element(n)]);
    }
    settled(&journal, &[]).await;
    until("the limits were looked at", PATIENCE, async || {
        (journal.figures().size > 2 << 20).then_some(())
    })
    .await;
    append(&journal, events(100..101)).await;
    settled(&journal, &[]).await;
    let got = read_all(&journal, position(&journal, "waiting")).await;
    assert_eq!((got.lost, got.numbers.len()), (0, 101));
    // The state of a channel has a bound of its own.
    let kept: usize =
        journal.stored_state().unwrap().iter().map(|kept| kept.element.len() + 1000).sum();
    assert!(kept > 400 << 10 && kept <= 512 << 10, "{kept} bytes of state");
    close(journal).await;
    let files: u64 =
        std::fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().metadata().unwrap().len()).sum();
    assert!(files < 8 << 20, "{files} bytes of files");
}

/// Before its first task runs, a member of a cluster keeps what it has still to publish, however old that is.
#[tokio::test]
async fn what_a_member_has_still_to_publish_is_kept_at_its_start() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(&config(dir.path()));
    journal.register(TO_PUBLISH, Start::Earliest).unwrap();
    append_aged(&journal, (0..300).map(|n| (event(n), 2 * HOUR))).await;
    journal.advance(TO_PUBLISH, 100);
    settled(&journal, &[TO_PUBLISH]).await;
    close(journal).await;

    let cluster = serde_json::json!({ "url": "nats://127.0.0.1:1", "member": "a" });
    let mut member = Config {
        journal: config::Journal { keep_delivered: Period(HOUR), ..config(dir.path()) },
        cluster: Some(serde_json::from_value(cluster).unwrap()),
        ..Config::default()
    };
    member.http.listen = String::new();
    let relay =
        until("the journal opens", PATIENCE, async || Relay::new(member.clone(), None).await.ok())
            .await;
    let journal = relay.journal();
    let oldest = until("what is published is gone", PATIENCE, async || {
        let oldest = journal.figures().oldest;
        (oldest > 101 - 64).then_some(oldest)
    })
    .await;
    assert!(oldest <= 101, "{oldest}");
    drop(relay);
    close(journal).await;
}

#[tokio::test]
async fn old_runs_are_pruned() {
    let dir = tempfile::tempdir().unwrap();
    let config = config::Journal { keep_delivered: Period(Duration::ZERO), ..config(dir.path()) };
    for n in 0..20 {
        let (journal, _) = open(&config);
        journal.register("sink", Start::Earliest).unwrap();
        journal.sinks(["sink"]);
        append(&journal, events([n])).await;
        let last = journal.figures().last;
        journal.advance("sink", last);
        settled(&journal, &["sink"]).await;
        close(journal).await;
    }
    let (journal, _) = open(&config);
    let runs =
        || astro_relay::journal::store::Store::open_reader(dir.path()).unwrap().runs().unwrap();
    until("the old runs are gone", PATIENCE, async || (runs().len() <= 2).then_some(())).await;
    close(journal).await;
}

/// A journal of a former version may hold a time that a wrong clock has given, and later ones that could
/// not fall behind it.
#[tokio::test]
async fn a_wrong_future_time_does_not_stay_in_the_journal() {
    let dir = tempfile::tempdir().unwrap();
    let future = clock::now() + 70 * 365 * 24 * 3_600_000;
    let (journal, _) = open(&config(dir.path()));
    journal.append(&mut vec![Event { received: future, ..event(0) }]);
    settled(&journal, &[]).await;
    close(journal).await;
    // As a former version has left it.
    let db = rusqlite::Connection::open(dir.path().join("journal.db")).unwrap();
    db.execute_batch("UPDATE batches SET time = NULL").unwrap();
    drop(db);
    std::fs::remove_file(dir.path().join("journal.mark")).unwrap();

    let config = config::Journal { max_age: Period(Duration::from_secs(2)), ..config(dir.path()) };
    let (journal, _) = open(&config);
    journal.register("sink", Start::Earliest).unwrap();
    append(&journal, events([1])).await;
    let batch = journal.read(1, 2, 10, 1 << 20).await.unwrap();
    let received = batch.records[0].event.received;
    assert!(received < future, "the clock is right again: {received}");
    assert!(batch.records[0].age() < HOUR);
    until("both become too old", PATIENCE, async || (journal.figures().oldest > 2).then_some(()))
        .await;
    close(journal).await;
}

/// As somebody does who looks into the file with other programs.
#[tokio::test]
async fn a_journal_in_which_somebody_reads_stays_in_use() {
    let dir = tempfile::tempdir().unwrap();
    // Its log is cut at half a megabyte.
    let config = config::Journal { max_size: Size(2 << 20), ..config(dir.path()) };
    let (journal, _) = open(&config);
    journal.register("far", Start::Earliest).unwrap();
    append(&journal, events(0..100)).await;
    settled(&journal, &[]).await;
    let reader = rusqlite::Connection::open(dir.path().join("journal.db")).unwrap();
    reader.execute_batch("BEGIN; SELECT count(*) FROM batches").unwrap();
    let log = dir.path().join("journal.db-wal");
    let mut next = 100;
    until("the log has grown past that", PATIENCE, async || {
        append(&journal, events(next..next + 500)).await;
        next += 500;
        assert_eq!(journal.figures().health, Health::Sound);
        (std::fs::metadata(&log).unwrap().len() > 4 << 20).then_some(())
    })
    .await;
    settled(&journal, &[]).await;
    assert_eq!(journal.figures().health, Health::Sound);
    drop(reader);
    close(journal).await;
}

#[tokio::test]
async fn a_message_larger_than_the_memory_is_kept_while_the_disk_works() {
    let dir = tempfile::tempdir().unwrap();
    let config = config::Journal { memory: Size(64 << 10), ..config(dir.path()) };
    let (journal, _) = open(&config);
    journal.register("late", Start::Earliest).unwrap();
    let large = 1 << 20;
    journal.append(&mut (0..3).map(|n| crate::support::journal::event_of(n, large)).collect());
    settled(&journal, &[]).await;
    let got = read_all(&journal, 0).await;
    assert_eq!((got.numbers, got.lost), (vec![0, 1, 2], 0));
    close(journal).await;
}
