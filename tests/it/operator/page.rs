//! The page in a real browser: it shows what is there, and what viewers write is text and nothing else.
//!
//! Needs chromium and chromedriver (Debian: chromium, chromium-driver), so it runs where it is asked
//! for: `cargo test --test it operator::page -- --ignored`.

use reqwest::Client;
use serde_json::{Value, json};

use super::{ADMIN, PATIENCE, ROOM, Running, channel};
use crate::support::{
    process::{Server, free_port},
    receiver::{Answer, Receiver},
    wait::until,
};

/// A browser, driven over HTTP as the `WebDriver` protocol says.
struct Browser {
    client: Client,
    session: String,
    _driver: Server,
}

impl Browser {
    async fn start() -> Self {
        let port = free_port();
        let driver = Server::start("chromedriver", vec![format!("--port={port}")], port).await;
        let client = Client::builder().no_proxy().build().unwrap();
        let args = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,1400"];
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": { "args": args },
            "goog:loggingPrefs": { "browser": "ALL" },
        } } });
        let base = format!("http://127.0.0.1:{port}/session");
        let answer = client.post(&base).json(&wanted).send().await.unwrap();
        let answer: Value = answer.json().await.unwrap();
        let id = answer["value"]["sessionId"].as_str().unwrap_or_else(|| panic!("{answer}"));
        Self { session: format!("{base}/{id}"), client, _driver: driver }
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let request = self.client.post(format!("{}{path}", self.session)).json(&body);
        let answer: Value = request.send().await.unwrap().json().await.unwrap();
        assert!(answer["value"]["error"].is_null(), "{answer}");
        answer["value"].clone()
    }

    async fn run(&self, script: &str) -> Value {
        self.post("/execute/sync", json!({ "script": script, "args": [] })).await
    }

    /// Waits until a script says true.
    async fn until(&self, what: &str, script: &str) {
        until(what, PATIENCE, async || (self.run(script).await == true).then_some(())).await;
    }

    async fn end(self) {
        self.client.delete(&self.session).send().await.unwrap();
    }
}

/// Would run in a page that takes text for markup, in one way or another.
const EVIL: &str = "<script>window.evil=1</script><img src=x onerror='window.evil=1'>\
                    \"><svg onload=window.evil=1> javascript:window.evil=1 {{7*7}} </pre></details>";

/// How many elements a selector finds, as a script.
fn count(selector: &str, wanted: usize) -> String {
    format!("return document.querySelectorAll({selector:?}).length === {wanted}")
}

/// Puts a text into a field, as typing would.
fn typed(field: &str, text: &str, event: &str) -> String {
    format!(
        "const field = document.getElementById({field:?}); field.value = {text:?}; \
         field.dispatchEvent(new Event({event:?}));"
    )
}

/// What viewers wrote is shown as they wrote it, and is nothing else.
async fn inert(browser: &Browser) {
    let open = "for (const one of document.querySelectorAll('#stream details, #dead details')) one.open = true;";
    browser.run(open).await;
    browser.until("the whole event is shown", &count("#stream pre", 1)).await;
    let shown = browser.run("return document.body.textContent").await;
    assert!(shown.as_str().unwrap().contains("<script>window.evil=1</script>"), "as text: {shown}");
    assert!(!shown.as_str().unwrap().contains("donor@example.org"));
    let made = browser.run(&count("main script, main img, main svg, main iframe", 0)).await;
    assert_eq!(made, true, "no element was made of it");
    assert_eq!(browser.run("return window.evil === undefined").await, true);
    // Nor could it: the policy holds even where a script of ours would let something in.
    let forced = "try { document.body.innerHTML += '<img src=x onerror=\"window.evil=1\">'; \
                  return 'taken' } catch (error) { return error.name }";
    assert_eq!(browser.run(forced).await, "TypeError", "trusted types");
}

async fn filter_and_pause(browser: &Browser, relay: &Running) {
    let rows = |wanted| count("#stream summary", wanted);
    browser.run(&typed("filter", "channel.follow", "input")).await;
    browser.until("the filter holds", &rows(0)).await;
    browser.run(&typed("filter", "channel.*", "input")).await;
    browser.until("a pattern fits", &rows(2)).await;
    browser.run("document.getElementById('pause').click()").await;
    relay.sim.publish("channel.tips", ROOM, json!({ "n": 2 }));
    let queued = "return document.getElementById('event-count').textContent.includes('1 queued')";
    browser.until("it is queued", queued).await;
    assert_eq!(browser.run(&rows(2)).await, true);
    browser.run("document.getElementById('pause').click()").await;
    browser.until("it goes on", &rows(3)).await;
}

async fn act_with_the_token(browser: &Browser, relay: &Running) {
    assert_eq!(browser.run("return document.getElementById('retry-all').disabled").await, true);
    browser.run(&typed("token", ADMIN, "change")).await;
    let enabled = "return !document.getElementById('retry-all').disabled";
    browser.until("it can be tried again", enabled).await;
    browser.run("document.getElementById('retry-all').click()").await;
    let none = "return document.getElementById('dead').textContent === 'None.'";
    browser.until("it is delivered and gone", none).await;
    relay.rewrite("nonsense = ");
    browser.run("document.getElementById('reload').click()").await;
    let told = "return document.getElementById('notice').textContent.includes('was rejected')";
    browser.until("the problem is told", told).await;
}

#[tokio::test]
#[ignore = "needs chromium and chromedriver"]
async fn viewers_text_is_inert_and_the_operator_can_act() {
    let receiver = Receiver::start();
    receiver.script([Answer::Status(422)]);
    let hook = format!(
        "[sinks.shop]\ntype = \"webhook\"\nurl = {:?}\nallow_addresses = [\"127.0.0.0/8\"]\n\
         payload = \"data\"\n",
        receiver.url()
    );
    let relay = Running::start(&format!("{}{hook}", channel(&["channel.tips"]))).await;
    relay.subscribed(1).await;
    relay.sink_is("shop", "up").await;
    let user = json!({ "username": EVIL, "email": "donor@example.org" });
    let data = json!({ "n": 1, "donation": { "user": user, "message": EVIL, "amount": 5 } });
    relay.sim.publish("channel.tips", ROOM, &data);
    let browser = Browser::start().await;
    browser.post("/url", json!({ "url": relay.url("/") })).await;

    let ready = "return document.getElementById('ready').textContent === 'ready'";
    browser.until("the state is shown", ready).await;
    // The relay speaks of itself there too.
    browser.run(&typed("filter", "channel.*", "input")).await;
    browser.until("the event is shown", &count("#stream summary", 1)).await;
    browser.until("the dead letter is shown", &count("#dead .row", 1)).await;
    inert(&browser).await;
    // Another that comes while the page is open.
    relay.sim.publish("channel.tips", ROOM, &data);
    browser.until("it arrives", &count("#stream summary", 2)).await;
    filter_and_pause(&browser, &relay).await;
    act_with_the_token(&browser, &relay).await;
    assert_eq!(receiver.numbers(), [1, 1, 2, 1]);

    let log = browser.post("/se/log", json!({ "type": "browser" })).await;
    let severe = |entry: &&Value| {
        // The browser itself notes the 422 of the refused configuration, and the forced markup.
        let text = entry["message"].as_str().unwrap_or_default();
        entry["level"] == "SEVERE" && !text.contains("422") && !text.contains("TrustedHTML")
    };
    let severe: Vec<_> = log.as_array().unwrap().iter().filter(severe).collect();
    assert!(severe.is_empty(), "{severe:?}");
    browser.end().await;
}
