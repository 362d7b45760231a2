//! Events to an MQTT broker, in version 5 or 3.1.1.
//!
//! An event of QoS 1 or 2 counts as accepted when its PUBACK or PUBCOMP has come. QoS 0 has no answer;
//! there the events are confirmed by a round trip behind them ([`qos0`]).
//!
//! The journal is what sends again, never the client library: on any error the connection is dropped with
//! all that it holds, and the next begins with a clean session. The same client id on every connection is
//! part of that: by it the broker ends what is left of the connection before, so that nothing old arrives
//! behind what is sent next.
//!
//! State, Home Assistant and commands have connections of their own, in [`crate::publish`] and
//! [`crate::command`]; they use the [`connection`] layer that stands here.

mod availability;
pub(crate) mod connection;
mod library;
pub(crate) mod lost;
pub(crate) mod probe;
mod qos0;
mod retain;
pub(crate) mod settings;
mod takeover;
mod target;
mod together;
pub(crate) mod topic;

use std::time::Duration;

use async_trait::async_trait;
use schemars::schema_for;
use tokio::time::{Instant, timeout_at};

use self::{
    availability::Availability,
    connection::{Connection, ConnectionOptions, Event, Publication, Tag, Unsent, Verdict},
    lost::{Lost, Why},
    qos0::Unconfirmed,
    retain::RetainPolicy,
    settings::{DEFAULT_TOPIC, Settings},
    takeover::TakeoverGuard,
    topic::escape,
};
use super::{Address, Cause, Failure, Kind, Opening, Outgoing, Report, Sink, in_flight::InFlight};
use crate::{
    base::{
        clock::{self, Moment},
        event::Seq,
        text::excerpt,
    },
    config::{ConfigError, Period},
};

pub(super) const KIND: Kind = Kind {
    name: "mqtt",
    summary: "an MQTT broker, version 5 or 3.1.1",
    address: Some(Address { key: |_| "topic", separator: '/', default: |_| DEFAULT_TOPIC, escape }),
    usual_url: Some("mqtt://127.0.0.1:1883"),
    demo: Some(super::Demo {
        settings: "{}",
        watch: "mosquitto_sub -v -t 'astro/#'",
        stream: None,
    }),
    session: true,
    secrets: &["password"],
    schema: || schema_for!(Settings),
    open,
    validate: Some(together::validate),
    probe: Some(probe::probe),
};

/// Bytes of a topic that a reason shows.
const TOPIC_SHOWN: usize = 200;

/// The DISCONNECT may take so long beyond the time that events were given.
const DISCONNECT: Duration = Duration::from_secs(1);

struct Mqtt {
    settings: Settings,
    timeout: Duration,
    client_id: String,
    retain: RetainPolicy,
    availability: Option<Availability>,
    takeover: TakeoverGuard,
    connection: Option<Connection>,
    flight: Flight,
    facts: Vec<String>,
}

/// What is in flight, and how it goes.
#[derive(Default)]
struct Flight {
    events: InFlight,
    /// In QoS 0.
    unconfirmed: Unconfirmed,
    /// The one topic of all events, where there is only one. Home Assistant's have topics of their own.
    only_topic: Option<String>,
    /// At one of them the broker has asked for patience, or denied the topic of all.
    blocked: bool,
    /// Up to this event one is sent at a time: at one of these the broker ended the connection or took
    /// nothing, and may again. With more in flight it would accept later ones before that one, or its
    /// answers would be lost: the client drops those that it reads together with the end.
    serialise_until: Seq,
    last_sent: Seq,
    /// When something was last sent or answered.
    progress: Option<Instant>,
}

fn open(opening: &Opening<'_>) -> Result<Box<dyn Sink>, ConfigError> {
    let settings = Settings::read(opening)?;
    let at = |key, message| ConfigError::at(&["sinks", opening.name, key], message);
    let retain = RetainPolicy::compile(&settings.retain).map_err(|error| at("retain", error))?;
    let flight = Flight { only_topic: settings.only_topic(), ..Flight::default() };
    Ok(Box::new(Mqtt {
        timeout: opening.config.timeout.0,
        client_id: settings.client_id(opening),
        retain,
        availability: settings.availability(opening).map(Availability::new),
        takeover: TakeoverGuard::default(),
        connection: None,
        flight,
        facts: Vec::new(),
        settings,
    }))
}

