//! What a sink has its far side keep: the difference between the [`Board`] and what was said of it.
//!
//! It decides what is to be said next, and does not say it. What has been said is compared by version,
//! so that however often something changes in between, its newest value is said once.
//!
//! Names, not values, are written down in the journal's file before they are said for the first time:
//! what vanished while the relay was away, or is no longer among the sink's channels, is cleared when
//! the sink is connected again. That costs one row for each part of the state.
//!
//! The one thing to know: a far side may have lost everything with the connection. So after each
//! connect all of it is said again, a piece at a time, and events go in between.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tracing::debug;

use crate::{
    base::{backoff::Backoff, clock},
    channel::board::{Board, Path, Section, offline, word},
    delivery::route::Route,
    journal::{Journal, StateElement, StoreError},
    sink::{KEEP_REFRESH, Part},
};

/// Parts that are said at once: events wait for no more than that.
const AT_ONCE: usize = 256;

/// What changes within this time is said together: overlays are not faster, and looking for the
/// difference costs little at this pace, however large the board.
const PACE: Duration = Duration::from_millis(50);

/// The ceilings of the waits after a far side failed at the state: events have the link meanwhile, so
/// that a state that it never takes (an access list forbids it) does not hinder them.
const WAIT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(5));

/// How often all of it is said again where nobody notices that somebody else has written over it.
const AGAIN: Duration = Duration::from_mins(5);

/// What is said at once.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) parts: Vec<Part>,
    /// The version of each.
    versions: Vec<u64>,
    /// The board's version, where nothing is left behind this piece.
    through: Option<u64>,
}

/// What one sink keeps.
#[derive(Debug)]
pub(crate) struct Keeping {
    board: Arc<Board>,
    changes: watch::Receiver<u64>,
    journal: Journal,
    /// Under which name the paths are written down.
    memory: Box<str>,
    /// What the far side has or may have, with the version that it has acknowledged; 0: none.
    said: BTreeMap<Path, u64>,
    /// The board's version through which all is said.
    through: u64,
    /// Nothing is said before.
    not_before: Instant,
    /// When the far side hears from us, with or without news.
    refresh: Instant,
    /// When all of it was begun to be said last.
    begun: Instant,
    backoff: Backoff,
    /// Whether it was complained since the connect that a part is refused.
    pub(crate) complained: bool,
}

impl Keeping {
    /// What the sink `name` keeps of `board`. Blocks on the disk.
    pub(crate) fn new(name: &str, board: Arc<Board>, journal: Journal) -> Result<Self, StoreError> {
        // No channel can have this name: their labels have no dot.
        let memory: Box<str> = format!("relay.kept.{name}").into();
        let kept = journal.stored_state()?.into_iter().filter(|kept| kept.channel == memory);
        let paths = kept.filter_map(|kept| Path::from_text(&kept.element)).collect::<Vec<_>>();
        Ok(Self::of(memory, board, journal, paths))
    }

    /// Nothing is published, and what was published before is left as it is.
    pub(crate) fn of_nothing(name: &str, journal: Journal) -> Self {
        Self::of(name.into(), Arc::default(), journal, [])
    }

    /// One whose far side has something under these paths.
    fn of(
        memory: Box<str>,
        board: Arc<Board>,
        journal: Journal,
        paths: impl IntoIterator<Item = Path>,
    ) -> Self {
        let now = Instant::now();
        Self {
            changes: board.changes(),
            board,
            journal,
            memory,
            said: paths.into_iter().map(|path| (path, 0)).collect(),
            through: 0,
            not_before: now,
            refresh: now,
            begun: now,
            backoff: Backoff::new(WAIT.0, WAIT.1),
            complained: false,
        }
    }

    /// There is a new connection: what the far side has is not known.
    pub(crate) fn begin(&mut self) {
        self.say_all();
        self.refresh = Instant::now();
        self.complained = false;
    }

    /// Whether the destination still has what was published is not known.
    fn say_all(&mut self) {
        self.said.values_mut().for_each(|version| *version = 0);
        self.through = 0;
        self.begun = Instant::now();
    }

    /// All is said again, if that was long ago: somebody else may have written over it, and no one noticed.
    pub(crate) fn doubt(&mut self) {
        if self.begun.elapsed() >= AGAIN {
            self.say_all();
        }
    }

    /// Whether there is something to say now.
    pub(crate) fn is_due(&self) -> bool {
        self.due_at() <= Instant::now()
    }

    /// Waits until there is something to say. Safe to drop.
    pub(crate) async fn due(&mut self) {
        while !self.is_due() {
            let at = self.due_at();
            tokio::select! {
                () = sleep_until(at) => {}
                // The board lives as long as we do.
                Ok(()) = self.changes.changed() => {}
            }
        }
    }

