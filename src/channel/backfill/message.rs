//! Activities of the history in the shape of the live message.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;

use super::gap::Gap;
use crate::{
    astro::rest::Activity,
    base::{
        clock,
        event::{self, Event, Origin, Place},
        json,
    },
    gateway::ACTIVITIES,
};

/// The live message has an id of its own, which the history does not know; this one is the same whenever
/// the activity is fetched.
pub(super) fn event(gap: &Gap, activity: &Activity) -> Event {
    let quote = |text: &str| Value::from(text).to_string();
    let id = format!("activity-{}", activity.id);
    let ts = clock::rfc3339(activity.at);
    let mut text = format!(
        r#"{{"id":{},"ts":{},"type":"message","topic":{},"room":{},"data":"#,
        quote(&id),
        quote(&ts),
        quote(ACTIVITIES),
        quote(&gap.room),
    );
    let start = text.len();
    let item = activity.item.get();
    match item.trim_start().strip_prefix('{') {
        // The live message carries its id twice.
        Some(rest) if !has_activity_id(item) => {
            text.push_str(r#"{"activityId":"#);
            text.push_str(&quote(&activity.id));
            if !rest.trim_start().starts_with('}') {
                text.push(',');
            }
            text.push_str(rest);
        }
        _ => text.push_str(item),
    }
    let end = text.len();
    text.push('}');
    let data = text.as_bytes().get(start..end).unwrap_or_default();
    let key = event::key::of(&id, &ts, ACTIVITIES, &gap.room, data);
    Event {
        id: id.into(),
        distinct_key: Some(key),
        place: Place::of(ACTIVITIES, Arc::clone(&gap.room), Arc::clone(&gap.channel)),
        ts: ts.into(),
        received: clock::now(),
        origin: Origin::Backfilled,
        message: Bytes::from(text),
        data: start..end,
    }
}

fn has_activity_id(item: &str) -> bool {
    let item = json::value(item.as_bytes()).unwrap_or_default();
    item.get("activityId").is_some_and(|id| !id.is_null())
}

#[cfg(test)]
mod tests {
    use serde_json::{json, value::RawValue};

    use super::{super::gap::tests::gap, *};
    use crate::astro::wire::{ServerFrame, read};

    #[test]
    fn an_item_of_the_history_reads_like_the_live_message() {
        for more in ["", r#""activityId":"5c09",  "#] {
            let item = format!(r#" {{ {more}"_id": "5c09", "type": "tip", "x": 1.0 }}"#);
            let item = RawValue::from_string(item.trim().to_owned()).unwrap();
            let (id, kind) = ("5c09".to_owned(), "tip".to_owned());
            let event = event(&gap(), &Activity { id, kind, at: 1_708_008_762_000, item });
            let text = std::str::from_utf8(&event.message).unwrap();
            let Ok(ServerFrame::Message(envelope)) = read(text) else { panic!("{text}") };
            assert_eq!((&*envelope.topic, &*envelope.room), ("channel.activities", "r"));
            assert_eq!((&*envelope.id, &*envelope.ts), ("activity-5c09", "2024-02-15T14:52:42Z"));
            assert_eq!(envelope.data, event.data);
            let data: Value = serde_json::from_slice(event.data()).unwrap();
            assert_eq!(data, json!({"_id": "5c09", "activityId": "5c09", "type": "tip", "x": 1.0}));
        }
    }
}
