//! Events to an MQTT broker, in version 5 or 3.1.1.
//!
//! The sink drives the client's connection itself: `deliver` keeps up to `inflight` events unanswered
//! and polls until the broker has answered for all of the batch; `idle` polls for the keep-alive. An
//! event of QoS 1 or 2 counts as accepted when its PUBACK or PUBCOMP has come; QoS 0 has no answer,
//! there the batch is confirmed by one round trip behind it.
//!
//! With `state`, the live state is kept as retained messages, one topic each. The last will is then the
//! relay's own status among them, in place of the availability topic: a connection has one will. What is
//! retained of ours is subscribed, so that it is put right when somebody else writes over it.
//!
//! The one thing to know: the journal is what sends again, never the client. On any error the client
//! is dropped with all that it holds, and the next connection begins with a clean session.
//!
//! The same `client_id` on every connection is part of that: by it the broker ends what is left of
//! the connection before, so that nothing old arrives behind what is sent next.

mod command;
pub(crate) mod connection;
mod flight;
mod home;
mod inbox;
mod link;
pub(crate) mod lost;
mod patience;
pub(crate) mod settings;
mod suspicion;
mod target;
mod together;
pub(crate) mod topic;
mod v4;
mod v5;
mod watch;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use schemars::schema_for;
use tokio::time::{Instant, timeout};

use self::{
    command::Taker,
    flight::{Flight, Signal, Verdict},
    home::Discovery,
    link::{Dial, Link, Terms, Unsent, Will},
    lost::{Lost, Why},
    patience::Patience,
    settings::{Retain, Settings, Version},
    suspicion::Suspicion,
    target::Target,
    topic::escape,
    watch::Watch,
};
use super::{
    Address, Cause, Failure, Kind, Opening, Outgoing, Part, Permission, Purpose, Sink, address,
    ahead::OutOfOrderAcks,
    batched::{BatchSink, Batched},
    prefix::Prefix,
    settings,
};
use crate::{
    base::{
        clock::Moment,
        event::Seq,
        template::{Condition, View},
        tls::{client_config, prepare},
    },
    channel::board::{self, Path, Section},
    command::Desk,
    config::{ConfigError, Period},
    publish::homeassistant::{self, HaDiscovery},
};

/// The row of this kind.
pub(super) const KIND: Kind = Kind {
    name: "mqtt",
    summary: "an MQTT broker, version 5 or 3.1.1",
    address: Some(Address { key: |_| "topic", separator: '/', default: |_| DEFAULT_TOPIC, escape }),
    usual_url: Some("mqtt://127.0.0.1:1883"),
    demo: Some(super::Demo { settings: "{}", watch: "mosquitto_sub -v -t 'astro/#'" }),
    session: true,
    secrets: &["password"],
    schema: || schema_for!(Settings),
    keeps: true,
    open,
    validate: Some(together::validate),
    probe: None,
};

const DEFAULT_TOPIC: &str = "astro/{{ channel }}/{{ topic | replace('.', '/') }}";

/// What the availability topic says while the relay is connected.
const ONLINE: &[u8] = b"online";
/// What it says otherwise; the words are those that Home Assistant expects.
const OFFLINE: &[u8] = b"offline";

/// The client has ended.
const CLOSED: &str = "the client takes nothing more";

/// What we have the broker keep, as a remark names it.
const RETAINED: &str = "whether others write over what it keeps of ours";

/// Which events the broker keeps, compiled.
#[derive(Debug)]
enum Keep {
    Always(bool),
    When(Condition),
}

