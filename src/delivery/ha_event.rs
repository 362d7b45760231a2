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
use serde_json::Value;

pub use self::kinds::{KINDS, Kind};
use self::kinds::{PAID, of_activity};
pub use crate::astro::activity::ACTIVITIES;
use crate::{
    astro::{
        activity::{ActivityInfo, is_mock, is_true, text},
        summary::Summary,
    },
    base::{
        clock,
        event::{Event, Origin},
        json,
        template::Template,
        text::{cut, harmless},
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

    /// The topic and the payload for each entity that an event is for. `data` is what the sink may see of
    /// its data. `activities`: whether the sink wants activities of the event's channel.
    pub fn render(
        &self,
        event: &Event,
        data: &[u8],
        activities: impl Fn() -> bool,
        age_ms: u64,
    ) -> Vec<(String, String)> {
        let channel = &*event.place.channel;
        let Some(base) = self.bases.get(channel) else { return Vec::new() };
        let activities = self.activities.contains(channel) && activities();
        let rendered = HaEvent::of(event, data, activities, age_ms);
        let address = |one: HaEvent| {
            let payload = serde_json::to_string(&one).ok()?;
            Some((topic(base, &one.kind), payload))
        };
        rendered.into_iter().filter_map(address).collect()
    }
}

/// What an automation sees of an event as attributes.
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
#[expect(clippy::struct_excessive_bools, reason = "they are attributes, each of its own")]
struct HaEvent {
    #[serde(skip)]
    kind: Cow<'static, str>,
    event_type: Cow<'static, str>,
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
    /// The activity's own word, where the kind does not tell it.
    #[serde(skip_serializing_if = "Option::is_none")]
    activity: Option<String>,
    /// What was given, where that is neither money nor told by the kind: `bits`, `KICKs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    unit: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    provider: Option<String>,
    /// All of it in one line, as `tail` and the page show it.
    summary: String,
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

impl HaEvent {
    /// From the data of an event as the sink may see it: in its own kind, and among what was paid. None:
    /// there is no entity for it, or another topic brings the same. `activities`: whether the channel's
    /// activities reach the sink.
    fn of(event: &Event, data: &[u8], activities: bool, age_ms: u64) -> Vec<Self> {
        // Most of what passes is chat: it is not parsed.
        let (topic, of_its_own) = (&*event.place.topic, !activities);
        if topic != ACTIVITIES && !(of_its_own && KINDS.iter().any(|kind| kind.topic == topic)) {
            return Vec::new();
        }
        let Some(data) = json::value(data) else { return Vec::new() };
        let Some(info) = ActivityInfo::of(topic, &data) else { return Vec::new() };
        let text = |key: &str| text(data.get(key));
        let at = text("createdAt").filter(|at| clock::parse_rfc3339(at).is_some());
        let ts = || Some(event.ts.to_string()).filter(|ts| clock::parse_rfc3339(ts).is_some());
        let age = u32::try_from(age_ms / 100).unwrap_or(u32::MAX);
        let rendered = of_its_kind(&info);
        let summary = Summary::of_value(topic, &data, event.origin).sentence();
        let own = Self {
            summary: cut(&harmless(&summary), LONGEST_STATE),
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
        };
        let paid = among_paid(&info, &own);
        std::iter::once(own).chain(paid).collect()
    }
}

impl From<ActivityInfo> for HaEvent {
    /// What every kind has. Kind and event type are for the caller.
    fn from(info: ActivityInfo) -> Self {
        Self {
            name: info.user.unwrap_or_default(),
            amount: info.amount,
            currency: info.currency,
            message: info.message.unwrap_or_default(),
            item: info.item,
            sender: info.sender,
            tier: info.tier,
            level: info.level,
            quantity: info.quantity,
            ..Self::default()
        }
    }
}

/// An activity in its own kind.
fn of_its_kind(info: &ActivityInfo) -> HaEvent {
    let (kind, event_type): (Cow<'_, str>, Cow<'_, str>) = if let Some(word) = own_kind(info) {
        (word.clone().into(), word.into())
    } else {
        let (kind, event_type) = of_activity(&info.kind, info.gifted);
        (kind.into(), event_type.into())
    };
    let mut rendered = HaEvent {
        gifted: event_type == "gift",
        activity: (kind == "other").then(|| info.kind.clone()),
        kind,
        event_type,
        ..HaEvent::from(info.clone())
    };
    // The vendor's `amount` is whatever there is to count.
    match (&*rendered.kind, &*rendered.event_type) {
        ("subscription", "community_gift") => {
            rendered.quantity = rendered.amount.take().or_else(|| rendered.quantity.take());
        }
        ("subscription", _) => rendered.months = rendered.amount.take(),
        _ => {}
    }
    if !matches!(&*rendered.kind, "subscription" | "other") {
        // The vendor's history names a tier with everything; it means something for these.
        rendered.tier = None;
    }
    rendered
}

/// The kind of a payment that the vendor's documents do not name: its own word, where that can be one. The
/// entity is announced when the first has come.
fn own_kind(info: &ActivityInfo) -> Option<String> {
    (!info.is_known() && info.is_paid() && is_own_kind(&info.kind)).then(|| info.kind.clone())
}

/// Whether a word of the vendor's can be a kind of its own.
pub fn is_own_kind(word: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let is_word = (1..=LONGEST_KIND).contains(&word.len()) && word.bytes().all(plain);
    is_word && !KINDS.iter().any(|kind| kind.name == word)
}

/// Characters that a state of Home Assistant's may have.
const LONGEST_STATE: usize = 255;

/// Characters that a kind of the vendor's may have to be a kind of its own here.
const LONGEST_KIND: usize = 40;

/// The same among all that was paid, with the vendor's own word for its kind and the name of what was
/// given; `None`: nothing was.
fn among_paid(info: &ActivityInfo, own: &HaEvent) -> Option<HaEvent> {
    if !info.is_paid() {
        return None;
    }
    let types = KINDS.iter().find(|kind| kind.name == PAID)?.types;
    let is_known = types.contains(&&*own.event_type);
    let event_type = if is_known { own.event_type.clone() } else { "other".into() };
    Some(HaEvent {
        kind: PAID.into(),
        event_type,
        activity: Some(info.kind.clone()),
        unit: info.unit(),
        ..own.clone()
    })
}

#[cfg(test)]
mod tests;
