//! What a destination holds of the state: the difference between the [`StateStore`] and what was published.
//!
//! It decides what is to be published next, and does not publish it. What has been published is compared
//! by version, so that however often something changes in between, its newest value is published once.
//!
//! Names, not values, are written to the journal's file before they are published for the first time:
//! what vanished while the relay was away, or is no longer among the sink's channels, is cleared when the
//! publisher is connected again. That costs one row for each part of the state.
//!
//! A destination may have lost everything with the connection. So after each connect all of it is
//! published again, a batch at a time.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tracing::{debug, warn};

use super::{REFRESH, scope::Scope};
use crate::{
    base::{backoff::Backoff, clock},
    channel::store::{Section, StateKey, StateStore, offline, word},
    journal::{Journal, StateElement},
    sink::Part,
};

/// Parts that are published at once.
const AT_ONCE: usize = 256;

/// What changes within this time is published together: overlays are not faster, and looking for the
/// difference costs little at this pace, however large the store.
const PACE: Duration = Duration::from_millis(50);

/// The ceilings of the waits after the destination has failed while the connection stands.
const WAIT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(5));

/// How often all of it is published again where nobody notices that another client writes over it.
const AGAIN: Duration = Duration::from_mins(5);

/// What is published at once.
#[derive(Debug)]
pub(crate) struct Changes {
    pub(crate) parts: Vec<Part>,
    /// The version of each.
    versions: Vec<u64>,
    /// The store's version, where nothing is left behind these.
    through: Option<u64>,
}

/// What one destination holds.
#[derive(Debug)]
pub(crate) struct PublishedState {
    store: Arc<StateStore>,
    news: watch::Receiver<u64>,
    journal: Journal,
    /// Under which name the keys are written down.
    memory: Box<str>,
    /// What the destination has or may have, with the version that it has acknowledged; 0: none.
    published: BTreeMap<StateKey, u64>,
    /// The store's version through which all is published.
    through: u64,
    /// Nothing is published before.
    not_before: Instant,
    /// When the destination hears from us, with or without news.
    refresh: Instant,
    /// When all of it was begun to be published last.
    begun: Instant,
    backoff: Backoff,
}

impl PublishedState {
    /// What the destination of the sink `name` is to hold of `store`. Blocks on the disk.
    pub(crate) fn new(name: &str, store: Arc<StateStore>, journal: Journal) -> Self {
        // No channel can have this name: their labels have no dot.
        let memory: Box<str> = format!("relay.kept.{name}").into();
        let kept = journal.stored_state().unwrap_or_else(|error| {
            warn!(
                sink = name,
                %error,
                "what was published before cannot be read; what of it has vanished is cleared later"
            );
            Vec::new()
        });
        let kept = kept.into_iter().filter(|kept| kept.channel == memory);
        let paths = kept.filter_map(|kept| StateKey::from_text(&kept.element)).collect::<Vec<_>>();
        Self::of(memory, store, journal, paths)
    }

    /// Nothing is published, and what was published before is left as it is.
    pub(crate) fn of_nothing(name: &str, journal: Journal) -> Self {
        Self::of(name.into(), Arc::default(), journal, [])
    }

    /// One whose destination has something under these keys.
    fn of(
        memory: Box<str>,
        store: Arc<StateStore>,
        journal: Journal,
        paths: impl IntoIterator<Item = StateKey>,
    ) -> Self {
        let now = Instant::now();
        Self {
            news: store.changes(),
            store,
            journal,
            memory,
            published: paths.into_iter().map(|path| (path, 0)).collect(),
            through: 0,
            not_before: now,
            refresh: now,
            begun: now,
            backoff: Backoff::new(WAIT.0, WAIT.1),
        }
    }

    /// There is a new connection: what the destination has is not known.
    pub(crate) fn connected(&mut self) {
        self.publish_all();
        self.refresh = Instant::now();
    }

    /// Whether the destination still has what was published is not known.
    fn publish_all(&mut self) {
        self.published.values_mut().for_each(|version| *version = 0);
        self.through = 0;
        self.begun = Instant::now();
    }

