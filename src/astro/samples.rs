//! One or more messages of each topic, as examples: to try conditions and templates on, and to be shown.
//!
//! They are those of `docs/asyncapi.json`, so that what is tried is what is documented. Personal data is
//! not in them.

use std::sync::LazyLock;

use serde_json::Value;

use crate::base::event::{self, Event};

static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
    // A test reads it; a document that is broken has no examples.
    serde_json::from_str(include_str!("../../docs/asyncapi.json")).unwrap_or_default()
});

/// The data of the examples of a topic, each with its name. None of a topic of which none is known.
pub fn data(topic: &str) -> Vec<(&'static str, &'static Value)> {
    let messages = DOCUMENT.pointer("/components/messages").and_then(Value::as_object);
    let mut messages = messages.into_iter().flat_map(|messages| messages.values());
    let message = messages.find(|message| message.get("name").is_some_and(|name| name == topic));
    let examples = message.and_then(|message| message.get("examples")?.as_array());
    let example = |example: &'static Value| {
        Some((example.get("name")?.as_str()?, example.pointer("/payload/data")?))
    };
    examples.into_iter().flatten().filter_map(example).collect()
}

/// The examples of a topic as events of a channel.
pub fn events(topic: &str, channel: &str) -> Vec<Event> {
    let (channel, room) = (channel.into(), "0f0e0d0c0b0a090807060504".into());
    let own = |(_, data)| event::own(topic, &channel, &room, data, 1_741_370_418_000);
    data(topic).into_iter().map(own).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::astro::topics::CATALOGUE;

    #[test]
    fn most_topics_have_an_example_and_the_unknown_none() {
        let without: Vec<_> = CATALOGUE
            .iter()
            .filter(|topic| topic.published && data(topic.name).is_empty())
            .map(|topic| topic.name)
            .collect();
        // Of these no form is documented.
        let unknown = [
            "channel.announcements",
            "channel.chatstats",
            "channel.chatbot.audiencequeue",
            "channel.loyalty.items",
        ];
        assert_eq!(without, unknown);
        assert!(data("channel.activities").len() > 10 && data("channel.nope").is_empty());
        let tips = events("channel.tips", "main");
        assert!(tips[0].data().starts_with(b"{"), "{tips:?}");
    }
}
