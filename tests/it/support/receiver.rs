//! A receiver of webhooks: answers by a script, and remembers what it was sent.
//!
//! It runs on a runtime of its own, so that it can be killed with all its connections.

use std::{
    collections::VecDeque,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, Method, Response, StatusCode, header},
    serve::{Listener, ListenerExt},
};
use bytes::Bytes;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Runtime,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// What the receiver does with one request.
#[derive(Debug, Clone)]
pub enum Answer {
    /// This status.
    Status(u16),
    /// This status with a header.
    With(u16, header::HeaderName, String),
    /// 200, after a while.
    Late(Duration),
    /// Nothing: the connection is dropped after the request was read.
    Drop,
    /// 200 and a body that never ends, in pieces of this many bytes.
    Endless(usize),
    /// 200 and a body that never comes.
    Stuck,
}

impl Answer {
    fn accepts(&self) -> bool {
        match self {
            Self::Status(status) | Self::With(status, ..) => (200..300).contains(status),
            Self::Late(_) | Self::Endless(_) | Self::Stuck => true,
            Self::Drop => false,
        }
    }
}

/// One request as it came.
#[derive(Debug, Clone)]
pub struct Received {
    /// Its method.
    pub method: Method,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// Requests that were being answered then, with this one.
    pub at_once: usize,
    /// Whether the answer is that it is accepted.
    pub accepted: bool,
}

impl Received {
    /// A header as text; empty if there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The number in the body that the tests put there.
    pub fn n(&self) -> u64 {
        self.number().expect("an event of the tests")
    }

    /// The same where there is one: the relay has events of its own.
    pub fn number(&self) -> Option<u64> {
        super::carry::number(&self.body)
    }

    /// Whether it is signed with this secret.
    pub fn verify(&self, secret: &str) -> bool {
        let webhook = standardwebhooks::Webhook::new(secret).unwrap();
        webhook.verify(&self.body, &self.headers).is_ok()
    }
}

#[derive(Default)]
struct Shared {
    script: Mutex<VecDeque<Answer>>,
    by_room: Mutex<Vec<(String, Answer)>>,
    by_number: Mutex<Vec<(u64, Answer)>>,
    received: Mutex<Vec<Received>>,
    at_once: AtomicUsize,
    connections: AtomicUsize,
}

/// A running receiver.
pub struct Receiver {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
    tls: bool,
}

impl Receiver {
    /// Starts one that accepts everything.
    pub fn start() -> Self {
        Self::new(false)
    }

    /// Starts one that speaks TLS, with the certificate beside the tests.
    pub fn start_tls() -> Self {
        Self::new(true)
    }

