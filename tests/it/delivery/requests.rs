//! Dead letters tried again and events handed on again, between the new ones.

use std::{path::Path, time::Duration};

use astro_relay::{
    base::{clock, event::Seq},
    config::{self, Size, Start},
    journal::{Replay, store::Store},
};
use fastrand::Rng;

use super::scripted::{Answer, Running, Scripted, busy, down};
use crate::support::{
    journal::{PATIENCE, append, close, config, events, open, settled},
    wait::until,
};

/// Asks for a replay to the sink `out` of what stands behind `position`.
fn ask_for_replay(dir: &Path, position: Seq, until: Seq, topic: Option<&str>) -> Store {
    ask_for_some(dir, position, until, topic, None)
}

/// The same, of what is chosen by a condition too.
fn ask_for_some(
    dir: &Path,
    position: Seq,
    until: Seq,
    topic: Option<&str>,
    when: Option<&str>,
) -> Store {
    let store = Store::open_reader(dir).unwrap();
    store.allow_requests().unwrap();
    let (topic, when) = (topic.map(str::to_owned), when.map(str::to_owned));
    let replay = Replay {
        number: 0,
        at: clock::now(),
        sink: "destination".into(),
        position,
        until,
        topic,
        when,
    };
    store.request_replay(&replay).unwrap();
    store
}

async fn replay_done(store: &Store) {
    until("the replay is done", PATIENCE, async || {
        store.replays().unwrap().is_empty().then_some(())
    })
    .await;
}

