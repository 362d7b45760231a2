//! Events on standard output: JSON lines, or a short readable line on a terminal.
//!
//! The smallest sink; read this first when you write one. The payload is written as it was rendered,
//! with a line end behind it, so that `astro-relay run | jq` works.
//!
//! Whoever reads may stop reading (`| less`), and then a write takes for ever. It is done on a thread of
//! its own, so that nothing but this sink waits for it, and it cannot be taken back: what was begun before
//! a timeout or a new connection is waited for, and its events are not written again.

use std::{
    collections::HashSet,
    io::{self, IsTerminal, Write},
    time::Duration,
};

use async_trait::async_trait;
use rustix::termios::tcgetwinsize;
use schemars::{JsonSchema, schema_for};
use serde::Deserialize;
use tokio::{
    task::JoinHandle,
    time::{Instant, timeout_at},
};

use super::{Cause, Failure, Kind, Opening, Outgoing, Sink, settings};
use crate::{
    astro::summary::{EventLines, Summary},
    base::{
        event::Seq,
        terminal::has_colours,
        text::{harmless, harmless_json},
    },
    config::ConfigError,
};

/// The row of this kind.
pub(super) const KIND: Kind = Kind {
    name: "stdout",
    summary: "JSON lines on standard output, or readable lines on a terminal",
    address: None,
    usual_url: None,
    demo: None,
    session: true,
    secrets: &[],
    schema: || schema_for!(Settings),
    open,
    validate: None,
    probe: None,
};

/// Settings of a `stdout` sink.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// How events are written.
    #[serde(default)]
    format: Format,
}

/// How events are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
enum Format {
    /// Readable lines on a terminal, the payload otherwise.
    #[default]
    Auto,
    /// The payload, one line each.
    Json,
    /// A short readable line each.
    Text,
}

struct Stdout {
    /// How lines for people are made; `None`: the payload is written.
    readable: Option<Readable>,
    /// Whether it is a terminal: then the payload must not do anything to it.
    terminal: bool,
    timeout: Duration,
    buffer: Vec<u8>,
    in_flight: Vec<Outgoing>,
    /// When they are given up.
    deadline: Instant,
    writing: Option<Writing>,
}

/// Lines for people.
#[derive(Debug, Default)]
struct Readable {
    lines: EventLines,
    colours: bool,
    /// Whether the width is that of the terminal.
    fits: bool,
}

/// Columns of a line where there is no terminal to fit.
const COLUMNS: usize = 160;

/// A write that is under way, perhaps of events that were given up.
struct Writing {
    events: HashSet<Seq>,
    /// Returns the buffer.
    task: JoinHandle<(Vec<u8>, io::Result<()>)>,
}

fn open(opening: &Opening<'_>) -> Result<Box<dyn Sink>, ConfigError> {
    let settings: Settings = settings(opening)?;
    let terminal = io::stdout().is_terminal();
    let readable = match settings.format {
        Format::Auto => terminal,
        Format::Json => false,
        Format::Text => true,
    };
    let (lines, colours) = (EventLines::default(), has_colours(terminal));
    Ok(Box::new(Stdout {
        readable: readable.then_some(Readable { lines, colours, fits: terminal }),
        terminal,
        timeout: opening.config.timeout.0,
        buffer: Vec::new(),
        in_flight: Vec::new(),
        deadline: Instant::now(),
        writing: None,
    }))
}

/// What a buffer keeps between batches: a usual batch, not the largest ever seen.
const KEEP_BYTES: usize = 256 * 1024;

#[async_trait]
impl Sink for Stdout {
    async fn connect(&mut self) -> Result<(), Failure> {
        self.in_flight.clear();
        Ok(())
    }

    /// One batch at a time.
    async fn send(&mut self, events: &[Outgoing]) -> Result<usize, Failure> {
        if !self.in_flight.is_empty() {
            return Ok(0);
        }
        self.in_flight = events.to_vec();
        self.deadline = Instant::now() + self.timeout;
        if self.writing.is_none() {
            self.writing = Some(self.write());
        }
        Ok(events.len())
    }

