//! After a gap: what a channel missed of its activities, out of their history.
//!
//! It follows the journal for `relay.gap`, fetches the channel's history for the time of the gap, and
//! hands on what has not been heard, oldest first and in the shape of the live message, marked
//! [`Origin::Backfilled`]. An event on [`TOPIC`] says what became of it. There is no history of the
//! other topics, and none is made up.
//!
//! The server's clock and ours may differ, and a message may have been on its way when the connection
//! broke: so the history is asked for [`OVERLAP`] more on both sides, in the server's own time as far
//! as that is known. What was heard in there is known by the activity's id, see [`Activities`].
//!
//! The one thing to know: it has a cursor in the journal that stays before a gap that is not done.
//! A relay that ends in the middle begins the gap again, and what was handed on stays known.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use serde::Deserialize;
use serde_json::json;
use tokio::{
    sync::{Mutex, watch},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    astro::rest::{Activity, Rest, RestError, Span, Target, credentials},
    base::{
        backoff::Backoff,
        clock::{self, UnixMillis},
        event::{self, Event, Origin, Place, Seq},
        json,
        metrics::{self, BACKFILLED},
        text,
    },
    config::{Secret, Start},
    gateway::{
        Targets,
        activities::{self, Activities, Fetch, LATE},
    },
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

/// Seconds of which is remembered how far the server's clock was behind ours: more than a gap looks
/// back.
const CLOCKS: usize = 1024;

/// How long to wait for a journal that cannot be read at the moment.
const JOURNAL_RETRY: Duration = Duration::from_millis(200);

/// Fetches what was missed.
#[derive(Debug)]
pub struct Backfill {
    tools: Tools,
    targets: watch::Receiver<Targets>,
    follower: Follower,
    waiting: VecDeque<Gap>,
    /// The places in the journal of the gaps that are being worked on.
    begun: HashSet<Seq>,
}

/// What a gap is worked on with.
#[derive(Debug, Clone)]
struct Tools {
    rest: Rest,
    journal: Journal,
    activities: Arc<Activities>,
    recalled: Arc<Mutex<Recalled>>,
}

/// What of the journal was recalled. When every connection ends at once, each of thousands of channels
/// has a gap, and all of them look back on the same minutes.
#[derive(Debug, Default)]
struct Recalled {
    /// What was heard from this time on is recalled.
    since: UnixMillis,
    /// Until when at least.
    until: UnixMillis,
    /// When that was.
    at: Option<Instant>,
    /// And through which event.
    through: Seq,
    /// How far the server's clock was behind ours, by the second: its last message will do.
    clocks: BTreeMap<UnixMillis, i64>,
}

/// A gap to be filled.
#[derive(Debug, Clone)]
struct Gap {
    /// Where it is told in the journal.
    seq: Seq,
    channel: Arc<str>,
    room: Arc<str>,
    from: UnixMillis,
    to: UnixMillis,
    clock: Clock,
}

/// By which clock a gap is told, see [`crate::gateway::gaps`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Clock {
    #[default]
    Ours,
    Gateway,
    /// When it ended is not known.
    #[serde(other)]
    Unknown,
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
    /// One that goes on where its cursor stands.
    pub fn new(
        rest: Rest,
        journal: Journal,
        activities: Arc<Activities>,
        targets: watch::Receiver<Targets>,
    ) -> Result<Self, StoreError> {
        Ok(Self {
            follower: journal.follow(CURSOR, Start::End, concerns)?,
            tools: Tools { rest, journal, activities, recalled: Arc::default() },
            targets,
            waiting: VecDeque::new(),
            begun: HashSet::new(),
        })
    }

    /// Fills gaps until it is told to stop.
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
            let Some(gap) = Gap::told(&record.event, record.seq) else { continue };
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

/// Whether an event tells of a channel's gap.
fn concerns(event: &Event) -> bool {
    &*event.place.topic == "relay.gap" && !event.place.channel.is_empty()
}

impl Gap {
    /// Reads what `relay.gap` tells; `None` where no activities are missing.
    fn told(event: &Event, seq: Seq) -> Option<Self> {
        #[derive(Deserialize)]
        struct Told {
            from: String,
            to: String,
            subscriptions: Vec<Missed>,
            #[serde(default)]
            clock: Clock,
        }
        #[derive(Deserialize)]
        struct Missed {
            topic: String,
            #[serde(default)]
            room: String,
            restored: bool,
        }
        if !concerns(event) {
            return None;
        }
        // A sink's own loss is told on the same topic, and has no subscriptions.
        let told: Told = serde_json::from_slice(event.data()).ok()?;
        let missed = told
            .subscriptions
            .into_iter()
            .find(|missed| missed.topic == activities::TOPIC && missed.restored)?;
        Some(Self {
            seq,
            channel: Arc::clone(&event.place.channel),
            room: missed.room.into(),
            from: clock::parse_rfc3339(&told.from)?,
            to: clock::parse_rfc3339(&told.to)?,
            clock: told.clock,
        })
    }
}

impl Tools {
    /// Fills a gap, however long that takes, and tells what became of it.
    async fn fill(&self, gap: Gap, targets: &watch::Receiver<Targets>) {
        let channel = &gap.channel;
        let mut backoff = Backoff::new(WAIT.0, WAIT.1);
        let end = Instant::now() + GIVE_UP;
        let outcome = loop {
            let (id, token) = match who(&gap, targets).await {
                Ok(found) => found,
                Err(why) => break Err(why),
            };
            let failure = match self.attempt(&gap, &id, &token).await {
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
        self.tell(&gap, outcome);
    }

    /// Says what became of a gap: in the log, in the metrics, and by an event.
    fn tell(&self, gap: &Gap, outcome: Result<Found, String>) {
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
            "channel": &**channel, "topic": activities::TOPIC,
            "from": clock::rfc3339(gap.from), "to": clock::rfc3339(gap.to),
            "found": activities, "recovered": recovered, "complete": complete,
        });
        if let (Some(data), Some(error)) = (data.as_object_mut(), error) {
            data.insert("error".into(), error.into());
        }
        // Lost on its way to the disk it is made again: the cursor is still before the gap there.
        self.journal.append(&mut vec![event::own(TOPIC, channel, &gap.room, &data, clock::now())]);
    }

    /// Fetches, and hands on what was not heard.
    async fn attempt(&self, gap: &Gap, id: &str, token: &Secret) -> Result<Found, RestError> {
        let fetch = self.activities.fetch();
        // How far the server's clock is behind ours, or (negative) ahead of it.
        let behind = self.recall(gap, &fetch).await;
        let behind = if gap.clock == Clock::Ours { behind } else { 0 };
        let overlap = i64::try_from(OVERLAP.as_millis()).unwrap_or(0);
        let after = gap.from.saturating_add_signed(-behind - overlap);
        let before = gap.to.saturating_add_signed(-behind + overlap);
        let before = (gap.clock != Clock::Unknown).then_some(before);
        let target = Target { channel: id, token };
        let (mut activities, complete) = self.history(target, after, before).await?;
        // The pages come newest first, also within one millisecond.
        activities.reverse();
        activities.sort_by_key(|activity| activity.at);
        let mut found = Found { activities: activities.len(), recovered: 0, complete };
        for some in activities.chunks(crate::astro::rest::PAGE) {
            self.journal.ready().await;
            let events = some.iter().map(|activity| message(gap, activity));
            found.recovered += fetch.append(events, &self.journal);
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

    /// Remembers which activities were heard around the gap, and learns how far the server's clock is
    /// behind ours: by the last message before the gap.
    async fn recall(&self, gap: &Gap, fetch: &Fetch<'_>) -> i64 {
        let since = gap.from.saturating_sub(2 * millis(OVERLAP));
        let mut recalled = self.recalled.lock().await;
        let outcome = self.recall_since(since, &mut recalled, fetch).await;
        if let Err(error) = outcome {
            warn!(%error, "the journal cannot be read; an activity may be handed on twice");
        }
        recalled.clocks.range(..=gap.from / 1000).next_back().map_or(0, |(_, behind)| *behind)
    }

    /// Reads what has not been read yet.
    async fn recall_since(
        &self,
        since: UnixMillis,
        recalled: &mut Recalled,
        fetch: &Fetch<'_>,
    ) -> Result<(), StoreError> {
        let now = clock::now();
        // What was noted longer ago may be forgotten.
        let is_known = recalled.at.is_some_and(|at| at.elapsed() < LATE);
        if !is_known || since < recalled.since || since > recalled.until {
            // Other gaps may have begun a little earlier.
            let since = since.saturating_sub(millis(OVERLAP));
            let journal = self.journal.clone();
            let first = tokio::task::spawn_blocking(move || journal.first_since(since)).await;
            let first = match first {
                Ok(first) => first?,
                // The relay is stopping.
                Err(_) => return Ok(()),
            };
            // Nothing was heard since: then there is nothing to be recalled.
            let last = self.journal.figures().last;
            let through = first.map_or(last, |first| first.saturating_sub(1));
            *recalled = Recalled { since, until: since, through, ..Recalled::default() };
        }
        let last = self.journal.figures().last;
        while recalled.through < last {
            let batch = self.journal.read(recalled.through, last, BATCH, BATCH_BYTES).await?;
            for record in &batch.records {
                let event = &record.event;
                fetch.recall(event);
                recalled.note_clock(event);
            }
            if batch.through <= recalled.through {
                break;
            }
            recalled.through = batch.through;
        }
        (recalled.until, recalled.at) = (now, Some(Instant::now()));
        Ok(())
    }
}

impl Recalled {
    /// How far the server's clock is behind ours, by a message that it sent.
    fn note_clock(&mut self, event: &Event) {
        if event.origin == Origin::Live
            && !event.place.topic.starts_with("relay.")
            && let Some(said) = clock::parse_rfc3339(&event.ts)
        {
            let behind = signed(event.received) - signed(said);
            self.clocks.insert(event.received / 1000, behind);
            if self.clocks.len() > CLOCKS {
                self.clocks.pop_first();
            }
        }
    }
}

/// Under which id and with which token the history is asked for.
async fn who(gap: &Gap, targets: &watch::Receiver<Targets>) -> Result<(String, Secret), String> {
    let account = targets.borrow().channels.get(&gap.channel).cloned();
    let account = account.ok_or("the channel is no longer configured")?;
    let rooms = [Some(&*gap.room), account.room.as_deref()];
    credentials(rooms.into_iter().flatten(), &account.token, account.token_type).await
}

/// An activity of the history in the shape of the live message. The live one has an id of its own,
/// which the history does not know; this one is the same whenever it is fetched.
fn message(gap: &Gap, activity: &Activity) -> Event {
    let quote = |text: &str| serde_json::Value::from(text).to_string();
    let id = format!("activity-{}", activity.id);
    let ts = clock::rfc3339(activity.at);
    let mut text = format!(
        r#"{{"id":{},"ts":{},"type":"message","topic":{},"room":{},"data":"#,
        quote(&id),
        quote(&ts),
        quote(activities::TOPIC),
        quote(&gap.room),
    );
    let start = text.len();
    let item = activity.item.get();
    match item.trim_start().strip_prefix('{') {
        // The live message carries its id twice.
        Some(rest) if !has_activity_id(item) => {
            text.push_str(r#"{"activityId":"#);
            text.push_str(&quote(&activity.id));
            if !rest.trim_start().starts_with('}') {
                text.push(',');
            }
            text.push_str(rest);
        }
        _ => text.push_str(item),
    }
    let end = text.len();
    text.push('}');
    let data = text.as_bytes().get(start..end).unwrap_or_default();
    let key = event::key::of(&id, &ts, activities::TOPIC, &gap.room, data);
    Event {
        id: id.into(),
        distinct_key: Some(key),
        place: Place::of(activities::TOPIC, Arc::clone(&gap.room), Arc::clone(&gap.channel)),
        ts: ts.into(),
        received: clock::now(),
        origin: Origin::Backfilled,
        message: Bytes::from(text),
        data: start..end,
    }
}

fn has_activity_id(item: &str) -> bool {
    let item = json::value(item.as_bytes()).unwrap_or_default();
    item.get("activityId").is_some_and(|id| !id.is_null())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn signed(time: UnixMillis) -> i64 {
    i64::try_from(time).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, value::RawValue};

    use super::*;
    use crate::astro::wire::{ServerFrame, read};
    use crate::base::event::Waited;

    fn gap() -> Gap {
        let (from, to) = (1_708_008_762_000, 1_708_008_763_000);
        Gap { seq: 1, channel: "main".into(), room: "r".into(), from, to, clock: Clock::Ours }
    }

    #[test]
    fn an_item_of_the_history_reads_like_the_live_message() {
        for more in ["", r#""activityId":"5c09",  "#] {
            let item = format!(r#" {{ {more}"_id": "5c09", "type": "tip", "x": 1.0 }}"#);
            let item = RawValue::from_string(item.trim().to_owned()).unwrap();
            let (id, kind) = ("5c09".to_owned(), "tip".to_owned());
            let event = message(&gap(), &Activity { id, kind, at: 1_708_008_762_000, item });
            let text = std::str::from_utf8(&event.message).unwrap();
            let Ok(ServerFrame::Message(envelope)) = read(text) else { panic!("{text}") };
            assert_eq!((&*envelope.topic, &*envelope.room), ("channel.activities", "r"));
            assert_eq!((&*envelope.id, &*envelope.ts), ("activity-5c09", "2024-02-15T14:52:42Z"));
            assert_eq!(envelope.data, event.data);
            let data: Value = serde_json::from_slice(event.data()).unwrap();
            assert_eq!(data, json!({"_id": "5c09", "activityId": "5c09", "type": "tip", "x": 1.0}));
        }
    }

    #[test]
    fn only_a_gap_of_activities_that_are_heard_again_is_filled() {
        let subscription = |topic: &str, restored: bool| {
            json!({"from": "2024-02-15T14:52:42Z", "to": "2024-02-15T14:52:43Z",
                   "subscriptions": [{"topic": topic, "room": "r", "restored": restored}]})
        };
        for (topic, data, filled) in [
            ("relay.gap", subscription("channel.activities", true), true),
            ("relay.gap", subscription("channel.activities", false), false),
            ("relay.gap", subscription("channel.tips", true), false),
            ("relay.gap", json!({"sink": "home", "count": 3}), false),
            ("relay.session", subscription("channel.activities", true), false),
        ] {
            let event = event::own(topic, &"main".into(), &"r".into(), &data, 1);
            let told = Gap::told(&event, 1);
            assert_eq!(told.is_some(), filled, "{topic} {data}");
            if let Some(told) = told {
                assert_eq!((told.from, told.to), (gap().from, gap().to));
            }
        }
    }

    /// A live activity of that id.
    fn activity(id: &str, received: UnixMillis) -> Event {
        let data = json!({"_id": id});
        let event = event::own(activities::TOPIC, &"main".into(), &"r".into(), &data, received);
        Event { origin: Origin::Live, ..event }
    }

    /// Whether the history's activity of that id would be taken for one that was heard.
    fn is_known(fetch: &Fetch<'_>, id: &str) -> bool {
        let event = Event { origin: Origin::Backfilled, ..activity(id, 1) };
        fetch.append([event], &Journal::in_memory(1 << 20)) == 0
    }

    #[tokio::test(start_paused = true)]
    async fn many_gaps_look_back_on_the_same_minutes_once() {
        let journal = Journal::in_memory(1 << 20);
        let tools = Tools {
            rest: Rest::new(&crate::config::Astro::default()).unwrap(),
            journal: journal.clone(),
            activities: Arc::default(),
            recalled: Arc::default(),
        };
        let now = clock::now();
        let minute = 60_000;
        let after = |from| Gap { from, to: now, ..gap() };
        for (id, ago) in [("long ago", 60), ("before", 1)] {
            let waited = Waited::already(Duration::from_mins(ago));
            journal.append_waited(&mut vec![activity(id, now - ago * minute)], waited);
        }
        let first = Activities::default();
        let first = first.fetch();
        tools.recall(&after(now - minute), &first).await;
        assert!(is_known(&first, "before") && !is_known(&first, "long ago"));

        // What was read once is not read again: it is known to whoever was told.
        journal.append(&mut vec![activity("since", now)]);
        let second = Activities::default();
        let second = second.fetch();
        tools.recall(&after(now - minute), &second).await;
        assert!(is_known(&second, "since") && !is_known(&second, "before"));

        // One that began earlier looks back further, and so does one long after.
        let third = Activities::default();
        let third = third.fetch();
        tools.recall(&after(now - 60 * minute), &third).await;
        assert!(is_known(&third, "long ago") && is_known(&third, "since"));
        tokio::time::advance(LATE).await;
        let fourth = Activities::default();
        let fourth = fourth.fetch();
        // The journal's time has gone on with the timers, the wall clock has not.
        tools.recall(&after(now - 60 * minute), &fourth).await;
        assert!(is_known(&fourth, "before") && is_known(&fourth, "since"));
    }
}
