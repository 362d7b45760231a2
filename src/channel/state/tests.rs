use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use astro_sim::{Documents, SessionModel as Model, older};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::{BYTES, Change, Elements, LARGEST, LONGEST, MOST, Session, Source, key_of, name, same};
use crate::{
    base::{
        event::{Event, own},
        json::Json,
    },
    channel::store::{Entry, Section, StateStore},
};

fn event(topic: &str, data: &Value) -> Event {
    own(topic, &"main".into(), &"r".into(), data, 1000)
}

fn update(session: &mut Session, key: &str, value: &Value) -> Vec<Change> {
    session.fold(&event("channel.session.update", &json!({ "key": key, "data": value })), 1)
}

/// A snapshot as the server writes it.
fn snapshot(value: &Value) -> Elements {
    serde_json::from_str(&value.to_string()).unwrap()
}

fn merge(session: &mut Session, value: &Value, since: u64) -> Vec<Change> {
    session.merge(&snapshot(value), since, since + 1, Source::Fetched).unwrap()
}

fn elements(session: &Session) -> BTreeMap<String, Value> {
    session.iter().map(|(name, value)| (name.to_string(), value.read())).collect()
}

fn json(value: &Value) -> Json {
    value.into()
}

#[test]
fn the_state_of_a_channel_is_bounded_in_number_and_in_bytes() {
    let mut session = Session::default();
    let counter = |session: &mut Session, name: &str, value: &Value| {
        let data = json!({"counter": name, "value": value});
        session.fold(&event("channel.chatbot.counters", &data), 1)
    };
    for number in 0..3 * MOST {
        update(&mut session, &format!("element-{number}"), &json!({"n": number}));
        counter(&mut session, &format!("counter {number}"), &json!(number));
    }
    assert_eq!(session.len(), MOST);
    assert_eq!(session.left_out(), 5 * MOST as u64);
    // What is known goes on changing, and what goes makes room.
    assert_eq!(update(&mut session, "element-0", &json!({"n": -1})).len(), 1);
    let all: Map<_, _> = (0..2 * MOST).map(|n| (format!("fetched-{n}"), json!({"n": n}))).collect();
    let reset = session.fold(&event("channel.session.reset", &Value::from(all)), 2);
    assert!(!reset.is_empty() && session.len() == MOST);

    let mut session = Session::default();
    let large = json!("x".repeat(LARGEST - 2));
    for number in 0..100 {
        update(&mut session, &format!("large-{number}"), &large);
    }
    let bytes: usize = session.iter().map(|(name, value)| name.len() + value.text().len()).sum();
    assert!(bytes <= BYTES && bytes > BYTES / 2, "{bytes}");
    // A value that no longer fits is not shown as it was.
    let gone = update(&mut session, "large-0", &json!("y".repeat(LARGEST)));
    assert_eq!((gone.len(), gone[0].after.as_ref()), (1, None));
    assert_eq!(update(&mut session, "large-0", &large).len(), 1, "and it may come again");
    assert!(update(&mut session, &"n".repeat(LONGEST + 1), &json!(1)).is_empty());
    let mut restored = Session::default();
    let taken =
        (0..3 * MOST).filter(|n| restored.restore(format!("e-{n}").into(), json(&json!(n))));
    assert_eq!(taken.count(), MOST);
}

