//! Events as Home Assistant's event entities want them: flat, under a topic of their own.
//!
//! One thing that happens comes from Astro on several topics: a tip is an activity, and a message on
//! `channel.tips`. Activities have them all and are what a backfill brings back, so where a channel
//! has them they alone count; where it has not, the topics of their own do.
//!
//! Only fields that are named here leave. Whatever else the message says (the donor's address, the avatar)
//! stays out of Home Assistant's database, whatever `redact` says.

mod kinds;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use serde::Serialize;
use serde_json::{Map, Value};

use self::kinds::of_activity;
pub use self::kinds::{ACTIVITIES, KINDS, Kind};
use crate::{
    base::{
        clock,
        event::{Event, Origin},
        json,
        template::Template,
    },
    channel::store::RELAY,
    config::SinkConfig,
};

/// What the topics of the state begin with unless the sink says otherwise.
const DEFAULT_BASE: &str = "astro/{{ channel }}";

/// Whether a sink serves Home Assistant; `None`: its configuration does not say.
pub fn is_wanted(config: &SinkConfig) -> Option<bool> {
    config.settings.get("homeassistant").and_then(Value::as_bool)
}

/// What the topics of the relay and of each channel begin with, as the sink is configured. `escape` makes
/// them legal.
pub fn bases(
    config: &SinkConfig,
    escape: fn(&str) -> Cow<'_, str>,
) -> Result<(String, BTreeMap<String, String>), String> {
    let text = config.settings.get("state_topic").and_then(Value::as_str).unwrap_or(DEFAULT_BASE);
    let template = Template::compile(text)?;
    let base = |owner: &str| {
        let view = minijinja::context! { channel => owner };
        let base = template.render(&view).map_err(|error| error.to_string())?;
        Ok::<_, String>(escape(&base).into_owned())
    };
    let channels = config.feeds.keys().map(|label| Ok((label.clone(), base(label)?)));
    Ok((base(RELAY)?, channels.collect::<Result<_, String>>()?))
}

/// Where events of a kind go.
pub fn topic(base: &str, kind: &str) -> String {
    format!("{base}/event/{kind}")
}

/// Renders the events of one sink.
#[derive(Debug)]
pub struct HaEvents {
    bases: BTreeMap<String, String>,
    /// The channels that subscribe to activities.
    activities: BTreeSet<String>,
}

impl HaEvents {
    /// `None`: the sink does not serve Home Assistant.
    pub fn of(
        config: &SinkConfig,
        escape: fn(&str) -> Cow<'_, str>,
    ) -> Result<Option<Self>, String> {
        if is_wanted(config) != Some(true) {
            return Ok(None);
        }
        let (_, bases) = bases(config, escape)?;
        let subscribed = config
            .feeds
            .iter()
            .filter(|(_, described)| described.topics.iter().any(|topic| topic == ACTIVITIES));
        let activities = subscribed.map(|(label, _)| label.clone()).collect();
        Ok(Some(Self { bases, activities }))
    }

    /// The topic and the payload of an event, if there is an entity for it. `data` is what the sink may see
    /// of its data. `activities`: whether the sink wants activities of the event's channel.
    pub fn render(
        &self,
        event: &Event,
        data: &[u8],
        activities: impl Fn() -> bool,
        age_ms: u64,
    ) -> Option<(String, String)> {
        let channel = &*event.place.channel;
        let base = self.bases.get(channel)?;
        let activities = self.activities.contains(channel) && activities();
        let rendered = HaEvent::of(event, data, activities, age_ms)?;
        let payload = serde_json::to_string(&rendered).ok()?;
        Some((topic(base, rendered.kind), payload))
    }
}

