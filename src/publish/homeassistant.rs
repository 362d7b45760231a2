//! What Home Assistant is told of the relay: MQTT discovery, and what happens as event entities.
//!
//! [`Home`] says which entities there are, as retained configurations under the discovery prefix; each
//! points at the topics where the state is kept anyway. [`Happening`] is what goes out beside an event,
//! for its event entity. Nothing here does I/O or knows a connection; an MQTT sink publishes it.
//!
//! Single-component discovery is used (one topic an entity), which every Home Assistant since 2023
//! understands; the device-based form came with 2024.12 and says nothing more.
//!
//! The one thing to know: an entity's `unique_id` is what the user's dashboards and automations hang
//! on. It is made of the channel's id (the room), its label and the name of what is shown; so two relays
//! whose channels have one label stay apart, and neither the sink's name nor its `client_id` is part of it.

mod element;
mod happening;

use std::{borrow::Cow, collections::BTreeMap, fmt::Write as _};

use serde_json::{Map, Value, json};

use crate::{
    base::{event::Event, template::Template},
    channel::board::RELAY as OWNER,
    command::parse,
    config::{Action, Channel, Commands, Described, SinkConfig},
};

pub use self::happening::{ACTIVITIES, Happening, KINDS, Kind};

/// The name of the relay's own device, and what the ids of all entities begin with.
const RELAY: &str = "astro-relay";

/// The prefix that Home Assistant listens under unless it is told otherwise.
pub const DEFAULT_PREFIX: &str = "homeassistant";

/// What the topics of the state begin with unless the sink says otherwise.
pub const DEFAULT_BASE: &str = "astro/{{ channel }}";

/// Home Assistant as one sink serves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    /// Whether there are entities; where there are none, those of earlier days are stale.
    pub on: bool,
    /// The discovery prefix.
    pub prefix: String,
    /// Our part of the discovery topics: who we are to the broker.
    pub node: String,
    /// The same of other sinks that announce these channels.
    pub others: Vec<String>,
    /// What the topics of the relay's own state begin with.
    pub relay: String,
    /// The channels that the sink selects, by label.
    pub channels: BTreeMap<String, Feed>,
    /// Commands that are taken.
    pub commands: Commands,
}

/// What there is of a channel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Feed {
    /// What the topics of its state and of what happens there begin with.
    pub base: String,
    /// Its id, where one is configured.
    pub room: Option<String>,
    /// The topics that it subscribes to.
    pub topics: Vec<String>,
}

/// Whose a configuration is that another client has announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// It is of an entity of ours.
    Ours,
    /// A relay announced it; of which, it does not say.
    SomeRelays,
}

/// A retained configuration of one entity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// The discovery topic.
    pub topic: String,
    /// The configuration, as JSON.
    pub payload: String,
}

/// Whether a sink serves Home Assistant; `None`: it says nothing of it.
pub fn wanted(config: &SinkConfig) -> Option<bool> {
    config.settings.get("homeassistant").and_then(Value::as_bool)
}

/// Tells a sink that serves Home Assistant what it needs to know of the channels.
pub fn prepare(config: &mut SinkConfig, channels: &BTreeMap<String, Channel>) {
    match wanted(config) {
        // Its entities show what is kept.
        Some(true) => config.state = true,
        // What is to be taken back is known by its channels.
        Some(false) => {}
        None => return,
    }
    let selected = config.channels.clone();
    let selects =
        |label: &String| selected.as_ref().is_none_or(|selected| selected.contains(label));
    config.feeds = channels
        .iter()
        .filter(|(label, _)| selects(label))
        .map(|(label, Channel { room, topics, .. })| {
            let (room, topics) = (room.clone(), topics.clone());
            (label.clone(), Described { room, topics, elsewhere: Vec::new() })
        })
        .collect();
}

/// Tells the sinks that serve Home Assistant of each other, so that none takes for its own of earlier days
/// what another announces.
pub fn introduce(sinks: &mut BTreeMap<String, SinkConfig>) {
    let all: Vec<(String, String)> = sinks
        .iter()
        .filter(|(_, sink)| wanted(sink) == Some(true))
        .map(|(name, sink)| (name.clone(), client_id(name, &sink.settings)))
        .collect();
    for (name, sink) in sinks.iter_mut() {
        let others = all.iter().filter(|(other, _)| other != name);
        let others: Vec<String> = others.map(|(_, client_id)| client_id.clone()).collect();
        for described in sink.feeds.values_mut() {
            described.elsewhere.clone_from(&others);
        }
    }
}

