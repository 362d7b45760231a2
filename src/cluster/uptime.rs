//! For how long all subscriptions of each channel of this member have been confirmed, by its clock that does not step.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::sync::watch;

use crate::{
    astro::session::SubscriptionState,
    base::clock::{self, Moment, UnixMillis},
    gateway::table::Table,
};

/// Read from the gateway's table when it is asked for, so that no event is known before its subscription.
pub(super) struct Uptimes {
    table: Arc<Table>,
    changes: watch::Receiver<u64>,
    since: HashMap<Arc<str>, Since>,
    /// Channels of which something was missing while they were held: when that was last.
    breaks: HashMap<Arc<str>, Break>,
    /// When the connections were told last to find out whether they hold.
    pinged: Option<Moment>,
}

/// From when to when something of a channel was missing, as its report says it; `None`: it still is.
#[derive(Debug, Clone, Copy)]
struct Break {
    from: Moment,
    to: Option<Moment>,
}

/// For how long a channel has stood.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Uptime {
    /// All its subscriptions, without a break.
    pub(super) time: Duration,
    /// And this process has not stood still, so that for certain nothing was missed.
    pub(super) unbroken: Duration,
}

/// Since when all subscriptions of a channel have stood without a break.
struct Since {
    noted: Moment,
    /// When this process stood still last.
    interrupted: Option<Moment>,
    /// For how long they had stood then: whoever notes it may be late.
    before: Duration,
    /// The sum of the times at which they were confirmed, which changes when one is confirmed once more.
    confirmed: UnixMillis,
}

/// What is noted is no later than that: longer is a clock that was set.
const LATE: Duration = Duration::from_secs(30);

/// Connections are not told more often to find out whether they hold.
const PING: Duration = Duration::from_millis(200);

impl Uptimes {
    pub(super) fn new(table: Arc<Table>) -> Self {
        let mut changes = table.changes();
        changes.mark_changed();
        Self { table, changes, since: HashMap::new(), breaks: HashMap::new(), pinged: None }
    }

    /// Waits until the table changes.
    pub(super) async fn changed(&mut self) {
        // The table outlives its tasks.
        drop(self.changes.changed().await);
        self.changes.mark_changed();
    }

    /// For how long a channel has stood.
    pub(super) fn of(&mut self, channel: &str) -> Option<Uptime> {
        self.update();
        self.since.get(channel).map(|since| {
            let time = since.noted.elapsed() + since.before;
            Uptime { time, unbroken: since.interrupted.map_or(time, Moment::elapsed) }
        })
    }

    /// For how long nothing has come on a connection that carries a channel; `None`: it does not have all of these
    /// topics. To be read before [`Uptimes::of`]: a connection that takes over may have had its first frame a moment
    /// before that can be seen there.
    pub(super) fn silence(&self, channel: &str, topics: &[String]) -> Option<Duration> {
        self.table.silence(channel, topics)
    }

    /// Has the connections find out now whether they hold.
    pub(super) fn ping(&mut self) {
        if self.pinged.is_none_or(|at| at.elapsed() >= PING) {
            self.pinged = Some(Moment::now());
            self.table.ping();
        }
    }

    /// Whether something of a channel that is held was missing between those times before now.
    pub(super) fn was_broken(&mut self, channel: &str, from: Duration, to: Duration) -> bool {
        self.update();
        self.breaks.get(channel).is_some_and(|broken| {
            let ended = broken.to.map_or(Duration::ZERO, Moment::elapsed);
            broken.from.elapsed() >= to && ended <= from
        })
    }

    /// This process has stood still: what came meanwhile may be missing.
    pub(super) fn interrupt(&mut self) {
        for since in self.since.values_mut() {
            since.interrupted = Some(Moment::now());
        }
    }

    /// Takes in what has changed.
    pub(super) fn update(&mut self) {
        if !self.changes.has_changed().unwrap_or(false) {
            return;
        }
        self.changes.mark_unchanged();
        // The sum of the times, and the last of them.
        let mut now: HashMap<Arc<str>, Option<(UnixMillis, UnixMillis)>> = HashMap::new();
        self.table.read(|state| {
            for (subscription, row) in &state.subscriptions {
                let confirmed = match row.state {
                    SubscriptionState::Confirmed(_) => row.confirmed_at,
                    _ => None,
                };
                let known = now.entry(Arc::clone(&subscription.channel)).or_insert(Some((0, 0)));
                *known = known
                    .zip(confirmed)
                    .map(|((sum, last), at)| (sum.wrapping_add(at), last.max(at)));
            }
        });
        for (channel, confirmed) in &now {
            let is_known = self.breaks.get(channel).is_some_and(|broken| broken.to.is_none());
            if confirmed.is_none()
                && !is_known
                && let Some(time) = self.table.missing_for(channel)
            {
                // Since the last frame, and not only since that was noticed.
                let from = Moment::now().before(time);
                self.breaks.insert(Arc::clone(channel), Break { from, to: None });
            }
        }
        // What is given up, or is another's, was not missed.
        self.breaks.retain(|channel, _| now.contains_key(channel));
        for (channel, broken) in &mut self.breaks {
            if broken.to.is_none() && !self.table.is_missing(channel) {
                broken.to = Some(Moment::now());
            }
        }
        self.since.retain(|channel, _| now.get(channel).is_some_and(Option::is_some));
        for (channel, confirmed) in now {
            let Some((confirmed, last)) = confirmed else { continue };
            if self.since.get(&channel).is_none_or(|since| since.confirmed != confirmed) {
                let before = Duration::from_millis(clock::now().saturating_sub(last)).min(LATE);
                self.since.insert(
                    channel,
                    Since { noted: Moment::now(), interrupted: None, before, confirmed },
                );
            }
        }
    }
}
