//! Subjects to which nothing is published, whatever an event's data says.

use std::borrow::Cow;

use crate::sink::{address, command_address};

/// The longest first line of a message that a server takes unless it is configured otherwise
/// (`max_control_line`): subject, where the answer goes, and two lengths.
pub(crate) const MAX_LINE: usize = 4096;

/// The most that the two lengths and the blanks between take.
const LENGTHS: usize = 20;

/// Makes a rendered subject legal: no wildcard, no white space, no empty word.
pub(crate) fn escape(subject: &str) -> Cow<'_, str> {
    address::escape(subject, '.', |c| matches!(c, '*' | '>') || c.is_whitespace() || c.is_control())
}

/// Why nothing is published to `subject`.
pub(crate) fn reserved(subject: &str, inbox: &str) -> Option<&'static str> {
    let first = subject.split('.').next().unwrap_or_default();
    if first.starts_with('$') {
        return Some("subjects that begin with $ are the server's own");
    }
    let below_inbox = subject.strip_prefix(inbox).is_some_and(|rest| rest.starts_with('.'));
    if first == "_INBOX" || below_inbox {
        return Some("answers are waited for there");
    }
    command_address::parse(subject.as_bytes(), '.').map(|_| "commands are taken there")
}

/// How long a message's first line is.
pub(crate) fn line(subject: &str, reply: usize) -> usize {
    subject.len() + reply + LENGTHS
}

#[cfg(test)]
mod tests {
    use async_nats::Subject;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn subjects_are_made_legal() {
        for (subject, expected) in [
            ("astro.main.channel.tips", "astro.main.channel.tips"),
            ("astro..tips.", "astro._.tips._"),
            ("a b.*.>", "a%20b.%2A.%3E"),
            ("100%", "100%25"),
            ("", "_"),
        ] {
            assert_eq!(escape(subject), expected, "{subject}");
        }
    }

    proptest! {
        #[test]
        fn every_subject_becomes_a_subject(text in any::<String>()) {
            let subject = escape(&text);
            prop_assert!(Subject::from(subject.clone().into_owned()).is_valid());
            let legal = !subject.contains(|c: char| matches!(c, '*' | '>') || c.is_whitespace());
            prop_assert!(legal);
        }
    }

    #[test]
    fn reserved_subjects_are_recognised() {
        for (subject, is_reserved) in [
            ("astro.main.channel.tips", false),
            ("astro.main.commands", false),
            ("events.main.command.session.reset", false),
            ("astro.$main.x", false),
            ("astro.main.command", true),
            ("astro.main.command.session.reset", true),
            ("$JS.API.STREAM.PURGE.X", true),
            ("$SYS.x", true),
            ("$x", true),
            ("_INBOX.a.b", true),
            ("relay.inbox.a", true),
            ("relay.inboxes.a", false),
        ] {
            assert_eq!(reserved(subject, "relay.inbox").is_some(), is_reserved, "{subject}");
        }
    }
}
