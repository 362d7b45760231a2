//! The journal: what it promises its sinks, and what it does when the disk fails it.

mod clocks;
mod corruption;
mod full_disk;
mod limits;
mod model;
mod opening;
mod power_cut;
mod requests;
mod start;

use std::time::Duration;

use astro_relay::{
    base::event::Seq,
    config::{Size, Start, Sync},
    journal::{Health, Journal, StoreError, store::Store},
};
use futures_util::FutureExt;

use crate::support::{
    journal::{
        PATIENCE, append, append_aged, close, config, contents, crashed, event, events, open,
        position, read_all, say, settled, synced,
    },
    wait::until,
};

#[tokio::test]
async fn events_come_back_in_order_from_memory_and_from_disk_alike() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, opened) = open(&config(dir.path()));
    assert_eq!((opened.events, opened.lost), (0, 0));
    for chunk in (0..3000).collect::<Vec<_>>().chunks(37) {
        append(&journal, events(chunk.iter().copied())).await;
        journal.ready().await;
    }
    settled(&journal, &[]).await;
    let got = read_all(&journal, 0).await;
    assert_eq!((got.lost, got.through), (0, 3000));
    assert_eq!(got.numbers, (0..3000).collect::<Vec<_>>());

    // What stands in memory is what stands on disk.
    let after = 2990;
    let memory = journal.read(after, 3000, 100, 1 << 20).await.unwrap().records;
    let disk = Store::open_reader(dir.path()).unwrap().read(after, 100, 1 << 20).unwrap().records;
    assert_eq!(memory.len(), 10);
    assert_eq!(memory, disk);
    assert!(journal.figures().memory <= 64 * 1024, "{:?}", journal.figures());
    close(journal).await;
}

#[tokio::test]
async fn a_batch_keeps_to_its_limits() {
    let journal = Journal::in_memory(1 << 20);
    append(&journal, events(0..100)).await;
    let batch = journal.next(0, 7, 1 << 20).await.unwrap();
    assert_eq!((batch.records.len(), batch.through), (7, 7));
    // About so many bytes, and always at least one event.
    let batch = journal.next(7, 100, 1).await.unwrap();
    assert_eq!((batch.records.len(), batch.through), (1, 8));
}

#[tokio::test]
async fn several_appenders_wake_a_waiting_reader() {
    let journal = Journal::in_memory(64 << 20);
    let appending = (0..4).map(|writer| {
        let journal = journal.clone();
        tokio::task::spawn_blocking(move || {
            for n in 0..2000 {
                journal.append(&mut vec![event(writer * 2000 + n)]);
            }
        })
    });
    let appending: Vec<_> = appending.collect();
    let mut through = 0;
    while through < 8000 {
        let next =
            tokio::time::timeout(Duration::from_secs(30), journal.next(through, 64, 1 << 20));
        let batch = next.await.expect("an event that is there is handed out").unwrap();
        assert_eq!(batch.lost, 0);
        through = batch.through;
    }
    for appender in appending {
        appender.await.unwrap();
    }
}

#[tokio::test]
async fn positions_survive_a_clean_end_and_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(&config(dir.path()));
    append(&journal, events(0..100)).await;
    assert_eq!(journal.register("a", Start::Earliest).unwrap(), 0);
    assert_eq!(journal.register("b", Start::End).unwrap(), 100);
    journal.advance("a", 40);
    journal.advance("a", 30);
    assert_eq!(position(&journal, "a"), 40, "a position never goes back");
    settled(&journal, &["a", "b"]).await;
    let copy = crashed(dir.path());
    journal.advance("a", 60);
    close(journal).await;

    let (journal, opened) = open(&config(dir.path()));
    assert_eq!((opened.events, opened.lost), (100, 0));
    assert_eq!((position(&journal, "a"), position(&journal, "b")), (60, 100));
    close(journal).await;
    let (journal, opened) = open(&config(copy.path()));
    assert_eq!((opened.events, opened.lost), (100, 0));
    append(&journal, events([100])).await;
    let figures = journal.figures();
    assert!(figures.last > 1_000_000, "a crash leaves numbers out: {}", figures.last);
    assert_eq!(figures.events, 101);
    assert_eq!((position(&journal, "a"), position(&journal, "b")), (40, 100));
    assert_eq!(read_all(&journal, 40).await.numbers, (40..101).collect::<Vec<_>>());
    close(journal).await;
}

