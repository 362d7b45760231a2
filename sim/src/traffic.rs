//! Demo traffic: what happens on a few lively channels, in the shapes of the documentation's examples.
//!
//! People, texts and numbers are made up. The same seed and the same times give the same traffic.
//!
//! The one thing to know: a step is one happening and everything that Astro says about it. A tip, for
//! example, is an activity, a message on `channel.tips` and one on `channel.tips.moderation`; what it
//! changes in the session follows from the activity, see `session.rs`.

#![expect(clippy::indexing_slicing, reason = "the values indexed here are objects made here")]

use std::time::Duration;

use serde_json::{Value, json};

use crate::clock::{self, UnixMillis};
use crate::{session::hex_id, world::World};

/// The pause between two happenings at normal speed, at most.
const LONGEST_PAUSE: Duration = Duration::from_millis(1600);

/// An entry of a giveaway costs so many loyalty points at most.
const MOST_TICKETS: u64 = 10;

const PEOPLE: &[&str] = &[
    "MossyLantern",
    "quietcomet",
    "BrambleFox",
    "tidepool_tess",
    "NorthboundOtto",
    "pixelplum",
    "Wrenhollow",
    "captain_marzipan",
    "LumenGrove",
    "soupdragon",
    "HaroldTheThird",
    "velvetbadger",
    "OrbitingKate",
    "mintcondition",
    "Fernweh77",
    "thunderpeach",
    "Saltmarsh",
    "kiteseason",
    "BenevolentYeti",
    "papercrane_io",
    "Jörmun",
    "夜明けの猫",
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
];
const TIP_TEXTS: &[&str] = &[
    "for the new microphone",
    "thanks for keeping me company on the night shift",
    "buy the cat a fish",
    "",
    "that boss deserved it",
    "happy birthday! 🎂",
    "\"quotes\" & <tags>",
];
const EMOTES: &[&str] = &["lanternHi", "moonWave", "plumLove", "foxNod"];
const COUNTERS: &[&str] = &["deaths", "puns", "wrong-turns"];
const REWARDS: &[&str] = &["Hydrate!", "Pick the next level", "Wear the silly hat", "Ten push-ups"];
const ITEMS: &[&str] = &["Sticker sheet", "Name a villager", "Sound: foghorn", "VIP for a week"];
const SONGS: &[(&str, &str, u32)] = &[
    ("hbr0urLight", "Harbour Lights (Lo-Fi)", 184),
    ("n1ghtFerry0", "Night Ferry", 241),
    ("m0ssAndSton", "Moss and Stone", 203),
    ("cometSeason", "Comet Season (Live)", 318),
];

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
    counters: Vec<u64>,
    giveaway: Option<Giveaway>,
    contest: Option<String>,
    hype: Option<(u64, u64)>,
    songs_waiting: u32,
    volume: u32,
    events: u64,
}

#[derive(Debug)]
struct Giveaway {
    id: String,
    users: u64,
    tickets: u64,
}

/// One happening.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The pause before it.
    pub after: Duration,
    /// Where it happens.
    pub room: String,
    /// What Astro says about it, in order.
    pub said: Vec<Said>,
}

/// One message of a step.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    /// An activity: it goes through the session and the history.
    Activity(Value),
    /// A message on any other topic.
    Message(&'static str, Value),
}

use Said::{Activity, Message};

impl Traffic {
    /// Traffic of these rooms.
    pub fn new(seed: u64, rooms: &[String]) -> Self {
        let room = |id: &String| Room {
            id: id.clone(),
            live: false,
            counters: vec![0; COUNTERS.len()],
            giveaway: None,
            contest: None,
            hype: None,
            songs_waiting: 0,
            volume: 60,
            events: 0,
        };
        Self { random: fastrand::Rng::with_seed(seed), rooms: rooms.iter().map(room).collect() }
    }

