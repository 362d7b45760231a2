//! What the program knows about itself: topics, the reference of the configuration, shell completions, the
//! manual page.

use std::io::Write as _;

use clap::{
    Arg, Args, Command,
    builder::{PossibleValue, PossibleValuesParser},
};
use clap_complete::Shell;
use serde_json::json;

use super::{Done, Failed, Source, complete, help, out};
use crate::{
    astro::{
        samples,
        topics::{CATALOGUE, OWN, Topic, meant_by},
    },
    base::terminal::{Line, Tone},
};

/// The commented reference.
const REFERENCE: &str = include_str!("../../../config/astro-relay.toml");

/// `topics`
#[derive(Debug, Args)]
pub(super) struct Topics {
    /// Shows this one, with examples [default: lists all]
    topic: Option<String>,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// `config`
#[derive(Debug, Args)]
pub(super) struct ConfigArgs {
    #[command(flatten)]
    source: Source,
    /// Prints the commented reference: every key with its default.
    #[arg(long)]
    reference: bool,
}

/// `completions`
#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell.
    shell: Shell,
}

pub(super) fn topics(args: &Topics) -> Done {
    match &args.topic {
        Some(topic) => one_topic(topic, args.json),
        None if args.json => all_as_json(),
        None => all_topics(),
    }
}

fn all_topics() -> Done {
    let names = CATALOGUE.iter().map(|topic| topic.name).chain(OWN.map(|(name, _)| name));
    let width = names.map(str::len).max().unwrap_or(0);
    let mut out = out::text();
    let line = |name: &str, scope: &str, what: &str| {
        Line::from(format!("{name:<width$}  "))
            .with(Tone::Soft, format!("{scope:<18}  "))
            .with(Tone::Plain, what)
    };
    let head = format!("{:<width$}  {:<18}  WHAT", "TOPIC", "SCOPE");
    out.line(&Line::default().with(Tone::Soft, head), usize::MAX)?;
    for topic in CATALOGUE {
        let scope = topic.scope.unwrap_or("-");
        out.line(&line(topic.name, scope, &topic.description()), usize::MAX)?;
    }
    for (name, what) in OWN {
        out.line(&line(name, "(the relay's own)", what), usize::MAX)?;
    }
    Ok(())
}

fn all_as_json() -> Done {
    let known = CATALOGUE.iter().map(|Topic { name, scope, meaning, published }| {
        json!({ "topic": name, "scope": scope, "what": meaning, "published": published })
    });
    let own = OWN.iter().map(
        |(name, what)| json!({ "topic": name, "scope": null, "what": what, "published": true }),
    );
    let all: Vec<_> = known.chain(own).collect();
    Ok(writeln!(out::json(), "{}", json!(all))?)
}

fn one_topic(name: &str, as_json: bool) -> Done {
    let known = CATALOGUE.iter().find(|topic| topic.name == name);
    let own = OWN.iter().find(|(own, _)| *own == name);
    let Some(what) = known.map(Topic::description).or(own.map(|(_, what)| (*what).to_owned()))
    else {
        let meant = meant_by(name).map(|meant| format!("; did you mean {meant}?"));
        let text = format!("there is no known topic {name:?}{}", meant.unwrap_or_default());
        return Err(Failed::new(Failed::USAGE, text));
    };
    let examples = samples::data(name);
    if as_json {
        let mut out = out::json();
        return Ok(examples.iter().try_for_each(|(_, data)| writeln!(out, "{data}"))?);
    }
    let mut out = out::text();
    writeln!(out, "{name}: {what}")?;
    let scope = known.and_then(|topic| topic.scope).unwrap_or("none");
    writeln!(out, "scope of the token: {scope}")?;
    for (example, data) in &examples {
        let text = serde_json::to_string_pretty(data).unwrap_or_default();
        writeln!(out, "\n# {example}: data\n{text}")?;
    }
    if examples.is_empty() {
        writeln!(out, "no example is known; `astro-relay tail --topic {name} --json` shows one")?;
    }
    Ok(())
}

