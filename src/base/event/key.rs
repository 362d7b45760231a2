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

use std::borrow::Cow;

use serde_json::{Number, Value};
use xxhash_rust::xxh3::xxh3_64_with_seed as xxh3;

use super::PERSONAL_NAMES;
use crate::base::json::{self, scan::Scanner};

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
    of_walked(id, ts, topic, room, data, None)
}

/// The same, of a message whose members were walked.
pub(crate) fn of_walked(
    id: &str,
    ts: &str,
    topic: &str,
    room: &str,
    data: &[u8],
    members: Option<&Members<'_>>,
) -> Box<str> {
    if let Some((_, word)) = TOPICS.iter().find(|(of, _)| *of == topic) {
        let happened = |members: &Members<'_>| members.happened(topic, room);
        let happened = match members {
            Some(members) => happened(members),
            None => with_members(data, happened).flatten(),
        };
        if let Some((id, state)) = happened {
            return joined(&[word, "-", &id, "-"], state);
        }
    }
    let digest = data_digest(topic, room, data);
    match (id, ts) {
        ("", "") => "".into(),
        ("", ts) => joined(&[&plain(ts), "-"], xxh3(ts.as_bytes(), digest)),
        (id, _) => joined(&[&plain(id), "-"], digest),
    }
}

fn joined(parts: &[&str], digest: u64) -> Box<str> {
    const DIGITS: usize = 16;
    let mut key =
        String::with_capacity(parts.iter().map(|part| part.len()).sum::<usize>() + DIGITS);
    key.extend(parts.iter().copied());
    let nibbles = (0..DIGITS).rev().map(|place| digest >> (4 * place) & 0xf);
    key.extend(nibbles.filter_map(|nibble| char::from_digit(u32::try_from(nibble).ok()?, 16)));
    key.into()
}

/// The vendor's own id of what a message of this topic tells; `None`: it has none.
pub(crate) fn own_id(topic: &str, data: &[u8]) -> Option<String> {
    TOPICS.iter().find(|(of, _)| *of == topic)?;
    with_members(data, |members| members.id().map(Cow::into_owned)).flatten()
}

/// The channel that the data of a message names, whose members were walked or not.
pub(crate) fn channel_of(data: &[u8], members: Option<&Members<'_>>) -> Option<String> {
    let channel = |members: &Members<'_>| members.channel().map(Cow::into_owned);
    match members {
        Some(members) => channel(members),
        None => with_members(data, channel).flatten(),
    }
}

fn data_digest(topic: &str, room: &str, data: &[u8]) -> u64 {
    [topic.as_bytes(), room.as_bytes(), data].into_iter().fold(0, |seed, part| xxh3(part, seed))
}

/// Members that are looked for in an object, and objects in it.
struct Node {
    names: &'static [&'static str],
    /// Where the values of the names lie in [`Members`].
    at: usize,
    inner: &'static [(&'static str, &'static Node)],
}

/// The members of `data`; behind [`OTHERS`] come those that count.
const NAMES: [&str; 10] = [
    "_id", "activityId", "isMock", "channel", // OTHERS
    STATE[0], STATE[1], STATE[2], STATE[3], STATE[4], STATE[5],
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

/// What was found in one walk over a message: of its data what makes the key, and whether a name in it is that of
/// a personal field.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Members<'a> {
    /// In the order in which they count; each as it is written, or empty.
    values: [&'a str; ALL],
    /// Whether a member may have the name of a personal field, at whatever depth.
    pub(crate) may_have_personal_fields: bool,
}

impl Default for Members<'_> {
    fn default() -> Self {
        Self { values: [""; ALL], may_have_personal_fields: false }
    }
}

impl<'a> Members<'a> {
    /// Walks over the data of a message. `None`: it is too odd.
    pub(crate) fn data(&mut self, scan: &mut Scanner<'a>) -> Option<()> {
        self.node(scan, &DATA)
    }

    /// Walks over what does not count.
    pub(crate) fn other(&mut self, name: &str, scan: &mut Scanner<'a>) -> Option<()> {
        self.may_have_personal_fields |= is_personal(name);
        self.value(scan).map(drop)
    }

    fn value(&mut self, scan: &mut Scanner<'a>) -> Option<&'a str> {
        scan.value_with_names(|name, is_plain| {
            self.may_have_personal_fields |= !is_plain || is_personal(name);
        })
    }

    /// Notes the members of a node; of one that is there twice the last. What is no object has none.
    fn node(&mut self, scan: &mut Scanner<'a>, node: &Node) -> Option<()> {
        if scan.peek()? != b'{' {
            return self.value(scan).map(drop);
        }
        scan.members(|scan, name| {
            if let Some(at) = node.names.iter().position(|known| *known == name) {
                *self.values.get_mut(node.at + at)? = self.value(scan)?;
                Some(())
            } else if let Some((_, inner)) = node.inner.iter().find(|(known, _)| *known == name) {
                self.forget(inner);
                self.node(scan, inner)
            } else {
                self.other(name, scan)
            }
        })
    }

    fn forget(&mut self, node: &Node) {
        self.values.iter_mut().skip(node.at).take(node.names.len()).for_each(|value| *value = "");
        node.inner.iter().for_each(|(_, inner)| self.forget(inner));
    }

    fn get(&self, name: &str) -> &'a str {
        let at = NAMES.iter().position(|known| *known == name);
        at.and_then(|at| self.values.get(at)).copied().unwrap_or_default()
    }

