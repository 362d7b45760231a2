//! `astro-relay init`: a few questions, and a valid configuration.
//!
//! What the command line does not answer is asked for on the terminal, if there is one. The token goes
//! into a file of its own that only its owner can read; the configuration names that file. Nothing is
//! connected to, and the token is not tried.
//!
//! The configuration is loaded before it is written. If it is invalid, or a file is already there, nothing
//! is written at all.

use std::{
    fmt::Write as _,
    fs::{self, OpenOptions},
    io::{self, BufRead, Write},
    path::{Path, PathBuf},
};

use crate::{
    astro::topics,
    config::{ConfigError, Secret, TokenType},
    loading::{Sources, load},
    sink::{self, KINDS},
};

/// Topics of a first configuration: what the channel's viewers do, and the figures on the stream.
const FIRST_TOPICS: [&str; 3] =
    ["channel.activities", "channel.session.update", "channel.session.reset"];

/// What the command line says. Everything else is asked for.
#[derive(Debug, Default)]
pub struct Args {
    pub file: PathBuf,
    pub force: bool,
    pub channel: Option<String>,
    pub room: Option<String>,
    /// The token, to be written into a file of its own.
    pub token: Option<Secret>,
    /// A file that holds the token already.
    pub token_file: Option<PathBuf>,
    pub token_type: TokenType,
    pub topics: Vec<String>,
    pub sinks: Vec<NewSink>,
}

/// A sink to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSink {
    pub kind: String,
    /// The address of its server, where the kind has one.
    pub url: Option<String>,
}

/// What was written.
#[derive(Debug, PartialEq, Eq)]
pub struct Written {
    pub file: PathBuf,
    /// The file with the token, unless it was there before.
    pub secret: Option<PathBuf>,
}

/// Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// A file is already there.
    #[error("{} is already there; --force overwrites it", .0.display())]
    Exists(PathBuf),
    /// An answer is missing, and nobody is there to be asked.
    #[error("{0} is needed, or a terminal to ask on")]
    Missing(&'static str),
    /// The input ended in the middle of the questions.
    #[error("the input ended before all questions were answered")]
    Ended,
    /// A file cannot be written.
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    /// The terminal failed.
    #[error("cannot ask on the terminal")]
    Terminal(#[from] io::Error),
    /// The answers make no configuration.
    #[error("these answers do not make a valid configuration")]
    Unusable(#[source] ConfigError),
}

impl NewSink {
    /// Reads `mqtt=mqtt://broker`, or `mqtt` for the usual address.
    pub fn parse(text: &str) -> Self {
        match text.split_once('=') {
            Some((kind, url)) => Self { kind: kind.into(), url: Some(url.into()) },
            None => Self { kind: text.into(), url: usual_url(text).map(ToOwned::to_owned) },
        }
    }
}

/// Where the server of a kind usually listens, on the same machine.
fn usual_url(kind: &str) -> Option<&'static str> {
    sink::kind(kind)?.usual_url.filter(|url| !url.is_empty())
}

#[expect(
    missing_debug_implementations,
    reason = "it borrows two streams that have nothing to show"
)]
pub struct Terminal<'t> {
    pub input: &'t mut dyn BufRead,
    pub output: &'t mut dyn Write,
}

