//! What is said again and again for far sides that do not notice the end of a connection.
//!
//! MQTT has a last will. Redis has values that expire, NATS has entries with a time: there the relay's
//! status is written anew every [`KEEP_REFRESH`], and what is older is of a relay that is gone.

use std::collections::BTreeMap;

use bytes::Bytes;
use tokio::time::Instant;

use super::{KEEP_REFRESH, Part};
use crate::channel::board::Path;

/// What is said again, and when.
#[derive(Debug)]
pub(super) struct Pulse {
    /// Which parts are said again.
    concerned: fn(&Path) -> bool,
    alive: BTreeMap<Path, Bytes>,
    due: Option<Instant>,
}

impl Pulse {
    /// One for the parts of these paths.
    pub(super) fn new(concerned: fn(&Path) -> bool) -> Self {
        Self { concerned, alive: BTreeMap::new(), due: None }
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.alive.clear();
        self.due = None;
    }

    /// Takes note of what is said now, and answers all of it: `parts`, and behind them what is due to
    /// be said again.
    pub(super) fn beat(&mut self, parts: &[Part]) -> Vec<Part> {
        let mut said = parts.to_vec();
        let now = Instant::now();
        if self.due.is_none_or(|due| due <= now) {
            self.due = Some(now + KEEP_REFRESH);
            let again =
                self.alive.iter().filter(|(path, _)| !parts.iter().any(|p| p.path == **path));
            said.extend(again.map(|(path, payload)| Part {
                path: path.clone(),
                payload: Some(payload.clone()),
            }));
        }
        for part in parts.iter().filter(|part| (self.concerned)(&part.path)) {
            match &part.payload {
                Some(payload) => drop(self.alive.insert(part.path.clone(), payload.clone())),
                None => drop(self.alive.remove(&part.path)),
            }
        }
        said
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::board::Section;

    fn part(channel: &str, section: Section, payload: Option<&'static str>) -> Part {
        Part { path: Path::of(channel, section), payload: payload.map(Bytes::from) }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_concerned_is_said_again_in_its_newest_words() {
        let mut pulse = Pulse::new(|path| path.section == Section::Status);
        let first = [
            part("", Section::Status, Some("a")),
            part("main", Section::Status, Some("b")),
            part("main", Section::Stream, Some("c")),
        ];
        assert_eq!(pulse.beat(&first), first);
        let second = [part("", Section::Status, Some("d")), part("main", Section::Status, None)];
        assert_eq!(pulse.beat(&second), second, "not yet");
        tokio::time::advance(KEEP_REFRESH).await;
        assert_eq!(pulse.beat(&[]), [part("", Section::Status, Some("d"))]);
        assert_eq!(pulse.beat(&[]), []);
        tokio::time::advance(KEEP_REFRESH).await;
        let news = [part("", Section::Status, Some("e"))];
        assert_eq!(pulse.beat(&news), news, "once is enough");
    }
}
