//! A sink for standard output that runs in a child process, because there is one standard output to a
//! process and the tests' own is taken.
//!
//! The child is this program again, with one test to run: [`the_child`]. What the sink is to do goes
//! there in JSON lines on standard input; what it says of it comes back on standard error.

use std::{
    io::{self, BufRead as _, Write as _},
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use astro_relay::{
    base::event::Seq,
    sink::{Cause, Failure, Outgoing, Sink},
};
use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    sync::{mpsc, watch},
    task::JoinHandle,
    time::Instant,
};

use super::{
    carry::number,
    driven::Driven,
    sinks::{open_with, outgoing_with},
};

/// The sink's timeout: what a busy test waits for, and longer than a busy machine needs to read.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Commands under way, and a word that one is given up.
const COMMANDS: usize = 64;

/// The other end of the child's standard output.
pub struct Pipe {
    heard: Arc<Mutex<Vec<Seq>>>,
    reading: watch::Sender<bool>,
    reader: JoinHandle<()>,
}

impl Pipe {
    /// The numbers of the events that were read.
    pub fn numbers(&self) -> Vec<Seq> {
        self.heard.lock().unwrap().clone()
    }

    /// Reads no further, but stays.
    pub fn stop_reading(&self) {
        self.reading.send_replace(false);
    }

    /// Reads again.
    pub fn read_on(&self) {
        self.reading.send_replace(true);
    }

    /// Goes away for ever.
    pub fn close(&self) {
        self.reader.abort();
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.close();
    }
}

/// Starts a child with a sink in it, and somebody who reads what it writes.
#[expect(clippy::disallowed_methods, reason = "a test's own tasks")]
pub fn start() -> (Driven, Pipe) {
    let name = concat!(module_path!(), "::the_child");
    let name = name.split_once("::").unwrap().1;
    let mut child = Command::new(std::env::current_exe().unwrap())
        // With one thread the name of the test would stand in front of the first line.
        .args([name, "--exact", "--ignored", "--nocapture", "--test-threads=2"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (commands, to_do) = mpsc::channel(COMMANDS);
    let (said, answers) = mpsc::channel(COMMANDS);
    tokio::spawn(write(child.stdin.take().unwrap(), to_do));
    tokio::spawn(listen(child.stderr.take().unwrap(), said));
    let heard: Arc<Mutex<Vec<Seq>>> = Arc::default();
    let (reading, gate) = watch::channel(true);
    let reader = tokio::spawn(read(child.stdout.take().unwrap(), gate, Arc::clone(&heard)));
    let far = Remote { commands, answers, number: 0, in_flight: Vec::new(), _child: child };
    (Driven::new(Box::new(far)), Pipe { heard, reading, reader })
}

async fn write(mut stdin: ChildStdin, mut commands: mpsc::Receiver<Value>) {
    while let Some(command) = commands.recv().await {
        stdin.write_all(format!("{command}\n").as_bytes()).await.unwrap();
    }
}

async fn listen(stderr: ChildStderr, said: mpsc::Sender<Value>) {
    let mut lines = BufReader::new(stderr).lines();
    while let Some(line) = lines.next_line().await.unwrap() {
        let Ok(answer) = serde_json::from_str(&line) else { panic!("the child says {line}") };
        if said.send(answer).await.is_err() {
            return;
        }
    }
}

async fn read(stdout: ChildStdout, mut gate: watch::Receiver<bool>, heard: Arc<Mutex<Vec<Seq>>>) {
    let mut lines = BufReader::new(stdout).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        // The frame around the tests prints lines too.
        heard.lock().unwrap().extend(number(line.as_bytes()));
        if gate.wait_for(|reading| *reading).await.is_err() {
            return;
        }
    }
}

/// The sink as seen from here.
struct Remote {
    commands: mpsc::Sender<Value>,
    answers: mpsc::Receiver<Value>,
    number: u64,
    in_flight: Vec<Value>,
    _child: Child,
}

/// Tells the child that nobody waits for the answer any more.
struct GivenUp<'a>(&'a mpsc::Sender<Value>);

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        self.0.try_send(json!({ "do": "give up" })).unwrap();
    }
}

