//! A log that nobody reads, or that cannot be written: the relay goes on, and says what was dropped.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    os::{
        fd::OwnedFd,
        unix::{fs::OpenOptionsExt as _, net::UnixStream},
    },
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use astro_sim::{Options, Refusal, Sim};
use reqwest::Client;
use serde_json::json;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::{PATIENCE, ROOM};
use crate::support::{
    daemon::PROGRAM,
    mount::{Small, may_mount},
    process::free_port,
    sinks::install_tls,
    terminal::Pty,
    wait::until,
};

/// A relay as a process, whose log goes where a test says.
struct Logging {
    sim: Sim,
    _dir: TempDir,
    client: Client,
    listen: u16,
    child: Child,
}

impl Logging {
    /// Starts it with that standard error; `wrap` is what starts the program.
    async fn start(stderr: impl Into<Stdio>, format: &str, wrap: &[&str]) -> Self {
        install_tls();
        let sim = Sim::start(([127, 0, 0, 1], 0).into(), Options::default()).await.unwrap();
        // A refusal says something at every attempt.
        sim.faults(|faults| {
            faults.refusals.push(Refusal::of("err_unauthorized").topic("channel.follow"));
        });
        let dir = tempfile::tempdir().unwrap();
        let listen = free_port();
        let config = json!({
            "astro": { "url": sim.url(), "api_url": sim.api_url(), "backoff_max": "100ms" },
            "journal": { "dir": dir.path().join("journal") },
            "http": { "listen": format!("127.0.0.1:{listen}"), "admin_token": "s3cret" },
            "log": { "level": "debug", "format": format },
            "channels": {
                "main": { "room": ROOM, "token": "t", "topics": ["channel.tips", "channel.follow"] },
            },
            "sinks": { "out": { "type": "stdout", "format": "json" } },
        });
        let file = dir.path().join("astro-relay.toml");
        std::fs::write(&file, toml::to_string(&config).unwrap()).unwrap();
        let command = [wrap, &[PROGRAM, "run", "--config", file.to_str().unwrap()]].concat();
        let child = Command::new(command[0])
            .args(&command[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let client = Client::builder().no_proxy().build().unwrap();
        Self { sim, _dir: dir, client, listen, child }
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.listen)
    }

    async fn text(&self, path: &str) -> Option<String> {
        let request = self.client.get(self.url(path)).timeout(Duration::from_secs(5));
        request.send().await.ok()?.text().await.ok()
    }

    async fn lives(&self) {
        until("it answers", PATIENCE, async || {
            self.text("/livez").await.filter(|text| text == "ok\n")
        })
        .await;
    }

    /// Has it log until lines are dropped: each refused request says something.
    async fn flood(&self) {
        let path = "x".repeat(2000);
        until("lines are dropped", PATIENCE, async || {
            for _ in 0..20 {
                let asked = (0..50).map(|_| {
                    // Requests that end early are logged at DEBUG.
                    let garbage = format!("GET /{path} NONSENSE\r\n\r\n");
                    async move { self.send(garbage.as_bytes()).await }
                });
                futures_util::future::join_all(asked).await;
            }
            (self.dropped().await? > 0).then_some(())
        })
        .await;
    }

    async fn send(&self, bytes: &[u8]) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", self.listen)).await;
        if let Ok(mut stream) = stream {
            let mut answer = Vec::new();
            if stream.write_all(bytes).await.is_ok() {
                stream.read_to_end(&mut answer).await.ok();
            }
        }
    }

    /// How many lines were dropped, by the metric.
    async fn dropped(&self) -> Option<u64> {
        let metrics = self.text("/metrics").await?;
        let name = "astro_relay_log_lines_dropped_total ";
        let line = metrics.lines().find_map(|line| line.strip_prefix(name))?;
        line.parse().ok()
    }

    /// It still relays, answers, and ends when it is told to.
    async fn works_and_ends(mut self) {
        let handed = async |n: u64| {
            self.sim.publish("channel.tips", ROOM, json!({ "n": n }));
            until("an event is delivered", PATIENCE, async || {
                let status: serde_json::Value =
                    serde_json::from_str(&self.text("/status").await?).ok()?;
                let delivered = status["pages"]["sinks"]["out"]["delivered"].as_u64()?;
                (delivered >= n).then_some(())
            })
            .await;
        };
        self.lives().await;
        until("it is subscribed", PATIENCE, async || {
            self.text("/status").await?.contains("\"confirmed\"").then_some(())
        })
        .await;
        handed(1).await;
        handed(2).await;
        let pid = self.child.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-s", "TERM", &pid]).status().await.unwrap().success());
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("it ends");
        assert!(ended.unwrap().success());
    }
}

#[tokio::test]
async fn a_pipe_that_nobody_reads_stops_nothing() {
    let (mut unread, theirs) = std::io::pipe().unwrap();
    let relay = Logging::start(theirs, "text", &[]).await;
    relay.lives().await;
    relay.flood().await;
    assert!(relay.dropped().await.unwrap() > 0);
    // Now somebody reads: what is left comes, and how many do not.
    let seen: Arc<Mutex<String>> = Arc::default();
    let text = Arc::clone(&seen);
    tokio::task::spawn_blocking(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = unread.read(&mut bytes) {
            text.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
    });
    until("it is told", PATIENCE, async || {
        let text = seen.lock().unwrap();
        let line = text.lines().find(|line| line.contains("log lines were dropped"))?;
        assert!(line.contains(" WARN "), "{line}");
        Some(())
    })
    .await;
    relay.works_and_ends().await;
}

