//! The task that keeps every channel's [`Session`](super::state::Session): it follows the journal, fetches snapshots, and
//! writes each change down, as an event and in the journal's file.
//!
//! A snapshot is fetched when the session's subscriptions have been confirmed (again): what happened
//! before that may have been missed. The gateway's table has the time of that, and a connection that was
//! restored keeps it. Beside that one is fetched at an interval, on request, and when the journal has lost
//! events.
//!
//! The keeper has a cursor in the journal like a sink. What was received and not yet folded when the relay
//! ended is folded at the next start.

mod channel;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use foldhash::fast::FixedState;
use futures_util::{StreamExt, stream::FuturesUnordered};
use serde_json::{Value, json};
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::channel::{Channel, Generation};
use super::{
    refresh::{Answered, Outcome, RefreshRequest, RefreshRequests},
    sessions::Sessions,
    state::{Change, RESET, SESSION_TOPICS, Source, TOPIC, key_of, name_of},
    store::{Section, StateKey, StateStore},
};
use crate::{
    astro::{
        activity::ACTIVITIES,
        rest::{CredentialsError, Rest, RestError, SessionAbout, SessionDocument},
    },
    base::{
        clock::{self, UnixMillis},
        event::{self, Event, Seq},
        json::Json,
    },
    config::{Config, Start},
    gateway::{Targets, table::Table},
    journal::{Batch, Follower, Journal, StateElement, StoreError},
};

/// Its cursor. No sink can have this name: theirs have no dot.
pub const CURSOR: &str = "relay.state";

/// Under which name the room of each label is stored. No channel can have it: their labels have no dot.
const ROOMS: &str = "relay.rooms";

/// Events folded at once.
const BATCH: usize = 256;

/// Bytes of events folded at once.
const BATCH_BYTES: usize = 256 * 1024;

/// Snapshots under way at once: a hundred channels are fetched within seconds, and the vendor's
/// server does not take us for an attack.
const FETCHES: usize = 4;

/// How long to wait for a journal that cannot be read at the moment.
const JOURNAL_RETRY: Duration = Duration::from_millis(200);

/// Changes of the gateway's table within this time are read at once: confirmations come one by one.
const DEBOUNCE: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// A session is fetched again this often.
    pub refresh: Duration,
    /// Where the credential is at fault, it is tried again no sooner than this.
    pub retry_refused: Duration,
}

impl Times {
    pub fn of(config: &Config) -> Self {
        Self { refresh: config.session.refresh.0, retry_refused: config.astro.retry_refused.0 }
    }
}

/// What the keeper writes to and reads from.
#[derive(Debug, Clone)]
pub struct Stores {
    pub journal: Journal,
    pub table: Arc<Table>,
    pub store: Arc<StateStore>,
    pub sessions: Arc<Sessions>,
}

#[derive(Debug)]
pub struct SessionKeeper {
    rest: Rest,
    stores: Stores,
    targets: watch::Receiver<Targets>,
    requests: RefreshRequests,
    times: Times,
    follower: Follower,
    channels: BTreeMap<Arc<str>, Channel>,
    /// The room of each, as it is stored.
    rooms: BTreeMap<Arc<str>, Arc<str>>,
    /// Channels that other members of the cluster keep.
    elsewhere: BTreeSet<Arc<str>>,
}

/// A snapshot, and when it was asked for.
struct Fetched {
    channel: Arc<str>,
    generation: Generation,
    since: Seq,
    /// Who waits for it.
    waiting: Vec<oneshot::Sender<Outcome>>,
    outcome: Result<SessionDocument, RestError>,
    source: Source,
}

type Fetches = FuturesUnordered<Pin<Box<dyn Future<Output = Fetched> + Send>>>;

