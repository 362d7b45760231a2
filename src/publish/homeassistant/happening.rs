//! What happened, flat, as Home Assistant's event entities want it.
//!
//! One happening is told by Astro on several topics: a tip is an activity, and a message on
//! `channel.tips`. Activities have them all and are what a backfill brings back, so where a channel
//! has them they alone count; where it has not, the topics of their own do.
//!
//! The one thing to know: only fields that are named here leave. Whatever else the message says (the
//! donor's address, the avatar) stays out of Home Assistant's database, whatever `redact` says.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::base::{
    clock,
    event::{Event, Origin},
    json,
};

/// The topic of activities.
pub const ACTIVITIES: &str = "channel.activities";

/// A kind of happening: one event entity of each channel.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// The last part of its topic, and of its entity's id.
    pub name: &'static str,
    /// What people read.
    pub label: &'static str,
    /// Its icon.
    pub icon: &'static str,
    /// Its event types: what an automation can tell apart.
    pub types: &'static [&'static str],
    /// The topic that says it where activities are not subscribed; empty: none does.
    pub topic: &'static str,
}

/// All kinds. Names are part of what users write into automations: they stay.
pub const KINDS: &[Kind] = &[
    Kind {
        name: "follow",
        label: "Follow",
        icon: "mdi:account-heart",
        types: &["follow"],
        topic: "channel.follow",
    },
    Kind {
        name: "subscription",
        label: "Subscription",
        icon: "mdi:star",
        types: &["subscription", "gift", "community_gift", "membership", "supporter"],
        topic: "",
    },
    Kind { name: "tip", label: "Tip", icon: "mdi:cash", types: &["tip"], topic: "channel.tips" },
    Kind {
        name: "cheer",
        label: "Cheer",
        icon: "mdi:diamond-stone",
        types: &["cheer", "stars", "elixir", "kicks", "jewels"],
        topic: "",
    },
    Kind {
        name: "superchat",
        label: "Super Chat",
        icon: "mdi:chat-plus",
        types: &["superchat"],
        topic: "",
    },
    Kind {
        name: "raid",
        label: "Raid",
        icon: "mdi:account-group",
        types: &["raid", "host"],
        topic: "",
    },
    Kind {
        name: "redemption",
        label: "Redemption",
        icon: "mdi:gift",
        types: &["channel_points", "store"],
        topic: "channel.loyalty.redemptions",
    },
    Kind {
        name: "merch",
        label: "Merch",
        icon: "mdi:tshirt-crew",
        types: &["merch", "purchase"],
        topic: "",
    },
    Kind {
        name: "charity",
        label: "Charity donation",
        icon: "mdi:hand-heart",
        types: &["charity"],
        topic: "",
    },
    Kind {
        name: "hype_train",
        label: "Hype train",
        icon: "mdi:train",
        types: &["start", "progress", "end"],
        topic: "",
    },
    Kind {
        name: "other",
        label: "Other activity",
        icon: "mdi:bell",
        types: &["activity"],
        topic: "",
    },
];

/// The kind and the event type of an activity. The words are those of the protocol, see
/// `channel.activities`; one that is new is an activity of the kind `other`.
fn of_activity(word: &str, gifted: bool) -> (&'static str, &'static str) {
    match word {
        "follow" | "follower" => ("follow", "follow"),
        "subscriber" if gifted => ("subscription", "gift"),
        "subscriber" => ("subscription", "subscription"),
        "communityGiftPurchase" => ("subscription", "community_gift"),
        "sponsor" => ("subscription", "membership"),
        "fan" | "supporter" => ("subscription", "supporter"),
        "tip" => ("tip", "tip"),
        "cheer" | "cheerPurchase" => ("cheer", "cheer"),
        "stars" => ("cheer", "stars"),
        "elixir" => ("cheer", "elixir"),
        "kicks" => ("cheer", "kicks"),
        "jewels" => ("cheer", "jewels"),
        "superchat" => ("superchat", "superchat"),
        "raid" => ("raid", "raid"),
        "host" => ("raid", "host"),
        "channelPointsRedemption" => ("redemption", "channel_points"),
        "redemption" => ("redemption", "store"),
        "merch" => ("merch", "merch"),
        "purchase" => ("merch", "purchase"),
        "charityCampaignDonation" => ("charity", "charity"),
        "hypetrainStart" => ("hype_train", "start"),
        "hypetrainProgress" => ("hype_train", "progress"),
        "hypetrainEnd" => ("hype_train", "end"),
        _ => ("other", "activity"),
    }
}

