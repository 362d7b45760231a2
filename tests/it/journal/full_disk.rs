//! A disk that is full, or dies and comes back: intake goes on from memory, within its bound.

use std::{
    fs,
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
};

use astro_relay::{
    base::event::Event,
    config::{Journal as Config, Size, Start},
    journal::{Health, Journal, store::Store},
};

use crate::support::{
    journal::{
        PATIENCE, append, close, config, crashed, event, events, open, position, read_all,
        read_some, say, settled, synced,
    },
    mount::{Disk, Small, may_mount},
    wait::until,
};

async fn degraded(journal: &Journal) -> String {
    until("the journal says that it is degraded", PATIENCE, async || {
        match journal.figures().health {
            Health::Degraded(why) => Some(why),
            Health::Sound | Health::MemoryOnly => None,
        }
    })
    .await
}

async fn sound(journal: &Journal) {
    until("the journal works again", PATIENCE, async || {
        (journal.figures().health == Health::Sound).then_some(())
    })
    .await;
    settled(journal, &["sink"]).await;
}

/// Appends until the disk is full; answers the next number.
async fn fill(journal: &Journal, mut next: u64) -> u64 {
    while journal.figures().health == Health::Sound {
        append(journal, events(next..next + 20)).await;
        next += 20;
        tokio::task::yield_now().await;
    }
    next
}

#[tokio::test]
async fn intake_goes_on_while_the_disk_is_full() {
    if !may_mount() {
        return;
    }
    let disk = Small::new(3 << 10);
    let memory = 256 << 10;
    let config = Config { memory: Size(memory), ..config(disk.path()) };
    let (journal, _) = open(&config);
    journal.register("sink", Start::Earliest).unwrap();

    // Little comes while it is full: all of it fits into the memory.
    let next = fill(&journal, 0).await;
    let why = degraded(&journal).await;
    assert!(why.contains("full"), "{why}");
    append(&journal, events(next..next + 100)).await;
    disk.resize(6 << 10);
    sound(&journal).await;
    let got = read_all(&journal, 0).await;
    assert_eq!((got.lost, got.numbers), (0, (0..next + 100).collect()));
    let at = got.through;
    journal.advance("sink", at);
    settled(&journal, &["sink"]).await;
    assert_eq!(position(&journal, "sink"), at);

    // Much comes: what the memory does not hold is lost, to the last one counted.
    let begin = next + 100;
    let next = fill_up(&journal, begin).await;
    let end = next + 5000;
    append(&journal, events(next..end)).await;
    degraded(&journal).await;
    let figures = journal.figures();
    assert!(figures.memory <= usize::try_from(memory).unwrap(), "{figures:?}");
    disk.resize(64 << 10);
    sound(&journal).await;
    let got = read_some(&journal, at, journal.figures().last).await;
    let found = u64::try_from(got.numbers.len()).unwrap();
    assert_eq!(found + got.lost, end - begin);
    assert!(got.lost > 0 && got.numbers.last() == Some(&(end - 1)));
    assert!(got.numbers.windows(2).all(|pair| pair[0] < pair[1]));
    close(journal).await;
    let (journal, opened) = open(&config);
    assert_eq!((opened.lost, opened.set_aside), (0, None));
    assert_eq!(read_all(&journal, at).await.numbers, got.numbers);
    close(journal).await;
}

/// What is in memory alone when the relay is stopped is gone, and not without a word.
#[tokio::test]
async fn events_lost_by_a_stop_on_a_full_disk_are_reported_at_the_next_start() {
    if !may_mount() {
        return;
    }
    for more in [100, 5000] {
        let disk = Small::new(3 << 10);
        let config = Config { memory: Size(256 << 10), ..config(disk.path()) };
        let (journal, _) = open(&config);
        journal.register("sink", Start::Earliest).unwrap();
        let next = fill_up(&journal, 0).await;
        degraded(&journal).await;
        append(&journal, events(next..next + more)).await;
        let total = next + more;
        close(journal).await;
        disk.resize(64 << 10);
        let (journal, opened) = open(&config);
        assert!(opened.lost >= more, "{opened:?}");
        let got = read_all(&journal, position(&journal, "sink")).await;
        let found = u64::try_from(got.numbers.len()).unwrap();
        assert_eq!(found + got.lost, total, "{opened:?}");
        close(journal).await;
    }
}

