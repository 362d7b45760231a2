//! Notifies the service manager: ready, stopping, alive, and a line of status.
//!
//! Ready means that the journal is open and the gateway has answered; if the gateway does not answer
//! within a grace time the service is ready all the same, degraded, and the status line says so: a
//! gateway that is down must not make the service manager end the relay.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::Instant;

/// How long the gateway may take before the service counts as ready without it.
const GRACE: Duration = Duration::from_secs(15);

/// Notifies the service manager; does nothing where there is none.
#[derive(Debug)]
pub struct Manager {
    started: Instant,
    ready: bool,
    status: String,
    /// Half of the watchdog's period, and when it was fed last.
    watchdog: Option<(Duration, Instant)>,
}

impl Manager {
    pub(crate) fn new() -> Self {
        let watchdog = sd_notify::watchdog_enabled().map(|period| (period / 2, Instant::now()));
        Self { started: Instant::now(), ready: false, status: String::new(), watchdog }
    }

    /// Called at each turn of the supervisor: feeds the watchdog, and reports what has changed. `answered`:
    /// the gateway has answered. `line`: the status in one line.
    pub(crate) fn on_tick(&mut self, answered: bool, line: &str) {
        let now = Instant::now();
        if let Some((half, fed)) = &mut self.watchdog
            && now >= *fed + *half / 2
        {
            *fed = now;
            notify(&[NotifyState::Watchdog]);
        }
        if !self.ready && (answered || now >= self.started + GRACE) {
            self.ready = true;
            notify(&[NotifyState::Ready]);
        }
        if self.ready && line != self.status {
            notify(&[NotifyState::Status(line)]);
            line.clone_into(&mut self.status);
        }
    }
}

pub(crate) fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// The configuration is being reloaded.
pub(crate) fn reloading() {
    // The service manager orders these by time; without one, the old form does.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(_) => notify(&[NotifyState::Reloading]),
    }
}

/// It was, or is rejected: either way the relay goes on.
pub(crate) fn reloaded() {
    notify(&[NotifyState::Ready]);
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager cannot be notified");
    }
}
