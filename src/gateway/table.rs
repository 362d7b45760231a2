//! The one table of what is wanted of the gateway, and of what has become of it.
//!
//! Per subscription: since when it is wanted, its connection, its state with the reason of a refusal and
//! the next attempt, and when it was confirmed. Per connection: its phase, the attempts since it last
//! worked, its last frame. What is missing, and since when, is measured beside it, by [`Gaps`].
//!
//! Pool and links write it. Status page, health, the keeper of sessions, commands and metrics read it, and
//! may wait for a change. It decides nothing.

mod rows;

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::sync::watch;

pub use self::rows::{ConnectionRow, Phase, Slot, SubscriptionRow};
use super::gaps::{Away, Gap, Gaps, Over, RunningGap, Since};
use crate::{
    astro::session::{Subscription, SubscriptionState, Update},
    base::{
        clock::{self, Moment, UnixMillis},
        event::Event,
        sync::lock,
        text::excerpt,
    },
    config::TokenType,
};

/// Gaps that are remembered for the status page.
const GAPS: usize = 100;

/// Bytes of a text that a server may have written.
const TEXT: usize = 1000;

/// Why something is missing that this relay could not receive before its start.
const AWAY: &str = "the relay did not run";

#[derive(Debug, Default)]
pub struct Table {
    inner: Mutex<Inner>,
    /// Grows with every change but that of a time at which something came.
    version: watch::Sender<u64>,
    /// Grows when somebody needs to know whether the connections hold.
    pings: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    state: State,
    missing: Gaps,
    /// Another member of a cluster may have received what is missing here.
    in_cluster: bool,
}

#[derive(Debug, Clone, Default)]
pub struct State {
    pub connections: BTreeMap<u64, ConnectionRow>,
    pub subscriptions: BTreeMap<Arc<Subscription>, SubscriptionRow>,
    /// The latest gaps, oldest first.
    pub gaps: VecDeque<Gap>,
    /// What is being missed now. Only in a [`Table::snapshot`].
    pub outages: Vec<RunningGap>,
    pub gap_count: u64,
    pub last_event: Option<UnixMillis>,
}

impl State {
    /// The subscriptions that have a connection.
    pub fn assigned(&self) -> impl Iterator<Item = (&Arc<Subscription>, &SubscriptionRow)> {
        self.subscriptions.iter().filter(|(_, row)| row.slot.connection().is_some())
    }

    pub fn left_out(&self) -> Vec<&Arc<Subscription>> {
        self.ordered(|slot| slot == Slot::LeftOut)
    }

    pub fn open_connections(&self) -> usize {
        self.connections.values().filter(|row| row.phase.is_open()).count()
    }

    /// As in the configuration.
    fn ordered(&self, which: impl Fn(Slot) -> bool) -> Vec<&Arc<Subscription>> {
        let mut found: Vec<_> =
            self.subscriptions.iter().filter(|(_, row)| which(row.slot)).collect();
        found.sort_by_key(|(_, row)| row.order);
        found.into_iter().map(|(subscription, _)| subscription).collect()
    }

    fn release(&mut self, number: u64) {
        for row in self.subscriptions.values_mut() {
            if row.slot.connection() == Some(number) {
                row.start_over(Slot::Unassigned);
            }
        }
    }
}

impl Inner {
    /// Each has a row, in this order.
    fn add(&mut self, all: &[Arc<Subscription>]) {
        for (order, subscription) in all.iter().enumerate() {
            let row = self.state.subscriptions.entry(Arc::clone(subscription));
            row.or_insert_with(|| SubscriptionRow::new(order)).order = order;
        }
    }

    /// Closes gaps: counts and remembers them, and answers their reports.
    fn close(&mut self, over: Vec<Over>) -> Vec<Event> {
        let mut reports = Vec::new();
        for mut over in over {
            let rows = &self.state.subscriptions;
            over.learn_room(|one| {
                let (subscription, row) = rows.get_key_value(one)?;
                row.room(subscription)
            });
            let (gap, report) = self.missing.close(&over);
            if self.in_cluster {
                gap.log_interruption();
            } else {
                gap.count(over.counted());
                self.remember(gap);
            }
            reports.push(report);
        }
        reports
    }

    fn remember(&mut self, mut gap: Gap) {
        gap.cause = excerpt(&gap.cause, TEXT);
        self.state.gap_count += 1;
        if self.state.gaps.len() >= GAPS {
            self.state.gaps.pop_front();
        }
        self.state.gaps.push_back(gap);
    }

