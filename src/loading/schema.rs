//! The JSON Schema of the whole file, for editors and for [`crate::loading::shape`].
//!
//! It is made of the typed model and of what each kind of sink says of its settings. On the way,
//! three things are put right: TOML has no `null`, a secret's key has four forms of which one is
//! given, and a sink's table is that of its `type`.
//!
//! A sink is a `oneOf` over the kinds, distinguished by the constant in `type`.

use std::sync::LazyLock;

use schemars::schema_for;
use serde_json::{Map, Value, json};

use crate::{
    base::json,
    config::{
        Config, SinkConfig,
        secret::{FORMAT, FORMS},
    },
    sink::{KINDS, Kind},
};

/// Names of channels and sinks: what stays one name in a variable, a metric's label and a path.
pub const NAME_PATTERN: &str = "^[a-z0-9_-]{1,64}$";

static SCHEMA: LazyLock<Value> = LazyLock::new(build);

/// The schema of the whole configuration.
pub fn schema() -> &'static Value {
    &SCHEMA
}

/// Keys that all sinks share.
pub(crate) fn common_keys() -> impl Iterator<Item = &'static str> {
    static COMMON: LazyLock<Value> = LazyLock::new(|| schema_for!(SinkConfig).to_value());
    keys(&COMMON)
}

/// The properties that a schema names.
pub(crate) fn keys(schema: &Value) -> impl Iterator<Item = &str> {
    schema
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(key, _)| key.as_str())
}

/// Follows references, to the schema that says something of its own.
pub(crate) fn resolved<'s>(root: &'s Value, schema: &'s Value) -> &'s Value {
    /// Definitions name each other at most this deep; a circle ends here.
    const DEEPEST: usize = 8;
    let mut schema = schema;
    for _ in 0..DEEPEST {
        let target = schema
            .get("$ref")
            .and_then(Value::as_str)
            .and_then(|reference| root.pointer(reference.strip_prefix('#')?));
        match target {
            Some(target) => schema = target,
            None => break,
        }
    }
    schema
}

/// Whether it is the schema of a secret.
pub(crate) fn is_secret(root: &Value, schema: &Value) -> bool {
    resolved(root, schema).get("format").and_then(Value::as_str) == Some(FORMAT)
}

fn build() -> Value {
    let mut root = schema_for!(Config).to_value();
    let mut common = schema_for!(SinkConfig).to_value();
    let mut definitions = taken(&mut root, "$defs");
    definitions.extend(taken(&mut common, "$defs"));
    definitions.remove("SinkConfig");
    let mut kinds = Vec::new();
    for kind in KINDS {
        let (schema, own) = of_kind(kind, &common);
        definitions.extend(own);
        let name = format!("sink-{}", kind.name);
        kinds.push(json!({ "$ref": format!("#/$defs/{name}") }));
        definitions.insert(name, schema);
    }
    for definition in definitions.values_mut() {
        tidy(definition);
    }
    tidy(&mut root);
    json::set(&mut root, "$defs", Value::Object(definitions));
    for (table, of) in [("channels", None), ("sinks", Some(json!({ "oneOf": kinds })))] {
        let Some(table) = root.pointer_mut(&format!("/properties/{table}")) else { continue };
        json::set(table, "propertyNames", json!({ "pattern": NAME_PATTERN }));
        if let Some(of) = of {
            json::set(table, "additionalProperties", of);
        }
    }
    let copy = root.clone();
    with_forms(&mut root, &copy);
    json::set(&mut root, "title", "The configuration of astro-relay".into());
    root
}

