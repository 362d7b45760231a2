//! Connections: a limited number, each with a limit for its request and for reading the answer, all within
//! one task.
//!
//! - A new connection is always let in, for it may be a probe: where all places are taken, the least
//!   useful one is closed. That is one that does not take its answer; then one that has not asked yet,
//!   or not again; and last one that is being answered; of several the one that has been so for longest.
//! - An address has a share of the slots, but for those of this machine, which all look alike.
//! - A client that does not read its answer in time, or does not finish its request, is cut off.
//!
//! Nothing is spawned. The connections are futures of the endpoint's own task,
//! so that they end with it, and the supervisor knows them all.

use std::{
    convert::Infallible,
    io,
    net::IpAddr,
    panic::AssertUnwindSafe,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes, HttpBody},
    extract::Request,
    middleware::{Next, from_fn},
    response::Response,
};
use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use hyper::{
    body::{Frame, SizeHint},
    server::conn::http1,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpListener,
    time::{Instant, Sleep, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::attempts::network;
use crate::base::{
    metrics::{HTTP_CLOSED, add_for},
    sync::lock,
};

/// Connections at once: an operator's browser takes six, a scraper one.
const CONNECTIONS: usize = 128;

/// Of them those of one address that is not this machine's.
const PER_ADDRESS: usize = 32;

/// Connections that are to close and may not have closed yet.
const CLOSING: usize = 32;

/// How long a request's headers may take, and how long a connection may stand idle.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a client may take to read what it was sent, before it is cut off.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long clients may take for the rest of their answers when the relay stops.
const DRAIN: Duration = Duration::from_secs(3);

/// Where a request came from; every request carries it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) IpAddr);

/// Accepts and serves until `stop`; what is being answered then is finished.
pub(super) async fn serve(listener: &TcpListener, app: Router, stop: &CancellationToken) {
    /// Out of descriptors, most likely: they come back.
    const WAIT: Duration = Duration::from_millis(100);
    let mut open = FuturesUnordered::new();
    let mut slots = Slots::default();
    let mut pause = Instant::now();
    loop {
        let accepting = async {
            sleep_until(pause).await;
            listener.accept().await
        };
        tokio::select! {
            () = stop.cancelled() => break,
            Some(()) = open.next(), if !open.is_empty() => {}
            accepted = accepting, if open.len() < CONNECTIONS + CLOSING => match accepted {
                Ok((stream, peer)) => {
                    let slot = slots.take(peer.ip());
                    open.push(connection(stream, app.clone(), slot, stop.clone()));
                }
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    slots.free_one(|_| true);
                    pause = Instant::now() + WAIT;
                }
            },
        }
    }
    let answered = async { while open.next().await.is_some() {} };
    if timeout(DRAIN, answered).await.is_err() {
        debug!("connections to the endpoint were closed before they had taken their answers");
    }
}

/// The connections that there are.
#[derive(Debug, Default)]
struct Slots(Vec<Arc<Slot>>);

impl Slots {
    /// A slot for a new connection; another loses its own where there is none.
    fn take(&mut self, peer: IpAddr) -> Arc<Slot> {
        let address = network(peer);
        // The connection itself holds the other one.
        self.0.retain(|slot| Arc::strong_count(slot) > 1);
        let same = |slot: &Slot| slot.address == address;
        let share = self.0.iter().filter(|slot| same(slot)).count();
        if !peer.to_canonical().is_loopback() && share >= PER_ADDRESS {
            self.free_one(same);
        } else if self.0.len() >= CONNECTIONS {
            self.free_one(|_| true);
        }
        let slot = Arc::new(Slot {
            peer,
            address,
            close: CancellationToken::new(),
            state: Mutex::new(State {
                activity: Activity::Waiting,
                since: Instant::now(),
                stalled: None,
            }),
        });
        self.0.push(Arc::clone(&slot));
        slot
    }

    /// Closes the least useful connection of these.
    fn free_one(&mut self, which: impl Fn(&Slot) -> bool) {
        let of_these = self.0.iter().enumerate().filter(|(_, slot)| which(slot));
        let least = of_these.min_by_key(|(_, slot)| {
            let state = slot.lock();
            match state.stalled {
                Some(since) => (Activity::Stalled, since),
                None => (state.activity, state.since),
            }
        });
        if let Some((index, _)) = least {
            self.0.swap_remove(index).close.cancel();
            add_for(HTTP_CLOSED, "reason", "crowded", 1);
        }
    }
}

/// What a connection does; the least useful first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Activity {
    /// It does not take what it is sent.
    Stalled,
    /// It has not asked yet, or not again.
    Waiting,
    /// It is being answered.
    Answering,
}

