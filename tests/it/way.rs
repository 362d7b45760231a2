//! The way to Astro: through proxies of every kind, to servers with certificates of every kind; and what
//! is said where it leads nowhere.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use astro_relay::{
    astro::{
        dial::Dialer,
        rest::{Credentials, Rest},
    },
    config::{Astro, Period, Secret, SecretRef, TokenType},
};
use astro_sim::{Options, Sim, Token};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    process::Command,
};
use tokio_rustls::TlsAcceptor;

use crate::support::{carry::within, process::free_port, sinks::install_tls};

const ROOM: &str = "5b2e2007760aeb7729487dab";

/// A certificate, made by openssl, and its key.
async fn openssl(dir: &Path, name: &str, more: &[&str]) -> (PathBuf, PathBuf) {
    let (cert, key) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
    let output = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-nodes", "-subj", &format!("/CN={name}"), "-out"])
        .arg(&cert)
        .arg("-keyout")
        .arg(&key)
        .args(more)
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    (cert, key)
}

/// An authority, and a certificate that it has signed for `127.0.0.1`, `::1` and localhost.
async fn signed(dir: &Path, name: &str) -> (PathBuf, PathBuf, PathBuf) {
    let (ca, ca_key) = openssl(dir, &format!("{name}-ca"), &["-days", "30"]).await;
    let (ca_text, key_text) = (ca.to_str().unwrap(), ca_key.to_str().unwrap());
    let names = "subjectAltName=IP:127.0.0.1,IP:::1,DNS:localhost";
    let more = ["-CA", ca_text, "-CAkey", key_text, "-days", "30", "-addext", names];
    let more = [&more[..], &["-addext", "basicConstraints=critical,CA:FALSE"]].concat();
    let (cert, key) = openssl(dir, name, &more).await;
    (ca, cert, key)
}

/// A TLS server before another server, with a certificate that can be replaced.
pub struct Front {
    pub port: u16,
    acceptor: Arc<Mutex<TlsAcceptor>>,
}

pub fn acceptor(
    cert: &Path,
    key: &Path,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> TlsAcceptor {
    let chain = CertificateDer::pem_file_iter(cert).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

impl Front {
    #[expect(clippy::disallowed_methods, reason = "a test's own task")]
    pub async fn new(listen: &str, behind: u16, first: TlsAcceptor) -> Self {
        let listener = TcpListener::bind((listen, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let acceptor = Arc::new(Mutex::new(first));
        let shared = Arc::clone(&acceptor);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = shared.lock().unwrap().clone();
                tokio::spawn(async move {
                    let Ok(mut near) = acceptor.accept(stream).await else { return };
                    let mut far = TcpStream::connect(("127.0.0.1", behind)).await.unwrap();
                    drop(copy_bidirectional(&mut near, &mut far).await);
                });
            }
        });
        Self { port, acceptor }
    }
}

/// What a proxy does with who asks.
#[derive(Clone, Copy)]
enum Manner {
    Connects,
    /// Wants `me:pass word`, as `Basic`.
    Asks,
    Answers(&'static str),
    Hangs,
}

/// A proxy, and the first lines of the requests that it got.
struct ProxyServer {
    port: u16,
    heard: Arc<Mutex<Vec<String>>>,
}

impl ProxyServer {
    #[expect(clippy::disallowed_methods, reason = "a test's own task")]
    async fn new(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let heard = Arc::<Mutex<Vec<String>>>::default();
        let lines = Arc::clone(&heard);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let lines = Arc::clone(&lines);
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        let Ok(byte) = stream.read_u8().await else { return };
                        head.push(byte);
                    }
                    let head = String::from_utf8(head).unwrap();
                    lines.lock().unwrap().push(head.clone());
                    let knows =
                        head.to_lowercase().contains("proxy-authorization: basic bwu6cgfzcyb3b3jk");
                    let answer = match manner {
                        Manner::Hangs => return std::future::pending().await,
                        Manner::Answers(answer) => answer,
                        Manner::Asks if !knows => {
                            "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
                        }
                        Manner::Connects | Manner::Asks => {
                            let target = head.split(' ').nth(1).unwrap().to_owned();
                            let mut far = TcpStream::connect(target).await.unwrap();
                            let yes = b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n";
                            stream.write_all(yes).await.unwrap();
                            drop(copy_bidirectional(&mut stream, &mut far).await);
                            return;
                        }
                    };
                    drop(stream.write_all(answer.as_bytes()).await);
                });
            }
        });
        Self { port, heard }
    }

    fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }
}

