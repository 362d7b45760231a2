//! Test events: what a tip, a follow, a subscription, a raid or a cheer would be, through the real sinks.
//!
//! A test event is a true event of its kind, in the form in which Astro sends it, on the topics of that
//! kind that the channel subscribes to. So it takes the path of a real one: conditions, templates, Home
//! Assistant's entities. It is marked as a test by its origin, by its id and in its data.
//!
//! It goes to the destinations directly, over connections of its own, beside the relay that may run. It does
//! not go through the journal: no other sink gets it, and nothing is counted.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use futures_util::future::join_all;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};
use tokio::time::{Instant, timeout, timeout_at};

use super::{
    describe,
    ha_event::ACTIVITIES,
    route::{Rendered, Skip},
    task::open_sink,
};
use crate::{
    base::{
        clock::{self, UnixMillis},
        event::{self, Event, Record},
        json::set,
    },
    config::{Config, SinkConfig},
    sink::{Failure, Outgoing, Purpose},
};

/// How long a destination may take to connect and to accept the events.
const DEADLINE: Duration = Duration::from_secs(20);

/// How long its connection may then take to end. With [`DEADLINE`] it fits the limit for a command, 24 s.
const CLOSE: Duration = Duration::from_secs(2);

/// Who does what a test event says.
const NAME: &str = "astro-relay";

/// What a test event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TestKind {
    Tip,
    Follow,
    Subscription,
    Raid,
    Cheer,
}

impl TestKind {
    pub const ALL: [Self; 5] =
        [Self::Tip, Self::Follow, Self::Subscription, Self::Raid, Self::Cheer];

    /// The word for it on the command line, in addresses and on the page.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tip => "tip",
            Self::Follow => "follow",
            Self::Subscription => "subscription",
            Self::Raid => "raid",
            Self::Cheer => "cheer",
        }
    }

    /// The topics on which such an event comes, that of all activities first.
    pub fn topics(self) -> &'static [&'static str] {
        match self {
            Self::Tip => &[ACTIVITIES, "channel.tips"],
            Self::Follow => &[ACTIVITIES, "channel.follow"],
            Self::Subscription | Self::Raid | Self::Cheer => &[ACTIVITIES],
        }
    }

    /// The activity's word, its number where it has one, and what the viewer writes with it.
    fn activity(self) -> (&'static str, Option<f64>, &'static str) {
        match self {
            Self::Tip => ("tip", Some(5.0), "This is a test"),
            Self::Follow => ("follow", None, ""),
            Self::Subscription => ("subscriber", Some(3.0), "This is a test"),
            Self::Raid => ("raid", Some(25.0), ""),
            Self::Cheer => ("cheer", Some(100.0), "This is a test"),
        }
    }

    /// `data` of such an event on a topic of its kind.
    fn data(
        self,
        topic: &str,
        amount: Option<f64>,
        room: &str,
        now: UnixMillis,
    ) -> Map<String, Value> {
        let id = format!("test-{}", ulid::Ulid::new());
        let (word, usual, message) = self.activity();
        let amount = amount.filter(|_| usual.is_some()).or(usual).map(number);
        let at = clock::rfc3339(now);
        let data = match topic {
            "channel.tips" => json!({
                "_id": id, "channel": room, "provider": "streamelements", "createdAt": at,
                "status": "success", "approved": "allowed",
                "donation": {
                    "user": { "username": NAME }, "message": message,
                    "amount": amount, "currency": "EUR",
                },
            }),
            "channel.follow" => json!({ "_id": id, "username": NAME, "displayName": NAME }),
            _ => {
                let mut about = json!({ "username": NAME, "displayName": NAME });
                if let Some(amount) = amount {
                    set(&mut about, "amount", amount);
                }
                if !message.is_empty() {
                    set(&mut about, "message", message.into());
                }
                match self {
                    Self::Tip => set(&mut about, "currency", "EUR".into()),
                    Self::Subscription => set(&mut about, "tier", "1000".into()),
                    Self::Follow | Self::Raid | Self::Cheer => {}
                }
                json!({
                    "_id": id, "activityId": id, "channel": room, "provider": "twitch",
                    "type": word, "createdAt": at, "updatedAt": at, "data": about,
                })
            }
        };
        match data {
            Value::Object(data) => data,
            _ => Map::new(),
        }
    }
}

