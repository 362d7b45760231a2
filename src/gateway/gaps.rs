//! What is missing, since when, and what is told of it when it is over.
//!
//! A gap is measured by a [`Moment`]: a step of the wall clock makes none and hides none, and the time
//! that the machine slept counts. Only the time in which the relay did not run has nothing but the wall
//! clock's word for its beginning, and that clock may have been wrong then or be wrong now: so its end
//! is checked against the time that the gateway says, and its report says by which clock it is told.
//!
//! What is missing outlives a gateway that fails; over a restart the journal remembers its beginning.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    astro::session::Subscription,
    base::clock::{self, Moment, UnixMillis},
};

/// Our clock is wrong where it differs by more from the gateway's.
const CLOCK_IS_WRONG: Duration = Duration::from_mins(1);

/// The channels of which something is missing.
#[derive(Debug, Default)]
pub struct Gaps {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    open: HashMap<Arc<str>, Outage>,
    /// What the gateway's clock said, and when.
    server: Option<(UnixMillis, Moment)>,
    /// What the gateway's clock said last before the relay was started.
    heard_before: Option<UnixMillis>,
}

/// Since when something is missing.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Since {
    /// So long before a moment of this process.
    Moment(Moment, Duration),
    /// Before it began: what the wall clock said then.
    Before(UnixMillis),
}

impl Since {
    /// How long that is, as far as the wall clock tells.
    fn time(self) -> Duration {
        match self {
            Self::Moment(moment, before) => moment.elapsed() + before,
            Self::Before(at) => Duration::from_millis(clock::now().saturating_sub(at)),
        }
    }

    /// What was before this process is the earlier one, whatever the clock says.
    fn earlier(self, other: Self) -> Self {
        match (self, other) {
            (Self::Moment(..), Self::Before(_)) => other,
            (Self::Before(_), Self::Moment(..)) => self,
            _ if other.time() > self.time() => other,
            _ => self,
        }
    }
}

/// A channel's time without a connection.
#[derive(Debug)]
pub(crate) struct Outage {
    since: Since,
    pub(crate) cause: String,
    pub(crate) room: Arc<str>,
    /// What stood before, and what has become of it since.
    fates: HashMap<Arc<Subscription>, Fate>,
}

/// What has become of a subscription after an outage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Not yet answered again.
    Missing,
    /// It stands again.
    Restored,
    /// It was refused, left out, or is no longer wanted.
    Gone,
}

/// From when to when something was missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) from: UnixMillis,
    /// Never before `from`.
    pub(crate) to: UnixMillis,
    clock: Clock,
}

/// By which clock a gap is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Clock {
    Ours,
    /// Ours is wrong, or was.
    Gateway,
    /// Ours is behind the beginning, and the gateway says no time: when it ended is not known.
    Unknown,
}

/// A channel's gap that is over.
pub(crate) type Over = (Arc<str>, Outage);

impl Outage {
    /// Whether nothing is missing any more.
    fn is_over(&self) -> bool {
        self.fates.values().all(|fate| *fate != Fate::Missing)
    }

    /// What is told of it.
    pub(crate) fn report(&self, channel: &str, bounds: &Bounds) -> Value {
        let mut concerned: Vec<_> = self.fates.iter().collect();
        concerned.sort_by_key(|(subscription, _)| &subscription.topic);
        let subscriptions: Vec<_> = concerned
            .into_iter()
            .map(|(subscription, fate)| {
                json!({
                    "topic": &*subscription.topic,
                    "room": subscription.room.as_deref().unwrap_or(&self.room),
                    "restored": *fate == Fate::Restored,
                })
            })
            .collect();
        let mut report = json!({
            "from": clock::rfc3339(bounds.from),
            "to": clock::rfc3339(bounds.to),
            "seconds": bounds.seconds(),
            "cause": self.cause,
            "channel": channel,
            "subscriptions": subscriptions,
        });
        let clock = match bounds.clock {
            Clock::Ours => None,
            Clock::Gateway => Some("gateway"),
            Clock::Unknown => Some("unknown"),
        };
        if let (Some(report), Some(clock)) = (report.as_object_mut(), clock) {
            report.insert("clock".into(), clock.into());
        }
        report
    }
}

