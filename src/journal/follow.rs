//! The relay's own parts that follow the journal for the few events that concern them.
//!
//! Which events those are is asked when they are appended, while they are at hand. What concerns
//! nobody wakes nobody and is read by nobody: under a flood that is nearly all there is, and the
//! follower's cursor goes along by itself.
//!
//! The one thing to know: a follower has a cursor like a sink, and what it was handed counts as open
//! until it says otherwise. While something is open the cursor stays before it, however long.

use std::sync::Arc;

use super::{Batch, Cursor, Journal, StoreError};
use crate::{
    base::event::{Event, Seq},
    config::Start,
};

/// Whether an event concerns a follower. Asked under the journal's lock: it must be quick.
pub(super) type Concern = fn(&Event) -> bool;

/// One follower's way through the journal.
#[derive(Debug)]
pub struct Follower {
    journal: Journal,
    name: Arc<str>,
}

/// How far a follower has looked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Following {
    concern: Concern,
    /// Everything through here was handed to it, or does not concern it.
    through: Seq,
    /// The last event that concerns it.
    until: Seq,
}

impl Following {
    fn is_behind(&self) -> bool {
        self.through < self.until
    }
}

impl Journal {
    /// Takes up the cursor of a part of the relay, as [`Journal::register`] does, and follows from
    /// there. What was appended before is handed out whether it concerns that part or not.
    pub fn follow(
        &self,
        name: &str,
        start: Start,
        concern: Concern,
    ) -> Result<Follower, StoreError> {
        let at = self.register(name, start)?;
        let mut state = self.0.lock();
        let until = state.last;
        if let Some(cursor) = state.cursors.get_mut(name) {
            cursor.following = Some(Following { concern, through: at, until });
        }
        drop(state);
        Ok(Follower { journal: self.clone(), name: name.into() })
    }
}

