//! Taking fields out of a message, and leaving every other byte as it came.
//!
//! Numbers keep their digits and objects their order: only the objects on the way to a field are
//! written anew, all else is copied as it stands.

use std::{borrow::Cow, fmt, ops::Range};

use bytes::Bytes;
use memchr::memmem::Finder;
use serde::{Deserialize, Deserializer, de};
use serde_json::{Value, value::RawValue};

use crate::{config::PERSONAL_FIELDS, event::Event, template::Redacted};

/// The fields to take out.
#[derive(Debug)]
pub(crate) struct Redactor {
    paths: Vec<Vec<String>>,
    /// A message that holds none of these holds none of the fields: the last word of each path as JSON
    /// text, and an escape, behind which a name may hide. `None`: any message may.
    marks: Option<Vec<Finder<'static>>>,
    /// Whether all of the fields are personal: then [`Event::impersonal`] may say that none is there.
    personal: bool,
}

impl Redactor {
    /// From paths such as `data.donation.user.email`. `*` stands for every element of a list or object.
    pub(super) fn new(paths: &[String]) -> Result<Self, String> {
        let mut parsed = Vec::new();
        for path in paths {
            let words: Vec<_> = path.split('.').map(str::to_owned).collect();
            if words.iter().any(String::is_empty) {
                return Err(format!("{path:?} has an empty word"));
            }
            if words.first().is_some_and(|first| first != "data") || words.len() < 2 {
                return Err(format!("{path:?} does not lie in data"));
            }
            parsed.push(words);
        }
        Ok(Self::of(parsed))
    }

    fn of(paths: Vec<Vec<String>>) -> Self {
        let mark = |words: &Vec<String>| match words.last()?.as_str() {
            "*" => None,
            last => Some(Finder::new(&format!("\"{last}\"")).into_owned()),
        };
        let mut marks: Option<Vec<_>> = paths.iter().map(mark).collect();
        if let Some(marks) = marks.as_mut().filter(|marks| !marks.is_empty()) {
            marks.push(Finder::new("\\u"));
        }
        let personal = paths.iter().all(|path| is_personal(path));
        Self { paths, marks, personal }
    }

    /// What is taken out for those who only look: a donor's personal fields.
    pub(crate) fn personal() -> Self {
        let words = |path: &&str| path.split('.').map(str::to_owned).collect();
        Self::of(PERSONAL_FIELDS.iter().map(words).collect())
    }

    /// The message without the fields. One that cannot be read is not shown at all.
    pub(crate) fn message(&self, event: &Event) -> Bytes {
        match self.apply(event) {
            Ok(None) => event.message.clone(),
            Ok(Some(redacted)) => redacted.message,
            Err(_) => Bytes::from_static(b"null"),
        }
    }

    /// The message without the fields; `None` where it has none of them.
    pub(super) fn apply(&self, event: &Event) -> Result<Option<Redacted>, serde_json::Error> {
        if !self.may_concern(event) {
            return Ok(None);
        }
        let Ok(data) = std::str::from_utf8(event.data()) else { return Ok(None) };
        let data: &RawValue = serde_json::from_str(data)?;
        let paths: Vec<&[String]> = self.paths.iter().filter_map(|path| path.get(1..)).collect();
        let Some(data) = without(data, &paths)? else { return Ok(None) };
        let Range { start, end } = event.data.clone();
        let around = |range: Option<&[u8]>| range.unwrap_or_default().to_vec();
        let mut message = around(event.message.get(..start));
        message.extend_from_slice(data.as_bytes());
        message.extend_from_slice(&around(event.message.get(end..)));
        Ok(Some(Redacted { message: message.into(), data: Bytes::from(data) }))
    }

    /// Takes the fields out of an element of the session. A path is followed as it lies in the event
    /// that updates the element, which has it under `data.data`. A donor's personal fields, where they
    /// are among the paths, go wherever they stand: the vendor does not say what an element may hold.
    pub(super) fn element(&self, element: &mut Value) {
        for path in &self.paths {
            if let [data, inner, rest @ ..] = path.as_slice()
                && (data, inner.as_str()) == (&"data".to_owned(), "data")
                && !rest.is_empty()
            {
                take(element, rest);
            }
            if let (true, Some(name)) = (is_personal(path), path.last()) {
                take_everywhere(element, name);
            }
        }
    }

