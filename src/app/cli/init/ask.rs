//! The questions on the terminal.

use std::path::Path;

use super::{
    Args, InitError, NewSink, Terminal,
    plan::{FIRST_TOPICS, usual_url},
};
use crate::{
    astro::topics,
    config::{Secret, TokenType, jwt},
    sink::{self, KINDS},
};

pub(super) fn ask(args: &mut Args, terminal: &mut Terminal<'_>) -> Result<(), InitError> {
    if args.channel.is_none() {
        let question = "A name of your own for the channel";
        args.channel = Some(terminal.ask(question, "main")?);
    }
    token(args, terminal)?;
    let own = args.token.as_ref().and_then(|token| jwt::channel(token.expose()));
    match (own, &args.room) {
        (Some(channel), None) => writeln!(terminal.output, "The token is of channel {channel}.")?,
        (None, None) => {
            let question = "The channel's id, 24 hexadecimal digits; empty for that of the token";
            args.room = Some(terminal.ask(question, "")?).filter(|room| !room.is_empty());
        }
        (_, Some(_)) => {}
    }
    topics(args, terminal)?;
    if args.sinks.is_empty() {
        loop {
            let sink = sink(terminal)?;
            args.sinks.push(sink);
            if !terminal.agrees("Another destination?", false)? {
                break;
            }
        }
    }
    Ok(())
}

fn token(args: &mut Args, terminal: &mut Terminal<'_>) -> Result<(), InitError> {
    while args.token.is_none() && args.token_file.is_none() {
        let question = "The token, or a file that holds it (what you type is not shown)";
        let answer = terminal.secret(question)?;
        if Path::new(&answer).is_file() {
            args.token_file = Some(answer.into());
        } else if answer.starts_with(['/', '.', '~']) {
            writeln!(terminal.output, "There is no such file.")?;
        } else if !answer.is_empty() {
            if args.token_type == TokenType::Jwt && !jwt::is_one(&answer) {
                let doubt =
                    "That is no JWT: it has three parts with dots between, and begins with eyJ.";
                writeln!(terminal.output, "{doubt}")?;
                if !terminal.agrees("Take it all the same?", false)? {
                    continue;
                }
            }
            args.token = Some(Secret::new(answer));
        }
    }
    Ok(())
}

fn topics(args: &mut Args, terminal: &mut Terminal<'_>) -> Result<(), InitError> {
    while args.topics.is_empty() {
        let question = "Topics, comma-separated (? for a list)";
        let answer = terminal.ask(question, &FIRST_TOPICS.join(","))?;
        if answer == "?" {
            for topic in topics::CATALOGUE {
                writeln!(terminal.output, "  {:<34} {}", topic.name, topic.description())?;
            }
            continue;
        }
        let chosen: Vec<String> = answer.split(',').map(|topic| topic.trim().to_owned()).collect();
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
        }
    }
    Ok(())
}

fn sink(terminal: &mut Terminal<'_>) -> Result<NewSink, InitError> {
    let kinds: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
    let question = format!("Where events go: {}", kinds.join(", "));
    let mut sink = NewSink::parse(&terminal.ask(&question, "stdout")?);
    if sink::kind(&sink.kind).is_none_or(|kind| kind.usual_url.is_some()) {
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
    if user.is_empty() {
        return Ok(());
    }
    sink.settings.insert("user".to_owned(), user.into());
    let password = terminal.secret("Password (not shown)")?;
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
