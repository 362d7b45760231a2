//! The relay as a process whose clocks the test sets: what was missed is told and fetched, whatever the
//! wall clock says.

use std::time::Duration;

use astro_relay::{
    base::{
        clock::{self, UnixMillis, rfc3339},
        event::Event,
    },
    config::{Journal as Settings, Size},
    journal::Journal,
};
use astro_sim::{Options, Sim};
use serde_json::{Value, json};

use super::{ROOM, SOON};
use crate::support::{carry::first_arrivals, clock::Clock, daemon::Relay, wait::until};

const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);
const TOPIC: &str = "channel.activities";

/// How far a time may be off: the machine may be busy.
const OFF: UnixMillis = 10_000;

struct Scene {
    sim: Sim,
    clock: Clock,
    relay: Relay,
    tips: u64,
}

impl Scene {
    async fn new() -> Self {
        let sim = Sim::start(([127, 0, 0, 1], 0).into(), Options::default()).await.unwrap();
        let sink = "[sinks.out]\ntype = \"stdout\"\n";
        let relay = Relay::new(&sim.url(), &sim.api_url(), TOPIC, ROOM, sink);
        Self { sim, clock: Clock::new(), relay, tips: 0 }
    }

    async fn start(&mut self) {
        self.relay.start_in(&self.clock.env());
        self.relay.ready().await;
    }

    /// The journal is that of a machine which was booted since: the wall clock is all that is left.
    fn forget_the_boot(&self) {
        let mark = self.relay.journal().join("journal.mark");
        let text = std::fs::read_to_string(&mark).unwrap();
        let (numbers, _) = text.split_once('\n').unwrap();
        std::fs::write(&mark, format!("{numbers}\n")).unwrap();
    }

    /// So many tips happen now.
    fn tip(&mut self, number: u64) {
        for _ in 0..number {
            let data = json!({"username": "mossy", "amount": self.tips});
            let at = rfc3339(clock::now());
            self.sim.activity(ROOM, json!({"type": "tip", "createdAt": at, "data": data}));
            self.tips += 1;
        }
    }

    /// The gaps on the status page.
    async fn gaps(&self) -> Vec<Value> {
        let Some(answer) = self.relay.get("/status").await else { return Vec::new() };
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        let status: Value = serde_json::from_str(body).unwrap();
        status["pages"]["gaps"].as_array().unwrap().clone()
    }

    /// Waits until so many gaps are told since the start, and at least so many activities were fetched.
    async fn told(&self, gaps: usize, fetched: u64) {
        until("the gap is told", SOON, async || (self.gaps().await.len() == gaps).then_some(()))
            .await;
        until("what was missed is fetched", SOON, async || {
            let metrics = self.relay.get("/metrics").await?;
            let name = "astro_relay_backfilled_total{channel=\"main\"} ";
            let figure = metrics.lines().find_map(|line| line.strip_prefix(name))?;
            (figure.parse::<u64>().unwrap() >= fetched).then_some(())
        })
        .await;
    }

    /// Stops it, and reads its journal.
    async fn events(&mut self, topic: &str) -> Vec<Value> {
        self.relay.stop().await;
        let settings =
            Settings { dir: self.relay.journal(), min_free: Size(0), ..Settings::default() };
        let (journal, _) = Journal::open(&settings).unwrap();
        let last = journal.figures().last;
        let batch = journal.read(0, last, usize::MAX, usize::MAX).await.unwrap();
        let of_topic = |event: &&Event| &*event.place.topic == topic;
        let events = batch.records.iter().map(|record| &record.event).filter(of_topic);
        let events = events.map(|event| serde_json::from_slice(event.data()).unwrap()).collect();
        tokio::task::spawn_blocking(move || journal.close()).await.unwrap();
        events
    }
}

fn time(gap: &Value, name: &str) -> UnixMillis {
    clock::parse_rfc3339(gap[name].as_str().unwrap()).unwrap()
}

