//! A real Chromium without a window, driven over its `DevTools` protocol.

use std::{process::Stdio, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::TcpStream,
    process::{Child, Command},
    time::timeout,
};
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite::Message};

use super::{process::program, wait::until};

/// How long the browser may take for anything, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);

pub struct Browser {
    socket: WebSocketStream<TcpStream>,
    last: u64,
    /// What went wrong on the page: exceptions that nobody caught.
    pub faults: Vec<String>,
    _child: Child,
    _profile: TempDir,
}

impl Browser {
    pub async fn start() -> Self {
        let profile = tempfile::tempdir().unwrap();
        let mut child = Command::new(program("chromium"))
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"])
            .args(["--disable-dev-shm-usage", "--remote-debugging-port=0"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let listening = async {
            loop {
                let line = lines.next_line().await.unwrap().expect("chromium has ended");
                if let Some(url) = line.strip_prefix("DevTools listening on ws://") {
                    return url.split('/').next().unwrap().to_owned();
                }
            }
        };
        let address = timeout(PATIENCE, listening).await.expect("chromium starts");
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let page = until("there is a page", PATIENCE, async || {
            let pages = client.get(format!("http://{address}/json")).send().await.ok()?;
            let pages: Vec<Value> = pages.json().await.ok()?;
            let page = pages.iter().find(|page| page["type"] == "page")?;
            page["webSocketDebuggerUrl"].as_str().map(ToOwned::to_owned)
        })
        .await;
        let stream = TcpStream::connect(&address).await.unwrap();
        let (socket, _) = client_async(&page, stream).await.unwrap();
        let faults = Vec::new();
        let mut browser = Self { socket, last: 0, faults, _child: child, _profile: profile };
        browser.send("Runtime.enable", json!({})).await;
        browser.size(1280, 1400).await;
        browser
    }

    async fn send(&mut self, method: &str, params: Value) -> Value {
        self.last += 1;
        let command = json!({ "id": self.last, "method": method, "params": params });
        self.socket.send(Message::text(command.to_string())).await.unwrap();
        loop {
            let message = timeout(PATIENCE, self.socket.next()).await.expect("an answer");
            let Message::Text(text) = message.unwrap().unwrap() else { continue };
            let message: Value = serde_json::from_str(&text).unwrap();
            if message["method"] == "Runtime.exceptionThrown" {
                self.faults.push(message["params"]["exceptionDetails"].to_string());
            }
            if message["id"] == self.last {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].clone();
            }
        }
    }

    pub async fn open(&mut self, url: &str) {
        self.send("Page.navigate", json!({ "url": url })).await;
    }

    /// The window's size; one that is narrow is a phone's.
    pub async fn size(&mut self, width: u32, height: u32) {
        let (ratio, mobile) = (1, width < 600);
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": ratio, "mobile": mobile });
        self.send("Emulation.setDeviceMetricsOverride", size).await;
    }

    /// `light` or `dark`.
    pub async fn scheme(&mut self, scheme: &str) {
        let feature = json!({ "name": "prefers-color-scheme", "value": scheme });
        self.send("Emulation.setEmulatedMedia", json!({ "features": [feature] })).await;
    }

    /// Presses a key.
    pub async fn press(&mut self, key: &str) {
        for kind in ["keyDown", "keyUp"] {
            let event = json!({ "type": kind, "key": key, "code": key,
                "windowsVirtualKeyCode": match key { "Tab" => 9, "Enter" => 13, "ArrowUp" => 38, "ArrowDown" => 40, _ => 0 },
                "text": if key == "Enter" && kind == "keyDown" { "\r" } else { "" } });
            self.send("Input.dispatchKeyEvent", event).await;
        }
    }

    /// The value of a body of a function.
    pub async fn run(&mut self, script: &str) -> Value {
        let expression = format!("(async () => {{ {script} }})()");
        let options =
            json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let answer = self.send("Runtime.evaluate", options).await;
        assert!(answer["exceptionDetails"].is_null(), "{script}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Waits until a script says true.
    pub async fn until(&mut self, what: &str, script: &str) {
        let end = tokio::time::Instant::now() + PATIENCE;
        while self.run(script).await != true {
            if tokio::time::Instant::now() > end {
                let shown = self.run("return document.body.innerText").await;
                panic!("not within {PATIENCE:?}: {what}; the page says {shown}");
            }
            self.run("await new Promise((resolve) => setTimeout(resolve, 50))").await;
        }
    }

    /// Waits until an element has a text.
    pub async fn shows(&mut self, selector: &str, text: &str) {
        let script = format!(
            "return [...document.querySelectorAll({selector:?})].some((one) => one.textContent.includes({text:?}))"
        );
        self.until(&format!("{selector} shows {text:?}"), &script).await;
    }

    /// Presses the button with this text below a selector.
    pub async fn click(&mut self, within: &str, text: &str) {
        self.shows(&format!("{within} button"), text).await;
        let script = format!(
            "[...document.querySelectorAll('{within} button')].find((one) => one.textContent.includes({text:?})).click()"
        );
        self.run(&script).await;
    }
}
