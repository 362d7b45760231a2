//! What Redis's errors mean for an event.
//!
//! The servers that speak Redis's protocol (Redis, Valkey, `KeyDB`, Dragonfly, proxies, hosted ones with a
//! quota) have far more words than anybody can list. So the rule is: an unknown word means to wait. An
//! event is set aside only for a word that says that the event is at fault; what would meet every event
//! alike holds the sink.

use redis::{ErrorKind, RedisError};

use crate::{config::Secret, sink::Cause};

/// Behind this, a server that does not know a command repeats what it was sent: an event, a password.
const REPEATED: &str = ", with args beginning with";

/// What the command was about that the server answered with an error.
#[derive(Debug, Clone, Copy)]
pub(crate) enum About<'a> {
    /// The connection, or the server as a whole.
    Server,
    /// The one channel or key to which all events go.
    OnlyAddress(&'a str),
    /// One of several channels or keys: the address is rendered for each event.
    OneAddress(&'a str),
}

/// What an error of the library hindered: with the server's own words where it has answered.
pub(crate) fn cause(error: &RedisError, about: About<'_>) -> Cause {
    match words(error) {
        Some(words) => cause_of_text(&words, about),
        None if error.kind() == ErrorKind::AuthenticationFailed => {
            Cause::Denied { reason: format!("the server does not accept the login: {error}") }
        }
        None if !matches!(about, About::Server) && was_closed(error) => {
            Cause::closed(error.to_string())
        }
        None => Cause::Down(error.to_string().into()),
    }
}

/// What a refused login means: without the password, which some servers repeat.
pub(crate) fn of_login(error: &RedisError, password: &Secret) -> Cause {
    match words(error) {
        Some(words) => cause_of_text(&password.hidden_in(&words), About::Server),
        None => cause(error, About::Server),
    }
}

/// The server's own words, where it has answered.
fn words(error: &RedisError) -> Option<String> {
    error.code().map(|code| format!("{code} {}", error.detail().unwrap_or_default()))
}

/// Whether the server ended a connection that stood.
fn was_closed(error: &RedisError) -> bool {
    error.is_connection_dropped() && !error.is_connection_refusal() && !error.is_timeout()
}

/// What an answer such as `OOM command not allowed …` means.
pub(crate) fn cause_of_text(words: &str, about: About<'_>) -> Cause {
    let words = words.split_once(REPEATED).map_or(words, |(words, _)| words);
    let words = words.trim_start_matches('-').trim();
    let wait = || Cause::Busy { wait: None, reason: words.to_owned() };
    let down = |what: &str| Cause::Down(format!("{what}: {words}").into());
    let denied = |what: &str| Cause::Denied { reason: format!("{what}: {words}") };
    let of_address = |what: &str| match about {
        About::OneAddress(address) => {
            Cause::Rejected { reason: format!("{what} {address:?}: {words}") }
        }
        About::OnlyAddress(address) => denied(&format!("{what} {address:?}")),
        About::Server => denied(what),
    };
    let has = |text: &str| words.to_ascii_lowercase().contains(text);
    match code(words) {
        // Another server is to be asked, and a new connection finds out which.
        "READONLY" | "MASTERDOWN" | "ASK" | "REDIRECT" | "UNBLOCKED" => {
            down("this is not the server to write to")
        }
        "MOVED" => down("the key is at another server of a cluster (see `cluster = true`)"),
        "NOAUTH" | "WRONGPASS" | "UNAUTHORIZED" => {
            denied("the server does not accept the user or password")
        }
        "DENIED" | "DISABLED" | "FORBIDDEN" | "NOPROTO" => denied("the server does not let us"),
        "WRONGTYPE" => of_address("there is something else at the key"),
        "CROSSSLOT" => denied("these servers are a cluster: set `cluster = true`"),
        "NOPERM" if of_the_address(words) => of_address("the user may not use"),
        "NOPERM" => denied("the user may not run this command"),
        "ERR" if of_the_command(words) => denied("the user may not run this command"),
        "ERR" if has("unknown command") => denied("the server lacks a command"),
        "ERR" if has("max number of clients") => down("the server is full"),
        "ERR" if has("invalid password") || has("called without any password configured") => {
            denied("the server does not accept the user or password")
        }
        "ERR" if has("operation not permitted") => denied("the server does not let us"),
        "ERR" if has("db index") || has("select is not allowed") || has("invalid db") => {
            denied("there is no such database")
        }
        "ERR" if has("cluster support disabled") => {
            denied("this server is no cluster: set `cluster = false`")
        }
        "ERR" if is_size(words) => Cause::Rejected { reason: words.to_owned() },
        _ => wait(),
    }
}

/// Whether the server says that what was sent is too large for it.
pub(crate) fn is_size(words: &str) -> bool {
    const SIZES: [&str; 4] = [
        "string exceeds maximum allowed size",
        "invalid bulk length",
        "max request size exceeded",
        "value is too large",
    ];
    let words = words.to_ascii_lowercase();
    SIZES.iter().any(|size| words.contains(size))
}

/// The error's code: `OOM`, `WRONGTYPE`; empty where the server's words have none. Redis 6 writes its own
/// errors in a script as `@user_script: 1: -OOM …`.
fn code(words: &str) -> &str {
    let is_code = |word: &&str| {
        word.len() > 1 && word.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
    };
    let mut candidates = words.split(' ').map(|word| word.trim_start_matches('-'));
    if words.starts_with('@') {
        return candidates.find(is_code).unwrap_or_default();
    }
    candidates.next().filter(is_code).unwrap_or_default()
}

/// Whether an access list forbids this key or channel, and not the command altogether.
fn of_the_address(words: &str) -> bool {
    words.contains("access one of the")
        || words.contains("access a key")
        || words.contains("access a channel")
        || words.contains("access the")
}

/// Whether an access list forbids the command altogether, not only this key or channel.
fn of_the_command(words: &str) -> bool {
    words.contains("permissions to run the") || words.contains("can't run this command")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONLY: About<'_> = About::OnlyAddress("astro:events");
    const ONE: About<'_> = About::OneAddress("astro:zoe:events");

    fn kind(cause: &Cause) -> &'static str {
        match cause {
            Cause::Busy { .. } => "busy",
            Cause::Down(_) => "down",
            Cause::Rejected { .. } => "rejected",
            Cause::Denied { .. } => "denied",
            Cause::Gone { .. } => "gone",
        }
    }

    #[test]
    fn errors_are_classified() {
        for (words, expected) in [
            // Redis and Valkey.
            ("LOADING Redis is loading the dataset in memory", "busy"),
            ("LOADING Dragonfly is loading the dataset in memory", "busy"),
            ("OOM command not allowed when used memory > 'maxmemory'.", "busy"),
            ("@user_script: 1: -OOM command not allowed when used memory > 'maxmemory'.", "busy"),
            ("@user_script:1: WRONGTYPE Operation against a key", "denied"),
            ("BUSY Redis is busy running a script. You can only call SCRIPT KILL.", "busy"),
            ("UNKILLABLE Sorry the script already executed write commands", "busy"),
            ("MISCONF Redis is configured to save RDB snapshots, but it cannot", "busy"),
            ("MISCONF Errors writing to the AOF file: No space left on device", "busy"),
            ("NOREPLICAS Not enough good replicas to write.", "busy"),
            ("CLUSTERDOWN The cluster is down", "busy"),
            ("TRYAGAIN Multiple keys request during rehashing of slot", "busy"),
            ("NOSCRIPT No matching script. Please use EVAL.", "busy"),
            ("EXECABORT Transaction discarded because of previous errors.", "busy"),
            ("NOGOODSLAVE No suitable replica to promote", "busy"),
            ("INPROG Failover already in progress", "busy"),
            ("IOERR error or timeout reading to target instance", "busy"),
            ("READONLY You can't write against a read only replica.", "down"),
            ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data", "down"),
            ("UNBLOCKED force unblock from blocking operation, instance state changed", "down"),
            ("MOVED 3999 127.0.0.1:6381", "down"),
            ("ASK 3999 127.0.0.1:6381", "down"),
            ("REDIRECT 127.0.0.1:6381", "down"),
            ("ERR max number of clients reached", "down"),
            ("ERR max number of clients + cluster connections reached", "down"),
            ("NOAUTH Authentication required.", "denied"),
            ("WRONGPASS invalid username-password pair or user is disabled.", "denied"),
            ("ERR invalid password", "denied"),
            ("ERR AUTH <password> called without any password configured for the user", "denied"),
            ("ERR operation not permitted", "denied"),
            ("DENIED Redis is running in protected mode because protected mode is on", "denied"),
            ("NOPERM this user has no permissions to run the 'publish' command", "denied"),
            ("NOPERM User default has no permissions to run the 'eval' command", "denied"),
            ("ERR The user executing the script can't run this command or subcommand", "denied"),
            ("ERR unknown command 'EVAL', with args beginning with:", "denied"),
            ("ERR DB index is out of range", "denied"),
            ("ERR SELECT is not allowed in cluster mode", "denied"),
            ("ERR This instance has cluster support disabled", "denied"),
            ("NOPROTO unsupported protocol version", "denied"),
            ("CROSSSLOT Keys in request don't hash to the same slot", "denied"),
            ("DISABLED this database is disabled", "denied"),
            // Hosted servers with a quota, and proxies.
            ("ERR max daily request limit exceeded. Limit: 10000, Usage: 10001.", "busy"),
            ("ERR max concurrent connections exceeded", "busy"),
            ("QUOTA exceeded", "busy"),
            ("upstream failure", "busy"),
            ("no upstream host", "busy"),
            ("ERR no upstream host", "busy"),
            ("ERR Connection refused", "busy"),
            ("ERR Connection timed out", "busy"),
            ("Proxy is not ready", "busy"),
            // What nobody has written yet.
            ("SOMETHINGNEW happened", "busy"),
            ("ERR something new happened", "busy"),
            ("ERR value is not an integer or out of range", "busy"),
            ("ERR Internal error", "busy"),
            ("", "busy"),
            // The event's own fault.
            ("ERR string exceeds maximum allowed size (proto-max-bulk-len)", "rejected"),
            ("ERR Protocol error: invalid bulk length", "rejected"),
            ("ERR max request size exceeded. Limit: 1048576 bytes, Actual: 2097152", "rejected"),
        ] {
            assert_eq!(kind(&cause_of_text(words, ONLY)), expected, "{words}");
            assert_eq!(kind(&cause_of_text(&format!("-{words}"), ONLY)), expected, "{words}");
        }
    }

    #[test]
    fn what_a_server_repeats_is_not_repeated() {
        let words = "ERR unknown command 'AUTH', with args beginning with: 'bob' 'tok-canary' ";
        let Cause::Denied { reason } = cause_of_text(words, About::Server) else { panic!() };
        assert!(reason.contains("'AUTH'") && !reason.contains("tok-canary"), "{reason}");
    }

    #[test]
    fn a_refused_login_does_not_show_the_password() {
        let words = "invalid password tok-canary of bob".to_owned();
        let error = redis::make_extension_error("ERR".into(), Some(words));
        let cause = of_login(&error, &Secret::new("tok-canary")).to_string();
        assert!(!cause.contains("tok-canary"), "{cause}");
    }

    #[test]
    fn address_errors_reject_only_where_addresses_vary() {
        for words in [
            "WRONGTYPE Operation against a key holding the wrong kind of value",
            "NOPERM this user has no permissions to access one of the channels used as arguments",
            "NOPERM No permissions to access a key",
            "NOPERM No permissions to access a channel",
            "NOPERM this user has no permissions to access one of the keys used as arguments",
        ] {
            let Cause::Rejected { reason } = cause_of_text(words, ONE) else { panic!("{words}") };
            assert!(reason.contains("astro:zoe:events"), "{reason}");
            let Cause::Denied { reason } = cause_of_text(words, ONLY) else { panic!("{words}") };
            assert!(reason.contains("astro:events"), "{reason}");
            assert_eq!(kind(&cause_of_text(words, About::Server)), "denied");
        }
        // A command that may not be run may be run at no address.
        let words = "NOPERM this user has no permissions to run the 'publish' command";
        assert_eq!(kind(&cause_of_text(words, ONE)), "denied");
    }
}
