//! Why a cluster cannot do something.

/// What cannot be done with NATS, in words for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClusterError {
    /// The section of the configuration, or a secret that it names.
    #[error("[cluster]: {0}")]
    Settings(String),
    /// It may work later.
    #[error("{0}")]
    Unavailable(String),
    /// Somebody has to change something.
    #[error("{0}")]
    Unusable(String),
}
