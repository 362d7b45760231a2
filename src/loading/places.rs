//! Where a key stands: the line and column in the file, the variable, or the argument; and how much
//! of that line may be shown.
//!
//! An excerpt shows a line up to its key and never what stands behind it. Which
//! values are secret cannot be known where something is wrong: a token may have been pasted behind any
//! key.

use std::{ops::Range, path::Path};

use toml::de::{DeArray, DeTable, DeValue};

use crate::{
    config::pasted::looks_secret,
    config::{
        problem::{Excerpt, Place, Problem},
        secret::FORMS,
    },
    loading::layers::Keys,
};

/// The widest excerpt: what fits beside the line's number on a wide terminal.
const EXCERPT_CHARS: usize = 120;

/// The keys of all layers, with their places.
pub(crate) struct Places<'t> {
    /// The file, where there is one.
    pub(crate) file: Option<File<'t>>,
    /// Keys that the environment sets.
    pub(crate) variables: Keys,
    /// Keys that the command line sets.
    pub(crate) arguments: Keys,
}

/// The file as it was read.
pub(crate) struct File<'t> {
    pub(crate) path: &'t Path,
    pub(crate) text: &'t str,
    /// Its tables, with the place of each key.
    tables: DeTable<'t>,
    /// Where its lines end: there may be as many problems as lines.
    ends: Vec<usize>,
}

/// Where a value comes from; the later overrides the earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Layer {
    File,
    Environment,
    CommandLine,
}

/// A key found in the file.
struct Found {
    key: Range<usize>,
    /// Parts of the path that were found: fewer than there are where the key is missing.
    depth: usize,
}

impl Places<'_> {
    /// Which layer the value at `path` comes from.
    pub(crate) fn layer(&self, path: &[String]) -> Layer {
        if over(&self.arguments, path).is_some() {
            Layer::CommandLine
        } else if over(&self.variables, path).is_some() {
            Layer::Environment
        } else {
            Layer::File
        }
    }

    /// Puts the place into `problem`, and the line of the file as far as it may be shown.
    pub(crate) fn locate(&self, problem: &mut Problem) {
        if problem.place.is_some() {
            return;
        }
        let paths = forms(&problem.key);
        for path in &paths {
            if let Some((key, _)) = over(&self.arguments, path) {
                problem.place = Some(Place::Argument(key.join(".")));
                return;
            }
            if let Some((_, name)) = over(&self.variables, path) {
                problem.place = Some(Place::Variable(name.clone()));
                return;
            }
        }
        let Some(file) = &self.file else {
            problem.place = self.under(&problem.key);
            return;
        };
        // For a key that is missing, what is found is the table that should hold it.
        let found = paths.iter().filter_map(|path| file.find(path)).max_by_key(|found| found.depth);
        let Some(found) = found.filter(|found| found.depth + 1 >= problem.key.len()) else {
            let whole = Place::File { path: file.path.to_owned(), position: None };
            problem.place = Some(self.under(&problem.key).unwrap_or(whole));
            return;
        };
        let position = Some(position(file.text, &file.ends, found.key.start));
        problem.place = Some(Place::File { path: file.path.to_owned(), position });
        problem.excerpt = excerpt(file.text, &found.key);
    }

    /// A table that only variables or arguments make: one of them stands for it.
    fn under(&self, path: &[String]) -> Option<Place> {
        let table = path.get(..path.len().saturating_sub(1)).filter(|table| !table.is_empty())?;
        let variable = self.variables.iter().find(|(key, _)| key.starts_with(table));
        let argument = self.arguments.keys().find(|key| key.starts_with(table));
        variable
            .map(|(_, name)| Place::Variable(name.clone()))
            .or_else(|| argument.map(|key| Place::Argument(key.join("."))))
    }
}

/// The entry of `keys` that sets `path` or a table around it.
fn over<'k>(keys: &'k Keys, path: &[String]) -> Option<(&'k Vec<String>, &'k String)> {
    (1..=path.len()).rev().find_map(|length| keys.get_key_value(path.get(..length)?))
}

/// The path, and those of the other forms of a secret's key.
fn forms(path: &[String]) -> Vec<Vec<String>> {
    let Some((last, table)) = path.split_last() else { return Vec::new() };
    FORMS
        .iter()
        .map(|(suffix, _)| {
            let mut form = table.to_vec();
            form.push(format!("{last}{suffix}"));
            form
        })
        .collect()
}

impl<'t> File<'t> {
    pub(crate) fn new(path: &'t Path, text: &'t str, tables: DeTable<'t>) -> Self {
        Self { path, text, tables, ends: ends(text) }
    }

