//! What goes wrong, and when: everything here can be switched while the simulation runs.
//!
//! Faults of one connection (ending it, silencing it, sending something malformed) are methods of
//! [`World`](crate::World); this file has their names, and the faults that meet whoever comes next.

use std::{collections::VecDeque, time::Duration};

use crate::frame;

/// Faults that meet every connection, or the next ones.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// What the next connections meet, one each, before [`Faults::every`] has its turn again.
    pub next: VecDeque<Reception>,
    /// What every other connection meets.
    pub every: Reception,
    /// Commands that are answered with an error; the first that fits is taken.
    pub refusals: Vec<Refusal>,
    /// Whether reconnect tokens are refused, as if they had expired.
    pub refuse_reconnect: bool,
    /// Whether every message is sent twice.
    pub duplicate: bool,
    /// How long the answer to an upgrade takes.
    pub upgrade_delay: Duration,
    /// How long the welcome takes.
    pub welcome_delay: Duration,
    /// How long the response to a command takes, and with it the command's effect.
    pub response_delay: Duration,
    /// How long the response to a command takes after the command's effect.
    pub answer_delay: Duration,
    /// One byte at a time, with this pause between two.
    pub trickle: Option<Duration>,
}

/// What a connection meets when it opens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Reception {
    /// Nothing out of order.
    #[default]
    Accept,
    /// The upgrade is refused: 502 while the server drains, 429 when connections come too fast.
    Refuse {
        status: u16,
        /// `Retry-After`, in seconds or as a date.
        retry_after: Option<String>,
    },
    /// Accepted, welcomed, and closed after a while (at once: without a welcome).
    Close { after: Duration, end: End },
    /// Accepted, and then not a word: half open.
    Silent,
    /// The TCP connection stays open, and the upgrade is never answered.
    NeverUpgrades,
}

/// How a connection is ended by the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// What waits is sent, then FIN without a close frame.
    Fin,
    /// RST at once: what waits is lost.
    Reset,
    /// What waits is sent, then a close frame with this code.
    Close(u16),
}

/// Commands that are answered with an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Only for this topic.
    pub topic: Option<String>,
    /// Only for this room, as requested.
    pub room: Option<String>,
    /// The code. `rate_limit_exceeded` is sent without a nonce, as Astro does.
    pub error: String,
    /// The text for people.
    pub message: String,
    /// So many that fit are let through first.
    pub skip: u32,
    /// Of those that fit, every n-th; 1 is each.
    pub every: u32,
    /// How often at most; `None` is always.
    pub times: Option<u32>,
}

impl Refusal {
    /// Answers every command with this error.
    pub fn of(error: &str) -> Self {
        Self {
            topic: None,
            room: None,
            error: error.to_owned(),
            message: match error {
                "err_internal_error" => "internal error",
                "err_bad_request" => "bad request",
                "err_unauthorized" => "invalid token",
                "err_deadline_exceeded" => "authorization timed out",
                "rate_limit_exceeded" => "rate limit exceeded",
                _ => "could not be processed",
            }
            .to_owned(),
            skip: 0,
            every: 1,
            times: None,
        }
    }

    /// Only for this topic.
    #[must_use]
    pub fn topic(self, topic: &str) -> Self {
        Self { topic: Some(topic.to_owned()), ..self }
    }

    /// Only for this room.
    #[must_use]
    pub fn room(self, room: &str) -> Self {
        Self { room: Some(room.to_owned()), ..self }
    }

    /// So often at most.
    #[must_use]
    pub fn times(self, times: u32) -> Self {
        Self { times: Some(times), ..self }
    }

    /// Whether it takes this command; counts it if it fits.
    fn takes(&mut self, topic: &str, room: &str) -> bool {
        let fits = |wanted: &Option<String>, is| wanted.as_deref().is_none_or(|w| w == is);
        if !fits(&self.topic, topic) || !fits(&self.room, room) || self.times == Some(0) {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        // The next turn comes after `every - 1` others.
        self.skip = self.every.saturating_sub(1);
        self.times = self.times.map(|times| times - 1);
        true
    }
}

impl Faults {
    /// What the connection that opens now meets.
    pub(crate) fn reception(&mut self) -> Reception {
        self.next.pop_front().unwrap_or_else(|| self.every.clone())
    }

