//! Whether a command may have been waiting to be read for long.
//!
//! While the process or the machine stands still, nobody reads: what comes meanwhile waits in the socket and
//! is read all at once afterwards. By then whoever gave it has given up on it. A listener tells an
//! [`Attention`] that it reads, at least once each [`TICK`], and refuses what [`Attention::is_late`] says may
//! be old.

use std::time::Duration;

use crate::base::clock::Moment;

/// How often it is noted that somebody reads.
pub(super) const TICK: Duration = Duration::from_secs(1);

/// Nobody has read for so long: the process or the machine stood still.
const ABSENCE: Duration = Duration::from_secs(3);

/// After an absence it takes no longer than this to read what came meanwhile.
const CATCHING_UP: Duration = Duration::from_secs(1);

/// Notices that nobody has read for a while: a process that was stopped gets what came meanwhile at once.
pub(super) struct Attention {
    attended: Moment,
    /// What is read until so long after this moment may be old.
    absent: Option<Moment>,
}

impl Attention {
    pub(super) fn new() -> Self {
        Self { attended: Moment::now(), absent: None }
    }

    /// Somebody reads now.
    pub(super) fn attend(&mut self) {
        let now = Moment::now();
        if now.since(self.attended) > ABSENCE {
            self.absent = Some(now);
        }
        self.attended = now;
    }

    /// Whether what is read now may be old.
    pub(super) fn is_late(&self) -> bool {
        self.absent.is_some_and(|since| since.elapsed() < CATCHING_UP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_message_that_is_read_after_an_absence_is_late() {
        let mut reader = Attention::new();
        for _ in 0..60 {
            tokio::time::advance(TICK).await;
            reader.attend();
        }
        assert!(!reader.is_late(), "somebody read all the time");
        tokio::time::advance(ABSENCE * 2).await;
        reader.attend();
        assert!(reader.is_late(), "nobody did");
        tokio::time::advance(CATCHING_UP).await;
        reader.attend();
        assert!(!reader.is_late());
    }
}
