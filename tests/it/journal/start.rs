//! A journal that cannot be opened when the relay starts, or whose files are taken away while it runs: the
//! relay goes on from memory, says so, and takes the disk up when it works.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use astro_relay::{
    base::event::Record,
    config::{Journal as Config, Period, Size, Start},
    journal::{Health, Journal, store::Store},
};
use astro_sim::{Load, Options, Sim};
use serde_json::Value;

use crate::support::{
    daemon::Relay,
    journal::{
        PATIENCE, append, append_aged, close, config, event, events, open, position, read_all,
        settled, synced,
    },
    mount::{Small, may_mount},
    receiver::Receiver,
    wait::until,
};

/// Why it is degraded.
fn trouble(journal: &Journal) -> String {
    match journal.figures().health {
        Health::Degraded(why) => why,
        other => panic!("{other:?}"),
    }
}

async fn sound(journal: &Journal) {
    until("the journal works", PATIENCE, async || {
        (journal.figures().health == Health::Sound).then_some(())
    })
    .await;
}

/// Takes in what comes, gives it out, and has it on disk once that works.
async fn works_from_memory(journal: &Journal, repair: impl FnOnce()) {
    let at = journal.register("new", Start::End).unwrap();
    append(journal, events(1000..1050)).await;
    let batch = journal.next(at, 100, 1 << 20).await.unwrap();
    assert_eq!((batch.records.len(), batch.lost), (50, 0), "events are given out");
    journal.advance("new", batch.through);
    assert_eq!(journal.saved("new"), batch.through, "nobody waits for the disk");
    assert_eq!(journal.stored_state().unwrap(), []);
    assert!(journal.pending_requests("new").unwrap().1.is_empty());
    repair();
    sound(journal).await;
    settled(journal, &["new"]).await;
    append(journal, events(1050..1060)).await;
    settled(journal, &[]).await;
    synced(journal).await;
}

/// After a restart all of it is there.
async fn holds(config: &Config, old: u64) {
    let (journal, opened) = open(config);
    assert_eq!((opened.lost, opened.events), (0, old + 60));
    let expected: Vec<_> = (0..old).chain(1000..1060).collect();
    assert_eq!(read_all(&journal, 0).await.numbers, expected);
    close(journal).await;
}

#[tokio::test]
async fn a_relay_starts_on_a_full_disk() {
    if !may_mount() {
        return;
    }
    let disk = Small::new(4 << 10);
    let filler = disk.path().join("filler");
    // The last write of it fails: then it is full.
    assert!(fs::write(&filler, vec![1; 8 << 20]).is_err());
    let config = config(&disk.path().join("journal"));
    let (journal, _) = open(&config);
    let why = trouble(&journal);
    assert!(why.contains("space") || why.contains("full"), "{why}");
    works_from_memory(&journal, || fs::remove_file(&filler).unwrap()).await;
    close(journal).await;
    holds(&config, 0).await;
}

#[tokio::test]
async fn a_relay_starts_without_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    let blocker = dir.path().join("no directory");
    fs::write(&blocker, "").unwrap();
    let config = config(&blocker.join("journal"));
    let (journal, _) = open(&config);
    trouble(&journal);
    works_from_memory(&journal, || fs::remove_file(&blocker).unwrap()).await;
    close(journal).await;
    holds(&config, 0).await;
}

/// What the sinks had still to get of the old is handed on when it can be read.
#[tokio::test]
async fn the_backlog_of_a_disk_that_was_read_only_at_the_start_is_replayed() {
    if !may_mount() {
        return;
    }
    let disk = Small::new(16 << 10);
    let config = config(&disk.path().join("journal"));
    let (journal, _) = open(&config);
    journal.register("new", Start::Earliest).unwrap();
    append(&journal, events(0..300)).await;
    journal.advance("new", 100);
    settled(&journal, &["new"]).await;
    close(journal).await;
    disk.read_only(true);
    for _ in 0..2 {
        let (journal, opened) = open(&config);
        trouble(&journal);
        assert!(opened.heartbeat.is_some() && opened.downtime.is_some(), "the gap can be told");
        close(journal).await;
    }
    let (journal, _) = open(&config);
    works_from_memory(&journal, || disk.read_only(false)).await;
    let (_, replays) = journal.pending_requests("new").unwrap();
    assert_eq!(replays.len(), 1, "{replays:?}");
    assert_eq!((replays[0].position, replays[0].until), (100, 300));
    let batch = journal.read(100, 300, 1000, 1 << 20).await.unwrap();
    assert_eq!((batch.lost, batch.records.len()), (0, 200));
    close(journal).await;
    holds(&config, 300).await;
}

