//! What members ask one another of a channel, with times that are measured by clocks that do not step.
//!
//! - Is a gap of this member one of the cluster? If another held the channel all the time, with all
//!   subscriptions standing without a break, nothing was missed, and nothing is reported.
//! - Has another held the channel for longer, or events that are older and not in the log yet? Then newer ones
//!   wait for it. No answer is a maybe.

use std::{sync::Arc, time::Duration};

use async_nats::{Message, RequestErrorKind, Subject};
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout};

use super::Cluster;
use crate::base::event::Record;

/// How long the others may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long to wait before who has not answered is asked again.
const AGAIN: Duration = Duration::from_millis(250);

/// How long a gap is asked about before it is reported.
const LONGEST: Duration = Duration::from_secs(15);

#[derive(Debug, Serialize, Deserialize)]
struct Question {
    channel: String,
    /// Has it been held for so many seconds?
    held: Option<f64>,
    /// Do events wait that were received so many seconds ago?
    waits: Option<f64>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Answer {
    held: bool,
    /// Events that were received before that wait for the log.
    waits: bool,
}

/// The part of a report that is looked at.
#[derive(Debug, Deserialize)]
struct Report {
    seconds: Option<f64>,
}

/// Whether another member held the channel of a `relay.gap` all the time. Whoever does not answer is asked again.
/// To be asked soon: who held it then may be restarted next.
pub(super) async fn is_covered(cluster: Cluster, record: Arc<Record>) -> bool {
    let report = serde_json::from_slice::<Report>(record.event.data());
    let Ok(Report { seconds: Some(seconds) }) = report else { return false };
    let Ok(gap) = Duration::try_from_secs_f64(seconds) else { return false };
    let channel = &record.event.place.channel;
    let until = Instant::now() + LONGEST;
    loop {
        let answers = ask(&cluster, channel, Some(gap + record.age()), None).await;
        if answers.iter().flatten().any(|answer| answer.held) {
            return true;
        }
        if answers.iter().all(Option::is_some) || Instant::now() >= until {
            return false;
        }
        sleep(AGAIN).await;
    }
}

/// Whether another member has held this channel for at least that long. No answer is a no.
pub(crate) async fn was_held_elsewhere(cluster: &Cluster, channel: &str, since: Duration) -> bool {
    let answers = ask(cluster, channel, Some(since), None).await;
    answers.into_iter().flatten().any(|answer| answer.held)
}

/// Whether another member may have events of this channel that are not in the log yet: it has held the channel for
/// `held`, where that matters, or events wait that it received before `waits`.
pub(super) async fn may_be_behind(
    cluster: &Cluster,
    channel: &str,
    held: Option<Duration>,
    waits: Duration,
) -> bool {
    let answers = ask(cluster, channel, held, Some(waits)).await;
    answers.into_iter().any(|answer| answer.is_none_or(|answer| answer.held || answer.waits))
}

/// What each of the others answers; `None`: nothing, though it may be there.
async fn ask(
    cluster: &Cluster,
    channel: &str,
    held: Option<Duration>,
    waits: Option<Duration>,
) -> Vec<Option<Answer>> {
    let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
    let question =
        Question { channel: channel.to_owned(), held: seconds(held), waits: seconds(waits) };
    let question = serde_json::to_vec(&question).unwrap_or_default();
    let members = cluster.others();
    let asked = members.iter().map(|member| {
        let subject = subject(&cluster.settings().name, member);
        let request = cluster.client().request(subject, question.clone().into());
        async move {
            match timeout(PATIENCE, request).await.ok()? {
                Ok(answer) => serde_json::from_slice(&answer.payload).ok(),
                // It runs no more.
                Err(error) if error.kind() == RequestErrorKind::NoResponders => {
                    Some(Answer::default())
                }
                Err(_) => None,
            }
        }
    });
    join_all(asked).await
}

/// Where a member is asked.
pub(super) fn subject(cluster: &str, member: &str) -> String {
    format!("{cluster}.ask.{member}")
}

/// What another member asks.
pub(super) struct Asked {
    question: Question,
    reply: Subject,
}

impl Asked {
    pub(super) fn read(message: Message) -> Option<Self> {
        let question = serde_json::from_slice(&message.payload).ok()?;
        Some(Self { question, reply: message.reply? })
    }

    pub(super) fn channel(&self) -> &str {
        &self.question.channel
    }

    /// `held`: for how long this member has held the channel; `oldest`: the age of the oldest event of it that
    /// waits for the log.
    pub(super) async fn answer(
        self,
        cluster: &Cluster,
        held: Option<Duration>,
        oldest: Option<Duration>,
    ) {
        let reaches = |time: Option<Duration>, asked: Option<f64>| {
            time.zip(asked).is_some_and(|(time, asked)| time.as_secs_f64() >= asked)
        };
        let answer = Answer {
            held: reaches(held, self.question.held),
            waits: reaches(oldest, self.question.waits),
        };
        let answer = serde_json::to_vec(&answer).unwrap_or_default();
        // Who asks and gets no answer knows what to make of it.
        drop(cluster.client().publish(self.reply, answer.into()).await);
    }
}