impl SessionKeeper {
    /// A keeper for the channels among `targets` that subscribe to anything that is folded.
    pub fn new(
        times: Times,
        rest: Rest,
        stores: Stores,
        targets: watch::Receiver<Targets>,
        requests: RefreshRequests,
    ) -> Result<Self, StoreError> {
        let follower = stores.journal.follow(CURSOR, Start::End, concerns)?;
        let kept = stores.journal.stored_state().unwrap_or_else(|error| {
            warn!(%error, "what is known of the sessions cannot be read; it is fetched again");
            Vec::new()
        });
        let rooms: BTreeMap<_, _> = kept.iter().filter_map(stored_room).collect();
        let mut keeper = Self {
            rest,
            stores,
            targets,
            requests,
            times,
            follower,
            channels: BTreeMap::new(),
            rooms: rooms.clone(),
            elsewhere: BTreeSet::new(),
        };
        keeper.adopt();
        keeper.restore(kept, &rooms);
        for (label, channel) in &keeper.channels {
            keeper.stores.sessions.set(label, Some(channel.status()));
        }
        keeper.publish_all();
        Ok(keeper)
    }

    /// Takes up what an earlier run has stored, when the labels were those of these rooms.
    fn restore(&mut self, kept: Vec<StateElement>, rooms: &BTreeMap<Arc<str>, Arc<str>>) {
        let mut forgotten = Vec::new();
        // Names with a dot are of others, who keep something else.
        for kept in kept.into_iter().filter(|kept| !kept.channel.contains('.')) {
            let value = kept.value.as_deref().and_then(Json::from_text);
            let restored = match (self.channels.get_mut(&*kept.channel), value) {
                (Some(channel), Some(value)) if channel.folds(&kept.element) => {
                    channel.session.restore((&*kept.element).into(), value)
                }
                (_, _) => false,
            };
            if !restored {
                forgotten.push(StateElement { value: None, ..kept });
            }
        }
        self.stores.journal.store_state(forgotten);
        let mut replaced = Vec::new();
        for (label, channel) in &mut self.channels {
            let before = rooms.get(label).map(|room| &**room);
            if !channel.may_be(before.as_slice()) {
                let session = std::mem::take(&mut channel.session);
                replaced.push((Arc::clone(label), session.gone()));
            }
        }
        for (label, gone) in &replaced {
            self.write_down(label, gone);
        }
    }

    /// Stores which label is which room's: it may be another one's after a restart.
    fn store_rooms(&mut self) {
        let room = |(label, channel): (&Arc<str>, &Channel)| {
            Some((Arc::clone(label), Arc::clone(channel.known_room()?)))
        };
        let rooms: BTreeMap<_, _> = self.channels.iter().filter_map(room).collect();
        if rooms == self.rooms {
            return;
        }
        let element = |label: &Arc<str>, room: Option<&Arc<str>>| StateElement {
            channel: ROOMS.into(),
            element: (&**label).into(),
            value: room.map(|room| Value::from(&**room).to_string().into()),
            at: clock::now(),
        };
        let fresh = rooms.iter().filter(|(label, room)| self.rooms.get(*label) != Some(*room));
        let gone = self.rooms.keys().filter(|label| !rooms.contains_key(*label));
        let fresh = fresh.map(|(label, room)| element(label, Some(room)));
        self.stores.journal.store_state(fresh.chain(gone.map(|label| element(label, None))));
        self.rooms = rooms;
    }

    /// Puts all that is known into the store, and removes what a keeper before this one knew.
    fn publish_all(&self) {
        let mut known: BTreeMap<StateKey, Option<Json>> = BTreeMap::new();
        for (label, channel) in &self.channels {
            let elements = channel.session.iter();
            known.extend(elements.map(|(name, value)| (key_of(label, name), Some(value.clone()))));
        }
        self.stores.store.remove(|key| {
            is_ours(key) && !known.contains_key(key) && !self.elsewhere.contains(&key.channel)
        });
        self.stores.store.insert(known);
    }

