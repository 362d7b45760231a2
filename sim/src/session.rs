//! The live session of each room, and the history of its activities.
//!
//! An activity changes the elements that a viewer would see change: latest, counts or amounts,
//! recent lists, the greatest gift. Weeks and months never end here; goals are not reset.

#![expect(clippy::indexing_slicing, reason = "reading a JSON value by name yields null, no panic")]

use std::collections::{HashMap, VecDeque};

use serde_json::{Map, Value, json};

use crate::{
    clock::{self, UnixMillis},
    ids::hex_id,
    options::Documents,
};

/// Activities, and items of each other history, kept for each room: ten pages of the largest size.
const KEEP: usize = 1000;
/// Entries of a `…-recent` list, as in the documentation's example.
const RECENT: usize = 25;
/// Rooms that can have a session: more than any test has.
const MAX_ROOMS: usize = 10_000;

/// Elements of a fresh session that count people or events.
const COUNTED: &[&str] = &["follower", "subscriber"];
/// Elements of a fresh session that add up amounts.
const SUMMED: &[&str] = &["cheer", "tip"];

/// Families of which the greatest gift is an element.
const WITH_TOP: &[&str] =
    &["tip", "cheer", "kicks", "superchat", "charityCampaignDonation", "cheerPurchase"];

/// Topics whose messages the REST API lists too, and the last part of the path where it does.
pub(crate) const LISTED: [(&str, &str); 3] = [
    ("channel.tips", "tips"),
    ("channel.tips.moderation", "moderation"),
    ("channel.loyalty.redemptions", "redemptions"),
];

/// The sessions of all rooms.
#[derive(Debug)]
pub(crate) struct Sessions {
    rooms: HashMap<String, Session>,
    random: fastrand::Rng,
}

/// The session of one room, as a pure model: a client that folds updates into a session of its own can
/// be compared with it.
#[derive(Debug)]
pub struct Session {
    id: String,
    room: String,
    last_reset: UnixMillis,
    created: UnixMillis,
    updated: UnixMillis,
    /// The elements, by name.
    pub elements: Map<String, Value>,
    pub(crate) settings: Value,
    /// Newest first.
    pub(crate) activities: VecDeque<Value>,
    /// What was published on each of the [`LISTED`] topics, newest first.
    pub(crate) lists: [VecDeque<Value>; LISTED.len()],
}

impl Sessions {
    pub(crate) fn new(seed: u64) -> Self {
        Self { rooms: HashMap::new(), random: fastrand::Rng::with_seed(seed) }
    }

    /// The session of a room, a fresh one where there was none. `None`: there are too many rooms.
    pub(crate) fn of(&mut self, room: &str) -> Option<&mut Session> {
        if !self.rooms.contains_key(room) {
            if self.rooms.len() >= MAX_ROOMS {
                return None;
            }
            let session = Session::new(hex_id(&mut self.random), room);
            self.rooms.insert(room.to_owned(), session);
        }
        self.rooms.get_mut(room)
    }

    /// An id such as activities and sessions have: 24 hex digits.
    pub(crate) fn hex_id(&mut self) -> String {
        hex_id(&mut self.random)
    }
}

impl Session {
    pub fn new(id: String, room: &str) -> Self {
        let now = clock::now();
        Self {
            id,
            room: room.to_owned(),
            last_reset: now,
            created: now,
            updated: now,
            elements: fresh(),
            settings: json!({ "autoReset": true, "calendar": false }),
            activities: VecDeque::new(),
            lists: Default::default(),
        }
    }

    /// As the REST API shows it.
    pub fn to_json(&self, document: Documents) -> Value {
        let mut session = json!({
            "_id": self.id,
            "provider": "twitch",
            "channel": self.room,
            "lastReset": clock::rfc3339(self.last_reset),
            "createdAt": clock::rfc3339(self.created),
            "updatedAt": clock::rfc3339(self.updated),
            "data": self.elements,
            "settings": self.settings,
        });
        if document == Documents::September2026 {
            session["__v"] = 0.into();
            if session["settings"].get("resetOnStart").is_none() {
                session["settings"]["resetOnStart"] = false.into();
            }
        }
        session
    }

