//! What a receiver's answer means for an event.
//!
//! By the Standard Webhooks specification: 2xx accepts, 410 wants nothing more, 429 and the gateway
//! errors ask for patience, redirects are failures and are not followed.
//!
//! The one thing to know: a status that may be another one in a minute is never
//! [`Cause::Rejected`]; one that depends on the event or on the configuration is.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::{
    StatusCode,
    header::{HeaderMap, RETRY_AFTER},
};

use crate::{event::UnixMillis, sink::Cause};

/// Whether the event was accepted; `now` is for a `Retry-After` that is a date.
pub(super) fn judge(status: StatusCode, headers: &HeaderMap, now: UnixMillis) -> Result<(), Cause> {
    if status.is_success() {
        return Ok(());
    }
    // The status line's words may be the receiver's own; ours are known to be harmless in a log.
    let reason = format!("HTTP {status}");
    match status.as_u16() {
        300..=399 => {
            Err(Cause::Rejected { reason: format!("{reason}: redirects are not followed") })
        }
        410 => Err(Cause::Gone { reason }),
        // Too slow, too early, too many: the same request may be accepted later.
        408 | 425 | 429 | 500.. => Err(Cause::Busy { wait: retry_after(headers, now), reason }),
        _ => Err(Cause::Rejected { reason }),
    }
}

/// Seconds, or a date (RFC 9110 §10.2.3). A date in the past asks for no wait.
fn retry_after(headers: &HeaderMap, now: UnixMillis) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date: SystemTime = httpdate::parse_http_date(text).ok()?;
    let now = UNIX_EPOCH + Duration::from_millis(now);
    Some(date.duration_since(now).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    /// Tue, 14 Nov 2023 22:13:20 GMT.
    const NOW: UnixMillis = 1_700_000_000_000;

    #[test]
    fn every_status_has_its_meaning() {
        for (status, expected) in [
            (200, "accepted"),
            (202, "accepted"),
            (204, "accepted"),
            (299, "accepted"),
            (301, "rejected"),
            (302, "rejected"),
            (304, "rejected"),
            (307, "rejected"),
            (308, "rejected"),
            (400, "rejected"),
            (401, "rejected"),
            (404, "rejected"),
            (413, "rejected"),
            (422, "rejected"),
            (408, "busy"),
            (425, "busy"),
            (429, "busy"),
            (500, "busy"),
            (502, "busy"),
            (503, "busy"),
            (504, "busy"),
            (599, "busy"),
            (410, "gone"),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            let found = match judge(status, &HeaderMap::new(), NOW) {
                Ok(()) => "accepted",
                Err(Cause::Rejected { .. }) => "rejected",
                Err(Cause::Busy { wait: None, .. }) => "busy",
                Err(Cause::Denied { .. }) => "denied",
                Err(Cause::Gone { .. }) => "gone",
                Err(other) => panic!("{other}"),
            };
            assert_eq!(found, expected, "{status}");
        }
    }

    #[test]
    fn a_wait_is_read_in_both_forms() {
        for (text, expected) in [
            ("7", Some(7)),
            (" 120 ", Some(120)),
            ("0", Some(0)),
            ("Tue, 14 Nov 2023 22:13:50 GMT", Some(30)),
            ("Tuesday, 14-Nov-23 22:13:50 GMT", Some(30)),
            ("Tue, 14 Nov 2023 22:13:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
            ("1.5", None),
            ("", None),
        ] {
            let headers =
                HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_str(text).unwrap())]);
            for status in [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE] {
                let Err(Cause::Busy { wait, .. }) = judge(status, &headers, NOW) else {
                    panic!("{status}")
                };
                assert_eq!(wait, expected.map(Duration::from_secs), "{text:?}");
            }
        }
    }
}
