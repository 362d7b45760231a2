//! The fast path: the usual message, found in one pass over its text.
//!
//! Nearly every frame is a message whose envelope is made of plain strings. Such a one is walked once, and with
//! its envelope comes what makes its key, and whether a personal field may be in it: a walk for each of them was
//! measured to cost a fifth more processor time for an event that goes to NATS. Everything else (another type,
//! an escape in the envelope, `null`, a field twice, line breaks, whatever is not JSON) is left to the general
//! reader. What is found here is what the general reader would find: the payload is checked to its last bracket.

use super::{Envelope, range_of};
use crate::base::{event::key::Members, json::scan::Scanner};

/// The fields as they stand in the text, strings without their quotes.
#[derive(Default)]
struct Fields<'a> {
    id: Option<&'a str>,
    ts: Option<&'a str>,
    kind: Option<&'a str>,
    topic: Option<&'a str>,
    room: Option<&'a str>,
    data: Option<&'a str>,
}

/// The names of the envelope's fields.
const FIELDS: [&str; 8] = ["id", "ts", "type", "topic", "room", "data", "nonce", "error"];

/// A message as it usually comes. `None`: let the general reader look.
pub(super) fn message(text: &str) -> Option<Envelope<'_>> {
    // Nobody breaks lines in a frame, and in a string a control character is no JSON.
    if text.bytes().fold(u8::MAX, u8::min) < b' ' {
        return None;
    }
    let mut scan = Scanner::new(text);
    let mut fields = Fields::default();
    let (mut members, mut is_odd) = (Members::default(), false);
    scan.members(|scan, name| {
        let (field, value) = match name {
            "id" => (&mut fields.id, scan.plain_string()?),
            "ts" => (&mut fields.ts, scan.plain_string()?),
            "type" => (&mut fields.kind, scan.plain_string()?),
            "topic" => (&mut fields.topic, scan.plain_string()?),
            "room" => (&mut fields.room, scan.plain_string()?),
            "data" => {
                let walked = scan.over(|scan| members.data(scan));
                is_odd |= walked.is_none();
                (&mut fields.data, walked.or_else(|| scan.value())?)
            }
            // These belong to another type.
            "nonce" | "error" => return None,
            // The general reader takes these in any case of letters.
            _ if FIELDS.iter().any(|field| name.eq_ignore_ascii_case(field)) => return None,
            _ => return members.other(name, scan),
        };
        field.replace(value).is_none().then_some(())
    })?;
    if scan.peek().is_some() || fields.kind? != "message" {
        return None;
    }
    Some(Envelope {
        id: fields.id.unwrap_or_default().into(),
        ts: fields.ts.unwrap_or_default().into(),
        topic: fields.topic.filter(|topic| !topic.is_empty())?.into(),
        room: fields.room.unwrap_or_default().into(),
        data: fields.data.filter(|data| *data != "null").map_or(0..0, |data| range_of(text, data)),
        members: (!is_odd).then_some(members),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::astro::wire::{ServerFrame, read_any};

    /// What both readers say of a text; that they agree is checked. `None`: it is not usual.
    fn usual(text: &str) -> Option<&str> {
        let found = message(text)?;
        let data = text.get(found.data.clone());
        let ServerFrame::Message(general) = read_any(text).unwrap() else { panic!("{text}") };
        assert_eq!(general.key(text), found.key(text), "{text}");
        assert_eq!(general, Envelope { members: None, ..found }, "{text}");
        data
    }

    fn with(data: &str) -> String {
        format!(r#"{{"id":"01J","ts":"T","type":"message","topic":"t","room":"r","data":{data}}}"#)
    }

    #[test]
    fn every_value_is_found_to_its_end() {
        for data in [
            "{}",
            "[]",
            "0",
            "-0.5e+10",
            "12",
            "1E9",
            "true",
            "false",
            r#""""#,
            r#"{"a":[1,{"b":[]}],"c":{}}"#,
            "[ 1 , [ ] , { } ]",
            r#"{ "a"  :  1 }"#,
            r#""a \" \\ \/ \b\f\n\r\t \u00e9 \ud800 \\""#,
            r#""a text that is longer than eight bytes, with é and 🎉 in it""#,
        ] {
            assert_eq!(usual(&with(data)), Some(data));
            let nested = format!("[{data},{data}]");
            assert_eq!(usual(&with(&nested)), Some(&*nested));
        }
        assert_eq!(usual(&with("null")), Some(""));
        let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(usual(&with(&deep(63))).is_some());
        assert!(usual(&with(&deep(64))).is_none());
        assert!(read_any(&with(&deep(64))).is_ok(), "the general reader has it");
    }

    #[test]
    fn invalid_json_is_left_to_the_general_reader() {
        for data in [
            "", "{", "[", "}", "]", "[1,]", "[,1]", "{,}", "{1:2}", r#"{"a"}"#, r#"{"a":}"#,
            r#"{"a":1,}"#, "[1}", r#"{"a":1]"#, "01", "-", "1.", ".5", "1e", "+1", "nul", "truex",
            "NaN", "'a'", r#""a"#, r#""\x""#, r#""\u12g4""#, "\"a\nb\"", "\"\u{1f}\"", "1 2",
            "[1 2]", r#"{"a" 1}"#, "\u{a0}1",
        ] {
            let text = with(data);
            assert!(message(&text).is_none() && read_any(&text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_odd_envelope_is_left_to_the_general_reader() {
        for text in [
            r#"{"type":"response","nonce":"n","data":{}}"#,
            r#"{"type":"message","topic":"t","nonce":""}"#,
            r#"{"type":"message","topic":"t","error":null}"#,
            r#"{"type":"MESSAGE","topic":"t"}"#,
            r#"{"type":"message","topic":"a\u002eb"}"#,
            r#"{"type":"message","topic":"t","room":null}"#,
            r#"{"type":"message","topic":"t","\u0072oom":"r"}"#,
            "{\"type\":\"message\",\n\"topic\":\"t\"}",
        ] {
            assert!(message(text).is_none() && read_any(text).is_ok(), "{text}");
        }
        for text in [
            "",
            "{}",
            "[]",
            "3",
            "{\"type\":\"message\"}",
            r#"{"type":"message","topic":""}"#,
            r#"{"type":"message","topic":"t"} {}"#,
            r#"{"type":"message","topic":"t","topic":"t"}"#,
            r#"{"type":"message","topic":"t","data":1,"data":1}"#,
            r#"{"type":"message","topic":"t","id":7}"#,
            r#"{"type":"message","topic":"t",}"#,
            r#"{"type":"message","topic":"t","Ts":"T"}"#,
        ] {
            assert!(message(text).is_none(), "{text}");
        }
        let more = r#" { "data" : {} , "more" : [1] , "type":"message","topic":"t" } "#;
        assert_eq!(usual(more), Some("{}"));
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..5)
                    .prop_map(|map| json!(map)),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn any_data_is_found(data in value(), pretty in any::<bool>()) {
            let data = if pretty { format!("{data:#}").replace('\n', " ") } else { data.to_string() };
            let expected = if data == "null" { "" } else { &*data };
            let text = with(&data);
            prop_assert_eq!(usual(&text), Some(expected));
        }

        #[test]
        fn damaged_text_is_read_as_by_the_general_reader(
            data in value(),
            damages in prop::collection::vec((any::<prop::sample::Index>(), "[\\PC\n]|[{}\\[\\],:\"\\\\0-9eun ]{0,2}"), 1..4),
        ) {
            let mut text = with(&data.to_string());
            for (at, put) in damages {
                let places: Vec<_> = text.char_indices().map(|(place, _)| place).collect();
                let at = *at.get(&places);
                let end = at + text[at..].chars().next().map_or(0, char::len_utf8);
                text.replace_range(at..end, &put);
            }
            usual(&text);
        }
    }
}
