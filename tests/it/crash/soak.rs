//! A long evening: mixed traffic on two channels, and something goes wrong all the time, on every side.
//!
//! At the end everything that the journal holds is everywhere, in its order; and the relay uses no
//! more memory and no more files than it did when it had warmed up.

use std::{collections::HashSet, time::Duration};

use astro_relay::journal::store::Store;
use astro_sim::{End, Ended, Faults, Load, Malformed, Reception, RestFault, Sim, Traffic};
use axum::http::header::RETRY_AFTER;
use fastrand::Rng;
use tokio_util::sync::CancellationToken;

use super::{Bench, PATIENCE, ROOM, TOPIC, acknowledged_early, compare, in_journal, repeats};
use crate::support::{
    journal::{long, say},
    process::{Server, resources},
    receiver::{Answer, Receiver},
    wait::until,
};

/// The second channel's room.
const OTHER: &str = "577c0455f9a31ea72a36b2b3";

/// Its configuration.
const CHANNEL: &str = "[channels.other]\nroom = \"577c0455f9a31ea72a36b2b3\"\n\
    token = \"secret-canary\"\ntopics = [\"channel.tips\", \"channel.session.update\"]\n";

/// The numbers of one kind of traffic begin at a multiple of this.
const RANGE: u64 = 10_000_000;

/// The number of the last message of all.
const LAST: u64 = 9 * RANGE;

/// What was done to the relay, and how it was in between.
#[derive(Default)]
struct Log {
    faults: usize,
    /// Faults that may have cut a batch off, at each kind of far side.
    mqtt: usize,
    webhook: usize,
    gateway: usize,
    /// Messages that came all at once.
    bursts: u64,
    samples: Vec<(u64, usize)>,
}

/// All that can be hurt.
struct Victims<'a> {
    sim: &'a Sim,
    mqtt: &'a mut Server,
    nats: &'a mut Server,
    redis: &'a mut Server,
    receiver: &'a mut Receiver,
    /// The evening is over.
    over: CancellationToken,
}

fn paced(rate: u64, seconds: u64, size: usize, first: u64, topic: &str, room: &str) -> Load {
    Load {
        messages: rate * seconds,
        rate: Some(rate),
        topic: topic.into(),
        rooms: vec![room.into()],
        size,
        first,
    }
}

/// Everything that is said during the soak, each numbered message with a number of its own.
async fn talk(sim: &Sim, seconds: u64) {
    let chat = paced(80, seconds, 600, 0, TOPIC, ROOM);
    let tips = paced(20, seconds, 400, RANGE, "channel.tips", OTHER);
    let large = paced(2, seconds, 40_000, 2 * RANGE, "channel.session.update", OTHER);
    let mut demo = Traffic::new(7, &[ROOM.to_owned(), OTHER.to_owned()]);
    tokio::select! {
        _ = async { tokio::join!(sim.load(&chat), sim.load(&tips), sim.load(&large)) } => {}
        () = sim.play(&mut demo, 4.0) => {}
    }
}

