//! What a member knows of the bucket: which letters and replays there are, without the letters themselves.

use std::{collections::BTreeMap, sync::Mutex};

use async_nats::jetstream::kv::{Entry, Operation};

use super::{LETTER, REPLAY, decode_replay, number_of, sink_of, split};
use crate::{base::sync::lock, journal::Replay};

/// What is in the bucket, without the letters themselves.
#[derive(Debug, Clone, Default)]
pub(in crate::cluster) struct Index {
    letters: BTreeMap<String, Meta>,
    replays: BTreeMap<String, Listed>,
    sinks: BTreeMap<String, Sum>,
}

/// A replay, and the revision of its key.
#[derive(Debug, Clone)]
pub(in crate::cluster) struct Listed {
    pub(in crate::cluster) key: String,
    pub(in crate::cluster) replay: Replay,
    pub(in crate::cluster) revision: u64,
}

#[derive(Debug, Clone, Copy)]
struct Meta {
    number: i64,
    revision: u64,
    bytes: u64,
    retry: bool,
    is_large: bool,
}

/// The letters of a sink.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    count: u64,
    bytes: u64,
}

impl Index {
    /// The bucket has this now; whether the driver of a sink has to look.
    pub(in crate::cluster) fn apply(&mut self, entry: &Entry) -> bool {
        if entry.key.starts_with(REPLAY) {
            return match decode_replay(entry) {
                Some(replay) => {
                    let key = entry.key.clone();
                    let listed = Listed { key, replay, revision: entry.revision };
                    self.replays.insert(entry.key.clone(), listed).is_none()
                }
                None => self.replays.remove(&entry.key).is_some(),
            };
        }
        let Some(sink) = sink_of(&entry.key, LETTER) else { return false };
        let sum = self.sinks.entry(sink.to_owned()).or_default();
        let before = self.letters.remove(&entry.key);
        if let Some(before) = before {
            sum.count = sum.count.saturating_sub(1);
            sum.bytes = sum.bytes.saturating_sub(before.bytes);
        }
        let head = (entry.operation == Operation::Put).then(|| split(&entry.value)).flatten();
        let Some((head, _)) = head else {
            if sum.count == 0 {
                self.sinks.remove(sink);
            }
            return before.is_some();
        };
        let value = u64::try_from(entry.value.len()).unwrap_or(u64::MAX);
        let bytes = value.saturating_add(head.bytes);
        sum.count += 1;
        sum.bytes = sum.bytes.saturating_add(bytes);
        let meta = Meta {
            number: number_of(head.number, entry.revision),
            revision: entry.revision,
            bytes,
            retry: head.retry,
            is_large: head.parts > 0,
        };
        self.letters.insert(entry.key.clone(), meta);
        head.retry
    }

    /// Bytes that the letters of a sink take.
    pub(in crate::cluster) fn bytes(&self, sink: &str) -> u64 {
        self.sinks.get(sink).map_or(0, |sum| sum.bytes)
    }

    /// How many letters each sink has.
    pub(in crate::cluster) fn counts(&self) -> BTreeMap<String, u64> {
        self.sinks.iter().map(|(sink, sum)| (sink.clone(), sum.count)).collect()
    }

    /// The last revision of a letter; 0: there is none.
    pub(in crate::cluster) fn revision(&self, key: &str) -> u64 {
        self.letters.get(key).map_or(0, |meta| meta.revision)
    }

    /// Whether a letter is in pieces.
    pub(in crate::cluster) fn is_large(&self, key: &str) -> bool {
        self.letters.get(key).is_some_and(|meta| meta.is_large)
    }

    /// The keys of letters, by number: those of a sink, of these numbers, that are to be tried again.
    pub(in crate::cluster) fn letters(
        &self,
        sink: Option<&str>,
        numbers: Option<&[i64]>,
        retry: bool,
    ) -> Vec<String> {
        let mut found: Vec<(i64, &String)> = self
            .letters
            .iter()
            .filter(|(key, meta)| {
                sink.is_none_or(|sink| sink_of(key, LETTER) == Some(sink))
                    && numbers.is_none_or(|numbers| numbers.contains(&meta.number))
                    && (!retry || meta.retry)
            })
            .map(|(key, meta)| (meta.number, key))
            .collect();
        found.sort_unstable();
        found.into_iter().map(|(_, key)| key.clone()).collect()
    }

    /// The replays of a sink, oldest first.
    pub(in crate::cluster) fn replays(&self, sink: &str) -> Vec<Listed> {
        let of_sink = self.replays.values().filter(|listed| listed.replay.sink == sink);
        let mut found: Vec<_> = of_sink.cloned().collect();
        found.sort_by_key(|listed| listed.replay.number);
        found
    }
}

/// Reads the bucket from its beginning. What was known before counts until all of it is there: nothing is
/// forgotten meanwhile that is still to be dealt with.
pub(super) struct Refill<'i> {
    index: &'i Mutex<Index>,
    /// What was read; `None`: that is the index now.
    read: Option<Index>,
}

impl<'i> Refill<'i> {
    pub(super) fn of(index: &'i Mutex<Index>) -> Self {
        Self { index, read: Some(Index::default()) }
    }

