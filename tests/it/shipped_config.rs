//! The configurations that are shipped: the reference agrees with the code, and every example loads.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use astro_relay::{
    config::{Period, Size},
    loading::{Loaded, Sources},
    sink::KINDS,
};
use serde_json::Value;

const REFERENCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config/astro-relay.toml");

fn load(file: &Path, text: Option<String>) -> Loaded {
    let file = Some(file.to_owned());
    let sources = Sources { file, text, resolve_secrets: false, ..Sources::default() };
    astro_relay::loading::load(&sources).unwrap_or_else(|error| panic!("{error}"))
}

fn reference() -> String {
    std::fs::read_to_string(REFERENCE).unwrap()
}

/// The reference with every key in force.
fn in_force() -> toml::Table {
    let line = |line: &str| match line.strip_prefix('#') {
        Some(key) if key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '[') => {
            key.to_owned()
        }
        _ => line.to_owned(),
    };
    let text = reference().lines().map(line).collect::<Vec<_>>().join("\n");
    let mut tables: toml::Table = text.parse().unwrap();
    let sinks = tables["sinks"].as_table_mut().unwrap();
    sinks.retain(|_, sink| is_written(sink["type"].as_str().unwrap()));
    tables
}

/// Whether a kind has keys of its own; one without them is announced, and not written yet.
fn is_written(kind: &str) -> bool {
    let shared = shared_keys();
    properties(&pointer_of(kind)).into_keys().any(|key| !shared.contains(&key))
}

/// The tables of the reference with every key in force.
fn tables() -> Value {
    serde_json::to_value(in_force()).unwrap()
}

/// What the schema says of a section's keys, by the pointer to its definition.
fn properties(pointer: &str) -> BTreeMap<String, Value> {
    let schema = astro_relay::loading::schema();
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
        ("channels/app", "Channel"),
        ("journal", "Journal"),
        ("session", "Session"),
        ("backfill", "Backfill"),
        ("cluster", "Cluster"),
        ("http", "Http"),
        ("log", "Log"),
        ("reload", "Reload"),
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
    assert_eq!(load(path, Some(in_force().to_string())).warnings, []);
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
            let secret = shown.iter().any(|other| twin_of(other) == twin_of(key));
            let in_text = secret && words.contains(key.as_str());
            // One section cannot show credentials that exclude one another; its text names them.
            let instead = pointer == "/$defs/Cluster/properties"
                && ["token", "nkey_seed", "credentials"].contains(&twin_of(key))
                && words.contains(key.as_str());
            !(shown.contains(key) || elsewhere(key) || in_text || instead)
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

/// The plain key of a secret, where `key` is one of its four forms.
fn twin_of(key: &str) -> &str {
    ["_file", "_env", "_credential"].iter().find_map(|form| key.strip_suffix(form)).unwrap_or(key)
}

#[test]
fn the_reference_shows_each_default_or_says_that_there_is_none() {
    /// Keys whose default the schema cannot tell, because their type cannot be written.
    const UNTOLD: [&str; 2] = ["format", "type"];
    let written = reference();
    let lines: Vec<&str> = written.lines().collect();
    let tables = tables();
    for (section, pointer) in sections() {
        let schema = properties(&pointer);
        let table = tables.pointer(&section).and_then(Value::as_object).unwrap();
        for (key, shown) in table.iter().filter(|(key, _)| !UNTOLD.contains(&key.as_str())) {
            let default = schema.get(key).and_then(|key| key.get("default"));
            if default.is_some_and(|default| same(shown, default)) {
                continue;
            }
            // A line of this key may stand in several sections; one of them says it.
            let words = ["Default", "default", "Needed"];
            let told = lines.iter().enumerate().any(|(at, line)| {
                let text = above(&lines, at);
                line.starts_with(&format!("#{key} ="))
                    && words.iter().any(|word| text.contains(word))
            });
            assert!(
                told,
                "{section}/{key}: {shown} is shown, {default:?} holds, and no word of it"
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

/// The text above a key, up to the empty line before it.
fn above(lines: &[&str], at: usize) -> String {
    let mut text: Vec<&str> =
        lines.iter().take(at).rev().take_while(|line| !line.is_empty()).copied().collect();
    text.reverse();
    text.join(" ")
}

#[test]
fn every_example_loads_without_a_warning() {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/config/examples"));
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(path.extension().unwrap(), "toml", "{}", path.display());
        let tables: toml::Table = std::fs::read_to_string(&path).unwrap().parse().unwrap();
        let mut sinks = tables["sinks"].as_table().unwrap().values();
        if sinks.all(|sink| is_written(sink["type"].as_str().unwrap())) {
            assert_eq!(load(&path, None).warnings, [], "{}", path.display());
            seen += 1;
        }
    }
    assert!(seen > 0);
}

/// The configuration in a document.
fn blocks(text: &str) -> Vec<&str> {
    let blocks = text.split("```toml\n").skip(1);
    blocks.map(|rest| rest.split("```").next().unwrap()).collect()
}

/// Its channel and its sinks, as one file.
#[test]
fn the_readme_loads_without_a_warning() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let blocks = blocks(&text);
    assert_eq!(blocks.len(), 3);
    assert_eq!(load(Path::new("readme.toml"), Some(blocks.concat())).warnings, []);
}

/// The sinks of the recipes, beside the channel that they speak of.
#[test]
fn every_recipe_loads() {
    let recipes = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/recipes.md");
    let text = std::fs::read_to_string(recipes).unwrap();
    let channel = "[channels.main]\ntoken = \"t\"\ntopics = [\"channel.activities\"]\n";
    let blocks = blocks(&text);
    assert_eq!(blocks.len(), 5);
    for sink in blocks {
        let loaded = load(Path::new("recipes.toml"), Some(format!("{channel}{sink}")));
        assert_eq!(loaded.config.sinks.len(), 1, "{sink}");
    }
}
