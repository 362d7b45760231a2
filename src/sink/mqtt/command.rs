//! Commands over MQTT: where they come from, and where their answers go.
//!
//! Each channel has `astro/<channel>/command/#`, and `astro/<channel>/response` for the answers; who
//! speaks MQTT 5 may name another topic, and gets its correlation data back. What the link reads is
//! handed to the [`Ear`] at once, whatever the sink is doing; answers wait until the sink can send.
//!
//! The one thing to know: an answer is a publish like any other and gets a packet id, so the flight has
//! to know of it. Only the sink sends.

use bytes::Bytes;

use super::{
    flight::Flight,
    link::{Link, Unsent},
    lost::Lost,
    topic,
};
use crate::{
    command::{Answers, Back, Desk, Ear, Heard, Outbound, parse},
    config::Commands,
};

/// Answers that are handed to the client and have not left it: the client's channel has room for them.
pub(super) const ANSWERS: usize = 8;

/// The largest packet that is taken where anything is heard: a payload of the largest size, a long
/// topic, and some properties. In MQTT 5 the broker is told, and keeps larger ones to itself.
pub(super) const MAX_PACKET: u32 = 64 * 1024;

/// The same for MQTT 3.1.1, where a larger packet is the end of the connection: nobody should be able
/// to end it with what a broker lets through by the way.
pub(super) const MAX_PACKET_V4: usize = 1024 * 1024;

/// The longest topic that is answered to.
const LONGEST_BACK: usize = 256;

/// The longest correlation data that are repeated.
const LONGEST_CORRELATION: usize = 1024;

/// What a sink needs to take commands.
pub(super) struct Taker {
    desk: Desk,
    allowed: Commands,
    /// Answers to what this connection heard; none without a connection.
    answers: Option<Answers>,
}

impl Taker {
    pub(super) fn new(desk: &Desk, allowed: &Commands) -> Option<Self> {
        let taker = || Self { desk: desk.clone(), allowed: allowed.clone(), answers: None };
        (!allowed.are_off()).then(taker)
    }

    /// The ear of a new connection. Answers to what was heard over the one before go nowhere.
    pub(super) fn ear(&mut self) -> Ear {
        let (ear, answers) = self.desk.ear(&self.allowed);
        self.answers = Some(answers);
        ear
    }

    /// The next answer that is to be sent; for ever nothing while there is no connection.
    pub(super) async fn next(taker: &mut Option<Self>) -> Outbound {
        let answers = taker.as_mut().and_then(|taker| taker.answers.as_mut());
        match answers {
            // It never ends while the connection's ear lives.
            Some(answers) => match answers.recv().await {
                Some(outbound) => outbound,
                None => std::future::pending().await,
            },
            None => std::future::pending().await,
        }
    }

    /// An answer that waits already.
    pub(super) fn ready(taker: &mut Option<Self>) -> Option<Outbound> {
        taker.as_mut()?.answers.as_mut()?.try_recv().ok()
    }
}

/// What is subscribed to.
pub(super) fn filters(ear: &Ear) -> impl Iterator<Item = String> {
    let filter = |label: &String| format!("{}/{label}/{}/#", parse::ROOT, parse::COMMAND);
    ear.channels().iter().map(filter)
}

/// What was read, in the words of both versions.
pub(super) struct Read<'a> {
    pub(super) topic: &'a [u8],
    pub(super) payload: &'a [u8],
    pub(super) retained: bool,
    pub(super) again: bool,
    pub(super) response_topic: Option<&'a str>,
    pub(super) correlation: Option<&'a Bytes>,
    /// It may have been waiting to be read for long.
    pub(super) late: bool,
}

/// Hands a message in, if it is a command; answers whether it is.
pub(super) fn hear(ear: Option<&Ear>, read: &Read<'_>) -> bool {
    let Some(ear) = ear else { return false };
    let Some((channel, path)) = parse::address(read.topic, '/') else { return false };
    let back = match read.response_topic.filter(|topic| is_answerable(topic)) {
        Some(topic) => topic.to_owned(),
        None => format!("{}/{channel}/response", parse::ROOT),
    };
    let correlation = read.correlation.filter(|data| data.len() <= LONGEST_CORRELATION).cloned();
    let heard = Heard {
        channel,
        path: &path,
        payload: read.payload,
        retained: read.retained,
        again: read.again,
        back: Some(Back { address: back, correlation }),
    };
    if read.late {
        ear.too_late(heard);
    } else {
        ear.hear(heard);
    }
    true
}

/// Whether an answer may go to a topic that a stranger has chosen: to no command, so that nobody lets
/// one relay give orders to another, and to none of the broker's own.
fn is_answerable(topic: &str) -> bool {
    let words: Vec<&str> = topic.split('/').collect();
    (1..=LONGEST_BACK).contains(&topic.len())
        && !topic.starts_with('$')
        && !topic.contains(|c: char| matches!(c, '+' | '#') || topic::unfit(c))
        && !words.contains(&parse::COMMAND)
}

/// Hands an answer to the client.
pub(super) fn send(
    link: &Link,
    flight: &mut Flight,
    outbound: &Outbound,
    qos: u8,
) -> Result<(), Lost> {
    match link.answer(outbound, qos) {
        Ok(()) => flight.hand_answer(),
        Err(Unsent::Refused(reason)) => {
            tracing::warn!(reason, "the answer to a command cannot be sent");
        }
        Err(Unsent::Closed) => return Err("the client takes nothing more".into()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_goes_where_a_stranger_may_let_it_go() {
        for (topic, fine) in [
            ("my/answers", true),
            ("homeassistant/x", true),
            ("", false),
            ("$SYS/x", false),
            ("a/+", false),
            ("a/#", false),
            ("a\0", false),
            ("astro/main/command/session/reset", false),
            ("home/light/command", false),
        ] {
            assert_eq!(is_answerable(topic), fine, "{topic}");
        }
        assert!(!is_answerable(&"x".repeat(LONGEST_BACK + 1)));
    }
}
