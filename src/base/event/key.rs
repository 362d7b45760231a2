//! The deduplication key: what tells a repeat of a message from another message.
//!
//! It is a function of the message alone, so it is the same after a restart, on every member of a
//! cluster, and for a message that comes on two connections:
//!
//! | message | key |
//! |---|---|
//! | an activity | `activity-<_id>-<digest>`, over its channel, type and state |
//! | a tip, or its moderation | `tip-<_id>-<digest>`, over topic, channel and state |
//! | any other | `<id>-<digest>`, over topic, room and `data` |
//! | one without an id | `<ts>-<digest>`, over the same; without `ts` too: none |
//!
//! `<id>` is Astro's (a ULID), `<_id>` the vendor's own for what happened, and the digest sixteen
//! hexadecimal digits. A live message and an item of the history have different ids of their own, or
//! none, and their fields in another order, so of activities and tips only what both have counts: what
//! happened ([`ABOUT`]) and how it stands ([`STATE`]). A tip and its moderation, and a tip that was
//! pending and then allowed, have different keys. What the vendor marks as a mock (an alert that is
//! played again) happens each time under one and the same `_id`: it goes by the message's id.
//!
//! The digest is XXH3, whose values never change. It keeps apart messages that share an id, and an id
//! is Astro's to give: nobody gains by making two of them meet.

use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64_with_seed as xxh3;

use crate::base::json;

/// The topics of what has an id of its own, and the word that its keys begin with.
const TOPICS: [(&str, &str); 3] = [
    ("channel.activities", "activity"),
    ("channel.tips", "tip"),
    ("channel.tips.moderation", "tip"),
];

/// Members of `data` that say how an activity or a tip stands.
const STATE: [&str; 5] = ["type", "approved", "status", "flagged", "deleted"];

/// Members that say what happened: of `data.data` (an activity), of `data.donation` (a tip) and of its
/// `user`. The history may lack the others, or have more.
const ABOUT: [&str; 7] =
    ["username", "amount", "currency", "message", "level", "quantity", "count"];

/// The longest id that stands in a key as it is. A ULID has 26 characters.
const LONGEST: usize = 64;

/// The key of a message with these fields; empty: nothing tells a repeat of it.
pub(crate) fn of(id: &str, ts: &str, topic: &str, room: &str, data: &[u8]) -> Box<str> {
    if let Some((_, word)) = TOPICS.iter().find(|(of, _)| *of == topic)
        && let Some(Happened { id, state }) = happened(topic, room, data)
    {
        return format!("{word}-{}-{state:016x}", plain(&id)).into();
    }
    let digest = data_digest(topic, room, data);
    match (id, ts) {
        ("", "") => "".into(),
        ("", ts) => format!("{}-{:016x}", plain(ts), xxh3(ts.as_bytes(), digest)).into(),
        (id, _) => format!("{}-{digest:016x}", plain(id)).into(),
    }
}

/// The vendor's own id of what a message of this topic tells; `None`: it has none.
pub(crate) fn own_id(topic: &str, data: &[u8]) -> Option<String> {
    TOPICS.iter().find(|(of, _)| *of == topic)?;
    id_of(&json::value(data)?)
}

fn data_digest(topic: &str, room: &str, data: &[u8]) -> u64 {
    [topic.as_bytes(), room.as_bytes(), data].into_iter().fold(0, |seed, part| xxh3(part, seed))
}

struct Happened {
    id: String,
    state: u64,
}

fn happened(topic: &str, room: &str, data: &[u8]) -> Option<Happened> {
    let data = json::value(data)?;
    let id = id_of(&data)?;
    if data.get("isMock").is_some_and(is_true) {
        return None;
    }
    let channel = data.get("channel").and_then(Value::as_str).unwrap_or(room);
    let mut state = [topic, channel].into_iter().fold(0, |seed, part| xxh3(part.as_bytes(), seed));
    let mut note = |value: Option<&Value>, name: &str| {
        if let Some(text) = value.and_then(scalar) {
            state = xxh3(text.as_bytes(), xxh3(name.as_bytes(), state));
        }
    };
    for name in STATE {
        note(data.get(name), name);
    }
    for about in ["/data", "/donation", "/donation/user"].map(|path| data.pointer(path)) {
        for name in ABOUT {
            note(about.and_then(|about| about.get(name)), name);
        }
    }
    Some(Happened { id, state })
}

fn id_of(data: &Value) -> Option<String> {
    ["_id", "activityId"].iter().find_map(|name| data.get(name).and_then(scalar))
}

fn is_true(value: &Value) -> bool {
    scalar(value).is_some_and(|text| text == "true" || text == "1")
}

/// A value as one text, whatever type it was sent as: `5`, `5.0` and `"5"` are the same, and so are no
/// value, `null`, `false` and an empty text.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::Bool(true) => Some("true".to_owned()),
        Value::Number(number) => Some(match number.as_f64() {
            // Whole numbers keep all their digits.
            Some(float) if number.is_f64() => float.to_string(),
            _ => number.to_string(),
        }),
        Value::String(text) if text.is_empty() => None,
        Value::String(text) => Some(match text.parse::<f64>() {
            Ok(float) if text.len() <= 15 && float.is_finite() => float.to_string(),
            _ => text.clone(),
        }),
        // Lists and objects are no state.
        Value::Null | Value::Bool(false) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// An id as it may stand in a header, a property and a key: visible ASCII of a bounded length; anything
