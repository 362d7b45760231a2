//! `astro-relay run`: the daemon.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Done, Failed, Source, on_runtime, termination};
use crate::{
    app::relay::Relay,
    base::{
        metrics,
        supervisor::Outcome,
        systemd::{self, Manager},
    },
    cluster::Cluster,
    gateway::table,
    http::{Reloads, health::Health, relay_status::Snapshot},
};

/// Worker threads: one for the gateway's socket and one for the sinks is what a small box has.
const THREADS: usize = 2;

pub(super) fn run(source: &Source) -> Done {
    let loaded = source.load_with_file()?;
    let (log, sources) = (loaded.config.log.clone(), source.sources());
    on_runtime(THREADS, &log, async move {
        // Before anything else: by default these signals end the process.
        let (hangups, ended) = (signal(SignalKind::hangup())?, termination()?);
        for warning in &loaded.warnings {
            warn!(%warning, "about the configuration");
        }
        let relay = Relay::reloadable(loaded, sources, metrics::install()).await?;
        let (status, reloads) = (relay.status(), relay.reloads());
        let stop = CancellationToken::new();
        let mut manager = Manager::new();
        info!(version = env!("CARGO_PKG_VERSION"), "astro-relay started");
        let waiting = async {
            tokio::select! {
                () = ended => {}
                never = reload_on(hangups, reloads) => match never {},
            }
            info!("stopping");
            stop.cancel();
        };
        let running = relay.run(stop.clone(), || {
            // Asked first: what is wanted then is in the snapshot.
            let is_known = is_known(status.cluster());
            let snapshot = status.snapshot();
            manager.on_tick(
                is_known && has_answered(&snapshot.gateway),
                &line(&snapshot, &status.health(&snapshot)),
            );
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

/// Whether it is known what is wanted of the gateway: in a cluster that waits for the other members.
fn is_known(cluster: Option<&Cluster>) -> bool {
    cluster.is_none_or(Cluster::has_assigned)
}

/// Whether the gateway has answered, or nothing is wanted of it: so with a member of a cluster that holds no
/// channel.
fn has_answered(gateway: &table::State) -> bool {
    gateway.subscriptions.is_empty() || gateway.open_connections() > 0
}

/// `working: 3 of 3 subscriptions, 2 of 2 sinks up`, and the first thing that is wrong.
fn line(snapshot: &Snapshot, health: &Health) -> String {
    let subscriptions = &snapshot.gateway.subscriptions;
    let confirmed = subscriptions.values().filter(|row| row.state.is_confirmed()).count();
    let sinks = &snapshot.sinks.sinks;
    let up = sinks.values().filter(|sink| sink.state == "up").count();
    let mut line = format!(
        "{}: {confirmed} of {} subscriptions, {up} of {} sinks up",
        health.state.as_str(),
        subscriptions.len(),
        sinks.len()
    );
    if let Some(reason) = health.summary() {
        line = format!("{line}; {reason}");
    }
    line.replace('\n', " ")
}

/// Reloads the configuration at every SIGHUP. Signals that come meanwhile count as one.
async fn reload_on(mut hangups: Signal, reloads: Option<Reloads>) -> std::convert::Infallible {
    while hangups.recv().await.is_some() {
        if let Some(reloads) = &reloads {
            // What became of it is in the log; `None` is a relay that is stopping.
            drop(reloads.request("signal").await);
        }
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::{
        astro::session::Subscription,
        base::tls,
        cluster::report::Configured,
        config::{self, TokenType},
        gateway::table::{ConnectionRow, Phase, SubscriptionRow},
    };

    #[tokio::test]
    async fn a_member_does_not_know_its_channels_before_it_was_assigned_some() {
        tls::install_provider();
        // Nobody listens there.
        let settings = json!({ "url": "nats://127.0.0.1:1", "member": "a" });
        let settings: config::Cluster = serde_json::from_value(settings).unwrap();
        let cluster = Box::pin(Cluster::begin(&settings, Configured::default())).await.unwrap();
        assert!(!is_known(Some(&cluster)));
        assert!(is_known(None), "a relay of its own knows them at once");
    }

    #[test]
    fn the_gateway_has_not_answered_before_a_connection_is_open() {
        let mut gateway = table::State::default();
        assert!(has_answered(&gateway), "nothing is wanted");
        let tips = Subscription {
            channel: "main".into(),
            topic: "channel.tips".into(),
            room: None,
            token_type: TokenType::Jwt,
            token_room: None,
        };
        gateway.subscriptions.insert(Arc::new(tips), SubscriptionRow::new(0));
        assert!(!has_answered(&gateway), "there is no connection yet");
        for (phase, answered) in [
            (Phase::Dialing, false),
            (Phase::Waiting, false),
            (Phase::Open, true),
            (Phase::Moving, true),
        ] {
            gateway.connections.insert(0, ConnectionRow { phase, ..ConnectionRow::default() });
            assert_eq!(has_answered(&gateway), answered, "{phase:?}");
        }
    }
}
