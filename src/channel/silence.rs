//! Subscriptions that are confirmed and bring nothing while their channel is live.
//!
//! That is how a token of the wrong platform looks (vendor's FAQ), and a gateway that has forgotten a
//! subscription. Most topics are silent for hours by nature, so only two kinds of silence count, both
//! measured while the channel is live and by a clock that does not step:
//!
//! - of a topic that every live channel fills ([`STEADY`]): [`NEVER`] without a message;
//! - of one that was seen to bring something often: [`TIMES`] its longest pause, and [`LEAST`] at least.
//!
//! A channel counts as live only where its `channel.stream.status` has said so since that was confirmed: what
//! was said before may be out of date.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::store::{Section, StateKey, StateStore};
use crate::{
    astro::{session::Subscription, topics},
    base::{clock::Moment, sync::lock},
    gateway::table::{State, Table},
};

/// How often it is looked at.
const EVERY: Duration = Duration::from_secs(30);

/// Topics on which a live channel always has something: what is written in its chat.
const STEADY: [&str; 2] = ["channel.chat.message", "channel.chatstats"];

/// How long one of them may be silent.
const NEVER: Duration = Duration::from_hours(1);

/// A topic is known by so many messages, over at least this time.
const KNOWN: (u64, Duration) = (50, Duration::from_hours(2));

/// A silence is unusual at so many times the longest pause.
const TIMES: u32 = 6;

/// And not before this.
const LEAST: Duration = Duration::from_hours(1);

/// The topic that says whether a channel is live.
const STREAM: &str = "channel.stream.status";

/// The subscriptions that are silent, and for how long.
#[derive(Debug, Default)]
pub struct Silences(Mutex<BTreeMap<Arc<Subscription>, Duration>>);

impl Silences {
    pub fn snapshot(&self) -> BTreeMap<Arc<Subscription>, Duration> {
        lock(&self.0).clone()
    }

    fn set(&self, now: BTreeMap<Arc<Subscription>, Duration>) {
        *lock(&self.0) = now;
    }
}

/// The task.
#[derive(Debug)]
pub struct SilenceWatch {
    table: Arc<Table>,
    store: Arc<StateStore>,
    silences: Arc<Silences>,
    tracks: BTreeMap<Arc<Subscription>, Track>,
}

/// What was seen of a subscription while its channel was live.
#[derive(Debug, Default)]
struct Track {
    /// Messages of the table, the last time.
    counted: u64,
    messages: u64,
    watched: Duration,
    /// How long it has been silent, and the longest pause before.
    quiet: Duration,
    longest: Duration,
}

impl Track {
    /// `counted` is the table's number, which starts at 0 again when the subscription is confirmed again.
    fn observe(&mut self, counted: u64, elapsed: Duration, is_live: bool) {
        let more = counted.checked_sub(self.counted).unwrap_or(counted);
        self.counted = counted;
        if !is_live {
            self.quiet = Duration::ZERO;
            return;
        }
        self.watched += elapsed;
        if more == 0 {
            self.quiet += elapsed;
            return;
        }
        self.messages += more;
        self.longest = self.longest.max(self.quiet);
        self.quiet = Duration::ZERO;
    }

    /// How long it has been silent, where that is unusual.
    fn unusual(&self, topic: &str) -> Option<Duration> {
        let limit = if self.messages >= KNOWN.0 && self.watched >= KNOWN.1 {
            LEAST.max(self.longest * TIMES)
        } else if STEADY.contains(&topic) {
            NEVER
        } else {
            return None;
        };
        (self.quiet >= limit).then_some(self.quiet)
    }
}

impl SilenceWatch {
    pub fn new(table: Arc<Table>, store: Arc<StateStore>, silences: Arc<Silences>) -> Self {
        Self { table, store, silences, tracks: BTreeMap::new() }
    }

