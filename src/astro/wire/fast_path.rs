//! The fast path: the usual message, found in one pass over its text.
//!
//! Nearly every frame is a message whose envelope is made of plain strings. Such a one is read here at half
//! of what the general reader takes, which is 14 % of the relay's processor time per event. Everything else
//! (another type, an escape in the envelope, `null`, a field twice, line breaks, whatever is not JSON) is
//! left to the general reader. What is found here is what the general reader would find: the payload is
//! checked to its last bracket.

use memchr::memchr2;

use super::{Envelope, range_of};

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
    let mut scan = Scanner { text, at: 0 };
    let mut fields = Fields::default();
    scan.expect(b'{')?;
    loop {
        let key = scan.simple_string()?;
        scan.expect(b':')?;
        let mut other = None;
        let (field, value) = match key {
            "id" => (&mut fields.id, scan.simple_string()?),
            "ts" => (&mut fields.ts, scan.simple_string()?),
            "type" => (&mut fields.kind, scan.simple_string()?),
            "topic" => (&mut fields.topic, scan.simple_string()?),
            "room" => (&mut fields.room, scan.simple_string()?),
            "data" => (&mut fields.data, scan.value()?),
            // These belong to another type.
            "nonce" | "error" => return None,
            // The general reader takes these in any case of letters.
            _ if FIELDS.iter().any(|field| key.eq_ignore_ascii_case(field)) => return None,
            _ => (&mut other, scan.value()?),
        };
        if field.replace(value).is_some() {
            return None;
        }
        match scan.next()? {
            b',' => {}
            b'}' => break,
            _ => return None,
        }
    }
    if scan.skip_space().is_some() || fields.kind? != "message" {
        return None;
    }
    Some(Envelope {
        id: fields.id.unwrap_or_default().into(),
        ts: fields.ts.unwrap_or_default().into(),
        topic: fields.topic.filter(|topic| !topic.is_empty())?.into(),
        room: fields.room.unwrap_or_default().into(),
        data: fields.data.filter(|data| *data != "null").map_or(0..0, |data| range_of(text, data)),
    })
}

/// A place in a text that may be JSON. Whatever finds that it is not answers `None`.
struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn rest(&self) -> Option<&'a [u8]> {
        self.text.as_bytes().get(self.at..)
    }

    /// The next byte that is no white space; stays before it.
    fn skip_space(&mut self) -> Option<u8> {
        loop {
            match self.peek()? {
                b' ' => self.at += 1,
                byte => return Some(byte),
            }
        }
    }

    /// The same, and goes behind it.
    fn next(&mut self) -> Option<u8> {
        let byte = self.skip_space()?;
        self.at += 1;
        Some(byte)
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.next()? == byte).then_some(())
    }

    /// A string without escapes: what lies between its quotes.
    fn simple_string(&mut self) -> Option<&'a str> {
        self.expect(b'"')?;
        let from = self.at;
        if self.skip_to_quote()? == b'"' { self.text.get(from..self.at - 1) } else { None }
    }

    /// Goes behind the next quote or backslash, and answers which it is.
    fn skip_to_quote(&mut self) -> Option<u8> {
        let rest = self.rest()?;
        let before = memchr2(b'"', b'\\', rest)?;
        self.at += before + 1;
        rest.get(before).copied()
    }

    /// Behind the string whose first quote was passed.
    fn string(&mut self) -> Option<()> {
        loop {
            match self.skip_to_quote()? {
                b'"' => return Some(()),
                _ => self.escape()?,
            }
        }
    }

    fn escape(&mut self) -> Option<()> {
        let escape = self.peek()?;
        self.at += 1;
        match escape {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Some(()),
            b'u' => {
                let hex = self.rest()?.get(..4)?;
                self.at += 4;
                hex.iter().all(u8::is_ascii_hexdigit).then_some(())
            }
            _ => None,
        }
    }

    fn literal(&mut self, literal: &[u8]) -> Option<()> {
        self.rest()?.starts_with(literal).then(|| self.at += literal.len())
    }

    fn number(&mut self) -> Option<()> {
        if self.peek()? == b'-' {
            self.at += 1;
        }
        // No zero before another digit.
        if self.peek()? == b'0' {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Some(())
    }

    /// One digit at least.
    fn digits(&mut self) -> Option<()> {
        let from = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        (self.at > from).then_some(())
    }

    /// A key, and what stands between it and its value.
    fn key(&mut self) -> Option<()> {
        self.expect(b'"')?;
        self.string()?;
        self.expect(b':')
    }

    /// A value of any kind.
    fn value(&mut self) -> Option<&'a str> {
        self.skip_space()?;
        let from = self.at;
        // What is open around the place, the innermost in the lowest bit: an object is a one. Another
        // one stands above all of them, so there is room for 63; no payload that is known needs seven.
        let mut open = 1_u64;
        loop {
            match self.skip_space()? {
                b'"' => {
                    self.at += 1;
                    self.string()?;
                }
                bracket @ (b'{' | b'[') => {
                    if open.leading_zeros() == 0 {
                        return None;
                    }
                    self.at += 1;
                    let object = bracket == b'{';
                    open = open << 1 | u64::from(object);
                    match (self.skip_space()?, object) {
                        // Nothing in it: it is closed below.
                        (b'}', true) | (b']', false) => {}
                        (_, true) => {
                            self.key()?;
                            continue;
                        }
                        (_, false) => continue,
                    }
                }
                b'-' | b'0'..=b'9' => self.number()?,
                b't' => self.literal(b"true")?,
                b'f' => self.literal(b"false")?,
                b'n' => self.literal(b"null")?,
                _ => return None,
            }
            // A value has ended, and perhaps with it what it stands in.
            loop {
                if open == 1 {
                    return self.text.get(from..self.at);
                }
                let object = open & 1 == 1;
                match (self.next()?, object) {
                    (b'}', true) | (b']', false) => open >>= 1,
                    (b',', true) => {
                        self.key()?;
                        break;
                    }
                    (b',', false) => break,
                    _ => return None,
                }
            }
        }
    }
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
        assert_eq!(read_any(text).unwrap(), ServerFrame::Message(found), "{text}");
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
            "",
            "{",
            "[",
            "}",
            "]",
            "[1,]",
            "[,1]",
            "{,}",
            "{1:2}",
            r#"{"a"}"#,
            r#"{"a":}"#,
            r#"{"a":1,}"#,
            "[1}",
            r#"{"a":1]"#,
            "01",
            "-",
            "1.",
            ".5",
            "1e",
            "+1",
            "nul",
            "truex",
            "NaN",
            "'a'",
            r#""a"#,
            r#""\x""#,
            r#""\u12g4""#,
            "\"a\nb\"",
            "\"\u{1f}\"",
            "1 2",
            "[1 2]",
            r#"{"a" 1}"#,
            "\u{a0}1",
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
