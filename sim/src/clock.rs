//! The wall clock, and the times in Astro's messages.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Milliseconds since the Unix epoch, UTC.
pub type UnixMillis = u64;

pub(crate) fn now() -> UnixMillis {
    UnixMillis::try_from(since_epoch().as_millis()).unwrap_or(UnixMillis::MAX)
}

/// For latencies measured between two processes of one machine.
pub(crate) fn now_micros() -> u64 {
    u64::try_from(since_epoch().as_micros()).unwrap_or(u64::MAX)
}

#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the wall clock")]
fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO)
}

/// As RFC 3339 in UTC, with milliseconds where there are any.
pub(crate) fn rfc3339(millis: UnixMillis) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_default()
}

/// Reads RFC 3339; `None` for anything else, and for times before 1970.
pub(crate) fn parse_rfc3339(text: &str) -> Option<UnixMillis> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    UnixMillis::try_from(time.unix_timestamp_nanos() / 1_000_000).ok()
}
