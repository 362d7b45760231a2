//! A problem of the configuration, and how it is shown.
//!
//! A [`Problem`] names a key, what was expected, and where the key stands; [`Problem::render`] adds
//! the line of the file with a mark under it.
//!
//! A value is never shown, neither in a message nor in an excerpt of the file: a token pasted behind the
//! wrong key must not end in a log. Names in a template are the exception.

use std::{fmt, fmt::Write as _, path::PathBuf};

use super::pasted::looks_secret;

/// One thing wrong in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key, from the top: `sinks.home.url`; an element of a list is `[0]`.
    pub key: Vec<String>,
    /// What was expected, and what is there.
    pub message: String,
    /// The nearest right name, where the key or word is unknown.
    pub suggestion: Option<String>,
    /// Where it stands.
    pub place: Option<Place>,
    /// The line of the file, as far as it may be shown.
    pub excerpt: Option<Excerpt>,
}

/// Where a key stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In the file, at a line and a column (both from 1).
    File {
        path: PathBuf,
        /// Line and column; `None` where it concerns the file as a whole.
        position: Option<(usize, usize)>,
    },
    /// In an environment variable of that name.
    Variable(String),
    /// On the command line, as `--set` of that key.
    Argument(String),
}

/// A line of the file without its value, and which part of it is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excerpt {
    pub text: String,
    /// Characters before the part that is meant.
    pub skip: usize,
    /// Characters of it.
    pub length: usize,
}

/// The configuration cannot be used; says everything that is wrong at once.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// At least one.
    pub problems: Vec<Problem>,
}

/// What is found while a configuration is checked.
#[derive(Debug, Default)]
pub struct Findings {
    /// What cannot work.
    pub errors: Vec<Problem>,
    /// What works, but hardly as it is meant.
    pub warnings: Vec<Problem>,
}

impl Findings {
    pub fn error(&mut self, key: &[&str], message: impl Into<String>) {
        self.errors.push(Problem::new(key.iter().copied(), message));
    }

    pub fn warn(&mut self, key: &[&str], message: impl Into<String>) {
        self.warnings.push(Problem::new(key.iter().copied(), message));
    }
}

impl ConfigError {
    /// One problem at a key.
    pub fn at(key: &[&str], message: impl Into<String>) -> Self {
        Self { problems: vec![Problem::new(key.iter().copied(), message)] }
    }
}

impl Problem {
    /// A problem at a key, not yet located.
    pub fn new<S: Into<String>>(
        key: impl IntoIterator<Item = S>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            key: key.into_iter().map(Into::into).collect(),
            message: message.into(),
            suggestion: None,
            place: None,
            excerpt: None,
        }
    }

    /// A problem of what stands there, whatever the key.
    pub fn at_place(place: Place, message: impl Into<String>) -> Self {
        Self { place: Some(place), ..Self::new(Vec::<String>::new(), message) }
    }

    /// The same, with the name that was probably meant.
    #[must_use]
    pub fn suggest(mut self, name: Option<&str>) -> Self {
        self.suggestion = name.map(ToOwned::to_owned);
        self
    }

    /// For a terminal: with the line of the file and a mark under the place. `word` stands before
    /// it: `error` or `warning`.
    pub fn render(&self, word: &str) -> String {
        let mut text = format!("{word}: ");
        self.write_sentence(&mut text).ok();
        let Some(place) = &self.place else { return text };
        let line = match place {
            Place::File { position: Some((line, _)), .. } => line.to_string(),
            _ => String::new(),
        };
        let margin = " ".repeat(line.len());
        write!(text, "\n{margin}--> {place}").ok();
        if let Some(Excerpt { text: shown, skip, length }) = &self.excerpt {
            let mark = format!("{}{}", " ".repeat(*skip), "^".repeat((*length).max(1)));
            write!(text, "\n{margin} |\n{line} | {shown}\n{margin} | {mark}").ok();
        }
        text
    }

    fn write_sentence(&self, f: &mut impl fmt::Write) -> fmt::Result {
        if !self.key.is_empty() {
            write!(f, "{}: ", dotted(&self.key))?;
        }
        f.write_str(&self.message)?;
        match &self.suggestion {
            Some(suggestion) => write!(f, "; did you mean {suggestion:?}?"),
            None => Ok(()),
        }
    }
}

/// A key as it is written: `sinks.home.topics[1]`. A part that is not a plain name is quoted.
pub fn dotted(key: &[String]) -> String {
    let plain = |part: &str| {
        !part.is_empty()
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
    };
    // A name that may be one of a channel or a sink is shown everywhere.
    let name = |part: &str| {
        let small = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
        part.len() <= 64 && part.contains(['_', '-']) && part.bytes().all(small)
    };
    let mut text = String::new();
    for part in key {
        let element = part.starts_with('[') && part.ends_with(']');
        if !text.is_empty() && !element {
            text.push('.');
        }
        if looks_secret(part) && !name(part) {
            text.push('…');
        } else if element || plain(part) {
            text.push_str(part);
        } else {
            write!(text, "{part:?}").ok();
        }
    }
    text
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, position: Some((line, column)) } => {
                write!(f, "{}:{line}:{column}", path.display())
            }
            Self::File { path, position: None } => path.display().fmt(f),
            Self::Variable(name) => write!(f, "${name}"),
            Self::Argument(key) => {
                let part = |part: &str| match part {
                    "" => String::new(),
                    part => dotted(&[part.to_owned()]),
                };
                let parts: Vec<String> = key.split('.').map(part).collect();
                write!(f, "--set {}", parts.join("."))
            }
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        self.write_sentence(f)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_written_as_in_the_file() {
        for (key, expected) in [
            (&["sinks", "home", "topics", "[1]"][..], "sinks.home.topics[1]"),
            (&["sinks", "a b"], "sinks.\"a b\""),
            (&["sinks", ""], "sinks.\"\""),
            (&["a\n"], "\"a\\n\""),
            (&["channels", "eyJhbGciOiJIUzI1NiJ9"], "channels.…"),
            (
                &["sinks", "a_label_of_the_kind_that_some_people_like_to_write_down"],
                "sinks.a_label_of_the_kind_that_some_people_like_to_write_down",
            ),
        ] {
            let key: Vec<String> = key.iter().map(|&part| part.to_owned()).collect();
            assert_eq!(dotted(&key), expected);
        }
    }
}
