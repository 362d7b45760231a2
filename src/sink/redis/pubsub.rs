//! Publishing to channels: pipelines of commands, the next while the one before is being answered.
//!
//! An event that fails does not stop those behind it: they have been heard and cannot be taken back, so
//! they are remembered and not published again.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use async_trait::async_trait;
use futures_util::future::{BoxFuture, join_all};
use redis::{Cmd, Pipeline, RedisResult, Value};
use tokio::time::{Instant, timeout_at};

use super::{Connection, answer, begin, link::Link, too_long};
use crate::{
    base::event::Seq,
    sink::{Cause, Failure, Outgoing, Report, Sink, in_flight::InFlight},
};

/// Pipelines on their way at once: while one is processed, the next is already there.
const MAX_PIPELINES: usize = 2;

pub(super) struct Pubsub {
    connection: Connection,
    flight: InFlight,
    /// Oldest first.
    pipelines: VecDeque<Sent>,
    /// Something has failed: the other pipelines are answered before it is reported, so that it is known
    /// which of their events are published.
    failed: bool,
    receivers: u64,
    unheard: u64,
}

/// A pipeline that is on its way; to a cluster, one for each channel.
struct Sent {
    /// The number in flight and the address of each event.
    events: Vec<(u64, Arc<str>)>,
    answers: BoxFuture<'static, Vec<RedisResult<Value>>>,
}

impl Pubsub {
    pub(super) fn new(connection: Connection) -> Self {
        Self {
            connection,
            flight: InFlight::default(),
            pipelines: VecDeque::new(),
            failed: false,
            receivers: 0,
            unheard: 0,
        }
    }

    fn disconnect(&mut self) {
        self.connection.link = None;
        self.pipelines.clear();
        self.failed = false;
    }

    /// Waits for the answers to the oldest pipeline. Safe to drop.
    async fn receive(&mut self) {
        let Some(oldest) = self.pipelines.front_mut() else { return };
        let answers = (&mut oldest.answers).await;
        let Some(Sent { events, .. }) = self.pipelines.pop_front() else { return };
        let settings = &self.connection.settings;
        for ((number, address), answer) in events.iter().zip(answers) {
            let outcome = match answer {
                Ok(Value::Int(receivers @ 1..)) => {
                    self.receivers += receivers.unsigned_abs();
                    Ok(())
                }
                Ok(_) => {
                    self.unheard += 1;
                    Ok(())
                }
                Err(error) => Err(answer::cause(&error, settings.about(Some(address)))),
            };
            self.failed |=
                matches!(&outcome, Err(cause) if !matches!(cause, Cause::Rejected { .. }));
            self.flight.answered(*number, outcome);
        }
    }
}

#[async_trait]
impl Sink for Pubsub {
    async fn connect(&mut self) -> Result<(), Failure> {
        self.flight.clear();
        self.disconnect();
        self.connection.open().await.map(drop)
    }

    async fn send(&mut self, events: &[Outgoing]) -> Result<usize, Failure> {
        let link = self.connection.link()?;
        if self.pipelines.len() >= MAX_PIPELINES || self.failed {
            return Ok(0);
        }
        // A server of a cluster takes only what is its own: there, each channel has a pipeline.
        let by_channel = matches!(link, Link::Cluster(_));
        let mut places: HashMap<&str, usize> = HashMap::new();
        let mut pipelines: Vec<(Pipeline, Vec<(u64, Arc<str>)>)> = Vec::new();
        for event in events {
            let Some(number) = self.flight.push(event) else { continue };
            if let Some(cause) = too_long(event) {
                self.flight.answered(number, Err(cause));
                continue;
            }
            let address = &*event.address;
            let bytes = "PUBLISH".len() + address.len() + event.payload.len();
            let mut command = Cmd::with_capacity(3, bytes);
            command.arg("PUBLISH").arg(address).arg(&*event.payload);
            let place =
                if by_channel { *places.entry(address).or_insert(pipelines.len()) } else { 0 };
            if place == pipelines.len() {
                pipelines.push((Pipeline::with_capacity(events.len()), Vec::new()));
            }
            if let Some((pipeline, sent)) = pipelines.get_mut(place) {
                pipeline.add_command(command);
                sent.push((number, Arc::clone(&event.address)));
            }
        }
        if !pipelines.is_empty() {
            let (pipelines, sent): (Vec<_>, Vec<_>) = pipelines.into_iter().unzip();
            let answers = begin(async move {
                let answers = join_all(pipelines.iter().map(|pipeline| {
                    let mut link = link.clone();
                    async move {
                        let count = pipeline.len();
                        let answers = link.connection().req_packed_commands(pipeline, 0, count);
                        match answers.await {
                            Ok(answers) => answers.into_iter().map(Value::extract_error).collect(),
                            // It concerns all of them.
                            Err(error) => vec![Err(error); count],
                        }
                    }
                }));
                answers.await.into_iter().flatten().collect()
            });
            self.pipelines
                .push_back(Sent { events: sent.into_iter().flatten().collect(), answers });
        }
        Ok(events.len())
    }

    async fn acknowledged(&mut self) -> Result<usize, Failure> {
        loop {
            while self.failed && !self.pipelines.is_empty() {
                self.receive().await;
            }
            if let Some(report) = self.flight.report() {
                if let Err(failure) = &report
                    && !matches!(failure.cause, Cause::Rejected { .. })
                {
                    self.failed = false;
                    if let Cause::Down(_) = failure.cause {
                        self.disconnect();
                    }
                }
                return report;
            }
            if self.flight.is_empty() {
                return Err(self.connection.idle().await);
            }
            self.receive().await;
        }
    }

    async fn close(&mut self, until: Instant) -> Vec<(Seq, u8)> {
        let answered = async {
            while !self.pipelines.is_empty() {
                self.receive().await;
            }
        };
        // What has not been answered until then is of unknown outcome.
        drop(timeout_at(until, answered).await);
        self.disconnect();
        self.flight.accepted()
    }

    fn report(&mut self) -> Report {
        let counts = [("receivers", &mut self.receivers), ("unheard", &mut self.unheard)];
        let counts = counts.map(|(name, count)| (name, std::mem::take(count)));
        let counts = counts.into_iter().filter(|(_, count)| *count > 0).collect();
        Report { counts, facts: None }
    }
}
