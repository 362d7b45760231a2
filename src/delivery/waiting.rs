//! What is wrong with a sink at the moment, how long it waits for that, and what is logged.
//!
//! Two waits, because two things may be impossible: to connect, and to have events accepted. While a
//! destination that is connected takes no events, its connection is kept alive.
//!
//! | cause | waits | logged |
//! |---|---|---|
//! | down | backoff up to `backoff_max`; from the fifth failure on 5 s at least | WARN, once a minute |
//! | busy | the same, or as long as the destination asks, up to [`LONGEST_ASKED`] | WARN, once a minute |
//! | denied | 5 s, 10 s, … up to [`HOLD`] | ERROR, when it begins and with each new reason |
//! | gone | [`GONE`] | ERROR, once |
//!
//! All of them end by themselves when the destination is back, and at once when somebody asks for it
//! ([`crate::delivery::status::Status::retry_sink`]).

use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, error, warn};

use crate::{
    base::{
        backoff::Backoff,
        clock::{self, UnixMillis},
    },
    sink::Cause,
};

/// The first wait after a failure is at most this.
pub(super) const FIRST_WAIT: Duration = Duration::from_millis(500);

/// So many failures in a row open the breaker.
const BREAK_AFTER: u32 = 5;

/// With the breaker open, the destination is tried no more often than this.
pub(super) const BREAK: Duration = Duration::from_secs(5);

/// A connection that has stood for so long has worked. One that ends sooner has not, though it may have
/// carried something: two clients with one id throw each other out again and again.
const PROVEN: Duration = Duration::from_secs(10);

/// The longest wait that a destination may ask for: beyond that it is a mistake of its own (a date in
/// the wrong century), and an operator who fixes it should not have to restart the relay.
pub(super) const LONGEST_ASKED: Duration = Duration::from_hours(1);

/// The first wait after a destination has denied us: a redeploy is over soon.
const FIRST_HOLD: Duration = Duration::from_secs(5);

/// The longest: a human has to change something. A longer
/// `backoff_max` counts.
const HOLD: Duration = Duration::from_mins(1);

/// When a destination that wants nothing more is tried again: it may have been a mistake of its own.
const GONE: Duration = Duration::from_hours(1);

/// How often the same complaint is repeated in the log.
const COMPLAIN: Duration = Duration::from_mins(1);

/// What is wrong, for the page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// The sink's state meanwhile.
    pub(super) state: &'static str,
    /// Why.
    pub(super) text: String,
    /// Whether it is about the events: then a new connection proves nothing.
    pub(super) of_events: bool,
}

/// What meets a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Met {
    /// There was no connection yet.
    Connecting,
    /// A connection with nothing in flight.
    Idle,
    /// Events in flight.
    Events,
}

/// What one sink waits for.
#[derive(Debug)]
pub(super) struct Waiting {
    backoff: Backoff,
    hold: Duration,
    /// Whether a connection proves itself by lasting ([`crate::sink::Kind::session`]).
    pub(super) session: bool,
    failures: u32,
    denials: u32,
    /// No attempt to connect before.
    reconnect_at: Option<Instant>,
    /// No event goes out before.
    resume_at: Option<Instant>,
    /// Whether there is to be a new connection then: what was changed may concern it.
    renew: bool,
    /// When the last connection was made.
    connected_at: Option<Instant>,
    /// Whether something was accepted over it.
    accepted: bool,
    pub(super) fault: Option<Fault>,
    complained: Option<(Instant, &'static str)>,
    /// What was logged as an ERROR and has not ended since.
    reported: Option<String>,
}

impl Waiting {
    pub(super) fn new(backoff_max: Duration, session: bool) -> Self {
        Self {
            backoff: Backoff::new(FIRST_WAIT, backoff_max),
            hold: HOLD.max(backoff_max),
            session,
            failures: 0,
            denials: 0,
            reconnect_at: None,
            resume_at: None,
            renew: false,
            connected_at: None,
            accepted: false,
            fault: None,
            complained: None,
            reported: None,
        }
    }

    /// Until when nothing is to be connected to.
    pub(super) fn reconnect_at(&self) -> Option<Instant> {
        self.reconnect_at.filter(|at| *at > Instant::now())
    }

    /// Until when no event goes out.
    pub(super) fn resume_at(&self) -> Option<Instant> {
        self.resume_at.filter(|at| *at > Instant::now())
    }

