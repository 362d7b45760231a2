//! Why a connection to a broker ended, or was never made: in words, and what follows from it.
//!
//! The tables of reason codes stand here, for both versions of the protocol. Section numbers are those of
//! the OASIS standards "MQTT Version 5.0" and, for [`of_connack_v4`], "MQTT Version 3.1.1".
//!
//! It does no I/O. What the client libraries say of an error repeats itself ("Mqtt state: Connection
//! closed by peer abruptly"), so each is said here once, in our words, with what to do where that is known.

use std::io;

use super::library::{
    v4,
    v5::{ConnectReturnCode, DisconnectReasonCode, PubAckReason, PubRecReason},
};
use crate::{
    base::text::{EXCERPT, excerpt},
    sink::{Cause, Failure},
};

/// What the broker thinks of a publication.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Verdict {
    /// No answer yet.
    #[default]
    Pending,
    Accepted,
    /// Not now.
    Busy(String),
    /// Never.
    Refused(String),
    /// Never, and nothing else at this topic either.
    Denied(String),
}

/// Why a connection ended, or was never made.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Lost {
    pub(crate) why: Why,
    text: String,
}

/// What follows from that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// The broker ended the connection and named no reason, or one that may be the event's fault.
    Closed,
    /// Another client connected with our client id.
    TakenOver,
    /// The broker ended the connection at what was sent last, which it will never take.
    Event,
    /// The broker asks for patience.
    Busy,
    /// A permission or configuration fault: nothing gets through until a human changes something.
    Denied,
    /// All else: no network, no answer, an answer that makes no sense, a broker that is stopped.
    Down,
}

impl Lost {
    pub(crate) fn new(why: Why, text: impl Into<String>) -> Self {
        Self { why, text: text.into() }
    }

    /// As the cause of a failure.
    pub(crate) fn cause(self) -> Cause {
        match self.why {
            Why::Busy => Cause::Busy { wait: None, reason: self.text },
            Why::Denied => Cause::Denied { reason: self.text },
            Why::Closed | Why::TakenOver | Why::Event | Why::Down => Cause::Down(self.into()),
        }
    }

    /// The cause where there was a connection: whatever the broker wants, it has to be made again.
    pub(crate) fn cause_of_end(self) -> Cause {
        match self.why {
            Why::Denied => self.cause(),
            _ => Cause::Down(self.into()),
        }
    }

    /// As the failure of a connection that was never made.
    pub(super) fn failure(self) -> Failure {
        self.cause().into()
    }
}

impl From<&str> for Lost {
    fn from(text: &str) -> Self {
        Self::new(Why::Down, text)
    }
}

impl From<String> for Lost {
    fn from(text: String) -> Self {
        Self::new(Why::Down, text)
    }
}

/// What to do where a broker does not understand MQTT 5.
const SET_V4: &str = "set version = \"3.1.1\"";
/// And where it understands nothing else.
const SET_V5: &str = "set version = \"5\"";

