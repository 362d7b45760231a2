//! The destinations: a real broker each, and a consumer that counts.

use std::{net::SocketAddr, path::Path, time::Duration};

use futures_util::StreamExt;
use rumqttc_v5::{AsyncClient, Broker, Event, Incoming, MqttOptions, QoS};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::{
    support::process::{Server, free_port},
    tally::{Tally, after, number},
};

/// Where the destinations of a case are.
pub struct Destination {
    pub kind: Kind,
    pub address: SocketAddr,
    _server: Option<Server>,
    _dir: TempDir,
    consumers: JoinSet<()>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Nats,
    JetStream,
    MqttQos0,
    MqttQos1,
    /// The same with a broker that is told to send small segments at once.
    MqttQos1Nodelay,
    RedisPubsub,
    RedisStream,
    Webhook,
    WebhookOneRoom,
}

impl Kind {
    pub const ALL: [Self; 9] = [
        Self::Nats,
        Self::JetStream,
        Self::MqttQos0,
        Self::MqttQos1,
        Self::MqttQos1Nodelay,
        Self::RedisPubsub,
        Self::RedisStream,
        Self::Webhook,
        Self::WebhookOneRoom,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Nats => "nats",
            Self::JetStream => "jetstream",
            Self::MqttQos0 => "mqtt-qos0",
            Self::MqttQos1 => "mqtt-qos1",
            Self::MqttQos1Nodelay => "mqtt-qos1-nodelay",
            Self::RedisPubsub => "redis-pubsub",
            Self::RedisStream => "redis-stream",
            Self::Webhook => "webhook",
            Self::WebhookOneRoom => "webhook-one-room",
        }
    }

    /// How many rooms take turns. Order is kept within a room, so of one room there is one request at
    /// a time; as many rooms as `concurrency` keep all connections busy.
    pub fn rooms(self) -> usize {
        if self == Self::Webhook { 8 } else { 1 }
    }

    /// The sink's table in the relay's configuration.
    pub fn sink(self, address: SocketAddr) -> Value {
        match self {
            Self::Nats => json!({ "type": "nats", "url": format!("nats://{address}") }),
            Self::JetStream => json!({
                "type": "nats", "url": format!("nats://{address}"), "jetstream": true,
                "stream": "ASTRO", "create_stream": true,
            }),
            Self::MqttQos0 => {
                json!({ "type": "mqtt", "url": format!("mqtt://{address}"), "qos": 0 })
            }
            Self::MqttQos1 | Self::MqttQos1Nodelay => {
                json!({ "type": "mqtt", "url": format!("mqtt://{address}") })
            }
            Self::RedisPubsub => json!({ "type": "redis", "url": format!("redis://{address}") }),
            Self::RedisStream => json!({
                "type": "redis", "url": format!("redis://{address}"), "mode": "stream",
            }),
            Self::Webhook | Self::WebhookOneRoom => json!({
                "type": "webhook", "url": format!("http://{address}/"),
                "allow_addresses": ["127.0.0.1"], "concurrency": 8,
            }),
        }
    }
}

impl Destination {
    /// Starts the server and a consumer that is subscribed when this returns.
    pub async fn start(kind: Kind, tally: &Tally) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        Self::start_at(kind, address, tally).await
    }

    /// The same at an address.
    pub async fn start_at(kind: Kind, address: SocketAddr, tally: &Tally) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = server(kind, address.port(), dir.path()).await;
        let mut consumers = JoinSet::new();
        consume(kind, address, tally.clone(), &mut consumers).await;
        Self { kind, address, _server: server, _dir: dir, consumers }
    }

    pub fn stop(mut self) {
        self.consumers.abort_all();
    }
}

async fn server(kind: Kind, port: u16, dir: &Path) -> Option<Server> {
    let (name, arguments) = match kind {
        Kind::Nats | Kind::JetStream => {
            let config = dir.join("nats.conf");
            let store = dir.join("store").display().to_string();
            let text = format!(
                "listen: \"127.0.0.1:{port}\"\njetstream {{ store_dir: \"{store}\", max_file_store: 1TB }}\n"
            );
            std::fs::write(&config, text).unwrap();
            ("nats-server", vec!["-c".to_owned(), config.display().to_string()])
        }
        Kind::MqttQos0 | Kind::MqttQos1 | Kind::MqttQos1Nodelay => {
            let config = dir.join("mosquitto.conf");
            // As it is installed, but for the port. The counting consumer must lose nothing of what the
            // broker took: the queue towards it has no bound, which no publisher notices.
            let mut text =
                format!("listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\n");
            if kind == Kind::MqttQos1Nodelay {
                text.push_str("set_tcp_nodelay true\n");
            }
            std::fs::write(&config, text).unwrap();
            ("mosquitto", vec!["-c".to_owned(), config.display().to_string()])
        }
        Kind::RedisPubsub | Kind::RedisStream => {
            let dir = dir.display().to_string();
            let flags =
                ["--port", &port.to_string(), "--dir", &dir].map(ToOwned::to_owned).to_vec();
            ("redis-server", flags)
        }
        Kind::Webhook | Kind::WebhookOneRoom => return None,
    };
    Some(Server::start(name, arguments, port).await)
}

