//! Nothing that the schema allows is lost on the way into the configuration.

use serde_json::json;

use super::*;
use crate::{
    config::secret::FORMS,
    loading::{schema::resolved, shape::words},
    sink::KINDS,
};

/// Of whatever type a key is, one of these is a value of it, and not its default.
fn values(of: &Value) -> Vec<Value> {
    let known = words(resolved(schema(), of)).unwrap_or_default();
    let texts = ["77s", "77KiB", "never", "a text of its own"];
    let others = [
        json!(true),
        json!(false),
        json!(1),
        json!(77),
        json!(["session/set"]),
        json!({ "a": "b" }),
    ];
    known.into_iter().chain(texts).map(Value::from).chain(others).collect()
}

fn config(tables: Value) -> Config {
    let places = Places { file: None, variables: BTreeMap::new(), arguments: BTreeMap::new() };
    typed(&walk(schema(), &places, tables), &mut Vec::new())
}

/// The way to each table of the schema, the name of its definition, and the least that it holds.
fn every_table() -> Vec<(Vec<&'static str>, String, Value)> {
    let mut tables = Vec::new();
    let channel = json!({ "token": "t", "topics": ["channel.tips"] });
    tables.push((vec!["channels", "main"], "Channel".to_owned(), channel));
    for kind in KINDS {
        let least = json!({ "type": kind.name });
        tables.push((vec!["sinks", kind.name], format!("sink-{}", kind.name), least));
    }
    for section in keys(schema()).filter(|name| !["channels", "sinks"].contains(name)) {
        let reference = schema()["properties"][section]["$ref"].as_str().unwrap();
        let definition = reference.strip_prefix("#/$defs/").unwrap().to_owned();
        let least = if section == "cluster" { json!({ "url": "nats://a" }) } else { json!({}) };
        tables.push((vec![section], definition, least));
    }
    tables
}

#[test]
fn every_key_of_the_schema_arrives_in_the_configuration() {
    let mut lost = Vec::new();
    for (path, definition, least) in every_table() {
        let at_path = |table: &Value| {
            path.iter().rev().fold(table.clone(), |inner, name| json!({ *name: inner }))
        };
        let without = config(at_path(&least));
        let definition = &schema()["$defs"][&definition];
        for key in keys(definition).filter(|key| *key != "type") {
            let mut table = least.clone();
            // A secret is there in one of its forms.
            for (form, _) in FORMS {
                table.as_object_mut().unwrap().remove(key.strip_suffix(form).unwrap_or(key));
            }
            let arrives = values(&definition["properties"][key]).into_iter().any(|value| {
                table[key] = value;
                let with = config(at_path(&table));
                let tables = |config: &Config| config.channels.len() + config.sinks.len();
                with != without && tables(&with) == tables(&without)
            });
            if !arrives {
                lost.push(format!("{}.{key}", path.join(".")));
            }
        }
    }
    assert_eq!(lost, [""; 0]);
}
