//! Appending to streams: one script after another, see [`script`].
//!
//! Only one is on its way: what the next appends must stand behind what this one could not.

use std::collections::VecDeque;

use async_trait::async_trait;
use redis::Value;
use tokio::time::{Instant, timeout_at};

use super::{
    Connection, PendingAnswer, answer, begin, facts,
    script::{self, Appended, Run},
    too_long,
};
use crate::{
    base::event::Seq,
    sink::{Cause, Failure, Outgoing, Report, Sink},
};

pub(super) struct Stream {
    connection: Connection,
    window: usize,
    /// What was handed over and is not reported.
    events: VecDeque<Outgoing>,
    /// The script that appends the first of them: how many, and its answer.
    running: Option<(usize, PendingAnswer<Value>)>,
    /// What one script may append.
    run: Run,
    /// So many events from here on may stand in the stream already: what was in flight when the last
    /// connection, or the last process, ended.
    perhaps_repeats: usize,
    duplicates: u64,
    facts: Option<Vec<String>>,
}

impl Stream {
    pub(super) fn new(connection: Connection, window: usize) -> Self {
        Self {
            connection,
            window,
            events: VecDeque::new(),
            running: None,
            run: Run::default(),
            perhaps_repeats: 0,
            duplicates: 0,
            facts: None,
        }
    }

    fn give_up_flight(&mut self) {
        self.events.clear();
        self.running = None;
    }

    /// Has the server run the next script, if none is running.
    fn run_next(&mut self) {
        let Ok(mut link) = self.connection.link() else { return };
        if self.running.is_some() {
            return;
        }
        let events = self.events.make_contiguous();
        let end = events.iter().position(|outgoing| too_long(outgoing).is_some());
        let run =
            script::run(events.get(..end.unwrap_or(events.len())).unwrap_or_default(), self.run);
        if run.is_empty() {
            return;
        }
        let search = if self.perhaps_repeats > 0 { script::search(self.window) } else { 0 };
        let command = script::command(run, self.connection.settings.max_len, search);
        let request = async move { link.connection().req_packed_command(&command).await };
        self.running = Some((run.len(), begin(request)));
    }

    /// Waits for the answer to the script that is running. Safe to drop.
    async fn appended(&mut self) -> Appended {
        let Some((count, answer)) = &mut self.running else { return Appended::default() };
        let (count, answer) = (*count, answer.await);
        self.running = None;
        let run: Vec<&Outgoing> = self.events.iter().take(count).collect();
        let appended = script::appended(answer, &run, &self.connection.settings);
        self.duplicates += appended.duplicates;
        self.perhaps_repeats = self.perhaps_repeats.saturating_sub(appended.accepted);
        if let Some(Cause::Rejected { reason }) = &appended.cause
            && appended.accepted == 0
            && count > 1
        {
            // The script as a whole was refused: which event it is about, smaller ones tell.
            self.run = match self.run {
                Run::Any if !answer::is_size(reason) => Run::OneStream,
                _ => Run::OneEvent,
            };
            return Appended::default();
        }
        appended
    }
}

#[async_trait]
impl Sink for Stream {
    async fn connect(&mut self) -> Result<(), Failure> {
        self.give_up_flight();
        let link = self.connection.open().await?;
        let mut facts = facts::durability(link).await;
        facts.extend(facts::trimming(self.connection.settings.max_len, self.window));
        self.facts = Some(facts);
        self.perhaps_repeats = self.window;
        self.run = if self.connection.settings.cluster { Run::OneStream } else { Run::default() };
        Ok(())
    }

    async fn send(&mut self, events: &[Outgoing]) -> Result<usize, Failure> {
        self.connection.link()?;
        self.events.extend(events.iter().cloned());
        self.run_next();
        Ok(events.len())
    }

    async fn acknowledged(&mut self) -> Result<usize, Failure> {
        if self.events.is_empty() {
            return Err(self.connection.idle().await);
        }
        loop {
            self.run_next();
            if self.running.is_none()
                && let Some(cause) = self.events.front().and_then(too_long)
            {
                self.events.pop_front();
                return Err(cause.into());
            }
            if self.running.is_none() {
                return Err(super::not_connected());
            }
            let Appended { accepted, cause, .. } = self.appended().await;
            self.events.drain(..accepted);
            match cause {
                Some(cause) => {
                    if let Cause::Rejected { .. } = cause {
                        self.events.pop_front();
                    } else {
                        self.give_up_flight();
                    }
                    if let Cause::Down(_) = cause {
                        self.connection.link = None;
                    }
                    return Err(Failure::after(accepted, cause));
                }
                None if accepted > 0 => {
                    self.run_next();
                    return Ok(accepted);
                }
                None => {}
            }
        }
    }

    async fn close(&mut self, until: Instant) -> Vec<(Seq, u8)> {
        let appended = timeout_at(until, self.appended()).await.unwrap_or_default();
        let accepted = self.events.iter().take(appended.accepted).map(Outgoing::number).collect();
        self.give_up_flight();
        self.connection.link = None;
        accepted
    }

    fn report(&mut self) -> Report {
        let duplicates = std::mem::take(&mut self.duplicates);
        let counts = (duplicates > 0).then_some(("duplicates", duplicates));
        Report { counts: counts.into_iter().collect(), facts: self.facts.take() }
    }
}
