//! A link in MQTT 3.1.1: the payload travels alone, and an acknowledgement gives no reason.
//!
//! A broker of this version cannot say that it refused an event: it acknowledges and drops it, or
//! ends the connection. Version 5 is better wherever there is a choice.
//!
//! The one thing to know: like its twin for version 5, the client's own limits are meant for devices
//! (10 KiB for a packet); they are raised to those of the protocol.

use bytes::Bytes;
use rumqttc_v4::{
    AsyncClient, Broker, ClientError, ConnectionError, Event, EventLoop, Incoming, LastWill,
    MqttOptions, NetworkOptions, Outgoing as Left, PublishOptions, QoS, StateError,
    SubscribeFilter, SubscribeReasonCode, TlsConfiguration, Transport,
    mqttbytes::Error as MqttError,
};

use super::{
    command::{self, Read},
    flight::{Signal, Verdict},
    inbox::Inbox,
    link::{CONNECT_TIMEOUT, Dial, Driven, SPARE_REQUESTS, Terms, Unsent},
    lost::{self, Lost, Why},
    target::{Target, Wire},
    topic,
};
use crate::{
    command::{Ear, Outbound},
    sink::Outgoing,
};

/// What the broker may send where nothing is heard: acknowledgements, nothing larger.
const MAX_INCOMING: usize = 10 * 1024;

/// The longest packet that can be written: four bytes of seven bits each.
const MAX_OUTGOING: usize = 268_435_455;

/// Events of QoS 2 without an answer. The broker of this version cannot say how many it takes, and
/// mosquitto ends the connection at one more than its `max_inflight_messages`, which is 20.
const MAX_QOS2: usize = 20;

/// What a poll brings.
type Polled = Result<Event, ConnectionError>;

/// A connection in MQTT 3.1.1.
pub(super) struct Link {
    client: AsyncClient,
    events: Driven<EventLoop, Polled>,
    ear: Option<Ear>,
    inbox: Inbox,
}

impl Link {
    pub(super) async fn connect(dial: &Dial<'_>) -> Result<(Self, Terms), Lost> {
        let inflight = dial.settings.inflight;
        let (client, mut events) = AsyncClient::builder(options(dial)?)
            .capacity(usize::from(inflight) + SPARE_REQUESTS)
            .build();
        events.set_network_options(network());
        let mut link = Self {
            client,
            events: Driven::new(events),
            ear: dial.ear.clone(),
            inbox: Inbox::new(dial.listens),
        };
        loop {
            let event = link.event().await.map_err(|error| unconnected(&error, dial.client_id))?;
            if let Event::Incoming(Incoming::ConnAck(_)) = event {
                let receive_max =
                    if dial.settings.qos == 2 { MAX_QOS2 } else { usize::from(inflight) };
                let terms = Terms { max_qos: 2, retain: true, wildcards: true, receive_max };
                return Ok((link, terms));
            }
        }
    }

    pub(super) fn publish(&self, outgoing: &Outgoing, qos: u8, retain: bool) -> Result<(), Unsent> {
        self.send(&outgoing.address, outgoing.payload.clone(), qos, retain)
    }

    pub(super) fn announce(&self, topic: &str, payload: Bytes, qos: u8) -> Result<(), Unsent> {
        self.send(topic, payload, qos, true)
    }

    fn send(&self, topic: &str, payload: Bytes, qos: u8, retain: bool) -> Result<(), Unsent> {
        if let Some(reason) = topic::refusal(topic) {
            return Err(Unsent::Refused(reason));
        }
        // 4 bytes: the lengths of topic and packet id.
        if topic.len() + payload.len() + 4 > MAX_OUTGOING {
            return Err(Unsent::Refused(format!(
                "a payload of {} bytes is too long",
                payload.len()
            )));
        }
        let options = PublishOptions::new(level(qos)).retain(retain);
        self.client.try_publish(topic, payload, options).map_err(|error| unsent(&error))
    }

    pub(super) fn answer(&self, outbound: &Outbound, qos: u8) -> Result<(), Unsent> {
        let (topic, payload) = (&*outbound.back.address, outbound.answer.json());
        let options = PublishOptions::new(level(qos));
        self.client.try_publish(topic, payload, options).map_err(|error| unsent(&error))
    }

    pub(super) fn subscribe(&self, filters: Vec<String>, qos: u8) -> Result<(), Unsent> {
        let filter = |filter| SubscribeFilter::new(filter, level(qos));
        let filters = filters.into_iter().map(filter);
        self.client.try_subscribe_many(filters).map_err(|error| unsent(&error))
    }

