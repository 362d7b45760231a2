//! What people ask of a sink while it runs: dead letters to try again, and events to hand on again.
//!
//! Requests stand in the journal's file, written by the command line or the admin page. They are
//! dealt with between batches, one at a time, so that new events do not wait for old ones. Each is a
//! flight of its own: its events go the same way as new ones, but the cursor stays.
//!
//! One that fails is given back, and requests wait: new events go on as if it were not there, and the sink is
//! as well as they find it. It is read and tried again, a dead letter at most [`TRIES`] times in a row.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::{sync::watch, time::Instant};
use tracing::{info, warn};

use super::{
    ASKED, Delivery, describe,
    reader::BATCH_BYTES,
    waiting::{self, BREAK, FIRST_WAIT, LONGEST_ASKED},
};
use crate::{
    base::event::{Origin, Seq},
    delivery::{
        replay_preview::{Choice, replayed},
        route::Rendered,
    },
    journal::{DeadLetter, Replay},
    sink::Cause,
};

/// Events of a replay that are sent between two batches of new ones.
const REPLAY_BATCH: usize = 128;

/// A dead letter that has failed so often in a row stays one, with the reason.
const TRIES: u32 = 7;

/// Something that is asked for.
#[derive(Debug)]
pub(super) enum Request {
    /// A dead letter is to be tried again.
    Letter(DeadLetter),
    /// A piece of a replay is to be handed on.
    Replay(Replay),
}

/// Which request it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RequestId {
    Letter(i64),
    Replay(i64),
}

impl Request {
    fn id(&self) -> RequestId {
        match self {
            Self::Letter(letter) => RequestId::Letter(letter.number),
            Self::Replay(replay) => RequestId::Replay(replay.number),
        }
    }
}

/// What is begun, and what is to be put down when its events are dealt with.
#[derive(Debug)]
pub(super) enum Begun {
    /// A dead letter.
    Letter {
        /// Its number.
        number: i64,
        /// Whether it was refused again: then that is put down already.
        rejected: bool,
    },
    /// A piece of a replay.
    Replay {
        /// Its number.
        number: i64,
        /// How far it is with this piece; `None`: it is done.
        position: Option<Seq>,
    },
}

impl Begun {
    fn id(&self) -> RequestId {
        match self {
            Self::Letter { number, .. } => RequestId::Letter(*number),
            Self::Replay { number, .. } => RequestId::Replay(*number),
        }
    }
}

/// What was begun last, failed, and is still to be done.
#[derive(Debug, Clone, Copy)]
struct Failed {
    id: RequestId,
    /// The event at which it has.
    at: Seq,
    /// How often in a row.
    times: u32,
    /// No request is begun before.
    until: Instant,
}

/// What is asked for, and whose turn it is.
#[derive(Debug)]
pub(super) struct Requests {
    /// Fires when something is asked for of any sink.
    pub(super) changed: watch::Receiver<u64>,
    /// Fires when this sink is to be tried at once.
    pub(super) retries: watch::Receiver<u64>,
    /// There may be something in the journal that is not in `queue`.
    pending: bool,
    queue: VecDeque<Request>,
    failed: Option<Failed>,
    /// The next batch of new events comes first.
    pub(super) yielded: bool,
}

impl Requests {
    pub(super) fn new(changed: watch::Receiver<u64>, retries: watch::Receiver<u64>) -> Self {
        Self {
            changed,
            retries,
            pending: true,
            queue: VecDeque::new(),
            failed: None,
            yielded: false,
        }
    }

    /// Whether something was asked for. Where the next batch is always there, nothing is ever waited for.
    pub(super) fn have_changed(&mut self) -> bool {
        let changed = self.changed.has_changed().unwrap_or(false);
        if changed {
            self.changed.mark_unchanged();
        }
        changed
    }

    /// Until when none is begun, since the last has failed.
    pub(super) fn resume_at(&self) -> Option<Instant> {
        self.failed.map(|failed| failed.until).filter(|until| *until > Instant::now())
    }

