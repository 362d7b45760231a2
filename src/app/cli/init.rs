//! `astro-relay init`: a few questions, and a valid configuration.
//!
//! What the command line does not answer is asked for on the terminal, if there is one. Secrets are not
//! shown as they are typed, and each goes into a file of its own that only its owner can read; the
//! configuration names that file. Nothing is connected to.
//!
//! The configuration is loaded before it is written. If it is invalid, or a file is already there, nothing
//! is written at all.

mod ask;
mod plan;

use std::{
    io::{self, BufRead, Write},
    path::{Path, PathBuf},
};

use self::plan::{EVERYBODY_READS, OWNER_ONLY, Secrets, refuse_existing, write};
pub use self::plan::{FIRST_TOPICS, NewSink, Plan, Token};
use crate::{
    config::{ConfigError, Secret, TokenType},
    loading::{Loaded, Sources, load},
};

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

/// What was written.
#[derive(Debug, PartialEq, Eq)]
pub struct Written {
    pub file: PathBuf,
    /// The files with secrets.
    pub secrets: Vec<PathBuf>,
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

#[expect(
    missing_debug_implementations,
    reason = "it borrows two streams that have nothing to show"
)]
pub struct Terminal<'t> {
    pub input: &'t mut dyn BufRead,
    pub output: &'t mut dyn Write,
    /// Whether what is typed is shown from now on.
    pub echo: &'t dyn Fn(bool),
}

/// Asks for what `args` leaves open, and writes the configuration.
pub fn run(mut args: Args, terminal: Option<Terminal<'_>>) -> Result<Written, InitError> {
    let file = absolute(&args.file)?;
    refuse_existing(&file, args.force)?;
    match terminal {
        Some(mut terminal) => ask::ask(&mut args, &mut terminal)?,
        None if args.token.is_none() && args.token_file.is_none() => {
            return Err(InitError::Missing("--token-file"));
        }
        None => {}
    }
    let token = match (args.token, args.token_file) {
        (Some(token), _) => Token::New(token),
        (None, Some(path)) => Token::File(absolute(&path)?),
        (None, None) => return Err(InitError::Missing("--token-file")),
    };
    let plan = Plan {
        channel: args.channel.unwrap_or_else(|| "main".into()),
        room: args.room,
        token,
        token_type: args.token_type,
        topics: args.topics,
        sinks: args.sinks,
        ..Plan::default()
    };
    save(&plan, &file, args.force)
}

/// Loads a plan as if it was written, with its secrets.
pub(super) fn tried(plan: &Plan, file: &Path) -> Result<Loaded, ConfigError> {
    let text = plan.render(file, Secrets::Inline).text;
    load(&Sources { file: Some(file.to_owned()), text: Some(text), ..Sources::default() })
}

/// Writes a plan: all of its files, or none where one is already there.
pub(super) fn save(plan: &Plan, file: &Path, force: bool) -> Result<Written, InitError> {
    let file = absolute(file)?;
    let rendered = plan.render(&file, Secrets::InFiles);
    for path in rendered.secrets.iter().map(|(path, _)| path).chain([&file]) {
        refuse_existing(path, force)?;
    }
    let sources = Sources {
        file: Some(file.clone()),
        text: Some(rendered.text.clone()),
        resolve_secrets: false,
        ..Sources::default()
    };
    load(&sources).map_err(InitError::Unusable)?;
    for (path, secret) in &rendered.secrets {
        write(path, format!("{}\n", secret.expose()).as_bytes(), force, OWNER_ONLY)?;
    }
    write(&file, rendered.text.as_bytes(), force, EVERYBODY_READS)?;
    let secrets = rendered.secrets.into_iter().map(|(path, _)| path).collect();
    Ok(Written { file, secrets })
}

