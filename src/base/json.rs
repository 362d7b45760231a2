//! JSON as others write it: one tolerant reader, and a value that is kept as its text.
//!
//! Whatever the gateway or the REST API may send, everything behind the door can read: [`value`] takes
//! all that is JSON to the letter, and what no strict reader takes. Half a surrogate pair and bytes that
//! are no UTF-8 become U+FFFD, a number that no float holds (`1e400`) its own text, lists and objects
//! deeper than [`NESTING`] become `null`. Of a name that stands in one object twice the last value counts.
//! Nothing that reads event data or an answer may be stricter than this.
//!
//! [`Json`] is a value that is kept as its text, shared by all who hold it. What a session, the state store and
//! a change of either know is the same text, once in memory: a tree of it would take some ten times the
//! memory, and be made again for each of them. It is read where somebody looks inside, which is where it
//! has changed. Two of them are equal where their texts are: `5` and `5.0` are the same value to
//! [`crate::channel::state`], and not here.

pub(crate) mod scan;

use std::{fmt, sync::Arc};

use serde::de::DeserializeOwned;
use serde_json::{Map, Number, Value, value::RawValue};

/// How deep lists and objects are read. The deepest payload that is known has seven levels; what walks a
/// value calls itself once a level, so this also bounds the stack.
pub(crate) const NESTING: usize = 256;

/// The value of a JSON text. `None`: it is none.
pub fn value(text: &[u8]) -> Option<Value> {
    // Nearly always a strict reader will do, and is faster.
    serde_json::from_slice(text).ok().or_else(|| tolerant(text))
}

/// Reads a type from a JSON text, tolerant of the values in it: what is of the wrong type is an error.
pub fn read<T: DeserializeOwned>(text: &[u8]) -> Result<T, serde_json::Error> {
    serde_json::from_slice(text).or_else(|error| match tolerant(text) {
        Some(value) => serde_json::from_value(value),
        None => Err(error),
    })
}

/// Sets a member, where the value is an object.
pub(crate) fn set(object: &mut Value, name: &str, value: Value) {
    if let Some(members) = object.as_object_mut() {
        members.insert(name.to_owned(), value);
    }
}

fn tolerant(text: &[u8]) -> Option<Value> {
    let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text);
    let mut reader = Reader { text, at: 0 };
    let value = reader.value(NESTING)?;
    reader.peek().is_none().then_some(value)
}

