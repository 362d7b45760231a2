//! State in Redis: hashes and plain keys.
//!
//! `<prefix>:session` and `<prefix>:counters` are hashes with a field for each name; `<prefix>:stream`,
//! `:bot` and `:status` are plain values. What the relay says of itself is the hash `<prefix>`.
//!
//! A relay that is killed cannot take back that it is `online`, so that expires and is kept alive, see
//! [`super::heartbeat`].

use std::time::Duration;

use async_trait::async_trait;
use redis::{Cmd, Value, cmd};

use super::{Kind, REFRESH, StatePublisher, heartbeat::Heartbeat};
use crate::{
    channel::store::{Section, StateKey},
    config::ConfigError,
    sink::{
        Cause, Failure, Opening, Part,
        prefix::Prefix,
        redis::{Connection, settings::Settings},
    },
};

pub(super) const KIND: Kind =
    Kind { name: "redis", publishes: |config| config.state, open, probe: None, rights: None };

fn open(opening: &Opening<'_>) -> Result<Box<dyn StatePublisher>, ConfigError> {
    let settings = Settings::read(opening)?;
    let at = |what| ConfigError::at(&["sinks", opening.name, "state_key"], what);
    Ok(Box::new(RedisState {
        prefix: settings.prefix().map_err(at)?,
        connection: Connection::new(settings, opening.config.timeout.0),
        heartbeat: Heartbeat::new(expires),
        written: false,
    }))
}

struct RedisState {
    prefix: Prefix,
    connection: Connection,
    heartbeat: Heartbeat,
    /// Whether the relay's own status was written on this connection: it is there until it expires.
    written: bool,
}

#[async_trait]
impl StatePublisher for RedisState {
    async fn connect(&mut self) -> Result<(), Failure> {
        self.heartbeat.clear();
        self.written = false;
        self.connection.open().await.map(drop)
    }

    async fn publish(&mut self, parts: &[Part]) -> Result<(), Failure> {
        let mut link = self.connection.link()?;
        let all = self.heartbeat.with_due(parts);
        let mut requests = Vec::new();
        for (index, part) in all.iter().enumerate() {
            let of_part = commands(&self.prefix, part).map_err(Failure::down)?;
            requests.extend(of_part.into_iter().map(|command| (index, command)));
        }
        let answers = link.request_all(requests.iter().map(|(_, command)| command)).await?;
        let status = all.iter().position(|part| part.path == StateKey::relay(Section::Status));
        let mut last = None;
        for ((index, _), answer) in requests.iter().zip(answers) {
            let is_write = last.replace(*index) != Some(*index);
            let failed = |cause| Failure::after((*index).min(parts.len()), cause);
            match answer {
                // A field that is new although it was written is one of a server that has lost its data.
                Ok(Value::Int(1)) if is_write && self.written && status == Some(*index) => {
                    return Err(Failure::down(
                        "the server has lost the state: it is written again",
                    ));
                }
                Ok(_) => self.written |= status == Some(*index),
                // One part that may not be written is no reason to hold back the others.
                Err(Cause::Denied { reason }) => return Err(failed(Cause::Rejected { reason })),
                Err(cause) => return Err(failed(cause)),
            }
        }
        Ok(())
    }

    async fn idle(&mut self) -> Failure {
        self.connection.idle().await
    }

    async fn close(&mut self) {
        self.connection.close();
    }
}

/// How long a status outlives the relay: some refreshes may come late, behind a batch that takes its
/// time.
const EXPIRES: Duration = Duration::from_secs(90);

const _: () = assert!(EXPIRES.as_secs() > 3 * REFRESH.as_secs(), "it must be kept alive");

/// What expires: the statuses, and all that the relay says of itself, which is one hash.
fn expires(path: &StateKey) -> bool {
    path.channel.is_empty() || path.section == Section::Status
}

/// The commands that have the server keep this part.
fn commands(prefix: &Prefix, part: &Part) -> Result<Vec<Cmd>, String> {
    let Part { path, payload } = part;
    let (owner, section) = (prefix.of(path)?, path.section.as_str());
    let (key, field) = match path.section {
        _ if path.channel.is_empty() => (owner, Some(section)),
        named if named.is_named() => (format!("{owner}:{section}"), Some(&*path.name)),
        _ => (format!("{owner}:{section}"), None),
    };
    let mut write = match (field, payload) {
        (Some(field), Some(payload)) => command("HSET", &key).arg(field).arg(&**payload).clone(),
        (Some(field), None) => command("HDEL", &key).arg(field).clone(),
        (None, Some(payload)) => command("SET", &key).arg(&**payload).clone(),
        (None, None) => command("DEL", &key),
    };
    if !expires(path) || payload.is_none() {
        return Ok(vec![write]);
    }
    if field.is_none() {
        write.arg("EX").arg(EXPIRES.as_secs());
        return Ok(vec![write]);
    }
    let expire = command("EXPIRE", &key).arg(EXPIRES.as_secs()).clone();
    Ok(vec![write, expire])
}

fn command(name: &str, key: &str) -> Cmd {
    let mut command = cmd(name);
    command.arg(key);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_written_with_its_command() {
        let prefix = Prefix::new("astro:{{ channel }}", &[]).unwrap();
        let named =
            |section, name: &str| StateKey { channel: "main".into(), section, name: name.into() };
        let words = |path: &StateKey, payload: Option<&'static str>| {
            let payload = payload.map(bytes::Bytes::from);
            let part = Part { path: path.clone(), payload };
            let commands = commands(&prefix, &part).unwrap();
            let words = |command: &Cmd| {
                let packed = String::from_utf8(command.get_packed_command()).unwrap();
                let words = packed.split("\r\n").filter(|word| !word.starts_with(['$', '*']));
                words.collect::<Vec<_>>().join(" ").trim().to_owned()
            };
            commands.iter().map(words).collect::<Vec<_>>()
        };
        for (path, value, expected) in [
            (named(Section::Session, "tip"), Some("1"), vec!["HSET astro:main:session tip 1"]),
            (named(Section::Session, "tip"), None, vec!["HDEL astro:main:session tip"]),
            (named(Section::Counters, "a:b"), Some("1"), vec!["HSET astro:main:counters a:b 1"]),
            (named(Section::Bot, ""), Some("{}"), vec!["SET astro:main:bot {}"]),
            (named(Section::Stream, ""), None, vec!["DEL astro:main:stream"]),
            (
                named(Section::Status, ""),
                Some("online"),
                vec!["SET astro:main:status online EX 90"],
            ),
            (
                StateKey::relay(Section::Status),
                Some("{}"),
                vec!["HSET astro:relay status {}", "EXPIRE astro:relay 90"],
            ),
        ] {
            assert_eq!(words(&path, value), expected);
        }
    }
}
