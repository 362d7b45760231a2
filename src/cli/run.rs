//! `astro-relay run`: the daemon.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Done, Failed, Source, on_runtime, told_to_stop};
use crate::{
    metrics,
    relay::Relay,
    reload::Reloads,
    supervisor::Outcome,
    systemd::{self, Manager},
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
        let running = relay.run(stop.clone(), || manager.turning(&status));
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

/// Loads the configuration anew at every SIGHUP. Signals that come meanwhile count as one.
async fn reload_on(mut hangups: Signal, reloads: Option<Reloads>) -> std::convert::Infallible {
    while hangups.recv().await.is_some() {
        if let Some(reloads) = &reloads {
            // What became of it is in the log; `None` is a relay that is stopping.
            drop(reloads.ask("signal").await);
        }
    }
    std::future::pending().await
}
