//! The questions on the terminal.

use std::path::{Path, PathBuf};

use super::{
    Args, InitError, NewSink, Plan, Terminal, Token,
    plan::{FIRST_TOPICS, Secrets, refuse_existing, usual_url},
    tried, without_place,
};
use crate::{
    astro::{rest::is_channel_id, topics},
    base::environment::environment,
    config::{Secret, TokenType, jwt, pasted, problem::Problem},
    sink::{self, KINDS},
};

/// Asks for what `args` leaves open; the configuration is to be written to `file`.
pub(super) fn ask(
    args: &mut Args,
    file: &Path,
    terminal: &mut Terminal<'_>,
) -> Result<(), InitError> {
    let problems = channel_problems(args, file);
    if !problems.is_empty() {
        return Err(InitError::unusable(problems));
    }
    while args.channel.is_none() {
        let question = "A name of your own for the channel";
        args.channel = Some(terminal.ask(question, "main")?);
        if terminal.shows(channel_problems(args, file))? {
            args.channel = None;
        }
    }
    token(args, terminal)?;
    overwrite(args, file, terminal)?;
    let own = args.token.as_ref().and_then(|token| jwt::channel(token.expose()));
    match (own, &args.room) {
        (Some(channel), None) => writeln!(terminal.output, "The token is of channel {channel}.")?,
        (None, None) => args.room = room(terminal)?,
        (_, Some(_)) => {}
    }
    topics(args, file, terminal)?;
    if args.sinks.is_empty() {
        loop {
            let sink = sink(terminal)?;
            args.sinks.push(sink);
            let problems = problems_of(&args.plan(file)?, file, "sinks");
            if terminal.shows(problems)? {
                args.sinks.pop();
                continue;
            }
            overwrite(args, file, terminal)?;
            if !terminal.agrees("Another destination?", false)? {
                break;
            }
        }
    }
    Ok(())
}

/// What is wrong with a section of what is answered so far; where nobody has seen the file, without the place
/// in it.
fn problems_of(plan: &Plan, file: &Path, section: &str) -> Vec<Problem> {
    let problems = match tried(plan, file) {
        Ok(_) => Vec::new(),
        Err(error) => error.problems,
    };
    let of_section =
        problems.into_iter().filter(|one| one.key.first().is_some_and(|key| key == section));
    of_section.map(without_place).collect()
}

/// What is wrong with the channel so far, whatever its token is.
fn channel_problems(args: &Args, file: &Path) -> Vec<Problem> {
    let plan = Plan {
        channel: args.channel.clone().unwrap_or_else(|| "main".into()),
        room: args.room.clone(),
        token: Token::New(Secret::new("token")),
        token_type: args.token_type,
        topics: args.topics.clone(),
        ..Plan::default()
    };
    problems_of(&plan, file, "channels")
}

/// Looks for files of secrets that would be overwritten: at the end it would be too late to be told.
fn overwrite(args: &mut Args, file: &Path, terminal: &mut Terminal<'_>) -> Result<(), InitError> {
    let secrets = args.plan(file)?.render(file, Secrets::InFiles).secrets;
    let there = secrets.into_iter().find(|(path, _)| refuse_existing(path, args.force).is_err());
    let Some((path, _)) = there else { return Ok(()) };
    let question = format!(
        "{} is already there. Overwrite it, and other secrets of an earlier configuration?",
        path.display()
    );
    if !terminal.agrees(&question, false)? {
        return Err(InitError::Exists(path));
    }
    args.force = true;
    Ok(())
}

fn token(args: &mut Args, terminal: &mut Terminal<'_>) -> Result<(), InitError> {
    let environment = environment();
    let home = environment.get("HOME").map(String::as_str);
    while args.token.is_none() && args.token_file.is_none() {
        let question = "The token, or a file that holds it (what you type is not shown)";
        let answer = terminal.secret(question)?;
        let (path, token) = (expanded(&answer, home), pasted::token(&answer));
        if path.is_file() {
            args.token_file = Some(path);
        } else if answer.starts_with(['/', '.', '~']) {
            writeln!(terminal.output, "There is no such file.")?;
        } else if !token.is_empty() {
            if args.token_type == TokenType::Jwt && !jwt::is_one(&token) {
                let doubt =
                    "That is no JWT: it has three parts with dots between, and begins with eyJ.";
                writeln!(terminal.output, "{doubt}")?;
                if !terminal.agrees("Take it all the same?", false)? {
                    continue;
                }
            }
            args.token = Some(Secret::new(token));
        }
    }
    Ok(())
}

/// A path as a shell reads it: `~/` is the home directory.
fn expanded(text: &str, home: Option<&str>) -> PathBuf {
    match (text.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => Path::new(home).join(rest),
        _ => text.into(),
    }
}

/// The channel's id; `None`: that of the token.
fn room(terminal: &mut Terminal<'_>) -> Result<Option<String>, InitError> {
    loop {
        let question = "The channel's id, 24 hexadecimal digits; empty for that of the token";
        let room = terminal.ask(question, "")?;
        if room.is_empty() {
            return Ok(None);
        }
        if is_channel_id(&room) {
            return Ok(Some(room));
        }
        writeln!(terminal.output, "That is no id of a channel: it has 24 hexadecimal digits.")?;
        if terminal.agrees("Take it all the same?", false)? {
            return Ok(Some(room));
        }
    }
}

