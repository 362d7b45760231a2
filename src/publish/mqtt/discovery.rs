//! Home Assistant's discovery on one connection: which configurations are to be retained, which are
//! published, and which of earlier days are to be cleared.
//!
//! Configurations are retained, so the broker itself is the memory of what was announced: after each
//! connect those of ours are read, and what is stale among them is cleared. All are published again when
//! Home Assistant has started (its birth message).
//!
//! A configuration stands as long as its part of the state does. It is cleared when that part is, and not
//! because it is not known yet. That of a session's element stays while the channel has its session: with
//! each reset elements go and come back.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use super::super::homeassistant::{Announcement, HaDiscovery, Whose};
use crate::{
    base::json,
    channel::store::Section,
    sink::{
        Part,
        mqtt::{
            connection::{Connection, Event},
            lost::Lost,
        },
    },
};

/// Home Assistant has started: how long to wait at most before all is published again. Whatever else
/// speaks MQTT in the house answers at that moment too.
const JITTER: Duration = Duration::from_secs(3);

/// Configurations that are remembered at most: a hundred channels have so many.
const MOST: usize = 20_000;

/// Discovery as one connection has it.
#[derive(Debug)]
pub(super) struct Discovery {
    ha: HaDiscovery,
    /// What is to stand, by topic.
    announced: BTreeMap<String, Bytes>,
    /// Topics that were announced over earlier connections, and not withdrawn: they are announced again with
    /// their part of the state.
    before: BTreeSet<String>,
    /// Topics that are to be published: as announced, or cleared.
    waiting: BTreeSet<String>,
    /// Topics that are to be cleared before anything is announced.
    stale: BTreeSet<String>,
    /// By the name of a client that is not ours: what it seems to have announced of our relay, and whether
    /// some of that is surely ours.
    others: BTreeMap<String, (Vec<String>, bool)>,
    /// When all is to be published again.
    again: Option<Instant>,
}

impl Discovery {
    pub(super) fn new(ha: HaDiscovery) -> Self {
        let (announced, before) = (BTreeMap::new(), BTreeSet::new());
        let (waiting, stale, others) = (BTreeSet::new(), BTreeSet::new(), BTreeMap::new());
        Self { ha, announced, before, waiting, stale, others, again: None }
    }

    /// Reads what the broker retains of entities, ours and those of others, before anything is announced:
    /// what is of earlier days is cleared first. Whether the broker lets us read it.
    pub(super) async fn find_announced(
        &mut self,
        connection: &mut Connection,
    ) -> Result<bool, Lost> {
        self.begin();
        // In QoS 0: what is retained is sent at once, and comes before the answer to the unsubscription.
        let every = self.ha.every_filter();
        connection.subscribe(vec![self.ha.birth_topic()], 1)?;
        connection.subscribe(vec![self.ha.own_filter()], 0)?;
        if self.ha.has_identity() {
            connection.subscribe(vec![every.clone()], 0)?;
        }
        connection.unsubscribe(&every)?;
        let mut refusals = Vec::new();
        loop {
            match connection.next().await? {
                Event::Received(message) => self.find(&message.topic, &message.payload),
                Event::Subscribed { refused } => refusals.push(refused),
                Event::Unsubscribed => break,
                _ => {}
            }
        }
        self.found();
        // That of the others is of no matter.
        Ok(refusals.iter().take(2).all(|refused| *refused == 0))
    }

    /// When all is to be published again.
    pub(super) fn due(&self) -> Option<Instant> {
        self.again
    }

    /// There is a new connection.
    fn begin(&mut self) {
        let before = std::mem::take(&mut self.announced).into_keys();
        let spare = MOST.saturating_sub(self.before.len());
        self.before.extend(before.take(spare));
        self.waiting.clear();
        self.stale.clear();
        self.others.clear();
        self.again = None;
        let fixed = self.ha.fixed();
        self.announce(fixed);
    }

    /// The broker retains this. An entity whose id is another today is cleared too: Home Assistant would take
    /// the new one for a change of the old.
    fn find(&mut self, topic: &str, payload: &[u8]) {
        if payload.is_empty() || self.stale.len() >= MOST {
            return;
        }
        if self.ha.owns(topic) {
            if self.is_stale(topic) || !self.ha.is_of_today(topic, payload) {
                self.stale.insert(topic.to_owned());
            }
        } else if let Some((node, whose)) = self.ha.whose(topic, payload)
            && self.others.len() < MOST
        {
            let (topics, ours) = self.others.entry(node).or_default();
            *ours |= whose == Whose::Ours;
            if topics.len() < MOST {
                topics.push(topic.to_owned());
            }
        }
    }

