//! One connection's decisions: frames and times in, effects out. No socket, no clock, no task.
//!
//! A session knows what is wanted on its connection and what of it stands: waiting, pending,
//! confirmed with its canonical room, or refused. It paces commands, matches responses, says to which
//! channel a message belongs, watches for silence, and decides when the connection has ended.
//!
//! The one thing to know: the caller gives every frame to `on_…`, calls [`Session::tick`] when
//! [`Session::due`] has come, and carries out what it finds in [`Effects`] after each call.

mod pace;
mod rooms;
mod unreadable;

use std::{collections::HashSet, num::NonZeroU64, sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Utf8Bytes;
use tracing::{debug, error, info, warn};

use self::{pace::Pace, rooms::Rooms, unreadable::Unreadable};
use super::wire::{self, Response, ServerFrame, Verb, WireError};
use crate::{
    base::{
        clock::{self, UnixMillis},
        event::{Event, Origin},
        text::{EXCERPT, excerpt},
    },
    config::{Astro, Secret, TokenType, pasted},
};

/// After `rate_limit_exceeded` the gateway wants quiet for this long (newer documents, FAQ).
const RATE_LIMIT_QUIET: Duration = Duration::from_secs(5);

/// A connection that lived this long has proved itself even if nothing was subscribed.
const PROOF: Duration = Duration::from_mins(1);

/// Silence that is too long when the relay sends no pings of its own: the gateway's period of 30 s
/// and half of it as a margin.
const SERVER_SILENCE: Duration = Duration::from_secs(45);

/// A `unsubscribe` is sent so often, where it is not answered. Then it is given up: what the gateway
/// still sends belongs to nobody.
const UNSUBSCRIBES: u32 = 3;

/// First wait before a failed `subscribe` is sent again; doubles up to [`Limits::retry_refused`].
const RETRY_FIRST: Duration = Duration::from_secs(2);

/// Different unknown frame types that are remembered (and logged) on one connection.
const UNKNOWN_TYPES: usize = 16;

/// What a user wants of one channel and topic.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Subscription {
    /// The channel's label.
    pub channel: Arc<str>,
    /// The topic.
    pub topic: Arc<str>,
    /// The room to ask for, if one is configured.
    pub room: Option<Arc<str>>,
    /// What kind of token the channel has.
    pub token_type: TokenType,
}

impl std::fmt::Display for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.channel, self.topic)
    }
}

/// A subscription with the credential to ask for it.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// What is wanted.
    pub subscription: Arc<Subscription>,
    /// The token as it is now, or why there is none.
    pub token: Result<Secret, String>,
}

/// What stands of a subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// To be asked for.
    Waiting,
    /// Asked for, not answered.
    Pending,
    /// Ours. The canonical room, where the gateway said it.
    Confirmed(Option<Arc<str>>),
    /// Not ours.
    Refused(Refusal),
}

/// Why a subscription is not ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The gateway's error code, or a word of the relay's own.
    pub code: Box<str>,
    /// The gateway's text, and what is odd about a token that it does not know.
    pub text: Box<str>,
    /// When it is asked for again; `None`: when its configuration changes.
    pub retry_at: Option<Instant>,
}

/// The limits of a session; see [`Astro`] for their reasons.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Grace for a `welcome`.
    pub welcome_grace: Duration,
    /// Deadline of a response.
    pub response_timeout: Duration,
    /// Silence before an own ping; zero: no own pings.
    pub ping_after: Duration,
    /// Silence after an own ping.
    pub ping_timeout: Duration,
    /// Time before a refused subscription is asked for again.
    pub retry_refused: Duration,
    /// A larger message is not relayed.
    pub max_message_size: usize,
}

impl Limits {
    /// How long an answer is waited for: longer each time, so that a gateway which is slower than
    /// the deadline is understood in the end.
    fn patience(&self, failures: u32) -> Duration {
        let doubled = self.response_timeout.saturating_mul(1 << failures.min(10));
        doubled.min(self.retry_refused.max(self.response_timeout))
    }
}

