//! Whether a task beside the gateway works, as `/status` and `/readyz` show it.

use std::sync::{Arc, Mutex};

use super::status::Status;
use crate::base::sync::lock;

/// The health of one task. It is taken off the page when the last of those who report it is gone.
#[derive(Debug)]
pub struct TaskHealth {
    status: Arc<Status>,
    task: String,
    shown: Mutex<Option<String>>,
}

impl TaskHealth {
    /// That of the task of this name, of which nothing is shown yet.
    pub fn new(status: Arc<Status>, task: String) -> Self {
        Self { status, task, shown: Mutex::default() }
    }

    /// It does not work, for this reason, or (`None`) it works.
    pub fn report(&self, reason: Option<&str>) {
        let mut shown = lock(&self.shown);
        if shown.as_deref() != reason {
            self.status.task(&self.task, reason);
            *shown = reason.map(str::to_owned);
        }
    }
}

impl Drop for TaskHealth {
    fn drop(&mut self) {
        self.status.task(&self.task, None);
    }
}
