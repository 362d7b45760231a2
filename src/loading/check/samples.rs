//! Conditions and templates, tried on an example of each topic that would reach them.
//!
//! What is compiled may still never match or never render: a misspelt field, a filter that is not there. An
//! example is no promise of what comes, so all but a name that the language does not have is a warning, and
//! only where no example works.

use std::{collections::BTreeSet, sync::Arc};

use minijinja::{Error, ErrorKind};
use serde_json::Value;

use crate::{
    astro::samples,
    base::{
        event::{Event, Record},
        nearest::nearest,
        template::{Condition, Template, View},
    },
    config::{Config, SinkConfig, problem::Findings, problem::Problem},
    delivery::route::Pattern,
    sink,
};

/// Examples of one topic that are tried: each may cost a template's whole budget of time.
const TRIED: usize = 16;

pub(super) fn check(config: &Config, found: &mut Findings) {
    for (name, sink) in &config.sinks {
        let topics: Vec<(String, Vec<Event>)> = topics(config, sink)
            .into_iter()
            .map(|topic| {
                let mut events = samples::events(&topic, "main");
                events.truncate(TRIED);
                (topic, events)
            })
            .filter(|(_, events)| !events.is_empty())
            .collect();
        if let Some(when) = &sink.when {
            condition(found, name, when, &topics);
        }
        if sink.payload.contains('{') {
            template(
                found,
                &["sinks", name, "payload"],
                &sink.payload,
                &topics,
                |template, view| template.payload(view).map(drop),
            );
        }
        let Some(address) = sink::kind(&sink.kind).and_then(|kind| kind.address) else { continue };
        let key = (address.key)(&sink.settings);
        if let Some(text) = sink.settings.get(key).and_then(Value::as_str) {
            template(found, &["sinks", name, key], text, &topics, |template, view| {
                template.address(view, address.separator, address.escape).map(drop)
            });
        }
    }
}

/// What is subscribed and goes to the sink.
fn topics(config: &Config, sink: &SinkConfig) -> BTreeSet<String> {
    let patterns: Option<Vec<Pattern>> = sink
        .topics
        .as_ref()
        .map(|topics| topics.iter().filter_map(|topic| Pattern::parse(topic).ok()).collect());
    let wanted = |topic: &&String| {
        patterns.as_ref().is_none_or(|patterns| patterns.iter().any(|one| one.matches(topic)))
    };
    let channels = config.channels.iter().filter(|(label, _)| {
        sink.channels.as_ref().is_none_or(|channels| channels.contains(label))
    });
    channels.flat_map(|(_, channel)| channel.topics.iter().filter(wanted).cloned()).collect()
}

fn view(event: &Event) -> minijinja::Value {
    View::of(Arc::new(Record::new(1, event.clone())))
}

fn condition(found: &mut Findings, name: &str, when: &str, topics: &[(String, Vec<Event>)]) {
    // One that cannot be compiled is reported elsewhere.
    let Ok(condition) = Condition::compile(when) else { return };
    let key = ["sinks", name, "when"];
    let mut failing: Vec<&(String, Vec<Event>)> = Vec::new();
    for topic in topics {
        let outcomes: Vec<_> = topic.1.iter().map(|event| condition.holds(&view(event))).collect();
        if let Some(error) =
            outcomes.iter().find_map(|one| one.as_ref().err().filter(|error| is_unknown(error)))
        {
            return found.error(&key, format!("invalid condition: {error}"));
        }
        if outcomes.iter().all(Result::is_err) {
            failing.push(topic);
        }
    }
    if failing.is_empty() {
        return;
    }
    let names = failing.iter().map(|(topic, _)| topic.as_str()).collect::<Vec<_>>().join(", ");
    let missing = failing.iter().flat_map(|(_, events)| missing(when, events)).next();
    let what = match &missing {
        Some((path, _)) => format!("{path} is in no example of {names}"),
        None => format!("it compares what no example of {names} has"),
    };
    let then = if failing.len() == topics.len() {
        "it can never match, and nothing would be sent"
    } else {
        "none of these events would be sent: limit topics to those that have the field"
    };
    let problem = Problem::new(key, format!("{what}; {then}"));
    found.warnings.push(problem.suggest(missing.and_then(|(_, meant)| meant).as_deref()));
}

fn template(
    found: &mut Findings,
    key: &[&str],
    text: &str,
    topics: &[(String, Vec<Event>)],
    render: impl Fn(&Template, &minijinja::Value) -> Result<(), Error>,
) {
    let Ok(compiled) = Template::compile(text) else { return };
    let mut errors = Vec::new();
    let (mut tried, mut all) = (0, Vec::new());
    for event in topics.iter().flat_map(|(_, events)| events) {
        all.push(event.clone());
        let Err(error) = render(&compiled, &view(event)) else {
            tried += 1;
            continue;
        };
        if is_unknown(&error) {
            return found.error(key, format!("invalid template: {error}"));
        }
        errors.push(error);
        if errors.len() >= TRIED {
            break;
        }
    }
    if let (0, Some(error)) = (tried, errors.first()) {
        return found.warn(key, format!("it can be rendered of no example: {error}"));
    }
    // A field that is missing prints nothing, and may be one that is seldom there; a misspelt one is not.
    if let Some((path, Some(meant))) =
        missing(text, &all).into_iter().find(|(_, meant)| meant.is_some())
    {
        let message = format!("{path} is in no example of what goes to this sink");
        found.warnings.push(Problem::new(key.iter().copied(), message).suggest(Some(&meant)));
    }
}

