//! `astro-relay top`: the page of `status`, refreshed every second, until `q`.
//!
//! It adds how many events each sink has delivered since the page before. While the relay cannot be
//! reached, the page says so.
//!
//! The terminal is restored when [`Screen`] is dropped, however that comes about. Waiting for a key is also
//! the clock: a read of the terminal gives up after a second.

use std::{
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
    status::{page, table},
    termination,
};
use crate::base::{clock, text::harmless};

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

/// Keys that quit: `q`, escape, and control-C, which is no signal while the page is shown.
const QUIT_KEYS: &[u8] = b"qQ\x1b\x03";

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
        let mut before = Value::Null;
        loop {
            let (text, status) = tokio::select! {
                () = &mut ended => return Ok(()),
                drawn = refresh(&client, &before) => drawn,
            };
            before = status;
            // A terminal may have been stopped (Ctrl-S), and then drawing takes for ever.
            tokio::select! {
                () = &mut ended => {
                    screen.is_stopped = true;
                    return Ok(());
                }
                drawn = Screen::draw(text) => drawn?,
            }
            let quits = tokio::select! {
                () = &mut ended => true,
                quits = screen.key() => quits?,
            };
            if quits {
                return Ok(());
            }
        }
    })
}

/// The page as it is now, and the status behind it: null where the relay cannot be reached.
async fn refresh(client: &Client, before: &Value) -> (String, Value) {
    match client.status().await {
        Ok(status) => {
            let now = clock::now();
            let text = format!(
                "{}   q quits\n{}\n\n{}",
                clock::rfc3339(now),
                rates(before, &status),
                page(&status, now)
            );
            (text, status)
        }
        Err(failed) => {
            let now = clock::rfc3339(clock::now());
            (format!("{now}   q quits\n\n{}", harmless(failed.text())), Value::Null)
        }
    }
}

/// What each sink has delivered between two pages.
fn rates(before: &Value, now: &Value) -> String {
    let sinks = |status: &Value| status.pointer("/pages/sinks").cloned().unwrap_or_default();
    let (before, now) = (sinks(before), sinks(now));
    let delivered = |sinks: &Value, name: &str| sinks.get(name)?.get("delivered")?.as_u64();
    let parts: Vec<String> = table(&now)
        .filter_map(|(name, _)| {
            let (before, now) = (delivered(&before, &name)?, delivered(&now, &name)?);
            // A relay that was started again counts from nothing.
            Some(format!("{name} {}", now.checked_sub(before).unwrap_or(now)))
        })
        .collect();
    if parts.is_empty() {
        String::new()
    } else {
        format!("delivered since the last refresh: {}", parts.join(", "))
    }
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

    /// Draws the page, as much as there is room for.
    async fn draw(text: String) -> Result<(), Failed> {
        let drawn = tokio::task::spawn_blocking(move || Self::draw_now(&text)).await;
        Ok(drawn.map_err(|error| Failed::of(Failed::SOFTWARE, &error))??)
    }

    fn draw_now(text: &str) -> io::Result<()> {
        let (rows, columns) = out::size().unwrap_or(SIZE);
        draw_on(&mut out::text(), text, rows, columns)
    }

    /// Waits for a key, but not for long; whether it is one that quits.
    async fn key(&self) -> Result<bool, Failed> {
        if self.keys.is_none() {
            tokio::time::sleep(EVERY).await;
            return Ok(false);
        }
        let read = tokio::task::spawn_blocking(|| {
            let mut keys = [0; 16];
            let count = match rustix::io::read(io::stdin(), &mut keys) {
                // A change of the window's size.
                Err(Errno::INTR) => 0,
                count => count?,
            };
            io::Result::Ok(keys.iter().take(count).any(|key| QUIT_KEYS.contains(key)))
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

/// Draws a page on a terminal of that size: nothing of the page before remains.
fn draw_on(
    out: &mut Harmless<impl io::Write>,
    text: &str,
    rows: usize,
    columns: usize,
) -> io::Result<()> {
    out.control(HOME)?;
    for (row, line) in text.lines().take(rows).enumerate() {
        if row > 0 {
            out.control(NEXT_LINE)?;
        }
        let line: String = harmless(line).chars().take(columns).collect();
        out.write_all(line.as_bytes())?;
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
        draw_on(&mut Harmless::text_on(&mut bytes), text, 2, 5).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_page_fits_the_terminal_and_hides_the_one_before() {
        let text = "one line\ntwo\nthree\n";
        assert_eq!(drawn(text), "\x1b[Hone l\x1b[K\r\ntwo\x1b[K\x1b[J");
        assert_eq!(drawn(""), "\x1b[H\x1b[J");
        assert_eq!(drawn("\u{9b}"), "\x1b[H\\u{9b\x1b[K\x1b[J");
    }

    #[test]
    fn the_pace_is_what_came_since_the_look_before() {
        let at = |home: u64, hook: u64| json!({"pages": {"sinks": {"home": {"delivered": home}, "hook": {"delivered": hook}}}});
        assert_eq!(
            rates(&at(10, 50), &at(13, 7)),
            "delivered since the last refresh: home 3, hook 7"
        );
        assert_eq!(rates(&Value::Null, &at(13, 7)), "");
    }
}