/// What a cursor costs on the disk: one page of the log each time that it is saved.
#[tokio::test]
async fn saving_a_cursor_writes_one_page() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(&config(dir.path()));
    append(&journal, events(0..100)).await;
    journal.register("a", Start::Earliest).unwrap();
    // Its first place may be written later: it is where a sink without one begins.
    journal.advance("a", 1);
    settled(&journal, &["a"]).await;
    let log = || std::fs::metadata(dir.path().join("journal.db-wal")).unwrap().len();
    for at in 2..=21 {
        let before = log();
        journal.advance("a", at);
        settled(&journal, &["a"]).await;
        assert_eq!(log() - before, 24 + 1024, "{at}");
    }
    close(journal).await;
}

#[tokio::test]
async fn single_events_are_written_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(&config(dir.path()));
    journal.append(&mut vec![event(0)]);
    assert_eq!(journal.next(0, 10, 1 << 20).await.unwrap().records.len(), 1);
    append(&journal, events([1])).await;
    settled(&journal, &[]).await;
    let on_disk = || Store::open_reader(dir.path()).unwrap().bounds().unwrap();
    assert_eq!(on_disk(), Some((1, 2)));
    journal.append(&mut vec![event(2)]);
    settled(&journal, &[]).await;
    assert_eq!(on_disk(), Some((1, 3)));
    journal.append(&mut vec![event(3)]);
    close(journal).await;
    assert_eq!(on_disk(), Some((1, 4)));
}

#[tokio::test]
async fn a_new_sink_begins_at_its_configured_start() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(&config(dir.path()));
    append_aged(&journal, (0..300).map(|n| (event(n), Duration::from_mins(600 - n)))).await;
    settled(&journal, &[]).await;
    assert_eq!(journal.register("end", Start::End).unwrap(), 300);
    assert_eq!(journal.register("earliest", Start::Earliest).unwrap(), 0);
    // The last of them are in memory only perhaps, the first on disk only.
    for minutes in [590, 450, 310] {
        let age = Duration::from_secs(minutes * 60 + 30);
        let at = journal.register(&format!("{minutes}"), Start::Age(age)).unwrap();
        assert_eq!(at, 600 - minutes, "{minutes}");
    }
    let age = Duration::from_mins(1);
    assert_eq!(journal.register("young", Start::Age(age)).unwrap(), 300);
    close(journal).await;
}

#[tokio::test]
async fn a_number_is_never_assigned_twice() {
    let dir = tempfile::tempdir().unwrap();
    let mut copies = vec![];
    let (journal, _) = open(&config(dir.path()));
    append(&journal, events(0..10)).await;
    settled(&journal, &[]).await;
    copies.push(crashed(dir.path()));
    // These are given after the crash's moment: no number of them may come again.
    append(&journal, events(10..50)).await;
    let mut highest = journal.figures().last;
    for _ in 0..4 {
        let copy = copies.pop().unwrap();
        let (after, opened) = open(&config(copy.path()));
        assert_eq!(opened.lost, 0);
        let first = after.figures().last;
        assert!(first >= highest, "{first} of {highest}");
        append(&after, events(0..5)).await;
        settled(&after, &[]).await;
        copies.push(crashed(copy.path()));
        append(&after, events(0..5)).await;
        highest = after.figures().last;
        close(after).await;
    }
    close(journal).await;
}

#[tokio::test]
async fn with_sync_always_only_synced_events_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let config = astro_relay::config::Journal { sync: Sync::Always, ..config(dir.path()) };
    let (journal, _) = open(&config);
    let (mut through, mut appended): (Seq, u64) = (0, 0);
    while through < 400 {
        if appended < 400 {
            append(&journal, events(appended..appended + 20)).await;
            appended += 20;
        }
        let batch = journal.next(through, 7, 1 << 20).await.unwrap();
        through = batch.through;
        let figures = journal.figures();
        assert!(figures.synced >= through && figures.written >= through, "{figures:?}");
        assert_eq!(batch.lost, 0);
    }
    close(journal).await;
}

