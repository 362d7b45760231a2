//! `astro-relay init`: a few questions, and a valid configuration.
//!
//! What the command line does not answer is asked for on the terminal, if there is one. Secrets are not
//! shown as they are typed, and each goes into a file of its own that only its owner can read; the
//! configuration names that file. Nothing is connected to.
//!
//! The configuration is loaded before it is written. If it is invalid, or a file is already there, nothing
//! is written at all.

mod ask;
mod interrupt;
mod plan;

use std::{
    io::{self, BufRead, Write},
    path::{Path, PathBuf},
};

pub(super) use self::interrupt::run_on_terminal;
use self::plan::{
    EVERYBODY_READS, OWNER_ONLY, Secrets, is_service, make_dir, refuse_existing, write,
};
pub use self::plan::{FIRST_TOPICS, NewSink, Plan, Token};
use super::connect::writable;
use crate::{
    config::{ConfigError, Journal, Secret, TokenType, pasted, problem::Problem},
    loading::{Loaded, Sources, load},
};

/// What the command line says. Everything else is asked for.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// The file to write.
    #[arg(
        id = "config",
        short = 'c',
        long = "config",
        value_name = "FILE",
        default_value = "astro-relay.toml"
    )]
    pub file: PathBuf,
    /// Overwrites an existing file.
    #[arg(long)]
    pub force: bool,
    /// A label for the channel [default: main]
    #[arg(long)]
    pub channel: Option<String>,
    /// The channel's id: 24 hexadecimal digits [default: the token's own channel]
    #[arg(long)]
    pub room: Option<String>,
    /// The token, to be written into a file of its own. A `token_file` comes before it.
    #[arg(skip)]
    pub token: Option<Secret>,
    /// A file that holds the token.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// What kind of token it is: jwt, apikey, oauth2, oauth
    #[arg(long, default_value = "jwt", value_parser = token_type)]
    pub token_type: TokenType,
    /// A topic to subscribe; can be repeated.
    #[arg(long = "topic", value_name = "TOPIC")]
    pub topics: Vec<String>,
    /// Where events go: mqtt, mqtt=mqtt://broker:1883, nats, redis, webhook=https://…, stdout
    #[arg(long = "sink", value_name = "KIND[=URL]")]
    pub sinks: Vec<NewSink>,
}

fn token_type(text: &str) -> Result<TokenType, String> {
    serde_json::from_value(text.into())
        .map_err(|_| "jwt, apikey, oauth2 or oauth was expected".into())
}

impl Args {
    /// The configuration that the answers so far make.
    fn plan(&self, file: &Path) -> Result<Plan, InitError> {
        let token = match (&self.token_file, &self.token) {
            (Some(path), _) => Token::File(absolute(path)?),
            (None, Some(token)) => Token::New(token.clone()),
            (None, None) => return Err(InitError::Missing("--token-file")),
        };
        Ok(Plan {
            channel: self.channel.clone().unwrap_or_else(|| "main".into()),
            room: self.room.clone(),
            token,
            token_type: self.token_type,
            topics: self.topics.clone(),
            sinks: self.sinks.clone(),
            journal: journal_dir(file),
            ..Plan::default()
        })
    }
}

/// What was written.
#[derive(Debug, PartialEq, Eq)]
pub struct Written {
    pub file: PathBuf,
    /// The files with secrets.
    pub secrets: Vec<PathBuf>,
    /// What is hardly meant in it.
    pub warnings: Vec<Problem>,
}