    fn due_at(&self) -> Instant {
        let news = *self.changes.borrow() != self.through;
        if news { self.not_before } else { self.refresh.max(self.not_before) }
    }

    /// What is to be said now: what vanished, and what is not as it was said. Its paths are written
    /// down first. Empty where there is no news.
    pub(crate) fn piece(&mut self, route: &Route) -> Piece {
        let mut piece = Piece { parts: Vec::new(), versions: Vec::new(), through: None };
        let said = &self.said;
        self.board.look(|items, version| {
            let kept = |path: &Path| items.contains_key(path) && route.keeps(path);
            let gone = said.keys().filter(|path| !kept(path));
            let gone = gone.map(|path| (path, None, 0));
            let news = items
                .iter()
                .filter(|(path, item)| said.get(path) != Some(&item.version) && route.keeps(path))
                .map(|(path, item)| (path, Some(&item.value), item.version));
            let mut due = gone.chain(news);
            for (path, value, version) in due.by_ref().take(AT_ONCE) {
                let payload = value.map(|value| route.kept(path, value));
                piece.parts.push(Part { path: path.clone(), payload });
                piece.versions.push(version);
            }
            piece.through = due.next().is_none().then_some(version);
        });
        let fresh = piece.parts.iter().filter(|part| !said.contains_key(&part.path));
        self.journal.store_state(fresh.map(|part| self.note(&part.path, true)));
        // From here on the far side may have it, whatever becomes of the piece.
        for part in piece.parts.iter().filter(|part| part.payload.is_some()) {
            self.said.entry(part.path.clone()).or_insert(0);
        }
        piece
    }

    /// The far side has the first `done` parts of a piece.
    pub(crate) fn said(&mut self, piece: &Piece, done: usize) {
        for (part, version) in piece.parts.iter().zip(&piece.versions).take(done) {
            if part.payload.is_some() {
                self.said.insert(part.path.clone(), *version);
            } else {
                self.said.remove(&part.path);
            }
        }
        let gone = piece.parts.iter().take(done).filter(|part| part.payload.is_none());
        self.journal.store_state(gone.map(|part| self.note(&part.path, false)));
        if done >= piece.parts.len() {
            let now = Instant::now();
            self.backoff.reset();
            self.refresh = now + KEEP_REFRESH;
            if let Some(version) = piece.through {
                self.through = version;
                self.not_before = now + PACE;
            }
        }
    }

    /// The far side failed at the state.
    pub(crate) fn failed(&mut self) -> Duration {
        let wait = self.backoff.wait();
        debug!(?wait, "the state is said later");
        self.not_before = Instant::now() + wait;
        wait
    }

    /// What is said at an orderly end: the relay is there no more.
    pub(crate) fn farewell(&self) -> Vec<Part> {
        let statuses = self.said.keys().filter(|path| path.section == Section::Status);
        let part = |path: &Path| {
            let value = if path.channel.is_empty() { offline("stopped") } else { word(false) };
            Part { path: path.clone(), payload: Some(path.payload(&value)) }
        };
        statuses.map(part).collect()
    }

