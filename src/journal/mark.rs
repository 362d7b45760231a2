//! `journal.mark`: a small file beside the database, written over in place with each commit and never
//! waited for. It says what was in the database, and when the relay last ran on every clock, so that
//! after a crash both what is missing and the gap can be reported. An idle relay writes nothing else.

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::fs::FileExt,
    path::Path,
    sync::{Arc, Mutex},
};

use tokio::time::{Duration, Instant};

use super::{
    age::{Ages, Anchor, summed, verified},
    directory,
    error::StoreError,
};
use crate::base::{
    clock::{Moment, millis_of},
    event::Seq,
    sync::lock,
};

/// How often an idle relay writes down that it runs. Each time costs the disk some blocks, however
/// little is written; after a crash of an idle relay the gap that is reported begins as much too early.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Bytes of the file, at most.
const MOST: u64 = 512;

#[derive(Debug)]
pub(super) struct Mark {
    file: File,
    unreported: UnreportedGap,
    /// What stands in it, and since when.
    written: Option<(Marked, Instant)>,
}

/// What was in the database.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Marked {
    /// The last number that was written.
    pub(super) last: Seq,
    /// Events that were there then.
    pub(super) events: u64,
}

/// What a mark says; what is broken in it, it does not say.
#[derive(Debug, Default)]
pub(super) struct MarkContent {
    pub(super) marked: Marked,
    pub(super) anchor: Option<Anchor>,
    /// How long something had been missing that was not yet reported.
    pub(super) unreported: Duration,
}

/// For how long something has been missing that is not yet reported: the next start shall take the relay
/// to have been away since then.
#[derive(Debug, Clone, Default)]
pub(super) struct UnreportedGap(Arc<Mutex<Option<(Moment, Duration)>>>);

impl UnreportedGap {
    pub(super) fn set(&self, time: Option<Duration>) {
        let since = time.map(|time| (Moment::now(), time));
        *lock(&self.0) = since;
    }

    fn line(&self) -> String {
        let since = *lock(&self.0);
        let time = since.map_or(Duration::ZERO, |(at, before)| before + at.elapsed());
        summed(&format!("{:020}", millis_of(time)))
    }

    fn parse(line: &str) -> Option<Duration> {
        verified(line)?.parse().ok().map(Duration::from_millis)
    }
}

/// What the mark says, for who only reads.
pub(super) fn read(dir: &Path) -> MarkContent {
    File::open(directory::mark(dir)).and_then(|file| parse(&file)).unwrap_or_default()
}

fn parse(file: &File) -> io::Result<MarkContent> {
    let mut bytes = Vec::new();
    file.take(MOST).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.lines();
    Ok(MarkContent {
        marked: lines.next().and_then(Marked::parse).unwrap_or_default(),
        anchor: lines.next().and_then(Anchor::parse),
        unreported: lines.next().and_then(UnreportedGap::parse).unwrap_or_default(),
    })
}

impl Mark {
    /// Opens it or makes it, and answers what it says.
    pub(super) fn open(dir: &Path) -> Result<(Self, MarkContent), StoreError> {
        let file = directory::open_private(&directory::mark(dir))?;
        let content = parse(&file).map_err(failed)?;
        Ok((Self { file, unreported: UnreportedGap::default(), written: None }, content))
    }

    /// The same mark, which writes down from now on what is not yet reported.
    pub(super) fn with(self, unreported: UnreportedGap) -> Self {
        Self { unreported, ..self }
    }

    /// Writes it down, without waiting for the disk.
    pub(super) fn set(&mut self, marked: Marked, ages: &Ages) -> Result<(), StoreError> {
        let lines = marked.line() + &ages.anchor().line() + &self.unreported.line();
        self.file.write_all_at(lines.as_bytes(), 0).map_err(failed)?;
        self.written = Some((marked, Instant::now()));
        Ok(())
    }

    /// The same where it says something else, or is older than a heartbeat.
    pub(super) fn refresh(&mut self, marked: Marked, ages: &Ages) -> Result<(), StoreError> {
        let fresh = |(known, at): (Marked, Instant)| known == marked && at.elapsed() < HEARTBEAT;
        if self.written.is_some_and(fresh) { Ok(()) } else { self.set(marked, ages) }
    }

    /// Waits until the disk has it.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        self.file.sync_data().map_err(failed)
    }
}

fn failed(source: io::Error) -> StoreError {
    StoreError::Io { path: "journal.mark".into(), source }
}

impl Marked {
    /// Always of the same length, so that nothing of an older one is left behind it.
    fn line(self) -> String {
        let Self { last, events } = self;
        format!("{last:020} {events:020} {:08x}\n", self.sum())
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let marked =
            Self { last: words.next()?.parse().ok()?, events: words.next()?.parse().ok()? };
        let sum = u32::from_str_radix(words.next()?, 16).ok()?;
        (sum == marked.sum()).then_some(marked)
    }

    fn sum(self) -> u32 {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&self.last.to_le_bytes());
        crc.update(&self.events.to_le_bytes());
        crc.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_believed_only_whole() {
        let marked = Marked { last: 12_345, events: 678 };
        let line = marked.line();
        assert_eq!(Marked::parse(&line), Some(marked));
        assert_eq!(Marked { last: u64::MAX, events: u64::MAX }.line().len(), line.len());
        for broken in
            ["", "trash", &line[..30], &line.replace('8', "9"), &line.replace("678", "679")]
        {
            assert_eq!(Marked::parse(broken), None, "{broken:?}");
        }
    }
}