impl Written {
    pub(super) fn print(&self, out: &mut impl Write) -> io::Result<()> {
        for warning in &self.warnings {
            writeln!(out, "{}\n", warning.render("warning"))?;
        }
        writeln!(out, "wrote {}", self.file.display())?;
        for secret in &self.secrets {
            writeln!(out, "wrote {}, readable by you alone", secret.display())?;
        }
        Ok(())
    }
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

impl InitError {
    /// Nobody has seen the file: its lines are left out.
    fn unusable(problems: Vec<Problem>) -> Self {
        let problems = problems.into_iter().map(without_place).collect();
        Self::Unusable(ConfigError { problems })
    }
}

fn without_place(problem: Problem) -> Problem {
    Problem { place: None, excerpt: None, ..problem }
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
    // What nobody may have meant to set, such as an empty variable of the environment, is none.
    let token = args.token.take().map(|token| pasted::token(token.expose()));
    args.token =
        token.filter(|token| !token.is_empty() && args.token_file.is_none()).map(Secret::new);
    if let Some(mut terminal) = terminal {
        ask::ask(&mut args, &file, &mut terminal)?;
    }
    let plan = args.plan(&file)?;
    save(&plan, &file, args.force)
}

/// Loads a plan as if it was written, with its secrets.
pub(super) fn tried(plan: &Plan, file: &Path) -> Result<Loaded, ConfigError> {
    let text = plan.render(file, Secrets::Inline).text;
    load(&Sources { file: Some(file.to_owned()), text: Some(text), ..Sources::default() })
}

/// Writes a plan: all of its files, or none where one is already there. Their directory is made, where it is
/// missing.
pub(super) fn save(plan: &Plan, file: &Path, force: bool) -> Result<Written, InitError> {
    let file = absolute(file)?;
    let rendered = plan.render(&file, Secrets::InFiles);
    for path in rendered.secrets.iter().map(|(path, _)| path).chain([&file]) {
        refuse_existing(path, force)?;
    }
    let mut warnings = Vec::new();
    // What a file will hold, an address for example, is only checked where the text has it.
    for text in [plan.render(&file, Secrets::Inline).text, rendered.text.clone()] {
        let sources = Sources {
            file: Some(file.clone()),
            text: Some(text),
            resolve_secrets: false,
            ..Sources::default()
        };
        // The last one is what is written.
        warnings = load(&sources).map_err(|error| InitError::unusable(error.problems))?.warnings;
    }
    make_dir(&file)?;
    for (path, secret) in &rendered.secrets {
        write(path, format!("{}\n", secret.expose()).as_bytes(), force, OWNER_ONLY)?;
    }
    write(&file, rendered.text.as_bytes(), force, EVERYBODY_READS)?;
    let secrets = rendered.secrets.into_iter().map(|(path, _)| path).collect();
    Ok(Written { file, secrets, warnings })
}

/// The journal's directory for a configuration, where this user cannot use the usual one: beside the
/// configuration. What is below `/etc` is a service's, whose manager makes the usual one.
pub(super) fn journal_dir(file: &Path) -> Option<PathBuf> {
    instead_of(&Journal::default().dir, file)
}

fn instead_of(usual: &Path, file: &Path) -> Option<PathBuf> {
    let usable = is_service(file) || writable(usual).is_ok();
    (!usable).then(|| file.with_file_name("journal"))
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
        let secrets = vec![secret.clone()];
        assert_eq!(written, Written { file: file.clone(), secrets, warnings: Vec::new() });
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
    fn the_directory_of_the_configuration_is_made_where_it_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let made = dir.path().join("etc/astro-relay");
        let file = made.join("astro-relay.toml");
        let wrong = Args { channel: Some("My Shop".into()), ..answers(&file) };
        assert!(matches!(run(wrong, None), Err(InitError::Unusable(_))));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "not for invalid answers");
        let written = run(answers(&file), None).unwrap();
        assert_eq!(written.secrets, [made.join("main.token")]);
        load(&Sources { file: Some(file), ..Sources::default() }).unwrap();
        let mode = fs::metadata(&made).unwrap().permissions().mode();
        assert_eq!(mode & 0o022, 0, "{mode:o}: only its owner writes there");
        // Where it cannot be made, it is named.
        let obstacle = dir.path().join("file");
        fs::write(&obstacle, "").unwrap();
        let args = answers(&obstacle.join("astro-relay.toml"));
        assert!(matches!(run(args, None), Err(InitError::Write { path, .. }) if path == obstacle));
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

