//! `astro-relay send-test`: a test event through the configured sinks.
//!
//! `send-test tip` is a true event of that kind, see [`test_event`]. With `--topic` and `--data` it is
//! whatever the caller writes.

use std::io::Write as _;

use clap::{Args, builder::PossibleValuesParser};
use serde_json::{Map, Value};

use super::{Done, Failed, Source, on_runtime, out};
use crate::{
    base::{
        clock, event,
        text::{counted, harmless},
    },
    config::{Config, Log},
    delivery::test_event::{self, SinkOutcome, TestEvents, TestKind},
};

/// What `send-test` takes.
#[derive(Debug, Args)]
pub(super) struct SendTest {
    /// What it is: a true event of this kind, marked as a test [default: tip]
    #[arg(value_parser = PossibleValuesParser::new(TestKind::ALL.map(TestKind::as_str)),
        conflicts_with_all = ["topic", "data"])]
    kind: Option<String>,
    #[command(flatten)]
    source: Source,
    /// Only this sink; may be given several times.
    #[arg(long = "sink", value_name = "NAME")]
    sinks: Vec<String>,
    /// The channel that it pretends to come from [default: the first]
    #[arg(long)]
    channel: Option<String>,
    /// Its amount: money, months, viewers or bits, by the kind.
    #[arg(long, value_name = "NUMBER", conflicts_with_all = ["topic", "data"])]
    amount: Option<f64>,
    /// Another topic than those of the kind, with --data
    #[arg(long)]
    topic: Option<String>,
    /// Its data, a JSON object; `test` is added to it [default: {}; its topic: channel.tips]
    #[arg(long)]
    data: Option<String>,
}

pub(super) fn send_test(args: &SendTest) -> Done {
    let config = args.source.load()?;
    if let Some(name) = args.sinks.iter().find(|name| !config.sinks.contains_key(*name)) {
        return Err(Failed::new(Failed::USAGE, format!("there is no sink {name:?}")));
    }
    let test = events(args, &config)?;
    let log = Log { level: "warn".into(), ..config.log.clone() };
    on_runtime(1, &log, async move {
        let mut failed = 0;
        for result in test_event::send(&config, &args.sinks, &test.events).await {
            failed += u64::from(matches!(result.outcome, SinkOutcome::Failed(_)));
            let said = result.outcome.to_string();
            writeln!(out::text(), "{} ({}): {}", result.sink, result.kind, harmless(&said))?;
        }
        if let Some(note) = &test.note {
            writeln!(out::text(), "note: {}", harmless(note))?;
        }
        match failed {
            0 => Ok(()),
            _ => Err(Failed::new(Failed::SOFTWARE, format!("{} failed", counted(failed, "sink")))),
        }
    })
}

fn events(args: &SendTest, config: &Config) -> Result<TestEvents, Failed> {
    let usage = |why: String| Failed::new(Failed::USAGE, why);
    if args.topic.is_none() && args.data.is_none() {
        let kind = args.kind.as_deref().unwrap_or("tip").parse::<TestKind>().map_err(usage)?;
        return test_event::events(config, args.channel.as_deref(), kind, args.amount)
            .map_err(usage);
    }
    let data: Map<String, Value> = serde_json::from_str(args.data.as_deref().unwrap_or("{}"))
        .map_err(|error| usage(format!("--data is not a JSON object: {error}")))?;
    let channel = args.channel.clone().or_else(|| config.channels.keys().next().cloned());
    let channel = channel.unwrap_or_default();
    let topic = args.topic.as_deref().unwrap_or("channel.tips");
    let room = config.room_of(&channel).unwrap_or_default().into();
    let event = event::test(topic, &channel.as_str().into(), &room, data, clock::now());
    Ok(TestEvents { channel, events: vec![event], note: None })
}
