//! Clients of the endpoint that are of no use: they never ask, never end asking, never read, or guess.
//! Whoever asks whether the relay lives is answered all the same.

use std::time::Duration;

use astro_sim::{Load, Options, Sim};
use futures_util::future::join_all;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};

use super::{ADMIN, PATIENCE, ROOM, Running, channel};
use crate::support::{daemon, wait::until};

/// Followers that do not read.
const FOLLOWERS: usize = 3;

/// More than the endpoint has places for.
const CROWD: usize = 140;

fn port(relay: &Running) -> u16 {
    relay.url("").rsplit_once(':').unwrap().1.parse().unwrap()
}

/// A connection from 127.0.0.`host`, whose own buffer is small.
async fn connect(host: u8, port: u16) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.bind(([127, 0, 0, host], 0).into()).unwrap();
    socket.connect(([127, 0, 0, 1], port).into()).await.unwrap()
}

async fn send(stream: &mut TcpStream, bytes: &str) -> bool {
    stream.write_all(bytes.as_bytes()).await.is_ok()
}

/// Asks what a probe asks, on connections of their own; each answer comes soon.
async fn probes_are_answered(relay: &Running) {
    /// Less than it takes to time a crowd out, and enough for a machine that is busy.
    const SOON: Duration = Duration::from_secs(8);
    for _ in 0..5 {
        for path in ["/livez", "/readyz", "/status", "/"] {
            let mut stream = connect(1, port(relay)).await;
            let request =
                format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            assert!(send(&mut stream, &request).await);
            let mut answer = String::new();
            let read = stream.read_to_string(&mut answer);
            tokio::time::timeout(SOON, read).await.expect(path).unwrap();
            assert!(answer.starts_with("HTTP/1.1 "), "{path}: {answer}");
        }
    }
}

#[tokio::test]
async fn clients_that_never_ask_or_never_end_asking_keep_no_probe_out() {
    let relay = Running::start(&channel(&["channel.tips"])).await;
    let mut crowd: Vec<TcpStream> = join_all((0..CROWD).map(|_| connect(1, port(&relay)))).await;
    probes_are_answered(&relay).await;
    for stream in &mut crowd {
        send(stream, "GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Slow: ").await;
    }
    probes_are_answered(&relay).await;
    // A byte at a time, new connections all the time.
    for _ in 0..3 {
        for stream in &mut crowd {
            send(stream, "a").await;
        }
        crowd.extend(join_all((0..20).map(|_| connect(1, port(&relay)))).await);
        probes_are_answered(&relay).await;
    }
}

#[tokio::test]
async fn clients_that_never_read_keep_no_probe_out() {
    let relay = Running::start(&channel(&["channel.tips"])).await;
    let mut crowd = join_all((0..CROWD).map(|_| connect(1, port(&relay)))).await;
    // Each of them asks for more than all buffers hold.
    let asks = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(400);
    for stream in &mut crowd {
        let asking = send(stream, &asks);
        tokio::time::timeout(Duration::from_millis(200), asking).await.ok();
    }
    probes_are_answered(&relay).await;
}

#[tokio::test]
async fn a_body_that_never_comes_keeps_no_probe_out() {
    let relay = Running::start(&channel(&["channel.tips"])).await;
    let mut crowd = join_all((0..CROWD).map(|_| connect(1, port(&relay)))).await;
    for stream in &mut crowd {
        let request = format!(
            "POST /api/dead-letters/retry HTTP/1.1\r\nHost: localhost\r\n\
             Authorization: Bearer {ADMIN}\r\nContent-Length: 100\r\n\r\n{{"
        );
        send(stream, &request).await;
    }
    probes_are_answered(&relay).await;
}

