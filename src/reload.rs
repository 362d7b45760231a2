//! Loading the configuration anew while the relay runs.
//!
//! Asked for by SIGHUP, over HTTP, or by a change of the file. It loads everything as at the start;
//! only if all of it can be used is the difference carried out: sinks are started, stopped or made
//! anew by the supervisor, each keeping its cursor; what is wanted of the gateway goes to it through
//! its watch. What is wrong in the new configuration is told, and nothing changes.
//!
//! The one thing to know: nothing here waits for a sink. A sink that is to go is told so and has its
//! deadline with the supervisor; its successor waits for it there, and nobody else does.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::Serialize;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    astro::gateway::Targets,
    clock,
    config::{
        Config, ConfigError, Http, Loaded, Sources,
        difference::{Difference, difference},
        load,
    },
    event::UnixMillis,
    log,
    relay::{Parts, SINK, sink_factory},
    supervisor::{Orders, Stage},
    systemd,
};

/// Requests that may wait: a finger on a key, not a queue.
const REQUESTS: usize = 8;

/// How often the file is looked at. It is loaded when it looks the same twice, so that half a file is
/// not taken for a whole one.
const LOOK: Duration = Duration::from_secs(2);

/// What became of a request to load the configuration anew.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// When.
    pub at: UnixMillis,
    /// Who asked: `signal`, `http` or `file`.
    pub by: &'static str,
    /// What is wrong with the configuration; if anything is, nothing was changed.
    pub problems: Vec<String>,
    /// What is hardly meant.
    pub warnings: Vec<String>,
    /// What was changed.
    #[serde(flatten)]
    pub difference: Difference,
}

/// A handle to ask with.
#[derive(Debug, Clone)]
pub struct Reloads(mpsc::Sender<Request>);

#[derive(Debug)]
struct Request {
    by: &'static str,
    answer: oneshot::Sender<Report>,
}

impl Reloads {
    /// Asks, and waits for what became of it; `None`: the relay is stopping.
    pub async fn ask(&self, by: &'static str) -> Option<Report> {
        let (answer, answered) = oneshot::channel();
        self.0.send(Request { by, answer }).await.ok()?;
        answered.await.ok()
    }
}

/// What a reload changes.
#[derive(Debug)]
pub struct Levers {
    /// What the sinks are made of.
    pub parts: Parts,
    /// What is wanted of the gateway.
    pub targets: watch::Sender<Targets>,
    /// The configured channels.
    pub channels: watch::Sender<BTreeSet<String>>,
    /// The configured sinks.
    pub sinks: watch::Sender<BTreeSet<String>>,
    /// Who may ask over HTTP.
    pub access: watch::Sender<Http>,
    /// The supervisor's ear.
    pub orders: Orders,
}

/// The task.
pub struct Reload {
    sources: Sources,
    file: Option<PathBuf>,
    running: Config,
    levers: Levers,
    requests: mpsc::Receiver<Request>,
    /// How the file looked when it was loaded, and when it was looked at last.
    loaded: Look,
    last: Look,
}

impl std::fmt::Debug for Reload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reload({:?})", self.file)
    }
}

/// Enough of a file's state to see that it is another.
type Look = Option<(SystemTime, u64, u64)>;

impl Reload {
    /// The task that loads from `sources`, and a handle to ask it with.
    pub fn new(sources: Sources, loaded: Loaded, levers: Levers) -> (Self, Reloads) {
        let (sender, requests) = mpsc::channel(REQUESTS);
        let Loaded { config, file, .. } = loaded;
        let file = file.filter(|_| sources.text.is_none());
        let look = file.as_deref().and_then(look);
        let task =
            Self { sources, file, running: config, levers, requests, loaded: look, last: look };
        (task, Reloads(sender))
    }

