//! Tokens of OAuth2: the REST API with them, and their refresh, with everything that can go wrong there.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use astro_relay::{
    astro::rest::Rest,
    base::{clock, replace::Replacement},
    channel::{
        token_status::{ShownToken, Tokens},
        tokens::TokenKeeper,
    },
    config::{Config, SecretRef, TokenType},
    gateway::Targets,
};
use astro_sim::{End, OAuthClient, Options, RestFault, Secret, Sim, Token};
use async_nats::ConnectOptions;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::support::{
    daemon,
    mount::{MountedFile, may_mount},
    nats_server::NatsServer,
    relay::{ROOM, Running, configure},
    wait::until,
};

const SOON: Duration = Duration::from_mins(1);
const DAY: u64 = 24 * 3600;

/// The access token and the refresh token that a channel begins with.
const FIRST: [&str; 2] = ["at-canary", "ft-canary"];

fn token(text: &str, kind: &str, scopes: &[&str]) -> Token {
    Token {
        token_type: Some(kind.to_owned()),
        scopes: scopes.iter().map(|&scope| scope.to_owned()).collect(),
        ..Token::owner(text, ROOM)
    }
}

/// A simulation that accepts the first access token, and refreshes it.
async fn start(reusable: bool) -> Sim {
    let client = OAuthClient {
        id: "app".to_owned(),
        secret: Secret::new("app-canary"),
        refresh_token: Secret::new(FIRST[1]),
        rooms: vec![ROOM.to_owned()],
        scopes: vec!["tips:read".to_owned()],
        lifetime: Duration::from_hours(7 * 24),
        reusable,
    };
    let tokens = vec![token(FIRST[0], "oauth2", &["*"]), token("of-nobody", "jwt", &["*"])];
    let options = Options { tokens, clients: vec![client], ..Options::default() };
    Sim::start(([127, 0, 0, 1], 0).into(), options).await.unwrap()
}

/// The files of a channel's tokens.
struct Files {
    token: PathBuf,
    refresh: PathBuf,
}

impl Files {
    /// Both, with the access token given so many seconds ago.
    fn new(dir: &Path, age: u64) -> Self {
        let files = Self { token: dir.join("token"), refresh: dir.join("refresh") };
        fs::write(&files.token, FIRST[0]).unwrap();
        fs::write(&files.refresh, FIRST[1]).unwrap();
        let given = std::time::UNIX_EPOCH + Duration::from_secs(clock::now() / 1000 - age);
        File::options().write(true).open(&files.token).unwrap().set_modified(given).unwrap();
        files
    }

    fn read(&self) -> [String; 2] {
        [&self.token, &self.refresh].map(|path| fs::read_to_string(path).unwrap().trim().to_owned())
    }

    fn config(&self, sim: &Sim, dir: &Path) -> Config {
        let mut config = configure(sim, &dir.join("journal"), &["channel.tips"], "");
        let main = config.channels.get_mut("main").unwrap();
        main.token = SecretRef::File(self.token.clone());
        main.token_type = TokenType::Oauth2;
        main.client_id = Some("app".into());
        main.client_secret = Some(SecretRef::Value("app-canary".into()));
        main.refresh_token = Some(SecretRef::File(self.refresh.clone()));
        config
    }
}

fn shown(relay: &Running) -> Option<ShownToken> {
    relay.status.tokens.snapshot().remove("main")
}

async fn refreshed(relay: &Running) -> ShownToken {
    let token = until("it is refreshed", SOON, async || {
        shown(relay).filter(|token| token.refreshed_at.is_some())
    });
    token.await
}

/// What is said of a refresh that does not work.
async fn error(relay: &Running) -> String {
    until("it is said", SOON, async || shown(relay)?.error).await
}

