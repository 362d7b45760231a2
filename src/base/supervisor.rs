//! Starts tasks, starts them again after a failure, and stops them in order. Nothing else spawns.
//!
//! A task is made by a factory, so that it can be made again after it has failed. A task that ends
//! without being told to has failed, whatever it says: there is no way to spell success for it. A
//! factory that fails, or panics, is a failure of its task.
//!
//! | a task | fails again and again | does not respond |
//! |---|---|---|
//! | essential: the relay is of no use without it | ends the process: the service manager starts it again | is ended and started again; one that never returns from a poll ends the process |
//! | any other | stays down for [`LONGEST`] at a time; the others go on | is reported; nobody can end what never returns |
//!
//! Every poll of a task is its heartbeat. An essential task has to be polled at least every few
//! seconds, so it needs a timer of its own; others may rest for as long as they like.
//!
//! Stages stop one after another, each with a deadline: what takes in first, then what gives out, then
//! what shows.

mod heartbeat;

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    sync::{mpsc, oneshot},
    task::{AbortHandle, JoinError, JoinSet, spawn_blocking},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use self::heartbeat::{Heartbeat, Polled};
use crate::base::{clock, sync::lock};

/// Failures of one task, each soon after the one before, that are taken in stride.
const BUDGET: u32 = 5;

/// What ran for this long before it failed begins a new count.
const LIVED: Duration = Duration::from_mins(2);

/// What has run for this long after a failure is well again.
const STEADY: Duration = Duration::from_secs(10);

/// The wait before a failed task is started again. For one that is not essential it doubles.
const RESTART: Duration = Duration::from_secs(1);

/// How long a task stays down that has failed more often than [`BUDGET`].
const LONGEST: Duration = Duration::from_mins(5);

/// The supervisor looks after everything this often.
const TURN: Duration = Duration::from_secs(1);

/// How long the next stage waits for the tasks of the one before to be made.
const MAKING: Duration = Duration::from_secs(8);

/// Requests to the supervisor that may wait.
const REQUESTS: usize = 64;

/// When a task is stopped: in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Takes events in.
    Intake,
    /// Gives events out.
    Delivery,
    /// Shows what happens.
    Display,
}

/// A task as the supervisor runs it.
pub type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Makes a task, on a thread where it may block; an error is a failure like any other.
pub type Factory = Box<dyn Fn(CancellationToken) -> Result<Work, String> + Send>;

/// Is told why a task does not work, and (`None`) that it works again.
pub type Report = Box<dyn Fn(&str, Option<&str>) + Send>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was asked to.
    Stopped,
    /// An essential task failed too often, or hangs.
    GaveUp(String),
}

/// Adds and removes tasks while the supervisor runs.
#[derive(Debug, Clone)]
pub struct Requests(mpsc::Sender<Request>);

enum Request {
    Add(String, Stage, Factory),
    Remove(String),
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Add(name, ..) => write!(f, "Add({name})"),
            Self::Remove(name) => write!(f, "Remove({name})"),
        }
    }
}

pub struct Supervisor {
    tasks: BTreeMap<String, Task>,
    running: JoinSet<String>,
    names: BTreeMap<tokio::task::Id, String>,
    requests: mpsc::Receiver<Request>,
    sender: mpsc::Sender<Request>,
    report: Report,
    /// Whether [`Supervisor::run`] has begun.
    begun: bool,
}

struct Task {
    stage: Stage,
    essential: bool,
    factory: Arc<Mutex<Factory>>,
    stop: CancellationToken,
    abort: Option<AbortHandle>,
    heartbeat: Heartbeat,
    started: Instant,
    /// Failures without a long life in between.
    failures: u32,
    /// Whether it was reported not to work.
    reported: bool,
    /// Told to stop; it is forgotten when it has.
    leaving: bool,
    /// When a task that leaves alone is ended, whatever it does. [`Supervisor::stop_stage`] has a
    /// deadline of its own.
    leave_by: Option<Instant>,
    restart_at: Option<Instant>,
    /// Takes the name over when this one has left.
    successor: Option<(Stage, Factory)>,
}

impl std::fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.tasks.keys()).finish()
    }
}

impl Requests {
    /// Starts a task. If one of that name is still leaving, it is started when that has left.
    pub async fn add(&self, name: &str, stage: Stage, factory: Factory) {
        // The supervisor is gone only when everything is: then there is nothing to add to.
        drop(self.0.send(Request::Add(name.to_owned(), stage, factory)).await);
    }

    /// Stops a task for good.
    pub async fn remove(&self, name: &str) {
        drop(self.0.send(Request::Remove(name.to_owned())).await);
    }
}

impl Supervisor {
    pub(crate) fn new() -> Self {
        let (sender, requests) = mpsc::channel(REQUESTS);
        Self {
            tasks: BTreeMap::new(),
            running: JoinSet::new(),
            names: BTreeMap::new(),
            requests,
            sender,
            report: Box::new(|_, _| {}),
            begun: false,
        }
    }