    /// All that the broker retains was found. A client that has announced what is ours was ourselves, under
    /// another name.
    fn found(&mut self) {
        for (node, (topics, ours)) in std::mem::take(&mut self.others) {
            if ours {
                tracing::info!(
                    node,
                    count = topics.len(),
                    "entities are taken over from an earlier client id"
                );
                self.stale.extend(topics);
            }
        }
    }

    /// A part of the state was published under `topic`, or cleared.
    pub(super) fn part_published(&mut self, part: &Part, topic: &str) {
        if !self.ha.on {
            return;
        }
        let (channel, name) = (&*part.path.channel, &*part.path.name);
        let value = part.payload.as_ref().and_then(|text| json::value(text));
        match (part.path.section, value) {
            (Section::Session, Some(value)) => {
                let announcements = self.ha.element(channel, name, topic, &value);
                self.announce(announcements);
            }
            (Section::Session, None) if self.ha.has_session(channel) => {}
            (Section::Session, None) => self.withdraw(self.ha.element_topics(channel, name)),
            (Section::Counters, Some(_)) => {
                let announcement = self.ha.counter(channel, name, topic);
                self.announce(announcement);
            }
            (Section::Counters, None) => self.withdraw([self.ha.counter_topic(channel, name)]),
            (Section::Paid, Some(_)) => {
                let announcements = self.ha.paid(channel, name, topic);
                self.announce(announcements);
            }
            (Section::Paid, None) => self.withdraw(self.ha.paid_topics(channel, name)),
            // Announced whatever they are.
            (
                Section::SessionInfo
                | Section::Stream
                | Section::Bot
                | Section::Diagnostics
                | Section::Status,
                _,
            ) => {}
        }
    }

    pub(super) fn received(&mut self, topic: &str, payload: &[u8], now: Instant) {
        if topic == self.ha.birth_topic() {
            // The word that is configured where nothing else is; a retained one is as good.
            if payload == b"online" && !self.announced.is_empty() {
                let wait = JITTER.mul_f64(fastrand::f64());
                self.again.get_or_insert(now + wait);
            }
        } else if !payload.is_empty() && self.is_stale(topic) && self.waiting.len() < MOST {
            self.waiting.insert(topic.to_owned());
        }
    }

    /// Whether what the broker retains under a topic is to be cleared.
    fn is_stale(&self, topic: &str) -> bool {
        self.ha.is_stale(topic, |topic| {
            self.announced.contains_key(topic) || self.before.contains(topic)
        })
    }

    /// What is to be published next, retained; empty: cleared.
    pub(super) fn next(&mut self, now: Instant) -> Option<(String, Bytes)> {
        if self.again.is_some_and(|at| at <= now) {
            self.again = None;
            self.waiting.extend(self.announced.keys().cloned());
        }
        if let Some(topic) = self.stale.pop_first() {
            return Some((topic, Bytes::new()));
        }
        let topic = self.waiting.pop_first()?;
        let payload = self.announced.get(&topic).cloned().unwrap_or_default();
        Some((topic, payload))
    }

    /// The broker did not take what was published last under a topic: it is published again.
    pub(super) fn not_taken(&mut self, topic: String, payload: &Bytes) {
        // One that is to be cleared before it is announced is cleared first this time, too.
        if payload.is_empty() && self.announced.contains_key(&topic) {
            self.stale.insert(topic.clone());
        }
        self.waiting.insert(topic);
    }

    /// The broker refuses what was published under a topic: it is published again, unless it was announced
    /// over an earlier connection and is not now; whether it is.
    pub(super) fn refused(&mut self, topic: &str, payload: &Bytes) -> bool {
        let is_wanted = payload.is_empty() || self.announced.contains_key(topic);
        if is_wanted {
            self.not_taken(topic.to_owned(), payload);
        }
        is_wanted
    }

