//! Logging: text on a terminal, systemd's journal under systemd, JSON lines otherwise.
//!
//! The one thing to know: libraries that could write a token into a line (the WebSocket client logs
//! its requests) are held at a level where they do not, whatever filter is configured; and one that
//! warns of what is done on purpose, at a level where it does not.

mod journald;

use std::{io::IsTerminal, path::Path, sync::OnceLock};

use tracing_subscriber::{
    EnvFilter, Layer as _, Registry, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

use crate::config::{Log, LogFormat};

/// Libraries whose finer levels show requests with their tokens, or every frame. The MQTT client's state
/// warns of each answer that is no plain yes: the sink says what those mean, and the answer to its
/// barrier, one for every batch of QoS 0, is always such a one.
const QUIET: &[&str] = &[
    "tungstenite=info",
    "tokio_tungstenite=info",
    "hyper=info",
    "reqwest=info",
    "rumqttc::state=error",
];

/// The filter cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("log.level {level:?} is no filter: {reason}")]
pub struct LogError {
    level: String,
    reason: String,
}

/// The filter for a configured level.
pub fn filter(level: &str) -> Result<EnvFilter, LogError> {
    let failed = |reason: String| LogError { level: level.to_owned(), reason };
    let mut filter = EnvFilter::try_new(level).map_err(|error| failed(error.to_string()))?;
    for quiet in QUIET {
        let directive = quiet.parse().map_err(|_| failed((*quiet).to_owned()))?;
        filter = filter.add_directive(directive);
    }
    Ok(filter)
}

/// The filter of this process's log, for changing it: there is one log, and one filter.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Changes the level while the process runs.
pub fn set_level(level: &str) -> Result<(), LogError> {
    let filter = filter(level)?;
    // Without a subscriber of ours (in tests) there is nothing to change.
    let Some(handle) = FILTER.get() else { return Ok(()) };
    let failed = |reason: String| LogError { level: level.to_owned(), reason };
    handle.reload(filter).map_err(|error| failed(error.to_string()))
}

/// Installs the subscriber of this process. Doing it twice keeps the first.
pub fn install(config: &Log) -> Result<(), LogError> {
    let (filter, handle) = reload::Layer::new(filter(&config.level)?);
    let format = match config.format {
        LogFormat::Auto if std::io::stderr().is_terminal() => LogFormat::Text,
        LogFormat::Auto if crate::systemd::is_journal() => LogFormat::Journald,
        LogFormat::Auto => LogFormat::Json,
        chosen => chosen,
    };
    let text = || {
        tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_target(false)
            .with_ansi(std::io::stderr().is_terminal())
    };
    let layer: Box<dyn tracing_subscriber::Layer<Registry> + Send + Sync> = match format {
        LogFormat::Json => tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_writer(std::io::stderr)
            .with_filter(filter)
            .boxed(),
        LogFormat::Journald => match journald::Journald::connect(Path::new(journald::SOCKET)) {
            Ok(layer) => layer.with_filter(filter).boxed(),
            // No socket (a container): text is better than nothing.
            Err(_) => text().with_filter(filter).boxed(),
        },
        LogFormat::Text | LogFormat::Auto => text().with_filter(filter).boxed(),
    };
    // Only a second call in one process fails, and then the first one serves.
    if tracing_subscriber::registry().with(layer).try_init().is_ok() {
        drop(FILTER.set(handle));
    }
    Ok(())
}