    /// Whoever has the address of a chat's webhook can post there.
    #[test]
    fn the_address_of_a_webhook_goes_into_a_file_of_its_own() {
        let url = "https://hooks.example.org/canary";
        let sinks = vec![NewSink::parse(&format!("webhook={url}"))];
        for (sinks, input) in
            [(sinks, "\n\n\n".to_owned()), (Vec::new(), format!("\n\n\nwebhook\n{url}\nno\n"))]
        {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("astro-relay.toml");
            let is_asked = sinks.is_empty();
            let (outcome, output) = asked(Args { sinks, ..answers(&file) }, &input);
            assert_eq!(output.contains("Its address (not shown)"), is_asked, "{output}");
            let secret = dir.path().join("webhook.url");
            assert_eq!(outcome.unwrap().secrets, [dir.path().join("main.token"), secret.clone()]);
            assert_eq!(fs::read_to_string(&secret).unwrap(), format!("{url}\n"));
            assert_eq!(fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600);
            assert!(!fs::read_to_string(&file).unwrap().contains("canary"));
            load(&Sources { file: Some(file), ..Sources::default() }).unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        let sinks = vec![NewSink::parse("webhook=nonsense")];
        let args = Args { sinks, ..answers(&dir.path().join("astro-relay.toml")) };
        assert!(matches!(run(args, None), Err(InitError::Unusable(_))));
    }

    #[test]
    fn two_secrets_never_get_one_file() {
        let key = Secret::new("key");
        let nats = NewSink {
            secrets: [("token".to_owned(), key.clone())].into(),
            ..NewSink::parse("nats")
        };
        let (token, sinks) = (Secret::new("jwt"), vec![nats]);
        let mut plan = Plan {
            channel: "nats".into(),
            token: Token::New(token.clone()),
            sinks,
            ..Plan::default()
        };
        let file = Path::new("/x/astro-relay.toml");
        let rendered = plan.render(file, Secrets::InFiles);
        let expected =
            [(PathBuf::from("/x/nats.token"), token), (PathBuf::from("/x/nats.token.2"), key)];
        assert_eq!(rendered.secrets, expected);
        assert!(rendered.text.contains("token_file = \"/x/nats.token.2\""), "{}", rendered.text);
        // Nor one that the token is in already, nor the configuration itself.
        for (token, file) in [("/x/nats.token", "/x/a.toml"), ("/x/t", "/x/nats.token")] {
            plan.token = Token::File(token.into());
            let secrets = plan.render(Path::new(file), Secrets::InFiles).secrets;
            assert_eq!(secrets[0].0, Path::new("/x/nats.token.2"), "{token} {file}");
        }
    }

    #[test]
    fn a_named_file_comes_before_the_environment_and_an_empty_variable_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let (file, token) = (dir.path().join("astro-relay.toml"), dir.path().join("mine.jwt"));
        for empty in ["", " \n"] {
            let args = Args { token: Some(Secret::new(empty)), ..answers(&file) };
            assert!(matches!(run(args, None), Err(InitError::Missing("--token-file"))));
        }
        let written = run(Args { token_file: Some(token.clone()), ..answers(&file) }, None);
        assert!(written.unwrap().secrets.is_empty());
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.contains(&format!("token_file = \"{}\"", token.display())), "{text}");
    }

    #[test]
    fn the_journal_is_beside_the_configuration_where_the_usual_directory_cannot_be_used() {
        let dir = tempfile::tempdir().unwrap();
        let (file, obstacle) = (dir.path().join("astro-relay.toml"), dir.path().join("file"));
        fs::write(&obstacle, "").unwrap();
        let (usable, unusable) = (dir.path().join("a/b"), obstacle.join("journal"));
        assert_eq!(instead_of(&usable, &file), None);
        assert_eq!(instead_of(&unusable, Path::new("/etc/astro-relay/astro-relay.toml")), None);
        let journal = instead_of(&unusable, &file);
        assert_eq!(journal, Some(dir.path().join("journal")));
        let token = Token::New(Secret::new("hunter2"));
        let plan = Plan { channel: "main".into(), token, journal, ..Plan::default() };
        assert_eq!(tried(&plan, &file).unwrap().config.journal.dir, dir.path().join("journal"));
    }

    /// What is wrong with a destination costs the answers about this one only.
    #[test]
    fn a_destination_that_cannot_be_is_asked_for_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("astro-relay.toml");
        let input = "\n\n\nredis\nredis://:pw@127.0.0.1:6379\n\n\n\nnats\n\nme\n\n\ncarrier\n\
                     REDIS\n\n\nhunter3\n\nno\n";
        let (outcome, output) = asked(answers(&file), input);
        for problem in ["not in the URL", "user and password belong together", "one of mqtt"] {
            assert!(output.contains(problem), "{output}");
        }
        let secret = dir.path().join("redis.password");
        assert_eq!(outcome.unwrap().secrets, [dir.path().join("main.token"), secret.clone()]);
        assert_eq!(fs::read_to_string(&secret).unwrap(), "hunter3\n");
        let config = load(&Sources { file: Some(file), ..Sources::default() }).unwrap().config;
        assert_eq!(config.sinks.keys().collect::<Vec<_>>(), ["redis"]);
        assert_eq!(config.sinks["redis"].settings["mode"], "stream");
    }

    #[test]
    fn a_secret_of_an_earlier_configuration_is_asked_about_before_the_other_questions() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("astro-relay.toml");
        let secret = dir.path().join("main.token");
        fs::write(&secret, "old").unwrap();
        let (outcome, output) = asked(answers(&file), "\nno\n");
        assert!(matches!(outcome, Err(InitError::Exists(path)) if path == secret), "{output}");
        assert!(!output.contains("Topics"), "{output}");
        assert_eq!(fs::read_to_string(&secret).unwrap(), "old");
        asked(answers(&file), "\nyes\n\n\nstdout\nno\n").0.unwrap();
        assert_eq!(fs::read_to_string(&secret).unwrap(), "hunter2\n");
    }

    #[test]
    fn what_came_along_with_a_pasted_token_is_taken_off() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("astro-relay.toml");
        let args = Args {
            file,
            topics: vec!["channel.tips".into()],
            sinks: vec![NewSink::parse("stdout")],
            ..Args::default()
        };
        let (outcome, output) = asked(args, "\n\"Bearer e30.e30.c2ln\"\n\n");
        assert_eq!(outcome.unwrap().secrets, [dir.path().join("main.token")]);
        assert!(!output.contains("That is no JWT"), "{output}");
        let token = fs::read_to_string(dir.path().join("main.token")).unwrap();
        assert_eq!(token, "e30.e30.c2ln\n");
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
    fn what_the_questions_would_doubt_is_a_warning_where_nobody_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("astro-relay.toml");
        let args = Args { topics: vec!["channel.tip".into()], ..answers(&file) };
        let written = run(args, None).unwrap();
        let mut output = Vec::new();
        written.print(&mut output).unwrap();
        let output = String::from_utf8(output).unwrap();
        assert!(output.contains("warning: channels.main.topics[0]: is not in the catalogue"));
        assert!(output.contains("did you mean \"channel.tips\"?"), "{output}");
    }

    /// What is wrong with an answer costs this one only, and names no line of a file that is not there.
    #[test]
    fn a_name_a_room_and_topics_that_cannot_be_are_asked_for_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("astro-relay.toml");
        let args = Args { sinks: vec![NewSink::parse("stdout")], ..answers(&file) };
        let input = "My Shop\nshop\nmyroom\nn\n5b2e2007760aeb7729487dab\nchannel.*\n\
                     channel.tips,channel.tips\nchannel.tips, channel.follow,\n";
        let (outcome, output) = asked(args, input);
        for problem in [
            "channels.\"My Shop\": a name has 1 to 64 of these",
            "That is no id of a channel",
            "a subscription has no wildcards",
            "stands twice in this list",
        ] {
            assert!(output.contains(problem), "{problem}: {output}");
        }
        assert!(!output.contains("astro-relay.toml"), "{output}");
        outcome.unwrap();
        let config = load(&Sources { file: Some(file), ..Sources::default() }).unwrap().config;
        let channel = &config.channels["shop"];
        assert_eq!(channel.room.as_deref(), Some("5b2e2007760aeb7729487dab"));
        assert_eq!(channel.topics, ["channel.tips", "channel.follow"]);
    }

    #[test]
    fn what_the_command_line_says_wrongly_is_named_before_the_questions() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("astro-relay.toml");
        for args in [
            Args { channel: Some("My Shop".into()), ..answers(&file) },
            Args { topics: vec!["relay.gap".into()], ..answers(&file) },
        ] {
            let (outcome, output) = asked(args, "");
            match outcome {
                Err(InitError::Unusable(error)) => {
                    assert!(!error.to_string().contains("astro-relay.toml"), "{error}");
                }
                outcome => panic!("{outcome:?}"),
            }
            assert_eq!(output, "");
        }
    }

    #[test]
    fn a_sink_is_read_with_and_without_its_address() {
        for (text, kind, url) in [
            ("mqtt", "mqtt", Some("mqtt://127.0.0.1:1883")),
            ("MQTT", "mqtt", Some("mqtt://127.0.0.1:1883")),
            ("mqtt=mqtts://broker?a=b", "mqtt", Some("mqtts://broker?a=b")),
            ("stdout", "stdout", None),
        ] {
            let url = url.map(ToOwned::to_owned);
            let expected = NewSink { kind: kind.into(), url, ..NewSink::default() };
            assert_eq!(NewSink::parse(text), expected);
        }
    }
}
