//! Topics of which messages come that belong to no channel because several come into question.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::Instant;
use tracing::warn;

use super::Session;

/// A topic is shown for so long after the last of them.
const LATELY: Duration = Duration::from_mins(10);

/// When the last such message of a topic came. Only subscribed topics are in it.
#[derive(Debug, Default)]
pub struct Unplaced(BTreeMap<Arc<str>, Instant>);

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

    /// Adds those of the connection before.
    fn continues(&mut self, before: Self) {
        for (topic, at) in before.0 {
            let last = self.0.entry(topic).or_insert(at);
            *last = at.max(*last);
        }
    }

    /// The topics with such messages of late.
    fn topics(&self, now: Instant) -> Vec<Arc<str>> {
        let lately = self.0.iter().filter(|(_, at)| now < **at + LATELY);
        lately.map(|(topic, _)| Arc::clone(topic)).collect()
    }
}

impl Session {
    /// The topics of which messages came lately that belong to no channel because several come into question.
    pub fn unplaced(&self, now: Instant) -> Vec<Arc<str>> {
        self.unplaced.topics(now)
    }

    /// The same, for the session that comes after this one.
    pub fn take_unplaced(&mut self) -> Unplaced {
        std::mem::take(&mut self.unplaced)
    }

    /// Takes up those of the connection before, which had the same subscriptions.
    pub fn continue_unplaced(&mut self, before: Unplaced) {
        self.unplaced.continues(before);
    }
}
