//! Starts tasks, starts them again within a budget, and stops them in order. Nothing else spawns.
//!
//! A task is made by a factory, so that it can be made anew after it has failed. A task that ends
//! without being told to has failed, whatever it says: there is no way to spell success for it.
//!
//! The one thing to know: stages stop one after another, each with a deadline: what takes in first,
//! then what gives out, then what shows.

use std::{
    collections::{BTreeMap, VecDeque},
    pin::Pin,
    time::Duration,
};

use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinError, JoinSet},
    time::{Instant, sleep, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// Failures of one task within [`BUDGET_TIME`] that are taken in stride.
const BUDGET: usize = 5;

/// See [`BUDGET`]: what fails more often than every two minutes needs the service manager's view.
const BUDGET_TIME: Duration = Duration::from_mins(10);

/// The wait before a failed task is started again.
const RESTART: Duration = Duration::from_secs(1);

/// Orders to the supervisor that may wait.
const ORDERS: usize = 64;

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

/// Makes a task; an error is a failure like any other.
pub type Factory = Box<dyn Fn(CancellationToken) -> Result<Work, String> + Send>;

/// How it all ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// As it was told.
    Stopped,
    /// A task failed too often.
    GaveUp(String),
}

/// Adds and removes tasks while the supervisor runs.
#[derive(Debug, Clone)]
pub struct Orders(mpsc::Sender<Order>);

enum Order {
    Add(String, Stage, Factory),
    Remove(String),
}

impl std::fmt::Debug for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Add(name, ..) => write!(f, "Add({name})"),
            Self::Remove(name) => write!(f, "Remove({name})"),
        }
    }
}

/// The supervisor.
pub struct Supervisor {
    tasks: BTreeMap<String, Task>,
    running: JoinSet<String>,
    names: BTreeMap<tokio::task::Id, String>,
    orders: mpsc::Receiver<Order>,
    sender: mpsc::Sender<Order>,
    /// Whether [`Supervisor::run`] has begun.
    begun: bool,
}

struct Task {
    stage: Stage,
    factory: Factory,
    stop: CancellationToken,
    abort: Option<AbortHandle>,
    failures: VecDeque<Instant>,
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

impl Default for Supervisor {
    fn default() -> Self {
        Self::new()
    }
}

impl Orders {
    /// Starts a task. If one of that name is still leaving, it is started when that has left.
    pub async fn add(&self, name: &str, stage: Stage, factory: Factory) {
        // The supervisor is gone only when everything is: then there is nothing to add to.
        drop(self.0.send(Order::Add(name.to_owned(), stage, factory)).await);
    }

    /// Stops a task for good.
    pub async fn remove(&self, name: &str) {
        drop(self.0.send(Order::Remove(name.to_owned())).await);
    }
}

impl Supervisor {
    /// One without tasks.
    pub fn new() -> Self {
        let (sender, orders) = mpsc::channel(ORDERS);
        Self {
            tasks: BTreeMap::new(),
            running: JoinSet::new(),
            names: BTreeMap::new(),
            orders,
            sender,
            begun: false,
        }
    }

    /// A handle to add and remove tasks with.
    pub fn orders(&self) -> Orders {
        Orders(self.sender.clone())
    }

    /// Starts a task; before [`Supervisor::run`], it is only put down to be started by that.
    pub fn add(&mut self, name: &str, stage: Stage, factory: Factory) {
        let task = Task {
            stage,
            factory,
            stop: CancellationToken::new(),
            abort: None,
            failures: VecDeque::new(),
            leaving: false,
            leave_by: None,
            restart_at: None,
            successor: None,
        };
        self.tasks.insert(name.to_owned(), task);
        if self.begun {
            self.start(name);
        }
    }

