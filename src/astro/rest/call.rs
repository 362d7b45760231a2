//! One request to the REST API, with its attempts.
//!
//! Reading is tried again a few times where the server or the network is at fault. Changing is not:
//! a change whose answer was lost may have been made, and [`RestError::Unknown`] says so instead of
//! making it twice. Only where it has certainly not been made (no connection, 429) is it tried again.
//!
//! An error body is never trusted to be JSON. The vendor's own page shows one without its opening brace.

use std::time::Duration;

use reqwest::{RequestBuilder, StatusCode, header::HeaderValue};
use serde_json::{Map, Value};
use tokio::time::timeout;

use super::RestError;
use crate::{
    base::{backoff::Backoff, clock},
    config::{Secret, TokenType},
};

/// Attempts at one call, at most: enough for a hiccup; what lasts is for the caller to sit out.
const ATTEMPTS: u32 = 3;

/// The ceiling of the first wait between two attempts, and of any.
const WAIT: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

/// A server that asks for more patience than this is reported to the caller instead of waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// The largest answer that is read of a session or a history: a session has some ten kilobytes, a page of
/// activities a hundred.
pub(super) const LARGEST: usize = 8 * 1024 * 1024;

/// The longest text of an error that is handed on.
const LONGEST_TEXT: usize = 300;

/// One call, with its attempts.
pub(super) struct Call<'a> {
    /// What the request holds and no message may show.
    pub(super) secrets: &'a [&'a Secret],
    /// Whether it changes something.
    pub(super) change: bool,
    pub(super) deadline: Duration,
    /// The largest answer that is read.
    pub(super) largest: usize,
}

impl Call<'_> {
    pub(super) async fn make(
        &self,
        request: impl Fn() -> RequestBuilder,
    ) -> Result<Vec<u8>, RestError> {
        let mut backoff = Backoff::new(WAIT.0, WAIT.1);
        loop {
            let error = match self.attempt(request()).await {
                Ok(body) => return Ok(body),
                Err(error) => error,
            };
            let wait = backoff.wait().max(error.retry_after().unwrap_or_default());
            if backoff.attempts() >= ATTEMPTS || wait > PATIENCE || !self.may_repeat(&error) {
                return Err(error);
            }
            tracing::debug!(error = error.describe(), ?wait, "a REST call is tried again");
            clock::sleep(wait).await;
        }
    }

    /// Whether making the call again can help, and can do no harm.
    fn may_repeat(&self, error: &RestError) -> bool {
        match error {
            RestError::Unreachable(_) | RestError::Refused { status: 429, .. } => true,
            RestError::Refused { status, .. } => !self.change && (*status == 408 || *status >= 500),
            _ => false,
        }
    }

    /// One attempt.
    pub(super) async fn attempt(&self, request: RequestBuilder) -> Result<Vec<u8>, RestError> {
        match timeout(self.deadline, self.exchange(request)).await {
            Ok(outcome) => outcome,
            Err(late) => Err(self.unanswered(false, late.into())),
        }
    }

    async fn exchange(&self, request: RequestBuilder) -> Result<Vec<u8>, RestError> {
        // The address is left out of messages: a base address may be somebody's secret.
        let lost = |error: reqwest::Error| {
            let never_sent = error.is_connect() || error.is_builder();
            self.unanswered(never_sent, error.without_url().into())
        };
        let mut response = request.send().await.map_err(lost)?;
        let status = response.status();
        let retry_after = clock::retry_after(response.headers(), clock::now());
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(lost)? {
            if body.len() + chunk.len() > self.largest {
                return Err(RestError::Unreadable("it is larger than any answer should be".into()));
            }
            body.extend_from_slice(&chunk);
        }
        if status.is_success() {
            return Ok(body);
        }
        let text = error_text(&body, status, self.secrets);
        // A gateway that has lost the server behind it does not know what that did.
        if self.change && matches!(status.as_u16(), 502 | 504) {
            return Err(RestError::Unknown(format!("HTTP {}: {text}", status.as_u16()).into()));
        }
        Err(RestError::Refused { status: status.as_u16(), text, retry_after })
    }

    fn unanswered(
        &self,
        never_sent: bool,
        source: Box<dyn std::error::Error + Send + Sync>,
    ) -> RestError {
        if self.change && !never_sent {
            RestError::Unknown(source)
        } else {
            RestError::Unreachable(source)
        }
    }
}

/// The header that carries a token. An access token of `OAuth2` has a scheme of its own. For an API key
/// the sources differ, and nobody has confirmed any: it goes as a JWT does.
pub(super) fn authorization(token: &Secret, kind: TokenType) -> Result<HeaderValue, RestError> {
    let scheme = match kind {
        TokenType::Oauth2 | TokenType::Oauth => "OAuth",
        TokenType::Jwt | TokenType::Apikey => "Bearer",
    };
    let text = format!("{scheme} {}", token.expose());
    let mut value = HeaderValue::from_str(&text).map_err(|_| RestError::Token)?;
    value.set_sensitive(true);
    Ok(value)
}

/// The text of an error body, whatever its shape: the `message` of an object, also where
/// the opening brace is missing; else its text in one line. A secret that it repeats is taken out.
fn error_text(body: &[u8], status: StatusCode, secrets: &[&Secret]) -> String {
    let text = String::from_utf8_lossy(body);
    let text = text.trim();
    let object = |text: &str| serde_json::from_str::<Map<String, Value>>(text).ok();
    let message = object(text).or_else(|| object(&format!("{{{text}"))).and_then(|object| {
        let word = |key| object.get(key).and_then(Value::as_str).map(str::to_owned);
        // OAuth2 has a code in `error`, and perhaps words beside it.
        let words = match (word("error"), word("error_description")) {
            (Some(code), Some(words)) => Some(format!("{code}: {words}")),
            (code, _) => code,
        };
        word("message").or(words)
    });
    // A page of HTML says less than its status.
    let html = text.starts_with('<');
    let said = match message {
        Some(message) => message,
        None if text.is_empty() || html => status.canonical_reason().unwrap_or("no reason").into(),
        None => text.to_owned(),
    };
    let said = secrets.iter().fold(said, |said, secret| secret.hidden_in(&said));
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    said.chars().map(plain).take(LONGEST_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_an_error_is_found_whatever_its_shape() {
        let token = Secret::new("tok-canary");
        let said = |body: &str| error_text(body.as_bytes(), StatusCode::UNAUTHORIZED, &[&token]);
        for (body, expected) in [
            (r#"{"statusCode":401,"error":"Unauthorized","message":"no token"}"#, "no token"),
            ("    \"statusCode\": 401,\n    \"message\": \"no token\"\n}", "no token"),
            (r#"{"error":"Unauthorized"}"#, "Unauthorized"),
            (
                r#"{"error":"invalid_grant","error_description":"no tok-canary"}"#,
                "invalid_grant: no …",
            ),
            (r#"{"message":{"deep":1}}"#, r#"{"message":{"deep":1}}"#),
            ("", "Unauthorized"),
            ("<html><body>502</body></html>", "Unauthorized"),
            ("upstream\nis gone", "upstream is gone"),
            ("bad token tok-canary", "bad token …"),
            (r#"{"message":"tok-canary is bad"}"#, "… is bad"),
        ] {
            assert_eq!(said(body), expected, "{body}");
        }
        assert_eq!(said(&"x".repeat(10_000)).len(), LONGEST_TEXT);
    }
}
