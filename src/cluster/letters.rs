//! Dead letters and replays, shared: a bucket that every member reads and writes.
//!
//! | key | what |
//! |---|---|
//! | `letter.<sink>.<position>` | an event that the destination of a sink rejected |
//! | `part.<sink>.<position>.<n>` | a piece of it, where it is too large for one message of NATS |
//! | `replay.<sink>.<id>` | events that are to be handed to a sink again, and how far that is |
//!
//! The key of a letter is its sink and its event's position in the log: a driver that dies between the letter
//! and the cursor leaves one that the next driver writes again, and no second one. A log that was made again gives
//! its positions to other events: behind the position of a second letter stands `-2`, and so on. A value is a line
//! of JSON, behind it, of a letter, the event's bytes. People name a letter by a number: the first revision of its
//! key.
//!
//! Every member has an [`Index`] of the bucket; the letters themselves are read when somebody wants them.

mod index;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use async_nats::{
    HeaderMap, HeaderName, HeaderValue,
    jetstream::kv::{CreateErrorKind, Entry, Operation, Store, UpdateErrorKind, Watch},
};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch::Receiver,
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use self::index::Refill;
pub(super) use self::index::{Index, Listed};
use super::{Cluster, connection::Storage, message, parts};
use crate::{
    base::{
        clock::{self, ServerClock, UnixMillis},
        event::Seq,
        supervisor::Factory,
        sync::lock,
    },
    journal::{DeadLetter, Journal, Replay, StoreError, store::Store as JournalStore},
    sink::nats::headers::MESSAGE_ID,
};

const LETTER: &str = "letter.";
const PART: &str = "part.";
pub(super) const REPLAY: &str = "replay.";

/// How long to wait before what failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How long the mark of a deleted key is kept: every member has heard of it by then.
const MARK: Duration = Duration::from_hours(1);

/// How long the bucket may take to be read.
const READ: Duration = Duration::from_secs(10);

/// The line at the head of a letter.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Head {
    /// 0: that of the revision.
    number: i64,
    at: UnixMillis,
    reason: String,
    retry: bool,
    seq: Seq,
    /// Pieces that the event is in, and its bytes then; 0: it is here.
    parts: usize,
    bytes: u64,
    /// The event's headers in the log.
    headers: BTreeMap<String, String>,
}

pub(super) fn letter_key(sink: &str, seq: Seq) -> String {
    format!("{LETTER}{sink}.{seq}")
}

/// The sink of a key. Names of sinks have no dot.
fn sink_of<'k>(key: &'k str, of: &str) -> Option<&'k str> {
    key.strip_prefix(of)?.split('.').next()
}

fn number_of(given: i64, revision: u64) -> i64 {
    if given > 0 { given } else { i64::try_from(revision).unwrap_or(i64::MAX) }
}

/// A letter as a value of the bucket, and the pieces beside it.
fn encode(letter: &DeadLetter, member: &str, max_payload: usize) -> (Bytes, Vec<Bytes>) {
    let message = &letter.record.event.message;
    let mut pieces = parts::pieces(message, max_payload);
    let is_large = pieces.len() > 1;
    let headers = message::headers(&letter.record, member);
    let headers = headers
        .iter()
        .filter_map(|(name, values)| Some((name.to_string(), values.first()?.as_str().to_owned())));
    let head = Head {
        number: letter.number,
        at: letter.at,
        reason: letter.reason.clone(),
        retry: letter.retry,
        seq: letter.record.seq,
        parts: if is_large { pieces.len() } else { 0 },
        bytes: if is_large { u64::try_from(message.len()).unwrap_or(u64::MAX) } else { 0 },
        headers: headers.collect(),
    };
    let mut value = serde_json::to_vec(&head).unwrap_or_default();
    value.push(b'\n');
    if !is_large {
        value.extend_from_slice(message);
        pieces.clear();
    }
    (value.into(), pieces)
}

fn split(value: &Bytes) -> Option<(Head, Bytes)> {
    let end = value.iter().position(|byte| *byte == b'\n')?;
    let head = serde_json::from_slice(value.get(..end)?).ok()?;
    Some((head, value.slice(end + 1..)))
}

/// The key of a piece of a letter.
fn part_key(letter: &str, number: impl std::fmt::Display) -> String {
    format!("{PART}{}.{number}", letter.strip_prefix(LETTER).unwrap_or(letter))
}

