//! A connection: a socket and the session that decides for it.
//!
//! [`Connection::step`] waits for the next frames or for the next thing that time demands, and carries
//! out what the session says. It may be dropped at any await: what is not yet sent stays queued.
//!
//! During a handover the events of the next connection are held back until the old one has said its last
//! word. Otherwise a message that both carry would overtake one that still waits to be read from the old
//! one.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_tungstenite::tungstenite::{
    self, Message,
    error::ProtocolError,
    protocol::{CloseFrame, frame::coding::CloseCode},
};
use tracing::debug;

use super::Hub;
use crate::{
    astro::{
        dial::Socket,
        session::{Effects, Ended, Session, Subscription},
    },
    base::{
        clock::{self, Moment, UnixMillis},
        event::Event,
        metrics::{self, MESSAGES, RATE_LIMITED, REFUSALS, SKIPPED, UNPLACED},
    },
};

/// Frames taken from the socket at once: what is ready, never waited for.
const BATCH: usize = 256;

/// And their bytes, about: large messages are fewer.
const BATCH_BYTES: usize = 1024 * 1024;

/// A peer that does not take a few hundred bytes in this time is not there.
const SEND: Duration = Duration::from_secs(10);

/// A peer answers a close frame within a round trip, behind what it had still to send. One that does
/// not holds nothing up for longer.
const CLOSE: Duration = Duration::from_secs(2);

/// A link looks at its connection every two seconds at the least. What is read after a longer pause may
/// have waited in the socket since its beginning.
const PAUSE: Duration = Duration::from_secs(3);

/// So many bytes are a sign of life, as a frame is: of a message that takes its time.
const PROGRESS: u64 = 16 * 1024;

/// More than that does not wait in a socket.
const SOCKET_BUFFER: usize = 16 * 1024 * 1024;

/// What may be held back, by weight: as much as the journal keeps in memory. What comes then is no
/// longer held.
const HELD: usize = 4 * 1024 * 1024;

type Frame = Result<Message, tungstenite::Error>;

pub(super) struct Connection {
    link: u64,
    socket: Socket,
    pub(super) session: Session,
    /// When the last frame came; no later than that, where it is not known.
    pub(super) last_frame: Moment,
    /// When the socket was last looked at.
    looked_at: Moment,
    /// The process or the machine stood still, and so many bytes may have waited in the socket since: the
    /// gateway may have gone meanwhile.
    behind: usize,
    /// Of the bytes that were received, so many were taken for a sign of life.
    progress: u64,
    outbox: VecDeque<Message>,
    /// Since when the outbox waits for the peer.
    sending: Option<Instant>,
    /// Kept for its memory.
    events: Vec<Event>,
    held: Option<Held>,
    /// Whether it is the link's connection now: only that one says how things are.
    is_current: bool,
    step: Step,
}

/// What waits for another connection's last word.
#[derive(Debug, Default)]
struct Held {
    events: Vec<Event>,
    weight: usize,
}

/// What came of a step.
#[derive(Debug, Default)]
pub(super) struct Step {
    pub(super) overflow: Vec<Arc<Subscription>>,
    pub(super) ended: Option<Ended>,
}

impl Step {
    fn is_empty(&self) -> bool {
        self.overflow.is_empty() && self.ended.is_none()
    }
}

impl Connection {
    pub(super) fn new(link: u64, socket: Socket, session: Session) -> Self {
        Self {
            link,
            socket,
            session,
            last_frame: Moment::now(),
            looked_at: Moment::now(),
            behind: 0,
            progress: 0,
            outbox: VecDeque::new(),
            sending: None,
            events: Vec::new(),
            held: None,
            is_current: true,
            step: Step::default(),
        }
    }

    /// One whose events are held back until [`Connection::release`].
    pub(super) fn held(link: u64, socket: Socket, session: Session) -> Self {
        let fresh = Self::new(link, socket, session);
        Self { held: Some(Held::default()), is_current: false, ..fresh }
    }

