//! Health: one model, with one vocabulary, for everybody who shows it.
//!
//! `working`: all that is configured is received and delivered. `degraded`: some of it is not. `not
//! working`: nothing is received, or nothing is delivered. Each [`Reason`] says what it makes of the health,
//! since when, and what to do. A reason that leaves it `working` is a notice: nothing is missed yet.
//!
//! What is a reason is decided where it is known ([`super::relay_status`]); here they are only put
//! together, and those that do not know since when they hold are remembered.

use std::{collections::HashMap, sync::Mutex};

use serde::Serialize;
use serde_json::Value;

use crate::base::{clock::UnixMillis, sync::lock};

/// Reasons that are listed one by one: there may be as many as there are subscriptions.
pub const LISTED: usize = 100;

/// Reasons whose beginning is remembered.
const REMEMBERED: usize = 10_000;

/// How well the relay does what it is there for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum State {
    #[default]
    #[serde(rename = "working")]
    Working,
    #[serde(rename = "degraded")]
    Degraded,
    #[serde(rename = "not working")]
    NotWorking,
}

impl State {
    pub const ALL: [Self; 3] = [Self::Working, Self::Degraded, Self::NotWorking];

    /// The word that people read.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Working => "working",
            Self::Degraded => "degraded",
            Self::NotWorking => "not working",
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// Of which sort: a stable word.
    pub kind: &'static str,
    /// What it makes of the health.
    pub state: State,
    /// What it is about, as an object with `sink`, `connection`, `channel`, `topic` or `task`.
    pub about: Value,
    /// What is wrong, in one line.
    pub what: String,
    pub since: UnixMillis,
    /// What a person is to do; empty: nothing.
    #[serde(rename = "do")]
    pub action: String,
    /// Where the page shows it.
    pub link: String,
    /// When the relay tries again by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_attempt: Option<UnixMillis>,
}

/// The health of the whole relay.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Health {
    pub state: State,
    /// Since when it has been that.
    pub since: UnixMillis,
    /// Why; those that weigh most come first.
    pub reasons: Vec<Reason>,
    /// Further reasons that are not in the list.
    pub more: usize,
}

impl Health {
    /// The first reason, and how many others there are; `None`: nothing is wrong.
    pub fn summary(&self) -> Option<String> {
        let mut serious = self.reasons.iter().filter(|reason| reason.state != State::Working);
        let first = serious.next()?;
        Some(match serious.count() + self.more {
            0 => first.what.clone(),
            others => format!("{}; and {others} more", first.what),
        })
    }
}

/// Since when reasons hold that do not know it themselves, and the health.
#[derive(Debug, Default)]
pub struct Memory(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    reasons: HashMap<String, UnixMillis>,
    state: Option<(State, UnixMillis)>,
}

impl Memory {
    /// The health that these reasons make, `at least` as bad as that. A reason with `since` 0 holds since it
    /// was first seen here.
    pub fn health(&self, mut reasons: Vec<Reason>, at_least: State, now: UnixMillis) -> Health {
        let mut inner = lock(&self.0);
        let before = std::mem::take(&mut inner.reasons);
        for reason in reasons.iter_mut().filter(|reason| reason.since == 0) {
            let id = format!("{}{}", reason.kind, reason.about);
            reason.since = before.get(&id).copied().unwrap_or(now);
            if inner.reasons.len() < REMEMBERED {
                inner.reasons.insert(id, reason.since);
            }
        }
        // The order within a state is that in which they were found.
        reasons.sort_by_key(|reason| std::cmp::Reverse(reason.state));
        let state = reasons.first().map_or(at_least, |reason| reason.state.max(at_least));
        let since = match inner.state {
            Some((before, since)) if before == state => since,
            _ => now,
        };
        inner.state = Some((state, since));
        let more = reasons.len().saturating_sub(LISTED);
        reasons.truncate(LISTED);
        Health { state, since, reasons, more }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn reason(kind: &'static str, state: State, since: UnixMillis) -> Reason {
        Reason {
            kind,
            state,
            about: json!({ "sink": "home" }),
            what: format!("sink home: {kind}"),
            since,
            action: String::new(),
            link: "/#sinks".into(),
            next_attempt: None,
        }
    }

    #[test]
    fn the_worst_reason_makes_the_health_and_comes_first() {
        let memory = Memory::default();
        let health = |reasons: &[Reason]| memory.health(reasons.to_vec(), State::Working, 1);
        assert_eq!(health(&[]).state, State::Working);
        let notice = reason("unmatched", State::Working, 0);
        let quiet = health(std::slice::from_ref(&notice));
        assert_eq!((quiet.state, quiet.summary()), (State::Working, None), "a notice");
        assert_eq!(quiet.reasons.len(), 1);
        let bad = health(&[notice, reason("down", State::Degraded, 0)]);
        assert_eq!(bad.state, State::Degraded);
        assert_eq!(bad.summary().unwrap(), "sink home: down");
        assert_eq!(bad.reasons[0].kind, "down");
        let worst = memory.health(Vec::new(), State::NotWorking, 1);
        assert_eq!(worst.state, State::NotWorking);
    }

    #[test]
    fn each_reason_and_the_health_say_since_when() {
        let memory = Memory::default();
        let at = |now, reasons: &[Reason]| memory.health(reasons.to_vec(), State::Working, now);
        let down = reason("down", State::Degraded, 0);
        assert_eq!(at(10, &[]).since, 10);
        assert_eq!(at(20, std::slice::from_ref(&down)).reasons[0].since, 20);
        let later = at(30, &[down.clone(), reason("held", State::Degraded, 5)]);
        assert_eq!((later.since, later.reasons[0].since, later.reasons[1].since), (20, 20, 5));
        assert_eq!(at(40, &[]).since, 40, "over");
        assert_eq!(at(50, &[down]).reasons[0].since, 50, "again: another time");
    }

    #[test]
    fn of_many_reasons_a_hundred_are_listed_and_the_rest_is_counted() {
        let many: Vec<_> = (0..250).map(|n| reason("refused", State::Degraded, n + 1)).collect();
        let health = Memory::default().health(many, State::Working, 1);
        assert_eq!((health.reasons.len(), health.more), (LISTED, 150));
        assert_eq!(health.summary().unwrap(), "sink home: refused; and 249 more");
    }
}
