//! State to an MQTT broker: a retained message for each part, on a connection of its own.
//!
//! Its client id is that of the sink with `-state` behind it. It has the last will, by which the broker
//! publishes that the relay is gone. What is retained is subscribed, so that it is corrected when another
//! client writes over it ([`retained`]). Home Assistant's discovery goes the same way ([`discovery`]).

mod discovery;
mod retained;
mod rights;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::{Instant, error::Elapsed, timeout_at};
use tracing::warn;

use self::{discovery::Discovery, retained::RetainedTopics};
use super::{Kind, Rights, StatePublisher, homeassistant::HaDiscovery};
use crate::{
    base::{backoff::Backoff, clock},
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
            probe::probe_exactly,
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
    rights: Some(Rights { questions: rights::questions, probe: probe_exactly }),
};

/// The first wait, at most, and the longest, where the broker takes no discovery or correction.
const WAIT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));

/// Discovery and corrections that are remembered as refused, at most.
const REFUSED: usize = 20_000;

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
    topics: Topics,
}

/// What of ours the broker retains.
#[derive(Default)]
struct Topics {
    retained: RetainedTopics,
    /// Nothing where the sink does not say whether it serves Home Assistant.
    discovery: Option<Discovery>,
    next_tag: Tag,
    /// Discovery and corrections that the broker has not answered.
    unanswered: BTreeMap<Tag, Unanswered>,
    postponed: Postponed,
    /// What the broker does not let us read.
    unreadable: BTreeSet<&'static str>,
    refusals: Refusals,
}

/// What was published beside the parts.
struct Unanswered {
    topic: String,
    payload: Bytes,
    is_correction: bool,
}

/// What the broker refuses of discovery and corrections. It is published again from time to time: the rights
/// may be given meanwhile.
#[derive(Default)]
struct Refusals {
    by_topic: BTreeMap<String, Refused>,
    again: Option<Instant>,
}

struct Refused {
    payload: Bytes,
    is_correction: bool,
    /// In the broker's words.
    reason: String,
}

/// The broker does not take discovery or a correction at the moment: nothing of both is published before.
struct Postponed {
    until: Option<Instant>,
    backoff: Backoff,
    reason: Option<String>,
}

