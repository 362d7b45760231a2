//! What this member knows of the others and of the sinks' leases, from the bucket of leases. Pure.
//!
//! A key that the server forgets is not announced. So a member counts as dead when its key was not renewed
//! for a lease time, measured against the renewals that were seen since: while nothing is seen at all, our
//! own renewals among it, nobody is declared dead.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::base::clock::{Moment, UnixMillis};

/// What the key of a member begins with.
pub(super) const MEMBER: &str = "member.";

/// What the key of a sink's lease begins with.
pub(super) const SINK: &str = "sink.";

/// What a member says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct Member {
    pub version: String,
    /// This start of it: two members of one name differ in it.
    pub run: String,
    pub started: UnixMillis,
    /// Its wall clock when it said so.
    pub clock: UnixMillis,
    /// It leaves: others take over.
    pub draining: bool,
    /// The members that it sees, as [`View::set`].
    pub set: u64,
    /// Whether all that it has to subscribe to for that set stands.
    pub stands: bool,
    /// What it is configured with: a digest of channels and sinks.
    pub config: u64,
    /// Channels that it holds.
    pub channels: usize,
    /// Events of its journal that are not in the log yet.
    pub waiting: u64,
    /// Events that it published and the log did not have.
    pub stored: u64,
    /// Those that the log recognised as copies.
    pub duplicates: u64,
    /// It has seen that copies are never recognised, and holds each channel once.
    pub single: bool,
}

/// What the holder of a sink's lease says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct Holder {
    pub member: String,
    pub run: String,
    /// Since when it has driven the sink, by its wall clock.
    pub since: UnixMillis,
}

/// A value, and when it was seen.
#[derive(Debug, Clone)]
struct Observed<T> {
    value: T,
    at: Moment,
    /// When it was stored, by the servers' clock.
    stored: UnixMillis,
}

#[derive(Debug, Clone)]
pub struct View {
    own: Arc<str>,
    run: Arc<str>,
    lease: Duration,
    members: BTreeMap<String, Observed<Member>>,
    /// Members that have left in order, and when.
    left: BTreeMap<String, Moment>,
    sinks: BTreeMap<String, Observed<Holder>>,
    /// When our own key was seen last.
    own_seen: Option<Moment>,
    /// Another run that uses our name, and when it was seen.
    namesake: Option<Moment>,
}

impl View {
    pub fn new(own: Arc<str>, run: Arc<str>, lease: Duration) -> Self {
        Self {
            own,
            run,
            lease,
            members: BTreeMap::new(),
            left: BTreeMap::new(),
            sinks: BTreeMap::new(),
            own_seen: None,
            namesake: None,
        }
    }

    /// A key has this value now; `stored`: since when, by the servers' clock.
    pub fn put(&mut self, key: &str, value: &[u8], stored: UnixMillis, at: Moment) {
        if let Some(name) = key.strip_prefix(MEMBER) {
            let Ok(member) = serde_json::from_slice::<Member>(value) else { return };
            if name == &*self.own {
                if member.run == *self.run {
                    if self.own_seen.is_some_and(|before| at.since(before) > self.lease) {
                        // Nothing was seen for that long, of the others neither: they are given time.
                        self.members.values_mut().for_each(|seen| seen.at = at);
                    }
                    if self.own_seen.is_none() {
                        // What was there before us is as old as the server says. A server whose clock is
                        // wrong does no harm: it alone decides whether a lease is free.
                        for seen in self.sinks.values_mut() {
                            let age = Duration::from_millis(stored.saturating_sub(seen.stored));
                            seen.at = seen.at.before(age);
                        }
                    }
                    self.own_seen = Some(at);
                } else if self.own_seen.is_some() {
                    // What a run before this one has left is no other member.
                    self.namesake = Some(at);
                }
            }
            self.left.remove(name);
            self.members.insert(name.to_owned(), Observed { value: member, at, stored });
        } else if let Some(name) = key.strip_prefix(SINK)
            && let Ok(holder) = serde_json::from_slice::<Holder>(value)
        {
            self.sinks.insert(name.to_owned(), Observed { value: holder, at, stored });
        }
    }

    /// A key was deleted.
    pub fn removed(&mut self, key: &str) {
        if let Some(name) = key.strip_prefix(MEMBER) {
            self.members.remove(name);
            self.left.insert(name.to_owned(), Moment::now());
        } else if let Some(name) = key.strip_prefix(SINK) {
            self.sinks.remove(name);
        }
    }

