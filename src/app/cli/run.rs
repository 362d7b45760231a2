//! `astro-relay run`: the daemon.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Done, Failed, Source, on_runtime, told_to_stop};
use crate::{
    app::relay::Relay,
    base::{
        metrics,
        supervisor::Outcome,
        systemd::{self, Manager},
    },
    gateway::status::{Pages, Standing},
    http::Reloads,
};

/// Worker threads: one for the gateway's socket and one for the sinks is what a small box has.
const THREADS: usize = 2;

pub(super) fn run(source: &Source) -> Done {
    let loaded = source.load_with_file()?;
    let (log, sources) = (loaded.config.log.clone(), source.sources());
    on_runtime(THREADS, &log, async move {
        // Before anything else: by default these signals end the process.
        let (hangups, told) = (signal(SignalKind::hangup())?, told_to_stop()?);
        for warning in &loaded.warnings {
            warn!(%warning, "about the configuration");
        }
        let relay = Relay::reloadable(loaded, sources, metrics::install()).await?;
        let (status, reloads) = (relay.status(), relay.reloads());
        let stop = CancellationToken::new();
        let mut manager = Manager::new();
        info!(version = env!("CARGO_PKG_VERSION"), "astro-relay runs");
        let waiting = async {
            tokio::select! {
                () = told => {}
                never = reload_on(hangups, reloads) => match never {},
            }
            info!("stopping");
            stop.cancel();
        };
        let running = relay.run(stop.clone(), || {
            let (answered, line) = status.look(|pages| (has_answered(pages), line(pages)));
            manager.on_tick(answered, &line);
        });
        tokio::pin!(running, waiting);
        let outcome = tokio::select! {
            outcome = &mut running => outcome,
            () = &mut waiting => {
                systemd::stopping();
                running.await
            }
        };
        match outcome {
            Outcome::Stopped => Ok(()),
            Outcome::GaveUp(task) => {
                Err(Failed::new(Failed::SOFTWARE, format!("gave up: {task} has failed too often")))
            }
        }
    })
}

/// Whether the gateway has answered, or there is none to ask.
fn has_answered(pages: &Pages) -> bool {
    pages.connections.is_empty() || pages.connections.values().any(|page| page.state.is_open())
}

/// `3 of 3 subscriptions, 2 of 2 sinks up`, and the first thing that is wrong.
fn line(pages: &Pages) -> String {
    let confirmed = pages
        .subscriptions()
        .filter(|subscription| subscription.state == Standing::Confirmed)
        .count();
    let up = pages.sinks.values().filter(|sink| sink.state == "up").count();
    let mut line = format!(
        "{confirmed} of {} subscriptions, {up} of {} sinks up",
        pages.subscriptions().count(),
        pages.sinks.len()
    );
    if let Some(reason) = pages.why().next() {
        line = format!("{line}; {reason}");
    }
    line.replace('\n', " ")
}

/// Loads the configuration anew at every SIGHUP. Signals that come meanwhile count as one.
async fn reload_on(mut hangups: Signal, reloads: Option<Reloads>) -> std::convert::Infallible {
    while hangups.recv().await.is_some() {
        if let Some(reloads) = &reloads {
            // What became of it is in the log; `None` is a relay that is stopping.
            drop(reloads.request("signal").await);
        }
    }
    std::future::pending().await
}