/// Puts a letter into the bucket, if it is not there. Where a revision is named, it is to replace that one;
/// `false`: it is not there any more.
pub(super) async fn write(
    dead: &Store,
    key: &str,
    letter: &DeadLetter,
    (member, max_payload): (&str, usize),
    revision: Option<u64>,
) -> Result<bool, String> {
    let (value, pieces) = encode(letter, member, max_payload);
    let Some(revision) = revision else {
        let mut number = 1;
        while !create(dead, &numbered(key, number), &value, &pieces).await? {
            number += 1;
        }
        return Ok(true);
    };
    // The pieces are there.
    match dead.update(key, value, revision).await {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(false),
        Err(error) => Err(error.to_string()),
    }
}

/// The key of the letter of so many events that had this position.
fn numbered(key: &str, number: u32) -> String {
    if number == 1 { key.to_owned() } else { format!("{key}-{number}") }
}

/// Puts a letter where none of this key is: what the client library sends late, because no server was reached,
/// does not bring back one that somebody has dealt with. `false`: that of another event is there.
async fn create(dead: &Store, key: &str, value: &Bytes, pieces: &[Bytes]) -> Result<bool, String> {
    // The pieces are there before the letter is, and do not replace those of another.
    if !pieces.is_empty()
        && let Some(found) = letter_at(dead, key).await?
    {
        return Ok(event_of(&found) == event_of(value));
    }
    for (number, piece) in pieces.iter().enumerate() {
        let put = dead.put(part_key(key, number), piece.clone()).await;
        put.map_err(|error| error.to_string())?;
    }
    let Err(error) = dead.create(key, value.clone()).await else { return Ok(true) };
    if error.kind() != CreateErrorKind::AlreadyExists {
        return Err(error.to_string());
    }
    match letter_at(dead, key).await? {
        Some(found) => Ok(event_of(&found) == event_of(value)),
        // It was deleted at this moment, or the server that answered is behind.
        None => Err(error.to_string()),
    }
}

async fn letter_at(dead: &Store, key: &str) -> Result<Option<Bytes>, String> {
    let found = dead.entry(key).await.map_err(|error| error.to_string())?;
    Ok(found.filter(|entry| entry.operation == Operation::Put).map(|entry| entry.value))
}

/// The key of the event that a letter is of.
fn event_of(letter: &Bytes) -> Option<String> {
    let (mut head, _) = split(letter)?;
    head.headers.remove(&MESSAGE_ID.to_string())
}

/// Whether a server that answered with this is behind the index, which knows that revision of the key.
fn is_behind(entry: Option<&Entry>, known: u64) -> bool {
    entry.map_or(0, |entry| entry.revision) < known
}

/// Reads a letter of this key, and its revision; `None`: there is none. Any server that has a copy of the bucket
/// may answer: it is an error if it is behind `known`, the revision of the index. `clock` is that of the
/// servers.
pub(super) async fn read(
    dead: &Store,
    key: &str,
    known: u64,
    clock: ServerClock,
) -> Result<Option<(DeadLetter, u64)>, String> {
    let entry = dead.entry(key).await.map_err(|error| error.to_string())?;
    if is_behind(entry.as_ref(), known) {
        return Err("the server that answered is behind the others".into());
    }
    let Some(entry) = entry.filter(|entry| entry.operation == Operation::Put) else {
        return Ok(None);
    };
    let Some((head, message)) = split(&entry.value) else { return Ok(None) };
    let mut whole = message.to_vec();
    for number in 0..head.parts {
        let piece = dead.get(part_key(key, number)).await.map_err(|error| error.to_string())?;
        let Some(piece) = piece else { return Ok(None) };
        whole.extend_from_slice(&piece);
    }
    let stored = clock.since(clock::millis(entry.created));
    Ok(decode(&entry, head, &whole.into(), stored).map(|letter| (letter, entry.revision)))
}

