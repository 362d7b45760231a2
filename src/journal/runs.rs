//! Runs: which numbers were assigned to events.

use crate::base::event::Seq;

/// Numbers that are left out after a run that did not end in order: more than it can have assigned
/// beyond those that are known of it. A million is a minute at 16,000 a second.
pub(super) const LEFT_OUT: Seq = 1_000_000;

/// An opening of the journal: the first number that it assigned, and the last where it has ended.
pub type Run = (Seq, Option<Seq>);

/// How many numbers after `after`, through `through`, were assigned to events in these runs, which stand in
/// order. A number counts once, also where a damaged file has runs that overlap.
pub fn assigned_between(runs: &[Run], after: Seq, through: Seq) -> u64 {
    let mut counted = after;
    let inside = |(first, last): &Run| {
        let before = counted.max(first.saturating_sub(1));
        counted = counted.max(last.unwrap_or(through).min(through));
        counted.saturating_sub(before)
    };
    runs.iter().map(inside).sum()
}

/// The runs as they show in events of these numbers, in order: first and last of each row. A small jump
/// is a loss inside a run; only the end of a run leaves out many.
pub(super) fn from_rows(rows: impl Iterator<Item = (Seq, Seq)>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (first, last) in rows {
        match runs.last_mut() {
            // A former version left out no fewer than half of them.
            Some((_, Some(end))) if *end + LEFT_OUT / 2 > first => *end = last,
            _ => runs.push((first, Some(last))),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_were_left_out_are_not_counted() {
        let runs = [(1, Some(10)), (1_000_001, Some(1_000_005)), (2_000_001, None)];
        assert_eq!(assigned_between(&runs, 0, 2_000_003), 10 + 5 + 3);
        assert_eq!(assigned_between(&runs, 10, 1_000_000), 0);
        assert_eq!(assigned_between(&runs, 7, 1_000_002), 3 + 2);
        assert_eq!(assigned_between(&runs, 1_000_003, 1_999_999), 2);
        assert_eq!(assigned_between(&runs, 2_000_002, 2_000_002), 0);
        assert_eq!(assigned_between(&[], 0, 100), 0);
        let damaged = [(1, Some(300)), (301, Some(600)), (451, Some(900)), (500, Some(40))];
        assert_eq!(assigned_between(&damaged, 0, 2000), 900);
    }

    #[test]
    fn runs_are_seen_in_the_events_themselves() {
        let rows = [(1, 10), (11, 12), (40, 50), (1_000_051, 1_000_060)];
        assert_eq!(from_rows(rows.into_iter()), [(1, Some(50)), (1_000_051, Some(1_000_060))]);
        // From half of what is left out on, it is the end of a run.
        let rows = |first| from_rows([(1, 10), (first, first)].into_iter()).len();
        assert_eq!((rows(10 + LEFT_OUT / 2 - 1), rows(10 + LEFT_OUT / 2)), (1, 2));
    }
}