    fn announce(&mut self, announcements: impl IntoIterator<Item = Announcement>) {
        for Announcement { topic, payload } in announcements {
            let payload = Bytes::from(payload);
            if self.announced.get(&topic) != Some(&payload) && self.announced.len() < MOST {
                self.announced.insert(topic.clone(), payload);
                self.waiting.insert(topic);
            }
        }
    }

    fn withdraw<const N: usize>(&mut self, topics: [String; N]) {
        for topic in topics {
            // It may be there from before this connection; what is not there is cleared in vain.
            self.announced.remove(&topic);
            self.before.remove(&topic);
            self.waiting.insert(topic);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{borrow::Cow, collections::BTreeMap};

    use serde_json::json;

    use super::*;
    use crate::{
        channel::store::StateKey,
        config::{Commands, Described, SinkConfig},
    };

    fn discovery(on: bool) -> Discovery {
        discovery_of(on, &["channel.activities"])
    }

    /// Of a channel that subscribes to these topics.
    fn discovery_of(on: bool, topics: &[&str]) -> Discovery {
        let mut config: SinkConfig = serde_json::from_value(json!({"type": "mqtt"})).unwrap();
        config.settings = json!({"homeassistant": on});
        let topics = topics.iter().map(|&topic| topic.to_owned()).collect();
        let described =
            Described { room: Some("5f0a".into()), topics, elsewhere: vec!["loft".into()] };
        config.feeds = BTreeMap::from([("main".into(), described)]);
        let ha = HaDiscovery::of(&config, "node", |text| Cow::Borrowed(text), &Commands::default())
            .unwrap();
        Discovery::new(ha)
    }

    fn part(section: Section, name: &str, value: Option<&str>) -> Part {
        let path = StateKey { channel: "main".into(), section, name: name.into() };
        Part { path, payload: value.map(|value| value.to_owned().into()) }
    }

    /// What is published now: the topics, without what all have in common, and whether they are cleared.
    fn published(discovery: &mut Discovery, now: Instant) -> Vec<(String, bool)> {
        let mut all = Vec::new();
        while let Some((topic, payload)) = discovery.next(now) {
            let topic = topic.replace("homeassistant/", "").replace("/node/", " ");
            all.push((topic.replace("/config", ""), payload.is_empty()));
        }
        all
    }

    fn one(topic: &str, cleared: bool) -> Vec<(String, bool)> {
        vec![(topic.to_owned(), cleared)]
    }

    #[test]
    fn an_entity_is_announced_once_and_again_when_it_changes() {
        let (mut discovery, now) = (discovery(true), Instant::now());
        discovery.begin();
        let fixed = published(&mut discovery, now);
        assert!(fixed.contains(&("event main__event_2ftip".into(), false)), "{fixed:?}");
        let element = |value| part(Section::Session, "tip-count", value);
        discovery.part_published(&element(Some(r#"{"count":1}"#)), "t");
        assert_eq!(published(&mut discovery, now), one("sensor main__tip-count", false));
        discovery.part_published(&element(Some(r#"{"count":2}"#)), "t");
        assert_eq!(published(&mut discovery, now), [], "its value is no news here");
        discovery.part_published(&element(Some(r#"{"amount":2}"#)), "t");
        assert_eq!(published(&mut discovery, now), one("sensor main__tip-count", false));
        discovery.part_published(&element(None), "t");
        let gone = published(&mut discovery, now);
        assert!(gone.contains(&("sensor main__tip-count".into(), true)), "{gone:?}");
        discovery.part_published(&part(Section::Paid, "megaKicks", Some("{}")), "t");
        discovery.part_published(&part(Section::Paid, "jewels", Some("{}")), "t");
        let paid = [
            ("event main__event_2fmega_4bicks".to_owned(), false),
            ("sensor main__paid_2fjewels".to_owned(), false),
            ("sensor main__paid_2fmega_4bicks".to_owned(), false),
        ];
        assert_eq!(published(&mut discovery, now), paid, "Jewels have an event entity anyway");
        discovery.part_published(&part(Section::Counters, "deaths", Some("5")), "t");
        assert_eq!(published(&mut discovery, now), one("sensor main__counter_2fdeaths", false));
        discovery.part_published(&part(Section::Status, "", Some("online")), "t");
        assert_eq!(published(&mut discovery, now), []);
        // A new connection says all again, as far as it is known.
        discovery.begin();
        assert_eq!(published(&mut discovery, now), fixed);
    }

    #[test]
    fn what_was_refused_is_published_again_if_it_is_still_announced() {
        let (mut discovery, now) = (discovery(true), Instant::now());
        discovery.begin();
        let element = part(Section::Session, "tip-count", Some(r#"{"count":1}"#));
        discovery.part_published(&element, "t");
        let topic = "homeassistant/sensor/node/main__tip-count/config";
        let (config, cleared) = (discovery.announced[topic].clone(), Bytes::new());
        published(&mut discovery, now);
        assert!(discovery.refused(topic, &config));
        assert_eq!(published(&mut discovery, now), one("sensor main__tip-count", false));
        // Over the next connection it is not known at first: that clears nothing.
        discovery.begin();
        published(&mut discovery, now);
        assert!(!discovery.refused(topic, &config));
        assert_eq!(published(&mut discovery, now), []);
        assert!(discovery.refused(topic, &cleared));
        assert_eq!(published(&mut discovery, now), one("sensor main__tip-count", true));
    }

    #[test]
    fn an_element_that_a_reset_takes_away_keeps_its_entity() {
        let now = Instant::now();
        let mut there = discovery_of(true, &["channel.session.reset"]);
        let element = |value| part(Section::Session, "tip-count", value);
        let (topic, payload) = (
            "homeassistant/sensor/node/main__tip-count/config",
            r#"{"unique_id":"astro-relay-5f0a__main__tip-count"}"#,
        );
        there.begin();
        there.part_published(&element(Some(r#"{"count":1}"#)), "t");
        published(&mut there, now);
        there.part_published(&element(None), "t");
        assert_eq!(published(&mut there, now), []);
        // Nor is it cleared after a reconnect, or a restart, before the element is back.
        for mut there in [there, discovery_of(true, &["channel.session.reset"])] {
            there.begin();
            there.find(topic, payload.as_bytes());
            there.found();
            let all = published(&mut there, now);
            assert!(all.iter().all(|(_, cleared)| !cleared), "{all:?}");
        }
        // Without its session the channel has no elements.
        let mut there = discovery_of(true, &["channel.activities"]);
        there.begin();
        there.find(topic, payload.as_bytes());
        there.found();
        let all = published(&mut there, now);
        assert!(all.contains(&("sensor main__tip-count".to_owned(), true)), "{all:?}");
    }

    #[test]
    fn the_birth_message_has_all_published_again() {
        let (mut discovery, now) = (discovery(true), Instant::now());
        discovery.begin();
        let all = published(&mut discovery, now);
        discovery.received("homeassistant/status", b"offline", now);
        assert_eq!(discovery.again, None);
        discovery.received("homeassistant/status", b"online", now);
        let due = discovery.again.unwrap();
        assert!(due >= now && due <= now + JITTER);
        // Hearing it twice does not put it off.
        discovery.received("homeassistant/status", b"online", now + JITTER);
        assert_eq!(discovery.again, Some(due));
        assert_eq!(published(&mut discovery, now + JITTER), all);
        assert_eq!(discovery.again, None);
    }

    #[test]
    fn a_stale_configuration_is_cleared_once() {
        let (mut there, now) = (discovery(true), Instant::now());
        let today = r#"{"unique_id":"astro-relay-5f0a__main__event_2ftip"}"#;
        let found = |there: &mut Discovery| {
            there.begin();
            for (topic, payload) in [
                ("homeassistant/event/node/gone__event_2fold/config", "{}"),
                ("homeassistant/event/node/main__event_2ftip/config", today),
                ("homeassistant/event/node/main__event_2fraid/config", "{}"),
                ("homeassistant/sensor/node/gone__x/config", ""),
                ("homeassistant/sensor/other/gone__x/config", "{}"),
            ] {
                there.find(topic, payload.as_bytes());
            }
            there.found();
        };
        found(&mut there);
        let all = published(&mut there, now);
        // One that is no more, and one whose id is another today, which is announced again afterwards.
        let cleared: Vec<_> = all.iter().filter(|(_, cleared)| *cleared).collect();
        assert_eq!(cleared.len(), 2, "{cleared:?}");
        let place = |one: &(String, bool)| all.iter().position(|other| other == one).unwrap();
        let raid = |cleared| ("event main__event_2fraid".to_owned(), cleared);
        assert!(place(&raid(true)) < place(&raid(false)), "{all:?}");
        // What comes later, from ourselves of yesterday, too.
        there.received("homeassistant/event/node/gone__event_2fold/config", b"{}", now);
        assert_eq!(published(&mut there, now), one("event gone__event_2fold", true));

        let mut off = discovery(false);
        found(&mut off);
        let all = published(&mut off, now);
        assert_eq!(all.len(), 3, "{all:?}");
        assert!(all.iter().all(|(_, cleared)| *cleared), "{all:?}");
        off.received("homeassistant/status", b"online", now);
        assert_eq!(published(&mut off, now + JITTER), []);
    }

    #[test]
    fn what_the_broker_does_not_take_is_published_again() {
        let (mut there, now) = (discovery(true), Instant::now());
        there.begin();
        // Its id is another today: it is cleared, and announced afterwards.
        there.find("homeassistant/event/node/main__event_2fraid/config", b"{}");
        there.found();
        let all: Vec<_> = std::iter::from_fn(|| there.next(now)).collect();
        assert!(all.len() > 2 && all.iter().any(|(_, payload)| payload.is_empty()), "{all:?}");
        for (topic, payload) in all.clone() {
            there.not_taken(topic, &payload);
        }
        let again: Vec<_> = std::iter::from_fn(|| there.next(now)).collect();
        assert_eq!(again, all);
        // Only the clearing is not taken: what was announced behind it goes with it.
        let (topic, payload) = all[0].clone();
        there.not_taken(topic.clone(), &payload);
        let again: Vec<_> = std::iter::from_fn(|| there.next(now))
            .map(|(topic, is)| (topic, is.is_empty()))
            .collect();
        assert_eq!(again, [(topic.clone(), true), (topic, false)]);
        // What is no more is cleared.
        there.not_taken("homeassistant/sensor/node/main__x/config".into(), &Bytes::new());
        assert_eq!(published(&mut there, now), one("sensor main__x", true));
    }

    #[test]
    fn what_was_announced_over_an_earlier_connection_is_not_stale() {
        let (mut there, now) = (discovery(true), Instant::now());
        let topic = "homeassistant/event/node/main__event_2fmega_4bicks/config";
        let payload = r#"{"unique_id":"astro-relay-5f0a__main__event_2fmega_4bicks"}"#;
        let kind = |value| part(Section::Paid, "megaKicks", value);
        there.begin();
        there.part_published(&kind(Some("{}")), "t");
        // The second reconnect comes before the state is published again.
        for _ in 0..2 {
            there.begin();
            there.find(topic, payload.as_bytes());
            there.found();
            let all = published(&mut there, now);
            assert!(all.iter().all(|(_, cleared)| !cleared), "{all:?}");
            there.received(topic, payload.as_bytes(), now);
            assert_eq!(published(&mut there, now), []);
        }
        // With its state it goes.
        there.part_published(&kind(None), "t");
        let all = published(&mut there, now);
        assert!(all.contains(&("event main__event_2fmega_4bicks".into(), true)), "{all:?}");
    }

    #[test]
    fn entities_of_an_earlier_client_id_are_cleared_and_those_of_others_left() {
        let now = Instant::now();
        let config =
            |id: &str| format!(r#"{{"origin":{{"name":"astro-relay"}},"unique_id":"{id}"}}"#);
        for on in [true, false] {
            let mut there = discovery(on);
            there.begin();
            published(&mut there, now);
            for (topic, payload) in [
                ("homeassistant/sensor/old/main__x/config", config("astro-relay-5f0a__main__x")),
                ("homeassistant/sensor/old/lag/config", config("astro-relay__lag")),
                ("homeassistant/sensor/their/main__x/config", config("astro-relay-77__main__x")),
                ("homeassistant/sensor/their/lag/config", config("astro-relay-77__lag")),
                ("homeassistant/sensor/loft/main__x/config", config("astro-relay-5f0a__main__x")),
                ("homeassistant/sensor/zigbee/x/config", "{}".to_owned()),
            ] {
                there.find(topic, payload.as_bytes());
            }
            there.found();
            let cleared: Vec<_> =
                std::iter::from_fn(|| there.next(now)).map(|(topic, _)| topic).collect();
            let expected =
                ["homeassistant/sensor/old/lag/config", "homeassistant/sensor/old/main__x/config"];
            assert_eq!(cleared, expected);
        }
    }
}
