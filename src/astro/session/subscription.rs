//! What is wanted on a connection, and what has become of each of it.

use std::{fmt, num::NonZeroU64, sync::Arc, time::Duration};

use tokio::time::Instant;
use tracing::{error, warn};

use crate::{
    astro::rest::is_channel_id,
    base::{
        clock::UnixMillis,
        text::{EXCERPT, excerpt},
    },
    config::{Secret, TokenType, pasted},
};

/// A failed subscription that is tried again after this time or less is not given up meanwhile.
pub(super) const RETRIED_SOON: Duration = Duration::from_secs(10);

/// A subscription that was asked for so often, and never answered, is not waited for any more: after 105 s,
/// as `astro.response_timeout` is by default.
const UNANSWERED: u32 = 3;

/// What a user wants of one channel and topic.
#[derive(Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subscription {
    /// The channel's label.
    pub channel: Arc<str>,
    pub topic: Arc<str>,
    /// The room to ask for, if one is configured.
    pub room: Option<Arc<str>>,
    pub token_type: TokenType,
    /// The channel that the token belongs to, where no room is configured and the token says it. It is not sent:
    /// with another channel's token it is another subscription.
    pub token_room: Option<Arc<str>>,
}

impl fmt::Display for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.channel, self.topic)
    }
}

/// A subscription with the credential to ask for it.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub subscription: Arc<Subscription>,
    /// The token as it is now, or why there is none.
    pub token: Result<Secret, String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubscriptionState {
    /// To be asked for.
    Waiting,
    /// Asked for, not answered.
    Pending,
    /// With the canonical room, where the gateway named it.
    Confirmed(Option<Arc<str>>),
    Refused(Refusal),
}

impl SubscriptionState {
    /// The words of all states, for the metrics.
    pub const WORDS: [&'static str; 4] = ["waiting", "pending", "confirmed", "refused"];

    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Pending => "pending",
            Self::Confirmed(_) => "confirmed",
            Self::Refused(_) => "refused",
        }
    }

    pub fn is_confirmed(&self) -> bool {
        matches!(self, Self::Confirmed(_))
    }

    /// Whether the gateway has answered.
    pub fn is_answered(&self) -> bool {
        matches!(self, Self::Confirmed(_) | Self::Refused(_))
    }

    /// Whether it is about to be answered, one way or the other: a failure that is tried again in a moment is no
    /// answer. One that goes on failing is asked for later each time, and waited for no longer.
    pub fn is_waited_for(&self) -> bool {
        match self {
            Self::Waiting | Self::Pending => true,
            Self::Confirmed(_) => false,
            Self::Refused(refusal) => refusal.is_retried_soon,
        }
    }
}

/// Whether a code says that the gateway failed, and did not mean this subscription.
pub(super) fn is_failure(code: &str) -> bool {
    matches!(code, "err_internal_error" | "err_deadline_exceeded")
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The gateway's error code, or a word of the relay's own.
    pub code: Box<str>,
    /// The gateway's text, and what is odd about a token that it does not know.
    pub text: Box<str>,
    /// When it is asked for again; `None`: when its configuration changes.
    pub retry_at: Option<Instant>,
    /// The gateway failed, and it is asked for again in a moment.
    pub is_retried_soon: bool,
}

impl Refusal {
    /// `wait`: until it is asked for again.
    pub fn new(code: &str, text: &str, wait: Option<Duration>, now: Instant) -> Self {
        let is_soon = wait.is_some_and(|wait| wait <= RETRIED_SOON);
        Self {
            code: code.into(),
            text: text.into(),
            retry_at: wait.map(|wait| now + wait),
            is_retried_soon: is_failure(code) && is_soon,
        }
    }

    /// What the gateway says, with a hint on a token that it does not know.
    pub(super) fn by_gateway(
        code: &str,
        text: &str,
        wanted: &Wanted,
        wait: Option<Duration>,
        now: Instant,
    ) -> Self {
        let text = excerpt(text, EXCERPT);
        let token = wanted.token.as_ref().ok().filter(|_| code == "err_unauthorized");
        let hint =
            token.and_then(|token| pasted::doubt(token.expose(), wanted.subscription.token_type));
        let text = match hint {
            Some(hint) if text.is_empty() => format!("the token {hint}"),
            Some(hint) => format!("{text} (the token {hint})"),
            None => text,
        };
        Self::new(&excerpt(code, EXCERPT), &text, wait, now)
    }

    /// An ERROR, for a human is needed, unless it is tried again soon.
    pub(super) fn log(&self, subscription: &Subscription) {
        let Subscription { channel, topic, .. } = subscription;
        let Self { code, text, .. } = self;
        if is_failure(code) {
            warn!(%channel, %topic, %code, %text, "subscription failed; it is tried again");
        } else {
            error!(%channel, %topic, %code, %text, "subscription refused; the others go on");
        }
    }
}

/// A subscription has another state.
#[derive(Debug, Clone)]
pub struct Update {
    pub subscription: Arc<Subscription>,
    pub state: SubscriptionState,
    /// When the gateway confirmed it. It changes exactly where something may have been missed before:
    /// not when a connection is restored.
    pub confirmed_at: Option<UnixMillis>,
    /// It was asked for several times and never answered: it is asked for again, and not waited for.
    pub is_unanswered: bool,
}

/// A command's number on its connection, from 1. The gateway sees the connection's number before it.
pub(super) type Nonce = NonZeroU64;

