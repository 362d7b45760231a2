//! Files that the configuration names: secrets, and certificates.
//!
//! They are read all at once, each within the patience of [`files`], and only if that is asked for.

use std::{
    collections::BTreeMap,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use futures_util::future::{join, join_all};
use serde_json::Value;

use crate::{
    astro::{rest::is_channel_id, token::TokenFacts},
    base::{clock, files, tls},
    config::{
        Config, SecretRef, SinkConfig, TokenType, jwt, pasted,
        problem::Findings,
        secret::{SecretError, Text},
    },
    loading::{
        Sources,
        places::{Layer, Places},
    },
    sink,
};

/// How long before its end a token is warned of: a week leaves a weekend for getting another.
const EXPIRY_NOTICE_SECS: u64 = 7 * 24 * 3600;

/// What was found out by reading the secrets.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    /// How many could not be read because their files do not answer.
    pub(crate) silent: usize,
    /// See [`Config::token_rooms`].
    pub(crate) rooms: BTreeMap<String, String>,
}

pub(super) fn check(
    config: &Config,
    places: &Places<'_>,
    sources: &Sources,
    found: &mut Findings,
) -> Tokens {
    let mut tokens = Tokens::default();
    let secrets = secrets(config);
    for secret in &secrets {
        exposed(found, secret, places);
    }
    if !sources.resolve_secrets {
        return tokens;
    }
    certificates(found, config);
    super::refresh::writable(config, found);
    for (secret, text) in secrets.iter().zip(read(&secrets, sources)) {
        match text {
            Ok(text) => {
                readable(found, secret, &text);
                fitting(found, secret, &text, config);
                tokens.rooms.extend(own_room(secret, &text, config));
            }
            // It may be there soon, and nothing else is to wait for it.
            Err(error) if error.is_silent() => {
                tokens.silent += 1;
                found.warn(&secret.key, error.to_string());
            }
            Err(error) => found.error(&secret.key, error.to_string()),
        }
    }
    tokens
}

/// A secret of the configuration, its key, and of which kind it is where it is a channel's token.
struct Configured<'c> {
    key: Vec<&'c str>,
    secret: SecretRef,
    token: Option<TokenType>,
}

/// Where all secrets of a configuration are kept.
pub(crate) fn configured_secrets(config: &Config) -> Vec<SecretRef> {
    secrets(config).into_iter().map(|configured| configured.secret).collect()
}

/// All that are configured.
fn secrets(config: &Config) -> Vec<Configured<'_>> {
    let channels = config.channels.iter().map(|(label, channel)| {
        let key = vec!["channels", label, "token"];
        Configured { key, secret: channel.token.clone(), token: Some(channel.token_type) }
    });
    let clients = config.channels.iter().flat_map(|(label, channel)| {
        let secrets =
            [("client_secret", &channel.client_secret), ("refresh_token", &channel.refresh_token)];
        secrets.into_iter().filter_map(move |(key, secret)| {
            let key = vec!["channels", label, key];
            Some(Configured { key, secret: secret.clone()?, token: None })
        })
    });
    let own = [
        ("astro", "proxy", &config.astro.proxy),
        ("http", "admin_token", &config.http.admin_token),
    ];
    let cluster = config.cluster.iter().flat_map(|cluster| {
        [
            ("cluster", "password", &cluster.password),
            ("cluster", "token", &cluster.token),
            ("cluster", "nkey_seed", &cluster.nkey_seed),
            ("cluster", "credentials", &cluster.credentials),
        ]
    });
    let own = own.into_iter().chain(cluster).filter_map(|(section, key, secret)| {
        Some(Configured { key: vec![section, key], secret: secret.clone()?, token: None })
    });
    let sinks = config.sinks.iter().flat_map(|(name, sink)| {
        let keys = sink::kind(&sink.kind).map(|kind| kind.secrets).unwrap_or_default();
        keys.iter().filter_map(move |key| {
            let secret = serde_json::from_value(sink.settings.get(key)?.clone()).ok()?;
            Some(Configured { key: vec!["sinks", name, key], secret, token: None })
        })
    });
    channels.chain(clients).chain(own).chain(sinks).collect()
}

/// A secret that others on this machine can read.
fn exposed(
    found: &mut Findings,
    Configured { key, secret, .. }: &Configured<'_>,
    places: &Places<'_>,
) {
    let (SecretRef::Value(text), Some(&last)) = (secret, key.last()) else { return };
    let path: Vec<String> = key.iter().map(|&part| part.to_owned()).collect();
    // An address can be a secret, and mostly is none.
    let harmless = last == "url" || last == "proxy" && !text.contains('@');
    match places.layer(&path) {
        Layer::File
            if !harmless && places.file.as_ref().is_some_and(|file| open_to_others(file.path)) =>
        {
            let message = format!("a secret in a file that every user can read: use {last}_file");
            found.warn(key, message);
        }
        Layer::CommandLine => {
            found.warn(key, "a secret on the command line can be seen by every user");
        }
        Layer::File | Layer::Environment => {}
    }
}

