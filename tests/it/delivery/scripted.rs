//! A far side that answers as it is told, and the delivery to it.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use astro_relay::{
    base::event::{Origin, Seq},
    config::SinkConfig,
    delivery::{Delivery, route::Route},
    gateway::status::Status,
    journal::Journal,
    sink::{self, Cause, Failure, Outgoing, Sink},
};
use async_trait::async_trait;
use fastrand::Rng;
use tokio::{sync::Notify, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::support::{journal::number, sinks};

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

/// When it answers for what is on its way.
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
    accepted: Vec<(Seq, Origin, u64)>,
    gaps: Vec<serde_json::Value>,
    batches: Vec<Vec<u64>>,
    connected_at: Vec<Instant>,
    delivered_at: Vec<Instant>,
    window: Option<(Journal, String)>,
    in_flight: usize,
    later: Option<Later>,
    on_its_way: Vec<Seq>,
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

/// The far side; clones are the same one.
#[derive(Clone, Default)]
pub struct Far(Arc<Mutex<State>>);

pub fn down() -> Cause {
    Cause::Down("as the test says".into())
}

pub fn busy(wait: Option<Duration>) -> Cause {
    Cause::Busy { wait, reason: "as the test says".into() }
}

pub fn refused() -> Cause {
    Cause::Rejected { reason: "as the test says".into() }
}

impl Far {
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
        self.lock().on_its_way.len()
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
        self.lock().in_flight
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
            if self.poison.as_ref().is_some_and(|poison| poison(n)) {
                return Err(Failure::after(index, refused()));
            }
            self.accepted.push((record.seq, event.origin, n));
        }
        Ok(())
    }

    /// How many of a flight it answers for now. Nothing else may be on its way than what it knows of.
    fn answers_for(&mut self, flight: &[Outgoing], fresh: usize) -> Option<usize> {
        let later = self.later.as_mut()?;
        let (before, new) = flight.split_at(flight.len() - fresh);
        let on_its_way = std::mem::take(&mut self.on_its_way);
        assert!(before.iter().map(|outgoing| outgoing.record.seq).eq(on_its_way), "as it was left");
        self.overlaps += usize::from(!before.is_empty() && !new.is_empty());
        self.waits += usize::from(new.is_empty());
        Some(match later {
            Later::AtWill(random) => random.usize(usize::from(new.is_empty())..=flight.len()),
            Later::Behind if new.is_empty() => flight.len(),
            Later::Behind => before.len(),
        })
    }

    /// Sent and not saved: this batch, and what was taken of those before.
    fn measure(&mut self, batch: &[Outgoing]) {
        let Some((journal, sink)) = &self.window else { return };
        let saved = journal.saved(sink);
        let out = self.accepted.iter().rev().take_while(|(seq, ..)| *seq > saved).count();
        self.in_flight = self.in_flight.max(out + batch.len());
    }
}

#[async_trait]
impl Sink for Far {
    async fn connect(&mut self) -> Result<(), Failure> {
        let (answer, hang) = {
            let mut state = self.lock();
            state.connected_at.push(Instant::now());
            state.on_its_way.clear();
            (state.connects.pop_front().flatten(), state.hang_connecting)
        };
        if hang {
            std::future::pending::<()>().await;
        }
        answer.map_or(Ok(()), |cause| Err(Failure::after(0, cause)))
    }

    async fn deliver(&mut self, batch: &[Outgoing]) -> Result<(), Failure> {
        assert!(!batch.is_empty());
        let answer = {
            let mut state = self.lock();
            state.delivered_at.push(Instant::now());
            state.measure(batch);
            let numbers = batch.iter().map(|outgoing| outgoing.record.seq - 1).collect();
            state.batches.push(numbers);
            state.answers.pop_front().unwrap_or(Answer::Accept)
        };
        let (most, cause) = match answer {
            Answer::Accept => (usize::MAX, None),
            Answer::Slow(time) => {
                tokio::time::sleep(time).await;
                (usize::MAX, None)
            }
            Answer::After(most, cause) => (most, Some(cause)),
            Answer::Hang => std::future::pending().await,
        };
        let mut state = self.lock();
        state.take(batch, most)?;
        match cause {
            Some(cause) => Err(Failure::after(most.min(batch.len()), cause)),
            None => Ok(()),
        }
    }