    /// The place of a key, or of the nearest table around it.
    fn find(&self, path: &[String]) -> Option<Found> {
        let mut inside: Option<&DeValue<'_>> = None;
        let mut found = None;
        for (depth, part) in path.iter().enumerate() {
            let next = match inside {
                None if depth == 0 => entry(&self.tables, part),
                Some(DeValue::Table(table)) => entry(table, part),
                Some(DeValue::Array(list)) => element(list, part),
                _ => None,
            };
            let Some((key, value)) = next else { break };
            found = Some(Found { key, depth: depth + 1 });
            inside = Some(value);
        }
        found
    }
}

fn entry<'f, 't>(table: &'f DeTable<'t>, name: &str) -> Option<(Range<usize>, &'f DeValue<'t>)> {
    let (key, value) = table.get_key_value(name)?;
    Some((key.span(), value.get_ref()))
}

fn element<'f, 't>(list: &'f DeArray<'t>, part: &str) -> Option<(Range<usize>, &'f DeValue<'t>)> {
    let index: usize = part.trim_matches(['[', ']']).parse().ok()?;
    let value = list.get(index)?;
    Some((value.span(), value.get_ref()))
}

/// The line up to a key and with it; nothing where something else stands before it.
fn excerpt(text: &str, key: &Range<usize>) -> Option<Excerpt> {
    let (start, line) = line(text, key.start);
    let before = line.get(..key.start.checked_sub(start)?)?;
    let name = line.get(before.len()..key.end.checked_sub(start)?)?;
    // In an inline table, another key's value may stand before it.
    if looks_secret(name)
        || looks_secret(before.trim())
        || !before.chars().all(|c| c.is_ascii_alphanumeric() || " \t_-.[".contains(c))
    {
        return None;
    }
    let end = if before.trim_start().starts_with('[') {
        line.get(before.len() + name.len()..).map(head_end).unwrap_or_default()
    } else {
        " = …"
    };
    cut(&format!("{before}{name}{end}"), before.chars().count(), name.chars().count())
}

/// What is left of the head of a table, without a comment behind it.
fn head_end(rest: &str) -> &str {
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && !"_-.]".contains(c));
    rest.get(..end.unwrap_or(rest.len())).unwrap_or_default()
}

/// An excerpt no wider than a terminal; none where the part that is meant lies beyond that.
fn cut(text: &str, skip: usize, length: usize) -> Option<Excerpt> {
    let text: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(EXCERPT_CHARS).collect();
    let room = text.chars().count().checked_sub(skip)?;
    Some(Excerpt { text, skip, length: length.min(room.max(1)) })
}

/// Where a syntax error stands, and the line's key, or the line if it is the head of a table.
pub(crate) fn syntax(path: &Path, text: &str, at: usize) -> (Place, Option<Excerpt>) {
    let at = at.min(text.len());
    let (start, line) = line(text, at);
    let place =
        Place::File { path: path.to_owned(), position: Some(position(text, &ends(text), at)) };
    // Inside a string of several lines, what looks like a key may be anything.
    if text.contains("\"\"\"") || text.contains("'''") {
        return (place, None);
    }
    let plain =
        |part: &str| part.chars().all(|c| c.is_ascii_alphanumeric() || " \t_-.[]".contains(c));
    let excerpt = match line.split_once('=') {
        Some((key, _)) if plain(key) && !looks_secret(key.trim()) => {
            let skip = key.chars().take_while(|c| c.is_whitespace()).count();
            cut(&format!("{key}= …"), skip, key.trim().chars().count())
        }
        None if line.trim_start().starts_with('[') && plain(line) && !looks_secret(line) => {
            let before = text.get(start..at).unwrap_or_default().chars().count();
            cut(line, before, 1)
        }
        _ => None,
    };
    (place, excerpt)
}

/// The line around `at`, with where it begins.
fn line(text: &str, at: usize) -> (usize, &str) {
    let start = text.get(..at).and_then(|before| before.rfind('\n')).map_or(0, |end| end + 1);
    let rest = text.get(start..).unwrap_or_default();
    (start, rest.lines().next().unwrap_or_default())
}

/// Where the lines of a text end.
fn ends(text: &str) -> Vec<usize> {
    text.match_indices('\n').map(|(at, _)| at).collect()
}

/// Line and column of a byte, both from 1, of a text whose lines end there; the column counts characters.
fn position(text: &str, ends: &[usize], at: usize) -> (usize, usize) {
    let line = ends.partition_point(|end| *end < at);
    let start = line.checked_sub(1).and_then(|before| ends.get(before)).map_or(0, |end| end + 1);
    (line + 1, text.get(start..at).unwrap_or_default().chars().count() + 1)
}
