//! Each sink by itself: what all kinds share, and what its own kind says of its settings.
//!
//! A sink is opened here by its kind, and its route compiled, so that what these check themselves is a
//! problem of the configuration like any other. Nothing is connected to.

use std::collections::BTreeSet;

use serde_json::Value;

use super::named;
use crate::{
    base::{
        nearest::nearest,
        template::{Condition, Template, literals},
    },
    channel::store::RELAY,
    config::{
        Config, ConfigError, SinkConfig,
        problem::{Findings, Problem},
    },
    delivery::route::{Pattern, PatternError, Route},
    loading::shape::Shape,
    publish,
    sink::{self, Opening},
};

/// Payloads that are words; anything else is a template.
const PAYLOAD_WORDS: [&str; 3] = ["message", "data", "cloudevent"];

pub(super) fn check(config: &Config, shape: &Shape, found: &mut Findings) {
    let known: BTreeSet<&str> = named(&shape.value, "channels").collect();
    for (name, sink) in &config.sinks {
        shared(found, name, sink, &known);
        let written = |key: &str| shape.value.pointer(&format!("/sinks/{name}/{key}"));
        if written("homeassistant") == Some(&Value::Bool(true))
            && written("state") == Some(&Value::Bool(false))
        {
            let message = "contradicts homeassistant = true, whose entities show the state: take one \
                           of the two out";
            found.error(&["sinks", name, "state"], message);
        }
        if shape.whole(&["sinks", name]) {
            own(found, name, sink);
        }
    }
}

fn shared(found: &mut Findings, name: &str, sink: &SinkConfig, known: &BTreeSet<&str>) {
    let at = |key| ["sinks", name, key];
    if sink.window == 0 {
        found.error(&at("window"), "must be at least 1");
    }
    for (key, period) in [
        ("timeout", Some(sink.timeout)),
        ("backoff_max", Some(sink.backoff_max)),
        ("max_age", sink.max_age),
    ] {
        if period.is_some_and(|period| period.0.is_zero()) {
            found.error(&at(key), "must be longer than 0s");
        }
    }
    for (index, channel) in sink.channels.iter().flatten().enumerate() {
        if !known.contains(channel.as_str()) {
            let element = format!("[{index}]");
            let message = "there is no such channel";
            let problem = Problem::new(["sinks", name, "channels", &element], message);
            found.errors.push(problem.suggest(nearest(channel, known.iter().copied())));
        }
    }
    for (key, list) in [("topics", &sink.topics), ("channels", &sink.channels)] {
        if list.as_ref().is_some_and(Vec::is_empty) {
            found.error(&at(key), "is empty: this sink would get nothing; leave it out for all");
        }
    }
    for (index, text) in sink.topics.iter().flatten().enumerate() {
        if let Err(message) = pattern(text) {
            found.error(&["sinks", name, "topics", &format!("[{index}]")], message);
        }
    }
    for (index, path) in sink.redact.iter().flatten().enumerate() {
        if path.split('.').any(str::is_empty) {
            let element = format!("[{index}]");
            let message = "a path such as \"data.donation.user.email\" was expected";
            found.error(&["sinks", name, "redact", &element], message);
        }
    }
    if let Some(Err(message)) = sink.when.as_deref().map(Condition::compile) {
        found.error(&at("when"), format!("invalid condition: {message}"));
    }
    payload(found, name, &sink.payload);
    address(found, name, sink);
    login(found, name, sink);
    let known_kind = sink::kind(&sink.kind).is_some();
    if sink.state && known_kind && publish::kind(&sink.kind).is_none() {
        let able: Vec<_> = publish::KINDS.iter().map(|kind| kind.name).collect();
        let message = format!("{} cannot hold state; these can: {}", sink.kind, able.join(", "));
        found.error(&at("state"), message);
    }
    if sink.state && known.contains(RELAY) {
        let message = "a sink with state = true publishes the relay's own state where a channel of \
                       this name would have its: give the channel another label";
        found.error(&["channels", RELAY], message);
    }
}

/// A user whose password was forgotten.
fn login(found: &mut Findings, name: &str, sink: &SinkConfig) {
    let set = |key: &str| match sink.settings.get(key) {
        None | Some(Value::Null) => false,
        Some(Value::String(text)) => !text.is_empty(),
        Some(_) => true,
    };
    let kind = sink::kind(&sink.kind);
    let takes_password = kind.is_some_and(|kind| kind.secrets.contains(&"password"));
    if takes_password && set("user") && !set("password") {
        let message = "has no password: set password_file, password_env or password_credential";
        found.warn(&["sinks", name, "user"], message);
    }
}

