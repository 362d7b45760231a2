//! `astro-relay status` and `tail`: asking a relay that runs, over its HTTP endpoint.
//!
//! They read what everybody can read there, and change nothing; but `retry`, which has a sink tried now and
//! needs the admin token.
//!
//! The one thing to know: what comes from there may hold words that viewers and servers chose. Before
//! it reaches a terminal it is rid of what would steer it.

use std::{io::Write as _, sync::Arc, time::Duration};

use clap::Args;
use reqwest::{Client, RequestBuilder, Response, StatusCode, header::CONTENT_TYPE};
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::{Done, Failed, Source, on_runtime, out};
use crate::{
    astro::wire::{self, ServerFrame},
    base::{
        clock,
        event::{Event, Origin, Place, Record},
        fault::explain,
        template::{Condition, View},
        text::{EXCERPT, excerpt, harmless},
    },
    config::{Config, Log, Secret},
    delivery::route::Pattern,
    loading::{Sources, load},
};

/// How long the relay may take to answer: it is on this machine, mostly.
const DEADLINE: Duration = Duration::from_secs(10);

/// How long a relay may say nothing to a `tail`: at other times it says every 15 s that it is there.
const SILENCE: Duration = Duration::from_mins(1);

/// The largest status that is read: some ten thousand subscriptions.
const LARGEST_STATUS: usize = 32 * 1024 * 1024;

/// The wait before a `tail` connects again.
const AGAIN: Duration = Duration::from_secs(1);

/// The longest line of events that is read: the largest message, and what is said about it.
const LONGEST: usize = 64 * 1024 * 1024;

/// Which relay.
#[derive(Debug, Args)]
pub(super) struct Which {
    #[command(flatten)]
    source: Source,
    /// Where it listens: `http://127.0.0.1:9464` [default: as configured]
    #[arg(long)]
    url: Option<String>,
}

/// `status`
#[derive(Debug, Args)]
pub(super) struct Status {
    #[command(flatten)]
    which: Which,
    /// As JSON, as it came.
    #[arg(long)]
    json: bool,
}

/// `tail`
#[derive(Debug, Args)]
pub(super) struct Tail {
    #[command(flatten)]
    which: Which,
    /// Only topics of this pattern: channel.tips, channel.**
    #[arg(long)]
    topic: Option<String>,
    /// Only events for which this Jinja expression is true: data.donation.amount >= 5
    #[arg(long)]
    when: Option<String>,
    /// So many of the newest events first, at most 1000.
    #[arg(short = 'n', long, default_value_t = 10)]
    lines: u64,
    /// As JSON lines, on a terminal too.
    #[arg(long)]
    json: bool,
}

/// `retry`
#[derive(Debug, Args)]
pub(super) struct Retry {
    #[command(flatten)]
    which: Which,
    /// The sink's name in the configuration.
    sink: String,
}

/// A relay that can be asked.
pub(super) struct Daemon {
    client: Client,
    base: String,
    token: Option<Secret>,
}

impl Which {
    pub(super) fn daemon(&self) -> Result<Daemon, Failed> {
        let failed = |text: String| Failed::new(Failed::CONFIG, text);
        // Whoever looks need not be able to read the relay's secrets.
        let sources = Sources { resolve_secrets: false, ..self.source.sources() };
        let config = match (load(&sources), &self.url) {
            (Ok(loaded), _) => loaded.config,
            (Err(_), Some(_)) => Config::default(),
            // A relay that runs has kept the configuration before this one: it must be possible to ask
            // it, and the address is seldom another.
            (Err(error), None) => {
                out::aside(&format!("warning: {error}\nasking at the default address"));
                Config::default()
            }
        };
        let base = match &self.url {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None if config.http.listen.is_empty() => {
                return Err(failed("the relay does not listen: http.listen is empty".into()));
            }
            None => format!("http://{}", reachable(&config.http.listen)),
        };
        crate::base::tls::install_provider();
        // The endpoint is on this machine or in this network: no proxy leads there.
        let client = Client::builder().no_proxy().connect_timeout(DEADLINE).build();
        let client = client.map_err(|error| Failed::of(Failed::SOFTWARE, &error))?;
        let token = config.http.admin_token.and_then(|token| token.read_token_blocking().ok());
        Ok(Daemon { client, base, token })
    }
}

