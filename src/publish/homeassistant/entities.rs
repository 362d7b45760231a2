//! The entities that Home Assistant gets, each as a retained configuration.

use std::borrow::Cow;

use serde_json::{Map, Value, json};

use super::{
    Announcement, ChannelTopics, HaDiscovery, RELAY,
    element::{self, field},
    identity::{counter_object, event_object, id, paid_object},
};
use crate::{
    astro::activity::ActivityInfo,
    base::json::set,
    config::Action,
    delivery::{
        ha_event::{self, ACTIVITIES, KINDS, Kind},
        test_event::TestKind,
    },
    sink::command_address,
};

/// Where a command for a channel goes.
fn command_topic(channel: &str, command: &str) -> String {
    format!("{}/{channel}/{}/{command}", command_address::ROOT, command_address::COMMAND)
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
    /// Whether it is shown without somebody asking for it: few are, the others wait on the device's page.
    enabled: bool,
    /// What its component wants beside that.
    own: Value,
}

/// The name that no entity has. Home Assistant complains of one that could be none.
const UNUSED: &str = "check";

/// Elements of the session that are shown without somebody asking: what a stream is about.
const ELEMENTS: &[&str] = &[
    "follower-session", "follower-total", "follower-latest", "subscriber-session",
    "subscriber-total", "subscriber-latest", "tip-session", "tip-latest", "cheer-session",
    "cheer-latest",
];

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

impl HaDiscovery {
    /// The entities that are there whatever the state is.
    pub fn fixed(&self) -> Vec<Announcement> {
        if !self.on {
            return Vec::new();
        }
        let mut entities = relay(&self.relay);
        for (channel, feed) in &self.channels {
            let of = (&**channel, &*feed.base);
            entities.push(connection(of));
            if feed.subscribes("channel.stream.status") {
                entities.push(live(of));
            }
            if feed.has_session() {
                entities.push(session_since(of));
            }
            let events: Vec<_> = events(of, feed).collect();
            if !events.is_empty() {
                entities.push(latest_event(of));
            }
            entities.extend(events);
            entities.extend(self.buttons(of));
        }
        entities.iter().map(|entity| self.announce(entity)).collect()
    }

    /// Where events go that entities are announced for: of each channel one kind, all go to one branch.
    pub fn event_topics(&self) -> impl Iterator<Item = String> {
        let of = |feed: &ChannelTopics| {
            kinds(feed).next().map(|kind| ha_event::topic(&feed.base, kind.name))
        };
        self.channels.values().filter_map(of)
    }

    /// A discovery topic of ours under which nothing is announced.
    pub fn unused_topic(&self) -> String {
        self.topic("sensor", UNUSED)
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
        let announce = |component: &'static str, object: &str, name: &str, own| {
            // Whoever allows goals to be set wants to.
            let enabled = component == "number" || ELEMENTS.contains(&element);
            let what = (object.to_owned(), name, shown.icon);
            self.announce(&Entity { enabled, ..entity(component, of, what, own) })
        };
        let mut own = shown.own.clone();
        set(&mut own, "state_topic", topic.into());
        if shown.attributes {
            set(&mut own, "json_attributes_topic", topic.into());
            let template = "{{ value_json | default({}) | tojson }}";
            set(&mut own, "json_attributes_template", template.into());
        }
        let mut all = vec![announce("sensor", element, &shown.name, own)];
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
            all.push(announce("number", &object, &format!("Set {}", shown.name), own));
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
        let what = (counter_object(counter), format!("Counter {counter}"), "mdi:counter");
        let own = json!({ "state_topic": topic, "state_class": "measurement" });
        Some(self.announce(&entity("sensor", of, what, own)))
    }

    /// The topic under which a counter is announced.
    pub fn counter_topic(&self, channel: &str, counter: &str) -> String {
        self.topic("sensor", &id(&[channel, &counter_object(counter)]))
    }

    /// The entities of a kind of payment that the session has no element of, kept under `topic`: the last one,
    /// and, where the kind is not documented, its events.
    pub fn paid(&self, channel: &str, kind: &str, topic: &str) -> Vec<Announcement> {
        let Some(of) = self.of_channel(channel) else { return Vec::new() };
        let info = ActivityInfo::named(kind);
        let name = element::capital(&info.name());
        // They are shown: somebody has paid in it.
        let announce = |component, object: String, name: String, own| {
            self.announce(&entity(component, of, (object, name, PAID_ICON), own))
        };
        let own = json!({
            "state_topic": topic,
            "value_template": element::NAME,
            "json_attributes_topic": topic,
            "json_attributes_template": "{{ value_json | default({}) | tojson }}",
        });
        let mut all = vec![announce("sensor", paid_object(kind), format!("Latest {name}"), own)];
        if !info.is_known() && ha_event::is_own_kind(kind) {
            let topic = ha_event::topic(of.1, kind);
            let own = json!({ "state_topic": topic, "event_types": [kind] });
            all.push(announce("event", event_object(kind), name, own));
        }
        all
    }

    /// The topics under which these are announced.
    pub fn paid_topics(&self, channel: &str, kind: &str) -> [String; 2] {
        [("sensor", paid_object(kind)), ("event", event_object(kind))]
            .map(|(component, object)| self.topic(component, &id(&[channel, &object])))
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
        .map(|(action, object, name, icon)| button(of, (object, name, icon), action.as_str()))
        .chain(self.tests(of))
        .collect()
    }

    /// A button for each kind of test event. That of a tip is shown, the others on request.
    fn tests<'a>(&self, of: (&'a str, &'a str)) -> impl Iterator<Item = Entity<'a>> {
        let kinds = if self.commands.allow(Action::Test) { &TestKind::ALL[..] } else { &[] };
        kinds.iter().map(move |kind| {
            let command = format!("{}/{kind}", Action::Test.as_str());
            let what = (format!("test/{kind}"), format!("Send test {kind}"), "mdi:test-tube");
            Entity { enabled: *kind == TestKind::Tip, ..button(of, what, &command) }
        })
    }

    fn announce(&self, entity: &Entity<'_>) -> Announcement {
        let Entity { component, channel, object, name, icon, availability, enabled, own } = entity;
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
        if !enabled {
            set(&mut config, "enabled_by_default", false.into());
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
        let mut device = match channel {
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
        };
        if let Some(url) = &self.configuration_url {
            set(&mut device, "configuration_url", (&**url).into());
        }
        device
    }
}

