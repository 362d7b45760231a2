//! Which numbers were assigned, how far each sink has come, and the times that the machine was off.

use rusqlite::{Connection, Row, params};

use super::{Store, begin, meta, set_meta, signed, unsigned};
use crate::{
    base::{clock::UnixMillis, event::Seq},
    journal::{
        error::StoreError,
        runs::{LEFT_OUT, Run},
    },
};

/// A sink's position as it is saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedCursor {
    pub sink: String,
    /// Through which event; `None`: its sum is wrong.
    pub seq: Option<Seq>,
}

impl Store {
    /// Begins a run, ends the one before, and answers the first number. `known` is the last number of
    /// which it is known from elsewhere that it was assigned; `lost` events before it are not there, and
    /// are written down as a run of their own, so that the loss can be reported to each sink. `begun` is the
    /// first number of a run that has assigned numbers already, in memory: where it cannot be that,
    /// nothing is written.
    pub fn begin_run(
        &mut self,
        known: Seq,
        lost: u64,
        begun: Option<Seq>,
    ) -> Result<Seq, StoreError> {
        let last = self.last_kept()?;
        let runs = self.runs()?;
        let ends = runs.iter().map(|(first, last)| last.unwrap_or(first.saturating_sub(1)));
        let highest = ends.max().unwrap_or(0).max(last).max(known);
        // It may have been written down already, by an attempt that failed in a later step.
        let again = begun.is_some_and(|first| last < first && runs.contains(&(first, None)));
        let clean = again || meta(&self.db, "clean")? == Some(1) || highest == 0;
        let next = highest + 1 + if clean { 0 } else { LEFT_OUT };
        let first = begun.unwrap_or(next);
        if next > first {
            return Err(StoreError::Numbers);
        }
        let transaction = begin(&self.db)?;
        end_run(&transaction, last)?;
        // A run that assigned no number says nothing, and a relay that cannot start makes many of them.
        transaction.execute("DELETE FROM runs WHERE last < first", [])?;
        let lost = lost.min(known.saturating_sub(last));
        if lost > 0 {
            insert_run(&transaction, (known - lost + 1, Some(known)))?;
        }
        insert_run(&transaction, (first, None))?;
        set_meta(&transaction, "clean", 0)?;
        transaction.commit()?;
        Ok(first)
    }

    /// Takes these runs over from memory, or from a file that was recovered.
    pub(in crate::journal) fn set_runs(&self, runs: &[Run]) -> Result<(), StoreError> {
        let transaction = begin(&self.db)?;
        transaction.execute("DELETE FROM runs", [])?;
        for run in runs {
            insert_run(&transaction, *run)?;
        }
        set_meta(&transaction, "clean", 0)?;
        Ok(transaction.commit()?)
    }

    /// The last number that is there, or was removed by retention.
    pub(in crate::journal) fn last_kept(&self) -> Result<Seq, StoreError> {
        Ok(self.bounds()?.map_or(0, |(_, last)| last).max(self.removed()?))
    }

