//! The connection to NATS, and what a cluster keeps there: made where it is missing, never changed.
//!
//! | name | what |
//! |---|---|
//! | stream `<name>_log` | the events, on `<name>.log.<channel>` |
//! | bucket `<name>_lease` | members and who drives which sink; forgotten after the lease time |
//! | bucket `<name>_cursor` | how far each sink is, and what each member is configured with |
//! | bucket `<name>_state` | the state of each channel |
//! | bucket `<name>_dead` | dead letters, and replays that are not done |
//! | bucket `<name>_done` | transactions of commands, for a while |
//!
//! The client library connects again by itself, for as long as it takes. What is asked meanwhile fails
//! within a short time, and whoever asked asks again.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_nats::{
    Client, ClientError, Event, ReconnectToServer, ServerAddr,
    jetstream::{
        Context, ErrorCode,
        context::{ContextBuilder, CreateStreamErrorKind, GetStreamErrorKind},
        kv::Store,
        stream::{Config, DiscardPolicy, Info, Stream},
    },
};
use tokio::sync::watch;
use tracing::{info, warn};

use super::{
    cursor::{self, Cursor},
    error::ClusterError,
    servers::Choice,
};
use crate::{
    base::{
        clock::{self, ServerClock},
        fault,
        sync::lock,
    },
    config::{self, Period},
    publish,
    sink::nats::{connector::lasting_options, settings::Settings},
};

/// How long an attempt to connect may take.
const CONNECT: Duration = Duration::from_secs(5);

/// How often the server is asked for a sign of life. The third question without an answer ends the
/// connection.
const PING: Duration = Duration::from_secs(2);

/// The longest wait between two attempts to connect.
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// How long a request may take that no lease depends on.
const REQUEST: Duration = Duration::from_secs(5);

/// How long a transaction is remembered.
const DONE: Duration = Duration::from_mins(10);

/// From this version on, servers that keep several copies of a bucket compare a key's revision and store its new
/// value in one step (nats-server, pull request 4319).
const ONE_STEP: [u32; 3] = [2, 9, 21];

/// Messages that wait for their acknowledgement, at most.
pub(super) const IN_FLIGHT: usize = 1024;

/// What is said where requests fail though a server is reached.
const NOT_SERVED: &str = "the NATS server that is reached cannot write: its streams have no leader, or it is cut off from \
                          the other servers; events wait in the local journal";

/// How long a server may take to be reached by a command.
const REACH: Duration = Duration::from_secs(10);

/// The connection and the names.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    pub(super) client: Client,
    /// For requests that no lease depends on.
    pub(super) context: Context,
    /// For leases and cursors: fails soon.
    quick: Context,
    pub(super) settings: Arc<config::Cluster>,
    /// Whether a server is reached.
    pub(super) reached: watch::Receiver<bool>,
    /// How many servers are configured, and whose turn it is of those that are known.
    servers: usize,
    choice: Arc<Mutex<Choice>>,
    /// The servers' clock, as soon as they have said a time.
    clock: Arc<Mutex<Option<ServerClock>>>,
}

/// The stream and the buckets.
#[derive(Debug, Clone)]
pub(crate) struct Storage {
    pub(super) log: Stream,
    pub(super) leases: Store,
    pub(super) cursors: Store,
    pub(super) state: Store,
    pub(super) dead: Store,
    /// Transactions of commands.
    pub(super) done: Store,
    /// What differs from the configuration and does no harm.
    pub(super) remarks: Vec<String>,
}

/// How the servers are reached, as for a `nats` sink.
pub(super) fn nats_settings(
    cluster: &config::Cluster,
) -> Result<(Settings, Vec<ServerAddr>), ClusterError> {
    let table = serde_json::json!({ "url": cluster.url, "tls": cluster.tls });
    let mut settings: Settings =
        serde_json::from_value(table).map_err(|error| ClusterError::Settings(error.to_string()))?;
    settings.user.clone_from(&cluster.user);
    settings.password.clone_from(&cluster.password);
    settings.token.clone_from(&cluster.token);
    settings.nkey_seed.clone_from(&cluster.nkey_seed);
    settings.credentials.clone_from(&cluster.credentials);
    settings.ca_file.clone_from(&cluster.ca_file);
    settings.client_cert_file.clone_from(&cluster.client_cert_file);
    settings.client_key_file.clone_from(&cluster.client_key_file);
    let wrong = |(key, text): (&str, String)| ClusterError::Settings(format!("{key}: {text}"));
    settings.check().map_err(wrong)?;
    let servers = settings.servers().map_err(wrong)?;
    Ok((settings, servers))
}