    /// Waits for something to happen, and deals with it. What a step that was dropped had to report is
    /// reported at once.
    pub(super) async fn step(&mut self, hub: &Hub) -> Step {
        if self.outbox.is_empty() && self.sending.is_none() && self.step.is_empty() {
            let mut effects =
                Effects { events: std::mem::take(&mut self.events), ..Effects::default() };
            let due = self.session.due(Instant::now());
            self.look();
            tokio::select! {
                frame = self.socket.next() => {
                    self.look();
                    self.frames(frame, &mut effects);
                }
                () = sleep_until(due) => {}
            }
            let (now, received) = (Instant::now(), self.socket.get_ref().received());
            if received >= self.progress + PROGRESS {
                self.progress = received;
                self.session.on_other(now);
            }
            self.session.tick(now, &mut effects);
            self.take(effects, hub);
            hub.intake.journal().ready().await;
            // In a flood the next frames are always there, and the sinks would come too late to find what
            // they send in memory.
            tokio::task::yield_now().await;
        }
        if !self.outbox.is_empty() || self.sending.is_some() {
            // Kept over steps that are dropped half way: the peer's time runs all the same.
            let since = *self.sending.get_or_insert_with(Instant::now);
            let lost = match timeout_at(since + SEND, self.send()).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(describe(&error)),
                Err(_) => Some("the gateway takes nothing".to_owned()),
            };
            self.sending = None;
            if let Some(why) = lost {
                self.outbox.clear();
                self.step.ended.get_or_insert(Ended::Lost(why));
            }
        }
        std::mem::take(&mut self.step)
    }

    /// Puts an end back that came too early for the caller: the next step finds it.
    pub(super) fn ends_later(&mut self, ended: Ended) {
        self.step.ended = Some(ended);
    }

    /// Whether it was lost, which the next step reports.
    pub(super) fn is_lost(&self) -> bool {
        matches!(self.step.ended, Some(Ended::Lost(_)))
    }

    /// Carries out what needs no waiting, and keeps the rest.
    pub(super) fn take(&mut self, mut effects: Effects, hub: &Hub) {
        if let Some(said) = effects.server_time {
            hub.table.server_time(said);
        }
        // A gap that is over is reported before whatever came after it. Until it is the link's connection the
        // report is held back, as its events are: the caller makes it when it releases them.
        if self.is_current {
            hub.table.frame(self.link, self.last_frame);
            hub.update(self.link, &effects.updates);
        }
        self.enqueue(&mut effects.events, hub);
        self.events = effects.events;
        self.outbox.extend(effects.send.into_iter().map(Message::text));
        if effects.ping {
            self.outbox.push_back(Message::Ping(Bytes::new()));
        }
        self.step.overflow.append(&mut effects.overflow);
        if effects.ended.is_some() {
            self.step.ended = effects.ended;
        }
        let counts = self.session.take_counts();
        metrics::add(MESSAGES, counts.messages);
        metrics::add(UNPLACED, counts.unplaced);
        metrics::add_for(SKIPPED, "reason", "invalid", counts.invalid);
        metrics::add_for(SKIPPED, "reason", "oversized", counts.oversized);
        metrics::add_for(SKIPPED, "reason", "binary", counts.binary);
        metrics::add_for(SKIPPED, "reason", "unknown", counts.unknown);
        metrics::add(RATE_LIMITED, counts.rate_limited);
        metrics::add(REFUSALS, counts.refused);
    }

    /// Appends events, or holds them back.
    fn enqueue(&mut self, events: &mut Vec<Event>, hub: &Hub) {
        let Some(held) = &mut self.held else {
            hub.append(events);
            return;
        };
        held.weight += events.iter().map(Event::weight).sum::<usize>();
        held.events.append(events);
        if held.weight > HELD {
            debug!("too much to hold back; order may suffer");
            self.append_held(hub);
        }
    }

    /// It is the link's connection from now on: appends what was held back, and holds nothing back any more.
    pub(super) fn release(&mut self, hub: &Hub) {
        self.is_current = true;
        self.append_held(hub);
    }

    fn append_held(&mut self, hub: &Hub) {
        if let Some(mut held) = self.held.take() {
            hub.append(&mut held.events);
        }
    }

    /// Takes out what was held back, of a connection that is given up.
    pub(super) fn take_held(&mut self) -> Vec<Event> {
        self.held.take().map(|held| held.events).unwrap_or_default()
    }

    /// Closes the connection, and reads what the gateway had still to say until it closes it too.
    pub(super) async fn leave(&mut self, hub: &Hub) {
        let close = async {
            let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
            if let Err(error) = self.socket.close(Some(frame)).await {
                debug!(%error, "no close frame was sent");
            }
            loop {
                let mut effects = Effects::default();
                let frame = self.socket.next().await;
                self.frames(frame, &mut effects);
                self.enqueue(&mut effects.events, hub);
                if matches!(effects.ended, Some(Ended::Lost(_))) {
                    return;
                }
                hub.intake.journal().ready().await;
            }
        };
        if timeout(CLOSE, close).await.is_err() {
            debug!("the gateway did not answer the close frame");
        }
    }

    /// The socket is looked at now.
    fn look(&mut self) {
        let now = Moment::now();
        if now.since(self.looked_at) > PAUSE {
            self.behind = SOCKET_BUFFER;
        }
        self.looked_at = now;
    }

    /// Takes `first` and what is ready behind it.
    fn frames(&mut self, first: Option<Frame>, effects: &mut Effects) {
        let (now, received) = (Instant::now(), clock::now());
        if matches!(first, Some(Ok(_))) && self.behind == 0 {
            self.last_frame = self.looked_at;
        }
        let mut bytes = length(first.as_ref());
        self.frame(first, received, now, effects);
        for _ in 1..BATCH {
            if effects.ended.is_some() || bytes >= BATCH_BYTES {
                break;
            }
            let Some(frame) = self.socket.next().now_or_never() else {
                // What comes from now on was not there before.
                self.behind = 0;
                break;
            };
            bytes += length(frame.as_ref());
            self.frame(frame, received, now, effects);
        }
        self.behind = self.behind.saturating_sub(bytes);
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
                self.session.on_text(text, received, now, effects);
            }
            Some(Ok(Message::Binary(_))) => self.session.on_binary(now),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {
                self.session.on_other(now);
            }
            Some(Ok(Message::Close(frame))) => {
                let why = frame.map_or_else(
                    || "closed by the gateway".to_owned(),
                    |frame| {
                        let reason = self.session.without_tokens(&frame.reason);
                        format!("closed by the gateway: {} {reason}", frame.code)
                    },
                );
                effects.ended.get_or_insert(Ended::Lost(why));
            }
            Some(Err(error)) => {
                if let Some(code) = violation(&error) {
                    self.session.on_invalid(now);
                    let reason = "".into();
                    self.outbox.push_back(Message::Close(Some(CloseFrame { code, reason })));
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

/// The bytes of a frame's message.
fn length(frame: Option<&Frame>) -> usize {
    frame.and_then(|frame| frame.as_ref().ok()).map_or(0, Message::len)
}

/// With which code a connection is closed on which such a thing came (RFC 6455, section 7.4.1);
/// `None`: nothing came that was wrong, the connection itself is.
fn violation(error: &tungstenite::Error) -> Option<CloseCode> {
    match error {
        tungstenite::Error::Capacity(_) => Some(CloseCode::Size),
        tungstenite::Error::Utf8(_) => Some(CloseCode::Invalid),
        tungstenite::Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => None,
        tungstenite::Error::Protocol(_) => Some(CloseCode::Protocol),
        _ => None,
    }
}

fn describe(error: &tungstenite::Error) -> String {
    match error {
        tungstenite::Error::Capacity(_) => "a message is far larger than max_message_size".into(),
        tungstenite::Error::Utf8(_) => "text that is not UTF-8".into(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt, task::yield_now};
    use tokio_tungstenite::{WebSocketStream, tungstenite::protocol::Role};

    use super::*;
    use crate::{
        astro::dial::Counted,
        gateway::link::tests::{WELCOME, hub, session, sockets},
    };

    #[tokio::test(start_paused = true)]
    async fn frames_that_waited_while_the_process_stood_still_say_nothing_of_now() {
        let hub = hub();
        let (client, mut server) = sockets().await;
        let mut connection = Connection::new(1, client, session(&[]));
        server.send(Message::text(WELCOME)).await.unwrap();
        connection.step(&hub).await;
        let before = connection.last_frame;
        // Two batches wait, and the link was not polled for a minute.
        for _ in 0..=BATCH {
            server.send(Message::Pong(Bytes::new())).await.unwrap();
        }
        connection.looked_at = connection.looked_at.before(Duration::from_mins(1));
        for _ in 0..2 {
            connection.step(&hub).await;
            assert_eq!(connection.last_frame.since(before), Duration::ZERO);
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        server.send(Message::Pong(Bytes::new())).await.unwrap();
        connection.step(&hub).await;
        assert_eq!(connection.last_frame.since(before), Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_takes_long_to_come_is_no_silence() {
        let hub = hub();
        let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
        let ours = Counted::new(Box::new(ours));
        let client = WebSocketStream::from_raw_socket(ours, Role::Client, None).await;
        let mut connection = Connection::new(1, client, session(&[]));
        let slow = async {
            // One frame of four megabytes, at sixteen kilobytes a second.
            let mut header = vec![0x81, 127];
            header.extend(u64::to_be_bytes(4 * 1024 * 1024));
            theirs.write_all(&header).await.unwrap();
            for _ in 0..4 * 64 {
                theirs.write_all(&[b'x'; 16 * 1024]).await.unwrap();
                sleep_until(Instant::now() + Duration::from_secs(1)).await;
            }
            theirs
        };
        let mut slow = std::pin::pin!(slow);
        let theirs = loop {
            tokio::select! {
                theirs = &mut slow => break theirs,
                step = connection.step(&hub) => assert_eq!(step.ended, None),
            }
        };
        let silent = async {
            loop {
                if let Some(ended) = connection.step(&hub).await.ended {
                    return ended;
                }
            }
        };
        assert!(matches!(timeout(Duration::from_mins(2), silent).await, Ok(Ended::Lost(_))));
        drop(theirs);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flush_that_was_dropped_half_way_goes_on() {
        let hub = hub();
        let (client, mut server) = sockets().await;
        let mut connection = Connection::new(1, client, session(&[]));
        // More than lies between the two ends.
        let command = "x".repeat(200 * 1024);
        connection.outbox.push_back(Message::text(command.clone()));
        assert!(connection.step(&hub).now_or_never().is_none(), "it is dropped half way");
        let (step, received) = tokio::join!(timeout(SEND, connection.step(&hub)), async {
            server.next().await.unwrap().unwrap()
        },);
        assert_eq!(received.into_text().unwrap(), command);
        assert_eq!(step.unwrap().ended, None);
        assert!(connection.sending.is_none(), "the next command has its own time");
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_dropped_step_had_to_report_is_reported_by_the_next_one_at_once() {
        let hub = hub();
        let (client, mut server) = sockets().await;
        let mut connection = Connection::new(1, client, session(&["a", "b"]));
        server.send(Message::text(WELCOME)).await.unwrap();
        while !connection.session.welcomed() {
            connection.step(&hub).await;
        }
        let limit = r#""error":"err_bad_request","data":{"message":"subscription limit reached"}"#;
        let confirmed = r#"{"type":"response","nonce":"1-1"}"#.to_owned();
        let refused = format!(r#"{{"type":"response","nonce":"1-2",{limit}}}"#);
        for answer in [confirmed, refused] {
            server.send(Message::text(answer)).await.unwrap();
        }
        while connection.session.subscriptions().count() == 2 {
            assert!(connection.step(&hub).now_or_never().is_none(), "it is dropped half way");
            yield_now().await;
        }
        let step = connection.step(&hub).now_or_never().unwrap();
        assert_eq!((step.overflow.len(), step.ended), (1, None));
    }
}
