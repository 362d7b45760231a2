//! Where this publisher publishes, so that `check --connect` asks for the right to.
//!
//! It is asked below the topics and branches of the state and of Home Assistant's events, as everywhere: of
//! each branch once. For discovery it is asked at a topic of its form: the right is given for that form alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::super::homeassistant::HaDiscovery;
use crate::{
    astro::activity::ACTIVITIES,
    channel::{
        state::SESSION_TOPICS,
        store::{Section, StateKey},
    },
    config::{Channel, ConfigError},
    sink::{
        Opening,
        mqtt::{
            probe::below,
            settings::{Settings, client_id},
            topic,
        },
        settings,
    },
};

/// The topics at which it is asked.
pub(super) fn questions(
    opening: &Opening<'_>,
    channels: &BTreeMap<String, Channel>,
) -> Result<Vec<Arc<str>>, ConfigError> {
    let settings: Settings = settings(opening)?;
    let at = |error| ConfigError::at(&["sinks", opening.name, "state_topic"], error);
    let mut questions = BTreeSet::new();
    if opening.config.state {
        let prefix = settings.prefix().map_err(at)?;
        for key in keys(opening, channels) {
            questions.insert(below(&topic::of_state(&prefix, &key).map_err(at)?));
        }
    }
    if settings.homeassistant == Some(true) {
        let client_id = client_id(opening.name, &opening.config.settings);
        let of = HaDiscovery::of(opening.config, &client_id, topic::escape, &settings.commands);
        let discovery = of.map_err(at)?;
        questions.extend(discovery.event_topics().map(|topic| below(&topic)));
        questions.insert(discovery.unused_topic());
    }
    Ok(questions.into_iter().map(Into::into).collect())
}

/// Where the state of these channels goes, as far as the sink has them. Those of a section with names are
/// one.
fn keys(opening: &Opening<'_>, channels: &BTreeMap<String, Channel>) -> Vec<StateKey> {
    let selected = opening.config.channels.as_ref();
    let mut keys = vec![StateKey::relay(Section::Status), StateKey::relay(Section::Diagnostics)];
    for (label, channel) in channels {
        if selected.is_some_and(|selected| !selected.contains(label)) {
            continue;
        }
        let sections = channel.topics.iter().flat_map(|topic| sections(topic));
        let sections = sections.chain(&[Section::Status]);
        keys.extend(sections.map(|section| StateKey::of(label, *section)));
    }
    keys
}

/// What of the state comes from a topic.
fn sections(topic: &str) -> &'static [Section] {
    match topic {
        "channel.stream.status" => &[Section::Stream],
        "channel.chatbot.status" => &[Section::Bot],
        "channel.chatbot.counters" => &[Section::Counters],
        ACTIVITIES => &[Section::Paid],
        topic if SESSION_TOPICS.contains(&topic) => &[Section::Session, Section::SessionInfo],
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        config::{Described, SinkConfig},
        sink::Purpose,
    };

    #[test]
    fn the_right_is_asked_for_wherever_state_events_and_discovery_go() {
        let topics = ["channel.tips", "channel.session.update", "channel.stream.status"];
        let channel: Channel =
            serde_json::from_value(json!({"token": {"value": "x"}, "topics": topics})).unwrap();
        let channels: BTreeMap<String, Channel> =
            ["main", "other"].map(|label| (label.to_owned(), channel.clone())).into();
        let config = json!({"type": "mqtt", "channels": ["main"], "state": true});
        let mut config: SinkConfig = serde_json::from_value(config).unwrap();
        let topics = channel.topics.clone();
        let described = Described { room: None, topics, elsewhere: Vec::new() };
        config.feeds = BTreeMap::from([("main".to_owned(), described)]);
        let mut asked = |settings| {
            config.settings = settings;
            let opening = Opening { name: "home", config: &config, purpose: Purpose::Probe };
            let questions = questions(&opening, &channels).unwrap();
            questions.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let state = [
            "x/main/session-info/$check", "x/main/session/$check", "x/main/status/$check",
            "x/main/stream/$check", "x/relay/diagnostics/$check", "x/relay/status/$check",
        ];
        let settings = json!({"url": "mqtt://broker", "state_topic": "x/{{ channel }}"});
        assert_eq!(asked(settings), state);
        let settings = json!({"url": "mqtt://broker", "homeassistant": true,
                              "state_topic": "x/{{ channel }}"});
        let all = asked(settings);
        assert!(state.iter().all(|one| all.iter().any(|other| one == other)), "{all:?}");
        let more: Vec<_> = all.iter().filter(|one| !state.contains(&&***one)).collect();
        let discovery = "homeassistant/sensor/astro-relay-home/check/config";
        assert_eq!(more, [discovery, "x/main/event/tip/$check"], "of a branch once");
    }
}
