//! The one loop: from the journal to a sink.
//!
//! It reads what comes next, renders it, hands it over in batches, and moves the cursor over what the
//! destination has accepted. Retry, backoff, the breaker, dead letters and replays are here, the same for
//! every kind of sink. A sink that can have more than one batch on its way gets the next before the one
//! before is answered for: what is on its way is the flight.
//!
//! A sink with `state = true` also has its destination keep the live state ([`crate::publish::keeping`]): between two
//! batches what has changed is said, and never through the journal.
//!
//! One turn of the loop does one thing and waits in one place. While events wait ([`waiting`]: the
//! destination asks for patience, or denies us), everything else goes on: the connection is kept alive,
//! its commands are heard, the state is said, and whoever asks for something is heard.
//!
//! The one thing to know: what is sent and not yet saved as accepted never exceeds the sink's window,
//! so a crash at any moment repeats no more than that. Order is kept: whatever fails, the flight goes out
//! again from the first that was not accepted, and nothing overtakes it. An event that is to be set aside
//! is in the window, too, until it is written down; nothing behind it goes out before.

mod answered;
pub mod ha_event;
mod requests;
pub mod route;
mod set_aside;
mod suspicion;
pub mod task;
mod waiting;

use std::{
    any::Any,
    collections::VecDeque,
    panic::{AssertUnwindSafe, resume_unwind},
    sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt as _, future::BoxFuture};
use serde_json::json;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::{
    answered::Answered,
    requests::{Begun, Errand},
    set_aside::{Accused, Aside},
    suspicion::{QUIET, Suspicion},
    waiting::Waiting,
};
use crate::{
    base::{
        clock,
        event::{self, Record, Seq},
        metrics::SinkMetrics,
    },
    channel::board::Board,
    config::SinkConfig,
    delivery::route::{Rendered, Route},
    gateway::status::Status,
    journal::{Batch, Journal, StoreError},
    publish::keeping::Keeping,
    sink::{Cause, Failure, Outgoing, Sink},
};

/// Bytes of events in one batch, about: half a window of small ones. Most sinks wait for the destination's
/// answer to a batch, so a flood goes out the faster the more is in each: half as much was measured to be
/// slower.
const BATCH_BYTES: usize = 1024 * 1024;

/// Why a wait is over before its time.
const ASKED: &str = "somebody asked for it";
const SLEPT: &str = "the machine slept meanwhile";

/// How long to wait for a journal that cannot be read at the moment.
const JOURNAL_RETRY: Duration = Duration::from_millis(200);

/// At a stop, what is on its way has so long to be answered for. With [`GOODBYE`] it is less than the
/// supervisor gives.
const FINISH: Duration = Duration::from_secs(5);

/// At a stop, the sink has so long to say goodbye.
const GOODBYE: Duration = Duration::from_secs(2);

/// The state of a sink whose task has failed.
const FAILED: &str = "failed";

/// One sink's delivery.
pub struct Delivery {
    name: Arc<str>,
    sink: Box<dyn Sink>,
    route: Route,
    journal: Journal,
    status: Arc<Status>,
    metrics: SinkMetrics,
    window: u64,
    deadline: Duration,
    waiting: Waiting,
    suspicion: Suspicion,
    /// The cursor: all through it is dealt with.
    position: Seq,
    flight: Flight,
    /// How far the journal is read: what lies between the cursor and this is in flight or not wanted.
    read: Seq,
    /// What is read meanwhile, where a sink is waited for and could take more.
    reading: Option<BoxFuture<'static, Result<Batch, StoreError>>>,
    connected: bool,
    /// What was sent and whose cursor is not yet saved: the cursor, and how many events.
    unsaved: VecDeque<(Seq, u64)>,
    /// What the destination had accepted behind the cursor when the task before ended.
    answered: Answered,
    /// What the sink said last of its destination.
    remarks: Vec<String>,
    requests: watch::Receiver<u64>,
    /// Somebody asks for this sink to be tried now.
    retries: watch::Receiver<u64>,
    /// Whether something is asked for that is not done.
    asked: bool,
    /// What is asked for and not begun.
    errands: VecDeque<Errand>,
    /// Whether it is the turn of what is new.
    after_errands: bool,
    /// An event at which the connection has ended often enough.
    accused: Option<Accused>,
    /// Since the stop: when what is on its way is given up.
    give_up: Option<Instant>,
    /// The state that the destination keeps, where it does.
    keeping: Option<Keeping>,
}

