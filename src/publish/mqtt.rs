//! State to an MQTT broker: a retained message for each part, on a connection of its own.
//!
//! Its client id is that of the sink with `-state` behind it. It has the last will, by which the broker
//! publishes that the relay is gone. What is retained is subscribed, so that it is corrected when another
//! client writes over it ([`retained`]). Home Assistant's discovery goes the same way ([`discovery`]).

mod discovery;
mod retained;

use std::{collections::BTreeSet, time::Duration};

use async_trait::async_trait;
use tokio::time::{Instant, error::Elapsed, timeout_at};
use tracing::warn;

use self::{discovery::Discovery, retained::RetainedTopics};
use super::{Kind, StatePublisher, homeassistant::HaDiscovery};
use crate::{
    base::clock,
    channel::store::{Section, StateKey, offline},
    config::{ConfigError, Period},
    delivery::ha_event,
    sink::{
        Cause, Failure, Opening, Part,
        mqtt::{
            connection::{
                Connection, ConnectionOptions, Event, Message, Publication, Tag, Unsent, Verdict,
                Will,
            },
            lost::{Lost, Why},
            settings::{Settings, client_id, state_client_id},
            topic,
        },
        prefix::Prefix,
        settings,
    },
};

/// The row of this kind.
pub(super) const KIND: Kind = Kind {
    name: "mqtt",
    publishes: |config| config.state || ha_event::is_wanted(config).is_some(),
    open,
    probe: None,
};

/// The tag of what is published beside the parts: discovery, and corrections.
const UNTRACKED: Tag = Tag::MAX;

/// Nobody subscribes to this: the answer to unsubscribing from it confirms what was published in QoS 0.
const NOTHING: &str = "astro-relay/nothing";

/// What the broker may not let us read, as a remark names it.
const RETAINED: &str = "whether others write over what it retains of ours";
const ANNOUNCED: &str = "what was announced to Home Assistant";

struct MqttPublisher {
    settings: Settings,
    timeout: Duration,
    client_id: String,
    /// Where the state goes; `None`: only Home Assistant's discovery is cleared.
    prefix: Option<Prefix>,
    connection: Option<Connection>,
    next_tag: Tag,
    topics: Topics,
}

/// What of ours the broker retains.
#[derive(Default)]
struct Topics {
    retained: RetainedTopics,
    /// Nothing where the sink does not say whether it serves Home Assistant.
    discovery: Option<Discovery>,
    /// What the broker does not let us read.
    unreadable: BTreeSet<&'static str>,
    /// Why the broker refuses what is published beside the parts.
    refused: Option<String>,
}

fn open(opening: &Opening<'_>) -> Result<Box<dyn StatePublisher>, ConfigError> {
    let settings: Settings = settings(opening)?;
    let at = |error| ConfigError::at(&["sinks", opening.name, "state_topic"], error);
    let client_id = client_id(opening.name, &opening.config.settings);
    let prefix = opening.config.state.then(|| settings.prefix()).transpose().map_err(at)?;
    let mut topics = Topics::default();
    if settings.homeassistant.is_some() {
        let of = HaDiscovery::of(opening.config, &client_id, topic::escape, &settings.commands);
        topics.discovery = Some(Discovery::new(of.map_err(at)?));
    }
    Ok(Box::new(MqttPublisher {
        timeout: opening.config.timeout.0,
        client_id: state_client_id(&client_id),
        prefix,
        connection: None,
        next_tag: 0,
        topics,
        settings,
    }))
}

#[async_trait]
impl StatePublisher for MqttPublisher {
    async fn connect(&mut self) -> Result<(), Failure> {
        self.connection = None;
        self.connection = Some(self.dial().await.map_err(Lost::cause)?);
        Ok(())
    }

    async fn publish(&mut self, parts: &[Part]) -> Result<(), Failure> {
        if parts.is_empty() {
            // The last will reports our end.
            return Ok(());
        }
        let verdicts = match self.publish_parts(parts).await {
            Ok(verdicts) => verdicts,
            Err(lost) => return Err(self.lost(lost)),
        };
        let accepted = verdicts.iter().take_while(|one| **one == Verdict::Accepted).count();
        let cause = match verdicts.into_iter().nth(accepted) {
            None => return Ok(()),
            Some(Verdict::Busy(reason)) => Cause::Busy { wait: None, reason },
            Some(Verdict::Refused(reason)) => Cause::Rejected { reason },
            Some(Verdict::Pending | Verdict::Accepted) => {
                Cause::Down("an answer is missing".into())
            }
        };
        Err(Failure::after(accepted, cause))
    }

