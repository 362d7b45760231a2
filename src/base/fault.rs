//! Why a connection failed, said once, in words, and with what to do about it.
//!
//! Libraries wrap an error three or four times, and each layer repeats the text of the one below. Here
//! the chain is walked: what is recognised by its type (TLS, the operating system's errors, deadlines)
//! gets words of ours, what repeats is left out, and what is left stays as it is.
//!
//! It never adds an address. A text of a library that holds one is for whoever
//! calls to leave out before.

use std::{error::Error, io, iter::successors};

use rustls::{
    AlertDescription, CertificateError, Error as TlsError, InvalidMessage, pki_types::UnixTime,
};

use crate::base::clock;

/// Links of a chain of causes that are looked at, at most.
const DEEPEST: usize = 16;

/// What layers say of themselves that tells nothing beside the cause below them.
const NOISE: &[&str] = &[
    "client error (connect)", "connection error", "error sending request",
    "error trying to connect", "i/o", "io error", "mqtt state", "tcp connect error", "tls",
    "tls error", "transport error", "websocket", "websocket protocol error",
];

/// Why it failed, in one line.
pub(crate) fn explain(error: &(dyn Error + 'static)) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut next = Some(error);
    for _ in 0..DEEPEST {
        let Some(error) = next else { break };
        let words = words(error);
        let known = words.is_some();
        add(&mut parts, words.unwrap_or_else(|| plain(&error.to_string())), error);
        if known {
            break;
        }
        next = below(error);
    }
    parts.retain(|part| !part.is_empty());
    match parts.split_last() {
        Some((last, before)) => {
            let told = before.iter().filter(|part| !is_noise(part));
            told.chain([last]).map(String::as_str).collect::<Vec<_>>().join(": ")
        }
        None => "no reason was given".to_owned(),
    }
}

/// An error and all its causes as they stand, in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let texts = successors(Some(error), |&error| error.source()).map(ToString::to_string);
    texts.collect::<Vec<_>>().join(": ")
}

/// Puts a part behind the others, and takes out of these what it says again.
fn add(parts: &mut Vec<String>, text: String, error: &(dyn Error + 'static)) {
    let raw = plain(&error.to_string());
    for part in parts.iter_mut() {
        if let Some(before) = part.strip_suffix(&raw) {
            *part = before.trim_end_matches([':', ' ', '-', '(']).to_owned();
        } else if part.contains(&raw) && raw == text {
            // It stands there already, with more around it.
            return;
        }
    }
    parts.push(text);
}

/// The cause below. An [`io::Error`] hands out the cause of what it wraps, and skips that itself.
fn below<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e (dyn Error + 'static)> {
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => Some(inner),
        None => error.source(),
    }
}

/// A library's text without what only a programmer needs.
fn plain(text: &str) -> String {
    let text = text.trim();
    match text.rsplit_once(" (os error ") {
        Some((before, number)) if number.ends_with(')') => before.to_owned(),
        _ => text.to_owned(),
    }
}

fn is_noise(part: &str) -> bool {
    let part = part.trim_end_matches([':', ' ', '.']).to_lowercase();
    NOISE.contains(&part.as_str())
}

/// Our words for what is recognised.
fn words(error: &(dyn Error + 'static)) -> Option<String> {
    if let Some(error) = error.downcast_ref::<TlsError>() {
        return Some(tls(error));
    }
    if error.is::<tokio::time::error::Elapsed>() {
        return Some("no answer in time".into());
    }
    if let Some(error) = error.downcast_ref::<hyper::Error>() {
        return http(error).map(str::to_owned);
    }
    let error = error.downcast_ref::<io::Error>()?;
    // The standard library has no kind of its own for a name that is not resolved.
    if let Some(why) = error.to_string().strip_prefix("failed to lookup address information") {
        return Some(name(why));
    }
    if let Some(inner) = error.get_ref() {
        // What it wraps says more; only the end of a stream in a handshake says less.
        let early = error.kind() == io::ErrorKind::UnexpectedEof;
        return early.then(|| eof(&inner.to_string()).to_owned());
    }
    Some(system(error))
}

fn eof(text: &str) -> &'static str {
    if text.contains("handshake") {
        "the server closed the connection instead of beginning TLS: is this its port for TLS, and does \
         it want a client certificate?"
    } else {
        "the server closed the connection"
    }
}

