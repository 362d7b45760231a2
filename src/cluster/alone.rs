//! A relay that becomes a member of a cluster, or is alone again. Alone, its sinks have cursors in its journal; as a
//! member it has one there for what it publishes ([`CURSOR`]). Each stands still while the other counts: what was
//! delivered in the one way is not to be delivered once more in the other.

use tracing::{info, warn};

use super::outbox::CURSOR;
use crate::{base::event::Seq, journal::Journal};

/// Where this relay became a member last.
pub(crate) const JOINED: &str = "relay.joined";

/// This relay is a member now: it does not publish what a sink has had while the relay was alone.
pub(crate) fn joins<'s>(journal: &Journal, sinks: impl Iterator<Item = &'s str>) {
    let cursors: Vec<(&str, Seq)> =
        sinks.filter_map(|sink| Some((sink, journal.cursor(sink)?))).collect();
    let Some(delivered) = cursors.iter().map(|(_, at)| *at).max() else { return };
    if journal.cursor(CURSOR).is_some_and(|at| at >= delivered) {
        return;
    }
    for (sink, _) in cursors.into_iter().filter(|(_, at)| *at < delivered) {
        warn!(
            sink,
            "what the sink had still to get while this relay was alone does not come through the cluster: only what no \
             sink has had does"
        );
    }
    journal.set_cursor(CURSOR, delivered);
    journal.set_cursor(JOINED, delivered);
    // It holds nothing back.
    journal.unregister(JOINED);
}

/// This relay is alone: its sinks do not get what it has published as a member.
pub(crate) fn leaves<'s>(journal: &Journal, sinks: impl Iterator<Item = &'s str>) {
    let Some(published) = journal.cursor(CURSOR) else { return };
    let joined = journal.cursor(JOINED);
    let mut has_left = false;
    for sink in sinks {
        let Some(at) = journal.cursor(sink).filter(|at| *at < published) else { continue };
        if joined.is_some_and(|joined| at >= joined) {
            journal.set_cursor(sink, published);
            has_left = true;
        } else {
            warn!(
                sink,
                "the sink had still to get events from before this relay was a member of a cluster: it gets all that \
                 was received since, what the cluster has delivered too"
            );
        }
    }
    if has_left {
        let (waiting, _) = journal.lag(CURSOR);
        info!(
            waiting,
            "this relay is no member of a cluster any more: what it had not published yet its own sinks deliver"
        );
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{base::event::own, config::Start};

    const SINKS: [&str; 2] = ["home", "shop"];

    fn receives(journal: &Journal, events: usize) {
        let event = || own("channel.tips", &"main".into(), &"r".into(), &json!({}), 7);
        journal.append(&mut (0..events).map(|_| event()).collect());
    }

    /// Where the sinks' cursors are, and that of what is published.
    fn cursors(journal: &Journal) -> [Option<Seq>; 3] {
        ["home", "shop", CURSOR].map(|sink| journal.cursor(sink))
    }

    #[test]
    fn what_one_way_has_delivered_the_other_does_not_deliver_again() {
        let journal = Journal::in_memory(1024 * 1024);
        let (join, leave) =
            (|| joins(&journal, SINKS.into_iter()), || leaves(&journal, SINKS.into_iter()));
        leave();
        join();
        assert_eq!(cursors(&journal), [None, None, None], "it is new");
        for sink in SINKS {
            journal.register(sink, Start::Earliest).unwrap();
        }
        receives(&journal, 10);
        for sink in SINKS {
            journal.advance(sink, 8);
        }
        // Two that no sink has had go into the log.
        join();
        assert_eq!(cursors(&journal), [Some(8), Some(8), Some(8)]);
        journal.advance(CURSOR, 10);
        receives(&journal, 10);
        journal.advance(CURSOR, 15);
        // A member that starts again is one as before.
        join();
        assert_eq!(cursors(&journal), [Some(8), Some(8), Some(15)]);
        // Five were not published.
        leave();
        assert_eq!(cursors(&journal), [Some(15), Some(15), Some(15)]);
        receives(&journal, 10);
        for sink in SINKS {
            journal.advance(sink, 30);
        }
        leave();
        join();
        assert_eq!(cursors(&journal), [Some(30), Some(30), Some(30)]);
        leave();
        assert_eq!(cursors(&journal), [Some(30), Some(30), Some(30)]);
    }

    #[test]
    fn what_a_sink_had_still_to_get_when_the_relay_joined_it_gets_when_that_is_alone_again() {
        let journal = Journal::in_memory(1024 * 1024);
        for sink in SINKS {
            journal.register(sink, Start::Earliest).unwrap();
        }
        receives(&journal, 10);
        journal.advance("home", 10);
        journal.advance("shop", 4);
        joins(&journal, SINKS.into_iter());
        assert_eq!(cursors(&journal), [Some(10), Some(4), Some(10)]);
        receives(&journal, 10);
        journal.advance(CURSOR, 20);
        leaves(&journal, SINKS.into_iter());
        assert_eq!(cursors(&journal), [Some(20), Some(4), Some(20)]);
    }
}
