//! TLS for connections that go out: rustls with ring, the system's authorities or a file of one's own.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{ClientConfig, RootCertStore, crypto::ring};

/// TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file of authorities cannot be read, or holds no certificate.
    #[error("cannot read certificates from {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: rustls_pki_types::pem::Error,
    },
    /// A certificate is not one.
    #[error("a certificate in {} cannot be used", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: rustls::Error,
    },
    /// No protocol version in common with ourselves: cannot happen with the features built in.
    #[error("TLS cannot be set up")]
    Setup(#[from] rustls::Error),
}

/// Makes ring the provider of everything in this process that does not choose for itself. The
/// libraries panic without one. Calling it again does nothing.
pub fn install_provider() {
    // An error says that one is installed already: that is what we want.
    drop(ring::default_provider().install_default());
}

/// A client's configuration that trusts `ca_file`, or else the system's authorities, or else (on a
/// system without any) Mozilla's.
pub fn client(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(ca_file)?)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// The authorities to trust.
pub fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, TlsError> {
    use rustls_pki_types::{CertificateDer, pem::PemObject};

    let mut store = RootCertStore::empty();
    if let Some(path) = ca_file {
        let failed = |source| TlsError::File { path: path.to_owned(), source };
        let mut found = 0;
        for certificate in CertificateDer::pem_file_iter(path).map_err(failed)? {
            store
                .add(certificate.map_err(failed)?)
                .map_err(|source| TlsError::Certificate { path: path.to_owned(), source })?;
            found += 1;
        }
        if found == 0 {
            return Err(failed(rustls_pki_types::pem::Error::NoItemsFound));
        }
        return Ok(store);
    }
    let native = rustls_native_certs::load_native_certs();
    let (usable, _) = store.add_parsable_certificates(native.certs);
    if usable == 0 {
        store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    Ok(store)
}
