//! The one loop: from the journal to a sink.
//!
//! It reads what comes next, renders it, sends it, and moves the cursor over what the destination has
//! accepted. Retry, backoff, the breaker, dead letters and replays are here, the same for every kind of
//! sink.
//!
//! One turn of the loop does one thing and waits in one place: for acknowledgements, for more to send, for
//! a request, for the end of a wait. So it can be stopped between any two events, and while events wait
//! ([`waiting`]: the destination asks for patience, or denies us) the connection is kept alive.
//!
//! What is sent and not yet saved as accepted never exceeds the sink's window, so a crash at any moment
//! repeats no more than that. Order is kept: whatever fails, the events go out again from the first that
//! was not accepted, and nothing overtakes it. An event that is to become a dead letter is in the window,
//! too, until it is saved; nothing behind it goes out before.

mod accepted;
mod condition;
mod dead_letters;
mod flight;
pub mod ha_event;
pub mod health;
pub(crate) mod losses;
mod outcome;
mod reader;
pub mod replay_preview;
mod requests;
pub mod route;
pub mod source;
pub mod status;
mod suspicion;
pub mod task;
pub mod test_event;
mod waiting;

use std::{
    any::Any,
    collections::BTreeSet,
    panic::{AssertUnwindSafe, resume_unwind},
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt as _;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::{
    condition::ConditionLog,
    flight::{Flight, Undeliverable},
    losses::RejectedForGood,
    reader::Reader,
    requests::Requests,
    source::{JournalSource, Source},
    suspicion::{QUIET, Suspicion},
    waiting::Waiting,
};
use crate::{
    base::{
        clock,
        event::{Record, Seq},
        metrics::SinkMetrics,
    },
    config::{SinkConfig, pasted::shown_address},
    delivery::{
        route::{Rendered, Route},
        status::Status,
    },
    journal::{Batch, Journal, StoreError},
    sink::{Cause, Failure, Outgoing, Sink},
};

/// Why a wait is over before its time.
const ASKED: &str = "requested";
const SLEPT: &str = "the machine was suspended meanwhile";

/// How long to wait where nothing may be handed out.
const NOT_OURS: Duration = Duration::from_millis(100);

/// How long to wait for a journal that cannot be read at the moment.
const JOURNAL_RETRY: Duration = Duration::from_millis(200);

/// At a stop, what is in flight has so long to be acknowledged. With [`CLOSE`] it is less than the
/// supervisor gives.
const FINISH: Duration = Duration::from_secs(5);

/// At a stop, the sink has so long beyond that to close its connection.
const CLOSE: Duration = Duration::from_secs(2);

/// A sink enforces its own timeout. This limit around it, a multiple of that timeout, catches a sink that
/// hangs.
const HUNG: u32 = 4;

/// The state of a sink whose task has failed.
const FAILED: &str = "failed";

/// One sink's delivery.
pub struct Delivery {
    row: StatusRow,
    config: SinkConfig,
    link: Link,
    route: Route,
    reader: Reader,
    flight: Flight,
    requests: Requests,
    waiting: Waiting,
    suspicion: Suspicion,
    rejected: RejectedForGood,
}

/// Where it is shown how a sink is doing.
struct StatusRow {
    name: Arc<str>,
    status: Arc<Status>,
    metrics: SinkMetrics,
    condition: ConditionLog,
}

impl StatusRow {
    fn show(&self, change: impl FnOnce(&mut status::Sink)) {
        self.status.sink(&self.name, change);
    }
}

/// The sink, and whether it is connected.
struct Link {
    sink: Box<dyn Sink>,
    connected: bool,
    /// When something was last acknowledged, or sent with nothing in flight.
    silent_since: Instant,
    /// Whether it is shown that this was too long ago.
    unanswered: bool,
    /// Since the stop: when what is in flight is given up.
    give_up: Option<Instant>,
}

impl std::fmt::Debug for Delivery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Delivery({} at {})", self.row.name, self.reader.cursor)
    }
}

