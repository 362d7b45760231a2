//! Writing messages: envelopes, strings and values, appended to a buffer without a tree of JSON.

use std::{fmt::Display, io::Write};

use ulid::Ulid;

/// The same message under another id.
pub(crate) fn with_id(text: &[u8], id: Ulid) -> (Ulid, Vec<u8>) {
    let mut text = text.to_vec();
    let range = ID_BEFORE.len()..ID_BEFORE.len() + ulid::ULID_LEN;
    if text.starts_with(ID_BEFORE)
        && let Some(old) = text.get_mut(range)
    {
        let mut buffer = [0; ulid::ULID_LEN];
        old.copy_from_slice(id.array_to_str(&mut buffer).as_bytes());
    }
    (id, text)
}

/// The text before the id in a message.
const ID_BEFORE: &[u8] = br#"{"id":""#;

/// `{"id":…,"ts":…,"type":…`, without the closing brace.
pub(crate) fn put_envelope(text: &mut Vec<u8>, id: Ulid, ts: &str, kind: &str) {
    let mut buffer = [0; ulid::ULID_LEN];
    text.extend_from_slice(ID_BEFORE);
    text.extend_from_slice(id.array_to_str(&mut buffer).as_bytes());
    text.extend_from_slice(br#"","ts":""#);
    text.extend_from_slice(ts.as_bytes());
    text.extend_from_slice(br#"","type":""#);
    text.extend_from_slice(kind.as_bytes());
    text.push(b'"');
}

/// A JSON string.
pub(crate) fn put_string(text: &mut Vec<u8>, string: &str) {
    if string.bytes().all(|byte| byte >= b' ' && byte != b'"' && byte != b'\\') {
        text.push(b'"');
        text.extend_from_slice(string.as_bytes());
        text.push(b'"');
    } else {
        put_display(text, serde_json::Value::from(string));
    }
}

/// Appends the text of a value.
pub(crate) fn put_display(text: &mut Vec<u8>, value: impl Display) {
    // Writing to a vector cannot fail; a `Display` that does fail leaves its text cut short.
    write!(text, "{value}").ok();
}
