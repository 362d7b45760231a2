//! Takes secrets out of text that somebody is about to publish.
//!
//! Two ways at once, for each misses what the other finds. *What is known*: the configured secrets as they are
//! read now, in the forms in which they travel (a URL, JSON, a header, cut off by a limit). *What looks like
//! one*: tokens by their shape, logins in addresses, values behind names such as `password=`. The second takes
//! out too much rather than too little: an id of 24 digits goes, too.
//!
//! Each of them looks at the text as it was written, and what any of them finds goes: a password may be the word
//! "password", by which another secret is found. Where two overlap, they are removed as one range.
//!
//! Equal text gets the same number, so that a reader still sees what belongs together. Nothing is read here.

use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap},
    fmt,
    iter::successors,
    ops::Range,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::{base::text::looks_secret, config::SecretRef};

/// A shorter secret is only taken out where it stands as a word of its own: the letter `a` is everywhere.
const SHORTEST: usize = 4;

/// From so many bytes on a text counts as the beginning of a longer secret, which a limit has cut off.
const BEGINNING: usize = 12;

/// How often a known secret may be escaped: JSON stands in JSON, and that in a log of JSON.
const NESTED: usize = 3;

/// Names behind which a secret stands, as the ends of words in small letters.
const NAMES: [&str; 14] = [
    "token", "password", "passwd", "pass", "_pwd", "secret", "apikey", "api_key", "api-key",
    "access_key", "seed", "signature", "credential", "jwt",
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

/// A secret in one of its forms.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Known(String);

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
            let nested = successors(Some(text.to_owned()), |text| Some(escaped(text)));
            let others = [percent(text), BASE64_STANDARD.encode(text)];
            self.known.extend(nested.take(1 + NESTED).chain(others).map(Known));
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
    pub(super) fn learn_assignments(&mut self, text: &str) -> Vec<SecretRef> {
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
            let refers = |form: &str| name.strip_suffix(form).is_some_and(is_telling);
            let reference = if refers("_file") {
                Some(SecretRef::File(value.into()))
            } else if refers("_env") {
                Some(SecretRef::Env(value.to_owned()))
            } else if refers("_credential") {
                Some(SecretRef::Credential(value.to_owned()))
            } else {
                None
            };
            // The name of a credential is no secret: often it is a word such as "token".
            let holds = is_telling(&name) && !name.ends_with("_credential");
            // People put the secret itself where its name belongs.
            if holds || reference.is_some() && looks_secret(value) {
                self.learn(value);
            }
            references.extend(reference);
        }
        references
    }

    /// The text without secrets.
    pub(super) fn apply(&mut self, text: &str) -> String {
        let found = [known(text, &self.known), logins(text), values(text), shapes(text)].concat();
        let part = |range: Range<usize>| text.get(range).unwrap_or_default();
        let mut out = String::with_capacity(text.len());
        let mut end = 0;
        for range in merged(found) {
            out.push_str(part(end..range.start));
            end = range.end;
            out.push_str(&self.numbers.mark(part(range)));
        }
        out.push_str(part(end..text.len()));
        out
    }
}