impl Delivery {
    /// A delivery that continues at the sink's cursor.
    pub fn new(
        name: &str,
        config: &SinkConfig,
        sink: Box<dyn Sink>,
        route: Route,
        journal: Journal,
        status: Arc<Status>,
    ) -> Result<Self, StoreError> {
        let source = Arc::new(JournalSource::new(journal, name, config.start)?);
        Ok(Self::from_source(name, config, sink, route, source, status))
    }

    /// A delivery that continues where that source has its cursor.
    pub fn from_source(
        name: &str,
        config: &SinkConfig,
        sink: Box<dyn Sink>,
        route: Route,
        source: Arc<dyn Source>,
        status: Arc<Status>,
    ) -> Self {
        let session = crate::sink::kind(&config.kind).is_none_or(|kind| kind.session);
        let mut waiting = Waiting::new(config.backoff_max.0, session);
        status.sink(name, |row| {
            row.kind.clone_from(&config.kind);
            let url = config.settings.get("url").and_then(serde_json::Value::as_str);
            row.address = url.map(shown_address).unwrap_or_default();
            // Another configuration may be in force now.
            row.forget_findings();
            if row.state == FAILED {
                // Made again after that: it has not worked yet.
                waiting.failed_before(row.last_error.clone().unwrap_or_default());
            } else {
                row.state = "connecting";
                row.since = clock::now();
            }
        });
        let metrics = SinkMetrics::new(name);
        let requests = Requests::new(source.requests(), status.retries(name));
        let name = Arc::from(name);
        Self {
            reader: Reader::new(source, config.window),
            row: StatusRow { name, status, metrics, condition: ConditionLog::default() },
            config: config.clone(),
            link: Link {
                sink,
                connected: false,
                silent_since: Instant::now(),
                unanswered: false,
                give_up: None,
            },
            route,
            flight: Flight::default(),
            requests,
            waiting,
            suspicion: Suspicion::default(),
            rejected: RejectedForGood::default(),
        }
    }

    /// Delivers until it is stopped. What is in flight then is finished, within limits. A panic is shown on
    /// the page and goes on to the supervisor.
    pub async fn run(self, stop: CancellationToken) {
        let (name, status) = (Arc::clone(&self.row.name), Arc::clone(&self.row.status));
        if let Err(panic) = AssertUnwindSafe(self.work(stop)).catch_unwind().await {
            let text = format!("the sink's task has failed: {}", message(&*panic));
            error!(sink = %name, error = text, "the sink is down; the others go on");
            SinkMetrics::new(&name).up(false);
            status.sink(&name, |row| {
                row.state = FAILED;
                row.since = clock::now();
                row.last_error = Some(text);
                row.last_error_at = Some(clock::now());
            });
            resume_unwind(panic);
        }
    }

    async fn work(mut self, stop: CancellationToken) {
        self.reader.accepted.load().await;
        while !stop.is_cancelled() {
            self.turn(&stop).await;
        }
        self.finish().await;
        self.report_rejected(true);
        self.row.metrics.up(false);
    }

    /// Does the next thing that can be done, or waits until there is one.
    async fn turn(&mut self, stop: &CancellationToken) {
        if self.requests.have_changed() {
            self.requested_meanwhile().await;
        }
        self.write_dead_letters();
        self.report_rejected(false);
        if self.waiting.resume() {
            self.disconnect();
        }
        if !self.link.connected {
            return self.connect(stop).await;
        }
        if self.flight.handed == 0 && self.waiting.resume_at().is_none() {
            self.prepare().await;
            if !self.link.connected {
                return;
            }
        }
        if self.waiting.resume_at().is_some() {
            return self.wait(stop).await;
        }
        if self.may_read() {
            let limit = self.reader.room(self.flight.size());
            if let Some(batch) = self.reader.ready(limit) {
                self.take(&batch);
            }
        }
        self.drop_expired();
        if self.sendable() > 0 {
            return self.send(stop).await;
        }
        // With nothing in flight, a request is what comes next, and nothing else would end the wait.
        let requested = self.flight.is_empty()
            && (self.flight.request.is_some() || self.requests.are_due(self.reader.has_more()));
        if !requested {
            self.wait(stop).await;
        }
    }

