//! Which events a sink wants, and how they are rendered for it.
//!
//! A [`Route`] is compiled once from a sink's configuration: topic patterns, channels, condition, age,
//! redaction, address and payload. It does no I/O.
//!
//! With `payload = "message"` and nothing to redact, the payload *is* the bytes that came from the
//! gateway; nothing is copied, parsed or written again.

mod pattern;
mod redact;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use foldhash::fast::FixedState;
use minijinja::Value;

pub use self::pattern::{Pattern, PatternError};
pub(crate) use self::redact::Redactor;
use crate::{
    base::{
        clock,
        event::{Event, Origin, Place, Record},
        template::{Condition, Redacted, Template, View},
    },
    config::{ConfigError, PERSONAL_FIELDS, SinkConfig},
    delivery::ha_event::{ACTIVITIES, HaEvents},
    sink::{Address, Kind, Outgoing, TimeLeft},
};

/// Places (channel, topic, room) whose decision and address are remembered.
const REMEMBERED: usize = 4096;

/// Media types of payloads.
const JSON: &str = "application/json";
const CLOUD_EVENT: &str = "application/cloudevents+json";
const TEXT: &str = "text/plain; charset=utf-8";

/// What one sink wants, and how.
#[derive(Debug)]
pub struct Route {
    topics: Option<Vec<Pattern>>,
    channels: Option<HashSet<String>>,
    when: Option<Condition>,
    max_age: Option<Duration>,
    redactor: Redactor,
    payload: Payload,
    address: Option<Addressing>,
    /// For Home Assistant: what it gets behind the event.
    ha_events: Option<HaEvents>,
    places: HashMap<Arc<Place>, Decision, FixedState>,
    /// The decision on the last event: mostly it is that on the next.
    last: Option<(Arc<Place>, Decision)>,
    /// The latest failure of the condition.
    condition_error: Option<String>,
}

/// What is remembered of a place.
#[derive(Debug, Clone)]
struct Decision {
    wanted: bool,
    /// The address, where it depends on the place alone.
    address: Option<Arc<str>>,
}

#[derive(Debug)]
struct Addressing {
    template: Template,
    separator: char,
    escape: fn(&str) -> std::borrow::Cow<'_, str>,
    constant: bool,
}

#[derive(Debug)]
enum Payload {
    Message,
    Data,
    CloudEvent,
    Template(Box<Template>),
}

/// What became of an event.
#[derive(Debug)]
pub enum Rendered {
    /// It goes out like this, and behind it what Home Assistant gets of it.
    Wanted(Outgoing, Vec<Outgoing>),
    /// It does not go out, for this reason.
    Skipped(Skip),
    /// It should go out, and cannot be rendered.
    Failed(String),
}

/// Where events of a place (channel, topic and room) go, before there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// They are not wanted.
    Nowhere,
    /// To this address; it is empty where a kind has none.
    At(Arc<str>),
    /// It depends on each event's data.
    ByData,
}

/// Why an event does not go out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Skip {
    /// Its topic or channel is not wanted.
    Place,
    /// The condition is not true of it.
    Condition,
    /// The condition could not be evaluated on it.
    ConditionError,
    /// It is too old.
    Age,
}

/// Every reason, in order: `skip as usize` is its place here.
pub const SKIPS: [Skip; 4] = [Skip::Place, Skip::Condition, Skip::ConditionError, Skip::Age];

impl Skip {
    /// The word in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Place => "place",
            Self::Condition => "condition",
            Self::ConditionError => "condition_error",
            Self::Age => "age",
        }
    }
}

impl Route {
    /// Compiles the route of the sink `name`.
    pub fn new(name: &str, config: &SinkConfig, kind: &Kind) -> Result<Self, ConfigError> {
        let at = |key: &str, message: String| ConfigError::at(&["sinks", name, key], message);
        let topics = config
            .topics
            .as_ref()
            .map(|topics| topics.iter().map(|text| Pattern::parse(text)).collect())
            .transpose()
            .map_err(|error: PatternError| at("topics", error.to_string()))?;
        let when = config.when.as_deref().map(Condition::compile).transpose();
        let redact = match &config.redact {
            Some(paths) => paths.clone(),
            None => PERSONAL_FIELDS.iter().map(|&path| path.to_owned()).collect(),
        };
        let payload = match config.payload.as_str() {
            "message" => Payload::Message,
            "data" => Payload::Data,
            "cloudevent" => Payload::CloudEvent,
            template => Payload::Template(Box::new(
                Template::compile(template).map_err(|e| at("payload", e))?,
            )),
        };
        let ha_events =
            kind.address.and_then(|address| HaEvents::of(config, address.escape).transpose());
        Ok(Self {
            ha_events: ha_events.transpose().map_err(|error| at("state_topic", error))?,
            topics,
            channels: config.channels.as_ref().map(|names| names.iter().cloned().collect()),
            when: when.map_err(|error| at("when", error))?,
            max_age: config.max_age.map(|age| age.0),
            redactor: Redactor::new(&redact).map_err(|error| at("redact", error))?,
            payload,
            address: kind.address.map(|address| addressing(name, config, &address)).transpose()?,
            places: HashMap::default(),
            last: None,
            condition_error: None,
        })
    }

