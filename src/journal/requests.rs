//! Dead letters and replays: what a sink sets aside, and what somebody asks for.
//!
//! Who asks (the command line, the endpoint) writes into the database beside the relay; the writer notices
//! that it has changed. Nothing is deleted for a dead letter: where there is no room, the sink is held.

use std::{collections::HashMap, sync::Arc};

use tokio::sync::watch;

use super::{
    Journal,
    error::StoreError,
    store::{DeadLetter, RejectedAgain, Replay},
};
use crate::base::{
    clock,
    event::{Record, Seq},
    text,
};

/// Dead letters that wait in memory for the disk, at most: several sinks' windows full of them.
const DEAD_IN_MEMORY: usize = 4096;

/// Bytes of the reason of a dead letter: a server may give one of any length.
const REASON: usize = 1000;

/// Dead letters that are handed out at once to be tried again.
const RETRY_AT_ONCE: usize = 64;

/// What became of an event that was to be set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetAside {
    /// It is a dead letter.
    Stored,
    /// Too many letters wait in memory for the disk, and it is not among them: it is to be set aside
    /// again when [`Journal::progress`] changes.
    Wait,
    /// The dead letters of this sink take all of `journal.max_dead_letters`, and it is not among them:
    /// the sink is to be held.
    Full,
    /// The journal has no directory: it is not kept.
    Lost,
}

impl Journal {
    /// Sets an event aside that the destination of `sink` rejected.
    pub fn dead_letter(&self, sink: &str, record: &Arc<Record>, reason: &str) -> SetAside {
        if self.0.dir().is_none() {
            // Nobody could look at it.
            return SetAside::Lost;
        }
        let mut memory = self.0.lock();
        let most = self.max_dead_letters();
        if memory.letters.get(sink).is_some_and(|letters| letters.bytes >= most) {
            return SetAside::Full;
        }
        let waiting = memory.pending.unwritten();
        let count: usize = waiting.iter().map(|changes| changes.dead.len()).sum();
        let bytes: usize = waiting.iter().map(|changes| changes.dead_bytes).sum();
        if count >= DEAD_IN_MEMORY || bytes > self.0.config.memory.bytes() {
            return SetAside::Wait;
        }
        let letter = DeadLetter {
            number: 0,
            sink: sink.to_owned(),
            at: clock::now(),
            reason: text::excerpt(reason, REASON),
            retry: false,
            record: Arc::clone(record),
        };
        memory.letters.entry(sink.to_owned()).or_default().add(&letter);
        memory.pending.new.add_dead(letter);
        self.0.notify_writer(memory);
        SetAside::Stored
    }

    /// Bytes that the dead letters of one sink may take.
    pub fn max_dead_letters(&self) -> u64 {
        self.0.config.max_dead_letters.0
    }

    /// A dead letter was tried again and rejected again: it stays, with the new reason, and is no
    /// longer asked for.
    pub fn rejected_again(&self, number: i64, reason: &str) {
        let mut memory = self.0.lock();
        let reason = text::excerpt(reason, REASON);
        memory.pending.new.rejected.push(RejectedAgain { number, at: clock::now(), reason });
        self.0.notify_writer(memory);
    }

    /// A dead letter was accepted at last.
    pub fn remove_dead_letter(&self, number: i64) {
        let mut memory = self.0.lock();
        memory.pending.new.removed.push(number);
        self.0.notify_writer(memory);
    }

    /// A replay has come to `position`; `None`: it is done.
    pub fn replay_progress(&self, number: i64, position: Option<Seq>) {
        let mut memory = self.0.lock();
        memory.pending.new.replays.insert(number, position);
        memory.cursors.move_backlog(number, position);
        if let Some(position) = position {
            // What of it is behind that is read again.
            memory.cursors.backlog_was_read(number, position);
        }
        self.0.notify_writer(memory);
    }

    /// Changes when somebody asks for a replay or for dead letters to be tried again.
    pub fn requests(&self) -> watch::Receiver<u64> {
        self.0.signals.requests.subscribe()
    }

    /// What is asked for of `sink`: dead letters to try again (some of them; there may be more), and
    /// replays. Blocks on the disk.
    pub fn pending_requests(
        &self,
        sink: &str,
    ) -> Result<(Vec<DeadLetter>, Vec<Replay>), StoreError> {
        // What is done and not yet written counts as done. It is looked at before the disk: what is
        // written in between is seen there.
        let (mut done, mut positions) = (Vec::new(), HashMap::new());
        for changes in self.0.lock().pending.unwritten() {
            done.extend(changes.rejected.iter().map(|again| again.number));
            done.extend(&changes.removed);
            positions.extend(&changes.replays);
        }
        let read = self.0.read_file(|store| {
            Ok((store.to_retry(sink, RETRY_AT_ONCE + done.len())?, store.replays()?))
        });
        let (mut letters, mut replays) = read?.unwrap_or_default();
        letters.retain(|letter| !done.contains(&letter.number));
        replays.retain_mut(|replay| match positions.get(&replay.number) {
            _ if replay.sink != sink => false,
            Some(None) => false,
            Some(Some(position)) => {
                replay.position = *position;
                true
            }
            None => true,
        });
        Ok((letters, replays))
    }

    pub fn dead_letter_counts(&self) -> HashMap<String, u64> {
        let memory = self.0.lock();
        memory.letters.iter().map(|(sink, letters)| (sink.clone(), letters.count)).collect()
    }
}
