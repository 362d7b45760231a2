//! The task that keeps every channel's [`Session`]: it follows the journal, fetches snapshots, and
//! writes each change down, as an event and in the journal's file.
//!
//! A snapshot is fetched when the session's subscriptions have been confirmed (again): what happened
//! before that may have gone unheard. The status page says when that was, and a connection that was
//! restored keeps the time; so the page is the one signal, and it cannot be missed. Beside that one is
//! fetched at an interval, and when the journal has lost events.
//!
//! The one thing to know: the keeper has a cursor in the journal like a sink. What was heard and not
//! yet folded when the relay ended is folded at the next start.

use std::{
    collections::{BTreeMap, HashMap},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use foldhash::fast::FixedState;
use futures_util::{StreamExt, stream::FuturesUnordered};
use serde_json::Value;
use tokio::{
    sync::{Mutex, mpsc, oneshot, watch},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    astro::rest::{Rest, RestError, Target, credentials},
    base::{
        backoff::Backoff,
        clock::{self, UnixMillis},
        event::{self, Event, Seq},
        json::Json,
        metrics::{self, STATE_LEFT_OUT},
        text,
    },
    channel::{
        state::{Change, Elements, Names, SESSION_TOPICS, Session, TOPIC, place},
        store::{Section, StateKey, StateStore},
    },
    config::{Config, SecretRef, Start, TokenType},
    gateway::{
        Account, Targets,
        status::{self, Looks, Status},
    },
    journal::{Batch, Follower, Journal, StateElement, StoreError},
};

/// Its cursor. No sink can have this name: theirs have no dot.
pub const CURSOR: &str = "relay.state";

/// Events folded at once.
const BATCH: usize = 256;

/// Bytes of events folded at once.
const BATCH_BYTES: usize = 256 * 1024;

/// Snapshots under way at once: a hundred channels are fetched within seconds, and the vendor's
/// server does not take us for an attack.
const FETCHES: usize = 4;

/// Without a confirmation the first snapshot is fetched after this: better an old state than none.
const GRACE: Duration = Duration::from_secs(10);

/// The ceilings of the waits between two failed fetches.
const WAIT: (Duration, Duration) = (Duration::from_secs(2), Duration::from_mins(5));

/// How long to wait for a journal that cannot be read at the moment.
const JOURNAL_RETRY: Duration = Duration::from_millis(200);

/// Wishes that may wait for the keeper: commands come one at a time for each channel.
const WISHES: usize = 64;

/// A handle to have a session fetched anew with.
#[derive(Debug, Clone)]
pub struct Refreshes(mpsc::Sender<Wish>);

/// Where the keeper hears of it; it outlives a keeper that fails.
pub type Wishes = Arc<Mutex<mpsc::Receiver<Wish>>>;

/// Somebody wants a session fetched anew.
#[derive(Debug)]
pub struct Wish {
    channel: Arc<str>,
    done: oneshot::Sender<Result<(), String>>,
}

impl Wish {
    /// Whose session.
    pub fn channel(&self) -> &str {
        &self.channel
    }

    /// Tells what became of it; whoever asked may have left.
    pub fn grant(self, outcome: Result<(), String>) {
        drop(self.done.send(outcome));
    }
}

/// The handle, and its end at the keeper.
pub fn refreshes() -> (Refreshes, Wishes) {
    let (wishes, wished) = mpsc::channel(WISHES);
    (Refreshes(wishes), Arc::new(Mutex::new(wished)))
}

impl Refreshes {
    /// Asks for it, and waits until it is fetched or cannot be.
    pub async fn ask(&self, channel: &str) -> Result<(), String> {
        let (done, answered) = oneshot::channel();
        let sent = self.0.send(Wish { channel: channel.into(), done }).await;
        let gone = || "nobody keeps the session now".to_owned();
        sent.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    /// Asks for it, and lets it be. Where too many ask, a fetch is to come anyway.
    pub fn wish(&self, channel: &str) {
        drop(self.0.try_send(Wish { channel: channel.into(), done: oneshot::channel().0 }));
    }
}

/// How often the keeper does what.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// A session is fetched anew this often.
    pub refresh: Duration,
    /// Where the credential is at fault, it is tried again no sooner than this.
    pub retry_refused: Duration,
}

impl Times {
    /// As configured.
    pub fn of(config: &Config) -> Self {
        Self { refresh: config.session.refresh.0, retry_refused: config.astro.retry_refused.0 }
    }
}

/// Keeps the sessions.
#[derive(Debug)]
pub struct Keeper {
    rest: Rest,
    journal: Journal,
    status: Arc<Status>,
    store: Arc<StateStore>,
    targets: watch::Receiver<Targets>,
    wishes: Wishes,
    times: Times,
    follower: Follower,
    channels: BTreeMap<Arc<str>, Channel>,
    names: Names,
    /// No fetch is due before this. May be too early, never too late.
    not_before: Instant,
}

/// One channel.
#[derive(Debug)]
struct Channel {
    session: Session,
    /// Which of the topics that are folded it subscribes to.
    topics: Vec<String>,
    /// The room that is configured, and the one that is known.
    asked: Option<Arc<str>>,
    room: Option<Arc<str>>,
    token: SecretRef,
    token_type: TokenType,
    /// When its session topics were confirmed: another time means that something was missed.
    confirmed: Vec<(Arc<str>, UnixMillis)>,
    /// When it is to be fetched; `None`: it is being fetched, or never can be.
    due: Option<Instant>,
    /// It is to be fetched again when the fetch under way has ended.
    again: bool,
    backoff: Backoff,
    error: Option<String>,
    /// Values that were left out and are told.
    left_out: u64,
    /// Who waits for the next fetch to begin.
    waiting: Vec<oneshot::Sender<Result<(), String>>>,
}

/// A snapshot, and when it was asked for.
struct Fetched {
    channel: Arc<str>,
    since: Seq,
    /// Who waits for it.
    waiting: Vec<oneshot::Sender<Result<(), String>>>,
    outcome: Result<Elements, RestError>,
}

type Fetches = FuturesUnordered<Pin<Box<dyn Future<Output = Fetched> + Send>>>;

impl Keeper {
    /// A keeper for the channels among `targets` that subscribe to anything that is folded.
    pub fn new(
        times: Times,
        rest: Rest,
        journal: Journal,
        status: Arc<Status>,
        store: Arc<StateStore>,
        (targets, wishes): (watch::Receiver<Targets>, Wishes),
    ) -> Result<Self, StoreError> {
        let follower = journal.follow(CURSOR, Start::End, concerns)?;
        let kept = journal.stored_state()?;
        let mut keeper = Self {
            rest,
            journal,
            status,
            store,
            targets,
            wishes,
            times,
            follower,
            channels: BTreeMap::new(),
            names: Names::default(),
            not_before: Instant::now(),
        };
        keeper.adopt();
        let mut forgotten = Vec::new();
        // Names with a dot are of others, who keep something else.
        for kept in kept.into_iter().filter(|kept| !kept.channel.contains('.')) {
            let value = kept.value.as_deref().and_then(Json::from_text);
            let channel = keeper.channels.get_mut(&*kept.channel);
            let restored = match (channel, value) {
                (Some(channel), Some(value)) => {
                    channel.session.restore(keeper.names.shared(&kept.element), value)
                }
                (_, _) => false,
            };
            if !restored {
                forgotten.push(StateElement { value: None, ..kept });
            }
        }
        keeper.journal.store_state(forgotten);
        for (label, channel) in &keeper.channels {
            channel.show(label, &keeper.status);
        }
        keeper.post();
        Ok(keeper)
    }

    /// Puts all that is known on the store, and takes away what a keeper before this one knew.
    fn post(&self) {
        let mut known: BTreeMap<StateKey, Option<Json>> = BTreeMap::new();
        for (label, channel) in &self.channels {
            let elements = channel.session.iter();
            known.extend(elements.map(|(name, value)| (place(label, name), Some(value.clone()))));
        }
        self.store.remove(|key| is_ours(key) && !known.contains_key(key));
        self.store.insert(known);
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
        for (label, mut gone) in std::mem::take(&mut self.channels) {
            if let Some(channel) = wanted.get_mut(&label) {
                if channel.is_like(&gone) {
                    *channel = gone;
                } else {
                    channel.session = std::mem::take(&mut gone.session);
                    channel.left_out = gone.left_out;
                }
            } else {
                let forgotten = gone.session.iter().map(|(element, _)| StateElement {
                    channel: (&*label).into(),
                    element: (&**element).into(),
                    value: None,
                    at: 0,
                });
                self.journal.store_state(forgotten);
                self.status.no_session(&label);
                self.store.remove(|key| is_ours(key) && key.channel == label);
            }
        }
        self.channels = wanted;
        self.not_before = Instant::now();
    }

    /// Keeps them until it is told to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut connections = self.status.connections();
        let mut work = Fetches::new();
        let wishes = Arc::clone(&self.wishes);
        let mut wishes = wishes.lock().await;
        let mut looks = Looks::new(Looks::PACE);
        self.look();
        loop {
            let due = self.start(&mut work);
            let next = self.follower.next(BATCH, BATCH_BYTES);
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                // Before what a fetch brings: a snapshot belongs behind what was heard before it.
                batch = next => match batch {
                    Ok(batch) => self.fold(&batch),
                    Err(error) => {
                        warn!(%error, "the journal cannot be read now");
                        sleep(JOURNAL_RETRY).await;
                    }
                },
                Some(fetched) = work.next() => self.take(fetched),
                Some(wish) = wishes.recv() => self.take_wish(wish),
                Ok(()) = connections.changed() => looks.wish(),
                () = looks.due() => {
                    let began = Instant::now();
                    self.look();
                    looks.looked(began);
                }
                Ok(()) = self.targets.changed() => {
                    self.adopt();
                    self.look();
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            }
        }
    }

    /// Somebody wants a session fetched anew.
    fn take_wish(&mut self, wish: Wish) {
        let kept = self.channels.get_mut(&wish.channel).filter(|channel| channel.has_session());
        let Some(channel) = kept else {
            return wish.grant(Err("the relay keeps no session of this channel".into()));
        };
        channel.waiting.retain(|waiting| !waiting.is_closed());
        channel.waiting.push(wish.done);
        channel.fetch_now();
        self.not_before = Instant::now();
    }

    /// Starts what is due, and answers when the next fetch is to begin; `None` while there are enough.
    /// Nothing is looked for where nothing can be: this is called at every turn.
    fn start(&mut self, fetches: &mut Fetches) -> Option<Instant> {
        let now = Instant::now();
        if fetches.len() >= FETCHES || now < self.not_before {
            return (fetches.len() < FETCHES).then_some(self.not_before);
        }
        // With nothing due, the channels are looked at again when something may be.
        self.not_before = now + GRACE;
        for (label, channel) in &mut self.channels {
            let Some(due) = channel.due else { continue };
            if due > now {
                self.not_before = self.not_before.min(due);
                continue;
            }
            if fetches.len() >= FETCHES {
                self.not_before = now;
                return None;
            }
            channel.due = None;
            let (room, token, kind) =
                (channel.room.clone(), channel.token.clone(), channel.token_type);
            let (rest, label) = (self.rest.clone(), Arc::clone(label));
            // What is heard from here on is newer than what the server may read for us.
            let since = self.journal.figures().last;
            let waiting = std::mem::take(&mut channel.waiting);
            fetches.push(Box::pin(async move {
                let outcome = match credentials(room.as_deref(), &token, kind).await {
                    Ok((id, token)) => rest.elements(Target { channel: &id, token: &token }).await,
                    Err(why) => Err(RestError::Credential(why)),
                };
                Fetched { channel: label, since, waiting, outcome }
            }));
        }
        (fetches.len() < FETCHES).then_some(self.not_before)
    }

    /// Looks at the status page: where a session's subscriptions were confirmed anew, something may
    /// have been missed.
    fn look(&mut self) {
        let channels = &mut self.channels;
        self.status.look(|pages| {
            let mut found: HashMap<&str, Vec<&status::Subscription>, FixedState> =
                HashMap::default();
            for subscription in pages.subscriptions() {
                if SESSION_TOPICS.contains(&&*subscription.topic) {
                    found.entry(&subscription.channel).or_default().push(subscription);
                }
            }
            for (label, channel) in channels.iter_mut() {
                channel.look(found.get(&**label).map_or(&[], Vec::as_slice));
            }
        });
        self.not_before = Instant::now();
    }

    /// Folds events.
    fn fold(&mut self, batch: &Batch) {
        if batch.lost > 0 {
            warn!(events = batch.lost, "events were lost before a session could take them in");
            self.channels.values_mut().for_each(Channel::fetch_now);
            self.not_before = Instant::now();
        }
        for record in &batch.records {
            let event = &record.event;
            if !concerns(event) {
                continue;
            }
            if let Some(channel) = self.channels.get_mut(&event.place.channel) {
                let changes = channel.session.hear(event, record.seq);
                channel.note_left_out(&event.place.channel, &self.status);
                self.write_down(&event.place.channel, &changes);
            }
        }
        self.follower.done(None);
    }

    /// Takes in what a fetch has brought.
    fn take(&mut self, fetched: Fetched) {
        let Fetched { channel: label, since, mut waiting, outcome } = fetched;
        let Some(channel) = self.channels.get_mut(&label) else { return };
        let now = Instant::now();
        match outcome {
            Ok(snapshot) => {
                channel.backoff.reset();
                channel.due = Some(now + self.times.refresh);
                let changes =
                    channel.session.merge(&snapshot, since, clock::now(), &mut self.names);
                if let Some(changes) = changes {
                    if channel.error.take().is_some() {
                        info!(channel = %label, "the session was fetched again");
                    }
                    channel.show(&label, &self.status);
                    channel.note_left_out(&label, &self.status);
                    self.write_down(&label, &changes);
                    tell(&mut waiting, &Ok(()));
                } else {
                    channel.due = Some(now);
                    channel.waiting.append(&mut waiting);
                }
            }
            Err(error) => {
                let mut wait = channel.backoff.wait().max(error.retry_after().unwrap_or_default());
                if error.is_unauthorised() {
                    wait = wait.max(self.times.retry_refused);
                }
                channel.due = Some(now + wait);
                // What is wrong may name a place on this machine: the log and the page say it.
                let told = match &error {
                    RestError::Credential(_) => {
                        "the relay has no usable credential for this channel".into()
                    }
                    error => error.to_string(),
                };
                tell(&mut waiting, &Err(told));
                channel.failed(&label, &error.describe(), &self.status);
            }
        }
        if let Some(channel) = self.channels.get_mut(&label)
            && std::mem::take(&mut channel.again)
        {
            channel.fetch_now();
        }
        if let Some(due) = self.channels.get(&label).and_then(|channel| channel.due) {
            self.not_before = self.not_before.min(due);
        }
    }

    /// Writes changes down: as events, and in the journal's file.
    fn write_down(&self, label: &Arc<str>, changes: &[Change]) {
        let Some(channel) = self.channels.get(label).filter(|_| !changes.is_empty()) else {
            return;
        };
        let now = clock::now();
        let room = channel.room.clone().unwrap_or_else(|| "".into());
        let tell = |change| event::own_text(TOPIC, label, &room, &told(label, change), now);
        let mut events: Vec<Event> = changes.iter().map(tell).collect();
        let kept = changes.iter().map(|change| StateElement {
            channel: (&**label).into(),
            element: (&*change.element).into(),
            value: change.after.as_ref().map(|value| value.text().into()),
            at: now,
        });
        // In this order: a crash in between tells a change twice, and never not at all.
        self.journal.append(&mut events);
        self.journal.store_state(kept);
        let posted = |change: &Change| (place(label, &change.element), change.after.clone());
        self.store.insert(changes.iter().map(posted));
        channel.show(label, &self.status);
    }
}

