//! A connection: a socket and the session that decides for it.
//!
//! [`Connection::step`] waits for the next frames or for the next thing that time demands, and carries
//! out what the session says. It may be dropped at any await: what is not yet sent stays queued.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::tungstenite::{self, Message, protocol::frame::coding::CloseCode};

use super::super::{
    dial::Socket,
    gateway::Hub,
    session::{Effects, Ended, Session, Subscription},
};
use crate::{
    clock,
    event::{Event, UnixMillis},
    metrics::{self, MESSAGES, RATE_LIMITED, REFUSALS, SKIPPED},
};

/// Frames taken from the socket before they are handed on: what is ready, never waited for.
const BATCH: usize = 256;

/// A peer that does not take a few hundred bytes in this time is not there.
const SEND: Duration = Duration::from_secs(10);

/// A peer that is told goodbye need not answer.
const GOODBYE: Duration = Duration::from_secs(1);

/// Events of a successor that wait for the last ones of the connection before it, at most: a handover
/// takes a second or two. Where there are more, they no longer wait, and order is what suffers.
const HELD: usize = 16_384;

/// What lies unread in the sockets between two machines is a few megabytes: seconds, at worst.
const FINISH: Duration = Duration::from_secs(5);

type Frame = Result<Message, tungstenite::Error>;

pub(super) struct Connection {
    socket: Socket,
    pub(super) session: Session,
    outbox: VecDeque<Message>,
    events: Vec<Event>,
    /// What a successor has heard so far, while it is not yet its turn.
    held: Option<Vec<Event>>,
    step: Step,
}

/// What came of a step.
#[derive(Debug, Default)]
pub(super) struct Step {
    pub(super) changed: bool,
    pub(super) overflow: Vec<Arc<Subscription>>,
    pub(super) ended: Option<Ended>,
}

impl Connection {
    pub(super) fn new(socket: Socket, session: Session) -> Self {
        Self {
            socket,
            session,
            outbox: VecDeque::new(),
            events: Vec::new(),
            held: None,
            step: Step::default(),
        }
    }

    /// One that hands nothing on before [`Connection::release`]: the connection before it may still
    /// have something older.
    pub(super) fn holding_back(socket: Socket, session: Session) -> Self {
        Self { held: Some(Vec::new()), ..Self::new(socket, session) }
    }

    /// It is its turn: hands on what it has heard.
    pub(super) fn release(&mut self, hub: &Hub) {
        if let Some(mut held) = self.held.take() {
            hub.intake(&mut held);
        }
    }

    /// Waits for something to happen, and deals with it.
    pub(super) async fn step(&mut self, hub: &Hub) -> Step {
        if self.outbox.is_empty() {
            let mut effects =
                Effects { events: std::mem::take(&mut self.events), ..Effects::default() };
            let due = self.session.due(Instant::now());
            tokio::select! {
                frame = self.socket.next() => self.frames(frame, &mut effects),
                () = sleep_until(due) => {}
            }
            self.session.tick(Instant::now(), &mut effects);
            self.take(effects, hub);
            hub.journal.room().await;
        }
        if !self.outbox.is_empty() {
            match timeout(SEND, self.send()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => self.step.ended = Some(Ended::Lost(describe(&error))),
                Err(_) => self.step.ended = Some(Ended::Lost("the gateway takes nothing".into())),
            }
        }
        std::mem::take(&mut self.step)
    }

