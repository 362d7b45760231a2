//! Events in the form in which the journal keeps them: a batch of neighbours as one blob.
//!
//! A row for each event was measured at 4.8 µs of the processor, most of it spent on the row and on
//! moving its pages twice; so neighbours share a row, and as they resemble each other it is compressed
//! (LZ4), to a third or less. What SQL could see of each event, `astro-relay journal export` shows.
//!
//! ```text
//! body    the length of what follows, u32, and that compressed: the events, one behind the other
//! event   its length without this field, u32; received: u64; origin: u8; flags: u8 (1: it has a key,
//!         2: no member has the name of a personal field);
//!         data_start, data_end, and the lengths of id, key, topic, room, channel, ts: u32 each; then
//!         these texts; then the message to the end
//! ```
//! Numbers are little-endian. One sum covers the row's own columns and the body as it is stored.
//!
//! Numbers in a batch follow each other without a hole; where there is one, the
//! next batch begins.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};

use crate::base::{
    clock::UnixMillis,
    event::{Event, Origin, Place, Record, Seq},
};

/// Events in a batch, at most: what one broken row can take with it.
pub(super) const EVENTS: usize = 64;

/// Bytes of events in a batch, about: what is read to get at one of them.
const BYTES: usize = 64 * 1024;

/// Events that came further apart do not share a row, for a row has one age.
const SPAN: Duration = Duration::from_secs(1);

/// Bytes before an event's texts, without the length of it all.
const FIXED: usize = 8 + 1 + 1 + 4 * FIELDS;

/// Two positions and six lengths.
const FIELDS: usize = 8;

/// Flags of an event.
const HAS_KEY: u8 = 1;
const NO_PERSONAL_FIELDS: u8 = 2;

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    /// The number of its first event.
    pub(super) first: Seq,
    /// How many there are.
    pub(super) count: u64,
    /// When the last of them was received.
    pub(super) received: UnixMillis,
}

impl Row {
    /// The number of its last event; `None` where no such row was ever written.
    pub(super) fn last(self) -> Option<Seq> {
        let possible = 1..=u64::try_from(EVENTS).unwrap_or(u64::MAX);
        possible.contains(&self.count).then(|| self.first.saturating_add(self.count - 1))
    }
}

/// How many of `records` go into the next batch.
pub(super) fn length(records: &[Arc<Record>]) -> usize {
    let mut bytes = 0;
    let mut before: Option<Seq> = None;
    let first = records.first().map(|first| first.waited);
    let fits = |record: &&Arc<Record>| {
        let follows = before.is_none_or(|before| record.seq == before + 1)
            && first.is_none_or(|first| record.waited.behind(first) < SPAN);
        before = Some(record.seq);
        let room = bytes < BYTES;
        bytes += record.event.weight();
        follows && room
    };
    records.iter().take(EVENTS).take_while(fits).count()
}

/// Writes batches; keeps its memory from one to the next.
#[derive(Default)]
pub(super) struct Encoder {
    plain: Vec<u8>,
    /// The body, and behind it what is left of longer ones.
    body: Vec<u8>,
    /// None before the first batch: most connections only read.
    table: Option<CompressTable>,
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Encoder")
    }
}

impl Encoder {
    /// The body for `records`, which are one batch.
    pub(super) fn encode(&mut self, records: &[Arc<Record>]) -> &[u8] {
        self.plain.clear();
        for record in records {
            encode_event(&record.event, &mut self.plain);
        }
        let most = 4 + get_maximum_output_size(self.plain.len());
        if self.body.len() < most {
            self.body.resize(most, 0);
        }
        let Some((head, room)) = self.body.split_first_chunk_mut() else { return &[] };
        *head = word(self.plain.len()).to_le_bytes();
        let table = self.table.get_or_insert_default();
        // There is always room for the most that it can become.
        let length = compress_into_with_table(&self.plain, room, table).unwrap_or(0);
        self.body.get(..4 + length).unwrap_or_default()
    }
}

