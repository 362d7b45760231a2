//! The webhook sink against a receiver on this machine.

use std::{collections::HashMap, time::Duration};

use astro_relay::{
    base::event::Seq,
    sink::{Cause, Failure, Outgoing},
};
use axum::http::header::{LOCATION, RETRY_AFTER};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Notify,
};

use crate::support::{
    carry::carry_all,
    driven::Driven,
    receiver::{Answer, Received, Receiver},
    scripted_http::{ScriptedHttp, Step},
    sinks::{batch, certificate, id, install_tls, open, open_with, outgoing, probe},
    wait::until,
};

/// How long a test waits for what must come.
const SOON: Duration = Duration::from_secs(20);

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const NEW_SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

fn settings(receiver: &Receiver) -> Value {
    json!({ "url": { "value": receiver.url() }, "allow_addresses": ["127.0.0.1"] })
}

async fn connected(settings: Value) -> Driven {
    install_tls();
    let mut sink = open("webhook", settings).unwrap();
    sink.connect().await.unwrap();
    sink
}

async fn connected_to(receiver: &Receiver) -> Driven {
    connected(settings(receiver)).await
}

/// Events of several rooms, by turns.
fn rooms(seqs: impl IntoIterator<Item = Seq>, rooms: u64) -> Vec<Outgoing> {
    seqs.into_iter().map(|seq| outgoing(seq, "", &format!("room{}", seq % rooms))).collect()
}

/// Whether the first arrivals of each room's events are in order.
fn in_order(requests: &[Received]) -> bool {
    let mut last: HashMap<&str, u64> = HashMap::new();
    requests.iter().all(|request| {
        let last = last.entry(request.header("astro-room")).or_default();
        // A repeat is no new arrival.
        let n = request.n();
        let fine = n > *last || requests.iter().filter(|other| other.n() == n).count() > 1;
        *last = n.max(*last);
        fine
    })
}

