//! Makes the task of one sink, over and over, for a supervisor.
//!
//! Whoever adds and removes sinks ([`crate::app`]) gives a name and a configuration and gets a factory.
//! When a sink that is no longer configured has ended, what was kept for it is taken away here.

use std::{collections::BTreeSet, sync::Arc};

use tokio::sync::watch;
use tracing::warn;

use super::{
    Delivery,
    route::Route,
    source::{JournalSource, Source},
    status::STANDBY,
};
use crate::{
    base::{clock, metrics, supervisor::Factory},
    config::{ConfigError, SinkConfig},
    delivery::status::Status,
    journal::{Journal, LeftBehind},
    sink::{self, Opening, Purpose, Sink},
};

/// What the name of a sink's task begins with.
pub(crate) const PREFIX: &str = "sink ";

/// The name of a sink's task.
pub(crate) fn name(sink: &str) -> String {
    format!("{PREFIX}{sink}")
}

/// What the task of a sink's events needs besides its configuration.
#[derive(Debug, Clone)]
pub struct DeliveryServices {
    pub journal: Journal,
    pub status: Arc<Status>,
    /// The configured sinks, now.
    pub sinks: watch::Receiver<BTreeSet<String>>,
}

/// Makes a sink and its route; connects to nothing.
pub fn open_sink(
    name: &str,
    config: &SinkConfig,
    purpose: Purpose,
) -> Result<(Box<dyn Sink>, Route), ConfigError> {
    let kind = sink::kind(&config.kind).ok_or_else(|| {
        let known: Vec<_> = sink::KINDS.iter().map(|kind| kind.name).collect();
        let message = format!("there is no kind {:?}; known: {}", config.kind, known.join(", "));
        ConfigError::at(&["sinks", name, "type"], message)
    })?;
    let route = Route::new(name, config, kind)?;
    Ok(((kind.open)(&Opening { name, config, purpose })?, route))
}

/// Makes a sink's task, over and over.
pub(crate) fn factory(services: &DeliveryServices, name: &str, config: &SinkConfig) -> Factory {
    let (journal, sink) = (services.journal.clone(), name.to_owned());
    let left_behind = move || journal.left_behind().into_iter().find(|left| left.sink == sink);
    let maker = Maker::new(services, name, config, Box::new(left_behind));
    Box::new(move |stop| {
        let journal = maker.services.journal.clone();
        let source = JournalSource::new(journal, &maker.name, maker.config.start);
        let delivery = maker.make(Arc::new(source.map_err(|error| error.to_string())?))?;
        Ok(Box::pin(delivery.run(stop)))
    })
}

/// Answers what waits for a sink that is no longer configured.
type FindLeftBehind = Box<dyn Fn() -> Option<LeftBehind> + Send + Sync>;

/// Makes the deliveries of a sink, whatever their source. What was kept for the sink is removed when the
/// supervisor drops its task, however that ended.
pub(crate) struct Maker {
    services: DeliveryServices,
    name: String,
    config: SinkConfig,
    left_behind: FindLeftBehind,
}

impl Maker {
    /// `left_behind` is asked when the sink is no longer configured.
    pub(crate) fn new(
        services: &DeliveryServices,
        name: &str,
        config: &SinkConfig,
        left_behind: FindLeftBehind,
    ) -> Self {
        // Nobody is ready before it has begun.
        services.status.sink(name, |row| {
            if row.state.is_empty() {
                row.kind.clone_from(&config.kind);
                row.state = "connecting";
                row.since = clock::now();
            }
        });
        let (services, config) = (services.clone(), config.clone());
        Self { services, name: name.to_owned(), config, left_behind }
    }

    /// A delivery out of that source. May block.
    pub(crate) fn make(&self, source: Arc<dyn Source>) -> Result<Delivery, String> {
        let Self { services, name, config, .. } = self;
        let (sink, route) =
            open_sink(name, config, Purpose::Relay).map_err(|error| error.to_string())?;
        let status = Arc::clone(&services.status);
        Ok(Delivery::from_source(name, config, sink, route, source, status))
    }

    /// This member is to drive the sink, and cannot read the log yet.
    pub(crate) fn takes_over(&self) {
        self.services.status.sink(&self.name, |row| {
            row.state = "connecting";
            row.since = clock::now();
        });
    }

    /// Another member of the cluster drives the sink.
    pub(crate) fn stands_by(&self) {
        self.services.status.sink(&self.name, |row| {
            row.kind.clone_from(&self.config.kind);
            row.state = STANDBY;
            row.since = clock::now();
            row.forget_findings();
            row.state_remarks.clear();
        });
        metrics::sink_stands_by(&self.name);
    }
}

impl Drop for Maker {
    fn drop(&mut self) {
        let Self { services: DeliveryServices { journal, status, sinks }, name, .. } = self;
        if sinks.borrow().contains(name) {
            return;
        }
        // It is no longer configured: its row goes, and its cursor holds nothing back any more. The
        // cursor itself stays, for a sink of this name that comes back.
        journal.unregister(name);
        status.no_sink(name);
        metrics::no_sink(name);
        if let Some(left) = (self.left_behind)() {
            warn_of_left_behind(&left);
        }
    }
}

/// Says what waits for a sink that is no longer configured.
pub(crate) fn warn_of_left_behind(left: &LeftBehind) {
    let LeftBehind { sink, events, dead_letters, .. } = left;
    if *events > 0 {
        warn!(
            %sink, events,
            "events wait for a sink that is no longer configured: a sink of this name gets them, as long as \
             the journal keeps them"
        );
    }
    if *dead_letters > 0 {
        warn!(
            %sink, dead_letters,
            "dead letters wait for a sink that is no longer configured: `retry` needs a sink of this name, \
             `astro-relay dead-letters drop` deletes them"
        );
    }
}
