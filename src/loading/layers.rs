//! The layers of a configuration: file, over it the environment, over that the command line.
//!
//! What comes from outside the file stays text until [`crate::loading::shape`] reads it by the schema. Two
//! settings of one layer for one key (`…__HOME` and `…__home`, or a table and a key inside it) are a
//! problem: neither wins.
//!
//! The names of variables fold to lower case, their values do not. `__` separates the parts of the key, so
//! the name of a channel or sink that is to be set from the environment has no `__`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::config::problem::{Place, Problem};

/// What every variable of ours begins with.
const PREFIX: &str = "ASTRO_RELAY__";

/// A key from outside the file, with the name under which it was given.
pub(crate) type Keys = BTreeMap<Vec<String>, String>;

/// Settings of one layer outside the file, fit to be merged.
#[derive(Debug, Default)]
pub(crate) struct Layer {
    /// The keys, each with the name of its variable or argument.
    pub(crate) keys: Keys,
    values: BTreeMap<Vec<String>, String>,
}

/// The environment's layer, and what is wrong with it.
pub(crate) fn variables(env: &BTreeMap<String, String>) -> (Layer, Vec<Problem>) {
    let ours = env.iter().filter_map(|(name, value)| {
        let rest = after(name, PREFIX)?;
        Some((name.clone(), rest.to_lowercase().split("__").map(String::from).collect(), value))
    });
    layer(ours, Place::Variable)
}

/// The command line's layer, and what is wrong with it. Of two for one key the later holds.
pub(crate) fn arguments(set: &[(String, String)]) -> (Layer, Vec<Problem>) {
    let last: BTreeMap<&String, &String> = set.iter().map(|(key, value)| (key, value)).collect();
    let ours = last
        .into_iter()
        .map(|(key, value)| (key.clone(), key.split('.').map(String::from).collect(), value));
    layer(ours, Place::Argument)
}

fn layer<'a>(
    settings: impl Iterator<Item = (String, Vec<String>, &'a String)>,
    place: fn(String) -> Place,
) -> (Layer, Vec<Problem>) {
    let mut layer = Layer::default();
    let mut problems = Vec::new();
    for (name, key, value) in settings {
        let around = |other: &Vec<String>| other.starts_with(&key) || key.starts_with(other);
        let clash = layer.keys.iter().find(|(other, _)| around(other));
        let message = match clash {
            _ if name.is_empty() => "KEY=VALUE was expected".to_owned(),
            _ if !key.iter().all(|part| plain(part)) => "is not the name of a key".to_owned(),
            Some((_, other)) => format!("sets the same key as {other}, or a part of it"),
            None => {
                layer.values.insert(key.clone(), value.clone());
                layer.keys.insert(key, name);
                continue;
            }
        };
        let mut problem = Problem::new(Vec::<String>::new(), message);
        problem.place = Some(place(name));
        problems.push(problem);
    }
    (layer, problems)
}

/// Variables that were probably meant for us: `ASTRO_RELAY_LOG_LEVEL`, which nothing reads.
pub(crate) fn misspelt<'e>(
    env: &'e BTreeMap<String, String>,
    sections: &[&str],
) -> impl Iterator<Item = Problem> + use<'e> {
    let sections: Vec<String> = sections.iter().map(|section| format!("{section}_")).collect();
    env.keys()
        .filter(move |name| {
            let rest =
                after(name, PREFIX.trim_end_matches('_')).map(|rest| rest.trim_start_matches('_'));
            let ours = |rest: &str| sections.iter().any(|section| after(rest, section).is_some());
            // Kubernetes sets such variables for a service whose name begins like ours.
            let service = name.contains("_SERVICE_") || name.contains("_PORT");
            after(name, PREFIX).is_none() && !service && rest.is_some_and(ours)
        })
        .map(|name| {
            let message =
                "ignored: use two underscores between key parts, as in ASTRO_RELAY__LOG__LEVEL";
            let mut problem = Problem::new(Vec::<String>::new(), message);
            problem.place = Some(Place::Variable(name.clone()));
            problem
        })
}

/// What stands behind `prefix`, in whatever case.
fn after<'n>(name: &'n str, prefix: &str) -> Option<&'n str> {
    let head = name.get(..prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then(|| name.get(prefix.len()..))?
}

/// A part of a key as it is written without quotes.
pub(crate) fn plain(part: &str) -> bool {
    !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
}

/// Lays the layers over one another, the file lowest. What comes from outside the file is text.
pub(crate) fn merge(file: &DeTable<'_>, env: &Layer, set: &Layer) -> Value {
    let mut merged = table(file);
    for (key, value) in env.values.iter().chain(&set.values) {
        put(&mut merged, key, value);
    }
    merged
}

fn put(at: &mut Value, key: &[String], value: &str) {
    let Some((part, rest)) = key.split_first() else {
        *at = value.into();
        return;
    };
    // A table is put over what is none.
    if !at.is_object() {
        *at = Value::Object(Map::new());
    }
    if let Some(table) = at.as_object_mut() {
        put(table.entry(part).or_insert(Value::Null), rest, value);
    }
}

fn table(table: &DeTable<'_>) -> Value {
    let entry = |(key, value): (&Spanned<_>, &Spanned<_>)| {
        let key: &std::borrow::Cow<'_, str> = key.get_ref();
        (key.to_string(), json(value.get_ref()))
    };
    Value::Object(table.iter().map(entry).collect())
}

fn json(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => text.as_ref().into(),
        // What is too large was a problem before.
        DeValue::Integer(number) => {
            i64::from_str_radix(number.as_str(), number.radix()).map_or(Value::Null, Value::from)
        }
        DeValue::Float(number) => number.as_str().parse::<f64>().map_or(Value::Null, Value::from),
        DeValue::Boolean(value) => (*value).into(),
        DeValue::Datetime(time) => time.to_string().into(),
        DeValue::Array(list) => list.iter().map(|value| json(value.get_ref())).collect(),
        DeValue::Table(inside) => table(inside),
    }
}
