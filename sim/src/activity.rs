//! Activities, and what they change in the session of their room: each change is published too.

#![expect(clippy::indexing_slicing, reason = "reading a JSON value by name yields null, no panic")]

use serde_json::{Map, Value, json};

use crate::{
    clock,
    options::{SessionKeys, SessionReset, SessionUpdate},
    session::older,
    sync::lock,
    world::World,
};

impl World {
    /// Publishes an activity, adds it to the history, and changes the session,
    /// whose changes are published too. What it lacks of `_id`, `channel` and times is added; its
    /// `_id` is returned.
    pub fn activity(&self, room: &str, mut activity: Value) -> String {
        let now = clock::rfc3339(clock::now());
        let mut sessions = lock(&self.sessions);
        let id = match activity["_id"].as_str() {
            Some(id) => id.to_owned(),
            None => sessions.hex_id(),
        };
        if let Value::Object(fields) = &mut activity {
            for (key, value) in [
                ("channel", room),
                ("provider", "twitch"),
                ("_id", &id),
                ("createdAt", &now),
                ("updatedAt", &now),
                ("activityId", &id),
            ] {
                fields.entry(key).or_insert_with(|| Value::from(value));
            }
        }
        let changed = sessions.of(room).map(|session| session.apply(&activity)).unwrap_or_default();
        self.publish("channel.activities", room, &activity);
        let provider = activity["provider"].as_str().unwrap_or("twitch");
        self.publish_changes(room, provider, Some(&id), changed);
        id
    }

    /// The session of a room as the REST API shows it.
    pub fn session(&self, room: &str) -> Value {
        let document = self.options.documents;
        lock(&self.sessions).of(room).map_or(Value::Null, |session| session.to_json(document))
    }

    /// Sets elements of a session and publishes each change.
    pub fn update_session(&self, room: &str, elements: Map<String, Value>) {
        let mut sessions = lock(&self.sessions);
        let Some(session) = sessions.of(room) else { return };
        let changed = elements.into_iter().map(|(key, value)| session.set(key, value)).collect();
        self.publish_changes(room, "twitch", None, changed);
    }

    /// Begins a new session and publishes it.
    pub fn reset_session(&self, room: &str) {
        let mut sessions = lock(&self.sessions);
        let id = sessions.hex_id();
        let Some(session) = sessions.of(room) else { return };
        session.reset(id, self.options.documents);
        let data = match self.options.session_reset {
            SessionReset::Elements => Value::Object(session.elements.clone()),
            SessionReset::Session => {
                json!({ "session": session.to_json(self.options.documents) })
            }
        };
        self.publish("channel.session.reset", room, data);
    }

    fn publish_changes(
        &self,
        room: &str,
        provider: &str,
        activity: Option<&str>,
        changed: Vec<(String, Value)>,
    ) {
        for (key, mut value) in changed {
            let key = match self.options.session_keys {
                SessionKeys::Rest => key,
                SessionKeys::Older => older(&key),
            };
            let update = match self.options.session_update {
                SessionUpdate::Value => json!({ "key": key, "data": value }),
                SessionUpdate::Whole => {
                    if let (Value::Object(fields), Some(id)) = (&mut value, activity) {
                        fields.insert("activityId".into(), id.into());
                    }
                    json!({ "key": key, "name": key, "data": value, "provider": provider,
                            "channel": room })
                }
            };
            self.publish("channel.session.update", room, update);
        }
    }
}
