//! The REST client against the simulated API, with everything that can go wrong there.

use std::time::Duration;

use astro_relay::{
    astro::rest::{
        Credentials, CredentialsError, Rest, RestError, Span, Top, credentials, oauth::RefreshGrant,
    },
    config::{Astro, Secret, SecretRef, TokenType},
};
use astro_sim::{Options, ResetAnswer, RestFault, Sim, Token};
use serde_json::{Map, Value, json};

use crate::support::{carry::within, sinks::install_tls};

const ROOM: &str = "0f0e0d0c0b0a090807060504";

async fn start() -> (Sim, Rest) {
    install_tls();
    let options = Options { tokens: vec![Token::owner("tok-canary", ROOM)], ..Options::default() };
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), options).await.unwrap();
    let rest = client(&sim.api_url());
    (sim, rest)
}

fn client(api_url: &str) -> Rest {
    Rest::new(&Astro { api_url: api_url.into(), ..Astro::default() })
}

fn of(token: &Secret) -> Credentials {
    Credentials { channel: ROOM.into(), token: token.clone(), token_type: TokenType::Jwt }
}

fn elements(value: &Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

#[tokio::test]
async fn a_session_is_read_and_changed() {
    let (sim, rest) = start().await;
    let token = Secret::new("tok-canary");
    let target = &of(&token);
    let before = rest.session(target).await.unwrap();
    assert_eq!(Value::Object(before.data), sim.session(ROOM)["data"]);

    rest.update(target, &elements(&json!({"tip-goal": {"amount": 40}}))).await.unwrap();
    assert_eq!(sim.session(ROOM)["data"]["tip-goal"]["amount"], 40);
    rest.update(target, &elements(&json!({"follower-session": {"count": 7}}))).await.unwrap();
    rest.reload(target).await.unwrap();
    rest.reset(target).await.unwrap();
    let fresh = rest.session(target).await.unwrap();
    assert_ne!(fresh.id, before.id);
    // Only the figures of the session are reset.
    assert_eq!(fresh.data["follower-session"]["count"], 0);
    assert_eq!(fresh.data["tip-goal"]["amount"], 40);

    rest.set_settings(target, &elements(&json!({"calendar": true}))).await.unwrap();
    assert_eq!(rest.settings(target).await.unwrap()["calendar"], true);
    for amount in [5, 7] {
        let data = json!({"username": "mossy", "amount": amount});
        sim.activity(ROOM, json!({"type": "tip", "data": data}));
    }
    let top = Top { kind: Some("tip".into()), limit: Some(1), ..Top::default() };
    assert_eq!(rest.top(target, &top).await.unwrap()["users"][0]["amount"], 12.0);
}

#[tokio::test]
async fn the_history_is_read_in_pages() {
    let (sim, rest) = start().await;
    let token = Secret::new("tok-canary");
    let target = &of(&token);
    let start = 1_741_370_400_000_u64;
    for n in 0..150 {
        let at = astro_relay::base::clock::rfc3339(start + n * 1000);
        let kind = if n % 2 == 0 { "tip" } else { "follow" };
        sim.activity(ROOM, json!({"type": kind, "createdAt": at, "data": {"amount": n}}));
    }
    let page = rest.activities(target, &Span::default()).await.unwrap();
    assert!(page.full);
    assert_eq!(page.items.len(), 100);
    assert_eq!(page.items[0].at, start + 149_000);
    let before = Some(page.items[99].at - 1);
    let after = Some(start + 10_000);
    let types = ["tip".to_owned()];
    let span = Span { after, before, types: &types };
    let rest_of_it = rest.activities(target, &span).await.unwrap();
    assert!(!rest_of_it.full);
    let numbers: Vec<_> = rest_of_it.items.iter().map(|a| (a.at - start) / 1000).collect();
    assert_eq!(numbers, (10..50).rev().filter(|n| n % 2 == 0).collect::<Vec<_>>());
    let item: Value = serde_json::from_str(rest_of_it.items[0].item.get()).unwrap();
    assert_eq!(item["data"]["amount"], 48);
}

#[tokio::test]
async fn reading_is_tried_again_and_keeps_retry_after() {
    let (sim, rest) = start().await;
    let token = Secret::new("tok-canary");
    let target = &of(&token);
    let told = RestFault::Status { status: 429, retry_after: Some("1".into()), broken_body: true };
    for fault in [told, RestFault::status(503), RestFault::DropAfter] {
        let asked = sim.stats().rest_requests;
        let began = tokio::time::Instant::now();
        let patient = matches!(&fault, RestFault::Status { status: 429, .. });
        sim.fail_rest([fault]);
        within("session", rest.session(target)).await.unwrap();
        assert_eq!(sim.stats().rest_requests - asked, 2);
        assert!(!patient || began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
    }
    // What lasts is told, with the server's words and its wish.
    sim.fail_rest([503, 503, 503].map(RestFault::status));
    let error = within("session", rest.session(target)).await.unwrap_err();
    assert_eq!(error.to_string(), "HTTP 503: simulated");
    let long =
        RestFault::Status { status: 429, retry_after: Some("600".into()), broken_body: true };
    sim.fail_rest([long]);
    let error = within("session", rest.session(target)).await.unwrap_err();
    assert_eq!(error.to_string(), "HTTP 429: simulated");
    assert_eq!(error.retry_after(), Some(Duration::from_mins(10)));
}

#[tokio::test]
async fn a_change_that_may_have_been_made_is_not_made_again() {
    let (sim, rest) = start().await;
    let token = Secret::new("tok-canary");
    let target = &of(&token);
    let asked = || sim.stats().rest_requests;
    let id = || sim.session(ROOM)["_id"].clone();
    let first = id();
    for fault in [RestFault::DropAfter, RestFault::status(502), RestFault::status(504)] {
        let before = asked();
        sim.fail_rest([fault]);
        let error = within("reset", rest.reset(target)).await.unwrap_err();
        assert!(matches!(error, RestError::Unknown(_)), "{error:?}");
        assert_eq!(asked() - before, 1);
    }
    assert_ne!(id(), first, "it had been made");
    let made = id();
    // A refusal is certain. Only one that asks to come back is followed.
    let before = asked();
    sim.fail_rest([RestFault::status(500)]);
    let error = within("reset", rest.reset(target)).await.unwrap_err();
    assert!(matches!(error, RestError::Refused { status: 500, .. }), "{error:?}");
    assert_eq!((asked() - before, id()), (1, made.clone()));
    sim.fail_rest([RestFault::status(429)]);
    within("reset", rest.reset(target)).await.unwrap();
    assert_eq!(asked() - before, 3);
    assert_ne!(id(), made);
    // Without a connection nothing was sent.
    let error = within("reset", client("http://127.0.0.1:1/kappa/v2").reset(target)).await;
    assert!(matches!(error, Err(RestError::Unreachable(_))), "{error:?}");
}

#[tokio::test]
async fn no_error_shows_the_token() {
    let (sim, rest) = start().await;
    let wrong = Secret::new("wrong-canary");
    let error = rest.session(&of(&wrong)).await.unwrap_err();
    assert!(error.is_unauthorised());
    assert_eq!(error.to_string(), "HTTP 401: invalid token");
    let unfit = Secret::new("wrong-canary\n");
    let late = [RestFault::DropAfter, RestFault::DropAfter, RestFault::DropAfter];
    sim.fail_rest(late);
    let mut errors = vec![error];
    errors.push(rest.session(&of(&wrong)).await.unwrap_err());
    errors.push(rest.session(&of(&unfit)).await.unwrap_err());
    let elsewhere = Credentials { channel: "../users".into(), ..of(&wrong) };
    errors.push(rest.session(&elsewhere).await.unwrap_err());
    for error in errors {
        let said = format!("{error:?} {error} {} {rest:?}", error.describe());
        assert!(!said.contains("canary"), "{said}");
    }
}

#[tokio::test]
async fn an_answer_that_never_comes_is_given_up() {
    let (sim, rest) = start().await;
    let rest = rest.within(Duration::from_millis(300));
    let token = Secret::new("tok-canary");
    sim.fail_rest([RestFault::Hang]);
    let error = within("reset", rest.reset(&of(&token))).await.unwrap_err();
    assert!(matches!(error, RestError::Unknown(_)), "{error:?}");
    sim.fail_rest([RestFault::Hang, RestFault::Delay(Duration::from_millis(20))]);
    within("session", rest.session(&of(&token))).await.unwrap();
    assert_eq!(sim.stats().rest_requests, 3);
}

/// What a refresh that is given up has done is not known: it may have replaced the refresh token.
#[tokio::test]
async fn a_token_endpoint_that_hangs_is_given_up() {
    let (sim, rest) = start().await;
    let rest = rest.within(Duration::from_millis(300));
    let secret = || Secret::new("tok-canary");
    let grant =
        RefreshGrant { client_id: "app".into(), client_secret: secret(), refresh_token: secret() };
    sim.fail_rest([RestFault::Hang, RestFault::Hang]);
    let refreshed = within("refresh", rest.refresh(&grant)).await.unwrap_err();
    assert!(matches!(refreshed, RestError::Unknown(_)), "{refreshed:?}");
    let validated = within("validate", rest.validate(&secret())).await.unwrap_err();
    assert!(matches!(validated, RestError::Unreachable(_)), "{validated:?}");
    for error in [refreshed, validated] {
        let said = format!("{error:?} {error} {}", error.describe());
        assert!(!said.contains("canary"), "{said}");
    }
    assert_eq!(sim.stats().rest_requests, 2, "neither is made again");
}

#[tokio::test]
async fn each_kind_of_token_has_its_scheme_and_a_missing_scope_is_named() {
    install_tls();
    let typed = |kind: &str, scopes: &[&str]| Token {
        token_type: Some(kind.to_owned()),
        scopes: scopes.iter().map(|&scope| scope.to_owned()).collect(),
        ..Token::owner(&format!("tok-{kind}"), ROOM)
    };
    let tokens = vec![
        typed("jwt", &["*"]),
        typed("oauth2", &["session:read"]),
        typed("apikey", &["activities:read"]),
    ];
    let options = Options { tokens, ..Options::default() };
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), options).await.unwrap();
    let rest = client(&sim.api_url());
    let session = "HTTP 403: missing scope session:read";
    let activities = "HTTP 403: missing scope activities:read";
    for (token_type, reads_session, reads_history) in [
        (TokenType::Jwt, None, None),
        (TokenType::Oauth2, None, Some(activities)),
        (TokenType::Apikey, Some(session), None),
    ] {
        let token = SecretRef::Value(format!("tok-{}", token_type.as_str()));
        let found = credentials([ROOM], &token, token_type).await.unwrap();
        let error = rest.session(&found).await.err();
        assert_eq!(error.map(|error| error.to_string()).as_deref(), reads_session);
        let error = rest.activities(&found, &Span::default()).await.err();
        assert_eq!(error.map(|error| error.to_string()).as_deref(), reads_history);
        // The older word is the same kind.
        if token_type == TokenType::Oauth2 {
            let older = Credentials { token_type: TokenType::Oauth, ..found.clone() };
            rest.update(&older, &elements(&json!({"tip-goal": {"amount": 40}}))).await.unwrap();
            let wrong = Credentials { token_type: TokenType::Jwt, ..found };
            let error = rest.session(&wrong).await.unwrap_err();
            assert_eq!(error.to_string(), "HTTP 401: invalid authorization scheme");
        }
    }
    // Where the server does not say which, the relay does; of a change nobody knows it.
    sim.fail_rest([403, 403, 403].map(RestFault::status));
    let token = Secret::new("tok-oauth2");
    let oauth = &Credentials { token_type: TokenType::Oauth2, ..of(&token) };
    let error = rest.session(oauth).await.unwrap_err().to_string();
    assert_eq!(error, "HTTP 403: simulated (the token needs the scope session:read)");
    let error = rest.activities(oauth, &Span::default()).await.unwrap_err().to_string();
    assert_eq!(error, "HTTP 403: simulated (the token needs the scope activities:read)");
    assert_eq!(rest.reset(oauth).await.unwrap_err().to_string(), "HTTP 403: simulated");
}

