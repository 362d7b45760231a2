//! The settings of a `nats` sink, and what of them contradicts itself.

use std::path::PathBuf;

use async_nats::ServerAddr;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    stream::Create,
    subject::{self, escape},
};
use crate::{
    config::{self, SecretRef},
    sink::{address, command_address},
};

pub(super) const DEFAULT_SUBJECT: &str = "astro.{{ channel }}.{{ topic }}";

/// Settings of a `nats` sink.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// The server: `nats://host:4222`, `tls://host:4222`; several with commas between.
    pub(crate) url: Option<String>,
    /// Several servers of one cluster: the first that answers is taken.
    #[serde(default)]
    pub(crate) urls: Vec<String>,
    /// Where events go, a template. Default: `astro.<channel>.<topic>`.
    pub(crate) subject: Option<String>,
    /// Which headers an event has.
    #[serde(default)]
    pub(crate) headers: Headers,
    /// Whether a stream keeps the events and acknowledges each.
    #[serde(default)]
    pub(crate) jetstream: bool,
    /// The stream's name.
    #[serde(default = "default_stream")]
    pub(crate) stream: String,
    /// Whether a missing stream is made: true, or a table with its limits.
    #[serde(default)]
    pub(crate) create_stream: Create,
    /// The user.
    pub(crate) user: Option<String>,
    /// The user's password; also `password_file`, `password_env`, `password_credential`.
    pub(crate) password: Option<SecretRef>,
    /// A token; also `token_file`, …
    pub(crate) token: Option<SecretRef>,
    /// The seed of an nkey; also `nkey_seed_file`, …
    pub(crate) nkey_seed: Option<SecretRef>,
    /// The text of a `.creds` file; mostly as `credentials_file`.
    pub(crate) credentials: Option<SecretRef>,
    /// Whether TLS is required even where the URL does not say so.
    #[serde(default)]
    pub(crate) tls: bool,
    /// Whether the server speaks TLS from the first byte: its `handshake_first`.
    #[serde(default)]
    pub(crate) tls_first: bool,
    /// A PEM file of certificate authorities to trust instead of the system's.
    pub(crate) ca_file: Option<PathBuf>,
    /// A PEM file with our certificate.
    pub(crate) client_cert_file: Option<PathBuf>,
    /// A PEM file with its key.
    pub(crate) client_key_file: Option<PathBuf>,
    /// Commands that may come over `astro.<channel>.command.…`: true for all, false for none, or a list
    /// of `session/set`, `session/reset`, `session/reload`, `relay/refresh`, `relay/test`.
    #[serde(default)]
    pub(crate) commands: config::Commands,
    /// What the subjects begin with at which the server's answers come. Default: `_INBOX`.
    pub(crate) inbox_prefix: Option<String>,
    /// The key-value bucket of the state; made where it is missing.
    #[serde(default = "default_state_bucket")]
    pub(crate) state_bucket: String,
}

fn default_state_bucket() -> String {
    "astro_state".into()
}

/// Which headers an event has. They cost much: the library keeps them in a map of its own, and eight of
/// them were measured at half of the relay's time for an event; a single one at as much again in the
/// server and in whoever listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Headers {
    /// What neither the subject nor the payload says, and for a stream the message id.
    #[default]
    Needed,
    /// All that is known of it.
    All,
}

fn default_stream() -> String {
    "ASTRO".into()
}

