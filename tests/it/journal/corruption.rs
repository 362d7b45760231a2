//! Files that were flipped, cut, zeroed, swapped or deleted: it always opens, never hands out a wrong
//! byte, and what it hands out and what it says is lost make up what was appended.
//!
//! The sum is exact as long as the books can be read: the runs in the database, or the mark beside
//! it. It cannot be where the database and the mark are both damaged, or the log of another time was
//! put in: then the mark's count or the runs are of another moment. There the test holds the journal
//! to less: it opens, what it hands out is right, in order, each once, and no more than was appended.

use std::{fs, path::Path, time::Duration};

use astro_relay::{config::Start, journal::Health};
use fastrand::Rng;

use crate::support::{
    journal::{
        PATIENCE, append, close, config, contents, crashed, events, long, open, read_all,
        read_some, say, settled,
    },
    wait::until,
};

/// Appended in the runs that make the file.
const TOTAL: u64 = 900;

/// What is done to the files, and whether it can be counted afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    Flip,
    Zero,
    Cut,
    Trash,
    Header,
    Delete,
    Swap,
    DeleteMarkToo,
}

const DAMAGES: [Damage; 8] = [
    Damage::Flip,
    Damage::Zero,
    Damage::Cut,
    Damage::Trash,
    Damage::Header,
    Damage::Delete,
    Damage::Swap,
    Damage::DeleteMarkToo,
];

/// A journal as a crash left it: of two runs, part of it in the database and part in the log.
async fn victim() -> (tempfile::TempDir, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(&config(dir.path()));
    journal.register("sink", Start::Earliest).unwrap();
    append(&journal, events(0..TOTAL / 3)).await;
    settled(&journal, &["sink"]).await;
    let earlier = crashed(dir.path());
    let wal = fs::read(earlier.path().join("journal.db-wal")).unwrap();
    close(journal).await;
    let (journal, _) = open(&config(dir.path()));
    append(&journal, events(TOTAL / 3..TOTAL / 2)).await;
    settled(&journal, &["sink"]).await;
    close(journal).await;
    let (journal, _) = open(&config(dir.path()));
    append(&journal, events(TOTAL / 2..TOTAL)).await;
    settled(&journal, &["sink"]).await;
    let copy = crashed(dir.path());
    close(journal).await;
    (copy, wal)
}

