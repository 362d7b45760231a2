//! What kind of Astro is simulated: the revision of the protocol, the tokens, the limits.
//!
//! Fixed for the life of one simulation, except for the tokens; what goes wrong is in
//! [`Faults`](crate::Faults) and can be changed at any time.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use crate::secret::Secret;

/// What is simulated. The default is the vendor's revision of September 2026; [`Options::march_2026`] and
/// [`Options::first_revision`] are the older ones.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whether a connection is welcomed: the later revision does it, the first does not mention it.
    pub welcome: bool,
    /// How a response spells its type.
    pub response_type: ResponseType,
    /// What the data of a successful response looks like.
    pub success: Success,
    /// Whether messages name their room.
    pub message_room: bool,
    /// How element names are spelled in `channel.session.update`.
    pub session_keys: SessionKeys,
    /// What `channel.session.update` carries beside the value.
    pub session_update: SessionUpdate,
    /// What `channel.session.reset` carries.
    pub session_reset: SessionReset,
    /// Which documents the session, its reset and `reconnect` follow.
    pub documents: Documents,
    /// How the REST API answers a reset.
    pub reset_answer: ResetAnswer,
    /// Whether the REST API knows `/sessions/:channel/reload`, which stands in the first page of the API
    /// and in no later document. Otherwise it answers 404.
    pub reload: bool,
    /// What the list of activities makes of parameters that were not sent.
    pub activities: ActivitiesQuery,
    /// Whether a message has the same id on every connection.
    pub message_ids: MessageIds,
    /// How often a connection is pinged.
    pub ping_every: Duration,
    /// A connection that has sent no PONG for so long is closed.
    pub pong_within: Duration,
    /// The tokens that are accepted. None at all: every token may do everything.
    pub tokens: Vec<Token>,
    /// OAuth2 clients, whose access tokens can be refreshed at `/oauth2/token`.
    pub clients: Vec<OAuthClient>,
    /// The canonical room of a requested room.
    pub canonical: Canonical,
    /// Commands that one connection may send in any 10 seconds.
    pub commands_per_window: usize,
    /// Subscriptions that one connection may hold.
    pub subscriptions_per_connection: Option<usize>,
    /// How long a reconnect token can be used.
    pub reconnect_token_life: Duration,
    /// How long a drained connection is kept before the server closes it; `None` keeps it.
    pub drain_grace: Option<Duration>,
    /// Ids of sent messages that are remembered for each connection.
    pub keep_sent: usize,
    /// Seed of everything that is drawn by lot.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            welcome: true,
            response_type: ResponseType::Lower,
            success: Success::WithRoom,
            message_room: true,
            session_keys: SessionKeys::Rest,
            session_update: SessionUpdate::Whole,
            session_reset: SessionReset::Elements,
            documents: Documents::September2026,
            reset_answer: ResetAnswer::Session,
            reload: true,
            activities: ActivitiesQuery::AsSent,
            message_ids: MessageIds::Shared,
            // "The server sends a PING every 30 seconds" and closes after 70 (revisions of 2026).
            ping_every: Duration::from_secs(30),
            pong_within: Duration::from_secs(70),
            tokens: Vec::new(),
            clients: Vec::new(),
            canonical: Canonical::AsAsked,
            // "One per 100 ms, burst 100 per 10 s" (revisions of 2026). Taken strictly: never more than
            // 100 in any ten seconds.
            commands_per_window: 100,
            subscriptions_per_connection: None,
            // The documentation gives no figure: long enough for every wait that a relay may be told.
            reconnect_token_life: Duration::from_mins(5),
            // No figure either: long enough to see that a relay closes the old link by itself.
            drain_grace: Some(Duration::from_mins(1)),
            // 16 bytes each: 1.6 MB a connection at most.
            keep_sent: 100_000,
            seed: 1,
        }
    }
}

impl Options {
    /// The protocol as it was documented in March 2026: session updates without `activityId`, `name`,
    /// `provider` and `channel`, a reset that leaves nothing, `reconnect` without a message.
    pub fn march_2026() -> Self {
        Self {
            session_update: SessionUpdate::Value,
            documents: Documents::March2026,
            ..Self::default()
        }
    }

    /// The protocol as its first public page has it: no welcome, `RESPONSE` in capitals, no rooms
    /// in responses and messages, element names like `latest_follower`.
    pub fn first_revision() -> Self {
        Self {
            welcome: false,
            response_type: ResponseType::Upper,
            success: Success::WithoutRoom,
            message_room: false,
            session_keys: SessionKeys::Older,
            ..Self::march_2026()
        }
    }
}

/// How a response spells its type: the first page has both, one in its table and one in its example.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ResponseType {
    /// `response`
    #[default]
    Lower,
    /// `RESPONSE`
    Upper,
}

impl ResponseType {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Lower => "response",
            Self::Upper => "RESPONSE",
        }
    }
}

/// What the data of a successful response looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Success {
    /// `message`, `topic` and the canonical `room`.
    #[default]
    WithRoom,
    /// `message` and `topic`.
    WithoutRoom,
    /// A bare string.
    Text,
}

/// How element names are spelled in `channel.session.update`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SessionKeys {
    /// `follower-latest`, as the REST API spells them.
    #[default]
    Rest,
    /// `latest_follower`, as the page of the topic spells them.
    Older,
}

/// What `channel.session.update` carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SessionUpdate {
    /// `key` and `name`, `provider`, `channel`, and in `data` the value with the `activityId` of the
    /// activity that caused the change.
    #[default]
    Whole,
    /// `key` and the value.
    Value,
}

