//! The deduplication key: what tells a repeat of a message from another message.
//!
//! It is a function of the message alone, so it is the same after a restart, on every member of a
//! cluster, and for a message that comes on two connections:
//!
//! | message | key |
//! |---|---|
//! | an activity | `activity-<_id>-<digest>`, over its channel, type and state |
//! | a tip, or its moderation | `tip-<_id>-<digest>`, over topic, channel and state |
//! | a redemption of the store | `redemption-<_id>-<digest>`, over the same |
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

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use xxhash_rust::xxh3::xxh3_64_with_seed as xxh3;

use crate::base::json;

/// The topics of what has an id of its own, and the word that its keys begin with.
const TOPICS: [(&str, &str); 4] = [
    ("channel.activities", "activity"),
    ("channel.tips", "tip"),
    ("channel.tips.moderation", "tip"),
    ("channel.loyalty.redemptions", "redemption"),
];

/// Members of `data` that say how an activity or a tip stands.
const STATE: [&str; 6] = ["type", "approved", "status", "flagged", "deleted", "completed"];

/// Members that say what happened: of `data.data` (an activity), of `data.donation` (a tip) and of its
/// `user`. The history may lack the others, or have more.
const ABOUT: [&str; 7] =
    ["username", "amount", "currency", "message", "level", "quantity", "count"];

/// The longest id that stands in a key as it is. A ULID has 26 characters.
const LONGEST: usize = 64;

/// The key of a message with these fields; empty: nothing tells a repeat of it.
pub(crate) fn of(id: &str, ts: &str, topic: &str, room: &str, data: &[u8]) -> Box<str> {
    if let Some((_, word)) = TOPICS.iter().find(|(of, _)| *of == topic)
        && let Some((id, state)) = happened(topic, room, data)
    {
        return format!("{word}-{id}-{state:016x}").into();
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
    Found::in_text(data)?.id().map(Cow::into_owned)
}

fn data_digest(topic: &str, room: &str, data: &[u8]) -> u64 {
    [topic.as_bytes(), room.as_bytes(), data].into_iter().fold(0, |seed, part| xxh3(part, seed))
}

/// The vendor's id, and how it stands.
fn happened(topic: &str, room: &str, data: &[u8]) -> Option<(Box<str>, u64)> {
    let found = Found::in_text(data)?;
    let id = found.id()?;
    if matches!(found.get("isMock").text().as_deref(), Some("true" | "1")) {
        return None;
    }
    let channel = match found.get("channel") {
        Scalar::Text(channel) => channel,
        _ => room,
    };
    let mut state = [topic, channel].into_iter().fold(0, |seed, part| xxh3(part.as_bytes(), seed));
    for (name, value) in found.counting() {
        if let Some(text) = value.text() {
            state = xxh3(text.as_bytes(), xxh3(name.as_bytes(), state));
        }
    }
    Some((plain(&id).into(), state))
}

/// Members that are looked for in an object, and objects in it.
struct Node {
    names: &'static [&'static str],
    /// Where the values of the names lie in [`Found`].
    at: usize,
    inner: &'static [(&'static str, &'static Node)],
}

/// The members of `data`; behind [`OTHERS`] come those that count.
const NAMES: [&str; 10] = [
    "_id",
    "activityId",
    "isMock",
    "channel", // OTHERS
    STATE[0],
    STATE[1],
    STATE[2],
    STATE[3],
    STATE[4],
    STATE[5],
];
const OTHERS: usize = NAMES.len() - STATE.len();

static DATA: Node = Node {
    names: &NAMES,
    at: 0,
    inner: &[("data", &ACTIVITY), ("donation", &TIP), ("redeemer", &REDEEMER)],
};
static ACTIVITY: Node = Node { names: &ABOUT, at: NAMES.len(), inner: &[] };
static TIP: Node =
    Node { names: &ABOUT, at: ACTIVITY.at + ABOUT.len(), inner: &[("user", &DONOR)] };
static DONOR: Node = Node { names: &ABOUT, at: TIP.at + ABOUT.len(), inner: &[] };
static REDEEMER: Node = Node { names: &ABOUT, at: DONOR.at + ABOUT.len(), inner: &[] };
const ALL: usize = REDEEMER.at + ABOUT.len();