fn damage(dir: &Path, damage: Damage, old_wal: &[u8], random: &mut Rng) -> String {
    let name = if random.bool() { "journal.db" } else { "journal.db-wal" };
    let path = dir.join(name);
    let mut bytes = fs::read(&path).unwrap();
    let at = random.usize(..bytes.len());
    let length = random.usize(1..=20_000).min(bytes.len() - at);
    match damage {
        Damage::Flip => {
            for _ in 0..random.usize(1..=20) {
                let at = random.usize(..bytes.len());
                bytes[at] ^= 1 << random.u8(..8);
            }
        }
        Damage::Zero => bytes[at..at + length].fill(0),
        Damage::Cut => bytes.truncate(at),
        Damage::Trash => bytes[at..at + length].fill_with(|| random.u8(..)),
        Damage::Header => bytes[..100].fill_with(|| random.u8(..)),
        Damage::Delete => {
            fs::remove_file(&path).unwrap();
            return format!("{name} deleted");
        }
        Damage::Swap => bytes = old_wal.to_vec(),
        Damage::DeleteMarkToo => {
            fs::remove_file(dir.join("journal.mark")).unwrap();
            bytes[at..at + length].fill(0);
        }
    }
    let path = if damage == Damage::Swap { dir.join("journal.db-wal") } else { path };
    fs::write(path, bytes).unwrap();
    format!("{damage:?} of {name} at {at}, {length}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_files_are_opened_and_the_loss_is_counted() {
    let (victim, old_wal) = victim().await;
    let files = contents(victim.path());
    let rounds = if long() { 2000 } else { 64 };
    let seed = fastrand::u64(..);
    say(&format!("seed {seed}"));
    let mut random = Rng::with_seed(seed);
    let (mut recovered, mut whole, mut inexact) = (0, 0, 0);
    let mut slowest = Duration::ZERO;
    for round in 0..rounds {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in &files {
            fs::write(dir.path().join(name), bytes).unwrap();
        }
        let kind = DAMAGES[round % DAMAGES.len()];
        let what = format!("round {round}: {}", damage(dir.path(), kind, &old_wal, &mut random));
        let start = tokio::time::Instant::now();
        let one = tokio::time::timeout(PATIENCE, check(dir.path(), kind, &what));
        let (set_aside, exact) = one.await.unwrap_or_else(|_| panic!("{what}: it hangs"));
        slowest = slowest.max(start.elapsed());
        recovered += usize::from(set_aside);
        whole += usize::from(!set_aside);
        inexact += usize::from(!exact);
    }
    say(&format!(
        "{rounds} damages: {recovered} files set aside at once, {whole} opened as they were; \
         {inexact} not counted exactly; the slowest took {slowest:?}"
    ));
}

/// Opens it, reads all of it, and looks at the sum. Answers whether the file was set aside at once,
/// and whether the sum was right.
async fn check(dir: &Path, damage: Damage, what: &str) -> (bool, bool) {
    let (journal, opened) = open(&config(dir));
    let at = journal.register("sink", Start::Earliest).unwrap();
    let before = journal.figures().last;
    // It must work as before: what is new is handed out behind what was.
    append(&journal, events(TOTAL..TOTAL + 20)).await;
    let mut got = read_some(&journal, at, before.max(at)).await;
    if at < before {
        assert!(got.through >= before, "{what}");
    }
    let new = read_all(&journal, got.through.max(before)).await;
    assert_eq!(new.numbers, (TOTAL..TOTAL + 20).collect::<Vec<_>>(), "{what}");
    assert!(got.numbers.windows(2).all(|pair| pair[0] < pair[1]), "{what}: in order, each once");
    assert!(got.numbers.last().is_none_or(|last| *last < TOTAL), "{what}");
    // Where the position was lost, the sink began with the earliest event: what lay before that is
    // told at opening only. A file that was recovered has told all of it then, what is missing in the midst too.
    let found = u64::try_from(got.numbers.len()).unwrap();
    if at > 0 && opened.set_aside.is_none() {
        got.lost += opened.lost;
    }
    got.lost = got.lost.max(opened.lost);
    let exact = found + got.lost == TOTAL;
    let countable = !matches!(damage, Damage::DeleteMarkToo | Damage::Swap);
    assert!(exact || !countable, "{what}: {found} found, {} lost, at {at}, {opened:?}", got.lost);
    until("the journal is sound in the end", PATIENCE, async || {
        (journal.figures().health == Health::Sound).then_some(())
    })
    .await;
    close(journal).await;
    // And again, with nothing more to be told.
    let (journal, again) = open(&config(dir));
    assert_eq!((again.lost, again.set_aside), (0, None), "{what}");
    close(journal).await;
    (opened.set_aside.is_some(), exact)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_found_while_it_runs_is_recovered_while_it_runs() {
    let rounds = if long() { 100 } else { 5 };
    for round in 0..rounds {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = open(&config(dir.path()));
        append(&journal, events(0..20_000)).await;
        settled(&journal, &[]).await;
        close(journal).await;
        // The tree's leaves are trash; the start does not read them.
        let file = dir.path().join("journal.db");
        let mut bytes = fs::read(&file).unwrap();
        let mut random = Rng::with_seed(round);
        let size = usize::from(u16::from_be_bytes([bytes[16], bytes[17]]));
        let pages = bytes.len() / size;
        // How the page of a table's leaf begins.
        let leaf = |page: &usize| bytes[page * size] == 13;
        let leaves: Vec<_> = (pages / 4..pages - 10).filter(leaf).collect();
        // Neighbours: what lies between the first broken page and the last is lost with them.
        let first = random.usize(..leaves.len() - 5);
        for page in leaves.into_iter().skip(first).take(5) {
            bytes[page * size..page * size + 200].fill_with(|| random.u8(..));
        }
        fs::write(&file, bytes).unwrap();
        let (journal, opened) = open(&config(dir.path()));
        assert_eq!(opened.set_aside, None, "round {round}");
        // Reading meets it, the writer recovers, reading goes on; meanwhile events come in.
        append(&journal, events(20_000..20_100)).await;
        let got = read_all(&journal, 0).await;
        let found = u64::try_from(got.numbers.len()).unwrap();
        assert_eq!(found + got.lost, 20_100, "round {round}");
        // Five pages, each with the fronts of some eight batches.
        assert!(got.lost > 0 && got.lost < 5000, "round {round}: {} lost", got.lost);
        assert_eq!(got.numbers[got.numbers.len() - 100..], (20_000..20_100).collect::<Vec<_>>());
        until("it is sound again", PATIENCE, async || {
            (journal.figures().health == Health::Sound).then_some(())
        })
        .await;
        settled(&journal, &[]).await;
        close(journal).await;
        let (journal, opened) = open(&config(dir.path()));
        assert_eq!((opened.set_aside, opened.lost), (None, 0));
        let again = read_all(&journal, 0).await;
        assert_eq!((again.lost, again.numbers.len()), (got.lost, got.numbers.len()));
        assert!(again == got, "the same as before");
        close(journal).await;
    }
}
