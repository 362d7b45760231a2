//! What is shown of a cluster: on the page of status, in metrics, as reasons why a relay is not ready; and
//! what members compare of their configuration.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::Ordering,
    time::Duration,
};

use async_nats::connection::State;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

use super::Cluster;
use crate::{
    astro::session::patience_with_silence,
    base::{json::set, metrics, sync::lock},
    config::{Config, Start},
    sink,
};

/// A clock that is further off than this is reported.
pub(super) const CLOCK_IS_OFF: Duration = Duration::from_mins(1);

/// Channels whose holders are listed, at most.
const LISTED: usize = 200;

/// Differences of a member that are listed, at most.
const NAMED: usize = 20;

/// What a member is configured with, by digest: without secrets, and without what may differ between hosts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Configured {
    channels: BTreeMap<String, u32>,
    sinks: BTreeMap<String, u32>,
    /// The other keys of `[cluster]`.
    cluster: u32,
    #[serde(skip)]
    starts: BTreeMap<String, Start>,
    /// How long the gateway may be silent before it is taken to be gone.
    #[serde(skip)]
    patience_with_gateway: Duration,
}

fn digest(value: &Value) -> u32 {
    // Four bytes tell two configurations apart well enough.
    (xxh3_64(value.to_string().as_bytes()) >> 32) as u32
}

impl Configured {
    pub fn of(config: &Config) -> Self {
        let channels = config.channels.iter().map(|(label, channel)| {
            let topics: BTreeSet<&String> = channel.topics.iter().collect();
            let about = json!([channel.room, channel.token_type, topics]);
            (label.clone(), digest(&about))
        });
        let sinks = config.sinks.iter().map(|(name, sink)| {
            let mut settings = sink.settings.clone();
            let secrets = sink::kind(&sink.kind).map_or(&[][..], |kind| kind.secrets);
            if let Some(settings) = settings.as_object_mut() {
                settings.retain(|key, _| {
                    !secrets.iter().any(|secret| key.starts_with(secret)) && !key.ends_with("_file")
                });
            }
            let about = json!([serde_json::to_value(sink).unwrap_or_default(), settings]);
            (name.clone(), digest(&about))
        });
        let cluster = config.cluster.as_ref().map(|cluster| {
            json!([
                cluster.copies, cluster.replicas, cluster.lease, cluster.max_age, cluster.max_size,
                cluster.duplicate_window
            ])
        });
        Self {
            channels: channels.collect(),
            sinks: sinks.collect(),
            cluster: digest(&cluster.unwrap_or_default()),
            starts: config.sinks.iter().map(|(name, sink)| (name.clone(), sink.start)).collect(),
            patience_with_gateway: patience_with_silence(&config.astro),
        }
    }

    /// One number for all of it, small enough for JSON.
    pub(super) fn digest(&self) -> u64 {
        Self::digest_of(&self.to_json())
    }

    /// The same of what a member has published.
    pub(super) fn digest_of(published: &[u8]) -> u64 {
        xxh3_64(published) >> 12
    }

    pub(super) fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    pub(super) fn sinks(&self) -> Vec<String> {
        self.sinks.keys().cloned().collect()
    }

    /// How a channel is configured, by digest; `None`: not at all.
    pub(super) fn channel(&self, channel: &str) -> Option<u32> {
        self.channels.get(channel).copied()
    }

    pub(super) fn has_channel(&self, channel: &str) -> bool {
        self.channels.contains_key(channel)
    }

    pub(super) fn has_sink(&self, sink: &str) -> bool {
        self.sinks.contains_key(sink)
    }

    pub(super) fn start_of(&self, sink: &str) -> Start {
        self.starts.get(sink).copied().unwrap_or_default()
    }

    pub(super) fn patience_with_gateway(&self) -> Duration {
        self.patience_with_gateway
    }

    /// What another member has differently, by name.
    pub(super) fn differences(&self, other: &[u8]) -> Vec<String> {
        let Ok(other) = serde_json::from_slice::<Self>(other) else { return Vec::new() };
        let mut found = Vec::new();
        for (what, ours, theirs) in
            [("channel", &self.channels, &other.channels), ("sink", &self.sinks, &other.sinks)]
        {
            let names: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
            for name in names {
                match (ours.get(name), theirs.get(name)) {
                    (Some(ours), Some(theirs)) if ours == theirs => {}
                    (Some(_), Some(_)) => found.push(format!("{what} {name} is not the same")),
                    (Some(_), None) => found.push(format!("{what} {name} is missing there")),
                    (None, _) => found.push(format!("{what} {name} is missing here")),
                }
            }
        }
        if self.cluster != other.cluster {
            found.push("[cluster] is not the same".into());
        }
        if found.len() > NAMED {
            let more = found.len() - NAMED;
            found.truncate(NAMED);
            found.push(format!("and {more} more"));
        }
        found
    }
}

