//! Makes the task of one sink, over and over, for a supervisor.
//!
//! Whoever adds and removes sinks ([`crate::app`]) gives a name and a configuration and gets a factory.
//! When a sink that is no longer configured has ended, what was kept for it is taken away here.

use std::{collections::BTreeSet, sync::Arc};

use tokio::sync::watch;

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
    journal::Journal,
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
pub struct Services {
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
    let opening = Opening { name, settings: config.settings.clone(), config, purpose };
    Ok(((kind.open)(opening)?, route))
}

/// Makes a sink's task, over and over.
pub(crate) fn factory(services: &Services, name: &str, config: &SinkConfig) -> Factory {
    let maker = Maker::new(services, name, config);
    Box::new(move |stop| {
        let journal = maker.guard.services.journal.clone();
        let source = JournalSource::new(journal, &maker.guard.name, maker.config.start);
        let delivery = maker.make(Arc::new(source.map_err(|error| error.to_string())?))?;
        Ok(Box::pin(delivery.run(stop)))
    })
}

/// Makes the deliveries of a sink, whatever their source. What was kept for the sink is removed with it.
pub(crate) struct Maker {
    guard: DrainGuard,
    config: SinkConfig,
}

impl Maker {
    pub(crate) fn new(services: &Services, name: &str, config: &SinkConfig) -> Self {
        // Nobody is ready before it has begun.
        services.status.sink(name, |page| {
            if page.state.is_empty() {
                page.kind.clone_from(&config.kind);
                page.state = "connecting";
                page.since = clock::now();
            }
        });
        let guard = DrainGuard { services: services.clone(), name: name.to_owned() };
        Self { guard, config: config.clone() }
    }

    /// A delivery out of that source. May block.
    pub(crate) fn make(&self, source: Arc<dyn Source>) -> Result<Delivery, String> {
        let (DrainGuard { services, name }, config) = (&self.guard, &self.config);
        let (sink, route) =
            open_sink(name, config, Purpose::Relay).map_err(|error| error.to_string())?;
        let status = Arc::clone(&services.status);
        Ok(Delivery::from_source(name, config, sink, route, source, status))
    }

    /// This member is to drive the sink, and cannot read the log yet.
    pub(crate) fn takes_over(&self) {
        let DrainGuard { services, name } = &self.guard;
        services.status.sink(name, |page| {
            page.state = "connecting";
            page.since = clock::now();
        });
    }

    /// Another member of the cluster drives the sink.
    pub(crate) fn stands_by(&self) {
        let DrainGuard { services, name } = &self.guard;
        services.status.sink(name, |page| {
            page.kind.clone_from(&self.config.kind);
            page.state = STANDBY;
            page.since = clock::now();
            page.last_error = None;
            page.forget_findings();
        });
        metrics::sink_stands_by(name);
    }
}

/// Removes what was kept for a sink when the supervisor drops its task, however that ended.
struct DrainGuard {
    services: Services,
    name: String,
}

impl Drop for DrainGuard {
    fn drop(&mut self) {
        let Self { services: Services { journal, status, sinks, .. }, name } = self;
        if sinks.borrow().contains(name) {
            return;
        }
        // It is no longer configured: its page goes, and its cursor holds nothing back any more. The
        // cursor itself stays, for a sink of this name that comes back.
        status.no_sink(name);
        journal.unregister(name);
        metrics::no_sink(name);
    }
}
