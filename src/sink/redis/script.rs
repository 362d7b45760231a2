//! One script appends a run of events to their streams, and stops at the first that fails.
//!
//! The entry id is `<stored>-<seq>`: when the journal stored the event (a relay alone: when it received it), or
//! the log of a cluster did, and its number there. Whoever drives the sink gives an event the same id.
//! Both only grow within one journal or log, so a stream with one writer is in order, and an event that is
//! sent again because nobody knows what became of it meets "equal or smaller": then the script looks
//! whether it stands there, and counts it as a duplicate. Where it does not (another writer is ahead,
//! or a clock was set back) it goes behind the stream's top under an id of the server's.
//!
//! An entry is the event where `id` and `payload` are the same: what another sink makes of an event is another
//! entry. So a payload is a function of the event and the configuration alone.
//!
//! What is promised: an event that was accepted is not stored twice, as long as its entry is still in
//! the stream; and where the stream has other writers, as long as it is among the newest [`search`]
//! entries when it comes again after a lost connection, and has an id. A consumer that deletes entries within
//! that time can see one twice, and so can any where `max_len` trims them; the field `id` tells.
//!
//! An event of a replay is wanted once more: it is appended under an id of the server's, with the name of the
//! replay in the field `replay`. By that a repeat of it is found among the newest entries too.
//!
//! A plain pipeline would go on after a failure in its middle (`OOM`, say), and
//! the failed event could then only be stored behind its successors. A script can stop. It is sent
//! whole each time: hashing it costs the server 2 µs, and there is no "no such script" to handle.

use redis::{Cmd, RedisResult, Value};

use super::{answer, settings::Settings};
use crate::sink::{Cause, Outgoing};

/// What the server runs.
const SCRIPT: &str = include_str!("script.lua");

/// The most of the newest entries that are searched for a repeat. Costs the server some milliseconds, and
/// only after a lost connection.
const MAX_SEARCH: usize = 16 * 1024;

/// How many of the newest entries are searched for a repeat in a stream with other writers, where `window`
/// events at most may stand there without our knowing: so that three times as many may have come from
/// elsewhere meanwhile.
pub(super) fn search(window: usize) -> usize {
    window.saturating_mul(4).min(MAX_SEARCH)
}

/// Payload that one script appends at most: it keeps the server from its other clients for some
/// milliseconds.
const RUN_BYTES: usize = 1024 * 1024;

/// Arguments of one event: stream, entry id, replay, seven fields. As in the script.
const ARGS: usize = 10;

/// What became of a run.
#[derive(Debug, Default)]
pub(super) struct Appended {
    /// The first so many stand in the stream.
    pub(super) accepted: usize,
    /// So many of them stood there before.
    pub(super) duplicates: u64,
    /// What met the one after them.
    pub(super) cause: Option<Cause>,
}

/// What one script may append.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Run {
    /// Events of any streams.
    #[default]
    Any,
    /// Of one stream: those of a cluster lie on different servers, and a user who may not use one of them
    /// is denied the script as a whole.
    OneStream,
    /// One event: the server (or a proxy before it) says that more is too large.
    OneEvent,
}

/// The part of `batch` that one script takes: never empty unless `batch` is.
pub(super) fn run(batch: &[Outgoing], kind: Run) -> &[Outgoing] {
    let Some(first) = batch.first() else { return batch };
    let mut bytes = 0;
    let len = batch
        .iter()
        .take_while(|outgoing| {
            let fits =
                bytes == 0 || kind != Run::OneEvent && bytes + outgoing.payload.len() <= RUN_BYTES;
            bytes += outgoing.payload.len().max(1);
            fits && (kind == Run::Any || outgoing.address == first.address)
        })
        .count();
    batch.get(..len).unwrap_or(batch)
}

/// What the script's answer says of a run.
pub(super) fn appended<'r>(
    answer: RedisResult<Value>,
    run: &[&'r Outgoing],
    settings: &Settings,
) -> Appended {
    let failed = |cause| Appended { cause: Some(cause), ..Appended::default() };
    let about = |event: Option<&&'r Outgoing>| settings.about(event.map(|event| &*event.address));
    let first = run.first();
    let answer = match answer {
        Ok(Value::ServerError(error)) => return failed(answer::cause(&error.into(), about(first))),
        Ok(answer) => answer,
        Err(error) => return failed(answer::cause(&error, about(first))),
    };
    match redis::from_redis_value::<(usize, u64, String)>(answer) {
        Ok((accepted, duplicates, words)) => {
            let next = run.get(accepted);
            let cause = match next {
                _ if !words.is_empty() => Some(answer::cause_of_text(&words, about(next))),
                Some(_) => Some(Cause::Down("the script ended early".into())),
                None => None,
            };
            Appended { accepted: accepted.min(run.len()), duplicates, cause }
        }
        Err(error) => failed(Cause::Down(error.to_string().into())),
    }
}

/// The id of an event's entry: `*` has the server choose one.
fn entry(outgoing: &Outgoing) -> String {
    match outgoing.record.replay {
        Some(_) => "*".to_owned(),
        None => format!("{}-{}", outgoing.record.stored, outgoing.record.seq),
    }
}

/// The command that appends a run, in order.
pub(super) fn command(run: &[Outgoing], max_len: u64, search: usize) -> Cmd {
    let mut keys: Vec<&str> = Vec::new();
    for outgoing in run {
        // Runs have one stream or few.
        if !keys.contains(&&*outgoing.address) {
            keys.push(&outgoing.address);
        }
    }
    // 256 is what the other fields of an event take, roughly.
    let bytes: usize = run.iter().map(|outgoing| 256 + outgoing.payload.len()).sum();
    let mut command =
        Cmd::with_capacity(5 + keys.len() + ARGS * run.len(), SCRIPT.len() + 64 + bytes);
    command.arg("EVAL").arg(SCRIPT).arg(keys.len());
    for key in &keys {
        command.arg(*key);
    }
    command.arg(max_len).arg(search);
    for outgoing in run {
        let event = &outgoing.record.event;
        let key = keys.iter().position(|key| **key == *outgoing.address).unwrap_or(0);
        command
            .arg(key + 1)
            .arg(entry(outgoing))
            .arg(outgoing.record.replay.as_deref().unwrap_or_default())
            .arg(event.key())
            .arg(&*event.place.topic)
            .arg(&*event.place.room)
            .arg(&*event.place.channel)
            .arg(&*event.ts)
            .arg(event.origin.as_str())
            .arg(&*outgoing.payload);
    }
    command
}
