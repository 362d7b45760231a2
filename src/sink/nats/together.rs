//! Rules for several NATS sinks, each of which is valid alone.

use async_nats::ServerAddr;
use serde_json::Value;

use super::settings::{pattern, takes_commands};
use crate::{
    config::{SinkConfig, problem::Findings},
    sink::{address::each_url, together::same_state},
};

pub(super) fn validate(sinks: &[(&str, &SinkConfig)]) -> Findings {
    let mut found = same_state(sinks, &["url", "urls", "state_bucket"]);
    commands(sinks, &mut found);
    found
}

/// A sink that takes commands where the stream of another takes them too, and answers them in the relay's
/// place. Whether both are in one account of the server is not known here.
fn commands(sinks: &[(&str, &SinkConfig)], found: &mut Findings) {
    for (name, sink) in sinks.iter().filter(|(_, sink)| sink.takes_commands()) {
        let servers = servers(sink);
        let answers = |other: &SinkConfig| {
            let is_stream = other.settings.get("jetstream") == Some(&Value::Bool(true));
            let subject = other.settings.get("subject").and_then(Value::as_str);
            is_stream
                && takes_commands(&pattern(subject))
                && self::servers(other).iter().any(|server| servers.contains(server))
        };
        // Of one sink with both it is an error, and found elsewhere.
        let mut others = sinks.iter().filter(|(other, _)| other != name);
        if let Some((stream, _)) = others.find(|(_, other)| answers(other)) {
            let message = format!(
                "the stream of sinks.{stream} on the same server would take the commands too, and answer \
                 them in the relay's place: give its `subject` another first word than astro"
            );
            found.warn(&["sinks", name, "commands"], message);
        }
    }
}

/// The servers of a sink, each as host and port.
fn servers(sink: &SinkConfig) -> Vec<(String, u16)> {
    let one = sink.settings.get("url");
    let several = sink.settings.get("urls").and_then(Value::as_array);
    let texts = one.into_iter().chain(several.into_iter().flatten()).filter_map(Value::as_str);
    let servers = texts.flat_map(each_url).filter_map(|url| url.parse::<ServerAddr>().ok());
    servers.map(|server| (server.host().to_lowercase(), server.port())).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sink(settings: Value) -> SinkConfig {
        let mut config: SinkConfig = serde_json::from_value(json!({ "type": "nats" })).unwrap();
        config.settings = settings;
        config
    }

    #[test]
    fn a_stream_that_would_take_the_commands_of_another_sink_is_found() {
        let stream = |url: &str, subject: Option<&str>| {
            let mut settings = json!({ "url": url, "jetstream": true, "create_stream": true });
            if let Some(subject) = subject {
                settings["subject"] = subject.into();
            }
            sink(settings)
        };
        let core = sink(json!({ "urls": ["nats://bus", "tls://other:4333"], "commands": true }));
        for (other, is_found) in [
            (stream("nats://BUS:4222", None), true),
            (stream("nats://a,tls://other:4333", Some("astro.main.{{ topic }}")), true),
            (stream("nats://elsewhere", None), false),
            (stream("nats://bus", Some("events.{{ topic }}")), false),
            (sink(json!({ "url": "nats://bus" })), false),
        ] {
            for sinks in [[("core", &core), ("js", &other)], [("js", &other), ("core", &core)]] {
                let Findings { errors, warnings } = validate(&sinks);
                assert!(errors.is_empty());
                let keys: Vec<_> = warnings.iter().map(|problem| problem.key.join(".")).collect();
                let expected: &[&str] = if is_found { &["sinks.core.commands"] } else { &[] };
                assert_eq!(keys, expected, "{:?}", other.settings);
            }
        }
    }
}
