//! What the tests of connections share: one without a network.

use tokio_tungstenite::{WebSocketStream, tungstenite::protocol::Role};

use super::*;
use crate::{
    astro::dial::{Counted, Socket},
    config::{Astro, TokenType},
    gateway::{intake::Intake, targets::Targets},
    journal::Journal,
};

pub(super) const WELCOME: &str = r#"{"type":"welcome"}"#;

pub(super) fn hub() -> Hub {
    let intake = Arc::new(Intake::new(Journal::in_memory(1024 * 1024)));
    let (_, targets) = watch::channel(Targets::default());
    Hub::new(&Astro::default(), Arc::default(), intake, targets).unwrap()
}

/// A session that wants these topics.
pub(super) fn session(topics: &[&str]) -> Session {
    let wanted = topics.iter().map(|topic| {
        let (channel, topic) = ("main".into(), (*topic).into());
        let one = Subscription {
            channel,
            topic,
            room: None,
            token_type: TokenType::Jwt,
            token_room: None,
        };
        Wanted { subscription: Arc::new(one), token: Ok(Secret::new("t")) }
    });
    Session::new(1, wanted.collect(), Arc::default(), Instant::now())
}

/// Our end of a connection and the gateway's.
pub(super) async fn sockets() -> (Socket, Socket) {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let (ours, theirs) = (Counted::new(Box::new(ours)), Counted::new(Box::new(theirs)));
    let client = WebSocketStream::from_raw_socket(ours, Role::Client, None).await;
    let server = WebSocketStream::from_raw_socket(theirs, Role::Server, None).await;
    (client, server)
}