impl Bounds {
    pub(crate) fn seconds(&self) -> f64 {
        Duration::from_millis(self.to.saturating_sub(self.from)).as_secs_f64()
    }
}

impl Gaps {
    /// What is locked here is changed in small whole steps: a panic elsewhere leaves it usable.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The gateway says what time it is.
    pub(crate) fn note_time(&self, said: UnixMillis) {
        self.lock().server = Some((said, Moment::now()));
    }

    /// What it said last to a relay before this one.
    pub(crate) fn heard_before(&self, said: Option<UnixMillis>) {
        self.lock().heard_before = said;
    }

    /// These are missing, with the room of each where it is known.
    pub(crate) fn missing<'a>(
        &self,
        subscriptions: impl Iterator<Item = (&'a Arc<Subscription>, Option<Arc<str>>)>,
        since: Since,
        cause: &str,
    ) {
        let mut state = self.lock();
        for (subscription, room) in subscriptions {
            let room = room.or_else(|| subscription.room.clone()).unwrap_or_else(|| "".into());
            let outage = state.open.entry(Arc::clone(&subscription.channel)).or_insert_with(|| {
                Outage { since, cause: cause.to_owned(), room, fates: HashMap::new() }
            });
            outage.since = outage.since.earlier(since);
            outage.fates.insert(Arc::clone(subscription), Fate::Missing);
        }
    }

    /// These were answered, and stand or do not. Answers the gaps that are over.
    pub(crate) fn answered<'a>(
        &self,
        answered: impl Iterator<Item = (&'a Arc<Subscription>, bool)>,
    ) -> Vec<Over> {
        let mut state = self.lock();
        let mut over = Vec::new();
        if state.open.is_empty() {
            return over;
        }
        for (subscription, stands) in answered {
            let Some(outage) = state.open.get_mut(&subscription.channel) else { continue };
            if let Some(known) = outage.fates.get_mut(subscription) {
                *known = if stands { Fate::Restored } else { Fate::Gone };
            }
            if outage.is_over() {
                over.extend(state.open.remove_entry(&subscription.channel));
            }
        }
        over
    }

    /// Nobody asks for these any more: no gap waits for them. Answers the gaps that are over.
    pub(crate) fn gone(&self, which: impl Fn(&Arc<Subscription>) -> bool) -> Vec<Over> {
        let mut state = self.lock();
        for outage in state.open.values_mut() {
            for (subscription, fate) in &mut outage.fates {
                if which(subscription) {
                    *fate = Fate::Gone;
                }
            }
        }
        state.open.extract_if(|_, outage| outage.is_over()).collect()
    }

    /// For how long what is missing longest has been missing.
    pub(crate) fn longest(&self) -> Option<Duration> {
        self.lock().open.values().map(|outage| outage.since.time()).max()
    }

    /// From when to when it was, if it is over now.
    pub(crate) fn bounds(&self, outage: &Outage) -> Bounds {
        let state = self.lock();
        let server = state.server.map(|(said, at)| later(said, at.elapsed()));
        bounds(outage.since, clock::now(), server, state.heard_before)
    }
}