/// Who an MQTT sink is to its broker.
pub fn client_id(name: &str, settings: &Value) -> String {
    let configured = settings.get("client_id").and_then(Value::as_str);
    configured.map_or_else(|| format!("{RELAY}-{name}"), str::to_owned)
}

/// What each channel's topics begin with, as the sink is configured. `escape` makes them legal.
fn feeds(
    config: &SinkConfig,
    escape: fn(&str) -> Cow<'_, str>,
) -> Result<(String, BTreeMap<String, Feed>), String> {
    let text = config.settings.get("state_topic").and_then(Value::as_str).unwrap_or(DEFAULT_BASE);
    let template = Template::compile(text)?;
    let base = |owner: &str| {
        let view = minijinja::context! { channel => owner };
        let base = template.render(&view).map_err(|error| error.to_string())?;
        Ok::<_, String>(escape(&base).into_owned())
    };
    let feeds = config.feeds.iter().map(|(label, Described { room, topics, .. })| {
        let feed = Feed { base: base(label)?, room: room.clone(), topics: topics.clone() };
        Ok((label.clone(), feed))
    });
    Ok((base(OWNER)?, feeds.collect::<Result<_, String>>()?))
}

/// Where what happens goes.
#[derive(Debug)]
pub struct Topics(BTreeMap<String, Feed>);

impl Topics {
    /// Those of a sink; `None`: it does not serve Home Assistant.
    pub fn of(
        config: &SinkConfig,
        escape: fn(&str) -> Cow<'_, str>,
    ) -> Result<Option<Self>, String> {
        if wanted(config) != Some(true) {
            return Ok(None);
        }
        let (_, channels) = feeds(config, escape)?;
        Ok(Some(Self(channels)))
    }

    /// What an event tells, and where that goes; `data` is what the sink may see of its data.
    /// `activities`: whether the sink wants activities of the event's channel.
    pub fn told(
        &self,
        event: &Event,
        data: &[u8],
        activities: impl Fn() -> bool,
        age_ms: u64,
    ) -> Option<(String, String)> {
        let feed = self.0.get(&*event.place.channel)?;
        let activities = feed.topics.iter().any(|topic| topic == ACTIVITIES) && activities();
        let happening = Happening::of(event, data, activities, age_ms)?;
        let payload = serde_json::to_string(&happening).ok()?;
        Some((event_topic(&feed.base, happening.kind()), payload))
    }
}

/// Where a command for a channel goes.
fn command_topic(channel: &str, command: &str) -> String {
    format!("{}/{channel}/{}/{command}", parse::ROOT, parse::COMMAND)
}

/// Where happenings of a kind go.
fn event_topic(base: &str, kind: &str) -> String {
    format!("{base}/event/{kind}")
}

/// One or several words as one that may stand in a discovery topic: `[a-zA-Z0-9_-]`. Different words
/// never become the same: what is no small letter, digit or hyphen is written as `_` and its number,
/// and between two words stands `__`.
fn id(words: &[&str]) -> String {
    let mut id = String::new();
    for (place, word) in words.iter().enumerate() {
        if place > 0 {
            id.push_str("__");
        }
        for byte in word.bytes() {
            match byte {
                b'a'..=b'z' | b'0'..=b'9' | b'-' => id.push(char::from(byte)),
                // Writing to a string cannot fail.
                other => drop(write!(id, "_{other:02x}")),
            }
        }
    }
    id
}

/// An entity that is being described.
struct Entity<'a> {
    component: &'static str,
    /// Its channel, and what that one's topics begin with; `None`: it is the relay's own.
    channel: Option<(&'a str, &'a str)>,
    /// What is shown, a word of ours or the vendor's.
    object: Cow<'a, str>,
    name: String,
    icon: &'a str,
    availability: Availability,
    /// What its component wants beside that.
    own: Value,
}

/// When an entity can be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Availability {
    /// Always: it says itself how things stand.
    Always,
    /// While the relay runs.
    Relay,
    /// While the relay runs and hears the channel.
    Channel,
}