    /// Decides on an event, and renders it.
    pub fn render(&mut self, record: &Arc<Record>) -> Rendered {
        self.render_within(self.max_age, record)
    }

    /// The same of an event that somebody asks for: it is never too old, and does not expire.
    pub fn render_of_any_age(&mut self, record: &Arc<Record>) -> Rendered {
        self.render_within(None, record)
    }

    fn render_within(&mut self, max_age: Option<Duration>, record: &Arc<Record>) -> Rendered {
        let event = &record.event;
        let Decision { wanted, address } = self.decide(event);
        if !wanted {
            return Rendered::Skipped(Skip::Place);
        }
        let expires_in = match max_age {
            None => None,
            Some(max_age) => match max_age.checked_sub(age(record)) {
                None => return Rendered::Skipped(Skip::Age),
                Some(left) => Some(TimeLeft::from_now(left)),
            },
        };
        if let Some(when) = &self.when {
            match when.holds(&View::of(Arc::clone(record))) {
                Ok(true) => {}
                Ok(false) => return Rendered::Skipped(Skip::Condition),
                Err(error) => {
                    self.condition_error = Some(format!("on {}: {error}", event.place.topic));
                    return Rendered::Skipped(Skip::ConditionError);
                }
            }
        }
        let redacted = match self.redactor.apply(event) {
            Ok(redacted) => redacted,
            Err(error) => return Rendered::Failed(format!("cannot be redacted: {error}")),
        };
        match self.compose(record, redacted.as_ref(), address) {
            Ok((address, payload, content_type)) => {
                let record = Arc::clone(record);
                let event =
                    Outgoing { record, part: 0, address, payload, content_type, expires_in };
                let ha_events = self.ha_events(&event, redacted.as_ref());
                Rendered::Wanted(event, ha_events)
            }
            Err(error) => Rendered::Failed(format!("cannot be rendered: {error}")),
        }
    }

    /// The latest failure of the condition since this was called: its topic, and what was wrong.
    pub fn take_condition_error(&mut self) -> Option<String> {
        self.condition_error.take()
    }

    /// Where events of this one's place go.
    pub fn destination(&mut self, event: &Event) -> Destination {
        match self.decide(event) {
            Decision { wanted: false, .. } => Destination::Nowhere,
            Decision { address: Some(address), .. } => Destination::At(address),
            Decision { .. } if self.address.is_none() => Destination::At("".into()),
            Decision { .. } => Destination::ByData,
        }
    }

    /// What Home Assistant gets of an event: what happened, flat.
    fn ha_events(&self, of: &Outgoing, redacted: Option<&Redacted>) -> Vec<Outgoing> {
        let Some(ha_events) = &self.ha_events else { return Vec::new() };
        let event = &of.record.event;
        let data = redacted.map_or(event.data(), |redacted| &redacted.data);
        // The topic of its own counts where the activity does not reach this sink.
        let activities = || self.wants(ACTIVITIES, &event.place.channel);
        let age = clock::millis_of(age(&of.record));
        let rendered = ha_events.render(event, data, activities, age);
        let outgoing = |(part, (address, payload)): (u8, (String, String))| Outgoing {
            part,
            address: address.into(),
            payload: payload.into(),
            content_type: "application/json",
            ..of.clone()
        };
        (1..).zip(rendered).map(outgoing).collect()
    }

    fn compose(
        &self,
        record: &Arc<Record>,
        redacted: Option<&Redacted>,
        address: Option<Arc<str>>,
    ) -> Result<(Arc<str>, Bytes, &'static str), minijinja::Error> {
        let event = &record.event;
        let mut view: Option<Value> = None;
        let mut view = || {
            view.get_or_insert_with(|| View::redacted(Arc::clone(record), redacted.cloned()))
                .clone()
        };
        let address = match (address, &self.address) {
            (Some(address), _) => address,
            (None, Some(addressing)) => addressing.render(&view())?,
            (None, None) => "".into(),
        };
        let data = || match redacted {
            Some(redacted) => redacted.data.clone(),
            None if event.data.is_empty() => Bytes::from_static(b"null"),
            None => event.message.slice(event.data.clone()),
        };
        let (payload, content_type) = match &self.payload {
            Payload::Message => {
                let message = redacted.map_or(&event.message, |redacted| &redacted.message);
                (message.clone(), JSON)
            }
            Payload::Data => (data(), JSON),
            Payload::CloudEvent => (cloud_event(event, &data()), CLOUD_EVENT),
            Payload::Template(template) => {
                let made = template.payload(&view())?;
                (Bytes::from(made.text), if made.json { JSON } else { TEXT })
            }
        };
        Ok((address, payload, content_type))
    }

