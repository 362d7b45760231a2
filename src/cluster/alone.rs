//! A relay that becomes a member of a cluster, or is alone again. Alone, its sinks have cursors in its journal; as a
//! member it has one there for what it publishes ([`CURSOR`]). What was delivered in the one way is not to be delivered
//! once more in the other.
//!
//! | the relay | its journal has | |
//! |---|---|---|
//! | was never a member | no [`CURSOR`] | |
//! | is a member, or was one last | [`CURSOR`], and a mark with its place where it became one | the cursors of sinks stand still; a sink that came meanwhile has none |
//! | was a member, and is alone | [`CURSOR`], and a mark without a place | [`CURSOR`] stands still |
//!
//! Something is done only where the one becomes the other. A member of an earlier version has no mark. One that became
//! a member while its journal could not be opened has it when that can be ([`found_late`]).

use tracing::{info, warn};

use crate::{
    base::{clock, event::Seq},
    config::Start,
    journal::{Health, Journal, OUTBOX as CURSOR, StateElement},
};

/// Under this name the journal keeps the mark. No channel can have it: their labels have no dot.
const NAME: &str = "relay.cluster";
const MARK: &str = "joined";

/// What this relay was as a member.
struct Membership {
    /// Where it became one; `None`: that is not known.
    joined: Option<Seq>,
    /// Through where it has published.
    published: Seq,
}

/// This relay is a member now: it does not publish what a sink has had while the relay was alone.
pub(crate) fn joins<'s>(journal: &Journal, sinks: impl Iterator<Item = &'s str>) {
    let sinks: Vec<&str> = sinks.collect();
    if was_member(journal, &sinks).is_some() {
        return;
    }
    let cursors: Vec<(&str, Seq)> =
        sinks.iter().filter_map(|sink| Some((*sink, journal.cursor(sink)?))).collect();
    let delivered = cursors.iter().map(|(_, at)| *at).chain(journal.cursor(CURSOR)).max();
    let Some(at) = delivered.or_else(|| journal.register(CURSOR, Start::End).ok()) else { return };
    for (sink, _) in cursors.into_iter().filter(|(_, of_sink)| *of_sink < at) {
        warn!(
            sink,
            "what the sink had still to get while this relay was alone does not come through the cluster: only what no \
             sink has had does"
        );
    }
    journal.set_cursor(CURSOR, at);
    // Files that can be opened only later may have a mark, and that place is none in them: see `found_late`.
    if !matches!(journal.figures().health, Health::Degraded(_)) {
        set_mark(journal, Some(at));
    }
}

/// The journal's files could be opened only when this relay was a member; what stands in them was delivered or
/// published through `published`. Where they do not say that it was one before, it became one there. Blocks on the
/// disk.
pub(super) fn found_late(journal: &Journal, published: Seq) {
    let known = was_member(journal, &[]).and_then(|member| member.joined);
    if known.is_none() {
        set_mark(journal, Some(published));
    }
}

/// This relay is alone: its sinks get what it has received as a member and not published, and nothing that it has
/// published.
pub(crate) fn leaves<'s>(journal: &Journal, sinks: impl Iterator<Item = &'s str>) {
    let sinks: Vec<&str> = sinks.collect();
    let Some(Membership { joined, published }) = was_member(journal, &sinks) else { return };
    for sink in sinks {
        match journal.cursor(sink) {
            Some(at) if at < published && joined.is_none_or(|joined| at < joined) => warn!(
                sink,
                "the sink had still to get events from before this relay was a member of a cluster: it gets all that \
                 was received since, what the cluster has delivered too"
            ),
            _ => journal.set_cursor(sink, published),
        }
    }
    set_mark(journal, None);
    let (waiting, _) = journal.lag(CURSOR);
    info!(
        waiting,
        "this relay is no member of a cluster any more: what it had not published yet its own sinks deliver"
    );
}

