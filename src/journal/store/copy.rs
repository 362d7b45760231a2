//! Copies what can be read of a broken database into a new one.
//!
//! Events are read from the front to the first row that cannot be read, and from the back to the last:
//! the newest are those that somebody still waits for. What lies between two broken places is lost, and
//! counted. Of the other tables each row that can be read is taken, to the first that the file does not
//! give out.

use rusqlite::{Connection, params};
use tracing::{error, warn};

use super::{Store, begin, events, numbers, schema, signed, state};
use crate::{
    base::event::Seq,
    journal::{
        batch,
        error::StoreError,
        runs::{self, Run},
    },
};

#[derive(Debug, Default)]
pub(in crate::journal) struct Copied {
    /// How many events.
    pub(in crate::journal) events: u64,
    /// The runs as they were written down, or as they show in the events themselves.
    pub(in crate::journal) runs: Vec<Run>,
    /// Positions were lost, and it is not known whose.
    pub(in crate::journal) cursors_unknown: bool,
}

impl Store {
    /// Copies all that can be read of this database into `new`.
    pub(in crate::journal) fn copy_into(&self, new: &Self) -> Result<Copied, StoreError> {
        let transaction = begin(&new.db)?;
        let timed = |table| schema::has_column(&self.db, table, "time").unwrap_or(true);
        let time = if timed("batches") { "time" } else { "NULL" };
        let (through, front) = copy_rows(&self.db, &transaction, time, true, 0)?;
        let (_, back) = copy_rows(&self.db, &transaction, time, false, through)?;
        let events = front + back;
        let cursors_unknown = self.copy_cursors(&transaction)?;
        // What was written of them stays, whatever stands behind it.
        if let Err(error) = self.copy_letters(&transaction, timed("dead_letters")) {
            error!(%error, "dead letters are lost");
        }
        let mut elements = Vec::new();
        // A file from before the table has none.
        if let Err(error) = self.each_element(|element| elements.push(element)) {
            warn!(%error, "the state of channels is not read whole; the rest of it is fetched again");
        }
        for element in elements {
            state::write(&transaction, &element)?;
        }
        transaction.commit()?;
        for replay in self.replay_rows().unwrap_or_default() {
            let replay = replay.map_err(StoreError::from);
            let copied = replay.and_then(|replay| new.request_replay(&replay));
            match copied {
                // It cannot be read, or another one has its number.
                Err(error) if error.is_corrupt() => {
                    error!(%error, "a request for a replay is lost");
                }
                copied => copied?,
            }
        }
        // Without them, ages are counted from the last time the machine was off.
        new.set_offs(&self.offs().unwrap_or_default())?;
        new.set_removed(self.removed().unwrap_or(0))?;
        let known = self.runs().ok().filter(|runs| !runs.is_empty());
        let runs = known
            .map_or_else(|| Ok(runs::from_rows(new.rows()?.into_iter())), Ok::<_, StoreError>)?;
        Ok(Copied { events, runs, cursors_unknown })
    }

    /// Answers whether some are lost.
    fn copy_cursors(&self, new: &Connection) -> Result<bool, StoreError> {
        let (cursors, all) = match self.sound_cursors() {
            Ok(found) => found,
            Err(error) => {
                error!(%error, "the positions of the sinks are lost; they begin with the earliest event");
                return Ok(true);
            }
        };
        for (sink, seq) in cursors {
            numbers::set_cursor(new, &sink, seq)?;
        }
        Ok(!all)
    }
}

/// Copies sound rows of events from one end, until a row cannot be read or the numbers come to `border`.
/// Answers the number that it came to, and how many events.
fn copy_rows(
    old: &Connection,
    new: &Connection,
    time: &str,
    forward: bool,
    border: Seq,
) -> Result<(Seq, u64), StoreError> {
    let order = if forward { "ASC" } else { "DESC" };
    let sql = format!(
        "SELECT first, count, received, crc, body, {time} FROM batches ORDER BY first {order}"
    );
    let mut insert = new.prepare(
        "INSERT INTO batches(first, count, received, crc, body, time) VALUES(?1,?2,?3,?4,?5,?6)",
    )?;
    let mut at = if forward { 0 } else { Seq::MAX };
    let mut copied = 0;
    let Ok(mut statement) = old.prepare(&sql) else { return Ok((at, copied)) };
    let Ok(mut rows) = statement.query([]) else { return Ok((at, copied)) };
    while let Ok(Some(row)) = rows.next() {
        let read = || {
            let batch = events::row(row).ok()?;
            let body = row.get_ref(4).ok()?.as_blob().ok()?;
            // It has no sum, and the events stand without it.
            let time: Option<i64> = row.get(5).unwrap_or_default();
            let sum = row.get::<_, u32>(3).ok()?;
            (batch::sum(batch, body) == sum).then_some((batch, batch.last()?, sum, body, time))
        };
        let Some((batch, last, sum, body, time)) = read() else { continue };
        // A page that leads the wrong way would be read for ever.
        let goes_on = if forward { batch.first > at } else { last < at && batch.first > border };
        if !goes_on {
            break;
        }
        insert.execute(params![
            signed(batch.first),
            signed(batch.count),
            signed(batch.received),
            sum,
            body,
            time
        ])?;
        copied += batch.count;
        at = if forward { last } else { batch.first };
    }
    Ok((at, copied))
}
