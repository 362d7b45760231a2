//! The stream that keeps events: found or made when a connection begins.
//!
//! What is wrong with it is reported with the key to change. A stream that exists is never changed here. A
//! user who may not look at streams is no hindrance: what the stream takes is then known from its answers
//! alone.
//!
//! `JetStream` recognises a repeat by its message id only within the stream's
//! duplicate window. A link that is away for longer may store what was in flight a second time.

use std::time::Duration;

use async_nats::{
    ServerInfo,
    jetstream::{
        self, ErrorCode,
        response::Response,
        stream::{Config, DiscardPolicy, Info, RetentionPolicy, StorageType},
    },
};
use bytes::Bytes;
use schemars::JsonSchema;
use serde::Deserialize;

use super::link::{Link, Unanswered};
use crate::{
    config::{Period, Size},
    sink::Cause,
};

/// How long the server may take for a request about streams, at most.
const API_TIMEOUT: Duration = Duration::from_secs(10);

/// The first version that takes nothing more where `discard: new` meets `max_bytes`: one before removes the
/// oldest messages.
const DISCARDS_NEW_BYTES: (u32, u32) = (2, 10);

/// A server's version, as far as it is two numbers.
pub(super) fn version(server: &ServerInfo) -> (u32, u32) {
    let mut parts = server.version.split('.').map_while(|part| part.parse().ok());
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

/// What came of a request about a stream.
enum ApiAnswer {
    Config(Box<Config>),
    Error(jetstream::Error),
    /// The user may not ask.
    Denied(String),
}

/// Sends a request about a stream. The client library has a way of its own, which does not see that a
/// request was denied, and waits.
async fn request(
    link: &mut Link,
    subject: &str,
    payload: Bytes,
    patience: Duration,
) -> Result<ApiAnswer, Cause> {
    let silent = || {
        Cause::Down(
            "nobody answers for JetStream: is it enabled on this server and for this account?"
                .into(),
        )
    };
    let message = match link.request(subject, payload, patience.min(API_TIMEOUT)).await {
        Ok(message) if message.status.is_some() => return Err(silent()),
        Ok(message) => message,
        Err(Unanswered::Denied(text)) => return Ok(ApiAnswer::Denied(text)),
        Err(Unanswered::Silent) => return Err(silent()),
        Err(Unanswered::Lost(reason)) => return Err(Cause::Down(reason.into())),
    };
    match serde_json::from_slice(&message.payload) {
        Ok(Response::<Info>::Ok(info)) => Ok(ApiAnswer::Config(Box::new(info.config))),
        Ok(Response::Err { error }) => Ok(ApiAnswer::Error(error)),
        Err(error) => {
            Err(Cause::Down(format!("the answer about a stream cannot be read: {error}").into()))
        }
    }
}

/// Whether a missing stream is made: `true`, or a table with its limits.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Create {
    /// With the limits below, or not at all.
    Plain(bool),
    /// With these limits.
    With(Limits),
}

impl Default for Create {
    fn default() -> Self {
        Self::Plain(false)
    }
}

impl Create {
    fn limits(&self) -> Option<Limits> {
        match self {
            Self::Plain(false) => None,
            Self::Plain(true) => Some(Limits::default()),
            Self::With(limits) => Some(limits.clone()),
        }
    }
}

/// The limits of a stream that is made here.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Limits {
    /// The most space; the oldest events go first.
    max_bytes: Size,
    /// The longest time that an event is kept.
    max_age: Period,
    /// The most events; 0 is no limit.
    max_messages: u32,
    /// How long a repeat is recognised.
    duplicate_window: Period,
    /// Servers that keep a copy.
    replicas: u8,
    /// Where it is kept.
    storage: Storage,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // More than a year of a busy channel.
            max_bytes: Size(1024 * 1024 * 1024),
            // As long as the relay's own journal keeps them.
            max_age: Period(Duration::from_hours(7 * 24)),
            max_messages: 0,
            // Longer than most outages; the server holds some 100 bytes for each event of it.
            duplicate_window: Period(Duration::from_hours(1)),
            replicas: 1,
            storage: Storage::File,
        }
    }
}

