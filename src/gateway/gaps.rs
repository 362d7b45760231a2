//! What is missing, since when, and the report when it is over.
//!
//! A gap is measured by a [`Moment`]: a step of the wall clock makes none and hides none, and the time
//! that the machine slept counts. Only the time in which the relay did not run has nothing but the wall
//! clock's word for its beginning, and that clock may have been wrong then or be wrong now: so its end
//! is checked against the time that the gateway says, and its report says by which clock it was measured.
//!
//! A gap does not wait for what is refused, or never answered. Since when that is missing is remembered:
//! when it is confirmed later, that is a gap of its own.
//!
//! What is missing outlives a gateway that fails; over a restart the journal remembers its beginning.
//!
//! In a cluster another member may have received what this one has not: then a gap is counted, logged and listed
//! only where it is known that no other has, see `Table::count_gap`.

use std::{collections::HashMap, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::{info, warn};

use crate::{
    astro::{rest::History, session::Subscription},
    base::{
        clock::{self, Moment, UnixMillis},
        event::{self, Event, Origin},
        json,
        metrics::{self, GAP_SECONDS, GAPS},
        text::{EXCERPT, excerpt},
    },
};

/// Our clock is wrong where it differs by more from the gateway's.
const CLOCK_IS_WRONG: Duration = Duration::from_mins(1);

/// What was refused and is confirmed later is reported from the same beginning, by a clock that may have been
/// set right meanwhile.
const SAME_BEGINNING: Duration = Duration::from_secs(1);

/// The field of a report that tells what became of a gap. One that has it is no gap of its own.
const RECOVERY: &str = "recovery";

/// That the relay did not run.
#[derive(Debug, Clone, Copy)]
pub struct Away {
    /// Since when, by the wall clock as it was then.
    pub at: UnixMillis,
    /// For how long until now, where that is known and not only said by the wall clock.
    pub time: Option<Duration>,
}

impl Away {
    pub(super) fn since(self) -> Since {
        match self.time {
            Some(time) => Since::Moment(Moment::now(), time),
            None => Since::Before(self.at),
        }
    }
}

/// The channels of which something is missing.
#[derive(Debug, Default)]
pub(super) struct Gaps {
    open: HashMap<Arc<str>, Outage>,
    /// Of outages that were reported, by channel, what was refused and is missing still. A subscription is in
    /// one of them at most.
    refused: HashMap<Arc<str>, Vec<Outage>>,
    /// What the gateway's clock said, and when.
    server: Option<(UnixMillis, Moment)>,
    /// What the gateway's clock said last before the relay was started.
    server_before: Option<UnixMillis>,
}

/// Since when something is missing.
#[derive(Debug, Clone, Copy)]
pub(super) enum Since {
    /// So long before a moment of this process.
    Moment(Moment, Duration),
    /// Before it began: what the wall clock said then.
    Before(UnixMillis),
}

impl Since {
    pub(super) fn moment(at: Moment) -> Self {
        Self::Moment(at, Duration::ZERO)
    }

    pub(super) fn now() -> Self {
        Self::moment(Moment::now())
    }

    /// How long ago that is, as far as the wall clock tells.
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

/// A time without a connection that is over.
#[derive(Debug, Clone, Serialize)]
pub struct Gap {
    pub channel: String,
    pub from: UnixMillis,
    pub to: UnixMillis,
    pub cause: String,
}

impl Gap {
    /// Reads the `relay.gap` that [`Gaps::close`] made; `None`: it reports something else.
    pub(super) fn read(report: &Event) -> Option<Self> {
        let channel = &report.place.channel;
        // Without a channel it is a sink's own loss.
        if channel.is_empty() || report.origin != Origin::Live {
            return None;
        }
        let data = json::value(report.data())?;
        if data.get(RECOVERY).is_some() {
            return None;
        }
        let time = |name: &str| clock::parse_rfc3339(data.get(name)?.as_str()?);
        let (from, to) = (time("from")?, time("to")?);
        let cause = data.get("cause")?.as_str()?.to_owned();
        Some(Self { channel: channel.to_string(), from, to, cause })
    }

    fn time(&self) -> Duration {
        Duration::from_millis(self.to.saturating_sub(self.from))
    }

    /// How much of it is in another one too that began with it.
    pub(super) fn shared(&self, other: &Self) -> Duration {
        if self.from.abs_diff(other.from) > clock::millis_of(SAME_BEGINNING) {
            return Duration::ZERO;
        }
        let (from, to) = (self.from.max(other.from), self.to.min(other.to));
        Duration::from_millis(to.saturating_sub(from))
    }

    /// Counts and logs it; `counted`: so much of its length was counted before.
    pub(super) fn count(&self, counted: Duration) {
        let Self { channel, cause, .. } = self;
        let seconds = self.time().as_secs_f64();
        warn!(%channel, seconds, cause, "events may have been missed");
        metrics::add_for(GAPS, "channel", channel, 1);
        // A gap that was there counts, however short.
        let fresh = clock::millis_of(self.time().saturating_sub(counted)).div_ceil(1000);
        metrics::add_for(GAP_SECONDS, "channel", channel, fresh);
    }

    /// Logs it where another member of the cluster may have had the channel.
    pub(super) fn log_interruption(&self) {
        let Self { channel, cause, .. } = self;
        let seconds = self.time().as_secs_f64();
        info!(
            %channel,
            seconds,
            cause,
            "this member was without the channel; the others are asked whether they had it"
        );
    }
}

/// What a channel is missing now.
#[derive(Debug, Clone, Serialize)]
pub struct RunningGap {
    pub channel: String,
    pub since: UnixMillis,
    pub cause: String,
    /// Subscriptions that are not confirmed again.
    pub subscriptions: usize,
}

/// A channel's time without a connection.
#[derive(Debug)]
struct Outage {
    since: Since,
    cause: String,
    /// The canonical room where it is known, or else the configured one.
    room: Arc<str>,
    /// So much of its length was reported, and counted, before.
    reported: Duration,
    /// When it was over, where that is not now.
    ended: Option<Moment>,
    subscriptions: HashMap<Arc<Subscription>, RecoveryState>,
}

/// What has become of a subscription after an outage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RecoveryState {
    /// Not yet answered again.
    Missing,
    Restored,
    /// It was refused, left out or never answered: it may be confirmed later.
    Refused,
    /// It is no longer wanted.
    Gone,
}

/// A channel's gap that is over.
#[derive(Debug)]
pub(super) struct Over(Arc<str>, Outage);

impl Over {
    /// So much of its length was counted before.
    pub(super) fn counted(&self) -> Duration {
        self.1.reported
    }

    /// It was over when the last of what is restored was there, as far as that is known.
    pub(super) fn end(&mut self, since_when: impl Fn(&Subscription) -> Option<Moment>) {
        let Self(_, outage) = self;
        let states = outage.subscriptions.iter();
        let restored = states.filter(|(_, state)| **state == RecoveryState::Restored);
        let there = restored.filter_map(|(one, _)| since_when(one));
        outage.ended = there.min_by_key(|at| at.elapsed());
    }

    /// The canonical room of its channel, where that was not known when it began.
    pub(super) fn learn_room<'r>(&mut self, known: impl Fn(&Subscription) -> Option<&'r Arc<str>>) {
        let Self(_, outage) = self;
        if !outage.room.is_empty() && !outage.is_configured(&outage.room) {
            return;
        }
        // One that is not confirmed has its configured room still.
        let mut rooms = outage.subscriptions.keys().filter_map(|one| known(one));
        if let Some(room) = rooms.find(|room| !outage.is_configured(room)) {
            outage.room = Arc::clone(room);
        }
    }
}

