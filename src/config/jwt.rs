//! What a JSON web token says of itself: when it expires, and whose it is.
//!
//! Nothing is verified, and no token is refused for it: the local clock may be wrong, and the gateway's
//! answer is what counts. It serves a warning ahead of time.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};

/// The end of the year 9999, in seconds since the Unix epoch. A later time is in milliseconds, mostly.
pub const LATEST: u64 = 253_402_300_799;

/// The token's `exp`, in seconds since the Unix epoch; `None` for what is not a JWT, has none, or has one
/// behind [`LATEST`].
pub fn expiry(token: &str) -> Option<u64> {
    stated_expiry(token).filter(|seconds| *seconds <= LATEST)
}

/// The same, whatever it says.
pub fn stated_expiry(token: &str) -> Option<u64> {
    let claims = claims(token)?;
    let exp = claims.get("exp")?;
    // RFC 7519, section 2: a NumericDate may have a fraction.
    exp.as_u64().or_else(|| {
        let seconds = exp.as_f64().filter(|seconds| *seconds >= 0.0)?;
        format!("{seconds:.0}").parse().ok()
    })
}

/// The channel that the token says it belongs to. The vendor's tokens have the claim; no document
/// promises it, so a configured room comes first.
pub fn channel(token: &str) -> Option<String> {
    Some(claims(token)?.get("channel")?.as_str()?.to_owned())
}

/// Whether it is one: three parts, of which the first two are JSON.
pub fn is_one(token: &str) -> bool {
    let object = |part: &str| {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(part.trim_end_matches('='));
        bytes.is_ok_and(|bytes| {
            serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&bytes).is_ok()
        })
    };
    let parts: Vec<&str> = token.split('.').collect();
    matches!(&*parts, [head, claims, sum] if object(head) && object(claims) && !sum.is_empty())
}

/// What it says of itself, as JSON.
pub fn claims(token: &str) -> Option<serde_json::Value> {
    let mut parts = token.trim().split('.');
    let (_, payload, _) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let payload = BASE64_URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?;
    serde_json::from_slice(&payload).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_expiry_is_read_where_there_is_one() {
        let token = |claims: &str| format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims));
        for (token, expected) in [
            (token(r#"{"exp":1700000000}"#), Some(1_700_000_000)),
            (token(r#"{"exp":1700000000.25}"#), Some(1_700_000_000)),
            (token(r#"{"sub":"x"}"#), None),
            (token(r#"{"exp":"tomorrow"}"#), None),
            (token(r#"{"exp":-5}"#), None),
            (token(r#"{"exp":253402300799}"#), Some(LATEST)),
            (token(r#"{"exp":1700000000000}"#), None),
            ("not a token".into(), None),
            ("a.b.c".into(), None),
            ("..".into(), None),
            (format!("{}.d", token(r#"{"exp":1}"#)), None),
        ] {
            assert_eq!(expiry(&token), expected, "{token}");
        }
    }

    #[test]
    fn the_channel_is_read_where_it_is_said() {
        let token = |claims: &str| format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims));
        assert_eq!(channel(&token(r#"{"channel":"abc"}"#)).as_deref(), Some("abc"));
        assert_eq!(channel(&token(r#"{"channel":7}"#)), None);
        assert_eq!(channel("opaque"), None);
    }
}
