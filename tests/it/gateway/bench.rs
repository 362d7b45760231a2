//! A gateway between a simulated Astro and a journal.

use std::{sync::Arc, time::Duration};

use astro_relay::{
    astro::session::{Refusal, Subscription, SubscriptionState},
    base::{
        clock::{self, UnixMillis},
        event::Event,
    },
    config::{Astro, Period, SecretRef, TokenType},
    gateway::{
        Account, Gateway, Targets,
        intake::Intake,
        table::{State, SubscriptionRow, Table},
    },
    http::relay_status::Snapshot,
    journal::Journal,
};
use astro_sim::{ConnectionRecord, Options, Sim};
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::SOON;
use crate::support::wait::until;

/// What the journal of a bench may hold in memory: all that a test sends.
const MEMORY: usize = 256 << 20;

/// Channel, topic, room.
pub type Want<'a> = (&'a str, &'a str, Option<&'a str>);

/// A gateway at work.
pub struct Bench {
    pub sim: Sim,
    pub journal: Journal,
    pub table: Arc<Table>,
    pub targets: watch::Sender<Targets>,
    astro: Astro,
    intake: Arc<Intake>,
    stop: CancellationToken,
    running: AbortOnDropHandle<()>,
}

/// A period of so many milliseconds.
pub fn millis(millis: u64) -> Period {
    Period(Duration::from_millis(millis))
}

