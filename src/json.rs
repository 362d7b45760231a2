//! A JSON value that is kept: as its text, shared by all who hold it.
//!
//! What a session, the board and a change of either know is the same text, once in memory: a tree of it
//! would take some ten times the room, and be made anew for each of them. It is read where somebody
//! looks inside, which is where it has changed.
//!
//! The one thing to know: two of them are equal where their texts are. `5` and `5.0` are the same value
//! to [`crate::state`], and not here.

use std::{fmt, sync::Arc};

use serde_json::{Value, value::RawValue};

/// A JSON value as text.
#[derive(Clone)]
pub struct Json(Arc<RawValue>);

impl Json {
    /// The text.
    pub fn text(&self) -> &str {
        self.0.get()
    }

    /// The value. `None`: it is JSON, and too deep or of characters that do not exist.
    pub fn read(&self) -> Option<Value> {
        serde_json::from_str(self.text()).ok()
    }

    /// From its text; `None`: it is no JSON.
    pub fn from_text(text: &str) -> Option<Self> {
        serde_json::from_str::<&RawValue>(text).ok().map(Self::from)
    }
}

impl From<&RawValue> for Json {
    fn from(raw: &RawValue) -> Self {
        Self(raw.to_owned().into())
    }
}

impl From<&Value> for Json {
    fn from(value: &Value) -> Self {
        // A value is always JSON; were it not, nothing would be known of it.
        Self::from_text(&value.to_string()).unwrap_or_else(|| RawValue::NULL.into())
    }
}

impl PartialEq for Json {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.text() == other.text()
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_value_comes_back_as_it_went_in() {
        for value in [json!(null), json!("a \"b\""), json!({"a": [1, 2.5, {"b": true}]})] {
            let kept = Json::from(&value);
            assert_eq!(kept.read(), Some(value));
            assert_eq!(Json::from_text(kept.text()), Some(kept));
        }
        let spaced = Json::from_text(" {\"a\": 1} ").unwrap();
        assert_eq!((spaced.text(), spaced.read()), ("{\"a\": 1}", Some(json!({"a": 1}))));
        for text in ["", "{", "1 2", "nonsense"] {
            assert_eq!(Json::from_text(text), None, "{text}");
        }
        assert_eq!(Json::from_text(r#""\ud800""#).unwrap().read(), None);
    }
}
