//! One far side hangs while the others work: what it does to their latency.
//!
//! Phases with and without the hanging sink take turns in one run, so that whatever else the machine
//! does meets both alike. Each message carries the time at which it was sent; where it arrives, the
//! time is taken again.

use std::time::Duration;

use astro_relay::base::clock;
use astro_sim::Load;
use redis::streams::{StreamReadOptions, StreamReadReply};
use serde::Deserialize;
use tokio::task::JoinHandle;

use super::{Bench, PATIENCE, ROOM, TOPIC};
use crate::support::{
    journal::{long, say},
    receiver::Answer,
    redis_server::RedisServer,
    wait::until,
};

/// Messages a second: a busy evening on a large channel.
const RATE: u64 = 200;

/// When an event was sent, and its number.
#[derive(Deserialize)]
struct Sent {
    n: u64,
    sent: u64,
}

/// How long each event took to each working far side, in microseconds: its number and the time.
struct Latencies(Vec<(&'static str, Vec<(u64, u64)>)>);

impl Latencies {
    /// The share `part` of the events of these numbers was there after so many microseconds.
    fn share(&self, sink: usize, part: usize, numbers: impl Fn(u64) -> bool) -> u64 {
        let (_, all) = &self.0[sink];
        let mut took: Vec<u64> =
            all.iter().filter(|(n, _)| numbers(*n)).map(|(_, took)| *took).collect();
        took.sort_unstable();
        took[(took.len() * part / 1000).min(took.len() - 1)]
    }
}

fn latencies(arrivals: &[(u64, bytes::Bytes)]) -> Vec<(u64, u64)> {
    let one = |(at, payload): &(u64, bytes::Bytes)| {
        let Sent { n, sent } = serde_json::from_slice(payload).ok()?;
        Some((n, at.saturating_sub(sent)))
    };
    arrivals.iter().filter_map(one).collect()
}

/// Reads the stream as it grows, until `last` has come.
#[expect(clippy::disallowed_methods, reason = "a test's own task")]
async fn follow(server: &RedisServer, last: u64) -> JoinHandle<Vec<(u64, bytes::Bytes)>> {
    let mut connection = server.connection().await;
    tokio::spawn(async move {
        let (mut after, mut arrivals) = ("0".to_owned(), Vec::new());
        let options = StreamReadOptions::default().block(1000);
        loop {
            let mut read = redis::cmd("XREAD");
            read.arg(&options).arg("STREAMS").arg("astro:events").arg(&after);
            let reply: StreamReadReply = read.query_async(&mut connection).await.unwrap();
            let at = clock::now_micros();
            for entry in reply.keys.into_iter().flat_map(|key| key.ids) {
                let payload: Vec<u8> = entry.get("payload").unwrap();
                let n = super::super::support::carry::number(&payload);
                arrivals.push((at, payload.into()));
                after = entry.id;
                if n == Some(last) {
                    return arrivals;
                }
            }
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_that_hangs_costs_the_others_no_time() {
    let (pairs, messages) = if long() { (16, 2_000) } else { (3, 200) };
    let mut bench = Bench::quick().await;
    bench.relay.start();
    bench.relay.ready().await;
    let phases = pairs * 2 + 1;
    let last = phases * messages - 1;
    let stream = follow(&bench.redis, last).await;
    // The first phase warms up. Then by twos, the other way round each time: a machine that gets
    // slower makes neither of them look worse.
    let hangs = |phase: u64| matches!(phase % 4, 2 | 3);
    for phase in 0..phases {
        let answer = Answer::Late(Duration::from_hours(1));
        bench.receiver.room(ROOM, hangs(phase).then_some(answer));
        let load = Load {
            messages,
            first: phase * messages,
            rate: Some(RATE),
            topic: TOPIC.into(),
            rooms: vec![ROOM.into()],
            ..Load::default()
        };
        bench.sim.load(&load).await;
        let end = (phase + 1) * messages - 1;
        until("the phase has arrived by MQTT", PATIENCE, async || {
            bench.listener.newest().contains(&end).then_some(())
        })
        .await;
        if hangs(phase) {
            // What it missed must not be in the way of the next phase.
            bench.receiver.room(ROOM, None);
            until("the sink that hung has caught up", PATIENCE, async || {
                bench.receiver.newest().contains(&end).then_some(())
            })
            .await;
        }
    }
    let redis = stream.await.unwrap();
    let (mqtt, core) = (bench.listener.times(), bench.core.times());
    bench.relay.stop().await;
    let latencies = Latencies(vec![
        ("mqtt", latencies(&mqtt)),
        ("nats", latencies(&core)),
        ("redis", latencies(&redis)),
    ]);
    judge(&latencies, messages, pairs, hangs);
}

/// Compares the phases, and tells.
fn judge(latencies: &Latencies, messages: u64, pairs: u64, hangs: impl Fn(u64) -> bool) {
    for (sink, (name, all)) in latencies.0.iter().enumerate() {
        let expected = usize::try_from((pairs * 2 + 1) * messages).unwrap();
        assert_eq!(all.len(), expected, "{name}: all of it, once");
        let share = |part, hanging: bool| {
            let of = |n: u64| n >= messages && hangs(n / messages) == hanging;
            latencies.share(sink, part, of)
        };
        say(&format!(
            "{name}: p50 {} µs, with a sink that hangs {} µs; p99 {} µs, with it {} µs",
            share(500, false),
            share(500, true),
            share(990, false),
            share(990, true),
        ));
        let slowest = |phase: u64| latencies.share(sink, 990, |n: u64| n / messages == phase);
        let slow: Vec<_> = (0..pairs)
            .map(|pair| [pair * 2 + 1, pair * 2 + 2])
            .map(|[one, other]| if hangs(one) { (other, one) } else { (one, other) })
            .map(|(well, hanging)| (slowest(well), slowest(hanging)))
            .filter(|(well, hanging)| {
                // A tenth more, on a machine that does nothing else; and what a scheduler may add on one that
                // runs other tests.
                let slack = if long() { well / 10 + 1_000 } else { well * 2 + 50_000 };
                *hanging > well + slack
            })
            .collect();
        // One that stands still once has nothing to do with the sink.
        let most = usize::try_from(pairs / 2).unwrap();
        assert!(slow.len() <= most, "{name}: p99 in µs, without and with it: {slow:?}");
    }
}
