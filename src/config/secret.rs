//! Secrets: where they are kept, and a type that cannot be printed.
//!
//! The configuration names a secret in one of four ways, best first: `…_file`, `…_credential`
//! (systemd's `LoadCredential=`), `…_env`, or in the clear. A secret is read again whenever it is
//! used to connect, so that a changed file takes effect without a restart.
//!
//! People put the secret itself where the name of its file, its variable or its credential belongs. So a
//! name under which nothing was found is not repeated, unless it can hardly be a secret.

use std::{
    borrow::Cow,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::pasted;
use crate::base::files::{self, FileError, PATIENCE, SHORT_PATIENCE};

/// A secret's value, once in memory for all who hold it. Neither `Debug` nor `Display` shows it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(Arc<str>);

impl Secret {
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into().into())
    }

    /// The value itself: for the wire, never for a log.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// A server's words without this secret: some repeat what they were sent.
    pub fn hidden_in(&self, words: &str) -> String {
        if self.0.is_empty() { words.to_owned() } else { words.replace(&*self.0, "…") }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// The `format` by which the JSON Schema marks a secret.
pub(crate) const FORMAT: &str = "secret";

/// The forms of a secret's key, as suffixes, with the name of the [`SecretRef`] that each becomes.
pub(crate) const FORMS: [(&str, &str); 4] =
    [("", "value"), ("_file", "file"), ("_env", "env"), ("_credential", "credential")];

/// Where a secret is kept.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SecretRef {
    /// In the configuration itself.
    Value(String),
    /// In a file, with line ends behind it or without.
    File(PathBuf),
    /// In an environment variable.
    Env(String),
    /// In a credential of systemd (a file in `$CREDENTIALS_DIRECTORY`).
    Credential(String),
}

/// A secret could not be read. Says where it should have been, never what it is.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read.
    #[error("cannot read the secret {place}: {why}{}", remedy(why))]
    File {
        /// The file, as far as it may be named.
        place: String,
        why: FileError,
    },
    /// It is not text.
    #[error("the secret in {0} is not text in UTF-8")]
    NotText(String),
    /// The variable is not set, or not text.
    #[error("the environment variable {0} is not set")]
    Env(String),
    /// The service has no credentials.
    #[error(
        "a credential needs systemd's LoadCredential=, but $CREDENTIALS_DIRECTORY is not set; at a \
         shell: CREDENTIALS_DIRECTORY=/etc/astro-relay"
    )]
    NoCredentials,
    /// Nothing is in it.
    #[error("the secret from {0} is empty")]
    Empty(String),
}

/// What to do about it. An administrator's `check` reads the file, and the service then does not.
fn remedy(why: &FileError) -> &'static str {
    match why {
        FileError::Io(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            "; a service that is not root's gets it from systemd: LoadCredential= in its unit, and the \
             key's _credential form"
        }
        _ => "",
    }
}

/// Stands for a name that could be the secret itself.
const UNNAMED: &str = "(its name is not shown here, for it could be the secret itself)";

impl SecretError {
    /// Whether nothing is known of the secret, for its file did not answer.
    pub fn is_silent(&self) -> bool {
        matches!(self, Self::File { why: FileError::Silent | FileError::Crowded, .. })
    }
}

impl SecretRef {
    /// Reads the secret as it is now: a password, or whatever else may begin or end with a blank. A
    /// byte order mark and line ends at the end are none of it.
    pub async fn read(&self) -> Result<Secret, SecretError> {
        Ok(self.text(env, PATIENCE).await?.secret)
    }

    /// Reads a token, a key or a seed as it is now: without what came along when it was pasted.
    pub async fn read_token(&self) -> Result<Secret, SecretError> {
        self.token(PATIENCE).await
    }

    /// The same, for a caller who has something else to do meanwhile: fails soon.
    pub async fn read_token_soon(&self) -> Result<Secret, SecretError> {
        self.token(SHORT_PATIENCE).await
    }