/// What was found in the data of an activity or a tip, in the order in which it counts.
///
/// Each live message is looked through before anything else, so no tree is made of it.
struct Found<'a> {
    values: [Scalar<'a>; ALL],
    /// A bit for each value and, above them, for each [`Node`] that was found.
    seen: u64,
}

impl<'a> Found<'a> {
    /// `None`: the text is no JSON.
    fn in_text(text: &'a [u8]) -> Option<Self> {
        let mut found = Self { values: [const { Scalar::Nothing }; ALL], seen: 0 };
        if let Ok(text) = std::str::from_utf8(text) {
            let mut reader = serde_json::Deserializer::from_str(text);
            let read = Look { found: &mut found, node: &DATA }.deserialize(&mut reader);
            if read.and_then(|()| reader.end()).is_ok() {
                return Some(found);
            }
        }
        // What a strict reader does not take, or a member that is there twice.
        let mut found = Self { values: [const { Scalar::Nothing }; ALL], seen: 0 };
        let value = json::value(text)?;
        Look { found: &mut found, node: &DATA }.deserialize(value).ok()?;
        Some(found)
    }

    fn get(&self, name: &str) -> &Scalar<'a> {
        let at = NAMES.iter().position(|known| *known == name);
        at.and_then(|at| self.values.get(at)).unwrap_or(&Scalar::Nothing)
    }

    fn id(&self) -> Option<Cow<'_, str>> {
        self.get("_id").text().or_else(|| self.get("activityId").text())
    }

    /// What counts, each with its name.
    fn counting(&self) -> impl Iterator<Item = (&'static str, &Scalar<'a>)> {
        let about = std::iter::repeat_n(ABOUT, 4).flatten();
        STATE.into_iter().chain(about).zip(self.values.iter().skip(OTHERS))
    }

    /// Notes that this was found; `false`: it was found before.
    fn first(&mut self, bit: usize) -> bool {
        let before = self.seen;
        self.seen |= 1 << bit;
        self.seen != before
    }
}

/// A value that is not looked into.
enum Scalar<'a> {
    /// None, `null`, `false`, a list or an object.
    Nothing,
    True,
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(Cow<'a, str>),
}

impl Scalar<'_> {
    /// A value as one text, whatever type it was sent as: `5`, `5.0` and `"5"` are the same, and so are no
    /// value, `null`, `false` and an empty text.
    fn text(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Self::Nothing => return None,
            Self::True => "true".into(),
            // Whole numbers keep all their digits.
            Self::Unsigned(number) => number.to_string().into(),
            Self::Signed(number) => number.to_string().into(),
            Self::Float(number) => number.to_string().into(),
            Self::Text(text) if text.is_empty() => return None,
            Self::Text(text) => match text.parse::<f64>() {
                Ok(float) if text.len() <= 15 && float.is_finite() => float.to_string().into(),
                _ => (**text).into(),
            },
        })
    }
}

/// Looks for the members of a node in an object; what is none has none.
struct Look<'f, 'a> {
    found: &'f mut Found<'a>,
    node: &'static Node,
}

impl<'de> DeserializeSeed<'de> for Look<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Look<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { found, node } = self;
        while let Some(Name(name)) = map.next_key()? {
            let twice = || A::Error::custom("a member that is there twice");
            if let Some(at) = node.names.iter().position(|known| *known == name) {
                let at = node.at + at;
                let value = map.next_value()?;
                found.first(at).then_some(()).ok_or_else(twice)?;
                if let Some(place) = found.values.get_mut(at) {
                    *place = value;
                }
            } else if let Some((_, inner)) = node.inner.iter().find(|(known, _)| *known == name) {
                // Each node has values, so their first place is a number of its own.
                found.first(ALL + inner.at / ABOUT.len()).then_some(()).ok_or_else(twice)?;
                map.next_value_seed(Look { found, node: inner })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<(), A::Error> {
        IgnoredAny.visit_seq(list).map(drop)
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
}

/// The name of a member, without a copy where it has no escapes.
struct Name<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Scalar::deserialize(deserializer)? {
            Scalar::Text(name) => Ok(Self(name)),
            _ => Ok(Self(Cow::Borrowed(""))),
        }
    }
}

