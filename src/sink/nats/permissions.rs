//! To which subjects the server lets us publish, as it has turned out on this connection.
//!
//! NATS tells nobody what he may do. It says of a message that it was refused, beside the answers to other
//! messages and without saying which message it was. So what goes to a subject that is not proven waits
//! for one more answer, and only [`MAX_UNPROVEN`](super::link::MAX_UNPROVEN) such messages are on their way.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{flight::Fault, no_stream::StreamSubjects, subject};

/// Subjects that are remembered as permitted. Events have some thirty topics for each channel; more
/// than this come from a template over the data, and are forgotten and proven again.
const MAX_PERMITTED: usize = 4096;

/// Subjects that are remembered as refused; more come from a template over the data.
const MAX_REFUSED: usize = 1024;

/// How long a subject that was refused is not tried again: rights and streams are changed while a
/// connection stands.
const REFUSED_FOR: Duration = Duration::from_secs(2);

pub(super) struct Permissions {
    permitted: HashSet<Arc<str>, foldhash::fast::RandomState>,
    /// Those that the server refuses or no stream takes, why, and until when that is believed.
    refused: HashMap<Arc<str>, (Fault, Instant), foldhash::fast::RandomState>,
    /// The longest first line of a message that the server takes, as far as it is known.
    max_line: usize,
    pub(super) stream_subjects: StreamSubjects,
}

impl Default for Permissions {
    fn default() -> Self {
        Self {
            permitted: HashSet::default(),
            refused: HashMap::default(),
            max_line: subject::MAX_LINE,
            stream_subjects: StreamSubjects::default(),
        }
    }
}

impl Permissions {
    /// A new connection: rights may be others.
    pub(super) fn clear(&mut self) {
        self.permitted.clear();
        self.refused.clear();
        self.stream_subjects = StreamSubjects::default();
    }

    pub(super) fn is_permitted(&self, subject: &str) -> bool {
        self.permitted.contains(subject)
    }

    pub(super) fn is_refused(&self, subject: &str) -> bool {
        self.refused.contains_key(subject)
    }

    /// Why nothing is sent to `subject`.
    pub(super) fn fault(&mut self, subject: &str, inbox: &str, reply: usize) -> Option<Fault> {
        match self.refused.get(subject) {
            Some((fault, until)) if Instant::now() < *until => return Some(fault.clone()),
            Some(_) => drop(self.refused.remove(subject)),
            None => {}
        }
        if let Some(why) = subject::reserved(subject, inbox) {
            return Some(Fault::Rejected(format!("nothing is published to {subject:?}: {why}")));
        }
        (subject::line(subject, reply) > self.max_line).then(|| {
            Fault::Rejected(format!(
                "a subject of {} bytes is too long for the server (max_control_line)",
                subject.len()
            ))
        })
    }

    /// The server has let us publish there.
    pub(super) fn permit(&mut self, subject: &Arc<str>) {
        if self.permitted.contains(subject) || self.refused.contains_key(subject) {
            return;
        }
        if self.permitted.len() >= MAX_PERMITTED {
            self.permitted.clear();
        }
        self.permitted.insert(Arc::clone(subject));
    }

    /// It has not.
    pub(super) fn refuse(&mut self, subject: &str, fault: Fault) {
        self.permitted.remove(subject);
        if self.refused.len() >= MAX_REFUSED {
            let now = Instant::now();
            self.refused.retain(|_, (_, until)| now < *until);
        }
        if self.refused.len() < MAX_REFUSED {
            self.refused.insert(subject.into(), (fault, Instant::now() + REFUSED_FOR));
        }
    }

    /// A line was too long for the server; the longest that was on its way was so long.
    pub(super) fn line_too_long(&mut self, longest: usize) {
        self.max_line = longest.saturating_sub(1);
    }
}
