//! The relay put together: journal, gateway, deliveries and the HTTP endpoint under one supervisor.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    app::{
        health::HealthReporter,
        journal_health,
        reload::{self, Reload, ReloadHandles},
        sink_tasks::{self, Services},
    },
    astro::rest::Rest,
    base::{
        clock,
        supervisor::{Factory, Outcome, Stage, Supervisor, Work},
        sync::lock,
    },
    channel::{
        backfill::{Backfill, Covered, MissedTopics},
        keeper::{SessionKeeper, Stores, Times},
        refresh::refreshes,
        silence::SilenceWatch,
        tokens::TokenKeeper,
    },
    cluster::{
        Cluster, ClusterError, alone, gaps, letters, membership, outbox, report::Configured, state,
        storage_check,
    },
    command::{
        self,
        executor::{Executor, Once, Tools},
    },
    config::{Config, ConfigError, pasted::shown_address},
    delivery::{status::Status, task},
    gateway::{Away, Gateway, Targets, intake::Intake},
    http::{self, History, Reloads, history::Sampler, relay_status::RelayStatus},
    journal::{Journal, StoreError},
    loading::{Loaded, Sources},
    sink::Purpose,
};

/// How long each stage may take to stop. Three of them fit the service manager's 30 seconds, with the end of the
/// journal.
pub const STOP: Duration = Duration::from_secs(8);

/// How long the journal may take to close while its disk takes nothing: one that hangs must not keep the process from
/// ending.
const CLOSE: Duration = Duration::from_secs(4);

/// The same in all, for a disk that is slow.
const CLOSE_SLOWLY: Duration = Duration::from_secs(10);

/// How long the other members of a cluster may take to take over, before that.
const LEAVE: Duration = Duration::from_secs(20);

