//! The tokens that are accepted, and their refresh by OAuth2.

use serde::Serialize;
use tokio::time::Instant;

use crate::{
    options::{OAuthClient, Options, Token},
    secret::Secret,
};

pub(crate) struct Tokens {
    pub(crate) accepted: Vec<Token>,
    clients: Vec<OAuthClient>,
}

/// The answer to a refresh.
#[derive(Debug, Serialize)]
pub(crate) struct Refreshed {
    access_token: String,
    refresh_token: String,
    expires_in: u64,
    scope: String,
}

impl Tokens {
    pub(crate) fn new(options: &Options) -> Self {
        Self { accepted: options.tokens.clone(), clients: options.clients.clone() }
    }

    /// Looks a token up; where none are configured, every one is accepted.
    pub(crate) fn find(&self, token: &str) -> Result<Option<Token>, ()> {
        if self.accepted.is_empty() {
            return if token.is_empty() { Err(()) } else { Ok(None) };
        }
        let known = self.accepted.iter().find(|known| known.token.expose() == token);
        let known = known.filter(|known| known.expires.is_none_or(|at| at > Instant::now()));
        known.cloned().map(Some).ok_or(())
    }

    /// Exchanges a refresh token for a new access token and the next refresh token. An error is the code
    /// that OAuth2 has for it.
    pub(crate) fn refresh(
        &mut self,
        client: &str,
        secret: &str,
        refresh_token: &str,
    ) -> Result<Refreshed, &'static str> {
        let is_own = |one: &&mut OAuthClient| one.id == client && one.secret.expose() == secret;
        let mut own = self.clients.iter_mut().filter(is_own);
        let first = own.next().ok_or("invalid_client")?;
        let client = std::iter::once(first)
            .chain(own)
            .find(|one| one.refresh_token.expose() == refresh_token)
            .ok_or("invalid_grant")?;
        let refreshed = Refreshed {
            access_token: format!("at-{:032x}", fastrand::u128(..)),
            refresh_token: format!("ft-{:032x}", fastrand::u128(..)),
            expires_in: client.lifetime.as_secs(),
            scope: client.scopes.join(" "),
        };
        self.accepted.push(Token {
            token: Secret::new(&refreshed.access_token),
            token_type: Some("oauth2".to_owned()),
            rooms: client.rooms.clone(),
            scopes: client.scopes.clone(),
            expires: Some(Instant::now() + client.lifetime),
        });
        let next =
            OAuthClient { refresh_token: Secret::new(&refreshed.refresh_token), ..client.clone() };
        if client.reusable {
            self.clients.push(next);
        } else {
            *client = next;
        }
        Ok(refreshed)
    }
}
