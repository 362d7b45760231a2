//! What a sink's condition (`when`) does to events, as health and log show it.
//!
//! A condition that fails drops the event: that may be meant (a sink that also takes topics without the
//! field), and is more often a misspelt field. So the first failure is logged, then one a minute, and
//! health names the latest.

use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use super::Delivery;

/// How often failures are logged.
const LOGGED: Duration = Duration::from_mins(1);

#[derive(Debug, Default)]
pub(super) struct ConditionLog {
    logged: Option<Instant>,
    /// Whether an event was let through since the start.
    matched: bool,
}

impl Delivery {
    /// Of the events that the sink's topics and channels select, so many were let through, were not, and
    /// so many could not be judged.
    pub(super) fn condition_was(&mut self, matched: u64, unmatched: u64, errors: u64) {
        if errors == 0 && (self.row.condition.matched || matched + unmatched == 0) {
            return;
        }
        self.row.condition.matched |= matched > 0;
        let error = self.route.take_condition_error();
        self.row.show(|row| {
            row.matched += matched;
            row.considered += matched + unmatched + errors;
            if errors > 0 {
                row.condition_fails(errors, error.clone());
            }
        });
        let lately = self.row.condition.logged.is_some_and(|at| at.elapsed() < LOGGED);
        if let Some(error) = error.filter(|_| errors > 0 && !lately) {
            self.row.condition.logged = Some(Instant::now());
            warn!(
                sink = %self.row.name, events = errors, error,
                "the condition (`when`) cannot be evaluated: these events are not sent"
            );
        }
    }
}
