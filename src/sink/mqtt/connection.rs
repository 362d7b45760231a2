//! One connection to a broker, in either version of the protocol.
//!
//! The layer that all three products over MQTT share: the event sink, the publisher of state, and the
//! listener for commands. Each has a connection of its own, with a client id and subscriptions of its own
//! (and a last will, but for commands), and uses it like this:
//!
//! ```text
//! let options = ConnectionOptions { settings: &settings, client_id: "home-state", will, receives: true };
//! let mut connection = Connection::open(&options).await?;            // name, TLS, login, CONNECT, CONNACK
//! if !connection.terms().retain { … }                                 // what the broker says of itself
//! connection.subscribe(vec!["astro/+/command/#".into()], 1)?;         // → Event::Subscribed
//! while connection.has_room() {
//!     connection.publish(Publication { topic, payload, qos: 1, ..Default::default() }, tag)?;
//! }                                                                   // → Event::Answered(tag, …)
//! match connection.next().await? { … }                                // the only place that waits
//! ```
//!
//! Nobody drives the connection but who calls [`Connection::next`]: it writes what was published,
//! reads, and keeps the link alive. It is safe to drop at any await. An error is the end of the
//! connection: it never connects again by itself, for then the client library would send again what it
//! still holds; whoever uses it drops it and opens another. It decides nothing and waits for nobody else.

mod event_loop;
mod packets;
mod terms;
mod v4;
mod v5;

use std::sync::Arc;

pub(crate) use self::terms::{Event, Message, Publication, Tag, Terms, Unsent, Will};
use self::{packets::InFlightPackets, terms::MAX_OUTSTANDING_BYTES};
pub(crate) use super::lost::Verdict;
use super::{
    lost::Lost,
    settings::{Settings, Version},
    target::Target,
    topic,
};
use crate::{
    base::tls::{client_config, prepare},
    config::Secret,
};

/// With what a connection is made.
#[derive(Debug)]
pub(crate) struct ConnectionOptions<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) client_id: &'a str,
    pub(crate) will: Option<Will>,
    /// Whether anything is subscribed; if not, the broker is not to send more than acknowledgements.
    pub(crate) receives: bool,
}

/// The options with what had to be read for them.
struct Prepared<'a> {
    options: &'a ConnectionOptions<'a>,
    target: Target,
    password: Option<Secret>,
    tls: Option<Arc<rustls::ClientConfig>>,
}

/// The client of one version.
enum Client {
    V5(v5::Client),
    V4(v4::Client),
}

/// A connection that stands.
pub(crate) struct Connection {
    client: Client,
    terms: Terms,
    packets: InFlightPackets,
    window: usize,
}

impl Connection {
    /// Connects and waits for the broker's CONNACK, with a limit of its own.
    pub(crate) async fn open(options: &ConnectionOptions<'_>) -> Result<Self, Lost> {
        let settings = options.settings;
        let target = Target::parse(&settings.url)?;
        let tls = if target.is_tls() {
            prepare(settings.ca_file.as_deref()).await;
            let config = client_config(
                settings.ca_file.as_deref(),
                settings.client_cert_file.as_deref(),
                settings.client_key_file.as_deref(),
            );
            Some(config.await.map_err(|error| error.to_string())?)
        } else {
            None
        };
        let password = match &settings.password {
            Some(password) => Some(password.read().await.map_err(|error| error.to_string())?),
            None => None,
        };
        let prepared = Prepared { options, target, password, tls };
        let (client, terms) = match settings.version {
            Version::V5 => {
                let (client, terms) = v5::Client::connect(prepared).await?;
                (Client::V5(client), terms)
            }
            Version::V3 => {
                let (client, terms) = v4::Client::connect(prepared).await?;
                (Client::V4(client), terms)
            }
        };
        let window = usize::from(settings.inflight).min(terms.receive_max);
        Ok(Self { client, terms, packets: InFlightPackets::default(), window })
    }

    pub(crate) fn terms(&self) -> &Terms {
        &self.terms
    }

    /// The QoS that was asked for, as far as the broker takes it.
    pub(crate) fn qos(&self, wanted: u8) -> u8 {
        wanted.min(self.terms.max_qos)
    }

    /// Whether one more publication may be handed over now. The limit is what the broker takes unanswered,
    /// the setting `inflight`, and a number of bytes.
    pub(crate) fn has_room(&self) -> bool {
        self.packets.count() < self.window && self.packets.bytes() < MAX_OUTSTANDING_BYTES
    }

    /// Publications that are neither answered nor, in QoS 0, written.
    pub(crate) fn outstanding(&self) -> usize {
        self.packets.count()
    }

    /// Hands a publication to the client, to be written with the next poll, while there is
    /// [`room`](Self::has_room) (or, for a few more). What becomes of it is reported under `tag`.
    pub(crate) fn publish(&mut self, publication: Publication<'_>, tag: Tag) -> Result<(), Unsent> {
        if let Some(reason) = topic::refusal(publication.topic) {
            return Err(Unsent::Refused(reason));
        }
        let (bytes, qos) = (publication.payload.len(), publication.qos);
        match &self.client {
            Client::V5(client) => client.publish(publication),
            Client::V4(client) => client.publish(publication),
        }?;
        self.packets.add(tag, bytes, qos);
        Ok(())
    }

    /// Subscribes: [`Event::Subscribed`] answers. In MQTT 5 what we publish ourselves does not come back.
    pub(crate) fn subscribe(&self, filters: Vec<String>, qos: u8) -> Result<(), Lost> {
        match &self.client {
            Client::V5(client) => client.subscribe(filters, qos),
            Client::V4(client) => client.subscribe(filters, qos),
        }
    }

    /// Unsubscribes: [`Event::Unsubscribed`] answers, when the broker has read all that was written
    /// before. So, of a filter that was never subscribed, it confirms what QoS 0 does not.
    pub(crate) fn unsubscribe(&self, filter: &str) -> Result<(), Lost> {
        match &self.client {
            Client::V5(client) => client.unsubscribe(filter),
            Client::V4(client) => client.unsubscribe(filter),
        }
    }

    /// Asks the client to disconnect when all is answered: [`Event::Disconnected`]. The broker does not
    /// publish the last will then.
    pub(crate) fn disconnect(&self) -> Result<(), Lost> {
        match &self.client {
            Client::V5(client) => client.disconnect(),
            Client::V4(client) => client.disconnect(),
        }
    }

    /// Waits until something happens. Safe to drop. After an error the connection is over.
    pub(crate) async fn next(&mut self) -> Result<Event, Lost> {
        if let Some(event) = self.ready() {
            return Ok(event);
        }
        let signal = match &mut self.client {
            Client::V5(client) => client.next().await,
            Client::V4(client) => client.next().await,
        }?;
        Ok(self.packets.event(signal))
    }

    /// What has happened already.
    pub(crate) fn ready(&mut self) -> Option<Event> {
        let signal = match &mut self.client {
            Client::V5(client) => client.ready(),
            Client::V4(client) => client.ready(),
        }?;
        Some(self.packets.event(signal))
    }
}