#[tokio::test]
async fn the_server_says_what_an_access_token_is_good_for() {
    install_tls();
    let typed = |token: &str, kind: &str| Token {
        token_type: Some(kind.to_owned()),
        scopes: vec!["tips:read".to_owned()],
        ..Token::owner(token, ROOM)
    };
    let ends = Some(tokio::time::Instant::now() + Duration::from_hours(1));
    let tokens =
        vec![Token { expires: ends, ..typed("tok-canary", "oauth2") }, typed("jwt", "jwt")];
    let options = Options { tokens, ..Options::default() };
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), options).await.unwrap();
    let rest = client(&sim.api_url());
    let said = rest.validate(&Secret::new("tok-canary")).await.unwrap();
    assert_eq!(said.channel.as_deref(), Some(ROOM));
    assert_eq!(said.scopes.unwrap(), ["tips:read"]);
    let left = said.left.unwrap().as_secs();
    assert!((3000..=3600).contains(&left), "{left}");
    for unknown in ["jwt", "other"] {
        let error = rest.validate(&Secret::new(unknown)).await.unwrap_err();
        assert!(matches!(error, RestError::Refused { status: 401, .. }), "{error:?}");
    }
    sim.fail_rest([RestFault::status(404)]);
    let error = rest.validate(&Secret::new("tok-canary")).await.unwrap_err();
    assert!(matches!(error, RestError::Refused { status: 404, .. }), "{error:?}");
}

