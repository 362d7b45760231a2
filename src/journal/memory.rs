//! What the journal knows in memory: the newest events, how far they are written, how far each sink has
//! come, and what the disk has still to get. All of it is behind one lock, under which nothing touches
//! the disk.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use super::{
    Batch, Health, LeftBehind, age,
    channel_state::StateBudget,
    mark::Marked,
    pending::PendingChanges,
    ring::Ring,
    runs::{Run, assigned_between},
    store::{Letters, Replay, Write},
};
use crate::base::{
    clock::UnixMillis,
    event::{Event, Record, Seq, Waited},
};

/// Cursors of the relay's own parts begin like this.
const OWN: &str = "relay.";

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
    /// What sinks have still to get behind their cursors: replays that nobody asked for.
    backlogs: Vec<Replay>,
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
        self.backlogs.retain(|backlog| backlog.number != number || position.is_some());
        for backlog in self.backlogs.iter_mut().filter(|backlog| backlog.number == number) {
            backlog.position = position.unwrap_or(backlog.position);
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor {
    pub(super) at: Seq,
    /// How far it is on disk; `None`: not at all, or not known.
    pub(super) saved: Option<Seq>,
    /// Whether a configured sink uses it.
    pub(super) active: bool,
    /// Through which event its delivery has read: what it has not delivered of that, it holds itself.
    pub(super) read: Seq,
    /// Through which event it was reported what is gone.
    pub(super) reported: Seq,
    /// How long the event after it waits, where only the disk still has that.
    pub(super) waits: Option<Waited>,
}

#[derive(Debug, Default)]
pub(super) struct Disk {
    pub(super) health: Health,
    /// The file's content is broken.
    pub(super) corrupt: bool,
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
        Self { at, saved, active: true, read: at, reported: at, waits: None }
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
    fn next_kept(&self, after: Seq) -> Seq {
        let next = after + 1;
        let in_memory = self.ring.first().unwrap_or(self.numbers.last + 1).max(next);
        let on_disk = self.numbers.oldest.max(next);
        if on_disk <= self.numbers.written { on_disk.min(in_memory) } else { in_memory }
    }

    /// What is gone of the events that configured sinks have still to get, as far as that was not reported
    /// before: how many of each sink. From now on it counts as reported.
    pub(super) fn take_losses(&mut self) -> Vec<(Arc<str>, u64)> {
        let sinks = self.cursors.by_sink.iter();
        let sinks = sinks.filter(|(sink, cursor)| cursor.active && !sink.starts_with(OWN));
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
        lost.into_iter().map(|(sink, _, count)| (sink, count)).collect()
    }

    /// A sink has found `lost` events missing through `before`: how many of them were not reported before.
    /// From now on they are.
    pub(super) fn take_lost(&mut self, sink: &str, before: Seq, lost: u64) -> u64 {
        let Some(cursor) = self.cursors.by_sink.get_mut(sink) else { return lost };
        let after = cursor.at.max(cursor.reported);
        cursor.reported = cursor.reported.max(before);
        self.assigned(after, before).min(lost)
    }

    /// What waits for each sink that is no longer configured.
    pub(super) fn left_behind(&self) -> Vec<LeftBehind> {
        let mut left: BTreeMap<&str, LeftBehind> = BTreeMap::new();
        for (sink, cursor) in self.cursors.by_sink.iter().filter(|(_, cursor)| !cursor.active) {
            let after = self.next_kept(cursor.at) - 1;
            let events = self.assigned(after, self.numbers.last);
            let whole = self.assigned(cursor.at, after) == 0;
            left.insert(
                sink,
                LeftBehind { sink: sink.to_string(), events, whole, dead_letters: 0 },
            );
        }
        let is_active = |sink: &str| self.cursors.by_sink.get(sink).is_some_and(|one| one.active);
        for (sink, letters) in self.letters.iter().filter(|(sink, _)| !is_active(sink)) {
            let of_sink = left.entry(sink).or_insert_with(|| LeftBehind {
                sink: sink.clone(),
                whole: true,
                ..LeftBehind::default()
            });
            of_sink.dead_letters = letters.count;
        }
        let something = |one: &LeftBehind| one.events > 0 || one.dead_letters > 0;
        left.into_values().filter(|one| something(one) && !one.sink.starts_with(OWN)).collect()
    }

    /// Events that were not written, and that not every sink has.
    pub(super) fn missing_at_end(&self) -> u64 {
        let Numbers { last, written, .. } = self.numbers;
        let others = self.cursors.by_sink.iter().filter(|(sink, _)| !sink.starts_with(OWN));
        let had = others.map(|(_, cursor)| cursor.at).min().unwrap_or(written);
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

    /// Forgets runs that ended before everything that is kept and before every cursor. Answers where
    /// that is, if there were any.
    pub(super) fn prune_runs(&mut self) -> Option<Seq> {
        let runs = &mut self.numbers.runs;
        // A cursor that no sink uses any more counts as long as that costs little.
        let all = runs.len() < MANY_RUNS;
        let cursors = self.cursors.by_sink.values().filter(|cursor| all || cursor.active);
        let before = cursors.map(|cursor| cursor.at + 1).fold(self.numbers.oldest, Seq::min);
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
        let Some(first) = self.ring.first() else { return Vec::new() };
        let behind = self.cursors.by_sink.iter().filter(|(_, cursor)| cursor.at + 1 < first);
        behind.map(|(sink, cursor)| (Arc::clone(sink), cursor.at)).collect()
    }

    /// Through which event every sink has got everything.
    pub(super) fn delivered(&self) -> Seq {
        let Cursors { by_sink, backlogs, .. } = &self.cursors;
        let active = by_sink.values().filter(|cursor| cursor.active).map(|cursor| cursor.at);
        let is_active = |sink: &str| by_sink.get(sink).is_some_and(|cursor| cursor.active);
        let backlogs = backlogs.iter().filter(|backlog| is_active(&backlog.sink));
        let positions = active.chain(backlogs.map(|backlog| backlog.position));
        positions.min().unwrap_or(self.numbers.last)
    }

    /// These replays are on disk.
    pub(super) fn set_backlogs(&mut self, mut replays: Vec<Replay>) {
        replays.retain(|replay| replay.at == 0);
        self.cursors.backlogs = replays;
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
            let active = live.iter().filter(|(_, cursor)| cursor.active);
            let unknown = active.filter(|(sink, _)| !known.contains_key(*sink));
            positions.extend(unknown.map(|(sink, _)| (Arc::clone(sink), earliest)));
        }
        // The relay's own parts follow what is new.
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

    /// Takes over what was found in them, and what was asked for of it.
    pub(super) fn adopt(&mut self, found: Self, requested: Vec<Replay>) {
        self.cursors.backlogs = found.cursors.backlogs;
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
                cursor.active = false;
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
        memory.cursors.by_sink.get_mut("removed").unwrap().active = false;
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
    fn what_waits_for_removed_sinks_is_told_apart_from_what_is_gone() {
        let mut memory = Memory::new(101, vec![(1, None)], 41, Health::Sound);
        for (sink, at) in [("home", 50), ("late", 70), ("old", 20), ("done", 100), ("relay.own", 9)]
        {
            memory.cursors.by_sink.insert(sink.into(), Cursor::new(at, Some(at)));
        }
        let removed = memory.cursors.by_sink.iter_mut().filter(|(sink, _)| &***sink != "home");
        removed.for_each(|(_, cursor)| cursor.active = false);
        for (sink, count) in [("home", 3), ("late", 0), ("shop", 5)] {
            memory.letters.insert(sink.to_owned(), Letters { count, bytes: 0 });
        }
        let left = |sink: &str, events, whole, dead_letters| LeftBehind {
            sink: sink.to_owned(),
            events,
            whole,
            dead_letters,
        };
        assert_eq!(
            memory.left_behind(),
            [left("late", 30, true, 0), left("old", 60, false, 0), left("shop", 0, true, 5)]
        );
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
        assert!(memory.cursors.by_sink["a"].active && !memory.cursors.by_sink["gone"].active);
        assert_eq!(memory.delivered(), 20, "it has still to get the backlog");
        memory.cursors.move_backlog(0, Some(40));
        assert_eq!(memory.delivered(), 40);
        memory.cursors.move_backlog(0, None);
        assert_eq!(memory.delivered(), 1005);
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