/// A place in a text that may be JSON. Whatever finds that it is not answers `None`.
struct Reader<'a> {
    text: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    /// The next byte that is no white space; stays before it.
    fn peek(&mut self) -> Option<u8> {
        loop {
            match self.text.get(self.at)? {
                b' ' | b'\n' | b'\r' | b'\t' => self.at += 1,
                byte => return Some(*byte),
            }
        }
    }

    /// The next byte, whatever it is.
    fn next(&mut self) -> Option<u8> {
        let byte = self.text.get(self.at).copied()?;
        self.at += 1;
        Some(byte)
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    fn literal(&mut self, word: &[u8], value: Value) -> Option<Value> {
        let rest = self.text.get(self.at..)?;
        rest.starts_with(word).then(|| {
            self.at += word.len();
            value
        })
    }

    /// A value that may hold `levels` more.
    fn value(&mut self, levels: usize) -> Option<Value> {
        match self.peek()? {
            b'{' if levels > 0 => self.object(levels - 1),
            b'[' if levels > 0 => self.list(levels - 1),
            b'{' | b'[' => self.skip().map(|()| Value::Null),
            b'"' => self.string().map(Value::String),
            b't' => self.literal(b"true", true.into()),
            b'f' => self.literal(b"false", false.into()),
            b'n' => self.literal(b"null", Value::Null),
            _ => self.number(),
        }
    }

    fn object(&mut self, levels: usize) -> Option<Value> {
        let mut members = Map::new();
        self.expect(b'{')?;
        if self.peek()? == b'}' {
            self.at += 1;
            return Some(members.into());
        }
        loop {
            self.peek()?;
            let name = self.string()?;
            self.expect(b':')?;
            members.insert(name, self.value(levels)?);
            match self.peek()? {
                b',' => self.at += 1,
                _ => return self.expect(b'}').map(|()| members.into()),
            }
        }
    }

    fn list(&mut self, levels: usize) -> Option<Value> {
        let mut list = Vec::new();
        self.expect(b'[')?;
        if self.peek()? == b']' {
            self.at += 1;
            return Some(list.into());
        }
        loop {
            list.push(self.value(levels)?);
            match self.peek()? {
                b',' => self.at += 1,
                _ => return self.expect(b']').map(|()| list.into()),
            }
        }
    }

    /// Goes behind the list or object here, however deep it is: brackets are counted, not walked.
    fn skip(&mut self) -> Option<()> {
        let mut open = 0_usize;
        loop {
            match self.peek()? {
                b'"' => self.string().map(drop)?,
                byte => {
                    self.at += 1;
                    match byte {
                        b'{' | b'[' => open += 1,
                        b'}' | b']' => open -= 1,
                        _ => {}
                    }
                    if open == 0 {
                        return Some(());
                    }
                }
            }
        }
    }

    fn string(&mut self) -> Option<String> {
        if self.next()? != b'"' {
            return None;
        }
        let mut string = String::new();
        loop {
            let from = self.at;
            while !matches!(self.text.get(self.at)?, b'"' | b'\\') {
                self.at += 1;
            }
            string.push_str(&String::from_utf8_lossy(self.text.get(from..self.at)?));
            if self.next()? == b'"' {
                return Some(string);
            }
            string.push(match self.next()? {
                b'b' => '\u{8}',
                b'f' => '\u{c}',
                b'n' => '\n',
                b'r' => '\r',
                b't' => '\t',
                b'u' => self.escaped()?,
                other @ (b'"' | b'\\' | b'/') => char::from(other),
                _ => return None,
            });
        }
    }

    /// The character behind `\u`; half of a pair is none.
    fn escaped(&mut self) -> Option<char> {
        let unit = self.unit()?;
        if matches!(unit, 0xd800..=0xdbff) && self.text.get(self.at..)?.starts_with(b"\\u") {
            let behind = self.at;
            self.at += 2;
            let low = self.unit()?;
            if matches!(low, 0xdc00..=0xdfff) {
                return char::from_u32(0x1_0000 + ((unit - 0xd800) << 10) + (low - 0xdc00));
            }
            // It is no half of this one: it is read by itself.
            self.at = behind;
        }
        Some(char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER))
    }

    fn unit(&mut self) -> Option<u32> {
        let digits = self.text.get(self.at..self.at + 4)?;
        self.at += 4;
        digits.iter().try_fold(0, |unit, digit| Some(unit << 4 | char::from(*digit).to_digit(16)?))
    }

    /// A number; one that no float holds is its text.
    fn number(&mut self) -> Option<Value> {
        let from = self.at;
        while self.text.get(self.at).is_some_and(|byte| {
            byte.is_ascii_digit() || matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E')
        }) {
            self.at += 1;
        }
        let text = std::str::from_utf8(self.text.get(from..self.at)?).ok()?;
        if let Ok(number) = serde_json::from_str::<Number>(text) {
            return Some(number.into());
        }
        // A raw value is checked to be a number, and not read.
        serde_json::from_str::<&RawValue>(text).ok().map(|raw| raw.get().into())
    }
}

/// A JSON value as text.
#[derive(Clone)]
pub struct Json(Arc<RawValue>);

impl Json {
    pub fn text(&self) -> &str {
        self.0.get()
    }

    pub fn read(&self) -> Value {
        // It is JSON, so it is read; were it not, nothing would be known of it.
        value(self.text().as_bytes()).unwrap_or_default()
    }

    /// From its text; `None`: it is no JSON.
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        serde_json::from_str::<&RawValue>(text).ok().map(Self::from)
    }
}

impl From<&RawValue> for Json {
    fn from(raw: &RawValue) -> Self {
        Self(raw.to_owned().into())
    }
}

impl From<&Value> for Json {
    fn from(value: &Value) -> Self {
        // A value is always JSON; were it not, nothing would be known of it.
        Self::from_text(&value.to_string()).unwrap_or_else(|| RawValue::NULL.into())
    }
}