/// In order, those that overlap as one.
fn merged(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<usize>> = Vec::new();
    for range in ranges.into_iter().filter(|range| !range.is_empty()) {
        match merged.last_mut() {
            Some(last) if range.start < last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

/// Every place of every secret: one may begin within another.
fn known(text: &str, known: &BTreeSet<Known>) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut before = None;
    for (at, c) in text.char_indices() {
        let rest = text.get(at..).unwrap_or_default();
        found.extend(known_at(rest, before, known).map(|length| at..at + length));
        before = Some(c);
    }
    found
}

/// How much of the beginning of this text is a secret, or the beginning of a long one.
fn known_at(text: &str, before: Option<char>, known: &BTreeSet<Known>) -> Option<usize> {
    let in_word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    let length = |Known(secret): &Known| {
        let same = secret.bytes().zip(text.bytes()).take_while(|(a, b)| a == b).count();
        if same < secret.len() {
            // Cut off by a limit.
            let length = text.floor_char_boundary(same);
            return (length >= BEGINNING).then_some(length);
        }
        let behind = || text.get(same..).and_then(|rest| rest.chars().next());
        let counts = same >= SHORTEST || !in_word(before) && !in_word(behind());
        counts.then_some(same)
    };
    known.iter().filter_map(length).max()
}

/// The login in `scheme://login@host`.
fn logins(text: &str) -> Vec<Range<usize>> {
    let ends = |c: char| c.is_whitespace() || matches!(c, '/' | '"' | '\'' | '<' | '>' | '`');
    let login = |(at, sign): (usize, &str)| {
        let start = at + sign.len();
        let authority = text.get(start..)?.split(ends).next()?;
        let (login, _) = authority.rsplit_once('@')?;
        Some(start..start + login.len())
    };
    text.match_indices("://").filter_map(login).collect()
}

/// What stands behind `password=`, `"token": "`, `Bearer ` and `Authorization:`.
fn values(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut end = 0;
    for (at, word) in words(text, |c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-')) {
        let behind = at + word.len();
        let name = word.trim_start_matches(|c: char| !c.is_ascii_alphabetic());
        // Inside of a value. Its last word may be a name itself: `token=Bearer …`.
        if name.is_empty() || behind < end {
            continue;
        }
        let rest = text.get(behind..).unwrap_or_default();
        if let Some(value) = value_of(name, rest) {
            end = behind + value.end;
            found.push(behind + value.start..end);
        }
    }
    found
}

/// Where in the text behind a name its secret stands, if one does.
fn value_of(name: &str, behind: &str) -> Option<Range<usize>> {
    let name = name.to_ascii_lowercase();
    let until = |from: usize, ends: &dyn Fn(char) -> bool| {
        let value = behind.get(from..).and_then(|rest| rest.split(ends).next()).unwrap_or_default();
        // They belong to the quote that ends it.
        from..from + value.trim_end_matches('\\').len()
    };
    let blank =
        |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | ',' | ';' | '&' | '<');
    let blanks = behind.len() - behind.trim_start_matches(' ').len();
    if SCHEMES.contains(&name.as_str()) && blanks > 0 {
        let range = until(blanks, &blank);
        let value = behind.get(range.clone())?;
        // "bearer token" is a phrase.
        let plain = value.chars().all(char::is_alphabetic);
        let plausible = value.len() >= if plain { BEGINNING } else { SHORTEST };
        if plausible {
            return Some(range);
        }
    }
    if matches!(name.as_str(), "authorization" | "cookie") && behind.starts_with(':') {
        return Some(until(1, &|c| matches!(c, '\n' | '\r' | '"' | '\'')));
    }
    if !is_telling(&name) {
        return None;
    }
    // `name=value`, `name = "value"`, `"name": "value"`; a name with a colon begins a sentence of ours.
    let quoted = behind.trim_start_matches(['"', '\\']);
    let sign = quoted.trim_start_matches(' ');
    let json = sign.starts_with(':') && quoted.len() < behind.len();
    if !json && !sign.starts_with('=') {
        return None;
    }
    let value = sign.get(1..)?.trim_start_matches(' ');
    let at = behind.len() - value.len();
    let range = match in_quotes(value) {
        Some(inside) => at + inside.start..at + inside.end,
        None => until(at, &|c| blank(c) || json && matches!(c, '}' | ']')),
    };
    // Yes, no, nothing, and what is left out already are no secrets.
    let none = matches!(behind.get(range.clone())?, "" | "true" | "false" | "null" | "…");
    (!none).then_some(range)
}

/// Where the text in quotes stands, if this begins with a quote: on this line, up to the next quote with as
/// many backslashes. JSON within JSON has one before each of its quotes, and three before a quote in a string.
fn in_quotes(value: &str) -> Option<Range<usize>> {
    let slashes = value.len() - value.trim_start_matches('\\').len();
    let quote = value.get(slashes..)?.chars().next()?;
    if !matches!(quote, '"' | '\'' | '`') {
        return None;
    }
    let opening = value.get(..=slashes)?;
    let one = value.strip_prefix(opening)?;
    // TOML has quotes of three.
    let three = one.strip_prefix(opening).and_then(|two| two.strip_prefix(opening));
    let inside = three.unwrap_or(one);
    let start = value.len() - inside.len();
    let mut before = 0;
    for (at, c) in inside.char_indices() {
        // Each backslash of the text itself is written as twice as many as the quotes have, and two more.
        let closes = before <= slashes || before % (2 * (slashes + 1)) == slashes;
        if c == quote && closes {
            return Some(start..start + at - before.min(slashes));
        }
        if matches!(c, '\n' | '\r') {
            return Some(start..start + at);
        }
        before = if c == '\\' { before + 1 } else { 0 };
    }
    Some(start..value.len())
}

/// Words that look like secrets.
fn shapes(text: &str) -> Vec<Range<usize>> {
    let inside = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '+' | '~' | '%');
    words(text, inside)
        .filter(|(_, word)| looks_secret(word))
        .filter(|(_, word)| !word.bytes().all(|b| matches!(b, b'-' | b'.' | b'_')))
        .map(|(at, word)| at..at + word.len())
        .collect()
}

