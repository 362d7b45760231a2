//! Prints each tip once, from a JetStream stream. Runs against
//! `astro-relay demo --streams --nats nats://127.0.0.1:4222`.

use std::{error::Error, io::Write as _};

use async_nats::jetstream::{self, consumer::pull};
use futures_util::StreamExt as _;
use serde_json::Value;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let client = async_nats::connect("nats://127.0.0.1:4222").await?;
    let stream = jetstream::new(client).get_stream("ASTRO").await?;
    // The stream has removed the duplicates; the durable consumer continues where it was.
    let wanted = pull::Config {
        durable_name: Some("tips".into()),
        filter_subject: "astro.*.channel.tips".into(),
        ..pull::Config::default()
    };
    let consumer = stream.get_or_create_consumer("tips", wanted).await?;
    let mut messages = consumer.messages().await?;
    while let Some(message) = messages.next().await {
        let message = message?;
        let event: Value = serde_json::from_slice(&message.payload)?;
        let tip = event.pointer("/data/donation").cloned().unwrap_or_default();
        let text = |path: &str| tip.pointer(path).and_then(Value::as_str).unwrap_or_default();
        let (name, currency) = (text("/user/username"), text("/currency"));
        let amount = tip.pointer("/amount").unwrap_or(&Value::Null);
        writeln!(std::io::stdout(), "{name} {amount} {currency}")?;
        message.ack().await?;
    }
    Ok(())
}
