//! The settings of a `redis` sink, and what of them contradicts itself.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

use super::answer::About;
use crate::{
    config::{ConfigError, SecretRef},
    sink::{self, Opening, address, prefix::Prefix},
};

/// Settings of a `redis` sink.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// The server: `redis://host:6379/0`, `rediss://…` with TLS, `redis+unix:///path`; several with
    /// commas between, as in `urls`.
    pub(crate) url: Option<String>,
    /// Several: the sentinels, or some servers of a cluster.
    #[serde(default)]
    pub(crate) urls: Vec<String>,
    /// The name under which the sentinels at `urls` know the master.
    pub(crate) sentinel_master: Option<String>,
    /// Whether the servers are a cluster.
    #[serde(default)]
    pub(crate) cluster: bool,
    /// Publish to a channel, or append to a stream.
    #[serde(default)]
    pub(crate) mode: Mode,
    /// The channel to publish to: a template. Default: `astro:{{ channel }}:{{ topic }}`.
    pub(crate) channel: Option<String>,
    /// The key of the stream: a template. Default: `astro:events`.
    pub(crate) key: Option<String>,
    /// About how many entries a stream keeps; 0 keeps all.
    #[serde(default = "default_max_len")]
    pub(crate) max_len: u64,
    /// The user, where the server has users.
    pub(crate) user: Option<String>,
    /// The password.
    pub(crate) password: Option<SecretRef>,
    /// The user at the sentinels.
    pub(crate) sentinel_user: Option<String>,
    /// The password at the sentinels.
    pub(crate) sentinel_password: Option<SecretRef>,
    /// A PEM file of certificate authorities to trust instead of the system's.
    pub(crate) ca_file: Option<PathBuf>,
    /// A PEM file with the client's certificate.
    pub(crate) client_cert_file: Option<PathBuf>,
    /// A PEM file with the client's key.
    pub(crate) client_key_file: Option<PathBuf>,
    /// What the keys of the state begin with, a template over `channel`, which is `relay` for the
    /// relay's own. Default: `astro:{{ channel }}`.
    pub(crate) state_key: Option<String>,
}

/// What is done with an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// `PUBLISH`: heard by those who listen.
    #[default]
    Pubsub,
    /// `XADD`: kept in a stream.
    Stream,
}

/// About a month of a busy channel, and some 100 MB.
fn default_max_len() -> u64 {
    100_000
}

pub(crate) fn is_stream(settings: &serde_json::Value) -> bool {
    settings.get("mode").and_then(serde_json::Value::as_str) == Some("stream")
}

impl Settings {
    /// Reads and checks the settings of a sink.
    pub(crate) fn read(opening: &Opening<'_>) -> Result<Self, ConfigError> {
        let settings: Self = sink::settings(opening)?;
        let at = |key: &str, what| ConfigError::at(&["sinks", opening.name, key], what);
        if let Some((key, what)) = settings.wrong() {
            return Err(at(key, what));
        }
        if settings.state_key.is_some() && !opening.config.state {
            return Err(at("state_key", "is of use only with state = true".into()));
        }
        Ok(settings)
    }

    /// All servers that are configured.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &str> {
        self.url.iter().chain(&self.urls).flat_map(|url| address::each_url(url))
    }

    pub(crate) fn prefix(&self) -> Result<Prefix, String> {
        Prefix::new(self.state_key.as_deref().unwrap_or("astro:{{ channel }}"), &[])
    }

    /// What an answer is about: to an event at `address`, or to something else.
    pub(super) fn about<'a>(&self, address: Option<&'a str>) -> About<'a> {
        let template = match self.mode {
            Mode::Pubsub => self.channel.as_deref(),
            Mode::Stream => self.key.as_deref(),
        };
        let varies = match template {
            Some(template) => template.contains("{{") || template.contains("{%"),
            None => self.mode == Mode::Pubsub,
        };
        match address {
            None => About::Server,
            Some(address) if varies => About::OneAddress(address),
            Some(address) => About::OnlyAddress(address),
        }
    }

    /// The first thing that is wrong: the key, and what.
    fn wrong(&self) -> Option<(&'static str, String)> {
        let several = self.cluster || self.sentinel_master.is_some();
        for url in self.nodes() {
            if let Err(what) = check_url(url) {
                return Some(("url", what));
            }
        }
        if let Err(what) = self.prefix() {
            return Some(("state_key", what));
        }
        let (key, what) = match self {
            _ if self.nodes().next().is_none() => ("url", "the server's address is missing"),
            _ if !several && self.nodes().count() > 1 => {
                ("urls", "several servers need `cluster = true` or `sentinel_master`")
            }
            _ if self.cluster && self.sentinel_master.is_some() => {
                ("sentinel_master", "a cluster has no sentinels: choose one of the two")
            }
            _ if self.mode == Mode::Stream && self.channel.is_some() => {
                ("channel", "a stream has a `key`; `channel` belongs to mode = \"pubsub\"")
            }
            _ if self.mode == Mode::Pubsub && self.key.is_some() => {
                ("key", "`key` belongs to mode = \"stream\"; publishing has a `channel`")
            }
            _ if self.user.is_some() && self.password.is_none() => {
                ("user", "a user needs a `password` (or `password_file`, …)")
            }
            _ if self.client_cert_file.is_some() != self.client_key_file.is_some() => {
                ("client_cert_file", "`client_cert_file` and `client_key_file` belong together")
            }
            _ => return None,
        };
        Some((key, what.to_owned()))
    }
}

/// Whether the library will understand it. It must not carry a password: a URL is printed in logs.
fn check_url(text: &str) -> Result<(), String> {
    let url = redis::parse_redis_url(text)
        .ok_or("an address such as \"redis://127.0.0.1:6379/0\" was expected")?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("put user and password under `user` and `password_file`, not in the URL".into());
    }
    if url.fragment().is_some() {
        return Err("certificates are always checked: use `ca_file` for one of your own".into());
    }
    redis::IntoConnectionInfo::into_connection_info(text)
        .map(drop)
        .map_err(|error| error.to_string())
}
