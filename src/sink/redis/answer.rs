//! What Redis's errors mean for an event.
//!
//! The one thing to know: an error that would meet every event alike is never [`Cause::Rejected`], for
//! then the whole journal would run into the dead letters while somebody mends a password.

use redis::RedisError;

use crate::sink::Cause;

/// What an error of the library hindered: with the server's own words where it has answered.
pub(super) fn cause(error: &RedisError) -> Cause {
    match error.code() {
        Some(code) => cause_of_words(&format!("{code} {}", error.detail().unwrap_or_default())),
        None => Cause::Down(error.to_string().into()),
    }
}

/// What an answer such as `OOM command not allowed …` means.
///
/// The words are the server's (its `src/server.c`, `createSharedObjects`), and the cluster's and
/// access list's beside them.
pub(super) fn cause_of_words(words: &str) -> Cause {
    let words = words.trim_start_matches('-').trim();
    let down = |what: &str| Cause::Down(format!("{what}: {words}").into());
    // Redis 6 writes its own errors in a script as `@user_script: 1: -OOM …`.
    let code = words.split(' ').map(|word| word.trim_start_matches('-')).find(|word| is_code(word));
    match code.unwrap_or_default() {
        // It says of itself that this will pass.
        "LOADING" | "OOM" | "BUSY" | "TRYAGAIN" | "CLUSTERDOWN" | "MISCONF" | "NOREPLICAS" => {
            Cause::Busy { wait: None, reason: words.to_owned() }
        }
        // Another server is to be asked, and a new connection finds out which.
        "READONLY" | "MASTERDOWN" | "MOVED" | "ASK" => down("this is not the server to write to"),
        "NOAUTH" | "WRONGPASS" => down("the server does not accept the user or password"),
        "ERR" if words.contains("unknown command") => down("the server lacks a command"),
        "ERR" if words.contains("max number of clients") => down("the server is full"),
        "NOPERM" | "ERR" if of_the_command(words) => down("the user may not run this command"),
        _ => Cause::Rejected { reason: words.to_owned() },
    }
}

/// `OOM`, `WRONGTYPE`: capitals only, and more than one.
fn is_code(word: &str) -> bool {
    word.len() > 1 && word.bytes().all(|byte| byte.is_ascii_uppercase())
}

/// Whether an access list forbids the command altogether, not only this key or channel.
fn of_the_command(words: &str) -> bool {
    words.contains("permissions to run the") || words.contains("can't run this command")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_its_meaning() {
        for (words, expected) in [
            ("LOADING Redis is loading the dataset in memory", "busy"),
            ("OOM command not allowed when used memory > 'maxmemory'.", "busy"),
            ("@user_script: 1: -OOM command not allowed when used memory > 'maxmemory'.", "busy"),
            ("BUSY Redis is busy running a script. You can only call SCRIPT KILL.", "busy"),
            ("MISCONF Redis is configured to save RDB snapshots, but it cannot", "busy"),
            ("NOREPLICAS Not enough good replicas to write.", "busy"),
            ("CLUSTERDOWN The cluster is down", "busy"),
            ("TRYAGAIN Multiple keys request during rehashing of slot", "busy"),
            ("READONLY You can't write against a read only replica.", "down"),
            ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data", "down"),
            ("MOVED 3999 127.0.0.1:6381", "down"),
            ("ASK 3999 127.0.0.1:6381", "down"),
            ("NOAUTH Authentication required.", "down"),
            ("WRONGPASS invalid username-password pair or user is disabled.", "down"),
            ("NOPERM this user has no permissions to run the 'publish' command", "down"),
            ("NOPERM User default has no permissions to run the 'eval' command", "down"),
            ("ERR The user executing the script can't run this command or subcommand", "down"),
            ("ERR unknown command 'EVAL', with args beginning with:", "down"),
            ("ERR max number of clients reached", "down"),
            ("NOPERM this user has no permissions to access one of the channels", "rejected"),
            ("WRONGTYPE Operation against a key holding the wrong kind of value", "rejected"),
            ("-WRONGTYPE Operation against a key holding the wrong kind of value", "rejected"),
            ("ERR value is not an integer or out of range", "rejected"),
        ] {
            let found = match cause_of_words(words) {
                Cause::Busy { .. } => "busy",
                Cause::Down(_) => "down",
                Cause::Rejected { .. } => "rejected",
                Cause::Denied { .. } => "denied",
                Cause::Gone { .. } => "gone",
            };
            assert_eq!(found, expected, "{words}");
        }
    }
}
