//! The power goes, at any moment: it always opens again, and lacks nothing but what the sync interval
//! allows. What is lost beyond that is nothing, with `sync = "always"` nothing at all.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use astro_relay::{
    base::event::{Record, Seq},
    config::{Journal as Config, Start, Sync},
    journal::Journal,
};
use fastrand::Rng;

use crate::support::{
    journal::{
        PATIENCE, append, close, config, event, events, long, open, position, read_all, say,
        settled, synced,
    },
    mount::{Disk, may_mount},
    wait::until,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_loses_only_what_is_not_yet_synced() {
    cut(Sync::Every(Duration::from_millis(30))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_sync_always_a_power_cut_loses_nothing_that_was_read() {
    cut(Sync::Always).await;
}

async fn cut(sync: Sync) {
    if !may_mount() {
        return;
    }
    let rounds = if long() { 50 } else { 3 };
    let mut disk = Disk::new(64);
    let config = Config { sync, ..config(&disk.path().join("journal")) };
    let mut random = Rng::new();
    // What the journal owes: events by number, and where the sink stands.
    let mut owed: Vec<u64> = Vec::new();
    let (mut next, mut unsynced, mut told) = (0, 0, 0);
    for round in 0..rounds {
        let (journal, opened) = open(&config);
        assert_eq!(opened.set_aside, None, "round {round}");
        told += opened.lost;
        let at = journal.register("sink", Start::Earliest).unwrap();
        let base = journal.figures().last;
        let there = read_all(&journal, 0).await;
        let missing = owed.iter().filter(|n| there.numbers.binary_search(n).is_err()).count();
        assert_eq!(missing, 0, "round {round}: synced events are missing");
        assert!(there.numbers.windows(2).all(|pair| pair[0] < pair[1]), "round {round}");
        assert!(there.lost >= opened.lost, "round {round}: the sink is told too");

        // Work, and the plug is pulled in the middle of it.
        let (plug, over) = (disk.plug(), Arc::new(AtomicBool::new(false)));
        let target = base + random.u64(1..3000);
        let working = work(&journal, next, at, random.u64(1..60), Arc::clone(&over));
        until("work is done", PATIENCE, async || (journal.figures().last >= target).then_some(()))
            .await;
        let synced = journal.figures().synced;
        plug.pull();
        over.store(true, Ordering::Relaxed);
        working.await.unwrap();
        owed = there.numbers;
        owed.extend(next..next + (synced - base));
        let appended = journal.figures().last - base;
        unsynced += appended - (synced - base);
        next += appended;
        close(journal).await;
        disk.restore();
    }
    let (journal, opened) = open(&config);
    told += opened.lost;
    let there = read_all(&journal, 0).await;
    assert!(owed.iter().all(|n| there.numbers.binary_search(n).is_ok()));
    let lost = next - u64::try_from(there.numbers.len()).unwrap();
    assert!(position(&journal, "sink") <= journal.figures().last);
    say(&format!(
        "{sync:?}: {rounds} cuts, {next} events, {unsynced} of them not yet synced, {lost} gone, \
         {told} told as lost, none that was synced"
    ));
    close(journal).await;
}

/// Appends without end, and moves the sink's position behind.
fn work(
    journal: &Journal,
    first: u64,
    at: Seq,
    chunk: u64,
    over: Arc<AtomicBool>,
) -> tokio::task::JoinHandle<()> {
    let journal = journal.clone();
    let handle = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || {
        let mut n = first;
        while !over.load(Ordering::Relaxed) {
            journal.append(&mut events(n..n + chunk));
            n += chunk;
            handle.block_on(journal.ready());
            journal.advance("sink", at + (n - first) / 2);
        }
    })
}

/// A backlog is drained while nothing new comes: what counts as saved survives, and the sink gets no
/// more again than what it was sent and not told to be saved.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_backlog_is_not_repeated_after_a_power_cut() {
    if !may_mount() {
        return;
    }
    let mut disk = Disk::new(64);
    let interval = Duration::from_millis(30);
    let config = Config { sync: Sync::Every(interval), ..config(&disk.path().join("journal")) };
    let (journal, _) = open(&config);
    journal.register("sink", Start::Earliest).unwrap();
    append(&journal, events(0..3000)).await;
    settled(&journal, &["sink"]).await;
    synced(&journal).await;
    for seq in (100..=3000).step_by(100) {
        journal.advance("sink", seq);
        journal.dead_letter("sink", &Arc::new(Record::new(seq, event(seq - 1))), "no");
        settled(&journal, &["sink"]).await;
    }
    synced(&journal).await;
    disk.plug().pull();
    close(journal).await;
    disk.restore();
    let (journal, opened) = open(&config);
    assert_eq!((opened.lost, opened.events), (0, 3000));
    assert_eq!(position(&journal, "sink"), 3000, "the positions were on disk");
    assert_eq!(journal.dead_letter_counts().get("sink"), Some(&30), "and the dead letters");
    close(journal).await;
}