    /// Tells `report` which tasks do not work.
    pub(crate) fn report_to(&mut self, report: Report) {
        self.report = report;
    }

    /// A handle to add and remove tasks with.
    pub fn requests(&self) -> Requests {
        Requests(self.sender.clone())
    }

    /// Starts a task; before [`Supervisor::run`], it is only put down to be started by that. When it
    /// fails, the others go on.
    pub fn add(&mut self, name: &str, stage: Stage, factory: Factory) {
        self.put(name, stage, factory, false);
    }

    /// The same for a task without which the relay is of no use.
    pub(crate) fn add_essential(&mut self, name: &str, stage: Stage, factory: Factory) {
        self.put(name, stage, factory, true);
    }

    fn put(&mut self, name: &str, stage: Stage, factory: Factory, essential: bool) {
        let task = Task {
            stage,
            essential,
            factory: Arc::new(Mutex::new(factory)),
            stop: CancellationToken::new(),
            abort: None,
            heartbeat: Heartbeat::default(),
            started: Instant::now(),
            failures: 0,
            reported: false,
            leaving: false,
            leave_by: None,
            restart_at: None,
            successor: None,
        };
        self.tasks.insert(name.to_owned(), task);
        if self.begun {
            drop(self.start(name));
        }
    }

    /// Runs until `stop`, or until an essential task has failed too often; then stops all, each stage
    /// within `deadline`. `on_tick` is called at every turn of the loop, at least once a second: it
    /// feeds the service manager's watchdog.
    pub async fn run(
        mut self,
        stop: CancellationToken,
        deadline: Duration,
        mut on_tick: impl FnMut(),
    ) -> Outcome {
        self.begun = true;
        // What takes in starts last: nothing comes before there is somebody to have it.
        for stage in [Stage::Display, Stage::Delivery, Stage::Intake] {
            let at = |(name, task): (&String, &Task)| (task.stage == stage).then(|| name.clone());
            let names: Vec<_> = self.tasks.iter().filter_map(at).collect();
            let made: Vec<_> = names.iter().filter_map(|name| self.start(name)).collect();
            on_tick();
            if timeout(MAKING, join_all(made)).await.is_err() {
                warn!(?stage, "not everything is made yet; the rest is started without it");
            }
        }
        let mut turn = interval(TURN);
        turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let outcome = loop {
            on_tick();
            let due = |task: &Task| task.restart_at.into_iter().chain(task.leave_by).min();
            let due = self.tasks.values().filter_map(due).min();
            let due = due.map(|at| at.saturating_duration_since(Instant::now()));
            tokio::select! {
                () = stop.cancelled() => break Outcome::Stopped,
                () = sleep(due.unwrap_or(TURN).min(TURN)) => {
                    self.restart();
                    self.end_late();
                }
                _ = turn.tick() => {
                    clock::notice_sleep();
                    if let Some(outcome) = self.look_after() {
                        break outcome;
                    }
                }
                Some(ended) = self.running.join_next_with_id() => {
                    if let Some(outcome) = self.ended(ended) {
                        break outcome;
                    }
                }
                Some(request) = self.requests.recv() => self.handle(request, deadline),
            }
        };
        for stage in [Stage::Intake, Stage::Delivery, Stage::Display] {
            self.stop_stage(stage, deadline).await;
        }
        outcome
    }

    /// Starts a task; what it answers ends when the task has been made, or could not be.
    #[expect(clippy::disallowed_methods, reason = "this is the supervisor")]
    fn start(&mut self, name: &str) -> Option<oneshot::Receiver<()>> {
        let task = self.tasks.get_mut(name)?;
        task.restart_at = None;
        task.started = Instant::now();
        let (heartbeat, polls) = Heartbeat::while_made();
        task.heartbeat = heartbeat;
        let (stop, factory) = (task.stop.clone(), Arc::clone(&task.factory));
        let (made, is_made) = oneshot::channel();
        let handle = self.running.spawn(async move {
            let making = spawn_blocking(move || {
                // It is called by one task at a time; one that panicked may be called again.
                lock(&factory)(stop)
            });
            let work = match making.await {
                Ok(Ok(work)) => work,
                Ok(Err(error)) => return format!("it cannot be started: {error}"),
                Err(error) => return format!("it cannot be started: {error}"),
            };
            polls.count();
            drop(made);
            Polled { work, polls }.await;
            "it ended by itself".to_owned()
        });
        self.names.insert(handle.id(), name.to_owned());
        task.abort = Some(handle);
        Some(is_made)
    }

    fn restart(&mut self) {
        let now = Instant::now();
        let due = |task: &Task| task.restart_at.is_some_and(|at| at <= now);
        let names: Vec<_> =
            self.tasks.iter().filter(|(_, task)| due(task)).map(|(name, _)| name.clone()).collect();
        for name in names {
            drop(self.start(&name));
        }
    }