/// What the operating system says of a connection or a name.
fn system(error: &io::Error) -> String {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::ConnectionRefused => {
            "connection refused: nothing listens at this address and port".into()
        }
        Kind::ConnectionReset => "the other side reset the connection".into(),
        Kind::ConnectionAborted | Kind::BrokenPipe | Kind::NotConnected => {
            "the other side has closed the connection".into()
        }
        Kind::UnexpectedEof => "the server closed the connection".into(),
        Kind::TimedOut => "no answer in time".into(),
        Kind::HostUnreachable | Kind::NetworkUnreachable | Kind::NetworkDown => {
            "there is no way to this address: is the network up?".into()
        }
        Kind::PermissionDenied => {
            "this machine does not let the relay connect there (a firewall, or a sandbox of the service)"
                .into()
        }
        _ => plain(&error.to_string()),
    }
}

/// What the resolver says of a name.
fn name(why: &str) -> String {
    let what = if why.to_lowercase().contains("temporary") {
        "the name server does not answer: is the network up?"
    } else {
        "there is no such host: check how it is spelt, and this machine's name server"
    };
    format!("the host's name cannot be resolved; {what}")
}

fn http(error: &hyper::Error) -> Option<&'static str> {
    if error.is_incomplete_message() {
        Some("the server closed the connection without a whole answer")
    } else if error.is_parse() {
        Some("what came is no HTTP: is this the right port, and does it want TLS?")
    } else if error.is_timeout() {
        Some("no answer in time")
    } else {
        None
    }
}

/// What is wrong with TLS.
pub fn tls(error: &TlsError) -> String {
    match error {
        TlsError::InvalidCertificate(error) => certificate(error),
        TlsError::InvalidMessage(
            InvalidMessage::InvalidContentType
            | InvalidMessage::UnknownProtocolVersion
            | InvalidMessage::InvalidEmptyPayload
            | InvalidMessage::MessageTooLarge,
        ) => "the server does not speak TLS at this port: use its port for TLS, or an address without \
              TLS"
            .into(),
        TlsError::AlertReceived(alert) => refused(*alert),
        TlsError::PeerIncompatible(why) => format!(
            "the server has no version of TLS or no cipher in common with us, and 1.2 is the oldest \
             that is spoken ({why:?})"
        ),
        TlsError::InconsistentKeys(_) => {
            "client_cert_file and client_key_file do not belong together".into()
        }
        TlsError::NoCertificatesPresented => "the server shows no certificate".into(),
        other => format!("TLS failed: {other}"),
    }
}

/// What is wrong with a server's certificate.
fn certificate(error: &CertificateError) -> String {
    use CertificateError as Wrong;
    match error {
        Wrong::Expired => "the server's certificate has expired: renew it".into(),
        Wrong::ExpiredContext { time, not_after } => format!(
            "the server's certificate has expired at {}: renew it; by this machine's clock it is {}",
            at(*not_after),
            at(*time)
        ),
        Wrong::NotValidYet => {
            "the server's certificate is not valid yet: is this machine's clock right?".into()
        }
        Wrong::NotValidYetContext { time, not_before } => format!(
            "the server's certificate is valid from {} on, and by this machine's clock it is {}: set the \
             clock",
            at(*not_before),
            at(*time)
        ),
        Wrong::UnknownIssuer => {
            "the server's certificate is signed by nobody who is trusted here: put the certificate of \
             its authority into a file, and that file into ca_file"
                .into()
        }
        Wrong::NotValidForName => {
            "the server's certificate is for another name: use the name that stands in it".into()
        }
        Wrong::NotValidForNameContext { expected, presented } => {
            let expected = expected.to_str();
            if presented.is_empty() {
                return format!(
                    "the server's certificate has no name in its subjectAltName, so it is not for \
                     {expected}: make one that has it"
                );
            }
            let names: Vec<String> = presented.iter().map(|name| bare(name)).collect();
            format!(
                "the server's certificate is not for {expected} but for {}: use a name that stands in it",
                names.join(", ")
            )
        }
        Wrong::Revoked => "the server's certificate was revoked".into(),
        Wrong::BadSignature => {
            "the server's certificate was not signed by the authority that is trusted here under this \
             name: is ca_file the right one?"
                .into()
        }
        other => {
            let text = other.to_string();
            if text.contains("CaUsedAsEndEntity") {
                return "the server shows the certificate of an authority as its own: trust it by \
                        naming that very certificate in ca_file, or make one for the server"
                    .into();
            }
            if text.contains("UnsupportedCertVersion") {
                return "the server's certificate is of an old version (1): make a new one with a \
                        subjectAltName"
                    .into();
            }
            format!("the server's certificate is not accepted: {text}")
        }
    }
}

