//! Logging: text on a terminal, systemd's journal under systemd, JSON lines otherwise.
//!
//! The one thing to know: libraries that could write a token into a line (the WebSocket client logs
//! its requests) are held at a level where they do not, whatever filter is configured.

use std::io::IsTerminal;

use tracing_subscriber::{
    EnvFilter, Layer as _, Registry, layer::SubscriberExt, util::SubscriberInitExt,
};

use crate::config::{Log, LogFormat};

/// Libraries whose finer levels show requests with their tokens, or every frame.
const QUIET: &[&str] =
    &["tungstenite=info", "tokio_tungstenite=info", "hyper=info", "reqwest=info"];

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

/// Installs the subscriber of this process. Doing it twice keeps the first.
pub fn install(config: &Log) -> Result<(), LogError> {
    let filter = filter(&config.level)?;
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
        LogFormat::Journald => match tracing_journald::layer() {
            Ok(layer) => layer.with_filter(filter).boxed(),
            // No socket (a container): text is better than nothing.
            Err(_) => text().with_filter(filter).boxed(),
        },
        LogFormat::Text | LogFormat::Auto => text().with_filter(filter).boxed(),
    };
    // Only a second call in one process fails, and then the first one serves.
    drop(tracing_subscriber::registry().with(layer).try_init());
    Ok(())
}
