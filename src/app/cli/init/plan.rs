//! What a first configuration says, and how it is written.
//!
//! Each secret goes into a file of its own that only its owner can read; the configuration names that file.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, DirBuilder, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use super::InitError;
use crate::{
    astro::topics,
    config::{Secret, TokenType},
    sink,
};

/// Topics of a first configuration: what the channel's viewers do, the figures on the stream, and whether
/// it is live.
pub const FIRST_TOPICS: [&str; 4] = [
    "channel.activities", "channel.session.update", "channel.session.reset",
    "channel.stream.status",
];

/// A first configuration.
#[derive(Debug, Default)]
pub struct Plan {
    /// The channel's label.
    pub channel: String,
    pub room: Option<String>,
    pub token: Token,
    pub token_type: TokenType,
    /// None: [`FIRST_TOPICS`].
    pub topics: Vec<String>,
    /// None: standard output.
    pub sinks: Vec<NewSink>,
    /// Where the gateway and the REST API are, where that is not StreamElements.
    pub astro: BTreeMap<String, String>,
    /// The journal's directory, where it is not the usual one.
    pub journal: Option<PathBuf>,
}

/// Where the token comes from.
#[derive(Debug)]
pub enum Token {
    /// To be written into a file of its own.
    New(Secret),
    /// A file that holds it already.
    File(PathBuf),
}

impl Default for Token {
    fn default() -> Self {
        Self::File(PathBuf::new())
    }
}

/// A sink to be written.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct NewSink {
    pub kind: String,
    /// The address of its server, where the kind has one that is no secret.
    pub url: Option<String>,
    /// Its other keys.
    pub settings: toml::Table,
    /// Secrets, by the key: each is written into a file of its own.
    pub secrets: BTreeMap<String, Secret>,
}

impl From<String> for NewSink {
    fn from(text: String) -> Self {
        Self::parse(&text)
    }
}

impl NewSink {
    /// Reads `mqtt=mqtt://broker`, or `mqtt` for the usual address.
    pub fn parse(text: &str) -> Self {
        let (kind, url) = match text.split_once('=') {
            Some((kind, url)) => (kind, Some(url)),
            None => (text, None),
        };
        let mut sink = Self { kind: kind.trim().to_ascii_lowercase(), ..Self::default() };
        let url = url.or_else(|| usual_url(&sink.kind));
        if let Some(url) = url {
            sink.set_url(url);
        }
        sink
    }

    /// Sets the address of its server: as a secret, where the kind counts it as one.
    pub(super) fn set_url(&mut self, url: &str) {
        if self.has_secret_url() {
            self.secrets.insert("url".to_owned(), Secret::new(url));
        } else {
            self.url = Some(url.to_owned());
        }
    }

    /// Whether whoever has its address may send there.
    pub(super) fn has_secret_url(&self) -> bool {
        sink::kind(&self.kind).is_some_and(|kind| kind.secrets.contains(&"url"))
    }
}

/// Where the server of a kind usually listens, on the same machine.
pub(super) fn usual_url(kind: &str) -> Option<&'static str> {
    sink::kind(kind)?.usual_url.filter(|url| !url.is_empty())
}

/// The text of a configuration, and the files with its secrets.
#[derive(Debug)]
pub(super) struct Rendered {
    pub(super) text: String,
    pub(super) secrets: Vec<(PathBuf, Secret)>,
}

/// Where the secrets are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Secrets {
    /// In files of their own.
    InFiles,
    /// In the text itself, which is never written.
    Inline,
}

/// The secrets of a configuration that is being rendered.
struct SecretFiles<'p> {
    /// The configuration.
    file: &'p Path,
    /// A file that holds the token already.
    token: Option<&'p Path>,
    how: Secrets,
    /// What is to be written, and where.
    new: Vec<(PathBuf, Secret)>,
}

impl SecretFiles<'_> {
    /// The line of the configuration that gives the secret, or names its file.
    fn line(&mut self, name: &str, key: &str, secret: &Secret) -> String {
        match self.how {
            Secrets::Inline => format!("{key} = {}", quoted(secret.expose())),
            Secrets::InFiles => {
                let path = self.free(name);
                let line = format!("{key}_file = {}", quoted(&path.to_string_lossy()));
                self.new.push((path, secret.clone()));
                line
            }
        }
    }

    /// A path of that name beside the configuration; with a number where another file of it has the name.
    fn free(&self, name: &str) -> PathBuf {
        let beside = |name: &str| self.file.with_file_name(name);
        let is_taken = |path: &Path| {
            path == self.file
                || self.token == Some(path)
                || self.new.iter().any(|(other, _)| other == path)
        };
        let numbered = (2_u32..).map(|number| beside(&format!("{name}.{number}")));
        let mut paths = std::iter::once(beside(name)).chain(numbered);
        paths.find(|path| !is_taken(path)).unwrap_or_else(|| beside(name))
    }
}