    async fn acknowledged(&mut self) -> Result<usize, Failure> {
        loop {
            if self.in_flight.is_empty() {
                return std::future::pending().await;
            }
            match self.written().await {
                Ok(written) => {
                    let is_written = |event: &&Outgoing| written.contains(&event.record.seq);
                    let count = self.in_flight.iter().take_while(is_written).count();
                    self.in_flight.drain(..count);
                    if count > 0 {
                        return Ok(count);
                    }
                }
                Err(failure) => {
                    self.in_flight.clear();
                    return Err(failure);
                }
            }
        }
    }

    /// A write of events that were given up is left alone: whether its reader comes back, nobody knows.
    async fn close(&mut self, until: Instant) -> Vec<(Seq, u8)> {
        let events: Vec<_> = self.in_flight.iter().map(Outgoing::number).collect();
        if events.is_empty() {
            return events;
        }
        let ended = timeout_at(until, self.acknowledged()).await;
        let written = ended.ok().and_then(Result::ok).unwrap_or(0);
        events.into_iter().take(written).collect()
    }
}

impl Stdout {
    /// Begins to write what is in flight.
    fn write(&mut self) -> Writing {
        let mut buffer = std::mem::take(&mut self.buffer);
        for event in &self.in_flight {
            line(event, self.readable.as_mut(), self.terminal, &mut buffer);
        }
        self.deadline = Instant::now() + self.timeout;
        let task = tokio::task::spawn_blocking(move || {
            let mut out = io::stdout().lock();
            let written = out.write_all(&buffer).and_then(|()| out.flush());
            buffer.clear();
            buffer.shrink_to(KEEP_BYTES);
            (buffer, written)
        });
        Writing { events: self.in_flight.iter().map(|event| event.record.seq).collect(), task }
    }

    /// Waits for the write that is under way; answers what it has written.
    async fn written(&mut self) -> Result<HashSet<Seq>, Failure> {
        let writing = match self.writing.take() {
            Some(writing) => writing,
            None => self.write(),
        };
        let writing = self.writing.insert(writing);
        let Ok(ended) = timeout_at(self.deadline, &mut writing.task).await else {
            let reason = "whoever reads standard output does not keep up".into();
            return Err(Cause::Busy { wait: None, reason }.into());
        };
        let events = std::mem::take(&mut writing.events);
        self.writing = None;
        let (buffer, outcome) = ended.map_err(Failure::down)?;
        self.buffer = buffer;
        outcome.map_err(failure)?;
        Ok(events)
    }
}

fn failure(error: io::Error) -> Failure {
    // Nobody reads any more (`| head`): no use in trying again.
    if error.kind() == io::ErrorKind::BrokenPipe {
        Cause::Gone { reason: "standard output is closed".into() }.into()
    } else {
        Failure::down(error)
    }
}

/// Appends one event and its line end.
fn line(
    outgoing: &Outgoing,
    readable: Option<&mut Readable>,
    terminal: bool,
    buffer: &mut Vec<u8>,
) {
    let start = buffer.len();
    if let Some(readable) = readable {
        buffer.extend_from_slice(readable.line(outgoing).as_bytes());
    } else if terminal {
        let payload = String::from_utf8_lossy(&outgoing.payload).replace(['\n', '\r', '\t'], " ");
        let is_json = outgoing.content_type.contains("json");
        let shown = if is_json { harmless_json(&payload) } else { harmless(&payload) };
        buffer.extend_from_slice(shown.as_bytes());
    } else {
        buffer.extend_from_slice(&outgoing.payload);
        // A payload over several lines would no longer be one JSON line: line ends inside JSON text
        // are only ever white space.
        for byte in buffer.iter_mut().skip(start) {
            if matches!(byte, b'\n' | b'\r') {
                *byte = b' ';
            }
        }
    }
    buffer.push(b'\n');
}