    /// These were not taken: they are published, or removed, once more.
    pub(crate) fn publish_again<'k>(&mut self, paths: impl Iterator<Item = &'k StateKey>) {
        for path in paths {
            self.published.insert(path.clone(), 0);
            self.through = 0;
        }
    }

    /// Publishes all again, if that was long ago: another client may have written over it unnoticed.
    pub(crate) fn republish_if_old(&mut self) {
        if self.begun.elapsed() >= AGAIN {
            self.publish_all();
        }
    }

    /// Whether there is something to publish now.
    pub(crate) fn is_due(&self) -> bool {
        self.due_at() <= Instant::now()
    }

    /// Waits until there is something to publish. Safe to drop.
    pub(crate) async fn due(&mut self) {
        while !self.is_due() {
            let at = self.due_at();
            tokio::select! {
                () = sleep_until(at) => {}
                // The store lives as long as this.
                Ok(()) = self.news.changed() => {}
            }
        }
    }

    fn due_at(&self) -> Instant {
        let news = *self.news.borrow() != self.through;
        if news { self.not_before } else { self.refresh.max(self.not_before) }
    }

    /// What is to be published now: what vanished, and what is not as it was published. Its keys are
    /// written down first. Empty where there is no news.
    pub(crate) fn next_changes(&mut self, scope: &Scope) -> Changes {
        let mut changes = Changes { parts: Vec::new(), versions: Vec::new(), through: None };
        let published = &self.published;
        self.store.snapshot(|items, version| {
            let kept = |path: &StateKey| items.contains_key(path) && scope.covers(path);
            let gone = published.keys().filter(|path| !kept(path));
            let gone = gone.map(|path| (path, None, 0));
            let news = items
                .iter()
                .filter(|(path, item)| {
                    published.get(path) != Some(&item.version) && scope.covers(path)
                })
                .map(|(path, item)| (path, Some(&item.value), item.version));
            let mut due = gone.chain(news);
            for (path, value, version) in due.by_ref().take(AT_ONCE) {
                let payload = value.map(|value| scope.payload(path, value));
                changes.parts.push(Part { path: path.clone(), payload });
                changes.versions.push(version);
            }
            changes.through = due.next().is_none().then_some(version);
        });
        let fresh = changes.parts.iter().filter(|part| !published.contains_key(&part.path));
        self.journal.store_state(fresh.map(|part| self.record(&part.path, true)));
        // From here on the destination may have it, whatever becomes of it.
        for part in changes.parts.iter().filter(|part| part.payload.is_some()) {
            self.published.entry(part.path.clone()).or_insert(0);
        }
        changes
    }

    /// The destination has the first `done` of `changes`, but for those that it has `refused`: they are left
    /// until they change or are to be published [again](Self::publish_again).
    pub(crate) fn published(
        &mut self,
        changes: &Changes,
        done: usize,
        refused: &BTreeMap<StateKey, String>,
    ) {
        for (part, version) in changes.parts.iter().zip(&changes.versions).take(done) {
            if part.payload.is_some() {
                self.published.insert(part.path.clone(), *version);
            } else {
                self.published.remove(&part.path);
            }
        }
        // What it did not remove is removed by the next process, if not by this one.
        let gone = changes.parts.iter().take(done).filter(|part| part.payload.is_none());
        let gone = gone.filter(|part| !refused.contains_key(&part.path));
        self.journal.store_state(gone.map(|part| self.record(&part.path, false)));
        if done >= changes.parts.len() {
            let now = Instant::now();
            self.backoff.reset();
            self.refresh = now + REFRESH;
            if let Some(version) = changes.through {
                self.through = version;
                self.not_before = now + PACE;
            }
        }
    }

    /// The destination has failed while the connection stands; answers how long it is left alone.
    pub(crate) fn postpone(&mut self) -> Duration {
        let wait = self.backoff.wait();
        debug!(?wait, "the state is published later");
        self.not_before = Instant::now() + wait;
        wait
    }

    /// What is published at an orderly end: the relay is gone.
    pub(crate) fn offline_parts(&self) -> Vec<Part> {
        let statuses = self.published.keys().filter(|path| path.section == Section::Status);
        let part = |path: &StateKey| {
            let value = if path.channel.is_empty() {
                offline("stopped", Some(clock::now()))
            } else {
                word(false)
            };
            Part { path: path.clone(), payload: Some(path.payload(&value)) }
        };
        statuses.map(part).collect()
    }

    fn record(&self, path: &StateKey, there: bool) -> StateElement {
        StateElement {
            channel: self.memory.clone(),
            element: path.text().into(),
            // What it is does not matter; that it is there does.
            value: there.then(|| "true".into()),
            at: clock::now(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use bytes::Bytes;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::config::SinkConfig;

    fn scope() -> Scope {
        let config = json!({"type": "mqtt", "channels": ["main"]});
        let config: SinkConfig = serde_json::from_value(config).unwrap();
        Scope::of("s", &config).unwrap()
    }

    fn path(channel: &str, name: u8) -> StateKey {
        let name = format!("element-{name}");
        StateKey { channel: channel.into(), section: Section::Session, name: name.as_str().into() }
    }

    /// What can happen between a store and a destination.
    #[derive(Debug, Clone)]
    enum Step {
        Insert(u8, u8),
        InsertOther(u8),
        Remove(u8),
        /// The destination takes so many parts of the next changes, and then it is busy.
        Publish(usize),
        /// It takes so many and acknowledges some of them; then the connection is lost.
        Lose(usize, usize),
        /// The connection is lost, and with it all that the destination had.
        Forget,
        /// The relay is killed and started again.
        Restart,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0_u8..6, 0_u8..4).prop_map(|(name, value)| Step::Insert(name, value)),
            1 => (0_u8..6).prop_map(Step::InsertOther),
            3 => (0_u8..6).prop_map(Step::Remove),
            5 => (0_usize..8).prop_map(Step::Publish),
            1 => (0_usize..8, 0_usize..8).prop_map(|(took, acknowledged)| Step::Lose(took, acknowledged)),
            1 => Just(Step::Forget),
            1 => Just(Step::Restart),
        ]
    }

    struct World {
        store: Arc<StateStore>,
        published: PublishedState,
        scope: Scope,
        destination: BTreeMap<StateKey, Bytes>,
        /// What is written down: every path before it is said, until it is known to be cleared.
        memory: BTreeSet<StateKey>,
    }

    impl World {
        fn new() -> Self {
            let store = Arc::new(StateStore::default());
            Self {
                published: state_of(&store, []),
                store,
                scope: scope(),
                destination: BTreeMap::new(),
                memory: BTreeSet::new(),
            }
        }

        /// Says the next changes: the destination takes `took` parts of it, and tells of `acknowledged`.
        fn publish(&mut self, took: usize, acknowledged: usize) -> usize {
            let changes = self.published.next_changes(&self.scope);
            for part in &changes.parts {
                assert_eq!(&*part.path.channel, "main", "not one of this sink's");
                self.memory.insert(part.path.clone());
            }
            for part in changes.parts.iter().take(took) {
                match &part.payload {
                    Some(payload) => {
                        drop(self.destination.insert(part.path.clone(), payload.clone()));
                    }
                    None => drop(self.destination.remove(&part.path)),
                }
            }
            let acknowledged = acknowledged.min(took).min(changes.parts.len());
            self.published.published(&changes, acknowledged, &BTreeMap::new());
            for part in
                changes.parts.iter().take(acknowledged).filter(|part| part.payload.is_none())
            {
                self.memory.remove(&part.path);
            }
            changes.parts.len()
        }

        fn go(&mut self, step: &Step) {
            match *step {
                Step::Insert(name, value) => {
                    self.store.insert([(path("main", name), Some((&json!(value)).into()))]);
                }
                Step::InsertOther(name) => {
                    self.store.insert([(path("other", name), Some((&json!(1)).into()))]);
                }
                Step::Remove(name) => self.store.remove(|at| *at == path("main", name)),
                Step::Publish(took) => drop(self.publish(took, took)),
                Step::Lose(took, acknowledged) => {
                    self.publish(took, acknowledged);
                    self.published.connected();
                }
                Step::Forget => {
                    self.destination.clear();
                    self.published.connected();
                }
                Step::Restart => self.published = state_of(&self.store, self.memory.clone()),
            }
        }
    }

    fn state_of(
        store: &Arc<StateStore>,
        memory: impl IntoIterator<Item = StateKey>,
    ) -> PublishedState {
        PublishedState::of(
            "relay.kept.s".into(),
            Arc::clone(store),
            Journal::in_memory(1 << 20),
            memory,
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn the_destination_ends_with_what_the_store_holds(
            steps in proptest::collection::vec(step(), 0..80)
        ) {
            let mut world = World::new();
            for step in steps {
                world.go(&step);
            }
            world.publish(usize::MAX, usize::MAX);
            prop_assert_eq!(world.publish(0, 0), 0, "said once, all is said");
            let store: BTreeMap<StateKey, Bytes> = world.store.snapshot(|items, _| {
                let ours = items.iter().filter(|(path, _)| &*path.channel == "main");
                ours.map(|(path, item)| (path.clone(), path.payload(&item.value))).collect()
            });
            let remembered: BTreeSet<StateKey> = store.keys().cloned().collect();
            prop_assert_eq!(world.destination, store);
            prop_assert_eq!(world.memory, remembered);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn unwatched_state_is_published_again_every_now_and_then() {
        let mut world = World::new();
        world.store.insert([(path("main", 0), Some((&json!(1)).into()))]);
        assert_eq!(world.publish(usize::MAX, usize::MAX), 1);
        let begun = Instant::now();
        let mut said = 0;
        while begun.elapsed() < 4 * AGAIN {
            world.published.due().await;
            world.destination.insert(path("main", 0), "2".into());
            world.published.republish_if_old();
            said += world.publish(usize::MAX, usize::MAX);
        }
        assert!((3..=4).contains(&said), "{said}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_of_changes_is_published_once() {
        let mut world = World::new();
        world.published.due().await;
        world.publish(usize::MAX, usize::MAX);
        for round in 1..=3 {
            let before = Instant::now();
            for value in 0..1000 {
                world.store.insert([(path("main", 0), Some((&json!([round, value])).into()))]);
            }
            world.published.due().await;
            assert_eq!(before.elapsed(), PACE);
            assert_eq!(world.publish(usize::MAX, usize::MAX), 1);
            assert_eq!(world.destination[&path("main", 0)], format!("[{round},999]"));
        }
        let before = Instant::now();
        world.published.due().await;
        assert_eq!(before.elapsed(), REFRESH, "without news the destination hears from us");
        assert_eq!(world.publish(usize::MAX, usize::MAX), 0);
    }
}
