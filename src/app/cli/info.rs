//! What the program knows about itself: the catalogue of topics, shell completions, the manual page.

use std::io::Write as _;

use clap::{
    Arg, Args, Command, CommandFactory as _,
    builder::{PossibleValue, PossibleValuesParser},
};
use clap_complete::Shell;

use super::{Cli, Done, out};
use crate::astro::topics::{CATALOGUE, Topic};

/// `completions`
#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell.
    shell: Shell,
}

pub(super) fn topics() -> Done {
    let width = CATALOGUE.iter().map(|topic| topic.name.len()).max().unwrap_or(0);
    let mut out = out::text();
    for topic in CATALOGUE {
        let scope = topic.scope.unwrap_or("-");
        writeln!(out, "{:<width$}  {scope:<18}  {}", topic.name, topic.description())?;
    }
    Ok(())
}

pub(super) fn completions(args: &Completions) -> Done {
    Ok(out::text().write_all(&script(args.shell))?)
}

/// The script for a shell.
fn script(shell: Shell) -> Vec<u8> {
    // The library panics where its writer fails, and a pipe may be closed.
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut with_topics(Cli::command()), "astro-relay", &mut text);
    text
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
    let command = Cli::command();
    clap_mangen::Man::new(command.clone()).render(&mut text)?;
    // Each command's own page behind it, under a heading: one page is easier to ship than twenty.
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        let name = format!("astro-relay {}", sub.get_name());
        writeln!(text, ".SH \"{}\"", name.to_uppercase())?;
        let page = clap_mangen::Man::new(sub.clone().bin_name(name));
        page.render_synopsis_section(&mut text)?;
        page.render_description_section(&mut text)?;
        page.render_options_section(&mut text)?;
    }
    Ok(out::text().write_all(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

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
