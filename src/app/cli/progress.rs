//! How far something is that takes a while: one line on standard error, where that is a terminal.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use tokio::time::Instant;

use super::out;

/// How often the line is drawn.
const EVERY: Duration = Duration::from_millis(200);

/// To the beginning of the line, and clear it.
const AGAIN: &str = "\r\x1b[K";

#[derive(Debug)]
pub(super) struct Progress {
    /// When the line was drawn; nothing where nobody would see it.
    drawn: Option<Instant>,
    shown: bool,
}

impl Progress {
    /// Of something that begins now. What ends soon shows nothing.
    pub(super) fn new() -> Self {
        // Events that scroll by on the same terminal show how far it is themselves.
        let visible = io::stderr().is_terminal() && !out::is_terminal();
        Self { drawn: visible.then(Instant::now), shown: false }
    }

    /// The same beside output that is no more than a line.
    pub(super) fn beside_a_line() -> Self {
        Self { drawn: io::stderr().is_terminal().then(Instant::now), shown: false }
    }

    pub(super) fn show(&mut self, text: impl FnOnce() -> String) {
        let Some(drawn) = self.drawn.filter(|drawn| drawn.elapsed() >= EVERY) else { return };
        self.drawn = Some(drawn + drawn.elapsed());
        self.shown = true;
        let mut aside = out::conversation();
        // That nobody reads it is no reason to fail.
        drop(aside.control(AGAIN).and_then(|()| write!(aside, "{}", text())));
        drop(aside.flush());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            let mut aside = out::conversation();
            drop(aside.control(AGAIN).and_then(|()| aside.flush()));
        }
    }
}
