//! The state of the simulation and all that can be done to it: who is connected and subscribed,
//! publishing, faults, records.
//!
//! Locks are taken in the order sessions, state, connection. An id is drawn and its
//! message handed to every connection under one lock, so that ids on a connection only grow.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt::{self, Display},
    sync::{Arc, Mutex},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use ulid::Ulid;

use crate::{
    clock::{self, UnixMillis},
    connection::{Accepted, ConnectionId, ConnectionRecord, ServerConnection},
    faults::{End, Faults, Malformed, RestFault},
    frame,
    ids::Ids,
    options::{Documents, MessageIds, Options, Token},
    session::{LISTED, Sessions},
    stats::Stats,
    subscribers::Subscribers,
    sync::lock,
    text::{put_display, put_envelope, put_string, with_id},
    tokens::{Refreshed, Tokens},
};

/// The topic whose messages reach everybody, subscribed or not.
pub(crate) const NOTIFICATIONS: &str = "astro";

/// Closed connections that are remembered.
const KEEP_CONNECTIONS: usize = 256;
/// Attempts to connect that are remembered: an hour of a client that tries three times a second.
const KEEP_ATTEMPTS: usize = 10_000;
/// Reconnect tokens that can be open at a time: more than connections in any test.
const KEEP_RECONNECT_TOKENS: usize = 10_000;

/// The state of the simulation.
pub struct World {
    pub(crate) options: Options,
    pub(crate) stop: CancellationToken,
    /// A writer has taken what waited on its connection.
    pub(crate) space: Notify,
    stats: Mutex<Stats>,
    pub(crate) sessions: Mutex<Sessions>,
    pub(crate) rest_faults: Mutex<VecDeque<RestFault>>,
    faults: Mutex<Faults>,
    state: Mutex<State>,
    tokens: Mutex<Tokens>,
    open: watch::Sender<bool>,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the state: it holds reconnect tokens.
        f.debug_struct("World").field("options", &self.options).finish_non_exhaustive()
    }
}

struct State {
    ids: Ids,
    connections: BTreeMap<ConnectionId, Arc<ServerConnection>>,
    past: VecDeque<Arc<ServerConnection>>,
    last_connection: ConnectionId,
    subscribers: Subscribers,
    tickets: HashMap<String, ReconnectTicket>,
    attempts: VecDeque<Attempt>,
    /// The message being built: kept for its memory.
    text: Vec<u8>,
}

/// What a reconnect token restores.
struct ReconnectTicket {
    subscriptions: Vec<(String, String)>,
    expires: Instant,
}

/// An attempt to open a connection.
#[derive(Debug, Clone, Serialize)]
pub struct Attempt {
    /// When the request had been read.
    pub at: UnixMillis,
    /// The status with which it was refused, if it was.
    pub refused: Option<u16>,
    /// Whether it brought a reconnect token.
    pub with_token: bool,
}

/// The parts of a message that say whom it is for.
#[derive(Deserialize)]
struct Address<'a> {
    #[serde(borrow, default)]
    topic: std::borrow::Cow<'a, str>,
    #[serde(borrow, default)]
    room: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    id: Option<std::borrow::Cow<'a, str>>,
}

impl World {
    pub(crate) fn new(options: Options) -> Self {
        Self {
            stop: CancellationToken::new(),
            space: Notify::new(),
            stats: Mutex::default(),
            sessions: Mutex::new(Sessions::new(options.seed)),
            rest_faults: Mutex::default(),
            faults: Mutex::default(),
            state: Mutex::new(State {
                ids: Ids::new(options.seed),
                connections: BTreeMap::new(),
                past: VecDeque::new(),
                last_connection: 0,
                subscribers: Subscribers::default(),
                tickets: HashMap::new(),
                attempts: VecDeque::new(),
                text: Vec::new(),
            }),
            tokens: Mutex::new(Tokens::new(&options)),
            open: watch::Sender::new(true),
            options,
        }
    }

    /// Publishes a message and returns its id. `data` is written as it is: JSON text, or a value.
    ///
    /// Without a room it goes to the subscribers of the topic in any room; on topic `astro` to everybody.
    pub fn publish(&self, topic: &str, room: &str, data: impl Display) -> String {
        if LISTED.iter().any(|(listed, _)| *listed == topic) {
            self.list(topic, room, &data.to_string());
        }
        self.send(topic, room, |text| put_display(text, &data)).0.to_string()
    }

