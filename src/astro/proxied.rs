//! Which way leads to Astro: directly, or through a proxy. The gateway and the REST API take the same.
//!
//! What is configured holds over the environment, and `"none"` over both.

use url::Url;

use crate::{
    base::{
        environment::environment,
        proxy::{Environment, Proxy},
    },
    config::{Astro, SecretRef},
};

/// The word for no proxy, whatever the environment says.
const NONE: &str = "none";

/// How the configuration names it, for messages.
const KEY: &str = "astro.proxy";

/// The way to Astro's servers.
#[derive(Clone)]
pub(super) struct Proxied {
    configured: Option<SecretRef>,
    environment: Environment,
}

impl std::fmt::Debug for Proxied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Proxied")
    }
}

impl Proxied {
    pub(super) fn new(astro: &Astro) -> Self {
        let configured = astro.proxy.clone();
        Self { configured, environment: Environment::new(&environment()) }
    }

    /// The proxy for that address; none where it is reached directly. What is not encrypted is never
    /// shown to a proxy.
    pub(super) async fn proxy(&self, url: &Url) -> Result<Option<Proxy>, String> {
        if !matches!(url.scheme(), "wss" | "https") {
            return Ok(None);
        }
        let found = if let Some(secret) = &self.configured {
            let text = secret.read_token().await.map_err(|error| error.to_string())?;
            if text.expose().eq_ignore_ascii_case(NONE) {
                return Ok(None);
            }
            Some(Proxy::parse(text.expose(), KEY))
        } else {
            let host = url.host_str().unwrap_or_default();
            self.environment.proxy(host, url.port_or_known_default().unwrap_or_default())
        };
        found.transpose().map_err(|error| error.to_string())
    }
}
