//! A real `redis-server` with a directory of its own.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use astro_relay::base::event::Seq;
use futures_util::StreamExt;
use redis::{AsyncConnectionConfig, Client, Msg, RedisResult, aio::MultiplexedConnection, cmd};
use tempfile::TempDir;

use super::{
    carry::number,
    process::{Server, free_port},
    wait::until,
};

/// How long a test waits for an answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running server and its data.
pub struct RedisServer {
    /// The process: to kill and restart.
    pub server: Server,
    _dir: TempDir,
}

/// Whether what the server has acknowledged survives its death.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// It writes nothing to disk.
    Memory,
    /// It writes each command to the append-only file before it answers.
    AofAlways,
}

impl RedisServer {
    /// Starts one.
    pub async fn start(durability: Durability) -> Self {
        Self::start_with(durability, &[]).await
    }

    /// Starts one with further arguments.
    pub async fn start_with(durability: Durability, more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let mut args: Vec<String> = [
            "--bind",
            "127.0.0.1",
            "--port",
            &port.to_string(),
            "--dir",
            dir.path().to_str().unwrap(),
            "--save",
            "",
        ]
        .map(str::to_owned)
        .to_vec();
        if durability == Durability::AofAlways {
            args.extend(["--appendonly", "yes", "--appendfsync", "always"].map(str::to_owned));
        }
        args.extend(more.iter().map(|&arg| arg.to_owned()));
        Self { server: Server::start("redis-server", args, port).await, _dir: dir }
    }

    /// Its address for a sink.
    pub fn url(&self) -> String {
        format!("redis://{}", self.server.address)
    }

    /// A connection of the test's own, once the server has loaded its data.
    pub async fn connection(&self) -> MultiplexedConnection {
        let client = Client::open(self.url()).unwrap();
        // The library's half a second is not enough for a test beside other tests.
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(PATIENCE));
        until("the server answers", PATIENCE, async || {
            let connecting = client.get_multiplexed_async_connection_with_config(&config);
            let mut connection = connecting.await.ok()?;
            let pong: RedisResult<String> = cmd("PING").query_async(&mut connection).await;
            match pong {
                Err(error) if error.code() == Some("LOADING") => None,
                _ => Some(connection),
            }
        })
        .await
    }
}

/// A listener to channels, which comes back after the server was away.
pub struct Listener {
    heard: Arc<Mutex<Vec<Msg>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Listener {
    /// Listens to the channels of this pattern, and waits until the server knows it.
    #[expect(clippy::disallowed_methods, reason = "a test's own task")]
    pub async fn start(server: &RedisServer, pattern: &'static str) -> Self {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let notes = Arc::clone(&heard);
        let client = Client::open(server.url()).unwrap();
        let task = tokio::spawn(async move {
            loop {
                // The server may be away.
                if listen(&client, pattern, &notes).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        });
        let listener = Self { heard, task };
        listener.settle(server).await;
        listener
    }

    /// Waits until the server knows this listener, again after it was away.
    pub async fn settle(&self, server: &RedisServer) {
        let mut connection = server.connection().await;
        until("the listener is known", PATIENCE, async || {
            let mut ask = cmd("PUBSUB");
            let patterns: usize = ask.arg("NUMPAT").query_async(&mut connection).await.unwrap();
            (patterns > 0).then_some(())
        })
        .await;
    }

    /// The channels and payloads of all that was heard.
    pub fn heard(&self) -> Vec<(String, Vec<u8>)> {
        let heard = self.heard.lock().unwrap();
        heard
            .iter()
            .map(|m| (m.get_channel_name().to_owned(), m.get_payload_bytes().to_vec()))
            .collect()
    }

    /// The numbers of the events that were heard.
    pub fn numbers(&self) -> Vec<Seq> {
        self.heard.lock().unwrap().iter().filter_map(|m| number(m.get_payload_bytes())).collect()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen(client: &Client, pattern: &str, heard: &Mutex<Vec<Msg>>) -> RedisResult<()> {
    let mut pubsub = client.get_async_pubsub().await?;
    pubsub.psubscribe(pattern).await?;
    let mut messages = pubsub.on_message();
    while let Some(message) = messages.next().await {
        heard.lock().unwrap().push(message);
    }
    Ok(())
}
