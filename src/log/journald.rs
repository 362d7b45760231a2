//! systemd's journal, in its own protocol: one datagram for each line.
//!
//! The protocol is described in systemd's `docs/JOURNAL_NATIVE_PROTOCOL.md`: `KEY=value` and a line
//! end; a value with line ends in it is preceded by its length. Spans have no times here, only their
//! fields.
//!
//! The one thing to know: what `journalctl` and `systemctl status` show is `MESSAGE` alone. So the
//! fields stand in it, as on a terminal, and once more each under its own name (`F_SINK=home`), by which
//! they can be searched for: `journalctl -u astro-relay F_SINK=home`.

use std::{fmt, io, os::unix::net::UnixDatagram, path::Path};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
    span,
};
use tracing_subscriber::{Layer, layer::Context, registry::LookupSpan};

/// Where systemd listens.
pub(super) const SOCKET: &str = "/run/systemd/journal/socket";

/// The longest text of a line, of a field too. A datagram of twice that goes through with the kernel's
/// default buffer (208 KiB); more would need a file that is handed over.
const LONGEST: usize = 48 * 1024;

/// Sends each line to the journal.
#[derive(Debug)]
pub(super) struct Journald(UnixDatagram);

impl Journald {
    /// Connects to the socket there.
    pub(super) fn connect(socket: &Path) -> io::Result<Self> {
        let sender = UnixDatagram::unbound()?;
        sender.connect(socket)?;
        Ok(Self(sender))
    }
}

/// The fields of an event or a span.
#[derive(Debug, Default)]
struct Fields {
    message: String,
    /// `key=value`, each behind a space.
    text: String,
    pairs: Vec<(&'static str, String)>,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.put(field.name(), &format!("{value:?}"), value.to_owned());
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" {
            self.message = text;
        } else {
            self.put(field.name(), &text.clone(), text);
        }
    }
}

impl Fields {
    fn put(&mut self, name: &'static str, shown: &str, value: String) {
        for part in [" ", name, "=", shown] {
            self.text.push_str(part);
        }
        self.pairs.push((name, value));
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Journald {
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

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(outer) = span.extensions().get::<Fields>() {
                fields.text.push_str(&outer.text);
                fields.pairs.extend(outer.pairs.iter().cloned());
            }
        }
        // There is nowhere to tell that the log cannot be written.
        drop(self.0.send(&datagram(&fields, event.metadata())));
    }
}

fn datagram(fields: &Fields, metadata: &tracing::Metadata<'_>) -> Vec<u8> {
    let mut datagram = Vec::new();
    put(&mut datagram, "MESSAGE", &format!("{}{}", fields.message, fields.text));
    put(&mut datagram, "PRIORITY", priority(*metadata.level()));
    put(&mut datagram, "SYSLOG_IDENTIFIER", "astro-relay");
    put(&mut datagram, "TARGET", metadata.target());
    for (name, value) in &fields.pairs {
        if datagram.len() > LONGEST {
            break;
        }
        // Names of one's own must not meet those of the journal, nor begin with an underscore.
        put(&mut datagram, &format!("F_{}", name.replace('.', "_").to_uppercase()), value);
    }
    datagram
}

fn put(datagram: &mut Vec<u8>, key: &str, value: &str) {
    let value = value.get(..value.floor_char_boundary(LONGEST)).unwrap_or(value);
    datagram.extend_from_slice(key.as_bytes());
    if value.contains('\n') {
        datagram.push(b'\n');
        datagram.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        datagram.push(b'=');
    }
    datagram.extend_from_slice(value.as_bytes());
    datagram.push(b'\n');
}

/// syslog(3). INFO is what an administrator should see, so it is a notice above mere information.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "5",
        Level::DEBUG => "6",
        Level::TRACE => "7",
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    fn logged(log: impl FnOnce()) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let journal = UnixDatagram::bind(&path).unwrap();
        let layer = Journald::connect(&path).unwrap();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        journal.set_nonblocking(true).unwrap();
        let mut datagram = vec![0; 256 * 1024];
        let length = journal.recv(&mut datagram).unwrap();
        String::from_utf8_lossy(&datagram[..length]).into_owned()
    }

    #[test]
    fn the_line_says_what_the_fields_say() {
        let text = logged(|| {
            let _span = tracing::info_span!("link", number = 7).entered();
            tracing::warn!(sink = "home", error = %"broken pipe", "the sink is down");
        });
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "MESSAGE=the sink is down sink=\"home\" error=broken pipe number=7");
        assert_eq!(lines[1..3], ["PRIORITY=4", "SYSLOG_IDENTIFIER=astro-relay"]);
        for line in ["F_SINK=home", "F_ERROR=broken pipe", "F_NUMBER=7"] {
            assert!(lines.contains(&line), "{line} in {text}");
        }
    }

    #[test]
    fn a_line_end_begins_no_field() {
        let text = logged(|| tracing::info!(error = %"a\nPRIORITY=0", "bad"));
        let mut length = "bad error=a\nPRIORITY=0".len().to_le_bytes().to_vec();
        length.push(b'b');
        assert!(
            text.starts_with(&format!("MESSAGE\n{}", String::from_utf8_lossy(&length))),
            "{text:?}"
        );
    }

    #[test]
    fn a_line_that_is_too_long_is_cut_and_not_lost() {
        let long = "ü".repeat(100_000);
        let text = logged(|| tracing::info!(%long, more = 1, "bad"));
        assert!(text.starts_with("MESSAGE=bad long=ü") && text.len() < 2 * LONGEST + 1024);
    }
}
