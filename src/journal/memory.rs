//! What the journal knows in memory: the newest events, how far they are written, how far each sink has
//! come, and what the disk has still to get. All of it is behind one lock, under which nothing touches
//! the disk.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Batch, Health, OUTBOX, age,
    channel_state::StateBudget,
    mark::Marked,
    pending::PendingChanges,
    ring::Ring,
    runs::{Run, assigned_between},
    store::{Letters, Replay, Write},
};
use crate::base::{
    clock::{Moment, UnixMillis},
    event::{Event, Record, Seq, Waited},
};

/// Cursors of the relay's own parts begin like this.
pub(super) const OWN: &str = "relay.";

/// Runs that are kept for the sake of sinks that are no longer configured.
const MANY_RUNS: usize = 256;

#[derive(Debug)]
pub(super) struct Memory {
    pub(super) ring: Ring,
    pub(super) numbers: Numbers,
    pub(super) cursors: Cursors,
    pub(super) pending: PendingChanges,
    /// Each sink's dead letters, those that are not yet written among them.
    pub(super) letters: HashMap<String, Letters>,
    pub(super) budget: StateBudget,
    pub(super) disk: Disk,
    pub(super) demand: Demand,
    /// Threads that run.
    pub(super) threads: usize,
}

/// Which numbers were assigned, and what became of their events.
#[derive(Debug)]
pub(super) struct Numbers {
    pub(super) last: Seq,
    pub(super) written: Seq,
    pub(super) synced: Seq,
    /// The first event that is still kept, on disk or in memory.
    pub(super) oldest: Seq,
    pub(super) runs: Vec<Run>,
    last_received: UnixMillis,
}

#[derive(Debug, Default)]
pub(super) struct Cursors {
    pub(super) by_sink: HashMap<Arc<str>, Cursor>,
    /// Positions were lost, and it is not known whose.
    pub(super) unknown: bool,
    /// What [`Memory::published`] is of files that were opened late.
    pub(super) found_late: Option<Seq>,
    backlogs: Vec<Backlog>,
    /// Those that have moved are to be saved within that time; taken by the writer.
    pub(super) save_within: Option<Duration>,
    /// The writer has a time at which it saves them.
    pub(super) scheduled: bool,
}

impl Cursors {
    /// They are to be saved within that time; whether the writer is to be told.
    pub(super) fn save_within(&mut self, time: Duration) -> bool {
        let is_known = self.scheduled || self.save_within.is_some();
        let tell = time.is_zero() || !is_known;
        if tell {
            self.save_within = Some(time);
        }
        tell
    }

    /// A replay has come to `position`; `None`: it is done.
    pub(super) fn move_backlog(&mut self, number: i64, position: Option<Seq>) {
        self.backlogs
            .retain(|Backlog { replay, .. }| replay.number != number || position.is_some());
        for Backlog { replay, .. } in &mut self.backlogs {
            if replay.number == number {
                replay.position = position.unwrap_or(replay.position);
            }
        }
    }

    /// What a delivery has in memory of a backlog ends there.
    pub(super) fn backlog_was_read(&mut self, number: i64, through: Seq) {
        let backlogs = self.backlogs.iter_mut();
        backlogs
            .filter(|backlog| backlog.replay.number == number)
            .for_each(|backlog| backlog.read = through);
    }

    /// The delivery of a sink begins again, and has nothing of its backlogs in memory.
    pub(super) fn backlogs_begin_again(&mut self, sink: &str) {
        let of_sink = self.backlogs.iter_mut().filter(|backlog| backlog.replay.sink == sink);
        of_sink.for_each(|backlog| backlog.read = backlog.replay.position);
    }

    pub(super) fn is_active(&self, sink: &str) -> bool {
        self.by_sink.get(sink).is_some_and(Cursor::is_active)
    }

    /// Behind which event what the sinks have still to get begins, of each cursor and each backlog: of those that
    /// a configured sink uses, or of `all`.
    fn positions(&self, all: bool) -> impl Iterator<Item = Seq> {
        let cursors = self.by_sink.values().filter(move |cursor| all || cursor.is_active());
        let backlogs = self.backlogs.iter().map(|backlog| &backlog.replay);
        let backlogs = backlogs.filter(move |replay| all || self.is_active(&replay.sink));
        cursors.map(|cursor| cursor.at).chain(backlogs.map(|replay| replay.position))
    }
}

/// What a sink has still to get before its cursor: a replay that nobody asked for.
#[derive(Debug)]
struct Backlog {
    replay: Replay,
    /// Through which event its delivery has read: what it has not delivered of that, it holds itself.
    read: Seq,
    /// Through which event it was reported what is gone.
    reported: Seq,
}