/// Where a stream is kept.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Storage {
    /// On disk.
    File,
    /// In memory: it ends with the server.
    Memory,
}

/// What is wanted of a stream.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub(super) name: &'a str,
    /// Where events go: a subject, or one that ends in `>`.
    pub(super) subjects: String,
    /// Whether it is made where it is missing.
    pub(super) create: &'a Create,
    /// Whether it is only looked at, whatever `create` says.
    pub(super) only_look: bool,
    /// How long a repeat must be recognised at the least.
    pub(super) repeats_within: Duration,
    /// How long the server may take for an answer.
    pub(super) patience: Duration,
}

/// What is known of the stream.
#[derive(Debug, Default)]
pub(super) struct KnownStream {
    /// The subjects that it takes; `None`: that is not known.
    subjects: Option<Vec<String>>,
    /// How many servers keep it, where that is known.
    pub(super) replicas: Option<usize>,
    /// It is not there yet, and the relay makes it when it starts.
    pub(super) missing: bool,
    /// For the operator.
    pub(super) facts: Vec<String>,
}

impl KnownStream {
    /// Whether the stream takes what goes to `subject`, as far as that is known.
    pub(super) fn takes(&self, subject: &str) -> Option<bool> {
        let subjects = self.subjects.as_ref()?;
        Some(subjects.iter().any(|pattern| covers(pattern, subject)))
    }

    /// The subjects that it takes, for messages.
    pub(super) fn list(&self) -> String {
        self.subjects.as_ref().map_or_else(|| "something else".into(), |all| all.join(", "))
    }
}

