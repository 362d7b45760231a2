//! Secrets: where they are kept, and a type that cannot be printed.
//!
//! The configuration names a secret in one of four ways, best first: `…_file`, `…_credential`
//! (systemd's `LoadCredential=`), `…_env`, or in the clear. A secret is read again whenever it is
//! used to connect, so that a changed file takes effect without a restart.

use std::{borrow::Cow, fmt, path::PathBuf, sync::Arc};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A secret's value, once in memory for all who hold it. Neither `Debug` nor `Display` shows it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(Arc<str>);

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into().into())
    }

    /// The value itself: for the wire, never for a log.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// The `format` by which the JSON Schema marks a secret.
pub(super) const FORMAT: &str = "secret";

/// The forms of a secret's key, as suffixes, with the name of the [`SecretRef`] that each becomes.
pub(super) const FORMS: [(&str, &str); 4] =
    [("", "value"), ("_file", "file"), ("_env", "env"), ("_credential", "credential")];

/// Where a secret is kept.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SecretRef {
    /// In the configuration itself.
    Value(String),
    /// In a file, with one line end behind it or without.
    File(PathBuf),
    /// In an environment variable.
    Env(String),
    /// In a credential of systemd (a file in `$CREDENTIALS_DIRECTORY`).
    Credential(String),
}

/// A secret could not be read. Says where it should have been, never what it is.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read.
    #[error("cannot read the secret file {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The variable is not set, or not text.
    #[error("the environment variable {name} is not set")]
    Env {
        /// Its name.
        name: String,
    },
    /// The service has no credentials.
    #[error(
        "the credential {name} needs systemd's LoadCredential=, but $CREDENTIALS_DIRECTORY is not set"
    )]
    NoCredentials {
        /// Its name.
        name: String,
    },
    /// Nothing is in it.
    #[error("the secret from {0} is empty")]
    Empty(String),
}

impl SecretRef {
    /// Reads the secret as it is now.
    pub fn read(&self) -> Result<Secret, SecretError> {
        self.read_with(env)
    }

    /// Reads the secret as it is now, with the environment that `env` looks into.
    pub(super) fn read_with(
        &self,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Secret, SecretError> {
        let text = match self {
            Self::Value(value) => value.clone(),
            Self::File(path) => read_file(path.clone())?,
            Self::Env(name) => env(name).ok_or_else(|| SecretError::Env { name: name.clone() })?,
            Self::Credential(name) => {
                let dir = env("CREDENTIALS_DIRECTORY")
                    .ok_or_else(|| SecretError::NoCredentials { name: name.clone() })?;
                read_file(PathBuf::from(dir).join(name))?
            }
        };
        let secret = text.strip_suffix('\n').unwrap_or(&text);
        let secret = secret.strip_suffix('\r').unwrap_or(secret);
        if secret.is_empty() {
            return Err(SecretError::Empty(self.place()));
        }
        Ok(Secret::new(secret))
    }

    /// Where it is kept, for messages.
    pub fn place(&self) -> String {
        match self {
            Self::Value(_) => "the configuration".into(),
            Self::File(path) => path.display().to_string(),
            Self::Env(name) => format!("${name}"),
            Self::Credential(name) => format!("credential {name}"),
        }
    }
}

fn read_file(path: PathBuf) -> Result<String, SecretError> {
    std::fs::read_to_string(&path).map_err(|source| SecretError::File { path, source })
}

#[expect(
    clippy::disallowed_methods,
    reason = "this module is where secrets are read from the environment"
)]
fn env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

impl fmt::Debug for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretRef({})", self.place())
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
        let reference = SecretRef::Value("hunter2".into());
        assert!(!format!("{secret:?} {reference:?}").contains("hunter2"));
    }

    #[test]
    fn one_line_end_is_taken_off_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        for (content, expected) in [
            ("abc", "abc"),
            ("abc\n", "abc"),
            ("abc\r\n", "abc"),
            (" a b \n", " a b "),
            ("a\n\n", "a\n"),
        ] {
            std::fs::write(&path, content).unwrap();
            assert_eq!(SecretRef::File(path.clone()).read().unwrap().expose(), expected);
        }
        std::fs::write(&path, "\n").unwrap();
        assert!(matches!(SecretRef::File(path).read(), Err(SecretError::Empty(_))));
    }
}