/// Whether it was a member last. Blocks on the disk.
fn was_member(journal: &Journal, sinks: &[&str]) -> Option<Membership> {
    let published = journal.cursor(CURSOR)?;
    let kept = journal.stored_state().unwrap_or_else(|error| {
        warn!(%error, "where this relay became a member of a cluster cannot be read");
        Vec::new()
    });
    let mark = kept.into_iter().find(|kept| &*kept.channel == NAME && &*kept.element == MARK);
    match mark.and_then(|mark| serde_json::from_str::<Option<Seq>>(&mark.value?).ok()) {
        Some(None) => None,
        Some(joined) => Some(Membership { joined, published }),
        // Where a sink is further than what was published, the relay has been alone since.
        None => {
            let is_alone = sinks.iter().any(|sink| journal.cursor(sink) > Some(published));
            (!is_alone).then_some(Membership { joined: None, published })
        }
    }
}

/// The relay became a member there; `None`: it is alone.
fn set_mark(journal: &Journal, joined: Option<Seq>) {
    journal.store_state([StateElement {
        channel: NAME.into(),
        element: MARK.into(),
        value: serde_json::to_string(&joined).ok().map(Into::into),
        at: clock::now(),
    }]);
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::symlink,
        path::{Path, PathBuf},
        time::Duration,
    };

    use serde_json::json;
    use tempfile::TempDir;
    use tokio::time::timeout;

    use super::*;
    use crate::{base::event::own, config};

    const SINKS: [&str; 2] = ["home", "shop"];

    /// A relay with two sinks.
    struct Relay {
        journal: Journal,
        dir: TempDir,
    }

    fn open(dir: PathBuf) -> Journal {
        let min_free = config::Size(0);
        let config = config::Journal { dir, min_free, ..config::Journal::default() };
        Journal::open(&config).unwrap().0
    }

    /// Its disk comes, or goes.
    fn set_disk(dir: &Path, is_there: bool) {
        let new = dir.join("new");
        symlink(if is_there { "disk" } else { "nowhere" }, &new).unwrap();
        fs::rename(new, dir.join("link")).unwrap();
    }

    impl Relay {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("disk")).unwrap();
            set_disk(dir.path(), true);
            Self { journal: open(dir.path().join("link/journal")), dir }
        }

        /// It ends, and its journal is opened again, with its disk or without.
        fn restarts(&mut self, has_disk: bool) {
            self.journal.close();
            set_disk(self.dir.path(), has_disk);
            self.journal = open(self.dir.path().join("link/journal"));
        }

        /// Its disk comes while it runs.
        async fn finds_its_disk(&self) {
            set_disk(self.dir.path(), true);
            let mut health = self.journal.health();
            let sound = health.wait_for(|health| *health == Health::Sound);
            timeout(Duration::from_mins(1), sound).await.expect("it is opened").unwrap();
            if let Some(published) = self.journal.take_found_late() {
                found_late(&self.journal, published);
            }
        }

        /// One that was alone so far, and its sinks had so much of ten events.
        fn alone(home: Seq, shop: Seq) -> Self {
            let relay = Self::new();
            for sink in SINKS {
                relay.journal.register(sink, Start::Earliest).unwrap();
            }
            relay.receives(10);
            relay.journal.advance("home", home);
            relay.journal.advance("shop", shop);
            relay
        }

        fn receives(&self, events: usize) {
            let event = || own("channel.tips", &"main".into(), &"r".into(), &json!({}), 7);
            self.journal.append(&mut (0..events).map(|_| event()).collect());
        }

        fn publishes(&self, through: Seq) {
            self.journal.advance(CURSOR, through);
        }

        /// It starts as a member.
        fn joins(&self) {
            joins(&self.journal, SINKS.into_iter());
        }

        /// It starts alone.
        fn leaves(&self) {
            self.leaves_with(&SINKS);
        }

        fn leaves_with(&self, sinks: &[&str]) {
            leaves(&self.journal, sinks.iter().copied());
        }

        /// Where the sinks' cursors are, and that of what is published.
        fn cursors(&self) -> [Option<Seq>; 3] {
            ["home", "shop", CURSOR].map(|sink| self.journal.cursor(sink))
        }
    }

    impl Drop for Relay {
        fn drop(&mut self) {
            self.journal.close();
        }
    }

    #[test]
    fn a_relay_that_was_never_a_member_begins_where_its_sinks_begin() {
        let relay = Relay::new();
        relay.leaves();
        assert_eq!(relay.cursors(), [None, None, None]);
        relay.receives(10);
        relay.leaves();
        assert_eq!(relay.cursors(), [None, None, None]);
    }

    #[test]
    fn what_one_way_has_delivered_the_other_does_not_deliver_again() {
        let relay = Relay::alone(8, 8);
        // Two that no sink has had go into the log.
        relay.joins();
        assert_eq!(relay.cursors(), [Some(8), Some(8), Some(8)]);
        relay.publishes(10);
        relay.receives(10);
        relay.publishes(15);
        // A member that starts again is one as before.
        relay.joins();
        assert_eq!(relay.cursors(), [Some(8), Some(8), Some(15)]);
        // Five were not published.
        relay.leaves();
        assert_eq!(relay.cursors(), [Some(15), Some(15), Some(15)]);
        relay.receives(10);
        for sink in SINKS {
            relay.journal.advance(sink, 30);
        }
        relay.leaves();
        relay.joins();
        assert_eq!(relay.cursors(), [Some(30), Some(30), Some(30)]);
        relay.leaves();
        assert_eq!(relay.cursors(), [Some(30), Some(30), Some(30)]);
    }

    #[test]
    fn what_a_sink_had_still_to_get_when_the_relay_joined_it_gets_when_that_is_alone_again() {
        let relay = Relay::alone(10, 4);
        relay.joins();
        assert_eq!(relay.cursors(), [Some(10), Some(4), Some(10)]);
        relay.receives(10);
        relay.publishes(20);
        relay.leaves();
        assert_eq!(relay.cursors(), [Some(20), Some(4), Some(20)]);
        // It has not had them yet.
        relay.leaves();
        assert_eq!(relay.cursors(), [Some(20), Some(4), Some(20)]);
        relay.journal.advance("shop", 15);
        relay.leaves();
        assert_eq!(relay.cursors(), [Some(20), Some(15), Some(20)]);
        // The same once more.
        relay.joins();
        relay.receives(10);
        relay.publishes(30);
        relay.leaves();
        assert_eq!(relay.cursors(), [Some(30), Some(15), Some(30)]);
    }

    #[test]
    fn the_sinks_of_a_relay_that_was_always_a_member_begin_with_what_waits_when_it_is_alone() {
        let relay = Relay::new();
        relay.joins();
        relay.receives(10);
        relay.publishes(2);
        relay.joins();
        assert_eq!(relay.cursors(), [None, None, Some(2)]);
        relay.leaves();
        assert_eq!(relay.cursors(), [Some(2), Some(2), Some(2)]);
        // They have had two of the eight when it is a member again, and the log gets the others.
        for sink in SINKS {
            relay.journal.advance(sink, 4);
        }
        relay.joins();
        assert_eq!(relay.cursors(), [Some(4), Some(4), Some(4)]);
        relay.leaves();
        assert_eq!(relay.cursors(), [Some(4), Some(4), Some(4)]);
    }

    #[test]
    fn a_sink_that_a_member_got_begins_with_what_waits_when_the_relay_is_alone() {
        let relay = Relay::new();
        relay.journal.register("home", Start::Earliest).unwrap();
        relay.receives(10);
        relay.journal.advance("home", 10);
        relay.joins();
        relay.receives(10);
        // Even where nothing at all was published.
        relay.leaves();
        assert_eq!(relay.cursors(), [Some(10), Some(10), Some(10)]);
    }

    #[test]
    fn a_sink_that_came_while_the_relay_was_alone_gets_what_it_began_with() {
        for cursor in [4, 12] {
            let relay = Relay::new();
            relay.journal.register("home", Start::Earliest).unwrap();
            relay.receives(10);
            relay.journal.advance("home", 10);
            relay.joins();
            relay.receives(10);
            relay.publishes(20);
            relay.leaves_with(&["home"]);
            // Not where what was published ended: it begins at its own `start`.
            relay.journal.register("shop", Start::Earliest).unwrap();
            relay.journal.advance("shop", cursor);
            relay.leaves();
            assert_eq!(relay.cursors(), [Some(20), Some(cursor), Some(20)]);
        }
    }

    #[test]
    fn a_sink_that_is_new_while_the_relay_is_alone_begins_where_it_is_to_begin() {
        let relay = Relay::new();
        relay.joins();
        relay.receives(10);
        relay.publishes(10);
        relay.leaves_with(&["home"]);
        relay.receives(10);
        relay.leaves();
        assert_eq!(relay.cursors(), [Some(10), None, Some(10)]);
    }

    #[tokio::test]
    async fn a_member_that_starts_without_its_disk_became_one_where_its_journal_says() {
        let mut relay = Relay::alone(8, 8);
        relay.joins();
        relay.receives(10);
        relay.publishes(20);
        relay.restarts(false);
        relay.joins();
        relay.finds_its_disk().await;
        relay.receives(10);
        let last = relay.journal.figures().last;
        relay.publishes(last);
        relay.restarts(true);
        assert_eq!(relay.cursors(), [Some(8), Some(8), Some(last)]);
        // What was published its sinks do not deliver again.
        relay.leaves();
        assert_eq!(relay.cursors(), [Some(last), Some(last), Some(last)]);
    }

    #[tokio::test]
    async fn a_relay_that_becomes_a_member_without_its_disk_became_one_where_its_sinks_were() {
        for (had, was_a_member_once) in [(8, false), (10, false), (8, true), (10, true)] {
            let mut relay = Relay::alone(had, had);
            if was_a_member_once {
                relay.joins();
                relay.leaves();
            }
            relay.restarts(false);
            relay.joins();
            relay.finds_its_disk().await;
            // As the outbox does.
            let behind = (had < 10).then_some(had);
            assert_eq!(relay.journal.put_back(CURSOR), behind);
            relay.receives(10);
            let last = relay.journal.figures().last;
            relay.publishes(last);
            relay.restarts(true);
            relay.joins();
            assert_eq!(relay.cursors(), [Some(had), Some(had), Some(last)]);
            // What was published its sinks do not deliver again.
            relay.leaves();
            assert_eq!(relay.cursors(), [Some(last), Some(last), Some(last)]);
        }
    }

    #[test]
    fn a_journal_of_a_member_of_an_earlier_version_is_one_of_a_member() {
        // It has no mark.
        let member = |relay: Relay| {
            relay.journal.set_cursor(CURSOR, 9);
            relay
        };
        let born = member(Relay::new());
        born.receives(10);
        born.joins();
        assert_eq!(born.cursors(), [None, None, Some(9)]);
        born.leaves();
        assert_eq!(born.cursors(), [Some(9), Some(9), Some(9)]);
        let joined = member(Relay::alone(8, 8));
        joined.leaves();
        assert_eq!(joined.cursors(), [Some(8), Some(8), Some(9)], "it is not known where");
        // It was alone last.
        let alone = member(Relay::alone(10, 8));
        alone.leaves();
        assert_eq!(alone.cursors(), [Some(10), Some(8), Some(9)]);
        alone.joins();
        assert_eq!(alone.cursors(), [Some(10), Some(8), Some(10)]);
    }
}
