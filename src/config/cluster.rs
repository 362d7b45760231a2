//! Several relays as one: the section `[cluster]`.

use std::{path::PathBuf, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Period, SecretRef, Size};

/// Several relays as one, on NATS JetStream. All of them have the same channels, sinks and, but for
/// `member`, the same section `[cluster]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// The servers of NATS: `nats://a:4222`, `tls://b:4222`; several with commas between.
    pub url: String,
    /// What the names of its stream, its buckets and its subjects begin with (`[a-z0-9_-]`).
    #[serde(default = "default_name")]
    pub name: String,
    /// This relay's own name among the members (`[a-z0-9_-]`). Default: the host name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    /// How many members subscribe to each channel.
    #[serde(default = "default_copies")]
    pub copies: usize,
    /// How many servers of NATS keep a copy of the stream and the buckets.
    #[serde(default = "default_replicas")]
    pub replicas: usize,
    /// How long a member that is not heard of keeps its sinks, at most.
    #[serde(default = "default_lease")]
    pub lease: Period,
    /// The longest time that an event is kept in the stream.
    #[serde(default = "default_max_age")]
    pub max_age: Period,
    /// The most space that the events take in the stream.
    #[serde(default = "default_max_size")]
    pub max_size: Size,
    /// How long the stream recognises a copy of an event.
    #[serde(default = "default_duplicate_window")]
    pub duplicate_window: Period,
    /// The user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The user's password; also `password_file`, `password_env`, `password_credential`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<SecretRef>,
    /// A token; also `token_file`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<SecretRef>,
    /// The seed of an nkey; also `nkey_seed_file`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nkey_seed: Option<SecretRef>,
    /// The text of a `.creds` file; mostly as `credentials_file`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<SecretRef>,
    /// Whether TLS is required even where the URL does not say so.
    #[serde(default)]
    pub tls: bool,
    /// A PEM file of certificate authorities to trust instead of the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// A PEM file with our certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_cert_file: Option<PathBuf>,
    /// A PEM file with its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_key_file: Option<PathBuf>,
}

fn default_name() -> String {
    "astro".into()
}

fn default_copies() -> usize {
    2
}

fn default_replicas() -> usize {
    3
}

fn default_lease() -> Period {
    Period(Duration::from_secs(10))
}

fn default_max_age() -> Period {
    Period(Duration::from_hours(7 * 24))
}

fn default_max_size() -> Size {
    Size(1024 * 1024 * 1024)
}

fn default_duplicate_window() -> Period {
    Period(Duration::from_mins(10))
}