/// A whole number as one: `5`, not `5.0`.
fn number(amount: f64) -> Value {
    // That is how it is written.
    serde_json::from_str(&amount.to_string()).unwrap_or_else(|_| amount.into())
}

impl fmt::Display for TestKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for TestKind {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word).ok_or_else(|| {
            let words: Vec<_> = Self::ALL.iter().map(|kind| kind.as_str()).collect();
            format!("one of {} was expected", words.join(", "))
        })
    }
}

/// The events of a test.
#[derive(Debug)]
pub struct TestEvents {
    /// The label of the channel that they pretend to come from; empty where none is configured.
    pub channel: String,
    /// One or two: as an activity, and on the topic of its own.
    pub events: Vec<Event>,
    /// Why a real event of this kind would not come.
    pub note: Option<String>,
}

/// What a test of a kind sends for a channel (the first that is configured, where none is named), as
/// Astro would. A kind that has an amount may be given another.
pub fn events(
    config: &Config,
    channel: Option<&str>,
    kind: TestKind,
    amount: Option<f64>,
) -> Result<TestEvents, String> {
    let label = match channel {
        Some(label) if !config.channels.contains_key(label) => {
            let known: Vec<_> = config.channels.keys().map(String::as_str).collect();
            return Err(format!("there is no channel {label:?}; configured: {}", known.join(", ")));
        }
        Some(label) => label.to_owned(),
        None => config.channels.keys().next().cloned().unwrap_or_default(),
    };
    let described = config.channels.get(&label);
    let room = config.room_of(&label).unwrap_or_default();
    let subscribes = |topic: &&&str| {
        described
            .is_none_or(|channel| channel.topics.iter().any(|subscribed| subscribed == **topic))
    };
    let mut topics: Vec<&str> = kind.topics().iter().filter(subscribes).copied().collect();
    let mut note = None;
    if topics.is_empty() {
        note = Some(format!(
            "channel {label} does not subscribe to {}: a real {kind} would not arrive",
            kind.topics().join(" or ")
        ));
        topics.extend(kind.topics().first());
    }
    let now = clock::now();
    let (of, room): (Arc<str>, Arc<str>) = (label.as_str().into(), room.into());
    let made =
        |topic: &&str| event::test(topic, &of, &room, kind.data(topic, amount, &room, now), now);
    let events = topics.iter().map(made).collect();
    Ok(TestEvents { channel: label, events, note })
}

/// What became of a test at one sink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SinkOutcome {
    /// Its destination has accepted it, at these addresses; empty where a kind has none.
    Accepted(Vec<String>),
    /// The sink does not want it.
    Skipped(String),
    Failed(String),
}

/// One sink's part of a test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SinkResult {
    pub sink: String,
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(flatten, serialize_with = "as_fields")]
    pub outcome: SinkOutcome,
}

fn as_fields<S: Serializer>(outcome: &SinkOutcome, serializer: S) -> Result<S::Ok, S::Error> {
    let value = match outcome {
        SinkOutcome::Accepted(addresses) => {
            json!({ "outcome": "accepted", "addresses": addresses })
        }
        SinkOutcome::Skipped(why) => json!({ "outcome": "skipped", "reason": why }),
        SinkOutcome::Failed(why) => json!({ "outcome": "failed", "reason": why }),
    };
    value.serialize(serializer)
}

impl fmt::Display for SinkOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accepted(addresses) if addresses.iter().all(String::is_empty) => {
                f.write_str("accepted")
            }
            Self::Accepted(addresses) => write!(f, "accepted at {}", addresses.join(", ")),
            Self::Skipped(why) => write!(f, "skipped: {why}"),
            Self::Failed(why) => write!(f, "failed: {why}"),
        }
    }
}

