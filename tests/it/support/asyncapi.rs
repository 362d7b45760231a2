//! Events against the schemas of `docs/asyncapi.json`.

use std::{fs, path::Path, sync::LazyLock};

use astro_relay::base::{clock, event::Event};
use serde_json::Value;

/// The document.
pub static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/asyncapi.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
});

/// Panics unless the document describes the event as it is.
pub fn accepts(event: &Event) {
    let message: Value = serde_json::from_slice(&event.message).unwrap();
    let problems = problems(&event.place.topic, &message);
    assert!(problems.is_empty(), "{problems:#?}\n{message:#}");
}

/// What is wrong with a message of a topic, by the schema of its payload.
pub fn problems(topic: &str, message: &Value) -> Vec<String> {
    let messages = DOCUMENT["components"]["messages"].as_object().unwrap();
    let described = messages.values().find(|message| message["name"] == topic);
    let described = described.unwrap_or_else(|| panic!("the document has no {topic}"));
    let mut problems = Vec::new();
    validate(&described["payload"], message, "", &mut problems);
    problems
}

/// JSON Schema as far as the document uses it. Another keyword fails: it would be taken for nothing.
fn validate(schema: &Value, value: &Value, at: &str, problems: &mut Vec<String>) {
    let mut found = Vec::new();
    let mut wrong = |what: String| found.push(format!("{at}: {what}"));
    let rules = schema.as_object().unwrap();
    for (keyword, rule) in rules {
        let list = || rule.as_array().unwrap();
        match keyword.as_str() {
            "$ref" => {
                let target = DOCUMENT.pointer(&rule.as_str().unwrap()[1..]).unwrap();
                validate(target, value, at, problems);
                return;
            }
            "type" => {
                let is = |one: &Value| has_type(one.as_str().unwrap(), value);
                let fits = rule.as_array().map_or_else(|| is(rule), |any| any.iter().any(is));
                if !fits {
                    wrong(format!("{value} is no {rule}"));
                }
            }
            "const" if rule != value => wrong(format!("{value} is not {rule}")),
            "enum" if !list().contains(value) => wrong(format!("{value} is none of {rule}")),
            "minimum" if value.as_f64() < rule.as_f64() => wrong(format!("{value} < {rule}")),
            "format" => {
                assert_eq!(rule, "date-time");
                if clock::parse_rfc3339(value.as_str().unwrap_or_default()).is_none() {
                    wrong(format!("{value} is no {rule}"));
                }
            }
            "required" => {
                let missing: Vec<_> = list()
                    .iter()
                    .filter(|name| value.get(name.as_str().unwrap()).is_none())
                    .collect();
                if !missing.is_empty() {
                    wrong(format!("lacks {missing:?}"));
                }
            }
            "additionalProperties" => {
                assert_eq!(rule, &Value::Bool(false));
                let known = schema["properties"].as_object().unwrap();
                let fields = value.as_object().into_iter().flatten();
                for (name, _) in fields.filter(|(name, _)| !known.contains_key(*name)) {
                    wrong(format!("{name} is not described"));
                }
            }
            // Fulfilled above, or looked at below.
            "const" | "enum" | "minimum" | "properties" | "items" | "allOf" | "oneOf"
            | "description" => {}
            other => panic!("the tests do not know {other:?}"),
        }
    }
    problems.append(&mut found);
    for (name, schema) in schema.get("properties").and_then(Value::as_object).into_iter().flatten()
    {
        if let Some(value) = value.get(name) {
            validate(schema, value, &format!("{at}/{name}"), problems);
        }
    }
    if let Some(items) = schema.get("items") {
        for (index, value) in value.as_array().into_iter().flatten().enumerate() {
            validate(items, value, &format!("{at}/{index}"), problems);
        }
    }
    for schema in schema.get("allOf").and_then(Value::as_array).into_iter().flatten() {
        validate(schema, value, at, problems);
    }
    if let Some(any) = schema.get("oneOf").and_then(Value::as_array) {
        let tried: Vec<Vec<String>> = any
            .iter()
            .map(|schema| {
                let mut problems = Vec::new();
                validate(schema, value, at, &mut problems);
                problems
            })
            .collect();
        if tried.iter().filter(|problems| problems.is_empty()).count() != 1 {
            problems.push(format!("{at}: not exactly one form fits: {tried:?}"));
        }
    }
}

fn has_type(name: &str, value: &Value) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "number" => value.is_number(),
        "integer" => value.is_u64() || value.is_i64(),
        "null" => value.is_null(),
        other => panic!("the tests do not know the type {other:?}"),
    }
}
