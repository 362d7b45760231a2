//! Logging to standard error: text on a terminal, text with a priority for systemd's journal under
//! systemd, JSON lines otherwise.
//!
//! - [`line`] makes a line out of an event: bounded, and without characters that do something to a
//!   terminal or a reader's eye.
//! - [`queue`] holds lines until a thread has written them, and drops them where that thread does not
//!   get on: nobody who logs ever waits for whoever reads the log.
//! - [`output`] writes.
//!
//! Two promises hold whatever filter is configured: of a library nothing finer than INFO is logged, for
//! many write requests, frames and commands there, with the tokens in them; and a log that cannot be
//! written stops nothing.

mod line;
mod output;
mod queue;

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    io::IsTerminal,
    panic::PanicHookInfo,
    sync::{Arc, OnceLock},
    time::Duration,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing::{Event, Level, Metadata, Subscriber, span};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{FilterExt as _, LevelFilter, filter_fn},
    layer::{Context, SubscriberExt},
    registry::LookupSpan,
    reload,
    util::SubscriberInitExt,
};

use crate::base::{environment::environment, terminal::has_colours};

use self::{
    line::{Fields, Format, Line},
    queue::Queue,
};

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal; for the journal under systemd; JSON otherwise.
    #[default]
    Auto,
    /// Readable text.
    Text,
    /// One JSON object a line.
    Json,
    /// Text for systemd's journal: each line begins with its priority, as in `<4>`.
    Journald,
}

/// What may be logged of a library, by the prefix of its target; the first that fits counts. The MQTT
/// client's state warns of each answer that is no plain yes: the sink says what those mean, and the
/// answer to its barrier, one for every batch of QoS 0, is always such a one.
const CEILINGS: &[(&str, LevelFilter)] = &[
    ("astro_relay", LevelFilter::TRACE),
    ("rumqttc::state", LevelFilter::ERROR),
    // It does not say whose connection it is; whoever connects gets the same as an error or an event, and does.
    ("async_nats::connector", LevelFilter::OFF),
    // Each of its events is one that the sink reports in its own words.
    ("async_nats", LevelFilter::WARN),
];

/// What may be logged of all other libraries.
const CEILING: LevelFilter = LevelFilter::INFO;

/// The filter cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("log.level {level:?} is no filter: {reason}")]
pub struct LogError {
    level: String,
    reason: String,
}

/// The filter for a configured level.
pub fn filter(level: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::try_new(level)
        .map_err(|error| LogError { level: level.to_owned(), reason: error.to_string() })
}

/// The log of this process: there is one.
struct Installed {
    filter: reload::Handle<EnvFilter, Registry>,
    queue: Arc<Queue>,
}

static INSTALLED: OnceLock<Installed> = OnceLock::new();

/// Changes the level while the process runs.
pub(crate) fn set_level(level: &str) -> Result<(), LogError> {
    let filter = filter(level)?;
    // Without a subscriber of ours (in tests) there is nothing to change.
    let Some(installed) = INSTALLED.get() else { return Ok(()) };
    let failed = |reason: String| LogError { level: level.to_owned(), reason };
    installed.filter.reload(filter).map_err(|error| failed(error.to_string()))
}

/// Installs the log of this process, and has panics logged there. Doing it twice keeps the first.
pub fn install(level: &str, format: LogFormat) -> Result<(), LogError> {
    let (filter, handle) = reload::Layer::new(filter(level)?);
    let terminal = std::io::stderr().is_terminal();
    let colour = has_colours(terminal);
    let format = match format {
        LogFormat::Text => Format::Text { colour },
        LogFormat::Auto if terminal => Format::Text { colour },
        LogFormat::Journald => Format::Journal,
        LogFormat::Auto if is_journal() => Format::Journal,
        LogFormat::Auto | LogFormat::Json => Format::Json,
    };
    let queue = Arc::new(Queue::default());
    let layer = Lines(Arc::clone(&queue));
    let layer = layer.with_filter(filter.and(filter_fn(may_be_logged)));
    // Only a second call in one process fails, and then the first one serves.
    if tracing_subscriber::registry().with(layer).try_init().is_ok() {
        // What logs by the crate `log` is a library, and the gateway's writes several lines a frame: without
        // this each of them would be looked at, which is a tenth of the processor time of an event.
        log::set_max_level(log::LevelFilter::Info);
        queue::start(&queue, format);
        drop(INSTALLED.set(Installed { filter: handle, queue }));
        std::panic::set_hook(Box::new(log_panic));
    }
    Ok(())
}

