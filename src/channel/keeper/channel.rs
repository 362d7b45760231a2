//! One channel of the keeper: its session, and when that is to be fetched.

use std::{sync::Arc, time::Duration};

use tokio::{sync::oneshot, time::Instant};
use tracing::warn;

use crate::{
    astro::{
        rest::{RestError, SessionAbout, is_channel_id},
        session::Subscription,
    },
    base::{
        backoff::Backoff,
        clock::{self, UnixMillis},
        event::Event,
        metrics::{self, STATE_LEFT_OUT},
        text,
    },
    channel::{
        refresh::Outcome,
        sessions::SessionStatus,
        state::{self, Change, SESSION_TOPICS, Session},
    },
    gateway::{Account, table::SubscriptionRow},
};

/// Without a confirmation the first snapshot is fetched after this: better an old state than none.
const GRACE: Duration = Duration::from_secs(10);

/// The ceilings of the waits between two failed fetches.
const WAIT: (Duration, Duration) = (Duration::from_secs(2), Duration::from_mins(5));

/// Failures in a row that are no hiccup any more.
const FAILING: u32 = 3;

/// Two times of a reset that differ by no more than this are those of one: the server's answer may have
/// been there before its message.
const SAME_RESET: UnixMillis = 10_000;

/// Whether a fetch still counts: it has the one that its channel had when it began. Each new one differs
/// from all that are still held, those of other channels and of a channel that was removed too.
#[derive(Debug, Clone, Default)]
pub(super) struct Generation(Arc<()>);