/// An entity of a channel: its object, name and icon.
fn entity<'a>(
    component: &'static str,
    of: (&'a str, &'a str),
    (object, name, icon): (impl Into<Cow<'a, str>>, impl Into<String>, &'a str),
    own: Value,
) -> Entity<'a> {
    Entity {
        component,
        channel: Some(of),
        object: object.into(),
        name: name.into(),
        icon,
        availability: Availability::Channel,
        enabled: true,
        own,
    }
}

/// A button that gives a command.
fn button<'a>(
    of: (&'a str, &'a str),
    what: (impl Into<Cow<'a, str>>, impl Into<String>, &'a str),
    command: &str,
) -> Entity<'a> {
    let own = json!({
        "command_topic": command_topic(of.0, command),
        "payload_press": "PRESS",
        "entity_category": "config",
    });
    entity("button", of, what, own)
}

const PAID_ICON: &str = "mdi:cash-plus";

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
    // The status says when one of the figures is worth a look.
    let enabled = matches!(object, "status" | "astro");
    let (object, name) = (object.into(), name.into());
    Entity { component, channel: None, object, name, icon, availability, enabled, own }
}

/// Whether Astro is heard for the channel. It must not be unavailable just when it has to say no.
fn connection<'a>(of: (&'a str, &'a str)) -> Entity<'a> {
    let what = ("connection", "Connection", "mdi:cloud-check");
    let own = json!({
        "state_topic": format!("{}/status", of.1),
        "payload_on": "online",
        "payload_off": "offline",
        "device_class": "connectivity",
        "entity_category": "diagnostic",
    });
    Entity { availability: Availability::Relay, ..entity("binary_sensor", of, what, own) }
}

fn live<'a>(of: (&'a str, &'a str)) -> Entity<'a> {
    let own = json!({
        "state_topic": format!("{}/stream", of.1),
        "value_template": "{{ iif((value_json | default({})).isLive | default(none), 'ON', 'OFF', 'None') }}",
    });
    entity("binary_sensor", of, ("live", "Live", "mdi:broadcast"), own)
}

/// Since when the session has counted: its last reset.
fn session_since<'a>(of: (&'a str, &'a str)) -> Entity<'a> {
    let topic = format!("{}/session-info", of.1);
    let what = ("session-since", "Session since", "mdi:calendar-start");
    let own = json!({
        "state_topic": topic,
        "value_template": field("lastReset"),
        "device_class": "timestamp",
        "json_attributes_topic": topic,
        "json_attributes_template": "{{ value_json | default({}) | tojson }}",
    });
    Entity { enabled: false, ..entity("sensor", of, what, own) }
}

/// What happened last, in words. The logbook shows of an event entity its type alone, and of a sensor its
/// state: so this is what it shows of events.
fn latest_event<'a>(of: (&'a str, &'a str)) -> Entity<'a> {
    let what = ("latest-event", "Latest event", "mdi:timeline-text");
    let own = json!({
        "state_topic": ha_event::topic(of.1, "+"),
        "value_template": field("summary"),
    });
    entity("sensor", of, what, own)
}

/// The kinds of events that can come.
fn kinds(feed: &ChannelTopics) -> impl Iterator<Item = &'static Kind> {
    let all = feed.subscribes(ACTIVITIES);
    KINDS.iter().filter(move |kind| all || feed.subscribes(kind.topic))
}

/// An event entity for each of them.
fn events<'a>(of: (&'a str, &'a str), feed: &ChannelTopics) -> impl Iterator<Item = Entity<'a>> {
    kinds(feed).map(move |kind| {
        let what = (event_object(kind.name), kind.label, kind.icon);
        let own = json!({
            "state_topic": ha_event::topic(of.1, kind.name),
            "event_types": kind.types,
        });
        Entity { enabled: kind.common, ..entity("event", of, what, own) }
    })
}
