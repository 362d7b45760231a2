//! Frames of the gateway to and from JSON.
//!
//! The envelope is parsed, the payload is not: `data` stays where it lies in the frame. Both
//! revisions of the protocol are read; what neither knows is handed on as unknown, never as an error.
//!
//! Every field of the envelope is optional on the wire and may have another type than the documents
//! say. A message is relayed where its topic can be made out.

mod fast_path;

use std::{borrow::Cow, collections::BTreeMap, ops::Range, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

use crate::{
    base::{
        clock::{self, UnixMillis},
        event::key::{self, Members},
        json,
    },
    config::{Secret, TokenType},
};

/// Frames in one text, at most.
const PARTS: usize = 10_000;

/// Why a frame cannot be read, in words for people who do not know the format.
const NO_OBJECT: &str = "a frame that is not an object of JSON";
const NO_TOPIC: &str = "a message without a topic";
const NO_TOKEN: &str = "a request to reconnect without a token";

/// A frame from the gateway.
#[expect(clippy::large_enum_variant, reason = "nearly every frame is a message")]
#[derive(Debug, PartialEq, Eq)]
pub enum ServerFrame<'a> {
    /// The connection is accepted (newer revision only).
    Welcome,
    /// The answer to a command.
    Response(Response<'a>),
    /// Something happened.
    Message(Envelope<'a>),
    /// The server is about to go: the token restores the subscriptions on a new connection.
    Reconnect {
        /// A credential, for one use.
        token: Secret,
    },
    /// A type that no revision names.
    Unknown(Cow<'a, str>),
}

/// What is around the payload of a message.
#[derive(Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// A ULID, or empty.
    pub id: Cow<'a, str>,
    /// RFC 3339, or empty.
    pub ts: Cow<'a, str>,
    /// The topic; never empty.
    pub topic: Cow<'a, str>,
    /// The canonical room, or empty.
    pub room: Cow<'a, str>,
    /// Where `data` lies in the frame; empty where there is none.
    pub data: Range<usize>,
    /// Where they were walked.
    members: Option<Members<'a>>,
}

impl Envelope<'_> {
    /// The deduplication key of the message in `frame`, of which this is the envelope.
    pub fn key(&self, frame: &str) -> Box<str> {
        let (data, members) = (self.data(frame), self.members.as_ref());
        key::of_walked(&self.id, &self.ts, &self.topic, &self.room, data, members)
    }

    /// The channel that the data of the message in `frame` names.
    pub fn channel(&self, frame: &str) -> Option<String> {
        key::channel_of(self.data(frame), self.members.as_ref())
    }

    fn data<'f>(&self, frame: &'f str) -> &'f [u8] {
        let data = frame.as_bytes().get(self.data.clone()).filter(|data| !data.is_empty());
        data.unwrap_or(b"null")
    }

    /// Whether a member of the message may have the name of a personal field.
    pub fn may_have_personal_fields(&self) -> bool {
        self.members.as_ref().is_none_or(|members| members.may_have_personal_fields)
    }
}

/// The answer to a command.
#[derive(Debug, PartialEq, Eq)]
pub struct Response<'a> {
    /// The command's nonce, or empty: `rate_limit_exceeded` comes without one.
    pub nonce: Cow<'a, str>,
    /// The error code; `None` is success.
    pub error: Option<Cow<'a, str>>,
    /// Human text.
    pub text: String,
    /// The canonical room (newer revision only).
    pub room: Option<String>,
    /// RFC 3339, or empty.
    pub ts: Cow<'a, str>,
}

/// A string that costs no copy where it has no escapes.
#[derive(Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// The fields of an object as they are in it, not judged yet. Of a field that is there twice the
/// last counts, as for most readers of JSON.
#[derive(Default, Deserialize)]
#[serde(transparent)]
struct Fields<'a>(#[serde(borrow)] BTreeMap<String, &'a RawValue>);

impl<'a> Fields<'a> {
    fn get(&self, name: &str) -> Option<&'a RawValue> {
        let odd = || self.0.iter().find(|(other, _)| other.eq_ignore_ascii_case(name));
        self.0.get(name).or_else(|| odd().map(|(_, value)| value)).copied()
    }

    fn text(&self, name: &str) -> Cow<'a, str> {
        text(self.get(name))
    }
}