impl PartialEq for Generation {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

#[derive(Debug)]
pub(super) struct Channel {
    pub(super) session: Session,
    /// Another one where the channel is configured otherwise, and after the answer to a command.
    pub(super) generation: Generation,
    /// Which of the topics that are folded it subscribes to.
    topics: Vec<String>,
    pub(super) account: Account,
    /// The room that is known: the canonical one as soon as the gateway has named it.
    pub(super) room: Option<Arc<str>>,
    /// When its session topics were confirmed: another time means that something was missed.
    confirmed: Vec<(Arc<str>, UnixMillis)>,
    /// When it is to be fetched; `None`: it is being fetched, or never can be.
    pub(super) due: Option<Instant>,
    /// It is to be fetched again when the fetch under way has ended.
    again: bool,
    pub(super) backoff: Backoff,
    pub(super) error: Option<String>,
    /// The last failure was the credential's.
    is_refused: bool,
    /// What the session said of itself the last time.
    pub(super) about: SessionAbout,
    /// Values that were left out and are counted.
    left_out: u64,
    /// Who waits for the next fetch to begin.
    pub(super) waiting: Vec<oneshot::Sender<Outcome>>,
}

impl Channel {
    pub(super) fn new(account: &Account) -> Self {
        Self {
            session: Session::default(),
            generation: Generation::default(),
            topics: Vec::new(),
            room: account.room.clone(),
            account: account.clone(),
            confirmed: Vec::new(),
            due: None,
            again: false,
            backoff: Backoff::new(WAIT.0, WAIT.1),
            error: None,
            is_refused: false,
            about: SessionAbout::default(),
            left_out: 0,
            waiting: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, topic: &str) {
        if SESSION_TOPICS.contains(&topic) {
            self.due.get_or_insert_with(|| Instant::now() + GRACE);
        }
        self.topics.push(topic.to_owned());
    }

    fn session_topics(&self) -> usize {
        self.topics.iter().filter(|topic| SESSION_TOPICS.contains(&topic.as_str())).count()
    }

    /// Whether it is fetched at all.
    pub(super) fn has_session(&self) -> bool {
        self.session_topics() > 0
    }

    /// Whether an element or a fact of this name comes from what it subscribes to.
    pub(super) fn folds(&self, name: &str) -> bool {
        self.topics.iter().any(|topic| state::is_folded_from(name, topic))
    }

    /// This channel as it was configured before: as it was, or with its session and those who wait for it.
    /// What it no longer subscribes to is not taken over, nor, where the label was that of another room, any
    /// of its session: answers what is gone.
    pub(super) fn replaces(&mut self, before: Self) -> Option<Vec<Change>> {
        if (&self.topics, &self.account) == (&before.topics, &before.account) {
            *self = before;
            return None;
        }
        let gone = if self.has_room_of(&before) {
            self.session = before.session;
            self.left_out = before.left_out;
            if self.has_session() {
                self.about = before.about;
            }
            self.session.retain_topics(&self.topics)
        } else {
            before.session.gone()
        };
        if !before.waiting.is_empty() {
            self.fetch_for(before.waiting);
        }
        Some(gone)
    }

    /// Whether it is for the same room, as far as that is known.
    fn has_room_of(&self, before: &Self) -> bool {
        let known = before.account.known_room.iter().chain(&before.room);
        self.may_be(&known.map(|room| &**room).collect::<Vec<_>>())
    }

    /// Whether its room is among these, which are names of one room. A name and an id may be of the same.
    pub(super) fn may_be(&self, known: &[&str]) -> bool {
        let Some(room) = &self.account.known_room else { return true };
        let is_id = is_channel_id(room);
        known.contains(&&**room) || known.iter().all(|known| is_channel_id(known) != is_id)
    }

    /// Its room, as the gateway or the configuration says it.
    pub(super) fn known_room(&self) -> Option<&Arc<str>> {
        self.room.as_ref().filter(|room| is_channel_id(room)).or(self.account.known_room.as_ref())
    }

    /// Compares when the session's subscriptions were confirmed with what is known of that. While one of
    /// them is still to be answered, there is more to come.
    pub(super) fn compare(&mut self, rows: &[(&Arc<Subscription>, &SubscriptionRow)]) {
        if rows.iter().filter(|(_, row)| row.state.is_answered()).count() < self.session_topics() {
            return;
        }
        let mut times = Vec::new();
        for (subscription, row) in rows.iter().filter(|(_, row)| row.state.is_confirmed()) {
            if let Some(room) = row.room(subscription).filter(|room| !room.is_empty()) {
                self.room = Some(Arc::clone(room));
            }
            times.extend(row.confirmed_at.map(|at| (Arc::clone(&subscription.topic), at)));
        }
        if times.iter().any(|time| !self.confirmed.contains(time)) {
            self.fetch_now();
        }
        self.confirmed = times;
    }

    /// It is to be fetched now, and once more if it is being fetched.
    pub(super) fn fetch_now(&mut self) {
        match &mut self.due {
            Some(due) => *due = Instant::now(),
            None => self.again = true,
        }
    }

    /// It is to be fetched now, for these. Where it is not fetched at all they are dropped, and learn that.
    pub(super) fn fetch_for(&mut self, waiting: Vec<oneshot::Sender<Outcome>>) {
        if self.has_session() {
            self.waiting.extend(waiting);
            self.fetch_now();
        }
    }

    /// A fetch has ended.
    pub(super) fn fetched(&mut self, next: Instant) {
        self.due = Some(next);
        if std::mem::take(&mut self.again) {
            self.fetch_now();
        }
    }

    /// A reset was received. The message does not say since when the new session counts: since then, until
    /// the next fetch says it exactly. Whether that is news.
    pub(super) fn was_reset(&mut self, event: &Event) -> bool {
        let at = clock::parse_rfc3339(&event.ts).unwrap_or(event.received);
        let known = self.about.last_reset;
        let is_news = known.is_none_or(|known| known.abs_diff(at) > SAME_RESET);
        if is_news {
            self.about.last_reset = Some(at);
        }
        is_news
    }

    /// Counts what was left out; the log has it once.
    pub(super) fn count_left_out(&mut self, label: &str) {
        let left_out = self.session.left_out();
        let more = left_out - self.left_out;
        if more == 0 {
            return;
        }
        metrics::add_for(STATE_LEFT_OUT, "channel", label, more);
        if self.left_out == 0 {
            warn!(
                channel = label,
                elements = self.session.len(),
                most = state::MOST,
                bytes = state::BYTES,
                "the channel's state is full, or a value is too large: some are left out of it"
            );
        }
        self.left_out = left_out;
    }

    /// The log has the same failure once.
    pub(super) fn failed(&mut self, label: &str, error: &RestError) {
        self.is_refused = error.is_unauthorised();
        let why = text::excerpt(&error.describe(), text::EXCERPT);
        if self.error.as_ref() != Some(&why) {
            warn!(
                channel = label,
                error = why,
                "the session cannot be fetched; what is received counts"
            );
            self.error = Some(why);
        }
    }

    pub(super) fn status(&self) -> SessionStatus {
        SessionStatus {
            elements: self.session.len(),
            fetched_at: self.session.fetched(),
            last_reset: self.about.last_reset,
            created_at: self.about.created,
            provider: self.about.provider.clone(),
            error: self.error.clone(),
            is_failing: self.error.is_some()
                && (self.is_refused || self.backoff.attempts() >= FAILING),
            left_out: self.session.left_out(),
        }
    }
}
