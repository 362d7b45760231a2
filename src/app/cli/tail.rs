//! `astro-relay tail`: streams events from the running relay, until it is interrupted.
//!
//! On a terminal each event is a line for people, and chat and the figures of the session are left out; in
//! a pipe it is JSON, and all of it.
//!
//! When the stream ends (a restart), it connects again. Events of the journal's past, without a relay, are
//! `journal export`.

use std::{collections::BTreeSet, io::Write as _, sync::Arc, time::Duration};

use clap::Args;
use reqwest::Response;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    Done, Failed,
    client::{Client, Which, quiet},
    on_runtime, out,
    status::at,
};
use crate::{
    astro::{
        summary::{EventLines, Summary},
        wire::{self, ServerFrame},
    },
    base::{
        clock,
        event::{Event, Origin, Place, Record},
        template::{Condition, View},
        terminal::Line,
        text::{EXCERPT, excerpt},
    },
    delivery::route::Pattern,
};

/// How long a relay may send nothing: at other times a keep-alive comes every 15 s.
const SILENCE: Duration = Duration::from_mins(1);

/// The wait before it connects again.
const RECONNECT: Duration = Duration::from_secs(1);

/// The longest line of events that is read: the largest message, and what is said about it.
const LONGEST: usize = 64 * 1024 * 1024;

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
    /// Starts with the last N events, at most 1000.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10,
        value_parser = clap::value_parser!(u64).range(..=1000))]
    lines: u64,
    /// Also shows chat, figures of the session and tips that wait for a moderator.
    #[arg(short, long)]
    all: bool,
    /// Prints JSON lines, on a terminal too.
    #[arg(long)]
    json: bool,
    /// Prints lines for people, in a pipe too.
    #[arg(long, conflicts_with = "json")]
    text: bool,
}

/// How events are printed.
struct Printer {
    when: Option<Condition>,
    /// Lines for people; `None`: JSON.
    lines: Option<EventLines>,
    /// Whether quiet events are left out.
    folds: bool,
}

pub(super) fn tail(args: &Tail) -> Done {
    let usage = |text: String| Failed::new(Failed::USAGE, text);
    let when = args.when.as_deref().map(Condition::compile).transpose();
    let when = when.map_err(|error| usage(format!("--when: {error}")))?;
    if let Some(Err(error)) = args.topic.as_deref().map(Pattern::parse) {
        return Err(usage(format!("--topic: {error}")));
    }
    let client = args.which.client()?;
    let readable = !args.json && (args.text || out::is_terminal());
    let mut printer = Printer {
        when,
        lines: readable.then(EventLines::default),
        // Who asks for a topic wants to see it.
        folds: readable && !args.all && args.topic.is_none(),
    };
    let topic = args.topic.as_deref().map(|topic| format!("&topic={topic}")).unwrap_or_default();
    on_runtime(1, &quiet(), async move {
        if let Some(pattern) = args.topic.as_deref() {
            warn_of_nothing(&client, pattern).await;
        }
        if printer.folds {
            out::aside("chat and figures of the session are left out; --all shows them");
        }
        let mut last = args.lines;
        let mut stream = client.events(&format!("whole=true&last={last}{topic}")).await?;
        loop {
            follow(&mut stream, &mut printer).await?;
            last = 0;
            out::aside(&format!("the relay at {} ended the stream; trying again", client.shown()));
            stream = loop {
                tokio::time::sleep(RECONNECT).await;
                match client.events(&format!("whole=true&last={last}{topic}")).await {
                    Ok(stream) => break stream,
                    Err(failed) => tracing::debug!(why = failed.text(), "not yet"),
                }
            };
        }
    })
}