#[tokio::test]
async fn followers_that_do_not_read_are_cut_off_and_counted() {
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), Options::default()).await.unwrap();
    let sinks = "[sinks.out]\ntype = \"stdout\"\n";
    let mut relay = daemon::Relay::new(&sim.url(), &sim.api_url(), "channel.tips", ROOM, sinks);
    relay.start();
    relay.ready().await;
    let mut followers = Vec::new();
    for _ in 0..FOLLOWERS {
        let mut stream = connect(1, relay.port()).await;
        send(&mut stream, "GET /events?whole=true HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        // The first word of the answer; after it nothing is read.
        stream.read_exact(&mut [0; 12]).await.unwrap();
        followers.push(stream);
    }
    let load = Load {
        messages: 50,
        topic: "channel.tips".into(),
        rooms: vec![ROOM.into()],
        size: 100_000,
        ..Load::default()
    };
    until("they are cut off", PATIENCE * 2, async || {
        sim.load(&load).await;
        let metrics = relay.get("/metrics").await?;
        let closed = "astro_relay_http_connections_closed_total{reason=\"not_reading\"}";
        metrics.contains(&format!("{closed} {FOLLOWERS}\n")).then_some(())
    })
    .await;
    drop(followers);
    relay.stop().await;
}

/// The status of a request from that address with that token.
async fn guess(host: u8, port: u16, path: &str, token: &str) -> (u16, String) {
    let mut stream = connect(host, port).await;
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Authorization: Bearer {token}\r\nContent-Length: 2\r\n\r\n{{}}"
    );
    send(&mut stream, &request).await;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
}

#[tokio::test]
async fn a_guesser_has_ten_attempts_a_minute_and_locks_nobody_else_out() {
    let relay = Running::start(&channel(&["channel.tips"])).await;
    let port = port(&relay);
    let paths = ["/reload", "/api/dead-letters/retry", "/channels/main/session/reset"];
    let guesses = (0..100).map(|n| {
        let path = paths[n % paths.len()];
        async move { guess(3, port, path, &format!("guess-{n}")).await }
    });
    let answers = join_all(guesses).await;
    let wrong = answers.iter().filter(|(status, _)| *status == 401).count();
    let refused: Vec<_> = answers.iter().filter(|(status, _)| *status == 429).collect();
    assert_eq!((wrong, refused.len()), (10, 90), "all at once are no more than one by one");
    for (_, answer) in refused {
        let line = answer.lines().find_map(|line| line.strip_prefix("retry-after: "));
        let seconds: u64 = line.expect(answer).parse().unwrap();
        assert!((1..=61).contains(&seconds), "{answer}");
    }
    // Not even the right one, which would tell that it is.
    assert_eq!(guess(3, port, "/reload", ADMIN).await.0, 429);
    for host in [1, 2, 4] {
        assert_eq!(guess(host, port, "/reload", ADMIN).await.0, 200, "{host}");
    }
    // Many addresses of this machine: together they have a hundred, and the owner is still let in.
    let guesses = (10..=250).map(|host| guess(host, port, "/reload", "wrong"));
    let wrong = join_all(guesses).await.iter().filter(|(status, _)| *status == 401).count();
    assert_eq!(wrong, 90);
    for host in [1, 2, 4] {
        assert_eq!(guess(host, port, "/reload", ADMIN).await.0, 200, "{host}");
    }
}

/// What is not refused but answered shorter tells as much.
#[tokio::test]
async fn the_readiness_probe_is_no_place_to_guess_at() {
    let rest = "[sinks.out]\ntype = \"redis\"\nurl = \"redis://127.0.0.1:9\"\n";
    let relay =
        Running::start_at("0.0.0.0:0", &format!("{}{rest}", channel(&["channel.tips"]))).await;
    let port = port(&relay);
    let probe = async |token: String| {
        let mut stream = connect(5, port).await;
        let request = format!(
            "GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Authorization: Bearer {token}\r\n\r\n"
        );
        send(&mut stream, &request).await;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    assert!(probe(ADMIN.into()).await.contains("sink out is"));
    for n in 0..10 {
        assert!(!probe(format!("guess-{n}")).await.contains("sink out is"));
    }
    assert!(!probe(ADMIN.into()).await.contains("sink out is"), "too many were wrong");
    let told = json!({ "status": relay.post("/reload", "").await.status().as_u16() });
    assert_eq!(told, json!({ "status": 200 }), "another address");
}
