//! The gateway: all wanted subscriptions, spread over as few connections as its limits allow.
//!
//! What is *wanted* comes in through a watch and may change at any time; what has become of it is in one
//! [`table::Table`]; what comes in goes through one [`intake::Intake`] into the journal. Both outlive a
//! gateway that fails. No socket is owned here: each link owns one.

mod activities;
mod gaps;
mod hub;
pub mod intake;
mod link;
mod pool;
pub mod seen;
pub mod table;
pub mod targets;

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use tokio::{sync::watch, time::interval};
use tokio_util::sync::CancellationToken;
use tracing::warn;

pub use self::{
    activities::LATE,
    gaps::{Away, GapClock},
    targets::{Account, RefreshSettings, Targets},
};
use self::{hub::Hub, intake::Intake, pool::Pool, table::Table};
use crate::{
    base::{
        clock::{self, Moment},
        event::{Origin, Record},
    },
    config::{Astro, ConfigError},
    journal::Opened,
};

/// The gateway wakes at least this often: the supervisor sees that it is alive, and it sees that the wall
/// clock has stepped.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// Messages of the run before that are remembered, so that a duplicate over a restart is recognised.
const REMEMBERED_RUN: usize = 4096;

#[derive(Debug)]
pub struct Gateway {
    hub: Arc<Hub>,
    targets: watch::Receiver<Targets>,
}

impl Away {
    /// What the journal says of it when it is opened.
    pub fn of(opened: &Opened) -> Option<Self> {
        let time = opened.downtime.filter(|_| opened.downtime_is_certain);
        opened.heartbeat.map(|at| Self { at, time })
    }
}

impl Gateway {
    /// A gateway that keeps what `targets` says, now and later. Reads the journal.
    pub fn new(
        config: &Astro,
        table: Arc<Table>,
        intake: Arc<Intake>,
        targets: watch::Receiver<Targets>,
    ) -> Result<Self, ConfigError> {
        let mut server_time = None;
        let read = intake.journal().newest(REMEMBERED_RUN, |Record { event, .. }| {
            intake.remember(event);
            if event.origin == Origin::Live && !event.place.topic.starts_with("relay.") {
                server_time = clock::parse_rfc3339(&event.ts).or(server_time);
            }
        });
        match read {
            Ok(()) => table.server_time_before(server_time),
            // Duplicates over the restart are then recognised by the destinations only.
            Err(error) => warn!(%error, "the events before the start cannot be read"),
        }
        let hub = Arc::new(Hub::new(config, table, intake, targets.clone())?);
        hub.report_gaps(hub.table.want(&targets.borrow().subscriptions));
        hub.table.restart();
        hub.remember_gaps();
        Ok(Self { hub, targets })
    }

    /// The relay did not run: that is a gap for all that is wanted.
    pub fn was_away(&self, away: Away) {
        for subscription in &self.targets.borrow().subscriptions {
            self.hub.table.was_away(subscription, away);
        }
        self.hub.remember_gaps();
    }

    /// The same where the journal could be opened only after the start, and says only now when the relay last ran.
    /// What is confirmed already was missing until then.
    fn was_away_before(&self) {
        let wanted = {
            let targets = self.targets.borrow();
            let is_known = !targets.subscriptions.is_empty() || !targets.elsewhere.is_empty();
            if !is_known && !targets.channels.is_empty() {
                // A member of a cluster does not know yet what it holds.
                return;
            }
            targets.subscriptions.clone()
        };
        let opened = self.hub.intake.journal().take_last_run();
        let Some(away) = opened.as_ref().and_then(Away::of) else { return };
        let wanted: Vec<_> = wanted.iter().collect();
        self.hub.report_gaps(self.hub.table.was_away_before(&wanted, away));
    }

    /// Keeps the connections until it is stopped.
    pub async fn run(mut self, stop: CancellationToken) {
        let hub = Arc::clone(&self.hub);
        let mut pool = Pool::new(Arc::clone(&hub), stop.clone());
        let mut alive = interval(HEARTBEAT);
        self.targets.mark_changed();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Ok(()) = self.targets.changed() => {
                    let wanted = self.targets.borrow_and_update().subscriptions.clone();
                    pool.want(&wanted);
                }
                () = hub.overflowed.notified() => pool.collect(),
                () = clock::until(pool.collect_at) => pool.move_overflow(),
                Some(number) = pool.running.next() => pool.ended(number),
                _ = alive.tick() => {
                    self.was_away_before();
                    hub.remember_gaps();
                }
            }
        }
        // What comes from here on may not be received any more, however long the relay takes to end.
        let stopped = Moment::now();
        let missing = || hub.table.longest_gap().unwrap_or_default().max(stopped.elapsed());
        hub.intake.journal().set_unreported_gap(Some(missing()));
        while pool.running.next().await.is_some() {}
        hub.intake.journal().set_unreported_gap(Some(missing()));
    }
}