impl Backlog {
    /// Behind this event nothing was handed on, and nothing reported as gone.
    fn reached(&self) -> Seq {
        self.replay.position.max(self.reported)
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor {
    pub(super) at: Seq,
    /// How far it is on disk; `None`: not at all, or not known.
    pub(super) saved: Option<Seq>,
    /// Since when no configured sink uses it.
    unused_since: Option<Moment>,
    /// Through which event its delivery has read: what it has not delivered of that, it holds itself.
    pub(super) read: Seq,
    /// How many events it has found missing last, and which was the last of them.
    pub(super) hole: (u64, Seq),
    /// Through which event it was reported what is gone.
    pub(super) reported: Seq,
    /// How long the first event that is still to be had waits, where only the disk still has that.
    pub(super) waits: Option<Waited>,
    /// It was put back, and stays there until its reader begins again from there.
    pub(super) put_back: bool,
}

#[derive(Debug, Default)]
pub(super) struct Disk {
    pub(super) health: Health,
    /// The file's content is broken.
    pub(super) corrupt: bool,
    /// Since when intake waits for it to catch up.
    pub(super) waits_since: Option<Instant>,
    /// Intake has waited for it in vain, and waits no more until it has caught up.
    pub(super) behind: bool,
    /// All that was committed is synced: cursors and dead letters too.
    pub(super) durable: bool,
    /// Bytes in use.
    pub(super) size: u64,
}

/// What the writer is to do, the more of it the further down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Demand {
    /// Nothing before it is time for maintenance.
    Nothing,
    Write,
    /// To write what there is, and to end.
    End,
}

impl Cursor {
    pub(super) fn new(at: Seq, saved: Option<Seq>) -> Self {
        let (unused_since, waits, put_back) = (None, None, false);
        Self { at, saved, unused_since, read: at, hole: (0, 0), reported: at, waits, put_back }
    }

    /// Whether a configured sink uses it.
    pub(super) fn is_active(&self) -> bool {
        self.unused_since.is_none()
    }

    pub(super) fn set_active(&mut self, active: bool) {
        if active {
            self.unused_since = None;
        } else {
            self.unused_since.get_or_insert_with(Moment::now);
        }
    }

    /// Whether a configured sink has used it within that time, and none does now.
    pub(super) fn was_active_within(&self, time: Duration) -> bool {
        self.unused_since.is_some_and(|since| since.elapsed() < time)
    }
}

impl Memory {
    /// Of a journal that goes on with the number `next`.
    pub(super) fn new(next: Seq, runs: Vec<Run>, oldest: Seq, health: Health) -> Self {
        let last = next - 1;
        Self {
            ring: Ring::default(),
            numbers: Numbers { last, written: last, synced: last, oldest, runs, last_received: 0 },
            cursors: Cursors::default(),
            pending: PendingChanges::default(),
            letters: HashMap::new(),
            budget: StateBudget::default(),
            disk: Disk { health, durable: true, ..Disk::default() },
            demand: Demand::Nothing,
            threads: 0,
        }
    }

    /// The wall clock's time of the last event before.
    pub(super) fn received_before(&mut self, received: UnixMillis) {
        self.numbers.last_received = received;
    }

    pub(super) fn append(&mut self, mut event: Event, waited: Waited) {
        let numbers = &mut self.numbers;
        event.received = age::received(event.received, numbers.last_received);
        numbers.last_received = event.received;
        numbers.last += 1;
        let stored = event.received;
        self.ring.push(Record { seq: numbers.last, event, waited, stored, replay: None });
    }

    /// Keeps the ring within `limit`. What is not on disk stays as long as the disk works; one for which
    /// intake has waited in vain, and which is twice as far behind as it may be, does not.
    pub(super) fn evict(&mut self, limit: usize) {
        while self.ring.bytes > limit
            && let Some(first) = self.ring.first()
        {
            let written = first <= self.numbers.written;
            let too_much = self.disk.behind && self.ring.bytes >= 2 * limit;
            if !written && self.disk.health == Health::Sound && !too_much {
                break;
            }
            self.ring.pop(written);
        }
    }

    /// How many numbers after `after`, through `through`, were assigned to events.
    pub(super) fn assigned(&self, after: Seq, through: Seq) -> u64 {
        assigned_between(&self.numbers.runs, after, through.min(self.numbers.last))
    }

    /// The first event that is still here. While the disk fails there may be none on it, and the ring has
    /// dropped what came first.
    pub(super) fn oldest_kept(&self) -> Seq {
        let Numbers { oldest, written, last, .. } = self.numbers;
        if oldest <= written {
            return oldest;
        }
        oldest.max(self.ring.first().unwrap_or(last + 1))
    }

