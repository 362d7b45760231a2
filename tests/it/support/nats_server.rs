//! nats-server as a child process, and listeners on it that note what arrives.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
};

use astro_relay::base::{clock, event::Seq};
use async_nats::{
    Client, ConnectOptions, Message,
    jetstream::{
        self,
        consumer::{AckPolicy, DeliverPolicy, pull},
        context::GetStreamErrorKind,
    },
};
use bytes::Bytes;
use futures_util::StreamExt;
use tempfile::TempDir;

use super::{
    carry::{PATIENCE, number},
    process::{Server, free_port},
    wait::until,
};

/// A nats-server on a free port of this machine.
pub struct NatsServer {
    pub server: Server,
    pub port: u16,
    dir: TempDir,
}

impl NatsServer {
    /// Starts one with streams on disk; `extra` are lines of its configuration beside the others.
    pub async fn start(extra: &str) -> Self {
        // By itself it takes three quarters of what is free, and refuses a stream that may grow larger.
        Self::with_storage("1TB", extra).await
    }

    /// One that gives its streams no more than this in all.
    pub async fn with_storage(max_file_store: &str, extra: &str) -> Self {
        Self::listening("127.0.0.1", max_file_store, extra).await
    }

    /// One that listens at addresses of both versions of IP.
    pub async fn everywhere(extra: &str) -> Self {
        Self::listening("[::]", "1TB", extra).await
    }

    async fn listening(host: &str, max_file_store: &str, extra: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let config = dir.path().join("nats.conf");
        let store = dir.path().join("store");
        let text = format!(
            "listen: \"{host}:{port}\"\n\
             jetstream {{ store_dir: \"{}\", max_file_store: {max_file_store} }}\n{extra}\n",
            store.display()
        );
        std::fs::write(&config, text).unwrap();
        let args = vec!["-c".into(), config.display().to_string()];
        let server = Server::start("nats-server", args, port).await;
        Self { server, port, dir }
    }

    /// Has it take these lines instead of its `extra` ones, while it runs.
    pub async fn reconfigure(&self, extra: &str) {
        let config = self.dir.path().join("nats.conf");
        let text = std::fs::read_to_string(&config).unwrap();
        let own: Vec<&str> = text.lines().take(2).collect();
        std::fs::write(&config, format!("{}\n{extra}\n", own.join("\n"))).unwrap();
        self.server.signal("HUP").await;
    }

    /// Where a stream's files are.
    pub fn stream_dir(&self, stream: &str) -> PathBuf {
        self.dir.path().join("store/jetstream/$G/streams").join(stream)
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// A client of the test's own.
    pub async fn client(&self, options: ConnectOptions) -> Client {
        until("the server takes a client", PATIENCE, async || {
            options.clone().connect(self.url()).await.ok()
        })
        .await
    }

    /// Waits until streams can be used, which is some time after connections can.
    pub async fn streams(&self) -> jetstream::Context {
        let context = jetstream::new(self.client(ConnectOptions::new()).await);
        // 2.9's answer about the account lacks what the client expects; any answer of the stream
        // interface will do.
        until("the server has its streams", PATIENCE, async || {
            let error = context.get_stream("none").await.err()?;
            matches!(error.kind(), GetStreamErrorKind::JetStream(_)).then_some(())
        })
        .await;
        context
    }

    /// The numbers of the events in that stream, in its order.
    pub async fn stored(&self, stream: &str) -> Vec<Seq> {
        self.stored_after(stream, 0).await
    }

    /// Those behind the first `known` of a stream from which nothing was ever taken.
    pub async fn stored_after(&self, stream: &str, known: usize) -> Vec<Seq> {
        let Ok(mut stream) = self.streams().await.get_stream(stream).await else {
            return Vec::new();
        };
        let state = stream.info().await.unwrap().state.clone();
        let start_sequence = state.first_sequence + known as u64;
        let Some(count) = (state.last_sequence + 1).checked_sub(start_sequence) else {
            return Vec::new();
        };
        if count == 0 {
            return Vec::new();
        }
        // One by one would be slower than whoever publishes meanwhile.
        let consumer = stream
            .create_consumer(pull::Config {
                deliver_policy: DeliverPolicy::ByStartSequence { start_sequence },
                ack_policy: AckPolicy::None,
                ..pull::Config::default()
            })
            .await
            .unwrap();
        let mut left = usize::try_from(count).unwrap();
        let mut numbers = Vec::new();
        while left > 0 {
            // A client drops what it has no room for.
            let messages = consumer.fetch().max_messages(left.min(10_000)).messages();
            let read: Vec<_> = messages.await.unwrap().collect().await;
            left -= read.len();
            let read = read.iter().filter_map(|message| number(&message.as_ref().unwrap().payload));
            numbers.extend(read);
        }
        numbers
    }
}

/// A subscriber of core NATS.
pub struct Listener {
    /// With the time, in microseconds.
    heard: Arc<Mutex<Vec<(u64, Message)>>>,
    client: Client,
    task: tokio::task::JoinHandle<()>,
}

impl Listener {
    /// Subscribes and waits until the server knows it.
    #[expect(clippy::disallowed_methods, reason = "a test's own task")]
    pub async fn start(server: &NatsServer, subject: &'static str) -> Self {
        let client = server.client(ConnectOptions::new()).await;
        let mut subscription = client.subscribe(subject).await.unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let notes = Arc::clone(&heard);
        let task = tokio::spawn(async move {
            while let Some(message) = subscription.next().await {
                notes.lock().unwrap().push((clock::now_micros(), message));
            }
        });
        let listener = Self { heard, client, task };
        listener.settle().await;
        listener
    }

    /// Waits until the server knows this subscriber, again after it was away.
    pub async fn settle(&self) {
        let inbox = self.client.new_inbox();
        until("the subscription stands", PATIENCE, async || {
            let mut echo = self.client.subscribe(inbox.clone()).await.ok()?;
            self.client.publish(inbox.clone(), "".into()).await.ok()?;
            let heard = tokio::time::timeout(PATIENCE / 60, echo.next()).await;
            heard.ok().flatten().map(drop)
        })
        .await;
    }

    pub fn heard(&self) -> Vec<Message> {
        self.heard.lock().unwrap().iter().map(|(_, message)| message.clone()).collect()
    }

    /// The numbers of the events that have arrived.
    pub fn numbers(&self) -> Vec<Seq> {
        self.heard().iter().filter_map(|message| number(&message.payload)).collect()
    }

    /// The numbers of the newest of them.
    pub fn newest(&self) -> Vec<Seq> {
        let heard = self.heard.lock().unwrap();
        let newest = heard.iter().rev().take(100);
        newest.filter_map(|(_, message)| number(&message.payload)).collect()
    }

    /// When each event arrived, in microseconds, by its payload.
    pub fn times(&self) -> Vec<(u64, Bytes)> {
        let heard = self.heard.lock().unwrap();
        heard.iter().map(|(at, message)| (*at, message.payload.clone())).collect()
    }

    /// Waits until `count` messages have arrived.
    pub async fn wait_for(&self, count: usize) -> Vec<Message> {
        until("the messages arrive", PATIENCE, async || {
            let heard = self.heard();
            (heard.len() >= count).then_some(heard)
        })
        .await
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}
