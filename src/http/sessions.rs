//! `/api/sessions`: what the session, the stream and the counters of each channel are now.

use axum::{extract::State as Extract, http::StatusCode, response::Response};
use serde_json::{Map, Value};

use super::{State, json};
use crate::channel::store::Section;

pub(super) async fn sessions(Extract(state): Extract<State>) -> Response {
    let mut channels = state.store.snapshot(|entries, _| {
        let mut channels = Map::new();
        let shown = [Section::Session, Section::Stream, Section::Counters];
        for (key, entry) in entries {
            if key.channel.is_empty() || !shown.contains(&key.section) {
                continue;
            }
            let channel = channels.entry(&*key.channel).or_insert_with(|| Map::new().into());
            let Value::Object(channel) = channel else { continue };
            let (section, value) = (key.section.as_str(), entry.value.read());
            if key.name.is_empty() {
                channel.insert(section.to_owned(), value);
            } else if let Value::Object(section) =
                channel.entry(section).or_insert_with(|| Map::new().into())
            {
                section.insert(key.name.to_string(), value);
            }
        }
        channels
    });
    for (channel, status) in state.status.sessions.snapshot() {
        let channel = channels.entry(channel).or_insert_with(|| Map::new().into());
        if let (Value::Object(channel), Ok(status)) = (channel, serde_json::to_value(status)) {
            channel.insert("fetched".to_owned(), status);
        }
    }
    json(StatusCode::OK, &channels)
}
