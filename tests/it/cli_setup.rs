//! `astro-relay setup`, as a process: in a real browser from the token to the saved file, and what its
//! server refuses.

use std::{os::unix::fs::PermissionsExt as _, path::Path, process::Stdio, time::Duration};

use astro_sim::{Options, Sim, Token};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

use crate::support::{
    browser::Browser,
    mosquitto::{self, Listener, Mosquitto},
};

const ROOM: &str = "5b2e2007760aeb7729487dab";

/// Has no signature that anybody checks; it says the channel.
const TOKEN: &str = "eyJhbGciOiJIUzI1NiJ9.eyJjaGFubmVsIjoiNWIyZTIwMDc3NjBhZWI3NzI5NDg3ZGFiIn0.c2ln";

const PATIENCE: Duration = Duration::from_secs(40);

/// The command, the rest of what it prints, and the address that it has printed.
async fn started(sim: &Sim, file: &Path) -> (Child, Lines<BufReader<ChildStdout>>, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_astro-relay"))
        .args(["setup", "--listen", "0", "--astro-url", &sim.url(), "--api-url", &sim.api_url()])
        .arg("--config")
        .arg(file)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let address = async {
        loop {
            let line = lines.next_line().await.unwrap().expect("an address");
            if line.trim().starts_with("http://") {
                return line.trim().to_owned();
            }
        }
    };
    let address = timeout(PATIENCE, address).await.expect("it says where it is");
    (child, lines, address)
}

async fn sim() -> Sim {
    let options = Options { tokens: vec![Token::owner(TOKEN, ROOM)], ..Options::default() };
    Sim::start(([127, 0, 0, 1], 0).into(), options).await.unwrap()
}

#[tokio::test]
async fn from_the_token_to_a_configuration_that_works() {
    astro_relay::base::tls::install_provider();
    let (sim, dir) = (sim().await, tempfile::tempdir().unwrap());
    let broker = Mosquitto::start(mosquitto::Options::default()).await;
    // One level: not what the question for the right to publish sends below.
    let entities = Listener::start(broker.port, "astro/main/event/+").await;
    let file = dir.path().join("astro-relay.toml");
    // Of an earlier configuration, which is gone.
    std::fs::write(dir.path().join("main.token"), "old").unwrap();
    let (mut child, _output, address) = started(&sim, &file).await;
    let mut browser = Browser::start().await;
    browser.open(&address).await;
    browser.shows("#where", "astro-relay.toml").await;
    assert_eq!(browser.run("return location.hash").await, "", "the code is in no history");

    let fill =
        |field: &str, text: &str| format!("document.querySelector({field:?}).value = {text:?}");
    assert_eq!(browser.run("return document.getElementById('token').type").await, "password");
    browser.run(&fill("#token", "Bearer abc")).await;
    browser.click("section", "Check with Astro").await;
    browser.shows("#token-outcome", "this is no JWT").await;
    browser.run(&fill("#token", &format!("Bearer \"{TOKEN}\""))).await;
    browser.click("section", "Check with Astro").await;
    browser.shows("#token-outcome", "Astro takes it: 4 of 4 topics confirmed").await;
    browser.shows("#token-outcome", ROOM).await;

    // A destination that does not answer, and then the right one.
    browser.run(&fill("#field-url", "mqtt://127.0.0.1:1")).await;
    browser.click("section", "Connect").await;
    browser.shows("#sink-outcome", "refused").await;
    browser.run(&fill("#field-url", &broker.url())).await;
    browser.run(&fill("#field-user", "relay")).await;
    browser.run(&fill("#field-password", "pass-canary")).await;
    browser.click("section", "Connect").await;
    browser.shows("#sink-outcome", "It works.").await;
    browser.click("section", "Send a test event").await;
    browser.shows("#sink-outcome", "Test event accepted").await;
    assert_eq!(entities.wait_for(1).await[0].topic, "astro/main/event/tip");

    let commands = "return sinkAnswers().settings.commands";
    assert_eq!(browser.run(commands).await, json!(["relay/test"]), "a button to test");
    browser.run("document.getElementById('field-commands').checked = true").await;
    assert_eq!(browser.run(commands).await, true, "what is ticked stays");
    browser.run("document.getElementById('field-commands').checked = false").await;
    let steps = "return serviceSteps('/etc/astro-relay/astro-relay.toml')";
    let steps = browser.run(steps).await;
    assert!(steps.as_str().unwrap().ends_with("systemctl restart astro-relay"), "{steps}");
    // Copied from a home, a configuration would name secrets that the service cannot read.
    let again = "sudo astro-relay setup --config /etc/astro-relay/astro-relay.toml --listen 9465";
    assert_eq!(browser.run("return serviceSteps('/home/a/astro-relay.toml')").await, again);

    let hidden = "return document.getElementById('overwrite-field').hidden";
    assert_eq!(browser.run(hidden).await, true);
    browser.click("section", "Save").await;
    browser.shows("#save-outcome", "main.token is already there").await;
    assert_eq!(browser.run(hidden).await, false);
    browser.run("document.getElementById('overwrite').checked = true").await;
    browser.click("section", "Save").await;
    browser.shows("#save-outcome", "Wrote").await;
    browser.shows("#save-outcome", "sudo astro-relay setup --config").await;
    assert_eq!(browser.faults, [""; 0]);
    let status = timeout(PATIENCE, child.wait()).await.expect("it ends").unwrap();
    assert!(status.success(), "{status}");
    for (name, content) in [("main.token", TOKEN), ("mqtt.password", "pass-canary")] {
        let path = dir.path().join(name);
        assert_eq!(std::fs::read_to_string(&path).unwrap().trim(), content);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(!text.contains("canary") && !text.contains(TOKEN), "{text}");
    assert!(text.contains("homeassistant = true"), "{text}");
    let check = Command::new(env!("CARGO_BIN_EXE_astro-relay"))
        .args(["check", "--connect", "--config"])
        .arg(&file)
        .stdin(Stdio::null())
        .output();
    let check = timeout(PATIENCE, check).await.expect("it ends").unwrap();
    assert!(check.status.success(), "{check:?}");
}

#[tokio::test]
async fn a_secret_that_is_already_there_is_named_and_can_be_overwritten() {
    astro_relay::base::tls::install_provider();
    let (sim, dir) = (sim().await, tempfile::tempdir().unwrap());
    let file = dir.path().join("astro-relay.toml");
    let secret = dir.path().join("main.token");
    std::fs::write(&secret, "old").unwrap();
    let (mut child, _output, address) = started(&sim, &file).await;
    let (base, code) = address.split_once("/#").unwrap();
    let client = Client::builder().no_proxy().build().unwrap();
    let save = async |overwrite: bool| {
        let sinks = json!([{ "kind": "stdout", "settings": {} }]);
        let answers = json!({ "channel": "main", "token": format!("Bearer {TOKEN}"),
            "topics": ["channel.tips"], "sinks": sinks, "overwrite": overwrite });
        let request = client.post(format!("{base}/api/save")).bearer_auth(code);
        request.body(answers.to_string()).send().await.unwrap()
    };
    let refused = save(false).await;
    assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);
    let refused: Value = refused.json().await.unwrap();
    let problem = refused["problems"][0].as_str().unwrap();
    assert!(problem.contains("main.token is already there"), "{refused}");
    assert!(!problem.contains("--force") && refused["exists"] == true, "{refused}");
    assert_eq!(std::fs::read_to_string(&secret).unwrap(), "old");
    assert!(save(true).await.status().is_success());
    let status = timeout(PATIENCE, child.wait()).await.expect("it ends").unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(std::fs::read_to_string(&secret).unwrap(), format!("{TOKEN}\n"));
}

