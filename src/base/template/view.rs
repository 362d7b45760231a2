//! An event as templates see it.

use std::{
    borrow::Cow,
    sync::{Arc, OnceLock},
};

use memchr::memmem;
use minijinja::{
    Value,
    value::{Enumerator, Object},
};

use super::{
    budget::{self, Mode},
    marks,
};
use crate::base::{event::Record, json};

/// Cheap to make: `data` is parsed on first use.
#[derive(Debug)]
pub struct View {
    record: Arc<Record>,
    /// What stands in place of the event's message, where something was taken out of it.
    redacted: Option<Redacted>,
    data: OnceLock<Value>,
}

/// A message out of which something was taken.
#[derive(Debug, Clone)]
pub struct Redacted {
    pub message: bytes::Bytes,
    pub data: bytes::Bytes,
}

/// Keys of a [`View`].
pub(super) const KEYS: &[&str] = &["channel", "topic", "room", "id", "ts", "origin", "data", "raw"];

impl View {
    /// The event as it came.
    pub fn of(record: Arc<Record>) -> Value {
        Self::redacted(record, None)
    }

    /// The event with something taken out.
    pub fn redacted(record: Arc<Record>, redacted: Option<Redacted>) -> Value {
        Value::from_object(Self { record, redacted, data: OnceLock::new() })
    }

    fn data(&self) -> &Value {
        self.data.get_or_init(|| {
            let text = match &self.redacted {
                Some(redacted) => &redacted.data,
                None => self.record.event.data(),
            };
            if may_hold_marks(text) {
                let mut value = json::value(text).unwrap_or_default();
                unmark(&mut value);
                return serde_json::from_value(value).unwrap_or_default();
            }
            json::read(text).unwrap_or_default()
        })
    }

    fn raw(&self) -> Value {
        let message = self.redacted.as_ref().map_or(&self.record.event.message, |r| &r.message);
        Value::from(marks::unmarked(&String::from_utf8_lossy(message)))
    }
}

/// Whether a JSON text may hold one of the characters that values are marked with.
fn may_hold_marks(text: &[u8]) -> bool {
    let parts: [&[u8]; 6] = [b"\xef\xb7", b"\xee\x83", b"\\uf", b"\\uF", b"\\ue", b"\\uE"];
    parts.iter().any(|part| memmem::find(text, part).is_some())
}

fn unmark(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::String(text) => {
            if let Cow::Owned(changed) = marks::unmarked(text) {
                *text = changed;
            }
        }
        serde_json::Value::Array(list) => list.iter_mut().for_each(unmark),
        serde_json::Value::Object(members) => {
            *members = std::mem::take(members)
                .into_iter()
                .map(|(name, mut value)| {
                    unmark(&mut value);
                    (marks::unmarked(&name).into_owned(), value)
                })
                .collect();
        }
        _ => {}
    }
}

impl Object for View {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let event = &self.record.event;
        let text = |text: &str| Some(Value::from(marks::unmarked(text)));
        // These are ours, or Astro's word for where we subscribed: they may have several levels.
        let place = |name: &str| match budget::mode() {
            Mode::Address { .. } => {
                Some(Value::from_safe_string(marks::unmarked(name).into_owned()))
            }
            Mode::Text | Mode::Json => text(name),
        };
        match key.as_str()? {
            "channel" => place(&event.place.channel),
            "topic" => place(&event.place.topic),
            "room" => text(&event.place.room),
            "id" => text(&event.id),
            "ts" => text(&event.ts),
            "origin" => text(event.origin.as_str()),
            "data" => Some(self.data().clone()),
            "raw" => Some(self.raw()),
            _ => None,
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Str(KEYS)
    }
}
