//! Takes secrets out of text that somebody is about to publish.
//!
//! Two ways at once, for each misses what the other finds. *What is known*: the configured secrets as they are
//! read now, in the forms in which they travel (a URL, JSON, a header, cut off by a limit). *What looks like
//! one*: tokens by their shape, logins in addresses, values behind names such as `password=`. The second takes
//! out too much rather than too little: an id of 24 digits goes, too.
//!
//! Equal text gets the same number, so that a reader still sees what belongs together. Nothing is read here.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
    fmt,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};

use crate::base::text::looks_secret;

/// A shorter secret is only taken out where it stands as a word of its own: the letter `a` is everywhere.
const SHORTEST: usize = 4;

/// From so many bytes on a text counts as the beginning of a longer secret, which a limit has cut off.
const BEGINNING: usize = 12;

/// Names behind which a secret stands, as the ends of words in small letters.
const NAMES: [&str; 14] = [
    "token",
    "password",
    "passwd",
    "pass",
    "_pwd",
    "secret",
    "apikey",
    "api_key",
    "api-key",
    "access_key",
    "seed",
    "signature",
    "credential",
    "jwt",
];

/// Words of a header behind which a secret stands.
const SCHEMES: [&str; 4] = ["bearer", "basic", "oauth", "apikey"];

/// What is to be taken out, and what was.
#[derive(Debug, Default)]
pub(super) struct Removal {
    /// What is known, each in every form.
    known: BTreeSet<Known>,
    numbers: Numbers,
}

/// Where a configuration says that a secret is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reference {
    File(String),
    Variable(String),
}

/// The longest first, so that what contains another goes as a whole.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Known(Reverse<usize>, String);

/// Never the text itself.
impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// The texts that were taken out, numbered.
#[derive(Default)]
struct Numbers(HashMap<String, usize>);

impl fmt::Debug for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} removed", self.0.len())
    }
}

impl Numbers {
    fn mark(&mut self, text: &str) -> String {
        let next = self.0.len() + 1;
        format!("[removed {}]", self.0.entry(text.to_owned()).or_insert(next))
    }
}

impl Removal {
    /// Takes out this secret, and each line of it.
    pub(super) fn learn(&mut self, secret: &str) {
        for text in secret.lines().chain([secret]).map(str::trim).filter(|text| !text.is_empty()) {
            let json = serde_json::Value::from(text).to_string();
            let json = json.trim_matches('"').to_owned();
            for form in [text.to_owned(), json, percent(text), BASE64_STANDARD.encode(text)] {
                self.known.insert(Known(Reverse(form.len()), form));
            }
        }
    }

    /// Takes out what an address may hold that is secret: its login, its path, its query.
    pub(super) fn learn_address(&mut self, address: &str) {
        let Some((_, rest)) = address.split_once("://") else { return };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if let Some((login, _)) = authority.rsplit_once('@') {
            let password = login.split_once(':').map_or(login, |(_, password)| password);
            self.learn(password);
            self.learn(&unpercent(password));
        }
        let parts = path.split(['/', '?', '&', '#']).filter(|part| part.len() >= SHORTEST * 2);
        for part in parts {
            let value = part.split_once('=').map_or(part, |(_, value)| value);
            if value.len() >= SHORTEST {
                self.learn(value);
                self.learn(&unpercent(value));
            }
        }
    }

    /// Takes out what stands behind telling names in a text of lines `NAME = "value"`: a configuration that
    /// cannot be read as one, or the environment. What it refers to instead is answered.
    pub(super) fn learn_assignments(&mut self, text: &str) -> Vec<Reference> {
        let mut references = Vec::new();
        for line in text.lines() {
            let line = line.trim_start_matches([' ', '\t', '#']);
            let Some((name, value)) = line.split_once('=') else { continue };
            let value = value.trim();
            let value = match value.chars().next() {
                Some(quote @ ('"' | '\'')) => {
                    value.trim_start_matches(quote).split(quote).next().unwrap_or_default()
                }
                _ => value,
            };
            self.learn_address(value);
            let name = name.trim().trim_matches('"').to_ascii_lowercase();
            let reference = if let Some(name) = name.strip_suffix("_file") {
                is_telling(name).then(|| Reference::File(value.to_owned()))
            } else if let Some(name) = name.strip_suffix("_env") {
                is_telling(name).then(|| Reference::Variable(value.to_owned()))
            } else {
                None
            };
            // People put the secret itself where its name belongs.
            if is_telling(&name) || reference.is_some() && looks_secret(value) {
                self.learn(value);
            }
            references.extend(reference);
        }
        references
    }

