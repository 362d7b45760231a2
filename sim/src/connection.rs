//! The server's side of one connection: what waits to be written, and what is known of it.
//!
//! Messages of all publishers meet here: they are appended as finished frames to one buffer, which
//! the connection's task takes as a whole and writes. That is what makes the simulator fast, and it
//! puts "was sent" and "stands in the records" under one lock.
//!
//! Once a connection is ending nothing more is accepted or recorded. On a connection that
//! ended by FIN or a close frame, what came out at the client must be the whole record; after a reset
//! it may lack a tail.

use std::{
    collections::BTreeSet,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use serde::Serialize;
use tokio::sync::Notify;
use ulid::Ulid;

use crate::{
    clock::{self, UnixMillis},
    faults::End,
    frame,
    secret::Secret,
    sync::lock,
};

/// Number of a connection, counted from 1.
pub type ConnectionId = u64;

/// A client that reads so much slower than messages come is disconnected: no real server buffers more.
const MAX_WAITING: usize = 64 << 20;

/// Commands remembered for each connection: more than any test sends, 200 bytes each.
const KEEP_COMMANDS: usize = 10_000;

/// What is known of one connection.
#[derive(Debug, Clone, Serialize)]
pub struct ConnectionRecord {
    pub id: ConnectionId,
    /// When it opened.
    pub opened: UnixMillis,
    /// Whether it came with a reconnect token.
    pub restored: bool,
    /// The topics and canonical rooms that it is subscribed to.
    pub subscriptions: BTreeSet<(String, String)>,
    /// The commands that it sent.
    pub commands: Vec<CommandRecord>,
    /// Ids of the messages that were sent to it, in order; a message sent twice is listed once.
    pub sent: Vec<String>,
    /// Messages that were sent to it and are no longer remembered one by one.
    pub sent_unremembered: u64,
    /// Messages that it would have got, had it not been silenced.
    pub withheld: u64,
    pub ended: Option<Ended>,
}

/// A command as it came.
#[derive(Debug, Clone, Serialize)]
pub struct CommandRecord {
    pub at: UnixMillis,
    /// `subscribe`, `unsubscribe`, or whatever it was.
    pub kind: String,
    pub nonce: Option<String>,
    pub topic: String,
    /// The room as requested.
    pub room: Option<String>,
    /// The token: for a test, never for a page.
    #[serde(skip)]
    pub token: Option<Secret>,
    pub token_type: Option<String>,
    /// The error code that it was answered with; `None` is success.
    pub error: Option<String>,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// The client sent a close frame.
    ByClient,
    /// The client vanished: end of stream, or an error of the socket.
    Gone,
    /// The server closed it, with this code or without a close frame.
    Closed(Option<u16>),
    /// The server reset it.
    Reset,
    /// No PONG came in time.
    NoPong,
    /// The client read too slowly.
    TooSlow,
}

/// The server's side of one connection.
#[derive(Debug)]
pub(crate) struct ServerConnection {
    pub(crate) id: ConnectionId,
    opened: UnixMillis,
    restored: bool,
    keep_sent: usize,
    /// There is something to write, or the connection is ending.
    pub(crate) wake: Notify,
    /// It shall be reset, at once.
    pub(crate) cut: Notify,
    /// The client was asked to reconnect.
    pub(crate) draining: Notify,
    silent: AtomicBool,
    out: Mutex<Out>,
}

#[derive(Debug, Default)]
struct Out {
    buffer: Vec<u8>,
    ended: Option<Ended>,
    sent: Vec<Ulid>,
    sent_unremembered: u64,
    withheld: u64,
    commands: Vec<CommandRecord>,
    subscriptions: BTreeSet<(String, String)>,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accepted {
    /// It waits to be written, behind so many bytes.
    Waiting(usize),
    /// It was not taken.
    Not,
}

impl ServerConnection {
    pub(crate) fn new(id: ConnectionId, restored: bool, keep_sent: usize) -> Self {
        Self {
            id,
            opened: clock::now(),
            restored,
            keep_sent,
            wake: Notify::new(),
            cut: Notify::new(),
            draining: Notify::new(),
            silent: AtomicBool::new(false),
            out: Mutex::default(),
        }
    }

    /// Sends something that is not a message: a welcome, a response, a ping, nonsense.
    pub(crate) fn send(&self, put: impl FnOnce(&mut Vec<u8>)) {
        let mut out = lock(&self.out);
        if out.ended.is_none() && !self.is_silent() {
            put(&mut out.buffer);
            self.wake.notify_one();
        }
    }

    /// Sends a message, once or twice.
    pub(crate) fn send_message(&self, id: Option<Ulid>, text: &[u8], copies: usize) -> Accepted {
        let mut out = lock(&self.out);
        if out.ended.is_some() {
            return Accepted::Not;
        }
        if self.is_silent() {
            out.withheld += 1;
            return Accepted::Not;
        }
        let was_empty = out.buffer.is_empty();
        for _ in 0..copies {
            frame::put(&mut out.buffer, frame::TEXT, text);
        }
        match id {
            Some(id) if out.sent.len() < self.keep_sent => out.sent.push(id),
            _ => out.sent_unremembered += 1,
        }
        if out.buffer.len() > MAX_WAITING {
            out.ended = Some(Ended::TooSlow);
            self.cut.notify_one();
        }
        if was_empty {
            self.wake.notify_one();
        }
        Accepted::Waiting(out.buffer.len())
    }

    /// Ends it as the server does.
    pub(crate) fn end(&self, end: End) {
        match end {
            End::Fin => self.finish(Ended::Closed(None), |_| {}),
            End::Close(code) => self.finish(Ended::Closed(Some(code)), |buffer| {
                frame::put_close(buffer, code, "");
            }),
            End::Reset => {
                self.finish(Ended::Reset, |_| {});
                self.cut.notify_one();
            }
        }
    }

    /// Records how it ended, and sends a last frame. Only the first end counts.
    pub(crate) fn finish(&self, ended: Ended, last: impl FnOnce(&mut Vec<u8>)) {
        let mut out = lock(&self.out);
        if out.ended.is_none() {
            out.ended = Some(ended);
            if !self.is_silent() {
                last(&mut out.buffer);
            }
        }
        self.wake.notify_one();
    }

    pub(crate) fn ended(&self) -> Option<Ended> {
        lock(&self.out).ended
    }

    /// From now on it sends and reads nothing, or does so again. What it sent before was recorded as
    /// sent, and still goes out.
    pub(crate) fn silence(&self, silent: bool) {
        self.silent.store(silent, Ordering::SeqCst);
    }

    pub(crate) fn is_silent(&self) -> bool {
        self.silent.load(Ordering::SeqCst)
    }

    /// Takes what waits into `batch`, whose old content is dropped; returns whether there was any.
    pub(crate) fn take(&self, batch: &mut Vec<u8>) -> bool {
        batch.clear();
        let mut out = lock(&self.out);
        std::mem::swap(batch, &mut out.buffer);
        !batch.is_empty()
    }

    pub(crate) fn waiting(&self) -> usize {
        lock(&self.out).buffer.len()
    }

    pub(crate) fn record_command(&self, command: CommandRecord) {
        let mut out = lock(&self.out);
        if out.commands.len() < KEEP_COMMANDS {
            out.commands.push(command);
        }
    }

    /// Its subscriptions, to be looked at or changed. The registry of topics follows them: change
    /// both under the registry's lock.
    pub(crate) fn subscriptions<T>(
        &self,
        look: impl FnOnce(&mut BTreeSet<(String, String)>) -> T,
    ) -> T {
        look(&mut self.out().subscriptions)
    }

    pub(crate) fn record(&self) -> ConnectionRecord {
        let out = self.out();
        ConnectionRecord {
            id: self.id,
            opened: self.opened,
            restored: self.restored,
            subscriptions: out.subscriptions.clone(),
            commands: out.commands.clone(),
            sent: out.sent.iter().map(Ulid::to_string).collect(),
            sent_unremembered: out.sent_unremembered,
            withheld: out.withheld,
            ended: out.ended,
        }
    }

    fn out(&self) -> MutexGuard<'_, Out> {
        lock(&self.out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_messages_that_are_sent_are_recorded_as_sent() {
        let connection = ServerConnection::new(1, false, 2);
        for n in 0..3 {
            connection.send_message(Some(Ulid(n)), b"x", 2);
        }
        connection.silence(true);
        connection.send_message(Some(Ulid(3)), b"x", 1);
        connection.silence(false);
        connection.end(End::Close(1000));
        connection.send_message(Some(Ulid(4)), b"x", 1);
        let record = connection.record();
        assert_eq!(record.sent, [Ulid(0).to_string(), Ulid(1).to_string()]);
        assert_eq!((record.sent_unremembered, record.withheld), (1, 1));
        assert_eq!(record.ended, Some(Ended::Closed(Some(1000))));
    }

    #[test]
    fn messages_from_before_a_silence_are_sent() {
        let connection = ServerConnection::new(1, false, 10);
        let mut batch = Vec::new();
        connection.send_message(Some(Ulid(0)), b"{}", 1);
        connection.silence(true);
        connection.send_message(Some(Ulid(1)), b"{}", 1);
        assert!(connection.take(&mut batch), "it is noted as sent");
        assert!(!connection.take(&mut batch));
        let record = connection.record();
        assert_eq!((record.sent, record.withheld), (vec![Ulid(0).to_string()], 1));
    }

    #[test]
    fn a_client_that_never_reads_is_disconnected() {
        let connection = ServerConnection::new(1, false, 0);
        let big = vec![b'x'; 32 << 20];
        for _ in 0..3 {
            connection.send_message(None, &big, 1);
        }
        assert_eq!(connection.ended(), Some(Ended::TooSlow));
        assert!(connection.waiting() <= 3 * (big.len() + 10));
    }
}