async fn arrived(destination: &Scripted, count: usize) {
    until("the events arrive", PATIENCE, async || {
        (destination.accepted().len() >= count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_replay_is_interleaved_with_new_events() {
    replay_with_new_events(&Scripted::new()).await;
}

#[tokio::test]
async fn a_replay_waits_for_what_is_in_flight() {
    let destination = Scripted::new();
    destination.answers_later(Rng::with_seed(3));
    replay_with_new_events(&destination).await;
    assert!(destination.overlaps() > 0);
}

async fn replay_with_new_events(destination: &Scripted) {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(&config(dir.path()));
    let running = Running::start("destination", &journal, destination, |config| {
        config.start = Start::Earliest;
        config.window = 16;
    });
    append(&journal, events(0..500)).await;
    arrived(destination, 500).await;
    settled(&journal, &["destination"]).await;
    let store = ask_for_replay(dir.path(), 100, 400, Some("channel.1"));
    until("the replay begins", PATIENCE, async || {
        (!destination.replayed().is_empty()).then_some(())
    })
    .await;
    append(&journal, events(500..1000)).await;
    arrived(destination, 1000).await;
    replay_done(&store).await;
    assert_eq!(destination.accepted(), (0..1000).collect::<Vec<_>>());
    let wanted: Vec<_> = (100..400).filter(|n| n % 3 == 1).collect();
    assert_eq!(destination.replayed(), wanted);
    assert!(destination.batches().iter().all(|batch| batch.len() <= 16));
    running.stop().await;
    close(journal).await;
}

#[tokio::test]
async fn new_events_do_not_starve_a_replay() {
    replay_under_load(&Scripted::new(), async || ()).await;
}

#[tokio::test]
async fn after_a_replay_events_are_pipelined_again() {
    let destination = Scripted::new();
    destination.answers_behind();
    replay_under_load(&destination, async || {
        let before = destination.overlaps();
        let ahead = async || (destination.overlaps() > before + 10).then_some(());
        until("the next goes ahead", PATIENCE, ahead).await;
    })
    .await;
}

/// Does a replay, and `then` something, while the next batch is always there.
async fn replay_under_load(destination: &Scripted, then: impl AsyncFnOnce()) {
    const MANY: usize = 50_000;
    let dir = tempfile::tempdir().unwrap();
    let memory = Size(64 * 1024 * 1024);
    let (journal, _) = open(&config::Journal { memory, ..config(dir.path()) });
    append(&journal, events(0..MANY as u64)).await;
    settled(&journal, &[]).await;
    destination.script((0..MANY).map(|_| Answer::Slow(Duration::from_millis(100))));
    let running = Running::start("destination", &journal, destination, |config| {
        config.start = Start::Earliest;
        config.window = 512;
    });
    arrived(destination, 100).await;
    let store = ask_for_replay(dir.path(), 0, 50, None);
    replay_done(&store).await;
    then().await;
    assert_eq!(destination.replayed(), (0..50).collect::<Vec<_>>());
    assert!(destination.accepted().len() < MANY, "the load was gone by then");
    running.stop().await;
    close(journal).await;
}

#[tokio::test]
async fn a_replay_sends_what_its_condition_chooses() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(&config(dir.path()));
    let destination = Scripted::new();
    let running = Running::start("destination", &journal, &destination, |config| {
        config.start = Start::Earliest;
    });
    append(&journal, events(0..100)).await;
    arrived(&destination, 100).await;
    settled(&journal, &["destination"]).await;
    let ask = |when| ask_for_some(dir.path(), 0, 100, Some("channel.1"), Some(when));
    replay_done(&ask("id >= '01J00000000000000000000050'")).await;
    let wanted: Vec<_> = (50..100).filter(|n| n % 3 == 1).collect();
    assert_eq!(destination.replayed(), wanted);
    // One on which it fails is not sent, and one that cannot be read sends nothing and ends.
    replay_done(&ask("data.n.m.o >= 50")).await;
    replay_done(&ask("data.n >=")).await;
    assert_eq!(destination.replayed(), wanted);
    running.stop().await;
    close(journal).await;
}

#[tokio::test]
async fn a_replay_ends_at_the_cursor() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(&config(dir.path()));
    let destination = Scripted::new();
    journal.register("destination", Start::Earliest).unwrap();
    append(&journal, events(0..300)).await;
    journal.advance("destination", 50);
    settled(&journal, &["destination"]).await;
    let store = ask_for_replay(dir.path(), 0, 300, None);
    let running = Running::start("destination", &journal, &destination, |_| ());
    arrived(&destination, 250).await;
    replay_done(&store).await;
    assert_eq!(destination.accepted(), (50..300).collect::<Vec<_>>());
    let replayed = destination.replayed();
    assert!(replayed.len() >= 50, "{replayed:?}");
    assert!(replayed.iter().copied().eq(0..u64::try_from(replayed.len()).unwrap()));
    running.stop().await;
    close(journal).await;
}

#[tokio::test]
async fn a_retried_dead_letter_is_delivered_or_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(&config(dir.path()));
    let destination = Scripted::new();
    destination.poison(|n| n.is_multiple_of(10));
    let running = Running::start("destination", &journal, &destination, |config| {
        config.start = Start::Earliest;
    });
    append(&journal, events(0..100)).await;
    arrived(&destination, 90).await;
    let store = Store::open_reader(dir.path()).unwrap();
    store.allow_requests().unwrap();
    let letters = async |count: usize| {
        until("the dead letters are on disk", PATIENCE, async || {
            let letters = store.dead_letters(Some("destination")).unwrap();
            (letters.len() == count && letters.iter().all(|letter| !letter.retry))
                .then_some(letters)
        })
        .await
    };
    let before = letters(10).await;
    assert!(before[0].reason.contains("as the test says"), "{}", before[0].reason);
    // From now on it takes all but one; and it fails once in between.
    destination.poison(|n| n == 50);
    destination.script([Answer::Accept, Answer::After(0, down())]);
    store.retry_dead_letters(None, Some("destination")).unwrap();
    append(&journal, events(101..110)).await;
    arrived(&destination, 90 + 9 + 9).await;
    let after = letters(1).await;
    assert_eq!(after[0].record.seq, 51);
    assert!(before.iter().any(|letter| letter.number == after[0].number), "it is the same letter");
    let mut all = destination.accepted();
    all.sort_unstable();
    assert_eq!(all, (0..110).filter(|n| *n != 50 && *n != 100).collect::<Vec<_>>());
    running.stop().await;
    close(journal).await;
}

/// A destination that asks for patience for so long that only a request ends the wait.
fn patience() -> Answer {
    Answer::After(0, busy(Some(Duration::from_hours(1))))
}

/// Something goes out after the first `before` batches.
async fn tried(destination: &Scripted, before: usize) {
    until("it is tried", PATIENCE, async || (destination.batches().len() > before).then_some(()))
        .await;
}

#[tokio::test]
async fn a_letter_in_flight_is_sent_once_when_another_is_asked_for_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(&config(dir.path()));
    let destination = Scripted::new();
    destination.poison(|n| n == 3 || n == 7);
    let running = Running::start("destination", &journal, &destination, |config| {
        config.start = Start::Earliest;
    });
    append(&journal, events(0..10)).await;
    arrived(&destination, 8).await;
    let store = Store::open_reader(dir.path()).unwrap();
    store.allow_requests().unwrap();
    let letters = until("the dead letters are on disk", PATIENCE, async || {
        let letters = store.dead_letters(Some("destination")).unwrap();
        (letters.len() == 2).then_some(letters)
    })
    .await;
    destination.poison(|_| false);
    destination.script([patience()]);
    let before = destination.batches().len();
    let retry = |index: usize| {
        assert_eq!(store.retry_dead_letters(Some(&[letters[index].number]), None).unwrap(), 1);
    };
    retry(0);
    tried(&destination, before).await;
    append(&journal, events(10..11)).await;
    arrived(&destination, 9).await;
    retry(1);
    until("both are delivered", PATIENCE, async || {
        store.dead_letters(None).unwrap().is_empty().then_some(())
    })
    .await;
    assert_eq!(destination.accepted(), [0, 1, 2, 4, 5, 6, 8, 9, 10, 3, 7], "each once");
    running.stop().await;
    close(journal).await;
}

