//! Templates and conditions over an event, in Jinja.
//!
//! They are compiled when the configuration is read and can only look at one event: `channel`,
//! `topic`, `room`, `id`, `ts`, `origin`, `data`, and `raw` (the message as text). What is undefined
//! is an error in a comparison and empty in a template's output. A loop has a limit; the size of an
//! output has none, for it is the operator who writes templates.
//!
//! The one thing to know: the event's `data` is parsed when something asks for it, and not before.

use std::{
    collections::HashSet,
    sync::{Arc, LazyLock, OnceLock},
};

use minijinja::{
    Environment, UndefinedBehavior, Value,
    value::{Enumerator, Object},
};

use crate::event::Record;

/// Steps that one rendering or evaluation may take: enough for a loop over the largest real list
/// (a session's 62 elements), little enough to end an endless one within milliseconds.
const FUEL: u64 = 100_000;

/// Conditions: what is undefined is an error, so that `data.amount < 5` is not true of a follow.
static CONDITIONS: LazyLock<Environment<'static>> =
    LazyLock::new(|| environment(UndefinedBehavior::SemiStrict));

fn environment(undefined: UndefinedBehavior) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(undefined);
    environment.set_fuel(Some(FUEL));
    environment
}

/// An event as templates see it. Cheap to make: `data` is parsed on first use.
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
    /// The whole message.
    pub message: bytes::Bytes,
    /// Its `data`.
    pub data: bytes::Bytes,
}

/// Keys of a [`View`].
const KEYS: &[&str] = &["channel", "topic", "room", "id", "ts", "origin", "data", "raw"];

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
            // Nested deeper than the parser goes: such data is forwarded, but not looked into.
            serde_json::from_slice(text).unwrap_or(Value::UNDEFINED)
        })
    }

    fn raw(&self) -> Value {
        let message = self.redacted.as_ref().map_or(&self.record.event.message, |r| &r.message);
        Value::from(String::from_utf8_lossy(message))
    }
}

impl Object for View {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let event = &self.record.event;
        match key.as_str()? {
            "channel" => Some(Value::from(&*event.place.channel)),
            "topic" => Some(Value::from(&*event.place.topic)),
            "room" => Some(Value::from(&*event.place.room)),
            "id" => Some(Value::from(&*event.id)),
            "ts" => Some(Value::from(&*event.ts)),
            "origin" => Some(Value::from(event.origin.as_str())),
            "data" => Some(self.data().clone()),
            "raw" => Some(self.raw()),
            _ => None,
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Str(KEYS)
    }
}

/// A condition: a Jinja expression that is true or false of an event.
#[derive(Debug)]
pub struct Condition(minijinja::Expression<'static, 'static>);

impl Condition {
    /// Compiles it; the error says what is wrong with it.
    pub fn compile(text: &str) -> Result<Self, String> {
        let expression = CONDITIONS
            .compile_expression_owned(text.to_owned())
            .map_err(|error| error.to_string())?;
        unknown(&expression.undeclared_variables(false))?;
        Ok(Self(expression))
    }

    /// Whether it is true of the event that `view` shows. An error is no match; the caller counts it.
    pub fn holds(&self, view: &Value) -> Result<bool, minijinja::Error> {
        self.0.eval(view.clone()).map(|value| value.is_true())
    }
}

/// A template that renders an event to text.
#[derive(Debug)]
pub struct Template {
    environment: Environment<'static>,
    uses: HashSet<String>,
}

/// The only name in a template's own environment.
const NAME: &str = "template";

impl Template {
    /// Compiles it; the error says what is wrong with it.
    pub fn compile(text: &str) -> Result<Self, String> {
        let mut environment = environment(UndefinedBehavior::Lenient);
        environment.add_template_owned(NAME, text.to_owned()).map_err(|error| error.to_string())?;
        let uses = environment
            .get_template(NAME)
            .map_err(|error| error.to_string())?
            .undeclared_variables(false);
        unknown(&uses)?;
        Ok(Self { environment, uses })
    }

    /// Renders the event that `view` shows.
    pub fn render(&self, view: &Value) -> Result<String, minijinja::Error> {
        self.environment.get_template(NAME)?.render(view.clone())
    }

    /// Whether it looks at nothing but these variables.
    pub fn uses_only(&self, names: &[&str]) -> bool {
        self.uses.iter().all(|used| names.contains(&used.as_str()))
    }
}

/// A variable that no event has is a slip of the pen: better told now than never true.
fn unknown(used: &HashSet<String>) -> Result<(), String> {
    // Functions of the language count as variables too.
    let known = |name: &str| KEYS.contains(&name) || CONDITIONS.globals().any(|(n, _)| n == name);
    match used.iter().find(|name| !known(name)) {
        Some(name) => Err(format!("there is no variable {name:?}: use one of {}", KEYS.join(", "))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::event::{Event, Origin, Place};

    fn view(data: &str) -> Value {
        let message = format!(r#"{{"id":"1","data":{data}}}"#);
        let start = r#"{"id":"1","data":"#.len();
        View::of(Arc::new(Record::new(
            1,
            Event {
                id: "1".into(),
                distinct_key: None,
                place: Place::of("channel.tips", "", "main"),
                impersonal: false,
                ts: "2024-02-15T14:52:42Z".into(),
                received: 0,
                origin: Origin::Live,
                data: start..start + data.len(),
                message: Bytes::from(message),
            },
        )))
    }

    #[test]
    fn a_condition_looks_into_the_data() {
        let view = view(r#"{"donation":{"amount":5.5,"currency":"EUR"}}"#);
        for (text, expected) in [
            ("data.donation.amount >= 5", true),
            ("data.donation.amount >= 6", false),
            ("topic == 'channel.tips' and data.donation.currency in ['EUR', 'USD']", true),
            ("data.nothing", false),
        ] {
            assert_eq!(Condition::compile(text).unwrap().holds(&view).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_undefined_is_an_error_in_a_comparison() {
        let view = view("{}");
        for text in ["data.donation.amount >= 5", "data.amount < 5"] {
            assert!(Condition::compile(text).unwrap().holds(&view).is_err(), "{text}");
        }
    }

    #[test]
    fn an_endless_loop_ends() {
        let template = Template::compile(
            "{% for a in range(1000) %}{% for b in range(1000) %}{{ a }}{% endfor %}{% endfor %}",
        );
        assert!(template.unwrap().render(&view("{}")).is_err());
    }

    #[test]
    fn data_deeper_than_the_parser_goes_is_undefined_and_no_crash() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let view = view(&deep);
        assert!(!Condition::compile("data").unwrap().holds(&view).unwrap());
        assert!(Condition::compile("data[0] == 1").unwrap().holds(&view).is_err());
    }

    #[test]
    fn a_slip_of_the_pen_is_told_when_compiling() {
        for text in ["dta.amount > 5", "data.amount >", "chanel"] {
            assert!(Condition::compile(text).is_err(), "{text}");
        }
        assert!(Template::compile("{{ dat.a }}").is_err());
        assert!(Template::compile("{% for x in range(2) %}{{ x }}{{ topic }}{% endfor %}").is_ok());
    }

    #[test]
    fn a_template_says_what_it_uses() {
        let template =
            Template::compile("astro/{{ channel }}/{{ topic | replace('.', '/') }}").unwrap();
        assert!(template.uses_only(&["channel", "topic"]));
        assert!(!template.uses_only(&["topic"]));
        assert_eq!(template.render(&view("{}")).unwrap(), "astro/main/channel/tips");
    }
}