    /// Whatever is waited for, it is tried now.
    pub(super) fn try_now(&mut self) {
        if let Some(failed) = &mut self.failed {
            (failed.times, failed.until) = (0, Instant::now());
        }
    }

    /// Whether what comes next is a dead letter.
    pub(super) fn next_is_a_letter(&self) -> bool {
        matches!(self.queue.front(), Some(Request::Letter(_)))
    }

    /// Whether one may be begun with nothing in flight; `new`: there are new events.
    pub(super) fn are_due(&self, new: bool) -> bool {
        let any = self.pending || !self.queue.is_empty();
        any && !(self.yielded && new) && self.resume_at().is_none()
    }
}

impl Delivery {
    /// Reads what is asked for; whether there is anything that is not in flight.
    pub(super) async fn load_requests(&mut self) -> bool {
        let (letters, replays) = match self.reader.source.pending_requests().await {
            Ok(asked) => asked,
            Err(error) => {
                self.unreadable(&error).await;
                return false;
            }
        };
        let letters = letters.into_iter().map(Request::Letter);
        let mut queue: VecDeque<_> =
            letters.chain(replays.into_iter().map(Request::Replay)).collect();
        // There may be more behind them, and of a replay that is in flight the next piece.
        self.requests.pending = !queue.is_empty();
        // What is in flight is not done yet, so it was read again.
        let in_flight = self.flight.request.as_ref().map(Begun::id);
        queue.retain(|request| Some(request.id()) != in_flight);
        // Somebody may have dropped it.
        let mut asked = queue.iter().map(Request::id).chain(in_flight);
        let failed = self.requests.failed;
        self.requests.failed = failed.filter(|failed| asked.any(|id| id == failed.id));
        self.requests.queue = queue;
        !self.requests.queue.is_empty()
    }

    /// Something is asked for of some sink. If it is this one, and new, a wait is over: whoever asks knows why.
    pub(super) async fn requested_meanwhile(&mut self) {
        self.requests.pending = true;
        let waits =
            [self.waiting.resume_at(), self.waiting.reconnect_at(), self.requests.resume_at()];
        if waits.iter().all(Option::is_none) {
            return;
        }
        let queued = self.requests.queue.iter().map(Request::id);
        let known: Vec<RequestId> =
            queued.chain(self.requests.failed.map(|failed| failed.id)).collect();
        self.load_requests().await;
        if self.requests.queue.iter().any(|request| !known.contains(&request.id())) {
            self.try_now(ASKED);
        }
    }

    /// Takes up the next thing that is asked for.
    pub(super) async fn begin_request(&mut self) {
        // Also where they cannot be read.
        self.requests.yielded = true;
        // What has failed may have been dropped.
        let is_stale = self.requests.queue.is_empty() || self.requests.failed.is_some();
        if is_stale && !self.load_requests().await {
            return;
        }
        let Some(request) = self.requests.queue.pop_front() else { return };
        match request {
            Request::Letter(letter) => self.try_again(&letter),
            Request::Replay(replay) => self.replay(&replay).await,
        }
    }

