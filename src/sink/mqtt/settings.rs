//! The settings of an `mqtt` sink, and what is wrong with them.
//!
//! One table of the configuration is read by three: the event sink, the publisher of state, and the
//! listener for commands. It connects to nothing.

use std::{path::PathBuf, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    super::{address, prefix::Prefix},
    target::Target,
    topic::{self, escape},
};
use crate::{
    channel::board::{self, Path, Section},
    command::parse,
    config::{Commands, Period, SecretRef},
    publish::homeassistant,
};

/// Settings of an `mqtt` sink.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// The broker: `mqtt://host`, `mqtts://host`, `ws://host/mqtt`, `wss://host/mqtt`.
    pub(crate) url: String,
    /// Where events go, a template. Default: `astro/<channel>/<topic with />`.
    #[serde(default)]
    pub(crate) topic: Option<String>,
    /// The version of the protocol.
    #[serde(default)]
    pub(crate) version: Version,
    /// 0, 1 or 2.
    #[serde(default = "default_qos")]
    pub(crate) qos: u8,
    /// Whether the broker keeps the newest event of each topic: true, false, or a Jinja expression
    /// over the event.
    #[serde(default)]
    pub(crate) retain: Retain,
    /// Who we are to the broker. Default: `astro-relay-<name of the sink>`.
    #[serde(default)]
    pub(crate) client_id: Option<String>,
    /// The user.
    #[serde(default)]
    pub(crate) user: Option<String>,
    /// The user's password; also `password_file`, `password_env`, `password_credential`.
    #[serde(default)]
    pub(crate) password: Option<SecretRef>,
    /// A PEM file of certificate authorities to trust instead of the system's.
    #[serde(default)]
    pub(crate) ca_file: Option<PathBuf>,
    /// A PEM file with our certificate.
    #[serde(default)]
    pub(crate) client_cert_file: Option<PathBuf>,
    /// A PEM file with its key.
    #[serde(default)]
    pub(crate) client_key_file: Option<PathBuf>,
    /// Silence after which the broker is asked whether it is there.
    #[serde(default = "default_keep_alive")]
    pub(crate) keep_alive: Period,
    /// Events without an answer, at most; the broker may allow fewer.
    #[serde(default = "default_inflight")]
    pub(crate) inflight: u16,
    /// A retained topic that says `online` or `offline`. Default: `astro/relay/<name of the
    /// sink>/availability`; `""` turns it off. With `state` there is the relay's status instead.
    #[serde(default)]
    pub(crate) availability_topic: Option<String>,
    /// What the topics of the state begin with, a template over `channel`, which is `relay` for the
    /// relay's own. Default: `astro/{{ channel }}`.
    #[serde(default)]
    pub(crate) state_topic: Option<String>,
    /// Commands that may come over `astro/<channel>/command/…`: true for all, false for none, or a list
    /// of `session/set`, `session/reset`, `session/reload`, `relay/refresh`.
    #[serde(default)]
    pub(crate) commands: Commands,
    /// Whether Home Assistant is told of all this by MQTT discovery: an entity for each figure of the
    /// session, for each kind of happening, for the relay itself. Brings `state` with it. `false` takes
    /// back what was announced before; left out, nothing is touched.
    #[serde(default)]
    pub(crate) homeassistant: Option<bool>,
    /// The prefix under which Home Assistant listens. Default: `homeassistant`.
    #[serde(default)]
    pub(crate) discovery_prefix: Option<String>,
}

/// The version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
pub(crate) enum Version {
    /// MQTT 5.
    #[default]
    #[serde(rename = "5")]
    V5,
    /// MQTT 3.1.1.
    #[serde(rename = "3.1.1")]
    V3,
}

/// Which events the broker keeps.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Retain {
    /// All or none.
    Always(bool),
    /// Those of which a Jinja expression is true.
    When(String),
}

impl Default for Retain {
    fn default() -> Self {
        Self::Always(false)
    }
}

fn default_qos() -> u8 {
    1
}

/// Half of what a home router forgets an idle connection after, at the least.
fn default_keep_alive() -> Period {
    Period(Duration::from_secs(30))
}

/// 64 events of Astro's size are 50 KiB: enough to keep a link across a continent busy. The client
/// looks at every place of its table with every flush, so that more is not faster.
fn default_inflight() -> u16 {
    64
}

impl Settings {
    /// The protocol's keep-alive has two bytes of seconds.
    pub(super) fn keep_alive_secs(&self) -> u16 {
        u16::try_from(self.keep_alive.0.as_secs()).unwrap_or(u16::MAX)
    }

    pub(crate) fn prefix(&self) -> Result<Prefix, String> {
        Prefix::new(
            self.state_topic.as_deref().unwrap_or(homeassistant::DEFAULT_BASE),
            &['+', '#', '\0'],
        )
    }

