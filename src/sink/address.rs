//! What the transports have in common in where things go: addresses of words between separators, with
//! characters that must not stand in a word; where a probe asks for the right to publish; several URLs in
//! one text.
//!
//! It knows no transport; each names its separator and its forbidden characters.
//!
//! A forbidden character is percent-encoded, never dropped, and `%` itself is
//! always forbidden. So two events that differ before this differ after it.

use std::borrow::Cow;

use super::Permission;

/// The word below an address at which a probe asks with an empty message whether it may publish there.
/// Below, because nothing must happen at the address itself; a right is seldom given for less than a
/// whole branch. Both transports allow `$` in any place but the first.
pub(super) const PROBE_WORD: &str = "$check";

/// A refusal at an address where it was asked. Where the right is given for an address alone, it is refused
/// below it, at a [`PROBE_WORD`].
pub(super) fn denied(reason: &str, probed: &str) -> Permission {
    let reason = reason.to_owned();
    if probed.ends_with(PROBE_WORD) {
        Permission::DeniedBelow { reason, probed: probed.to_owned() }
    } else {
        Permission::Denied(reason)
    }
}

/// What is written for an empty word: both transports give an empty word a meaning of its own.
const EMPTY: char = '_';

/// Makes `text` legal; borrowed where it is already.
pub(super) fn escape(
    text: &str,
    separator: char,
    forbidden: impl Fn(char) -> bool,
) -> Cow<'_, str> {
    let forbidden = |c: char| c != separator && (c == '%' || forbidden(c));
    let legal = |word: &str| !word.is_empty() && !word.contains(forbidden);
    if text.split(separator).all(legal) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for (index, word) in text.split(separator).enumerate() {
        if index > 0 {
            escaped.push(separator);
        }
        if word.is_empty() {
            escaped.push(EMPTY);
        }
        for c in word.chars() {
            if forbidden(c) {
                encode(c, &mut escaped);
            } else {
                escaped.push(c);
            }
        }
    }
    Cow::Owned(escaped)
}

/// Writes the bytes of `c` as `%XX` each.
fn encode(c: char, into: &mut String) {
    let mut buffer = [0; 4];
    for byte in c.encode_utf8(&mut buffer).bytes() {
        into.extend(['%', hex(byte >> 4), hex(byte & 15)]);
    }
}

/// A hexadecimal digit.
pub(crate) fn hex(digit: u8) -> char {
    char::from_digit(u32::from(digit), 16).map_or('0', |c| c.to_ascii_uppercase())
}

/// The URLs in a text that has several with commas between, as other clients of a server take them. A path
/// may have commas in it, so a URL with one is alone.
pub(super) fn each_url(text: &str) -> impl Iterator<Item = &str> {
    let is_path = text.contains("unix:");
    text.split(move |c| c == ',' && !is_path).map(str::trim)
}

/// What of a template is outside of Jinja's brackets: the part that reaches every address.
pub(super) fn literals(template: &str) -> String {
    crate::base::template::literals(template, "")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn urls_are_parted_at_commas() {
        for (text, urls) in [
            ("nats://a", &["nats://a"][..]),
            ("nats://a, tls://[::1]:1 ,b", &["nats://a", "tls://[::1]:1", "b"]),
            ("nats://a,", &["nats://a", ""]),
            ("redis+unix:///run/a,b", &["redis+unix:///run/a,b"]),
        ] {
            assert_eq!(each_url(text).collect::<Vec<_>>(), urls, "{text}");
        }
    }

    #[test]
    fn what_is_legal_is_borrowed() {
        let forbidden = |c: char| c == '+';
        assert!(matches!(escape("a/b/ü", '/', forbidden), Cow::Borrowed(_)));
        assert_eq!(escape("a//b+%/", '/', forbidden), "a/_/b%2B%25/_");
        assert_eq!(escape("", '/', forbidden), "_");
    }

    proptest! {
        #[test]
        fn two_words_that_differ_stay_different(a in "[a-c+%_/]{1,6}", b in "[a-c+%_/]{1,6}") {
            // `_` stands for an empty word, so a word `_` and an empty one do meet.
            let key = |text: &str| text.split('/').map(|word| if word.is_empty() { "_" } else { word }.to_owned()).collect::<Vec<_>>();
            let forbidden = |c: char| c == '+';
            prop_assert_eq!(key(&a) == key(&b), escape(&a, '/', forbidden) == escape(&b, '/', forbidden));
        }
    }
}
