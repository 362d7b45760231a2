//! How intake gives way: to a disk that is behind, and to a sink that is about to be.
//!
//! A flood is taken in faster than it is handed out, and the newest events stand in memory for sinks
//! that keep up. Without a word between the two a flood pushes them out before they are read, and each
//! is read back from the disk, later and at twice the cost. So intake waits a moment for the sink that
//! is furthest, while that one moves, until it reads from memory again: a slower one, or one that is
//! down, is nothing to wait for.
//!
//! The one thing to know: a wait for a sink is bounded ([`MOMENT`]), and one in vain is not repeated.
//! A reading holds some fifty messages, so ten thousand a second are always taken in.

use std::time::Duration;

use tokio::time::timeout;

use super::{Health, Journal, State};
use crate::event::Seq;

/// How long intake waits for a disk that does not keep up, before the oldest unwritten events go.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long intake waits for the furthest sink at one time: a few round trips to a far side nearby.
const MOMENT: Duration = Duration::from_millis(5);

/// Cursors of the relay's own parts begin like this. They are never far behind.
const OWN: &str = "relay.";

impl Journal {
    /// Waits until what is not yet on disk fits its bound, and for a moment for the furthest sink. A
    /// disk that does not keep up for [`PATIENCE`] makes nobody wait again until it has caught up:
    /// then the oldest events in memory go.
    pub async fn room(&self) {
        self.disk().await;
        self.furthest().await;
    }

    async fn disk(&self) {
        let enough = || {
            let state = self.0.lock();
            state.unwritten_bytes <= self.0.limits.memory / 2
                || state.late
                || state.health != Health::Sound
        };
        if enough() {
            return;
        }
        let mut progress = self.0.progress.subscribe();
        let wait = async { while !enough() && progress.changed().await.is_ok() {} };
        if timeout(PATIENCE, wait).await.is_err() {
            self.0.lock().late = true;
            tracing::warn!("the journal's disk does not keep up");
        }
    }

    async fn furthest(&self) {
        let pressed = || self.0.lock().pressed(self.0.limits.memory);
        let Some(at) = pressed() else { return };
        let mut progress = self.0.progress.subscribe();
        let wait = async { while pressed() == Some(at) && progress.changed().await.is_ok() {} };
        if timeout(MOMENT, wait).await.is_err() {
            self.0.lock().waited_for = at;
        }
    }
}

impl State {
    /// Where the furthest sink stands, if the ring is nearly full and more than half of it is still to
    /// be read by that sink. `None` also where it was waited for in vain.
    fn pressed(&self, limit: usize) -> Option<Seq> {
        if self.ring_bytes < limit / 4 * 3 {
            return None;
        }
        let sinks =
            self.cursors.iter().filter(|(name, cursor)| cursor.active && !name.starts_with(OWN));
        let at = sinks.map(|(_, cursor)| cursor.at).max()?;
        let first = self.ring.front()?.seq;
        let read = usize::try_from((at + 1).saturating_sub(first)).ok()?;
        (read < self.ring.len() / 2 && at != self.waited_for).then_some(at)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::time::Instant;

    use super::*;
    use crate::{config::Start, event::own};

    const MEMORY: usize = 64 * 1024;

    /// A journal whose ring is full, and the first number in it.
    fn full(sinks: &[&str]) -> (Journal, Seq) {
        let journal = Journal::in_memory(MEMORY);
        for sink in sinks {
            journal.register(sink, Start::End).unwrap();
        }
        let nobody = "".into();
        while journal.figures().oldest <= 1 {
            let event = own("channel.tips", &nobody, &nobody, &json!({}), 1);
            journal.append(&mut vec![event]);
        }
        let oldest = journal.figures().oldest;
        (journal, oldest)
    }

    async fn waited(journal: &Journal) -> Duration {
        let began = Instant::now();
        journal.room().await;
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_sink_that_moves_is_waited_for_until_it_has_read_half() {
        let (journal, oldest) = full(&["home", "slow", "relay.state"]);
        let last = journal.figures().last;
        journal.advance("home", oldest);
        journal.advance("relay.state", last);
        let reads = async {
            for seq in oldest..=last {
                journal.advance("home", seq);
                tokio::task::yield_now().await;
            }
        };
        let intake = async {
            // Each step of the sink is a new one to wait for.
            while journal.0.lock().pressed(MEMORY).is_some() {
                assert_eq!(waited(&journal).await, Duration::ZERO);
            }
            journal.0.lock().cursors["home"].at
        };
        let (at, ()) = tokio::join!(intake, reads);
        let half = oldest + (last - oldest) / 2;
        assert!((half..half + 2).contains(&at), "{at} of {oldest} to {last}");
        assert_eq!(waited(&journal).await, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_stands_still_is_waited_for_once() {
        let (journal, oldest) = full(&["home"]);
        journal.advance("home", oldest);
        assert!(waited(&journal).await >= MOMENT);
        assert_eq!(waited(&journal).await, Duration::ZERO);
        journal.advance("home", oldest + 1);
        assert!(waited(&journal).await >= MOMENT, "it moves again");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_reads_from_the_disk_is_waited_for_while_it_moves() {
        let (journal, oldest) = full(&["home"]);
        let last = journal.figures().last;
        assert!(waited(&journal).await >= MOMENT, "what it wants is gone from memory");
        assert_eq!(waited(&journal).await, Duration::ZERO, "and it stands still");
        journal.advance("home", 1);
        assert!(waited(&journal).await >= MOMENT, "it moves");
        journal.advance("home", oldest + (last - oldest) / 2 + 1);
        assert_eq!(waited(&journal).await, Duration::ZERO, "it has caught up");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_a_sink_that_is_not_there() {
        let (journal, oldest) = full(&["gone", "relay.state"]);
        journal.advance("gone", oldest);
        journal.unregister("gone");
        assert_eq!(waited(&journal).await, Duration::ZERO);
    }
}
