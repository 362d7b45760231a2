//! The difference between the running configuration and one that was loaded, and what of the new one takes
//! effect without a restart.
//!
//! It changes nothing and knows no task. What needs a restart is compared with what *runs*, not with what
//! was loaded last: it is reported again at every reload until the relay was restarted or the file agrees
//! again.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

use super::{Channel, Config, Http, Log};
use crate::base::clock::UnixMillis;

/// What is different.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Channels that came, by label.
    pub channels_added: Vec<String>,
    /// Channels that went.
    pub channels_removed: Vec<String>,
    /// Channels that are not as they were, or have the token of another account.
    pub channels_changed: Vec<String>,
    /// Sinks that came, by name.
    pub sinks_added: Vec<String>,
    /// Sinks that went.
    pub sinks_removed: Vec<String>,
    /// Sinks that are not as they were.
    pub sinks_changed: Vec<String>,
    /// Other keys that take effect at once.
    pub applied: Vec<String>,
    /// Keys that take effect at the next start.
    pub needs_restart: Vec<String>,
}

impl Difference {
    /// Whether anything takes effect now.
    pub fn is_empty(&self) -> bool {
        *self == Self { needs_restart: self.needs_restart.clone(), ..Self::default() }
    }

    /// Whether something else is wanted of the gateway.
    pub fn concerns_gateway(&self) -> bool {
        [&self.channels_added, &self.channels_removed, &self.channels_changed]
            .into_iter()
            .any(|labels| !labels.is_empty())
    }
}

/// The result of a reload.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// When.
    pub at: UnixMillis,
    /// What caused it: `signal`, `http` or `file`.
    pub by: &'static str,
    /// What is wrong with the configuration; if anything is, nothing was changed.
    pub problems: Vec<String>,
    /// What is hardly meant.
    pub warnings: Vec<String>,
    /// What was changed.
    #[serde(flatten)]
    pub difference: Difference,
}

/// Compares; answers the difference, and what runs when it is carried out.
pub fn difference(running: &Config, loaded: &Config) -> (Difference, Config) {
    let mut found = Difference::default();
    let mut token_rooms = loaded.token_rooms.clone();
    for (label, room) in &running.token_rooms {
        // What could not be found out now is taken to be as it was.
        if running.channels.get(label) == loaded.channels.get(label) {
            token_rooms.entry(label.clone()).or_insert_with(|| room.clone());
        }
    }
    (found.channels_added, found.channels_removed, found.channels_changed) = compare(
        &with_token_rooms(&running.channels, &running.token_rooms),
        &with_token_rooms(&loaded.channels, &token_rooms),
    );
    (found.sinks_added, found.sinks_removed, found.sinks_changed) =
        compare(&running.sinks, &loaded.sinks);
    let next = Config {
        astro: running.astro.clone(),
        journal: running.journal.clone(),
        session: running.session.clone(),
        backfill: running.backfill.clone(),
        cluster: running.cluster.clone(),
        http: Http { listen: running.http.listen.clone(), ..loaded.http.clone() },
        log: Log { format: running.log.format, ..loaded.log.clone() },
        reload: loaded.reload.clone(),
        channels: loaded.channels.clone(),
        sinks: loaded.sinks.clone(),
        token_rooms,
    };
    found.applied = keys(running, &next);
    found.needs_restart = keys(&next, loaded);
    (found, next)
}

/// The channels, each with the room that its token belongs to.
fn with_token_rooms<'c>(
    channels: &'c BTreeMap<String, Channel>,
    rooms: &'c BTreeMap<String, String>,
) -> BTreeMap<String, (&'c Channel, Option<&'c String>)> {
    let channels = channels.iter();
    channels.map(|(label, channel)| (label.clone(), (channel, rooms.get(label)))).collect()
}

/// Names that are only in `new`, only in `old`, and in both with another value.
fn compare<T: PartialEq>(
    old: &BTreeMap<String, T>,
    new: &BTreeMap<String, T>,
) -> (Vec<String>, Vec<String>, Vec<String>) {
    let names = |wanted: &dyn Fn(&str) -> bool| -> Vec<String> {
        let all: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        all.into_iter().filter(|name| wanted(name)).cloned().collect()
    };
    (
        names(&|name| !old.contains_key(name)),
        names(&|name| !new.contains_key(name)),
        names(&|name| matches!((old.get(name), new.get(name)), (Some(a), Some(b)) if a != b)),
    )
}

/// The keys under the plain sections that are not the same, as they are written. Values stay here.
fn keys(old: &Config, new: &Config) -> Vec<String> {
    let sections = |config: &Config| {
        let plain = Config { channels: BTreeMap::new(), sinks: BTreeMap::new(), ..config.clone() };
        serde_json::to_value(plain).unwrap_or_default()
    };
    let names = |value: Option<&Value>| -> BTreeSet<String> {
        let table = value.and_then(Value::as_object);
        table.into_iter().flatten().map(|(key, _)| key.clone()).collect()
    };
    let (old, new) = (sections(old), sections(new));
    let mut found = Vec::new();
    for name in names(Some(&old)).union(&names(Some(&new))) {
        let (old, new) = (old.get(name), new.get(name));
        for key in names(old).union(&names(new)) {
            if old.and_then(|old| old.get(key)) != new.and_then(|new| new.get(key)) {
                found.push(format!("{name}.{key}"));
            }
        }
    }
    found
}
