//! Text that others wrote, in the form in which it may be shown or kept: of a bounded length, and
//! without characters that do something to a terminal, a log or a reader's eye.
//!
//! For logs, the status page, reasons in the journal and terminals. Event data that goes to a sink is
//! not changed here.

use std::{borrow::Cow, fmt::Write as _};

/// Bytes of an excerpt of what a server or an error says: enough for its first sentences.
pub(crate) const EXCERPT: usize = 300;

/// At most `limit` bytes of `text`, harmless ([`harmless`]). Where something was left out, it ends with
/// `…`, which is within the limit too.
pub(crate) fn excerpt(text: &str, limit: usize) -> String {
    const CUT: &str = "…";
    let room = limit.saturating_sub(CUT.len());
    let mut shown = String::with_capacity(text.len().min(limit));
    // Where to cut, should the rest not fit.
    let mut fits = 0;
    for c in text.chars() {
        push(c, &mut shown);
        if shown.len() > limit {
            shown.truncate(fits);
            if limit >= CUT.len() {
                shown.push_str(CUT);
            }
            return shown;
        }
        if shown.len() <= room {
            fits = shown.len();
        }
    }
    shown
}

/// The first `limit` characters; where something was left out, the last of them is `…`.
pub(crate) fn cut(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        None => text.to_owned(),
        Some(_) => text.chars().take(limit.saturating_sub(1)).chain(['…']).collect(),
    }
}

/// `1 sink`, `2 sinks`.
pub(crate) fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// `text` without characters that do something: control characters (C0, C1 and DEL), those that change
/// the direction of what follows, and those that nobody sees. A line end or a tab becomes a space, any
/// other becomes `\u{…}`.
pub fn harmless(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_harmful) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    text.chars().for_each(|c| push(c, &mut shown));
    Cow::Owned(shown)
}

/// JSON whose text is harmless: what does something stands there as an escape, which is the same value
/// to whoever reads it. White space between values stays.
pub(crate) fn harmless_json(json: &str) -> Cow<'_, str> {
    let escaped = |c: char| is_harmful(c) && !is_json_space(c);
    if !json.chars().any(escaped) {
        return Cow::Borrowed(json);
    }
    let mut shown = String::with_capacity(json.len() + 16);
    json.chars().for_each(|c| push_json(c, &mut shown));
    Cow::Owned(shown)
}

/// Appends a character of a JSON text; see [`harmless_json`].
pub(crate) fn push_json(c: char, shown: &mut String) {
    if is_harmful(c) && !is_json_space(c) {
        let mut units = [0; 2];
        for unit in c.encode_utf16(&mut units) {
            // Writing to a string does not fail.
            write!(shown, "\\u{unit:04x}").ok();
        }
    } else {
        shown.push(c);
    }
}

/// Outside of its strings, JSON may have these; inside, it has none of them.
fn is_json_space(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\t')
}

/// Whether a character does something where it is shown. The joiners U+200C and U+200D do not: emoji and
/// whole scripts need them.
pub(crate) fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}'
            | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Appends a character as [`harmless`] shows it.
pub fn push(c: char, shown: &mut String) {
    match c {
        '\n' | '\r' | '\t' | '\u{2028}' | '\u{2029}' => shown.push(' '),
        c if is_harmful(c) => shown.extend(c.escape_unicode()),
        c => shown.push(c),
    }
}

/// A longer text without a dot or a slash is no name of a file.
const LONGEST_NAME: usize = 48;

/// Whether a text could be a secret that stands where a name belongs.
pub fn looks_secret(text: &str) -> bool {
    let part = |part: &str| {
        let mixed = part.bytes().any(|b| b.is_ascii_digit())
            && part.bytes().any(|b| b.is_ascii_alphabetic());
        part.starts_with("eyJ")
            || part.starts_with("whsec_")
            || part.len() > LONGEST_NAME
            || part.len() >= 24 && mixed && !part.contains(['-', '_'])
    };
    text.split(['/', '.', ' ', ':', '=', '&', '?', '[', ']', '"']).any(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_and_direction_characters_are_escaped() {
        for (text, shown) in [
            ("plain, ü, 🎉, 👨\u{200d}👩", "plain, ü, 🎉, 👨\u{200d}👩"),
            ("\u{1b}[2J\u{7}", "\\u{1b}[2J\\u{7}"),
            ("\u{9b}31m\u{7f}", "\\u{9b}31m\\u{7f}"),
            ("a\nb\r\tc\u{2028}d", "a b  c d"),
            ("user\u{202e}gnp.exe\u{2066}\u{200f}", "user\\u{202e}gnp.exe\\u{2066}\\u{200f}"),
            ("\u{feff}a\u{0}", "\\u{feff}a\\u{0}"),
            ("\u{e0041}", "\\u{e0041}"),
        ] {
            assert_eq!(harmless(text), shown);
            assert_eq!(excerpt(text, 1000), shown);
        }
        assert!(matches!(harmless("as it is"), Cow::Borrowed(_)));
    }

    #[test]
    fn json_stays_the_same_value() {
        for value in ["plain", "\u{1b}[2J", "\u{9b}31m\u{7f}", "\u{202e}\u{e0041}\u{feff}", "a\n\t"]
        {
            for json in
                [serde_json::json!({ value: [value] }).to_string(), format!("[\n \"{}\"]", "x")]
            {
                let shown = harmless_json(&json);
                assert!(!shown.chars().any(|c| is_harmful(c) && c != '\n'), "{shown:?}");
                let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
                assert_eq!(read(&shown), read(&json));
            }
        }
        assert_eq!(harmless_json("\"\u{e0041}\""), "\"\\udb40\\udc41\"");
    }

    #[test]
    fn an_excerpt_keeps_its_limit() {
        assert_eq!(excerpt("abcdef", 6), "abcdef");
        assert_eq!(excerpt("abcdefg", 6), "abc…");
        assert_eq!(excerpt("éééé", 7), "éé…");
        assert_eq!(excerpt("abc", 2), "");
        assert_eq!(excerpt("", 0), "");
    }

    proptest::proptest! {
        #[test]
        fn whatever_it_is_it_is_bounded_and_harmless(text in ".*", limit in 0_usize..40) {
            let shown = excerpt(&text, limit);
            proptest::prop_assert!(shown.len() <= limit);
            proptest::prop_assert!(!shown.chars().any(is_harmful));
        }
    }
}