    /// The first number after `after` whose event is still here, on disk or in memory.
    pub(super) fn next_kept(&self, after: Seq) -> Seq {
        let next = after + 1;
        let in_memory = self.ring.first().unwrap_or(self.numbers.last + 1).max(next);
        let on_disk = self.numbers.oldest.max(next);
        if on_disk <= self.numbers.written { on_disk.min(in_memory) } else { in_memory }
    }

    /// Events after `after`, through `through`, that are still here.
    fn kept(&self, after: Seq, through: Seq) -> u64 {
        self.assigned(self.next_kept(after) - 1, through)
    }

    /// Events that a sink has still to get, and that are still here or in its delivery.
    pub(super) fn lag(&self, sink: &str, cursor: &Cursor) -> u64 {
        let read = cursor.at.max(cursor.read);
        let (lost, through) = cursor.hole;
        // The cursor steps over them when what stands before is delivered.
        let lost = if through <= read { lost.min(self.assigned(cursor.at, through)) } else { 0 };
        let held = self.assigned(cursor.at, read).saturating_sub(lost);
        let backlogs: u64 = self.backlogs_of(sink).map(|backlog| self.waiting(backlog)).sum();
        backlogs + held + self.kept(read, self.numbers.last)
    }

    /// Behind which event the first of them stands.
    pub(super) fn lags_behind(&self, sink: &str, cursor: &Cursor) -> Seq {
        let waiting = self.backlogs_of(sink).filter(|backlog| self.waiting(backlog) > 0);
        waiting.map(|backlog| backlog.replay.position).fold(cursor.at, Seq::min)
    }

    fn backlogs_of(&self, sink: &str) -> impl Iterator<Item = &Backlog> {
        self.cursors.backlogs.iter().filter(move |backlog| backlog.replay.sink == sink)
    }

    /// What is still to be had of a backlog, and still here or in its delivery.
    fn waiting(&self, Backlog { replay, read, .. }: &Backlog) -> u64 {
        let read = replay.position.max(*read);
        self.assigned(replay.position, read) + self.kept(read, replay.until)
    }

    /// What is gone of the events that configured sinks have still to get, as far as that was not reported
    /// before: how many of each sink. From now on it counts as reported.
    pub(super) fn take_losses(&mut self) -> Vec<(Arc<str>, u64)> {
        let sinks = self.cursors.by_sink.iter();
        let counts = |sink: &str| sink == OUTBOX || !sink.starts_with(OWN);
        let sinks = sinks.filter(|(sink, cursor)| cursor.is_active() && counts(sink));
        let lost = |(sink, cursor): (&Arc<str>, &Cursor)| {
            let after = cursor.at.max(cursor.read).max(cursor.reported);
            let before = self.next_kept(after) - 1;
            let count = self.assigned(after, before);
            (count > 0).then(|| (Arc::clone(sink), before, count))
        };
        let lost: Vec<_> = sinks.filter_map(lost).collect();
        for (sink, before, _) in &lost {
            if let Some(cursor) = self.cursors.by_sink.get_mut(sink) {
                cursor.reported = *before;
            }
        }
        let of_cursors = lost.into_iter().map(|(sink, _, count)| (sink, count));
        of_cursors.chain(self.take_losses_of_backlogs()).collect()
    }

    fn take_losses_of_backlogs(&mut self) -> Vec<(Arc<str>, u64)> {
        let gone = |backlog: &Backlog| {
            let after = backlog.reached().max(backlog.read);
            let before = (self.next_kept(after) - 1).min(backlog.replay.until);
            let is_active = self.cursors.is_active(&backlog.replay.sink);
            (before, if is_active { self.assigned(after, before) } else { 0 })
        };
        let gone: Vec<_> = self.cursors.backlogs.iter().map(gone).collect();
        let mut lost = Vec::new();
        for (backlog, (before, count)) in self.cursors.backlogs.iter_mut().zip(gone) {
            if count > 0 {
                backlog.reported = before;
                lost.push((backlog.replay.sink.as_str().into(), count));
            }
        }
        lost
    }

    /// As [`Memory::take_lost`], of a replay that nobody asked for.
    pub(super) fn take_lost_of_backlog(&mut self, number: i64, before: Seq, lost: u64) -> u64 {
        let mut backlogs = self.cursors.backlogs.iter_mut();
        let Some(backlog) = backlogs.find(|backlog| backlog.replay.number == number) else {
            return lost;
        };
        let after = backlog.reached();
        backlog.reported = backlog.reported.max(before);
        self.assigned(after, before).min(lost)
    }

