//! The body of an answer of the REST API, behind two bytes that choose the call and the status.
//!
//! The whole client runs against a server on this machine. Beyond not panicking: an error never shows
//! the token, however the server tells it back.
#![no_main]

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    sync::{LazyLock, Mutex},
    thread,
};

use astro_relay::{
    astro::rest::{Credentials, Rest, Span, Top},
    base::tls,
    channel::state,
    config::{Astro, Secret, TokenType},
};
use libfuzzer_sys::fuzz_target;
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
};

/// Long enough never to be met by chance.
const TOKEN: &str = "the-token-that-nobody-may-see";

/// None that is tried again: the waits between would be all that is measured.
const STATUS: [&str; 6] = ["200 OK", "200 OK", "200 OK", "401 No", "404 No", "422 No"];

/// What is answered now.
static ANSWER: Mutex<(&str, Vec<u8>)> = Mutex::new(("200 OK", Vec::new()));

static PLACE: LazyLock<(Runtime, Rest)> = LazyLock::new(|| {
    tls::install_provider();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let api_url = format!("http://{}/kappa/v2", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || serve(stream));
        }
    });
    let config = Astro { api_url, ..Astro::default() };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    heed_pipes(&runtime);
    (runtime, Rest::new(&config))
});

/// A Rust program is not ended by a connection that ends while it writes; a fuzzer, whose `main` is
/// another's, would be.
fn heed_pipes(runtime: &Runtime) {
    let _guard = runtime.enter();
    drop(signal(SignalKind::pipe()).unwrap());
}

/// Answers every request on this connection.
fn serve(mut stream: std::net::TcpStream) {
    stream.set_nodelay(true).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    while let Some(Ok(line)) = lines.next() {
        if line.is_empty() {
            let (status, body) = ANSWER.lock().unwrap().clone();
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len());
            if stream.write_all(&[head.as_bytes(), &body].concat()).is_err() {
                return;
            }
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let [call, status, body @ ..] = input else { return };
    *ANSWER.lock().unwrap() = (STATUS[usize::from(*status) % STATUS.len()], body.to_vec());
    let (runtime, rest) = &*PLACE;
    let credentials = &Credentials {
        channel: "5b2e2007760aeb7729487dab".to_owned(),
        token: Secret::new(TOKEN),
        token_type: TokenType::Jwt,
    };
    let failed = runtime.block_on(async {
        match call % 5 {
            0 => rest.document(credentials).await.map(|document| {
                let fetched = state::Source::Fetched;
                state::Session::default().merge(&document.elements, 0, 1, fetched);
            }),
            4 => rest.session(credentials).await.map(drop),
            1 => rest.activities(credentials, &Span::default()).await.map(drop),
            2 => rest.settings(credentials).await.map(drop),
            _ => rest.top(credentials, &Top::default()).await.map(drop),
        }
    });
    if let Err(error) = failed {
        let told = format!("{} {error:?}", error.describe());
        assert!(!told.contains(TOKEN), "{told}");
    }
});