async fn sim() -> Sim {
    install_tls();
    let options = Options { tokens: vec![Token::owner("tok-canary", ROOM)], ..Options::default() };
    Sim::start(([127, 0, 0, 1], 0).into(), options).await.unwrap()
}

fn astro(port: u16, ca: &Path) -> Astro {
    Astro {
        url: format!("wss://127.0.0.1:{port}/"),
        api_url: format!("https://127.0.0.1:{port}/kappa/v2"),
        ca_file: Some(ca.to_owned()),
        proxy: Some(SecretRef::Value("none".into())),
        connect_timeout: Period(Duration::from_secs(2)),
        ..Astro::default()
    }
}

/// What comes of dialling the gateway: nothing, or what is said.
async fn dialled(astro: &Astro) -> Result<(), String> {
    let dialer = Dialer::new(astro).unwrap();
    let socket = within("dialling", dialer.dial(None)).await;
    socket.map(drop).map_err(|error| error.to_string())
}

async fn asked(rest: &Rest) -> Result<(), String> {
    let (channel, token) = (ROOM.to_owned(), Secret::new("tok-canary"));
    let credentials = Credentials { channel, token, token_type: TokenType::Jwt };
    let session = within("session", rest.session(&credentials)).await;
    session.map(drop).map_err(|error| error.describe())
}

#[tokio::test]
async fn a_replaced_authority_needs_no_restart_and_a_half_written_file_does_no_harm() {
    let (sim, dir) = (sim().await, tempfile::tempdir().unwrap());
    let all = rustls::ALL_VERSIONS;
    let (old_ca, old, old_key) = signed(dir.path(), "old").await;
    let (new_ca, new, new_key) = signed(dir.path(), "new").await;
    let front = Front::new("127.0.0.1", sim.address().port(), acceptor(&old, &old_key, all)).await;
    let ca = dir.path().join("ca.pem");
    std::fs::copy(&old_ca, &ca).unwrap();
    let astro = astro(front.port, &ca);
    let (dialer, rest) = (Dialer::new(&astro).unwrap(), Rest::new(&astro));
    within("old", dialer.dial(None)).await.unwrap();
    asked(&rest).await.unwrap();
    // It is being written: what was good is kept.
    std::fs::write(&ca, &std::fs::read(&new_ca).unwrap()[..200]).unwrap();
    within("half", dialer.dial(None)).await.unwrap();
    asked(&rest).await.unwrap();
    // Both, with what people write around them; then the server changes, then the old one goes.
    let both = [&old_ca, &new_ca].map(|file| std::fs::read_to_string(file).unwrap());
    let both = format!("\u{feff}# authorities\n{}\nthe new one:\n{}", both[0], both[1]);
    std::fs::write(&ca, both.replace('\n', "\r\n")).unwrap();
    within("both", dialer.dial(None)).await.unwrap();
    *front.acceptor.lock().unwrap() = acceptor(&new, &new_key, all);
    within("new", dialer.dial(None)).await.unwrap();
    let fresh = Rest::new(&astro);
    asked(&fresh).await.unwrap();
    std::fs::copy(&new_ca, &ca).unwrap();
    within("new alone", dialer.dial(None)).await.unwrap();
    *front.acceptor.lock().unwrap() = acceptor(&old, &old_key, all);
    let error = within("old again", dialer.dial(None)).await.err().unwrap().to_string();
    assert!(error.contains("nobody who is trusted here"), "{error}");
}