/// History is let go before the disk counts as full: appends until that is of no more use.
async fn fill_up(journal: &Journal, mut next: u64) -> u64 {
    loop {
        next = fill(journal, next).await;
        let last = journal.figures().written;
        append(journal, events(next..next + 20)).await;
        next += 20;
        let figures = journal.figures();
        if figures.health != Health::Sound && figures.written == last {
            return next;
        }
    }
}

#[tokio::test]
async fn min_free_is_left_free() {
    if !may_mount() {
        return;
    }
    let disk = Small::new(4 << 10);
    let config = Config { min_free: Size(2 << 20), ..config(disk.path()) };
    let (journal, _) = open(&config);
    journal.register("sink", Start::Earliest).unwrap();
    let next = fill(&journal, 0).await;
    degraded(&journal).await;
    let free = rustix::fs::statvfs(disk.path()).map(|stat| stat.f_bavail * stat.f_frsize).unwrap();
    // It looks once a second, and what comes within that second is still written.
    assert!(free > 128 << 10, "{free} bytes are left");
    append(&journal, events(next..next + 50)).await;
    disk.resize(16 << 10);
    sound(&journal).await;
    let got = read_all(&journal, 0).await;
    // What came faster than the look at the disk may have outgrown the memory: then it is counted.
    let kept = u64::try_from(got.numbers.len()).unwrap();
    assert_eq!(got.lost + kept, next + 50);
    assert!(got.numbers.is_sorted());
    close(journal).await;
}

/// What fills the disk is the journal itself, and every sink has all of it.
#[tokio::test]
async fn a_disk_that_delivered_events_fill_is_used_again() {
    if !may_mount() {
        return;
    }
    let disk = Small::new(6 << 10);
    let memory = Size(256 << 10);
    let config = Config { min_free: Size(3 << 20), memory, ..config(disk.path()) };
    let (journal, _) = open(&config);
    journal.register("sink", Start::Earliest).unwrap();
    let next = fill(&journal, 0).await;
    degraded(&journal).await;
    append(&journal, events(next..next + 50)).await;
    let last = journal.figures().last;
    journal.advance("sink", last);
    sound(&journal).await;
    append(&journal, events(next + 50..next + 100)).await;
    settled(&journal, &["sink"]).await;
    assert_eq!(read_all(&journal, last).await.lost, 0);
    close(journal).await;
    let (journal, opened) = open(&config);
    assert_eq!(opened.lost, 0);
    assert_eq!(position(&journal, "sink"), last);
    assert_eq!(read_all(&journal, last).await.numbers, (next + 50..next + 100).collect::<Vec<_>>());
    close(journal).await;
}

fn filler(disk: &Small) -> PathBuf {
    disk.path().join("filler")
}

/// Somebody else's file takes all of the disk but so much.
fn leave_free(disk: &Small, bytes: u64) {
    let free = rustix::fs::statvfs(disk.path()).map(|stat| stat.f_bavail * stat.f_frsize).unwrap();
    let more = usize::try_from(free.saturating_sub(bytes)).unwrap();
    let mut file = fs::OpenOptions::new().create(true).append(true).open(filler(disk)).unwrap();
    match file.write_all(&vec![1_u8; more]) {
        // The journal has written meanwhile.
        Err(error) if error.kind() == ErrorKind::StorageFull => {}
        written => written.unwrap(),
    }
}