    /// Whether our own key was seen: then what is known of the others is what is there.
    pub fn is_known(&self) -> bool {
        self.own_seen.is_some()
    }

    /// How long ago our own key was seen.
    pub fn own_seen(&self) -> Option<Duration> {
        self.own_seen.map(Moment::elapsed)
    }

    /// Whether it was renewed within the lease time, as far as renewals are seen at all.
    fn is_alive(&self, seen: &Observed<Member>) -> bool {
        self.own_seen.is_none_or(|own| own.since(seen.at) <= self.lease)
    }

    /// The members that are alive, ourselves always among them as we last were.
    pub fn alive(&self) -> impl Iterator<Item = (&str, &Member)> {
        let alive = |(name, seen): &(&String, &Observed<Member>)| {
            name.as_str() == &*self.own || self.is_alive(seen)
        };
        self.members.iter().filter(alive).map(|(name, seen)| (name.as_str(), &seen.value))
    }

    fn other_takers(&self) -> impl Iterator<Item = (&str, &Member)> {
        self.alive().filter(|(name, member)| *name != &*self.own && !member.draining)
    }

    /// The members that take channels and sinks: alive and not leaving. `draining`: whether we are.
    pub fn takers(&self, draining: bool) -> BTreeSet<&str> {
        let mut takers: BTreeSet<&str> = self.other_takers().map(|(name, _)| name).collect();
        if !draining {
            takers.insert(&self.own);
        }
        takers
    }

    /// A digest of the takers: members that see the same have the same.
    pub fn set(takers: &BTreeSet<&str>) -> u64 {
        // JSON readers take numbers up to 2^53 for certain.
        takers.iter().fold(0, |seed, name| xxh3_64_with_seed(name.as_bytes(), seed)) >> 12
    }

    /// Whether all others that take part say that for this set all of theirs stands.
    pub fn others_stand(&self, set: u64) -> bool {
        self.other_takers().all(|(_, member)| member.set == set && member.stands)
    }

    /// Whether another that takes part holds channels.
    pub fn others_hold(&self) -> bool {
        self.other_takers().any(|(_, member)| member.channels > 0)
    }

    /// Members that have not said that they leave, and are not alive: for how long nothing was heard of them.
    pub fn gone(&self) -> impl Iterator<Item = (&str, Duration)> {
        let dead = |(name, seen): &(&String, &Observed<Member>)| {
            name.as_str() != &*self.own && !self.is_alive(seen)
        };
        self.members.iter().filter(dead).map(|(name, seen)| (name.as_str(), seen.at.elapsed()))
    }

    /// All members that were heard of lately, dead ones among them.
    pub fn known(&self) -> impl Iterator<Item = &str> {
        self.members.keys().map(String::as_str)
    }

    /// When a member was heard of last.
    pub fn heard(&self, member: &str) -> Option<Moment> {
        let left = || self.left.get(member).copied();
        self.members.get(member).map(|seen| seen.at).or_else(left)
    }

    /// Who drives a sink, as far as the lease is seen to be alive.
    pub fn holder(&self, sink: &str) -> Option<&Holder> {
        let seen = self.sinks.get(sink).filter(|seen| seen.at.elapsed() <= self.lease)?;
        Some(&seen.value)
    }

    /// The sinks that have a living lease, and who has it.
    pub fn holders(&self) -> impl Iterator<Item = (&str, &Holder)> {
        let alive = self.sinks.iter().filter(|(_, seen)| seen.at.elapsed() <= self.lease);
        alive.map(|(name, seen)| (name.as_str(), &seen.value))
    }

    /// Whether another relay has used our name lately.
    pub fn has_namesake(&self) -> bool {
        self.namesake.is_some_and(|at| at.elapsed() <= self.lease * 3)
    }

