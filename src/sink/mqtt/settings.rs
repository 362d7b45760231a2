//! The settings of an `mqtt` sink, and what is wrong with them.
//!
//! One table of the configuration is read by three: the event sink, the publisher of state, and the
//! listener for commands. It connects to nothing.

use std::{path::PathBuf, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use url::Url;

use super::{
    super::{address, prefix::Prefix},
    target::Target,
    topic::{self, escape},
};
use crate::{
    channel::store::{self, Section, StateKey},
    config::{Commands, ConfigError, Period, SecretRef},
    sink::{self, Opening, Purpose, command_address},
};

/// Where events go by default.
pub(super) const DEFAULT_TOPIC: &str = "astro/{{ channel }}/{{ topic | replace('.', '/') }}";

/// What the topics of the state begin with by default.
pub(crate) const DEFAULT_STATE_TOPIC: &str = "astro/{{ channel }}";

/// Settings of an `mqtt` sink.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// The broker: `mqtt://host`, `mqtts://host`, `ws://host/mqtt`, `wss://host/mqtt`.
    pub(crate) url: String,
    /// Where events go, a template. Default: `astro/<channel>/<topic with />`.
    pub(crate) topic: Option<String>,
    /// The version of the protocol.
    #[serde(default)]
    pub(crate) version: Version,
    /// 0, 1 or 2.
    #[serde(default = "default_qos")]
    #[schemars(range(max = 2))]
    pub(crate) qos: u8,
    /// Whether the broker retains the newest event of each topic: true, false, or a Jinja expression
    /// over the event.
    #[serde(default)]
    pub(crate) retain: Retain,
    /// The client id. Default: `astro-relay-<name of the sink>`.
    pub(crate) client_id: Option<String>,
    /// The user.
    pub(crate) user: Option<String>,
    /// The user's password; also `password_file`, `password_env`, `password_credential`.
    pub(crate) password: Option<SecretRef>,
    /// A PEM file of certificate authorities to trust instead of the system's.
    pub(crate) ca_file: Option<PathBuf>,
    /// A PEM file with our certificate.
    pub(crate) client_cert_file: Option<PathBuf>,
    /// A PEM file with its key.
    pub(crate) client_key_file: Option<PathBuf>,
    /// Silence after which the broker is asked whether it is there.
    #[serde(default = "default_keep_alive")]
    pub(crate) keep_alive: Period,
    /// Events in flight, at most; the broker may allow fewer.
    #[serde(default = "default_inflight")]
    pub(crate) inflight: u16,
    /// A retained topic that says `online` or `offline`. Default: `astro/relay/<name of the
    /// sink>/availability`; `""` turns it off. With `state` there is the relay's status instead.
    pub(crate) availability_topic: Option<String>,
    /// What the topics of the state begin with, a template over `channel`, which is `relay` for the
    /// relay's own. Default: `astro/{{ channel }}`.
    pub(crate) state_topic: Option<String>,
    /// Commands that may come over `astro/<channel>/command/…`: true for all, false for none, or a list
    /// of `session/set`, `session/reset`, `session/reload`, `relay/refresh`, `relay/test`.
    #[serde(default)]
    pub(crate) commands: Commands,
    /// Home Assistant's MQTT discovery: an entity for each figure of the session, for each kind of event,
    /// for the relay itself. Implies `state`. `false` removes what was announced before; left out, nothing
    /// is changed.
    pub(crate) homeassistant: Option<bool>,
    /// Home Assistant's discovery prefix. Default: `homeassistant`.
    pub(crate) discovery_prefix: Option<String>,
    /// The address of the relay's page as people reach it: a link on each device in Home Assistant.
    pub(crate) configuration_url: Option<String>,
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

/// Which events the broker retains.
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
    /// Reads and checks them; an error names the sink and the key.
    pub(crate) fn read(opening: &Opening<'_>) -> Result<Self, ConfigError> {
        let settings: Self = sink::settings(opening)?;
        settings
            .check()
            .and_then(|()| settings.check_state(opening.config.state))
            .map_err(|(key, message)| ConfigError::at(&["sinks", opening.name, key], message))?;
        Ok(settings)
    }

    /// The one topic of all events, where it is not rendered for each.
    pub(super) fn only_topic(&self) -> Option<String> {
        let topic = self.topic.as_deref()?;
        let varies = topic.contains("{{") || topic.contains("{%");
        (!varies).then(|| escape(topic).into_owned())
    }

    /// The client id of the event sink. Every other connection adds a word to it.
    pub(super) fn client_id(&self, opening: &Opening<'_>) -> String {
        let id = self.client_id.clone().filter(|id| !id.is_empty());
        let id = id.unwrap_or_else(|| client_id(opening.name, &Value::Null));
        match opening.purpose {
            Purpose::Relay => id,
            // A second client with the id of the relay would end its connection.
            Purpose::Probe => id + "-probe",
        }
    }

    /// The topic that says whether the relay is there; none with state, which has a status instead.
    pub(super) fn availability(&self, opening: &Opening<'_>) -> Option<String> {
        if opening.config.state || opening.purpose == Purpose::Probe {
            return None;
        }
        match &self.availability_topic {
            Some(topic) => (!topic.is_empty()).then(|| topic.clone()),
            None => Some(format!("astro/relay/{}/availability", opening.name)),
        }
    }

    /// The protocol's keep-alive has two bytes of seconds.
    pub(super) fn keep_alive_secs(&self) -> u16 {
        u16::try_from(self.keep_alive.0.as_secs()).unwrap_or(u16::MAX)
    }

    pub(crate) fn prefix(&self) -> Result<Prefix, String> {
        Prefix::new(self.state_topic.as_deref().unwrap_or(DEFAULT_STATE_TOPIC), &['+', '#', '\0'])
    }

    fn check(&self) -> Result<(), Invalid> {
        self.check_connection()?;
        self.check_event_topic()?;
        if let Some(topic) = self.availability_topic.as_deref().filter(|topic| !topic.is_empty())
            && let Some(reason) = topic::refusal(topic)
        {
            return Err(("availability_topic", reason));
        }
        self.check_state_topics().map_err(|error| ("state_topic", error))?;
        if let Some(prefix) = self.discovery_prefix.as_deref() {
            let example = format!("{prefix}/x/x/x/config");
            if escape(prefix) != prefix || topic::refusal(&example).is_some() {
                return invalid("discovery_prefix", "the beginning of a topic was expected");
            }
            if self.homeassistant.is_none() {
                return invalid("discovery_prefix", "is of use only with homeassistant");
            }
        }
        if let Some(url) = self.configuration_url.as_deref() {
            // Others Home Assistant refuses, with the whole entity.
            let scheme = Url::parse(url).map(|url| url.scheme().to_owned()).unwrap_or_default();
            if !["http", "https", "homeassistant"].contains(&&*scheme) {
                return invalid("configuration_url", "an http:// or https:// address was expected");
            }
            if self.homeassistant.is_none() {
                return invalid("configuration_url", "is of use only with homeassistant");
            }
        }
        Ok(())
    }

    fn check_connection(&self) -> Result<(), Invalid> {
        let target = Target::parse(&self.url).map_err(|error| ("url", error))?;
        if self.qos > 2 {
            return Err(("qos", format!("0, 1 or 2 was expected, not {}", self.qos)));
        }
        if self.inflight == 0 {
            return invalid("inflight", "at least 1 was expected");
        }
        if self.keep_alive_secs() == 0 {
            let message = "at least 1s was expected: without it a dead broker is noticed by nobody";
            return invalid("keep_alive", message);
        }
        if self.version == Version::V3 && self.password.is_some() && self.user.is_none() {
            return invalid("password", "MQTT 3.1.1 has no password without a user");
        }
        let files = [&self.ca_file, &self.client_cert_file, &self.client_key_file];
        if !target.is_tls() && files.iter().any(|file| file.is_some()) {
            return invalid("url", "certificates need mqtts:// or wss://");
        }
        if self.client_cert_file.is_some() != self.client_key_file.is_some() {
            let message = "client_cert_file and client_key_file belong together";
            return invalid("client_cert_file", message);
        }
        Ok(())
    }

    fn check_event_topic(&self) -> Result<(), Invalid> {
        let Some(topic) = self.topic.as_deref() else { return Ok(()) };
        let literals = address::literals(topic);
        if let Some(wildcard) = literals.find(['+', '#']) {
            let message = format!(
                "+ and # are wildcards, an event goes to one topic (found at byte {wildcard} of the text \
                 outside of the brackets)"
            );
            return Err(("topic", message));
        }
        if topic.trim_start().starts_with('$') {
            let first = topic.trim_start().split('/').next().unwrap_or_default();
            return Err(("topic", format!("{first}: topics with $ in front are the broker's own")));
        }
        if command_address::parse(literals.as_bytes(), '/').is_some() {
            let message =
                "astro/<channel>/command is where commands are received: no event goes there";
            return invalid("topic", message);
        }
        Ok(())
    }

    /// Whether something of ours may be published below the topics of the state.
    fn check_state_topics(&self) -> Result<(), String> {
        let prefix = self.prefix()?;
        for owner in ["main", store::RELAY] {
            for section in [Section::Session, Section::Status] {
                let key = StateKey { channel: owner.into(), section, name: "x".into() };
                if let Some(reason) = topic::refusal(&topic::of_state(&prefix, &key)?) {
                    return Err(reason);
                }
            }
        }
        Ok(())
    }

    fn check_state(&self, state: bool) -> Result<(), Invalid> {
        if state && self.availability_topic.as_deref().is_some_and(|topic| !topic.is_empty()) {
            let message = "with state = true the relay's status takes the place of this topic";
            return invalid("availability_topic", message);
        }
        if !state && self.state_topic.is_some() {
            return invalid("state_topic", "is of use only with state = true");
        }
        Ok(())
    }
}

/// The client id of a sink of that name with these settings. An empty one counts as none: the broker would
/// choose, and no connection would end the one before.
pub(crate) fn client_id(name: &str, settings: &Value) -> String {
    let configured = settings.get("client_id").and_then(Value::as_str).filter(|id| !id.is_empty());
    configured.map_or_else(|| format!("astro-relay-{name}"), str::to_owned)
}

/// That of the connection that publishes the state of the sink with this client id.
pub(crate) fn state_client_id(id: &str) -> String {
    format!("{id}-state")
}

/// That of the connection that takes its commands.
pub(crate) fn command_client_id(id: &str) -> String {
    format!("{id}-commands")
}

/// The key that is wrong, and why.
type Invalid = (&'static str, String);

fn invalid(key: &'static str, message: &str) -> Result<(), Invalid> {
    Err((key, message.to_owned()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(settings: Value) -> Result<(), Invalid> {
        serde_json::from_value::<Settings>(settings).unwrap().check()
    }

    #[test]
    fn an_invalid_setting_is_reported_with_its_key() {
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