/// The schema of a kind's table, and the definitions that it needs, under names of its own.
fn of_kind(kind: &Kind, common: &Value) -> (Value, Map<String, Value>) {
    let mut own = (kind.schema)().to_value();
    let definitions = taken(&mut own, "$defs");
    let renamed = |name: &str| format!("{}-{name}", kind.name);
    let mut properties = taken(&mut common.clone(), "properties");
    let mut settings = taken(&mut own, "properties");
    for (key, schema) in &mut settings {
        if kind.secrets.contains(&key.as_str()) {
            let description = schema.get("description").cloned();
            *schema = json!({ "$ref": "#/$defs/SecretRef" });
            if let Some(description) = description {
                json::set(schema, "description", description);
            }
        }
        rename(schema, &renamed);
    }
    properties.extend(settings);
    properties.insert("type".into(), json!({ "const": kind.name, "description": kind.summary }));
    let mut required = vec![Value::from("type")];
    required.extend(own.get("required").and_then(Value::as_array).cloned().unwrap_or_default());
    let schema = json!({
        "type": "object",
        "description": kind.summary,
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    });
    let definitions = definitions
        .into_iter()
        .filter(|(name, _)| name != "SecretRef")
        .map(|(name, mut definition)| {
            rename(&mut definition, &renamed);
            (renamed(&name), definition)
        })
        .collect();
    (schema, definitions)
}

/// Points references at the definitions' new names; that of a secret is everybody's.
fn rename(schema: &mut Value, renamed: &impl Fn(&str) -> String) {
    if let Some(Value::String(reference)) = schema.get_mut("$ref")
        && let Some(name) = reference.strip_prefix("#/$defs/").filter(|name| *name != "SecretRef")
    {
        *reference = format!("#/$defs/{}", renamed(name));
    }
    each(schema, &mut |part| rename(part, renamed));
}

/// Takes out what TOML cannot say: `null`, alone or as a choice; and the defaults of whole tables,
/// which stand at their keys.
fn tidy(schema: &mut Value) {
    each(schema, &mut tidy);
    let Some(object) = schema.as_object_mut() else { return };
    if object.get("default").is_some_and(|default| default.is_null() || default.is_object()) {
        object.remove("default");
    }
    if let Some(Value::Array(types)) = object.get_mut("type") {
        types.retain(|word| word != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            object.insert("type".into(), only);
        }
    }
    let mut choices = match object.remove("anyOf") {
        Some(Value::Array(choices)) => choices,
        Some(other) => vec![other],
        None => return,
    };
    choices.retain(|choice| choice.get("type").is_none_or(|word| word != "null"));
    match (choices.pop(), choices.is_empty()) {
        (Some(Value::Object(only)), true) => {
            for (key, value) in only {
                object.entry(key).or_insert(value);
            }
        }
        (Some(last), _) => {
            choices.push(last);
            object.insert("anyOf".into(), Value::Array(choices));
        }
        (None, _) => {}
    }
}

/// Gives each secret's key its other forms, and says that one of them is given.
fn with_forms(schema: &mut Value, root: &Value) {
    each(schema, &mut |part| with_forms(part, root));
    let secrets: Vec<String> = schema
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter(|(_, property)| is_secret(root, property))
        .map(|(key, _)| key.clone())
        .collect();
    for key in secrets {
        let Some(object) = schema.as_object_mut() else { return };
        let mut needed = false;
        if let Some(Value::Array(required)) = object.get_mut("required") {
            let before = required.len();
            required.retain(|name| *name != *key);
            needed = required.len() < before;
        }
        if let Some(Value::Object(properties)) = object.get_mut("properties") {
            for (form, what) in [
                ("_file", "a file that holds it"),
                ("_env", "an environment variable that holds it"),
                ("_credential", "a credential of systemd (LoadCredential=) that holds it"),
            ] {
                let description = format!("instead of `{key}`: {what}");
                properties.insert(
                    format!("{key}{form}"),
                    json!({ "type": "string", "description": description }),
                );
            }
        }
        let forms: Vec<Value> = FORMS
            .iter()
            .map(|(suffix, _)| json!({ "required": [format!("{key}{suffix}")] }))
            .collect();
        let mut choices = forms.clone();
        if !needed {
            choices.push(json!({ "not": { "anyOf": forms } }));
        }
        let all = object.entry("allOf").or_insert_with(|| json!([]));
        if let Value::Array(all) = all {
            all.push(json!({ "oneOf": choices }));
        }
    }
}