    /// Begins a new session. In the current revision it has the goals, totals and latest of the one
    /// before.
    pub fn reset(&mut self, id: String, document: Documents) {
        self.id = id;
        self.last_reset = clock::now();
        self.updated = self.last_reset;
        let before = std::mem::replace(&mut self.elements, fresh());
        if document == Documents::September2026 {
            let kept = before.into_iter().filter(|(key, _)| !key.contains("session"));
            self.elements.extend(kept);
        }
    }

    /// Lists a message that the REST API shows too.
    pub(crate) fn list(&mut self, which: usize, item: Value) {
        if let Some(list) = self.lists.get_mut(which) {
            list.truncate(KEEP - 1);
            list.push_front(item);
        }
    }

    /// Sets an element; returns it.
    pub fn set(&mut self, key: String, value: Value) -> (String, Value) {
        self.updated = clock::now();
        self.elements.insert(key.clone(), value.clone());
        (key, value)
    }

    /// Notes an activity; returns the elements that it changed.
    pub fn apply(&mut self, activity: &Value) -> Vec<(String, Value)> {
        self.activities.truncate(KEEP - 1);
        self.activities.push_front(history_item(activity));
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let data = &activity["data"];
        let name = match text(&data["displayName"]) {
            empty if empty.is_empty() => text(&data["username"]),
            name => name,
        };
        let amount = data["amount"].as_f64().unwrap_or(1.0);
        let message = text(&data["message"]);
        let family = match activity["type"].as_str().unwrap_or_default() {
            "follow" => "follower",
            "channelPointsRedemption" => "channel-points",
            family @ ("subscriber"
            | "sponsor"
            | "superchat"
            | "tip"
            | "cheer"
            | "kicks"
            | "raid"
            | "host"
            | "merch"
            | "purchase"
            | "charityCampaignDonation"
            | "cheerPurchase") => family,
            _ => return Vec::new(),
        };
        let gift = json!({ "name": name, "amount": amount, "message": message });
        let latest = match family {
            "follower" => json!({ "name": name }),
            "subscriber" => json!({
                "name": name, "amount": amount, "tier": data["tier"], "message": message,
                "sender": data["sender"], "gifted": data["gifted"],
            }),
            "raid" | "host" => json!({ "name": name, "amount": amount }),
            "channel-points" => {
                let item = &data["redemption"];
                json!({ "name": name, "amount": amount, "message": message, "redemption": item })
            }
            _ => gift.clone(),
        };
        self.make_elements_of(family);
        let mut changed = vec![self.set(format!("{family}-latest"), latest)];
        match family {
            "follower" | "subscriber" | "sponsor" | "superchat" => {
                changed.extend(self.add(family, "count", 1.0));
            }
            "tip" | "cheer" | "kicks" => changed.extend(self.add(family, "amount", amount)),
            _ => {}
        }
        changed.extend(self.bump(format!("{family}-count"), "count", 1.0));
        if WITH_TOP.contains(&family) {
            changed.extend(self.greatest(family, &gift));
        }
        changed.extend(self.recent(family, &name, amount, activity));
        changed
    }

    /// A channel that never got any of some families has no such elements.
    fn make_elements_of(&mut self, family: &str) {
        let field = match family {
            "kicks" => "amount",
            "sponsor" | "superchat" => "count",
            _ => "",
        };
        if !field.is_empty() {
            for span in ["session", "week", "month", "total"] {
                self.elements.entry(format!("{family}-{span}")).or_insert(json!({ field: 0 }));
            }
            self.elements.entry(format!("{family}-goal")).or_insert(json!({ "amount": 0 }));
        }
        if matches!(family, "kicks" | "superchat") {
            self.elements.entry(format!("{family}-count")).or_insert(json!({ "count": 0 }));
        }
        let lists = ["kicks", "sponsor", "superchat", "charityCampaignDonation", "cheerPurchase"];
        if lists.contains(&family) {
            self.elements.entry(format!("{family}-recent")).or_insert_with(|| json!([]));
        }
    }

