//! Opening a connection to the gateway: name, TCP, TLS, upgrade, each with its deadline; or through a
//! proxy in the place of the first two.
//!
//! A refused upgrade keeps its status and `Retry-After`; the reconnect token
//! is put into the address at the last moment and into no error.

mod counted;
mod upgrade;

use std::{error::Error, path::PathBuf, time::Duration};

use rustls::pki_types::ServerName;
use tokio::time::timeout;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::protocol::{Role, WebSocketConfig},
};
use url::Url;

pub use self::counted::Counted;
use super::proxied::Proxied;
use crate::{
    base::{
        fault,
        tcp::{self, Transport},
        tls,
    },
    config::{Astro, ConfigError, Secret},
};

/// Read at once from the socket: about fifty small messages. Held by each connection, and filled with
/// zeros by the library before each reading.
const READ_BUFFER: usize = 32 * 1024;

/// Unsent bytes on a connection, at most: a command is a few hundred bytes.
const WRITE_BUFFER: usize = 1024 * 1024;

/// The stage in which the request is sent.
const UPGRADE: &str = "upgrade";

/// The stage in which a proxy opens the way.
const PROXY: &str = "proxy";

/// An open WebSocket.
pub type Socket = WebSocketStream<Counted>;

/// A connection could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The server answered the upgrade with something else.
    #[error("the gateway answered {status}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// How long it asks us to wait.
        retry_after: Option<Duration>,
    },
    /// A stage took longer than its deadline.
    #[error("no {0} within the deadline")]
    Timeout(&'static str),
    /// A stage failed.
    #[error("{stage} failed: {text}")]
    Failed {
        /// Which.
        stage: &'static str,
        /// Why, without secrets.
        text: String,
    },
}

impl DialError {
    /// How long the server asks us to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            Self::Timeout(_) | Self::Failed { .. } => None,
        }
    }

    /// Whether a reconnect token in the request may have been looked at. A refusal for the rate (429)
    /// or because the server drains (502 and its kin) comes from a proxy before the gateway.
    pub fn token_was_seen(&self) -> bool {
        match self {
            Self::Refused { status, .. } => !matches!(status, 429 | 502..=504),
            Self::Timeout(stage) | Self::Failed { stage, .. } => *stage == UPGRADE,
        }
    }
}

/// What a message may have in any case before it costs the connection.
const CEILING: usize = 64 * 1024 * 1024;

/// Opens connections to one gateway.
#[derive(Debug)]
pub struct Dialer {
    url: Url,
    /// As it is looked up: without brackets, and without the dot of a whole name.
    host: String,
    port: u16,
    secure: bool,
    ca_file: Option<PathBuf>,
    proxied: Proxied,
    deadline: Duration,
    websocket: WebSocketConfig,
}

impl Dialer {
    /// From the configuration, which has been checked: `url` is `ws://` or `wss://` with a host.
    pub fn new(astro: &Astro) -> Result<Self, ConfigError> {
        let invalid = || ConfigError::at(&["astro", "url"], "it is not a WebSocket address");
        let url = Url::parse(&astro.url).map_err(|_| invalid())?;
        let host = url.host_str().ok_or_else(invalid)?;
        let host = host.trim_start_matches('[').trim_end_matches([']', '.']).to_owned();
        let secure = url.scheme() == "wss";
        let port = url.port().unwrap_or(if secure { 443 } else { 80 });
        // A message above `max_message_size` is read, counted and left out: it must not cost the link.
        let size = astro.max_message_size.bytes().max(CEILING);
        let websocket = WebSocketConfig::default()
            .max_message_size(Some(size))
            .max_frame_size(Some(size))
            .read_buffer_size(READ_BUFFER)
            .max_write_buffer_size(WRITE_BUFFER);
        Ok(Self {
            url,
            host,
            port,
            secure,
            ca_file: astro.ca_file.clone(),
            proxied: Proxied::new(astro),
            deadline: astro.connect_timeout.0,
            websocket,
        })
    }

    /// Opens a connection; with a token, as the successor of another.
    pub async fn dial(&self, token: Option<&Secret>) -> Result<Socket, DialError> {
        let stream = if self.secure { self.encrypted().await? } else { self.tcp().await? };
        let mut url = self.url.clone();
        if let Some(token) = token {
            url.query_pairs_mut().append_pair("reconnect_token", token.expose());
        }
        let upgraded = self.within(UPGRADE, upgrade::upgrade(stream, &url, READ_BUFFER)).await?;
        let (stream, behind) = upgraded?;
        // The library's own upgrade would go on with its small buffer, and make each one after it as
        // small: then a few messages are read at once.
        let config = Some(self.websocket);
        let stream = Counted::new(stream);
        Ok(WebSocketStream::from_partially_read(stream, behind, Role::Client, config).await)
    }

    /// A connection with TLS, with the certificates as they are now.
    async fn encrypted(&self) -> Result<Box<dyn Transport>, DialError> {
        let files = async {
            tls::prepare(self.ca_file.as_deref()).await;
            tls::client_config(self.ca_file.as_deref(), None, None).await
        };
        let config = self.within("certificate authorities", files).await?;
        let config = config.map_err(|error| failed("TLS", &error))?;
        let proxy = self.proxied.proxy(&self.url);
        let proxy = proxy.await.map_err(|text| DialError::Failed { stage: PROXY, text })?;
        let stream: Box<dyn Transport> = match proxy {
            None => self.tcp().await?,
            Some(proxy) => {
                let tunnel = proxy.connect(&self.host, self.port, &config);
                let tunnel = self.within("answer of the proxy", tunnel).await?;
                tunnel.map_err(|error| failed(PROXY, &error))?
            }
        };
        let name =
            ServerName::try_from(self.host.clone()).map_err(|error| failed("TLS", &error))?;
        let connector = tokio_rustls::TlsConnector::from(config);
        let connected = self.within("TLS", connector.connect(name, stream)).await?;
        Ok(Box::new(connected.map_err(|error| failed("TLS", &error))?))
    }

    async fn tcp(&self) -> Result<Box<dyn Transport>, DialError> {
        let lookup = tokio::net::lookup_host((&*self.host, self.port));
        let addresses = self.within("name", lookup).await?.map_err(|error| DialError::Failed {
            stage: "name",
            text: format!("{}: {}", self.host, fault::explain(&error)),
        })?;
        let stream = self.within("TCP connection", tcp::connect(addresses.collect())).await?;
        Ok(Box::new(stream.map_err(|error| failed("TCP", &error))?))
    }

    async fn within<T>(
        &self,
        stage: &'static str,
        work: impl Future<Output = T>,
    ) -> Result<T, DialError> {
        timeout(self.deadline, work).await.map_err(|_| DialError::Timeout(stage))
    }
}

fn failed(stage: &'static str, error: &(dyn Error + 'static)) -> DialError {
    DialError::Failed { stage, text: fault::explain(error) }
}