#[tokio::test]
async fn certificates_of_every_legal_kind_are_taken_and_the_others_named() {
    let (sim, dir) = (sim().await, tempfile::tempdir().unwrap());
    let behind = sim.address().port();
    let dir = dir.path();
    let all = rustls::ALL_VERSIONS;
    let names = "subjectAltName=IP:127.0.0.1,IP:::1,DNS:localhost";
    let itself = ["-days", "30", "-addext", names];
    let old = ["-addext", names, "-not_before", "20200101000000Z", "-not_after", "20210101000000Z"];
    let early =
        ["-addext", names, "-not_before", "20900101000000Z", "-not_after", "20910101000000Z"];
    let other = ["-days", "30", "-addext", "subjectAltName=DNS:elsewhere.example"];
    let dated = Command::new("openssl").args(["req", "-help"]).output().await.unwrap();
    let dated = String::from_utf8_lossy(&dated.stderr).contains("-not_before");
    for (name, more, word) in [
        ("itself", &itself[..], None),
        ("nameless", &["-days", "30"][..], Some("no name in its subjectAltName")),
        ("other", &other[..], Some("elsewhere.example")),
        ("old", &old[..], Some("has expired at 2021-01-01")),
        ("early", &early[..], Some("is valid from 2090-01-01")),
    ] {
        if more.contains(&"-not_before") && !dated {
            continue;
        }
        let (cert, key) = openssl(dir, name, more).await;
        let front = Front::new("127.0.0.1", behind, acceptor(&cert, &key, all)).await;
        let outcome = dialled(&astro(front.port, &cert)).await;
        match word {
            None => assert_eq!(outcome, Ok(()), "{name}"),
            Some(word) => {
                let said = outcome.unwrap_err();
                assert!(said.contains(word), "{name}: {said}");
                assert_eq!(said.matches("certificate").count(), 1, "{said}");
            }
        }
    }
    // An IPv6 literal, a name, an old protocol.
    let (ca, cert, key) = signed(dir, "signed").await;
    let six = Front::new("::1", behind, acceptor(&cert, &key, all)).await;
    let four =
        Front::new("127.0.0.1", behind, acceptor(&cert, &key, &[&rustls::version::TLS12])).await;
    for url in [
        format!("wss://[::1]:{}", six.port),
        format!("WSS://[0:0:0:0:0:0:0:1]:{}/", six.port),
        format!("wss://LOCALHOST:{}", four.port),
        format!("wss://localhost.:{}/", four.port),
        format!("wss://127.0.0.1:{}/?a=b", four.port),
    ] {
        let outcome = dialled(&Astro { url: url.clone(), ..astro(0, &ca) }).await;
        assert_eq!(outcome, Ok(()), "{url}");
    }
}

#[tokio::test]
async fn the_cause_of_a_failed_connection_is_named_once() {
    let (sim, dir) = (sim().await, tempfile::tempdir().unwrap());
    let (ca, cert, key) = signed(dir.path(), "signed").await;
    let front =
        Front::new("127.0.0.1", sim.address().port(), acceptor(&cert, &key, rustls::ALL_VERSIONS))
            .await;
    let at = |url: String| Astro { url, ..astro(0, &ca) };
    for (astro, words) in [
        (
            at(format!("wss://127.0.0.1:{}", free_port())),
            "nothing listens at this address and port",
        ),
        (at(format!("ws://127.0.0.1:{}", free_port())), "nothing listens at this address and port"),
        (at("wss://no-such-host.invalid".into()), "no-such-host.invalid: the host's name cannot"),
        (
            at(format!("wss://127.0.0.1:{}", sim.address().port())),
            "does not speak TLS at this port",
        ),
        (at(format!("ws://127.0.0.1:{}", front.port)), "TLS"),
        (
            Astro { ca_file: Some("/nowhere/ca.pem".into()), ..astro(front.port, &ca) },
            "cannot read /nowhere/ca.pem: there is no such file",
        ),
    ] {
        let said = dialled(&astro).await.unwrap_err();
        assert!(said.contains(words), "{}: {said}", astro.url);
        assert!(!said.contains("os error"), "{said}");
    }
}

