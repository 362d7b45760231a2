//! The table of sinks, and of the tasks that do not work.
//!
//! Deliveries write the rows of their sinks; every other task is here only while it does not work. Status
//! page, health and metrics read it. A sink that waits may be asked here to try now.

use std::{collections::BTreeMap, fmt, sync::Mutex, time::Duration};

use serde::Serialize;
use tokio::sync::watch;

use super::FAILED;
use crate::base::{
    clock::{self, Moment, UnixMillis},
    sync::lock,
    text::{counted, excerpt},
};

/// The state of a sink that another member of the cluster drives.
pub const STANDBY: &str = "standby";

/// Bytes of a text that a server may have written.
const TEXT: usize = 1000;

#[derive(Debug, Default)]
pub struct Status {
    now: Mutex<StatusSnapshot>,
    /// Grows when a sink or a task has another state, or something is wrong with its events.
    changes: watch::Sender<u64>,
    /// Each grows when somebody asks for that sink to be tried now.
    retries: Mutex<BTreeMap<String, watch::Sender<u64>>>,
}

/// The rows as they are now.
#[derive(Debug, Clone, Default)]
pub struct StatusSnapshot {
    /// Sinks by name.
    pub sinks: BTreeMap<String, Sink>,
    /// Tasks of the relay that do not work, and why.
    pub tasks: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Sink {
    pub kind: String,
    /// Where its destination is, without what may be secret; empty where a kind has none.
    pub address: String,
    /// `connecting`, `up`, `down` (no connection), `busy` (asks for patience), `held` (denies us, or its
    /// dead letters are full), `rejecting` (no event is accepted any more), `gone` (wants nothing more),
    /// `failed` (its task did), `standby` (another member of the cluster drives it).
    pub state: &'static str,
    pub since: UnixMillis,
    /// When it was `up` last, where it is in another state.
    #[serde(skip)]
    pub(crate) left_up: Option<Moment>,
    /// Events that its destination has accepted since the start.
    pub delivered: u64,
    /// How long those had been here when they were accepted, added up, in milliseconds.
    pub delivery_ms: u64,
    /// The longest of these times since it was taken for the history.
    #[serde(skip)]
    pub slowest_ms: u64,
    /// Events set aside since the start.
    pub dead_letters: u64,
    /// Events that its destination has rejected since it accepted one.
    pub rejected_in_a_row: u64,
    /// Events lost since the start.
    pub lost: u64,
    /// When the latest of them was found to be.
    pub lost_at: Option<UnixMillis>,
    /// The same, to measure by.
    #[serde(skip)]
    pub(crate) lost_moment: Option<Moment>,
    /// Why that one is.
    #[serde(skip)]
    pub lost_cause: &'static str,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// When that was.
    pub last_error_at: Option<UnixMillis>,
    /// Where it waits: when it tries again by itself.
    pub next_attempt: Option<UnixMillis>,
    /// When its destination last accepted an event.
    pub last_delivered: Option<UnixMillis>,
    /// Where events are on their way and it has answered nothing for a while: since when.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unanswered_since: Option<UnixMillis>,
    /// Why the latest of its dead letters is one.
    pub last_dead_letter: Option<String>,
    /// Events since the start whose topic and channel it wants.
    pub considered: u64,
    /// Those of them that its condition let through, too. Counted until there is one.
    pub matched: u64,
    /// Events on which its condition could not be evaluated, since the start.
    pub condition_errors: u64,
    /// The latest of these: its topic, and what was wrong.
    pub condition_error: Option<String>,
    /// When that was.
    pub condition_error_at: Option<UnixMillis>,
    /// The same, to measure by.
    #[serde(skip)]
    pub(crate) condition_error_moment: Option<Moment>,
    /// The latest events that its destination has accepted, and passed on to nobody.
    pub unheard_in_a_row: u64,
    /// What an operator should know of its destination.
    pub remarks: Vec<String>,
    /// The same of the connection that publishes its state.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub state_remarks: Vec<String>,
}

/// What is wrong, as far as it is known here.
#[derive(Debug, Clone, Copy)]
pub enum Reason<'a> {
    /// It takes no events now.
    Sink(&'a str, &'a Sink),
    Task(&'a str, &'a str),
    /// It is connected, and answers nothing.
    Unanswered(&'a str, &'a Sink),
    /// It will never get some events.
    Lost(&'a str, &'a Sink),
    /// Its condition fails on events.
    Condition(&'a str, &'a Sink),
    /// What it sends reaches nobody.
    Unheard(&'a str, &'a Sink),
    /// Its condition has let nothing through.
    Unmatched(&'a str, &'a Sink),
}

