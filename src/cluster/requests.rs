//! The dead letters and replays of one sink in the shared bucket, as its driver handles them for the time of
//! one term.
//!
//! Changes wait here until the bucket has them, in order; the cursor passes no event whose dead letter waits.
//! What the bucket says may be older than what this driver did: what is done is remembered.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex},
};

use futures_util::{StreamExt, stream};
use tracing::debug;

use super::{
    Cluster,
    connection::Storage,
    letters::{self, Listed},
};
use crate::{
    base::{
        clock,
        event::{Record, Seq},
        sync::lock,
        text,
    },
    journal::{DeadLetter, Replay, SetAside, StoreError},
};

/// Changes that wait for the bucket, at most, and bytes of letters among them.
const WAITING: usize = 256;
const WAITING_BYTES: u64 = 8 * 1024 * 1024;

/// Bytes of the reason of a dead letter: a server may give one of any length.
const REASON: usize = 1000;

/// Dead letters that are handed out at once to be tried again, and read at once.
const RETRY_AT_ONCE: usize = 64;
const READ_AT_ONCE: usize = 8;

/// Something that the bucket is to have.
#[derive(Debug, Clone)]
enum Change {
    /// The revision is that of the letter as it was handed out to be tried again.
    Letter {
        key: String,
        letter: DeadLetter,
        revision: Option<u64>,
    },
    Remove {
        key: String,
        is_large: bool,
    },
    Replay {
        key: String,
        replay: Replay,
    },
}

/// A letter that was handed out to be tried again.
#[derive(Debug)]
struct HandedOut {
    key: String,
    revision: u64,
    letter: DeadLetter,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Change>,
    bytes: u64,
    handed: HashMap<i64, HandedOut>,
    /// Letters that were dealt with, each at the revision that it had.
    done: HashMap<String, u64>,
    /// By key: a bucket that was made again gives their numbers to others.
    replays: HashMap<String, ReplayProgress>,
}

/// How far this driver is with a replay.
#[derive(Debug)]
struct ReplayProgress {
    /// `None`: it is done, or somebody else has finished it.
    position: Option<Seq>,
    /// The revision at which the bucket has it.
    revision: u64,
}

impl State {
    /// A replay has come to `position`; `None`: it is done.
    fn replay_progress(&mut self, listed: Listed, position: Option<Seq>) {
        let Listed { key, replay, revision } = listed;
        let first = || ReplayProgress { position: Some(replay.position), revision };
        let reached = self.replays.entry(key.clone()).or_insert_with(first);
        if reached.position.is_none() {
            return;
        }
        reached.position = position;
        self.queue.push_back(match position {
            Some(position) => Change::Replay { key, replay: Replay { position, ..replay } },
            None => Change::Remove { key, is_large: false },
        });
    }

    /// A replay with what was done of it here; `None`: it is done.
    fn pending(&self, Listed { key, replay, .. }: Listed) -> Option<Replay> {
        match self.replays.get(&key) {
            Some(reached) => Some(Replay { position: reached.position?, ..replay }),
            None => Some(replay),
        }
    }
}

pub(super) struct SinkRequests {
    cluster: Cluster,
    storage: Arc<Storage>,
    sink: Arc<str>,
    /// Bytes that the letters of a sink may take.
    most: u64,
    state: Mutex<State>,
}

fn bytes(letter: &DeadLetter) -> u64 {
    u64::try_from(letter.record.event.weight() + letter.reason.len()).unwrap_or(u64::MAX)
}

impl SinkRequests {
    pub(super) fn new(
        cluster: &Cluster,
        storage: &Arc<Storage>,
        sink: &Arc<str>,
        most: u64,
    ) -> Self {
        Self {
            cluster: cluster.clone(),
            storage: Arc::clone(storage),
            sink: Arc::clone(sink),
            most,
            state: Mutex::default(),
        }
    }

    pub(super) fn dead_letter(&self, record: &Arc<Record>, reason: &str) -> SetAside {
        let key = letters::letter_key(&self.sink, record.seq);
        let taken = lock(&self.cluster.0.letters).bytes(&self.sink);
        let mut state = lock(&self.state);
        if taken.saturating_add(state.bytes) >= self.most {
            return SetAside::Full;
        }
        if state.queue.len() >= WAITING || state.bytes >= WAITING_BYTES {
            return SetAside::Wait;
        }
        let letter = DeadLetter {
            number: 0,
            sink: self.sink.to_string(),
            at: clock::now(),
            reason: text::excerpt(reason, REASON),
            retry: false,
            record: Arc::clone(record),
        };
        state.bytes += bytes(&letter);
        state.queue.push_back(Change::Letter { key, letter, revision: None });
        SetAside::Stored
    }

    pub(super) fn rejected_again(&self, number: i64, reason: &str) {
        let mut state = lock(&self.state);
        let Some(HandedOut { key, revision, mut letter }) = state.handed.remove(&number) else {
            return;
        };
        letter.at = clock::now();
        letter.reason = text::excerpt(reason, REASON);
        letter.retry = false;
        state.done.insert(key.clone(), revision);
        state.bytes += bytes(&letter);
        state.queue.push_back(Change::Letter { key, letter, revision: Some(revision) });
    }