/// Whether a part of the store is written here.
fn is_ours(key: &StateKey) -> bool {
    !matches!(key.section, Section::Status | Section::Diagnostics)
}

/// Tells those who wait; they may have left.
fn tell(waiting: &mut Vec<oneshot::Sender<Result<(), String>>>, outcome: &Result<(), String>) {
    for waiting in waiting.drain(..) {
        drop(waiting.send(outcome.clone()));
    }
}

/// Whether an event is folded. What is handed on again, or was made for a test, happened at another
/// time or not at all.
fn concerns(event: &Event) -> bool {
    event.origin == event::Origin::Live && is_folded(&event.place.topic)
}

/// Whether a topic's events are folded.
fn is_folded(topic: &str) -> bool {
    const FACTS: [&str; 3] =
        ["channel.stream.status", "channel.chatbot.status", "channel.chatbot.counters"];
    SESSION_TOPICS.contains(&topic) || FACTS.contains(&topic)
}

/// The data of a change's event. What was not there before, or is not there now, is left out.
fn told(label: &str, change: &Change) -> String {
    let said = |name: &str, value: Option<&Json>| {
        value.map_or_else(String::new, |value| format!("\"{name}\":{value},"))
    };
    let after = said("after", change.after.as_ref());
    let before = said("before", change.before.as_ref());
    let (label, element) = (Value::from(label), Value::from(&*change.element));
    let source = change.source.as_str();
    let beside = |name: &str, text: Option<&str>| {
        text.map_or_else(String::new, |text| format!(",\"{name}\":{}", Value::from(text)))
    };
    let activity = beside("activity", change.activity.as_deref());
    let provider = beside("provider", change.provider.as_deref());
    format!(
        r#"{{{after}{before}"channel":{label},"element":{element},"source":"{source}"{activity}{provider}}}"#
    )
}