    /// Carries out what needs no waiting, and keeps the rest.
    pub(super) fn take(&mut self, mut effects: Effects, hub: &Hub) {
        match &mut self.held {
            None => hub.intake(&mut effects.events),
            Some(held) => {
                held.append(&mut effects.events);
                if held.len() > HELD {
                    self.release(hub);
                }
            }
        }
        self.events = effects.events;
        self.outbox.extend(effects.send.into_iter().map(Message::text));
        if effects.ping {
            self.outbox.push_back(Message::Ping(Bytes::new()));
        }
        self.step.changed |= effects.changed;
        self.step.overflow.append(&mut effects.overflow);
        if effects.ended.is_some() {
            self.step.ended = effects.ended;
        }
        let counts = self.session.take_counts();
        metrics::add(MESSAGES, counts.messages);
        metrics::add_for(SKIPPED, "reason", "invalid", counts.invalid);
        metrics::add_for(SKIPPED, "reason", "binary", counts.binary);
        metrics::add_for(SKIPPED, "reason", "unknown", counts.unknown);
        metrics::add(RATE_LIMITED, counts.rate_limited);
        metrics::add(REFUSALS, counts.refused);
    }

    /// Says goodbye, without insisting on an answer.
    pub(super) async fn close(&mut self) {
        let frame =
            tungstenite::protocol::CloseFrame { code: CloseCode::Normal, reason: "".into() };
        // The connection is given up either way.
        drop(timeout(GOODBYE, self.socket.close(Some(frame))).await);
    }

    /// Says goodbye and takes in what the gateway had sent before it heard that: until its own
    /// goodbye comes, or it has been silent for long enough. Answers whether all of it was read.
    pub(super) async fn finish(&mut self, hub: &Hub) -> bool {
        let rest = async {
            self.close().await;
            // A gateway that is silent now has nothing left to say.
            while let Ok(frame) = timeout(GOODBYE, self.socket.next()).await {
                let mut effects = Effects::default();
                self.frames(frame, &mut effects);
                hub.intake(&mut effects.events);
                if effects.ended.is_some() {
                    break;
                }
                hub.journal.room().await;
            }
        };
        timeout(FINISH, rest).await.is_ok()
    }

    /// Takes `first` and what is ready behind it.
    fn frames(&mut self, first: Option<Frame>, effects: &mut Effects) {
        let (now, received) = (Instant::now(), clock::now());
        self.frame(first, received, now, effects);
        for _ in 1..BATCH {
            if effects.ended.is_some() {
                break;
            }
            let Some(frame) = self.socket.next().now_or_never() else { break };
            self.frame(frame, received, now, effects);
        }
    }

    fn frame(
        &mut self,
        frame: Option<Frame>,
        received: UnixMillis,
        now: Instant,
        effects: &mut Effects,
    ) {
        match frame {
            Some(Ok(Message::Text(text))) => {
                self.session.on_text(&text.into(), received, now, effects);
            }
            Some(Ok(Message::Binary(_))) => self.session.on_binary(now),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {
                self.session.on_other(now);
            }
            Some(Ok(Message::Close(frame))) => {
                let why = frame.map_or_else(
                    || "closed by the gateway".to_owned(),
                    |frame| format!("closed by the gateway: {} {}", frame.code, frame.reason),
                );
                effects.ended.get_or_insert(Ended::Lost(why));
            }
            Some(Err(error)) => {
                // Text that is not UTF-8 ends a WebSocket (RFC 6455, section 8.1).
                if matches!(error, tungstenite::Error::Utf8(_)) {
                    self.session.on_invalid(now);
                }
                effects.ended.get_or_insert(Ended::Lost(describe(&error)));
            }
            None => {
                effects.ended.get_or_insert(Ended::Lost("closed".into()));
            }
        }
    }

    async fn send(&mut self) -> Result<(), tungstenite::Error> {
        while !self.outbox.is_empty() {
            std::future::poll_fn(|context| self.socket.poll_ready_unpin(context)).await?;
            if let Some(message) = self.outbox.pop_front() {
                self.socket.start_send_unpin(message)?;
            }
        }
        self.socket.flush().await
    }
}

fn describe(error: &tungstenite::Error) -> String {
    match error {
        tungstenite::Error::Capacity(_) => "a message exceeds max_message_size".into(),
        tungstenite::Error::Utf8(_) => "text that is not UTF-8".into(),
        other => other.to_string(),
    }
}
