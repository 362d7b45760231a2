//! Topics: making them legal, and refusing those at which nothing of ours may ever be published.
//!
//! Section numbers are those of the OASIS standard "MQTT Version 5.0". What is in a topic may come from a
//! viewer, so every topic is checked once more, as it is rendered, before anything is handed to the client:
//! [`refusal`].

use std::borrow::Cow;

use crate::{
    channel::store::StateKey,
    sink::{address, command_address, prefix::Prefix},
};

/// The longest topic, section 1.5.4: its length has two bytes.
const LONGEST: usize = 65_535;

/// Makes a rendered topic legal, section 4.7: no wildcard, no control character, no empty level, and
/// no `$` in front, for such topics are the broker's own.
pub(crate) fn escape(topic: &str) -> Cow<'_, str> {
    let escaped = address::escape(topic, '/', |c| matches!(c, '+' | '#') || unfit(c));
    match escaped.strip_prefix('$') {
        Some(rest) => Cow::Owned(format!("%24{rest}")),
        None => escaped,
    }
}

/// Characters for which a broker may close the connection, section 1.5.4: control characters and
/// noncharacters.
pub(crate) fn unfit(c: char) -> bool {
    let code = u32::from(c);
    c.is_control() || code & 0xFFFE == 0xFFFE || (0xFDD0..=0xFDEF).contains(&code)
}

/// Why nothing of ours may be published at a topic, if so. It is quick for the usual topic, which is asked
/// of with every event.
pub(crate) fn refusal(topic: &str) -> Option<String> {
    if topic.is_empty() {
        return Some("the topic is empty".into());
    }
    if topic.len() > LONGEST {
        return Some(format!("a topic of {} bytes is too long", topic.len()));
    }
    if topic.starts_with('$') {
        return Some("topics that begin with $ are the broker's own".into());
    }
    if topic.contains(|c: char| matches!(c, '+' | '#') || unfit(c)) {
        return Some("the topic contains a wildcard or a control character".into());
    }
    if topic.split('/').any(str::is_empty) {
        return Some("a level of the topic is empty".into());
    }
    if command_address::parse(topic.as_bytes(), '/').is_some() {
        return Some(format!(
            "the topic {topic} is the address of a command: nothing is published there"
        ));
    }
    None
}

/// The topic of a part of the state. A name is one level, whatever stands in it.
pub(crate) fn of_state(prefix: &Prefix, key: &StateKey) -> Result<String, String> {
    let mut topic = format!("{}/{}", escape(&prefix.of(key)?), key.section.as_str());
    if !key.name.is_empty() {
        topic.push('/');
        topic.push_str(&escape(&key.name).replace('/', "%2F"));
    }
    Ok(topic)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::channel::store::Section;

    #[test]
    fn topics_are_made_legal() {
        for (topic, expected) in [
            ("astro/main/channel/tips", "astro/main/channel/tips"),
            ("astro/a+b/#", "astro/a%2Bb/%23"),
            ("astro//tips/", "astro/_/tips/_"),
            ("$SYS/x", "%24SYS/x"),
            ("a/$b", "a/$b"),
            ("100%", "100%25"),
            ("a\0b\nc\u{FFFE}", "a%00b%0Ac%EF%BF%BE"),
            ("Zoë/日本", "Zoë/日本"),
            ("", "_"),
        ] {
            assert_eq!(escape(topic), expected, "{topic}");
        }
    }

    #[test]
    fn topics_of_commands_of_the_broker_and_illegal_ones_are_refused() {
        for topic in [
            "",
            "$SYS/x",
            "$share/a/b",
            "a/+",
            "a/#",
            "a\0b",
            "a//b",
            "/a",
            "a/",
            "astro/main/command/session/reset",
            "astro/main/command",
            "astro/_/command/x",
            "astro/a%2Fb/command/session/set/tip-goal",
        ] {
            assert!(refusal(topic).is_some(), "{topic}");
        }
        assert!(refusal(&"x".repeat(65_536)).is_some());
        for topic in [
            "astro/main/channel/tips", "astro/main/channel/command", "home/main/command/x", "a/$b",
            "Zoë/日本",
        ] {
            assert_eq!(refusal(topic), None, "{topic}");
        }
        assert_eq!(refusal(&"x".repeat(65_535)), None);
    }

    #[test]
    fn each_part_of_the_state_has_a_topic_of_its_own() {
        let prefix = Prefix::new("home/{{ channel }}", &[]).unwrap();
        let part =
            |section, name: &str| StateKey { channel: "main".into(), section, name: name.into() };
        for (key, expected) in [
            (part(Section::Session, "tip-latest"), "home/main/session/tip-latest"),
            (part(Section::Counters, "a/b#%"), "home/main/counters/a%2Fb%23%25"),
            (part(Section::Stream, ""), "home/main/stream"),
            (StateKey::relay(Section::Status), "home/relay/status"),
        ] {
            assert_eq!(of_state(&prefix, &key).unwrap(), expected);
        }
    }

    proptest! {
        #[test]
        fn every_topic_becomes_a_topic_name(text in any::<String>()) {
            let topic = escape(&text);
            prop_assert!(crate::sink::mqtt::library::v5::valid_topic(&topic));
            let is_command = command_address::parse(topic.as_bytes(), '/').is_some();
            prop_assert_eq!(refusal(&topic).is_some(), is_command || topic.len() > LONGEST);
        }
    }
}
