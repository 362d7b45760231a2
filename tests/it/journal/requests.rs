//! Dead letters and replays: kept, asked for from another connection, taken up, dealt with.

use std::sync::Arc;

use astro_relay::{
    base::event::Record,
    config::{Journal as Config, Size, Start},
    journal::{Journal, Replay, SetAside, store::Store},
};

use crate::support::{
    journal::{PATIENCE, append, close, config, crashed, event, event_of, events, open, settled},
    wait::until,
};

fn record(seq: u64) -> Arc<Record> {
    Arc::new(Record::new(seq, event(seq)))
}

async fn counted(journal: &Journal, sink: &str, count: u64) {
    until("the dead letters are counted", PATIENCE, async || {
        (journal.dead_letter_counts().get(sink).copied().unwrap_or(0) == count).then_some(())
    })
    .await;
}

async fn kept(store: &Store, sink: Option<&str>, count: usize) -> Vec<(i64, u64, String, bool)> {
    until("the dead letters are on disk", PATIENCE, async || {
        let letters = store.dead_letters(sink).unwrap();
        (letters.len() == count).then(|| {
            let told = |letter: astro_relay::journal::DeadLetter| {
                let n = crate::support::journal::number(&letter.record);
                (letter.number, n, letter.reason, letter.retry)
            };
            letters.into_iter().map(told).collect()
        })
    })
    .await
}

#[tokio::test]
async fn the_newest_dead_letters_are_bounded_in_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(&Config { memory: Size(16 << 20), ..config(dir.path()) });
    for seq in 1..=8 {
        let large = event_of(seq, 1 << 20);
        journal.dead_letter("sink", &Arc::new(Record::new(seq, large)), "too large");
    }
    counted(&journal, "sink", 8).await;
    let store = Store::open_reader(dir.path()).unwrap();
    kept(&store, None, 8).await;
    let newest = store.newest_dead_letters(None, 100).unwrap();
    assert_eq!(newest.iter().map(|letter| letter.number).collect::<Vec<_>>(), [8, 7, 6, 5]);
}

#[tokio::test]
async fn dead_letters_are_kept_listed_retried_and_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(&config(dir.path()));
    for seq in 1..=4 {
        let sink = if seq == 4 { "other" } else { "sink" };
        assert_eq!(journal.dead_letter(sink, &record(seq), "no such topic"), SetAside::Stored);
    }
    counted(&journal, "sink", 3).await;
    let store = Store::open_reader(dir.path()).unwrap();
    let letters = kept(&store, None, 4).await;
    assert_eq!(letters[0], (1, 1, "no such topic".into(), false));
    assert_eq!(kept(&store, Some("other"), 1).await[0].1, 4);
    let newest = |sink, limit| {
        let letters = store.newest_dead_letters(sink, limit).unwrap();
        letters.iter().map(|letter| letter.number).collect::<Vec<_>>()
    };
    assert_eq!(newest(None, 3), [4, 3, 2], "no more than are wanted are read");
    assert_eq!((newest(Some("sink"), 2), newest(Some("other"), 9)), (vec![3, 2], vec![4]));
    assert!(journal.pending_requests("sink").unwrap().0.is_empty());

    // Another connection asks; whoever waits for requests is told.
    let mut requests = journal.requests();
    requests.mark_unchanged();
    store.allow_requests().unwrap();
    assert_eq!(store.retry_dead_letters(Some(&[1, 2, 4]), Some("sink")).unwrap(), 2);
    tokio::time::timeout(PATIENCE, requests.changed()).await.expect("told").unwrap();
    let (asked, _) = journal.pending_requests("sink").unwrap();
    assert_eq!(asked.iter().map(|letter| letter.number).collect::<Vec<_>>(), [1, 2]);
    // What is dealt with is not handed out again, written down or not.
    journal.remove_dead_letter(1);
    let (asked, _) = journal.pending_requests("sink").unwrap();
    assert_eq!(asked.iter().map(|letter| letter.number).collect::<Vec<_>>(), [2]);
    assert_eq!(kept(&store, None, 3).await[0].0, 2);
    let (asked, _) = journal.pending_requests("sink").unwrap();
    assert_eq!(asked.iter().map(|letter| letter.number).collect::<Vec<_>>(), [2]);

    assert_eq!(store.drop_dead_letters(None, Some("sink")).unwrap(), 2);
    counted(&journal, "sink", 0).await;
    counted(&journal, "other", 1).await;
    let copy = crashed(dir.path());
    close(journal).await;
    let (journal, _) = open(&config(copy.path()));
    assert_eq!(journal.dead_letter_counts().get("other"), Some(&1));
    close(journal).await;
}

