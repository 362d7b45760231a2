//! A simulated Astro gateway and Sessions API, in one process and on one port, for tests of any client
//! of Astro.
//!
//! ```text
//!                    +-- ws://…/[?reconnect_token=…]   gateway.rs (one task a connection)
//!   one listener ----+-- http://…/kappa/v2/…           rest.rs    (sessions, activities)
//!                    +-- http://…/control/…            control.rs (faults, publishing)
//!                                   all of them on one World (world.rs)
//! ```
//!
//! It speaks all revisions of the protocol ([`Options`]), produces every error and fault that a
//! client must survive ([`Faults`], [`RestFault`]), and keeps records of what it sent to whom, so that
//! a test can compare them with what came out. It does not speak TLS, and it is no model of Astro's
//! inside: it knows what the public documentation says, and where that is silent, a comment in the
//! code says that we guessed.
//!
//! What is recorded as sent was accepted for a live, subscribed, unsilenced
//! connection. See [`ConnectionRecord`], and `connection.rs` for what that promises at a connection's end.
//!
//! # In a test
//!
//! ```no_run
//! # async fn example() -> std::io::Result<()> {
//! use astro_sim::{End, Options, Reception, Sim};
//!
//! let sim = Sim::start(([127, 0, 0, 1], 0).into(), Options::default()).await?;
//! println!("{} {}", sim.url(), sim.api_url());
//! sim.publish("channel.tips", "577c0455f9a31ea72a36b2b3", r#"{"donation":{"amount":5}}"#);
//! sim.faults(|faults| faults.next.push_back(Reception::Silent));
//! sim.end(None, End::Reset);
//! sim.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! # From outside
//!
//! The calls and faults of `/control/…` are listed in the crate's `README.md`. They are for the machine
//! itself only.

mod activity;
mod clock;
mod command;
mod connection;
mod control;
mod faults;
mod frame;
mod gateway;
mod http;
mod ids;
mod load;
mod options;
mod peer;
mod rest;
mod secret;
mod session;
mod stats;
mod subscribers;
mod sync;
mod text;
mod tokens;
mod traffic;
mod world;