/// What is listened on everywhere is asked here.
fn reachable(listen: &str) -> String {
    match listen.rsplit_once(':') {
        Some(("0.0.0.0", port)) => format!("127.0.0.1:{port}"),
        Some(("[::]", port)) => format!("[::1]:{port}"),
        _ => listen.to_owned(),
    }
}

impl Daemon {
    /// What it says of itself.
    pub(super) async fn status(&self) -> Result<Value, Failed> {
        serde_json::from_str(&self.status_text().await?)
            .map_err(|_| self.failed("does not answer like a relay"))
    }

    async fn status_text(&self) -> Result<String, Failed> {
        let mut answer = self.get("/status").await?;
        let (text, whole) = read(&mut answer, LARGEST_STATUS).await;
        if whole { Ok(text) } else { Err(self.failed("did not finish its answer")) }
    }

    /// The events from now on, and so many before.
    async fn events(&self, query: &str) -> Result<Response, Failed> {
        let answer = self.get(&format!("/events?{query}")).await?;
        match content_type(&answer) {
            "text/event-stream" => Ok(answer),
            _ => Err(self.failed("does not answer like a relay")),
        }
    }

    async fn get(&self, path: &str) -> Result<Response, Failed> {
        self.ask(self.client.get(format!("{}{path}", self.base))).await
    }

    async fn ask(&self, mut request: RequestBuilder) -> Result<Response, Failed> {
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.expose());
        }
        let answered = tokio::time::timeout(DEADLINE, request.send()).await;
        let mut answer = answered
            .map_err(|_| self.failed("does not answer"))?
            .map_err(|error| explain(&error.without_url()))
            .map_err(|why| self.failed(&format!("cannot be reached: {why}; is it running?")))?;
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

    fn failed(&self, why: &str) -> Failed {
        Failed::new(Failed::UNAVAILABLE, format!("the relay at {} {why}", self.base))
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
    let daemon = args.which.daemon()?;
    on_runtime(1, &quiet(), async {
        let mut url = reqwest::Url::parse(&daemon.base)
            .map_err(|error| Failed::of(Failed::CONFIG, &error))?;
        // A name is one segment, whatever is in it.
        url.path_segments_mut()
            .map_err(|()| daemon.failed("has no address that can be asked"))?
            .pop_if_empty()
            .extend(["api", "sinks", &args.sink, "retry"]);
        daemon.ask(daemon.client.post(url)).await.map(drop)
    })
}

pub(super) fn status(args: &Status) -> Done {
    let daemon = args.which.daemon()?;
    on_runtime(1, &quiet(), async move {
        if args.json {
            let text = daemon.status_text().await?;
            if serde_json::from_str::<&RawValue>(&text).is_err() {
                return Err(daemon.failed("does not answer like a relay"));
            }
            return Ok(writeln!(out::json(), "{text}")?);
        }
        let status = daemon.status().await?;
        Ok(write!(out::text(), "{}", page(&status, clock::now()))?)
    })
}

/// A log that leaves the terminal to what was asked for.
pub(super) fn quiet() -> Log {
    Log { level: "warn".into(), ..Log::default() }
}