    pub(super) fn remove(&self, number: i64) {
        let mut state = lock(&self.state);
        if let Some(HandedOut { key, revision, .. }) = state.handed.remove(&number) {
            state.done.insert(key.clone(), revision);
            let is_large = lock(&self.cluster.0.letters).is_large(&key);
            state.queue.push_back(Change::Remove { key, is_large });
        }
    }

    pub(super) fn replay_progress(&self, number: i64, position: Option<Seq>) {
        let replays = lock(&self.cluster.0.letters).replays(&self.sink);
        let known = replays.into_iter().find(|listed| listed.replay.number == number);
        if let Some(listed) = known {
            lock(&self.state).replay_progress(listed, position);
        }
    }

    /// What is asked for of the sink.
    pub(super) async fn pending(&self) -> Result<(Vec<DeadLetter>, Vec<Replay>), StoreError> {
        let (keys, replays) = {
            let index = lock(&self.cluster.0.letters);
            let mut keys = index.letters(Some(&self.sink), None, true);
            keys.truncate(RETRY_AT_ONCE);
            let keys = keys.into_iter().map(|key| (index.revision(&key), key));
            (keys.collect::<Vec<_>>(), index.replays(&self.sink))
        };
        let reads = keys.into_iter().map(async |(known, key)| {
            let (dead, clock) = (&self.storage.dead, self.cluster.clock());
            let read = letters::read(dead, &key, known, clock).await;
            (key, read)
        });
        let found: Vec<_> = stream::iter(reads).buffered(READ_AT_ONCE).collect().await;
        let mut wanted = Vec::new();
        let mut state = lock(&self.state);
        for (key, read) in found {
            let read = read.map_err(|error| {
                StoreError::Elsewhere(format!("the dead letters cannot be read now: {error}"))
            })?;
            let Some((letter, revision)) = read.filter(|(letter, _)| letter.retry) else {
                continue;
            };
            if state.done.get(&key).is_some_and(|done| revision <= *done) {
                continue;
            }
            wanted.push(letter.clone());
            state.handed.insert(letter.number, HandedOut { key, revision, letter });
        }
        let replays = replays.into_iter().filter_map(|listed| state.pending(listed)).collect();
        Ok((wanted, replays))
    }

    /// Changes that the bucket does not have yet.
    pub(super) fn unwritten(&self) -> usize {
        lock(&self.state).queue.len()
    }

    /// Writes the first of them; `false`: it is to be tried again.
    pub(super) async fn write_one(&self) -> bool {
        let Some(change) = lock(&self.state).queue.front().cloned() else { return true };
        // The client library would keep it until a server is reached, and send it whoever drives the sink then.
        if !self.cluster.0.connection.is_reached() {
            return false;
        }
        let dead = &self.storage.dead;
        let written = match &change {
            // Where somebody has dropped it meanwhile, or asks for it once more, that counts.
            Change::Letter { key, letter, revision } => {
                let by = (self.cluster.member(), self.cluster.max_payload());
                letters::write(dead, key, letter, by, *revision).await.map(drop)
            }
            Change::Remove { key, is_large } => letters::delete(dead, key, *is_large).await,
            Change::Replay { key, replay } => self.write_replay(key, replay).await,
        };
        if let Err(error) = written {
            debug!(sink = %self.sink, error, "the dead letters cannot be written now");
            return false;
        }
        let mut state = lock(&self.state);
        state.queue.pop_front();
        if let Change::Letter { letter, .. } = &change {
            state.bytes = state.bytes.saturating_sub(bytes(letter));
        }
        true
    }

    async fn write_replay(&self, key: &str, replay: &Replay) -> Result<(), String> {
        let revision = lock(&self.state).replays.get(key).map_or(0, |reached| reached.revision);
        let written = letters::write_replay(&self.storage.dead, key, replay, revision).await?;
        if let Some(reached) = lock(&self.state).replays.get_mut(key) {
            match written {
                Some(revision) => reached.revision = revision,
                None => reached.position = None,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replay_in_a_bucket_that_was_made_again_is_not_taken_for_one_that_is_done() {
        let listed = |id: &str| Listed {
            key: format!("replay.hook.{id}"),
            replay: Replay {
                number: 1,
                at: 5,
                sink: "hook".into(),
                position: 4,
                until: 9,
                ..Replay::default()
            },
            revision: 1,
        };
        let mut state = State::default();
        state.replay_progress(listed("01J"), Some(7));
        let position = |state: &State, id| state.pending(listed(id)).map(|found| found.position);
        assert_eq!(position(&state, "01J"), Some(7));
        state.replay_progress(listed("01J"), None);
        assert_eq!(position(&state, "01J"), None);
        // It has the same number.
        assert_eq!(position(&state, "01K"), Some(4));
        state.replay_progress(listed("01K"), None);
        assert_eq!((position(&state, "01K"), state.queue.len()), (None, 3));
    }
}
