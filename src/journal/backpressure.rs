//! How intake waits: for a disk that is behind, no longer than [`PATIENCE`], and never for a sink.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::{Health, Journal};

/// How long intake waits for a disk that does not keep up, before the oldest unwritten events go.
const PATIENCE: Duration = Duration::from_secs(2);

impl Journal {
    /// Waits until what is not yet on disk fits its bound. A disk that does not keep up for [`PATIENCE`]
    /// makes nobody wait again until it has caught up: then the oldest events in memory go. May be dropped
    /// while it waits: the time runs on.
    pub async fn ready(&self) {
        let Some(since) = self.waits_since() else { return };
        let mut progress = self.progress();
        let wait =
            async { while self.waits_since().is_some() && progress.changed().await.is_ok() {} };
        if timeout_at(since + PATIENCE, wait).await.is_err() {
            self.0.lock().disk.behind = true;
            tracing::warn!("the journal's disk does not keep up");
        }
    }

    /// Since when intake waits for the disk; `None`: it does not have to.
    fn waits_since(&self) -> Option<Instant> {
        let mut memory = self.0.lock();
        let enough = memory.ring.unwritten_bytes <= self.0.config.memory.bytes() / 2
            || memory.disk.behind
            || memory.disk.health != Health::Sound;
        (!enough).then(|| *memory.disk.waits_since.get_or_insert_with(Instant::now))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::time::timeout;

    use super::*;
    use crate::{base::event::own, config::Start};

    const MEMORY: usize = 64 * 1024;

    #[tokio::test(start_paused = true)]
    async fn intake_never_waits_for_a_sink() {
        let journal = Journal::in_memory(MEMORY);
        journal.register("stuck", Start::End).unwrap();
        journal.register("slow", Start::End).unwrap();
        let nobody = "".into();
        let began = Instant::now();
        // Far more than the ring holds, while one sink moves a little and the other not at all.
        while journal.figures().oldest <= 1000 {
            let event = own("channel.tips", &nobody, &nobody, &json!({}), 1);
            journal.append(&mut vec![event]);
            journal.ready().await;
            journal.advance("slow", journal.figures().last / 2);
        }
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_for_the_disk_that_is_dropped_and_begun_again_has_one_bound() {
        let journal = Journal::on_hung_disk(MEMORY);
        let nobody = "".into();
        let append = || {
            journal.append(&mut vec![own("channel.tips", &nobody, &nobody, &json!({}), 1)]);
        };
        while journal.figures().memory <= MEMORY / 2 {
            append();
        }
        for ends in [false, false, true] {
            let ready = timeout(PATIENCE * 2 / 5, journal.ready()).await;
            assert_eq!(ready.is_ok(), ends);
        }
        // From now on nobody waits, and memory has its bound.
        let began = Instant::now();
        while journal.figures().oldest <= 1000 {
            append();
            journal.ready().await;
            assert!(journal.figures().memory < 2 * MEMORY);
        }
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}
