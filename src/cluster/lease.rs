//! The timing of a lease: until when its holder may act.
//!
//! A lease is a key that the server forgets [`Lease::time`] after it has stored it. The holder stores it
//! again and again. It cannot know when the server stored it, but it was not before the request was *sent*:
//! so it may act until a fraction of the lease time has passed since it sent the last request that
//! succeeded, by its own clock that does not step and that goes on while the process is stopped or the
//! machine sleeps. The rest of the lease time is for clocks that run at different speeds, and for what was
//! handed out in the last moment and is on its way.
//!
//! Another can take the lease only when the server has forgotten it: at the earliest a whole lease time
//! after that request was sent.

use std::time::Duration;

use crate::base::clock::Moment;

/// The part of the lease time in which its holder may act: tenths.
const ACTS: u32 = 7;

/// How often it is renewed within the lease time.
const RENEWALS: u32 = 3;

/// A lease that is held, or was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    time: Duration,
    /// When the last request was sent of which it is known that it succeeded.
    sent: Moment,
}

impl Lease {
    /// It was taken by a request that was sent then.
    pub fn taken(time: Duration, sent: Moment) -> Self {
        Self { time, sent }
    }

    /// It was renewed by a request that was sent then. Answers may come in any order.
    pub fn renewed(&mut self, sent: Moment) {
        if sent.elapsed() < self.sent.elapsed() {
            self.sent = sent;
        }
    }

    /// For how long its holder may still act; zero: not at all.
    pub fn left(&self) -> Duration {
        (self.time * ACTS / 10).saturating_sub(self.sent.elapsed())
    }

    pub fn may_act(&self) -> bool {
        !self.left().is_zero()
    }

    /// How long ago the request was sent that it rests on.
    pub fn age(&self) -> Duration {
        self.sent.elapsed()
    }
}

/// How long to wait between two renewals.
pub fn renewal(time: Duration) -> Duration {
    time / RENEWALS
}

/// How long a request about a lease may take: a second attempt must fit in before the holder has to stop.
pub fn patience(time: Duration) -> Duration {
    time / 5
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::time::advance;

    use super::*;

    const TIME: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn its_holder_stops_after_seven_tenths_since_it_sent() {
        let mut lease = Lease::taken(TIME, Moment::now());
        advance(Duration::from_millis(6999)).await;
        assert!(lease.may_act());
        advance(Duration::from_millis(1)).await;
        assert!(!lease.may_act());
        let sent = Moment::now();
        advance(Duration::from_secs(3)).await;
        lease.renewed(sent);
        assert_eq!(lease.left(), Duration::from_secs(4));
        lease.renewed(Moment::now());
        lease.renewed(sent);
        assert_eq!(lease.left(), Duration::from_secs(7), "an older answer changes nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn its_age_is_that_of_the_last_request_that_succeeded() {
        let mut lease = Lease::taken(TIME, Moment::now());
        advance(Duration::from_secs(3)).await;
        assert_eq!(lease.age(), Duration::from_secs(3));
        lease.renewed(Moment::now());
        advance(Duration::from_secs(1)).await;
        assert_eq!(lease.age(), Duration::from_secs(1));
    }

    #[test]
    fn a_second_attempt_begins_well_before_the_holder_has_to_stop() {
        assert_eq!((renewal(TIME * 3), patience(TIME)), (TIME, Duration::from_secs(2)));
        let acts = Lease::taken(TIME, Moment::now()).left();
        assert!(renewal(TIME) + patience(TIME) + Duration::from_secs(1) < acts);
    }

    /// What the model does next.
    #[derive(Debug, Clone)]
    enum Step {
        /// The holder sends a renewal; the server stores it this much later, and its answer takes that much.
        Renew { way: u64, back: u64 },
        /// The answer to the oldest renewal reaches the holder, if it is due.
        Answer,
        /// Time passes: a delay, a process that is stopped, a machine that sleeps.
        Pass(u64),
        /// A contender tries to take the lease.
        Contend,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u64..6000, 0u64..6000).prop_map(|(way, back)| Step::Renew { way, back }),
            Just(Step::Answer),
            (0u64..15_000).prop_map(Step::Pass),
            Just(Step::Contend),
        ]
    }

    /// A server that stores a key and forgets it, and holders that follow the rules above. Requests are
    /// stored in any order of delays; each is stored only if the key still stands as its sender believes.
    struct World {
        /// When the server stored the key last; and whose it is.
        stored: Option<(Duration, usize)>,
        now: Duration,
        /// How far the paused clock is.
        clock: Duration,
        leases: Vec<Option<Lease>>,
        /// Requests under way: whose, when sent, when stored, when answered.
        under_way: Vec<(usize, Moment, Duration, Duration, Option<bool>)>,
    }

    impl World {
        fn forget(&mut self) {
            if self.stored.is_some_and(|(at, _)| self.now >= at + TIME) {
                self.stored = None;
            }
        }

        /// Carries out what is due, in the order of the times.
        async fn pass(&mut self, until: Duration) {
            while self.now < until {
                let step = until.saturating_sub(self.now) / 64;
                self.now += step.max(Duration::from_millis(1));
                self.now = self.now.min(until);
                advance(self.now.saturating_sub(self.clock)).await;
                self.clock = self.now;
                self.forget();
                for index in 0..self.under_way.len() {
                    let (who, _, at, _, outcome) = self.under_way[index];
                    if outcome.is_none() && at <= self.now {
                        let ok = self.stored.is_none_or(|(_, holder)| holder == who);
                        if ok {
                            self.stored = Some((self.now, who));
                        }
                        self.under_way[index].4 = Some(ok);
                    }
                }
                self.check();
            }
        }

        fn answers(&mut self) {
            let now = self.now;
            let mut rest = Vec::new();
            for one in std::mem::take(&mut self.under_way) {
                let (who, sent, _, answered, outcome) = one;
                match outcome {
                    Some(true) if answered <= now => match &mut self.leases[who] {
                        Some(lease) => lease.renewed(sent),
                        none => *none = Some(Lease::taken(TIME, sent)),
                    },
                    Some(false) if answered <= now => self.leases[who] = None,
                    _ => rest.push(one),
                }
            }
            self.under_way = rest;
        }

        /// Never may two act.
        fn check(&self) {
            let acting = self.leases.iter().flatten().filter(|lease| lease.may_act()).count();
            assert!(acting <= 1, "{acting} members act at once");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn a_holder_has_stopped_before_a_contender_can_begin(
            steps in prop::collection::vec((step(), 0usize..3), 1..40),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let mut world = World {
                    stored: None, now: Duration::ZERO, clock: Duration::ZERO,
                    leases: vec![None; 3], under_way: Vec::new(),
                };
                for (step, who) in steps {
                    let now = world.now;
                    match step {
                        Step::Renew { way, back } => {
                            let at = now + Duration::from_millis(way);
                            let answered = at + Duration::from_millis(back);
                            world.under_way.push((who, Moment::now(), at, answered, None));
                        }
                        Step::Contend => world.under_way.push((who, Moment::now(), now, now, None)),
                        Step::Answer => world.answers(),
                        Step::Pass(time) => world.pass(now + Duration::from_millis(time)).await,
                    }
                    world.check();
                }
            });
        }
    }
}