    /// Reads a token where there is no runtime.
    pub fn read_token_blocking(&self) -> Result<Secret, SecretError> {
        files::blocking(self.read_token()).unwrap_or_else(|error| {
            Err(SecretError::File { place: self.place(), why: error.into() })
        })
    }

    async fn token(&self, patience: Duration) -> Result<Secret, SecretError> {
        let text = self.text(env, patience).await?;
        let token = pasted::token(text.secret.expose());
        if token.is_empty() {
            return Err(SecretError::Empty(self.place()));
        }
        Ok(Secret::new(token))
    }

    /// Reads the secret as it is now, with the environment that `env` looks into.
    pub(crate) async fn text(
        &self,
        env: impl Fn(&str) -> Option<String>,
        patience: Duration,
    ) -> Result<Text, SecretError> {
        let (text, open_to_others) = match self {
            Self::Value(value) => (value.clone(), false),
            Self::File(path) => read_file(path, patience, |why| named_file(path, why)).await?,
            Self::Env(name) => {
                let value = env(name).ok_or_else(|| SecretError::Env(named_variable(name)))?;
                (value, false)
            }
            Self::Credential(name) => {
                let dir = env("CREDENTIALS_DIRECTORY").ok_or(SecretError::NoCredentials)?;
                let named = |why: &FileError| match why {
                    FileError::Io(_) => format!("credential {UNNAMED}"),
                    _ => format!("credential {name}"),
                };
                read_file(&PathBuf::from(dir).join(name), patience, named).await?
            }
        };
        let secret = text.strip_prefix('\u{feff}').unwrap_or(&text).trim_end_matches(['\r', '\n']);
        if secret.is_empty() {
            return Err(SecretError::Empty(self.place()));
        }
        Ok(Text { secret: Secret::new(secret), open_to_others })
    }

    /// Where it is kept, for messages about a secret that was found there.
    pub fn place(&self) -> String {
        match self {
            Self::Value(_) => "the configuration".into(),
            Self::File(path) => path.display().to_string(),
            Self::Env(name) => format!("${name}"),
            Self::Credential(name) => format!("credential {name}"),
        }
    }
}

/// A secret, and what is known of it.
#[derive(Debug)]
pub(crate) struct Text {
    pub(crate) secret: Secret,
    /// Every user of this machine can read its file.
    pub(crate) open_to_others: bool,
}

async fn read_file(
    path: &Path,
    patience: Duration,
    named: impl Fn(&FileError) -> String,
) -> Result<(String, bool), SecretError> {
    let read = files::read_within(path, patience).await;
    let content = read.map_err(|why| SecretError::File { place: named(&why), why })?;
    let text = str::from_utf8(&content.bytes)
        .map_err(|_| SecretError::NotText(format!("file {}", path.display())))?;
    Ok((text.to_owned(), content.open_to_others))
}

/// A file, by its name where that is the name of a file: something is there, or it looks like a path.
fn named_file(path: &Path, why: &FileError) -> String {
    let is_there = match why {
        FileError::Io(error) => error.kind() == std::io::ErrorKind::PermissionDenied,
        FileError::Silent | FileError::Directory | FileError::TooLarge => true,
        FileError::Crowded => false,
    };
    let text = path.to_string_lossy();
    let rooted = text.starts_with('/') && text.trim_start_matches('/').contains('/');
    if is_there || rooted && !pasted::looks_secret(&text) {
        format!("file {text}")
    } else {
        format!("file {UNNAMED}")
    }
}

/// A variable that is not set, by its name where that is written as such names are.
fn named_variable(name: &str) -> String {
    /// Longer names without an underscore are keys as often as not.
    const LONGEST_WORD: usize = 16;
    let usual = name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
    let is_name = usual && (name.len() <= LONGEST_WORD || name.contains('_'));
    if is_name && !pasted::looks_secret(name) { name.to_owned() } else { UNNAMED.to_owned() }
}