#[tokio::test]
async fn sends_each_event_in_a_signed_request() {
    let receiver = Receiver::start();
    let mut own = settings(&receiver);
    own["secret"] = json!({ "value": SECRET });
    own["bearer_token"] = json!({ "value": "hunter2" });
    own["headers"] = json!({ "X-Team": "blue" });
    let mut sink = connected(own).await;
    assert!(sink.remarks().is_empty());
    sink.deliver(&batch(1..=20, "")).await.unwrap();
    sink.close().await;

    let requests = receiver.received();
    assert_eq!(receiver.numbers(), (1..=20).collect::<Vec<_>>());
    assert_eq!(receiver.connections(), 1, "one room needs one connection, kept alive");
    for (seq, request) in (1..).zip(&requests) {
        assert!(request.verify(SECRET));
        assert!(!request.verify(NEW_SECRET));
        for (name, value) in [
            ("webhook-id", id(seq).as_str()),
            ("authorization", "Bearer hunter2"),
            ("x-team", "blue"),
            ("content-type", "application/json"),
            ("user-agent", concat!("astro-relay/", env!("CARGO_PKG_VERSION"))),
            ("astro-topic", "channel.tips"),
            ("astro-room", "room"),
            ("astro-channel", "main"),
            ("astro-ts", "2024-02-15T14:52:42Z"),
            ("astro-origin", "live"),
        ] {
            assert_eq!(request.header(name), value, "{name}");
        }
        assert_eq!(request.method, "POST");
        assert_eq!(request.body, format!(r#"{{"n":{seq}}}"#));
    }
}

#[tokio::test]
async fn unsigned_requests_are_reported() {
    let receiver = Receiver::start();
    let mut sink = connected_to(&receiver).await;
    assert!(sink.remarks()[0].contains("not signed"));
    sink.deliver(&batch(1..=1, "")).await.unwrap();
    assert_eq!(receiver.received()[0].header("webhook-signature"), "");
}

#[tokio::test]
async fn rooms_go_at_once_and_each_room_in_order() {
    let receiver = Receiver::start();
    receiver.script(std::iter::repeat_n(Answer::Late(Duration::from_millis(5)), 400));
    let mut sink = connected_to(&receiver).await;
    sink.deliver(&rooms(1..=200, 20)).await.unwrap();
    sink.deliver(&rooms(201..=400, 20)).await.unwrap();
    let requests = receiver.received();
    assert_eq!(requests.len(), 400);
    assert!(in_order(&requests));
    let most = requests.iter().map(|request| request.at_once).max().unwrap();
    assert!((2..=8).contains(&most), "{most} at once");

    let mut own = settings(&receiver);
    own["concurrency"] = json!(1);
    let before = requests.len();
    connected(own).await.deliver(&rooms(401..=450, 20)).await.unwrap();
    let requests = receiver.received().split_off(before);
    assert!(requests.iter().all(|request| request.at_once == 1));
}

#[tokio::test]
async fn a_kill_in_the_middle_of_a_batch_loses_nothing() {
    let mut receiver = Receiver::start();
    receiver.script(std::iter::repeat_n(Answer::Late(Duration::from_millis(1)), 10_000));
    let mut sink = connected_to(&receiver).await;
    let all = rooms(1..=600, 12);
    let mut rest = &all[..];
    let mut kills = 0;
    while !rest.is_empty() {
        let before = receiver.received().len();
        let (outcome, ()) = tokio::join!(sink.deliver(rest), async {
            if kills < 3 {
                until("some have come", SOON, async || {
                    (receiver.received().len() > before + 100).then_some(())
                })
                .await;
                receiver.kill();
            }
        });
        if let Err(Failure { accepted, cause }) = outcome {
            assert!(matches!(cause, Cause::Down(_)), "{cause:?}");
            // What is claimed has come.
            let numbers = receiver.numbers();
            assert!(rest[..accepted].iter().all(|event| numbers.contains(&event.record.seq)));
            rest = &rest[accepted..];
            kills += 1;
            receiver.restart();
            sink.connect().await.unwrap();
        } else {
            rest = &[];
        }
    }
    assert_eq!(kills, 3);
    let requests = receiver.received();
    let mut numbers = receiver.numbers();
    numbers.sort_unstable();
    let repeats = numbers.len() - 600;
    numbers.dedup();
    assert_eq!(numbers, (1..=600).collect::<Vec<_>>());
    // No more than was on its way at each kill.
    assert!(repeats <= 3 * 8, "{repeats} repeats");
    assert!(in_order(&requests));
}

#[tokio::test]
async fn retry_after_is_passed_on_and_the_id_stays() {
    let receiver = Receiver::start();
    let mut own = settings(&receiver);
    own["secret"] = json!({ "value": SECRET });
    let mut sink = connected(own).await;
    let date = httpdate::fmt_http_date(std::time::UNIX_EPOCH + Duration::from_secs(4_000_000_000));
    receiver.script([
        Answer::Status(500),
        Answer::With(429, RETRY_AFTER, "7".into()),
        Answer::With(503, RETRY_AFTER, date),
        Answer::Status(408),
        Answer::Drop,
    ]);
    let event = batch(1..=1, "");
    let mut waits = Vec::new();
    for _ in 0..4 {
        let failure = sink.deliver(&event).await.unwrap_err();
        let Cause::Busy { wait, reason } = failure.cause else { panic!("{failure:?}") };
        assert!(reason.starts_with("HTTP "), "{reason}");
        waits.push(wait);
    }
    assert_eq!(waits[..2], [None, Some(Duration::from_secs(7))]);
    assert_eq!(waits[2], Some(Duration::from_hours(24)), "a date far away is a mistake of its own");
    assert_eq!(waits[3], None);
    // The connection is lost after the request was read: nobody knows whether it was accepted.
    let failure = sink.deliver(&event).await.unwrap_err();
    assert!(matches!(failure, Failure { accepted: 0, cause: Cause::Down(_) }), "{failure:?}");
    sink.connect().await.unwrap();
    sink.deliver(&event).await.unwrap();
    let requests = receiver.received();
    assert_eq!(requests.len(), 6);
    assert!(requests.iter().all(|request| request.header("webhook-id") == id(1)));
    assert!(requests.iter().all(|request| request.verify(SECRET)));
}

#[tokio::test]
async fn after_429_no_new_request_is_begun() {
    let receiver = Receiver::start();
    receiver.script([Answer::Status(200), Answer::Status(200), Answer::Status(503)]);
    let mut sink = connected_to(&receiver).await;
    let failure = sink.deliver(&batch(1..=100, "")).await.unwrap_err();
    assert!(matches!(failure, Failure { accepted: 2, cause: Cause::Busy { .. } }), "{failure:?}");
    assert_eq!(receiver.numbers(), [1, 2, 3]);
}

#[tokio::test]
async fn a_rejected_event_holds_back_its_room_only() {
    let receiver = Receiver::start();
    let mut sink = connected_to(&receiver).await;
    let all = rooms(1..=40, 4);
    receiver.room("room3", Some(Answer::Status(422)));
    let failure = sink.deliver(&all).await.unwrap_err();
    assert_eq!(failure.accepted, 2);
    let Cause::Rejected { reason } = failure.cause else { panic!("{failure:?}") };
    assert!(reason.contains("422"), "{reason}");
    // The other rooms went on; this one waits behind its refused event.
    assert_eq!(receiver.numbers().iter().filter(|n| *n % 4 == 3).count(), 1);
    receiver.room("room3", None);
    assert_eq!(carry_all(&mut sink, &all[3..]).await, (vec![], vec![]));
    let mut numbers = receiver.numbers();
    assert_eq!(numbers.len(), 40);
    assert!(in_order(&receiver.received()));
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=40).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_hanging_room_does_not_hold_back_the_others() {
    let receiver = Receiver::start();
    receiver.room("room1", Some(Answer::Late(Duration::from_mins(1))));
    install_tls();
    let mut sink = open_with("webhook", settings(&receiver), Duration::from_millis(700)).unwrap();
    sink.connect().await.unwrap();
    let all = rooms(1..=60, 6);
    let failure = sink.deliver(&all).await.unwrap_err();
    assert!(matches!(failure, Failure { accepted: 0, cause: Cause::Down(_) }), "{failure:?}");
    assert!(failure.cause.to_string().contains("no answer within"), "{failure:?}");
    assert!(!failure.cause.is_closed_by_peer(), "silence is no close");
    assert_eq!(receiver.received().len(), 51, "five rooms of ten, and the first of the sixth");
    receiver.room("room1", None);
    sink.connect().await.unwrap();
    sink.deliver(&all).await.unwrap();
    assert_eq!(receiver.received().len(), 61, "one room of ten, with one repeat");
}

#[tokio::test]
async fn events_accepted_before_a_reconnect_are_not_sent_again() {
    let receiver = Receiver::start();
    receiver.room("room1", Some(Answer::Late(Duration::from_mins(1))));
    let mut sink = connected_to(&receiver).await;
    let all = rooms(1..=60, 6);
    tokio::select! {
        outcome = sink.deliver(&all) => panic!("{outcome:?}"),
        () = until("the other rooms are through", SOON, async || {
            (receiver.received().len() == 51).then_some(())
        }) => {}
    }
    receiver.room("room1", None);
    sink.connect().await.unwrap();
    sink.deliver(&all).await.unwrap();
    // The last answer of each other room may not have been heard.
    assert!((61..=66).contains(&receiver.received().len()), "{}", receiver.received().len());
}

#[tokio::test]
async fn a_connection_closed_while_idle_does_no_harm() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (close, closed) = (Notify::new(), Notify::new());
    let answer = async || {
        let (mut stream, _) = listener.accept().await.unwrap();
        assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
        stream
    };
    let receiver = async {
        let stream = answer().await;
        close.notified().await;
        drop(stream);
        closed.notify_one();
        drop(listener.accept().await.unwrap());
        answer().await;
    };
    let own = json!({
        "url": { "value": format!("http://{address}/") }, "allow_addresses": ["127.0.0.1"],
    });
    let mut sink = connected(own).await;
    let relay = async {
        sink.deliver(&batch(1..=1, "")).await.unwrap();
        close.notify_one();
        closed.notified().await;
        // Whoever hears of this connection has heard of the end of the other one before.
        drop(tokio::net::TcpStream::connect(address).await.unwrap());
        sink.deliver(&batch(2..=2, "")).await.unwrap();
    };
    tokio::time::timeout(SOON, async { tokio::join!(receiver, relay) }).await.unwrap();
}

#[tokio::test]
async fn an_idle_connection_is_not_reused_after_its_timeout() {
    let receiver = Receiver::start();
    let mut sink = connected_to(&receiver).await;
    for (seq, wait, connections) in [(1, 0, 1), (2, 3, 1), (3, 5, 2), (4, 0, 2)] {
        later(Duration::from_secs(wait)).await;
        sink.deliver(&batch([seq], "")).await.unwrap();
        assert_eq!(receiver.connections(), connections, "before event {seq}");
    }
}

/// A replay hands over what was accepted just now: it is wanted again.
#[tokio::test]
async fn a_replay_is_sent_again() {
    let receiver = Receiver::start();
    let mut sink = connected_to(&receiver).await;
    sink.deliver(&batch(1..=10, "")).await.unwrap();
    sink.deliver(&batch(8..=10, "")).await.unwrap();
    assert_eq!(receiver.numbers(), (1..=10).chain(8..=10).collect::<Vec<_>>());
}

#[tokio::test]
async fn gone_is_reported_after_one_answer() {
    let receiver = Receiver::start();
    receiver.script([Answer::Status(200), Answer::Status(410)]);
    let mut sink = connected_to(&receiver).await;
    let failure = sink.deliver(&batch(1..=10, "")).await.unwrap_err();
    assert!(matches!(failure, Failure { accepted: 1, cause: Cause::Gone { .. } }), "{failure:?}");
    assert_eq!(receiver.numbers(), [1, 2]);
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let receiver = Receiver::start();
    let elsewhere = Receiver::start();
    let mut sink = connected_to(&receiver).await;
    for (seq, status) in (1..).zip([301, 302, 303, 307, 308]) {
        receiver.script([Answer::With(status, LOCATION, elsewhere.url())]);
        let failure = sink.deliver(&batch([seq], "")).await.unwrap_err();
        let Cause::Denied { reason } = failure.cause else { panic!("{failure:?}") };
        assert!(reason.contains("redirects are not followed"), "{reason}");
    }
    assert_eq!(receiver.received().len(), 5);
    assert_eq!(elsewhere.connections(), 0);
}

#[tokio::test]
async fn an_endless_body_does_not_matter() {
    let receiver = Receiver::start();
    let mut sink = connected_to(&receiver).await;
    for answer in [Answer::Endless(10_000), Answer::Stuck] {
        receiver.script([answer]);
        let before = receiver.received().len();
        sink.deliver(&batch(1..=3, "")).await.unwrap();
        assert_eq!(receiver.received().len(), before + 3);
        sink.close().await;
        sink.connect().await.unwrap();
    }
}

#[tokio::test]
async fn a_receiver_may_change_its_secret_at_any_time() {
    let receiver = Receiver::start();
    let dir = tempfile::tempdir().unwrap();
    let (new, old) = (dir.path().join("new"), dir.path().join("old"));
    std::fs::write(&new, format!("{NEW_SECRET}\n")).unwrap();
    std::fs::write(&old, format!("{SECRET}\n")).unwrap();
    let mut own = settings(&receiver);
    own["secret"] = json!({ "file": new });
    own["previous_secret"] = json!({ "file": old });
    let mut sink = connected(own).await;
    sink.deliver(&batch(1..=100, "")).await.unwrap();
    for request in receiver.received() {
        assert!(request.verify(SECRET) && request.verify(NEW_SECRET));
    }

    // A file that was changed takes effect without a new connection; one that is gone changes nothing.
    let third = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    std::fs::write(&new, third).unwrap();
    std::fs::write(&old, NEW_SECRET).unwrap();
    later(Duration::from_secs(6)).await;
    sink.deliver(&batch(101..=101, "")).await.unwrap();
    std::fs::remove_file(&old).unwrap();
    later(Duration::from_secs(6)).await;
    sink.deliver(&batch(102..=102, "")).await.unwrap();
    for request in &receiver.received()[100..] {
        assert!(request.verify(third) && request.verify(NEW_SECRET) && !request.verify(SECRET));
    }
}

#[tokio::test]
async fn an_unreadable_secret_is_reported_once_and_the_others_are_renewed() {
    let receiver = Receiver::start();
    let dir = tempfile::tempdir().unwrap();
    let (new, old, token) =
        (dir.path().join("new"), dir.path().join("old"), dir.path().join("token"));
    std::fs::write(&new, NEW_SECRET).unwrap();
    std::fs::write(&old, SECRET).unwrap();
    std::fs::write(&token, "first").unwrap();
    let mut own = settings(&receiver);
    own["secret"] = json!({ "file": new });
    own["previous_secret"] = json!({ "file": old });
    own["bearer_token"] = json!({ "file": token });
    let mut sink = connected(own).await.into_inner();

    let third = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    std::fs::remove_file(&old).unwrap();
    std::fs::write(&new, third).unwrap();
    std::fs::write(&token, "second").unwrap();
    later(Duration::from_secs(6)).await;
    assert_eq!(sink.send(&batch(1..=1, "")).await.unwrap(), 1);
    assert_eq!(sink.acknowledged().await.unwrap(), 1);
    let facts = sink.report().facts.unwrap();
    assert_eq!(facts.len(), 1, "{facts:?}");
    assert!(facts[0].starts_with("`previous_secret` stays as it was: cannot read"), "{facts:?}");
    let request = receiver.received().remove(0);
    assert!(request.verify(third) && request.verify(SECRET) && !request.verify(NEW_SECRET));
    assert_eq!(request.header("authorization"), "Bearer second");

    // The same again is nothing new; that it is over is.
    later(Duration::from_secs(6)).await;
    assert_eq!(sink.send(&batch(2..=2, "")).await.unwrap(), 1);
    assert_eq!(sink.acknowledged().await.unwrap(), 1);
    assert_eq!(sink.report().facts, None);
    std::fs::write(&old, "hunter2").unwrap();
    later(Duration::from_secs(6)).await;
    assert_eq!(sink.send(&batch(3..=3, "")).await.unwrap(), 1);
    assert_eq!(sink.acknowledged().await.unwrap(), 1);
    let facts = sink.report().facts.unwrap();
    assert!(facts[0].starts_with("`previous_secret` stays as it was: "), "{facts:?}");
    assert!(!facts[0].contains("hunter2"), "{facts:?}");
    std::fs::write(&old, NEW_SECRET).unwrap();
    later(Duration::from_secs(6)).await;
    assert_eq!(sink.send(&batch(4..=4, "")).await.unwrap(), 1);
    assert_eq!(sink.acknowledged().await.unwrap(), 1);
    assert_eq!(sink.report().facts, Some(vec![]));
}

/// Puts tokio's clock forward. It runs again afterwards, for real sockets take real time.
async fn later(by: Duration) {
    tokio::time::pause();
    tokio::time::advance(by).await;
    tokio::time::resume();
}

#[tokio::test]
async fn tls_trusts_only_the_configured_authorities() {
    let receiver = Receiver::start_tls();
    let port = receiver.address.port();
    let own = |host: &str, ca: Option<&str>| {
        let mut own = json!({
            "url": { "value": format!("https://{host}:{port}/hook") },
            "allow_addresses": ["127.0.0.0/8", "::1"],
        });
        if let Some(ca) = ca {
            own["ca_file"] = json!(certificate(ca));
        }
        own
    };
    for host in ["localhost", "127.0.0.1"] {
        connected(own(host, Some("ca.pem"))).await.deliver(&batch(1..=3, "")).await.unwrap();
    }
    assert_eq!(receiver.received().len(), 6);
    // An authority that nobody knows; a name that is not in the certificate.
    for own in [own("localhost", None), own("127.0.0.2", Some("ca.pem"))] {
        let failure = connected(own).await.deliver(&batch(1..=1, "")).await.unwrap_err();
        assert!(matches!(failure, Failure { accepted: 0, cause: Cause::Down(_) }), "{failure:?}");
    }
    for file in ["/nowhere/ca.pem".to_owned(), certificate("server.key"), certificate("README.md")]
    {
        let mut own = own("localhost", None);
        own["ca_file"] = json!(file);
        let failure = open("webhook", own).unwrap().connect().await.unwrap_err();
        assert!(failure.cause.to_string().contains(&file), "{failure:?}");
    }
    assert_eq!(receiver.received().len(), 6);
}

/// Hosts that lead to this machine, to the local link, to a metadata service, or to nobody in
/// particular: spelled in every way that some parser understands.
const HOSTILE: &[&str] = &[
    "0",
    "0.0.0.0",
    "0x0",
    "0.1.2.3",
    "169.254.169.254",
    "169.254.169.254.",
    "169.254.170.2",
    "169。254。169。254",
    "169．254．169．254",
    "①⑥⑨.254.169.254",
    "%31%36%39.254.169.254",
    "user@169.254.169.254",
    "8.8.8.8@169.254.169.254",
    "0xa9fea9fe",
    "2852039166",
    "169.254.43518",
    "0251.0376.0251.0376",
    "0xa9.0xfe.0xa9.0xfe",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "224.0.0.1",
    "239.255.255.250",
    "255.255.255.255",
    "240.0.0.1",
    "4294967295",
    "[::]",
    "[::ffff:0.0.0.0]",
    "[::ffff:169.254.169.254]",
    "[::ffff:a9fe:a9fe]",
    "[::ffff:0:169.254.169.254]",
    "[::169.254.169.254]",
    "[64:ff9b::169.254.169.254]",
    "[64:ff9b::a9fe:a9fe]",
    "[64:ff9b:1:a9fe:a9:fe00::]",
    "[2002:a9fe:a9fe::1]",
    "[2001:0:a9fe:a9fe::]",
    "[2001:db8::200:5efe:169.254.169.254]",
    "[fe80::1]",
    "[fe80::a9fe:a9fe]",
    "[febf::1]",
    "[fec0::1]",
    "[ff02::1]",
    "[ff0e::1]",
    "[fd00:ec2::254]",
    "[fd20:ce::254]",
    "metadata.google.internal",
    "METADATA.GOOGLE.INTERNAL.",
    "instance-data",
];

#[tokio::test]
async fn hostile_addresses_are_not_dialled() {
    install_tls();
    for host in HOSTILE {
        for scheme in ["http", "https"] {
            let url = format!("{scheme}://{host}/hook");
            let Err(error) = open("webhook", json!({ "url": { "value": url } })) else {
                panic!("{url}")
            };
            assert_eq!(error.problems[0].key, ["sinks", "test", "url"], "{url}");
            let text = error.to_string();
            assert!(text.contains("allow_addresses") || host.contains('@'), "{url}: {text}");
        }
    }
}

/// What stands in `url` is meant: this machine, by any of its names and addresses, needs no permission.
#[tokio::test]
async fn addresses_in_the_configured_url_are_allowed() {
    let receiver = Receiver::start();
    let port = receiver.address.port();
    for host in ["127.0.0.1", "127.1", "localhost", "LOCALHOST", "[::ffff:127.0.0.1]"] {
        let url = format!("http://{host}:{port}/hook");
        let mut sink = connected(json!({ "url": { "value": url } })).await;
        let before = receiver.received().len();
        sink.deliver(&batch(1..=1, "")).await.unwrap_or_else(|error| panic!("{host}: {error:?}"));
        assert_eq!(receiver.received().len(), before + 1, "{host}");
    }
    // So do the addresses of the local network, and a private one that nobody has is not refused either.
    for host in ["10.0.0.1", "192.168.1.20", "172.16.3.4", "[fd12:3456::1]", "nas.local"] {
        let url = format!("http://{host}/hook");
        assert!(open("webhook", json!({ "url": { "value": url } })).is_ok(), "{host}");
    }
}

#[tokio::test]
async fn a_url_from_a_file_is_checked_too() {
    install_tls();
    let receiver = Receiver::start();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("url");
    std::fs::write(&path, "http://169.254.169.254/latest/meta-data").unwrap();
    let mut sink = open("webhook", json!({ "url": { "file": path } })).unwrap();
    let failure = sink.connect().await.unwrap_err();
    assert!(failure.cause.to_string().contains("metadata"), "{failure:?}");
    std::fs::write(&path, receiver.url()).unwrap();
    sink.connect().await.unwrap();
    sink.deliver(&batch(1..=1, "")).await.unwrap();
    assert_eq!(receiver.numbers(), [1]);
}

#[tokio::test]
async fn url_and_token_are_never_shown() {
    let mut receiver = Receiver::start();
    receiver.kill();
    let url = format!("http://{}/services/hunter2?token=hunter2", receiver.address);
    let mut own = settings(&receiver);
    own["url"] = json!({ "value": url });
    own["bearer_token"] = json!({ "value": "hunter2" });
    let mut sink = connected(own.clone()).await;
    let mut failures = vec![sink.deliver(&batch(1..=1, "")).await.unwrap_err()];
    receiver.restart();
    receiver.script([Answer::Status(500), Answer::Status(404), Answer::Drop]);
    for _ in 0..3 {
        failures.push(sink.deliver(&batch(1..=1, "")).await.unwrap_err());
    }
    for failure in failures {
        let shown = format!("{failure:?} {}", failure.cause);
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    for url in ["http://hunter2:hunter2@example.org/", "hunter2", "ftp://example.org/hunter2"] {
        own["url"] = json!({ "value": url });
        let Err(error) = open("webhook", own.clone()) else { panic!("{url}") };
        assert!(!format!("{error:?} {error}").contains("hunter2"), "{error}");
    }
}

#[tokio::test]
async fn text_that_is_not_legal_in_a_header_is_encoded() {
    let receiver = Receiver::start();
    let mut own = settings(&receiver);
    own["secret"] = json!({ "value": SECRET });
    let mut sink = connected(own).await;
    let mut event = outgoing(1, "", "Grüße\r\nevil: 100%");
    let record = std::sync::Arc::get_mut(&mut event.record).unwrap();
    record.event.distinct_key = Some("a b\u{7f}".into());
    record.event.ts = "".into();
    sink.deliver(&[event]).await.unwrap();
    let request = &receiver.received()[0];
    assert_eq!(request.header("astro-room"), "Gr%C3%BC%C3%9Fe%0D%0Aevil:%20100%25");
    assert_eq!(request.header("webhook-id"), "a%20b%7F");
    assert!(!request.headers.contains_key("astro-ts"));
    assert!(request.verify(SECRET));
}

#[test]
fn settings_that_cannot_work_name_the_key() {
    let url = "https://example.org/hook";
    for (settings, key) in [
        (json!({ "url": { "value": "example.org" } }), "url"),
        (json!({ "url": { "value": "https://a.example,https://b.example" } }), "url"),
        (json!({ "url": { "value": "https://a.example/{{ channel }}" } }), "url"),
        (json!({ "url": { "value": "https://a.example/{% if live %}a{% endif %}" } }), "url"),
        (json!({ "url": { "value": url }, "concurrency": 0 }), "concurrency"),
        (json!({ "url": { "value": url }, "concurrency": 1000 }), "concurrency"),
        (json!({ "url": { "value": url }, "secret": { "value": "hunter2" } }), "secret"),
        (
            json!({ "url": { "value": url }, "previous_secret": { "value": "whsec_AA==" } }),
            "previous_secret",
        ),
        (json!({ "url": { "value": url }, "allow_addresses": ["localhost"] }), "allow_addresses"),
        (json!({ "url": { "value": url }, "headers": { "Webhook-Id": "1" } }), "headers"),
        (json!({ "url": { "value": url }, "headers": { "Host": "a" } }), "headers"),
        (json!({ "url": { "value": url }, "headers": { "a b": "1" } }), "headers"),
        (json!({ "url": { "value": url }, "headers": { "a": "1\r\nb: 2" } }), "headers"),
    ] {
        let Err(error) = open("webhook", settings.clone()) else { panic!("{settings}") };
        assert_eq!(error.problems[0].key.join("."), format!("sinks.test.{key}"), "{settings}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
    assert!(open("webhook", json!({})).is_err());
    assert!(open("webhook", json!({ "url": { "value": url }, "method": "GET" })).is_err());
    assert!(open("webhook", json!({ "url": { "value": url }, "method": "PUT" })).is_ok());
}

#[tokio::test]
async fn a_close_at_one_event_is_distinguished_from_an_unreachable_receiver() {
    let peer = ScriptedHttp::start([]).await;
    let settings = json!({ "url": { "value": peer.url() } });
    let mut sink = connected(settings.clone()).await;
    for end in [
        Step::SayAndClose(vec![]),
        Step::SayAndReset(vec![]),
        Step::SayAndClose(b"HTTP/1.1 20".to_vec()),
    ] {
        peer.at("\"n\":2}", Some(end));
        let failure = sink.deliver(&batch([2], "")).await.unwrap_err();
        assert!(failure.cause.is_closed_by_peer(), "{failure:?}");
        probe("webhook", settings.clone(), &[""]).await.unwrap();
    }
    assert_eq!(peer.methods().iter().filter(|method| *method == "OPTIONS").count(), 3);
    // One that closes at everything.
    peer.at("", Some(Step::SayAndClose(vec![])));
    let failure = sink.deliver(&batch([2], "")).await.unwrap_err();
    assert!(failure.cause.is_closed_by_peer(), "{failure:?}");
    assert!(probe("webhook", settings, &[""]).await.is_err());
    // One that is not there.
    drop(peer);
    sink.connect().await.unwrap();
    let failure = sink.deliver(&batch([2], "")).await.unwrap_err();
    assert!(!failure.cause.is_closed_by_peer(), "{failure:?}");
}