/// What a name may be.
const NAME: &str = "up to 32 letters a-z, digits, _ and - were expected";

/// What is wrong with the section, as far as it can be known without a server: the key, and why.
pub(crate) fn validate(cluster: &config::Cluster) -> Vec<(&'static str, String)> {
    let mut wrong = Vec::new();
    if let Err(error) = nats_settings(cluster) {
        let text = error.to_string();
        wrong.push(("url", text.trim_start_matches("[cluster]: ").to_owned()));
    }
    let is_name = |name: &str| {
        (1..=32).contains(&name.len())
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b))
    };
    if !is_name(&cluster.name) {
        wrong.push(("name", NAME.into()));
    }
    if cluster.member.as_deref().is_some_and(|member| !is_name(member)) {
        wrong.push(("member", NAME.into()));
    }
    if !(1..=8).contains(&cluster.copies) {
        wrong.push(("copies", "must be from 1 to 8".into()));
    }
    if !matches!(cluster.replicas, 1 | 3 | 5) {
        wrong.push(("replicas", "must be 1, 3 or 5".into()));
    }
    let range = Duration::from_secs(2)..=Duration::from_mins(2);
    if !range.contains(&cluster.lease.0) {
        wrong.push(("lease", "must be from 2s to 2m".into()));
    }
    if cluster.duplicate_window.0 < Duration::from_secs(10) {
        wrong.push(("duplicate_window", "must be at least 10s".into()));
    }
    if cluster.duplicate_window.0 > cluster.max_age.0 {
        wrong.push(("duplicate_window", "must not be longer than max_age".into()));
    }
    if cluster.max_size.0 < 1024 * 1024 {
        wrong.push(("max_size", "must be at least 1MiB".into()));
    }
    wrong
}

/// The name of this member: as configured, or the host's.
pub(crate) fn member_name(cluster: &config::Cluster) -> String {
    if let Some(member) = &cluster.member {
        return member.clone();
    }
    let host = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
    let short = host.split('.').next().unwrap_or_default();
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    let name: String = short.chars().map(|c| if fits(c) { c } else { '-' }).take(32).collect();
    if name.is_empty() { "relay".into() } else { name }
}

impl Connection {
    /// Begins to connect, for a relay: its log says whether a server is reached. Returns whether or not one
    /// answers.
    pub(super) async fn begin(
        cluster: &config::Cluster,
        member: &str,
    ) -> Result<Self, ClusterError> {
        let log = |is_reached: bool| {
            if is_reached {
                info!("connected to NATS");
            } else {
                warn!("no connection to NATS; events wait in the local journal");
            }
        };
        Self::connect(cluster, member, log).await
    }

    /// Begins to connect. `log` is told when a server is reached, and when it is no more.
    async fn connect(
        cluster: &config::Cluster,
        member: &str,
        log: fn(bool),
    ) -> Result<Self, ClusterError> {
        let (settings, servers) = nats_settings(cluster)?;
        let (reaches, reached) = watch::channel(false);
        let reaches = Arc::new(reaches);
        let name = format!("astro-relay {} {member}", cluster.name);
        let choice = Arc::new(Mutex::new(Choice::default()));
        let (chooses, fails) = (Arc::clone(&choice), Arc::clone(&choice));
        let options = lasting_options(&settings, &name, CONNECT)
            .await
            .map_err(|error| ClusterError::Settings(error.to_string()))?
            .ping_interval(PING)
            .retry_on_initial_connect()
            .reconnect_to_server_callback(move |servers, _| {
                let next = lock(&chooses).next(servers);
                std::future::ready(next.map(|addr| ReconnectToServer { addr, delay: None }))
            })
            .reconnect_delay_callback(|attempts| {
                let wait = Duration::from_millis(100)
                    .saturating_mul(u32::try_from(attempts).unwrap_or(u32::MAX));
                wait.min(LONGEST_WAIT)
            })
            .event_callback(move |event| {
                let (reaches, choice) = (Arc::clone(&reaches), Arc::clone(&fails));
                async move {
                    match event {
                        Event::Connected => {
                            lock(&choice).connected();
                            log(true);
                            reaches.send_replace(true);
                        }
                        Event::Disconnected => {
                            if reaches.send_replace(false) {
                                log(false);
                            }
                        }
                        // Whoever had it is done with it.
                        Event::Closed => {
                            reaches.send_replace(false);
                        }
                        Event::ClientError(ClientError::Other(why)) => lock(&choice).failed(why),
                        other => tracing::debug!(%other, "about NATS"),
                    }
                }
            });
        let configured = servers.len();
        let client = options
            .connect(servers)
            .await
            .map_err(|error| ClusterError::Settings(fault::explain(&error)))?;
        // Whoever depends on a lease waits for less than that.
        let quick = cluster.lease.0 / 2;
        Ok(Self {
            context: context(&client, REQUEST),
            quick: context(&client, quick),
            client,
            settings: Arc::new(cluster.clone()),
            reached,
            servers: configured,
            choice,
            clock: Arc::default(),
        })
    }

