//! Taking fields out of a message, and leaving every other byte as it came.
//!
//! A path is followed from the message's own members. A donor's personal fields
//! ([`PERSONAL_FIELDS`](crate::config::PERSONAL_FIELDS)) go wherever a member of that name stands, in
//! whatever case and however it is escaped: the vendor does not say which other messages hold them.
//!
//! A message is JSON: the gateway's reader makes an event of nothing else (`what_is_no_json_is_no_event`).
//! So one of which no member has one of the names goes on as it is, after a quick walk. One that has to
//! be cut is read as JSON once more before, and fails closed: what is none is an error and goes nowhere.
//! How deep it is makes no difference: it is walked once, with a stack of its own.

use std::{borrow::Cow, ops::Range};

use bytes::Bytes;
use serde_json::{Value, value::RawValue};

use crate::{
    base::{
        event::Event,
        json::{self, scan::Scanner},
        template::Redacted,
    },
    config::PERSONAL_FIELDS,
};

/// The fields to take out.
#[derive(Debug)]
pub(crate) struct Redactor {
    /// Paths as they are configured, by words; the first is `data`.
    paths: Vec<Vec<String>>,
    /// Which of them are not personal: they are followed.
    followed: Vec<usize>,
    /// The last words of those that are personal: they are taken out wherever they stand.
    names: Vec<String>,
}

/// A message that cannot be looked through.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RedactError {
    /// It is no UTF-8.
    #[error("it is no text")]
    Text(#[from] std::str::Utf8Error),
    /// It is no JSON.
    #[error("it is no JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A part that was found to be JSON is none.
    #[error("it cannot be walked through")]
    Walk,
}

