//! What of an output came from the event, so that it can be escaped where it stands.
//!
//! While a template renders JSON or an address, everything that is not the template's own text is put
//! between two marks: characters that no text may hold ([`is_mark`], noncharacters of Unicode, which are
//! taken out of all data). Only at the end is it known where a value stands: captured blocks and macros
//! may put it anywhere. Then the marks are taken out, and what lies between them is escaped:
//!
//! - in JSON: inside a string, as a part of that string; outside of one, a text becomes a string, and
//!   any other value its JSON.
//! - in an address: as one word, so that it holds no separator, and nothing that means something there.
//!
//! Marks may be nested; the outermost counts.
//!
//! A text of the template's own that holds marks (a captured block, what a macro wrote, joined values) is a
//! marked text. Whatever looks at what it shows, or makes another text of it, gets it without its marks
//! ([`text_of`], [`plain`]): what comes out is then a value like any other, and marked as a whole. What
//! keeps its marks changes it between them ([`changed`], [`trimmed`]).

use std::borrow::Cow;

use minijinja::{
    Error, ErrorKind, Output, State, Value,
    value::{Tuple, ValueKind},
};

use super::budget::{self, Mode};

/// Begins a text of the event's.
const TEXT: char = '\u{fdd0}';
/// Begins the JSON of a value that is no text.
const JSON: char = '\u{fdd1}';
/// Ends either.
const END: char = '\u{fdd2}';
/// Stands for a percent sign that is to stay: it begins an escape in an address.
const PERCENT: char = '\u{e0fe}';

/// Whether a character has a meaning here.
pub(super) fn is_mark(c: char) -> bool {
    matches!(c, TEXT | JSON | END | PERCENT)
}

/// `text` without marks.
pub(super) fn unmarked(text: &str) -> Cow<'_, str> {
    if text.contains(is_mark) { text.replace(is_mark, "\u{fffd}").into() } else { text.into() }
}

/// Writes a value into an output: what the template is made of as it is, everything else marked.
pub(super) fn format(
    out: &mut Output<'_>,
    _: &mut State<'_, '_>,
    value: &Value,
) -> Result<(), Error> {
    let text = if value.is_safe() { value.as_str() } else { None };
    let text = match text {
        Some(text) => Cow::Borrowed(text),
        None => Cow::Owned(match budget::mode() {
            // Nothing is an empty text, and not one that is called so; in an address too.
            Mode::Text if value.is_none() => String::new(),
            Mode::Text => budget::display(value)?,
            Mode::Json => match value.as_str() {
                Some(text) => text_marked(text),
                None => json_marked(&json_of(value)?),
            },
            Mode::Address { .. } => text_marked(&address_text(value)?),
        }),
    };
    budget::write(text.len())?;
    out.write_str(&text).map_err(Error::from)
}

fn json_of(value: &Value) -> Result<String, Error> {
    if value.is_undefined() { Ok("null".to_owned()) } else { json(value, None) }
}

fn address_text(value: &Value) -> Result<String, Error> {
    if value.is_none() { Ok(String::new()) } else { display(value) }
}

/// The text of a value, if it is a marked text.
pub(super) fn marked(value: &Value) -> Option<&str> {
    let text = if value.is_safe() { value.as_str() } else { None };
    text.filter(|text| text.contains([TEXT, JSON]))
}

/// A marked text without its marks; any other value as it is.
pub(super) fn text_of(value: &Value) -> Value {
    marked(value).map_or_else(|| value.clone(), |text| Value::from(shown(text)))
}

/// A value without marks, also in its lists and maps.
pub(super) fn plain(value: &Value) -> Result<Value, Error> {
    // A text is written as it is: nothing in it is marked.
    if budget::mode() == Mode::Text {
        return Ok(value.clone());
    }
    budget::charge(value, 1)?;
    if holds_marks(value) { without_marks(value) } else { Ok(value.clone()) }
}

