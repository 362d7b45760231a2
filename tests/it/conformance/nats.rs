//! The rows for NATS: with streams, and without.

use std::sync::Mutex;

use astro_relay::{base::event::Seq, sink::Outgoing};
use async_nats::jetstream::stream::DiscardPolicy;
use serde_json::{Value, json};

use super::{CanBeBusy, Destination, Killable, Rejects};
use crate::support::nats_server::{self, NatsServer};

/// nats-server, without streams.
pub struct Nats {
    server: NatsServer,
    listener: nats_server::Listener,
}

impl Destination for Nats {
    const KIND: &'static str = "nats";
    const ADDRESS: &'static str = "astro.main.channel.tips";
    /// What a listener has not read when the server dies is gone.
    const DURABLE: bool = false;

    async fn start() -> Self {
        let server = NatsServer::start("").await;
        let listener = nats_server::Listener::start(&server, "astro.>").await;
        Self { server, listener }
    }

    fn settings(&self) -> Value {
        json!({ "url": self.server.url() })
    }

    async fn received(&self) -> Vec<Seq> {
        self.listener.numbers()
    }
}

impl Killable for Nats {
    async fn kill(&mut self) {
        self.server.server.kill().await;
    }

    async fn restart(&mut self) {
        self.server.server.restart().await;
        self.listener.settle().await;
    }
}

impl Rejects for Nats {
    fn spoil(outgoing: &mut Outgoing) {
        outgoing.payload = vec![b'x'; 2 * 1024 * 1024].into();
    }
}

/// A stream.
pub struct JetStream {
    server: NatsServer,
    /// What has been read of it so far.
    read: Mutex<Vec<Seq>>,
}

impl Destination for JetStream {
    const KIND: &'static str = "nats";
    const ADDRESS: &'static str = "astro.main.channel.tips";
    const RECOGNISES: bool = true;

    async fn start() -> Self {
        let server = NatsServer::start("").await;
        server.streams().await;
        Self { server, read: Mutex::default() }
    }

    fn settings(&self) -> Value {
        json!({ "url": self.server.url(), "jetstream": true, "create_stream": true })
    }

    async fn received(&self) -> Vec<Seq> {
        // Whoever publishes meanwhile is faster than reading all of it each time.
        let mut read = self.read.lock().unwrap().clone();
        read.extend(self.server.stored_after("ASTRO", read.len()).await);
        self.read.lock().unwrap().clone_from(&read);
        read
    }
}

impl Killable for JetStream {
    async fn kill(&mut self) {
        self.server.server.kill().await;
    }

    async fn restart(&mut self) {
        self.server.server.restart().await;
    }
}

impl CanBeBusy for JetStream {
    async fn make_busy(&mut self) {
        let context = self.server.streams().await;
        let mut config = context.get_stream("ASTRO").await.unwrap().cached_info().config.clone();
        config.max_messages = 25;
        config.discard = DiscardPolicy::New;
        context.update_stream(config).await.unwrap();
    }

    async fn make_free(&mut self) {
        let context = self.server.streams().await;
        let mut config = context.get_stream("ASTRO").await.unwrap().cached_info().config.clone();
        config.max_messages = -1;
        context.update_stream(config).await.unwrap();
    }
}

impl Rejects for JetStream {
    fn spoil(outgoing: &mut Outgoing) {
        outgoing.payload = vec![b'x'; 2 * 1024 * 1024].into();
    }
}
