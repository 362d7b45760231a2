//! Opening the journal: the lock, the mark, the database, and where the numbers go on.

use std::path::{Path, PathBuf};

use tokio::time::Duration;
use tracing::{error, warn};

use super::{
    Health,
    age::{Ages, Anchor},
    channel_state::StateBudget,
    directory::{self, Inode, Lock},
    error::StoreError,
    mark::{Mark, MarkContent, Marked},
    memory::{Cursor, Memory},
    recovery,
    runs::assigned_between,
    store::Store,
};
use crate::base::{
    clock::{self, Moment, UnixMillis, millis_of},
    event::Seq,
};

/// What was found when the journal was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Opened {
    /// Events that had been written and are gone.
    pub lost: u64,
    /// Where a broken file was set aside.
    pub set_aside: Option<PathBuf>,
    /// When the relay last ran with this journal, by the wall clock as it was then.
    pub heartbeat: Option<UnixMillis>,
    /// How long it did not run. Within one boot of the machine no step of the wall clock touches this.
    pub downtime: Option<Duration>,
    /// Whether that is known, and not only what the wall clock says.
    pub downtime_is_certain: bool,
    /// Events that are there.
    pub events: u64,
    /// Sinks whose position was broken: they begin with the earliest event.
    pub cursors_lost: Vec<String>,
    /// Positions were lost with the names of their sinks: whichever sink has none begins with the
    /// earliest event.
    pub cursors_unknown: bool,
}

/// When the relay last ran, as far as only files say that which are opened late.
#[derive(Debug, Default)]
pub(super) enum LastRun {
    /// It was known at the start, or is reported.
    #[default]
    Known,
    Unknown,
    /// They have said it, at that moment.
    Found(Opened, Moment),
}

impl LastRun {
    /// This was found.
    pub(super) fn found(&mut self, opened: Opened) {
        if matches!(self, Self::Unknown) && opened.heartbeat.is_some() {
            *self = Self::Found(opened, Moment::now());
        }
    }

    /// What was found, as it would be found now.
    pub(super) fn take(&mut self) -> Option<Opened> {
        match std::mem::take(self) {
            Self::Found(opened, at) => {
                let downtime = opened.downtime.map(|time| time + at.elapsed());
                Some(Opened { downtime, ..opened })
            }
            before => {
                *self = before;
                None
            }
        }
    }
}

/// The files of an open journal, beside its database.
pub(super) struct JournalFiles {
    pub(super) mark: Mark,
    /// `None` while it is taken again.
    pub(super) lock: Option<Lock>,
    pub(super) ages: Ages,
    /// Which files they are.
    pub(super) inodes: Vec<Inode>,
    /// Which journal it is.
    pub(super) identity: u64,
}

/// Opens the files and begins a run in them; `begun` is the first number of one that goes on in memory
/// already. Where a later step fails, the same can be tried again.
pub(super) fn open_files(
    dir: &Path,
    always_sync: bool,
    begun: Option<Seq>,
) -> Result<(Store, JournalFiles, Memory, Opened), StoreError> {
    directory::make(dir)?;
    let lock = Some(directory::lock(dir)?);
    directory::restrict(dir);
    let (mut mark, content) = Mark::open(dir)?;
    let begin = |recovered| {
        directory::put_recovered_in_place(dir)?;
        let mut store = Store::open(dir, always_sync)?;
        let (memory, opened) = begin_run(&mut store, &content, begun, recovered)?;
        Ok::<_, StoreError>((store, memory, opened))
    };
    let (store, mut memory, mut opened) = match begin(false) {
        Err(error) if error.is_corrupt() => {
            let recovered = recovery::recover(dir, content.marked, None)?;
            let (store, memory, mut opened) = begin(true)?;
            opened.lost += recovered.lost;
            opened.set_aside = recovered.set_aside;
            opened.cursors_unknown = recovered.cursors_unknown;
            (store, memory, opened)
        }
        begun => begun?,
    };
    opened.heartbeat = opened.heartbeat.map(|at| at.saturating_sub(millis_of(content.unreported)));
    opened.downtime = opened.downtime.map(|time| time + content.unreported);
    if opened.lost > 0 {
        error!(lost = opened.lost, "events that were in the journal are gone");
    }
    // Where a sum is wrong, it may be the name that is broken.
    opened.cursors_unknown |= !opened.cursors_lost.is_empty();
    memory.cursors.unknown = opened.cursors_unknown;
    let ages = store.ages().clone();
    mark.set(Marked { last: memory.numbers.last, events: opened.events }, &ages)?;
    let (inodes, identity) = (directory::inodes(dir), store.identity()?);
    directory::restrict(dir);
    Ok((store, JournalFiles { mark, lock, ages, inodes, identity }, memory, opened))
}

