//! What the connections share: the dialer, the credentials, the table and the intake.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::future::join_all;
use tokio::sync::{Notify, watch};

use super::{intake::Intake, table::Table, targets::Targets};
use crate::{
    astro::{
        dial::Dialer,
        session::{Subscription, Update, Wanted},
    },
    base::event::Event,
    config::{Astro, ConfigError, Secret},
};

#[derive(Debug)]
pub(super) struct Hub {
    pub(super) config: Arc<Astro>,
    pub(super) dialer: Dialer,
    pub(super) table: Arc<Table>,
    pub(super) intake: Arc<Intake>,
    pub(super) targets: watch::Receiver<Targets>,
    /// A connection would not take a subscription.
    pub(super) overflowed: Notify,
    connections: AtomicU64,
}

impl Hub {
    pub(super) fn new(
        config: &Astro,
        table: Arc<Table>,
        intake: Arc<Intake>,
        targets: watch::Receiver<Targets>,
    ) -> Result<Self, ConfigError> {
        Ok(Self {
            dialer: Dialer::new(config)?,
            config: Arc::new(config.clone()),
            table,
            intake,
            targets,
            overflowed: Notify::new(),
            connections: AtomicU64::new(0),
        })
    }

    /// A number for a connection, for its nonces.
    pub(super) fn next_connection(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Appends live events to the journal, in order.
    pub(super) fn append(&self, events: &mut Vec<Event>) {
        if let Some(last) = events.last() {
            self.table.last_event(last.received);
            self.intake.live(events);
        }
    }

    /// Appends the reports of gaps. The journal remembers since when something is missing: a relay that
    /// ends before that is reported has been away since then.
    pub(super) fn report_gaps(&self, mut reports: Vec<Event>) {
        self.intake.journal().append(&mut reports);
        self.remember_gaps();
    }

    pub(super) fn remember_gaps(&self) {
        self.intake.journal().set_unreported_gap(self.table.longest_gap());
    }

    /// What a connection's session says of its subscriptions.
    pub(super) fn update(&self, link: u64, updates: &[Update]) {
        if !updates.is_empty() {
            let journal = self.intake.journal();
            self.table.update(link, updates, |mut reports| journal.append(&mut reports));
            self.remember_gaps();
        }
    }

    /// A connection was lost and not restored.
    pub(super) fn lost(&self, link: u64, cause: &str) {
        self.table.lost(link, cause);
        self.remember_gaps();
    }

    /// Subscriptions that a connection would not take.
    pub(super) fn overflow(&self, link: u64, subscriptions: &[Arc<Subscription>]) {
        if !subscriptions.is_empty() {
            self.table.overflow(link, subscriptions);
            self.remember_gaps();
            self.overflowed.notify_one();
        }
    }

    /// The tokens of channels, read now and side by side: a file that does not answer costs a second,
    /// however many there are.
    pub(super) async fn tokens<'c>(
        &self,
        channels: impl IntoIterator<Item = &'c str>,
    ) -> HashMap<&'c str, Result<Secret, String>> {
        let reads = channels.into_iter().map(|channel| {
            let account = self.targets.borrow().channels.get(channel).cloned();
            async move {
                let Some(account) = account else {
                    return (channel, Err("the channel has no token".to_owned()));
                };
                let token = account.token.read_token_soon().await;
                (channel, token.map_err(|error| error.to_string()))
            }
        });
        join_all(reads).await.into_iter().collect()
    }

    /// What is wanted, each with its token as it is now.
    pub(super) async fn credentials(&self, subscriptions: &[Arc<Subscription>]) -> Vec<Wanted> {
        let channels: HashSet<&str> = subscriptions.iter().map(|one| &*one.channel).collect();
        let tokens = self.tokens(channels).await;
        let wanted = subscriptions.iter().filter_map(|subscription| {
            let token = tokens.get(&*subscription.channel)?.clone();
            Some(Wanted { subscription: Arc::clone(subscription), token })
        });
        wanted.collect()
    }
}
