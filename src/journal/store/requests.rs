//! Dead letters, and requests to hand them or other events on again.

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;
use rusqlite::{Connection, Params, Row, params};
use serde::{Deserialize, Serialize};

use super::{Changes, Store, begin, from_usize, schema, signed, sum_texts, to_usize, unsigned};
use crate::{
    base::{
        clock::UnixMillis,
        event::{Event, Origin, Record, Seq},
    },
    journal::{
        age::{self, Ages},
        batch::Places,
        error::StoreError,
    },
};

/// What a dead letter costs beside its texts: its other columns and its place in the database.
const OVERHEAD: u64 = 256;

/// Bytes of the newest that are listed, about.
const NEWEST_BYTES: u64 = 4 * 1024 * 1024;

/// Its own columns, and behind them those of the event; the last is NULL in those of a former version.
const COLUMNS: &str = "number, sink, at, reason, retry, seq, received, origin, id, key, topic, room, channel, \
     ts, data_start, data_end, message, crc, time";

/// An event that a destination rejected.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// Its number, from 1; 0 before it is stored.
    pub number: i64,
    pub sink: String,
    /// When it was rejected.
    pub at: UnixMillis,
    /// The destination's words.
    pub reason: String,
    /// Whether somebody asked for it to be tried again.
    pub retry: bool,
    pub record: Arc<Record>,
}

impl DeadLetter {
    /// Bytes that it takes in the journal, about: for its sink's budget.
    pub(in crate::journal) fn bytes(&self) -> u64 {
        let texts = self.record.event.message.len() + self.reason.len();
        OVERHEAD + u64::try_from(texts).unwrap_or(u64::MAX)
    }
}

/// The dead letters of a sink.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Letters {
    pub count: u64,
    /// Bytes that they take, about.
    pub bytes: u64,
}

impl Letters {
    pub(in crate::journal) fn add(&mut self, letter: &DeadLetter) {
        self.count += 1;
        self.bytes += letter.bytes();
    }
}

/// A dead letter that was tried again and rejected again.
#[derive(Debug, Clone)]
pub(crate) struct RejectedAgain {
    pub number: i64,
    pub at: UnixMillis,
    pub reason: String,
}

/// A request to hand events on again. As JSON it is what the members of a cluster share, of other versions too: its
/// sink is in the key there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Replay {
    pub number: i64,
    /// When somebody asked for it. 0: nobody did, it is what the sink had still to get of files that could be
    /// opened only late.
    pub at: UnixMillis,
    #[serde(skip)]
    pub sink: String,
    /// The last event that was handed on, or the one before the first.
    pub position: Seq,
    /// The last event that is wanted.
    pub until: Seq,
    /// A topic pattern, if one is wanted.
    pub topic: Option<String>,
    /// A condition, if one is wanted.
    pub when: Option<String>,
}

impl Replay {
    /// What tells it from others, whoever carries it out. `None`: nobody asked to have its events once more.
    pub(crate) fn name(&self) -> Option<Arc<str>> {
        (self.at > 0).then(|| format!("{}-{}", self.at, self.number).into())
    }
}

/// Writes what has become of dead letters and replays.
pub(super) fn write(db: &Connection, changes: &Changes, ages: &Ages) -> Result<(), StoreError> {
    for letter in &changes.dead {
        insert_letter(db, letter, Some(age::pack(ages.time(letter.record.age()))))?;
    }
    for again in &changes.rejected {
        db.prepare_cached(
            "UPDATE dead_letters SET reason = ?2, at = ?3, retry = 0 WHERE number = ?1",
        )?
        .execute(params![again.number, again.reason, signed(again.at)])?;
    }
    for number in &changes.removed {
        db.execute("DELETE FROM dead_letters WHERE number = ?1", [number])?;
    }
    for (number, position) in &changes.replays {
        match position {
            Some(position) => db.execute(
                "UPDATE replays SET position = ?2 WHERE number = ?1",
                params![number, signed(*position)],
            )?,
            None => db.execute("DELETE FROM replays WHERE number = ?1", [number])?,
        };
    }
    Ok(())
}

fn insert_letter(
    db: &Connection,
    letter: &DeadLetter,
    time: Option<i64>,
) -> Result<(), StoreError> {
    let (record, event) = (&letter.record, &letter.record.event);
    db.prepare_cached(&format!(
        "INSERT INTO dead_letters({COLUMNS})
         VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16,?17,?18,?19)"
    ))?
    .execute(params![
        given(letter.number),
        letter.sink,
        signed(letter.at),
        letter.reason,
        letter.retry,
        signed(record.seq),
        signed(event.received),
        event.origin.as_str(),
        &*event.id,
        event.distinct_key.as_deref(),
        &*event.place.topic,
        &*event.place.room,
        &*event.place.channel,
        &*event.ts,
        from_usize(event.data.start),
        from_usize(event.data.end),
        text(&event.message),
        sum(record),
        time,
    ])?;
    Ok(())
}

/// What somebody wants to be done with dead letters.
#[derive(Debug, Clone, Copy)]
pub(crate) enum LetterChange {
    Retry,
    Drop,
}

