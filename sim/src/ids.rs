//! Ids and times of the simulated Astro's messages: ULIDs that only grow, whole seconds of RFC 3339.

use ulid::Ulid;

use crate::clock::{self, UnixMillis};

/// Makes ids, and remembers the text of the current second.
#[derive(Debug)]
pub(crate) struct Ids {
    previous: Ulid,
    random: fastrand::Rng,
    second: UnixMillis,
    ts: String,
}

impl Ids {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            previous: Ulid::nil(),
            random: fastrand::Rng::with_seed(seed),
            second: UnixMillis::MAX,
            ts: String::new(),
        }
    }

    /// The next id: greater than every one before, whatever the clock does.
    pub(crate) fn next(&mut self, now: UnixMillis) -> Ulid {
        // Half of the random range is left for counting on within one millisecond.
        let fresh = Ulid::from_parts(now, self.random.u128(..) >> 49);
        self.previous = if now > self.previous.timestamp_ms() {
            fresh
        } else {
            self.previous.increment().unwrap_or(fresh)
        };
        self.previous
    }

    /// The time as Astro writes it: its examples have whole seconds.
    pub(crate) fn ts(&mut self, now: UnixMillis) -> &str {
        let second = now / 1000;
        if second != self.second {
            self.second = second;
            self.ts = clock::rfc3339(second * 1000);
        }
        &self.ts
    }
}

/// 24 hex digits, as every id of the REST API has.
pub(crate) fn hex_id(random: &mut fastrand::Rng) -> String {
    format!("{:024x}", random.u128(..) >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_grow_also_when_the_clock_does_not() {
        let mut ids = Ids::new(7);
        let made: Vec<Ulid> = [5, 5, 5, 4, 6, 1].into_iter().map(|now| ids.next(now)).collect();
        assert!(made.is_sorted_by(|a, b| a < b));
        assert_eq!(made[4].timestamp_ms(), 6);
    }

    #[test]
    fn times_are_whole_seconds() {
        let mut ids = Ids::new(7);
        assert_eq!(ids.ts(1_708_008_762_999), "2024-02-15T14:52:42Z");
        assert_eq!(ids.ts(1_708_008_763_000), "2024-02-15T14:52:43Z");
    }
}
