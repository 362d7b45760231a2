//! Loading: file, environment and command line become one [`Config`], or a list of every problem.
//!
//! The steps, each a file of its own: read the file with its places ([`crate::loading::places`]), lay the
//! layers over one another ([`crate::loading::layers`]), hold them against the schema ([`crate::loading::shape`]), look
//! for contradictions ([`crate::loading::check`]).
//!
//! What is wrong is reported and left out, and the rest is checked further, so that one run reports
//! everything. Only a file that is not TOML ends it early.

use std::{
    collections::BTreeMap,
    io::Read,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::{
    base::files,
    config::{
        Channel, Config, SinkConfig,
        pasted::looks_secret,
        problem::{ConfigError, Findings, Place, Problem},
    },
    loading::{
        check::{Tokens, check},
        layers::{self, plain},
        places::{self, File, Places},
        schema::{common_keys, keys, schema},
        shape::{Shape, walk},
    },
    publish,
};

/// Where a configuration is looked for when none is named.
pub const DEFAULT_FILES: [&str; 2] = ["astro-relay.toml", "/etc/astro-relay/astro-relay.toml"];

/// The largest file that is read: a thousand channels need a tenth of it, and a wrong path
/// (a journal, a device) must not fill the memory.
pub(crate) const LARGEST_FILE: u64 = 4 * 1024 * 1024;

/// Syntax errors that are reported: after the first few, the parser mostly stumbles over the first.
const MOST_SYNTAX_ERRORS: usize = 5;

/// What a configuration is made of.
#[derive(Clone)]
#[expect(missing_debug_implementations, reason = "the environment holds secrets")]
pub struct Sources {
    /// The file; without it, the first of [`DEFAULT_FILES`] that exists.
    pub file: Option<PathBuf>,
    /// Stands for the content of the file, which is then not read.
    pub text: Option<String>,
    /// The environment, see [`crate::base::environment::environment`].
    pub env: BTreeMap<String, String>,
    /// `--set` of the command line: a key with dots, and its value.
    pub set: Vec<(String, String)>,
    /// Whether secrets are looked for where the configuration says they are. Not when a
    /// configuration is checked on a machine that it is not for.
    pub resolve_secrets: bool,
}

impl Default for Sources {
    fn default() -> Self {
        Self {
            file: None,
            text: None,
            env: BTreeMap::new(),
            set: Vec::new(),
            resolve_secrets: true,
        }
    }
}

/// A configuration that can be used.
#[derive(Debug)]
pub struct Loaded {
    pub config: Config,
    /// What is hardly meant.
    pub warnings: Vec<Problem>,
    /// How many of the warnings say that a secret's file does not answer now.
    pub silent: usize,
    pub file: Option<PathBuf>,
}

/// Loads and checks a configuration.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigError> {
    let (env, env_problems) = layers::variables(&sources.env);
    let (set, set_problems) = layers::arguments(&sources.set);
    let alone = env.keys.is_empty() && set.keys.is_empty();
    let (file, text) = read(sources, alone)?;
    let path = file.as_deref().unwrap_or(Path::new("astro-relay.toml"));
    let tables = parse(path, &text)?;
    let merged = layers::merge(&text, &env, &set);
    let places = Places {
        file: file.is_some().then_some(File::new(path, &text, tables)),
        variables: env.keys,
        arguments: set.keys,
    };
    let mut errors = env_problems;
    errors.extend(set_problems);
    let merged = merged.unwrap_or_else(|problem| {
        errors.push(*problem);
        Value::Object(Map::new())
    });
    let shape = walk(schema(), &places, merged);
    errors.extend(shape.problems.iter().cloned());
    let mut config = typed(&shape, &mut errors);
    let (Findings { errors: more, mut warnings }, Tokens { silent, rooms }) =
        check(&config, &shape, &places, sources);
    config.token_rooms = rooms;
    describe_rooms(&mut config);
    errors.extend(more);
    let sections: Vec<&str> = keys(schema()).collect();
    warnings.extend(layers::misspelt(&sources.env, &sections));
    for problem in errors.iter_mut().chain(&mut warnings) {
        places.locate(problem);
    }
    errors.sort_by(|a, b| a.place.cmp(&b.place));
    warnings.sort_by(|a, b| a.place.cmp(&b.place));
    if errors.is_empty() {
        Ok(Loaded { config, warnings, silent, file })
    } else {
        Err(ConfigError { problems: errors })
    }
}