impl Settings {
    pub(crate) fn servers(&self) -> Result<Vec<ServerAddr>, (&'static str, String)> {
        let (key, urls) = match (&self.url, &*self.urls) {
            (Some(url), []) => ("url", std::slice::from_ref(url)),
            (None, urls @ [_, ..]) => ("urls", urls),
            _ => return Err(("url", "url or urls was expected, one of the two".into())),
        };
        let several = urls.iter().flat_map(|url| address::each_url(url));
        several.map(|url| server(url).map_err(|error| (key, error))).collect()
    }

    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        let subject = self.subject.as_deref().unwrap_or(DEFAULT_SUBJECT);
        let literals = address::literals(subject);
        if literals.contains(|c: char| matches!(c, '*' | '>') || c.is_whitespace()) {
            return Err((
                "subject",
                "* and > are wildcards and a space ends a subject: an event \
                goes to one"
                    .into(),
            ));
        }
        if subject.starts_with('$') {
            return Err(("subject", "subjects that begin with $ are the server's own".into()));
        }
        if !self.varies()
            && let Some(why) = subject::reserved(subject, self.inbox())
        {
            return Err(("subject", format!("nothing can be published there: {why}")));
        }
        let is_word = |word: &str| {
            !word.is_empty() && !word.contains(|c: char| "*>$".contains(c) || c.is_whitespace())
        };
        if !self.inbox().split('.').all(is_word) {
            return Err((
                "inbox_prefix",
                "words with dots between, without * > $, were expected".into(),
            ));
        }
        let ways = [
            self.user.is_some(),
            self.token.is_some(),
            self.nkey_seed.is_some(),
            self.credentials.is_some(),
        ];
        if ways.into_iter().filter(|way| *way).count() > 1 {
            return Err((
                "user",
                "one of user, token, nkey_seed and credentials was expected".into(),
            ));
        }
        if self.user.is_some() != self.password.is_some() {
            return Err(("password", "user and password belong together".into()));
        }
        if self.client_cert_file.is_some() != self.client_key_file.is_some() {
            return Err((
                "client_cert_file",
                "client_cert_file and client_key_file belong \
                together"
                    .into(),
            ));
        }
        if !self.jetstream && !matches!(self.create_stream, Create::Plain(false)) {
            return Err(("create_stream", "a stream needs jetstream = true".into()));
        }
        if self.jetstream && !self.commands.are_off() && takes_commands(&self.pattern()) {
            return Err((
                "commands",
                "the stream would take the commands too, and answer them in the relay's place: give \
                 `subject` another first word than astro, or take commands at a sink without jetstream"
                    .into(),
            ));
        }
        if !is_bucket(&self.state_bucket) {
            return Err(("state_bucket", "a name of a-z A-Z 0-9 _ - was expected".into()));
        }
        if self.stream.is_empty() || self.stream.contains(['.', '*', '>', ' ', '\t']) {
            return Err(("stream", "a name without . * > and spaces was expected".into()));
        }
        Ok(())
    }

    /// Whether the subject is rendered for each event.
    pub(crate) fn varies(&self) -> bool {
        let subject = self.subject.as_deref().unwrap_or(DEFAULT_SUBJECT);
        subject.contains("{{") || subject.contains("{%")
    }

    pub(crate) fn inbox(&self) -> &str {
        self.inbox_prefix.as_deref().unwrap_or("_INBOX")
    }

    /// Where events go, as a pattern.
    pub(crate) fn pattern(&self) -> String {
        pattern(self.subject.as_deref())
    }
}

/// Where events with such a `subject` go, as a pattern: the template up to its first bracket.
pub(super) fn pattern(subject: Option<&str>) -> String {
    let subject = subject.unwrap_or(DEFAULT_SUBJECT);
    match subject.find(['{']) {
        None => escape(subject).into_owned(),
        Some(bracket) => {
            let fixed = subject.get(..bracket).and_then(|text| text.rsplit_once('.'));
            fixed.map_or_else(|| ">".into(), |(words, _)| format!("{}.>", escape(words)))
        }
    }
}

/// Reads a URL. The text is not repeated in errors: it may hold a password.
fn server(url: &str) -> Result<ServerAddr, String> {
    const EXPECTED: &str = "a URL such as nats://host:4222 or tls://host:4222 was expected";
    let server: ServerAddr = url.parse().map_err(|_| EXPECTED.to_owned())?;
    if !matches!(server.scheme(), "nats" | "tls") || server.host().is_empty() {
        return Err(EXPECTED.into());
    }
    if server.has_user_pass() || server.password().is_some() {
        return Err("credentials belong into user and password, not into the URL".into());
    }
    Ok(server)
}

/// Whether it can be the name of a key-value bucket.
fn is_bucket(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
}

