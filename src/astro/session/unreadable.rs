//! Frames that are not relayed: what is logged of them, and when that is a matter of health.
//!
//! A frame may hold a credential or what a donor wrote. So an excerpt ends where the payload begins, or
//! where a token may stand.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;
use tracing::warn;

/// They are logged no more often than this.
const LOG_INTERVAL: Duration = Duration::from_mins(1);

/// So many within [`LATELY`] are no accident.
const REPEATED: usize = 3;

/// See [`REPEATED`].
const LATELY: Duration = Duration::from_mins(10);

/// Characters of an excerpt.
const EXCERPT: usize = 120;

/// What was not relayed lately.
#[derive(Debug, Default)]
pub struct Unreadable {
    lately: VecDeque<Instant>,
    logged_at: Option<Instant>,
    /// Since the last line in the log.
    unlogged: u64,
    why: &'static str,
}

impl Unreadable {
    /// This frame is not relayed, and why.
    pub(super) fn note(&mut self, why: &'static str, text: &str, now: Instant) {
        self.why = why;
        self.lately.push_back(now);
        if self.lately.len() > REPEATED {
            self.lately.pop_front();
        }
        self.unlogged += 1;
        if self.logged_at.is_some_and(|at| now < at + LOG_INTERVAL) {
            return;
        }
        self.logged_at = Some(now);
        let frames = std::mem::take(&mut self.unlogged);
        let (bytes, excerpt) = (text.len(), excerpt(text));
        warn!(frames, bytes, excerpt, "{why}: not relayed");
    }

    /// Puts before it what was not relayed on the connection before.
    pub(super) fn continues(&mut self, before: Self) {
        let later = std::mem::replace(self, before);
        if !later.lately.is_empty() {
            self.why = later.why;
        }
        self.lately.extend(later.lately);
        let surplus = self.lately.len().saturating_sub(REPEATED);
        self.lately.drain(..surplus);
        self.logged_at = self.logged_at.max(later.logged_at);
        self.unlogged += later.unlogged;
    }

    /// What is wrong, where it was so several times of late.
    pub(super) fn repeated(&self, now: Instant) -> Option<String> {
        let first = self.lately.front().filter(|_| self.lately.len() >= REPEATED)?;
        (now < *first + LATELY).then(|| format!("messages cannot be relayed: {}", self.why))
    }
}

/// The beginning of a frame, without what may be secret, personal or harmful.
fn excerpt(text: &str) -> String {
    let shown = ["\"data\"", "token"]
        .iter()
        .fold(text, |shown, end| shown.find(end).and_then(|at| shown.get(..at)).unwrap_or(shown));
    let harmless = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '\u{fffd}' };
    let mut excerpt: String = shown.chars().take(EXCERPT).map(harmless).collect();
    if excerpt.len() < text.len() {
        excerpt.push_str("...");
    }
    excerpt
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_several_connections_bring_adds_up() {
        let (now, mut before, mut next) =
            (Instant::now(), Unreadable::default(), Unreadable::default());
        for _ in 1..REPEATED {
            before.note("not text", "", now);
        }
        assert_eq!(before.repeated(now), None);
        next.note("no topic", "", now + LOG_INTERVAL);
        next.continues(before);
        assert_eq!(next.lately.len(), REPEATED);
        assert_eq!(next.repeated(now).as_deref(), Some("messages cannot be relayed: no topic"));
        let mut last = Unreadable::default();
        last.continues(next);
        assert!(last.repeated(now).is_some());
        assert_eq!(last.repeated(now + LATELY), None);
    }

    #[test]
    fn an_excerpt_has_no_secret_and_does_no_harm() {
        let cases = [
            ("", ""),
            ("{\"type\":7}", "{\"type\":7}"),
            (
                r#"{"type":"reconnect","data":{"reconnect_token":"s3cret"}"#,
                r#"{"type":"reconnect",..."#,
            ),
            (r#"{"reconnect_token":"s3cret"#, r#"{"reconnect_..."#),
            ("{\u{1b}[2J\u{202e}\n", "{\u{fffd}[2J\u{fffd}\u{fffd}"),
        ];
        for (text, expected) in cases {
            assert_eq!(excerpt(text), expected);
        }
        assert!(excerpt(&"x".repeat(1 << 20)).len() <= EXCERPT + 3);
    }

    #[tokio::test(start_paused = true)]
    async fn only_repeated_failures_are_a_matter_of_health() {
        let mut unreadable = Unreadable::default();
        for n in 0..REPEATED {
            assert_eq!(unreadable.repeated(Instant::now()), None, "{n}");
            unreadable.note("no JSON", "x", Instant::now());
        }
        assert!(unreadable.repeated(Instant::now()).unwrap().contains("no JSON"));
        tokio::time::advance(LATELY).await;
        assert_eq!(unreadable.repeated(Instant::now()), None);
        unreadable.note("no JSON", "x", Instant::now());
        assert_eq!(unreadable.repeated(Instant::now()), None, "one more is one again");
        unreadable.note("no JSON", "x", Instant::now());
        unreadable.note("no JSON", "x", Instant::now());
        assert!(unreadable.repeated(Instant::now()).is_some(), "three more are three");
    }

    #[tokio::test(start_paused = true)]
    async fn they_are_logged_once_a_minute() {
        let mut unreadable = Unreadable::default();
        let began = Instant::now();
        for (seconds, unlogged) in [(0, 0), (0, 1), (59, 2), (60, 0), (61, 1)] {
            unreadable.note("no JSON", "x", began + Duration::from_secs(seconds));
            assert_eq!(unreadable.unlogged, unlogged, "{seconds}");
        }
    }
}