    /// Watches until it is stopped.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut last = Moment::now();
        while stop.run_until_cancelled(sleep(EVERY)).await.is_some() {
            // A machine that has slept has heard nothing meanwhile.
            let elapsed = last.elapsed().min(2 * EVERY);
            last = Moment::now();
            let state = self.table.snapshot();
            let live = self.live(&state);
            self.check(&state, &live, elapsed);
        }
    }

    /// The channels that are live for certain.
    fn live(&self, state: &State) -> HashSet<Arc<str>> {
        let told = state.subscriptions.iter().filter(|(one, row)| {
            &*one.topic == STREAM && row.state.is_confirmed() && row.messages > 0
        });
        self.store.snapshot(|entries, _| {
            let is_live = |label: &Arc<str>| {
                let entry = entries.get(&StateKey::of(label, Section::Stream))?;
                entry.value.read().get("isLive")?.as_bool()
            };
            let labels = told.map(|(one, _)| Arc::clone(&one.channel));
            labels.filter(|label| is_live(label) == Some(true)).collect()
        })
    }

    fn check(&mut self, state: &State, live: &HashSet<Arc<str>>, elapsed: Duration) {
        self.tracks.retain(|one, _| state.subscriptions.contains_key(one));
        let before = self.silences.snapshot();
        let mut silent = BTreeMap::new();
        for (one, row) in &state.subscriptions {
            let topic = &*one.topic;
            if topic == STREAM || topics::is_unpublished(topic) {
                continue;
            }
            let track = self.tracks.entry(Arc::clone(one)).or_default();
            let is_live = row.state.is_confirmed() && live.contains(&one.channel);
            track.observe(row.messages, elapsed, is_live);
            if let Some(quiet) = track.unusual(topic) {
                silent.insert(Arc::clone(one), quiet);
            }
        }
        for one in silent.keys().filter(|one| !before.contains_key(*one)) {
            let (channel, topic) = (&one.channel, &one.topic);
            warn!(%channel, %topic, "nothing has come for long although the channel is live");
        }
        for one in before.keys().filter(|one| !silent.contains_key(*one)) {
            info!(channel = %one.channel, topic = %one.topic, "it is not unusually silent any more");
        }
        self.silences.set(silent);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        astro::session::SubscriptionState,
        config::TokenType,
        gateway::table::{ConnectionRow, Phase, Slot, SubscriptionRow},
    };

    const CHAT: &str = "channel.chat.message";
    const TIPS: &str = "channel.tips";
    const MINUTE: Duration = Duration::from_mins(1);

    /// Confirmed subscriptions of one channel, each with so many messages.
    fn state(messages: &[(&str, u64)]) -> State {
        let mut state = State::default();
        state.connections.insert(0, ConnectionRow { phase: Phase::Open, ..Default::default() });
        for (topic, messages) in messages {
            let subscription = Subscription {
                channel: "main".into(),
                topic: (*topic).into(),
                room: None,
                token_type: TokenType::Jwt,
                token_room: None,
            };
            let mut row = SubscriptionRow::new(0);
            (row.slot, row.state) = (Slot::On(0), SubscriptionState::Confirmed(None));
            row.messages = *messages;
            state.subscriptions.insert(Arc::new(subscription), row);
        }
        state
    }

    fn watch() -> SilenceWatch {
        SilenceWatch::new(Arc::default(), Arc::default(), Arc::default())
    }

    fn say_live(watch: &SilenceWatch, live: bool) {
        let value = (&json!({ "isLive": live })).into();
        watch.store.insert([(StateKey::of("main", Section::Stream), Some(value))]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_chat_without_a_message_for_an_hour_of_a_live_channel_is_silent() {
        let watch = watch();
        let (table, silences) = (Arc::clone(&watch.table), Arc::clone(&watch.silences));
        let silent = || silences.snapshot().keys().map(|one| one.topic.to_string()).collect();
        let silent = || -> Vec<String> { silent() };
        say_live(&watch, true);
        let store = Arc::clone(&watch.store);
        let stop = CancellationToken::new();
        let script = async {
            // What was said of the stream before the subscription was confirmed does not count.
            table.replace(state(&[(STREAM, 0), (CHAT, 0), (TIPS, 0)]));
            sleep(3 * NEVER).await;
            assert_eq!(silent(), [""; 0]);
            table.replace(state(&[(STREAM, 1), (CHAT, 0), (TIPS, 0)]));
            sleep(59 * MINUTE).await;
            assert_eq!(silent(), [""; 0]);
            sleep(4 * EVERY).await;
            assert_eq!(silent(), [CHAT], "tips are rare by nature");
            table.replace(state(&[(STREAM, 1), (CHAT, 1), (TIPS, 0)]));
            sleep(2 * EVERY).await;
            assert_eq!(silent(), [""; 0]);
            sleep(2 * NEVER).await;
            assert_eq!(silent(), [CHAT]);
            let value = (&json!({ "isLive": false })).into();
            store.insert([(StateKey::of("main", Section::Stream), Some(value))]);
            sleep(2 * EVERY).await;
            assert_eq!(silent(), [""; 0], "nobody writes in the chat of a channel that is offline");
            stop.cancel();
        };
        tokio::join!(watch.run(stop.clone()), script);
    }

    #[test]
    fn a_topic_that_brings_something_often_is_judged_by_its_own_pauses() {
        let mut watch = watch();
        let live = HashSet::from(["main".into()]);
        let mut count = 0;
        // A tip every twenty minutes, for a long stream.
        for minute in 0..20 * 60 {
            count += u64::from(minute % 20 == 0);
            watch.check(&state(&[(TIPS, count)]), &live, MINUTE);
        }
        let quiet_after = |watch: &mut SilenceWatch, minutes: u32| {
            for _ in 0..minutes {
                watch.check(&state(&[(TIPS, count)]), &live, MINUTE);
            }
            watch.silences.snapshot().into_values().next()
        };
        assert_eq!(count, 60);
        assert_eq!(quiet_after(&mut watch, 90), None, "six times nineteen minutes are longer");
        assert_eq!(quiet_after(&mut watch, 10), Some(119 * MINUTE));
        // Confirmed again: the table counts from the beginning.
        watch.check(&state(&[(TIPS, 1)]), &live, MINUTE);
        assert!(watch.silences.snapshot().is_empty());
        watch.check(&state(&[]), &live, MINUTE);
        assert!(watch.tracks.is_empty());
    }
}
