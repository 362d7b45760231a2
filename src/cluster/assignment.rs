//! Which members hold a channel, and which member should drive a sink: rendezvous hashing.
//!
//! Each member has a weight for each name; the heaviest have it. So everybody who sees the same members
//! computes the same, and a member that joins or leaves moves only what it takes or had. The hash is XXH3,
//! whose values never change: members of different versions agree.

use std::collections::BTreeMap;

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The weight of a member for a name.
fn weight(name: &str, member: &str) -> u64 {
    xxh3_64_with_seed(name.as_bytes(), xxh3_64_with_seed(member.as_bytes(), 0))
}

/// The members in the order in which they have that name, heaviest first.
fn ranked<'m>(name: &str, members: impl IntoIterator<Item = &'m str>) -> Vec<&'m str> {
    let mut ranked: Vec<_> =
        members.into_iter().map(|member| (weight(name, member), member)).collect();
    // Two weights that are the same are told apart by name.
    ranked.sort_unstable_by(|one, other| other.cmp(one));
    ranked.dedup();
    ranked.into_iter().map(|(_, member)| member).collect()
}

/// The holders of a channel, the first one first: `copies` of them, or all where there are fewer.
pub fn holders<'m>(
    channel: &str,
    members: impl IntoIterator<Item = &'m str>,
    copies: usize,
) -> Vec<&'m str> {
    let mut holders = ranked(channel, members);
    holders.truncate(copies.max(1));
    holders
}

/// The same where members may have the channel in different forms, or not at all (`None`): `copies` of them for
/// each form.
pub(super) fn holders_of_forms<'m>(
    channel: &str,
    members: impl IntoIterator<Item = &'m str>,
    copies: usize,
    form: impl Fn(&str) -> Option<u32>,
) -> Vec<&'m str> {
    let mut found: BTreeMap<u32, usize> = BTreeMap::new();
    let mut holders = ranked(channel, members);
    holders.retain(|member| {
        let Some(form) = form(member) else { return false };
        let count = found.entry(form).or_default();
        *count += 1;
        *count <= copies.max(1)
    });
    holders
}

/// The member that should drive a sink; `None` where there is none.
pub fn driver<'m>(sink: &str, members: impl IntoIterator<Item = &'m str>) -> Option<&'m str> {
    ranked(&format!("sink.{sink}"), members).into_iter().next()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn members(count: usize) -> Vec<String> {
        (0..count).map(|n| format!("relay-{n}")).collect()
    }

    fn held<'m>(channel: &str, members: &'m [String], copies: usize) -> Vec<&'m str> {
        holders(channel, members.iter().map(String::as_str), copies)
    }

    /// Members of two versions must agree.
    #[test]
    fn the_assignment_stays() {
        let members = members(4);
        let of = |channel| held(channel, &members, 2);
        let found = [of("main"), of("shop"), of("a")];
        let found: Vec<String> = found.iter().map(|holders| holders.join(" ")).collect();
        assert_eq!(found, ["relay-1 relay-0", "relay-2 relay-0", "relay-3 relay-1"]);
        let of = |sink| driver(sink, members.iter().map(String::as_str)).unwrap();
        let found = ["home", "tips", "shop", "bus"].map(of);
        assert_eq!(found, ["relay-1", "relay-3", "relay-2", "relay-0"]);
    }

    #[test]
    fn a_member_that_is_named_twice_is_one() {
        let named = ["relay-1", "relay-0", "relay-1"];
        assert_eq!(holders("main", named, 2), ["relay-1", "relay-0"]);
    }

    #[test]
    fn a_channel_has_a_holder_even_if_no_copy_is_asked_for() {
        assert_eq!(held("main", &members(4), 0), ["relay-1"]);
    }

    #[test]
    fn each_form_of_a_channel_has_its_copies() {
        let members = members(6);
        let all = || members.iter().map(String::as_str);
        let of = |form: &dyn Fn(&str) -> Option<u32>| holders_of_forms("main", all(), 2, form);
        assert_eq!(of(&|_| Some(7)), holders("main", all(), 2));
        let is_odd = |member: &str| member.ends_with(['1', '3', '5']);
        let found = of(&|member| Some(u32::from(is_odd(member))));
        let (odd, even): (Vec<&str>, Vec<&str>) =
            found.iter().copied().partition(|name| is_odd(name));
        assert_eq!(odd, holders("main", all().filter(|name| is_odd(name)), 2));
        assert_eq!(even, holders("main", all().filter(|name| !is_odd(name)), 2));
        assert_eq!(found.first(), holders("main", all(), 1).first());
        assert_eq!(of(&|member| is_odd(member).then_some(7)), odd);
        assert_eq!(of(&|_| None), [""; 0]);
    }

    proptest! {
        #[test]
        fn every_channel_has_its_copies(
            names in prop::collection::btree_set("[a-z]{1,6}", 0..8), channel in "[a-z0-9_-]{1,12}", copies in 1usize..5,
        ) {
            let names: Vec<String> = names.into_iter().collect();
            let found = held(&channel, &names, copies);
            prop_assert_eq!(found.len(), copies.min(names.len()));
            prop_assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), found.len());
        }

        #[test]
        fn who_sees_the_same_members_computes_the_same(
            names in prop::collection::vec("[a-z]{1,6}", 0..8), channel in "[a-z]{1,12}", copies in 1usize..5, seed: u64,
        ) {
            let mut shuffled = names.clone();
            fastrand::Rng::with_seed(seed).shuffle(&mut shuffled);
            prop_assert_eq!(held(&channel, &names, copies), held(&channel, &shuffled, copies));
        }

        #[test]
        fn a_member_that_leaves_takes_nothing_from_the_others(
            names in prop::collection::btree_set("[a-z]{1,6}", 2..8), channel in "[a-z]{1,12}", copies in 1usize..4, gone: prop::sample::Index,
        ) {
            let all: Vec<String> = names.into_iter().collect();
            let left = &all[gone.index(all.len())];
            let rest: Vec<String> = all.iter().filter(|name| *name != left).cloned().collect();
            let before = held(&channel, &all, copies);
            let after = held(&channel, &rest, copies);
            // The others that had it have it still, in their order; where it had none, nothing changes.
            let stayed: Vec<_> = before.iter().filter(|name| **name != left.as_str()).copied().collect();
            prop_assert!(after.starts_with(&stayed), "{before:?} {after:?}");
            prop_assert!(after.len() <= stayed.len() + 1);
        }
    }

    #[test]
    fn a_join_moves_no_more_than_its_share() {
        let (channels, copies) = (3000, 2);
        for count in 2..6 {
            let (before, after) = (members(count), members(count + 1));
            let mut moved = 0;
            for channel in 0..channels {
                let channel = format!("channel-{channel}");
                let old = held(&channel, &before, copies);
                let new = held(&channel, &after, copies);
                moved += new.iter().filter(|name| !old.contains(name)).count();
            }
            // Its share is copies / members of the channels; the hash may be a tenth off.
            let share = channels * copies / (count + 1);
            assert!(moved <= share + share / 10, "{moved} of {share}");
            assert!(moved >= share - share / 10, "{moved} of {share}");
        }
    }

    #[test]
    fn sinks_are_spread_too() {
        let members = members(3);
        let drivers: BTreeSet<_> = (0..30)
            .filter_map(|n| driver(&format!("sink-{n}"), members.iter().map(String::as_str)))
            .collect();
        assert_eq!(drivers.len(), 3);
        assert_eq!(driver("any", []), None);
    }
}