/// What goes out, in order.
#[derive(Debug, Default)]
struct Flight {
    events: Vec<Outgoing>,
    /// So many of them, from the first on, are with the sink.
    handed: usize,
    /// What is to be set aside, in order, from before and between the events.
    asides: VecDeque<Aside>,
    /// Whether time has passed since they were rendered.
    late: bool,
    /// What was asked for, where these are no new events.
    errand: Option<Begun>,
}

impl Flight {
    /// Whether nothing is left of it.
    fn is_empty(&self) -> bool {
        self.events.is_empty() && self.asides.is_empty()
    }

    /// How many of the events that are not handed over may be: what is to be set aside goes first.
    fn free(&self) -> usize {
        let rest = self.events.get(self.handed..).unwrap_or_default();
        match self.asides.front() {
            None => rest.len(),
            Some(aside) => {
                rest.iter().take_while(|event| event.record.seq < aside.record.seq).count()
            }
        }
    }
}

impl std::fmt::Debug for Delivery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Delivery({} at {})", self.name, self.position)
    }
}

impl Delivery {
    /// A delivery that goes on where the sink's cursor stands.
    pub fn new(
        name: &str,
        config: &SinkConfig,
        sink: Box<dyn Sink>,
        route: Route,
        journal: Journal,
        status: Arc<Status>,
    ) -> Result<Self, StoreError> {
        let position = journal.register(name, config.start)?;
        let mut waiting = Waiting::new(config.backoff_max.0);
        status.sink(name, |page| {
            page.kind.clone_from(&config.kind);
            if page.state == FAILED {
                // Made again after that: it has not worked yet.
                waiting.failed_before(page.last_error.clone().unwrap_or_default());
            } else {
                page.state = "connecting";
                page.since = clock::now();
            }
        });
        Ok(Self {
            name: name.into(),
            sink,
            route,
            metrics: SinkMetrics::new(name),
            requests: journal.requests(),
            retries: status.retries(name),
            asked: true,
            errands: VecDeque::new(),
            after_errands: false,
            accused: None,
            give_up: None,
            answered: Answered::new(name, journal.clone()),
            journal,
            status,
            window: u64::try_from(config.window.max(1)).unwrap_or(u64::MAX),
            deadline: config.timeout.0,
            waiting,
            suspicion: Suspicion::default(),
            position,
            flight: Flight::default(),
            read: position,
            reading: None,
            connected: false,
            unsaved: VecDeque::new(),
            remarks: Vec::new(),
            keeping: None,
        })
    }

    /// The same, and the destination keeps what stands on `board`. Blocks on the disk.
    pub fn keeping(mut self, board: Arc<Board>) -> Result<Self, StoreError> {
        self.keeping = Some(Keeping::new(&self.name, board, self.journal.clone())?);
        Ok(self)
    }

    /// Delivers until it is told to stop. What is on its way then is finished, within limits. A panic is
    /// told on the page and goes on to the supervisor.
    pub async fn run(self, stop: CancellationToken) {
        let (name, status) = (Arc::clone(&self.name), Arc::clone(&self.status));
        if let Err(panic) = AssertUnwindSafe(self.work(stop)).catch_unwind().await {
            let text = format!("the sink's task has failed: {}", message(&*panic));
            error!(sink = %name, error = text, "the sink is down; the others go on");
            SinkMetrics::new(&name).up(false);
            status.sink(&name, |page| {
                page.state = FAILED;
                page.since = clock::now();
                page.last_error = Some(text);
                page.last_error_at = Some(clock::now());
            });
            resume_unwind(panic);
        }
    }