/// A secret that was read: whether it can be one, and will last.
fn readable(found: &mut Findings, of: &Configured<'_>, text: &Text) {
    if text.open_to_others {
        found.warn(&of.key, "the secret's file can be read by every user: chmod 600");
    }
    let Some(kind) = of.token else {
        // A password is sent as it stands.
        if of.key.last().is_some_and(|key| key.ends_with("password"))
            && pasted::has_blank_edge(text.secret.expose())
        {
            found.warn(&of.key, "begins or ends with a blank, which is sent as a part of it");
        }
        return;
    };
    let token = pasted::token(text.secret.expose());
    if token.is_empty() {
        return found.error(&of.key, "the secret is empty");
    }
    if let Some(doubt) = pasted::doubt(&token, kind) {
        return found.warn(&of.key, format!("this token {doubt}"));
    }
    let expiry = if kind == TokenType::Jwt { jwt::expiry(&token) } else { None };
    let Some(expiry) = expiry else { return };
    let now = clock::now() / 1000;
    if expiry < now.saturating_add(EXPIRY_NOTICE_SECS) {
        let when = clock::rfc3339(expiry.saturating_mul(1000));
        let word = if expiry < now { "expired" } else { "expires" };
        found.warn(&of.key, format!("this token {word} at {when}"));
    }
}

/// A channel's token that says whose it is, against what is asked for with it.
fn fitting(found: &mut Findings, of: &Configured<'_>, text: &Text, config: &Config) {
    let (Some(TokenType::Jwt), [_, label, _]) = (of.token, &*of.key) else { return };
    let Some(channel) = config.channels.get(*label) else { return };
    let facts = TokenFacts::of_jwt(&pasted::token(text.secret.expose()));
    let topics = channel.topics.iter().map(String::as_str);
    for doubt in facts.doubts(channel.room.as_deref(), topics) {
        found.warn(&of.key, format!("of this token: {doubt}"));
    }
}

/// The label of a channel without a configured room, and the channel that its token says it belongs to.
fn own_room(of: &Configured<'_>, text: &Text, config: &Config) -> Option<(String, String)> {
    let (Some(TokenType::Jwt), [_, label, _]) = (of.token, &*of.key) else { return None };
    config.channels.get(*label).filter(|channel| channel.room.is_none())?;
    let room = jwt::channel(&pasted::token(text.secret.expose()));
    Some(((*label).to_owned(), room.filter(|room| is_channel_id(room))?))
}

/// Reads all secrets at once: those that do not answer are waited for together.
fn read(secrets: &[Configured<'_>], sources: &Sources) -> Vec<Result<Text, SecretError>> {
    let env = |name: &str| sources.env.get(name).cloned();
    let texts = secrets.iter().map(|one| one.secret.text(env, files::PATIENCE));
    files::blocking(join_all(texts)).unwrap_or_else(|error| {
        let why = || SecretError::File { place: "files".into(), why: error.kind().into() };
        secrets.iter().map(|_| Err(why())).collect()
    })
}

/// Whether users other than the owner and the group may read a file.
fn open_to_others(path: &Path) -> bool {
    /// The bit of a file's mode that lets everybody read it.
    const OTHERS_READ: u32 = 0o004;
    std::fs::metadata(path).is_ok_and(|file| file.mode() & OTHERS_READ != 0)
}

/// Certificates and keys that cannot be used as they are now, and keys that others can read. A sink waits for
/// its own; the gateway is what everything is for.
fn certificates(found: &mut Findings, config: &Config) {
    let path = |sink: &SinkConfig, key: &str| {
        sink.settings.get(key).and_then(Value::as_str).map(PathBuf::from)
    };
    let mut wanted: Vec<(Option<&str>, [Option<PathBuf>; 3])> = Vec::new();
    wanted.push((None, [config.astro.ca_file.clone(), None, None]));
    for (name, sink) in &config.sinks {
        let keys = ["ca_file", "client_cert_file", "client_key_file"];
        wanted.push((Some(name), keys.map(|key| path(sink, key))));
    }
    wanted.retain(|(_, files)| files.iter().any(Option::is_some));
    if wanted.is_empty() {
        return;
    }
    let reads = wanted.iter().map(|(_, [ca, cert, key])| {
        let is_open = async move {
            let Some(key) = key else { return false };
            files::read(key).await.is_ok_and(|content| content.open_to_others)
        };
        join(tls::client_config(ca.as_deref(), cert.as_deref(), key.as_deref()), is_open)
    });
    // Without a thread to read with, connecting tells.
    let Ok(outcomes) = files::blocking(join_all(reads)) else { return };
    for ((sink, files), (outcome, is_open)) in wanted.iter().zip(outcomes) {
        if let (Some(name), true) = (sink, is_open) {
            let message = "the private key can be read by every user: chmod 600";
            found.warn(&["sinks", name, "client_key_file"], message);
        }
        let Err(error) = outcome else { continue };
        let [ca, ..] = files;
        let key = if ca.is_some() { "ca_file" } else { "client_cert_file" };
        match sink {
            None if !error.is_silent() => found.error(&["astro", key], error.to_string()),
            None => found.warn(&["astro", key], error.to_string()),
            Some(name) => found.warn(&["sinks", name, key], error.to_string()),
        }
    }
}
