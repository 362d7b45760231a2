//! Reloads the configuration while the relay runs: on SIGHUP, over HTTP, or when the file has changed.
//!
//! Everything is loaded as at the start; only if it is valid is the difference applied: the supervisor
//! starts, stops and restarts sinks, each keeping its cursor; the gateway gets its targets through a watch.
//! An invalid configuration is reported, and nothing changes.
//!
//! A file that is watched may be seen at any moment of its being written. It is loaded when it has been
//! still for a moment; one that would leave no channel or no sink where there were some is refused; and
//! half a file that no longer says that it is watched is watched on for a while.
//!
//! Nothing here waits for a sink. One that is removed has its deadline with the supervisor; its successor
//! waits for it there, and nothing else does.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    task::{JoinHandle, spawn_blocking},
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    app::sink_tasks::{self, Services},
    base::{
        clock::{self, Moment},
        log,
        supervisor::Requests,
        systemd,
    },
    cluster::report::Configured,
    config::difference::Report,
    config::{
        Config, ConfigError, Http, SinkConfig, Start,
        difference::{Difference, difference},
    },
    gateway::Targets,
    http::{Reloads, Request, relay_status::RelayStatus},
    loading::{Loaded, Sources, load},
};

/// Requests that may wait: somebody types them.
const REQUESTS: usize = 8;

/// How often the file is checked. It is loaded when it is the same twice, so that half a file is not taken
/// for a whole one.
const CHECK: Duration = Duration::from_secs(2);

/// How long the file system may take to answer.
const STAT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long everything that is configured may take to be read.
const LOAD_TIMEOUT: Duration = Duration::from_secs(25);

/// How often a file is read again that was written meanwhile, when somebody waits for it.
const READS: usize = 3;

/// A file that could not be used is tried again after this, though it is the same: a secret that it names
/// may be there again.
const RETRY_INVALID: Duration = Duration::from_secs(30);

/// How long a file is watched that has turned the watching off: it may have been half of one.
const STILL_WATCHED: Duration = Duration::from_mins(2);

/// The cause where nobody asked: the file has changed.
const BY_FILE: &str = "file";

/// The senders by which a reload takes effect.
#[derive(Debug)]
pub struct ReloadHandles {
    pub services: Services,
    pub status: Arc<RelayStatus>,
    /// What is wanted of the gateway.
    pub targets: watch::Sender<Targets>,
    pub channels: watch::Sender<BTreeSet<String>>,
    pub sinks: watch::Sender<BTreeSet<String>>,
    /// Access over HTTP.
    pub access: watch::Sender<Http>,
    /// All of it, for whoever opens a sink for a moment.
    pub config: watch::Sender<Arc<Config>>,
    /// Where tasks are added and removed.
    pub requests: Requests,
}

/// The task.
pub struct Reload {
    sources: Sources,
    file: Option<PathBuf>,
    running: Config,
    handles: ReloadHandles,
    requests: mpsc::Receiver<Request>,
    /// The file when it was loaded, and when it was checked last.
    loaded: Fingerprint,
    last: Fingerprint,
    /// What was wrong the last time, and when that was.
    failed: Option<(Vec<String>, Moment)>,
    /// When a file that was loaded by itself turned the watching off.
    unwatched: Option<Moment>,
    /// Work on files that has not come back: a disk that hangs.
    checking: Option<JoinHandle<Fingerprint>>,
    loading: Option<JoinHandle<Result<Loaded, ConfigError>>>,
}

impl std::fmt::Debug for Reload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reload({:?})", self.file)
    }
}

/// Enough of a file's metadata to see that it has changed: its device and number, when it was changed, and
/// its size. The time of change comes from the kernel; the one of modification can be set back.
type Fingerprint = Option<(u64, u64, i64, i64, u64)>;

impl Reload {
    /// The task that loads from `sources`, and the handle to request it.
    pub fn new(sources: Sources, loaded: Loaded, handles: ReloadHandles) -> (Self, Reloads) {
        let (sender, requests) = mpsc::channel(REQUESTS);
        let Loaded { config, file, .. } = loaded;
        let file = file.filter(|_| sources.text.is_none());
        let found = file.as_deref().and_then(fingerprint);
        let task = Self {
            sources,
            file,
            running: config,
            handles,
            requests,
            loaded: found,
            last: found,
            failed: None,
            unwatched: None,
            checking: None,
            loading: None,
        };
        (task, Reloads(sender))
    }