impl Default for Postponed {
    fn default() -> Self {
        Self { until: None, backoff: Backoff::new(WAIT.0, WAIT.1), reason: None }
    }
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
            Some(Verdict::Refused(reason) | Verdict::Denied(reason)) => Cause::Rejected { reason },
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
        let Topics { retained, unreadable, postponed, .. } = &self.topics;
        let unreadable =
            unreadable.iter().map(|what| format!("the broker does not let us read {what}"));
        let mut remarks: Vec<String> = unreadable.collect();
        remarks.extend(retained.remark(Instant::now()));
        remarks.extend(postponed.reason.clone());
        remarks
    }

    fn refused(&self) -> Option<String> {
        self.topics.refusals.text()
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
        self.topics.begin(connection.terms().echoes);
        let Topics { discovery, unreadable, .. } = &mut self.topics;
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
        let payload = key.payload(&offline("connection lost", None));
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
        let first = self.topics.next_tag;
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
                let tag = self.topics.take_tag();
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
                        self.topics.refusals.by_topic.remove(topic);
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
    /// There is a new connection. What was refused over the last one is a refusal until it is accepted.
    fn begin(&mut self, echoes: bool) {
        self.retained.begin(echoes);
        self.unanswered.clear();
        self.postponed = Postponed::default();
        // Everything is published again at once; later, it shows what of the refusals is out of date.
        let is_refused = !self.refusals.by_topic.is_empty();
        self.refusals.again = is_refused.then(|| Instant::now() + WAIT.1);
    }

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

    fn take_tag(&mut self) -> Tag {
        let tag = self.next_tag;
        self.next_tag += 1;
        tag
    }

    /// Publishes discovery and corrections that are due, as far as there is room.
    fn publish(&mut self, connection: &mut Connection, qos: u8) -> Result<(), Lost> {
        let (now, qos) = (Instant::now(), connection.qos(qos));
        if self.postponed.until.is_some_and(|until| now < until) {
            return Ok(());
        }
        self.postponed.until = None;
        if self.refusals.again.is_some_and(|again| again <= now) {
            self.publish_refused_again();
        }
        while connection.has_room() {
            let announced = self.discovery.as_mut().and_then(|discovery| discovery.next(now));
            let is_correction = announced.is_none();
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
            let tag = self.take_tag();
            let sent = connection.publish(publication, tag);
            let unanswered = Unanswered { topic, payload, is_correction };
            match sent {
                Ok(()) => drop(self.unanswered.insert(tag, unanswered)),
                Err(Unsent::Refused(reason)) => self.refusals.add(unanswered, reason),
                Err(Unsent::Lost(lost)) => return Err(lost),
            }
        }
        Ok(())
    }

    /// When something is to be published that is not yet.
    fn due(&self) -> Option<Instant> {
        let again = self.discovery.as_ref().and_then(Discovery::due);
        let due = again.into_iter().chain(self.retained.due()).chain(self.refusals.again).min();
        self.postponed.until.or(due)
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Received(message) => self.received(&message),
            Event::Subscribed { refused } if refused > 0 => drop(self.unreadable.insert(RETAINED)),
            Event::Answered(tag, verdict) => self.answered(tag, verdict),
            Event::Written(tag) => self.answered(tag, Verdict::Accepted),
            _ => {}
        }
    }

    /// The broker has answered discovery or a correction.
    fn answered(&mut self, tag: Tag, verdict: Verdict) {
        let Some(unanswered) = self.unanswered.remove(&tag) else { return };
        match verdict {
            Verdict::Accepted => {
                self.retained.published(&unanswered.topic, &unanswered.payload);
                self.refusals.by_topic.remove(&unanswered.topic);
                self.postponed.reason = None;
                self.postponed.backoff.reset();
            }
            Verdict::Busy(reason) => {
                let Unanswered { topic, payload, is_correction } = unanswered;
                self.postponed.begin(&reason);
                if is_correction {
                    self.retained.not_taken(&topic);
                } else if let Some(discovery) = &mut self.discovery {
                    discovery.not_taken(topic, &payload);
                }
            }
            Verdict::Refused(reason) | Verdict::Denied(reason) => {
                self.refusals.add(unanswered, reason);
            }
            Verdict::Pending => {}
        }
    }

    /// It stays among the refusals until the broker has accepted it, or it is not to be published any more.
    fn publish_refused_again(&mut self) {
        let Self { retained, discovery, refusals, .. } = self;
        refusals.again = None;
        refusals.by_topic.retain(|topic, Refused { payload, is_correction, .. }| {
            if *is_correction {
                return retained.not_taken(topic);
            }
            let Some(discovery) = discovery else { return false };
            discovery.refused(topic, payload)
        });
    }

    fn received(&mut self, message: &Message) {
        if let Some(discovery) = &mut self.discovery {
            discovery.received(&message.topic, &message.payload, Instant::now());
        }
        let is_right = self.retained.received(message);
        let refused = &mut self.refusals.by_topic;
        if is_right && refused.get(&message.topic).is_some_and(|refused| refused.is_correction) {
            // Whoever wrote over it has corrected it.
            refused.remove(&message.topic);
        }
    }
}

impl Refusals {
    fn add(&mut self, refused: Unanswered, reason: String) {
        let Unanswered { topic, payload, is_correction } = refused;
        if self.by_topic.is_empty() {
            let text = "the broker refuses what is announced to Home Assistant, or corrected";
            warn!(topic, reason, "{text}");
        }
        self.again.get_or_insert_with(|| Instant::now() + WAIT.1);
        if self.by_topic.len() < REFUSED || self.by_topic.contains_key(&topic) {
            self.by_topic.insert(topic, Refused { payload, is_correction, reason });
        }
    }