/// The status as a page for a terminal.
pub(super) fn page(status: &Value, now: u64) -> String {
    let pages = &status["pages"];
    let mut lines = vec![format!(
        "astro-relay {}, up for {}: {}",
        text(&status["version"]),
        ago(&pages["started"], now),
        if status["ready"] == true { "ready" } else { "not ready" }
    )];
    for reason in list(&status["reasons"]) {
        lines.push(format!("  ! {}", text(reason)));
    }
    lines.push(String::new());
    lines.push("gateway".into());
    for (number, connection) in table(&pages["connections"]) {
        let state = text(&connection["state"]);
        lines
            .push(format!("  connection {number}: {state} for {}", ago(&connection["since"], now)));
        for subscription in list(&connection["subscriptions"]) {
            let why: Vec<_> = [&subscription["code"], &subscription["text"]]
                .into_iter()
                .filter(|value| value.is_string())
                .map(text)
                .collect();
            lines.push(format!(
                "    {:<12} {:<34} {:<9} {}",
                text(&subscription["channel"]),
                text(&subscription["topic"]),
                text(&subscription["state"]),
                why.join(": ")
            ));
        }
        error_of(connection, &mut lines);
    }
    lines.push(String::new());
    lines.push("sinks".into());
    for (name, sink) in table(&pages["sinks"]) {
        let (kind, state) = (text(&sink["kind"]), text(&sink["state"]));
        lines.push(format!("  {name} ({kind}): {state} for {}", ago(&sink["since"], now)));
        let dead = status["dead_letters"].get(&name).and_then(Value::as_u64).unwrap_or(0);
        lines.push(format!(
            "    {} delivered, {} wait, {dead} dead letters, {} lost",
            sink["delivered"], sink["lag_events"], sink["lost"]
        ));
        error_of(sink, &mut lines);
        lines.extend(list(&sink["remarks"]).map(|remark| format!("    {}", text(remark))));
    }
    lines.push(String::new());
    lines.push(journal_line(&status["journal"]));
    for gap in list(&pages["gaps"]) {
        let (from, to) = (gap["from"].as_u64().unwrap_or(0), gap["to"].as_u64().unwrap_or(0));
        lines.push(format!(
            "gap of {} s on {} from {}: {}",
            to.saturating_sub(from).div_ceil(1000),
            text(&gap["channel"]),
            clock::rfc3339(from),
            text(&gap["cause"])
        ));
    }
    let reload = &pages["reload"];
    for problem in list(&reload["problems"]) {
        lines.push(format!("the new configuration cannot be used: {}", text(problem)));
    }
    for key in list(&reload["needs_restart"]) {
        lines.push(format!("{} takes effect at the next start", text(key)));
    }
    lines.push(String::new());
    lines.join("\n")
}

fn journal_line(journal: &Value) -> String {
    let number = |key: &str| journal.get(key).and_then(Value::as_u64).unwrap_or(0);
    let (oldest, last) = (number("oldest"), number("last"));
    // An empty one says which number comes next.
    let events =
        if oldest > last { "no events".into() } else { format!("events {oldest} to {last}") };
    format!("journal {}: {events}, {} KiB", text(&journal["health"]), number("bytes") >> 10)
}

