//! From this member's journal to the log: the journal is the outbox.
//!
//! Its one reader publishes each event, with its deduplication key as the message id: the log keeps one of
//! the copies that the members have. Events of different channels are on their way side by side; of one
//! channel there is one at a time, so that whatever fails, and whoever else publishes the same channel, the
//! log has them in order. While no server answers, events wait in the journal.
//!
//! Two things would break order or double an event, and are looked out for:
//!
//! - A channel that this member has just begun to hold, or holds again after a break, while another has held
//!   it for longer and may be some events behind: its events wait until the log has come to one of them, so
//!   that all that was before is there ([`attempt`]).
//! - An event that has waited so long that the log would no longer recognise a copy of it, here or in the kernel
//!   while this process stood still ([`standstill`]): it is looked up in the log before it is published.
//!
//! What the relay says itself of a channel (`relay.…`) every holder says: that of the first holder counts. A
//! gap is published, and counted, only if no other member held the channel all the time, see [`super::gaps`].

mod attempt;
mod flight;
mod held_back;
mod standstill;

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use async_nats::{Message, Subscriber};
use foldhash::fast::RandomState;
use futures_util::{
    FutureExt, StreamExt,
    future::{BoxFuture, OptionFuture},
    stream::FuturesUnordered,
};
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use self::{
    attempt::{
        Behind, InStep, IsCovered, LogPosition, LoggedKeys, Outcome, TOGETHER, Work, is_covered,
        is_old,
    },
    flight::{Flight, Sent},
    held_back::HeldBack,
    standstill::Standstill,
};
use super::{
    Cluster, alone,
    connection::{IN_FLIGHT, Storage},
    gaps::{self, ReceivedQuestion},
    message, parts,
    uptime::Uptimes,
};
use crate::{
    base::{
        clock::Moment,
        event::{self, Origin, Record, Seq},
        metrics::{self, CLUSTER_DUPLICATES, CLUSTER_PUBLISHED},
        supervisor::Factory,
    },
    delivery::{losses, source::LOST, status::Status},
    gateway::table::Table,
    journal::{Batch, Journal, OUTBOX, StoreError},
};

/// Its cursor in the journal.
pub(crate) const CURSOR: &str = OUTBOX;

/// The topic of reports of what was missed.
const GAP: &str = "relay.gap";

/// Events that are read and not published, at most, and their bytes.
const AHEAD: usize = 4 * IN_FLIGHT;
const AHEAD_BYTES: usize = 8 * 1024 * 1024;

/// Events read at once, and their bytes.
const BATCH: usize = 512;
const BATCH_BYTES: usize = 1024 * 1024;

/// How long to wait before what failed is tried again.
const RETRY: Duration = Duration::from_millis(250);

/// The first wait for a copy that is being stored.
const SOON: Duration = Duration::from_millis(3);

/// At a stop, so long is given to what is not published yet.
const FINISH: Duration = Duration::from_secs(5);

/// How often it turns at least,
const TURN: Duration = Duration::from_secs(1);

/// and after how long without a turn the process has stood still: a gateway may have dropped what it did not read.
const STOOD_STILL: Duration = Duration::from_secs(3);

/// How much later than it is so it may be noted that a channel stands, or stands no more.
const NOTED: Duration = Duration::from_secs(2);

/// A message id that a server knows and has not stored is asked for again for so long; then the event is
/// published under another.
const UNSTORED: Duration = Duration::from_secs(5);

/// How many answers are taken in before anything else is looked at.
const ANSWERS: usize = 64;

/// What an attempt came to that had something to ask or to wait for.
struct Attempt {
    lane: Arc<str>,
    seq: Seq,
    outcome: Outcome,
    logged: Option<LoggedKeys>,
    log_position: Option<LogPosition>,
    /// This member was found to be in step with the other holders of the channel.
    in_step: Option<InStep>,
}

/// How events go out.
struct Publisher {
    storage: Arc<Storage>,
    flight: Flight,
    attempts: Attempts,
}

type Attempts = FuturesUnordered<BoxFuture<'static, Attempt>>;

