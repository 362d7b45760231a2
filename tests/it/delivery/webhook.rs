//! The delivery to webhooks, with receivers that do what real ones do: nothing is lost, out of order, or
//! blamed on an event, and a stop repeats nothing.

use std::{sync::Arc, time::Duration};

use astro_relay::{
    base::event::{Event, Place},
    config::{Period, SinkConfig, Start},
    delivery::{
        Delivery,
        route::Route,
        status::{self, Status},
    },
    journal::{DeadLetter, Journal, store::Store},
    sink,
};
use axum::http::header::LOCATION;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use super::memory;
use crate::support::{
    journal::{close, config, event, events, open, synced},
    receiver::{Answer, Receiver},
    scripted_http::{ScriptedHttp, Step, ok, status as line},
    sinks::{self, install_tls},
    wait::until,
};

const SOON: Duration = Duration::from_mins(1);

struct Running {
    status: Arc<Status>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    #[expect(clippy::disallowed_methods, reason = "the test is the supervisor")]
    fn start(journal: &Journal, settings: Value, choose: impl FnOnce(&mut SinkConfig)) -> Self {
        install_tls();
        let mut config = sinks::config("webhook", Duration::from_secs(2));
        config.start = Start::Earliest;
        choose(&mut config);
        let sink = sinks::open_with("webhook", settings, config.timeout.0).unwrap().into_inner();
        let route = Route::new("hook", &config, sink::kind("webhook").unwrap()).unwrap();
        let status = super::status();
        let of_task = Arc::clone(&status);
        let delivery =
            Delivery::new("hook", &config, sink, route, journal.clone(), of_task).unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(delivery.run(stop.clone()));
        Self { status, stop, task }
    }

    fn page(&self) -> status::Sink {
        self.status.read(|now| now.sinks["hook"].clone())
    }

