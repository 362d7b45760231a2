//! The tasks of one sink: its events, and, each on a connection of its own, its state.

use std::sync::Arc;

use crate::{
    base::supervisor::Factory,
    config::SinkConfig,
    delivery::{route::Route, task},
    gateway::health::TaskHealth,
    publish::{self, Publishing},
    sink::{self, Opening, Purpose},
};

pub(crate) use crate::delivery::task::Services;

const STATE: &str = "state of sink ";

/// The names that a sink's tasks may have.
pub(crate) fn names(sink: &str) -> [String; 2] {
    [task::name(sink), format!("{STATE}{sink}")]
}

/// Whether a task reports itself whether it works.
pub(crate) fn reports_itself(task: &str) -> bool {
    task.starts_with(task::PREFIX) || task.starts_with(STATE)
}

/// What makes them, over and over, by name.
pub(crate) fn factories(
    services: &Services,
    name: &str,
    config: &SinkConfig,
) -> Vec<(String, Factory)> {
    let mut tasks = vec![(task::name(name), task::factory(services, name, config))];
    if let Some(kind) = publish::kind(&config.kind).filter(|kind| (kind.publishes)(config)) {
        tasks.push((format!("{STATE}{name}"), state(kind, services, name, config)));
    }
    tasks
}

fn state(
    kind: &'static publish::Kind,
    services: &Services,
    name: &str,
    config: &SinkConfig,
) -> Factory {
    let Services { journal, status, board, .. } = services.clone();
    let health = Arc::new(TaskHealth::new(Arc::clone(&status), format!("{STATE}{name}")));
    let (name, config) = (name.to_owned(), config.clone());
    Box::new(move |stop| {
        let settings = config.settings.clone();
        let opening = Opening { name: &name, settings, config: &config, purpose: Purpose::Relay };
        let publisher = (kind.open)(opening).map_err(|error| error.to_string())?;
        let kind = sink::kind(&config.kind).ok_or("there is no such kind of sink")?;
        let route = Route::new(&name, &config, kind).map_err(|error| error.to_string())?;
        let state = (Arc::clone(&board), journal.clone());
        let reports = (&*status, Arc::clone(&health));
        let publishing = Publishing::new((&name, &config), publisher, route, state, reports);
        Ok(Box::pin(publishing.map_err(|error| error.to_string())?.run(stop)))
    })
}