/// Asks for what `args` leaves open, and writes the configuration.
pub fn run(mut args: Args, terminal: Option<Terminal<'_>>) -> Result<Written, InitError> {
    let file = absolute(&args.file)?;
    refuse_existing(&file, args.force)?;
    match terminal {
        Some(mut terminal) => ask(&mut args, &mut terminal)?,
        None if args.token.is_none() && args.token_file.is_none() => {
            return Err(InitError::Missing("--token-file"));
        }
        None => {}
    }
    let channel = args.channel.clone().unwrap_or_else(|| "main".into());
    let secret = args.token.take().map(|token| {
        let name = format!("{channel}.token");
        (file.with_file_name(name), token)
    });
    if let Some((path, _)) = &secret {
        refuse_existing(path, args.force)?;
    }
    let token_file = match (&secret, &args.token_file) {
        (Some((path, _)), _) => path.clone(),
        (None, Some(path)) => absolute(path)?,
        (None, None) => return Err(InitError::Missing("--token-file")),
    };
    let text = rendered(&args, &channel, &token_file);
    let sources = Sources {
        file: Some(file.clone()),
        text: Some(text.clone()),
        resolve_secrets: false,
        ..Sources::default()
    };
    load(&sources).map_err(InitError::Unusable)?;
    if let Some((path, token)) = &secret {
        write(path, format!("{}\n", token.expose()).as_bytes(), args.force, OWNER_ONLY)?;
    }
    write(&file, text.as_bytes(), args.force, EVERYBODY_READS)?;
    Ok(Written { file, secret: secret.map(|(path, _)| path) })
}

fn absolute(path: &Path) -> Result<PathBuf, InitError> {
    std::path::absolute(path).map_err(|source| InitError::Write { path: path.to_owned(), source })
}

fn refuse_existing(path: &Path, force: bool) -> Result<(), InitError> {
    // A dangling link is something, too.
    let there = path.symlink_metadata().is_ok();
    if there && !force { Err(InitError::Exists(path.to_owned())) } else { Ok(()) }
}

/// Mode of a file with a secret.
const OWNER_ONLY: u32 = 0o600;
/// Mode of a file without one; the process's umask takes from it.
const EVERYBODY_READS: u32 = 0o644;

/// Writes a file whole or not at all. The mode holds from the first byte on.
fn write(path: &Path, content: &[u8], force: bool, mode: u32) -> Result<(), InitError> {
    let failed = |source| InitError::Write { path: path.to_owned(), source };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let draft = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    #[cfg(not(unix))]
    let _ = mode;
    let outcome = options
        .open(&draft)
        .and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()))
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

fn ask(args: &mut Args, terminal: &mut Terminal<'_>) -> Result<(), InitError> {
    if args.channel.is_none() {
        let question = "A name of your own for the channel";
        args.channel = Some(terminal.ask(question, "main")?);
    }
    if args.room.is_none() {
        let question = "The channel's id, 24 hexadecimal digits; empty for that of the token";
        args.room = Some(terminal.ask(question, "")?).filter(|room| !room.is_empty());
    }
    while args.token.is_none() && args.token_file.is_none() {
        let question =
            "The file that holds the token, or the token itself (it is shown as you type)";
        let answer = terminal.ask(question, "")?;
        if Path::new(&answer).is_file() {
            args.token_file = Some(answer.into());
        } else if answer.starts_with(['/', '.', '~']) {
            writeln!(terminal.output, "There is no such file.")?;
        } else if !answer.is_empty() {
            args.token = Some(Secret::new(answer));
        }
    }
    while args.topics.is_empty() {
        let question = "Topics, comma-separated (? for a list)";
        let answer = terminal.ask(question, &FIRST_TOPICS.join(","))?;
        if answer == "?" {
            for topic in topics::CATALOGUE {
                writeln!(terminal.output, "  {:<34} {}", topic.name, topic.meaning)?;
            }
        } else {
            args.topics = answer.split(',').map(|topic| topic.trim().to_owned()).collect();
        }
    }
    if args.sinks.is_empty() {
        let kinds: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
        let question = format!("Where events go: {}", kinds.join(", "));
        let mut sink = NewSink::parse(&terminal.ask(&question, "stdout")?);
        if sink::kind(&sink.kind).is_none_or(|kind| kind.usual_url.is_some()) {
            let usual = sink.url.take().unwrap_or_default();
            sink.url = Some(terminal.ask("Its address", &usual)?);
        }
        args.sinks.push(sink);
    }
    Ok(())
}

