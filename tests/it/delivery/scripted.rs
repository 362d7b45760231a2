//! A destination that answers as it is told, and the delivery to it.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use astro_relay::{
    base::event::{Origin, Seq},
    config::SinkConfig,
    delivery::{Delivery, route::Route, status::Status},
    journal::Journal,
    sink::{self, Cause, Failure, Outgoing, Sink},
};
use async_trait::async_trait;
use fastrand::Rng;
use tokio::{sync::Notify, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::support::{asyncapi, journal::number, sinks};

/// What it says to a batch.
pub enum Answer {
    /// Yes to all of it, but to what is poison.
    Accept,
    /// The same, after a while.
    Slow(Duration),
    /// It takes so many, and then this.
    After(usize, Cause),
    /// Nothing, ever.
    Hang,
}

/// What it is about to answer.
struct Current {
    count: usize,
    answer: Answer,
    at: Instant,
}

/// When it answers for what is in flight.
enum Later {
    /// For as much of it at a time as it likes.
    AtWill(Rng),
    /// When something is handed over behind it, or when it is waited for.
    Behind,
}

#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a line of the script")]
struct State {
    answers: VecDeque<Answer>,
    connects: VecDeque<Option<Cause>>,
    hang_connecting: bool,
    poison: Option<Which>,
    busy: Option<Which>,
    accepted: Vec<(Seq, Origin, u64)>,
    gaps: Vec<serde_json::Value>,
    batches: Vec<Vec<u64>>,
    connected_at: Vec<Instant>,
    delivered_at: Vec<Instant>,
    window: Option<(Journal, String)>,
    most_in_flight: usize,
    later: Option<Later>,
    in_flight: VecDeque<Outgoing>,
    /// So many of them were in flight before the last was sent.
    before: usize,
    /// What it does with the first of them.
    current: Option<Current>,
    overlaps: usize,
    waits: usize,
    closed: bool,
    lost: Arc<Notify>,
    hangs_up: Option<Which>,
    hangs_up_when_idle: bool,
    panics: Option<Which>,
    /// How many it takes at once, each by itself.
    several: Option<usize>,
    withholds: Option<Which>,
    has: BTreeSet<Seq>,
    ending: bool,
    stuck: usize,
}

/// Chooses events by their number.
type Which = Box<dyn Fn(u64) -> bool + Send>;

/// The destination; clones are the same one.
#[derive(Clone, Default)]
pub struct Scripted(Arc<Mutex<State>>);

pub fn down() -> Cause {
    Cause::Down("as the test says".into())
}

pub fn busy(wait: Option<Duration>) -> Cause {
    Cause::Busy { wait, reason: "as the test says".into() }
}

pub fn refused() -> Cause {
    Cause::Rejected { reason: "as the test says".into() }
}

impl Scripted {
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic is part of the script.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it says to the next batches; afterwards it accepts.
    pub fn script(&self, answers: impl IntoIterator<Item = Answer>) {
        self.lock().answers = answers.into_iter().collect();
    }

    /// What it says to the next attempts to connect; afterwards it takes them.
    pub fn connects(&self, answers: impl IntoIterator<Item = Option<Cause>>) {
        self.lock().connects = answers.into_iter().collect();
    }

    /// It never finishes to connect.
    pub fn hang_connecting(&self) {
        self.lock().hang_connecting = true;
    }

    /// What it refuses.
    pub fn poison(&self, poison: impl Fn(u64) -> bool + Send + 'static) {
        self.lock().poison = Some(Box::new(poison));
    }

    /// At what it asks for patience.
    pub fn is_busy_at(&self, at: impl Fn(u64) -> bool + Send + 'static) {
        self.lock().busy = Some(Box::new(at));
    }

    /// At what it ends the connection.
    pub fn hangs_up_at(&self, at: impl Fn(u64) -> bool + Send + 'static) {
        self.lock().hangs_up = Some(Box::new(at));
    }

    /// Whether it ends every connection after a second without anything.
    pub fn hangs_up_when_idle(&self, it_does: bool) {
        self.lock().hangs_up_when_idle = it_does;
    }

    /// At what the sink panics.
    pub fn panics_at(&self, at: impl Fn(u64) -> bool + Send + 'static) {
        self.lock().panics = Some(Box::new(at));
    }

    /// The connection is lost while nothing goes over it.
    pub fn lose(&self) {
        self.lock().lost.notify_one();
    }

    /// It takes so many at once, each by itself.
    pub fn takes_several(&self, most: usize) {
        self.lock().several = Some(most);
    }

    /// For what it does not answer, where it takes several.
    pub fn withholds(&self, what: impl Fn(u64) -> bool + Send + 'static) {
        self.lock().withholds = Some(Box::new(what));
    }

    /// Whether all that is on its way is withheld.
    pub fn is_stuck(&self) -> bool {
        self.lock().stuck > 3
    }

    /// How much of what it was given it has not answered for.
    pub fn on_its_way(&self) -> usize {
        self.lock().in_flight.len()
    }

    /// Notes how much was sent and not saved, with every batch.
    pub fn watch_window(&self, journal: &Journal, sink: &str) {
        self.lock().window = Some((journal.clone(), sink.to_owned()));
    }

    /// It takes what comes next before it has answered for what is on its way, and answers for as much
    /// of it at a time as it likes.
    pub fn answers_later(&self, random: Rng) {
        self.lock().later = Some(Later::AtWill(random));
    }

    /// It answers for what is on its way when something is handed over behind it, or when it is waited
    /// for.
    pub fn answers_behind(&self) {
        self.lock().later = Some(Later::Behind);
    }

    /// How often nothing was handed over and an answer was waited for.
    pub fn waits(&self) -> usize {
        self.lock().waits
    }

    /// How often something was handed over behind what was on its way.
    pub fn overlaps(&self) -> usize {
        self.lock().overlaps
    }

    /// What it has accepted as new.
    pub fn accepted(&self) -> Vec<u64> {
        let new = |(_, origin, n): &(Seq, Origin, u64)| (*origin == Origin::Live).then_some(*n);
        self.lock().accepted.iter().filter_map(new).collect()
    }

    /// What it has accepted as replayed.
    pub fn replayed(&self) -> Vec<u64> {
        let again =
            |(_, origin, n): &(Seq, Origin, u64)| (*origin == Origin::Replayed).then_some(*n);
        self.lock().accepted.iter().filter_map(again).collect()
    }

    /// The events on the topic `relay.gap`: their data.
    pub fn gaps(&self) -> Vec<serde_json::Value> {
        self.lock().gaps.clone()
    }

    /// Every batch that came, accepted or not.
    pub fn batches(&self) -> Vec<Vec<u64>> {
        self.lock().batches.clone()
    }

    pub fn connected_at(&self) -> Vec<Instant> {
        self.lock().connected_at.clone()
    }

    pub fn delivered_at(&self) -> Vec<Instant> {
        self.lock().delivered_at.clone()
    }

    pub fn most_in_flight(&self) -> usize {
        self.lock().most_in_flight
    }

    pub fn closed(&self) -> bool {
        self.lock().closed
    }
}

impl State {
    fn take(&mut self, batch: &[Outgoing], most: usize) -> Result<(), Failure> {
        for (index, outgoing) in batch.iter().take(most).enumerate() {
            let event = &outgoing.record.event;
            if &*event.place.topic == "relay.gap" {
                asyncapi::accepts(event);
                self.gaps.push(serde_json::from_slice(event.data()).unwrap());
                continue;
            }
            let mut record = (*outgoing.record).clone();
            record.event.origin = Origin::Live;
            let n = number(&record);
            assert!(!self.panics.as_ref().is_some_and(|panics| panics(n)), "as the test says");
            if self.hangs_up.as_ref().is_some_and(|hangs_up| hangs_up(n)) {
                return Err(Failure::after(index, Cause::closed("the test ends the connection")));
            }
            if self.busy.as_ref().is_some_and(|is_busy_at| is_busy_at(n)) {
                return Err(Failure::after(index, busy(None)));
            }
            if self.poison.as_ref().is_some_and(|poison| poison(n)) {
                return Err(Failure::after(index, refused()));
            }
            self.accepted.push((record.seq, event.origin, n));
        }
        Ok(())
    }

    /// Chooses what it answers for next, and how.
    fn begin(&mut self) {
        let all = self.in_flight.len();
        let count = match &mut self.later {
            Some(Later::AtWill(random)) => random.usize(1..=all),
            Some(Later::Behind) if self.before > 0 => self.before,
            Some(Later::Behind) | None => all,
        };
        self.delivered_at.push(Instant::now());
        self.batches
            .push(self.in_flight.iter().take(count).map(|one| one.record.seq - 1).collect());
        let answer = self.answers.pop_front().unwrap_or(Answer::Accept);
        let wait = match answer {
            Answer::Slow(time) => time,
            _ => Duration::ZERO,
        };
        self.current = Some(Current { count, answer, at: Instant::now() + wait });
    }

    /// Sent and not saved: what is in flight, and what was taken of what was before.
    fn measure(&mut self) {
        let Some((journal, sink)) = &self.window else { return };
        let saved = journal.saved(sink);
        let out = self.accepted.iter().rev().take_while(|(seq, ..)| *seq > saved).count();
        self.most_in_flight = self.most_in_flight.max(out + self.in_flight.len());
    }

    /// Answers as it has chosen.
    fn answer(&mut self, Current { count, answer, .. }: Current) -> Result<usize, Failure> {
        let (most, cause) = match answer {
            Answer::After(most, cause) => (most, Some(cause)),
            _ => (usize::MAX, None),
        };
        let events: Vec<_> = self.in_flight.iter().take(count).cloned().collect();
        let outcome = self.take(&events, most);
        let outcome = match cause {
            Some(cause) if outcome.is_ok() => Err(Failure::after(most.min(count), cause)),
            _ => outcome.map(|()| count),
        };
        let gone = match &outcome {
            Ok(count) => *count,
            Err(Failure { accepted, cause: Cause::Rejected { .. } }) => accepted + 1,
            Err(_) => self.in_flight.len(),
        };
        self.in_flight.drain(..gone);
        self.before = self.before.saturating_sub(gone);
        outcome
    }
}

/// What is to be waited for before it answers.
enum Wait {
    Idle(Arc<Notify>, bool),
    Until(Instant),
    /// For something to be sent behind, or for half a second.
    Behind,
    ForEver,
}

#[async_trait]
impl Sink for Scripted {
    async fn connect(&mut self) -> Result<(), Failure> {
        let (answer, hang) = {
            let mut state = self.lock();
            state.connected_at.push(Instant::now());
            state.in_flight.clear();
            (state.before, state.current) = (0, None);
            (state.connects.pop_front().flatten(), state.hang_connecting)
        };
        if hang {
            std::future::pending::<()>().await;
        }
        answer.map_or(Ok(()), |cause| Err(Failure::after(0, cause)))
    }

    async fn send(&mut self, events: &[Outgoing]) -> Result<usize, Failure> {
        assert!(!events.is_empty());
        let mut state = self.lock();
        let in_flight = state.in_flight.len();
        let room = match state.several {
            Some(most) => {
                let open =
                    state.in_flight.iter().filter(|event| !state.has.contains(&event.record.seq));
                most.saturating_sub(open.count())
            }
            None if state.later.is_some() || in_flight == 0 => usize::MAX,
            None => 0,
        };
        let count = room.min(events.len());
        state.in_flight.extend(events.iter().take(count).cloned());
        state.overlaps += usize::from(in_flight > 0 && count > 0);
        if count > 0 {
            state.before = in_flight;
        }
        state.measure();
        if state.later.is_none() && state.several.is_none() && count > 0 {
            state.begin();
        }
        Ok(count)
    }

    async fn acknowledged(&mut self) -> Result<usize, Failure> {
        if self.lock().several.is_some() {
            return self.several().await;
        }
        loop {
            let wait = {
                let mut state = self.lock();
                if state.in_flight.is_empty() {
                    Wait::Idle(Arc::clone(&state.lost), state.hangs_up_when_idle)
                } else if state.current.is_none()
                    && state.before == 0
                    && matches!(state.later, Some(Later::Behind))
                {
                    Wait::Behind
                } else {
                    if state.current.is_none() {
                        state.begin();
                    }
                    match state.current.take().unwrap() {
                        current @ Current { answer: Answer::Hang, .. } => {
                            state.current = Some(current);
                            Wait::ForEver
                        }
                        current if current.at > Instant::now() => {
                            let at = current.at;
                            state.current = Some(current);
                            Wait::Until(at)
                        }
                        current => {
                            let outcome = state.answer(current);
                            if state.later.is_none() && !state.in_flight.is_empty() {
                                state.begin();
                            }
                            return outcome;
                        }
                    }
                }
            };
            match wait {
                Wait::Idle(_, true) => {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    return Err(Failure::after(0, Cause::closed("the test ends the connection")));
                }
                Wait::Idle(lost, false) => {
                    lost.notified().await;
                    return Err(Failure::after(0, Cause::closed("the test ends the connection")));
                }
                Wait::Until(at) => tokio::time::sleep_until(at).await,
                Wait::Behind => {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    let mut state = self.lock();
                    state.waits += 1;
                    state.begin();
                }
                Wait::ForEver => std::future::pending().await,
            }
        }
    }

    async fn close(&mut self, until: Instant) -> Vec<(Seq, u8)> {
        let mut accepted = Vec::new();
        self.lock().ending = true;
        if self.lock().several.is_none() {
            let mut waiting: VecDeque<_> =
                self.lock().in_flight.iter().map(Outgoing::number).collect();
            while !self.lock().in_flight.is_empty() {
                match tokio::time::timeout_at(until, self.acknowledged()).await {
                    Ok(Ok(count)) => accepted.extend(waiting.drain(..count)),
                    Ok(Err(failure)) => {
                        accepted.extend(waiting.drain(..failure.accepted));
                        break;
                    }
                    Err(_) => break,
                }
            }
        }
        let mut state = self.lock();
        let has = |event: &&Outgoing| state.has.contains(&event.record.seq);
        accepted.extend(state.in_flight.iter().filter(has).map(Outgoing::number));
        // The next process has another sink.
        state.has.clear();
        state.in_flight.clear();
        (state.closed, state.ending, state.stuck) = (true, false, 0);
        accepted
    }
}

impl Scripted {
    /// Takes each event by itself.
    async fn several(&self) -> Result<usize, Failure> {
        loop {
            if self.lock().in_flight.is_empty() {
                std::future::pending::<()>().await;
            }
            {
                let mut state = self.lock();
                for outgoing in state.in_flight.clone() {
                    let seq = outgoing.record.seq;
                    let n = number(&outgoing.record);
                    let held = state.withholds.as_ref().is_some_and(|withholds| withholds(n));
                    if !held && !state.ending && state.has.insert(seq) {
                        state.accepted.push((seq, outgoing.record.event.origin, n));
                    }
                }
                let has = |event: &&Outgoing| state.has.contains(&event.record.seq);
                let first = state.in_flight.iter().take_while(has).count();
                if first > 0 {
                    state.in_flight.drain(..first);
                    state.stuck = 0;
                    return Ok(first);
                }
                state.stuck += 1;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// A delivery at work.
pub struct Running {
    pub status: Arc<Status>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    pub fn start(
        name: &str,
        journal: &Journal,
        destination: &Scripted,
        choose: impl FnOnce(&mut SinkConfig),
    ) -> Self {
        Self::start_with(super::status(), name, journal, destination, choose)
    }

    /// The same with the pages of a task before it.
    #[expect(clippy::disallowed_methods, reason = "the test is the supervisor")]
    pub fn start_with(
        status: Arc<Status>,
        name: &str,
        journal: &Journal,
        destination: &Scripted,
        choose: impl FnOnce(&mut SinkConfig),
    ) -> Self {
        let mut config = sinks::config("stdout", Duration::from_secs(30));
        config.backoff_max.0 = Duration::from_mins(1);
        choose(&mut config);
        let route = Route::new(name, &config, sink::kind("stdout").unwrap()).unwrap();
        let sink = Box::new(destination.clone());
        let delivery =
            Delivery::new(name, &config, sink, route, journal.clone(), Arc::clone(&status))
                .unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(delivery.run(stop.clone()));
        Self { status, stop, task }
    }

    /// The page of the sink `out`.
    pub fn page(&self) -> astro_relay::delivery::status::Sink {
        self.status.read(|now| now.sinks["destination"].clone())
    }

    /// Waits until the task has failed, and hands the pages on.
    pub async fn fails(self) -> Arc<Status> {
        assert!(self.task.await.unwrap_err().is_panic());
        self.status
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}