#[async_trait]
impl Sink for Mqtt {
    async fn connect(&mut self) -> Result<(), Failure> {
        self.connection = None;
        self.flight.clear();
        self.takeover.check(&self.client_id, Moment::now())?;
        match self.dial().await {
            Ok(connection) => {
                self.connection = Some(connection);
                Ok(())
            }
            Err(lost) => {
                self.takeover.ended(lost.why, None, Moment::now());
                Err(lost.failure())
            }
        }
    }

    async fn send(&mut self, events: &[Outgoing]) -> Result<usize, Failure> {
        let mut sent = 0;
        for event in events {
            let Some(connection) = &self.connection else { return Err(self.not_connected()) };
            if !self.flight.has_room(connection, event) {
                break;
            }
            if let Err(lost) = self.enqueue(event) {
                return Err(self.ended(lost));
            }
            sent += 1;
        }
        if sent > 0 {
            self.flight.progress = Some(Instant::now());
        }
        Ok(sent)
    }

    async fn acknowledged(&mut self) -> Result<usize, Failure> {
        loop {
            let Some(connection) = &self.connection else { return Err(self.not_connected()) };
            if let Some(outcome) = self.flight.report(connection) {
                return outcome;
            }
            if let Err(lost) = self.advance().await {
                return Err(self.ended(lost));
            }
        }
    }

    async fn close(&mut self, until: Instant) -> Vec<(Seq, u8)> {
        while self.flight.is_unanswered() && self.connection.is_some() {
            match timeout_at(until, self.advance()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => break,
            }
        }
        if let Some(connection) = self.connection.take() {
            let leave = leave(connection, self.availability.as_ref(), self.settings.qos);
            let left = timeout_at(until + DISCONNECT, leave).await;
            if !matches!(left, Ok(Ok(()))) {
                tracing::debug!("the connection to the broker ended without a DISCONNECT");
            }
        }
        self.flight.events.accepted()
    }

    fn report(&mut self) -> Report {
        let facts = self.facts();
        let news = (facts != self.facts).then(|| facts.clone());
        self.facts = facts;
        Report { counts: vec![("retain_errors", self.retain.take_errors())], facts: news }
    }
}

impl Mqtt {
    fn qos(&self) -> u8 {
        self.connection.as_ref().map_or(self.settings.qos, |one| one.qos(self.settings.qos))
    }

    async fn dial(&mut self) -> Result<Connection, Lost> {
        let options = ConnectionOptions {
            settings: &self.settings,
            client_id: &self.client_id,
            will: self.availability.as_ref().map(Availability::will),
            receives: self.availability.is_some(),
        };
        let mut connection = Connection::open(&options).await?;
        self.takeover.connected(Moment::now());
        let terms = connection.terms();
        // At least once is what is promised, so 1 does for 2; but 0 is less than was asked for.
        if terms.max_qos == 0 && self.settings.qos > 0 {
            return Err(Lost::new(Why::Denied, "the broker takes no QoS above 0: set qos = 0"));
        }
        if !terms.retain && self.retain.is_always() {
            let text = "the broker keeps no retained messages: set retain = false";
            return Err(Lost::new(Why::Denied, text));
        }
        if let Some(availability) = self.availability.as_mut().filter(|_| terms.retain) {
            availability.announce(&mut connection, self.settings.qos).await?;
        }
        Ok(connection)
    }

