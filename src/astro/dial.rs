//! Opening a connection to the gateway: name, TCP, TLS, upgrade, each with its deadline.
//!
//! The one thing to know: a refused upgrade keeps its status and `Retry-After`; the reconnect token
//! is put into the address at the last moment and into no error.

mod overheard;
mod spared;

use std::{sync::Arc, time::Duration};

use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{
        self,
        client::IntoClientRequest,
        http,
        protocol::{Role, WebSocketConfig},
    },
};
use url::Url;

use self::{overheard::Overheard, spared::Spared};
use crate::{
    clock,
    config::{Astro, Secret},
    tcp::{self, Transport},
    tls::{self, TlsError},
};

/// Read at once from the socket: about fifty small messages. Held by each connection, and filled with
/// zeros by the library before each reading.
const READ_BUFFER: usize = 32 * 1024;

/// Unsent bytes on a connection, at most: a command is a few hundred bytes.
const WRITE_BUFFER: usize = 1024 * 1024;

/// The stage in which the request is sent.
const UPGRADE: &str = "upgrade";

/// An open WebSocket.
pub type Socket = WebSocketStream<Box<dyn Transport>>;

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
    /// or because the server drains (502 and its kin) comes from whoever stands before the gateway.
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
    host: String,
    port: u16,
    tls: Option<Arc<rustls::ClientConfig>>,
    deadline: Duration,
    websocket: WebSocketConfig,
}

impl Dialer {
    /// From the configuration, which has been checked: `url` is `ws://` or `wss://` with a host.
    pub fn new(astro: &Astro) -> Result<Self, DialerError> {
        let url = Url::parse(&astro.url).map_err(|_| DialerError::Url)?;
        let host = url.host_str().ok_or(DialerError::Url)?.to_owned();
        let secure = url.scheme() == "wss";
        let port = url.port().unwrap_or(if secure { 443 } else { 80 });
        let tls = if secure {
            Some(Arc::new(tls::client_config(astro.ca_file.as_deref(), None, None)?))
        } else {
            None
        };
        // A message above `max_message_size` is read, counted and left out: it must not cost the link.
        let size = astro.max_message_size.bytes().max(CEILING);
        let websocket = WebSocketConfig::default()
            .max_message_size(Some(size))
            .max_frame_size(Some(size))
            .read_buffer_size(READ_BUFFER)
            .max_write_buffer_size(WRITE_BUFFER);
        Ok(Self { url, host, port, tls, deadline: astro.connect_timeout.0, websocket })
    }

    /// Opens a connection; with a token, as the successor of another.
    pub async fn dial(&self, token: Option<&Secret>) -> Result<Socket, DialError> {
        let stream = self.tcp().await?;
        let stream: Box<dyn Transport> = match &self.tls {
            None => Box::new(stream),
            Some(config) => {
                let host = self.host.trim_start_matches('[').trim_end_matches(']').to_owned();
                let name = rustls::pki_types::ServerName::try_from(host)
                    .map_err(|error| failed("TLS", &error))?;
                let connector = tokio_rustls::TlsConnector::from(Arc::clone(config));
                let connected = self.within("TLS", connector.connect(name, stream)).await?;
                Box::new(connected.map_err(|error| failed("TLS", &error))?)
            }
        };
        let mut url = self.url.clone();
        if let Some(token) = token {
            url.query_pairs_mut().append_pair("reconnect_token", token.expose());
        }
        let request =
            url.as_str().into_client_request().map_err(|_| failed(UPGRADE, &"bad address"))?;
        let upgrade = client_async(request, Overheard::new(stream));
        match self.within(UPGRADE, upgrade).await? {
            Ok((socket, _)) => Ok(self.resized(socket).await),
            Err(tungstenite::Error::Http(response)) => Err(DialError::Refused {
                status: response.status().as_u16(),
                retry_after: retry_after(response.headers(), clock::now()),
            }),
            Err(error) => Err(failed(UPGRADE, &error)),
        }
    }

    /// The same connection, with buffers of [`READ_BUFFER`]. The library goes on with the upgrade's own
    /// small buffer, and makes each one after it as small: then a few messages are read at once.
    async fn resized(&self, socket: WebSocketStream<Overheard>) -> Socket {
        let (stream, behind) = socket.into_inner().behind_head(READ_BUFFER);
        let stream: Box<dyn Transport> = Box::new(Spared::new(stream));
        let config = Some(self.websocket);
        WebSocketStream::from_partially_read(stream, behind, Role::Client, config).await
    }

    async fn tcp(&self) -> Result<TcpStream, DialError> {
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        let lookup = tokio::net::lookup_host((host, self.port));
        let addresses: Vec<_> =
            self.within("name", lookup).await?.map_err(|error| failed("name", &error))?.collect();
        let stream = self.within("TCP connection", tcp::connect(addresses)).await?;
        stream.map_err(|error| failed("TCP", &error))
    }

    async fn within<T>(
        &self,
        stage: &'static str,
        work: impl Future<Output = T>,
    ) -> Result<T, DialError> {
        timeout(self.deadline, work).await.map_err(|_| DialError::Timeout(stage))
    }
}

/// A dialer cannot be made of this configuration.
#[derive(Debug, thiserror::Error)]
pub enum DialerError {
    /// Not a WebSocket address.
    #[error("the gateway's url is not a WebSocket address")]
    Url,
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

fn failed(stage: &'static str, error: &impl std::fmt::Display) -> DialError {
    DialError::Failed { stage, text: error.to_string() }
}

/// `Retry-After` in seconds or as a date (RFC 9110, section 10.2.3).
pub(super) fn retry_after(headers: &http::HeaderMap, now: u64) -> Option<Duration> {
    let text = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    let date = date.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(date.saturating_sub(Duration::from_millis(now)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_in_both_forms() {
        let now = 1_708_008_762_000;
        let cases = [
            ("2", Some(2)),
            (" 17 ", Some(17)),
            ("Thu, 15 Feb 2024 14:53:42 GMT", Some(60)),
            ("Thu, 15 Feb 2024 14:51:42 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
        ];
        for (text, seconds) in cases {
            let mut headers = http::HeaderMap::new();
            headers.insert(http::header::RETRY_AFTER, text.parse().unwrap());
            assert_eq!(retry_after(&headers, now), seconds.map(Duration::from_secs), "{text}");
        }
    }
}
