//! `astro-relay session` as a process, against the simulated API.

use std::process::{Output, Stdio};

use astro_sim::{Options, RestFault, Sim, Token};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use crate::support::carry::within;

const ROOM: &str = "0f0e0d0c0b0a090807060504";

struct Place {
    sim: Sim,
    dir: TempDir,
}

impl Place {
    async fn new() -> Self {
        let options =
            Options { tokens: vec![Token::owner("tok-canary", ROOM)], ..Options::default() };
        let sim = Sim::start(([127, 0, 0, 1], 0).into(), options).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), "tok-canary\n").unwrap();
        let text = format!(
            "[astro]\napi_url = {:?}\n[channels.main]\nroom = {ROOM:?}\ntoken_file = '{}'\n\
             topics = [\"channel.tips\"]\n",
            sim.api_url(),
            dir.path().join("token").display()
        );
        std::fs::write(dir.path().join("relay.toml"), text).unwrap();
        Self { sim, dir }
    }

    async fn run(&self, args: &[&str]) -> Output {
        let output = Command::new(env!("CARGO_BIN_EXE_astro-relay"))
            .arg("session")
            .args(args)
            .arg("--config")
            .arg(self.dir.path().join("relay.toml"))
            .stdin(Stdio::null())
            .output();
        let output = within("the command", output).await.unwrap();
        let said = format!("{output:?}");
        assert!(!said.contains("canary"), "{said}");
        output
    }

    async fn said(&self, args: &[&str]) -> String {
        let output = self.run(args).await;
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    async fn fails(&self, args: &[&str], code: i32) -> String {
        let output = self.run(args).await;
        assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn element(&self, name: &str) -> Value {
        self.sim.session(ROOM)["data"][name].clone()
    }
}

#[tokio::test]
async fn a_session_is_shown_and_changed_from_the_command_line() {
    let place = Place::new().await;
    place.said(&["set", "latest_follower", r#"{"name":"mossy"}"#, "--yes"]).await;
    assert_eq!(place.element("follower-latest"), json!({"name": "mossy"}));
    assert_eq!(place.said(&["get", "latest_follower"]).await, "{\"name\":\"mossy\"}\n");
    let table = place.said(&["show"]).await;
    assert_eq!(table.lines().count(), 64, "a heading, and each element");
    let session = place.sim.session(ROOM);
    let since = format!(
        "session since {}, provider twitch, created ",
        session["lastReset"].as_str().unwrap()
    );
    assert!(table.starts_with(&since), "{table}");
    assert!(table.contains("\nfollower-latest  "), "{table}");
    assert!(table.contains("  name=mossy\n"), "{table}");
    let all: Value = serde_json::from_str(&place.said(&["show", "--json"]).await).unwrap();
    assert_eq!(all, place.sim.session(ROOM)["data"]);
    let settings = place.said(&["settings", "--calendar", "true"]).await;
    assert_eq!(settings, "autoReset  true\ncalendar   true\n");
    let data = json!({"username": "mossy", "amount": 5});
    place.sim.activity(ROOM, json!({"type": "tip", "data": data}));
    assert_eq!(place.said(&["top"]).await, "mossy  5.0\n");
    place.said(&["reload"]).await;
    place.said(&["set", "follower-session", r#"{"count":7}"#, "--yes"]).await;
    place.said(&["reset", "--yes", "--channel", "main"]).await;
    assert_eq!(place.element("follower-session"), json!({"count": 0}));
    assert_eq!(
        place.element("follower-latest"),
        json!({"name": "mossy"}),
        "no figure of the session"
    );
}

#[tokio::test]
async fn what_cannot_be_done_is_told_with_a_code() {
    let place = Place::new().await;
    let before = place.sim.session(ROOM);
    assert!(place.fails(&["reset"], 64).await.contains("--yes"));
    assert!(place.fails(&["set", "tip-goal", "{}"], 64).await.contains("--yes"));
    assert!(place.fails(&["set", "tip-goal", "{", "--yes"], 64).await.contains("JSON"));
    assert!(place.fails(&["get", "tip-gaol"], 64).await.contains("tip-gaol"));
    assert!(place.fails(&["show", "--channel", "x"], 64).await.contains("one of: main"));
    assert_eq!(place.sim.session(ROOM)["data"], before["data"], "nothing was changed");
    place.sim.fail_rest([RestFault::DropAfter]);
    assert!(place.fails(&["reset", "--yes"], 75).await.contains("unknown outcome"));
    place.sim.fail_rest([RestFault::status(404)]);
    assert!(place.fails(&["reload"], 70).await.contains("the server may not know it"));
    place.sim.set_tokens(vec![Token::owner("other", ROOM)]);
    assert!(place.fails(&["show"], 70).await.contains("invalid token"));
}