    /// Takes up the channels as they are configured now; what is no longer configured is forgotten.
    fn adopt(&mut self) {
        let targets = self.targets.borrow_and_update().clone();
        let mut wanted: BTreeMap<Arc<str>, Channel> = BTreeMap::new();
        for subscription in targets.subscriptions.iter().filter(|one| is_folded(&one.topic)) {
            let label = &subscription.channel;
            let Some(account) = targets.channels.get(label) else { continue };
            let channel = wanted.entry(Arc::clone(label)).or_insert_with(|| Channel::new(account));
            channel.add(&subscription.topic);
        }
        let mut replaced = Vec::new();
        for (label, before) in std::mem::take(&mut self.channels) {
            if let Some(channel) = wanted.get_mut(&label) {
                replaced.extend(channel.replaces(before).map(|gone| (label, gone)));
                continue;
            }
            if targets.elsewhere.contains(&label) {
                // Another member of the cluster keeps it; what is known stays, and comes from there.
                self.stores.sessions.set(&label, None);
                continue;
            }
            let forgotten = before.session.iter().map(|(element, _)| StateElement {
                channel: (&*label).into(),
                element: (&**element).into(),
                value: None,
                at: 0,
            });
            self.stores.journal.store_state(forgotten);
            self.stores.sessions.set(&label, None);
            self.stores.store.remove(|key| is_ours(key) && key.channel == label);
        }
        // A channel that comes from another member of the cluster begins with what that knew.
        let before = std::mem::replace(&mut self.elsewhere, targets.elsewhere);
        self.stores.store.snapshot(|entries, _| {
            for (key, entry) in entries.iter().filter(|(key, _)| before.contains(&key.channel)) {
                if let (Some(channel), Some(name)) = (wanted.get_mut(&key.channel), name_of(key)) {
                    channel.session.restore(name, entry.value.clone());
                }
            }
        });
        self.channels = wanted;
        for (label, gone) in &replaced {
            let about = self.channels.get(label).map(|channel| &channel.about);
            if about.is_none_or(|about| *about == SessionAbout::default()) {
                self.stores.store.insert([(StateKey::of(label, Section::SessionInfo), None)]);
            }
            self.write_down(label, gone);
        }
        self.store_rooms();
    }

