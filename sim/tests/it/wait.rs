//! Waiting for a condition with a deadline.

use std::time::Duration;

/// How often a condition is checked.
const POLL: Duration = Duration::from_millis(5);

/// Waits until `condition` yields something; panics with `what` after `deadline`.
pub(crate) async fn until<T>(
    what: &str,
    deadline: Duration,
    mut condition: impl AsyncFnMut() -> Option<T>,
) -> T {
    let end = tokio::time::Instant::now() + deadline;
    loop {
        if let Some(found) = condition().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < end, "not within {deadline:?}: {what}");
        tokio::time::sleep(POLL).await;
    }
}
