//! The wall clock, in one place.
//!
//! Timers use tokio's clock, which tests can pause; this one is for the times that are written down.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::event::UnixMillis;

/// Now. A clock before 1970 reads as 0.
pub fn now() -> UnixMillis {
    UnixMillis::try_from(since_epoch().as_millis()).unwrap_or(UnixMillis::MAX)
}

/// Now in microseconds, for latencies measured between two processes of one machine.
pub fn now_micros() -> u64 {
    u64::try_from(since_epoch().as_micros()).unwrap_or(u64::MAX)
}

#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the wall clock")]
fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO)
}

/// As RFC 3339 in UTC with milliseconds: `2026-11-22T04:13:00.120Z`.
pub fn rfc3339(millis: UnixMillis) -> String {
    let time = i128::from(millis) * 1_000_000;
    OffsetDateTime::from_unix_timestamp_nanos(time)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_default()
}

/// Reads RFC 3339; `None` for anything else, and for times before 1970.
pub fn parse_rfc3339(text: &str) -> Option<UnixMillis> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    UnixMillis::try_from(time.unix_timestamp_nanos() / 1_000_000).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_written() {
        for (text, millis) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2024-02-15T14:52:42Z", 1_708_008_762_000),
            ("2024-02-15T16:52:42.5+02:00", 1_708_008_762_500),
        ] {
            assert_eq!(parse_rfc3339(text), Some(millis), "{text}");
            assert_eq!(parse_rfc3339(&rfc3339(millis)), Some(millis), "{text}");
        }
        for text in ["", "yesterday", "2024-02-15", "1969-12-31T23:59:59Z"] {
            assert_eq!(parse_rfc3339(text), None, "{text}");
        }
    }
}