    /// Keeps them until it is stopped.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut changes = self.stores.table.changes();
        let mut read_at = Some(Instant::now());
        let mut work = Fetches::new();
        let requests = Arc::clone(&self.requests);
        let mut requests = requests.lock().await;
        loop {
            let due = self.start(&mut work);
            let next = self.follower.next(BATCH, BATCH_BYTES);
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                // Before what a fetch brings: a snapshot belongs behind what was received before it.
                batch = next => match batch {
                    Ok(batch) => self.fold(&batch),
                    Err(error) => {
                        warn!(%error, "the journal cannot be read now");
                        sleep(JOURNAL_RETRY).await;
                    }
                },
                Some(fetched) = work.next() => self.take(fetched),
                Some(request) = requests.recv() => self.refresh(request),
                Ok(()) = changes.changed(), if read_at.is_none() => {
                    read_at = Some(Instant::now() + DEBOUNCE);
                }
                () = clock::until(read_at) => {
                    read_at = None;
                    self.read_table();
                }
                Ok(()) = self.targets.changed() => {
                    self.adopt();
                    self.read_table();
                }
                () = clock::until(due) => {}
            }
        }
    }

    fn refresh(&mut self, request: RefreshRequest) {
        let kept = self.channels.get_mut(&request.channel).filter(|one| one.has_session());
        let Some(channel) = kept else {
            return request.answer(Err("the relay keeps no session of this channel".into()));
        };
        if let Some(Answered { since, document, source }) = request.answered {
            // The server may have answered a fetch that is under way before it made the change.
            channel.generation = Generation::default();
            let generation = channel.generation.clone();
            let (channel, outcome) = (request.channel, Ok(document));
            return self.take(Fetched {
                channel,
                generation,
                since,
                waiting: vec![request.done],
                outcome,
                source,
            });
        }
        channel.waiting.retain(|waiting| !waiting.is_closed());
        channel.waiting.push(request.done);
        channel.fetch_now();
    }

    /// Starts what is due, and answers when the next fetch is to begin; `None` while there are enough.
    fn start(&mut self, fetches: &mut Fetches) -> Option<Instant> {
        let now = Instant::now();
        let mut next = None;
        for (label, channel) in &mut self.channels {
            let Some(due) = channel.due else { continue };
            if fetches.len() >= FETCHES {
                return None;
            }
            if due > now {
                next = Some(next.map_or(due, |next: Instant| next.min(due)));
                continue;
            }
            channel.due = None;
            let (room, account) = (channel.room.clone(), channel.account.clone());
            let (rest, label) = (self.rest.clone(), Arc::clone(label));
            // What is received from here on is newer than what the server may read for us.
            let since = self.stores.journal.figures().last;
            let waiting = std::mem::take(&mut channel.waiting);
            let generation = channel.generation.clone();
            fetches.push(Box::pin(async move {
                let credentials =
                    rest.credentials(room.as_deref(), &account.token, account.token_type).await;
                let outcome = match credentials {
                    Ok(credentials) => rest.document(&credentials).await,
                    Err(CredentialsError::Unvalidated(error)) => Err(*error),
                    Err(error) => Err(RestError::Credential(error.to_string())),
                };
                let source = Source::Fetched;
                Fetched { channel: label, generation, since, waiting, outcome, source }
            }));
        }
        next
    }

    /// Where a session's subscriptions were confirmed again, something may have been missed.
    fn read_table(&mut self) {
        let channels = &mut self.channels;
        self.stores.table.read(|state| {
            let mut rows: HashMap<&str, Vec<_>, FixedState> = HashMap::default();
            for (subscription, row) in &state.subscriptions {
                if SESSION_TOPICS.contains(&&*subscription.topic) {
                    rows.entry(&subscription.channel).or_default().push((subscription, row));
                }
            }
            for (label, channel) in channels {
                channel.compare(rows.get(&**label).map_or(&[], Vec::as_slice));
            }
        });
        self.store_rooms();
    }

    fn fold(&mut self, batch: &Batch) {
        if batch.lost > 0 {
            warn!(events = batch.lost, "events were lost before a session could take them in");
            self.channels.values_mut().for_each(Channel::fetch_now);
        }
        for record in batch.records.iter().filter(|record| concerns(&record.event)) {
            let label = &record.event.place.channel;
            if let Some(channel) = self.channels.get_mut(label) {
                let changes = channel.session.fold(&record.event, record.seq);
                let is_reset = &*record.event.place.topic == RESET
                    && !channel.session.is_in_snapshot(record.seq);
                if is_reset && channel.was_reset(&record.event) {
                    self.stores.store.insert([info(label, &channel.about)]);
                }
                channel.count_left_out(label);
                self.write_down(label, &changes);
            }
        }
        self.follower.done(None);
    }

    /// Takes in what a fetch has brought.
    fn take(&mut self, fetched: Fetched) {
        let Fetched { channel: label, generation, since, waiting, outcome, source } = fetched;
        let Some(channel) = self.channels.get_mut(&label) else { return };
        if generation != channel.generation {
            // Of another account, or perhaps older than what was taken in meanwhile.
            return channel.fetch_for(waiting);
        }
        let now = Instant::now();
        let mut changes = Vec::new();
        let next = match outcome {
            Ok(SessionDocument { elements, about }) => {
                channel.backoff.reset();
                let merged = channel.session.merge(&elements, since, clock::now(), source);
                if let Some(merged) = merged {
                    if channel.about != about {
                        channel.about = about;
                        self.stores.store.insert([info(&label, &channel.about)]);
                    }
                    if channel.error.take().is_some() {
                        info!(channel = %label, "the session was fetched again");
                    }
                    channel.count_left_out(&label);
                    answer(waiting, &Ok(()));
                    changes = merged;
                    now + self.times.refresh
                } else {
                    channel.waiting.extend(waiting);
                    now
                }
            }
            Err(error) => {
                let mut wait = channel.backoff.wait().max(error.retry_after().unwrap_or_default());
                if error.is_unauthorised() {
                    wait = wait.max(self.times.retry_refused);
                }
                // What is wrong may name a file of this machine: that is for the log and the page.
                let text = match &error {
                    RestError::Credential(_) => {
                        "the relay has no usable credential for this channel".into()
                    }
                    error => error.to_string(),
                };
                answer(waiting, &Err(text));
                channel.failed(&label, &error);
                now + wait
            }
        };
        channel.fetched(next);
        self.write_down(&label, &changes);
    }

    /// Writes changes down: as events, in the journal's file, and into the store.
    fn write_down(&self, label: &Arc<str>, changes: &[Change]) {
        let Some(channel) = self.channels.get(label) else { return };
        self.stores.sessions.set(label, Some(channel.status()));
        if changes.is_empty() {
            return;
        }
        let now = clock::now();
        let room = channel.room.clone().unwrap_or_else(|| "".into());
        let report =
            |change| event::own_text(TOPIC, label, &room, &change_data(label, change), now);
        let mut events: Vec<Event> = changes.iter().map(report).collect();
        let kept = changes.iter().map(|change| StateElement {
            channel: (&**label).into(),
            element: (&*change.element).into(),
            value: change.after.as_ref().map(|value| value.text().into()),
            at: now,
        });
        // In this order: a crash in between reports a change twice, and never not at all.
        self.stores.journal.append(&mut events);
        self.stores.journal.store_state(kept);
        let entry = |change: &Change| (key_of(label, &change.element), change.after.clone());
        self.stores.store.insert(changes.iter().map(entry));
    }
}