/// Whether the language does not have what was named.
fn is_unknown(error: &Error) -> bool {
    use ErrorKind::{UnknownFilter, UnknownFunction, UnknownMethod, UnknownTest};
    matches!(error.kind(), UnknownFilter | UnknownFunction | UnknownMethod | UnknownTest)
}

/// Paths below `data` in a text that none of the events has, each with the one that was probably meant.
fn missing(text: &str, events: &[Event]) -> Vec<(String, Option<String>)> {
    let data: Vec<Value> =
        events.iter().filter_map(|event| serde_json::from_slice(event.data()).ok()).collect();
    let found = paths(text).into_iter().filter_map(|path| {
        let mut there: Vec<&Value> = data.iter().collect();
        let mut known = String::from("data");
        for part in &path {
            let below: Vec<&Value> = there.iter().filter_map(|value| value.get(part)).collect();
            if below.is_empty() {
                let names = there.iter().filter_map(|value| value.as_object());
                let names: BTreeSet<&str> =
                    names.flat_map(|table| table.keys().map(String::as_str)).collect();
                let meant = nearest(part, names).map(|meant| format!("{known}.{meant}"));
                // What stands under a text or a number is a method of the language.
                let is_table = there.iter().any(|value| value.is_object());
                return (is_table || there.is_empty()).then(|| (format!("{known}.{part}"), meant));
            }
            known = format!("{known}.{part}");
            there = below;
        }
        None
    });
    if data.is_empty() { Vec::new() } else { found.collect() }
}

/// `data.a.b` in a text, each without `data`. Not what is in quotes.
fn paths(text: &str) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    // Every second piece is in quotes.
    for piece in text.split(['"', '\'']).step_by(2) {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        for chain in piece.split(|c| !word(c)) {
            let mut parts = chain.split('.').filter(|part| !part.is_empty()).map(str::to_owned);
            if parts.next().as_deref() == Some("data") {
                let path: Vec<String> = parts.collect();
                if !path.is_empty() {
                    paths.push(path);
                }
            }
        }
    }
    paths
}

#[cfg(test)]
mod tests {
    use crate::loading::{Sources, load};

    /// Warnings, or errors, about a sink with these lines.
    fn said(topics: &str, sink: &str) -> Result<Vec<String>, Vec<String>> {
        let text = format!(
            "[channels.main]\ntoken_env = \"T\"\ntopics = {topics}\n\
             [sinks.out]\ntype = \"stdout\"\n{sink}\n"
        );
        let sources = Sources { text: Some(text), resolve_secrets: false, ..Sources::default() };
        match load(&sources) {
            Ok(loaded) => Ok(loaded.warnings.iter().map(|one| one.render("warning")).collect()),
            Err(error) => Err(error.problems.iter().map(|one| one.render("error")).collect()),
        }
    }

    #[test]
    fn a_condition_that_can_never_match_is_reported_with_what_was_meant() {
        let tips = "[\"channel.tips\"]";
        assert_eq!(said(tips, "when = \"data.donation.amount >= 5\"").unwrap(), [""; 0]);
        let warnings = said(tips, "when = \"data.donaton.amount >= 5\"").unwrap();
        let expected = "data.donaton is in no example of channel.tips; it can never match, and \
                        nothing would be sent; did you mean \"data.donation\"?";
        assert!(warnings.len() == 1 && warnings[0].contains(expected), "{warnings:?}");
        // Of several topics some do not have the field.
        let both = "[\"channel.tips\", \"channel.stream.status\", \"channel.activities\"]";
        let warnings = said(both, "when = \"data.donation.amount >= 50\"").unwrap();
        let expected = "in no example of channel.activities, channel.stream.status; none of these";
        assert!(warnings.len() == 1 && warnings[0].contains(expected), "{warnings:?}");
        // Of one topic some events have it.
        let amount = "when = \"data.type == 'cheer' and data.data.amount >= 100\"";
        assert_eq!(said("[\"channel.activities\"]", amount).unwrap(), [""; 0]);
        // Of a topic of which nothing is known, nothing is said.
        assert_eq!(said("[\"channel.new\"]", "when = \"data.x.y >= 1\"").unwrap(), [""; 0]);
    }

    #[test]
    fn a_template_that_can_never_render_is_reported() {
        let tips = "[\"channel.tips\"]";
        let errors = said(tips, "payload = \"{{ data.donation.message | nosuchfilter }}\"");
        let errors = errors.unwrap_err();
        assert!(errors.len() == 1 && errors[0].contains("sinks.out.payload: invalid template: "));
        assert!(errors[0].contains("nosuchfilter"), "{errors:?}");
        let warnings = said(tips, "payload = \"{{ data.donation.user.usrname }}\"").unwrap();
        let expected = "data.donation.user.usrname is in no example";
        assert!(warnings.len() == 1 && warnings[0].contains(expected), "{warnings:?}");
        assert!(warnings[0].contains("did you mean \"data.donation.user.username\"?"));
        // A field that is seldom there, and a text that looks like a path.
        let fine = "payload = \"{{ data.donation.rarely }} {{ 'data.donaton' }}\"";
        assert_eq!(said(tips, fine).unwrap(), [""; 0]);
    }
}