fn error_of(part: &Value, lines: &mut Vec<String>) {
    if part["last_error"].is_string() {
        let at = part["last_error_at"].as_u64().map(|at| format!(" at {}", clock::rfc3339(at)));
        let at = at.unwrap_or_default();
        lines.push(format!("    last error{at}: {}", text(&part["last_error"])));
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

pub(super) fn table(value: &Value) -> impl Iterator<Item = (String, &Value)> {
    let table = value.as_object().into_iter().flatten();
    table.map(|(name, value)| (harmless(name).into_owned(), value))
}

fn text(value: &Value) -> String {
    harmless(value.as_str().unwrap_or_default()).into_owned()
}

fn ago(since: &Value, now: u64) -> String {
    let seconds = now.saturating_sub(since.as_u64().unwrap_or(now)) / 1000;
    humantime::format_duration(Duration::from_secs(seconds)).to_string()
}

pub(super) fn tail(args: &Tail) -> Done {
    let usage = |text: String| Failed::new(Failed::USAGE, text);
    let when = args.when.as_deref().map(Condition::compile).transpose();
    let when = when.map_err(|error| usage(format!("--when: {error}")))?;
    if let Some(Err(error)) = args.topic.as_deref().map(Pattern::parse) {
        return Err(usage(format!("--topic: {error}")));
    }
    let daemon = args.which.daemon()?;
    let readable = !args.json && out::is_terminal();
    let topic = args.topic.as_deref().map(|topic| format!("&topic={topic}")).unwrap_or_default();
    on_runtime(1, &quiet(), async move {
        let mut last = args.lines;
        let mut stream = daemon.events(&format!("whole=true&last={last}{topic}")).await?;
        loop {
            follow(&mut stream, when.as_ref(), readable).await?;
            last = 0;
            out::aside(&format!("the relay at {} ended the stream; trying again", daemon.base));
            stream = loop {
                tokio::time::sleep(AGAIN).await;
                match daemon.events(&format!("whole=true&last={last}{topic}")).await {
                    Ok(stream) => break stream,
                    Err(failed) => tracing::debug!(why = failed.text, "not yet"),
                }
            };
        }
    })
}

/// Prints what comes until the stream ends.
async fn follow(stream: &mut Response, when: Option<&Condition>, readable: bool) -> Done {
    let mut rest: Vec<u8> = Vec::new();
    let mut event = Vec::new();
    // An end, a failure and a silence are the same: the relay has gone, or the network.
    while let Ok(Ok(Some(chunk))) = tokio::time::timeout(SILENCE, stream.chunk()).await {
        rest.extend_from_slice(&chunk);
        let mut out = if readable { out::text() } else { out::json() };
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            if let Some(name) = line.strip_prefix(b"event:") {
                event = name.trim_ascii().to_vec();
            }
            let Some(data) = line.strip_prefix(b"data:") else { continue };
            let data = String::from_utf8_lossy(data.trim_ascii());
            if event == b"lost" {
                out::aside(&format!(
                    "lost before they could be shown: {}",
                    excerpt(&data, EXCERPT)
                ));
                continue;
            }
            if let Some(text) = shown(&data, when, readable) {
                writeln!(out, "{text}")?;
            }
        }
        out.flush()?;
        if rest.len() > LONGEST {
            return Err(Failed::new(Failed::UNAVAILABLE, "a line without an end came"));
        }
    }
    Ok(())
}

/// An event as it comes over `/events?whole=true`.
#[derive(Deserialize)]
struct Line<'a> {
    seq: u64,
    received: String,
    origin: String,
    channel: String,
    room: String,
    #[serde(borrow)]
    message: &'a RawValue,
}

