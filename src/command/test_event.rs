//! The command `relay/test`: a test event through every sink.

use super::{ErrorKind, Failure};
use crate::{
    config::Config,
    delivery::test_event::{SinkOutcome, TestKind, events, send},
};

/// Sends it. A sink that does not want it has not failed.
pub(super) async fn execute(config: &Config, channel: &str, kind: TestKind) -> Result<(), Failure> {
    let test = events(config, Some(channel), kind, None).map_err(|why| Failure::bad(404, why))?;
    let results = send(config, &[], &test.events).await;
    let failed: Vec<String> = results
        .iter()
        .filter(|result| matches!(result.outcome, SinkOutcome::Failed(_)))
        .map(|result| format!("{}: {}", result.sink, result.outcome))
        .collect();
    if failed.is_empty() {
        return Ok(());
    }
    Err(Failure::new(ErrorKind::Failed, 502, failed.join("; ")))
}
