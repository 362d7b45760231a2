//! That the documents name what the program has.

use std::{collections::BTreeSet, fs, path::Path};

use astro_relay::astro::topics::CATALOGUE;
use serde_json::Value;

fn document(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name)).unwrap()
}

#[test]
fn every_topic_is_described() {
    let events = document("events.md");
    let own = ["relay.gap", "relay.backfill", "relay.session", "relay.status"];
    let missing: Vec<_> = CATALOGUE
        .iter()
        .map(|topic| topic.name)
        .chain(own)
        .filter(|name| !events.contains(&format!("`{name}`")))
        .collect();
    assert!(missing.is_empty(), "docs/events.md says nothing of {missing:?}");
}

#[test]
fn its_examples_are_json() {
    let events = document("events.md");
    let examples = events.split("```json\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let mut count = 0;
    for example in examples {
        serde_json::from_str::<Value>(example).unwrap_or_else(|e| panic!("{e}: {example}"));
        count += 1;
    }
    assert_eq!(count, 6);
}

/// The `AsyncAPI` document: what a program reads of the same events.
fn asyncapi() -> Value {
    serde_json::from_str(&document("asyncapi.json")).unwrap()
}

#[test]
fn the_asyncapi_document_has_the_same_topics() {
    let api = asyncapi();
    assert_eq!(api["asyncapi"], "3.0.0");
    let topics: BTreeSet<&str> = api["channels"]
        .as_object()
        .unwrap()
        .values()
        .map(|channel| channel["x-topic"].as_str().unwrap())
        .collect();
    let own = ["relay.gap", "relay.backfill", "relay.session", "relay.status"];
    let known: BTreeSet<&str> = CATALOGUE.iter().map(|topic| topic.name).chain(own).collect();
    assert_eq!(topics, known);
}

#[test]
fn every_reference_in_the_asyncapi_document_leads_somewhere() {
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(table) => {
                found.extend(table.get("$ref").and_then(Value::as_str).map(str::to_owned));
                table.values().for_each(|value| references(value, found));
            }
            Value::Array(list) => list.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let api = asyncapi();
    let mut found = Vec::new();
    references(&api, &mut found);
    assert!(found.len() > 100);
    let broken: Vec<_> = found
        .iter()
        .filter(|one| one.strip_prefix('#').and_then(|path| api.pointer(path)).is_none())
        .collect();
    assert!(broken.is_empty(), "{broken:?}");
}

/// What the table of topics shows of `data` is in an example of the `AsyncAPI` document.
#[test]
fn the_asyncapi_examples_have_what_the_table_shows() {
    fn is_part(shown: &Value, of: &Value) -> bool {
        match shown {
            Value::Object(table) => {
                table.iter().all(|(key, value)| of.get(key).is_some_and(|of| is_part(value, of)))
            }
            _ => true,
        }
    }
    let (events, api) = (document("events.md"), asyncapi());
    let mut compared = 0;
    for message in api["components"]["messages"].as_object().unwrap().values() {
        let topic = message["name"].as_str().unwrap();
        let examples: Vec<&Value> = message["examples"].as_array().into_iter().flatten().collect();
        assert!(examples.iter().all(|one| one["payload"]["topic"] == topic), "{topic}");
        let row = events.lines().find(|line| line.starts_with(&format!("| `{topic}` | ")));
        let shown = row.and_then(|row| row.split('`').nth(3));
        let Some(shown) = shown.and_then(|shown| serde_json::from_str(shown).ok()) else {
            continue;
        };
        let found = examples.iter().any(|one| is_part(&shown, &one["payload"]["data"]));
        assert!(found, "{topic}: {shown} is in no example");
        compared += 1;
    }
    assert!(compared >= 5, "{compared}");
}

#[test]
fn the_consumer_in_rust_is_the_example_that_compiles() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/tips.rs");
    let example = fs::read_to_string(path).unwrap();
    assert!(document("events.md").contains(&format!("```rust\n{example}```")));
}

#[test]
fn every_metric_is_described() {
    let metrics = document("metrics.md");
    let source = include_str!("../../src/base/metrics.rs");
    let names: BTreeSet<&str> =
        source.split('"').filter(|word| word.starts_with("astro_relay_")).collect();
    assert!(names.len() > 25, "{names:?}");
    let missing: Vec<_> =
        names.iter().filter(|name| !metrics.contains(&format!("| `{name}` |"))).collect();
    assert!(missing.is_empty(), "docs/metrics.md says nothing of {missing:?}");
}

#[test]
fn every_route_is_described() {
    let http = document("http.md");
    let source = include_str!("../../src/http.rs");
    let routes = source.split(".route(\"").skip(1).map(|rest| rest.split('"').next().unwrap());
    let routes: Vec<&str> = routes.collect();
    assert!(routes.len() > 8, "{routes:?}");
    let named = |route: &&str| {
        let fixed = route.split('{').next().unwrap().trim_end_matches('/');
        http.contains(&format!("{fixed}/")) || http.contains(&format!("{fixed}`"))
    };
    let missing: Vec<_> = routes.iter().filter(|route| !named(route)).collect();
    assert!(missing.is_empty(), "docs/http.md says nothing of {missing:?}");
}

/// Caddy takes a brace at the end of a line, or alone on it.
#[test]
fn the_caddyfile_has_its_braces_where_caddy_takes_them() {
    let http = document("http.md");
    let (_, rest) = http.split_once("```caddyfile\n").unwrap();
    let (file, _) = rest.split_once("```").unwrap();
    for line in file.lines() {
        let words = line.strip_suffix(" {").unwrap_or(line);
        assert!(line.trim() == "}" || !words.contains(['{', '}']), "{line}");
    }
    assert_eq!(file.matches('{').count(), file.matches('}').count());
}

#[test]
fn every_runbook_leads_to_a_section() {
    let anchor = |title: &str| {
        let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-');
        title.to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-")
    };
    let anchors = |name: &str| -> BTreeSet<String> {
        let text = document(name);
        let titles = text.lines().filter_map(|line| line.strip_prefix('#'));
        titles.map(|title| anchor(title.trim_start_matches('#').trim())).collect()
    };
    let rules = include_str!("../../deploy/prometheus/astro-relay.rules.yml");
    let runbooks: Vec<&str> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("runbook: ")).collect();
    assert_eq!(runbooks.len(), rules.matches("- alert: ").count(), "each alert has one");
    for runbook in runbooks {
        let (name, at) = runbook.strip_prefix("docs/").unwrap().split_once('#').unwrap();
        let anchors = anchors(name);
        assert!(anchors.contains(at), "{runbook}: there is {anchors:?}");
    }
}
