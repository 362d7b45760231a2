//! `astro-relay top`: the page of `status`, refreshed every second, until `q`.
//!
//! Above it stands a table of the sinks with the rate over the last seconds, what waits and for how long. A
//! page that is longer than the terminal can be scrolled. While the relay cannot be reached, the page says
//! so.
//!
//! The terminal is restored when [`Screen`] is dropped, however that comes about. Waiting for a key is also
//! the clock: a read of the terminal gives up after a second.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{self, IsTerminal, Write as _},
    time::Duration,
};

use clap::Args;
use rustix::{
    io::Errno,
    termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr},
};
use serde_json::Value;

use super::{
    Done, Failed,
    client::{Client, Which, quiet},
    on_runtime,
    out::{self, Harmless},
    status::{at, page, since, state, table, tone},
    termination,
};
use crate::base::{
    clock,
    terminal::{Line, Tone, padded},
};

/// How often the page is drawn.
const EVERY: Duration = Duration::from_secs(1);

/// [`EVERY`], as the terminal counts: in tenths of a second.
const TENTHS: u8 = 10;

/// Where the size of the terminal is not known.
const SIZE: (usize, usize) = (24, 80);

/// Another screen, the cursor hidden; and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// To the corner; clear to the end of the line; clear to the end of the screen.
const HOME: &str = "\x1b[H";
const NEXT_LINE: &str = "\r\n";
const END_OF_LINE: &str = "\x1b[K";
const END_OF_SCREEN: &str = "\x1b[J";

/// The time over which a rate is measured.
const RATE: u64 = 10_000;

/// `top`
#[derive(Debug, Args)]
pub(super) struct Top {
    #[command(flatten)]
    which: Which,
}

pub(super) fn top(args: &Top) -> Done {
    if !out::is_terminal() {
        return Err(Failed::new(
            Failed::USAGE,
            "top needs a terminal: `status` prints the page once",
        ));
    }
    let client = args.which.client()?;
    on_runtime(1, &quiet(), async move {
        let ended = termination()?;
        tokio::pin!(ended);
        let mut screen = Screen::enter()?;
        let mut rates = Rates::default();
        let mut first = 0;
        loop {
            let page = tokio::select! {
                () = &mut ended => return Ok(()),
                page = refresh(&client, &mut rates) => page,
            };
            // A terminal may have been stopped (Ctrl-S), and then drawing takes for ever.
            first = tokio::select! {
                () = &mut ended => {
                    screen.is_stopped = true;
                    return Ok(());
                }
                drawn = Screen::draw(page, first) => drawn?,
            };
            let key = tokio::select! {
                () = &mut ended => Some(Key::Quit),
                key = screen.key() => key?,
            };
            let rows = out::size().unwrap_or(SIZE).0;
            first = match key {
                Some(Key::Quit) => return Ok(()),
                Some(Key::Lines(count)) => first.saturating_add_signed(count),
                Some(Key::Pages(count)) => {
                    let page = isize::try_from(rows.saturating_sub(2)).unwrap_or(1);
                    first.saturating_add_signed(count.saturating_mul(page))
                }
                None => first,
            };
        }
    })
}

/// What was pressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Quit,
    /// So many lines down.
    Lines(isize),
    Pages(isize),
}

impl Key {
    /// What a read of the terminal means: one key, or the sequence of one. `q`, escape alone, and control-C,
    /// which is no signal while the page is shown, quit.
    fn of(bytes: &[u8]) -> Option<Self> {
        match bytes {
            b"\x1b[A" | b"\x1bOA" | b"k" => Some(Self::Lines(-1)),
            b"\x1b[B" | b"\x1bOB" | b"j" => Some(Self::Lines(1)),
            b"\x1b[5~" | b"b" => Some(Self::Pages(-1)),
            b"\x1b[6~" | b" " => Some(Self::Pages(1)),
            b"\x1b[H" | b"\x1b[1~" | b"g" => Some(Self::Lines(isize::MIN)),
            b"\x1b[F" | b"\x1b[4~" | b"G" => Some(Self::Lines(isize::MAX)),
            [0x1b] => Some(Self::Quit),
            // Another key's sequence, or several at once.
            [0x1b, ..] => None,
            keys if keys.iter().any(|key| b"qQ\x03".contains(key)) => Some(Self::Quit),
            _ => None,
        }
    }
}

/// The page as it is now.
async fn refresh(client: &Client, rates: &mut Rates) -> Vec<Line> {
    let now = clock::now();
    let time = clock::rfc3339(now / 1000 * 1000);
    let head = Line::from(time).with(Tone::Soft, "   q quits, arrows and page keys scroll");
    let mut lines = vec![head, Line::default()];
    match client.status().await {
        Ok(status) => {
            rates.add(now, &status);
            lines.extend(sinks(&status, rates, now));
            lines.push(Line::default());
            lines.extend(page(&status, now, true));
        }
        Err(failed) => {
            *rates = Rates::default();
            lines.push(Line::default().with(Tone::Bad, failed.text()));
        }
    }
    lines
}