/// Begins a run in the database. Reads all the rows that every start reads: a database of a
/// newer format is left untouched, and what is broken further inside is found when it is read.
fn begin_run(
    store: &mut Store,
    content: &MarkContent,
    begun: Option<Seq>,
    recovered: bool,
) -> Result<(Memory, Opened), StoreError> {
    go_on_with_time(store, content.anchor.as_ref())?;
    let mut opened = Opened::default();
    let first = store.bounds()?.map_or(0, |(first, _)| first);
    // What retention has removed was there.
    let last = store.last_kept()?;
    let cursors = store.cursors()?;
    let accepted = cursors.iter().filter_map(|cursor| cursor.seq).max().unwrap_or(0);
    // What a sink has accepted had a number, and what was marked as written had one.
    let known = content.marked.last.max(accepted);
    opened.lost = lost_at_start(store, first, last, accepted, content.marked, recovered)?;
    let next = store.begin_run(known, opened.lost, begun)?;
    let runs = store.runs()?;
    set_downtime(&mut opened, content.anchor.as_ref(), store.heartbeat()?);
    let oldest = store.bounds()?.map_or(next, |(first, _)| first);
    opened.events = assigned_between(&runs, oldest.saturating_sub(1), last);
    let mut memory = Memory::new(next, runs, oldest, Health::Sound);
    memory.received_before(store.first_from(last)?.map_or(0, |record| record.event.received));
    for saved in cursors {
        let sound = saved.seq.filter(|seq| *seq < next);
        let at = sound.unwrap_or_else(|| {
            warn!(
                sink = saved.sink,
                "the sink's position was broken; beginning with the earliest event"
            );
            opened.cursors_lost.push(saved.sink.clone());
            oldest.saturating_sub(1)
        });
        // It holds back retention until it is known which sinks there are: see `Journal::sinks`. A broken one is
        // written again.
        memory.cursors.by_sink.insert(saved.sink.into(), Cursor::new(at, sound));
    }
    memory.set_backlogs(store.replays()?);
    memory.count_letters(store.letters_of_sinks()?);
    memory.budget = StateBudget::of(store.state_sizes()?);
    memory.disk.size = store.size()?;
    Ok((memory, opened))
}

/// How many events are missing at the end.
fn lost_at_start(
    store: &Store,
    first: Seq,
    last: Seq,
    accepted: Seq,
    marked: Marked,
    recovered: bool,
) -> Result<u64, StoreError> {
    let runs = store.runs()?;
    let lost = if marked.last > last || recovered {
        // The write-ahead log was lost or cut, or the whole database; perhaps the runs with it.
        marked.events.saturating_sub(assigned_between(&runs, first.saturating_sub(1), last))
    } else {
        assigned_between(&runs, last, accepted)
    };
    // In front of the end only retention removes, or what a recovery has not found.
    let most = if recovered { u64::MAX } else { marked.last.max(accepted).saturating_sub(last) };
    Ok(lost.min(most))
}

fn set_downtime(opened: &mut Opened, anchor: Option<&Anchor>, heartbeat: Option<UnixMillis>) {
    opened.heartbeat = anchor.map(|anchor| anchor.wall).or(heartbeat);
    opened.downtime_is_certain = anchor.is_some_and(Anchor::is_of_this_boot);
    opened.downtime = match (anchor, opened.heartbeat) {
        (Some(anchor), _) => Some(anchor.ago()),
        (None, Some(at)) => clock::now().checked_sub(at).map(Duration::from_millis),
        (None, None) => None,
    };
}

/// Carries the journal's time on from where it stood, and never back.
fn go_on_with_time(store: &mut Store, anchor: Option<&Anchor>) -> Result<(), StoreError> {
    let anchor = match (anchor, store.last_time()?) {
        (Some(anchor), Some((time, _))) => {
            Some(Anchor { time: anchor.time.max(time), ..anchor.clone() })
        }
        (Some(anchor), None) => Some(anchor.clone()),
        // The mark is lost: the last event is the last word.
        (None, Some((time, wall))) => {
            Some(Anchor { time, wall, since_boot: 0, boot: String::new(), off: None })
        }
        (None, None) => None,
    };
    let ages = Ages::from_here(anchor.as_ref(), store.offs()?);
    store.set_offs(ages.offs())?;
    store.set_ages(ages);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As after an attempt that failed when it had begun the run.
    #[test]
    fn files_are_opened_late_with_the_same_numbers_however_often() {
        let dir = tempfile::tempdir().unwrap();
        // A run before, which did not end in order.
        drop(open_files(dir.path(), false, None).unwrap());
        let first = clock::now_micros();
        for _ in 0..3 {
            let (_, _, found, opened) = open_files(dir.path(), false, Some(first)).unwrap();
            assert_eq!((found.numbers.last + 1, opened.lost), (first, 0));
            assert_eq!(found.numbers.runs.last(), Some(&(first, None)));
        }
        // A run of which nothing is known in memory leaves out what that one may have assigned.
        let (_, _, found, _) = open_files(dir.path(), false, None).unwrap();
        assert!(found.numbers.last > first + 100_000, "{}", found.numbers.last);
    }

    #[test]
    fn files_that_have_gone_beyond_the_numbers_in_memory_stay_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let (store, ..) = open_files(dir.path(), false, Some(5_000_000)).unwrap();
        let before = store.runs().unwrap();
        drop(store);
        for _ in 0..3 {
            let late = open_files(dir.path(), false, Some(1000)).map(|_| ());
            assert!(matches!(late, Err(StoreError::Numbers)), "{late:?}");
        }
        assert_eq!(Store::open_reader(dir.path()).unwrap().runs().unwrap(), before);
    }
}
