//! One channel's token: what is known of it, and when something is to be done for it.

use std::{sync::Arc, time::Duration};

use tracing::{error, info, warn};

use super::refresh::{Refresher, Stopped};
use crate::{
    astro::{
        rest::{Rest, RestError, oauth::Granted},
        token::TokenFacts,
    },
    base::{
        backoff::Backoff,
        clock::{self, Moment, UnixMillis},
        metrics, text,
    },
    channel::token_status::{Expiry, TokenStatus},
    config::{Secret, TokenType, jwt},
    gateway::Account,
};

/// How often a token is read again: somebody may have replaced it, and the machine may have slept.
const RECHECK: Duration = Duration::from_mins(1);

/// How far ahead of its end a token is refreshed, at most: a day of attempts.
const AHEAD: Duration = Duration::from_hours(24);

/// Between two refreshes of a token there is at least this, whatever lifetime the server names.
const PACE: Duration = Duration::from_mins(1);

/// A refresh because the gateway refuses is made no more often than this: where it does not help, the
/// token is not what is wrong.
const REFUSED_PACE: Duration = Duration::from_hours(1);

/// The ceilings of the waits between two failed refreshes.
const WAIT: (Duration, Duration) = (Duration::from_secs(2), Duration::from_mins(5));

/// Failures in a row that are no hiccup any more.
const FAILING: u32 = 2;

/// The same while what is read has ended, does not fit, or is rejected by the server: somebody will replace
/// it.
const USELESS_RECHECK: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct HeldToken {
    label: Arc<str>,
    account: Account,
    topics: Vec<Arc<str>>,
    /// As it was read last.
    token: Option<Secret>,
    facts: TokenFacts,
    expiry: Option<Expiry>,
    /// How far ahead of that it is refreshed.
    ahead: Duration,
    refresher: Option<Refresher>,
    backoff: Backoff,
    refreshed: Option<(Moment, UnixMillis)>,
    /// The gateway refuses everything that is asked for with it, and it was not refreshed since.
    is_refused: bool,
    /// When it was last refreshed because of that.
    refused_refresh: Option<Moment>,
    error: Option<String>,
    is_failing: bool,
    doubts: Vec<String>,
}

/// What became of a look at a token.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attended {
    /// When to look again.
    pub(super) wait: Duration,
    /// There is a new token.
    pub(super) refreshed: bool,
}

impl HeldToken {
    pub(super) fn new(label: &Arc<str>, account: Account, topics: Vec<Arc<str>>) -> Self {
        Self {
            label: Arc::clone(label),
            refresher: Refresher::of(&account),
            account,
            topics,
            token: None,
            facts: TokenFacts::default(),
            expiry: None,
            ahead: AHEAD,
            backoff: Backoff::new(WAIT.0, WAIT.1),
            refreshed: None,
            is_refused: false,
            refused_refresh: None,
            error: None,
            is_failing: false,
            doubts: Vec::new(),
        }
    }

    /// The one of the same channel as it is configured now.
    pub(super) fn configured(self, account: Account, topics: Vec<Arc<str>>) -> Self {
        let mut next = Self::new(&self.label, account, topics);
        match (&mut next.refresher, self.refresher) {
            (Some(refresher), Some(earlier)) if refresher.has_files_of(&earlier) => {
                refresher.succeed(earlier);
            }
            (_, Some(earlier)) if earlier.has_unsaved() => {
                let error = "a refreshed token that could not be stored is lost: its files are no \
                             longer configured";
                error!(channel = %self.label, "{error}");
            }
            _ => {}
        }
        next
    }

    /// Whether there is a pair that is not stored yet.
    pub(super) fn has_unsaved(&self) -> bool {
        self.refresher.as_ref().is_some_and(Refresher::has_unsaved)
    }

    /// Whether it is the token of that channel as it is configured.
    pub(super) fn is_of(&self, account: &Account, topics: &[Arc<str>]) -> bool {
        (&self.account, &*self.topics) == (account, topics)
    }

    /// Whether a refresh may help where the gateway refuses, and is not being tried already.
    pub(super) fn may_help(&self) -> bool {
        let since = |at: Option<Moment>| at.map(Moment::elapsed);
        self.refresher.is_some()
            && !self.is_refused
            && since(self.refused_refresh).is_none_or(|ago| ago >= REFUSED_PACE)
            && since(self.refreshed.map(|(at, _)| at)).is_none_or(|ago| ago >= PACE)
    }

