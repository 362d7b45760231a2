//! The Redis sink against a real `redis-server`.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use astro_relay::{
    base::event::{Record, Seq},
    channel::store::{Section, StateKey},
    sink::{Cause, Failure, Outgoing, Part},
};
use futures_util::StreamExt;
use redis::{AsyncCommands, aio::MultiplexedConnection, streams::StreamRangeReply};
use serde_json::json;

use crate::support::{
    carry::carry_all,
    driven::Driven,
    process::{Server, free_port},
    redis_server::{
        Durability::{AofAlways, Memory},
        RedisServer,
    },
    scripted_redis::{Play, ScriptedRedis, error},
    sinks::{
        EPOCH, batch, certificate, id, install_tls, open, open_publisher, open_with, outgoing,
        outgoing_with, replayed,
    },
    unreachable::{Hanging, Mute, refused},
    wait::until,
};

/// How long a test waits for what must come.
const SOON: Duration = Duration::from_secs(20);

const KEY: &str = "astro:events";

/// No event was refused.
const NONE: [Seq; 0] = [];

async fn stream(server: &RedisServer) -> Driven {
    connected(json!({ "url": server.url(), "mode": "stream" })).await
}

async fn pubsub(server: &RedisServer) -> Driven {
    connected(json!({ "url": server.url() })).await
}

async fn connected(settings: serde_json::Value) -> Driven {
    let mut sink = open("redis", settings).unwrap();
    sink.connect().await.unwrap();
    sink
}

/// A cluster of one server, once it stands.
async fn cluster_of_one() -> (RedisServer, MultiplexedConnection) {
    let bus = free_port().to_string();
    let args = ["--cluster-enabled", "yes", "--cluster-port", &bus];
    let server = RedisServer::start_with(Memory, &args).await;
    let mut connection = server.connection().await;
    let mut slots = redis::cmd("CLUSTER");
    let () =
        slots.arg("ADDSLOTSRANGE").arg(0).arg(16383).query_async(&mut connection).await.unwrap();
    until("the cluster stands", SOON, async || {
        let info: String =
            redis::cmd("CLUSTER").arg("INFO").query_async(&mut connection).await.unwrap();
        info.contains("cluster_state:ok").then_some(())
    })
    .await;
    (server, connection)
}

/// What stands in the stream: entry id and event id, in order.
async fn entries(connection: &mut MultiplexedConnection, key: &str) -> Vec<(String, String)> {
    let reply: StreamRangeReply = connection.xrange_all(key).await.unwrap();
    reply.ids.iter().map(|entry| (entry.id.clone(), entry.get("id").unwrap())).collect()
}

async fn event_ids(connection: &mut MultiplexedConnection, key: &str) -> Vec<String> {
    entries(connection, key).await.into_iter().map(|(_, id)| id).collect()
}

fn ids(seqs: impl IntoIterator<Item = Seq>) -> Vec<String> {
    seqs.into_iter().map(id).collect()
}

fn counted(sink: &mut Driven, name: &str) -> u64 {
    sink.tally().into_iter().find(|(found, _)| *found == name).map_or(0, |(_, count)| count)
}