/// A disk that can be taken away: a link leads to it, or nowhere.
struct Away(tempfile::TempDir);

impl Away {
    fn new() -> Self {
        let disk = Self(tempfile::tempdir().unwrap());
        fs::create_dir(disk.0.path().join("disk")).unwrap();
        disk.is_there(true);
        disk
    }

    fn journal(&self) -> PathBuf {
        self.0.path().join("link/journal")
    }

    fn is_there(&self, there: bool) {
        let new = self.0.path().join("new");
        symlink(if there { "disk" } else { "nowhere" }, &new).unwrap();
        fs::rename(new, self.0.path().join("link")).unwrap();
    }

    /// The same after a run: of 300 old events `reader` has had 100.
    async fn after_a_run(reader: &str) -> (Self, Config) {
        let disk = Self::new();
        let config = config(&disk.journal());
        let (journal, _) = open(&config);
        journal.register(reader, Start::Earliest).unwrap();
        let old = Duration::from_hours(2);
        append_aged(&journal, (0..300).map(|n| (event(n), old))).await;
        journal.advance(reader, 100);
        settled(&journal, &[reader]).await;
        close(journal).await;
        disk.is_there(false);
        (disk, config)
    }
}

/// Nobody has it yet, though every cursor stands behind it.
#[tokio::test]
async fn a_backlog_found_late_is_kept_until_it_is_delivered() {
    let hour = Duration::from_hours(1);
    let (disk, config) = Away::after_a_run("sink").await;
    let (journal, _) = open(&Config { keep_delivered: Period(hour), ..config });
    trouble(&journal);
    journal.register("sink", Start::End).unwrap();
    journal.sinks(["sink"]);
    append(&journal, events(1000..1010)).await;
    journal.advance("sink", journal.figures().last);
    disk.is_there(true);
    sound(&journal).await;
    assert_eq!(journal.lag("sink").0, 200);
    let oldest = until("what was delivered is gone", PATIENCE, async || {
        let oldest = journal.figures().oldest;
        // What goes, goes in whole batches.
        (oldest > 101 - 64).then_some(oldest)
    })
    .await;
    assert!(oldest <= 101, "{oldest}");
    let (_, replays) = journal.pending_requests("sink").unwrap();
    assert_eq!(replays.len(), 1, "{replays:?}");
    assert_eq!((replays[0].position, replays[0].until), (100, 300));
    let batch = journal.read(100, 300, 1000, 1 << 20).await.unwrap();
    assert_eq!((batch.lost, batch.records.len()), (0, 200));
    journal.replay_progress(replays[0].number, None);
    until("all of it is gone", PATIENCE, async || (journal.figures().oldest > 300).then_some(()))
        .await;
    close(journal).await;
}

#[tokio::test]
async fn a_backlog_found_late_that_is_deleted_for_its_size_is_lost() {
    let (disk, config) = Away::after_a_run("sink").await;
    let (journal, _) = open(&Config { max_size: Size(256 << 10), ..config });
    trouble(&journal);
    journal.register("sink", Start::End).unwrap();
    journal.sinks(["sink"]);
    disk.is_there(true);
    sound(&journal).await;
    let mut lost = 0;
    for first in (1000..25_000).step_by(500) {
        append(&journal, events(first..first + 500)).await;
        journal.advance("sink", journal.figures().last);
        lost += journal.take_losses().iter().map(|(_, count)| count).sum::<u64>();
    }
    until("all of it is gone", PATIENCE, async || {
        lost += journal.take_losses().iter().map(|(_, count)| count).sum::<u64>();
        (journal.figures().oldest > 300).then_some(())
    })
    .await;
    lost += journal.take_losses().iter().map(|(_, count)| count).sum::<u64>();
    assert_eq!((lost, journal.lag("sink").0), (200, 0));
    // The run is not forgotten before the sink has stepped over it.
    let batch = journal.read(100, 300, 1000, 1 << 20).await.unwrap();
    assert_eq!((batch.lost, batch.records.len()), (200, 0));
    close(journal).await;
}