async fn consume(kind: Kind, address: SocketAddr, tally: Tally, consumers: &mut JoinSet<()>) {
    match kind {
        Kind::Nats | Kind::JetStream => {
            let client = async_nats::ConnectOptions::new()
                .subscription_capacity(1 << 20)
                .connect(format!("nats://{address}"))
                .await
                .unwrap();
            let subscriber = client.subscribe("astro.>").await.unwrap();
            client.flush().await.unwrap();
            consumers.spawn(async move {
                let _client = client;
                let mut ready = subscriber.ready_chunks(1024);
                while let Some(messages) = ready.next().await {
                    tally.take(messages.iter().map(|message| &*message.payload));
                }
            });
        }
        Kind::MqttQos0 | Kind::MqttQos1 | Kind::MqttQos1Nodelay => {
            let broker = Broker::tcp(address.ip().to_string(), address.port());
            let mut options = MqttOptions::new("counter", broker);
            options.set_keep_alive(60);
            options.set_clean_start(true);
            options.set_outgoing_inflight_upper_limit(64);
            options.set_receive_maximum(Some(1000));
            let (client, mut events) = AsyncClient::builder(options).capacity(16).build();
            let qos = if kind == Kind::MqttQos0 { QoS::AtMostOnce } else { QoS::AtLeastOnce };
            client.subscribe("astro/#", qos).await.unwrap();
            loop {
                if let Event::Incoming(Incoming::SubAck(_)) = events.poll().await.unwrap() {
                    break;
                }
            }
            consumers.spawn(async move {
                let _client = client;
                while let Ok(event) = events.poll().await {
                    if let Event::Incoming(Incoming::Publish(publish)) = event {
                        tally.take([&*publish.payload]);
                    }
                }
            });
        }
        Kind::RedisPubsub => {
            let client = redis::Client::open(format!("redis://{address}")).unwrap();
            let mut pubsub = client.get_async_pubsub().await.unwrap();
            pubsub.psubscribe("astro:*").await.unwrap();
            consumers.spawn(async move {
                let mut ready = pubsub.into_on_message().ready_chunks(1024);
                while let Some(messages) = ready.next().await {
                    tally.take(messages.iter().map(redis::Msg::get_payload_bytes));
                }
            });
        }
        Kind::RedisStream => {
            let client = redis::Client::open(format!("redis://{address}")).unwrap();
            let connection = client.get_multiplexed_async_connection().await.unwrap();
            consumers.spawn(read_stream(connection, tally));
        }
        Kind::Webhook | Kind::WebhookOneRoom => {
            let listener = TcpListener::bind(address).await.unwrap();
            consumers.spawn(receive(listener, tally));
        }
    }
}

/// An entry of a stream: its id and its fields.
type Entry = (String, Vec<(String, Vec<u8>)>);

async fn read_stream(mut connection: redis::aio::MultiplexedConnection, tally: Tally) {
    let mut after = "0-0".to_owned();
    loop {
        let mut read = redis::cmd("XRANGE");
        read.arg("astro:events").arg(format!("({after}")).arg("+").arg("COUNT").arg(2000);
        let entries: Vec<Entry> = read.query_async(&mut connection).await.unwrap_or_default();
        if entries.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
            continue;
        }
        after.clone_from(&entries.last().unwrap().0);
        let fields = entries.iter().flat_map(|(_, fields)| fields);
        tally.take(fields.filter(|(name, _)| name == "payload").map(|(_, value)| &**value));
    }
}

/// The thinnest receiver of webhooks that keeps connections.
async fn receive(listener: TcpListener, tally: Tally) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(answer(stream, tally.clone(), Duration::ZERO));
    }
}

/// A receiver that answers each request after a fifth of a second.
pub async fn slow_receiver(receivers: &mut JoinSet<()>) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    receivers.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(answer(stream, Tally::of(1), Duration::from_millis(200)));
        }
    });
    address
}

async fn answer(mut stream: TcpStream, tally: Tally, delay: Duration) {
    stream.set_nodelay(true).unwrap();
    let mut buffer = Vec::with_capacity(1 << 16);
    loop {
        while let Some((head, length)) = request(&buffer) {
            if buffer.len() < head + length {
                break;
            }
            tally.take([&buffer[head..head + length]]);
            buffer.drain(..head + length);
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            if stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.is_err() {
                return;
            }
        }
        match stream.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

/// Where the head of a request ends, and how long its body is. The relay writes `content-length` in
/// small letters.
fn request(buffer: &[u8]) -> Option<(usize, usize)> {
    let head = after(buffer, b"\r\n\r\n")?;
    let length = after(&buffer[..head], b"\r\ncontent-length: ").map(|at| number(&buffer[at..]));
    Some((head, usize::try_from(length.unwrap_or(0)).unwrap()))
}
