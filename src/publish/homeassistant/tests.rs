use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::*;
use crate::{
    base::event::{self, Event},
    config::Action,
    delivery::ha_event::{ACTIVITIES, HaEvents, KINDS},
};

fn home(commands: &[Action]) -> HaDiscovery {
    let feed = |label: &str, room: Option<&str>, topics: &[&str]| {
        let topics = topics.iter().map(|&topic| topic.to_owned()).collect();
        let room = room.map(str::to_owned);
        (label.to_owned(), ChannelTopics { base: format!("astro/{label}"), room, topics })
    };
    HaDiscovery {
        on: true,
        relay: "astro/relay".into(),
        prefix: "homeassistant".into(),
        node: "astro-relay-home".into(),
        others: vec!["astro-relay-loft".into()],
        channels: BTreeMap::from([
            feed("main", Some("5f0a"), &["channel.activities", "channel.stream.status"]),
            feed("a_b", None, &["channel.tips"]),
        ]),
        commands: Commands::Only(commands.to_vec()),
        configuration_url: Some("http://relay.lan:9464/".into()),
    }
}

#[test]
fn discovery_points_at_the_topics_of_the_state() {
    let mut config: SinkConfig = serde_json::from_value(json!({"type": "mqtt"})).unwrap();
    let channel = json!({"token": {"value": "x"}, "topics": ["channel.activities"]});
    let channels: BTreeMap<String, Channel> = ["main", "other"]
        .map(|label| (label.to_owned(), serde_json::from_value(channel.clone()).unwrap()))
        .into();
    config.channels = Some(vec!["main".into()]);
    let expanded = |settings: Value| {
        let sink = SinkConfig { settings, ..config.clone() };
        let mut sinks = BTreeMap::from([("home".to_owned(), sink)]);
        expand(&mut sinks, &channels);
        sinks.remove("home").unwrap()
    };
    let of = |config: &SinkConfig| {
        HaDiscovery::of(config, "node", |text| Cow::Borrowed(text), &Commands::default()).unwrap()
    };
    let without = expanded(json!({}));
    assert!(!without.state && of(&without).fixed().is_empty());
    for (settings, base, prefix) in [
        (json!({"homeassistant": true}), "astro/", "homeassistant"),
        (
            json!({"homeassistant": true, "state_topic": "x/{{ channel }}", "discovery_prefix": "ha"}),
            "x/",
            "ha",
        ),
    ] {
        let config = expanded(settings);
        assert!(config.state, "its entities show the state");
        let home = of(&config);
        assert_eq!(home.prefix, prefix);
        assert_eq!(home.relay, format!("{base}relay"));
        let topics = vec![ACTIVITIES.to_owned()];
        let main = ChannelTopics { base: format!("{base}main"), room: None, topics };
        assert_eq!(home.channels, BTreeMap::from([("main".to_owned(), main)]));
        let events = HaEvents::of(&config, |text| Cow::Borrowed(text)).unwrap().unwrap();
        let tip = json!({"type": "tip", "data": {"username": "ann"}});
        let received = |channel: &str| event::own(ACTIVITIES, &channel.into(), &"".into(), &tip, 1);
        let rendered = |event: &Event| events.render(event, event.data(), || true, 0);
        assert_eq!(rendered(&received("main"))[0].0, format!("{base}main/event/tip"));
        assert_eq!(rendered(&received("other")), []);
    }
}

/// The elements of the documentation's example.
fn session() -> Vec<(String, Value)> {
    let text = include_str!("../../../tests/fixtures/rest/session.json");
    let session: Value = serde_json::from_str(text).unwrap();
    session["data"].as_object().unwrap().clone().into_iter().collect()
}

fn everything(home: &HaDiscovery) -> Vec<(String, Value)> {
    let mut all = home.fixed();
    for (element, value) in session() {
        let topic = format!("astro/main/session/{element}");
        all.extend(home.element("main", &element, &topic, &value));
    }
    all.extend(home.counter("main", "deaths", "astro/main/counters/deaths"));
    all.into_iter().map(|one| (one.topic, serde_json::from_str(&one.payload).unwrap())).collect()
}

const ALL: &[Action] = &[Action::Set, Action::Reset, Action::Reload, Action::Refresh];