impl Readable {
    /// `14:52:42  tip         Kim  5.00 EUR`, cut to the terminal's width.
    fn line(&mut self, outgoing: &Outgoing) -> String {
        let event = &outgoing.record.event;
        let summary = Summary::of(event);
        let line = self.lines.line(&event.ts, &event.place.channel, &summary);
        let size = self.fits.then(|| tcgetwinsize(io::stdout()).ok()).flatten();
        let columns = size.map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0);
        line.paint(columns.unwrap_or(COLUMNS), self.colours)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::base::{
        event::{Event, Origin, Place, Record},
        text::is_harmful,
    };

    fn outgoing(topic: &str, data: &str, payload: &str) -> Outgoing {
        let event = Event {
            id: "1".into(),
            distinct_key: None,
            place: Place::of(topic, "", "main"),
            ts: "2024-02-15T14:52:42Z".into(),
            received: 0,
            origin: Origin::Live,
            message: Bytes::copy_from_slice(data.as_bytes()),
            data: 0..data.len(),
            may_have_personal_fields: true,
        };
        Outgoing {
            record: Arc::new(Record::new(1, event)),
            address: "".into(),
            payload: Bytes::copy_from_slice(payload.as_bytes()),
            content_type: "application/json",
            expires_in: None,
            part: 0,
        }
    }

    fn lines(events: &[Outgoing], readable: bool) -> String {
        let mut buffer = Vec::new();
        let mut readable = readable.then(Readable::default);
        for event in events {
            line(event, readable.as_mut(), false, &mut buffer);
        }
        String::from_utf8(buffer).unwrap()
    }

    #[test]
    fn each_payload_is_one_line() {
        let events =
            [outgoing("a", "{}", "{\n  \"a\": 1\r\n}"), outgoing("b", "{}", r#"{"b":"\n"}"#)];
        assert_eq!(lines(&events, false), "{   \"a\": 1  }\n{\"b\":\"\\n\"}\n");
    }

    #[test]
    fn a_readable_line_has_columns_and_an_end() {
        let tip = r#"{"donation":{"user":{"username":"Kim"},"amount":5,"currency":"EUR"}}"#;
        let name = "x".repeat(500);
        let long = format!(r#"{{"username":"{name}","message":"{name}"}}"#);
        let text = lines(&[outgoing("channel.tips", tip, ""), outgoing("b", &long, "")], true);
        let [first, second] = text.lines().collect::<Vec<_>>()[..] else { panic!("{text}") };
        assert_eq!(first, "14:52:42  tip         Kim  5.00 EUR");
        assert!(second.ends_with("xxx…") && second.chars().count() == COLUMNS, "{second}");
    }

    #[test]
    fn control_characters_in_an_event_are_escaped() {
        let data = r#"{"username":"\u202e\u007f\u001b]0;x\u0007é"}"#;
        let event = outgoing("\u{1b}[2J\u{9b}1m", data, "");
        let text = lines(&[event], true);
        assert!(!text.trim_end_matches('\n').chars().any(is_harmful), "{text:?}");
        assert!(text.contains('é'));
    }

    #[test]
    fn control_characters_in_a_payload_are_escaped() {
        let mut buffer = Vec::new();
        let payload = "{\"a\":\n\"\u{9b}1m\u{202e}\u{7f}é\"}";
        line(&outgoing("a", "{}", payload), None, true, &mut buffer);
        let mut text = outgoing("a", "{}", "a\u{1b}[2J");
        text.content_type = "text/plain";
        line(&text, None, true, &mut buffer);
        let expected = "{\"a\": \"\\u009b1m\\u202e\\u007fé\"}\na\\u{1b}[2J\n";
        assert_eq!(String::from_utf8(buffer).unwrap(), expected);
    }

    #[test]
    fn a_closed_pipe_is_gone_and_a_full_disk_is_down() {
        let of = |kind: io::ErrorKind| failure(kind.into()).cause;
        assert!(matches!(of(io::ErrorKind::BrokenPipe), Cause::Gone { .. }));
        assert!(matches!(of(io::ErrorKind::StorageFull), Cause::Down(_)));
    }
}
