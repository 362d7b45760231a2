//! Who may open the journal, and what is done with a file that is newer, or broken.

use std::{fs, path::Path, process::Output, sync::Arc};

use astro_relay::{
    base::event::Record,
    journal::{Journal, Replay, SetAside, StoreError, store::Store},
};
use rusqlite::Connection;
use tokio::process::Command;

use crate::support::journal::{
    append, close, config, contents, crashed, event, events, open, position, read_all, settled,
};

/// `astro-relay run` with this journal and nothing else.
async fn run(dir: &Path) -> Output {
    let toml = format!("[journal]\ndir = {:?}\n[http]\nlisten = \"\"\n", dir.display().to_string());
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), toml).unwrap();
    let run = Command::new(env!("CARGO_BIN_EXE_astro-relay"))
        .args(["run", "--config"])
        .arg(file.path())
        .kill_on_drop(true)
        .output();
    tokio::time::timeout(crate::support::journal::PATIENCE, run).await.unwrap().unwrap()
}

async fn some(dir: &Path) -> Journal {
    let (journal, _) = open(&config(dir));
    append(&journal, events(0..1000)).await;
    settled(&journal, &[]).await;
    journal
}

#[tokio::test]
async fn a_journal_belongs_to_one_process() {
    let dir = tempfile::tempdir().unwrap();
    let journal = some(dir.path()).await;
    let Err(StoreError::Locked { holder, .. }) = Journal::open(&config(dir.path())) else {
        panic!("it was opened twice")
    };
    assert_eq!(holder, format!("process {}", std::process::id()));
    let output = run(dir.path()).await;
    assert_eq!(output.status.code(), Some(75), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(&format!("in use by process {}", std::process::id())), "{said}");
    close(journal).await;
    let (journal, opened) = open(&config(dir.path()));
    assert_eq!(opened.events, 1000);
    close(journal).await;
}

/// Who closes the database last removes its log by name, and by then it may be another.
#[tokio::test]
async fn a_closed_journal_has_no_open_files() {
    let dir = tempfile::tempdir().unwrap();
    let journal = some(dir.path()).await;
    let held = journal.clone();
    close(journal).await;
    let left: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("journal.db-"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    drop(held);
}

#[tokio::test]
async fn a_newer_format_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let journal = some(dir.path()).await;
    let copy = crashed(dir.path());
    close(journal).await;
    let db = Connection::open(copy.path().join("journal.db")).unwrap();
    db.execute_batch("UPDATE meta SET value = 2 WHERE key = 'format'; PRAGMA user_version = 2")
        .unwrap();
    // As a crash of the newer relay would have left it: with a log beside it.
    let newer = crashed(copy.path());
    drop(db);
    let before = contents(newer.path());
    assert!(before.contains_key(Path::new("journal.db-wal")));
    let Err(StoreError::Newer { found: 2, .. }) = Journal::open(&config(newer.path())) else {
        panic!("it was opened")
    };
    let output = run(newer.path()).await;
    assert_eq!(output.status.code(), Some(78), "{output:?}");
    let lock = Path::new("journal.lock");
    let mut after = contents(newer.path());
    after.remove(lock);
    let mut before = before;
    before.remove(lock);
    assert!(before == after, "not a byte of it has changed");
}

#[tokio::test]
async fn a_broken_header_is_no_newer_format() {
    let dir = tempfile::tempdir().unwrap();
    close(some(dir.path()).await).await;
    let file = dir.path().join("journal.db");
    let mut bytes = fs::read(&file).unwrap();
    // The file change counter and all that follows it, `user_version` among it.
    bytes[60..64].copy_from_slice(&[0, 0, 0, 3]);
    fs::write(&file, bytes).unwrap();
    let (journal, opened) = open(&config(dir.path()));
    assert!(opened.set_aside.is_some_and(|path| path.exists()));
    assert_eq!((opened.events, opened.lost), (1000, 0));
    assert_eq!(read_all(&journal, 0).await.numbers, (0..1000).collect::<Vec<_>>());
    close(journal).await;
}

#[tokio::test]
async fn a_file_that_is_no_database_is_set_aside_and_the_loss_reported() {
    let dir = tempfile::tempdir().unwrap();
    let journal = some(dir.path()).await;
    close(journal).await;
    fs::write(dir.path().join("journal.db"), "trash".repeat(5000)).unwrap();
    let (journal, opened) = open(&config(dir.path()));
    assert_eq!((opened.events, opened.lost), (0, 1000));
    assert!(opened.cursors_unknown);
    let aside = opened.set_aside.expect("a name");
    assert_eq!(fs::read(aside).unwrap(), b"trash".repeat(5000));
    journal.append(&mut vec![event(1000)]);
    // A sink that is new to it gets all there is: its position may have been among what was lost.
    let at = journal.register("sink", astro_relay::config::Start::End).unwrap();
    assert_eq!(read_all(&journal, at).await.numbers, [1000]);
    close(journal).await;
}

#[tokio::test]
async fn a_deleted_database_or_log_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(&config(dir.path()));
    journal.register("sink", astro_relay::config::Start::Earliest).unwrap();
    append(&journal, events(0..50)).await;
    settled(&journal, &["sink"]).await;
    close(journal).await;
    let (journal, _) = open(&config(dir.path()));
    append(&journal, events(50..120)).await;
    settled(&journal, &["sink"]).await;
    let (one, two) = (crashed(dir.path()), crashed(dir.path()));
    close(journal).await;

    fs::remove_file(one.path().join("journal.db-wal")).unwrap();
    let (journal, opened) = open(&config(one.path()));
    assert_eq!((opened.events, opened.lost), (50, 70));
    let last = journal.figures().last;
    journal.append(&mut vec![event(120)]);
    // The sink is told the same.
    let got = read_all(&journal, position(&journal, "sink")).await;
    assert_eq!((got.lost, got.numbers.len()), (70, 51));
    assert!(last >= 120);
    close(journal).await;

    fs::remove_file(two.path().join("journal.db")).unwrap();
    let (journal, opened) = open(&config(two.path()));
    assert_eq!((opened.events, opened.lost), (0, 120));
    assert!(journal.figures().last >= 120, "no number is given twice");
    close(journal).await;
}