    /// Reloads on request and on a change of the file, until `stop`.
    pub async fn run(&mut self, stop: CancellationToken) {
        let mut checks = interval(CHECK);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let request = tokio::select! {
                () = stop.cancelled() => return,
                Some(request) = self.requests.recv() => Some(request),
                _ = checks.tick(), if self.watches() => None,
            };
            let done = async {
                match &request {
                    Some(request) => self.reload(request.by).await,
                    None if self.is_due().await => self.reload(BY_FILE).await,
                    None => None,
                }
            };
            // The supervisor that stops takes no requests any more.
            let Some(report) = stop.run_until_cancelled(done).await else { return };
            if let (Some(Request { answer, .. }), Some(report)) = (request, report) {
                // The client may have left.
                drop(answer.send(report));
            }
        }
    }

    /// Whether the file is checked. One that has turned that off may be the half of a file.
    fn watches(&self) -> bool {
        let unwatched = self.unwatched.is_some_and(|at| at.elapsed() < STILL_WATCHED);
        self.running.reload.watch || unwatched
    }

    /// Whether the file is to be loaded: it is another than the one that was loaded and no longer being
    /// written, or it could not be used then and what it names may have changed.
    async fn is_due(&mut self) -> bool {
        let Some(now) = self.fingerprint().await else { return false };
        let still = now == self.last;
        self.last = now;
        let again = self.failed.as_ref().is_some_and(|(_, at)| at.elapsed() >= RETRY_INVALID);
        // A file that is away is being replaced, or somebody's mistake: what runs goes on.
        now.is_some() && still && (now != self.loaded || again)
    }

    /// The file now; `None`: its disk does not answer.
    async fn fingerprint(&mut self) -> Option<Fingerprint> {
        let Some(file) = self.file.clone() else { return Some(None) };
        let checking =
            self.checking.get_or_insert_with(|| spawn_blocking(move || fingerprint(&file)));
        let found = timeout(STAT_TIMEOUT, checking).await.ok()?;
        self.checking = None;
        Some(found.ok().flatten())
    }

    /// Loads, off the runtime; an error is every problem.
    async fn load(&mut self) -> Result<Loaded, Vec<String>> {
        let sources = self.sources.clone();
        let loading = async {
            if let Some(stale) = &mut self.loading {
                // One that was given up: what it has read may be of yesterday.
                drop(stale.await);
            }
            self.loading.insert(spawn_blocking(move || load(&sources))).await
        };
        let Ok(loaded) = timeout(LOAD_TIMEOUT, loading).await else {
            let seconds = LOAD_TIMEOUT.as_secs();
            return Err(vec![format!("the configuration could not be read within {seconds} s")]);
        };
        self.loading = None;
        let loaded = loaded.unwrap_or_else(|error| Err(ConfigError::at(&[], error.to_string())));
        loaded.map_err(|error| error.problems.iter().map(ToString::to_string).collect())
    }

    /// Problems that only a reload has: no channel or no sink is left. Most often that is a file that is
    /// empty for a moment, or half of one.
    fn emptied(&self, loaded: &Config) -> Vec<String> {
        let of = |what, before: bool, now: bool| {
            (before && !now).then(|| {
                format!("no {what} is left in it: restart the relay if that is what you want")
            })
        };
        let Config { channels, sinks, .. } = &self.running;
        let channels = of("channel", !channels.is_empty(), !loaded.channels.is_empty());
        let sinks = of("sink", !sinks.is_empty(), !loaded.sinks.is_empty());
        channels.into_iter().chain(sinks).collect()
    }

    /// Loads, and applies what has changed. `None`: there is nothing to report.
    async fn reload(&mut self, by: &'static str) -> Option<Report> {
        let alone = by == BY_FILE;
        let mut before = self.fingerprint().await.flatten();
        let mut loaded = self.load().await;
        let mut after = self.fingerprint().await.flatten();
        if alone && after != before {
            // It was written while it was read: it is another again, and will be seen to be.
            return None;
        }
        for _ in 0..READS {
            if after == before {
                break;
            }
            before = after;
            loaded = self.load().await;
            after = self.fingerprint().await.flatten();
        }
        // Where the file had turned the watching off, only one that turns it on again is that file whole.
        if let Ok(loaded) = &loaded
            && alone
            && !self.running.reload.watch
            && !loaded.config.reload.watch
        {
            self.loaded = before;
            return None;
        }
        let loaded = loaded.and_then(|loaded| match self.emptied(&loaded.config) {
            wrong if wrong.is_empty() => Ok(loaded),
            wrong => Err(wrong),
        });
        let known = self.loaded == before
            && matches!((&loaded, &self.failed), (Err(now), Some((then, _))) if now == then);
        self.loaded = before;
        if alone && known {
            // Still the same: it was said.
            self.failed.iter_mut().for_each(|(_, at)| *at = Moment::now());
            return None;
        }
        systemd::reloading();
        let mut report = Report {
            at: clock::now(),
            by,
            problems: Vec::new(),
            warnings: Vec::new(),
            difference: Difference::default(),
        };
        match loaded {
            Ok(loaded) => {
                self.failed = None;
                report.warnings = loaded.warnings.iter().map(ToString::to_string).collect();
                for warning in &report.warnings {
                    warn!(warning, "about the configuration");
                }
                let watched = self.running.reload.watch;
                report.difference = self.apply(loaded.config).await;
                let unwatched = alone && watched && !self.running.reload.watch;
                self.unwatched = unwatched.then(Moment::now);
                // What stands elsewhere (a secret's file, a receiver's own settings) may have changed too.
                self.handles.services.status.retry_sinks();
            }
            Err(problems) => {
                for problem in &problems {
                    error!(by, problem, "the new configuration was rejected; nothing was changed");
                }
                self.failed = Some((problems.clone(), Moment::now()));
                report.problems = problems;
            }
        }
        self.handles.status.reloaded(report.clone());
        systemd::reloaded();
        Some(report)
    }

    async fn apply(&mut self, loaded: Config) -> Difference {
        let (found, next) = difference(&self.running, &loaded);
        warn_of_published_state(&self.running.sinks, &next.sinks);
        self.running = next;
        let ReloadHandles { services, status, targets, channels, sinks, access, config, requests } =
            &self.handles;
        if !found.needs_restart.is_empty() {
            let keys = found.needs_restart.join(", ");
            warn!(keys, "these changes of the configuration take effect at the next start");
        }
        if found.is_empty() {
            info!("the configuration was reloaded: nothing has changed");
            return found;
        }
        let admin = self.running.http.admin_token.is_some();
        status.configured(self.running.channels.keys(), self.running.sinks.len(), admin);
        sinks.send_replace(self.running.sinks.keys().cloned().collect());
        channels.send_replace(self.running.channels.keys().cloned().collect());
        if let Some(cluster) = &services.cluster {
            cluster.configured(Configured::of(&self.running));
        }
        let changed =
            |name: &String| found.sinks_added.contains(name) || found.sinks_changed.contains(name);
        let configured = &self.running.sinks;
        for name in found.sinks_removed.iter().chain(&found.sinks_changed) {
            for task in sink_tasks::names(name) {
                requests.remove(&task).await;
            }
        }
        for (name, sink) in configured.iter().filter(|(name, _)| changed(name)) {
            // A new sink's place is taken now: what a new subscription brings stands behind it. Where one begins
            // that gets events of some age, only the disk knows: its task waits for that.
            if services.cluster.is_none()
                && !matches!(sink.start, Start::Age(_))
                && let Err(error) = services.journal.register(name, sink.start)
            {
                warn!(sink = name, %error, "the sink's place in the journal cannot be had now");
            }
            for (task, stage, factory) in sink_tasks::factories(services, name, sink) {
                requests.add(&task, stage, factory).await;
            }
        }
        if !found.channels_added.is_empty() || !found.channels_removed.is_empty() {
            // They listen for the commands of the channels that there were when they began.
            for (name, sink) in configured.iter().filter(|(name, _)| !changed(name)) {
                let listening = match sink_tasks::commands(services, name, sink) {
                    Some(task) => vec![task],
                    // Of a kind whose sink listens itself.
                    None if sink.takes_commands() => sink_tasks::factories(services, name, sink),
                    None => Vec::new(),
                };
                for (task, stage, factory) in listening {
                    requests.remove(&task).await;
                    requests.add(&task, stage, factory).await;
                }
            }
        }
        if found.concerns_gateway() {
            let wanted = Targets::of(&self.running);
            // In a cluster it is decided elsewhere which of them are wanted here.
            if services.cluster.is_none() {
                status.gateway.expect(&wanted.subscriptions);
            }
            targets.send_replace(wanted);
        }
        access.send_replace(self.running.http.clone());
        config.send_replace(Arc::new(self.running.clone()));
        if found.applied.iter().any(|key| key == "log.level")
            && let Err(error) = log::set_level(&self.running.log.level)
        {
            warn!(%error, "the level of the log stays as it was");
        }
        info!(
            channels_added = ?found.channels_added, channels_removed = ?found.channels_removed,
            channels_changed = ?found.channels_changed, sinks_added = ?found.sinks_added,
            sinks_removed = ?found.sinks_removed, sinks_changed = ?found.sinks_changed,
            keys = ?found.applied, "the configuration was reloaded"
        );
        found
    }
}

/// Says whose state stays at its destination, because nobody looks after it any more.
fn warn_of_published_state(
    before: &BTreeMap<String, SinkConfig>,
    now: &BTreeMap<String, SinkConfig>,
) {
    let publishes = |name: &String| now.get(name).is_some_and(|sink| sink.state);
    for (sink, _) in before.iter().filter(|(name, sink)| sink.state && !publishes(name)) {
        warn!(
            sink,
            "the sink no longer publishes state: what it has published stays at the destination, until \
             it is removed there or a sink of this name publishes state there again"
        );
    }
}

/// Makes the task over and over from the same state.
pub(crate) fn factory(reload: Reload) -> crate::base::supervisor::Factory {
    let reload = Arc::new(tokio::sync::Mutex::new(reload));
    Box::new(move |stop| {
        let reload = Arc::clone(&reload);
        Ok(Box::pin(async move { reload.lock().await.run(stop).await }))
    })
}

fn fingerprint(file: &Path) -> Fingerprint {
    use std::os::unix::fs::MetadataExt as _;
    // A link is followed: that is how a mounted configuration is exchanged.
    let found = std::fs::metadata(file).ok()?;
    Some((found.dev(), found.ino(), found.ctime(), found.ctime_nsec(), found.len()))
}