fn encode_event(event: &Event, plain: &mut Vec<u8>) {
    let start = plain.len();
    plain.extend_from_slice(&[0; 4]);
    plain.extend_from_slice(&event.received.to_le_bytes());
    plain.push(event.origin as u8);
    let has_key = if event.distinct_key.is_some() { HAS_KEY } else { 0 };
    plain.push(has_key | if event.may_have_personal_fields { 0 } else { NO_PERSONAL_FIELDS });
    let texts = [
        &*event.id,
        event.distinct_key.as_deref().unwrap_or_default(),
        &*event.place.topic,
        &*event.place.room,
        &*event.place.channel,
        &*event.ts,
    ];
    for position in [event.data.start, event.data.end] {
        plain.extend_from_slice(&word(position).to_le_bytes());
    }
    for text in texts {
        plain.extend_from_slice(&word(text.len()).to_le_bytes());
    }
    for text in texts {
        plain.extend_from_slice(text.as_bytes());
    }
    plain.extend_from_slice(&event.message);
    let length = word(plain.len() - start - 4);
    if let Some(slot) = plain.get_mut(start..start + 4) {
        slot.copy_from_slice(&length.to_le_bytes());
    }
}

/// The sum over a row's columns and its body.
pub(super) fn sum(row: Row, body: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    for number in [row.first, row.count, row.received] {
        crc.update(&number.to_le_bytes());
    }
    crc.update(body);
    crc.finalize()
}

/// The events of a body whose sum is right, from number `from` on: at most `limit`. `None`: it holds
/// something else.
pub(super) fn decode(
    row: Row,
    body: &[u8],
    from: Seq,
    limit: usize,
    places: &mut Places,
) -> Option<Vec<(Seq, Event)>> {
    let length = usize::try_from(read_word(body, 0)?).ok()?;
    // LZ4 makes nothing smaller than this; what says so is not of ours.
    if length > body.len().saturating_mul(256) {
        return None;
    }
    let plain = lz4_flex::block::decompress(body.get(4..)?, length).ok()?;
    let count = usize::try_from(row.count).ok()?;
    let mut records = Vec::with_capacity(count.min(EVENTS));
    let mut at = 0;
    for seq in (row.first..).take(count) {
        let start = at + 4;
        at = start + usize::try_from(read_word(&plain, at)?).ok()?;
        if seq >= from && records.len() < limit {
            records.push((seq, decode_event(plain.get(start..at)?, places)?));
        }
    }
    (at == plain.len()).then_some(records)
}

fn decode_event(bytes: &[u8], places: &mut Places) -> Option<Event> {
    let mut fields = [0; FIELDS];
    for (index, field) in fields.iter_mut().enumerate() {
        *field = usize::try_from(read_word(bytes, FIXED - 4 * FIELDS + 4 * index)?).ok()?;
    }
    let [data_start, data_end, lengths @ ..] = fields;
    let mut at = FIXED;
    let mut texts = [""; FIELDS - 2];
    for (text, length) in texts.iter_mut().zip(lengths) {
        *text = std::str::from_utf8(bytes.get(at..at.checked_add(length)?)?).ok()?;
        at += length;
    }
    let [id, key, topic, room, channel, ts] = texts;
    let flags = *bytes.get(9)?;
    let message = bytes.get(at..)?;
    std::str::from_utf8(message).ok()?;
    Some(Event {
        received: u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?),
        origin: Origin::ALL.get(usize::from(*bytes.get(8)?)).copied()?,
        id: id.into(),
        distinct_key: (flags & HAS_KEY != 0).then(|| key.into()),
        place: places.of(topic, room, channel),
        ts: ts.into(),
        // A copy: a sink that wants one event of a row must not hold the whole row in memory.
        message: Bytes::copy_from_slice(message),
        data: data_start..data_end,
        may_have_personal_fields: flags & NO_PERSONAL_FIELDS == 0,
    })
}

/// Places repeat: one allocation each a reading.
#[derive(Default)]
pub(super) struct Places(Vec<Arc<Place>>);

