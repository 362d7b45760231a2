//! After a gap: what a channel missed of its activities, out of their history.
//!
//! It follows the journal for `relay.gap`, fetches the channel's history for the time of the gap, and
//! appends what has not been received, oldest first and in the shape of the live message, marked
//! [`Origin::Backfilled`](crate::base::event::Origin). An event on [`TOPIC`] says what became of it. There
//! is no history of the other topics, and none is made up.
//!
//! The server's clock and ours may differ, and a message may have been on its way when the connection
//! broke: so the history is asked for [`OVERLAP`] more on both sides, in the server's own time as far
//! as that is known. What was received in there is known by the activity's id, see [`Intake`].
//!
//! It has a cursor in the journal that stays before a gap that is not done. A relay that ends in the
//! middle begins the gap again, and what was appended stays known.

mod gap;
mod message;
mod recall;

use std::{
    collections::{HashSet, VecDeque},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use serde_json::json;
use tokio::{
    sync::{Mutex, watch},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::{
    gap::{Clock, Gap, concerns},
    recall::Recalled,
};
use crate::{
    astro::rest::{Activity, Credentials, PAGE, Rest, RestError, Span, Target, credentials},
    base::{
        backoff::Backoff,
        clock::{self, UnixMillis},
        event::{self, Seq},
        metrics::{self, BACKFILLED},
        text,
    },
    config::Start,
    gateway::{ACTIVITIES, Targets, intake::Intake},
    journal::{Batch, Follower, Journal, StoreError},
};

/// The topic of the report.
pub const TOPIC: &str = "relay.backfill";

/// Its cursor. No sink can have this name: theirs have no dot.
pub const CURSOR: &str = "relay.backfill";

/// How much more is asked for on both sides of a gap: clocks that are a minute apart, and a minute.
const OVERLAP: Duration = Duration::from_mins(2);

/// Pages of one gap, at most: ten thousand activities are a gap of days.
const PAGES: usize = 100;

/// Gaps worked on at once: others wait.
const AT_ONCE: usize = 2;

/// How long a history that cannot be had is asked for.
const GIVE_UP: Duration = Duration::from_hours(1);

/// The ceilings of the waits between two attempts.
const WAIT: (Duration, Duration) = (Duration::from_secs(2), Duration::from_mins(2));

/// Events looked at at once, and their bytes.
const BATCH: usize = 512;
const BATCH_BYTES: usize = 512 * 1024;

/// How long to wait for a journal that cannot be read at the moment.
const JOURNAL_RETRY: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub struct Backfill {
    tools: Tools,
    targets: watch::Receiver<Targets>,
    follower: Follower,
    waiting: VecDeque<Gap>,
    /// The gaps that are being worked on, by their number in the journal.
    begun: HashSet<Seq>,
}

/// What a gap is worked on with.
#[derive(Debug, Clone)]
struct Tools {
    rest: Rest,
    journal: Journal,
    intake: Arc<Intake>,
    known_activities: Arc<Mutex<Recalled>>,
    covered: Option<Covered>,
}

/// Answers whether somebody else had a channel all the time, since so long ago: then nothing was missed.
#[derive(Clone)]
pub struct Covered(pub Arc<dyn Fn(Arc<str>, Duration) -> BoxFuture<'static, bool> + Send + Sync>);

impl std::fmt::Debug for Covered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Covered")
    }
}

/// What the history had.
#[derive(Debug, Default)]
struct Found {
    activities: usize,
    recovered: usize,
    complete: bool,
}

type Work = FuturesUnordered<Pin<Box<dyn Future<Output = Seq> + Send>>>;

impl Backfill {
    /// One that continues at its cursor.
    pub fn new(
        rest: Rest,
        intake: Arc<Intake>,
        targets: watch::Receiver<Targets>,
    ) -> Result<Self, StoreError> {
        let journal = intake.journal().clone();
        Ok(Self {
            follower: journal.follow(CURSOR, Start::End, concerns)?,
            tools: Tools { rest, journal, intake, known_activities: Arc::default(), covered: None },
            targets,
            waiting: VecDeque::new(),
            begun: HashSet::new(),
        })
    }

    /// The same, which asks before it fills a gap.
    #[must_use]
    pub fn unless(mut self, covered: Option<Covered>) -> Self {
        self.tools.covered = covered;
        self
    }

    /// Fills gaps until it is stopped.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut work = Work::new();
        loop {
            while work.len() < AT_ONCE
                && let Some(gap) = self.waiting.pop_front()
            {
                self.begun.insert(gap.seq);
                let (tools, targets) = (self.tools.clone(), self.targets.clone());
                work.push(Box::pin(async move {
                    let seq = gap.seq;
                    tools.fill(gap, &targets).await;
                    seq
                }));
            }
            tokio::select! {
                () = stop.cancelled() => break,
                Some(seq) = work.next() => {
                    self.begun.remove(&seq);
                    self.advance();
                }
                batch = self.follower.next(BATCH, BATCH_BYTES) => match batch {
                    Ok(batch) => self.take(&batch),
                    Err(error) => {
                        warn!(%error, "the journal cannot be read now");
                        sleep(JOURNAL_RETRY).await;
                    }
                },
            }
        }
    }

    fn take(&mut self, batch: &Batch) {
        for record in &batch.records {
            let Some(gap) = Gap::read(&record.event, record.seq) else { continue };
            // Several at once for one channel are one longer gap.
            let same =
                |waiting: &&mut Gap| waiting.channel == gap.channel && waiting.clock == gap.clock;
            match self.waiting.iter_mut().find(same) {
                Some(waiting) => {
                    (waiting.from, waiting.to) =
                        (waiting.from.min(gap.from), waiting.to.max(gap.to));
                }
                None => self.waiting.push_back(gap),
            }
        }
        self.advance();
    }

    /// The cursor stays before the first gap that is not done.
    fn advance(&mut self) {
        let open = self.waiting.iter().map(|gap| gap.seq).chain(self.begun.iter().copied()).min();
        self.follower.done(open);
    }
}