    /// Looks after it. `refused`: the gateway refuses everything that is asked for with it.
    pub(super) async fn attend(&mut self, rest: &Rest, refused: bool) -> Attended {
        if let Some(refresher) = &mut self.refresher {
            refresher.recover(&self.label).await;
        }
        match self.account.token.read_token().await {
            Ok(token) if self.token.as_ref() != Some(&token) => self.take_up(token, rest).await,
            Ok(_) => {}
            // Whoever needs it reports that.
            Err(_) => self.token = None,
        }
        self.is_refused |= refused;
        let recheck = self.recheck();
        let Some(wait) = self.due() else { return Attended { wait: recheck, refreshed: false } };
        let Some(refresher) = &mut self.refresher else {
            return Attended { wait: recheck, refreshed: false };
        };
        if !self.is_refused && !wait.is_zero() {
            // A failure from before the token was replaced.
            if self.error.is_some() {
                if refresher.is_rejected().await {
                    return Attended { wait: USELESS_RECHECK, refreshed: false };
                }
                self.clear_failure();
            }
            return Attended { wait: wait.min(recheck), refreshed: false };
        }
        match refresher.refresh(rest).await {
            Ok(granted) => self.renewed(granted),
            Err(stopped) => Attended { wait: self.failed(stopped), refreshed: false },
        }
    }

    /// When it is to be read again.
    fn recheck(&self) -> Duration {
        let has_ended = self.expiry.is_some_and(|expiry| expiry.left().is_zero());
        let is_useless = self.token.is_none() || has_ended || !self.doubts.is_empty();
        if is_useless { USELESS_RECHECK } else { RECHECK }
    }

    /// When it is to be refreshed; `None`: it is not.
    fn due(&self) -> Option<Duration> {
        let refresher = self.refresher.as_ref()?;
        if self.token.is_none() || refresher.has_unsaved() {
            return Some(Duration::ZERO);
        }
        let Some(expiry) = self.expiry else { return Some(RECHECK) };
        let wait = expiry.left().saturating_sub(self.ahead);
        let rest = self.refreshed.map(|(at, _)| PACE.saturating_sub(at.elapsed()));
        Some(wait.max(rest.unwrap_or_default()))
    }

    /// There is a token that was not known.
    async fn take_up(&mut self, token: Secret, rest: &Rest) {
        self.facts = TokenFacts::of_jwt(token.expose());
        (self.expiry, self.is_refused) = (None, false);
        match self.account.token_type {
            TokenType::Jwt => {
                let expiry = jwt::expiry(token.expose());
                self.expiry = expiry.map(|at| Expiry::At(at.saturating_mul(1000)));
            }
            TokenType::Oauth2 | TokenType::Oauth => self.validate(&token, rest).await,
            TokenType::Apikey => {}
        }
        self.token = Some(token);
        self.compare();
    }

    /// Asks the server what the token is good for. Where it does not say how long, and the token is
    /// refreshed, its file says when it was given.
    async fn validate(&mut self, token: &Secret, rest: &Rest) {
        let left = match rest.validate(token).await {
            Ok(said) => {
                let left = said.left;
                self.facts = TokenFacts::of_oauth(said);
                left
            }
            Err(RestError::Refused { status: 401, .. }) => Some(Duration::ZERO),
            Err(_) => None,
        };
        let left = match (left, &mut self.refresher) {
            (None, Some(refresher)) => Some(refresher.left_by_file().await),
            (left, _) => left,
        };
        self.expiry = left.map(|left| Expiry::After(Moment::now(), left));
    }

    /// Compares it with what is asked for. The log has the same doubt once.
    fn compare(&mut self) {
        let topics = self.topics.iter().map(|topic| &**topic);
        let doubts = self.facts.doubts(self.account.room.as_deref(), topics);
        for doubt in doubts.iter().filter(|doubt| !self.doubts.contains(doubt)) {
            warn!(channel = %self.label, doubt, "the channel's token does not fit what is asked for");
        }
        self.doubts = doubts;
    }

    fn renewed(&mut self, granted: Granted) -> Attended {
        let Granted { access_token, lifetime, scopes, .. } = granted;
        let now = Moment::now();
        self.token = Some(access_token);
        self.expiry = Some(Expiry::After(now, lifetime));
        self.ahead = ahead(lifetime);
        self.refreshed = Some((now, clock::now()));
        if scopes.is_some() {
            self.facts.scopes = scopes;
            self.compare();
        }
        if std::mem::take(&mut self.is_refused) {
            self.refused_refresh = Some(now);
        }
        self.clear_failure();
        metrics::token_refresh(&self.label, "refreshed");
        info!(channel = %self.label, ?lifetime, "the channel's token was refreshed");
        Attended { wait: self.due().unwrap_or(RECHECK).min(RECHECK), refreshed: true }
    }

    fn clear_failure(&mut self) {
        self.backoff.reset();
        (self.error, self.is_failing) = (None, false);
    }