impl Store {
    /// Dead letters, oldest first; of one sink, or of all.
    pub fn dead_letters(&self, sink: Option<&str>) -> Result<Vec<DeadLetter>, StoreError> {
        self.letters("?1 IS NULL OR sink = ?1 ORDER BY number", params![sink], u64::MAX)
    }

    /// The newest dead letters, newest first; of one sink, or of all: at most `limit`, and of a few MiB.
    pub fn newest_dead_letters(
        &self,
        sink: Option<&str>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        let which = "?1 IS NULL OR sink = ?1 ORDER BY number DESC LIMIT ?2";
        self.letters(which, params![sink, from_usize(limit)], NEWEST_BYTES)
    }

    /// Dead letters of `sink` that somebody wants to be tried again, oldest first: at most `limit`.
    pub(in crate::journal) fn to_retry(
        &self,
        sink: &str,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        let which = "sink = ?1 AND retry ORDER BY number LIMIT ?2";
        self.letters(which, params![sink, from_usize(limit)], u64::MAX)
    }

    /// Ends behind the first that exceeds `most` bytes of them all.
    fn letters(
        &self,
        which: &str,
        params: impl Params,
        most: u64,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM dead_letters WHERE {which}");
        let mut statement = self.db.prepare_cached(&sql)?;
        let mut places = Places::default();
        let mut rows = statement.query(params)?;
        let mut letters = Vec::new();
        let mut bytes = 0;
        while bytes <= most
            && let Some(row) = rows.next()?
        {
            let Some(letter) = letter(row, &self.ages, &mut places) else { continue };
            bytes += letter.bytes();
            letters.push(letter);
        }
        Ok(letters)
    }

