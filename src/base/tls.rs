//! TLS towards a server: whom to trust, and who we are. rustls with ring everywhere.
//!
//! Configured files are read again on every connect, so that a renewed certificate or authority needs
//! no restart. What cannot be used (half written, a key that does not belong to its certificate yet) is
//! told, and what was good before is used until it can. The system's authorities are read when the first
//! server has shown its certificate, once in a while after that, and when a server shows a certificate
//! that none of them has signed; they are shared by all who trust them.
//!
//! Without a `ca_file` the system's authorities are trusted, and where the
//! system has none (a bare container) Mozilla's, which are compiled in.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock, Mutex, mpsc},
    time::Duration,
};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem, pem::PemObject},
    server::ParsedCertificate,
};
use tokio::time::Instant;

use crate::base::{
    fault,
    files::{self, FileError},
    sync::lock,
};

/// How long the system's authorities are not read again while they do. They are some three hundred
/// files, which take 20 ms of the processor.
const KEEP_SYSTEM: Duration = Duration::from_mins(10);

/// How long they are not read again although a server shows a certificate that none of them has signed.
const KEEP_SYSTEM_IN_DOUBT: Duration = Duration::from_secs(10);

/// How long reading them may take; then those from before are trusted.
const READ_SYSTEM: Duration = Duration::from_secs(3);

/// What some editors put before a text.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// Configurations that are remembered, at most: each is one set of files.
const REMEMBERED: usize = 64;

/// Authorities, and when they were read.
type System = Mutex<Option<(Instant, Arc<RootCertStore>)>>;

/// Those of the system.
static SYSTEM: System = Mutex::new(None);

/// By the files that they were made of.
static KEPT: LazyLock<Mutex<HashMap<Files, Kept>>> = LazyLock::new(Mutex::default);

/// The files that make a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Files {
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
}

#[derive(Clone, PartialEq, Eq)]
struct Contents {
    ca: Option<Arc<[u8]>>,
    cert: Option<Arc<[u8]>>,
    key: Option<Arc<[u8]>>,
}

/// The last of them that could be used.
struct Kept {
    contents: Contents,
    config: Arc<ClientConfig>,
    /// Why those after them cannot, as it was reported.
    reported: Option<String>,
}

/// Why there is no TLS configuration. Names files, never what is in them.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {}: {why}", files::shown(path))]
    File { path: PathBuf, why: FileError },
    /// A file is not what it should be.
    #[error("{} is not readable as PEM: {why}", files::shown(path))]
    Pem { path: PathBuf, why: &'static str },
    #[error(
        "{} holds no certificate that can be used: -----BEGIN CERTIFICATE----- was expected",
        files::shown(path)
    )]
    Empty { path: PathBuf },
    #[error("{}: {why}", files::shown(path))]
    NoKey { path: PathBuf, why: &'static str },
    /// Only one of the two files of a client certificate is configured.
    #[error("client_cert_file and client_key_file belong together")]
    Half,
    /// The parts do not fit each other.
    #[error("the certificates cannot be used: {}", fault::tls(.0))]
    Unfit(rustls::Error),
}

impl TlsError {
    /// Whether nothing is known of a file, for it did not answer.
    pub(crate) fn is_silent(&self) -> bool {
        matches!(self, Self::File { why: FileError::Silent | FileError::Crowded, .. })
    }
}

/// Makes ring the provider of everything in this process that does not choose for itself: the libraries
/// panic without one. Doing it again does nothing.
pub fn install_provider() {
    // An error says that one is installed already: that is what we want.
    drop(rustls::crypto::ring::default_provider().install_default());
}

/// The TLS configuration that these files make, as they are now. The same one as before while they are
/// the same, and where they cannot be used.
pub(crate) async fn client_config(
    ca_file: Option<&Path>,
    client_cert_file: Option<&Path>,
    client_key_file: Option<&Path>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let files = Files::of(ca_file, client_cert_file, client_key_file);
    let contents = files.read().await;
    let mut kept = lock(&KEPT);
    let known = kept.get_mut(&files);
    let made = contents.and_then(|contents| match &known {
        Some(known) if known.contents == contents => Ok((contents, Arc::clone(&known.config))),
        _ => files.config(&contents).map(|config| (contents, Arc::new(config))),
    });
    match (made, known) {
        (Ok((contents, config)), Some(known)) => {
            *known = Kept { contents, config: Arc::clone(&config), reported: None };
            Ok(config)
        }
        (Ok((contents, config)), None) => {
            if kept.len() >= REMEMBERED {
                kept.clear();
            }
            kept.insert(files, Kept { contents, config: Arc::clone(&config), reported: None });
            Ok(config)
        }
        (Err(error), Some(known)) => {
            let error = error.to_string();
            if known.reported.as_ref() != Some(&error) {
                tracing::warn!(error, "certificates stay as they were");
                known.reported = Some(error);
            }
            Ok(Arc::clone(&known.config))
        }
        (Err(error), None) => Err(error),
    }
}