    /// With nothing in flight: decides whether one event has ended the connection again and again, renders
    /// again what was rendered long ago (it may have become too old), and begins a request.
    async fn prepare(&mut self) {
        self.try_accused().await;
        if std::mem::take(&mut self.flight.stale) && self.flight.request.is_none() {
            self.render_again();
        }
        if self.letters_have_no_room()
            && self.requests.are_due(false)
            && self.load_requests().await
            && self.requests.next_is_a_letter()
        {
            // A letter that is accepted makes room: it does not wait for the event that waits for that.
            self.read_again();
        }
        if self.flight.is_empty() {
            self.flight_is_done();
            if self.requests.are_due(self.reader.has_more()) {
                self.begin_request().await;
            }
        }
        self.write_dead_letters();
    }

    /// Whether more events may join the flight.
    fn may_read(&self) -> bool {
        self.waiting.resume_at().is_none()
            && self.flight.request.is_none()
            && self.flight.handed == self.flight.events.len()
            && self.flight.undeliverable.is_empty()
            && !self.requests.are_due(true)
    }

    /// How many more events may be sent now.
    fn sendable(&self) -> usize {
        if self.flight.full {
            return 0;
        }
        let count = self.flight.sendable();
        match self.flight.head() {
            Some(head) if self.suspicion.isolates(head) => {
                count.min(1_usize.saturating_sub(self.flight.handed))
            }
            _ => count,
        }
    }

    /// Sends what may be sent. A stop gives it up after a while.
    async fn send(&mut self, stop: &CancellationToken) {
        if !self.reader.source.may_send() {
            // Somebody else may hand them out by now; whoever has noticed ends this delivery.
            return sleep(NOT_OURS).await;
        }
        let (count, handed) = (self.sendable(), self.flight.handed);
        let (front, back) = self.flight.events.as_slices();
        let rest = match handed.checked_sub(front.len()) {
            None => front.get(handed..),
            Some(handed) => back.get(handed..),
        };
        let rest = rest.unwrap_or_default();
        let events = rest.get(..count).unwrap_or(rest);
        let limit = self.config.timeout.0.saturating_mul(HUNG);
        let give_up = &mut self.link.give_up;
        let outcome = tokio::select! {
            biased;
            outcome = timeout(limit, self.link.sink.send(events)) => outcome,
            () = async {
                stop.cancelled().await;
                sleep_until(*give_up.get_or_insert_with(|| Instant::now() + FINISH)).await;
            } => return,
        };
        let asked = events.len();
        if handed == 0 {
            self.link.silent_since = Instant::now();
        }
        match outcome {
            Ok(Ok(0)) if handed == 0 => {
                self.failure(&Failure::down(
                    "the sink took no event although nothing was in flight",
                ));
            }
            Ok(Ok(sent)) => {
                self.flight.handed += sent.min(asked);
                self.flight.full = sent < asked;
            }
            Ok(Err(failure)) => {
                // What it concerns counts as in flight.
                self.flight.handed += 1;
                self.failure(&failure);
                self.flight.recall();
            }
            Err(_) => self.failure(&hung()),
        }
    }

