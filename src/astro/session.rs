//! One connection's decisions: frames and times in, effects out. No socket, no clock, no task.
//!
//! A session knows what is wanted on its connection and the state of each of it: waiting, pending,
//! confirmed with its canonical room, or refused. It paces commands, matches responses, says to which
//! channel a message belongs, watches for silence, and decides when the connection has ended.
//!
//! The caller gives every frame to `on_…`, calls [`Session::tick`] when
//! [`Session::due`] has come, and carries out what it finds in [`Effects`] after each call.

mod commands;
mod pace;
mod rooms;
mod subscription;
mod unplaced;
mod unreadable;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Utf8Bytes;
use tracing::{debug, info, warn};

use self::{
    pace::Pace,
    rooms::Rooms,
    subscription::{Entry, Leaving, Nonce},
};
pub use self::{
    rooms::NamedRooms,
    subscription::{Refusal, Subscription, SubscriptionState, Update, Wanted},
    unplaced::Unplaced,
    unreadable::Unreadable,
};
use super::wire::{self, ServerFrame};
use crate::{
    base::{
        clock::{self, UnixMillis},
        event::{Event, Origin},
    },
    config::{Astro, Secret},
};

/// A connection that lived this long has proved itself even if nothing was subscribed.
const PROOF: Duration = Duration::from_mins(1);

/// Silence that is too long when the relay sends no pings of its own: the gateway's period of 30 s
/// and half of it as a margin.
const SERVER_SILENCE: Duration = Duration::from_secs(45);

/// Different unknown frame types that are remembered (and logged) on one connection.
const UNKNOWN_TYPES: usize = 16;

/// What the caller has to do.
#[derive(Debug, Default)]
pub struct Effects {
    /// Events to hand on, in order.
    pub events: Vec<Event>,
    /// Text frames to send, in order. They hold tokens.
    pub send: Vec<String>,
    /// A ping is to be sent.
    pub ping: bool,
    /// Subscriptions that have another state.
    pub updates: Vec<Update>,
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
    /// The server goes and gave a token for the next connection.
    Handover(Secret),
    /// It is dead, or the server closed it.
    Lost(String),
}

/// Things that are counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FrameCounts {
    /// Messages taken.
    pub messages: u64,
    /// Of these, those that belong to no channel because several come into question.
    pub unplaced: u64,
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

/// How the connection itself is.
#[derive(Debug)]
struct Liveness {
    opened_at: Instant,
    welcomed: bool,
    /// A reconnect token has restored what was confirmed.
    restored: bool,
    last_frame_at: Instant,
    /// A ping that is not answered yet.
    ping_at: Option<Instant>,
}

/// One connection's decisions.
#[derive(Debug)]
pub struct Session {
    /// Distinguishes this connection's nonces from any other's.
    number: u64,
    config: Arc<Astro>,
    entries: Vec<Entry>,
    leaving: Vec<Leaving>,
    next_nonce: Nonce,
    /// `None`: the subscriptions that may bring messages have changed since; made when the next message comes.
    rooms: Option<Rooms>,
    unplaced: Unplaced,
    pace: Pace,
    link: Liveness,
    unknown_types: HashSet<String>,
    unreadable: Unreadable,
    counts: FrameCounts,
    /// When time demands something next; `None`: look now. May be too early, never too late.
    due: Option<Instant>,
}

impl Session {
    /// A session on a connection that has just been opened.
    pub fn new(number: u64, wanted: Vec<Wanted>, config: Arc<Astro>, now: Instant) -> Self {
        Self {
            number,
            config,
            entries: wanted.into_iter().map(Entry::new).collect(),
            leaving: Vec::new(),
            next_nonce: Nonce::MIN,
            rooms: None,
            unplaced: Unplaced::default(),
            pace: Pace::default(),
            link: Liveness {
                opened_at: now,
                welcomed: false,
                restored: false,
                last_frame_at: now,
                ping_at: None,
            },
            unknown_types: HashSet::new(),
            unreadable: Unreadable::default(),
            counts: FrameCounts::default(),
            due: None,
        }
    }