impl Home {
    /// As a sink is configured: `node` is its `client_id`. Where it says `homeassistant = false`, or
    /// nothing, there are no entities at all.
    pub fn of(
        config: &SinkConfig,
        node: &str,
        escape: fn(&str) -> Cow<'_, str>,
        commands: &Commands,
    ) -> Result<Self, String> {
        let (relay, channels) = feeds(config, escape)?;
        let prefix = config.settings.get("discovery_prefix").and_then(Value::as_str);
        Ok(Self {
            on: wanted(config) == Some(true),
            prefix: prefix.unwrap_or(DEFAULT_PREFIX).to_owned(),
            node: node.to_owned(),
            others: config
                .feeds
                .values()
                .next()
                .map(|described| described.elsewhere.iter().map(|other| id(&[other])).collect())
                .unwrap_or_default(),
            relay,
            channels,
            commands: commands.clone(),
        })
    }

    /// The filter that matches every configuration of ours, those of earlier days too.
    pub fn own_filter(&self) -> String {
        format!("{}/+/{}/+/config", self.prefix, id(&[&self.node]))
    }

    /// Whether a topic is matched by [`Home::own_filter`].
    pub fn owns(&self, topic: &str) -> bool {
        let rest = topic.strip_prefix(&self.prefix).and_then(|rest| rest.strip_prefix('/'));
        let parts: Vec<&str> = rest.unwrap_or_default().split('/').collect();
        matches!(parts.as_slice(), [_, node, _, "config"] if *node == id(&[&self.node]))
    }

    /// The filter that matches every configuration of everybody.
    pub fn every_filter(&self) -> String {
        format!("{}/+/+/+/config", self.prefix)
    }

    /// Whether it is known what is ours beside our own client id.
    pub fn has_identity(&self) -> bool {
        !self.channels.is_empty()
    }

    /// What the ids of a channel's entities begin with.
    fn of_room(&self, channel: &str) -> String {
        match self.channels.get(channel).and_then(|feed| feed.room.as_deref()) {
            Some(room) => format!("{RELAY}-{room}"),
            None => RELAY.to_owned(),
        }
    }

    /// What the ids of the relay's own entities begin with: of all rooms the first.
    fn own_identity(&self) -> String {
        match self.channels.values().filter_map(|feed| feed.room.as_deref()).min() {
            Some(room) => format!("{RELAY}-{room}"),
            None => RELAY.to_owned(),
        }
    }

    /// Whether a configuration that we have announced before has the `unique_id` that it would have today.
    pub fn is_of_today(&self, topic: &str, payload: &[u8]) -> bool {
        let place = topic.rsplit('/').nth(1).unwrap_or_default();
        let channel = self.channels.keys().find(|channel| {
            place.strip_prefix(&id(&[channel])).is_some_and(|rest| rest.starts_with("__"))
        });
        let begin = channel.map_or_else(|| self.own_identity(), |channel| self.of_room(channel));
        let known = serde_json::from_slice::<Value>(payload).ok();
        let unique = known.as_ref().and_then(|known| known.get("unique_id")?.as_str());
        unique == Some(&*format!("{}__{place}", id(&[&begin])))
    }

    /// Whether a configuration that another client has announced is a relay's, and whether ours: we had
    /// another client id then. Answers that client's part of the topic too.
    pub fn whose(&self, topic: &str, payload: &[u8]) -> Option<(String, Whose)> {
        let rest = topic.strip_prefix(&self.prefix)?.strip_prefix('/')?;
        let mut parts = rest.split('/');
        let (_, node, _, last) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        if last != "config" || parts.next().is_some() || self.others.iter().any(|o| o == node) {
            return None;
        }
        // Most are of other programs.
        if !payload.windows(RELAY.len()).any(|part| part == RELAY.as_bytes()) {
            return None;
        }
        let config: Value = serde_json::from_slice(payload).ok()?;
        if config.pointer("/origin/name").and_then(Value::as_str) != Some(RELAY) {
            return None;
        }
        let unique = config.get("unique_id").and_then(Value::as_str)?;
        let begins = |words: &[&str]| {
            unique.strip_prefix(&*id(words)).is_some_and(|rest| rest.starts_with("__"))
        };
        let own = self.own_identity();
        let mut ours = own != RELAY && begins(&[&own]);
        for (channel, feed) in &self.channels {
            let identity = self.of_room(channel);
            ours |= identity != RELAY && begins(&[&identity, channel]);
            // Of a version that knew no rooms, or of a channel that names none: it is ours if it is kept
            // where ours is.
            ours |= begins(&[RELAY, channel]) && shows(&config, &feed.base);
        }
        Some((node.to_owned(), if ours { Whose::Ours } else { Whose::SomeRelays }))
    }