/// Whether a stream of these subjects would take commands, and answer them in the relay's place.
pub(super) fn takes_commands(pattern: &str) -> bool {
    let command = [command_address::ROOT, "*", command_address::COMMAND];
    let mut wanted = command.iter();
    for word in pattern.split('.') {
        match (word, wanted.next()) {
            (">", _) | (_, None) => return true,
            (word, Some(known)) => {
                if word != *known && word != "*" && *known != "*" {
                    return false;
                }
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(settings: serde_json::Value) -> Result<(), &'static str> {
        let settings: Settings = serde_json::from_value(settings).unwrap();
        settings.check().and_then(|()| settings.servers().map(drop)).map_err(|(key, _)| key)
    }

    #[test]
    fn contradictions_name_the_key() {
        assert_eq!(check(json!({"url": "nats://host"})), Ok(()));
        assert_eq!(check(json!({"urls": ["nats://a", "tls://b:4333"]})), Ok(()));
        assert_eq!(check(json!({"url": "nats://a:4222, tls://[::1]:4333,c:4222"})), Ok(()));
        for (settings, key) in [
            (json!({}), "url"),
            (json!({"url": "nats://a", "urls": ["nats://b"]}), "url"),
            (json!({"url": "http://host"}), "url"),
            (json!({"url": "nats://a,"}), "url"),
            (json!({"url": "nats://a,http://b"}), "url"),
            (json!({"url": "nats://a,nats://me:hunter2@b"}), "url"),
            (json!({"urls": ["nats://a", "nats://me:hunter2@b"]}), "urls"),
            (json!({"url": "nats://host", "subject": "astro.>"}), "subject"),
            (json!({"url": "nats://host", "subject": "astro {{ topic }}"}), "subject"),
            (json!({"url": "nats://host", "subject": "$JS.API.{{ topic }}"}), "subject"),
            (json!({"url": "nats://host", "subject": "$SYS.x"}), "subject"),
            (json!({"url": "nats://host", "subject": "astro.main.command.x"}), "subject"),
            (json!({"url": "nats://host", "inbox_prefix": ""}), "inbox_prefix"),
            (json!({"url": "nats://host", "inbox_prefix": "a..b"}), "inbox_prefix"),
            (json!({"url": "nats://host", "inbox_prefix": "a.>"}), "inbox_prefix"),
            (json!({"url": "nats://host", "user": "me"}), "password"),
            (json!({"url": "nats://host", "create_stream": true}), "create_stream"),
            (json!({"url": "nats://host", "stream": "a.b"}), "stream"),
            (
                json!({"url": "nats://host", "token": {"value": "x"}, "nkey_seed": {"value": "x"}}),
                "user",
            ),
        ] {
            assert_eq!(check(settings.clone()), Err(key), "{settings}");
        }
    }

    #[test]
    fn the_pattern_covers_all_subjects() {
        for (subject, pattern) in [
            (None, "astro.>"),
            (Some("events"), "events"),
            (Some("a.b.{{ topic }}"), "a.b.>"),
            (Some("a.x-{{ topic }}"), "a.>"),
            (Some("{{ topic }}"), ">"),
        ] {
            let settings = json!({"url": "nats://host", "subject": subject});
            let settings: Settings = serde_json::from_value(settings).unwrap();
            assert_eq!(settings.pattern(), pattern, "{subject:?}");
        }
    }

    #[test]
    fn streams_that_would_take_commands_are_recognised() {
        for (pattern, taken) in [
            ("astro.>", true),
            (">", true),
            ("*.>", true),
            ("astro.main.>", true),
            ("astro.*.command.>", true),
            ("astro.main.command.x", true),
            ("astro.*.channel.>", false),
            ("astro.main.relay.>", false),
            ("events.>", false),
            ("astro", false),
            ("astro.main", false),
        ] {
            assert_eq!(takes_commands(pattern), taken, "{pattern}");
        }
    }

    #[test]
    fn names_of_buckets_have_letters_digits_and_two_signs() {
        assert!(
            is_bucket("astro_state-2") && !is_bucket("") && !is_bucket("a.b") && !is_bucket("ü")
        );
    }
}
