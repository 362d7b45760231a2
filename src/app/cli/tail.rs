//! `astro-relay tail`: streams events from the running relay, until it is interrupted.
//!
//! When the stream ends (a restart), it connects again. Events of the journal's past, without a relay, are
//! `journal export`.

use std::{io::Write as _, sync::Arc, time::Duration};

use clap::Args;
use reqwest::Response;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    Done, Failed,
    client::{Which, quiet},
    on_runtime, out,
};
use crate::{
    astro::wire::{self, ServerFrame},
    base::{
        clock,
        event::{Event, Origin, Place, Record},
        template::{Condition, View},
        text::{EXCERPT, excerpt, harmless},
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
    #[arg(short = 'n', long, default_value_t = 10)]
    lines: u64,
    /// Prints JSON lines, on a terminal too.
    #[arg(long)]
    json: bool,
}

pub(super) fn tail(args: &Tail) -> Done {
    let usage = |text: String| Failed::new(Failed::USAGE, text);
    let when = args.when.as_deref().map(Condition::compile).transpose();
    let when = when.map_err(|error| usage(format!("--when: {error}")))?;
    if let Some(Err(error)) = args.topic.as_deref().map(Pattern::parse) {
        return Err(usage(format!("--topic: {error}")));
    }
    let client = args.which.client()?;
    let readable = !args.json && out::is_terminal();
    let topic = args.topic.as_deref().map(|topic| format!("&topic={topic}")).unwrap_or_default();
    on_runtime(1, &quiet(), async move {
        let mut last = args.lines;
        let mut stream = client.events(&format!("whole=true&last={last}{topic}")).await?;
        loop {
            follow(&mut stream, when.as_ref(), readable).await?;
            last = 0;
            out::aside(&format!("the relay at {} ended the stream; trying again", client.base));
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
    fn a_tail_filters_and_escapes_control_characters() {
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
}
