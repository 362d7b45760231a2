//! Where a sink is in its source: the cursor, how far it has read, and how much it may read.

use std::{collections::VecDeque, sync::Arc};

use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::sync::watch;

use super::{accepted::AcceptedBehind, source::Source};
use crate::{
    base::event::Seq,
    journal::{Batch, StoreError},
};

/// Bytes of events that are read at once, about: half a window of small ones. Most sinks wait for the
/// destination's answer to a batch, so a flood goes out the faster the more is in each: half as much was
/// measured to be slower.
pub(super) const BATCH_BYTES: usize = 1024 * 1024;

pub(super) struct Reader {
    pub(super) source: Arc<dyn Source>,
    /// Fires when something was written to the disk.
    pub(super) progress: watch::Receiver<u64>,
    window: u64,
    /// All through it is done.
    pub(super) cursor: Seq,
    /// All through it is read: what lies between is in flight, or not wanted.
    read: Seq,
    /// What was sent and whose cursor is not saved: the cursor, and how many events.
    unsaved: VecDeque<(Seq, u64)>,
    /// What the destination has accepted behind the cursor.
    pub(super) accepted: AcceptedBehind,
    /// What is being read. It is kept from turn to turn: reading from the disk takes a while.
    reading: Option<BoxFuture<'static, Result<Batch, StoreError>>>,
    /// A batch in front of which events are missing. It waits until all before it is done.
    gap: Option<Batch>,
}

/// Bytes of an event in flight, at most, on an average over the window. Astro's have a third of this.
const EVENT_BYTES: u64 = 2048;

/// The part of the window from which on what is not saved is to be saved at once: one over this.
const URGENT: u64 = 4;

impl Reader {
    pub(super) fn new(source: Arc<dyn Source>, window: usize) -> Self {
        let cursor = source.cursor();
        Self {
            progress: source.progress(),
            window: u64::try_from(window.max(1)).unwrap_or(u64::MAX),
            cursor,
            read: cursor,
            unsaved: VecDeque::new(),
            accepted: AcceptedBehind::new(Arc::clone(&source)),
            reading: None,
            gap: None,
            source,
        }
    }

    /// How many events may be read beside those in flight: half of the window at once, so that the next batch can
    /// go while the one before is being answered for, or its cursor saved. None while those in flight hold
    /// as many bytes as a window of them may: large events are fewer.
    pub(super) fn room(&mut self, (events, bytes): (usize, usize)) -> usize {
        let most = self.window.saturating_mul(EVENT_BYTES);
        if u64::try_from(bytes).unwrap_or(u64::MAX) >= most {
            return 0;
        }
        let saved = self.source.saved();
        while self.unsaved.front().is_some_and(|(through, _)| *through <= saved) {
            self.unsaved.pop_front();
        }
        let out = self.unsaved() + u64::try_from(events).unwrap_or(u64::MAX);
        let free = self.window.saturating_sub(out).min(self.window.div_ceil(2));
        usize::try_from(free).unwrap_or(usize::MAX)
    }

    /// Events that went out, and whose cursor is still to be saved.
    fn unsaved(&self) -> u64 {
        self.unsaved.iter().map(|(_, events)| events).sum()
    }

    /// Whether a cursor is still to be saved.
    pub(super) fn is_unsaved(&self) -> bool {
        !self.unsaved.is_empty()
    }

    /// Whether the source has more than was read.
    pub(super) fn has_more(&self) -> bool {
        self.source.last() > self.read
    }

    /// What comes next, if it is there without waiting: in memory, with nothing missing before it.
    pub(super) fn ready(&mut self, limit: usize) -> Option<Batch> {
        if limit == 0 || self.reading.is_some() || self.gap.is_some() {
            return None;
        }
        self.source.try_next(self.read, limit, BATCH_BYTES).filter(|batch| batch.lost == 0)
    }

    /// Waits for what comes next; not safe to use with a changed `limit` only in that the one of the first
    /// call counts. `alone`: nothing is in flight, so that the cursor may step over missing events.
    pub(super) async fn next(&mut self, limit: usize, alone: bool) -> Result<Batch, StoreError> {
        if self.gap.is_some() && !alone {
            std::future::pending::<()>().await;
        }
        if let Some(batch) = self.gap.take() {
            return Ok(batch);
        }
        let (source, after) = (&self.source, self.read);
        let reading = self.reading.get_or_insert_with(|| {
            let source = Arc::clone(source);
            async move { source.next(after, limit, BATCH_BYTES).await }.boxed()
        });
        let batch = reading.await;
        self.reading = None;
        match batch {
            Ok(batch) if batch.lost > 0 && !alone => {
                self.gap = Some(batch);
                std::future::pending().await
            }
            batch => batch,
        }
    }

    /// A batch is taken into the flight.
    pub(super) fn taken(&mut self, through: Seq) {
        self.read = through;
    }

    /// All behind the cursor is read once more.
    pub(super) fn again(&mut self) {
        self.read = self.cursor;
        (self.reading, self.gap) = (None, None);
        self.source.read_again();
    }

    /// The cursor moves; `events` of those before it went out.
    pub(super) fn advance(&mut self, through: Seq, events: u64) {
        if through <= self.cursor {
            return;
        }
        self.cursor = through;
        self.accepted.passed(through);
        if events > 0 {
            self.unsaved.push_back((through, events));
        }
        // Long before the window is full of what is not saved.
        self.source.advance(through, self.unsaved() * URGENT >= self.window);
    }

    /// All that was read is done.
    pub(super) fn advance_to_read(&mut self) {
        self.advance(self.read, 0);
    }
}