impl Follower {
    /// Waits for events that concern it, perhaps with others among them: at most `limit`, and about
    /// `max_bytes`.
    pub async fn next(&self, limit: usize, max_bytes: usize) -> Result<Batch, StoreError> {
        let shared = &self.journal.0;
        let mut readable = shared.readable.subscribe();
        let mut concern = shared.concern.subscribe();
        loop {
            concern.mark_unchanged();
            let readable_through = *readable.borrow_and_update();
            let changed = match self.looked().filter(Following::is_behind) {
                Some(Following { through, until, .. }) if through < readable_through => {
                    let until = until.min(readable_through);
                    let batch = self.journal.read(through, until, limit, max_bytes).await?;
                    self.handed(batch.through);
                    return Ok(batch);
                }
                Some(_) => readable.changed().await,
                None => concern.changed().await,
            };
            if changed.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// It is done with everything that it was handed; or, where something is open, with what stands
    /// before the first of that. It is written down with what is written next, at the latest within a
    /// second.
    pub fn done(&self, open: Option<Seq>) {
        let mut state = self.journal.0.lock();
        let Some(cursor) = state.cursors.get_mut(&self.name) else { return };
        let Some(following) = cursor.following else { return };
        let through = open.map_or(following.through, |seq| seq.saturating_sub(1));
        cursor.at = cursor.at.max(through);
    }

    fn looked(&self) -> Option<Following> {
        self.journal.0.lock().cursors.get(&self.name)?.following
    }

    fn handed(&self, through: Seq) {
        let mut state = self.journal.0.lock();
        let last = state.last;
        let cursor = state.cursors.get_mut(&self.name);
        let Some(following) = cursor.and_then(|cursor| cursor.following.as_mut()) else { return };
        // Behind the last that concerns it there is nothing to be handed out.
        following.through = if through < following.until { through } else { last };
    }
}

impl Cursor {
    /// Looks at an event that is appended; answers whether it concerns the follower.
    pub(super) fn offer(&mut self, seq: Seq, event: &Event) -> bool {
        let concerns = self.following.is_some_and(|following| (following.concern)(event));
        if concerns {
            self.go_along(seq - 1);
            if let Some(following) = &mut self.following {
                following.until = seq;
            }
        }
        concerns
    }

    /// Nothing through `seq` concerns the follower but what it was handed, or still waits for it.
    pub(super) fn go_along(&mut self, seq: Seq) {
        let Some(following) = self.following.as_mut().filter(|one| !one.is_behind()) else {
            return;
        };
        let before = std::mem::replace(&mut following.through, seq);
        // While something is open the cursor stays before it.
        if self.at == before {
            self.at = seq;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use serde_json::json;

    use super::*;
    use crate::base::event::own;

    fn journal() -> Journal {
        Journal::in_memory(1 << 20)
    }

    /// Appends events of these topics at once.
    fn say(journal: &Journal, topics: &[&str]) {
        let nobody = "".into();
        let event = |topic: &&str| own(topic, &nobody, &nobody, &json!({}), 1);
        journal.append(&mut topics.iter().map(event).collect());
    }

    fn follow(journal: &Journal) -> Follower {
        journal.follow("relay.test", Start::End, |event| &*event.place.topic == "mine").unwrap()
    }

    fn at(journal: &Journal) -> Seq {
        journal.0.lock().cursors["relay.test"].at
    }

    /// The numbers that are handed out now; nothing where it waits.
    fn handed(follower: &Follower, limit: usize) -> Option<Vec<Seq>> {
        let batch = follower.next(limit, usize::MAX).now_or_never()?.unwrap();
        assert_eq!(batch.lost, 0);
        Some(batch.records.iter().map(|record| record.seq).collect())
    }

    #[test]
    fn what_concerns_nobody_is_gone_along_with() {
        let journal = journal();
        let follower = follow(&journal);
        say(&journal, &["other", "other"]);
        assert_eq!((handed(&follower, 10), at(&journal)), (None, 2));
        say(&journal, &["other", "mine", "other", "mine", "other"]);
        // 4 and 6 concern it; 5 lies between them.
        assert_eq!((handed(&follower, 2), at(&journal)), (Some(vec![4, 5]), 3));
        say(&journal, &["other"]);
        assert_eq!(handed(&follower, 2), Some(vec![6]));
        assert_eq!((handed(&follower, 2), at(&journal)), (None, 3), "it has said nothing yet");
        follower.done(None);
        assert_eq!(at(&journal), 8, "what came behind the last does not concern it");
        say(&journal, &["other"]);
        assert_eq!(at(&journal), 9);
    }

    #[test]
    fn what_is_open_holds_the_cursor_and_not_the_reading() {
        let journal = journal();
        let follower = follow(&journal);
        say(&journal, &["other", "mine"]);
        assert_eq!(handed(&follower, 10), Some(vec![2]));
        say(&journal, &["other", "mine", "other"]);
        assert_eq!((handed(&follower, 10), at(&journal)), (Some(vec![4]), 1));
        follower.done(Some(3));
        assert_eq!(at(&journal), 2);
        say(&journal, &["other"]);
        assert_eq!((handed(&follower, 10), at(&journal)), (None, 2));
        follower.done(None);
        assert_eq!(at(&journal), 6);
        follower.done(Some(4));
        assert_eq!(at(&journal), 6, "it never goes back");
    }

    #[test]
    fn who_comes_back_is_handed_all_from_where_it_stood() {
        let journal = journal();
        let follower = follow(&journal);
        say(&journal, &["mine", "other"]);
        assert_eq!(handed(&follower, 10), Some(vec![1]));
        drop(follower);
        let follower = follow(&journal);
        assert_eq!(handed(&follower, 10), Some(vec![1, 2]));
        follower.done(None);
        say(&journal, &["other"]);
        assert_eq!(at(&journal), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_woken_by_what_concerns_it() {
        let journal = journal();
        let follower = follow(&journal);
        let waiting = follower.next(10, usize::MAX);
        let mut waiting = std::pin::pin!(waiting);
        assert!(waiting.as_mut().now_or_never().is_none());
        say(&journal, &["other"]);
        assert!(waiting.as_mut().now_or_never().is_none());
        say(&journal, &["mine"]);
        assert_eq!(waiting.await.unwrap().records.len(), 1);
    }
}