    /// Whether something of ours may be published below the topics of the state.
    fn state_topics(&self) -> Result<(), String> {
        let prefix = self.prefix()?;
        for owner in ["main", board::RELAY] {
            for section in [Section::Session, Section::Status] {
                let path = Path { channel: owner.into(), section, name: "x".into() };
                if let Some(reason) = topic::refusal(&topic::of_state(&prefix, &path)?) {
                    return Err(reason);
                }
            }
        }
        Ok(())
    }

    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        let target = Target::parse(&self.url).map_err(|error| ("url", error))?;
        if self.qos > 2 {
            return Err(("qos", format!("0, 1 or 2 was expected, not {}", self.qos)));
        }
        if self.inflight == 0 {
            return Err(("inflight", "at least 1 was expected".into()));
        }
        if self.keep_alive_secs() == 0 {
            return Err((
                "keep_alive",
                "at least 1s was expected: without it a dead broker is \
                noticed by nobody"
                    .into(),
            ));
        }
        if let Some(wildcard) =
            self.topic.as_deref().and_then(|topic| address::literals(topic).find(['+', '#']))
        {
            return Err((
                "topic",
                format!(
                    "+ and # are wildcards, an event goes to one topic \
                (found at byte {wildcard} of the text outside of the brackets)"
                ),
            ));
        }
        if let Some(topic) =
            self.topic.as_deref().filter(|topic| topic.trim_start().starts_with('$'))
        {
            let first = topic.trim_start().split('/').next().unwrap_or_default();
            return Err(("topic", format!("{first}: topics with $ in front are the broker's own")));
        }
        if let Some(topic) = self.topic.as_deref()
            && parse::address(address::literals(topic).as_bytes(), '/').is_some()
        {
            let message =
                "astro/<channel>/command is where commands are heard: no event goes there";
            return Err(("topic", message.into()));
        }
        if let Some(topic) = self.availability_topic.as_deref().filter(|topic| !topic.is_empty())
            && let Some(reason) = topic::refusal(topic)
        {
            return Err(("availability_topic", reason));
        }
        self.state_topics().map_err(|error| ("state_topic", error))?;
        if self.discovery_prefix.as_deref().is_some_and(|prefix| {
            escape(prefix) != prefix || topic::refusal(&format!("{prefix}/x/x/x/config")).is_some()
        }) {
            return Err(("discovery_prefix", "the beginning of a topic was expected".into()));
        }
        if self.discovery_prefix.is_some() && self.homeassistant.is_none() {
            return Err(("discovery_prefix", "is of use only with homeassistant".into()));
        }
        if self.version == Version::V3 && self.password.is_some() && self.user.is_none() {
            return Err(("password", "MQTT 3.1.1 has no password without a user".into()));
        }
        let files = [&self.ca_file, &self.client_cert_file, &self.client_key_file];
        if !target.is_tls() && files.iter().any(|file| file.is_some()) {
            return Err(("url", "certificates need mqtts:// or wss://".into()));
        }
        if self.client_cert_file.is_some() != self.client_key_file.is_some() {
            return Err((
                "client_cert_file",
                "client_cert_file and client_key_file belong \
                together"
                    .into(),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(settings: serde_json::Value) -> Result<(), (&'static str, String)> {
        serde_json::from_value::<Settings>(settings).unwrap().check()
    }

    #[test]
    fn a_contradiction_is_told_with_its_key() {
        assert_eq!(check(json!({"url": "mqtt://host"})), Ok(()));
        for (settings, key) in [
            (json!({"url": "http://host"}), "url"),
            (json!({"url": "mqtt://host", "qos": 3}), "qos"),
            (json!({"url": "mqtt://host", "inflight": 0}), "inflight"),
            (json!({"url": "mqtt://host", "keep_alive": "100ms"}), "keep_alive"),
            (json!({"url": "mqtt://host", "topic": "astro/{{ topic }}/#"}), "topic"),
            (json!({"url": "mqtt://host", "availability_topic": "a/+"}), "availability_topic"),
            (json!({"url": "mqtt://host", "availability_topic": "$SYS/a"}), "availability_topic"),
            (
                json!({"url": "mqtt://host", "availability_topic": "astro/main/command/x"}),
                "availability_topic",
            ),
            (json!({"url": "mqtt://host", "topic": "$SYS/{{ topic }}"}), "topic"),
            (json!({"url": "mqtt://host", "topic": "astro/{{ channel }}/command/x"}), "topic"),
            (json!({"url": "mqtt://host", "topic": "astro/main/command/{{ topic }}"}), "topic"),
            (
                json!({"url": "mqtt://host", "state_topic": "astro/{{ channel }}/command"}),
                "state_topic",
            ),
            (json!({"url": "mqtt://host", "state_topic": "a/b"}), "state_topic"),
            (json!({"url": "mqtt://host", "state_topic": "+/{{ channel }}"}), "state_topic"),
            (
                json!({"url": "mqtt://host", "state_topic": "{{ topic }}/{{ channel }}"}),
                "state_topic",
            ),
            (json!({"url": "mqtt://host", "ca_file": "/x"}), "url"),
            (json!({"url": "mqtts://host", "client_cert_file": "/x"}), "client_cert_file"),
            (
                json!({"url": "mqtt://host", "version": "3.1.1", "password": {"value": "x"}}),
                "password",
            ),
        ] {
            assert_eq!(check(settings.clone()).unwrap_err().0, key, "{settings}");
        }
        assert_eq!(
            check(json!({"url": "mqtt://host", "topic": "a/{{ topic | replace('.', '+') }}"})),
            Ok(())
        );
    }
}