/// A condition that has failed is a reason for so long after the last time.
const CONDITION: Duration = Duration::from_hours(1);

/// Lost events are a reason for so long after the latest of them.
const LOST: Duration = Duration::from_hours(1);

/// A destination that asks for patience takes no events when it has accepted none for so long.
const BUSY: Duration = Duration::from_mins(1);

/// So many events that were considered, and none let through, are worth a word.
const UNMATCHED: u64 = 20;

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sink(name, Sink { state, last_error, .. }) => {
                let why = last_error.as_deref().unwrap_or("not yet connected");
                write!(f, "sink {name} is {state}: {why}")
            }
            Self::Task(name, why) => write!(f, "{name}: {why}"),
            Self::Unanswered(name, Sink { unanswered_since, .. }) => {
                let since = clock::rfc3339(unanswered_since.unwrap_or_default());
                write!(
                    f,
                    "sink {name} has accepted nothing since {since}, with events on their way"
                )
            }
            Self::Lost(name, Sink { lost, lost_cause, .. }) => {
                let events = counted(*lost, "event");
                write!(f, "sink {name}: {events} lost, {lost_cause}")
            }
            Self::Condition(name, Sink { condition_errors, condition_error, .. }) => {
                let events = counted(*condition_errors, "event");
                let why = condition_error.as_deref().unwrap_or_default();
                write!(f, "sink {name}: its condition (`when`) failed on {events}, {why}")
            }
            Self::Unheard(name, Sink { unheard_in_a_row, .. }) => {
                let events = counted(*unheard_in_a_row, "event");
                write!(f, "sink {name}: nobody is subscribed to the last {events}")
            }
            Self::Unmatched(name, Sink { considered, .. }) => {
                let events = counted(*considered, "event");
                write!(f, "sink {name}: its condition (`when`) has let none of {events} through")
            }
        }
    }
}

impl Sink {
    /// Whether its destination takes events. One that asks for patience does, as long as it was up lately.
    pub fn delivers(&self) -> bool {
        match self.state {
            "up" => true,
            "busy" => {
                let lately = self.left_up.is_some_and(|at| at.elapsed() < BUSY);
                self.unanswered_since.is_none() && lately
            }
            _ => false,
        }
    }

