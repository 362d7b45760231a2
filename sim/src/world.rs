//! The state of the simulation and all that can be done to it: who is connected and subscribed,
//! publishing, faults, records.
//!
//! The one thing to know: locks are taken in the order sessions, state, line. An id is drawn and its
//! message handed to every line under one lock, so that ids on a connection only grow.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt::{self, Display},
    io::Write,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use ulid::Ulid;

use crate::{
    clock::{self, UnixMillis},
    faults::{End, Faults, Malformed},
    frame,
    ids::Ids,
    line::{ConnectionId, ConnectionRecord, Handed, Line},
    lock,
    options::{Documents, MessageIds, OAuthClient, Options, Token},
    rest::RestFault,
    secret::Secret,
    session::{LISTED, Sessions},
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
    /// A writer has taken what waited on its line.
    pub(crate) space: Notify,
    pub(crate) counters: Counters,
    pub(crate) sessions: Mutex<Sessions>,
    pub(crate) rest_faults: Mutex<VecDeque<RestFault>>,
    faults: Mutex<Faults>,
    state: Mutex<State>,
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
    tokens: Vec<Token>,
    clients: Vec<OAuthClient>,
    lines: BTreeMap<ConnectionId, Arc<Line>>,
    past: VecDeque<Arc<Line>>,
    last_connection: ConnectionId,
    topics: HashMap<String, Hearers>,
    tickets: HashMap<String, Ticket>,
    attempts: VecDeque<Attempt>,
    /// The message being built: kept for its memory.
    text: Vec<u8>,
}

/// Who hears a topic.
#[derive(Default)]
struct Hearers {
    /// By canonical room.
    rooms: HashMap<String, Vec<Arc<Line>>>,
    /// In every room.
    everywhere: Vec<Arc<Line>>,
}

/// What a reconnect token restores.
struct Ticket {
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

/// The answer to a refresh.
#[derive(Debug, Serialize)]
pub(crate) struct Refreshed {
    access_token: String,
    refresh_token: String,
    expires_in: u64,
    scope: String,
}

/// What has happened so far, in numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Connections that are open.
    pub open: u64,
    /// Connections that were opened.
    pub opened: u64,
    /// Upgrades that were refused.
    pub refused: u64,
    /// Commands that came.
    pub commands: u64,
    /// Commands that came too fast.
    pub rate_limited: u64,
    /// Messages that were published.
    pub published: u64,
    /// Messages that were handed to connections; one message to two connections counts twice.
    pub sent: u64,
    /// Pings that were sent.
    pub pings: u64,
    /// Pongs that came.
    pub pongs: u64,
    /// Reconnect tokens that were given out.
    pub tokens_issued: u64,
    /// Reconnect tokens that were accepted.
    pub tokens_used: u64,
    /// Reconnect tokens that were refused.
    pub tokens_refused: u64,
    /// Requests to the REST API.
    pub rest_requests: u64,
    /// Access tokens that were given for a refresh token.
    pub refreshes: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) opened: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) commands: AtomicU64,
    pub(crate) rate_limited: AtomicU64,
    pub(crate) published: AtomicU64,
    pub(crate) sent: AtomicU64,
    pub(crate) pings: AtomicU64,
    pub(crate) pongs: AtomicU64,
    pub(crate) tokens_issued: AtomicU64,
    pub(crate) tokens_used: AtomicU64,
    pub(crate) tokens_refused: AtomicU64,
    pub(crate) rest_requests: AtomicU64,
    pub(crate) refreshes: AtomicU64,
}

