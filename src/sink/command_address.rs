//! The addresses of commands, `astro/<channel>/command/…`: nothing is ever published there.

/// The first word.
pub const ROOT: &str = "astro";

/// The word between the channel and the command.
pub const COMMAND: &str = "command";

/// The channel and the parts behind `command`; `None`: it is no address of a command.
pub fn parse(text: &[u8], separator: char) -> Option<(&str, Vec<&str>)> {
    let mut parts = std::str::from_utf8(text).ok()?.split(separator);
    let (root, channel, word) = (parts.next()?, parts.next()?, parts.next()?);
    (root == ROOT && word == COMMAND).then(|| (channel, parts.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_the_channel_and_the_command() {
        let parts = |text: &str, separator| {
            parse(text.as_bytes(), separator)
                .map(|(channel, path)| (channel.to_owned(), path.join("|")))
        };
        let found = |channel: &str, path: &str| Some((channel.to_owned(), path.to_owned()));
        for (text, separator, expected) in [
            ("astro/main/command/session/set", '/', found("main", "session|set")),
            ("astro/main/command/session/set/tip-goal", '/', found("main", "session|set|tip-goal")),
            ("astro.main.command.relay.refresh", '.', found("main", "relay|refresh")),
            ("astro/main/command", '/', found("main", "")),
            ("astro//command/x", '/', found("", "x")),
            ("astro/main/channel/tips", '/', None),
            ("other/main/command/session/set", '/', None),
            ("astro.main.command.session.set", '/', None),
            ("", '/', None),
        ] {
            assert_eq!(parts(text, separator), expected, "{text}");
        }
        assert_eq!(parse(b"astro/m\xFFn/command/session/set", '/'), None);
    }
}