impl Plan {
    /// The names of the sinks: by their kind, and a number where there are several.
    pub fn names(sinks: &[NewSink]) -> Vec<String> {
        let name = |(index, sink): (usize, &NewSink)| {
            let before = sinks.iter().take(index).filter(|other| other.kind == sink.kind).count();
            let number = if before == 0 { String::new() } else { (before + 1).to_string() };
            format!("{}{number}", sink.kind)
        };
        sinks.iter().enumerate().map(name).collect()
    }

    /// The configuration beside `file`. It says little: the reference says the rest.
    pub(super) fn render(&self, file: &Path, how: Secrets) -> Rendered {
        let token = match &self.token {
            Token::File(path) => Some(path.as_path()),
            Token::New(_) => None,
        };
        let mut secrets = SecretFiles { file, token, how, new: Vec::new() };
        let mut text = String::from(
            "# The configuration of astro-relay. Every key, with its default and a comment:\n\
             # `astro-relay config --reference`. `astro-relay check` validates this file.\n\n",
        );
        let mut line = |args: std::fmt::Arguments<'_>| {
            // Writing to a string cannot fail.
            text.write_fmt(args).and_then(|()| text.write_char('\n')).ok();
        };
        if !self.astro.is_empty() {
            line(format_args!("[astro]"));
            for (key, value) in &self.astro {
                line(format_args!("{key} = {}", quoted(value)));
            }
            line(format_args!(""));
        }
        if let Some(dir) = &self.journal {
            line(format_args!("# Only for this user: a service has a directory of its own."));
            line(format_args!("[journal]\ndir = {}\n", quoted(&dir.to_string_lossy())));
        }
        line(format_args!("# What is subscribed. There can be several such sections."));
        line(format_args!("[channels.{}]", quoted_key(&self.channel)));
        match &self.room {
            Some(room) => line(format_args!("room = {}", quoted(room))),
            None => {
                line(format_args!(
                    "# room = \"…\"   # the channel's id; without it, the token's own"
                ));
            }
        }
        line(format_args!(
            "# The file is read again on every connection: a new token needs no restart."
        ));
        match &self.token {
            Token::New(token) => {
                let name = format!("{}.token", self.channel);
                line(format_args!("{}", secrets.line(&name, "token", token)));
            }
            Token::File(path) => {
                line(format_args!("token_file = {}", quoted(&path.to_string_lossy())));
            }
        }
        if self.token_type != TokenType::default() {
            line(format_args!("token_type = {}", quoted(self.token_type.as_str())));
        }
        line(format_args!("topics = ["));
        let first = FIRST_TOPICS.map(ToOwned::to_owned);
        let topics = if self.topics.is_empty() { &first[..] } else { &self.topics };
        for topic in topics {
            let known = topics::CATALOGUE.iter().find(|known| known.name == topic);
            match known {
                Some(known) => line(format_args!("  {},   # {}", quoted(topic), known.meaning)),
                None => line(format_args!("  {},", quoted(topic))),
            }
        }
        line(format_args!("]\n\n# Where events go. There can be several such sections."));
        let usual = [NewSink { kind: "stdout".into(), ..NewSink::default() }];
        let sinks = if self.sinks.is_empty() { &usual[..] } else { &self.sinks };
        for (sink, name) in sinks.iter().zip(Self::names(sinks)) {
            line(format_args!("[sinks.{}]", quoted_key(&name)));
            line(format_args!("type = {}", quoted(&sink.kind)));
            if let Some(url) = &sink.url {
                line(format_args!("url = {}", quoted(url)));
            }
            for (key, secret) in &sink.secrets {
                line(format_args!("{}", secrets.line(&format!("{name}.{key}"), key, secret)));
            }
            for (key, value) in &sink.settings {
                line(format_args!("{} = {value}", quoted_key(key)));
            }
            line(format_args!("# topics = [\"channel.**\"]   # default: all\n"));
        }
        Rendered { text: text.trim_end().to_owned() + "\n", secrets: secrets.new }
    }
}

