//! The HTTP client of a webhook: who is trusted, who is dialled, and what is left out.
//!
//! Left out on purpose: redirects (they would carry a signed body elsewhere), proxies from the
//! environment (they would dial for us, past the [`guard`](super::guard)), cookies, retries.
//!
//! The one thing to know: certificate authorities are loaded here and handed to the library ready
//! made, because the library's own way fails on a host without any, even for `http` addresses.

use std::{path::Path, sync::Arc, time::Duration};

use reqwest::{Client, redirect};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

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

/// The system's certificate authorities, or Mozilla's where the system has none, and those of
/// `ca_file`. Reads files: some milliseconds.
pub(super) fn tls(ca_file: Option<&Path>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    // One that cannot be read or parsed is no reason to do without the others.
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    if let Some(path) = ca_file {
        let wrong = |error: &dyn std::fmt::Display| {
            format!("cannot read certificates from {}: {error}", path.display())
        };
        let mut certificates = 0;
        for certificate in CertificateDer::pem_file_iter(path).map_err(|error| wrong(&error))? {
            let certificate = certificate.map_err(|error| wrong(&error))?;
            roots.add(certificate).map_err(|error| wrong(&error))?;
            certificates += 1;
        }
        if certificates == 0 {
            return Err(wrong(&"there are none in it"));
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}
