//! The way through an HTTP proxy: by `CONNECT`, with TLS from end to end behind it.
//!
//! Which proxy, the configuration says, or else the environment: `HTTPS_PROXY`, or `ALL_PROXY` where that
//! is not set, and `NO_PROXY` for what is reached directly; in capital or in small letters. What travels
//! without TLS (`ws://`, `http://`) never goes through a proxy: it would see the tokens.
//!
//! A proxy's address may hold a password. Nothing here shows it.

use std::{collections::BTreeMap, fmt, io, net::IpAddr, sync::Arc};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use ipnet::IpNet;
use percent_encoding::percent_decode_str;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;
use url::Url;

use crate::base::{
    fault,
    tcp::{self, Transport},
};

/// The longest answer of a proxy that is read: those with a page of explanation are not read on.
const LONGEST_HEAD: usize = 16 * 1024;

/// Why there is no way through the proxy. Never shows its address.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ProxyError(String);

/// What the environment says of proxies.
#[derive(Clone, Default)]
#[expect(missing_debug_implementations, reason = "the address may hold a password")]
pub struct Environment {
    proxy: Option<(&'static str, String)>,
    direct: String,
}

/// Names of variables, the first of which holds.
const PROXY_VARIABLES: [&str; 4] = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];

const DIRECT_VARIABLES: [&str; 2] = ["NO_PROXY", "no_proxy"];

impl Environment {
    /// From the variables of this process.
    pub fn new(variables: &BTreeMap<String, String>) -> Self {
        let set = |name: &'static str| {
            let value = variables.get(name)?.trim();
            (!value.is_empty()).then(|| (name, value.to_owned()))
        };
        let direct = DIRECT_VARIABLES.into_iter().find_map(set);
        Self {
            proxy: PROXY_VARIABLES.into_iter().find_map(set),
            direct: direct.map(|(_, value)| value).unwrap_or_default(),
        }
    }

    /// The proxy for a host, if one is set and the host is not to be reached directly.
    pub fn proxy(&self, host: &str, port: u16) -> Option<Result<Proxy, ProxyError>> {
        let (from, text) = self.proxy.as_ref()?;
        (!is_direct(&self.direct, host, port)).then(|| Proxy::parse(text, from))
    }
}

/// Whether a list such as `localhost,.example.org,10.0.0.0/8` names a host. A name stands for all below
/// it, with a dot or a star before it or without; `*` for all; an entry may end with a port.
fn is_direct(list: &str, host: &str, port: u16) -> bool {
    let host = bare(host).to_ascii_lowercase();
    let ip = host.parse::<IpAddr>().ok();
    let names = |entry: &str| {
        let (entry, only) = match entry.rsplit_once(':') {
            Some((before, digits))
                if !digits.is_empty()
                    && digits.bytes().all(|b| b.is_ascii_digit())
                    && (!before.contains(':') || before.ends_with(']')) =>
            {
                (before, digits.parse::<u16>().ok())
            }
            _ => (entry, None),
        };
        if only.is_some_and(|only| only != port) {
            return false;
        }
        let entry = bare(entry).to_ascii_lowercase();
        if let Some(ip) = ip {
            let one = entry.parse::<IpAddr>().is_ok_and(|one| one == ip);
            return entry == "*"
                || one
                || entry.parse::<IpNet>().is_ok_and(|net| net.contains(&ip));
        }
        let name = entry.trim_start_matches('*').trim_start_matches('.');
        if name.is_empty() {
            return entry == "*";
        }
        host == name || host.strip_suffix(name).is_some_and(|before| before.ends_with('.'))
    };
    list.split([',', ' ', ';']).map(str::trim).filter(|entry| !entry.is_empty()).any(names)
}

/// A host without brackets and without a dot at its end.
fn bare(host: &str) -> &str {
    let host = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    host.strip_suffix('.').unwrap_or(host)
}

#[derive(Clone)]
pub struct Proxy {
    url: Url,
    from: &'static str,
}

/// Without its address, which may hold a password.
impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({})", self.from)
    }
}

