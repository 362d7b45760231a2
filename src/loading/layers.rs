//! The layers of a configuration: file, over it the environment, over that the command line.
//!
//! The `config` crate merges them. Four things are done here, because it does them badly:
//!
//! - **Guess types.** Its `try_parsing` makes the number 123 of the secret `0123`. What comes from
//!   the environment or the command line stays text until [`crate::loading::shape`] reads it by the schema.
//! - **Say where.** It drops lines and columns; [`crate::loading::places`] keeps them.
//! - **Choose between two of one layer.** It keeps its sources in a hash map, so that of two variables
//!   for one key (`…__HOME` and `…__home`, or a table and a key inside it) any one may win. They are
//!   problems here, before it sees them.
//! - **Report.** Its errors show the source line, and with it the secret on that line.
//!
//! The names of variables fold to lower case, their values do not. `__` separates
//! the parts of the key, so the name of a channel or sink that is to be set from the environment has no `__`.

use std::collections::BTreeMap;

use config::{FileFormat, Source as _, ValueKind};
use serde_json::Value;

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
        problems.push(Problem::at_place(place(name), message));
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
            Problem::at_place(Place::Variable(name.clone()), message)
        })
}

/// What stands behind `prefix`, in whatever case.
fn after<'n>(name: &'n str, prefix: &str) -> Option<&'n str> {
    let head = name.get(..prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then(|| name.get(prefix.len()..))?
}

/// Names that the `config` crate reads as one part of a path, and nothing else.
pub(crate) fn plain(part: &str) -> bool {
    !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
}

/// Lays the layers over one another. `text` has been parsed before without an error; whatever the
/// `config` crate still does not like is reported without its words, which quote the file.
pub(crate) fn merge(text: &str, env: &Layer, set: &Layer) -> Result<Value, Box<Problem>> {
    let variables = env
        .values
        .iter()
        .map(|(key, value)| (format!("{PREFIX}{}", key.join("__")), value.clone()))
        .collect();
    let mut builder = config::Config::builder()
        .add_source(config::File::from_str(text, FileFormat::Toml))
        .add_source(
            config::Environment::with_prefix(PREFIX.trim_end_matches('_'))
                .separator("__")
                .source(Some(variables)),
        );
    for (key, value) in &set.values {
        builder = builder
            .set_override(key.join("."), value.clone())
            .map_err(|_| Box::new(Problem::new(key.clone(), "is not the name of a key")))?;
    }
    let tables = builder.build().and_then(|merged| merged.collect()).map_err(|_| {
        Box::new(Problem::new(Vec::<String>::new(), "a number in the file is too large"))
    })?;
    Ok(Value::Object(tables.into_iter().map(|(key, value)| (key, json(value.kind))).collect()))
}

fn json(kind: ValueKind) -> Value {
    match kind {
        ValueKind::Nil => Value::Null,
        ValueKind::Boolean(value) => value.into(),
        ValueKind::I64(value) => value.into(),
        ValueKind::U64(value) => value.into(),
        // TOML's integers end at 64 bits: these two do not come from any of our sources.
        ValueKind::I128(value) => i64::try_from(value).map_or(Value::Null, Value::from),
        ValueKind::U128(value) => u64::try_from(value).map_or(Value::Null, Value::from),
        ValueKind::Float(value) => value.into(),
        ValueKind::String(value) => value.into(),
        ValueKind::Table(table) => {
            table.into_iter().map(|(key, value)| (key, json(value.kind))).collect()
        }
        ValueKind::Array(list) => list.into_iter().map(|value| json(value.kind)).collect(),
    }
}