#[tokio::test]
async fn a_boot_reports_and_fetches_a_gap_whatever_the_clock_says() {
    type Step = fn(&Clock);
    let cases: [(&str, bool, Step, Step); 7] = [
        ("right", true, |_| {}, |_| {}),
        ("behind", true, |_| {}, |clock| clock.step_back(5 * HOUR)),
        ("at 1970", true, |_| {}, |clock| clock.step_back(clock.now())),
        ("far ahead", true, |_| {}, |clock| clock.step_forward(30 * DAY)),
        ("it was far ahead", true, |clock| clock.step_forward(30 * DAY), Clock::correct),
        ("behind, not booted", false, |_| {}, |clock| clock.step_back(5 * HOUR)),
        ("far ahead, not booted", false, |_| {}, |clock| clock.step_forward(30 * DAY)),
    ];
    for (case, booted, before, boot) in cases {
        let mut scene = Scene::new().await;
        before(&scene.clock);
        scene.start().await;
        scene.tip(1);
        until("it is heard", SOON, async || {
            scene.relay.get("/metrics").await?.contains("messages_total 1").then_some(())
        })
        .await;
        if booted {
            scene.relay.stop().await;
            scene.forget_the_boot();
        } else {
            scene.relay.kill().await;
        }
        let stopped = clock::now();
        scene.tip(5);
        boot(&scene.clock);
        scene.start().await;
        scene.told(1, 5).await;
        // The clock is set right while it runs: that is no gap and no age.
        scene.clock.correct();
        scene.tip(1);
        let back = clock::now();
        until("it is heard", SOON, async || {
            scene.relay.get("/metrics").await?.contains("messages_total 1").then_some(())
        })
        .await;
        let mut gaps = scene.events("relay.gap").await;
        // What was recovered of it is told again.
        gaps.retain(|gap| gap.get("recovery").is_none());
        assert_eq!(gaps.len(), 1, "{case}: {gaps:?}");
        let (from, to) = (time(&gaps[0], "from"), time(&gaps[0], "to"));
        assert!(from <= to, "{case}: {}", gaps[0]);
        assert!(from.abs_diff(stopped) < OFF && to.abs_diff(back) < OFF, "{case}: {}", gaps[0]);
        // What a journal forgets under a clock that is far ahead may be fetched once more: its key is
        // the same.
        let amounts =
            scene.events(TOPIC).await.into_iter().filter_map(|tip| tip["data"]["amount"].as_u64());
        let first = first_arrivals(&amounts.collect::<Vec<_>>());
        let mut sorted = first.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..7).collect::<Vec<_>>(), "{case}: {first:?}");
    }
}

#[tokio::test]
async fn steps_of_the_clock_are_no_gap_and_no_silence() {
    let mut scene = Scene::new().await;
    scene.start().await;
    for (n, step) in (1..).zip([
        (|clock| clock.step_forward(30 * DAY)) as fn(&Clock),
        |clock| clock.step_back(60 * DAY),
        Clock::stand_still,
        Clock::correct,
    ]) {
        step(&scene.clock);
        scene.tip(1);
        let line = format!("messages_total {n}");
        until("it is heard", SOON, async || {
            scene.relay.get("/metrics").await?.contains(&line).then_some(())
        })
        .await;
    }
    assert_eq!(scene.sim.stats().opened, 1, "the link is kept");
    assert_eq!(scene.events("relay.gap").await, [json!(null); 0]);
}

#[tokio::test]
async fn a_lost_link_is_measured_right_while_the_clock_steps() {
    for step in
        [(|clock| clock.step_forward(30 * DAY)) as fn(&Clock), |clock| clock.step_back(5 * HOUR)]
    {
        let mut scene = Scene::new().await;
        scene.start().await;
        scene.sim.listen(false);
        scene.sim.end(None, astro_sim::End::Reset);
        until("it is lost", SOON, async || {
            scene.relay.get("/readyz").await?.starts_with("HTTP/1.1 503").then_some(())
        })
        .await;
        scene.tip(3);
        step(&scene.clock);
        scene.sim.listen(true);
        scene.told(1, 3).await;
        let gaps = scene.events("relay.gap").await;
        let seconds = gaps[0]["seconds"].as_f64().unwrap();
        assert!((0.0..30.0).contains(&seconds), "{}", gaps[0]);
    }
}

#[tokio::test]
async fn eight_hours_of_sleep_are_reported_and_fetched_at_once() {
    let mut scene = Scene::new().await;
    scene.start().await;
    // While the machine sleeps nothing comes; its connection is still open, as far as it knows.
    scene.sim.silence(None, true);
    scene.tip(4);
    scene.clock.suspend(8 * HOUR);
    let woken = tokio::time::Instant::now();
    scene.told(1, 4).await;
    assert!(
        woken.elapsed() < Duration::from_secs(15),
        "no ping was waited for: {:?}",
        woken.elapsed()
    );
    let gaps = scene.events("relay.gap").await;
    assert_eq!(gaps[0]["cause"], "the machine was suspended");
    let seconds = gaps[0]["seconds"].as_f64().unwrap();
    assert!((28_800.0..28_900.0).contains(&seconds), "{}", gaps[0]);
    assert!(scene.relay.log().contains("suspended"));
}
