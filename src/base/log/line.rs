//! A line of the log: when, how grave, what, and with which values; as text, for systemd's journal, and
//! as JSON.
//!
//! A value may come from a viewer, a server or an error, of any length and of any
//! characters. It is cut and made harmless here, where a line is made, so that nothing behind this has
//! to think of it. (JSON is the same text, escaped as JSON.)

use std::fmt::{self, Write as _};

use serde_json::{Map, Value};
use tracing::{
    Level,
    field::{Field, Visit},
};

use crate::base::{
    clock::{self, UnixMillis},
    text::{excerpt, harmless},
};

/// Bytes of one value, or of a message.
pub(super) const VALUE: usize = 2048;

/// Bytes of all values of a line; what comes behind them is left out.
pub(super) const LINE: usize = 16 * 1024;

/// How lines look on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// Readable text, on a terminal with colours.
    Text {
        colour: bool,
    },
    /// For systemd's journal.
    Journal,
    Json,
}

/// A value, and how it looks in a text.
#[derive(Debug, Clone)]
struct Named {
    name: &'static str,
    value: Value,
    /// A text of ours that is quoted, so that its end can be seen.
    quoted: bool,
}

/// The values of an event or of a span.
#[derive(Debug, Clone, Default)]
pub(super) struct Fields {
    message: String,
    /// Where a line of the `log` crate comes from.
    target: Option<String>,
    named: Vec<Named>,
    bytes: usize,
}

impl Fields {
    pub(super) fn message(&mut self, text: &str) {
        self.message = excerpt(text, VALUE);
        self.bytes += self.message.len();
    }

    pub(super) fn add(&mut self, name: &'static str, text: impl AsRef<str>) {
        let text = excerpt(text.as_ref(), VALUE);
        self.put(Named { name, value: text.into(), quoted: false });
    }

    pub(super) fn append(&mut self, others: &Self) {
        others.named.iter().for_each(|one| self.put(one.clone()));
    }

    fn put(&mut self, one: Named) {
        let bytes = one.name.len() + one.value.as_str().map_or(8, str::len);
        if self.bytes + bytes <= LINE {
            self.bytes += bytes;
            self.named.push(one);
        }
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(Named { name: field.name(), value: value.into(), quoted: false });
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(Named { name: field.name(), value: value.into(), quoted: false });
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(Named { name: field.name(), value: value.into(), quoted: false });
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(Named { name: field.name(), value: value.into(), quoted: false });
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message(value),
            "log.target" => self.target = Some(value.to_owned()),
            name if name.starts_with("log.") => {}
            name => {
                let value = excerpt(value, VALUE).into();
                self.put(Named { name, value, quoted: true });
            }
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = bounded(value);
        if field.name() == "message" {
            self.message(&text);
        } else {
            self.add(field.name(), text);
        }
    }
}

/// The text of a value, without all of one that is very long ever being made.
fn bounded(value: &dyn fmt::Debug) -> String {
    struct Bounded(String);
    impl fmt::Write for Bounded {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            // A little more than is shown, so that it can be seen to be cut.
            let room = (VALUE + 8).saturating_sub(self.0.len());
            let part = text.get(..text.floor_char_boundary(room)).unwrap_or_default();
            self.0.push_str(part);
            if part.len() == text.len() { Ok(()) } else { Err(fmt::Error) }
        }
    }
    let mut text = Bounded(String::new());
    // An error is the end of the room: what was written until then is what is shown.
    match write!(text, "{value:?}") {
        Ok(()) | Err(fmt::Error) => text.0,
    }
}

#[derive(Debug)]
pub(super) struct Line {
    at: UnixMillis,
    level: Level,
    target: String,
    fields: Fields,
    /// Spans that it is in, the innermost first.
    spans: Vec<(&'static str, Fields)>,
    bytes: usize,
}

impl Line {
    pub(super) fn new(level: Level, target: &str, mut fields: Fields) -> Self {
        let target = fields.target.take().unwrap_or_else(|| target.to_owned());
        let target = excerpt(&target, VALUE);
        let bytes = target.len() + fields.bytes;
        Self { at: clock::now(), level, target, fields, spans: Vec::new(), bytes }
    }

    /// It was logged inside this span, which is around those before.
    pub(super) fn inside(&mut self, span: &'static str, fields: &Fields) {
        let bytes = span.len() + fields.bytes;
        if self.bytes + bytes <= 2 * LINE {
            self.bytes += bytes;
            self.spans.push((span, fields.clone()));
        }
    }

    /// About what it takes in memory.
    pub(super) fn bytes(&self) -> usize {
        /// For the line itself, and what is around each of some values.
        const OVERHEAD: usize = 512;
        self.bytes + OVERHEAD
    }

    /// The line, without its end.
    pub(super) fn format(&self, format: Format) -> String {
        match format {
            Format::Text { colour } => self.text(colour),
            Format::Journal => self.journal(),
            Format::Json => self.json(),
        }
    }

    /// The priority as systemd reads it from standard error (sd-daemon(3)), the message, and behind it all
    /// values: `<4>the sink is down sink="home" error=broken pipe`. The journal knows the time.
    fn journal(&self) -> String {
        // INFO is what an administrator should see, so it is a notice above mere information.
        let priority = match self.level {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 5,
            Level::DEBUG => 6,
            Level::TRACE => 7,
        };
        let mut text = format!("<{priority}>{}", self.fields.message);
        let spans = self.spans.iter().map(|(_, fields)| fields);
        for one in std::iter::once(&self.fields).chain(spans).flat_map(|fields| &fields.named) {
            text.push(' ');
            text.push_str(&one.text());
        }
        text
    }