/// Sets one aside, and waits for the disk as often as it must; answers whether there was room.
async fn set_aside(journal: &Journal, sink: &str, number: u64) -> bool {
    let mut progress = journal.progress();
    loop {
        progress.mark_unchanged();
        match journal.dead_letter(sink, &record(number), "no") {
            SetAside::Stored => return true,
            SetAside::Full => return false,
            SetAside::Wait => {
                let told = tokio::time::timeout(PATIENCE, progress.changed()).await;
                told.expect("the disk takes them").unwrap();
            }
            SetAside::Lost => panic!("this journal has a directory"),
        }
    }
}

/// Sets aside until there is no more room; answers how many were kept.
async fn fill(journal: &Journal, sink: &str) -> u64 {
    let mut kept = 0;
    while set_aside(journal, sink, kept).await {
        kept += 1;
    }
    kept
}

#[tokio::test]
async fn each_sink_has_a_budget_of_dead_letters_and_none_is_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { max_dead_letters: Size(1 << 20), ..config(dir.path()) };
    let (journal, _) = open(&config);
    let kept = fill(&journal, "refusing").await;
    assert!(kept > 1000, "{kept}");
    assert_eq!(journal.dead_letter("refusing", &record(kept), "no"), SetAside::Full);
    // Another sink has room of its own.
    assert!(set_aside(&journal, "healthy", 1).await);
    let store = Store::open_reader(dir.path()).unwrap();
    let letters = self::kept(&store, Some("refusing"), usize::try_from(kept).unwrap()).await;
    assert_eq!(letters.first().map(|letter| letter.0), Some(1), "the oldest is there");
    close(journal).await;

    // It is known again after a restart, and there is room once somebody drops some.
    let (journal, _) = open(&config);
    assert_eq!(journal.dead_letter("refusing", &record(kept), "no"), SetAside::Full);
    store.allow_requests().unwrap();
    store.drop_dead_letters(Some(&[1, 2, 3]), None).unwrap();
    until("there is room", PATIENCE, async || {
        set_aside(&journal, "refusing", 1).await.then_some(())
    })
    .await;
    close(journal).await;
}

#[tokio::test]
async fn a_dead_letter_rejected_again_needs_no_room() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { max_dead_letters: Size(64 << 10), ..config(dir.path()) };
    let (journal, _) = open(&config);
    let kept = usize::try_from(fill(&journal, "sink").await).unwrap();
    let store = Store::open_reader(dir.path()).unwrap();
    self::kept(&store, None, kept).await;
    store.allow_requests().unwrap();
    store.retry_dead_letters(Some(&[2]), None).unwrap();
    assert_eq!(journal.pending_requests("sink").unwrap().0.len(), 1);
    journal.rejected_again(2, "still no");
    assert!(journal.pending_requests("sink").unwrap().0.is_empty(), "it was tried");
    until("the new reason is on disk", PATIENCE, async || {
        let letters = self::kept(&store, None, kept).await;
        (letters[1].2 == "still no" && !letters[1].3).then_some(())
    })
    .await;
    close(journal).await;
}

#[tokio::test]
async fn a_replay_survives_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(&config(dir.path()));
    journal.register("sink", Start::Earliest).unwrap();
    append(&journal, events(0..100)).await;
    settled(&journal, &["sink"]).await;
    let mut requests = journal.requests();
    requests.mark_unchanged();
    let store = Store::open_reader(dir.path()).unwrap();
    store.allow_requests().unwrap();
    let topic = Some("channel.**".to_owned());
    let when = Some("data.n > 20".to_owned());
    let replay =
        Replay { number: 0, at: 1, sink: "sink".into(), position: 10, until: 90, topic, when };
    store.request_replay(&replay).unwrap();
    tokio::time::timeout(PATIENCE, requests.changed()).await.expect("told").unwrap();
    let asked = |journal: &Journal| journal.pending_requests("sink").unwrap().1;
    assert_eq!(asked(&journal), [Replay { number: 1, ..replay.clone() }]);
    assert!(journal.pending_requests("other").unwrap().1.is_empty());
    journal.replay_progress(1, Some(42));
    assert_eq!(asked(&journal)[0].position, 42);
    until("its progress is on disk", PATIENCE, async || {
        (store.replays().unwrap()[0].position == 42).then_some(())
    })
    .await;
    let copy = crashed(dir.path());
    journal.replay_progress(1, None);
    assert!(asked(&journal).is_empty());
    close(journal).await;
    assert!(store.replays().unwrap().is_empty());

    let (journal, _) = open(&config(copy.path()));
    assert_eq!(asked(&journal)[0].position, 42);
    close(journal).await;
}