    /// Events that were not written, and that not every sink has; in a member of a cluster, that its log does not
    /// have.
    pub(super) fn missing_at_end(&self) -> u64 {
        let Numbers { last, written, .. } = self.numbers;
        let cursors = &self.cursors.by_sink;
        let had = if let Some(outbox) = cursors.get(OUTBOX).filter(|cursor| cursor.is_active()) {
            // The cursors of the sinks stand still.
            outbox.at
        } else {
            let sinks = cursors.iter().filter(|(sink, _)| !sink.starts_with(OWN));
            sinks.map(|(_, cursor)| cursor.at).min().unwrap_or(written)
        };
        self.assigned(had.max(written), last)
    }

    /// What the mark is to say at the end, where not everything could be written.
    pub(super) fn marked_at_end(&self) -> Marked {
        let Numbers { last, written, .. } = self.numbers;
        Marked { last, events: self.marked(written).events + self.missing_at_end() }
    }

    /// What the mark is to say when everything through `last` is written.
    pub(super) fn marked(&self, last: Seq) -> Marked {
        Marked { last, events: self.assigned(self.numbers.oldest.saturating_sub(1), last) }
    }

    /// Forgets runs that ended before everything that is kept and before all that sinks have still to get.
    /// Answers where that is, if there were any.
    pub(super) fn prune_runs(&mut self) -> Option<Seq> {
        let runs = &mut self.numbers.runs;
        // A cursor that no sink uses any more counts as long as that costs little.
        let positions = self.cursors.positions(runs.len() < MANY_RUNS);
        let before = positions.map(|at| at + 1).fold(self.numbers.oldest, Seq::min);
        let count = runs.len();
        runs.retain(|(_, last)| last.is_none_or(|last| last >= before));
        (runs.len() < count).then_some(before)
    }

    /// Makes a batch of what was found after `after`, through `end`: it ends before the first hole in
    /// it, and a hole before it is counted.
    pub(super) fn batch(&self, after: Seq, mut records: Vec<Arc<Record>>, mut end: Seq) -> Batch {
        let hole = records.windows(2).position(|pair| match pair {
            [one, next] => next.seq != one.seq + 1 && self.assigned(one.seq, next.seq - 1) > 0,
            _ => false,
        });
        if let Some(index) = hole {
            records.truncate(index + 1);
        }
        // Rows behind the last may be gone as well: they stand before the next batch.
        if let Some(last) = records.last() {
            end = last.seq;
        }
        let before = records.first().map_or(end, |first| first.seq - 1);
        Batch { lost: self.assigned(after, before), records, through: end }
    }

    pub(super) fn read_ring(
        &self,
        after: Seq,
        through: Seq,
        limit: usize,
        max_bytes: usize,
    ) -> Batch {
        self.batch(after, self.ring.slice(after, through, limit, max_bytes), through)
    }

    /// What is to be written now, the cursors among it or not.
    pub(super) fn begin_write(&mut self, limit: usize, max_bytes: usize, cursors: bool) -> Write {
        let written = self.numbers.written;
        let mut moved = Vec::new();
        if cursors {
            self.cursors.scheduled = false;
            moved.extend(self.unsaved().map(|(sink, cursor)| (Arc::clone(sink), cursor.at)));
        }
        Write {
            records: self.ring.slice(written, Seq::MAX, limit, max_bytes),
            cursors: moved,
            changes: self.pending.begin(),
        }
    }

    /// All of that is committed, and `synced` or not.
    pub(super) fn written(&mut self, write: &Write, synced: bool) {
        if let Some(last) = write.records.last() {
            self.ring.written(&write.records);
            self.numbers.written = last.seq;
            if synced {
                self.numbers.synced = last.seq;
            }
        }
        for (sink, seq) in &write.cursors {
            if let Some(cursor) = self.cursors.by_sink.get_mut(sink) {
                cursor.saved = Some(*seq);
            }
        }
        self.pending.written();
        self.disk.durable = synced;
    }

    pub(super) fn is_written(&self) -> bool {
        self.numbers.written == self.numbers.last
            && self.unsaved().next().is_none()
            && self.pending.unwritten().iter().all(|changes| changes.is_empty())
    }

    fn unsaved(&self) -> impl Iterator<Item = (&Arc<str>, &Cursor)> {
        self.cursors.by_sink.iter().filter(|(_, cursor)| cursor.saved != Some(cursor.at))
    }

    /// The positions that the disk does not have, no further than the events that it has.
    pub(super) fn moved_on_disk(&self) -> Vec<(Arc<str>, Seq)> {
        let at = |cursor: &Cursor| cursor.at.min(self.numbers.written);
        self.unsaved().map(|(sink, cursor)| (Arc::clone(sink), at(cursor))).collect()
    }