    async fn work(mut self, stop: CancellationToken) {
        self.answered.load().await;
        let mut progress = self.journal.progress();
        while !stop.is_cancelled() {
            self.turn(&mut progress, &stop).await;
        }
        self.finish().await;
        let end = Instant::now() + self.deadline.min(GOODBYE);
        self.farewell(end).await;
        if timeout_at(end, self.sink.close()).await.is_err() {
            warn!(sink = %self.name, "the sink did not close in time");
        }
        self.metrics.up(false);
    }

    async fn turn(&mut self, progress: &mut watch::Receiver<u64>, stop: &CancellationToken) {
        self.look_for_requests();
        self.set_asides();
        if self.waiting.resume() {
            self.disconnect();
        }
        if !self.connected {
            return self.connect(progress, stop).await;
        }
        if self.flight.handed > 0 {
            return self.go_on(progress, stop).await;
        }
        self.keep().await;
        if !self.connected {
            return;
        }
        if self.waiting.resume_at().is_none() {
            self.judge().await;
            self.prepare().await;
            self.set_asides();
            if !self.connected {
                return;
            }
            if self.next_count() > 0 {
                return self.send(stop).await;
            }
            if self.flight.is_empty() && self.flight.errand.is_some() {
                // Nothing of it is to go out.
                return;
            }
        }
        self.wait(progress, stop).await;
    }

    /// With nothing on its way: takes up what is asked for, and renders again what was rendered long ago,
    /// for it may have become too old meanwhile.
    async fn prepare(&mut self) {
        if std::mem::take(&mut self.flight.late) && self.flight.errand.is_none() {
            let records: Vec<_> =
                self.flight.events.iter().map(|one| Arc::clone(&one.record)).collect();
            self.flight.events = self.render(&records);
        }
        if self.flight.is_empty() {
            self.landed();
            self.next_errand().await;
        }
    }

    /// All of the flight is dealt with.
    fn landed(&mut self) {
        if let Some(begun) = self.flight.errand.take() {
            self.done(&begun);
        } else {
            // What stands behind the last that went out was not wanted.
            self.moved(self.read, 0);
        }
        if self.waiting.trouble.as_ref().is_some_and(|trouble| trouble.state != "rejecting") {
            // Nothing is left that it is about.
            self.worked();
        }
    }

    /// How many more events may be handed over now.
    fn next_count(&self) -> usize {
        let Flight { events, handed, .. } = &self.flight;
        let Some(first) = events.first() else { return 0 };
        if self.suspicion.isolates(first.record.seq) {
            return self.flight.free().min(1).saturating_sub(*handed);
        }
        let room = self.sink.room(events.get(..*handed).unwrap_or_default());
        self.flight.free().min(room.unwrap_or(usize::MAX))
    }

    /// Hands over what may be handed over, behind what is on its way.
    async fn send(&mut self, stop: &CancellationToken) {
        let fresh = self.next_count();
        let handed = self.flight.handed + fresh;
        self.call(handed, fresh, stop).await;
    }

    /// One call of the sink with the first `handed` of the flight, the last `fresh` of which are new. A
    /// stop gives it up after a while.
    async fn call(&mut self, handed: usize, fresh: usize, stop: &CancellationToken) {
        self.flight.handed = handed;
        let flight = self.flight.events.get(..handed).unwrap_or_default();
        let calling = timeout(limit(self.deadline, handed), self.sink.deliver_ahead(flight, fresh));
        let give_up = &mut self.give_up;
        let stopped = async {
            stop.cancelled().await;
            sleep_until(*give_up.get_or_insert_with(|| Instant::now() + FINISH)).await;
        };
        let outcome = tokio::select! {
            biased;
            outcome = calling => outcome,
            () = stopped => {
                // What has come of it, the sink may know.
                self.flight.handed = 0;
                return;
            }
        };
        self.outcome(outcome.unwrap_or_else(|_| Err(no_timeout())), fresh);
    }