    /// What is to become of the events of this one's place.
    fn decide(&mut self, event: &Event) -> Decision {
        let place = &event.place;
        if let Some((last, decision)) = &self.last
            && Arc::ptr_eq(last, place)
        {
            return decision.clone();
        }
        let decision = match self.places.get(place) {
            Some(known) => known.clone(),
            None => self.decide_anew(event),
        };
        self.last = Some((Arc::clone(place), decision.clone()));
        decision
    }

    fn decide_anew(&mut self, event: &Event) -> Decision {
        let place = &event.place;
        let wanted = self.wants(&place.topic, &place.channel);
        let address = match &self.address {
            Some(addressing) if addressing.constant && wanted => {
                let record = Arc::new(Record::new(0, event.clone()));
                // An error shows again when the event itself is rendered.
                addressing.render(&View::of(record)).ok()
            }
            Some(_) | None => None,
        };
        let decision = Decision { wanted, address };
        if self.places.len() < REMEMBERED {
            self.places.insert(Arc::clone(place), decision.clone());
        }
        decision
    }

    fn wants(&self, topic: &str, channel: &str) -> bool {
        let topic_wanted = match &self.topics {
            Some(patterns) => patterns.iter().any(|pattern| pattern.matches(topic)),
            // All of Astro's topics, and of the relay's own the one that reports losses.
            None => topic == "relay.gap" || !topic.starts_with("relay."),
        };
        let channel_wanted = match &self.channels {
            // What the relay says of itself belongs to no channel, and to everybody.
            Some(channels) => {
                channels.contains(channel) || (channel.is_empty() && topic.starts_with("relay."))
            }
            None => true,
        };
        topic_wanted && channel_wanted
    }
}

fn addressing(
    name: &str,
    config: &SinkConfig,
    address: &Address,
) -> Result<Addressing, ConfigError> {
    let key = (address.key)(&config.settings);
    let configured = config.settings.get(key).and_then(serde_json::Value::as_str);
    let text = configured.unwrap_or_else(|| (address.default)(&config.settings));
    let template =
        Template::compile(text).map_err(|error| ConfigError::at(&["sinks", name, key], error))?;
    let constant = template.uses_only(&["channel", "topic", "room"]);
    let Address { separator, escape, .. } = *address;
    Ok(Addressing { template, separator, escape, constant })
}

impl Addressing {
    fn render(&self, view: &Value) -> Result<Arc<str>, minijinja::Error> {
        Ok(self.template.address(view, self.separator, self.escape)?.into())
    }
}

/// How old an event is. What came live is as old as the relay has had it, by a clock that does not step;
/// what was fetched or is handed on again was as old as it says when the relay got it.
fn age(record: &Record) -> Duration {
    let event = &record.event;
    let before = match event.origin {
        Origin::Live | Origin::Test => 0,
        Origin::Backfilled | Origin::Replayed => clock::parse_rfc3339(&event.ts)
            .map_or(0, |happened| event.received.saturating_sub(happened)),
    };
    Duration::from_millis(before).saturating_add(record.age())
}

/// CloudEvents 1.0, structured mode. `source` and `id` together are unique, as the specification asks.
fn cloud_event(event: &Event, data: &[u8]) -> Bytes {
    let attributes = serde_json::json!({
        "specversion": "1.0",
        "id": event.key(),
        "source": format!("//astro.streamelements.com/{}", event.place.channel),
        "type": format!("com.streamelements.{}", event.place.topic),
        "datacontenttype": JSON,
    });
    let mut text = attributes.to_string().into_bytes();
    text.pop();
    let mut optional = |name: &str, value: &str| {
        if !value.is_empty() {
            text.extend_from_slice(format!(",\"{name}\":").as_bytes());
            text.extend_from_slice(serde_json::Value::from(value).to_string().as_bytes());
        }
    };
    // `time` must be a timestamp; Astro's is one, anybody else's may not be.
    optional("time", if clock::parse_rfc3339(&event.ts).is_some() { &event.ts } else { "" });
    optional("subject", &event.place.room);
    if event.origin != Origin::Live {
        optional("relayorigin", event.origin.as_str());
    }
    text.extend_from_slice(b",\"data\":");
    text.extend_from_slice(data);
    text.push(b'}');
    text.into()
}

#[cfg(test)]
mod tests;
