//! What people ask of a sink while it runs: dead letters to try again, and events to hand on again.
//!
//! Requests stand in the journal's file, put there by the command line or the admin page. They are
//! dealt with between batches, a batch at a time, so that what is new does not wait for what is old.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{BATCH_BYTES, Delivery, Halt};
use crate::{
    event::{Origin, Record},
    journal::{DeadLetter, Replay},
    route::Pattern,
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
                warn!(sink = %self.name, %error, "requests cannot be read now");
                self.asked = false;
                return Ok(());
            }
            Err(_) => return Ok(()),
        };
        for letter in letters {
            self.try_again(&letter, stop).await?;
        }
        let mut more = false;
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
        let outgoing = self.render(std::slice::from_ref(&letter.record));
        // If it is refused again, it becomes a new dead letter with the new reason.
        self.hand_over(&outgoing, stop).await?;
        self.journal.settle(letter.number);
        Ok(())
    }

    /// Hands on the next piece of a replay; answers whether there is more.
    async fn replay(&mut self, replay: &Replay, stop: &CancellationToken) -> Result<bool, Halt> {
        let pattern =
            replay.topic.as_deref().map(Pattern::parse).transpose().unwrap_or_else(|error| {
                warn!(%error, "a replay's pattern is none; all topics are handed on");
                None
            });
        let read =
            self.journal.read(replay.position, replay.until, REPLAY_BATCH, BATCH_BYTES).await;
        let batch = match read {
            Ok(batch) => batch,
            Err(error) => {
                warn!(sink = %self.name, %error, "the journal cannot be read now");
                return Ok(true);
            }
        };
        let wanted = |record: &&Arc<Record>| {
            pattern.as_ref().is_none_or(|pattern| pattern.matches(&record.event.topic))
        };
        let marked: Vec<_> = batch.records.iter().filter(wanted).map(replayed).collect();
        let outgoing = self.render(&marked);
        self.hand_over(&outgoing, stop).await?;
        let done = batch.through >= replay.until || batch.through <= replay.position;
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