impl Terminal<'_> {
    /// One question, and its answer; an empty line is the usual one.
    fn ask(&mut self, question: &str, usual: &str) -> Result<String, InitError> {
        match usual {
            "" => write!(self.output, "{question}: ")?,
            usual => write!(self.output, "{question} [{usual}]: ")?,
        }
        self.output.flush()?;
        let mut line = String::new();
        if self.input.read_line(&mut line)? == 0 {
            return Err(InitError::Ended);
        }
        let answer = line.trim();
        Ok(if answer.is_empty() { usual.to_owned() } else { answer.to_owned() })
    }
}

/// The configuration's text. It says little: the reference says the rest.
fn rendered(args: &Args, channel: &str, token_file: &Path) -> String {
    let mut text = String::from(
        "# The configuration of astro-relay. Every key, with its default and a comment:\n\
         # `astro-relay config --reference`. `astro-relay check` validates this file.\n\n",
    );
    let mut line = |args: std::fmt::Arguments<'_>| {
        // Writing to a string cannot fail.
        text.write_fmt(args).and_then(|()| text.write_char('\n')).ok();
    };
    line(format_args!("# What is subscribed. There can be several such sections."));
    line(format_args!("[channels.{}]", quoted_key(channel)));
    match &args.room {
        Some(room) => line(format_args!("room = {}", quoted(room))),
        None => {
            line(format_args!("# room = \"…\"   # the channel's id; without it, the token's own"));
        }
    }
    line(format_args!(
        "# The file is read again on every connection: a new token needs no restart."
    ));
    line(format_args!("token_file = {}", quoted(&token_file.to_string_lossy())));
    if args.token_type != TokenType::default() {
        line(format_args!("token_type = {}", quoted(args.token_type.as_str())));
    }
    line(format_args!("topics = ["));
    let first = FIRST_TOPICS.map(ToOwned::to_owned);
    let topics = if args.topics.is_empty() { &first[..] } else { &args.topics };
    for topic in topics {
        let known = topics::CATALOGUE.iter().find(|known| known.name == topic);
        match known {
            Some(known) => line(format_args!("  {},   # {}", quoted(topic), known.meaning)),
            None => line(format_args!("  {},", quoted(topic))),
        }
    }
    line(format_args!("]\n\n# Where events go. There can be several such sections."));
    let usual = [NewSink { kind: "stdout".into(), url: None }];
    let sinks = if args.sinks.is_empty() { &usual[..] } else { &args.sinks };
    for (index, sink) in sinks.iter().enumerate() {
        let before = sinks.iter().take(index).filter(|other| other.kind == sink.kind).count();
        let number = if before == 0 { String::new() } else { (before + 1).to_string() };
        line(format_args!("[sinks.{}]", quoted_key(&format!("{}{number}", sink.kind))));
        line(format_args!("type = {}", quoted(&sink.kind)));
        if let Some(url) = &sink.url {
            line(format_args!("url = {}", quoted(url)));
        }
        line(format_args!("# topics = [\"channel.**\"]   # default: all\n"));
    }
    text.trim_end().to_owned() + "\n"
}

/// A string as TOML writes it.
fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