fn absolute(path: &Path) -> Result<PathBuf, InitError> {
    std::path::absolute(path).map_err(|source| InitError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    fn answers(file: &Path) -> Args {
        Args { file: file.to_owned(), token: Some(Secret::new("hunter2")), ..Args::default() }
    }

    fn asked(args: Args, input: &str) -> (Result<Written, InitError>, String) {
        let mut output = Vec::new();
        let mut input = input.as_bytes();
        let hidden = Cell::new(0);
        let echo = |shown: bool| hidden.set(hidden.get() + usize::from(!shown));
        let terminal = Terminal { input: &mut input, output: &mut output, echo: &echo };
        let outcome = run(args, Some(terminal));
        let output = String::from_utf8(output).unwrap();
        assert_eq!(hidden.get(), output.matches("not shown").count(), "{output}");
        (outcome, output)
    }

    #[test]
    fn the_written_file_is_valid_and_the_secret_is_in_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("astro-relay.toml");
        let written = run(answers(&file), None).unwrap();
        let secret = dir.path().join("main.token");
        assert_eq!(written, Written { file: file.clone(), secrets: vec![secret.clone()] });
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
        let input = "shop\n\n/no/such\nhunter2\nn\nhunter2\ny\n5b2e2007760aeb7729487dab\n?\n\
                     channel.tip\nn\n channel.tips , x.y \n\n\n";
        let (outcome, output) = asked(Args { file: file.clone(), ..Args::default() }, input);
        assert_eq!(outcome.unwrap().secrets, [dir.path().join("shop.token")]);
        assert!(output.contains("There is no such file.") && output.contains("channel.giveaways"));
        assert!(output.contains("That is no JWT") && output.contains("channel.tips is. Take"));
        let config = load(&Sources { file: Some(file), ..Sources::default() }).unwrap().config;
        let channel = &config.channels["shop"];
        assert_eq!(channel.room.as_deref(), Some("5b2e2007760aeb7729487dab"));
        assert_eq!(channel.topics, ["channel.tips", "x.y"]);
        assert_eq!(config.sinks["stdout"].kind, "stdout");
    }

    /// A token that says its channel is not asked for it; what Home Assistant and NATS need is offered.
    #[test]
    fn a_broker_with_a_login_home_assistant_and_jetstream_are_asked_for() {
        use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("astro-relay.toml");
        let claims = BASE64_URL_SAFE_NO_PAD.encode(r#"{"channel":"5b2e2007760aeb7729487dab"}"#);
        let input = format!(
            "\ne30.{claims}.c2ln\n\nmqtt\nmqtt://ha.lan:1883\nrelay\npass word\n\ny\nnats\n\n\n\nno\n"
        );
        let (outcome, output) = asked(Args { file: file.clone(), ..Args::default() }, &input);
        let secret = dir.path().join("mqtt.password");
        assert_eq!(outcome.unwrap().secrets, [dir.path().join("main.token"), secret.clone()]);
        assert_eq!(fs::read_to_string(&secret).unwrap(), "pass word\n");
        assert_eq!(fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(output.contains("The token is of channel 5b2e2007760aeb7729487dab."));
        assert!(!output.contains("pass word") && !output.contains(&claims), "{output}");
        let loaded = load(&Sources { file: Some(file), ..Sources::default() }).unwrap();
        assert_eq!(loaded.config.channels["main"].topics, FIRST_TOPICS);
        let (home, bus) = (&loaded.config.sinks["mqtt"], &loaded.config.sinks["nats"]);
        assert!(home.state && home.settings["homeassistant"] == true);
        assert_eq!(home.settings["url"], "mqtt://ha.lan:1883");
        assert_eq!(home.settings["commands"], serde_json::json!(["relay/test"]));
        assert_eq!(
            (&bus.settings["jetstream"], &bus.settings["create_stream"]),
            (&true.into(), &true.into())
        );
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
            let expected = NewSink { kind: kind.into(), url, ..NewSink::default() };
            assert_eq!(NewSink::parse(text), expected);
        }
    }
}