    /// A cheap look: most messages hold none of the fields.
    fn may_concern(&self, event: &Event) -> bool {
        let found =
            |marks: &Vec<Finder<'_>>| marks.iter().any(|mark| mark.find(event.data()).is_some());
        !(self.personal && event.impersonal) && self.marks.as_ref().is_none_or(found)
    }
}

fn is_personal(path: &[String]) -> bool {
    PERSONAL_FIELDS.iter().any(|field| field.split('.').eq(path))
}

/// `value` without what lies at `paths`; `None` if nothing does.
fn without(value: &RawValue, paths: &[&[String]]) -> Result<Option<String>, serde_json::Error> {
    let text = value.get();
    let (open, close) = match text.as_bytes().first() {
        Some(b'{') => ('{', '}'),
        Some(b'[') => ('[', ']'),
        _ => return Ok(None),
    };
    let members: Members<'_> = serde_json::from_str(text)?;
    let mut changed = false;
    let mut out = String::with_capacity(text.len());
    out.push(open);
    for (name, member) in &members.0 {
        let below: Vec<&[String]> = paths
            .iter()
            .filter_map(|path| path.split_first())
            .filter(|(first, _)| {
                first.as_str() == "*" || name.as_ref().is_some_and(|name| *name == first.as_str())
            })
            .map(|(_, rest)| rest)
            .collect();
        if below.iter().any(|rest| rest.is_empty()) {
            changed = true;
            continue;
        }
        let inner = if below.is_empty() { None } else { without(member, &below)? };
        if out.len() > 1 {
            out.push(',');
        }
        if let Some(name) = name {
            out.push_str(&serde_json::to_string(name)?);
            out.push(':');
        }
        match inner {
            Some(inner) => {
                changed = true;
                out.push_str(&inner);
            }
            None => out.push_str(member.get()),
        }
    }
    out.push(close);
    Ok(changed.then_some(out))
}

/// Takes out what lies at `path`.
fn take(value: &mut Value, path: &[String]) {
    let Some((first, rest)) = path.split_first() else { return };
    let here = |name: &str| first == "*" || first == name;
    match value {
        Value::Object(members) if rest.is_empty() => members.retain(|name, _| !here(name)),
        Value::Object(members) => {
            let below = members.iter_mut().filter(|(name, _)| here(name));
            below.for_each(|(_, member)| take(member, rest));
        }
        Value::Array(list) if first == "*" && rest.is_empty() => list.clear(),
        Value::Array(list) if first == "*" => list.iter_mut().for_each(|part| take(part, rest)),
        _ => {}
    }
}

/// Takes out every member of that name.
fn take_everywhere(value: &mut Value, name: &str) {
    match value {
        Value::Object(members) => {
            members.remove(name);
            members.values_mut().for_each(|member| take_everywhere(member, name));
        }
        Value::Array(list) => list.iter_mut().for_each(|part| take_everywhere(part, name)),
        _ => {}
    }
}