/// The events of one channel.
#[derive(Default)]
struct Lane {
    events: VecDeque<Arc<Record>>,
    /// The first of them is on its way, or waits to be tried again.
    busy: bool,
    /// Since when the server knows the first one's id without having stored it.
    unstored: Option<Instant>,
    /// What was looked up for its old events.
    logged: Option<LoggedKeys>,
    /// While another holder may be behind: where the log was seen to be last.
    log_position: Option<LogPosition>,
}

/// The task.
struct Outbox {
    cluster: Cluster,
    journal: Journal,
    status: Arc<Status>,
    table: Arc<Table>,
    lanes: HashMap<Arc<str>, Lane, RandomState>,
    /// What was read and is not done.
    open: BTreeSet<Seq>,
    bytes: usize,
    read: Seq,
    last_read: Option<Arc<Record>>,
    failing: Option<String>,
    held_back: HeldBack,
    /// When this member was found to be in step with the other holders of a channel.
    in_step: HashMap<Arc<str>, (InStep, Moment), RandomState>,
    /// What is asked about the gaps that are not done.
    covered: HashMap<Seq, IsCovered>,
    asking: FuturesUnordered<IsCovered>,
    uptimes: Uptimes,
    turned: Moment,
    standstill: Standstill,
}

pub(crate) fn factory(
    cluster: &Cluster,
    journal: &Journal,
    table: Arc<Table>,
    status: &Arc<Status>,
) -> Factory {
    let (cluster, journal, status) = (cluster.clone(), journal.clone(), Arc::clone(status));
    // Here it is known whether another member had what this one missed.
    table.in_cluster();
    Box::new(move |stop| {
        let read = journal
            .register(CURSOR, crate::config::Start::End)
            .map_err(|error| error.to_string())?;
        let outbox = Outbox {
            cluster: cluster.clone(),
            journal: journal.clone(),
            status: Arc::clone(&status),
            table: Arc::clone(&table),
            lanes: HashMap::default(),
            open: BTreeSet::new(),
            bytes: 0,
            read,
            last_read: None,
            failing: None,
            held_back: HeldBack::default(),
            in_step: HashMap::default(),
            covered: HashMap::new(),
            asking: FuturesUnordered::new(),
            uptimes: Uptimes::new(Arc::clone(&table)),
            turned: Moment::now(),
            standstill: Standstill::default(),
        };
        Ok(Box::pin(outbox.run(stop)))
    })
}

async fn read(journal: Journal, after: Seq) -> Result<Batch, StoreError> {
    journal.next(after, BATCH, BATCH_BYTES).await
}

/// The other members' questions, and the log's answers.
async fn listen(cluster: &Cluster) -> (Subscriber, Flight) {
    let subject = gaps::subject(&cluster.settings().name, cluster.member());
    let questions = loop {
        match cluster.client().subscribe(subject.clone()).await {
            Ok(questions) => break questions,
            Err(error) => {
                warn!(%error, "the other members' questions cannot be received");
                sleep(RETRY).await;
            }
        }
    };
    loop {
        match Flight::begin(cluster.client()).await {
            Ok(flight) => return (questions, flight),
            Err(error) => {
                warn!(%error, "the log's answers cannot be received");
                sleep(RETRY).await;
            }
        }
    }
}

