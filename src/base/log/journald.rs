//! systemd's journal, in its own protocol: one datagram for each line.
//!
//! The protocol is described in systemd's `docs/JOURNAL_NATIVE_PROTOCOL.md`: `KEY=value` and a line
//! end; a value with line ends in it is preceded by its length. Spans have no times here, only their
//! fields.
//!
//! The one thing to know: what `journalctl` and `systemctl status` show is `MESSAGE` alone. So the
//! fields stand in it, as on a terminal, and once more each under its own name (`F_SINK=home`), by which
//! they can be searched for: `journalctl -u astro-relay F_SINK=home`.

use std::{io, os::unix::net::UnixDatagram, path::Path};

use tracing::Level;

use super::line::Line;

/// Where systemd listens.
pub(super) const SOCKET: &str = "/run/systemd/journal/socket";

/// The longest text of a line, of a field too. A datagram of twice that goes through with the kernel's
/// default buffer (208 KiB); more would need a file that is handed over.
const LONGEST: usize = 48 * 1024;

/// A connection to the journal.
#[derive(Debug)]
pub(super) struct Journald(UnixDatagram);

impl Journald {
    /// Connects to the socket there.
    pub(super) fn connect(socket: &Path) -> io::Result<Self> {
        let sender = UnixDatagram::unbound()?;
        sender.connect(socket)?;
        Ok(Self(sender))
    }

    /// Sends a line, and waits where the journal does not take it.
    pub(super) fn send(&self, datagram: &[u8]) -> io::Result<()> {
        loop {
            match self.0.send(datagram) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                sent => return sent.map(drop),
            }
        }
    }
}

/// A line as the journal takes it.
pub(super) fn datagram(line: &Line) -> Vec<u8> {
    let mut datagram = Vec::new();
    put(&mut datagram, "MESSAGE", &line.message());
    put(&mut datagram, "PRIORITY", priority(line.level()));
    put(&mut datagram, "SYSLOG_IDENTIFIER", "astro-relay");
    put(&mut datagram, "TARGET", line.target());
    for (name, value) in line.values() {
        if datagram.len() > LONGEST {
            break;
        }
        // Names of one's own must not meet those of the journal, nor begin with an underscore.
        put(&mut datagram, &format!("F_{}", name.replace('.', "_").to_uppercase()), &value);
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
    use std::sync::Arc;

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;
    use crate::base::log::{Lines, line::LINE, queue::Queue};

    fn logged(log: impl FnOnce()) -> String {
        let queue = Arc::new(Queue::default());
        let layer = Lines(Arc::clone(&queue));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        String::from_utf8(datagram(&queue.take().unwrap())).unwrap()
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
        assert!(text.starts_with("MESSAGE=bad error=a PRIORITY=0\nPRIORITY=5\n"), "{text:?}");
        let mut whole = Vec::new();
        put(&mut whole, "KEY", "a\nPRIORITY=0");
        let mut expected = b"KEY\n".to_vec();
        expected.extend_from_slice(&12_u64.to_le_bytes());
        expected.extend_from_slice(b"a\nPRIORITY=0\n");
        assert_eq!(whole, expected);
    }

    #[test]
    fn a_line_that_is_too_long_is_cut_and_not_lost() {
        let long = "ü".repeat(100_000);
        let text = logged(|| tracing::info!(%long, more = 1, "bad"));
        assert!(text.starts_with("MESSAGE=bad long=ü") && text.len() < 2 * LINE, "{}", text.len());
        assert!(text.contains("F_MORE=1"), "{text}");
    }
}
