//! A broker of MQTT 5 that answers as a test says, for what a real one answers only in distress.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use astro_relay::event::Seq;
use bytes::BytesMut;
use rumqttc_v5::{
    ConnAck, ConnAckProperties, ConnectReturnCode, Packet, PubAck, PubAckReason, PubComp, PubRec,
    PubRecReason, QoS, UnsubAck, mqttbytes::Error,
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
    /// It accepts the event after a while; what comes behind it waits.
    Late(Duration),
    /// It does not answer, now or ever.
    Ignore,
    /// It ends the connection.
    HangUp,
}

/// A broker that plays by a script.
pub struct ScriptedBroker {
    pub port: u16,
    came: Arc<Mutex<Vec<Seq>>>,
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
    #[expect(clippy::disallowed_methods, reason = "a test's own task")]
    pub async fn start(
        terms: ConnAckProperties,
        script: impl Fn(Seq, usize) -> Play + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let came = Arc::new(Mutex::new(Vec::new()));
        let notes = Arc::clone(&came);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                // A connection that breaks off is part of the play.
                drop(play(stream, &terms, &script, &notes).await);
            }
        });
        Self { port, came, task }
    }

    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    /// The numbers of the events that came, in order.
    pub fn came(&self) -> Vec<Seq> {
        self.came.lock().unwrap().clone()
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

async fn play(
    mut stream: TcpStream,
    terms: &ConnAckProperties,
    script: &impl Fn(Seq, usize) -> Play,
    came: &Mutex<Vec<Seq>>,
) -> Result<(), Error> {
    let (mut read, mut write) = (BytesMut::new(), BytesMut::new());
    loop {
        let packet = match Packet::read(&mut read, None) {
            Ok(packet) => packet,
            Err(Error::InsufficientBytes(_)) => {
                if stream.read_buf(&mut read).await? == 0 {
                    return Ok(());
                }
                continue;
            }
            Err(error) => return Err(error),
        };
        let answer = match packet {
            Packet::Connect(..) => Packet::ConnAck(ConnAck {
                session_present: false,
                code: ConnectReturnCode::Success,
                properties: Some(terms.clone()),
            }),
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
                        Play::Late(wait) => tokio::time::sleep(wait).await,
                        Play::Ignore => continue,
                        Play::HangUp => return Ok(()),
                    }
                }
                match publish.qos {
                    QoS::AtMostOnce => continue,
                    QoS::AtLeastOnce => Packet::PubAck(ack),
                    QoS::ExactlyOnce => {
                        let mut rec = PubRec::new(publish.pkid, None);
                        if ack.reason == PubAckReason::NotAuthorized {
                            rec.reason = PubRecReason::NotAuthorized;
                        }
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
        write.clear();
        answer.write(&mut write, None)?;
        stream.write_all(&write).await?;
    }
}

/// A script in which all is well.
pub fn well(_: Seq, _: usize) -> Play {
    Play::Answer(PubAckReason::Success)
}