#[derive(Debug)]
struct State {
    activity: Activity,
    since: Instant,
    /// Since when it has not taken what it is sent.
    stalled: Option<Instant>,
}

/// A connection as others see it.
#[derive(Debug)]
struct Slot {
    peer: IpAddr,
    /// What counts as one address.
    address: IpAddr,
    /// It is to be closed now.
    close: CancellationToken,
    state: Mutex<State>,
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn set_activity(&self, activity: Activity) {
        let mut state = self.lock();
        (state.activity, state.since) = (activity, Instant::now());
    }
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    app: Router,
    slot: Arc<Slot>,
    stop: CancellationToken,
) {
    let marked = Arc::clone(&slot);
    let app = app.layer(from_fn(move |request, next| mark(Arc::clone(&marked), request, next)));
    let stream = Watched { stream, slot: Arc::clone(&slot), stalled: None };
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    let until_told = async {
        let mut serving = pin!(serving);
        tokio::select! {
            ended = serving.as_mut() => return ended,
            () = slot.close.cancelled() => return Ok(()),
            () = stop.cancelled() => serving.as_mut().graceful_shutdown(),
        }
        serving.await
    };
    match AssertUnwindSafe(until_told).catch_unwind().await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "a connection to the endpoint ended early"),
        // The panic's own text is in the log; a request must not end the relay.
        Err(_) => error!("a request made the endpoint panic; its connection was closed"),
    }
}

/// Says where a request came from, and that it is being answered until the answer's body has ended.
async fn mark(slot: Arc<Slot>, mut request: Request, next: Next) -> Result<Response, Infallible> {
    request.extensions_mut().insert(Peer(slot.peer));
    slot.set_activity(Activity::Answering);
    let answering = Answering(slot);
    let response = next.run(request).await;
    Ok(response.map(|body| Body::new(Answer { body, _answering: answering })))
}

/// A request that is being answered, until this is dropped.
struct Answering(Arc<Slot>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.set_activity(Activity::Waiting);
    }
}

/// The body of an answer.
struct Answer {
    body: Body,
    _answering: Answering,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        HttpBody::size_hint(&self.body)
    }
}