    /// Runs until `stop`, or until a task has failed too often; then stops all, each stage within
    /// `deadline`. `turning` is called at every turn of the loop, at least once a second.
    pub async fn run(
        mut self,
        stop: CancellationToken,
        deadline: Duration,
        mut turning: impl FnMut(),
    ) -> Outcome {
        /// What else the loop waits for comes at any time; the watchdog is fed by its turning.
        const TURN: Duration = Duration::from_secs(1);
        self.begun = true;
        // What takes in starts last: nothing comes before there is somebody to have it.
        for stage in [Stage::Display, Stage::Delivery, Stage::Intake] {
            let at = |(name, task): (&String, &Task)| (task.stage == stage).then(|| name.clone());
            for name in self.tasks.iter().filter_map(at).collect::<Vec<_>>() {
                self.start(&name);
            }
        }
        let outcome = loop {
            turning();
            let due = |task: &Task| task.restart_at.into_iter().chain(task.leave_by).min();
            let due = self.tasks.values().filter_map(due).min();
            let due = due.map(|at| at.saturating_duration_since(Instant::now()));
            tokio::select! {
                () = stop.cancelled() => break Outcome::Stopped,
                () = sleep(due.unwrap_or(TURN).min(TURN)) => {
                    self.restart();
                    self.end_late();
                }
                Some(ended) = self.running.join_next_with_id() => {
                    if let Some(outcome) = self.ended(ended) {
                        break outcome;
                    }
                }
                Some(order) = self.orders.recv() => self.obey(order, deadline),
            }
        };
        for stage in [Stage::Intake, Stage::Delivery, Stage::Display] {
            self.stop_stage(stage, deadline).await;
        }
        outcome
    }

    #[expect(clippy::disallowed_methods, reason = "this is the supervisor")]
    fn start(&mut self, name: &str) {
        let Some(task) = self.tasks.get_mut(name) else { return };
        task.restart_at = None;
        let stop = task.stop.clone();
        let owned = name.to_owned();
        match (task.factory)(stop) {
            Ok(work) => {
                let handle = self.running.spawn(async move {
                    work.await;
                    owned
                });
                self.names.insert(handle.id(), name.to_owned());
                task.abort = Some(handle);
            }
            Err(error) => {
                error!(task = name, error, "a task cannot be started");
                task.failures.push_back(Instant::now());
                task.restart_at = Some(Instant::now() + RESTART);
            }
        }
    }

    fn restart(&mut self) {
        let now = Instant::now();
        let due = |task: &Task| task.restart_at.is_some_and(|at| at <= now);
        let names: Vec<_> =
            self.tasks.iter().filter(|(_, task)| due(task)).map(|(name, _)| name.clone()).collect();
        for name in names {
            self.start(&name);
        }
    }