    /// Gives back what was begun and has failed, with nothing in flight. A letter is to go out again as it
    /// is, of a replay what is not yet dealt with. An answer: there was something.
    pub(super) fn give_back(&mut self, cause: &Cause) -> bool {
        // With nothing left it is done.
        let Some(at) = self.flight.first_open() else { return false };
        let Some(begun) = self.flight.request.take() else { return false };
        self.flight.take_events();
        self.flight.undeliverable.clear();
        self.flight.forget_rejected();

        let (id, sink, error) = (begun.id(), &self.row.name, describe(cause));
        let before = self.requests.failed.filter(|failed| failed.id == id && failed.at == at);
        let times = before.map_or(1, |failed| failed.times.saturating_add(1));
        match begun {
            Begun::Letter { number, .. } if times >= TRIES => {
                let reason = format!("tried {times} times: {error}");
                warn!(%sink, number, reason, "a dead letter was tried again and not accepted");
                self.reader.source.rejected_again(number, &reason);
                self.requests.failed = None;
                return true;
            }
            Begun::Letter { .. } => {}
            Begun::Replay { number, .. } => {
                self.reader.source.replay_progress(number, Some(at.saturating_sub(1)));
            }
        }
        let asked = match cause {
            Cause::Busy { wait, .. } => wait.unwrap_or_default().min(LONGEST_ASKED),
            _ => Duration::ZERO,
        };
        let wait = FIRST_WAIT.saturating_mul(1 << times.min(16)).min(self.config.backoff_max.0);
        // A replay is tried without end.
        let floor = if times > TRIES { BREAK } else { Duration::ZERO };
        let wait = wait.max(asked).max(floor);
        self.waiting.complain(sink, waiting::word(cause), &error, wait);
        self.requests.failed = Some(Failed { id, at, times, until: Instant::now() + wait });
        true
    }

    /// At a stop: the next task continues a replay at what is not yet dealt with, and sends a letter again.
    /// An answer: there was something.
    pub(super) fn leave_request(&mut self) -> bool {
        let Some(begun) = self.flight.request.take() else { return false };
        match (begun, self.flight.first_open()) {
            (begun, None) => self.request_is_done(&begun),
            (Begun::Replay { number, .. }, Some(at)) => {
                self.reader.source.replay_progress(number, Some(at.saturating_sub(1)));
            }
            (Begun::Letter { .. }, Some(_)) => {}
        }
        true
    }

    /// All of what was begun is dealt with.
    pub(super) fn request_is_done(&mut self, begun: &Begun) {
        self.requests.failed = None;
        match *begun {
            Begun::Letter { number, rejected: false } => {
                self.reader.source.remove_dead_letter(number);
            }
            Begun::Letter { rejected: true, .. } => {}
            Begun::Replay { number, position } => {
                self.reader.source.replay_progress(number, position);
                if position.is_none() {
                    info!(sink = %self.row.name, number, "replay done");
                }
            }
        }
    }

    fn try_again(&mut self, letter: &DeadLetter) {
        let number = letter.number;
        info!(sink = %self.row.name, number, "trying a dead letter again");
        let record = match letter.record.event.origin {
            // Which replay handed it on is not kept.
            Origin::Replayed => {
                let name = format!("letter-{}-{number}", letter.at);
                replayed(&letter.record, Some(name.into()))
            }
            Origin::Live | Origin::Backfilled | Origin::Test => Arc::clone(&letter.record),
        };
        let reason = match self.route.render_of_any_age(&record) {
            Rendered::Wanted(event, ha_events) => {
                self.flight.push(event, ha_events);
                self.flight.request = Some(Begun::Letter { number, rejected: false });
                return;
            }
            // Somebody asked for it: it must not end unreported.
            Rendered::Skipped(skip) => format!("no longer wanted by the sink: {}", skip.as_str()),
            Rendered::Failed(reason) => reason,
        };
        warn!(sink = %self.row.name, number, reason, "a dead letter cannot be tried again");
        self.reader.source.rejected_again(number, &reason);
    }