/// A subscription on this connection.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) wanted: Wanted,
    pub(super) state: SubscriptionState,
    pub(super) asked_at: Option<Instant>,
    /// Of the last time that it was asked for, and of the time before: a late answer is an answer.
    pub(super) nonces: [Option<Nonce>; 2],
    pub(super) failures: u32,
    /// How often it was asked for since the last answer, and in vain.
    pub(super) unanswered: u32,
    /// Its token has changed since it was asked for.
    pub(super) is_renewed: bool,
    pub(super) confirmed_at: Option<UnixMillis>,
    /// The canonical room that it had before, on this connection or another one, with the same token or under
    /// another label.
    pub(super) named_before: Option<Arc<str>>,
    /// It was put in the place of one that the gateway may have still.
    pub(super) is_continued: bool,
}

impl Entry {
    pub(super) fn new(wanted: Wanted) -> Self {
        Self {
            wanted,
            state: SubscriptionState::Waiting,
            asked_at: None,
            nonces: [None, None],
            failures: 0,
            unanswered: 0,
            is_renewed: false,
            confirmed_at: None,
            named_before: None,
            is_continued: false,
        }
    }

    pub(super) fn set(&mut self, state: SubscriptionState, updates: &mut Vec<Update>) {
        if let SubscriptionState::Confirmed(room) = std::mem::replace(&mut self.state, state) {
            self.named_before = room.filter(|_| !self.is_renewed);
        }
        updates.push(self.update());
    }

    pub(super) fn update(&self) -> Update {
        Update {
            subscription: Arc::clone(&self.wanted.subscription),
            state: self.state.clone(),
            confirmed_at: self.confirmed_at,
            is_unanswered: self.is_unanswered(),
        }
    }

    fn is_unanswered(&self) -> bool {
        self.unanswered >= UNANSWERED
    }

    /// Whether it is about to be answered, one way or the other.
    pub(super) fn is_waited_for(&self) -> bool {
        self.state.is_waited_for() && !self.is_unanswered()
    }

    /// It is asked for in the place of `left`: until the answer, what comes has the room of that.
    pub(super) fn continues(&mut self, left: &Leaving) {
        self.is_continued = true;
        if self.named_before.is_none() && left.room != left.subscription.room {
            self.named_before.clone_from(&left.room);
        }
    }

    /// The room that it has or had, or was asked for.
    pub(super) fn room(&self) -> Option<&Arc<str>> {
        self.named_room().or(self.wanted.subscription.room.as_ref())
    }

    /// The canonical room; where it is not confirmed, the one that it had before.
    pub(super) fn named_room(&self) -> Option<&Arc<str>> {
        match &self.state {
            SubscriptionState::Confirmed(canonical) => canonical.as_ref(),
            _ => self.named_before.as_ref(),
        }
    }

    /// Whether it is known under which room its messages come. Until it is confirmed, what is asked for by a
    /// name may come under another.
    pub(super) fn is_room_known(&self) -> bool {
        let asked = self.wanted.subscription.room.as_deref();
        self.named_room().is_some()
            || asked.is_some_and(|room| self.state.is_confirmed() || is_channel_id(room))
    }

    /// Whether the gateway may have it subscribed.
    pub(super) fn may_be_subscribed(&self) -> bool {
        match self.state {
            SubscriptionState::Confirmed(_) | SubscriptionState::Pending => true,
            SubscriptionState::Waiting => self.asked_at.is_some() || self.is_continued,
            SubscriptionState::Refused(_) => false,
        }
    }
}

/// A subscription that is to be given up.
#[derive(Debug)]
pub(super) struct Leaving {
    pub(super) subscription: Arc<Subscription>,
    pub(super) room: Option<Arc<str>>,
    pub(super) token: Secret,
    /// Of the `unsubscribe`, once it is sent.
    pub(super) nonce: Option<Nonce>,
    pub(super) asked_at: Option<Instant>,
    pub(super) attempts: u32,
}

impl Leaving {
    pub(super) fn new(
        subscription: &Arc<Subscription>,
        room: Option<Arc<str>>,
        token: &Secret,
    ) -> Self {
        let (subscription, token) = (Arc::clone(subscription), token.clone());
        Self { subscription, room, token, nonce: None, asked_at: None, attempts: 0 }
    }

    /// Whether the gateway has both for the same subscription: without a room, that of the token's channel. The
    /// token may have become another channel's since the left one was asked for.
    pub(super) fn is_same(&self, entry: &Entry) -> bool {
        let (own, other) = (&self.subscription, &entry.wanted.subscription);
        let has_no_room = own.room.is_none() && other.room.is_none();
        let mut rooms = own.token_room.iter().zip(&other.token_room);
        let has_channel_of = rooms.all(|(own, other)| own == other) && self.has_token_of(entry);
        self.has_topic_of(entry) && (self.has_room_of(entry) || (has_no_room && has_channel_of))
    }

    /// Whether its `unsubscribe` may end this one too. "Without a room: all rooms of the topic are left" (newer
    /// documents).
    pub(super) fn may_end(&self, entry: &Entry) -> bool {
        let is_room_unknown = entry.room().is_none();
        self.has_topic_of(entry)
            && (self.room.is_none()
                || self.has_room_of(entry)
                || (is_room_unknown && self.has_token_of(entry)))
    }

    fn has_topic_of(&self, entry: &Entry) -> bool {
        self.subscription.topic == entry.wanted.subscription.topic
    }

    /// By its canonical name, or as it is asked for.
    fn has_room_of(&self, entry: &Entry) -> bool {
        let own = [self.room.as_ref(), self.subscription.room.as_ref()];
        let others = [entry.room(), entry.wanted.subscription.room.as_ref()];
        own.into_iter().flatten().any(|room| others.contains(&Some(room)))
    }

    fn has_token_of(&self, entry: &Entry) -> bool {
        entry.wanted.token.as_ref() == Ok(&self.token)
    }
}