/// Counts one more.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
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
            counters: Counters::default(),
            sessions: Mutex::new(Sessions::new(options.seed)),
            rest_faults: Mutex::default(),
            faults: Mutex::default(),
            state: Mutex::new(State {
                ids: Ids::new(options.seed),
                tokens: options.tokens.clone(),
                clients: options.clients.clone(),
                lines: BTreeMap::new(),
                past: VecDeque::new(),
                last_connection: 0,
                topics: HashMap::new(),
                tickets: HashMap::new(),
                attempts: VecDeque::new(),
                text: Vec::new(),
            }),
            open: watch::Sender::new(true),
            options,
        }
    }

    /// Publishes a message and returns its id. `data` is written as it is: JSON text, or a value.
    ///
    /// Without a room it goes to whoever hears the topic in any room; on topic `astro` to everybody.
    pub fn publish(&self, topic: &str, room: &str, data: impl Display) -> String {
        if LISTED.iter().any(|(listed, _)| *listed == topic) {
            self.list(topic, room, &data.to_string());
        }
        self.send(topic, room, |text| put_display(text, &data)).0.to_string()
    }

    /// Publishes a message byte for byte to the subscribers of its topic and room; says how many
    /// connections it went to. It is parsed only for its address.
    pub fn publish_raw(&self, message: &str) -> Result<usize, serde_json::Error> {
        let address: Address<'_> = serde_json::from_str(message)?;
        let state = lock(&self.state);
        count(&self.counters.published);
        let sent = self.hand(
            &state,
            &address.topic,
            &address.room,
            address.id.and_then(|id| Ulid::from_string(&id).ok()),
            message.as_bytes(),
            self.copies(),
        );
        Ok(sent.connections)
    }

    /// Changes the faults that meet every connection, or the next ones.
    pub fn faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut lock(&self.faults));
    }

    /// Ends a connection, or all of them.
    pub fn end(&self, connection: Option<ConnectionId>, end: End) {
        self.each(connection, |line| line.end(end));
    }

    /// From now on a connection (or each one that is open) says nothing and hears nothing, not even
    /// pings, while its TCP connection stands; what it said before still goes out. With `false` it comes
    /// back to life.
    pub fn silence(&self, connection: Option<ConnectionId>, silent: bool) {
        self.each(connection, |line| line.silence(silent));
    }

    /// Sends something malformed.
    pub fn garble(&self, connection: Option<ConnectionId>, malformed: Malformed) {
        self.each(connection, |line| line.garble(malformed));
    }

    /// Sends a good message in several frames, with a ping between them: WebSocket allows both.
    pub fn send_fragmented(&self, connection: Option<ConnectionId>, message: &str, parts: usize) {
        self.each(connection, |line| {
            line.say(|buffer| frame::put_fragmented(buffer, message.as_bytes(), parts));
        });
    }

    /// Tells a connection, or all of them, to move: each gets `reconnect` with a token of its own,
    /// and goes on getting messages until it closes or the grace ends. Says how many were told.
    pub fn drain(&self, connection: Option<ConnectionId>) -> usize {
        let mut told = 0;
        let mut state = lock(&self.state);
        let lines: Vec<_> = state.chosen(connection).cloned().collect();
        let expires = Instant::now() + self.options.reconnect_token_life;
        state.tickets.retain(|_, ticket| ticket.expires > Instant::now());
        for line in lines {
            if state.tickets.len() >= KEEP_RECONNECT_TOKENS {
                break;
            }
            let token = format!("rt-{:032x}", fastrand::u128(..));
            let subscriptions = line.subscriptions(|all| all.iter().cloned().collect());
            state.tickets.insert(token.clone(), Ticket { subscriptions, expires });
            count(&self.counters.tokens_issued);
            told += 1;
            let message = if self.options.documents == Documents::September2026 {
                r#""message":"the server is going away","#
            } else {
                ""
            };
            // The documentation shows this one without `id` and `ts`.
            let text = format!(
                r#"{{"type":"reconnect","data":{{{message}"reconnect_token":"{token}"}}}}"#
            );
            line.say(|buffer| frame::put(buffer, frame::TEXT, text.as_bytes()));
            line.start_draining();
        }
        told
    }

    /// Closes the listening socket, so that connections are refused, or opens it again at the same
    /// address. Connections that stand are left alone.
    pub fn listen(&self, open: bool) {
        self.open.send_replace(open);
    }

    /// Replaces the tokens that are accepted. Subscriptions that stand are left alone.
    pub fn set_tokens(&self, tokens: Vec<Token>) {
        lock(&self.state).tokens = tokens;
    }

    /// Lets the next requests to the REST API fail, one each, in this order.
    pub fn fail_rest(&self, faults: impl IntoIterator<Item = RestFault>) {
        lock(&self.rest_faults).extend(faults);
    }

    /// What has happened so far, in numbers.
    pub fn stats(&self) -> Stats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        Stats {
            open: lock(&self.state).lines.len() as u64,
            opened: read(&counters.opened),
            refused: read(&counters.refused),
            commands: read(&counters.commands),
            rate_limited: read(&counters.rate_limited),
            published: read(&counters.published),
            sent: read(&counters.sent),
            pings: read(&counters.pings),
            pongs: read(&counters.pongs),
            tokens_issued: read(&counters.tokens_issued),
            tokens_used: read(&counters.tokens_used),
            tokens_refused: read(&counters.tokens_refused),
            rest_requests: read(&counters.rest_requests),
            refreshes: read(&counters.refreshes),
        }
    }

    /// The connections, oldest first: those that ended (the newest 256) and those that are open.
    pub fn connections(&self) -> Vec<ConnectionRecord> {
        let state = lock(&self.state);
        let mut records: Vec<_> =
            state.past.iter().chain(state.lines.values()).map(|line| line.record()).collect();
        records.sort_by_key(|record| record.id);
        records
    }

    /// Attempts to connect, oldest first (the newest 10,000).
    pub fn attempts(&self) -> Vec<Attempt> {
        lock(&self.state).attempts.iter().cloned().collect()
    }

    fn each(&self, connection: Option<ConnectionId>, act: impl Fn(&Line)) {
        lock(&self.state).chosen(connection).for_each(|line| act(line));
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
        count(&self.counters.published);
        let sent = self.hand(state, topic, room, Some(id), &text, copies);
        state.text = text;
        (id, sent)
    }

    fn copies(&self) -> usize {
        if lock(&self.faults).duplicate { 2 } else { 1 }
    }

    fn hand(
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
        state.each_hearer(topic, room, |line| {
            let own = own_ids.then(|| with_id(text, Ulid::new()));
            let (id, text) = own.as_ref().map_or((id, text), |(id, text)| (Some(*id), text));
            if let Handed::Waiting(waiting) = line.message(id, text, copies) {
                sent.connections += 1;
                sent.waiting = sent.waiting.max(waiting);
            }
        });
        self.counters.sent.fetch_add(sent.connections as u64, Ordering::Relaxed);
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
    pub(crate) fn attempted(&self, refused: Option<u16>, with_token: bool) {
        if refused.is_some() {
            count(&self.counters.refused);
        }
        let mut state = lock(&self.state);
        if state.attempts.len() == KEEP_ATTEMPTS {
            state.attempts.pop_front();
        }
        state.attempts.push_back(Attempt { at: clock::now(), refused, with_token });
    }

    /// Opens a line; with a reconnect token its subscriptions are restored. `None`: the token is not
    /// valid, has expired or was used before.
    pub(crate) fn open_line(&self, token: Option<&str>) -> Option<Arc<Line>> {
        let refused = lock(&self.faults).refuse_reconnect;
        let mut state = lock(&self.state);
        let mut restored = Vec::new();
        if let Some(token) = token {
            let ticket = state.tickets.remove(token);
            let valid = ticket.filter(|ticket| !refused && ticket.expires > Instant::now());
            let Some(ticket) = valid else {
                count(&self.counters.tokens_refused);
                return None;
            };
            restored = ticket.subscriptions;
            count(&self.counters.tokens_used);
        }
        count(&self.counters.opened);
        state.last_connection += 1;
        let id = state.last_connection;
        let line = Arc::new(Line::new(id, token.is_some(), self.options.keep_sent));
        state.lines.insert(id, Arc::clone(&line));
        for (topic, room) in restored {
            state.subscribe(&line, topic, room);
        }
        Some(line)
    }

    /// Forgets a line that has ended, except for its record.
    pub(crate) fn close_line(&self, line: &Arc<Line>) {
        let mut state = lock(&self.state);
        let subscriptions = line.subscriptions(|all| all.clone());
        for (topic, room) in &subscriptions {
            state.unhear(line, topic, room);
        }
        state.lines.remove(&line.id);
        if state.past.len() == KEEP_CONNECTIONS {
            state.past.pop_front();
        }
        state.past.push_back(Arc::clone(line));
        // Whoever waits for this line to have room need not wait any more.
        self.space.notify_waiters();
    }

    pub(crate) fn subscribe(&self, line: &Arc<Line>, topic: &str, room: &str) {
        lock(&self.state).subscribe(line, topic.to_owned(), room.to_owned());
    }

    /// Ends the subscription to one room, or to all rooms of the topic.
    pub(crate) fn unsubscribe(&self, line: &Arc<Line>, topic: &str, room: Option<&str>) {
        let mut state = lock(&self.state);
        let gone: Vec<(String, String)> = line.subscriptions(|all| {
            all.extract_if(.., |(t, r)| t == topic && room.is_none_or(|room| r == room)).collect()
        });
        for (topic, room) in gone {
            state.unhear(line, &topic, &room);
        }
    }

    /// What a look at the token says; no tokens at all means that every one is accepted.
    pub(crate) fn token(&self, token: &str) -> Result<Option<Token>, ()> {
        let state = lock(&self.state);
        if state.tokens.is_empty() {
            return if token.is_empty() { Err(()) } else { Ok(None) };
        }
        let known = state.tokens.iter().find(|known| known.token.expose() == token);
        let known = known.filter(|known| known.expires.is_none_or(|at| at > Instant::now()));
        known.cloned().map(Some).ok_or(())
    }

    /// Exchanges a refresh token for a new access token and the next refresh token. An error is the code
    /// that OAuth2 has for it.
    pub(crate) fn refresh(
        &self,
        client: &str,
        secret: &str,
        refresh_token: &str,
    ) -> Result<Refreshed, &'static str> {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        let mut own = state
            .clients
            .iter_mut()
            .filter(|one| one.id == client && one.secret.expose() == secret);
        let first = own.next().ok_or("invalid_client")?;
        let client = std::iter::once(first)
            .chain(own)
            .find(|one| one.refresh_token.expose() == refresh_token)
            .ok_or("invalid_grant")?;
        let refreshed = Refreshed {
            access_token: format!("at-{:032x}", fastrand::u128(..)),
            refresh_token: format!("ft-{:032x}", fastrand::u128(..)),
            expires_in: client.lifetime.as_secs(),
            scope: client.scopes.join(" "),
        };
        state.tokens.push(Token {
            token: Secret::new(&refreshed.access_token),
            token_type: Some("oauth2".to_owned()),
            rooms: client.rooms.clone(),
            scopes: client.scopes.clone(),
            expires: Some(Instant::now() + client.lifetime),
        });
        let next =
            OAuthClient { refresh_token: Secret::new(&refreshed.refresh_token), ..client.clone() };
        if client.reusable {
            state.clients.push(next);
        } else {
            *client = next;
        }
        count(&self.counters.refreshes);
        Ok(refreshed)
    }

    /// Looks at the faults, and uses up what is meant for one occasion.
    pub(crate) fn with_faults<T>(&self, look: impl FnOnce(&mut Faults) -> T) -> T {
        look(&mut lock(&self.faults))
    }

    /// Whether connections are accepted, and its changes.
    pub(crate) fn listening(&self) -> watch::Receiver<bool> {
        self.open.subscribe()
    }

    /// Waits until no line has more than so many bytes waiting.
    pub(crate) async fn wait_for_space(&self, limit: usize) {
        loop {
            let mut space = std::pin::pin!(self.space.notified());
            space.as_mut().enable();
            let full = lock(&self.state).lines.values().any(|line| line.waiting() > limit);
            if !full {
                return;
            }
            space.await;
        }
    }
}