/// What each component cannot do without, by Home Assistant's documentation of each.
fn required(component: &str) -> &'static [&'static str] {
    match component {
        "sensor" | "binary_sensor" => &["state_topic"],
        "event" => &["state_topic", "event_types"],
        "number" | "button" => &["command_topic"],
        other => panic!("{other}"),
    }
}

#[test]
fn every_entity_is_complete_and_no_two_are_the_same() {
    let home = home(ALL);
    let all = everything(&home);
    let (mut topics, mut ids, mut names) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (topic, config) in &all {
        let parts: Vec<&str> = topic.split('/').collect();
        let ["homeassistant", component, "astro-relay-home", object, "config"] = *parts.as_slice()
        else {
            panic!("{topic}")
        };
        assert!(object.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-'));
        assert!(home.owns(topic));
        for key in required(component).iter().chain(&["name", "unique_id", "icon"]) {
            assert!(config.get(*key).is_some(), "{topic} has no {key}");
        }
        assert!(topics.insert(topic), "{topic}");
        assert!(ids.insert(config["unique_id"].as_str().unwrap()), "{}", config["unique_id"]);
        let name = (config["device"]["name"].to_string(), config["name"].to_string(), component);
        assert!(names.insert(name.clone()), "{name:?}");
        assert_eq!(config["origin"]["name"], "astro-relay");
        assert_eq!(config["device"]["identifiers"].as_array().unwrap().len(), 1);
        for topic in config["availability"].as_array().into_iter().flatten() {
            assert!(topic["topic"].as_str().unwrap().starts_with("astro/"));
        }
    }
    // The relay's, those of the two channels, the elements with a state, four goals, one counter.
    assert_eq!(all.len(), 6 + (1 + 1 + 14 + 1 + 2) + (1 + 2 + 1 + 2) + 55 + 4 + 1);
}

/// Users' automations hang on these: a change here breaks them.
#[test]
fn ids_stay_as_they_are() {
    let all: BTreeMap<_, _> = everything(&home(ALL)).into_iter().collect();
    for (topic, id, device) in [
        (
            "homeassistant/sensor/astro-relay-home/main__follower-session/config",
            "astro-relay-5f0a__main__follower-session",
            "astro-relay-5f0a__main",
        ),
        (
            "homeassistant/event/astro-relay-home/main__event_2ftip/config",
            "astro-relay-5f0a__main__event_2ftip",
            "astro-relay-5f0a__main",
        ),
        (
            "homeassistant/event/astro-relay-home/a_5fb__event_2ftip/config",
            "astro-relay__a_5fb__event_2ftip",
            "astro-relay__a_5fb",
        ),
        (
            "homeassistant/number/astro-relay-home/main__tip-goal_2fset/config",
            "astro-relay-5f0a__main__tip-goal_2fset",
            "astro-relay-5f0a__main",
        ),
        (
            "homeassistant/binary_sensor/astro-relay-home/main__live/config",
            "astro-relay-5f0a__main__live",
            "astro-relay-5f0a__main",
        ),
        (
            "homeassistant/sensor/astro-relay-home/gaps/config",
            "astro-relay-5f0a__gaps",
            "astro-relay-5f0a",
        ),
    ] {
        let config = &all[topic];
        assert_eq!(config["unique_id"], id);
        assert_eq!(config["device"]["identifiers"], json!([device]));
    }
}

#[test]
fn entities_of_another_client_id_are_ours_if_they_are_of_our_channels() {
    let home = home(ALL);
    let other = HaDiscovery { node: "astro-relay-mqtt".into(), ..home.clone() };
    let all: Vec<_> = everything(&other);
    for (topic, config) in &all {
        assert!(!home.owns(topic));
        let (node, whose) = home.whose(topic, config.to_string().as_bytes()).unwrap();
        assert_eq!((&*node, whose), ("astro-relay-mqtt", Whose::Ours), "{topic}");
        assert!(other.is_of_today(topic, config.to_string().as_bytes()), "{topic}");
    }
    // Of a version whose ids knew no rooms.
    let earlier = |room: Option<&str>| {
        let mut earlier = other.clone();
        earlier.channels.values_mut().for_each(|feed| feed.room = room.map(str::to_owned));
        earlier
    };
    for (topic, config) in everything(&earlier(None)) {
        let whose = home.whose(&topic, config.to_string().as_bytes()).unwrap().1;
        let of_channel = topic.contains("/main__") || topic.contains("/a_5fb__");
        assert_eq!(whose == Whose::Ours, of_channel, "{topic}");
    }
    // Of another streamer, whose channel has the same label.
    for (topic, config) in everything(&earlier(Some("77"))) {
        let whose = home.whose(&topic, config.to_string().as_bytes()).unwrap().1;
        assert_eq!(whose, Whose::SomeRelays, "{topic}");
        assert!(all.iter().all(|(_, ours)| ours["unique_id"] != config["unique_id"]), "{topic}");
    }
    let elsewhere = HaDiscovery { relay: "x/relay".into(), ..earlier(None) };
    let mut elsewhere = elsewhere;
    elsewhere.channels.values_mut().for_each(|feed| feed.base = "x/y".into());
    for one in elsewhere.fixed() {
        let whose = home.whose(&one.topic, one.payload.as_bytes()).unwrap().1;
        assert_eq!(whose, Whose::SomeRelays, "{}", one.topic);
    }
    for payload in ["", "{}", "astro-relay", r#"{"origin":{"name":"astro-relay"}}"#, "[1"] {
        assert_eq!(home.whose("homeassistant/sensor/x/y/config", payload.as_bytes()), None);
    }
}

#[test]
fn different_words_never_have_the_same_id() {
    for (words, expected) in [
        (&["a", "b"][..], "a__b"),
        (&["a_b"], "a_5fb"),
        (&["a__b"], "a_5f_5fb"),
        (&["a_", "b"], "a_5f__b"),
        (&["a", "_b"], "a___5fb"),
        (&["A/ü"], "_41_2f_c3_bc"),
    ] {
        assert_eq!(id(words), expected);
    }
}

#[test]
fn only_allowed_commands_have_an_entity() {
    let commanding = |commands: &[Action]| -> BTreeSet<String> {
        let all = everything(&home(commands)).into_iter();
        all.filter_map(|(_, config)| config["command_topic"].as_str().map(str::to_owned)).collect()
    };
    assert_eq!(commanding(&[]), BTreeSet::new());
    let reload = ["astro/a_b/command/session/reload", "astro/main/command/session/reload"];
    assert_eq!(commanding(&[Action::Reload]), reload.map(str::to_owned).into());
    let goals = ["cheer", "follower", "subscriber", "tip"]
        .map(|goal| format!("astro/main/command/session/set/{goal}-goal"));
    assert_eq!(commanding(&[Action::Set]), goals.into());
}

#[test]
fn event_entities_follow_the_subscriptions() {
    let all = home(&[]).fixed();
    let events = |channel: &str| -> Vec<String> {
        let topics = all.iter().filter_map(|one| {
            let start = format!("homeassistant/event/astro-relay-home/{}__", id(&[channel]));
            one.topic.strip_prefix(&start)?.strip_suffix("/config").map(str::to_owned)
        });
        topics.collect()
    };
    assert_eq!(events("a_b"), ["event_2ftip", "event_2fpaid"]);
    assert_eq!(events("main").len(), KINDS.len());
}

#[test]
fn availability_topics_are_those_of_the_relay_and_the_channel() {
    let all: BTreeMap<_, _> = everything(&home(ALL)).into_iter().collect();
    let of = |entity: &str| -> Vec<&str> {
        let config = &all[&format!("homeassistant/{entity}/config")];
        let list = config["availability"].as_array().into_iter().flatten();
        list.map(|one| one["topic"].as_str().unwrap()).collect()
    };
    let both = ["astro/relay/status", "astro/main/status"];
    assert_eq!(of("event/astro-relay-home/main__event_2ftip"), both);
    assert_eq!(of("sensor/astro-relay-home/main__tip-latest"), both);
    // What has to say that the channel is not heard must not be unavailable then.
    let relay = ["astro/relay/status"];
    assert_eq!(of("binary_sensor/astro-relay-home/main__connection"), relay);
    assert_eq!(of("sensor/astro-relay-home/lag"), relay);
    assert_eq!(of("sensor/astro-relay-home/status"), [""; 0]);
}

#[test]
fn configurations_of_others_are_not_ours() {
    let home = home(&[]);
    assert_eq!(home.own_filter(), "homeassistant/+/astro-relay-home/+/config");
    for topic in [
        "homeassistant/sensor/astro-relay-den/main__x/config",
        "homeassistant/sensor/astro-relay-home/config",
        "homeassistant/sensor/astro-relay-home/main__x/state",
        "homeassistant/status",
        "elsewhere/sensor/astro-relay-home/main__x/config",
        "homeassistant2/sensor/astro-relay-home/main__x/config",
    ] {
        assert!(!home.owns(topic), "{topic}");
    }
}

#[test]
fn stale_configurations_are_cleared_and_awaited_ones_left() {
    let stale = |home: &HaDiscovery, entity: &str| {
        let fixed: BTreeSet<_> = home.fixed().into_iter().map(|one| one.topic).collect();
        home.is_stale(&format!("homeassistant/{entity}/config"), |topic| fixed.contains(topic))
    };
    let node = "astro-relay-home";
    let with_session = |commands: &[Action]| {
        let mut home = home(commands);
        home.channels.get_mut("main").unwrap().topics.push("channel.session.update".to_owned());
        home
    };
    let (some, all) = (with_session(&[]), with_session(ALL));
    let none = HaDiscovery { on: false, channels: BTreeMap::new(), ..home(&[]) };
    for (entity, without, commanded) in [
        // A session's element is not known before it is fetched.
        (format!("sensor/{node}/main__tip-latest"), false, false),
        (format!("number/{node}/main__tip-goal_2fset"), true, false),
        (format!("button/{node}/main__reset"), true, false),
        (format!("event/{node}/main__event_2ftip"), false, false),
        (format!("event/{node}/a_5fb__event_2fraid"), true, true),
        (format!("binary_sensor/{node}/a_5fb__live"), true, true),
        (format!("sensor/{node}/gone__tip-latest"), true, true),
        (format!("sensor/{node}/mai__tip-latest"), true, true),
        (format!("sensor/{node}/of-an-earlier-version"), true, true),
        (format!("sensor/{node}/lag"), false, false),
        ("sensor/somebody-else/main__tip-latest".to_owned(), false, false),
    ] {
        assert_eq!(stale(&some, &entity), without, "{entity}");
        assert_eq!(stale(&all, &entity), commanded, "{entity}");
        assert_eq!(stale(&none, &entity), entity.contains(node), "{entity}");
    }
    let topics = all.element_topics("main", "tip-goal");
    let value = json!({"amount": 1});
    let announced = all.element("main", "tip-goal", "astro/main/session/tip-goal", &value);
    assert_eq!(announced.into_iter().map(|one| one.topic).collect::<Vec<_>>(), topics);
    let counter = all.counter("main", "a b", "x").unwrap();
    assert_eq!(counter.topic, all.counter_topic("main", "a b"));
}

/// Their state comes behind the connection: with the entity would go what its user has made of it.
#[test]
fn entities_wait_for_their_state_while_its_topic_is_subscribed() {
    let stale = |topics: &[&str], entity: &str| {
        let mut home = home(ALL);
        home.channels.get_mut("main").unwrap().topics =
            topics.iter().map(|&topic| topic.to_owned()).collect();
        let topic = format!("homeassistant/{entity}/config");
        home.is_stale(&topic, |topic| home.fixed().iter().any(|one| one.topic == topic))
    };
    let all = ["channel.activities", "channel.chatbot.counters", "channel.session.reset"];
    for (entity, topic) in [
        ("event/astro-relay-home/main__event_2fmega_4bicks", "channel.activities"),
        ("sensor/astro-relay-home/main__paid_2fjewels", "channel.activities"),
        ("sensor/astro-relay-home/main__counter_2fdeaths", "channel.chatbot.counters"),
        ("sensor/astro-relay-home/main__tip-latest", "channel.session.reset"),
        ("number/astro-relay-home/main__tip-goal_2fset", "channel.session.reset"),
    ] {
        assert!(!stale(&all, entity), "{entity}");
        assert!(!stale(&[topic], entity), "{entity}");
        let others: Vec<&str> = all.into_iter().filter(|other| *other != topic).collect();
        assert!(stale(&others, entity), "{entity}");
    }
}

#[test]
fn few_entities_are_enabled_and_the_rest_waits_to_be() {
    let home = home(&[Action::Test]);
    let mut all = home.fixed();
    for element in [
        "follower-session", "tip-latest", "merch-goal-items", "cheer-week", "tip-week",
        "follower-week",
    ] {
        let value = json!({"name": "Ann", "amount": 1, "count": 1});
        all.extend(home.element("main", element, "t", &value));
    }
    let mut enabled = BTreeSet::new();
    for one in &all {
        let config: Value = serde_json::from_str(&one.payload).unwrap();
        assert_eq!(config["device"]["configuration_url"], "http://relay.lan:9464/");
        if config["enabled_by_default"] != false {
            enabled.insert(one.topic.split('/').nth(3).unwrap().to_owned());
        }
    }
    let expected = [
        "a_5fb__connection", "a_5fb__event_2fpaid", "a_5fb__event_2ftip", "a_5fb__latest-event",
        "a_5fb__test_2ftip", "astro", "main__connection", "main__event_2fcheer",
        "main__event_2ffollow", "main__event_2fpaid", "main__event_2fraid",
        "main__event_2fredemption", "main__event_2fsubscription", "main__event_2fsuperchat",
        "main__event_2ftip", "main__follower-session", "main__latest-event", "main__live",
        "main__test_2ftip", "main__tip-latest", "status",
    ];
    assert_eq!(enabled, expected.map(ToOwned::to_owned).into());
    assert!(all.len() > 2 * enabled.len(), "{}", all.len());
    let test = all.iter().find(|one| one.topic.contains("main__test_2fraid")).unwrap();
    let config: Value = serde_json::from_str(&test.payload).unwrap();
    assert_eq!(config["command_topic"], "astro/main/command/relay/test/raid");
}

#[test]
fn a_channel_with_a_session_says_since_when_it_counts() {
    let mut home = home(&[]);
    let since = |home: &HaDiscovery| {
        let found = home.fixed().into_iter().find(|one| one.topic.contains("session-since"));
        found.map(|one| serde_json::from_str::<Value>(&one.payload).unwrap())
    };
    assert_eq!(since(&home), None);
    let main = home.channels.get_mut("main").unwrap();
    main.topics.push("channel.session.reset".to_owned());
    let config = since(&home).unwrap();
    assert_eq!(config["device_class"], "timestamp");
    assert_eq!(config["state_topic"], "astro/main/session-info");
    assert!(config["value_template"].as_str().unwrap().contains("lastReset"));
}

/// Home Assistant shows a disabled entity of a dashboard as one that there is not.
#[test]
fn the_first_view_of_the_dashboard_has_only_entities_that_are_enabled() {
    let home = home(&[]);
    let mut all = home.fixed();
    let value = json!({"name": "Ann", "amount": 1, "count": 1});
    for word in ["follower", "subscriber", "tip", "cheer", "raid"] {
        for element in [format!("{word}-latest"), format!("{word}-session")] {
            all.extend(home.element("main", &element, "t", &value));
        }
    }
    let enabled = |one: &Announcement| {
        let config: Value = serde_json::from_str(&one.payload).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_lowercase().replace(' ', "_");
        let component = one.topic.split('/').nth(1).unwrap();
        let (device, name) = (text(&config["device"]["name"]), text(&config["name"]));
        (config["enabled_by_default"] != false).then(|| format!("{component}.{device}_{name}"))
    };
    let enabled: BTreeSet<String> = all.iter().filter_map(enabled).collect();
    let dashboard = include_str!("../../../deploy/home-assistant/dashboard.yaml");
    let first = dashboard.split("\n  - title: ").nth(1).unwrap();
    let words = first.split_whitespace();
    let shown: Vec<_> = words.filter(|word| word.contains("sensor.")).collect();
    assert!(shown.len() > 8, "{shown:?}");
    let missing: Vec<_> = shown.iter().filter(|entity| !enabled.contains(**entity)).collect();
    assert!(missing.is_empty(), "{missing:?} of {enabled:?}");
}