fn holds_marks(value: &Value) -> bool {
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            value.try_iter().into_iter().flatten().any(|part| holds_marks(&part))
        }
        ValueKind::Map => value.try_iter().into_iter().flatten().any(|name| {
            holds_marks(&name) || value.get_item(&name).is_ok_and(|part| holds_marks(&part))
        }),
        _ => marked(value).is_some(),
    }
}

fn without_marks(value: &Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            let parts = value.try_iter()?.map(|part| without_marks(&part));
            let parts = parts.collect::<Result<Vec<_>, _>>()?;
            Ok(if value.is_tuple() { Value::from(Tuple::from(parts)) } else { Value::from(parts) })
        }
        ValueKind::Map => {
            let mut pairs = Vec::new();
            for name in value.try_iter()? {
                pairs.push((text_of(&name), without_marks(&value.get_item(&name)?)?));
            }
            Ok(Value::from_pairs(pairs))
        }
        _ => Ok(text_of(value)),
    }
}

/// A value as text without marks, no longer than a text may be.
pub(super) fn display(value: &Value) -> Result<String, Error> {
    let text = budget::display(value)?;
    if text.contains(is_mark) { budget::display(&plain(value)?) } else { Ok(text) }
}

/// A value as JSON text without marks, no longer than a text may be.
pub(super) fn json(value: &Value, indent: Option<usize>) -> Result<String, Error> {
    let json = budget::json(value, indent)?;
    if json.contains(is_mark) { budget::json(&plain(value)?, indent) } else { Ok(json) }
}

pub(super) fn text_marked(text: &str) -> String {
    format!("{TEXT}{}{END}", unmarked(text))
}

pub(super) fn json_marked(json: &str) -> String {
    format!("{JSON}{}{END}", unmarked(json))
}

/// The text in a marked JSON text, where that is all there is.
pub(super) fn marked_string(text: &str) -> Option<String> {
    let json = text.strip_prefix(JSON)?.strip_suffix(END)?;
    serde_json::from_str(json).ok()
}

/// A text of several levels, each marked by itself.
pub(super) fn levels(text: &str, separator: char) -> String {
    let levels: Vec<_> = text.split(separator).map(text_marked).collect();
    levels.join(separator.encode_utf8(&mut [0; 4]))
}

enum Part<'a> {
    /// Of the template.
    Own(&'a str),
    /// A text of the event's.
    Text(Cow<'a, str>),
    /// The JSON of a value of the event's.
    Json(Cow<'a, str>),
}

fn parts(output: &str) -> impl Iterator<Item = Part<'_>> {
    let mut rest = output;
    std::iter::from_fn(move || {
        let first = rest.chars().next()?;
        if first != TEXT && first != JSON {
            let end = rest.find([TEXT, JSON]).unwrap_or(rest.len());
            let (own, behind) = rest.split_at(end);
            rest = behind;
            return Some(Part::Own(own));
        }
        let mut open = 0_usize;
        // Without an end it is the event's to the last: nothing of it is believed.
        let end = rest.char_indices().find_map(|(at, c)| {
            match c {
                TEXT | JSON => open += 1,
                END => open -= 1,
                _ => {}
            }
            (open == 0).then_some(at)
        });
        let (value, behind) = rest.split_at(end.unwrap_or(rest.len()));
        rest = behind.strip_prefix(END).unwrap_or(behind);
        let value = value.strip_prefix(first).unwrap_or(value);
        let value = if value.contains([TEXT, JSON, END]) {
            value.replace([TEXT, JSON, END], "").into()
        } else {
            value.into()
        };
        Some(if first == TEXT { Part::Text(value) } else { Part::Json(value) })
    })
}

/// What a marked text shows.
fn shown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for part in parts(text) {
        match part {
            Part::Own(own) => shown.extend(own.chars().filter(|c| !is_mark(*c))),
            // In a text, nothing is nothing.
            Part::Json(json) if json == "null" => {}
            Part::Text(value) | Part::Json(value) => shown.push_str(&value),
        }
    }
    shown
}