impl Outage {
    fn is_over(&self) -> bool {
        self.subscriptions.values().all(|state| *state != RecoveryState::Missing)
    }

    /// Whether this room is one that was asked for. The canonical one may be another.
    fn is_configured(&self, room: &str) -> bool {
        self.subscriptions.keys().any(|one| one.room.as_deref() == Some(room))
    }

    /// The same for some of its subscriptions.
    fn of(&self, subscriptions: HashMap<Arc<Subscription>, RecoveryState>) -> Self {
        let (cause, room) = (self.cause.clone(), Arc::clone(&self.room));
        let (since, reported) = (self.since, self.reported);
        Self { since, cause, room, reported, ended: None, subscriptions }
    }

    /// `ahead`: how far our clock is ahead of the gateway's, in seconds, where that is known.
    fn report(&self, channel: &str, bounds: &Bounds, ahead: Option<f64>) -> Value {
        let mut concerned: Vec<_> = self.subscriptions.iter().collect();
        concerned.sort_by_key(|(subscription, _)| &subscription.topic);
        let subscriptions: Vec<_> = concerned
            .into_iter()
            .map(|(subscription, state)| {
                json!({
                    "topic": &*subscription.topic,
                    "room": &*self.room,
                    "restored": *state == RecoveryState::Restored,
                    "history": History::of(&subscription.topic).is_some(),
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
            GapClock::Ours => None,
            GapClock::Gateway => Some("gateway"),
            GapClock::Unknown => Some("unknown"),
        };
        if let Some(clock) = clock {
            json::set(&mut report, "clock", clock.into());
        }
        if let Some(ahead) = ahead {
            json::set(&mut report, "clock_ahead", ahead.into());
        }
        report
    }
}

impl Gaps {
    pub(super) fn server_time(&mut self, said: UnixMillis) {
        self.server = Some((said, Moment::now()));
    }

    pub(super) fn server_time_before(&mut self, said: Option<UnixMillis>) {
        self.server_before = said;
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty() && self.refused.is_empty()
    }

    /// This is missing, with its room where that is known.
    pub(super) fn add(
        &mut self,
        subscription: &Arc<Subscription>,
        room: Option<Arc<str>>,
        since: Since,
        cause: &str,
    ) {
        let outage = self.open.entry(Arc::clone(&subscription.channel)).or_insert_with(|| Outage {
            since,
            cause: cause.to_owned(),
            room: room.or_else(|| subscription.room.clone()).unwrap_or_else(|| "".into()),
            reported: Duration::ZERO,
            ended: None,
            subscriptions: HashMap::new(),
        });
        outage.since = outage.since.earlier(since);
        outage.subscriptions.insert(Arc::clone(subscription), RecoveryState::Missing);
    }

    /// This is asked for again, or will be in a moment: if it was refused, it is waited for from now on.
    pub(super) fn asked_again(&mut self, subscription: &Arc<Subscription>) {
        for state in self.states(subscription) {
            if *state == RecoveryState::Refused {
                *state = RecoveryState::Missing;
            }
        }
    }

    /// What has become of a subscription, in each outage that it is in.
    fn states(&mut self, one: &Arc<Subscription>) -> impl Iterator<Item = &mut RecoveryState> {
        let Self { open, refused, .. } = self;
        let refused = refused.get_mut(&one.channel).into_iter().flatten();
        let outages = refused.chain(open.get_mut(&one.channel));
        outages.filter_map(|outage| outage.subscriptions.get_mut(one))
    }

    /// This was confirmed; or else it was refused, left out or never answered. Answers the gaps that are over by
    /// that.
    pub(super) fn answered(
        &mut self,
        subscription: &Arc<Subscription>,
        confirmed: bool,
    ) -> Vec<Over> {
        let answer = if confirmed { RecoveryState::Restored } else { RecoveryState::Refused };
        for state in self.states(subscription) {
            *state = answer;
        }
        let channel = &subscription.channel;
        let mut over = self.take_restored(channel);
        let is_over = self.open.get(channel).is_some_and(Outage::is_over);
        if is_over && let Some((channel, outage)) = self.open.remove_entry(channel) {
            over.push(self.over(channel, outage));
        }
        over
    }

    /// These are no longer wanted: no gap waits for them. Answers the gaps that are over by that.
    pub(super) fn gone(&mut self, which: impl Fn(&Arc<Subscription>) -> bool) -> Vec<Over> {
        for outage in self.open.values_mut() {
            let gone =
                outage.subscriptions.iter_mut().filter(|(subscription, _)| which(subscription));
            gone.for_each(|(_, state)| *state = RecoveryState::Gone);
        }
        for outage in self.refused.values_mut().flatten() {
            outage.subscriptions.retain(|subscription, _| !which(subscription));
        }
        let channels: Vec<_> = self.refused.keys().cloned().collect();
        let mut over: Vec<_> =
            channels.iter().flat_map(|channel| self.take_restored(channel)).collect();
        let ended: Vec<_> = self.open.extract_if(|_, outage| outage.is_over()).collect();
        over.extend(ended.into_iter().map(|(channel, outage)| self.over(channel, outage)));
        over
    }

    /// Takes out what had been refused and is confirmed now. What was refused together and is asked for again
    /// together is reported together.
    fn take_restored(&mut self, channel: &Arc<str>) -> Vec<Over> {
        let mut over = Vec::new();
        let Some(refused) = self.refused.get_mut(channel) else { return over };
        refused.retain_mut(|outage| {
            if outage.is_over() {
                let states = &mut outage.subscriptions;
                let restored = states.extract_if(|_, state| *state == RecoveryState::Restored);
                let restored: HashMap<_, _> = restored.collect();
                if !restored.is_empty() {
                    over.push(Over(Arc::clone(channel), outage.of(restored)));
                }
            }
            !outage.subscriptions.is_empty()
        });
        if refused.is_empty() {
            self.refused.remove(channel);
        }
        over
    }

    /// This outage is over, but for what was refused: that is missing still.
    fn over(&mut self, channel: Arc<str>, outage: Outage) -> Over {
        // What was missing before goes on.
        let is_known = |one: &Arc<Subscription>| {
            let mut before = self.refused.get(&channel).into_iter().flatten();
            before.any(|outage| outage.subscriptions.contains_key(one))
        };
        let states = outage.subscriptions.iter();
        let refused: HashMap<_, _> = states
            .filter(|(one, state)| **state == RecoveryState::Refused && !is_known(one))
            .map(|(one, state)| (Arc::clone(one), *state))
            .collect();
        if !refused.is_empty() {
            let rest = Outage { reported: outage.since.time(), ..outage.of(refused) };
            self.refused.entry(Arc::clone(&channel)).or_default().push(rest);
        }
        Over(channel, outage)
    }

    /// What is being missed now, by channel.
    pub(super) fn running(&self) -> Vec<RunningGap> {
        let mut running: Vec<_> = self
            .open
            .iter()
            .map(|(channel, outage)| {
                let missing = |state: &&RecoveryState| **state == RecoveryState::Missing;
                let time = clock::millis_of(outage.since.time());
                RunningGap {
                    channel: channel.to_string(),
                    since: clock::now().saturating_sub(time),
                    cause: excerpt(&outage.cause, EXCERPT),
                    subscriptions: outage.subscriptions.values().filter(missing).count(),
                }
            })
            .collect();
        running.sort_by(|a, b| a.channel.cmp(&b.channel));
        running
    }

    /// For how long something of a channel has been missing.
    pub(super) fn time(&self, channel: &str) -> Option<Duration> {
        self.open.get(channel).map(|outage| outage.since.time())
    }

    pub(super) fn is_missing(&self, channel: &str) -> bool {
        self.open.contains_key(channel)
    }

    /// For how long what is missing longest has been missing.
    pub(super) fn longest(&self) -> Option<Duration> {
        self.open.values().map(|outage| outage.since.time()).max()
    }

    /// Measures a gap that is over. Answers it, and its event.
    pub(super) fn close(&self, Over(channel, outage): &Over) -> (Gap, Event) {
        let server =
            self.server.map(|(said, at)| said.saturating_add(clock::millis_of(at.elapsed())));
        let now = clock::now();
        let mut bounds = bounds(outage.since, now, server, self.server_before);
        let over_for = outage.ended.map(Moment::elapsed).unwrap_or_default();
        bounds.to = bounds.to.saturating_sub(clock::millis_of(over_for)).max(bounds.from);
        let data = outage.report(channel, &bounds, server.map(|server| ahead(now, server)));
        let cause = outage.cause.clone();
        let gap = Gap { channel: channel.to_string(), from: bounds.from, to: bounds.to, cause };
        (gap, event::own("relay.gap", channel, &outage.room, &data, clock::now()))
    }
}

/// From when to when something was missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bounds {
    from: UnixMillis,
    /// Never before `from`.
    to: UnixMillis,
    clock: GapClock,
}

/// By which clock a gap is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GapClock {
    Ours,
    /// Ours is wrong, or was.
    Gateway,
    /// Ours is behind the beginning, and the gateway says no time: when it ended is not known.
    #[serde(other)]
    Unknown,
}

impl Bounds {
    fn seconds(&self) -> f64 {
        Duration::from_millis(self.to.saturating_sub(self.from)).as_secs_f64()
    }
}

fn bounds(
    since: Since,
    now: UnixMillis,
    server: Option<UnixMillis>,
    server_before: Option<UnixMillis>,
) -> Bounds {
    let wrong = |server: &UnixMillis| server.abs_diff(now) > clock::millis_of(CLOCK_IS_WRONG);
    let from = match since {
        Since::Moment(..) => {
            let (to, clock) = match server.filter(wrong) {
                Some(server) => (server, GapClock::Gateway),
                None => (now, GapClock::Ours),
            };
            let from = to.saturating_sub(clock::millis_of(since.time()));
            return Bounds { from, to, clock };
        }
        Since::Before(from) => from,
    };
    match server {
        Some(server) if wrong(&server) || from > server => {
            // Where the clock was ahead when the relay last ran, its time is worth nothing: that of
            // the last message is.
            let from = if from <= server { from } else { server_before.unwrap_or(server) };
            Bounds { from: from.min(server), to: server, clock: GapClock::Gateway }
        }
        None if from > now => Bounds { from, to: from, clock: GapClock::Unknown },
        _ => Bounds { from, to: now, clock: GapClock::Ours },
    }
}

/// How many seconds one time is ahead of another.
fn ahead(one: UnixMillis, other: UnixMillis) -> f64 {
    let difference = Duration::from_millis(one.abs_diff(other)).as_secs_f64();
    if one < other { -difference } else { difference }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TokenType;

    const HOUR: UnixMillis = 3_600_000;
    const NOON: UnixMillis = 1_800_000_000_000;

    #[test]
    fn the_time_without_a_relay_is_reported_whatever_the_clock_said() {
        // What the clock said at the end and says now, what the gateway says, what it said last.
        let cases: &[(&str, UnixMillis, UnixMillis, Option<UnixMillis>, _)] = &[
            ("right", NOON - HOUR, NOON, Some(NOON + 200), (NOON - HOUR, NOON, GapClock::Ours)),
            (
                "no time from the gateway",
                NOON - HOUR,
                NOON,
                None,
                (NOON - HOUR, NOON, GapClock::Ours),
            ),
            ("equal", NOON, NOON, Some(NOON), (NOON, NOON, GapClock::Ours)),
            (
                "behind the end",
                NOON - HOUR,
                NOON - 5 * HOUR,
                Some(NOON),
                (NOON - HOUR, NOON, GapClock::Gateway),
            ),
            ("at 1970", NOON - HOUR, 0, Some(NOON), (NOON - HOUR, NOON, GapClock::Gateway)),
            (
                "behind, and no time from the gateway",
                NOON - HOUR,
                NOON - 5 * HOUR,
                None,
                (NOON - HOUR, NOON - HOUR, GapClock::Unknown),
            ),
            (
                "far ahead now",
                NOON - HOUR,
                NOON + 99_999 * HOUR,
                Some(NOON),
                (NOON - HOUR, NOON, GapClock::Gateway),
            ),
            (
                "far ahead then",
                NOON + 99_999 * HOUR,
                NOON,
                Some(NOON),
                (NOON - 2 * HOUR, NOON, GapClock::Gateway),
            ),
            (
                "far ahead then and now",
                NOON + 9_999 * HOUR,
                NOON + 99_999 * HOUR,
                Some(NOON),
                (NOON - 2 * HOUR, NOON, GapClock::Gateway),
            ),
        ];
        for (case, alive, now, server, (from, to, clock)) in cases {
            let found = bounds(Since::Before(*alive), *now, *server, Some(NOON - 2 * HOUR));
            assert_eq!(found, Bounds { from: *from, to: *to, clock: *clock }, "{case}");
            let nothing_heard = bounds(Since::Before(*alive), *now, *server, None);
            assert!(nothing_heard.from <= nothing_heard.to, "{case}");
        }
    }

    #[test]
    fn a_gap_is_reported_with_the_canonical_room_whatever_is_configured() {
        let named = |topic: &str| {
            let (channel, topic, room) = ("main".into(), topic.into(), Some("name".into()));
            Arc::new(Subscription {
                channel,
                topic,
                room,
                token_type: TokenType::Jwt,
                token_room: None,
            })
        };
        let [tips, chat] = ["channel.tips", "channel.chat.message"].map(named);
        let (canonical, configured): (Arc<str>, Arc<str>) = ("canonical".into(), "name".into());
        // When it began, of the tips at its end, and as it is reported. Of the chat nothing more is known.
        for (at_begin, at_end, reported) in [
            (Some(&canonical), &configured, "canonical"),
            (None, &canonical, "canonical"),
            (Some(&configured), &canonical, "canonical"),
            (None, &configured, "name"),
        ] {
            let mut gaps = Gaps::default();
            for one in [&chat, &tips] {
                gaps.add(one, at_begin.cloned(), Since::now(), "connection lost");
            }
            assert!(gaps.answered(&chat, true).is_empty());
            let mut over = gaps.answered(&tips, true);
            let is_tips = |one: &Subscription| &*one.topic == "channel.tips";
            over[0].learn_room(|one| Some(if is_tips(one) { at_end } else { &configured }));
            let (_, report) = gaps.close(&over[0]);
            assert_eq!(&*report.place.room, reported);
            let data = json::value(report.data()).unwrap();
            for subscription in data["subscriptions"].as_array().unwrap() {
                assert_eq!(subscription["room"], reported, "{data}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_measured_by_a_clock_that_does_not_step() {
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
