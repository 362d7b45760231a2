//! That the documents name what the program has.

use std::{fs, path::Path};

use astro_relay::astro::topics::CATALOGUE;

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
        serde_json::from_str::<serde_json::Value>(example)
            .unwrap_or_else(|e| panic!("{e}: {example}"));
        count += 1;
    }
    assert_eq!(count, 6);
}