    async fn idle(&mut self) -> Failure {
        let (lost, hangs_up) = {
            let state = self.lock();
            (Arc::clone(&state.lost), state.hangs_up_when_idle)
        };
        if hangs_up {
            tokio::time::sleep(Duration::from_secs(1)).await;
        } else {
            lost.notified().await;
        }
        Failure::after(0, Cause::closed("the test ends the connection"))
    }

    fn room(&self, flight: &[Outgoing]) -> Option<usize> {
        let state = self.lock();
        let open = flight.iter().filter(|event| !state.has.contains(&event.record.seq)).count();
        state.several.map(|most| most.saturating_sub(open))
    }

    fn begin_nothing_more(&mut self) {
        self.lock().ending = true;
    }

    fn acknowledged(&self, flight: &[Outgoing]) -> Vec<bool> {
        let state = self.lock();
        flight.iter().map(|event| state.has.contains(&event.record.seq)).collect()
    }

    async fn deliver_ahead(&mut self, flight: &[Outgoing], fresh: usize) -> Result<usize, Failure> {
        if self.lock().several.is_some() {
            return self.several(flight, fresh).await;
        }
        let answered = {
            let mut state = self.lock();
            state.measure(flight);
            state.answers_for(flight, fresh).unwrap_or(flight.len())
        };
        let (now, later) = flight.split_at(answered);
        if !now.is_empty() {
            self.deliver(now).await?;
        }
        self.lock().on_its_way = later.iter().map(|outgoing| outgoing.record.seq).collect();
        Ok(answered)
    }

    async fn close(&mut self) {
        let mut state = self.lock();
        if state.several.is_none() {
            assert!(state.on_its_way.is_empty(), "what is on its way is finished first");
        }
        // The next process has another sink.
        state.has.clear();
        state.on_its_way.clear();
        (state.closed, state.ending, state.stuck) = (true, false, 0);
    }
}

impl Far {
    /// Takes each event by itself.
    async fn several(&self, flight: &[Outgoing], fresh: usize) -> Result<usize, Failure> {
        loop {
            {
                let mut state = self.lock();
                for outgoing in flight {
                    let seq = outgoing.record.seq;
                    let n = number(&outgoing.record);
                    let held = state.withholds.as_ref().is_some_and(|withholds| withholds(n));
                    if !held && !state.ending && state.has.insert(seq) {
                        state.accepted.push((seq, outgoing.record.event.origin, n));
                    }
                }
                let has = |event: &&Outgoing| state.has.contains(&event.record.seq);
                let first = flight.iter().take_while(has).count();
                state.on_its_way = flight.iter().map(|event| event.record.seq).collect();
                if first > 0 || fresh > 0 {
                    state.stuck = 0;
                    return Ok(first);
                }
                if state.ending {
                    return Err(Failure::down("nothing more begins"));
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
        far: &Far,
        choose: impl FnOnce(&mut SinkConfig),
    ) -> Self {
        Self::start_with(super::status(), name, journal, far, choose)
    }

    /// The same with the pages of a task before it.
    #[expect(clippy::disallowed_methods, reason = "the test is the supervisor")]
    pub fn start_with(
        status: Arc<Status>,
        name: &str,
        journal: &Journal,
        far: &Far,
        choose: impl FnOnce(&mut SinkConfig),
    ) -> Self {
        let mut config = sinks::config("stdout", Duration::from_secs(30));
        config.backoff_max.0 = Duration::from_mins(1);
        choose(&mut config);
        let route = Route::new(name, &config, sink::kind("stdout").unwrap()).unwrap();
        let sink = Box::new(far.clone());
        let delivery =
            Delivery::new(name, &config, sink, route, journal.clone(), Arc::clone(&status))
                .unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(delivery.run(stop.clone()));
        Self { status, stop, task }
    }

    /// The page of the sink `far`.
    pub fn page(&self) -> astro_relay::gateway::status::Sink {
        self.status.look(|pages| pages.sinks["far"].clone())
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