/// A marked text in which each part is changed by itself; `change` is told whether it is the template's
/// own. JSON that is changed is a text from then on.
pub(super) fn changed(text: &str, mut change: impl FnMut(&str, bool) -> String) -> String {
    let mut made = String::with_capacity(text.len());
    for part in parts(text) {
        match part {
            Part::Own(own) => made.push_str(&change(own, true)),
            Part::Text(value) => made.push_str(&text_marked(&change(&value, false))),
            Part::Json(json) if json == "null" => made.push_str(&json_marked(&json)),
            Part::Json(json) => {
                let new = change(&json, false);
                let as_it_was = new == *json;
                made.push_str(&if as_it_was { json_marked(&json) } else { text_marked(&new) });
            }
        }
    }
    made
}

/// A marked text without the characters at both ends of what it shows that are to be cut.
pub(super) fn trimmed(text: &str, cut: impl Fn(char) -> bool) -> String {
    let shown = shown(text);
    let first = shown.len() - shown.trim_start_matches(&cut).len();
    let last = first + shown.trim_matches(&cut).len();
    let mut at = 0;
    changed(text, |part, _| {
        let end = at + part.len();
        let kept = first.clamp(at, end) - at..last.clamp(at, end) - at;
        at = end;
        part.get(kept).unwrap_or_default().to_owned()
    })
}

/// Whether the first character that is no white space is a bracket of JSON, and not one that the event
/// brought as text.
pub(super) fn begins_json(output: &str) -> bool {
    for part in parts(output) {
        let (text, ours) = match &part {
            Part::Own(own) => (*own, true),
            Part::Json(json) => (&**json, true),
            Part::Text(text) => (&**text, false),
        };
        if let Some(first) = text.trim_start().chars().next() {
            return ours && matches!(first, '{' | '[');
        }
    }
    false
}

/// The JSON that a marked output makes. An error where it is none.
pub(super) fn to_json(output: &str) -> Result<String, Error> {
    let mut json = String::with_capacity(output.len());
    let (mut in_string, mut escaped) = (false, false);
    for part in parts(output) {
        match part {
            Part::Own(own) => {
                for c in own.chars().filter(|c| *c != END) {
                    json.push(c);
                    match c {
                        _ if escaped => escaped = false,
                        '\\' if in_string => escaped = true,
                        '"' => in_string = !in_string,
                        _ => {}
                    }
                }
            }
            // It would be a part of that escape.
            _ if escaped => return Err(no_json("a backslash stands before a value")),
            Part::Text(text) if in_string => push_inside(&text, &mut json),
            Part::Text(text) => json.push_str(&quoted(&text)),
            // In a text, nothing is nothing.
            Part::Json(value) if in_string && value == "null" => {}
            Part::Json(value) if in_string => push_inside(&value, &mut json),
            Part::Json(value) => json.push_str(&value),
        }
    }
    match serde_json::from_str::<&serde_json::value::RawValue>(&json) {
        Ok(_) => Ok(json),
        Err(error) => Err(no_json(error)),
    }
}

fn no_json(why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::BadSerialization, format!("what the template makes is no JSON: {why}"))
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn push_inside(text: &str, json: &mut String) {
    let quoted = quoted(text);
    json.push_str(quoted.get(1..quoted.len() - 1).unwrap_or_default());
}

/// The address that a marked output makes. `escape` makes an address legal; it keeps what stands between
/// separators, and what has a meaning, from standing in a word.
pub(super) fn to_address(
    output: &str,
    separator: char,
    escape: fn(&str) -> Cow<'_, str>,
) -> String {
    let mut address = String::with_capacity(output.len());
    for part in parts(output) {
        match part {
            Part::Own(own) => address.extend(own.chars().filter(|c| !is_mark(*c))),
            Part::Text(value) | Part::Json(value) => {
                push_word(&value, separator, escape, &mut address);
            }
        }
    }
    // What follows a value is escaped once: the percent signs of the words come behind that.
    let legal = escape(&address);
    if legal.contains(PERCENT) { legal.replace(PERCENT, "%") } else { legal.into_owned() }
}