    /// Hands one event to the client, unless it is known what becomes of it.
    fn enqueue(&mut self, event: &Outgoing) -> Result<(), Lost> {
        let Some(number) = self.flight.events.push(event) else { return Ok(()) };
        let qos = self.qos();
        let retain = self.retain.applies(event);
        let Some(connection) = &mut self.connection else { return Err(lost::client_ended()) };
        let published = if retain && !connection.terms().retain {
            Err(Unsent::Refused("the broker keeps no retained messages".into()))
        } else {
            let properties = user_properties(event);
            let publication = Publication {
                topic: &event.address,
                payload: event.payload.clone(),
                qos,
                retain,
                content_type: Some(event.content_type),
                expires_in: event.expires_in.map(|time| time.left().unwrap_or_default()),
                correlation: None,
                user_properties: &properties,
            };
            connection.publish(publication, number)
        };
        match published {
            Ok(()) => self.flight.last_sent = event.record.seq,
            Err(Unsent::Refused(reason)) => self.flight.rejected(number, &reason),
            Err(Unsent::Lost(lost)) => return Err(lost),
        }
        Ok(())
    }

    /// Waits until something happens on the connection, or an answer is overdue, and deals with it. Safe
    /// to drop.
    async fn advance(&mut self) -> Result<(), Lost> {
        let qos = self.qos();
        let overdue = self.flight.progress.filter(|_| self.flight.is_unanswered());
        let overdue = overdue.map(|since| since + self.timeout);
        let correction = self.availability.as_ref().and_then(Availability::correction_due);
        let Some(connection) = &mut self.connection else { return Err(lost::client_ended()) };
        self.flight.unconfirmed.request(connection)?;
        let mut event = tokio::select! {
            biased;
            event = connection.next() => Some(event?),
            // The keep-alive is no answer: a broker may say that it is there and do nothing else.
            () = clock::until(overdue) => {
                let text = format!("the broker has not answered within {}", Period(self.timeout));
                return Err(text.into());
            }
            () = clock::until(correction) => {
                if let Some(availability) = &mut self.availability {
                    availability.correct(connection, qos)?;
                }
                None
            }
        };
        let mut answered = false;
        while let Some(one) = event {
            match one {
                Event::Answered(availability::TAG, verdict) => {
                    answered = true;
                    if let Some(availability) = &mut self.availability {
                        availability.answered(&verdict);
                    }
                }
                Event::Answered(number, verdict) => {
                    answered = true;
                    self.flight.answered(number, verdict);
                }
                Event::Written(number) => {
                    answered = true;
                    self.flight.unconfirmed.written(number);
                }
                Event::Unsubscribed => {
                    answered = true;
                    for number in self.flight.unconfirmed.confirmed() {
                        self.flight.events.answered(number, Ok(()));
                    }
                }
                Event::Received(message) => {
                    if let Some(availability) = &mut self.availability {
                        availability.received(&message, connection.terms());
                    }
                }
                Event::Subscribed { .. } | Event::Disconnected | Event::Other => {}
            }
            event = connection.ready();
        }
        if answered {
            self.flight.progress = Some(Instant::now());
        }
        Ok(())
    }

    /// The connection is lost.
    fn ended(&mut self, lost: Lost) -> Failure {
        self.connection = None;
        self.flight.unconfirmed.clear();
        let (oldest, alone) = {
            let mut unanswered = self.flight.events.unanswered();
            (unanswered.next(), unanswered.next().is_none())
        };
        self.takeover.ended(lost.why, oldest.map(|(_, seq)| seq), Moment::now());
        let Some((number, _)) = oldest else { return self.flight.fail(lost.cause_of_end()) };
        self.flight.serialise();
        if !matches!(lost.why, Why::Closed | Why::Event) {
            return self.flight.fail(lost.cause_of_end());
        }
        if lost.why == Why::Closed {
            return self.flight.fail(Cause::closed(lost));
        }
        if alone {
            // The broker has said that it will never take this one.
            self.flight.rejected(number, &lost.to_string());
            if let Some(Err(failure)) = self.flight.events.report() {
                return failure;
            }
        }
        self.flight.fail(lost.cause_of_end())
    }

    fn not_connected(&mut self) -> Failure {
        self.flight.fail(Cause::Down("not connected".into()))
    }

