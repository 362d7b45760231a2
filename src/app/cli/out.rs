//! Output of every command.
//!
//! What is printed may hold words that viewers, servers and errors chose. So all of it goes through
//! [`Harmless`], which escapes control characters, whoever wrote them and wherever they go: a pipe mostly
//! ends at a terminal too. In JSON the value stays the same. A test ensures that nothing else in `cli`
//! writes to standard output or standard error.

use std::{
    io::{self, BufRead, IsTerminal, Stderr, StdoutLock, Write},
    sync::mpsc,
    time::Duration,
};

use rustix::termios::tcgetwinsize;

use crate::base::{
    terminal::{self, Line},
    text,
};

/// How long whoever reads standard error is waited for when the program has ended.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Standard output, for lines of text.
pub(super) fn text() -> Harmless<StdoutLock<'static>> {
    let colours = terminal::has_colours(is_terminal());
    Harmless { colours, ..Harmless::new(io::stdout().lock(), Form::Text) }
}

/// Standard output, for JSON.
pub(super) fn json() -> Harmless<StdoutLock<'static>> {
    Harmless::new(io::stdout().lock(), Form::Json)
}

/// Standard error, for what is said beside the output. That nobody reads it is no reason to fail.
pub(super) fn aside(text: &str) {
    let mut aside = Harmless::new(io::stderr(), Form::Text);
    drop(writeln!(aside, "{text}"));
}

/// Standard error, for a conversation.
pub(super) fn conversation() -> Harmless<Stderr> {
    let colours = terminal::has_colours(io::stderr().is_terminal());
    Harmless { colours, ..Harmless::new(io::stderr(), Form::Text) }
}

/// Asks a question whose usual answer is no.
pub(super) fn confirmed(
    question: &str,
    input: &mut impl BufRead,
    output: &mut impl Write,
) -> io::Result<bool> {
    write!(output, "{question} [y/N] ")?;
    output.flush()?;
    let mut answer = String::new();
    input.read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// Says why the program ends, and does not wait for long where nobody reads it.
pub(super) fn last_words(text: String) {
    let (done, said) = mpsc::sync_channel(1);
    let saying = std::thread::Builder::new().spawn(move || {
        aside(&text);
        // Nobody may be waiting any more.
        done.send(()).ok();
    });
    if saying.is_ok() {
        // Said, or not: the program ends.
        said.recv_timeout(LAST_WORDS).ok();
    }
}

/// Whether standard output is a terminal.
pub(super) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// How many rows and columns the terminal at standard output has, where it is known.
pub(super) fn size() -> Option<(usize, usize)> {
    let size = tcgetwinsize(io::stdout()).ok()?;
    let (rows, columns) = (usize::from(size.ws_row), usize::from(size.ws_col));
    (rows > 0 && columns > 0).then_some((rows, columns))
}

/// Whether the terminal at standard input shows what is typed.
pub(super) fn echo(shown: bool) {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    // What is no terminal shows nothing anyway.
    let Ok(mut settings) = tcgetattr(io::stdin()) else { return };
    settings.local_modes.set(LocalModes::ECHO, shown);
    tcsetattr(io::stdin(), OptionalActions::Flush, &settings).ok();
}

/// How text is made harmless.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Text,
    Json,
}

/// Writes on what does nothing.
#[derive(Debug)]
pub(super) struct Harmless<W: Write> {
    out: W,
    form: Form,
    /// The beginning of a character whose rest is still to come.
    begun: Vec<u8>,
    /// Whether tones are shown.
    colours: bool,
}

impl<W: Write> Harmless<W> {
    /// Text for that writer.
    #[cfg(test)]
    pub(super) fn text_on(out: W) -> Self {
        Self::new(out, Form::Text)
    }

    fn new(out: W, form: Form) -> Self {
        Self { out, form, begun: Vec::new(), colours: false }
    }

    /// Writes a line in its tones, cut to so many columns, and its end.
    pub(super) fn line(&mut self, line: &Line, columns: usize) -> io::Result<()> {
        self.pieces(line, columns)?;
        self.write_all(b"\n")
    }

