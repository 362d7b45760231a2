//! TLS towards a server: whom to trust, and who we are. rustls with ring everywhere.
//!
//! Files are read again on every connect, so that a renewed certificate needs no restart.
//!
//! The one thing to know: without a `ca_file` the system's authorities are trusted, and where the
//! system has none (a bare container) Mozilla's, which are compiled in.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

/// Why there is no TLS configuration. Names files, never what is in them.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or is not what it should be.
    #[error("{} is not readable as PEM", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: rustls::pki_types::pem::Error,
    },
    /// A file holds no certificate.
    #[error("{} holds no certificate that can be used", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Only one of the two files of a client certificate is configured.
    #[error("client_cert_file and client_key_file belong together")]
    Half,
    /// The parts do not fit each other.
    #[error("the certificates cannot be used")]
    Unfit(#[from] rustls::Error),
}

/// Makes ring the provider of everything in this process that does not choose for itself: the libraries
/// panic without one. Doing it again does nothing.
pub fn install_provider() {
    // An error says that one is installed already: that is what we want.
    drop(rustls::crypto::ring::default_provider().install_default());
}

/// The TLS configuration that these files make.
pub fn client_config(
    ca_file: Option<&Path>,
    client_cert_file: Option<&Path>,
    client_key_file: Option<&Path>,
) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(ca_file)?);
    match (client_cert_file, client_key_file) {
        (None, None) => Ok(builder.with_no_client_auth()),
        (Some(cert), Some(key)) => {
            let chain = certificates(cert)?;
            let key = PrivateKeyDer::from_pem_file(key)
                .map_err(|source| TlsError::Pem { path: key.to_owned(), source })?;
            Ok(builder.with_client_auth_cert(chain, key)?)
        }
        _ => Err(TlsError::Half),
    }
}

fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = ca_file {
        roots.add_parsable_certificates(certificates(path)?);
        if roots.is_empty() {
            return Err(TlsError::Empty { path: path.to_owned() });
        }
        return Ok(roots);
    }
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = |source| TlsError::Pem { path: path.to_owned(), source };
    let found: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(pem)?.collect::<Result<_, _>>().map_err(pem)?;
    if found.is_empty() {
        return Err(TlsError::Empty { path: path.to_owned() });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_files_there_is_always_somebody_to_trust() {
        assert!(!roots(None).unwrap().is_empty());
        assert!(client_config(None, None, None).is_ok());
    }

    #[test]
    fn an_error_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        let error = client_config(Some(&path), None, None).unwrap_err();
        assert!(error.to_string().contains("ca.pem"), "{error}");
        std::fs::write(&path, "no certificate here\n").unwrap();
        assert!(matches!(client_config(Some(&path), None, None), Err(TlsError::Empty { .. })));
        assert!(matches!(client_config(None, Some(&path), None), Err(TlsError::Half)));
    }
}
