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

use super::{Cluster, assignment, uptime::Uptime, view::View};
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
    /// Has it been held for so many seconds, and nothing missed?
    held: Option<f64>,
    /// And until so many seconds ago: or is it so that this member held it, and was without it too?
    ended: Option<f64>,
    /// Has it been held for so many seconds?
    earlier: Option<f64>,
    /// Do events wait that were received so many seconds ago?
    waits: Option<f64>,
}

impl Question {
    /// Has the channel been held for that long, and nothing missed?
    fn held(channel: &str, time: Duration, ended: Option<Duration>) -> Self {
        let seconds = |time: Duration| time.as_secs_f64();
        let (held, ended) = (Some(seconds(time)), ended.map(seconds));
        Self { channel: channel.to_owned(), held, ended, earlier: None, waits: None }
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Answer {
    held: bool,
    /// It was without the channel too, and reports that itself.
    missed: bool,
    behind: Behind,
}

/// The part of a report that is looked at.
#[derive(Debug, Deserialize)]
struct Report {
    seconds: Option<f64>,
}

/// Whether a `relay.gap` is not to be published: another member held the channel all the time, or another was
/// without it too and is the one to report that: of those the first, as with a channel's holders. Whoever does not
/// answer is asked again.
/// To be asked soon: who held it then may be restarted next.
pub(super) async fn is_covered(cluster: Cluster, record: Arc<Record>) -> bool {
    let report = serde_json::from_slice::<Report>(record.event.data());
    let Ok(Report { seconds: Some(seconds) }) = report else { return false };
    let Ok(gap) = Duration::try_from_secs_f64(seconds) else { return false };
    let channel = &record.event.place.channel;
    let until = Instant::now() + LONGEST;
    loop {
        let age = record.age();
        let question = Question::held(channel, gap + age, Some(age));
        let answers = ask(&cluster, &question).await;
        if answers.iter().any(|(_, answer)| answer.as_ref().is_some_and(|answer| answer.held)) {
            return true;
        }
        if answers.iter().all(|(_, answer)| answer.is_some()) || Instant::now() >= until {
            let missed = answers
                .iter()
                .filter(|(_, answer)| answer.as_ref().is_some_and(|answer| answer.missed));
            let all = missed.map(|(member, _)| &**member).chain([cluster.member()]);
            return assignment::holders(channel, all, 1).first() != Some(&cluster.member());
        }
        sleep(AGAIN).await;
    }
}

/// Whether another member has held this channel for at least that long. No answer is a no.
pub(crate) async fn was_held_elsewhere(cluster: &Cluster, channel: &str, since: Duration) -> bool {
    let answers = ask(cluster, &Question::held(channel, since, None)).await;
    answers.into_iter().filter_map(|(_, answer)| answer).any(|answer| answer.held)
}

/// Whether a member has events of a channel that are not in the log yet, and are to be there first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Behind {
    #[default]
    No,
    /// It is not alive any more, or it has held the channel for longer and may not have read all of it.
    Perhaps,
    /// It says that it has older ones, or has held the channel for longer and has any: it may have received them
    /// later than we did ours. Or it is alive and does not answer in time.
    Yes,
}

/// Whether another member has events of this channel that are not in the log yet: it has held the channel for
/// `uptime`, where that matters, or events wait that it received before `waits`.
pub(super) async fn behind(
    cluster: &Cluster,
    channel: &str,
    uptime: Option<Duration>,
    waits: Duration,
) -> Behind {
    let seconds = |time: Duration| time.as_secs_f64();
    let question = Question {
        channel: channel.to_owned(),
        held: None,
        ended: None,
        earlier: uptime.map(seconds),
        waits: Some(seconds(waits)),
    };
    let answers = ask(cluster, &question).await.into_iter();
    let behind = answers.map(|(member, answer)| match answer {
        Some(answer) => answer.behind,
        None if cluster.is_alive(&member) => Behind::Yes,
        None => Behind::Perhaps,
    });
    behind.max().unwrap_or(Behind::No)
}

/// What each of the others answers; `None`: nothing, though it may be there.
async fn ask(cluster: &Cluster, question: &Question) -> Vec<(String, Option<Answer>)> {
    let question = serde_json::to_vec(question).unwrap_or_default();
    // A member that has just started has events of its last run before it has heard of the others.
    let mut views = cluster.views();
    // The sender is in the cluster itself.
    drop(views.wait_for(View::is_known).await);
    let members = cluster.others();
    let asked = members.into_iter().map(|member| {
        let subject = subject(&cluster.settings().name, &member);
        let request = cluster.client().request(subject, question.clone().into());
        async move {
            let answer = match timeout(PATIENCE, request).await {
                Ok(Ok(answer)) => serde_json::from_slice(&answer.payload).ok(),
                // It runs no more, unless its connection or one between the servers was just lost.
                Ok(Err(error))
                    if error.kind() == RequestErrorKind::NoResponders
                        && !cluster.is_alive(&member) =>
                {
                    Some(Answer::default())
                }
                Ok(Err(_)) | Err(_) => None,
            };
            (member, answer)
        }
    });
    join_all(asked).await
}

/// Where a member is asked.
pub(super) fn subject(cluster: &str, member: &str) -> String {
    format!("{cluster}.ask.{member}")
}

/// What another member asks.
pub(super) struct ReceivedQuestion {
    question: Question,
    reply: Subject,
}

impl ReceivedQuestion {
    pub(super) fn read(message: Message) -> Option<Self> {
        let question = serde_json::from_slice(&message.payload).ok()?;
        Some(Self { question, reply: message.reply? })
    }

    pub(super) fn channel(&self) -> &str {
        &self.question.channel
    }

    /// Between which times before now something was missed: from, to.
    pub(super) fn missed(&self) -> Option<(Duration, Duration)> {
        let time = |seconds: Option<f64>| Duration::try_from_secs_f64(seconds?).ok();
        time(self.question.held).zip(time(self.question.ended))
    }

    /// `uptime`: for how long this member has held the channel, `missed`: whether it was without it between those
    /// times; `oldest`: the age of the oldest event of it that
    /// waits for the log.
    pub(super) async fn answer(
        self,
        cluster: &Cluster,
        uptime: Option<Uptime>,
        missed: bool,
        oldest: Option<Duration>,
    ) {
        let reaches = |time: Option<Duration>, asked: Option<f64>| {
            time.zip(asked).is_some_and(|(time, asked)| time.as_secs_f64() >= asked)
        };
        let earlier = reaches(uptime.map(|uptime| uptime.time), self.question.earlier);
        let behind = if reaches(oldest, self.question.waits) || (earlier && oldest.is_some()) {
            Behind::Yes
        } else if earlier {
            Behind::Perhaps
        } else {
            Behind::No
        };
        let held = reaches(uptime.map(|uptime| uptime.unbroken), self.question.held);
        let answer = Answer { held, missed, behind };
        let answer = serde_json::to_vec(&answer).unwrap_or_default();
        // Who asks and gets no answer knows what to make of it.
        drop(cluster.client().publish(self.reply, answer.into()).await);
    }
}
