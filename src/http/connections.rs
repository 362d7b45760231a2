//! Connections: so many at once, each with time for its headers, all within one task.
//!
//! The one thing to know: nothing is spawned. The connections are futures of the endpoint's own task,
//! so that they end with it, and the supervisor knows them all.

use std::{panic::AssertUnwindSafe, pin::pin, time::Duration};

use axum::Router;
use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

/// Connections at once: an operator's browser takes six, a scraper one. Others wait to be accepted.
const CONNECTIONS: usize = 128;

/// How long a request's headers may take, and how long a connection may stand idle.
const HEADERS: Duration = Duration::from_secs(20);

/// Accepts and serves until it is told to stop; what is being answered is finished.
pub(super) async fn serve(listener: &TcpListener, app: Router, stop: &CancellationToken) {
    let mut open = FuturesUnordered::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(()) = open.next(), if !open.is_empty() => {}
            stream = accept(listener), if open.len() < CONNECTIONS => {
                open.push(connection(stream, app.clone(), stop.clone()));
            }
        }
    }
    // Bounded by the supervisor's deadline.
    while open.next().await.is_some() {}
}

async fn accept(listener: &TcpListener) -> TcpStream {
    /// Out of descriptors, most likely: they come back.
    const WAIT: Duration = Duration::from_millis(100);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                sleep(WAIT).await;
            }
        }
    }
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    app: Router,
    stop: CancellationToken,
) {
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    let until_told = async {
        let mut serving = pin!(serving);
        tokio::select! {
            ended = serving.as_mut() => return ended,
            () = stop.cancelled() => serving.as_mut().graceful_shutdown(),
        }
        serving.await
    };
    match AssertUnwindSafe(until_told).catch_unwind().await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "a connection to the endpoint ended early"),
        // The panic's own text went to standard error; a request must not end the relay.
        Err(_) => error!("a request made the endpoint panic; its connection was closed"),
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        time::Instant,
    };

    use super::*;

    fn app() -> Router {
        Router::new()
            .route("/", get(async || "here"))
            .route("/panic", get(async || -> &'static str { panic!("on purpose") }))
    }

    /// What comes back for these bytes until the connection is closed.
    async fn answer(request: &str, stop: CancellationToken) -> String {
        let (mut near, far) = tokio::io::duplex(4096);
        let talk = async {
            near.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            near.read_to_string(&mut answer).await.unwrap();
            answer
        };
        tokio::join!(connection(far, app(), stop), talk).1
    }

    #[tokio::test(start_paused = true)]
    async fn headers_that_never_end_and_idle_connections_are_closed() {
        for request in
            ["GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ", "GET / HTTP/1.1\r\nHost: a\r\n\r\n"]
        {
            let before = Instant::now();
            let answer = answer(request, CancellationToken::new()).await;
            assert_eq!(answer.ends_with("here"), request.ends_with("\r\n\r\n"), "{answer}");
            assert_eq!(before.elapsed().as_secs(), HEADERS.as_secs(), "{request:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_ends_the_connection_alone() {
        let answer = answer("GET /panic HTTP/1.1\r\nHost: a\r\n\r\n", CancellationToken::new());
        assert_eq!(answer.await, "");
    }

    #[tokio::test(start_paused = true)]
    async fn being_told_to_stop_ends_an_idle_connection_at_once() {
        let stop = CancellationToken::new();
        stop.cancel();
        let before = Instant::now();
        answer("", stop).await;
        assert_eq!(before.elapsed(), Duration::ZERO);
    }
}