    pub(super) fn is_done(&self) -> bool {
        self.read.is_none()
    }

    /// The bucket has this; whether drivers have to look.
    pub(super) fn apply(&mut self, entry: &Entry) -> bool {
        let Some(read) = &mut self.read else { return lock(self.index).apply(entry) };
        read.apply(entry);
        let is_last = entry.delta == 0;
        if is_last {
            self.finish();
        }
        is_last
    }

    /// That is all that there is.
    pub(super) fn finish(&mut self) {
        if let Some(read) = self.read.take() {
            *lock(self.index) = read;
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{
        super::{
            encode, encode_replay, is_behind, letter_key,
            tests::{MAX_PAYLOAD, entry, letter, replay},
        },
        *,
    };
    use crate::journal::DeadLetter;

    #[test]
    fn the_index_counts_what_is_there() {
        let mut index = Index::default();
        let (value, _) = encode(&letter(), "relay-1", MAX_PAYLOAD);
        let (one, other) = (letter_key("hook", 9), letter_key("home", 9));
        assert!(!index.apply(&entry(&one, value.clone(), 1, Operation::Put)));
        assert!(!index.apply(&entry(&other, value.clone(), 2, Operation::Put)));
        let asked = DeadLetter { number: 1, retry: true, ..letter() };
        let (asked, _) = encode(&asked, "relay-1", MAX_PAYLOAD);
        assert!(index.apply(&entry(&one, asked.clone(), 3, Operation::Put)));
        assert_eq!(index.letters(None, None, true), [&*one]);
        assert_eq!(index.letters(None, Some(&[2]), false), [&*other]);
        assert_eq!(index.letters(Some("hook"), Some(&[2]), false), [""; 0]);
        assert_eq!(index.bytes("hook"), asked.len() as u64);
        assert!(index.apply(&entry(&one, Bytes::new(), 4, Operation::Delete)));
        assert_eq!((index.bytes("hook"), index.bytes("home")), (0, value.len() as u64));
        assert_eq!(index.letters(None, None, false), [other]);
    }

    /// The same entry with so many behind it.
    fn before(delta: u64, entry: Entry) -> Entry {
        Entry { delta, ..entry }
    }

    #[test]
    fn while_the_bucket_is_read_again_what_was_known_counts() {
        let known = Mutex::new(Index::default());
        let (value, _) = encode(&letter(), "relay-1", MAX_PAYLOAD);
        let (large, _) = encode(&letter(), "relay-1", 100);
        let (one, other) = (letter_key("hook", 9), letter_key("hook", 10));
        let asked = "replay.hook.01J";
        let replay = encode_replay(&replay());
        let count = || lock(&known).sinks.get("hook").map_or(0, |sum| sum.count);
        let mut first = Refill::of(&known);
        assert!(!first.apply(&before(2, entry(&one, large.clone(), 1, Operation::Put))));
        assert!(!first.apply(&before(1, entry(&other, value.clone(), 2, Operation::Put))));
        assert_eq!(count(), 0, "not all of it is there");
        assert!(first.apply(&entry(asked, replay.clone(), 3, Operation::Put)));
        assert!(first.is_done() && count() == 2);

        // The connection is a new one; the second letter was dropped meanwhile.
        let bytes = lock(&known).bytes("hook");
        let mut again = Refill::of(&known);
        assert_eq!((count(), lock(&known).bytes("hook")), (2, bytes));
        assert!(!again.apply(&before(1, entry(asked, replay, 3, Operation::Put))));
        assert!(lock(&known).is_large(&one));
        assert_eq!(lock(&known).replays("hook").len(), 1);
        assert_eq!(count(), 2);
        assert!(again.apply(&entry(&one, large, 1, Operation::Put)));
        assert_eq!((count(), lock(&known).revision(&other)), (1, 0));
        assert_eq!(lock(&known).replays("hook").len(), 1);

        // Of a bucket that is empty nothing comes.
        let mut empty = Refill::of(&known);
        empty.finish();
        assert!(empty.is_done() && count() == 0);
        // What comes then is applied at once.
        assert!(!empty.apply(&before(5, entry(&one, value, 4, Operation::Put))));
        assert_eq!((count(), lock(&known).revision(&one)), (1, 4));
    }

    #[test]
    fn a_letter_that_is_older_than_the_index_says_is_not_taken() {
        let mut index = Index::default();
        let key = letter_key("hook", 9);
        let (value, _) = encode(&letter(), "relay-1", MAX_PAYLOAD);
        let written = entry(&key, value, 3, Operation::Put);
        index.apply(&written);
        let asked = DeadLetter { number: 3, retry: true, ..letter() };
        let (asked, _) = encode(&asked, "relay-1", MAX_PAYLOAD);
        let asked = entry(&key, asked, 5, Operation::Put);
        assert!(index.apply(&asked));
        let known = index.revision(&key);
        assert!(is_behind(None, known) && is_behind(Some(&written), known));
        assert!(!is_behind(Some(&asked), known));
        let dropped = entry(&key, Bytes::new(), 6, Operation::Delete);
        assert!(!is_behind(Some(&dropped), known));
        index.apply(&dropped);
        assert!(!is_behind(None, index.revision(&key)));
    }
}
