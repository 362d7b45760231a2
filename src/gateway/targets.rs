//! What the configuration wants of the gateway.

use std::{collections::HashMap, sync::Arc};

use crate::{
    astro::session::Subscription,
    config::{Config, SecretRef, TokenType},
};

#[derive(Debug, Clone, Default)]
pub struct Targets {
    pub subscriptions: Vec<Arc<Subscription>>,
    /// The credentials of each channel, by label.
    pub channels: HashMap<Arc<str>, Account>,
}

/// In whose name a channel's requests are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub token: SecretRef,
    pub token_type: TokenType,
    /// The room that is configured, if one is.
    pub room: Option<Arc<str>>,
}

impl Targets {
    pub fn of(config: &Config) -> Self {
        let mut targets = Self::default();
        for (label, channel) in &config.channels {
            let label: Arc<str> = label.as_str().into();
            let room: Option<Arc<str>> = channel.room.as_deref().map(Into::into);
            for topic in &channel.topics {
                targets.subscriptions.push(Arc::new(Subscription {
                    channel: Arc::clone(&label),
                    topic: topic.as_str().into(),
                    room: room.clone(),
                    token_type: channel.token_type,
                }));
            }
            let (token, token_type) = (channel.token.clone(), channel.token_type);
            targets.channels.insert(label, Account { token, token_type, room });
        }
        targets
    }
}