impl Remote {
    async fn ask(&mut self, mut command: Value) -> Result<(), Failure> {
        self.number += 1;
        command["number"] = self.number.into();
        self.commands.send(command).await.unwrap();
        let _given_up = GivenUp(&self.commands);
        loop {
            let answer = self.answers.recv().await.expect("the child lives");
            if answer["number"] != self.number {
                // To a delivery that was given up.
                continue;
            }
            let reason = answer["reason"].as_str().unwrap_or_default().to_owned();
            let cause = match answer["cause"].as_str() {
                None => return Ok(()),
                Some("busy") => Cause::Busy { wait: None, reason },
                Some("rejected") => Cause::Rejected { reason },
                Some("denied") => Cause::Denied { reason },
                Some("gone") => Cause::Gone { reason },
                Some(_) => Cause::Down(reason.into()),
            };
            let accepted = usize::try_from(answer["accepted"].as_u64().unwrap()).unwrap();
            return Err(Failure { accepted, cause });
        }
    }
}

#[async_trait]
impl Sink for Remote {
    async fn connect(&mut self) -> Result<(), Failure> {
        self.in_flight.clear();
        self.ask(json!({ "do": "connect" })).await
    }

    async fn send(&mut self, events: &[Outgoing]) -> Result<usize, Failure> {
        if !self.in_flight.is_empty() {
            return Ok(0);
        }
        let event = |outgoing: &Outgoing| {
            json!([outgoing.record.seq, std::str::from_utf8(&outgoing.payload).unwrap()])
        };
        self.in_flight = events.iter().map(event).collect();
        Ok(events.len())
    }

    async fn acknowledged(&mut self) -> Result<usize, Failure> {
        if self.in_flight.is_empty() {
            return std::future::pending().await;
        }
        let events = std::mem::take(&mut self.in_flight);
        let count = events.len();
        self.ask(json!({ "do": "deliver", "events": events })).await?;
        Ok(count)
    }

    async fn close(&mut self, _until: Instant) -> Vec<(Seq, u8)> {
        self.ask(json!({ "do": "close" })).await.unwrap();
        Vec::new()
    }
}

/// The child. By itself, with nothing on standard input, it does nothing.
#[tokio::test]
#[ignore = "the row for standard output runs it as a child process"]
async fn the_child() {
    let (commands, mut to_do) = mpsc::channel(COMMANDS);
    // Standard input has no other way to be read without the runtime's waiting for it.
    tokio::task::spawn_blocking(move || {
        for line in io::stdin().lock().lines() {
            let command: Value = serde_json::from_str(&line.unwrap()).unwrap();
            if commands.blocking_send(command).is_err() {
                return;
            }
        }
    });
    let mut sink = open_with("stdout", json!({}), TIMEOUT).unwrap();
    while let Some(command) = to_do.recv().await {
        let outcome = match command["do"].as_str().unwrap() {
            "connect" => sink.connect().await,
            "deliver" => {
                let events = events(&command["events"]);
                tokio::select! {
                    outcome = sink.deliver(&events) => outcome,
                    // It can only be the word that this one is given up, or the end.
                    _ = to_do.recv() => continue,
                }
            }
            "close" => {
                sink.close().await;
                Ok(())
            }
            _ => continue,
        };
        let mut answer = json!({ "number": command["number"] });
        if let Err(Failure { accepted, cause }) = outcome {
            let word = match cause {
                Cause::Down(_) => "down",
                Cause::Busy { .. } => "busy",
                Cause::Rejected { .. } => "rejected",
                Cause::Denied { .. } => "denied",
                Cause::Gone { .. } => "gone",
            };
            answer["accepted"] = accepted.into();
            answer["cause"] = word.into();
            answer["reason"] = cause.to_string().into();
        }
        writeln!(io::stderr(), "{answer}").unwrap();
    }
}

fn events(events: &Value) -> Vec<Outgoing> {
    let event = |event: &Value| {
        outgoing_with(event[0].as_u64().unwrap(), "", "room", event[1].as_str().unwrap())
    };
    events.as_array().unwrap().iter().map(event).collect()
}
