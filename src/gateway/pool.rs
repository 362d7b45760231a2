//! The placement of subscriptions on as few connections as the limits allow.

use std::{collections::BTreeMap, pin::Pin, sync::Arc, time::Duration};

use futures_util::stream::FuturesUnordered;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use super::{
    hub::Hub,
    link::{Link, Wants},
    table::Slot,
};
use crate::astro::session::Subscription;

/// Connections are opened one after another at this distance: the gateway answers 429 to a rush.
const STAGGER: Duration = Duration::from_millis(200);

/// What overflows is collected for this long before another connection is opened for it.
const COLLECT: Duration = Duration::from_millis(300);

type Running = FuturesUnordered<Pin<Box<dyn Future<Output = u64> + Send>>>;

/// The links that run, and what is wanted of each.
pub(super) struct Pool {
    hub: Arc<Hub>,
    stop: CancellationToken,
    pub(super) running: Running,
    links: BTreeMap<u64, Share>,
    next: u64,
    /// When what has overflowed is moved to other connections.
    pub(super) collect_at: Option<Instant>,
}

/// What is wanted of one link.
struct Share {
    wants: watch::Sender<Wants>,
    /// How many it may carry: as configured, or fewer where the gateway would not take more.
    limit: usize,
}

impl Pool {
    pub(super) fn new(hub: Arc<Hub>, stop: CancellationToken) -> Self {
        let (running, links) = (FuturesUnordered::new(), BTreeMap::new());
        Self { hub, stop, running, links, next: 1, collect_at: None }
    }

    /// These are wanted and nothing else, from now on.
    pub(super) fn want(&mut self, all: &[Arc<Subscription>]) {
        self.hub.report_gaps(self.hub.table.want(all));
        let wanted: std::collections::HashSet<_> = all.iter().collect();
        for share in self.links.values() {
            share.retain(|subscription| wanted.contains(subscription));
        }
        self.place();
    }

    /// Finds connections for what has none: those with room, or new ones.
    fn place(&mut self) {
        let mut fresh = self.hub.table.unassigned();
        for (number, share) in &self.links {
            let free = share.limit.saturating_sub(share.wants.borrow().len()).min(fresh.len());
            if free > 0 {
                let more: Vec<_> = fresh.drain(..free).collect();
                self.hub.table.assign(&more, Slot::On(*number));
                share
                    .wants
                    .send_modify(|wants| *wants = wants.iter().cloned().chain(more).collect());
            }
        }
        let maximum = self.hub.config.max_subscriptions_per_connection.max(1);
        let mut delay = Duration::ZERO;
        while !fresh.is_empty() && self.links.len() < self.hub.config.max_connections {
            self.open(fresh.drain(..maximum.min(fresh.len())).collect(), maximum, delay);
            delay += STAGGER;
        }
        if !fresh.is_empty() {
            error!(
                subscriptions = fresh.len(),
                max_connections = self.hub.config.max_connections,
                "there are more subscriptions than connections may carry; these are left out"
            );
            self.hub.report_gaps(self.hub.table.leave_out(&fresh));
        }
    }

    fn open(&mut self, wants: Wants, limit: usize, delay: Duration) {
        let number = self.next;
        self.next += 1;
        debug!(number, subscriptions = wants.len(), "another connection to the gateway");
        self.hub.table.assign(&*wants, Slot::On(number));
        let (wants, inbox) = watch::channel(wants);
        self.links.insert(number, Share { wants, limit });
        let link = Link::new(number, Arc::clone(&self.hub), inbox, self.stop.clone());
        self.running.push(Box::pin(link.run(delay)));
    }

    /// Moves what connections would not take to others, in a moment.
    pub(super) fn collect(&mut self) {
        self.collect_at = Some(Instant::now() + COLLECT);
    }

    pub(super) fn move_overflow(&mut self) {
        self.collect_at = None;
        for (number, overflow) in self.hub.table.take_overflow() {
            let Some(share) = self.links.get_mut(&number) else { continue };
            share.retain(|subscription| !overflow.contains(subscription));
            share.limit = share.wants.borrow().len();
            info!(number, limit = share.limit, "the gateway takes no more on this connection");
        }
        self.place();
    }

    /// A link has ended: nothing was wanted of it. What has been wanted since needs another.
    pub(super) fn ended(&mut self, number: u64) {
        self.links.remove(&number);
        if !self.stop.is_cancelled() {
            self.place();
        }
    }
}

impl Share {
    fn retain(&self, keep: impl Fn(&Arc<Subscription>) -> bool) {
        self.wants.send_if_modified(|wants| {
            let kept: Wants = wants.iter().filter(|one| keep(one)).cloned().collect();
            let modified = kept.len() != wants.len();
            *wants = kept;
            modified
        });
    }
}