impl Victims<'_> {
    /// Waits until so many more messages were published: the evening's own clock.
    async fn pass(&self, messages: u64) {
        let target = self.sim.stats().published + messages;
        until("messages are published", PATIENCE, async || {
            let enough = self.sim.stats().published >= target || self.over.is_cancelled();
            enough.then_some(())
        })
        .await;
    }

    /// Suspends a server for a while: it is there, and slow beyond all patience.
    async fn suspend(&self, server: &Server, random: &mut Rng) {
        server.signal("STOP").await;
        self.pass(random.u64(50..400)).await;
        server.signal("CONT").await;
    }

    /// Lets one thing go wrong.
    async fn go_wrong(&mut self, random: &mut Rng, log: &mut Log) {
        log.faults += 1;
        match random.u8(..15) {
            0 => {
                log.mqtt += 1;
                self.mqtt.restart().await;
            }
            1 => self.nats.restart().await,
            2 => self.redis.restart().await,
            3 => {
                log.mqtt += 1;
                self.suspend(self.mqtt, random).await;
            }
            4 => self.suspend(self.nats, random).await,
            5 => self.suspend(self.redis, random).await,
            6 => {
                log.webhook += 1;
                self.receiver.kill();
                self.pass(random.u64(1..200)).await;
                self.receiver.restart();
            }
            7 | 8 => {
                let answers: Vec<_> = (0..random.usize(1..8)).map(|_| answer(random)).collect();
                // A request that was answered too late, or not at all, may have been taken.
                log.webhook += answers.len();
                self.receiver.script(answers);
            }
            9 => {
                let first = 3 * RANGE + log.bursts;
                let burst = paced(400, 1, 600, first, TOPIC, ROOM);
                log.bursts += burst.messages;
                self.sim.load(&Load { rate: None, ..burst }).await;
            }
            kind => {
                log.gateway += 1;
                self.astro(kind, random).await;
            }
        }
    }

    /// Something goes wrong at Astro.
    async fn astro(&self, kind: u8, random: &mut Rng) {
        let sim = self.sim;
        match kind {
            10 => sim.end(None, [End::Fin, End::Reset, End::Close(1011)][random.usize(..3)]),
            11 => {
                sim.drain(None);
            }
            12 => {
                // Half open for a while; then it comes back, or is gone.
                sim.silence(None, true);
                self.pass(random.u64(50..800)).await;
                if random.bool() {
                    sim.end(None, End::Reset);
                } else {
                    sim.silence(None, false);
                }
            }
            13 => {
                let reception = match random.u8(..10) {
                    // These two take half a minute to be found out.
                    0 => Reception::NeverUpgrades,
                    1 => Reception::Silent,
                    2..5 => Reception::Refuse { status: 502, retry_after: None },
                    5..8 => Reception::Refuse { status: 429, retry_after: Some("1".into()) },
                    _ => Reception::Close { after: Duration::ZERO, end: End::Fin },
                };
                sim.faults(|faults| faults.next.push_back(reception));
                sim.fail_rest([RestFault::Hang, RestFault::DropAfter]);
                sim.end(None, End::Fin);
            }
            _ => {
                let kinds =
                    [Malformed::InvalidJson, Malformed::Deep(5_000), Malformed::UnknownType];
                let twice = random.bool();
                sim.faults(|faults| faults.duplicate = twice);
                sim.send_malformed(None, kinds[random.usize(..kinds.len())]);
            }
        }
    }
}