#[tokio::test]
async fn a_recovery_that_was_interrupted_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let journal = some(dir.path()).await;
    close(journal).await;
    let at = |name: &str| dir.path().join(name);
    // A half-made copy from an interrupted recovery is of no value.
    fs::write(at("journal.db.new"), "half").unwrap();
    fs::write(at("journal.db.new-wal"), "half").unwrap();
    // A complete one waits for its place, beside a broken database and its log.
    fs::copy(at("journal.db"), at("journal.db.recovered")).unwrap();
    fs::write(at("journal.db"), "trash").unwrap();
    fs::write(at("journal.db-wal"), "trash").unwrap();
    let (journal, opened) = open(&config(dir.path()));
    assert_eq!((opened.events, opened.lost), (1000, 0));
    assert_eq!(read_all(&journal, 0).await.numbers.len(), 1000);
    assert!(!at("journal.db.recovered").exists());
    close(journal).await;
    let broken = contents(dir.path());
    let names = broken.keys().map(|name| name.display().to_string());
    let aside: Vec<_> = names.filter(|name| name.starts_with("journal.db.broken-")).collect();
    assert_eq!(aside.len(), 2, "the database and its log: {aside:?}");
    assert!(aside.iter().any(|name| name.ends_with("-wal")), "{aside:?}");
}

/// Without the tables and columns that were added since, and with what is no longer used.
fn make_it_a_former_version_s(dir: &Path) {
    let db = Connection::open(dir.join("journal.db")).unwrap();
    db.execute_batch(
        "ALTER TABLE batches DROP COLUMN time; ALTER TABLE dead_letters DROP COLUMN time;
         ALTER TABLE replays DROP COLUMN condition;
         DROP TABLE state; DELETE FROM meta WHERE key = 'identity';
         INSERT OR REPLACE INTO meta VALUES('reserved', 1000001), ('alive', 1700000000000)",
    )
    .unwrap();
}

#[tokio::test]
async fn a_file_of_a_former_version_is_opened_and_recovered() {
    let dir = tempfile::tempdir().unwrap();
    let journal = some(dir.path()).await;
    journal.register("sink", astro_relay::config::Start::Earliest).unwrap();
    journal.advance("sink", 400);
    for seq in 1..=3 {
        let record = Arc::new(Record::new(seq, event(seq)));
        assert_eq!(journal.dead_letter("sink", &record, "no"), SetAside::Stored);
    }
    settled(&journal, &["sink"]).await;
    close(journal).await;
    let topic = Some("channel.1".to_owned());
    let asked =
        Replay { number: 0, at: 1, sink: "sink".into(), position: 1, until: 9, topic, when: None };
    Store::open_reader(dir.path())
        .and_then(|store| store.allow_requests().and_then(|()| store.request_replay(&asked)))
        .unwrap();
    make_it_a_former_version_s(dir.path());
    // Read beside a relay of the former version.
    let replays = Store::open_reader(dir.path()).unwrap().replays().unwrap();
    assert_eq!(replays, [Replay { number: 1, ..asked.clone() }]);
    let broken = crashed(dir.path());
    // Its header names a format that it does not have.
    let file = broken.path().join("journal.db");
    let mut bytes = fs::read(&file).unwrap();
    bytes[60..64].copy_from_slice(&[0, 0, 0, 3]);
    fs::write(&file, bytes).unwrap();
    for dir in [&dir, &broken] {
        let (journal, opened) = open(&config(dir.path()));
        assert_eq!((opened.events, opened.lost), (1000, 0));
        assert!(journal.figures().last >= 1000, "no number is assigned twice");
        assert_eq!(position(&journal, "sink"), 400);
        assert_eq!(journal.dead_letter_counts()["sink"], 3);
        assert_eq!(read_all(&journal, 0).await.numbers, (0..1000).collect::<Vec<_>>());
        let letters = Store::open_reader(dir.path()).unwrap().dead_letters(None).unwrap();
        let numbers: Vec<_> = letters.iter().map(|letter| letter.number).collect();
        assert_eq!(numbers, [1, 2, 3]);
        let store = Store::open_reader(dir.path()).unwrap();
        store.allow_requests().unwrap();
        let when = Some("data.n > 5".to_owned());
        let second = Replay { when, ..asked.clone() };
        store.request_replay(&second).unwrap();
        let both = [Replay { number: 1, ..asked.clone() }, Replay { number: 2, ..second }];
        assert_eq!(journal.pending_requests("sink").unwrap().1, both);
        close(journal).await;
    }
}

#[tokio::test]
async fn only_the_latest_broken_files_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..5 {
        let journal = open(&config(dir.path())).0;
        close(journal).await;
        fs::write(dir.path().join("journal.db"), "trash".repeat(500)).unwrap();
    }
    close(open(&config(dir.path())).0).await;
    let aside = contents(dir.path());
    let aside = aside.keys().filter(|name| name.display().to_string().contains("broken"));
    assert_eq!(aside.count(), 3);
}