/// What a field says, as text: a string as it is, a number or `true` as it is written. What says
/// nothing (`null`, `false`) and what is no single value is empty.
fn text(value: Option<&RawValue>) -> Cow<'_, str> {
    let value = value.map_or("", RawValue::get);
    match value.as_bytes().first() {
        Some(b'"') => match serde_json::from_str(value) {
            Ok(Text(text)) => text,
            // Half a surrogate pair.
            Err(_) => match json::value(value.as_bytes()) {
                Some(Value::String(text)) => text.into(),
                _ => Cow::default(),
            },
        },
        Some(b'0'..=b'9' | b'-' | b't') => Cow::Borrowed(value),
        Some(_) | None => Cow::default(),
    }
}

/// A time: text as it is; a number is taken for the seconds or milliseconds since 1970.
fn time(value: Option<&RawValue>) -> Cow<'_, str> {
    /// Seconds reach this in the year 5138, milliseconds reached it in 1973.
    const MILLISECONDS: f64 = 1e11;
    let said = text(value);
    let is_text = value.is_some_and(|value| value.get().starts_with('"'));
    match said.parse::<f64>() {
        Ok(number) if !is_text => {
            let seconds = if number < MILLISECONDS { number } else { number / 1000.0 };
            let time = Duration::try_from_secs_f64(seconds).unwrap_or_default();
            let millis = UnixMillis::try_from(time.as_millis()).unwrap_or_default();
            clock::rfc3339(millis).into()
        }
        Ok(_) | Err(_) => said,
    }
}

/// The code of an error; `None`: there is none. Nothing, `false`, 0 and the empty text are none.
fn error(value: Option<&RawValue>) -> Option<Cow<'_, str>> {
    let said = value.map_or("", RawValue::get);
    if said.starts_with('{') {
        let fields: Fields<'_> = serde_json::from_str(said).unwrap_or_default();
        let code = ["code", "error", "message"].map(|name| fields.text(name));
        let code = code.into_iter().find(|code| !code.is_empty());
        return Some(code.unwrap_or("error".into()));
    }
    let said = text(value);
    let none = said.is_empty() || said.parse() == Ok(0.0_f64);
    (!none).then_some(said)
}

/// What a response says for people, and the canonical room. `data` is an object in both revisions, a
/// bare string in some older servers.
fn response_data(data: Option<&RawValue>) -> (String, Option<String>) {
    let said = data.map_or("", RawValue::get);
    if !said.starts_with('{') {
        return (text(data).into_owned(), None);
    }
    let fields: Fields<'_> = serde_json::from_str(said).unwrap_or_default();
    let room = fields.text("room");
    (fields.text("message").into_owned(), (!room.is_empty()).then(|| room.into_owned()))
}

/// Reads one text frame; an error says why it cannot be read.
pub fn read(text: &str) -> Result<ServerFrame<'_>, &'static str> {
    fast_path::message(text)
        .map_or_else(|| read_any(text), |envelope| Ok(ServerFrame::Message(envelope)))
}

/// Frames in one text that are to be read one by one: the elements of a list, documents one behind the
/// other, or one behind a byte order mark. Empty where the text is none of these.
pub fn parts(whole: &str) -> Vec<&str> {
    let text = whole.trim_start_matches('\u{feff}');
    let mut parts = Vec::new();
    for value in serde_json::Deserializer::from_str(text).into_iter::<&RawValue>() {
        let Ok(value) = value else { return Vec::new() };
        match serde_json::from_str::<Vec<&RawValue>>(value.get()) {
            Ok(list) => parts.extend(list.into_iter().map(RawValue::get)),
            Err(_) => parts.push(value.get()),
        }
        if parts.len() > PARTS {
            return Vec::new();
        }
    }
    // What could not be read as it is cannot be read once more.
    if parts == [whole] { Vec::new() } else { parts }
}

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Message,
    Response,
    Welcome,
    Reconnect,
    Unknown,
}

impl Kind {
    /// The older document's table says `RESPONSE`, its examples say `response`. A frame that does not
    /// say what it is is known by its fields.
    fn of(said: &str, topic: &str, nonce: &str) -> Self {
        let known = [
            ("message", Self::Message),
            ("response", Self::Response),
            ("welcome", Self::Welcome),
            ("reconnect", Self::Reconnect),
        ];
        match known.into_iter().find(|(word, _)| said.eq_ignore_ascii_case(word)) {
            Some((_, kind)) => kind,
            None if !said.is_empty() => Self::Unknown,
            None if !topic.is_empty() => Self::Message,
            None if !nonce.is_empty() => Self::Response,
            None => Self::Unknown,
        }
    }
}