/// Section 3.2.2.2 of version 5. The sink's `client_id` is named where it matters.
pub(super) fn of_connack(code: ConnectReturnCode, client_id: &str) -> Lost {
    use ConnectReturnCode as Code;
    let (why, number, words) = match code {
        Code::Success => (Why::Down, 0x00, "success, and yet refused".to_owned()),
        // Of MQTT 3.1.1, where a broker answers in the version that it speaks.
        Code::RefusedProtocolVersion => {
            (Why::Denied, 0x01, format!("it does not speak MQTT 5: {SET_V4}"))
        }
        Code::BadClientId => (Why::Denied, 0x02, bad_client_id(client_id)),
        Code::ServiceUnavailable => (Why::Busy, 0x03, "it is not available".into()),
        Code::UnspecifiedError => (Why::Down, 0x80, "unspecified error".into()),
        Code::MalformedPacket => (Why::Down, 0x81, "malformed packet".into()),
        Code::ProtocolError => (Why::Down, 0x82, "protocol error".into()),
        Code::ImplementationSpecificError => {
            (Why::Down, 0x83, "implementation specific error".into())
        }
        Code::UnsupportedProtocolVersion => {
            (Why::Denied, 0x84, format!("it does not speak MQTT 5: {SET_V4}"))
        }
        Code::ClientIdentifierNotValid => (Why::Denied, 0x85, bad_client_id(client_id)),
        Code::BadUserNamePassword => (Why::Denied, 0x86, BAD_LOGIN.into()),
        Code::NotAuthorized => (Why::Denied, 0x87, NOT_AUTHORIZED.into()),
        Code::ServerUnavailable => (Why::Busy, 0x88, "it is not available".into()),
        Code::ServerBusy => (Why::Busy, 0x89, "it is busy".into()),
        Code::Banned => (Why::Denied, 0x8A, "this client is banned".into()),
        Code::BadAuthenticationMethod => {
            (Why::Denied, 0x8C, "it wants another way to authenticate".into())
        }
        Code::TopicNameInvalid => (Why::Denied, 0x90, format!("the topic {OF_THE_WILL}")),
        Code::PacketTooLarge => (Why::Denied, 0x95, "our CONNECT is too large for it".into()),
        Code::QuotaExceeded => (Why::Busy, 0x97, "quota exceeded".into()),
        Code::PayloadFormatInvalid => (Why::Denied, 0x99, format!("the payload {OF_THE_WILL}")),
        Code::RetainNotSupported => (Why::Denied, 0x9A, format!("a retained message {NO_WILL}")),
        Code::QoSNotSupported => (Why::Denied, 0x9B, format!("the QoS {NO_WILL}")),
        Code::UseAnotherServer => {
            (Why::Down, 0x9C, "it asks us to use another server for now".into())
        }
        Code::ServerMoved => (Why::Denied, 0x9D, "it has moved: set url to the new address".into()),
        Code::ConnectionRateExceeded => (Why::Busy, 0x9F, "it is connected to too often".into()),
    };
    Lost::new(why, format!("the broker refused the connection: {words} (0x{number:02X})"))
}

const BAD_LOGIN: &str = "user or password is wrong";
const NOT_AUTHORIZED: &str = "not authorized; look at user, password and client_id";
const OF_THE_WILL: &str = "of the last will is not taken";
const NO_WILL: &str =
    "as the last will needs it is not taken: set availability_topic = \"\" and state = false";

fn bad_client_id(client_id: &str) -> String {
    format!("the client id {client_id} is not valid for it: set client_id")
}

/// Section 3.2.2.3 of version 3.1.1.
pub(super) fn of_connack_v4(code: v4::ConnectReturnCode, client_id: &str) -> Lost {
    use v4::ConnectReturnCode as Code;
    let (why, words) = match code {
        Code::Success => (Why::Down, "success, and yet refused".to_owned()),
        Code::RefusedProtocolVersion => {
            (Why::Denied, "it does not speak MQTT 3.1.1: set version = \"5\"".into())
        }
        Code::BadClientId => (Why::Denied, bad_client_id(client_id)),
        Code::ServiceUnavailable => (Why::Busy, "it is not available".into()),
        Code::BadUserNamePassword => (Why::Denied, BAD_LOGIN.into()),
        Code::NotAuthorized => (Why::Denied, NOT_AUTHORIZED.into()),
    };
    Lost::new(why, format!("the broker refused the connection: {words} (0x{:02X})", code as u8))
}

