//! Events, in rows of many. They are only ever removed from the front, and only whole rows of them; hence
//! a number missing inside a run is a loss, and can be counted.

use std::{sync::Arc, time::Duration};

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{Store, begin, numbers, set_meta, signed, unsigned};
use crate::{
    base::{
        clock::{self, UnixMillis},
        event::{Event, Record, Seq, Waited},
    },
    journal::{
        age::{self, Ages},
        batch::{self, Encoder, Places},
        error::{StoreError, corrupt},
    },
};

/// Events read from disk.
#[derive(Debug, Default)]
pub struct ReadEvents {
    /// In order.
    pub records: Vec<Arc<Record>>,
    /// Events in between whose row has a wrong sum.
    pub damaged: u64,
    /// The last event looked at, damaged or not.
    pub through: Option<Seq>,
}

/// A row, and how old it is.
struct RowAge {
    first: Seq,
    count: u64,
    waited: Waited,
    age_to_delete: Duration,
}

/// Writes events as rows.
pub(super) fn insert(
    db: &Connection,
    records: &[Arc<Record>],
    ages: &Ages,
    encoder: &mut Encoder,
) -> Result<(), StoreError> {
    let mut rest = records;
    while let Some((records, after)) = rest.split_at_checked(batch::length(rest).max(1))
        && let (Some(first), Some(last)) = (records.first(), records.last())
    {
        rest = after;
        let row = batch::Row {
            first: first.seq,
            count: u64::try_from(records.len()).unwrap_or(u64::MAX),
            received: last.event.received,
        };
        let body = encoder.encode(records);
        db.prepare_cached(
            "INSERT INTO batches(first, count, received, crc, time, body)
             VALUES(?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            signed(row.first),
            signed(row.count),
            signed(row.received),
            batch::sum(row, body),
            age::pack(ages.time(first.age())),
            body,
        ])?;
    }
    Ok(())
}

/// Of the columns `first, count, received`.
pub(super) fn row(row: &Row<'_>) -> Result<batch::Row, StoreError> {
    Ok(batch::Row {
        first: unsigned(row.get(0)?),
        count: unsigned(row.get(1)?),
        received: unsigned(row.get(2)?),
    })
}

fn last_of(row: batch::Row) -> Result<Seq, StoreError> {
    row.last().ok_or_else(|| corrupt("a row of no possible size"))
}