struct Mqtt {
    settings: Settings,
    timeout: Duration,
    client_id: String,
    /// Empty: none.
    availability: String,
    /// Where the state goes; `None`: it goes nowhere.
    prefix: Option<Prefix>,
    keep: Keep,
    /// Nothing while there is no connection, and while a batch is under way: a delivery that is
    /// given up takes the connection with it.
    link: Option<Link>,
    terms: Terms,
    flight: Flight,
    /// What was accepted behind an event that was refused.
    ahead: OutOfOrderAcks,
    suspicion: Suspicion,
    patience: Patience,
    watch: Watch,
    /// The last event that was handed to this connection; 0 before the first.
    last_handed: Seq,
    /// Up to this event one is sent at a time: the connection was lost with these in flight, and one
    /// of them may be why.
    careful_until: Seq,
    /// In QoS 0: events of the batch that a round trip has confirmed, and whether more are on their way.
    confirmed: (usize, bool),
    /// What the broker does not let us hear, as far as it was told.
    deaf: Vec<&'static str>,
    /// Events for which the expression of `retain` could not be evaluated.
    retain_errors: u64,
    /// Nothing where no commands are taken.
    commands: Option<Taker>,
    /// Nothing where Home Assistant is none of our business.
    discovery: Option<Discovery>,
}

#[expect(clippy::needless_pass_by_value, reason = "the signature is that of the row")]
fn open(opening: Opening<'_>) -> Result<Box<dyn Sink>, ConfigError> {
    let settings: Settings = settings(&opening)?;
    let at = |key, message| ConfigError::at(&["sinks", opening.name, key], message);
    settings.check().map_err(|(key, message)| at(key, message))?;
    let keep = match &settings.retain {
        Retain::Always(always) => Keep::Always(*always),
        Retain::When(text) => {
            Keep::When(Condition::compile(text).map_err(|error| at("retain", error))?)
        }
    };
    let name = opening.name;
    let mut client_id = match &settings.client_id {
        Some(client_id) => client_id.clone(),
        None => homeassistant::client_id(name, &opening.settings),
    };
    let mut prefix = None;
    if opening.config.state {
        if settings.availability_topic.as_deref().is_some_and(|topic| !topic.is_empty()) {
            let message = "with state = true the relay's status takes the place of this topic: it has \
                           the one last will that a connection can have";
            return Err(at("availability_topic", message.into()));
        }
        prefix = Some(settings.prefix().map_err(|error| at("state_topic", error))?);
    } else if settings.state_topic.is_some() {
        return Err(at("state_topic", "is of use only with state = true".into()));
    }
    let mut discovery = None;
    if settings.homeassistant.is_some() {
        let home = HaDiscovery::of(opening.config, &client_id, escape, &settings.commands);
        discovery = Some(Discovery::new(home.map_err(|error| at("state_topic", error))?));
    }
    let mut availability = match (&prefix, &settings.availability_topic) {
        (Some(_), _) => String::new(),
        (None, Some(topic)) => topic.clone(),
        (None, None) => format!("astro/relay/{name}/availability"),
    };
    // That is published over a connection of its own.
    (prefix, discovery) = (None, None);
    if opening.purpose == Purpose::Probe {
        // A second client of the same id would throw the relay off the broker.
        client_id.push_str("-visit");
        availability.clear();
    }
    Ok(Batched::boxed(Mqtt {
        timeout: opening.config.timeout.0,
        client_id,
        availability,
        prefix,
        keep,
        link: None,
        terms: Terms { max_qos: 2, retain: true, wildcards: true, receive_max: 1 },
        flight: Flight::default(),
        ahead: OutOfOrderAcks::default(),
        suspicion: Suspicion::default(),
        patience: Patience::default(),
        watch: Watch::default(),
        last_handed: 0,
        careful_until: 0,
        confirmed: (0, false),
        deaf: Vec::new(),
        retain_errors: 0,
        commands: None,
        discovery,
        settings,
    }))
}

#[async_trait]
impl BatchSink for Mqtt {
    async fn connect(&mut self) -> Result<(), Failure> {
        self.link = None;
        self.ahead.clear();
        self.flight = Flight::default();
        self.last_handed = 0;
        let now = Moment::now();
        if let (Some(wait), Some(reason)) =
            (self.patience.wait(now), self.patience.remark(&self.client_id, now))
        {
            return Err(Failure::after(0, Cause::Busy { wait: Some(wait), reason }));
        }
        match self.dial().await {
            Ok((link, terms)) => {
                self.terms = terms;
                self.link = Some(link);
                Ok(())
            }
            Err(lost) => {
                self.patience.ended(lost.why, Moment::now());
                Err(lost.failure())
            }
        }
    }

