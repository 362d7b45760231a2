//! How long events may have waited in the kernel while this process stood still, as with SIGSTOP or in a container
//! that is paused. They are read when it goes on, and look new: another member's copies may be older than the log
//! recognises.

use std::time::Duration;

use crate::base::clock::Moment;

/// So long after a standstill all that the kernel held is read.
const READ: Duration = Duration::from_secs(30);

/// The last standstill: when it ended, and how long it was.
#[derive(Debug, Default)]
pub(super) struct Standstill(Option<(Moment, Duration)>);

impl Standstill {
    /// This process has stood still until now, for that long.
    pub(super) fn ended(&mut self, time: Duration) {
        // Not all may be read that came during the one before.
        let time = time + self.unread(time);
        self.0 = Some((Moment::now(), time));
    }

    /// How long an event may have waited before it was read, which was so long ago.
    pub(super) fn unread(&self, age: Duration) -> Duration {
        let (ended, time) = self.0.unwrap_or((Moment::now(), Duration::ZERO));
        if ended.elapsed() <= age + READ { time } else { Duration::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_read_soon_after_a_standstill_is_as_old_as_that() {
        let long = Duration::from_mins(10);
        let mut standstill = Standstill::default();
        assert_eq!(standstill.unread(Duration::ZERO), Duration::ZERO);
        advance(long).await;
        standstill.ended(long);
        assert_eq!(standstill.unread(Duration::ZERO), long);
        advance(READ).await;
        assert_eq!(standstill.unread(Duration::ZERO), long);
        advance(Duration::from_secs(1)).await;
        assert_eq!(standstill.unread(Duration::ZERO), Duration::ZERO, "this one is new");
        assert_eq!(standstill.unread(Duration::from_secs(1)), long, "this one was read before");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_read_before_the_next_standstill_is_as_old_as_both() {
        let (long, short) = (Duration::from_mins(10), Duration::from_secs(40));
        let mut standstill = Standstill::default();
        standstill.ended(long);
        advance(Duration::from_secs(1) + short).await;
        standstill.ended(short);
        assert_eq!(standstill.unread(Duration::ZERO), long + short);
        advance(READ + Duration::from_secs(1) + short).await;
        standstill.ended(short);
        assert_eq!(standstill.unread(Duration::ZERO), short, "the others are read");
    }
}