#[tokio::test]
async fn nobody_gets_in_without_the_code_and_guessing_ends_it() {
    astro_relay::base::tls::install_provider();
    let (sim, dir) = (sim().await, tempfile::tempdir().unwrap());
    let file = dir.path().join("astro-relay.toml");
    let (mut child, _output, address) = started(&sim, &file).await;
    let (base, code) = address.split_once("/#").unwrap();
    assert!(code.len() >= 20, "{code}");
    let client = Client::builder().no_proxy().build().unwrap();
    let url = format!("{base}/api/setup");
    let with = async |code: &str, host: Option<&str>| {
        let mut request = client.get(&url).bearer_auth(code);
        if let Some(host) = host {
            request = request.header("host", host);
        }
        request.send().await.unwrap()
    };
    let questions: Value = with(code, None).await.json().await.unwrap();
    assert_eq!(questions["exists"], false);
    assert_eq!(with(code, Some("evil.example")).await.status(), StatusCode::MISDIRECTED_REQUEST);
    // What cannot be is said, and nothing is written.
    let answers = json!({ "channel": "My Shop", "token": TOKEN, "topics": ["channel.tips"] });
    let save = client.post(format!("{base}/api/save")).bearer_auth(code);
    let refused = save.body(answers.to_string()).send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);
    let refused = refused.text().await.unwrap();
    assert!(refused.contains("My Shop") && !refused.contains(TOKEN), "{refused}");
    for _ in 0..10 {
        assert_eq!(with("guess", None).await.status(), StatusCode::UNAUTHORIZED);
    }
    let status = timeout(PATIENCE, child.wait()).await.expect("it ends").unwrap();
    assert_eq!(status.code(), Some(75));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