    async fn deliver(&mut self, batch: &[Outgoing]) -> Result<(), Failure> {
        let mut link = self.link.take().ok_or_else(|| Failure::down("not connected"))?;
        if let Err(lost) = self.carry(&mut link, batch).await {
            let accepted = if self.qos() == 0 { self.confirmed.0 } else { self.flight.accepted() };
            self.ended(&lost, batch.get(accepted));
            self.ahead.reported(batch.get(..accepted).unwrap_or_default());
            return Err(Failure::after(accepted, broken(lost)));
        }
        self.link = Some(link);
        self.outcome(batch)
    }

    async fn keep(&mut self, parts: &[Part]) -> Result<(), Failure> {
        if parts.is_empty() {
            // The last will tells of our end.
            return Ok(());
        }
        let mut link = self.link.take().ok_or_else(|| Failure::down("not connected"))?;
        let mut sent = self.retain(&mut link, parts).await;
        if sent.is_ok() {
            sent = self.kept(&mut link, parts);
        }
        if let Err(lost) = sent {
            let accepted = if self.qos() == 0 { 0 } else { self.flight.accepted() };
            self.ended(&lost, None);
            return Err(Failure::after(accepted, broken(lost)));
        }
        self.link = Some(link);
        let accepted = self.flight.accepted();
        if accepted >= parts.len() {
            return Ok(());
        }
        let cause = match self.flight.verdict(accepted) {
            Verdict::Busy(reason) => Cause::Busy { wait: None, reason },
            Verdict::Refused(reason) => Cause::Rejected { reason },
            Verdict::Pending | Verdict::Accepted => Cause::Down("an answer is missing".into()),
        };
        Err(Failure::after(accepted, cause))
    }

    async fn idle(&mut self) -> Failure {
        // Safe to drop: a poll that is given up goes on with the next, and all else waits for nothing.
        let qos = self.qos().min(1);
        while let Some(mut link) = self.link.take() {
            if let Err(lost) = self.say(&mut link) {
                self.ended(&lost, None);
                return Failure::after(0, broken(lost));
            }
            let link = self.link.insert(link);
            let room = self.flight.answers() < command::ANSWERS;
            let done = tokio::select! {
                signal = link.poll() => signal.map(|signal| self.flight.note(signal)),
                answer = Taker::next(&mut self.commands), if room => {
                    command::send(link, &mut self.flight, &answer, qos)
                }
                () = home::due(self.discovery.as_ref(), self.watch.due()), if room => Ok(()),
            };
            if let Err(lost) = done {
                self.link = None;
                self.ended(&lost, None);
                return Failure::after(0, broken(lost));
            }
        }
        Failure::down("not connected")
    }

    fn watches_state(&self) -> bool {
        !self.flight.is_deaf() && !self.deaf.contains(&RETAINED)
    }

    async fn may_publish(&mut self, address: &str) -> Result<Permission, Failure> {
        if self.settings.version == Version::V3 {
            return Ok(Permission::Unknown("MQTT 3.1.1 has no word for a refusal"));
        }
        if self.qos() == 0 {
            return Ok(Permission::Unknown("QoS 0 has no answer"));
        }
        let canary = format!("{address}/{}", address::CANARY);
        let mut lost = Lost::from("not connected");
        // mosquitto 2.0.11 now and then ends the connection at a denied message instead of answering
        // it. Asked again, alone on a new one, this cannot be for any other reason.
        for again in [false, true] {
            if again {
                self.connect().await?;
            }
            let Some(mut link) = self.link.take() else { continue };
            let asked = timeout(self.timeout, ask(&mut link, &canary)).await;
            match asked.map_err(|_| Failure::down(self.silence()))? {
                Ok(permission) => {
                    self.link = Some(link);
                    return Ok(permission);
                }
                Err(error) => lost = error,
            }
        }
        self.connect().await?;
        Ok(address::denied(&lost.to_string(), &canary))
    }

