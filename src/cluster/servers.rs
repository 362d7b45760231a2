//! Which NATS server a member uses, and when it leaves one.
//!
//! A server that is cut off from the others keeps its clients and answers their pings, while nothing of what the
//! cluster keeps can be read or written through it.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use async_nats::{Server, ServerAddr};
use tokio::time::Instant;

/// How long a server may do nothing of what it is asked. Servers that choose a leader take less.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest time between two changes, where no other server does it either.
const LONGEST: Duration = Duration::from_mins(2);

/// Whose turn it is, and why none is reached.
#[derive(Debug, Default)]
pub(super) struct Choice {
    /// How often each was tried since one was reached.
    tries: HashMap<ServerAddr, u32>,
    /// The one that was tried last: while one is reached, that one.
    last: Option<ServerAddr>,
    /// Why none is reached, as far as it is known.
    failure: Option<String>,
}

impl Choice {
    /// The next one to try: the one that was tried least since one was reached; of these one that once worked, and
    /// rather not the one that was lost. How often each has failed does not matter: the client library counts no
    /// name that cannot be resolved, and keeps what it counted in an earlier outage. It also keeps addresses that
    /// were announced once and lead nowhere.
    pub(super) fn next(&mut self, mut servers: Vec<Server>) -> Option<ServerAddr> {
        self.failure = self.failures(&servers).or_else(|| self.failure.take());
        fastrand::shuffle(&mut servers);
        let turn = |server: &Server| {
            let tries = self.tries.get(&server.addr).copied().unwrap_or(0);
            (tries, !server.did_connect, self.last.as_ref() == Some(&server.addr))
        };
        let next = servers.into_iter().min_by_key(turn)?.addr;
        *self.tries.entry(next.clone()).or_default() += 1;
        self.last = Some(next.clone());
        Some(next)
    }

    /// The server that is reached is left: all others come before it.
    pub(super) fn leave(&mut self) {
        self.tries.extend(self.last.clone().map(|left| (left, 1)));
    }

    /// A server is reached.
    pub(super) fn connected(&mut self) {
        self.tries.clear();
        self.failure = None;
    }

    /// Why attempts at these servers failed since one was reached, each reason once.
    fn failures(&self, servers: &[Server]) -> Option<String> {
        let tried = servers.iter().filter(|server| self.tries.contains_key(&server.addr));
        let errors: BTreeSet<&str> =
            tried.filter_map(|server| server.last_error.as_deref()).map(plain).collect();
        (!errors.is_empty()).then(|| errors.into_iter().collect::<Vec<_>>().join(", "))
    }

    /// An attempt failed for this reason. What is known of the servers themselves says more.
    pub(super) fn failed(&mut self, why: String) {
        self.failure.get_or_insert(why);
    }

    /// That no server is reached, and why.
    pub(super) fn unreached(&self) -> String {
        let text = "no NATS server can be reached";
        match &self.failure {
            Some(why) => format!("{text}: {why}"),
            None => text.to_owned(),
        }
    }
}

/// What the client library says of an attempt, without what it puts before it.
fn plain(error: &str) -> &str {
    // A password or a token that cannot be read.
    if let Some((_, why)) = error.split_once("AuthError(") {
        return why.strip_suffix(')').unwrap_or(why);
    }
    let error = error.strip_prefix("IO error: ").unwrap_or(error);
    error.split_once("nats: ").map_or(error, |(_, said)| said)
}

/// Since when requests fail at servers that are reached.
#[derive(Debug, Default)]
pub(super) struct Failing {
    since: Option<Instant>,
    changes: u32,
}