    fn text(&self, colour: bool) -> String {
        let (dim, paint, plain) = match self.level {
            _ if !colour => ("", "", ""),
            Level::ERROR => ("\x1b[2m", "\x1b[31m", "\x1b[0m"),
            Level::WARN => ("\x1b[2m", "\x1b[33m", "\x1b[0m"),
            Level::INFO => ("\x1b[2m", "\x1b[32m", "\x1b[0m"),
            Level::DEBUG => ("\x1b[2m", "\x1b[34m", "\x1b[0m"),
            Level::TRACE => ("\x1b[2m", "\x1b[35m", "\x1b[0m"),
        };
        let (at, level) = (clock::rfc3339(self.at), self.level.as_str());
        let mut text = format!("{dim}{at}{plain} {paint}{level:>5}{plain} ");
        for (span, fields) in self.spans.iter().rev() {
            let values: Vec<_> = fields.named.iter().map(Named::text).collect();
            text.extend([*span, "{", &values.join(" "), "}: "]);
        }
        text.push_str(&self.fields.message);
        for one in &self.fields.named {
            text.push(' ');
            text.push_str(&one.text());
        }
        text
    }

    fn json(&self) -> String {
        let named = |fields: &Fields| fields.named.iter().map(Named::pair).collect::<Vec<_>>();
        let mut pairs = vec![
            ("timestamp", clock::rfc3339(self.at).into()),
            ("level", self.level.as_str().into()),
            ("message", self.fields.message.clone().into()),
        ];
        pairs.extend(named(&self.fields));
        pairs.push(("target", self.target.clone().into()));
        let span = |(name, fields): &(&str, Fields)| {
            let mut span: Map<String, Value> =
                named(fields).into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
            span.insert("name".into(), (*name).into());
            Value::Object(span)
        };
        if let Some(innermost) = self.spans.first() {
            pairs.push(("span", span(innermost)));
            pairs.push(("spans", self.spans.iter().rev().map(span).collect()));
        }
        // By hand, for the order: a map would sort its keys.
        let pairs = pairs.iter().map(|(name, value)| format!("{}:{value}", Value::from(*name)));
        format!("{{{}}}", pairs.collect::<Vec<_>>().join(","))
    }
}

impl Named {
    fn pair(&self) -> (&'static str, Value) {
        (self.name, self.value.clone())
    }

    fn text(&self) -> String {
        match &self.value {
            Value::String(text) if self.quoted => format!("{}={text:?}", self.name),
            value => format!("{}={}", self.name, plain(value)),
        }
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), |text| harmless(text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::text::is_harmful;

    fn line(message: &str, value: &str) -> Line {
        let mut fields = Fields::default();
        fields.message(message);
        fields.add("error", value);
        let mut line = Line::new(Level::WARN, "astro_relay::x", fields);
        let mut around = Fields::default();
        around.put(Named { name: "number", value: 7.into(), quoted: false });
        around.put(Named { name: "name", value: "a \"b\"".into(), quoted: true });
        line.inside("link", &around);
        line
    }

    #[test]
    fn a_line_has_its_parts() {
        let line = line("it is down", "broken pipe");
        let text = line.text(false);
        let (at, text) = text.split_at(text.find(' ').unwrap());
        assert!(clock::parse_rfc3339(at).is_some(), "{at}");
        let expected = "  WARN link{number=7 name=\"a \\\"b\\\"\"}: it is down error=broken pipe";
        assert_eq!(text, expected);
        let json: Value = serde_json::from_str(&line.json()).unwrap();
        assert_eq!(json["level"], "WARN");
        assert_eq!(json["message"], "it is down");
        assert_eq!(json["error"], "broken pipe");
        assert_eq!(json["target"], "astro_relay::x");
        assert_eq!(json["spans"][0]["number"], 7);
        assert_eq!(json["span"]["name"], "link");
        assert!(line.text(true).contains("\x1b[33m WARN\x1b[0m"));
        let expected = "<4>it is down error=broken pipe number=7 name=\"a \\\"b\\\"\"";
        assert_eq!(line.journal(), expected);
    }

    #[test]
    fn a_line_end_begins_no_line_in_the_journal() {
        assert!(line("bad", "a\n<0>b").journal().starts_with("<4>bad error=a <0>b number=7"));
    }

    #[test]
    fn a_long_value_is_cut_and_many_are_left_out() {
        struct Endless;
        impl fmt::Debug for Endless {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                loop {
                    f.write_str("again and ")?;
                }
            }
        }
        assert!(bounded(&Endless).len() <= VALUE + 8);
        let mut fields = Fields::default();
        for _ in 0..100 {
            fields.add("error", "ü".repeat(500_000));
        }
        let line = Line::new(Level::WARN, "x", fields);
        for text in [line.text(false), line.json(), line.journal()] {
            assert!(text.len() < LINE + 1024 && text.contains('…'), "{}", text.len());
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_in_a_line_does_anything(message in "\\PC*|.*|[\\x00-\\x{a0}]*", value in ".*") {
            let line = line(&message, &value);
            for text in [line.text(false), line.json(), line.journal()] {
                proptest::prop_assert!(!text.chars().any(is_harmful), "{text:?}");
            }
        }
    }
}