#[tokio::test]
async fn the_session_and_the_history_are_there_with_an_oauth2_token_and_a_missing_scope_is_named() {
    let sim = start(false).await;
    let dir = tempfile::tempdir().unwrap();
    let mut config =
        configure(&sim, dir.path(), &["channel.activities", "channel.session.update"], "");
    let main = config.channels.get_mut("main").unwrap();
    (main.token, main.token_type) = (SecretRef::Value(FIRST[0].into()), TokenType::Oauth2);
    let relay = Running::start(config.clone()).await;
    relay.wait_subscribed().await;
    until("the session is fetched", SOON, async || {
        relay.status.sessions.snapshot().get("main")?.fetched_at
    })
    .await;
    sim.listen(false);
    sim.end(None, End::Reset);
    until("it is cut off", SOON, async || (!relay.subscribed()).then_some(())).await;
    sim.activity(ROOM, json!({"type": "tip", "data": {"username": "mossy", "amount": 5}}));
    sim.listen(true);
    let told = until("the report", SOON, async || relay.said("relay.backfill").await.pop()).await;
    assert_eq!((&told["recovered"], &told["error"]), (&json!(1), &Value::Null), "{told}");
    relay.stop().await;

    // Without the scope of the session; the server does not say which is missing.
    sim.set_tokens(vec![token(FIRST[0], "oauth2", &["activities:read"])]);
    sim.fail_rest([RestFault::Pass, RestFault::status(403)]);
    let relay = Running::start(config).await;
    let token = until("the token is known", SOON, async || shown(&relay)).await;
    assert_eq!(token.scopes.unwrap(), ["activities:read"]);
    let missing = "it lacks the scope session:read for channel.session.update";
    assert_eq!((&*token.doubts, token.channel.as_deref()), (&[missing.to_owned()][..], Some(ROOM)));
    let error = until("the session is refused", SOON, async || {
        relay.status.sessions.snapshot().get("main")?.error.clone()
    })
    .await;
    assert!(error.contains("session:read"), "{error}");
    relay.stop().await;
}

/// The command is repeated until somebody listens: a change to the same value is the same change.
#[tokio::test]
async fn a_command_changes_the_session_with_an_oauth2_token_and_a_missing_scope_is_named() {
    let server = NatsServer::start("").await;
    let sim = start(false).await;
    let dir = tempfile::tempdir().unwrap();
    let sink = format!(
        "[sinks.bus]\ntype = \"nats\"\nurl = {:?}\ncommands = [\"session/set\"]\n",
        server.url()
    );
    let mut config = configure(&sim, dir.path(), &["channel.session.update"], &sink);
    let main = config.channels.get_mut("main").unwrap();
    (main.token, main.token_type) = (SecretRef::Value(FIRST[0].into()), TokenType::Oauth2);
    let relay = Running::start(config).await;
    relay.wait_subscribed().await;
    let client = server.client(ConnectOptions::new()).await;
    let set = async |amount: &str| {
        until("the command is answered", SOON, async || {
            let subject = "astro.main.command.session.set.tip-goal";
            let answer = client.request(subject, amount.to_owned().into()).await.ok()?;
            serde_json::from_slice::<Value>(&answer.payload).ok()
        })
        .await
    };
    let answer = set("41").await;
    assert_eq!(answer["ok"], true, "{answer}");
    assert_eq!(sim.session(ROOM)["data"]["tip-goal"], json!({"amount": 41}));

    // No scope for changes is documented, so the one that is needed to read is named.
    sim.set_tokens(vec![token(FIRST[0], "oauth2", &["tips:read"])]);
    let answer = set("42").await;
    assert_eq!(answer["ok"], false, "{answer}");
    assert!(answer["error"].as_str().unwrap().contains("session:read"), "{answer}");
    assert_eq!(sim.session(ROOM)["data"]["tip-goal"], json!({"amount": 41}));
    relay.stop().await;
}

#[tokio::test]
async fn a_token_is_refreshed_ahead_of_its_end_and_the_new_one_is_used_without_a_restart() {
    let sim = start(false).await;
    let dir = tempfile::tempdir().unwrap();
    let files = Files::new(dir.path(), 6 * DAY - 2);
    let relay = Running::start(files.config(&sim, dir.path())).await;
    relay.wait_subscribed().await;
    let token = refreshed(&relay).await;
    let left = token.expires_at.unwrap() - clock::now();
    assert!((6 * DAY * 1000..=7 * DAY * 1000).contains(&left), "{left}");
    assert_eq!((token.error, token.scopes), (None, Some(vec!["tips:read".to_owned()])));
    let pair = files.read();
    assert!(pair[0].starts_with("at-") && pair[1].starts_with("ft-") && pair != FIRST, "replaced");
    for path in [&files.token, &files.refresh] {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    }
    // Nothing is left beside them, and a token that is young is left alone.
    let names = fs::read_dir(dir.path()).unwrap().count();
    assert_eq!((names, sim.stats().refreshes), (3, 1));
    // The old one is good for nothing any more.
    sim.set_tokens(vec![token_of(&pair)]);
    sim.end(None, End::Reset);
    until("it was cut off", SOON, async || (sim.stats().opened >= 2).then_some(())).await;
    relay.wait_subscribed().await;
    assert_eq!((sim.stats().refreshes, relay.status.snapshot().reasons().len()), (1, 1));
    let status = relay.status.snapshot().to_json(|_| (0, Duration::ZERO)).to_string();
    assert!(status.contains("refreshed_at") && !status.contains("canary"), "{status}");
    assert!(pair.iter().all(|token| !status.contains(token)), "{status}");
    relay.stop().await;

    // After a restart the server says how long it lives.
    let relay = Running::start(files.config(&sim, dir.path())).await;
    let token = until("the token is known", SOON, async || shown(&relay)?.expires_at).await;
    assert!(token > clock::now() + 6 * DAY * 1000);
    assert_eq!(sim.stats().refreshes, 1);
    relay.stop().await;
}

