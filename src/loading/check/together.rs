//! Sinks against each other and against the channels, each of them valid alone.

use crate::{
    base::nearest::nearest,
    cluster::{collisions::collisions, connection},
    config::{
        Config,
        problem::{Findings, Problem},
    },
    delivery::route::Pattern,
    sink::KINDS,
};

pub(super) fn check(config: &Config, complete: bool, found: &mut Findings) {
    // Where something was left out, what is missing is reported already.
    if complete {
        empty(found, config);
        unsubscribed(found, config);
    }
    cluster(found, config);
    for kind in KINDS {
        let Some(validate) = kind.validate else { continue };
        let sinks: Vec<_> = config
            .sinks
            .iter()
            .filter(|(_, sink)| sink.kind == kind.name)
            .map(|(name, sink)| (name.as_str(), sink))
            .collect();
        let Findings { errors, warnings } = validate(&sinks);
        found.errors.extend(errors);
        found.warnings.extend(warnings);
    }
}

fn cluster(found: &mut Findings, config: &Config) {
    let Some(cluster) = &config.cluster else { return };
    for (key, why) in connection::validate(cluster) {
        found.error(&["cluster", key], why);
    }
    for (name, sink) in config.sinks.iter().filter(|(_, sink)| sink.kind == "nats") {
        for (key, why) in collisions(cluster, sink) {
            found.warn(&["sinks", name, key], why);
        }
    }
    if config.journal.dir.as_os_str().is_empty() {
        found.error(
            &["journal", "dir"],
            "a member of a cluster needs a journal on disk: events wait there while NATS is away",
        );
    }
}

fn empty(found: &mut Findings, config: &Config) {
    if config.channels.is_empty() {
        found.warn(&["channels"], "there is none: nothing will be subscribed");
    }
    if config.sinks.is_empty() {
        found.warn(&["sinks"], "there is none: events will go nowhere");
    }
}

/// `channel.**` for a `channel.*` that fits nothing, where it would fit something.
fn one_word_only<'t>(topic: &str, subscribed: impl Iterator<Item = &'t str>) -> Option<String> {
    let meant = format!("{topic}*");
    let (Ok(pattern), Ok(wider)) = (Pattern::parse(topic), Pattern::parse(&meant)) else {
        return None;
    };
    let all: Vec<&str> = subscribed.collect();
    let fits = |pattern: &Pattern| all.iter().any(|topic| pattern.matches(topic));
    (topic.ends_with(".*") && !fits(&pattern) && fits(&wider)).then_some(meant)
}

/// A topic that a sink waits for in vain. Patterns are left alone: a wildcard is often meant for
/// what will be subscribed one day.
fn unsubscribed(found: &mut Findings, config: &Config) {
    let subscribed = || config.channels.values().flat_map(|channel| &channel.topics);
    for (name, sink) in &config.sinks {
        for (index, topic) in sink.topics.iter().flatten().enumerate() {
            // What the gateway and the relay send of themselves needs no subscription.
            let key = ["sinks", name, "topics", &format!("[{index}]")];
            if let Some(meant) = one_word_only(topic, subscribed().map(String::as_str)) {
                let message = "* stands for one word, and no topic that is subscribed fits";
                found.warnings.push(Problem::new(key, message).suggest(Some(&meant)));
                continue;
            }
            let unasked = topic == "astro" || topic.starts_with("relay.");
            if !unasked && !topic.contains('*') && !subscribed().any(|other| other == topic) {
                let problem = Problem::new(key, "no channel subscribes to this topic");
                let meant = nearest(topic, subscribed().map(String::as_str));
                found.warnings.push(problem.suggest(meant));
            }
        }
    }
}