/// The reference, or which file is used and whether it is valid.
pub(super) fn config(args: &ConfigArgs) -> Done {
    if args.reference {
        return Ok(write!(out::text(), "{REFERENCE}")?);
    }
    let loaded = args.source.load_with_file_without_secrets()?;
    let file = loaded
        .file
        .map_or("environment and arguments alone".into(), |file| file.display().to_string());
    writeln!(out::text(), "{file}\n--reference prints every key; `astro-relay check` validates")?;
    Ok(())
}

pub(super) fn completions(args: &Completions) -> Done {
    Ok(out::text().write_all(&script(args.shell))?)
}

/// The script for a shell.
fn script(shell: Shell) -> Vec<u8> {
    // The library panics where its writer fails, and a pipe may be closed.
    let mut text = Vec::new();
    let mut command = with_topics(help::command());
    clap_complete::generate(shell, &mut command, "astro-relay", &mut text);
    complete::dynamic(shell, &String::from_utf8_lossy(&text)).into_bytes()
}

/// The command with the catalogue of topics as values of its arguments, for a shell to offer. It forbids
/// nothing: no arguments are read by it.
fn with_topics(command: Command) -> Command {
    let values = || {
        let value = |topic: &Topic| PossibleValue::new(topic.name).help(topic.description());
        PossibleValuesParser::new(CATALOGUE.iter().map(value))
    };
    let offer = |argument: Arg| match argument.get_id().as_str() {
        "topic" | "topics" => argument.value_parser(values()),
        _ => argument,
    };
    command.mut_args(offer).mut_subcommands(with_topics)
}

pub(super) fn man() -> Done {
    let mut text = Vec::new();
    let command = help::command();
    // Its list of subcommands names pages that there are not: they stand below.
    let page = clap_mangen::Man::new(command.clone().before_help("").after_help(""));
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    page.render_synopsis_section(&mut text)?;
    page.render_description_section(&mut text)?;
    writeln!(text, ".SH COMMANDS")?;
    for (group, names) in help::GROUPS {
        writeln!(text, ".SS \"{group}\"")?;
        for name in *names {
            let about = command.find_subcommand(name).and_then(Command::get_about);
            let about = about.map(ToString::to_string).unwrap_or_default();
            writeln!(text, ".TP\n.B {}\n{about}", name.replace('-', "\\-"))?;
        }
    }
    page.render_options_section(&mut text)?;
    // Each command's own page behind it, under a heading: one page is easier to ship than twenty.
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        let name = format!("astro-relay {}", sub.get_name());
        writeln!(text, ".SH \"{}\"", name.to_uppercase())?;
        let page = clap_mangen::Man::new(sub.clone().after_help("").bin_name(name));
        page.render_synopsis_section(&mut text)?;
        page.render_description_section(&mut text)?;
        page.render_options_section(&mut text)?;
    }
    text.extend_from_slice(help::sections().as_bytes());
    Ok(out::text().write_all(&text)?)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::app::cli::Cli;

    #[test]
    fn shells_offer_the_topics_and_say_which_bring_nothing() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let text = String::from_utf8(script(shell)).unwrap();
            let missing = CATALOGUE.iter().find(|topic| !text.contains(topic.name));
            assert_eq!(missing, None, "{shell}");
        }
        let text = String::from_utf8(script(Shell::Zsh)).unwrap();
        for topic in CATALOGUE {
            let start = format!("{}\\:", topic.name);
            let line =
                text.lines().find(|line| line.trim_start_matches(['(', ' ']).starts_with(&start));
            let line =
                line.or_else(|| text.lines().find(|line| line.contains(&format!("(({start}"))));
            let says = line.unwrap_or_else(|| panic!("{start}")).contains("publishes nothing");
            assert_eq!(says, !topic.published, "{}", topic.name);
        }
    }

    /// What the catalogue does not have can be asked for all the same.
    #[test]
    fn no_topic_is_forbidden() {
        let line = ["astro-relay", "send-test", "--topic", "channel.polls"];
        assert!(Cli::command().try_get_matches_from(line).is_ok());
    }
}
