//! State in a key-value bucket of NATS, by the client library's own key-value store.
//!
//! The bucket is found or made when a connection begins. What the relay says of itself is written again
//! and again, see [`super::heartbeat`]: an entry that is old is of a relay that is gone.

use async_nats::jetstream::{
    self, ErrorCode,
    context::{
        Context, ContextBuilder, GetStreamError, GetStreamErrorKind, KeyValueError,
        KeyValueErrorKind, PublishError, PublishErrorKind,
    },
    kv::Store,
    stream::{Config, DiscardPolicy},
};
use async_trait::async_trait;
use futures_util::{StreamExt, future::BoxFuture, stream};
use tokio::sync::oneshot;

use super::{Kind, StatePublisher, heartbeat::Heartbeat};
use crate::{
    channel::store::{Section, StateKey},
    config::ConfigError,
    sink::{
        Cause, Failure, Opening, Part,
        address::hex,
        nats::{
            connector::Connector,
            link::{Link, MAX_UNPROVEN, ServerNotice},
            refusal::{self, Refusal},
        },
    },
};

pub(super) const KIND: Kind =
    Kind { name: "nats", publishes: |config| config.state, open, probe: Some(probe), rights: None };

fn open(opening: &Opening<'_>) -> Result<Box<dyn StatePublisher>, ConfigError> {
    Ok(Box::new(Bucket {
        connector: Connector::new(opening, "-state")?,
        connection: None,
        newest_status: 0,
        heartbeat: Heartbeat::new(|path| *path == StateKey::relay(Section::Status)),
    }))
}

struct Bucket {
    connector: Connector,
    connection: Option<(Link, Store)>,
    /// The revision of the relay's own status, on this connection.
    newest_status: u64,
    heartbeat: Heartbeat,
}

#[async_trait]
impl StatePublisher for Bucket {
    async fn connect(&mut self) -> Result<(), Failure> {
        self.connection = None;
        self.newest_status = 0;
        self.heartbeat.clear();
        let mut link = self.connector.connect().await?;
        let bucket = &self.connector.settings.state_bucket;
        let context = context(&self.connector, &link);
        let store = or_denied(&mut link, bucket, find_or_make(&context, bucket)).await?;
        self.connection = Some((link, store));
        Ok(())
    }

    async fn publish(&mut self, parts: &[Part]) -> Result<(), Failure> {
        let Some((link, store)) = &mut self.connection else { return Err(not_connected()) };
        let all = self.heartbeat.with_due(parts);
        let outcomes = write(link, store, &all).await?;
        let status = all.iter().position(|part| part.path == StateKey::relay(Section::Status));
        for (index, outcome) in outcomes.into_iter().enumerate() {
            match outcome {
                // A bucket in which a newer entry has no greater number than the one before is another,
                // made again under the same name.
                Ok(Some(revision)) if status == Some(index) => {
                    if revision <= self.newest_status {
                        let reason = "the bucket was created again: the state is written again";
                        return Err(Failure::down(reason));
                    }
                    self.newest_status = revision;
                }
                Ok(_) => {}
                Err(cause @ Cause::Down(_)) => {
                    return Err(Failure::after(index.min(parts.len()), cause));
                }
                // What was only written again is written once more before long.
                Err(_) if index >= parts.len() => {}
                Err(cause) => return Err(Failure::after(index, cause)),
            }
        }
        Ok(())
    }

    async fn idle(&mut self) -> Failure {
        let Some((link, _)) = &mut self.connection else { return not_connected() };
        loop {
            match link.next_notice().await {
                ServerNotice::Lost(reason) => return Failure::down(reason),
                ServerNotice::Refused(text) => {
                    tracing::debug!(text, "the server refused something");
                }
            }
        }
    }

    async fn close(&mut self) {
        self.connection = None;
    }
}

fn not_connected() -> Failure {
    Failure::down("not connected")
}

/// What is to be known of the bucket before the relay starts.
fn probe(opening: &Opening<'_>) -> BoxFuture<'static, Result<Vec<String>, Failure>> {
    let connector = Connector::new(opening, "-state");
    Box::pin(async move {
        let mut connector = connector.map_err(Failure::down)?;
        let mut link = connector.connect().await?;
        let (bucket, context) = (&connector.settings.state_bucket, context(&connector, &link));
        let found = or_denied(&mut link, bucket, find(&context, bucket)).await?;
        Ok(match found {
            Some(_) => Vec::new(),
            None => vec![format!(
                "the key-value bucket {bucket:?} (state = true) does not exist yet: the relay makes it \
                 when it starts"
            )],
        })
    })
}

fn context(connector: &Connector, link: &Link) -> Context {
    ContextBuilder::new().timeout(connector.timeout).build(link.client().clone())
}

/// The bucket, if it exists.
async fn find(context: &Context, name: &str) -> Result<Option<Store>, Cause> {
    match context.get_key_value(name).await {
        Ok(store) => Ok(Some(store)),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) if error.kind() == KeyValueErrorKind::InvalidStoreName => {
            Err(Cause::Denied { reason: format!("the stream KV_{name} is no key-value bucket") })
        }
        Err(error) => {
            let reason = format!("the key-value bucket {name:?} cannot be used: {error}");
            Err(Cause::Down(reason.into()))
        }
    }
}

/// Finds the bucket, or makes it.
async fn find_or_make(context: &Context, name: &str) -> Result<Store, Cause> {
    if let Some(store) = find(context, name).await? {
        return Ok(store);
    }
    let failed = |error: &dyn std::fmt::Display| {
        Cause::Down(format!("the key-value bucket {name:?} cannot be made: {error}").into())
    };
    context.create_stream(bucket(name)).await.map_err(|error| failed(&error))?;
    tracing::info!(bucket = name, "a key-value bucket was made");
    find(context, name).await?.ok_or_else(|| failed(&"it is gone again"))
}

