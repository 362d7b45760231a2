//! Completion of what the configuration names: `astro-relay complete KIND` prints it, and the completion
//! scripts call that.
//!
//! The scripts are those of the library, which knows options and commands; where an argument takes the name
//! of a sink or a channel, the call is put in. Topics are known to the program, and stand in the scripts.

use std::io::Write as _;

use clap::{Args, ValueEnum};
use clap_complete::Shell;

use super::{Done, Source, out};
use crate::{
    astro::topics::{CATALOGUE, OWN},
    loading::load,
};

/// `complete`
#[derive(Debug, Args)]
pub(super) struct Complete {
    #[command(flatten)]
    source: Source,
    kind: Names,
}

/// What can be completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Names {
    Sinks,
    Channels,
    Topics,
}

/// Options, and arguments of commands, that take such a name.
const TAKEN: [(&str, &str); 2] = [("sink", "sinks"), ("channel", "channels")];

/// Commands whose only argument is such a name.
const ARGUMENTS: [(&str, &str); 1] = [("retry", "sinks")];

/// Prints the names, one a line. A configuration that cannot be read has none, and says nothing.
pub(super) fn complete(args: &Complete) -> Done {
    let sources = args.source.sources_without_secrets();
    let config = load(&sources).map(|loaded| loaded.config).unwrap_or_default();
    let names: Vec<String> = match args.kind {
        Names::Sinks => config.sinks.into_keys().collect(),
        Names::Channels => config.channels.into_keys().collect(),
        Names::Topics => {
            let known = CATALOGUE.iter().map(|topic| topic.name);
            known.chain(OWN.map(|(name, _)| name)).map(str::to_owned).collect()
        }
    };
    let mut out = out::text();
    names.iter().try_for_each(|name| writeln!(out, "{name}"))?;
    Ok(())
}

/// The library's script with the calls in it.
pub(super) fn dynamic(shell: Shell, script: &str) -> String {
    match shell {
        Shell::Bash => bash(script),
        Shell::Zsh => zsh(script),
        Shell::Fish => fish(script),
        _ => script.to_owned(),
    }
}

fn call(kind: &str) -> String {
    format!("astro-relay complete {kind} 2>/dev/null")
}

/// `--sink)` is followed by a line that completes files, the head of a command by its words.
///
/// The library spells the hyphen of a program's name in one way where it sets the command, and in another where
/// it looks for it: no command would be found.
fn bash(script: &str) -> String {
    let script = script.replace("astro__subcmd__relay", "astro__relay");
    let mut lines: Vec<String> = script.lines().map(str::to_owned).collect();
    for at in 1..lines.len() {
        let Some((before, rest)) = lines.split_at_mut_checked(at) else { continue };
        let (Some(option), Some(line)) = (before.last(), rest.first_mut()) else { continue };
        for (command, kind) in ARGUMENTS {
            let head = format!("astro__relay__subcmd__{command})");
            if option.trim() == head
                && let Some(words) = line.strip_suffix('"')
            {
                *line = format!("{words} $({})\"", call(kind));
            }
        }
        for (name, kind) in TAKEN {
            if option.trim() == format!("--{name})") && line.contains("compgen -f") {
                *line = line.replace(
                    "compgen -f \"${cur}\"",
                    &format!("compgen -W \"$({})\" -- \"${{cur}}\"", call(kind)),
                );
            }
        }
    }
    lines.join("\n") + "\n"
}

/// `'--sink=[…]:SINK:_default'`, and `':sink -- …:_default'` for an argument.
fn zsh(script: &str) -> String {
    let lines = script.lines().map(|line| {
        for (name, kind) in TAKEN {
            let option = line.contains(&format!("--{name}=["));
            let argument =
                line.contains(&format!("':{name} --")) || line.contains(&format!("'::{name} --"));
            let names = line.contains(":_default") && (option || argument);
            // `init --sink KIND=URL` names no sink that there is.
            if names && !line.contains("KIND") {
                let action = format!(":{{compadd -- $({})}}", call(kind));
                return line.replace(":_default", &action);
            }
        }
        line.to_owned()
    });
    lines.collect::<Vec<_>>().join("\n") + "\n"
}

/// `complete -c astro-relay … -l sink -d '…' -r`.
fn fish(script: &str) -> String {
    let lines = script.lines().map(|line| {
        for (name, kind) in TAKEN {
            if line.contains(&format!(" -l {name} ")) && line.ends_with(" -r") {
                return format!("{line} -f -a \"({})\"", call(kind));
            }
        }
        line.to_owned()
    });
    let mut script = lines.collect::<Vec<_>>().join("\n") + "\n";
    for (command, kind) in ARGUMENTS {
        let condition = format!("__fish_seen_subcommand_from {command}");
        let names = call(kind);
        let line = format!("complete -c astro-relay -n \"{condition}\" -f -a \"({names})\"\n");
        script.push_str(&line);
    }
    script
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::cli::help;

    fn script(shell: Shell) -> String {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut help::command(), "astro-relay", &mut text);
        dynamic(shell, &String::from_utf8(text).unwrap())
    }

    #[test]
    fn names_are_asked_for_where_they_are_taken() {
        for (shell, kinds) in [
            (Shell::Bash, &["sinks", "channels"][..]),
            (Shell::Zsh, &["sinks", "channels"]),
            (Shell::Fish, &["sinks", "channels"]),
        ] {
            let script = script(shell);
            for kind in kinds {
                assert!(script.contains(&call(kind)), "{shell}: {kind}");
            }
        }
        // The argument of `retry`, which has no option's name.
        let bash = script(Shell::Bash);
        let retry =
            |(head, next): (&str, &str)| head.contains("__retry)") && next.contains(&call("sinks"));
        assert!(bash.lines().zip(bash.lines().skip(1)).any(retry), "{bash}");
    }
}
