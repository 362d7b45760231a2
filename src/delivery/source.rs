//! Where a delivery reads its events, and where it leaves what it has to keep: the journal of this relay, or
//! the log and the bucket that several relays share.
//!
//! The loop is the same for both. A position ([`Seq`]) is the source's own number; positions grow, and need
//! not follow one another.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use async_trait::async_trait;
use tokio::sync::watch;
use tracing::warn;

use crate::{
    base::{
        clock,
        event::{Event, Record, Seq},
    },
    config::Start,
    journal::{Batch, DeadLetter, Journal, Replay, SetAside, StateElement, StoreError},
};

/// The source of one sink's delivery.
#[async_trait]
pub trait Source: Send + Sync {
    /// Where the sink's cursor stands.
    fn cursor(&self) -> Seq;
    /// Through which position the cursor is saved.
    fn saved(&self) -> Seq;
    /// All through `seq` is done. That is saved soon; `urgent`: at once.
    fn advance(&self, seq: Seq, urgent: bool);
    /// Changes when something was saved, or there is room.
    fn progress(&self) -> watch::Receiver<u64>;
    /// The last position that there is.
    fn last(&self) -> Seq;
    /// What comes after `after`, if it is there without waiting.
    fn try_next(&self, after: Seq, limit: usize, max_bytes: usize) -> Option<Batch>;
    /// Waits for what comes after `after`.
    async fn next(&self, after: Seq, limit: usize, max_bytes: usize) -> Result<Batch, StoreError>;
    /// A batch is taken before which `lost` events are missing: how many of those were not reported before.
    fn unreported(&self, lost: u64) -> u64 {
        lost
    }
    /// The same of a replay that nobody asked for, of this number, and events before `before`.
    fn unreported_of_backlog(&self, _number: i64, _before: Seq, lost: u64) -> u64 {
        lost
    }
    /// Events of the replay of this number are taken, through that event.
    fn replay_was_read(&self, _number: i64, _through: Seq) {}
    /// Why events are missing, for people.
    fn lost_cause(&self) -> &'static str {
        LOST
    }
    /// Whether events may be handed out at this moment.
    fn may_send(&self) -> bool;
    /// What comes after the cursor is read once more.
    fn read_again(&self);

    /// What the destination had accepted behind the cursor when the delivery before this one ended.
    async fn accepted_behind(&self) -> Vec<Seq>;
    /// Keeps that for the next one; none: there is nothing to keep any more.
    fn keep_accepted_behind(&self, seqs: &[Seq]);

    /// Reads again what comes after `after`, through `through`.
    async fn read(
        &self,
        after: Seq,
        through: Seq,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Batch, StoreError>;

    /// Changes when something is asked for of any sink.
    fn requests(&self) -> watch::Receiver<u64>;
    /// What is asked for of this sink.
    async fn pending_requests(&self) -> Result<(Vec<DeadLetter>, Vec<Replay>), StoreError>;
    /// Sets an event aside that the destination rejected.
    fn dead_letter(&self, record: &Arc<Record>, reason: &str) -> SetAside;
    fn rejected_again(&self, number: i64, reason: &str);
    fn remove_dead_letter(&self, number: i64);
    /// A replay has come to `position`; `None`: it is done.
    fn replay_progress(&self, number: i64, position: Option<Seq>);
    /// Appends an event of the relay's own.
    fn append(&self, event: Event);
}

/// Why events of the journal are lost.
pub(crate) const LOST: &str = "the journal no longer holds them";

/// The element under which [`Source::keep_accepted_behind`] keeps them in the journal.
const ACCEPTED: &str = "events";

/// The journal of this relay.
#[derive(Debug)]
pub(crate) struct JournalSource {
    journal: Journal,
    sink: Arc<str>,
    cursor: Seq,
    /// Events that were found missing in what was read, and that are to be reported when it is taken.
    unreported: AtomicU64,
}

impl JournalSource {
    /// That of the sink of this name; it continues at the sink's cursor.
    pub(crate) fn new(journal: Journal, sink: &str, start: Start) -> Result<Self, StoreError> {
        let cursor = journal.register(sink, start)?;
        Ok(Self { journal, sink: sink.into(), cursor, unreported: AtomicU64::new(0) })
    }