fn token_of(pair: &[String; 2]) -> Token {
    token(&pair[0], "oauth2", &["tips:read"])
}

/// A relay that is subscribed, and knows of its token that it is young.
async fn with_known_token() -> (Sim, tempfile::TempDir, Files, Running) {
    let sim = start(false).await;
    let dir = tempfile::tempdir().unwrap();
    let files = Files::new(dir.path(), 0);
    let relay = Running::start(files.config(&sim, dir.path())).await;
    relay.wait_subscribed().await;
    until("the token is known", SOON, async || shown(&relay)).await;
    (sim, dir, files, relay)
}

#[tokio::test]
async fn a_token_that_the_gateway_refuses_altogether_is_refreshed_at_once() {
    let (sim, dir, files, relay) = with_known_token().await;
    assert_eq!(sim.stats().refreshes, 0);
    sim.set_tokens(vec![token("of-nobody", "jwt", &["*"])]);
    sim.end(None, End::Reset);
    refreshed(&relay).await;
    relay.wait_subscribed().await;
    assert_eq!(sim.stats().refreshes, 1);
    relay.stop().await;

    // One that has ended while the relay was away is found at the start.
    fs::write(&files.token, "at-of-last-year").unwrap();
    let relay = Running::start(files.config(&sim, dir.path())).await;
    refreshed(&relay).await;
    relay.wait_subscribed().await;
    relay.stop().await;
}

/// What was refused is asked for again only after `retry_refused`: nothing else makes the refresh happen.
#[tokio::test]
async fn a_refresh_for_a_refused_token_that_failed_is_tried_again() {
    let (sim, _dir, _files, relay) = with_known_token().await;
    sim.set_tokens(vec![token("of-nobody", "jwt", &["*"])]);
    sim.fail_rest([RestFault::status(503)]);
    sim.end(None, End::Reset);
    refreshed(&relay).await;
    relay.wait_subscribed().await;
    assert_eq!((sim.stats().refreshes, shown(&relay).unwrap().error), (1, None));
    relay.stop().await;
}

#[tokio::test]
async fn what_a_crash_left_beside_the_files_is_taken_up() {
    let sim = start(false).await;
    let dir = tempfile::tempdir().unwrap();
    let files = Files::new(dir.path(), 3 * DAY);
    let pair = ["at-next".to_owned(), "ft-next".to_owned()];
    sim.set_tokens(vec![token_of(&pair)]);
    fs::write(dir.path().join("token.new"), "at-next\n").unwrap();
    fs::write(dir.path().join("refresh.new"), "ft-next\n").unwrap();
    let relay = Running::start(files.config(&sim, dir.path())).await;
    relay.wait_subscribed().await;
    assert_eq!((files.read(), sim.stats().refreshes), (pair, 0));
    relay.stop().await;
}

#[tokio::test]
async fn an_answer_that_is_lost_costs_nothing_where_the_server_takes_the_old_token_again() {
    for reusable in [true, false] {
        let sim = start(reusable).await;
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path(), 6 * DAY);
        // The server is asked for the token first, then for the next.
        sim.fail_rest([RestFault::Pass, RestFault::DropAfter]);
        let relay = Running::start(files.config(&sim, dir.path())).await;
        relay.wait_subscribed().await;
        if reusable {
            refreshed(&relay).await;
            assert_eq!(sim.stats().refreshes, 2);
        } else {
            let reason = until("it is a reason", SOON, async || {
                shown(&relay)?.reason.filter(|reason| reason.contains("invalid_grant"))
            });
            let reason = reason.await;
            assert!(reason.starts_with("cannot be refreshed: HTTP 400: invalid_grant; it ends at"));
            let told = relay.status.snapshot().reasons();
            assert!(told.iter().any(|told| told.contains("token of main cannot")), "{told:?}");
            assert!(relay.subscribed(), "the old access token serves meanwhile");
            assert_eq!(files.read(), FIRST.map(str::to_owned));
        }
        relay.stop().await;
    }
}