impl Proxy {
    /// Reads an address; `from` says where it stands. Without a scheme it is one of HTTP.
    pub fn parse(text: &str, from: &'static str) -> Result<Self, ProxyError> {
        let text = text.trim();
        let whole = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let url = Url::parse(&whole).map_err(|_| no_address(from))?;
        match url.scheme() {
            "http" | "https" if url.host().is_some() => Ok(Self { url, from }),
            "http" | "https" => Err(no_address(from)),
            _ => Err(ProxyError(format!(
                "the proxy ({from}) is no HTTP proxy, and no other is spoken: http://host:port was expected"
            ))),
        }
    }

    /// The address, for another client: with its password.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// A connection to a host through it. Has no deadline of its own.
    pub async fn connect(
        &self,
        host: &str,
        port: u16,
        tls: &Arc<ClientConfig>,
    ) -> Result<Box<dyn Transport>, ProxyError> {
        let mut stream = self.reach(tls).await?;
        self.tunnel(&mut stream, host, port).await?;
        Ok(stream)
    }

    fn error(&self, what: impl fmt::Display) -> ProxyError {
        ProxyError(format!("the proxy ({}) {what}", self.from))
    }

    fn unreachable(&self, error: &(dyn std::error::Error + 'static)) -> ProxyError {
        self.error(format_args!("cannot be reached: {}", fault::explain(error)))
    }

    /// A connection to the proxy itself.
    async fn reach(&self, tls: &Arc<ClientConfig>) -> Result<Box<dyn Transport>, ProxyError> {
        let secure = self.url.scheme() == "https";
        let port = self.url.port_or_known_default().unwrap_or_default();
        let host = bare(self.url.host_str().unwrap_or_default());
        let found = tokio::net::lookup_host((host, port)).await;
        let addresses = found.map_err(|error| self.unreachable(&error))?.collect();
        let stream = tcp::connect(addresses).await.map_err(|error| self.unreachable(&error))?;
        if !secure {
            return Ok(Box::new(stream));
        }
        let name = ServerName::try_from(host.to_owned()).map_err(|_| no_address(self.from))?;
        let connector = TlsConnector::from(Arc::clone(tls));
        let stream = connector.connect(name, stream).await;
        Ok(Box::new(stream.map_err(|error| self.unreachable(&error))?))
    }

    /// Asks for a tunnel (RFC 9110, section 9.3.6).
    async fn tunnel(
        &self,
        stream: &mut Box<dyn Transport>,
        host: &str,
        port: u16,
    ) -> Result<(), ProxyError> {
        let host = bare(host);
        let target =
            if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let mut request = format!(
            "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nUser-Agent: astro-relay/{}\r\n",
            env!("CARGO_PKG_VERSION")
        );
        if let Some(credentials) = self.credentials() {
            request.push_str("Proxy-Authorization: Basic ");
            request.push_str(&credentials);
            request.push_str("\r\n");
        }
        request.push_str("\r\n");
        let sent = async {
            stream.write_all(request.as_bytes()).await?;
            stream.flush().await
        };
        sent.await.map_err(|error| self.unreachable(&error))?;
        let head = self.head(stream).await?;
        match status(&head) {
            Some(200..=299) => Ok(()),
            // It wants to know who asks, or does not know us.
            Some(407) => Err(self.error(
                "wants a user and a password, or others (HTTP 407): http://user:password@host:port",
            )),
            Some(status) => Err(self.error(format_args!("does not connect us: HTTP {status}"))),
            None => Err(self.error("does not answer in HTTP: is it an HTTP proxy?")),
        }
    }

    fn credentials(&self) -> Option<String> {
        let (user, password) = (self.url.username(), self.url.password());
        if user.is_empty() && password.is_none() {
            return None;
        }
        let mut whole: Vec<u8> = percent_decode_str(user).collect();
        whole.push(b':');
        whole.extend(percent_decode_str(password.unwrap_or_default()));
        Some(BASE64_STANDARD.encode(whole))
    }

    /// The head of its answer. What comes behind it would be the server's: nothing, before we speak.
    async fn head(&self, stream: &mut Box<dyn Transport>) -> Result<Vec<u8>, ProxyError> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") && !head.ends_with(b"\n\n") {
            if head.len() >= LONGEST_HEAD {
                return Err(self.error("sends an answer without an end"));
            }
            // One by one: not one byte too many, and it is done once for each connection.
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(self.error("closed the connection before it had answered"));
                }
                Err(error) => return Err(self.unreachable(&error)),
            }
        }
        Ok(head)
    }
}

