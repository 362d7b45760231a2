//! The tasks of one sink: its events, and, each on a connection of its own, its state and its
//! commands.

use std::{collections::BTreeSet, sync::Arc};

use tokio::sync::watch;

use crate::{
    base::supervisor::Factory,
    channel::store::StateStore,
    command::{self, CommandQueue},
    config::SinkConfig,
    delivery::{health::TaskHealth, status::Status, task},
    journal::Journal,
    publish::{self, Publishing, scope::Scope},
    sink::{Opening, Purpose},
};

/// What the tasks of a sink need besides its configuration.
#[derive(Debug, Clone)]
pub struct Services {
    pub journal: Journal,
    pub status: Arc<Status>,
    pub store: Arc<StateStore>,
    /// The configured sinks, now.
    pub sinks: watch::Receiver<BTreeSet<String>>,
    pub commands: CommandQueue,
}

const STATE: &str = "state of sink ";
const COMMANDS: &str = "commands of sink ";

/// The names that a sink's tasks may have.
pub(crate) fn names(sink: &str) -> [String; 3] {
    [task::PREFIX, STATE, COMMANDS].map(|of| format!("{of}{sink}"))
}

/// Whether a task reports itself whether it works.
pub(crate) fn reports_itself(task: &str) -> bool {
    [task::PREFIX, STATE, COMMANDS].iter().any(|of| task.starts_with(of))
}

/// What makes them, over and over, by name.
pub(crate) fn factories(
    services: &Services,
    name: &str,
    config: &SinkConfig,
) -> Vec<(String, Factory)> {
    let of_events = task::Services {
        journal: services.journal.clone(),
        status: Arc::clone(&services.status),
        sinks: services.sinks.clone(),
    };
    let mut tasks = vec![(task::name(name), task::factory(&of_events, name, config))];
    if let Some(kind) = publish::kind(&config.kind).filter(|kind| (kind.publishes)(config)) {
        tasks.push((format!("{STATE}{name}"), state(kind, services, name, config)));
    }
    tasks.extend(commands(services, name, config));
    tasks
}

/// The task that listens for a sink's commands, where it has one.
pub(crate) fn commands(
    services: &Services,
    name: &str,
    config: &SinkConfig,
) -> Option<(String, Factory)> {
    let kind = command::listener(&config.kind).filter(|_| config.takes_commands())?;
    let task = format!("{COMMANDS}{name}");
    let health = TaskHealth::new(Arc::clone(&services.status), task.clone());
    Some((task, kind.factory(&services.commands, health, name, config)))
}

fn state(
    kind: &'static publish::Kind,
    services: &Services,
    name: &str,
    config: &SinkConfig,
) -> Factory {
    let Services { journal, status, store, .. } = services.clone();
    let health = Arc::new(TaskHealth::new(Arc::clone(&status), format!("{STATE}{name}")));
    let (name, config) = (name.to_owned(), config.clone());
    Box::new(move |stop| {
        let settings = config.settings.clone();
        let opening = Opening { name: &name, settings, config: &config, purpose: Purpose::Relay };
        let publisher = (kind.open)(opening).map_err(|error| error.to_string())?;
        let scope = Scope::of(&name, &config).map_err(|error| error.to_string())?;
        let state = (Arc::clone(&store), journal.clone());
        let reports = (Arc::clone(&status), Arc::clone(&health));
        let publishing = Publishing::new((&name, &config), publisher, scope, state, reports);
        Ok(Box::pin(publishing.map_err(|error| error.to_string())?.run(stop)))
    })
}