    /// Where Home Assistant says that it has started.
    pub fn birth_topic(&self) -> String {
        format!("{}/status", self.prefix)
    }

    /// Whether the sink selects a channel.
    pub fn knows(&self, channel: &str) -> bool {
        self.channels.contains_key(channel)
    }

    /// Whether a configuration of ours that the broker keeps is to be cleared. Not where it is of an
    /// element that may yet come to be known: with the entity would go what its user has made of it.
    pub fn is_stale(&self, topic: &str, announced: impl FnOnce(&str) -> bool) -> bool {
        if !self.owns(topic) || announced(topic) {
            return false;
        }
        let mut parts = topic.rsplit('/').skip(1);
        let (place, component) = (parts.next().unwrap_or_default(), parts.nth(1));
        let known = self.channels.keys().any(|channel| {
            place.strip_prefix(&id(&[channel])).is_some_and(|rest| rest.starts_with("__"))
        });
        let awaited = match component {
            Some("sensor") => known,
            Some("number") => known && self.commands.allow(Action::Set),
            _ => false,
        };
        !(self.on && awaited)
    }

    /// The entities that are there whatever the state is.
    pub fn fixed(&self) -> Vec<Announcement> {
        if !self.on {
            return Vec::new();
        }
        let mut entities = relay(&self.relay);
        for (channel, feed) in &self.channels {
            let of = (&**channel, &*feed.base);
            entities.push(connection(of));
            if feed.topics.iter().any(|topic| topic == "channel.stream.status") {
                entities.push(live(of));
            }
            entities.extend(events(of, feed));
            entities.extend(self.buttons(of));
        }
        entities.iter().map(|entity| self.announce(entity)).collect()
    }

    /// The entities of a session's element, by its present value: none where nothing of it fits into
    /// a state (a list of recent followers). `topic` is where it is kept.
    pub fn element(
        &self,
        channel: &str,
        element: &str,
        topic: &str,
        value: &Value,
    ) -> Vec<Announcement> {
        let (Some(shown), Some(of)) = (element::shown(element, value), self.of_channel(channel))
        else {
            return Vec::new();
        };
        let entity = |component, object: &str, name: &str, own| {
            let (object, name) = (object.to_owned().into(), name.to_owned());
            let (channel, availability) = (Some(of), Availability::Channel);
            let icon = shown.icon;
            self.announce(&Entity { component, channel, object, name, icon, availability, own })
        };
        let mut own = shown.own.clone();
        set(&mut own, "state_topic", topic.into());
        if shown.attributes {
            set(&mut own, "json_attributes_topic", topic.into());
            let template = "{{ value_json | default({}) | tojson }}";
            set(&mut own, "json_attributes_template", template.into());
        }
        let mut all = vec![entity("sensor", element, &shown.name, own)];
        // A name that has to be written in another way in a topic is no goal of the vendor's.
        let plain = id(&[element]) == element;
        if shown.is_goal && plain && self.commands.allow(Action::Set) {
            let own = json!({
                "state_topic": topic,
                "value_template": field("amount"),
                "command_topic": command_topic(channel, &format!("session/set/{element}")),
                "min": 0, "max": element::MOST, "step": 0.01, "mode": "box",
                "entity_category": "config",
            });
            let object = format!("{element}/set");
            all.push(entity("number", &object, &format!("Set {}", shown.name), own));
        }
        all
    }

    /// The topics under which an element's entities would be announced: what is to be cleared when it
    /// is no more.
    pub fn element_topics(&self, channel: &str, element: &str) -> [String; 2] {
        let number = format!("{element}/set");
        [("sensor", element), ("number", &number)]
            .map(|(component, object)| self.topic(component, &id(&[channel, object])))
    }

    /// The entity of a counter of the bot's, kept under `topic`.
    pub fn counter(&self, channel: &str, counter: &str, topic: &str) -> Option<Announcement> {
        let of = self.of_channel(channel)?;
        Some(self.announce(&Entity {
            component: "sensor",
            channel: Some(of),
            object: counter_object(counter).into(),
            name: format!("Counter {counter}"),
            icon: "mdi:counter",
            availability: Availability::Channel,
            own: json!({ "state_topic": topic, "state_class": "measurement" }),
        }))
    }