    /// The first of them, and how many more there are.
    fn text(&self) -> Option<String> {
        let (topic, Refused { reason, .. }) = self.by_topic.first_key_value()?;
        let first = format!("{topic} is refused: {reason}");
        Some(match self.by_topic.len() {
            1 => first,
            count => format!("{first}; and {} more", count - 1),
        })
    }
}

impl Postponed {
    /// The broker has not taken one. What it refuses together is one refusal.
    fn begin(&mut self, reason: &str) {
        if self.until.is_some() {
            return;
        }
        let text = "the broker does not take what is announced to Home Assistant, or corrected; it is \
                    tried again";
        if self.reason.is_none() {
            warn!(reason, "{text}");
        }
        self.reason = Some(format!("{text}: {reason}"));
        self.until = Some(Instant::now() + self.backoff.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The broker answers a correction.
    fn answer(topics: &mut Topics, topic: &str, verdict: Verdict) {
        let (topic, payload) = (topic.to_owned(), Bytes::from("1"));
        let tag = topics.take_tag();
        topics.unanswered.insert(tag, Unanswered { topic, payload, is_correction: true });
        topics.answered(tag, verdict);
    }

    fn refused() -> Verdict {
        Verdict::Refused("not authorized".into())
    }

    #[test]
    fn what_the_broker_refuses_is_named_until_it_is_accepted() {
        let mut topics = Topics::default();
        topics.retained.begin(false);
        for topic in ["a", "b"] {
            topics.retained.published(topic, &"1".into());
        }
        assert_eq!(topics.refusals.text(), None);
        answer(&mut topics, "a", refused());
        assert_eq!(topics.refusals.text().unwrap(), "a is refused: not authorized");
        answer(&mut topics, "b", refused());
        let both = "a is refused: not authorized; and 1 more";
        assert_eq!(topics.refusals.text().unwrap(), both);
        // It is published again after a while, and named meanwhile.
        let again = topics.due().unwrap();
        assert!(again <= Instant::now() + WAIT.1);
        assert_eq!(topics.retained.next_correction(again), None);
        topics.publish_refused_again();
        assert_eq!(topics.retained.next_correction(again), Some(("a".into(), "1".into())));
        assert_eq!(topics.refusals.text().unwrap(), both);
        answer(&mut topics, "a", Verdict::Accepted);
        assert_eq!(topics.refusals.text().unwrap(), "b is refused: not authorized");
        answer(&mut topics, "b", Verdict::Accepted);
        assert_eq!(topics.refusals.text(), None);
    }

    #[test]
    fn what_is_refused_is_named_over_a_new_connection_until_it_is_out_of_date() {
        let mut topics = Topics::default();
        topics.begin(false);
        topics.retained.published("a", &"1".into());
        answer(&mut topics, "a", refused());
        let reason = topics.refusals.text();
        assert!(reason.is_some());
        topics.begin(false);
        assert_eq!(topics.refusals.text(), reason);
        assert!(topics.due().is_some_and(|due| due > Instant::now()));
        // Nothing is published there over this connection.
        topics.publish_refused_again();
        assert_eq!(topics.refusals.text(), None);
    }

    #[test]
    fn a_refused_correction_is_no_refusal_when_the_right_value_is_there_again() {
        let mut topics = Topics::default();
        topics.begin(false);
        for topic in ["a", "b"] {
            topics.retained.published(topic, &"1".into());
            answer(&mut topics, topic, refused());
        }
        let message = |payload: &'static str| Message {
            topic: "a".into(),
            payload: payload.into(),
            retain: true,
            duplicate: false,
            response_topic: None,
            correlation: None,
        };
        let named = |topics: &Topics| topics.refusals.by_topic.keys().cloned().collect::<String>();
        topics.received(&message("2"));
        assert_eq!(named(&topics), "ab");
        topics.received(&message("1"));
        assert_eq!(named(&topics), "b");
    }
}
