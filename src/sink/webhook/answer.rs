//! What a receiver's answer means for an event.
//!
//! By the Standard Webhooks specification 2xx accepts, 410 wants nothing more, and everything else is a
//! failure that is tried again. What is tried again and how depends on what the status speaks of:
//!
//! | status | it speaks of | meaning |
//! |---|---|---|
//! | 2xx | | accepted |
//! | 400, 413, 422, 431 | the body or the headers of this event | rejected: a dead letter |
//! | 3xx, 401, 402, 403, 404, 405, 406, 407, 411, 414, 415, 421, 426, 428, 451, 511 | the address, the login, the form of all requests | denied: the sink is held |
//! | 408, 409, 423, 424, 425, 429, 5xx | the receiver, now | busy: the same again |
//! | 410 | the receiver, for good | gone |
//! | all others | nobody knows | busy: the same again |
//!
//! 414, 415 and 451 are no fault of the event: address, media type and place are the same for all of them.
//! A receiver that names a time (`Retry-After`) asks for patience, whatever the status, except where it
//! speaks of the event's content.
//!
//! Only [`Cause::Rejected`] takes an event out of the queue, so only a status that
//! can be about nothing but this event is rejected.

use hyper::{StatusCode, header::HeaderMap};

use crate::{
    base::clock::{self, UnixMillis},
    sink::Cause,
};

/// Whether the event was accepted; `now` is for a `Retry-After` that is a date.
pub(super) fn judge(status: StatusCode, headers: &HeaderMap, now: UnixMillis) -> Result<(), Cause> {
    if status.is_success() {
        return Ok(());
    }
    let wait = clock::retry_after(headers, now);
    // The status line's words may be the receiver's own; ours are known to be harmless in a log.
    let reason = |hint: &str| match hint {
        "" => format!("HTTP {status}"),
        hint => format!("HTTP {status}: {hint}"),
    };
    let denied = |hint: &str| Err(Cause::Denied { reason: reason(hint) });
    let busy = |hint: &str| Err(Cause::Busy { wait, reason: reason(hint) });
    match status.as_u16() {
        400 | 422 | 431 => Err(Cause::Rejected { reason: reason("") }),
        413 if wait.is_none() => Err(Cause::Rejected { reason: reason("") }),
        410 => Err(Cause::Gone { reason: reason("") }),
        300..=399 => denied("redirects are not followed; `url` must be the final address"),
        // Rate limits and maintenance pages come with any status.
        400..=499 if wait.is_some() => busy(""),
        401 => denied("the receiver wants another login; see `bearer_token`, `headers`, `secret`"),
        402 | 403 => {
            denied("the receiver does not allow it; see `bearer_token`, `headers`, `secret`")
        }
        404 => denied("the receiver knows no such path; see `url`"),
        405 => denied("the receiver does not take this method; see `method` and `url`"),
        406 | 411 | 415 | 426 | 428 => denied("the receiver wants requests of another form"),
        407 => denied("a proxy on the way wants a login"),
        414 => denied("the receiver finds `url` too long"),
        421 => denied("the receiver does not serve this host; see `url`"),
        451 => denied("the receiver may not serve this address"),
        511 => denied("the network wants a login before it lets anything through"),
        // Too slow, too early, too many, in conflict: the same request may be accepted later.
        408 | 409 | 423 | 424 | 425 | 429 | 500.. => busy(""),
        _ => busy("no answer that says what is wrong"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hyper::header::{HeaderValue, RETRY_AFTER};

    use super::*;

    /// Tue, 14 Nov 2023 22:13:20 GMT.
    const NOW: UnixMillis = 1_700_000_000_000;

    #[test]
    fn each_status_is_classified() {
        for (status, expected) in [
            (200, "accepted"),
            (202, "accepted"),
            (204, "accepted"),
            (206, "accepted"),
            (299, "accepted"),
            (300, "denied"),
            (301, "denied"),
            (302, "denied"),
            (303, "denied"),
            (304, "denied"),
            (307, "denied"),
            (308, "denied"),
            (401, "denied"),
            (402, "denied"),
            (403, "denied"),
            (404, "denied"),
            (405, "denied"),
            (406, "denied"),
            (407, "denied"),
            (411, "denied"),
            (414, "denied"),
            (415, "denied"),
            (421, "denied"),
            (426, "denied"),
            (428, "denied"),
            (451, "denied"),
            (400, "rejected"),
            (413, "rejected"),
            (422, "rejected"),
            (431, "rejected"),
            (101, "busy"),
            (408, "busy"),
            (409, "busy"),
            (412, "busy"),
            (416, "busy"),
            (417, "busy"),
            (418, "busy"),
            (423, "busy"),
            (424, "busy"),
            (425, "busy"),
            (429, "busy"),
            (444, "busy"),
            (499, "busy"),
            (500, "busy"),
            (501, "busy"),
            (502, "busy"),
            (503, "busy"),
            (504, "busy"),
            (505, "busy"),
            (507, "busy"),
            (520, "busy"),
            (521, "busy"),
            (599, "busy"),
            (600, "busy"),
            (999, "busy"),
            (511, "denied"),
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
    fn every_form_of_retry_after_is_read() {
        for (text, expected) in [
            (" 120 ", Some(120)),
            ("5, 5", Some(5)),
            ("Tue, 14 Nov 2023 22:13:50 GMT", Some(30)),
            ("2023-11-14T22:13:50Z", Some(30)),
            ("99999999999999999999", Some(24 * 3600)),
            ("soon", None),
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

    #[test]
    fn retry_after_makes_it_busy() {
        let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static("9"))]);
        for (status, patience) in [
            (403, true),
            (404, true),
            (413, true),
            (401, true),
            (400, false),
            (422, false),
            (302, false),
        ] {
            let answer = judge(StatusCode::from_u16(status).unwrap(), &headers, NOW);
            assert_eq!(matches!(answer, Err(Cause::Busy { .. })), patience, "{status}: {answer:?}");
        }
    }
}
