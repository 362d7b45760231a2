//! The clock of the machine steps while events wait: they wait no longer and no shorter for that.

use std::time::Duration;

use astro_relay::journal::store::Store;
use astro_sim::{Load, Options, Sim};

use crate::support::{
    clock::Clock, daemon::Relay, journal::PATIENCE, receiver::Receiver, wait::until,
};

const ROOM: &str = "5b2e2007760aeb7729487dab";
const TOPIC: &str = "channel.activities";
const DAY: Duration = Duration::from_hours(24);

/// A simulated Astro, a receiver of webhooks, and a relay between them whose clocks can be set.
struct Bench {
    sim: Sim,
    receiver: Receiver,
    relay: Relay,
    clock: Clock,
    sent: u64,
}

impl Bench {
    /// `limits` are the journal's, `more` is said of the sink.
    async fn new(limits: &str, more: &str) -> Self {
        let sim = Sim::start(([127, 0, 0, 1], 0).into(), Options::default()).await.unwrap();
        let receiver = Receiver::start();
        let sink = format!(
            "[sinks.far]\ntype = \"webhook\"\nurl = {:?}\nallow_addresses = [\"127.0.0.1\"]\n\
             payload = \"data\"\nbackoff_max = \"200ms\"\n{more}\n",
            receiver.url()
        );
        let relay = Relay::with_journal(&sim.url(), &sim.api_url(), TOPIC, ROOM, limits, &sink);
        Self { sim, receiver, relay, clock: Clock::new(), sent: 0 }
    }

    async fn start(&mut self) {
        self.relay.start_in(&self.clock.env());
        self.listening().await;
    }

    /// Waits until it listens to the channel; its sink may be down.
    async fn listening(&self) {
        until("it is subscribed", PATIENCE, async || {
            self.metric("astro_relay_subscriptions{state=\"confirmed\"").await.filter(|n| *n > 0.0)
        })
        .await;
    }

    /// A figure of its metrics, by how its line begins.
    async fn metric(&self, begin: &str) -> Option<f64> {
        let metrics = self.relay.get("/metrics").await?;
        let line = metrics.lines().find(|line| line.starts_with(begin))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    /// So many more messages; waits until the journal has them.
    async fn say(&mut self, messages: u64) {
        let first = self.sent;
        let load = Load {
            messages,
            first,
            topic: TOPIC.into(),
            rooms: vec![ROOM.into()],
            ..Load::default()
        };
        self.sim.load(&load).await;
        self.sent += messages;
        let last = self.sent - 1;
        until("the journal has it", PATIENCE, async || self.held().contains(&last).then_some(()))
            .await;
    }

    /// The numbers that the journal holds.
    fn held(&self) -> Vec<u64> {
        let Ok(store) = Store::open_reader(&self.relay.journal()) else { return Vec::new() };
        let read = store.read(0, 10_000, 1 << 24).unwrap_or_default();
        let number = |record: &astro_relay::base::event::Record| {
            crate::support::carry::number(record.event.data())
        };
        read.records.iter().filter_map(|record| number(record)).collect()
    }

    /// Waits until the relay has looked after its journal's limits once more.
    async fn limits_were_kept(&self) {
        let lag = async || self.metric("astro_relay_sink_lag_seconds{").await;
        let before = until("it tells its lag", PATIENCE, lag).await;
        // Upkeep is every second.
        until("two seconds pass for it", PATIENCE, async || {
            (lag().await? >= before + 2.5).then_some(())
        })
        .await;
    }

    async fn arrived(&self, count: u64) -> Vec<u64> {
        until("all of it arrives", PATIENCE, async || {
            let accepted = self.receiver.accepted();
            (accepted.len() as u64 >= count).then_some(accepted)
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_step_ages_no_event() {
    let mut bench = Bench::new("max_age = \"10m\"", "max_age = \"5m\"").await;
    bench.receiver.kill();
    bench.start().await;
    bench.say(20).await;
    for step in 0..3 {
        match step {
            0 => bench.clock.step_forward(30 * DAY),
            1 => bench.clock.step_back(60 * DAY),
            _ => bench.clock.correct(),
        }
        bench.limits_were_kept().await;
        assert_eq!(bench.held().len(), 20, "step {step}");
    }
    // A kill, and a clock that is wrong when it starts again.
    bench.relay.kill().await;
    bench.clock.step_forward(30 * DAY);
    bench.start().await;
    bench.limits_were_kept().await;
    bench.receiver.restart();
    assert_eq!(bench.arrived(20).await, (0..20).collect::<Vec<_>>());
    bench.relay.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_was_ahead_has_no_lasting_effect() {
    let mut bench = Bench::new("max_age = \"1h\"", "max_age = \"4s\"").await;
    bench.clock.step_forward(73 * 365 * DAY);
    bench.receiver.kill();
    bench.start().await;
    bench.say(5).await;
    bench.relay.stop().await;
    bench.clock.correct();
    bench.start().await;
    bench.say(5).await;
    // They wait longer than the sink wants them.
    bench.limits_were_kept().await;
    bench.limits_were_kept().await;
    bench.receiver.restart();
    bench.say(1).await;
    assert_eq!(bench.arrived(1).await, [10], "what waited too long is skipped, the new one is not");
    // And the journal lets go what is too old for it.
    bench.clock.suspend(Duration::from_hours(2));
    until("the journal has let it go", PATIENCE, async || bench.held().is_empty().then_some(()))
        .await;
    bench.relay.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_grow_old_while_the_machine_sleeps() {
    let mut bench = Bench::new("max_age = \"10h\"", "max_age = \"1h\"").await;
    bench.receiver.kill();
    bench.start().await;
    bench.say(5).await;
    // Then nothing is on its way any more that was young when it was looked at.
    until("the sink is known to be down", PATIENCE, async || {
        bench.metric("astro_relay_sink_up{").await.filter(|up| *up < 0.5)
    })
    .await;
    bench.clock.suspend(Duration::from_hours(8));
    bench.receiver.restart();
    bench.say(1).await;
    assert_eq!(bench.arrived(1).await, [5], "yesterday's events are of no use");
    bench.relay.stop().await;
}
