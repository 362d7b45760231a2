//! Which channels stand at this member, and since when, by its clock that does not step.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::sync::watch;

use crate::{
    astro::session::SubscriptionState,
    base::clock::{Moment, UnixMillis},
    gateway::table::Table,
};

/// Read from the gateway's table when it is asked for, so that no event is known before its subscription.
pub(super) struct Standing {
    table: Arc<Table>,
    changes: watch::Receiver<u64>,
    /// Since when all subscriptions of a channel have stood without a break; and the sum of the times at which
    /// they were confirmed, which changes when one is confirmed once more.
    since: HashMap<Arc<str>, (Moment, UnixMillis)>,
}

impl Standing {
    pub(super) fn new(table: Arc<Table>) -> Self {
        let mut changes = table.changes();
        changes.mark_changed();
        Self { table, changes, since: HashMap::new() }
    }

    /// Waits until the table changes.
    pub(super) async fn changed(&mut self) {
        // The table outlives its tasks.
        drop(self.changes.changed().await);
        self.changes.mark_changed();
    }

    /// For how long a channel has stood.
    pub(super) fn of(&mut self, channel: &str) -> Option<Duration> {
        self.look();
        self.since.get(channel).map(|(since, _)| since.elapsed())
    }

    /// Takes in what has changed.
    pub(super) fn look(&mut self) {
        if !self.changes.has_changed().unwrap_or(false) {
            return;
        }
        self.changes.mark_unchanged();
        let mut now: HashMap<Arc<str>, Option<UnixMillis>> = HashMap::new();
        self.table.read(|state| {
            for (subscription, row) in &state.subscriptions {
                let confirmed = match row.state {
                    SubscriptionState::Confirmed(_) => row.confirmed_at,
                    _ => None,
                };
                let sum = now.entry(Arc::clone(&subscription.channel)).or_insert(Some(0));
                *sum = sum.zip(confirmed).map(|(sum, at)| sum.wrapping_add(at));
            }
        });
        self.since.retain(|channel, _| now.get(channel).is_some_and(Option::is_some));
        for (channel, confirmed) in now {
            let Some(confirmed) = confirmed else { continue };
            let entry = self.since.entry(channel).or_insert_with(|| (Moment::now(), confirmed));
            // Confirmed once more: there was a break.
            if entry.1 != confirmed {
                *entry = (Moment::now(), confirmed);
            }
        }
    }
}