fn topics(args: &mut Args, file: &Path, terminal: &mut Terminal<'_>) -> Result<(), InitError> {
    while args.topics.is_empty() {
        let question = "Topics, comma-separated (? for a list)";
        let answer = terminal.ask(question, &FIRST_TOPICS.join(","))?;
        if answer == "?" {
            for topic in topics::CATALOGUE {
                writeln!(terminal.output, "  {:<34} {}", topic.name, topic.description())?;
            }
            continue;
        }
        let chosen = answer.split(',').map(str::trim).filter(|topic| !topic.is_empty());
        let chosen: Vec<String> = chosen.map(ToOwned::to_owned).collect();
        let mut taken = true;
        for topic in &chosen {
            if let Some(meant) = topics::meant_by(topic) {
                let question =
                    format!("{topic} is not known; {meant} is. Take {topic} all the same?");
                taken &= terminal.agrees(&question, false)?;
            }
        }
        if taken {
            args.topics = chosen;
            if terminal.shows(channel_problems(args, file))? {
                args.topics.clear();
            }
        }
    }
    Ok(())
}

fn sink(terminal: &mut Terminal<'_>) -> Result<NewSink, InitError> {
    let kinds: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
    let question = format!("Where events go: {}", kinds.join(", "));
    let mut sink = NewSink::parse(&terminal.ask(&question, "stdout")?);
    if sink.has_secret_url() {
        if sink.secrets.is_empty() {
            sink.set_url(&terminal.secret("Its address (not shown)")?);
        }
    } else if sink::kind(&sink.kind).is_some_and(|kind| kind.usual_url.is_some()) {
        let usual = sink.url.take().or_else(|| usual_url(&sink.kind).map(ToOwned::to_owned));
        sink.url = Some(terminal.ask("Its address", &usual.unwrap_or_default())?);
    }
    let set = |sink: &mut NewSink, key: &str, value: toml::Value| {
        sink.settings.insert(key.to_owned(), value);
    };
    match &*sink.kind {
        "mqtt" => {
            login(&mut sink, terminal)?;
            if terminal
                .agrees("Is it for Home Assistant? (entities, and a button to test)", true)?
            {
                set(&mut sink, "homeassistant", true.into());
                set(&mut sink, "commands", vec![toml::Value::from("relay/test")].into());
                // Yesterday's tip must not flash the lights after an outage.
                set(&mut sink, "max_age", "30s".into());
            }
        }
        "nats" => {
            login(&mut sink, terminal)?;
            let question =
                "With JetStream? (no loss while a consumer is away; needs nats-server -js)";
            if terminal.agrees(question, true)? {
                set(&mut sink, "jetstream", true.into());
                set(&mut sink, "create_stream", true.into());
            }
        }
        "redis" => {
            login(&mut sink, terminal)?;
            let question =
                "As a stream? (kept until consumers have it; else pub/sub, at most once)";
            if terminal.agrees(question, true)? {
                set(&mut sink, "mode", "stream".into());
            }
        }
        _ => {}
    }
    Ok(sink)
}

/// The user and the password, where the server wants them.
fn login(sink: &mut NewSink, terminal: &mut Terminal<'_>) -> Result<(), InitError> {
    let user = terminal.ask("User; empty where it needs none", "")?;
    // Redis has passwords without users.
    if user.is_empty() && sink.kind != "redis" {
        return Ok(());
    }
    if !user.is_empty() {
        sink.settings.insert("user".to_owned(), user.into());
    }
    let password = terminal.secret("Password; empty where it needs none (not shown)")?;
    if !password.is_empty() {
        sink.secrets.insert("password".to_owned(), Secret::new(password));
    }
    Ok(())
}

impl Terminal<'_> {
    /// One question, and its answer; an empty line is the usual one.
    pub(super) fn ask(&mut self, question: &str, usual: &str) -> Result<String, InitError> {
        match usual {
            "" => write!(self.output, "{question}: ")?,
            usual => write!(self.output, "{question} [{usual}]: ")?,
        }
        let answer = self.line()?;
        Ok(if answer.is_empty() { usual.to_owned() } else { answer })
    }

    /// The same, without showing what is typed.
    fn secret(&mut self, question: &str) -> Result<String, InitError> {
        write!(self.output, "{question}: ")?;
        self.output.flush()?;
        (self.echo)(false);
        let answer = self.line();
        (self.echo)(true);
        writeln!(self.output)?;
        answer
    }

    /// Shows what is wrong, if anything is; answers that.
    fn shows(&mut self, problems: Vec<Problem>) -> Result<bool, InitError> {
        let any = !problems.is_empty();
        for problem in problems {
            writeln!(self.output, "{problem}")?;
        }
        Ok(any)
    }

    /// A question with yes and no.
    fn agrees(&mut self, question: &str, usual: bool) -> Result<bool, InitError> {
        loop {
            let answer = self.ask(question, if usual { "yes" } else { "no" })?;
            match &*answer.to_lowercase() {
                "y" | "yes" => return Ok(true),
                "n" | "no" => return Ok(false),
                _ => writeln!(self.output, "yes or no?")?,
            }
        }
    }

    fn line(&mut self) -> Result<String, InitError> {
        self.output.flush()?;
        let mut line = String::new();
        if self.input.read_line(&mut line)? == 0 {
            return Err(InitError::Ended);
        }
        Ok(line.trim().to_owned())
    }
}