impl Outbox {
    async fn run(mut self, stop: CancellationToken) {
        let storage = loop {
            self.take_found_late();
            self.show();
            tokio::select! {
                () = stop.cancelled() => return,
                storage = self.cluster.storage() => break storage,
                () = self.uptimes.changed() => self.uptimes.update(),
                () = sleep(TURN) => {}
            }
        };
        let (mut questions, flight) = listen(&self.cluster).await;
        let mut publisher = Publisher { storage, flight, attempts: Attempts::new() };
        // A read from the disk is not begun again for whatever comes meanwhile.
        let mut reading: Option<BoxFuture<'static, Result<Batch, StoreError>>> = None;
        let mut give_up: Option<Instant> = None;
        self.turned = Moment::now();
        loop {
            self.check_for_standstill();
            self.take_found_late();
            if let Some(after) = self.journal.put_back(CURSOR) {
                info!("what the journal holds from before this start is published now");
                reading = None;
                self.begin_again(after, &mut publisher);
            }
            while let Some((sent, outcome)) = publisher.flight.overdue() {
                self.on_outcome(&sent.lane, sent.seq, outcome, &mut publisher);
            }
            self.advance();
            self.show();
            if stop.is_cancelled() {
                let at = *give_up.get_or_insert_with(|| Instant::now() + FINISH);
                let done = self.open.is_empty() && self.journal.figures().last <= self.read;
                if done || Instant::now() >= at {
                    if !done {
                        info!(
                            events = self.open.len(),
                            "events stay in the journal until the next start"
                        );
                    }
                    return;
                }
            }
            if reading.is_none() && self.open.len() < AHEAD && self.bytes < AHEAD_BYTES {
                reading = Some(read(self.journal.clone(), self.read).boxed());
            }
            tokio::select! {
                biased;
                Some(question) = questions.next() => self.answer(question).await,
                () = self.uptimes.changed() => self.uptimes.update(),
                Some(_) = self.asking.next() => {}
                Some(answer) = publisher.flight.answered() => self.on_answers(answer, &mut publisher),
                Some(attempt) = publisher.attempts.next() => self.on_attempt(attempt, &mut publisher),
                Some(batch) = OptionFuture::from(reading.as_mut()) => {
                    reading = None;
                    match batch {
                        Ok(batch) => self.take(&batch, &mut publisher),
                        Err(error) => {
                            warn!(%error, "the journal cannot be read now");
                            sleep(RETRY).await;
                        }
                    }
                }
                () = stop.cancelled(), if give_up.is_none() => {}
                () = sleep(RETRY), if give_up.is_some() => {}
                () = sleep(TURN) => {}
            }
        }
    }

    /// Files of the journal have come back that may not say yet that this relay is a member.
    fn take_found_late(&self) {
        if let Some(published) = self.journal.take_found_late() {
            let journal = self.journal.clone();
            drop(spawn_blocking(move || alone::found_late(&journal, published)));
        }
    }

    /// All after `after` is read once more: files of the journal have come back that stand before what was read.
    fn begin_again(&mut self, after: Seq, publisher: &mut Publisher) {
        publisher.flight.forget_all();
        publisher.attempts.clear();
        self.lanes.clear();
        self.open.clear();
        self.covered.clear();
        self.asking.clear();
        (self.bytes, self.read, self.last_read) = (0, after, None);
        self.held_back = HeldBack::default();
    }

    /// Where this process has stood still, it cannot say that nothing was missed meanwhile. It is still in step with
    /// the others: what comes over a connection that holds comes whole.
    fn check_for_standstill(&mut self) {
        let time = self.turned.elapsed();
        if time > STOOD_STILL {
            warn!(?time, "this process has stood still");
            self.uptimes.interrupt();
            self.standstill.ended(time);
        }
        self.turned = Moment::now();
    }

    async fn answer(&mut self, question: Message) {
        self.check_for_standstill();
        if let Some(asked) = ReceivedQuestion::read(question) {
            let oldest = self.oldest(asked.channel());
            asked.answer(&self.cluster, &mut self.uptimes, oldest).await;
        }
    }

    /// The age of the oldest event of a channel that waits for the log, or may.
    fn oldest(&self, channel: &str) -> Option<Duration> {
        let first = self.lanes.get(channel).and_then(|lane| lane.events.front());
        let is_all_read = self.journal.figures().last <= self.read;
        // What is not read yet is younger than what was read last.
        let unread = (!is_all_read)
            .then(|| self.last_read.as_ref().map_or(Duration::MAX, |last| last.age()));
        first.map(|record| record.age()).max(unread)
    }

    fn show(&self) {
        let failing = self.failing.clone().or_else(|| self.held_back.reason());
        self.cluster.set_waiting(self.journal.lag(CURSOR).0, failing);
    }

