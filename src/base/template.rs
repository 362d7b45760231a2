//! Templates and conditions over an event, in Jinja.
//!
//! They are compiled when the configuration is read and can only look at one event: `channel`,
//! `topic`, `room`, `id`, `ts`, `origin`, `data`, and `raw` (the message as text).
//!
//! What an event holds is typed by anybody. So:
//!
//! - A value is escaped for where it goes, one by one: in JSON ([`Template::payload`]) it can be a
//!   string or a part of one and nothing else, in an address ([`Template::address`]) a word or a part of
//!   one.
//! - Output, work, time and depth are bounded ([`budget`]): a template can fail, and never more.
//! - What is undefined is the same everywhere: it prints nothing (`null` where JSON wants a value), is
//!   false, its fields are undefined too, and a comparison with it is false. A condition that had to
//!   compare something undefined does not match, and that is counted.
//!
//! The event's `data` is parsed when something asks for it, and not before.

pub mod budget;
mod captures;
mod code;
mod language;
mod literals;
mod marks;
mod view;

use std::{borrow::Cow, sync::Arc};

use minijinja::{Error, ErrorKind, Value};

use self::{budget::Mode, code::Code, view::KEYS};
pub use self::{
    literals::literals,
    view::{Redacted, View},
};
use crate::base::event::{self, Record};

/// A condition: a Jinja expression that is true or false of an event.
#[derive(Debug)]
pub struct Condition(Code);

impl Condition {
    /// Compiles it; the error says what is wrong with it.
    pub fn compile(text: &str) -> Result<Self, String> {
        let code = Code::expression(text)?;
        unknown(&code)?;
        Ok(Self(code))
    }

    /// Compiles one that is not configured: a request brings it. There is a limit to how many different
    /// ones are compiled as long as the process runs.
    pub fn requested(text: &str) -> Result<Self, String> {
        let code = Code::requested(text)?;
        unknown(&code)?;
        Ok(Self(code))
    }

    /// Whether it is true of the event that `view` shows. An error is no match; the caller counts it.
    pub fn holds(&self, view: &Value) -> Result<bool, Error> {
        let value = self.0.evaluate(view)?;
        if budget::met_undefined() {
            return Err(Error::new(
                ErrorKind::UndefinedError,
                "something was compared that this event does not have, or that has no order",
            ));
        }
        Ok(value.is_true())
    }
}

/// A template that renders an event to text.
#[derive(Debug)]
pub struct Template {
    code: Code,
    /// Whether its output begins with a bracket, or with something that is only known when it is rendered.
    begins: Begins,
}

/// What the output of a template begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begins {
    Brace,
    Bracket,
    Text,
    /// With an expression or a statement.
    Open,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Payload {
    pub text: String,
    pub json: bool,
}

impl Template {
    /// Compiles it; the error says what is wrong with it.
    pub fn compile(text: &str) -> Result<Self, String> {
        let code = Code::template(text)?;
        unknown(&code)?;
        let begins = match text.trim_start() {
            text if text.starts_with("{{") || text.starts_with("{%") || text.starts_with("{#") => {
                Begins::Open
            }
            text if text.starts_with('{') => Begins::Brace,
            text if text.starts_with('[') => Begins::Bracket,
            _ => Begins::Text,
        };
        Ok(Self { code, begins })
    }

    /// Renders the event that `view` shows as text, in which no character means anything.
    pub fn render(&self, view: &Value) -> Result<String, Error> {
        self.code.render(view, Mode::Text)
    }

    /// Renders a payload. Where the template makes JSON, each value in it is escaped for JSON, and what
    /// comes out is JSON: anything else is an error.
    ///
    /// A template makes JSON where its own text, or a value that it writes as JSON, begins with `{` or
    /// `[`; what a text of the event begins with does not count. `[` may also begin a text, as in
    /// `[tip] {{ data.name }}`: it is one where it makes no JSON.
    pub fn payload(&self, view: &Value) -> Result<Payload, Error> {
        let text = || Ok(Payload { text: self.render(view)?, json: false });
        let mut rendered = None;
        match self.begins {
            Begins::Text => return text(),
            Begins::Brace | Begins::Bracket => {}
            Begins::Open => {
                let plain = self.render(view)?;
                if !plain.trim_start().starts_with(['{', '[']) {
                    return Ok(Payload { text: plain, json: false });
                }
                let marked = self.code.render(view, Mode::Json)?;
                if !marks::begins_json(&marked) {
                    return Ok(Payload { text: plain, json: false });
                }
                rendered = Some(marked);
            }
        }
        let marked = match rendered {
            Some(marked) => marked,
            None => self.code.render(view, Mode::Json)?,
        };
        match marks::to_json(&marked) {
            Ok(text) => Ok(Payload { text, json: true }),
            Err(_) if marked.trim_start().starts_with('[') => text(),
            Err(error) => Err(error),
        }
    }

    /// Renders an address of words between separators. Each value of the event's is escaped as one word,
    /// or a part of one: it can make no further level, and nothing that has a meaning there. `channel`
    /// and `topic` may have levels; so has what goes through the filter `levels`, each escaped by itself.
    /// `escape` makes an address legal.
    pub fn address(
        &self,
        view: &Value,
        separator: char,
        escape: fn(&str) -> Cow<'_, str>,
    ) -> Result<String, Error> {
        let marked = self.code.render(view, Mode::Address { separator })?;
        Ok(marks::to_address(&marked, separator, escape))
    }

    /// Why it makes no JSON of an event that has none of the fields, where it is to make some: it hardly
    /// makes any of another.
    pub(crate) fn makes_no_json(&self) -> Option<String> {
        let nowhere: Arc<str> = "main".into();
        let event = event::own_text("channel.tips", &nowhere, &nowhere, "{}", 0);
        let error = self.payload(&View::of(Arc::new(Record::new(1, event)))).err()?;
        (error.kind() == ErrorKind::BadSerialization).then(|| error.to_string())
    }

    /// Whether it looks at what anybody may have typed.
    pub(crate) fn uses_data(&self) -> bool {
        ["data", "raw"].iter().any(|name| self.code.uses.contains(*name))
    }

    /// Whether it looks at nothing but these variables.
    pub fn uses_only(&self, names: &[&str]) -> bool {
        self.code.uses.iter().all(|used| names.contains(&used.as_str()))
    }
}

/// A variable that no event has is a slip of the pen: better reported now than never true.
fn unknown(code: &Code) -> Result<(), String> {
    // Functions of the language count as variables too.
    let function = |name: &str| language::LANGUAGE.globals().any(|(known, _)| known == name);
    match code.uses.iter().find(|name| !KEYS.contains(&name.as_str()) && !function(name)) {
        Some(name) => Err(format!("there is no variable {name:?}: use one of {}", KEYS.join(", "))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