    /// Connects for a command: waits until a server is reached, and leaves the log alone.
    pub(crate) async fn reach(
        settings: &config::Cluster,
        name: &str,
    ) -> Result<Self, ClusterError> {
        let connection = Self::connect(settings, name, |_| {}).await?;
        if connection.wait_reached(REACH).await {
            Ok(connection)
        } else {
            Err(ClusterError::Unavailable(connection.unreached()))
        }
    }

    /// That no server is reached, and why, as far as it is known.
    pub(super) fn unreached(&self) -> String {
        lock(&self.choice).unreached()
    }

    /// Why a request has failed: no server is reached, or the one that is does nothing.
    pub(super) fn failure(&self) -> String {
        if self.is_reached() { NOT_SERVED.to_owned() } else { self.unreached() }
    }

    /// Waits for a server, for so long; whether one is reached.
    pub(super) async fn wait_reached(&self, patience: Duration) -> bool {
        let mut reached = self.reached.clone();
        // The sender is in the client, which is here.
        tokio::time::timeout(patience, reached.wait_for(|reached| *reached)).await.is_ok()
    }

    /// Whether a server is reached. What is sent while none is waits in the client, and goes out then, however
    /// late that is.
    pub(super) fn is_reached(&self) -> bool {
        *self.reached.borrow()
    }

    /// Leaves the server for another one; `false`: none is known.
    pub(super) async fn try_another(&self) -> bool {
        if self.servers.max(self.client.server_info().connect_urls.len()) < 2 {
            return false;
        }
        lock(&self.choice).leave();
        self.client.force_reconnect().await.is_ok()
    }

    /// Finds the stream and the buckets, or makes them. A log that is made begins with a cursor for each of these
    /// sinks: members publish as soon as it is there.
    pub(super) async fn ensure(&self, sinks: &[String]) -> Result<Storage, ClusterError> {
        if !self.is_reached() {
            return Err(ClusterError::Unavailable(self.unreached()));
        }
        let mut remarks = Vec::new();
        for bucket in buckets(&self.settings) {
            self.stream(&bucket, &mut remarks).await?;
        }
        let cursors = self.store("cursor").await?;
        let log = log(&self.settings);
        if self.found(&log.name).await?.is_none() {
            for sink in sinks {
                cursor::make(&cursors, sink, &Cursor::default()).await?;
            }
        }
        let log = self.stream(&log, &mut remarks).await?;
        let leases = self.store("lease").await?;
        let state = self.store("state").await?;
        let dead = self.store("dead").await?;
        let done = self.store("done").await?;
        Ok(Storage { log, leases, cursors, state, dead, done, remarks })
    }

    /// What is there already, and what is wrong with it: for whoever only looks.
    pub(crate) async fn inspect(&self) -> Result<Vec<String>, ClusterError> {
        let mut remarks = Vec::new();
        for wanted in streams(&self.settings) {
            match self.found(&wanted.name).await? {
                Some(stream) => compare(stream.cached_info(), &wanted, &mut remarks)?,
                None => remarks.push(format!("{:?} is made at the start", wanted.name)),
            }
        }
        remarks.extend(self.about_version());
        Ok(remarks)
    }

    /// What is to be known of the version of the server that is reached.
    pub(super) fn about_version(&self) -> Option<String> {
        about_version(&self.client.server_info().version, self.settings.replicas)
    }

