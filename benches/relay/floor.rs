//! The floor: the thinnest program with the same libraries. It copies frames unparsed to one address
//! and waits for nobody: no envelope, no order, no retry, no journal. Nothing can cost less.

use futures_util::{SinkExt, StreamExt, stream::ReadyChunks};
use rumqttc_v5::{AsyncClient, Broker, MqttOptions, PublishOptions, QoS};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{Message, Utf8Bytes, client::IntoClientRequest, protocol::WebSocketConfig},
};

/// Frames copied at once.
const BATCH: usize = 256;

/// `KIND BROKER GATEWAY TOPIC ROOM`
pub fn run(arguments: &[String]) {
    let [kind, broker, gateway, topic, room] = arguments else { panic!("{arguments:?}") };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let source = Source::open(gateway, topic, room).await;
        match kind.as_str() {
            "nats" => nats(source, broker).await,
            "mqtt-qos0" => mqtt(source, broker, QoS::AtMostOnce).await,
            "mqtt-qos1" | "mqtt-qos1-nodelay" => mqtt(source, broker, QoS::AtLeastOnce).await,
            "redis-pubsub" => redis(source, broker).await,
            other => panic!("there is no floor for {other}"),
        }
    });
}

struct Source(ReadyChunks<WebSocketStream<tokio::net::TcpStream>>);

impl Source {
    async fn open(gateway: &str, topic: &str, room: &str) -> Self {
        let request = gateway.into_client_request().unwrap();
        let authority = request.uri().authority().unwrap().to_string();
        let stream = tokio::net::TcpStream::connect(authority).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let config = WebSocketConfig::default().read_buffer_size(64 * 1024);
        let (mut socket, _) =
            client_async_with_config(request, stream, Some(config)).await.unwrap();
        let subscribe = format!(
            r#"{{"type":"subscribe","nonce":"1","data":{{"topic":"{topic}","room":"{room}","token":"t","token_type":"jwt"}}}}"#
        );
        socket.send(Message::text(subscribe)).await.unwrap();
        Self(socket.ready_chunks(BATCH))
    }

    /// What is ready; `None` at the end.
    async fn batch(&mut self) -> Option<Vec<Utf8Bytes>> {
        let mut texts = Vec::new();
        for frame in self.0.next().await? {
            match frame {
                Ok(Message::Text(text)) => texts.push(text),
                Ok(_) => {}
                Err(_) => return None,
            }
        }
        Some(texts)
    }
}

async fn nats(mut source: Source, broker: &str) {
    let client = async_nats::connect(format!("nats://{broker}")).await.unwrap();
    while let Some(texts) = source.batch().await {
        for text in texts {
            client.publish("astro.floor", text.into()).await.unwrap();
        }
    }
}

async fn mqtt(mut source: Source, broker: &str, qos: QoS) {
    let (host, port) = broker.split_once(':').unwrap();
    let mut options = MqttOptions::new("floor", Broker::tcp(host, port.parse().unwrap()));
    options.set_clean_start(true);
    options.set_outgoing_inflight_upper_limit(64);
    let mut network = rumqttc_v5::NetworkOptions::new();
    network.set_tcp_nodelay(true);
    options.set_network_options(network);
    let (client, mut events) = AsyncClient::builder(options).capacity(1024).build();
    tokio::spawn(async move { while events.poll().await.is_ok() {} });
    while let Some(texts) = source.batch().await {
        for text in texts {
            let payload: bytes::Bytes = text.into();
            client.publish("astro/floor", payload, PublishOptions::new(qos)).await.unwrap();
        }
    }
}

async fn redis(mut source: Source, broker: &str) {
    let client = redis::Client::open(format!("redis://{broker}")).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    while let Some(texts) = source.batch().await {
        let mut pipe = redis::pipe();
        for text in &texts {
            pipe.cmd("PUBLISH").arg("astro:floor").arg(text.as_bytes()).ignore();
        }
        if !texts.is_empty() {
            pipe.query_async::<()>(&mut connection).await.unwrap();
        }
    }
}