    fn take_commands(&mut self, desk: &Desk) {
        self.commands = Taker::new(desk, &self.settings.commands);
    }

    async fn close(&mut self) {
        if let Some(mut link) = self.link.take()
            && let Err(error) = self.take_leave(&mut link).await
        {
            tracing::debug!(%error, "the broker was gone before the farewell");
        }
    }

    fn tally(&mut self) -> Vec<(&'static str, u64)> {
        vec![("retain_errors", std::mem::take(&mut self.retain_errors))]
    }

    fn remarks(&self) -> Vec<String> {
        let Settings { version, qos, inflight, .. } = &self.settings;
        let mut remarks = Vec::new();
        remarks.extend(self.patience.remark(&self.client_id, Moment::now()));
        remarks.extend(self.watch.remark(Instant::now()));
        remarks.extend(self.deaf.iter().map(|what| format!("the broker lets us not hear {what}")));
        if *qos == 0 {
            remarks
                .push("qos 0: the broker confirms a batch by a round trip, no single event".into());
        } else {
            remarks.push(
                "an acknowledgement means that the broker has the event, not that it is on disk: \
                 mosquitto keeps it across a crash only with persistence, autosave_on_changes and \
                 autosave_interval 1"
                    .into(),
            );
        }
        if *version == Version::V3 {
            remarks.push(
                "MQTT 3.1.1: no metadata beside the payload, and the broker cannot say that it \
                 refused an event"
                    .into(),
            );
        }
        if self.terms.max_qos < *qos {
            remarks.push(format!("the broker takes QoS {} at most", self.terms.max_qos));
        }
        if self.link.is_some() && self.terms.receive_max < usize::from(*inflight) {
            remarks.push(format!("the broker takes {} events in flight", self.terms.receive_max));
        }
        if !self.terms.retain {
            remarks.push("the broker keeps no retained messages".into());
        }
        remarks
    }
}

impl Mqtt {
    /// What was asked for, as far as the broker takes it.
    fn qos(&self) -> u8 {
        self.settings.qos.min(self.terms.max_qos)
    }