    async fn idle(&mut self) -> Failure {
        loop {
            let Some(connection) = &mut self.connection else {
                return Failure::down("not connected");
            };
            let qos = self.settings.qos.min(1);
            let next = match self.topics.publish(connection, qos) {
                Ok(()) => {
                    let due = self.topics.due().filter(|_| connection.has_room());
                    tokio::select! {
                        event = connection.next() => event,
                        () = clock::until(due) => continue,
                    }
                }
                Err(lost) => Err(lost),
            };
            match next {
                Ok(event) => self.topics.handle(event),
                Err(lost) => return self.lost(lost),
            }
        }
    }

    fn sees_overwrites(&self) -> bool {
        !self.topics.unreadable.contains(RETAINED)
    }

    async fn close(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        if connection.disconnect().is_ok() {
            while connection.next().await.is_ok_and(|event| event != Event::Disconnected) {}
        }
        self.connection = None;
    }

    fn remarks(&self) -> Vec<String> {
        let Topics { retained, unreadable, refused, .. } = &self.topics;
        let unreadable =
            unreadable.iter().map(|what| format!("the broker does not let us read {what}"));
        let mut remarks: Vec<String> = unreadable.collect();
        remarks.extend(retained.remark(Instant::now()));
        remarks.extend(refused.clone());
        remarks
    }
}

impl MqttPublisher {
    async fn dial(&mut self) -> Result<Connection, Lost> {
        let options = ConnectionOptions {
            settings: &self.settings,
            client_id: &self.client_id,
            will: self.will()?,
            receives: true,
        };
        let mut connection = Connection::open(&options).await?;
        if !connection.terms().retain {
            let text = "the broker keeps no retained messages: set state = false";
            return Err(Lost::new(Why::Denied, text));
        }
        let Topics { retained, discovery, unreadable, refused } = &mut self.topics;
        retained.begin(connection.terms().echoes);
        *refused = None;
        let before = std::mem::take(unreadable);
        if let Some(discovery) = discovery
            && !discovery.find_announced(&mut connection).await?
        {
            unreadable.insert(ANNOUNCED);
        }
        if self.prefix.is_some() && !connection.terms().wildcards {
            unreadable.insert(RETAINED);
        }
        if !unreadable.is_empty() && *unreadable != before {
            warn!(?unreadable, "the broker does not let us read this; all else goes on");
        }
        Ok(connection)
    }

    /// What the broker publishes for us when the connection breaks off.
    fn will(&self) -> Result<Option<Will>, Lost> {
        let Some(prefix) = &self.prefix else { return Ok(None) };
        let key = StateKey::relay(Section::Status);
        let payload = key.payload(&offline("connection lost"));
        Ok(Some(Will { topic: topic::of_state(prefix, &key)?, payload }))
    }

    /// The connection is over: whatever the broker wants, it has to be made again.
    fn lost(&mut self, lost: Lost) -> Failure {
        self.connection = None;
        lost.cause_of_end().into()
    }

    /// Publishes each part, an empty message where it is no more, and waits until the broker has answered
    /// for all. They need no order among them, so one that is refused hinders no other.
    async fn publish_parts(&mut self, parts: &[Part]) -> Result<Vec<Verdict>, Lost> {
        let (Some(connection), Some(prefix)) = (&mut self.connection, &self.prefix) else {
            return Err("not connected".into());
        };
        let qos = connection.qos(self.settings.qos.min(1));
        let topics = parts.iter().map(|part| topic::of_state(prefix, &part.path));
        let topics = topics.collect::<Result<Vec<_>, _>>()?;
        let first = self.next_tag;
        let mut verdicts = vec![Verdict::Pending; parts.len()];
        let (mut sent, mut answered) = (0, 0);
        let mut until = Instant::now() + self.timeout;
        let silence = || {
            let limit = Period(self.timeout);
            Lost::from(format!("the broker has not answered within {limit}"))
        };
        while answered < parts.len() {
            while connection.has_room()
                && let (Some(part), Some(topic)) = (parts.get(sent), topics.get(sent))
            {
                let payload = part.payload.clone().unwrap_or_default();
                self.topics.retained.sending(topic, &payload);
                let publication =
                    Publication { topic, payload, qos, retain: true, ..Publication::default() };
                let tag = self.next_tag;
                self.next_tag += 1;
                match connection.publish(publication, tag) {
                    Ok(()) => {}
                    Err(Unsent::Refused(reason)) => {
                        if let Some(verdict) = verdicts.get_mut(sent) {
                            *verdict = Verdict::Refused(reason);
                        }
                        answered += 1;
                    }
                    Err(Unsent::Lost(lost)) => return Err(lost),
                }
                sent += 1;
            }
            if answered >= parts.len() {
                break;
            }
            // The keep-alive is no answer: a broker may say that it is there and do nothing else.
            let event = timeout_at(until, connection.next()).await.map_err(|_| silence())??;
            let (tag, verdict) = match event {
                Event::Written(tag) => (tag, Verdict::Accepted),
                Event::Answered(tag, verdict) => (tag, verdict),
                event => {
                    self.topics.handle(event);
                    continue;
                }
            };
            until = Instant::now() + self.timeout;
            let place = tag.checked_sub(first).and_then(|place| usize::try_from(place).ok());
            let found = place.and_then(|place| {
                Some((verdicts.get_mut(place)?, parts.get(place)?, topics.get(place)?))
            });
            match found {
                Some((slot, part, topic)) => {
                    if verdict == Verdict::Accepted {
                        let payload = part.payload.clone().unwrap_or_default();
                        self.topics.retained.published(topic, &payload);
                    }
                    *slot = verdict;
                    answered += 1;
                }
                None => self.topics.handle(Event::Answered(tag, verdict)),
            }
        }
        if qos == 0 {
            self.topics.round_trip(connection, until).await.map_err(|_| silence())??;
        }
        let taken = parts.iter().zip(&topics).zip(&verdicts);
        let taken = taken.filter(|(_, verdict)| **verdict == Verdict::Accepted);
        self.topics.taken(connection, qos, taken.map(|(part, _)| part))?;
        Ok(verdicts)
    }
}

