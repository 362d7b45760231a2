//! How long an event has waited, whatever the wall clock does.
//!
//! The journal has a time of its own: milliseconds that only grow, and that pass while the relay runs,
//! while it does not run, and while the machine sleeps. Each row of events carries it. From one run to
//! the next within one boot of the machine it is carried on by the time since the boot; a step of the
//! wall clock does not touch it. Only over a boot there is nothing but the wall clock. How long the
//! machine was off is therefore not part of the journal's time: it is a sum beside it, which is worked
//! out again at each look as long as the machine stays on, because a machine without a battery clock
//! learns the time late.
//!
//! What joins two runs is the [`Anchor`], which stands in `journal.mark`.
//!
//! What the wall clock alone says is bounded. It never makes an event younger
//! than it is known to be, and never older by more than [`LONGEST_OFF`]; and nothing is deleted for it
//! before the clock had [`SETTLING`] to be set.

use std::time::Duration;

use crate::base::{
    clock::{self, Moment, UnixMillis, millis_of},
    event::Waited,
};

/// Journal time in milliseconds.
pub(super) type Time = u64;

/// Where a journal's time begins: ten years, so that what a former version wrote, without a time, lies
/// before it.
const BEGIN: Time = 10 * 365 * 24 * 3600 * 1000;

/// A machine that was off for longer was not: its clock is wrong.
const LONGEST_OFF: u64 = 5 * 365 * 24 * 3600 * 1000;

/// How long a machine has after a boot to learn the time, before events are deleted by it.
const SETTLING: Duration = Duration::from_mins(10);

/// Times without this many milliseconds between them are the same time.
const SAME: u64 = 60_000;

/// A moment at which the relay ran, on every clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Anchor {
    /// The journal's time.
    pub(super) time: Time,
    /// The wall clock.
    pub(super) wall: UnixMillis,
    /// Milliseconds since the machine was booted.
    pub(super) since_boot: u64,
    /// Which boot that was; empty where the system does not say.
    pub(super) boot: String,
    /// When the machine went off before that boot.
    pub(super) off: Option<Off>,
}

/// The machine went off at some time, and when it had last been seen before that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Off {
    pub(super) time: Time,
    pub(super) wall: UnixMillis,
}

/// What ages are worked out from.
#[derive(Debug, Clone)]
pub(super) struct Ages {
    /// The journal's time at `at`.
    base: Time,
    at: Moment,
    boot: String,
    /// The last time the machine was off: as long as the wall clock says now.
    last_off: Option<Off>,
    /// The times before that: when, and for how long.
    offs: Vec<(Time, u64)>,
}

impl Default for Ages {
    fn default() -> Self {
        Self::from_here(None, Vec::new())
    }
}

impl Ages {
    /// Goes on behind what was written down. `offs` are the times that the machine was off before the
    /// last one that the anchor knows of.
    pub(super) fn from_here(anchor: Option<&Anchor>, offs: Vec<(Time, u64)>) -> Self {
        let (boot, since_boot, at) = (clock::boot_id(), clock::since_boot(), Moment::now());
        let since_boot = millis_of(since_boot);
        let Some(anchor) = anchor else {
            return Self { base: BEGIN, at, boot, last_off: None, offs };
        };
        let mut ages = Self { base: anchor.time + 1, at, boot, last_off: anchor.off, offs };
        if let Some(passed) = anchor.passed(&ages.boot, since_boot) {
            ages.base += passed;
        } else {
            // What the boot before was off for is settled by its last word on the time.
            if let Some(off) = anchor.off {
                let length = off_for(off, anchor.time, anchor.wall);
                ages.offs.push((off.time, length));
            }
            ages.last_off = Some(Off { time: anchor.time, wall: anchor.wall });
        }
        ages
    }

    /// The journal's time.
    pub(super) fn now(&self) -> Time {
        self.base.saturating_add(millis_of(self.at.elapsed()))
    }

    /// What a later run, or another process, needs to go on from here.
    pub(super) fn anchor(&self) -> Anchor {
        Anchor {
            time: self.now(),
            wall: clock::now(),
            since_boot: millis_of(clock::since_boot()),
            boot: self.boot.clone(),
            off: self.last_off,
        }
    }

    /// The times that the machine was off before the last: to be written down.
    pub(super) fn offs(&self) -> &[(Time, u64)] {
        &self.offs
    }

    /// How long ago that time was.
    pub(super) fn age(&self, time: Time) -> Duration {
        let now = self.now();
        Duration::from_millis(now.saturating_sub(time) + self.off_since(time, now))
    }

