//! Demo traffic: the example messages of `messages/`, in the shapes of Astro's documentation, with
//! people, texts, amounts, ids and times drawn by lot. The same seed and times give the same traffic.
//!
//! A step is one happening and everything that Astro publishes about it. A tip, for example, is an
//! activity, a message on `channel.tips` and one on `channel.tips.moderation`; what it changes in the
//! session follows from the activity, see `session.rs`.

use std::{collections::HashMap, time::Duration};

use serde_json::Value;

use crate::{
    clock::{self, UnixMillis},
    ids::hex_id,
    world::World,
};

/// The pause between two happenings at normal speed, at most.
const LONGEST_PAUSE: Duration = Duration::from_millis(1600);

macro_rules! example {
    ($name:literal) => {
        include_str!(concat!("../messages/channel-", $name, ".json"))
    };
}

/// The room of the examples.
const EXAMPLE_ROOM: &str = "0f0e0d0c0b0a090807060504";

/// How the messages of a happening belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// They come at once.
    Together,
    /// One comes each time, and they keep their ids to the last: a giveaway is the same to its end.
    InTurn,
}

use Order::{InTurn, Together};

/// A stream that begins.
const BEGINS: &[&str] = &[example!("stream-status"), example!("chatbot-status-mod")];

/// What happens while a stream is live, and how often: mostly chat, as on a real channel.
const HAPPENINGS: &[(u32, Order, &[&str])] = &[
    (420, Together, &[example!("chat-message-twitch")]),
    (100, Together, &[example!("activities-follow")]),
    (50, Together, &[example!("tips"), example!("tips-moderation"), example!("activities-tip")]),
    (70, Together, &[example!("activities-cheer")]),
    (45, Together, &[example!("activities-subscriber")]),
    (15, Together, &[example!("activities-sponsor")]),
    (15, Together, &[example!("activities-raid")]),
    (50, Together, &[example!("activities-channelPointsRedemption")]),
    (20, Together, &[example!("loyalty-redemptions"), example!("activities-redemption")]),
    (10, Together, &[example!("activities-merch")]),
    (10, Together, &[example!("activities-superchat")]),
    (10, Together, &[example!("activities-communityGiftPurchase")]),
    (
        20,
        InTurn,
        &[
            example!("activities-hypetrainStart"),
            example!("activities-hypetrainProgress"),
            example!("activities-hypetrainEnd"),
        ],
    ),
    (30, Together, &[example!("chatbot-counters")]),
    (
        50,
        InTurn,
        &[example!("giveaways-start"), example!("giveaways-enter"), example!("giveaways-winner")],
    ),
    (
        40,
        InTurn,
        &[
            example!("songrequest-queue-add"),
            example!("songrequest-song-next"),
            example!("songrequest-song-voteskip"),
            example!("songrequest-volume"),
        ],
    ),
    (
        25,
        InTurn,
        &[example!("contests-state"), example!("contests-update"), example!("contests-winner")],
    ),
    (5, Together, &[example!("overlay-action")]),
    (5, Together, &[example!("overlay-broadcast")]),
    (5, Together, &[example!("overlay-update")]),
    (5, Together, &[example!("kvstore-update")]),
    (10, Together, &[example!("chatbot-modules-emotecombo")]),
    (10, Together, &[example!("chatbot-modules-pyramid")]),
    (5, Together, &[example!("chat-message-youtube")]),
    (5, Together, &[example!("chat-message-kick")]),
    (5, Together, &[example!("chat-message-trovo")]),
    (3, InTurn, &[BOT_BANNED, BOT_UNBANNED]),
    (
        7,
        InTurn,
        &[
            QUEUE_CREATED, QUEUE_ENTERED, QUEUE_SELECTED, QUEUE_REMOVED, QUEUE_UPDATED,
            QUEUE_DELETED,
        ],
    ),
];

/// A stream ends so often, in the same measure.
const ENDS: u32 = 3;

const BOT_BANNED: &str = r#"{"topic":"channel.chatbot.status","data":{"banned":true}}"#;
const BOT_UNBANNED: &str = r#"{"topic":"channel.chatbot.status","data":{"banned":false}}"#;
const QUEUE_CREATED: &str = r#"{"topic":"channel.chatbot.audiencequeue","data":{
    "event":"audience-queue:created","payload":{"isSuspended":false,"title":"Viewer games",
    "audienceMemberGroups":["subscriber","vip"],"maxQueueSize":25,"createdAt":"","updatedAt":"",
    "statusChangeLog":[{"timeStamp":"2025-03-07T18:00:00Z","status":"opened"}]}}}"#;