    /// Copies the dead letters of a broken journal, to the first that cannot be read.
    pub(super) fn copy_letters(&self, to: &Connection, timed: bool) -> Result<(), StoreError> {
        let columns = if timed { COLUMNS.to_owned() } else { COLUMNS.replace("time", "NULL") };
        let sql = format!("SELECT {columns} FROM dead_letters ORDER BY number");
        let mut statement = self.db.prepare(&sql)?;
        let mut places = Places::default();
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let Some(letter) = letter(row, &self.ages, &mut places) else { continue };
            let time = row.get(18).unwrap_or_default();
            match insert_letter(to, &letter, time) {
                // Another one has its number.
                Err(error) if error.is_corrupt() => {
                    insert_letter(to, &DeadLetter { number: 0, ..letter }, time)?;
                }
                inserted => inserted?,
            }
        }
        Ok(())
    }

    /// The dead letters that each sink has, in figures.
    pub(in crate::journal) fn letters_of_sinks(
        &self,
    ) -> Result<Vec<(String, Letters)>, StoreError> {
        let mut statement = self.db.prepare_cached(
            "SELECT sink, count(*), sum(?1 + octet_length(message) + octet_length(reason))
             FROM dead_letters GROUP BY sink",
        )?;
        let rows = statement.query_map([signed(OVERHEAD)], |row| {
            let letters = Letters { count: unsigned(row.get(1)?), bytes: unsigned(row.get(2)?) };
            Ok((lossy(row, 0), letters))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    pub fn dead_letter_counts(&self) -> Result<Vec<(String, u64)>, StoreError> {
        let letters = self.letters_of_sinks()?.into_iter();
        Ok(letters.map(|(sink, letters)| (sink, letters.count)).collect())
    }

    /// Asks for dead letters to be tried again; answers how many.
    pub fn retry_dead_letters(
        &self,
        numbers: Option<&[i64]>,
        sink: Option<&str>,
    ) -> Result<usize, StoreError> {
        self.each_dead_letter("UPDATE dead_letters SET retry = 1", numbers, sink)
    }

    /// Deletes dead letters; answers how many.
    pub fn drop_dead_letters(
        &self,
        numbers: Option<&[i64]>,
        sink: Option<&str>,
    ) -> Result<usize, StoreError> {
        self.each_dead_letter("DELETE FROM dead_letters", numbers, sink)
    }

    /// Has a running relay do it; answers with how many.
    pub(crate) fn change_dead_letters(
        &self,
        change: LetterChange,
        numbers: Option<&[i64]>,
        sink: Option<&str>,
    ) -> Result<usize, StoreError> {
        self.allow_requests()?;
        match change {
            LetterChange::Retry => self.retry_dead_letters(numbers, sink),
            LetterChange::Drop => self.drop_dead_letters(numbers, sink),
        }
    }

    fn each_dead_letter(
        &self,
        what: &str,
        numbers: Option<&[i64]>,
        sink: Option<&str>,
    ) -> Result<usize, StoreError> {
        let sql = format!(
            "{what} WHERE (?1 IS NULL OR sink = ?1)
             AND (?2 IS NULL OR number IN (SELECT value FROM json_each(?2)))"
        );
        let numbers = numbers.map(|numbers| serde_json::json!(numbers).to_string());
        Ok(self.db.execute(&sql, params![sink, numbers])?)
    }

    /// Asks for all of these, or for none, and gives them their numbers.
    pub(in crate::journal) fn request_replays(
        &self,
        replays: &mut [Replay],
    ) -> Result<(), StoreError> {
        let transaction = begin(&self.db)?;
        for replay in replays {
            self.request_replay(replay)?;
            replay.number = self.db.last_insert_rowid();
        }
        Ok(transaction.commit()?)
    }

    /// Asks for events to be handed on again.
    pub fn request_replay(&self, replay: &Replay) -> Result<(), StoreError> {
        self.db.execute(
            "INSERT INTO replays(number, sink, at, position, until, topic, condition)
             VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![
                given(replay.number),
                replay.sink,
                signed(replay.at),
                signed(replay.position),
                signed(replay.until),
                replay.topic,
                replay.when
            ],
        )?;
        Ok(())
    }

    /// Requests that are not done, oldest first.
    pub fn replays(&self) -> Result<Vec<Replay>, StoreError> {
        Ok(self.replay_rows()?.into_iter().collect::<Result<_, _>>()?)
    }

    /// The same; each of them, or why it cannot be read.
    pub(super) fn replay_rows(&self) -> Result<Vec<rusqlite::Result<Replay>>, StoreError> {
        // A file that is only read may be of a former version.
        let has_condition = schema::has_column(&self.db, "replays", "condition")?;
        let condition = if has_condition { "condition" } else { "NULL" };
        let mut statement = self.db.prepare_cached(&format!(
            "SELECT number, sink, at, position, until, topic, {condition} FROM replays ORDER BY number",
        ))?;
        let rows = statement.query_map([], |row| {
            Ok(Replay {
                number: row.get(0)?,
                sink: row.get(1)?,
                at: unsigned(row.get(2)?),
                position: unsigned(row.get(3)?),
                until: unsigned(row.get(4)?),
                topic: row.get(5)?,
                when: row.get(6)?,
            })
        })?;
        Ok(rows.collect())
    }
}

/// A new one gets a number from the database.
fn given(number: i64) -> Option<i64> {
    (number > 0).then_some(number)
}

/// Reads [`COLUMNS`]; `None` where the event's sum is wrong. What stands beside the event has no sum, and is
/// taken as far as it can be read.
fn letter(row: &Row<'_>, ages: &Ages, places: &mut Places) -> Option<DeadLetter> {
    let record = record(row, ages, places)?;
    Some(DeadLetter {
        number: row.get(0).ok()?,
        sink: lossy(row, 1),
        at: unsigned(row.get(2).unwrap_or_default()),
        reason: lossy(row, 3),
        retry: row.get(4).unwrap_or_default(),
        record: Arc::new(record),
    })
}

/// A text, whatever has become of its bytes.
fn lossy(row: &Row<'_>, column: usize) -> String {
    let bytes = row.get_ref(column).ok().and_then(|value| value.as_bytes().ok());
    String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned()
}

fn record(row: &Row<'_>, ages: &Ages, places: &mut Places) -> Option<Record> {
    let text = |column| row.get_ref(column).ok()?.as_str().ok();
    let event = Event {
        received: unsigned(row.get(6).ok()?),
        origin: Origin::from_word(text(7)?)?,
        id: text(8)?.into(),
        distinct_key: row.get_ref(9).ok()?.as_str_or_null().ok()?.map(Into::into),
        place: places.of(text(10)?, text(11)?, text(12)?),
        ts: text(13)?.into(),
        data: to_usize(row.get(14).ok()?)?..to_usize(row.get(15).ok()?)?,
        message: Bytes::copy_from_slice(text(16)?.as_bytes()),
        may_have_personal_fields: true,
    };
    let time: Option<i64> = row.get(18).unwrap_or_default();
    let waited = ages.waited(time.and_then(age::unpack), event.received);
    let (seq, stored) = (unsigned(row.get(5).ok()?), event.received);
    let record = Record { seq, event, waited, stored, replay: None };
    (row.get::<_, u32>(17).ok()? == sum(&record)).then_some(record)
}

/// Over everything that is handed out again.
fn sum(record: &Record) -> u32 {
    let event = &record.event;
    let mut crc = crc32fast::Hasher::new();
    let key = event.distinct_key.as_deref().unwrap_or("");
    for number in [
        record.seq,
        event.received,
        u64::try_from(event.data.start).unwrap_or(u64::MAX),
        u64::try_from(event.data.end).unwrap_or(u64::MAX),
        u64::from(event.distinct_key.is_some()),
    ] {
        crc.update(&number.to_le_bytes());
    }
    sum_texts(
        &mut crc,
        &[
            event.origin.as_str().as_bytes(),
            event.id.as_bytes(),
            key.as_bytes(),
            event.place.topic.as_bytes(),
            event.place.room.as_bytes(),
            event.place.channel.as_bytes(),
            event.ts.as_bytes(),
            &event.message,
        ],
    );
    crc.finalize()
}

/// The message as text: it was read as UTF-8, so nothing is lost here.
fn text(message: &Bytes) -> Cow<'_, str> {
    String::from_utf8_lossy(message)
}