    /// The topic under which a counter is announced.
    pub fn counter_topic(&self, channel: &str, counter: &str) -> String {
        self.topic("sensor", &id(&[channel, &counter_object(counter)]))
    }

    /// A channel that the sink selects, with its base.
    fn of_channel<'a>(&'a self, channel: &'a str) -> Option<(&'a str, &'a str)> {
        let feed = self.channels.get(channel)?;
        Some((channel, &feed.base))
    }

    fn topic(&self, component: &str, place: &str) -> String {
        format!("{}/{component}/{}/{place}/config", self.prefix, id(&[&self.node]))
    }

    fn buttons<'a>(&self, of: (&'a str, &'a str)) -> Vec<Entity<'a>> {
        [
            (Action::Reset, "reset", "Reset session", "mdi:restart-alert"),
            (Action::Reload, "reload", "Reload session", "mdi:reload"),
        ]
        .into_iter()
        .filter(|(action, ..)| self.commands.allow(*action))
        .map(|(action, object, name, icon)| Entity {
            component: "button",
            channel: Some(of),
            object: object.into(),
            name: name.into(),
            icon,
            availability: Availability::Channel,
            own: json!({
                "command_topic": command_topic(of.0, action.as_str()),
                "payload_press": "PRESS",
                "entity_category": "config",
            }),
        })
        .collect()
    }

    fn announce(&self, entity: &Entity<'_>) -> Announcement {
        let Entity { component, channel, object, name, icon, availability, own } = entity;
        let object: &str = object;
        let mut config = own.clone();
        let (unique, place) = match channel {
            Some((channel, _)) => {
                (id(&[&self.of_room(channel), channel, object]), id(&[channel, object]))
            }
            None => (id(&[&self.own_identity(), object]), id(&[object])),
        };
        for (key, value) in [
            ("name", (&**name).into()),
            ("unique_id", unique.into()),
            ("icon", (*icon).into()),
            ("device", self.device(channel.map(|(channel, _)| channel))),
            ("origin", origin()),
            ("qos", 1.into()),
        ] {
            set(&mut config, key, value);
        }
        let relay = json!({
            "topic": format!("{}/status", self.relay),
            "value_template": "{{ 'offline' if value_json.status == 'offline' else 'online' }}",
        });
        let list = match (availability, channel) {
            (Availability::Always, _) => Vec::new(),
            (Availability::Channel, Some((_, base))) => {
                vec![relay, json!({ "topic": format!("{base}/status") })]
            }
            (Availability::Relay | Availability::Channel, _) => vec![relay],
        };
        if !list.is_empty() {
            set(&mut config, "availability", list.into());
            set(&mut config, "availability_mode", "all".into());
        }
        Announcement { topic: self.topic(component, &place), payload: config.to_string() }
    }

    /// The device that an entity belongs to.
    fn device(&self, channel: Option<&str>) -> Value {
        let relay = id(&[&self.own_identity()]);
        match channel {
            Some(channel) => json!({
                "identifiers": [id(&[&self.of_room(channel), channel])],
                "name": format!("StreamElements {channel}"),
                "manufacturer": "StreamElements",
                "model": "Channel",
                "via_device": relay,
            }),
            None => json!({
                "identifiers": [relay],
                "name": "Astro relay",
                "manufacturer": "astro-relay",
                "model": "Relay",
                "sw_version": env!("CARGO_PKG_VERSION"),
            }),
        }
    }
}

fn counter_object(counter: &str) -> String {
    format!("counter/{counter}")
}

/// A template for one field of a state: unknown where it is not there. A state that is no more is an
/// empty message, which is no JSON, and which Home Assistant may hear before the entity is withdrawn.
fn field(name: &str) -> String {
    format!("{{{{ (value_json | default({{}})).{name} | default(none) }}}}")
}

fn set(config: &mut Value, key: &str, value: Value) {
    if let Value::Object(config) = config {
        config.insert(key.to_owned(), value);
    }
}

/// Whether an entity shows what is kept below `base`.
fn shows(config: &Value, base: &str) -> bool {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    let availability = config.get("availability").and_then(Value::as_array);
    let mut topics: Vec<String> =
        availability.into_iter().flatten().filter_map(|one| text(one.get("topic"))).collect();
    topics.extend(text(config.get("state_topic")));
    topics.iter().any(|topic| topic.strip_prefix(base).is_some_and(|rest| rest.starts_with('/')))
}