#[tokio::test]
async fn a_retried_dead_letter_that_is_not_accepted_holds_up_no_new_event() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(&config(dir.path()));
    let destination = Scripted::new();
    destination.poison(|n| n == 3);
    let running = Running::start("destination", &journal, &destination, |config| {
        config.start = Start::Earliest;
    });
    append(&journal, events(0..10)).await;
    arrived(&destination, 9).await;
    let store = Store::open_reader(dir.path()).unwrap();
    store.allow_requests().unwrap();
    destination.poison(|_| false);
    destination.is_busy_at(|n| n == 3);
    let up_since = running.page().since;
    let before = destination.batches().len();
    until("it is on disk", PATIENCE, async || {
        (store.retry_dead_letters(None, None).unwrap() == 1).then_some(())
    })
    .await;
    tried(&destination, before).await;
    append(&journal, events(10..20)).await;
    arrived(&destination, 19).await;
    tried(&destination, destination.batches().len()).await;
    assert_eq!(store.drop_dead_letters(None, None).unwrap(), 1);
    append(&journal, events(20..21)).await;
    arrived(&destination, 20).await;
    assert_eq!(destination.accepted(), (0..21).filter(|n| *n != 3).collect::<Vec<_>>());
    let page = running.page();
    assert_eq!((page.state, page.since), ("up", up_since), "nothing is wrong with the sink");
    assert!(store.dead_letters(None).unwrap().is_empty());
    running.stop().await;
    close(journal).await;
}

#[tokio::test]
async fn a_piece_of_a_replay_in_flight_is_sent_once_when_another_is_asked_for_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(&config(dir.path()));
    let destination = Scripted::new();
    let running = Running::start("destination", &journal, &destination, |config| {
        config.start = Start::Earliest;
        config.window = 4;
    });
    append(&journal, events(0..20)).await;
    arrived(&destination, 20).await;
    settled(&journal, &["destination"]).await;
    destination.script([patience()]);
    let before = destination.batches().len();
    let store = ask_for_replay(dir.path(), 0, 10, None);
    tried(&destination, before).await;
    append(&journal, events(20..21)).await;
    arrived(&destination, 21).await;
    ask_for_replay(dir.path(), 10, 20, None);
    replay_done(&store).await;
    let mut replayed = destination.replayed();
    replayed.sort_unstable();
    assert_eq!(replayed, (0..20).collect::<Vec<_>>(), "each once");
    running.stop().await;
    close(journal).await;
}

#[tokio::test]
async fn a_retried_dead_letter_that_is_not_wanted_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(&config(dir.path()));
    let destination = Scripted::new();
    destination.poison(|n| n == 3);
    let running = Running::start("destination", &journal, &destination, |config| {
        config.start = Start::Earliest;
    });
    append(&journal, events(0..10)).await;
    arrived(&destination, 9).await;
    running.stop().await;
    let running = Running::start("destination", &journal, &destination, |config| {
        config.topics = Some(vec!["channel.tips".into()]);
    });
    let store = Store::open_reader(dir.path()).unwrap();
    store.allow_requests().unwrap();
    until("it is on disk", PATIENCE, async || {
        (store.retry_dead_letters(None, None).unwrap() == 1).then_some(())
    })
    .await;
    let letter = until("it has another reason", PATIENCE, async || {
        let letters = store.dead_letters(None).unwrap();
        let other = letters.len() == 1 && letters[0].reason.contains("no longer wanted");
        other.then(|| letters[0].clone())
    })
    .await;
    assert!(!letter.retry);
    running.stop().await;
    close(journal).await;
}