    /// Adds to what a family counts in each span of time.
    fn add(&mut self, family: &str, field: &str, more: f64) -> Vec<(String, Value)> {
        let spans = ["session", "week", "month", "total"].map(|span| (span, field));
        let all = spans.into_iter().chain([("goal", "amount")]);
        all.filter_map(|(span, field)| self.bump(format!("{family}-{span}"), field, more)).collect()
    }

    fn bump(&mut self, key: String, field: &str, more: f64) -> Option<(String, Value)> {
        let old = self.elements.get(&key)?.get(field)?.as_f64()?;
        Some(self.set(key, json!({ field: number(old + more) })))
    }

    /// The greatest gift of each span, where this one is greater.
    fn greatest(&mut self, family: &str, gift: &Value) -> Vec<(String, Value)> {
        let amount = gift["amount"].as_f64().unwrap_or_default();
        let mut changed = Vec::new();
        for span in ["session", "weekly", "monthly", "alltime"] {
            let key = format!("{family}-{span}-top-donation");
            let old = self.elements.get(&key).and_then(|old| old["amount"].as_f64());
            if old.unwrap_or_default() < amount {
                changed.push(self.set(key, gift.clone()));
            }
        }
        changed
    }

    fn recent(
        &mut self,
        family: &str,
        name: &str,
        amount: f64,
        activity: &Value,
    ) -> Option<(String, Value)> {
        let key = format!("{family}-recent");
        let mut list = self.elements.get(&key)?.as_array()?.clone();
        let mut entry = json!({ "name": name, "createdAt": activity["createdAt"] });
        if family != "follower" {
            entry["amount"] = number(amount);
        }
        list.insert(0, entry);
        list.truncate(RECENT);
        Some(self.set(key, Value::Array(list)))
    }
}

/// `latest_follower` for `follower-latest`, as the page of the topic has it.
pub fn older(key: &str) -> String {
    let turned = key.strip_suffix("-latest").map(|family| format!("latest-{family}"));
    turned.as_deref().unwrap_or(key).replace('-', "_")
}

/// An activity as the history has it: without what only the live message carries, and with what every
/// item of the documented history has.
fn history_item(activity: &Value) -> Value {
    let mut item = activity.clone();
    if let Value::Object(fields) = &mut item {
        for key in ["activityId", "sessionEventsCount", "updatedAt"] {
            fields.remove(key);
        }
    }
    if let Some(Value::Object(data)) = item.get_mut("data") {
        data.entry("tier").or_insert_with(|| "1000".into());
        data.entry("avatar").or_insert_with(|| "https://sim.invalid/avatars/lantern.png".into());
    }
    item
}

/// A whole number without a fraction, as a counter is written.
fn number(value: f64) -> Value {
    #[expect(clippy::cast_possible_truncation, reason = "checked to be whole and small")]
    if value.fract() == 0.0 && value.abs() < 1e15 {
        Value::from(value as i64)
    } else {
        // Sums of money: cents, not the dust of binary fractions.
        Value::from((value * 100.0).round() / 100.0)
    }
}