/// A stream whose other side has [`WRITE_TIMEOUT`] for taking what is sent.
struct Watched<S> {
    stream: S,
    slot: Arc<Slot>,
    /// Ends when the time is over; there while something is not taken.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Watched<S> {
    fn written(
        &mut self,
        outcome: Poll<io::Result<usize>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if outcome.is_ready() {
            // Some of it was taken; the time goes on until all is.
            return outcome;
        }
        self.slot.lock().stalled.get_or_insert_with(Instant::now);
        let late = self.stalled.get_or_insert_with(|| Box::pin(sleep(WRITE_TIMEOUT)));
        if late.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        add_for(HTTP_CLOSED, "reason", "not_reading", 1);
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the answer was not taken in time",
        )))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.written(outcome, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.written(outcome, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// Comes when all that there was has been written.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(context);
        if outcome.is_ready() && self.stalled.take().is_some() {
            self.slot.lock().stalled = None;
        }
        outcome
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
        time::Instant,
    };

    use super::*;

    fn app() -> Router {
        Router::new()
            .route("/", get(async || "here"))
            .route("/long", get(async || "x".repeat(100_000)))
            .route("/panic", get(async || -> &'static str { panic!("on purpose") }))
    }

    fn slot() -> Arc<Slot> {
        Slots::default().take([127, 0, 0, 1].into())
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
        tokio::join!(connection(far, app(), slot(), stop), talk).1
    }

    #[tokio::test(start_paused = true)]
    async fn endless_headers_and_idle_connections_are_closed() {
        for request in
            ["GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ", "GET / HTTP/1.1\r\nHost: a\r\n\r\n"]
        {
            let before = Instant::now();
            let answer = answer(request, CancellationToken::new()).await;
            assert_eq!(answer.ends_with("here"), request.ends_with("\r\n\r\n"), "{answer}");
            assert_eq!(before.elapsed().as_secs(), IDLE_TIMEOUT.as_secs(), "{request:?}");
        }
    }

    /// Asks for more than fits on the way, and hands both ends out.
    async fn asking() -> (DuplexStream, DuplexStream) {
        let (mut near, far) = tokio::io::duplex(4096);
        near.write_all(b"GET /long HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        (near, far)
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_is_cut_off() {
        let (_near, far) = asking().await;
        let (slot, before) = (slot(), Instant::now());
        let watch = async {
            sleep(WRITE_TIMEOUT / 2).await;
            slot.lock().stalled.is_some()
        };
        let serving = connection(far, app(), Arc::clone(&slot), CancellationToken::new());
        let ((), stalled) = tokio::join!(serving, watch);
        assert_eq!((stalled, before.elapsed()), (true, WRITE_TIMEOUT));
    }

    #[tokio::test(start_paused = true)]
    async fn a_byte_now_and_then_is_not_reading() {
        let (mut near, far) = asking().await;
        let before = Instant::now();
        let trickle = async {
            while let Ok(1..) = near.read(&mut [0]).await {
                sleep(Duration::from_millis(100)).await;
            }
        };
        let serving = async {
            connection(far, app(), slot(), CancellationToken::new()).await;
            before.elapsed()
        };
        tokio::select! {
            took = serving => assert_eq!(took, WRITE_TIMEOUT),
            () = trickle => panic!("it was not cut off"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_least_useful_connection_is_closed_for_a_new_one() {
        let mut slots = Slots::default();
        let mut open: Vec<_> = Vec::new();
        for n in 0..CONNECTIONS {
            let slot = slots.take([127, 0, 0, 1].into());
            slot.set_activity(if [3, 9].contains(&n) {
                Activity::Waiting
            } else {
                Activity::Answering
            });
            slot.lock().stalled = (n == 7).then(Instant::now);
            open.push(slot);
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        for close in [7, 3, 9] {
            assert!(!open[close].close.is_cancelled());
            let new = slots.take([192, 0, 2, 1].into());
            new.set_activity(Activity::Answering);
            open.push(new);
            assert!(open[close].close.is_cancelled(), "{close}");
        }
        open.push(slots.take([192, 0, 2, 1].into()));
        assert!(open[0].close.is_cancelled(), "the oldest of those that are answered");
        assert_eq!(slots.0.len(), CONNECTIONS);
        // A connection that has ended leaves its slot.
        open.truncate(10);
        open.push(slots.take([192, 0, 2, 1].into()));
        assert!(slots.0.len() <= 11);
    }

    #[tokio::test(start_paused = true)]
    async fn slots_per_address_are_limited_except_on_loopback() {
        let mut slots = Slots::default();
        let open: Vec<_> =
            (0..PER_ADDRESS * 2).map(|_| slots.take([192, 0, 2, 1].into())).collect();
        assert_eq!(open.iter().filter(|slot| !slot.close.is_cancelled()).count(), PER_ADDRESS);
        let ours: Vec<_> =
            (0..PER_ADDRESS * 2).map(|_| slots.take([127, 0, 0, 1].into())).collect();
        assert!(ours.iter().all(|slot| !slot.close.is_cancelled()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_ends_the_connection_alone() {
        let answer = answer("GET /panic HTTP/1.1\r\nHost: a\r\n\r\n", CancellationToken::new());
        assert_eq!(answer.await, "");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_ends_an_idle_connection_at_once() {
        let stop = CancellationToken::new();
        stop.cancel();
        let before = Instant::now();
        answer("", stop).await;
        assert_eq!(before.elapsed(), Duration::ZERO);
    }
}
