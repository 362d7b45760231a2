//! The refresh of OAuth2 tokens: three keys that belong together, and two files that nobody else writes.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use rustix::fs::{Access, access};

use crate::{
    base::replace,
    config::{Channel, Config, SecretRef, problem::Findings},
};

/// The keys, as they are written.
const KEYS: [&str; 3] = ["client_id", "client_secret", "refresh_token"];

pub(super) fn check(config: &Config, found: &mut Findings) {
    // By file, the channel whose refresh writes it.
    let mut written: BTreeMap<&Path, &str> = BTreeMap::new();
    for (label, channel) in &config.channels {
        let given = given(channel);
        if given.iter().all(|given| !given) {
            continue;
        }
        for (key, _) in KEYS.iter().zip(given).filter(|(_, given)| !given) {
            let message = "is missing: client_id, client_secret and refresh_token belong together";
            found.error(&["channels", label, key], message);
        }
        if !channel.token_type.is_oauth() {
            let message =
                "only an access token of OAuth2 can be refreshed: set token_type = \"oauth2\"";
            found.error(&["channels", label, "refresh_token"], message);
        }
        if channel.client_id.as_deref().is_some_and(|id| id.trim().is_empty()) {
            found.error(&["channels", label, "client_id"], "is empty");
        }
        let secrets =
            [("token", Some(&channel.token)), ("refresh_token", channel.refresh_token.as_ref())];
        for (key, secret) in secrets.into_iter().filter_map(|(key, secret)| Some((key, secret?))) {
            let SecretRef::File(path) = secret else {
                let message = format!(
                    "each refresh replaces it, so it has to be in a file that the relay can write: \
                     {key}_file"
                );
                found.error(&["channels", label, key], message);
                continue;
            };
            match written.insert(path, label) {
                Some(first) if first == label => {
                    let message = "token_file and refresh_token_file must be two files";
                    found.error(&["channels", label, key], message);
                }
                Some(first) => {
                    let message = format!(
                        "channels.{first} refreshes the same file, and each refresh makes the other's \
                         useless: leave {} out here, the token is read from its file all the same",
                        KEYS.join(", ")
                    );
                    found.error(&["channels", label, key], message);
                }
                None => {}
            }
        }
    }
}

fn given(channel: &Channel) -> [bool; 3] {
    [channel.client_id.is_some(), channel.client_secret.is_some(), channel.refresh_token.is_some()]
}

/// Whether the refreshed tokens can be stored here and now. The relay may run elsewhere, or as another
/// user, so it is a warning.
pub(super) fn writable(config: &Config, found: &mut Findings) {
    for (label, channel) in config.channels.iter().filter(|(_, channel)| channel.is_refreshed()) {
        let secrets =
            [("token", Some(&channel.token)), ("refresh_token", channel.refresh_token.as_ref())];
        for (key, secret) in secrets {
            let Some(SecretRef::File(path)) = secret else { continue };
            let dir = directory(path);
            let unwritable = if let Err(error) = access(&dir, Access::WRITE_OK | Access::EXEC_OK) {
                Some(("the directory of its file", error))
            } else if replace::is_mounted(path) {
                let writable = access(path, Access::WRITE_OK);
                writable.err().map(|error| ("its file, which is mounted by itself,", error))
            } else {
                None
            };
            if let Some((what, error)) = unwritable {
                let message = format!(
                    "a refreshed token cannot be stored: {what} cannot be written ({})",
                    std::io::Error::from(error).kind()
                );
                found.warn(&["channels", label, key], message);
            }
        }
    }
}

/// Where the file itself lies: it is replaced there.
fn directory(path: &Path) -> PathBuf {
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new(".")).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TokenType;

    #[test]
    fn a_directory_that_cannot_be_written_is_warned_of() {
        let dir = tempfile::tempdir().unwrap();
        let of = |dir: &Path| {
            let file = |name: &str| SecretRef::File(dir.join(name));
            let channel = Channel {
                room: None,
                token: file("a"),
                token_type: TokenType::Oauth2,
                client_id: Some("app".into()),
                client_secret: Some(SecretRef::Env("S".into())),
                refresh_token: Some(file("b")),
                topics: Vec::new(),
            };
            let mut config = Config::default();
            config.channels.insert("main".into(), channel);
            let mut found = Findings::default();
            writable(&config, &mut found);
            found.warnings
        };
        assert_eq!(of(dir.path()), []);
        let warnings = of(&dir.path().join("missing"));
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings[0].message.contains("cannot be stored"), "{warnings:?}");
    }
}