const QUEUE_ENTERED: &str = r#"{"topic":"channel.chatbot.audiencequeue","data":{
    "event":"audience-queue:member-enqueued","payload":{"id":"280492848","username":"",
    "displayName":"","watchTime":340,"audienceGroups":["subscriber"],"position":1}}}"#;
const QUEUE_UPDATED: &str = r#"{"topic":"channel.chatbot.audiencequeue","data":{
    "event":"audience-queue:updated","payload":{"isSuspended":true,"title":"Viewer games",
    "audienceMemberGroups":["subscriber","vip"],"maxQueueSize":25,"createdAt":"","updatedAt":"",
    "statusChangeLog":[{"timeStamp":"2025-03-07T18:00:00Z","status":"opened"},
    {"timeStamp":"2025-03-07T18:20:00Z","status":"suspended"}]}}}"#;
const QUEUE_SELECTED: &str = r#"{"topic":"channel.chatbot.audiencequeue","data":{
    "event":"audience-queue:member-selected","payload":{"id":"280492848","username":"",
    "displayName":"","watchTime":340,"audienceGroups":["subscriber"],"position":1}}}"#;
const QUEUE_REMOVED: &str = r#"{"topic":"channel.chatbot.audiencequeue","data":{
    "event":"audience-queue:member-removed","payload":{"id":"280492848","username":"",
    "displayName":"","watchTime":341,"audienceGroups":["subscriber"],"position":1}}}"#;
const QUEUE_DELETED: &str = r#"{"topic":"channel.chatbot.audiencequeue","data":{
    "event":"audience-queue:deleted","payload":null}}"#;

const PEOPLE: &[&str] = &[
    "MossyLantern", "quietcomet", "BrambleFox", "tidepool_tess", "NorthboundOtto", "pixelplum",
    "Wrenhollow", "captain_marzipan", "LumenGrove", "soupdragon", "HaroldTheThird", "velvetbadger",
    "OrbitingKate", "mintcondition", "Fernweh77", "thunderpeach", "Saltmarsh", "kiteseason",
    "BenevolentYeti", "papercrane_io", "Jörmun", "夜明けの猫",
];
const CHAT: &[&str] = &[
    "that jump was unreal",
    "hello from a very rainy harbour town",
    "what's the seed of this world?",
    "first time here, love the vibe",
    "clip it!!",
    "the cat is judging you again",
    "GG everyone",
    "can we get a look at the map?",
    "snack break when?",
    "I blinked and missed it 😅",
    "this song is stuck in my head now",
    "wait, you can climb that?",
    "one more run, please",
    "happy birthday! 🎂",
    "\"quotes\" & <tags>",
];
const EMOTES: &[&str] = &["lanternHi", "moonWave", "plumLove", "foxNod"];

/// Generates traffic.
#[derive(Debug)]
pub struct Traffic {
    random: fastrand::Rng,
    rooms: Vec<Room>,
}

#[derive(Debug)]
struct Room {
    id: String,
    live: bool,
    steps: u64,
    /// Of each happening [`InTurn`] the message that comes next, and its ids.
    turns: HashMap<usize, (usize, Ids)>,
}

/// Ids of an example, and those that take their place.
type Ids = HashMap<String, String>;

/// One happening.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The pause before it.
    pub after: Duration,
    /// Where it happens.
    pub room: String,
    /// What Astro publishes about it, in order.
    pub publications: Vec<Publication>,
}

/// One message of a step.
#[derive(Debug, Clone, PartialEq)]
pub enum Publication {
    /// An activity: it goes through the session and the history.
    Activity(Value),
    /// A message on any other topic.
    Message(String, Value),
}

use Publication::{Activity, Message};

impl Traffic {
    /// Traffic of these rooms.
    pub fn new(seed: u64, rooms: &[String]) -> Self {
        let room =
            |id: &String| Room { id: id.clone(), live: false, steps: 0, turns: HashMap::new() };
        Self { random: fastrand::Rng::with_seed(seed), rooms: rooms.iter().map(room).collect() }
    }

