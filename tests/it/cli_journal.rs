//! The commands that look into the journal, beside a relay that runs and without one.

use std::{
    path::Path,
    process::{Output, Stdio},
    sync::Arc,
    time::Duration,
};

use astro_relay::{
    base::{
        clock,
        event::{Event, Origin, Place, Record},
    },
    config::Start,
    journal::Journal,
};
use bytes::Bytes;
use serde_json::Value;
use tokio::{io::AsyncReadExt as _, process::Command, time::timeout};

use crate::support::{
    daemon::{PROGRAM, run},
    journal::{PATIENCE, append_aged, close, config, open, settled},
    terminal::Pty,
    wait::until,
};

const MINUTE: u64 = 60_000;

/// Event `n` of ten: one a minute, the last now.
fn event(n: u64) -> Event {
    let topic = if n.is_multiple_of(2) { "channel.tips" } else { "channel.follow" };
    let data = format!(r#"{{"n":{n}}}"#);
    let message = format!(r#"{{"id":"id-{n}","type":"message","topic":"{topic}","data":{data}}}"#);
    let end = message.len() - 1;
    Event {
        id: format!("id-{n}").into(),
        distinct_key: None,
        place: Place::of(topic, "room", "main"),
        ts: "".into(),
        received: clock::now() - (9 - n) * MINUTE,
        origin: Origin::Live,
        data: end - data.len()..end,
        message: Bytes::from(message),
        may_have_personal_fields: true,
    }
}

/// Ten events; the sink `home` has four, and refused two of them.
async fn some(dir: &Path) -> Journal {
    let (journal, _) = open(&config(dir));
    journal.register("home", Start::Earliest).unwrap();
    let age = |n| Duration::from_millis((9 - n) * MINUTE);
    append_aged(&journal, (0..10).map(|n| (event(n), age(n)))).await;
    for seq in [1, 3] {
        let record = Arc::new(Record::new(seq, event(seq - 1)));
        journal.dead_letter("home", &record, "no such room");
    }
    journal.advance("home", 4);
    settled(&journal, &["home"]).await;
    journal
}

fn lines(output: &Output) -> Vec<String> {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap().lines().map(str::to_owned).collect()
}

fn numbers(output: &Output) -> Vec<u64> {
    let n = |line: String| {
        let value: Value = serde_json::from_str(&line).expect("a line is JSON");
        value["message"]["data"]["n"].as_u64().expect("the message as it came")
    };
    lines(output).into_iter().map(n).collect()
}

#[tokio::test]
async fn beside_a_relay_that_runs() {
    let dir = tempfile::tempdir().unwrap();
    let journal = some(dir.path()).await;
    looks(dir.path()).await;
    // What is asked for reaches the relay.
    let mut requests = journal.requests();
    requests.mark_unchanged();
    let output = run(&["dead-letters", "retry", "--sink", "home", "2"], dir.path()).await;
    assert_eq!(lines(&output), ["1 dead letter of sink home to be tried again"]);
    timeout(PATIENCE, requests.changed()).await.expect("told").unwrap();
    assert_eq!(journal.pending_requests("home").unwrap().0[0].number, 2);
    let output = run(&["replay", "--sink", "home", "--from", "5m"], dir.path()).await;
    let said = lines(&output);
    let last = said.last().unwrap();
    assert!(last.starts_with("events 6 to 10 will be handed to home again"), "{said:?}");
    timeout(PATIENCE, requests.changed()).await.expect("told").unwrap();
    let replays = journal.pending_requests("home").unwrap().1;
    assert_eq!((replays[0].position, replays[0].until), (5, 10));
    let output = run(&["dead-letters", "drop", "1"], dir.path()).await;
    assert_eq!(lines(&output), ["1 dead letter deleted"]);
    until("the relay counts again", PATIENCE, async || {
        (journal.dead_letter_counts().get("home") == Some(&1)).then_some(())
    })
    .await;
    close(journal).await;
}

#[tokio::test]
async fn without_a_relay() {
    let dir = tempfile::tempdir().unwrap();
    close(some(dir.path()).await).await;
    looks(dir.path()).await;
    lines(&run(&["dead-letters", "retry"], dir.path()).await);
    let output =
        run(&["replay", "--sink", "home", "--from", "3m", "--topic", "channel.tips"], dir.path());
    lines(&output.await);
    // The next relay finds what was asked for.
    let (journal, opened) = open(&config(dir.path()));
    assert_eq!((opened.events, opened.lost), (10, 0));
    let (letters, replays) = journal.pending_requests("home").unwrap();
    assert_eq!((letters.len(), replays.len()), (2, 1));
    assert_eq!(replays[0].topic.as_deref(), Some("channel.tips"));
    close(journal).await;
}

#[tokio::test]
async fn nothing_is_deleted_or_replayed_that_was_not_meant() {
    let dir = tempfile::tempdir().unwrap();
    close(some(dir.path()).await).await;
    // Without a terminal nobody can be asked, and "all" must not come from a forgotten number.
    let output = run(&["dead-letters", "drop"], dir.path()).await;
    assert_eq!(output.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--yes"), "{output:?}");
    for command in ["drop", "retry"] {
        let output = run(&["dead-letters", command, "999"], dir.path()).await;
        assert_eq!(output.status.code(), Some(64), "{command}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("there is no such dead letter"), "{said}");
    }
    assert_eq!(lines(&run(&["dead-letters", "list"], dir.path()).await).len(), 2);
    let output =
        run(&["replay", "--sink", "home", "--from", "2h", "--until", "1h"], dir.path()).await;
    assert_eq!(lines(&output), ["no events in that time"]);
    let output =
        run(&["replay", "--sink", "home", "--from", "1h", "--until", "2h"], dir.path()).await;
    assert_eq!(output.status.code(), Some(64));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("--until is before --from"), "{said}");
    // What the sink does not want is not promised.
    let file = dir.path().join("astro-relay.toml");
    let text = "[channels.main]\ntoken_env = \"PATH\"\ntopics = [\"channel.tips\"]\n[sinks.home]\n\
                  type = \"stdout\"\ntopics = [\"channel.tips\"]\nwhen = \"data.n > 4\"\n";
    std::fs::write(&file, text).unwrap();
    let file = file.display().to_string();
    let replay = ["replay", "--sink", "home", "--from", "1h", "--dry-run", "-c", &file];
    assert_eq!(
        lines(&run(&replay, dir.path()).await),
        [
            "10 events in that time, 2 for sink home",
            "         2  channel.tips",
            "         3  left out: not selected by its condition (when)",
        ]
    );
    let some = [&replay[..], &["--when", "data.n > 7"]].concat();
    assert_eq!(
        lines(&run(&some, dir.path()).await),
        [
            "10 events in that time, 1 for sink home",
            "         1  channel.tips",
            "         8  left out: not selected by --when",
        ]
    );
    let wrong = [&replay[..], &["--when", "data.n >"]].concat();
    let output = run(&wrong, dir.path()).await;
    assert_eq!(output.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--when: "), "{output:?}");
    let (journal, _) = open(&config(dir.path()));
    assert!(journal.pending_requests("home").unwrap().1.is_empty(), "nothing was asked for");
    close(journal).await;
    let output = run(&["dead-letters", "drop", "--yes"], dir.path()).await;
    assert_eq!(lines(&output), ["2 dead letters deleted"]);
}

#[tokio::test]
async fn what_came_while_somebody_was_asked_is_not_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let journal = some(dir.path()).await;
    let terminal = Pty::open();
    let mut child = Command::new(PROGRAM)
        .args(["dead-letters", "drop", "--dir"])
        .arg(dir.path())
        .stdin(terminal.theirs())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (mut asked, mut question) = (Vec::new(), child.stderr.take().unwrap());
    let asking = async {
        while !String::from_utf8_lossy(&asked).contains("[y/N]") {
            assert!(question.read_buf(&mut asked).await.unwrap() > 0, "it has ended");
        }
    };
    timeout(PATIENCE, asking).await.expect("it asks");
    let asked = String::from_utf8_lossy(&asked).into_owned();
    assert!(asked.contains("delete 2 dead letters for good (home: 2)?"), "{asked}");
    journal.dead_letter("home", &Arc::new(Record::new(4, event(3))), "no such room");
    let list = async || lines(&run(&["dead-letters", "list"], dir.path()).await).len();
    until("another one is there", PATIENCE, async || (list().await == 3).then_some(())).await;
    terminal.type_in("y\n");
    let output = timeout(PATIENCE, child.wait_with_output()).await.expect("it ends").unwrap();
    assert_eq!(lines(&output), ["2 dead letters deleted"]);
    assert_eq!(list().await, 1);
    close(journal).await;
}

/// As in the packaged service: its secrets are credentials, which only the service has.
#[tokio::test]
async fn the_journal_is_looked_into_without_the_secrets_of_the_relay() {
    let dir = tempfile::tempdir().unwrap();
    let journal = dir.path().join("journal");
    close(some(&journal).await).await;
    let file = dir.path().join("astro-relay.toml");
    let text = format!(
        "[channels.main]\ntoken_credential = \"main\"\ntopics = [\"channel.tips\"]\n\
         [journal]\ndir = {journal:?}\n[sinks.home]\ntype = \"stdout\"\n"
    );
    std::fs::write(&file, text).unwrap();
    for (command, expected) in [
        (&["journal", "status"][..], "events 1 to 10, "),
        (&["journal", "export"], "{"),
        (&["dead-letters", "list"], "     1  "),
        (
            &["replay", "--sink", "home", "--from", "1h", "--dry-run"],
            "10 events in that time, 10 for sink home",
        ),
    ] {
        let output = Command::new(PROGRAM)
            .args(command)
            .arg("--config")
            .arg(&file)
            .env_remove("CREDENTIALS_DIRECTORY")
            .kill_on_drop(true)
            .output();
        let lines = lines(&timeout(PATIENCE, output).await.expect("it ends").unwrap());
        assert!(lines[0].starts_with(expected), "{lines:?}");
    }
}

/// Which may be another user's, such as a service's.
#[tokio::test]
async fn a_journal_that_cannot_be_reached_is_not_said_to_be_missing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    for command in [
        &["journal", "status"][..],
        &["journal", "export"],
        &["dead-letters", "list"],
        &["replay", "--sink", "home", "--from", "1h", "--dry-run"],
    ] {
        for (dir, expected) in [
            (dir.path().join("none"), "there is no journal at "),
            // Another error than that it is missing.
            (file.join("journal"), "journal.db: Not a directory"),
        ] {
            let output = run(command, &dir).await;
            assert_eq!(output.status.code(), Some(74), "{output:?}");
            assert!(String::from_utf8_lossy(&output.stderr).contains(expected), "{output:?}");
        }
    }
}

/// What is asked of a sink that was removed would wait for ever.
#[tokio::test]
async fn nothing_is_promised_for_a_sink_that_is_not_configured() {
    let dir = tempfile::tempdir().unwrap();
    let journal = dir.path().join("journal");
    close(some(&journal).await).await;
    let file = dir.path().join("astro-relay.toml");
    let text = format!(
        "[channels.main]\ntoken_env = \"PATH\"\ntopics = [\"channel.tips\"]\n\
         [journal]\ndir = {journal:?}\n[sinks.renamed]\ntype = \"stdout\"\n"
    );
    std::fs::write(&file, text).unwrap();
    let run = async |command: &[&str]| {
        let output = Command::new(PROGRAM)
            .args(command)
            .arg("--config")
            .arg(&file)
            .kill_on_drop(true)
            .output();
        timeout(PATIENCE, output).await.expect("it ends").unwrap()
    };
    for command in [
        &["replay", "--sink", "home", "--from", "1h"][..],
        &["dead-letters", "retry", "--sink", "home"],
        &["dead-letters", "retry", "--sink", "nosuch"],
        &["dead-letters", "drop", "--yes", "--sink", "nosuch"],
    ] {
        let output = run(command).await;
        assert_eq!(output.status.code(), Some(64), "{command:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("the configuration has no sink"), "{said}");
        assert!(said.contains("known: renamed"), "{said}");
    }
    let output = run(&["dead-letters", "retry"]).await;
    assert_eq!(lines(&output), ["2 dead letters to be tried again"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("2 dead letters of sink home: it is not configured"), "{said}");
    let output = run(&["dead-letters", "drop", "--yes", "--sink", "home"]).await;
    assert_eq!(lines(&output), ["2 dead letters of sink home deleted"]);
}

/// What only looks.
async fn looks(dir: &Path) {
    let status = lines(&run(&["journal", "status"], dir).await);
    assert!(status[0].starts_with("events 1 to 10, "), "{status:?}");
    assert!(
        status[1].starts_with("sink home: at 4 of 10; 6 events queued, the oldest 5m"),
        "{status:?}"
    );
    assert!(status[1].ends_with("2 dead letters"), "{status:?}");

    assert_eq!(numbers(&run(&["journal", "export", "-n", "3"], dir).await), [7, 8, 9]);
    let export = async |args: &[&str]| {
        let args: Vec<_> = ["journal", "export"].iter().chain(args).copied().collect();
        numbers(&run(&args, dir).await)
    };
    assert_eq!(export(&[]).await, (0..10).collect::<Vec<_>>());
    assert_eq!(export(&["--topic", "channel.tips"]).await, [0, 2, 4, 6, 8]);
    assert_eq!(export(&["--when", "data.n > 6"]).await, [7, 8, 9]);
    assert_eq!(export(&["--from", "150s"]).await, [7, 8, 9]);
    assert_eq!(export(&["--until", "450s"]).await, [0, 1]);

    let list = lines(&run(&["dead-letters", "list"], dir).await);
    assert_eq!(list.len(), 2);
    assert!(list[0].contains("home") && list[0].contains("no such room"), "{list:?}");
    let show = lines(&run(&["dead-letters", "show", "2"], dir).await);
    let shown: Value = serde_json::from_str(&show[0]).unwrap();
    assert_eq!((&shown["number"], &shown["event"]["message"]["data"]["n"]), (&2.into(), &2.into()));
    assert!(lines(&run(&["dead-letters", "list", "--sink", "other"], dir).await).is_empty());

    let output = run(&["replay", "--sink", "other", "--from", "1h"], dir).await;
    assert_eq!(output.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&output.stderr).contains("known: home"));
    let output = run(&["journal", "status"], &dir.join("nowhere")).await;
    assert_eq!(output.status.code(), Some(74));
}

#[tokio::test]
async fn a_tail_crosses_the_numbers_that_a_crash_has_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let journal = some(dir.path()).await;
    let copy = crate::support::journal::crashed(dir.path());
    close(journal).await;
    let (journal, _) = open(&config(copy.path()));
    journal.append(&mut vec![event(9)]);
    settled(&journal, &[]).await;
    assert!(journal.figures().last > 1000);
    assert_eq!(numbers(&run(&["journal", "export", "-n", "3"], copy.path()).await), [8, 9, 9]);
    let status = lines(&run(&["journal", "status"], copy.path()).await);
    assert!(status[1].contains("; 7 events queued"), "{status:?}");
    close(journal).await;
}