    /// The text without secrets.
    pub(super) fn apply(&mut self, text: &str) -> String {
        let Self { known, numbers } = self;
        let text = without_known(text, known, numbers);
        let text = without_logins(&text, numbers);
        let text = without_values(&text, numbers);
        without_shapes(&text, numbers)
    }
}

fn without_known(text: &str, known: &BTreeSet<Known>, numbers: &mut Numbers) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let before = text.get(..text.len() - rest.len()).and_then(|text| text.chars().next_back());
        let length = if let Some(length) = known_at(rest, before, known) {
            out.push_str(&numbers.mark(rest.get(..length).unwrap_or_default()));
            length
        } else {
            out.push(first);
            first.len_utf8()
        };
        rest = rest.get(length..).unwrap_or_default();
    }
    out
}

/// How much of the beginning of this text is a secret, or else the beginning of a long one.
fn known_at(text: &str, before: Option<char>, known: &BTreeSet<Known>) -> Option<usize> {
    let in_word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    let whole = known.iter().map(|Known(_, secret)| secret).find(|secret| {
        let behind = || text.get(secret.len()..).and_then(|rest| rest.chars().next());
        text.starts_with(secret.as_str())
            && (secret.len() >= SHORTEST || !in_word(before) && !in_word(behind()))
    });
    if let Some(secret) = whole {
        return Some(secret.len());
    }
    let same = |secret: &str| secret.bytes().zip(text.bytes()).take_while(|(a, b)| a == b).count();
    let longest = known.iter().map(|Known(_, secret)| same(secret)).max()?;
    let length = text.floor_char_boundary(longest);
    (length >= BEGINNING).then_some(length)
}

/// `scheme://login@host` without the login.
fn without_logins(text: &str, numbers: &mut Numbers) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (head, tail) = rest.split_at(at + 3);
        out.push_str(head);
        let ends = |c: char| c.is_whitespace() || matches!(c, '/' | '"' | '\'' | '<' | '>' | '`');
        let (authority, behind) = tail.split_at(tail.find(ends).unwrap_or(tail.len()));
        match authority.rsplit_once('@') {
            Some((login, host)) => {
                out.push_str(&numbers.mark(login));
                out.push('@');
                out.push_str(host);
            }
            None => out.push_str(authority),
        }
        rest = behind;
    }
    out.push_str(rest);
    out
}

/// `password=…`, `"token": "…"`, `Bearer …` and `Authorization: …` without what stands there.
fn without_values(text: &str, numbers: &mut Numbers) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(|c: char| c.is_ascii_alphabetic()) {
        let (head, tail) = rest.split_at(start);
        let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-');
        let (name, behind) = tail.split_at(tail.find(word).unwrap_or(tail.len()));
        out.push_str(head);
        out.push_str(name);
        let (between, value) = value_of(name, behind);
        out.push_str(between);
        if !value.is_empty() {
            out.push_str(&numbers.mark(value));
        }
        rest = behind.get(between.len() + value.len()..).unwrap_or_default();
    }
    out.push_str(rest);
    out
}

/// What stands between a name and its secret, and the secret; both are empty where none is behind it.
fn value_of<'t>(name: &str, behind: &'t str) -> (&'t str, &'t str) {
    let name = name.to_ascii_lowercase();
    let until = |from: usize, ends: &dyn Fn(char) -> bool| {
        let (between, tail) = behind.split_at(from);
        let value = tail.split(ends).next().unwrap_or_default();
        // A mark of ours is none.
        if value.starts_with("[removed") { ("", "") } else { (between, value) }
    };
    let blank =
        |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | ',' | ';' | '&' | '<');
    let blanks = behind.len() - behind.trim_start_matches(' ').len();
    if SCHEMES.contains(&name.as_str()) && blanks > 0 {
        let value = until(blanks, &blank);
        // "bearer token" is a phrase.
        let plain = value.1.chars().all(char::is_alphabetic);
        let plausible = value.1.len() >= if plain { BEGINNING } else { SHORTEST };
        return if plausible { value } else { ("", "") };
    }
    if matches!(name.as_str(), "authorization" | "cookie") && behind.starts_with(':') {
        return until(1, &|c| matches!(c, '\n' | '\r' | '"' | '\''));
    }
    if !is_telling(&name) {
        return ("", "");
    }
    // `name=value`, `name = "value"`, `"name": "value"`; a name with a colon begins a sentence of ours.
    let quoted = behind.trim_start_matches(['"', '\\']);
    let sign = quoted.trim_start_matches(' ');
    let assigns = sign.starts_with('=') || (sign.starts_with(':') && quoted.len() < behind.len());
    if !assigns {
        return ("", "");
    }
    let value = sign.get(1..).unwrap_or_default().trim_start_matches([' ', '"', '\'', '\\']);
    let quote = behind.len() - value.len();
    let json = sign.starts_with(':');
    let before = behind.get(..quote).and_then(|between| between.chars().next_back());
    let ends = |c: char| match before {
        Some(quote @ ('"' | '\'')) => c == quote || matches!(c, '\n' | '\\'),
        _ => blank(c) || c == '\\' || json && matches!(c, '}' | ']'),
    };
    // Yes, no, nothing, and what is left out already are no secrets.
    let value = until(quote, &ends);
    if matches!(value.1, "true" | "false" | "null" | "…") { ("", "") } else { value }
}