#[tokio::test]
async fn a_change_is_answered_with_the_session_or_with_a_plain_yes() {
    let (sim, rest) = start().await;
    let token = Secret::new("tok-canary");
    let goal = elements(&json!({"tip-goal": {"amount": 40}}));
    let answer = rest.update(&of(&token), &goal).await.unwrap().unwrap();
    assert_eq!(answer.elements["tip-goal"].get(), r#"{"amount":40}"#);
    let answer = rest.reset(&of(&token)).await.unwrap().unwrap();
    let last = sim.session(ROOM)["lastReset"].as_str().unwrap().to_owned();
    assert_eq!(answer.about.last_reset.map(astro_relay::base::clock::rfc3339), Some(last));
    assert_eq!(answer.about.provider.as_deref(), Some("twitch"));

    let options = Options { reset_answer: ResetAnswer::Ok, reload: false, ..Options::default() };
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), options).await.unwrap();
    let rest = client(&sim.api_url());
    assert!(rest.reset(&of(&token)).await.unwrap().is_none());
    let error = rest.reload(&of(&token)).await.unwrap_err().to_string();
    assert!(error.starts_with("HTTP 404: Not Found (newer documents"), "{error}");
}

#[tokio::test]
async fn of_an_oauth2_token_the_server_is_asked_whose_it_is_where_nothing_else_says_it() {
    install_tls();
    let token_type = Some("oauth2".to_owned());
    let tokens = vec![Token { token_type, ..Token::owner("tok-oauth2", ROOM) }];
    let options = Options { tokens, ..Options::default() };
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), options).await.unwrap();
    let rest = client(&sim.api_url());
    let (token, kind) = (SecretRef::Value("tok-oauth2".to_owned()), TokenType::Oauth2);
    let found = rest.credentials(None::<&str>, &token, kind).await.unwrap();
    assert_eq!(found.channel, ROOM);
    rest.session(&found).await.unwrap();
    // What is known is not asked for, and of other kinds the server says nothing.
    let asked = sim.stats().rest_requests;
    let other = "5b2e2007760aeb7729487dab";
    assert_eq!(rest.credentials([other], &token, kind).await.unwrap().channel, other);
    let nameless = rest.credentials(None::<&str>, &token, TokenType::Apikey).await;
    assert!(matches!(nameless, Err(CredentialsError::NoId)));
    assert_eq!(sim.stats().rest_requests, asked);
    // It may say it later.
    sim.fail_rest([RestFault::status(503)]);
    let error = rest.credentials(None::<&str>, &token, kind).await.unwrap_err();
    assert_eq!(error.to_string(), "whose the token is is not known: HTTP 503: simulated");
}
