use std::fs;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::{
    gap::{Missed, tests::gap},
    *,
};
use crate::{
    config::{Astro, SecretRef, TokenType},
    gateway::Account,
};

/// A channel with its token in that file.
fn account(token: &std::path::Path) -> Account {
    Account {
        token: SecretRef::File(token.to_owned()),
        token_type: TokenType::Jwt,
        room: Some("0f0e0d0c0b0a090807060504".into()),
        known_room: None,
        refresh: None,
    }
}

#[tokio::test]
async fn a_token_that_cannot_be_read_now_is_read_again_later() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    let (targets, wanted) = watch::channel(Targets::default());
    let (gap, rest) = (gap(), Rest::new(&Astro::default()));
    let removed = credentials_for(&rest, &gap, &gap.missed[0], &wanted).await.unwrap_err();
    assert!(removed.is_final, "{removed:?}");
    targets.send_modify(|targets| {
        targets.channels.insert("main".into(), account(&token));
    });
    let missing = credentials_for(&rest, &gap, &gap.missed[0], &wanted).await.unwrap_err();
    assert!(!missing.is_final, "{missing:?}");
    fs::write(&token, "tok").unwrap();
    assert_eq!(
        credentials_for(&rest, &gap, &gap.missed[0], &wanted).await.unwrap().token.expose(),
        "tok"
    );
    // Waiting mends no room.
    let missed = Missed { room: "".into(), ..gap.missed[0].clone() };
    targets.send_modify(|targets| {
        let account = Account { room: None, ..account(&token) };
        targets.channels.insert("main".into(), account);
    });
    let nameless = credentials_for(&rest, &gap, &missed, &wanted).await.unwrap_err();
    assert!(nameless.is_final, "{nameless:?}");
}

#[tokio::test]
async fn a_refused_token_is_final_unless_it_was_replaced_meanwhile() {
    const REFUSED: &[u8] =
        b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    fs::write(&token, "first").unwrap();
    let mut targets = Targets::default();
    targets.channels.insert("main".into(), account(&token));
    let (_targets, wanted) = watch::channel(targets);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let api_url = format!("http://{}", listener.local_addr().unwrap());
    let rest = Rest::new(&Astro { api_url, ..Astro::default() });
    let intake = Arc::new(Intake::new(Journal::in_memory(1 << 20)));
    let backfill = Backfill::new(rest, intake, wanted.clone()).unwrap();
    let gap = gap();
    let missed = &gap.missed[0];
    for (next, is_final) in [("first", true), ("second", false)] {
        let answer = async {
            let (mut peer, _) = listener.accept().await.unwrap();
            assert!(peer.read(&mut [0; 4096]).await.unwrap() > 0);
            fs::write(&token, next).unwrap();
            peer.write_all(REFUSED).await.unwrap();
        };
        let history = missed.history().unwrap();
        let mut reading = None;
        let attempt = backfill.tools.attempt(&gap, missed, history, &wanted, &mut reading);
        let (outcome, ()) = tokio::join!(attempt, answer);
        let failed = outcome.unwrap_err();
        assert_eq!(failed.is_final, is_final, "{failed:?}");
    }
}

