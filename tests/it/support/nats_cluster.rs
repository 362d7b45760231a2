//! Three nats-servers as one cluster with JetStream, as child processes.

use astro_relay::base::clock;
use async_nats::{
    ConnectOptions,
    jetstream::{self, stream::Config},
};
use tempfile::TempDir;

use super::{
    carry::PATIENCE,
    process::{Server, free_port},
    wait::until,
};

/// A cluster of servers: each can be killed and started again with its data.
pub struct NatsCluster {
    pub servers: Vec<Server>,
    ports: Vec<u16>,
    _dir: TempDir,
}

impl NatsCluster {
    /// Starts three; waits until they keep a stream of three copies.
    pub async fn start() -> Self {
        Self::with("").await
    }

    /// The same; `extra` are lines of their configuration beside the others.
    pub async fn with(extra: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ports: Vec<u16> = (0..3).map(|_| free_port()).collect();
        let routes: Vec<u16> = (0..3).map(|_| free_port()).collect();
        let all: Vec<String> =
            routes.iter().map(|port| format!("\"nats-route://127.0.0.1:{port}\"")).collect();
        let mut starts = Vec::new();
        for (number, (port, route)) in ports.iter().zip(&routes).enumerate() {
            let config = dir.path().join(format!("n{number}.conf"));
            let store = dir.path().join(format!("store-{number}"));
            let text = format!(
                "server_name: n{number}\nlisten: \"127.0.0.1:{port}\"\n\
                 jetstream {{ store_dir: \"{}\", max_file_store: 1TB }}\n\
                 cluster {{ name: c, listen: \"127.0.0.1:{route}\", routes: [{}], connect_retries: 1000 }}\n{extra}\n",
                store.display(),
                all.join(", "),
            );
            std::fs::write(&config, text).unwrap();
            let args = vec!["-c".into(), config.display().to_string()];
            starts.push(Server::start("nats-server", args, *port));
        }
        let servers = futures_util::future::join_all(starts).await;
        let cluster = Self { servers, ports, _dir: dir };
        cluster.works().await;
        cluster
    }

    /// The servers' addresses, as a client takes them.
    pub fn url(&self) -> String {
        let urls: Vec<_> =
            self.ports.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect();
        urls.join(",")
    }

    /// A client of the test's own.
    pub async fn client(&self) -> async_nats::Client {
        let addresses: Vec<async_nats::ServerAddr> =
            self.url().split(',').map(|url| url.parse().unwrap()).collect();
        until("the servers take a client", PATIENCE, async || {
            ConnectOptions::new().connect(addresses.clone()).await.ok()
        })
        .await
    }

    /// Waits until they have a leader and keep streams of three copies.
    pub async fn works(&self) -> jetstream::Context {
        let context = jetstream::new(self.client().await);
        let name = format!("works-{}", clock::now_micros());
        until("the servers keep a stream", PATIENCE, async || {
            let config = Config {
                name: name.clone(),
                subjects: vec![format!("{name}.>")],
                num_replicas: 3,
                ..Config::default()
            };
            context.get_or_create_stream(config).await.ok()?;
            context.publish(format!("{name}.x"), "x".into()).await.ok()?.await.ok()
        })
        .await;
        context.delete_stream(&name).await.unwrap();
        context
    }
}