/// The general reader.
fn read_any(frame: &str) -> Result<ServerFrame<'_>, &'static str> {
    let fields: Fields<'_> = serde_json::from_str(frame).map_err(|_| NO_OBJECT)?;
    let [kind, topic, nonce] = ["type", "topic", "nonce"].map(|name| fields.text(name));
    let data = fields.get("data").filter(|data| data.get() != "null");
    let said = kind.trim();
    Ok(match Kind::of(said, &topic, &nonce) {
        Kind::Message if topic.is_empty() => return Err(NO_TOPIC),
        Kind::Message => ServerFrame::Message(Envelope {
            id: fields.text("id"),
            ts: time(fields.get("ts")),
            topic,
            room: fields.text("room"),
            data: data.map_or(0..0, |data| range_of(frame, data.get())),
            members: None,
        }),
        Kind::Response => {
            let (text, room) = response_data(data);
            let (error, ts) = (error(fields.get("error")), time(fields.get("ts")));
            ServerFrame::Response(Response { nonce, error, text, room, ts })
        }
        Kind::Welcome => ServerFrame::Welcome,
        Kind::Reconnect => {
            let data = data.and_then(|data| serde_json::from_str::<Fields<'_>>(data.get()).ok());
            let token = data.unwrap_or_default().text("reconnect_token");
            if token.is_empty() {
                return Err(NO_TOKEN);
            }
            ServerFrame::Reconnect { token: Secret::new(token) }
        }
        Kind::Unknown => ServerFrame::Unknown(said.to_owned().into()),
    })
}

/// The range of `part`, a slice of `whole`.
fn range_of(whole: &str, part: &str) -> Range<usize> {
    let start = part.as_ptr().addr().saturating_sub(whole.as_ptr().addr());
    start..start + part.len()
}

/// What a command does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// Receive a topic of a room.
    Subscribe,
    /// No longer.
    Unsubscribe,
}

#[derive(Serialize)]
struct Command<'a> {
    r#type: Verb,
    nonce: &'a str,
    data: CommandData<'a>,
}

#[derive(Serialize)]
struct CommandData<'a> {
    topic: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    room: Option<&'a str>,
    token: &'a str,
    token_type: &'static str,
}