/// The file, and its text; neither where there is none and none is needed.
fn read(sources: &Sources, alone: bool) -> Result<(Option<PathBuf>, String), ConfigError> {
    let found = || DEFAULT_FILES.iter().map(PathBuf::from).find(|path| path.exists());
    if let Some(text) = &sources.text {
        let path = sources.file.clone().unwrap_or_else(|| "astro-relay.toml".into());
        return Ok((Some(path), text.clone()));
    }
    let Some(path) = sources.file.clone().or_else(found) else {
        if alone {
            let message = format!(
                "there is no configuration: neither {} exists; `astro-relay init` writes one",
                DEFAULT_FILES.join(" nor ")
            );
            return Err(ConfigError::at(&[], message));
        }
        return Ok((None, String::new()));
    };
    let failed = |message: String| {
        let place = Place::File { path: path.clone(), position: None };
        ConfigError { problems: vec![Problem::at_place(place, message)] }
    };
    let mut text = Vec::new();
    if std::fs::metadata(&path).is_ok_and(|about| about.file_type().is_fifo()) {
        // Nobody may ever write into it.
        let content = files::blocking(files::read(&path))
            .map_err(|error| failed(format!("cannot be read: {error}")))?
            .map_err(|error| failed(format!("cannot be read: {error}")))?;
        text.extend_from_slice(&content.bytes);
    } else {
        std::fs::File::open(&path)
            .and_then(|file| file.take(LARGEST_FILE + 1).read_to_end(&mut text))
            .map_err(|error| failed(format!("cannot be read: {error}")))?;
    }
    if text.len() as u64 > LARGEST_FILE {
        return Err(failed("is larger than 4 MiB: this is no configuration".into()));
    }
    let text = String::from_utf8(text).map_err(|_| failed("is not text in UTF-8".into()))?;
    Ok((Some(path), text))
}

/// Reads the text with the place of every key.
fn parse<'t>(path: &Path, text: &'t str) -> Result<DeTable<'t>, ConfigError> {
    let (tables, errors) = DeTable::parse_recoverable(text);
    let tables = tables.into_inner();
    let mut problems: Vec<Problem> = errors
        .iter()
        .filter(|error| !follows_a_repeated_table(error, text))
        .take(MOST_SYNTAX_ERRORS)
        .map(|error| {
            let at = error.span().map_or(text.len(), |span| span.start);
            let (place, excerpt) = places::syntax(path, text, at);
            Problem { excerpt, ..Problem::at_place(place, syntax_message(error, text, at)) }
        })
        .collect();
    if problems.is_empty() {
        // The `config` crate would read such a key as a path of several.
        let odd = tables.keys().filter(|key| !plain(key.get_ref()));
        for key in odd {
            let place = Some(places::syntax(path, text, key.span().start).0);
            let problem = Problem::new([key.get_ref().as_ref()], "unknown section");
            problems.push(Problem { place, ..problem });
        }
        too_large(&tables, &mut |at| {
            let (place, excerpt) = places::syntax(path, text, at);
            let problem = Problem::at_place(place, "this number is too large");
            problems.push(Problem { excerpt, ..problem });
        });
    }
    problems.sort_by(|a, b| a.place.cmp(&b.place));
    if problems.is_empty() { Ok(tables) } else { Err(ConfigError { problems }) }
}

fn syntax_message(error: &toml::de::Error, text: &str, at: usize) -> String {
    let word = text.get(at..).and_then(|rest| rest.chars().next()).is_some_and(char::is_alphabetic);
    // The parser takes a bare word for the number `inf`.
    match error.message() {
        message if word && message.starts_with("invalid float") => {
            "is not TOML: text stands in quotes".into()
        }
        message if message.starts_with("duplicate key") => match repeated(text, at) {
            Some((what, first, second)) => {
                format!("is not TOML: {what} is there twice, in lines {first} and {second}")
            }
            None => format!("is not TOML: {message}"),
        },
        message => format!("is not TOML: {message}"),
    }
}

/// The head of a table on the line at `at`, and the number of that line.
fn head_at(text: &str, at: usize) -> Option<(&str, usize)> {
    let before = text.get(..at)?;
    let number = before.matches('\n').count();
    let line = text.lines().nth(number)?.trim();
    line.starts_with('[').then_some((line, number + 1))
}

/// What stands twice, and in which lines: the head of a table at `at`. Not of a key, whose name may be a
/// secret that was pasted.
fn repeated(text: &str, at: usize) -> Option<(String, usize, usize)> {
    let (head, second) = head_at(text, at)?;
    let first = text.lines().take(second - 1).position(|line| line.trim() == head)? + 1;
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.[]".contains(c);
    let shown = head.chars().all(plain) && !looks_secret(head);
    Some((if shown { head.to_owned() } else { "a table".to_owned() }, first, second))
}

