//! The stream that keeps events: found or made when a connection begins.
//!
//! What is wrong with it is told in words that name the key to change. A stream that exists is never
//! changed here.
//!
//! The one thing to know: `JetStream` recognises a repeat by its message id only within the stream's
//! duplicate window. A link that is away for longer may store what was in flight a second time.

use std::time::Duration;

use async_nats::jetstream::{
    self, ErrorCode,
    context::{CreateStreamError, CreateStreamErrorKind, GetStreamErrorKind},
    stream::{Config, DiscardPolicy, StorageType},
};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::{Period, Size};

/// How long the server may take for a question about streams.
pub(super) const API_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether a missing stream is made: `true`, or a table with its limits.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum Create {
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
pub(super) struct Limits {
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
    /// Its name.
    pub(super) name: &'a str,
    /// Where events go: a subject, or one that ends in `>`.
    pub(super) subjects: &'a str,
    /// Whether it is made where it is missing.
    pub(super) create: &'a Create,
    /// How long a repeat must be recognised at the least.
    pub(super) window: Duration,
}

/// Finds the stream, or makes it; the remarks are for the operator.
pub(super) async fn settle(
    client: async_nats::Client,
    wanted: &Wanted<'_>,
) -> Result<Vec<String>, async_nats::Error> {
    let mut context = jetstream::new(client);
    context.set_timeout(API_TIMEOUT);
    let Wanted { name, subjects, create, window } = wanted;
    let config = match context.get_stream(*name).await {
        Ok(stream) => stream.cached_info().config.clone(),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(answer)
                if answer.error_code() == ErrorCode::STREAM_NOT_FOUND =>
            {
                let Some(limits) = create.limits() else {
                    return Err(format!(
                        "there is no stream {name:?} on this server: make it, name another with \
                         stream, or set create_stream = true"
                    )
                    .into());
                };
                let made = context
                    .create_stream(limits.config(name, subjects))
                    .await
                    .map_err(|error| limits.not_made(name, &error))?;
                tracing::info!(stream = name, subjects, "a stream was made");
                made.cached_info().config.clone()
            }
            _ => return Err(format!("the stream {name:?} cannot be looked at: {error}").into()),
        },
    };
    let mut remarks = covered(name, &config.subjects, subjects)?;
    remarks.extend(remarks_on(&config, *window));
    if config.duplicate_window < *window {
        tracing::warn!(
            stream = name,
            duplicate_window = %Period(config.duplicate_window),
            "a repeat after an outage longer than the stream's duplicate window is stored twice"
        );
    }
    Ok(remarks)
}

impl Limits {
    /// Says what to do where the server has not the space: it sets all of a stream's `max_bytes` aside.
    fn not_made(&self, name: &str, error: &CreateStreamError) -> String {
        let no_space = matches!(error.kind(), CreateStreamErrorKind::JetStream(answer)
            if matches!(answer.error_code(), ErrorCode::STORAGE_RESOURCES_EXCEEDED
                | ErrorCode::MEMORY_RESOURCES_EXCEEDED));
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

fn remarks_on(config: &Config, window: Duration) -> Vec<String> {
    let recognised = Period(config.duplicate_window);
    let mut remarks = vec![format!("the stream recognises a repeat for {recognised}")];
    if config.duplicate_window < window {
        remarks.push(format!(
            "the relay may send a batch again after {} (timeout and backoff_max): it would be stored \
             twice, so give the stream a longer duplicate_window",
            Period(window)
        ));
    }
    match config.storage {
        StorageType::Memory => remarks.push(
            "the stream is kept in memory: what it has acknowledged ends with the server".into(),
        ),
        StorageType::File => remarks.push(
            "the server writes its streams to disk every sync_interval (2 minutes unless it is \
             configured): what it has acknowledged survives its own end, not that of the machine"
                .into(),
        ),
    }
    if config.discard == DiscardPolicy::New {
        remarks.push("the stream takes nothing more when it is full (discard: new)".into());
    }
    if config.no_ack {
        remarks.push("the stream acknowledges nothing (no_ack): nothing will be accepted".into());
    }
    remarks
}

/// Whether the stream takes what goes to `subjects`.
fn covered(name: &str, stream: &[String], subjects: &str) -> Result<Vec<String>, String> {
    if stream.iter().any(|pattern| covers(pattern, subjects)) {
        return Ok(Vec::new());
    }
    let takes = stream.join(", ");
    if stream.iter().any(|pattern| meets(pattern, subjects)) {
        return Ok(vec![format!("of {subjects} the stream {name} takes only {takes}")]);
    }
    Err(format!("the stream {name:?} takes {takes}, but events go to {subjects}"))
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
fn meets(one: &str, other: &str) -> bool {
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
    fn a_stream_that_takes_none_of_it_is_an_error_that_names_both() {
        let error = covered("ORDERS", &["orders.>".into()], "astro.>").unwrap_err();
        assert!(error.contains("orders.>") && error.contains("astro.>"), "{error}");
        let takes_some = covered("A", &["astro.main.>".into()], "astro.>").unwrap();
        assert_eq!(takes_some.len(), 1);
    }
}