    fn id(&self) -> Option<Cow<'a, str>> {
        text(self.get("_id")).or_else(|| text(self.get("activityId")))
    }

    fn channel(&self) -> Option<Cow<'a, str>> {
        string(self.get("channel"))
    }

    /// The vendor's id, and how it stands.
    fn happened(&self, topic: &str, room: &str) -> Option<(Box<str>, u64)> {
        let id = self.id()?;
        if matches!(text(self.get("isMock")).as_deref(), Some("true" | "1")) {
            return None;
        }
        let channel = self.channel().unwrap_or(room.into());
        let mut state =
            [topic, &channel].into_iter().fold(0, |seed, part| xxh3(part.as_bytes(), seed));
        let about = std::iter::repeat_n(ABOUT, 4).flatten();
        for (name, value) in STATE.into_iter().chain(about).zip(self.values.iter().skip(OTHERS)) {
            if let Some(text) = text(value) {
                state = xxh3(text.as_bytes(), xxh3(name.as_bytes(), state));
            }
        }
        Some((plain(&id).into(), state))
    }
}

/// Whether a member has the name of a personal field.
fn is_personal(name: &str) -> bool {
    PERSONAL_NAMES.iter().any(|personal| personal.eq_ignore_ascii_case(name))
}

/// Looks at the members of the data of a message. `None`: it is no JSON.
fn with_members<T>(data: &[u8], look: impl FnOnce(&Members<'_>) -> T) -> Option<T> {
    let mut members = Members::default();
    if let Ok(text) = std::str::from_utf8(data) {
        let mut scan = Scanner::new(text);
        if members.data(&mut scan).is_some() && scan.peek().is_none() {
            return Some(look(&members));
        }
    }
    // An escape in a name, or what a strict reader does not take.
    let mut texts = [const { String::new() }; ALL];
    write_down(&mut texts, &json::value(data)?, &DATA);
    Some(look(&Members {
        values: texts.each_ref().map(String::as_str),
        may_have_personal_fields: true,
    }))
}

fn write_down(texts: &mut [String; ALL], value: &Value, node: &Node) {
    for (text, name) in texts.iter_mut().skip(node.at).zip(node.names) {
        *text = value.get(name).map(Value::to_string).unwrap_or_default();
    }
    for (name, inner) in node.inner {
        write_down(texts, value.get(name).unwrap_or(&Value::Null), inner);
    }
}

/// A value as one text, whatever type it was sent as: `5`, `5.0` and `"5"` are the same, and so are no value,
/// `null`, `false` and an empty text. A list or an object is none.
fn text(value: &str) -> Option<Cow<'_, str>> {
    match value.as_bytes().first()? {
        b'"' => string(value).filter(|text| !text.is_empty()).map(as_number),
        b't' => Some(value.into()),
        b'-' | b'0'..=b'9' => Some(match serde_json::from_str::<Number>(value) {
            Ok(number) => match number.as_f64().filter(|_| number.is_f64()) {
                Some(float) => float.to_string().into(),
                // Whole numbers keep all their digits.
                None => number.to_string().into(),
            },
            // One that no float holds.
            Err(_) => value.into(),
        }),
        _ => None,
    }
}

/// A number that was sent as text, where that is exact: a float holds 15 digits.
fn as_number(text: Cow<'_, str>) -> Cow<'_, str> {
    let number = if text.len() <= 15 { text.parse::<f64>().ok() } else { None };
    match number.filter(|number| number.is_finite()) {
        Some(number) => number.to_string().into(),
        None => text,
    }
}

/// What a string says; `None`: the value is none.
fn string(value: &str) -> Option<Cow<'_, str>> {
    let inner = value.strip_prefix('"')?.strip_suffix('"')?;
    if !inner.contains('\\') {
        return Some(inner.into());
    }
    match json::value(value.as_bytes()) {
        Some(Value::String(text)) => Some(text.into()),
        _ => None,
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
            assert_eq!(super::text(&format!("{text:?}")).unwrap(), same);
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

    fn texts(members: &Members<'_>) -> Vec<Option<String>> {
        members.values.iter().map(|value| text(value).map(Cow::into_owned)).collect()
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(|cents| Value::from(f64::from(cents) / 100.0)),
            any::<i64>().prop_map(Value::from),
            "[a\"5.0 é]{0,4}".prop_map(Value::from),
        ];
        let name = prop_oneof![
            proptest::sample::select(["data", "donation", "user", "redeemer"].as_slice()),
            proptest::sample::select(NAMES.as_slice()),
            proptest::sample::select(ABOUT.as_slice()),
            Just("other"),
        ];
        leaf.prop_recursive(4, 48, 8, move |inner| {
            prop_oneof![
                1 => prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                5 => prop::collection::btree_map(name.clone().prop_map(str::to_owned), inner, 0..8)
                    .prop_map(|map| json!(map)),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_walk_finds_what_a_tree_has(first in any_value(), second in any_value(), pretty: bool) {
            // Members that are there twice too.
            let written = |value: &Value| if pretty { format!("{value:#}") } else { value.to_string() };
            let members = |text: String| text.strip_prefix('{').and_then(|text| text.strip_suffix('}')).map(str::to_owned);
            let twice = match (members(written(&first)), members(written(&second))) {
                (Some(first), Some(second)) if first.contains(':') && second.contains(':') => format!("{{{first},{second}}}"),
                _ => written(&first),
            };
            let mut tree = [const { String::new() }; ALL];
            write_down(&mut tree, &json::value(twice.as_bytes()).unwrap(), &DATA);
            let tree = Members { values: tree.each_ref().map(String::as_str), may_have_personal_fields: false };
            let mut walked = Members::default();
            prop_assert!(walked.data(&mut Scanner::new(&twice)).is_some(), "{}", twice);
            prop_assert_eq!(texts(&walked), texts(&tree), "{}", twice);
        }

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