    /// Takes up the next piece of a replay.
    async fn replay(&mut self, replay: &Replay) {
        let choice = match Choice::of_replay(replay) {
            Ok(choice) => choice,
            Err(error) => {
                // It was asked for by another version.
                warn!(
                    error,
                    number = replay.number,
                    "a replay cannot be understood; nothing is sent"
                );
                return self.reader.source.replay_progress(replay.number, None);
            }
        };
        let limit = REPLAY_BATCH.min(self.config.window.max(1));
        // What the sink has not yet had comes anyway.
        let until = replay.until.min(self.reader.cursor);
        let batch = match self.reader.source.read(replay.position, until, limit, BATCH_BYTES).await
        {
            Ok(batch) => batch,
            Err(error) => return self.unreadable(&error).await,
        };
        if batch.lost > 0 && replay.name().is_some() {
            warn!(sink = %self.row.name, count = batch.lost, "the journal no longer holds all of a replay");
        } else if batch.lost > 0 {
            // The sink never had them.
            let before = batch.records.first().map_or(batch.through, |first| first.seq - 1);
            self.lost_of_backlog(replay.number, before, batch.lost);
        }
        self.reader.source.replay_was_read(replay.number, batch.through);
        let mut records = batch.records;
        if let Some(name) = replay.name() {
            for record in &mut records {
                *record = replayed(record, Some(Arc::clone(&name)));
            }
        }
        records.retain(|record| choice.excludes(record).is_none());
        let done = batch.through >= until || batch.through <= replay.position;
        let position = (!done).then_some(batch.through);
        self.flight.request = Some(Begun::Replay { number: replay.number, position });
        self.render(&records);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        base::{
            clock,
            event::{Event, Record, Waited, own},
        },
        config::{self, Described, SinkConfig},
        delivery::{outcome::tests::Reporting, route::Route, status::Status},
        journal::{Journal, store::Store},
        sink::{self, Failure, Outgoing},
    };

    /// A delivery to the sink `out` from a journal in that directory.
    fn delivery(dir: &Path) -> (Delivery, Journal) {
        let config = json!({ "type": "stdout", "start": "earliest" });
        delivery_as(dir, &serde_json::from_value(config).unwrap())
    }

    /// The same, configured like this.
    fn delivery_as(dir: &Path, config: &SinkConfig) -> (Delivery, Journal) {
        let of_journal = config::Journal { dir: dir.to_owned(), ..config::Journal::default() };
        let (journal, _) = Journal::open(&of_journal).unwrap();
        let route = Route::new("out", config, sink::kind(&config.kind).unwrap()).unwrap();
        let (sink, status) = (Box::new(Reporting::default()), Arc::new(Status::default()));
        let delivery = Delivery::new("out", config, sink, route, journal.clone(), status).unwrap();
        (delivery, journal)
    }

    async fn close(delivery: Delivery, journal: Journal) {
        drop(delivery);
        tokio::task::spawn_blocking(move || journal.close()).await.unwrap();
    }

    fn event(topic: &str) -> Event {
        own(topic, &"".into(), &"".into(), &json!({}), 1)
    }

    /// Leaves so many dead letters of the sink `out` in that directory, all of them asked for.
    async fn ask_for_letters(dir: &Path, count: Seq) -> Store {
        let (delivery, journal) = delivery(dir);
        for seq in 1..=count {
            let record = Arc::new(Record::new(seq, event("letter")));
            journal.dead_letter("out", &record, "too large");
        }
        close(delivery, journal).await;
        let store = Store::open_reader(dir).unwrap();
        store.allow_requests().unwrap();
        store.retry_dead_letters(None, None).unwrap();
        store
    }

    /// Does what is to be done until something is sent: the topics of that.
    async fn next_sent(delivery: &mut Delivery) -> Vec<String> {
        let stop = CancellationToken::new();
        delivery.link.connected = true;
        while delivery.flight.handed == 0 {
            delivery.turn(&stop).await;
        }
        let records = delivery.flight.events.iter().map(|event| &event.record);
        records.map(|record| record.event.place.topic.to_string()).collect()
    }

    /// For so long that only a request ends the wait.
    fn busy() -> Cause {
        Cause::Busy { wait: Some(Duration::from_hours(1)), reason: "HTTP 503".to_owned() }
    }

    #[tokio::test]
    async fn new_events_go_between_dead_letters() {
        let dir = tempfile::tempdir().unwrap();
        let store = ask_for_letters(dir.path(), 3).await;
        let (mut delivery, journal) = delivery(dir.path());
        journal.append(&mut vec![event("new")]);
        journal.next(0, 1, 1 << 20).await.unwrap();
        let mut sent = Vec::new();
        for _ in 0..4 {
            sent.extend(next_sent(&mut delivery).await);
            delivery.outcome(Ok(1));
        }
        assert_eq!(sent, ["letter", "new", "letter", "letter"]);
        close(delivery, journal).await;
        assert_eq!(store.dead_letters(None).unwrap().len(), 0);
    }