#[expect(
    clippy::disallowed_methods,
    reason = "this module is where secrets are read from the environment"
)]
fn env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Says in which way it is kept, and no more: the name may be the secret itself.
impl fmt::Debug for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Value(_) => "SecretRef(value)",
            Self::File(_) => "SecretRef(file)",
            Self::Env(_) => "SecretRef(env)",
            Self::Credential(_) => "SecretRef(credential)",
        })
    }
}

impl JsonSchema for SecretRef {
    fn schema_name() -> Cow<'static, str> {
        "SecretRef".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": FORMAT,
            "writeOnly": true,
            "description": "a secret; better kept elsewhere, with the key's _file, _credential or _env form"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_shown() {
        let secret = Secret::new("hunter2");
        let places = [
            SecretRef::Value("hunter2".into()),
            SecretRef::File("hunter2".into()),
            SecretRef::Env("hunter2".into()),
            SecretRef::Credential("hunter2".into()),
        ];
        assert!(!format!("{secret:?} {places:?}").contains("hunter2"));
    }

    #[tokio::test]
    async fn line_ends_and_a_byte_order_mark_are_no_part_of_a_secret() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        for (content, expected) in [
            ("abc", "abc"),
            ("abc\n", "abc"),
            ("abc\r\n", "abc"),
            (" a b \n", " a b "),
            ("a\n\n", "a"),
            ("a\r\n\r\n", "a"),
            ("\u{feff}a\n", "a"),
            ("a\nb\n", "a\nb"),
            ("\"a\"", "\"a\""),
        ] {
            std::fs::write(&path, content).unwrap();
            let read = SecretRef::File(path.clone()).read().await.unwrap();
            assert_eq!(read.expose(), expected);
        }
        for content in ["", "\n", "\u{feff}\r\n"] {
            std::fs::write(&path, content).unwrap();
            let read = SecretRef::File(path.clone()).read().await;
            assert!(matches!(read, Err(SecretError::Empty(_))), "{content:?}");
        }
        for content in [" \n", "\"\"", "Bearer \n"] {
            std::fs::write(&path, content).unwrap();
            let read = SecretRef::File(path.clone()).read_token().await;
            assert!(matches!(read, Err(SecretError::Empty(_))), "{content:?}");
        }
        std::fs::write(&path, b"a\xffb").unwrap();
        let read = SecretRef::File(path).read().await;
        assert!(matches!(read, Err(SecretError::NotText(_))));
    }

    #[tokio::test]
    async fn a_secret_in_the_place_of_a_name_is_not_repeated() {
        let jwt = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl";
        let long = "x".repeat(5000);
        for secret in [jwt, "hunter2", "k3y-of-the-api", "/hunter2", "a/hunter2", &long] {
            let places = [
                SecretRef::File(secret.into()),
                SecretRef::File(format!("/run/{secret}").into()),
                SecretRef::Env(secret.into()),
                SecretRef::Credential(secret.into()),
            ];
            // A path that looks like one is named.
            let hidden = places.iter().enumerate().filter(|(n, _)| *n != 1 || secret == jwt);
            for (_, place) in hidden {
                let error = place.read().await.unwrap_err();
                assert!(!format!("{error} {error:?}").contains(secret), "{error}");
            }
        }
        let seed = "SUAIBDPBAUTWCWBKIO6XHQNINK5FWJW4OHLXC3HQ2KFE4PEJUA44CNHTC4";
        let error = SecretRef::Env(seed.into()).read().await.unwrap_err();
        assert!(!error.to_string().contains(seed), "{error}");
    }

    #[tokio::test]
    async fn what_is_missing_is_named_where_it_has_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("token");
        for (place, named) in [
            (SecretRef::File(missing.clone()), missing.to_str().unwrap()),
            (SecretRef::File(dir.path().into()), dir.path().to_str().unwrap()),
            (SecretRef::Env("SE_TOKEN_OF_NOBODY".into()), "SE_TOKEN_OF_NOBODY"),
        ] {
            let error = place.read().await.unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
