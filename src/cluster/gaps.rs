//! What members ask one another of a channel, with times that are measured by clocks that do not step.
//!
//! - Is a gap of this member one of the cluster? If another held the channel all the time, with all
//!   subscriptions standing without a break, nothing was missed, and nothing is reported. A connection that is
//!   dead already, which is not noticed yet, looks like one that stands: so a member says that it held the
//!   channel when something has come on its connections since the end of the gap, and until then that it does
//!   not know.
//! - Has another held the channel for longer, or events that are older and not in the log yet? Then newer ones
//!   wait for it. No answer is a maybe.

use std::{sync::Arc, time::Duration};

use async_nats::{Message, RequestErrorKind, Subject};
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout};

use super::{Cluster, assignment, uptime::Uptimes, view::View};
use crate::base::{clock::Moment, event::Record};

/// How long the others may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long to wait before who has not answered is asked again: twice as long each time, up to the second. Many gaps
/// may end at once, and leases are renewed over the same connection.
const AGAIN: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(2));

/// How long a member that does not answer is asked about a gap before it is reported.
const LONGEST: Duration = Duration::from_secs(15);

/// One that does not know is asked for as long as it may take until a dead connection is noticed, and this.
const NOTICED: Duration = Duration::from_secs(5);

#[derive(Debug, Serialize, Deserialize)]
struct Question {
    channel: String,
    /// With each of these topics. `None`: an earlier version asks, which does not know an answer that is pending.
    topics: Option<Vec<String>>,
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
    /// Has the channel been held with these topics for that long, and nothing missed until so long ago?
    fn held(channel: &str, topics: &[String], time: Duration, ended: Duration) -> Self {
        Self {
            channel: channel.to_owned(),
            topics: Some(topics.to_vec()),
            held: Some(time.as_secs_f64()),
            ended: Some(ended.as_secs_f64()),
            earlier: None,
            waits: None,
        }
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Answer {
    held: bool,
    /// It held the channel, unless one of its connections is dead: that will show.
    pending: bool,
    /// It was without the channel too, and reports that itself.
    missed: bool,
    behind: Behind,
}

/// The part of a report that is looked at.
#[derive(Debug, Deserialize)]
struct Report {
    seconds: Option<f64>,
    #[serde(default)]
    subscriptions: Vec<Missed>,
}

#[derive(Debug, Deserialize)]
struct Missed {
    topic: String,
}

/// Whether a `relay.gap` is not to be published: another member held the channel all the time, or another was
/// without it too and is the one to report that: of those the first, as with a channel's holders. Whoever does not
/// answer, or does not know yet, is asked again.
/// To be asked soon: who held it then may be restarted next.
pub(super) async fn is_covered(cluster: Cluster, record: Arc<Record>) -> bool {
    let report = serde_json::from_slice::<Report>(record.event.data());
    let Ok(Report { seconds: Some(seconds), subscriptions }) = report else { return false };
    let Ok(gap) = Duration::try_from_secs_f64(seconds) else { return false };
    let channel = &record.event.place.channel;
    let topics: Vec<_> = subscriptions.into_iter().map(|missed| missed.topic).collect();
    let question = || {
        let age = record.age();
        Question::held(channel, &topics, gap + age, age)
    };
    let answers = ask_about_gap(&cluster, question, LONGEST).await;
    if answers.iter().any(|(_, answer)| is_held(answer.as_ref())) {
        return true;
    }
    let missed =
        answers.iter().filter(|(_, answer)| answer.as_ref().is_some_and(|answer| answer.missed));
    let all = missed.map(|(member, _)| &**member).chain([cluster.member()]);
    assignment::holders(channel, all, 1).first() != Some(&cluster.member())
}

/// Whether another member has held this channel with these topics for at least that long. No answer is a no.
pub(crate) async fn was_held_elsewhere(
    cluster: &Cluster,
    channel: &str,
    topics: &[String],
    since: Duration,
) -> bool {
    let began = Moment::now();
    let question = || {
        let asked = began.elapsed();
        Question::held(channel, topics, since + asked, asked)
    };
    let answers = ask_about_gap(cluster, question, Duration::ZERO).await;
    answers.iter().any(|(_, answer)| is_held(answer.as_ref()))
}

fn is_held(answer: Option<&Answer>) -> bool {
    answer.is_some_and(|answer| answer.held)
}

/// Asks until one of the others has held a channel, or all know. Who does not answer is asked for so long at most.
async fn ask_about_gap(
    cluster: &Cluster,
    question: impl Fn() -> Question,
    longest: Duration,
) -> Vec<(String, Option<Answer>)> {
    let noticed = cluster.0.configured.borrow().patience_with_gateway() + NOTICED;
    let began = Instant::now();
    let mut again = AGAIN.0;
    loop {
        let answers = ask(cluster, &question()).await;
        let time = began.elapsed();
        let is_open = |answer: Option<&Answer>| match answer {
            Some(answer) => answer.pending && time < noticed,
            None => time < longest,
        };
        let is_known = answers.iter().any(|(_, answer)| is_held(answer.as_ref()))
            || !answers.iter().any(|(_, answer)| is_open(answer.as_ref()));
        if is_known {
            return answers;
        }
        sleep(again).await;
        again = (again * 2).min(AGAIN.1);
    }
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
        topics: None,
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

    /// Answers, where there is an answer yet; `oldest`: the age of the oldest event of the channel that waits for the
    /// log.
    pub(super) async fn answer(
        self,
        cluster: &Cluster,
        uptimes: &mut Uptimes,
        oldest: Option<Duration>,
    ) {
        if let Some(answer) = self.question.answer(uptimes, oldest) {
            let answer = serde_json::to_vec(&answer).unwrap_or_default();
            // Who asks and gets no answer knows what to make of it.
            drop(cluster.client().publish(self.reply, answer.into()).await);
        }
    }
}

impl Question {
    /// What this member answers; `None`: who asks is to ask again.
    fn answer(&self, uptimes: &mut Uptimes, oldest: Option<Duration>) -> Option<Answer> {
        let reaches = |time: Option<Duration>, asked: Option<f64>| {
            time.zip(asked).is_some_and(|(time, asked)| time.as_secs_f64() >= asked)
        };
        let topics = self.topics.as_deref().unwrap_or_default();
        let silence = self.held.and_then(|_| uptimes.silence(&self.channel, topics));
        let uptime = uptimes.of(&self.channel);
        let earlier = reaches(uptime.map(|uptime| uptime.time), self.earlier);
        let behind = if reaches(oldest, self.waits) || (earlier && oldest.is_some()) {
            Behind::Yes
        } else if earlier {
            Behind::Perhaps
        } else {
            Behind::No
        };
        let stood = reaches(uptime.map(|uptime| uptime.unbroken), self.held);
        let silence = silence.filter(|_| stood).map(|silence| silence.as_secs_f64());
        // Earlier versions do not always say when it ended.
        let held = silence.is_some_and(|time| self.ended.is_none_or(|ended| time <= ended));
        let pending = silence.is_some() && !held;
        if pending {
            uptimes.ping();
        }
        let time = |seconds: Option<f64>| Duration::try_from_secs_f64(seconds?).ok();
        let missed = time(self.held).zip(time(self.ended));
        let missed = missed.is_some_and(|(from, to)| uptimes.was_broken(&self.channel, from, to));
        let is_known = !pending || self.topics.is_some();
        is_known.then_some(Answer { held, pending, missed, behind })
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::{
        astro::session::{Subscription, SubscriptionState},
        config::TokenType,
        gateway::table::{ConnectionRow, Slot, State, SubscriptionRow, Table},
    };

    /// A channel with these topics, on a connection on which something came last then.
    fn standing(topics: &[&str], last_frame: Moment) -> State {
        let subscriptions = topics.iter().map(|topic| {
            let (channel, topic) = ("main".into(), (*topic).into());
            let one = Subscription {
                channel,
                topic,
                room: None,
                token_type: TokenType::Jwt,
                token_room: None,
            };
            let mut row = SubscriptionRow::new(0);
            (row.slot, row.state) = (Slot::On(1), SubscriptionState::Confirmed(None));
            row.confirmed_at = Some(1);
            (Arc::new(one), row)
        });
        let connection = ConnectionRow { last_frame: Some(last_frame), ..ConnectionRow::default() };
        State {
            subscriptions: subscriptions.collect(),
            connections: [(1, connection)].into(),
            ..State::default()
        }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn asked(topics: &[&str], time: u64, ended: u64) -> Question {
        let topics: Vec<_> = topics.iter().map(|topic| (*topic).to_owned()).collect();
        Question::held("main", &topics, seconds(time), seconds(ended))
    }

    /// What is answered: whether it held the channel, and whether that is yet to be known.
    fn answer(question: &Question, uptimes: &mut Uptimes) -> Option<(bool, bool)> {
        question.answer(uptimes, None).map(|answer| (answer.held, answer.pending))
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_may_be_dead_already_vouches_for_nothing() {
        let table = Arc::new(Table::default());
        let began = Moment::now();
        table.replace(standing(&["tips"], began));
        let mut uptimes = Uptimes::new(Arc::clone(&table));
        uptimes.update();
        let mut pings = table.pings();
        advance(seconds(60)).await;
        // The gap ended ten seconds ago, and since it began nothing has come.
        let question = asked(&["tips"], 20, 10);
        assert_eq!(answer(&question, &mut uptimes), Some((false, true)));
        assert!(pings.has_changed().unwrap(), "it is found out at once");
        pings.mark_unchanged();
        assert_eq!(answer(&question, &mut uptimes), Some((false, true)));
        assert!(!pings.has_changed().unwrap(), "once in a while is enough");
        // One that came within the gap says nothing of its end.
        table.replace(standing(&["tips"], Moment::now().before(seconds(15))));
        assert_eq!(answer(&question, &mut uptimes), Some((false, true)));
        table.replace(standing(&["tips"], Moment::now().before(seconds(5))));
        assert_eq!(answer(&question, &mut uptimes), Some((true, false)));
        // It has not held the channel for so long, whatever comes.
        assert_eq!(answer(&asked(&["tips"], 200, 190), &mut uptimes), Some((false, false)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_of_an_earlier_version_gets_no_answer_that_it_does_not_know() {
        let table = Arc::new(Table::default());
        table.replace(standing(&["tips"], Moment::now()));
        let mut uptimes = Uptimes::new(Arc::clone(&table));
        uptimes.update();
        advance(seconds(60)).await;
        let read = |text: &str| serde_json::from_str::<Question>(text).unwrap();
        let of_gap = r#"{"channel":"main","held":20.0,"ended":10.0,"earlier":null,"waits":null}"#;
        assert_eq!(answer(&read(of_gap), &mut uptimes), None);
        let of_backfill = r#"{"channel":"main","held":20.0}"#;
        assert_eq!(answer(&read(of_backfill), &mut uptimes), Some((true, false)));
        table.replace(standing(&["tips"], Moment::now()));
        assert_eq!(answer(&read(of_gap), &mut uptimes), Some((true, false)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_vouches_for_the_topics_only_that_it_has() {
        let table = Arc::new(Table::default());
        table.replace(standing(&["follow", "tips"], Moment::now()));
        let mut uptimes = Uptimes::new(Arc::clone(&table));
        uptimes.update();
        advance(seconds(60)).await;
        table.replace(standing(&["follow", "tips"], Moment::now()));
        for (topics, held) in [
            (&["tips"][..], true),
            (&["follow", "tips"][..], true),
            (&["redemptions", "tips"][..], false),
            (&[][..], true),
        ] {
            let question = asked(topics, 20, 10);
            assert_eq!(answer(&question, &mut uptimes), Some((held, false)), "{topics:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_gap_that_is_noticed_late_has_begun_with_the_last_frame() {
        let table = Arc::new(Table::default());
        table.replace(standing(&["tips"], Moment::now()));
        let mut uptimes = Uptimes::new(Arc::clone(&table));
        uptimes.update();
        let last_frame = Moment::now();
        advance(seconds(60)).await;
        // Another was without the channel until ten seconds ago.
        let question = asked(&["tips"], 20, 10);
        let missed = |uptimes: &mut Uptimes| question.answer(uptimes, None).unwrap().missed;
        assert!(!missed(&mut uptimes));
        let mut lost = standing(&["tips"], last_frame);
        lost.subscriptions.values_mut().for_each(|row| row.state = SubscriptionState::Waiting);
        let all: Vec<_> = lost.subscriptions.keys().cloned().collect();
        let all: Vec<_> = all.iter().collect();
        table.replace(lost);
        assert!(!missed(&mut uptimes), "a topic that is new to the channel is no gap");
        assert!(table.had_no_holder(&all, last_frame, "connection lost").is_empty());
        assert!(missed(&mut uptimes));

        // It is over, and is told apart from one before it and one after it.
        table.replace(standing(&["tips"], Moment::now()));
        assert_eq!(table.had_no_holder(&all, Moment::now(), "connection lost").len(), 1);
        assert!(missed(&mut uptimes));
        advance(seconds(30)).await;
        for ((time, ended), expected) in
            [((20, 10), false), ((40, 20), true), ((95, 40), true), ((200, 95), false)]
        {
            let question = asked(&["tips"], time, ended);
            let answer = question.answer(&mut uptimes, None).unwrap();
            assert_eq!(answer.missed, expected, "{time} {ended}");
        }
    }
}