    fn new(tls: bool) -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut receiver = Self { address, shared: Arc::default(), runtime: None, tls };
        receiver.restart();
        receiver
    }

    /// Starts it again on the same port, with what it has received and its script.
    pub fn restart(&mut self) {
        self.kill();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = std::net::TcpListener::bind(self.address).unwrap();
        listener.set_nonblocking(true).unwrap();
        self.address = listener.local_addr().unwrap();
        let shared = Arc::clone(&self.shared);
        let app = Router::new().fallback(receive).with_state(Arc::clone(&shared));
        let tls = self.tls.then(acceptor);
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap().tap_io(move |stream| {
                shared.connections.fetch_add(1, Ordering::SeqCst);
                stream.set_nodelay(true).unwrap();
            });
            match tls {
                Some(acceptor) => axum::serve(Tls { listener, acceptor }, app).await,
                None => axum::serve(listener, app).await,
            }
        });
        self.runtime = Some(runtime);
    }

    /// Ends it with all its connections, at once.
    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// The next requests are answered so, one after another; then everything is accepted again.
    pub fn script(&self, answers: impl IntoIterator<Item = Answer>) {
        self.shared.script.lock().unwrap().extend(answers);
    }

    /// Requests of a room are answered so, always; `None` accepts them again.
    pub fn room(&self, room: &str, answer: Option<Answer>) {
        let mut rooms = self.shared.by_room.lock().unwrap();
        rooms.retain(|(name, _)| name != room);
        rooms.extend(answer.map(|answer| (room.to_owned(), answer)));
    }

    /// Requests with this number in their body are answered so, always.
    pub fn number(&self, number: u64, answer: Answer) {
        self.shared.by_number.lock().unwrap().push((number, answer));
    }

    /// Everything that came, in order of arrival.
    pub fn received(&self) -> Vec<Received> {
        self.shared.received.lock().unwrap().clone()
    }

    /// The numbers of what came, in order of arrival.
    pub fn numbers(&self) -> Vec<u64> {
        self.received().iter().filter_map(Received::number).collect()
    }

    /// The numbers of what was accepted, in order of arrival.
    pub fn accepted(&self) -> Vec<u64> {
        let received = self.shared.received.lock().unwrap();
        let accepted = received.iter().filter(|request| request.accepted);
        accepted.filter_map(Received::number).collect()
    }

    /// The numbers of the newest that were accepted.
    pub fn newest(&self) -> Vec<u64> {
        let received = self.shared.received.lock().unwrap();
        let accepted = received.iter().rev().filter(|request| request.accepted);
        accepted.take(100).filter_map(Received::number).collect()
    }

    /// Connections that were ever accepted.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Where to send events, by address.
    pub fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn receive(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    let at_once = shared.at_once.fetch_add(1, Ordering::SeqCst) + 1;
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let (method, headers) = (parts.method, parts.headers);
    let mut received = Received { method, headers, body, at_once, accepted: false };
    let of_room = {
        let rooms = shared.by_room.lock().unwrap();
        let room = received.header("astro-room");
        rooms.iter().find(|(name, _)| name == room).map(|(_, answer)| answer.clone())
    };
    let of_number = || {
        let numbers = shared.by_number.lock().unwrap();
        let found = numbers.iter().find(|(number, _)| Some(*number) == received.number());
        found.map(|(_, answer)| answer.clone())
    };
    let scripted = || shared.script.lock().unwrap().pop_front();
    let answer = of_room.or_else(of_number).or_else(scripted).unwrap_or(Answer::Status(200));
    received.accepted = answer.accepts();
    shared.received.lock().unwrap().push(received);
    let response = respond(answer).await;
    shared.at_once.fetch_sub(1, Ordering::SeqCst);
    response.unwrap_or_else(|| {
        // Without the message that a panic would print: the connection's task ends here.
        std::panic::resume_unwind(Box::new("dropped"))
    })
}

async fn respond(answer: Answer) -> Option<Response<Body>> {
    let with = |status, body| {
        let mut response = Response::new(body);
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        response
    };
    Some(match answer {
        Answer::Status(status) => with(status, Body::from("noted")),
        Answer::With(status, name, value) => {
            let mut response = with(status, Body::empty());
            response.headers_mut().insert(name, value.parse().unwrap());
            response
        }
        Answer::Late(wait) => {
            tokio::time::sleep(wait).await;
            with(200, Body::empty())
        }
        Answer::Drop => return None,
        Answer::Endless(bytes) => {
            let piece = Bytes::from(vec![b'x'; bytes]);
            let pieces = futures_util::stream::repeat_with(move || {
                Ok::<_, std::convert::Infallible>(piece.clone())
            });
            with(200, Body::from_stream(pieces))
        }
        Answer::Stuck => {
            let never = futures_util::stream::pending::<Result<Bytes, std::convert::Infallible>>();
            with(200, Body::from_stream(never))
        }
    })
}

struct Tls<L> {
    listener: L,
    acceptor: TlsAcceptor,
}

impl<L: Listener<Io = TcpStream, Addr = SocketAddr>> Listener for Tls<L> {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            let (stream, address) = self.listener.accept().await;
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

fn acceptor() -> TlsAcceptor {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
    let certificate = super::sinks::certificate("server.pem");
    let chain = CertificateDer::pem_file_iter(certificate).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(super::sinks::certificate("server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}
