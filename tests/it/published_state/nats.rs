//! The key-value bucket of NATS.

use async_nats::{ConnectOptions, jetstream};
use futures_util::StreamExt;
use serde_json::{Value, json};

use super::{Kept, SOON, TOPICS, has_facts, is_stopped, is_whole, set, simulated, tell_facts};
use crate::support::{
    nats_server::{Listener, NatsServer},
    relay::{ROOM, Running, configure},
    wait::until,
};

/// How long one look at the bucket may take.
const READ: std::time::Duration = std::time::Duration::from_secs(2);

/// All that the bucket holds, as a client of the key-value store sees it; `None` while there is none.
async fn kept(context: &jetstream::Context) -> Option<Kept> {
    let store = context.get_key_value("astro_state").await.ok()?;
    let mut kept = Kept::new();
    let mut keys = store.keys().await.ok()?;
    while let Some(key) = keys.next().await {
        let key = key.ok()?;
        // Gone again between the two.
        let Some(value) = store.get(&key).await.ok()? else { continue };
        let path = key.replace('.', "/").replace("=2E", ".");
        kept.insert(path, read(&value));
    }
    Some(kept)
}

fn read(value: &[u8]) -> Value {
    serde_json::from_slice(value)
        .unwrap_or_else(|_| String::from_utf8(value.to_vec()).unwrap().into())
}

async fn wait(context: &jetstream::Context, what: &str, is: impl Fn(&Kept) -> bool) -> Kept {
    until(what, SOON, async || {
        // The library's list of keys waits for an entry that was overwritten while it was read, until the
        // next is written.
        let kept = tokio::time::timeout(READ, kept(context)).await.ok()??;
        is(&kept).then_some(kept)
    })
    .await
}

#[tokio::test]
async fn who_comes_late_reads_the_whole_state_and_what_vanished_is_cleared() {
    let server = NatsServer::start("").await;
    let context = server.streams().await;
    let sim = simulated().await;
    let dir = tempfile::tempdir().unwrap();
    set(&sim, "odd one", json!({"amount": 7}));
    let sink = format!("[sinks.bus]\ntype = \"nats\"\nurl = {:?}\nstate = true\n", server.url());
    let config = configure(&sim, dir.path(), TOPICS, &sink);
    let relay = Running::start(config.clone()).await;
    relay.wait_subscribed().await;
    tell_facts(&sim);
    // A name that is no key is written as one.
    let plain = |kept: &Kept| -> Kept {
        kept.iter().map(|(path, value)| (path.replace("=20", " "), value.clone())).collect()
    };
    let all = |kept: &Kept| is_whole(&plain(kept), &sim);
    let found = wait(&context, "all of it", |kept| all(kept) && has_facts(kept)).await;
    assert!(found.contains_key("main/session/odd=20one"));
    sim.reset_session(ROOM);
    wait(&context, "the new session", all).await;
    set(&sim, "odd-two", json!([1, 2]));
    wait(&context, "one more", |kept| kept.contains_key("main/session/odd-two")).await;
    relay.stop().await;
    let found = wait(&context, "the farewell", |kept| kept["main/status"] == "offline").await;
    assert!(is_stopped(&found["relay/status"]), "{found:?}");
    sim.reset_session(ROOM);
    let relay = Running::start(config).await;
    let found = wait(&context, "what is left", all).await;
    assert!(has_facts(&found), "only heard, and still known: {found:?}");

    // A bucket that somebody deleted is made and filled again.
    context.delete_stream("KV_astro_state").await.unwrap();
    set(&sim, "tip-goal", json!({"amount": 5}));
    wait(&context, "all of it again", all).await;
    relay.stop().await;
}

#[tokio::test]
async fn a_state_that_is_forbidden_does_not_hinder_the_events() {
    let server = NatsServer::start(
        "authorization { users: [{ user: me, password: pw, permissions: { publish: { \
         deny: [\"$KV.astro_state.main.session.>\"] } } }, { user: test, password: pw }] }\n\
         no_auth_user: test",
    )
    .await;
    server.client(ConnectOptions::new()).await;
    let context = server.streams().await;
    let sim = simulated().await;
    let dir = tempfile::tempdir().unwrap();
    let sink = format!(
        "[sinks.bus]\ntype = \"nats\"\nurl = {:?}\nuser = \"me\"\npassword = \"pw\"\nstate = true\n",
        server.url()
    );
    let listener = Listener::start(&server, "astro.main.>").await;
    let relay = Running::start(configure(&sim, dir.path(), TOPICS, &sink)).await;
    relay.wait_subscribed().await;
    tell_facts(&sim);
    let found = wait(&context, "what is allowed", has_facts).await;
    assert!(!found.keys().any(|path| path.starts_with("main/session/")), "{found:?}");
    let heard = listener.wait_for(3).await;
    assert!(heard.iter().any(|message| message.subject.as_str().ends_with("stream.status")));
    relay.stop().await;
}
