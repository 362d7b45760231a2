//! `/api/sessions`: what the session, the stream and the counters of each channel are now.
//!
//! The donor's personal data is not shown here.

use std::collections::BTreeMap;

use axum::{extract::State as Extract, http::StatusCode, response::Response};
use serde_json::{Map, Value};

use super::{State, json};
use crate::{
    channel::store::{Entry, Section, StateKey},
    delivery::route::Redactor,
};

pub(super) async fn sessions(Extract(state): Extract<State>) -> Response {
    let mut channels = state.store.snapshot(|entries, _| shown(entries));
    for (channel, status) in state.status.sessions.snapshot() {
        let channel = channels.entry(channel).or_insert_with(|| Map::new().into());
        if let (Value::Object(channel), Ok(status)) = (channel, serde_json::to_value(status)) {
            channel.insert("fetched".to_owned(), status);
        }
    }
    json(StatusCode::OK, &channels)
}

/// The sections of each channel that are shown.
fn shown(entries: &BTreeMap<StateKey, Entry>) -> Map<String, Value> {
    let redactor = Redactor::personal();
    let mut channels = Map::new();
    let shown = [Section::Session, Section::Stream, Section::Counters];
    for (key, entry) in entries {
        if key.channel.is_empty() || !shown.contains(&key.section) {
            continue;
        }
        let channel = channels.entry(&*key.channel).or_insert_with(|| Map::new().into());
        let Value::Object(channel) = channel else { continue };
        let (section, mut value) = (key.section.as_str(), entry.value.read());
        if key.section == Section::Session {
            redactor.element(&mut value);
        }
        if key.name.is_empty() {
            channel.insert(section.to_owned(), value);
        } else if let Value::Object(section) =
            channel.entry(section).or_insert_with(|| Map::new().into())
        {
            section.insert(key.name.to_string(), value);
        }
    }
    channels
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::shown;
    use crate::{
        base::json::Json,
        channel::store::{Section, StateKey, StateStore},
    };

    #[test]
    fn no_personal_data_of_a_donor_is_shown() {
        let store = StateStore::default();
        let tip = json!({ "name": "Ann", "amount": 5, "email": "donor@example.org",
            "more": { "transactionId": "t", "geo": { "city": "Bonn" } } });
        let mut key = StateKey::of("main", Section::Session);
        key.name = "tip-latest".into();
        let stream = StateKey::of("main", Section::Stream);
        let live = json!({ "isLive": true });
        store.insert([(key, Some(Json::from(&tip))), (stream, Some(Json::from(&live)))]);
        let tip = json!({ "name": "Ann", "amount": 5, "more": {} });
        let expected = json!({ "main": { "session": { "tip-latest": tip }, "stream": live } });
        assert_eq!(store.snapshot(|entries, _| json!(shown(entries))), expected);
    }
}
