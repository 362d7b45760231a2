//! The HTTP client of a webhook: who is trusted, who is dialled, and what is left out.
//!
//! Left out on purpose: redirects (they would carry a signed body elsewhere), proxies from the
//! environment (they would dial for us, past the [`guard`](super::guard)), cookies, retries.
//!
//! The one thing to know: certificate authorities are loaded here and handed to the library ready
//! made, because the library's own way fails on a host without any, even for `http` addresses.

use std::{sync::Arc, time::Duration};

use reqwest::{Client, redirect};
use rustls::ClientConfig;

use super::guard::{Guard, GuardedResolver};

/// How long an idle connection is kept: Node's servers close one after 5 s, and a request that meets
/// the closing has an unknown outcome.
const KEEP_IDLE: Duration = Duration::from_secs(4);

/// The longest wait for a connection, within what a request may take: a host that is there answers a
/// SYN within seconds, even by satellite.
const CONNECT: Duration = Duration::from_secs(10);

/// Makes the client.
pub(super) fn build(
    tls: ClientConfig,
    guard: Arc<Guard>,
    concurrency: usize,
    timeout: Duration,
) -> reqwest::Result<Client> {
    Client::builder()
        .tls_backend_preconfigured(tls)
        .dns_resolver(GuardedResolver(guard))
        .no_proxy()
        .redirect(redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .http1_only()
        .connect_timeout(timeout.min(CONNECT))
        .pool_idle_timeout(KEEP_IDLE)
        .pool_max_idle_per_host(concurrency)
        .build()
}