    /// The same, for deleting what is too old.
    pub(super) fn age_to_delete(&self, time: Time) -> Duration {
        if self.at.elapsed() >= SETTLING {
            return self.age(time);
        }
        let before = self.offs.iter().filter(|(at, _)| *at >= time);
        let before: u64 = before.map(|(_, length)| length).sum();
        Duration::from_millis(self.now().saturating_sub(time) + before)
    }

    /// The time at which something happened that is so old, if the machine was never off.
    pub(super) fn time(&self, age: Duration) -> Time {
        self.now().saturating_sub(millis_of(age))
    }

    /// The age of an event that a former version wrote, which knew the wall clock only. Where that was
    /// ahead, the event is at least as old as the journal's own time.
    fn age_by_wall(&self, received: UnixMillis) -> Duration {
        match clock::now().checked_sub(received) {
            Some(said) if said <= LONGEST_OFF => Duration::from_millis(said),
            Some(_) | None => self.age(BEGIN),
        }
    }

    /// An event of that age, as it is held in memory.
    pub(super) fn waited(&self, time: Option<Time>, received: UnixMillis) -> Waited {
        Waited::already(time.map_or_else(|| self.age_by_wall(received), |time| self.age(time)))
    }

    fn off_since(&self, time: Time, now: Time) -> u64 {
        let before = self.offs.iter().filter(|(at, _)| *at >= time);
        let last = self.last_off.filter(|off| off.time >= time);
        let last = last.map_or(0, |off| off_for(off, now, clock::now()));
        before.map(|(_, length)| length).sum::<u64>() + last
    }
}

impl Anchor {
    /// Whether the machine was not booted since.
    pub(super) fn is_of_this_boot(&self) -> bool {
        self.passed(&clock::boot_id(), millis_of(clock::since_boot())).is_some()
    }

    /// How long the relay did not run, as far as that is known: exactly within one boot, by the wall
    /// clock otherwise.
    pub(super) fn ago(&self) -> Duration {
        let passed = self.passed(&clock::boot_id(), millis_of(clock::since_boot()));
        let by_wall = || {
            let said = clock::now().saturating_sub(self.wall);
            if said > LONGEST_OFF { 0 } else { said }
        };
        Duration::from_millis(passed.unwrap_or_else(by_wall))
    }

    /// The time that has passed since, where the machine was not booted in between.
    fn passed(&self, boot: &str, since_boot: u64) -> Option<u64> {
        let same = !boot.is_empty() && self.boot == boot;
        same.then(|| since_boot.checked_sub(self.since_boot)).flatten()
    }

    /// As a line of the mark, always of the same length.
    pub(super) fn line(&self) -> String {
        let off = self.off.unwrap_or(Off { time: 0, wall: 0 });
        let boot: String = self.boot.chars().filter(char::is_ascii_graphic).take(36).collect();
        let boot = if boot.is_empty() { "-".to_owned() } else { boot };
        summed(&format!(
            "{:020} {:020} {:020} {boot:36} {:020} {:020}",
            self.time, self.wall, self.since_boot, off.time, off.wall
        ))
    }

    /// Reads such a line; `None` where it is not whole.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let mut words = verified(line)?.split_whitespace();
        let number = |words: &mut std::str::SplitWhitespace<'_>| words.next()?.parse().ok();
        let (time, wall) = (number(&mut words)?, number(&mut words)?);
        let since_boot = number(&mut words)?;
        let boot = words.next()?.trim_start_matches('-').to_owned();
        let off = Off { time: number(&mut words)?, wall: number(&mut words)? };
        let off = (off.time > 0).then_some(off);
        Some(Self { time, wall, since_boot, boot, off })
    }
}

/// A line of the mark, with the sum of its text.
pub(super) fn summed(text: &str) -> String {
    format!("{text} {:08x}\n", crc32fast::hash(text.as_bytes()))
}

/// The text of such a line; `None` where it is not whole.
pub(super) fn verified(line: &str) -> Option<&str> {
    let (text, sum) = line.trim_end().rsplit_once(' ')?;
    let is_whole = u32::from_str_radix(sum, 16).ok()? == crc32fast::hash(text.as_bytes());
    is_whole.then_some(text)
}

/// How long the machine was off, if `wall` is the time at the journal's time `now`.
fn off_for(off: Off, now: Time, wall: UnixMillis) -> u64 {
    let on_since = now.saturating_sub(off.time);
    let length = wall.saturating_sub(on_since).saturating_sub(off.wall);
    // A wall clock from before the machine went off, or from another age of the world, is wrong.
    if length > LONGEST_OFF { 0 } else { length }
}

/// The wall clock's time for an event: it follows the clock back by no more than a minute's worth of
/// corrections, so that what is ordered by it stays in order, and takes its word beyond that.
pub(super) fn received(clock: UnixMillis, last: UnixMillis) -> UnixMillis {
    if last > clock && last - clock <= SAME { last } else { clock }
}

