//! The operator's side: a whole relay on the simulated Astro, asked and changed while it runs.

mod canary;
mod crowd;
mod endpoint;
mod health;
mod log;
mod page;
mod reload;
mod terminal;
mod top;
mod watching;

use std::{path::PathBuf, time::Duration};

use astro_relay::{
    app::relay::Relay,
    journal::Journal,
    loading::{Sources, load},
};
use astro_sim::{Options, Sim};
use reqwest::{Client, Method, Response};
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::support::wait::until;

/// What the tests show to change something.
pub const ADMIN: &str = "operator-admin-token";

/// The room of the simulated channel.
pub const ROOM: &str = "5b2e2007760aeb7729487dab";

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// A relay in this process, its file, and the Astro that it is connected to.
pub struct Running {
    pub sim: Sim,
    pub dir: TempDir,
    pub journal: Journal,
    base: String,
    client: Client,
    _stop: DropGuard,
    task: JoinHandle<()>,
}

impl Running {
    /// Starts a relay with these channels and sinks.
    pub async fn start(rest: &str) -> Self {
        Self::start_at("127.0.0.1:0", rest).await
    }

    /// The same, with its endpoint there.
    pub async fn start_at(listen: &str, rest: &str) -> Self {
        let sim = Sim::start(([127, 0, 0, 1], 0).into(), Options::default()).await.unwrap();
        Self::start_with(sim, listen, rest).await
    }

    /// The same, connected to this Astro.
    pub async fn start_on(sim: Sim, rest: &str) -> Self {
        Self::start_with(sim, "127.0.0.1:0", rest).await
    }

    #[expect(clippy::disallowed_methods, reason = "a test's own task")]
    async fn start_with(sim: Sim, listen: &str, rest: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("astro-relay.toml");
        let text = whole(&sim, &dir, rest).replace("127.0.0.1:0", listen);
        std::fs::write(&file, text).unwrap();
        let sources = Sources { file: Some(file), ..Sources::default() };
        let loaded = load(&sources).unwrap_or_else(|error| panic!("{error}"));
        let relay = Relay::reloadable(loaded, sources, None).await.unwrap();
        let journal = relay.journal();
        let base = format!("http://{}", relay.listening().unwrap());
        let stop = CancellationToken::new();
        let told = stop.clone();
        let task = tokio::spawn(async move {
            relay.run(told, || {}).await;
        });
        let client = Client::builder().no_proxy().build().unwrap();
        Self { sim, dir, journal, base, client, _stop: stop.drop_guard(), task }
    }

    pub fn file(&self) -> PathBuf {
        self.dir.path().join("astro-relay.toml")
    }

    /// Writes the file with other channels and sinks.
    pub fn rewrite(&self, rest: &str) {
        std::fs::write(self.file(), self.whole(rest)).unwrap();
    }

    /// The whole file with these channels and sinks.
    pub fn whole(&self, rest: &str) -> String {
        whole(&self.sim, &self.dir, rest)
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    pub async fn get(&self, path: &str) -> Response {
        self.client.get(self.url(path)).send().await.unwrap()
    }

    /// With the token.
    pub async fn post(&self, path: &str, body: &str) -> Response {
        let request = self.client.request(Method::POST, self.url(path)).bearer_auth(ADMIN);
        request.body(body.to_owned()).send().await.unwrap()
    }

    /// Asks for a reload; answers the status and the report.
    pub async fn reload(&self) -> (u16, Value) {
        let answer = self.post("/reload", "").await;
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    pub async fn status(&self) -> Value {
        self.get("/status").await.json().await.unwrap()
    }

    /// Waits until the status satisfies a condition.
    pub async fn until(&self, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        until(what, PATIENCE, async || {
            let status = self.status().await;
            condition(&status).then_some(status)
        })
        .await
    }

    /// Waits until so many subscriptions are confirmed, and no other is wanted.
    pub async fn subscribed(&self, wanted: usize) {
        self.until("the subscriptions are confirmed", |status| {
            let all: Vec<&Value> = status["pages"]["connections"]
                .as_object()
                .unwrap()
                .values()
                .flat_map(|connection| connection["subscriptions"].as_array().unwrap())
                .collect();
            all.len() == wanted && all.iter().all(|one| one["state"] == "confirmed")
        })
        .await;
    }

    pub async fn sink_is(&self, sink: &str, state: &str) {
        self.until(&format!("{sink} is {state}"), |status| {
            status["pages"]["sinks"][sink]["state"] == state
        })
        .await;
    }

    /// Waits until a sink is up and listens for commands, which have a connection of their own.
    pub async fn takes_commands(&self, sink: &str) {
        self.sink_is(sink, "up").await;
        let task = format!("commands of sink {sink}");
        self.until(&format!("{sink} listens for commands"), |status| {
            status["pages"]["tasks"][&task].is_null()
        })
        .await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The whole file.
fn whole(sim: &Sim, dir: &TempDir, rest: &str) -> String {
    let journal = dir.path().join("journal");
    std::fs::create_dir_all(&journal).unwrap();
    format!(
        "astro.url = \"{}\"\nastro.api_url = \"{}\"\njournal.dir = \"{}\"\n\
         http.listen = \"127.0.0.1:0\"\nhttp.admin_token = \"{ADMIN}\"\n{rest}",
        sim.url(),
        sim.api_url(),
        journal.display()
    )
}

/// A channel with these topics.
pub fn channel(topics: &[&str]) -> String {
    format!("[channels.main]\nroom = \"{ROOM}\"\ntoken = \"t\"\ntopics = {topics:?}\n")
}