#[tokio::test]
async fn a_pipe_that_is_still_full_at_the_end_holds_up_nothing() {
    let (_unread, theirs) = std::io::pipe().unwrap();
    let relay = Logging::start(theirs, "json", &[]).await;
    relay.lives().await;
    relay.flood().await;
    relay.works_and_ends().await;
}

/// A supervisor's pipe may be one that does not block.
#[tokio::test]
async fn a_full_pipe_that_does_not_block_loses_no_more_than_it_must() {
    let (_unread, theirs) = std::io::pipe().unwrap();
    let flags = rustix::fs::fcntl_getfl(&theirs).unwrap();
    rustix::fs::fcntl_setfl(&theirs, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
    let relay = Logging::start(theirs, "json", &[]).await;
    relay.lives().await;
    relay.flood().await;
    relay.works_and_ends().await;
}

/// Control-S on the terminal.
#[tokio::test]
async fn a_terminal_that_was_stopped_stops_nothing() {
    let terminal = Pty::open();
    let relay = Logging::start(terminal.theirs(), "text", &[]).await;
    relay.lives().await;
    terminal.stop();
    relay.flood().await;
    relay.works_and_ends().await;
}

/// Nobody is there to read from the start on, or not any more.
#[tokio::test]
async fn a_log_that_cannot_be_written_is_no_reason_to_stop() {
    let (gone, theirs) = std::io::pipe().unwrap();
    drop(gone);
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let read_only = File::open("/dev/null").unwrap();
    for stderr in [Stdio::from(theirs), Stdio::from(full), Stdio::from(read_only)] {
        let relay = Logging::start(stderr, "json", &[]).await;
        relay.works_and_ends().await;
    }
    // Standard error is closed.
    let relay =
        Logging::start(Stdio::null(), "json", &["sh", "-c", "exec \"$@\" 2>&-", "sh"]).await;
    relay.works_and_ends().await;
}

#[tokio::test]
async fn a_disk_that_is_full_at_the_start_and_has_room_again_gets_the_log() {
    if !may_mount() {
        return;
    }
    let disk = Small::new(64);
    let log = disk.path().join("log");
    let mut filler = File::create(disk.path().join("filler")).unwrap();
    while filler.write(&[0; 4096]).is_ok_and(|written| written > 0) {}
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&log).unwrap();
    let relay = Logging::start(file, "text", &[]).await;
    relay.lives().await;
    until("lines are dropped", PATIENCE, async || (relay.dropped().await? > 0).then_some(())).await;
    filler.set_len(0).unwrap();
    until("it is told", PATIENCE, async || {
        // Something to say.
        relay.send(b"NONSENSE\r\n\r\n").await;
        std::fs::read_to_string(&log).unwrap().contains("dropped").then_some(())
    })
    .await;
    relay.works_and_ends().await;
}

/// Standard error as systemd connects it to its journal: a stream socket.
struct Journal {
    ours: UnixStream,
    text: String,
}

impl Journal {
    fn new() -> (Self, OwnedFd) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (Self { ours, text: String::new() }, theirs.into())
    }

    /// Reads what has come, and returns the first line that contains `text`.
    fn line(&mut self, text: &str) -> Option<String> {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = self.ours.read(&mut bytes) {
            self.text.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
        self.text.lines().find(|line| line.contains(text)).map(str::to_owned)
    }
}

#[tokio::test]
async fn a_journal_that_hangs_stops_nothing_and_gets_the_log_again() {
    let (mut journal, theirs) = Journal::new();
    let relay = Logging::start(theirs, "journald", &[]).await;
    relay.lives().await;
    let line = until("it logs there", PATIENCE, async || journal.line("astro-relay started")).await;
    assert!(line.starts_with("<5>astro-relay started"), "{line}");
    // It takes nothing any more.
    relay.flood().await;
    relay.lives().await;
    let line = until("it is told there", PATIENCE, async || {
        relay.send(b"NONSENSE\r\n\r\n").await;
        journal.line("dropped")
    })
    .await;
    assert!(line.starts_with("<4>"), "{line}");
    relay.works_and_ends().await;
}

/// The variable is inherited by whatever a service starts, wherever its output goes.
#[tokio::test]
async fn the_journal_is_recognised_by_the_stream_itself() {
    for redirected in [false, true] {
        let (mut journal, theirs) = Journal::new();
        let stat = rustix::fs::fstat(&theirs).unwrap();
        let inode = stat.st_ino + u64::from(redirected);
        let variable = format!("JOURNAL_STREAM={}:{inode}", stat.st_dev);
        let relay = Logging::start(theirs, "auto", &["env", &variable]).await;
        let line =
            until("it logs there", PATIENCE, async || journal.line("astro-relay started")).await;
        let expected = if redirected { "{\"timestamp\":" } else { "<5>astro-relay started" };
        assert!(line.starts_with(expected), "{line}");
        relay.works_and_ends().await;
    }
}