/// Whether standard error is systemd's journal: the variable names the device and inode of the stream
/// that systemd has made (systemd.exec(5)), and outlives a redirection.
fn is_journal() -> bool {
    environment().get("JOURNAL_STREAM").is_some_and(|stream| {
        rustix::fs::fstat(std::io::stderr())
            .is_ok_and(|stderr| *stream == format!("{}:{}", stderr.st_dev, stderr.st_ino))
    })
}

/// Waits until all lines are written, but not longer than that: whoever reads the log may have stopped.
pub fn flush(limit: Duration) {
    if let Some(installed) = INSTALLED.get() {
        installed.queue.flush(limit);
    }
}

/// Whether an event or a span of that origin may be logged, whatever the filter says.
fn may_be_logged(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    let ceiling = CEILINGS.iter().find(|(prefix, _)| is_within(target, prefix));
    *metadata.level() <= ceiling.map_or(CEILING, |(_, ceiling)| *ceiling)
}

/// Whether a target is that module or one inside it.
fn is_within(target: &str, module: &str) -> bool {
    target.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// A panic is logged like anything else: the default would write to standard error, and wait for it.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let Some(installed) = INSTALLED.get() else { return };
    let mut fields = Fields::default();
    if let Some(at) = panic.location() {
        fields.add("location", format!("{}:{}", at.file(), at.line()));
    }
    fields.add("thread", std::thread::current().name().unwrap_or("unnamed"));
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        fields.add("backtrace", backtrace.to_string());
    }
    fields.message(&format!("panic: {}", panic.payload_as_str().unwrap_or("without a text")));
    installed.queue.put(Line::new(Level::ERROR, module_path!(), fields));
}

/// Makes lines, and puts them into the queue.
#[derive(Debug)]
struct Lines(Arc<Queue>);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Lines {
    fn on_new_span(
        &self,
        attributes: &span::Attributes<'_>,
        id: &span::Id,
        context: Context<'_, S>,
    ) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        values.record(&mut fields);
        if let Some(span) = context.span(id)
            && let Some(known) = span.extensions_mut().get_mut::<Fields>()
        {
            known.append(&fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        let mut line = Line::new(*metadata.level(), metadata.target(), fields);
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(fields) = span.extensions().get::<Fields>() {
                line.inside(span.name(), fields);
            }
        }
        self.0.put(line);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// What of these lines reaches the queue, with that filter.
    fn logged(level: &str, log: impl FnOnce()) -> Vec<String> {
        let queue = Arc::new(Queue::default());
        let filter = filter(level).unwrap().and(filter_fn(may_be_logged));
        let layer = Lines(Arc::clone(&queue)).with_filter(filter);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        let mut lines = Vec::new();
        while let Some(line) = queue.take() {
            lines.push(line.format(Format::Text { colour: false }));
        }
        lines
    }

    #[test]
    fn no_filter_opens_the_finer_levels_of_a_library() {
        // Whether a callsite is of interest is cached across threads.
        static ALONE: Mutex<()> = Mutex::new(());
        let _alone = ALONE.lock();
        for level in [
            "trace",
            "tungstenite=trace",
            "tungstenite::protocol=trace",
            "tungstenite::protocol[{a=1}]=trace",
            "info,rumqttc=trace,rumqttc::state=trace,async_nats=trace,hyper=debug,h2=trace",
            "rustls=trace,reqwest::connect=trace,redis=trace,hyper_util::client=trace,log=trace",
        ] {
            let lines = logged(level, || {
                tracing::trace!(target: "tungstenite::protocol", "canary");
                tracing::debug!(target: "tungstenite::protocol", "canary");
                tracing::debug!(target: "hyper::proto", "canary");
                tracing::trace!(target: "h2", "canary");
                tracing::trace!(target: "rustls::client", "canary");
                tracing::debug!(target: "async_nats::connection", "canary");
                tracing::warn!(target: "rumqttc::state", "canary");
                tracing::error!(target: "async_nats::connector", "canary");
                tracing::trace!(target: "redis", "canary");
                tracing::debug!(target: "reqwest::connect", "canary");
                tracing::trace!(target: "log", "canary");
                tracing::trace!(target: "astro_relayed", "canary");
            });
            assert!(lines.is_empty(), "{level}: {lines:?}");
        }
        let ours = || {
            tracing::trace!(target: "astro_relay::sink", "finely");
            tracing::trace!(target: "astro_relay", "finely");
            tracing::info!(target: "hyper", "finely");
        };
        assert_eq!(logged("trace", ours).len(), 3);
        assert_eq!(logged("astro_relay::sink=trace", ours).len(), 1);
        assert_eq!(logged("off", ours).len(), 0);
    }
}
