//! A client's event loop that may be given up at any time.
//!
//! Dropped while it writes, a poll of the client library would lose a packet that the library takes for
//! sent. So a poll that is given up is kept, and goes on with the next call.

use std::pin::Pin;

/// A client's event loop `L` whose polls give `T`.
pub(super) struct EventLoop<L, T> {
    resting: Option<Box<L>>,
    polling: Option<Polling<L, T>>,
}

type Polling<L, T> = Pin<Box<dyn Future<Output = (Box<L>, T)> + Send>>;

impl<L, T> EventLoop<L, T> {
    pub(super) fn new(events: L) -> Self {
        Self { resting: Some(Box::new(events)), polling: None }
    }

    /// Waits for what happens next; `poll` begins a poll where none is under way. Safe to drop. `None`: a
    /// poll has panicked, and the loop is gone with it.
    pub(super) async fn poll<F>(&mut self, poll: impl FnOnce(Box<L>) -> F) -> Option<T>
    where
        F: Future<Output = (Box<L>, T)> + Send + 'static,
    {
        if let Some(events) = self.resting.take() {
            self.polling = Some(Box::pin(poll(events)));
        }
        let (events, happened) = self.polling.as_mut()?.await;
        self.polling = None;
        self.resting = Some(events);
        Some(happened)
    }

    /// The loop, while no poll is under way.
    pub(super) fn resting(&mut self) -> Option<&mut L> {
        self.resting.as_deref_mut()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{sleep, timeout};

    use super::*;

    #[derive(Debug, Default, PartialEq, Eq)]
    struct Steps(Vec<u8>);

    /// A poll that takes three steps.
    async fn poll(mut steps: Box<Steps>) -> (Box<Steps>, usize) {
        for step in 0..3 {
            steps.0.push(step);
            sleep(Duration::from_millis(100)).await;
        }
        let count = steps.0.len();
        (steps, count)
    }

    #[tokio::test(start_paused = true)]
    async fn a_poll_that_is_given_up_goes_on_with_the_next() {
        let mut events = EventLoop::new(Steps::default());
        let mut given_up = 0;
        let count = loop {
            match timeout(Duration::from_millis(30), events.poll(poll)).await {
                Ok(count) => break count,
                Err(_) => given_up += 1,
            }
            assert!(events.resting().is_none());
        };
        assert!(given_up >= 9, "{given_up}");
        assert_eq!(count, Some(3));
        assert_eq!(events.resting(), Some(&mut Steps(vec![0, 1, 2])));
    }
}