impl From<&Astro> for Limits {
    fn from(astro: &Astro) -> Self {
        Self {
            welcome_grace: astro.welcome_grace.0,
            response_timeout: astro.response_timeout.0,
            ping_after: astro.ping_after.0,
            ping_timeout: astro.ping_timeout.0,
            retry_refused: astro.retry_refused.0,
            max_message_size: astro.max_message_size.bytes(),
        }
    }
}

/// What the caller has to do.
#[derive(Debug, Default)]
pub struct Effects {
    /// Events to hand on, in order.
    pub events: Vec<Event>,
    /// Text frames to send, in order. They hold tokens.
    pub send: Vec<String>,
    /// A ping is to be sent.
    pub ping: bool,
    /// Something in what stands has changed.
    pub changed: bool,
    /// What was answered, and whether it stands.
    pub answered: Vec<(Arc<Subscription>, bool)>,
    /// These stood, and may miss something until they are answered again.
    pub interrupted: Vec<Arc<Subscription>>,
    /// What time it is by the gateway's clock.
    pub server_time: Option<UnixMillis>,
    /// The gateway will not take these on this connection: they need another.
    pub overflow: Vec<Arc<Subscription>>,
    /// The connection has ended, or is to be ended.
    pub ended: Option<Ended>,
}

/// How a connection ended, and so what comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// The server goes and gave a token for its successor.
    Moved(Secret),
    /// It is dead, or the server closed it.
    Lost(String),
}

/// Things that are counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Messages taken.
    pub messages: u64,
    /// Frames that were not readable, or made no sense.
    pub invalid: u64,
    /// Messages larger than the configuration allows.
    pub oversized: u64,
    /// Binary frames, which the gateway never sends.
    pub binary: u64,
    /// Frames of a type that no document names.
    pub unknown: u64,
    /// `rate_limit_exceeded` answers.
    pub rate_limited: u64,
    /// Refused subscriptions.
    pub refused: u64,
}

#[derive(Debug)]
struct Entry {
    wanted: Wanted,
    standing: Standing,
    asked_at: Option<Instant>,
    /// Of the last time that it was asked for, and of the time before: a late answer is an answer.
    nonces: [Option<Nonce>; 2],
    failures: u32,
    /// When the gateway confirmed it; a restored connection keeps the time.
    confirmed_at: Option<UnixMillis>,
}

impl Entry {
    fn new(wanted: Wanted) -> Self {
        let standing = Standing::Waiting;
        Self {
            wanted,
            standing,
            asked_at: None,
            nonces: [None, None],
            failures: 0,
            confirmed_at: None,
        }
    }

    /// The room that it has, or was asked for.
    fn room(&self) -> Option<&Arc<str>> {
        match &self.standing {
            Standing::Confirmed(Some(canonical)) => Some(canonical),
            Standing::Confirmed(None)
            | Standing::Waiting
            | Standing::Pending
            | Standing::Refused(_) => self.wanted.subscription.room.as_ref(),
        }
    }

    /// Whether the gateway may hold it for ours.
    fn may_stand(&self) -> bool {
        match self.standing {
            Standing::Confirmed(_) | Standing::Pending => true,
            Standing::Waiting => self.asked_at.is_some(),
            Standing::Refused(_) => false,
        }
    }
}

/// A subscription that is to be given up.
#[derive(Debug)]
struct Leaving {
    subscription: Arc<Subscription>,
    room: Option<Arc<str>>,
    token: Secret,
    /// Of the `unsubscribe`, once it is sent.
    nonce: Option<Nonce>,
    asked_at: Option<Instant>,
    attempts: u32,
}

impl Leaving {
    fn new(subscription: &Arc<Subscription>, room: Option<Arc<str>>, token: &Secret) -> Self {
        let (subscription, token) = (Arc::clone(subscription), token.clone());
        Self { subscription, room, token, nonce: None, asked_at: None, attempts: 0 }
    }
}

