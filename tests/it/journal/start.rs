//! A journal that cannot be opened when the relay starts, or whose files are taken away while it runs: the
//! relay goes on from memory, says so, and takes the disk up when it works.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    time::Duration,
};

use astro_relay::{
    config::{Journal as Config, Period, Size, Start},
    journal::{Health, Journal, store::Store},
};
use astro_sim::{Load, Options, Sim};

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

/// Nobody has it yet, though every cursor stands behind it.
#[tokio::test]
async fn a_backlog_found_late_is_kept_until_it_is_delivered() {
    let hour = Duration::from_hours(1);
    let base = tempfile::tempdir().unwrap();
    let (disk, link) = (base.path().join("disk"), base.path().join("link"));
    fs::create_dir(&disk).unwrap();
    let lead_to = |target: &Path| {
        let new = base.path().join("new");
        symlink(target, &new).unwrap();
        fs::rename(new, &link).unwrap();
    };
    lead_to(&disk);
    let config = config(&link.join("journal"));
    let (journal, _) = open(&config);
    journal.register("sink", Start::Earliest).unwrap();
    append_aged(&journal, (0..300).map(|n| (event(n), 2 * hour))).await;
    journal.advance("sink", 100);
    settled(&journal, &["sink"]).await;
    close(journal).await;

    lead_to(Path::new("nowhere"));
    let (journal, _) = open(&Config { keep_delivered: Period(hour), ..config });
    trouble(&journal);
    journal.register("sink", Start::End).unwrap();
    journal.sinks(["sink"]);
    append(&journal, events(1000..1010)).await;
    journal.advance("sink", journal.figures().last);
    lead_to(&disk);
    sound(&journal).await;
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
    until("it is not ready, and says why", PATIENCE, async || {
        let answer = relay.get("/readyz").await?;
        let (_, body) = answer.split_once("\r\n\r\n")?;
        // The journal is the only reason: what is published before Astro has confirmed goes nowhere.
        let only =
            body.lines().filter(|line| !line.is_empty() && *line != "degraded").collect::<Vec<_>>();
        matches!(*only, [why] if why.contains("journal: events are kept in memory only"))
            .then_some(())
    })
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
    let held = Store::open_reader(&relay.journal()).unwrap().read(0, 1000, 1 << 20).unwrap();
    let number = |record: &std::sync::Arc<astro_relay::base::event::Record>| {
        crate::support::carry::number(record.event.data())
    };
    let numbers: Vec<_> = held.records.iter().filter_map(number).collect();
    assert_eq!(numbers, (0..20).collect::<Vec<_>>());
    assert_eq!(receiver.accepted(), (0..20).collect::<Vec<_>>());
}
