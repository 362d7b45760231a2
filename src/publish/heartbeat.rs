//! What is published again and again for destinations that do not notice the end of a connection.
//!
//! MQTT has a last will. Redis has values that expire, NATS has entries with a time: there the relay's
//! status is written again every [`REFRESH`], and what is older is of a relay that is gone.

use std::collections::BTreeMap;

use bytes::Bytes;
use tokio::time::Instant;

use super::REFRESH;
use crate::{channel::store::StateKey, sink::Part};

/// What is published again, and when.
#[derive(Debug)]
pub(super) struct Heartbeat {
    /// Which parts are published again.
    applies: fn(&StateKey) -> bool,
    newest: BTreeMap<StateKey, Bytes>,
    due: Option<Instant>,
}

impl Heartbeat {
    /// One for the parts of these paths.
    pub(super) fn new(applies: fn(&StateKey) -> bool) -> Self {
        Self { applies, newest: BTreeMap::new(), due: None }
    }

    pub(super) fn clear(&mut self) {
        self.newest.clear();
        self.due = None;
    }

    /// Remembers what is published now, and answers all that is: `parts`, and behind them what is due to
    /// be published again.
    pub(super) fn with_due(&mut self, parts: &[Part]) -> Vec<Part> {
        let mut all = parts.to_vec();
        let now = Instant::now();
        if self.due.is_none_or(|due| due <= now) {
            self.due = Some(now + REFRESH);
            let again =
                self.newest.iter().filter(|(path, _)| !parts.iter().any(|p| p.path == **path));
            all.extend(again.map(|(path, payload)| Part {
                path: path.clone(),
                payload: Some(payload.clone()),
            }));
        }
        for part in parts.iter().filter(|part| (self.applies)(&part.path)) {
            match &part.payload {
                Some(payload) => drop(self.newest.insert(part.path.clone(), payload.clone())),
                None => drop(self.newest.remove(&part.path)),
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::store::Section;

    fn part(channel: &str, section: Section, payload: Option<&'static str>) -> Part {
        Part { path: StateKey::of(channel, section), payload: payload.map(Bytes::from) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_status_is_published_again_with_its_newest_value() {
        let mut heartbeat = Heartbeat::new(|path| path.section == Section::Status);
        let first = [
            part("", Section::Status, Some("a")),
            part("main", Section::Status, Some("b")),
            part("main", Section::Stream, Some("c")),
        ];
        assert_eq!(heartbeat.with_due(&first), first);
        let second = [part("", Section::Status, Some("d")), part("main", Section::Status, None)];
        assert_eq!(heartbeat.with_due(&second), second, "not yet");
        tokio::time::advance(REFRESH).await;
        assert_eq!(heartbeat.with_due(&[]), [part("", Section::Status, Some("d"))]);
        assert_eq!(heartbeat.with_due(&[]), []);
        tokio::time::advance(REFRESH).await;
        let news = [part("", Section::Status, Some("e"))];
        assert_eq!(heartbeat.with_due(&news), news, "once is enough");
    }
}
