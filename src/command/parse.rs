//! Addresses and payloads of commands: bytes in, a [`Command`] out, or the answer that says why not.
//!
//! It does no I/O and knows no transport. What an element can take is not known here: that depends on
//! the session, and is for [`super::executor`].
//!
//! An error never repeats the payload, which may be large and may be anything.

use serde_json::{Map, Number, Value};

use super::{Answer, Command, Failure, Order};
use crate::{config::Action, delivery::test_event::TestKind};

/// The longest payload. The largest element of a session, a list of the latest, has some three
/// kilobytes.
pub const PAYLOAD: usize = 16 * 1024;

/// The longest transaction: twice a UUID in its longest spelling, and room for a prefix.
const TRANSACTION: usize = 128;

/// The longest name of an element; the vendor's longest has 27 letters.
const ELEMENT: usize = 64;

/// What Home Assistant's button sends.
const PRESS: &str = "PRESS";

/// Numbers up to this are the same as integers and as floats.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// The command, or the answer that says why it is none.
pub fn command(channel: &str, path: &[&str], payload: &[u8]) -> Result<Command, Box<Answer>> {
    let mut answer = Answer {
        channel: channel.to_owned(),
        action: None,
        element: None,
        transaction: None,
        outcome: Ok(()),
    };
    match order(path, payload, &mut answer) {
        Ok(order) => {
            Ok(Command { channel: answer.channel, order, transaction: answer.transaction })
        }
        Err(failure) => {
            answer.outcome = Err(failure);
            Err(Box::new(answer))
        }
    }
}

/// Reads what is to be done; `answer` learns what could be made out.
fn order(path: &[&str], payload: &[u8], answer: &mut Answer) -> Result<Order, Failure> {
    let (action, element) = match path {
        ["session", "set"] => (Action::Set, None),
        ["session", "set", element] => (Action::Set, Some(*element)),
        ["session", "reset"] => (Action::Reset, None),
        ["session", "reload"] => (Action::Reload, None),
        ["relay", "refresh"] => (Action::Refresh, None),
        ["relay", "test"] => (Action::Test, None),
        ["relay", "test", kind] => (Action::Test, Some(*kind)),
        _ => return Err(Failure::bad(404, "there is no such command")),
    };
    answer.action = Some(action);
    if payload.len() > PAYLOAD {
        return Err(Failure::bad(413, format!("the payload has more than {PAYLOAD} bytes")));
    }
    let text = std::str::from_utf8(payload)
        .map_err(|_| Failure::bad(400, "the payload is not UTF-8"))?
        .trim();
    match (action, element) {
        (Action::Set, Some(element)) => {
            let element = named(element)?;
            answer.element = Some(element.clone());
            Ok(Order::Set { element, value: bare(text)? })
        }
        (Action::Set, None) => set(text, answer),
        (Action::Reset, _) => alone(text, answer).map(|()| Order::Reset),
        (Action::Reload, _) => alone(text, answer).map(|()| Order::Reload),
        (Action::Refresh, _) => alone(text, answer).map(|()| Order::Refresh),
        (Action::Test, kind) => {
            let kind = kind.map_or(Ok(TestKind::Tip), str::parse);
            let kind = kind.map_err(|why: String| Failure::bad(404, why))?;
            alone(text, answer).map(|()| Order::Test(kind))
        }
    }
}

/// `{"element":…, "value":…, "transaction":…}`
fn set(text: &str, answer: &mut Answer) -> Result<Order, Failure> {
    let mut fields = object(text)?;
    answer.transaction = transaction(&mut fields)?;
    let Some(Value::String(element)) = fields.remove("element") else {
        return Err(Failure::bad(400, "element is missing, or no text"));
    };
    let element = named(&element)?;
    answer.element = Some(element.clone());
    let value = fields.remove("value").ok_or_else(|| Failure::bad(400, "value is missing"))?;
    let value = valid(value)?;
    if !fields.is_empty() {
        return Err(Failure::bad(400, "only element, value and transaction were expected"));
    }
    Ok(Order::Set { element, value })
}

/// The payload of a command that needs none: nothing, `PRESS`, or a transaction.
fn alone(text: &str, answer: &mut Answer) -> Result<(), Failure> {
    if text.is_empty() || text == PRESS {
        return Ok(());
    }
    let mut fields = object(text)?;
    answer.transaction = transaction(&mut fields)?;
    if fields.is_empty() { Ok(()) } else { Err(Failure::bad(400, "only transaction was expected")) }
}

