//! The floor: the thinnest program with the same libraries. It copies frames unparsed to one address
//! and waits for nobody: no envelope, no order, no retry, no journal. Nothing can cost less.

use async_nats::jetstream;
use futures_util::{SinkExt, StreamExt, stream::ReadyChunks};
use rumqttc_v5::{AsyncClient, Broker, MqttOptions, PublishOptions, QoS};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{Message, Utf8Bytes, client::IntoClientRequest, protocol::WebSocketConfig},
};

/// Frames copied at once.
const BATCH: usize = 256;

/// `KIND BROKER GATEWAY TOPIC ROOM [LOG]`
pub fn run(arguments: &[String]) {
    let [kind, broker, gateway, topic, room, log @ ..] = arguments else { panic!("{arguments:?}") };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let source = Source::open(gateway, topic, room).await;
        match kind.as_str() {
            "nats" => nats(source, broker).await,
            "mqtt-qos0" => mqtt(source, broker, QoS::AtMostOnce).await,
            "mqtt-qos1" | "mqtt-qos1-nodelay" => mqtt(source, broker, QoS::AtLeastOnce).await,
            "redis-pubsub" => redis(source, broker).await,
            "log" => through_a_log(source, broker, &log[0]).await,
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

/// Frames to a stream, acknowledged; and from there to the broker.
async fn through_a_log(mut source: Source, broker: &str, log: &str) {
    let (servers, replicas) = log.split_once(' ').unwrap();
    let servers: Vec<async_nats::ServerAddr> =
        servers.split(',').map(|url| url.parse().unwrap()).collect();
    let context = jetstream::context::ContextBuilder::new()
        .max_ack_inflight(1024)
        .build(async_nats::connect(servers).await.unwrap());
    let config = jetstream::stream::Config {
        name: "floor".into(),
        subjects: vec!["floor".into()],
        num_replicas: replicas.parse().unwrap(),
        ..Default::default()
    };
    // Servers that have just started have no leader yet.
    let stream = loop {
        match context.create_stream(config.clone()).await {
            Ok(stream) => break stream,
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
        }
    };
    let consumer = jetstream::consumer::pull::OrderedConfig::default();
    let mut messages = stream.create_consumer(consumer).await.unwrap().messages().await.unwrap();
    let client = async_nats::connect(format!("nats://{broker}")).await.unwrap();
    tokio::spawn(async move {
        while let Some(message) = messages.next().await {
            client.publish("astro.floor", message.unwrap().message.payload).await.unwrap();
        }
    });
    let (acknowledgements, mut to_await) = tokio::sync::mpsc::channel(1024);
    tokio::spawn(async move {
        while let Some(acknowledgement) = to_await.recv().await {
            let acknowledged: Result<_, jetstream::context::PublishError> = acknowledgement.await;
            acknowledged.unwrap();
        }
    });
    let mut number = 0_u64;
    while let Some(texts) = source.batch().await {
        for text in texts {
            number += 1;
            let message = jetstream::message::PublishMessage::build()
                .payload(text.into())
                .message_id(number.to_string());
            let sent = context.send_publish("floor", message).await.unwrap();
            acknowledgements.send(sent).await.unwrap();
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