    /// Waits for whatever comes first.
    async fn wait(&mut self, stop: &CancellationToken) {
        let paused = self.waiting.resume_at();
        let (request, report) = (self.requests.resume_at(), self.rejected.due());
        let alone = self.flight.is_empty();
        let may_read = self.may_read();
        let limit = if may_read { self.reader.room(self.flight.size()) } else { 0 };
        let saving = (may_read && limit == 0 && self.reader.is_unsaved())
            || !self.flight.undeliverable.is_empty();
        let silent = (self.flight.handed > 0)
            .then(|| self.link.silent_since + self.config.timeout.0.saturating_mul(HUNG));
        let unanswered = self.unanswered_at();
        if paused.is_none() && alone && self.requests.are_due(self.reader.has_more()) {
            return;
        }
        let mut progress = self.reader.progress.clone();
        let mut sleeps = clock::sleeps();
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            Ok(()) = self.requests.retries.changed() => self.try_now(ASKED),
            outcome = self.link.sink.acknowledged() => self.outcome(outcome),
            batch = self.reader.next(limit, alone), if limit > 0 => match batch {
                Ok(batch) => self.take(&batch),
                Err(failure) => self.unreadable(&failure).await,
            },
            Ok(()) = progress.changed(), if saving => {}
            Ok(()) = self.requests.changed.changed() => self.requested_meanwhile().await,
            () = clock::until(paused) => {}
            () = clock::until(request) => {}
            () = clock::until(report) => {}
            Ok(()) = sleeps.changed(), if paused.or(request).is_some() => self.try_now(SLEPT),
            () = clock::until(silent) => self.failure(&hung()),
            () = clock::until(unanswered) => self.unanswered(),
        }
        if saving {
            self.reader.progress = progress;
        }
    }

    /// Whatever is waited for, it is tried now.
    fn try_now(&mut self, why: &'static str) {
        info!(sink = %self.row.name, why, "tried at once");
        self.requests.try_now();
        if self.waiting.try_now() {
            self.disconnect();
        }
    }

    /// At a stop: what is in flight is waited for, as far as it goes, and what the destination has accepted
    /// is remembered, so that the next task does not repeat it.
    async fn finish(&mut self) {
        let until = *self.link.give_up.get_or_insert_with(|| Instant::now() + FINISH);
        let closed =
            timeout_at(until + CLOSE.min(self.config.timeout.0), self.link.sink.close(until)).await;
        let Ok(accepted): Result<BTreeSet<_>, _> = closed.map(BTreeSet::from_iter) else {
            warn!(sink = %self.row.name, "the sink did not close in time");
            self.leave_request();
            return;
        };
        let is_accepted = |event: &&Outgoing| accepted.contains(&event.number());
        let first = self.flight.events.iter().take_while(is_accepted).count();
        self.accepted(first);
        if self.leave_request() {
            return;
        }
        // An event is accepted when all of its messages are.
        let rest = || self.flight.events.iter();
        let open: BTreeSet<Seq> =
            rest().filter(|event| !is_accepted(event)).map(|event| event.record.seq).collect();
        let mut behind: Vec<Seq> =
            rest().map(|event| event.record.seq).filter(|seq| !open.contains(seq)).collect();
        behind.extend(self.flight.behind.iter().filter(|seq| !open.contains(seq)));
        self.reader.accepted.remember(behind);
    }

    /// Connects, or waits until it is time to.
    async fn connect(&mut self, stop: &CancellationToken) {
        if let Some(at) = self.waiting.reconnect_at() {
            let mut sleeps = clock::sleeps();
            let saving = !self.flight.undeliverable.is_empty();
            tokio::select! {
                () = stop.cancelled() => {}
                () = sleep_until(at) => {}
                Ok(()) = sleeps.changed() => self.try_now(SLEPT),
                Ok(()) = self.requests.retries.changed() => self.try_now(ASKED),
                Ok(()) = self.requests.changed.changed() => self.requested_meanwhile().await,
                // A dead letter may find room.
                Ok(()) = self.reader.progress.changed(), if saving => {}
            }
            return;
        }
        let connecting = timeout(self.config.timeout.0, self.link.sink.connect());
        let Some(connected) = stop.run_until_cancelled(connecting).await else { return };
        match connected {
            Ok(Ok(())) => self.connected(),
            Ok(Err(failure)) => self.failed(&failure.cause, true),
            Err(_) => {
                let cause = Cause::Down("no connection within the sink's timeout".into());
                self.failed(&cause, true);
            }
        }
    }

    fn connected(&mut self) {
        self.link.connected = true;
        self.flight.stale = true;
        self.report();
        self.waiting.connected();
        if self.waiting.fault.is_none() {
            info!(sink = %self.row.name, "connected");
        }
        let isolates = self.flight.head().is_some_and(|head| self.suspicion.isolates(head));
        if self.waiting.session && isolates {
            self.waiting.pause(QUIET);
        }
        self.show();
    }

    /// Nothing goes over this connection any more.
    fn disconnect(&mut self) {
        self.link.connected = false;
        self.flight.recall();
    }

    /// Takes a batch that was read into the flight.
    fn take(&mut self, batch: &Batch) {
        if batch.lost > 0 {
            self.lost(batch.lost);
            // Reported once: the cursor steps over the missing ones before anything else can fail.
            let before = batch.records.first().map_or(batch.through, |first| first.seq - 1);
            self.reader.advance(before, 0);
        }
        self.render(&batch.records);
        self.reader.taken(batch.through);
        self.requests.yielded = false;
        self.write_dead_letters();
        if self.flight.is_empty() {
            self.flight_is_done();
        }
    }

    /// Renders events to the end of the flight.
    fn render(&mut self, records: &[Arc<Record>]) {
        let (mut matched, mut skipped) = (0, [0_u64; 4]);
        // What is asked for goes out, whether or not the destination has it.
        let new = self.flight.request.is_none();
        let is_left_out = |seq| new && self.reader.accepted.has(seq);
        for record in records.iter().filter(|record| !is_left_out(record.seq)) {
            match self.route.render(record) {
                Rendered::Wanted(event, ha_events) => {
                    matched += 1;
                    self.flight.push(event, ha_events);
                }
                Rendered::Skipped(skip) => {
                    if let Some(count) = skipped.get_mut(skip as usize) {
                        *count += 1;
                    }
                }
                Rendered::Failed(reason) => {
                    matched += 1;
                    let record = Arc::clone(record);
                    self.flight.undeliverable.push_back(Undeliverable { record, reason });
                }
            }
        }
        for (skip, count) in route::SKIPS.iter().zip(skipped) {
            self.row.metrics.filtered(skip.as_str(), count);
        }
        let [_, condition, errors, _] = skipped;
        self.condition_was(matched, condition, errors);
    }

    fn render_again(&mut self) {
        let first = self.flight.head();
        let events = self.flight.take_events();
        // Of the first, some messages may be accepted.
        let done = events.front().map_or(0, |head| head.part);
        let mut records: Vec<_> = events.into_iter().map(|event: Outgoing| event.record).collect();
        records.dedup_by_key(|record| record.seq);
        self.render(&records);
        while self
            .flight
            .events
            .front()
            .is_some_and(|event| Some(event.record.seq) == first && event.part < done)
        {
            self.flight.pop();
        }
    }

    /// All of the flight is dealt with.
    fn flight_is_done(&mut self) {
        self.flight.forget_rejected();
        if let Some(begun) = self.flight.request.take() {
            self.request_is_done(&begun);
        } else {
            // What stands behind the last that went out was not wanted.
            self.reader.advance_to_read();
        }
        if self.waiting.fault.as_ref().is_some_and(|fault| fault.state != "rejecting") {
            // Nothing is left that it is about.
            self.worked();
        }
    }

    /// The journal cannot be read at the moment.
    async fn unreadable(&mut self, failure: &StoreError) {
        self.waiting.complain(&self.row.name, "journal", &failure.to_string(), JOURNAL_RETRY);
        sleep(JOURNAL_RETRY).await;
    }
}

/// A sink that has not answered within the limit.
fn hung() -> Failure {
    Failure::down("the sink has not answered within four times its timeout")
}

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic")
}

/// A cause with what lies behind it, in one line.
pub(crate) fn describe(cause: &Cause) -> String {
    match cause {
        // The state of the sink says that it is down.
        Cause::Down(error) => crate::base::fault::explain(&**error),
        cause => crate::base::fault::explain(cause),
    }
}