use std::{io, net::SocketAddr, ops::Deref, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::DropGuard;

pub use self::{
    clock::UnixMillis,
    connection::{CommandRecord, ConnectionId, ConnectionRecord, Ended},
    faults::{End, Faults, Malformed, Reception, Refusal, RestFault},
    load::{Load, Loaded},
    options::{
        ActivitiesQuery, Canonical, Documents, MessageIds, OAuthClient, Options, ResetAnswer,
        ResponseType, SessionKeys, SessionReset, SessionUpdate, Success, Token,
    },
    secret::Secret,
    session::{Session as SessionModel, older},
    stats::Stats,
    traffic::{Publication, Step, Traffic},
    world::{Attempt, World},
};

/// How long a connection may take to send the head of its first request.
const HEAD: Duration = Duration::from_secs(10);

/// As much of that head is looked at; a longer one is for the gateway.
const HEAD_BYTES: usize = 4096;

/// Pause before another look at a connection that has sent too little to be told apart, and before
/// another try after a failed accept.
const PAUSE: Duration = Duration::from_millis(5);

/// HTTP connections on their way to the HTTP side.
const HTTP_QUEUE: usize = 64;

/// A running simulation. It ends when this is dropped, at once; everything that can be done with it
/// is a method of [`World`].
#[derive(Debug)]
pub struct Sim {
    world: Arc<World>,
    address: SocketAddr,
    tasks: JoinSet<()>,
    /// Ends what the HTTP library started.
    _stop: DropGuard,
}

impl Sim {
    /// Starts listening; port 0 takes a free one.
    pub async fn start(listen: SocketAddr, options: Options) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let world = Arc::new(World::new(options));
        let mut tasks = JoinSet::new();
        let (http, connections) = mpsc::channel(HTTP_QUEUE);
        start(&mut tasks, http::serve(Arc::clone(&world), address, connections));
        start(&mut tasks, accept(listener, address, Arc::clone(&world), http));
        let stop = world.stop.clone().drop_guard();
        Ok(Self { world, address, tasks, _stop: stop })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    /// The base address of the REST API.
    pub fn api_url(&self) -> String {
        format!("http://{}/kappa/v2", self.address)
    }

    /// Ends it and waits until its port is free. Connections end without a close frame.
    pub async fn stop(mut self) {
        self.world.stop.cancel();
        self.tasks.shutdown().await;
    }
}

impl Deref for Sim {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

/// Accepts connections while the door is open, and starts a task for each.
async fn accept(
    listener: TcpListener,
    address: SocketAddr,
    world: Arc<World>,
    http: mpsc::Sender<TcpStream>,
) {
    let mut tasks = JoinSet::new();
    let mut open = world.listening();
    let mut listener = Some(listener);
    loop {
        let Some(socket) = &listener else {
            listener = reopen(address, &mut open).await;
            continue;
        };
        tokio::select! {
            () = becomes(&mut open, false) => {
                listener = None;
            }
            accepted = socket.accept() => match accepted {
                Ok((stream, _)) => {
                    start(&mut tasks, receive(stream, Arc::clone(&world), http.clone()));
                }
                // Out of file descriptors, most likely: others will close theirs.
                Err(_) => sleep(PAUSE).await,
            },
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
        }
    }
}

/// Waits until the door opens, and listens at the same address again.
async fn reopen(address: SocketAddr, open: &mut watch::Receiver<bool>) -> Option<TcpListener> {
    becomes(open, true).await;
    let listener = TcpListener::bind(address).await.ok();
    if listener.is_none() {
        sleep(PAUSE).await;
    }
    listener
}

/// Waits until the door is open, or shut.
async fn becomes(open: &mut watch::Receiver<bool>, wanted: bool) {
    // The sender lives as long as the world, which the caller holds.
    if open.wait_for(|&open| open == wanted).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Tells by the head of its first request whom a connection is for.
async fn receive(stream: TcpStream, world: Arc<World>, http: mpsc::Sender<TcpStream>) {
    // A gateway that waits for more to send would spoil every latency that is measured with it.
    stream.set_nodelay(true).ok();
    match timeout(HEAD, is_http(&stream)).await {
        // The channel is closed only when the simulation ends.
        Ok(Some(true)) => http.send(stream).await.unwrap_or_default(),
        Ok(Some(false)) => gateway::serve(stream, &world).await,
        Ok(None) | Err(_) => {}
    }
}

/// Looks at the head without taking it; `None` where the connection ends.
async fn is_http(stream: &TcpStream) -> Option<bool> {
    let mut head = [0; HEAD_BYTES];
    loop {
        let read = stream.peek(&mut head).await.ok().filter(|&read| read > 0)?;
        if let Some(decided) = for_http(head.get(..read)?) {
            return Some(decided);
        }
        if read == HEAD_BYTES {
            return Some(false);
        }
        sleep(PAUSE).await;
    }
}

/// Whether a request that begins like this is for the HTTP side; `None`: too short to tell.
fn for_http(head: &[u8]) -> Option<bool> {
    const OURS: [&[u8]; 3] = [b"GET /kappa/", b"GET /control/", b"GET /oauth2/"];
    const GET: &[u8] = b"GET ";
    if OURS.iter().any(|prefix| head.starts_with(prefix)) {
        return Some(true);
    }
    if !head.starts_with(GET) {
        return (!GET.starts_with(head)).then_some(true);
    }
    // On any path: the gateway takes every one, and without an upgrade the HTTP side answers.
    let head = String::from_utf8_lossy(head);
    let upgrades = head.lines().filter_map(|line| line.split_once(':')).any(|(name, value)| {
        name.eq_ignore_ascii_case("upgrade") && value.trim().eq_ignore_ascii_case("websocket")
    });
    if upgrades {
        return Some(false);
    }
    head.contains("\r\n\r\n").then_some(true)
}

#[expect(
    clippy::disallowed_methods,
    reason = "a simulation is a world of its own: its tasks live and end with its handle"
)]
fn start(tasks: &mut JoinSet<()>, task: impl Future<Output = ()> + Send + 'static) {
    tasks.spawn(task);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_and_websocket_are_told_apart_by_the_head_of_the_request() {
        for (head, decided) in [
            ("", None),
            ("GE", None),
            ("GET /con", None),
            ("GET / HTTP/1.1\r\n", None),
            ("GET / HTTP/1.1\r\nHost: sim\r\nUpgrade: web", None),
            ("GET /?reconnect_token=x HTTP/1.1\r\nupgrade: WebSocket\r\n", Some(false)),
            ("GET /?upgrade:websocket HTTP/1.1\r\nHost: sim\r\n\r\n", Some(true)),
            ("GET / HTTP/1.1\r\nHost: sim\r\nUpgrade: h2c\r\n\r\n", Some(true)),
            ("GET /control/sta", Some(true)),
            ("GET /kappa/v2/se", Some(true)),
            ("GET /oauth2/vali", Some(true)),
            ("PUT /kappa/v2/se", Some(true)),
            ("POST /control/pu", Some(true)),
        ] {
            assert_eq!(for_http(head.as_bytes()), decided, "{head}");
        }
    }
}
