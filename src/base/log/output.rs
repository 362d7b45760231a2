//! Where lines go: standard error, or systemd's journal.
//!
//! It is used by one thread alone, which may wait here for as long as it takes.
//!
//! The one thing to know: standard error is written to without the lock of the standard library, so that
//! somebody who waits with that lock in hand does not stop the log, nor the log him.

use std::{
    io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};

use super::{
    journald::{Journald, datagram},
    line::Line,
};

/// How lines look on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// Readable text.
    Text {
        /// On a terminal.
        colour: bool,
    },
    /// JSON objects.
    Json,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Output {
    format: Format,
    journald: Option<Target>,
}

/// systemd's journal, and whether there is a connection to it.
#[derive(Debug)]
struct Target {
    socket: PathBuf,
    connected: Option<Journald>,
}

impl Output {
    /// Standard error.
    pub(super) fn new(format: Format) -> Self {
        Self { format, journald: None }
    }

    /// systemd's journal at that socket; while there is none (a container), standard error.
    pub(super) fn journald(socket: &Path, otherwise: Format) -> Self {
        let target = Target { socket: socket.to_owned(), connected: None };
        Self { format: otherwise, journald: Some(target) }
    }

    /// Writes a line, and waits for as long as that takes.
    pub(super) fn write(&mut self, line: &Line) -> io::Result<()> {
        if let Some(target) = &mut self.journald
            && target.send(&datagram(line)).is_ok()
        {
            return Ok(());
        }
        let mut text = match self.format {
            Format::Text { colour } => line.text(colour),
            Format::Json => line.json(),
        };
        text.push('\n');
        write_all(text.as_bytes())
    }
}

impl Target {
    /// Sends it; where the connection is one to a journal that has gone, over a new one.
    fn send(&mut self, datagram: &[u8]) -> io::Result<()> {
        if let Some(connected) = &self.connected {
            if connected.send(datagram).is_ok() {
                return Ok(());
            }
            self.connected = None;
        }
        let connected = Journald::connect(&self.socket)?;
        connected.send(datagram)?;
        self.connected = Some(connected);
        Ok(())
    }
}

/// Writes to standard error until all is written.
pub(super) fn write_all(mut bytes: &[u8]) -> io::Result<()> {
    let stderr = io::stderr();
    while !bytes.is_empty() {
        match rustix::io::write(stderr.as_fd(), bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            // Whoever started this program may have made the pipe one that does not block.
            Err(Errno::AGAIN) => {
                let mut pipe = [PollFd::from_borrowed_fd(stderr.as_fd(), PollFlags::OUT)];
                match poll(&mut pipe, None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use tracing::Level;

    use super::*;
    use crate::base::log::line::Fields;

    fn line(text: &str) -> Line {
        let mut fields = Fields::default();
        fields.message(text);
        Line::new(Level::INFO, "x", fields)
    }

    fn received(journal: &UnixDatagram) -> String {
        let mut datagram = vec![0; 256 * 1024];
        journal.set_nonblocking(true).unwrap();
        let length = journal.recv(&mut datagram).unwrap();
        let text = String::from_utf8_lossy(&datagram[..length]);
        text.lines().next().unwrap().to_owned()
    }

    #[test]
    fn a_journal_that_is_started_again_gets_the_lines() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let mut output = Output::journald(&socket, Format::Json);
        // Nobody is there: it goes to standard error.
        output.write(&line("nobody")).unwrap();
        let journal = UnixDatagram::bind(&socket).unwrap();
        output.write(&line("first")).unwrap();
        assert_eq!(received(&journal), "MESSAGE=first");
        drop(journal);
        std::fs::remove_file(&socket).unwrap();
        output.write(&line("between")).unwrap();
        let journal = UnixDatagram::bind(&socket).unwrap();
        output.write(&line("second")).unwrap();
        assert_eq!(received(&journal), "MESSAGE=second");
    }
}