/// What an automation sees of an event as attributes.
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
#[expect(clippy::struct_excessive_bools, reason = "they are attributes, each of its own")]
struct HaEvent {
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
    /// Somebody gave it to the one who is named.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    gifted: bool,
    /// It is one gift of several that came together: their purchase is an event of its own.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    bundled: bool,
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

impl HaEvent {
    /// From the data of an event as the sink may see it; `None`: there is no entity for it, or another topic
    /// brings the same. `activities`: whether the channel's activities reach the sink.
    fn of(event: &Event, data: &[u8], activities: bool, age_ms: u64) -> Option<Self> {
        // Most of what passes is chat: it is not parsed.
        let (topic, of_its_own) = (&*event.place.topic, !activities);
        if topic != ACTIVITIES && !(of_its_own && KINDS.iter().any(|kind| kind.topic == topic)) {
            return None;
        }
        let data = json::value(data)?;
        let rendered = match topic {
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
            bundled: rendered.gifted && text("activityGroup").is_some(),
            group: text("activityGroup"),
            flagged: data.get("flagged").is_some_and(is_true),
            test: event.origin == Origin::Test || is_mock(&data),
            replayed: event.origin == Origin::Replayed,
            ..rendered
        })
    }
}

/// An activity, heard or from the history: both have this form.
fn activity(data: &Value) -> Option<HaEvent> {
    let word = data.get("type").and_then(Value::as_str)?;
    let nothing = Map::new();
    let about = data.get("data").and_then(Value::as_object).unwrap_or(&nothing);
    let get = |key: &str| text(about.get(key));
    let sender = get("sender");
    let gifted = sender.is_some() || about.get("gifted").is_some_and(is_true);
    let count = ["quantity", "count", "bulkCount"].iter().find_map(|key| number(about.get(*key)));
    let (kind, event_type) = of_activity(word, gifted);
    let amount = number(about.get("amount"));
    let mut rendered = HaEvent {
        kind,
        event_type,
        name: get("displayName").or_else(|| get("username")).unwrap_or_default(),
        currency: get("currency"),
        message: get("message").unwrap_or_default(),
        tier: get("tier"),
        sender,
        gifted: event_type == "gift",
        item: get("redemption"),
        level: number(about.get("level")),
        quantity: count,
        activity: (kind == "other").then(|| word.to_owned()),
        ..HaEvent::default()
    };
    // The vendor's `amount` is whatever there is to count.
    match (kind, event_type) {
        ("subscription", "community_gift") => {
            rendered.quantity = amount.or_else(|| rendered.quantity.take());
        }
        ("subscription", _) => rendered.months = amount,
        ("merch", _) => {
            rendered.amount = amount;
            if let Some(items) = about.get("items").and_then(Value::as_array) {
                rendered.quantity = Some(quantity(items));
            }
        }
        _ => rendered.amount = amount,
    }
    if !matches!(kind, "subscription" | "other") {
        // The vendor's history names a tier with everything; it means something for these.
        rendered.tier = None;
    }
    Some(rendered)
}

/// A message of `channel.tips`. One that waits for a moderator has not happened yet.
fn tip(data: &Value) -> Option<HaEvent> {
    if text(data.get("approved")).is_some_and(|word| word != "allowed") {
        return None;
    }
    let donation = data.get("donation")?;
    Some(HaEvent {
        kind: "tip",
        event_type: "tip",
        name: text(donation.pointer("/user/username")).unwrap_or_default(),
        amount: number(donation.get("amount")),
        currency: text(donation.get("currency")),
        message: text(donation.get("message")).unwrap_or_default(),
        ..HaEvent::default()
    })
}

fn follow(data: &Value) -> HaEvent {
    let names = ["displayName", "username", "name"];
    HaEvent {
        kind: "follow",
        event_type: "follow",
        name: names.iter().find_map(|key| text(data.get(key))).unwrap_or_default(),
        ..HaEvent::default()
    }
}

fn redemption(data: &Value) -> HaEvent {
    HaEvent {
        kind: "redemption",
        event_type: "store",
        name: text(data.pointer("/redeemer/username")).unwrap_or_default(),
        amount: number(data.pointer("/item/cost")),
        item: text(data.pointer("/item/name")),
        message: text(data.get("message")).unwrap_or_default(),
        ..HaEvent::default()
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
mod tests;
