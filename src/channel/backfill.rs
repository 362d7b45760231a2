//! After a gap: what a channel missed of its activities, tips and redemptions, out of their histories.
//!
//! It follows the journal for `relay.gap`, fetches the channel's histories for the time of the gap, and
//! appends what has not been received, oldest first and in the shape of the live message, marked
//! [`Origin::Backfilled`](crate::base::event::Origin). An event on [`TOPIC`] says what became of each
//! history, and a second `relay.gap` what became of the gap, topic by topic. There is no history of the
//! other topics, and none is made up.
//!
//! Only what lies in the gap is brought. The server's clock and ours may differ, and what was on its way
//! when the connection broke was made a little earlier: so a history is asked for [`OVERLAP`] more on both
//! sides, in the server's own time as far as that is known, and of that so much is taken as can belong
//! to the gap ([`GapWindow`]). What was received is known by its id, see [`Intake`].
//!
//! It has a cursor in the journal that stays before a gap that is not done. A relay that ends in the
//! middle begins the gap again, and what was appended stays known.

mod gap;
mod message;
mod recall;

use std::{
    collections::{BTreeSet, VecDeque},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures_util::{
    StreamExt,
    future::{BoxFuture, join_all},
    stream::FuturesUnordered,
};
use serde_json::{Value, json};
use tokio::{
    sync::{Mutex, OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::{
    gap::{Gap, Missed, concerns},
    recall::Recalled,
};
use crate::{
    astro::rest::{
        Credentials, CredentialsError, History, HistoryItem, HistoryReader, PAGE, Rest, RestError,
    },
    base::{
        backoff::Backoff,
        clock::{self, UnixMillis},
        event::{self, Event, Seq},
        json,
        metrics::{self, BACKFILLED},
        text,
    },
    config::Start,
    gateway::{GapClock, Targets, intake::Intake},
    journal::{Batch, Follower, Journal, StoreError},
};

/// The topic of the report.
pub const TOPIC: &str = "relay.backfill";

/// Its cursor. No sink can have this name: theirs have no dot.
pub const CURSOR: &str = "relay.backfill";

/// How much more is asked for on both sides of a gap: clocks that are a minute apart, and a minute.
const OVERLAP: Duration = Duration::from_mins(2);

/// What was published after a connection broke may have been made so much earlier: a tip has to pass its
/// means of payment first, and the gateway tells whole seconds.
const PUBLISHED_LATER: Duration = Duration::from_secs(15);

/// How exactly the gateway's clock is known, where it is.
const CLOCK_KNOWN: Duration = Duration::from_secs(5);

/// And where it is not: a clock that differs by more was noticed.
const CLOCK_UNKNOWN: Duration = Duration::from_mins(1);

/// Gaps for which the server is asked at once. One that waits for its next attempt is not among them.
const AT_ONCE: usize = 2;

/// Gaps of one channel that are begun and not done, at most: later ones wait, and are joined.
const OF_ONE_CHANNEL: usize = 2;

/// How long a history that cannot be had is asked for, since its last page that could.
const GIVE_UP: Duration = Duration::from_hours(1);

/// The ceilings of the waits between two attempts.
const WAIT: (Duration, Duration) = (Duration::from_secs(2), Duration::from_mins(2));

/// Items of all histories that are kept between two attempts, at most: some ten megabytes. A history that
/// would exceed that is read from its beginning again.
const KEPT: usize = 20_000;

/// Why a history is not complete.
const TOO_LONG: &str = "the history is longer than what is fetched of it";
const ONLY_NAMED_TYPES: &str =
    "the history lists only the types of activities that a request names: others may be missing";

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
    /// The gaps that are begun and not done: the channel, and the number in the journal.
    begun: BTreeSet<(Arc<str>, Seq)>,
}

/// What a gap is worked on with.
#[derive(Debug, Clone)]
struct Tools {
    rest: Rest,
    journal: Journal,
    intake: Arc<Intake>,
    known_activities: Arc<Mutex<Recalled>>,
    slots: Arc<Semaphore>,
    kept: Arc<Semaphore>,
    covered: Option<Covered>,
}

/// What a channel may have missed since so long ago.
#[derive(Debug)]
pub struct MissedTopics {
    pub channel: Arc<str>,
    pub topics: Vec<String>,
    pub since: Duration,
}

/// Answers whether somebody else had all of that, all the time: then nothing was missed.
#[derive(Clone)]
pub struct Covered(pub Arc<dyn Fn(MissedTopics) -> BoxFuture<'static, bool> + Send + Sync>);

impl std::fmt::Debug for Covered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Covered")
    }
}

/// What a history had.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Found {
    /// Items that can belong to the gap, received or not.
    listed: usize,
    /// Those of them that were not received, and were appended.
    recovered: usize,
    /// Those of the recovered that were made before the gap began.
    before_gap: usize,
    /// Items around the gap that were not received and do not belong to it: left where they are.
    outside: usize,
    /// Whether that is all that the history has of the gap.
    complete: bool,
    /// Why not, of a single history.
    reason: Option<&'static str>,
}