    /// What happens next, at the time `now`. `None`: there are no rooms.
    pub fn next(&mut self, now: UnixMillis) -> Option<Step> {
        let random = &mut self.random;
        let room = random.choice(&mut self.rooms)?;
        let millis = u64::try_from(LONGEST_PAUSE.as_millis()).unwrap_or(u64::MAX);
        // The product of two evenly drawn numbers: mostly short pauses, sometimes a lull.
        let after = Duration::from_millis(random.u64(..=millis) * random.u64(..=100) / 100);
        room.steps += 1;
        let publications = play(random, room, now);
        Some(Step { after, room: room.id.clone(), publications })
    }
}

impl World {
    /// Plays traffic in real time, `speed` times as fast, until the caller has had enough of it: it
    /// ends by itself only where there are no rooms.
    pub async fn play(&self, traffic: &mut Traffic, speed: f64) {
        while let Some(step) = traffic.next(clock::now()) {
            tokio::time::sleep(step.after.div_f64(speed.max(0.001))).await;
            self.perform(step);
        }
    }

    /// Publishes the messages of one step.
    pub fn perform(&self, step: Step) {
        for publication in step.publications {
            match publication {
                Activity(activity) => {
                    self.activity(&step.room, activity);
                }
                Message(topic, data) => {
                    self.publish(&topic, &step.room, data);
                }
            }
        }
    }
}

fn play(random: &mut fastrand::Rng, room: &mut Room, now: UnixMillis) -> Vec<Publication> {
    if !room.live {
        room.live = true;
        return publish(random, room, now, BEGINS, &mut Ids::new());
    }
    let all: u32 = HAPPENINGS.iter().map(|(often, ..)| often).sum();
    let mut drawn = random.u32(..all + ENDS);
    for (index, (often, order, messages)) in HAPPENINGS.iter().enumerate() {
        if drawn >= *often {
            drawn -= often;
        } else if *order == Together {
            return publish(random, room, now, messages, &mut Ids::new());
        } else {
            let (turn, mut ids) = room.turns.remove(&index).unwrap_or_default();
            let message = messages.get(turn..=turn).unwrap_or_default();
            let publications = publish(random, room, now, message, &mut ids);
            if turn + 1 < messages.len() {
                room.turns.insert(index, (turn + 1, ids));
            }
            return publications;
        }
    }
    room.live = false;
    publish(random, room, now, BEGINS.get(..1).unwrap_or_default(), &mut Ids::new())
}

fn publish(
    random: &mut fastrand::Rng,
    room: &Room,
    now: UnixMillis,
    examples: &[&str],
    ids: &mut Ids,
) -> Vec<Publication> {
    let mut one = |list: &[&'static str]| random.choice(list).copied().unwrap_or_default();
    let (person, text, emote) = (one(PEOPLE), one(CHAT), one(EMOTES));
    let at = clock::rfc3339(now);
    let cents = random.u32(100..5000);
    let mut variation = Variation { random, room, person, text, emote, at, cents, ids };
    examples.iter().filter_map(|example| variation.publication(example)).collect()
}

/// What takes the place of an example's values, the same in all messages of one step.
struct Variation<'a> {
    random: &'a mut fastrand::Rng,
    room: &'a Room,
    person: &'static str,
    text: &'static str,
    emote: &'static str,
    at: String,
    cents: u32,
    ids: &'a mut Ids,
}

