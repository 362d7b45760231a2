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
//! - An event that has waited so long that the log would no longer recognise a copy of it: it is looked up
//!   in the log before it is published.
//!
//! What the relay says itself of a channel (`relay.…`) every holder says: that of the first holder counts. A
//! gap is published only if no other member held the channel all the time, see [`super::gaps`].

mod attempt;

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use async_nats::Message;
use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use self::attempt::{Behind, InStep, IsCovered, Known, Outcome, Seen, TOGETHER, Work};
use super::{
    Cluster,
    connection::{IN_FLIGHT, Kept},
    gaps::{self, Asked},
    message,
    standing::Standing,
};
use crate::{
    base::{
        clock::Moment,
        event::{Origin, Record, Seq},
        metrics::{self, CLUSTER_DUPLICATES, CLUSTER_PUBLISHED},
        supervisor::Factory,
    },
    gateway::table::Table,
    journal::{Batch, Journal},
};

/// Its cursor in the journal. No sink can have this name: theirs have no dot.
pub(crate) const CURSOR: &str = "relay.cluster";

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

struct Attempt {
    lane: Arc<str>,
    seq: Seq,
    outcome: Outcome,
    known: Option<Known>,
    seen: Option<Seen>,
    /// This member was found to be in step with the other holders of the channel.
    in_step: Option<InStep>,
}

type Attempts = FuturesUnordered<Pin<Box<dyn Future<Output = Attempt> + Send>>>;

/// The events of one channel.
#[derive(Default)]
struct Lane {
    events: VecDeque<Arc<Record>>,
    /// The first of them is on its way, or waits to be tried again.
    busy: bool,
    /// Since when the server knows the first one's id without having stored it.
    unstored: Option<Instant>,
    /// What was looked up for its old events.
    known: Option<Known>,
    /// While another holder may be behind: where the log was seen to be last.
    seen: Option<Seen>,
}

/// The task.
struct Outbox {
    cluster: Cluster,
    journal: Journal,
    lanes: HashMap<Arc<str>, Lane>,
    /// What was read and is not done.
    open: BTreeSet<Seq>,
    bytes: usize,
    read: Seq,
    last_read: Option<Arc<Record>>,
    failing: Option<String>,
    /// When this member was found to be in step with the other holders of a channel.
    in_step: HashMap<Arc<str>, (InStep, Moment)>,
    /// What is asked about the gaps that are not done.
    covered: HashMap<Seq, IsCovered>,
    asking: FuturesUnordered<IsCovered>,
    standing: Standing,
    turned: Moment,
}

pub(crate) fn factory(cluster: &Cluster, journal: &Journal, table: Arc<Table>) -> Factory {
    let (cluster, journal) = (cluster.clone(), journal.clone());
    Box::new(move |stop| {
        let read = journal
            .register(CURSOR, crate::config::Start::End)
            .map_err(|error| error.to_string())?;
        let outbox = Outbox {
            cluster: cluster.clone(),
            journal: journal.clone(),
            lanes: HashMap::new(),
            open: BTreeSet::new(),
            bytes: 0,
            read,
            last_read: None,
            failing: None,
            in_step: HashMap::new(),
            covered: HashMap::new(),
            asking: FuturesUnordered::new(),
            standing: Standing::new(Arc::clone(&table)),
            turned: Moment::now(),
        };
        Ok(Box::pin(outbox.run(stop)))
    })
}

