//! How a NATS server is reached: who we are, by which certificates, and which of several servers answers.
//!
//! Secrets and certificates are read again for each connection; for a client that connects again by itself only
//! passwords and tokens are.

use std::time::Duration;

use async_nats::{Auth, AuthError, ConnectOptions, ServerAddr};
use futures_util::FutureExt;

use super::{link::Link, settings::Settings};
use crate::{
    base::tls::client_config,
    config::ConfigError,
    sink::{Cause, Opening, race},
};

/// What all connections of one sink have in common.
pub(crate) struct Connector {
    pub(crate) settings: Settings,
    /// The name that the server shows of the connection.
    name: String,
    servers: Vec<ServerAddr>,
    /// The server that answered last.
    server: usize,
    pub(crate) timeout: Duration,
}

impl Connector {
    /// Reads and checks the settings of a sink. `purpose` is what the server shows of the connection beside
    /// the sink's name.
    pub(crate) fn new(opening: &Opening<'_>, purpose: &str) -> Result<Self, ConfigError> {
        let settings: Settings = crate::sink::settings(opening)?;
        let at = |(key, message)| ConfigError::at(&["sinks", opening.name, key], message);
        settings.check().map_err(at)?;
        let servers = settings.servers().map_err(at)?;
        let name = format!("astro-relay {}{purpose}", opening.name);
        Ok(Self { settings, name, servers, server: 0, timeout: opening.config.timeout.0 })
    }

    pub(crate) fn servers(&self) -> &[ServerAddr] {
        &self.servers
    }

    /// How often the server is asked for a sign of life. The third question without an answer ends the
    /// connection: before our own patience does, so that a server that was only asleep finds nothing of us
    /// when it wakes up.
    pub(crate) fn ping_interval(&self) -> Duration {
        (self.timeout / 4).max(Duration::from_secs(1))
    }

    /// Connects to the first server that answers, beginning with the one that did last.
    pub(crate) async fn connect(&mut self) -> Result<Link, Cause> {
        let options = self.options().await.map_err(Cause::Down)?;
        let (tls_first, ping, timeout) =
            (self.settings.tls_first, self.ping_interval(), self.timeout);
        let dial = async |server: usize| {
            let server = self.servers.get(server).cloned();
            let server = server.ok_or_else(|| Cause::Down("no server is configured".into()))?;
            let options = options.clone().ping_interval(ping);
            Link::connect(options, server, tls_first, timeout).await
        };
        match race::first(self.servers.len(), self.server, timeout, dial).await {
            Ok((server, link)) => {
                self.server = server;
                Ok(link)
            }
            Err(cause) => {
                self.server += 1;
                Err(cause)
            }
        }
    }

    /// The options of the client library, with the secrets and certificates as they are now.
    pub(crate) async fn options(&self) -> Result<ConnectOptions, async_nats::Error> {
        options(&self.settings, &self.name, race::dial_limit(self.timeout)).await
    }
}

/// The options of the client library for these settings; `name` is what the server shows.
async fn options(
    settings: &Settings,
    name: &str,
    dial_limit: Duration,
) -> Result<ConnectOptions, async_nats::Error> {
    complete(ConnectOptions::new(), settings, name, dial_limit).await
}

/// The same for a client that connects again by itself: a password or a token is read again each time. Everything
/// else, a seed, credentials or a certificate, stays as it is now: the library takes it only once. Those that are read
/// again are read now as well: one that cannot be read ends a start.
pub(crate) async fn lasting_options(
    settings: &Settings,
    name: &str,
    dial_limit: Duration,
) -> Result<ConnectOptions, async_nats::Error> {
    let begun = if settings.password.is_some() || settings.token.is_some() {
        let settings = settings.clone();
        ConnectOptions::with_auth_callback(move |_nonce| {
            let settings = settings.clone();
            // The library wants a future that several threads may share.
            async move { auth(&settings).await }.boxed().shared()
        })
    } else {
        ConnectOptions::new()
    };
    complete(begun, settings, name, dial_limit).await
}

/// The password or the token as it is now.
async fn auth(settings: &Settings) -> Result<Auth, AuthError> {
    let mut auth = Auth::new();
    if let (Some(user), Some(password)) = (&settings.user, &settings.password) {
        auth.username = Some(user.clone());
        auth.password = Some(password.read().await.map_err(AuthError::new)?.expose().to_owned());
    }
    if let Some(token) = &settings.token {
        auth.token = Some(token.read_token().await.map_err(AuthError::new)?.expose().to_owned());
    }
    Ok(auth)
}

async fn complete(
    begun: ConnectOptions,
    settings: &Settings,
    name: &str,
    dial_limit: Duration,
) -> Result<ConnectOptions, async_nats::Error> {
    let tls = client_config(
        settings.ca_file.as_deref(),
        settings.client_cert_file.as_deref(),
        settings.client_key_file.as_deref(),
    )
    .await?;
    let required =
        settings.tls || settings.ca_file.is_some() || settings.client_cert_file.is_some();
    let mut options = begun
        .name(name)
        .custom_inbox_prefix(settings.inbox())
        .connection_timeout(dial_limit)
        .tls_client_config((*tls).clone())
        .require_tls(required);
    if settings.tls_first {
        options = options.tls_first();
    }
    if let (Some(user), Some(password)) = (&settings.user, &settings.password) {
        options =
            options.user_and_password(user.clone(), password.read().await?.expose().to_owned());
    }
    if let Some(token) = &settings.token {
        options = options.token(token.read_token().await?.expose().to_owned());
    }
    if let Some(seed) = &settings.nkey_seed {
        options = options.nkey(seed.read_token().await?.expose().to_owned());
    }
    if let Some(credentials) = &settings.credentials {
        // What is wrong with them may quote them.
        options = options
            .credentials(credentials.read().await?.expose())
            .map_err(|_| format!("no credentials can be read from {}", credentials.place()))?;
    }
    Ok(options)
}