/// What every sink has is removed while the journal is degraded, and the relay ends before it works again.
#[tokio::test]
async fn delivered_events_are_not_lost_after_an_end_on_a_full_disk() {
    if !may_mount() {
        return;
    }
    let disk = Small::new(16 << 10);
    let (min_free, memory) = (Size(8 << 20), Size(1 << 20));
    let config = Config { min_free, memory, ..config(&disk.path().join("journal")) };
    let (journal, _) = open(&config);
    journal.register("sink", Start::Earliest).unwrap();
    append(&journal, events(0..500)).await;
    settled(&journal, &["sink"]).await;
    leave_free(&disk, 1 << 20);
    degraded(&journal).await;
    append(&journal, events(500..520)).await;
    journal.advance("sink", journal.figures().last);
    until("what the disk has of it is removed", PATIENCE, async || {
        let bounds = Store::open_reader(&config.dir).ok()?.bounds().ok()?;
        bounds.is_none().then_some(())
    })
    .await;
    let mark = fs::read(config.dir.join("journal.mark")).unwrap();
    close(journal).await;
    fs::remove_file(filler(&disk)).unwrap();
    // One that is killed does not write its mark at the end.
    let killed = crashed(&config.dir);
    fs::write(killed.path().join("journal.mark"), mark).unwrap();
    for (how, dir) in [("stop", &*config.dir), ("kill", killed.path())] {
        let (journal, opened) = open(&Config { dir: dir.to_owned(), ..config.clone() });
        assert_eq!(opened.lost, 0, "{how}: {opened:?}");
        let got = read_all(&journal, position(&journal, "sink")).await;
        assert_eq!((got.lost, got.numbers), (0, vec![]), "{how}");
        close(journal).await;
    }
}

