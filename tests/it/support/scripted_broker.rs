//! A broker of MQTT 5 that answers as a test says, for what a real one answers only in distress: odd answers,
//! half answers, none, other versions of the protocol.

use std::{
    io::ErrorKind,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use astro_relay::base::event::Seq;
use bytes::BytesMut;
use rumqttc_v5::{
    ConnAck, ConnAckProperties, ConnectReturnCode, Disconnect, DisconnectReasonCode, Packet,
    PubAck, PubAckReason, PubComp, PubRec, PubRecReason, Publish, QoS, SubAck, Subscribe,
    SubscribeReasonCode, UnsubAck, mqttbytes::Error,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::carry::number;

/// What the broker does with an event.
#[derive(Debug, Clone, Copy)]
pub enum Play {
    /// It answers with this reason.
    Answer(PubAckReason),
    /// It accepts the event, and says so together with the next that it has to say; or alone, when nothing
    /// more has come.
    Gather,
    /// It accepts the event after a while; what comes behind it waits.
    Late(Duration),
    /// It accepts it, and another client writes this over it at once.
    Overwritten(&'static str),
    /// It does not answer, now or ever.
    Ignore,
    /// It ends the connection.
    HangUp,
    /// It says why, and ends the connection.
    Disconnect(DisconnectReasonCode),
    /// It sends the first half of an answer, and no more.
    Half,
    /// It sends what is no packet.
    Garbage,
}

/// What the broker does with a connection.
#[derive(Debug, Clone)]
pub enum Greeting {
    /// It accepts it on these terms.
    Welcome(ConnAckProperties),
    /// It refuses it.
    Refuse(ConnectReturnCode),
    /// It sends these bytes instead of a CONNACK, and ends it.
    Say(Vec<u8>),
}

/// A broker that plays by a script.
pub struct ScriptedBroker {
    pub port: u16,
    came: Arc<Mutex<Vec<Seq>>>,
    connections: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

/// What a broker says of itself when it says nothing.
pub fn silent() -> ConnAckProperties {
    ConnAckProperties {
        session_expiry_interval: None,
        receive_max: None,
        max_qos: None,
        retain_available: None,
        max_packet_size: None,
        assigned_client_identifier: None,
        topic_alias_max: None,
        reason_string: None,
        user_properties: Vec::new(),
        wildcard_subscription_available: None,
        subscription_identifiers_available: None,
        shared_subscription_available: None,
        server_keep_alive: None,
        response_information: None,
        server_reference: None,
        authentication_method: None,
        authentication_data: None,
    }
}

impl ScriptedBroker {
    /// Starts it; `script` is asked with the number of each event that comes and how often it came
    /// before.
    pub async fn start(
        terms: ConnAckProperties,
        script: impl Fn(Seq, usize) -> Play + Send + Sync + 'static,
    ) -> Self {
        Self::greeting(Greeting::Welcome(terms), script).await
    }

    /// The same, with another greeting.
    #[expect(clippy::disallowed_methods, reason = "a test's own task")]
    pub async fn greeting(
        greeting: Greeting,
        script: impl Fn(Seq, usize) -> Play + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let came = Arc::new(Mutex::new(Vec::new()));
        let notes = Arc::clone(&came);
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                // A connection that breaks off is part of the play.
                drop(play(stream, &greeting, &script, &notes).await);
            }
        });
        Self { port, came, connections, task }
    }

    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    /// The numbers of the events that came, in order.
    pub fn came(&self) -> Vec<Seq> {
        self.came.lock().unwrap().clone()
    }

    /// How many connections there were.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Forgets what came.
    pub fn forget(&self) {
        self.came.lock().unwrap().clear();
    }
}

impl Drop for ScriptedBroker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn greet(greeting: &Greeting) -> Result<Packet, &[u8]> {
    let (code, properties) = match greeting {
        Greeting::Welcome(terms) => (ConnectReturnCode::Success, Some(terms.clone())),
        Greeting::Refuse(code) => (*code, None),
        Greeting::Say(bytes) => return Err(bytes),
    };
    Ok(Packet::ConnAck(ConnAck { session_present: false, code, properties }))
}

fn grant(subscribe: &Subscribe) -> Packet {
    let granted = subscribe.filters.iter().map(|filter| SubscribeReasonCode::Success(filter.qos));
    let return_codes = granted.collect();
    Packet::SubAck(SubAck { pkid: subscribe.pkid, return_codes, properties: None })
}

/// Acknowledges what was published, and sends what another client has published there.
async fn overwrite(
    stream: &mut TcpStream,
    publish: &Publish,
    payload: &'static str,
) -> Result<(), Error> {
    let topic = String::from_utf8_lossy(&publish.topic);
    let mut other = Publish::new(topic, QoS::AtMostOnce, payload, None);
    other.retain = true;
    let mut write = BytesMut::new();
    Packet::PubAck(PubAck::new(publish.pkid, None)).write(&mut write, None)?;
    Packet::Publish(other).write(&mut write, None)?;
    stream.write_all(&write).await?;
    Ok(())
}

/// Writes what is gathered, and reads what has come. Answers whether the connection goes on.
async fn more(
    stream: &mut TcpStream,
    read: &mut BytesMut,
    gathered: &mut BytesMut,
) -> Result<bool, Error> {
    if !gathered.is_empty() {
        match stream.try_read_buf(read) {
            Ok(count) => return Ok(count > 0),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                stream.write_all(&gathered.split()).await?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(stream.read_buf(read).await? > 0)
}

/// Answers whether the connection goes on.
async fn misbehave(
    stream: &mut TcpStream,
    play: Play,
    gathered: &mut BytesMut,
) -> Result<bool, Error> {
    let bytes = match play {
        Play::HangUp => return Ok(false),
        Play::Disconnect(reason) => {
            Packet::Disconnect(Disconnect::new(reason)).write(gathered, None)?;
            stream.write_all(&gathered.split()).await?;
            return Ok(false);
        }
        Play::Half => &[0x40][..],
        Play::Garbage => &[0xFF; 64],
        Play::Answer(_) | Play::Gather | Play::Late(_) | Play::Overwritten(_) | Play::Ignore => &[],
    };
    stream.write_all(bytes).await?;
    Ok(true)
}

fn of_qos2(reason: PubAckReason) -> PubRecReason {
    match reason {
        PubAckReason::NotAuthorized => PubRecReason::NotAuthorized,
        PubAckReason::QuotaExceeded => PubRecReason::QuotaExceeded,
        PubAckReason::UnspecifiedError => PubRecReason::UnspecifiedError,
        PubAckReason::TopicNameInvalid => PubRecReason::TopicNameInvalid,
        _ => PubRecReason::Success,
    }
}

async fn play(
    mut stream: TcpStream,
    greeting: &Greeting,
    script: &impl Fn(Seq, usize) -> Play,
    came: &Mutex<Vec<Seq>>,
) -> Result<(), Error> {
    let (mut read, mut write) = (BytesMut::new(), BytesMut::new());
    loop {
        let packet = match Packet::read(&mut read, None) {
            Ok(packet) => packet,
            Err(Error::InsufficientBytes(_)) => {
                if !more(&mut stream, &mut read, &mut write).await? {
                    return Ok(());
                }
                continue;
            }
            Err(error) => return Err(error),
        };
        let answer = match packet {
            Packet::Connect(..) => match greet(greeting) {
                Ok(packet) => packet,
                Err(bytes) => {
                    stream.write_all(bytes).await?;
                    return Ok(());
                }
            },
            Packet::Subscribe(subscribe) => grant(&subscribe),
            Packet::Publish(publish) => {
                let mut ack = PubAck::new(publish.pkid, None);
                if let Some(number) = number(&publish.payload) {
                    let before = {
                        let mut came = came.lock().unwrap();
                        came.push(number);
                        came.iter().filter(|other| **other == number).count() - 1
                    };
                    match script(number, before) {
                        Play::Answer(reason) => ack.reason = reason,
                        Play::Gather => {
                            Packet::PubAck(ack).write(&mut write, None)?;
                            continue;
                        }
                        Play::Late(wait) => tokio::time::sleep(wait).await,
                        Play::Ignore => continue,
                        Play::Overwritten(payload) => {
                            overwrite(&mut stream, &publish, payload).await?;
                            continue;
                        }
                        play => {
                            if misbehave(&mut stream, play, &mut write).await? {
                                continue;
                            }
                            return Ok(());
                        }
                    }
                }
                match publish.qos {
                    QoS::AtMostOnce => continue,
                    QoS::AtLeastOnce => Packet::PubAck(ack),
                    QoS::ExactlyOnce => {
                        let mut rec = PubRec::new(publish.pkid, None);
                        rec.reason = of_qos2(ack.reason);
                        Packet::PubRec(rec)
                    }
                }
            }
            Packet::PubRel(rel) => Packet::PubComp(PubComp::new(rel.pkid, None)),
            Packet::PingReq => Packet::PingResp,
            Packet::Unsubscribe(unsubscribe) => Packet::UnsubAck(UnsubAck {
                pkid: unsubscribe.pkid,
                reasons: vec![rumqttc_v5::UnsubAckReason::NoSubscriptionExisted],
                properties: None,
            }),
            _ => return Ok(()),
        };
        answer.write(&mut write, None)?;
        stream.write_all(&write.split()).await?;
    }
}

/// A script in which all is well.
pub fn well(_: Seq, _: usize) -> Play {
    Play::Answer(PubAckReason::Success)
}

/// What stands between a client and a real broker of MQTT 5, and answers what is published at `topic` and
/// below with a reason of its own, while `refuses` says so. All else passes both ways.
pub struct Gate {
    pub port: u16,
    refuses: Arc<AtomicBool>,
    refused: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Gate {
    #[expect(clippy::disallowed_methods, reason = "a test's own task")]
    pub async fn start(broker: u16, topic: &'static str, reason: PubAckReason) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (refuses, refused) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
        let (wish, count) = (Arc::clone(&refuses), Arc::clone(&refused));
        let task = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let server = TcpStream::connect(("127.0.0.1", broker)).await.unwrap();
                let (wish, count) = (Arc::clone(&wish), Arc::clone(&count));
                tokio::spawn(async move {
                    let refusal = |at: &[u8]| {
                        (wish.load(Ordering::Relaxed) && at.starts_with(topic.as_bytes())).then(
                            || {
                                count.fetch_add(1, Ordering::Relaxed);
                                reason
                            },
                        )
                    };
                    drop(pass(client, server, refusal).await);
                });
            }
        });
        Self { port, refuses, refused, task }
    }

    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    /// How many it has refused.
    pub fn refused(&self) -> usize {
        self.refused.load(Ordering::Relaxed)
    }

    /// From now on all passes.
    pub fn open(&self) {
        self.refuses.store(false, Ordering::Relaxed);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(
    mut client: TcpStream,
    mut server: TcpStream,
    refusal: impl Fn(&[u8]) -> Option<PubAckReason>,
) -> Result<(), Error> {
    let (mut from_client, mut from_server) = (BytesMut::new(), BytesMut::new());
    loop {
        tokio::select! {
            read = client.read_buf(&mut from_client) => {
                if read? == 0 {
                    return Ok(());
                }
            }
            read = server.read_buf(&mut from_server) => {
                if read? == 0 {
                    return Ok(());
                }
                client.write_all(&from_server.split()).await?;
            }
        }
        loop {
            let before = from_client.clone();
            let packet = match Packet::read(&mut from_client, None) {
                Ok(packet) => packet,
                Err(Error::InsufficientBytes(_)) => break,
                Err(error) => return Err(error),
            };
            let bytes = &before[..before.len() - from_client.len()];
            let refused = match &packet {
                Packet::Publish(publish) => {
                    refusal(&publish.topic).map(|reason| (publish.pkid, reason))
                }
                _ => None,
            };
            match refused {
                Some((pkid, reason)) => {
                    let mut ack = PubAck::new(pkid, None);
                    ack.reason = reason;
                    let mut write = BytesMut::new();
                    Packet::PubAck(ack).write(&mut write, None)?;
                    client.write_all(&write).await?;
                }
                None => server.write_all(bytes).await?,
            }
        }
    }
}