    async fn dial(&mut self) -> Result<(Link, Terms), Lost> {
        let ear = self.commands.as_mut().map(Taker::ear);
        let settings = &self.settings;
        let tls = if Target::parse(&settings.url)?.is_tls() {
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
        let dial = Dial {
            settings,
            client_id: &self.client_id,
            will: self.will()?,
            password,
            tls,
            ear,
            listens: self.discovery.is_some()
                || self.prefix.is_some()
                || !self.availability.is_empty(),
        };
        let (mut link, terms) = Link::connect(&dial).await?;
        self.patience.connected(Moment::now());
        // At least once is what is promised, so 1 does for 2; but 0 is less than was asked for.
        if terms.max_qos == 0 && settings.qos > 0 {
            return Err(Lost::new(Why::Denied, "the broker takes no QoS above 0: set qos = 0"));
        }
        if !terms.retain && self.prefix.is_some() {
            return Err(no_retained("state"));
        }
        if !terms.retain && settings.retain == Retain::Always(true) {
            return Err(no_retained("retain"));
        }
        self.watch.begin(link.echoes());
        let qos = settings.qos.min(1).min(terms.max_qos);
        let mut deaf = Vec::new();
        if let Some(ear) = &dial.ear
            && !listen(&mut link, command::filters(ear).collect(), 1).await?
        {
            deaf.push("commands");
        }
        if let Some(discovery) = self.discovery.as_mut().filter(|_| terms.retain)
            && !home::look(discovery, &mut link).await?
        {
            deaf.push("what was announced to Home Assistant");
        }
        if !self.availability.is_empty() && terms.retain {
            announce(&mut link, &self.availability, ONLINE, qos).await?;
            self.watch.said(&self.availability, &Bytes::from_static(ONLINE));
            // From version 3.1.1 it comes back as it stands, which is no harm.
            if !listen(&mut link, vec![self.availability.clone()], qos).await? {
                deaf.push(RETAINED);
            }
        }
        if self.prefix.is_some() && !terms.wildcards {
            deaf.push(RETAINED);
        }
        if !deaf.is_empty() && deaf != self.deaf {
            tracing::warn!(?deaf, "the broker does not let us hear this; all else goes on");
        }
        self.deaf = deaf;
        Ok((link, terms))
    }

    /// The parts of the state that the broker has taken are watched from now on, and their entities are
    /// announced.
    fn kept(&mut self, link: &mut Link, parts: &[Part]) -> Result<(), Lost> {
        let Some(prefix) = &self.prefix else { return Ok(()) };
        let topics = parts.iter().map(|part| topic::of_state(prefix, &part.path));
        let topics = topics.collect::<Result<Vec<_>, _>>()?;
        for message in link.inbox().take() {
            // What was heard there until now was written over by what has just been said.
            if !topics.contains(&message.topic) {
                self.hear(&message);
            }
        }
        let mut filters = Vec::new();
        for (place, (part, topic)) in parts.iter().zip(&topics).enumerate() {
            if !self.flight.has_accepted(place) {
                continue;
            }
            self.watch.said(topic, part.payload.as_ref().unwrap_or(&Bytes::new()));
            let filter = match topic.rsplit_once('/') {
                Some((above, _)) if !part.path.name.is_empty() => format!("{above}/+"),
                _ => topic.clone(),
            };
            if self.terms.wildcards && self.watch.is_new(&filter) {
                filters.push(filter);
            }
            if let Some(discovery) = &mut self.discovery {
                discovery.keep(part, topic);
            }
        }
        if !filters.is_empty() {
            let qos = self.settings.qos.min(1).min(self.terms.max_qos);
            link.subscribe(filters, qos).map_err(|_| CLOSED)?;
        }
        Ok(())
    }

    fn hear(&mut self, message: &inbox::Message) {
        if let Some(discovery) = &mut self.discovery {
            discovery.hear(&message.topic, &message.payload, Instant::now());
        }
        self.watch.hear(message);
    }

    /// Hands to the client what is to be published now beside events and state, as far as it has room,
    /// after looking at what came.
    fn say(&mut self, link: &mut Link) -> Result<(), Lost> {
        for message in link.inbox().take() {
            self.hear(&message);
        }
        let (now, qos) = (Instant::now(), self.qos().min(1));
        while self.terms.retain && self.flight.answers() < command::ANSWERS {
            let announced = self.discovery.as_mut().and_then(|discovery| discovery.next(now));
            let is_new = announced.is_some();
            let Some((topic, payload)) = announced.or_else(|| self.watch.next(now)) else { break };
            match link.announce(&topic, payload.clone(), qos) {
                Ok(()) => {
                    self.flight.hand_answer();
                    if is_new {
                        self.watch.said(&topic, &payload);
                    }
                    self.watch.handed(&topic, &payload);
                }
                Err(Unsent::Refused(reason)) => {
                    tracing::warn!(topic, reason, "this cannot be announced");
                }
                Err(Unsent::Closed) => return Err(CLOSED.into()),
            }
        }
        Ok(())
    }

    /// The connection was lost before the broker had answered for `first`. Some brokers end it at an
    /// event that they do not like, and what they had answered for before is lost with it: so what was
    /// in flight is sent one at a time from now on, and what ends it alone is suspected.
    fn ended(&mut self, lost: &Lost, first: Option<&Outgoing>) {
        let now = Moment::now();
        let in_flight = self.flight.outstanding() > 0 || self.confirmed.1;
        let mut suspected = false;
        if let Some(first) = first.filter(|_| in_flight) {
            let seq = first.record.seq;
            if self.last_handed == seq && self.flight.is_alone() {
                self.suspicion.ended(seq, lost.why, &lost.to_string(), now);
                suspected = self.suspicion.ends(seq) > 1;
            }
            self.careful_until = self.careful_until.max(self.last_handed);
        }
        // An event at which it ended before is reason enough; a rival would not wait for it.
        if !suspected || lost.why == Why::TakenOver {
            self.patience.ended(lost.why, now);
        }
    }

    /// What the broker says for us when the connection breaks off.
    fn will(&self) -> Result<Option<Will>, Lost> {
        if let Some(prefix) = &self.prefix {
            let path = Path::relay(Section::Status);
            let payload = path.payload(&board::offline("connection lost"));
            return Ok(Some(Will { topic: topic::of_state(prefix, &path)?, payload }));
        }
        let availability = Some(&self.availability).filter(|topic| !topic.is_empty());
        Ok(availability
            .map(|topic| Will { topic: topic.clone(), payload: Bytes::from_static(OFFLINE) }))
    }

    async fn take_leave(&mut self, link: &mut Link) -> Result<(), Lost> {
        // What was executed to the last is answered.
        let qos = self.qos().min(1);
        while self.flight.answers() < command::ANSWERS
            && let Some(answer) = Taker::ready(&mut self.commands)
        {
            command::send(link, &mut self.flight, &answer, qos)?;
        }
        // A graceful farewell makes the broker forget the last will, so it has to be said.
        if !self.availability.is_empty() && self.terms.retain {
            let qos = self.qos().min(1);
            announce(link, &self.availability, OFFLINE, qos).await?;
        }
        link.disconnect().map_err(|_| CLOSED)?;
        while link.poll().await? != Signal::Disconnected {}
        Ok(())
    }

    /// Sends the batch and waits until the broker has answered for all that was sent. An event that
    /// is not accepted ends the sending, so that no more than the window is sent past it.
    async fn carry(&mut self, link: &mut Link, batch: &[Outgoing]) -> Result<(), Lost> {
        self.flight.begin(batch.len());
        self.ahead.begin(batch);
        self.confirmed = (0, false);
        let qos = self.qos();
        // An event that may end the connection goes alone, or something else would share the blame.
        if batch.first().is_none_or(|first| first.record.seq > self.careful_until) {
            while self.flight.answers() < command::ANSWERS
                && let Some(answer) = Taker::ready(&mut self.commands)
            {
                command::send(link, &mut self.flight, &answer, qos.min(1))?;
            }
            self.say(link)?;
        }
        let window = usize::from(self.settings.inflight).min(self.terms.receive_max);
        let mut waiting = batch.iter().enumerate();
        loop {
            while self.flight.outstanding() < window
                && !self.flight.hindered()
                && (!self.is_in_flight() || self.last_handed > self.careful_until)
                && let Some((place, outgoing)) = waiting.next()
            {
                self.hand(link, place, outgoing, qos)?;
                self.confirmed.1 = qos == 0;
            }
            if !self.is_in_flight() {
                break;
            }
            if self.flight.outstanding() > 0 {
                self.answered(link).await?;
            } else {
                self.confirmed(link, qos).await?;
                self.confirmed = (batch.len() - waiting.len(), false);
            }
        }
        Ok(())
    }

    /// Whether anything of the batch is on its way and neither answered nor confirmed.
    fn is_in_flight(&self) -> bool {
        self.flight.outstanding() > 0 || self.confirmed.1
    }

    /// Publishes parts of the state as retained messages; an empty one clears. What cannot be sent is
    /// refused and hinders no other: they need no order among them.
    async fn retain(&mut self, link: &mut Link, parts: &[Part]) -> Result<(), Lost> {
        self.flight.begin(parts.len());
        self.confirmed = (0, false);
        let qos = self.settings.qos.min(1).min(self.terms.max_qos);
        let window = usize::from(self.settings.inflight).min(self.terms.receive_max);
        let mut waiting = parts.iter().enumerate();
        loop {
            while self.flight.outstanding() < window
                && let Some((place, part)) = waiting.next()
            {
                let prefix = self.prefix.as_ref().ok_or("no state is kept here")?;
                let payload = part.payload.clone().unwrap_or_default();
                let topic = topic::of_state(prefix, &part.path)?;
                match link.announce(&topic, payload.clone(), qos) {
                    Ok(()) => {
                        self.flight.hand(place);
                        self.watch.handed(&topic, &payload);
                    }
                    Err(Unsent::Refused(reason)) => {
                        self.flight.settle(place, Verdict::Refused(reason));
                    }
                    Err(Unsent::Closed) => return Err(CLOSED.into()),
                }
            }
            if self.flight.outstanding() == 0 {
                break;
            }
            self.answered(link).await?;
        }
        self.confirmed(link, qos).await
    }

    /// Waits until the broker has answered for at least one more.
    async fn answered(&mut self, link: &mut Link) -> Result<(), Lost> {
        // The keep-alive is no answer: a broker may say that it is there and do nothing else.
        let answered = timeout(self.timeout, answered(&mut self.flight, link));
        answered.await.map_err(|_| self.silence())?
    }

    /// Waits until the broker has read all that was sent without being answered for.
    async fn confirmed(&mut self, link: &mut Link, qos: u8) -> Result<(), Lost> {
        if qos > 0 {
            return Ok(());
        }
        let confirmed = timeout(self.timeout, confirm(&mut self.flight, link));
        confirmed.await.map_err(|_| self.silence())?
    }

    fn silence(&self) -> Lost {
        format!("the broker has not answered within {}", Period(self.timeout)).into()
    }

    /// Hands one event to the client, unless it is known what becomes of it.
    fn hand(
        &mut self,
        link: &Link,
        place: usize,
        outgoing: &Outgoing,
        qos: u8,
    ) -> Result<(), Lost> {
        if self.ahead.has(outgoing) {
            self.flight.settle(place, Verdict::Accepted);
            return Ok(());
        }
        let retain = self.keeps(outgoing);
        if retain && !self.terms.retain {
            let reason = "the broker keeps no retained messages".into();
            self.flight.settle(place, Verdict::Refused(reason));
            return Ok(());
        }
        if let Some(reason) = self.suspicion.against(outgoing.record.seq) {
            self.flight.settle(place, Verdict::Refused(reason));
            return Ok(());
        }
        self.publish(link, place, outgoing, qos, retain)?;
        if let Some(beside) = &outgoing.beside {
            let (address, payload) = (Arc::clone(&beside.address), beside.payload.clone());
            let content_type = "application/json";
            let told =
                Outgoing { address, payload, content_type, beside: None, ..outgoing.clone() };
            // What happened is never kept: whoever comes late must not take it for news.
            self.publish(link, place, &told, qos, false)?;
        }
        Ok(())
    }

    fn publish(
        &mut self,
        link: &Link,
        place: usize,
        outgoing: &Outgoing,
        qos: u8,
        retain: bool,
    ) -> Result<(), Lost> {
        match link.publish(outgoing, qos, retain) {
            Ok(()) => {
                self.flight.hand(place);
                self.last_handed = outgoing.record.seq;
            }
            Err(Unsent::Refused(reason)) => self.flight.settle(place, Verdict::Refused(reason)),
            Err(Unsent::Closed) => return Err(CLOSED.into()),
        }
        Ok(())
    }

    fn keeps(&mut self, outgoing: &Outgoing) -> bool {
        match &self.keep {
            Keep::Always(always) => *always,
            Keep::When(condition) => {
                condition.holds(&View::of(Arc::clone(&outgoing.record))).unwrap_or_else(|_| {
                    self.retain_errors += 1;
                    false
                })
            }
        }
    }

    /// What the answers mean for the batch.
    fn outcome(&mut self, batch: &[Outgoing]) -> Result<(), Failure> {
        let accepted = self.flight.accepted();
        self.ahead.reported(batch.get(..accepted).unwrap_or_default());
        if accepted > 0 {
            self.suspicion.accepted();
        }
        let Some(outgoing) = batch.get(accepted) else { return Ok(()) };
        let reason = match self.flight.verdict(accepted) {
            Verdict::Refused(reason) => {
                if self.suspicion.against(outgoing.record.seq).is_some() {
                    self.suspicion.blame();
                }
                addressed(&reason, outgoing)
            }
            Verdict::Busy(reason) => {
                // What is behind it is sent again, with it: order before economy.
                return Err(Failure::after(accepted, Cause::Busy { wait: None, reason }));
            }
            Verdict::Pending | Verdict::Accepted => {
                return Err(Failure::after(accepted, Cause::Down("an answer is missing".into())));
            }
        };
        for (place, outgoing) in batch.iter().enumerate().skip(accepted + 1) {
            if self.flight.verdict(place) == Verdict::Accepted {
                self.ahead.accepted(outgoing);
            }
        }
        Err(Failure::after(accepted, Cause::Rejected { reason }))
    }
}

/// Waits until the broker has answered for at least one event more.
async fn answered(flight: &mut Flight, link: &mut Link) -> Result<(), Lost> {
    let before = flight.outstanding();
    while flight.outstanding() >= before {
        let signal = link.poll().await?;
        flight.note(signal);
        while let Some(signal) = link.ready() {
            flight.note(signal);
        }
    }
    Ok(())
}

/// Waits until the broker has read all that was sent: a connection is read in order, so the answer to
/// a question behind it tells.
async fn confirm(flight: &mut Flight, link: &mut Link) -> Result<(), Lost> {
    link.barrier("astro-relay/nothing").map_err(|_| CLOSED)?;
    loop {
        match link.poll().await? {
            Signal::Barrier => return Ok(()),
            signal => flight.note(signal),
        }
    }
}

/// Subscribes and waits until the broker has answered; says whether it lets us hear all of it. Without
/// what is subscribed the sink does the rest of its work all the same.
async fn listen(link: &mut Link, filters: Vec<String>, qos: u8) -> Result<bool, Lost> {
    if filters.is_empty() {
        return Ok(true);
    }
    link.subscribe(filters, qos).map_err(|_| CLOSED)?;
    loop {
        if let Signal::Subscribed(refused) = link.poll().await? {
            return Ok(refused == 0);
        }
    }
}

/// The cause of a failure where a connection stood: whatever the broker wants, it has to be made anew.
fn broken(lost: Lost) -> Cause {
    match lost.why {
        Why::Denied => lost.cause(),
        _ => Cause::Down(lost.into()),
    }
}

/// A reason with the address that it is about.
fn addressed(reason: &str, outgoing: &Outgoing) -> String {
    const SHOWN: usize = 200;
    let short = |topic: &str| match topic.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", topic.get(..end).unwrap_or_default()),
        None => topic.to_owned(),
    };
    match &outgoing.beside {
        None => format!("{reason}; topic {}", short(&outgoing.address)),
        Some(beside) => format!(
            "{reason}; topic {} or, for Home Assistant, {}",
            short(&outgoing.address),
            short(&beside.address)
        ),
    }
}

