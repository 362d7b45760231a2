//! A peer that speaks HTTP byte by byte as a test says: half answers, no answers, answers that are none.
//!
//! It counts requests by their number, so that a test can say what each got, and in which order they came
//! for the first time.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// What it does with one request.
#[derive(Debug, Clone)]
pub enum Step {
    /// Reads the request and writes these bytes; the connection stays.
    Say(Vec<u8>),
    /// Reads the request, writes these bytes, and closes.
    SayAndClose(Vec<u8>),
    /// Reads the request, writes these bytes, and resets the connection.
    SayAndReset(Vec<u8>),
    /// Reads the request, writes these bytes, and is silent.
    SayAndHang(Vec<u8>),
    /// Reads the request and writes these bytes one by one, with this pause.
    Drip(Vec<u8>, Duration),
    /// Reads the head only, writes these bytes, and closes.
    Early(Vec<u8>),
    /// Closes before it reads anything.
    Close,
    /// Writes these bytes without end.
    Flood(Vec<u8>),
}

/// A usual answer.
pub fn ok() -> Vec<u8> {
    b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()
}

/// An answer with this status and nothing else.
pub fn status(line: &str) -> Vec<u8> {
    format!("HTTP/1.1 {line}\r\nContent-Length: 0\r\n\r\n").into_bytes()
}

#[derive(Default)]
struct Shared {
    steps: VecDeque<Step>,
    /// What a request with this in its body gets, always.
    by_content: Vec<(String, Step)>,
    /// The bodies of the requests that were read as a whole.
    bodies: Vec<String>,
    methods: Vec<String>,
}

/// The peer.
pub struct ScriptedHttp {
    pub address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
    task: JoinHandle<()>,
}

impl ScriptedHttp {
    /// Starts one that accepts everything, after these.
    #[expect(clippy::disallowed_methods, reason = "a test's own server")]
    pub async fn start(steps: impl IntoIterator<Item = Step>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Mutex::new(Shared {
            steps: steps.into_iter().collect(),
            ..Shared::default()
        }));
        let of_task = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, Arc::clone(&of_task)));
            }
        });
        Self { address, shared, task }
    }

    /// What requests with this in their body get, until something else is said.
    pub fn at(&self, content: &str, step: Option<Step>) {
        let mut shared = self.shared.lock().unwrap();
        shared.by_content.retain(|(known, _)| known != content);
        shared.by_content.extend(step.map(|step| (content.to_owned(), step)));
    }

    /// The bodies that came, in order.
    pub fn bodies(&self) -> Vec<String> {
        self.shared.lock().unwrap().bodies.clone()
    }

    /// The methods of the requests, in order.
    pub fn methods(&self) -> Vec<String> {
        self.shared.lock().unwrap().methods.clone()
    }

    /// Where to send events.
    pub fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }
}

impl Drop for ScriptedHttp {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves one connection to its end.
async fn serve(mut stream: TcpStream, shared: Arc<Mutex<Shared>>) {
    let mut unread = Vec::new();
    loop {
        if matches!(shared.lock().unwrap().steps.front(), Some(Step::Close)) {
            shared.lock().unwrap().steps.pop_front();
            return;
        }
        let Some((head, rest)) = read_head(&mut stream, std::mem::take(&mut unread)).await else {
            return;
        };
        shared.lock().unwrap().methods.push(head.split(' ').next().unwrap().to_owned());
        let early = matches!(shared.lock().unwrap().steps.front(), Some(Step::Early(_)));
        let mut body = rest;
        if !early {
            let length = content_length(&head);
            while body.len() < length {
                if stream.read_buf(&mut body).await.unwrap_or(0) == 0 {
                    return;
                }
            }
            unread = body.split_off(length);
        }
        let body = String::from_utf8_lossy(&body).into_owned();
        let step = {
            let mut shared = shared.lock().unwrap();
            let found = shared.by_content.iter().find(|(content, _)| body.contains(content));
            let step = found.map(|(_, step)| step.clone());
            let step = step.or_else(|| shared.steps.pop_front());
            if !body.is_empty() {
                shared.bodies.push(body);
            }
            step.unwrap_or_else(|| Step::Say(ok()))
        };
        if !act(&mut stream, step).await {
            return;
        }
    }
}

/// Answers; whether the connection goes on.
async fn act(stream: &mut TcpStream, step: Step) -> bool {
    match step {
        Step::Say(bytes) => stream.write_all(&bytes).await.is_ok(),
        Step::SayAndClose(bytes) | Step::Early(bytes) => {
            drop(stream.write_all(&bytes).await);
            false
        }
        Step::SayAndReset(bytes) => {
            drop(stream.write_all(&bytes).await);
            stream.set_zero_linger().unwrap();
            false
        }
        Step::SayAndHang(bytes) => {
            drop(stream.write_all(&bytes).await);
            // Until the other side has had enough.
            drop(stream.read(&mut [0; 64]).await);
            false
        }
        Step::Drip(bytes, pause) => {
            for byte in bytes {
                if stream.write_all(&[byte]).await.is_err() {
                    return false;
                }
                tokio::time::sleep(pause).await;
            }
            true
        }
        Step::Close => false,
        Step::Flood(bytes) => {
            while stream.write_all(&bytes).await.is_ok() {}
            false
        }
    }
}

async fn read_head(stream: &mut TcpStream, mut bytes: Vec<u8>) -> Option<(String, Vec<u8>)> {
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            return Some((String::from_utf8(bytes).unwrap(), rest));
        }
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return None;
        }
    }
}

fn content_length(head: &str) -> usize {
    let lines = head.lines().map(str::to_ascii_lowercase);
    let mut lengths = lines
        .filter_map(|line| Some(line.strip_prefix("content-length:")?.trim().parse().unwrap()));
    lengths.next().unwrap_or(0)
}