/// Targets with the token `t` for every channel.
pub fn targets(wants: &[Want<'_>]) -> Targets {
    let mut targets = Targets::default();
    for (channel, topic, room) in wants {
        let token = SecretRef::Value("t".into());
        let account = Account {
            token,
            token_type: TokenType::Jwt,
            room: room.map(Into::into),
            known_room: room.map(Into::into),
            refresh: None,
        };
        targets.channels.insert((*channel).into(), account);
        targets.subscriptions.push(Arc::new(Subscription {
            channel: (*channel).into(),
            topic: (*topic).into(),
            room: room.map(Into::into),
            token_type: TokenType::Jwt,
            token_room: None,
        }));
    }
    targets
}

/// So many topics of one room.
pub fn topics(number: usize) -> Targets {
    let names: Vec<_> = (0..number).map(|n| format!("topic.number{n}")).collect();
    let wants: Vec<_> = names.iter().map(|name| ("main", &**name, Some(super::ROOM))).collect();
    targets(&wants)
}

impl Bench {
    /// A gateway with the default figures, but a short grace for the welcome.
    pub async fn start(options: Options, wants: &[Want<'_>]) -> Self {
        Self::with(options, targets(wants), |_| {}).await
    }

    /// A gateway with other figures.
    pub async fn with(options: Options, targets: Targets, change: impl FnOnce(&mut Astro)) -> Self {
        let sim = Sim::start(([127, 0, 0, 1], 0).into(), options).await.unwrap();
        Self::at(sim, targets, change)
    }

    /// A gateway for a simulation that runs.
    pub fn at(sim: Sim, targets: Targets, change: impl FnOnce(&mut Astro)) -> Self {
        astro_relay::base::tls::install_provider();
        let mut astro = Astro { url: sim.url(), welcome_grace: millis(300), ..Astro::default() };
        change(&mut astro);
        let journal = Journal::in_memory(MEMORY);
        let table: Arc<Table> = Arc::default();
        let (targets, inbox) = watch::channel(targets);
        let intake = Arc::new(Intake::new(journal.clone()));
        let gateway = Gateway::new(&astro, Arc::clone(&table), Arc::clone(&intake), inbox).unwrap();
        let stop = CancellationToken::new();
        let running = spawn(gateway.run(stop.clone()));
        Self { sim, journal, table, targets, astro, intake, stop, running }
    }

    /// Lets the gateway fail, without a last word, and starts another as the supervisor would.
    pub async fn fail(&mut self) {
        self.running.abort();
        until("it has ended", SOON, async || self.running.is_finished().then_some(())).await;
        let (table, intake) = (Arc::clone(&self.table), Arc::clone(&self.intake));
        let gateway = Gateway::new(&self.astro, table, intake, self.targets.subscribe()).unwrap();
        self.running = spawn(gateway.run(self.stop.clone()));
    }

    /// Stops the gateway and waits until it has.
    pub async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(SOON, self.running).await.expect("it stops").unwrap();
    }

    pub fn state(&self) -> State {
        self.table.snapshot()
    }

    /// Why the relay is not ready.
    pub fn reasons(&self) -> Vec<String> {
        let mut snapshot = Snapshot::default();
        snapshot.gateway = self.state();
        snapshot.reasons()
    }

    /// The row of a subscription that has a connection.
    pub fn row(&self, topic: &str) -> Option<SubscriptionRow> {
        let state = self.state();
        let mut rows = state.assigned().filter(|(subscription, _)| &*subscription.topic == topic);
        rows.next().map(|(_, row)| row.clone())
    }

    /// Why the gateway refused a subscription.
    pub fn refusal(&self, topic: &str) -> Option<Refusal> {
        match self.row(topic)?.state {
            SubscriptionState::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }

    /// When the last frame came on a connection.
    pub fn heard(&self, connection: u64) -> Option<UnixMillis> {
        let at = self.state().connections[&connection].last_frame?;
        Some(clock::ago(at.elapsed()))
    }

    /// How many subscriptions are in the state of that name.
    pub fn count(&self, state: &str) -> usize {
        self.state().assigned().filter(|(_, row)| row.state.as_str() == state).count()
    }

    /// Waits until exactly so many subscriptions are confirmed.
    pub async fn confirmed(&self, number: usize) {
        self.confirmed_within(number, SOON).await;
    }

    pub async fn confirmed_within(&self, number: usize, deadline: Duration) {
        until(&format!("{number} subscriptions stand"), deadline, async || {
            (self.count("confirmed") == number).then_some(())
        })
        .await;
    }

    /// What stands in the journal, in order.
    pub async fn events(&self) -> Vec<Event> {
        let last = self.journal.figures().last;
        let batch = self.journal.read(0, last, usize::MAX, usize::MAX).await.unwrap();
        assert_eq!(batch.lost, 0, "the journal is large enough");
        batch.records.iter().map(|record| record.event.clone()).collect()
    }

    /// Waits until exactly so many events stand in the journal, the relay's own included.
    pub async fn received(&self, number: usize) -> Vec<Event> {
        until(&format!("{number} events"), SOON, async || {
            (self.journal.figures().last >= number as u64).then_some(())
        })
        .await;
        let events = self.events().await;
        assert_eq!(events.len(), number, "{events:?}");
        events
    }

    /// The gaps that were told, as their data.
    pub async fn gaps(&self) -> Vec<Value> {
        let gaps =
            self.events().await.into_iter().filter(|event| &*event.place.topic == "relay.gap");
        gaps.map(|event| serde_json::from_slice(event.data()).unwrap()).collect()
    }

    /// The connection of this number, counted from 1 as the simulation does.
    pub fn connection(&self, number: u64) -> Option<ConnectionRecord> {
        self.sim.connections().into_iter().find(|record| record.id == number)
    }

    /// Publishes the number `n`, and waits until it is the last event of the journal.
    pub async fn carries(&self, topic: &str, room: &str, n: u64) {
        self.sim.publish(topic, room, n);
        until(&format!("{topic} {n} is carried"), SOON, async || {
            let events = self.events().await;
            events.last().is_some_and(|last| last.data() == n.to_string().as_bytes()).then_some(())
        })
        .await;
    }
}

/// A task that ends with the test.
#[expect(clippy::disallowed_methods, reason = "a test's own task")]
pub fn spawn(work: impl Future<Output = ()> + Send + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(work))
}