impl<'de> Deserialize<'de> for Scalar<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Scalar<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }

            fn visit_unit<E>(self) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Nothing)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Scalar<'de>, E> {
                Ok(if value { Scalar::True } else { Scalar::Nothing })
            }

            fn visit_u64<E>(self, value: u64) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Unsigned(value))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Signed(value))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Float(value))
            }

            fn visit_str<E>(self, value: &str) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Text(value.to_owned().into()))
            }

            fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Text(value.into()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Scalar<'de>, A::Error> {
                IgnoredAny.visit_map(map).map(|_| Scalar::Nothing)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Scalar<'de>, A::Error> {
                IgnoredAny.visit_seq(list).map(|_| Scalar::Nothing)
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// An id as it may stand in a header, a property and a key: visible ASCII of a bounded length; anything
/// else is its digest.
fn plain(id: &str) -> Cow<'_, str> {
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
    use serde_json::{Value, json};

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
    fn the_vendors_own_id_is_read_where_the_topic_has_one() {
        let of = |topic, data: &str| own_id(topic, data.as_bytes());
        let tip = tip("allowed").to_string();
        assert_eq!(of("channel.tips", &tip).unwrap(), "bbc1fc186d0a1d809e12a964");
        assert_eq!(of("channel.activities", r#"{"activityId":"a"}"#).unwrap(), "a");
        assert_eq!(of("channel.follow", &tip), None);
        assert_eq!(of("channel.tips", "{}"), None);
    }

    #[test]
    fn a_number_as_text_is_the_number_where_that_is_exact() {
        for (text, same) in [
            ("5.0", "5"),
            ("1234567890123.0", "1234567890123"),
            ("12345678901234.0", "12345678901234.0"),
            ("1e999", "1e999"),
            ("nan", "nan"),
        ] {
            assert_eq!(Scalar::Text(text.into()).text().unwrap(), same);
        }
    }

    #[test]
    fn an_id_of_64_characters_stands_in_a_key_as_it_is() {
        let (longest, longer) = ("z".repeat(LONGEST), "z".repeat(LONGEST + 1));
        assert_eq!(plain(&longest), longest);
        assert!(plain(&longer).starts_with('x'));
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

    /// Of a member that is there twice the last counts, and what is of another shape than it should be has
    /// nothing to tell.
    #[test]
    fn odd_shapes_have_a_key_too() {
        let of = |data: &str| of("01J", "", "channel.activities", "r", data.as_bytes());
        for (odd, plain) in [
            (r#"{"_id":"b","_id":"a","data":{"username":"x"},"data":{}}"#, r#"{"_id":"a"}"#),
            (r#"{"data":["u",5],"_id":"a"}"#, r#"{"_id":"a"}"#),
            (r#"{"_id":"a","data":"u","donation":7,"type":[1,{"a":2}]}"#, r#"{"_id":"a"}"#),
            (r#"{"_id":"a","status":{"a":1},"donation":{"user":null}}"#, r#"{"_id":"a"}"#),
            (r#"{"_id":null,"activityId":"a","isMock":false}"#, r#"{"_id":"a"}"#),
            (
                r#"{"_id":"\u0061","\u0074ype":"t","approved":-5}"#,
                r#"{"_id":"a","type":"t","approved":"-5.0"}"#,
            ),
            (r#"{"_id":"a","data":{"amount":1e3}}"#, r#"{"_id":"a","data":{"amount":"1000"}}"#),
        ] {
            assert_eq!(of(odd), of(plain), "{odd}");
            assert!(of(odd).starts_with("activity-a-"), "{odd}");
        }
        let lone = of(r#"{"_id":"a","data":{"username":"\ud800"}}"#);
        assert_eq!(lone, of("{\"_id\":\"a\",\"data\":{\"username\":\"\u{fffd}\"}}"));
        for none in ["[]", r#"["a"]"#, "7", "null", "", r#"{"a":1}"#, r#"{"_id":"a""#] {
            assert!(of(none).starts_with("01J-"), "{none}");
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
