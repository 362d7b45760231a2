//! Loading the configuration anew while the relay runs.
//!
//! Asked for by SIGHUP, over HTTP, or by a change of the file. It loads everything as at the start;
//! only if all of it can be used is the difference carried out: sinks are started, stopped or made
//! anew by the supervisor, each keeping its cursor; what is wanted of the gateway goes to it through
//! its watch. What is wrong in the new configuration is told, and nothing changes.
//!
//! A file that is watched may be seen at any moment of its being written. It is loaded when it has been
//! still for a moment; one that would leave no channel or no sink where there were some is refused; and
//! half a file that no longer says that it is watched is watched on for a while.
//!
//! The one thing to know: nothing here waits for a sink. A sink that is to go is told so and has its
//! deadline with the supervisor; its successor waits for it there, and nobody else does.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    app::sink_tasks::{self, Services},
    base::{
        clock::{self, Moment},
        log,
        supervisor::{Requests, Stage},
        systemd,
    },
    config::difference::Report,
    config::{
        Config, ConfigError, Http,
        difference::{Difference, difference},
    },
    gateway::Targets,
    http::{Reloads, Request, relay_status::RelayStatus},
    loading::{Loaded, Sources, load},
};

/// Requests that may wait: a finger on a key, not a queue.
const REQUESTS: usize = 8;

/// How often the file is looked at. It is loaded when it looks the same twice, so that half a file is
/// not taken for a whole one.
const LOOK: Duration = Duration::from_secs(2);

/// How long the file system may take to answer a look.
const ANSWER: Duration = Duration::from_secs(1);

/// How long everything that is configured may take to be read.
const LOAD: Duration = Duration::from_secs(25);

/// How often a file is read again that was written meanwhile, when somebody waits for it.
const READS: usize = 3;

/// A file that could not be used is tried again after this, though it is the same: a secret that it names
/// may be there again.
const AGAIN: Duration = Duration::from_secs(30);

/// How long a file is watched that has turned the watching off: it may have been half of one.
const STILL_WATCHED: Duration = Duration::from_mins(2);

/// Who asks where nobody does: the file has changed.
const BY_FILE: &str = "file";

/// What a reload changes.
#[derive(Debug)]
pub struct ReloadHandles {
    /// What the sinks are made of.
    pub services: Services,
    pub status: Arc<RelayStatus>,
    /// What is wanted of the gateway.
    pub targets: watch::Sender<Targets>,
    /// The configured channels.
    pub channels: watch::Sender<BTreeSet<String>>,
    /// The configured sinks.
    pub sinks: watch::Sender<BTreeSet<String>>,
    /// Who may ask over HTTP.
    pub access: watch::Sender<Http>,
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
    /// How the file looked when it was loaded, and when it was looked at last.
    loaded: Look,
    last: Look,
    /// What was wrong the last time, and when that was.
    failed: Option<(Vec<String>, Moment)>,
    /// When a file that was loaded by itself turned the watching off.
    blinded: Option<Moment>,
    /// Work on files that has not come back: a disk that hangs.
    looking: Option<JoinHandle<Look>>,
    loading: Option<JoinHandle<Result<Loaded, ConfigError>>>,
}

impl std::fmt::Debug for Reload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reload({:?})", self.file)
    }
}

/// Enough of a file's state to see that it is another: its device and number, when it was changed, and
/// its size. The time of change comes from the kernel; the one of modification can be set back.
type Look = Option<(u64, u64, i64, i64, u64)>;

