//! One attempt to publish an event: whether it may be published now, and what became of it.

use std::{collections::HashSet, sync::Arc, time::Duration};

use async_nats::jetstream::stream::LastRawMessageErrorKind;
use futures_util::future::{BoxFuture, Shared};
use tokio::time::{Instant, timeout};

use crate::{
    base::event::Record,
    cluster::{Cluster, connection::Storage, gaps, message, parts, reading::Reading},
    gateway::table::Table,
    sink::nats::headers::MESSAGE_ID,
};

/// Holders whose subscriptions stood within this time began together.
pub(super) const TOGETHER: Duration = Duration::from_millis(500);

/// How long an acknowledgement may take before the event is published again.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);

/// How long an event waits for a log that does not move, beyond the lease time, where another member may be behind,
const STEP: Duration = Duration::from_secs(3);

/// and where one says that it is: it may not be able to publish what the others can.
const LONG_STEP: Duration = Duration::from_secs(30);

const UNREACHED: &str = "no NATS server is reached";

/// What became of an attempt.
pub(super) enum Outcome {
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
    NoLog,
    Failed(String),
}

/// With which of its events a member is in step with the other holders of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InStep {
    /// With those from before the break.
    Before,
    /// With all.
    All,
}

/// Where the log was in a channel, and since when.
#[derive(Clone, Copy)]
pub(super) struct LogPosition {
    seq: u64,
    since: Instant,
}

/// The keys of the events that the log has of a channel since an old one was received.
pub(super) type LoggedKeys = Arc<HashSet<Arc<str>>>;

/// Whether another member held the channel of a gap all the time.
pub(super) type IsCovered = Shared<BoxFuture<'static, bool>>;

/// Whether a gap is covered. One that is not is this member's to publish, and counted here.
pub(super) async fn is_covered(cluster: Cluster, table: Arc<Table>, record: Arc<Record>) -> bool {
    let is_covered = gaps::is_covered(cluster, Arc::clone(&record)).await;
    if !is_covered {
        table.count_gap(&record.event);
    }
    is_covered
}

/// A member that may not be in step with the other holders of a channel.
pub(super) struct Behind {
    /// For how long the channel has stood, for an event that was received since.
    pub(super) uptime: Option<Duration>,
    /// What others received before that is to be in the log.
    pub(super) waits: Duration,
    /// The keys of the events that it has received since the channel has stood.
    pub(super) received: HashSet<String>,
}

/// Whether an event is so old that the log may not recognise a copy of it: it is looked up.
pub(super) fn is_old(cluster: &Cluster, age: Duration) -> bool {
    age > cluster.settings().duplicate_window.0 / 2
}

/// One attempt to publish, with whatever has to be asked or waited for before.
pub(super) struct Work {
    pub(super) cluster: Cluster,
    pub(super) storage: Arc<Storage>,
    pub(super) record: Arc<Record>,
    pub(super) logged: Option<LoggedKeys>,
    /// This member may not be in step with the other holders of the channel.
    pub(super) behind: Option<Behind>,
    pub(super) in_step: Option<InStep>,
    pub(super) log_position: Option<LogPosition>,
    pub(super) is_covered: Option<IsCovered>,
    /// Nothing more is read before some of what was read is done: what the log has already goes.
    pub(super) full: bool,
    /// Under another id: the log knows the first one and has not stored it.
    pub(super) again: bool,
    /// How long it may have waited before it was read.
    pub(super) unread: Duration,
}

