//! A client of MQTT 3.1.1: the payload travels alone, and an acknowledgement gives no reason.
//!
//! A broker of this version cannot say that it refused a publication: it acknowledges and drops it, or
//! ends the connection. Version 5 is better wherever there is a choice. The client library's own limits
//! are meant for devices (10 KiB for a packet); they are raised to those of the protocol.

use super::{
    super::{
        library::v4::{
            AsyncClient, Broker, ClientError, ConnectionError, Event as ClientEvent,
            EventLoop as ClientLoop, Incoming, LastWill, MqttOptions, NetworkOptions, Outgoing,
            PublishOptions, QoS, StateError, SubscribeFilter, SubscribeReasonCode,
            TlsConfiguration, Transport, mqttbytes::Error as MqttError,
        },
        lost::{self, Lost, Verdict, Why},
        target::{Target, Wire},
    },
    Prepared,
    event_loop::EventLoop,
    terms::{
        CONNECT_TIMEOUT, Event, MAX_PACKET_V4, Message, Publication, SPARE_REQUESTS, Signal, Terms,
        Unsent,
    },
};

/// What the broker may send where nothing is subscribed: acknowledgements, nothing larger.
const MAX_INCOMING: usize = 10 * 1024;

/// The longest packet that can be written: four bytes of seven bits each.
const MAX_OUTGOING: usize = 268_435_455;

/// Publications of QoS 2 without an answer. The broker of this version cannot say how many it takes, and
/// mosquitto ends the connection at one more than its `max_inflight_messages`, which is 20.
const MAX_QOS2: usize = 20;

/// What a poll gives.
type Polled = Result<ClientEvent, ConnectionError>;

pub(super) struct Client {
    requests: AsyncClient,
    events: EventLoop<ClientLoop, Polled>,
}

impl Client {
    pub(super) async fn connect(prepared: Prepared<'_>) -> Result<(Self, Terms), Lost> {
        let client_id = prepared.options.client_id;
        let settings = prepared.options.settings;
        let inflight = usize::from(settings.inflight);
        let (requests, mut events) =
            AsyncClient::builder(options(prepared)?).capacity(inflight + SPARE_REQUESTS).build();
        events.set_network_options(network());
        let mut client = Self { requests, events: EventLoop::new(events) };
        loop {
            let event = client.poll().await.map_err(|error| unconnected(&error, client_id))?;
            if let ClientEvent::Incoming(Incoming::ConnAck(_)) = event {
                let receive_max = if settings.qos == 2 { MAX_QOS2 } else { inflight };
                let terms =
                    Terms { max_qos: 2, retain: true, wildcards: true, receive_max, echoes: true };
                return Ok((client, terms));
            }
        }
    }

    pub(super) fn publish(&self, publication: Publication<'_>) -> Result<(), Unsent> {
        let Publication { topic, payload, qos, retain, .. } = publication;
        // 4 bytes: the lengths of topic and packet id.
        if topic.len() + payload.len() + 4 > MAX_OUTGOING {
            let bytes = payload.len();
            return Err(Unsent::Refused(format!("a payload of {bytes} bytes is too long")));
        }
        let options = PublishOptions::new(level(qos)).retain(retain);
        self.requests.try_publish(topic, payload, options).map_err(|error| unsent(&error))
    }

    pub(super) fn subscribe(&self, filters: Vec<String>, qos: u8) -> Result<(), Lost> {
        let filters = filters.into_iter().map(|filter| SubscribeFilter::new(filter, level(qos)));
        self.requests.try_subscribe_many(filters).map_err(|_| lost::client_ended())
    }

    pub(super) fn unsubscribe(&self, filter: &str) -> Result<(), Lost> {
        self.requests.try_unsubscribe(filter).map_err(|_| lost::client_ended())
    }

    pub(super) fn disconnect(&self) -> Result<(), Lost> {
        self.requests.try_disconnect().map_err(|_| lost::client_ended())
    }

    pub(super) async fn next(&mut self) -> Result<Signal, Lost> {
        self.poll().await.map(signal).map_err(|error| lost(&error))
    }

    async fn poll(&mut self) -> Polled {
        let polled = self.events.poll(|mut events| async move {
            let polled = events.poll().await;
            (events, polled)
        });
        polled.await.unwrap_or(Err(ConnectionError::RequestsDone))
    }

    pub(super) fn ready(&mut self) -> Option<Signal> {
        self.events.resting()?.state.events.pop_front().map(signal)
    }
}

