//! `astro-relay send-test`: one synthetic event through the configured sinks.
//!
//! It goes to the destinations directly, beside a relay that may be running, and not through the journal.
//! It is marked: its origin is `test`, its id begins with `test-`, and `data.test` is true.

use std::{io::Write as _, sync::Arc, time::Duration};

use clap::Args;
use tokio::time::{Instant, timeout};

use super::{Done, Failed, Source, on_runtime, out};
use crate::{
    base::{
        clock,
        event::{self, Event, Record},
        text::{counted, harmless},
    },
    config::{Config, Log, SinkConfig},
    delivery::{
        route::{Rendered, Skip},
        task::open_sink,
    },
    sink::Purpose,
};

/// How long a destination may take for one event.
const DEADLINE: Duration = Duration::from_secs(10);

/// What `send-test` takes.
#[derive(Debug, Args)]
pub(super) struct SendTest {
    #[command(flatten)]
    source: Source,
    /// Only this sink; may be given several times.
    #[arg(long = "sink", value_name = "NAME")]
    sinks: Vec<String>,
    /// The channel that it pretends to come from [default: the first]
    #[arg(long)]
    channel: Option<String>,
    /// Its topic.
    #[arg(long, default_value = "channel.tips")]
    topic: String,
    /// Its data, a JSON object; `test` is added to it.
    #[arg(
        long,
        default_value = r#"{"donation":{"user":{"username":"astro-relay"},"message":"This is a test","amount":5,"currency":"EUR"}}"#
    )]
    data: String,
}

pub(super) fn send_test(args: &SendTest) -> Done {
    let config = args.source.load()?;
    if let Some(name) = args.sinks.iter().find(|name| !config.sinks.contains_key(*name)) {
        return Err(Failed::new(Failed::USAGE, format!("there is no sink {name:?}")));
    }
    let record = Arc::new(Record::new(1, synthetic(args, &config)?));
    let log = Log { level: "warn".into(), ..config.log.clone() };
    on_runtime(1, &log, async move {
        let mut failed = 0;
        for (name, sink) in &config.sinks {
            if !args.sinks.is_empty() && !args.sinks.contains(name) {
                continue;
            }
            let said = match send(name, sink, &record).await {
                Ok(said) => said,
                Err(error) => {
                    failed += 1;
                    format!("failed: {error}")
                }
            };
            writeln!(out::text(), "{name} ({}): {}", sink.kind, harmless(&said))?;
        }
        match failed {
            0 => Ok(()),
            _ => Err(Failed::new(Failed::SOFTWARE, format!("{} failed", counted(failed, "sink")))),
        }
    })
}

fn synthetic(args: &SendTest, config: &Config) -> Result<Event, Failed> {
    let data = serde_json::from_str(&args.data).map_err(|error| {
        Failed::new(Failed::USAGE, format!("--data is not a JSON object: {error}"))
    })?;
    let channel = args.channel.clone().or_else(|| config.channels.keys().next().cloned());
    let channel: Arc<str> = channel.unwrap_or_default().into();
    let room = config.channels.get(&*channel).and_then(|channel| channel.room.clone());
    let room: Arc<str> = room.unwrap_or_default().into();
    Ok(event::test(&args.topic, &channel, &room, data, clock::now()))
}

async fn send(name: &str, config: &SinkConfig, record: &Arc<Record>) -> Result<String, String> {
    let (mut sink, mut route) =
        open_sink(name, config, Purpose::Probe).map_err(|error| error.to_string())?;
    let outgoing = match route.render(record) {
        Rendered::Wanted(outgoing, _) => outgoing,
        Rendered::Skipped(skip) => {
            let more = route.take_condition_error().map(|error| format!(" {error}"));
            return Ok(format!("skipped: {}{}", why(skip), more.unwrap_or_default()));
        }
        Rendered::Failed(reason) => return Err(reason),
    };
    let late = |_| "no answer in time".to_owned();
    let failed = |failure: crate::sink::Failure| crate::delivery::describe(&failure.cause);
    timeout(DEADLINE, sink.connect()).await.map_err(late)?.map_err(failed)?;
    let batch = [outgoing];
    let sent = async {
        sink.send(&batch).await?;
        sink.acknowledged().await
    };
    timeout(DEADLINE, sent).await.map_err(late)?.map_err(failed)?;
    // How the connection ends changes nothing about the event.
    drop(timeout(DEADLINE, sink.close(Instant::now())).await);
    let address = &batch[0].address;
    Ok(if address.is_empty() { "accepted".into() } else { format!("accepted at {address}") })
}

fn why(skip: Skip) -> &'static str {
    match skip {
        Skip::Place => "topic or channel not selected",
        Skip::Age => "older than max_age",
        Skip::Condition => "the condition is false",
        Skip::ConditionError => "the condition failed",
    }
}