    /// The runs: the first number of each, and the last where it has ended.
    pub fn runs(&self) -> Result<Vec<Run>, StoreError> {
        let mut statement = self.db.prepare("SELECT first, last FROM runs ORDER BY first")?;
        let rows = statement.query_map([], |row| {
            Ok((unsigned(row.get(0)?), row.get::<_, Option<i64>>(1)?.map(unsigned)))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Forgets runs that ended before that number: there is nobody left to whom they could tell a loss.
    pub(in crate::journal) fn prune_runs(&self, before: Seq) -> Result<(), StoreError> {
        self.db.execute("DELETE FROM runs WHERE last < ?1", [signed(before)])?;
        Ok(())
    }

    /// The last number that retention has removed. Where nothing is left behind it, it alone tells that
    /// the numbers before it were assigned.
    pub(in crate::journal) fn removed(&self) -> Result<Seq, StoreError> {
        Ok(meta(&self.db, "removed")?.unwrap_or(0))
    }

    pub(in crate::journal) fn set_removed(&self, removed: Seq) -> Result<(), StoreError> {
        set_meta(&self.db, "removed", removed)
    }

    pub fn cursors(&self) -> Result<Vec<SavedCursor>, StoreError> {
        let mut statement = self.db.prepare("SELECT sink, seq, crc FROM cursors ORDER BY sink")?;
        let rows = statement.query_map([], saved_cursor)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The positions that can be read and whose sums are right, and whether these are all.
    pub(super) fn sound_cursors(&self) -> Result<(Vec<(String, Seq)>, bool), StoreError> {
        let mut statement = self.db.prepare("SELECT sink, seq, crc FROM cursors")?;
        let (mut sound, mut all) = (Vec::new(), true);
        for cursor in statement.query_map([], saved_cursor)? {
            match cursor {
                Ok(SavedCursor { sink, seq: Some(seq) }) => sound.push((sink, seq)),
                Ok(SavedCursor { seq: None, .. }) | Err(_) => all = false,
            }
        }
        Ok((sound, all))
    }

    /// When the relay last ran, where there is no mark that says it.
    pub(in crate::journal) fn heartbeat(&self) -> Result<Option<UnixMillis>, StoreError> {
        meta(&self.db, "alive")
    }

    /// The times that the machine was off, as they were written down; without those that are broken.
    pub(in crate::journal) fn offs(&self) -> Result<Vec<(u64, u64)>, StoreError> {
        let mut statement =
            self.db.prepare("SELECT key, value FROM meta WHERE key LIKE 'off %'")?;
        let mut rows = statement.query([])?;
        let mut offs = Vec::new();
        while let Some(row) = rows.next()? {
            let time = row.get_ref(0)?.as_str().ok().and_then(|key| key.strip_prefix("off "));
            let time = time.and_then(|time| time.parse().ok());
            if let (Some(time), Ok(length)) = (time, row.get(1)) {
                offs.push((time, unsigned(length)));
            }
        }
        Ok(offs)
    }

    pub(in crate::journal) fn set_offs(&self, offs: &[(u64, u64)]) -> Result<(), StoreError> {
        for (time, length) in offs {
            set_meta(&self.db, &format!("off {time:020}"), *length)?;
        }
        Ok(())
    }
}

fn insert_run(db: &Connection, (first, last): Run) -> Result<(), StoreError> {
    db.prepare_cached("INSERT OR REPLACE INTO runs(first, last) VALUES(?1, ?2)")?
        .execute(params![signed(first), last.map(signed)])?;
    Ok(())
}

/// The run that has not ended ended with that number.
pub(super) fn end_run(db: &Connection, last: Seq) -> Result<(), StoreError> {
    let sql = "UPDATE runs SET last = max(first - 1, ?1) WHERE last IS NULL";
    db.execute(sql, [signed(last)])?;
    Ok(())
}

pub(super) fn set_cursor(db: &Connection, sink: &str, seq: Seq) -> Result<(), StoreError> {
    // A row that is replaced is written into the index once more: a page for nothing.
    db.prepare_cached(
        "INSERT INTO cursors(sink, seq, crc) VALUES(?1, ?2, ?3)
         ON CONFLICT(sink) DO UPDATE SET seq = excluded.seq, crc = excluded.crc",
    )?
    .execute(params![sink, signed(seq), cursor_sum(sink, seq)])?;
    Ok(())
}

fn saved_cursor(row: &Row<'_>) -> rusqlite::Result<SavedCursor> {
    let sink: String = row.get(0)?;
    let seq = unsigned(row.get(1)?);
    let sound = row.get::<_, u32>(2)? == cursor_sum(&sink, seq);
    Ok(SavedCursor { sink, seq: sound.then_some(seq) })
}

fn cursor_sum(sink: &str, seq: Seq) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(sink.as_bytes());
    crc.update(&seq.to_le_bytes());
    crc.finalize()
}