/// Answers the next request; returns its first line.
async fn answer(listener: &TcpListener, head: &str, body: &str) -> String {
    let (mut peer, _) = listener.accept().await.unwrap();
    let mut request = [0; 4096];
    assert!(peer.read(&mut request).await.unwrap() > 0);
    let length = body.len();
    let answer =
        format!("HTTP/1.1 {head}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
    peer.write_all(answer.as_bytes()).await.unwrap();
    String::from_utf8_lossy(&request).lines().next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_history_that_failed_is_read_on_behind_the_last_page_that_was_read() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    fs::write(&token, "tok").unwrap();
    let mut targets = Targets::default();
    targets.channels.insert("main".into(), account(&token));
    let (_targets, wanted) = watch::channel(targets);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let api_url = format!("http://{}", listener.local_addr().unwrap());
    let from = gap().from;
    let page = |times: &[UnixMillis]| {
        let item = |at: &UnixMillis| {
            let id = format!("{at:024x}");
            json!({"_id": id, "createdAt": clock::rfc3339(*at)})
        };
        Value::Array(times.iter().map(item).collect()).to_string()
    };
    for (topic, newest_first, next) in [
        ("channel.activities", true, format!("before={}", from + 2)),
        ("channel.tips", false, "offset=100".to_owned()),
        ("channel.loyalty.redemptions", true, "offset=100".to_owned()),
    ] {
        let mut times: Vec<UnixMillis> = (from..=from + 100).collect();
        if newest_first {
            times.reverse();
        }
        let (first, second) = times.split_at(PAGE);
        let rest = Rest::new(&Astro { api_url: api_url.clone(), ..Astro::default() });
        let intake = Arc::new(Intake::new(Journal::in_memory(1 << 20)));
        let tools = Backfill::new(rest, intake, wanted.clone()).unwrap().tools;
        let mut gap = gap();
        gap.missed[0].topic = topic.into();
        let missed = &gap.missed[0];
        let history = missed.history().unwrap();
        let mut reading = None;
        let answers = async {
            answer(&listener, "200 OK", &page(first)).await;
            answer(&listener, "429 Too Many Requests\r\nretry-after: 7200", "").await
        };
        let attempt = tools.attempt(&gap, missed, history, &wanted, &mut reading);
        let (outcome, _) = tokio::join!(attempt, answers);
        let failed = outcome.unwrap_err();
        assert_eq!((failed.is_final, failed.asked), (false, Duration::from_hours(2)), "{topic}");

        let mut reading = reading.and_then(|reading| reading.keep(&tools.kept));
        assert_eq!(tools.kept.available_permits(), KEPT - PAGE);
        let last = page(second);
        let attempt = tools.attempt(&gap, missed, history, &wanted, &mut reading);
        let (outcome, request) = tokio::join!(attempt, answer(&listener, "200 OK", &last));
        assert!(request.contains(&next), "{topic}: {request}");
        let found = outcome.unwrap();
        assert_eq!((found.listed, found.recovered, found.complete), (101, 101, true), "{topic}");
        drop(reading);
        assert_eq!(tools.kept.available_permits(), KEPT);
    }
}

#[tokio::test(start_paused = true)]
async fn a_history_is_given_up_after_an_hour_without_a_page_and_a_wait_that_was_asked_for() {
    let failed = |asked| Failed { why: String::new(), is_final: false, asked };
    let (long, none) = (2 * GIVE_UP, Duration::ZERO);
    let mut retries = Retries::new(0);
    assert!(retries.wait(&failed(long), 0).is_some_and(|wait| wait >= long));
    tokio::time::advance(long).await;
    assert!(retries.wait(&failed(none), 1).is_some(), "a page was read");
    tokio::time::advance(GIVE_UP / 2).await;
    assert!(retries.wait(&failed(none), 1).is_some());
    tokio::time::advance(GIVE_UP).await;
    assert_eq!(retries.wait(&failed(none), 1), None);
    assert_eq!(Retries::new(0).wait(&Failed { is_final: true, ..failed(none) }, 1), None);
}

#[test]
fn a_refused_request_is_final_and_an_overloaded_server_is_not() {
    for (status, expected) in [
        (400, true),
        (401, true),
        (403, true),
        (404, true),
        (408, false),
        (410, true),
        (429, false),
        (500, false),
        (503, false),
    ] {
        let text = String::new();
        let failure = RestError::Refused { status, text, retry_after: None };
        assert_eq!(is_final(&failure), expected, "{status}");
    }
    assert!(is_final(&RestError::Token) && !is_final(&RestError::Unreachable("".into())));
}

#[test]
fn what_was_made_before_the_gap_is_no_part_of_it() {
    let gap = gap();
    let second = 1000;
    for (ahead, early, late) in [(Some(0), 20, 5), (None, 75, 60)] {
        let window = GapWindow::of(&gap, ahead);
        let (from, to) = (gap.from, gap.to);
        assert!(window.has(from) && window.has(to));
        assert!(window.has(from - early * second) && !window.has(from - early * second - 1));
        assert!(window.has(to + late * second) && !window.has(to + late * second + 1));
        let (after, before) = window.span();
        assert!(after < from - early * second && before.unwrap() > to + late * second);
    }
    // In the server's time.
    let window = GapWindow::of(&gap, Some(30_000));
    assert_eq!((window.from, window.to), (gap.from - 30_000, Some(gap.to - 30_000)));
    let ahead = GapWindow::of(&Gap { clock: GapClock::Gateway, ..gap.clone() }, Some(30_000));
    assert_eq!(ahead.from, gap.from, "it is reported in the server's time");
    let open = GapWindow::of(&Gap { clock: GapClock::Unknown, ..gap.clone() }, None);
    assert!(open.has(gap.to + 86_400_000) && open.span().1.is_none());
}