/// Section 3.14.2.1: why the broker ended a connection that stood. `said` is its own text.
pub(super) fn of_disconnect(
    code: DisconnectReasonCode,
    said: Option<&str>,
    client_id: &str,
) -> Lost {
    use DisconnectReasonCode as Code;
    let (why, words) = match code {
        Code::NormalDisconnection | Code::DisconnectWithWillMessage => (Why::Closed, "no reason"),
        Code::UnspecifiedError => (Why::Closed, "unspecified error"),
        Code::MalformedPacket => (Why::Closed, "malformed packet"),
        Code::ProtocolError => (Why::Closed, "protocol error"),
        Code::ImplementationSpecificError => (Why::Closed, "implementation specific error"),
        // Of an event, or of us: our right to be there may have ended.
        Code::NotAuthorized => (Why::Closed, "not authorized"),
        Code::ServerBusy => (Why::Busy, "it is busy"),
        Code::ServerShuttingDown => (Why::Down, "it is shutting down"),
        Code::KeepAliveTimeout => (Why::Down, "it received nothing from us within the keep-alive"),
        Code::SessionTakenOver => (Why::TakenOver, "session taken over"),
        Code::TopicFilterInvalid => (Why::Down, "topic filter invalid"),
        Code::TopicNameInvalid => (Why::Event, "topic name invalid"),
        Code::ReceiveMaximumExceeded => (Why::Down, "receive maximum exceeded"),
        Code::TopicAliasInvalid => (Why::Down, "topic alias invalid"),
        Code::PacketTooLarge => (Why::Event, "packet too large"),
        Code::MessageRateTooHigh => (Why::Busy, "message rate too high"),
        Code::QuotaExceeded => (Why::Busy, "quota exceeded"),
        Code::AdministrativeAction => (Why::Down, "administrative action"),
        Code::PayloadFormatInvalid => (Why::Event, "payload format invalid"),
        Code::RetainNotSupported => {
            (Why::Denied, "it keeps no retained messages: set retain = false")
        }
        Code::QoSNotSupported => (Why::Denied, "it does not take this QoS: set qos lower"),
        Code::UseAnotherServer => (Why::Down, "it asks us to use another server for now"),
        Code::ServerMoved => (Why::Denied, "it has moved: set url to the new address"),
        Code::SharedSubscriptionNotSupported => (Why::Down, "no shared subscriptions"),
        Code::ConnectionRateExceeded => (Why::Busy, "it is connected to too often"),
        Code::MaximumConnectTime => (Why::Down, "the longest time of a connection has passed"),
        Code::SubscriptionIdentifiersNotSupported => (Why::Down, "no subscription identifiers"),
        Code::WildcardSubscriptionsNotSupported => (Why::Down, "no wildcard subscriptions"),
    };
    let number = code as u8;
    let mut text = format!("the broker ended the connection: {words} (0x{number:02X})");
    if why == Why::TakenOver {
        text = format!("{text}: {}", taken_over(client_id));
    }
    if let Some(said) = said.filter(|said| !said.is_empty()) {
        text = format!("{text}: {}", short(said));
    }
    Lost::new(why, text)
}

/// What an operator should know of two clients with one name.
pub(super) fn taken_over(client_id: &str) -> String {
    format!("another client uses the client id {client_id}: give one of the two another client_id")
}

fn short(said: &str) -> String {
    excerpt(said, EXCERPT)
}

pub(super) fn of_io(error: &io::Error) -> Lost {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::ConnectionReset
        | Kind::ConnectionAborted
        | Kind::BrokenPipe
        | Kind::UnexpectedEof
        | Kind::NotConnected => closed(),
        _ => Lost::new(Why::Down, format!("the connection to the broker failed: {error}")),
    }
}

/// The broker ended the connection without a word.
pub(super) fn closed() -> Lost {
    Lost::new(Why::Closed, "the broker ended the connection without a reason")
}

/// The broker ended the connection instead of answering our CONNECT.
pub(super) fn closed_at_connect(version5: bool) -> Lost {
    let (speaks, remedy) = other_version(version5);
    format!(
        "the broker ended the connection instead of answering: if it speaks only MQTT {speaks}, {remedy}; \
         if its port is for TLS or WebSockets, look at url"
    )
    .into()
}

/// What came instead of the answer to our CONNECT makes no sense.
pub(super) fn no_mqtt(version5: bool) -> Lost {
    let (speaks, remedy) = other_version(version5);
    format!(
        "what answered cannot be understood: if the broker speaks only MQTT {speaks}, {remedy}; or this is \
         the port of something else: look at url"
    )
    .into()
}

/// The version that was not tried, and how it is tried.
fn other_version(version5: bool) -> (&'static str, &'static str) {
    if version5 { ("3.1.1", SET_V4) } else { ("5", SET_V5) }
}

/// The broker accepted our connection and has not answered our CONNECT.
pub(super) fn silent_at_connect() -> Lost {
    "the broker has not answered in time; if it is well, look at url: is its port for TLS, or not?"
        .into()
}

pub(super) fn unreachable(error: &io::Error) -> Lost {
    format!("the broker cannot be reached: {error}").into()
}

pub(super) fn no_tls(error: &dyn std::error::Error) -> Lost {
    format!(
        "no TLS with the broker: {}; look at url and ca_file, and whether its port is for TLS",
        deepest(error)
    )
    .into()
}

pub(super) fn no_websocket(error: &dyn std::error::Error) -> Lost {
    format!("no WebSocket with the broker: {}; look at the path of url", deepest(error)).into()
}