impl Outbox {
    async fn run(mut self, stop: CancellationToken) {
        let kept = loop {
            tokio::select! {
                () = stop.cancelled() => return,
                kept = self.cluster.kept() => break kept,
                () = self.standing.changed() => self.standing.look(),
            }
        };
        let subject = gaps::subject(&self.cluster.settings().name, self.cluster.member());
        let mut questions = loop {
            match self.cluster.client().subscribe(subject.clone()).await {
                Ok(questions) => break questions,
                Err(error) => {
                    warn!(%error, "the other members' questions cannot be received");
                    sleep(RETRY).await;
                }
            }
        };
        let mut attempts = Attempts::new();
        let mut give_up: Option<Instant> = None;
        self.turned = Moment::now();
        loop {
            self.look_at_time();
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
            let may_read = self.open.len() < AHEAD && self.bytes < AHEAD_BYTES;
            let next = self.journal.next(self.read, BATCH, BATCH_BYTES);
            tokio::select! {
                biased;
                Some(question) = questions.next() => self.answer(question).await,
                () = self.standing.changed() => self.standing.look(),
                Some(_) = self.asking.next() => {}
                Some(attempt) = attempts.next() => self.on_attempt(attempt, &kept, &mut attempts),
                batch = next, if may_read => match batch {
                    Ok(batch) => self.take(&batch, &kept, &mut attempts),
                    Err(error) => {
                        warn!(%error, "the journal cannot be read now");
                        sleep(RETRY).await;
                    }
                },
                () = stop.cancelled(), if give_up.is_none() => {}
                () = sleep(RETRY), if give_up.is_some() => {}
                () = sleep(TURN) => {}
            }
        }
    }

    /// Where this process has stood still, it cannot say that nothing was missed meanwhile. It is still in step with
    /// the others: what comes over a connection that holds comes whole.
    fn look_at_time(&mut self) {
        if self.turned.elapsed() > STOOD_STILL {
            warn!(time = ?self.turned.elapsed(), "this process has stood still");
            self.standing.interrupt();
        }
        self.turned = Moment::now();
    }