    /// Reports a failure, and answers when to try again. The log has the same one once.
    fn failed(&mut self, stopped: Stopped) -> Duration {
        let (why, is_final, asked) = match stopped {
            Stopped::Rejected(why) => (why, true, None),
            Stopped::Later { why, asked } => (why, false, asked),
        };
        let why = text::excerpt(&why, text::EXCERPT);
        let wait = self.backoff.wait().max(asked.unwrap_or_default());
        if self.error.as_ref() != Some(&why) {
            metrics::token_refresh(&self.label, "failed");
            let channel = &self.label;
            if is_final {
                error!(%channel, error = why, "the channel's token cannot be refreshed: it is rejected");
            } else {
                warn!(%channel, error = why, "the channel's token cannot be refreshed; it is tried again");
            }
        }
        self.is_failing = is_final || self.backoff.attempts() >= FAILING;
        self.error = Some(why);
        if is_final { USELESS_RECHECK } else { wait }
    }

    pub(super) fn status(&self) -> TokenStatus {
        TokenStatus {
            kind: self.account.token_type.as_str(),
            facts: self.facts.clone(),
            expiry: self.expiry,
            is_refreshed: self.refresher.is_some(),
            refreshed_at: self.refreshed.map(|(_, at)| at),
            error: self.error.clone(),
            is_failing: self.is_failing,
            doubts: self.doubts.clone(),
        }
    }
}

/// How far ahead of its end a token of that lifetime is refreshed: a day, or where it lives for less than
/// four days, a quarter of that.
fn ahead(lifetime: Duration) -> Duration {
    AHEAD.min(lifetime / 4)
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};

    use super::*;
    use crate::{
        config::{Astro, SecretRef},
        gateway::RefreshSettings,
    };

    #[test]
    fn a_token_is_refreshed_a_day_or_a_quarter_of_its_life_ahead() {
        for (lifetime, expected) in [
            (Duration::from_hours(168), Duration::from_hours(24)),
            (Duration::from_hours(96), Duration::from_hours(24)),
            (Duration::from_hours(4), Duration::from_hours(1)),
            (Duration::ZERO, Duration::ZERO),
        ] {
            assert_eq!(ahead(lifetime), expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn when_it_is_due_does_not_hang_on_the_wall_clock() {
        let file = |name: &str| SecretRef::File(name.into());
        let settings = RefreshSettings {
            client_id: "app".into(),
            client_secret: SecretRef::Value("s".into()),
            refresh_token: file("b"),
        };
        let account = Account {
            token: file("a"),
            token_type: TokenType::Oauth2,
            room: None,
            known_room: None,
            refresh: Some(Arc::new(settings)),
        };
        let mut held = HeldToken::new(&"main".into(), account, Vec::new());
        assert_eq!(held.due(), Some(Duration::ZERO), "there is no token");
        let granted = |lifetime| Granted {
            access_token: Secret::new("a"),
            refresh_token: None,
            lifetime,
            scopes: None,
        };
        held.renewed(granted(Duration::from_hours(168)));
        assert_eq!(held.due(), Some(Duration::from_hours(144)));
        assert!(!held.may_help(), "it is new");
        tokio::time::advance(Duration::from_hours(143)).await;
        assert_eq!(held.due(), Some(Duration::from_hours(1)));
        assert!(held.may_help());
        tokio::time::advance(Duration::from_hours(2)).await;
        assert_eq!(held.due(), Some(Duration::ZERO));
        // A server that names no time at all is not asked without end.
        held.renewed(granted(Duration::from_secs(1)));
        assert_eq!(held.due(), Some(PACE));
    }

    #[tokio::test]
    async fn a_token_that_has_ended_is_read_again_soon_and_one_that_replaces_it_counts() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        let account = Account {
            token: SecretRef::File(file.clone()),
            token_type: TokenType::Jwt,
            room: None,
            known_room: None,
            refresh: None,
        };
        let mut held = HeldToken::new(&"main".into(), account, Vec::new());
        let rest = Rest::new(&Astro::default());
        assert_eq!(held.attend(&rest, false).await.wait, USELESS_RECHECK, "there is none");
        for (end, wait) in [(1, USELESS_RECHECK), (4_102_444_800, RECHECK)] {
            let claims = BASE64_URL_SAFE_NO_PAD.encode(format!(r#"{{"exp":{end}}}"#));
            std::fs::write(&file, format!("e30.{claims}.c2ln")).unwrap();
            assert_eq!(held.attend(&rest, false).await.wait, wait);
            assert_eq!(held.status().expiry, Some(Expiry::At(end * 1000)));
        }
    }
}
