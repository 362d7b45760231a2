//! The one loop: from the journal to a sink.
//!
//! It reads what comes next, renders it, hands it over in batches, and moves the cursor over what the
//! far side has accepted. Retry, backoff, the breaker, dead letters and replays are here, the same for
//! every kind of sink. A sink that can have more than one batch on its way gets the next before the one
//! before is answered for: what is on its way is the flight.
//!
//! A sink with `state = true` also has its far side keep the live state ([`keeping`]): between two
//! batches what has changed is said, and never through the journal.
//!
//! The one thing to know: what is sent and not yet saved as accepted never exceeds the sink's window,
//! so a crash at any moment repeats no more than that. Order is kept: whatever fails, the flight goes out
//! again from the first that was not accepted, and nothing overtakes it.

mod keeping;
mod requests;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use serde_json::json;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use self::keeping::Keeping;
use crate::{
    backoff::Backoff,
    board::Board,
    clock,
    config::SinkConfig,
    event::{self, Record, Seq},
    journal::{Batch, Journal, StoreError},
    metrics::SinkMetrics,
    route::{Rendered, Route},
    sink::{Cause, Failure, Outgoing, Sink},
    status::Status,
};

/// The first wait after a failure is at most this.
const FIRST_WAIT: Duration = Duration::from_millis(500);

/// So many failures in a row open the breaker.
const BREAK_AFTER: u32 = 5;

/// With the breaker open, the far side is tried no more often than this.
const BREAK: Duration = Duration::from_secs(5);

/// The longest wait that a far side may ask for: beyond that it is a mistake of its own (a date in
/// the wrong century), and an operator who mends it should not have to restart the relay.
const LONGEST_ASKED: Duration = Duration::from_hours(1);

/// A destination that denies us is asked again no more often than this: a human has to change something.
const HOLD: Duration = Duration::from_secs(30);

/// Bytes of events in one batch, about: half a window of small ones. Most sinks wait for the far side's
/// answer to a batch, so a flood goes out the faster the more is in each: half as much was measured to be
/// slower.
const BATCH_BYTES: usize = 1024 * 1024;

/// How long to wait for a journal that cannot be read at the moment.
const JOURNAL_RETRY: Duration = Duration::from_millis(200);

/// How often the same complaint is repeated in the log.
const COMPLAIN: Duration = Duration::from_mins(1);

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
    backoff: Backoff,
    failures: u32,
    /// The cursor: all through it is dealt with.
    position: Seq,
    /// What is handed over and not yet dealt with, in order.
    flight: Vec<Outgoing>,
    /// How far the journal is read: what lies between the cursor and this is in flight or not wanted.
    read: Seq,
    connected: bool,
    /// Whether the page speaks of a failure.
    troubled: bool,
    /// What was sent and whose cursor is not yet saved: the cursor, and how many events.
    unsaved: VecDeque<(Seq, u64)>,
    complained: Option<(Instant, &'static str)>,
    /// What the sink said last of its far side.
    remarks: Vec<String>,
    requests: watch::Receiver<u64>,
    /// Whether something is asked for that is not done.
    asked: bool,
    /// The state that the far side keeps, where it does.
    keeping: Option<Keeping>,
}

impl std::fmt::Debug for Delivery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Delivery({} at {})", self.name, self.position)
    }
}

/// Why the loop went no further.
#[derive(Debug)]
enum Halt {
    /// Told to stop.
    Stopped,
    /// The far side wants nothing more: a human is needed.
    Gone,
}

/// Which events are handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// Those that come next: the cursor moves over them.
    Next,
    /// Those that somebody asked for: the cursor stays, wherever they stand in the journal.
    Again,
}