    /// What happens next, at the time `now`. `None`: there are no rooms.
    pub fn next(&mut self, now: UnixMillis) -> Option<Step> {
        let random = &mut self.random;
        let room = random.choice(&mut self.rooms)?;
        let millis = u64::try_from(LONGEST_PAUSE.as_millis()).unwrap_or(u64::MAX);
        // The product of two evenly drawn numbers: mostly short pauses, sometimes a lull.
        let after = Duration::from_millis(random.u64(..=millis) * random.u64(..=100) / 100);
        let mut scene = Scene { random, room, now };
        let said = scene.play();
        Some(Step { after, room: scene.room.id.clone(), said })
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

    /// Publishes what is said in one step.
    pub fn perform(&self, step: Step) {
        for said in step.said {
            match said {
                Activity(activity) => {
                    self.activity(&step.room, activity);
                }
                Message(topic, data) => {
                    self.publish(topic, &step.room, data);
                }
            }
        }
    }
}

/// One room at one moment.
struct Scene<'a> {
    random: &'a mut fastrand::Rng,
    room: &'a mut Room,
    now: UnixMillis,
}

impl Scene<'_> {
    fn play(&mut self) -> Vec<Said> {
        if !self.room.live {
            self.room.live = true;
            return vec![
                Message("channel.stream.status", json!({ "isLive": true })),
                Message("channel.chatbot.status", json!({ "mod": true })),
            ];
        }
        // Out of 1000: mostly chat, as on a real channel.
        match self.random.u32(..1000) {
            0..420 => vec![self.chat()],
            420..520 => vec![self.follow()],
            520..570 => self.tip(),
            570..640 => self.cheer(),
            640..690 => vec![self.subscriber()],
            690..705 => vec![self.raid()],
            705..755 => vec![self.reward()],
            755..790 => self.purchase(),
            790..820 => vec![self.counter()],
            820..870 => vec![self.giveaway()],
            870..910 => vec![self.song()],
            910..935 => vec![self.contest()],
            935..955 => vec![self.overlay()],
            955..975 => vec![self.module()],
            975..990 => vec![self.elsewhere()],
            990..997 => vec![self.chatbot()],
            _ => {
                self.room.live = false;
                vec![Message("channel.stream.status", json!({ "isLive": false }))]
            }
        }
    }

    fn one<'t>(&mut self, list: &[&'t str]) -> &'t str {
        self.random.choice(list).copied().unwrap_or_default()
    }

    fn person(&mut self) -> (String, String) {
        let name = self.one(PEOPLE);
        (name.to_lowercase(), name.to_owned())
    }

    fn id(&mut self) -> String {
        hex_id(self.random)
    }

    /// Digits, as providers number their people.
    fn number(&mut self) -> String {
        self.random.u64(10_000_000..900_000_000).to_string()
    }

    /// A UUID in form.
    fn uuid(&mut self) -> String {
        let mut hex = format!("{:032x}", self.random.u128(..));
        // From the back, so that earlier places stay where they are.
        for place in [20, 16, 12, 8] {
            hex.insert(place, '-');
        }
        hex
    }

    fn activity(&mut self, kind: &str, provider: &str, mut data: Value) -> Said {
        let id = self.id();
        let at = clock::rfc3339(self.now);
        self.room.events += 1;
        let number = self.number();
        if let Value::Object(fields) = &mut data {
            fields.entry("providerId").or_insert(Value::from(number));
            let avatar = "https://sim.invalid/avatars/lantern.png";
            fields.entry("avatar").or_insert(Value::from(avatar));
        }
        Activity(json!({
            "type": kind, "provider": provider, "channel": self.room.id, "data": data,
            "_id": id, "createdAt": at, "updatedAt": at, "activityId": id,
            "sessionEventsCount": self.room.events,
        }))
    }

    fn follow(&mut self) -> Said {
        let (username, display) = self.person();
        self.activity("follow", "twitch", json!({ "username": username, "displayName": display }))
    }

    fn tip(&mut self) -> Vec<Said> {
        let (username, display) = self.person();
        let cents = self.random.u32(100..5000);
        let amount = f64::from(cents) / 100.0;
        let text = self.one(TIP_TEXTS);
        let currency = self.one(&["EUR", "USD", "GBP"]);
        let transaction = format!("SIM{:014X}", self.random.u64(..1 << 52));
        let id = self.id();
        let at = clock::rfc3339(self.now);
        let tip = json!({
            "donation": {
                "user": {
                    "username": display, "geo": "ZZ", "channel": self.room.id,
                    "email": format!("{}@sim.invalid", username.replace(' ', ".")),
                },
                "message": text, "amount": amount, "currency": currency, "paymentMethod": "scheme",
            },
            "_id": id, "channel": self.room.id, "provider": "paypal", "approved": "allowed",
            "status": "success", "createdAt": at, "updatedAt": at, "transactionId": transaction,
        });
        let mut moderated = tip.clone();
        if let Value::Object(fields) = &mut moderated {
            fields.insert("approvedBy".into(), "mod_marzipan".into());
        }
        let data = json!({
            "username": username, "displayName": display, "amount": amount, "currency": currency,
            "message": text,
        });
        vec![
            Message("channel.tips", tip),
            Message("channel.tips.moderation", moderated),
            self.activity("tip", "twitch", data),
        ]
    }

    fn cheer(&mut self) -> Vec<Said> {
        let (username, display) = self.person();
        let amount = self.random.choice([1_u64, 10, 50, 100, 100, 250, 500, 1000]).unwrap_or(1);
        let text = self.one(CHAT);
        let data = json!({
            "username": username, "displayName": display, "amount": amount,
            "message": format!("Cheer{amount} {text}"),
        });
        let mut said = vec![self.activity("cheer", "twitch", data)];
        said.extend(self.hype(amount));
        said
    }

    /// Big cheers set a hype train going and drive it on.
    fn hype(&mut self, amount: u64) -> Option<Said> {
        /// What a level costs.
        const LEVEL: u64 = 1000;
        let (kind, level, total) = match self.room.hype.take() {
            None if amount < 500 => return None,
            None => ("hypetrainStart", 1, amount),
            Some((level, total)) if total + amount >= LEVEL * level && level == 3 => {
                ("hypetrainEnd", level, total + amount)
            }
            Some((level, total)) => {
                let total = total + amount;
                ("hypetrainProgress", (total / LEVEL + 1).max(level).min(3), total)
            }
        };
        if kind != "hypetrainEnd" {
            self.room.hype = Some((level, total));
        }
        let data = json!({ "level": level, "amount": total, "goal": LEVEL * level });
        Some(self.activity(kind, "twitch", data))
    }

    fn subscriber(&mut self) -> Said {
        let (username, display) = self.person();
        let months = self.random.u32(1..60);
        let tier = self.one(&["1000", "1000", "prime", "2000", "3000"]);
        let text = self.one(CHAT);
        let (kind, provider) = match self.random.u32(..10) {
            0 => ("sponsor", "youtube"),
            1 => ("subscriber", "kick"),
            _ => ("subscriber", "twitch"),
        };
        let mut data = json!({
            "username": username, "displayName": display, "amount": months, "tier": tier,
            "message": text,
        });
        if self.random.u32(..5) == 0 {
            let (_, sender) = self.person();
            data["sender"] = sender.into();
            data["gifted"] = true.into();
        }
        self.activity(kind, provider, data)
    }

    fn raid(&mut self) -> Said {
        let (username, display) = self.person();
        let viewers = self.random.u32(3..900);
        let data = json!({ "username": username, "displayName": display, "amount": viewers });
        self.activity("raid", "twitch", data)
    }

    fn reward(&mut self) -> Said {
        let (username, display) = self.person();
        let reward = self.one(REWARDS);
        let cost = self.random.u32(1..40) * 50;
        let data = json!({
            "username": username, "displayName": display, "amount": cost, "redemption": reward,
            "status": "unfulfilled",
        });
        self.activity("channelPointsRedemption", "twitch", data)
    }

    fn purchase(&mut self) -> Vec<Said> {
        let (username, display) = self.person();
        let (item, text) = (self.one(ITEMS), self.one(CHAT));
        let (price, gifts) = (self.random.u32(3..40), self.random.u32(1..50));
        let mut data = json!({ "username": username, "displayName": display, "amount": price });
        let (kind, provider) = match self.random.u32(..6) {
            0 => ("merch", "represent"),
            4 | 5 => {
                data["amount"] = (gifts * 10).into();
                data["message"] = text.into();
                // The words for these two are not documented; they are what the vendor calls them.
                if gifts % 2 == 0 { ("kicks", "kick") } else { ("jewels", "youtube") }
            }
            1 => {
                data["currency"] = "EUR".into();
                data["message"] = text.into();
                ("superchat", "youtube")
            }
            2 => {
                data["amount"] = gifts.into();
                data["tier"] = "1000".into();
                ("communityGiftPurchase", "twitch")
            }
            _ => {
                data["redemption"] = item.into();
                let redeemed = self.redemption(&display, item, price * 100);
                return vec![redeemed, self.activity("redemption", "StreamElements", data)];
            }
        };
        vec![self.activity(kind, provider, data)]
    }

    fn redemption(&mut self, redeemer: &str, item: &str, points: u32) -> Said {
        let (id, item_id) = (self.id(), self.id());
        let at = clock::rfc3339(self.now);
        Message(
            "channel.loyalty.redemptions",
            json!({
                "_id": id, "channel": self.room.id, "redeemer": { "username": redeemer },
                "item": { "_id": item_id, "name": item, "cost": points },
                "completed": false, "createdAt": at, "updatedAt": at,
            }),
        )
    }

    fn counter(&mut self) -> Said {
        let which = self.random.usize(..COUNTERS.len());
        let value = self.room.counters.get_mut(which).map_or(0, |counter| {
            *counter += 1;
            *counter
        });
        let name = COUNTERS.get(which).copied().unwrap_or_default();
        Message("channel.chatbot.counters", json!({ "counter": name, "value": value }))
    }

    fn giveaway(&mut self) -> Said {
        let (username, _) = self.person();
        let provider_id = format!("twitch:{}", self.number());
        let tickets = self.random.u64(1..=MOST_TICKETS);
        let Some(mut giveaway) = self.room.giveaway.take() else {
            let giveaway = Giveaway { id: self.id(), users: 0, tickets: 0 };
            let said = self.giveaway_event(&giveaway.id, "start", "running", &Value::Null);
            self.room.giveaway = Some(giveaway);
            return said;
        };
        let so_far = |g: &Giveaway| json!({ "totalUsers": g.users, "totalTickets": g.tickets });
        let player = json!({
            "providerId": provider_id, "username": username,
            "subscriber": self.random.bool(), "tickets": tickets,
        });
        // A giveaway of five entries or more is drawn some time.
        if giveaway.users >= 5 && self.random.u32(..4) == 0 {
            let mut data = so_far(&giveaway);
            data["winner"] = player;
            return self.giveaway_event(&giveaway.id, "winner", "running", &data);
        }
        giveaway.users += 1;
        giveaway.tickets += tickets;
        let mut data = so_far(&giveaway);
        data["entry"] = player;
        data["entry"]["new"] = true.into();
        let said = self.giveaway_event(&giveaway.id, "enter", "running", &data);
        self.room.giveaway = Some(giveaway);
        said
    }

    fn giveaway_event(&self, id: &str, event: &str, state: &str, data: &Value) -> Said {
        let channel = &self.room.id;
        Message(
            "channel.giveaways",
            json!({
                "channelId": channel, "giveawayId": id, "event": event, "state": state, "data": data,
            }),
        )
    }

    fn song(&mut self) -> Said {
        let (username, _) = self.person();
        let &(video, title, seconds) = self.random.choice(SONGS).unwrap_or(&("", "", 0));
        let (id, provider_id) = (self.id(), self.number());
        let (event, payload) = match self.random.u32(..6) {
            0..3 => {
                self.room.songs_waiting += 1;
                let song = json!({
                    "_id": id, "videoId": video, "title": title, "duration": seconds, "start": 0,
                    "end": seconds, "channel": self.room.id, "amount": 0, "message": "",
                    "user": { "providerId": provider_id, "username": username, "subscriber": false },
                    "promoted": false, "skipped": false, "type": "video", "source": "bot",
                    "url": format!("https://sim.invalid/watch?v={video}"), "approvedBy": "",
                    "provider": "youtube", "voteskips": [], "tags": ["music"], "categoryId": 10,
                });
                let position = self.room.songs_waiting;
                ("queue.add", json!({ "song": song, "position": position, "queue": "queue" }))
            }
            3 => {
                self.room.songs_waiting = self.room.songs_waiting.saturating_sub(1);
                let song = json!({
                    "_id": id, "videoId": video, "title": title, "duration": seconds,
                });
                ("song.next", json!({ "nextSong": song }))
            }
            4 => {
                self.room.volume = self.random.u32(20..=100);
                ("volume", json!({ "volume": self.room.volume }))
            }
            _ => {
                let votes = self.random.u32(1..5);
                let skipped =
                    json!({ "totalVotes": votes, "votesRequired": 5, "completed": false });
                ("song.voteskip", skipped)
            }
        };
        Message("channel.songrequest", json!({ "event": event, "payload": payload }))
    }

    fn contest(&mut self) -> Said {
        let (option, user) = (self.id(), self.number());
        let (event, payload) = match self.room.contest.take() {
            None => {
                let id = self.id();
                self.room.contest = Some(id.clone());
                ("state", json!({ "state": "running", "contestId": id }))
            }
            Some(_) if self.random.u32(..5) == 0 => ("winner", json!({ "winnerId": option })),
            Some(id) => {
                self.room.contest = Some(id);
                let amount = self.random.u32(1..20) * 10;
                ("update", json!({ "optionId": option, "amount": amount, "userId": user }))
            }
        };
        Message("channel.contests", json!({ "event": event, "payload": payload }))
    }

    fn overlay(&mut self) -> Said {
        let id = self.id();
        match self.random.u32(..4) {
            0 => Message(
                "channel.overlay.action",
                json!({ "action": self.one(&["pause", "unpause", "skip", "mute"]) }),
            ),
            1 => Message(
                "channel.overlay.broadcast",
                json!({ "target": "global", "event": "lantern-lit",
                        "data": { "brightness": self.random.u32(..=100) } }),
            ),
            2 => Message(
                "channel.kvstore.update",
                json!({ "data": { "key": "customWidget.lanterns",
                                  "value": self.random.u32(..500).to_string() } }),
            ),
            _ => Message(
                "channel.overlay.update",
                json!({
                    "_id": id, "channel": self.room.id, "type": "regular", "name": "harbour scene",
                    "settings": { "width": 1920, "height": 1080, "name": "1080p" },
                    "preview": "https://sim.invalid/overlays/harbour.jpg",
                    "widgets": [{
                        "id": 1, "group": null, "type": "text", "name": null, "visible": true,
                        "locked": false, "css": { "z-index": 3, "width": "auto", "opacity": 1 },
                        "text": { "type": "text", "value": "be kind to the ferryman" },
                        "provider": "twitch",
                    }],
                    "mobile": false, "campaign": false, "favorite": false,
                    "createdAt": "2025-03-01T18:00:00.000Z", "updatedAt": clock::rfc3339(self.now),
                }),
            ),
        }
    }

    fn module(&mut self) -> Said {
        let (_, display) = self.person();
        let (message, user, emote) = (self.uuid(), self.number(), self.one(EMOTES));
        let size = self.random.u32(3..8);
        if self.random.bool() {
            // Sent when a combo is broken; it names who broke it.
            Message(
                "channel.chatbot.modules.emotecombo",
                json!({ "msg_id": message, "user_id": user, "user_name": display,
                        "emote": emote, "count": size }),
            )
        } else {
            Message(
                "channel.chatbot.modules.pyramid",
                json!({ "msg_id": message, "user_id": user, "user_name": display,
                        "word": emote, "width": size }),
            )
        }
    }

    /// The bot's own rights (exactly one of two fields), or its queue of viewers.
    fn chatbot(&mut self) -> Said {
        let status = match self.random.u32(..4) {
            0 => json!({ "banned": false }),
            1 => json!({ "mod": true }),
            _ => return self.audience_queue(),
        };
        Message("channel.chatbot.status", status)
    }

    fn audience_queue(&mut self) -> Said {
        let at = clock::rfc3339(self.now);
        let (username, display) = self.person();
        let (id, position) = (self.number(), self.random.u32(1..25));
        let (event, payload) = match self.random.u32(..4) {
            0 => (
                "created",
                json!({
                    "isSuspended": false, "title": "Viewer games",
                    "audienceMemberGroups": ["subscriber", "vip"], "maxQueueSize": 25,
                    "createdAt": at, "updatedAt": at,
                    "statusChangeLog": [{ "timeStamp": at, "status": "opened" }],
                }),
            ),
            1 => ("deleted", Value::Null),
            _ => (
                "member-enqueued",
                json!({
                    "id": id, "username": username, "displayName": display, "watchTime": 340,
                    "audienceGroups": ["subscriber"], "position": position,
                }),
            ),
        };
        let event = format!("audience-queue:{event}");
        Message("channel.chatbot.audiencequeue", json!({ "event": event, "payload": payload }))
    }

    /// Chat from a provider other than Twitch, each with a form of its own.
    fn elsewhere(&mut self) -> Said {
        let (username, display) = self.person();
        let (text, number, uuid) = (self.one(CHAT), self.random.u32(10_000_000..), self.uuid());
        let at = clock::rfc3339(self.now);
        let message = match self.random.u32(..3) {
            0 => json!({
                "id": format!("LCC.{uuid}"), "etag": uuid, "kind": "youtube#liveChatMessage",
                "authorDetails": {
                    "channelId": format!("UC{number}"), "displayName": display,
                    "channelUrl": "https://sim.invalid/channel", "isChatModerator": false,
                    "isVerified": false, "isChatOwner": false, "isChatSponsor": true,
                    "profileImageUrl": "https://sim.invalid/avatars/fox.png",
                },
                "snippet": {
                    "authorChannelId": format!("UC{number}"), "displayMessage": text,
                    "hasDisplayContent": true, "liveChatId": format!("live{number}"),
                    "publishedAt": at, "textMessageDetails": { "messageText": text },
                    "type": "textMessageEvent",
                },
            }),
            1 => {
                let person = json!({
                    "user_id": number, "username": username, "is_verified": false,
                    "profile_picture": "", "channel_id": 0, "channel_slug": username,
                });
                json!({ "message_id": uuid, "broadcaster": person, "sender": person,
                        "content": text, "emotes": null })
            }
            _ => json!({
                "id": uuid, "channel_id": number.to_string(), "type": 0, "created_at": at,
                "data": {
                    "avatar": "https://sim.invalid/avatars/yeti.png", "roles": ["follower"],
                    "emotes": [], "display_name": display, "username": username,
                    "sender_id": number.to_string(), "text": text,
                },
            }),
        };
        Message("channel.chat.message", message)
    }

    fn chat(&mut self) -> Said {
        let (username, display) = self.person();
        let (text, emote) = (self.one(CHAT), self.one(EMOTES));
        let (chatter, emote_id, message) = (self.number(), self.number(), self.uuid());
        let color = format!("#{:06X}", self.random.u32(..1 << 24));
        let months = self.random.u32(1..60).to_string();
        let emotion = json!({
            "type": "emote", "text": emote, "cheermote": null, "mention": null,
            "emote": { "id": emote_id, "emote_set_id": "0", "owner_id": "twitch",
                       "format": ["static"] },
        });
        let words = json!({
            "type": "text", "text": format!("{text} "), "cheermote": null, "emote": null,
            "mention": null,
        });
        Message(
            "channel.chat.message",
            json!({
                "broadcaster_user_id": "40000001", "broadcaster_user_login": "harbourlights",
                "broadcaster_user_name": "HarbourLights", "source_broadcaster_user_id": "",
                "chatter_user_id": chatter, "chatter_user_login": username,
                "chatter_user_name": display, "message_id": message, "color": color,
                "message": { "text": format!("{text} {emote}"), "fragments": [words, emotion] },
                "cheer": null,
                "badges": [{ "set_id": "subscriber", "id": months, "info": months }],
                "message_type": "text", "reply": null, "channel_points_custom_reward_id": null,
            }),
        )
    }
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
            for said in traffic.next(1_700_000_000_000 + n).unwrap().said {
                match said {
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
