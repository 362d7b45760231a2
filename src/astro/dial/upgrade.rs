//! The upgrade of an HTTP connection to a WebSocket (RFC 6455, section 4).
//!
//! Done with the HTTP library instead of the WebSocket library, which takes no head of more than 64 KiB
//! or 124 lines: a gateway behind a few proxies with their cookies can send one.
//!
//! A refused upgrade keeps its status and `Retry-After`, and nothing that came
//! behind the head of a granted one is lost.

use hyper::{
    Request, StatusCode,
    client::conn::http1,
    header::{
        CONNECTION, HOST, HeaderMap, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
        SEC_WEBSOCKET_VERSION, UPGRADE, USER_AGENT,
    },
};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::tungstenite::handshake::{client::generate_key, derive_accept_key};
use url::{Position, Url};

use super::{DialError, failed};
use crate::base::{clock, tcp::Transport};

/// The longest head of an answer that is read.
const LONGEST_HEAD: usize = 256 * 1024;

/// Lines of it, at most.
const MOST_HEADERS: usize = 1024;

/// A stream that now carries frames, and what was read of them already, in memory for `capacity` bytes.
pub(super) async fn upgrade(
    stream: Box<dyn Transport>,
    url: &Url,
    capacity: usize,
) -> Result<(Box<dyn Transport>, Vec<u8>), DialError> {
    let broken = |error: &hyper::Error| failed(super::UPGRADE, error);
    let mut builder = http1::Builder::new();
    builder.max_buf_size(LONGEST_HEAD).max_headers(MOST_HEADERS);
    let (mut sender, connection) =
        builder.handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
    let key = generate_key();
    let request = request(url, &key)?;
    let mut driving = std::pin::pin!(connection.without_shutdown());
    let mut end = None;
    let mut answer = std::pin::pin!(sender.send_request(request));
    let response = loop {
        tokio::select! {
            biased;
            response = &mut answer => break response,
            ended = &mut driving, if end.is_none() => end = Some(ended),
        }
    };
    let response = response.map_err(|error| broken(&error))?;
    let status = response.status();
    if status != StatusCode::SWITCHING_PROTOCOLS {
        let retry_after = clock::retry_after(response.headers(), clock::now());
        return Err(DialError::Refused { status: status.as_u16(), retry_after });
    }
    if let Some(what) = missing(response.headers(), &key) {
        let text = format!("what answers is no WebSocket server: {what}");
        return Err(DialError::Failed { stage: super::UPGRADE, text });
    }
    let parts = match end {
        Some(ended) => ended,
        None => driving.await,
    };
    let parts = parts.map_err(|error| broken(&error))?;
    let mut behind = Vec::with_capacity(capacity.max(parts.read_buf.len()));
    behind.extend_from_slice(&parts.read_buf);
    Ok((parts.io.into_inner(), behind))
}

fn request(url: &Url, key: &str) -> Result<Request<String>, DialError> {
    // A user and a password in the address are not sent: the gateway knows tokens.
    let host = url.host_str().unwrap_or_default();
    let host = host.strip_suffix('.').unwrap_or(host);
    let host = match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    };
    Request::builder()
        .uri(&url[Position::BeforePath..Position::AfterQuery])
        .header(HOST, host)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(SEC_WEBSOCKET_KEY, key)
        .header(USER_AGENT, concat!("astro-relay/", env!("CARGO_PKG_VERSION")))
        .body(String::new())
        // What is wrong with it may quote the token in it.
        .map_err(|_| DialError::Failed { stage: super::UPGRADE, text: "bad address".into() })
}

/// What an answer lacks to grant the upgrade.
fn missing(headers: &HeaderMap, key: &str) -> Option<&'static str> {
    let has = |name: HeaderName, word: &str| {
        let words = headers.get_all(name).into_iter().filter_map(|text| text.to_str().ok());
        words.flat_map(|text| text.split(',')).any(|one| one.trim().eq_ignore_ascii_case(word))
    };
    let accepted = headers.get(SEC_WEBSOCKET_ACCEPT).map(|text| text.as_bytes().trim_ascii());
    match accepted {
        _ if !has(UPGRADE, "websocket") => Some("it does not switch to WebSocket"),
        _ if !has(CONNECTION, "upgrade") => Some("it does not switch the connection"),
        Some(accepted) if accepted == derive_accept_key(key.as_bytes()).as_bytes() => None,
        _ => Some("it does not answer to our key"),
    }
}