    /// Publishes a message byte for byte to the subscribers of its topic and room; returns how many
    /// connections it went to. It is parsed only for its address.
    pub fn publish_raw(&self, message: &str) -> Result<usize, serde_json::Error> {
        let address: Address<'_> = serde_json::from_str(message)?;
        let state = lock(&self.state);
        self.count(|stats| stats.published += 1);
        let sent = self.deliver(
            &state,
            &address.topic,
            &address.room,
            address.id.and_then(|id| Ulid::from_string(&id).ok()),
            message.as_bytes(),
            self.copies(),
        );
        Ok(sent.connections)
    }

    /// Changes the faults that meet every connection, or the next ones; answers what `change` does.
    pub fn faults<T>(&self, change: impl FnOnce(&mut Faults) -> T) -> T {
        change(&mut lock(&self.faults))
    }

    /// Ends a connection, or all of them.
    pub fn end(&self, connection: Option<ConnectionId>, end: End) {
        self.each(connection, |connection| connection.end(end));
    }

    /// From now on a connection (or each one that is open) sends nothing and answers nothing, not even
    /// pings, while its TCP connection stays open; what it sent before still goes out. With `false` it comes
    /// back to life.
    pub fn silence(&self, connection: Option<ConnectionId>, silent: bool) {
        self.each(connection, |connection| connection.silence(silent));
    }

    /// Sends something malformed.
    pub fn send_malformed(&self, connection: Option<ConnectionId>, malformed: Malformed) {
        self.each(connection, |connection| connection.send(|buffer| malformed.put(buffer)));
    }

    /// Sends a good message in several frames, with a ping between them: WebSocket allows both.
    pub fn send_fragmented(&self, connection: Option<ConnectionId>, message: &str, parts: usize) {
        self.each(connection, |connection| {
            connection.send(|buffer| frame::put_fragmented(buffer, message.as_bytes(), parts));
        });
    }

    /// Asks a connection, or all of them, to reconnect: each gets `reconnect` with a token of its own,
    /// and goes on getting messages until it closes or the grace ends. Returns how many were asked.
    pub fn drain(&self, connection: Option<ConnectionId>) -> usize {
        let mut moved = 0;
        let mut state = lock(&self.state);
        let connections: Vec<_> = state.chosen(connection).cloned().collect();
        let expires = Instant::now() + self.options.reconnect_token_life;
        state.tickets.retain(|_, ticket| ticket.expires > Instant::now());
        for connection in connections {
            if state.tickets.len() >= KEEP_RECONNECT_TOKENS {
                break;
            }
            let token = format!("rt-{:032x}", fastrand::u128(..));
            let subscriptions = connection.subscriptions(|all| all.iter().cloned().collect());
            state.tickets.insert(token.clone(), ReconnectTicket { subscriptions, expires });
            self.count(|stats| stats.tokens_issued += 1);
            moved += 1;
            let message = if self.options.documents == Documents::September2026 {
                r#""message":"the server is going away","#
            } else {
                ""
            };
            // The documentation shows this one without `id` and `ts`.
            let text = format!(
                r#"{{"type":"reconnect","data":{{{message}"reconnect_token":"{token}"}}}}"#
            );
            connection.send(|buffer| frame::put(buffer, frame::TEXT, text.as_bytes()));
            connection.draining.notify_one();
        }
        moved
    }

    /// Closes the listening socket, so that connections are refused, or opens it again at the same
    /// address. Open connections are left alone.
    pub fn listen(&self, open: bool) {
        self.open.send_replace(open);
    }

    /// Replaces the tokens that are accepted. Subscriptions are left alone.
    pub fn set_tokens(&self, tokens: Vec<Token>) {
        lock(&self.tokens).accepted = tokens;
    }

    /// Lets the next requests to the REST API fail, one each, in this order.
    pub fn fail_rest(&self, faults: impl IntoIterator<Item = RestFault>) {
        lock(&self.rest_faults).extend(faults);
    }