/// The same three files as they are now, for a library that reads PEM itself: the last of them that
/// could be used.
pub(crate) async fn pem_files(
    ca_file: Option<&Path>,
    client_cert_file: Option<&Path>,
    client_key_file: Option<&Path>,
) -> Result<[Option<Arc<[u8]>>; 3], TlsError> {
    client_config(ca_file, client_cert_file, client_key_file).await?;
    let files = Files::of(ca_file, client_cert_file, client_key_file);
    let kept = lock(&KEPT);
    let contents = kept.get(&files).map(|kept| kept.contents.clone());
    Ok(contents.map_or([None, None, None], |contents| [contents.ca, contents.cert, contents.key]))
}

impl Files {
    fn of(ca: Option<&Path>, cert: Option<&Path>, key: Option<&Path>) -> Self {
        let owned = |path: Option<&Path>| path.map(Path::to_owned);
        Self { ca: owned(ca), cert: owned(cert), key: owned(key) }
    }

    async fn read(&self) -> Result<Contents, TlsError> {
        let read = async |path: Option<&PathBuf>| match path {
            None => Ok(None),
            Some(path) => match files::read(path).await {
                Ok(content) => Ok(Some(content.bytes)),
                Err(why) => Err(TlsError::File { path: path.clone(), why }),
            },
        };
        let (ca, cert, key) =
            tokio::join!(read(self.ca.as_ref()), read(self.cert.as_ref()), read(self.key.as_ref()));
        Ok(Contents { ca: ca?, cert: cert?, key: key? })
    }

    fn config(&self, contents: &Contents) -> Result<ClientConfig, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Unfit)?;
        let trust = match (&self.ca, &contents.ca) {
            (Some(path), Some(bytes)) => Trust::Given(given(path, bytes)?),
            _ => Trust::System,
        };
        let builder = builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier { provider, trust }));
        match (&self.cert, &contents.cert, &self.key, &contents.key) {
            (None, _, None, _) => Ok(builder.with_no_client_auth()),
            (Some(cert), Some(cert_bytes), Some(key), Some(key_bytes)) => {
                let chain = certificates(cert, cert_bytes)?;
                let key = private_key(key, key_bytes)?;
                builder.with_client_auth_cert(chain, key).map_err(TlsError::Unfit)
            }
            _ => Err(TlsError::Half),
        }
    }
}

/// Those whom a file names.
#[derive(Debug)]
struct Given {
    roots: Arc<RootCertStore>,
    /// As they stand in the file: a server may show one of these very certificates.
    themselves: Vec<CertificateDer<'static>>,
}

fn given(path: &Path, bytes: &[u8]) -> Result<Given, TlsError> {
    let themselves = certificates(path, bytes)?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(themselves.iter().cloned());
    if roots.is_empty() {
        return Err(TlsError::Empty { path: path.to_owned() });
    }
    Ok(Given { roots: Arc::new(roots), themselves })
}

#[derive(Debug)]
enum Trust {
    System,
    Given(Given),
}

/// rustls' own verifier, made when there is something to verify; and the certificate that a server made
/// for itself, where it is named.
#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    trust: Trust,
}

impl Verifier {
    fn web_pki(
        &self,
        roots: Arc<RootCertStore>,
    ) -> Result<Arc<WebPkiServerVerifier>, rustls::Error> {
        WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&self.provider))
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verify = |roots| {
            self.web_pki(roots)?
                .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
        };
        match &self.trust {
            Trust::System => match verify(system(&SYSTEM, KEEP_SYSTEM)) {
                // An authority may have been added since they were read.
                Err(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
                    verify(system(&SYSTEM, KEEP_SYSTEM_IN_DOUBT))
                }
                verified => verified,
            },
            Trust::Given(given) => match verify(Arc::clone(&given.roots)) {
                // A certificate that a server made for itself mostly says that it is an authority, and
                // is refused as a server's. Its dates were looked at before that.
                Err(rustls::Error::InvalidCertificate(CertificateError::Other(_)))
                    if given.themselves.iter().any(|own| own == end_entity) =>
                {
                    verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                    Ok(ServerCertVerified::assertion())
                }
                verified => verified,
            },
        }
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