/// A time as a row holds it, with a check of its own: the row's sum does not cover it, so that a former
/// version still reads the row.
pub(super) fn pack(time: Time) -> i64 {
    let check = crc32fast::hash(&time.to_le_bytes()) & 0x7fff;
    i64::try_from((time << 15) | u64::from(check)).unwrap_or(0)
}

/// The other direction; `None` where the check is wrong.
pub(super) fn unpack(packed: i64) -> Option<Time> {
    let packed = u64::try_from(packed).ok()?;
    let time = packed >> 15;
    let check = u64::from(crc32fast::hash(&time.to_le_bytes()) & 0x7fff);
    (packed & 0x7fff == check).then_some(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;

    fn anchor(time: Time, wall: UnixMillis) -> Anchor {
        Anchor { time, wall, since_boot: 0, boot: "another boot".into(), off: None }
    }

    fn about(age: Duration, hours: u64) -> bool {
        let (age, expected) = (millis_of(age), hours * HOUR);
        age + 100 >= expected && age < expected + 10_000
    }

    #[test]
    fn within_a_boot_the_wall_clock_does_not_matter() {
        let ages = Ages::from_here(None, Vec::new());
        let then = ages.now();
        let now = millis_of(clock::since_boot());
        for wall in [0, clock::now() + 1000 * HOUR] {
            let anchor = Anchor { wall, since_boot: now, boot: clock::boot_id(), ..ages.anchor() };
            let later = Ages::from_here(Some(&anchor), Vec::new());
            assert!(about(later.age(then), 0), "{wall}: {:?}", later.age(then));
            assert!(about(anchor.ago(), 0));
        }
    }

    #[test]
    fn over_a_boot_the_wall_clock_tells_and_is_bounded() {
        let then = BEGIN + 5 * HOUR;
        for (off, told) in [(3, 3), (0, 0), (6 * 365 * 24, 0)] {
            let wall = clock::now() - off * HOUR;
            let ages = Ages::from_here(Some(&anchor(then, wall)), Vec::new());
            assert!(about(ages.age(then - 2 * HOUR), 2 + told), "off for {off} hours");
            assert!(about(ages.age(ages.now()), 0), "what comes now is young");
            assert!(about(ages.age_to_delete(then - 2 * HOUR), 2), "the clock may yet be set");
        }
        // A clock that is behind says nothing.
        let ages = Ages::from_here(Some(&anchor(then, clock::now() + 9 * HOUR)), Vec::new());
        assert!(about(ages.age(then - 2 * HOUR), 2));
    }

    #[test]
    fn two_boots_add_up() {
        let first = anchor(BEGIN + HOUR, clock::now() - 20 * HOUR);
        let second = Anchor {
            time: BEGIN + 2 * HOUR,
            wall: clock::now() - 5 * HOUR,
            off: Some(Off { time: first.time, wall: first.wall }),
            ..first.clone()
        };
        let ages = Ages::from_here(Some(&second), Vec::new());
        // On for an hour, off for 14, on for an hour, off for 5.
        assert!(about(ages.age(BEGIN), 1 + 14 + 1 + 5), "{:?}", ages.age(BEGIN));
        assert_eq!(ages.offs().len(), 1);
        assert!(about(ages.age(first.time + 1), 6));
    }

    #[test]
    fn an_anchor_is_believed_only_whole() {
        for off in [None, Some(Off { time: 3, wall: 4 })] {
            for boot in ["", "8f8a8bb1-0f51-4ba5-a2f0-6f0e05d4b5ba"] {
                let anchor = Anchor { time: 1, wall: 2, since_boot: 9, boot: boot.into(), off };
                let line = anchor.line();
                assert_eq!(line.len(), 151);
                assert_eq!(Anchor::parse(&line), Some(anchor));
                assert_eq!(Anchor::parse(&line.replace("01 ", "11 ")), None);
            }
        }
        assert_eq!(Anchor::parse(""), None);
    }

    #[test]
    fn a_row_s_time_is_believed_only_whole() {
        let time = BEGIN + 12_345;
        assert_eq!(unpack(pack(time)), Some(time));
        for bit in 0..50 {
            assert_ne!(unpack(pack(time) ^ (1 << bit)), Some(time));
        }
    }

    #[test]
    fn a_wrong_future_time_does_not_stay() {
        assert_eq!(received(100_000, 0), 100_000);
        assert_eq!(received(100_000, 100_500), 100_500, "a small correction");
        assert_eq!(
            received(100_000, 9_000_000),
            100_000,
            "the clock was wrong, and is right again"
        );
    }
}