fn bounds(
    since: Since,
    now: UnixMillis,
    server: Option<UnixMillis>,
    heard_before: Option<UnixMillis>,
) -> Bounds {
    let wrong = |server: &UnixMillis| u128::from(server.abs_diff(now)) > CLOCK_IS_WRONG.as_millis();
    let from = match since {
        Since::Moment(..) => {
            let (to, clock) = match server.filter(wrong) {
                Some(server) => (server, Clock::Gateway),
                None => (now, Clock::Ours),
            };
            return Bounds { from: earlier(to, since.time()), to, clock };
        }
        Since::Before(from) => from,
    };
    match server {
        Some(server) if wrong(&server) || from > server => {
            // Where the clock was ahead when the relay last ran, its word is worth nothing: what was
            // heard last is.
            let from = if from <= server { from } else { heard_before.unwrap_or(server) };
            Bounds { from: from.min(server), to: server, clock: Clock::Gateway }
        }
        None if from > now => Bounds { from, to: from, clock: Clock::Unknown },
        _ => Bounds { from, to: now, clock: Clock::Ours },
    }
}

fn earlier(at: UnixMillis, time: Duration) -> UnixMillis {
    at.saturating_sub(UnixMillis::try_from(time.as_millis()).unwrap_or(UnixMillis::MAX))
}

fn later(at: UnixMillis, time: Duration) -> UnixMillis {
    at.saturating_add(UnixMillis::try_from(time.as_millis()).unwrap_or(UnixMillis::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: UnixMillis = 3_600_000;
    const NOON: UnixMillis = 1_800_000_000_000;

    #[test]
    fn the_time_without_a_relay_is_told_whatever_the_clock_said() {
        // What the clock said at the end and says now, what the gateway says, what it said last.
        let cases: &[(&str, UnixMillis, UnixMillis, Option<UnixMillis>, _)] = &[
            ("right", NOON - HOUR, NOON, Some(NOON + 200), (NOON - HOUR, NOON, Clock::Ours)),
            ("no time from the gateway", NOON - HOUR, NOON, None, (NOON - HOUR, NOON, Clock::Ours)),
            ("equal", NOON, NOON, Some(NOON), (NOON, NOON, Clock::Ours)),
            (
                "behind the end",
                NOON - HOUR,
                NOON - 5 * HOUR,
                Some(NOON),
                (NOON - HOUR, NOON, Clock::Gateway),
            ),
            ("at 1970", NOON - HOUR, 0, Some(NOON), (NOON - HOUR, NOON, Clock::Gateway)),
            (
                "behind, and nobody says so",
                NOON - HOUR,
                NOON - 5 * HOUR,
                None,
                (NOON - HOUR, NOON - HOUR, Clock::Unknown),
            ),
            (
                "far ahead now",
                NOON - HOUR,
                NOON + 99_999 * HOUR,
                Some(NOON),
                (NOON - HOUR, NOON, Clock::Gateway),
            ),
            (
                "far ahead then",
                NOON + 99_999 * HOUR,
                NOON,
                Some(NOON),
                (NOON - 2 * HOUR, NOON, Clock::Gateway),
            ),
            (
                "far ahead then and now",
                NOON + 9_999 * HOUR,
                NOON + 99_999 * HOUR,
                Some(NOON),
                (NOON - 2 * HOUR, NOON, Clock::Gateway),
            ),
        ];
        for (case, alive, now, server, (from, to, clock)) in cases {
            let found = bounds(Since::Before(*alive), *now, *server, Some(NOON - 2 * HOUR));
            assert_eq!(found, Bounds { from: *from, to: *to, clock: *clock }, "{case}");
            let nothing_heard = bounds(Since::Before(*alive), *now, *server, None);
            assert!(nothing_heard.from <= nothing_heard.to, "{case}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_measured_here_is_measured_by_a_clock_that_does_not_step() {
        let since = Since::Moment(Moment::now(), Duration::from_mins(1));
        tokio::time::advance(Duration::from_hours(3)).await;
        let now = NOON + 5 * HOUR;
        for (server, to) in [(None, now), (Some(now + 1000), now), (Some(NOON), NOON)] {
            let found = bounds(since, now, server, None);
            assert!((found.seconds() - 10_860.0).abs() < 2.0, "{found:?}");
            assert_eq!(found.to, to);
        }
    }
}
