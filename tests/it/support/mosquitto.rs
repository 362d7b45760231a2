//! mosquitto as a child process, and a listener on it that notes what arrives.

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rumqttc_v5::{
    AsyncClient, Broker, Event, Incoming, MqttOptions, Publish, PublishOptions, QoS,
    mqttbytes::v5::ConnectProperties,
};
use tempfile::TempDir;

use astro_relay::base::{clock, event::Seq};
use bytes::Bytes;

use super::{
    carry::{PATIENCE, number},
    process::{Server, free_port},
    wait::until,
};

/// A mosquitto on a free port of this machine.
pub struct Mosquitto {
    pub server: Server,
    pub port: u16,
    _dir: TempDir,
}

/// What of its configuration the tests choose.
#[derive(Default)]
pub struct Options<'a> {
    /// Whether it keeps what it has acknowledged across `kill -9`.
    pub durable: bool,
    /// Lines of its configuration beside the others.
    pub extra: &'a str,
    /// Its access list; empty: everybody may do everything.
    pub acl: &'a str,
}

impl Mosquitto {
    pub async fn start(options: Options<'_>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let mut config = format!(
            "listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\nmax_queued_messages 0\n{}\n",
            options.extra
        );
        if options.durable {
            let place = dir.path().display();
            config.extend([
                format!("persistence true\npersistence_location {place}/\n"),
                "autosave_on_changes true\nautosave_interval 1\n".to_owned(),
            ]);
        }
        if !options.acl.is_empty() {
            write(&dir.path().join("acl"), options.acl);
            config.extend(["acl_file ".to_owned(), path("acl"), "\n".to_owned()]);
        }
        // Started by root it would otherwise become a user that may not write here.
        config += "user root\n";
        write(&dir.path().join("mosquitto.conf"), &config);
        let args = vec!["-c".into(), path("mosquitto.conf")];
        let server = Server::start("mosquitto", args, port).await;
        Self { server, port, _dir: dir }
    }

    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }
}

fn write(path: &Path, content: &str) {
    std::fs::write(path, content).unwrap();
}

/// A subscriber with a lasting session: what is published while it is away waits for it.
pub struct Listener {
    /// With the time, in microseconds.
    heard: Arc<Mutex<Vec<(u64, Publish)>>>,
    subscriptions: Arc<Mutex<usize>>,
    task: tokio::task::JoinHandle<()>,
    client: AsyncClient,
}

impl Listener {
    /// Subscribes and waits until the broker has confirmed it.
    #[expect(clippy::disallowed_methods, reason = "a test's own task")]
    pub async fn start(port: u16, filter: &str) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let name = format!("listener-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let mut options = MqttOptions::new(name, Broker::tcp("127.0.0.1", port));
        let mut properties = ConnectProperties::new();
        properties.session_expiry_interval = Some(3600);
        options
            .set_clean_start(false)
            .set_connect_properties(properties)
            .set_max_packet_size(Some(4 * 1024 * 1024))
            .set_keep_alive(5);
        let (client, mut events) = AsyncClient::builder(options).capacity(10).build();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let subscriptions = Arc::new(Mutex::new(0));
        let (notes, confirmed) = (Arc::clone(&heard), Arc::clone(&subscriptions));
        client.subscribe(filter, QoS::AtLeastOnce).await.unwrap();
        let task = tokio::spawn(async move {
            loop {
                match events.poll().await {
                    Ok(Event::Incoming(Incoming::Publish(publish))) => {
                        notes.lock().unwrap().push((clock::now_micros(), publish));
                    }
                    Ok(Event::Incoming(Incoming::SubAck(_))) => *confirmed.lock().unwrap() += 1,
                    Ok(_) => {}
                    // The broker is away; the client has no backoff of its own.
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        });
        let listener = Self { heard, subscriptions, task, client };
        until("the subscription is confirmed", PATIENCE, async || {
            (*listener.subscriptions.lock().unwrap() > 0).then_some(())
        })
        .await;
        listener
    }

    /// Publishes over the same connection.
    pub async fn publish(&self, topic: &str, payload: &[u8], options: PublishOptions) {
        self.client.publish(topic, payload.to_vec(), options).await.unwrap();
    }

    /// All that has arrived.
    pub fn heard(&self) -> Vec<Publish> {
        self.heard.lock().unwrap().iter().map(|(_, publish)| publish.clone()).collect()
    }

    /// The numbers of the events that have arrived, from their payloads.
    pub fn numbers(&self) -> Vec<Seq> {
        let heard = self.heard.lock().unwrap();
        heard.iter().filter_map(|(_, publish)| number(&publish.payload)).collect()
    }

    /// How many have arrived.
    pub fn count(&self) -> usize {
        self.heard.lock().unwrap().len()
    }

    /// The numbers of the newest of them.
    pub fn newest(&self) -> Vec<Seq> {
        let heard = self.heard.lock().unwrap();
        let newest = heard.iter().rev().take(100);
        newest.filter_map(|(_, publish)| number(&publish.payload)).collect()
    }

    /// When each event arrived, in microseconds, by its payload.
    pub fn times(&self) -> Vec<(u64, Bytes)> {
        let heard = self.heard.lock().unwrap();
        heard.iter().map(|(at, publish)| (*at, publish.payload.clone())).collect()
    }

    /// Waits until `count` messages have arrived.
    pub async fn wait_for(&self, count: usize) -> Vec<Publish> {
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