    async fn is_state(&self, state: &str) {
        until(state, SOON, async || (self.page().state == state).then_some(())).await;
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

fn to(url: &str) -> Value {
    json!({ "url": { "value": url } })
}

async fn all_arrive(journal: &Journal) {
    until("all of it has arrived", SOON, async || (journal.lag("hook").0 == 0).then_some(())).await;
}

/// Events of several rooms, by turns.
fn rooms(numbers: impl IntoIterator<Item = u64>, rooms: u64) -> Vec<Event> {
    let of_room = |n: u64| {
        let mut event = event(n);
        event.place = Place::of(format!("channel.{}", n % 3), format!("room{}", n % rooms), "main");
        event
    };
    numbers.into_iter().map(of_room).collect()
}

/// The number of the event in a body.
fn number(body: &str) -> u64 {
    serde_json::from_str::<Value>(body).unwrap()["n"].as_u64().unwrap()
}

#[tokio::test]
async fn malformed_answers_are_retried_and_not_blamed_on_the_event() {
    let many = "x: 1\r\n".repeat(2000);
    let long = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "x".repeat(2 << 20));
    let odd: Vec<Step> = vec![
        Step::Close,
        Step::SayAndClose(vec![]),
        Step::SayAndReset(vec![]),
        Step::SayAndHang(vec![]),
        Step::SayAndClose(b"HTTP/1.1".to_vec()),
        Step::SayAndHang(b"HTTP/1.1 200 OK\r\nx: 1".to_vec()),
        Step::SayAndReset(b"HTTP/1.1 200 OK\r\nx: 1".to_vec()),
        Step::SayAndClose(b"SSH-2.0-OpenSSH_9.2p1\r\n".to_vec()),
        Step::SayAndClose(b"<html>hello</html>".to_vec()),
        Step::SayAndClose(b"\x15\x03\x01\x00\x02\x02\x16".to_vec()),
        Step::SayAndClose(b"HTTP/9.9 200 OK\r\n\r\n".to_vec()),
        Step::SayAndClose(b"HTTP/1.1 2000 OK\r\n\r\n".to_vec()),
        Step::SayAndClose(b"HTTP/1.1 abc OK\r\n\r\n".to_vec()),
        Step::SayAndClose(
            b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n".to_vec(),
        ),
        Step::SayAndClose(long.into_bytes()),
        Step::SayAndClose(format!("HTTP/1.1 200 OK\r\n{many}\r\n").into_bytes()),
        Step::SayAndHang(b"HTTP/1.1 100 Continue\r\n\r\n".to_vec()),
        Step::SayAndClose(
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"
                .to_vec(),
        ),
        Step::SayAndClose(b"HTTP/1.1 103 Early Hints\r\n\r\n".to_vec()),
        Step::Flood(b"x".repeat(1 << 16)),
        Step::Flood(b"HTTP/1.1 102 Processing\r\n\r\n".to_vec()),
        Step::Early(line("503 Service Unavailable")),
        Step::Early(line("500 Internal Server Error")),
        Step::Say(line("409 Conflict")),
        Step::Say(line("423 Locked")),
        Step::Say(line("425 Too Early")),
        Step::Say(line("599 x")),
        Step::Say(line("418 I'm a teapot")),
    ];
    let count = odd.len() as u64;
    let steps = odd.into_iter().flat_map(|step| [step, Step::Say(ok())]);
    let peer = ScriptedHttp::start(steps).await;
    let journal = memory();
    let running = Running::start(&journal, to(&peer.url()), |config| {
        config.timeout = Period(Duration::from_millis(400));
    });
    journal.append(&mut events(0..count + 20));
    all_arrive(&journal).await;
    let mut numbers: Vec<u64> = peer.bodies().iter().map(|body| number(body)).collect();
    assert!(numbers.is_sorted(), "in order: {numbers:?}");
    numbers.dedup();
    assert_eq!(numbers, (0..count + 20).collect::<Vec<_>>());
    let page = running.page();
    assert_eq!((page.state, page.lost), ("up", 0));
    running.stop().await;
}

/// Heads that are odd and say that the event was accepted: it must not go out again.
#[tokio::test]
async fn unusual_response_heads_with_2xx_accept() {
    let headers = "x: 1\r\n".repeat(500);
    let accepts: Vec<Step> = vec![
        Step::Say(format!("HTTP/1.1 200 OK\r\n{headers}content-length: 0\r\n\r\n").into_bytes()),
        Step::SayAndClose(b"HTTP/1.0 200 OK\r\n\r\nbye".to_vec()),
        Step::SayAndClose(b"HTTP/1.1 200 \r\n\r\n".to_vec()),
        Step::SayAndClose(b"HTTP/1.1 200\r\n\r\n".to_vec()),
        Step::SayAndClose(b"HTTP/1.1 200 OK\r\nx : 1\r\n\r\n".to_vec()),
        Step::SayAndClose(b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n".to_vec()),
        Step::SayAndClose(b"HTTP/1.1 200 OK\r\nx: a\r\n b\r\n\r\n".to_vec()),
        Step::Say(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n".to_vec()),
        Step::SayAndClose(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort".to_vec()),
        Step::SayAndHang(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz".to_vec()),
        Step::Drip(ok(), Duration::from_millis(5)),
        Step::Early(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n".to_vec()),
    ];
    let count = accepts.len() as u64;
    let peer = ScriptedHttp::start(accepts).await;
    let journal = memory();
    let running = Running::start(&journal, to(&peer.url()), |_| ());
    journal.append(&mut events(0..count + 3));
    all_arrive(&journal).await;
    let page = running.page();
    assert_eq!((page.delivered, page.last_error), (count + 3, None));
    running.stop().await;
}

#[tokio::test]
async fn a_misconfigured_receiver_loses_nothing_and_order_stays() {
    let receiver = Receiver::start();
    for (start, answer) in (0..).step_by(100).zip([
        Answer::Status(401),
        Answer::Status(403),
        Answer::Status(404),
        Answer::Status(405),
        Answer::With(301, LOCATION, "http://127.0.0.1:1/elsewhere".into()),
    ]) {
        let journal = memory();
        let before = receiver.accepted().len();
        receiver.room("room", Some(answer.clone()));
        let running = Running::start(&journal, to(&receiver.url()), |_| ());
        journal.append(&mut events(start..start + 100));
        running.is_state("held").await;
        let asked = receiver.received().len();
        assert!(running.page().last_error.unwrap().contains("HTTP "), "{answer:?}");
        receiver.room("room", None);
        // Some seconds later it is tried by itself.
        all_arrive(&journal).await;
        assert!(receiver.received().len() <= asked + 101, "it is not pestered");
        assert_eq!(receiver.accepted()[before..], (start..start + 100).collect::<Vec<_>>());
        assert_eq!((running.page().state, running.page().lost), ("up", 0), "{answer:?}");
        running.stop().await;
    }
}

#[tokio::test]
async fn a_mistaken_410_ends_with_a_retry_request() {
    let receiver = Receiver::start();
    receiver.script([Answer::Status(200), Answer::Status(410)]);
    let journal = memory();
    let running = Running::start(&journal, to(&receiver.url()), |_| ());
    journal.append(&mut events(0..50));
    running.is_state("gone").await;
    assert_eq!(receiver.numbers(), [0, 1]);
    assert!(running.status.retry_sink("hook"));
    all_arrive(&journal).await;
    assert_eq!(receiver.accepted(), (0..50).collect::<Vec<_>>());
    running.stop().await;
}

#[tokio::test]
async fn progress_is_shown_and_a_stop_repeats_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let receiver = Receiver::start();
    // Some rooms are slower than others, so that events are accepted behind those that are not.
    let slow = Answer::Late(Duration::from_millis(150));
    receiver.room("room0", Some(slow.clone()));
    receiver.room("room3", Some(slow));
    let (journal, _) = open(&config(dir.path()));
    crate::support::journal::append(&journal, rooms(0..400, 7)).await;
    close(journal).await;
    for round in 0..6 {
        let (journal, _) = open(&config(dir.path()));
        let running = Running::start(&journal, to(&receiver.url()), |_| ());
        let before = journal.lag("hook").0;
        // It moves on while it is under way, and not only at its end.
        until("some are done", SOON, async || {
            let lag = journal.lag("hook").0;
            (lag > 0 && lag + 15 <= before).then_some(())
        })
        .await;
        let begin = Instant::now();
        running.stop().await;
        assert!(begin.elapsed() < Duration::from_secs(3), "{round}: {:?}", begin.elapsed());
        close(journal).await;
    }
    receiver.room("room0", None);
    receiver.room("room3", None);
    let (journal, _) = open(&config(dir.path()));
    let running = Running::start(&journal, to(&receiver.url()), |_| ());
    all_arrive(&journal).await;
    running.stop().await;
    close(journal).await;
    let mut numbers = receiver.accepted();
    for room in 0..7 {
        let of_room: Vec<_> = numbers.iter().filter(|n| **n % 7 == room).collect();
        assert!(of_room.is_sorted(), "room {room}: {of_room:?}");
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (0..400).collect::<Vec<_>>(), "each once");
}

#[tokio::test]
async fn a_hanging_room_does_not_delay_new_events_of_others() {
    let receiver = Receiver::start();
    receiver.room("room0", Some(Answer::Late(Duration::from_secs(20))));
    let journal = memory();
    let running = Running::start(&journal, to(&receiver.url()), |config| {
        config.timeout = Period(Duration::from_secs(30));
    });
    journal.append(&mut rooms(0..1, 7));
    until("it is asked", SOON, async || (receiver.received().len() == 1).then_some(())).await;
    let begin = Instant::now();
    for n in 1..7 {
        journal.append(&mut rooms([n], 7));
        until("it arrives", SOON, async || receiver.numbers().contains(&n).then_some(())).await;
    }
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    // A stop does not wait for it longer than it must, and the others are not repeated.
    let begin = Instant::now();
    running.stop().await;
    assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
}

/// A receiver that rejects what it gets from several rooms at once, while there is room for few dead letters.
struct Full {
    _dir: TempDir,
    journal: Journal,
    receiver: Receiver,
    running: Running,
    store: Store,
}

/// Events that come, and how many rooms they are from.
const FULL: u64 = 60;
const ROOMS: u64 = 7;

impl Full {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        config.max_dead_letters.0 = 16 * 1024;
        let (journal, _) = open(&config);
        crate::support::journal::append(&journal, rooms(0..FULL, ROOMS)).await;
        let receiver = Receiver::start();
        for room in 0..ROOMS {
            receiver.room(&format!("room{room}"), Some(Answer::Status(422)));
        }
        let running = Running::start(&journal, to(&receiver.url()), |_| ());
        running.is_state("held").await;
        let store = Store::open_reader(dir.path()).unwrap();
        store.allow_requests().unwrap();
        Self { _dir: dir, journal, receiver, running, store }
    }

    /// The receiver takes events from now on.
    fn mend(&self) {
        for room in 0..ROOMS {
            self.receiver.room(&format!("room{room}"), None);
        }
    }

    /// The numbers of the events that are dead letters.
    fn letters(&self) -> Vec<u64> {
        let letters = self.store.dead_letters(Some("hook")).unwrap();
        let body = |letter: &DeadLetter| String::from_utf8(letter.record.event.message.to_vec());
        letters.iter().map(|letter| number(&body(letter).unwrap())).collect()
    }
}

#[tokio::test]
async fn rejected_events_that_wait_for_room_among_the_letters_are_not_passed_over() {
    let full = Full::new().await;
    let mut dealt_with = Vec::new();
    for _ in 0..3 {
        let before = full.letters();
        let first = full.store.dead_letters(Some("hook")).unwrap()[0].number;
        dealt_with.push(before[0]);
        assert_eq!(full.store.drop_dead_letters(Some(&[first]), None).unwrap(), 1);
        until("the next has its room", SOON, async || {
            let now = full.letters();
            (now.last() > before.last()).then_some(())
        })
        .await;
    }
    // What was not dealt with goes out again after a stop.
    let receiver = full.receiver.url();
    full.mend();
    dealt_with.extend(full.letters());
    full.running.stop().await;
    let running = Running::start(&full.journal, to(&receiver), |_| ());
    all_arrive(&full.journal).await;
    running.stop().await;
    dealt_with.extend(full.receiver.accepted());
    dealt_with.sort_unstable();
    assert_eq!(dealt_with, (0..FULL).collect::<Vec<_>>());
    close(full.journal).await;
}

#[tokio::test]
async fn letters_are_tried_again_while_there_is_no_room_for_more() {
    let full = Full::new().await;
    // The destination is as it was: nothing is lost by that, and the sink is held again.
    synced(&full.journal).await;
    let letters = full.letters();
    assert!(full.store.retry_dead_letters(None, Some("hook")).unwrap() > 0);
    let asked = async || {
        let waits = full.store.dead_letters(Some("hook")).unwrap();
        (waits.iter().all(|letter| !letter.retry)).then_some(())
    };
    until("they were tried", SOON, asked).await;
    full.running.is_state("held").await;
    assert_eq!(full.letters(), letters);
    full.mend();
    full.store.retry_dead_letters(None, Some("hook")).unwrap();
    until("there is none", SOON, async || full.letters().is_empty().then_some(())).await;
    all_arrive(&full.journal).await;
    full.running.is_state("up").await;
    let mut accepted = full.receiver.accepted();
    accepted.sort_unstable();
    assert_eq!(accepted, (0..FULL).collect::<Vec<_>>());
    full.running.stop().await;
    close(full.journal).await;
}

#[tokio::test]
async fn what_was_accepted_before_a_failure_is_not_repeated_after_a_stop() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(&config(dir.path()));
    let receiver = Receiver::start();
    receiver.room("room0", Some(Answer::Status(503)));
    crate::support::journal::append(&journal, rooms(0..4, 4)).await;
    let running = Running::start(&journal, to(&receiver.url()), |_| ());
    until("the others are accepted", SOON, async || (receiver.accepted().len() == 3).then_some(()))
        .await;
    // Between two attempts nothing is on its way.
    until("it waits", SOON, async || {
        (running.page().state != "up" && running.page().next_attempt.is_some()).then_some(())
    })
    .await;
    running.stop().await;
    receiver.room("room0", None);
    let running = Running::start(&journal, to(&receiver.url()), |_| ());
    all_arrive(&journal).await;
    running.stop().await;
    let mut accepted = receiver.accepted();
    accepted.sort_unstable();
    assert_eq!(accepted, [0, 1, 2, 3]);
    close(journal).await;
}