/// Its outbox goes back to them, over a restart too.
#[tokio::test]
async fn what_a_member_had_still_to_publish_in_files_found_late_waits() {
    const OUTBOX: &str = "relay.cluster";
    let (disk, config) = Away::after_a_run(OUTBOX).await;
    let (journal, _) = open(&config);
    trouble(&journal);
    journal.register(OUTBOX, Start::End).unwrap();
    journal.sinks([OUTBOX]);
    append(&journal, events(1000..1010)).await;
    let through = journal.figures().last;
    journal.advance(OUTBOX, through);
    disk.is_there(true);
    sound(&journal).await;
    assert_eq!(journal.lag(OUTBOX).0, 200 + 10);
    // Whoever does not know yet that it was put back moves nothing.
    journal.advance(OUTBOX, through);
    assert_eq!(position(&journal, OUTBOX), 100);
    journal.advance(OUTBOX, 150);
    settled(&journal, &[OUTBOX]).await;
    close(journal).await;
    let (journal, _) = open(&config);
    assert_eq!(position(&journal, OUTBOX), 150);
    let got = read_all(&journal, 150).await;
    assert_eq!((got.lost, got.numbers), (0, (150..300).chain(1000..1010).collect()));
    close(journal).await;
}

#[tokio::test]
async fn when_the_relay_last_ran_is_said_by_files_that_are_found_late() {
    let (disk, config) = Away::after_a_run("sink").await;
    let (journal, opened) = open(&config);
    trouble(&journal);
    assert_eq!((opened.heartbeat, journal.take_last_run()), (None, None));
    disk.is_there(true);
    sound(&journal).await;
    let found = journal.take_last_run().expect("it is known now");
    assert!(found.heartbeat.is_some() && found.downtime.is_some(), "{found:?}");
    assert_eq!(journal.take_last_run(), None, "it is said once");
    close(journal).await;
    // Nothing is said late that was known at the start.
    let (journal, opened) = open(&config);
    assert!(opened.heartbeat.is_some());
    assert_eq!(journal.take_last_run(), None);
    close(journal).await;
}

#[tokio::test]
async fn files_removed_while_it_runs_are_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let config = Config { memory: Size(1 << 20), ..config(&path) };
    let (journal, _) = open(&config);
    journal.register("sink", Start::Earliest).unwrap();
    append(&journal, events(0..300)).await;
    settled(&journal, &["sink"]).await;
    let there = || Store::open_reader(&path).ok()?.bounds().ok()?;
    for (n, removed) in ["", "journal.lock", "journal.mark", "journal.db"].iter().enumerate() {
        if removed.is_empty() {
            fs::remove_dir_all(&path).unwrap();
        } else {
            fs::remove_file(path.join(removed)).unwrap();
        }
        let n = u64::try_from(n).unwrap();
        append(&journal, events([300 + n])).await;
        // All of it was still in memory.
        until("it is on the new disk", PATIENCE, async || {
            (there() == Some((1, 301 + n)) && path.join(removed).exists()).then_some(())
        })
        .await;
        sound(&journal).await;
    }
    close(journal).await;
    let (journal, opened) = open(&config);
    assert_eq!((opened.lost, opened.events), (0, 304));
    assert_eq!(position(&journal, "sink"), 0);
    close(journal).await;
}

#[tokio::test]
async fn another_journal_in_its_place_is_set_aside() {
    let (mine, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (foreign, _) = open(&config(other.path()));
    append(&foreign, events(500..900)).await;
    settled(&foreign, &[]).await;
    close(foreign).await;
    let config = Config { memory: Size(1 << 20), ..config(&mine.path().join("journal")) };
    let (journal, _) = open(&config);
    append(&journal, events(0..100)).await;
    settled(&journal, &[]).await;
    fs::remove_dir_all(&config.dir).unwrap();
    fs::rename(other.path(), &config.dir).unwrap();
    let aside = || {
        let names = fs::read_dir(&config.dir).ok()?;
        let mut names = names.flatten().map(|entry| entry.file_name().into_string().unwrap());
        names.find(|name| name.starts_with("journal.db.other-"))
    };
    until("it is set aside", PATIENCE, async || aside()).await;
    sound(&journal).await;
    settled(&journal, &[]).await;
    assert_eq!(read_all(&journal, 0).await.numbers, (0..100).collect::<Vec<_>>());
    close(journal).await;
}

fn modes(dir: &Path) -> Vec<(String, u32)> {
    let entry = |entry: fs::DirEntry| {
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        (entry.file_name().into_string().unwrap(), mode)
    };
    fs::read_dir(dir).unwrap().map(|found| entry(found.unwrap())).collect()
}

#[tokio::test]
async fn the_journal_s_files_are_private() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (journal, _) = open(&config(dir.path()));
    append(&journal, events(0..100)).await;
    settled(&journal, &[]).await;
    let all = modes(dir.path());
    assert!(all.len() >= 5 && all.iter().all(|(_, mode)| *mode == 0o600), "{all:?}");
    close(journal).await;
    // Files that a former version has left, a broken one among them.
    fs::write(dir.path().join("journal.db.broken-1"), "old").unwrap();
    for (name, _) in modes(dir.path()) {
        fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(0o644)).unwrap();
    }
    fs::write(dir.path().join("journal.db"), "trash".repeat(5000)).unwrap();
    let (journal, opened) = open(&config(dir.path()));
    assert!(opened.set_aside.is_some());
    append(&journal, events(0..100)).await;
    settled(&journal, &[]).await;
    let all = modes(dir.path());
    assert!(all.len() >= 7 && all.iter().all(|(_, mode)| *mode == 0o600), "{all:?}");
    close(journal).await;
    // One that it makes itself is closed to others.
    let own = dir.path().join("own");
    close(open(&config(&own)).0).await;
    assert_eq!(fs::metadata(&own).unwrap().permissions().mode() & 0o777, 0o700);
}

