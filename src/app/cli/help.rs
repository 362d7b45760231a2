//! What help and manual page say beside the arguments: groups of commands, examples, files, exit codes.
//!
//! It stands here once: the help of each command takes its examples from [`EXAMPLES`], and so does the
//! manual page.

use std::fmt::Write as _;

use clap::{Command, CommandFactory as _};

use super::Cli;

/// Commands by what they are for. A test ensures that each is in one of them.
pub(super) const GROUPS: &[(&str, &[&str])] = &[
    ("Set up", &["demo", "setup", "init", "check", "send-test", "topics", "config", "schema"]),
    ("Run", &["run"]),
    ("Watch", &["status", "top", "tail", "cluster", "diagnose"]),
    ("Act", &["retry", "dead-letters", "replay", "journal", "session"]),
    ("Develop and package", &["sim", "completions", "man"]),
];

/// Examples by command; those of the program itself are under an empty name.
pub(super) const EXAMPLES: &[(&str, &[(&str, &str)])] = &[
    (
        "",
        &[
            ("astro-relay demo", "a simulated channel, and the page at http://127.0.0.1:9464/"),
            ("astro-relay setup", "asks in the browser, tries each answer, and writes a file"),
            ("astro-relay check --connect", "tries everything that the file names"),
            ("astro-relay run", "the daemon"),
        ],
    ),
    ("demo", &[("astro-relay demo --mqtt mqtt://127.0.0.1:1883", "also to a broker")]),
    (
        "setup",
        &[
            ("astro-relay setup", "prints the address to open, with a one-time code"),
            (
                "astro-relay setup --listen 9465",
                "on a fixed port, for `ssh -L 9465:127.0.0.1:9465`",
            ),
        ],
    ),
    (
        "init",
        &[(
            "astro-relay init --token-file main.jwt --topic channel.tips --sink mqtt=mqtt://broker",
            "without a question",
        )],
    ),
    (
        "check",
        &[
            ("astro-relay check -c astro-relay.toml", "the file alone"),
            ("astro-relay check --connect", "also token, subscriptions, sinks, rights"),
        ],
    ),
    ("run", &[("astro-relay run --set log.level=debug", "one key over the file")]),
    (
        "status",
        &[
            ("astro-relay status", "health with reasons, sinks, journal, gaps"),
            ("astro-relay status --check || echo look at it", "in a script"),
            ("astro-relay status --alive", "for what restarts a process that hangs"),
            ("astro-relay status --json | jq .health", "for a program"),
        ],
    ),
    (
        "tail",
        &[
            ("astro-relay tail", "a line for each event"),
            ("astro-relay tail --topic channel.tips --when 'data.donation.amount >= 5'", ""),
            ("astro-relay tail --json | jq .message.data", "raw"),
        ],
    ),
    ("retry", &[("astro-relay retry home", "the sink of that name, now")]),
    ("topics", &[("astro-relay topics channel.tips", "scope, and an example of it")]),
    ("config", &[("astro-relay config --reference > astro-relay.toml", "every key, commented")]),
    (
        "send-test",
        &[
            ("astro-relay send-test raid", "a true event of that kind, marked as a test"),
            ("astro-relay send-test tip --amount 50 --sink home", "through one sink"),
            ("astro-relay send-test --topic channel.giveaways --data '{\"n\":1}'", "any other"),
        ],
    ),
    (
        "dead-letters",
        &[
            ("astro-relay dead-letters list --sink shop", "with the reason of each"),
            ("astro-relay dead-letters retry 3 4", ""),
            ("astro-relay dead-letters drop --sink shop", "asks first"),
        ],
    ),
    (
        "replay",
        &[
            ("astro-relay replay --sink home --from 2h --dry-run", "what would be sent"),
            ("astro-relay replay --sink home --from 2h --topic channel.tips --wait", ""),
        ],
    ),
    ("journal", &[("astro-relay journal export --from 24h > events.jsonl", "with progress")]),
    ("sim", &[("astro-relay sim --speed 0.2 --refuse channel.tips=err_unauthorized", "")]),
    ("completions", &[("astro-relay completions bash > /etc/bash_completion.d/astro-relay", "")]),
];

/// The command line, with examples and groups in its help.
pub(super) fn command() -> Command {
    let mut command = Cli::command();
    let groups = groups(&command);
    command = command
        .subcommand_help_heading("Commands")
        .help_template(
            "{about}\n\n{usage-heading} {usage}\n\n{before-help}Options:\n{options}{after-help}",
        )
        .before_help(groups)
        .after_help(format!("Examples:\n{}", examples_of("").unwrap_or_default()));
    let names: Vec<String> = command.get_subcommands().map(|one| one.get_name().into()).collect();
    for name in names {
        if let Some(examples) = examples_of(&name) {
            let text = format!("Examples:\n{examples}");
            command = command.mut_subcommand(&name, |one| one.after_help(text));
        }
    }
    command
}