/// Sends events through the sinks of these names (all, where none is named), through all at once.
pub async fn send(config: &Config, sinks: &[String], events: &[Event]) -> Vec<SinkResult> {
    let records: Vec<_> =
        events.iter().map(|event| Arc::new(Record::new(1, event.clone()))).collect();
    let mut results = Vec::new();
    for (name, sink) in &config.sinks {
        if sinks.is_empty() || sinks.contains(name) {
            results.push(result(name, sink, &records));
        }
    }
    join_all(results).await
}

async fn result(name: &str, config: &SinkConfig, records: &[Arc<Record>]) -> SinkResult {
    let outcome = through(name, config, records).await.unwrap_or_else(SinkOutcome::Failed);
    SinkResult { sink: name.to_owned(), kind: config.kind.clone(), outcome }
}

async fn through(
    name: &str,
    config: &SinkConfig,
    records: &[Arc<Record>],
) -> Result<SinkOutcome, String> {
    let (mut sink, mut route) =
        open_sink(name, config, Purpose::Probe).map_err(|error| error.to_string())?;
    let mut outgoing: Vec<Outgoing> = Vec::new();
    let mut skipped = why(Skip::Place).to_owned();
    for record in records {
        match route.render(record) {
            Rendered::Wanted(event, ha_events) => {
                outgoing.push(event);
                outgoing.extend(ha_events);
            }
            // That its topic is not wanted says the least.
            Rendered::Skipped(Skip::Place) => {}
            Rendered::Skipped(skip) => {
                let more = route.take_condition_error().map(|error| format!(" {error}"));
                skipped = format!("{}{}", why(skip), more.unwrap_or_default());
            }
            Rendered::Failed(reason) => return Err(reason),
        }
    }
    if outgoing.is_empty() {
        return Ok(SinkOutcome::Skipped(skipped));
    }
    let until = Instant::now() + DEADLINE;
    let late = |_| format!("no answer within {} s", DEADLINE.as_secs());
    let failed = |failure: Failure| describe(&failure.cause);
    timeout_at(until, sink.connect()).await.map_err(late)?.map_err(failed)?;
    let sent = async {
        let (mut sent, mut accepted) = (0, 0);
        while accepted < outgoing.len() {
            let rest = outgoing.get(sent..).unwrap_or_default();
            if !rest.is_empty() {
                sent += sink.send(rest).await?;
            }
            accepted += sink.acknowledged().await?;
        }
        Ok(())
    };
    timeout_at(until, sent).await.map_err(late)?.map_err(failed)?;
    // How the connection ends changes nothing about the event.
    drop(timeout(CLOSE, sink.close(Instant::now())).await);
    Ok(SinkOutcome::Accepted(outgoing.iter().map(|event| event.address.to_string()).collect()))
}

