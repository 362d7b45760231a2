//! Servers that lose what they had: the end of the log, the log, all of it, a cursor.

use std::{path::Path, process::Command};

use super::{
    bench::PATIENCE,
    members::{arrived, begun, published},
    setup::Small,
};
use crate::support::{daemon::Relay, nats_server::NatsServer, wait::until};

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(status.success());
}

/// Five more go through; then the server has in its log the first five, as after a power cut.
async fn loses_its_end(server: &mut NatsServer, small: &Small, relay: &Relay) -> impl Fn() + use<> {
    server.server.kill().await;
    let log = server.stream_dir("astro_log");
    let kept = tempfile::tempdir().unwrap();
    copy(&log, kept.path());
    server.server.restart().await;
    small.load(5, 5).await;
    arrived(small, 10, &[relay]).await;
    published(&[relay]).await;
    move || {
        std::fs::remove_dir_all(&log).unwrap();
        copy(&kept.path().join("astro_log"), log.parent().unwrap());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_loss_of_the_logs_end_what_comes_is_delivered() {
    let (mut server, small, relay) = begun().await;
    let lose = loses_its_end(&mut server, &small, &relay).await;
    server.server.kill().await;
    lose();
    // These get the numbers of those that are lost, and more.
    small.load(10, 10).await;
    server.server.restart().await;
    arrived(&small, 20, &[&relay]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_driver_that_begins_after_a_loss_of_the_logs_end_repeats_nothing() {
    let (mut server, small, mut relay) = begun().await;
    let lose = loses_its_end(&mut server, &small, &relay).await;
    relay.stop().await;
    server.server.kill().await;
    lose();
    server.server.restart().await;
    relay.start();
    relay.ready().await;
    small.load(10, 10).await;
    arrived(&small, 20, &[&relay]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_was_deleted_is_made_again_and_read_from_its_first_event() {
    let (server, small, relay) = begun().await;
    server.streams().await.delete_stream("astro_log").await.unwrap();
    small.load(5, 10).await;
    arrived(&small, 15, &[&relay]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_that_the_servers_keep_can_be_deleted_and_what_comes_is_delivered() {
    let (server, small, relay) = begun().await;
    let context = server.streams().await;
    for of in ["cursor", "dead", "state", "done", "lease"] {
        context.delete_stream(format!("KV_astro_{of}")).await.unwrap();
    }
    context.delete_stream("astro_log").await.unwrap();
    small.load(5, 30).await;
    arrived(&small, 35, &[&relay]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_that_was_deleted_is_made_where_its_driver_is() {
    let (server, small, mut relay) = begun().await;
    let context = server.streams().await;
    let cursors = context.get_key_value("astro_cursor").await.unwrap();
    cursors.delete("hook").await.unwrap();
    small.load(5, 5).await;
    arrived(&small, 10, &[&relay]).await;
    until("the cursor is there again", PATIENCE, async || {
        cursors.get("hook").await.unwrap().filter(|value| !value.is_empty())
    })
    .await;
    // The whole bucket, too.
    context.delete_stream("KV_astro_cursor").await.unwrap();
    small.load(10, 5).await;
    arrived(&small, 15, &[&relay]).await;
    relay.stop().await;
    relay.start();
    relay.ready().await;
    small.load(15, 5).await;
    arrived(&small, 20, &[&relay]).await;
}