#[tokio::test]
async fn a_rejected_refresh_token_is_a_reason_until_another_one_is_there() {
    let sim = start(false).await;
    let dir = tempfile::tempdir().unwrap();
    let files = Files::new(dir.path(), 6 * DAY);
    fs::write(&files.refresh, "ft-expired-canary").unwrap();
    let relay = Running::start(files.config(&sim, dir.path())).await;
    assert_eq!(error(&relay).await, "HTTP 400: invalid_grant");
    assert!(shown(&relay).unwrap().reason.is_some());
    // The server is left alone with it.
    let asked = sim.stats().rest_requests;
    fs::write(&files.refresh, FIRST[1]).unwrap();
    refreshed(&relay).await;
    assert_eq!(sim.stats().rest_requests, asked + 1);
    assert_eq!(shown(&relay).unwrap().reason, None);
    relay.stop().await;
}

#[tokio::test]
async fn a_pair_that_was_replaced_is_no_reason_any_more_though_it_is_not_due() {
    let sim = start(false).await;
    let dir = tempfile::tempdir().unwrap();
    let files = Files::new(dir.path(), 6 * DAY);
    fs::write(&files.refresh, "ft-expired-canary").unwrap();
    sim.set_tokens(vec![token(FIRST[0], "oauth2", &["*"]), token("at-new", "oauth2", &["*"])]);
    let relay = Running::start(files.config(&sim, dir.path())).await;
    assert_eq!(error(&relay).await, "HTTP 400: invalid_grant");
    fs::write(&files.token, "at-new").unwrap();
    let reason = until("the new token is known", SOON, async || {
        let token = shown(&relay)?;
        token.reason.filter(|_| token.expires_at > Some(clock::now() + 6 * DAY * 1000))
    });
    let reason = reason.await;
    assert!(reason.contains("invalid_grant"), "the refresh token is the same: {reason}");
    fs::write(&files.refresh, "ft-new").unwrap();
    until("it is well", SOON, async || shown(&relay)?.error.is_none().then_some(())).await;
    assert_eq!((shown(&relay).unwrap().reason, sim.stats().refreshes), (None, 0));
    relay.stop().await;
}