impl Tools {
    /// Fills a gap, however long that takes, and reports what became of it.
    async fn fill(&self, gap: Gap, targets: &watch::Receiver<Targets>) {
        let channel = &gap.channel;
        if let (Some(covered), Clock::Ours) = (&self.covered, gap.clock) {
            let since = Duration::from_millis(clock::now().saturating_sub(gap.from));
            if covered.0(Arc::clone(channel), since).await {
                return;
            }
        }
        let mut backoff = Backoff::new(WAIT.0, WAIT.1);
        let end = Instant::now() + GIVE_UP;
        let outcome = loop {
            let credentials = match credentials_for(&gap, targets).await {
                Ok(found) => found,
                Err(why) => break Err(why),
            };
            let failure = match self.attempt(&gap, credentials.target()).await {
                Ok(found) => break Ok(found),
                Err(failure) => failure,
            };
            let wait = backoff.wait().max(failure.retry_after().unwrap_or_default());
            if failure.is_unauthorised() || Instant::now() + wait > end {
                break Err(failure.describe());
            }
            let error = text::excerpt(&failure.describe(), text::EXCERPT);
            warn!(%channel, error, ?wait, "the history cannot be fetched; it is tried again");
            clock::sleep(wait).await;
        };
        self.report(&gap, outcome);
    }

    /// Reports what became of a gap: in the log, in the metrics, and by an event.
    fn report(&self, gap: &Gap, outcome: Result<Found, String>) {
        let channel = &gap.channel;
        let (found, error) = match outcome {
            Ok(found) => (found, None),
            Err(why) => (Found::default(), Some(text::excerpt(&why, text::EXCERPT))),
        };
        let Found { activities, recovered, complete } = found;
        if let Some(error) = &error {
            error!(%channel, error, "what was missed cannot be fetched");
        } else {
            info!(%channel, activities, recovered, complete, "the history was fetched");
            if !complete {
                error!(%channel, "the history is longer than what is fetched of it");
            }
        }
        let count = u64::try_from(recovered).unwrap_or(u64::MAX);
        metrics::add_for(BACKFILLED, "channel", channel, count);
        let mut data = json!({
            "channel": &**channel, "topic": ACTIVITIES,
            "from": clock::rfc3339(gap.from), "to": clock::rfc3339(gap.to),
            "found": activities, "recovered": recovered, "complete": complete,
        });
        if let (Some(data), Some(error)) = (data.as_object_mut(), error) {
            data.insert("error".into(), error.into());
        }
        // Lost on its way to the disk it is made again: the cursor is still before the gap there.
        self.journal.append(&mut vec![event::own(TOPIC, channel, &gap.room, &data, clock::now())]);
    }

    /// Fetches, and appends what was not received.
    async fn attempt(&self, gap: &Gap, target: Target<'_>) -> Result<Found, RestError> {
        let fetch = self.intake.fetch();
        // How far the server's clock is behind ours, or (negative) ahead of it.
        let behind = self.known_activities.lock().await.recall(gap, &self.journal, &fetch).await;
        let behind = if gap.clock == Clock::Ours { behind } else { 0 };
        let overlap = i64::try_from(OVERLAP.as_millis()).unwrap_or(0);
        let after = gap.from.saturating_add_signed(-behind - overlap);
        let before = gap.to.saturating_add_signed(-behind + overlap);
        let before = (gap.clock != Clock::Unknown).then_some(before);
        let (mut activities, complete) = self.history(target, after, before).await?;
        // The pages come newest first, also within one millisecond.
        activities.reverse();
        activities.sort_by_key(|activity| activity.at);
        let mut found = Found { activities: activities.len(), recovered: 0, complete };
        for some in activities.chunks(PAGE) {
            self.journal.ready().await;
            let events = some.iter().map(|activity| message::event(gap, activity));
            found.recovered += fetch.append(events);
        }
        Ok(found)
    }

    /// All activities between two times, and whether that was all.
    async fn history(
        &self,
        target: Target<'_>,
        after: UnixMillis,
        before: Option<UnixMillis>,
    ) -> Result<(Vec<Activity>, bool), RestError> {
        let mut seen = HashSet::new();
        let mut activities = Vec::new();
        let mut before = before;
        for _ in 0..PAGES {
            let span = Span { after: Some(after), before, types: &[] };
            let page = self.rest.activities(target, &span).await?;
            let oldest = page.activities.last().map(|activity| activity.at);
            let fresh = page.activities.into_iter().filter(|one| seen.insert(one.id.clone()));
            let known = activities.len();
            activities.extend(fresh);
            let Some(oldest) = oldest.filter(|oldest| page.full && *oldest >= after) else {
                return Ok((activities, true));
            };
            // Whether a bound belongs to the span no document says: one millisecond more does no
            // harm, unless a whole page lies in it.
            let next = if activities.len() > known { oldest + 1 } else { oldest.saturating_sub(1) };
            before = Some(next);
        }
        Ok((activities, false))
    }
}

/// Under which id and with which token the history is asked for.
async fn credentials_for(
    gap: &Gap,
    targets: &watch::Receiver<Targets>,
) -> Result<Credentials, String> {
    let account = targets.borrow().channels.get(&gap.channel).cloned();
    let account = account.ok_or("the channel is no longer configured")?;
    let rooms = [Some(&*gap.room), account.room.as_deref()];
    credentials(rooms.into_iter().flatten(), &account.token, account.token_type).await
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
