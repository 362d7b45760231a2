//! `astro-relay check`: prints every problem of the configuration, and connects to nothing. Warnings do not
//! make it fail.

use std::io::{self, Write};

use crate::{
    base::text,
    config::Config,
    loading::{Loaded, Sources, load},
};

/// Loads the configuration and prints its problems and a summary; answers it where it can be used. A pipe
/// cannot be read again.
pub fn run(sources: &Sources, out: &mut impl Write) -> io::Result<Option<Loaded>> {
    match load(sources) {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                writeln!(out, "{}\n", warning.render("warning"))?;
            }
            let file = loaded.file.as_ref().map(|file| format!("{}: ", file.display()));
            writeln!(out, "{}{}", file.unwrap_or_default(), summary(&loaded.config))?;
            if loaded.silent > 0 {
                writeln!(out, "{} could not be read", counted(loaded.silent, "secret"))?;
            }
            let config = &loaded.config;
            for (lacks, what) in
                [(config.channels.is_empty(), "channel"), (config.sinks.is_empty(), "sink")]
            {
                if lacks {
                    writeln!(out, "error: no {what} is configured: the relay would do nothing")?;
                }
            }
            let does_something = !config.channels.is_empty() && !config.sinks.is_empty();
            Ok((loaded.silent == 0 && does_something).then_some(loaded))
        }
        Err(error) => {
            for problem in &error.problems {
                writeln!(out, "{}\n", problem.render("error"))?;
            }
            writeln!(out, "{}", counted(error.problems.len(), "error"))?;
            Ok(None)
        }
    }
}

/// `2 channels, 7 subscriptions, 1 sink: home (mqtt)`.
fn summary(config: &Config) -> String {
    let subscriptions = config.channels.values().map(|channel| channel.topics.len()).sum();
    let sinks: Vec<String> =
        config.sinks.iter().map(|(name, sink)| format!("{name} ({})", sink.kind)).collect();
    let mut text = format!(
        "{}, {}, {}",
        counted(config.channels.len(), "channel"),
        counted(subscriptions, "subscription"),
        counted(sinks.len(), "sink")
    );
    if !sinks.is_empty() {
        text.push_str(": ");
        text.push_str(&sinks.join(", "));
    }
    text
}

fn counted(count: usize, what: &str) -> String {
    text::counted(u64::try_from(count).unwrap_or(u64::MAX), what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> (bool, String) {
        let sources =
            Sources { text: Some(text.into()), resolve_secrets: false, ..Sources::default() };
        let mut out = Vec::new();
        let usable = run(&sources, &mut out).unwrap();
        (usable.is_some(), String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_good_configuration_is_summed_up() {
        let (fine, text) = said(
            "[channels.main]\ntoken_env = \"T\"\ntopics = [\"channel.tips\", \"channel.tip\"]\n\
             [sinks.out]\ntype = \"stdout\"\n",
        );
        assert!(fine);
        assert!(text.starts_with("warning: channels.main.topics[1]"), "{text}");
        let summary = "astro-relay.toml: 1 channel, 2 subscriptions, 1 sink: out (stdout)\n";
        assert!(text.ends_with(summary), "{text}");
    }

    #[test]
    fn a_configuration_of_nothing_is_told_and_fails() {
        let (fine, text) = said("");
        assert!(!fine);
        let errors = "error: no channel is configured: the relay would do nothing\n\
                      error: no sink is configured: the relay would do nothing\n";
        assert!(text.ends_with(errors), "{text}");
    }

    #[test]
    fn a_bad_configuration_is_told_and_fails() {
        let (fine, text) = said("[log]\nlevle = \"info\"\nformat = 1\n");
        assert!(!fine);
        assert!(text.contains("did you mean \"level\"?") && text.ends_with("2 errors\n"), "{text}");
    }
}