#[tokio::test]
async fn every_failure_of_the_server_is_said_and_sat_out() {
    let told = |status, seconds: &str| RestFault::Status {
        status,
        retry_after: Some(seconds.to_owned()),
        broken_body: false,
    };
    for (fault, expected) in [
        (RestFault::status(503), "HTTP 503: simulated"),
        (told(429, "1"), "HTTP 429: simulated"),
        (RestFault::Body("<html>at-canary</html>".into()), "the answer cannot be read"),
        (RestFault::Body("x".repeat(100_000)), "larger than any answer should be"),
        (RestFault::Body(r#"{"access_token":"a b"}"#.into()), "its access_token is none"),
    ] {
        let sim = start(false).await;
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path(), 6 * DAY);
        // The next one is slow, so that what is said stands for a while.
        sim.fail_rest([RestFault::Pass, fault, RestFault::Delay(Duration::from_secs(2))]);
        let relay = Running::start(files.config(&sim, dir.path())).await;
        let said = error(&relay).await;
        assert!(said.contains(expected) && !said.contains("canary"), "{said}");
        assert_eq!(shown(&relay).unwrap().reason, None, "once is no reason");
        assert_eq!(files.read(), FIRST.map(str::to_owned));
        refreshed(&relay).await;
        assert_eq!((shown(&relay).unwrap().error, sim.stats().refreshes), (None, 1));
        relay.stop().await;
    }
}

#[tokio::test]
async fn a_server_that_is_away_is_a_reason_and_no_secret_is_in_the_log() {
    let sim = start(false).await;
    let dir = tempfile::tempdir().unwrap();
    let files = Files::new(dir.path(), 6 * DAY);
    let more = format!(
        "[channels.app]\ntoken_file = {:?}\ntoken_type = \"oauth2\"\nclient_id = \"app\"\n\
         client_secret = \"app-canary\"\nrefresh_token_file = {:?}\nroom = {ROOM:?}\n\
         topics = [\"channel.follow\"]\n",
        files.token, files.refresh
    );
    // The gateway is there, the REST API is not.
    let nowhere = format!("http://127.0.0.1:{}/kappa/v2", crate::support::process::free_port());
    let mut relay = daemon::Relay::new(&sim.url(), &nowhere, "channel.tips", ROOM, &more);
    relay.start();
    let readyz = until("it is a reason", SOON, async || {
        relay.get("/readyz").await.filter(|answer| answer.contains("token of app cannot"))
    });
    let readyz = readyz.await;
    assert!(readyz.contains("no answer"), "{readyz}");
    let metrics = relay.get("/metrics").await.unwrap();
    for name in [
        "astro_relay_token_refreshes_total{channel=\"app\",outcome=\"failed\"}",
        "astro_relay_token_expiry_timestamp_seconds{channel=\"app\"}",
    ] {
        assert!(metrics.contains(name), "{name} in {metrics}");
    }
    relay.stop().await;
    let log = relay.log();
    assert!(log.contains("the channel's token cannot be refreshed"), "{log}");
    for secret in [FIRST[0], FIRST[1], "app-canary"] {
        assert!(!log.contains(secret), "{secret}");
    }
}

#[tokio::test]
async fn nothing_is_asked_for_that_could_not_be_stored() {
    let sim = start(false).await;
    let dir = tempfile::tempdir().unwrap();
    let files = Files::new(dir.path(), 6 * DAY);
    // In the way of what is written beside the file: it cannot be opened, whoever runs the test.
    let obstacle = dir.path().join("refresh.new");
    fs::create_dir(&obstacle).unwrap();
    let relay = Running::start(files.config(&sim, dir.path())).await;
    let said = error(&relay).await;
    assert!(said.contains("it could not be stored in"), "{said}");
    assert_eq!((sim.stats().refreshes, files.read()), (0, FIRST.map(str::to_owned)));
    fs::remove_dir(&obstacle).unwrap();
    refreshed(&relay).await;
    assert_eq!(sim.stats().refreshes, 1);
    relay.stop().await;
}

#[tokio::test]
async fn files_that_are_mounted_one_by_one_are_refreshed_in_place() {
    if !may_mount() {
        return;
    }
    let sim = start(false).await;
    let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (files, sources) = (Files::new(dir.path(), 0), Files::new(outside.path(), 6 * DAY));
    let mounted = MountedFile::new(&sources.token, &files.token);
    let _refresh = MountedFile::new(&sources.refresh, &files.refresh);
    let relay = Running::start(files.config(&sim, dir.path())).await;
    refreshed(&relay).await;
    let pair = sources.read();
    assert!(pair[0].starts_with("at-") && pair[1].starts_with("ft-") && pair != FIRST, "{pair:?}");
    assert_eq!((files.read(), sim.stats().refreshes), (pair.clone(), 1));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "nothing is left beside them");
    relay.stop().await;

    // A crash has come when it was emptied and not yet written.
    fs::write(dir.path().join("token.new"), format!("{}\n", pair[0])).unwrap();
    fs::write(&sources.token, "").unwrap();
    let relay = Running::start(files.config(&sim, dir.path())).await;
    until("it is recovered", SOON, async || (sources.read() == pair).then_some(())).await;
    relay.stop().await;
    assert_eq!(sim.stats().refreshes, 1);

    // What cannot be written is found before the server is asked.
    mounted.turn_read_only();
    Replacement::prepare(&files.token).unwrap_err();
    let config = json!({
        "journal": { "dir": "" },
        "channels": { "main": {
            "token_file": files.token, "token_type": "oauth2", "client_id": "app",
            "client_secret": "app-canary", "refresh_token_file": files.refresh, "room": ROOM,
            "topics": ["channel.tips"],
        } },
        "sinks": { "out": { "type": "stdout" } },
    });
    let file = dir.path().join("relay.toml");
    fs::write(&file, toml::to_string(&config).unwrap()).unwrap();
    let mut command = tokio::process::Command::new(daemon::PROGRAM);
    command.args(["check", "--config"]).arg(&file).kill_on_drop(true);
    let output = crate::support::carry::within("the check", command.output()).await.unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let expected = "its file, which is mounted by itself, cannot be written";
    assert_eq!(text.matches(expected).count(), 1, "{text}");
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "a test's own task")]
async fn a_pair_that_could_not_be_stored_survives_a_reload_and_the_end_of_its_channel() {
    for is_removed in [false, true] {
        let sim = start(false).await;
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path(), 6 * DAY);
        // Nothing can be put in the place of the access token.
        fs::remove_file(&files.token).unwrap();
        fs::create_dir(&files.token).unwrap();
        fs::write(files.token.join("in_the_way"), "").unwrap();
        let config = files.config(&sim, dir.path());
        let (targets, _) = watch::channel(Targets::of(&config));
        let (rest, tokens) = (Rest::new(&config.astro), Arc::new(Tokens::default()));
        let keeper = TokenKeeper::new(rest, Arc::default(), Arc::clone(&tokens), targets.clone());
        let stop = CancellationToken::new();
        let task = tokio::spawn(keeper.run(stop.clone()));
        until("it is not stored", SOON, async || {
            let error = tokens.snapshot().remove("main")?.error?;
            error.contains("it was refreshed and cannot be stored").then_some(())
        })
        .await;
        // Nor is there a copy on disk, or will be.
        let beside = dir.path().join("token.new");
        until("there is no copy", SOON, async || {
            drop(fs::remove_file(&beside));
            fs::create_dir(&beside).ok()
        })
        .await;

        targets.send_modify(|targets| {
            if is_removed {
                targets.channels.clear();
            } else if let Some(account) = targets.channels.get_mut("main") {
                account.token_type = TokenType::Oauth;
            }
        });
        until("it is reloaded", SOON, async || {
            let token = tokens.snapshot().remove("main");
            let is_there = if is_removed { token.is_none() } else { token?.kind == "oauth" };
            is_there.then_some(())
        })
        .await;
        fs::remove_dir(&beside).unwrap();
        fs::remove_dir_all(&files.token).unwrap();
        let token =
            until("it is stored", SOON, async || fs::read_to_string(&files.token).ok()).await;
        assert!(token.starts_with("at-") && token.trim() != FIRST[0], "{token}");
        assert_eq!(sim.stats().refreshes, 1);
        stop.cancel();
        crate::support::carry::within("stop", task).await.unwrap();
    }
}

