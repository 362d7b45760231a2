//! Whatever somebody sends to the HTTP endpoint, byte by byte.
//!
//! Beyond not panicking: nobody without the token changes anything, a name that is not ours is not
//! served, and the token is in no answer.
#![no_main]

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{Arc, LazyLock},
    time::Duration,
};

use astro_relay::{
    command::command_queue,
    config::{self, Config},
    http::{self, relay_status::RelayStatus},
    journal::Journal,
    loading::Sources,
};
use libfuzzer_sys::fuzz_target;
use tokio::{
    net::TcpListener,
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
    sync::{Semaphore, watch},
};
use tokio_util::sync::CancellationToken;

/// Long enough never to be met by chance.
const TOKEN: &str = "the-token-that-nobody-may-see";

/// What an answer may take. Events go on until the client has hung up.
const PATIENCE: Duration = Duration::from_secs(2);

fn access() -> config::Http {
    let text = format!("[http]\nadmin_token = {TOKEN:?}\n");
    let sources = Sources { text: Some(text), ..Sources::default() };
    let Config { http, .. } = astro_relay::loading::load(&sources).unwrap().config;
    http
}

static PLACE: LazyLock<(Runtime, SocketAddr)> = LazyLock::new(|| {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    // A Rust program is not ended by a connection that ends while it writes; a fuzzer, whose `main` is
    // another's, would be.
    let guard = runtime.enter();
    drop(signal(SignalKind::pipe()).unwrap());
    drop(guard);
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, access) = watch::channel(access());
    let (running, config) = watch::channel(Arc::new(Config::default()));
    let (labels, channels) = watch::channel(BTreeSet::new());
    // Nobody executes them: without the token none may come so far.
    let (commands, queued) = command_queue(channels);
    let state = http::State {
        status: Arc::new(RelayStatus::new(0)),
        journal: Journal::in_memory(1 << 20),
        dir: None,
        metrics: None,
        access,
        config,
        store: Arc::default(),
        history: Arc::default(),
        reloads: None,
        commands,
        address,
        followers: Arc::new(Semaphore::new(http::State::FOLLOWERS)),
        stop: CancellationToken::new(),
        attempts: Arc::default(),
    };
    runtime.spawn(async move {
        let _kept = (sender, running, labels, queued);
        http::serve(Arc::new(listener), state, CancellationToken::new()).await;
    });
    (runtime, address)
});

fuzz_target!(|input: &[u8]| {
    let mut stream = TcpStream::connect(PLACE.1).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // It may hang up before it has heard all of it.
    drop(stream.write_all(input));
    drop(stream.shutdown(Shutdown::Write));
    let mut answer = Vec::new();
    // What was read before an end of the other kind is there.
    drop(stream.read_to_end(&mut answer));
    let text = String::from_utf8_lossy(&answer);
    assert!(answer.is_empty() || text.starts_with("HTTP/1."), "{text}");
    assert!(!text.contains(TOKEN), "{text}");
    let request = String::from_utf8_lossy(input);
    let mut lines = request.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let reads = first.starts_with("GET ") || first.starts_with("HEAD ");
    let fine = text.get(8..12).is_some_and(|status| status.trim_start().starts_with('2'));
    assert!(reads || !fine, "{first} was served: {text}");
    let mut hosts = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| name.eq_ignore_ascii_case("host"));
    if hosts.any(|(_, host)| host.trim() == "evil.example") {
        assert!(!fine, "a name that is not ours was served: {text}");
    }
});