/// The journal is the only reason why it is not ready: what is published before Astro has confirmed goes nowhere.
async fn lacks_its_journal(relay: &Relay) -> Option<()> {
    let answer = relay.get("/readyz").await?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    let only =
        body.lines().filter(|line| !line.is_empty() && *line != "degraded").collect::<Vec<_>>();
    matches!(*only, [why] if why.contains("journal: events are kept in memory only")).then_some(())
}

/// What stands in the files of a journal.
fn held(dir: &Path) -> Option<Vec<Arc<Record>>> {
    Some(Store::open_reader(dir).ok()?.read(0, 1000, 1 << 20).ok()?.records)
}

/// The whole relay: it runs, says what is wrong, gives out what comes, and takes the disk up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_starts_without_its_journal_and_opens_it_later() {
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), Options::default()).await.unwrap();
    let receiver = Receiver::start();
    let sink = format!(
        "[sinks.far]\ntype = \"webhook\"\nurl = {:?}\nallow_addresses = [\"127.0.0.1\"]\n\
         payload = \"data\"\n",
        receiver.url()
    );
    let (topic, room) = ("channel.activities", "5b2e2007760aeb7729487dab");
    let mut relay = Relay::new(&sim.url(), &sim.api_url(), topic, room, &sink);
    fs::write(relay.journal(), "no directory").unwrap();
    relay.start();
    until("it is not ready, and says why", PATIENCE, async || lacks_its_journal(&relay).await)
        .await;
    let load = |first| Load {
        messages: 10,
        first,
        topic: topic.into(),
        rooms: vec![room.into()],
        ..Load::default()
    };
    let arrived = async |count: usize| {
        until("they arrive", PATIENCE, async || (receiver.accepted().len() >= count).then_some(()))
            .await;
    };
    sim.load(&load(0)).await;
    arrived(10).await;
    assert!(relay.log().contains("the journal cannot be opened"));
    fs::remove_file(relay.journal()).unwrap();
    relay.ready().await;
    sim.load(&load(10)).await;
    arrived(20).await;
    relay.kill().await;
    let held = held(&relay.journal()).unwrap();
    let number = |record: &Arc<Record>| crate::support::carry::number(record.event.data());
    let numbers: Vec<_> = held.iter().filter_map(number).collect();
    assert_eq!(numbers, (0..20).collect::<Vec<_>>());
    assert_eq!(receiver.accepted(), (0..20).collect::<Vec<_>>());

    // The files are elsewhere at the next start: how long the relay did not run is known when they come back.
    let (aside, new) =
        (relay.journal().with_extension("aside"), relay.journal().with_extension("new"));
    fs::rename(relay.journal(), &aside).unwrap();
    fs::write(relay.journal(), "no directory").unwrap();
    relay.start();
    until("it runs without it", PATIENCE, async || lacks_its_journal(&relay).await).await;
    symlink(&aside, &new).unwrap();
    fs::rename(new, relay.journal()).unwrap();
    let reported = until("the gap is reported", PATIENCE, async || {
        let held = self::held(&relay.journal())?;
        let data = held.iter().map(|record| serde_json::from_slice::<Value>(record.event.data()));
        data.flatten().find(|report| report["cause"] == "the relay did not run")
    })
    .await;
    assert_eq!(reported["subscriptions"][0]["restored"], true, "{reported}");
    relay.stop().await;
}
