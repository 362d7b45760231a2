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

use std::borrow::Cow;

use minijinja::{Error, ErrorKind, Output, State, Value};

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
    if value.is_undefined() { Ok("null".to_owned()) } else { budget::json(value, None) }
}

fn address_text(value: &Value) -> Result<String, Error> {
    // Nothing is an empty word, and not one that is called so.
    if value.is_none() { Ok(String::new()) } else { budget::display(value) }
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
    fn a_text_cannot_bring_marks() {
        for c in [TEXT, JSON, END, PERCENT] {
            assert_eq!(text_marked(&c.to_string()), text_marked("\u{fffd}"));
        }
    }
}