    /// Deletes all that the cluster keeps: for a demonstration.
    pub(crate) async fn delete_all(&self) {
        for of in streams(&self.settings) {
            // Where it is not there, that is what was wanted.
            drop(self.context.delete_stream(of.name).await);
        }
    }

    async fn store(&self, of: &str) -> Result<Store, ClusterError> {
        let name = format!("{}_{of}", self.settings.name);
        let store = self.quick.get_key_value(&name).await;
        store.map_err(|error| {
            let text = fault::explain(&error);
            ClusterError::Unavailable(format!("the bucket {name:?} cannot be opened: {text}"))
        })
    }

    /// A bucket, if it is there.
    pub(super) async fn bucket(&self, of: &str) -> Option<Store> {
        self.context.get_key_value(format!("{}_{of}", self.settings.name)).await.ok()
    }

    /// Whether a bucket is not there, as far as a server says.
    pub(super) async fn lacks_bucket(&self, of: &str) -> bool {
        matches!(self.found(&format!("KV_{}_{of}", self.settings.name)).await, Ok(None))
    }

    /// A stream, if it is there.
    pub(super) async fn found(&self, name: &str) -> Result<Option<Stream>, ClusterError> {
        match self.context.get_stream(name).await {
            Ok(stream) => Ok(Some(stream)),
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(error)
                    if error.error_code() == ErrorCode::STREAM_NOT_FOUND =>
                {
                    Ok(None)
                }
                GetStreamErrorKind::JetStream(error) => Err(refused(name, &error)),
                _ => Err(ClusterError::Unavailable(format!(
                    "nobody answers about the stream {name:?}: is JetStream enabled on these servers and for \
                     this account, may this user ask for $JS.API.>, and are most of the servers up? ({error})"
                ))),
            },
        }
    }

    async fn stream(
        &self,
        wanted: &Config,
        remarks: &mut Vec<String>,
    ) -> Result<Stream, ClusterError> {
        let name = &wanted.name;
        if let Some(stream) = self.found(name).await? {
            compare(stream.cached_info(), wanted, remarks)?;
            return Ok(stream);
        }
        let made = self.context.create_stream(wanted.clone()).await;
        match made {
            Ok(stream) => {
                info!(name, "made at NATS");
                Ok(stream)
            }
            Err(error) => match error.kind() {
                CreateStreamErrorKind::JetStream(error) => Err(refused(name, &error)),
                _ => Err(ClusterError::Unavailable(format!("{name:?} cannot be made: {error}"))),
            },
        }
    }

    /// The servers' clock showed this about now.
    pub(super) fn set_server_time(&self, at: time::OffsetDateTime) {
        *lock(&self.clock) = Some(ServerClock::shows(clock::millis(at)));
    }

    /// The servers' clock; ours until they have said a time.
    pub(super) fn clock(&self) -> ServerClock {
        let known = *lock(&self.clock);
        known.unwrap_or_else(ServerClock::ours)
    }

    /// How far it is ahead of ours, in milliseconds (negative: behind).
    pub(super) fn ahead(&self) -> i64 {
        let known = *lock(&self.clock);
        known.map_or(0, ServerClock::ahead)
    }
}

fn context(client: &Client, timeout: Duration) -> Context {
    ContextBuilder::new()
        .timeout(timeout)
        .ack_timeout(timeout)
        .max_ack_inflight(IN_FLIGHT)
        .build(client.clone())
}

/// The streams that a cluster keeps: the log, and those behind its buckets.
pub(super) fn streams(cluster: &config::Cluster) -> impl Iterator<Item = Config> + use<> {
    std::iter::once(log(cluster)).chain(buckets(cluster))
}

fn log(cluster: &config::Cluster) -> Config {
    Config {
        name: format!("{}_log", cluster.name),
        subjects: vec![format!("{}.log.*", cluster.name)],
        max_bytes: i64::try_from(cluster.max_size.0).unwrap_or(i64::MAX),
        max_age: cluster.max_age.0,
        duplicate_window: cluster.duplicate_window.0,
        discard: DiscardPolicy::Old,
        num_replicas: cluster.replicas,
        max_messages: -1,
        max_messages_per_subject: -1,
        max_consumers: -1,
        max_message_size: -1,
        ..Config::default()
    }
}

fn buckets(cluster: &config::Cluster) -> [Config; 5] {
    [
        ("lease", cluster.lease.0),
        ("cursor", Duration::ZERO),
        ("state", Duration::ZERO),
        ("dead", Duration::ZERO),
        ("done", DONE),
    ]
    .map(|(of, max_age)| bucket(&cluster.name, of, cluster.replicas, max_age))
}