#[tokio::test]
async fn publishes_in_order_and_counts_who_heard() {
    let server = RedisServer::start(Memory).await;
    let mut sink = pubsub(&server).await;
    sink.deliver(&batch(1..=3, "astro:main:channel.tips")).await.unwrap();
    assert_eq!(sink.tally(), [("unheard", 3)]);

    let client = redis::Client::open(server.url()).unwrap();
    let mut listener = client.get_async_pubsub().await.unwrap();
    listener.psubscribe("astro:*").await.unwrap();
    for first in (1..=1000).step_by(100) {
        sink.deliver(&batch(first..first + 100, "astro:main:channel.tips")).await.unwrap();
    }
    assert_eq!(sink.tally(), [("receivers", 1000)]);
    let mut heard = listener.on_message();
    for seq in 1..=1000 {
        let message = heard.next().await.unwrap();
        assert_eq!(message.get_channel_name(), "astro:main:channel.tips");
        assert_eq!(message.get_payload_bytes(), format!(r#"{{"n":{seq}}}"#).as_bytes());
    }
    sink.close().await;
}

#[tokio::test]
async fn a_stream_keeps_everything_in_order_with_all_fields() {
    let server = RedisServer::start(AofAlways).await;
    let mut sink = stream(&server).await;
    assert_eq!(sink.remarks(), [""; 0]);
    for first in (1..=1000).step_by(100) {
        sink.deliver(&batch(first..first + 100, KEY)).await.unwrap();
    }
    assert!(sink.tally().is_empty());
    let mut connection = server.connection().await;
    let expected: Vec<_> = (1..=1000).map(|n| (format!("{}-{n}", EPOCH + n), id(n))).collect();
    assert_eq!(entries(&mut connection, KEY).await, expected);

    let reply: StreamRangeReply = connection.xrange_count(KEY, "-", "+", 1).await.unwrap();
    for (field, value) in [
        ("id", id(1).as_str()),
        ("topic", "channel.tips"),
        ("room", "room"),
        ("channel", "main"),
        ("ts", "2024-02-15T14:52:42Z"),
        ("origin", "live"),
        ("payload", r#"{"n":1}"#),
    ] {
        assert_eq!(reply.ids[0].get::<String>(field).as_deref(), Some(value), "{field}");
    }
    assert_eq!(reply.ids[0].map.len(), 7);
}

#[tokio::test]
async fn a_stream_is_trimmed_to_about_its_limit() {
    let server = RedisServer::start(Memory).await;
    for (max_len, expected) in [(100, 100..400), (0, 2000..2001)] {
        let mut connection = server.connection().await;
        let () = connection.del(KEY).await.unwrap();
        let mut sink =
            connected(json!({ "url": server.url(), "mode": "stream", "max_len": max_len })).await;
        assert_eq!(carry_all(&mut sink, &batch(1..=2000, KEY)).await.0, NONE);
        let len: usize = connection.xlen(KEY).await.unwrap();
        assert!(expected.contains(&len), "max_len {max_len} left {len}");
    }
}

#[tokio::test]
async fn the_durability_of_an_acknowledgement_is_reported() {
    let server = RedisServer::start_with(
        Memory,
        &["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"],
    )
    .await;
    let remarks = stream(&server).await.remarks();
    assert_eq!(remarks.len(), 2, "{remarks:?}");
    assert!(remarks[0].contains("appendonly is off"));
    assert!(remarks[1].contains("allkeys-lru"));
    assert_eq!(pubsub(&server).await.remarks(), [""; 0]);
    let lazy = ["--appendonly", "yes", "--appendfsync", "everysec"];
    let remarks = stream(&RedisServer::start_with(Memory, &lazy).await).await.remarks();
    assert_eq!(remarks.len(), 1, "{remarks:?}");
    assert!(remarks[0].contains("within a second"));
    let short = json!({ "url": server.url(), "mode": "stream", "max_len": 100 });
    let remarks = connected(short).await.remarks();
    assert!(remarks.iter().any(|remark| remark.contains("may be stored twice")), "{remarks:?}");
}

/// A server that is stopped for a while answers too late: nobody knows whether the entries were
/// stored. They were, and the repeat is recognised.
#[tokio::test]
async fn a_repeat_after_an_unknown_outcome_is_recognised() {
    let server = RedisServer::start(Memory).await;
    let settings = json!({ "url": server.url(), "mode": "stream" });
    let mut sink = open_with("redis", settings, Duration::from_millis(500)).unwrap();
    sink.connect().await.unwrap();
    sink.deliver(&batch(1..=5, KEY)).await.unwrap();

    server.server.signal("STOP").await;
    let failure = sink.deliver(&batch(6..=15, KEY)).await.unwrap_err();
    assert!(matches!(failure, Failure { accepted: 0, cause: Cause::Down(_) }), "{failure:?}");
    server.server.signal("CONT").await;

    let mut connection = server.connection().await;
    until("the late entries are stored", SOON, async || {
        let len: u64 = connection.xlen(KEY).await.unwrap();
        (len == 15).then_some(())
    })
    .await;
    assert_eq!(carry_all(&mut sink, &batch(6..=20, KEY)).await.0, NONE);
    assert_eq!(counted(&mut sink, "duplicates"), 10);
    assert_eq!(event_ids(&mut connection, KEY).await, ids(1..=20));
}

#[tokio::test]
async fn another_writer_with_higher_ids_loses_and_reorders_nothing() {
    let server = RedisServer::start(Memory).await;
    let mut connection = server.connection().await;
    let mut sink = stream(&server).await;
    sink.deliver(&batch(1..=3, KEY)).await.unwrap();
    // Ahead of some of the next batch, behind the rest of it.
    let between = format!("{}-0", EPOCH + 6);
    let () = connection.xadd(KEY, between, &[("who", "somebody else")]).await.unwrap();
    sink.deliver(&batch(4..=8, KEY)).await.unwrap();
    // Far ahead, so that none of ours can have its own entry id.
    let () = connection.xadd(KEY, "9999999999999-0", &[("id", "else")]).await.unwrap();
    sink.deliver(&batch(9..=12, KEY)).await.unwrap();
    assert_eq!(counted(&mut sink, "duplicates"), 0);

    let ours = |found: Vec<(String, String)>| -> Vec<String> {
        found.into_iter().map(|(_, id)| id).filter(|id| id.starts_with("01HQ")).collect()
    };
    let reply: StreamRangeReply = connection.xrange_all(KEY).await.unwrap();
    let found = reply.ids.iter().map(|e| (e.id.clone(), e.get("id").unwrap_or_default())).collect();
    assert_eq!(ours(found), ids(1..=12));

    // All of it once more, as after a crash: nothing is stored twice.
    sink.connect().await.unwrap();
    sink.deliver(&batch(4..=12, KEY)).await.unwrap();
    assert_eq!(counted(&mut sink, "duplicates"), 9);
    let len: u64 = connection.xlen(KEY).await.unwrap();
    assert_eq!(len, 14);
}

#[tokio::test]
async fn a_clock_that_was_set_back_loses_nothing() {
    let server = RedisServer::start(Memory).await;
    let mut sink = stream(&server).await;
    sink.deliver(&batch(1000..=1010, KEY)).await.unwrap();
    sink.deliver(&batch(1..=5, KEY)).await.unwrap();
    let expected: Vec<_> = ids(1000..=1010).into_iter().chain(ids(1..=5)).collect();
    assert_eq!(event_ids(&mut server.connection().await, KEY).await, expected);
}

#[tokio::test]
async fn a_key_of_another_type_rejects_one_event_and_the_rest_follow() {
    let server = RedisServer::start(Memory).await;
    let mut connection = server.connection().await;
    let () = connection.set("bad", "text").await.unwrap();
    let mut sink =
        connected(json!({ "url": server.url(), "mode": "stream", "key": "astro:{{ room }}" }))
            .await;
    let mut all = batch(1..=6, KEY);
    all[3] = outgoing(4, "bad", "room");
    let failure = sink.deliver(&all).await.unwrap_err();
    assert_eq!(failure.accepted, 3);
    let Cause::Rejected { reason } = failure.cause else { panic!("{failure:?}") };
    assert!(reason.contains("WRONGTYPE") && reason.contains("\"bad\""), "{reason}");
    assert_eq!(event_ids(&mut connection, KEY).await, ids(1..=3));
    sink.deliver(&all[4..]).await.unwrap();
    assert_eq!(event_ids(&mut connection, KEY).await, ids([1, 2, 3, 5, 6]));
}

#[tokio::test]
async fn a_forbidden_channel_rejects_its_events_and_repeats_none() {
    let server = RedisServer::start(Memory).await;
    let mut admin = server.connection().await;
    let () = redis::cmd("ACL")
        .arg(&["SETUSER", "relay", "on", ">secret", "resetchannels", "&astro:*", "+@all"])
        .query_async(&mut admin)
        .await
        .unwrap();
    let mut sink = connected(
        json!({ "url": server.url(), "user": "relay", "password": { "value": "secret" } }),
    )
    .await;
    let client = redis::Client::open(server.url()).unwrap();
    let mut listener = client.get_async_pubsub().await.unwrap();
    listener.psubscribe("*").await.unwrap();

    let mut all = batch(1..=8, "astro:a");
    all[2] = outgoing(3, "other:a", "room");
    all[5] = outgoing(6, "other:a", "room");
    assert_eq!(carry_all(&mut sink, &all).await.0, [3, 6]);
    assert_eq!(counted(&mut sink, "receivers"), 6);
    let mut heard = listener.on_message();
    for seq in [1, 2, 4, 5, 7, 8] {
        let message = heard.next().await.unwrap();
        assert_eq!(message.get_payload_bytes(), format!(r#"{{"n":{seq}}}"#).as_bytes());
    }
    // Another sound event is the next that is heard: none came twice.
    sink.deliver(&batch(9..=9, "astro:a")).await.unwrap();
    assert_eq!(heard.next().await.unwrap().get_payload_bytes(), br#"{"n":9}"#);
}

#[tokio::test]
async fn a_user_who_may_not_publish_denies_the_sink() {
    let server = RedisServer::start(Memory).await;
    let mut admin = server.connection().await;
    let () = redis::cmd("ACL")
        .arg(&["SETUSER", "relay", "on", ">secret", "~*", "&*", "+ping"])
        .query_async(&mut admin)
        .await
        .unwrap();
    for (mode, also) in [("pubsub", ""), ("stream", ""), ("stream", "+eval")] {
        let mut command = redis::cmd("ACL");
        command.arg("SETUSER").arg("relay");
        if !also.is_empty() {
            command.arg(also);
        }
        let () = command.query_async(&mut admin).await.unwrap();
        let mut sink = connected(json!({
            "url": server.url(), "mode": mode, "user": "relay", "password": { "value": "secret" },
        }))
        .await;
        let failure = sink.deliver(&batch(1..=3, KEY)).await.unwrap_err();
        assert_eq!(failure.accepted, 0);
        assert!(matches!(failure.cause, Cause::Denied { .. }), "{mode} {also}: {failure:?}");
        assert!(failure.cause.to_string().contains("may not run"), "{mode} {also}: {failure:?}");
    }
}

#[tokio::test]
async fn a_full_server_is_busy_and_order_is_kept() {
    let server = RedisServer::start(Memory).await;
    let mut connection = server.connection().await;
    let info: String = redis::cmd("INFO").arg("memory").query_async(&mut connection).await.unwrap();
    let used: u64 =
        info.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap().parse().unwrap();
    let set_limit = async |limit: u64| {
        let mut command = redis::cmd("CONFIG");
        command.arg(&["SET", "maxmemory"]).arg(limit);
        command.query_async::<()>(&mut server.connection().await).await.unwrap();
    };
    let mut sink = stream(&server).await;
    let payload = "x".repeat(20_000);
    let all: Vec<_> = (1..=200).map(|seq| outgoing_with(seq, KEY, "room", &payload)).collect();

    // Room for some of it: the limit is met in the middle of the batch.
    set_limit(used + 2_500_000).await;
    let failure = sink.deliver(&all).await.unwrap_err();
    assert!(matches!(failure.cause, Cause::Busy { wait: None, .. }), "{failure:?}");
    assert!((1..200).contains(&failure.accepted), "{failure:?}");
    let accepted = Seq::try_from(failure.accepted).unwrap();
    assert_eq!(event_ids(&mut connection, KEY).await, ids(1..=accepted));

    set_limit(1).await;
    let failure = sink.deliver(&all[failure.accepted..]).await.unwrap_err();
    assert!(matches!(failure, Failure { accepted: 0, cause: Cause::Busy { .. } }), "{failure:?}");

    set_limit(0).await;
    sink.deliver(&all[usize::try_from(accepted).unwrap()..]).await.unwrap();
    assert_eq!(event_ids(&mut connection, KEY).await, ids(1..=200));
}

#[tokio::test]
async fn a_server_that_runs_a_long_script_is_busy() {
    let server = RedisServer::start_with(Memory, &["--busy-reply-threshold", "20"]).await;
    let mut sink = stream(&server).await;
    let mut hog = server.connection().await;
    let mut admin = server.connection().await;
    let hogging = async {
        let mut command = redis::cmd("EVAL");
        command.arg("while true do end").arg(0);
        // It ends by being killed.
        assert!(command.query_async::<()>(&mut hog).await.is_err());
    };
    let test = async {
        until("the server is busy", SOON, async || {
            let pong: redis::RedisResult<()> = redis::cmd("PING").query_async(&mut admin).await;
            pong.is_err_and(|error| error.code() == Some("BUSY")).then_some(())
        })
        .await;
        let failure = sink.deliver(&batch(1..=3, KEY)).await.unwrap_err();
        assert!(
            matches!(failure, Failure { accepted: 0, cause: Cause::Busy { .. } }),
            "{failure:?}"
        );
        let failure = sink.connect().await.unwrap_err();
        assert!(matches!(failure.cause, Cause::Busy { .. }), "{failure:?}");
        let mut kill = redis::cmd("SCRIPT");
        kill.arg("KILL").query_async::<()>(&mut admin).await.unwrap();
        until("the script has ended", SOON, async || sink.connect().await.ok()).await;
        sink.deliver(&batch(1..=3, KEY)).await.unwrap();
    };
    tokio::join!(hogging, test);
    assert_eq!(event_ids(&mut admin, KEY).await, ids(1..=3));
}

#[tokio::test]
async fn a_replica_is_down() {
    let server = RedisServer::start(Memory).await;
    let mut sink = stream(&server).await;
    sink.deliver(&batch(1..=3, KEY)).await.unwrap();
    let mut connection = server.connection().await;
    let () =
        redis::cmd("REPLICAOF").arg("127.0.0.1").arg(1).query_async(&mut connection).await.unwrap();
    let failure = sink.deliver(&batch(4..=6, KEY)).await.unwrap_err();
    assert!(matches!(failure, Failure { accepted: 0, cause: Cause::Down(_) }), "{failure:?}");
    assert!(failure.cause.to_string().contains("READONLY"), "{failure:?}");
    sink.connect().await.unwrap();
    assert!(sink.remarks().iter().any(|remark| remark.contains("replica")));
    let () =
        redis::cmd("REPLICAOF").arg("NO").arg("ONE").query_async(&mut connection).await.unwrap();
    sink.deliver(&batch(4..=6, KEY)).await.unwrap();
    assert_eq!(event_ids(&mut connection, KEY).await, ids(1..=6));
}

#[tokio::test]
async fn the_password_is_read_anew_for_each_connection_and_never_shown() {
    let server = RedisServer::start_with(Memory, &["--requirepass", "old-hunter2"]).await;
    let mut sink = open("redis", json!({ "url": server.url() })).unwrap();
    let failure = sink.connect().await.unwrap_err();
    assert!(failure.cause.to_string().contains("NOAUTH"), "{failure:?}");

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("password");
    std::fs::write(&path, "wrong-hunter2\n").unwrap();
    let settings = json!({ "url": server.url(), "password": { "file": path } });
    let mut sink = open("redis", settings).unwrap();
    let failure = sink.connect().await.unwrap_err();
    assert!(matches!(failure.cause, Cause::Denied { .. }), "{failure:?}");
    assert!(failure.cause.to_string().contains("WRONGPASS"), "{failure:?}");
    assert!(!format!("{failure:?} {}", failure.cause).contains("hunter2"), "{failure:?}");
    std::fs::write(&path, "old-hunter2\n").unwrap();
    sink.connect().await.unwrap();
    sink.deliver(&batch(1..=3, "astro:a")).await.unwrap();
}

#[tokio::test]
async fn a_lost_connection_is_noticed_while_idle() {
    let mut server = RedisServer::start(Memory).await;
    let mut sink = pubsub(&server).await;
    server.server.kill().await;
    tokio::time::pause();
    let failure = tokio::time::timeout(Duration::from_mins(1), sink.idle()).await.unwrap();
    assert!(matches!(failure, Failure { accepted: 0, cause: Cause::Down(_) }), "{failure:?}");
}

/// Every second there are events, and none of them is wanted: the wait is given up and begun again.
#[tokio::test]
async fn a_silent_server_is_noticed_though_every_wait_is_short() {
    for mode in ["pubsub", "stream"] {
        let silent = Arc::new(AtomicBool::new(false));
        let is_silent = Arc::clone(&silent);
        let server = ScriptedRedis::start(move |_| {
            if is_silent.load(Ordering::SeqCst) { Play::Ignore } else { Play::Well }
        })
        .await;
        let mut sink = connected(json!({ "url": server.url(), "mode": mode })).await;
        silent.store(true, Ordering::SeqCst);
        tokio::time::pause();
        let mut noticed = None;
        for _ in 0..60 {
            let wait = Duration::from_secs(1);
            noticed = noticed.or(tokio::time::timeout(wait, sink.idle()).await.ok());
        }
        tokio::time::resume();
        let failure = noticed.expect("the server is gone");
        assert!(matches!(failure, Failure { accepted: 0, cause: Cause::Down(_) }), "{failure:?}");
    }
}

#[tokio::test]
async fn a_cluster_takes_streams_and_channels() {
    let (server, mut connection) = cluster_of_one().await;
    let urls = json!([server.url()]);
    let mut sink = connected(json!({ "urls": urls, "cluster": true, "mode": "stream" })).await;
    // Two streams in two slots, by turns.
    let all: Vec<_> = (1..=20)
        .map(|seq| outgoing(seq, if seq % 2 == 0 { "astro:even" } else { "astro:odd" }, "room"))
        .collect();
    assert_eq!(carry_all(&mut sink, &all).await.0, NONE);
    assert_eq!(event_ids(&mut connection, "astro:odd").await, ids((1..=20).step_by(2)));
    assert_eq!(event_ids(&mut connection, "astro:even").await, ids((2..=20).step_by(2)));

    let mut sink = connected(json!({ "urls": urls, "cluster": true })).await;
    let client = redis::Client::open(server.url()).unwrap();
    let mut listener = client.get_async_pubsub().await.unwrap();
    listener.psubscribe("astro:*").await.unwrap();
    // Two channels in two slots, by turns; each keeps its order.
    let channel = |seq| if seq % 2 == 0 { "astro:even" } else { "astro:odd" };
    let all: Vec<_> = (1..=100).map(|seq| outgoing(seq, channel(seq), "room")).collect();
    assert_eq!(carry_all(&mut sink, &all).await.0, NONE);
    let mut heard = listener.on_message();
    let mut last = HashMap::new();
    for _ in 1..=100 {
        let message = heard.next().await.unwrap();
        let payload: serde_json::Value =
            serde_json::from_slice(message.get_payload_bytes()).unwrap();
        let seq = payload["n"].as_u64().unwrap();
        let name = message.get_channel_name().to_owned();
        assert_eq!(name, channel(seq));
        assert!(last.insert(name, seq) < Some(seq), "in order");
    }
    assert_eq!(last, HashMap::from([("astro:even".to_owned(), 100), ("astro:odd".to_owned(), 99)]));
}

#[tokio::test]
async fn sentinels_name_the_master() {
    let server = RedisServer::start(Memory).await;
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("sentinel.conf");
    let port = server.server.address.port();
    let text = format!("sentinel monitor home 127.0.0.1 {port} 1\ndir {}\n", dir.path().display());
    std::fs::write(&config, text).unwrap();
    let sentinel_port = free_port();
    let args = [config.to_str().unwrap(), "--sentinel", "--port", &sentinel_port.to_string()]
        .map(str::to_owned);
    let _sentinel = Server::start("redis-server", args.to_vec(), sentinel_port).await;
    let url = format!("redis://127.0.0.1:{sentinel_port}");
    let mut sink =
        connected(json!({ "urls": [url], "sentinel_master": "home", "mode": "stream" })).await;
    sink.deliver(&batch(1..=3, KEY)).await.unwrap();
    assert_eq!(event_ids(&mut server.connection().await, KEY).await, ids(1..=3));

    // Sentinels that are off or hang cost a moment, whatever the timeout.
    let (hanging, mute) = (Hanging::new().await, Mute::new().await);
    let dead = [hanging.address, mute.address, refused()].map(|dead| format!("redis://{dead}"));
    let urls: Vec<_> = dead.into_iter().chain([url.clone()]).collect();
    let settings = json!({ "urls": urls, "sentinel_master": "home", "mode": "stream" });
    let timeout = Duration::from_secs(2);
    let mut sink = open_with("redis", settings, timeout).unwrap();
    tokio::time::timeout(timeout, sink.connect()).await.expect("within the timeout").unwrap();

    let settings = json!({ "urls": [url], "sentinel_master": "elsewhere", "mode": "stream" });
    let failure = open("redis", settings).unwrap().connect().await.unwrap_err();
    assert!(matches!(failure.cause, Cause::Down(_)), "{failure:?}");
}

#[test]
fn contradictions_name_the_key() {
    let url = "redis://127.0.0.1:6379";
    for (settings, key) in [
        (json!({}), "url"),
        (json!({ "url": "http://127.0.0.1" }), "url"),
        (json!({ "url": "redis://:hunter2@127.0.0.1" }), "url"),
        (json!({ "url": "redis://127.0.0.1/x" }), "url"),
        (json!({ "url": "rediss://127.0.0.1/#insecure" }), "url"),
        (json!({ "urls": [url, url] }), "urls"),
        (json!({ "url": format!("{url},{url}") }), "urls"),
        (json!({ "url": format!("{url},"), "cluster": true }), "url"),
        (json!({ "url": url, "key": "a" }), "key"),
        (json!({ "url": url, "mode": "stream", "channel": "a" }), "channel"),
        (json!({ "url": url, "user": "a" }), "user"),
        (json!({ "url": url, "client_key_file": "/k" }), "client_cert_file"),
        (json!({ "url": url, "cluster": true, "sentinel_master": "a" }), "sentinel_master"),
    ] {
        let Err(error) = open("redis", settings.clone()) else { panic!("{settings}") };
        assert_eq!(error.problems[0].key.join("."), format!("sinks.test.{key}"), "{settings}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
    let kinds: BTreeSet<_> = [json!({}), json!({ "mode": "stream" })]
        .map(|settings| {
            let address = astro_relay::sink::kind("redis").unwrap().address.unwrap();
            ((address.key)(&settings), (address.default)(&settings))
        })
        .into();
    let expected = [("channel", "astro:{{ channel }}:{{ topic }}"), ("key", "astro:events")];
    assert_eq!(kinds, expected.into());
}

#[tokio::test]
async fn tls_uses_the_configured_certificates() {
    install_tls();
    let port = free_port().to_string();
    let (cert, key, ca) =
        (certificate("server.pem"), certificate("server.key"), certificate("ca.pem"));
    let tls = ["--tls-port", &port, "--tls-cert-file", &cert, "--tls-key-file", &key];
    let args = [&tls[..], &["--tls-ca-cert-file", &ca, "--tls-auth-clients", "yes"]].concat();
    let server = RedisServer::start_with(Memory, &args).await;
    let url = format!("rediss://localhost:{port}");
    let own = json!({
        "url": url, "mode": "stream", "ca_file": ca,
        "client_cert_file": certificate("client.pem"), "client_key_file": certificate("client.key"),
    });
    let mut sink = connected(own.clone()).await;
    sink.deliver(&batch(1..=3, KEY)).await.unwrap();
    assert_eq!(event_ids(&mut server.connection().await, KEY).await, ids(1..=3));

    for missing in ["ca_file", "client_cert_file"] {
        let mut settings = own.clone();
        let table = settings.as_object_mut().unwrap();
        table.remove(missing);
        if missing == "client_cert_file" {
            table.remove("client_key_file");
        }
        let failure = open("redis", settings).unwrap().connect().await.unwrap_err();
        assert!(matches!(failure.cause, Cause::Down(_)), "{missing}: {failure:?}");
    }
    let settings = json!({ "url": url, "ca_file": "/nowhere/ca.pem" });
    let failure = open("redis", settings).unwrap().connect().await.unwrap_err();
    assert!(failure.cause.to_string().contains("/nowhere/ca.pem"), "{failure:?}");
}

/// In a URL the address stands in brackets, in a certificate it does not.
#[tokio::test]
async fn a_server_with_an_address_of_ipv6_is_reached_through_tls() {
    install_tls();
    let port = free_port().to_string();
    let (cert, key) = (certificate("server-ipv6.pem"), certificate("server-ipv6.key"));
    let tls = ["--tls-port", &port, "--tls-cert-file", &cert, "--tls-key-file", &key];
    let more = ["--tls-auth-clients", "no", "--tls-ca-cert-file", &certificate("ca-ipv6.pem")];
    let args = [&tls[..], &more, &["--bind", "127.0.0.1", "::1"]].concat();
    let server = RedisServer::start_with(Memory, &args).await;
    for (round, address) in ["[::1]", "[0:0::1]"].into_iter().enumerate() {
        let key = format!("{KEY}:{round}");
        let mut sink = connected(json!({
            "url": format!("rediss://{address}:{port}"), "mode": "stream", "key": key,
            "ca_file": certificate("ca-ipv6.pem"),
        }))
        .await;
        sink.deliver(&batch(1..=3, &key)).await.unwrap();
        assert_eq!(event_ids(&mut server.connection().await, &key).await, ids(1..=3));
    }
}

/// The words are of other vendors' servers, of proxies, and of nobody yet.
#[tokio::test]
async fn errors_of_the_server_reject_no_event() {
    for (words, expected) in [
        ("ERR max daily request limit exceeded. Limit: 10000, Usage: 10001.", "busy"),
        ("upstream failure", "busy"),
        ("no upstream host", "busy"),
        ("SOMETHINGNEW happened", "busy"),
        ("UNBLOCKED force unblock from blocking operation, instance state changed", "down"),
        ("DISABLED this database is disabled", "denied"),
    ] {
        for (mode, command) in [("pubsub", "PUBLISH"), ("stream", "EVAL")] {
            let server =
                ScriptedRedis::start(
                    move |came: &[String]| {
                        if came[0] == command { error(words) } else { Play::Well }
                    },
                )
                .await;
            let mut sink = connected(json!({ "url": server.url(), "mode": mode })).await;
            let failure = sink.deliver(&batch(1..=3, KEY)).await.unwrap_err();
            assert_eq!(failure.accepted, 0);
            let found = match failure.cause {
                Cause::Busy { .. } => "busy",
                Cause::Down(_) => "down",
                Cause::Denied { .. } => "denied",
                _ => "rejected",
            };
            assert_eq!(found, expected, "{mode}: {words}");
        }
    }
}

/// What stands at the one key is everybody's trouble, and goes by without anybody's event being lost.
#[tokio::test]
async fn another_type_at_the_constant_key_denies_the_sink() {
    let server = RedisServer::start(Memory).await;
    let mut connection = server.connection().await;
    let () = connection.set(KEY, "text").await.unwrap();
    let mut sink = stream(&server).await;
    let failure = sink.deliver(&batch(1..=3, KEY)).await.unwrap_err();
    assert!(matches!(failure, Failure { accepted: 0, cause: Cause::Denied { .. } }), "{failure:?}");
    assert!(failure.cause.to_string().contains(KEY), "{failure:?}");
    let () = connection.del(KEY).await.unwrap();
    sink.deliver(&batch(1..=3, KEY)).await.unwrap();
    assert_eq!(event_ids(&mut connection, KEY).await, ids(1..=3));
}

/// The server denies a script as a whole, although only one of its keys is forbidden.
#[tokio::test]
async fn a_forbidden_key_rejects_its_own_events_alone() {
    let server = RedisServer::start(Memory).await;
    let mut admin = server.connection().await;
    let () = redis::cmd("ACL")
        .arg(&["SETUSER", "relay", "on", ">secret", "~astro:*", "+@all"])
        .query_async(&mut admin)
        .await
        .unwrap();
    let mut sink = connected(json!({
        "url": server.url(), "mode": "stream", "key": "astro:{{ room }}",
        "user": "relay", "password": { "value": "secret" },
    }))
    .await;
    let mut all = batch(1..=8, "astro:a");
    all[2] = outgoing(3, "other:a", "room");
    all[5] = outgoing(6, "other:a", "room");
    assert_eq!(carry_all(&mut sink, &all).await.0, [3, 6]);
    assert_eq!(event_ids(&mut admin, "astro:a").await, ids([1, 2, 4, 5, 7, 8]));
}

/// A proxy that takes less at once than a script has.
#[tokio::test]
async fn a_request_limit_splits_scripts_and_rejects_oversized_events_alone() {
    const LIMIT: usize = 4000;
    let server = ScriptedRedis::start(|came: &[String]| {
        let payloads: usize = came.iter().skip(2).map(String::len).sum();
        match came[0].as_str() {
            "EVAL" if payloads > LIMIT => error("ERR max request size exceeded. Limit: 4000 bytes"),
            _ => Play::Well,
        }
    })
    .await;
    let mut sink = connected(json!({ "url": server.url(), "mode": "stream" })).await;
    let mut all: Vec<_> =
        (1..=6).map(|seq| outgoing_with(seq, KEY, "room", &"x".repeat(1500))).collect();
    all[3] = outgoing_with(4, KEY, "room", &"x".repeat(LIMIT));
    assert_eq!(carry_all(&mut sink, &all).await, (vec![4], vec![]));
    let largest = server.came("EVAL").iter().map(Vec::len).max().unwrap();
    assert!(largest > 9 * 5, "at first all went out at once: {largest} words");
}

#[tokio::test]
async fn an_overlong_payload_is_blamed_on_its_event() {
    let server = RedisServer::start_with(Memory, &["--proto-max-bulk-len", "1mb"]).await;
    for mode in ["pubsub", "stream"] {
        let mut sink = connected(json!({ "url": server.url(), "mode": mode })).await;
        let large = [outgoing_with(1, KEY, "room", &"x".repeat(1_500_000))];
        let failure = sink.deliver(&large).await.unwrap_err();
        // The server answers and closes without reading on. Where it closes while the text is still being
        // written, the answer is lost with the connection, and the close is what the event is blamed for.
        let blamed = matches!(failure.cause, Cause::Rejected { .. });
        assert!(blamed || failure.cause.is_closed_by_peer(), "{mode}: {failure:?}");
    }
}

#[tokio::test]
async fn a_closed_connection_differs_from_a_silent_server() {
    for (play, closed) in [(Play::HangUp, true), (Play::Ignore, false)] {
        let server =
            ScriptedRedis::start(
                move |came: &[String]| {
                    if came[0] == "PUBLISH" { play.clone() } else { Play::Well }
                },
            )
            .await;
        let settings = json!({ "url": server.url() });
        let mut sink = open_with("redis", settings, Duration::from_millis(500)).unwrap();
        sink.connect().await.unwrap();
        let failure = sink.deliver(&batch(1..=3, KEY)).await.unwrap_err();
        assert!(matches!(failure, Failure { accepted: 0, cause: Cause::Down(_) }), "{failure:?}");
        assert_eq!(failure.cause.is_closed_by_peer(), closed, "{failure:?}");
    }
}

/// The server answers the login, and says that it is something else than the password.
#[tokio::test]
async fn a_full_server_does_not_deny_the_login() {
    for (words, denied) in [
        ("ERR max number of clients reached", false),
        ("LOADING Redis is loading the dataset in memory", false),
        ("no upstream host", false),
        ("WRONGPASS invalid username-password pair or user is disabled.", true),
        ("ERR invalid password", true),
    ] {
        let server =
            ScriptedRedis::start(
                move |came: &[String]| {
                    if came[0] == "AUTH" { error(words) } else { Play::Well }
                },
            )
            .await;
        let settings = json!({ "url": server.url(), "password": { "value": "hunter2" } });
        let failure = open("redis", settings).unwrap().connect().await.unwrap_err();
        assert_eq!(matches!(failure.cause, Cause::Denied { .. }), denied, "{words}: {failure:?}");
        assert!(failure.cause.to_string().contains(words), "{failure:?}");
    }
}

#[tokio::test]
async fn the_user_and_the_database_are_those_that_are_configured() {
    let server = RedisServer::start(Memory).await;
    let mut admin = server.connection().await;
    let () = redis::cmd("ACL")
        .arg(&["SETUSER", "relay", "on", ">secret", "~*", "&*", "+@all"])
        .query_async(&mut admin)
        .await
        .unwrap();
    let mut sink = connected(json!({
        "url": format!("{}/3", server.url()), "mode": "stream",
        "user": "relay", "password": { "value": "secret" },
    }))
    .await;
    sink.deliver(&batch(1..=3, KEY)).await.unwrap();
    let () = redis::cmd("SELECT").arg(3).query_async(&mut admin).await.unwrap();
    assert_eq!(event_ids(&mut admin, KEY).await, ids(1..=3));
    let settings = json!({ "url": format!("{}/99", server.url()) });
    let failure = open("redis", settings).unwrap().connect().await.unwrap_err();
    assert!(matches!(failure.cause, Cause::Denied { .. }), "{failure:?}");
}

#[tokio::test]
async fn a_server_of_a_cluster_or_a_sentinel_that_is_off_or_hangs_costs_a_moment() {
    let (server, _) = cluster_of_one().await;
    let (hanging, mute) = (Hanging::new().await, Mute::new().await);
    let dead = [hanging.address, mute.address, refused()].map(|dead| format!("redis://{dead}"));
    let urls: Vec<_> = dead.into_iter().chain([server.url()]).collect();
    for timeout in [Duration::from_secs(4), Duration::from_mins(1)] {
        let settings = json!({ "urls": urls, "cluster": true, "mode": "stream" });
        let mut sink = open_with("redis", settings, timeout).unwrap();
        let connecting = tokio::time::timeout(timeout.min(Duration::from_secs(15)), sink.connect());
        connecting.await.expect("within seconds, whatever the timeout").unwrap();
        sink.deliver(&batch(1..=3, KEY)).await.unwrap();
    }
}

/// As after a server was restarted without its data behind a proxy that keeps the connection, or after
/// somebody emptied it.
#[tokio::test]
async fn state_that_the_server_has_lost_is_noticed() {
    let server = RedisServer::start(Memory).await;
    let mut publisher = open_publisher("redis", json!({ "url": server.url() })).unwrap();
    publisher.connect().await.unwrap();
    let status = Part { path: StateKey::relay(Section::Status), payload: Some("{}".into()) };
    publisher.publish(std::slice::from_ref(&status)).await.unwrap();
    publisher.publish(std::slice::from_ref(&status)).await.unwrap();
    let mut connection = server.connection().await;
    let () = redis::cmd("FLUSHALL").query_async(&mut connection).await.unwrap();
    let failure = publisher.publish(std::slice::from_ref(&status)).await.unwrap_err();
    assert!(matches!(failure.cause, Cause::Down(_)), "{failure:?}");
    publisher.connect().await.unwrap();
    publisher.publish(&[status]).await.unwrap();
}

#[tokio::test]
async fn state_that_may_not_be_written_holds_back_no_event() {
    let server = RedisServer::start(Memory).await;
    let mut admin = server.connection().await;
    let () = redis::cmd("ACL")
        .arg(&["SETUSER", "relay", "on", ">secret", "~*", "&*", "+@all", "-hset"])
        .query_async(&mut admin)
        .await
        .unwrap();
    let settings =
        json!({ "url": server.url(), "user": "relay", "password": { "value": "secret" } });
    let mut publisher = open_publisher("redis", settings.clone()).unwrap();
    publisher.connect().await.unwrap();
    let status = Part { path: StateKey::relay(Section::Status), payload: Some("{}".into()) };
    let failure = publisher.publish(&[status]).await.unwrap_err();
    assert!(matches!(failure.cause, Cause::Rejected { .. }), "{failure:?}");
    let mut sink = connected(settings).await;
    sink.deliver(&batch(1..=3, "astro:a")).await.unwrap();
}

#[tokio::test]
async fn a_replayed_event_is_appended_once_more() {
    let server = RedisServer::start(Memory).await;
    let mut sink = stream(&server).await;
    sink.deliver(&batch(1..=5, KEY)).await.unwrap();
    sink.deliver(&replayed(batch(2..=3, KEY), "7-1")).await.unwrap();
    let expected: Vec<_> = ids(1..=5).into_iter().chain(ids(2..=3)).collect();
    assert_eq!(event_ids(&mut server.connection().await, KEY).await, expected);
    assert_eq!(counted(&mut sink, "duplicates"), 0);

    // Cut off behind that, and resumed by another process.
    let mut sink = stream(&server).await;
    sink.deliver(&replayed(batch(2..=4, KEY), "7-1")).await.unwrap();
    assert_eq!(counted(&mut sink, "duplicates"), 2);
    // Somebody asks once more.
    sink.deliver(&replayed(batch(2..=3, KEY), "8-2")).await.unwrap();
    let expected: Vec<_> = expected.into_iter().chain(ids(4..=4)).chain(ids(2..=3)).collect();
    assert_eq!(event_ids(&mut server.connection().await, KEY).await, expected);
}

#[tokio::test]
async fn two_sinks_on_one_stream_both_append_what_they_make_of_an_event() {
    let server = RedisServer::start(Memory).await;
    let (mut first, mut second) = (stream(&server).await, stream(&server).await);
    let other = |seq| outgoing_with(seq, KEY, "room", r#"{"made": "otherwise"}"#);
    let other: Vec<_> = (1..=4).map(other).collect();
    first.deliver(&batch(1..=2, KEY)).await.unwrap();
    second.deliver(&other).await.unwrap();
    first.deliver(&batch(3..=4, KEY)).await.unwrap();
    let expected: Vec<_> = ids(1..=2).into_iter().chain(ids(1..=4)).chain(ids(3..=4)).collect();
    let mut connection = server.connection().await;
    assert_eq!(event_ids(&mut connection, KEY).await, expected);
    assert_eq!(counted(&mut first, "duplicates") + counted(&mut second, "duplicates"), 0);
    // As after a crash of both.
    for (sink, events) in [(&mut first, batch(1..=4, KEY)), (&mut second, other)] {
        sink.connect().await.unwrap();
        sink.deliver(&events).await.unwrap();
        assert_eq!(counted(sink, "duplicates"), 4);
    }
    assert_eq!(event_ids(&mut connection, KEY).await, expected);
}

#[tokio::test]
async fn events_without_an_id_are_appended_behind_another_writers_entry() {
    let server = RedisServer::start(Memory).await;
    let mut connection = server.connection().await;
    let () = connection.xadd(KEY, "9999999999999-0", &[("who", "somebody else")]).await.unwrap();
    let without_id = |mut outgoing: Outgoing| {
        let mut record = Record::clone(&outgoing.record);
        record.event.id = "".into();
        outgoing.record = Arc::new(record);
        outgoing
    };
    let events: Vec<_> = batch(1..=4, KEY).into_iter().map(without_id).collect();
    let mut sink = stream(&server).await;
    sink.deliver(&events).await.unwrap();
    assert_eq!(counted(&mut sink, "duplicates"), 0);
    let len: u64 = connection.xlen(KEY).await.unwrap();
    assert_eq!(len, 5);
}

/// As many may have been on their way as the window holds, and others write here too.
#[tokio::test]
async fn a_repeat_is_found_behind_a_window_of_other_writers_entries() {
    let server = RedisServer::start(Memory).await;
    let mut connection = server.connection().await;
    let mut sink = stream(&server).await;
    // Far ahead, so that none of ours can have its own entry id.
    let () = connection.xadd(KEY, "9999999999999-0", &[("id", "else")]).await.unwrap();
    assert_eq!(carry_all(&mut sink, &batch(1..=512, KEY)).await.0, NONE);
    let mut pipeline = redis::pipe();
    for _ in 0..1024 {
        pipeline.xadd(KEY, "*", &[("id", "else")]).ignore();
    }
    // The server's clock is behind that entry; it goes on from there.
    let () = pipeline.query_async(&mut connection).await.unwrap();
    sink.connect().await.unwrap();
    assert_eq!(carry_all(&mut sink, &batch(1..=512, KEY)).await.0, NONE);
    assert_eq!(counted(&mut sink, "duplicates"), 512);
}