    /// The session of the connection that a `reconnect` token restored: what was confirmed still is, and
    /// is not asked for again.
    pub fn restored(number: u64, before: &Self, now: Instant) -> Self {
        let wanted = before.entries.iter().map(|entry| entry.wanted.clone()).collect();
        let mut session = Self::new(number, wanted, Arc::clone(&before.config), now);
        session.link.restored = true;
        for (entry, old) in session.entries.iter_mut().zip(&before.entries) {
            if old.state.is_answered() {
                entry.state = old.state.clone();
                entry.confirmed_at = old.confirmed_at;
            } else {
                // It may be restored, and bring messages before it is asked for again.
                entry.asked_at = old.asked_at;
            }
            entry.named_before.clone_from(&old.named_before);
            (entry.is_renewed, entry.is_continued) = (old.is_renewed, old.is_continued);
        }
        // What was being given up is restored as well, as far as the gateway had not got the command.
        session.leaving = before
            .leaving
            .iter()
            .map(|left| Leaving::new(&left.subscription, left.room.clone(), &left.token))
            .collect();
        session
    }

    /// The connection is open only now: its times begin here.
    pub fn opened(&mut self, now: Instant) {
        self.link.opened_at = now;
        self.link.last_frame_at = now;
    }

    /// A text frame. `received` is the wall clock's time.
    pub fn on_text(
        &mut self,
        text: Utf8Bytes,
        received: UnixMillis,
        now: Instant,
        effects: &mut Effects,
    ) {
        self.received(now);
        if text.len() > self.config.max_message_size.bytes() {
            self.counts.oversized += 1;
            self.unreadable.note("a message exceeds astro.max_message_size", &text, now);
            return;
        }
        let whole = text.clone();
        let Err(why) = self.take(text, received, now, effects) else { return };
        // Several in one frame, or one in an odd wrapping.
        let parts = wire::parts(&whole);
        if parts.is_empty() {
            self.skip(why, &whole, now);
        }
        for part in parts {
            if let Err(why) = self.take(part.into(), received, now, effects) {
                self.skip(why, part, now);
            }
        }
    }

    /// A frame of which nothing can be made.
    fn skip(&mut self, why: &'static str, text: &str, now: Instant) {
        self.counts.invalid += 1;
        self.unreadable.note(why, text, now);
    }

    fn take(
        &mut self,
        text: Utf8Bytes,
        received: UnixMillis,
        now: Instant,
        effects: &mut Effects,
    ) -> Result<(), &'static str> {
        match wire::read(&text)? {
            ServerFrame::Message(envelope) => {
                self.counts.messages += 1;
                let (topic, room) = (&*envelope.topic, &*envelope.room);
                let data_channel = if room.is_empty() { envelope.channel(&text) } else { None };
                let rooms =
                    self.rooms.get_or_insert_with(|| Rooms::of(&self.entries, &self.leaving));
                let place = rooms.source(topic, room, data_channel.as_deref());
                if place.channel.is_empty()
                    && rooms.is_of_one_of_several(topic, room)
                    && self.is_settled()
                {
                    self.counts.unplaced += 1;
                    self.unplaced.note(&place.topic, now);
                }
                let key = envelope.key(&text);
                let may_have_personal_fields = envelope.may_have_personal_fields();
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
                    may_have_personal_fields,
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
            ServerFrame::Welcome => self.welcome(),
            ServerFrame::Reconnect { token } => effects.ended = Some(Ended::Handover(token)),
            ServerFrame::Unknown(kind) => self.on_unknown(&kind),
        }
        self.due = None;
        self.tick(now, effects);
        Ok(())
    }

    /// Any other frame: a ping, a pong. Life, and no more.
    pub fn on_other(&mut self, now: Instant) {
        self.received(now);
    }

    /// A binary frame. The gateway's protocol has none.
    pub fn on_binary(&mut self, now: Instant) {
        self.received(now);
        self.counts.binary += 1;
    }

    /// A frame that the transport could not make text of.
    pub fn on_invalid(&mut self, now: Instant) {
        self.received(now);
        self.counts.invalid += 1;
    }

    /// Does what time demands: sends what may be sent, gives up what was not answered, pings.
    pub fn tick(&mut self, now: Instant, effects: &mut Effects) {
        if now < self.due(now) {
            return;
        }
        if !self.link.welcomed && now >= self.link.opened_at + self.config.welcome_grace.0 {
            if self.link.restored {
                // Servers that give a token welcome whoever shows it: nothing was restored.
                let why = "no welcome within the grace time".into();
                effects.ended.get_or_insert(Ended::Lost(why));
                return;
            }
            info!("no welcome within the grace time; subscribing without one");
            self.welcome();
        }
        if self.link.welcomed {
            self.give_up_unanswered(now, effects);
            self.repeat_unsubscribes(now);
            self.retry_refused(now, effects);
            while self.pace.ready_at(now) <= now && self.send_next(now, effects) {}
        }
        self.watch(now, effects);
        self.due = Some(self.next_due(now));
    }

