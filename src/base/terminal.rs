//! Lines for a terminal: which tone each piece has, how wide it is, and whether there are colours at all.
//!
//! A tone is what a piece means, not a colour; what it looks like stands here once. Text may hold words that
//! viewers and servers chose: it is made harmless before it is measured.

use crate::base::{environment::environment, text::harmless};

/// What a piece of a line means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Tone {
    #[default]
    Plain,
    Strong,
    Soft,
    Good,
    Warn,
    Bad,
}

impl Tone {
    /// The sequence that begins it; empty for a plain one.
    pub(crate) fn begin(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Strong => "\x1b[1m",
            Self::Soft => "\x1b[2m",
            Self::Good => "\x1b[32m",
            Self::Warn => "\x1b[33m",
            Self::Bad => "\x1b[31m",
        }
    }
}

/// The sequence that ends every tone.
pub(crate) const END: &str = "\x1b[0m";

/// Whether a standard stream takes colours: it is a terminal that can, and nobody has said no
/// (<https://no-color.org>).
pub(crate) fn has_colours(is_terminal: bool) -> bool {
    let environment = environment();
    let says_no = environment.get("NO_COLOR").is_some_and(|value| !value.is_empty());
    is_terminal && !says_no && environment.get("TERM").is_none_or(|term| term != "dumb")
}

/// A line in pieces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Line(Vec<(Tone, String)>);

impl From<&str> for Line {
    fn from(text: &str) -> Self {
        Self::default().with(Tone::Plain, text)
    }
}

impl From<String> for Line {
    fn from(text: String) -> Self {
        Self::from(&*text)
    }
}

impl Line {
    /// With another piece behind it.
    #[must_use]
    pub(crate) fn with(mut self, tone: Tone, text: impl AsRef<str>) -> Self {
        let text = harmless(text.as_ref()).into_owned();
        if !text.is_empty() {
            self.0.push((tone, text));
        }
        self
    }

    /// Its pieces, cut to so many columns.
    pub(crate) fn pieces(&self, columns: usize) -> Vec<(Tone, String)> {
        let whole: usize = self.0.iter().map(|(_, text)| width(text)).sum();
        // What is cut ends with a sign for it.
        let mut room = if whole > columns { columns.saturating_sub(1) } else { columns };
        let mut pieces = Vec::new();
        for (tone, text) in &self.0 {
            let fits = prefix(text, room);
            room -= width(fits);
            if !fits.is_empty() {
                pieces.push((*tone, fits.to_owned()));
            }
            if fits.len() < text.len() {
                if columns > 0 {
                    pieces.push((*tone, "…".to_owned()));
                }
                break;
            }
        }
        pieces
    }

    /// As text, for whoever writes it as it stands.
    pub(crate) fn paint(&self, columns: usize, colours: bool) -> String {
        let mut text = String::new();
        for (tone, piece) in self.pieces(columns) {
            let begin = if colours { tone.begin() } else { "" };
            text.push_str(begin);
            text.push_str(&piece);
            if !begin.is_empty() {
                text.push_str(END);
            }
        }
        text
    }
}

/// As much of the beginning as fits into so many columns.
fn prefix(text: &str, columns: usize) -> &str {
    let mut used = 0;
    for (at, c) in text.char_indices() {
        used += columns_of(c);
        if used > columns {
            return text.get(..at).unwrap_or_default();
        }
    }
    text
}

/// Columns that a text takes on a terminal.
pub(crate) fn width(text: &str) -> usize {
    text.chars().map(columns_of).sum()
}

/// `text` in so many columns at least.
pub(crate) fn padded(text: &str, columns: usize) -> String {
    let missing = columns.saturating_sub(width(&harmless(text)));
    format!("{text}{}", " ".repeat(missing))
}

/// Columns of one character: of the wide scripts and of emoji two, of marks on others none.
fn columns_of(c: char) -> usize {
    match u32::from(c) {
        0x0300..=0x036F | 0x200D | 0x20D0..=0x20FF | 0xFE00..=0xFE0F => 0,
        0x1100..=0x115F
        | 0x2E80..=0xA4CF
        | 0xAC00..=0xD7A3
        | 0xF900..=0xFAFF
        | 0xFE30..=0xFE6F
        | 0xFF00..=0xFF60
        | 0xFFE0..=0xFFE6
        | 0x1F300..=0x1FAFF
        | 0x20000..=0x3FFFD => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_fits_the_columns_whatever_is_in_it() {
        let line = Line::from("ab").with(Tone::Bad, "夜明けの猫").with(Tone::Soft, "cd🎂");
        for columns in 0..20 {
            let shown = line.paint(columns, false);
            assert!(width(&shown) <= columns, "{columns}: {shown}");
        }
        assert_eq!(line.paint(16, false), "ab夜明けの猫cd🎂");
        assert_eq!(line.paint(15, false), "ab夜明けの猫cd…");
        assert_eq!(line.paint(5, false), "ab夜…");
    }

    #[test]
    fn tones_are_colours_and_nothing_else_does_anything() {
        let line = Line::from("a\u{1b}[2J").with(Tone::Bad, "b\u{9b}");
        assert_eq!(line.paint(80, true), "a\\u{1b}[2J\u{1b}[31mb\\u{9b}\u{1b}[0m");
        assert_eq!(line.paint(80, false), "a\\u{1b}[2Jb\\u{9b}");
    }

    #[test]
    fn columns_are_filled_by_what_is_seen() {
        assert_eq!(padded("Jörmun", 8), "Jörmun  ");
        assert_eq!(padded("猫", 4), "猫  ");
        assert_eq!(padded("longer", 3), "longer");
    }
}
