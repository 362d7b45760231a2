//! The tasks of one sink: its events, and, each on a connection of its own, its state and its
//! commands.

use std::{collections::BTreeSet, sync::Arc};

use tokio::sync::watch;

use crate::{
    base::supervisor::{Factory, Stage},
    channel::store::StateStore,
    cluster::{Cluster, driver, log::LogSource},
    command::{self, CommandQueue},
    config::SinkConfig,
    delivery::{health::TaskHealth, status::Status, task},
    journal::{Journal, LeftBehind},
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
    /// This relay's part in a cluster; without one it is alone.
    pub cluster: Option<Cluster>,
}

const STATE: &str = "state of sink ";
const COMMANDS: &str = "commands of sink ";
const LEASE: &str = "lease of sink ";

/// The names that a sink's tasks may have.
pub(crate) fn names(sink: &str) -> [String; 4] {
    [task::PREFIX, STATE, COMMANDS, LEASE].map(|of| format!("{of}{sink}"))
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
) -> Vec<(String, Stage, Factory)> {
    let of_events = task::DeliveryServices {
        journal: services.journal.clone(),
        status: Arc::clone(&services.status),
        sinks: services.sinks.clone(),
    };
    let events = match &services.cluster {
        None => task::factory(&of_events, name, config),
        Some(cluster) => from_log(cluster, &of_events, name, config),
    };
    let mut tasks = vec![(task::name(name), Stage::Delivery, events)];
    if let Some(cluster) = &services.cluster {
        // Given back when all others have ended.
        let lease = driver::factory(cluster, &cluster.lease_of(name));
        tasks.push((format!("{LEASE}{name}"), Stage::Display, lease));
    }
    if let Some(kind) = publish::kind(&config.kind).filter(|kind| (kind.publishes)(config)) {
        let state = while_driven(services, name, state(kind, services, name, config));
        tasks.push((format!("{STATE}{name}"), Stage::Delivery, state));
    } else {
        services.status.sink(name, |row| row.state_remarks.clear());
    }
    tasks.extend(commands(services, name, config));
    tasks
}

/// In a cluster a task works only while this member drives the sink.
fn while_driven(services: &Services, name: &str, factory: Factory) -> Factory {
    match &services.cluster {
        None => factory,
        Some(cluster) => {
            driver::while_driven(cluster.lease_of(name), Box::new(move |_, stop| factory(stop)))
        }
    }
}

/// The events of a sink out of the log of the cluster.
fn from_log(
    cluster: &Cluster,
    services: &task::DeliveryServices,
    name: &str,
    config: &SinkConfig,
) -> Factory {
    let (journal, status) = (services.journal.clone(), Arc::clone(&services.status));
    let (shared, sink) = (cluster.clone(), name.to_owned());
    // How many events wait in the log is known of a sink only while it is driven here.
    let left_behind = move || {
        let dead_letters = shared.dead_letter_counts().get(&sink).copied()?;
        Some(LeftBehind { sink: sink.clone(), dead_letters, ..LeftBehind::default() })
    };
    let maker = Arc::new(task::Maker::new(services, name, config, Box::new(left_behind)));
    maker.stands_by();
    let (cluster, name, start) = (cluster.clone(), Arc::<str>::from(name), config.start);
    let lease = cluster.lease_of(&name);
    driver::while_driven(
        lease,
        Box::new(move |term, stop| {
            let (cluster, term, journal) = (cluster.clone(), term.clone(), journal.clone());
            let (maker, name, status) =
                (Arc::clone(&maker), Arc::clone(&name), Arc::clone(&status));
            Ok(Box::pin(async move {
                // However it ends.
                let _standing_by = StandingBy(Arc::clone(&maker));
                maker.takes_over();
                let source =
                    LogSource::open(&cluster, &name, start, &term, &journal, &status).await;
                let Some(source) = source else { return };
                cluster.reads(&name, &source);
                let for_delivery = Arc::clone(&source);
                let made = tokio::task::spawn_blocking(move || maker.make(for_delivery)).await;
                match made {
                    Ok(Ok(delivery)) => tokio::select! {
                        () = delivery.run(stop) => {}
                        () = source.keep() => {}
                    },
                    Ok(Err(error)) => {
                        tracing::error!(sink = %name, error, "the sink cannot be opened");
                    }
                    // The runtime ends.
                    Err(_) => return,
                }
                if !source.flush().await {
                    tracing::warn!(sink = %name, "the last events may be handed out again");
                }
            }))
        }),
    )
}

/// Shows that the sink is driven here no more when the work ends, in whatever way.
struct StandingBy(Arc<task::Maker>);

impl Drop for StandingBy {
    fn drop(&mut self) {
        self.0.stands_by();
    }
}

/// The task that listens for a sink's commands, where it has one.
pub(crate) fn commands(
    services: &Services,
    name: &str,
    config: &SinkConfig,
) -> Option<(String, Stage, Factory)> {
    let kind = command::listener(&config.kind).filter(|_| config.takes_commands())?;
    let task = format!("{COMMANDS}{name}");
    let reports = (Arc::clone(&services.status), task.clone());
    let factory = kind.factory(&services.commands, reports, name, config);
    Some((task, Stage::Delivery, while_driven(services, name, factory)))
}

fn state(
    kind: &'static publish::Kind,
    services: &Services,
    name: &str,
    config: &SinkConfig,
) -> Factory {
    let Services { journal, status, store, .. } = services.clone();
    let (name, config) = (name.to_owned(), config.clone());
    Box::new(move |stop| {
        let opening = Opening { name: &name, config: &config, purpose: Purpose::Relay };
        let publisher = (kind.open)(&opening).map_err(|error| error.to_string())?;
        let scope = Scope::of(&name, &config).map_err(|error| error.to_string())?;
        let state = (Arc::clone(&store), journal.clone());
        // Each time that it works: what is said of it ends with that.
        let health = TaskHealth::new(Arc::clone(&status), format!("{STATE}{name}"));
        let reports = (Arc::clone(&status), Arc::new(health));
        let publishing = Publishing::new((&name, &config), publisher, scope, state, reports);
        Ok(Box::pin(publishing.run(stop)))
    })
}