    /// Loads anew whenever it is asked to, until it is told to stop.
    pub async fn run(&mut self, stop: CancellationToken) {
        let mut looking = interval(LOOK);
        looking.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let request = tokio::select! {
                () = stop.cancelled() => return,
                Some(request) = self.requests.recv() => Some(request),
                _ = looking.tick(), if self.running.reload.watch => {
                    if !self.has_changed() {
                        continue;
                    }
                    None
                }
            };
            let by = request.as_ref().map_or("file", |request| request.by);
            let report = tokio::select! {
                // The supervisor that stops takes no orders any more.
                () = stop.cancelled() => return,
                report = self.reload(by) => report,
            };
            if let Some(Request { answer, .. }) = request {
                // Whoever asked may have left.
                drop(answer.send(report));
            }
        }
    }

    /// Whether the file is another than the one that was loaded, and no longer being written.
    fn has_changed(&mut self) -> bool {
        let now = self.file.as_deref().and_then(look);
        let still = now == self.last;
        self.last = now;
        // A file that is away is being replaced, or somebody's mistake: what runs goes on.
        now.is_some() && still && now != self.loaded
    }

    async fn reload(&mut self, by: &'static str) -> Report {
        systemd::reloading();
        self.loaded = self.file.as_deref().and_then(look);
        let sources = self.sources.clone();
        // Files are read and sinks checked: that may take its time.
        let loaded = match tokio::task::spawn_blocking(move || load(&sources)).await {
            Ok(loaded) => loaded,
            Err(error) => Err(ConfigError::at(&[], error.to_string())),
        };
        let mut report = Report {
            at: clock::now(),
            by,
            problems: Vec::new(),
            warnings: Vec::new(),
            difference: Difference::default(),
        };
        match loaded {
            Ok(loaded) => {
                report.warnings = loaded.warnings.iter().map(ToString::to_string).collect();
                for warning in &report.warnings {
                    warn!(warning, "about the configuration");
                }
                report.difference = self.apply(loaded.config).await;
            }
            Err(error) => {
                report.problems = error.problems.iter().map(ToString::to_string).collect();
                for problem in &report.problems {
                    error!(
                        by,
                        problem, "the new configuration cannot be used; nothing was changed"
                    );
                }
            }
        }
        self.levers.parts.status.reloaded(report.clone());
        systemd::reloaded();
        report
    }

    async fn apply(&mut self, loaded: Config) -> Difference {
        let (found, next) = difference(&self.running, &loaded);
        self.running = next;
        let Levers { parts, targets, channels, sinks, access, orders } = &self.levers;
        if !found.needs_restart.is_empty() {
            let keys = found.needs_restart.join(", ");
            warn!(keys, "these changes of the configuration take effect at the next start");
        }
        if found.is_empty() {
            info!("the configuration was loaded anew: nothing is to be changed");
            return found;
        }
        sinks.send_replace(self.running.sinks.keys().cloned().collect());
        channels.send_replace(self.running.channels.keys().cloned().collect());
        // They listen for the commands of the channels that there were when they connected.
        let labels = !found.channels_added.is_empty() || !found.channels_removed.is_empty();
        let listening: Vec<&String> = self
            .running
            .sinks
            .iter()
            .filter(|(name, sink)| {
                labels
                    && sink.takes_commands()
                    && !found.sinks_added.contains(name)
                    && !found.sinks_changed.contains(name)
            })
            .map(|(name, _)| name)
            .collect();
        let anew: Vec<&String> = found.sinks_changed.iter().chain(listening).collect();
        for name in found.sinks_removed.iter().chain(anew.iter().copied()) {
            orders.remove(&format!("{SINK}{name}")).await;
        }
        for name in found.sinks_added.iter().chain(anew) {
            let Some(sink) = self.running.sinks.get(name) else { continue };
            // A new sink's place is taken now: what a new subscription brings stands behind it.
            if let Err(error) = parts.journal.register(name, sink.start) {
                warn!(sink = name, %error, "the sink's place in the journal cannot be had now");
            }
            let factory = sink_factory(parts, name, sink);
            orders.add(&format!("{SINK}{name}"), Stage::Delivery, factory).await;
        }
        if found.concerns_gateway() {
            targets.send_replace(Targets::of(&self.running));
        }
        access.send_replace(self.running.http.clone());
        if found.applied.iter().any(|key| key == "log.level")
            && let Err(error) = log::set_level(&self.running.log.level)
        {
            warn!(%error, "the level of the log stays as it was");
        }
        info!(
            channels_added = ?found.channels_added, channels_removed = ?found.channels_removed,
            channels_changed = ?found.channels_changed, sinks_added = ?found.sinks_added,
            sinks_removed = ?found.sinks_removed, sinks_changed = ?found.sinks_changed,
            keys = ?found.applied, "the configuration was loaded anew"
        );
        found
    }
}

/// The task made over and over from the same state, for a supervisor.
pub(crate) fn factory(reload: Reload) -> crate::supervisor::Factory {
    let reload = Arc::new(tokio::sync::Mutex::new(reload));
    Box::new(move |stop| {
        let reload = Arc::clone(&reload);
        Ok(Box::pin(async move { reload.lock().await.run(stop).await }))
    })
}

fn look(file: &Path) -> Look {
    use std::os::unix::fs::MetadataExt as _;
    // A link is followed: that is how a mounted configuration is exchanged.
    let found = std::fs::metadata(file).ok()?;
    Some((found.modified().ok()?, found.len(), found.ino()))
}
