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
//!   that all that was before is there ([`Work::step`]).
//! - An event that has waited so long that the log would no longer recognise a copy of it: it is looked up
//!   in the log before it is published.
//!
//! What the relay says itself of a channel (`relay.…`) every holder says: that of the first holder counts. A
//! gap is published only if no other member held the channel all the time, see [`super::gaps`].

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use futures_util::{
    FutureExt, StreamExt,
    future::{BoxFuture, Shared},
    stream::FuturesUnordered,
};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::{
    Cluster,
    connection::{IN_FLIGHT, Kept},
    gaps, message, parts,
};
use crate::{
    base::{
        clock::Moment,
        event::{Record, Seq},
        metrics::{self, CLUSTER_DUPLICATES, CLUSTER_PUBLISHED},
        supervisor::Factory,
    },
    journal::{Batch, Journal},
    sink::nats::headers::MESSAGE_ID,
};

/// Its cursor in the journal. No sink can have this name: theirs have no dot.
pub(crate) const CURSOR: &str = "relay.cluster";

/// Events that are read and not published, at most, and their bytes.
const AHEAD: usize = 4 * IN_FLIGHT;
const AHEAD_BYTES: usize = 8 * 1024 * 1024;

/// Events read at once, and their bytes.
const BATCH: usize = 512;
const BATCH_BYTES: usize = 1024 * 1024;

/// How long an acknowledgement may take before the event is published again.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long to wait before what failed is tried again.
const RETRY: Duration = Duration::from_millis(250);

/// The first wait for a copy that is being stored.
const SOON: Duration = Duration::from_millis(3);

/// How long an event waits for a log that does not move, beyond the lease time.
const STEP: Duration = Duration::from_secs(3);

/// At a stop, so long is given to what is not published yet.
const FINISH: Duration = Duration::from_secs(5);

/// How much later than it is so it may be noted that a channel stands, or stands no more.
const NOTED: Duration = Duration::from_secs(2);

/// Holders whose subscriptions stood within this time began together.
const TOGETHER: Duration = Duration::from_millis(500);

/// A message id that a server knows and has not stored is asked for again for so long; then the event is
/// published under another.
const UNSTORED: Duration = Duration::from_secs(5);

/// What became of an attempt.
enum Outcome {
    Stored,
    Duplicate,
    /// The server knows the id, and has not stored it.
    Unstored,
    /// It is in the log already, or nobody needs it.
    NotNeeded,
    /// Another holder is to come to it first.
    NotYet,
    /// It will never be taken.
    Rejected(String),
    Failed(String),
}

struct Attempt {
    lane: Arc<str>,
    seq: Seq,
    outcome: Outcome,
    known: Option<Known>,
    seen: Option<Seen>,
    /// This member was found to be in step with the other holders of the channel.
    in_step: Option<InStep>,
}

/// With which of its events a member is in step with the other holders of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InStep {
    /// With those from before the break.
    Before,
    /// With all.
    All,
}

/// The message ids that the log has of a channel since an old event was received.
type Known = Arc<HashSet<Arc<str>>>;

/// Whether another member held the channel of a gap all the time.
type IsCovered = Shared<BoxFuture<'static, bool>>;

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

/// Where the log was in a channel, and since when.
#[derive(Clone, Copy)]
struct Seen {
    seq: Option<u64>,
    since: Instant,
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
}

pub(crate) fn factory(cluster: &Cluster, journal: &Journal) -> Factory {
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
        };
        Ok(Box::pin(outbox.run(stop)))
    })
}