fn object(text: &str) -> Result<Map<String, Value>, Failure> {
    serde_json::from_str(text).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        let message = format!("a JSON object was expected (line {line}, column {column})");
        Failure::bad(400, message)
    })
}

/// Takes the transaction out of an object.
fn transaction(fields: &mut Map<String, Value>) -> Result<Option<Value>, Failure> {
    match fields.remove("transaction") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if (1..=TRANSACTION).contains(&text.len()) => {
            Ok(Some(Value::String(text)))
        }
        Some(Value::Number(number)) if !number.is_f64() => Ok(Some(Value::Number(number))),
        Some(_) => {
            let expected = format!(
                "transaction is neither a whole number nor a text of 1 to {TRANSACTION} bytes"
            );
            Err(Failure::bad(400, expected))
        }
    }
}

/// A name that an element can have. Others would only make the server wonder.
fn named(element: &str) -> Result<String, Failure> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if (1..=ELEMENT).contains(&element.len()) && element.bytes().all(fits) {
        return Ok(element.to_owned());
    }
    let expected = format!("an element's name has 1 to {ELEMENT} letters, digits, - and _");
    Err(Failure::bad(400, expected))
}

/// A value that is the whole payload: JSON, or a plain text.
fn bare(text: &str) -> Result<Value, Failure> {
    if text.is_empty() {
        return Err(Failure::bad(400, "the payload is empty: a value was expected"));
    }
    match serde_json::from_str(text) {
        Ok(value) => valid(value),
        // What begins as JSON was meant as JSON.
        Err(error) if text.starts_with(['{', '[', '"']) => {
            let (line, column) = (error.line(), error.column());
            Err(Failure::bad(400, format!("broken JSON (line {line}, column {column})")))
        }
        Err(_) => Ok(Value::String(text.to_owned())),
    }
}

/// A value that can be set. A number that only looks like a fraction is made a whole one: Home
/// Assistant writes `12.0`, and an overlay would show it so.
fn valid(value: Value) -> Result<Value, Failure> {
    match value {
        Value::Null => Err(Failure::bad(400, "null is no value of an element")),
        Value::Number(number) => Ok(Value::Number(whole(&number).unwrap_or(number))),
        value => Ok(value),
    }
}