    /// The same without its end.
    pub(super) fn pieces(&mut self, line: &Line, columns: usize) -> io::Result<()> {
        for (tone, text) in line.pieces(columns) {
            let begin = if self.colours { tone.begin() } else { "" };
            self.control(begin)?;
            self.write_all(text.as_bytes())?;
            if !begin.is_empty() {
                self.control(terminal::END)?;
            }
        }
        Ok(())
    }

    /// Writes a sequence of ours that does something.
    pub(super) fn control(&mut self, sequence: &'static str) -> io::Result<()> {
        self.out.write_all(sequence.as_bytes())
    }

    fn push(&self, part: &str, shown: &mut String) {
        for c in part.chars() {
            match self.form {
                // Whoever prints lines ends them; and completion scripts are indented by tabs.
                Form::Text if matches!(c, '\n' | '\t') => shown.push(c),
                Form::Text => text::push(c, shown),
                Form::Json => text::push_json(c, shown),
            }
        }
    }
}

impl<W: Write> Write for Harmless<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut waiting = std::mem::take(&mut self.begun);
        waiting.extend_from_slice(bytes);
        let mut shown = String::with_capacity(waiting.len());
        let mut rest = &*waiting;
        loop {
            match std::str::from_utf8(rest) {
                Ok(part) => {
                    self.push(part, &mut shown);
                    break;
                }
                Err(error) => {
                    let (part, broken) = rest.split_at(error.valid_up_to());
                    self.push(&String::from_utf8_lossy(part), &mut shown);
                    let Some(length) = error.error_len() else {
                        self.begun = broken.to_vec();
                        break;
                    };
                    shown.push(char::REPLACEMENT_CHARACTER);
                    rest = broken.get(length..).unwrap_or_default();
                }
            }
        }
        self.out.write_all(shown.as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::base::text::is_harmful;

    fn written(form: Form, parts: &[&[u8]]) -> String {
        let mut out = Harmless::new(Vec::new(), form);
        for part in parts {
            out.write_all(part).unwrap();
        }
        String::from_utf8(out.out).unwrap()
    }

    #[test]
    fn text_is_shown_and_does_nothing() {
        let text = "a\u{1b}[2J\u{9b}1m\u{202e}\u{7f}\r\n\tü🎉";
        let shown = "a\\u{1b}[2J\\u{9b}1m\\u{202e}\\u{7f} \n\tü🎉";
        assert_eq!(written(Form::Text, &[text.as_bytes()]), shown);
        // Whatever the pieces are that it comes in.
        let pieces: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
        assert_eq!(written(Form::Text, &pieces), shown);
        assert_eq!(written(Form::Text, &[b"a\xff\xc3", b"b"]), "a\u{fffd}\u{fffd}b");
    }

    #[test]
    fn nothing_is_done_without_a_yes() {
        for (answer, done) in [("y\n", true), ("YES\n", true), ("\n", false), ("no\n", false)] {
            let mut out = Vec::new();
            let is_yes = confirmed("really?", &mut answer.as_bytes(), &mut out).unwrap();
            assert_eq!(is_yes, done, "{answer}");
            assert_eq!(out, b"really? [y/N] ");
        }
    }

    proptest! {
        #[test]
        fn nothing_that_is_printed_does_anything(
            text in any::<Vec<char>>(), cuts in prop::collection::vec(1..5_usize, 0..20),
        ) {
            let text: String = text.into_iter().collect();
            let mut pieces = Vec::new();
            let mut rest = text.as_bytes();
            for cut in cuts {
                let (piece, more) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece);
                rest = more;
            }
            pieces.push(rest);
            let shown = written(Form::Text, &pieces);
            prop_assert!(!shown.chars().any(|c| is_harmful(c) && c != '\n' && c != '\t'));
            let json = serde_json::to_string(&text).unwrap();
            let shown = written(Form::Json, &[json.as_bytes()]);
            prop_assert!(!shown.chars().any(is_harmful), "{shown:?}");
            prop_assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), text);
        }
    }
}
