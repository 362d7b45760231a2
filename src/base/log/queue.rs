//! Lines on their way to whoever reads the log, and the thread that writes them.
//!
//! Whoever reads may have stopped (Ctrl-S on a terminal, a log driver that blocks, a journal that
//! hangs): then the thread waits, the queue fills, and lines are dropped and counted. When it flows
//! again, a line says how many.
//!
//! Nobody but the thread ever waits. A line that does not fit is dropped at once.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tracing::Level;

use super::{
    line::{Fields, Format, Line},
    output::write_all,
};
use crate::base::{metrics, sync::lock};

/// Bytes of lines that wait: a burst of some thousand.
const WAITING: usize = 1024 * 1024;

#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<Line>,
    bytes: usize,
    /// Dropped lines that no line has reported yet.
    dropped: u64,
    /// Whether the thread has a line in its hands.
    writing: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Counters and whole lines: nothing is half done in between.
        lock(&self.state)
    }

    /// Puts a line in, or drops it.
    pub(super) fn put(&self, line: Line) {
        let bytes = line.bytes();
        let mut state = self.lock();
        if state.bytes + bytes > WAITING {
            state.dropped += 1;
            drop(state);
            metrics::add(metrics::LOG_LINES_DROPPED, 1);
            return;
        }
        state.bytes += bytes;
        state.lines.push_back(line);
        drop(state);
        self.changed.notify_all();
    }

    /// Takes the oldest line out.
    #[cfg(test)]
    pub(super) fn take(&self) -> Option<Line> {
        let mut state = self.lock();
        let line = state.lines.pop_front()?;
        state.bytes -= line.bytes();
        Some(line)
    }

    /// Waits until everything is written, but not longer than that.
    pub(super) fn flush(&self, limit: Duration) {
        let waits = |state: &mut State| state.writing || !state.lines.is_empty();
        drop(self.changed.wait_timeout_while(self.lock(), limit, waits));
    }

    fn write(&self, format: Format) {
        loop {
            let mut state = self.lock();
            state.writing = false;
            self.changed.notify_all();
            let idle = |state: &mut State| state.lines.is_empty();
            let mut state =
                self.changed.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner);
            let Some(line) = state.lines.pop_front() else { continue };
            state.bytes -= line.bytes();
            state.writing = true;
            drop(state);
            let written = write(&line, format).is_ok();
            self.written(written, format);
        }
    }

    /// A line was written, or could not be; and how many were dropped is logged when there is room again.
    fn written(&self, written: bool, format: Format) {
        if !written {
            self.lock().dropped += 1;
            metrics::add(metrics::LOG_LINES_DROPPED, 1);
            return;
        }
        let mut state = self.lock();
        // While others wait it has not been read up to now, and more may be dropped.
        let dropped = if state.lines.is_empty() { std::mem::take(&mut state.dropped) } else { 0 };
        drop(state);
        if dropped > 0 && write(&dropped_line(dropped), format).is_err() {
            self.lock().dropped += dropped;
        }
    }
}

fn write(line: &Line, format: Format) -> io::Result<()> {
    let mut text = line.format(format);
    text.push('\n');
    write_all(text.as_bytes())
}

fn dropped_line(dropped: u64) -> Line {
    let mut fields = Fields::default();
    let lines = if dropped == 1 { "line was" } else { "lines were" };
    fields.message(&format!(
        "{dropped} log {lines} dropped: nobody read the log, or it could not be written"
    ));
    Line::new(Level::WARN, module_path!(), fields)
}

/// Starts the thread. Where there can be none, the queue fills, and lines are counted as dropped.
pub(super) fn start(queue: &Arc<Queue>, format: Format) {
    let queue = Arc::clone(queue);
    let started = std::thread::Builder::new().name("log".into()).spawn(move || queue.write(format));
    // There is nowhere to log it.
    drop(started);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Line {
        let mut fields = Fields::default();
        fields.message(text);
        Line::new(Level::INFO, "x", fields)
    }

    #[test]
    fn lines_beyond_the_limit_are_dropped_and_counted() {
        let queue = Queue::default();
        for _ in 0..10_000 {
            queue.put(line(&"x".repeat(1000)));
        }
        let state = queue.lock();
        assert!(state.bytes <= WAITING && state.bytes > WAITING - 4096, "{}", state.bytes);
        assert_eq!(state.dropped + state.lines.len() as u64, 10_000);
    }

    #[test]
    fn a_flush_ends_though_nobody_writes() {
        let queue = Queue::default();
        queue.flush(Duration::from_mins(1));
        queue.put(line("a"));
        queue.flush(Duration::from_millis(10));
        assert_eq!(queue.lock().lines.len(), 1);
    }
}