    fn take(&mut self, batch: &Batch, publisher: &mut Publisher) {
        self.check_for_standstill();
        let unreported = self.journal.was_read(CURSOR, batch);
        if unreported > 0 {
            losses::report_unpublished(&self.status, unreported);
        }
        if batch.lost > 0 {
            self.journal.append(&mut vec![event::lost(LOST, CURSOR, batch.lost)]);
        }
        for record in &batch.records {
            self.open.insert(record.seq);
            self.bytes += record.event.weight();
            if &*record.event.place.topic == GAP {
                let (cluster, table) = (self.cluster.clone(), Arc::clone(&self.table));
                let asked = is_covered(cluster, table, Arc::clone(record)).boxed().shared();
                self.asking.push(asked.clone());
                self.covered.insert(record.seq, asked);
            }
            let channel = &record.event.place.channel;
            let lane = self.lanes.entry(Arc::clone(channel)).or_default();
            lane.events.push_back(Arc::clone(record));
            if !lane.busy {
                let channel = Arc::clone(channel);
                self.start(&channel, Duration::ZERO, publisher);
            }
        }
        self.read = batch.through;
        if let Some(last) = batch.records.last() {
            self.last_read = Some(Arc::clone(last));
        }
    }

    /// How long an event may have waited in the kernel.
    fn unread(&self, record: &Record) -> Duration {
        self.standstill.unread(record.age())
    }

    /// All before the first that is not done is done.
    fn advance(&self) {
        let through = self.open.first().map_or(self.read, |first| first - 1);
        self.journal.advance_lazily(CURSOR, through);
    }

    /// Publishes the first event of a lane, after `wait`.
    fn start(&mut self, channel: &Arc<str>, wait: Duration, publisher: &mut Publisher) {
        let Some(lane) = self.lanes.get_mut(channel) else { return };
        let Some(record) = lane.events.front().cloned() else {
            self.lanes.remove(channel);
            return;
        };
        lane.busy = true;
        let (logged, log_position) = (lane.logged.take(), lane.log_position.take());
        let again = lane.unstored.is_some_and(|since| since.elapsed() >= UNSTORED);
        let behind = self.behind(channel, &record);
        if wait.is_zero() && behind.is_none() && !again && self.publish_at_once(&record, publisher)
        {
            return;
        }
        let work = Work {
            behind,
            in_step: None,
            cluster: self.cluster.clone(),
            storage: Arc::clone(&publisher.storage),
            logged,
            log_position,
            is_covered: self.covered.get(&record.seq).cloned(),
            full: self.open.len() >= AHEAD || self.bytes >= AHEAD_BYTES,
            again,
            unread: self.unread(&record),
            record,
        };
        let lane = Arc::clone(channel);
        publisher.attempts.push(Box::pin(async move {
            if !wait.is_zero() {
                sleep(wait).await;
            }
            let mut work = work;
            let outcome = work.publish().await;
            let Work { record, logged, log_position, in_step, .. } = work;
            Attempt { lane, seq: record.seq, outcome, logged, log_position, in_step }
        }));
    }

    /// Publishes an event that is neither old nor large nor the relay's own, if the connection takes it now.
    fn publish_at_once(&self, record: &Arc<Record>, publisher: &mut Publisher) -> bool {
        let event = &record.event;
        if event.place.topic.starts_with("relay.")
            || event.message.len() > parts::largest(self.cluster.max_payload())
            || is_old(&self.cluster, record.age() + self.unread(record))
            || !self.cluster.0.connection.is_reached()
        {
            return false;
        }
        let lane = (&event.place.channel, record.seq);
        let (subject, headers) = message::of(&self.cluster, record);
        publisher.flight.publish(lane, subject, headers, event.message.clone())
    }

    /// What an event of a channel has to wait for, where this member may not be in step with its other holders.
    fn behind(&mut self, channel: &str, record: &Record) -> Option<Behind> {
        if !self.cluster.may_be_elsewhere(channel) {
            return None;
        }
        let uptime = self.uptimes.of(channel).map(|uptime| uptime.time);
        let age = record.age();
        // Received since the channel has stood, or before a break. It is noted a moment later than it is so. What
        // was fetched of a break is as old as it happened, and was not received before it.
        let since = uptime.unwrap_or_default();
        let is_live = |record: &Record| record.event.origin == Origin::Live;
        let is_new = age <= since + NOTED || !is_live(record);
        let is_in_step = self.in_step.get(channel).is_some_and(|(with, at)| {
            let is_current = uptime.is_some_and(|uptime| at.elapsed() <= uptime);
            !is_new || (is_current && *with == InStep::All)
        });
        if is_in_step {
            return None;
        }
        // From the first of these on nothing is missing here. What came while the channel was left before is not
        // one of them, however shortly before.
        let events = self.lanes.get(channel).into_iter().flat_map(|lane| &lane.events);
        let new = events.filter(|record| is_live(record) && record.age() <= since);
        let received = new.map(|record| message::key(&record.event)).collect();
        Some(if is_new {
            Behind { uptime: Some(since), waits: age.max(since), received }
        } else {
            // A copy of it that another has is not older.
            Behind { uptime: None, waits: age + TOGETHER, received }
        })
    }