    /// The error with which a command is answered, if it is: its code and text.
    pub(crate) fn refusal(&mut self, topic: &str, room: &str) -> Option<(String, String)> {
        let refusal = self.refusals.iter_mut().find_map(|r| r.takes(topic, room).then_some(r))?;
        Some((refusal.error.clone(), refusal.message.clone()))
    }
}

/// What happens to one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RestFault {
    /// It is answered with this status; nothing is done.
    Status {
        status: u16,
        /// `Retry-After`, in seconds or as a date.
        retry_after: Option<String>,
        /// Whether the error body lacks its opening brace, as the documentation shows it once.
        broken_body: bool,
    },
    /// It is answered with 200 and this body; nothing is done.
    Body(String),
    /// It is answered late.
    Delay(Duration),
    /// It is never answered.
    Hang,
    /// It is done, and the connection ends before the answer.
    DropAfter,
    /// Nothing happens to it: for a pattern such as "every second".
    Pass,
}

impl RestFault {
    /// Answered with this status.
    pub fn status(status: u16) -> Self {
        Self::Status { status, retry_after: None, broken_body: false }
    }
}

/// Something that is not what a client should get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// Text that is no JSON.
    InvalidJson,
    /// A text frame that is no UTF-8.
    InvalidUtf8,
    /// A binary frame.
    Binary,
    /// A message of this many bytes.
    Oversized(usize),
    /// JSON nested this deep.
    Deep(usize),
    /// An envelope of a type that nobody knows.
    UnknownType,
    /// JSON that is no object.
    NoObject,
    /// A message without a topic.
    NoTopic,
    /// A frame with a reserved opcode.
    ReservedOpcode,
}

impl Malformed {
    /// Appends its frame.
    pub(crate) fn put(self, buffer: &mut Vec<u8>) {
        /// An opcode that RFC 6455 reserves.
        const RESERVED: u8 = 0x3;
        match self {
            Self::InvalidJson => frame::put(buffer, frame::TEXT, br#"{"type":"message","topic"#),
            Self::InvalidUtf8 => frame::put(buffer, frame::TEXT, b"{\"type\":\"\xFF\xFE\"}"),
            Self::Binary => frame::put(buffer, frame::BINARY, br#"{"type":"message"}"#),
            Self::Oversized(bytes) => {
                let mut text =
                    br#"{"type":"message","topic":"channel.oversized","data":""#.to_vec();
                text.resize(bytes.saturating_sub(2).max(text.len()), b'x');
                text.extend_from_slice(b"\"}");
                frame::put(buffer, frame::TEXT, &text);
            }
            Self::Deep(depth) => {
                let mut text = br#"{"type":"message","topic":"channel.deep","data":"#.to_vec();
                text.resize(text.len() + depth, b'[');
                text.resize(text.len() + depth, b']');
                text.push(b'}');
                frame::put(buffer, frame::TEXT, &text);
            }
            Self::UnknownType => {
                frame::put(buffer, frame::TEXT, br#"{"type":"greeting","data":{"mood":"fine"}}"#);
            }
            Self::NoObject => frame::put(buffer, frame::TEXT, b"[1,2,3]"),
            Self::NoTopic => frame::put(buffer, frame::TEXT, br#"{"type":"message","data":{}}"#),
            Self::ReservedOpcode => frame::put(buffer, RESERVED, b"?"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_counts_only_what_fits() {
        let mut faults = Faults {
            refusals: vec![
                Refusal::of("err_internal_error").topic("a").times(2),
                Refusal { skip: 1, every: 3, ..Refusal::of("err_bad_request").room("r") },
            ],
            ..Faults::default()
        };
        let mut code = |topic, room| faults.refusal(topic, room).map(|(code, _)| code);
        assert_eq!(code("b", ""), None);
        assert_eq!(code("a", "").as_deref(), Some("err_internal_error"));
        assert_eq!(code("a", "").as_deref(), Some("err_internal_error"));
        assert_eq!(code("a", ""), None);
        let refused: Vec<bool> = (0..7).map(|_| code("b", "r").is_some()).collect();
        assert_eq!(refused, [false, true, false, false, true, false, false]);
    }

    #[test]
    fn an_oversized_message_has_the_size_asked_for() {
        let mut buffer = Vec::new();
        Malformed::Oversized(70_000).put(&mut buffer);
        assert_eq!(buffer.len(), 70_000 + 10);
    }
}