    #[tokio::test]
    async fn a_dead_letter_that_fails_waits_by_itself_and_is_no_fault_of_the_sink() {
        let dir = tempfile::tempdir().unwrap();
        let store = ask_for_letters(dir.path(), 2).await;
        let (mut delivery, journal) = delivery(dir.path());
        let waits = |delivery: &Delivery| delivery.requests.resume_at().is_some();
        for times in 1..=TRIES {
            assert_eq!(next_sent(&mut delivery).await, ["letter"]);
            assert_eq!(delivery.flight.request.as_ref().map(Begun::id), Some(RequestId::Letter(1)));
            delivery.outcome(Err(Failure::after(0, busy())));
            assert_eq!(
                (delivery.waiting.fault.clone(), delivery.waiting.resume_at()),
                (None, None)
            );
            delivery.requested_meanwhile().await;
            assert_eq!(waits(&delivery), times < TRIES, "nothing of it is new");
            if times == 1 {
                journal.append(&mut vec![event("new")]);
                journal.next(0, 1, 1 << 20).await.unwrap();
                assert_eq!(next_sent(&mut delivery).await, ["new"]);
                delivery.outcome(Ok(1));
                assert!(waits(&delivery), "a new event proves nothing about it");
                // What somebody asks for is no try of its own.
                delivery.try_now(ASKED);
                assert_eq!(next_sent(&mut delivery).await, ["letter"]);
                delivery.outcome(Err(Failure::after(0, busy())));
            }
            if let Some(failed) = &mut delivery.requests.failed {
                failed.until = Instant::now();
            }
        }
        // It is given up, and the other one is not.
        assert_eq!(next_sent(&mut delivery).await, ["letter"]);
        delivery.outcome(Ok(1));
        close(delivery, journal).await;
        let letters = store.dead_letters(None).unwrap();
        let left: Vec<_> = letters.iter().map(|letter| (letter.number, letter.retry)).collect();
        assert_eq!(left, [(1, false)]);
        assert!(letters[0].reason.contains("HTTP 503"), "{}", letters[0].reason);
    }