fn no_address(from: &'static str) -> ProxyError {
    ProxyError(format!("the proxy's address ({from}) is none: http://host:port was expected"))
}

fn status(head: &[u8]) -> Option<u16> {
    let line = head.split(|byte| *byte == b'\n').next()?;
    let line = str::from_utf8(line).ok()?;
    let mut words = line.split_ascii_whitespace();
    words.next().filter(|word| word.starts_with("HTTP/1."))?;
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_proxy_is_read_in_all_forms() {
        for (list, host, direct) in [
            ("", "example.org", false),
            ("*", "example.org", true),
            ("*", "10.0.0.1", true),
            ("example.org", "example.org", true),
            ("example.org", "a.example.org", true),
            (".example.org", "a.example.org", true),
            (".example.org", "example.org", true),
            ("*.example.org", "a.example.org", true),
            ("EXAMPLE.org", "example.ORG.", true),
            ("example.org", "notexample.org", false),
            ("localhost, example.org", "example.org", true),
            ("localhost example.org", "example.org", true),
            ("example.org:443", "example.org", true),
            ("example.org:80", "example.org", false),
            ("10.0.0.0/8", "10.1.2.3", true),
            ("10.0.0.0/8", "11.1.2.3", false),
            ("10.1.2.3", "10.1.2.3", true),
            ("10.1.2.3:443", "10.1.2.3", true),
            ("::1", "[::1]", true),
            ("[::1]:443", "[::1]", true),
            ("[::1]", "::1", true),
            ("fd00::/8", "[fd00::7]", true),
            ("1.2.3", "10.1.2.3", false),
            (", ,", "example.org", false),
        ] {
            assert_eq!(is_direct(list, host, 443), direct, "{list:?} {host:?}");
        }
    }

    #[test]
    fn the_first_variable_that_is_set_holds() {
        let env = |pairs: &[(&str, &str)]| {
            let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
            Environment::new(&pairs.iter().map(own).collect())
        };
        let host = |environment: &Environment| {
            let proxy = environment.proxy("example.org", 443)?;
            Some(proxy.unwrap().url().host_str().unwrap().to_owned())
        };
        for (variables, expected) in [
            (&[][..], None),
            (&[("HTTP_PROXY", "http://a")], None),
            (&[("HTTPS_PROXY", "http://a")], Some("a")),
            (&[("https_proxy", "a:3128")], Some("a")),
            (&[("ALL_PROXY", "http://b"), ("https_proxy", "http://a")], Some("a")),
            (&[("all_proxy", "http://b")], Some("b")),
            (&[("HTTPS_PROXY", ""), ("ALL_PROXY", "http://b")], Some("b")),
            (&[("HTTPS_PROXY", "http://a"), ("no_proxy", "example.org")], None),
        ] {
            assert_eq!(host(&env(variables)).as_deref(), expected, "{variables:?}");
        }
        let socks = env(&[("ALL_PROXY", "socks5://u:hunter2@a")]);
        let error = socks.proxy("example.org", 443).unwrap().unwrap_err();
        assert!(error.to_string().contains("ALL_PROXY") && !error.to_string().contains("hunter2"));
        assert!(socks.proxy.is_some_and(|proxy| {
            !format!("{:?}", Proxy::parse("http://u:hunter2@a", "x")).contains("hunter2")
                && proxy.0 == "ALL_PROXY"
        }));
    }

    #[test]
    fn a_user_and_a_password_may_be_written_with_percent_signs() {
        let proxy = Proxy::parse("http://me%40home:p%3Aw%25@a:1", "proxy").unwrap();
        let credentials = BASE64_STANDARD.decode(proxy.credentials().unwrap()).unwrap();
        assert_eq!(credentials, b"me@home:p:w%");
        assert!(Proxy::parse("a:1", "proxy").unwrap().credentials().is_none());
    }
}