    /// Counts and remembers a gap that was reported, unless it was counted already.
    fn count_reported(&mut self, gap: Gap) {
        let all = self.state.gaps.iter();
        let known: Vec<_> = all.filter(|known| known.channel == gap.channel).collect();
        if known.iter().any(|known| (known.from, known.to) == (gap.from, gap.to)) {
            return;
        }
        // What was refused and is confirmed later is reported from the same beginning.
        let counted = known.iter().map(|known| known.shared(&gap)).max();
        gap.count(counted.unwrap_or_default());
        self.remember(gap);
    }
}

impl Table {
    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let answer = change(&mut lock(&self.inner));
        self.version.send_modify(|version| *version += 1);
        answer
    }

    pub fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&lock(&self.inner).state)
    }

    pub fn snapshot(&self) -> State {
        let inner = lock(&self.inner);
        State { outages: inner.missing.running(), ..inner.state.clone() }
    }

    pub fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Has each connection find out now whether it holds: if so, a frame comes.
    pub(crate) fn ping(&self) {
        self.pings.send_modify(|count| *count += 1);
    }

    pub(crate) fn pings(&self) -> watch::Receiver<u64> {
        self.pings.subscribe()
    }

    #[cfg(test)]
    pub(crate) fn replace(&self, state: State) {
        self.change(|inner| inner.state = state);
    }

    /// This relay is a member of a cluster: from now on a gap is counted, logged and listed only by
    /// [`Table::count_gap`].
    pub(crate) fn in_cluster(&self) {
        lock(&self.inner).in_cluster = true;
    }

    /// No other member of the cluster has received what this `relay.gap` reports, and this one publishes it.
    pub(crate) fn count_gap(&self, report: &Event) {
        if let Some(gap) = Gap::read(report) {
            self.change(|inner| inner.count_reported(gap));
        }
    }

    /// These will be wanted: until the gateway asks for them, nobody is to take the relay for ready.
    pub(crate) fn expect(&self, all: &[Arc<Subscription>]) {
        let is_known = |state: &State| all.iter().all(|one| state.subscriptions.contains_key(one));
        // Whoever asks every moment wakes nobody.
        if !self.read(is_known) {
            self.change(|inner| inner.add(all));
        }
    }

    /// These are wanted and nothing else. Answers the reports of gaps that are over by that.
    pub(super) fn want(&self, all: &[Arc<Subscription>]) -> Vec<Event> {
        let wanted: HashSet<_> = all.iter().collect();
        self.change(|inner| {
            inner.state.subscriptions.retain(|subscription, _| wanted.contains(subscription));
            inner.add(all);
            let over = inner.missing.gone(|subscription| !wanted.contains(subscription));
            inner.close(over)
        })
    }

    /// What needs a connection.
    pub(super) fn unassigned(&self) -> Vec<Arc<Subscription>> {
        let is_free = |slot| matches!(slot, Slot::Unassigned | Slot::LeftOut);
        self.read(|state| state.ordered(is_free).into_iter().cloned().collect())
    }

    pub(super) fn assign<'a>(
        &self,
        subscriptions: impl IntoIterator<Item = &'a Arc<Subscription>>,
        slot: Slot,
    ) {
        self.change(|inner| {
            for subscription in subscriptions {
                if let Some(row) = inner.state.subscriptions.get_mut(subscription) {
                    row.slot = slot;
                }
            }
        });
    }

    /// No connection has room for these. Answers the reports of gaps that are over by that.
    pub(super) fn leave_out(&self, subscriptions: &[Arc<Subscription>]) -> Vec<Event> {
        self.assign(subscriptions, Slot::LeftOut);
        let mut inner = lock(&self.inner);
        let missing = &mut inner.missing;
        let over = subscriptions.iter().flat_map(|one| missing.answered(one, false)).collect();
        inner.close(over)
    }

    /// A connection would not take these. What still stands on the one before it is given up there in a
    /// moment, and is missing until another connection has it.
    pub(super) fn overflow(&self, number: u64, subscriptions: &[Arc<Subscription>]) {
        self.change(|inner| {
            for subscription in subscriptions {
                let Some(row) = inner.state.subscriptions.get_mut(subscription) else { continue };
                if row.slot.connection() != Some(number) {
                    continue;
                }
                if row.state.is_confirmed() {
                    let room = row.room(subscription).cloned();
                    let cause = "the next connection would not take it";
                    inner.missing.add(subscription, room, Since::now(), cause);
                }
                row.start_over(Slot::Overflow(number));
            }
        });
    }

    /// Takes what connections would not take off them.
    pub(super) fn take_overflow(&self) -> HashMap<u64, HashSet<Arc<Subscription>>> {
        self.change(|inner| {
            let mut overflow: HashMap<u64, HashSet<_>> = HashMap::new();
            for (subscription, row) in &mut inner.state.subscriptions {
                if let Slot::Overflow(number) = row.slot {
                    row.start_over(Slot::Unassigned);
                    overflow.entry(number).or_default().insert(Arc::clone(subscription));
                }
            }
            overflow
        })
    }

    pub(super) fn phase(&self, number: u64, phase: Phase, attempts: u32, error: Option<&str>) {
        self.change(|inner| {
            let (now, is_open) = (clock::now(), phase.is_open());
            let row = inner.state.connections.entry(number).or_default();
            (row.phase, row.since, row.next_attempt) = (phase, now, None);
            row.attempts = if is_open { 0 } else { attempts };
            row.down_since = if is_open { None } else { row.down_since.or(Some(now)) };
            if let Some(error) = error {
                row.last_error = Some(excerpt(error, TEXT));
                row.last_error_at = Some(now);
            }
            if !is_open {
                let rows = inner.state.subscriptions.values_mut();
                rows.filter(|row| row.slot.connection() == Some(number))
                    .for_each(|row| row.start_over(row.slot));
            }
        });
    }

    /// A connection is opened again after that time.
    pub(super) fn waits(&self, number: u64, wait: Duration) {
        let wait = clock::millis_of(wait);
        self.change(|inner| {
            if let Some(row) = inner.state.connections.get_mut(&number) {
                row.next_attempt = Some(clock::now().saturating_add(wait));
            }
        });
    }

    /// What is wrong with what comes on a connection.
    pub(super) fn problems(
        &self,
        number: u64,
        unreadable: Option<String>,
        unplaced: Vec<Arc<str>>,
    ) {
        let is_new = |row: &ConnectionRow| row.unreadable != unreadable || row.unplaced != unplaced;
        if self.read(|state| state.connections.get(&number).is_some_and(is_new)) {
            self.change(|inner| {
                let row = inner.state.connections.entry(number).or_default();
                (row.unreadable, row.unplaced) = (unreadable, unplaced);
            });
        }
    }

    pub(super) fn remove_connection(&self, number: u64) {
        self.change(|inner| {
            inner.state.connections.remove(&number);
            inner.state.release(number);
        });
    }

    /// A frame has come on a connection.
    pub(super) fn frame(&self, number: u64, at: Moment) {
        if let Some(row) = lock(&self.inner).state.connections.get_mut(&number) {
            row.last_frame = Some(at);
        }
    }

    /// So many messages have come for these.
    pub(super) fn count_messages(&self, counts: &[(Arc<Subscription>, u64)]) {
        let rows = &mut lock(&self.inner).state.subscriptions;
        for (subscription, messages) in counts {
            if let Some(row) = rows.get_mut(subscription) {
                row.messages += messages;
            }
        }
    }

    pub(super) fn last_event(&self, at: UnixMillis) {
        lock(&self.inner).state.last_event = Some(at);
    }

    /// What a connection's session says of its subscriptions. The reports of gaps that are over by that go
    /// to `report` before the change can be seen: whoever sees a subscription confirmed finds its gap in
    /// the journal.
    pub(super) fn update(&self, number: u64, updates: &[Update], report: impl FnOnce(Vec<Event>)) {
        self.change(|inner| {
            let mut over = Vec::new();
            for Update { subscription, state, confirmed_at, is_unanswered } in updates {
                let Some(row) = inner.state.subscriptions.get_mut(subscription) else { continue };
                if row.slot != Slot::On(number) {
                    continue;
                }
                if row.state.is_confirmed() && !state.is_confirmed() {
                    // The connection is open: the session had to ask again, or it is another connection's.
                    let room = row.room(subscription).cloned();
                    let cause = if state.is_answered() {
                        "it was refused on the next connection"
                    } else if *is_unanswered {
                        "it was not answered on the next connection"
                    } else {
                        "an unsubscribe for another channel may have ended it"
                    };
                    inner.missing.add(subscription, room, Since::now(), cause);
                }
                (row.state, row.is_unanswered) = (state.clone(), *is_unanswered);
                if row.confirmed_at != *confirmed_at {
                    (row.confirmed_at, row.messages) = (*confirmed_at, 0);
                    if confirmed_at.is_some() {
                        row.confirmed.get_or_insert_with(Moment::now);
                    }
                }
                if row.is_waited_for() {
                    inner.missing.asked_again(subscription);
                } else {
                    over.extend(inner.missing.answered(subscription, state.is_confirmed()));
                }
            }
            report(inner.close(over));
        });
    }

    /// A connection was lost: what was confirmed on it is missing since its last frame.
    pub(super) fn lost(&self, number: u64, cause: &str) {
        self.change(|inner| {
            let last_frame = inner.state.connections.get(&number).and_then(|row| row.last_frame);
            let since = last_frame.map_or_else(Since::now, Since::moment);
            for (subscription, row) in &inner.state.subscriptions {
                if row.slot == Slot::On(number) && row.state.is_confirmed() {
                    let room = row.room(subscription).cloned();
                    inner.missing.add(subscription, room, since, cause);
                }
            }
        });
    }

    /// These subscriptions of a channel are wanted now, and nobody has had them since then. Answers the report of
    /// the gap where none of them is waited for any more.
    pub(crate) fn had_no_holder(
        &self,
        subscriptions: &[&Arc<Subscription>],
        at: Moment,
        cause: &str,
    ) -> Vec<Event> {
        self.were_missing(subscriptions, Since::moment(at), cause, |_| None)
    }

    /// The same where only now it is known that this relay did not run before its start. What is confirmed was
    /// missing until then.
    pub(super) fn was_away_before(
        &self,
        subscriptions: &[&Arc<Subscription>],
        away: Away,
    ) -> Vec<Event> {
        self.were_missing(subscriptions, away.since(), AWAY, |row| row.confirmed)
    }

    /// `until`: since when one that is confirmed is there, where that is not now.
    fn were_missing(
        &self,
        subscriptions: &[&Arc<Subscription>],
        since: Since,
        cause: &str,
        until: impl Fn(&SubscriptionRow) -> Option<Moment>,
    ) -> Vec<Event> {
        self.change(|inner| {
            for subscription in subscriptions {
                inner.missing.add(subscription, None, since, cause);
            }
            let rows = &inner.state.subscriptions;
            let mut over: Vec<Over> = Vec::new();
            for subscription in subscriptions {
                let Some(row) = rows.get(*subscription) else { continue };
                // No more answer comes for one that was refused, or for which there is no room, and perhaps none
                // for one that was never answered.
                if !row.is_waited_for() {
                    over.extend(inner.missing.answered(subscription, row.state.is_confirmed()));
                }
            }
            for over in &mut over {
                over.end(|one| rows.get(one).and_then(&until));
            }
            inner.close(over)
        })
    }

    /// This is wanted now, and this relay did not run before.
    pub(crate) fn was_away(&self, subscription: &Arc<Subscription>, away: Away) {
        self.change(|inner| inner.missing.add(subscription, None, away.since(), AWAY));
    }

    /// Where there are connections, a gateway before this one has failed. What was on one of them is
    /// missing since its last frame; what was on none, since the last frame of any.
    pub(super) fn restart(&self) {
        self.change(|inner| {
            let connections = std::mem::take(&mut inner.state.connections);
            let last_frame = |number| connections.get(&number).and_then(|row| row.last_frame);
            let last =
                connections.values().filter_map(|row| row.last_frame).min_by_key(|at| at.elapsed());
            for (subscription, row) in &mut inner.state.subscriptions {
                let on = row.slot.connection().filter(|number| connections.contains_key(number));
                // What was refused was not there; if it was once, that is being missed already.
                let is_refused = matches!(row.state, SubscriptionState::Refused(_));
                if !is_refused && let Some(at) = on.map_or(last, last_frame) {
                    let cause = "the gateway failed and was restarted";
                    inner.missing.add(subscription, None, Since::moment(at), cause);
                }
                row.start_over(Slot::Unassigned);
            }
        });
    }

    /// The gateway says what time it is.
    pub(super) fn server_time(&self, said: UnixMillis) {
        lock(&self.inner).missing.server_time(said);
    }

    /// What time it said last to a relay before this one.
    pub(super) fn server_time_before(&self, said: Option<UnixMillis>) {
        lock(&self.inner).missing.server_time_before(said);
    }

    /// For how long nothing has come on a connection that carries a channel, of several the one that has been
    /// silent longest; `None`: one of these topics is not confirmed, or something of the channel is missing.
    pub(crate) fn silence(&self, channel: &str, topics: &[String]) -> Option<Duration> {
        // Where its subscriptions begin: no topic is empty.
        let (label, topic) = (channel.into(), "".into());
        let (room, token_type, token_room) = (None, TokenType::Jwt, None);
        let first = Subscription { channel: label, topic, room, token_type, token_room };
        let inner = lock(&self.inner);
        if inner.missing.is_missing(channel) {
            return None;
        }
        let rows = inner.state.subscriptions.range::<Subscription, _>(&first..);
        let rows = rows.take_while(|(one, _)| &*one.channel == channel);
        let confirmed: Vec<_> = rows.filter(|(_, row)| row.state.is_confirmed()).collect();
        let is_confirmed = |topic: &String| confirmed.iter().any(|(one, _)| &*one.topic == topic);
        if confirmed.is_empty() || !topics.iter().all(is_confirmed) {
            return None;
        }
        confirmed.iter().try_fold(Duration::ZERO, |longest, (_, row)| {
            let connection = inner.state.connections.get(&row.slot.connection()?)?;
            Some(longest.max(connection.last_frame?.elapsed()))
        })
    }

    /// For how long something of a channel has been missing.
    pub(crate) fn missing_for(&self, channel: &str) -> Option<Duration> {
        lock(&self.inner).missing.time(channel)
    }

    pub(crate) fn is_missing(&self, channel: &str) -> bool {
        lock(&self.inner).missing.is_missing(channel)
    }

    /// For how long what is missing longest has been missing.
    pub(super) fn longest_gap(&self) -> Option<Duration> {
        lock(&self.inner).missing.longest()
    }
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;
    use serde_json::{Value, json};
    use tokio::time::Instant;

    use super::*;
    use crate::{astro::session::Refusal, base::event};

    #[test]
    fn what_is_expected_already_changes_nothing() {
        let (table, tips) = (Table::default(), subscription("channel.tips"));
        let mut changes = table.changes();
        table.expect(std::slice::from_ref(&tips));
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        table.expect(&[tips]);
        assert!(!changes.has_changed().unwrap());
    }

    #[test]
    fn the_report_of_a_gap_has_the_room_that_is_confirmed_at_its_end() {
        let subscription = subscription("channel.tips");
        let table = Table::default();
        table.want(&[Arc::clone(&subscription)]);
        let away = Away { at: clock::now(), time: Some(Duration::from_secs(9)) };
        table.was_away(&subscription, away);
        table.assign([&subscription], Slot::On(1));
        let state = SubscriptionState::Confirmed(Some("canonical".into()));
        let update = Update { subscription, state, confirmed_at: None, is_unanswered: false };
        let mut rooms = Vec::new();
        table.update(1, &[update], |reports| {
            rooms.extend(reports.iter().map(|report| report.place.room.to_string()));
        });
        assert_eq!(rooms, ["canonical"]);
    }

    fn subscription(topic: &str) -> Arc<Subscription> {
        let (channel, topic) = ("main".into(), topic.into());
        Arc::new(Subscription {
            channel,
            topic,
            room: None,
            token_type: TokenType::Jwt,
            token_room: None,
        })
    }

    #[test]
    fn a_gap_without_a_holder_does_not_wait_for_what_is_refused_or_left_out() {
        let all = ["confirmed", "left out", "refused", "waiting"].map(subscription);
        let [confirmed, left_out, refused, waiting] = &all;
        let table = Table::default();
        assert!(table.want(&all).is_empty());
        table.assign(&all, Slot::On(1));
        assert!(table.leave_out(std::slice::from_ref(left_out)).is_empty());
        let refusal = Refusal::new("err_bad_request", "no", None, Instant::now());
        let updates = [
            (confirmed, SubscriptionState::Confirmed(None)),
            (refused, SubscriptionState::Refused(refusal)),
        ];
        let updates = updates.map(|(subscription, state)| Update {
            subscription: Arc::clone(subscription),
            state,
            confirmed_at: None,
            is_unanswered: false,
        });
        table.update(1, &updates, |reports| assert!(reports.is_empty()));

        let all_answered = [confirmed, left_out, refused];
        let reports = table.had_no_holder(&all_answered, Moment::now(), "nobody held it");
        let data: Value = serde_json::from_slice(reports[0].data()).unwrap();
        let expected = json!([["confirmed", true], ["left out", false], ["refused", false]]);
        assert_eq!((reports.len(), restored(&data)), (1, expected));

        // What has yet to be answered is waited for.
        let reports = table.had_no_holder(&[confirmed, waiting], Moment::now(), "nobody held it");
        assert!(reports.is_empty());
        assert_eq!(table.snapshot().outages.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_downtime_that_is_found_late_is_a_gap_until_the_confirmation() {
        let [confirmed, waiting] = ["confirmed", "waiting"].map(subscription);
        let table = on_a_connection(std::slice::from_ref(&confirmed));
        let (subscription, confirmed_at) = (Arc::clone(&confirmed), Some(clock::now()));
        let update = Update { subscription, state: CONFIRMED, confirmed_at, is_unanswered: false };
        table.update(1, &[update], |reports| assert!(reports.is_empty()));
        let later = Duration::from_hours(3);
        tokio::time::advance(later).await;
        // Confirmed on another connection since.
        let (subscription, confirmed_at) = (Arc::clone(&confirmed), Some(clock::now() + 1));
        let update = Update { subscription, state: CONFIRMED, confirmed_at, is_unanswered: false };
        table.update(1, &[update], |reports| assert!(reports.is_empty()));
        let time = Some(later + Duration::from_mins(10));
        let away = Away { at: clock::now(), time };
        let reports = table.was_away_before(&[&confirmed], away);
        let data: Value = serde_json::from_slice(reports[0].data()).unwrap();
        assert_eq!((reports.len(), &data["cause"]), (1, &json!(AWAY)));
        let seconds = data["seconds"].as_f64().unwrap();
        assert!((600.0..602.0).contains(&seconds), "{seconds}");
        assert!(table.snapshot().outages.is_empty());

        // What has yet to be answered ends it.
        let table = on_a_connection(&[Arc::clone(&waiting)]);
        assert!(table.was_away_before(&[&waiting], away).is_empty());
        assert_eq!(set(&table, &waiting, CONFIRMED).len(), 1);
    }

    /// Whether each topic of a gap was restored.
    fn restored(report: &Value) -> Value {
        let all = report["subscriptions"].as_array().unwrap().iter();
        all.map(|one| json!([one["topic"], one["restored"]])).collect()
    }

    /// A table with these on a connection.
    fn on_a_connection(all: &[Arc<Subscription>]) -> Table {
        let table = Table::default();
        assert!(table.want(all).is_empty());
        table.assign(all, Slot::On(1));
        table
    }

    /// Sets a subscription's state. Answers the reports of gaps that are over by that.
    fn set(
        table: &Table,
        subscription: &Arc<Subscription>,
        state: SubscriptionState,
    ) -> Vec<Value> {
        update(table, subscription, state, false)
    }

    fn update(
        table: &Table,
        subscription: &Arc<Subscription>,
        state: SubscriptionState,
        is_unanswered: bool,
    ) -> Vec<Value> {
        let reports = reports(table, subscription, state, is_unanswered);
        reports.iter().map(|report| serde_json::from_slice(report.data()).unwrap()).collect()
    }

    fn reports(
        table: &Table,
        subscription: &Arc<Subscription>,
        state: SubscriptionState,
        is_unanswered: bool,
    ) -> Vec<Event> {
        let subscription = Arc::clone(subscription);
        let update = Update { subscription, state, confirmed_at: None, is_unanswered };
        let mut reports = Vec::new();
        table.update(1, &[update], |made| reports.extend(made));
        reports
    }

    const CONFIRMED: SubscriptionState = SubscriptionState::Confirmed(None);

    fn refused(code: &str, seconds: u64) -> SubscriptionState {
        let wait = Some(Duration::from_secs(seconds));
        SubscriptionState::Refused(Refusal::new(code, "no", wait, Instant::now()))
    }

    fn lose(table: &Table) {
        table.lost(1, "connection lost");
        table.phase(1, Phase::Waiting, 1, None);
    }

    #[tokio::test(start_paused = true)]
    async fn in_a_cluster_a_gap_is_counted_when_it_is_published_and_once() {
        let tips = subscription("tips");
        let recorder = PrometheusBuilder::new().build_recorder();
        let counted = |name: &str| {
            let (text, name) = (recorder.handle().render(), format!("{name}{{channel=\"main\"}} "));
            let count = text.lines().find_map(|line| line.strip_prefix(&*name));
            count.map_or(0, |count| count.parse::<u64>().unwrap())
        };
        for in_cluster in [false, true] {
            let table = on_a_connection(std::slice::from_ref(&tips));
            if in_cluster {
                table.in_cluster();
            }
            assert!(set(&table, &tips, CONFIRMED).is_empty());
            lose(&table);
            let gaps = || {
                let listed = table.read(|state| (state.gap_count, state.gaps.len()));
                (counted("astro_relay_gaps_total"), listed)
            };
            let before = gaps();
            let confirm = || reports(&table, &tips, CONFIRMED, false);
            let reports = metrics::with_local_recorder(&recorder, confirm);
            assert_eq!(reports.len(), 1, "it is handed on either way");
            let counted_once = (before.0 + 1, (1, 1));
            assert_eq!(gaps(), if in_cluster { before } else { counted_once });
            let count = |report: &Event| {
                metrics::with_local_recorder(&recorder, || table.count_gap(report));
            };
            let place = &reports[0].place;
            let mut data: Value = serde_json::from_slice(reports[0].data()).unwrap();
            data["recovery"] = json!([]);
            count(&event::own("relay.gap", &place.channel, &place.room, &data, 1));
            count(&event::lost("rejected", "home", 1));
            assert_eq!(gaps(), if in_cluster { before } else { counted_once }, "these are no gaps");
            for _ in 0..2 {
                count(&reports[0]);
                assert_eq!(gaps(), counted_once);
            }
        }
    }

    #[test]
    fn in_a_cluster_what_was_counted_of_a_gap_is_not_counted_again() {
        let table = Table::default();
        table.in_cluster();
        let recorder = PrometheusBuilder::new().build_recorder();
        let report = |channel: &str, from: UnixMillis, to: UnixMillis| {
            let (from, to) = (clock::rfc3339(from), clock::rfc3339(to));
            let data = json!({"from": from, "to": to, "cause": "refused"});
            event::own("relay.gap", &channel.into(), &"".into(), &data, 1)
        };
        metrics::with_local_recorder(&recorder, || {
            table.count_gap(&report("main", 10_000, 30_000));
            table.count_gap(&report("other", 10_000, 20_500));
            table.count_gap(&report("main", 10_002, 70_000));
            table.count_gap(&report("main", 90_000, 95_000));
            // That of another connection, as it is counted alone.
            table.count_gap(&report("main", 93_000, 96_000));
        });
        let text = recorder.handle().render();
        for (channel, seconds) in [("main", 68), ("other", 11)] {
            let line =
                format!("astro_relay_gap_seconds_total{{channel=\"{channel}\"}} {seconds}\n");
            assert!(text.contains(&line), "{line}: {text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_confirmed_after_a_refusal_is_a_gap_since_it_was_lost() {
        let all = ["follow", "granted later", "tips"].map(subscription);
        let [follow, granted, tips] = &all;
        let table = on_a_connection(&all);
        let unauthorized = || refused("err_unauthorized", 300);
        assert!(set(&table, granted, unauthorized()).is_empty());
        for one in [follow, tips] {
            assert!(set(&table, one, CONFIRMED).is_empty());
        }
        lose(&table);
        tokio::time::advance(Duration::from_mins(1)).await;
        assert!(set(&table, granted, unauthorized()).is_empty());
        assert!(set(&table, follow, unauthorized()).is_empty());
        let reports = set(&table, tips, unauthorized());
        let expected = json!([["follow", false], ["tips", false]]);
        assert_eq!((reports.len(), restored(&reports[0])), (1, expected));
        assert!(table.snapshot().outages.is_empty());

        // It is asked for again and refused again, and the connection is lost again: that is the same gap.
        for one in [follow, tips] {
            assert!(set(&table, one, SubscriptionState::Waiting).is_empty());
            assert!(set(&table, one, unauthorized()).is_empty());
        }
        lose(&table);
        tokio::time::advance(Duration::from_mins(1)).await;
        for one in &all {
            assert!(set(&table, one, SubscriptionState::Pending).is_empty());
        }
        assert!(set(&table, granted, CONFIRMED).is_empty(), "it was never there before");
        assert!(set(&table, follow, CONFIRMED).is_empty(), "the other is waited for");
        let reports = set(&table, tips, CONFIRMED);
        let expected = json!([["follow", true], ["tips", true]]);
        assert_eq!((reports.len(), restored(&reports[0])), (1, expected));
        assert_eq!(reports[0]["cause"], "connection lost");
        let seconds = reports[0]["seconds"].as_f64().unwrap();
        assert!((seconds - 120.0).abs() < 2.0, "{seconds}");
        assert!(lock(&table.inner).missing.is_empty(), "nothing is remembered any more");
    }

    #[tokio::test(start_paused = true)]
    async fn a_gap_waits_for_what_is_tried_again_soon_and_no_longer() {
        let all = ["follow", "tips"].map(subscription);
        let [follow, tips] = &all;
        let table = on_a_connection(&all);
        for one in &all {
            assert!(set(&table, one, CONFIRMED).is_empty());
        }
        lose(&table);
        assert!(set(&table, follow, CONFIRMED).is_empty());
        for seconds in [2, 4, 8] {
            assert!(set(&table, tips, refused("err_internal_error", seconds)).is_empty());
            assert!(set(&table, tips, SubscriptionState::Pending).is_empty());
        }
        let reports = set(&table, tips, refused("err_internal_error", 16));
        let expected = json!([["follow", true], ["tips", false]]);
        assert_eq!((reports.len(), restored(&reports[0])), (1, expected));
        let reports = set(&table, tips, CONFIRMED);
        assert_eq!((reports.len(), restored(&reports[0])), (1, json!([["tips", true]])));
    }

    #[tokio::test(start_paused = true)]
    async fn a_gap_does_not_wait_for_what_is_never_answered() {
        let all = ["odd", "tips"].map(subscription);
        let [odd, tips] = &all;
        let table = on_a_connection(&all);
        for one in &all {
            assert!(set(&table, one, CONFIRMED).is_empty());
        }
        lose(&table);
        assert!(set(&table, tips, CONFIRMED).is_empty());
        for state in [SubscriptionState::Pending, SubscriptionState::Waiting] {
            assert!(update(&table, odd, state, false).is_empty());
        }
        let reports = update(&table, odd, SubscriptionState::Waiting, true);
        let expected = json!([["odd", false], ["tips", true]]);
        assert_eq!((reports.len(), restored(&reports[0])), (1, expected));
        assert!(update(&table, odd, SubscriptionState::Pending, true).is_empty());
        let is_waited_for = || table.read(|state| state.subscriptions[odd].is_waited_for());
        assert!(!is_waited_for());

        // It is asked for again on the next connection.
        lose(&table);
        assert!(is_waited_for());
        let reports = set(&table, tips, CONFIRMED);
        assert_eq!((reports.len(), restored(&reports[0])), (1, json!([["tips", true]])));
        let reports = set(&table, odd, CONFIRMED);
        assert_eq!((reports.len(), restored(&reports[0])), (1, json!([["odd", true]])));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_refused_on_the_next_connection_is_missing_until_it_is_confirmed() {
        let tips = subscription("tips");
        let table = on_a_connection(std::slice::from_ref(&tips));
        assert!(set(&table, &tips, CONFIRMED).is_empty());
        let reports = set(&table, &tips, refused("err_unauthorized", 300));
        assert_eq!((reports.len(), restored(&reports[0])), (1, json!([["tips", false]])));
        tokio::time::advance(Duration::from_mins(1)).await;
        let reports = set(&table, &tips, CONFIRMED);
        assert_eq!((reports.len(), restored(&reports[0])), (1, json!([["tips", true]])));
        let seconds = reports[0]["seconds"].as_f64().unwrap();
        assert!((seconds - 60.0).abs() < 2.0, "{seconds}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_channel_is_as_silent_as_the_most_silent_connection_that_carries_it() {
        let all = ["follow", "tips"].map(subscription);
        let [follow, tips] = &all;
        let table = on_a_connection(&all);
        table.assign([follow], Slot::On(2));
        for number in [1, 2] {
            table.phase(number, Phase::Open, 0, None);
            table.frame(number, Moment::now());
        }
        let silence = |topics: &[&str]| {
            let topics: Vec<_> = topics.iter().map(|topic| (*topic).to_owned()).collect();
            table.silence("main", &topics)
        };
        assert!(set(&table, tips, CONFIRMED).is_empty());
        assert_eq!(silence(&["tips"]), Some(Duration::ZERO));
        assert_eq!(silence(&["tips", "follow"]), None, "one is not confirmed");
        let (subscription, state) = (Arc::clone(follow), CONFIRMED);
        let update = Update { subscription, state, confirmed_at: None, is_unanswered: false };
        table.update(2, &[update], |reports| assert!(reports.is_empty()));
        tokio::time::advance(Duration::from_secs(7)).await;
        table.frame(2, Moment::now());
        assert_eq!(silence(&["follow"]), Some(Duration::from_secs(7)));
        table.frame(1, Moment::now());
        assert_eq!(silence(&["follow", "tips"]), Some(Duration::ZERO));
        assert_eq!(table.silence("mai", &[]), None);
        assert_eq!(table.silence("main2", &[]), None);

        // Whoever is just noting that a connection was lost has not yet changed the rows.
        table.lost(1, "connection lost");
        assert_eq!(silence(&[]), None);
        assert_eq!(table.missing_for("main"), Some(Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn of_a_refused_subscription_that_is_no_longer_wanted_nothing_is_remembered() {
        let tips = subscription("tips");
        let all = std::slice::from_ref(&tips);
        let table = on_a_connection(all);
        assert!(set(&table, &tips, CONFIRMED).is_empty());
        lose(&table);
        assert_eq!(set(&table, &tips, refused("err_unauthorized", 300)).len(), 1);
        assert!(table.want(&[]).is_empty());
        assert!(lock(&table.inner).missing.is_empty());
        assert!(table.want(all).is_empty());
        table.assign(all, Slot::On(1));
        assert!(set(&table, &tips, CONFIRMED).is_empty());
    }
}
