use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::{Change, Session, Source};
use crate::event::{Event, own};

fn event(topic: &str, data: &Value) -> Event {
    own(topic, &"main".into(), &"r".into(), data, 1000)
}

fn update(session: &mut Session, key: &str, value: &Value) -> Vec<Change> {
    session.hear(&event("channel.session.update", &json!({ "key": key, "data": value })), 1)
}

fn map(value: &Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

fn elements(session: &Session) -> BTreeMap<String, Value> {
    session.iter().map(|(name, element)| (name.to_owned(), element.value.clone())).collect()
}

#[test]
fn both_spellings_are_the_same_element() {
    let mut session = Session::default();
    session.merge(&map(&json!({"follower-latest": {"name": ""}, "odd_one": 1})), 0, 1).unwrap();
    for (key, name) in [
        ("latest_follower", "follower-latest"),
        ("follower-latest", "follower-latest"),
        ("follower_latest", "follower-latest"),
        ("latest-subscriber-new", "subscriber-new-latest"),
        ("tip_session_top_donation", "tip-session-top-donation"),
        ("odd_one", "odd_one"),
        ("quite_new", "quite-new"),
    ] {
        assert_eq!(session.name(key), name, "{key}");
    }
    let changes = update(&mut session, "latest_follower", &json!({"name": "Styler"}));
    let expected = Change {
        element: "follower-latest".into(),
        before: Some(json!({"name": ""})),
        after: Some(json!({"name": "Styler"})),
        source: Source::Live,
    };
    assert_eq!(changes, [expected]);
    session.merge(&map(&json!({"latest-thing": 1})), 1, 2).unwrap();
    assert_eq!(session.name("latest_thing"), "latest-thing", "it is known as it is");
}

#[test]
fn what_is_the_same_is_no_change() {
    let mut session = Session::default();
    assert_eq!(update(&mut session, "tip-session", &json!({"amount": 5})).len(), 1);
    assert_eq!(update(&mut session, "tip_session", &json!({"amount": 5.0})), []);
    assert_eq!(update(&mut session, "tip-session", &json!({"amount": 5.5})).len(), 1);
    assert_eq!(update(&mut session, "tip-session", &json!({"amount": 5.5, "x": 1})).len(), 1);
}

#[test]
fn a_reset_replaces_all_in_either_form() {
    for data in [
        json!({"tip-session": {"amount": 0}}),
        json!({"session": {"_id": "x", "channel": "c", "data": {"tip-session": {"amount": 0}}}}),
        json!({"session": {"tip-session": {"amount": 0}}}),
    ] {
        let mut session = Session::default();
        update(&mut session, "tip-session", &json!({"amount": 5}));
        update(&mut session, "odd", &json!(1));
        session.hear(&event("channel.stream.status", &json!({"isLive": true})), 2);
        let changes = session.hear(&event("channel.session.reset", &data), 3);
        assert!(changes.iter().all(|change| change.source == Source::Reset));
        assert_eq!(changes.len(), 2, "{changes:?}");
        let left = elements(&session);
        assert_eq!(left.len(), 2);
        assert_eq!(left["tip-session"]["amount"], 0);
        assert_eq!(left["stream.status"]["isLive"], true, "no part of the session");
    }
}

#[test]
fn stream_bot_and_counters_are_state_and_a_time_out_is_not() {
    let mut session = Session::default();
    for (topic, data, changed) in [
        ("channel.stream.status", json!({"isLive": true}), 1),
        ("channel.stream.status", json!({"isLive": true}), 0),
        ("channel.chatbot.status", json!({"mod": true}), 1),
        ("channel.chatbot.status", json!({"user_id": "1", "duration": 60}), 0),
        ("channel.chatbot.status", json!({"joined": true}), 1),
        ("channel.chatbot.counters", json!({"counter": "wrong-turns", "value": 1}), 1),
        ("channel.chatbot.counters", json!({"value": 1}), 0),
        ("channel.session.update", json!("nonsense"), 0),
        ("channel.session.update", json!({"data": 1}), 0),
        ("channel.session.reset", json!([]), 0),
        ("channel.tips", json!({"key": "x", "data": 1}), 0),
    ] {
        assert_eq!(session.hear(&event(topic, &data), 1).len(), changed, "{topic} {data}");
    }
    assert_eq!(
        serde_json::to_value(elements(&session)).unwrap(),
        json!({
            "stream.status": {
                "isLive": true, "status": "online", "since": "1970-01-01T00:00:01Z",
            },
            "chatbot.status": {"mod": true, "joined": true, "since": "1970-01-01T00:00:01Z"},
            "chatbot.counters.wrong-turns": 1,
        })
    );
}

#[test]
fn what_was_kept_is_known_and_its_age_too() {
    let mut session = Session::default();
    session.restore("tip-session".into(), json!({"amount": 5}), 77);
    session.restore("stream.status".into(), json!({"isLive": true}), 78);
    let ages: Vec<_> = session.iter().map(|(name, e)| (name, e.at, e.source)).collect();
    assert_eq!(ages, [("tip-session", 77, Source::Kept), ("stream.status", 78, Source::Kept)]);
    assert_eq!(session.merge(&Map::new(), 0, 90).unwrap().len(), 1, "facts are not fetched");
}

/// What can happen, in any order.
#[derive(Debug, Clone)]
enum Step {
    /// The server changes an element and says so.
    Update(u8, u8),
    /// It begins a new session and says so, in one of two forms.
    Reset(bool),
    /// The next event arrives.
    Arrive,
    /// The connection is lost, with all that was on its way, and nothing is heard until it is back.
    Disconnect,
    /// It is back: a snapshot is asked for, as after every such connect.
    Connect,
    /// A snapshot is asked for.
    Ask,
    /// The server answers the one that was asked for longest.
    Answer,
    /// The answer arrives.
    Take,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0_u8..6, 0_u8..4).prop_map(|(element, value)| Step::Update(element, value)),
        1 => any::<bool>().prop_map(Step::Reset),
        6 => Just(Step::Arrive),
        1 => Just(Step::Disconnect),
        2 => Just(Step::Connect),
        1 => Just(Step::Ask),
        2 => Just(Step::Answer),
        2 => Just(Step::Take),
    ]
}