fn options(prepared: Prepared<'_>) -> Result<MqttOptions, Lost> {
    let Prepared { options: wanted, target, password, tls } = prepared;
    let settings = wanted.settings;
    let Target { wire, host, port, url } = target;
    let tls = || tls.map(TlsConfiguration::Rustls).ok_or("no TLS configuration");
    let mut options = match wire {
        Wire::Tcp => MqttOptions::new(wanted.client_id, Broker::tcp(host, port)),
        Wire::Tls => {
            let mut options = MqttOptions::new(wanted.client_id, Broker::tcp(host, port));
            options.set_transport(Transport::tls_with_config(tls()?));
            options
        }
        Wire::WebSocket => MqttOptions::new(
            wanted.client_id,
            Broker::websocket(url).map_err(|error| error.to_string())?,
        ),
        Wire::WebSocketTls => MqttOptions::websocket_with_tls_config(wanted.client_id, url, tls()?)
            .map_err(|error| error.to_string())?,
    };
    let incoming = if wanted.receives { MAX_PACKET_V4 } else { MAX_INCOMING };
    options
        .set_keep_alive(settings.keep_alive_secs())
        // The journal is what sends again: the broker must hold nothing of us across connections.
        .set_clean_session(true)
        .set_max_packet_size(incoming, MAX_OUTGOING)
        .set_inflight(settings.inflight)
        .set_max_request_batch(usize::from(settings.inflight))
        .set_read_batch_size(usize::from(settings.inflight));
    match (&settings.user, &password) {
        (Some(user), Some(password)) => {
            options.set_credentials(user.clone(), password.expose().to_owned());
        }
        (Some(user), None) => {
            options.set_username(user.clone());
        }
        // Refused when the sink is opened: this version has no password without a user.
        (None, _) => {}
    }
    if let Some(will) = &wanted.will {
        let qos = level(settings.qos.min(1));
        options.set_last_will(LastWill::new(&will.topic, will.payload.clone(), qos, true));
    }
    Ok(options)
}

fn network() -> NetworkOptions {
    let mut network = NetworkOptions::new();
    // Events leave when they are flushed; Nagle would hold the last of a batch for the answer.
    network.set_tcp_nodelay(true);
    network.set_connection_timeout(CONNECT_TIMEOUT.as_secs());
    network
}

fn level(qos: u8) -> QoS {
    match qos {
        0 => QoS::AtMostOnce,
        1 => QoS::AtLeastOnce,
        _ => QoS::ExactlyOnce,
    }
}

fn unsent(error: &ClientError) -> Unsent {
    match error {
        ClientError::InvalidRequest(_) => Unsent::Refused("the topic is not a topic name".into()),
        _ => Unsent::Lost(lost::client_ended()),
    }
}

fn signal(event: ClientEvent) -> Signal {
    match event {
        ClientEvent::Outgoing(Outgoing::Publish(id)) => Signal::Sent(id),
        ClientEvent::Outgoing(Outgoing::Disconnect) => Signal::Event(Event::Disconnected),
        ClientEvent::Incoming(Incoming::PubAck(ack)) => {
            Signal::Answered(ack.pkid, Verdict::Accepted)
        }
        ClientEvent::Incoming(Incoming::PubComp(comp)) => {
            Signal::Answered(comp.pkid, Verdict::Accepted)
        }
        ClientEvent::Incoming(incoming) => Signal::Event(received(incoming)),
        ClientEvent::Outgoing(_) => Signal::Event(Event::Other),
    }
}

fn received(incoming: Incoming) -> Event {
    match incoming {
        Incoming::UnsubAck(_) => Event::Unsubscribed,
        Incoming::SubAck(ack) => {
            let refused = |code: &&SubscribeReasonCode| **code == SubscribeReasonCode::Failure;
            Event::Subscribed { refused: ack.return_codes.iter().filter(refused).count() }
        }
        Incoming::Publish(publish) => {
            let Ok(topic) = std::str::from_utf8(&publish.topic) else { return Event::Other };
            Event::Received(Message {
                topic: topic.to_owned(),
                // Whoever clears a retained message publishes an empty one, which looks like any other.
                retain: publish.retain || publish.payload.is_empty(),
                payload: publish.payload,
                duplicate: publish.dup,
                response_topic: None,
                correlation: None,
            })
        }
        _ => Event::Other,
    }
}

/// Why there is no connection.
fn unconnected(error: &ConnectionError, client_id: &str) -> Lost {
    match error {
        ConnectionError::ConnectionRefused(code) => lost::of_connack_v4(*code, client_id),
        ConnectionError::MqttState(StateError::Deserialization(_))
        | ConnectionError::NotConnAck(_) => lost::no_mqtt(false),
        ConnectionError::MqttState(_) => {
            let lost = lost(error);
            if lost.why == Why::Closed { lost::closed_at_connect(false) } else { lost }
        }
        ConnectionError::NetworkTimeout => lost::silent_at_connect(),
        ConnectionError::Io(error) => lost::unreachable(error),
        ConnectionError::Tls(error) => lost::no_tls(error),
        ConnectionError::Websocket(error) => lost::no_websocket(error),
        error => Lost::from(error.to_string()),
    }
}

/// Why a connection that stood is lost. A broker of this version names no reason.
fn lost(error: &ConnectionError) -> Lost {
    match error {
        ConnectionError::MqttState(StateError::ConnectionAborted) => lost::closed(),
        ConnectionError::MqttState(StateError::AwaitPingResp) => lost::no_ping(),
        ConnectionError::MqttState(
            StateError::Io(error) | StateError::Deserialization(MqttError::Io(error)),
        )
        | ConnectionError::Io(error) => lost::of_io(error),
        ConnectionError::MqttState(StateError::Deserialization(error)) => lost::garbage(error),
        error => Lost::from(error.to_string()),
    }
}
