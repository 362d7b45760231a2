//! Parts of the relay that follow the journal for a few kinds of events.
//!
//! A follower has a cursor like a sink. What it was given counts as open until it says otherwise; while
//! something is open the cursor stays before it, and reading goes on.

use futures_util::{FutureExt, future::BoxFuture};

use super::{Batch, Journal, StoreError};
use crate::{
    base::event::{Event, Seq},
    config::Start,
};

/// One follower's way through the journal.
pub struct Follower {
    journal: Journal,
    name: String,
    filter: fn(&Event) -> bool,
    /// Everything through here was read.
    read: Seq,
    /// Something that it was given is not done.
    open: bool,
    /// What is being read. It is kept from call to call: a read of the disk that was begun goes on,
    /// whether anybody waits for it or not.
    reading: Option<BoxFuture<'static, Result<Batch, StoreError>>>,
}

impl std::fmt::Debug for Follower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Follower({} at {})", self.name, self.read)
    }
}

impl Journal {
    /// Takes up the cursor of a part of the relay, as [`Journal::register`] does, and follows the events
    /// that `filter` accepts from there.
    pub fn follow(
        &self,
        name: &str,
        start: Start,
        filter: fn(&Event) -> bool,
    ) -> Result<Follower, StoreError> {
        let read = self.register(name, start)?;
        let (journal, name) = (self.clone(), name.into());
        Ok(Follower { journal, name, filter, read, open: false, reading: None })
    }
}

impl Follower {
    /// Waits for the next events that its filter accepts, or a loss before them: out of at most `limit`
    /// events and about `max_bytes`. May be dropped while it waits: the next call waits for the same read,
    /// with the limits of the call that began it.
    pub async fn next(&mut self, limit: usize, max_bytes: usize) -> Result<Batch, StoreError> {
        loop {
            let (journal, after) = (&self.journal, self.read);
            let reading = self.reading.get_or_insert_with(|| {
                let journal = journal.clone();
                async move { journal.next(after, limit, max_bytes).await }.boxed()
            });
            let batch = reading.await;
            self.reading = None;
            let mut batch = batch?;
            self.read = batch.through;
            batch.records.retain(|record| (self.filter)(&record.event));
            if batch.lost > 0 || !batch.records.is_empty() {
                self.open = true;
                return Ok(batch);
            }
            if !self.open {
                self.journal.advance_lazily(&self.name, self.read);
            }
        }
    }

