//! Hashes and keys of Redis.

use std::collections::HashMap;

use redis::{AsyncCommands, aio::MultiplexedConnection, cmd};
use serde_json::{Value, json};

use super::{Kept, SOON, TOPICS, has_facts, is_stopped, is_whole, set, simulated, tell_facts};
use crate::support::{
    redis_server::{Durability, RedisServer},
    relay::{ROOM, Running, configure},
    wait::until,
};

/// All that the server keeps of the state.
async fn kept(connection: &mut MultiplexedConnection) -> Kept {
    let mut kept = Kept::new();
    for section in ["session", "counters"] {
        let fields: HashMap<String, String> =
            connection.hgetall(format!("astro:main:{section}")).await.unwrap();
        let named =
            fields.into_iter().map(|(name, value)| (format!("main/{section}/{name}"), value));
        kept.extend(named.map(|(path, value)| (path, read(&value))));
    }
    for section in ["stream", "bot", "status"] {
        let value: Option<String> = connection.get(format!("astro:main:{section}")).await.unwrap();
        kept.extend(value.map(|value| (format!("main/{section}"), read(&value))));
    }
    let own: HashMap<String, String> = connection.hgetall("astro:relay").await.unwrap();
    kept.extend(own.into_iter().map(|(name, value)| (format!("relay/{name}"), read(&value))));
    kept
}

fn read(value: &str) -> Value {
    serde_json::from_str(value).unwrap_or_else(|_| value.into())
}

#[tokio::test]
async fn who_comes_late_reads_the_whole_state_and_what_vanished_is_cleared() {
    let server = RedisServer::start(Durability::Memory).await;
    let sim = simulated().await;
    let dir = tempfile::tempdir().unwrap();
    set(&sim, "odd-one", json!({"amount": 7}));
    let sink = format!("[sinks.live]\ntype = \"redis\"\nurl = {:?}\nstate = true\n", server.url());
    let config = configure(&sim, dir.path(), TOPICS, &sink);
    // Somebody who hears the events: what is published to nobody is a reason of health.
    let listener = redis::Client::open(server.url()).unwrap();
    let mut listener = listener.get_async_pubsub().await.unwrap();
    listener.psubscribe("astro:*").await.unwrap();
    let relay = Running::start(config.clone()).await;
    relay.wait_subscribed().await;
    tell_facts(&sim);
    let mut connection = server.connection().await;
    let mut wait = async |what: &str, is: &dyn Fn(&Kept) -> bool| {
        until(what, SOON, async || Some(kept(&mut connection).await).filter(|kept| is(kept))).await
    };
    let found = wait("all of it", &|kept| is_whole(kept, &sim) && has_facts(kept)).await;
    assert!(found.contains_key("main/session/odd-one"));
    sim.reset_session(ROOM);
    wait("the new session", &|kept| is_whole(kept, &sim)).await;

    // What vanishes while the relay is away, or while the server is, is cleared all the same.
    set(&sim, "odd-two", json!([1, 2]));
    wait("one more", &|kept| kept.contains_key("main/session/odd-two")).await;
    relay.stop().await;
    let found = wait("the farewell", &|kept| kept["main/status"] == "offline").await;
    assert!(is_stopped(&found["relay/status"]), "{found:?}");
    sim.reset_session(ROOM);
    let relay = Running::start(config).await;
    let found = wait("what is left", &|kept| is_whole(kept, &sim)).await;
    assert!(has_facts(&found), "only heard, and still known: {found:?}");

    // What says that the relay is there expires, the rest does not.
    let ttl = async |key: &str| -> i64 {
        cmd("TTL").arg(key).query_async(&mut server.connection().await).await.unwrap()
    };
    for key in ["astro:relay", "astro:main:status"] {
        assert!((1..=90).contains(&ttl(key).await), "{key}");
    }
    for key in ["astro:main:session", "astro:main:stream"] {
        assert_eq!(ttl(key).await, -1, "{key}");
    }
    relay.stop().await;
}

#[tokio::test]
async fn a_key_of_another_kind_is_left_alone_and_hinders_nothing() {
    let server = RedisServer::start(Durability::Memory).await;
    let mut connection = server.connection().await;
    let _: () = connection.set("astro:main:session", "somebody else's").await.unwrap();
    let sim = simulated().await;
    let dir = tempfile::tempdir().unwrap();
    let sink = format!(
        "[sinks.live]\ntype = \"redis\"\nurl = {:?}\nstate = true\nmode = \"stream\"\nkey = \"events\"\n",
        server.url()
    );
    let relay = Running::start(configure(&sim, dir.path(), TOPICS, &sink)).await;
    relay.wait_subscribed().await;
    tell_facts(&sim);
    until("the rest is kept, and events arrive", SOON, async || {
        let stream: Option<String> = connection.get("astro:main:stream").await.unwrap();
        let events: usize = connection.xlen("events").await.unwrap();
        (stream.is_some() && events >= 3).then_some(())
    })
    .await;
    let left: String = connection.get("astro:main:session").await.unwrap();
    assert_eq!(left, "somebody else's");
    relay.stop().await;
}
