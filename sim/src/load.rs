//! The load generator: numbered messages at a rate or as fast as they go.
//!
//! At full speed it follows the slowest reader; at a rate it keeps the pace whatever the readers do,
//! so that a stall shows in the latency instead of hiding in a late start.

use std::{io::Write, time::Duration};

use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::{
    clock,
    text::put_string,
    world::{Sent, World},
};

/// Bytes that may wait on a connection before the generator pauses: two of them keep a writer busy.
const FULL: usize = 256 << 10;

/// How often a paced generator looks at the clock.
const TICK: Duration = Duration::from_millis(1);

/// Messages between two looks at whether others want to run.
const TURN: u64 = 64;

/// What to generate.
#[derive(Debug, Clone)]
pub struct Load {
    /// How many messages.
    pub messages: u64,
    /// Messages a second; `None` is as fast as they are read.
    pub rate: Option<u64>,
    /// Their topic.
    pub topic: String,
    /// The rooms that take turns; at least one.
    pub rooms: Vec<String>,
    /// The size of a message in bytes, roughly.
    pub size: usize,
    /// The number of the first one.
    pub first: u64,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            messages: 1000,
            rate: None,
            topic: "channel.activities".to_owned(),
            rooms: vec!["5b2e2007760aeb7729487dab".to_owned()],
            // What an activity weighs on the wire.
            size: 600,
            first: 0,
        }
    }
}

/// What was generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Loaded {
    /// Messages that were published.
    pub messages: u64,
    /// How often one was handed to a connection.
    pub sent: u64,
    #[serde(serialize_with = "as_micros")]
    pub took: Duration,
}

impl World {
    /// Publishes numbered messages: `data.n` is the number, `data.sent` the time in microseconds.
    pub async fn load(&self, load: &Load) -> Loaded {
        let start = Instant::now();
        let padding = padding(load);
        let mut ticks = interval(TICK);
        // A late tick is made up for by the count, not by more ticks.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let (mut done, mut sent) = (0, 0);
        while done < load.messages {
            let due = match load.rate {
                None => done + TURN,
                Some(rate) => {
                    ticks.tick().await;
                    let micros = start.elapsed().as_micros() * u128::from(rate);
                    u64::try_from(micros / 1_000_000).unwrap_or(u64::MAX)
                }
            };
            let mut waiting = 0;
            while done < due.min(load.messages) {
                let handed = self.load_one(load, load.first + done, &padding);
                sent += handed.connections as u64;
                waiting = handed.waiting;
                done += 1;
            }
            if load.rate.is_none() {
                if waiting > FULL {
                    self.wait_for_space(FULL / 2).await;
                } else {
                    tokio::task::yield_now().await;
                }
            }
        }
        Loaded { messages: done, sent, took: start.elapsed() }
    }

    fn load_one(&self, load: &Load, n: u64, padding: &str) -> Sent {
        let turn = usize::try_from(n).unwrap_or(0) % load.rooms.len().max(1);
        let room = load.rooms.get(turn).map_or("", String::as_str);
        let sent = clock::now_micros();
        let (_, handed) = self.send(&load.topic, room, |text| {
            // Writing to a vector cannot fail.
            write!(
                text,
                r#"{{"n":{n},"sent":{sent},"type":"cheer","provider":"twitch","channel":"#
            )
            .ok();
            put_string(text, room);
            text.extend_from_slice(br#","data":{"username":"load","amount":100,"message":"#);
            put_string(text, padding);
            text.extend_from_slice(b"}}");
        });
        handed
    }
}

/// What fills a message up to its size.
fn padding(load: &Load) -> String {
    /// What the rest of a message weighs.
    const REST: usize = 300;
    let words = "all the lanterns of the harbour were lit that evening ";
    words.chars().cycle().take(load.size.saturating_sub(REST)).collect()
}

fn as_micros<S: serde::Serializer>(took: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(took.as_micros()).unwrap_or(u64::MAX))
}