    pub(super) fn inbox(&mut self) -> &mut Inbox {
        &mut self.inbox
    }

    pub(super) fn barrier(&self, topic: &str) -> Result<(), Unsent> {
        self.client.try_unsubscribe(topic).map_err(|error| unsent(&error))
    }

    pub(super) fn disconnect(&self) -> Result<(), Unsent> {
        self.client.try_disconnect().map_err(|error| unsent(&error))
    }

    pub(super) async fn poll(&mut self) -> Result<Signal, Lost> {
        let event = self.event().await.map_err(|error| lost(&error))?;
        Ok(self.note(&event))
    }

    async fn event(&mut self) -> Polled {
        let polled = self.events.poll(|mut events| async move {
            let polled = events.poll().await;
            (events, polled)
        });
        // A poll panicked, and the event loop is gone with it.
        polled.await.unwrap_or(Err(ConnectionError::RequestsDone))
    }

    pub(super) fn ready(&mut self) -> Option<Signal> {
        let event = self.events.resting()?.state.events.pop_front()?;
        Some(self.note(&event))
    }

    fn note(&mut self, event: &Event) -> Signal {
        let Event::Incoming(Incoming::Publish(publish)) = event else { return signal(event) };
        let read = Read {
            topic: &publish.topic,
            payload: &publish.payload,
            // Whoever clears a retained message publishes nothing to its topic, and in this version that
            // looks like any other empty payload.
            retained: publish.retain || publish.payload.is_empty(),
            again: publish.dup,
            response_topic: None,
            correlation: None,
            late: self.events.is_late(),
        };
        if !command::hear(self.ear.as_ref(), &read) {
            self.inbox.put(&publish.topic, &publish.payload, publish.retain);
        }
        Signal::Other
    }
}

fn options(dial: &Dial<'_>) -> Result<MqttOptions, Lost> {
    let settings = dial.settings;
    let Target { wire, host, port, url } = Target::parse(&settings.url)?;
    let tls = || dial.tls.clone().map(TlsConfiguration::Rustls).ok_or("no TLS configuration");
    let mut options = match wire {
        Wire::Tcp => MqttOptions::new(dial.client_id, Broker::tcp(host, port)),
        Wire::Tls => {
            let mut options = MqttOptions::new(dial.client_id, Broker::tcp(host, port));
            options.set_transport(Transport::tls_with_config(tls()?));
            options
        }
        Wire::WebSocket => MqttOptions::new(
            dial.client_id,
            Broker::websocket(url).map_err(|error| error.to_string())?,
        ),
        Wire::WebSocketTls => MqttOptions::websocket_with_tls_config(dial.client_id, url, tls()?)
            .map_err(|error| error.to_string())?,
    };
    let incoming = if dial.hears() { command::MAX_PACKET_V4 } else { MAX_INCOMING };
    options
        .set_keep_alive(settings.keep_alive_secs())
        // The journal is what sends again: the broker must hold nothing of us across connections.
        .set_clean_session(true)
        .set_max_packet_size(incoming, MAX_OUTGOING)
        .set_inflight(settings.inflight)
        .set_max_request_batch(usize::from(settings.inflight))
        .set_read_batch_size(usize::from(settings.inflight));
    match (&settings.user, &dial.password) {
        (Some(user), Some(password)) => {
            options.set_credentials(user.clone(), password.expose().to_owned());
        }
        (Some(user), None) => {
            options.set_username(user.clone());
        }
        // Refused when the sink is opened: this version has no password without a user.
        (None, _) => {}
    }
    if let Some(will) = &dial.will {
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
        _ => Unsent::Closed,
    }
}

fn signal(event: &Event) -> Signal {
    match event {
        Event::Outgoing(Left::Publish(id)) => Signal::Sent(*id),
        Event::Outgoing(Left::Disconnect) => Signal::Disconnected,
        Event::Incoming(Incoming::PubAck(ack)) => Signal::Answered(ack.pkid, Verdict::Accepted),
        Event::Incoming(Incoming::PubComp(comp)) => Signal::Answered(comp.pkid, Verdict::Accepted),
        Event::Incoming(Incoming::UnsubAck(_)) => Signal::Barrier,
        Event::Incoming(Incoming::SubAck(ack)) => {
            let refused = |code: &&SubscribeReasonCode| **code == SubscribeReasonCode::Failure;
            Signal::Subscribed(ack.return_codes.iter().filter(refused).count())
        }
        _ => Signal::Other,
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
