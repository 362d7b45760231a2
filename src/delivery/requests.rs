//! What people ask of a sink while it runs: dead letters to try again, and events to hand on again.
//!
//! Requests stand in the journal's file, written by the command line or the admin page. They are
//! dealt with between batches, a batch at a time, so that new events do not wait for old ones. Each
//! is a flight of its own: its events go the same way as new ones, but the cursor stays.

use std::collections::VecDeque;

use tokio::sync::watch;
use tracing::{info, warn};

use super::{ASKED, Delivery, reader::BATCH_BYTES};
use crate::{
    base::event::Seq,
    delivery::{
        replay_preview::{Choice, replayed},
        route::Rendered,
    },
    journal::{DeadLetter, Replay},
};

/// Events of a replay that are sent between two batches of new ones.
const REPLAY_BATCH: usize = 128;

/// Something that is asked for.
#[derive(Debug)]
pub(super) enum Request {
    /// A dead letter is to be tried again.
    Letter(DeadLetter),
    /// A piece of a replay is to be handed on.
    Replay(Replay),
}

/// What is begun, and what is to be put down when its events are dealt with.
#[derive(Debug)]
pub(super) enum Begun {
    /// A dead letter.
    Letter {
        /// Its number.
        number: i64,
        /// Whether it was refused again: then that is put down already.
        rejected: bool,
    },
    /// A piece of a replay.
    Replay {
        /// Its number.
        number: i64,
        /// How far it is with this piece; `None`: it is done.
        position: Option<Seq>,
    },
}

/// What is asked for, and whose turn it is.
#[derive(Debug)]
pub(super) struct Requests {
    /// Fires when something is asked for of any sink.
    pub(super) changed: watch::Receiver<u64>,
    /// Fires when this sink is to be tried at once.
    pub(super) retries: watch::Receiver<u64>,
    /// There may be something in the journal that is not in `queue`.
    pending: bool,
    queue: VecDeque<Request>,
    /// The next batch of new events comes first.
    pub(super) yielded: bool,
}

impl Requests {
    pub(super) fn new(changed: watch::Receiver<u64>, retries: watch::Receiver<u64>) -> Self {
        Self { changed, retries, pending: true, queue: VecDeque::new(), yielded: false }
    }

    /// Sees whether something was asked for. Where the next batch is always there, nothing is ever waited
    /// for.
    pub(super) fn look(&mut self) {
        if self.changed.has_changed().unwrap_or(false) {
            self.changed.mark_unchanged();
            self.pending = true;
        }
    }

    /// Whether new events wait for what is asked for.
    pub(super) fn have_precedence(&self) -> bool {
        !self.queue.is_empty() || (self.pending && !self.yielded)
    }

    /// Whether what comes next is a dead letter.
    pub(super) fn next_is_a_letter(&self) -> bool {
        matches!(self.queue.front(), Some(Request::Letter(_)))
    }

    /// Whether one may be begun with nothing in flight; `new`: there are new events.
    pub(super) fn are_due(&self, new: bool) -> bool {
        self.have_precedence() || (self.pending && !new)
    }
}

impl Delivery {
    /// Reads what is asked for; whether there is anything.
    pub(super) async fn load_requests(&mut self) -> bool {
        let (letters, replays) = match self.reader.source.pending_requests().await {
            Ok(asked) => asked,
            Err(error) => {
                self.unreadable(&error).await;
                return false;
            }
        };
        self.requests.queue = letters.into_iter().map(Request::Letter).collect();
        self.requests.queue.extend(replays.into_iter().map(Request::Replay));
        // There may be more behind them.
        self.requests.pending = !self.requests.queue.is_empty();
        self.requests.pending
    }

    /// Something is asked for of some sink. If it is this one, a wait is over: whoever asks knows why.
    pub(super) async fn requested_meanwhile(&mut self) {
        self.requests.pending = true;
        let waits = self.waiting.resume_at().is_some() || self.waiting.reconnect_at().is_some();
        if waits && self.load_requests().await {
            self.try_now(ASKED);
        }
    }

    /// Takes up the next thing that is asked for.
    pub(super) async fn begin_request(&mut self) {
        if self.requests.queue.is_empty() {
            self.load_requests().await;
        }
        let Some(request) = self.requests.queue.pop_front() else { return };
        self.requests.yielded = self.requests.queue.is_empty();
        match request {
            Request::Letter(letter) => self.try_again(&letter),
            Request::Replay(replay) => self.replay(&replay).await,
        }
    }

    /// All of what was begun is dealt with.
    pub(super) fn request_is_done(&self, begun: &Begun) {
        match *begun {
            Begun::Letter { number, rejected: false } => {
                self.reader.source.remove_dead_letter(number);
            }
            Begun::Letter { rejected: true, .. } => {}
            Begun::Replay { number, position } => {
                self.reader.source.replay_progress(number, position);
                if position.is_none() {
                    info!(sink = %self.page.name, number, "replay done");
                }
            }
        }
    }

    fn try_again(&mut self, letter: &DeadLetter) {
        let number = letter.number;
        info!(sink = %self.page.name, number, "trying a dead letter again");
        let reason = match self.route.render(&letter.record) {
            Rendered::Wanted(event, ha_events) => {
                self.flight.push(event, ha_events);
                self.flight.request = Some(Begun::Letter { number, rejected: false });
                return;
            }
            // Somebody asked for it: it must not end unreported.
            Rendered::Skipped(skip) => format!("no longer wanted by the sink: {}", skip.as_str()),
            Rendered::Failed(reason) => reason,
        };
        warn!(sink = %self.page.name, number, reason, "a dead letter cannot be tried again");
        self.reader.source.rejected_again(number, &reason);
    }

    /// Takes up the next piece of a replay.
    async fn replay(&mut self, replay: &Replay) {
        let choice = match Choice::of_replay(replay) {
            Ok(choice) => choice,
            Err(error) => {
                // It was asked for by another version.
                warn!(
                    error,
                    number = replay.number,
                    "a replay cannot be understood; nothing is sent"
                );
                return self.reader.source.replay_progress(replay.number, None);
            }
        };
        let limit = REPLAY_BATCH.min(self.config.window.max(1));
        // What the sink has not yet had comes anyway.
        let until = replay.until.min(self.reader.cursor);
        let batch = match self.reader.source.read(replay.position, until, limit, BATCH_BYTES).await
        {
            Ok(batch) => batch,
            Err(error) => return self.unreadable(&error).await,
        };
        if batch.lost > 0 {
            warn!(sink = %self.page.name, count = batch.lost, "the journal no longer holds all of a replay");
        }
        let marked = batch.records.iter().map(|record| replayed(record));
        let marked: Vec<_> = marked.filter(|record| choice.excludes(record).is_none()).collect();
        self.render(&marked);
        let done = batch.through >= until || batch.through <= replay.position;
        let position = (!done).then_some(batch.through);
        self.flight.request = Some(Begun::Replay { number: replay.number, position });
    }
}
