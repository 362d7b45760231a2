//! Servers that lose what they had: the end of the log, the log, all of it, a cursor, a bucket, leases.

use std::{collections::BTreeSet, path::Path, process::Command};

use astro_sim::Load;
use async_nats::{
    ConnectOptions,
    jetstream::{self, Context, kv::Store, stream::Stream},
};
use futures_util::TryStreamExt as _;
use serde_json::Value;

use super::{
    bench::{PATIENCE, TOPIC, room},
    letters::knows,
    members::{LONG, arrived, begun, gaps, page, published},
    setup::{Small, says},
};
use crate::support::{daemon::Relay, nats_server::NatsServer, receiver::Answer, wait::until};

/// What a member says that finds a cursor of before a loss.
const FOUND: &str = "the log has lost events, or was made again";

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
    // The sink had all of it.
    assert!(!relay.log().contains(FOUND), "{}", relay.log());
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

/// The keys of the bucket of state.
async fn state_keys(server: &NatsServer) -> Option<BTreeSet<String>> {
    let bucket = server.streams().await.get_key_value("astro_state").await.ok()?;
    bucket.keys().await.ok()?.try_collect().await.ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_state_of_channels_comes_back_to_a_server_that_has_lost_all() {
    let (mut server, _small, relay) = begun().await;
    let before = until("the bucket has the state", PATIENCE, async || {
        state_keys(&server).await.filter(|keys| !keys.is_empty())
    })
    .await;
    server.server.kill().await;
    std::fs::remove_dir_all(server.stream_dir("astro_log").parent().unwrap()).unwrap();
    server.server.restart().await;
    let again = until("the state is there again", PATIENCE * 2, async || {
        state_keys(&server).await.filter(|keys| keys.is_superset(&before))
    });
    let in_time = tokio::time::timeout(PATIENCE, again).await.is_ok();
    assert!(in_time, "{before:?}\n{}", relay.log());
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

/// Ten more events that the destination does not take, and its driver knows of.
async fn ten_wait(small: &Small, relay: &Relay) {
    small.receiver.room(&room(0), Some(Answer::Status(503)));
    small.load(5, 10).await;
    until("the sink lags", PATIENCE, async || {
        let lag = page(relay).await?["sinks"]["hook"]["lag_events"].as_u64()?;
        (lag >= 10).then_some(())
    })
    .await;
    published(&[relay]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_sink_had_still_to_get_of_a_log_that_was_deleted_is_a_gap() {
    let (server, small, relay) = begun().await;
    ten_wait(&small, &relay).await;
    server.streams().await.delete_stream("astro_log").await.unwrap();
    let reported = until("the gap is reported", PATIENCE * 2, async || {
        let of_all =
            |(channel, _, recovered): &(String, String, bool)| channel.is_empty() && !recovered;
        server.streams().await.get_stream("astro_log").await.ok()?;
        gaps(&server).await.iter().any(of_all).then_some(())
    });
    let in_time = tokio::time::timeout(PATIENCE, reported).await.is_ok();
    assert!(in_time, "{}", relay.log());
    let lost = "the log has lost events that the sink had still to get";
    assert!(relay.log().contains(lost), "{}", relay.log());
    says(&relay, "lost, the log no longer holds them").await;
    small.receiver.room(&room(0), None);
    small.load(15, 5).await;
    let mut all = Vec::new();
    let arriving = until("what comes is delivered", PATIENCE * 2, async || {
        all = small.receiver.accepted();
        (all.len() >= 10).then_some(())
    });
    let in_time = tokio::time::timeout(PATIENCE, arriving).await.is_ok();
    assert!(in_time, "{all:?}\n{}", relay.log());
    assert_eq!(all, (0..5).chain(15..20).collect::<Vec<_>>(), "{}", relay.log());
    assert!(!relay.log().contains(FOUND), "it is said once\n{}", relay.log());
}

/// How many events health says that the sink has lost.
async fn lost(relay: &Relay) -> Option<u64> {
    let answer = relay.get("/readyz").await?;
    let (before, _) = answer.split_once(" events lost, the log no longer holds them")?;
    before.rsplit(' ').next()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_log_deletes_under_a_sink_that_is_down_is_said_meanwhile() {
    // More than is read ahead for a sink, and what the log has space for.
    const EVENTS: u64 = 500;
    const MORE: u64 = 100;
    let server = NatsServer::start("").await;
    server.streams().await;
    let small = Small { lease: LONG, ..Small::start().await };
    let url = server.url();
    let cluster = format!("url = {url:?}\nmember = \"a\"\nmax_size = \"1MiB\"");
    let mut relay = small.member(&cluster, "window = 16\nbackoff_max = \"1s\"");
    relay.start();
    relay.ready().await;
    small.receiver.room(&room(0), Some(Answer::Status(503)));
    let load = Load {
        messages: EVENTS,
        rate: Some(200),
        topic: TOPIC.into(),
        rooms: vec![room(0)],
        size: 16 * 1024,
        ..Load::default()
    };
    small.sim.load(&load).await;
    says(&relay, " events lost, the log no longer holds them").await;
    // Whoever drives the sink next finds the same missing.
    let text = std::fs::read_to_string(relay.config()).unwrap();
    std::fs::write(relay.config(), text.replace("window = 16", "window = 17")).unwrap();
    relay.signal("HUP").await;
    until("the sink is another", PATIENCE, async || {
        relay.log().contains("the configuration was reloaded").then_some(())
    })
    .await;
    let first = until("it is still said", PATIENCE, async || lost(&relay).await).await;
    small.sim.load(&Load { first: EVENTS, messages: MORE, ..load }).await;
    let growing = until("more are lost", PATIENCE * 2, async || {
        lost(&relay).await.filter(|count| *count > first)
    });
    assert!(tokio::time::timeout(PATIENCE, growing).await.is_ok(), "{first}\n{}", relay.log());
    small.receiver.room(&room(0), None);
    let mut all = BTreeSet::new();
    let arriving = until("what is left is delivered", PATIENCE * 2, async || {
        all = small.receiver.accepted().into_iter().collect();
        all.contains(&(EVENTS + MORE - 1)).then_some(())
    });
    let in_time = tokio::time::timeout(PATIENCE, arriving).await.is_ok();
    assert!(in_time, "{all:?}\n{}", relay.log());
    // Each is counted once, and a few of the relay's own may be among them.
    let missing = EVENTS + MORE - all.len() as u64;
    let counted = lost(&relay).await.unwrap();
    assert!((missing..missing + 20).contains(&counted), "{missing} {counted}\n{}", relay.log());
}

/// Whether there is a cursor of the sink that its driver has written: one from before that has no member.
async fn is_of_driver(cursors: &Store) -> Option<()> {
    let value = cursors.get("hook").await.ok()??;
    let cursor: Value = serde_json::from_slice(&value).ok()?;
    (cursor["member"] == "a").then_some(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cursor_of_a_sink_that_lags_is_made_again_where_its_driver_is() {
    let (server, small, mut relay) = begun().await;
    ten_wait(&small, &relay).await;
    let context = server.streams().await;
    let cursors = context.get_key_value("astro_cursor").await.unwrap();
    cursors.purge("hook").await.unwrap();
    until("the cursor is there again", PATIENCE, async || is_of_driver(&cursors).await).await;
    context.delete_stream("KV_astro_cursor").await.unwrap();
    until("the bucket has it again", PATIENCE, async || is_of_driver(&cursors).await).await;
    relay.kill().await;
    small.receiver.room(&room(0), None);
    relay.start();
    relay.ready().await;
    arrived(&small, 15, &[&relay]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_was_deleted_is_made_again() {
    let (server, small, relay) = begun().await;
    small.receiver.room(&room(0), Some(Answer::Status(422)));
    small.load(5, 2).await;
    knows(&relay, 2).await;
    let context = server.streams().await;
    for of in ["dead", "state", "done"] {
        let name = format!("KV_astro_{of}");
        context.delete_stream(&name).await.unwrap();
        let made =
            until("it is there again", PATIENCE * 2, async || context.get_stream(&name).await.ok());
        let in_time = tokio::time::timeout(PATIENCE, made).await.is_ok();
        assert!(in_time, "{name}\n{}", relay.log());
        let log = relay.log();
        let is_said = |line: &str| line.contains("it is made again") && line.contains(&name);
        assert!(log.lines().any(is_said), "{log}");
        // Before that it looks for the others still, and makes those that are missing.
        until("the cluster works again", PATIENCE, async || {
            page(&relay).await?["problems"].as_array()?.is_empty().then_some(())
        })
        .await;
    }
    // The letters of the bucket before are gone, and those that come are kept.
    knows(&relay, 0).await;
    small.load(7, 1).await;
    knows(&relay, 1).await;
}

async fn lease_bucket(context: &Context) -> Option<Stream> {
    context.get_stream("KV_astro_lease").await.ok()
}

/// As with servers that find no key of a bucket any more.
async fn loses_its_leases(leases: &Stream) {
    drop(leases.purge().filter("$KV.astro_lease.sink.hook").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_that_the_servers_do_not_keep_are_put_into_another_bucket() {
    let (server, small, relay) = begun().await;
    let context = server.streams().await;
    let before = lease_bucket(&context).await.unwrap().cached_info().created;
    let remade = until("the bucket is another", PATIENCE * 2, async || {
        let leases = lease_bucket(&context).await?;
        if leases.cached_info().created != before {
            return Some(());
        }
        loses_its_leases(&leases).await;
        None
    });
    let in_time = tokio::time::timeout(PATIENCE, remade).await.is_ok();
    assert!(in_time, "{}", relay.log());
    assert!(relay.log().contains("do not keep the leases"), "{}", relay.log());
    small.load(5, 5).await;
    arrived(&small, 10, &[&relay]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_of_leases_that_may_not_be_deleted_is_left_alone_for_a_while() {
    const WHY: &str = "the servers do not keep the lease of sink hook";
    let server = NatsServer::start(
        r#"authorization { users: [
            { user: admin, password: "admin" }
            { user: relay, password: "relay", permissions: { publish: { deny: ["$JS.API.STREAM.DELETE.>"] } } }
        ] }"#,
    )
    .await;
    let small = Small::start().await;
    let url = server.url();
    let user = "user = \"relay\"\npassword = \"relay\"";
    let mut relay = small.member(&format!("url = {url:?}\nmember = \"a\"\n{user}"), "");
    relay.start();
    relay.ready().await;
    let admin = ConnectOptions::with_user_and_password("admin".into(), "admin".into());
    let context = jetstream::new(server.client(admin).await);
    let leases = lease_bucket(&context).await.unwrap();
    let logged = |text: &str| relay.log().matches(text).count();
    let (mut was_said, mut is_quiet) = (false, false);
    let mut terms = None;
    let ending = until("two more terms have ended", PATIENCE * 2, async || {
        loses_its_leases(&leases).await;
        let is_said = relay.get("/readyz").await?.contains(WHY);
        is_quiet |= was_said && !is_said;
        was_said |= is_said;
        if logged("cannot be deleted") == 0 {
            return None;
        }
        let before = *terms.get_or_insert_with(|| logged("the lease was lost"));
        (logged("the lease was lost") >= before + 2).then_some(())
    });
    let in_time = tokio::time::timeout(PATIENCE, ending).await.is_ok();
    assert!(in_time, "{}", relay.log());
    assert_eq!(logged("cannot be deleted"), 1, "{}", relay.log());
    assert!(was_said && !is_quiet, "{was_said} {is_quiet}\n{}", relay.log());
}
