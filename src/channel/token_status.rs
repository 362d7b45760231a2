//! How the token of each channel is, for the status page and the metrics.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde::Serialize;

use crate::{
    astro::token::TokenFacts,
    base::{
        clock::{self, Moment, UnixMillis},
        metrics,
        sync::lock,
    },
};

/// When a token ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    /// It says so itself.
    At(UnixMillis),
    /// So long after that moment: the wall clock may be wrong, or step.
    After(Moment, Duration),
}

impl Expiry {
    /// As a time.
    pub fn at(self) -> UnixMillis {
        match self {
            Self::At(at) => at,
            Self::After(..) => clock::now().saturating_add(clock::millis_of(self.left())),
        }
    }

    /// How long it can still be used.
    pub fn left(self) -> Duration {
        match self {
            Self::At(at) => Duration::from_millis(at.saturating_sub(clock::now())),
            Self::After(since, lifetime) => lifetime.saturating_sub(since.elapsed()),
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenStatus {
    pub kind: &'static str,
    pub facts: TokenFacts,
    pub expiry: Option<Expiry>,
    /// Whether it is refreshed ahead of that.
    pub is_refreshed: bool,
    pub refreshed_at: Option<UnixMillis>,
    /// Why it cannot be refreshed.
    pub error: Option<String>,
    /// Whether that is more than a hiccup.
    pub is_failing: bool,
    /// What does not fit what is asked for.
    pub doubts: Vec<String>,
}

/// A token as `/status` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct ShownToken {
    pub kind: &'static str,
    /// The channel that it belongs to, by its own account or the server's.
    pub channel: Option<String>,
    pub provider: Option<String>,
    pub scopes: Option<Vec<String>>,
    pub expires_at: Option<UnixMillis>,
    /// Whether the relay refreshes it.
    pub refreshed: bool,
    pub refreshed_at: Option<UnixMillis>,
    pub error: Option<String>,
    pub doubts: Vec<String>,
    /// Why the relay is not ready, where that is for the token.
    #[serde(skip)]
    pub reason: Option<String>,
}

impl TokenStatus {
    fn shown(&self) -> ShownToken {
        let Self { kind, facts, expiry, is_refreshed, refreshed_at, error, is_failing, doubts } =
            self.clone();
        let TokenFacts { channel, provider, scopes } = facts;
        let expires_at = expiry.map(Expiry::at);
        let reason = error.as_ref().filter(|_| is_failing).map(|error| {
            let end = expires_at.map(|at| format!("; it ends at {}", clock::rfc3339(at)));
            format!("cannot be refreshed: {error}{}", end.unwrap_or_default())
        });
        ShownToken {
            kind,
            channel,
            provider,
            scopes,
            expires_at,
            refreshed: is_refreshed,
            refreshed_at,
            error,
            doubts,
            reason,
        }
    }
}

/// By label.
#[derive(Debug, Default)]
pub struct Tokens(Mutex<BTreeMap<Arc<str>, TokenStatus>>);

impl Tokens {
    pub(super) fn set(&self, label: &Arc<str>, status: Option<TokenStatus>) {
        let mut tokens = lock(&self.0);
        if let Some(status) = status {
            tokens.insert(Arc::clone(label), status);
        } else {
            tokens.remove(label);
            metrics::no_token(label);
        }
    }

    pub fn snapshot(&self) -> BTreeMap<String, ShownToken> {
        lock(&self.0).iter().map(|(label, status)| (label.to_string(), status.shown())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_token_does_not_move_and_a_hiccup_is_no_reason() {
        let expiry = Expiry::After(Moment::now(), Duration::from_mins(10));
        tokio::time::advance(Duration::from_mins(4)).await;
        assert_eq!(expiry.left(), Duration::from_mins(6));
        tokio::time::advance(Duration::from_mins(7)).await;
        assert_eq!(expiry.left(), Duration::ZERO);
        let error = Some("HTTP 503".to_owned());
        let mut status = TokenStatus { error, ..TokenStatus::default() };
        assert_eq!(status.shown().reason, None);
        (status.is_failing, status.expiry) = (true, Some(Expiry::At(0)));
        let reason = "cannot be refreshed: HTTP 503; it ends at 1970-01-01T00:00:00Z";
        assert_eq!(status.shown().reason.as_deref(), Some(reason));
    }
}