/// Where the documents of two revisions differ in what is no choice of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Documents {
    /// A session has `__v`, and `resetOnStart` in its settings. A reset starts the figures of the session
    /// again and keeps goals, totals and the latest. `reconnect` has a message beside its token.
    #[default]
    September2026,
    /// Without these. A reset leaves nothing.
    March2026,
}

/// What the list of activities makes of parameters that were not sent. The `OpenAPI` marks all of them as
/// required; most public clients send a few.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ActivitiesQuery {
    /// What was not sent bounds nothing.
    #[default]
    AsSent,
    /// Types that are not listed are left out, as one public client reports.
    ListedTypes,
    /// The same, and a request that lists a type without a published name is answered with 400.
    PublishedTypes,
    /// A request without one of them is answered with 400.
    Complete,
}

/// Whether a message has the same id on every connection. The documents do not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MessageIds {
    /// It has.
    #[default]
    Shared,
    /// Every connection gets an id of its own.
    PerConnection,
}

/// How the REST API answers a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ResetAnswer {
    /// With the new session.
    #[default]
    Session,
    /// With the text `ok`, as a public client has seen it.
    Ok,
}

/// What `channel.session.reset` carries: the documentation's example and its table differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SessionReset {
    /// The elements themselves.
    #[default]
    Elements,
    /// The whole session under `session`.
    Session,
}

/// The canonical room of a requested room.
#[derive(Debug, Clone, Default)]
pub enum Canonical {
    /// The room itself.
    #[default]
    AsAsked,
    /// Another one where it is in the table, itself where it is not.
    Table(HashMap<String, String>),
    /// What the function returns.
    Rule(fn(&str) -> String),
}

impl Canonical {
    /// The room under which messages come.
    pub(crate) fn of(&self, room: &str) -> String {
        match self {
            Self::AsAsked => room.to_owned(),
            Self::Table(table) => table.get(room).map_or(room, String::as_str).to_owned(),
            Self::Rule(rule) => rule(room),
        }
    }
}

/// A token that is accepted.
#[derive(Debug, Clone)]
pub struct Token {
    pub token: Secret,
    /// Its kind, where the request must name the right one.
    pub token_type: Option<String>,
    /// The rooms that it may see. The first is its own channel; none at all: every room.
    pub rooms: Vec<String>,
    /// Its scopes; `*` is the owner's.
    pub scopes: Vec<String>,
    /// When it can no longer be used.
    pub expires: Option<Instant>,
}

/// A client of the OAuth2 server, with the refresh token that it holds.
#[derive(Debug, Clone)]
pub struct OAuthClient {
    pub id: String,
    pub secret: Secret,
    /// The refresh token that is accepted next. Each refresh replaces it.
    pub refresh_token: Secret,
    /// The rooms that its access tokens may see.
    pub rooms: Vec<String>,
    /// The scopes of its access tokens.
    pub scopes: Vec<String>,
    /// How long an access token can be used. The documents say 7 days.
    pub lifetime: Duration,
    /// Whether a refresh token can be used again after it was replaced. The documents do not say.
    pub reusable: bool,
}

impl Token {
    /// A token of the owner of `room`: everything is allowed there.
    pub fn owner(token: &str, room: &str) -> Self {
        Self {
            token: Secret::new(token),
            token_type: None,
            rooms: vec![room.to_owned()],
            scopes: vec!["*".to_owned()],
            expires: None,
        }
    }

    /// Whether it is an access token of OAuth2, which the REST API takes with the scheme `OAuth` only.
    pub(crate) fn is_oauth(&self) -> bool {
        matches!(self.token_type.as_deref(), Some("oauth" | "oauth2"))
    }

    pub(crate) fn has(&self, needed: &str) -> bool {
        self.scopes.iter().any(|scope| scope == "*" || scope == needed)
    }

    pub(crate) fn may_access(&self, room: &str) -> bool {
        self.rooms.is_empty() || room.is_empty() || self.rooms.iter().any(|own| own == room)
    }

    pub(crate) fn may_subscribe(&self, topic: &str) -> bool {
        scope(topic).is_none_or(|needed| self.has(needed))
    }
}

/// The scope that a topic needs (revisions of 2026); a topic that is not listed needs none.
fn scope(topic: &str) -> Option<&'static str> {
    Some(match topic {
        "channel.activities" => "activities:read",
        "channel.announcements" => "channel:read",
        "channel.tips" => "tips:read",
        "channel.tips.moderation" => "tips:moderation",
        "channel.session.update" | "channel.session.reset" => "session:read",
        "channel.stream.status" => "stream-live:read",
        "channel.overlay.broadcast" => "overlays:broadcast",
        "channel.chat.message"
        | "channel.overlay.action"
        | "channel.overlay.update"
        | "channel.songrequest" => "overlays:read",
        "channel.kvstore.update" => "kvstore:read",
        "channel.loyalty.redemptions" | "channel.loyalty.items" => "store:read",
        "channel.chatbot.status"
        | "channel.chatbot.audiencequeue"
        | "channel.chatbot.commands"
        | "channel.chatbot.timers"
        | "channel.chatbot.filters" => "bot:read",
        modules if modules.starts_with("channel.chatbot.modules") => "bot:read",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_covers_its_topics_and_the_owner_all() {
        let owner = Token::owner("secret-canary", "a");
        let reader = Token { scopes: vec!["tips:read".into()], ..owner.clone() };
        assert!(
            owner.may_subscribe("channel.tips")
                && owner.may_subscribe("channel.chatbot.modules.pyramid")
        );
        assert!(reader.may_subscribe("channel.tips") && reader.may_subscribe("channel.follow"));
        assert!(!reader.may_subscribe("channel.tips.moderation"));
        assert!(owner.may_access("a") && !owner.may_access("b"));
        assert!(!format!("{owner:?}").contains("canary"));
    }
}
