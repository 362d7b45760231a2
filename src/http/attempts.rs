//! How often a wrong admin token may be presented.
//!
//! Each address has a few attempts a minute, and all that are not known have a hundred together. Beyond
//! that a token is not even looked at: the answer is 429, whatever it is.
//!
//! - The owner is not locked out by somebody else: an address that has shown the right token, and the
//!   loopback addresses, have their own attempts and take none of the common ones.
//! - An attempt is counted before the token is compared and given back where it was right, so that a
//!   thousand requests at once are no more than ten.
//!
//! An IPv6 network of 64 bits is one address, for it is what one machine gets.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use crate::base::{clock::Moment, sync::lock};

/// Wrong tokens from one address within [`WINDOW`].
pub(super) const PER_ADDRESS: usize = 10;

/// Wrong tokens from all addresses that are not known, within [`WINDOW`].
pub(super) const TOGETHER: usize = 100;

/// See [`PER_ADDRESS`].
pub(super) const WINDOW: Duration = Duration::from_mins(1);

/// Addresses that are remembered for having shown the right token: an operator has a few.
const KNOWN: usize = 16;

/// See the module.
#[derive(Debug, Default)]
pub struct Attempts(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    /// Times of wrong tokens, oldest first: never more than [`PER_ADDRESS`] each. With the limit on all
    /// together there are never many addresses.
    by: BTreeMap<IpAddr, VecDeque<Moment>>,
    together: VecDeque<Moment>,
    /// The latest to show the right token is the last.
    known: VecDeque<IpAddr>,
}

impl Attempts {
    fn lock(&self) -> MutexGuard<'_, Table> {
        lock(&self.0)
    }

    /// Counts an attempt. An error: there are none left, and when there is one again.
    pub(super) fn attempt(&self, peer: IpAddr) -> Result<(), Duration> {
        let (address, now) = (network(peer), Moment::now());
        let mut table = self.lock();
        let Table { by, together, known } = &mut *table;
        let over = |at: &Moment| now.since(*at) >= WINDOW;
        by.retain(|_, times| {
            while times.pop_front_if(|at| over(at)).is_some() {}
            !times.is_empty()
        });
        while together.pop_front_if(|at| over(at)).is_some() {}
        let wait = |times: &VecDeque<Moment>| {
            let oldest = times.front().map_or(Duration::ZERO, |at| now.since(*at));
            WINDOW.saturating_sub(oldest)
        };
        if let Some(times) = by.get(&address)
            && times.len() >= PER_ADDRESS
        {
            return Err(wait(times));
        }
        if !is_trusted(known, address) {
            if together.len() >= TOGETHER {
                return Err(wait(together));
            }
            together.push_back(now);
        }
        by.entry(address).or_default().push_back(now);
        Ok(())
    }

    /// The token was right, or could not be compared: the attempt was none.
    pub(super) fn give_back(&self, peer: IpAddr, right: bool) {
        let address = network(peer);
        let mut table = self.lock();
        if let Some(times) = table.by.get_mut(&address) {
            times.pop_back();
        }
        if !is_trusted(&table.known, address) {
            table.together.pop_back();
        }
        if right {
            table.known.retain(|known| *known != address);
            if table.known.len() >= KNOWN {
                table.known.pop_front();
            }
            table.known.push_back(address);
        }
    }
}

/// Whether an address takes no attempt from the others.
fn is_trusted(known: &VecDeque<IpAddr>, address: IpAddr) -> bool {
    // Not all of 127.0.0.0/8: whoever is on this machine has all those addresses.
    address == Ipv4Addr::LOCALHOST
        || address == network(Ipv6Addr::LOCALHOST.into())
        || known.contains(&address)
}

/// What counts as one address.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        four @ IpAddr::V4(_) => four,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_has_ten_attempts_a_minute_and_the_others_theirs() {
        let attempts = Attempts::default();
        let (bad, good) = (address("192.0.2.1"), address("192.0.2.2"));
        for _ in 0..PER_ADDRESS {
            assert_eq!(attempts.attempt(bad), Ok(()));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(attempts.attempt(bad), Err(Duration::from_secs(50)));
        // The same machine, otherwise written.
        assert!(attempts.attempt(address("::ffff:192.0.2.1")).is_err());
        assert_eq!(attempts.attempt(good), Ok(()));
        tokio::time::advance(Duration::from_secs(50)).await;
        assert_eq!(attempts.attempt(bad), Ok(()));
        assert_eq!(attempts.attempt(bad), Err(Duration::from_secs(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn many_addresses_have_a_hundred_and_lock_out_no_owner() {
        let attempts = Attempts::default();
        let owner = address("192.0.2.7");
        assert_eq!(attempts.attempt(owner), Ok(()));
        attempts.give_back(owner, true);
        let mut allowed = 0;
        for n in 0..5000_u16 {
            // A network each, and each a hundred machines of it.
            let stranger = IpAddr::from([0x2001, 0xdb8, 0, n / 100, 0, 0, 0, n]);
            allowed += usize::from(attempts.attempt(stranger).is_ok());
        }
        assert_eq!(allowed, TOGETHER);
        for address in [owner, address("127.0.0.1"), address("::1")] {
            assert_eq!(attempts.attempt(address), Ok(()), "{address}");
            attempts.give_back(address, true);
        }
        assert!(attempts.lock().by.len() <= TOGETHER + 3);
        tokio::time::advance(WINDOW).await;
        assert_eq!(attempts.attempt(address("192.0.2.9")), Ok(()));
        assert_eq!(attempts.lock().by.len(), 1);
    }

    #[test]
    fn a_right_token_costs_nothing_however_often() {
        let attempts = Attempts::default();
        for n in 0..1000_u16 {
            let address = IpAddr::from([192, 0, 2, u8::try_from(n % 200).unwrap()]);
            assert_eq!(attempts.attempt(address), Ok(()));
            attempts.give_back(address, true);
        }
        let table = attempts.lock();
        assert!(table.known.len() <= KNOWN && table.together.is_empty());
    }
}