/// What no other sink can lose any more, if the relay is killed now: each has it or finds it in the
/// journal.
#[tokio::test]
async fn only_written_events_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(&config(dir.path()));
    let disk = Store::open_reader(dir.path()).unwrap();
    let (mut through, mut appended): (Seq, u64) = (0, 0);
    while through < 3000 {
        if appended < 3000 {
            append(&journal, events(appended..appended + 30)).await;
            appended += 30;
        }
        let batch = journal.next(through, 64, 1 << 20).await.unwrap();
        let (_, written) = disk.bounds().unwrap().expect("events on disk");
        assert!(written >= batch.through, "{} was read, {written} is written", batch.through);
        through = batch.through;
        assert!(
            journal.try_next(through, 64, 1 << 20).is_none_or(|batch| batch.through <= appended)
        );
    }
    close(journal).await;
}

/// The one who was to read was never started, as when the runtime ends.
#[test]
fn an_interrupted_read_counts_no_loss() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let journal = runtime.block_on(async {
        let (journal, _) = open(&config(dir.path()));
        append(&journal, events(0..3000)).await;
        settled(&journal, &[]).await;
        journal
    });
    let handle = runtime.handle().clone();
    runtime.shutdown_background();
    let _entered = handle.enter();
    let read = journal.read(0, 3000, 10, 1 << 20).now_or_never().expect("an answer at once");
    assert!(matches!(read, Err(StoreError::Unread)), "{read:?}");
    journal.close();
}

/// The pages of an idle journal stay as they are; only the mark says that the relay runs.
#[tokio::test]
async fn an_idle_journal_writes_nothing_but_its_mark() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(&config(dir.path()));
    journal.register("sink", Start::Earliest).unwrap();
    append(&journal, events(0..100)).await;
    journal.advance("sink", 100);
    settled(&journal, &["sink"]).await;
    synced(&journal).await;
    let files = || {
        let mut files = contents(dir.path());
        let mark = files.remove(std::path::Path::new("journal.mark"));
        (files, mark)
    };
    let (before, mark) = files();
    let began = tokio::time::Instant::now();
    until("the mark is renewed", PATIENCE, async || (files().1 != mark).then_some(())).await;
    assert!(began.elapsed() > Duration::from_secs(5), "each renewal costs the disk some blocks");
    assert!(files().0 == before, "nothing else has changed");
    close(journal).await;
}

#[tokio::test]
async fn a_journal_that_nobody_reads_keeps_its_limits() {
    /// A fraction of what they need, small as they are.
    const SIZE: u64 = 512 * 1024;
    let dir = tempfile::tempdir().unwrap();
    let config = astro_relay::config::Journal { max_size: Size(SIZE), ..config(dir.path()) };
    let (journal, _) = open(&config);
    let total = if crate::support::journal::long() { 100_000 } else { 30_000 };
    let start = tokio::time::Instant::now();
    for first in (0..total).step_by(100) {
        append(&journal, events(first..first + 100)).await;
        journal.ready().await;
        let figures = journal.figures();
        assert!(figures.memory <= 128 * 1024, "{figures:?}");
    }
    settled(&journal, &[]).await;
    say(&format!("{total} events written in {:?}", start.elapsed()));
    let bound = SIZE + (1 << 20);
    until("the size is kept", PATIENCE, async || (journal.figures().size <= SIZE).then_some(()))
        .await;
    let file = std::fs::metadata(dir.path().join("journal.db")).unwrap().len();
    assert!(file <= bound, "the file itself has {file} bytes");
    // A sink that had none of them is told exactly how many are gone.
    let got = read_all(&journal, 0).await;
    assert_eq!(got.lost + u64::try_from(got.numbers.len()).unwrap(), total);
    assert!(got.lost > 0 && got.numbers.last() == Some(&(total - 1)));
    assert_eq!(journal.figures().health, Health::Sound);
    close(journal).await;
}
