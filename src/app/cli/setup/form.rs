//! What the page asks for: the topics, the kinds of sink, and the fields of each, from its JSON Schema.

use serde_json::{Value, json};

use crate::{
    app::cli::init::FIRST_TOPICS,
    astro::topics,
    base::json,
    loading::{is_secret, resolved},
    sink::{KINDS, Kind},
};

/// Fields that are shown at once, in this order; the others are under "more".
const FIRST: &[&str] = &[
    "url", "user", "password", "homeassistant", "jetstream", "create_stream", "mode",
    "bearer_token", "secret",
];

/// All that the page needs to know before it asks.
pub(super) fn questions(file: &std::path::Path) -> Value {
    let topics: Vec<Value> = topics::CATALOGUE
        .iter()
        .map(|topic| {
            json!({
                "name": topic.name, "meaning": topic.description(), "scope": topic.scope,
                "first": FIRST_TOPICS.contains(&topic.name),
            })
        })
        .collect();
    json!({
        "file": file.display().to_string(),
        "exists": file.exists(),
        "topics": topics,
        "kinds": KINDS.iter().map(kind).collect::<Vec<_>>(),
    })
}

fn kind(kind: &Kind) -> Value {
    let schema = (kind.schema)().to_value();
    let required = schema.get("required").cloned().unwrap_or_else(|| json!([]));
    let properties = schema.get("properties").and_then(Value::as_object);
    let mut fields: Vec<Value> = properties
        .into_iter()
        .flatten()
        .filter_map(|(key, property)| field(&schema, key, property))
        .collect();
    let rank = |field: &Value| {
        let key = field.get("key").and_then(Value::as_str).unwrap_or_default();
        FIRST.iter().position(|first| *first == key).unwrap_or(FIRST.len())
    };
    fields.sort_by_key(rank);
    for field in &mut fields {
        let first = rank(field) < FIRST.len();
        json::set(field, "first", first.into());
    }
    json!({
        "name": kind.name, "summary": kind.summary, "usual_url": kind.usual_url,
        "required": required, "fields": fields,
    })
}

/// One field; `None` for what no single field can ask for (a table, a list of tables).
fn field(root: &Value, key: &str, property: &Value) -> Option<Value> {
    let described = property.get("description").and_then(Value::as_str).unwrap_or_default();
    let with = |form: &str, choices: Vec<&str>| {
        Some(json!({ "key": key, "form": form, "choices": choices, "description": described }))
    };
    if is_secret(root, property) {
        return with("secret", Vec::new());
    }
    let schema = resolved(root, property);
    // An option is any of its own form and null.
    let any = schema.get("anyOf").and_then(Value::as_array);
    let schema = any
        .and_then(|any| any.iter().find(|one| one.get("type") != Some(&json!("null"))))
        .map_or(schema, |one| resolved(root, one));
    if is_secret(root, schema) {
        return with("secret", Vec::new());
    }
    let choice = |one: &Value| one.get("const").and_then(Value::as_str).map(ToOwned::to_owned);
    let listed = schema.get("oneOf").or_else(|| schema.get("enum")).and_then(Value::as_array);
    if let Some(listed) = listed {
        let words: Vec<String> = listed
            .iter()
            .filter_map(|one| one.as_str().map(ToOwned::to_owned).or_else(|| choice(one)))
            .collect();
        return if words.len() == listed.len() {
            with("choice", words.iter().map(String::as_str).collect())
        } else {
            None
        };
    }
    let types = match schema.get("type") {
        Some(Value::String(one)) => vec![one.as_str()],
        Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    match types.iter().find(|one| **one != "null") {
        Some(&"boolean") => with("switch", Vec::new()),
        Some(&"integer" | &"number") => with("number", Vec::new()),
        Some(&"string") => with("text", Vec::new()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_a_form_of_its_own_keys_and_secrets_are_hidden() {
        let questions = questions(std::path::Path::new("/nowhere"));
        let kinds = questions["kinds"].as_array().unwrap();
        let names: Vec<_> = kinds.iter().map(|kind| kind["name"].as_str().unwrap()).collect();
        assert_eq!(names, KINDS.iter().map(|kind| kind.name).collect::<Vec<_>>());
        let field = |kind: &str, key: &str| {
            let kind = kinds.iter().find(|one| one["name"] == kind).unwrap();
            let fields = kind["fields"].as_array().unwrap();
            let found = fields.iter().find(|field| field["key"] == key);
            found.unwrap_or_else(|| panic!("{kind}")).clone()
        };
        for (kind, key, form) in [
            ("mqtt", "url", "text"),
            ("mqtt", "user", "text"),
            ("mqtt", "password", "secret"),
            ("mqtt", "homeassistant", "switch"),
            ("mqtt", "version", "choice"),
            ("nats", "jetstream", "switch"),
            ("redis", "mode", "choice"),
            ("webhook", "url", "secret"),
            ("webhook", "concurrency", "number"),
        ] {
            assert_eq!(field(kind, key)["form"], form, "{kind} {key}");
        }
        assert_eq!(field("mqtt", "homeassistant")["first"], true);
        assert_eq!(field("mqtt", "keep_alive")["first"], false);
        assert_eq!(field("mqtt", "version")["choices"], json!(["5", "3.1.1"]));
        let first: Vec<_> = questions["topics"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|topic| topic["first"] == true)
            .map(|topic| topic["name"].as_str().unwrap())
            .collect();
        assert_eq!(first.len(), FIRST_TOPICS.len());
    }
}