impl Store {
    /// Events after `after`, in order: at most `limit`, and about `max_bytes`; where only the bytes
    /// limit it, to the end of a row.
    pub fn read(
        &self,
        after: Seq,
        limit: usize,
        max_bytes: usize,
    ) -> Result<ReadEvents, StoreError> {
        let mut statement = self.db.prepare_cached(
            "SELECT first, count, received, crc, body, time FROM batches WHERE first >= coalesce(
             (SELECT first FROM batches WHERE first <= ?1 ORDER BY first DESC LIMIT 1), 0)
             ORDER BY first",
        )?;
        let mut rows = statement.query([signed(after.saturating_add(1))])?;
        let mut read = ReadEvents::default();
        let (mut bytes, mut before) = (0, 0);
        let mut places = Places::default();
        while let Some(found) = rows.next()? {
            let batch = row(found)?;
            // A page that leads backwards would be read for ever.
            if batch.first <= before {
                return Err(corrupt("rows out of order"));
            }
            before = last_of(batch)?;
            if before <= after {
                continue;
            }
            let wanted = limit.saturating_sub(read.records.len());
            let body = found.get_ref(4)?.as_blob().unwrap_or_default();
            let sound = found.get::<_, u32>(3).is_ok_and(|sum| sum == batch::sum(batch, body));
            let decode = || batch::decode(batch, body, after + 1, wanted, &mut places);
            if let Some(records) = sound.then(decode).flatten() {
                read.through = records.last().map(|(seq, _)| *seq);
                bytes += records.iter().map(|(_, event)| event.weight()).sum::<usize>();
                let waited = self.waited(found.get(5).unwrap_or_default(), batch.received);
                let record = |(seq, event): (Seq, Event)| {
                    Arc::new(Record { seq, stored: event.received, event, waited, replay: None })
                };
                read.records.extend(records.into_iter().map(record));
            } else {
                bytes += body.len();
                read.damaged += before - batch.first.max(after + 1) + 1;
                read.through = Some(before);
            }
            if read.records.len() >= limit || bytes >= max_bytes {
                break;
            }
        }
        Ok(read)
    }

    /// The position after which the newest `count` events come; fewer, where their rows have more than
    /// `most` bytes.
    pub fn before_newest(&self, count: usize, most: u64) -> Result<Seq, StoreError> {
        let mut statement = self.db.prepare(
            "SELECT first, count, received, length(body) FROM batches ORDER BY first DESC",
        )?;
        let mut rows = statement.query([])?;
        let mut wanted = u64::try_from(count).unwrap_or(u64::MAX);
        let mut bytes = 0;
        while let Some(found) = rows.next()? {
            let batch = row(found)?;
            bytes += unsigned(found.get(3)?);
            if bytes > most {
                return last_of(batch);
            }
            if batch.count >= wanted {
                return Ok((batch.first + batch.count - wanted).saturating_sub(1));
            }
            wanted -= batch.count;
        }
        Ok(0)
    }

    /// The first and the last event that are there.
    pub fn bounds(&self) -> Result<Option<(Seq, Seq)>, StoreError> {
        let at = |order: &str| {
            let sql = format!(
                "SELECT first, count, received FROM batches ORDER BY first {order} LIMIT 1"
            );
            let mut statement = self.db.prepare_cached(&sql)?;
            statement.query_row([], |found| Ok(row(found))).optional()?.transpose()
        };
        let (Some(first), Some(last)) = (at("ASC")?, at("DESC")?) else { return Ok(None) };
        Ok(Some((first.first, last_of(last)?)))
    }

    /// First and last number of every row, in order.
    pub(in crate::journal) fn rows(&self) -> Result<Vec<(Seq, Seq)>, StoreError> {
        let mut statement =
            self.db.prepare("SELECT first, count, received FROM batches ORDER BY first")?;
        let mut rows = statement.query([])?;
        let mut all = Vec::new();
        while let Some(found) = rows.next()? {
            let batch = row(found)?;
            all.push((batch.first, last_of(batch)?));
        }
        Ok(all)
    }

    /// The first event received at or after that time of the wall clock as it is now; `None` if all are
    /// older.
    pub fn first_since(&self, since: UnixMillis) -> Result<Option<Seq>, StoreError> {
        let Some(age) = clock::now().checked_sub(since) else { return Ok(None) };
        let age = Duration::from_millis(age);
        self.first_where(|row| row.waited.so_far() <= age)
    }

    /// The first and the last event received within these times, both included; without `until`: to the
    /// last there is. `None`: there are none.
    pub fn between(
        &self,
        from: UnixMillis,
        until: Option<UnixMillis>,
    ) -> Result<Option<(Seq, Seq)>, StoreError> {
        let last = self.bounds()?.map_or(0, |(_, last)| last);
        let until = match until {
            None => last,
            Some(time) => self.first_since(time + 1)?.map_or(last, |seq| seq - 1),
        };
        Ok(self.first_since(from)?.filter(|first| *first <= until).map(|first| (first, until)))
    }

    /// The first event of the first row of which that holds, as it holds for all behind it: ages only
    /// fall as numbers grow, so a search by halves needs no index.
    fn first_where(&self, young: impl Fn(&RowAge) -> bool) -> Result<Option<Seq>, StoreError> {
        let Some((mut low, mut high)) = self.bounds()? else { return Ok(None) };
        let mut found = None;
        while low <= high {
            let middle = low + (high - low) / 2;
            match self.row_from(middle)? {
                Some(row) if !young(&row) => low = row.first + row.count.max(1),
                Some(row) => {
                    found = Some(row.first);
                    high = middle.saturating_sub(1);
                }
                None => high = middle.saturating_sub(1),
            }
            if high == 0 {
                break;
            }
        }
        Ok(found)
    }

    /// The first row that begins at that number or behind it.
    fn row_from(&self, seq: Seq) -> Result<Option<RowAge>, StoreError> {
        let mut statement = self.db.prepare_cached(
            "SELECT first, count, received, time FROM batches WHERE first >= ?1
             ORDER BY first LIMIT 1",
        )?;
        let mut rows = statement.query([signed(seq)])?;
        let Some(found) = rows.next()? else { return Ok(None) };
        let batch = row(found)?;
        let time: Option<i64> = found.get(3).unwrap_or_default();
        let waited = self.waited(time, batch.received);
        let age_to_delete = time
            .and_then(age::unpack)
            .map_or_else(|| waited.so_far(), |time| self.ages.age_to_delete(time));
        Ok(Some(RowAge { first: batch.first, count: batch.count, waited, age_to_delete }))
    }

    fn waited(&self, time: Option<i64>, received: UnixMillis) -> Waited {
        self.ages.waited(time.and_then(age::unpack), received)
    }

    /// The journal's time of the last row.
    pub(in crate::journal) fn last_time(&self) -> Result<Option<(u64, UnixMillis)>, StoreError> {
        let mut statement =
            self.db.prepare("SELECT time, received FROM batches ORDER BY first DESC LIMIT 1")?;
        let row = statement.query_row([], |row| {
            let time: Option<i64> = row.get(0).unwrap_or_default();
            Ok((time.and_then(age::unpack), unsigned(row.get(1)?)))
        });
        Ok(row.optional()?.and_then(|(time, received)| Some((time?, received))))
    }

    /// How long that event, or the next one that is there, has waited.
    pub fn waited_since(&self, seq: Seq) -> Result<Option<Waited>, StoreError> {
        Ok(self.first_from(seq)?.map(|record| record.waited))
    }

    /// That event, or the next one that is there.
    pub(in crate::journal) fn first_from(
        &self,
        seq: Seq,
    ) -> Result<Option<Arc<Record>>, StoreError> {
        Ok(self.read(seq.saturating_sub(1), 1, 1)?.records.into_iter().next())
    }

    /// Removes events older than that, no further than through `at_most`. `cursors` as for
    /// [`Store::remove_through`].
    pub(in crate::journal) fn remove_older(
        &mut self,
        age: Duration,
        at_most: Seq,
        cursors: &[(Arc<str>, Seq)],
    ) -> Result<(), StoreError> {
        let oldest = self.row_from(0)?;
        if oldest.is_none_or(|oldest| oldest.age_to_delete <= age) {
            return Ok(());
        }
        let keep = self.first_where(|row| row.age_to_delete <= age)?;
        let through = keep.map_or(at_most, |first| (first - 1).min(at_most));
        self.remove_through(through, cursors).map(|_| ())
    }

    /// Removes events from the front, no further than through `through`, in whole rows; answers how
    /// many. `cursors` are the positions that have moved: they are saved with it, for a sink whose position
    /// stays behind would count as lost what it has.
    pub(in crate::journal) fn remove_through(
        &mut self,
        through: Seq,
        cursors: &[(Arc<str>, Seq)],
    ) -> Result<u64, StoreError> {
        let which = "FROM batches WHERE first <= ?1 AND first + count - 1 <= ?1";
        let transaction = begin(&self.db)?;
        let (events, last): (i64, i64) = transaction
            .prepare_cached(&format!(
                "SELECT coalesce(sum(count), 0), coalesce(max(first + count - 1), 0) {which}"
            ))?
            .query_row([signed(through)], |row| Ok((row.get(0)?, row.get(1)?)))?;
        if events > 0 {
            transaction.prepare_cached(&format!("DELETE {which}"))?.execute([signed(through)])?;
            set_meta(&transaction, "removed", unsigned(last))?;
            for (sink, seq) in cursors {
                numbers::set_cursor(&transaction, sink, *seq)?;
            }
            transaction.commit()?;
        }
        Ok(unsigned(events))
    }

    /// Removes what every sink has from a full disk, which leaves no room for the removal itself but in a
    /// log that was emptied.
    pub(in crate::journal) fn remove_delivered(
        &mut self,
        through: Seq,
        cursors: &[(Arc<str>, Seq)],
    ) -> Result<u64, StoreError> {
        self.remove_through(through, cursors)
            .or_else(|_| self.checkpoint(true).and_then(|()| self.remove_through(through, cursors)))
    }

    /// Removes the oldest rows that hold `count` events or somewhat more. `cursors` as for
    /// [`Store::remove_through`].
    pub(in crate::journal) fn remove_oldest(
        &mut self,
        count: u64,
        cursors: &[(Arc<str>, Seq)],
    ) -> Result<(), StoreError> {
        let through = {
            let mut statement = self
                .db
                .prepare_cached("SELECT first, count, received FROM batches ORDER BY first")?;
            let mut rows = statement.query([])?;
            let (mut events, mut through) = (0, 0);
            while events < count
                && let Some(found) = rows.next()?
            {
                let batch = row(found)?;
                events += batch.count;
                through = last_of(batch)?;
            }
            through
        };
        self.remove_through(through, cursors).map(|_| ())
    }
}