/// A command's number on its connection, from 1. The gateway sees the connection's number before it.
type Nonce = NonZeroU64;

/// One connection's decisions.
#[derive(Debug)]
pub struct Session {
    /// Distinguishes this connection's nonces from any other's.
    number: u64,
    limits: Limits,
    entries: Vec<Entry>,
    leaving: Vec<Leaving>,
    next_nonce: Nonce,
    /// `None`: what stands has changed since; made when the next message comes.
    rooms: Option<Rooms>,
    pace: Pace,
    opened_at: Instant,
    welcomed: bool,
    restored: bool,
    heard_at: Instant,
    ping_at: Option<Instant>,
    unknown_types: HashSet<String>,
    unreadable: Unreadable,
    counts: Counts,
    /// When time demands something next; `None`: look now. May be too early, never too late.
    due: Option<Instant>,
}

impl Session {
    /// A session on a connection that has just been opened.
    pub fn new(number: u64, wanted: Vec<Wanted>, limits: Limits, now: Instant) -> Self {
        Self {
            number,
            limits,
            entries: wanted.into_iter().map(Entry::new).collect(),
            leaving: Vec::new(),
            next_nonce: Nonce::MIN,
            rooms: None,
            pace: Pace::default(),
            opened_at: now,
            welcomed: false,
            restored: false,
            heard_at: now,
            ping_at: None,
            unknown_types: HashSet::new(),
            unreadable: Unreadable::default(),
            counts: Counts::default(),
            due: None,
        }
    }

    /// The session of the connection that a `reconnect` token restored: what stood still stands, and
    /// is not asked for again.
    pub fn restored(number: u64, before: &Self, now: Instant) -> Self {
        let wanted = before.entries.iter().map(|entry| entry.wanted.clone()).collect();
        let mut session = Self::new(number, wanted, before.limits.clone(), now);
        session.restored = true;
        for (entry, old) in session.entries.iter_mut().zip(&before.entries) {
            if matches!(old.standing, Standing::Confirmed(_) | Standing::Refused(_)) {
                entry.standing = old.standing.clone();
                entry.confirmed_at = old.confirmed_at;
            }
        }
        // What was being given up is restored as well, as far as the gateway had not heard of it.
        session.leaving = before
            .leaving
            .iter()
            .map(|left| Leaving::new(&left.subscription, left.room.clone(), &left.token))
            .collect();
        session.rooms = None;
        session
    }

    /// The connection is open only now: its times begin here.
    pub fn opened(&mut self, now: Instant) {
        self.opened_at = now;
        self.heard_at = now;
        self.due = None;
    }

    /// A text frame. `received` is the wall clock's time.
    pub fn on_text(
        &mut self,
        text: Utf8Bytes,
        received: UnixMillis,
        now: Instant,
        effects: &mut Effects,
    ) {
        self.heard(now);
        if text.len() > self.limits.max_message_size {
            self.counts.oversized += 1;
            self.unreadable.note("a message exceeds astro.max_message_size", &text, now);
            return;
        }
        let whole = text.clone();
        let Err(error) = self.take(text, received, now, effects) else { return };
        // Several in one frame, or one in an odd wrapping.
        let parts = wire::parts(&whole);
        if parts.is_empty() {
            self.skip(&error, &whole, now);
        }
        for part in parts {
            if let Err(error) = self.take(part.into(), received, now, effects) {
                self.skip(&error, part, now);
            }
        }
    }

    /// A frame of which nothing can be made.
    fn skip(&mut self, error: &WireError, text: &str, now: Instant) {
        self.counts.invalid += 1;
        self.unreadable.note(error.in_words(), text, now);
        self.due = None;
    }