/// The elements of a session in which nothing has happened yet.
fn fresh() -> Map<String, Value> {
    let mut all = Map::new();
    let count = || json!({ "count": 0 });
    let amount = || json!({ "amount": 0 });
    let gift = || json!({ "name": "", "amount": 0, "message": "" });
    for family in COUNTED {
        for span in ["session", "week", "month", "total"] {
            all.insert(format!("{family}-{span}"), count());
        }
        all.insert(format!("{family}-goal"), amount());
    }
    all.insert("follower-latest".into(), json!({ "name": "" }));
    all.insert(
        "subscriber-latest".into(),
        json!({ "name": "", "amount": 0, "tier": "", "message": "", "sender": null, "gifted": null }),
    );
    all.insert("subscriber-points".into(), amount());
    for kind in ["new", "resub", "gifted"] {
        all.insert(format!("subscriber-{kind}-latest"), gift());
        all.insert(format!("subscriber-{kind}-session"), count());
    }
    all.insert("subscriber-alltime-gifter".into(), json!({ "name": "", "amount": 0 }));
    for family in SUMMED {
        for span in ["session", "week", "month", "total", "goal"] {
            all.insert(format!("{family}-{span}"), amount());
        }
        all.insert(format!("{family}-count"), count());
        all.insert(format!("{family}-latest"), gift());
        for span in ["session", "weekly", "monthly", "alltime"] {
            all.insert(format!("{family}-{span}-top-donation"), gift());
            let donator = json!({ "name": "", "amount": 0 });
            all.insert(format!("{family}-{span}-top-donator"), donator);
        }
    }
    for family in ["host", "raid"] {
        all.insert(format!("{family}-latest"), json!({ "name": "", "amount": 0 }));
    }
    for part in ["orders", "items", "total"] {
        all.insert(format!("merch-goal-{part}"), amount());
    }
    for family in ["follower", "subscriber", "host", "raid", "cheer", "tip", "merch"] {
        all.insert(format!("{family}-recent"), json!([]));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session_model() -> Session {
        Session::new("0".repeat(24), "room")
    }

    #[test]
    fn a_tip_changes_what_a_viewer_would_see_change() {
        let mut session = session_model();
        let tip = |amount| {
            json!({ "type": "tip", "createdAt": "t", "_id": "1", "activityId": "1",
                    "data": { "username": "mossy", "amount": amount, "message": "hi" } })
        };
        session.apply(&tip(2.1));
        let changed = session.apply(&tip(0.2));
        assert_eq!(session.elements["tip-session"], json!({ "amount": 2.3 }));
        assert_eq!(session.elements["tip-count"], json!({ "count": 2 }));
        assert_eq!(session.elements["tip-alltime-top-donation"]["amount"], 2.1);
        assert_eq!(session.elements["tip-recent"][0]["amount"], 0.2);
        assert!(changed.iter().all(|(key, _)| !key.contains("top-donation")));
        assert_eq!(session.activities.len(), 2);
        assert!(session.activities[0].get("activityId").is_none());
    }

    #[test]
    fn each_family_of_the_reference_has_its_elements() {
        for (kind, latest, session) in [
            ("sponsor", "sponsor-latest", Some(("sponsor-session", json!({ "count": 1 })))),
            ("superchat", "superchat-latest", Some(("superchat-session", json!({ "count": 1 })))),
            ("kicks", "kicks-latest", Some(("kicks-session", json!({ "amount": 7 })))),
            ("channelPointsRedemption", "channel-points-latest", None),
            ("purchase", "purchase-latest", None),
            ("charityCampaignDonation", "charityCampaignDonation-latest", None),
            ("cheerPurchase", "cheerPurchase-latest", None),
        ] {
            let mut model = session_model();
            let data = json!({ "username": "mossy", "amount": 7 });
            model.apply(&json!({ "type": kind, "createdAt": "t", "data": data }));
            assert_eq!(model.elements[latest]["name"], "mossy", "{kind}");
            if let Some((element, value)) = session {
                assert_eq!(model.elements[element], value, "{kind}");
            }
            let top = format!("{}-alltime-top-donation", latest.trim_end_matches("-latest"));
            let expected = WITH_TOP.iter().any(|family| top.starts_with(family));
            assert_eq!(model.elements.contains_key(&top), expected, "{top}");
            assert_eq!(model.elements["tip-session"], json!({ "amount": 0 }));
        }
    }

    #[test]
    fn a_fresh_session_has_the_elements_of_the_documentation() {
        assert_eq!(fresh().len(), 62, "as many as the example has");
    }

    #[test]
    fn older_names_are_turned_round() {
        assert_eq!(older("follower-latest"), "latest_follower");
        assert_eq!(older("tip-session"), "tip_session");
    }
}