/// Finds the stream, or makes it.
pub(super) async fn ensure(link: &mut Link, wanted: &Wanted<'_>) -> Result<KnownStream, Cause> {
    let Wanted { name, subjects, create, patience, .. } = wanted;
    let info = format!("$JS.API.STREAM.INFO.{name}");
    let config = match request(link, &info, Bytes::new(), *patience).await? {
        ApiAnswer::Config(config) => config,
        ApiAnswer::Denied(text) => {
            let fact = format!(
                "the stream {name:?} cannot be looked at, so whether it takes everything, and for how \
                 long it recognises a repeat, is not known: {text}"
            );
            return Ok(KnownStream { facts: vec![fact], ..KnownStream::default() });
        }
        ApiAnswer::Error(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {
            match create.limits() {
                None => {
                    return Err(Cause::Denied {
                        reason: format!(
                            "there is no stream {name:?} on this server: make it, name another with \
                             stream, or set create_stream = true"
                        ),
                    });
                }
                Some(_) if wanted.only_look => {
                    let fact = format!(
                        "the stream {name:?} does not exist yet: the relay makes it when it starts"
                    );
                    return Ok(KnownStream {
                        missing: true,
                        facts: vec![fact],
                        ..KnownStream::default()
                    });
                }
                Some(limits) => make(link, wanted, &limits).await?,
            }
        }
        ApiAnswer::Error(error) => {
            let reason = format!("the stream {name:?} cannot be looked at: {error}");
            return Err(Cause::Down(reason.into()));
        }
    };
    let mut facts = suits(name, &config, subjects)?;
    let version = version(&link.client().server_info());
    facts.extend(facts_of(&config, wanted.repeats_within, version));
    let replicas = Some(config.num_replicas);
    Ok(KnownStream { subjects: Some(config.subjects), replicas, missing: false, facts })
}

async fn make(link: &mut Link, wanted: &Wanted<'_>, limits: &Limits) -> Result<Box<Config>, Cause> {
    let Wanted { name, subjects, patience, .. } = wanted;
    let payload = serde_json::to_vec(&limits.config(name, subjects));
    let payload = payload.map_err(|error| Cause::Down(error.into()))?;
    let create = format!("$JS.API.STREAM.CREATE.{name}");
    match request(link, &create, payload.into(), *patience).await? {
        ApiAnswer::Config(config) => {
            tracing::info!(stream = name, subjects, "a stream was made");
            Ok(config)
        }
        ApiAnswer::Denied(text) => Err(Cause::Denied {
            reason: format!(
                "the stream {name:?} does not exist, and the user may not make it: make it, or let the \
                 user publish to {create} ({text})"
            ),
        }),
        ApiAnswer::Error(error) => Err(Cause::Down(limits.not_made(name, &error).into())),
    }
}

impl Limits {
    /// Says what to do where the server has not the space: it sets all of a stream's `max_bytes` aside.
    fn not_made(&self, name: &str, error: &jetstream::Error) -> String {
        let no_space = matches!(
            error.error_code(),
            ErrorCode::STORAGE_RESOURCES_EXCEEDED | ErrorCode::MEMORY_RESOURCES_EXCEEDED
        );
        let advice = if no_space {
            format!(
                "; the stream may grow to {} and the server has less to give: set \
                 create_stream = {{ max_bytes = … }} to less",
                self.max_bytes
            )
        } else {
            String::new()
        };
        format!("the stream {name:?} cannot be made: {error}{advice}")
    }

    fn config(&self, name: &str, subjects: &str) -> Config {
        Config {
            name: name.to_owned(),
            subjects: vec![subjects.to_owned()],
            max_bytes: i64::try_from(self.max_bytes.0).unwrap_or(i64::MAX),
            max_messages: match self.max_messages {
                0 => -1,
                limit => i64::from(limit),
            },
            max_messages_per_subject: -1,
            max_consumers: -1,
            max_age: self.max_age.0,
            // The server takes no window longer than the age.
            duplicate_window: self.duplicate_window.0.min(self.max_age.0),
            num_replicas: usize::from(self.replicas),
            storage: match self.storage {
                Storage::File => StorageType::File,
                Storage::Memory => StorageType::Memory,
            },
            ..Config::default()
        }
    }
}

fn facts_of(config: &Config, repeats_within: Duration, version: (u32, u32)) -> Vec<String> {
    let recognised = Period(config.duplicate_window);
    let mut facts = vec![format!("the stream recognises a repeat for {recognised}")];
    if config.duplicate_window < repeats_within {
        facts.push(format!(
            "the relay may send a batch again after {} (timeout and backoff_max): it would be stored \
             twice, so give the stream a longer duplicate_window",
            Period(repeats_within)
        ));
    }
    if let StorageType::Memory = config.storage {
        facts.push(
            "the stream is kept in memory: what it has acknowledged ends with the server".into(),
        );
    }
    if config.retention == RetentionPolicy::Interest {
        facts.push(
            "the stream keeps an event only for the consumers that it has at that moment (retention: \
             interest): without one it acknowledges the event and stores nothing"
                .into(),
        );
    }
    if config.discard == DiscardPolicy::New {
        facts.push("the stream takes nothing more when it is full (discard: new)".into());
    }
    if config.discard == DiscardPolicy::New && config.max_bytes > 0 && version < DISCARDS_NEW_BYTES
    {
        facts.push(format!(
            "this server (before 2.10) removes the stream's oldest events at {} (max_bytes), though the \
             stream says discard: new",
            Size(config.max_bytes.unsigned_abs())
        ));
    }
    if config.discard == DiscardPolicy::New
        && config.discard_new_per_subject
        && config.max_messages_per_subject > 0
    {
        facts.push(format!(
            "the stream takes no more than {} events for each subject: what is more is set aside as a \
             dead letter",
            config.max_messages_per_subject
        ));
    }
    if config.max_message_size > 0 {
        facts.push(format!(
            "the stream takes no event of more than {} bytes: a larger one is set aside as a dead letter",
            config.max_message_size
        ));
    }
    facts
}

/// Whether the stream can be the one: where it can take nothing at all, that is an error, and where it
/// cannot take everything, a remark.
fn suits(name: &str, config: &Config, subjects: &str) -> Result<Vec<String>, Cause> {
    let denied = |why: String| Err(Cause::Denied { reason: format!("the stream {name:?} {why}") });
    if let Some(mirror) = &config.mirror {
        return denied(format!("is a mirror of {:?}, which takes no events itself", mirror.name));
    }
    if config.sealed {
        return denied("is sealed: it takes nothing more".into());
    }
    if config.no_ack {
        return denied("acknowledges nothing (no_ack), so nothing would ever be accepted".into());
    }
    let stream = &config.subjects;
    if stream.iter().any(|pattern| covers(pattern, subjects)) {
        return Ok(Vec::new());
    }
    let takes = if stream.is_empty() { "no subject".into() } else { stream.join(", ") };
    if stream.iter().any(|pattern| meets(pattern, subjects)) {
        return Ok(vec![format!(
            "of {subjects} the stream {name} takes only {takes}: an event for another subject is set aside \
             as a dead letter, so add the subject to the stream, or leave such events out with `topics`"
        )]);
    }
    denied(format!("takes {takes}, but events go to {subjects}"))
}

/// Whether every subject that `inner` matches is matched by `outer` too.
fn covers(outer: &str, inner: &str) -> bool {
    let (mut outer, mut inner) = (outer.split('.'), inner.split('.'));
    loop {
        match (outer.next(), inner.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(word)) if word != ">" => {}
            (Some(pattern), Some(word)) if pattern == word => {}
            _ => return false,
        }
    }
}

