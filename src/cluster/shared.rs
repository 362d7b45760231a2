//! Dead letters and replays for people: what the command line and the endpoint ask of the cluster, whichever
//! member drives the sink.

use std::pin::pin;

use async_nats::jetstream::{kv::Store, stream::Stream};
use futures_util::{StreamExt, TryStreamExt, stream};

use super::{
    Cluster,
    connection::{Connection, member_name},
    error::ClusterError,
    letters::{self, Index, REPLAY},
    log_range,
};
use crate::{
    base::{
        clock::{ServerClock, UnixMillis},
        event::Seq,
        sync::lock,
    },
    config,
    journal::{Batch, DeadLetter, Replay},
};

/// Letters that are read or changed at once.
const AT_ONCE: usize = 16;

/// What several members share, to be looked at and asked for.
#[derive(Debug)]
pub(crate) struct SharedRequests {
    log: Stream,
    dead: Store,
    member: String,
    /// Bytes that the server takes in one message.
    max_payload: usize,
    /// The servers' clock.
    clock: ServerClock,
    index: Index,
}

fn unavailable(error: impl std::fmt::Display) -> ClusterError {
    ClusterError::Unavailable(format!("the cluster's dead letters cannot be reached: {error}"))
}

/// Which dead letters.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Which<'a> {
    pub(crate) sink: Option<&'a str>,
    pub(crate) numbers: Option<&'a [i64]>,
}

impl Cluster {
    pub(crate) fn shared(&self) -> Result<SharedRequests, ClusterError> {
        let storage = self.0.storage.borrow().clone();
        let storage = storage.ok_or_else(|| unavailable("no NATS server answers"))?;
        Ok(SharedRequests {
            log: storage.log.clone(),
            dead: storage.dead.clone(),
            member: self.member().to_owned(),
            max_payload: self.max_payload(),
            clock: self.clock(),
            index: lock(&self.0.letters).clone(),
        })
    }
}

impl SharedRequests {
    /// Without a running member.
    pub(crate) async fn connect(settings: &config::Cluster) -> Result<Self, ClusterError> {
        let member = member_name(settings);
        let connection = Connection::reach(settings, &format!("cli {member}")).await?;
        let Some(dead) = connection.bucket("dead").await else {
            let name = &settings.name;
            let text =
                format!("there is no cluster {name:?} at these servers, or they do not answer");
            return Err(ClusterError::Unavailable(text));
        };
        let log = connection.context.get_stream(format!("{}_log", settings.name)).await;
        let index = letters::index(&dead).await.map_err(unavailable)?;
        let max_payload = connection.client.server_info().max_payload;
        let (log, clock) = (log.map_err(unavailable)?, ServerClock::ours());
        Ok(Self { log, dead, member, max_payload, clock, index })
    }

    /// The newest `most` dead letters, oldest first; none before the one with which they exceed so many `bytes`.
    pub(crate) async fn letters(
        &self,
        which: Which<'_>,
        (most, bytes): (usize, usize),
    ) -> Result<Vec<DeadLetter>, ClusterError> {
        let keys = self.index.letters(which.sink, which.numbers, false);
        let reads = keys.into_iter().rev().take(most).map(async |key| {
            letters::read(&self.dead, &key, 0, self.clock).await.map_err(unavailable)
        });
        let mut reads = pin!(stream::iter(reads).buffered(AT_ONCE));
        let (mut letters, mut read) = (Vec::new(), 0);
        while read <= bytes
            && let Some(next) = reads.try_next().await?
        {
            let Some((letter, _)) = next else { continue };
            read += letter.record.event.message.len();
            letters.push(letter);
        }
        letters.reverse();
        Ok(letters)
    }

    /// Has dead letters tried again; answers how many.
    pub(crate) async fn retry(&self, which: Which<'_>) -> Result<usize, ClusterError> {
        let keys = self.index.letters(which.sink, which.numbers, false);
        let changes = keys.into_iter().map(async |key| {
            // An older one may say that it is to be tried again, when that was done since.
            let known = self.index.revision(&key);
            let read = letters::read(&self.dead, &key, known, self.clock).await;
            let Some((letter, revision)) = read.map_err(unavailable)? else { return Ok(0) };
            if letter.retry {
                return Ok(1);
            }
            let letter = DeadLetter { retry: true, ..letter };
            let by = (&*self.member, self.max_payload);
            // Where it has changed, somebody else was quicker.
            let written = letters::write(&self.dead, &key, &letter, by, Some(revision)).await;
            written.map(usize::from).map_err(unavailable)
        });
        let changed = stream::iter(changes).buffer_unordered(AT_ONCE);
        changed.try_fold(0, async |sum, one| Ok(sum + one)).await
    }

    /// Deletes dead letters; answers how many.
    pub(crate) async fn drop(&self, which: Which<'_>) -> Result<usize, ClusterError> {
        let keys = self.index.letters(which.sink, which.numbers, false);
        let changes = keys.into_iter().map(async |key| {
            let is_large = self.index.is_large(&key);
            letters::delete(&self.dead, &key, is_large).await.map_err(unavailable)
        });
        let changed = stream::iter(changes).buffer_unordered(AT_ONCE);
        changed.try_fold(0, async |sum, ()| Ok(sum + 1)).await
    }

    /// The first and the last event that the log stored within these times.
    pub(crate) async fn between(
        &self,
        from: UnixMillis,
        until: Option<UnixMillis>,
    ) -> Result<Option<(Seq, Seq)>, ClusterError> {
        let ahead = self.clock.ahead();
        let theirs = |at: UnixMillis| at.saturating_add_signed(ahead);
        let found = log_range::between(&self.log, theirs(from), until.map(theirs)).await;
        found.map_err(|error| ClusterError::Unavailable(format!("the log cannot be read: {error}")))
    }

    /// Reads events of the log after `after`, through `through`.
    pub(crate) async fn read(
        &self,
        after: Seq,
        through: Seq,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Batch, ClusterError> {
        let read = log_range::read(&self.log, self.clock, (after, through), limit, max_bytes).await;
        read.map_err(|error| ClusterError::Unavailable(format!("the log cannot be read: {error}")))
    }

    /// Asks for a replay; answers its key.
    pub(crate) async fn request_replay(&self, replay: &Replay) -> Result<String, ClusterError> {
        let key = format!("{REPLAY}{}.{}", replay.sink, ulid::Ulid::new());
        let created = self.dead.create(&*key, letters::encode_replay(replay)).await;
        created.map_err(unavailable)?;
        Ok(key)
    }

    /// A replay that is not done.
    pub(crate) async fn replay(&self, key: &str) -> Result<Option<Replay>, ClusterError> {
        let entry = self.dead.entry(key).await.map_err(unavailable)?;
        Ok(entry.and_then(|entry| letters::decode_replay(&entry)))
    }
}
