//! The rows for Redis: published, and appended to a stream.

use astro_relay::{base::event::Seq, sink::Outgoing};
use redis::{AsyncCommands, RedisResult, cmd, streams::StreamRangeReply};
use serde_json::{Value, json};

use super::{CanBeBusy, Destination, Killable, Rejects};
use crate::support::{
    carry::{PATIENCE, number},
    redis_server::{Durability, Listener, RedisServer},
    wait::until,
};

/// A listener to channels.
pub struct Pubsub {
    server: RedisServer,
    listener: Listener,
    /// A client that keeps the server from its other work.
    hog: Option<tokio::task::JoinHandle<()>>,
}

impl Destination for Pubsub {
    const KIND: &'static str = "redis";
    const ADDRESS: &'static str = "astro:main:channel.tips";
    /// What a listener has not read when the server dies is gone.
    const DURABLE: bool = false;

    async fn start() -> Self {
        // One channel's events may be published and no others: `NOPERM` is the refusal that there is.
        let user = ["--user", "relay", "on", ">secret", "~*", "resetchannels", "&astro:*", "+@all"];
        let more = [&["--busy-reply-threshold", "20"], &user[..]].concat();
        let server = RedisServer::start_with(Durability::Memory, &more).await;
        let listener = Listener::start(&server, "*").await;
        Self { server, listener, hog: None }
    }

    fn settings(&self) -> Value {
        json!({ "url": self.server.url(), "user": "relay", "password": { "value": "secret" } })
    }

    async fn received(&self) -> Vec<Seq> {
        self.listener.numbers()
    }
}

impl Killable for Pubsub {
    async fn kill(&mut self) {
        self.server.server.kill().await;
    }

    async fn restart(&mut self) {
        self.server.server.restart().await;
        self.listener.settle(&self.server).await;
    }
}

/// Publishing needs no memory, so that a full server does not matter; one that runs a long script
/// does.
impl CanBeBusy for Pubsub {
    #[expect(clippy::disallowed_methods, reason = "a test's own task")]
    async fn make_busy(&mut self) {
        let mut connection = self.server.connection().await;
        self.hog = Some(tokio::spawn(async move {
            let mut script = cmd("EVAL");
            script.arg("while true do end").arg(0);
            // It ends by being killed.
            assert!(script.query_async::<()>(&mut connection).await.is_err());
        }));
        let mut connection = self.server.connection().await;
        until("the server is busy", PATIENCE, async || {
            let pong: RedisResult<()> = cmd("PING").query_async(&mut connection).await;
            pong.is_err_and(|error| error.code() == Some("BUSY")).then_some(())
        })
        .await;
    }

    async fn make_free(&mut self) {
        let mut connection = self.server.connection().await;
        let () = cmd("SCRIPT").arg("KILL").query_async(&mut connection).await.unwrap();
        self.hog.take().unwrap().await.unwrap();
    }
}

impl Rejects for Pubsub {
    fn spoil(outgoing: &mut Outgoing) {
        outgoing.address = "other:main:channel.tips".into();
    }
}

/// A stream.
pub struct Stream {
    server: RedisServer,
}

impl Destination for Stream {
    const KIND: &'static str = "redis";
    const ADDRESS: &'static str = "astro:events";
    const RECOGNISES: bool = true;

    async fn start() -> Self {
        let server = RedisServer::start(Durability::AofAlways).await;
        let () = server.connection().await.set("no stream", "text").await.unwrap();
        Self { server }
    }

    fn settings(&self) -> Value {
        json!({ "url": self.server.url(), "mode": "stream", "key": "astro:{{ room }}" })
    }

    async fn received(&self) -> Vec<Seq> {
        let mut connection = self.server.connection().await;
        let reply: StreamRangeReply = connection.xrange_all(Self::ADDRESS).await.unwrap();
        let payloads = reply.ids.iter().map(|entry| entry.get::<Vec<u8>>("payload").unwrap());
        payloads.map(|payload| number(&payload).unwrap()).collect()
    }
}

impl Killable for Stream {
    async fn kill(&mut self) {
        self.server.server.kill().await;
    }

    async fn restart(&mut self) {
        self.server.server.restart().await;
    }
}

impl Stream {
    /// Bytes that the server may use; 0 is no limit.
    async fn limit(&self, bytes: u64) {
        let mut command = cmd("CONFIG");
        command.arg("SET").arg("maxmemory").arg(bytes);
        let () = command.query_async(&mut self.server.connection().await).await.unwrap();
    }
}

impl CanBeBusy for Stream {
    async fn make_busy(&mut self) {
        self.limit(1).await;
    }

    async fn make_free(&mut self) {
        self.limit(0).await;
    }
}

impl Rejects for Stream {
    fn spoil(outgoing: &mut Outgoing) {
        outgoing.address = "no stream".into();
    }
}