    fn note(&self, path: &Path, there: bool) -> StateElement {
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
    use crate::{config::SinkConfig, sink};

    fn route() -> Route {
        let config = json!({"type": "mqtt", "channels": ["main"]});
        let config: SinkConfig = serde_json::from_value(config).unwrap();
        Route::new("s", &config, sink::kind("mqtt").unwrap()).unwrap()
    }

    fn path(channel: &str, name: u8) -> Path {
        let name = format!("element-{name}");
        Path { channel: channel.into(), section: Section::Session, name: name.as_str().into() }
    }

    /// What can happen between a board and a far side.
    #[derive(Debug, Clone)]
    enum Step {
        Put(u8, u8),
        PutAnothers(u8),
        TakeAway(u8),
        /// The far side takes so many parts of the next piece, and then it is busy.
        Say(usize),
        /// It takes so many and acknowledges some of them; then the connection is lost.
        Lose(usize, usize),
        /// The connection is lost, and with it all that the far side had.
        Forget,
        /// The relay is killed and started again.
        Restart,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0_u8..6, 0_u8..4).prop_map(|(name, value)| Step::Put(name, value)),
            1 => (0_u8..6).prop_map(Step::PutAnothers),
            3 => (0_u8..6).prop_map(Step::TakeAway),
            5 => (0_usize..8).prop_map(Step::Say),
            1 => (0_usize..8, 0_usize..8).prop_map(|(took, told)| Step::Lose(took, told)),
            1 => Just(Step::Forget),
            1 => Just(Step::Restart),
        ]
    }

    struct World {
        board: Arc<Board>,
        keeping: Keeping,
        route: Route,
        far: BTreeMap<Path, Bytes>,
        /// What is written down: every path before it is said, until it is known to be cleared.
        memory: BTreeSet<Path>,
    }

    impl World {
        fn new() -> Self {
            let board = Arc::new(Board::default());
            Self {
                keeping: keeping(&board, []),
                board,
                route: route(),
                far: BTreeMap::new(),
                memory: BTreeSet::new(),
            }
        }

        /// Says the next piece: the far side takes `took` parts of it, and tells of `told`.
        fn say(&mut self, took: usize, told: usize) -> usize {
            let piece = self.keeping.piece(&self.route);
            for part in &piece.parts {
                assert_eq!(&*part.path.channel, "main", "not one of this sink's");
                self.memory.insert(part.path.clone());
            }
            for part in piece.parts.iter().take(took) {
                match &part.payload {
                    Some(payload) => drop(self.far.insert(part.path.clone(), payload.clone())),
                    None => drop(self.far.remove(&part.path)),
                }
            }
            let told = told.min(took).min(piece.parts.len());
            self.keeping.said(&piece, told);
            for part in piece.parts.iter().take(told).filter(|part| part.payload.is_none()) {
                self.memory.remove(&part.path);
            }
            piece.parts.len()
        }

        fn go(&mut self, step: &Step) {
            match *step {
                Step::Put(name, value) => {
                    self.board.put([(path("main", name), Some((&json!(value)).into()))]);
                }
                Step::PutAnothers(name) => {
                    self.board.put([(path("other", name), Some((&json!(1)).into()))]);
                }
                Step::TakeAway(name) => self.board.take_away(|at| *at == path("main", name)),
                Step::Say(took) => drop(self.say(took, took)),
                Step::Lose(took, told) => {
                    self.say(took, told);
                    self.keeping.begin();
                }
                Step::Forget => {
                    self.far.clear();
                    self.keeping.begin();
                }
                Step::Restart => self.keeping = keeping(&self.board, self.memory.clone()),
            }
        }
    }

    fn keeping(board: &Arc<Board>, memory: impl IntoIterator<Item = Path>) -> Keeping {
        Keeping::of("relay.kept.s".into(), Arc::clone(board), Journal::in_memory(1 << 20), memory)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn whatever_happens_the_far_side_ends_with_what_stands_on_the_board(
            steps in proptest::collection::vec(step(), 0..80)
        ) {
            let mut world = World::new();
            for step in steps {
                world.go(&step);
            }
            world.say(usize::MAX, usize::MAX);
            prop_assert_eq!(world.say(0, 0), 0, "said once, all is said");
            let board: BTreeMap<Path, Bytes> = world.board.look(|items, _| {
                let ours = items.iter().filter(|(path, _)| &*path.channel == "main");
                ours.map(|(path, item)| (path.clone(), path.payload(&item.value))).collect()
            });
            let remembered: BTreeSet<Path> = board.keys().cloned().collect();
            prop_assert_eq!(world.far, board);
            prop_assert_eq!(world.memory, remembered);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_watches_is_said_again_every_now_and_then() {
        let mut world = World::new();
        world.board.put([(path("main", 0), Some((&json!(1)).into()))]);
        assert_eq!(world.say(usize::MAX, usize::MAX), 1);
        let begun = Instant::now();
        let mut said = 0;
        while begun.elapsed() < 4 * AGAIN {
            world.keeping.due().await;
            world.far.insert(path("main", 0), "2".into());
            world.keeping.doubt();
            said += world.say(usize::MAX, usize::MAX);
        }
        assert!((3..=4).contains(&said), "{said}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_thousand_changes_of_one_element_are_said_as_one_and_none_too_often() {
        let mut world = World::new();
        world.keeping.due().await;
        world.say(usize::MAX, usize::MAX);
        for round in 1..=3 {
            let before = Instant::now();
            for value in 0..1000 {
                world.board.put([(path("main", 0), Some((&json!([round, value])).into()))]);
            }
            world.keeping.due().await;
            assert_eq!(before.elapsed(), PACE);
            assert_eq!(world.say(usize::MAX, usize::MAX), 1);
            assert_eq!(world.far[&path("main", 0)], format!("[{round},999]"));
        }
        let before = Instant::now();
        world.keeping.due().await;
        assert_eq!(before.elapsed(), KEEP_REFRESH, "without news the far side hears from us");
        assert_eq!(world.say(usize::MAX, usize::MAX), 0);
    }
}
