//! What the configuration wants of the gateway.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use crate::{
    astro::session::Subscription,
    config::{Channel, Config, SecretRef, TokenType},
};

#[derive(Debug, Clone, Default)]
pub struct Targets {
    pub subscriptions: Vec<Arc<Subscription>>,
    /// The credentials of each channel, by label.
    pub channels: HashMap<Arc<str>, Account>,
    /// Grows when a token was refreshed: connections read it again then.
    pub refreshed: u64,
    /// Channels that other members of the cluster hold, and this one does not: none of them is subscribed
    /// here, and what is known of them stays.
    pub elsewhere: BTreeSet<Arc<str>>,
}

/// In whose name a channel's requests are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub token: SecretRef,
    pub token_type: TokenType,
    /// The room that is configured, if one is.
    pub room: Option<Arc<str>>,
    /// Which room it is as far as that is known here: the configured one, or that of the token.
    pub known_room: Option<Arc<str>>,
    /// With what the token is refreshed, if it is.
    pub refresh: Option<Arc<RefreshSettings>>,
}

/// With what an OAuth2 access token is refreshed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefreshSettings {
    pub client_id: String,
    pub client_secret: SecretRef,
    pub refresh_token: SecretRef,
}

impl RefreshSettings {
    fn of(channel: &Channel) -> Option<Arc<Self>> {
        let client_id = channel.client_id.clone()?;
        let client_secret = channel.client_secret.clone()?;
        let refresh_token = channel.refresh_token.clone()?;
        Some(Arc::new(Self { client_id, client_secret, refresh_token }))
    }
}

impl Targets {
    pub fn of(config: &Config) -> Self {
        let mut targets = Self::default();
        for (label, channel) in &config.channels {
            let label: Arc<str> = label.as_str().into();
            let room: Option<Arc<str>> = channel.room.as_deref().map(Into::into);
            let known_room = config.room_of(&label).map(Into::into);
            let token_room = config.token_rooms.get(&*label);
            let token_room: Option<Arc<str>> = token_room.map(|room| room.as_str().into());
            for topic in &channel.topics {
                targets.subscriptions.push(Arc::new(Subscription {
                    channel: Arc::clone(&label),
                    topic: topic.as_str().into(),
                    room: room.clone(),
                    token_type: channel.token_type,
                    token_room: token_room.clone(),
                }));
            }
            let (token, token_type) = (channel.token.clone(), channel.token_type);
            let refresh = RefreshSettings::of(channel);
            let account = Account { token, token_type, room, known_room, refresh };
            targets.channels.insert(label, account);
        }
        targets
    }
}
