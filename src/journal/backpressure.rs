//! How intake waits: for a disk that is behind, no longer than [`PATIENCE`], and never for a sink.

use std::time::Duration;

use tokio::time::timeout;

use super::{Health, Journal};

/// How long intake waits for a disk that does not keep up, before the oldest unwritten events go.
const PATIENCE: Duration = Duration::from_secs(2);

impl Journal {
    /// Waits until what is not yet on disk fits its bound. A disk that does not keep up for [`PATIENCE`]
    /// makes nobody wait again until it has caught up: then the oldest events in memory go.
    pub async fn ready(&self) {
        let enough = || {
            let memory = self.0.lock();
            memory.ring.unwritten_bytes <= self.0.config.memory.bytes() / 2
                || memory.disk.behind
                || memory.disk.health != Health::Sound
        };
        if enough() {
            return;
        }
        let mut progress = self.progress();
        let wait = async { while !enough() && progress.changed().await.is_ok() {} };
        if timeout(PATIENCE, wait).await.is_err() {
            self.0.lock().disk.behind = true;
            tracing::warn!("the journal's disk does not keep up");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::time::Instant;

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
}