    /// What came of a call.
    fn outcome(&mut self, outcome: Result<usize, Failure>, fresh: usize) {
        let failure = match outcome {
            Ok(0) if fresh == 0 => Failure::down("the sink has nothing on its way"),
            Ok(accepted) => {
                if accepted > 0 {
                    self.accepted(accepted);
                    self.worked();
                }
                return;
            }
            Err(failure) => failure,
        };
        let alone = self.flight.handed == 1 && failure.accepted == 0;
        self.accepted(failure.accepted);
        self.flight.handed = 0;
        if failure.accepted > 0 {
            self.worked();
        }
        let head = self.flight.events.first().map(|head| head.record.seq);
        match (&failure.cause, head) {
            (Cause::Rejected { reason }, Some(_)) => {
                let event = self.flight.events.remove(0);
                self.set_aside(event.record, reason.clone());
                // A destination that refuses is there.
                self.refused(reason);
            }
            // It has taken all there was: there is nothing to refuse or to wait for.
            (Cause::Rejected { .. } | Cause::Busy { .. }, None) => self.worked(),
            (cause, head) => {
                let closed = cause.is_closed_by_peer();
                self.failed(cause, false);
                if let (true, Some(seq)) = (closed, head) {
                    self.suspect(seq, alone, cause);
                }
            }
        }
    }

    /// Something is on its way: more goes out behind it, where more is there and nothing else is to be done
    /// first; or else an answer is waited for.
    async fn go_on(&mut self, progress: &mut watch::Receiver<u64>, stop: &CancellationToken) {
        if self.next_count() > 0 {
            return self.send(stop).await;
        }
        let due = self.keeping.as_ref().is_some_and(Keeping::is_due);
        let rest = self.flight.handed < self.flight.events.len() || !self.flight.asides.is_empty();
        let busy = due || rest || self.asked || !self.errands.is_empty();
        let more = !busy && self.flight.errand.is_none();
        let limit = if more { self.free() } else { 0 };
        let several = self.sink.room(&self.flight.events).is_some();
        if more && limit == 0 && !self.unsaved.is_empty() && !several {
            // A cursor is saved within milliseconds; an answer may take much longer, and meanwhile there
            // would be room for more.
            tokio::select! {
                () = stop.cancelled() => {}
                Ok(()) = progress.changed() => {}
            }
            return;
        }
        if limit > 0 && self.reading.is_none() {
            let ready = self.journal.try_next(self.read, limit, BATCH_BYTES);
            if let Some(batch) = ready.filter(|batch| batch.lost == 0) {
                return self.take(&batch);
            }
        }
        if several {
            self.wait_for_an_answer(limit, progress, stop).await;
        } else {
            self.call(self.flight.handed, 0, stop).await;
        }
    }

    /// Waits for an answer of a sink that can be given up waiting for: until there is something else to do.
    async fn wait_for_an_answer(
        &mut self,
        limit: usize,
        progress: &mut watch::Receiver<u64>,
        stop: &CancellationToken,
    ) {
        let handed = self.flight.handed;
        if limit > 0 && self.reading.is_none() {
            let (journal, after) = (self.journal.clone(), self.read);
            self.reading =
                Some(async move { journal.next(after, limit, BATCH_BYTES).await }.boxed());
        }
        let flight = self.flight.events.get(..handed).unwrap_or_default();
        tokio::select! {
            () = stop.cancelled() => {}
            outcome = timeout(self::limit(self.deadline, handed), self.sink.deliver_ahead(flight, 0)) => {
                self.outcome(outcome.unwrap_or_else(|_| Err(no_timeout())), 0);
            }
            batch = read(&mut self.reading), if limit > 0 => match batch {
                Ok(batch) if batch.lost == 0 => self.take(&batch),
                // It is read again when nothing is on its way: only then the hole can be stepped over.
                Ok(_) => {}
                Err(failure) => self.unreadable(&failure).await,
            },
            Ok(()) = progress.changed(), if limit == 0 => {}
            Ok(()) = self.requests.changed() => self.asked = true,
        }
    }

