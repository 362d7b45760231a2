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
        refresh: None,
    }
}

#[tokio::test]
async fn a_token_that_cannot_be_read_now_is_read_again_later() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    let (targets, wanted) = watch::channel(Targets::default());
    let gap = gap();
    let removed = credentials_for(&gap, &gap.missed[0], &wanted).await.unwrap_err();
    assert!(removed.is_final, "{removed:?}");
    targets.send_modify(|targets| {
        targets.channels.insert("main".into(), account(&token));
    });
    let missing = credentials_for(&gap, &gap.missed[0], &wanted).await.unwrap_err();
    assert!(!missing.is_final, "{missing:?}");
    fs::write(&token, "tok").unwrap();
    assert_eq!(credentials_for(&gap, &gap.missed[0], &wanted).await.unwrap().token.expose(), "tok");
    // Waiting mends no room.
    let missed = Missed { room: "".into(), ..gap.missed[0].clone() };
    targets.send_modify(|targets| {
        let account = Account { room: None, ..account(&token) };
        targets.channels.insert("main".into(), account);
    });
    let nameless = credentials_for(&gap, &missed, &wanted).await.unwrap_err();
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
        let attempt = backfill.tools.attempt(&gap, missed, history, &wanted);
        let (outcome, ()) = tokio::join!(attempt, answer);
        let failed = outcome.unwrap_err();
        assert_eq!(failed.is_final, is_final, "{failed:?}");
    }
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
