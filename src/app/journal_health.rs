//! Reports a journal that does not work, and what it no longer holds for sinks.
//!
//! A disk that fails says so, and the journal goes on from memory. One that hangs says nothing, and sinks get
//! nothing that is not written: that is seen by what stays unwritten.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::{
    base::{
        clock::{self, UnixMillis},
        event::Seq,
        supervisor::Factory,
    },
    delivery::{losses, status::Status},
    journal::{Figures, Health, Journal},
};

/// The name under which it is reported.
const NAME: &str = "journal";

/// How often it is checked how far the disk is, and whether the journal still holds what sinks have still to get.
const CHECK: Duration = Duration::from_secs(1);

/// A disk that has written nothing for so long, with events to write, hangs.
const HANGS: Duration = Duration::from_secs(5);

pub(super) fn factory(journal: &Journal, status: &Arc<Status>) -> Factory {
    let (journal, status) = (journal.clone(), Arc::clone(status));
    Box::new(move |stop| Ok(Box::pin(watch(journal.clone(), Arc::clone(&status), stop))))
}

async fn watch(journal: Journal, status: Arc<Status>, stop: CancellationToken) {
    let mut health = journal.health();
    let mut checks = interval(CHECK);
    checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut disk = Disk::default();
    // What was reported before a restart of this task may be over.
    let mut reported = None;
    status.task(NAME, None);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Ok(()) = health.changed() => {}
            _ = checks.tick() => losses::report_all(&journal, &status),
        }
        let reason = disk.reason(&journal.figures());
        if reason != reported {
            status.task(NAME, reason.as_deref());
            reported = reason;
        }
    }
}

/// How far the disk has come.
#[derive(Default)]
struct Disk {
    written: Seq,
    /// Since when it has written nothing, with events to write.
    waits: Option<(Instant, UnixMillis)>,
}

impl Disk {
    /// Why the journal does not work.
    fn reason(&mut self, figures: &Figures) -> Option<String> {
        let waits = figures.health == Health::Sound && figures.written < figures.last;
        if !waits || figures.written != self.written {
            self.waits = None;
        }
        self.written = figures.written;
        if let Health::Degraded(why) = &figures.health {
            return Some(format!("events are kept in memory only: {why}"));
        }
        if !waits {
            return None;
        }
        let (at, since) = *self.waits.get_or_insert_with(|| (Instant::now(), clock::now()));
        let since = (at.elapsed() >= HANGS).then(|| clock::rfc3339(since))?;
        Some(format!(
            "the disk has written nothing since {since}: what was received since is not delivered"
        ))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::time::timeout;

    use super::*;
    use crate::base::event::own;

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_hangs_is_a_reason_until_it_answers() {
        let journal = Journal::on_hung_disk(1 << 20);
        let status = Arc::new(Status::default());
        let mut changes = status.changes();
        let stop = CancellationToken::new();
        let nobody = "".into();
        journal.append(&mut vec![own("t", &nobody, &nobody, &json!({}), 1)]);
        let watching = watch(journal.clone(), Arc::clone(&status), stop.clone());
        let reasons = || status.snapshot().reasons();
        let looking = async {
            let hangs = changes.wait_for(|_| !reasons().is_empty());
            timeout(2 * HANGS, hangs).await.expect("it is reported").unwrap();
            let reason = reasons().join("\n");
            assert!(reason.starts_with("journal: the disk has written nothing since "), "{reason}");
            journal.disk_answers();
            let answers = changes.wait_for(|_| reasons().is_empty());
            timeout(2 * CHECK, answers).await.expect("it is over").unwrap();
            stop.cancel();
        };
        tokio::join!(watching, looking);
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_is_slow_or_idle_does_not_hang() {
        let mut disk = Disk::default();
        let mut figures = Figures::default();
        let mut reason = |written, last| {
            (figures.written, figures.last) = (written, last);
            disk.reason(&figures)
        };
        for (written, last) in [(0, 0), (0, 1), (1, 1), (1, 2), (2, 9), (3, 9)] {
            assert_eq!(reason(written, last), None);
            tokio::time::advance(HANGS.saturating_sub(CHECK)).await;
        }
        assert_eq!(reason(3, 9), None);
        tokio::time::advance(CHECK).await;
        assert!(reason(3, 9).is_some());
    }
}