    /// Forgets what has been dead for long.
    pub fn tidy_up(&mut self) {
        let (own, lease) = (self.own_seen, self.lease);
        let is_recent = |at: Moment| own.is_none_or(|own| own.since(at) <= lease * 20);
        self.members.retain(|_, seen| is_recent(seen.at));
        self.left.retain(|_, at| is_recent(*at));
        self.sinks.retain(|_, seen| is_recent(seen.at));
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const LEASE: Duration = Duration::from_secs(10);

    fn view() -> View {
        View::new("a".into(), "run-a".into(), LEASE)
    }

    fn says(view: &mut View, name: &str, change: impl FnOnce(&mut Member)) {
        let mut member = Member { run: format!("run-{name}"), ..Member::default() };
        change(&mut member);
        let value = serde_json::to_vec(&member).unwrap();
        view.put(&format!("member.{name}"), &value, 0, Moment::now());
    }

    fn takers(view: &View) -> Vec<&str> {
        view.takers(false).into_iter().collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_that_renews_no_more_is_dead_after_the_lease() {
        let mut view = view();
        for name in ["a", "b", "c"] {
            says(&mut view, name, |_| {});
        }
        advance(LEASE).await;
        says(&mut view, "a", |_| {});
        says(&mut view, "b", |_| {});
        assert_eq!(takers(&view), ["a", "b", "c"]);
        advance(Duration::from_secs(1)).await;
        says(&mut view, "a", |_| {});
        assert_eq!(takers(&view), ["a", "b"]);
        assert!(view.heard("c").is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn while_nothing_is_seen_nobody_is_declared_dead() {
        let mut view = view();
        for name in ["a", "b"] {
            says(&mut view, name, |_| {});
        }
        advance(LEASE * 10).await;
        assert_eq!(takers(&view), ["a", "b"], "our own renewals do not come either");
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_silence_the_others_are_given_time() {
        let mut view = view();
        for name in ["a", "b", "c"] {
            says(&mut view, name, |_| {});
        }
        advance(LEASE * 6).await;
        says(&mut view, "a", |_| {});
        assert_eq!(takers(&view), ["a", "b", "c"]);
        advance(LEASE / 2).await;
        says(&mut view, "a", |_| {});
        says(&mut view, "b", |_| {});
        advance(LEASE / 2 + Duration::from_secs(1)).await;
        says(&mut view, "a", |_| {});
        assert_eq!(takers(&view), ["a", "b"]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_leaves_takes_nothing_and_still_lives() {
        let mut view = view();
        says(&mut view, "a", |_| {});
        says(&mut view, "b", |member| member.draining = true);
        assert_eq!(takers(&view), ["a"]);
        assert_eq!(view.alive().count(), 2);
        assert_eq!(view.takers(true), BTreeSet::new());
        assert!(view.others_stand(1));
    }

    #[tokio::test(start_paused = true)]
    async fn others_that_hold_channels_are_alive_and_stay() {
        let mut view = view();
        says(&mut view, "a", |member| member.channels = 3);
        says(&mut view, "b", |_| {});
        says(&mut view, "c", |member| (member.channels, member.draining) = (3, true));
        assert!(!view.others_hold());
        says(&mut view, "d", |member| member.channels = 3);
        assert!(view.others_hold());
        advance(LEASE + Duration::from_secs(1)).await;
        assert!(view.others_hold(), "nothing was heard of anybody");
        says(&mut view, "b", |_| {});
        says(&mut view, "a", |_| {});
        assert!(view.others_hold(), "after a silence they are given time");
        advance(LEASE + Duration::from_secs(1)).await;
        view.own_seen = Some(Moment::now());
        assert!(!view.others_hold());
    }

    #[tokio::test(start_paused = true)]
    async fn members_that_are_gone_are_named_and_forgotten_after_twenty_leases() {
        let mut view = view();
        assert!(view.own_seen().is_none() && view.alive().next().is_none());
        says(&mut view, "a", |_| {});
        says(&mut view, "b", |_| {});
        let at = Moment::now();
        assert_eq!(view.heard("b"), Some(at));
        advance(LEASE / 2).await;
        assert_eq!(view.own_seen(), Some(LEASE / 2));
        says(&mut view, "a", |_| {});
        advance(LEASE / 2).await;
        says(&mut view, "a", |_| {});
        assert!(view.alive().count() == 2 && view.gone().next().is_none());
        advance(LEASE / 2).await;
        says(&mut view, "a", |_| {});
        assert_eq!(view.alive().count(), 1);
        assert!(view.gone().eq([("b", LEASE * 3 / 2)]));
        for _ in 0..37 {
            advance(LEASE / 2).await;
            says(&mut view, "a", |_| {});
        }
        view.tidy_up();
        assert!(view.gone().eq([("b", LEASE * 20)]), "it is not forgotten yet");
        advance(LEASE / 2).await;
        says(&mut view, "a", |_| {});
        view.tidy_up();
        assert_eq!((view.gone().next(), view.heard("b")), (None, None));
        assert_eq!(takers(&view), ["a"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_that_is_deleted_is_no_longer_there() {
        let mut view = view();
        says(&mut view, "a", |_| {});
        says(&mut view, "b", |_| {});
        view.removed("member.b");
        assert_eq!(takers(&view), ["a"]);
        // That it left was the last that was received of it.
        advance(Duration::from_secs(1)).await;
        assert_eq!(view.heard("b").map(Moment::elapsed), Some(Duration::from_secs(1)));
        advance(LEASE * 20).await;
        says(&mut view, "a", |_| {});
        view.tidy_up();
        assert_eq!(view.heard("b"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sink_has_a_holder_while_its_lease_is_renewed() {
        let mut view = view();
        says(&mut view, "a", |_| {});
        let holder = Holder { member: "b".into(), run: "run-b".into(), since: 5 };
        let value = serde_json::to_vec(&holder).unwrap();
        view.put("sink.home", &value, 0, Moment::now());
        view.put("other.home", &value, 0, Moment::now());
        view.put("sink.shop", b"no JSON", 0, Moment::now());
        advance(LEASE).await;
        assert_eq!(view.holder("home"), Some(&holder));
        assert!(view.holders().eq([("home", &holder)]));
        assert_eq!(view.holder("shop"), None);
        advance(Duration::from_secs(1)).await;
        assert_eq!(view.holder("home"), None);
        assert_eq!(view.holders().count(), 0);
        view.put("sink.home", &value, 0, Moment::now());
        assert_eq!(view.holder("home"), Some(&holder));
        view.removed("sink.home");
        assert_eq!(view.holder("home"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_was_there_before_us_is_as_old_as_the_server_says() {
        let mut view = view();
        let value = serde_json::to_vec(&Holder::default()).unwrap();
        let own = serde_json::to_vec(&Member { run: "run-a".into(), ..Member::default() }).unwrap();
        advance(LEASE * 2).await;
        for (sink, stored) in [("old", 91_000), ("young", 99_000), ("ahead", 101_000)] {
            view.put(&format!("sink.{sink}"), &value, stored, Moment::now());
        }
        view.put("member.a", &own, 100_000, Moment::now());
        advance(Duration::from_secs(2)).await;
        let held = |view: &View| ["old", "young", "ahead"].map(|sink| view.holder(sink).is_some());
        assert_eq!(held(&view), [false, true, true]);
        // Only once: what comes later is seen when it comes.
        view.put("sink.old", &value, 91_000, Moment::now());
        view.put("member.a", &own, 102_000, Moment::now());
        assert_eq!(held(&view), [true, true, true]);
    }

    #[tokio::test(start_paused = true)]
    async fn leases_of_sinks_are_forgotten_after_twenty_lease_times() {
        let mut view = view();
        says(&mut view, "a", |_| {});
        let value = serde_json::to_vec(&Holder::default()).unwrap();
        view.put("sink.home", &value, 0, Moment::now());
        for (passes, there) in [(LEASE * 20, true), (Duration::from_secs(1), false)] {
            advance(passes).await;
            says(&mut view, "a", |_| {});
            view.tidy_up();
            assert_eq!(view.sinks.contains_key("home"), there);
        }
    }

    #[test]
    fn another_set_of_members_has_another_digest() {
        let sets = [vec![], vec!["a"], vec!["b"], vec!["a", "b"], vec!["ab"]];
        let digests = sets.map(|names| View::set(&names.into_iter().collect()));
        assert_eq!(digests.iter().collect::<BTreeSet<_>>().len(), digests.len());
    }

    #[tokio::test(start_paused = true)]
    async fn all_must_stand_for_the_same_set() {
        let mut view = view();
        says(&mut view, "a", |_| {});
        let set = View::set(&["a", "b"].into());
        says(&mut view, "b", |member| member.stands = true);
        assert!(!view.others_stand(set));
        says(&mut view, "b", |member| (member.set, member.stands) = (set, false));
        assert!(!view.others_stand(set));
        says(&mut view, "b", |member| (member.set, member.stands) = (set, true));
        assert!(view.others_stand(set));
        assert!(set < 1 << 53);
    }

    #[tokio::test(start_paused = true)]
    async fn another_of_our_name_is_noticed_and_an_earlier_run_is_none() {
        let mut view = view();
        says(&mut view, "a", |member| member.run = "before".into());
        assert!(!view.is_known() && !view.has_namesake());
        says(&mut view, "a", |_| {});
        assert!(view.is_known() && !view.has_namesake());
        says(&mut view, "a", |member| member.run = "other".into());
        assert!(view.has_namesake());
        advance(LEASE * 3).await;
        assert!(view.has_namesake());
        advance(Duration::from_secs(1)).await;
        assert!(!view.has_namesake());
    }
}
