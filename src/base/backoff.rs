//! Waits between attempts: exponential, with full jitter, under a cap.
//!
//! Each wait is drawn evenly from nothing up to a ceiling that doubles with every attempt. The
//! ceilings come from `backon`, whose own jitter only adds to the wait and may exceed its cap, so the
//! drawing is done here.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// The waits of one thing that is tried again and again.
#[derive(Debug)]
pub struct Backoff {
    builder: ExponentialBuilder,
    cap: Duration,
    ceilings: ExponentialBackoff,
    random: fastrand::Rng,
    attempts: u32,
}

impl Backoff {
    /// Waits of at most `base`, then at most twice that, up to at most `cap`.
    pub fn new(base: Duration, cap: Duration) -> Self {
        Self::seeded(base, cap, fastrand::u64(..))
    }

    /// The same with a seed: the same seed gives the same waits.
    pub(crate) fn seeded(base: Duration, cap: Duration, seed: u64) -> Self {
        let base = base.clamp(Duration::from_millis(1), cap.max(Duration::from_millis(1)));
        let builder = ExponentialBuilder::new()
            .with_min_delay(base)
            .with_max_delay(cap.max(base))
            .with_factor(2.0)
            .without_max_times();
        Self {
            builder,
            cap: cap.max(base),
            ceilings: builder.build(),
            random: fastrand::Rng::with_seed(seed),
            attempts: 0,
        }
    }

    pub fn wait(&mut self) -> Duration {
        self.attempts = self.attempts.saturating_add(1);
        let ceiling = self.ceilings.next().unwrap_or(self.cap);
        ceiling.mul_f64(self.random.f64())
    }

    /// It worked: the next wait is a short one again.
    pub fn reset(&mut self) {
        self.ceilings = self.builder.build();
        self.attempts = 0;
    }

    /// Waits since it last worked.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    proptest::proptest! {
        #[test]
        fn no_wait_is_longer_than_its_ceiling(seed: u64, attempts in 1_u32..40) {
            let cap = 60 * SECOND;
            let mut backoff = Backoff::seeded(SECOND, cap, seed);
            for attempt in 0..attempts {
                let ceiling = SECOND.saturating_mul(1 << attempt.min(10)).min(cap);
                proptest::prop_assert!(backoff.wait() <= ceiling);
            }
            backoff.reset();
            proptest::prop_assert!(backoff.wait() <= SECOND);
        }
    }

    #[test]
    fn the_jitter_is_full() {
        let mut backoff = Backoff::seeded(SECOND, 60 * SECOND, 7);
        let waits: Vec<_> = (0..2000).map(|_| backoff.wait()).skip(10).collect();
        let share = |low: u32, high: u32| {
            let inside =
                waits.iter().filter(|wait| **wait >= low * SECOND && **wait < high * SECOND);
            f64::from(u32::try_from(inside.count()).unwrap()) / 1990.0
        };
        assert!((share(0, 15) - 0.25).abs() < 0.05, "a quarter of the waits in each quarter");
        assert!((share(45, 60) - 0.25).abs() < 0.05);
    }

    #[test]
    fn waits_are_counted_until_it_works() {
        let mut backoff = Backoff::seeded(SECOND, 60 * SECOND, 7);
        assert_eq!(backoff.attempts(), 0);
        for attempt in 1..=3 {
            backoff.wait();
            assert_eq!(backoff.attempts(), attempt);
        }
        backoff.reset();
        assert_eq!(backoff.attempts(), 0);
    }

    #[test]
    fn a_cap_below_the_first_wait_is_kept() {
        let longest = |base, cap| {
            let mut backoff = Backoff::seeded(base, cap, 7);
            (0..200).map(|_| backoff.wait()).max().unwrap()
        };
        assert!((SECOND / 2..=SECOND).contains(&longest(10 * SECOND, SECOND)));
        // Nothing, doubled, would stay nothing.
        assert!((SECOND / 2..=SECOND).contains(&longest(Duration::ZERO, SECOND)));
    }

    #[test]
    fn the_same_seed_gives_the_same_waits() {
        let waits = |seed| {
            let mut backoff = Backoff::seeded(SECOND, 60 * SECOND, seed);
            std::array::from_fn::<_, 20, _>(|_| backoff.wait())
        };
        assert_eq!(waits(1), waits(1));
        assert_ne!(waits(1), waits(2));
    }
}