/// The client library takes nothing more.
pub(super) fn client_ended() -> Lost {
    "the connection to the broker is over".into()
}

pub(super) fn no_ping() -> Lost {
    "the broker has not answered a ping within the keep-alive".into()
}

pub(super) fn garbage(error: &dyn std::error::Error) -> Lost {
    format!("what the broker sent cannot be understood: {}", deepest(error)).into()
}

/// The error at the root: those above it only repeat it.
fn deepest(error: &dyn std::error::Error) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

/// Section 3.4.2.1: what the broker thinks of an event at `topic`. `said` is its own text.
pub(super) fn of_puback(reason: PubAckReason, said: Option<&str>) -> Verdict {
    let text = |words: &str| {
        let text = format!("{words} (0x{:02X})", reason as u8);
        match said.filter(|said| !said.is_empty()) {
            Some(said) => format!("{text}: {}", short(said)),
            None => text,
        }
    };
    match reason {
        PubAckReason::Success | PubAckReason::NoMatchingSubscribers => Verdict::Accepted,
        PubAckReason::QuotaExceeded => Verdict::Busy(text("quota exceeded")),
        // Of these two the standard says nothing that would blame the event: a broker in trouble (its
        // disk is full, its store is away) uses them for each that comes.
        PubAckReason::UnspecifiedError => Verdict::Busy(text("unspecified error")),
        PubAckReason::ImplementationSpecificError => {
            Verdict::Busy(text("implementation specific error"))
        }
        // The broker takes this packet id for one that is in use: its session is not ours.
        PubAckReason::PacketIdentifierInUse => Verdict::Busy(text("packet identifier in use")),
        PubAckReason::NotAuthorized => Verdict::Denied(text("not authorized")),
        PubAckReason::TopicNameInvalid => Verdict::Denied(text("topic name invalid")),
        PubAckReason::PayloadFormatInvalid => Verdict::Refused(text("payload format invalid")),
    }
}