/// Who says all this.
fn origin() -> Value {
    let mut origin = Map::new();
    origin.insert("name".into(), RELAY.into());
    origin.insert("sw_version".into(), env!("CARGO_PKG_VERSION").into());
    // Empty while the package names no home page.
    let url = env!("CARGO_PKG_HOMEPAGE");
    if !url.is_empty() {
        origin.insert("support_url".into(), url.into());
    }
    origin.into()
}

/// The relay's own entities.
fn relay(base: &str) -> Vec<Entity<'static>> {
    let (status, diagnostics) = (format!("{base}/status"), format!("{base}/diagnostics"));
    let mut entities = vec![
        of_relay(
            "sensor",
            ("status", "Status", "mdi:lan-connect"),
            Availability::Always,
            json!({
                "state_topic": status,
                "value_template": "{{ value_json.status }}",
                "json_attributes_topic": status,
                "device_class": "enum",
                "options": ["online", "degraded", "offline"],
            }),
        ),
        of_relay(
            "binary_sensor",
            ("astro", "Astro", "mdi:cloud-check"),
            Availability::Relay,
            json!({
                "state_topic": diagnostics,
                "value_template": "{{ 'ON' if value_json.astro == 'connected' else 'OFF' }}",
                "device_class": "connectivity",
            }),
        ),
    ];
    let measured = |class: &str| json!({ "state_class": class });
    let figures = [
        ("lag", ("lag", "Events waiting", "mdi:tray-full"), measured("measurement")),
        (
            "last_event",
            ("last-event", "Last event", "mdi:clock-outline"),
            json!({ "device_class": "timestamp" }),
        ),
        ("gaps", ("gaps", "Gaps", "mdi:content-cut"), measured("total_increasing")),
        (
            "dead_letters",
            ("dead-letters", "Dead letters", "mdi:email-off"),
            measured("measurement"),
        ),
    ];
    entities.extend(figures.map(|(key, what, mut own)| {
        set(&mut own, "state_topic", (&*diagnostics).into());
        set(&mut own, "value_template", field(key).into());
        of_relay("sensor", what, Availability::Relay, own)
    }));
    entities
}

/// An entity of the relay's own: its object, name and icon.
fn of_relay(
    component: &'static str,
    (object, name, icon): (&'static str, &str, &'static str),
    availability: Availability,
    mut own: Value,
) -> Entity<'static> {
    set(&mut own, "entity_category", "diagnostic".into());
    let (object, name) = (object.into(), name.into());
    Entity { component, channel: None, object, name, icon, availability, own }
}

/// Whether Astro is heard for the channel. It must not be unavailable just when it has to say no.
fn connection<'a>(of: (&'a str, &'a str)) -> Entity<'a> {
    Entity {
        component: "binary_sensor",
        channel: Some(of),
        object: "connection".into(),
        name: "Connection".into(),
        icon: "mdi:cloud-check",
        availability: Availability::Relay,
        own: json!({
            "state_topic": format!("{}/status", of.1),
            "payload_on": "online",
            "payload_off": "offline",
            "device_class": "connectivity",
            "entity_category": "diagnostic",
        }),
    }
}

fn live<'a>(of: (&'a str, &'a str)) -> Entity<'a> {
    Entity {
        component: "binary_sensor",
        channel: Some(of),
        object: "live".into(),
        name: "Live".into(),
        icon: "mdi:broadcast",
        availability: Availability::Channel,
        own: json!({
            "state_topic": format!("{}/stream", of.1),
            "value_template": "{{ iif((value_json | default({})).isLive | default(none), 'ON', 'OFF', 'None') }}",
        }),
    }
}

/// An event entity for each kind that can come.
fn events<'a>(of: (&'a str, &'a str), feed: &Feed) -> impl Iterator<Item = Entity<'a>> {
    let subscribed = |topic: &str| feed.topics.iter().any(|subscribed| subscribed == topic);
    let all = subscribed(ACTIVITIES);
    KINDS.iter().filter(move |kind| all || subscribed(kind.topic)).map(move |kind| Entity {
        component: "event",
        channel: Some(of),
        object: format!("event/{}", kind.name).into(),
        name: kind.label.into(),
        icon: kind.icon,
        availability: Availability::Channel,
        own: json!({
            "state_topic": event_topic(of.1, kind.name),
            "event_types": kind.types,
        }),
    })
}

#[cfg(test)]
mod tests;