    fn on_answers(&mut self, first: (Sent, Outcome), publisher: &mut Publisher) {
        let mut answer = Some(first);
        let mut left = ANSWERS;
        while let Some((sent, outcome)) = answer {
            self.on_outcome(&sent.lane, sent.seq, outcome, publisher);
            left -= 1;
            answer = if left > 0 { publisher.flight.answered_already() } else { None };
        }
    }

    fn on_attempt(&mut self, attempt: Attempt, publisher: &mut Publisher) {
        let Attempt { lane: channel, seq, outcome, logged, log_position, in_step } = attempt;
        if let Some(lane) = self.lanes.get_mut(&channel) {
            (lane.logged, lane.log_position) = (logged, log_position);
        }
        if let Some(with) = in_step {
            self.in_step.insert(Arc::clone(&channel), (with, Moment::now()));
        }
        self.on_outcome(&channel, seq, outcome, publisher);
    }

    /// Goes on with a lane after what became of its first event.
    fn on_outcome(
        &mut self,
        channel: &Arc<str>,
        seq: Seq,
        outcome: Outcome,
        publisher: &mut Publisher,
    ) {
        let Some(lane) = self.lanes.get_mut(channel) else { return };
        self.held_back.set(channel, matches!(outcome, Outcome::NotYet));
        let wait = match outcome {
            Outcome::NoLog => {
                self.cluster.log_is_gone();
                note(&mut self.failing, "the log is not there".into());
                Some(RETRY)
            }
            Outcome::Failed(why) => {
                note(&mut self.failing, why);
                Some(RETRY)
            }
            Outcome::Unstored => {
                // Mostly another member's copy is just being stored.
                let since = *lane.unstored.get_or_insert_with(Instant::now);
                Some(since.elapsed().clamp(SOON, RETRY))
            }
            Outcome::Stored => {
                metrics::add(CLUSTER_PUBLISHED, 1);
                self.cluster.count_published(false);
                None
            }
            Outcome::Duplicate => {
                metrics::add(CLUSTER_DUPLICATES, 1);
                self.cluster.count_published(true);
                None
            }
            Outcome::NotYet => Some(RETRY / 4),
            Outcome::NotNeeded => None,
            Outcome::Rejected(why) => {
                error!(%channel, why, "an event cannot be kept in the log, and is lost to all sinks");
                let is_report = lane.events.front().is_some_and(|record| is_own_report(record));
                if is_report {
                    metrics::add_for(metrics::LOST, "sink", CURSOR, 1);
                } else {
                    let reports = (&self.journal, &*self.status);
                    report_lost(reports, "the log cannot hold it", 1);
                }
                None
            }
        };
        if wait.is_none() {
            self.failing = None;
            lane.unstored = None;
            if let Some(record) = lane.events.pop_front() {
                self.bytes = self.bytes.saturating_sub(record.event.weight());
            }
            self.open.remove(&seq);
            self.covered.remove(&seq);
        }
        self.start(channel, wait.unwrap_or_default(), publisher);
    }
}

/// Counts events that no sink will get, and reports them. The report goes into the log as other events do.
fn report_lost((journal, status): (&Journal, &Status), cause: &'static str, count: u64) {
    losses::count_unpublished(status, count, cause);
    journal.append(&mut vec![event::lost(cause, CURSOR, count)]);
}

/// Whether an event is a report of lost events: one that is rejected too is followed by no other.
fn is_own_report(record: &Record) -> bool {
    let place = &record.event.place;
    &*place.topic == GAP && place.channel.is_empty()
}

fn note(failing: &mut Option<String>, why: String) {
    if failing.as_ref() != Some(&why) {
        debug!(why, "the log does not take events now; they wait in the journal");
        *failing = Some(why);
    }
}
