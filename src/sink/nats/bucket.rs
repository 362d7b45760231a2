//! The live state in a key-value bucket.
//!
//! A bucket is a stream by convention (the key-value store's design, ADR-8 of NATS): `KV_<name>` over
//! `$KV.<name>.>`, with one message for each subject. It is found or made when a connection begins, and
//! written like any other stream. The library's own way to make one asks the server for figures of the
//! account, which an older one does not have.
//!
//! The one thing to know: a deleted key is a message too, with a header that says so.

use std::time::Duration;

use async_nats::{
    HeaderMap, HeaderName, HeaderValue,
    jetstream::stream::{Config, DiscardPolicy},
};

use super::{
    link::Link,
    stream::{self, Looked},
};
use crate::{
    channel::board::{Path, Section},
    sink::{Cause, address::hex},
};

/// Finds the bucket, or makes it unless it is only looked at; a remark is for the operator.
pub(super) async fn ensure(
    link: &mut Link,
    name: &str,
    only_look: bool,
    patience: Duration,
) -> Result<Option<String>, Cause> {
    let denied = |reason| Err(Cause::Denied { reason });
    let what = format!("the key-value bucket {name:?} (state = true)");
    match stream::look(link, &format!("KV_{name}"), &what, patience).await? {
        Looked::Found(config) if config.max_messages_per_subject > 0 => Ok(None),
        Looked::Found(_) => denied(format!("the stream KV_{name} is no key-value bucket")),
        Looked::Hidden(text) => Ok(Some(format!("{what} cannot be looked at: {text}"))),
        Looked::Missing if only_look => {
            Ok(Some(format!("{what} does not exist yet: the relay makes it when it starts")))
        }
        Looked::Missing => match stream::make(link, &config(name), patience).await? {
            Ok(Looked::Hidden(text)) => denied(format!(
                "{what} does not exist, and the user may not make it: make it, or let the user publish to \
                 $JS.API.STREAM.CREATE.KV_{name} ({text})"
            )),
            Ok(_) => {
                tracing::info!(bucket = name, "a key-value bucket was made");
                Ok(None)
            }
            Err(error) => Err(Cause::Down(format!("{what} cannot be made: {error}").into())),
        },
    }
}

/// As the convention wants it, with the newest value of each key alone.
fn config(name: &str) -> Config {
    Config {
        name: format!("KV_{name}"),
        subjects: vec![format!("$KV.{name}.>")],
        max_messages_per_subject: 1,
        max_messages: -1,
        max_bytes: -1,
        max_consumers: -1,
        max_message_size: -1,
        discard: DiscardPolicy::New,
        allow_rollup: true,
        deny_delete: true,
        allow_direct: true,
        num_replicas: 1,
        ..Config::default()
    }
}

/// Whether it is a bucket's name.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
}

/// The subject of a part of the state: `$KV.<bucket>.<channel>.session.<element>`.
pub(super) fn subject(bucket: &str, path: &Path) -> String {
    let mut subject = format!("$KV.{bucket}.{}.{}", path.owner(), path.section.as_str());
    if matches!(path.section, Section::Session | Section::Counters) {
        subject.push('.');
        subject.push_str(&word(&path.name));
    }
    subject
}

/// A name as one word of a key, which may hold `-/_=a-zA-Z0-9` and is parted by dots: all else is
/// written as `=` and two hexadecimal digits for each byte.
fn word(name: &str) -> String {
    let mut word = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'/' => word.push(byte.into()),
            other => word.extend(['=', hex(other >> 4), hex(other & 15)]),
        }
    }
    // A word is never empty; this one stands for no byte.
    if word.is_empty() { "=".into() } else { word }
}

/// What a message says beside its payload: nothing, or that the key is gone.
pub(super) fn headers(gone: bool) -> HeaderMap {
    const OPERATION: HeaderName = HeaderName::from_static("KV-Operation");
    let mut headers = HeaderMap::new();
    if gone {
        headers.insert(OPERATION, HeaderValue::from("DEL"));
    }
    headers
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn part(section: Section, name: &str) -> Path {
        Path { channel: "main".into(), section, name: name.into() }
    }

    #[test]
    fn each_part_has_a_key_of_its_own() {
        for (path, expected) in [
            (part(Section::Session, "tip-latest"), "$KV.b.main.session.tip-latest"),
            (part(Section::Counters, "a.b c=ü"), "$KV.b.main.counters.a=2Eb=20c=3D=C3=BC"),
            (part(Section::Counters, ""), "$KV.b.main.counters.="),
            (part(Section::Stream, ""), "$KV.b.main.stream"),
            (Path::relay(Section::Status), "$KV.b.relay.status"),
        ] {
            assert_eq!(subject("b", &path), expected);
        }
        assert!(is_name("astro_state-2") && !is_name("") && !is_name("a.b") && !is_name("ü"));
    }

    proptest! {
        #[test]
        fn names_that_differ_stay_different_and_legal(a in any::<String>(), b in any::<String>()) {
            prop_assert_eq!(a == b, word(&a) == word(&b));
            let legal = |c: char| c.is_ascii_alphanumeric() || "-/_=".contains(c);
            prop_assert!(word(&a).chars().all(legal) && !word(&a).is_empty());
        }
    }
}