impl State {
    fn chosen(&self, connection: Option<ConnectionId>) -> impl Iterator<Item = &Arc<Line>> {
        self.lines.values().filter(move |line| connection.is_none_or(|id| id == line.id))
    }

    fn subscribe(&mut self, line: &Arc<Line>, topic: String, room: String) {
        if line.subscriptions(|all| all.insert((topic.clone(), room.clone()))) {
            let hearers = self.topics.entry(topic).or_default();
            let list = if room.is_empty() {
                &mut hearers.everywhere
            } else {
                hearers.rooms.entry(room).or_default()
            };
            list.push(Arc::clone(line));
        }
    }

    fn unhear(&mut self, line: &Arc<Line>, topic: &str, room: &str) {
        let Some(hearers) = self.topics.get_mut(topic) else { return };
        let others = |other: &Arc<Line>| other.id != line.id;
        if room.is_empty() {
            hearers.everywhere.retain(others);
        } else if let Some(list) = hearers.rooms.get_mut(room) {
            list.retain(others);
            if list.is_empty() {
                hearers.rooms.remove(room);
            }
        }
        if hearers.rooms.is_empty() && hearers.everywhere.is_empty() {
            self.topics.remove(topic);
        }
    }

    /// Calls `tell` once for each line that hears this topic in this room.
    fn each_hearer(&self, topic: &str, room: &str, mut tell: impl FnMut(&Line)) {
        if topic == NOTIFICATIONS {
            for line in self.lines.values() {
                tell(line);
            }
            return;
        }
        let Some(hearers) = self.topics.get(topic) else { return };
        if room.is_empty() {
            let all = hearers.rooms.values().flatten().chain(&hearers.everywhere);
            let once: BTreeMap<_, _> = all.map(|line| (line.id, line)).collect();
            for line in once.values() {
                tell(line);
            }
            return;
        }
        let here = hearers.rooms.get(room).map_or(&[][..], Vec::as_slice);
        for line in here {
            tell(line);
        }
        for line in &hearers.everywhere {
            if here.iter().all(|own| own.id != line.id) {
                tell(line);
            }
        }
    }
}