/// A key as TOML writes it; what needs quotes is told by the loader.
fn quoted_key(key: &str) -> String {
    let bare =
        !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
    if bare { key.to_owned() } else { quoted(key) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn answers(file: &Path) -> Args {
        Args { file: file.to_owned(), token: Some(Secret::new("hunter2")), ..Args::default() }
    }

    fn asked(args: Args, input: &str) -> (Result<Written, InitError>, String) {
        let mut output = Vec::new();
        let mut input = input.as_bytes();
        let outcome = run(args, Some(Terminal { input: &mut input, output: &mut output }));
        (outcome, String::from_utf8(output).unwrap())
    }

    #[test]
    fn the_written_file_is_valid_and_the_secret_is_in_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("astro-relay.toml");
        let written = run(answers(&file), None).unwrap();
        let secret = dir.path().join("main.token");
        assert_eq!(written, Written { file: file.clone(), secret: Some(secret.clone()) });
        assert_eq!(fs::read_to_string(&secret).unwrap(), "hunter2\n");
        assert_eq!(fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!fs::read_to_string(&file).unwrap().contains("hunter2"));
        let loaded = load(&Sources { file: Some(file), ..Sources::default() }).unwrap();
        // The only thing to be said is that such a token is none.
        let warnings: Vec<_> = loaded.warnings.iter().map(ToString::to_string).collect();
        assert!(warnings.len() == 1 && warnings[0].contains("no JWT"), "{warnings:?}");
        let channel = &loaded.config.channels["main"];
        assert_eq!(channel.topics, FIRST_TOPICS);
        assert_eq!(channel.token.read_token_blocking().unwrap().expose(), "hunter2");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "no draft is left");
    }

    #[test]
    fn nothing_is_overwritten_without_force() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("astro-relay.toml");
        let secret = dir.path().join("main.token");
        fs::write(&secret, "old").unwrap();
        assert!(
            matches!(run(answers(&file), None), Err(InitError::Exists(path)) if path == secret)
        );
        assert!(!file.exists());
        fs::write(&file, "old").unwrap();
        assert!(matches!(run(answers(&file), None), Err(InitError::Exists(path)) if path == file));
        assert_eq!(fs::read_to_string(&file).unwrap(), "old");
        run(Args { force: true, ..answers(&file) }, None).unwrap();
        assert_eq!(fs::read_to_string(&secret).unwrap(), "hunter2\n");
        assert_eq!(fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(fs::read_to_string(&file).unwrap().contains("[channels.main]"));
    }

    #[test]
    fn missing_arguments_are_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("astro-relay.toml");
        let input =
            "shop\n5b2e2007760aeb7729487dab\n\n/no/such\nhunter2\n?\n channel.tips , x.y \n\n";
        let (outcome, output) = asked(Args { file: file.clone(), ..Args::default() }, input);
        assert_eq!(outcome.unwrap().secret, Some(dir.path().join("shop.token")));
        assert!(output.contains("There is no such file.") && output.contains("channel.giveaways"));
        let config = load(&Sources { file: Some(file), ..Sources::default() }).unwrap().config;
        let channel = &config.channels["shop"];
        assert_eq!(channel.room.as_deref(), Some("5b2e2007760aeb7729487dab"));
        assert_eq!(channel.topics, ["channel.tips", "x.y"]);
        assert_eq!(config.sinks["stdout"].kind, "stdout");
    }

    #[test]
    fn without_a_terminal_the_missing_answer_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let args = Args { file: dir.path().join("x.toml"), ..Args::default() };
        assert!(matches!(run(args, None), Err(InitError::Missing("--token-file"))));
        let args = Args { file: dir.path().join("x.toml"), ..Args::default() };
        assert!(matches!(asked(args, "main\n").0, Err(InitError::Ended)));
    }

    #[test]
    fn invalid_answers_write_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("astro-relay.toml");
        for args in [
            Args { channel: Some("My Shop".into()), ..answers(&file) },
            Args { topics: vec![String::new()], ..answers(&file) },
            Args { sinks: vec![NewSink::parse("mqttt=x")], ..answers(&file) },
        ] {
            assert!(matches!(run(args, None), Err(InitError::Unusable(_))));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_sink_is_read_with_and_without_its_address() {
        for (text, kind, url) in [
            ("mqtt", "mqtt", Some("mqtt://127.0.0.1:1883")),
            ("mqtt=mqtts://broker?a=b", "mqtt", Some("mqtts://broker?a=b")),
            ("stdout", "stdout", None),
        ] {
            let url = url.map(ToOwned::to_owned);
            assert_eq!(NewSink::parse(text), NewSink { kind: kind.into(), url });
        }
    }
}
