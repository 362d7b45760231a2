//! Rules for several sinks of one kind, each of which is valid alone: helpers for the `validate` of a row
//! in [`KINDS`](super::KINDS).

use serde_json::Value;

use crate::config::{SinkConfig, problem::Findings};

/// Calls `report` with each sink that has a key which an earlier one has, and with that one's name.
pub(super) fn repeated<'s, K: PartialEq, I: IntoIterator<Item = K>>(
    sinks: &[(&'s str, &'s SinkConfig)],
    keys: impl Fn(&str, &SinkConfig) -> I,
    mut report: impl FnMut(&str, &str, &K),
) {
    let mut seen: Vec<(K, &str)> = Vec::new();
    for (name, sink) in sinks {
        for key in keys(name, sink) {
            match seen.iter().find(|(earlier, _)| *earlier == key) {
                Some((_, first)) => report(name, first, &key),
                None => seen.push((key, name)),
            }
        }
    }
}

/// Two sinks that publish their state to the same place, which these settings say: what one removes when
/// it ends, the other still means.
pub(super) fn same_state(sinks: &[(&str, &SinkConfig)], settings: &[&str]) -> Findings {
    let mut found = Findings::default();
    let place = |_: &str, sink: &SinkConfig| {
        let values = settings.iter().map(|key| sink.settings.get(key).cloned());
        sink.state.then(|| values.collect::<Vec<Option<Value>>>())
    };
    repeated(sinks, place, |name, first, _| {
        let message = format!(
            "sinks.{first} publishes its state to the same place: when one ends, both look offline"
        );
        found.warn(&["sinks", name, "state"], message);
    });
    found
}