    /// What has happened so far, in numbers.
    pub fn stats(&self) -> Stats {
        let open = lock(&self.state).connections.len() as u64;
        Stats { open, ..lock(&self.stats).clone() }
    }

    /// The connections, oldest first: those that ended (the newest 256) and those that are open.
    pub fn connections(&self) -> Vec<ConnectionRecord> {
        let state = lock(&self.state);
        let mut records: Vec<_> = state
            .past
            .iter()
            .chain(state.connections.values())
            .map(|connection| connection.record())
            .collect();
        records.sort_by_key(|record| record.id);
        records
    }

    /// Attempts to connect, oldest first (the newest 10,000).
    pub fn attempts(&self) -> Vec<Attempt> {
        lock(&self.state).attempts.iter().cloned().collect()
    }

    fn each(&self, connection: Option<ConnectionId>, act: impl Fn(&ServerConnection)) {
        lock(&self.state).chosen(connection).for_each(|connection| act(connection));
    }
}

/// What became of a message.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sent {
    /// Connections that it was handed to.
    pub(crate) connections: usize,
    /// The most bytes that wait on one of them.
    pub(crate) waiting: usize,
}

/// For the connections, the load generator and the HTTP side.
impl World {
    /// Publishes a message whose data is written by `put`.
    pub(crate) fn send(
        &self,
        topic: &str,
        room: &str,
        put: impl FnOnce(&mut Vec<u8>),
    ) -> (Ulid, Sent) {
        let copies = self.copies();
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        let now = clock::now();
        let id = state.ids.next(now);
        let mut text = std::mem::take(&mut state.text);
        text.clear();
        put_envelope(&mut text, id, state.ids.ts(now), "message");
        text.extend_from_slice(br#","topic":"#);
        put_string(&mut text, topic);
        if self.options.message_room && !room.is_empty() {
            text.extend_from_slice(br#","room":"#);
            put_string(&mut text, room);
        }
        text.extend_from_slice(br#","data":"#);
        put(&mut text);
        text.push(b'}');
        self.count(|stats| stats.published += 1);
        let sent = self.deliver(state, topic, room, Some(id), &text, copies);
        state.text = text;
        (id, sent)
    }

    fn copies(&self) -> usize {
        if lock(&self.faults).duplicate { 2 } else { 1 }
    }

    fn deliver(
        &self,
        state: &State,
        topic: &str,
        room: &str,
        id: Option<Ulid>,
        text: &[u8],
        copies: usize,
    ) -> Sent {
        let mut sent = Sent::default();
        let own_ids = self.options.message_ids == MessageIds::PerConnection && id.is_some();
        let mut deliver = |connection: &ServerConnection| {
            let own = own_ids.then(|| with_id(text, Ulid::new()));
            let (id, text) = own.as_ref().map_or((id, text), |(id, text)| (Some(*id), text));
            if let Accepted::Waiting(waiting) = connection.send_message(id, text, copies) {
                sent.connections += 1;
                sent.waiting = sent.waiting.max(waiting);
            }
        };
        if topic == NOTIFICATIONS {
            state.connections.values().for_each(|one| deliver(one));
        } else {
            state.subscribers.each(topic, room, deliver);
        }
        self.count(|stats| stats.sent += sent.connections as u64);
        sent
    }

    /// Something that is not a message: its envelope, and what `put` appends to it.
    pub(crate) fn envelope(&self, kind: &str, put: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut state = lock(&self.state);
        let now = clock::now();
        let id = state.ids.next(now);
        let mut text = Vec::new();
        put_envelope(&mut text, id, state.ids.ts(now), kind);
        put(&mut text);
        text.push(b'}');
        text
    }

    /// Notes an attempt to connect.
    pub(crate) fn record_attempt(&self, refused: Option<u16>, with_token: bool) {
        if refused.is_some() {
            self.count(|stats| stats.refused += 1);
        }
        let mut state = lock(&self.state);
        if state.attempts.len() == KEEP_ATTEMPTS {
            state.attempts.pop_front();
        }
        state.attempts.push_back(Attempt { at: clock::now(), refused, with_token });
    }

    /// Opens a connection; with a reconnect token its subscriptions are restored. `None`: the token is not
    /// valid, has expired or was used before.
    pub(crate) fn open_connection(&self, token: Option<&str>) -> Option<Arc<ServerConnection>> {
        let refused = lock(&self.faults).refuse_reconnect;
        let mut state = lock(&self.state);
        let mut restored = Vec::new();
        if let Some(token) = token {
            let ticket = state.tickets.remove(token);
            let valid = ticket.filter(|ticket| !refused && ticket.expires > Instant::now());
            let Some(ticket) = valid else {
                self.count(|stats| stats.tokens_refused += 1);
                return None;
            };
            restored = ticket.subscriptions;
            self.count(|stats| stats.tokens_used += 1);
        }
        self.count(|stats| stats.opened += 1);
        state.last_connection += 1;
        let id = state.last_connection;
        let connection =
            Arc::new(ServerConnection::new(id, token.is_some(), self.options.keep_sent));
        state.connections.insert(id, Arc::clone(&connection));
        for (topic, room) in restored {
            state.subscribers.add(&connection, topic, room);
        }
        Some(connection)
    }

    /// Forgets a connection that has ended, except for its record.
    pub(crate) fn close_connection(&self, connection: &Arc<ServerConnection>) {
        let mut state = lock(&self.state);
        let subscriptions = connection.subscriptions(|all| all.clone());
        for (topic, room) in &subscriptions {
            state.subscribers.remove(connection, topic, room);
        }
        state.connections.remove(&connection.id);
        if state.past.len() == KEEP_CONNECTIONS {
            state.past.pop_front();
        }
        state.past.push_back(Arc::clone(connection));
        // Whoever waits for this connection to have room need not wait any more.
        self.space.notify_waiters();
    }

    pub(crate) fn subscribe(&self, connection: &Arc<ServerConnection>, topic: &str, room: &str) {
        lock(&self.state).subscribers.add(connection, topic.to_owned(), room.to_owned());
    }

    /// Ends the subscription to one room, or to all rooms of the topic.
    pub(crate) fn unsubscribe(
        &self,
        connection: &Arc<ServerConnection>,
        topic: &str,
        room: Option<&str>,
    ) {
        let mut state = lock(&self.state);
        let gone: Vec<(String, String)> = connection.subscriptions(|all| {
            all.extract_if(.., |(t, r)| t == topic && room.is_none_or(|room| r == room)).collect()
        });
        for (topic, room) in gone {
            state.subscribers.remove(connection, &topic, &room);
        }
    }

    /// Lists a message of one of the [`LISTED`] topics, where it can be read.
    fn list(&self, topic: &str, room: &str, data: &str) {
        let which = LISTED.iter().position(|(listed, _)| *listed == topic);
        let item = serde_json::from_str::<Value>(data).ok().filter(Value::is_object);
        if let (Some(which), Some(item)) = (which, item)
            && let Some(session) = lock(&self.sessions).of(room)
        {
            session.list(which, item);
        }
    }

    pub(crate) fn count(&self, change: impl FnOnce(&mut Stats)) {
        change(&mut lock(&self.stats));
    }

    pub(crate) fn token(&self, token: &str) -> Result<Option<Token>, ()> {
        lock(&self.tokens).find(token)
    }

    pub(crate) fn refresh(
        &self,
        client: &str,
        secret: &str,
        refresh_token: &str,
    ) -> Result<Refreshed, &'static str> {
        let refreshed = lock(&self.tokens).refresh(client, secret, refresh_token)?;
        self.count(|stats| stats.refreshes += 1);
        Ok(refreshed)
    }

    /// Whether connections are accepted, and its changes.
    pub(crate) fn listening(&self) -> watch::Receiver<bool> {
        self.open.subscribe()
    }

    /// Waits until no connection has more than so many bytes waiting.
    pub(crate) async fn wait_for_space(&self, limit: usize) {
        loop {
            let mut space = std::pin::pin!(self.space.notified());
            space.as_mut().enable();
            let full = lock(&self.state)
                .connections
                .values()
                .any(|connection| connection.waiting() > limit);
            if !full {
                return;
            }
            space.await;
        }
    }
}

impl State {
    fn chosen(
        &self,
        connection: Option<ConnectionId>,
    ) -> impl Iterator<Item = &Arc<ServerConnection>> {
        self.connections.values().filter(move |one| connection.is_none_or(|id| id == one.id))
    }
}
