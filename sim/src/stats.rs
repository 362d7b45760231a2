//! What has happened in a simulation, in numbers.

use serde::Serialize;

/// What has happened so far, in numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Connections that are open.
    pub open: u64,
    /// Connections that were opened.
    pub opened: u64,
    /// Upgrades that were refused.
    pub refused: u64,
    /// Commands that came.
    pub commands: u64,
    /// Commands that came too fast.
    pub rate_limited: u64,
    /// Messages that were published.
    pub published: u64,
    /// Messages that were handed to connections; one message to two connections counts twice.
    pub sent: u64,
    /// Pings that were sent.
    pub pings: u64,
    /// Pongs that came.
    pub pongs: u64,
    /// Reconnect tokens that were given out.
    pub tokens_issued: u64,
    /// Reconnect tokens that were accepted.
    pub tokens_used: u64,
    /// Reconnect tokens that were refused.
    pub tokens_refused: u64,
    /// Requests to the REST API.
    pub rest_requests: u64,
    /// Access tokens that were given for a refresh token.
    pub refreshes: u64,
}
