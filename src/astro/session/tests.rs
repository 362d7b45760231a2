use std::time::Duration;

use super::*;
use crate::config::TokenType;

const SECOND: Duration = Duration::from_secs(1);

/// `{"alg":"HS256"}` and `{"sub":"x"}`, and no signature of anybody.
const JWT: &str = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl";

fn wanted(channel: &str, topic: &str, room: Option<&str>) -> Wanted {
    Wanted {
        subscription: Arc::new(Subscription {
            channel: channel.into(),
            topic: topic.into(),
            room: room.map(Into::into),
            token_type: TokenType::Jwt,
        }),
        token: Ok(Secret::new(JWT)),
    }
}

fn limits() -> Limits {
    Limits::from(&Astro::default())
}

fn text(session: &mut Session, frame: &str, now: Instant) -> Effects {
    let mut effects = Effects::default();
    session.on_text(frame.into(), 0, now, &mut effects);
    effects
}

fn nonces(effects: &Effects) -> Vec<String> {
    let nonce = |frame: &String| {
        let value: serde_json::Value = serde_json::from_str(frame).unwrap();
        value["nonce"].as_str().unwrap().to_owned()
    };
    effects.send.iter().map(nonce).collect()
}

fn answer(session: &mut Session, nonce: &str, rest: &str, now: Instant) -> Effects {
    text(session, &format!(r#"{{"type":"response","nonce":"{nonce}"{rest}}}"#), now)
}

const WELCOME: &str = r#"{"type":"welcome","data":{"client_id":"c","message":"hi"}}"#;

/// A session that has been welcomed, and the nonces of what it asked for.
fn welcomed(wanted: Vec<Wanted>) -> (Session, Vec<String>, Instant) {
    let now = Instant::now();
    let mut session = Session::new(1, wanted, limits(), now);
    let effects = text(&mut session, WELCOME, now);
    let nonces = nonces(&effects);
    (session, nonces, now)
}

fn state(session: &Session, index: usize) -> SubscriptionState {
    session.subscriptions().nth(index).unwrap().1.clone()
}

#[tokio::test(start_paused = true)]
async fn subscribes_on_welcome_and_takes_the_canonical_room() {
    let (mut session, nonces, now) = welcomed(vec![wanted("a", "t", Some("asked"))]);
    assert_eq!(state(&session, 0), SubscriptionState::Pending);
    assert!(!session.proven(now));
    answer(&mut session, &nonces[0], r#","data":{"message":"ok","topic":"t","room":"canon"}"#, now);
    assert_eq!(state(&session, 0), SubscriptionState::Confirmed(Some("canon".into())));
    assert!(session.proven(now) && session.all_answered());
    let effects = text(
        &mut session,
        r#"{"id":"1","ts":"x","type":"message","topic":"t","room":"canon","data":{"n":1}}"#,
        now,
    );
    let event = &effects.events[0];
    assert_eq!(
        (&*event.place.channel, &*event.place.room, event.data()),
        ("a", "canon", &b"{\"n\":1}"[..])
    );
}

#[tokio::test(start_paused = true)]
async fn without_a_welcome_it_subscribes_after_the_grace_time() {
    let now = Instant::now();
    let mut session = Session::new(1, vec![wanted("a", "t", None)], limits(), now);
    let mut effects = Effects::default();
    session.tick(now + 4 * SECOND, &mut effects);
    assert!(effects.send.is_empty());
    assert_eq!(session.due(now), now + 5 * SECOND);
    session.tick(now + 5 * SECOND, &mut effects);
    assert_eq!(effects.send.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn each_error_has_its_consequence() {
    // Code, text; whether and when it is tried again.
    let cases = [
        ("err_internal_error", "", Some(2)),
        ("err_deadline_exceeded", "", Some(2)),
        ("err_unauthorized", "invalid token", Some(300)),
        ("err_bad_request", "unknown topic", None),
        ("err_bad_request", "the name exceeds a limit", Some(300)),
        ("invalid_message", "", None),
        ("invalid_message_type", "", None),
        ("err_from_the_future", "", None),
    ];
    for (code, human, again) in cases {
        let (mut session, nonces, now) =
            welcomed(vec![wanted("a", "t", None), wanted("a", "u", None)]);
        let rest = format!(r#","error":"{code}","data":{{"message":"{human}"}}"#);
        answer(&mut session, &nonces[0], &rest, now);
        answer(&mut session, &nonces[1], "", now);
        let SubscriptionState::Refused(refusal) = state(&session, 0) else { panic!("{code}") };
        assert_eq!((&*refusal.code, &*refusal.text), (code, human));
        assert_eq!(refusal.retry_at, again.map(|seconds: u32| now + seconds * SECOND), "{code}");
        assert_eq!(
            state(&session, 1),
            SubscriptionState::Confirmed(None),
            "{code}: the others go on"
        );
        if let Some(at) = refusal.retry_at {
            session.on_other(at);
            let mut effects = Effects::default();
            session.tick(at, &mut effects);
            assert_eq!(effects.send.len(), 1, "{code}: asked again");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_says_what_is_odd_about_the_token() {
    for (token, code, human, expected) in [
        ("k3y", "err_unauthorized", "invalid token", "invalid token (the token is no JWT"),
        ("k3y", "err_unauthorized", "", "the token is no JWT"),
        ("SE_TOKEN=k3y", "err_unauthorized", "", "the token looks like a line NAME=token"),
        ("k3y", "err_bad_request", "unknown topic", "unknown topic"),
        (JWT, "err_unauthorized", "invalid token", "invalid token"),
    ] {
        let mut odd = wanted("a", "t", None);
        odd.token = Ok(Secret::new(token));
        let (mut session, nonces, now) = welcomed(vec![odd]);
        let rest = format!(r#","error":"{code}","data":{{"message":"{human}"}}"#);
        answer(&mut session, &nonces[0], &rest, now);
        let SubscriptionState::Refused(refusal) = state(&session, 0) else { panic!("{token}") };
        assert!(refusal.text.starts_with(expected), "{token}: {}", refusal.text);
        assert!(!refusal.text.contains("k3y"), "{}", refusal.text);
        assert_eq!(refusal.text.contains("(the token"), expected.contains("(the token"), "{token}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_subscription_is_asked_for_at_once_with_a_new_token() {
    let (mut session, nonces, now) = welcomed(vec![wanted("a", "t", None), wanted("b", "t", None)]);
    for nonce in &nonces {
        answer(&mut session, nonce, r#","error":"err_unauthorized""#, now);
    }
    let mut effects = Effects::default();
    session.renew("a", &Secret::new(JWT), &mut effects);
    session.tick(now, &mut effects);
    assert!(effects.send.is_empty(), "the same token is no news");
    session.renew("a", &Secret::new("fresh"), &mut effects);
    session.tick(now, &mut effects);
    assert_eq!(effects.send.len(), 1);
    assert!(effects.send[0].contains("fresh"));
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_for_again_is_asked_for_with_the_token_that_was_refreshed() {
    let (mut session, nonces, now) = welcomed(vec![wanted("a", "t", None), wanted("a", "u", None)]);
    answer(&mut session, &nonces[0], "", now);
    let mut effects = Effects::default();
    session.renew("a", &Secret::new("fresh"), &mut effects);
    assert!(effects.updates.is_empty(), "what is confirmed stays so");
    // The other one is not answered.
    session.on_other(now + 16 * SECOND);
    session.tick(now + 16 * SECOND, &mut effects);
    assert_eq!(effects.send.len(), 1);
    assert!(effects.send[0].contains("fresh") && effects.send[0].contains("\"u\""), "{effects:?}");
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_without_nonce_means_all_unanswered_again_after_five_seconds() {
    let (mut session, nonces, now) =
        welcomed((0..3).map(|n| wanted("a", &format!("t{n}"), None)).collect());
    answer(&mut session, &nonces[0], "", now);
    let effects = text(&mut session, r#"{"type":"response","error":"rate_limit_exceeded"}"#, now);
    assert!(effects.send.is_empty());
    session.on_other(now + 5 * SECOND);
    let mut effects = Effects::default();
    session.tick(now + 4 * SECOND, &mut effects);
    assert!(effects.send.is_empty());
    session.tick(now + 5 * SECOND, &mut effects);
    assert_eq!(effects.send.len(), 2);
    assert_eq!(session.take_counts().rate_limited, 1);
}

#[tokio::test(start_paused = true)]
async fn a_limit_on_the_connection_moves_what_is_left_to_another() {
    let all: Vec<_> = (0..12).map(|n| wanted("a", &format!("t{n}"), None)).collect();
    let (mut session, nonces, now) = welcomed(all);
    assert_eq!(nonces.len(), 10);
    for nonce in &nonces[..9] {
        answer(&mut session, nonce, "", now);
    }
    let limit = r#","error":"err_bad_request","data":{"message":"subscription limit reached"}"#;
    let effects = answer(&mut session, &nonces[9], limit, now);
    let moved: Vec<_> = effects.overflow.iter().map(|s| s.topic.to_string()).collect();
    assert_eq!(moved, ["t9", "t10", "t11"]);
    assert_eq!(session.subscriptions().count(), 9);
    assert!(session.all_answered());
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_is_an_answer() {
    let (mut session, nonces, now) = welcomed(vec![wanted("a", "t", None)]);
    let later = now + 15 * SECOND;
    session.on_other(later);
    let mut effects = Effects::default();
    session.tick(later, &mut effects);
    assert_eq!(effects.send.len(), 1, "asked again");
    answer(&mut session, &nonces[0], "", later);
    assert_eq!(state(&session, 0), SubscriptionState::Confirmed(None));
}

#[tokio::test(start_paused = true)]
async fn silence_is_pinged_and_then_ends_the_connection() {
    let (mut session, nonces, now) = welcomed(vec![wanted("a", "t", None)]);
    answer(&mut session, &nonces[0], "", now);
    assert_eq!(session.due(now), now + 15 * SECOND);
    let mut effects = Effects::default();
    session.tick(now + 15 * SECOND, &mut effects);
    assert!(effects.ping && effects.ended.is_none());
    session.tick(now + 24 * SECOND, &mut effects);
    assert!(effects.ended.is_none());
    assert_eq!(session.due(now), now + 25 * SECOND);
    session.tick(now + 25 * SECOND, &mut effects);
    assert!(matches!(effects.ended, Some(Ended::Lost(_))));
}

#[tokio::test(start_paused = true)]
async fn any_frame_is_life() {
    let feeds: [fn(&mut Session, Instant); 4] = [
        |session, now| session.on_other(now),
        |session, now| session.on_binary(now),
        |session, now| session.on_invalid(now),
        |session, now| drop(text(session, "garbage", now)),
    ];
    for feed in feeds {
        let (mut session, nonces, now) = welcomed(vec![wanted("a", "t", None)]);
        answer(&mut session, &nonces[0], "", now);
        let mut effects = Effects::default();
        session.tick(now + 15 * SECOND, &mut effects);
        feed(&mut session, now + 20 * SECOND);
        session.tick(now + 30 * SECOND, &mut effects);
        assert!(effects.ended.is_none());
        assert_eq!(session.due(now), now + 35 * SECOND);
    }
}

#[tokio::test(start_paused = true)]
async fn without_own_pings_the_servers_period_counts() {
    let now = Instant::now();
    let limits = Limits { ping_after: Duration::ZERO, ..limits() };
    let mut session = Session::new(1, Vec::new(), limits, now);
    let mut effects = Effects::default();
    session.tick(now + 44 * SECOND, &mut effects);
    assert!(effects.ended.is_none() && !effects.ping);
    session.tick(now + 45 * SECOND, &mut effects);
    assert!(effects.ended.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_restored_session_asks_for_nothing_that_was_confirmed() {
    let (mut before, nonces, now) =
        welcomed(vec![wanted("a", "t", Some("x")), wanted("a", "u", None)]);
    answer(&mut before, &nonces[0], r#","data":{"room":"canon"}"#, now);
    let effects = text(&mut before, r#"{"type":"reconnect","data":{"reconnect_token":"rt"}}"#, now);
    assert_eq!(effects.ended, Some(Ended::Handover(Secret::new("rt"))));
    let mut after = Session::restored(2, &before, now);
    let effects = text(&mut after, WELCOME, now);
    assert_eq!(effects.send.len(), 1, "only what was never answered");
    assert!(effects.send[0].contains(r#""topic":"u""#));
    assert_eq!(state(&after, 0), SubscriptionState::Confirmed(Some("canon".into())));
    let effects =
        text(&mut after, r#"{"id":"1","type":"message","topic":"t","room":"canon"}"#, now);
    assert_eq!(&*effects.events[0].place.channel, "a");
}

#[tokio::test(start_paused = true)]
async fn an_unwanted_subscription_is_left() {
    let (mut session, nonces, now) =
        welcomed(vec![wanted("a", "t", Some("x")), wanted("a", "u", None)]);
    for nonce in &nonces {
        answer(&mut session, nonce, r#","data":{"room":"canon"}"#, now);
    }
    let mut effects = Effects::default();
    session.retain(|subscription| &*subscription.topic == "u", &mut effects);
    session.tick(now, &mut effects);
    assert_eq!(effects.send.len(), 1);
    assert!(effects.send[0].contains(r#""type":"unsubscribe""#));
    assert!(effects.send[0].contains(r#""room":"canon""#));
    assert_eq!(session.subscriptions().count(), 1);
    session.add(vec![wanted("b", "v", None)]);
    let mut effects = Effects::default();
    session.tick(now, &mut effects);
    assert!(effects.send[0].contains(r#""topic":"v""#));
}

#[tokio::test(start_paused = true)]
async fn what_comes_while_a_room_is_left_or_asked_for_belongs_to_its_channel() {
    let message =
        |room: &str| format!(r#"{{"id":"{room}","type":"message","topic":"t","room":"{room}"}}"#);
    let channel = |session: &mut Session, room: &str, now| {
        let effects = text(session, &message(room), now);
        effects.events[0].place.channel.to_string()
    };
    let (mut session, nonces, now) =
        welcomed(vec![wanted("a", "t", Some("x")), wanted("b", "t", Some("y"))]);
    assert_eq!(channel(&mut session, "x", now), "a", "it is not confirmed yet");
    for (nonce, room) in nonces.iter().zip(["one", "two"]) {
        answer(&mut session, nonce, &format!(r#","data":{{"room":"{room}"}}"#), now);
    }
    session.retain(|subscription| &*subscription.channel != "a", &mut Effects::default());
    for room in ["one", "x"] {
        assert_eq!(channel(&mut session, room, now), "a", "the gateway has not left it yet");
    }
    assert_eq!(channel(&mut session, "two", now), "b");
    // It is taken up again before that, by another label too.
    session.add(vec![wanted("c", "t", Some("x")), wanted("d", "t", Some("two"))]);
    assert_eq!(channel(&mut session, "x", now), "c");
    assert_eq!(channel(&mut session, "two", now), "b", "what is confirmed comes first");
    assert_eq!(channel(&mut session, "three", now), "");
}

/// The commands that are sent now: verb, topic and room.
fn said(session: &mut Session, now: Instant) -> Vec<String> {
    let mut effects = Effects::default();
    session.due = None;
    session.tick(now, &mut effects);
    let word = |value: &serde_json::Value| value.as_str().unwrap_or("-").to_owned();
    let words = |frame: &String| {
        let value: serde_json::Value = serde_json::from_str(frame).unwrap();
        let data = &value["data"];
        format!("{} {} {}", word(&value["type"]), word(&data["topic"]), word(&data["room"]))
    };
    effects.send.iter().map(words).collect()
}

#[tokio::test(start_paused = true)]
async fn a_pending_subscription_is_left_too_and_the_rest_is_not_asked_for_again() {
    let (mut session, nonces, now) =
        welcomed(vec![wanted("a", "t", Some("x")), wanted("a", "u", Some("x"))]);
    session.retain(|subscription| &*subscription.topic == "u", &mut Effects::default());
    assert_eq!(said(&mut session, now), ["unsubscribe t x"]);
    answer(&mut session, &nonces[1], "", now);
    assert_eq!(state(&session, 0), SubscriptionState::Confirmed(None), "its nonce is still known");
}

#[tokio::test(start_paused = true)]
async fn a_subscription_that_another_label_wants_too_is_not_left() {
    let (mut session, nonces, now) = welcomed(vec![
        wanted("a", "t", Some("x")),
        wanted("b", "t", Some("y")),
        wanted("c", "t", Some("z")),
    ]);
    for (nonce, room) in nonces.iter().zip(["one", "one", "two"]) {
        answer(&mut session, nonce, &format!(r#","data":{{"room":"{room}"}}"#), now);
    }
    session.retain(|subscription| &*subscription.channel != "a", &mut Effects::default());
    assert!(said(&mut session, now).is_empty(), "b hears the same room");
    session.retain(|subscription| &*subscription.channel != "b", &mut Effects::default());
    assert_eq!(said(&mut session, now), ["unsubscribe t one"]);
}

#[tokio::test(start_paused = true)]
async fn leaving_all_rooms_of_a_topic_is_followed_by_asking_for_those_that_stay() {
    let (mut session, nonces, now) = welcomed(vec![
        wanted("a", "t", None),
        wanted("b", "t", Some("x")),
        wanted("b", "u", Some("x")),
    ]);
    for nonce in &nonces {
        answer(&mut session, nonce, "", now);
    }
    session.retain(|subscription| &*subscription.channel == "b", &mut Effects::default());
    assert_eq!(said(&mut session, now), ["unsubscribe t -", "subscribe t x"]);
}

#[tokio::test(start_paused = true)]
async fn leaving_keeps_the_pace_and_survives_a_rate_limit() {
    let all = (0..25).map(|n| wanted("a", &format!("t{n}"), Some("x"))).collect();
    let (mut session, mut nonces, mut now) = welcomed(all);
    while nonces.len() < 25 {
        now += 2 * SECOND;
        let mut effects = Effects::default();
        session.on_other(now);
        session.tick(now, &mut effects);
        nonces.extend(self::nonces(&effects));
    }
    for nonce in &nonces {
        answer(&mut session, nonce, "", now);
    }
    now += 2 * SECOND;
    session.retain(|_| false, &mut Effects::default());
    assert_eq!(said(&mut session, now).len(), 10, "not all at once");
    text(&mut session, r#"{"type":"response","error":"rate_limit_exceeded"}"#, now);
    assert!(said(&mut session, now + 4 * SECOND).is_empty());
    let mut left = 0;
    for _ in 0..3 {
        now += 5 * SECOND;
        left += said(&mut session, now).len();
    }
    assert_eq!(left, 25, "none is forgotten");
}

#[tokio::test(start_paused = true)]
async fn a_repeated_unsubscribe_does_not_hit_a_new_subscription() {
    let (mut session, nonces, now) = welcomed(vec![wanted("a", "t", Some("x"))]);
    answer(&mut session, &nonces[0], "", now);
    session.retain(|_| false, &mut Effects::default());
    assert_eq!(said(&mut session, now), ["unsubscribe t x"]);
    session.add(vec![wanted("b", "t", Some("x"))]);
    text(&mut session, r#"{"type":"response","error":"rate_limit_exceeded"}"#, now);
    assert_eq!(said(&mut session, now + 5 * SECOND), ["subscribe t x"]);
}

#[tokio::test(start_paused = true)]
async fn unanswered_nonces_are_bounded() {
    let (mut session, _, mut now) = welcomed(vec![wanted("a", "t", None)]);
    let mut last = Vec::new();
    for failures in 0..100 {
        now += limits().patience(failures);
        session.on_other(now);
        let mut effects = Effects::default();
        session.tick(now, &mut effects);
        last.extend(nonces(&effects));
    }
    assert_eq!(last.len(), 100);
    answer(&mut session, &last[90], "", now);
    assert_eq!(state(&session, 0), SubscriptionState::Pending, "forgotten");
    answer(&mut session, &last[98], "", now);
    assert_eq!(state(&session, 0), SubscriptionState::Confirmed(None));
}

proptest::proptest! {
    /// Whatever comes, nothing panics, and each subscription is in exactly one state.
    #[test]
    fn no_sequence_of_frames_breaks_a_session(steps in proptest::collection::vec((0_u8..12, 0_u64..8, 0_u64..40), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut now = Instant::now();
            let mut session = Session::new(1, (0..5).map(|n| wanted("a", &format!("t{n}"), None)).collect(), limits(), now);
            let mut moved = 0;
            for (kind, number, seconds) in steps {
                now += Duration::from_secs(seconds);
                let nonce = format!("1-{number}");
                let mut effects = match kind {
                    0 => text(&mut session, WELCOME, now),
                    1 => answer(&mut session, &nonce, "", now),
                    2 => answer(&mut session, &nonce, r#","error":"err_unauthorized""#, now),
                    3 => answer(&mut session, &nonce, r#","error":"err_internal_error""#, now),
                    4 => answer(&mut session, &nonce, r#","error":"err_bad_request","data":{"message":"limit"}"#, now),
                    5 => text(&mut session, r#"{"type":"response","error":"rate_limit_exceeded"}"#, now),
                    6 => text(&mut session, r#"{"type":"message","topic":"t1","id":"1"}"#, now),
                    7 => text(&mut session, "{", now),
                    8 => { session.on_other(now); Effects::default() }
                    9 => text(&mut session, r#"{"type":"reconnect","data":{"reconnect_token":"rt"}}"#, now),
                    10 => { let mut e = Effects::default(); session.renew("a", &Secret::new(nonce), &mut e); e }
                    _ => text(&mut session, r#"{"type":"what"}"#, now),
                };
                session.tick(now, &mut effects);
                moved += effects.overflow.len();
                assert_eq!(session.subscriptions().count() + moved, 5);
                assert!(session.due(now) > now || effects.ended.is_some() || session.due(now) <= now + 60 * SECOND);
            }
        });
    }
}

#[tokio::test(start_paused = true)]
async fn unanswered_unsubscribes_are_repeated_a_few_times_and_forgotten() {
    let (mut session, nonces, now) = welcomed(vec![wanted("a", "t", Some("x"))]);
    answer(&mut session, &nonces[0], r#","data":{"message":"ok","room":"x"}"#, now);
    session.retain(|_| false, &mut Effects::default());
    let mut sent = 0;
    let mut at = now;
    for _ in 0..100 {
        let mut effects = Effects::default();
        session.tick(at, &mut effects);
        sent += effects.send.len();
        // The server lives.
        session.on_other(at);
        at += Duration::from_secs(5);
    }
    assert_eq!((sent, session.leaving.len()), (3, 0));
    // Nor are they said again after the rate was exceeded.
    let effects = text(&mut session, r#"{"type":"response","error":"rate_limit_exceeded"}"#, at);
    assert!(effects.send.is_empty());
}

#[tokio::test(start_paused = true)]
async fn of_two_labels_with_one_room_the_first_has_its_messages() {
    for order in [[0, 1], [1, 0]] {
        let both = vec![wanted("b", "t", Some("r")), wanted("a", "t", None)];
        let (mut session, nonces, now) = welcomed(both);
        for index in order {
            answer(&mut session, &nonces[index], r#","data":{"message":"ok","room":"r"}"#, now);
        }
        let effects =
            text(&mut session, r#"{"type":"message","topic":"t","room":"r","data":1}"#, now);
        assert_eq!(&*effects.events[0].place.channel, "a", "{order:?}");
    }
}
