//! The HTTP client of a webhook: whom it dials, whom it trusts, and what it leaves out.
//!
//! Left out on purpose: redirects (they would carry a signed body elsewhere), proxies from the
//! environment (they would dial for us, past the [`guard`](super::guard)), cookies, retries, HTTP/2.
//! A request goes out again only where the library knows that nothing of it was sent.

use std::{
    error::Error,
    io::{self, ErrorKind},
    sync::Arc,
    time::Duration,
};

use hyper::{
    Method, StatusCode,
    header::{HeaderMap, HeaderValue},
};
use reqwest::{
    Body, Response,
    dns::{Addrs, Name, Resolve, Resolving},
    redirect,
};
use rustls::ClientConfig;
use tokio::time::timeout;
use url::Url;

use super::guard::Guard;
use crate::{base::fault, sink::Cause};

/// How long an idle connection is kept: Node's servers close one after 5 s, and a request that meets
/// the closing has an unknown outcome.
const KEEP_IDLE: Duration = Duration::from_secs(4);

/// The longest wait for a connection, within what a request may take: a host that is there answers a
/// SYN within seconds, even by satellite.
const CONNECT: Duration = Duration::from_secs(10);

/// How much of an answer's body is read so that the connection can be used again. Its content does not
/// matter.
const DRAIN_BYTES: usize = 64 * 1024;

/// How long that may take: a new connection is cheaper than waiting.
const DRAIN: Duration = Duration::from_secs(1);

/// Headers of an answer, at most: some proxies add many, and none of them matters but one. Each costs the
/// library time with every answer, whether or not it is there.
const MAX_HEADERS: usize = 512;

/// A client of one destination.
pub(super) struct Client {
    http: reqwest::Client,
    url: Url,
    /// How long an answer may take, and within it the connection.
    timeout: Duration,
    connect: Duration,
}

/// The head of an answer.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
}

impl Client {
    /// Makes the client; connects to nothing.
    pub(super) fn new(
        url: Url,
        tls: ClientConfig,
        guard: Arc<Guard>,
        timeout: Duration,
    ) -> Result<Self, Cause> {
        let connect = timeout.min(CONNECT);
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .http1_only()
            .redirect(redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .dns_resolver(Guarded(guard))
            .connect_timeout(connect)
            .pool_idle_timeout(KEEP_IDLE)
            // What matters is the status: an event is not sent again for a header that is odd.
            .http1_max_headers(MAX_HEADERS)
            .http1_allow_obsolete_multiline_headers_in_responses(true)
            .http1_allow_spaces_after_header_name_in_responses(true)
            .http1_ignore_invalid_headers_in_responses(true)
            .build()
            .map_err(|error| Cause::Down(error.without_url().into()))?;
        Ok(Self { http, url, timeout, connect })
    }

    /// Sends a request and answers with the head of what comes back. No error names the URL, which may be a
    /// secret.
    pub(super) async fn send(
        &self,
        method: Method,
        headers: HeaderMap<HeaderValue>,
        body: impl Into<Body>,
    ) -> Result<Answer, Cause> {
        let request = self.http.request(method, self.url.clone()).headers(headers).body(body);
        let mut answer = match timeout(self.timeout, request.send()).await {
            Ok(answer) => answer.map_err(|error| self.cause(error))?,
            Err(_) => return Err(slow("answer", self.timeout)),
        };
        let (status, headers) = (answer.status(), std::mem::take(answer.headers_mut()));
        // Whatever comes of the rest, the status is known.
        drop(timeout(DRAIN.min(self.timeout), drain(answer)).await);
        Ok(Answer { status, headers })
    }

    fn cause(&self, error: reqwest::Error) -> Cause {
        let error = error.without_url();
        if error.is_connect() {
            return if error.is_timeout() {
                slow("connection", self.connect)
            } else {
                Cause::Down(fault::explain(&error).into())
            };
        }
        let text = fault::explain(&error);
        if is_close(&error) { Cause::closed(text) } else { Cause::Down(text.into()) }
    }
}

fn slow(what: &str, limit: Duration) -> Cause {
    Cause::Down(format!("no {what} within {limit:?}").into())
}

/// Reads what is left of an answer, within limits; what is not read costs the connection.
async fn drain(mut answer: Response) {
    let mut bytes = 0;
    while let Ok(Some(chunk)) = answer.chunk().await {
        bytes += chunk.len();
        if bytes > DRAIN_BYTES {
            return;
        }
    }
}

/// Whether the peer ended the connection in place of an answer.
fn is_close(error: &reqwest::Error) -> bool {
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = next {
        let closed = error
            .downcast_ref::<hyper::Error>()
            .is_some_and(|error| error.is_incomplete_message() || error.is_closed());
        let ended = error.downcast_ref::<io::Error>().is_some_and(|error| {
            use ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
            matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
        });
        if closed || ended {
            return true;
        }
        next = error.source();
    }
    false
}

/// Resolves names to the addresses that may be dialled.
struct Guarded(Arc<Guard>);

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = Arc::clone(&self.0);
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            Ok(Box::new(guard.filter(found)?.into_iter()) as Addrs)
        })
    }
}
