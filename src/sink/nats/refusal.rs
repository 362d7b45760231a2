//! What the server says when it does not permit something.
//!
//! It quotes the subject as Go does (`%q`): a quotation mark, a backslash and whatever cannot be printed
//! are escaped. So what it quotes is unquoted here, and compared as it is.

/// What the server did not permit.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// A message to this subject.
    Publish(String),
    /// A subscription to this subject.
    Subscription(String),
    /// Something else, or it cannot be made out.
    Other,
}

/// Reads `Permissions Violation for Publish to "astro.main.x"`.
pub(crate) fn read(text: &str) -> Refusal {
    let Some((before, quoted)) = text.split_once('"') else { return Refusal::Other };
    let before = before.to_ascii_lowercase();
    match unquoted(quoted) {
        Some(subject) if before.contains("publish") => Refusal::Publish(subject),
        Some(subject) if before.contains("subscription") => Refusal::Subscription(subject),
        _ => Refusal::Other,
    }
}

/// Whether a message was refused, to whatever subject.
pub(crate) fn is_publish(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    text.contains("permissions violation") && !text.contains("subscription")
}

/// The text up to the closing quotation mark.
fn unquoted(quoted: &str) -> Option<String> {
    let mut text = String::with_capacity(quoted.len());
    let mut rest = quoted.chars();
    loop {
        match rest.next()? {
            '"' => return Some(text),
            '\\' => text.push(escaped(&mut rest)?),
            plain => text.push(plain),
        }
    }
}

/// What stands behind a backslash.
fn escaped(rest: &mut std::str::Chars<'_>) -> Option<char> {
    let digits = match rest.next()? {
        'a' => return Some('\u{7}'),
        'b' => return Some('\u{8}'),
        'f' => return Some('\u{c}'),
        'n' => return Some('\n'),
        'r' => return Some('\r'),
        't' => return Some('\t'),
        'v' => return Some('\u{b}'),
        'x' => 2,
        'u' => 4,
        'U' => 8,
        itself @ ('"' | '\\' | '\'') => return Some(itself),
        _ => return None,
    };
    let code = rest.as_str().get(..digits)?;
    rest.nth(digits - 1)?;
    char::from_u32(u32::from_str_radix(code, 16).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_subjects_are_unquoted() {
        for (quoted, subject) in [
            (r#""astro.main.x""#, "astro.main.x"),
            (r#""astro.Zoë.x""#, "astro.Zoë.x"),
            (r#""astro.say \"hi\".x""#, "astro.say \"hi\".x"),
            (r#""astro.a\\b.x""#, "astro.a\\b.x"),
            ("\"astro.\\U0001f468\\u200d👩.x\"", "astro.👨\u{200d}👩.x"),
            (r#""astro.👨\u200d👩.x""#, "astro.👨\u{200d}👩.x"),
            (r#""a\x7f\tb""#, "a\u{7f}\tb"),
        ] {
            let text = format!("Permissions Violation for Publish to {quoted}");
            assert_eq!(read(&text), Refusal::Publish(subject.into()), "{text}");
            assert!(is_publish(&text));
            let text = format!("Permissions Violation for Subscription to {quoted}");
            assert_eq!(read(&text), Refusal::Subscription(subject.into()), "{text}");
            let text = format!(r#"{text} using queue "q""#);
            assert_eq!(read(&text), Refusal::Subscription(subject.into()), "{text}");
            assert!(!is_publish(&text));
        }
    }

    #[test]
    fn unreadable_refusals_are_other() {
        for text in [
            "",
            "Maximum Payload Violation",
            "Permissions Violation for Publish to",
            "Permissions Violation for Publish to \"never closed",
            r#"Permissions Violation for Publish to "a\q""#,
            r#"Permissions Violation for Publish to "a\u12""#,
            r#"Permissions Violation for Publish to "a\ud800""#,
            "Permissions Violation for Publish to \"a\\xü\"",
            r#""quoted" alone"#,
        ] {
            assert_eq!(read(text), Refusal::Other, "{text}");
        }
    }
}