/// Section 3.5.2.1: the same reasons, in a type of their own.
pub(super) fn of_pubrec(reason: PubRecReason, said: Option<&str>) -> Verdict {
    let same = match reason {
        PubRecReason::Success => PubAckReason::Success,
        PubRecReason::NoMatchingSubscribers => PubAckReason::NoMatchingSubscribers,
        PubRecReason::UnspecifiedError => PubAckReason::UnspecifiedError,
        PubRecReason::ImplementationSpecificError => PubAckReason::ImplementationSpecificError,
        PubRecReason::NotAuthorized => PubAckReason::NotAuthorized,
        PubRecReason::TopicNameInvalid => PubAckReason::TopicNameInvalid,
        PubRecReason::PacketIdentifierInUse => PubAckReason::PacketIdentifierInUse,
        PubRecReason::QuotaExceeded => PubAckReason::QuotaExceeded,
        PubRecReason::PayloadFormatInvalid => PubAckReason::PayloadFormatInvalid,
    };
    of_puback(same, said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connack_codes_have_their_consequences() {
        use ConnectReturnCode as Code;
        for (code, number, why) in [
            (Code::UnspecifiedError, "0x80", Why::Down),
            (Code::MalformedPacket, "0x81", Why::Down),
            (Code::ProtocolError, "0x82", Why::Down),
            (Code::ImplementationSpecificError, "0x83", Why::Down),
            (Code::UnsupportedProtocolVersion, "0x84", Why::Denied),
            (Code::ClientIdentifierNotValid, "0x85", Why::Denied),
            (Code::BadUserNamePassword, "0x86", Why::Denied),
            (Code::NotAuthorized, "0x87", Why::Denied),
            (Code::ServerUnavailable, "0x88", Why::Busy),
            (Code::ServerBusy, "0x89", Why::Busy),
            (Code::Banned, "0x8A", Why::Denied),
            (Code::BadAuthenticationMethod, "0x8C", Why::Denied),
            (Code::TopicNameInvalid, "0x90", Why::Denied),
            (Code::PacketTooLarge, "0x95", Why::Denied),
            (Code::QuotaExceeded, "0x97", Why::Busy),
            (Code::PayloadFormatInvalid, "0x99", Why::Denied),
            (Code::RetainNotSupported, "0x9A", Why::Denied),
            (Code::QoSNotSupported, "0x9B", Why::Denied),
            (Code::UseAnotherServer, "0x9C", Why::Down),
            (Code::ServerMoved, "0x9D", Why::Denied),
            (Code::ConnectionRateExceeded, "0x9F", Why::Busy),
        ] {
            let lost = of_connack(code, "me");
            let text = lost.to_string();
            assert_eq!(lost.why, why, "{text}");
            assert!(text.contains(number), "{text}");
        }
        assert!(of_connack(Code::UnsupportedProtocolVersion, "me").to_string().contains(SET_V4));
        assert!(of_connack(Code::ClientIdentifierNotValid, "me").to_string().contains("id me is"));
    }

    #[test]
    fn connack_codes_of_version_3_1_1_have_their_consequences() {
        use v4::ConnectReturnCode as Code;
        for (code, why, word) in [
            (Code::RefusedProtocolVersion, Why::Denied, "version = \"5\""),
            (Code::BadClientId, Why::Denied, "client_id"),
            (Code::ServiceUnavailable, Why::Busy, "available"),
            (Code::BadUserNamePassword, Why::Denied, "password"),
            (Code::NotAuthorized, Why::Denied, "authorized"),
        ] {
            let lost = of_connack_v4(code, "me");
            assert_eq!(lost.why, why);
            assert!(lost.to_string().contains(word), "{lost}");
        }
    }

    #[test]
    fn disconnect_codes_have_their_consequences() {
        for (number, why) in [
            (0x00, Why::Closed),
            (0x04, Why::Closed),
            (0x80, Why::Closed),
            (0x81, Why::Closed),
            (0x82, Why::Closed),
            (0x83, Why::Closed),
            (0x87, Why::Closed),
            (0x89, Why::Busy),
            (0x8B, Why::Down),
            (0x8D, Why::Down),
            (0x8E, Why::TakenOver),
            (0x8F, Why::Down),
            (0x90, Why::Event),
            (0x93, Why::Down),
            (0x94, Why::Down),
            (0x95, Why::Event),
            (0x96, Why::Busy),
            (0x97, Why::Busy),
            (0x98, Why::Down),
            (0x99, Why::Event),
            (0x9A, Why::Denied),
            (0x9B, Why::Denied),
            (0x9C, Why::Down),
            (0x9D, Why::Denied),
            (0x9E, Why::Down),
            (0x9F, Why::Busy),
            (0xA0, Why::Down),
            (0xA1, Why::Down),
            (0xA2, Why::Down),
        ] {
            let code = DisconnectReasonCode::try_from(number).unwrap();
            let lost = of_disconnect(code, Some("bye"), "astro-relay-home");
            let text = lost.to_string();
            assert_eq!(lost.why, why, "{text}");
            assert!(text.contains(&format!("0x{number:02X}")) && text.ends_with(": bye"), "{text}");
            let named = text.contains("another client uses the client id astro-relay-home");
            assert_eq!(named, number == 0x8E, "{text}");
        }
    }

    #[test]
    fn puback_codes_refuse_the_event_or_the_topic_or_ask_for_patience() {
        use PubAckReason as Reason;
        for (reason, number, kind) in [
            (Reason::UnspecifiedError, "0x80", "busy"),
            (Reason::ImplementationSpecificError, "0x83", "busy"),
            (Reason::NotAuthorized, "0x87", "denied"),
            (Reason::TopicNameInvalid, "0x90", "denied"),
            (Reason::PacketIdentifierInUse, "0x91", "busy"),
            (Reason::QuotaExceeded, "0x97", "busy"),
            (Reason::PayloadFormatInvalid, "0x99", "refused"),
        ] {
            let (is, text) = match of_puback(reason, Some("why")) {
                Verdict::Busy(text) => ("busy", text),
                Verdict::Refused(text) => ("refused", text),
                Verdict::Denied(text) => ("denied", text),
                verdict => panic!("{verdict:?}"),
            };
            assert!(text.contains(number) && text.ends_with(": why"), "{text}");
            assert_eq!(is, kind, "{number}");
        }
        for reason in [Reason::Success, Reason::NoMatchingSubscribers] {
            assert_eq!(of_puback(reason, None), Verdict::Accepted);
        }
    }

    #[test]
    fn reason_strings_are_bounded() {
        let said = "ü".repeat(100_000);
        let lost = of_disconnect(DisconnectReasonCode::ServerBusy, Some(&said), "me");
        assert!(lost.to_string().len() < 1000);
    }
}