/// A happening: its kind, and what an automation sees of it as attributes.
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
#[expect(clippy::struct_excessive_bools, reason = "they are attributes, each of its own")]
pub struct Happening {
    #[serde(skip)]
    kind: &'static str,
    event_type: &'static str,
    /// Who did it. Empty where nobody is named.
    name: String,
    /// Money, bits, viewers or points, by the kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    amount: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    currency: Option<String>,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    tier: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    months: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quantity: Option<Value>,
    /// Who gave it, where it was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    sender: Option<String>,
    /// What was redeemed.
    #[serde(skip_serializing_if = "Option::is_none")]
    item: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    level: Option<Value>,
    /// The activity's own word, where it is of no kind that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    activity: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    provider: Option<String>,
    occurred_at: String,
    /// Seconds since it was heard, or, for what was fetched afterwards, since it happened.
    age: f64,
    id: String,
    backfilled: bool,
    /// What belongs together, as the gifts of one gift bomb do.
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    /// The vendor has held it for suspicious.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    flagged: bool,
    /// Nobody did it: made by `send-test`, or emulated or played again on the vendor's pages.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    test: bool,
    /// Handed on again because somebody asked for it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    replayed: bool,
}

/// The vendor's words for what nobody did.
const MOCK: [&str; 6] = ["isMock", "mock", "isTest", "isEmulated", "isReplay", "isReplayed"];

impl Happening {
    /// What an event tells, from its data as the sink may see it; `None`: it is no happening, or one
    /// that another topic tells. `activities`: whether the channel's activities reach the sink.
    pub fn of(event: &Event, data: &[u8], activities: bool, age_ms: u64) -> Option<Self> {
        // Most of what passes is chat: it is not parsed.
        let (topic, of_its_own) = (&*event.place.topic, !activities);
        if topic != ACTIVITIES && !(of_its_own && KINDS.iter().any(|kind| kind.topic == topic)) {
            return None;
        }
        let data = json::value(data)?;
        let happening = match topic {
            ACTIVITIES => activity(&data)?,
            "channel.tips" => tip(&data)?,
            "channel.follow" => follow(&data),
            "channel.loyalty.redemptions" => redemption(&data),
            _ => return None,
        };
        let text = |key: &str| text(data.get(key));
        let at = text("createdAt").filter(|at| clock::parse_rfc3339(at).is_some());
        let ts = || Some(event.ts.to_string()).filter(|ts| clock::parse_rfc3339(ts).is_some());
        let age = u32::try_from(age_ms / 100).unwrap_or(u32::MAX);
        Some(Self {
            provider: text("provider"),
            occurred_at: at.or_else(ts).unwrap_or_else(|| clock::rfc3339(event.received)),
            age: f64::from(age) / 10.0,
            id: text("activityId")
                .or_else(|| text("_id"))
                .unwrap_or_else(|| event.key().to_owned()),
            backfilled: event.origin == Origin::Backfilled,
            group: text("activityGroup"),
            flagged: data.get("flagged").is_some_and(is_true),
            test: event.origin == Origin::Test || is_mock(&data),
            replayed: event.origin == Origin::Replayed,
            ..happening
        })
    }

    /// Its kind.
    pub fn kind(&self) -> &'static str {
        self.kind
    }
}

/// An activity, heard or from the history: both have this form.
fn activity(data: &Value) -> Option<Happening> {
    let word = data.get("type").and_then(Value::as_str)?;
    let nothing = Map::new();
    let about = data.get("data").and_then(Value::as_object).unwrap_or(&nothing);
    let get = |key: &str| text(about.get(key));
    let sender = get("sender");
    let gifted = sender.is_some() || about.get("gifted").is_some_and(is_true);
    let count = ["quantity", "count", "bulkCount"].iter().find_map(|key| number(about.get(*key)));
    let (kind, event_type) = of_activity(word, gifted);
    let amount = number(about.get("amount"));
    let mut happening = Happening {
        kind,
        event_type,
        name: get("displayName").or_else(|| get("username")).unwrap_or_default(),
        currency: get("currency"),
        message: get("message").unwrap_or_default(),
        tier: get("tier"),
        sender,
        item: get("redemption"),
        level: number(about.get("level")),
        quantity: count,
        activity: (kind == "other").then(|| word.to_owned()),
        ..Happening::default()
    };
    // The vendor's `amount` is whatever there is to count.
    match (kind, event_type) {
        ("subscription", "community_gift") => {
            happening.quantity = amount.or_else(|| happening.quantity.take());
        }
        ("subscription", _) => happening.months = amount,
        ("merch", _) => {
            happening.amount = amount;
            if let Some(items) = about.get("items").and_then(Value::as_array) {
                happening.quantity = Some(quantity(items));
            }
        }
        _ => happening.amount = amount,
    }
    if !matches!(kind, "subscription" | "other") {
        // The vendor's history names a tier with everything; it means something for these.
        happening.tier = None;
    }
    Some(happening)
}