/// How many events the sinks had delivered at the times of the last refreshes.
#[derive(Debug, Default)]
struct Rates(VecDeque<(u64, BTreeMap<String, u64>)>);

impl Rates {
    fn add(&mut self, now: u64, status: &Value) {
        let delivered = table(at(status, "/pages/sinks"))
            .map(|(name, sink)| (name, sink["delivered"].as_u64().unwrap_or(0)));
        self.0.push_back((now, delivered.collect()));
        while self.0.len() > 1 && self.0.front().is_some_and(|(at, _)| at + RATE < now) {
            self.0.pop_front();
        }
    }

    /// Events a second; `None`: it is not known yet.
    fn of(&self, sink: &str) -> Option<f64> {
        let ((then, before), (at, after)) = (self.0.front()?, self.0.back()?);
        let millis = u32::try_from(at.checked_sub(*then)?).ok().filter(|millis| *millis > 0)?;
        let (before, after) = (before.get(sink)?, after.get(sink)?);
        // A relay that was started again counts from nothing.
        let events = u32::try_from(after.checked_sub(*before).unwrap_or(*after)).ok()?;
        Some(f64::from(events) * 1000.0 / f64::from(millis))
    }
}

/// A table of the sinks: state, rate, what waits.
fn sinks(status: &Value, rates: &Rates, now: u64) -> Vec<Line> {
    let head = format!(
        "{:<16}{:<12}{:>9}{:>9}{:>10}{:>12}{:>7}  LAST",
        "SINK", "STATE", "RATE", "QUEUED", "OLDEST", "DELIVERED", "DEAD"
    );
    let mut lines = vec![Line::default().with(Tone::Soft, head)];
    for (name, sink) in table(at(status, "/pages/sinks")) {
        let rate = rates.of(&name).map_or_else(|| "-".into(), |rate| format!("{rate:.1}/s"));
        let dead = status["dead_letters"].get(&name).and_then(Value::as_u64).unwrap_or(0);
        let delivered = sink["delivered"].as_u64().unwrap_or(0);
        let queued = sink["lag_events"].as_u64().unwrap_or(0);
        let oldest = match sink["lag_seconds"].as_f64() {
            Some(seconds) if queued > 0 => format!("{seconds:.0}s"),
            _ => "-".into(),
        };
        let last = sink["last_delivered"].as_u64();
        let last = last.map_or_else(|| "-".into(), |at| format!("{} ago", since(at, now)));
        let state = state(sink);
        let tone = tone(&state);
        lines.push(
            Line::from(padded(&name, 16))
                .with(tone, format!("{state:<12}"))
                .with(Tone::Plain, format!("{rate:>9}"))
                .with(if queued > 0 { Tone::Warn } else { Tone::Plain }, format!("{queued:>9}"))
                .with(Tone::Plain, format!("{oldest:>10}{delivered:>12}"))
                .with(if dead > 0 { Tone::Bad } else { Tone::Plain }, format!("{dead:>7}"))
                .with(Tone::Plain, format!("  {last}")),
        );
    }
    lines
}

/// A terminal that shows a page. It is put back when this goes.
struct Screen {
    /// How it was; nothing where keys do not come from a terminal.
    keys: Option<Termios>,
    /// Whether nothing can be written to it now.
    is_stopped: bool,
}