/// A name from a certificate, without the library's notation around it.
fn bare(name: &str) -> String {
    let inside = |open, close| {
        name.split_once(open).and_then(|(_, rest)| rest.rsplit_once(close)).map(|(name, _)| name)
    };
    inside('"', '"').or_else(|| inside('(', ')')).unwrap_or(name).to_owned()
}

fn at(time: UnixTime) -> String {
    clock::rfc3339(time.as_secs().saturating_mul(1000))
}

/// What a server says when it ends TLS.
fn refused(alert: AlertDescription) -> String {
    use AlertDescription as Said;
    match alert {
        Said::CertificateRequired | Said::NoCertificate => {
            "the server wants a client certificate: client_cert_file and client_key_file".into()
        }
        Said::BadCertificate
        | Said::UnsupportedCertificate
        | Said::CertificateRevoked
        | Said::CertificateExpired
        | Said::CertificateUnknown
        | Said::UnknownCA
        | Said::AccessDenied => {
            format!("the server does not accept our client certificate ({alert:?})")
        }
        Said::UnrecognisedName => "the server has nothing under this host name".into(),
        Said::ProtocolVersion | Said::HandshakeFailure | Said::InsufficientSecurity => format!(
            "the server has no version of TLS or no cipher in common with us, or wants a client \
             certificate ({alert:?})"
        ),
        other => format!("the server ended TLS ({other:?})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("I/O: {0}")]
    struct Wrapped(#[from] io::Error);

    #[derive(Debug, thiserror::Error)]
    #[error("connection error: {0}")]
    struct Twice(#[source] Wrapped);

    #[derive(Debug, thiserror::Error)]
    #[error("cannot log in")]
    struct Opaque(#[source] io::Error);

    fn io(kind: io::ErrorKind) -> io::Error {
        kind.into()
    }

    #[test]
    fn each_cause_is_named_once_and_in_words() {
        let refused = "connection refused: nothing listens at this address and port";
        let raw = || io::Error::from_raw_os_error(111);
        let custom = || io::Error::other("the moon is full");
        let broken = io::Error::new(io::ErrorKind::InvalidData, TlsError::NoCertificatesPresented);
        let table: Vec<(Box<dyn Error>, &str)> = vec![
            (Box::new(raw()), refused),
            (Box::new(Wrapped(raw())), refused),
            (Box::new(Twice(Wrapped(raw()))), refused),
            (
                Box::new(Opaque(raw())),
                "cannot log in: connection refused: nothing listens at this address and port",
            ),
            (Box::new(Twice(Wrapped(custom()))), "the moon is full"),
            (Box::new(Opaque(custom())), "cannot log in: the moon is full"),
            (Box::new(Wrapped(broken)), "the server shows no certificate"),
            (Box::new(io(io::ErrorKind::BrokenPipe)), "the other side has closed the connection"),
            (
                Box::new(io::Error::new(io::ErrorKind::UnexpectedEof, "tls handshake eof")),
                "the server closed the connection instead of beginning TLS: is this its port for TLS, and does \
                 it want a client certificate?",
            ),
            (Box::new(io::Error::from_raw_os_error(95)), "Operation not supported"),
        ];
        for (error, expected) in table {
            assert_eq!(explain(&*error), expected);
        }
    }

    #[tokio::test]
    async fn an_unknown_host_is_reported_as_such() {
        let error = tokio::net::lookup_host(("no-such-host.invalid", 1)).await.err().unwrap();
        let said = explain(&error);
        assert!(said.starts_with("the host's name cannot be resolved; "), "{said}");
    }
}