impl Variation<'_> {
    /// `None` cannot be: every example is a message.
    fn publication(&mut self, example: &str) -> Option<Publication> {
        let mut message: Value = serde_json::from_str(example).ok()?;
        let mut data = message.get_mut("data")?.take();
        self.vary("data", &mut data);
        let topic = message.get("topic")?.as_str()?;
        if topic != "channel.activities" {
            return Some(Message(topic.to_owned(), data));
        }
        if data.get("type")? == "cheer" {
            // The words for these two are not documented; they are what the vendor calls them.
            let other = match self.random.u32(..10) {
                0 => Some(("kicks", "kick")),
                1 => Some(("jewels", "youtube")),
                _ => None,
            };
            if let Some((kind, provider)) = other {
                *data.get_mut("type")? = kind.into();
                *data.get_mut("provider")? = provider.into();
                *data.pointer_mut("/data/message")? = self.text.into();
            }
        }
        Some(Activity(data))
    }

    fn vary(&mut self, key: &str, value: &mut Value) {
        match value {
            Value::Object(fields) => {
                fields.iter_mut().for_each(|(key, value)| self.vary(key, value));
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.vary(key, item)),
            Value::Bool(live) if key == "isLive" => *live = self.room.live,
            Value::Number(number) => match (key, number.as_u64()) {
                ("amount", None) => *value = (f64::from(self.cents) / 100.0).into(),
                ("amount", Some(amount)) => *value = self.random.u64(1..=amount.max(1) * 2).into(),
                ("value" | "sessionEventsCount", _) => *value = self.room.steps.into(),
                _ => {}
            },
            Value::String(old) => *old = self.string(key, old),
            Value::Null | Value::Bool(_) => {}
        }
    }

    fn string(&mut self, key: &str, old: &str) -> String {
        match key {
            "createdAt" | "updatedAt" | "created_at" | "publishedAt" | "timeStamp" => {
                self.at.clone()
            }
            "username" | "chatter_user_login" | "channel_slug" => self.person.to_lowercase(),
            "displayName" | "chatter_user_name" | "user_name" | "display_name" => {
                self.person.to_owned()
            }
            "email" => format!("{}@sim.invalid", self.person.to_lowercase()),
            "transactionId" => self.id(old, |random| format!("SIM{:014X}", random.u64(..1 << 52))),
            "emote" | "word" => self.emote.to_owned(),
            "message" | "text" | "content" | "displayMessage" | "messageText" => self.words(old),
            _ if old == EXAMPLE_ROOM => self.room.id.clone(),
            _ => self.identifier(old),
        }
    }

    /// What somebody writes, with the emote and the spaces that the example has.
    fn words(&self, old: &str) -> String {
        let emote = EMOTES.iter().find(|emote| old.ends_with(**emote));
        match emote {
            Some(emote) if old == *emote => self.emote.to_owned(),
            Some(_) => format!("{} {}", self.text, self.emote),
            None if old.is_empty() => String::new(),
            None if old.ends_with(' ') => format!("{} ", self.text),
            None => self.text.to_owned(),
        }
    }

    /// Another id of the same shape, if it is one.
    fn identifier(&mut self, old: &str) -> String {
        let all = |fits: fn(&u8) -> bool| old.as_bytes().iter().all(fits);
        if old.len() == 24 && all(u8::is_ascii_hexdigit) {
            self.id(old, hex_id)
        } else if old.len() == 36 && all(|byte| byte.is_ascii_hexdigit() || *byte == b'-') {
            self.id(old, uuid)
        } else if old.len() >= 8 && all(u8::is_ascii_digit) {
            self.id(old, |random| random.u64(10_000_000..900_000_000).to_string())
        } else {
            old.to_owned()
        }
    }

    fn id(&mut self, old: &str, new: fn(&mut fastrand::Rng) -> String) -> String {
        self.ids.entry(old.to_owned()).or_insert_with(|| new(self.random)).clone()
    }
}

/// A UUID in form.
fn uuid(random: &mut fastrand::Rng) -> String {
    let mut hex = format!("{:032x}", random.u128(..));
    // From the back, so that earlier places stay where they are.
    for place in [20, 16, 12, 8] {
        hex.insert(place, '-');
    }
    hex
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn rooms() -> Vec<String> {
        vec!["a".repeat(24), "b".repeat(24)]
    }

    #[test]
    fn the_same_seed_gives_the_same_traffic() {
        let play = |seed| {
            let mut traffic = Traffic::new(seed, &rooms());
            (0..200).map(|n| traffic.next(1_700_000_000_000 + n).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(play(1), play(1));
        assert_ne!(play(1), play(2));
    }

    #[test]
    fn everything_happens_sooner_or_later() {
        let mut traffic = Traffic::new(3, &rooms());
        let (mut topics, mut kinds) = (BTreeSet::new(), BTreeSet::new());
        for n in 0..20_000 {
            for publication in traffic.next(1_700_000_000_000 + n).unwrap().publications {
                match publication {
                    Message(topic, _) => drop(topics.insert(topic)),
                    Activity(activity) => {
                        kinds.insert(activity["type"].as_str().unwrap().to_owned());
                        assert_eq!(activity["_id"], activity["activityId"]);
                    }
                }
            }
        }
        assert_eq!(topics.len(), 17, "{topics:?}");
        assert_eq!(kinds.len(), 16, "{kinds:?}");
    }

    #[test]
    fn without_rooms_nothing_happens() {
        assert_eq!(Traffic::new(1, &[]).next(0), None);
    }
}