    /// What is wrong with its events, whatever its connection is like.
    fn about_events<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Reason<'a>> {
        let lost = self.lost_moment.is_some_and(|at| at.elapsed() < LOST);
        let fails = self.condition_error_moment.is_some_and(|at| at.elapsed() < CONDITION);
        let unmatched = self.matched == 0 && self.considered >= UNMATCHED && !fails;
        // In another state, that is the reason.
        let unanswered = self.state == "up" && self.unanswered_since.is_some();
        let reasons = [
            unanswered.then_some(Reason::Unanswered(name, self)),
            lost.then_some(Reason::Lost(name, self)),
            fails.then_some(Reason::Condition(name, self)),
            (self.unheard_in_a_row > 0).then_some(Reason::Unheard(name, self)),
            unmatched.then_some(Reason::Unmatched(name, self)),
        ];
        reasons.into_iter().flatten()
    }

    fn loses(&mut self, count: u64, cause: &'static str) {
        self.lost += count;
        (self.lost_at, self.lost_moment) = (Some(clock::now()), Some(Moment::now()));
        self.lost_cause = cause;
    }

    /// Its condition could not be evaluated on so many events.
    pub(super) fn condition_fails(&mut self, events: u64, error: Option<String>) {
        self.condition_errors += events;
        self.condition_error = error;
        self.condition_error_at = Some(clock::now());
        self.condition_error_moment = Some(Moment::now());
    }

    /// Forgets what was found out with the configuration and the connection before. Why the task has
    /// failed stays.
    pub(super) fn forget_findings(&mut self) {
        (self.considered, self.matched, self.condition_errors) = (0, 0, 0);
        (self.condition_error, self.condition_error_at) = (None, None);
        self.condition_error_moment = None;
        if self.state != FAILED {
            (self.last_error, self.last_error_at) = (None, None);
        }
        (self.unheard_in_a_row, self.rejected_in_a_row) = (0, 0);
        (self.next_attempt, self.unanswered_since) = (None, None);
        self.remarks.clear();
    }

    /// What of it changes the health of the relay.
    fn health(&self) -> (&'static str, [bool; 4]) {
        let reasons = [
            self.unanswered_since.is_some(),
            self.dead_letters > 0,
            self.condition_errors > 0,
            self.unheard_in_a_row > 0,
        ];
        (self.state, reasons)
    }
}

impl StatusSnapshot {
    pub fn why(&self) -> impl Iterator<Item = Reason<'_>> {
        let sinks = self.sinks.iter().filter(|(_, sink)| !matches!(sink.state, "up" | STANDBY));
        let tasks = self.tasks.iter().map(|(name, why)| Reason::Task(name, why));
        // Of a sink that another member drives only what was lost here is left.
        let events = self.sinks.iter().flat_map(|(name, sink)| sink.about_events(name));
        sinks.map(|(name, sink)| Reason::Sink(name, sink)).chain(tasks).chain(events)
    }

    /// Why the relay is not ready; empty: it is.
    pub fn reasons(&self) -> Vec<String> {
        self.why().map(|reason| reason.to_string()).collect()
    }
}

/// A server's own words may be of any length.
fn shorten(text: &mut String) {
    if text.len() > TEXT {
        *text = excerpt(text, TEXT);
    }
}

impl Status {
    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    pub fn read<T>(&self, read: impl FnOnce(&StatusSnapshot) -> T) -> T {
        read(&lock(&self.now))
    }

    pub fn snapshot(&self) -> StatusSnapshot {
        lock(&self.now).clone()
    }

    /// Changes when a sink or a task has another state, comes or goes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Changes the row of a sink.
    pub fn sink(&self, name: &str, change: impl FnOnce(&mut Sink)) {
        let mut now = lock(&self.now);
        let before = now.sinks.get(name).map(Sink::health);
        let row = match before {
            // Most changes are to a row that is there.
            Some(_) => now.sinks.get_mut(name),
            None => Some(now.sinks.entry(name.to_owned()).or_default()),
        };
        let Some(row) = row else { return };
        change(row);
        let remarks = row.remarks.iter_mut().chain(&mut row.state_remarks);
        let texts = [&mut row.last_error, &mut row.last_dead_letter, &mut row.condition_error];
        texts.into_iter().flatten().chain(remarks).for_each(shorten);
        let changed = before != Some(row.health());
        drop(now);
        if changed {
            self.changed();
        }
    }

    /// A sink will never get so many events. One that is no longer configured has no row.
    pub(crate) fn lost(&self, name: &str, count: u64, cause: &'static str) {
        let mut now = lock(&self.now);
        let Some(row) = now.sinks.get_mut(name) else { return };
        row.loses(count, cause);
        drop(now);
        self.changed();
    }

    /// No sink will ever get so many events.
    pub(crate) fn lost_to_all(&self, count: u64, cause: &'static str) {
        for row in lock(&self.now).sinks.values_mut() {
            row.loses(count, cause);
        }
        self.changed();
    }

