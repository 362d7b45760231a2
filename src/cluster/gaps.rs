//! Whether a gap of this member is one of the cluster: it asks the others whether one of them held the
//! channel all the time. Then nothing was missed, and nothing is reported.
//!
//! Whoever is asked answers from its own clock that does not step: for how long all subscriptions of the
//! channel have stood without a break. No answer is a no.

use std::{sync::Arc, time::Duration};

use async_nats::Message;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::Cluster;
use crate::base::event::Record;

/// How long the others may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, Serialize, Deserialize)]
struct Question {
    channel: String,
    /// Since so many seconds.
    seconds: f64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    held: bool,
}

/// The part of a report that is looked at.
#[derive(Debug, Deserialize)]
struct Report {
    seconds: Option<f64>,
}

/// Whether another member held the channel of a `relay.gap` all the time.
pub(super) async fn is_covered(cluster: &Cluster, record: &Arc<Record>) -> bool {
    let report = serde_json::from_slice::<Report>(record.event.data());
    let Ok(Report { seconds: Some(seconds) }) = report else { return false };
    let Ok(gap) = Duration::try_from_secs_f64(seconds) else { return false };
    was_held_elsewhere(cluster, &record.event.place.channel, gap + record.age()).await
}

/// Whether another member has held this channel for at least that long.
pub(crate) async fn was_held_elsewhere(cluster: &Cluster, channel: &str, since: Duration) -> bool {
    let others = cluster.others();
    let question = Question { channel: channel.to_owned(), seconds: since.as_secs_f64() };
    let Ok(question) = serde_json::to_vec(&question) else { return false };
    let asked = others.iter().map(|member| {
        let subject = subject(&cluster.settings().name, member);
        let request = cluster.client().request(subject, question.clone().into());
        async move {
            let answer = timeout(PATIENCE, request).await.ok()?.ok()?;
            serde_json::from_slice::<Answer>(&answer.payload).ok()
        }
    });
    let answers = join_all(asked).await;
    answers.into_iter().flatten().any(|answer| answer.held)
}

/// Where a member is asked.
pub(super) fn subject(cluster: &str, member: &str) -> String {
    format!("{cluster}.ask.{member}")
}

/// Answers another member.
pub(super) async fn answer(cluster: &Cluster, message: Message) {
    let Some(reply) = message.reply else { return };
    let question = serde_json::from_slice::<Question>(&message.payload);
    let held = question.is_ok_and(|question| {
        cluster
            .standing_for(&question.channel)
            .is_some_and(|time| time.as_secs_f64() >= question.seconds)
    });
    let answer = serde_json::to_vec(&Answer { held }).unwrap_or_default();
    // Who asks and gets no answer takes it for a no.
    drop(cluster.client().publish(reply, answer.into()).await);
}
