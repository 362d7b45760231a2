//! One connection to a broker, in either version of the protocol.
//!
//! The two client libraries are twins with different types; this is what the sink needs of them, said
//! once. Nothing here decides anything.
//!
//! The one thing to know: nobody polls the connection but the sink. What is published stands in the
//! client's channel until the next poll, and what the client has read stands in its own queue, which
//! [`Link::ready`] empties without another poll.

use std::{pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::sleep;

use super::{
    command,
    flight::Signal,
    inbox::Inbox,
    lost::Lost,
    settings::{Settings, Version},
    v4, v5,
};
use crate::{
    base::clock::Moment,
    command::{Ear, Outbound},
    config::Secret,
    sink::Outgoing,
};

/// Name, TCP, TLS and the broker's CONNACK together. A broker that takes longer is not well.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Requests beside the window that may stand in the client's channel: the subscriptions, the birth and the
/// farewell, answers to commands, and the second packet of an event.
pub(super) const SPARE_REQUESTS: usize = 6 + command::ANSWERS;

/// While somebody waits for the connection, so often it is noted that he does.
const ATTENTION: Duration = Duration::from_secs(1);

/// Nobody has waited for the connection for so long (the process or the machine stood still, or something
/// else kept the sink): what is read then may have come long ago.
const ABSENCE: Duration = Duration::from_secs(3);

/// After an absence it takes no longer than this to read what came meanwhile.
const CATCHING_UP: Duration = Duration::from_secs(1);

/// With what a link is made.
#[derive(Debug)]
pub(super) struct Dial<'a> {
    pub(super) settings: &'a Settings,
    pub(super) client_id: &'a str,
    pub(super) will: Option<Will>,
    pub(super) password: Option<Secret>,
    pub(super) tls: Option<Arc<rustls::ClientConfig>>,
    /// Who hears commands; nobody: they are not subscribed.
    pub(super) ear: Option<Ear>,
    /// Whether what others publish is heard: discovery, and what is retained of ours.
    pub(super) listens: bool,
}

impl Dial<'_> {
    /// Whether anything is subscribed.
    pub(super) fn hears(&self) -> bool {
        self.listens || self.ear.is_some()
    }
}

/// A client's event loop `L`. A poll that is given up is not dropped, but goes on with the next: dropped
/// while it writes, it would lose a packet that the client takes for sent.
pub(super) struct Driven<L, T> {
    resting: Option<Box<L>>,
    polling: Option<Polling<L, T>>,
    /// When somebody last waited for it.
    attended: Moment,
    /// What is read until so long after this moment may be old.
    absent: Option<Moment>,
}

type Polling<L, T> = Pin<Box<dyn Future<Output = (Box<L>, T)> + Send>>;

impl<L, T> Driven<L, T> {
    pub(super) fn new(events: L) -> Self {
        let attended = Moment::now();
        Self { resting: Some(Box::new(events)), polling: None, attended, absent: None }
    }

    /// Waits for what happens next; `poll` begins a poll where none is under way. Safe to drop.
    pub(super) async fn poll<F>(&mut self, poll: impl FnOnce(Box<L>) -> F) -> Option<T>
    where
        F: Future<Output = (Box<L>, T)> + Send + 'static,
    {
        if let Some(events) = self.resting.take() {
            self.polling = Some(Box::pin(poll(events)));
        }
        let polling = self.polling.as_mut()?;
        let (events, happened) = loop {
            tokio::select! {
                biased;
                done = &mut *polling => break done,
                () = sleep(ATTENTION) => attend(&mut self.attended, &mut self.absent),
            }
        };
        self.polling = None;
        self.resting = Some(events);
        attend(&mut self.attended, &mut self.absent);
        Some(happened)
    }

    /// The event loop, while no poll is under way.
    pub(super) fn resting(&mut self) -> Option<&mut L> {
        self.resting.as_deref_mut()
    }

    /// Whether what is read now may have come long ago.
    pub(super) fn is_late(&self) -> bool {
        self.absent.is_some_and(|since| since.elapsed() < CATCHING_UP)
    }
}

/// Somebody waits for the loop, perhaps after an absence: a process that was stopped notices its timers
/// before it reads what has come meanwhile.
fn attend(attended: &mut Moment, absent: &mut Option<Moment>) {
    let now = Moment::now();
    if now.since(*attended) > ABSENCE {
        *absent = Some(now);
    }
    *attended = now;
}

/// What the broker says for us, retained, when the connection breaks off.
#[derive(Debug, Clone)]
pub(super) struct Will {
    pub(super) topic: String,
    pub(super) payload: Bytes,
}

/// What the broker allows, from its CONNACK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Terms {
    /// The highest QoS that it takes.
    pub(super) max_qos: u8,
    /// Whether it keeps retained messages.
    pub(super) retain: bool,
    /// Whether it takes subscriptions with wildcards.
    pub(super) wildcards: bool,
    /// How many events it takes unanswered.
    pub(super) receive_max: usize,
}

/// Why an event was not even handed to the client.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unsent {
    /// It can never be sent over this link.
    Refused(String),
    /// The client takes nothing more.
    Closed,
}

/// A connection.
pub(super) enum Link {
    V5(Box<v5::Link>),
    V4(Box<v4::Link>),
}