    fn take(
        &mut self,
        text: Utf8Bytes,
        received: UnixMillis,
        now: Instant,
        effects: &mut Effects,
    ) -> Result<(), WireError> {
        match wire::read(&text)? {
            ServerFrame::Message(envelope) => {
                self.counts.messages += 1;
                let rooms = self.rooms.get_or_insert_with(|| place_rooms(&self.entries));
                let place = rooms.place(&envelope.topic, &envelope.room);
                let key = envelope.key(&text);
                let (id, ts) = (envelope.id.into(), envelope.ts.into());
                let data = envelope.data;
                effects.events.push(Event {
                    id,
                    distinct_key: Some(key),
                    place,
                    ts,
                    received,
                    origin: Origin::Live,
                    message: text.into(),
                    data,
                });
                return Ok(());
            }
            ServerFrame::Response(response) => {
                if let Some(said) = clock::parse_rfc3339(&response.ts) {
                    effects.server_time = Some(said);
                }
                self.on_response(&response, received, now, effects);
                // What was due before it may be due no more, and nothing is due earlier.
                if response.error.is_none() {
                    return Ok(());
                }
            }
            ServerFrame::Welcome => self.welcome(effects),
            ServerFrame::Reconnect { token } => effects.ended = Some(Ended::Moved(token)),
            ServerFrame::Unknown(kind) => self.on_unknown(&kind),
        }
        self.due = None;
        self.tick(now, effects);
        Ok(())
    }

    /// Any other frame: a ping, a pong. Life, and no more.
    pub fn on_other(&mut self, now: Instant) {
        self.heard(now);
    }

    /// A binary frame. The gateway's protocol has none.
    pub fn on_binary(&mut self, now: Instant) {
        self.heard(now);
        self.counts.binary += 1;
    }

    /// A frame that the transport could not make text of.
    pub fn on_invalid(&mut self, now: Instant) {
        self.heard(now);
        self.counts.invalid += 1;
    }

    /// Does what time demands: sends what may be sent, gives up what was not answered, pings.
    pub fn tick(&mut self, now: Instant, effects: &mut Effects) {
        if now < self.due(now) {
            return;
        }
        if !self.welcomed && now >= self.opened_at + self.limits.welcome_grace {
            info!("no welcome within the grace time; subscribing without one");
            self.welcome(effects);
        }
        if self.welcomed {
            self.give_up_unanswered(now, effects);
            self.repeat_unsubscribes(now);
            self.retry_refused(now, effects);
            while self.pace.ready_at(now) <= now && self.say_next(now, effects) {}
        }
        self.watch(now, effects);
        self.due = Some(self.next_due(now));
    }

    /// When [`Session::tick`] has to be called next.
    pub fn due(&self, now: Instant) -> Instant {
        self.due.unwrap_or(now)
    }

    fn next_due(&self, now: Instant) -> Instant {
        let mut due = if self.limits.ping_after.is_zero() {
            self.heard_at + SERVER_SILENCE
        } else {
            match self.ping_at {
                Some(at) => at + self.limits.ping_timeout,
                None => self.heard_at + self.limits.ping_after,
            }
        };
        if !self.welcomed {
            return due.min(self.opened_at + self.limits.welcome_grace);
        }
        for leaving in &self.leaving {
            due = due.min(match (leaving.nonce, leaving.asked_at) {
                (Some(_), Some(asked)) => asked + self.limits.patience(leaving.attempts),
                _ => self.pace.ready_at(now),
            });
        }
        for entry in &self.entries {
            match (&entry.standing, entry.asked_at) {
                (Standing::Waiting, _) => due = due.min(self.pace.ready_at(now)),
                (Standing::Pending, Some(asked)) => {
                    due = due.min(asked + self.limits.patience(entry.failures));
                }
                (Standing::Refused(Refusal { retry_at: Some(at), .. }), _) => due = due.min(*at),
                _ => {}
            }
        }
        due
    }

    /// A credential has changed: what was refused with the old one is asked for with the new one.
    pub fn renew(&mut self, channel: &str, token: &Secret, effects: &mut Effects) {
        for entry in &mut self.entries {
            if &*entry.wanted.subscription.channel != channel
                || entry.wanted.token.as_ref() == Ok(token)
            {
                continue;
            }
            entry.wanted.token = Ok(token.clone());
            if matches!(entry.standing, Standing::Refused(_)) {
                entry.standing = Standing::Waiting;
                entry.failures = 0;
                self.due = None;
                effects.changed = true;
            }
        }
    }

