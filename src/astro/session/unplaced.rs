//! Topics of which messages come that belong to no channel because several come into question.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::Instant;
use tracing::warn;

/// A topic is shown for so long after the last of them.
const LATELY: Duration = Duration::from_mins(10);

/// When the last such message of a topic came. Only subscribed topics are in it.
#[derive(Debug, Default)]
pub(super) struct Unplaced(BTreeMap<Arc<str>, Instant>);

impl Unplaced {
    /// A message of this topic belongs to no channel.
    pub(super) fn note(&mut self, topic: &Arc<str>, now: Instant) {
        let before = self.0.insert(Arc::clone(topic), now);
        if before.is_none_or(|before| now >= before + LATELY) {
            warn!(
                %topic,
                "messages do not say of which channel they are, and several have this topic: they reach none"
            );
        }
    }

    /// The topics with such messages of late.
    pub(super) fn topics(&self, now: Instant) -> Vec<Arc<str>> {
        let lately = self.0.iter().filter(|(_, at)| now < **at + LATELY);
        lately.map(|(topic, _)| Arc::clone(topic)).collect()
    }
}
