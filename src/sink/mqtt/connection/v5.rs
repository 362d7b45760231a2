//! A client of MQTT 5: properties travel beside the payload, and the broker gives reasons.
//!
//! Section numbers are those of the OASIS standard "MQTT Version 5.0".
//!
//! What the broker said in its CONNACK that it will not take must not be written at all, for the client
//! library answers that with the end of the connection. So the size of every packet is computed first.

use std::{borrow::Cow, time::Duration};

use super::{
    super::{
        library::v5::{
            AsyncClient, Broker, ClientError, ConnAck, ConnectReturnCode, ConnectionError,
            Event as ClientEvent, EventLoop as ClientLoop, Incoming, LastWill, MqttOptions,
            NetworkOptions, Outgoing, PublishOptions, PublishProperties, QoS, StateError,
            SubscribeFilter, SubscribeReasonCode, TlsConfiguration, Transport,
            mqttbytes::Error as MqttError,
        },
        lost::{self, Lost, Verdict, Why},
        target::{Target, Wire},
        topic,
    },
    Prepared,
    event_loop::EventLoop,
    terms::{
        CONNECT_TIMEOUT, Event, MAX_PACKET, Message, Publication, SPARE_REQUESTS, Signal, Terms,
        Unsent,
    },
};

/// The longest packet that can be written, section 1.5.5: four bytes of seven bits each.
const MAX_REMAINING: usize = 268_435_455;

/// The longest text or topic, section 1.5.4: its length has two bytes.
const MAX_TEXT: usize = 65_535;

/// What a poll gives.
type Polled = Result<ClientEvent, ConnectionError>;

pub(super) struct Client {
    requests: AsyncClient,
    events: EventLoop<ClientLoop, Polled>,
    own_id: Box<str>,
    /// The longest packet that the broker takes.
    max_packet: usize,
}

impl Client {
    pub(super) async fn connect(prepared: Prepared<'_>) -> Result<(Self, Terms), Lost> {
        let client_id = prepared.options.client_id;
        let capacity = usize::from(prepared.options.settings.inflight) + SPARE_REQUESTS;
        let (requests, events) =
            AsyncClient::builder(options(prepared)?).capacity(capacity).build();
        let mut client = Self {
            requests,
            events: EventLoop::new(events),
            own_id: client_id.into(),
            max_packet: MAX_REMAINING,
        };
        loop {
            let event = client.poll().await.map_err(|error| unconnected(&error, client_id))?;
            if let ClientEvent::Incoming(Incoming::ConnAck(connack)) = event {
                let terms = client.agree(&connack);
                return Ok((client, terms));
            }
        }
    }

    fn agree(&mut self, connack: &ConnAck) -> Terms {
        let mut terms = Terms {
            max_qos: 2,
            retain: true,
            wildcards: true,
            receive_max: MAX_TEXT,
            echoes: false,
        };
        if let Some(properties) = &connack.properties {
            if let Some(max) = properties.max_packet_size {
                self.max_packet = usize::try_from(max).unwrap_or(MAX_REMAINING);
            }
            terms.max_qos = properties.max_qos.unwrap_or(2);
            terms.retain = properties.retain_available != Some(0);
            terms.wildcards = properties.wildcard_subscription_available != Some(0);
            terms.receive_max = properties.receive_max.map_or(MAX_TEXT, usize::from);
        }
        terms
    }

    pub(super) fn publish(&self, publication: Publication<'_>) -> Result<(), Unsent> {
        let properties = properties(&publication);
        let Publication { topic, payload, qos, retain, .. } = publication;
        let size = packet_size(topic, qos, &properties, payload.len());
        if size > self.max_packet {
            return Err(Unsent::Refused(format!(
                "a packet of {size} bytes is larger than the broker takes ({})",
                self.max_packet
            )));
        }
        let options = PublishOptions::new(level(qos)).retain(retain).properties(properties);
        self.requests.try_publish(topic, payload, options).map_err(|error| unsent(&error))
    }

    pub(super) fn subscribe(&self, filters: Vec<String>, qos: u8) -> Result<(), Lost> {
        // What we publish ourselves is no news to us, and what was published to be retained shows it.
        let filter = |filter| SubscribeFilter {
            nolocal: true,
            preserve_retain: true,
            ..SubscribeFilter::new(filter, level(qos))
        };
        let filters = filters.into_iter().map(filter);
        self.requests.try_subscribe_many(filters).map_err(|_| lost::client_ended())
    }