    /// Reads every row, and resets what is counted for the history.
    pub fn sample(&self, mut read: impl FnMut(&str, &Sink)) {
        for (name, sink) in &mut lock(&self.now).sinks {
            read(name, sink);
            sink.slowest_ms = 0;
        }
    }

    /// A sink is no longer configured.
    pub fn no_sink(&self, name: &str) {
        lock(&self.now).sinks.remove(name);
        self.changed();
    }

    /// Changes when somebody asks for the sink of that name to be tried now.
    pub fn retries(&self, name: &str) -> watch::Receiver<u64> {
        let mut retries = lock(&self.retries);
        retries.entry(name.to_owned()).or_default().subscribe()
    }

    /// Has a sink that waits (down, busy, held, gone) tried now, whatever it waits for. An answer: there is
    /// such a sink.
    pub fn retry_sink(&self, name: &str) -> bool {
        let there = self.read(|now| now.sinks.contains_key(name));
        let retries = lock(&self.retries);
        if let Some(retries) = retries.get(name).filter(|_| there) {
            retries.send_modify(|count| *count += 1);
        }
        there
    }

    /// The same for all sinks that are not up.
    pub fn retry_sinks(&self) {
        let waiting: Vec<String> = self.read(|now| {
            let waiting = now.sinks.iter().filter(|(_, sink)| sink.state != "up");
            waiting.map(|(name, _)| name.clone()).collect()
        });
        for name in waiting {
            self.retry_sink(&name);
        }
    }

    /// A task of the relay does not work, or (`None`) works again.
    pub fn task(&self, name: &str, reason: Option<&str>) {
        let mut now = lock(&self.now);
        match reason {
            Some(reason) => now.tasks.insert(name.to_owned(), excerpt(reason, TEXT)),
            None => now.tasks.remove(name),
        };
        drop(now);
        self.changed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_events_are_a_reason_for_an_hour() {
        let status = Status::default();
        status.sink("home", |row| row.state = "up");
        status.lost("home", 3, "the journal no longer holds them");
        let reasons = status.snapshot().reasons();
        assert_eq!(reasons, ["sink home: 3 events lost, the journal no longer holds them"]);
        // As after the wall clock was set forward.
        status.sink("home", |row| row.lost_at = Some(1));
        assert_eq!(status.snapshot().reasons().len(), 1);
        status.sink("home", |row| row.lost_moment = Some(Moment::now().before(LOST)));
        assert!(status.snapshot().reasons().is_empty());
        status.lost("removed", 1, "the journal no longer holds them");
        assert!(!status.snapshot().sinks.contains_key("removed"));
    }

    #[test]
    fn a_condition_that_fails_is_a_reason_for_an_hour_whatever_the_wall_clock_shows() {
        let status = Status::default();
        status.sink("home", |row| {
            row.state = "up";
            row.condition_fails(3, Some("no such field".to_owned()));
            // As after the wall clock was set forward.
            row.condition_error_at = Some(1);
        });
        let reason = "sink home: its condition (`when`) failed on 3 events, no such field";
        assert_eq!(status.snapshot().reasons(), [reason]);
        let hour_ago = Some(Moment::now().before(CONDITION));
        status.sink("home", |row| row.condition_error_moment = hour_ago);
        assert!(status.snapshot().reasons().is_empty());
    }

    /// Nobody else knows of it, also where another member drives the sink next.
    #[test]
    fn what_a_member_has_lost_it_says_of_sinks_that_others_drive() {
        let status = Status::default();
        status.sink("home", |row| row.state = "up");
        status.sink("hook", |row| row.state = STANDBY);
        status.lost_to_all(1, "the log cannot hold it");
        status.lost("hook", 2, "the log no longer holds them");
        let expected = [
            "sink home: 1 event lost, the log cannot hold it",
            "sink hook: 3 events lost, the log no longer holds them",
        ];
        assert_eq!(status.snapshot().reasons(), expected);
    }
}
