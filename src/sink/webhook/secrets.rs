//! What a webhook's secrets are used for. Each is read by itself: one that cannot be read does not keep
//! the others from being renewed.

use std::error::Error;

use hyper::header::{AUTHORIZATION, HeaderMap, HeaderValue};

use super::{Settings, sign::Signer};
use crate::config::{Secret, SecretRef};

/// What is wrong with a secret.
pub(super) type Wrong = Box<dyn Error + Send + Sync>;

/// What was found in the place of a secret; `None`: it is not configured.
type Found<T> = Option<Result<T, Wrong>>;

/// What was found in the place of each secret.
pub(super) struct Reading {
    secret: Found<Signer>,
    previous_secret: Found<Signer>,
    authorization: Found<HeaderValue>,
}

/// What follows from the secrets, as far as they are configured.
#[derive(Clone)]
pub(super) struct Secrets {
    secret: Option<Signer>,
    previous_secret: Option<Signer>,
    authorization: Option<HeaderValue>,
}

impl Reading {
    pub(super) async fn new(settings: Settings) -> Self {
        let (secret, previous_secret, authorization) = tokio::join!(
            read(settings.secret.as_ref(), signer),
            read(settings.previous_secret.as_ref(), signer),
            read(settings.bearer_token.as_ref(), bearer),
        );
        Self { secret, previous_secret, authorization }
    }

    /// All of them; an error where one cannot be read.
    pub(super) fn all(self) -> Result<Secrets, Wrong> {
        Ok(Secrets {
            secret: self.secret.transpose()?,
            previous_secret: self.previous_secret.transpose()?,
            authorization: self.authorization.transpose()?,
        })
    }
}

impl Secrets {
    /// Takes what was read. One that cannot be read stays as it was, and `facts` gets why.
    pub(super) fn renew(&mut self, reading: Reading, facts: &mut Vec<String>) {
        renew("secret", &mut self.secret, reading.secret, facts);
        renew("previous_secret", &mut self.previous_secret, reading.previous_secret, facts);
        renew("bearer_token", &mut self.authorization, reading.authorization, facts);
    }

    /// Signs with the new secret first.
    pub(super) fn signer(&self) -> Signer {
        [&self.secret, &self.previous_secret].into_iter().flatten().cloned().collect()
    }

    pub(super) fn authorize(&self, headers: &mut HeaderMap) {
        if let Some(value) = &self.authorization {
            headers.insert(AUTHORIZATION, value.clone());
        }
    }
}

fn renew<T>(key: &str, known: &mut Option<T>, found: Found<T>, facts: &mut Vec<String>) {
    match found {
        Some(Ok(value)) => *known = Some(value),
        Some(Err(error)) => facts.push(format!("`{key}` stays as it was: {error}")),
        None => {}
    }
}

async fn read<T>(source: Option<&SecretRef>, take: fn(&Secret) -> Result<T, Wrong>) -> Found<T> {
    let secret = source?.read_token().await;
    Some(secret.map_err(Wrong::from).and_then(|secret| take(&secret)))
}

fn signer(secret: &Secret) -> Result<Signer, Wrong> {
    Ok(Signer::new([secret])?)
}

fn bearer(token: &Secret) -> Result<HeaderValue, Wrong> {
    let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose()))
        .map_err(|_| "the bearer token is not legal in a header")?;
    value.set_sensitive(true);
    Ok(value)
}