/// The longest runs of such characters, and where each begins.
fn words(text: &str, inside: impl Fn(char) -> bool + Copy) -> impl Iterator<Item = (usize, &str)> {
    let mut end = 0;
    text.split_inclusive(move |c: char| !inside(c)).map(move |piece| {
        let at = end;
        end += piece.len();
        (at, piece.trim_end_matches(|c: char| !inside(c)))
    })
}

/// Whether a secret stands behind that name.
fn is_telling(name: &str) -> bool {
    NAMES.iter().any(|end| name.ends_with(end))
}

/// As in a JSON string.
fn escaped(text: &str) -> String {
    let json = serde_json::Value::from(text).to_string();
    let inside = json.strip_prefix('"').and_then(|json| json.strip_suffix('"'));
    inside.unwrap_or(&json).to_owned()
}

/// As in a URL, every byte but letters and digits.
fn percent(text: &str) -> String {
    const OTHERS: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
    utf8_percent_encode(text, OTHERS).to_string()
}

/// The text that was written so; itself where it was not.
fn unpercent(text: &str) -> String {
    percent_decode_str(text).decode_utf8().map_or_else(|_| text.to_owned(), Cow::into_owned)
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
        let variable = |name: &str| SecretRef::Env(name.into());
        let file = SecretRef::File("/run/token".into());
        assert!(references == [file, variable("eyJabc.def"), variable("PW")]);
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

    #[test]
    fn the_name_of_a_credential_is_not_taken_for_a_secret() {
        for (key, name, text, shown) in [
            ("token_credential", "token", "?access_token=abcdefg123", "?access_token=[removed 1]"),
            ("password_credential", "password", "password=hunter2", "password=[removed 1]"),
            ("token_credential", "token", r#"{"token":"s3cret-9"}"#, r#"{"token":"[removed 1]"}"#),
            ("token_credential", "main", "channels.main.token", "channels.main.token"),
            ("password_credential", "mqtt", "home (mqtt)", "home (mqtt)"),
            ("#   token_credential", "main", "domain", "domain"),
            // The secret itself, where its name belongs.
            ("token_credential", "eyJabc", "xeyJabcx", "x[removed 1]x"),
        ] {
            let mut removal = Removal::default();
            let references = removal.learn_assignments(&format!("{key} = \"{name}\"\n"));
            assert!(references == [SecretRef::Credential(name.into())], "{key} {name}");
            assert_eq!(removal.apply(text), shown);
        }
    }

    #[test]
    fn a_known_secret_hides_no_other() {
        for (secrets, text, shown) in [
            ("token", "?access_token=abcdefg123", "?access_[removed 1]=[removed 2]"),
            ("password", "password=hunter2", "[removed 1]=[removed 2]"),
            ("password", "password=password", "[removed 1]=[removed 1]"),
            ("token", r#"{"token":"s3cret-9"}"#, r#"{"[removed 1]":"[removed 2]"}"#),
            ("relay", "password=relay.hunter2", "password=[removed 1]"),
            ("relay", "Bearer relay-9f8e7d", "Bearer [removed 1]"),
            ("relay", "http://relay:zz@h/", "http://[removed 1]@h/"),
            ("hunter2 2fast", "hunter2fast", "[removed 1]"),
            ("abcdefghijkl abcdefghijklmnopq", "abcdefghijklmn…", "[removed 1]…"),
        ] {
            let secrets: Vec<&str> = secrets.split(' ').collect();
            assert_eq!(of(&secrets).apply(text), shown);
        }
    }

    #[test]
    fn a_value_goes_up_to_its_end() {
        for (text, shown) in [
            (r#"{"password":"ab\"cd"}"#, r#"{"password":"[removed 1]"}"#),
            (r#"{"password":"ab\\"}, cd"#, r#"{"password":"[removed 1]"}, cd"#),
            (r#"{"password":"a\nb"}"#, r#"{"password":"[removed 1]"}"#),
            (r#"{"password":"\"a\"b"}"#, r#"{"password":"[removed 1]"}"#),
            (r#"{\"token\":\"a\\\"b\",\"n\":1}"#, r#"{\"token\":\"[removed 1]\",\"n\":1}"#),
            // Cut off by a limit.
            (r#"{"message":"\"token\":\"a"} b"#, r#"{"message":"\"token\":\"[removed 1]"} b"#),
            ("password = \"a b\nc d", "password = \"[removed 1]\nc d"),
            (r#"{"token":"","n":"x"}"#, r#"{"token":"","n":"x"}"#),
            ("seed = '''a b''' c", "seed = '''[removed 1]''' c"),
            (r#"{"message":"password=a1"}"#, r#"{"message":"password=[removed 1]"}"#),
            (r"\n password=a\b c", r"\n password=[removed 1] c"),
            (r#"\"password=ab\" c"#, r#"\"password=[removed 1]\" c"#),
            ("apikey = hunter2", "apikey = [removed 1]"),
            ("token=Bearer x1y2", "token=[removed 1] [removed 2]"),
        ] {
            assert_eq!(Removal::default().apply(text), shown);
        }
    }

    /// JSON with this text as a string, within so much other JSON.
    fn nested(key: &str, text: &str, depth: usize) -> String {
        let inner = format!("{{\"{key}\":{},\"n\":1}}", serde_json::Value::from(text));
        if depth == 0 { inner } else { nested("message", &inner, depth - 1) }
    }

    #[test]
    fn json_within_json_is_read() {
        for secret in [r#"a"b\c d"#, r"\", r#"""#, r"ends\", r#"ends\""#, "line\nline"] {
            for depth in 0..NESTED {
                let shown = nested("password", "[removed 1]", depth);
                let text = nested("password", secret, depth);
                assert_eq!(Removal::default().apply(&text), shown);
            }
        }
        let secret = r#""a"b\c d""#;
        for depth in 0..NESTED {
            let text = nested("x", &format!("a {secret} b"), depth);
            let shown = nested("x", "a [removed 1] b", depth);
            assert_eq!(of(&[secret]).apply(&text), shown);
        }
    }

    fn between_marks(shown: &str) -> Vec<&str> {
        let mut pieces = shown.split("[removed ");
        let first = pieces.next();
        let behind = |piece: &str| piece.find(']').map_or(0, |end| end + 1);
        first.into_iter().chain(pieces.map(|piece| &piece[behind(piece)..])).collect()
    }

    const WORDS: [&str; 3] = ["token", "password", "relay"];

    fn secret() -> impl Strategy<Value = String> {
        prop_oneof![prop::sample::select(WORDS.to_vec()).prop_map(str::to_owned), "[ -~üß]{4,40}"]
    }

    /// What the passes look for, in any order.
    fn surroundings() -> impl Strategy<Value = String> {
        let signs = ["password=", "\"token\":\"", "Bearer ", "http://", "@", "\\\"", "Cookie:"];
        let sign = prop::sample::select(signs.to_vec()).prop_map(str::to_owned);
        prop::collection::vec(prop_oneof![sign, "[ -~\n]{0,20}"], 0..8)
            .prop_map(|parts| parts.concat())
    }

    /// Long enough to stand nowhere else by chance.
    fn value() -> impl Strategy<Value = String> {
        prop_oneof![
            "[ -~üß\n]{8,24}",
            r#"["\\a]{8,24}"#,
            (prop::sample::select(WORDS.to_vec()), "[!-~]{1,12}")
                .prop_map(|(word, tail)| word.to_owned() + &tail),
        ]
    }

    proptest! {
        #[test]
        fn no_secret_survives(
            secrets in prop::collection::vec(secret(), 1..6), text in surroundings(),
            places in prop::collection::vec((any::<prop::sample::Index>(), 0..=NESTED), 1..6),
        ) {
            let secrets: Vec<&str> = secrets.iter().map(|secret| secret.trim()).collect();
            prop_assume!(secrets.iter().all(|secret| secret.len() >= SHORTEST));
            // The marks are ours, whatever is in them.
            prop_assume!(secrets.iter().all(|secret| !"[removed 0123456789]".contains(secret)));
            let mut planted = text;
            let mut forms: Vec<String> = secrets.iter().map(|&secret| secret.to_owned()).collect();
            for (secret, (place, depth)) in secrets.iter().zip(&places) {
                let form = (0..*depth).fold((*secret).to_owned(), |form, _| escaped(&form));
                let at = (0..=place.index(planted.len() + 1)).rev();
                let at = at.into_iter().find(|&at| planted.is_char_boundary(at)).unwrap();
                planted.insert_str(at, &form);
                forms.push(form);
            }
            let shown = of(&secrets).apply(&planted);
            // With a mark, the rests of two others may form what stands there.
            for piece in between_marks(&shown) {
                prop_assert!(forms.iter().all(|form| !piece.contains(form)), "{shown}");
            }
        }

        #[test]
        fn what_stands_behind_a_telling_name_makes_no_difference(
            name in prop::sample::select(NAMES.to_vec()).prop_map(|name| format!("my{name}")),
            known in prop::sample::subsequence(WORDS.to_vec(), 0..=WORDS.len()),
            value in value(), word in "[a-zA-Z0-9.:/@!~-]{8,20}", depth in 0..NESTED,
        ) {
            let shown = |text: String| of(&known).apply(&text);
            let json = |value: &str| shown(nested(&name, value, depth));
            prop_assert_eq!(json(&value), json("something-else"));
            let query = |value: &str| shown(format!("GET /?a=1&{name}={value} done"));
            prop_assert_eq!(query(&word), query("something-else"));
        }
    }
}
