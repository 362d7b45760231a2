//! Which parts of the state a sink has, and what of them.

use std::collections::HashSet;

use bytes::Bytes;

use crate::{
    base::json::Json,
    channel::store::{Section, StateKey},
    config::{ConfigError, PERSONAL_FIELDS, SinkConfig},
    delivery::route::Redactor,
};

/// Topics and conditions choose events; of the state a sink has all that belongs to its channels, and what
/// the relay says of itself.
#[derive(Debug)]
pub struct Scope {
    channels: Option<HashSet<String>>,
    redactor: Redactor,
}

impl Scope {
    pub fn of(name: &str, config: &SinkConfig) -> Result<Self, ConfigError> {
        let personal = || PERSONAL_FIELDS.iter().map(|&path| path.to_owned()).collect();
        let redact = config.redact.clone().unwrap_or_else(personal);
        let redactor = Redactor::new(&redact)
            .map_err(|error| ConfigError::at(&["sinks", name, "redact"], error))?;
        let channels = config.channels.as_ref().map(|names| names.iter().cloned().collect());
        Ok(Self { channels, redactor })
    }

    pub fn covers(&self, key: &StateKey) -> bool {
        key.channel.is_empty()
            || self.channels.as_ref().is_none_or(|channels| channels.contains(&*key.channel))
    }

    /// A part as the destination may have it.
    pub fn payload(&self, key: &StateKey, value: &Json) -> Bytes {
        if !matches!(key.section, Section::Session | Section::Paid) {
            return key.payload(value);
        }
        let mut value = value.read();
        self.redactor.element(&mut value);
        key.payload(&Json::from(&value))
    }
}