/// A message of `channel.tips`. One that waits for a moderator has not happened yet.
fn tip(data: &Value) -> Option<Happening> {
    if text(data.get("approved")).is_some_and(|word| word != "allowed") {
        return None;
    }
    let donation = data.get("donation")?;
    Some(Happening {
        kind: "tip",
        event_type: "tip",
        name: text(donation.pointer("/user/username")).unwrap_or_default(),
        amount: number(donation.get("amount")),
        currency: text(donation.get("currency")),
        message: text(donation.get("message")).unwrap_or_default(),
        ..Happening::default()
    })
}

fn follow(data: &Value) -> Happening {
    let names = ["displayName", "username", "name"];
    Happening {
        kind: "follow",
        event_type: "follow",
        name: names.iter().find_map(|key| text(data.get(key))).unwrap_or_default(),
        ..Happening::default()
    }
}

fn redemption(data: &Value) -> Happening {
    Happening {
        kind: "redemption",
        event_type: "store",
        name: text(data.pointer("/redeemer/username")).unwrap_or_default(),
        amount: number(data.pointer("/item/cost")),
        item: text(data.pointer("/item/name")),
        message: text(data.get("message")).unwrap_or_default(),
        ..Happening::default()
    }
}

/// How many things were bought.
fn quantity(items: &[Value]) -> Value {
    let each = |item: &Value| number(item.get("quantity")).and_then(|n| n.as_u64()).unwrap_or(1);
    items.iter().map(each).fold(0_u64, u64::saturating_add).into()
}

/// A text that says something.
fn text(value: Option<&Value>) -> Option<String> {
    value.and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
}

/// A number, also where it was sent as text.
fn number(value: Option<&Value>) -> Option<Value> {
    match value? {
        number @ Value::Number(_) => Some(number.clone()),
        Value::String(text) => written(text),
        _ => None,
    }
}

/// A number as people write it: `5.50`, `5,50`, `1,234.50`, `$5`, `5 EUR`.
fn written(text: &str) -> Option<Value> {
    let text = text.trim();
    let parsed = |text: &str| serde_json::from_str(text).ok().filter(Value::is_number);
    if let Some(number) = parsed(text) {
        return Some(number);
    }
    let sign = |c: char| matches!(c, '-' | '+');
    // What stands around it is a currency.
    let around = |c: char| !c.is_ascii_digit() && !sign(c) && !matches!(c, '.' | ',');
    let text = text.trim_matches(around).trim_start_matches('+');
    if text.contains(around) {
        // A blank between thousands is part of it, anything else is not.
        let compact: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        return if compact.contains(around) { None } else { written(&compact) };
    }
    let (dot, comma) = (text.rfind('.'), text.rfind(','));
    let (thousands, decimal) = match (dot, comma) {
        (Some(dot), Some(comma)) if comma > dot => ('.', ','),
        // Three digits behind the only comma are thousands: nobody tips a tenth of a cent.
        (None, Some(comma)) if text.len() - comma != 4 && text.matches(',').count() == 1 => {
            ('.', ',')
        }
        _ => (',', '.'),
    };
    let plain: String = text.chars().filter(|c| *c != thousands).collect();
    let plain = plain.replace(decimal, ".");
    let plain = plain.trim_end_matches('.');
    let plain = if plain.starts_with('.') { format!("0{plain}") } else { plain.to_owned() };
    let zeros = plain.trim_start_matches('0');
    let plain = if zeros.starts_with(|c: char| c.is_ascii_digit()) { zeros } else { &*plain };
    parsed(plain)
}

/// True, in any spelling.
fn is_true(value: &Value) -> bool {
    match value {
        Value::Bool(truth) => *truth,
        Value::String(text) => text.eq_ignore_ascii_case("true") || text == "1",
        Value::Number(number) => number.as_f64().is_some_and(|number| number != 0.0),
        _ => false,
    }
}