impl Channel {
    fn new(account: &Account) -> Self {
        Self {
            session: Session::default(),
            topics: Vec::new(),
            asked: account.room.clone(),
            room: account.room.clone(),
            token: account.token.clone(),
            token_type: account.token_type,
            confirmed: Vec::new(),
            due: None,
            again: false,
            backoff: Backoff::new(WAIT.0, WAIT.1),
            error: None,
            left_out: 0,
            waiting: Vec::new(),
        }
    }

    /// Whether it is fetched at all.
    fn has_session(&self) -> bool {
        self.topics.iter().any(|topic| SESSION_TOPICS.contains(&topic.as_str()))
    }

    fn add(&mut self, topic: &str) {
        if SESSION_TOPICS.contains(&topic) {
            self.due.get_or_insert_with(|| Instant::now() + GRACE);
        }
        self.topics.push(topic.to_owned());
    }

    /// Whether it is configured alike.
    fn is_like(&self, other: &Self) -> bool {
        (&self.topics, &self.asked, &self.token, self.token_type)
            == (&other.topics, &other.asked, &other.token, other.token_type)
    }

    /// Compares what stands of its session's subscriptions with what stood. While one of them is
    /// still to be answered, there is more to come.
    fn look(&mut self, found: &[&status::Subscription]) {
        let wanted = self.topics.iter().filter(|topic| SESSION_TOPICS.contains(&topic.as_str()));
        let answered = found.iter().filter(|page| page.state.is_answered()).count();
        if answered < wanted.count() {
            return;
        }
        let confirmed = || found.iter().filter(|page| page.state == status::Standing::Confirmed);
        for page in confirmed() {
            if let Some(room) = page.room.as_ref().filter(|room| !room.is_empty()) {
                self.room = Some(Arc::clone(room));
            }
        }
        let times =
            || confirmed().filter_map(|page| Some((Arc::clone(&page.topic), page.confirmed_at?)));
        let news = times().any(|one| !self.confirmed.contains(&one));
        if news || times().count() != self.confirmed.len() {
            self.confirmed = times().collect();
        }
        if news {
            self.fetch_now();
        }
    }

    /// It is to be fetched now, and once more if it is being fetched.
    fn fetch_now(&mut self) {
        match &mut self.due {
            Some(due) => *due = Instant::now(),
            None => self.again = true,
        }
    }

    /// What was left out is counted, and told once.
    fn note_left_out(&mut self, label: &str, status: &Status) {
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
                most = crate::channel::state::MOST,
                bytes = crate::channel::state::BYTES,
                "the channel's state is full, or a value is too large: some are left out of it"
            );
        }
        self.left_out = left_out;
        self.show(label, status);
    }

    /// The same trouble is told once.
    fn failed(&mut self, label: &str, why: &str, status: &Status) {
        let why = text::excerpt(why, text::EXCERPT);
        if self.error.as_ref() != Some(&why) {
            warn!(
                channel = label,
                error = why,
                "the session cannot be fetched; what is heard counts"
            );
            self.error = Some(why);
            self.show(label, status);
        }
    }

    fn show(&self, label: &str, status: &Status) {
        let page = status::Session {
            elements: self.session.len(),
            fetched_at: self.session.fetched(),
            error: self.error.clone(),
            left_out: self.session.left_out(),
        };
        status.session(label, page);
    }
}