pub(super) fn refuse_existing(path: &Path, force: bool) -> Result<(), InitError> {
    // A dangling link is something, too.
    let there = path.symlink_metadata().is_ok();
    if there && !force { Err(InitError::Exists(path.to_owned())) } else { Ok(()) }
}

/// Mode of a file with a secret.
pub(super) const OWNER_ONLY: u32 = 0o600;
/// Mode of a file without one; the process's umask takes from it, but for a service's.
pub(super) const EVERYBODY_READS: u32 = 0o644;
/// Mode of a directory that has to be made, for a service of another user; as above.
const EVERYBODY_ENTERS: u32 = 0o755;

/// Whether a configuration is a service's, which has to read it as another user, whatever the umask was when it
/// was written.
pub(super) fn is_service(file: &Path) -> bool {
    file.starts_with("/etc")
}

/// Makes the directory of a file, where it is missing.
pub(super) fn make_dir(file: &Path) -> Result<(), InitError> {
    let Some(dir) = file.parent() else { return Ok(()) };
    let failed = |source| InitError::Write { path: dir.to_owned(), source };
    let is_new = !dir.exists();
    DirBuilder::new().recursive(true).mode(EVERYBODY_ENTERS).create(dir).map_err(failed)?;
    if is_new && is_service(file) {
        set_mode(dir, EVERYBODY_ENTERS).map_err(failed)?;
    }
    Ok(())
}

/// Gives a file its mode. Not every file system has modes to set: that is no error where the file allows as much by
/// itself. To execute a file that is only read says nothing.
fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode)).or_else(|error| {
        let found = fs::metadata(path)?.permissions().mode();
        if found & (mode | 0o666) == mode { Ok(()) } else { Err(error) }
    })
}

/// Writes a file whole or not at all. No more than the mode allows is allowed from the first byte on.
pub(super) fn write(path: &Path, content: &[u8], force: bool, mode: u32) -> Result<(), InitError> {
    write_with(path, content, force, mode, is_service(path))
}

/// The same. `exact`: the umask takes nothing from the mode.
fn write_with(
    path: &Path,
    content: &[u8],
    force: bool,
    mode: u32,
    exact: bool,
) -> Result<(), InitError> {
    let failed = |source| InitError::Write { path: path.to_owned(), source };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let draft = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    options.mode(mode);
    let outcome = options
        .open(&draft)
        .and_then(|mut file| {
            if exact {
                set_mode(&draft, mode)?;
            }
            file.write_all(content)?;
            file.sync_all()
        })
        .and_then(|()| if force { fs::rename(&draft, path) } else { publish(&draft, path) });
    // After a rename there is nothing left to remove.
    fs::remove_file(&draft).ok();
    outcome.map_err(|error| match error.kind() {
        // Somebody else was quicker.
        io::ErrorKind::AlreadyExists => InitError::Exists(path.to_owned()),
        _ => failed(error),
    })
}

/// Gives a draft its name, unless the name is taken. Not every file system has links, which alone
/// can do that in one step.
fn publish(draft: &Path, path: &Path) -> io::Result<()> {
    fs::hard_link(draft, path).or_else(|error| {
        if path.symlink_metadata().is_ok() { Err(error) } else { fs::rename(draft, path) }
    })
}

/// A string as TOML writes it.
fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

/// A key as TOML writes it; the loader reports what needs quotes.
fn quoted_key(key: &str) -> String {
    let bare =
        !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
    if bare { key.to_owned() } else { quoted(key) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A mode of which every usual umask takes something.
    #[test]
    fn the_umask_takes_nothing_from_the_files_of_a_service() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |name: &str, mode| {
            let file = dir.path().join(name);
            write_with(&file, b"x", false, mode, true).unwrap();
            fs::metadata(&file).unwrap().permissions().mode() & 0o777
        };
        assert_eq!(mode("configuration", 0o666), 0o666);
        assert_eq!(mode("secret", OWNER_ONLY), 0o600);
        assert!(is_service(Path::new("/etc/astro-relay/astro-relay.toml")));
        assert!(!is_service(Path::new("/home/a/etc/astro-relay.toml")));
    }

    #[test]
    fn a_mode_that_cannot_be_set_is_no_error_where_the_file_has_it() {
        // Everybody reads it, and nobody can change its mode.
        let path = Path::new("/proc/sys/kernel/ostype");
        set_mode(path, 0o444).unwrap();
        assert!(set_mode(path, OWNER_ONLY).is_err());
    }
}