/// Whether some subject is matched by both.
pub(crate) fn meets(one: &str, other: &str) -> bool {
    let (mut one, mut other) = (one.split('.'), other.split('.'));
    loop {
        match (one.next(), other.next()) {
            (Some(">"), Some(_)) | (Some(_), Some(">")) | (None, None) => return true,
            (Some(a), Some(b)) if a == b || a == "*" || b == "*" => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_compared_word_by_word() {
        for (outer, inner, all, some) in [
            ("astro.>", "astro.>", true, true),
            (">", "astro.>", true, true),
            ("astro.*.>", "astro.>", false, true),
            ("astro.*", "astro.>", false, true),
            ("astro.main.channel.tips", "astro.>", false, true),
            ("astro.*.x", "astro.main.x", true, true),
            ("astro", "astro.>", false, false),
            ("orders.>", "astro.>", false, false),
            ("astro.>", "astro", false, false),
        ] {
            assert_eq!(covers(outer, inner), all, "{outer} covers {inner}");
            assert_eq!(meets(outer, inner), some, "{outer} meets {inner}");
        }
    }

    #[test]
    fn what_a_stream_does_not_keep_is_reported() {
        let facts = |config: &Config, version| facts_of(config, Duration::ZERO, version).join("\n");
        let plain = Config::default();
        let interest = Config { retention: RetentionPolicy::Interest, ..plain.clone() };
        let words = "without one it acknowledges the event and stores nothing";
        assert!(facts(&interest, (2, 12)).contains(words));
        assert!(!facts(&plain, (2, 12)).contains(words));
        let full = Config { discard: DiscardPolicy::New, max_bytes: 1 << 20, ..plain };
        let words = "removes the stream's oldest events";
        assert!(facts(&full, (2, 9)).contains(words), "{}", facts(&full, (2, 9)));
        assert!(!facts(&full, (2, 10)).contains(words));
        assert!(!facts(&Config { max_bytes: -1, ..full }, (2, 9)).contains(words));
    }

    #[test]
    fn a_stream_that_cannot_take_events_is_denied_with_the_reason() {
        let config = |subjects: &[&str]| Config {
            subjects: subjects.iter().map(|&subject| subject.to_owned()).collect(),
            ..Config::default()
        };
        let takes_some = suits("A", &config(&["astro.main.>"]), "astro.>").unwrap();
        assert_eq!(takes_some.len(), 1);
        assert!(suits("A", &config(&["astro.>"]), "astro.>").unwrap().is_empty());
        let mirror = jetstream::stream::Source { name: "ORIGIN".into(), ..Default::default() };
        for (config, words) in [
            (config(&["orders.>"]), &["orders.>", "astro.>"][..]),
            (config(&[]), &["no subject"]),
            (Config { mirror: Some(mirror), ..config(&[]) }, &["mirror", "ORIGIN"]),
            (Config { sealed: true, ..config(&["astro.>"]) }, &["sealed"]),
            (Config { no_ack: true, ..config(&["astro.>"]) }, &["no_ack"]),
        ] {
            let Err(Cause::Denied { reason }) = suits("A", &config, "astro.>") else {
                panic!("{config:?}")
            };
            assert!(words.iter().all(|word| reason.contains(word)), "{reason}");
        }
    }
}
