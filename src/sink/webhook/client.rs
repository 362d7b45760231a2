//! The HTTP client of a webhook: whom it dials, whom it trusts, and what it leaves out.
//!
//! Left out on purpose: redirects (they would carry a signed body elsewhere), proxies from the
//! environment (they would dial for us, past the [`guard`](super::guard)), cookies, retries, HTTP/2.
//! A request is handed to another connection only where the library has it back unsent.
//!
//! The one thing to know: a connection has no task of its own. Whoever waits for an answer drives the
//! connection that it comes from, so that a request costs no switch from one task to another: a third
//! of the relay's processor time, when there was one. A connection that nobody uses stands still.

use std::{
    convert::Infallible,
    io,
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::{
    Request, Response, Uri,
    body::{Body, Frame, Incoming, SizeHint},
    client::conn::{
        TrySendError,
        http1::{self, SendRequest},
    },
    header::{HOST, HeaderValue},
    http::response,
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use url::{Host, Position, Url};

use super::guard::{Forbidden, Guard};
use crate::base::tcp::{self, Transport};

/// How long an idle connection is kept: Node's servers close one after 5 s, and a request that meets
/// the closing has an unknown outcome.
const KEEP_IDLE: Duration = Duration::from_secs(4);

/// The longest wait for a connection, within what a request may take: a host that is there answers a
/// SYN within seconds, even by satellite.
const CONNECT: Duration = Duration::from_secs(10);

/// How much of an answer's body is read so that the connection can be used again. What it says does
/// not matter.
const DRAIN_BYTES: usize = 64 * 1024;

/// Headers of an answer, at most: some proxies add many, and none of them matters but one.
const MAX_HEADERS: usize = 1000;

/// How long that may take: a new connection is cheaper than waiting.
const DRAIN: Duration = Duration::from_secs(1);

/// Why a request has no answer. Never names the address, which may be a secret.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// The URL cannot be asked for.
    #[error("the address cannot be asked for: {0}")]
    Address(&'static str),
    /// The name was not resolved.
    #[error("no address")]
    Name(#[source] io::Error),
    /// It must not be dialled.
    #[error("not dialled")]
    Forbidden(#[source] Forbidden),
    /// Nobody answers there.
    #[error("no connection")]
    Tcp(#[source] io::Error),
    /// Whoever answers is not the one that was asked for.
    #[error("no TLS")]
    Tls(#[source] io::Error),
    /// The connection was lost, or what came is no HTTP.
    #[error("no answer")]
    Http(#[source] hyper::Error),
    /// It took too long.
    #[error("no {0} within {1:?}")]
    Slow(&'static str, Duration),
}

impl ClientError {
    /// Whether the peer ended the connection in place of an answer.
    pub(super) fn is_close(&self) -> bool {
        let Self::Http(error) = self else { return false };
        let mut source = std::error::Error::source(error);
        let mut reset = false;
        while let Some(inner) = source {
            reset |= inner.downcast_ref::<io::Error>().is_some_and(|inner| {
                use io::ErrorKind::{
                    BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof,
                };
                let kind = inner.kind();
                matches!(kind, BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
            });
            source = inner.source();
        }
        reset || error.is_incomplete_message() || error.is_closed()
    }
}

/// A client of one far side.
pub(super) struct Client {
    host: String,
    port: u16,
    /// Path and query, as they stand in a request.
    uri: Uri,
    /// Host and port, as they stand in a request.
    authority: HeaderValue,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    guard: Arc<Guard>,
    /// How long an answer may take.
    timeout: Duration,
    /// Connections that nobody uses, the one that was used last at the end. No more than were used at
    /// once.
    idle: Mutex<Vec<Connection>>,
}

impl Client {
    /// Makes the client; connects to nothing.
    pub(super) fn new(
        url: &Url,
        mut tls: ClientConfig,
        guard: Arc<Guard>,
        timeout: Duration,
    ) -> Result<Self, ClientError> {
        let host = match url.host().ok_or(ClientError::Address("the host is missing"))? {
            Host::Domain(name) => name.to_owned(),
            Host::Ipv4(address) => address.to_string(),
            Host::Ipv6(address) => address.to_string(),
        };
        let authority = url.host_str().unwrap_or_default();
        let authority = match url.port() {
            Some(port) => HeaderValue::try_from(format!("{authority}:{port}")),
            None => HeaderValue::from_str(authority),
        };
        let path = &url[Position::BeforePath..Position::AfterQuery];
        let tls = if url.scheme() == "https" {
            let name = ServerName::try_from(host.clone())
                .map_err(|_| ClientError::Address("the host has no name for a certificate"))?;
            tls.alpn_protocols = vec![b"http/1.1".to_vec()];
            Some((TlsConnector::from(Arc::new(tls)), name))
        } else {
            None
        };
        Ok(Self {
            port: url.port_or_known_default().unwrap_or(80),
            uri: path
                .parse()
                .map_err(|_| ClientError::Address("the path is not legal in a request"))?,
            authority: authority
                .map_err(|_| ClientError::Address("the host is not legal in a header"))?,
            host,
            tls,
            guard,
            timeout,
            idle: Mutex::default(),
        })
    }

    /// Sends a request, whose address is filled in here, and answers with the head of what comes back.
    pub(super) async fn ask(
        &self,
        mut request: Request<Whole>,
    ) -> Result<response::Parts, ClientError> {
        request.uri_mut().clone_from(&self.uri);
        request.headers_mut().insert(HOST, self.authority.clone());
        let deadline = Instant::now() + self.timeout;
        let exchange = timeout_at(deadline, self.exchange(request)).await;
        let (mut connection, answer) =
            exchange.map_err(|_| ClientError::Slow("answer", self.timeout))??;
        let (head, body) = answer.into_parts();
        // Whatever comes of the rest, the status has been heard.
        let drained = body.is_end_stream() || connection.drain(body, deadline).await;
        if drained && connection.sender.is_ready() {
            connection.since = Instant::now();
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        }
        Ok(head)
    }

    /// Closes the connections that have been idle for too long, when they have.
    pub(super) async fn close_idle(&self) {
        loop {
            let newest = {
                let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
                idle.retain(Connection::is_fresh);
                idle.last().map(|connection| connection.since)
            };
            match newest {
                Some(since) => sleep_until(since + KEEP_IDLE).await,
                None => return,
            }
        }
    }

    /// An idle connection, if there is one that has not been idle for too long.
    fn idle(&self) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = idle.pop().filter(Connection::is_fresh);
        if newest.is_none() {
            // The others are older.
            idle.clear();
        }
        newest
    }

    async fn exchange(
        &self,
        mut request: Request<Whole>,
    ) -> Result<(Connection, Response<Incoming>), ClientError> {
        while let Some(mut connection) = self.idle() {
            match connection.ask(request).await {
                Ok(answer) => return Ok((connection, answer)),
                // The far side had closed it, and nothing of the request has gone out.
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(ClientError::Http(error.into_error())),
                },
            }
        }
        let mut connection = self.dial().await?;
        match connection.ask(request).await {
            Ok(answer) => Ok((connection, answer)),
            Err(error) => Err(ClientError::Http(error.into_error())),
        }
    }

    async fn dial(&self) -> Result<Connection, ClientError> {
        let limit = self.timeout.min(CONNECT);
        let io = timeout(limit, self.connect()).await;
        let io = io.map_err(|_| ClientError::Slow("connection", limit))??;
        let (sender, driver) =
            // What matters is the status: an answer is not sent back for a header that is odd.
            http1::Builder::new()
                .max_headers(MAX_HEADERS)
                .allow_obsolete_multiline_headers_in_responses(true)
                .allow_spaces_after_header_name_in_responses(true)
                .ignore_invalid_headers_in_responses(true)
                .handshake(TokioIo::new(io))
                .await
                .map_err(ClientError::Http)?;
        Ok(Connection { sender, driver: Some(driver), since: Instant::now() })
    }

    async fn connect(&self) -> Result<Box<dyn Transport>, ClientError> {
        let found = tokio::net::lookup_host((&*self.host, self.port)).await;
        let addresses =
            self.guard.filter(found.map_err(ClientError::Name)?).map_err(ClientError::Forbidden)?;
        let stream = tcp::connect(addresses).await.map_err(ClientError::Tcp)?;
        Ok(match &self.tls {
            None => Box::new(stream),
            Some((connector, name)) => {
                let connecting = connector.connect(name.clone(), stream);
                Box::new(connecting.await.map_err(ClientError::Tls)?)
            }
        })
    }
}

/// One connection to the far side.
struct Connection {
    sender: SendRequest<Whole>,
    /// What reads and writes; nothing where the connection has ended.
    driver: Option<http1::Connection<TokioIo<Box<dyn Transport>>, Whole>>,
    /// When it was last used.
    since: Instant,
}

impl Connection {
    fn is_fresh(&self) -> bool {
        self.since.elapsed() < KEEP_IDLE
    }

    /// Sends a request and reads the head of its answer. The request comes back where it was not sent.
    async fn ask(
        &mut self,
        request: Request<Whole>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Whole>>> {
        // That a connection has ended meanwhile is seen by driving it. What comes of it, the sender
        // knows and says below.
        drop(std::future::poll_fn(|cx| self.poll_ready(cx)).await);
        let mut answer = pin!(self.sender.try_send_request(request));
        let driver = &mut self.driver;
        std::future::poll_fn(|cx| {
            drive(driver, cx);
            answer.as_mut().poll(cx)
        })
        .await
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        drive(&mut self.driver, cx);
        self.sender.poll_ready(cx)
    }

    /// Reads what is left of an answer, within limits; whether that was all of it.
    async fn drain(&mut self, mut body: Incoming, deadline: Instant) -> bool {
        let mut bytes = 0;
        let reading = std::future::poll_fn(|cx| {
            drive(&mut self.driver, cx);
            loop {
                match Pin::new(&mut body).poll_frame(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(None) => return Poll::Ready(true),
                    Poll::Ready(Some(Err(_))) => return Poll::Ready(false),
                    Poll::Ready(Some(Ok(frame))) => {
                        bytes += frame.data_ref().map_or(0, Bytes::len);
                        if bytes > DRAIN_BYTES {
                            return Poll::Ready(false);
                        }
                    }
                }
            }
        });
        let limit = deadline.min(Instant::now() + DRAIN);
        timeout_at(limit, reading).await.unwrap_or(false)
    }
}

/// Reads and writes what can be read and written at once. Why a connection has ended, whoever waits
/// for its answer is told by the library.
fn drive(
    driver: &mut Option<http1::Connection<TokioIo<Box<dyn Transport>>, Whole>>,
    cx: &mut Context<'_>,
) {
    if driver.as_mut().is_some_and(|driver| Pin::new(driver).poll(cx).is_ready()) {
        *driver = None;
    }
}

/// The body of a request, there as a whole.
#[derive(Debug, Default)]
pub(super) struct Whole(Option<Bytes>);

impl From<Bytes> for Whole {
    fn from(bytes: Bytes) -> Self {
        Self(Some(bytes).filter(|bytes| !bytes.is_empty()))
    }
}

impl Body for Whole {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let bytes = self.0.as_ref().map_or(0, Bytes::len);
        SizeHint::with_exact(u64::try_from(bytes).unwrap_or(u64::MAX))
    }
}
