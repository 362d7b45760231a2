//! What people ask of a sink while it runs: dead letters to try again, and events to hand on again.
//!
//! Requests stand in the journal's file, put there by the command line or the admin page. They are
//! dealt with between batches, a batch at a time, so that what is new does not wait for what is old. Each
//! is a flight of its own: its events go the same way as new ones, but the cursor stays.

use std::sync::Arc;

use tracing::{info, warn};

use super::{BATCH_BYTES, Delivery};
use crate::{
    base::event::{Origin, Record, Seq},
    delivery::route::{Pattern, Rendered},
    journal::{DeadLetter, Replay},
};

/// Events of a replay that are handed over between two batches of new ones.
const REPLAY_BATCH: usize = 128;

/// Something that is asked for.
#[derive(Debug)]
pub(super) enum Errand {
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
        refused: bool,
    },
    /// A piece of a replay.
    Replay {
        /// Its number.
        number: i64,
        /// How far it is with this piece; `None`: it is done.
        position: Option<Seq>,
    },
}

impl Delivery {
    /// Reads what is asked for; whether there is anything.
    pub(super) async fn load_errands(&mut self) -> bool {
        let (journal, name) = (self.journal.clone(), Arc::clone(&self.name));
        let asked = tokio::task::spawn_blocking(move || journal.pending_requests(&name)).await;
        let (letters, replays) = match asked {
            Ok(Ok(asked)) => asked,
            Ok(Err(error)) => {
                self.unreadable(&error).await;
                return false;
            }
            // The runtime ends.
            Err(_) => return false,
        };
        self.errands = letters.into_iter().map(Errand::Letter).collect();
        self.errands.extend(replays.into_iter().map(Errand::Replay));
        // There may be more behind them.
        self.asked = !self.errands.is_empty();
        self.asked
    }

    /// Takes up the next thing that is asked for, if it is its turn.
    pub(super) async fn next_errand(&mut self) {
        if self.errands.is_empty() && self.asked && !self.after_errands {
            self.load_errands().await;
        }
        let Some(errand) = self.errands.pop_front() else { return };
        self.after_errands = self.errands.is_empty();
        match errand {
            Errand::Letter(letter) => self.try_again(&letter),
            Errand::Replay(replay) => self.replay(&replay).await,
        }
    }

    /// All of what was begun is dealt with.
    pub(super) fn done(&self, begun: &Begun) {
        match *begun {
            Begun::Letter { number, refused: false } => self.journal.remove_dead_letter(number),
            Begun::Letter { refused: true, .. } => {}
            Begun::Replay { number, position } => {
                self.journal.replay_progress(number, position);
                if position.is_none() {
                    info!(sink = %self.name, number, "replay done");
                }
            }
        }
    }

    fn try_again(&mut self, letter: &DeadLetter) {
        let number = letter.number;
        info!(sink = %self.name, number, "trying a dead letter again");
        let refused = match self.route.render(&letter.record) {
            Rendered::Wanted(outgoing) => {
                self.flight.events.push(outgoing);
                self.flight.errand = Some(Begun::Letter { number, refused: false });
                return;
            }
            // Somebody asked for it: it must not go without a word.
            Rendered::Skipped(skip) => format!("no longer wanted by the sink: {}", skip.as_str()),
            Rendered::Failed(reason) => reason,
        };
        warn!(sink = %self.name, number, reason = refused, "a dead letter cannot be tried again");
        self.journal.rejected_again(number, &refused);
    }

    /// Takes up the next piece of a replay.
    async fn replay(&mut self, replay: &Replay) {
        let pattern =
            replay.topic.as_deref().map(Pattern::parse).transpose().unwrap_or_else(|error| {
                warn!(%error, "a replay's pattern is none; all topics are handed on");
                None
            });
        let limit = REPLAY_BATCH.min(usize::try_from(self.window).unwrap_or(REPLAY_BATCH));
        // What the sink has not yet had comes anyway.
        let until = replay.until.min(self.position);
        let batch = match self.journal.read(replay.position, until, limit, BATCH_BYTES).await {
            Ok(batch) => batch,
            Err(error) => return self.unreadable(&error).await,
        };
        if batch.lost > 0 {
            warn!(sink = %self.name, count = batch.lost, "the journal no longer holds all of a replay");
        }
        let wanted = |record: &&Arc<Record>| {
            pattern.as_ref().is_none_or(|pattern| pattern.matches(&record.event.place.topic))
        };
        let marked: Vec<_> = batch.records.iter().filter(wanted).map(replayed).collect();
        self.flight.events = self.render(&marked);
        let done = batch.through >= until || batch.through <= replay.position;
        let position = (!done).then_some(batch.through);
        self.flight.errand = Some(Begun::Replay { number: replay.number, position });
    }
}

fn replayed(record: &Arc<Record>) -> Arc<Record> {
    let mut record = Record::clone(record);
    record.event.origin = Origin::Replayed;
    Arc::new(record)
}
