//! The steps of an event's way, each alone: reading the envelope, deciding and rendering, the journal.
//!
//! `cargo bench --bench micro [-- FILTER]`. Times are for one event, or for the batch that the name says.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "what fails here fails the benchmark"
)]

mod steps;

use std::hint::black_box;

use astro_relay::{astro::wire, base::event::Event, gateway::seen::Seen, journal::Journal};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

use steps::{BATCH, configured, happening, record, route};

fn happenings() -> Vec<Event> {
    (0..BATCH).map(happening).collect()
}

fn envelope(bench: &mut Criterion) {
    let event = happening(1);
    let text = std::str::from_utf8(&event.message).unwrap();
    let mut group = bench.benchmark_group("envelope");
    group.throughput(Throughput::Bytes(event.message.len() as u64));
    group.bench_function("read", |bench| bench.iter(|| wire::read(black_box(text)).is_ok()));
    group.finish();
    let mut number = 0;
    let mut seen = Seen::default();
    bench.bench_function("duplicates/new", |bench| {
        let make = || {
            number += 1;
            happening(number)
        };
        bench.iter_batched_ref(make, |event| seen.admit(event), BatchSize::SmallInput);
    });
}

fn routes(bench: &mut Criterion) {
    let record = record(1, happening(1));
    for (name, more) in [
        ("message", ""),
        ("patterns", "topics = [\"channel.tips\", \"channel.activities.**\"]"),
        ("condition", "when = \"data.data.amount >= 5\""),
        ("template", "payload = \"{{ data.data.username }} {{ data.data.amount }}\""),
        ("cloudevent", "payload = \"cloudevent\""),
        ("elsewhere", "topics = [\"channel.tips\"]"),
    ] {
        let mut route = route(&format!("redact = []\n{more}"));
        bench.bench_function(&format!("route/{name}"), |bench| {
            bench.iter(|| route.render(black_box(&record)));
        });
    }
}

fn journal(bench: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "[journal]\ndir = '{}'\nmax_size = \"256MiB\"\n[channels.main]\n\
         token = \"t\"\ntopics = [\"channel.tips\"]\n",
        dir.path().display()
    );
    let (journal, _) = Journal::open(&configured(&text).journal).unwrap();
    let mut group = bench.benchmark_group("journal");
    group.throughput(Throughput::Elements(BATCH));
    // With the wait for the disk: the rate that can be kept up.
    group.bench_function("append 256", |bench| {
        let append = |events: &mut Vec<Event>| {
            journal.append(events);
            runtime.block_on(journal.ready());
        };
        bench.iter_batched_ref(happenings, append, BatchSize::SmallInput);
    });
    let last = journal.figures().last;
    for (name, after) in [("read 256 from memory", last - BATCH), ("read 256 from disk", last / 2)]
    {
        group.bench_function(name, |bench| {
            let read = || runtime.block_on(journal.read(after, last, 256, 1 << 20));
            bench.iter(|| assert!(!read().unwrap().records.is_empty()));
        });
    }
    group.finish();
    journal.close();
}

criterion_group!(micro, envelope, routes, journal);
criterion_main!(micro);
