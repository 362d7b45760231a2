//! A destination that is away for an hour.

use std::time::Duration;

use astro_relay::{
    base::clock,
    config::{Journal as Config, Size, Start},
    journal::Journal,
};

use super::{
    HOUR,
    scripted::{Running, Scripted, down},
};
use crate::support::{
    journal::{close, config, events, long, open, say},
    process::resources,
    wait::until,
};

/// Waits for the disk in real time, with the test's own clock standing still.
async fn written(journal: &Journal) {
    let journal = journal.clone();
    let waiting = tokio::task::spawn_blocking(move || {
        let figures = || journal.figures();
        while figures().written < figures().last {
            std::thread::yield_now();
        }
    });
    waiting.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_an_hour_costs_no_memory_and_no_event() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { memory: Size(1 << 20), ..config(dir.path()) };
    let (journal, _) = open(&config);
    let destination = Scripted::new();
    destination.connects(std::iter::repeat_with(|| Some(down())).take(100_000));
    let running = Running::start("destination", &journal, &destination, |config| {
        config.start = Start::Earliest;
    });
    let seconds = if long() { 3600 } else { 120 };
    let memory = || resources(std::process::id()).expect("it runs").0;
    let (mut most, mut early) = (0, 0);
    for second in 0..seconds {
        journal.append(&mut events(second * 200..(second + 1) * 200));
        written(&journal).await;
        most = most.max(journal.figures().memory);
        if second == seconds / 10 {
            early = memory();
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(most <= 1 << 20, "{most} bytes in memory");
    let late = memory();
    // In a short run other tests share the process.
    assert!(!long() || late <= early + (8 << 10), "{early} KiB became {late} KiB");
    let total = seconds * 200;
    assert_eq!(journal.lag("destination").0, total);
    assert!(destination.accepted().is_empty());
    let back = clock::now();
    destination.connects([]);
    until("all of it has arrived", HOUR, async || {
        (journal.lag("destination").0 == 0).then_some(())
    })
    .await;
    let arrived = destination.accepted();
    assert!(arrived.iter().copied().eq(0..total), "{} arrived", arrived.len());
    assert!(journal.figures().memory <= 1 << 20);
    let took = Duration::from_millis(clock::now() - back);
    say(&format!("delivered in {took:?}; the process had {early} KiB early and {late} KiB late"));
    say(&format!(
        "{total} events while it was away; {most} bytes in memory, {} on disk; {} attempts",
        journal.figures().size,
        destination.connected_at().len()
    ));
    running.stop().await;
    close(journal).await;
}
