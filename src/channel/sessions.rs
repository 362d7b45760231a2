//! How the session of each channel is, for the status page.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use serde::Serialize;

use crate::base::{clock::UnixMillis, sync::lock};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SessionStatus {
    /// How many elements are known.
    pub elements: usize,
    pub fetched_at: Option<UnixMillis>,
    /// Since when it has counted.
    pub last_reset: Option<UnixMillis>,
    pub created_at: Option<UnixMillis>,
    pub provider: Option<String>,
    /// Why it could not be fetched the last time.
    pub error: Option<String>,
    /// Whether that is more than a hiccup.
    #[serde(skip)]
    pub is_failing: bool,
    /// How many values were left out of it: too many or too large ones.
    #[serde(skip_serializing_if = "is_zero")]
    pub left_out: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks by reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// By label.
#[derive(Debug, Default)]
pub struct Sessions(Mutex<BTreeMap<Arc<str>, SessionStatus>>);

impl Sessions {
    pub(super) fn set(&self, label: &Arc<str>, status: Option<SessionStatus>) {
        let mut sessions = lock(&self.0);
        match status {
            Some(status) => sessions.insert(Arc::clone(label), status),
            None => sessions.remove(label),
        };
    }

    pub fn snapshot(&self) -> BTreeMap<String, SessionStatus> {
        lock(&self.0).iter().map(|(label, status)| (label.to_string(), status.clone())).collect()
    }
}