/// The system's authorities, read again where that was longer ago than `keep`. Whoever comes while they
/// are being read waits for them, instead of reading them too.
fn system(kept: &System, keep: Duration) -> Arc<RootCertStore> {
    let mut kept = lock(kept);
    if let Some((read_at, roots)) = &*kept
        && read_at.elapsed() < keep
    {
        return Arc::clone(roots);
    }
    let before = kept.as_ref().map(|(_, roots)| Arc::clone(roots));
    let roots = read_system().or(before).unwrap_or_else(|| Arc::new(compiled_in()));
    *kept = Some((Instant::now(), Arc::clone(&roots)));
    roots
}

/// Reads them by a thread of its own: their directory may lie on a mount that hangs.
fn read_system() -> Option<Arc<RootCertStore>> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let read = move || {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        // Nobody may be waiting any more.
        drop(sender.send(roots));
    };
    std::thread::Builder::new().name("read authorities".into()).spawn(read).ok()?;
    match receiver.recv_timeout(READ_SYSTEM) {
        Ok(roots) if roots.is_empty() => Some(Arc::new(compiled_in())),
        Ok(roots) => Some(Arc::new(roots)),
        Err(_) => {
            tracing::warn!(
                "the system's certificate authorities cannot be read: they do not answer"
            );
            None
        }
    }
}

fn compiled_in() -> RootCertStore {
    webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect()
}

/// Reads the system's authorities, if they are to be read, beside the runtime's workers: for whoever is
/// about to connect. Without it the first handshake does.
pub(crate) async fn prepare(ca_file: Option<&Path>) {
    if ca_file.is_none() {
        let read = tokio::task::spawn_blocking(|| drop(system(&SYSTEM, KEEP_SYSTEM)));
        // The relay is stopping.
        drop(read.await);
    }
}

fn certificates(path: &Path, bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    /// What a certificate begins with that is not written as text.
    const DER_SEQUENCE: u8 = 0x30;
    if bytes.first() == Some(&DER_SEQUENCE) {
        return Ok(vec![CertificateDer::from(bytes.to_vec())]);
    }
    let bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    let found =
        found.map_err(|error| TlsError::Pem { path: path.to_owned(), why: pem_words(&error) })?;
    if found.is_empty() {
        return Err(TlsError::Empty { path: path.to_owned() });
    }
    Ok(found)
}

fn private_key(path: &Path, bytes: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    let bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
    PrivateKeyDer::from_pem_slice(bytes).map_err(|error| match error {
        pem::Error::NoItemsFound => {
            let locked = String::from_utf8_lossy(bytes).contains("BEGIN ENCRYPTED PRIVATE KEY");
            let why = if locked {
                "its key is locked by a passphrase: openssl pkey -in it writes one that is not"
            } else {
                "it holds no private key"
            };
            TlsError::NoKey { path: path.to_owned(), why }
        }
        error => TlsError::Pem { path: path.to_owned(), why: pem_words(&error) },
    })
}

/// The library's words quote the file.
fn pem_words(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => "a section has no end; is it written just now?",
        pem::Error::IllegalSectionStart { .. } => "a section begins with a line that is not legal",
        pem::Error::Base64Decode(_) => "what stands in a section is not base64",
        _ => "its sections cannot be read",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn without_files_some_authorities_are_always_trusted() {
        assert!(!system(&System::default(), KEEP_SYSTEM).is_empty());
        assert!(client_config(None, None, None).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn the_systems_authorities_are_shared_and_read_again_in_time() {
        let kept = System::default();
        let first = system(&kept, KEEP_SYSTEM);
        assert!(Arc::ptr_eq(&first, &system(&kept, KEEP_SYSTEM)));
        tokio::time::advance(2 * KEEP_SYSTEM_IN_DOUBT).await;
        assert!(Arc::ptr_eq(&first, &system(&kept, KEEP_SYSTEM)));
        let second = system(&kept, KEEP_SYSTEM_IN_DOUBT);
        assert!(!Arc::ptr_eq(&first, &second));
        tokio::time::advance(2 * KEEP_SYSTEM).await;
        assert!(!Arc::ptr_eq(&second, &system(&kept, KEEP_SYSTEM)));
    }

    #[tokio::test]
    async fn an_error_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        let error = client_config(Some(&path), None, None).await.unwrap_err();
        assert!(error.to_string().contains("ca.pem"), "{error}");
        std::fs::write(&path, "no certificate here\n").unwrap();
        let empty = client_config(Some(&path), None, None).await;
        assert!(matches!(empty, Err(TlsError::Empty { .. })));
        std::fs::write(&path, "-----BEGIN CERTIFICATE-----\nAAAA\n").unwrap();
        let half = client_config(Some(&path), None, None).await;
        assert!(matches!(half, Err(TlsError::Pem { .. })));
        let half = client_config(None, Some(&path), None).await;
        assert!(matches!(half, Err(TlsError::Half)));
    }
}
