//! Which channels this member holds. Pure.
//!
//! It holds what is assigned to it, and what was: a channel that is another's now is kept until all members
//! say that what they are to hold stands, or for [`LONGEST`]. Two that hold a channel do no harm, a channel
//! that nobody holds does.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use crate::base::clock::Moment;

/// How long a channel is kept that is another's.
pub(super) const LONGEST: Duration = Duration::from_mins(2);

/// The channels that are held; those that are another's, since when.
#[derive(Debug, Clone, Default)]
pub(super) struct Holding {
    channels: BTreeMap<Arc<str>, Option<Moment>>,
}

impl Holding {
    /// `assigned` is to be held. `released`: all members have what they are to hold.
    pub(super) fn assign(&mut self, assigned: &BTreeSet<Arc<str>>, released: bool) {
        let now = Moment::now();
        for surplus in self.channels.values_mut() {
            surplus.get_or_insert(now);
        }
        self.channels.extend(assigned.iter().map(|channel| (Arc::clone(channel), None)));
        self.channels
            .retain(|_, surplus| surplus.is_none_or(|at| !released && now.since(at) < LONGEST));
    }

    /// These are configured no more.
    pub(super) fn forget(&mut self, configured: impl Fn(&str) -> bool) {
        self.channels.retain(|channel, _| configured(channel));
    }

    pub(super) fn has(&self, channel: &str) -> bool {
        self.channels.contains_key(channel)
    }

    #[cfg(test)]
    pub(super) fn channels(&self) -> impl Iterator<Item = &Arc<str>> {
        self.channels.keys()
    }

    pub(super) fn len(&self) -> usize {
        self.channels.len()
    }

    /// Whether some are kept that are another's.
    #[cfg(test)]
    pub(super) fn has_surplus(&self) -> bool {
        self.channels.values().any(Option::is_some)
    }
}

/// The channels that a member is to hold.
pub(super) fn assigned<'c, 'm>(
    own: &str,
    channels: impl IntoIterator<Item = &'c Arc<str>>,
    holders: impl Fn(&str) -> Vec<&'m str>,
) -> BTreeSet<Arc<str>> {
    let is_ours = |channel: &&Arc<str>| holders(channel).contains(&own);
    channels.into_iter().filter(is_ours).cloned().collect()
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::cluster::assignment;

    const MEMBERS: [&str; 3] = ["a", "b", "c"];

    fn set(channels: &[&str]) -> BTreeSet<Arc<str>> {
        channels.iter().map(|channel| Arc::from(*channel)).collect()
    }

    fn held(holding: &Holding) -> Vec<&str> {
        holding.channels().map(|channel| &**channel).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_anothers_is_kept_until_all_stand() {
        let mut holding = Holding::default();
        holding.assign(&set(&["a", "b"]), false);
        holding.assign(&set(&["b", "c"]), false);
        assert_eq!(held(&holding), ["a", "b", "c"]);
        assert_eq!(holding.len(), 3);
        assert!(holding.has_surplus());
        holding.assign(&set(&["b", "c"]), true);
        assert_eq!(held(&holding), ["b", "c"]);
        assert!(!holding.has_surplus());
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_not_kept_for_ever() {
        let mut holding = Holding::default();
        holding.assign(&set(&["a"]), false);
        holding.assign(&set(&[]), false);
        advance(Duration::from_secs(119)).await;
        holding.assign(&set(&[]), false);
        assert_eq!(held(&holding), ["a"]);
        advance(Duration::from_secs(1)).await;
        holding.assign(&set(&[]), false);
        assert_eq!(holding.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_comes_back_is_ours_again() {
        let mut holding = Holding::default();
        holding.assign(&set(&["a"]), false);
        advance(Duration::from_secs(5)).await;
        holding.assign(&set(&[]), false);
        advance(Duration::from_secs(5)).await;
        holding.assign(&set(&["a"]), true);
        assert!(!holding.has_surplus());
        advance(LONGEST).await;
        holding.assign(&set(&["a"]), true);
        assert!(holding.has("a"));
        holding.forget(|_| false);
        assert!(!holding.has("a"));
    }

    #[test]
    fn every_channel_is_held_by_its_copies() {
        let channels: Vec<Arc<str>> = (0..50).map(|n| format!("c{n}").into()).collect();
        let holders = |channel: &str| assignment::holders(channel, MEMBERS, 2);
        let all = MEMBERS.map(|own| assigned(own, &channels, holders));
        for channel in &channels {
            assert_eq!(all.iter().filter(|held| held.contains(channel)).count(), 2);
        }
    }

    #[test]
    fn a_member_that_lacks_a_channel_counts_as_none_of_its_holders() {
        let channels: Vec<Arc<str>> = (0..50).map(|n| format!("c{n}").into()).collect();
        let form = |member: &str, channel: &str| (member != "b" || channel.len() == 2).then_some(0);
        let holders = |channel: &str| {
            assignment::holders_of_forms(channel, MEMBERS, 2, |member| form(member, channel))
        };
        let held = |own| assigned(own, &channels, holders);
        let (a, b, c) = (held("a"), held("b"), held("c"));
        for channel in &channels {
            let holders = [&a, &b, &c].into_iter().filter(|held| held.contains(channel)).count();
            assert_eq!(holders, 2, "{channel}");
        }
        assert!(b.iter().all(|channel| channel.len() == 2));
    }
}