fn push_word(value: &str, separator: char, escape: fn(&str) -> Cow<'_, str>, address: &mut String) {
    for (at, c) in value.char_indices() {
        let mut bytes = [0; 4];
        let text = c.encode_utf8(&mut bytes);
        // `$` in front has a meaning to every broker.
        if c == separator
            || c == PERCENT
            || c == '%'
            || c.is_control()
            || if c == '$' { at == 0 } else { escape(text) != *text }
        {
            for byte in text.bytes() {
                let digits =
                    [byte >> 4, byte & 15].map(|digit| char::from_digit(u32::from(digit), 16));
                address.push(PERCENT);
                address
                    .extend(digits.into_iter().flatten().map(|digit| digit.to_ascii_uppercase()));
            }
        } else {
            address.push(c);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_escaped_where_they_stand() {
        let text = |text: &str| text_marked(text);
        let json = |text: &str| json_marked(text);
        for (output, expected) in [
            (format!(r#"{{"a":"{}"}}"#, text("\"\n\\")), r#"{"a":"\"\n\\"}"#),
            (format!(r#"{{"a":{},"b":{}}}"#, text("x"), json("5.0")), r#"{"a":"x","b":5.0}"#),
            (format!(r#"["\"{}",{}]"#, json("{\"a\":1}"), json("null")), r#"["\"{\"a\":1}",null]"#),
            (format!(r#"["{}"]"#, json("null")), r#"[""]"#),
            (format!("[{TEXT}a{TEXT}b{END}{JSON}1{END}c{END}]"), r#"["ab1c"]"#),
        ] {
            assert_eq!(to_json(&output).unwrap(), expected, "{output}");
        }
        let broken = [
            format!(r#"{{"a":"\{}"}}"#, text("n")),
            format!(r#"{{"a":"{TEXT}x"}}"#),
            "{\"a\":}".to_owned(),
            format!("{{{}}}", text("a")),
        ];
        for output in broken {
            assert!(to_json(&output).is_err(), "{output}");
        }
        for (output, json) in [
            (" {}".to_owned(), true),
            (format!(" {}{{", text("[")), false),
            (format!("{}{{", text(" ")), true),
            (json("[1]"), true),
            ("a{".to_owned(), false),
            (String::new(), false),
        ] {
            assert_eq!(begins_json(&output), json, "{output}");
        }
    }

    #[test]
    fn a_marked_text_is_changed_between_its_marks() {
        let marked =
            format!(" a{}{}{} ", text_marked(" b "), json_marked("1"), json_marked("null"));
        assert_eq!(shown(&marked), " a b 1 ");
        assert_eq!(
            changed(&marked, |part, own| if own {
                part.to_owned()
            } else {
                part.replace('b', "c")
            }),
            format!(" a{}{}{} ", text_marked(" c "), json_marked("1"), json_marked("null"))
        );
        // What no longer is the JSON that was written is a text.
        let quoted = json_marked(r#""b""#);
        assert_eq!(changed(&quoted, |part, _| part.replace('"', "")), text_marked("b"));
        assert_eq!(trimmed(&quoted, |c| c == '"'), text_marked("b"));
        assert_eq!(
            trimmed(&format!(" {} ", text_marked(" b ")), char::is_whitespace),
            text_marked("b")
        );
        assert_eq!(
            trimmed(&format!("{}{{ ", text_marked("  ")), char::is_whitespace),
            format!("{}{{", text_marked(""))
        );
    }

    #[test]
    fn a_text_cannot_bring_marks() {
        for c in [TEXT, JSON, END, PERCENT] {
            assert_eq!(text_marked(&c.to_string()), text_marked("\u{fffd}"));
        }
    }
}