    /// Ends tasks that were told to stop and take too long: their successors wait.
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
            Ok((id, _)) => (id, "it ended by itself".to_owned()),
            Err(error) => (error.id(), error.to_string()),
        };
        let name = self.names.remove(&id)?;
        let task = self.tasks.get_mut(&name)?;
        if task.leaving {
            let successor = task.successor.take();
            self.tasks.remove(&name);
            info!(task = name, "stopped");
            if let Some((stage, factory)) = successor {
                self.add(&name, stage, factory);
            }
            return None;
        }
        let now = Instant::now();
        task.failures.push_back(now);
        while task.failures.front().is_some_and(|at| *at + BUDGET_TIME < now) {
            task.failures.pop_front();
        }
        error!(task = name, error, failures = task.failures.len(), "a task has failed");
        if task.failures.len() > BUDGET {
            return Some(Outcome::GaveUp(name));
        }
        task.restart_at = Some(now + RESTART);
        None
    }

    fn obey(&mut self, order: Order, deadline: Duration) {
        match order {
            Order::Add(name, stage, factory) => match self.tasks.get_mut(&name) {
                Some(task) if task.leaving => task.successor = Some((stage, factory)),
                Some(_) => warn!(task = name, "a task of this name runs already"),
                None => self.add(&name, stage, factory),
            },
            Order::Remove(name) => {
                let Some(task) = self.tasks.get_mut(&name) else { return };
                task.leaving = true;
                task.leave_by = Some(Instant::now() + deadline);
                task.successor = None;
                task.stop.cancel();
                if task.restart_at.is_some() {
                    self.tasks.remove(&name);
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
mod tests {
    use std::sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    fn counting(starts: &Arc<AtomicUsize>, run: fn(CancellationToken) -> Work) -> Factory {
        let starts = Arc::clone(starts);
        Box::new(move |stop| {
            starts.fetch_add(1, Ordering::SeqCst);
            Ok(run(stop))
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_is_started_again_until_the_budget_is_spent() {
        let starts = Arc::new(AtomicUsize::new(0));
        let mut supervisor = Supervisor::new();
        supervisor.add(
            "bad",
            Stage::Intake,
            counting(&starts, |_| Box::pin(async { panic!("no") })),
        );
        let outcome = supervisor.run(CancellationToken::new(), RESTART, || {}).await;
        assert_eq!(outcome, Outcome::GaveUp("bad".into()));
        assert_eq!(starts.load(Ordering::SeqCst), BUDGET + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_ends_by_itself_has_failed() {
        let starts = Arc::new(AtomicUsize::new(0));
        let mut supervisor = Supervisor::new();
        supervisor.add("idle", Stage::Intake, counting(&starts, |_| Box::pin(async {})));
        let outcome = supervisor.run(CancellationToken::new(), RESTART, || {}).await;
        assert_eq!(outcome, Outcome::GaveUp("idle".into()));
    }

    #[tokio::test(start_paused = true)]
    async fn stages_stop_in_order_and_within_the_deadline() {
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut supervisor = Supervisor::new();
        for (name, stage) in [("z", Stage::Intake), ("a", Stage::Delivery), ("m", Stage::Display)] {
            let order = Arc::clone(&order);
            let factory: Factory = Box::new(move |stop| {
                let order = Arc::clone(&order);
                Ok(Box::pin(async move {
                    stop.cancelled().await;
                    order.lock().unwrap().push(name);
                }))
            });
            supervisor.add(name, stage, factory);
        }
        supervisor.add("deaf", Stage::Delivery, Box::new(|_| Ok(Box::pin(std::future::pending()))));
        let stop = CancellationToken::new();
        stop.cancel();
        let before = Instant::now();
        assert_eq!(supervisor.run(stop, Duration::from_secs(3), || {}).await, Outcome::Stopped);
        assert_eq!(before.elapsed(), Duration::from_secs(3));
        assert_eq!(*order.lock().unwrap(), ["z", "a", "m"]);
    }

    #[tokio::test(start_paused = true)]
    async fn tasks_come_and_go_while_it_runs() {
        let starts = Arc::new(AtomicUsize::new(0));
        let supervisor = Supervisor::new();
        let orders = supervisor.orders();
        let wait: fn(CancellationToken) -> Work =
            |stop| Box::pin(async move { stop.cancelled().await });
        let (stop, counted) = (CancellationToken::new(), Arc::clone(&starts));
        let script = async {
            orders.add("sink", Stage::Delivery, counting(&counted, wait)).await;
            orders.remove("sink").await;
            orders.add("sink", Stage::Delivery, counting(&counted, wait)).await;
            sleep(Duration::from_secs(5)).await;
            stop.cancel();
        };
        let (outcome, ()) = tokio::join!(supervisor.run(stop.clone(), RESTART, || {}), script);
        assert_eq!((outcome, starts.load(Ordering::SeqCst)), (Outcome::Stopped, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_does_not_leave_is_ended_and_its_successor_started() {
        let started = Arc::new(Mutex::new(Vec::new()));
        let supervisor = Supervisor::new();
        let orders = supervisor.orders();
        let stubborn = |name: &'static str| -> Factory {
            let started = Arc::clone(&started);
            Box::new(move |_| {
                started.lock().unwrap().push((name, Instant::now()));
                Ok(Box::pin(std::future::pending()))
            })
        };
        let (stop, before) = (CancellationToken::new(), Instant::now());
        let script = async {
            orders.add("sink", Stage::Delivery, stubborn("old")).await;
            orders.remove("sink").await;
            orders.add("sink", Stage::Delivery, stubborn("new")).await;
            sleep(Duration::from_secs(9)).await;
            stop.cancel();
        };
        let deadline = Duration::from_secs(4);
        let (outcome, ()) = tokio::join!(supervisor.run(stop.clone(), deadline, || {}), script);
        assert_eq!(outcome, Outcome::Stopped);
        let started: Vec<_> = started
            .lock()
            .unwrap()
            .iter()
            .map(|(name, at)| (*name, at.duration_since(before).as_secs()))
            .collect();
        assert_eq!(started, [("old", 0), ("new", 4)]);
    }
}
