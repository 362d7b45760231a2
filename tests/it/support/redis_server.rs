//! A real `redis-server` with a directory of its own.

use std::time::Duration;

use redis::{AsyncConnectionConfig, Client, aio::MultiplexedConnection};
use tempfile::TempDir;

use super::{
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
            let pong: redis::RedisResult<String> =
                redis::cmd("PING").query_async(&mut connection).await;
            match pong {
                Err(error) if error.code() == Some("LOADING") => None,
                _ => Some(connection),
            }
        })
        .await
    }
}
