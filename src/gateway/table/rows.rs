//! The rows of the gateway's table: one for each connection, and one for each subscription.

use std::sync::Arc;

use serde::Serialize;

use crate::{
    astro::session::{Subscription, SubscriptionState},
    base::clock::{self, Moment, UnixMillis},
};

/// A connection, or the attempt to have one.
#[derive(Debug, Clone, Default)]
pub struct ConnectionRow {
    pub phase: Phase,
    pub since: UnixMillis,
    /// Since when it has not been open; `None` while it is.
    pub down_since: Option<UnixMillis>,
    /// Attempts since it last worked; none while it is open.
    pub attempts: u32,
    /// While it waits: when it is opened again.
    pub next_attempt: Option<UnixMillis>,
    /// Why it ended, or could not be opened, the last time.
    pub last_error: Option<String>,
    /// When that was.
    pub last_error_at: Option<UnixMillis>,
    pub last_frame: Option<Moment>,
    /// Why some of what comes cannot be relayed.
    pub unreadable: Option<String>,
    /// Topics of which messages come that belong to no channel because several come into question.
    pub unplaced: Vec<Arc<str>>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    #[default]
    Dialing,
    /// Waiting to be opened again.
    Waiting,
    Open,
    /// Open, and the connection that takes over is being opened.
    Moving,
}

impl Phase {
    /// Whether messages come.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Open | Self::Moving)
    }
}

#[derive(Debug, Clone)]
pub struct SubscriptionRow {
    pub wanted_since: UnixMillis,
    pub slot: Slot,
    pub state: SubscriptionState,
    pub confirmed_at: Option<UnixMillis>,
    /// When it was confirmed first, for measuring how long ago that was.
    pub(super) confirmed: Option<Moment>,
    /// Messages since then, as of a few seconds ago.
    pub messages: u64,
    /// It was asked for several times on its connection and never answered.
    pub(super) is_unanswered: bool,
    /// Its position in the configuration.
    pub(super) order: usize,
}

/// Where a subscription is placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    Unassigned,
    On(u64),
    /// On a connection that would not take it: it needs another.
    Overflow(u64),
    /// No connection has room for it.
    LeftOut,
}

impl Slot {
    pub fn connection(self) -> Option<u64> {
        match self {
            Self::On(number) | Self::Overflow(number) => Some(number),
            Self::Unassigned | Self::LeftOut => None,
        }
    }
}

impl SubscriptionRow {
    pub fn new(order: usize) -> Self {
        Self {
            wanted_since: clock::now(),
            slot: Slot::Unassigned,
            state: SubscriptionState::Waiting,
            confirmed_at: None,
            confirmed: None,
            messages: 0,
            is_unanswered: false,
            order,
        }
    }

    /// Whether an answer is still to come, or another one in a moment.
    pub fn is_waited_for(&self) -> bool {
        self.slot != Slot::LeftOut && self.state.is_waited_for() && !self.is_unanswered
    }

    /// It will be asked for on another connection.
    pub(super) fn start_over(&mut self, slot: Slot) {
        (self.slot, self.state, self.is_unanswered) = (slot, SubscriptionState::Waiting, false);
    }

    /// Its room: the canonical one where the gateway has named it.
    pub fn room<'a>(&'a self, subscription: &'a Subscription) -> Option<&'a Arc<str>> {
        match &self.state {
            SubscriptionState::Confirmed(Some(canonical)) => Some(canonical),
            _ => subscription.room.as_ref(),
        }
    }
}