    /// Waits with nothing on its way, until there is something to do.
    async fn wait(&mut self, progress: &mut watch::Receiver<u64>, stop: &CancellationToken) {
        let paused = self.waiting.resume_at();
        let idle = paused.is_none() && self.flight.is_empty() && self.flight.errand.is_none();
        let limit = if idle { self.free() } else { 0 };
        self.reading = None;
        self.after_errands = false;
        // What is asked for goes on when nothing new is there to go between.
        let new = limit > 0 && self.journal.figures().last > self.read;
        let asked = idle && self.asked && !new;
        let next = self.journal.next(self.read, limit, BATCH_BYTES);
        let mut sleeps = clock::sleeps();
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            Ok(()) = self.retries.changed() => self.try_now(ASKED),
            batch = next, if limit > 0 => match batch {
                Ok(batch) => self.take(&batch),
                Err(failure) => self.unreadable(&failure).await,
            },
            Ok(()) = progress.changed(), if limit == 0 => {}
            Ok(()) = self.requests.changed() => self.asked_meanwhile().await,
            () = std::future::ready(()), if asked => {}
            () = due(&mut self.keeping) => {}
            () = wait_until(paused), if paused.is_some() => {}
            Ok(()) = sleeps.changed(), if paused.is_some() => self.try_now(SLEPT),
            failure = self.sink.idle() => {
                self.suspicion.excused();
                self.failed(&failure.cause, false);
            }
        }
    }

    /// Somebody asks for something of some sink. If it is this one, a wait is over: whoever asks knows why.
    async fn asked_meanwhile(&mut self) {
        self.asked = true;
        let waits = self.waiting.resume_at().is_some() || self.waiting.reconnect_at().is_some();
        if waits && self.load_errands().await {
            self.try_now(ASKED);
        }
    }

    /// Whatever is waited for, it is tried now.
    fn try_now(&mut self, why: &'static str) {
        info!(sink = %self.name, why, "tried at once");
        if self.waiting.try_now() {
            self.disconnect();
        }
    }

    /// Sees whether somebody has asked for something. With each batch: where the next one is always
    /// there, nothing else is ever waited for.
    fn look_for_requests(&mut self) {
        if self.requests.has_changed().unwrap_or(false) {
            self.requests.mark_unchanged();
            self.asked = true;
        }
    }

    /// Has the destination keep what has changed of the state, a piece of it. What it refuses is left out
    /// until it changes: state that is not kept is no event that is lost.
    async fn keep(&mut self) {
        let Some(keeping) = self.keeping.as_mut().filter(|keeping| keeping.is_due()) else {
            return;
        };
        if !self.sink.watches_state() {
            keeping.doubt();
        }
        let piece = keeping.piece(&self.route);
        let mut done = 0;
        loop {
            let rest = piece.parts.get(done..).unwrap_or_default();
            let failure =
                match timeout(limit(self.deadline, rest.len()), self.sink.keep(rest)).await {
                    Ok(Ok(())) => break,
                    Ok(Err(failure)) => failure,
                    Err(_) => no_timeout(),
                };
            done += failure.accepted.min(rest.len());
            let Some(keeping) = &mut self.keeping else { return };
            match (&failure.cause, piece.parts.get(done)) {
                (Cause::Rejected { reason }, Some(part)) => {
                    let path = part.path.text();
                    if !std::mem::replace(&mut keeping.complained, true) {
                        warn!(sink = %self.name, path, reason, "the destination does not keep this");
                    }
                    done += 1;
                }
                (cause, _) => {
                    keeping.said(&piece, done);
                    keeping.failed();
                    return self.state_failed(cause);
                }
            }
        }
        if let Some(keeping) = &mut self.keeping {
            keeping.said(&piece, piece.parts.len());
        }
        self.remark();
    }

    /// Takes note of what the sink says of its destination; the log tells only what is new.
    fn remark(&mut self) {
        let remarks = self.sink.remarks();
        if remarks == self.remarks {
            return;
        }
        for remark in remarks.iter().filter(|remark| !self.remarks.contains(remark)) {
            info!(sink = %self.name, remark, "about the destination");
        }
        self.status.sink(&self.name, |page| page.remarks.clone_from(&remarks));
        self.remarks = remarks;
    }

    /// The state is not kept at the moment. Events go on, unless the connection is lost.
    fn state_failed(&mut self, cause: &Cause) {
        if let Cause::Down(_) | Cause::Gone { .. } = cause {
            self.failed(cause, false);
        } else {
            let text = describe(cause);
            self.waiting.complain(&self.name, "state", &text, Duration::ZERO);
        }
    }

    /// At a stop: what is on its way is answered for, as far as it goes, and what the destination has
    /// accepted is remembered, so that the next task does not repeat it.
    async fn finish(&mut self) {
        let end = *self.give_up.get_or_insert_with(|| Instant::now() + FINISH);
        self.sink.begin_nothing_more();
        while self.connected && self.flight.handed > 0 {
            let flight = self.flight.events.get(..self.flight.handed).unwrap_or_default();
            match timeout_at(end, self.sink.deliver_ahead(flight, 0)).await {
                Ok(Ok(accepted)) if accepted > 0 => self.accepted(accepted),
                Ok(Err(failure)) => {
                    self.accepted(failure.accepted);
                    break;
                }
                Ok(Ok(_)) | Err(_) => break,
            }
        }
        if self.flight.errand.is_some() {
            return;
        }
        let accepted = self.sink.acknowledged(&self.flight.events);
        let first = accepted.iter().take_while(|accepted| **accepted).count();
        self.accepted(first);
        let behind = self.flight.events.iter().zip(accepted.iter().skip(first));
        let behind = behind.filter_map(|(event, accepted)| accepted.then_some(event.record.seq));
        self.answered.remember(behind);
    }

    /// Says that the relay goes, where its destination keeps what it was.
    async fn farewell(&mut self, end: Instant) {
        let Some(keeping) = self.keeping.as_ref().filter(|_| self.connected) else { return };
        let parts = keeping.farewell();
        if parts.is_empty() {
            return;
        }
        match timeout_at(end, self.sink.keep(&parts)).await {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => {
                let error = describe(&failure.cause);
                warn!(sink = %self.name, error, "the destination does not know that the relay goes");
            }
            Err(_) => warn!(sink = %self.name, "the destination does not know that the relay goes"),
        }
    }

    /// How many events may be read and sent now: half of the window at once, so that the next batch can go
    /// while the one before is being answered for, or its cursor saved.
    fn free(&mut self) -> usize {
        let saved = self.journal.saved(&self.name);
        while self.unsaved.front().is_some_and(|(through, _)| *through <= saved) {
            self.unsaved.pop_front();
        }
        let unsaved: u64 = self.unsaved.iter().map(|(_, events)| events).sum();
        let Flight { events, asides, .. } = &self.flight;
        let out = unsaved + u64::try_from(events.len() + asides.len()).unwrap_or(u64::MAX);
        let free = self.window.saturating_sub(out).min(self.window.div_ceil(2));
        let room = self.sink.room(events).unwrap_or(usize::MAX);
        usize::try_from(free).unwrap_or(usize::MAX).min(room)
    }

    /// Takes up a batch that was read, behind what is in flight.
    fn take(&mut self, batch: &Batch) {
        if batch.lost > 0 {
            self.lost(batch.lost);
            // Told once: the cursor steps over the hole before anything else can fail.
            self.moved(batch.records.first().map_or(batch.through, |first| first.seq - 1), 0);
        }
        let mut fresh = self.render(&batch.records);
        self.read = batch.through;
        if self.flight.events.is_empty() {
            self.flight.events = fresh;
        } else {
            self.flight.events.append(&mut fresh);
        }
        if self.flight.is_empty() {
            self.landed();
        }
    }

    fn render(&mut self, records: &[Arc<Record>]) -> Vec<Outgoing> {
        let mut outgoing = Vec::with_capacity(records.len());
        let mut skipped = [0_u64; 4];
        for record in records.iter().filter(|record| !self.answered.has(record.seq)) {
            match self.route.render(record) {
                Rendered::Wanted(event) => outgoing.push(event),
                Rendered::Skipped(skip) => {
                    if let Some(count) = skipped.get_mut(skip.index()) {
                        *count += 1;
                    }
                }
                Rendered::Failed(reason) => {
                    let record = Arc::clone(record);
                    self.flight.asides.push_back(Aside { record, reason });
                }
            }
        }
        for (skip, count) in route::SKIPS.iter().zip(skipped) {
            self.metrics.filtered(skip.as_str(), count);
        }
        outgoing
    }

    /// The destination has accepted the first `count` of the flight: they are done.
    fn accepted(&mut self, count: usize) {
        let count = count.min(self.flight.events.len());
        self.flight.handed = self.flight.handed.saturating_sub(count);
        let events = self.flight.events.drain(..count);
        let Some(last) = events.as_slice().last().map(|last| last.record.seq) else { return };
        let amount = u64::try_from(events.len()).unwrap_or(0);
        // Events of one reading were received in the same millisecond: one sample for all of them.
        let (mut since, mut same) = (None, 0);
        for event in events {
            let age = event.record.age().as_millis();
            match since.replace(age) {
                Some(before) if before != age => {
                    self.metrics.delivered(same, millis(before));
                    same = 1;
                }
                _ => same += 1,
            }
        }
        self.metrics.delivered(same, millis(since.unwrap_or(0)));
        for (note, amount) in self.sink.tally() {
            self.metrics.note(note, amount);
        }
        self.status.sink(&self.name, |page| {
            page.delivered += amount;
            page.rejected_in_a_row = 0;
        });
        self.suspicion.accepted(last);
        if self.flight.errand.is_none() {
            // What is accepted is not sent again, whatever happens now.
            self.moved(last, amount);
        }
        if self.flight.is_empty() {
            self.landed();
        }
    }

    /// The cursor moves: `events` of those before it went out.
    fn moved(&mut self, through: Seq, events: u64) {
        if through <= self.position {
            return;
        }
        self.position = through;
        self.answered.passed(through);
        self.journal.advance(&self.name, through);
        if events > 0 {
            self.unsaved.push_back((through, events));
        }
    }

    /// Connects, or waits until it is time to.
    async fn connect(&mut self, progress: &mut watch::Receiver<u64>, stop: &CancellationToken) {
        if let Some(at) = self.waiting.reconnect_at() {
            let mut sleeps = clock::sleeps();
            tokio::select! {
                () = stop.cancelled() => {}
                () = sleep_until(at) => {}
                Ok(()) = sleeps.changed() => self.try_now(SLEPT),
                Ok(()) = self.retries.changed() => self.try_now(ASKED),
                Ok(()) = self.requests.changed() => self.asked_meanwhile().await,
                // What is to be set aside may find room.
                Ok(()) = progress.changed(), if !self.flight.asides.is_empty() => {}
            }
            return;
        }
        let connected = tokio::select! {
            // A connection that does not stand yet has nothing in hand to finish.
            () = stop.cancelled() => return,
            connected = timeout(self.deadline, self.sink.connect()) => connected,
        };
        match connected {
            Ok(Ok(())) => self.stands(),
            Ok(Err(failure)) => self.failed(&failure.cause, true),
            Err(_) => {
                let cause = Cause::Down("no connection within the sink's timeout".into());
                self.failed(&cause, true);
            }
        }
    }

    /// The connection stands.
    fn stands(&mut self) {
        self.connected = true;
        self.flight.late = true;
        if let Some(keeping) = &mut self.keeping {
            keeping.begin();
        }
        self.remark();
        self.waiting.connected(self.sink.has_session());
        if self.waiting.trouble.is_none() {
            info!(sink = %self.name, "connected");
        }
        let head = self.flight.events.first().map(|head| head.record.seq);
        if self.sink.has_session() && head.is_some_and(|seq| self.suspicion.isolates(seq)) {
            self.waiting.pause(QUIET);
        }
        self.show();
    }

    /// Nothing goes over this connection any more.
    fn disconnect(&mut self) {
        self.connected = false;
        self.flight.handed = 0;
        self.flight.late = true;
    }

    fn worked(&mut self) {
        if self.waiting.worked(self.sink.has_session()) {
            self.show();
        }
    }

    /// Shows what is wrong, or that nothing is.
    fn show(&self) {
        let (state, text) = match &self.waiting.trouble {
            Some(trouble) => (trouble.state, Some(trouble.text.clone())),
            None => ("up", None),
        };
        self.metrics.up(matches!(state, "up" | "busy"));
        self.status.sink(&self.name, |page| {
            if page.state != state {
                page.state = state;
                page.since = clock::now();
            }
            page.last_error = text.or_else(|| page.last_error.take());
        });
    }

    /// Something failed: says so, and puts down how long to wait.
    fn failed(&mut self, cause: &Cause, connecting: bool) {
        self.metrics.retry(waiting::word(cause));
        let text = describe(cause);
        self.waiting.failed(&self.name, cause, connecting, &text);
        let (state, connected) = waiting::state(cause, connecting);
        if !connected {
            self.disconnect();
        }
        self.flight.late = true;
        self.metrics.up(state == "busy");
        self.status.sink(&self.name, |page| {
            if page.state != state {
                page.state = state;
                page.since = clock::now();
            }
            page.last_error = Some(text);
            page.last_error_at = Some(clock::now());
        });
    }

    /// The journal cannot be read at the moment: says so, and waits a little.
    async fn unreadable(&mut self, failure: &StoreError) {
        self.waiting.complain(&self.name, "journal", &failure.to_string(), JOURNAL_RETRY);
        sleep(JOURNAL_RETRY).await;
    }

    /// Events that this sink will never get.
    fn lost(&mut self, count: u64) {
        error!(sink = %self.name, count, "events were lost before the sink could get them");
        self.metrics.lost(count);
        self.status.sink(&self.name, |page| page.lost += count);
        let data = json!({
            "cause": "the journal no longer holds them",
            "sink": &*self.name,
            "count": count,
        });
        let nobody: Arc<str> = "".into();
        let mut events = vec![event::own("relay.gap", &nobody, &nobody, &data, clock::now())];
        self.journal.append(&mut events);
    }
}

/// How long a sink with that deadline may take for so many, see [`Sink::deliver`].
fn limit(deadline: Duration, count: usize) -> Duration {
    deadline.saturating_mul(u32::try_from(count + 1).unwrap_or(u32::MAX))
}

fn millis(count: u128) -> Duration {
    Duration::from_millis(u64::try_from(count).unwrap_or(u64::MAX))
}

/// A sink that has not answered within the [`limit`].
fn no_timeout() -> Failure {
    Failure::down("the sink kept no timeout of its own")
}

/// Waits until there is state to say; for ever, where none is kept.
async fn due(keeping: &mut Option<Keeping>) {
    match keeping {
        Some(keeping) => keeping.due().await,
        None => std::future::pending().await,
    }
}

/// Waits for what is being read; for ever, where nothing is.
async fn read(
    reading: &mut Option<BoxFuture<'static, Result<Batch, StoreError>>>,
) -> Result<Batch, StoreError> {
    let batch = match reading {
        Some(reading) => reading.await,
        None => std::future::pending().await,
    };
    *reading = None;
    batch
}

async fn wait_until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic")
}

/// A cause with what lies behind it, in one line.
pub(crate) fn describe(cause: &Cause) -> String {
    crate::base::fault::explain(cause)
}
