//! Items of the histories in the shape of the live message.

use std::{borrow::Cow, sync::Arc};

use serde_json::Value;

use super::gap::{Gap, Missed};
use crate::{
    astro::rest::{History, HistoryItem},
    base::{
        clock,
        event::{self, Event, Origin, Place},
        json,
    },
};

/// The live message has an id of its own, which the history does not know; this one is the same whenever
/// the item is fetched.
pub(super) fn event(gap: &Gap, missed: &Missed, history: History, item: &HistoryItem) -> Event {
    let (topic, room) = (&*missed.topic, &missed.room);
    let id = format!("{}-{}", history.word(), item.id);
    let ts = clock::rfc3339(item.at);
    let data = item.item.get();
    let data: Cow<'_, str> = match data.trim_start().strip_prefix('{') {
        // The live message of an activity carries its id twice.
        Some(rest) if history == History::Activities && !has_activity_id(data) => {
            let id = Value::from(&*item.id);
            let comma = if rest.trim_start().starts_with('}') { "" } else { "," };
            Cow::Owned(format!(r#"{{"activityId":{id}{comma}{rest}"#))
        }
        _ => Cow::Borrowed(data),
    };
    let key = event::key::of(&id, &ts, topic, room, data.as_bytes());
    let (message, data) = event::envelope(&id, &ts, topic, room, &data);
    Event {
        id: id.into(),
        distinct_key: Some(key),
        place: Place::of(topic, Arc::clone(room), Arc::clone(&gap.channel)),
        ts: ts.into(),
        received: clock::now(),
        origin: Origin::Backfilled,
        message,
        data,
        may_have_personal_fields: true,
    }
}

/// Whether an item would have come as a live message. A tip that waits for a moderator, or was refused,
/// would not, and one that was deleted is not wanted.
pub(super) fn is_published(history: History, item: &HistoryItem) -> bool {
    if history != History::Tips {
        return true;
    }
    let item = json::value(item.item.get().as_bytes()).unwrap_or_default();
    let approved = item.get("approved").and_then(Value::as_str);
    let is_deleted = item.get("deleted").and_then(Value::as_bool);
    approved.is_none_or(|word| word.is_empty() || word == "allowed") && is_deleted != Some(true)
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

    fn item(text: &str) -> HistoryItem {
        let item = RawValue::from_string(text.trim().to_owned()).unwrap();
        HistoryItem { id: "5c09".to_owned(), kind: String::new(), at: 1_708_008_762_000, item }
    }

    #[test]
    fn an_item_of_the_history_reads_like_the_live_message() {
        let gap = gap();
        for more in ["", r#""activityId":"5c09",  "#] {
            let item = item(&format!(r#" {{ {more}"_id": "5c09", "type": "tip", "x": 1.0 }}"#));
            let event = event(&gap, &gap.missed[0], History::Activities, &item);
            let text = std::str::from_utf8(&event.message).unwrap();
            let Ok(ServerFrame::Message(envelope)) = read(text) else { panic!("{text}") };
            assert_eq!((&*envelope.topic, &*envelope.room), ("channel.activities", "r"));
            assert_eq!((&*envelope.id, &*envelope.ts), ("activity-5c09", "2024-02-15T14:52:42Z"));
            assert_eq!(envelope.data, event.data);
            let data: Value = serde_json::from_slice(event.data()).unwrap();
            assert_eq!(data, json!({"_id": "5c09", "activityId": "5c09", "type": "tip", "x": 1.0}));
        }
    }

    /// The vendor's own examples: the live message, and the item of its list.
    #[test]
    fn a_tip_and_a_redemption_have_the_key_of_the_live_message() {
        let gap = gap();
        let of = |topic: &str, history: History, text: &str| {
            let missed = Missed { topic: topic.into(), ..gap.missed[0].clone() };
            event(&gap, &missed, history, &item(text))
        };
        let live = r#"{"donation":{"user":{"username":"Styler","geo":"ZZ","email":"s@x.invalid","channel":"c"},
            "message":"","amount":4.2,"currency":"USD","paymentMethod":"scheme"},"_id":"5c09","channel":"c",
            "provider":"paypal","approved":"allowed","status":"success","createdAt":"2025-02-19T15:07:09.302Z",
            "updatedAt":"2025-02-19T15:07:17.099Z","transactionId":"2YH"}"#;
        let listed = r#"{"donation":{"user":{"username":"Styler","geo":null,"email":"s@x.invalid"},
            "message":"","amount":4.2,"currency":"USD"},"provider":"paypal","status":"success","deleted":false,
            "_id":"5c09","channel":"c","transactionId":"2YH","createdAt":"2025-02-19T15:07:09.302Z",
            "approved":"allowed","updatedAt":"2025-02-19T15:07:17.099Z"}"#;
        let tip = of("channel.tips", History::Tips, listed);
        let key = event::key::of("01J", "t", "channel.tips", "r", live.as_bytes());
        assert_eq!((tip.key(), &*tip.id), (&*key, "tip-5c09"));
        assert_eq!(tip.data(), listed.as_bytes(), "nothing is added");
        let live = r#"{"_id":"5c09","channel":"c","completed":false,"item":{"cost":9,"name":"horn"},"redeemer":{"username":"ann"}}"#;
        let listed = r#"{"_id":"5c09","item":{"name":"horn","_id":"1"},"redeemer":{"username":"ann","inactive":false},"channel":"c"}"#;
        let topic = "channel.loyalty.redemptions";
        let key = event::key::of("01J", "t", topic, "r", live.as_bytes());
        assert_eq!(of(topic, History::Redemptions, listed).key(), &*key);
        let done = live.replace("false", "true");
        assert_ne!(of(topic, History::Redemptions, &done).key(), &*key, "another state");
    }

    #[test]
    fn a_tip_that_never_came_through_is_not_one_that_was_missed() {
        for (text, published) in [
            (r#"{"approved":"allowed","deleted":false}"#, true),
            ("{}", true),
            (r#"{"approved":"pending"}"#, false),
            (r#"{"approved":"rejected"}"#, false),
            (r#"{"approved":"allowed","deleted":true}"#, false),
        ] {
            assert_eq!(is_published(History::Tips, &item(text)), published, "{text}");
            assert!(is_published(History::Redemptions, &item(text)));
        }
    }
}