impl Work {
    pub(super) async fn publish(&mut self) -> Outcome {
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
            if self.full && self.is_logged().await.is_ok_and(|logged| logged) {
                return Outcome::NotNeeded;
            }
            self.logged = None;
            return Outcome::NotYet;
        }
        if is_old(&self.cluster, self.age()) {
            match self.is_logged().await {
                Ok(true) => return Outcome::NotNeeded,
                Ok(false) => {}
                Err(error) => return Outcome::Failed(error.to_string()),
            }
        } else {
            self.logged = None;
        }
        if !self.cluster.0.connection.is_reached() {
            // Whether it is reached now: it is tried again either way.
            self.cluster.0.connection.wait_reached(PATIENCE).await;
            return Outcome::Failed(UNREACHED.into());
        }
        let (subject, mut headers) = message::of(&self.cluster, &self.record);
        if self.again {
            headers.insert(MESSAGE_ID, format!("{}{}", message::key(event), message::AGAIN));
        }
        let pieces = parts::pieces(&event.message, self.cluster.max_payload());
        let patience = PATIENCE * u32::try_from(pieces.len()).unwrap_or(u32::MAX);
        let name = &self.cluster.settings().name;
        let published = parts::publish(self.cluster.context(), name, subject, headers, pieces);
        let published = timeout(patience, published).await;
        // Where an answer was lost the log may have it now.
        if !matches!(published, Ok(Ok(_))) {
            self.logged = None;
        }
        match published {
            Ok(Ok(ack)) if ack.sequence == 0 => Outcome::Unstored,
            Ok(Ok(ack)) if ack.duplicate => Outcome::Duplicate,
            Ok(Ok(_)) => Outcome::Stored,
            Ok(Err(error)) => {
                use async_nats::jetstream::context::PublishErrorKind as Kind;
                match error.kind() {
                    Kind::MaxPayloadExceeded => Outcome::Rejected(error.to_string()),
                    Kind::StreamNotFound => Outcome::NoLog,
                    _ => Outcome::Failed(format!("the log takes no event: {error}")),
                }
            }
            Err(_) => Outcome::Failed("NATS does not answer".into()),
        }
    }

    /// How long ago a copy of the event may have come to another member.
    fn age(&self) -> Duration {
        self.record.age() + self.unread
    }

    /// Whether the event may be published now: no other member may be behind, or the log has come to one of the
    /// events that this member has received since it has held the channel. However long that takes, it is
    /// waited for while the log moves, or cannot be read; where it stands still, nobody is behind.
    async fn step(&mut self) -> bool {
        let Some(Behind { uptime, waits, received }) = &self.behind else { return true };
        let channel = &self.record.event.place.channel;
        // Of two that began together, the first holder goes on.
        let is_first = self.cluster.is_first_holder(channel);
        let ahead = if is_first { TOGETHER } else { Duration::ZERO };
        let asked = uptime.map(|uptime| uptime + ahead);
        let limit = self.cluster.settings().lease.0;
        let limit = match gaps::behind(&self.cluster, channel, asked, *waits).await {
            gaps::Behind::No => None,
            gaps::Behind::Perhaps => Some(limit + STEP),
            gaps::Behind::Yes => Some(limit + LONG_STEP),
        };
        self.in_step = match limit {
            None => Some(if uptime.is_some() { InStep::All } else { InStep::Before }),
            Some(limit) => {
                let at = self.log_is_at().await;
                let is_there = at
                    .as_ref()
                    .is_some_and(|(_, key)| key.as_ref().is_some_and(|key| received.contains(key)));
                let stands_still = self.log_stands_still(at.map(|(seq, _)| seq), limit);
                (is_there || stands_still).then_some(InStep::All)
            }
        };
        if self.in_step.is_some() {
            (self.behind, self.log_position) = (None, None);
        }
        self.in_step.is_some()
    }

    /// Whether the log was there in this channel for that long; `None`: where it is is not known.
    fn log_stands_still(&mut self, seq: Option<u64>, limit: Duration) -> bool {
        let Some(seq) = seq else {
            self.log_position = None;
            return false;
        };
        let position = self.log_position.filter(|position| position.seq == seq);
        let position = position.unwrap_or_else(|| LogPosition { seq, since: Instant::now() });
        self.log_position = Some(position);
        position.since.elapsed() > limit
    }

    /// The last event of the channel that the log has: its sequence number, 0 where it has none, and its key.
    async fn log_is_at(&self) -> Option<(u64, Option<String>)> {
        let subject = message::subject(&self.cluster.settings().name, &self.record.event);
        let last = match self.storage.log.get_last_raw_message_by_subject(&subject).await {
            Ok(last) => last,
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
                return Some((0, None));
            }
            Err(_) => return None,
        };
        Some((last.sequence, message::key_in(&last.headers).map(ToOwned::to_owned)))
    }

    /// Whether the log has the event already. Asked only of events that are old.
    async fn is_logged(&mut self) -> Result<bool, async_nats::Error> {
        let key = message::key(&self.record.event);
        let logged = if let Some(logged) = self.logged.take() {
            logged
        } else {
            let subject = message::subject(&self.cluster.settings().name, &self.record.event);
            Arc::new(keys_since(&self.cluster, &self.storage, subject, self.age()).await?)
        };
        let is_logged = logged.contains(&*key);
        self.logged = Some(logged);
        Ok(is_logged)
    }
}

/// How much further back than the event's age the log is read: a copy may have come before.
const BEFORE: Duration = Duration::from_mins(1);

/// The keys of the events that the log has of a subject since that long.
async fn keys_since(
    cluster: &Cluster,
    storage: &Storage,
    subject: String,
    age: Duration,
) -> Result<HashSet<Arc<str>>, async_nats::Error> {
    let since = cluster.clock().ago(age + BEFORE);
    let mut reading = Reading::headers_since(&storage.log, since, subject).await?;
    let mut keys = HashSet::new();
    while reading.pending > 0 {
        let message = reading.pending(PATIENCE).await?;
        keys.extend(message.headers.as_ref().and_then(message::key_in).map(Arc::from));
    }
    Ok(keys)
}
