//! The row for webhooks: a receiver on this machine.

use astro_relay::{base::event::Seq, sink::Outgoing};
use axum::http::header::RETRY_AFTER;
use serde_json::{Value, json};

use super::{CanBeBusy, CanBeGone, Destination, Killable, Rejects};
use crate::support::{
    receiver::{Answer, Receiver},
    sinks::install_tls,
};

/// The room of all events of the suite.
const ROOM: &str = "room";

/// An event that the receiver never takes.
const REFUSED: Seq = 5000;

/// A receiver.
pub struct Webhook {
    receiver: Receiver,
}

impl Destination for Webhook {
    const KIND: &'static str = "webhook";
    const ADDRESS: &'static str = "";
    const DIALS: bool = false;

    async fn start() -> Self {
        install_tls();
        let receiver = Receiver::start();
        receiver.number(REFUSED, Answer::Status(400));
        Self { receiver }
    }

    fn settings(&self) -> Value {
        json!({ "url": { "value": self.receiver.url() }, "allow_addresses": ["127.0.0.1"] })
    }

    async fn received(&self) -> Vec<Seq> {
        self.receiver.accepted()
    }
}

impl Killable for Webhook {
    async fn kill(&mut self) {
        self.receiver.kill();
    }

    async fn restart(&mut self) {
        self.receiver.restart();
    }
}

impl CanBeBusy for Webhook {
    async fn make_busy(&mut self) {
        self.receiver.room(ROOM, Some(Answer::With(429, RETRY_AFTER, "1".into())));
    }

    async fn make_free(&mut self) {
        self.receiver.room(ROOM, None);
    }
}

impl Rejects for Webhook {
    fn spoil(outgoing: &mut Outgoing) {
        outgoing.payload = format!(r#"{{"n":{REFUSED}}}"#).into();
    }
}

impl CanBeGone for Webhook {
    fn finish(&mut self) {
        self.receiver.room(ROOM, Some(Answer::Status(410)));
    }
}
