//! The live state in Redis: hashes and plain keys.
//!
//! `<prefix>:session` and `<prefix>:counters` are hashes with a field for each name; `<prefix>:stream`,
//! `:bot` and `:status` are plain values. What the relay says of itself is the hash `<prefix>`.
//!
//! The one thing to know: what says `online` expires. A relay that is killed cannot take it back, so it
//! keeps it alive instead, see [`super::super::pulse`].

use std::time::Duration;

use redis::{Cmd, cmd};

use super::super::{KEEP_REFRESH, Part, prefix::Prefix};
use crate::channel::board::{Path, Section};

/// How long a status outlives the relay: some refreshes may come late, behind a batch that takes its
/// time.
const EXPIRES: Duration = Duration::from_secs(90);

const _: () = assert!(EXPIRES.as_secs() > 3 * KEEP_REFRESH.as_secs(), "it must be kept alive");

/// What expires: the statuses, and all that the relay says of itself, which is one hash.
pub(super) fn expires(path: &Path) -> bool {
    path.channel.is_empty() || path.section == Section::Status
}

/// The commands that have the server keep this part.
pub(super) fn commands(prefix: &Prefix, part: &Part) -> Result<Vec<Cmd>, String> {
    let Part { path, payload } = part;
    let (owner, section) = (prefix.of(path)?, path.section.as_str());
    let (key, field) = match path.section {
        _ if path.channel.is_empty() => (owner, Some(section)),
        Section::Session | Section::Counters => (format!("{owner}:{section}"), Some(&*path.name)),
        _ => (format!("{owner}:{section}"), None),
    };
    let mut command = match (field, payload) {
        (Some(field), Some(payload)) => said("HSET", &key).arg(field).arg(&**payload).clone(),
        (Some(field), None) => said("HDEL", &key).arg(field).clone(),
        (None, Some(payload)) => said("SET", &key).arg(&**payload).clone(),
        (None, None) => said("DEL", &key),
    };
    if !expires(path) || payload.is_none() {
        return Ok(vec![command]);
    }
    if field.is_none() {
        command.arg("EX").arg(EXPIRES.as_secs());
        return Ok(vec![command]);
    }
    let expire = said("EXPIRE", &key).arg(EXPIRES.as_secs()).clone();
    Ok(vec![command, expire])
}

fn said(name: &str, key: &str) -> Cmd {
    let mut command = cmd(name);
    command.arg(key);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_has_its_command() {
        let prefix = Prefix::new("astro:{{ channel }}", &[]).unwrap();
        let named =
            |section, name: &str| Path { channel: "main".into(), section, name: name.into() };
        let words = |path: &Path, payload: Option<&'static str>| {
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
                Path::relay(Section::Status),
                Some("{}"),
                vec!["HSET astro:relay status {}", "EXPIRE astro:relay 90"],
            ),
        ] {
            assert_eq!(words(&path, value), expected);
        }
    }
}
