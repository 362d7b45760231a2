//! Example messages go through the gateway byte for byte: our own, and the vendor's where they are.

use std::{fs, path::Path};

use astro_sim::Options;
use serde_json::Value;

use crate::{ROOM, client::Client, is_rfc3339, start};

/// Sends every message of a folder to a subscriber of its topic; returns how many there were.
async fn relay_all(folder: &Path) -> usize {
    let sim = start(Options { commands_per_window: 1000, ..Options::default() }).await;
    let mut client = Client::welcomed(&sim).await;
    let mut files: Vec<_> =
        fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    for file in &files {
        let text = fs::read_to_string(file).unwrap();
        let message: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(message["type"], "message", "{}", file.display());
        assert!(message["id"].is_string(), "{}", file.display());
        assert!(is_rfc3339(&message["ts"]));
        let topic = message["topic"].as_str().unwrap();
        client.subscribe(topic, message["room"].as_str().unwrap_or(ROOM)).await;
        assert_eq!(sim.publish_raw(&text).unwrap(), 1, "{}", file.display());
        assert_eq!(client.text().await, text);
    }
    files.len()
}

#[tokio::test]
async fn our_own_examples() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("messages");
    assert!(relay_all(&folder).await >= 20);
}

#[tokio::test]
#[expect(clippy::print_stderr, reason = "a test that tested nothing should say so")]
async fn the_documentations_examples() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures/messages");
    if folder.is_dir() {
        assert!(relay_all(&folder).await >= 40);
    } else {
        eprintln!("absent, not tested: {}", folder.display());
    }
}