/// A label and its room, where that is what was stored.
fn stored_room(kept: &StateElement) -> Option<(Arc<str>, Arc<str>)> {
    let text = kept.value.as_deref().filter(|_| &*kept.channel == ROOMS)?;
    let room: String = serde_json::from_str(text).ok()?;
    Some(((&*kept.element).into(), room.into()))
}

/// What a session says of itself, as it is published.
fn info(label: &Arc<str>, about: &SessionAbout) -> (StateKey, Option<Json>) {
    let time = |at: Option<UnixMillis>| at.map(clock::rfc3339);
    let value = json!({
        "lastReset": time(about.last_reset),
        "createdAt": time(about.created),
        "provider": about.provider,
    });
    (StateKey::of(label, Section::SessionInfo), Some(Json::from(&value)))
}

/// Whether a part of the store is written here.
fn is_ours(key: &StateKey) -> bool {
    !matches!(key.section, Section::Status | Section::Diagnostics)
}

/// Answers those who wait; they may have left.
fn answer(waiting: impl IntoIterator<Item = oneshot::Sender<Outcome>>, outcome: &Outcome) {
    for waiting in waiting {
        drop(waiting.send(outcome.clone()));
    }
}

/// Whether an event is folded. What is delivered again, or was made for a test, happened at another
/// time or not at all.
fn concerns(event: &Event) -> bool {
    event.origin == event::Origin::Live && is_folded(&event.place.topic)
}

/// Whether a topic's events are folded.
fn is_folded(topic: &str) -> bool {
    const FACTS: [&str; 4] =
        ["channel.stream.status", "channel.chatbot.status", "channel.chatbot.counters", ACTIVITIES];
    SESSION_TOPICS.contains(&topic) || FACTS.contains(&topic)
}

/// The data of a change's event. What was not there before, or is not there now, is left out.
fn change_data(label: &str, change: &Change) -> String {
    let value = |name: &str, value: Option<&Json>| {
        value.map_or_else(String::new, |value| format!("\"{name}\":{value},"))
    };
    let after = value("after", change.after.as_ref());
    let before = value("before", change.before.as_ref());
    let (label, element) = (Value::from(label), Value::from(&*change.element));
    let source = change.source.as_str();
    let text = |name: &str, text: Option<&str>| {
        text.map_or_else(String::new, |text| format!(",\"{name}\":{}", Value::from(text)))
    };
    let activity = text("activity", change.activity.as_deref());
    let provider = text("provider", change.provider.as_deref());
    format!(
        r#"{{{after}{before}"channel":{label},"element":{element},"source":"{source}"{activity}{provider}}}"#
    )
}

#[cfg(test)]
mod tests;