/// Deletes a letter with its pieces.
pub(super) async fn delete(dead: &Store, key: &str, is_large: bool) -> Result<(), String> {
    dead.delete(key).await.map_err(|error| error.to_string())?;
    if is_large {
        let pieces = format!("$KV.{}.{}", dead.name, part_key(key, '*'));
        dead.stream.purge().filter(pieces).await.map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn decode(entry: &Entry, head: Head, message: &Bytes, stored: Duration) -> Option<DeadLetter> {
    let sink = sink_of(&entry.key, LETTER)?;
    let mut headers = HeaderMap::new();
    for (name, value) in &head.headers {
        headers.insert(name.parse::<HeaderName>().ok()?, value.parse::<HeaderValue>().ok()?);
    }
    Some(DeadLetter {
        number: number_of(head.number, entry.revision),
        sink: sink.to_owned(),
        at: head.at,
        reason: head.reason,
        retry: head.retry,
        record: message::record(head.seq, &headers, message, stored).into(),
    })
}

/// A replay as a value of the bucket.
pub(super) fn encode_replay(replay: &Replay) -> Bytes {
    serde_json::to_vec(replay).unwrap_or_default().into()
}

pub(super) fn decode_replay(entry: &Entry) -> Option<Replay> {
    let sink = sink_of(&entry.key, REPLAY).filter(|_| entry.operation == Operation::Put)?;
    let replay: Replay = serde_json::from_slice(&entry.value).ok()?;
    let number = number_of(replay.number, entry.revision);
    // One that an earlier version requested says no time.
    Some(Replay { number, at: replay.at.max(1), sink: sink.to_owned(), ..replay })
}

/// The revision of a replay that was found changed, and whether it is as far there as it is to be, or further.
/// `None`: somebody has finished it.
fn changed(found: Option<&Entry>, wanted: &Replay) -> Option<(u64, bool)> {
    let found = found?;
    Some((found.revision, decode_replay(found)?.position >= wanted.position))
}

/// Writes how far a replay is that had this revision; answers the one that it has now. `None`: it is not there
/// any more, and is not brought back.
pub(super) async fn write_replay(
    dead: &Store,
    key: &str,
    replay: &Replay,
    revision: u64,
) -> Result<Option<u64>, String> {
    let value = encode_replay(replay);
    match dead.update(key, value.clone(), revision).await {
        Ok(revision) => return Ok(Some(revision)),
        Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => {}
        Err(error) => return Err(error.to_string()),
    }
    // Somebody else has changed it, or the answer to an earlier request was lost.
    let found = dead.entry(key).await.map_err(|error| error.to_string())?;
    match changed(found.as_ref(), replay) {
        None => Ok(None),
        Some((revision, true)) => Ok(Some(revision)),
        Some((revision, false)) => {
            let updated = dead.update(key, value, revision).await;
            updated.map(Some).map_err(|error| error.to_string())
        }
    }
}

impl Cluster {
    /// How many dead letters each sink has, whoever drove it then.
    pub fn dead_letter_counts(&self) -> BTreeMap<String, u64> {
        lock(&self.0.letters).counts()
    }
}

/// The bucket as it is at this moment.
pub(super) async fn index(dead: &Store) -> Result<Index, String> {
    let mut index = Index::default();
    let status = dead.status().await.map_err(|error| error.to_string())?;
    if status.values() == 0 {
        return Ok(index);
    }
    let mut watch = dead.watch_with_history(">").await.map_err(|error| error.to_string())?;
    loop {
        let entry = timeout(READ, watch.next()).await;
        let Ok(Some(Ok(entry))) = entry else { return Err("it cannot be read whole".into()) };
        index.apply(&entry);
        if entry.delta == 0 {
            return Ok(index);
        }
    }
}

/// What keeps the index; letters that this member's journal still has from before are put with the others.
pub(crate) fn factory(cluster: &Cluster, journal: &Journal, dir: PathBuf) -> Factory {
    let (cluster, journal) = (cluster.clone(), journal.clone());
    Box::new(move |stop| {
        let (cluster, journal, dir) = (cluster.clone(), journal.clone(), dir.clone());
        Ok(Box::pin(async move {
            stop.run_until_cancelled(run(&cluster, &journal, dir)).await;
        }))
    })
}

async fn run(cluster: &Cluster, journal: &Journal, dir: PathBuf) {
    let mut is_moved = false;
    let mut storages = cluster.0.storage.subscribe();
    loop {
        let found = storages.wait_for(Option::is_some).await.map(|found| found.clone());
        // The sender is in the cluster.
        let Ok(Some(storage)) = found else { return };
        is_moved = is_moved || move_own(cluster, &storage, journal, dir.clone()).await;
        match storage.dead.watch_with_history(">").await {
            Ok(watch) => keep(cluster, &storage, watch, &mut storages).await,
            Err(error) => debug!(%error, "the dead letters cannot be had now"),
        }
        sleep(RETRY).await;
    }
}

/// Reads until the connection is a new one, or the bucket: what was deleted meanwhile may have no mark any more.
async fn keep(
    cluster: &Cluster,
    storage: &Storage,
    mut watch: Watch,
    storages: &mut Receiver<Option<Arc<Storage>>>,
) {
    let mut reached = cluster.0.connection.reached.clone();
    reached.mark_unchanged();
    let mut refill = Refill::of(&cluster.0.letters);
    // Of an empty bucket nothing comes.
    match storage.dead.stream.get_info().await {
        Ok(info) if info.state.messages == 0 => refill.finish(),
        Ok(_) => {}
        Err(error) => {
            debug!(%error, "the dead letters cannot be had now");
            return;
        }
    }
    let mut marks = Vec::new();
    loop {
        let is_done = refill.is_done();
        let entry = tokio::select! {
            Ok(()) = reached.changed() => return,
            Ok(()) = storages.changed() => return,
            entry = watch.next() => entry,
            () = sleep(READ), if !is_done => return,
        };
        let Some(Ok(entry)) = entry else { return };
        if refill.apply(&entry) {
            cluster.0.requests.send_modify(|count| *count += 1);
        }
        if is_done {
            continue;
        }
        let age = cluster.clock().since(clock::millis(entry.created));
        if entry.operation != Operation::Put && age > MARK {
            marks.push((entry.key, entry.revision));
        }
        if refill.is_done() {
            for (key, revision) in marks.drain(..) {
                let subject = format!("$KV.{}.{key}", storage.dead.name);
                // Not what somebody may have put there since.
                let purge = storage.dead.stream.purge().filter(subject).sequence(revision + 1);
                if let Err(error) = purge.await {
                    debug!(%error, "the mark of a deleted key stays");
                }
            }
        }
    }
}

/// Puts the dead letters of this member's journal, from before it was a member, with the others; whether
/// none are left there.
async fn move_own(cluster: &Cluster, storage: &Storage, journal: &Journal, dir: PathBuf) -> bool {
    if dir.as_os_str().is_empty() {
        return true;
    }
    let own = tokio::task::spawn_blocking(move || -> Result<_, StoreError> {
        JournalStore::open_reader(&dir)?.dead_letters(None)
    });
    let own = match own.await {
        Ok(Ok(own)) => own,
        Ok(Err(error)) => {
            warn!(%error, "the dead letters of the journal cannot be read");
            return false;
        }
        // The runtime ends.
        Err(_) => return true,
    };
    let count = own.len();
    for letter in own {
        let number = letter.number;
        let key = format!("{LETTER}{}.{}-{number}", letter.sink, cluster.member());
        let letter = DeadLetter { number: 0, ..letter };
        let by = (cluster.member(), cluster.max_payload());
        if let Err(error) = write(&storage.dead, &key, &letter, by, None).await {
            warn!(error, "the dead letters of the journal cannot be moved to the cluster now");
            return false;
        }
        journal.remove_dead_letter(number);
    }
    if count > 0 {
        info!(count, "dead letters of this member's journal are the cluster's now");
    }
    true
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::base::event::{Record, own};

    pub(super) fn entry(key: &str, value: Bytes, revision: u64, operation: Operation) -> Entry {
        Entry {
            bucket: "astro_dead".into(),
            key: key.into(),
            value,
            revision,
            delta: 0,
            created: time::OffsetDateTime::UNIX_EPOCH,
            operation,
            seen_current: true,
        }
    }

    pub(super) const MAX_PAYLOAD: usize = 1024 * 1024;

    fn decoded(entry: &Entry) -> DeadLetter {
        let (head, message) = split(&entry.value).unwrap();
        decode(entry, head, &message, Duration::ZERO).unwrap()
    }

    pub(super) fn letter() -> DeadLetter {
        let event = own("channel.tips", &"main".into(), &"r".into(), &json!({"_id": "ü\n"}), 7);
        DeadLetter {
            number: 0,
            sink: "hook".into(),
            at: 5,
            reason: "HTTP 400\n".into(),
            retry: false,
            record: Arc::new(Record::new(9, event)),
        }
    }

    #[test]
    fn a_letter_comes_back_as_it_was() {
        let sent = letter();
        let (value, _) = encode(&sent, "relay-1", MAX_PAYLOAD);
        let found = decoded(&entry(&letter_key("hook", 9), value, 3, Operation::Put));
        assert_eq!((found.number, &*found.sink, found.at), (3, "hook", 5));
        assert_eq!((&*found.reason, found.retry), ("HTTP 400\n", false));
        assert_eq!((found.record.seq, &found.record.event), (9, &sent.record.event));
        // It keeps its number however often it is written.
        let (again, _) = encode(&DeadLetter { retry: true, ..found }, "relay-2", MAX_PAYLOAD);
        let again = decoded(&entry(&letter_key("hook", 9), again, 8, Operation::Put));
        assert_eq!((again.number, again.retry), (3, true));
        // What is too large stands beside it.
        let (value, pieces) = encode(&sent, "relay-1", 100);
        assert_eq!(pieces.concat(), &*sent.record.event.message);
        let (head, rest) = split(&value).unwrap();
        assert_eq!((head.parts, rest.len()), (pieces.len(), 0));
        assert_eq!(part_key(&letter_key("hook", 9), 2), "part.hook.9.2");
    }

    #[test]
    fn a_replay_that_somebody_else_has_changed_is_not_brought_back() {
        let key = "replay.hook.01J";
        let at = |position| Replay { position, ..replay() };
        let found = |position| entry(key, encode_replay(&at(position)), 8, Operation::Put);
        assert_eq!(changed(None, &at(5)), None);
        let deleted = entry(key, Bytes::new(), 8, Operation::Delete);
        assert_eq!(changed(Some(&deleted), &at(5)), None);
        assert_eq!(changed(Some(&found(4)), &at(5)), Some((8, false)));
        assert_eq!(changed(Some(&found(5)), &at(5)), Some((8, true)));
        assert_eq!(changed(Some(&found(6)), &at(5)), Some((8, true)));
    }

    #[test]
    fn letters_of_one_key_are_told_apart_by_their_event() {
        let first = letter();
        let again = DeadLetter { number: 3, at: 9, reason: "HTTP 422".into(), ..first.clone() };
        let of = |letter: &DeadLetter, max_payload| {
            let (value, _) = encode(letter, "relay-1", max_payload);
            event_of(&value)
        };
        assert!(of(&first, MAX_PAYLOAD).is_some());
        assert_eq!(of(&first, MAX_PAYLOAD), of(&again, MAX_PAYLOAD));
        assert_eq!(of(&first, MAX_PAYLOAD), of(&first, 100), "in pieces");
        // Another event, with an id of its own.
        assert_ne!(of(&first, MAX_PAYLOAD), of(&letter(), MAX_PAYLOAD));
        // It is put behind the first, as a letter of the same sink.
        let key = letter_key("hook", 9);
        assert_eq!([1, 2].map(|number| numbered(&key, number)), [&*key, "letter.hook.9-2"]);
        assert_eq!(sink_of(&numbered(&key, 2), LETTER), Some("hook"));
        assert_eq!(part_key(&numbered(&key, 2), 0), "part.hook.9-2.0");
    }

    pub(super) fn replay() -> Replay {
        Replay {
            number: 3,
            at: 5,
            sink: "hook".into(),
            position: 4,
            until: 9,
            topic: None,
            when: None,
        }
    }

    #[test]
    fn a_replay_keeps_its_number() {
        let mut replay = Replay {
            number: 0,
            at: 5,
            sink: "home".into(),
            position: 4,
            until: 9,
            topic: Some("channel.*".into()),
            when: Some("data.amount > 5".into()),
        };
        let found = entry("replay.home.01J", encode_replay(&replay), 6, Operation::Put);
        replay.number = 6;
        assert_eq!(decode_replay(&found), Some(replay.clone()));
        let found = entry("replay.home.01J", encode_replay(&replay), 7, Operation::Put);
        assert_eq!(decode_replay(&found), Some(replay));
    }

    #[test]
    fn a_replay_that_an_earlier_version_requested_is_read() {
        let value = r#"{"number":0,"at":5,"position":4,"until":9,"topic":"channel.*","when":null}"#;
        let found = entry("replay.home.01J", value.into(), 6, Operation::Put);
        let expected =
            Replay { number: 6, sink: "home".into(), topic: Some("channel.*".into()), ..replay() };
        assert_eq!(decode_replay(&found), Some(expected.clone()));
        // What that version reads, under these names.
        let value: serde_json::Value = serde_json::from_slice(&encode_replay(&expected)).unwrap();
        let names = ["number", "at", "position", "until", "topic", "when"];
        assert!(value.as_object().unwrap().keys().all(|name| names.contains(&&**name)));
        assert!(names.iter().all(|name| value.get(name).is_some()));
    }
}