/// The commands in their groups, each with what it does.
fn groups(command: &Command) -> String {
    let about = |name: &str| {
        let found = command.get_subcommands().find(|one| one.get_name() == name);
        found.and_then(Command::get_about).map(ToString::to_string).unwrap_or_default()
    };
    let mut text = String::new();
    for (group, names) in GROUPS {
        writeln!(text, "{group}:").ok();
        for name in *names {
            writeln!(text, "  {name:<14}{}", about(name)).ok();
        }
    }
    text.push_str("  help          Print this message or the help of a command");
    text
}

fn examples_of(name: &str) -> Option<String> {
    let (_, examples) = EXAMPLES.iter().find(|(command, _)| *command == name)?;
    let lines = examples.iter().map(|(line, what)| match *what {
        "" => format!("  {line}\n"),
        what => format!("  {line}\n      {what}\n"),
    });
    Some(lines.collect())
}

/// Sections of the manual page that no argument tells, in the markup of man.
pub(super) fn sections() -> String {
    let mut text = String::from(
        ".SH FILES\n\
         .TP\n.I ./astro-relay.toml, /etc/astro-relay/astro-relay.toml\n\
         The configuration, where \\fB\\-\\-config\\fR names none: the first that exists.\n\
         .TP\n.I /var/lib/astro-relay/journal.db\n\
         The journal as the package configures it (\\fBjournal.dir\\fR).\n\
         .SH ENVIRONMENT\n\
         .TP\n.B ASTRO_RELAY__SECTION__KEY\n\
         Any key of the configuration, over the file: \\fBASTRO_RELAY__SINKS__HOME__URL\\fR. A list is \
         comma-separated or JSON.\n\
         .TP\n.B CREDENTIALS_DIRECTORY\n\
         Where \\fB*_credential\\fR keys find their files; systemd sets it (\\fBLoadCredential=\\fR). For a \
         command at a shell: \\fBsudo CREDENTIALS_DIRECTORY=/etc/astro\\-relay astro\\-relay check\\fR.\n\
         .TP\n.B ASTRO_RELAY_TOKEN\n\
         The token for \\fBinit\\fR.\n\
         .TP\n.B HTTPS_PROXY, ALL_PROXY, NO_PROXY\n\
         The proxy for the gateway and the REST API, unless \\fBastro.proxy\\fR says otherwise.\n\
         .TP\n.B NO_COLOR, TERM\n\
         No colours where \\fBNO_COLOR\\fR is not empty or \\fBTERM\\fR is dumb.\n\
         .TP\n.B NOTIFY_SOCKET, WATCHDOG_USEC, JOURNAL_STREAM\n\
         Set by systemd: readiness, watchdog, and the form of the log.\n\
         .SH EXIT STATUS\n\
         Those of sysexits(3).\n",
    );
    for (code, what) in super::EXIT_CODES {
        writeln!(text, ".TP\n.B {code}\n{what}").ok();
    }
    text.push_str(
        ".SH SIGNALS\n\
         .TP\n.B SIGHUP\nReloads the configuration; an invalid file is rejected and logged.\n\
         .TP\n.B SIGTERM, SIGINT\nStops: what is in flight is waited for, at most 24 seconds.\n\
         .SH EXAMPLES\n",
    );
    for (_, examples) in EXAMPLES {
        for (line, what) in *examples {
            let line = line.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq");
            writeln!(text, ".TP\n.B {line}\n{what}").ok();
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_is_in_one_group_and_examples_are_of_commands() {
        let command = Cli::command();
        let mut known: Vec<&str> = command
            .get_subcommands()
            .filter(|one| !one.is_hide_set())
            .map(Command::get_name)
            .collect();
        let mut grouped: Vec<&str> = GROUPS.iter().flat_map(|(_, names)| *names).copied().collect();
        known.sort_unstable();
        grouped.sort_unstable();
        assert_eq!(grouped, known);
        assert!(EXAMPLES.iter().all(|(name, _)| name.is_empty() || known.contains(name)));
    }

    /// An example that the command line does not understand helps nobody.
    #[test]
    fn every_example_is_a_command_line() {
        for (line, _) in EXAMPLES.iter().flat_map(|(_, examples)| *examples) {
            let line = [" | ", " > ", " || "]
                .iter()
                .fold(*line, |line, end| line.split(end).next().unwrap());
            let words = line.split('\'').enumerate().flat_map(|(at, part)| {
                // What stands in quotes is one word.
                let part = if at % 2 == 1 { vec![part] } else { part.split(' ').collect() };
                part.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>()
            });
            if let Err(error) = command().try_get_matches_from(words) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn the_help_has_groups_and_examples() {
        let help = command().render_help().to_string();
        for part in
            ["Set up:\n  demo ", "Watch:\n", "Options:\n", "Examples:\n  astro-relay demo\n"]
        {
            assert!(help.contains(part), "{part:?} in\n{help}");
        }
        let mut command = command();
        let replay = command.find_subcommand_mut("replay").unwrap().render_help().to_string();
        assert!(replay.contains("--from 2h --dry-run\n"), "{replay}");
    }
}