/// The relay cannot be put together.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The configuration is wrong.
    #[error("the configuration cannot be used:\n{0}")]
    Config(#[from] ConfigError),
    /// The journal cannot be opened.
    #[error("the journal cannot be opened")]
    Journal(#[from] StoreError),
    /// The cluster cannot be joined.
    #[error("the cluster cannot be joined")]
    Cluster(#[from] ClusterError),
    /// The endpoint must not listen there.
    #[error(transparent)]
    Exposed(#[from] http::ExposedWithoutToken),
    /// The endpoint cannot listen.
    #[error("cannot listen on {address}")]
    Listen { address: String, source: std::io::Error },
}

/// A relay that is ready to run.
#[derive(Debug)]
pub struct Relay {
    supervisor: Supervisor,
    journal: Journal,
    status: Arc<RelayStatus>,
    listening: Option<SocketAddr>,
    reloads: Option<Reloads>,
    cluster: Option<Cluster>,
    /// Kept where nobody reloads: without its senders the receivers would end.
    _reload_handles: Option<ReloadHandles>,
}

impl Relay {
    /// Opens the journal and prepares every task; nothing runs yet but the journal.
    pub async fn new(
        config: Config,
        metrics: Option<PrometheusHandle>,
    ) -> Result<Self, RelayError> {
        let loaded = Loaded { config, warnings: Vec::new(), silent: 0, file: None };
        Self::build(loaded, None, metrics).await
    }

    /// The same, for a configuration that can be reloaded from its sources.
    pub async fn reloadable(
        loaded: Loaded,
        sources: Sources,
        metrics: Option<PrometheusHandle>,
    ) -> Result<Self, RelayError> {
        Self::build(loaded, Some(sources), metrics).await
    }

    async fn build(
        loaded: Loaded,
        sources: Option<Sources>,
        metrics: Option<PrometheusHandle>,
    ) -> Result<Self, RelayError> {
        crate::base::tls::install_provider();
        let config = loaded.config.clone();
        let (journal, opened) = Journal::open(&config.journal)?;
        let address = shown_address(&config.astro.url);
        let status = Arc::new(RelayStatus::new(clock::now()).with(journal.clone(), address));
        let admin = config.http.admin_token.is_some();
        status.configured(config.channels.keys(), config.sinks.len(), admin);
        info!(events = opened.events, lost = opened.lost, "journal opened");
        let cluster = Box::pin(join_cluster(&config)).await?;
        set_sinks(&journal, &config, cluster.is_some());
        let mut supervisor = Supervisor::new();
        report_tasks(&mut supervisor, &status.sinks);
        let (targets, configured_targets) = watch::channel(Targets::of(&config));
        let (sinks, configured) = watch::channel(config.sinks.keys().cloned().collect());
        let (access, asked) = watch::channel(config.http.clone());
        let (running, current) = watch::channel(Arc::new(config.clone()));
        let (channels, labels) = watch::channel(config.channels.keys().cloned().collect());
        let (commands, queued) = command::command_queue(labels);
        let services = Services {
            journal: journal.clone(),
            status: Arc::clone(&status.sinks),
            store: Arc::default(),
            sinks: configured,
            commands,
            cluster: cluster.clone(),
        };
        let away = Away::of(&opened);
        let all = configured_targets.clone();
        let wanted =
            add_cluster(&mut supervisor, &services, &status, &config.journal.dir, (all, away));
        // Until the gateway says so itself.
        journal.set_unreported_gap(opened.downtime);
        let intake = Arc::new(Intake::new(journal.clone()));
        add_gateway(&mut supervisor, &config, &status, &intake, wanted.clone(), away)?;
        add_backfill(&mut supervisor, &config, &services, &intake, wanted.clone())?;
        let sessions = (wanted, configured_targets);
        let commanded = (queued, current.clone());
        add_sessions(&mut supervisor, &config, &services, &status, sessions, commanded)?;
        add_tokens(&mut supervisor, &config, &status, &targets);
        add_silence(&mut supervisor, &services, &status);
        add_health(&mut supervisor, &services, &status);
        let watched = journal_health::factory(&journal, &status.sinks);
        supervisor.add("journal health", Stage::Display, watched);
        for (name, sink) in &config.sinks {
            // What is wrong with it is found out before anything runs.
            task::open_sink(name, sink, Purpose::Relay)?;
            for (task, stage, factory) in sink_tasks::factories(&services, name, sink) {
                supervisor.add(&task, stage, factory);
            }
        }
        let requests = supervisor.requests();
        let reload_handles = ReloadHandles {
            services: services.clone(),
            status: Arc::clone(&status),
            targets,
            channels,
            sinks,
            access,
            config: running,
            requests,
        };
        let (reloads, reload_handles) =
            add_reload(&mut supervisor, sources, loaded, reload_handles);
        let own = EndpointParts {
            status: Arc::clone(&status),
            metrics,
            access: asked,
            config: current,
            reloads: reloads.clone(),
        };
        let listening = add_http(&mut supervisor, &config, &services, own).await?;
        Ok(Self {
            supervisor,
            journal,
            status,
            listening,
            reloads,
            cluster,
            _reload_handles: reload_handles,
        })
    }

    /// The handle that requests a reload.
    pub fn reloads(&self) -> Option<Reloads> {
        self.reloads.clone()
    }

    pub fn listening(&self) -> Option<SocketAddr> {
        self.listening
    }

    pub fn status(&self) -> Arc<RelayStatus> {
        Arc::clone(&self.status)
    }

    pub fn journal(&self) -> Journal {
        self.journal.clone()
    }

    /// Runs until `stop`, and closes the journal.
    pub async fn run(self, stop: CancellationToken, on_tick: impl FnMut()) -> Outcome {
        let journal = self.journal;
        let outcome = {
            let end = CancellationToken::new();
            let running = self.supervisor.run(end.clone(), STOP, on_tick);
            let mut running = std::pin::pin!(running);
            let cluster = self.cluster;
            let leaving = async {
                stop.cancelled().await;
                if let Some(cluster) = &cluster {
                    cluster.leave(LEAVE).await;
                }
                end.cancel();
                std::future::pending::<()>().await;
            };
            tokio::select! {
                outcome = &mut running => outcome,
                () = leaving => Outcome::Stopped,
                () = journal.thread_failed() => {
                    end.cancel();
                    running.await;
                    Outcome::GaveUp("the journal".to_owned())
                }
            }
        };
        close(&journal, CLOSE).await;
        outcome
    }
}

/// Closes the journal; gives up when nothing was written for that time. What is left then has to end with the process.
async fn close(journal: &Journal, limit: Duration) {
    let closing = journal.clone();
    let mut closing = tokio::task::spawn_blocking(move || closing.close());
    let end = Instant::now() + CLOSE_SLOWLY;
    let mut before = None;
    let unwritten = loop {
        let figures = journal.figures();
        let reached = Some((figures.written, figures.synced));
        let left = end.saturating_duration_since(Instant::now());
        if reached == before || left.is_zero() {
            break figures.last.saturating_sub(figures.written);
        }
        before = reached;
        match timeout(limit.min(left), &mut closing).await {
            Ok(Ok(())) => return,
            // It has panicked.
            Ok(Err(_)) => break 0,
            Err(_) => {}
        }
    };
    if unwritten == 0 {
        warn!("the journal was not closed in order");
    } else {
        error!(unwritten, "the journal was not closed in order: the disk does not answer in time");
    }
}

/// Says what waits for sinks that are no longer configured. Of a sink that was removed long ago the journal no
/// longer has everything: nobody waits for its events.
fn warn_of_removed_sinks(journal: &Journal) {
    for mut left in journal.left_behind() {
        if !left.whole {
            left.events = 0;
        }
        task::warn_of_left_behind(&left);
    }
}

/// The task that reloads the configuration; without sources the handles are given back, to be kept.
fn add_reload(
    supervisor: &mut Supervisor,
    sources: Option<Sources>,
    loaded: Loaded,
    handles: ReloadHandles,
) -> (Option<Reloads>, Option<ReloadHandles>) {
    let Some(sources) = sources else { return (None, Some(handles)) };
    let (reload, reloads) = Reload::new(sources, loaded, handles);
    supervisor.add("reload", Stage::Display, reload::factory(reload));
    (Some(reloads), None)
}

/// Reports tasks that do not work: that of a sink with the sink.
fn report_tasks(supervisor: &mut Supervisor, status: &Arc<Status>) {
    let status = Arc::clone(status);
    supervisor.report_to(Box::new(move |task, reason| {
        match (task.strip_prefix(task::PREFIX), reason) {
            // They report themselves that they work again.
            (_, None) if sink_tasks::reports_itself(task) => {}
            (None, _) => status.task(task, reason),
            (Some(_), None) => {}
            (Some(sink), Some(reason)) => status.sink(sink, |page| {
                page.state = "down";
                (page.since, page.last_error_at) = (clock::now(), Some(clock::now()));
                page.last_error = Some(reason.to_owned());
            }),
        }
    }));
}

fn add_gateway(
    supervisor: &mut Supervisor,
    config: &Config,
    status: &RelayStatus,
    intake: &Arc<Intake>,
    targets: watch::Receiver<Targets>,
    away: Option<Away>,
) -> Result<(), RelayError> {
    let (astro, intake) = (config.astro.clone(), Arc::clone(intake));
    let table = Arc::clone(&status.gateway);
    table.expect(&targets.borrow().subscriptions);
    let make =
        move || Gateway::new(&astro, Arc::clone(&table), Arc::clone(&intake), targets.clone());
    let first = make()?;
    if let Some(away) = away {
        first.was_away(away);
    }
    let factory = made_ahead(first, make, |gateway, stop| Box::pin(gateway.run(stop)));
    supervisor.add_essential("gateway", Stage::Intake, factory);
    Ok(())
}

/// Who reads the journal: the sinks, or in a cluster, where they read the log, what publishes there.
fn set_sinks(journal: &Journal, config: &Config, is_member: bool) {
    let names = || config.sinks.keys().map(String::as_str);
    if is_member {
        journal.sinks([outbox::CURSOR]);
        alone::joins(journal, names());
    } else {
        journal.sinks(names());
        alone::leaves(journal, names());
        warn_of_removed_sinks(journal);
    }
}

async fn join_cluster(config: &Config) -> Result<Option<Cluster>, ClusterError> {
    match &config.cluster {
        Some(settings) => Cluster::begin(settings, Configured::of(config)).await.map(Some),
        None => Ok(None),
    }
}

/// What keeps this relay's part in a cluster; answers what is wanted of the gateway: all, or the part that
/// this member holds.
fn add_cluster(
    supervisor: &mut Supervisor,
    services: &Services,
    status: &RelayStatus,
    dir: &Path,
    (all, away): (watch::Receiver<Targets>, Option<Away>),
) -> watch::Receiver<Targets> {
    let Some(cluster) = &services.cluster else { return all };
    status.in_cluster(cluster.clone());
    let channels = all.borrow().channels.clone();
    let (held, wanted) = watch::channel(Targets { channels, ..Targets::default() });
    let (table, journal) = (Arc::clone(&status.gateway), services.journal.clone());
    let parts = membership::Parts { all, held, table, journal, away };
    // Ends last: it is said that this member leaves, and at the end that it is gone.
    supervisor.add("cluster", Stage::Display, membership::factory(cluster, parts));
    let shared = state::factory(cluster, &services.store);
    supervisor.add("cluster state", Stage::Delivery, shared);
    supervisor.add("cluster storage", Stage::Display, storage_check::factory(cluster));
    let letters = letters::factory(cluster, &services.journal, dir.to_owned());
    supervisor.add("cluster dead letters", Stage::Delivery, letters);
    let table = Arc::clone(&status.gateway);
    let outbox = outbox::factory(cluster, &services.journal, table, &services.status);
    supervisor.add("cluster log", Stage::Delivery, outbox);
    wanted
}

fn add_backfill(
    supervisor: &mut Supervisor,
    config: &Config,
    services: &Services,
    intake: &Arc<Intake>,
    targets: watch::Receiver<Targets>,
) -> Result<(), RelayError> {
    if !config.backfill.enabled {
        return Ok(());
    }
    let (rest, intake) = (Rest::new(&config.astro), Arc::clone(intake));
    let covered = services.cluster.clone().map(covered);
    let make = move || {
        let backfill = Backfill::new(rest.clone(), Arc::clone(&intake), targets.clone())?;
        Ok::<_, StoreError>(backfill.unless(covered.clone()))
    };
    let factory = made_ahead(make()?, make, |backfill, stop| Box::pin(backfill.run(stop)));
    supervisor.add("backfill", Stage::Intake, factory);
    Ok(())
}

/// Has a transaction executed once in the cluster.
fn once(cluster: Cluster) -> Once {
    Once(Arc::new(move |transaction| {
        let cluster = cluster.clone();
        Box::pin(async move { cluster.claim_transaction(&transaction).await })
    }))
}

/// Asks the other members whether one of them held a channel.
fn covered(cluster: Cluster) -> Covered {
    Covered(Arc::new(move |missed: MissedTopics| {
        let cluster = cluster.clone();
        Box::pin(async move {
            let MissedTopics { channel, topics, since } = missed;
            gaps::was_held_elsewhere(&cluster, &channel, &topics, since).await
        })
    }))
}

/// What reads the sessions over the REST API, and what changes them there.
fn add_sessions(
    supervisor: &mut Supervisor,
    config: &Config,
    services: &Services,
    status: &RelayStatus,
    (targets, all): (watch::Receiver<Targets>, watch::Receiver<Targets>),
    (commands, config_now): (command::QueuedCommands, watch::Receiver<Arc<Config>>),
) -> Result<(), RelayError> {
    let (rest, times) = (Rest::new(&config.astro), Times::of(config));
    let (refreshes, requests) = refreshes();
    let table = Arc::clone(&status.gateway);
    // Commands come to the member that drives a sink, for channels of all members.
    let once = services.cluster.clone().map(once);
    let journal = services.journal.clone();
    let tools = Tools {
        rest: rest.clone(),
        targets: all,
        table,
        refreshes,
        once,
        journal,
        config: config_now,
    };
    let executor = Executor::new(commands, tools);
    supervisor.add("commands", Stage::Intake, command::executor::factory(executor));
    let stores = Stores {
        journal: services.journal.clone(),
        table: Arc::clone(&status.gateway),
        store: Arc::clone(&services.store),
        sessions: Arc::clone(&status.sessions),
    };
    let make = move || {
        let (targets, requests) = (targets.clone(), Arc::clone(&requests));
        SessionKeeper::new(times, rest.clone(), stores.clone(), targets, requests)
    };
    let factory = made_ahead(make()?, make, |keeper, stop| Box::pin(keeper.run(stop)));
    supervisor.add("sessions", Stage::Intake, factory);
    Ok(())
}

/// What refreshes tokens, and knows whose they are.
fn add_tokens(
    supervisor: &mut Supervisor,
    config: &Config,
    status: &RelayStatus,
    targets: &watch::Sender<Targets>,
) {
    let (rest, targets) = (Rest::new(&config.astro), targets.clone());
    let (table, tokens) = (Arc::clone(&status.gateway), Arc::clone(&status.tokens));
    let factory: Factory = Box::new(move |stop| {
        let (table, tokens) = (Arc::clone(&table), Arc::clone(&tokens));
        let keeper = TokenKeeper::new(rest.clone(), table, tokens, targets.clone());
        Ok(Box::pin(keeper.run(stop)))
    });
    supervisor.add("tokens", Stage::Intake, factory);
}

/// What notices a subscription that brings nothing.
fn add_silence(supervisor: &mut Supervisor, services: &Services, status: &RelayStatus) {
    let (table, silences) = (Arc::clone(&status.gateway), Arc::clone(&status.silences));
    let store = Arc::clone(&services.store);
    let factory: Factory = Box::new(move |stop| {
        let (table, store) = (Arc::clone(&table), Arc::clone(&store));
        let watch = SilenceWatch::new(table, store, Arc::clone(&silences));
        Ok(Box::pin(watch.run(stop)))
    });
    supervisor.add("silence", Stage::Intake, factory);
}

fn add_health(supervisor: &mut Supervisor, services: &Services, status: &Arc<RelayStatus>) {
    let Services { journal, store, .. } = services.clone();
    let status = Arc::clone(status);
    let make =
        move || HealthReporter::new(Arc::clone(&status), journal.clone(), Arc::clone(&store));
    // What it knows at once must be in the store before a publisher reads it.
    let first = make();
    let make = move || Ok::<_, std::convert::Infallible>(make());
    let factory = made_ahead(first, make, |health, stop| Box::pin(health.run(stop)));
    supervisor.add("health", Stage::Intake, factory);
}

/// A factory whose first task is made already: its errors are found at the start, and its position in the
/// journal is taken before any event comes.
fn made_ahead<T: Send + 'static, E: std::error::Error>(
    first: T,
    make: impl Fn() -> Result<T, E> + Send + 'static,
    run: impl Fn(T, CancellationToken) -> Work + Send + 'static,
) -> Factory {
    let first = std::sync::Mutex::new(Some(first));
    Box::new(move |stop| {
        let prepared = lock(&first).take();
        let task = match prepared {
            Some(task) => task,
            None => make().map_err(|error| error.to_string())?,
        };
        Ok(run(task, stop))
    })
}

/// What only the endpoint needs.
struct EndpointParts {
    status: Arc<RelayStatus>,
    metrics: Option<PrometheusHandle>,
    access: watch::Receiver<crate::config::Http>,
    config: watch::Receiver<Arc<Config>>,
    reloads: Option<Reloads>,
}

/// Keeps the figures of the last day for the page.
fn add_history(
    supervisor: &mut Supervisor,
    services: &Services,
    status: &Arc<RelayStatus>,
    history: &Arc<History>,
) {
    let (journal, status) = (services.journal.clone(), Arc::clone(status));
    let history = Arc::clone(history);
    let factory: Factory = Box::new(move |stop| {
        let (journal, status) = (journal.clone(), Arc::clone(&status));
        let sampler = Sampler { history: Arc::clone(&history), status, journal };
        Ok(Box::pin(sampler.run(stop)))
    });
    supervisor.add("history", Stage::Display, factory);
}

async fn add_http(
    supervisor: &mut Supervisor,
    config: &Config,
    services: &Services,
    own: EndpointParts,
) -> Result<Option<SocketAddr>, RelayError> {
    if config.http.listen.is_empty() {
        return Ok(None);
    }
    let failed = |source| RelayError::Listen { address: config.http.listen.clone(), source };
    let listener = TcpListener::bind(&config.http.listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    http::ExposedWithoutToken::of(address, &config.http)?;
    let listener = Arc::new(listener);
    let dir = &config.journal.dir;
    let history = Arc::new(History::default());
    add_history(supervisor, services, &own.status, &history);
    let state = http::State {
        status: own.status,
        journal: services.journal.clone(),
        dir: (!dir.as_os_str().is_empty()).then(|| dir.clone()),
        metrics: own.metrics,
        access: own.access,
        config: own.config,
        store: Arc::clone(&services.store),
        history,
        reloads: own.reloads,
        commands: services.commands.clone(),
        address,
        followers: Arc::new(Semaphore::new(http::State::FOLLOWERS)),
        stop: CancellationToken::new(),
        attempts: Arc::default(),
    };
    let factory: Factory =
        Box::new(move |stop| Ok(Box::pin(http::serve(Arc::clone(&listener), state.clone(), stop))));
    supervisor.add("http", Stage::Display, factory);
    info!(url = %format_args!("http://{address}/"), "listening");
    Ok(Some(address))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use serde_json::json;
    use tokio::time::advance;

    use super::*;
    use crate::base::event::own;

    #[tokio::test]
    async fn a_disk_that_hangs_does_not_keep_the_relay_from_ending() {
        let journal = Journal::on_hung_disk(1 << 20);
        let nobody = "".into();
        journal.append(&mut vec![own("t", &nobody, &nobody, &json!({}), 1)]);
        close(&journal, Duration::from_millis(1)).await;
        // For the runtime, which waits for all of its threads here.
        journal.writer_ends();
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_is_slow_is_waited_for_while_it_writes() {
        let journal = Journal::on_hung_disk(1 << 20);
        let nobody = "".into();
        journal.append(&mut vec![own("t", &nobody, &nobody, &json!({}), 1)]);
        let mut closing = std::pin::pin!(close(&journal, CLOSE));
        assert!(closing.as_mut().now_or_never().is_none());
        journal.disk_answers();
        let time = CLOSE + Duration::from_millis(1);
        advance(time).await;
        assert!(closing.as_mut().now_or_never().is_none(), "it has written something");
        advance(time).await;
        assert!(closing.now_or_never().is_some(), "and then nothing any more");
        journal.writer_ends();
    }
}
