//! What viewers, donors and servers chose to write, on its way to an operator's terminal: shown, and
//! doing nothing.

use std::process::Stdio;

use reqwest::Client;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    process::Command,
};

use super::{PATIENCE, ROOM, Running, channel};
use crate::support::{
    daemon::PROGRAM,
    receiver::{Answer, Receiver},
    wait::until,
};

/// Erases the screen, paints, sets the title, turns the text around, hides, ends a line.
const EVIL: &str =
    "\u{1b}[2J\u{9b}31m\u{9d}0;x\u{7}\u{202e}\u{2066}\u{200f}\u{200b}\u{7f}\u{85}\r\u{2028}";

fn does_something(c: char) -> bool {
    c.is_control() && c != '\n' && c != '\t'
        || matches!(c, '\u{200b}' | '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn is_harmless(what: &str, said: &[u8]) -> String {
    let text = String::from_utf8(said.to_vec()).expect("text");
    assert!(!text.chars().any(does_something), "{what}: {text:?}");
    text
}

async fn command(args: &[&str]) -> String {
    let output = Command::new(PROGRAM).args(args).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(PATIENCE, output).await.expect("it ends").unwrap();
    is_harmless(&args.join(" "), &output.stderr);
    is_harmless(&args.join(" "), &output.stdout)
}

#[tokio::test]
async fn names_and_answers_do_nothing_to_a_terminal() {
    let receiver = Receiver::start();
    receiver.script(vec![Answer::Status(422); 1]);
    let sink = format!(
        "[sinks.shop]\ntype = \"webhook\"\nurl = {:?}\nallow_addresses = [\"127.0.0.0/8\"]\n",
        receiver.url()
    );
    let relay = Running::start(&format!("{}{sink}", channel(&["channel.tips"]))).await;
    relay.subscribed(1).await;
    relay.sink_is("shop", "up").await;
    let tip = json!({ "donation": { "user": { "username": EVIL }, "message": EVIL }, EVIL: EVIL });
    relay.sim.publish("channel.tips", ROOM, &tip);
    until("it is set aside", PATIENCE, async || {
        let letters: Value = relay.get("/api/dead-letters").await.json().await.unwrap();
        (letters.as_array().unwrap().len() == 1).then_some(())
    })
    .await;
    let dir = relay.dir.path().join("journal").display().to_string();
    let mut shown = Vec::new();
    for args in [
        &["journal", "export", "-n", "20", "--dir", &dir][..],
        &["journal", "export", "--dir", &dir],
        &["dead-letters", "show", "--dir", &dir],
    ] {
        let text = command(args).await;
        let lines: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let tips = lines.iter().filter_map(|line| {
            let event = line.get("event").unwrap_or(line);
            let data = &event["message"]["data"];
            data.get("donation").map(|donation| (donation.clone(), data[EVIL].clone()))
        });
        shown.extend(tips);
    }
    // They are the same values as ever.
    assert_eq!(shown.len(), 3);
    assert!(shown.iter().all(|tip| *tip == (tip_of(&tip.0), json!(EVIL))), "{shown:?}");
    command(&["dead-letters", "list", "--dir", &dir]).await;
    command(&["journal", "status", "--dir", &dir]).await;
    let url = relay.url("");
    command(&["status", "--url", &url]).await;
    command(&["status", "--json", "--url", &url]).await;
    for path in ["/status", "/readyz", "/metrics", "/api/dead-letters"] {
        is_harmless(path, &relay.get(path).await.bytes().await.unwrap());
    }
    let mut events = relay.get("/events?last=10&topic=channel.tips").await;
    is_harmless("/events", &events.chunk().await.unwrap().unwrap());
    for more in [&[][..], &["--json"]] {
        let args = [&["tail", "--url", &url], more].concat();
        let mut tail = Command::new(PROGRAM)
            .args(&args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut out = tail.stdout.take().unwrap();
        let mut said = Vec::new();
        let reading = async {
            while !String::from_utf8_lossy(&said).contains("channel.tips") {
                out.read_buf(&mut said).await.unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, reading).await.expect("it is shown");
        is_harmless("tail", &said[..said.iter().rposition(|&byte| byte == b'\n').unwrap()]);
    }
}

fn tip_of(donation: &Value) -> Value {
    assert_eq!(donation["user"]["username"], EVIL);
    donation.clone()
}

/// Answers every connection with that, and then leaves it open.
#[expect(clippy::disallowed_methods, reason = "a test's own task")]
async fn server(answer: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = Vec::with_capacity(4096);
            while !request.ends_with(b"\r\n\r\n") && stream.read_buf(&mut request).await.is_ok() {}
            stream.write_all(&answer).await.ok();
            open.push(stream);
        }
    });
    url
}

/// Another server at that address, one that hangs, one that ends in the middle.
#[tokio::test]
async fn another_server_is_not_taken_for_a_relay() {
    let page = format!("<html><title>{EVIL}</title>{}", "<p>page</p>".repeat(100_000));
    let head = |status: &str, kind: &str| {
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            page.len()
        )
    };
    for status in ["200 OK", "404 Not Found", "500 Oops"] {
        for kind in ["text/html", "text/plain; charset=utf-8", "application/json"] {
            let url = server(format!("{}{page}", head(status, kind)).into_bytes()).await;
            for args in [
                &["status", "--url", &url][..],
                &["status", "--json", "--url", &url],
                &["tail", "--url", &url],
            ] {
                let output = Command::new(PROGRAM).args(args).kill_on_drop(true).output();
                let output = tokio::time::timeout(PATIENCE, output).await.expect("ends").unwrap();
                let said = is_harmless(&args.join(" "), &output.stderr);
                assert_eq!(output.status.code(), Some(69), "{args:?}: {said}");
                assert!(output.stdout.is_empty() && said.len() < 1000, "{args:?}: {said}");
                assert!(said.contains("the relay at http://127.0.0.1:"), "{said}");
            }
        }
    }
}

#[tokio::test]
async fn events_and_pages_are_the_same_to_who_reads_them() {
    let relay = Running::start(&channel(&["channel.tips"])).await;
    relay.subscribed(1).await;
    relay.sim.publish("channel.tips", ROOM, json!({ "name": EVIL }));
    relay.until("it is in", |status| !status["pages"]["last_event"].is_null()).await;
    let client = Client::builder().no_proxy().build().unwrap();
    let request = client.get(relay.url("/events?last=1&topic=channel.tips"));
    let mut stream = request.send().await.unwrap();
    let first = stream.chunk().await.unwrap().unwrap();
    let text = String::from_utf8(first.to_vec()).unwrap();
    let data = text.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
    let message: Value = serde_json::from_str(data).unwrap();
    assert_eq!(message["data"]["name"], EVIL);
}