    /// It is done with everything that it was given; or, where something is open, with what stands before
    /// the first of that.
    pub fn done(&mut self, open: Option<Seq>) {
        self.open = open.is_some();
        let through = open.map_or(self.read, |seq| seq.saturating_sub(1));
        self.journal.advance_lazily(&self.name, through);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use serde_json::json;
    use tokio::sync::oneshot;

    use super::*;
    use crate::{base::event::own, config};

    fn journal() -> Journal {
        Journal::in_memory(1 << 20)
    }

    /// Appends events of these topics at once.
    fn append(journal: &Journal, topics: &[&str]) {
        let nobody = "".into();
        let event = |topic: &&str| own(topic, &nobody, &nobody, &json!({}), 1);
        journal.append(&mut topics.iter().map(event).collect());
    }

    fn follow(journal: &Journal) -> Follower {
        journal.follow("relay.test", Start::End, |event| &*event.place.topic == "mine").unwrap()
    }

    fn position(journal: &Journal) -> Seq {
        journal.register("relay.test", Start::Earliest).unwrap()
    }

    /// The numbers that are there now; nothing where it waits.
    fn next(follower: &mut Follower, limit: usize) -> Option<Vec<Seq>> {
        let batch = follower.next(limit, usize::MAX).now_or_never()?.unwrap();
        assert_eq!(batch.lost, 0);
        Some(batch.records.iter().map(|record| record.seq).collect())
    }

    #[test]
    fn the_cursor_moves_over_what_the_filter_leaves_out() {
        let journal = journal();
        let mut follower = follow(&journal);
        append(&journal, &["other", "other"]);
        assert_eq!((next(&mut follower, 2), position(&journal)), (None, 2));
        append(&journal, &["other", "mine", "other", "mine", "other"]);
        assert_eq!((next(&mut follower, 2), position(&journal)), (Some(vec![4]), 2));
        append(&journal, &["other"]);
        assert_eq!(next(&mut follower, 2), Some(vec![6]));
        assert_eq!((next(&mut follower, 2), position(&journal)), (None, 2), "it is not done yet");
        follower.done(None);
        assert_eq!(position(&journal), 8, "what came behind the last is left out");
        append(&journal, &["other"]);
        assert_eq!((next(&mut follower, 2), position(&journal)), (None, 9));
    }

    #[test]
    fn what_is_open_holds_the_cursor_and_not_the_reading() {
        let journal = journal();
        let mut follower = follow(&journal);
        append(&journal, &["other", "mine"]);
        assert_eq!(next(&mut follower, 10), Some(vec![2]));
        append(&journal, &["other", "mine", "other"]);
        assert_eq!((next(&mut follower, 10), position(&journal)), (Some(vec![4]), 0));
        follower.done(Some(3));
        assert_eq!(position(&journal), 2);
        append(&journal, &["other"]);
        assert_eq!((next(&mut follower, 10), position(&journal)), (None, 2));
        follower.done(None);
        assert_eq!(position(&journal), 6);
        follower.done(Some(4));
        assert_eq!(position(&journal), 6, "it never goes back");
    }

    #[test]
    fn a_new_follower_is_given_again_what_was_not_done() {
        let journal = journal();
        let mut first = follow(&journal);
        append(&journal, &["mine", "other"]);
        assert_eq!(next(&mut first, 10), Some(vec![1]));
        drop(first);
        let mut second = follow(&journal);
        assert_eq!(next(&mut second, 10), Some(vec![1]));
        second.done(None);
        assert_eq!(position(&journal), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn it_waits_for_an_event_that_its_filter_accepts() {
        let journal = journal();
        let mut follower = follow(&journal);
        let waiting = follower.next(10, usize::MAX);
        let mut waiting = std::pin::pin!(waiting);
        assert!(waiting.as_mut().now_or_never().is_none());
        append(&journal, &["other"]);
        assert!(waiting.as_mut().now_or_never().is_none());
        append(&journal, &["mine"]);
        assert_eq!(waiting.await.unwrap().records.len(), 1);
    }

    #[tokio::test]
    async fn a_read_of_the_disk_is_begun_once_however_often_its_follower_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let config = config::Journal {
            dir: dir.path().to_owned(),
            memory: config::Size(0),
            ..config::Journal::default()
        };
        let (journal, _) = Journal::open(&config).unwrap();
        let mut follower = follow(&journal);
        // More than fits in memory: the first are only on the disk.
        let (nobody, data) = ("".into(), json!({"pad": "x".repeat(40_000)}));
        journal.append(&mut (0..3).map(|_| own("mine", &nobody, &nobody, &data, 1)).collect());
        journal.next(2, 1, usize::MAX).await.unwrap();
        assert!(journal.try_next(0, 1, usize::MAX).is_none());

        let (locked, is_locked) = oneshot::channel();
        let (release, released) = mpsc::channel::<()>();
        let reader = journal.clone();
        let holder = tokio::task::spawn_blocking(move || {
            reader.0.read_file(|_| Ok((locked.send(()), released.recv())))
        });
        is_locked.await.unwrap();
        assert!(follower.next(10, usize::MAX).now_or_never().is_none());
        // Each read on its thread holds the journal; so does the writer, now and then.
        let begun = Arc::strong_count(&journal.0);
        for _ in 0..10 {
            assert!(follower.next(10, usize::MAX).now_or_never().is_none());
        }
        assert!(Arc::strong_count(&journal.0) <= begun + 1, "one read is begun");
        release.send(()).unwrap();
        holder.await.unwrap().unwrap();
        assert_eq!(follower.next(10, usize::MAX).await.unwrap().records.len(), 3);
        drop(follower);
        tokio::task::spawn_blocking(move || journal.close()).await.unwrap();
    }
}