    pub(super) fn unsubscribe(&self, filter: &str) -> Result<(), Lost> {
        self.requests.try_unsubscribe(filter).map_err(|_| lost::client_ended())
    }

    pub(super) fn disconnect(&self) -> Result<(), Lost> {
        self.requests.try_disconnect().map_err(|_| lost::client_ended())
    }

    pub(super) async fn next(&mut self) -> Result<Signal, Lost> {
        self.poll().await.map(signal).map_err(|error| lost(&error, &self.own_id))
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
    let mut network = NetworkOptions::new();
    // Events leave when they are flushed; Nagle would hold the last of a batch for the answer.
    network.set_tcp_nodelay(true);
    options
        .set_network_options(network)
        .set_connect_timeout(CONNECT_TIMEOUT)
        .set_keep_alive(settings.keep_alive_secs())
        // The journal is what sends again: the broker must hold nothing of us across connections.
        .set_clean_start(true)
        // Its default of 65,535 makes every flush look at as many places.
        .set_outgoing_inflight_upper_limit(settings.inflight)
        .set_max_request_batch(usize::from(settings.inflight))
        .set_read_batch_size(usize::from(settings.inflight));
    if wanted.receives {
        options.set_max_packet_size(Some(MAX_PACKET));
    }
    match (&settings.user, &password) {
        (Some(user), Some(password)) => {
            options.set_credentials(user.clone(), password.expose().to_owned());
        }
        (Some(user), None) => {
            options.set_username(user.clone());
        }
        (None, Some(password)) => {
            options.set_password(password.expose().to_owned());
        }
        (None, None) => {}
    }
    if let Some(will) = &wanted.will {
        let qos = level(settings.qos.min(1));
        options.set_last_will(LastWill::new(&will.topic, will.payload.clone(), qos, true, None));
    }
    Ok(options)
}

fn properties(publication: &Publication<'_>) -> PublishProperties {
    let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), presentable(value).into_owned());
    PublishProperties {
        message_expiry_interval: publication.expires_in.map(expiry),
        content_type: publication.content_type.map(str::to_owned),
        correlation_data: publication.correlation.clone(),
        user_properties: publication.user_properties.iter().map(pair).collect(),
        ..PublishProperties::default()
    }
}

/// Whole seconds, section 3.3.2.3.3: rounded up, so that a short life is not none at all.
fn expiry(left: Duration) -> u32 {
    let seconds = left.as_secs().saturating_add(u64::from(left.subsec_nanos() > 0));
    u32::try_from(seconds.max(1)).unwrap_or(u32::MAX)
}

/// A text as a user property may hold it: brokers close the connection at a control character or a
/// noncharacter (section 1.5.4 lets them), and its length has two bytes.
fn presentable(text: &str) -> Cow<'_, str> {
    if text.len() <= MAX_TEXT && !text.contains(topic::unfit) {
        return Cow::Borrowed(text);
    }
    let mut fit: String =
        text.chars().map(|c| if topic::unfit(c) { '\u{FFFD}' } else { c }).collect();
    fit.truncate(fit.floor_char_boundary(MAX_TEXT));
    Cow::Owned(fit)
}

/// The size of a PUBLISH packet on the wire, section 3.3.
fn packet_size(topic: &str, qos: u8, properties: &PublishProperties, payload: usize) -> usize {
    let pairs: usize =
        properties.user_properties.iter().map(|(name, value)| 5 + name.len() + value.len()).sum();
    let content_type = properties.content_type.as_ref().map_or(0, |text| 3 + text.len());
    let expiry = if properties.message_expiry_interval.is_some() { 5 } else { 0 };
    let correlation = properties.correlation_data.as_ref().map_or(0, |data| 3 + data.len());
    let properties = pairs + content_type + expiry + correlation;
    let packet_id = if qos == 0 { 0 } else { 2 };
    let remaining = 2 + topic.len() + packet_id + varint_size(properties) + properties + payload;
    1 + varint_size(remaining) + remaining
}

/// Bytes of a variable byte integer, section 1.5.5.
fn varint_size(value: usize) -> usize {
    match value {
        0..=127 => 1,
        128..=16_383 => 2,
        16_384..=2_097_151 => 3,
        _ => 4,
    }
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
            let said = ack.properties.and_then(|properties| properties.reason_string);
            Signal::Answered(ack.pkid, lost::of_puback(ack.reason, said.as_deref()))
        }
        ClientEvent::Incoming(Incoming::PubRec(rec)) => {
            let said = rec.properties.and_then(|properties| properties.reason_string);
            match lost::of_pubrec(rec.reason, said.as_deref()) {
                // The broker owns it now; PUBCOMP will say that it knows that we know.
                Verdict::Accepted => Signal::Event(Event::Other),
                verdict => Signal::Answered(rec.pkid, verdict),
            }
        }
        ClientEvent::Incoming(Incoming::PubComp(comp)) => {
            Signal::Answered(comp.pkid, Verdict::Accepted)
        }
        ClientEvent::Incoming(incoming) => Signal::Event(received(incoming)),
        ClientEvent::Outgoing(_) | ClientEvent::Auth(_) => Signal::Event(Event::Other),
    }
}