/// Prints what comes until the stream ends.
async fn follow(stream: &mut Response, printer: &mut Printer) -> Done {
    let mut rest: Vec<u8> = Vec::new();
    let mut event = Vec::new();
    // An end, a failure and a silence are the same: the relay has gone, or the network.
    while let Ok(Ok(Some(chunk))) = tokio::time::timeout(SILENCE, stream.chunk()).await {
        rest.extend_from_slice(&chunk);
        let readable = printer.lines.is_some();
        let mut out = if readable { out::text() } else { out::json() };
        let columns = out::size().map_or(usize::MAX, |(_, columns)| columns);
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
            match printer.shown(&data) {
                None => {}
                Some(Shown::Line(line)) => out.line(&line, columns)?,
                Some(Shown::Json) => writeln!(out, "{data}")?,
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
struct Came<'a> {
    seq: u64,
    received: String,
    origin: String,
    channel: String,
    room: String,
    #[serde(borrow)]
    message: &'a RawValue,
}

/// How an event is shown.
#[derive(Debug)]
enum Shown {
    Line(Line),
    /// As it came.
    Json,
}

impl Printer {
    /// What is printed for an event; `None`: it is not wanted.
    fn shown(&mut self, data: &str) -> Option<Shown> {
        let line: Came<'_> = serde_json::from_str(data).ok()?;
        let message = line.message.get();
        let Ok(ServerFrame::Message(envelope)) = wire::read(message) else {
            // Not an event's shape: shown as it is, if anything may be shown.
            return self.when.is_none().then_some(Shown::Json);
        };
        let event = Event {
            id: envelope.id.into(),
            distinct_key: None,
            place: Place::of(envelope.topic, line.room, line.channel),
            ts: envelope.ts.into(),
            received: clock::parse_rfc3339(&line.received).unwrap_or(0),
            origin: Origin::from_word(&line.origin).unwrap_or_default(),
            data: envelope.data,
            message: bytes::Bytes::copy_from_slice(message.as_bytes()),
            may_have_personal_fields: true,
        };
        let record = Arc::new(Record::new(line.seq, event));
        let holds = |when: &Condition| when.holds(&View::of(Arc::clone(&record))).unwrap_or(false);
        if !self.when.as_ref().is_none_or(holds) {
            return None;
        }
        let Some(lines) = &mut self.lines else { return Some(Shown::Json) };
        let event = &record.event;
        let summary = Summary::of(event);
        if self.folds && summary.quiet {
            return None;
        }
        Some(Shown::Line(lines.line(&line.received, &event.place.channel, &summary)))
    }
}

/// Says so where no subscription of the relay fits the pattern: nothing would ever come.
async fn warn_of_nothing(client: &Client, pattern: &str) {
    let (Ok(status), Ok(fits)) = (client.status().await, Pattern::parse(pattern)) else { return };
    let connections = at(&status, "/pages/connections").as_object();
    let topics: BTreeSet<&str> = connections
        .into_iter()
        .flat_map(|all| all.values())
        .filter_map(|connection| connection["subscriptions"].as_array())
        .flatten()
        .filter_map(|one| one["topic"].as_str())
        .collect();
    let own = pattern.starts_with("relay.") || pattern.starts_with('*');
    if !own && !topics.iter().any(|topic| fits.matches(topic)) {
        let topics: Vec<&str> = topics.into_iter().collect();
        out::aside(&format!(
            "warning: the relay subscribes nothing that fits {pattern}; it subscribes {}",
            topics.join(", ")
        ));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::base::text::is_harmful;

    #[test]
    fn a_tail_filters_and_escapes_control_characters() {
        let line = json!({
            "seq": 7, "received": "2026-01-02T03:04:05.000Z", "origin": "live", "channel": "main",
            "room": "r", "message": { "id": "1", "type": "message", "topic": "channel.tips",
            "data": { "amount": 5,
            "donation": { "user": { "username": "a\u{9b}31mb\u{202e}c" } } } },
        })
        .to_string();
        for (when, wanted) in [
            (None, true),
            (Some("data.amount >= 5 and channel == 'main'"), true),
            (Some("data.amount > 5"), false),
            (Some("data.nothing.there > 5"), false),
        ] {
            let when = when.map(|when| Condition::compile(when).unwrap());
            let mut printer = Printer { when, lines: Some(EventLines::default()), folds: true };
            let shown = printer.shown(&line);
            assert_eq!(shown.is_some(), wanted, "{shown:?}");
            if let Some(Shown::Line(line)) = shown {
                let text = line.paint(200, false);
                assert!(text.starts_with("03:04:05  tip         a\\u{9b}31mb\\u{202e}c"), "{text}");
                assert!(!text.chars().any(is_harmful), "{text:?}");
            }
            printer.lines = None;
            assert_eq!(printer.shown(&line).is_some(), wanted);
        }
        let mut printer = Printer { when: None, lines: None, folds: false };
        assert!(printer.shown("no json").is_none());
    }

    #[test]
    fn chat_is_folded_away_unless_it_is_asked_for() {
        let line = json!({
            "seq": 7, "received": "2026-01-02T03:04:05.000Z", "origin": "live", "channel": "main",
            "room": "r", "message": { "id": "1", "type": "message",
            "topic": "channel.chat.message", "data": { "username": "Kim", "text": "hello" } },
        })
        .to_string();
        for folds in [true, false] {
            let lines = Some(EventLines::default());
            let mut printer = Printer { when: None, lines, folds };
            assert_eq!(printer.shown(&line).is_none(), folds);
        }
    }
}