impl Outbox {
    async fn run(mut self, stop: CancellationToken) {
        let kept = tokio::select! {
            () = stop.cancelled() => return,
            kept = self.cluster.kept() => kept,
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
        loop {
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
                Some(question) = questions.next() => {
                    gaps::answer(&self.cluster, question, |channel| self.oldest(channel)).await;
                }
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
            }
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
        let standing = self.cluster.standing_for(channel);
        let age = record.age();
        // Received since the channel has stood, or before a break. It is noted a moment later than it is so.
        let since = standing.unwrap_or_default();
        let is_new = |age: Duration| age <= since + NOTED;
        let is_in_step = !self.cluster.may_be_elsewhere(channel)
            || self.in_step.get(channel).is_some_and(|(with, at)| {
                let is_current = standing.is_some_and(|standing| at.elapsed() <= standing);
                !is_new(age) || (is_current && *with == InStep::All)
            });
        let behind = (!is_in_step).then(|| {
            let new = lane.events.iter().filter(|record| is_new(record.age()));
            let received = new.map(|record| message::key(&record.event)).collect();
            if is_new(age) {
                Behind { held: Some(since), waits: age.max(since), received }
            } else {
                // A copy of it that another has is not older.
                Behind { held: None, waits: age + TOGETHER, received }
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

/// A member that may not be in step with the other holders of a channel.
struct Behind {
    /// For how long the channel has stood, for an event that was received since.
    held: Option<Duration>,
    /// What others received before that is to be in the log.
    waits: Duration,
    /// The keys of the events that it has received since the channel has stood.
    received: HashSet<String>,
}

/// One attempt to publish.
struct Work {
    cluster: Cluster,
    kept: Arc<Kept>,
    record: Arc<Record>,
    known: Option<Known>,
    /// This member may not be in step with the other holders of the channel.
    behind: Option<Behind>,
    in_step: Option<InStep>,
    seen: Option<Seen>,
    is_covered: Option<IsCovered>,
    /// Nothing more is read before some of what was read is done: what the log has already goes.
    full: bool,
    /// Under another id: the log knows the first one and has not stored it.
    again: bool,
}

impl Work {
    async fn publish(&mut self) -> Outcome {
        let record = Arc::clone(&self.record);
        let event = &record.event;
        let channel = &event.place.channel;
        if event.place.topic.starts_with("relay.") && !channel.is_empty() {
            let is_needed = match &*event.place.topic {
                "relay.gap" => match self.is_covered.clone() {
                    Some(is_covered) => !is_covered.await,
                    None => true,
                },
                _ => self.cluster.is_first_holder(channel),
            };
            if !is_needed {
                return Outcome::NotNeeded;
            }
        }
        if !self.step().await {
            if self.full && self.is_known().await.is_ok_and(|known| known) {
                return Outcome::NotNeeded;
            }
            self.known = None;
            return Outcome::NotYet;
        }
        let window = self.cluster.settings().duplicate_window.0;
        if self.record.age() > window / 2 {
            match self.is_known().await {
                Ok(true) => return Outcome::NotNeeded,
                Ok(false) => {}
                Err(error) => return Outcome::Failed(error.to_string()),
            }
        } else {
            self.known = None;
        }
        let mut headers = message::headers(&self.record, self.cluster.member());
        if self.again {
            headers.insert(MESSAGE_ID, format!("{}~", message::key(event)));
        }
        let subject = message::subject(&self.cluster.settings().name, event);
        let pieces = parts::pieces(&event.message, self.cluster.max_payload());
        let patience = PATIENCE * u32::try_from(pieces.len()).unwrap_or(u32::MAX);
        let name = &self.cluster.settings().name;
        let published = parts::publish(self.cluster.context(), name, subject, headers, &pieces);
        match timeout(patience, published).await {
            Ok(Ok(ack)) if ack.sequence == 0 => Outcome::Unstored,
            Ok(Ok(ack)) if ack.duplicate => Outcome::Duplicate,
            Ok(Ok(_)) => Outcome::Stored,
            Ok(Err(error)) => {
                use async_nats::jetstream::context::PublishErrorKind as Kind;
                match error.kind() {
                    Kind::MaxPayloadExceeded => Outcome::Rejected(error.to_string()),
                    Kind::StreamNotFound => {
                        self.cluster.log_is_gone();
                        Outcome::Failed("the log is not there".into())
                    }
                    _ => Outcome::Failed(format!("the log takes no event: {error}")),
                }
            }
            Err(_) => Outcome::Failed("NATS does not answer".into()),
        }
    }

    /// Whether the event may be published now: no other member may be behind, or the log has come to one of the
    /// events that this member has received since it has held the channel. However long that takes, it is
    /// waited for while the log moves; where it stands still, nobody is behind.
    async fn step(&mut self) -> bool {
        let Some(Behind { held, waits, received }) = &self.behind else { return true };
        let channel = &self.record.event.place.channel;
        let limit = self.cluster.settings().lease.0 + STEP;
        // Of two that began together, the first holder goes on.
        let is_first = self.cluster.is_first_holder(channel);
        let ahead = if is_first { TOGETHER } else { Duration::ZERO };
        let asked = held.map(|held| held + ahead);
        self.in_step = if gaps::may_be_behind(&self.cluster, channel, asked, *waits).await {
            let (seq, key) = self.log_is_at().await.unzip();
            let is_there = key.is_some_and(|key| received.contains(&key));
            (is_there || self.log_stands_still(seq, limit)).then_some(InStep::All)
        } else {
            Some(if held.is_some() { InStep::All } else { InStep::Before })
        };
        if self.in_step.is_some() {
            (self.behind, self.seen) = (None, None);
        }
        self.in_step.is_some()
    }

    /// Whether the log was there in this channel for that long; `None`: where it is is not known.
    fn log_stands_still(&mut self, seq: Option<u64>, limit: Duration) -> bool {
        let seen = self.seen.get_or_insert_with(|| Seen { seq, since: Instant::now() });
        if seq.is_some() && seen.seq != seq {
            *seen = Seen { seq, since: Instant::now() };
        }
        seen.since.elapsed() > limit
    }

    /// The last event of the channel that the log has: its sequence number, and its key.
    async fn log_is_at(&self) -> Option<(u64, String)> {
        let subject = message::subject(&self.cluster.settings().name, &self.record.event);
        let last = self.kept.log.get_last_raw_message_by_subject(&subject).await.ok()?;
        let key = message::message_id(&last.headers)?;
        Some((last.sequence, key.split('~').next().unwrap_or_default().to_owned()))
    }

    /// Whether the log has the event already. Asked only of events that are old.
    async fn is_known(&mut self) -> Result<bool, async_nats::Error> {
        let key = message::key(&self.record.event);
        let known = if let Some(known) = self.known.take() {
            known
        } else {
            let subject = message::subject(&self.cluster.settings().name, &self.record.event);
            let age = self.record.age();
            Arc::new(ids_since(&self.cluster, &self.kept, subject, age).await?)
        };
        let is_known = known.contains(&*key);
        self.known = Some(known);
        Ok(is_known)
    }
}

/// How much further back than the event's age the log is read: a copy may have come before.
const BEFORE: Duration = Duration::from_mins(1);

/// The message ids that the log has of a subject since that long.
async fn ids_since(
    cluster: &Cluster,
    kept: &Kept,
    subject: String,
    age: Duration,
) -> Result<HashSet<Arc<str>>, async_nats::Error> {
    let server_now = i128::from(crate::base::clock::now()) + i128::from(cluster.ahead());
    let since = i128::try_from((age + BEFORE).as_millis()).unwrap_or(0);
    let start_time =
        time::OffsetDateTime::from_unix_timestamp_nanos((server_now - since) * 1_000_000)?;
    let consumer = kept
        .log
        .create_consumer(pull::OrderedConfig {
            deliver_policy: DeliverPolicy::ByStartTime { start_time },
            filter_subject: subject,
            headers_only: true,
            ..pull::OrderedConfig::default()
        })
        .await?;
    let mut pending = consumer.cached_info().num_pending;
    let mut ids = HashSet::new();
    let mut messages = consumer.messages().await?;
    while pending > 0 {
        let Some(message) = timeout(PATIENCE, messages.next()).await? else { break };
        let message = message?;
        pending = message.info()?.pending;
        ids.extend(message.headers.as_ref().and_then(message::message_id));
    }
    Ok(ids)
}