fn payload(found: &mut Findings, name: &str, payload: &str) {
    let key = ["sinks", name, "payload"];
    if PAYLOAD_WORDS.contains(&payload) {
        return;
    }
    if !payload.contains("{{") && !payload.contains("{%") {
        // A constant payload can be meant ("ON"), a word that is nearly one of ours hardly.
        if let Some(word) = nearest(payload, PAYLOAD_WORDS) {
            let message = "message, data, cloudevent or a Jinja template was expected";
            found.errors.push(Problem::new(key, message).suggest(Some(word)));
        }
    }
    match Template::compile(payload).map(|template| template.makes_no_json()) {
        Err(message) => found.error(&key, format!("invalid template: {message}")),
        Ok(Some(why)) => {
            let message = format!(
                "begins like JSON, and makes none of an event without the fields it uses, so \
                 probably of no event: {why}"
            );
            found.warn(&key, message);
        }
        Ok(None) => {}
    }
}

/// What viewers type in an address is escaped, and hardly ever meant.
fn address(found: &mut Findings, name: &str, sink: &SinkConfig) {
    let Some(address) = sink::kind(&sink.kind).and_then(|kind| kind.address) else { return };
    let key = (address.key)(&sink.settings);
    let text = sink.settings.get(key).and_then(Value::as_str).unwrap_or_default();
    // One that cannot be compiled is reported where the sink is made.
    if Template::compile(text).is_ok_and(|template| template.uses_data()) {
        let message = "data in an address: what viewers type decides where an event goes. Each \
                       value is escaped as one word; use the filter levels where it is to be \
                       several";
        found.warn(&["sinks", name, key], message.to_owned());
    }
}

/// What the sink's own kind says of its settings, and whether its address can be one.
fn own(found: &mut Findings, name: &str, sink: &SinkConfig) {
    let Some(kind) = sink::kind(&sink.kind) else { return };
    let opening = Opening { name, config: sink, purpose: sink::Purpose::Relay };
    if let Err(ConfigError { problems }) = (kind.open)(&opening) {
        let problems = problems.into_iter().map(|one| without_values(one, &sink.settings));
        found.errors.extend(problems);
        return;
    }
    // What the checks above have reported already, the route would only report again.
    let silent =
        !found.errors.iter().any(|one| one.key.starts_with(&["sinks".into(), name.into()]));
    if let Some(Err(ConfigError { problems })) = silent.then(|| Route::new(name, sink, kind)) {
        found.errors.extend(problems);
        return;
    }
    let Some(address) = &kind.address else { return };
    let key = (address.key)(&sink.settings);
    let Some(Value::String(template)) = sink.settings.get(key) else { return };
    let fixed = literals(template, "x");
    if (address.escape)(&fixed) != fixed {
        let message = format!("{} has no such address: a wildcard, or an empty part", kind.name);
        found.error(&["sinks", name, key], message);
    }
}

/// What is wrong with a pattern of topics.
fn pattern(text: &str) -> Result<(), &'static str> {
    match Pattern::parse(text) {
        Ok(_) if text.chars().any(char::is_whitespace) => Err("a topic has no spaces"),
        Ok(_) => Ok(()),
        Err(PatternError::Empty(_)) => Err("a topic such as \"channel.tips\" was expected"),
        Err(PatternError::Inside(_)) => Err("** stands for the rest, so nothing can follow it"),
        Err(PatternError::Part(_)) => Err("* stands for a whole word, and ** for the rest"),
    }
}

/// A kind's problem without the text of its settings: an address may hold a password.
fn without_values(mut problem: Problem, settings: &Value) -> Problem {
    /// Shorter texts are words of the language as often as not.
    const SHORTEST: usize = 4;
    let mut texts = Vec::new();
    collect_texts(settings, &mut texts);
    texts.sort_by_key(|text| std::cmp::Reverse(text.len()));
    // An address of which only the scheme is there is shown: the message may name it as an example.
    let is_hidden = |text: &&str| text.len() >= SHORTEST && !text.ends_with("://");
    for text in texts.into_iter().filter(is_hidden) {
        problem.message = problem.message.replace(text, "…");
    }
    problem
}

fn collect_texts<'v>(value: &'v Value, texts: &mut Vec<&'v str>) {
    match value {
        Value::String(text) => texts.push(text),
        Value::Array(list) => list.iter().for_each(|value| collect_texts(value, texts)),
        Value::Object(table) => table.values().for_each(|value| collect_texts(value, texts)),
        _ => {}
    }
}