impl Found {
    fn add(&mut self, other: &Self) {
        self.listed += other.listed;
        self.recovered += other.recovered;
        self.before_gap += other.before_gap;
        self.outside += other.outside;
        self.complete &= other.complete;
    }

    /// As it is reported.
    fn to_json(&self) -> Value {
        let mut found = json!({
            "found": self.listed, "recovered": self.recovered, "complete": self.complete,
        });
        for (name, count) in [("before_gap", self.before_gap), ("outside", self.outside)] {
            if count > 0 {
                json::set(&mut found, name, count.into());
            }
        }
        if let Some(reason) = self.reason {
            json::set(&mut found, "reason", reason.into());
        }
        found
    }
}

/// Answers which gap is done, as [`Backfill::begun`] has it.
type Work = FuturesUnordered<Pin<Box<dyn Future<Output = (Arc<str>, Seq)> + Send>>>;

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
            tools: Tools {
                rest,
                journal,
                intake,
                known_activities: Arc::default(),
                slots: Arc::new(Semaphore::new(AT_ONCE)),
                kept: Arc::new(Semaphore::new(KEPT)),
                covered: None,
            },
            targets,
            waiting: VecDeque::new(),
            begun: BTreeSet::new(),
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
            let next = self.next_gap();
            let slot = Arc::clone(&self.tools.slots).acquire_owned();
            tokio::select! {
                () = stop.cancelled() => break,
                Ok(slot) = slot, if next.is_some() => {
                    let Some(gap) = next.and_then(|at| self.waiting.remove(at)) else { continue };
                    let (tools, targets) = (self.tools.clone(), self.targets.clone());
                    let begun = (Arc::clone(&gap.channel), gap.seq);
                    self.begun.insert(begun.clone());
                    work.push(Box::pin(async move {
                        tools.fill(&gap, &targets, slot).await;
                        begun
                    }));
                }
                Some(done) = work.next() => {
                    self.begun.remove(&done);
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

    /// Which of the waiting gaps is the next to begin.
    fn next_gap(&self) -> Option<usize> {
        self.waiting.iter().position(|gap| {
            let of_channel = |seq| (Arc::clone(&gap.channel), seq);
            let begun = self.begun.range(of_channel(Seq::MIN)..=of_channel(Seq::MAX));
            begun.count() < OF_ONE_CHANNEL
        })
    }

    fn take(&mut self, batch: &Batch) {
        for record in &batch.records {
            let Some(gap) = Gap::read(&record.event, record.seq) else { continue };
            if !self.waiting.iter_mut().any(|waiting| waiting.join(&gap)) {
                self.waiting.push_back(gap);
            }
        }
        self.advance();
    }

    /// The cursor stays before the first gap that is not done.
    fn advance(&mut self) {
        let begun = self.begun.iter().map(|(_, seq)| *seq);
        let open = self.waiting.iter().map(|gap| gap.seq).chain(begun).min();
        self.follower.done(open);
    }
}

impl Tools {
    /// Fills a gap, however long that takes, and reports what became of it.
    async fn fill(
        &self,
        gap: &Gap,
        targets: &watch::Receiver<Targets>,
        slot: OwnedSemaphorePermit,
    ) {
        if let (Some(covered), GapClock::Ours) = (&self.covered, gap.clock) {
            let since = Duration::from_millis(clock::now().saturating_sub(gap.from));
            let fetched = gap.missed.iter().filter(|missed| missed.history().is_some());
            let topics = fetched.map(|missed| missed.topic.to_string()).collect();
            let channel = Arc::clone(&gap.channel);
            if covered.0(MissedTopics { channel, topics, since }).await {
                return;
            }
        }
        let with_history = gap.missed.iter().filter_map(|missed| Some((missed, missed.history()?)));
        // Its histories are fetched at once in one slot, which is free when none of them needs it.
        let slot = Arc::new(slot);
        let fills = with_history.map(move |(missed, history)| {
            let slot = Arc::clone(&slot);
            async move {
                let outcome = self.fill_topic(gap, missed, history, targets, slot).await;
                (missed.clone(), outcome)
            }
        });
        let found = join_all(fills).await;
        let mut events: Vec<_> =
            found.iter().map(|(missed, outcome)| report(gap, missed, outcome)).collect();
        let room = gap.missed.first().map_or_else(|| "".into(), |missed| Arc::clone(&missed.room));
        let outcome = gap.outcome(&found);
        events.push(event::own(gap::TOPIC, &gap.channel, &room, &outcome, clock::now()));
        // Lost on their way to the disk they are made again: the cursor is still before the gap there.
        self.journal.append(&mut events);
    }

    /// Fills it from one history. An error is what cannot be mended by waiting, or lasts. The slot is held
    /// during attempts, and not between them.
    async fn fill_topic(
        &self,
        gap: &Gap,
        missed: &Missed,
        history: History,
        targets: &watch::Receiver<Targets>,
        mut slot: Arc<OwnedSemaphorePermit>,
    ) -> Result<Found, String> {
        let (channel, topic) = (&gap.channel, &missed.topic);
        let mut retries = Retries::new(0);
        let mut reading: Option<Reading> = None;
        loop {
            let failed = match self.attempt(gap, missed, history, targets, &mut reading).await {
                Ok(found) => return Ok(found),
                Err(failed) => failed,
            };
            let error = text::excerpt(&failed.why, text::EXCERPT);
            let pages = reading.as_ref().map_or(0, |reading| reading.reader.pages());
            let Some(wait) = retries.wait(&failed, pages) else { return Err(error) };
            reading = reading.and_then(|reading| reading.keep(&self.kept));
            warn!(%channel, %topic, error, ?wait, "the history cannot be fetched; it is tried again");
            drop(slot);
            clock::sleep(wait).await;
            let free = Arc::clone(&self.slots).acquire_owned().await;
            slot = Arc::new(free.map_err(|error| error.to_string())?);
        }
    }

    /// Fetches with the token as it is now. A refusal of a token that was replaced meanwhile is not final.
    async fn attempt(
        &self,
        gap: &Gap,
        missed: &Missed,
        history: History,
        targets: &watch::Receiver<Targets>,
        reading: &mut Option<Reading>,
    ) -> Result<Found, Failed> {
        let credentials = credentials_for(&self.rest, gap, missed, targets).await?;
        // Boxed: between the attempts no memory is needed for one.
        let fetch = Box::pin(self.fetch(gap, missed, history, &credentials, reading));
        let error = match fetch.await {
            Ok(found) => return Ok(found),
            Err(error) => error,
        };
        let is_replaced = matches!(error, RestError::Refused { status: 401, .. })
            && credentials_for(&self.rest, gap, missed, targets).await.ok().as_ref()
                != Some(&credentials);
        Err(Failed {
            why: error.describe(),
            is_final: is_final(&error) && !is_replaced,
            asked: error.retry_after().unwrap_or_default(),
        })
    }

    /// Fetches, and appends what belongs to the gap and was not received.
    async fn fetch(
        &self,
        gap: &Gap,
        missed: &Missed,
        history: History,
        credentials: &Credentials,
        reading: &mut Option<Reading>,
    ) -> Result<Found, RestError> {
        let fetch = self.intake.fetch();
        let behind = self.known_activities.lock().await.recall(gap, &self.journal, &fetch).await;
        drop(reading.take_if(|reading| reading.channel != credentials.channel));
        let reading = reading.get_or_insert_with(|| {
            let window = GapWindow::of(gap, gap.ahead.or(behind));
            Reading::new(history, credentials, window)
        });
        let window = reading.window;
        let listed = reading.reader.read(&self.rest, credentials).await?;
        let only_named = listed.only_named_types.then_some(ONLY_NAMED_TYPES);
        let reason = if listed.complete { only_named } else { Some(TOO_LONG) };
        let mut found = Found { complete: reason.is_none(), reason, ..Found::default() };
        let published = |item: &&HistoryItem| message::is_published(history, item);
        let items: Vec<&HistoryItem> = listed.items.iter().filter(published).collect();
        for some in items.chunks(PAGE) {
            self.journal.ready().await;
            for item in some {
                let event = message::event(gap, missed, history, item);
                if !window.has(item.at) {
                    found.outside += usize::from(!fetch.knows(&event));
                    continue;
                }
                found.listed += 1;
                let recovered = fetch.append([event]);
                found.recovered += recovered;
                found.before_gap += if item.at < window.from { recovered } else { 0 };
            }
        }
        Ok(found)
    }
}

/// A history that is being read, over all attempts.
#[derive(Debug)]
struct Reading {
    /// Whose history it is: its id may be configured in another way meanwhile.
    channel: String,
    window: GapWindow,
    reader: HistoryReader,
    /// For the items that are kept between two attempts.
    kept: Option<OwnedSemaphorePermit>,
}

impl Reading {
    fn new(history: History, credentials: &Credentials, window: GapWindow) -> Self {
        let (after, before) = window.span();
        let reader = HistoryReader::new(history, after, before);
        Self { channel: credentials.channel.clone(), window, reader, kept: None }
    }

    /// Keeps what was read for the next attempt; `None`: there is nothing, or no room for it.
    fn keep(mut self, room: &Arc<Semaphore>) -> Option<Self> {
        self.kept = None;
        let items = u32::try_from(self.reader.items()).ok().filter(|items| *items > 0)?;
        self.kept = Some(Arc::clone(room).try_acquire_many_owned(items).ok()?);
        Some(self)
    }
}

/// When a history that could not be had is asked for again.
#[derive(Debug)]
struct Retries {
    backoff: Backoff,
    /// The attempt that fails after this is the last.
    end: Instant,
    /// Pages that were read so far.
    pages: usize,
}

impl Retries {
    fn new(pages: usize) -> Self {
        Self { backoff: Backoff::new(WAIT.0, WAIT.1), end: Instant::now() + GIVE_UP, pages }
    }

    /// How long to wait, at least as long as the server asked for; `None`: it is given up.
    fn wait(&mut self, failed: &Failed, pages: usize) -> Option<Duration> {
        if pages > self.pages {
            *self = Self::new(pages);
        }
        let is_over = failed.is_final || Instant::now() > self.end;
        (!is_over).then(|| self.backoff.wait().max(failed.asked))
    }
}

/// Why an attempt has failed.
#[derive(Debug)]
struct Failed {
    why: String,
    /// Waiting does not help.
    is_final: bool,
    /// How long the server asked to be left alone.
    asked: Duration,
}

/// Whether the server refuses the request itself: repeated, it would be refused again.
fn is_final(failure: &RestError) -> bool {
    match failure {
        RestError::Refused { status: 400 | 404 | 410, .. } => true,
        other => other.is_unauthorised(),
    }
}

/// Reports what became of one topic of a gap: in the log, in the metrics, and by an event.
fn report(gap: &Gap, missed: &Missed, outcome: &Result<Found, String>) -> Event {
    let (channel, topic) = (&gap.channel, &missed.topic);
    let mut data = match outcome {
        Ok(found) => {
            let Found { listed, recovered, outside, complete, reason, .. } = *found;
            info!(%channel, %topic, found = listed, recovered, outside, complete, "the history was fetched");
            match reason {
                None => {}
                Some(ONLY_NAMED_TYPES) => warn!(%channel, %topic, "{ONLY_NAMED_TYPES}"),
                Some(reason) => error!(%channel, %topic, "{reason}"),
            }
            let count = u64::try_from(recovered).unwrap_or(u64::MAX);
            metrics::add_for(BACKFILLED, "channel", channel, count);
            found.to_json()
        }
        Err(error) => {
            error!(%channel, %topic, error, "what was missed cannot be fetched");
            let mut data = Found::default().to_json();
            json::set(&mut data, "error", error.as_str().into());
            data
        }
    };
    for (name, value) in [
        ("channel", &**channel),
        ("topic", &**topic),
        ("from", &clock::rfc3339(gap.from)),
        ("to", &clock::rfc3339(gap.to)),
    ] {
        json::set(&mut data, name, value.into());
    }
    event::own(TOPIC, channel, &missed.room, &data, clock::now())
}

/// A gap in the server's time, and how far from it something may have been made that belongs to it.
#[derive(Debug, Clone, Copy)]
struct GapWindow {
    from: UnixMillis,
    /// `None`: when it ended is not known.
    to: Option<UnixMillis>,
    early: u64,
    late: u64,
}

impl GapWindow {
    /// `behind`: how far the server's clock is behind ours, or (negative) ahead of it; `None`: not known.
    fn of(gap: &Gap, behind: Option<i64>) -> Self {
        let behind = if gap.clock == GapClock::Ours { behind } else { Some(0) };
        let unsure = if behind.is_some() { CLOCK_KNOWN } else { CLOCK_UNKNOWN };
        let there = |time: UnixMillis| time.saturating_add_signed(-behind.unwrap_or(0));
        Self {
            from: there(gap.from),
            to: (gap.clock != GapClock::Unknown).then(|| there(gap.to)),
            early: clock::millis_of(unsure + PUBLISHED_LATER),
            late: clock::millis_of(unsure),
        }
    }

    /// What is asked for.
    fn span(&self) -> (UnixMillis, Option<UnixMillis>) {
        let overlap = clock::millis_of(OVERLAP);
        (self.from.saturating_sub(overlap), self.to.map(|to| to.saturating_add(overlap)))
    }

    /// Whether something that was made then can belong to the gap.
    fn has(&self, at: UnixMillis) -> bool {
        at >= self.from.saturating_sub(self.early)
            && self.to.is_none_or(|to| at <= to.saturating_add(self.late))
    }
}

/// Under which id and with which token a history is asked for.
async fn credentials_for(
    rest: &Rest,
    gap: &Gap,
    missed: &Missed,
    targets: &watch::Receiver<Targets>,
) -> Result<Credentials, Failed> {
    let failed = |why: String, is_final| Failed { why, is_final, asked: Duration::ZERO };
    let account = targets.borrow().channels.get(&gap.channel).cloned();
    let account =
        account.ok_or_else(|| failed("the channel is no longer configured".into(), true))?;
    let rooms = [Some(&*missed.room), account.room.as_deref()];
    let rooms = rooms.into_iter().flatten();
    let found = rest.credentials(rooms, &account.token, account.token_type).await;
    found.map_err(|error| {
        // A file may be about to be replaced.
        let is_final = matches!(error, CredentialsError::NoId);
        failed(error.to_string(), is_final)
    })
}

#[cfg(test)]
mod tests;
