//! A client of the running relay's HTTP endpoint, for the commands that use it. Others have from here how little
//! a command logs, and `connect` which addresses can be asked.
//!
//! It sends the admin token where it can read one, and limits how long and how much it reads. It prints
//! nothing: what comes from there may hold words that viewers and servers chose, see [`super::out`].

use std::time::Duration;

use clap::Args;
use reqwest::{Client as Http, RequestBuilder, Response, StatusCode, header::CONTENT_TYPE};
use serde_json::Value;

use super::{Done, Failed, Source, on_runtime, out};
use crate::{
    base::{
        fault::explain,
        text::{EXCERPT, excerpt},
    },
    config::{Config, Log, Secret, pasted::shown_address},
    loading::load,
};

/// How long the relay may take to answer: it is on this machine, mostly.
const DEADLINE: Duration = Duration::from_secs(10);

/// What to do where nobody answers.
const IS_IT_RUNNING: &str =
    "is it running? `systemctl status astro-relay`, or start it with `astro-relay run`";

/// The largest status that is read: some ten thousand subscriptions.
const LARGEST_STATUS: usize = 32 * 1024 * 1024;

/// Which relay.
#[derive(Debug, Args)]
pub(super) struct Which {
    #[command(flatten)]
    source: Source,
    /// Where it listens: `http://127.0.0.1:9464` [default: as configured]
    #[arg(long)]
    url: Option<String>,
}

/// `retry`
#[derive(Debug, Args)]
pub(super) struct Retry {
    #[command(flatten)]
    which: Which,
    /// The sink's name in the configuration.
    #[arg(value_name = "SINK")]
    sink: String,
}

/// A connection to a relay's endpoint.
pub(super) struct Client {
    http: Http,
    base: String,
    token: Option<Secret>,
}

impl Which {
    pub(super) fn client(&self) -> Result<Client, Failed> {
        let failed = |text: String| Failed::new(Failed::CONFIG, text);
        // The user need not be able to read the relay's secrets.
        let sources = self.source.sources_without_secrets();
        let config = match (load(&sources), &self.url) {
            (Ok(loaded), _) => loaded.config,
            (Err(_), Some(_)) => Config::default(),
            // A running relay has kept the configuration before this one, and the address is seldom
            // another.
            (Err(error), None) => {
                out::aside(&format!("warning: {error}\ntrying the default address"));
                Config::default()
            }
        };
        let base = match &self.url {
            Some(url) => with_scheme(url.trim_end_matches('/')),
            None if config.http.listen.is_empty() => {
                return Err(failed("the relay does not listen: http.listen is empty".into()));
            }
            None => format!("http://{}", reachable(&config.http.listen)),
        };
        crate::base::tls::install_provider();
        // The endpoint is on this machine or in this network: no proxy leads there.
        let http = Http::builder().no_proxy().connect_timeout(DEADLINE).build();
        let http = http.map_err(|error| Failed::of(Failed::SOFTWARE, &error))?;
        let token = config.http.admin_token.and_then(|token| token.read_token_blocking().ok());
        Ok(Client { http, base, token })
    }
}

/// An address of which the scheme was left out is that of a relay all the same.
fn with_scheme(url: &str) -> String {
    if url.contains("://") { url.to_owned() } else { format!("http://{url}") }
}

/// An address that can be connected to, for one that is listened on.
pub(super) fn reachable(listen: &str) -> String {
    match listen.rsplit_once(':') {
        Some(("0.0.0.0", port)) => format!("127.0.0.1:{port}"),
        Some(("[::]", port)) => format!("[::1]:{port}"),
        _ => listen.to_owned(),
    }
}

impl Client {
    /// Whether it answers, whatever it has to say.
    pub(super) async fn alive(&self) -> Done {
        let mut answer = self.get("/livez").await?;
        match read(&mut answer, EXCERPT).await {
            (text, true) if text == "ok\n" => Ok(()),
            _ => Err(self.failed("does not answer like a relay")),
        }
    }

    /// What it says of itself.
    pub(super) async fn status(&self) -> Result<Value, Failed> {
        serde_json::from_str(&self.status_text().await?)
            .map_err(|_| self.failed("does not answer like a relay"))
    }

    pub(super) async fn status_text(&self) -> Result<String, Failed> {
        let mut answer = self.get("/status").await?;
        let (text, whole) = read(&mut answer, LARGEST_STATUS).await;
        if whole { Ok(text) } else { Err(self.failed("did not finish its answer")) }
    }