/// A cluster as one member sees it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    pub member: String,
    pub name: String,
    pub copies: usize,
    pub members: BTreeMap<String, Value>,
    /// Members that have not said that they leave, and are not heard of any more: for how many seconds.
    pub gone: BTreeMap<String, f64>,
    /// Who drives each sink; `null`: nobody does at the moment.
    pub sinks: BTreeMap<String, Value>,
    /// The holders of each channel, the first one first, as they should be; not of all where there are many.
    pub channels: BTreeMap<String, Vec<String>>,
    /// Events of this member's journal that are not in the log yet.
    pub waiting: u64,
    /// Why the cluster does not work as it should.
    pub problems: Vec<String>,
}

impl Cluster {
    /// How the cluster is.
    pub fn report(&self) -> Report {
        let view = self.0.view.borrow().clone();
        let takers = view.takers(self.is_draining());
        let copies = self.copies();
        let configured = self.0.configured.borrow().clone();
        let members = view.alive().map(|(name, member)| {
            let heard = view.heard(name).map(|at| at.elapsed().as_secs_f64());
            let mut value = json!(member);
            set(&mut value, "heard_seconds", json!(heard));
            (name.to_owned(), value)
        });
        let drivers: BTreeMap<&str, _> = view.holders().collect();
        let sinks = configured.sinks().into_iter().map(|sink| {
            let holder = drivers.get(&*sink);
            let driver = holder.map(|holder| json!(holder.member));
            let since = holder.map(|holder| holder.since);
            let lag = self.lag(&sink).map(|(events, _)| events);
            (sink, json!({ "driver": driver, "since": since, "lag_events": lag }))
        });
        let listed = configured.channels.keys().take(LISTED).map(|channel| {
            let holders = self.holders(channel, takers.iter().copied());
            (channel.clone(), holders.into_iter().map(ToOwned::to_owned).collect())
        });
        Report {
            member: self.member().to_owned(),
            name: self.settings().name.clone(),
            copies,
            members: members.collect(),
            gone: view.gone().map(|(name, time)| (name.to_owned(), time.as_secs_f64())).collect(),
            sinks: sinks.collect(),
            channels: listed.collect(),
            waiting: self.0.outbox.waiting.load(Ordering::Relaxed),
            problems: self.problems(),
        }
    }