    /// Finds tasks that do not respond, and those that are well again.
    fn look_after(&mut self) -> Option<Outcome> {
        for (name, task) in &mut self.tasks {
            if task.restart_at.is_some() || task.abort.is_none() {
                continue;
            }
            let stopped = task.heartbeat.stopped(!task.essential || task.leaving);
            if stopped {
                let in_poll = task.heartbeat.in_poll();
                error!(task = name, in_poll, "a task does not respond");
                task.reported = true;
                (self.report)(name, Some("it does not respond; restart the relay"));
                if task.essential && in_poll {
                    return Some(Outcome::GaveUp(name.clone()));
                }
                if let Some(abort) = &task.abort
                    && !in_poll
                {
                    abort.abort();
                }
            } else if task.reported && task.heartbeat.beats() && task.started.elapsed() >= STEADY {
                task.reported = false;
                (self.report)(name, None);
            }
        }
        None
    }

    /// Ends tasks that were asked to stop and take too long: their successors wait.
    fn end_late(&mut self) {
        let now = Instant::now();
        for (name, task) in &mut self.tasks {
            if task.leave_by.is_some_and(|at| at <= now) {
                task.leave_by = None;
                warn!(task = name, "did not stop within the deadline");
                if let Some(abort) = &task.abort {
                    abort.abort();
                }
            }
        }
    }

    fn ended(&mut self, ended: Result<(tokio::task::Id, String), JoinError>) -> Option<Outcome> {
        let (id, error) = match ended {
            Ok((id, why)) => (id, why),
            Err(error) if error.is_cancelled() => (error.id(), "it was ended".to_owned()),
            Err(error) => (error.id(), error.to_string()),
        };
        let name = self.names.remove(&id)?;
        let task = self.tasks.get_mut(&name)?;
        task.abort = None;
        if task.leaving {
            let successor = task.successor.take();
            self.forget(&name);
            debug!(task = name, "stopped");
            if let Some((stage, factory)) = successor {
                self.add(&name, stage, factory);
            }
            return None;
        }
        let now = Instant::now();
        task.failures = if now >= task.started + LIVED { 1 } else { task.failures + 1 };
        let spent = task.failures > BUDGET;
        let wait = match (task.essential, spent) {
            (true, _) => RESTART,
            (false, true) => LONGEST,
            (false, false) => RESTART * (1 << (task.failures - 1)),
        };
        error!(task = name, error, failures = task.failures, ?wait, "a task has failed");
        task.reported = true;
        (self.report)(&name, Some(&format!("its task has failed: {error}")));
        if spent && task.essential {
            return Some(Outcome::GaveUp(name));
        }
        task.restart_at = Some(now + wait);
        None
    }

    /// Nothing is to be said of a task any more.
    fn forget(&mut self, name: &str) {
        if self.tasks.remove(name).is_some_and(|task| task.reported) {
            (self.report)(name, None);
        }
    }

    fn handle(&mut self, request: Request, deadline: Duration) {
        match request {
            Request::Add(name, stage, factory) => match self.tasks.get_mut(&name) {
                Some(task) if task.leaving => task.successor = Some((stage, factory)),
                Some(_) => warn!(task = name, "a task of this name runs already"),
                None => self.add(&name, stage, factory),
            },
            Request::Remove(name) => {
                let Some(task) = self.tasks.get_mut(&name) else { return };
                task.leaving = true;
                task.leave_by = Some(Instant::now() + deadline);
                task.successor = None;
                task.stop.cancel();
                if task.restart_at.is_some() {
                    self.forget(&name);
                }
            }
        }
    }

    async fn stop_stage(&mut self, stage: Stage, deadline: Duration) {
        for task in self.tasks.values_mut().filter(|task| task.stage == stage) {
            task.leaving = true;
            task.restart_at = None;
            task.successor = None;
            task.stop.cancel();
        }
        let end = Instant::now() + deadline;
        while self.names.values().any(|name| self.is_at(name, stage)) {
            let Ok(Some(ended)) = timeout_at(end, self.running.join_next_with_id()).await else {
                break;
            };
            // Told to stop: how it ended is of no matter any more.
            drop(self.ended(ended));
        }
        let late: Vec<_> = self.names.values().filter(|name| self.is_at(name, stage)).collect();
        for name in late {
            warn!(task = name, "did not stop within the deadline");
            if let Some(abort) = self.tasks.get(name).and_then(|task| task.abort.as_ref()) {
                abort.abort();
            }
        }
        self.names.retain(|_, name| self.tasks.get(name).is_none_or(|task| task.stage != stage));
    }

    fn is_at(&self, name: &str, stage: Stage) -> bool {
        self.tasks.get(name).is_some_and(|task| task.stage == stage)
    }
}

#[cfg(test)]
mod tests;