    /// The events from now on, and so many before.
    pub(super) async fn events(&self, query: &str) -> Result<Response, Failed> {
        let answer = self.get(&format!("/events?{query}")).await?;
        match content_type(&answer) {
            "text/event-stream" => Ok(answer),
            _ => Err(self.failed("does not answer like a relay")),
        }
    }

    async fn get(&self, path: &str) -> Result<Response, Failed> {
        self.request(self.http.get(format!("{}{path}", self.base))).await
    }

    async fn request(&self, mut request: RequestBuilder) -> Result<Response, Failed> {
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.expose());
        }
        let answered = tokio::time::timeout(DEADLINE, request.send()).await;
        let mut answer = answered
            .map_err(|_| self.failed("does not answer"))?
            .map_err(|error| explain(&error.without_url()))
            .map_err(|why| self.failed(&format!("cannot be reached: {why}; {IS_IT_RUNNING}")))?;
        match answer.status() {
            StatusCode::OK => Ok(answer),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(self.failed(
                "wants the admin token: http.admin_token is not set, or cannot be read from here",
            )),
            // The relay's own answers are lines of text.
            status if content_type(&answer) == "text/plain" => {
                let (why, _) = read(&mut answer, EXCERPT).await;
                Err(self.failed(&format!("answers {status}: {}", excerpt(why.trim(), EXCERPT))))
            }
            status => Err(self.failed(&format!("answers {status}: is it another server?"))),
        }
    }

    pub(super) fn failed(&self, why: &str) -> Failed {
        let address = self.shown();
        Failed::new(Failed::UNAVAILABLE, format!("the relay at {address} {why}"))
    }

    /// Its address for a message: a user and a password may stand in it.
    pub(super) fn shown(&self) -> String {
        shown_address(&self.base)
    }
}

fn content_type(answer: &Response) -> &str {
    let header = answer.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    header.unwrap_or_default().split(';').next().unwrap_or_default().trim()
}

/// What of the body comes in time and within the limit, and whether that is all of it.
async fn read(answer: &mut Response, limit: usize) -> (String, bool) {
    let mut body = Vec::new();
    let reading = async {
        while let Some(chunk) = answer.chunk().await.ok()? {
            body.extend_from_slice(&chunk);
            if body.len() > limit {
                return None;
            }
        }
        Some(())
    };
    let whole = matches!(tokio::time::timeout(DEADLINE, reading).await, Ok(Some(())));
    (String::from_utf8_lossy(&body).into_owned(), whole)
}

pub(super) fn retry(args: &Retry) -> Done {
    let client = args.which.client()?;
    on_runtime(1, &quiet(), async {
        let mut url = reqwest::Url::parse(&client.base)
            .map_err(|error| Failed::of(Failed::CONFIG, &error))?;
        // A name is one segment, whatever is in it.
        url.path_segments_mut()
            .map_err(|()| client.failed("has no address that can be reached"))?
            .pop_if_empty()
            .extend(["api", "sinks", &args.sink, "retry"]);
        client.request(client.http.post(url)).await.map(drop)
    })
}

/// No log: the command speaks for itself.
pub(super) fn silent() -> Log {
    Log { level: "off".into(), ..Log::default() }
}

/// A log that leaves the terminal to the command's output.
pub(super) fn quiet() -> Log {
    Log { level: "warn".into(), ..Log::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_a_scheme_is_one() {
        assert_eq!(with_scheme("127.0.0.1:9464"), "http://127.0.0.1:9464");
        assert_eq!(with_scheme("https://relay.lan"), "https://relay.lan");
    }

    #[test]
    fn a_password_in_the_address_is_not_repeated() {
        crate::base::tls::install_provider();
        let http = Http::builder().no_proxy().build().unwrap();
        let base = "http://me:hunter2@127.0.0.1:9464".to_owned();
        let failed = Client { http, base, token: None }.failed("does not answer");
        assert_eq!(failed.text(), "the relay at http://127.0.0.1:9464 does not answer");
    }

    #[test]
    fn a_wildcard_address_is_reached_on_loopback() {
        for (listen, expected) in [
            ("127.0.0.1:9464", "127.0.0.1:9464"),
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:1", "[::1]:1"),
            ("relay.lan:1", "relay.lan:1"),
        ] {
            assert_eq!(reachable(listen), expected);
        }
    }
}