impl Screen {
    fn enter() -> io::Result<Self> {
        let keys = if io::stdin().is_terminal() {
            let before = tcgetattr(io::stdin())?;
            let mut raw = before.clone();
            // Keys come one by one, unseen; a read without any ends after a while.
            raw.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG);
            raw.special_codes[SpecialCodeIndex::VMIN] = 0;
            raw.special_codes[SpecialCodeIndex::VTIME] = TENTHS;
            tcsetattr(io::stdin(), OptionalActions::Flush, &raw)?;
            Some(before)
        } else {
            None
        };
        let screen = Self { keys, is_stopped: false };
        let mut out = out::text();
        out.control(ENTER)?;
        out.flush()?;
        Ok(screen)
    }

    /// Draws the page from that line on, as much as there is room for; answers the line that came first.
    async fn draw(page: Vec<Line>, first: usize) -> Result<usize, Failed> {
        let drawn = tokio::task::spawn_blocking(move || Self::draw_now(&page, first)).await;
        Ok(drawn.map_err(|error| Failed::of(Failed::SOFTWARE, &error))??)
    }

    fn draw_now(page: &[Line], first: usize) -> io::Result<usize> {
        let (rows, columns) = out::size().unwrap_or(SIZE);
        let first = first.min(page.len().saturating_sub(rows));
        draw_on(&mut out::text(), page.get(first..).unwrap_or_default(), rows, columns)?;
        Ok(first)
    }

    /// Waits for a key, but not for long.
    async fn key(&self) -> Result<Option<Key>, Failed> {
        if self.keys.is_none() {
            tokio::time::sleep(EVERY).await;
            return Ok(None);
        }
        let read = tokio::task::spawn_blocking(|| {
            let mut keys = [0; 16];
            let count = match rustix::io::read(io::stdin(), &mut keys) {
                // A change of the window's size.
                Err(Errno::INTR) => 0,
                count => count?,
            };
            io::Result::Ok(Key::of(keys.get(..count).unwrap_or_default()))
        });
        let read = read.await.map_err(|error| Failed::of(Failed::SOFTWARE, &error))?;
        Ok(read?)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let mut when = OptionalActions::Now;
        if !self.is_stopped {
            let mut out = out::text();
            // Nothing can be done about a terminal that is gone.
            drop(out.control(LEAVE).and_then(|()| out.flush()));
            when = OptionalActions::Flush;
        }
        if let Some(before) = &self.keys
            && let Err(error) = tcsetattr(io::stdin(), when, before)
        {
            tracing::warn!(%error, "the terminal cannot be restored");
        }
    }
}

/// Draws lines on a terminal of that size: nothing of the page before remains.
fn draw_on(
    out: &mut Harmless<impl io::Write>,
    lines: &[Line],
    rows: usize,
    columns: usize,
) -> io::Result<()> {
    out.control(HOME)?;
    for (row, line) in lines.iter().take(rows).enumerate() {
        if row > 0 {
            out.control(NEXT_LINE)?;
        }
        out.pieces(line, columns)?;
        out.control(END_OF_LINE)?;
    }
    out.control(END_OF_SCREEN)?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn drawn(text: &str) -> String {
        let mut bytes = Vec::new();
        let lines: Vec<Line> = text.lines().map(Line::from).collect();
        draw_on(&mut Harmless::text_on(&mut bytes), &lines, 2, 5).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_page_fits_the_terminal_and_hides_the_one_before() {
        let text = "one line\ntwo\nthree\n";
        assert_eq!(drawn(text), "\x1b[Hone …\x1b[K\r\ntwo\x1b[K\x1b[J");
        assert_eq!(drawn(""), "\x1b[H\x1b[J");
        assert_eq!(drawn("\u{9b}"), "\x1b[H\\u{9…\x1b[K\x1b[J");
    }

    fn at(home: u64, hook: u64) -> Value {
        json!({ "dead_letters": { "hook": 2 }, "pages": { "sinks": {
            "home": { "state": "up", "delivered": home, "lag_events": 0, "lag_seconds": 0.0,
                "last_delivered": 8000 },
            "hook": { "state": "down", "delivered": hook, "lag_events": 7, "lag_seconds": 12.4 },
        } } })
    }

    #[test]
    fn a_rate_is_what_came_in_the_last_seconds() {
        let mut rates = Rates::default();
        rates.add(1000, &at(10, 50));
        assert_eq!(rates.of("home"), None, "one look is no rate");
        rates.add(3000, &at(13, 7));
        assert_eq!((rates.of("home"), rates.of("hook")), (Some(1.5), Some(3.5)));
        // What is longer ago than ten seconds no longer counts.
        rates.add(12_000, &at(13, 7));
        assert_eq!(rates.of("home"), Some(0.0));
    }

    #[test]
    fn the_table_has_a_row_for_each_sink() {
        let mut rates = Rates::default();
        rates.add(1000, &at(0, 0));
        rates.add(3000, &at(3, 0));
        let rows = sinks(&at(3, 0), &rates, 10_000);
        let rows: Vec<String> = rows.iter().map(|row| row.paint(100, false)).collect();
        let wanted = [
            "home            working         1.5/s        0         -           3      0  2s ago",
            "hook            down            0.0/s        7       12s           0      2  -",
        ];
        assert_eq!(rows.get(1..).unwrap(), wanted);
    }

    #[test]
    fn keys_scroll_and_quit() {
        for (bytes, key) in [
            (&b"q"[..], Some(Key::Quit)),
            (b"\x1b", Some(Key::Quit)),
            (b"\x03", Some(Key::Quit)),
            (b"\x1b[B", Some(Key::Lines(1))),
            (b"\x1b[A", Some(Key::Lines(-1))),
            (b"\x1b[6~", Some(Key::Pages(1))),
            // An arrow to the side, a function key, nothing at all.
            (b"\x1b[C", None),
            (b"\x1b[15~", None),
            (b"", None),
            (b"x", None),
        ] {
            assert_eq!(Key::of(bytes), key, "{bytes:?}");
        }
    }
}