/// A server, the way from it, and a relay: as the keeper drives a [`Session`].
#[derive(Default)]
struct World {
    server: Map<String, Value>,
    on_the_way: VecDeque<Event>,
    connected: bool,
    session: Session,
    seq: u64,
    /// Asked at that position, and the answer once it is given.
    fetch: Option<(u64, Option<Map<String, Value>>)>,
    again: bool,
    /// What somebody has who only sees the changes.
    follower: BTreeMap<String, Value>,
}

impl World {
    fn say(&mut self, topic: &str, data: &Value) {
        if self.connected {
            self.on_the_way.push_back(event(topic, data));
        }
    }

    fn follow(&mut self, changes: Vec<Change>) {
        for Change { element, before, after, .. } in changes {
            let known = match after {
                Some(value) => self.follower.insert(element, value),
                None => self.follower.remove(&element),
            };
            assert_eq!(known, before);
        }
    }

    fn ask(&mut self) {
        if self.fetch.is_none() {
            self.fetch = Some((self.seq, None));
        } else {
            self.again = true;
        }
    }

    fn take(&mut self) {
        let Some((since, Some(snapshot))) = self.fetch.take_if(|(_, answer)| answer.is_some())
        else {
            return;
        };
        let stale = match self.session.merge(&snapshot, since, 1) {
            Some(changes) => {
                self.follow(changes);
                false
            }
            None => true,
        };
        if stale || std::mem::take(&mut self.again) {
            self.ask();
        }
    }

    fn go(&mut self, step: &Step) {
        match *step {
            Step::Update(element, value) => {
                let (key, value) = (format!("element-{element}"), json!({ "amount": value }));
                self.server.insert(key.clone(), value.clone());
                self.say("channel.session.update", &json!({ "key": key, "data": value }));
            }
            Step::Reset(nested) => {
                self.server = map(&json!({"element-0": {"amount": 0}, "element-9": []}));
                let elements = Value::Object(self.server.clone());
                let data = if nested { json!({"session": {"data": elements}}) } else { elements };
                self.say("channel.session.reset", &data);
            }
            Step::Arrive => {
                if let Some(event) = self.on_the_way.pop_front() {
                    self.seq += 1;
                    let changes = self.session.hear(&event, self.seq);
                    self.follow(changes);
                }
            }
            Step::Disconnect => {
                self.on_the_way.clear();
                self.connected = false;
            }
            Step::Connect => {
                if !self.connected {
                    self.connected = true;
                    self.ask();
                }
            }
            Step::Ask => self.ask(),
            Step::Answer => {
                if let Some((_, answer @ None)) = &mut self.fetch {
                    *answer = Some(self.server.clone());
                }
            }
            Step::Take => self.take(),
        }
    }
}

proptest! {
    #[test]
    fn in_every_order_it_ends_as_the_server_has_it(
        steps in proptest::collection::vec(step(), 0..120)
    ) {
        let mut world = World::default();
        for step in steps {
            world.go(&step);
        }
        // And then it becomes quiet, with a connection.
        world.go(&Step::Connect);
        for _ in 0..4 {
            while !world.on_the_way.is_empty() {
                world.go(&Step::Arrive);
            }
            world.go(&Step::Answer);
            world.go(&Step::Take);
        }
        let server: BTreeMap<_, _> = world.server.into_iter().collect();
        prop_assert_eq!(elements(&world.session), server.clone());
        prop_assert_eq!(world.follower, server);
    }
}