/// else is its digest.
fn plain(id: &str) -> std::borrow::Cow<'_, str> {
    if !id.is_empty() && id.len() <= LONGEST && id.bytes().all(|byte| byte.is_ascii_graphic()) {
        id.into()
    } else {
        format!("x{:016x}", xxh3(id.as_bytes(), 0)).into()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn key(id: &str, topic: &str, data: &Value) -> String {
        of(id, "2025-03-07T18:00:18Z", topic, "r", data.to_string().as_bytes()).into()
    }

    fn tip(approved: &str) -> Value {
        json!({"_id": "bbc1fc186d0a1d809e12a964", "approved": approved, "channel": "c", "status": "success",
            "donation": {"amount": 30.0, "currency": "USD", "message": "m", "user": {"username": "u"}}})
    }

    fn activity() -> Value {
        json!({"_id": "59905a", "activityId": "59905a", "channel": "c", "type": "tip", "provider": "twitch",
            "createdAt": "2025-03-07T18:00:18.2Z", "updatedAt": "2025-03-07T18:00:19.2Z", "sessionEventsCount": 6,
            "data": {"amount": 30.0, "avatar": "a", "currency": "USD", "displayName": "U", "message": "", "username": "u"}})
    }

    /// Keys are remembered by destinations for longer than a version of the relay lives.
    #[test]
    fn the_format_stays() {
        assert_eq!(&*of("01J", "t", "channel.follow", "r", b"{}"), "01J-37eea4f1d8c8d8d2");
        assert_eq!(&*of("", "", "channel.follow", "r", b"{}"), "");
        let told = [
            of("", "t", "channel.follow", "r", b"{}").into(),
            key("01J", "channel.tips", &tip("allowed")),
            key("01J", "channel.activities", &activity()),
        ];
        let expected = [
            "t-a8be603c085bf1e6",
            "tip-bbc1fc186d0a1d809e12a964-ed11cbfb1133cf47",
            "activity-59905a-d8c10a7890c68c2e",
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn messages_with_one_id_and_other_content_have_different_keys() {
        let mut keys = HashSet::new();
        for topic in ["channel.tips", "channel.tips.moderation"] {
            for approved in ["pending", "allowed", "denied"] {
                assert!(keys.insert(key("01J", topic, &tip(approved))), "{topic} {approved}");
            }
        }
        let mut with = |name: &str, value: Value| {
            let mut changed = activity();
            *changed.pointer_mut(name).unwrap() = value;
            assert!(keys.insert(key("01J", "channel.activities", &changed)), "{name}");
        };
        with("/type", json!("tip"));
        with("/type", json!("cheer"));
        with("/data/amount", json!(31));
        with("/data/message", json!("hi"));
        with("/data/username", json!("v"));
        with("/_id", json!("59905b"));
        with("/channel", json!("d"));
        let mut flagged = activity();
        flagged["flagged"] = true.into();
        assert!(keys.insert(key("01J", "channel.activities", &flagged)));
    }

    #[test]
    fn an_item_of_the_history_has_the_key_of_the_live_message() {
        let live = key("01JNRW7S0R41NKFVP2FM77TNFR", "channel.activities", &activity());
        let item = r#" { "type" : "tip", "data":{"tier":"1000","username":"\u0075","message":null,"currency":"USD","amount":"30"},
            "flagged":false, "provider":"twitch","_id":"59905a","channel":"c" } "#;
        assert_eq!(
            &*of("activity-59905a", "other", "channel.activities", "r", item.as_bytes()),
            live
        );
        // The room of the message is as good as the channel in it.
        let bare = br#"{"_id":"a"}"#;
        let full = br#"{"_id":"a","channel":"r"}"#;
        let of = |data: &[u8]| of("x", "", "channel.tips", "r", data);
        assert_eq!(of(bare), of(full));
    }

    #[test]
    fn a_mock_alert_that_is_sent_again_has_another_key() {
        let mut mock = activity();
        mock["isMock"] = true.into();
        let of = |id: &str| key(id, "channel.activities", &mock);
        assert_ne!(of("01A"), of("01B"));
        assert!(of("01A").starts_with("01A-"));
    }

    #[test]
    fn a_key_may_stand_in_any_header() {
        let long = "z".repeat(10_000);
        for id in ["a b", "é", "a\r\nb", "a\u{7f}", &long] {
            let data = json!({"_id": id, "type": "tip"});
            for key in [key(id, "t", &data), key("01J", "channel.activities", &data)] {
                assert!(
                    key.len() < 100 && key.bytes().all(|byte| byte.is_ascii_graphic()),
                    "{key}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn messages_that_differ_have_keys_that_differ(
            ids in prop::collection::vec("[ab]{1,2}", 2), topics in prop::collection::vec("t|u|channel.tips", 2),
            rooms in prop::collection::vec("r?", 2), data in prop::collection::vec("[{}x]{0,3}", 2),
        ) {
            let of = |n: usize| of(&ids[n], "", &topics[n], &rooms[n], data[n].as_bytes());
            let same = ids[0] == ids[1] && topics[0] == topics[1] && rooms[0] == rooms[1] && data[0] == data[1];
            prop_assert_eq!(of(0) == of(1), same);
        }

        #[test]
        fn order_and_space_of_the_fields_do_not_count(
            fields in prop::collection::btree_map("[a-z]{1,4}", any::<i32>(), 0..6), pretty: bool, back: bool,
        ) {
            let text = |pretty: bool, back: bool| {
                let mut fields: Vec<_> = fields.iter().collect::<BTreeMap<_, _>>().into_iter()
                    .map(|(name, value)| format!("\"{name}\":{value}"))
                    .chain(["\"_id\":\"a1\"".to_owned(), "\"type\":\"tip\"".to_owned()]).collect();
                if back {
                    fields.reverse();
                }
                format!("{{{}}}", fields.join(if pretty { " ,\n " } else { "," }))
            };
            let of = |text: String| of("", "", "channel.activities", "r", text.as_bytes());
            prop_assert_eq!(of(text(false, false)), of(text(pretty, back)));
        }
    }
}