/// Whether the vendor says that nobody did it.
fn is_mock(data: &Value) -> bool {
    let says = |data: &Value| MOCK.iter().any(|key| data.get(key).is_some_and(is_true));
    says(data) || data.get("data").is_some_and(says) || data.get("donation").is_some_and(says)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::base::event::own;

    const NOW: u64 = 1_708_008_762_000;

    fn heard(topic: &str, data: &Value) -> Event {
        own(topic, &"main".into(), &"r".into(), data, NOW)
    }

    fn told(topic: &str, data: &Value, activities: bool) -> Option<(&'static str, Value)> {
        let event = heard(topic, data);
        let happening = Happening::of(&event, event.data(), activities, 1_540)?;
        Some((happening.kind(), serde_json::to_value(happening).unwrap()))
    }

    fn activity(kind: &str, data: &Value) -> Value {
        json!({"type": kind, "provider": "twitch", "channel": "c", "data": data,
               "_id": "a1", "createdAt": "2024-02-15T14:52:41.608Z", "activityId": "a1"})
    }

    /// The attributes beside those that each has.
    fn only(mut value: Value) -> Value {
        let object = value.as_object_mut().unwrap();
        for (key, expected) in [
            ("id", json!("a1")),
            ("age", json!(1.5)),
            ("backfilled", json!(false)),
            ("provider", json!("twitch")),
            ("occurred_at", json!("2024-02-15T14:52:41.608Z")),
        ] {
            assert_eq!(object.remove(key), Some(expected), "{key}");
        }
        value
    }

    /// An activity's word and data, and what is told of it beside name and message: its kind, its
    /// event type, and more.
    fn table() -> Vec<(&'static str, Value, &'static str, &'static str, Value)> {
        vec![
            ("follow", json!({}), "follow", "follow", json!({})),
            (
                "tip",
                json!({"amount": 4.2, "currency": "USD"}),
                "tip",
                "tip",
                json!({"amount": 4.2, "currency": "USD"}),
            ),
            ("tip", json!({"amount": "5.50"}), "tip", "tip", json!({"amount": 5.5})),
            ("cheer", json!({"amount": 100}), "cheer", "cheer", json!({"amount": 100})),
            (
                "subscriber",
                json!({"amount": 7, "tier": "prime"}),
                "subscription",
                "subscription",
                json!({"months": 7, "tier": "prime"}),
            ),
            (
                "subscriber",
                json!({"amount": 1, "gifted": true, "sender": "Bob"}),
                "subscription",
                "gift",
                json!({"months": 1, "tier": "1000", "sender": "Bob"}),
            ),
            (
                "communityGiftPurchase",
                json!({"amount": 20}),
                "subscription",
                "community_gift",
                json!({"quantity": 20, "tier": "1000"}),
            ),
            (
                "sponsor",
                json!({"amount": 3}),
                "subscription",
                "membership",
                json!({"months": 3, "tier": "1000"}),
            ),
            ("raid", json!({"amount": 45}), "raid", "raid", json!({"amount": 45})),
            ("host", json!({"amount": 4}), "raid", "host", json!({"amount": 4})),
            (
                "channelPointsRedemption",
                json!({"amount": 500, "redemption": "Hydrate!"}),
                "redemption",
                "channel_points",
                json!({"amount": 500, "item": "Hydrate!"}),
            ),
            (
                "merch",
                json!({"amount": 30, "items": [{"quantity": 2}, {"name": "mug"}]}),
                "merch",
                "merch",
                json!({"amount": 30, "quantity": 3}),
            ),
            (
                "superchat",
                json!({"amount": 5, "currency": "EUR"}),
                "superchat",
                "superchat",
                json!({"amount": 5, "currency": "EUR"}),
            ),
            (
                "hypetrainProgress",
                json!({"level": 2, "amount": 1500}),
                "hype_train",
                "progress",
                json!({"level": 2, "amount": 1500}),
            ),
            (
                "something new",
                json!({}),
                "other",
                "activity",
                json!({"activity": "something new", "tier": "1000"}),
            ),
        ]
    }

    fn joined(mut one: Value, other: Value) -> Value {
        if let (Value::Object(one), Value::Object(other)) = (&mut one, other) {
            one.extend(other);
        }
        one
    }

    #[test]
    fn each_activity_has_its_kind_and_its_attributes() {
        for (word, data, kind, event_type, more) in table() {
            let ann = json!({"username": "ann", "displayName": "Ann", "providerId": "1",
                "message": "hi", "avatar": "https://x.invalid/a.png", "tier": "1000"});
            let (found, told) =
                told(ACTIVITIES, &activity(word, &joined(ann, data)), true).unwrap();
            let expected = json!({"event_type": event_type, "name": "Ann", "message": "hi"});
            assert_eq!((found, only(told)), (kind, joined(expected, more)), "{word}");
        }
    }

    /// Every activity that the simulation makes, in the documentation's shape, is of some kind.
    #[test]
    fn the_documented_shapes_are_happenings() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/messages");
        let mut kinds = std::collections::BTreeSet::new();
        for entry in std::fs::read_dir(dir).unwrap() {
            let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
            let message: Value = serde_json::from_str(&text).unwrap();
            let topic = message["topic"].as_str().unwrap_or_default();
            let told = told(topic, &message["data"], topic == ACTIVITIES);
            let expected = KINDS.iter().any(|kind| kind.topic == topic) || topic == ACTIVITIES;
            assert_eq!(told.is_some(), expected && !topic.is_empty(), "{topic}");
            kinds.extend(told.filter(|_| topic == ACTIVITIES).map(|(kind, _)| kind));
        }
        let expected = [
            "cheer",
            "follow",
            "hype_train",
            "merch",
            "raid",
            "redemption",
            "subscription",
            "superchat",
            "tip",
        ];
        assert_eq!(kinds.into_iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn what_is_told_twice_happens_once() {
        let tip: Value = serde_json::from_str(
            r#"{"donation":{"user":{"username":"Styler","geo":"ZZ","email":"a@b.c"},"message":"",
            "amount":4.2,"currency":"USD"},"_id":"67b5","approved":"allowed","provider":"paypal",
            "createdAt":"2025-02-19T15:07:09.302Z","transactionId":"2YH"}"#,
        )
        .unwrap();
        assert_eq!(told("channel.tips", &tip, true), None);
        let (kind, told_of) = told("channel.tips", &tip, false).unwrap();
        let expected = json!({
            "event_type": "tip", "name": "Styler", "message": "", "amount": 4.2, "currency": "USD",
            "provider": "paypal", "occurred_at": "2025-02-19T15:07:09.302Z", "age": 1.5,
            "id": "67b5", "backfilled": false,
        });
        assert_eq!((kind, told_of), ("tip", expected));
        let mut pending = tip;
        pending["approved"] = "pending".into();
        assert_eq!(told("channel.tips", &pending, false), None);
        let redeemed = json!({"_id": "r", "redeemer": {"username": "Ann"},
                              "item": {"name": "Foghorn", "cost": 900}});
        let (kind, told_of) = told("channel.loyalty.redemptions", &redeemed, false).unwrap();
        assert_eq!(
            (kind, &told_of["item"], &told_of["amount"]),
            ("redemption", &json!("Foghorn"), &json!(900))
        );
        for topic in ["channel.tips.moderation", "channel.chat.message", "relay.gap"] {
            assert_eq!(told(topic, &activity("tip", &json!({})), false), None, "{topic}");
        }
    }

    #[test]
    fn every_event_type_is_announced_by_its_kind() {
        for word in [
            "event",
            "follow",
            "tip",
            "communityGiftPurchase",
            "channelPointsRedemption",
            "sponsor",
            "superchat",
            "host",
            "raid",
            "subscriber",
            "cheer",
            "cheerPurchase",
            "charityCampaignDonation",
            "redemption",
            "merch",
            "fan",
            "supporter",
            "follower",
            "stars",
            "share",
            "videolike",
            "elixir",
            "purchase",
            "hypetrainStart",
            "hypetrainProgress",
            "hypetrainEnd",
            "giveaway",
            "sponsorship",
            "sponsorshipPassive",
        ] {
            for gifted in [false, true] {
                let (name, event_type) = of_activity(word, gifted);
                let kind = KINDS.iter().find(|kind| kind.name == name).unwrap();
                assert!(kind.types.contains(&event_type), "{word}");
            }
        }
    }

    #[test]
    fn what_nobody_did_is_a_test() {
        let tip = json!({"username": "ann", "amount": 500});
        for (key, value, test) in [
            ("isMock", json!(true), true),
            ("isMock", json!("true"), true),
            ("isMock", json!(1), true),
            ("isTest", json!(true), true),
            ("isMock", json!(false), false),
            ("isMock", json!("false"), false),
            ("isMock", json!(null), false),
        ] {
            let mut outside = activity("tip", &tip);
            outside[key] = value.clone();
            let mut inside = tip.clone();
            inside[key] = value.clone();
            for data in [outside, activity("tip", &inside)] {
                let (_, told_of) = told(ACTIVITIES, &data, true).unwrap();
                assert_eq!(told_of.get("test").is_some(), test, "{key} {value}");
            }
        }
        let tip = json!({"donation": {"amount": 5}, "isMock": true});
        let (_, told_of) = told("channel.tips", &tip, false).unwrap();
        assert_eq!(told_of["test"], true);
    }

    #[test]
    fn the_gifts_of_one_bomb_belong_together() {
        let mut bomb = activity("communityGiftPurchase", &json!({"amount": "20"}));
        let mut gift = activity("subscriber", &json!({"gifted": true, "sender": "B", "count": 20}));
        for data in [&mut bomb, &mut gift] {
            data["activityGroup"] = "g1".into();
            data["flagged"] = true.into();
            let (_, told_of) = told(ACTIVITIES, data, true).unwrap();
            assert_eq!(told_of["group"], "g1");
            assert_eq!((&told_of["quantity"], &told_of["flagged"]), (&json!(20), &json!(true)));
        }
        let (_, told_of) = told(ACTIVITIES, &activity("tip", &json!({})), true).unwrap();
        assert!(told_of.get("group").is_none() && told_of.get("flagged").is_none(), "{told_of}");
    }

    #[test]
    fn an_amount_that_is_text_is_a_number() {
        for (text, expected) in [
            ("5", json!(5)),
            (" 5.50 ", json!(5.5)),
            ("5,50", json!(5.5)),
            ("1,234.50", json!(1234.5)),
            ("1.234,50", json!(1234.5)),
            ("1,000", json!(1000)),
            ("1,000,000", json!(1_000_000)),
            ("1 000", json!(1000)),
            ("$5.00", json!(5.0)),
            ("5.00 EUR", json!(5.0)),
            ("€ 5", json!(5)),
            ("+7", json!(7)),
            ("-7", json!(-7)),
            ("007", json!(7)),
            (".5", json!(0.5)),
            ("5.", json!(5)),
            ("1e3", json!(1000.0)),
        ] {
            assert_eq!(number(Some(&text.into())), Some(expected), "{text}");
        }
        for text in ["", "much", "5 or 6", "1-2", "--5", "0x10", "1.2.3", "NaN", "∞", ",", "."] {
            assert_eq!(number(Some(&text.into())), None, "{text}");
        }
    }

    #[test]
    fn a_paid_activity_that_is_new_is_told_with_its_amount() {
        let data = activity("megakicks", &json!({"username": "ann", "amount": "50"}));
        let (kind, told_of) = told(ACTIVITIES, &data, true).unwrap();
        assert_eq!((kind, &told_of["activity"]), ("other", &json!("megakicks")));
        assert_eq!((&told_of["amount"], &told_of["name"]), (&json!(50), &json!("ann")));
        let (kind, told_of) = told(ACTIVITIES, &activity("kicks", &json!({})), true).unwrap();
        assert_eq!((kind, &told_of["event_type"]), ("cheer", &json!("kicks")));
    }

    #[test]
    fn what_makes_no_sense_is_no_happening() {
        for data in [json!(null), json!([]), json!({}), json!({"type": 5}), json!("tip")] {
            assert_eq!(told(ACTIVITIES, &data, true), None, "{data}");
        }
        // Little is needed: it happened all the same.
        let (kind, told_of) = told(ACTIVITIES, &json!({"type": "tip"}), true).unwrap();
        assert_eq!((kind, &told_of["name"]), ("tip", &json!("")));
        assert_eq!(told_of["occurred_at"], "2024-02-15T14:52:42Z");
    }

    #[test]
    fn the_history_and_a_test_are_marked() {
        let data = activity("tip", &json!({"username": "ann", "amount": 5, "tier": "3000"}));
        for (origin, backfilled, test, replayed) in [
            (Origin::Backfilled, true, false, false),
            (Origin::Test, false, true, false),
            (Origin::Replayed, false, false, true),
        ] {
            let event = Event { origin, ..heard(ACTIVITIES, &data) };
            let told = Happening::of(&event, event.data(), true, 0).unwrap();
            assert_eq!((told.backfilled, told.test, told.replayed), (backfilled, test, replayed));
            assert_eq!((&*told.name, told.tier), ("ann", None));
        }
    }
}