#[test]
fn odd_updates_are_taken_in_all_the_same() {
    let mut session = Session::default();
    let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    for (topic, data, name, value) in [
        (
            "channel.session.update",
            r#"{"key":"tip-latest","data":{"name":"great \ud83d","amount":1e400}}"#.to_owned(),
            "tip-latest",
            json!({"name": "great \u{fffd}", "amount": "1e400"}),
        ),
        (
            "channel.session.update",
            format!(r#"{{"key":"deep","data":{deep}}}"#),
            "deep",
            serde_json::from_str(&deep).unwrap_or_default(),
        ),
        (
            "channel.session.update",
            r#"{"name":"cheer_latest","data":1}"#.to_owned(),
            "cheer-latest",
            json!(1),
        ),
        (
            "channel.chatbot.counters",
            r#"{"counter":7,"value":"\udc00"}"#.to_owned(),
            "chatbot.counters.7",
            json!("\u{fffd}"),
        ),
    ] {
        let event = crate::base::event::own_text(topic, &"main".into(), &"r".into(), &data, 1);
        assert_eq!(session.fold(&event, 1).len(), 1, "{data}");
        let found = elements(&session);
        if name == "deep" {
            assert_eq!(found[name].to_string(), deep);
        } else {
            assert_eq!(found[name], value, "{data}");
        }
    }
}

#[test]
fn both_spellings_are_the_same_element() {
    let mut session = Session::default();
    merge(&mut session, &json!({"follower-latest": {"name": ""}, "odd_one": 1}), 0);
    let known =
        |session: &Session, key: &str| name(key, |name| elements(session).contains_key(name));
    for (key, name) in [
        ("latest_follower", "follower-latest"),
        ("follower-latest", "follower-latest"),
        ("follower_latest", "follower-latest"),
        ("latest-subscriber-new", "subscriber-new-latest"),
        ("tip_session_top_donation", "tip-session-top-donation"),
        ("odd_one", "odd_one"),
        ("quite_new", "quite-new"),
    ] {
        assert_eq!(known(&session, key), name, "{key}");
    }
    let changes = update(&mut session, "latest_follower", &json!({"name": "Styler"}));
    let expected = Change {
        element: "follower-latest".into(),
        before: Some(json(&json!({"name": ""}))),
        after: Some(json(&json!({"name": "Styler"}))),
        source: Source::Live,
        activity: None,
        provider: None,
    };
    assert_eq!(changes, [expected]);
    merge(&mut session, &json!({"latest-thing": 1}), 1);
    assert_eq!(known(&session, "latest_thing"), "latest-thing", "it is known as it is");
}

#[test]
fn equal_values_are_no_change() {
    let mut session = Session::default();
    assert_eq!(update(&mut session, "tip-session", &json!({"amount": 5})).len(), 1);
    assert_eq!(update(&mut session, "tip_session", &json!({"amount": 5.0})), []);
    assert_eq!(update(&mut session, "tip-session", &json!({"amount": 5.5})).len(), 1);
    assert_eq!(update(&mut session, "tip-session", &json!({"amount": 5.5, "x": 1})).len(), 1);
}

#[test]
fn the_activity_behind_a_change_is_no_part_of_the_value() {
    let mut session = Session::default();
    merge(&mut session, &json!({"follower-latest": {"name": "Ada"}}), 0);
    let data = |name: &str, activity: &str| {
        json!({ "key": "follower-latest", "name": "follower-latest", "provider": "twitch",
                "channel": "c", "data": { "name": name, "activityId": activity } })
    };
    let mut fold = |data: &Value| session.fold(&event("channel.session.update", data), 1);
    assert_eq!(fold(&data("Ada", "a1")), [], "the value is the same");
    let [change] = fold(&data("Styler", "a2")).try_into().unwrap();
    assert_eq!(change.after, Some(json(&json!({"name": "Styler"}))));
    assert_eq!(change.activity.as_deref(), Some("a2"));
    assert_eq!(change.provider.as_deref(), Some("twitch"));
    assert_eq!(merge(&mut session, &json!({"follower-latest": {"name": "Styler"}}), 1), []);
    // A journal of an earlier version has it in the value.
    session.restore("follower-latest".into(), json(&json!({"name": "Styler", "activityId": "a2"})));
    assert_eq!(merge(&mut session, &json!({"follower-latest": {"name": "Styler"}}), 2), []);
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
        session.fold(&event("channel.stream.status", &json!({"isLive": true})), 2);
        let changes = session.fold(&event("channel.session.reset", &data), 3);
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
        assert_eq!(session.fold(&event(topic, &data), 1).len(), changed, "{topic} {data}");
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
fn a_status_with_a_new_field_that_is_not_boolean_is_a_status_all_the_same() {
    let mut session = Session::default();
    for (topic, data, name, status) in [
        ("channel.stream.status", json!({"isLive": true}), "isLive", true),
        ("channel.stream.status", json!({"isLive": false, "provider": "twitch"}), "isLive", false),
        ("channel.chatbot.status", json!({"banned": true, "by": {"name": "ann"}}), "banned", true),
    ] {
        assert_eq!(session.fold(&event(topic, &data), 1).len(), 1, "{topic} {data}");
        let found = elements(&session);
        let fact = &found[topic.trim_start_matches("channel.")];
        assert_eq!(fact[name], status, "{fact}");
        assert!(fact.get("provider").is_none() && fact.get("by").is_none(), "{fact}");
    }
    assert_eq!(elements(&session)["stream.status"]["status"], "offline");
    let other = event("channel.stream.status", &json!({"provider": "twitch"}));
    assert_eq!(session.fold(&other, 2), [], "nothing that is so or not");
}

#[test]
fn what_a_snapshot_includes_changes_nothing_when_it_is_folded_after_it() {
    let mut session = Session::default();
    let update = |session: &mut Session, amount: u64, seq: u64| {
        let data = json!({"key": "tip-goal", "data": {"amount": amount}});
        session.fold(&event("channel.session.update", &data), seq)
    };
    assert_eq!(update(&mut session, 1, 1).len(), 1);
    // Three events were received when it was asked for, and one was folded.
    assert_eq!(merge(&mut session, &json!({"tip-goal": {"amount": 3}}), 3).len(), 1);
    assert_eq!(update(&mut session, 2, 2), []);
    let reset = event("channel.session.reset", &json!({"tip-goal": {"amount": 0}}));
    assert_eq!(session.fold(&reset, 3), []);
    let status = event("channel.stream.status", &json!({"isLive": true}));
    assert_eq!(session.fold(&status, 3).len(), 1, "facts are not fetched");
    assert_eq!(elements(&session)["tip-goal"], json!({"amount": 3}));
    // One that was asked for earlier comes too late: the second event is not folded again.
    let older = snapshot(&json!({"tip-goal": {"amount": 1}}));
    assert_eq!(session.merge(&older, 1, 1, Source::Fetched), None);
    assert_eq!(update(&mut session, 4, 4).len(), 1);
    assert_eq!(session.fold(&reset, 5).len(), 1);
}

#[test]
fn restored_elements_are_known() {
    let mut session = Session::default();
    session.restore("tip-session".into(), json(&json!({"amount": 5})));
    session.restore("stream.status".into(), json(&json!({"isLive": true})));
    assert_eq!(session.iter().count(), session.len());
    assert_eq!(merge(&mut session, &json!({"tip-session": {"amount": 5}}), 0), []);
    assert_eq!(merge(&mut session, &json!({}), 0).len(), 1, "facts are not fetched");
    assert_eq!(elements(&session)["stream.status"], json!({"isLive": true}));
}

#[test]
fn a_snapshot_that_says_the_same_in_other_words_is_no_change() {
    let mut session = Session::default();
    assert_eq!(merge(&mut session, &json!({"tip-goal": {"amount": 5, "name": "x"}}), 0).len(), 1);
    for (text, changes) in [
        (r#"{"tip-goal": { "name": "x", "amount": 5.0 }}"#, 0),
        (r#"{"tip-goal": {"amount": 5, "name": "\u0078"}}"#, 0),
        (r#"{"tip-goal": {"amount": 5, "name": "y"}}"#, 1),
        // Half of a pair, whichever, reads as U+FFFD.
        (r#"{"tip-goal": "\ud800"}"#, 1),
        (r#"{"tip-goal": "\ud800"}"#, 0),
        (r#"{"tip-goal": "\ud801"}"#, 0),
    ] {
        let snapshot: Elements = serde_json::from_str(text).unwrap();
        let found = session.merge(&snapshot, 0, 1, Source::Fetched).unwrap();
        assert_eq!(found.len(), changes, "{text}");
    }
}

/// What can happen, in any order.
#[derive(Debug, Clone)]
enum Step {
    /// Something happens on the channel: the server changes several elements and says so.
    Activity(u8, u8),
    /// The server changes an element and says so; the last is one that a new session does not have.
    Set(u8, u8),
    /// It begins a new session and says so, in one of two forms.
    Reset(bool),
    /// The stream, the bot or a counter: only ever said.
    Fact(u8, u8),
    /// The next event arrives in the journal.
    Arrive,
    /// The next event of the journal is folded.
    Fold,
    /// The connection is lost, with all that was on its way, and nothing comes until it is back.
    Disconnect,
    /// It is back: a snapshot is asked for, as after every such connect.
    Connect,
    /// A snapshot is asked for.
    Ask,
    /// The server answers the one that was asked for longest.
    Answer,
    /// The answer arrives.
    Take,
    /// The relay is killed and started again: it has its journal, and what it had written down.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_u8..5, 0_u8..4).prop_map(|(kind, amount)| Step::Activity(kind, amount)),
        3 => (0_u8..4, 0_u8..4).prop_map(|(element, value)| Step::Set(element, value)),
        1 => any::<bool>().prop_map(Step::Reset),
        1 => (0_u8..3, 0_u8..2).prop_map(|(kind, value)| Step::Fact(kind, value)),
        9 => Just(Step::Arrive),
        9 => Just(Step::Fold),
        1 => Just(Step::Disconnect),
        2 => Just(Step::Connect),
        1 => Just(Step::Ask),
        2 => Just(Step::Answer),
        2 => Just(Step::Take),
        1 => Just(Step::Restart),
    ]
}

/// A server, the way from it, and a relay: as the keeper drives a [`Session`].
struct World {
    server: Model,
    /// Whether the server spells elements as the older documents do.
    older: bool,
    /// Which documents it follows: whether an update names its activity, and what a reset keeps.
    documents: Documents,
    activities: u32,
    on_the_way: VecDeque<Event>,
    connected: bool,
    /// Events that are in the journal and not yet folded, with their numbers.
    journal: VecDeque<(u64, Event)>,
    last: u64,
    session: Session,
    /// What is written down.
    kept: BTreeMap<Arc<str>, Json>,
    /// Asked at that position, and the answer once it is given.
    fetch: Option<(u64, Option<Map<String, Value>>)>,
    again: bool,
    store: StateStore,
    /// The last value of each fact.
    facts: BTreeMap<String, Value>,
}

impl World {
    fn new(older: bool, documents: Documents) -> Self {
        Self {
            server: Model::new("0".repeat(24), "r"),
            older,
            documents,
            activities: 0,
            on_the_way: VecDeque::new(),
            connected: false,
            journal: VecDeque::new(),
            last: 0,
            session: Session::default(),
            kept: BTreeMap::new(),
            fetch: None,
            again: false,
            store: StateStore::default(),
            facts: BTreeMap::new(),
        }
    }

    fn say(&mut self, topic: &str, data: &Value) {
        if self.connected {
            self.on_the_way.push_back(event(topic, data));
        }
    }

    fn say_changes(&mut self, changes: Vec<(String, Value)>) {
        for (key, mut value) in changes {
            let key = if self.older { older(&key) } else { key };
            let mut data = json!({ "key": key });
            if let (Documents::September2026, Value::Object(fields)) = (self.documents, &mut value)
            {
                self.activities += 1;
                fields.insert("activityId".into(), format!("a{}", self.activities).into());
                data = json!({ "key": key, "name": key, "provider": "twitch", "channel": "c" });
            }
            data["data"] = value;
            self.say("channel.session.update", &data);
        }
    }

    /// What becomes of changes: they are written down and put on the store.
    fn follow(&mut self, changes: Vec<Change>) {
        for Change { element, before, after, .. } in changes {
            let known = match &after {
                Some(value) => self.kept.insert(Arc::clone(&element), value.clone()),
                None => self.kept.remove(&element),
            };
            assert_eq!(known, before);
            if let (Some(before), Some(after)) = (before, &after) {
                let (before, after) = (before.read(), after.read());
                assert!(!same(&before, &after), "no change of {element}: {after}");
            }
            self.store.insert([(key_of(&"main".into(), &element), after)]);
        }
    }

    fn fold(&mut self) {
        if let Some((seq, event)) = self.journal.pop_front() {
            let changes = self.session.fold(&event, seq);
            self.follow(changes);
        }
    }

    fn ask(&mut self) {
        if self.fetch.is_none() {
            self.fetch = Some((self.last, None));
        } else {
            self.again = true;
        }
    }

    fn take(&mut self) {
        let Some((since, Some(snapshot))) = self.fetch.take_if(|(_, answer)| answer.is_some())
        else {
            return;
        };
        let snapshot = self::snapshot(&snapshot.into());
        let stale = match self.session.merge(&snapshot, since, 1, Source::Fetched) {
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

    fn restart(&mut self) {
        self.go(&Step::Disconnect);
        (self.fetch, self.again) = (None, false);
        (self.session, self.store) = (Session::default(), StateStore::default());
        for (name, value) in self.kept.clone() {
            self.store.insert([(key_of(&"main".into(), &name), Some(value.clone()))]);
            self.session.restore(name, value);
        }
    }

    fn go(&mut self, step: &Step) {
        match *step {
            Step::Activity(kind, amount) => {
                let kind = ["tip", "follow", "cheer", "subscriber", "raid"][usize::from(kind)];
                let data = json!({ "username": format!("u{amount}"), "amount": amount });
                let changes = self.server.apply(&json!({ "type": kind, "data": data }));
                self.say_changes(changes);
            }
            Step::Set(element, value) => {
                let key =
                    ["tip-goal", "follower-latest", "tip-recent", "odd-one"][usize::from(element)];
                let change = self.server.set(key.to_owned(), json!({ "amount": value }));
                self.say_changes(vec![change]);
            }
            Step::Reset(nested) => {
                self.server.reset("1".repeat(24), self.documents);
                let elements = Value::Object(self.server.elements.clone());
                let data = if nested { json!({"session": {"data": elements}}) } else { elements };
                self.say("channel.session.reset", &data);
            }
            Step::Fact(kind, value) => {
                let on = value == 1;
                let (topic, data) = match kind {
                    0 => ("channel.stream.status", json!({ "isLive": on })),
                    1 => ("channel.chatbot.status", json!({ "mod": on })),
                    _ => ("channel.chatbot.counters", json!({ "counter": "n", "value": value })),
                };
                self.say(topic, &data);
            }
            Step::Arrive => {
                if let Some(event) = self.on_the_way.pop_front() {
                    self.last += 1;
                    let data: Value = serde_json::from_slice(event.data()).unwrap();
                    match &*event.place.topic {
                        "channel.stream.status" => {
                            self.facts.insert("stream".into(), data["isLive"].clone())
                        }
                        "channel.chatbot.status" => {
                            self.facts.insert("bot".into(), data["mod"].clone())
                        }
                        "channel.chatbot.counters" => {
                            self.facts.insert("n".into(), data["value"].clone())
                        }
                        _ => None,
                    };
                    self.journal.push_back((self.last, event));
                }
            }
            Step::Fold => self.fold(),
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
                    *answer = Some(self.server.elements.clone());
                }
            }
            Step::Take => self.take(),
            Step::Restart => self.restart(),
        }
    }

    /// It becomes quiet, with a connection.
    fn settle(&mut self) {
        self.go(&Step::Connect);
        for _ in 0..4 {
            while !self.on_the_way.is_empty() {
                self.go(&Step::Arrive);
            }
            while !self.journal.is_empty() {
                self.go(&Step::Fold);
            }
            self.go(&Step::Answer);
            self.go(&Step::Take);
        }
    }

    /// What is in the store: elements of the session, and facts.
    fn posted(&self) -> (Value, BTreeMap<String, Value>) {
        let (mut elements, mut facts) = (Map::new(), BTreeMap::new());
        self.store.snapshot(|entries, _| {
            for (key, Entry { value, .. }) in entries {
                let value = value.read();
                match key.section {
                    Section::Session => drop(elements.insert(key.name.to_string(), value.clone())),
                    Section::Stream => drop(facts.insert("stream".into(), value["isLive"].clone())),
                    Section::Bot => drop(facts.insert("bot".into(), value["mod"].clone())),
                    Section::Counters => drop(facts.insert(key.name.to_string(), value.clone())),
                    Section::SessionInfo
                    | Section::Paid
                    | Section::Diagnostics
                    | Section::Status => panic!("{key:?}"),
                }
            }
        });
        (Value::Object(elements), facts)
    }
}

#[test]
fn a_payment_that_the_session_does_not_have_is_a_state_of_its_own() {
    let mut session = Session::default();
    let paid =
        |kind: &str, data: Value| event("channel.activities", &json!({"type": kind, "data": data}));
    let jewels = json!({"username": "ann", "displayName": "Ann", "amount": 7, "message": "hi"});
    let changes = session.fold(&paid("jewels", jewels), 1);
    assert_eq!(&*changes[0].element, "paid.jewels");
    let mut value = changes[0].after.as_ref().unwrap().read();
    assert!(value.as_object_mut().unwrap().remove("at").is_some());
    let expected = json!({"name": "Ann", "amount": 7, "message": "hi", "unit": "Jewels"});
    assert_eq!(value, expected);
    let data = json!({"username": "ann", "amount": "20", "currency": "USD"});
    let changes = session.fold(&paid("megaKicks", data), 2);
    let key = key_of(&"main".into(), &changes[0].element);
    assert_eq!((key.section, &*key.name), (Section::Paid, "megaKicks"));
    assert_eq!(changes[0].after.as_ref().unwrap().read()["currency"], "USD");
    for (kind, data) in [
        ("tip", json!({"amount": 5})),
        ("kicks", json!({"amount": 5})),
        ("raid", json!({"amount": 5})),
        ("megaKicks", json!({"username": "ann"})),
        ("megaKicks", json!({"amount": 5, "isMock": true})),
    ] {
        assert_eq!(session.fold(&paid(kind, data), 3), [], "{kind}");
    }
    // A snapshot and a reset know nothing of it.
    let data = json!({"tip-session": {"amount": 0}});
    session.fold(&event("channel.session.reset", &data), 4);
    session.merge(&snapshot(&data), 4, 1, Source::Fetched).unwrap();
    assert!(session.iter().any(|(name, _)| &**name == "paid.jewels"));
    let value = Json::from(&json!({"name": "Ann"}));
    let mut restored = Session::default();
    assert!(restored.restore("paid.jewels".into(), value));
    assert_eq!(restored.fold(&event("channel.session.reset", &data), 5).len(), 1);
}

proptest! {
    // Most of the time goes into reading resets of 62 elements each.
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn in_every_order_it_ends_as_the_server_has_it(
        steps in proptest::collection::vec(step(), 0..60),
        older in any::<bool>(),
        current in any::<bool>(),
    ) {
        let documents = if current { Documents::September2026 } else { Documents::March2026 };
        let mut world = World::new(older, documents);
        for step in steps {
            world.go(&step);
        }
        world.settle();
        let server = Value::Object(world.server.elements.clone());
        let (elements, facts) = world.posted();
        prop_assert!(same(&elements, &server), "{} is not {}", elements, server);
        prop_assert_eq!(facts, world.facts);
    }
}