/// What woke the loop.
enum Wake {
    Batch(Result<Batch, StoreError>),
    Lost(Failure),
    Progress,
    Stop,
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
        status.sink(name, |page| {
            page.kind.clone_from(&config.kind);
            page.state = "connecting";
            page.since = clock::now();
        });
        Ok(Self {
            name: name.into(),
            sink,
            route,
            metrics: SinkMetrics::new(name),
            requests: journal.requests(),
            asked: true,
            journal,
            status,
            window: u64::try_from(config.window.max(1)).unwrap_or(u64::MAX),
            deadline: config.timeout.0,
            backoff: Backoff::new(FIRST_WAIT, config.backoff_max.0),
            failures: 0,
            position,
            flight: Vec::new(),
            read: position,
            connected: false,
            troubled: false,
            unsaved: VecDeque::new(),
            complained: None,
            remarks: Vec::new(),
            keeping: None,
        })
    }

    /// The same, and the far side keeps what stands on `board`. Blocks on the disk.
    pub fn keeping(mut self, board: Arc<Board>) -> Result<Self, StoreError> {
        self.keeping = Some(Keeping::new(&self.name, board, self.journal.clone())?);
        Ok(self)
    }

    /// Delivers until it is told to stop. What is in flight is finished first.
    pub async fn run(mut self, stop: CancellationToken) {
        let halt = self.deliver(&stop).await;
        if matches!(halt, Halt::Gone) {
            stop.cancelled().await;
        }
        self.farewell().await;
        if timeout(self.deadline, self.sink.close()).await.is_err() {
            warn!(sink = %self.name, "the sink did not close in time");
        }
        self.metrics.up(false);
    }

    async fn deliver(&mut self, stop: &CancellationToken) -> Halt {
        let mut progress = self.journal.progress();
        loop {
            let turn = if self.flight.is_empty() {
                self.next(&mut progress, stop).await
            } else {
                self.go_on(&mut progress, stop).await
            };
            if let Err(halt) = turn {
                return halt;
            }
        }
    }

    /// One turn with nothing in flight: looks after all that is not new, then waits for what is.
    async fn next(
        &mut self,
        progress: &mut watch::Receiver<u64>,
        stop: &CancellationToken,
    ) -> Result<(), Halt> {
        self.connect(stop).await?;
        self.look_for_requests();
        self.requested(stop).await?;
        self.keep(stop).await?;
        let limit = self.free();
        match self.wait(limit, progress, stop).await {
            Wake::Stop => Err(Halt::Stopped),
            Wake::Progress => Ok(()),
            Wake::Lost(failure) => self.failed(&failure.cause, stop).await,
            Wake::Batch(Ok(batch)) => self.batch(batch, stop).await,
            Wake::Batch(Err(failure)) => {
                self.unreadable(&failure).await;
                Ok(())
            }
        }
    }

    /// One turn with something in flight: more goes out behind it, where more is there and nothing else
    /// is to be done first; or else an answer is waited for.
    async fn go_on(
        &mut self,
        progress: &mut watch::Receiver<u64>,
        stop: &CancellationToken,
    ) -> Result<(), Halt> {
        self.look_for_requests();
        let due = self.keeping.as_ref().is_some_and(Keeping::is_due);
        if stop.is_cancelled() || self.asked || due {
            return self.fly(0, stop).await;
        }
        let limit = usize::try_from(self.free()).unwrap_or(usize::MAX);
        if limit == 0 && !self.unsaved.is_empty() {
            // A cursor is saved within milliseconds; an answer may take much longer, and meanwhile there
            // would be room for more.
            tokio::select! {
                () = stop.cancelled() => {}
                Ok(()) = progress.changed() => {}
            }
            return Ok(());
        }
        let ready =
            (limit > 0).then(|| self.journal.ready(self.read, limit, BATCH_BYTES)).flatten();
        match ready.filter(|batch| batch.lost == 0) {
            Some(batch) => self.batch(batch, stop).await,
            None => self.fly(0, stop).await,
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

    async fn wait(
        &mut self,
        limit: u64,
        progress: &mut watch::Receiver<u64>,
        stop: &CancellationToken,
    ) -> Wake {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let next = self.journal.next(self.read, limit, BATCH_BYTES);
        tokio::select! {
            biased;
            () = stop.cancelled() => Wake::Stop,
            batch = next, if limit > 0 => Wake::Batch(batch),
            Ok(()) = progress.changed(), if limit == 0 => Wake::Progress,
            Ok(()) = self.requests.changed() => {
                self.asked = true;
                Wake::Progress
            }
            () = std::future::ready(()), if self.asked => Wake::Progress,
            () = due(&mut self.keeping) => Wake::Progress,
            failure = self.sink.idle() => Wake::Lost(failure),
        }
    }

    /// Has the far side keep what has changed of the state, a piece of it. What it refuses is left out
    /// until it changes: state that is not kept is no event that is lost.
    async fn keep(&mut self, stop: &CancellationToken) -> Result<(), Halt> {
        let Some(keeping) = self.keeping.as_mut().filter(|keeping| keeping.is_due()) else {
            return Ok(());
        };
        if !self.connected {
            return Ok(());
        }
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
                    Err(_) => Failure::down("the sink kept no timeout of its own"),
                };
            done += failure.accepted.min(rest.len());
            let Some(keeping) = &mut self.keeping else { return Ok(()) };
            match (&failure.cause, piece.parts.get(done)) {
                (Cause::Rejected { reason }, Some(part)) => {
                    let path = part.path.text();
                    if !std::mem::replace(&mut keeping.complained, true) {
                        warn!(sink = %self.name, path, reason, "the far side does not keep this");
                    }
                    done += 1;
                }
                (cause, _) => {
                    keeping.said(&piece, done);
                    keeping.failed();
                    return self.failed(cause, stop).await;
                }
            }
        }
        if let Some(keeping) = &mut self.keeping {
            keeping.said(&piece, piece.parts.len());
        }
        self.remark();
        if !piece.parts.is_empty() {
            self.worked();
        }
        Ok(())
    }

    /// Says that the relay goes, where its far side keeps what it was.
    async fn farewell(&mut self) {
        let Some(keeping) = self.keeping.as_ref().filter(|_| self.connected) else { return };
        let parts = keeping.farewell();
        if parts.is_empty() {
            return;
        }
        match timeout(self.deadline, self.sink.keep(&parts)).await {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => {
                let error = describe(&failure.cause);
                warn!(sink = %self.name, error, "the far side does not know that the relay goes");
            }
            Err(_) => warn!(sink = %self.name, "the far side does not know that the relay goes"),
        }
    }

    /// How many events may be sent now: half of the window at once, so that the next batch can go
    /// while the one before is being answered for, or its cursor saved.
    fn free(&mut self) -> u64 {
        let saved = self.journal.saved(&self.name);
        while self.unsaved.front().is_some_and(|(through, _)| *through <= saved) {
            self.unsaved.pop_front();
        }
        let unsaved: u64 = self.unsaved.iter().map(|(_, events)| events).sum();
        let out = unsaved + u64::try_from(self.flight.len()).unwrap_or(u64::MAX);
        self.window.saturating_sub(out).min(self.window.div_ceil(2))
    }

    /// Renders a batch and hands it over, behind what is in flight.
    async fn batch(&mut self, batch: Batch, stop: &CancellationToken) -> Result<(), Halt> {
        if batch.lost > 0 {
            self.lost(batch.lost);
            // Told once: the cursor steps over the hole before anything else can fail.
            self.moved(batch.records.first().map_or(batch.through, |first| first.seq - 1), 0);
        }
        let mut fresh = self.render(&batch.records);
        self.read = batch.through;
        let count = fresh.len();
        if self.flight.is_empty() {
            self.flight = fresh;
        } else {
            self.flight.append(&mut fresh);
        }
        self.fly(count, stop).await
    }

    /// Hands over the last `fresh` of the flight, or waits for an answer to some of it.
    async fn fly(&mut self, fresh: usize, stop: &CancellationToken) -> Result<(), Halt> {
        let mut flight = std::mem::take(&mut self.flight);
        self.hand_over(&mut flight, fresh, Turn::Next, stop).await?;
        self.flight = flight;
        if self.flight.is_empty() {
            // What stands behind the last that went out was not wanted.
            self.moved(self.read, 0);
        }
        Ok(())
    }

    fn render(&mut self, records: &[Arc<Record>]) -> Vec<Outgoing> {
        let mut outgoing = Vec::with_capacity(records.len());
        let mut skipped = [0_u64; 4];
        for record in records {
            match self.route.render(record) {
                Rendered::Wanted(event) => outgoing.push(event),
                Rendered::Skipped(skip) => {
                    if let Some(count) = skipped.get_mut(skip.index()) {
                        *count += 1;
                    }
                }
                Rendered::Failed(reason) => self.set_aside(record, &reason),
            }
        }
        for (skip, count) in crate::route::SKIPS.iter().zip(skipped) {
            self.metrics.filtered(skip.as_str(), count);
        }
        outgoing
    }

    /// Hands over the last `fresh` of `flight`, or with none of them waits for an answer; takes out of it
    /// what is accepted or set aside. On a failure all of it goes out again, until it is with the far
    /// side. What is new is rendered again when time has passed: it may have become too old meanwhile.
    async fn hand_over(
        &mut self,
        flight: &mut Vec<Outgoing>,
        mut fresh: usize,
        turn: Turn,
        stop: &CancellationToken,
    ) -> Result<(), Halt> {
        let mut late = false;
        while !flight.is_empty() {
            late |= !self.connected;
            self.connect(stop).await?;
            if std::mem::take(&mut late) && turn == Turn::Next {
                let records: Vec<_> = flight.iter().map(|one| Arc::clone(&one.record)).collect();
                *flight = self.render(&records);
                fresh = flight.len();
                if flight.is_empty() {
                    break;
                }
            }
            let delivering = self.sink.deliver_ahead(flight, fresh);
            let failure = match timeout(limit(self.deadline, flight.len()), delivering).await {
                Ok(Ok(0)) if fresh == 0 => Failure::down("the sink has nothing on its way"),
                Ok(Ok(accepted)) => {
                    if accepted > 0 {
                        self.accepted(flight, accepted, turn);
                        self.worked();
                    }
                    break;
                }
                Ok(Err(failure)) => failure,
                Err(_) => Failure::down("the sink kept no timeout of its own"),
            };
            if failure.accepted > 0 {
                self.accepted(flight, failure.accepted, turn);
                // The link has proved itself, whatever has happened to it now.
                self.failures = 0;
                self.backoff.reset();
            }
            match (&failure.cause, flight.is_empty()) {
                (Cause::Rejected { reason }, false) => {
                    let refused = flight.remove(0).record;
                    self.set_aside(&refused, reason);
                    // In the window too: the letter is not yet on disk.
                    if turn == Turn::Next {
                        self.moved(refused.seq, 1);
                    }
                    // A far side that refuses is there.
                    self.worked();
                }
                // It has taken all there was: there is nothing to refuse or to wait for.
                (Cause::Rejected { .. } | Cause::Busy { .. }, true) => self.worked(),
                (cause, _) => {
                    self.failed(cause, stop).await?;
                    late = true;
                }
            }
            fresh = flight.len();
        }
        Ok(())
    }

    /// The far side has accepted the first `count` of `flight`: they are done.
    fn accepted(&mut self, flight: &mut Vec<Outgoing>, count: usize, turn: Turn) {
        let events = flight.drain(..count.min(flight.len()));
        let Some(last) = events.as_slice().last().map(|last| last.record.seq) else { return };
        let amount = u64::try_from(events.len()).unwrap_or(0);
        let now = clock::now();
        // Events of one reading were received in the same millisecond: one sample for all of them.
        let (mut since, mut same) = (None, 0);
        for event in events {
            let age = now.saturating_sub(event.record.event.received);
            match since.replace(age) {
                Some(before) if before != age => {
                    self.metrics.delivered(same, Duration::from_millis(before));
                    same = 1;
                }
                _ => same += 1,
            }
        }
        self.metrics.delivered(same, Duration::from_millis(since.unwrap_or(0)));
        for (note, amount) in self.sink.tally() {
            self.metrics.note(note, amount);
        }
        self.status.sink(&self.name, |page| page.delivered += amount);
        if turn == Turn::Next {
            // What is accepted is not sent again, whatever happens now.
            self.moved(last, amount);
        }
    }

    /// The cursor moves: `events` of those before it went out.
    fn moved(&mut self, through: Seq, events: u64) {
        if through <= self.position {
            return;
        }
        self.position = through;
        self.journal.advance(&self.name, through);
        if events > 0 {
            self.unsaved.push_back((through, events));
        }
    }

    async fn connect(&mut self, stop: &CancellationToken) -> Result<(), Halt> {
        while !self.connected {
            if stop.is_cancelled() {
                return Err(Halt::Stopped);
            }
            let connecting = timeout(self.deadline, self.sink.connect());
            let connected = tokio::select! {
                // A connection that does not stand yet has nothing in hand to finish.
                () = stop.cancelled() => return Err(Halt::Stopped),
                connected = connecting => connected,
            };
            match connected {
                Ok(Ok(())) => {
                    self.connected = true;
                    if let Some(keeping) = &mut self.keeping {
                        keeping.begin();
                    }
                    self.metrics.up(true);
                    self.remark();
                    self.status.sink(&self.name, |page| {
                        page.state = "up";
                        page.since = clock::now();
                    });
                    info!(sink = %self.name, "connected");
                }
                Ok(Err(failure)) => self.failed(&failure.cause, stop).await?,
                Err(_) => {
                    let cause = Cause::Down("no connection within the sink's timeout".into());
                    self.failed(&cause, stop).await?;
                }
            }
        }
        Ok(())
    }

    /// Takes note of what the sink says of its far side; the log tells only what is new.
    fn remark(&mut self) {
        let remarks = self.sink.remarks();
        if remarks == self.remarks {
            return;
        }
        for remark in remarks.iter().filter(|remark| !self.remarks.contains(remark)) {
            info!(sink = %self.name, remark, "about the far side");
        }
        self.status.sink(&self.name, |page| page.remarks.clone_from(&remarks));
        self.remarks = remarks;
    }

    fn worked(&mut self) {
        self.failures = 0;
        self.backoff.reset();
        if std::mem::take(&mut self.troubled) {
            self.complained = None;
            self.status.sink(&self.name, |page| {
                page.state = "up";
                page.since = clock::now();
            });
        }
    }

    /// Something failed: says so, and waits as long as it takes.
    async fn failed(&mut self, cause: &Cause, stop: &CancellationToken) -> Result<(), Halt> {
        let (state, word) = match cause {
            Cause::Down(_) => ("down", "down"),
            Cause::Busy { .. } => ("busy", "busy"),
            Cause::Rejected { .. } => ("down", "rejected"),
            Cause::Denied { .. } => ("held", "denied"),
            Cause::Gone { .. } => ("gone", "gone"),
        };
        self.metrics.retry(word);
        self.troubled = true;
        self.failures = self.failures.saturating_add(1);
        let text = describe(cause);
        self.status.sink(&self.name, |page| {
            if page.state != state {
                page.state = state;
                page.since = clock::now();
            }
            page.last_error = Some(text.clone());
            page.last_error_at = Some(clock::now());
        });
        if let Cause::Gone { .. } = cause {
            self.metrics.up(false);
            error!(sink = %self.name, error = text, "the sink wants nothing more; it is stopped");
            return Err(Halt::Gone);
        }
        if !matches!(cause, Cause::Busy { .. }) {
            self.connected = false;
            self.metrics.up(false);
        }
        let mut wait = self.backoff.wait();
        if self.failures >= BREAK_AFTER {
            wait = wait.max(BREAK);
        }
        if let Cause::Busy { wait: Some(told), .. } = cause {
            wait = wait.max((*told).min(LONGEST_ASKED));
        }
        if let Cause::Denied { .. } = cause {
            wait = wait.max(HOLD);
        }
        self.complain(word, &text, wait);
        tokio::select! {
            () = stop.cancelled() => Err(Halt::Stopped),
            () = sleep(wait) => Ok(()),
        }
    }

    /// The journal cannot be read at the moment: says so, and waits a little.
    async fn unreadable(&mut self, failure: &StoreError) {
        self.complain("journal", &failure.to_string(), JOURNAL_RETRY);
        sleep(JOURNAL_RETRY).await;
    }

    /// The same trouble is told once a minute, not with every attempt.
    fn complain(&mut self, word: &'static str, text: &str, wait: Duration) {
        let now = Instant::now();
        let lately = |(at, last): (Instant, &str)| last == word && now < at + COMPLAIN;
        if self.complained.is_some_and(lately) {
            debug!(sink = %self.name, error = text, ?wait, "still failing");
        } else {
            warn!(sink = %self.name, error = text, ?wait, "delivery failed; it is tried again");
            self.complained = Some((now, word));
        }
    }

    fn set_aside(&mut self, record: &Arc<Record>, reason: &str) {
        let event = &record.event;
        error!(
            sink = %self.name, id = %event.id, topic = %event.place.topic, reason,
            "an event was refused and set aside"
        );
        self.journal.dead_letter(&self.name, record, reason);
        self.metrics.dead();
        self.status.sink(&self.name, |page| page.dead_letters += 1);
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

/// Waits until there is state to say; for ever, where none is kept.
async fn due(keeping: &mut Option<Keeping>) {
    match keeping {
        Some(keeping) => keeping.due().await,
        None => std::future::pending().await,
    }
}

/// A cause with what lies behind it, in one line.
pub(crate) fn describe(cause: &Cause) -> String {
    let mut text = cause.to_string();
    let mut source = std::error::Error::source(cause).and_then(std::error::Error::source);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