/// The members of an object (with names) or of a list (without), in order, their values untouched.
struct Members<'a>(Vec<(Option<Cow<'a, str>>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object or a list")
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, &'de RawValue>()? {
                    members.push((Some(Cow::Owned(name)), value));
                }
                Ok(Members(members))
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(value) = seq.next_element::<&'de RawValue>()? {
                    members.push((None, value));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Origin, Place};

    fn event(data: &str) -> Event {
        let before = r#"{"id":"1", "data":"#;
        Event {
            id: "1".into(),
            distinct_key: None,
            place: Place::of("t", "", ""),
            impersonal: false,
            ts: "".into(),
            received: 0,
            origin: Origin::Live,
            message: format!("{before}{data} }}").into(),
            data: before.len()..before.len() + data.len(),
        }
    }

    fn redacted(paths: &[&str], data: &str) -> Option<String> {
        let paths: Vec<_> = paths.iter().map(|&path| path.to_owned()).collect();
        let redacted = Redactor::new(&paths).unwrap().apply(&event(data)).unwrap()?;
        let text = String::from_utf8(redacted.data.to_vec()).unwrap();
        assert_eq!(redacted.message, format!(r#"{{"id":"1", "data":{text} }}"#).as_bytes());
        Some(text)
    }

    #[test]
    fn fields_are_taken_out_and_all_else_stays() {
        let cases = [
            (
                r#"{"a":12.50,"user":{"email":"x@y","n":1e3},"z":[1]}"#,
                Some(r#"{"a":12.50,"user":{"n":1e3},"z":[1]}"#),
            ),
            (r#"{"user":{"email":"x@y"}}"#, Some(r#"{"user":{}}"#)),
            (r#"{"user":{"name":"email"}}"#, None),
            (r#"{"email":"not on the path"}"#, None),
            (r#"{"user":{"\u0065mail":"hidden"}}"#, Some(r#"{"user":{}}"#)),
            (r#"{"user":{"email":1,"email":2,"k":3}}"#, Some(r#"{"user":{"k":3}}"#)),
            (r#"{"user":["email"]}"#, None),
            ("[]", None),
            ("\"email\"", None),
        ];
        for (data, expected) in cases {
            assert_eq!(redacted(&["data.user.email"], data).as_deref(), expected, "{data}");
        }
    }

    #[test]
    fn what_is_known_to_be_impersonal_is_not_looked_through_for_personal_fields_alone() {
        // It says something that is not so: what it holds would be found.
        let event = Event { impersonal: true, ..event(r#"{"transactionId":"T","name":"N"}"#) };
        let changed = |paths: &[&str]| {
            let paths: Vec<_> = paths.iter().map(|&path| path.to_owned()).collect();
            Redactor::new(&paths).unwrap().apply(&event).unwrap().is_some()
        };
        assert!(!changed(PERSONAL_FIELDS));
        assert!(!changed(&["data.transactionId"]));
        assert!(changed(&["data.transactionId", "data.name"]));
        assert!(changed(&["data.name"]));
        assert!(Redactor::personal().apply(&event).unwrap().is_none());
    }

    #[test]
    fn a_star_is_every_element() {
        let data = r#"{"tips":[{"email":"a","n":1},{"email":"b"}]}"#;
        let expected = r#"{"tips":[{"n":1},{}]}"#;
        assert_eq!(redacted(&["data.tips.*.email"], data).as_deref(), Some(expected));
    }

    #[test]
    fn an_element_of_the_session_loses_what_its_update_would_and_a_donors_data_everywhere() {
        let element = serde_json::json!({
            "name": "Ann", "email": "a@b", "message": "hi",
            "list": [{"geo": "DE", "n": 1, "user": {"email": "a@b"}}],
        });
        for (paths, expected) in [
            (
                &["data.donation.user.email", "data.donation.user.geo"][..],
                serde_json::json!({
                    "name": "Ann", "message": "hi", "list": [{"n": 1, "user": {}}],
                }),
            ),
            (
                &["data.data.message", "data.data.list.*.user", "data.data"],
                serde_json::json!({
                    "name": "Ann", "email": "a@b", "list": [{"geo": "DE", "n": 1}],
                }),
            ),
            (&["data.message", "data.name"], element.clone()),
        ] {
            let paths: Vec<_> = paths.iter().map(|&path| path.to_owned()).collect();
            let mut value = element.clone();
            Redactor::new(&paths).unwrap().element(&mut value);
            assert_eq!(value, expected, "{paths:?}");
        }
    }

    #[test]
    fn paths_outside_of_data_are_no_paths() {
        for path in ["", "data", "id", "data..a", "room.x"] {
            assert!(Redactor::new(&[path.to_owned()]).is_err(), "{path}");
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_in_it_the_field_is_gone(name in "[a-z]{1,5}", value in "\\PC{0,20}", other in "\\PC{0,20}") {
            let data = serde_json::json!({"user": {"email": value, "name": other}, &*name: 1.5}).to_string();
            let text = redacted(&["data.user.email"], &data);
            if name != "user" {
                let parsed: Value = serde_json::from_str(&text.unwrap()).unwrap();
                proptest::prop_assert!(parsed["user"].get("email").is_none());
                proptest::prop_assert_eq!(&parsed["user"]["name"], &Value::from(other));
            }
        }
    }
}