/// An event that takes as many bytes on the disk as it has.
fn incompressible(n: u64) -> Event {
    let pad: String = (0..50_000).map(|_| fastrand::alphanumeric()).collect();
    let message = format!(r#"{{"n":{n},"pad":"{pad}"}}"#);
    Event { data: 0..message.len(), message: message.into(), ..event(n) }
}

/// The write-ahead log cannot use the free pages of the database.
#[tokio::test]
async fn free_pages_do_not_count_where_the_log_has_no_space() {
    if !may_mount() {
        return;
    }
    let disk = Small::new(64 << 10);
    let (min_free, memory) = (Size(8 << 20), Size(1 << 20));
    let config = Config { min_free, memory, ..config(&disk.path().join("journal")) };
    let (journal, _) = open(&config);
    journal.register("sink", Start::Earliest).unwrap();
    append(&journal, (0..200).map(incompressible).collect()).await;
    journal.advance("sink", journal.figures().last);
    settled(&journal, &["sink"]).await;
    let why = until("it is degraded", PATIENCE, async || {
        // What was deleted leaves free pages, and what is cut from the log is somebody else's next.
        leave_free(&disk, 512 << 10);
        match journal.figures().health {
            Health::Degraded(why) => Some(why),
            Health::Sound | Health::MemoryOnly => None,
        }
    })
    .await;
    assert!(why.contains("full"), "{why}");
    let db = rusqlite::Connection::open(config.dir.join("journal.db")).unwrap();
    let pages: i64 = db.query_row("PRAGMA freelist_count", [], |row| row.get(0)).unwrap();
    assert!(pages > 4 << 10, "{pages} free pages of 1 KiB would do otherwise");
    drop(db);
    fs::remove_file(filler(&disk)).unwrap();
    sound(&journal).await;
    close(journal).await;
}

/// A journal on a disk of its own that has five hundred events, synced, and a sink that has none.
async fn five_hundred_on_disk() -> (Disk, Config, Journal) {
    let disk = Disk::new(32);
    let config = Config { memory: Size(1 << 20), ..config(&disk.path().join("journal")) };
    let (journal, _) = open(&config);
    journal.register("sink", Start::Earliest).unwrap();
    append(&journal, events(0..500)).await;
    settled(&journal, &["sink"]).await;
    synced(&journal).await;
    (disk, config, journal)
}

#[tokio::test]
async fn a_disk_that_dies_and_comes_back_is_used_again() {
    if !may_mount() {
        return;
    }
    let (mut disk, config, journal) = five_hundred_on_disk().await;
    append(&journal, events(500..600)).await;
    disk.plug().pull();
    append(&journal, events(600..700)).await;
    let why = degraded(&journal).await;
    say(&format!("the journal says: {why}"));
    // Who keeps up goes on getting events.
    assert_eq!(journal.saved("sink"), 0);
    let batch = journal.next(690, 100, 1 << 20).await.unwrap();
    assert_eq!((batch.records.len(), batch.lost), (10, 0));
    journal.advance("sink", 100);
    assert_eq!(journal.saved("sink"), 100, "nobody waits for a disk that is dead");
    disk.restore();
    append(&journal, events(700..800)).await;
    sound(&journal).await;
    let got = read_all(&journal, 0).await;
    assert_eq!((got.lost, got.numbers), (0, (0..800).collect()));
    close(journal).await;
    let (journal, opened) = open(&config);
    assert_eq!((opened.lost, opened.events), (0, 800));
    assert_eq!(position(&journal, "sink"), 100);
    close(journal).await;
}

#[tokio::test]
async fn intake_goes_on_while_the_disk_is_read_only() {
    if !may_mount() {
        return;
    }
    let (mut disk, config, journal) = five_hundred_on_disk().await;
    disk.turn_read_only();
    append(&journal, events(500..700)).await;
    let why = degraded(&journal).await;
    say(&format!("the journal says: {why}"));
    // All that came is handed out: what is on disk from there, the rest from memory.
    let got = read_all(&journal, 0).await;
    assert_eq!((got.lost, got.numbers), (0, (0..700).collect()));
    journal.advance("sink", 600);
    assert_eq!(journal.saved("sink"), 600, "nobody waits for a disk that takes nothing");
    // What is still mounted where files are open must not write any more into the one that replaces it.
    disk.plug().pull();
    disk.restore();
    append(&journal, events(700..800)).await;
    sound(&journal).await;
    close(journal).await;
    let (journal, opened) = open(&config);
    assert_eq!((opened.lost, opened.events, opened.set_aside), (0, 800, None));
    assert_eq!(position(&journal, "sink"), 600);
    assert_eq!(read_all(&journal, 0).await.numbers, (0..800).collect::<Vec<_>>());
    close(journal).await;
}

/// Appends until a sync fails, never more ahead of the last sync than the memory holds: what is older
/// is gone with the pages that were dropped. Answers the next number.
async fn fill_in_step(journal: &Journal) -> u64 {
    let mut next = 0;
    loop {
        let figures = journal.figures();
        if figures.health != Health::Sound {
            return next;
        }
        if figures.last - figures.synced < 500 {
            append(journal, events(next..next + 20)).await;
            next += 20;
        }
        tokio::task::yield_now().await;
    }
}

/// What only the system's memory has of the files is forgotten, as after a loss of power.
fn forget_what_is_cached(dir: &Path) {
    for name in ["journal.db", "journal.db-wal"] {
        let file = fs::File::open(dir.join(name)).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }
}

/// A sync fails, and from then on the system calls the pages clean that never came to the disk: the
/// next sync of the same file would succeed, and they would still not be there.
#[tokio::test]
async fn pages_dropped_by_a_failed_sync_are_written_again() {
    if !may_mount() {
        return;
    }
    // Enough for the file system itself and a little of the log.
    let store = Small::new(2 << 10);
    let disk = Disk::promising(&store, 64);
    let config = Config { memory: Size(1 << 20), ..config(&disk.path().join("journal")) };
    let (journal, _) = open(&config);
    journal.register("sink", Start::Earliest).unwrap();
    let next = fill_in_step(&journal).await;
    let why = degraded(&journal).await;
    say(&format!("the journal says: {why}, after {next} events"));
    let before = journal.figures().synced;
    append(&journal, events(next..next + 100)).await;
    let figures = journal.figures();
    assert!(before < next && figures.synced == before, "{before} of {next}: {figures:?}");
    // The system may need the memory for something else before the file is opened again.
    forget_what_is_cached(&config.dir);
    // The disk holds from now on what it has promised.
    store.resize(48 << 10);
    sound(&journal).await;
    synced(&journal).await;
    forget_what_is_cached(&config.dir);
    let copy = crashed(&config.dir);
    close(journal).await;
    let (journal, opened) = open(&Config { dir: copy.path().to_owned(), ..config });
    assert_eq!((opened.lost, opened.set_aside), (0, None));
    let got = read_all(&journal, 0).await;
    assert_eq!((got.lost, got.numbers), (0, (0..next + 100).collect()));
    close(journal).await;
}