    async fn answer(&mut self, question: Message) {
        self.look_at_time();
        if let Some(asked) = Asked::read(question) {
            let stood = self.standing.of(asked.channel());
            let missed = asked
                .missed()
                .is_some_and(|(from, to)| self.standing.was_broken(asked.channel(), from, to));
            let oldest = self.oldest(asked.channel());
            asked.answer(&self.cluster, stood, missed, oldest).await;
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
        let unread = self.journal.figures().last.saturating_sub(self.read);
        let open = u64::try_from(self.open.len()).unwrap_or(u64::MAX);
        self.cluster.set_waiting(unread.saturating_add(open), self.failing.clone());
    }

    fn take(&mut self, batch: &Batch, kept: &Arc<Kept>, attempts: &mut Attempts) {
        self.look_at_time();
        if batch.lost > 0 {
            error!(count = batch.lost, "events were lost before they came into the log");
            metrics::add_for(metrics::LOST, "sink", CURSOR, batch.lost);
        }
        for record in &batch.records {
            self.open.insert(record.seq);
            self.bytes += record.event.weight();
            if &*record.event.place.topic == "relay.gap" {
                let asked = gaps::is_covered(self.cluster.clone(), Arc::clone(record));
                let asked = asked.boxed().shared();
                self.asking.push(asked.clone());
                self.covered.insert(record.seq, asked);
            }
            let channel = &record.event.place.channel;
            let lane = self.lanes.entry(Arc::clone(channel)).or_default();
            lane.events.push_back(Arc::clone(record));
            if !lane.busy {
                let channel = Arc::clone(channel);
                self.start(&channel, Duration::ZERO, kept, attempts);
            }
        }
        self.read = batch.through;
        if let Some(last) = batch.records.last() {
            self.last_read = Some(Arc::clone(last));
        }
        self.advance();
    }

    /// All before the first that is not done is done.
    fn advance(&self) {
        let through = self.open.first().map_or(self.read, |first| first - 1);
        self.journal.advance_lazily(CURSOR, through);
    }

    /// Publishes the first event of a lane, after `wait`.
    fn start(
        &mut self,
        channel: &Arc<str>,
        wait: Duration,
        kept: &Arc<Kept>,
        attempts: &mut Attempts,
    ) {
        let Some(lane) = self.lanes.get_mut(channel) else { return };
        let Some(record) = lane.events.front().cloned() else {
            self.lanes.remove(channel);
            return;
        };
        lane.busy = true;
        let full = self.open.len() >= AHEAD || self.bytes >= AHEAD_BYTES;
        let standing = self.standing.of(channel).map(|stood| stood.time);
        let age = record.age();
        // Received since the channel has stood, or before a break. It is noted a moment later than it is so. What
        // was fetched of a break is as old as it happened, and was not received before it.
        let since = standing.unwrap_or_default();
        let is_live = |record: &Record| record.event.origin == Origin::Live;
        let is_new = |record: &Record| record.age() <= since + NOTED || !is_live(record);
        let is_in_step = !self.cluster.may_be_elsewhere(channel)
            || self.in_step.get(channel).is_some_and(|(with, at)| {
                let is_current = standing.is_some_and(|standing| at.elapsed() <= standing);
                !is_new(&record) || (is_current && *with == InStep::All)
            });
        let behind = (!is_in_step).then(|| {
            // From the first of these on nothing is missing here. What came while the channel was left before
            // is not one of them, however shortly before.
            let new = lane.events.iter().filter(|record| is_live(record) && record.age() <= since);
            let received = new.map(|record| message::key(&record.event)).collect();
            if is_new(&record) {
                Behind { stood: Some(since), waits: age.max(since), received }
            } else {
                // A copy of it that another has is not older.
                Behind { stood: None, waits: age + TOGETHER, received }
            }
        });
        let work = Work {
            behind,
            in_step: None,
            cluster: self.cluster.clone(),
            kept: Arc::clone(kept),
            known: lane.known.take(),
            seen: lane.seen.take(),
            is_covered: self.covered.get(&record.seq).cloned(),
            full,
            again: lane.unstored.is_some_and(|since| since.elapsed() >= UNSTORED),
            record,
        };
        let lane = Arc::clone(channel);
        attempts.push(Box::pin(async move {
            if !wait.is_zero() {
                sleep(wait).await;
            }
            let mut work = work;
            let outcome = work.publish().await;
            let Work { record, known, seen, in_step, .. } = work;
            Attempt { lane, seq: record.seq, outcome, known, seen, in_step }
        }));
    }

    fn on_attempt(&mut self, attempt: Attempt, kept: &Arc<Kept>, attempts: &mut Attempts) {
        let Attempt { lane: channel, seq, outcome, known, seen, in_step } = attempt;
        let Some(lane) = self.lanes.get_mut(&channel) else { return };
        (lane.known, lane.seen) = (known, seen);
        if let Some(with) = in_step {
            self.in_step.insert(Arc::clone(&channel), (with, Moment::now()));
        }
        let wait = match outcome {
            Outcome::Failed(why) => {
                if self.failing.as_ref() != Some(&why) {
                    debug!(why, "the log does not take events now; they wait in the journal");
                    self.failing = Some(why);
                }
                Some(RETRY)
            }
            Outcome::Unstored => {
                // Mostly another member's copy is just being stored.
                let since = *lane.unstored.get_or_insert_with(Instant::now);
                Some(since.elapsed().clamp(SOON, RETRY))
            }
            Outcome::Stored => {
                metrics::add(CLUSTER_PUBLISHED, 1);
                self.cluster.copy_was(false);
                None
            }
            Outcome::Duplicate => {
                metrics::add(CLUSTER_DUPLICATES, 1);
                self.cluster.copy_was(true);
                None
            }
            Outcome::NotYet => Some(RETRY / 4),
            Outcome::NotNeeded => None,
            Outcome::Rejected(why) => {
                error!(%channel, why, "an event cannot be kept in the log, and is lost to all sinks");
                metrics::add_for(metrics::LOST, "sink", CURSOR, 1);
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
            self.advance();
        }
        self.start(&channel, wait.unwrap_or_default(), kept, attempts);
    }
}