impl Redactor {
    /// From paths such as `data.donation.user.email`. `*` stands for every element of a list or object.
    pub(crate) fn new(paths: &[String]) -> Result<Self, String> {
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
        let (personal, followed): (Vec<usize>, Vec<usize>) =
            (0..paths.len()).partition(|at| paths.get(*at).is_some_and(|path| is_personal(path)));
        let names: Vec<_> =
            personal.iter().filter_map(|at| paths.get(*at)?.last().cloned()).collect();
        Self { paths, followed, names }
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
    pub(super) fn apply(&self, event: &Event) -> Result<Option<Redacted>, RedactError> {
        if self.followed.is_empty() && (self.names.is_empty() || !event.may_have_personal_fields) {
            return Ok(None);
        }
        let text = std::str::from_utf8(&event.message)?;
        if !self.may_concern(text) {
            return Ok(None);
        }
        let _: &RawValue = serde_json::from_str(text)?;
        let cuts = self.cuts(text).ok_or(RedactError::Walk)?;
        if cuts.is_empty() {
            return Ok(None);
        }
        let mut message = String::with_capacity(text.len());
        let mut at = 0;
        for cut in &cuts {
            message.push_str(text.get(at..cut.start).ok_or(RedactError::Walk)?);
            at = cut.end;
        }
        message.push_str(text.get(at..).ok_or(RedactError::Walk)?);
        let moved = |place: usize| {
            let before = |cut: &Range<usize>| cut.end.min(place) - cut.start.min(place);
            place - cuts.iter().map(before).sum::<usize>()
        };
        let message = Bytes::from(message);
        let data = if event.data.is_empty() {
            Bytes::from_static(b"null")
        } else {
            message.slice(moved(event.data.start)..moved(event.data.end))
        };
        Ok(Some(Redacted { message, data }))
    }

    /// Takes the fields out of an element of the session. A path is followed as it lies in the event
    /// that updates the element, which has it under `data.data`. A donor's personal fields, where they
    /// are among the paths, go wherever they stand: the vendor does not say what an element may hold.
    pub(crate) fn element(&self, element: &mut Value) {
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

    /// A cheap look: most messages hold none of the names. Any escape may hide one, and so may a text that
    /// the quick walk does not take.
    fn may_concern(&self, text: &str) -> bool {
        let mut found = false;
        let mut scan = Scanner::new(text);
        let walked =
            scan.value_with_names(|name, is_plain| found |= !is_plain || self.is_named(name));
        found || walked.is_none() || scan.peek().is_some()
    }

    /// Whether a member of this name is one that may be taken out.
    fn is_named(&self, name: &str) -> bool {
        self.names.iter().any(|personal| personal.eq_ignore_ascii_case(name))
            || self.followed.iter().any(|path| {
                let last = self.paths.get(*path).and_then(|path| path.last());
                last.is_some_and(|last| last == name || last == "*")
            })
    }

    /// What is to be left out of a JSON text, in order. `None`: it is none.
    fn cuts(&self, text: &str) -> Option<Vec<Range<usize>>> {
        let mut walk = Scanner::new(text);
        let mut cuts: Vec<Range<usize>> = Vec::new();
        let mut open: Vec<Level> = Vec::new();
        let mut paths: Vec<(usize, usize)> = self.followed.iter().map(|path| (*path, 0)).collect();
        // Each turn is one value, and what ends behind it.
        loop {
            let bracket = walk.peek()?;
            if matches!(bracket, b'{' | b'[') {
                walk.expect(bracket)?;
                let (object, start) = (bracket == b'{', walk.at());
                let level = Level { object, paths, start, out: false, kept: None, lead: None };
                if !matches!(walk.peek()?, b'}' | b']') {
                    open.push(level);
                    paths = self.member(&mut walk, &mut open, &mut cuts)?;
                    continue;
                }
                walk.next()?;
            } else {
                walk.value()?;
            }
            // A value has ended, and perhaps with it what it stands in.
            loop {
                let Some(level) = open.last_mut() else {
                    return walk.peek().is_none().then_some(cuts);
                };
                level.ended(walk.at(), &mut cuts);
                if walk.next()? == b',' {
                    paths = self.member(&mut walk, &mut open, &mut cuts)?;
                    break;
                }
                open.pop();
            }
        }
    }

    /// Goes to the next member's or element's value, and answers the paths that go on in it.
    fn member(
        &self,
        walk: &mut Scanner<'_>,
        open: &mut [Level],
        cuts: &mut Vec<Range<usize>>,
    ) -> Option<Vec<(usize, usize)>> {
        let level = open.last_mut()?;
        walk.peek()?;
        level.begins(walk.at(), cuts);
        let name = if level.object {
            let name = unescaped(walk.string()?)?;
            walk.expect(b':')?;
            Some(name)
        } else {
            None
        };
        let mut below = Vec::new();
        let mut out = name.as_ref().is_some_and(|name| {
            self.names.iter().any(|personal| personal.eq_ignore_ascii_case(name))
        });
        for (path, depth) in &level.paths {
            let words = self.paths.get(*path)?;
            let word = words.get(*depth)?;
            if word == "*" || name.as_ref().is_some_and(|name| name == word) {
                if depth + 1 == words.len() {
                    out = true;
                } else {
                    below.push((*path, depth + 1));
                }
            }
        }
        if out {
            level.leave_out();
        }
        Some(below)
    }
}

/// An object or a list around the place.
struct Level {
    object: bool,
    /// The paths that lead here, each with how many of its words are behind.
    paths: Vec<(usize, usize)>,
    /// Where the present member begins, and whether it is left out.
    start: usize,
    out: bool,
    /// Where the last member ended that stays. What is left out behind it goes with the comma in front.
    kept: Option<usize>,
    /// Where those begin that are left out before any stays. They go with the comma behind them.
    lead: Option<usize>,
}

impl Level {
    fn begins(&mut self, at: usize, cuts: &mut Vec<Range<usize>>) {
        if let (Some(lead), None) = (self.lead, self.kept) {
            push(cuts, lead..at);
        }
        (self.start, self.out) = (at, false);
    }

    fn leave_out(&mut self) {
        self.out = true;
        self.lead.get_or_insert(self.start);
    }

    fn ended(&mut self, at: usize, cuts: &mut Vec<Range<usize>>) {
        if self.out {
            push(cuts, self.kept.or(self.lead).unwrap_or(self.start)..at);
        } else {
            self.kept = Some(at);
        }
    }
}

/// Adds a cut; what it covers of earlier ones is gone anyway. It covers those that begin behind its start, and
/// touches no other: at least a bracket stays between.
fn push(cuts: &mut Vec<Range<usize>>, cut: Range<usize>) {
    while cuts.last().is_some_and(|last| last.start >= cut.start) {
        cuts.pop();
    }
    cuts.push(cut);
}

/// A name as it is written, read.
fn unescaped(name: &str) -> Option<Cow<'_, str>> {
    if name.contains('\\') {
        return json::read::<String>(format!("\"{name}\"").as_bytes()).ok().map(Cow::Owned);
    }
    Some(name.into())
}

fn is_personal(path: &[String]) -> bool {
    PERSONAL_FIELDS.iter().any(|field| field.split('.').eq(path))
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

/// Takes out every member of that name, in whatever case.
fn take_everywhere(value: &mut Value, name: &str) {
    match value {
        Value::Object(members) => {
            members.retain(|member, _| !member.eq_ignore_ascii_case(name));
            members.values_mut().for_each(|member| take_everywhere(member, name));
        }
        Value::Array(list) => list.iter_mut().for_each(|part| take_everywhere(part, name)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        astro::wire::{self, ServerFrame},
        base::event::{self, Origin, Place},
    };

    /// Values that are no JSON, or no text.
    const UNREADABLE: [&[u8]; 7] = [
        b"\"\xff\"", b"{\"email\":\"x\"", b"email=x", b"{\"a\":\"\xc3\x28\"}", b"{'email':1}",
        b"{\"a\":\"\x01\"}", b"",
    ];

    fn event(data: &str) -> Event {
        let before = r#"{"id":"1", "data":"#;
        Event {
            id: "1".into(),
            distinct_key: None,
            place: Place::of("t", "", ""),
            ts: "".into(),
            received: 0,
            origin: Origin::Live,
            message: format!("{before}{data} }}").into(),
            data: before.len()..before.len() + data.len(),
            may_have_personal_fields: true,
        }
    }

    fn redacted(paths: &[&str], data: &str) -> Option<String> {
        let paths: Vec<_> = paths.iter().map(|&path| path.to_owned()).collect();
        let redacted = Redactor::new(&paths).unwrap().apply(&event(data)).unwrap()?;
        let text = String::from_utf8(redacted.data.to_vec()).unwrap();
        assert_eq!(redacted.message, format!(r#"{{"id":"1", "data":{text} }}"#).as_bytes());
        serde_json::from_str::<&RawValue>(&text).unwrap();
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
            (
                r#"{"user":{"n":1,"email":2,"email":3,"k":[{}]},"user":{"email":1}}"#,
                Some(r#"{"user":{"n":1,"k":[{}]},"user":{}}"#),
            ),
            ("[]", None),
            ("\"email\"", None),
        ];
        for (data, expected) in cases {
            assert_eq!(redacted(&["data.user.email"], data).as_deref(), expected, "{data}");
        }
    }

    #[test]
    fn personal_fields_go_wherever_they_stand() {
        for (data, expected) in [
            (r#"{"email":"x"}"#, Some("{}")),
            (
                r#"{"a":[{"b":{"geo":{"deep":[1]},"k":1}},{"Email":2}]}"#,
                Some(r#"{"a":[{"b":{"k":1}},{}]}"#),
            ),
            (
                r#"{ "em\u0061il" : 1 , "k" : 2 , "EMAIL":3, "GEO" : [ ] , "z":4 }"#,
                Some(r#"{ "k" : 2 , "z":4 }"#),
            ),
            (
                r#"{"email":1,"email":2,"donation":{"paymentmethod":1,"paymentMethod":{}}}"#,
                Some(r#"{"donation":{}}"#),
            ),
            (r#"{"transactionId":1,"transactionId":2}"#, Some("{}")),
            (r#"{"k":"email","l":["geo"],"emails":1}"#, None),
            (r#"{"k":"\"email\":1"}"#, None),
        ] {
            assert_eq!(redacted(PERSONAL_FIELDS, data).as_deref(), expected, "{data}");
        }
        let deep = |inner: &str| format!("{}{inner}{}", "[".repeat(50_000), "]".repeat(50_000));
        let (with, without) = (deep(r#"{"email":1,"k":2}"#), deep(r#"{"k":2}"#));
        assert_eq!(redacted(PERSONAL_FIELDS, &with), Some(without));
        // Beside `data` too.
        let beside = Event {
            message: r#"{"email":1,"data":{"k":1,"geo":2},"geo":3}"#.into(),
            data: 18..33,
            ..event("")
        };
        let left = Redactor::personal().apply(&beside).unwrap().unwrap();
        assert_eq!(
            (&*left.message, &*left.data),
            (&br#"{"data":{"k":1}}"#[..], &br#"{"k":1}"#[..])
        );
        assert!(Redactor::new(&[]).unwrap().apply(&beside).unwrap().is_none());
    }

    #[test]
    fn what_cannot_be_read_goes_nowhere() {
        let text = |bytes: &[u8]| {
            let before = &b"{\"email\":1,\"name\":2,\"data\":"[..];
            let message = [before, bytes, b"}"].concat();
            Event {
                data: before.len()..before.len() + bytes.len(),
                message: message.into(),
                ..event("")
            }
        };
        let all: Vec<_> = PERSONAL_FIELDS.iter().map(|&path| path.to_owned()).collect();
        let some = ["data.user.*.name".to_owned()];
        for bytes in UNREADABLE {
            for redactor in [Redactor::new(&all).unwrap(), Redactor::new(&some).unwrap()] {
                assert!(
                    redactor.apply(&text(bytes)).is_err(),
                    "{}",
                    String::from_utf8_lossy(bytes)
                );
                assert_eq!(redactor.message(&text(bytes)), "null");
            }
        }
    }

    /// The other half of the promise: what has none of the names is not read again, for it was read.
    #[test]
    fn what_is_no_json_is_no_event() {
        for bytes in UNREADABLE {
            let frame =
                [&b"{\"type\":\"message\",\"topic\":\"t\",\"data\":"[..], bytes, b"}"].concat();
            let Ok(text) = std::str::from_utf8(&frame) else { continue };
            assert!(wire::read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_star_is_every_element() {
        let data = r#"{"tips":[{"email":"a","n":1},{"email":"b"}]}"#;
        let expected = r#"{"tips":[{"n":1},{}]}"#;
        assert_eq!(redacted(&["data.tips.*.email"], data).as_deref(), Some(expected));
    }

    #[test]
    fn a_name_that_cannot_be_found_between_its_quotes_is_taken_out_too() {
        for (path, data, expected) in [
            ("data.tips.*", r#"{"tips":[1,{"n":2}],"k":3}"#, r#"{"tips":[],"k":3}"#),
            ("data.tips.*", r#"{"tips":{"a":1,"b":2}}"#, r#"{"tips":{}}"#),
            ("data.a\"b", r#"{"a\"b":1,"k":2}"#, r#"{"k":2}"#),
            ("data.a\\b", r#"{"k":2,"a\\b":1}"#, r#"{"k":2}"#),
            ("data.a\tb", r#"{"a\tb":1,"k":2}"#, r#"{"k":2}"#),
            ("data.a/b", r#"{"a\/b":1,"k":2}"#, r#"{"k":2}"#),
        ] {
            assert_eq!(redacted(&[path], data).as_deref(), Some(expected), "{path}");
        }
    }

    #[test]
    fn most_messages_are_not_looked_through() {
        for (paths, text, concerned) in [
            (PERSONAL_FIELDS, r#"{"data":{"name":"x"}}"#, false),
            (PERSONAL_FIELDS, r#"{"emails":1,"xemail":2,"eabcd":3,"e":4}"#, false),
            (PERSONAL_FIELDS, r#"{"name":"a\nb"}"#, false),
            (PERSONAL_FIELDS, r#"{"name":"a\u000ab \"email\":"}"#, false),
            (PERSONAL_FIELDS, r#"{"k":[{"\u0065mail":1}]}"#, true),
            (PERSONAL_FIELDS, r#"{"":1,"é":2}"#, false),
            (PERSONAL_FIELDS, r#"{"a":1} x"#, true),
            (PERSONAL_FIELDS, r#"{"a":01}"#, true),
            (&["data.*"], r#"{"data":[1]}"#, true),
            (PERSONAL_FIELDS, r#"{"eMail":1}"#, true),
            (&["data.a.b"], r#"{"a":1,"bb":2,"email":3}"#, false),
            (&["data.a.b"], r#"{"b":1}"#, true),
        ] {
            let paths: Vec<_> = paths.iter().map(|&path| path.to_owned()).collect();
            assert_eq!(Redactor::new(&paths).unwrap().may_concern(text), concerned, "{text}");
        }
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
            (
                &["data.data.list.*", "data.data.name"],
                serde_json::json!({ "email": "a@b", "message": "hi", "list": [] }),
            ),
            (&["data.data.list.n", "data.data.list.x.n"], element.clone()),
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

    /// An event as the gateway's reader makes it, but for what it says of names.
    fn received(frame: &str) -> (Event, bool) {
        let ServerFrame::Message(envelope) = wire::read(frame).unwrap() else { panic!("{frame}") };
        let may_have_personal_fields = envelope.may_have_personal_fields();
        let data = envelope.data;
        (Event { message: frame.to_owned().into(), data, ..event("") }, may_have_personal_fields)
    }

    #[test]
    fn the_gateways_reader_notices_every_personal_name() {
        assert_eq!(Redactor::personal().names, event::PERSONAL_NAMES);
        for (member, noticed) in [
            (r#""data":{"email":1}"#, true),
            (r#""data":{"data":{"username":"u","GEO":1}}"#, true),
            (r#""data":{"donation":{"user":{"transactionid":1}}}"#, true),
            (r#""data":{"type":{"email":1}}"#, true),
            (r#""data":[[{"x":[{"paymentMethod":1}]}]]"#, true),
            (r#""data":{"a":{"\u0065mail":1}}"#, true),
            (r#""data":{"\u0065mail":1}"#, true),
            (r#""more":[{"Email":1}]"#, true),
            (r#""geo":1"#, true),
            (r#""data":{"name":"email","emails":{"geography":["geo"]}}"#, false),
            (r#""data":"\"email\":1""#, false),
            (r#""data":null"#, false),
        ] {
            let (_, found) = received(&format!(r#"{{"type":"message","topic":"t",{member}}}"#));
            assert_eq!(found, noticed, "{member}");
        }
    }

    fn named() -> impl Strategy<Value = Value> {
        let name = prop_oneof![
            proptest::sample::select(
                &["email", "GEO", "data", "donation", "user", "type", "k"][..]
            )
            .prop_map(str::to_owned),
            "\\PC{0,3}",
        ];
        let leaf =
            prop_oneof![any::<i32>().prop_map(Value::from), "\\PC{0,8}".prop_map(Value::from)];
        leaf.prop_recursive(4, 24, 4, move |inner| {
            prop_oneof![
                1 => prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                3 => prop::collection::btree_map(name.clone(), inner, 0..4)
                    .prop_map(|map| serde_json::json!(map)),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_has_none_of_the_names_by_the_gateways_reader_has_none(data in named(), beside in named()) {
            let frame = format!(r#"{{"type":"message","more":{beside},"topic":"t","data":{data}}}"#);
            let (event, may_have_personal_fields) = received(&frame);
            let cut = Redactor::personal().apply(&event).unwrap().is_some();
            proptest::prop_assert!(may_have_personal_fields || !cut, "{}", frame);
        }

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