fn why(skip: Skip) -> &'static str {
    match skip {
        Skip::Place => "topic or channel not selected",
        Skip::Age => "older than max_age",
        Skip::Condition => "the condition is false",
        Skip::ConditionError => "the condition failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::ha_event::HaEvents;

    fn config(topics: &[&str]) -> Config {
        serde_json::from_value(json!({
            "channels": { "main": { "token": { "value": "t" }, "topics": topics } },
        }))
        .unwrap()
    }

    #[test]
    fn a_test_comes_on_the_topics_of_its_kind_that_are_subscribed() {
        let topics = |topics: &[&str], kind| {
            let made = events(&config(topics), None, kind, None).unwrap();
            let all: Vec<_> = made.events.iter().map(|e| e.place.topic.to_string()).collect();
            (all.join(" "), made.note.is_some())
        };
        let both = [ACTIVITIES, "channel.tips"];
        let words = |text: &str, note| (text.to_owned(), note);
        assert_eq!(topics(&both, TestKind::Tip), words("channel.activities channel.tips", false));
        assert_eq!(topics(&both[1..], TestKind::Tip), words("channel.tips", false));
        assert_eq!(topics(&both, TestKind::Raid), words("channel.activities", false));
        // It is sent all the same, and says what it would not prove.
        assert_eq!(topics(&both[1..], TestKind::Raid), words("channel.activities", true));
        assert!(events(&config(&both), Some("shop"), TestKind::Tip, None).is_err());
    }

    #[test]
    fn without_a_configured_room_it_comes_from_that_of_the_token() {
        let mut config = config(&[ACTIVITIES]);
        let room = |config: &Config| {
            let made = events(config, None, TestKind::Tip, None).unwrap();
            made.events[0].place.room.to_string()
        };
        assert_eq!(room(&config), "");
        config.token_rooms.insert("main".to_owned(), "own".to_owned());
        assert_eq!(room(&config), "own");
        config.channels.get_mut("main").unwrap().room = Some("configured".to_owned());
        assert_eq!(room(&config), "configured");
    }

    #[test]
    fn each_kind_fires_its_entity_and_is_marked_as_a_test() {
        let mut sink: SinkConfig = serde_json::from_value(json!({ "type": "mqtt" })).unwrap();
        sink.settings = json!({ "homeassistant": true });
        let topics = vec![ACTIVITIES.to_owned()];
        let described = crate::config::Described { topics, ..Default::default() };
        sink.feeds.insert("main".to_owned(), described);
        let ha_events = HaEvents::of(&sink, |text| text.into()).unwrap().unwrap();
        for kind in TestKind::ALL {
            let made = events(&config(&[ACTIVITIES]), None, kind, None).unwrap();
            let [event] = &made.events[..] else { panic!("{made:?}") };
            assert!(event.id.starts_with("test-"));
            let rendered = ha_events.render(event, event.data(), || true, 0);
            let (topic, payload) = &rendered[0];
            assert_eq!(topic, &format!("astro/main/event/{kind}"));
            let payload: Value = serde_json::from_str(payload).unwrap();
            assert_eq!((&payload["test"], &payload["name"]), (&true.into(), &NAME.into()));
            let counted = ["amount", "months"].iter().any(|key| payload[*key].is_number());
            assert_eq!(counted, kind != TestKind::Follow, "{payload}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn destinations_that_do_not_answer_take_no_longer_than_one() {
        // It accepts connections and says nothing.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("mqtt://{}", silent.local_addr().unwrap());
        let mut config = config(&[ACTIVITIES]);
        for name in ["a", "b", "c", "d", "e", "f"] {
            let mut sink: SinkConfig = serde_json::from_value(json!({ "type": "mqtt" })).unwrap();
            sink.settings = json!({ "url": url });
            config.sinks.insert(name.to_owned(), sink);
        }
        let made = events(&config, None, TestKind::Tip, None).unwrap();
        let begun = Instant::now();
        let results = send(&config, &[], &made.events).await;
        assert!(begun.elapsed() <= DEADLINE + CLOSE, "{:?}", begun.elapsed());
        let names: Vec<_> = results.iter().map(|result| result.sink.as_str()).collect();
        assert_eq!(names, ["a", "b", "c", "d", "e", "f"]);
        for SinkResult { outcome, .. } in &results {
            assert!(matches!(outcome, SinkOutcome::Failed(_)), "{outcome}");
        }
    }

    #[test]
    fn an_amount_of_ones_own_is_taken_where_there_is_one() {
        let amount = |kind, amount| {
            let made = events(&config(&[ACTIVITIES]), None, kind, amount).unwrap();
            let data: Value = serde_json::from_slice(made.events[0].data()).unwrap();
            data["data"]["amount"].to_string()
        };
        assert_eq!(amount(TestKind::Tip, None), "5");
        assert_eq!(amount(TestKind::Tip, Some(99.5)), "99.5");
        assert_eq!(amount(TestKind::Follow, Some(1.0)), "null");
    }
}