    /// When it is tried again, by the wall clock.
    pub(super) fn next_attempt(&self) -> Option<UnixMillis> {
        let at = self.reconnect_at().max(self.resume_at())?;
        Some(clock::now() + clock::millis_of(at.saturating_duration_since(Instant::now())))
    }

    /// A wait for events is over, if there was one. An answer: there is to be a new connection.
    pub(super) fn resume(&mut self) -> bool {
        if self.resume_at.is_some() && self.resume_at().is_none() {
            self.resume_at = None;
            return std::mem::take(&mut self.renew);
        }
        false
    }

    /// Whatever is waited for, it is tried now. An answer: there is to be a new connection.
    pub(super) fn try_now(&mut self) -> bool {
        self.reconnect_at = None;
        self.resume_at = None;
        std::mem::take(&mut self.renew)
    }

    /// No event goes out for that long.
    pub(super) fn pause(&mut self, wait: Duration) {
        self.resume_at = Some(Instant::now() + wait);
    }

    /// There is a connection. What is wrong with the events is so still, and without a session all that
    /// was wrong.
    pub(super) fn connected(&mut self) {
        self.connected_at = Some(Instant::now());
        self.accepted = false;
        self.reconnect_at = None;
        if !self.session {
            return;
        }
        self.fault = self.fault.take().filter(|fault| fault.of_events);
        let waiting = self.resume_at().is_some();
        self.fault = self.fault.take().filter(|fault| fault.state != "busy" || waiting);
    }

    /// Events are accepted. An answer: something was wrong until now.
    pub(super) fn worked(&mut self) -> bool {
        self.denials = 0;
        self.reported = None;
        self.accepted = true;
        if !self.session || self.is_proven() {
            self.complained = None;
            if self.failures > 0 {
                self.failures = 0;
                self.backoff.reset();
            }
        }
        self.fault.take().is_some()
    }

    fn is_proven(&self) -> bool {
        self.connected_at.is_some_and(|at| at.elapsed() >= PROVEN)
    }

    /// Something failed; says so in the log.
    pub(super) fn failed(&mut self, sink: &str, cause: &Cause, met: Met, text: &str) {
        let (state, of_events) = state(cause, met == Met::Connecting);
        // A connection that stood while events waited proves nothing about the events, nor one that was
        // lost before it had any accepted.
        let lasted = match met {
            Met::Connecting => false,
            Met::Idle => self.is_proven(),
            Met::Events => self.is_proven() && self.accepted,
        };
        if lasted && !of_events {
            self.failures = 0;
            self.backoff.reset();
        }
        self.failures = self.failures.saturating_add(1);
        let mut wait = self.backoff.wait();
        if self.failures >= BREAK_AFTER {
            wait = wait.max(BREAK);
        }
        match cause {
            Cause::Busy { wait: Some(asked), .. } => wait = wait.max((*asked).min(LONGEST_ASKED)),
            Cause::Denied { .. } => {
                wait = FIRST_HOLD.saturating_mul(1 << self.denials.min(16)).min(self.hold);
                self.denials = self.denials.saturating_add(1);
            }
            Cause::Gone { .. } => wait = GONE,
            Cause::Down(_) | Cause::Busy { .. } | Cause::Rejected { .. } => {}
        }
        let at = Instant::now() + wait;
        if of_events {
            self.resume_at = Some(at);
            self.renew = matches!(cause, Cause::Denied { .. });
        } else {
            self.reconnect_at = Some(at);
            self.connected_at = None;
        }
        // A connection that is lost meanwhile does not end what is wrong with the events. Where events were
        // on their way, only one that is accepted proves that the next connection is of use.
        let of_events = of_events || met == Met::Events;
        if of_events || self.fault.as_ref().is_none_or(|fault| !fault.of_events) {
            self.fault = Some(Fault { state, text: text.to_owned(), of_events });
        }
        match cause {
            Cause::Denied { .. } => {
                self.report(
                    sink,
                    text,
                    "the destination denies us: the sink is held, nothing is lost",
                );
            }
            Cause::Gone { .. } => {
                self.report(
                    sink,
                    text,
                    "the destination wants nothing more: the sink is held, nothing is lost",
                );
            }
            _ => self.complain(sink, word(cause), text, wait),
        }
    }

    /// There is no room for a dead letter, or every event is rejected: a human is needed.
    pub(super) fn held(&mut self, sink: &str, state: &'static str, text: String, what: &str) {
        self.report(sink, &text, what);
        self.fault = Some(Fault { state, text, of_events: true });
    }