/// Whether it is a key of a table that is there twice: that is reported once, for the table.
fn follows_a_repeated_table(error: &toml::de::Error, text: &str) -> bool {
    let Some(at) = error.span().map(|span| span.start) else { return false };
    if !error.message().starts_with("duplicate key") || head_at(text, at).is_some() {
        return false;
    }
    let Some(before) = text.get(..at) else { return false };
    let Some(head) = before.rfind("\n[").map(|end| end + 1) else { return false };
    repeated(text, head).is_some()
}

/// Finds numbers of more than 64 bits, which TOML's grammar allows and nothing can hold.
fn too_large(table: &DeTable<'_>, found: &mut impl FnMut(usize)) {
    fn inside(value: &Spanned<DeValue<'_>>, found: &mut impl FnMut(usize)) {
        match value.get_ref() {
            DeValue::Integer(number) => {
                if i64::from_str_radix(number.as_str(), number.radix()).is_err() {
                    found(value.span().start);
                }
            }
            DeValue::Float(number) => {
                let infinite = number.as_str().parse::<f64>().is_ok_and(f64::is_infinite);
                if infinite && !number.as_str().contains("inf") {
                    found(value.span().start);
                }
            }
            DeValue::Array(list) => list.iter().for_each(|value| inside(value, found)),
            DeValue::Table(table) => too_large(table, found),
            DeValue::String(_) | DeValue::Boolean(_) | DeValue::Datetime(_) => {}
        }
    }
    for (_, value) in table {
        inside(value, found);
    }
}

/// The typed configuration of what is well shaped. What lacks something that it needs is left out.
fn typed(shape: &Shape, errors: &mut Vec<Problem>) -> Config {
    let mut sections = shape.value.as_object().cloned().unwrap_or_default();
    let mut channels = BTreeMap::new();
    for (label, table) in tables(sections.remove("channels")) {
        let channel: Option<Channel> = section(&["channels", &label], table, shape, errors);
        channels.extend(channel.map(|channel| (label, channel)));
    }
    let mut sinks = BTreeMap::new();
    for (name, table) in tables(sections.remove("sinks")) {
        let (common, settings) = split(table);
        let sink: Option<SinkConfig> = section(&["sinks", &name], common, shape, errors);
        sinks.extend(sink.map(|sink| {
            let sink = SinkConfig { settings, ..sink };
            (name, sink)
        }));
    }
    publish::expand(&mut sinks, &channels);
    Config {
        token_rooms: BTreeMap::new(),
        channels,
        sinks,
        astro: plain_section("astro", &mut sections, shape, errors),
        journal: plain_section("journal", &mut sections, shape, errors),
        session: plain_section("session", &mut sections, shape, errors),
        backfill: plain_section("backfill", &mut sections, shape, errors),
        cluster: plain_section("cluster", &mut sections, shape, errors),
        http: plain_section("http", &mut sections, shape, errors),
        log: plain_section("log", &mut sections, shape, errors),
        reload: plain_section("reload", &mut sections, shape, errors),
    }
}

/// A section that is one table; without it, its defaults.
fn plain_section<T: DeserializeOwned + Default>(
    name: &str,
    sections: &mut Map<String, Value>,
    shape: &Shape,
    errors: &mut Vec<Problem>,
) -> T {
    let table = sections.remove(name);
    table.and_then(|table| section(&[name], table, shape, errors)).unwrap_or_default()
}

/// What a sink describes is known by the channel's room; where none is configured, the token names it.
fn describe_rooms(Config { sinks, token_rooms, .. }: &mut Config) {
    for (label, described) in sinks.values_mut().flat_map(|sink| &mut sink.feeds) {
        if described.room.is_none() {
            described.room = token_rooms.get(label).cloned();
        }
    }
}

/// One section as its type. If it does not fit although the schema found nothing, the schema is
/// wrong; that is reported without serde's words, which show values.
fn section<T: DeserializeOwned>(
    key: &[&str],
    table: Value,
    shape: &Shape,
    errors: &mut Vec<Problem>,
) -> Option<T> {
    let section = serde_json::from_value(table).ok();
    if section.is_none() && shape.whole(key) {
        errors.push(Problem::new(key.iter().copied(), "does not fit what is expected here"));
    }
    section
}

fn tables(section: Option<Value>) -> Map<String, Value> {
    match section {
        Some(Value::Object(tables)) => tables,
        _ => Map::new(),
    }
}

/// A sink's table, split into what all sinks share and what is its kind's own.
fn split(table: Value) -> (Value, Value) {
    let (common, own) = tables(Some(table))
        .into_iter()
        .partition(|(key, _)| common_keys().any(|common| common == key));
    (Value::Object(common), Value::Object(own))
}

#[cfg(test)]
mod tests;
