//! A sink driven by hand, a batch at a time, as the delivery would.

use std::collections::VecDeque;

use astro_relay::{
    base::event::Seq,
    sink::{Cause, Failure, Outgoing, Report, Sink},
};
use tokio::time::Instant;

use super::carry::PATIENCE;

/// A sink, and what is in flight with it.
pub struct Driven {
    sink: Box<dyn Sink>,
    in_flight: VecDeque<(Seq, u8)>,
    report: Report,
}

fn key(event: &Outgoing) -> (Seq, u8) {
    (event.record.seq, event.part)
}

impl Driven {
    pub fn new(sink: Box<dyn Sink>) -> Self {
        Self { sink, in_flight: VecDeque::new(), report: Report::default() }
    }

    /// For whoever drives it otherwise.
    pub fn into_inner(self) -> Box<dyn Sink> {
        self.sink
    }

    pub async fn connect(&mut self) -> Result<(), Failure> {
        self.in_flight.clear();
        let connected = self.sink.connect().await;
        self.learn();
        connected
    }

    /// Sends what of `batch` is not in flight yet, and waits until all of it is accepted. `Err`: so many of
    /// the batch are accepted, and the one after them met the cause; behind a rejected one, what is in
    /// flight stays there.
    pub async fn deliver(&mut self, batch: &[Outgoing]) -> Result<(), Failure> {
        let same =
            batch.iter().zip(&self.in_flight).take_while(|(event, key)| self::key(event) == **key);
        let mut sent = same.count();
        assert_eq!(sent, self.in_flight.len().min(batch.len()), "something else is in flight");
        let mut done = 0;
        while done < batch.len() {
            if sent < batch.len() {
                match self.sink.send(&batch[sent..]).await {
                    Ok(count) => {
                        assert!(
                            count > 0 || !self.in_flight.is_empty(),
                            "no room with nothing in flight"
                        );
                        self.in_flight.extend(batch[sent..sent + count].iter().map(key));
                        sent += count;
                        if count > 0 {
                            continue;
                        }
                    }
                    Err(mut failure) => {
                        self.in_flight.clear();
                        failure.accepted += done;
                        return Err(failure);
                    }
                }
            }
            let outcome = self.sink.acknowledged().await;
            self.learn();
            let accepted = match &outcome {
                Ok(accepted) => *accepted,
                Err(failure) => failure.accepted,
            };
            self.in_flight.drain(..accepted);
            done += accepted;
            if let Err(mut failure) = outcome {
                if let Cause::Rejected { .. } = failure.cause {
                    self.in_flight.pop_front();
                } else {
                    self.in_flight.clear();
                }
                failure.accepted = done;
                return Err(failure);
            }
        }
        Ok(())
    }

    /// Nothing is in flight.
    pub async fn idle(&mut self) -> Failure {
        match self.sink.acknowledged().await {
            Ok(count) => panic!("{count} are accepted, and none was in flight"),
            Err(failure) => failure,
        }
    }

    pub async fn close(&mut self) {
        self.sink.close(Instant::now() + PATIENCE).await;
    }

    /// The counts since the last call.
    pub fn tally(&mut self) -> Vec<(&'static str, u64)> {
        self.learn();
        std::mem::take(&mut self.report.counts)
    }

    /// What is known of the server.
    pub fn remarks(&mut self) -> Vec<String> {
        self.learn();
        self.report.facts.clone().unwrap_or_default()
    }

    fn learn(&mut self) {
        let Report { counts, facts } = self.sink.report();
        for (name, count) in counts {
            match self.report.counts.iter_mut().find(|(known, _)| *known == name) {
                Some((_, sum)) => *sum += count,
                None => self.report.counts.push((name, count)),
            }
        }
        self.report.facts = facts.or_else(|| self.report.facts.take());
    }
}