impl Link {
    /// Connects and waits for the broker's answer.
    pub(super) async fn connect(dial: &Dial<'_>) -> Result<(Self, Terms), Lost> {
        match dial.settings.version {
            Version::V5 => {
                v5::Link::connect(dial).await.map(|(link, terms)| (Self::V5(Box::new(link)), terms))
            }
            Version::V3 => {
                v4::Link::connect(dial).await.map(|(link, terms)| (Self::V4(Box::new(link)), terms))
            }
        }
    }

    /// Hands an event to the client; it leaves with the next poll.
    pub(super) fn publish(&self, outgoing: &Outgoing, qos: u8, retain: bool) -> Result<(), Unsent> {
        match self {
            Self::V5(link) => link.publish(outgoing, qos, retain),
            Self::V4(link) => link.publish(outgoing, qos, retain),
        }
    }

    /// Hands something retained to the client that is no event: a part of the state, the birth, the
    /// farewell.
    pub(super) fn announce(&self, topic: &str, payload: Bytes, qos: u8) -> Result<(), Unsent> {
        match self {
            Self::V5(link) => link.announce(topic, payload, qos),
            Self::V4(link) => link.announce(topic, payload, qos),
        }
    }

    /// Hands an empty message to the client that nobody keeps, to be acknowledged.
    pub(super) fn nothing(&self, topic: &str) -> Result<(), Unsent> {
        match self {
            Self::V5(link) => link.nothing(topic),
            Self::V4(_) => Err(Unsent::Refused("MQTT 3.1.1 would not tell".into())),
        }
    }

    /// Hands the answer to a command to the client.
    pub(super) fn answer(&self, outbound: &Outbound, qos: u8) -> Result<(), Unsent> {
        match self {
            Self::V5(link) => link.answer(outbound, qos),
            Self::V4(link) => link.answer(outbound, qos),
        }
    }

    /// What was read that is no command.
    pub(super) fn inbox(&mut self) -> &mut Inbox {
        match self {
            Self::V5(link) => link.inbox(),
            Self::V4(link) => link.inbox(),
        }
    }

    /// Subscribes, and asks for [`Signal::Subscribed`].
    pub(super) fn subscribe(&self, filters: Vec<String>, qos: u8) -> Result<(), Unsent> {
        match self {
            Self::V5(link) => link.subscribe(filters, qos),
            Self::V4(link) => link.subscribe(filters, qos),
        }
    }

    /// Whether what we publish ourselves comes back where we have subscribed.
    pub(super) fn echoes(&self) -> bool {
        matches!(self, Self::V4(_))
    }

    /// Asks for [`Signal::Barrier`] behind all that was handed over so far: the answer to an
    /// unsubscription from something that was never subscribed.
    pub(super) fn barrier(&self, topic: &str) -> Result<(), Unsent> {
        match self {
            Self::V5(link) => link.barrier(topic),
            Self::V4(link) => link.barrier(topic),
        }
    }

    /// Asks the client to take its leave when all is answered.
    pub(super) fn disconnect(&self) -> Result<(), Unsent> {
        match self {
            Self::V5(link) => link.disconnect(),
            Self::V4(link) => link.disconnect(),
        }
    }

    /// Drives the connection until something happens. An error is the end of the link: the client
    /// would connect again by itself at the next poll, and send what it still holds.
    pub(super) async fn poll(&mut self) -> Result<Signal, Lost> {
        match self {
            Self::V5(link) => link.poll().await,
            Self::V4(link) => link.poll().await,
        }
    }

    /// What has happened already.
    pub(super) fn ready(&mut self) -> Option<Signal> {
        match self {
            Self::V5(link) => link.ready(),
            Self::V4(link) => link.ready(),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[derive(Debug, Default, PartialEq, Eq)]
    struct Notes(Vec<u8>);

    /// A poll that takes three steps; notes each.
    async fn steps(mut notes: Box<Notes>) -> (Box<Notes>, usize) {
        for step in 0..3 {
            notes.0.push(step);
            sleep(Duration::from_millis(100)).await;
        }
        let count = notes.0.len();
        (notes, count)
    }

    #[tokio::test(start_paused = true)]
    async fn a_poll_that_is_given_up_goes_on_with_the_next() {
        let mut driven = Driven::new(Notes::default());
        let mut given_up = 0;
        let count = loop {
            match timeout(Duration::from_millis(30), driven.poll(steps)).await {
                Ok(count) => break count,
                Err(_) => given_up += 1,
            }
            assert!(driven.resting().is_none());
        };
        assert!(given_up >= 9, "{given_up}");
        assert_eq!(count, Some(3));
        assert_eq!(driven.resting(), Some(&mut Notes(vec![0, 1, 2])));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_read_after_an_absence_is_late_and_after_a_long_wait_is_not() {
        let mut driven = Driven::new(Notes::default());
        driven
            .poll(|notes| async move {
                sleep(Duration::from_mins(1)).await;
                (notes, 0)
            })
            .await;
        assert!(!driven.is_late(), "somebody waited all the time");
        tokio::time::advance(ABSENCE * 2).await;
        driven.poll(|notes| async move { (notes, 0) }).await;
        assert!(driven.is_late(), "nobody did");
        tokio::time::advance(CATCHING_UP).await;
        driven.poll(|notes| async move { (notes, 0) }).await;
        assert!(!driven.is_late());
    }
}
