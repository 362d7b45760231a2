//! `astro-relay run`: the daemon.

use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{Done, Failed, Source, on_runtime, told_to_stop};
use crate::{
    metrics,
    relay::Relay,
    supervisor::Outcome,
    systemd::{self, Manager},
};

/// Worker threads: one for the gateway's socket and one for the sinks is what a small box has.
const THREADS: usize = 2;

pub(super) fn run(source: &Source) -> Done {
    let config = source.load()?;
    let log = config.log.clone();
    on_runtime(THREADS, &log, async move {
        let relay = Relay::new(config, metrics::install()).await?;
        let status = relay.status();
        let stop = CancellationToken::new();
        let mut manager = Manager::new();
        info!(version = env!("CARGO_PKG_VERSION"), "astro-relay runs");
        let waiting = async {
            let told = told_to_stop().await;
            info!("stopping");
            stop.cancel();
            told
        };
        let running = relay.run(stop.clone(), || manager.turning(|| status.pages()));
        tokio::pin!(running, waiting);
        let outcome = tokio::select! {
            outcome = &mut running => outcome,
            told = &mut waiting => {
                told?;
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