impl Failing {
    /// A request failed; whether another server is to be tried now.
    pub(super) fn failed(&mut self, is_reached: bool) -> bool {
        if !is_reached {
            // The client library tries all of them.
            self.since = None;
            return false;
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        let patience = PATIENCE.saturating_mul(2_u32.saturating_pow(self.changes)).min(LONGEST);
        if since.elapsed() < patience {
            return false;
        }
        self.since = None;
        self.changes = self.changes.saturating_add(1);
        true
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn server(port: u16, did_connect: bool, last_error: Option<&str>) -> Server {
        Server {
            addr: format!("nats://host:{port}").parse().unwrap(),
            // The library does not count all of them, and forgets none.
            failed_attempts: usize::from(port) % 2 * 40,
            did_connect,
            is_discovered: false,
            last_error: last_error.map(ToOwned::to_owned),
        }
    }

    /// The ports of those that are tried next, so many of them.
    fn turns<const N: usize>(choice: &mut Choice, servers: &[Server]) -> [u16; N] {
        std::array::from_fn(|_| choice.next(servers.to_vec()).unwrap().port())
    }

    #[test]
    fn a_server_that_cannot_be_reached_starves_no_other() {
        for _ in 0..20 {
            let mut choice = Choice::default();
            let servers = [1, 2, 3].map(|port| server(port, false, None));
            for _ in 0..3 {
                let turns = turns::<3>(&mut choice, &servers);
                assert_eq!(BTreeSet::from(turns), BTreeSet::from([1, 2, 3]));
            }
        }
    }

    #[test]
    fn a_server_that_is_lost_comes_before_those_that_never_worked_and_one_that_is_left_behind_all()
    {
        for _ in 0..20 {
            let mut choice = Choice::default();
            let [used] = turns::<1>(&mut choice, &[server(1, false, None)]);
            choice.connected();
            // The second worked before, and others were announced meanwhile.
            let servers = [1, 2, 3, 4].map(|port| server(port, port < 3, None));
            assert_eq!(turns::<2>(&mut choice, &servers), [2, used]);
            choice.connected();
            assert_eq!(turns::<2>(&mut choice, &servers), [2, used], "it is the one that was lost");
            let mut left = Choice::default();
            turns::<1>(&mut left, &[server(1, false, None)]);
            left.connected();
            left.leave();
            let before = turns::<3>(&mut left, &servers);
            assert!(before[0] == 2 && !before.contains(&1), "{before:?}");
        }
        let mut choice = Choice::default();
        assert_eq!(turns::<2>(&mut choice, &[server(2, true, None)]), [2, 2], "there is no other");
        assert_eq!(choice.next(Vec::new()), None);
    }

    #[test]
    fn it_is_said_why_no_server_is_reached_until_one_is() {
        let mut choice = Choice::default();
        assert_eq!(choice.unreached(), "no NATS server can be reached");
        choice.failed("DNS error".into());
        let old = Some("IO error: Broken pipe");
        drop(choice.next(vec![server(1, true, old)]));
        assert_eq!(choice.unreached(), "no NATS server can be reached: DNS error");
        let refused = Some("authorization violation: nats: authorization violation");
        let servers = vec![
            server(1, true, refused),
            server(2, false, Some("IO error: Connection refused (os error 111)")),
            server(3, false, refused),
            server(
                4,
                false,
                Some("failed signing nonce: AuthError(cannot read the secret (a): no)"),
            ),
        ];
        // What is known of those that were not tried since is of another time.
        turns::<4>(&mut choice, &servers);
        choice.failed("authorization violation".into());
        assert_eq!(
            choice.unreached(),
            "no NATS server can be reached: Connection refused (os error 111), authorization violation, cannot read \
             the secret (a): no"
        );
        choice.connected();
        assert_eq!(choice.unreached(), "no NATS server can be reached");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_is_left_when_it_has_failed_for_long_and_later_ones_are_given_more_time() {
        let mut failing = Failing::default();
        for patience in [10, 20, 40, 80, 120, 120] {
            assert!(!failing.failed(true));
            advance(Duration::from_secs(patience - 1)).await;
            assert!(!failing.failed(true), "{patience}");
            advance(Duration::from_secs(1)).await;
            assert!(failing.failed(true), "{patience}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn while_no_server_is_reached_none_is_left() {
        let mut failing = Failing::default();
        assert!(!failing.failed(true));
        advance(PATIENCE).await;
        assert!(!failing.failed(false));
        assert!(!failing.failed(true), "this one has only begun to fail");
    }
}