impl Topics {
    /// Waits until the broker has read all that was written: it answers in order.
    async fn round_trip(
        &mut self,
        connection: &mut Connection,
        until: Instant,
    ) -> Result<Result<(), Lost>, Elapsed> {
        if let Err(lost) = connection.unsubscribe(NOTHING) {
            return Ok(Err(lost));
        }
        loop {
            let event = match timeout_at(until, connection.next()).await? {
                Ok(event) => event,
                Err(lost) => return Ok(Err(lost)),
            };
            let confirmed = event == Event::Unsubscribed;
            self.handle(event);
            if confirmed {
                return Ok(Ok(()));
            }
        }
    }

    /// The broker retains these parts: they are subscribed from now on, and their entities announced.
    fn taken<'a>(
        &mut self,
        connection: &Connection,
        qos: u8,
        parts: impl Iterator<Item = (&'a Part, &'a String)>,
    ) -> Result<(), Lost> {
        let mut filters = Vec::new();
        for (part, topic) in parts {
            let filter = match topic.rsplit_once('/') {
                Some((above, _)) if !part.path.name.is_empty() => format!("{above}/+"),
                _ => topic.clone(),
            };
            if connection.terms().wildcards && self.retained.is_new(&filter) {
                filters.push(filter);
            }
            if let Some(discovery) = &mut self.discovery {
                discovery.part_published(part, topic);
            }
        }
        if filters.is_empty() { Ok(()) } else { connection.subscribe(filters, qos) }
    }

    /// Publishes discovery and corrections that are due, as far as there is room.
    fn publish(&mut self, connection: &mut Connection, qos: u8) -> Result<(), Lost> {
        let (now, qos) = (Instant::now(), connection.qos(qos));
        while connection.has_room() {
            let announced = self.discovery.as_mut().and_then(|discovery| discovery.next(now));
            let due = announced.or_else(|| self.retained.next_correction(now));
            let Some((topic, payload)) = due else { break };
            self.retained.sending(&topic, &payload);
            let publication = Publication {
                topic: &topic,
                payload: payload.clone(),
                qos,
                retain: true,
                ..Publication::default()
            };
            match connection.publish(publication, UNTRACKED) {
                Ok(()) => self.retained.published(&topic, &payload),
                Err(Unsent::Refused(reason)) => warn!(topic, reason, "this cannot be announced"),
                Err(Unsent::Lost(lost)) => return Err(lost),
            }
        }
        Ok(())
    }

    /// When something is to be published that is not yet.
    fn due(&self) -> Option<Instant> {
        let again = self.discovery.as_ref().and_then(Discovery::due);
        again.into_iter().chain(self.retained.due()).min()
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Received(message) => self.received(&message),
            Event::Subscribed { refused } if refused > 0 => drop(self.unreadable.insert(RETAINED)),
            Event::Answered(_, Verdict::Refused(reason)) => {
                let text = "the broker refuses what is announced to Home Assistant, or corrected";
                if self.refused.is_none() {
                    warn!(reason, "{text}");
                }
                self.refused = Some(format!("{text}: {reason}"));
            }
            _ => {}
        }
    }

    fn received(&mut self, message: &Message) {
        if let Some(discovery) = &mut self.discovery {
            discovery.received(&message.topic, &message.payload, Instant::now());
        }
        self.retained.received(message);
    }
}
