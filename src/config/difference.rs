//! What is different between the configuration that runs and one that was loaded anew, and what of
//! the new one can run without a restart.
//!
//! It changes nothing and knows no task: [`crate::app::reload`] carries it out.
//!
//! The one thing to know: what needs a restart is compared with what *runs*, not with what was loaded
//! last. So it is told again at every reload until the relay was restarted or the file agrees again.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::Value;

use super::{Config, Http, Log};
use crate::base::clock::UnixMillis;

/// What is different.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Channels that came, by label.
    pub channels_added: Vec<String>,
    /// Channels that went.
    pub channels_removed: Vec<String>,
    /// Channels that are not as they were.
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

/// What became of a request to load the configuration anew.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// When.
    pub at: UnixMillis,
    /// Who asked: `signal`, `http` or `file`.
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
    (found.channels_added, found.channels_removed, found.channels_changed) =
        compare(&running.channels, &loaded.channels);
    (found.sinks_added, found.sinks_removed, found.sinks_changed) =
        compare(&running.sinks, &loaded.sinks);
    let next = Config {
        astro: running.astro.clone(),
        journal: running.journal.clone(),
        session: running.session.clone(),
        backfill: running.backfill.clone(),
        http: Http { listen: running.http.listen.clone(), ..loaded.http.clone() },
        log: Log { format: running.log.format, ..loaded.log.clone() },
        reload: loaded.reload.clone(),
        channels: loaded.channels.clone(),
        sinks: loaded.sinks.clone(),
    };
    found.applied = keys(running, &next);
    found.needs_restart = keys(&next, loaded);
    (found, next)
}

/// Names that are only in `new`, only in `old`, and in both with another value.
fn compare<T: PartialEq>(
    old: &std::collections::BTreeMap<String, T>,
    new: &std::collections::BTreeMap<String, T>,
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
        [
            ("astro", serde_json::to_value(&config.astro)),
            ("backfill", serde_json::to_value(&config.backfill)),
            ("http", serde_json::to_value(&config.http)),
            ("journal", serde_json::to_value(&config.journal)),
            ("log", serde_json::to_value(&config.log)),
            ("reload", serde_json::to_value(&config.reload)),
            ("session", serde_json::to_value(&config.session)),
        ]
        .map(|(name, value)| (name, value.unwrap_or_default()))
    };
    let mut found = Vec::new();
    for ((name, old), (_, new)) in sections(old).into_iter().zip(sections(new)) {
        let keys = |value: &Value| -> BTreeSet<String> {
            value.as_object().into_iter().flatten().map(|(key, _)| key.clone()).collect()
        };
        for key in keys(&old).union(&keys(&new)) {
            if old.get(key) != new.get(key) {
                found.push(format!("{name}.{key}"));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loading::{Sources, load};

    const BASE: &str = r#"
        [channels.main]
        token = "t1"
        topics = ["channel.tips"]
        [channels.other]
        room = "5b2e2007760aeb7729487dab"
        token = "t2"
        topics = ["channel.tips"]
        [sinks.out]
        type = "stdout"
        [sinks.home]
        type = "mqtt"
        url = "mqtt://127.0.0.1"
    "#;

    fn config(text: &str) -> Config {
        let sources = Sources { text: Some(text.into()), ..Sources::default() };
        load(&sources).unwrap().config
    }

    /// The base with some of it replaced, and more behind it.
    fn changed(replace: &[(&str, &str)], more: &str) -> Config {
        let mut text = BASE.to_owned();
        for (old, new) in replace {
            assert!(text.contains(old), "{old}");
            text = text.replacen(old, new, 1);
        }
        config(&format!("{text}\n{more}"))
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn each_change_is_named_once_and_in_its_place() {
        let none = Difference::default();
        let table: Vec<(Config, Difference)> = vec![
            (changed(&[], ""), none.clone()),
            (
                changed(&[("t1", "t3")], ""),
                Difference { channels_changed: names(&["main"]), ..none.clone() },
            ),
            (
                changed(&[("[channels.main]", "[channels.first]")], ""),
                Difference {
                    channels_added: names(&["first"]),
                    channels_removed: names(&["main"]),
                    ..none.clone()
                },
            ),
            (
                changed(&[], "qos = 0\n[sinks.new]\ntype = \"stdout\""),
                Difference {
                    sinks_added: names(&["new"]),
                    sinks_changed: names(&["home"]),
                    ..none.clone()
                },
            ),
            (
                changed(&[("[sinks.out]\n        type = \"stdout\"", "")], ""),
                Difference { sinks_removed: names(&["out"]), ..none.clone() },
            ),
            (
                changed(&[], "[log]\nlevel = \"debug\"\nformat = \"json\"\n[reload]\nwatch = true"),
                Difference {
                    applied: names(&["log.level", "reload.watch"]),
                    needs_restart: names(&["log.format"]),
                    ..none.clone()
                },
            ),
            (
                changed(
                    &[],
                    "[astro]\nurl = \"ws://127.0.0.1\"\n[journal]\ndir = \"/x\"\n[http]\n\
                     listen = \"127.0.0.1:1\"\nadmin_token = \"s3cret\"",
                ),
                Difference {
                    applied: names(&["http.admin_token"]),
                    needs_restart: names(&["astro.url", "http.listen", "journal.dir"]),
                    ..none.clone()
                },
            ),
        ];
        let base = config(BASE);
        for (loaded, expected) in table {
            let (found, next) = difference(&base, &loaded);
            assert_eq!(found, expected);
            // Carried out, nothing is left but what needs a restart, and that is still told.
            let (rest, _) = difference(&next, &loaded);
            assert!(rest.is_empty(), "{rest:?}");
            assert_eq!(rest.needs_restart, expected.needs_restart);
        }
    }

    #[test]
    fn the_gateway_is_concerned_by_channels_alone() {
        let base = config(BASE);
        let (sinks, _) = difference(&base, &changed(&[], "qos = 0"));
        let (channels, _) = difference(&base, &changed(&[("t2", "t4")], ""));
        assert!(!sinks.concerns_gateway() && !sinks.is_empty());
        assert!(channels.concerns_gateway() && !channels.is_empty());
    }
}
