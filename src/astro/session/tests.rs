use std::time::Duration;

use super::*;
use crate::config::{Period, Size, TokenType};

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
            token_room: None,
        }),
        token: Ok(Secret::new(JWT)),
    }
}

fn config() -> Arc<Astro> {
    Arc::default()
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
    let mut session = Session::new(1, wanted, config(), now);
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
    assert!(!session.proven(now) && !session.all_answered());
    assert!(session.welcomed() && !session.is_empty());
    assert_eq!(session.patience_with_silence(), 25 * SECOND);
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
    let mut session = Session::new(1, vec![wanted("a", "t", None)], config(), now);
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
        ("err_from_the_future", "", Some(300)),
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
async fn a_refusal_does_not_repeat_a_token() {
    let secret = "apikey-SECRET-0123456789";
    let wanted = vec![wanted_with(secret, "a", "t", None), wanted_with("no", "b", "t", None)];
    let (mut session, nonces, now) = welcomed(wanted);
    // At the end of an excerpt too, and of another label's subscription.
    let long = format!("{} {secret}", "x".repeat(290));
    let texts = [format!("invalid token {secret}"), long];
    for (index, (nonce, text)) in nonces.iter().zip(texts).enumerate() {
        let rest = format!(r#","error":"no {secret}","data":{{"message":"{text}"}}"#);
        answer(&mut session, nonce, &rest, now);
        let SubscriptionState::Refused(refusal) = state(&session, index) else { panic!("{text}") };
        assert_eq!(&*refusal.code, "no …", "the other token is too short to be one");
        assert!(!refusal.text.contains("apikey"), "{}", refusal.text);
    }
    // What is being left was sent with it too.
    session.retain(|_| false);
    session.leaving.push(Leaving::new(
        &wanted_with(secret, "a", "t", None).subscription,
        None,
        &Secret::new(secret),
    ));
    assert_eq!(session.without_tokens(secret), "…");
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
async fn a_token_that_is_refreshed_before_the_old_one_is_refused_is_asked_with_at_once() {
    let refused = r#","error":"err_unauthorized""#;
    let (mut session, nonces, now) = welcomed(vec![wanted("a", "t", None)]);
    session.renew("a", &Secret::new("fresh"), &mut Effects::default());
    let effects = answer(&mut session, &nonces[0], refused, now);
    assert_eq!(state(&session, 0), SubscriptionState::Pending);
    assert!(effects.send.len() == 1 && effects.send[0].contains("fresh"), "{effects:?}");
    let asked = self::nonces(&effects);
    assert!(answer(&mut session, &asked[0], refused, now).send.is_empty());
    assert!(matches!(state(&session, 0), SubscriptionState::Refused(_)), "the new one is refused");
}

#[tokio::test(start_paused = true)]
async fn a_late_refusal_of_the_old_token_is_no_answer_for_the_new_one() {
    let (mut session, nonces, now) = welcomed(vec![wanted("a", "t", None)]);
    let mut effects = Effects::default();
    session.renew("a", &Secret::new("fresh"), &mut effects);
    let later = now + 15 * SECOND;
    session.on_other(later);
    session.tick(later, &mut effects);
    assert_eq!(effects.send.len(), 1, "asked again");
    answer(&mut session, &nonces[0], r#","error":"err_unauthorized""#, later);
    assert_eq!(state(&session, 0), SubscriptionState::Pending);
    answer(&mut session, &self::nonces(&effects)[0], "", later);
    assert_eq!(state(&session, 0), SubscriptionState::Confirmed(None));
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
    let all: Vec<_> = (0..102).map(|n| wanted("a", &format!("t{n}"), None)).collect();
    let (mut session, nonces, now) = welcomed(all);
    assert_eq!(nonces.len(), 100);
    for nonce in &nonces[..99] {
        answer(&mut session, nonce, "", now);
    }
    let limit = r#","error":"err_bad_request","data":{"message":"subscription limit reached"}"#;
    let effects = answer(&mut session, &nonces[99], limit, now);
    let moved: Vec<_> = effects.overflow.iter().map(|s| s.topic.to_string()).collect();
    assert_eq!(moved, ["t99", "t100", "t101"]);
    assert_eq!(session.subscriptions().count(), 99);
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
    assert!(effects.send.is_empty(), "what is confirmed is not asked for again");
    session.due = None;
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
    let config = Astro { ping_after: Period(Duration::ZERO), ..Astro::default() };
    let mut session = Session::new(1, Vec::new(), config.into(), now);
    let mut effects = Effects::default();
    assert_eq!(session.patience_with_silence(), 45 * SECOND);
    session.tick(now + 44 * SECOND, &mut effects);
    assert!(effects.ended.is_none() && !effects.ping);
    assert_eq!(session.due(now), now + 45 * SECOND);
    session.tick(now + 45 * SECOND, &mut effects);
    assert!(effects.ended.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_told_to_ping_waits_for_the_answer_as_after_a_silence() {
    let now = Instant::now();
    let mut session = Session::new(1, Vec::new(), Arc::default(), now);
    let ping = |session: &mut Session, now| {
        let mut effects = Effects::default();
        session.ping(now, &mut effects);
        effects.ping
    };
    assert!(ping(&mut session, now));
    assert!(!ping(&mut session, now + SECOND), "that one is not answered yet");
    session.on_other(now + 2 * SECOND);
    assert!(ping(&mut session, now + 3 * SECOND));
    let mut effects = Effects::default();
    session.tick(now + 12 * SECOND, &mut effects);
    assert_eq!(effects.ended, None);
    session.tick(now + 13 * SECOND, &mut effects);
    assert!(matches!(effects.ended, Some(Ended::Lost(_))));

    let config = Astro { ping_after: Period(Duration::ZERO), ..Astro::default() };
    let mut session = Session::new(1, Vec::new(), config.into(), now);
    assert!(!ping(&mut session, now), "it sends none of its own");
}

#[tokio::test(start_paused = true)]
async fn a_restored_session_without_a_welcome_is_lost() {
    let now = Instant::now();
    let before = Session::new(1, Vec::new(), Arc::default(), now);
    let late = now + Astro::default().welcome_grace.0;
    let mut after = Session::restored(2, &before, now);
    let mut effects = Effects::default();
    after.tick(late, &mut effects);
    assert!(matches!(effects.ended, Some(Ended::Lost(_))) && !after.welcomed());
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
    session.retain(|subscription| &*subscription.topic == "u");
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
    assert_eq!(channel(&mut session, "one", now), "a", "it is confirmed");
    session.retain(|subscription| &*subscription.channel != "a");
    for room in ["one", "x"] {
        assert_eq!(channel(&mut session, room, now), "a", "the gateway has not left it yet");
    }
    assert_eq!(channel(&mut session, "two", now), "b");
    // It is taken up again before that, by another label too.
    session.add(vec![wanted("c", "t", Some("x")), wanted("d", "t", Some("two"))]);
    for room in ["one", "x"] {
        assert_eq!(channel(&mut session, room, now), "c", "its canonical room is known from a");
    }
    assert_eq!(channel(&mut session, "two", now), "b", "what is confirmed comes first");
    assert_eq!(channel(&mut session, "three", now), "", "d is not asked for yet");
}

/// The rooms of two channels, as ids.
const ONE: &str = "111111111111111111111111";
const TWO: &str = "222222222222222222222222";

/// Channel and room of a message of topic `t` with these fields.
fn placed(session: &mut Session, fields: &str, now: Instant) -> (String, String) {
    let message = format!(r#"{{"id":"1","type":"message","topic":"t"{fields}}}"#);
    let place = Arc::clone(&text(session, &message, now).events[0].place);
    (place.channel.to_string(), place.room.to_string())
}

fn place(channel: &str, room: &str) -> (String, String) {
    (channel.into(), room.into())
}

#[tokio::test(start_paused = true)]
async fn a_message_without_a_room_is_not_guessed_to_be_the_only_confirmed_channels() {
    let by_data = |room: &str| format!(r#","data":{{"channel":"{room}"}}"#);
    let (mut session, nonces, now) =
        welcomed(vec![wanted("a", "t", Some(ONE)), wanted("b", "t", Some(TWO))]);
    // The answer to b is late.
    answer(&mut session, &nonces[0], "", now);
    assert_eq!(placed(&mut session, "", now), place("", ""));
    assert_eq!(placed(&mut session, &by_data(ONE), now), place("a", ONE));
    assert_eq!(placed(&mut session, &by_data(TWO), now), place("b", TWO));
    assert!(session.unplaced(now).is_empty(), "an answer is still to come");
    answer(&mut session, &nonces[1], "", now);
    assert_eq!(placed(&mut session, "", now), place("", ""));
    assert_eq!(session.unplaced(now), [Arc::<str>::from("t")]);
    assert_eq!(session.take_counts().unplaced, 1);
    assert!(session.unplaced(now + 600 * SECOND).is_empty());
    // The answer to b's `unsubscribe` is late.
    session.retain(|subscription| &*subscription.channel == "a");
    let mut effects = Effects::default();
    session.tick(now, &mut effects);
    let nonces = self::nonces(&effects);
    assert_eq!(placed(&mut session, "", now), place("", ""));
    assert_eq!(placed(&mut session, &by_data(TWO), now), place("b", TWO));
    answer(&mut session, &nonces[0], "", now);
    assert_eq!(placed(&mut session, "", now), place("a", ONE));
    assert!(session.unplaced(now).is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_brings_nothing() {
    let (mut session, nonces, now) =
        welcomed(vec![wanted("a", "t", Some(ONE)), wanted("b", "t", Some(TWO))]);
    answer(&mut session, &nonces[0], "", now);
    answer(&mut session, &nonces[1], r#","error":"err_unauthorized""#, now);
    assert_eq!(placed(&mut session, "", now), place("a", ONE));
}

#[tokio::test(start_paused = true)]
async fn what_comes_before_the_answer_belongs_to_the_only_channel_whose_room_is_not_known() {
    let in_room = |room: &str| format!(r#","room":"{room}""#);
    for room in [None, Some("by_name")] {
        let (mut session, nonces, now) =
            welcomed(vec![wanted("a", "t", room), wanted("b", "t", Some(TWO))]);
        assert_eq!(placed(&mut session, &in_room(ONE), now), place("a", ONE));
        assert_eq!(placed(&mut session, &in_room(TWO), now), place("b", TWO));
        answer(&mut session, &nonces[0], &format!(r#","data":{{"room":"{ONE}"}}"#), now);
        assert_eq!(placed(&mut session, &in_room(ONE), now), place("a", ONE));
        assert_eq!(placed(&mut session, &in_room("other"), now), place("", "other"));
    }
    let (mut session, _, now) = welcomed(vec![wanted("a", "t", None), wanted("b", "t", None)]);
    assert_eq!(placed(&mut session, &in_room(ONE), now), place("", ONE), "a's or b's");
}

#[tokio::test(start_paused = true)]
async fn a_room_of_the_connection_before_is_known_until_the_answer() {
    let wants = || ["a", "b"].map(|label| wanted_with(label, label, "t", None)).to_vec();
    let in_room = |room: &str| format!(r#","room":"{room}""#);
    let (mut before, nonces, now) = welcomed(wants());
    for (nonce, room) in nonces.iter().zip([ONE, TWO]) {
        answer(&mut before, nonce, &format!(r#","data":{{"room":"{room}"}}"#), now);
    }
    let mut after = Session::new(2, wants(), config(), now);
    after.continue_rooms(&before.named_rooms());
    let asked = nonces_of_welcome(&mut after, now);
    assert_eq!(placed(&mut after, &in_room(TWO), now), place("b", TWO));
    assert_eq!(after.named_rooms(), before.named_rooms(), "for the connection after this one too");
    // The answer counts.
    answer(&mut after, &asked[1], r#","data":{"room":"three"}"#, now);
    assert_eq!(placed(&mut after, &in_room("three"), now), place("b", "three"));
    assert_eq!(placed(&mut after, &in_room(TWO), now), place("", TWO));

    // Another token may be another channel's.
    let mut after = Session::new(3, vec![wanted_with("new", "a", "t", None)], config(), now);
    after.continue_rooms(&before.named_rooms());
    assert!(after.named_rooms().is_empty());
    before.renew("a", &Secret::new("new"), &mut Effects::default());
    assert_eq!(before.named_rooms().len(), 1);
    let restored = Session::restored(4, &before, now);
    assert_eq!(restored.named_rooms(), before.named_rooms(), "nor is it after a handover");
}

#[tokio::test(start_paused = true)]
async fn topics_with_messages_of_no_channel_are_known_to_the_next_connection() {
    let wants = || vec![wanted("a", "t", Some(ONE)), wanted("b", "t", Some(TWO))];
    let (mut before, nonces, now) = welcomed(wants());
    for nonce in &nonces {
        answer(&mut before, nonce, "", now);
    }
    assert_eq!(placed(&mut before, "", now), place("", ""));
    let mut after = Session::new(2, wants(), config(), now);
    assert!(after.unplaced(now).is_empty());
    after.continue_unplaced(before.take_unplaced());
    assert_eq!(after.unplaced(now), [Arc::<str>::from("t")]);
    assert!(after.unplaced(now + 600 * SECOND).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_renamed_label_has_the_room_of_the_one_before_until_the_answer() {
    let in_room = |room: &str| format!(r#","room":"{room}""#);
    // The room that is configured; the second label's room is not known either.
    for room in [None, Some("by_name")] {
        let (mut session, nonces, now) =
            welcomed(vec![wanted("a", "t", room), wanted_with("bob's", "b", "t", None)]);
        answer(&mut session, &nonces[0], &format!(r#","data":{{"room":"{ONE}"}}"#), now);
        // Twice, the second time before there is an answer to the first.
        for label in ["c", "d"] {
            session.retain(|subscription| &*subscription.channel == "b");
            session.add(vec![wanted(label, "t", room)]);
            let asked = format!("subscribe t {}", room.unwrap_or("-"));
            assert_eq!(said(&mut session, now), [asked], "nothing else is asked for");
            assert_eq!(placed(&mut session, &in_room(ONE), now), place(label, ONE));
        }
        assert_eq!(placed(&mut session, &in_room(TWO), now), place("b", TWO));
    }
}

#[tokio::test(start_paused = true)]
async fn what_takes_the_place_of_another_may_bring_messages_before_it_is_asked_for() {
    for room in [None, Some("x")] {
        let (mut session, nonces, now) = welcomed(vec![wanted("a", "t", room)]);
        answer(&mut session, &nonces[0], "", now);
        session.retain(|_| false);
        session.add(vec![wanted("b", "t", room)]);
        let room = room.unwrap_or_default();
        assert_eq!(placed(&mut session, "", now), place("b", room));
        let restored = Session::restored(2, &session, now);
        // It is no longer wanted at once: the gateway has it still.
        for mut session in [restored, session] {
            session.welcome();
            session.retain(|_| false);
            let left = if room.is_empty() { "-" } else { room };
            assert_eq!(said(&mut session, now), [format!("unsubscribe t {left}")]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_label_whose_token_was_read_as_another_accounts_before_the_reload_is_left() {
    let of_account = |room: &str, token: &str| {
        let (channel, topic) = ("a".into(), "t".into());
        let (token_type, token_room) = (TokenType::Jwt, Some(room.into()));
        let one = Subscription { channel, topic, room: None, token_type, token_room };
        Wanted { subscription: Arc::new(one), token: Ok(Secret::new(token)) }
    };
    let (mut session, nonces, now) = welcomed(vec![of_account(ONE, "one's")]);
    answer(&mut session, &nonces[0], &format!(r#","data":{{"room":"{ONE}"}}"#), now);
    session.renew("a", &Secret::new("two's"), &mut Effects::default());
    session.retain(|_| false);
    session.add(vec![of_account(TWO, "two's")]);
    let commands = [format!("unsubscribe t {ONE}"), "subscribe t -".to_owned()];
    assert_eq!(said(&mut session, now), commands);
    assert!(session.named_rooms().is_empty());
}

fn nonces_of_welcome(session: &mut Session, now: Instant) -> Vec<String> {
    nonces(&text(session, WELCOME, now))
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
    session.retain(|subscription| &*subscription.topic == "u");
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
    session.retain(|subscription| &*subscription.channel != "a");
    assert!(said(&mut session, now).is_empty(), "b hears the same room");
    session.retain(|subscription| &*subscription.channel != "b");
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
    session.retain(|subscription| &*subscription.channel == "b");
    assert_eq!(said(&mut session, now), ["unsubscribe t -", "subscribe t x"]);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_comes_before_all_rooms_are_left_confirms_nothing() {
    let (mut session, nonces, now) =
        welcomed(vec![wanted("a", "t", None), wanted("b", "t", Some("x"))]);
    answer(&mut session, &nonces[0], "", now);
    session.retain(|subscription| &*subscription.channel == "b");
    assert_eq!(said(&mut session, now), ["unsubscribe t -", "subscribe t x"]);
    answer(&mut session, &nonces[1], "", now);
    assert_eq!(state(&session, 0), SubscriptionState::Pending);
}

#[tokio::test(start_paused = true)]
async fn leaving_keeps_the_pace_and_survives_a_rate_limit() {
    let all = (0..120).map(|n| wanted("a", &format!("t{n}"), Some("x"))).collect();
    let (mut session, mut nonces, mut now) = welcomed(all);
    while !nonces.is_empty() {
        for nonce in std::mem::take(&mut nonces) {
            answer(&mut session, &nonce, "", now);
        }
        now += pace::WINDOW;
        let mut effects = Effects::default();
        session.on_other(now);
        session.tick(now, &mut effects);
        nonces = self::nonces(&effects);
    }
    session.retain(|_| false);
    assert_eq!(said(&mut session, now).len(), 100, "not all at once");
    text(&mut session, r#"{"type":"response","error":"rate_limit_exceeded"}"#, now);
    assert!(said(&mut session, now + 4 * SECOND).is_empty());
    now += 5 * SECOND;
    let mut left = 0;
    for _ in 0..17 {
        left += said(&mut session, now).len();
        now += SECOND + SECOND / 10;
    }
    assert_eq!(left, 120, "none is forgotten");
}

#[tokio::test(start_paused = true)]
async fn a_repeated_unsubscribe_does_not_hit_a_new_subscription() {
    let (mut session, nonces, now) = welcomed(vec![wanted("a", "t", Some("x"))]);
    answer(&mut session, &nonces[0], "", now);
    session.retain(|_| false);
    assert_eq!(said(&mut session, now), ["unsubscribe t x"]);
    session.add(vec![wanted("b", "t", Some("x"))]);
    text(&mut session, r#"{"type":"response","error":"rate_limit_exceeded"}"#, now);
    assert_eq!(said(&mut session, now + 5 * SECOND), ["subscribe t x"]);
}

/// With a token of its own.
fn wanted_with(token: &str, channel: &str, topic: &str, room: Option<&str>) -> Wanted {
    Wanted { token: Ok(Secret::new(token)), ..wanted(channel, topic, room) }
}

#[tokio::test(start_paused = true)]
async fn channels_without_a_room_are_told_apart_by_their_tokens() {
    let alice = || wanted_with("alice's", "alice", "t", None);
    let bob = || wanted_with("bob's", "bob", "t", None);
    // What the gateway says of alice's room and of bob's; what is said when alice goes, and when bob comes
    // in her place.
    for (rooms, gone, replaced) in [
        (
            [r#","data":{"room":"one"}"#, r#","data":{"room":"two"}"#],
            &["unsubscribe t one"][..],
            ["unsubscribe t one", "subscribe t -"],
        ),
        (["", ""], &["unsubscribe t -", "subscribe t -"][..], ["unsubscribe t -", "subscribe t -"]),
    ] {
        let (mut session, nonces, now) = welcomed(vec![alice(), bob()]);
        for (nonce, room) in nonces.iter().zip(rooms) {
            answer(&mut session, nonce, room, now);
        }
        session.retain(|subscription| &*subscription.channel == "bob");
        assert_eq!(said(&mut session, now), gone);

        let (mut session, nonces, now) = welcomed(vec![alice()]);
        answer(&mut session, &nonces[0], rooms[0], now);
        session.retain(|_| false);
        session.add(vec![bob()]);
        assert_eq!(said(&mut session, now), replaced);
    }
}

#[tokio::test(start_paused = true)]
async fn labels_without_a_room_and_with_one_token_are_the_same_to_the_gateway() {
    let (mut session, nonces, now) = welcomed(vec![wanted("a", "t", None), wanted("b", "t", None)]);
    for nonce in &nonces {
        answer(&mut session, nonce, "", now);
    }
    session.retain(|subscription| &*subscription.channel == "b");
    assert!(said(&mut session, now).is_empty(), "b goes on");
    session.retain(|_| false);
    session.add(vec![wanted("c", "t", None)]);
    assert_eq!(said(&mut session, now), ["subscribe t -"], "c takes its place");
}

#[tokio::test(start_paused = true)]
async fn a_room_that_is_named_later_is_not_left() {
    let (mut session, nonces, now) = welcomed(vec![wanted("a", "t", None)]);
    answer(&mut session, &nonces[0], r#","data":{"room":"x"}"#, now);
    session.retain(|_| false);
    session.add(vec![wanted_with("another", "a", "t", Some("x"))]);
    assert_eq!(said(&mut session, now), ["subscribe t x"]);
}

#[tokio::test(start_paused = true)]
async fn what_a_repeated_unsubscribe_may_end_is_asked_for_again_behind_it() {
    let all_rooms = ["unsubscribe t -", "subscribe t y"];
    let one_room = ["unsubscribe t one", "subscribe t y"];
    // The canonical room that the gateway names, of both.
    for (room, expected) in [("", all_rooms), (r#","data":{"room":"one"}"#, one_room)] {
        let bob = || wanted_with("bob's", "b", "t", Some("y"));
        let (mut session, nonces, now) = welcomed(vec![wanted("a", "t", None)]);
        answer(&mut session, &nonces[0], room, now);
        session.retain(|_| false);
        session.add(vec![bob()]);
        assert_eq!(said(&mut session, now), expected);
        // The subscription is confirmed, the `unsubscribe` is not answered.
        let confirmed = answer(&mut session, "1-3", room, now);
        assert!(confirmed.updates[0].state.is_confirmed());

        // On the next connection, that a token has restored.
        let mut restored = Session::restored(2, &session, now);
        assert_eq!(text(&mut restored, WELCOME, now).send.len(), 2);
        assert_eq!(state(&restored, 0), SubscriptionState::Pending);

        // In time.
        assert!(said(&mut session, now + 29 * SECOND).is_empty());
        assert_eq!(said(&mut session, now + 30 * SECOND), expected);
        assert_eq!(state(&session, 0), SubscriptionState::Pending);
        answer(&mut session, "1-3", room, now);
        assert_eq!(state(&session, 0), SubscriptionState::Pending, "it was answered before");
        answer(&mut session, "1-5", room, now);
        assert!(state(&session, 0).is_confirmed());

        // After too many commands.
        let later = now + 30 * SECOND;
        text(&mut session, r#"{"type":"response","error":"rate_limit_exceeded"}"#, later);
        assert_eq!(said(&mut session, later + 5 * SECOND), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn an_unsubscribe_that_failed_is_sent_again_later() {
    for code in ["err_internal_error", "err_deadline_exceeded"] {
        let (mut session, nonces, now) = welcomed(vec![wanted("a", "t", Some("x"))]);
        answer(&mut session, &nonces[0], "", now);
        session.retain(|_| false);
        assert_eq!(said(&mut session, now), ["unsubscribe t x"]);
        answer(&mut session, "1-2", &format!(r#","error":"{code}""#), now);
        assert!(said(&mut session, now + 29 * SECOND).is_empty());
        assert_eq!(said(&mut session, now + 30 * SECOND), ["unsubscribe t x"], "{code}");
        answer(&mut session, "1-3", "", now + 30 * SECOND);
        assert!(session.leaving.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_failure_of_the_asking_before_is_no_answer_to_the_last_one() {
    let (mut session, first, now) = welcomed(vec![wanted("a", "t", None)]);
    let later = now + 15 * SECOND;
    session.on_other(later);
    let mut effects = Effects::default();
    session.tick(later, &mut effects);
    let second = nonces(&effects);
    assert_eq!(second.len(), 1, "asked again");
    let failed = r#","error":"err_deadline_exceeded""#;
    assert!(answer(&mut session, &first[0], failed, later).updates.is_empty());
    assert_eq!(state(&session, 0), SubscriptionState::Pending);
    answer(&mut session, &second[0], "", later);
    assert_eq!(state(&session, 0), SubscriptionState::Confirmed(None));
}

#[tokio::test(start_paused = true)]
async fn what_is_never_answered_is_asked_for_again_and_waited_for_no_longer() {
    let (mut session, asked, mut now) =
        welcomed(vec![wanted("a", "t", None), wanted("a", "u", None)]);
    answer(&mut session, &asked[1], "", now);
    let (mut seen, mut last) = (Vec::new(), Vec::new());
    for failures in 0..4 {
        now += patience(&config(), failures);
        session.on_other(now);
        let mut effects = Effects::default();
        session.tick(now, &mut effects);
        last = nonces(&effects);
        assert_eq!(last.len(), 1, "asked again");
        let is_unanswered = effects.updates.iter().all(|update| update.is_unanswered);
        seen.push((is_unanswered, session.all_answered()));
    }
    assert_eq!(seen, [(false, false), (false, false), (true, true), (true, true)]);
    let effects = answer(&mut session, &last[0], "", now);
    assert!(effects.updates[0].state.is_confirmed() && !effects.updates[0].is_unanswered);
}

#[tokio::test(start_paused = true)]
async fn unanswered_nonces_are_bounded() {
    let (mut session, _, mut now) = welcomed(vec![wanted("a", "t", None)]);
    let mut last = Vec::new();
    for failures in 0..100 {
        now += patience(&config(), failures);
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
            let mut session = Session::new(1, (0..5).map(|n| wanted("a", &format!("t{n}"), None)).collect(), config(), now);
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
    session.retain(|_| false);
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

#[tokio::test(start_paused = true)]
async fn a_restored_session_goes_on_giving_up_and_keeps_the_times() {
    let (mut before, nonces, now) =
        welcomed(vec![wanted("a", "t", Some("x")), wanted("b", "u", Some("y"))]);
    let mut effects = Effects::default();
    for nonce in &nonces {
        let frame = format!(r#"{{"type":"response","nonce":"{nonce}"}}"#);
        before.on_text(frame.into(), 7, now, &mut effects);
    }
    before.retain(|subscription| &*subscription.topic == "t");
    let mut after = Session::restored(2, &before, now);
    assert_eq!(after.updates()[0].confirmed_at, Some(7), "nothing may have been missed");
    text(&mut after, WELCOME, now);
    assert_eq!(after.leaving.len(), 1);
    let (mut after, mut effects) = (Session::restored(2, &before, now), Effects::default());
    after.welcome();
    after.tick(now, &mut effects);
    assert!(effects.send[0].contains(r#""type":"unsubscribe""#), "{:?}", effects.send);
    after.missed(9);
    assert_eq!(after.updates()[0].confirmed_at, Some(9));
}

#[tokio::test(start_paused = true)]
async fn the_times_of_a_session_begin_when_its_connection_is_open() {
    let made = Instant::now();
    let open = made + 20 * SECOND;
    let mut session = Session::new(1, vec![wanted("a", "t", None)], config(), made);
    session.opened(open);
    let mut effects = Effects::default();
    session.tick(open + 4 * SECOND, &mut effects);
    assert!(effects.send.is_empty(), "a welcome may yet come");
    session.tick(open + 14 * SECOND, &mut effects);
    assert!(!effects.send.is_empty() && !effects.ping);
    session.tick(open + 15 * SECOND, &mut effects);
    assert!(effects.ping);
    assert!(!session.proven(open + 59 * SECOND) && session.proven(open + 60 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn what_is_not_relayed_is_counted_and_reported_when_it_repeats() {
    let frame = r#"{"type":"message","topic":"t","id":"1"}"#;
    let now = Instant::now();
    let max_message_size = Size(u64::try_from(frame.len()).unwrap());
    let config = Arc::new(Astro { max_message_size, ..Astro::default() });
    let session = || Session::new(1, Vec::new(), Arc::clone(&config), now);
    assert_eq!(text(&mut session(), frame, now).events.len(), 1);
    let large = format!("{frame} ");
    let twice = r#"[{"type":"message"},{"type":"message","topic":"t"}]"#;
    let short = r#"[{"topic":"t"},3]"#;
    for (frame, events, oversized, invalid) in
        [(&*large, 0, 1, 0), ("garbage", 0, 0, 1), (twice, 0, 1, 0), (short, 1, 0, 1)]
    {
        let mut session = session();
        for _ in 0..3 {
            assert_eq!(session.unreadable(now), None);
            assert_eq!(text(&mut session, frame, now).events.len(), events, "{frame}");
        }
        assert!(session.unreadable(now).is_some(), "{frame}");
        let counts = session.take_counts();
        assert_eq!((counts.oversized, counts.invalid), (3 * oversized, 3 * invalid), "{frame}");
        assert_eq!(counts.messages, u64::try_from(3 * events).unwrap());
        assert_eq!(session.take_counts(), FrameCounts::default());
    }
}

#[tokio::test(start_paused = true)]
async fn frames_that_say_nothing_to_a_channel_are_counted() {
    let (mut session, nonces, now) = welcomed(vec![wanted("a", "t", None)]);
    for _ in 0..2 {
        session.on_binary(now);
        session.on_invalid(now);
        text(&mut session, r#"{"type":"what"}"#, now);
    }
    answer(&mut session, &nonces[0], r#","error":"err_unauthorized""#, now);
    let counts = session.take_counts();
    assert_eq!((counts.binary, counts.invalid, counts.unknown, counts.refused), (2, 2, 2, 1));
    for kind in 0..100 {
        text(&mut session, &format!(r#"{{"type":"t{kind}"}}"#), now);
    }
    assert_eq!((session.unknown_types.len(), session.take_counts().unknown), (16, 100));
}

#[tokio::test(start_paused = true)]
async fn the_time_of_a_response_is_the_gateways() {
    let (mut session, nonces, now) = welcomed(vec![wanted("a", "t", None)]);
    let effects = answer(&mut session, &nonces[0], r#","ts":"2024-02-15T14:52:42Z""#, now);
    assert_eq!(effects.server_time, Some(1_708_008_762_000));
    assert_eq!(answer(&mut session, "1-9", r#","ts":"x""#, now).server_time, None);
}

#[tokio::test(start_paused = true)]
async fn after_an_answered_ping_the_next_is_due_in_time() {
    let now = Instant::now();
    let config = Astro { ping_timeout: Period(50 * SECOND), ..Astro::default() };
    let mut session = Session::new(1, Vec::new(), config.into(), now);
    let mut effects = Effects::default();
    session.tick(now + 15 * SECOND, &mut effects);
    assert!(std::mem::take(&mut effects.ping));
    session.on_other(now + 16 * SECOND);
    session.tick(now + 17 * SECOND, &mut effects);
    assert_eq!(session.due(now), now + 31 * SECOND);
    session.tick(now + 31 * SECOND, &mut effects);
    assert!(effects.ping);
}

/// Sessions that send no pings, so that only what they ask for is due.
fn without_pings() -> Arc<Astro> {
    Arc::new(Astro { ping_after: Period(10_000 * SECOND), ..Astro::default() })
}

#[tokio::test(start_paused = true)]
async fn a_welcome_is_acted_on_at_once() {
    let now = Instant::now();
    let mut session = Session::new(1, vec![wanted("a", "t", None)], config(), now);
    session.tick(now, &mut Effects::default());
    assert!(!session.welcomed());
    assert_eq!(text(&mut session, WELCOME, now).send.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_answered_is_due_later_each_time() {
    let now = Instant::now();
    let all = vec![wanted("a", "t", Some("x")), wanted("a", "u", None)];
    let mut session = Session::new(1, all, without_pings(), now);
    let asked = nonces(&text(&mut session, WELCOME, now));
    assert_eq!(session.due(now), now + 15 * SECOND);
    answer(&mut session, &asked[1], "", now);
    let mut effects = Effects::default();
    session.tick(now + 15 * SECOND, &mut effects);
    assert_eq!(effects.send.len(), 1);
    assert_eq!(session.due(now), now + 45 * SECOND);
    // The same for what is left.
    let left = now + 20 * SECOND;
    session.retain(|subscription| &*subscription.topic == "u");
    session.tick(left, &mut effects);
    assert_eq!(effects.send.len(), 2);
    let due = left + 30 * SECOND;
    assert_eq!(session.due(left), due);
    session.due = None;
    session.tick(due - Duration::from_millis(1), &mut effects);
    assert_eq!(effects.send.len(), 2);
    session.tick(due, &mut effects);
    assert_eq!(effects.send.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn commands_that_must_wait_for_the_pace_are_due_with_it() {
    let now = Instant::now();
    let all = (0..101).map(|n| wanted("a", &format!("t{n}"), None)).collect();
    let mut session = Session::new(1, all, without_pings(), now);
    let asked = nonces(&text(&mut session, WELCOME, now));
    session.tick(now, &mut Effects::default());
    assert_eq!(session.due(now), now + pace::WINDOW);
    // What is to be left waits for it too.
    session.retain(|subscription| &*subscription.topic != "t100");
    for nonce in &asked {
        answer(&mut session, nonce, "", now);
    }
    session.retain(|_| false);
    session.tick(now, &mut Effects::default());
    assert_eq!(session.due(now), now + pace::WINDOW);
}

#[tokio::test(start_paused = true)]
async fn an_answered_unsubscribe_is_not_repeated() {
    let (mut session, asked, now) =
        welcomed(vec![wanted("a", "t", Some("x")), wanted("a", "u", Some("x"))]);
    for nonce in &asked {
        answer(&mut session, nonce, "", now);
    }
    session.retain(|_| false);
    assert!(session.is_empty());
    let mut effects = Effects::default();
    session.tick(now, &mut effects);
    let unsubscribed = nonces(&effects);
    answer(&mut session, &unsubscribed[0], "", now);
    assert_eq!(said(&mut session, now + 30 * SECOND), ["unsubscribe u x"]);
}

#[tokio::test(start_paused = true)]
async fn only_what_the_gateway_may_have_is_left() {
    let all: Vec<_> = (0..101).map(|n| wanted("a", &format!("t{n}"), Some("x"))).collect();
    let (mut session, asked, now) = welcomed(all);
    answer(&mut session, &asked[0], r#","error":"err_bad_request""#, now);
    let kept = |subscription: &Subscription| !matches!(&*subscription.topic, "t0" | "t100");
    session.retain(kept);
    assert!(session.leaving.is_empty(), "one is refused, one was not asked for");
    // What was asked for and timed out may be there.
    text(&mut session, r#"{"type":"response","error":"rate_limit_exceeded"}"#, now);
    session.retain(|_| false);
    assert_eq!(session.leaving.len(), 99);
}

#[tokio::test(start_paused = true)]
async fn of_two_rooms_that_are_left_only_the_one_that_is_wanted_again_is_not() {
    let (mut session, _, now) =
        welcomed(vec![wanted("a", "t", Some("x")), wanted("a", "t", Some("y"))]);
    session.retain(|_| false);
    session.add(vec![wanted("b", "t", Some("x"))]);
    assert_eq!(said(&mut session, now), ["unsubscribe t y", "subscribe t x"]);
}

#[tokio::test(start_paused = true)]
async fn a_room_of_two_labels_goes_to_the_one_that_stays() {
    let (mut session, nonces, now) =
        welcomed(vec![wanted("a", "t", Some("x")), wanted("b", "t", Some("y"))]);
    for nonce in &nonces {
        answer(&mut session, nonce, r#","data":{"room":"one"}"#, now);
    }
    let message = r#"{"type":"message","topic":"t","room":"one","id":"1"}"#;
    let channel =
        |session: &mut Session| text(session, message, now).events[0].place.channel.to_string();
    assert_eq!(channel(&mut session), "a");
    assert_eq!(session.take_message_counts().len(), 1);
    assert!(session.take_message_counts().is_empty());
    session.retain(|subscription| &*subscription.channel == "b");
    assert_eq!(channel(&mut session), "b");
    let counts = session.take_message_counts();
    assert_eq!((&*counts[0].0.channel, counts[0].1), ("b", 1));
}

#[tokio::test(start_paused = true)]
async fn what_moves_to_another_connection_has_no_messages_on_this_one() {
    let (mut session, nonces, now) =
        welcomed(vec![wanted("a", "t", Some("x")), wanted("a", "u", None)]);
    answer(&mut session, &nonces[1], "", now);
    let message = r#"{"type":"message","topic":"t","room":"x","id":"1"}"#;
    assert_eq!(&*text(&mut session, message, now).events[0].place.channel, "a");
    let limit = r#","error":"err_bad_request","data":{"message":"Limit reached"}"#;
    assert_eq!(answer(&mut session, &nonces[0], limit, now).overflow.len(), 1);
    assert_eq!(&*text(&mut session, message, now).events[0].place.channel, "");
}

#[tokio::test(start_paused = true)]
async fn a_bad_request_beside_a_confirmed_subscription_is_refused() {
    let (mut session, nonces, now) = welcomed(vec![wanted("a", "t", None), wanted("a", "u", None)]);
    answer(&mut session, &nonces[1], "", now);
    let rest = r#","error":"err_bad_request","data":{"message":"unknown topic"}"#;
    assert!(answer(&mut session, &nonces[0], rest, now).overflow.is_empty());
    let SubscriptionState::Refused(refusal) = state(&session, 0) else { panic!() };
    assert_eq!(refusal.retry_at, None);
}

#[tokio::test(start_paused = true)]
async fn an_answer_counts_once_and_on_its_own_connection() {
    let (mut session, nonces, now) = welcomed(vec![wanted("a", "t", None)]);
    let refused = r#","error":"err_unauthorized""#;
    answer(&mut session, "2-1", refused, now);
    answer(&mut session, "1-7", refused, now);
    answer(&mut session, "", refused, now);
    assert_eq!(state(&session, 0), SubscriptionState::Pending);
    answer(&mut session, &nonces[0], "", now);
    answer(&mut session, &nonces[0], refused, now);
    assert_eq!(state(&session, 0), SubscriptionState::Confirmed(None));
}

/// Fails what is asked for now with an error of the gateway's own; after how long it is tried again.
fn fails(session: &mut Session, nonce: &str, now: Instant) -> Duration {
    answer(session, nonce, r#","error":"err_internal_error""#, now);
    let SubscriptionState::Refused(refusal) = state(session, 0) else { panic!() };
    refusal.retry_at.unwrap() - now
}

#[tokio::test(start_paused = true)]
async fn a_failed_subscription_is_tried_again_later_each_time_and_from_anew_after_a_success() {
    let (mut session, mut asked, mut now) =
        welcomed(vec![wanted("a", "t", Some("x")), wanted("b", "t", None)]);
    let again = |session: &mut Session, now| {
        let mut effects = Effects::default();
        session.on_other(now);
        session.due = None;
        session.tick(now, &mut effects);
        nonces(&effects)
    };
    answer(&mut session, &asked[1], "", now);
    for seconds in [2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
        let wait = fails(&mut session, &asked[0], now);
        assert_eq!(wait, seconds * SECOND);
        now += wait;
        asked = again(&mut session, now);
    }
    // A new token is a new beginning.
    fails(&mut session, &asked[0], now);
    session.renew("a", &Secret::new("fresh"), &mut Effects::default());
    asked = again(&mut session, now);
    assert_eq!(fails(&mut session, &asked[0], now), 2 * SECOND);
    now += 2 * SECOND;
    asked = again(&mut session, now);
    answer(&mut session, &asked[0], "", now);
    // All rooms of the topic are left, so it is asked for again.
    session.retain(|subscription| &*subscription.channel == "a");
    asked = again(&mut session, now);
    assert_eq!(fails(&mut session, &asked[1], now), 2 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_subscription_without_a_token_is_refused_for_a_while() {
    let mut without = wanted("a", "t", None);
    without.token = Err("the file cannot be read".to_owned());
    let now = Instant::now();
    let mut session = Session::new(1, vec![without], without_pings(), now);
    let effects = text(&mut session, WELCOME, now);
    assert!(effects.send.is_empty());
    let SubscriptionState::Refused(refusal) = &effects.updates[0].state else { panic!() };
    assert_eq!((&*refusal.code, &*refusal.text), ("no_token", "the file cannot be read"));
    assert_eq!(refusal.retry_at, Some(now + 300 * SECOND));
    assert_eq!(session.due(now), now + 300 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_failed_subscription_counts_as_answered_when_it_goes_on_failing() {
    let config = Astro { retry_refused: Period(SECOND), ..Astro::default() };
    let mut now = Instant::now();
    let mut session = Session::new(1, vec![wanted("a", "t", None)], config.into(), now);
    let mut effects = text(&mut session, WELCOME, now);
    let mut answered = Vec::new();
    for _ in 0..5 {
        let nonce = nonces(&effects).pop().unwrap();
        answer(&mut session, &nonce, r#","error":"err_internal_error""#, now);
        answered.push(session.all_answered());
        let SubscriptionState::Refused(refusal) = state(&session, 0) else {
            panic!("it is refused")
        };
        now = refusal.retry_at.unwrap();
        assert_eq!(session.all_answered(), *answered.last().unwrap(), "a moment before, too");
        session.on_other(now);
        effects = Effects::default();
        session.tick(now, &mut effects);
    }
    assert_eq!(answered, [false, false, false, true, true]);
}