    /// Takes further subscriptions onto this connection.
    pub fn add(&mut self, wanted: Vec<Wanted>, effects: &mut Effects) {
        for wanted in wanted {
            let same = |leaving: &Leaving| {
                let (left, fresh) = (&leaving.subscription, &wanted.subscription);
                left.topic == fresh.topic && left.room == fresh.room
            };
            // An `unsubscribe` that is repeated later must not hit what is asked for now.
            self.leaving.retain(|leaving| !same(leaving));
            self.entries.push(Entry::new(wanted));
            self.due = None;
            effects.changed = true;
        }
    }

    /// Leaves what `keep` does not want any more; `unsubscribe` is sent for what may stand.
    pub fn retain(&mut self, keep: impl Fn(&Subscription) -> bool, effects: &mut Effects) {
        let (mut kept, dropped): (Vec<_>, Vec<_>) = std::mem::take(&mut self.entries)
            .into_iter()
            .partition(|entry| keep(&entry.wanted.subscription));
        effects.changed |= !dropped.is_empty();
        for entry in dropped {
            let room = entry.room().cloned();
            let same = |other: &Entry| {
                let (own, dropped) = (&other.wanted.subscription, &entry.wanted.subscription);
                own.topic == dropped.topic
                    && (own.room == dropped.room || other.room() == room.as_ref())
            };
            // Another label may want the same: then the gateway is to go on sending it.
            let (true, Ok(token), false) =
                (entry.may_stand(), &entry.wanted.token, kept.iter().any(same))
            else {
                continue;
            };
            let subscription = Arc::clone(&entry.wanted.subscription);
            if room.is_none() {
                // "Without a room: all rooms of the topic are left" (newer documents): what is to
                // stay has to be asked for again.
                for other in kept.iter_mut().filter(|other| {
                    other.wanted.subscription.topic == subscription.topic && other.may_stand()
                }) {
                    if matches!(other.standing, Standing::Confirmed(_)) {
                        effects.interrupted.push(Arc::clone(&other.wanted.subscription));
                    }
                    other.standing = Standing::Waiting;
                }
            }
            self.leaving.push(Leaving::new(&subscription, room, token));
        }
        self.entries = kept;
        self.rooms = None;
        self.due = None;
    }

    /// Whether nothing is wanted on this connection.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What is wanted, and what of it stands.
    pub fn standings(&self) -> impl Iterator<Item = (&Arc<Subscription>, &Standing)> {
        self.entries.iter().map(|entry| (&entry.wanted.subscription, &entry.standing))
    }

    /// What has been answered, and whether it stands.
    pub fn answers(&self) -> impl Iterator<Item = (&Arc<Subscription>, bool)> {
        self.standings().filter_map(|(subscription, standing)| match standing {
            Standing::Confirmed(_) => Some((subscription, true)),
            Standing::Refused(_) => Some((subscription, false)),
            Standing::Waiting | Standing::Pending => None,
        })
    }

    /// When each of [`Session::standings`] was confirmed, in the same order. It changes exactly where
    /// something may have been missed before: not when a connection is restored.
    pub fn confirmed_at(&self) -> impl Iterator<Item = Option<UnixMillis>> {
        self.entries.iter().map(|entry| entry.confirmed_at)
    }

    /// Something was missed although the server has restored what stood.
    pub fn missed(&mut self, received: UnixMillis) {
        for entry in &mut self.entries {
            entry.confirmed_at = entry.confirmed_at.map(|_| received);
        }
    }

    /// Whether the connection has proved that it is worth something: it said welcome (or its grace
    /// passed) and confirmed a subscription, or it has lived for a minute.
    pub fn proven(&self, now: Instant) -> bool {
        let confirmed =
            || self.entries.iter().any(|entry| matches!(entry.standing, Standing::Confirmed(_)));
        (self.welcomed && confirmed()) || now >= self.opened_at + PROOF
    }