    /// Why the cluster does not work as it should; empty: it does.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let waiting = self.0.outbox.waiting.load(Ordering::Relaxed);
        let is_connected = self.client().connection_state() == State::Connected;
        if !is_connected {
            problems.push(format!(
                "cluster: {}: events wait in the local journal ({waiting} wait)",
                self.0.connection.unreached()
            ));
        } else if let Some(trouble) = &*self.0.trouble.borrow() {
            problems.push(format!("cluster: {trouble} ({waiting} events wait)"));
        } else if self.0.storage.borrow().is_none() {
            problems.push(format!(
                "cluster: the log is not there yet: events wait in the local journal ({waiting} wait)"
            ));
        } else if !self.has_assigned() {
            problems.push(
                "cluster: this member waits for the others before it takes up channels".into(),
            );
        } else if let Some(failing) = &*lock(&self.0.outbox.failing) {
            problems.push(format!("cluster: {failing} ({waiting} events wait)"));
        }
        if let Some(storage) = &*self.0.storage.borrow() {
            problems.extend(storage.remarks.iter().map(|remark| format!("cluster: {remark}")));
        }
        for sink in self.forgotten_leases() {
            problems.push(format!("cluster: the servers do not keep the lease of sink {sink}"));
        }
        let view = self.0.view.borrow();
        if view.has_namesake() {
            problems.push(format!(
                "cluster: another relay calls itself {:?}: set cluster.member",
                self.member()
            ));
        }
        for (member, differences) in lock(&self.0.differences).iter() {
            problems.push(format!(
                "cluster: member {member} has another configuration: {}",
                differences.join(", ")
            ));
        }
        for (member, said) in view.alive() {
            if said.version != env!("CARGO_PKG_VERSION") {
                problems.push(format!("cluster: member {member} has version {}", said.version));
            }
        }
        if let Some(offset) = self.clock_offset() {
            problems.push(format!("cluster: the clock of this member is {offset}"));
        }
        if self.copies() < self.settings().copies {
            problems.push(
                "cluster: the gateway gives each connection other ids, so each channel is held by one member".into(),
            );
        }
        problems
    }

    /// By how much this member's clock differs from that of the servers, where that is much.
    fn clock_offset(&self) -> Option<String> {
        let ahead = self.ahead();
        let by = Duration::from_millis(ahead.unsigned_abs());
        (by > CLOCK_IS_OFF).then(|| {
            let word = if ahead > 0 { "behind" } else { "ahead of" };
            format!("{} s {word} that of the NATS servers", by.as_secs())
        })
    }

    /// Sets the metrics that are read off, not counted.
    pub fn gauges(&self) {
        use ::metrics::gauge;
        let count = |number: u64| f64::from(u32::try_from(number).unwrap_or(u32::MAX));
        let size = |number: usize| count(u64::try_from(number).unwrap_or(u64::MAX));
        let view = self.0.view.borrow().clone();
        gauge!(metrics::CLUSTER_MEMBERS).set(size(view.alive().count()));
        gauge!(metrics::CLUSTER_CHANNELS).set(size(lock(&self.0.holding).len()));
        gauge!(metrics::CLUSTER_WAITING).set(count(self.0.outbox.waiting.load(Ordering::Relaxed)));
        let works = self.0.trouble.borrow().is_none() && self.0.storage.borrow().is_some();
        gauge!(metrics::CLUSTER_WORKS).set(f64::from(u8::from(works)));
        let others =
            view.alive().filter(|(_, said)| said.version != env!("CARGO_PKG_VERSION")).count();
        let differences =
            lock(&self.0.differences).len() + others + usize::from(view.has_namesake());
        gauge!(metrics::CLUSTER_DIFFERENCES).set(size(differences));
        let offset = Duration::from_millis(self.ahead().unsigned_abs()).as_secs_f64();
        gauge!(metrics::CLUSTER_CLOCK).set(if self.ahead() < 0 { -offset } else { offset });
        for (sink, lease) in lock(&self.0.leases).iter() {
            let term = lease.term();
            gauge!(metrics::CLUSTER_DRIVES, "sink" => sink.clone())
                .set(f64::from(u8::from(term.is_some())));
            let age = term.map_or(f64::NAN, |term| term.age().as_secs_f64());
            gauge!(metrics::CLUSTER_LEASE_AGE, "sink" => sink.clone()).set(age);
        }
    }
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;
    use crate::{
        base::tls,
        config::{self, Channel, SinkConfig},
    };

    #[tokio::test]
    async fn a_lease_that_is_not_held_has_no_age_and_a_sink_that_is_gone_no_driver() {
        tls::install_provider();
        // Nobody listens there.
        let settings = json!({ "url": "nats://127.0.0.1:1", "member": "a" });
        let settings: config::Cluster = serde_json::from_value(settings).unwrap();
        let configured = Configured::of(&config(&[], "/run/one"));
        let cluster = Box::pin(Cluster::begin(&settings, configured)).await.unwrap();
        drop(cluster.lease_of("home"));
        let shown = |name: &str, value: &str| format!("{name}{{sink=\"home\"}} {value}\n");
        let recorder = PrometheusBuilder::new().build_recorder();
        ::metrics::with_local_recorder(&recorder, || {
            cluster.gauges();
            let text = recorder.handle().render();
            assert!(text.contains(&shown(metrics::CLUSTER_DRIVES, "0")), "{text}");
            assert!(text.contains(&shown(metrics::CLUSTER_LEASE_AGE, "NaN")), "{text}");
            cluster.configured(Configured::default());
            cluster.gauges();
            let text = recorder.handle().render();
            assert!(text.contains(&shown(metrics::CLUSTER_DRIVES, "NaN")), "{text}");
            assert!(text.contains(&shown(metrics::CLUSTER_LEASE_AGE, "NaN")), "{text}");
        });
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_is_not_compared_before_a_server_has_said_a_time() {
        tls::install_provider();
        // Nobody listens there.
        let settings = json!({ "url": "nats://127.0.0.1:1", "member": "a" });
        let settings: config::Cluster = serde_json::from_value(settings).unwrap();
        let cluster = Box::pin(Cluster::begin(&settings, Configured::default())).await.unwrap();
        // As when our clock was set back at the start.
        tokio::time::advance(CLOCK_IS_OFF * 2).await;
        assert_eq!((cluster.clock_offset(), cluster.ahead()), (None, 0));
        cluster.0.connection.set_server_time(time::OffsetDateTime::UNIX_EPOCH);
        assert!(cluster.clock_offset().unwrap().ends_with("ahead of that of the NATS servers"));
    }

    fn config(topics: &[&str], token: &str) -> Config {
        let channel = json!({ "token": { "file": token }, "topics": topics });
        let channel: Channel = serde_json::from_value(channel).unwrap();
        let mut sink: SinkConfig = serde_json::from_value(json!({ "type": "mqtt" })).unwrap();
        sink.settings = json!({ "url": "mqtt://host", "password_file": token });
        Config {
            channels: [("main".to_owned(), channel)].into(),
            sinks: [("home".to_owned(), sink)].into(),
            ..Config::default()
        }
    }

    #[test]
    fn differences_are_named_and_secrets_are_none() {
        let one = Configured::of(&config(&["a", "b"], "/run/one"));
        let same = Configured::of(&config(&["b", "a"], "/run/two"));
        assert_eq!(one.digest(), same.digest());
        assert_eq!(one.differences(&same.to_json()), [""; 0]);
        let mut other = config(&["a"], "/run/one");
        other.sinks.remove("home");
        let other = Configured::of(&other);
        assert_ne!(one.digest(), other.digest());
        assert_eq!(
            one.differences(&other.to_json()),
            ["channel main is not the same", "sink home is missing there"]
        );
        assert!(one.digest() < 1 << 53);
    }
}