fn answer(random: &mut Rng) -> Answer {
    match random.u8(..5) {
        0 => Answer::Status(500),
        1 => Answer::With(429, RETRY_AFTER, "1".into()),
        2 => Answer::With(503, RETRY_AFTER, "2".into()),
        3 => Answer::Late(Duration::from_millis(random.u64(..2_500))),
        _ => Answer::Drop,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mixed_traffic_and_random_faults_lose_nothing_and_leave_nothing_behind() {
    let seconds: u64 = if long() { 20 * 60 } else { 20 };
    let seed = fastrand::u64(..);
    say(&format!("seed {seed}"));
    let mut random = Rng::with_seed(seed);
    let mut bench = Bench::start(CHANNEL).await;
    bench.relay.start();
    bench.relay.ready().await;
    let pid = bench.relay.pid().expect("it runs");
    let mut log = Log::default();
    let Bench { sim, mqtt, nats, redis, receiver, .. } = &mut bench;
    let sim = &*sim;
    let over = CancellationToken::new();
    let mut victims = Victims {
        sim,
        mqtt: &mut mqtt.server,
        nats: &mut nats.server,
        redis: &mut redis.server,
        receiver,
        over: over.clone(),
    };
    let talking = async {
        talk(sim, seconds).await;
        over.cancel();
    };
    let going_wrong = async {
        while !over.is_cancelled() {
            log.samples.push(resources(pid).expect("it runs, all the time"));
            victims.go_wrong(&mut random, &mut log).await;
            victims.pass(random.u64(20..400)).await;
        }
    };
    tokio::join!(talking, going_wrong);
    finish(bench, log).await;
}

/// Mends everything, waits until it has arrived, and compares.
async fn finish(mut bench: Bench, log: Log) {
    bench.sim.faults(|faults| *faults = Faults::default());
    // A connection that surely listens, and a relay that has noticed.
    let opened = bench.sim.stats().opened;
    bench.sim.end(None, End::Fin);
    until("it is connected again", PATIENCE, async || {
        (bench.sim.stats().opened > opened).then_some(())
    })
    .await;
    bench.relay.ready().await;
    bench.sim.load(&Load { messages: 1, first: LAST, ..Load::default() }).await;
    let arrived = bench.arrived(LAST).await;
    let pid = bench.relay.pid().expect("it runs");
    let end = resources(pid).expect("it runs");
    bench.relay.stop().await;
    let held = in_journal(&bench.relay.journal());
    let stats = bench.sim.stats();
    let withheld: u64 = bench.sim.connections().iter().map(|record| record.withheld).sum();
    say(&format!(
        "{} published, {} sent to the relay, {withheld} withheld; {} numbered ones in the journal; \
         {} faults, {} of them at Astro; {} connections",
        stats.published,
        stats.sent,
        held.len(),
        log.faults,
        log.gateway,
        stats.opened
    ));
    heard(&bench);
    for (name, arrived) in &arrived {
        let repeated = if *name == "webhook" {
            // Requests of one room go one after another; rooms do not wait for each other.
            let of = |room: bool, all: &[u64]| -> Vec<u64> {
                let other = RANGE..3 * RANGE;
                all.iter().copied().filter(|n| other.contains(n) == room).collect()
            };
            let one = |room| compare(name, &of(room, &held), &of(room, arrived), 0);
            one(true) + one(false)
        } else {
            compare(name, &held, arrived, acknowledged_early(name, log.mqtt))
        };
        say(&format!("{name}: {} arrived, {repeated} of them again", arrived.len()));
        let faults = if *name == "mqtt" { log.mqtt } else { log.webhook };
        assert!(repeated <= repeats(name, faults + 1), "{name}: {repeated} came again");
    }
    let log_file = bench.relay.log();
    let errors: Vec<_> = log_file.lines().filter(|line| line.contains("ERROR")).collect();
    assert!(errors.is_empty(), "nothing was lost, and no human is needed: {errors:#?}");
    flat(&log.samples, end);
}

/// Whatever was sent before an end in order, the relay has read: then it is in the journal.
fn heard(bench: &Bench) {
    let store = Store::open_reader(&bench.relay.journal()).unwrap();
    let (mut after, mut ids) = (0, HashSet::new());
    loop {
        let read = store.read(after, 1000, 1 << 20).unwrap();
        let Some(through) = read.through else { break };
        ids.extend(read.records.iter().map(|record| record.event.id.to_string()));
        after = through;
    }
    let records = bench.sim.connections();
    let in_order = records.iter().filter(|record| matches!(record.ended, Some(Ended::Closed(_))));
    let mut sent = 0;
    for record in in_order {
        assert_eq!(record.sent_unremembered, 0);
        let missing = record.sent.iter().filter(|id| !ids.contains(*id)).count();
        assert_eq!(missing, 0, "of connection {}: {:?}", record.id, record.ended);
        sent += record.sent.len();
    }
    say(&format!("{sent} messages were sent before an end in order, and each is in the journal"));
}

/// The memory and the files of the second quarter against those of the last.
fn flat(samples: &[(u64, usize)], end: (u64, usize)) {
    let quarter = samples.len() / 4;
    let median = |part: &[(u64, usize)]| {
        let (mut memory, mut files): (Vec<_>, Vec<_>) = part.iter().copied().unzip();
        memory.sort_unstable();
        files.sort_unstable();
        (memory[memory.len() / 2], files[files.len() / 2])
    };
    let (early, late) = (median(&samples[quarter..=quarter * 2]), median(&samples[quarter * 3..]));
    let most = samples.iter().map(|(memory, _)| memory).max();
    say(&format!(
        "{} looks; memory {} KiB in the second quarter, {} KiB in the last, {most:?} at most; \
         files {} and {}; {end:?} at the end",
        samples.len(),
        early.0,
        late.0,
        early.1,
        late.1
    ));
    // In a short run it is still filling its memory of the newest events.
    let slack = if long() { 4 << 10 } else { 32 << 10 };
    assert!(late.0 <= early.0 + early.0 / 20 + slack, "memory grows: {early:?}, {late:?}");
    assert!(late.1 <= early.1 + 8, "files are left open: {early:?}, {late:?}");
}