/// The line that is printed for an event; `None`: it is not wanted.
fn shown(data: &str, when: Option<&Condition>, readable: bool) -> Option<String> {
    let line: Line<'_> = serde_json::from_str(data).ok()?;
    let message = line.message.get();
    let Ok(ServerFrame::Message(envelope)) = wire::read(message) else {
        // Not an event's shape: shown as it is, if anything may be shown.
        return when.is_none().then(|| data.to_owned());
    };
    let event = Event {
        id: envelope.id.into(),
        distinct_key: None,
        place: Place::of(envelope.topic, line.room, line.channel),
        impersonal: false,
        ts: envelope.ts.into(),
        received: clock::parse_rfc3339(&line.received).unwrap_or(0),
        origin: Origin::from_word(&line.origin).unwrap_or_default(),
        data: envelope.data,
        message: bytes::Bytes::copy_from_slice(message.as_bytes()),
    };
    let record = Arc::new(Record::new(line.seq, event));
    let holds = |when: &Condition| when.holds(&View::of(Arc::clone(&record))).unwrap_or(false);
    if !when.is_none_or(holds) {
        return None;
    }
    if !readable {
        return Some(data.to_owned());
    }
    let event = &record.event;
    let time = line.received.get(11..19).unwrap_or_default();
    let data = String::from_utf8_lossy(event.data());
    let line = format!("{time}  {:<10}  {:<26}  {data}", event.place.channel, event.place.topic);
    Some(harmless(&line).into_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::base::text::is_harmful;

    #[test]
    fn a_tail_shows_what_is_wanted_and_steers_no_terminal() {
        let line = json!({
            "seq": 7, "received": "2026-01-02T03:04:05.000Z", "origin": "live", "channel": "main",
            "room": "r", "message": { "id": "1", "type": "message", "topic": "channel.tips",
            "data": { "amount": 5, "name": "a\u{9b}31mb\u{202e}c" } },
        })
        .to_string();
        for (when, wanted) in [
            (None, true),
            (Some("data.amount >= 5 and channel == 'main'"), true),
            (Some("data.amount > 5"), false),
            (Some("data.nothing.there > 5"), false),
        ] {
            let when = when.map(|when| Condition::compile(when).unwrap());
            let text = shown(&line, when.as_ref(), true);
            assert_eq!(text.is_some(), wanted, "{text:?}");
            if let Some(text) = text {
                assert!(text.starts_with("03:04:05  main        channel.tips"), "{text}");
                assert!(!text.chars().any(is_harmful), "{text:?}");
            }
            assert_eq!(shown(&line, when.as_ref(), false).is_some(), wanted);
        }
        assert_eq!(shown("no json", None, true), None);
    }

    #[test]
    fn an_empty_journal_has_no_events() {
        let line = |oldest: u64, last: u64| {
            let (health, bytes) = ("sound", 45_056);
            journal_line(
                &json!({ "health": health, "oldest": oldest, "last": last, "bytes": bytes }),
            )
        };
        assert_eq!(line(1, 0), "journal sound: no events, 44 KiB");
        assert_eq!(line(3, 9), "journal sound: events 3 to 9, 44 KiB");
    }

    #[test]
    fn a_page_says_what_is_wrong_first() {
        let status = json!({
            "version": "1", "ready": false, "reasons": ["sink a is \u{1b}[31mdown"],
            "dead_letters": { "a": 2 },
            "journal": { "health": "sound", "oldest": 1, "last": 9, "bytes": 4096 },
            "pages": {
                "started": 0,
                "connections": { "1": { "state": "open", "since": 1000, "last_error": null,
                    "subscriptions": [{ "channel": "main", "topic": "channel.tips",
                    "state": "refused", "code": "err_unauthorized", "text": "no" }] } },
                "sinks": { "a": { "kind": "mqtt", "state": "down", "since": 0, "delivered": 3,
                    "lag_events": 4, "lost": 0, "last_error": "gone", "last_error_at": 1000,
                    "remarks": ["slow"] } },
                "gaps": [{ "channel": "main", "from": 0, "to": 1500, "cause": "away" }],
                "reload": { "problems": ["x"], "needs_restart": [] },
            },
        });
        let page = page(&status, 61_000);
        for part in [
            "astro-relay 1, up for 1m 1s: not ready\n  ! sink a is \\u{1b}[31mdown\n",
            "  connection 1: open for 1m\n    main         channel.tips",
            "refused   err_unauthorized: no\n",
            "  a (mqtt): down for 1m 1s\n    3 delivered, 4 wait, 2 dead letters, 0 lost\n",
            "    last error at 1970-01-01T00:00:01Z: gone\n    slow\n",
            "gap of 2 s on main from 1970-01-01T00:00:00Z: away\n",
            "the new configuration cannot be used: x\n",
        ] {
            assert!(page.contains(part), "{part:?} in\n{page}");
        }
    }

    #[test]
    fn what_listens_everywhere_is_asked_here() {
        for (listen, asked) in [
            ("127.0.0.1:9464", "127.0.0.1:9464"),
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:1", "[::1]:1"),
            ("relay.lan:1", "relay.lan:1"),
        ] {
            assert_eq!(reachable(listen), asked);
        }
    }
}