fn whole(number: &Number) -> Option<Number> {
    let float = number.as_f64().filter(|_| number.is_f64())?;
    let exact = float.fract() == 0.0 && float.abs() <= EXACT;
    exact.then(|| format!("{float:.0}").parse::<i64>().ok()).flatten().map(Number::from)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(path: &str, payload: impl AsRef<[u8]>) -> Result<Command, Box<Answer>> {
        command("main", &path.split('/').collect::<Vec<_>>(), payload.as_ref())
    }

    #[test]
    fn every_command_is_read_in_every_spelling() {
        let set = |element: &str, value| Order::Set { element: element.into(), value };
        for (path, payload, order, transaction) in [
            (
                "session/set",
                r#"{"element":"tip-goal","value":{"amount":5},"transaction":"a-1"}"#,
                set("tip-goal", json!({"amount": 5})),
                Some(json!("a-1")),
            ),
            ("session/set", r#" {"value":5.0,"element":"x"} "#, set("x", json!(5)), None),
            (
                "session/set",
                r#"{"value":5,"element":"x","transaction":null}"#,
                set("x", json!(5)),
                None,
            ),
            ("session/set/tip-goal", "12", set("tip-goal", json!(12)), None),
            ("session/set/tip-goal", "12.0", set("tip-goal", json!(12)), None),
            ("session/set/tip-goal", "12.5\n", set("tip-goal", json!(12.5)), None),
            ("session/set/tip-goal", "-3.0", set("tip-goal", json!(-3)), None),
            ("session/set/tip-goal", "1e3", set("tip-goal", json!(1000)), None),
            ("session/set/tip-goal", "1e300", set("tip-goal", json!(1e300)), None),
            ("session/set/x", "mossy the cat", set("x", json!("mossy the cat")), None),
            ("session/set/x", "12,5", set("x", json!("12,5")), None),
            ("session/set/x", "\"12\"", set("x", json!("12")), None),
            (
                "session/set/latest_follower",
                r#"{"name":"a"}"#,
                set("latest_follower", json!({"name": "a"})),
                None,
            ),
            ("session/set/x", "[1,2]", set("x", json!([1, 2])), None),
            ("session/reset", "", Order::Reset, None),
            ("session/reset", "PRESS", Order::Reset, None),
            ("session/reset", r#"{"transaction":7}"#, Order::Reset, Some(json!(7))),
            ("session/reset", "{}", Order::Reset, None),
            ("session/reload", " \n", Order::Reload, None),
            ("relay/refresh", "PRESS", Order::Refresh, None),
        ] {
            let command = read(path, payload);
            let expected = Command { channel: "main".into(), order, transaction };
            assert_eq!(command, Ok(expected), "{path} {payload}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_answered_with_what_could_be() {
        let long = format!(r#"{{"transaction":"{}"}}"#, "x".repeat(TRANSACTION + 1));
        let huge =
            format!(r#"{{"transaction":"t","element":"x","value":"{}"}}"#, "x".repeat(PAYLOAD));
        for (path, payload, status, transaction) in [
            ("session/drop", &b"{}"[..], 404, false),
            ("session", b"", 404, false),
            ("", b"", 404, false),
            ("session/set/a/b", b"1", 404, false),
            ("session/reset/x", b"", 404, false),
            ("SESSION/SET", b"{}", 404, false),
            ("session/set", b"", 400, false),
            ("session/set", b"PRESS", 400, false),
            ("session/set", b"12", 400, false),
            ("session/set", b"[]", 400, false),
            ("session/set", br#"{"element":"x","value":1"#, 400, false),
            ("session/set", b"\xFF\xFE", 400, false),
            ("session/set", br#"{"value":1,"transaction":"t"}"#, 400, true),
            ("session/set", br#"{"element":1,"value":1,"transaction":"t"}"#, 400, true),
            ("session/set", br#"{"element":"x","transaction":"t"}"#, 400, true),
            ("session/set", br#"{"element":"x","value":null,"transaction":"t"}"#, 400, true),
            ("session/set", br#"{"element":"x","value":1,"transaction":"t","more":1}"#, 400, true),
            ("session/set", br#"{"element":"","value":1,"transaction":"t"}"#, 400, true),
            ("session/set", br#"{"element":"a.b","value":1,"transaction":"t"}"#, 400, true),
            ("session/set", br#"{"element":"../x","value":1,"transaction":"t"}"#, 400, true),
            ("session/set", br#"{"element":"x","value":1,"transaction":1.5}"#, 400, false),
            ("session/set", br#"{"element":"x","value":1,"transaction":""}"#, 400, false),
            ("session/set", br#"{"element":"x","value":1,"transaction":{}}"#, 400, false),
            ("session/set", huge.as_bytes(), 413, false),
            ("session/set/x", b"", 400, false),
            ("session/set/x", b"null", 400, false),
            ("session/set/x", br#"{"amount":"#, 400, false),
            ("session/set/x y", b"1", 400, false),
            ("session/reset", b"yes", 400, false),
            ("session/reset", b"press", 400, false),
            ("session/reset", br#"{"transaction":"t","sure":true}"#, 400, true),
            ("session/reset", long.as_bytes(), 400, false),
            ("relay/refresh", b"\xC3", 400, false),
        ] {
            let what = format!("{path} {}", String::from_utf8_lossy(payload));
            let answer = *read(path, payload).expect_err(&what);
            let failure = answer.outcome.clone().expect_err(&what);
            assert_eq!(failure.status, status, "{what}");
            assert_eq!(answer.transaction, transaction.then(|| json!("t")), "{what}");
            assert!(failure.error.len() < 100, "{failure:?}");
        }
    }

    proptest! {
        #[test]
        fn no_payload_panics_or_makes_a_large_answer(path in 0..6_usize, payload in any::<Vec<u8>>()) {
            let paths = ["session/set", "session/set/x", "session/reset", "session/reload", "relay/refresh", "x"];
            if let Err(answer) = read(paths[path], payload) {
                prop_assert!(answer.json().len() < 500);
            }
        }

        #[test]
        fn a_number_stays_the_number_that_it_is(number in any::<f64>()) {
            prop_assume!(number.is_finite());
            let text = format!("{number:?}");
            let Ok(Command { order: Order::Set { value, .. }, .. }) = read("session/set/x", &text) else {
                return Err(TestCaseError::fail("it is one"));
            };
            prop_assert_eq!(value.as_f64(), serde_json::from_str(&text).ok());
        }
    }
}