    /// The task before this one has failed.
    pub(super) fn failed_before(&mut self, text: String) {
        self.fault = Some(Fault { state: super::FAILED, text, of_events: true });
    }

    /// The connection ends at one event: a new connection proves nothing.
    pub(super) fn suspected(&mut self, text: String) {
        self.fault = Some(Fault { state: "down", text, of_events: true });
    }

    /// An ERROR, once for each reason.
    fn report(&mut self, sink: &str, text: &str, what: &str) {
        if self.reported.as_deref() == Some(text) {
            debug!(sink, error = text, "still so: {what}");
        } else {
            error!(sink, error = text, "{what}");
            self.reported = Some(text.to_owned());
        }
    }

    /// Logs the same fault once a minute, not with every attempt.
    pub(super) fn complain(&mut self, sink: &str, word: &'static str, text: &str, wait: Duration) {
        let now = Instant::now();
        let lately = |(at, last): (Instant, &str)| last == word && now < at + COMPLAIN;
        if self.complained.is_some_and(lately) {
            debug!(sink, error = text, ?wait, "still failing");
        } else {
            warn!(sink, error = text, ?wait, "delivery failed; it is tried again");
            self.complained = Some((now, word));
        }
    }
}

/// A cause's name, for the metrics.
pub(super) fn word(cause: &Cause) -> &'static str {
    match cause {
        Cause::Down(_) => "down",
        Cause::Busy { .. } => "busy",
        Cause::Rejected { .. } => "rejected",
        Cause::Denied { .. } => "denied",
        Cause::Gone { .. } => "gone",
    }
}

/// The state of a sink that met this, and whether its connection is kept meanwhile.
pub(super) fn state(cause: &Cause, connecting: bool) -> (&'static str, bool) {
    match cause {
        Cause::Down(_) | Cause::Rejected { .. } => ("down", false),
        // Without a connection nothing is delivered, whatever the destination says.
        Cause::Busy { .. } if connecting => ("down", false),
        Cause::Busy { .. } => ("busy", true),
        Cause::Denied { .. } => ("held", !connecting),
        Cause::Gone { .. } => ("gone", false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lasting_connection_does_not_shorten_the_waits_of_a_busy_destination() {
        let mut waiting = Waiting::new(Duration::from_mins(1), true);
        waiting.connected();
        for attempt in 1..=20 {
            let busy = Cause::Busy { wait: None, reason: "HTTP 429".to_owned() };
            waiting.failed("out", &busy, Met::Events, "HTTP 429");
            let wait = waiting.resume_at().map_or(Duration::ZERO, |at| at - Instant::now());
            assert!(attempt < BREAK_AFTER || wait >= BREAK, "attempt {attempt}: {wait:?}");
            tokio::time::sleep(wait + PROVEN).await;
        }
    }

    /// A broker that takes connections and never acknowledges an event.
    #[tokio::test(start_paused = true)]
    async fn a_connection_that_is_lost_with_events_in_flight_is_proven_by_an_accepted_event() {
        let mut waiting = Waiting::new(Duration::from_mins(1), true);
        let silent = || Cause::Down("no answer".into());
        for attempt in 1..=20 {
            waiting.connected();
            assert_eq!(waiting.fault.is_none(), attempt == 1, "attempt {attempt}");
            tokio::time::sleep(2 * PROVEN).await;
            waiting.failed("out", &silent(), Met::Events, "no answer");
            let wait = waiting.reconnect_at().map_or(Duration::ZERO, |at| at - Instant::now());
            assert!(attempt < BREAK_AFTER || wait >= BREAK, "attempt {attempt}: {wait:?}");
            tokio::time::sleep(wait).await;
        }
        waiting.connected();
        assert!(waiting.worked(), "now it is");
        // One that has worked is there again at once.
        tokio::time::sleep(2 * PROVEN).await;
        waiting.failed("out", &silent(), Met::Events, "no answer");
        assert!(waiting.reconnect_at().is_none_or(|at| at - Instant::now() <= FIRST_WAIT));
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_session_only_an_accepted_event_ends_a_fault() {
        for (session, ended) in [(true, true), (false, false)] {
            let mut waiting = Waiting::new(Duration::from_mins(1), session);
            waiting.connected();
            waiting.failed("out", &Cause::Down("no answer".into()), Met::Idle, "no answer");
            waiting.connected();
            assert_eq!(waiting.fault.is_none(), ended, "session: {session}");
            waiting.worked();
            assert_eq!(waiting.fault, None);
        }
    }
}