#[tokio::test]
async fn gateway_and_api_take_the_same_proxy_which_sees_no_token() {
    let (sim, dir) = (sim().await, tempfile::tempdir().unwrap());
    let (ca, cert, key) = signed(dir.path(), "signed").await;
    let front =
        Front::new("127.0.0.1", sim.address().port(), acceptor(&cert, &key, rustls::ALL_VERSIONS))
            .await;
    let through =
        |proxy: String| Astro { proxy: Some(SecretRef::Value(proxy)), ..astro(front.port, &ca) };
    for (manner, login) in [(Manner::Connects, ""), (Manner::Asks, "me:pass%20word@")] {
        let proxy = ProxyServer::new(manner).await;
        let astro = through(format!("http://{login}127.0.0.1:{}", proxy.port));
        assert_eq!(dialled(&astro).await, Ok(()));
        assert_eq!(asked(&Rest::new(&astro)).await, Ok(()));
        let heard = proxy.heard();
        let connect = format!("CONNECT 127.0.0.1:{} HTTP/1.1\r\n", front.port);
        assert!(
            heard.len() >= 2 && heard.iter().all(|head| head.starts_with(&connect)),
            "{heard:?}"
        );
        assert!(!heard.concat().contains("tok-canary"));
    }
    let page = "HTTP/1.1 403 Forbidden\r\nContent-Type: text/html\r\n\r\n<html>";
    for (manner, words) in [
        (Manner::Asks, "wants a user and a password"),
        (Manner::Answers(page), "does not connect us: HTTP 403"),
        (Manner::Answers("HTTP/1.1 503 x\r\nRetry-After: 5\r\n\r\n"), "HTTP 503"),
        (Manner::Answers(""), "closed the connection before it had answered"),
        (Manner::Answers("HTTP/1.1 2"), "closed the connection before it had answered"),
        (Manner::Answers("SSH-2.0-x\r\n\r\n"), "does not answer in HTTP"),
        (Manner::Hangs, "no answer of the proxy within the deadline"),
    ] {
        let proxy = ProxyServer::new(manner).await;
        let astro = through(format!("http://me:hunter2@127.0.0.1:{}", proxy.port));
        let said = dialled(&astro).await.unwrap_err();
        assert!(said.contains(words), "{words}: {said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
    for (proxy, words) in [
        (format!("http://me:hunter2@127.0.0.1:{}", free_port()), "nothing listens"),
        ("socks5://me:hunter2@127.0.0.1:9".to_owned(), "is no HTTP proxy"),
        ("http://".to_owned(), "is none"),
    ] {
        let astro = through(proxy);
        let said =
            [dialled(&astro).await.unwrap_err(), asked(&Rest::new(&astro)).await.unwrap_err()];
        assert!(said[0].contains(words), "{words}: {said:?}");
        assert!(!said.concat().contains("hunter2"), "{said:?}");
    }
}

#[tokio::test]
async fn a_large_head_of_the_upgrade_is_taken() {
    use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
    install_tls();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        let key = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("sec-websocket-key").then(|| value.to_owned())
        });
        let cookies = format!("Set-Cookie: a={}\r\n", "x".repeat(400)).repeat(300);
        let accept = derive_accept_key(key.unwrap().as_bytes());
        let answer = format!(
            "HTTP/1.1 101 x\r\nupgrade: WebSocket\r\nconnection: keep-alive, upgrade\r\n{cookies}\
             sec-websocket-accept: {accept}\r\n\r\n"
        );
        stream.write_all(answer.as_bytes()).await.unwrap();
        // A frame right behind it: the text "hello".
        stream.write_all(&[0x81, 5, b'h', b'e', b'l', b'l', b'o']).await.unwrap();
        stream
    };
    let dialer = Dialer::new(&Astro { url, ..Astro::default() }).unwrap();
    let (socket, _stream) =
        within("upgrade", async { tokio::join!(dialer.dial(None), server) }).await;
    let mut socket = socket.unwrap();
    let frame = within("frame", futures_util::StreamExt::next(&mut socket)).await;
    assert_eq!(frame.unwrap().unwrap().into_text().unwrap().as_str(), "hello");
}