    /// Whether the server has said welcome, or its grace time is over.
    pub fn welcomed(&self) -> bool {
        self.welcomed
    }

    /// Whether every subscription has been answered, one way or the other.
    pub fn settled(&self) -> bool {
        self.entries
            .iter()
            .all(|entry| matches!(entry.standing, Standing::Confirmed(_) | Standing::Refused(_)))
    }

    /// How long the gateway may be silent before it is taken to be gone.
    pub fn patience_with_silence(&self) -> Duration {
        if self.limits.ping_after.is_zero() {
            SERVER_SILENCE
        } else {
            self.limits.ping_after + self.limits.ping_timeout
        }
    }

    /// Why some of what comes is not relayed, where that happens again and again.
    pub fn unreadable(&self, now: Instant) -> Option<String> {
        self.unreadable.repeated(now)
    }

    /// What was counted since the last call.
    pub fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }

    fn heard(&mut self, now: Instant) {
        self.heard_at = now;
        self.ping_at = None;
    }

    fn welcome(&mut self, effects: &mut Effects) {
        if !self.welcomed {
            self.welcomed = true;
            effects.changed = true;
            debug!(restored = self.restored, "welcome");
        }
    }

    fn on_unknown(&mut self, kind: &str) {
        self.counts.unknown += 1;
        if self.unknown_types.len() < UNKNOWN_TYPES && self.unknown_types.insert(kind.to_owned()) {
            warn!(kind, "frames of an unknown type are skipped");
        }
    }

    /// Silence: first a ping of our own, then the end.
    fn watch(&mut self, now: Instant, effects: &mut Effects) {
        let silent = |limit: Duration| now >= self.heard_at + limit;
        if self.limits.ping_after.is_zero() {
            if silent(SERVER_SILENCE) {
                effects.ended = Some(Ended::Lost("silent".into()));
            }
            return;
        }
        match self.ping_at {
            Some(at) if now >= at + self.limits.ping_timeout => {
                effects.ended = Some(Ended::Lost("silent: a ping was not answered".into()));
            }
            None if silent(self.limits.ping_after) => {
                self.ping_at = Some(now);
                effects.ping = true;
            }
            Some(_) | None => {}
        }
    }

    /// Sends one command, if there is one to send: first what is given up, then what is wanted,
    /// beginning with what waits longest.
    fn say_next(&mut self, now: Instant, effects: &mut Effects) -> bool {
        let nonce = self.next_nonce;
        let told = format!("{}-{nonce}", self.number);
        if let Some(leaving) = self.leaving.iter_mut().find(|leaving| leaving.nonce.is_none()) {
            let subscription = &leaving.subscription;
            effects.send.push(wire::command(
                Verb::Unsubscribe,
                &told,
                &subscription.topic,
                leaving.room.as_deref(),
                &leaving.token,
                subscription.token_type,
            ));
            leaving.nonce = Some(nonce);
            leaving.asked_at = Some(now);
            leaving.attempts += 1;
        } else {
            let waiting = |entry: &&mut Entry| entry.standing == Standing::Waiting;
            let next = self.entries.iter_mut().filter(waiting).min_by_key(|entry| entry.asked_at);
            let Some(entry) = next else { return false };
            effects.changed = true;
            let token = match &entry.wanted.token {
                Ok(token) => token,
                Err(why) => {
                    let retry_at = Some(now + self.limits.retry_refused);
                    let text = why.as_str().into();
                    let refusal = Refusal { code: "no_token".into(), text, retry_at };
                    report(&entry.wanted.subscription, &refusal);
                    entry.standing = Standing::Refused(refusal);
                    effects.answered.push((Arc::clone(&entry.wanted.subscription), false));
                    return true;
                }
            };
            let subscription = &entry.wanted.subscription;
            effects.send.push(wire::command(
                Verb::Subscribe,
                &told,
                &subscription.topic,
                subscription.room.as_deref(),
                token,
                subscription.token_type,
            ));
            entry.nonces = [Some(nonce), entry.nonces[0]];
            entry.standing = Standing::Pending;
            entry.asked_at = Some(now);
        }
        self.next_nonce = self.next_nonce.saturating_add(1);
        self.pace.sent(now);
        true
    }

    fn on_response(
        &mut self,
        response: &Response<'_>,
        received: UnixMillis,
        now: Instant,
        effects: &mut Effects,
    ) {
        let code = response.error.as_deref();
        if code == Some("rate_limit_exceeded") {
            self.on_rate_limit(now, effects);
            return;
        }
        let nonce = self.nonce(&response.nonce);
        let named = |own: &Option<Nonce>| own.is_some() && *own == nonce;
        self.leaving.retain(|leaving| !named(&leaving.nonce));
        // Otherwise it answers an `unsubscribe`, or something that is no longer wanted.
        let Some(index) = self.entries.iter().position(|entry| entry.nonces.iter().any(named))
        else {
            if let Some(code) = code {
                debug!(code, text = response.text, "an error that belongs to no subscription");
            }
            return;
        };
        let others_stand =
            self.entries.iter().any(|entry| matches!(entry.standing, Standing::Confirmed(_)));
        let Some(entry) = self.entries.get_mut(index) else { return };
        entry.nonces = [None, None];
        effects.changed = true;
        let Some(code) = code else {
            entry.standing = Standing::Confirmed(response.room.as_deref().map(Into::into));
            entry.failures = 0;
            entry.confirmed_at = Some(received);
            effects.answered.push((Arc::clone(&entry.wanted.subscription), true));
            self.rooms = None;
            return;
        };
        self.counts.refused += 1;
        entry.failures = entry.failures.saturating_add(1);
        let again = match code {
            "err_internal_error" | "err_deadline_exceeded" => {
                let doubled = RETRY_FIRST.saturating_mul(1 << (entry.failures - 1).min(10));
                Some(doubled.min(self.limits.retry_refused))
            }
            "err_unauthorized" => Some(self.limits.retry_refused),
            // The documents speak of a limit on subscriptions a connection under this code. Where
            // nothing else stands on the connection, another would not help.
            "err_bad_request" if speaks_of_limit(&response.text) && others_stand => {
                info!(
                    subscriptions = self.entries.len(),
                    text = response.text,
                    "the gateway takes no more subscriptions on this connection"
                );
                self.overflow(index, effects);
                return;
            }
            "err_bad_request" if speaks_of_limit(&response.text) => Some(self.limits.retry_refused),
            _ => None,
        };
        let text = excerpt(&response.text, EXCERPT);
        let refusal = Refusal {
            code: excerpt(code, EXCERPT).into(),
            text: match doubt(code, &entry.wanted) {
                Some(doubt) if text.is_empty() => format!("the token {doubt}").into(),
                Some(doubt) => format!("{text} (the token {doubt})").into(),
                None => text.into(),
            },
            retry_at: again.map(|wait| now + wait),
        };
        report(&entry.wanted.subscription, &refusal);
        entry.standing = Standing::Refused(refusal);
        effects.answered.push((Arc::clone(&entry.wanted.subscription), false));
    }

    /// The command's number in a nonce; `None`: it is of another connection, or nobody's.
    fn nonce(&self, text: &str) -> Option<Nonce> {
        let (connection, nonce) = text.split_once('-')?;
        (connection.parse() == Ok(self.number)).then(|| nonce.parse().ok()).flatten()
    }

    /// The gateway counts commands and has had too many. It does not say which it dropped: all that
    /// is unanswered is asked for again, later and slower.
    fn on_rate_limit(&mut self, now: Instant, effects: &mut Effects) {
        self.counts.rate_limited += 1;
        warn!("the gateway's command rate was exceeded; waiting");
        self.pace.pause(now + RATE_LIMIT_QUIET);
        for entry in &mut self.entries {
            if entry.standing == Standing::Pending {
                entry.standing = Standing::Waiting;
                effects.changed = true;
            }
        }
        for leaving in &mut self.leaving {
            leaving.nonce = None;
        }
    }

    /// Moves one subscription, and all that wait behind it, to another connection.
    fn overflow(&mut self, index: usize, effects: &mut Effects) {
        for (place, entry) in std::mem::take(&mut self.entries).into_iter().enumerate() {
            if place == index || entry.standing == Standing::Waiting {
                effects.overflow.push(entry.wanted.subscription);
            } else {
                self.entries.push(entry);
            }
        }
        self.rooms = None;
    }

    fn give_up_unanswered(&mut self, now: Instant, effects: &mut Effects) {
        for entry in &mut self.entries {
            let patience = self.limits.patience(entry.failures);
            let late = |asked: Instant| now >= asked + patience;
            if entry.standing == Standing::Pending && entry.asked_at.is_some_and(late) {
                entry.failures = entry.failures.saturating_add(1);
                entry.standing = Standing::Waiting;
                effects.changed = true;
                let subscription = &entry.wanted.subscription;
                warn!(
                    channel = %subscription.channel,
                    topic = %subscription.topic,
                    "a subscription was not answered; asking again"
                );
            }
        }
    }

    /// What is given up and was not answered is given up again, a few times.
    fn repeat_unsubscribes(&mut self, now: Instant) {
        let limits = &self.limits;
        self.leaving.retain_mut(|leaving| {
            let patience = limits.patience(leaving.attempts);
            if leaving.nonce.is_none() || leaving.asked_at.is_none_or(|at| now < at + patience) {
                return true;
            }
            leaving.nonce = None;
            if leaving.attempts >= UNSUBSCRIBES {
                let Subscription { channel, topic, .. } = &*leaving.subscription;
                warn!(%channel, %topic, "an unsubscribe was never answered; it is given up");
            }
            leaving.attempts < UNSUBSCRIBES
        });
    }

    fn retry_refused(&mut self, now: Instant, effects: &mut Effects) {
        for entry in &mut self.entries {
            if let Standing::Refused(Refusal { retry_at: Some(at), .. }) = &entry.standing
                && now >= *at
            {
                entry.standing = Standing::Waiting;
                effects.changed = true;
            }
        }
    }
}