impl Reload {
    /// The task that loads from `sources`, and a handle to ask it with.
    pub fn new(sources: Sources, loaded: Loaded, handles: ReloadHandles) -> (Self, Reloads) {
        let (sender, requests) = mpsc::channel(REQUESTS);
        let Loaded { config, file, .. } = loaded;
        let file = file.filter(|_| sources.text.is_none());
        let look = file.as_deref().and_then(look);
        let task = Self {
            sources,
            file,
            running: config,
            handles,
            requests,
            loaded: look,
            last: look,
            failed: None,
            blinded: None,
            looking: None,
            loading: None,
        };
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
                _ = looking.tick(), if self.watches() => None,
            };
            let done = async {
                match &request {
                    Some(request) => self.reload(request.by).await,
                    None if self.is_due().await => self.reload(BY_FILE).await,
                    None => None,
                }
            };
            let report = tokio::select! {
                // The supervisor that stops takes no requests any more.
                () = stop.cancelled() => return,
                report = done => report,
            };
            if let (Some(Request { answer, .. }), Some(report)) = (request, report) {
                // Whoever asked may have left.
                drop(answer.send(report));
            }
        }
    }

    /// Whether the file is looked at. One that has turned that off may be the half of a file.
    fn watches(&self) -> bool {
        let blinded = self.blinded.is_some_and(|at| at.elapsed() < STILL_WATCHED);
        self.running.reload.watch || blinded
    }

    /// Whether the file is to be loaded: it is another than the one that was loaded and no longer being
    /// written, or it could not be used then and what it names may have changed.
    async fn is_due(&mut self) -> bool {
        let Some(now) = self.look().await else { return false };
        let still = now == self.last;
        self.last = now;
        let again = self.failed.as_ref().is_some_and(|(_, at)| at.elapsed() >= AGAIN);
        // A file that is away is being replaced, or somebody's mistake: what runs goes on.
        now.is_some() && still && (now != self.loaded || again)
    }

    /// How the file looks; `None`: its disk does not answer.
    async fn look(&mut self) -> Option<Look> {
        let Some(file) = self.file.clone() else { return Some(None) };
        let looking =
            self.looking.get_or_insert_with(|| tokio::task::spawn_blocking(move || look(&file)));
        let look = timeout(ANSWER, looking).await.ok()?;
        self.looking = None;
        Some(look.ok().flatten())
    }

    /// Loads, off the runtime, and says what is wrong.
    async fn load(&mut self) -> Result<Loaded, Vec<String>> {
        let sources = self.sources.clone();
        let loading =
            self.loading.get_or_insert_with(|| tokio::task::spawn_blocking(move || load(&sources)));
        let Ok(loaded) = timeout(LOAD, loading).await else {
            let seconds = LOAD.as_secs();
            return Err(vec![format!("the configuration could not be read within {seconds} s")]);
        };
        self.loading = None;
        let loaded = loaded.unwrap_or_else(|error| Err(ConfigError::at(&[], error.to_string())));
        loaded.map_err(|error| error.problems.iter().map(ToString::to_string).collect())
    }

    /// What a reload must not do, though each of it may be configured at the start: most often it is a
    /// file that is empty for a moment, or half of one.
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

    /// Loads, and carries out what has changed. `None`: there is nothing to be said of it.
    async fn reload(&mut self, by: &'static str) -> Option<Report> {
        let alone = by == BY_FILE;
        let mut before = self.look().await.flatten();
        let mut loaded = self.load().await;
        let mut after = self.look().await.flatten();
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
            after = self.look().await.flatten();
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
                let blinded = alone && watched && !self.running.reload.watch;
                self.blinded = blinded.then(Moment::now);
                // What stands elsewhere (a secret's file, a receiver's own settings) may have changed too.
                self.handles.services.status.retry_sinks();
            }
            Err(problems) => {
                for problem in &problems {
                    error!(
                        by,
                        problem, "the new configuration cannot be used; nothing was changed"
                    );
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
        self.running = next;
        let ReloadHandles { services, status, targets, channels, sinks, access, requests } =
            &self.handles;
        if !found.needs_restart.is_empty() {
            let keys = found.needs_restart.join(", ");
            warn!(keys, "these changes of the configuration take effect at the next start");
        }
        if found.is_empty() {
            info!("the configuration was loaded anew: nothing is to be changed");
            return found;
        }
        status.configured(self.running.channels.len(), self.running.sinks.len());
        sinks.send_replace(self.running.sinks.keys().cloned().collect());
        channels.send_replace(self.running.channels.keys().cloned().collect());
        let changed =
            |name: &String| found.sinks_added.contains(name) || found.sinks_changed.contains(name);
        let configured = &self.running.sinks;
        for name in found.sinks_removed.iter().chain(&found.sinks_changed) {
            for task in sink_tasks::names(name) {
                requests.remove(&task).await;
            }
        }
        for (name, sink) in configured.iter().filter(|(name, _)| changed(name)) {
            // A new sink's place is taken now: what a new subscription brings stands behind it.
            if let Err(error) = services.journal.register(name, sink.start) {
                warn!(sink = name, %error, "the sink's place in the journal cannot be had now");
            }
            for (task, factory) in sink_tasks::factories(services, name, sink) {
                requests.add(&task, Stage::Delivery, factory).await;
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
                for (task, factory) in listening {
                    requests.remove(&task).await;
                    requests.add(&task, Stage::Delivery, factory).await;
                }
            }
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
pub(crate) fn factory(reload: Reload) -> crate::base::supervisor::Factory {
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
    Some((found.dev(), found.ino(), found.ctime(), found.ctime_nsec(), found.len()))
}