    /// Sinks whose next event the ring no longer has, and where they stand.
    pub(super) fn behind_ring(&self) -> Vec<(Arc<str>, Seq)> {
        let first = self.ring.first().unwrap_or(self.numbers.last + 1);
        let sinks = self.cursors.by_sink.iter();
        let positions =
            sinks.map(|(sink, cursor)| (Arc::clone(sink), self.lags_behind(sink, cursor)));
        positions.filter(|(_, at)| at + 1 < first).collect()
    }

    /// Through which event every sink has got everything.
    pub(super) fn delivered(&self) -> Seq {
        self.cursors.positions(false).min().unwrap_or(self.numbers.last)
    }

    /// These replays are on disk.
    pub(super) fn set_backlogs(&mut self, mut replays: Vec<Replay>) {
        replays.retain(|replay| replay.at == 0);
        let known = std::mem::take(&mut self.cursors.backlogs);
        let backlog = |replay: Replay| {
            let known = known.iter().find(|backlog| backlog.replay.number == replay.number);
            let (read, reported) = known.map_or((0, 0), |known| (known.read, known.reported));
            Backlog { replay, read, reported }
        };
        self.cursors.backlogs = replays.into_iter().map(backlog).collect();
        let moved = self.pending.unwritten().into_iter().flat_map(|changes| &changes.replays);
        for (number, position) in moved {
            self.cursors.move_backlog(*number, *position);
        }
    }

    /// These dead letters are on disk, and those that wait come on top.
    pub(super) fn count_letters(&mut self, on_disk: impl IntoIterator<Item = (String, Letters)>) {
        self.letters = on_disk.into_iter().collect();
        for letter in self.pending.dead_letters() {
            self.letters.entry(letter.sink.clone()).or_default().add(letter);
        }
    }

    /// The files were reopened, and hold this; what they do not, and is still in memory, is written next.
    pub(super) fn reopened(&mut self, bounds: Option<(Seq, Seq)>) {
        let written = bounds.map_or(0, |(_, last)| last).min(self.numbers.last);
        self.numbers.written = written;
        self.numbers.synced = written;
        self.numbers.oldest = bounds.map_or(written + 1, |(first, _)| first);
        self.ring.written_through(written);
        self.cursors.by_sink.values_mut().for_each(|cursor| cursor.saved = None);
        self.disk = Disk { durable: true, size: self.disk.size, ..Disk::default() };
    }

    /// What the sinks have still to get of what was found in files that could be opened only now; `before`
    /// is the last number in them.
    pub(super) fn backlogs(&self, found: &Self, before: Seq) -> Vec<Replay> {
        let (live, known) = (&self.cursors.by_sink, &found.cursors.by_sink);
        let mut positions: Vec<(Arc<str>, Seq)> = Vec::new();
        let both = known.iter().filter(|(sink, _)| live.contains_key(*sink));
        positions.extend(both.map(|(sink, cursor)| (Arc::clone(sink), cursor.at)));
        if found.cursors.unknown {
            // Positions were lost, and it is not known whose: then everybody gets what there is.
            let earliest = found.numbers.oldest.saturating_sub(1);
            let active = live.iter().filter(|(_, cursor)| cursor.is_active());
            let unknown = active.filter(|(sink, _)| !known.contains_key(*sink));
            positions.extend(unknown.map(|(sink, _)| (Arc::clone(sink), earliest)));
        }
        // The relay's own parts follow what is new; of the outbox see `put_back`.
        let behind = positions.into_iter().filter(|(sink, position)| {
            !sink.starts_with(OWN) && assigned_between(&found.numbers.runs, *position, before) > 0
        });
        let replay = |(sink, position): (Arc<str>, Seq)| Replay {
            number: 0,
            at: 0,
            sink: sink.to_string(),
            position,
            until: before,
            topic: None,
            when: None,
        };
        behind.map(replay).collect()
    }

    /// Through which event what stands in the files was published in the cluster's log, or delivered while the
    /// relay was no member.
    pub(super) fn published(&self) -> Option<Seq> {
        let cursors = self.cursors.by_sink.iter();
        let counts = |sink: &str| sink == OUTBOX || !sink.starts_with(OWN);
        let published = cursors.filter(|(sink, _)| counts(sink)).map(|(_, cursor)| cursor.at).max();
        let earliest = self.numbers.oldest.saturating_sub(1);
        published.or(self.cursors.unknown.then_some(earliest))
    }