/// Whether one of the forms of the secret `key` must be given.
pub(crate) fn needs_secret(schema: &Value, key: &str) -> bool {
    let choices = |part: &Value| part.get("oneOf").and_then(Value::as_array).cloned();
    schema.get("allOf").and_then(Value::as_array).into_iter().flatten().filter_map(choices).any(
        |choices| {
            let first = choices.first().and_then(|choice| choice.pointer("/required/0"));
            choices.len() == FORMS.len() && first.is_some_and(|name| name == key)
        },
    )
}

/// Calls `of` with every schema directly inside this one.
fn each(schema: &mut Value, of: &mut impl FnMut(&mut Value)) {
    let Some(object) = schema.as_object_mut() else { return };
    for (key, value) in object {
        match (key.as_str(), value) {
            ("properties" | "$defs" | "patternProperties", Value::Object(parts)) => {
                parts.values_mut().for_each(&mut *of);
            }
            ("oneOf" | "anyOf" | "allOf", Value::Array(parts)) => {
                parts.iter_mut().for_each(&mut *of);
            }
            ("items" | "additionalProperties" | "not", part) => of(part),
            _ => {}
        }
    }
}

fn taken(schema: &mut Value, key: &str) -> Map<String, Value> {
    match schema.as_object_mut().and_then(|object| object.remove(key)) {
        Some(Value::Object(taken)) => taken,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls `of` with every schema, and the path to it.
    fn all(schema: &Value, path: &str, of: &mut impl FnMut(&str, &Value)) {
        of(path, schema);
        match schema {
            Value::Object(object) => {
                for (key, value) in object {
                    all(value, &format!("{path}/{key}"), of);
                }
            }
            Value::Array(list) => {
                for (index, value) in list.iter().enumerate() {
                    all(value, &format!("{path}/{index}"), of);
                }
            }
            _ => {}
        }
    }

    #[test]
    fn every_reference_leads_somewhere_and_null_is_nowhere() {
        let root = schema();
        all(root, "", &mut |path, schema| {
            if let Some(Value::String(reference)) = schema.get("$ref") {
                let target = reference.strip_prefix('#').and_then(|path| root.pointer(path));
                assert!(target.is_some(), "{path}: {reference}");
            }
            assert!(!schema.is_null() && schema.as_str() != Some("null"), "{path}");
        });
    }

    #[test]
    fn every_key_is_described() {
        let root = schema();
        let mut without = Vec::new();
        all(root, "", &mut |path, schema| {
            let property = path.rsplit('/').nth(1) == Some("properties");
            if property && schema.get("description").is_none() {
                without.push(path.to_owned());
            }
        });
        assert_eq!(without, [""; 0]);
    }

    #[test]
    fn no_kind_takes_a_key_that_all_sinks_share() {
        for kind in KINDS {
            let own = (kind.schema)().to_value();
            let taken: Vec<&str> =
                common_keys().filter(|key| keys(&own).any(|own| own == *key)).collect();
            assert_eq!(taken, [""; 0], "{}", kind.name);
        }
    }

    #[test]
    fn a_secret_has_four_forms_of_which_one_is_given() {
        let channel = &schema()["$defs"]["Channel"];
        for form in ["token", "token_file", "token_env", "token_credential"] {
            assert!(keys(channel).any(|key| key == form), "{form}");
        }
        assert!(needs_secret(channel, "token"));
        let http = &schema()["$defs"]["Http"];
        assert!(keys(http).any(|key| key == "admin_token_file"));
        assert!(!needs_secret(http, "admin_token"));
        assert_eq!(schema()["$defs"]["SecretRef"]["writeOnly"], true);
    }

    #[test]
    fn a_sink_is_one_of_the_kinds_and_names_all_its_keys() {
        let kinds = schema()["properties"]["sinks"]["additionalProperties"]["oneOf"].as_array();
        assert_eq!(kinds.unwrap().len(), KINDS.len());
        let stdout = &schema()["$defs"]["sink-stdout"];
        for key in ["type", "topics", "when", "format"] {
            assert!(keys(stdout).any(|name| name == key), "{key}");
        }
    }
}