impl PartialEq for Json {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.text() == other.text()
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_value_comes_back_as_it_went_in() {
        for value in [json!(null), json!("a \"b\""), json!({"a": [1, 2.5, {"b": true}]})] {
            let kept = Json::from(&value);
            assert_eq!(kept.read(), value);
            assert_eq!(Json::from_text(kept.text()), Some(kept));
        }
        let spaced = Json::from_text(" {\"a\": 1} ").unwrap();
        assert_eq!((spaced.text(), spaced.read()), ("{\"a\": 1}", json!({"a": 1})));
        for text in ["", "{", "1 2", "nonsense"] {
            assert_eq!(Json::from_text(text), None, "{text}");
        }
        assert_eq!(Json::from_text(r#""\ud800""#).unwrap().read(), json!("\u{fffd}"));
    }

    #[test]
    fn everything_that_may_come_is_read() {
        for (text, expected) in [
            (&br#""great \ud83d""#[..], json!("great \u{fffd}")),
            (br#""\ud83d\ud83d\ude00\ude00x""#, json!("\u{fffd}\u{1f600}\u{fffd}x")),
            (br#""\ud83dabcd \ud83d\n\u00e9""#, json!("\u{fffd}abcd \u{fffd}\n\u{e9}")),
            (b"\"a\xff\xc3\"", json!("a\u{fffd}\u{fffd}")),
            (br#"{"\udc00":1}"#, json!({"\u{fffd}": 1})),
            (b"1e400", json!("1e400")),
            (b"[-1E+999,1]", json!(["-1E+999", 1])),
            (b"1e-999", json!(0.0)),
            (b"123456789012345678901234567890", json!(123_456_789_012_345_678_901_234_567_890.0)),
            (br#"{"a":1,"a":[1e400]}"#, json!({"a": ["1e400"]})),
            (b"\xef\xbb\xbf {\"a\" : [ ] , \"b\":{ }}\r\n", json!({"a": [], "b": {}})),
            (b"[true,false,null,\"\xff\"]", json!([true, false, null, "\u{fffd}"])),
            (b"\"a\nb\"", json!("a\nb")),
        ] {
            assert_eq!(value(text), Some(expected.clone()), "{}", String::from_utf8_lossy(text));
            assert_eq!(read::<Value>(text).ok(), Some(expected));
        }
        let damaged = [
            "", " ", "{", "[", "[1,]", "{\"a\"}", "{\"a\":}", "{,}", "1 2", "01", "1.", "-", "+1",
            ".5", "1e", "--1", "1-", "tru", "NaN", "Infinity", "'a'", "\"a", "\"\\x\"",
            "\"\\u12g4\"", "\"\\ud83d\\u1\"", "[1}", "{\"a\":1]", "\u{feff}",
        ];
        for text in damaged {
            // Behind this no strict reader goes on, so the tolerant one is asked.
            for text in [text.to_owned(), format!("[\"\\ud800\",{text}")] {
                assert_eq!(value(text.as_bytes()), None, "{text}");
            }
        }
    }

    #[test]
    fn deep_json_is_read_to_the_limit_and_never_overflows_the_stack() {
        let nested = |depth: usize| format!("{}7{}", "[".repeat(depth), "]".repeat(depth));
        let depth =
            |value: &Value| std::iter::successors(Some(value), |value| value.get(0)).count() - 1;
        let all = value(nested(NESTING).as_bytes()).unwrap();
        assert_eq!((depth(&all), all.to_string()), (NESTING, nested(NESTING)));
        for deep in [NESTING + 1, 10_000, 1_000_000] {
            assert_eq!(depth(&value(nested(deep).as_bytes()).unwrap()), NESTING);
        }
        let text =
            format!(r#"{{"a":{},"b":"after"}}"#, nested(5000).replace('7', r#"{"]":"[\""}"#));
        assert_eq!(value(text.as_bytes()).unwrap()["b"], "after");
        assert_eq!(value("[".repeat(1_000_000).as_bytes()), None);
    }

    proptest::proptest! {
        #[test]
        fn both_readers_agree_where_the_strict_one_reads(text in r#"[\[\]{}:,"0-9eE.+\- \\untrfalsx]{0,12}"#) {
            if let Ok(strict) = serde_json::from_str::<Value>(&text) {
                proptest::prop_assert_eq!(tolerant(text.as_bytes()), Some(strict));
            } else if let Some(read) = tolerant(text.as_bytes()) {
                // Only for one of the reasons that are named.
                let deviates = text.contains("\\u") || read.to_string().contains('e') || read.to_string().contains('E');
                proptest::prop_assert!(deviates, "{}", text);
            }
        }

        #[test]
        fn no_bytes_panic(text in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
            drop(tolerant(&text));
        }

        #[test]
        fn values_come_back(text in "\\PC{0,20}", number in proptest::num::f64::NORMAL, whole: i64) {
            let expected = json!({"a": [text, number], &*text: {"n": whole}});
            let text = expected.to_string();
            proptest::prop_assert_eq!(tolerant(text.as_bytes()), serde_json::from_str(&text).ok());
        }
    }
}