    /// No channel can have this name: their labels have no dot.
    fn accepted_key(&self) -> Box<str> {
        format!("relay.answered.{}", self.sink).into()
    }
}

#[async_trait]
impl Source for JournalSource {
    fn cursor(&self) -> Seq {
        self.cursor
    }

    fn saved(&self) -> Seq {
        self.journal.saved(&self.sink)
    }

    fn advance(&self, seq: Seq, urgent: bool) {
        if urgent {
            self.journal.advance(&self.sink, seq);
        } else {
            self.journal.advance_soon(&self.sink, seq);
        }
    }

    fn progress(&self) -> watch::Receiver<u64> {
        self.journal.progress()
    }

    fn last(&self) -> Seq {
        self.journal.figures().last
    }

    fn try_next(&self, after: Seq, limit: usize, max_bytes: usize) -> Option<Batch> {
        let batch = self.journal.try_next(after, limit, max_bytes)?;
        let unreported = self.journal.was_read(&self.sink, &batch);
        self.unreported.fetch_add(unreported, Ordering::Relaxed);
        Some(batch)
    }

    async fn next(&self, after: Seq, limit: usize, max_bytes: usize) -> Result<Batch, StoreError> {
        let batch = self.journal.next(after, limit, max_bytes).await?;
        let unreported = self.journal.was_read(&self.sink, &batch);
        self.unreported.fetch_add(unreported, Ordering::Relaxed);
        Ok(batch)
    }

    fn unreported(&self, _lost: u64) -> u64 {
        self.unreported.swap(0, Ordering::Relaxed)
    }

    fn unreported_of_backlog(&self, number: i64, before: Seq, lost: u64) -> u64 {
        self.journal.take_lost_of_backlog(number, before, lost)
    }

    fn replay_was_read(&self, number: i64, through: Seq) {
        self.journal.backlog_was_read(number, through);
    }

    fn may_send(&self) -> bool {
        true
    }

    fn read_again(&self) {
        // The journal is read from any position.
    }

    async fn accepted_behind(&self) -> Vec<Seq> {
        let journal = self.journal.clone();
        let kept = match tokio::task::spawn_blocking(move || journal.stored_state()).await {
            Ok(Ok(kept)) => kept,
            Ok(Err(error)) => {
                warn!(%error, "what was accepted before the last end cannot be read: it may be repeated");
                return Vec::new();
            }
            // The runtime ends.
            Err(_) => return Vec::new(),
        };
        let key = self.accepted_key();
        let mine = kept.into_iter().find(|kept| kept.channel == key);
        let text = mine.and_then(|kept| kept.value).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    fn keep_accepted_behind(&self, seqs: &[Seq]) {
        let value = if seqs.is_empty() { None } else { serde_json::to_string(seqs).ok() };
        self.journal.store_state([StateElement {
            channel: self.accepted_key(),
            element: ACCEPTED.into(),
            value: value.map(Into::into),
            at: clock::now(),
        }]);
    }

    async fn read(
        &self,
        after: Seq,
        through: Seq,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Batch, StoreError> {
        self.journal.read(after, through, limit, max_bytes).await
    }

    fn requests(&self) -> watch::Receiver<u64> {
        self.journal.requests()
    }

    async fn pending_requests(&self) -> Result<(Vec<DeadLetter>, Vec<Replay>), StoreError> {
        let (journal, sink) = (self.journal.clone(), Arc::clone(&self.sink));
        let asked = tokio::task::spawn_blocking(move || journal.pending_requests(&sink)).await;
        // The runtime ends.
        asked.unwrap_or_else(|_| Ok((Vec::new(), Vec::new())))
    }

    fn dead_letter(&self, record: &Arc<Record>, reason: &str) -> SetAside {
        self.journal.dead_letter(&self.sink, record, reason)
    }

    fn rejected_again(&self, number: i64, reason: &str) {
        self.journal.rejected_again(number, reason);
    }

    fn remove_dead_letter(&self, number: i64) {
        self.journal.remove_dead_letter(number);
    }

    fn replay_progress(&self, number: i64, position: Option<Seq>) {
        self.journal.replay_progress(number, position);
    }

    fn append(&self, event: Event) {
        self.journal.append(&mut vec![event]);
    }
}
