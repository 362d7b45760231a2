//! `astro-relay demo --cluster`: three relays, of which one is killed and comes back.

use std::process::Stdio;

use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{ChildStderr, Command},
    time::timeout,
};

use super::bench::PATIENCE;
use crate::support::{daemon::PROGRAM, nats_server::NatsServer};

/// Reads what is said until a line has these words; answers the line.
async fn says(
    lines: &mut Lines<BufReader<ChildStderr>>,
    words: &str,
    so_far: &mut String,
) -> String {
    let found = async {
        loop {
            let line = lines.next_line().await.unwrap().expect("it goes on");
            so_far.push_str(&line);
            so_far.push('\n');
            if line.contains(words) {
                return line;
            }
        }
    };
    timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("{words:?} is not said: {so_far}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demonstration_says_what_happens_when_a_plug_is_pulled() {
    let server = NatsServer::start("").await;
    let mut demo = Command::new(PROGRAM)
        .args(["demo", "--listen", "127.0.0.1:0", "--speed", "20", "--cluster", &server.url()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut typed = demo.stdin.take().unwrap();
    let mut lines = BufReader::new(demo.stderr.take().unwrap()).lines();
    let mut events = BufReader::new(demo.stdout.take().unwrap()).lines();
    let mut so_far = String::new();
    let first = says(&mut lines, "drives the sink terminal now", &mut so_far).await;
    let first = first.split_whitespace().nth(1).unwrap().to_owned();
    let event = timeout(PATIENCE, events.next_line()).await.expect("an event").unwrap().unwrap();
    assert!(event.starts_with(&format!("[{first}] ")), "{event}");
    // Whoever reads the events must not be what holds it up.
    let reading = async { while let Ok(Some(_)) = events.next_line().await {} };
    let playing = async {
        typed.write_all(format!("kill {first}\n").as_bytes()).await.unwrap();
        says(&mut lines, &format!("{first} is killed. It drives the sink."), &mut so_far).await;
        let second = says(&mut lines, "drives the sink terminal now, ", &mut so_far).await;
        let after = format!("s after the plug of {first} was pulled");
        assert!(
            second.contains(&after) && !second.contains(&format!(" {first} drives")),
            "{second}"
        );
        typed.write_all(format!("start {first}\nstart 9\n").as_bytes()).await.unwrap();
        says(&mut lines, "was expected", &mut so_far).await;
        says(&mut lines, &format!("{first} is a member"), &mut so_far).await;
        let pid = demo.id().unwrap().to_string();
        assert!(Command::new("kill").arg(pid).status().await.unwrap().success());
        says(&mut lines, "events arrived", &mut so_far).await;
    };
    tokio::join!(reading, playing);
    assert!(timeout(PATIENCE, demo.wait()).await.expect("it ends").unwrap().success(), "{so_far}");
    let names = server.streams().await.stream_names();
    let left: Vec<String> = futures_util::TryStreamExt::try_collect(names).await.unwrap();
    assert!(left.is_empty(), "it takes away what it has made: {left:?}");
}