    /// In a member of a cluster: puts the cursor of the outbox back to where it is known to have been `published`,
    /// if there is anything behind that through `before`. What it has published since is published again: the log
    /// knows it.
    pub(super) fn put_back(&mut self, published: Seq, before: Seq) {
        if self.assigned(published, before) == 0 {
            return;
        }
        let cursor = self.cursors.by_sink.get_mut(OUTBOX).filter(|cursor| cursor.is_active());
        if let Some(cursor) = cursor.filter(|cursor| cursor.at > published) {
            *cursor = Cursor { put_back: true, ..Cursor::new(published, None) };
        }
    }

    /// Takes over what was found in them, and what was asked for of it.
    pub(super) fn adopt(&mut self, found: Self, requested: Vec<Replay>) {
        self.cursors.backlogs = found.cursors.backlogs;
        let requested =
            requested.into_iter().map(|replay| Backlog { replay, read: 0, reported: 0 });
        self.cursors.backlogs.extend(requested);
        self.numbers.runs = found.numbers.runs;
        self.numbers.oldest = found.numbers.oldest;
        self.disk.size = found.disk.size;
        self.count_letters(found.letters);
        for (sink, mut cursor) in found.cursors.by_sink {
            if let Some(live) = self.cursors.by_sink.get_mut(&sink) {
                live.saved = None;
            } else {
                // No configured sink uses it.
                cursor.set_active(false);
                self.cursors.by_sink.insert(sink, cursor);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_journal_has_nothing_to_count() {
        let memory = Memory::new(1, vec![(1, None)], 1, Health::Sound);
        assert_eq!((memory.assigned(0, 100), memory.marked(0)), (0, Marked::default()));
    }

    #[test]
    fn what_a_delivery_holds_itself_is_not_lost() {
        let mut memory = Memory::new(101, vec![(1, None)], 1, Health::Sound);
        let cursor = |at| Cursor::new(at, Some(at));
        for (sink, at) in [("slow", 20), ("quick", 100), ("relay.own", 20), ("removed", 20)] {
            memory.cursors.by_sink.insert(sink.into(), cursor(at));
        }
        memory.cursors.by_sink.get_mut("slow").unwrap().read = 30;
        memory.cursors.by_sink.get_mut("removed").unwrap().set_active(false);
        assert_eq!(memory.take_losses(), []);
        memory.numbers.oldest = 41;
        assert_eq!(memory.take_losses(), [("slow".into(), 10)]);
        assert_eq!(memory.take_losses(), []);
        memory.numbers.oldest = 51;
        // It reads on before anybody has reported it.
        assert_eq!(memory.take_lost("slow", 50, 20), 10);
        assert_eq!(memory.take_losses(), []);
        assert_eq!(memory.take_lost("slow", 50, 20), 0);
    }

    #[test]
    fn what_a_member_can_no_longer_publish_is_a_loss_and_does_not_wait() {
        let mut memory = Memory::new(101, vec![(1, None)], 41, Health::Sound);
        for (sink, at, active) in [("slow", 20, false), (OUTBOX, 20, true)] {
            memory.cursors.by_sink.insert(sink.into(), Cursor::new(at, Some(at)));
            memory.cursors.by_sink.get_mut(sink).unwrap().set_active(active);
        }
        let lag = |memory: &Memory| memory.lag(OUTBOX, &memory.cursors.by_sink[OUTBOX]);
        assert_eq!(lag(&memory), 60);
        assert_eq!(memory.take_losses(), [(OUTBOX.into(), 20)]);
        assert_eq!(memory.take_losses(), []);
        assert_eq!(memory.take_lost(OUTBOX, 40, 20), 0, "it is known");
        let outbox = memory.cursors.by_sink.get_mut(OUTBOX).unwrap();
        (outbox.at, outbox.read) = (40, 50);
        memory.numbers.oldest = 61;
        assert_eq!(memory.take_losses(), [(OUTBOX.into(), 10)]);
        assert_eq!(lag(&memory), 10 + 40, "it has what it has read");
    }

    #[test]
    fn events_that_are_still_in_the_ring_are_not_lost() {
        let nobody: Arc<str> = "".into();
        let event = || crate::base::event::own("t", &nobody, &nobody, &serde_json::json!({}), 1);
        let mut memory = Memory::new(1, vec![(1, None)], 1, Health::Sound);
        memory.cursors.by_sink.insert("slow".into(), Cursor::new(0, None));
        (0..10).for_each(|_| memory.append(event(), Waited::now()));
        memory.numbers.written = 10;
        memory.numbers.oldest = 11;
        assert_eq!(memory.take_losses(), []);
        memory.ring.pop(true);
        assert_eq!(memory.take_losses(), [("slow".into(), 1)]);
    }

    #[test]
    fn what_every_sink_has_is_not_missed_after_an_end_on_a_full_disk() {
        let mut memory = Memory::new(101, vec![(1, None)], 1, Health::Sound);
        memory.numbers.written = 60;
        assert_eq!(memory.marked_at_end(), Marked { last: 100, events: 100 });
        for (sink, at, events) in [("a", 100, 60), ("b", 90, 70), ("c", 50, 100)] {
            memory.cursors.by_sink.insert(sink.into(), Cursor::new(at, None));
            assert_eq!(memory.marked_at_end(), Marked { last: 100, events }, "{sink}");
            assert_eq!(memory.missing_at_end(), events - 60, "{sink}");
        }
    }

    #[test]
    fn what_is_published_is_not_missed_after_an_end_on_a_full_disk() {
        let mut memory = Memory::new(101, vec![(1, None)], 1, Health::Sound);
        memory.numbers.written = 60;
        for (sink, at, active) in [("slow", 20, false), (OUTBOX, 100, true)] {
            memory.cursors.by_sink.insert(sink.into(), Cursor::new(at, None));
            memory.cursors.by_sink.get_mut(sink).unwrap().set_active(active);
        }
        assert_eq!((memory.missing_at_end(), memory.marked_at_end().events), (0, 60));
        memory.cursors.by_sink.get_mut(OUTBOX).unwrap().at = 90;
        assert_eq!(memory.missing_at_end(), 10);
        // A relay that is alone again has its own sinks.
        memory.cursors.by_sink.get_mut(OUTBOX).unwrap().set_active(false);
        assert_eq!(memory.missing_at_end(), 40);
    }

    #[test]
    fn the_oldest_event_is_one_that_is_there() {
        let nobody: Arc<str> = "".into();
        let event = || crate::base::event::own("t", &nobody, &nobody, &serde_json::json!({}), 1);
        let full = Health::Degraded("the disk is full".into());
        let mut memory = Memory::new(1, vec![(1, None)], 1, full);
        (0..10).for_each(|_| memory.append(event(), Waited::now()));
        assert_eq!(memory.oldest_kept(), 1);
        (0..4).for_each(|_| memory.ring.pop(false));
        assert_eq!(memory.oldest_kept(), 5, "none was written");
        memory.numbers.written = 2;
        assert_eq!(memory.oldest_kept(), 1, "the disk has two");
    }

    #[test]
    fn the_backlog_of_files_opened_late_stays_the_same_until_they_are_taken_over() {
        let full = Health::Degraded("the disk is full".into());
        let mut memory = Memory::new(1000, vec![(1000, None)], 1000, full);
        memory.cursors.by_sink.insert("a".into(), Cursor::new(1005, None));
        let mut found = Memory::new(1000, vec![(1, Some(50)), (1000, None)], 1, Health::Sound);
        found.cursors.by_sink.insert("a".into(), Cursor::new(20, Some(20)));
        found.cursors.by_sink.insert("gone".into(), Cursor::new(10, Some(10)));
        let backlogs = memory.backlogs(&found, 50);
        assert_eq!(backlogs.len(), 1, "{backlogs:?}");
        let backlog = &backlogs[0];
        assert_eq!((&*backlog.sink, backlog.position, backlog.until), ("a", 20, 50));
        assert_eq!(backlog.name(), None, "nobody asked to have it once more");
        assert_eq!(memory.backlogs(&found, 50), backlogs);
        assert_eq!(memory.numbers.runs, [(1000, None)], "the first number is still known");
        memory.adopt(found, backlogs);
        assert_eq!(memory.numbers.oldest, 1);
        let is_active = |sink: &str| memory.cursors.by_sink[sink].is_active();
        assert!(is_active("a") && !is_active("gone"));
        assert_eq!(memory.delivered(), 20, "it has still to get the backlog");
        memory.cursors.move_backlog(0, Some(40));
        assert_eq!(memory.delivered(), 40);
        memory.cursors.move_backlog(0, None);
        assert_eq!(memory.delivered(), 1005);
    }

    /// A journal that goes on from memory, files found late whose last event is 50, and the cursors in them.
    fn found_late(cursors: &[(&str, Seq)]) -> (Memory, Memory) {
        let full = Health::Degraded("the disk is full".into());
        let memory = Memory::new(1000, vec![(1000, None)], 1000, full);
        let mut found = Memory::new(1000, vec![(1, Some(50)), (1000, None)], 1, Health::Sound);
        for (sink, at) in cursors {
            found.cursors.by_sink.insert((*sink).into(), Cursor::new(*at, Some(*at)));
        }
        (memory, found)
    }

    #[test]
    fn a_backlog_that_is_gone_is_a_loss_and_does_not_wait() {
        let (mut memory, found) = found_late(&[("a", 20)]);
        memory.cursors.by_sink.insert("a".into(), Cursor::new(999, None));
        let backlogs = memory.backlogs(&found, 50);
        memory.adopt(found, backlogs);
        let lag = |memory: &Memory| memory.lag("a", &memory.cursors.by_sink["a"]);
        let behind = |memory: &Memory| memory.lags_behind("a", &memory.cursors.by_sink["a"]);
        assert_eq!((lag(&memory), behind(&memory), memory.take_losses()), (30, 20, vec![]));
        memory.numbers.oldest = 31;
        assert_eq!((lag(&memory), memory.take_losses()), (20, vec![("a".into(), 10)]));
        assert_eq!(memory.take_lost_of_backlog(0, 30, 10), 0, "it is known");
        // The run is remembered until the sink has stepped over it.
        memory.numbers.oldest = 1000;
        assert_eq!((memory.prune_runs(), lag(&memory), behind(&memory)), (None, 0, 999));
        assert_eq!(memory.take_lost_of_backlog(0, 50, 30), 20);
        assert_eq!(memory.take_losses(), []);
        memory.cursors.move_backlog(0, None);
        assert_eq!(memory.prune_runs(), Some(1000));
    }

    #[test]
    fn what_a_delivery_holds_of_a_backlog_is_not_lost() {
        let (mut memory, found) = found_late(&[("a", 20)]);
        memory.cursors.by_sink.insert("a".into(), Cursor::new(999, None));
        let backlogs = memory.backlogs(&found, 50);
        memory.adopt(found, backlogs);
        let lag = |memory: &Memory| memory.lag("a", &memory.cursors.by_sink["a"]);
        memory.cursors.backlog_was_read(0, 30);
        memory.numbers.oldest = 31;
        assert_eq!((lag(&memory), memory.take_losses()), (30, vec![]));
        memory.numbers.oldest = 36;
        assert_eq!((lag(&memory), memory.take_losses()), (25, vec![("a".into(), 5)]));
        assert_eq!(memory.take_lost_of_backlog(0, 35, 5), 0, "it is known");
        memory.cursors.backlogs_begin_again("another");
        assert_eq!(lag(&memory), 25);
        memory.cursors.backlogs_begin_again("a");
        assert_eq!(lag(&memory), 15, "nobody has them any more");
    }

    #[test]
    fn what_a_member_had_still_to_publish_in_files_opened_late_is_published() {
        for (cursors, at) in [
            (vec![("home", 5), (OUTBOX, 20), ("relay.own", 40)], Some(20)),
            // It was alone since.
            (vec![("home", 30), (OUTBOX, 20)], Some(30)),
            (vec![("home", 5), (OUTBOX, 50)], None),
            (vec![], None),
        ] {
            let (mut memory, found) = found_late(&cursors);
            memory.cursors.by_sink.insert(OUTBOX.into(), Cursor::new(1005, None));
            let published = found.published();
            let backlogs = memory.backlogs(&found, 50);
            assert!(backlogs.is_empty(), "{backlogs:?}");
            memory.adopt(found, backlogs);
            if let Some(published) = published {
                memory.put_back(published, 50);
            }
            let outbox = memory.cursors.by_sink[OUTBOX];
            assert_eq!((outbox.at, outbox.put_back), (at.unwrap_or(1005), at.is_some()));
        }
        let (_, mut found) = found_late(&[]);
        found.cursors.unknown = true;
        assert_eq!(found.published(), Some(0));
    }

    #[test]
    fn cursors_are_written_when_they_are_due_and_not_with_every_event() {
        let mut memory = Memory::new(10, vec![(1, None)], 1, Health::Sound);
        memory.cursors.by_sink.insert("a".into(), Cursor::new(5, Some(4)));
        let soon = Duration::from_secs(1);
        assert!(memory.cursors.save_within(soon), "the writer is to be told");
        assert!(!memory.cursors.save_within(soon), "it knows");
        assert!(memory.cursors.save_within(Duration::ZERO), "at once is sooner");
        assert_eq!(memory.cursors.save_within.take(), Some(Duration::ZERO));
        memory.cursors.scheduled = true;
        assert!(!memory.cursors.save_within(soon));
        assert_eq!(memory.begin_write(10, 1000, false).cursors, []);
        assert!(memory.cursors.scheduled, "still to be saved");
        let write = memory.begin_write(10, 1000, true);
        assert_eq!(write.cursors, [("a".into(), 5)]);
        memory.written(&write, true);
        assert!(!memory.cursors.scheduled && memory.is_written());
    }
}
