//! What comes along when a secret is pasted: blanks, quotes, `Bearer `, marks that nobody sees.
//!
//! What can be no part of a token is removed; what is probably wrong is named, before the server says only
//! that it does not know the token. No answer here repeats any of the text.

use url::Url;

pub use crate::base::text::looks_secret;
use crate::config::{TokenType, jwt};

/// Pairs that text is quoted with.
const QUOTES: [(char, char); 8] = [
    ('"', '"'),
    ('\'', '\''),
    ('`', '`'),
    ('<', '>'),
    ('\u{201c}', '\u{201d}'),
    ('\u{201e}', '\u{201c}'),
    ('\u{2018}', '\u{2019}'),
    ('\u{ab}', '\u{bb}'),
];

/// Words that stand before a token in a header.
const SCHEMES: [&str; 4] = ["authorization:", "bearer", "oauth", "apikey"];

/// The token in what was pasted: without blanks and quotes around it, without the words of a header
/// before it, and without characters that nobody sees.
pub(crate) fn token(text: &str) -> String {
    let visible: String = text.chars().filter(|c| !is_invisible(*c)).collect();
    let mut token = visible.as_str();
    loop {
        let before = token;
        token = token.trim_matches(|c: char| c.is_whitespace() || c.is_control());
        for (open, close) in QUOTES {
            let inside = token.strip_prefix(open).and_then(|rest| rest.strip_suffix(close));
            token = inside.unwrap_or(token);
        }
        for scheme in SCHEMES {
            token = without_scheme(token, scheme);
        }
        if token == before {
            return token.to_owned();
        }
    }
}

/// The text behind `Bearer ` and its kin; a token that only begins with these letters stays.
fn without_scheme<'t>(text: &'t str, scheme: &str) -> &'t str {
    let (Some(head), Some(rest)) = (text.get(..scheme.len()), text.get(scheme.len()..)) else {
        return text;
    };
    let parted = scheme.ends_with(':') || rest.is_empty() || rest.starts_with([' ', '\t', ':']);
    if !head.eq_ignore_ascii_case(scheme) || !parted {
        return text;
    }
    rest.strip_prefix(':').unwrap_or(rest)
}

/// Marks of zero width, and those that turn the direction of text.
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}')
}

/// What is hardly right about a token that was read, in words that follow "the token".
pub fn doubt(token: &str, kind: TokenType) -> Option<&'static str> {
    let parts = token.split('.').count();
    let named = token.split_once('=').is_some_and(|(name, value)| {
        !value.trim_matches('=').is_empty()
            && !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            && name.bytes().any(|b| b == b'_')
    });
    if named {
        return Some("looks like a line NAME=token: only the token belongs there");
    }
    if token.chars().any(char::is_whitespace) {
        return Some("has blanks or line ends inside: more than the token was pasted");
    }
    if !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Some("has characters that no token has");
    }
    match kind {
        TokenType::Jwt if !jwt::is_one(token) && parts == 3 => Some(
            "is no JWT: the part between its two dots is not readable, so it was cut or changed",
        ),
        TokenType::Jwt if !jwt::is_one(token) => Some(
            "is no JWT, which has three parts with dots between them: copy the whole of it, or set \
             token_type to what it is",
        ),
        TokenType::Apikey | TokenType::Oauth2 | TokenType::Oauth if jwt::is_one(token) => Some(
            "is a JWT, and token_type says that it is something else: set token_type = \"jwt\"",
        ),
        _ => None,
    }
}

/// Whether a password begins or ends with what its owner hardly meant.
pub(crate) fn has_blank_edge(text: &str) -> bool {
    let odd = |c: char| c.is_whitespace() || c.is_control() || is_invisible(c);
    text.starts_with(odd) || text.ends_with(odd)
}

/// An address without what may be secret in it: user, password, path and query.
pub fn shown_address(text: &str) -> String {
    match Url::parse(text) {
        Ok(url) if url.has_host() => {
            let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
            format!("{}://{}{port}", url.scheme(), url.host_str().unwrap_or_default())
        }
        _ => "…".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JWT: &str = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl";

    #[test]
    fn what_came_along_is_taken_off() {
        for around in [
            "{}", " {}", "{} ", "{}\n", "{}\n\n", "{}\r\n", "\u{feff}{}", "\u{a0}{}\u{a0}",
            "\u{200b}{}\u{200b}", "\"{}\"", "'{}'", "`{}`", "\u{201c}{}\u{201d}", "<{}>",
            "Bearer {}", "bearer  {}\n", "OAuth {}", "oauth:{}", "Authorization: Bearer {}",
            "\"Bearer {}\"\n", "Bearer \"{}\"", "\t{}\0", "\u{2066}{}\u{2069}",
            "\u{feff}\"{}\"\r\n", "apikey {}",
        ] {
            let text = around.replace("{}", JWT);
            assert_eq!(token(&text), JWT, "{around:?}");
        }
        let middle = JWT.replace('.', "\u{200b}.");
        assert_eq!(token(&middle), JWT);
        // These are tokens of their own.
        for text in ["bearertoken", "oauth2-abc", "a\"b", "a b"] {
            assert_eq!(token(text), text);
        }
    }

    #[test]
    fn what_is_hardly_right_is_named_and_not_repeated() {
        let cut = JWT.rsplit_once('.').unwrap().0;
        let table = [
            (JWT, TokenType::Jwt, None),
            (JWT, TokenType::Apikey, Some("is a JWT")),
            (JWT, TokenType::Oauth, Some("is a JWT")),
            ("k3y", TokenType::Apikey, None),
            ("k3y", TokenType::Jwt, Some("is no JWT")),
            (cut, TokenType::Jwt, Some("is no JWT")),
            ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ.c2ln", TokenType::Jwt, Some("cut")),
            ("eyJhbGciOiJIUzI1NiJ9.e yJzdWIi.c2ln", TokenType::Jwt, Some("blanks")),
            ("SE_TOKEN=k3y", TokenType::Apikey, Some("NAME=token")),
            ("k\u{f6}y", TokenType::Oauth2, Some("characters")),
            ("c2lnbmF0dXJlcw==", TokenType::Apikey, None),
        ];
        for (token, kind, expected) in table {
            let said = doubt(token, kind);
            let fits = match (said, expected) {
                (Some(said), Some(word)) => said.contains(word),
                (said, expected) => said.is_none() && expected.is_none(),
            };
            assert!(fits, "{token}: {said:?}");
        }
    }

    #[test]
    fn an_address_is_shown_without_what_may_be_secret() {
        for (text, shown) in [
            ("wss://astro.example.org", "wss://astro.example.org"),
            (
                "wss://me:hunter2@astro.example.org:444/hunter2?t=hunter2#x",
                "wss://astro.example.org:444",
            ),
            ("wss://[::1]:444/", "wss://[::1]:444"),
            ("hunter2", "…"),
            ("hunter2:hunter2", "…"),
        ] {
            assert_eq!(shown_address(text), shown);
        }
    }

    #[test]
    fn names_and_secrets_are_told_apart() {
        for secret in [JWT, "whsec_abc", "5b2e2007760aeb7729487dab1", &"x".repeat(60)] {
            assert!(looks_secret(secret), "{secret}");
        }
        for name in ["/etc/astro-relay/main.token", "token", "/run/credentials/x.service/token"] {
            assert!(!looks_secret(name), "{name}");
        }
    }
}