/// Words that look like secrets.
fn without_shapes(text: &str, numbers: &mut Numbers) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let inside = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '+' | '~' | '%');
    while let Some(start) = rest.find(inside) {
        let (head, tail) = rest.split_at(start);
        let (word, behind) = tail.split_at(tail.find(|c| !inside(c)).unwrap_or(tail.len()));
        out.push_str(head);
        if looks_secret(word) && !word.bytes().all(|b| matches!(b, b'-' | b'.' | b'_')) {
            out.push_str(&numbers.mark(word));
        } else {
            out.push_str(word);
        }
        rest = behind;
    }
    out.push_str(rest);
    out
}

/// Whether a secret stands behind that name.
fn is_telling(name: &str) -> bool {
    NAMES.iter().any(|end| name.ends_with(end))
}

/// As in a URL, every byte but letters and digits.
fn percent(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~');
    text.bytes()
        .map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

/// The text that was written so; itself where it was not.
fn unpercent(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((head, tail)) = rest.split_once('%') {
        bytes.extend_from_slice(head.as_bytes());
        let code = tail.get(..2).and_then(|code| u8::from_str_radix(code, 16).ok());
        let Some(byte) = code else { return text.to_owned() };
        bytes.push(byte);
        rest = tail.get(2..).unwrap_or_default();
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(secrets: &[&str]) -> Removal {
        let mut removal = Removal::default();
        for secret in secrets {
            removal.learn(secret);
        }
        removal
    }

    #[test]
    fn what_is_known_goes_in_every_form() {
        let secrets = ["hunter2 \"ü\"/x", "two\nlines-of-it", "k", "a-long-secret-that-is-cut"];
        for (text, shown) in [
            ("a hunter2 \"ü\"/x b", "a [removed 1] b"),
            (r#"{"a":"hunter2 \"ü\"/x"}"#, r#"{"a":"[removed 1]"}"#),
            ("?q=hunter2%20%22%C3%BC%22%2Fx&b", "?q=[removed 1]&b"),
            ("x aHVudGVyMiAiw7wiL3g= x", "x [removed 1] x"),
            ("lines-of-it, two, twofold", "[removed 1], [removed 2], twofold"),
            // Short ones as words alone.
            ("ask k: k", "ask [removed 1]: [removed 1]"),
            // Cut off by a limit.
            ("a-long-secret-th…", "[removed 1]…"),
            ("a-long-s…", "a-long-s…"),
        ] {
            assert_eq!(of(&secrets).apply(text), shown);
        }
    }

    #[test]
    fn what_looks_like_a_secret_goes_unknown() {
        let jwt = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl";
        for (text, shown) in [
            (format!("token {jwt} here"), "token [removed 1] here"),
            (format!("{jwt}, {jwt}"), "[removed 1], [removed 1]"),
            ("whsec_MfKQ".into(), "[removed 1]"),
            ("mqtt://me:pa@ss@broker:1883/x".into(), "mqtt://[removed 1]@broker:1883/x"),
            ("wss://h/?a=1&token=abc&b=2".into(), "wss://h/?a=1&token=[removed 1]&b=2"),
            ("Authorization: Basic bWU6eA==".into(), "Authorization:[removed 1]"),
            ("authorization=Bearer x1y2".into(), "authorization=Bearer [removed 1]"),
            (r#"{"api_key": "a b"}"#.into(), r#"{"api_key": "[removed 1]"}"#),
            (r#"{\"token\":\"ab\",\"n\":1}"#.into(), r#"{\"token\":\"[removed 1]\",\"n\":1}"#),
            ("MQTT_PASSWORD=x y".into(), "MQTT_PASSWORD=[removed 1] y"),
            ("apikey=abcd ef".into(), "apikey=[removed 1] ef"),
            (r#"{"pass":ab12}"#.into(), r#"{"pass":[removed 1]}"#),
            ("password=a}b c".into(), "password=[removed 1] c"),
            ("password = 'a b'".into(), "password = '[removed 1]'"),
            ("room 5b2e2007760aeb7729487dab".into(), "room [removed 1]"),
        ] {
            assert_eq!(Removal::default().apply(&text), shown);
        }
    }

    #[test]
    fn what_helps_stays() {
        let text = "1 channel, 2 subscriptions, 1 sink: home (mqtt)\n\
                    channels.main.token: this token is no JWT, which has three parts\n\
                    a bearer token is needed; {\"ready\":true,\"token\":null}\n\
                    /etc/astro-relay/astro-relay.toml:7:1, http://127.0.0.1:9464, --------------------\n\
                    token = …, OLDPWD=/tmp/x\n\
                    2026-11-29T15:17:03.081Z WARN err_unauthorized\n";
        assert_eq!(Removal::default().apply(text), text);
    }

    #[test]
    fn addresses_and_broken_files_are_learnt_from() {
        let mut removal = Removal::default();
        removal.learn_address("redis://me:s3cr%2Ft@host/0");
        removal.learn_address("https://hooks.example.org/services/AbCdEfGh?key=zyxw");
        let references = removal.learn_assignments(
            "[sinks.a\n  # password = \"old-one\"\ntoken_file = \"/run/token\"\n\
             token_env = \"eyJabc.def\"\npassword_env = \"PW\"\nADMIN_TOKEN=adm1n\nseed = 'sXd'\n",
        );
        let variable = |name: &str| Reference::Variable(name.into());
        let file = Reference::File("/run/token".into());
        assert_eq!(references, [file, variable("eyJabc.def"), variable("PW")]);
        let text = "s3cr/t s3cr%2Ft AbCdEfGh zyxw old-one /run/token eyJabc.def adm1n sXd me";
        let shown = removal.apply(text);
        for secret in ["s3cr", "AbCdEfGh", "zyxw", "old-one", "eyJabc", "adm1n", "sXd"] {
            assert!(!shown.contains(secret), "{secret} in {shown}");
        }
        assert!(shown.contains("/run/token") && shown.ends_with(" me"), "{shown}");
    }

    #[test]
    fn a_secret_of_an_address_goes_as_it_is_written_and_as_it_is_read() {
        let mut removal = Removal::default();
        // `%2D` need not be written so: it is known only from the address itself.
        removal.learn_address("mqtt://me:one%2Dtwo@host/three%2Dfour");
        removal.learn_assignments("proxy = http://me:five-six@host\n");
        let shown = removal.apply("one%2Dtwo one-two three%2Dfour three-four five-six");
        assert_eq!(shown, "[removed 1] [removed 2] [removed 3] [removed 4] [removed 5]");
    }

    #[test]
    fn a_url_is_written_and_read() {
        assert_eq!(
            (percent("a-b c/ü"), unpercent("a-b%20c%2fd")),
            ("a-b%20c%2F%C3%BC".into(), "a-b c/d".into())
        );
        for other in ["100%", "%zz", "%FF"] {
            assert_eq!(unpercent(other), other);
        }
    }

    #[test]
    fn how_short_a_secret_and_how_little_of_one_may_be() {
        let long = "a-long-secret-that-is-cut";
        for (secret, text, shown) in [
            ("abcd", "xabcdx", "x[removed 1]x"),
            ("abc", "xabcx abc", "xabcx [removed 1]"),
            (long, "a-long-secre…", "[removed 1]…"),
            (long, "a-long-secr…", "a-long-secr…"),
        ] {
            assert_eq!(of(&[secret]).apply(text), shown);
        }
        // A part of a path may be an ordinary word.
        let mut removal = Removal::default();
        removal.learn_address("https://host/webhook/secretly");
        assert_eq!(removal.apply("webhook secretly"), "webhook [removed 1]");
        let mail = "see https://host and write to me@host";
        assert_eq!(Removal::default().apply(mail), mail);
    }

    proptest! {
        #[test]
        fn no_secret_survives(
            secrets in prop::collection::vec("[ -~üß]{4,40}", 1..6), text in "[ -~\n]{0,80}",
            places in prop::collection::vec(any::<prop::sample::Index>(), 1..6),
        ) {
            let secrets: Vec<&str> = secrets.iter().map(|secret| secret.trim()).collect();
            prop_assume!(secrets.iter().all(|secret| secret.len() >= SHORTEST));
            // The marks are ours, whatever is in them.
            prop_assume!(secrets.iter().all(|secret| !"[removed 0123456789]".contains(secret)));
            let mut planted = text;
            for (secret, place) in secrets.iter().zip(&places) {
                let at = (0..=place.index(planted.len() + 1)).rev();
                let at = at.into_iter().find(|&at| planted.is_char_boundary(at)).unwrap();
                planted.insert_str(at, secret);
            }
            let shown = of(&secrets).apply(&planted);
            for secret in &secrets {
                // What stands there may have grown together from the rest of two others and a mark.
                let pieces = shown.split("[removed ");
                prop_assert!(pieces.into_iter().all(|piece| !piece.contains(secret)), "{shown}");
            }
        }
    }
}