/// What comes of `request`. One that the user may not send has no answer, but a notice.
async fn or_denied<T>(
    link: &mut Link,
    bucket: &str,
    request: impl Future<Output = Result<T, Cause>>,
) -> Result<T, Cause> {
    tokio::select! {
        answer = request => answer,
        cause = denied(link, bucket) => Err(cause),
    }
}

/// Waits until the server refuses a request about the bucket.
async fn denied(link: &mut Link, bucket: &str) -> Cause {
    loop {
        let text = match link.next_notice().await {
            ServerNotice::Lost(reason) => return Cause::Down(reason.into()),
            ServerNotice::Refused(text) => text,
        };
        if let Refusal::Publish(subject) = refusal::read(&text) {
            return Cause::Denied {
                reason: format!(
                    "the key-value bucket {bucket:?} (state = true) cannot be looked at or made: let the \
                     user publish to {subject} ({text})"
                ),
            };
        }
    }
}

fn is_missing(error: &KeyValueError) -> bool {
    let source = std::error::Error::source(error);
    let source = source.and_then(|source| source.downcast_ref::<GetStreamError>());
    source.is_some_and(|error| match error.kind() {
        GetStreamErrorKind::JetStream(error) => error.error_code() == ErrorCode::STREAM_NOT_FOUND,
        _ => false,
    })
}

/// As the convention wants it (ADR-8 of NATS), with the newest value of each key alone. The library's own
/// way to make a bucket asks for figures of the account that an older server does not have.
pub(crate) fn bucket(name: &str) -> Config {
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

/// Writes `parts`; answers what became of each: its revision, where it is not deleted.
async fn write(
    link: &mut Link,
    store: &Store,
    parts: &[Part],
) -> Result<Vec<Result<Option<u64>, Cause>>, Failure> {
    let keys: Vec<String> = parts.iter().map(|part| key(&part.path)).collect();
    let (mut refused, mut writes) = (Vec::new(), Vec::new());
    for (part, key) in parts.iter().zip(&keys) {
        let (sender, receiver) = oneshot::channel::<String>();
        refused.push(Some(sender));
        writes.push(async move {
            // An entry that is not permitted has no answer.
            tokio::select! {
                biased;
                Ok(reason) = receiver => Err(Cause::Rejected { reason }),
                outcome = write_one(store, key, part) => outcome,
            }
        });
    }
    let writing = stream::iter(writes).buffered(MAX_UNPROVEN).collect::<Vec<_>>();
    tokio::pin!(writing);
    loop {
        let text = tokio::select! {
            biased;
            outcomes = &mut writing => return Ok(outcomes),
            notice = link.next_notice() => match notice {
                ServerNotice::Lost(reason) => return Err(Failure::down(reason)),
                ServerNotice::Refused(text) => text,
            },
        };
        let Refusal::Publish(subject) = refusal::read(&text) else {
            tracing::debug!(text, "the server refused something");
            continue;
        };
        let index = keys.iter().position(|key| subject.strip_prefix(&*store.prefix) == Some(key));
        let sender = index.and_then(|index| refused.get_mut(index)).and_then(Option::take);
        if let Some(sender) = sender {
            // One that has been answered meanwhile does not listen any more.
            drop(sender.send(text));
        }
    }
}

async fn write_one(store: &Store, key: &str, part: &Part) -> Result<Option<u64>, Cause> {
    match &part.payload {
        Some(payload) => {
            store.put(key, payload.clone()).await.map(Some).map_err(|error| cause(&error))
        }
        None => store.delete(key).await.map(|()| None).map_err(|error| cause(&error)),
    }
}

/// Why an entry was not written.
fn cause(error: &(dyn std::error::Error + 'static)) -> Cause {
    let sources = || std::iter::successors(Some(error), |error| error.source());
    let of_stream = sources().find_map(|error| error.downcast_ref::<jetstream::Error>());
    if let Some(error) = of_stream {
        let reason = error.to_string();
        return match error.error_code() {
            ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM
            | ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM
            | ErrorCode::STREAM_SEALED => Cause::Rejected { reason },
            _ => Cause::Busy { wait: None, reason },
        };
    }
    let publish = sources().find_map(|error| error.downcast_ref::<PublishError>());
    match publish.map(PublishError::kind) {
        Some(PublishErrorKind::MaxPayloadExceeded) => Cause::Rejected { reason: error.to_string() },
        // The next connection makes another.
        Some(PublishErrorKind::StreamNotFound) => {
            Cause::Down("the key-value bucket is gone".into())
        }
        _ => Cause::Down(crate::base::fault::explain(error).into()),
    }
}

/// The key of a part of the state: `<channel>.session.<element>`.
fn key(path: &StateKey) -> String {
    let mut key = format!("{}.{}", path.owner(), path.section.as_str());
    if path.section.is_named() {
        key.push('.');
        key.push_str(&word(&path.name));
    }
    key
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn part(section: Section, name: &str) -> StateKey {
        StateKey { channel: "main".into(), section, name: name.into() }
    }

    #[test]
    fn each_part_has_a_key_of_its_own() {
        for (path, expected) in [
            (part(Section::Session, "tip-latest"), "main.session.tip-latest"),
            (part(Section::Counters, "a.b c=ü"), "main.counters.a=2Eb=20c=3D=C3=BC"),
            (part(Section::Counters, ""), "main.counters.="),
            (part(Section::Stream, ""), "main.stream"),
            (StateKey::relay(Section::Status), "relay.status"),
        ] {
            assert_eq!(key(&path), expected);
        }
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
