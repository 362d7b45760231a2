//! Loading: file, environment and command line become one [`Config`], or a list of every problem.

use std::fmt;

/// One thing wrong in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key, from the top: `sinks.home.url`.
    pub key: Vec<String>,
    /// What was expected, and what is there.
    pub message: String,
    /// The nearest right name, where the key or word is unknown.
    pub suggestion: Option<String>,
    /// Where it stands: the file and its line and column (from 1), or the variable.
    pub place: Option<String>,
}

/// The configuration cannot be used; says everything that is wrong at once.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// At least one.
    pub problems: Vec<Problem>,
}

impl ConfigError {
    /// One problem at a key.
    pub fn at(key: &[&str], message: impl Into<String>) -> Self {
        let key = key.iter().map(|&part| part.to_owned()).collect();
        Self {
            problems: vec![Problem { key, message: message.into(), suggestion: None, place: None }],
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        write!(f, "{}: {}", self.key.join("."), self.message)?;
        match &self.suggestion {
            Some(suggestion) => write!(f, " (did you mean {suggestion:?}?)"),
            None => Ok(()),
        }
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