fn received(incoming: Incoming) -> Event {
    match incoming {
        Incoming::UnsubAck(_) => Event::Unsubscribed,
        Incoming::SubAck(ack) => {
            let refused =
                |code: &&SubscribeReasonCode| !matches!(code, SubscribeReasonCode::Success(_));
            Event::Subscribed { refused: ack.return_codes.iter().filter(refused).count() }
        }
        Incoming::Publish(publish) => {
            let Ok(topic) = std::str::from_utf8(&publish.topic) else { return Event::Other };
            let properties = publish.properties.unwrap_or_default();
            Event::Received(Message {
                topic: topic.to_owned(),
                payload: publish.payload,
                retain: publish.retain,
                duplicate: publish.dup,
                response_topic: properties.response_topic,
                correlation: properties.correlation_data,
            })
        }
        _ => Event::Other,
    }
}

/// Why there is no connection.
fn unconnected(error: &ConnectionError, client_id: &str) -> Lost {
    match error {
        ConnectionError::ConnectionRefused(code) => lost::of_connack(*code, client_id),
        ConnectionError::MqttState(StateError::Deserialization(
            MqttError::InvalidConnectReturnCode(1),
        )) => lost::of_connack(ConnectReturnCode::RefusedProtocolVersion, client_id),
        ConnectionError::MqttState(StateError::Deserialization(_))
        | ConnectionError::NotConnAck(_) => lost::no_mqtt(true),
        ConnectionError::MqttState(_) => {
            let lost = lost(error, client_id);
            if lost.why == Why::Closed { lost::closed_at_connect(true) } else { lost }
        }
        ConnectionError::Timeout(_) => lost::silent_at_connect(),
        ConnectionError::Io(error) => lost::unreachable(error),
        ConnectionError::Tls(error) => lost::no_tls(error),
        ConnectionError::Websocket(error) => lost::no_websocket(error),
        error => Lost::from(error.to_string()),
    }
}

/// Why a connection that stood is lost.
fn lost(error: &ConnectionError, client_id: &str) -> Lost {
    match error {
        ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, reason_string }) => {
            lost::of_disconnect(*reason_code, reason_string.as_deref(), client_id)
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::mqtt::library::v5::Publish;

    #[test]
    fn the_size_of_a_packet_is_computed_as_it_is_written() {
        for qos in 0..=2 {
            for payload in [0, 1, 100, 127, 128, 16_000, 16_400, 2_097_200] {
                for (expiry, names) in [(None, 0), (Some(7), 1), (None, 40)] {
                    let properties = PublishProperties {
                        message_expiry_interval: expiry,
                        content_type: Some("application/json".into()),
                        user_properties: vec![("id".into(), "x".into()); names],
                        correlation_data: (names == 1).then(|| "abc".into()),
                        ..PublishProperties::default()
                    };
                    let mut packet = Publish::new(
                        "astro/main",
                        level(qos),
                        vec![0; payload],
                        Some(properties.clone()),
                    );
                    packet.pkid = u16::from(qos > 0);
                    assert_eq!(packet_size("astro/main", qos, &properties, payload), packet.size());
                }
            }
        }
    }

    #[test]
    fn texts_that_a_broker_would_not_take_are_made_presentable() {
        assert!(matches!(presentable("Zoë"), Cow::Borrowed("Zoë")));
        assert_eq!(presentable("a\0b\u{FFFF}c\u{85}"), "a\u{FFFD}b\u{FFFD}c\u{FFFD}");
        let long = "ü".repeat(40_000);
        assert_eq!(presentable(&long).len(), 65_534);
    }

    #[test]
    fn a_short_expiry_is_rounded_up() {
        for (left, seconds) in [(0, 1), (1, 1), (1000, 1), (1001, 2), (30_000, 30)] {
            assert_eq!(expiry(Duration::from_millis(left)), seconds);
        }
        assert_eq!(expiry(Duration::MAX), u32::MAX);
    }
}
