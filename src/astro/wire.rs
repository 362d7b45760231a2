//! Frames of the gateway to and from JSON.
//!
//! The envelope is parsed, the payload is not: `data` stays where it lies in the frame. Both
//! revisions of the protocol are read; what neither knows is handed on as unknown, never as an error.
//!
//! The one thing to know: every field of the envelope is optional on the wire, and may be `null`.

mod usual;

use std::{borrow::Cow, fmt, ops::Range};

use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::value::RawValue;

use crate::{
    config::{Secret, TokenType},
    event::key,
};

/// A frame from the gateway.
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

/// What stands around the payload of a message.
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
    /// Whether it was seen that no name of a personal field ([`PERSONAL_FIELDS`]) stands in `data`: the
    /// reader passes each of its names anyway. `false`: one may.
    ///
    /// [`PERSONAL_FIELDS`]: crate::config::PERSONAL_FIELDS
    pub impersonal: bool,
}

impl Envelope<'_> {
    /// The deduplication key of the message in `frame`, of which this is the envelope.
    pub fn key(&self, frame: &str) -> Box<str> {
        let data = frame.as_bytes().get(self.data.clone()).filter(|data| !data.is_empty());
        key::of(&self.id, &self.ts, &self.topic, &self.room, data.unwrap_or(b"null"))
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
}

/// A frame that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// Not JSON, or not an object of the envelope's shape.
    #[error("not a frame of the gateway")]
    Json(#[from] serde_json::Error),
    /// Nobody could have subscribed a message without a topic.
    #[error("a message without a topic")]
    NoTopic,
    /// A `reconnect` without its token is of no use.
    #[error("a reconnect frame without a token")]
    NoToken,
}

/// A string of the envelope that costs no copy where it has no escapes. `null` reads as empty.
#[derive(Default)]
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or null")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
            fn visit_unit<E>(self) -> Result<Text<'de>, E> {
                Ok(Text::default())
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[derive(Deserialize)]
struct Raw<'a> {
    #[serde(borrow, default)]
    id: Text<'a>,
    #[serde(borrow, default)]
    ts: Text<'a>,
    #[serde(borrow, default, rename = "type")]
    kind: Text<'a>,
    #[serde(borrow, default)]
    topic: Text<'a>,
    #[serde(borrow, default)]
    room: Text<'a>,
    #[serde(borrow, default)]
    nonce: Text<'a>,
    #[serde(borrow, default)]
    error: Text<'a>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
}

/// `data` of a response: an object in both revisions, a bare string in some older servers.
#[derive(Deserialize)]
#[serde(untagged)]
enum ResponseData {
    Object {
        #[serde(default)]
        message: Option<String>,
        #[serde(default)]
        room: Option<String>,
    },
    Bare(String),
    Other(de::IgnoredAny),
}

#[derive(Deserialize)]
struct ReconnectData {
    reconnect_token: String,
}

/// Reads one text frame.
pub fn read(text: &str) -> Result<ServerFrame<'_>, WireError> {
    usual::message(text).map_or_else(|| read_any(text), |usual| Ok(ServerFrame::Message(usual)))
}

/// Reads whatever frame, the usual as well as the odd.
fn read_any(text: &str) -> Result<ServerFrame<'_>, WireError> {
    let raw: Raw<'_> = serde_json::from_str(text)?;
    let kind = raw.kind.0;
    // The older document's table says `RESPONSE`, its examples say `response`.
    if kind.eq_ignore_ascii_case("message") {
        if raw.topic.0.is_empty() {
            return Err(WireError::NoTopic);
        }
        let data = raw.data.map_or(0..0, |data| place(text, data.get()));
        Ok(ServerFrame::Message(Envelope {
            id: raw.id.0,
            ts: raw.ts.0,
            topic: raw.topic.0,
            room: raw.room.0,
            data,
            impersonal: false,
        }))
    } else if kind.eq_ignore_ascii_case("response") {
        let (text, room) = match raw.data.map(|data| serde_json::from_str(data.get())) {
            Some(Ok(ResponseData::Object { message, room })) => (message.unwrap_or_default(), room),
            Some(Ok(ResponseData::Bare(text))) => (text, None),
            Some(Ok(ResponseData::Other(_)) | Err(_)) | None => (String::new(), None),
        };
        let error = (!raw.error.0.is_empty()).then_some(raw.error.0);
        let room = room.filter(|room| !room.is_empty());
        Ok(ServerFrame::Response(Response { nonce: raw.nonce.0, error, text, room }))
    } else if kind.eq_ignore_ascii_case("welcome") {
        Ok(ServerFrame::Welcome)
    } else if kind.eq_ignore_ascii_case("reconnect") {
        let data: ReconnectData = raw
            .data
            .and_then(|data| serde_json::from_str(data.get()).ok())
            .ok_or(WireError::NoToken)?;
        Ok(ServerFrame::Reconnect { token: Secret::new(data.reconnect_token) })
    } else {
        Ok(ServerFrame::Unknown(kind))
    }
}

/// Where `part`, a slice of `whole`, lies in it.
fn place(whole: &str, part: &str) -> Range<usize> {
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
    fn what_a_message_lacks_is_empty() {
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
        assert!(matches!(read(r#"{"type":"reconnect"}"#), Err(WireError::NoToken)));
        assert_eq!(read(r#"{"type":"bye"}"#).unwrap(), ServerFrame::Unknown("bye".into()));
        assert_eq!(read("{}").unwrap(), ServerFrame::Unknown("".into()));
        for nobodys in [r#"{"type":"message"}"#, r#"{"type":"message","topic":null,"data":{}}"#] {
            assert!(matches!(read(nobodys), Err(WireError::NoTopic)), "{nobodys}");
        }
        for garbage in ["", "3", "{", r#"{"type":{}}"#, r#"{"type":"message","id":7}"#] {
            assert!(matches!(read(garbage), Err(WireError::Json(_))), "{garbage}");
        }
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
