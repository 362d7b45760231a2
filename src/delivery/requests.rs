//! What people ask of a sink while it runs: dead letters to try again, and events to hand on again.
//!
//! Requests stand in the journal's file, put there by the command line or the admin page. They are
//! dealt with between batches, a batch at a time, so that what is new does not wait for what is old.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{BATCH_BYTES, Delivery, Halt, Turn};
use crate::{
    event::{Origin, Record},
    journal::{DeadLetter, Replay},
    route::{Pattern, Rendered},
    sink::Outgoing,
};

/// Events of a replay that are handed over between two batches of new ones.
const REPLAY_BATCH: usize = 128;

impl Delivery {
    /// Deals with one piece of what is asked for.
    pub(super) async fn requested(&mut self, stop: &CancellationToken) -> Result<(), Halt> {
        if !self.asked {
            return Ok(());
        }
        let (journal, name) = (self.journal.clone(), Arc::clone(&self.name));
        let asked = tokio::task::spawn_blocking(move || journal.asked(&name)).await;
        let (letters, replays) = match asked {
            Ok(Ok(asked)) => asked,
            Ok(Err(error)) => {
                self.unreadable(&error).await;
                return Ok(());
            }
            Err(_) => return Ok(()),
        };
        let mut more = !letters.is_empty();
        for letter in letters {
            self.try_again(&letter, stop).await?;
        }
        for replay in &replays {
            more |= self.replay(replay, stop).await?;
        }
        self.asked = more;
        Ok(())
    }

    async fn try_again(
        &mut self,
        letter: &DeadLetter,
        stop: &CancellationToken,
    ) -> Result<(), Halt> {
        info!(sink = %self.name, number = letter.number, "trying a dead letter again");
        match self.route.render(&letter.record) {
            // If it is refused again, it becomes a new dead letter with the new reason.
            Rendered::Wanted(outgoing) => self.again(vec![outgoing], stop).await?,
            // Somebody asked for it: it must not go without a word.
            Rendered::Skipped(skip) => {
                let reason = format!("no longer wanted by the sink: {}", skip.as_str());
                self.set_aside(&letter.record, &reason);
            }
            Rendered::Failed(reason) => self.set_aside(&letter.record, &reason),
        }
        self.journal.settle(letter.number);
        Ok(())
    }

    /// Hands over what was asked for, until each of it is accepted or set aside.
    async fn again(
        &mut self,
        mut outgoing: Vec<Outgoing>,
        stop: &CancellationToken,
    ) -> Result<(), Halt> {
        let mut fresh = outgoing.len();
        while !outgoing.is_empty() {
            self.hand_over(&mut outgoing, fresh, Turn::Again, stop).await?;
            fresh = 0;
        }
        Ok(())
    }

    /// Hands on the next piece of a replay; answers whether there is more.
    async fn replay(&mut self, replay: &Replay, stop: &CancellationToken) -> Result<bool, Halt> {
        let pattern =
            replay.topic.as_deref().map(Pattern::parse).transpose().unwrap_or_else(|error| {
                warn!(%error, "a replay's pattern is none; all topics are handed on");
                None
            });
        let limit = REPLAY_BATCH.min(usize::try_from(self.window).unwrap_or(REPLAY_BATCH));
        // What the sink has not yet had comes anyway.
        let until = replay.until.min(self.position);
        let read = self.journal.read(replay.position, until, limit, BATCH_BYTES).await;
        let batch = match read {
            Ok(batch) => batch,
            Err(error) => {
                self.unreadable(&error).await;
                return Ok(true);
            }
        };
        if batch.lost > 0 {
            warn!(sink = %self.name, count = batch.lost, "the journal no longer holds all of a replay");
        }
        let wanted = |record: &&Arc<Record>| {
            pattern.as_ref().is_none_or(|pattern| pattern.matches(&record.event.place.topic))
        };
        let marked: Vec<_> = batch.records.iter().filter(wanted).map(replayed).collect();
        let outgoing = self.render(&marked);
        self.again(outgoing, stop).await?;
        let done = batch.through >= until || batch.through <= replay.position;
        self.journal.replayed(replay.number, (!done).then_some(batch.through));
        if done {
            info!(sink = %self.name, through = batch.through, "replay done");
        }
        Ok(!done)
    }
}

fn replayed(record: &Arc<Record>) -> Arc<Record> {
    let mut record = Record::clone(record);
    record.event.origin = Origin::Replayed;
    Arc::new(record)
}