    /// When [`Session::tick`] has to be called next.
    pub fn due(&self, now: Instant) -> Instant {
        self.due.unwrap_or(now)
    }

    fn next_due(&self, now: Instant) -> Instant {
        let mut due = if self.config.ping_after.0.is_zero() {
            self.link.last_frame_at + SERVER_SILENCE
        } else {
            match self.link.ping_at {
                Some(at) => at + self.config.ping_timeout.0,
                None => self.link.last_frame_at + self.config.ping_after.0,
            }
        };
        if !self.link.welcomed {
            return due.min(self.link.opened_at + self.config.welcome_grace.0);
        }
        for leaving in &self.leaving {
            due = due.min(match (leaving.nonce, leaving.asked_at) {
                (Some(_), Some(asked)) => asked + patience(&self.config, leaving.attempts),
                _ => self.pace.ready_at(now),
            });
        }
        for entry in &self.entries {
            match (&entry.state, entry.asked_at) {
                (SubscriptionState::Waiting, _) => due = due.min(self.pace.ready_at(now)),
                (SubscriptionState::Pending, Some(asked)) => {
                    due = due.min(asked + patience(&self.config, entry.failures));
                }
                (SubscriptionState::Refused(Refusal { retry_at: Some(at), .. }), _) => {
                    due = due.min(*at);
                }
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
            (entry.is_renewed, entry.named_before) = (true, None);
            self.rooms = None;
            if matches!(entry.state, SubscriptionState::Refused(_)) {
                entry.failures = 0;
                entry.set(SubscriptionState::Waiting, &mut effects.updates);
                self.due = None;
            }
        }
    }

    /// Takes further subscriptions onto this connection.
    pub fn add(&mut self, wanted: Vec<Wanted>) {
        for wanted in wanted {
            let mut entry = Entry::new(wanted);
            // An `unsubscribe` that is repeated later must not hit what is asked for now.
            self.leaving.retain(|leaving| {
                let is_same = leaving.is_same(&entry);
                if is_same {
                    entry.continues(leaving);
                }
                !is_same
            });
            self.entries.push(entry);
            self.unplaced = Unplaced::default();
            self.rooms = None;
            self.due = None;
        }
    }

    /// Leaves what `keep` does not want any more; `unsubscribe` is sent for what may stand.
    pub fn retain(&mut self, keep: impl Fn(&Subscription) -> bool) {
        let (kept, dropped): (Vec<_>, Vec<_>) = std::mem::take(&mut self.entries)
            .into_iter()
            .partition(|entry| keep(&entry.wanted.subscription));
        for entry in dropped {
            let (true, Ok(token)) = (entry.may_be_subscribed(), &entry.wanted.token) else {
                continue;
            };
            let room = entry.room().cloned();
            let leaving = Leaving::new(&entry.wanted.subscription, room, token);
            // Another label may want the same: then the gateway is to go on sending it.
            if !kept.iter().any(|other| leaving.is_same(other)) {
                self.leaving.push(leaving);
            }
        }
        self.entries = kept;
        self.unplaced = Unplaced::default();
        self.rooms = None;
        self.due = None;
    }

    /// Whether nothing is wanted on this connection.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn subscriptions(&self) -> impl Iterator<Item = (&Arc<Subscription>, &SubscriptionState)> {
        self.entries.iter().map(|entry| (&entry.wanted.subscription, &entry.state))
    }

    /// The state of every subscription, as if each had changed.
    pub fn updates(&self) -> Vec<Update> {
        self.entries.iter().map(Entry::update).collect()
    }

    /// Something was missed although the server has restored the subscriptions.
    pub fn missed(&mut self, received: UnixMillis) {
        for entry in &mut self.entries {
            entry.confirmed_at = entry.confirmed_at.map(|_| received);
        }
    }

    /// Whether the connection has proved that it is worth something: it said welcome (or its grace
    /// passed) and confirmed a subscription, or it has lived for a minute.
    pub fn proven(&self, now: Instant) -> bool {
        let confirmed = || self.entries.iter().any(|entry| entry.state.is_confirmed());
        (self.link.welcomed && confirmed()) || now >= self.link.opened_at + PROOF
    }

    /// Whether the server has said welcome, or its grace time is over.
    pub fn welcomed(&self) -> bool {
        self.link.welcomed
    }