fn no_retained(key: &str) -> Lost {
    let text = format!("the broker keeps no retained messages: set {key} = false");
    Lost::new(Why::Denied, text)
}

/// Publishes nothing at `topic`, for nobody to keep, and waits for what the broker says to it.
async fn ask(link: &mut Link, topic: &str) -> Result<Permission, Lost> {
    link.nothing(topic).map_err(|_| CLOSED)?;
    loop {
        match link.poll().await? {
            Signal::Answered(_, Verdict::Accepted) => return Ok(Permission::Granted),
            Signal::Answered(_, Verdict::Refused(reason)) => {
                return Ok(address::denied(&reason, topic));
            }
            Signal::Answered(..) => return Ok(Permission::Unknown("the broker says: not now")),
            _ => {}
        }
    }
}

/// Says `text` on the availability topic and waits until the broker has it.
async fn announce(link: &mut Link, topic: &str, text: &'static [u8], qos: u8) -> Result<(), Lost> {
    link.announce(topic, Bytes::from_static(text), qos).map_err(|_| CLOSED)?;
    loop {
        match link.poll().await? {
            Signal::Sent(0) => return Ok(()),
            Signal::Answered(_, verdict) => {
                if verdict != Verdict::Accepted {
                    tracing::warn!(topic, ?verdict, "the broker does not take our availability");
                }
                return Ok(());
            }
            _ => {}
        }
    }
}
