//! Channels whose events wait for those of another member, for longer than that takes as a rule: health names them.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::Instant;

/// After so long it is said.
const LONG: Duration = Duration::from_secs(10);

/// Since when each of them waits.
#[derive(Debug, Default)]
pub(super) struct HeldBack(HashMap<Arc<str>, Instant>);

impl HeldBack {
    /// Whether the first event of a channel has to wait for another member's.
    pub(super) fn set(&mut self, channel: &Arc<str>, waits: bool) {
        if waits {
            self.0.entry(Arc::clone(channel)).or_insert_with(Instant::now);
        } else if !self.0.is_empty() {
            self.0.remove(channel);
        }
    }

    /// Why events are not published, where some have waited for long.
    pub(super) fn reason(&self) -> Option<String> {
        let (channel, since) = self.0.iter().min_by_key(|(_, since)| **since)?;
        let others = self.0.len() - 1;
        let more = if others > 0 { format!(" and {others} more") } else { String::new() };
        (since.elapsed() >= LONG).then(|| {
            format!(
                "events of channel {channel}{more} are held back: another member may have some from before them that \
                 are not in the log"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_held_back_for_long_is_said() {
        let (main, other) = (Arc::from("main"), Arc::from("other"));
        let mut held = HeldBack::default();
        assert_eq!(held.reason(), None);
        held.set(&main, true);
        advance(LONG / 2).await;
        held.set(&main, true);
        held.set(&other, true);
        assert_eq!(held.reason(), None);
        advance(LONG / 2).await;
        let said = held.reason().unwrap();
        assert!(said.starts_with("events of channel main and 1 more are held back"), "{said}");
        held.set(&main, false);
        assert_eq!(held.reason(), None, "the other one waits since a shorter time");
        advance(LONG / 2).await;
        let said = held.reason().unwrap();
        assert!(said.starts_with("events of channel other are held back"), "{said}");
    }
}