impl Places {
    pub(super) fn of(&mut self, topic: &str, room: &str, channel: &str) -> Arc<Place> {
        /// Beyond this a search would cost more than the allocations.
        const KNOWN: usize = 16;
        let same = |known: &&Arc<Place>| {
            (&*known.topic, &*known.room, &*known.channel) == (topic, room, channel)
        };
        if let Some(known) = self.0.iter().find(same) {
            return Arc::clone(known);
        }
        let fresh = Place::of(topic, room, channel);
        if self.0.len() < KNOWN {
            self.0.push(Arc::clone(&fresh));
        }
        fresh
    }
}

/// A frame is limited to far less than what fits.
fn word(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn read_word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_record() -> impl Strategy<Value = Event> {
        let text = "\\PC{0,12}";
        let origin = prop::sample::select(Origin::ALL.to_vec());
        (text, prop::option::of(text), text, text, text, text, "\\PC{0,80}", origin, any::<u64>())
            .prop_map(|(id, key, topic, room, channel, ts, message, origin, received)| Event {
                id: id.into(),
                distinct_key: key.map(Into::into),
                place: Place::of(topic, room, channel),
                ts: ts.into(),
                received,
                origin,
                data: message.len() / 3..message.len() / 2,
                may_have_personal_fields: message.len() % 2 == 0,
                message: message.into(),
            })
    }

    fn batch(first: Seq, events: Vec<Event>) -> (Row, Vec<Arc<Record>>) {
        let row = Row { first, count: events.len() as u64, received: 7 };
        let numbered = (first..).zip(events);
        (row, numbered.map(|(seq, event)| Arc::new(Record::new(seq, event))).collect())
    }

    fn read(row: Row, body: &[u8], from: Seq) -> Option<Vec<(Seq, Event)>> {
        decode(row, body, from, usize::MAX, &mut Places::default())
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(
            events in prop::collection::vec(any_record(), 1..EVENTS), first in 1..u64::from(u32::MAX),
            skip in 0..EVENTS,
        ) {
            let (row, records) = batch(first, events);
            let mut encoder = Encoder::default();
            let body = encoder.encode(&records);
            let read = read(row, body, first + skip as u64).unwrap();
            let pair = |record: &Arc<Record>| (record.seq, record.event.clone());
            let expected: Vec<_> = records.iter().skip(skip).map(pair).collect();
            prop_assert_eq!(read, expected);
        }

        #[test]
        fn a_flipped_bit_is_noticed(
            events in prop::collection::vec(any_record(), 1..5), at: prop::sample::Index, bit in 0..8,
        ) {
            let (row, records) = batch(1, events);
            let mut encoder = Encoder::default();
            let mut body = encoder.encode(&records).to_vec();
            let before = sum(row, &body);
            let at = at.index(body.len());
            body[at] ^= 1_u8 << bit;
            prop_assert_ne!(sum(row, &body), before);
            prop_assert_ne!(sum(Row { count: row.count + 1, ..row }, encoder.encode(&records)), before);
        }

        #[test]
        fn garbage_is_no_event(body in prop::collection::vec(any::<u8>(), 0..300), count in 1..70_u64) {
            let row = Row { first: 1, count, received: 0 };
            prop_assert_eq!(read(row, &body, 1), None);
        }
    }

    #[test]
    fn a_batch_ends_at_a_hole_and_when_it_is_full() {
        let event = crate::base::event::own("t", &"".into(), &"".into(), &serde_json::json!({}), 1);
        let numbered = |seqs: &[Seq]| -> Vec<_> {
            seqs.iter().map(|seq| Arc::new(Record::new(*seq, event.clone()))).collect()
        };
        assert_eq!(length(&numbered(&[])), 0);
        assert_eq!(length(&numbered(&[4, 5, 6])), 3);
        assert_eq!(length(&numbered(&[4, 5, 7])), 2);
        assert_eq!(length(&numbered(&(1..=100).collect::<Vec<_>>())), EVENTS);
        let mut large = numbered(&[1, 2, 3]);
        for record in &mut large {
            Arc::make_mut(record).event.message = vec![b' '; BYTES].into();
        }
        assert_eq!(length(&large), 1, "what is larger than a batch has one of its own");
    }
}
