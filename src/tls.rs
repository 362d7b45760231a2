//! TLS towards a server: whom to trust, and who we are. rustls with ring everywhere.
//!
//! Configured files are read again on every connect, so that a renewed certificate needs no restart.
//! The system's authorities are read when the first server has shown its certificate, and once in a
//! while after that, and shared by all who trust them.
//!
//! The one thing to know: without a `ca_file` the system's authorities are trusted, and where the
//! system has none (a bare container) Mozilla's, which are compiled in.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};
use tokio::time::Instant;

/// How long the system's authorities are not read again. They are some three hundred files, which take
/// 20 ms of the processor: too much for every attempt at a far side that is down, and for a relay whose
/// far sides all speak plainly. They change a few times a year.
const KEEP_SYSTEM: Duration = Duration::from_hours(1);

/// Authorities, and when they were read.
type Kept = Mutex<Option<(Instant, Arc<RootCertStore>)>>;

/// Those of the system.
static SYSTEM: Kept = Mutex::new(None);

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
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?;
    let builder = match ca_file {
        Some(path) => builder.with_root_certificates(authorities(path)?),
        None => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(SystemAuthorities { provider })),
    };
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

fn authorities(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(path)?);
    if roots.is_empty() {
        return Err(TlsError::Empty { path: path.to_owned() });
    }
    Ok(roots)
}

/// rustls' own verifier over the system's authorities, made when there is something to verify.
#[derive(Debug)]
struct SystemAuthorities {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for SystemAuthorities {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let provider = Arc::clone(&self.provider);
        WebPkiServerVerifier::builder_with_provider(system(&SYSTEM), provider)
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Whoever comes while they are being read waits for them, instead of reading them too.
fn system(kept: &Kept) -> Arc<RootCertStore> {
    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((read_at, roots)) = &*kept
        && read_at.elapsed() < KEEP_SYSTEM
    {
        return Arc::clone(roots);
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    let roots = Arc::new(roots);
    *kept = Some((Instant::now(), Arc::clone(&roots)));
    roots
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
        assert!(!system(&Kept::default()).is_empty());
        assert!(client_config(None, None, None).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn the_systems_authorities_are_shared_and_read_again_in_time() {
        let kept = Kept::default();
        let first = system(&kept);
        assert!(Arc::ptr_eq(&first, &system(&kept)));
        tokio::time::advance(2 * KEEP_SYSTEM).await;
        assert!(!Arc::ptr_eq(&first, &system(&kept)));
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
