//! A configuration file that is watched, seen at every bad moment of its life.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, symlink},
    path::Path,
    time::Duration,
};

use serde_json::{Value, json};

use super::{PATIENCE, Running, channel};
use crate::support::wait::until;

const SINK: &str = "[sinks.out]\ntype = \"redis\"\nurl = \"redis://127.0.0.1:9\"\n";

/// Longer than a file must be still before it is loaded.
const STILL: Duration = Duration::from_secs(5);

fn watched(topics: &[&str]) -> String {
    format!("reload.watch = true\n{}{SINK}", channel(topics))
}

async fn start() -> Running {
    let relay = Running::start(&watched(&["channel.tips"])).await;
    relay.subscribed(1).await;
    relay
}

fn problems(status: &Value) -> String {
    status["pages"]["reload"]["problems"].to_string()
}

/// Waits until the file was looked at and refused, and sees to it that nothing was changed.
async fn refused(relay: &Running, what: &str) {
    let status = relay.until("it is refused", |status| problems(status).contains(what)).await;
    assert_eq!(status["pages"]["reload"]["by"], "file");
    relay.subscribed(1).await;
    assert!(status["pages"]["sinks"]["out"].is_object(), "{status}");
}

#[tokio::test]
async fn a_file_that_is_empty_for_a_while_changes_nothing_and_the_whole_one_is_loaded() {
    let relay = start().await;
    fs::write(relay.file(), "").unwrap();
    refused(&relay, "no channel is left").await;
    refused(&relay, "no sink is left").await;
    // Written in pieces, the words that it is watched last; each piece is a file of its own.
    let rest = format!("{}{SINK}", channel(&["channel.tips"]));
    fs::write(relay.file(), rest.split("[sinks").next().unwrap()).unwrap();
    refused(&relay, "[\"no sink is left").await;
    relay.rewrite(&watched(&["channel.tips", "channel.follow"]));
    relay.subscribed(2).await;
}

#[tokio::test]
async fn half_a_file_that_can_be_used_does_not_end_the_watching() {
    let relay = start().await;
    let both = format!(
        "{}[sinks.second]\ntype = \"redis\"\nurl = \"redis://127.0.0.1:9\"\n",
        watched(&["channel.tips"])
    );
    relay.rewrite(&both);
    relay.until("both are there", |status| status["pages"]["sinks"]["second"].is_object()).await;
    // What is not there yet says that it is watched, and that there is a second sink.
    relay.rewrite(&format!("{}{SINK}", channel(&["channel.tips"])));
    relay
        .until("half of it is loaded", |status| status["pages"]["sinks"]["second"].is_null())
        .await;
    relay.rewrite(&both);
    relay
        .until("both are there again", |status| status["pages"]["sinks"]["second"].is_object())
        .await;
}

#[tokio::test]
async fn whoever_turns_the_watching_off_is_left_alone() {
    let relay = start().await;
    let rest = |topics: &[&str]| format!("{}{SINK}", channel(topics));
    relay.rewrite(&rest(&["channel.tips"]));
    relay
        .until("it is loaded", |status| {
            status["pages"]["reload"]["applied"] == json!(["reload.watch"])
        })
        .await;
    relay.rewrite(&rest(&["channel.tips", "channel.follow"]));
    tokio::time::sleep(STILL).await;
    relay.subscribed(1).await;
    assert_eq!(relay.reload().await.0, 200);
    relay.subscribed(2).await;
}

#[tokio::test]
async fn a_file_is_found_however_it_was_exchanged() {
    let relay = start().await;
    let (one, two) = (watched(&["channel.tips"]), watched(&["channel.tips", "channel.follow"]));
    let file = relay.file();
    let beside = |name: &str, text: &str| {
        let path = relay.dir.path().join(name);
        fs::write(&path, relay.whole(text)).unwrap();
        path
    };
    // By renaming.
    fs::rename(beside("new", &two), &file).unwrap();
    relay.subscribed(2).await;
    // Away for a moment.
    fs::remove_file(&file).unwrap();
    tokio::time::sleep(STILL).await;
    relay.subscribed(2).await;
    relay.rewrite(&one);
    relay.subscribed(1).await;
    // A link to a link that is exchanged, as Kubernetes mounts it.
    let place = relay.dir.path();
    for (version, text) in [("v1", &one), ("v2", &two)] {
        fs::create_dir(place.join(version)).unwrap();
        fs::write(place.join(version).join("astro-relay.toml"), relay.whole(text)).unwrap();
    }
    let point = |to: &str| {
        symlink(to, place.join("..tmp")).unwrap();
        fs::rename(place.join("..tmp"), place.join("..data")).unwrap();
    };
    point("v1");
    fs::remove_file(&file).unwrap();
    symlink("..data/astro-relay.toml", &file).unwrap();
    tokio::time::sleep(STILL).await;
    point("v2");
    relay.subscribed(2).await;
    // Its folder is made again.
    fs::remove_dir_all(place.join("v2")).unwrap();
    fs::create_dir(place.join("v2")).unwrap();
    fs::write(place.join("v2/astro-relay.toml"), relay.whole(&one)).unwrap();
    relay.subscribed(1).await;
}

#[tokio::test]
async fn a_change_is_seen_though_size_and_time_are_as_before() {
    let relay = start().await;
    let file = relay.file();
    let before = fs::metadata(&file).unwrap();
    relay.rewrite(&watched(&["channel.hype"]));
    let cheers = relay.whole(&watched(&["channel.hype"]));
    assert_eq!(cheers.len(), relay.whole(&watched(&["channel.tips"])).len());
    let modified = before.modified().unwrap();
    fs::File::options().write(true).open(&file).unwrap().set_modified(modified).unwrap();
    assert_eq!(fs::metadata(&file).unwrap().mtime(), before.mtime());
    relay
        .until("it is loaded", |status| {
            status["pages"]["connections"].to_string().contains("channel.hype")
        })
        .await;
}

#[tokio::test]
async fn a_secret_that_comes_back_is_found_though_the_file_is_the_same() {
    let relay = start().await;
    let secret = relay.dir.path().join("password");
    let more = format!(
        "[sinks.more]\ntype = \"redis\"\nurl = \"redis://127.0.0.1:9\"\npassword_file = {:?}\n",
        secret.display().to_string()
    );
    relay.rewrite(&format!("{}{more}", watched(&["channel.tips"])));
    refused(&relay, "sinks.more").await;
    write_secret(&secret);
    until("it is tried again", 2 * PATIENCE, async || {
        let status = relay.status().await;
        status["pages"]["sinks"]["more"].is_object().then_some(())
    })
    .await;
}

fn write_secret(file: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::write(file, "secret").unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
}

#[tokio::test]
async fn nothing_is_emptied_by_asking_and_nothing_configured_is_not_ready() {
    let relay = start().await;
    fs::write(relay.file(), "").unwrap();
    let (code, report) = relay.reload().await;
    assert_eq!(code, 422, "{report}");
    assert!(report["problems"].to_string().contains("no channel is left"), "{report}");
    relay.subscribed(1).await;

    let empty = Running::start("").await;
    let answer = empty.get("/readyz").await;
    assert_eq!(answer.status(), 503);
    let text = answer.text().await.unwrap();
    assert_eq!(text, "not working\nno channel is configured\nno sink is configured\n");
    // It can be filled without a restart.
    empty.rewrite(&format!("{}{SINK}", channel(&["channel.tips"])));
    assert_eq!(empty.reload().await.0, 200);
    empty.subscribed(1).await;
    let text = empty.get("/readyz").await.text().await.unwrap();
    assert!(!text.contains("configured"), "{text}");
}