/// The stream behind a bucket of the cluster.
fn bucket(cluster: &str, of: &str, replicas: usize, max_age: Duration) -> Config {
    Config {
        max_age,
        // The server wants it to be no longer than `max_age`.
        duplicate_window: if max_age.is_zero() {
            Duration::from_mins(2)
        } else {
            max_age.min(Duration::from_mins(2))
        },
        num_replicas: replicas,
        ..publish::nats::bucket(&format!("{cluster}_{of}"))
    }
}

/// What is to be known of a server of this version, where so many servers keep what the cluster has.
fn about_version(version: &str, replicas: usize) -> Option<String> {
    let numbers = version.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    let numbers: Vec<u32> = numbers.take(ONE_STEP.len()).collect();
    let is_older = numbers.len() == ONE_STEP.len() && numbers.as_slice() < ONE_STEP.as_slice();
    (is_older && replicas > 1).then(|| {
        format!(
            "the server has version {version}: before 2.9.21, two members may drive one sink for a moment when it is \
             handed over, and events come twice; upgrade the servers"
        )
    })
}

/// What JetStream answered that is no stream.
fn refused(name: &str, error: &async_nats::jetstream::Error) -> ClusterError {
    let text = error.to_string();
    match error.error_code() {
        ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => {
            ClusterError::Unusable(
                "JetStream is not enabled on these servers or for this account: a cluster needs it"
                    .into(),
            )
        }
        ErrorCode::STREAM_SUBJECT_OVERLAP => ClusterError::Unusable(format!(
            "{name:?} cannot be made: another stream takes its subjects (a sink's own, with a subject such as \
             astro.>?): set cluster.name to another word, or use another account of NATS ({text})"
        )),
        ErrorCode::CLUSTER_NO_PEERS | ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED => {
            ClusterError::Unusable(format!(
                "there are fewer servers with JetStream than cluster.replicas wants for {name:?}: {text}"
            ))
        }
        _ => ClusterError::Unavailable(format!("{name:?}: {text}")),
    }
}

/// Compares what exists with what is configured. What would give wrong results is an error.
fn compare(found: &Info, wanted: &Config, remarks: &mut Vec<String>) -> Result<(), ClusterError> {
    let (name, config) = (&wanted.name, &found.config);
    if config.subjects != wanted.subjects {
        return Err(ClusterError::Unusable(format!(
            "there is a stream {name:?} already that takes {}, not {}: it is not this cluster's; set \
             cluster.name to another word",
            config.subjects.join(", "),
            wanted.subjects.join(", "),
        )));
    }
    let is_log = !name.starts_with("KV_");
    // A log that keeps events shorter deletes them under a sink that is behind.
    if config.max_age != wanted.max_age {
        let text = format!(
            "{name:?} keeps what it has for {}, not {}",
            Period(config.max_age),
            Period(wanted.max_age)
        );
        if !is_log {
            return Err(ClusterError::Unusable(format!(
                "{text}: have all members the same cluster.lease? To change it, stop all members and delete it"
            )));
        }
        remarks.push(text);
    }
    if is_log && config.max_bytes != wanted.max_bytes {
        remarks
            .push(format!("{name:?} takes {} bytes, not {}", config.max_bytes, wanted.max_bytes));
    }
    if is_log && config.duplicate_window != wanted.duplicate_window {
        remarks.push(format!(
            "{name:?} recognises a copy for {}, not {}",
            Period(config.duplicate_window),
            Period(wanted.duplicate_window)
        ));
    }
    if config.num_replicas != wanted.num_replicas {
        remarks.push(format!(
            "{} servers keep {name:?}, not {}",
            config.num_replicas, wanted.num_replicas
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_do_not_compare_and_store_in_one_step_are_named() {
        for version in ["2.9.10", "2.9.20", "2.8.4", "1.4.1"] {
            let said = about_version(version, 3).unwrap();
            assert!(said.contains(version), "{said}");
            assert_eq!(about_version(version, 1), None, "one server keeps all");
        }
        for version in ["2.9.21", "2.9.22-beta", "2.10.0", "2.10.1-preview.2", "3.0.0", "", "dev"] {
            assert_eq!(about_version(version, 3), None, "{version}");
        }
    }
}