/// To which channel messages belong, from what is confirmed.
fn place_rooms(entries: &[Entry]) -> Rooms {
    let confirmed = entries.iter().filter_map(|entry| {
        let subscription = &entry.wanted.subscription;
        match &entry.standing {
            Standing::Confirmed(canonical) => Some((subscription, canonical.clone())),
            Standing::Waiting | Standing::Pending | Standing::Refused(_) => None,
        }
    });
    let mut confirmed: Vec<_> = confirmed.collect();
    // Where two labels have the same room, the first label has its messages: not whichever was
    // confirmed first.
    confirmed.sort_by(|(a, _), (b, _)| a.channel.cmp(&b.channel));
    Rooms::new(confirmed.into_iter())
}

/// Whether the gateway says that it would take this, were there not too much already.
fn speaks_of_limit(text: &str) -> bool {
    text.to_ascii_lowercase().contains("limit")
}

/// What may be wrong with a token that the gateway does not know.
fn doubt(code: &str, wanted: &Wanted) -> Option<&'static str> {
    let token = wanted.token.as_ref().ok().filter(|_| code == "err_unauthorized")?;
    pasted::doubt(token.expose(), wanted.subscription.token_type)
}

/// Says loudly that a subscription is not ours: a human is needed where it is not tried again soon.
fn report(subscription: &Subscription, refusal: &Refusal) {
    let Subscription { channel, topic, .. } = subscription;
    let Refusal { code, text, .. } = refusal;
    if matches!(&**code, "err_internal_error" | "err_deadline_exceeded") {
        warn!(%channel, %topic, %code, %text, "subscription failed; it is tried again");
    } else {
        error!(%channel, %topic, %code, %text, "subscription refused; the others go on");
    }
}

#[cfg(test)]
mod tests;