/// The same message under another id.
fn with_id(text: &[u8], id: Ulid) -> (Ulid, Vec<u8>) {
    let mut text = text.to_vec();
    let range = ID_BEFORE.len()..ID_BEFORE.len() + ulid::ULID_LEN;
    if text.starts_with(ID_BEFORE)
        && let Some(old) = text.get_mut(range)
    {
        let mut buffer = [0; ulid::ULID_LEN];
        old.copy_from_slice(id.array_to_str(&mut buffer).as_bytes());
    }
    (id, text)
}

/// What stands before the id in a message.
const ID_BEFORE: &[u8] = br#"{"id":""#;

/// `{"id":…,"ts":…,"type":…`, without the closing brace.
fn put_envelope(text: &mut Vec<u8>, id: Ulid, ts: &str, kind: &str) {
    let mut buffer = [0; ulid::ULID_LEN];
    text.extend_from_slice(ID_BEFORE);
    text.extend_from_slice(id.array_to_str(&mut buffer).as_bytes());
    text.extend_from_slice(br#"","ts":""#);
    text.extend_from_slice(ts.as_bytes());
    text.extend_from_slice(br#"","type":""#);
    text.extend_from_slice(kind.as_bytes());
    text.push(b'"');
}

/// A JSON string.
pub(crate) fn put_string(text: &mut Vec<u8>, string: &str) {
    if string.bytes().all(|byte| byte >= b' ' && byte != b'"' && byte != b'\\') {
        text.push(b'"');
        text.extend_from_slice(string.as_bytes());
        text.push(b'"');
    } else {
        put_display(text, serde_json::Value::from(string));
    }
}

/// Appends the text of a value.
pub(crate) fn put_display(text: &mut Vec<u8>, value: impl Display) {
    // Writing to a vector cannot fail; a `Display` that does fail leaves its text cut short.
    write!(text, "{value}").ok();
}
