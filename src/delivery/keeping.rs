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
    backoff::Backoff,
    board::{Board, Path, Section, offline, word},
    clock,
    journal::{Journal, Kept, StoreError},
    route::Route,
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

/// What is said at once.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) parts: Vec<Part>,
    /// The version of each.
    versions: Vec<u64>,
    /// The board's version, where nothing is left behind this piece.
    through: Option<u64>,
}

/// What one sink keeps.
#[derive(Debug)]
pub(super) struct Keeping {
    board: Arc<Board>,
    changes: watch::Receiver<u64>,
    journal: Journal,
    /// Under which name the paths are written down.
    memory: Box<str>,
    /// What the far side has, with the version that was said; 0: in which version is not known.
    said: BTreeMap<Path, u64>,
    /// The board's version through which all is said.
    through: u64,
    /// Nothing is said before.
    not_before: Instant,
    /// When the far side hears from us, with or without news.
    refresh: Instant,
    backoff: Backoff,
    /// Whether it was complained since the connect that a part is refused.
    pub(super) complained: bool,
}

impl Keeping {
    /// What the sink `name` keeps of `board`. Blocks on the disk.
    pub(super) fn new(name: &str, board: Arc<Board>, journal: Journal) -> Result<Self, StoreError> {
        // No channel can have this name: their labels have no dot.
        let memory: Box<str> = format!("relay.kept.{name}").into();
        let said = journal
            .kept()?
            .into_iter()
            .filter(|kept| kept.channel == memory)
            .filter_map(|kept| Some((Path::from_text(&kept.element)?, 0)))
            .collect();
        let now = Instant::now();
        Ok(Self {
            changes: board.changes(),
            board,
            journal,
            memory,
            said,
            through: 0,
            not_before: now,
            refresh: now,
            backoff: Backoff::new(WAIT.0, WAIT.1),
            complained: false,
        })
    }

    /// There is a new connection: what the far side has is not known.
    pub(super) fn begin(&mut self) {
        self.said.values_mut().for_each(|version| *version = 0);
        self.through = 0;
        self.refresh = Instant::now();
        self.complained = false;
    }

    /// Whether there is something to say now.
    pub(super) fn is_due(&self) -> bool {
        self.due_at() <= Instant::now()
    }

    /// Waits until there is something to say. Safe to drop.
    pub(super) async fn due(&mut self) {
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
    pub(super) fn piece(&mut self, route: &Route) -> Piece {
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
        self.journal.keep(fresh.map(|part| self.note(&part.path, true)));
        piece
    }

    /// The far side has the first `done` parts of a piece.
    pub(super) fn said(&mut self, piece: &Piece, done: usize) {
        for (part, version) in piece.parts.iter().zip(&piece.versions).take(done) {
            if part.payload.is_some() {
                self.said.insert(part.path.clone(), *version);
            } else {
                self.said.remove(&part.path);
            }
        }
        let gone = piece.parts.iter().take(done).filter(|part| part.payload.is_none());
        self.journal.keep(gone.map(|part| self.note(&part.path, false)));
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
    pub(super) fn failed(&mut self) {
        let wait = self.backoff.wait();
        debug!(?wait, "the state is said later");
        self.not_before = Instant::now() + wait;
    }

    /// What is said at an orderly end: the relay is there no more.
    pub(super) fn farewell(&self) -> Vec<Part> {
        let statuses = self.said.keys().filter(|path| path.section == Section::Status);
        let part = |path: &Path| {
            let value = if path.channel.is_empty() { offline("stopped") } else { word(false) };
            Part { path: path.clone(), payload: Some(path.payload(&value)) }
        };
        statuses.map(part).collect()
    }

    fn note(&self, path: &Path, there: bool) -> Kept {
        Kept {
            channel: self.memory.clone(),
            element: path.text().into(),
            // What it is does not matter; that it is there does.
            value: there.then(|| "true".into()),
            at: clock::now(),
        }
    }
}