/// Writes a command. The text holds the token: it goes to the socket and nowhere else.
pub fn command(
    verb: Verb,
    nonce: &str,
    topic: &str,
    room: Option<&str>,
    token: &Secret,
    token_type: TokenType,
) -> String {
    let token = token.expose();
    let data = CommandData { topic, room, token, token_type: token_type.as_str() };
    serde_json::to_string(&Command { r#type: verb, nonce, data })
        .expect("strings and maps of strings always serialise")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_without_touching_its_data() {
        let text = r#"{"id":"01H","ts":"2023-09-23T12:06:25Z","type":"message","topic":"channel.tips","room":"r1","data":{ "a": 12.50 }}"#;
        let Ok(ServerFrame::Message(envelope)) = read(text) else { panic!("not a message") };
        assert_eq!(
            (&*envelope.id, &*envelope.topic, &*envelope.room),
            ("01H", "channel.tips", "r1")
        );
        assert!(matches!(envelope.id, Cow::Borrowed(_)), "no copy");
        assert_eq!(&text[envelope.data], r#"{ "a": 12.50 }"#);
    }

    #[test]
    fn missing_fields_are_empty() {
        for text in [
            r#"{"type":"message","topic":"astro"}"#,
            r#"{"type":"message","topic":"astro","id":null,"room":null,"ts":null,"data":null}"#,
        ] {
            let Ok(ServerFrame::Message(envelope)) = read(text) else { panic!("not a message") };
            assert_eq!((&*envelope.id, &*envelope.room, &*envelope.ts), ("", "", ""));
            assert!(matches!(text.get(envelope.data), Some("" | "null")));
        }
    }

    #[test]
    fn responses_of_both_revisions_are_read() {
        let cases = [
            (
                r#"{"type":"response","nonce":"n","data":{"message":"ok","topic":"t"}}"#,
                None,
                "ok",
                None,
            ),
            (
                r#"{"type":"RESPONSE","nonce":"n","data":{"message":"ok","room":"r"}}"#,
                None,
                "ok",
                Some("r"),
            ),
            (
                r#"{"type":"response","nonce":"n","data":"successfully subscribed"}"#,
                None,
                "successfully subscribed",
                None,
            ),
            (r#"{"type":"Response","nonce":"n"}"#, None, "", None),
            (r#"{"type":"response","nonce":"n","data":[1]}"#, None, "", None),
            (r#"{"type":"response","nonce":"n","data":{"room":""}}"#, None, "", None),
            (
                r#"{"type":"response","nonce":"n","error":"err_unauthorized","data":{"message":"no"}}"#,
                Some("err_unauthorized"),
                "no",
                None,
            ),
        ];
        for (text, error, human, room) in cases {
            let Ok(ServerFrame::Response(response)) = read(text) else { panic!("{text}") };
            assert_eq!(response.nonce, "n", "{text}");
            assert_eq!(response.error.as_deref(), error, "{text}");
            assert_eq!(response.text, human, "{text}");
            assert_eq!(response.room.as_deref(), room, "{text}");
        }
    }

    #[test]
    fn other_frames_are_told_apart() {
        assert_eq!(
            read(r#"{"type":"welcome","data":{"client_id":"c"}}"#).unwrap(),
            ServerFrame::Welcome
        );
        let reconnect = read(r#"{"type":"reconnect","data":{"reconnect_token":"t"}}"#).unwrap();
        assert_eq!(reconnect, ServerFrame::Reconnect { token: Secret::new("t") });
        assert_eq!(read(r#"{"type":"reconnect"}"#), Err(NO_TOKEN));
        assert_eq!(read(r#"{"type":"bye"}"#).unwrap(), ServerFrame::Unknown("bye".into()));
        let bye = read(r#"{"type":"bye","topic":"t","nonce":"n"}"#).unwrap();
        assert_eq!(bye, ServerFrame::Unknown("bye".into()));
        assert_eq!(read("{}").unwrap(), ServerFrame::Unknown("".into()));
        for nobodys in [r#"{"type":"message"}"#, r#"{"type":"message","topic":null,"data":{}}"#] {
            assert_eq!(read(nobodys), Err(NO_TOPIC), "{nobodys}");
        }
        for garbage in ["", "3", "{", "[]", "\u{feff}{}"] {
            assert_eq!(read(garbage), Err(NO_OBJECT), "{garbage}");
        }
    }

    #[test]
    fn a_message_is_relayed_where_its_topic_can_be_made_out() {
        // The frame; what comes out: id, time, topic, room, data.
        let cases: &[(&str, [&str; 5])] = &[
            (r#"{"type":"message","topic":"t","id":7}"#, ["7", "", "t", "", ""]),
            (r#"{"type":"message","topic":7,"room":12.5,"data":[]}"#, ["", "", "7", "12.5", "[]"]),
            (r#"{"type":"message","topic":"t","room":["r"],"id":{}}"#, ["", "", "t", "", ""]),
            (r#"{"type":"message","topic":"t","room":false,"id":true}"#, ["true", "", "t", "", ""]),
            (
                r#"{"type":"message","topic":"t","ts":1708008762500}"#,
                ["", "2024-02-15T14:52:42.5Z", "t", "", ""],
            ),
            (
                r#"{"type":"message","topic":"t","ts":1708008762.5}"#,
                ["", "2024-02-15T14:52:42.5Z", "t", "", ""],
            ),
            (
                r#"{"type":"message","topic":"t","ts":1e400}"#,
                ["", "1970-01-01T00:00:00Z", "t", "", ""],
            ),
            (r#"{"type":"message","topic":"t","ts":"7"}"#, ["", "7", "t", "", ""]),
            (r#"{"type":"message","topic":"t","ts":"7","nonce":null}"#, ["", "7", "t", "", ""]),
            (
                r#"{"type":"message","topic":"t","ts":100000000000}"#,
                ["", "1973-03-03T09:46:40Z", "t", "", ""],
            ),
            (
                r#"{"type":"message","topic":"a","topic":"t","data":1,"data":2}"#,
                ["", "", "t", "", "2"],
            ),
            (r#"{"type":"message","topic":"t","error":false,"nonce":0}"#, ["", "", "t", "", ""]),
            (r#"{"TYPE":" Message ","Topic":"t","DATA":3}"#, ["", "", "t", "", "3"]),
            (r#"{"topic":"t","data":{}}"#, ["", "", "t", "", "{}"]),
            (r#"{"type":null,"topic":"t"}"#, ["", "", "t", "", ""]),
            (r#"{"type":[],"topic":"t","data":"\ud83d"}"#, ["", "", "t", "", r#""\ud83d""#]),
            (r#"{"type":"message","topic":"t","id":"\ud83d"}"#, ["\u{fffd}", "", "t", "", ""]),
        ];
        for (text, [id, ts, topic, room, data]) in cases {
            let Ok(ServerFrame::Message(found)) = read(text) else { panic!("{text}") };
            assert_eq!((&*found.id, &*found.ts), (*id, *ts), "{text}");
            assert_eq!((&*found.topic, &*found.room), (*topic, *room), "{text}");
            assert_eq!(&text[found.data], *data, "{text}");
        }
        for text in [r#"{"type":"message","topic":{}}"#, r#"{"type":"message","topic":""}"#] {
            assert_eq!(read(text), Err(NO_TOPIC), "{text}");
        }
    }

    #[test]
    fn the_key_of_a_message_without_an_id_depends_on_its_data() {
        let key = |data: &str| {
            let text = format!(r#"{{"type":"message","topic":"t","ts":"x"{data}}}"#);
            let Ok(ServerFrame::Message(envelope)) = read(&text) else { panic!("{text}") };
            envelope.key(&text)
        };
        assert_eq!(key(""), key(r#","data":null"#));
        assert_ne!(key(r#","data":1"#), key(r#","data":2"#));
    }

    #[test]
    fn an_error_that_says_nothing_is_none() {
        let cases = [
            ("false", None),
            ("0", None),
            ("0.0", None),
            ("null", None),
            (r#""""#, None),
            ("[]", None),
            ("true", Some("true")),
            ("7", Some("7")),
            (r#"{"code":"err_unauthorized","message":"no"}"#, Some("err_unauthorized")),
            (r#"{"message":"no"}"#, Some("no")),
            ("{}", Some("error")),
        ];
        for (error, code) in cases {
            let text = format!(
                r#"{{"type":"response","nonce":7,"error":{error},"data":{{"message":1,"room":2}}}}"#
            );
            let Ok(ServerFrame::Response(response)) = read(&text) else { panic!("{text}") };
            assert_eq!(response.error.as_deref(), code, "{text}");
            assert_eq!((&*response.nonce, &*response.text), ("7", "1"), "{text}");
            assert_eq!(response.room.as_deref(), Some("2"), "{text}");
        }
        let unnamed = read(r#"{"nonce":"n","data":{"room":"r"}}"#);
        assert!(matches!(unnamed, Ok(ServerFrame::Response(_))), "{unnamed:?}");
    }

    #[test]
    fn several_frames_in_one_text_are_found() {
        let cases: &[(&str, &[&str])] = &[
            ("\u{feff}{}", &["{}"]),
            ("[{}, {\"a\":[1]}]", &["{}", "{\"a\":[1]}"]),
            ("\u{feff}[{}]", &["{}"]),
            ("{}\n{}{}", &["{}", "{}", "{}"]),
            ("[]", &[]),
            ("{}", &[]),
            ("3", &[]),
            ("[{},]", &[]),
            ("[{}", &[]),
            ("{} x", &[]),
            ("", &[]),
        ];
        for (text, found) in cases {
            assert_eq!(parts(text), *found, "{text}");
        }
        assert_eq!(parts(&"1 ".repeat(PARTS)).len(), PARTS);
        assert!(parts(&"1 ".repeat(PARTS + 1)).is_empty());
    }

    #[test]
    fn a_command_says_what_was_configured() {
        let token = Secret::new("s3cret");
        assert_eq!(
            command(Verb::Subscribe, "n1", "channel.tips", None, &token, TokenType::Oauth),
            r#"{"type":"subscribe","nonce":"n1","data":{"topic":"channel.tips","token":"s3cret","token_type":"oauth"}}"#
        );
        assert_eq!(
            command(Verb::Unsubscribe, "n2", "channel.tips", Some("r"), &token, TokenType::Jwt),
            r#"{"type":"unsubscribe","nonce":"n2","data":{"topic":"channel.tips","room":"r","token":"s3cret","token_type":"jwt"}}"#
        );
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "\\PC*") {
            drop(read(&text));
        }

        #[test]
        fn data_is_found_wherever_it_stands(data in "[a-z0-9 {}\\[\\]\"]{0,40}", before in proptest::bool::ANY) {
            let value = serde_json::to_string(&data).unwrap();
            let text = if before {
                format!(r#"{{"data":{value},"type":"message","topic":"t"}}"#)
            } else {
                format!(r#"{{"type":"message","topic":"t" , "data" : {value} }}"#)
            };
            let Ok(ServerFrame::Message(envelope)) = read(&text) else { panic!("{text}") };
            proptest::prop_assert_eq!(&text[envelope.data], value.as_str());
        }
    }
}