#[tokio::test]
async fn a_check_says_whose_a_token_is_and_what_does_not_fit() {
    use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
    let other = "1f0e0d0c0b0a090807060504";
    let claims = json!({"channel": other, "provider": "youtube"}).to_string();
    let jwt = format!("eyJhbGciOiJub25lIn0.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims));
    let tokens = vec![token(FIRST[0], "oauth2", &["tips:read"]), token(&jwt, "jwt", &["*"])];
    let options = Options { tokens, ..Options::default() };
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), options).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let config = json!({
        "astro": { "url": sim.url(), "api_url": sim.api_url() },
        "journal": { "dir": "" },
        "channels": {
            "jwt": { "token": jwt, "room": ROOM, "topics": ["channel.tips"] },
            "app": { "token": FIRST[0], "token_type": "oauth2", "room": ROOM,
                "topics": ["channel.follow", "channel.session.update"] },
            "key": { "token": "k", "token_type": "apikey", "room": other,
                "topics": ["channel.follow"] },
        },
        "sinks": { "out": { "type": "stdout" } },
    });
    let file = dir.path().join("relay.toml");
    fs::write(&file, toml::to_string(&config).unwrap()).unwrap();
    let mut command = tokio::process::Command::new(daemon::PROGRAM);
    command.args(["check", "--connect", "--config"]).arg(&file).kill_on_drop(true);
    let output = crate::support::carry::within("the check", command.output()).await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for expected in [
        &*format!("  belongs to channel {other} (youtube)\n"),
        &format!(
            "  warning: it belongs to channel {other} (youtube), and room {ROOM} is asked for"
        ),
        &format!("  belongs to channel {ROOM}\n  has the scopes tips:read\n"),
        "  warning: it lacks the scope session:read for channel.session.update\n",
        "session of app: cannot be fetched: HTTP 403: missing scope session:read\n",
        "token of key: does not say when it expires\n  whether the REST API takes an API key",
    ] {
        assert!(text.contains(expected), "{expected:?} in {text}");
    }
    assert!(!text.contains("canary") && !text.contains(&jwt), "{text}");
    // Without connecting anywhere, as far as the token says it itself.
    let mut command = tokio::process::Command::new(daemon::PROGRAM);
    command.args(["check", "--config"]).arg(&file).kill_on_drop(true);
    let output = crate::support::carry::within("the check", command.output()).await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("of this token: it belongs to channel"), "{text}");
}
