//! Events on standard output: JSON lines, or a short readable line on a terminal.
//!
//! The smallest sink; read this first when you write one. The payload is written as it was rendered,
//! with a line end behind it, so that `astro-relay run | jq` works.

use std::io::{IsTerminal, Write};

use async_trait::async_trait;
use schemars::{JsonSchema, schema_for};
use serde::Deserialize;

use super::{Cause, Failure, Kind, Opening, Outgoing, Sink, settings};
use crate::config::ConfigError;

/// The row of this kind.
pub(super) const KIND: Kind = Kind {
    name: "stdout",
    summary: "JSON lines on standard output, or readable lines on a terminal",
    address: None,
    secrets: &[],
    schema: || schema_for!(Settings),
    open,
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
    readable: bool,
    buffer: Vec<u8>,
}

#[expect(clippy::needless_pass_by_value, reason = "the signature is that of the row")]
fn open(opening: Opening<'_>) -> Result<Box<dyn Sink>, ConfigError> {
    let settings: Settings = settings(&opening)?;
    let readable = match settings.format {
        Format::Auto => std::io::stdout().is_terminal(),
        Format::Json => false,
        Format::Text => true,
    };
    Ok(Box::new(Stdout { readable, buffer: Vec::new() }))
}

#[async_trait]
impl Sink for Stdout {
    async fn connect(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    async fn deliver(&mut self, batch: &[Outgoing]) -> Result<(), Failure> {
        self.buffer.clear();
        for outgoing in batch {
            if self.readable {
                self.buffer.extend_from_slice(readable(outgoing).as_bytes());
            } else {
                // A payload over several lines would no longer be one JSON line: line ends inside
                // JSON text are only ever white space.
                let line = outgoing.payload.iter().map(|&byte| match byte {
                    b'\n' | b'\r' => b' ',
                    other => other,
                });
                self.buffer.extend(line);
            }
            self.buffer.push(b'\n');
        }
        let mut out = std::io::stdout().lock();
        out.write_all(&self.buffer).and_then(|()| out.flush()).map_err(|error| {
            // Nobody reads any more (`| head`): no use in trying again.
            if error.kind() == std::io::ErrorKind::BrokenPipe {
                Failure::after(0, Cause::Gone { reason: "standard output is closed".into() })
            } else {
                Failure::down(error)
            }
        })
    }

    async fn close(&mut self) {}
}

/// `14:52:42  main  channel.tips  {"donation":…}`, cut to a terminal's width.
fn readable(outgoing: &Outgoing) -> String {
    /// What of the data fits beside the other columns on a wide terminal.
    const DATA_CHARS: usize = 120;
    let event = &outgoing.record.event;
    let time = event.ts.get(11..19).unwrap_or("        ");
    let data = String::from_utf8_lossy(event.data());
    let mut short: String =
        data.chars().map(|c| if c.is_control() { ' ' } else { c }).take(DATA_CHARS).collect();
    if data.chars().nth(DATA_CHARS).is_some() {
        short.push('…');
    }
    format!("{time}  {:<10}  {:<24}  {short}", event.channel, event.topic)
}