    #[tokio::test]
    async fn a_dead_letter_that_fails_and_is_dropped_is_waited_for_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let store = ask_for_letters(dir.path(), 1).await;
        let (mut delivery, journal) = delivery(dir.path());
        assert_eq!(next_sent(&mut delivery).await, ["letter"]);
        delivery.outcome(Err(Failure::after(0, busy())));
        assert_eq!(store.drop_dead_letters(None, None).unwrap(), 1);
        delivery.requested_meanwhile().await;
        assert_eq!(delivery.requests.resume_at(), None);
        delivery.prepare().await;
        assert!(delivery.flight.is_empty() && delivery.flight.request.is_none());
        close(delivery, journal).await;
    }

    #[tokio::test]
    async fn of_a_replay_that_fails_the_rest_is_sent_again() {
        let dir = tempfile::tempdir().unwrap();
        let (mut delivery, journal) = delivery(dir.path());
        journal.append(&mut ["one", "two", "three"].map(event).to_vec());
        delivery.reader.taken(3);
        delivery.reader.cursor = 3;
        let store = Store::open_reader(dir.path()).unwrap();
        store.allow_requests().unwrap();
        let (sink, topic, when) = ("out".to_owned(), None, None);
        let replay = Replay { number: 0, at: 7, sink, position: 0, until: 3, topic, when };
        store.request_replay(&replay).unwrap();
        assert_eq!(next_sent(&mut delivery).await, ["one", "two", "three"]);
        delivery.outcome(Err(Failure::after(1, busy())));
        assert!(delivery.flight.is_empty() && delivery.flight.request.is_none());
        delivery.try_now(ASKED);
        assert_eq!(next_sent(&mut delivery).await, ["two", "three"]);
        delivery.outcome(Ok(2));
        close(delivery, journal).await;
        assert!(store.replays().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_stop_during_a_replay_leaves_what_was_not_accepted() {
        let dir = tempfile::tempdir().unwrap();
        let (mut delivery, journal) = delivery(dir.path());
        journal.append(&mut ["one", "two", "three"].map(event).to_vec());
        delivery.reader.taken(3);
        delivery.reader.cursor = 3;
        let store = Store::open_reader(dir.path()).unwrap();
        store.allow_requests().unwrap();
        let (sink, topic, when) = ("out".to_owned(), None, None);
        let replay = Replay { number: 0, at: 7, sink, position: 0, until: 3, topic, when };
        store.request_replay(&replay).unwrap();
        assert_eq!(next_sent(&mut delivery).await, ["one", "two", "three"]);
        // The first was reported before the stop, the second while the sink closes.
        delivery.outcome(Ok(1));
        delivery.link.sink = Box::new(Reporting::closing_with([(2, 0)]));
        delivery.finish().await;
        assert_eq!(delivery.reader.cursor, 3);
        close(delivery, journal).await;
        let position: Vec<_> =
            store.replays().unwrap().iter().map(|replay| replay.position).collect();
        assert_eq!(position, [2]);
    }

    #[tokio::test]
    async fn a_dead_letter_that_is_accepted_at_a_stop_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = ask_for_letters(dir.path(), 1).await;
        let (mut delivery, journal) = delivery(dir.path());
        assert_eq!(next_sent(&mut delivery).await, ["letter"]);
        delivery.link.sink = Box::new(Reporting::closing_with([(1, 0)]));
        delivery.finish().await;
        close(delivery, journal).await;
        assert_eq!(store.dead_letters(None).unwrap().len(), 0);
    }

    fn queue(delivery: &Delivery) -> Vec<RequestId> {
        delivery.requests.queue.iter().map(Request::id).collect()
    }

    #[tokio::test]
    async fn a_wait_is_ended_by_a_new_request_and_what_is_in_flight_is_not_loaded_again() {
        let dir = tempfile::tempdir().unwrap();
        let (mut delivery, journal) = delivery(dir.path());
        let store = Store::open_reader(dir.path()).unwrap();
        store.allow_requests().unwrap();
        let ask = |number, sink: &str| {
            let (topic, when) = (None, None);
            let replay =
                Replay { number, at: 1, sink: sink.to_owned(), position: 0, until: 9, topic, when };
            store.request_replay(&replay).unwrap();
        };
        ask(1, "out");
        ask(2, "out");
        assert!(delivery.load_requests().await);
        assert_eq!(queue(&delivery), [RequestId::Replay(1), RequestId::Replay(2)]);
        delivery.requests.queue.pop_front();
        delivery.flight.request = Some(Begun::Replay { number: 1, position: Some(5) });
        delivery.waiting.pause(Duration::from_hours(1));

        // Nothing of this is new for this sink.
        ask(3, "another");
        delivery.requested_meanwhile().await;
        assert_eq!(queue(&delivery), [RequestId::Replay(2)]);
        assert!(delivery.waiting.resume_at().is_some(), "the wait goes on");
        ask(4, "out");
        delivery.requested_meanwhile().await;
        assert_eq!(queue(&delivery), [RequestId::Replay(2), RequestId::Replay(4)]);
        assert!(delivery.waiting.resume_at().is_none(), "it is tried now");

        // A replay of which a piece is in flight is not forgotten.
        for number in [2, 4] {
            journal.replay_progress(number, None);
        }
        assert!(!delivery.load_requests().await);
        assert!(delivery.requests.pending);
        close(delivery, journal).await;
    }

    /// Home Assistant gets a tip as three messages, and a broker may reject each of them.
    #[tokio::test]
    async fn an_event_of_several_messages_becomes_one_letter_and_a_retry_sends_it_once() {
        let dir = tempfile::tempdir().unwrap();
        let config = json!({ "type": "mqtt", "start": "earliest" });
        let mut config: SinkConfig = serde_json::from_value(config).unwrap();
        config.settings = json!({ "homeassistant": true });
        config.feeds.insert("main".to_owned(), Described::default());
        let parts = |delivery: &Delivery| {
            delivery.flight.events.iter().map(Outgoing::number).collect::<Vec<_>>()
        };
        let all: [(Seq, u8); 3] = [(1, 0), (1, 1), (1, 2)];
        let rejected =
            || Failure::after(0, Cause::Rejected { reason: "not authorized".to_owned() });

        let (mut delivery, journal) = delivery_as(dir.path(), &config);
        let tip = json!({ "donation": { "user": { "username": "ann" }, "amount": 5 } });
        let (channel, room) = ("main".into(), "room".into());
        journal.append(&mut vec![own("channel.tips", &channel, &room, &tip, clock::now())]);
        let batch = delivery.reader.next(1, true).await.unwrap();
        delivery.take(&batch);
        assert_eq!(parts(&delivery), all);
        delivery.flight.handed = 3;
        for _ in all {
            delivery.outcome(Err(rejected()));
        }
        close(delivery, journal).await;

        let store = || {
            let store = Store::open_reader(dir.path()).unwrap();
            store.allow_requests().unwrap();
            store
        };
        for accepted in [false, true] {
            assert_eq!(store().retry_dead_letters(None, None).unwrap(), 1, "there is one letter");
            let (mut delivery, journal) = delivery_as(dir.path(), &config);
            delivery.prepare().await;
            assert_eq!(parts(&delivery), all, "it goes out once");
            if accepted {
                delivery.flight.handed = 3;
                delivery.outcome(Ok(3));
            } else {
                // What is not sent yet when the first is rejected does not go out.
                delivery.flight.handed = 1;
                delivery.outcome(Err(rejected()));
            }
            delivery.prepare().await;
            assert_eq!(parts(&delivery), []);
            close(delivery, journal).await;
        }
        assert_eq!(store().dead_letters(None).unwrap().len(), 0);
    }

    #[tokio::test]
    async fn a_replay_repeats_what_was_accepted_behind_an_earlier_cursor() {
        let dir = tempfile::tempdir().unwrap();
        let (mut delivery, journal) = delivery(dir.path());
        let event = || own("relay.gap", &"".into(), &"".into(), &json!({}), 1);
        journal.append(&mut vec![event(), event()]);
        delivery.reader.cursor = 2;
        delivery.reader.accepted.remember([1]);
        let (sink, topic, when) = ("out".to_owned(), None, None);
        let replay = Replay { number: 1, at: 1, sink, position: 0, until: 2, topic, when };
        delivery.replay(&replay).await;
        let seqs: Vec<Seq> = delivery.flight.events.iter().map(|event| event.record.seq).collect();
        assert_eq!(seqs, [1, 2]);
        close(delivery, journal).await;
    }

    #[tokio::test]
    async fn a_replay_has_a_name_that_outlives_a_crash_and_a_backlog_has_none() {
        let dir = tempfile::tempdir().unwrap();
        let (mut delivery, journal) = delivery(dir.path());
        journal.append(&mut vec![own("relay.gap", &"".into(), &"".into(), &json!({}), 1)]);
        delivery.reader.cursor = 1;
        let store = Store::open_reader(dir.path()).unwrap();
        store.allow_requests().unwrap();
        for at in [0, 7] {
            let (sink, topic, when) = ("out".to_owned(), None, None);
            let replay = Replay { number: 0, at, sink, position: 0, until: 1, topic, when };
            store.request_replay(&replay).unwrap();
        }
        let (_, asked) = journal.pending_requests("out").unwrap();
        let mut handed = Vec::new();
        // The second time as after a crash, which may come before how far they are is written.
        for replay in asked.iter().chain(&asked) {
            delivery.replay(replay).await;
            let record = &delivery.flight.events.back().unwrap().record;
            handed.push((record.event.origin, record.replay.clone()));
        }
        let backlog: (Origin, Option<Arc<str>>) = (Origin::Live, None);
        let replay: (Origin, Option<Arc<str>>) = (Origin::Replayed, Some("7-2".into()));
        assert_eq!(handed, [backlog.clone(), replay.clone(), backlog, replay]);
        close(delivery, journal).await;
    }

    #[tokio::test]
    async fn what_is_gone_of_a_backlog_is_lost_and_of_a_replay_that_was_asked_for_it_is_not() {
        let journal = Journal::in_memory(20_000);
        let config: SinkConfig = serde_json::from_value(json!({ "type": "stdout" })).unwrap();
        let route = Route::new("out", &config, sink::kind(&config.kind).unwrap()).unwrap();
        let (sink, status) = (Box::new(Reporting::default()), Arc::new(Status::default()));
        let own_journal = journal.clone();
        let mut delivery =
            Delivery::new("out", &config, sink, route, own_journal, Arc::clone(&status)).unwrap();
        status.sink("out", |row| row.state = "up");
        let event = || own("t", &"".into(), &"".into(), &json!({}), clock::now());
        journal.append(&mut (0..500).map(|_| event()).collect());
        delivery.reader.cursor = 500;
        let gone = journal.figures().oldest - 1;
        let lost = || status.read(|now| now.sinks["out"].lost);
        for (at, expected) in [(7, 0), (0, gone)] {
            let (sink, topic, when) = ("out".to_owned(), None, None);
            let replay = Replay { number: 1, at, sink, position: 0, until: 500, topic, when };
            delivery.replay(&replay).await;
            assert_eq!(lost(), expected);
        }
        let reports = journal.read(500, 600, 10, 1 << 20).await.unwrap().records;
        assert_eq!(reports.len(), 1, "one gap");
        let report: serde_json::Value = serde_json::from_slice(reports[0].event.data()).unwrap();
        assert_eq!((&report["sink"], &report["count"]), (&json!("out"), &json!(gone)));
    }

    #[tokio::test]
    async fn a_replayed_event_that_was_rejected_is_tried_again_under_a_name_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let (mut delivery, journal) = delivery(dir.path());
        let event = own("relay.gap", &"".into(), &"".into(), &json!({}), 1);
        let record = replayed(&Record::new(1, event), None);
        let (sink, reason) = ("out".to_owned(), String::new());
        let letter = DeadLetter { number: 3, sink, at: 9, reason, retry: true, record };
        delivery.try_again(&letter);
        let name = delivery.flight.events.back().unwrap().record.replay.clone();
        assert_eq!(name.as_deref(), Some("letter-9-3"));
        close(delivery, journal).await;
    }

    #[tokio::test]
    async fn a_dead_letter_that_is_older_than_max_age_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let config = json!({ "type": "stdout", "start": "earliest", "max_age": "30s" });
        let config: SinkConfig = serde_json::from_value(config).unwrap();
        let store = || Store::open_reader(dir.path()).unwrap();
        let (delivery, journal) = delivery_as(dir.path(), &config);
        let event = own("relay.gap", &"".into(), &"".into(), &json!({}), 1);
        journal.dead_letter("out", &Arc::new(Record::new(1, event)), "too large");
        close(delivery, journal).await;

        let letter = store().dead_letters(None).unwrap().pop().unwrap();
        let waited = Waited::already(Duration::from_hours(1));
        let record = Arc::new(Record { waited, ..Record::clone(&letter.record) });
        let (mut delivery, journal) = delivery_as(dir.path(), &config);
        delivery.try_again(&DeadLetter { record, ..letter });
        let expire: Vec<_> = delivery.flight.events.iter().map(|event| event.expires_in).collect();
        assert_eq!(expire, [None], "it goes out");
        delivery.flight.handed = 1;
        delivery.outcome(Ok(1));
        close(delivery, journal).await;
        assert_eq!(store().dead_letters(None).unwrap().len(), 0);
    }
}