    /// Whether every subscription has been answered, one way or the other. A failure that is tried again in a
    /// moment is no answer. What was asked for several times in vain is not waited for.
    pub fn all_answered(&self) -> bool {
        !self.entries.iter().any(Entry::is_waited_for)
    }

    /// Whether no answer is to come that would tell more about whose messages are.
    fn is_settled(&self) -> bool {
        self.leaving.is_empty() && self.all_answered()
    }

    /// How long the gateway may be silent before it is taken to be gone.
    pub fn patience_with_silence(&self) -> Duration {
        patience_with_silence(&self.config)
    }

    /// Why some of what comes is not relayed, where that happens again and again.
    pub fn unreadable(&self, now: Instant) -> Option<String> {
        self.unreadable.repeated(now)
    }

    /// What was not relayed lately, for the session that comes after this one.
    pub fn take_unreadable(&mut self) -> Unreadable {
        std::mem::take(&mut self.unreadable)
    }

    /// Takes up what was not relayed lately on the connection before.
    pub fn continue_unreadable(&mut self, before: Unreadable) {
        self.unreadable.continues(before);
    }

    /// The subscriptions for which messages came since the last call, and how many: to know which are
    /// silent, so what comes while rooms change need not count.
    pub fn take_message_counts(&mut self) -> Vec<(Arc<Subscription>, u64)> {
        let Some(rooms) = &mut self.rooms else { return Vec::new() };
        let own: HashMap<(&str, &str), &Arc<Subscription>> = self
            .entries
            .iter()
            .map(|entry| &entry.wanted.subscription)
            .map(|one| ((&*one.channel, &*one.topic), one))
            .collect();
        let counts = rooms.take_message_counts().filter_map(|(place, messages)| {
            let one = own.get(&(&*place.channel, &*place.topic))?;
            Some((Arc::clone(one), messages))
        });
        counts.collect()
    }

    /// What was counted since the last call.
    pub fn take_counts(&mut self) -> FrameCounts {
        std::mem::take(&mut self.counts)
    }

    fn received(&mut self, now: Instant) {
        self.link.last_frame_at = now;
        if self.link.ping_at.take().is_some() {
            // The next ping may be due before this one would have been given up.
            self.due = None;
        }
    }

    fn welcome(&mut self) {
        if !self.link.welcomed {
            self.link.welcomed = true;
            debug!(restored = self.link.restored, "welcome");
        }
    }

    fn on_unknown(&mut self, kind: &str) {
        self.counts.unknown += 1;
        if self.unknown_types.len() < UNKNOWN_TYPES && self.unknown_types.insert(kind.to_owned()) {
            warn!(kind, "frames of an unknown type are skipped");
        }
    }

    /// Finds out now whether the gateway is there, and not only after a silence.
    pub fn ping(&mut self, now: Instant, effects: &mut Effects) {
        if !self.config.ping_after.0.is_zero() && self.link.ping_at.is_none() {
            self.link.ping_at = Some(now);
            effects.ping = true;
            self.due = None;
        }
    }

    /// Silence: first a ping of our own, then the end.
    fn watch(&mut self, now: Instant, effects: &mut Effects) {
        let silent = |limit: Duration| now >= self.link.last_frame_at + limit;
        if self.config.ping_after.0.is_zero() {
            if silent(SERVER_SILENCE) {
                effects.ended = Some(Ended::Lost("silent".into()));
            }
            return;
        }
        match self.link.ping_at {
            Some(at) if now >= at + self.config.ping_timeout.0 => {
                effects.ended = Some(Ended::Lost("silent: a ping was not answered".into()));
            }
            None if silent(self.config.ping_after.0) => {
                self.link.ping_at = Some(now);
                effects.ping = true;
            }
            Some(_) | None => {}
        }
    }
}

/// How long the gateway may be silent before it is taken to be gone.
pub fn patience_with_silence(config: &Astro) -> Duration {
    if config.ping_after.0.is_zero() {
        SERVER_SILENCE
    } else {
        config.ping_after.0 + config.ping_timeout.0
    }
}

/// How long an answer is waited for: longer each time, so that a gateway which is slower than the deadline
/// is understood in the end.
fn patience(config: &Astro, failures: u32) -> Duration {
    let (first, longest) = (config.response_timeout.0, config.retry_refused.0);
    first.saturating_mul(1 << failures.min(10)).min(longest.max(first))
}

#[cfg(test)]
mod tests;
