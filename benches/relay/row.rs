//! A line of the table: what came of a load, and what it cost.

use std::time::Duration;

use astro_sim::{Load, Sim};
use tokio::time::{Instant, sleep};

use super::{
    child::Process,
    tally::{Sum, Tally},
};

/// Messages of the cases at a fixed rate, how many a second.
pub const RATED: u64 = 1_000;
pub const RATE: u64 = 100;

/// What no run may exceed.
pub const DEADLINE: Duration = Duration::from_mins(5);

/// One line of the table.
pub struct Row {
    pub case: String,
    pub program: &'static str,
    pub sent: u64,
    pub sum: Sum,
    pub took: Duration,
    pub cpu: Duration,
    pub idle: u64,
    pub peak: u64,
    pub start: Duration,
}

/// What comes of a load, and what it costs the processes together.
pub async fn measure(
    name: &str,
    program: &'static str,
    processes: &[Process],
    sim: &Sim,
    tally: &Tally,
    load: &Load,
    start: Duration,
) -> Row {
    // What the start itself costs is over, and memory at rest can be seen.
    sleep(Duration::from_secs(1)).await;
    let cpu = || processes.iter().map(Process::cpu).sum::<Duration>();
    let idle = processes.iter().map(|process| process.memory().0).max().unwrap_or(0);
    let before = cpu();
    let began = Instant::now();
    let messages = load.messages;
    let loading = sim.load(load);
    let waiting = async {
        let mut last = (0, Instant::now());
        while tally.count() < messages && began.elapsed() < DEADLINE {
            if tally.count() != last.0 {
                last = (tally.count(), Instant::now());
            }
            // Nothing for this long: what is missing is lost.
            if last.1.elapsed() > Duration::from_secs(20) {
                break;
            }
            sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::join!(loading, waiting);
    let sum = tally.sum();
    let took = sum.last_at.map_or(began.elapsed(), |last| last - began);
    // Acknowledgements behind the last message are part of its price.
    sleep(Duration::from_millis(300)).await;
    let peak = processes.iter().map(|process| process.memory().1).max().unwrap_or(0);
    let cpu = cpu().saturating_sub(before);
    Row { case: name.into(), program, sent: messages, sum, took, cpu, idle, peak, start }
}

pub fn rate_of(row: &Row) -> f64 {
    row.sum.delivered as f64 / row.took.as_secs_f64()
}

/// Seconds of processor for one message.
pub fn cpu_of(row: &Row) -> f64 {
    row.cpu.as_secs_f64() / row.sum.delivered.max(1) as f64
}

pub fn print(row: &Row) {
    let ms = |duration: Duration| format!("{:.2}", duration.as_secs_f64() * 1e3);
    let mib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
    let sum = &row.sum;
    println!(
        "{:<22} {:<6} {:>9} {:>6} {:>6} {:>6} {:>9.0} {:>8.2} {:>8} {:>8} {:>8} {:>8} {:>6} {:>6} {:>7}",
        row.case,
        row.program,
        sum.delivered,
        row.sent.saturating_sub(sum.delivered),
        sum.repeated,
        sum.reordered,
        rate_of(row),
        cpu_of(row) * 1e6,
        ms(sum.latency[0]),
        ms(sum.latency[1]),
        ms(sum.latency[2]),
        ms(sum.latency[3]),
        mib(row.idle),
        mib(row.peak),
        ms(row.start),
    );
}