    /// What an operator should know of this broker.
    fn facts(&self) -> Vec<String> {
        let mut facts = Vec::new();
        facts.extend(self.takeover.fact(&self.client_id, Moment::now()));
        let Some(connection) = &self.connection else { return facts };
        let terms = connection.terms();
        if terms.max_qos < self.settings.qos {
            facts.push(format!("the broker takes QoS {} at most", terms.max_qos));
        }
        if terms.receive_max < usize::from(self.settings.inflight) {
            facts.push(format!("the broker takes {} events in flight", terms.receive_max));
        }
        if !terms.retain {
            facts.push("the broker keeps no retained messages".into());
        }
        facts.extend(self.availability.as_ref().and_then(Availability::fact));
        facts
    }
}

impl Flight {
    /// Whether this event may be sent now.
    fn has_room(&mut self, connection: &Connection, event: &Outgoing) -> bool {
        if self.events.is_empty() {
            if event.record.seq > self.serialise_until {
                self.serialise_until = 0;
            }
            return true;
        }
        self.serialise_until == 0 && !self.blocked && connection.has_room()
    }

    /// What was sent until now goes out one at a time from here on.
    fn serialise(&mut self) {
        self.serialise_until = self.serialise_until.max(self.last_sent);
    }

    fn is_unanswered(&self) -> bool {
        self.events.unanswered().next().is_some()
    }

    fn answered(&mut self, number: Tag, verdict: Verdict) {
        let Some(topic) = self.events.address(number) else { return };
        let is_only_topic = self.only_topic.as_deref() == Some(topic);
        match verdict {
            Verdict::Accepted => self.events.answered(number, Ok(())),
            Verdict::Busy(reason) => self.block(number, Cause::Busy { wait: None, reason }),
            Verdict::Denied(reason) if is_only_topic => {
                let reason = self.with_topic(number, &reason);
                self.block(number, Cause::Denied { reason });
            }
            Verdict::Refused(reason) | Verdict::Denied(reason) => self.rejected(number, &reason),
            Verdict::Pending => {}
        }
    }

    fn rejected(&mut self, number: Tag, reason: &str) {
        let reason = self.with_topic(number, reason);
        self.events.answered(number, Err(Cause::Rejected { reason }));
    }

    /// The broker takes this one later, and perhaps the others: the next attempt shows it with one event.
    fn block(&mut self, number: Tag, cause: Cause) {
        self.blocked = true;
        self.serialise();
        self.events.answered(number, Err(cause));
    }

    fn with_topic(&self, number: Tag, reason: &str) -> String {
        let topic = excerpt(self.events.address(number).unwrap_or_default(), TOPIC_SHOWN);
        format!("{reason}; topic {topic}")
    }

    /// What can be reported by now. Where one is not taken now, what is behind that event is answered first,
    /// so that nothing that the broker accepts is sent again.
    fn report(&mut self, connection: &Connection) -> Option<Result<usize, Failure>> {
        if self.blocked && connection.outstanding() > 0 {
            return None;
        }
        let outcome = self.events.report();
        if let Some(Err(failure)) = &outcome
            && !matches!(failure.cause, Cause::Rejected { .. })
        {
            self.blocked = false;
        }
        outcome
    }

    fn fail(&mut self, cause: Cause) -> Failure {
        let failure = self.events.fail(cause);
        self.clear();
        failure
    }

    fn clear(&mut self) {
        self.events.clear();
        self.unconfirmed.clear();
        self.blocked = false;
    }
}

async fn leave(
    mut connection: Connection,
    availability: Option<&Availability>,
    qos: u8,
) -> Result<(), Lost> {
    // The broker drops the last will of a client that disconnects, so that has to be published.
    if let Some(availability) = availability.filter(|_| connection.terms().retain) {
        availability.withdraw(&mut connection, qos).await?;
    }
    connection.disconnect()?;
    while connection.next().await? != Event::Disconnected {}
    Ok(())
}

/// The metadata of an event, without what is empty.
fn user_properties(event: &Outgoing) -> Vec<(&str, &str)> {
    let event = &event.record.event;
    let all = [
        ("id", event.key()),
        ("topic", &*event.place.topic),
        ("room", &*event.place.room),
        ("channel", &*event.place.channel),
        ("ts", &*event.ts),
        ("origin", event.origin.as_str()),
    ];
    all.into_iter().filter(|(_, value)| !value.is_empty()).collect()
}
