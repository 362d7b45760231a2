//! The configurations that are shipped: the reference agrees with the code, and every example loads.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use astro_relay::{
    config::{self, Loaded, Period, Size, Sources},
    sink::KINDS,
};
use serde_json::Value;

const REFERENCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config/astro-relay.toml");

fn load(file: &Path, text: Option<String>) -> Loaded {
    let file = Some(file.to_owned());
    let sources = Sources { file, text, resolve_secrets: false, ..Sources::default() };
    config::load(&sources).unwrap_or_else(|error| panic!("{error}"))
}

fn reference() -> String {
    std::fs::read_to_string(REFERENCE).unwrap()
}

/// The reference with every key in force.
fn in_force() -> String {
    let line = |line: &str| match line.strip_prefix('#') {
        Some(key) if key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '[') => {
            key.to_owned()
        }
        _ => line.to_owned(),
    };
    reference().lines().map(line).collect::<Vec<_>>().join("\n")
}

/// The tables of the reference with every key in force.
fn tables() -> Value {
    let table: toml::Table = in_force().parse().unwrap();
    serde_json::to_value(table).unwrap()
}

/// What the schema says of a section's keys, by the pointer to its definition.
fn properties(pointer: &str) -> BTreeMap<String, Value> {
    let schema = config::schema();
    let found = schema.pointer(pointer).and_then(Value::as_object);
    let found = found.unwrap_or_else(|| panic!("the schema has no {pointer}"));
    found.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// The sections of the reference, with the schema's pointer to the keys of each. All that sinks share
/// is shown once, at `stdout`.
fn sections() -> Vec<(String, String)> {
    let mut sections: Vec<(String, String)> = [
        ("astro", "Astro"),
        ("channels/main", "Channel"),
        ("journal", "Journal"),
        ("http", "Http"),
        ("log", "Log"),
    ]
    .map(|(section, name)| (format!("/{section}"), format!("/$defs/{name}/properties")))
    .to_vec();
    if let Some(Value::Object(sinks)) = tables().get("sinks") {
        for (name, sink) in sinks {
            let kind = sink["type"].as_str().unwrap();
            sections.push((format!("/sinks/{name}"), pointer_of(kind)));
        }
    }
    sections
}

#[test]
fn the_reference_loads_as_it_stands_and_with_every_key_in_force() {
    let path = Path::new(REFERENCE);
    load(path, None);
    assert_eq!(load(path, Some(in_force())).warnings, []);
}

#[test]
fn the_reference_names_every_key() {
    let tables = tables();
    let mut shown: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (section, pointer) in sections() {
        let table = tables.pointer(&section).and_then(Value::as_object).unwrap();
        shown.entry(pointer).or_default().extend(table.keys().cloned());
    }
    let shared = shared_keys();
    let own = |pointer: &String| {
        properties(pointer).into_keys().filter(|key| !shared.contains(key)).collect::<Vec<_>>()
    };
    // A kind without keys of its own needs no section.
    let kinds = KINDS.iter().map(|kind| pointer_of(kind.name)).filter(|kind| !own(kind).is_empty());
    for kind in kinds {
        shown.entry(kind).or_default();
    }
    let written = reference();
    let words: BTreeSet<&str> =
        written.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    let mut missing = Vec::new();
    for (pointer, shown) in shown {
        let elsewhere = |key: &String| shared.contains(key) && pointer != pointer_of("stdout");
        let lacking = |key: &String| {
            let secret = twin_of(key).is_some_and(|key| shown.contains(&format!("{key}_file")));
            !shown.contains(key) && !elsewhere(key) && !(secret && words.contains(key.as_str()))
        };
        for (key, schema) in properties(&pointer).into_iter().filter(|(key, _)| lacking(key)) {
            let text = schema["description"].as_str().unwrap_or_default().replace('\n', "\n# ");
            let example = schema.get("default").unwrap_or(&Value::Null);
            missing.push(format!("{pointer}:\n# {text}\n#{key} = {example}\n"));
        }
    }
    assert!(missing.is_empty(), "config/astro-relay.toml lacks:\n{}", missing.join("\n"));
}

fn pointer_of(kind: &str) -> String {
    format!("/$defs/sink-{kind}/properties")
}

/// Keys that every kind of sink has.
fn shared_keys() -> BTreeSet<String> {
    let kinds = KINDS.iter().map(|kind| properties(&pointer_of(kind.name)).into_keys().collect());
    kinds.reduce(|a: BTreeSet<String>, b| &a & &b).unwrap()
}

/// The plain key of a secret, if `key` can be one of its four forms.
fn twin_of(key: &str) -> Option<&str> {
    ["_file", "_env", "_credential"].iter().find_map(|form| key.strip_suffix(form)).or(Some(key))
}

#[test]
fn the_defaults_in_the_reference_are_those_of_the_code() {
    let tables = tables();
    for (section, keys) in sections() {
        let table = tables.pointer(&section).and_then(Value::as_object).unwrap();
        let schema = properties(&keys);
        for (key, written) in table {
            let Some(default) = schema.get(key).and_then(|schema| schema.get("default")) else {
                continue;
            };
            assert!(
                same(written, default),
                "{section}/{key}: {written} is written, {default} holds"
            );
        }
    }
}

/// Whether two values say the same: `1m` and `60s` do.
fn same(written: &Value, default: &Value) -> bool {
    let text = |value: &Value| value.as_str().map(ToOwned::to_owned);
    let periods =
        |a: &str, b: &str| Period::parse(a).is_ok() && Period::parse(a) == Period::parse(b);
    let sizes = |a: &str, b: &str| Size::parse(a).is_ok() && Size::parse(a) == Size::parse(b);
    written == default
        || text(written).zip(text(default)).is_some_and(|(a, b)| periods(&a, &b) || sizes(&a, &b))
}

#[test]
fn a_key_without_a_default_says_so() {
    /// Keys whose default the schema cannot tell, because their type cannot be written.
    const UNTOLD: [&str; 2] = ["format", "type"];
    let written = reference();
    let lines: Vec<&str> = written.lines().collect();
    let tables = tables();
    for (section, pointer) in sections() {
        let schema = properties(&pointer);
        let table = tables.pointer(&section).and_then(Value::as_object).unwrap();
        let without =
            |key: &&String| schema.get(*key).is_none_or(|key| key.get("default").is_none());
        for key in table.keys().filter(without).filter(|key| !UNTOLD.contains(&key.as_str())) {
            let says = |(at, line): (usize, &&str)| {
                let text = above(&lines, at);
                line.starts_with(&format!("#{key} ="))
                    && ["Default", "default", "Needed"].iter().any(|word| text.contains(word))
            };
            let told = lines.iter().enumerate().any(says);
            assert!(told, "{section}/{key} has no default, and the text above does not say so");
        }
    }
}

/// The text above a key, up to the empty line before it.
fn above(lines: &[&str], at: usize) -> String {
    let start = lines[..at].iter().rposition(|line| line.is_empty()).map_or(0, |empty| empty + 1);
    lines[start..at].join(" ")
}

#[test]
fn every_example_loads_without_a_warning() {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/config/examples"));
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(path.extension().unwrap(), "toml", "{}", path.display());
        assert_eq!(load(&path, None).warnings, [], "{}", path.display());
        seen += 1;
    }
    assert!(seen > 0);
}
