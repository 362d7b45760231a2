//! What may be wrong, as the tables say it; and what each sort makes of the health, and asks people to do.

use std::{fmt, time::Duration};

use serde_json::{Value, json};

use crate::{
    astro::{
        session::{Subscription, SubscriptionState},
        topics::CATALOGUE,
    },
    base::{
        clock::{self, UnixMillis},
        text::counted,
    },
    config::difference::Report,
    delivery::status,
    gateway::table::ConnectionRow,
    http::health::{self, State},
};

/// What is wrong. It is formatted where somebody reads it: there may be as many as there are subscriptions.
#[derive(Debug, Clone, Copy)]
pub enum Reason<'a> {
    Connection(u64, &'a ConnectionRow),
    /// Some of what comes on a connection cannot be relayed.
    Unreadable(u64, &'a str),
    /// Messages of this topic come on a connection that belong to no channel: several come into question.
    Unplaced(u64, &'a str),
    /// With the time at which it is tried again, if it is refused.
    Subscription(&'a Subscription, &'a SubscriptionState, Option<UnixMillis>),
    LeftOut(&'a Subscription),
    /// So many have no connection yet.
    NotAsked(usize),
    /// It brings nothing although its channel is live; and what is odd about its token.
    Silent(&'a Subscription, Duration, Option<&'a str>),
    /// A channel's token cannot be refreshed.
    Token(&'a str, &'a str),
    /// A channel's token ends soon.
    TokenExpires(&'a str, UnixMillis),
    /// Something about a channel's token does not fit.
    TokenDoubt(&'a str, &'a str),
    /// A channel's session cannot be fetched.
    Session(&'a str, &'a str),
    Sink(status::Reason<'a>),
    /// So many of a sink wait, and why the latest of them is one.
    DeadLetters(&'a str, u64, Option<&'a str>),
    /// Something about the cluster.
    Cluster(&'a str),
    Unconfigured(&'static str),
    /// The latest configuration was rejected.
    Rejected(&'a Report),
}

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connection(number, row) => {
                let why = row.last_error.as_deref().unwrap_or("not yet connected");
                write!(f, "connection {number} to Astro: {why}")
            }
            Self::Unreadable(number, why) => write!(f, "connection {number} to Astro: {why}"),
            Self::Unplaced(_, topic) => write!(
                f,
                "messages of {topic} do not say of which channel they are, and several channels have \
                 this topic: they reach none"
            ),
            Self::Subscription(subscription, SubscriptionState::Refused(refusal), _) => {
                write!(f, "subscription {subscription} refused: {} {}", refusal.code, refusal.text)
            }
            Self::Subscription(subscription, state, _) => {
                write!(f, "subscription {subscription} is {}", state.as_str())
            }
            Self::LeftOut(subscription) => {
                write!(f, "subscription {subscription} is left out: max_connections")
            }
            Self::NotAsked(1) => f.write_str("1 subscription is not yet asked for"),
            Self::NotAsked(count) => write!(f, "{count} subscriptions are not yet asked for"),
            Self::Silent(subscription, quiet, doubt) => {
                let minutes = Duration::from_secs(quiet.as_secs() / 60 * 60);
                let quiet = humantime::format_duration(minutes);
                write!(
                    f,
                    "subscription {subscription} is confirmed and has brought nothing for {quiet} while \
                     the channel is live"
                )?;
                doubt.map_or(Ok(()), |doubt| write!(f, "; of its token: {doubt}"))
            }
            Self::Token(label, why) => write!(f, "token of {label} {why}"),
            Self::TokenExpires(label, at) => {
                write!(f, "token of {label} expires at {}", clock::rfc3339(*at))
            }
            Self::TokenDoubt(label, doubt) => write!(f, "token of {label}: {doubt}"),
            Self::Session(label, why) => {
                write!(f, "the session of {label} cannot be fetched: {why}")
            }
            Self::Sink(reason) => reason.fmt(f),
            Self::DeadLetters(sink, count, why) => {
                let letters = counted(*count, "dead letter");
                match why {
                    Some(why) => write!(f, "sink {sink} has {letters}, the latest: {why}"),
                    None => write!(f, "sink {sink} has {letters} from before the start"),
                }
            }
            Self::Cluster(why) => f.write_str(why),
            Self::Unconfigured(what) => f.write_str(what),
            Self::Rejected(report) => {
                let problem = report.problems.first().map_or("", String::as_str);
                let problem = problem.lines().next().unwrap_or_default();
                write!(f, "the new configuration was rejected: {problem}")
            }
        }
    }
}

impl Reason<'_> {
    /// Whether nothing is missed yet by it.
    pub(super) fn is_notice(&self) -> bool {
        self.state() == State::Working
    }

    /// As health lists it. `admin`: `http.admin_token` is configured, without which nothing can be retried.
    pub(super) fn listed(&self, admin: bool) -> health::Reason {
        health::Reason {
            kind: self.kind(),
            state: self.state(),
            about: self.about(),
            what: self.to_string(),
            since: self.since().unwrap_or(0),
            action: self.action(admin),
            link: self.link(),
            next_attempt: self.next_attempt(),
        }
    }

    /// Every kind, for the metrics: a kind that is over is 0 there, and not what it was.
    pub(in crate::http) const KINDS: [&'static str; 21] = [
        "connection", "unreadable", "channel_unknown", "subscription_refused",
        "subscription_pending", "subscription_left_out", "subscription_silent", "token",
        "token_expires", "token_doubtful", "session", "sink", "task", "events_lost",
        "condition_fails", "no_receivers", "nothing_matched", "dead_letters", "cluster",
        "unconfigured", "configuration_rejected",
    ];

    /// A stable word for its sort.
    pub(in crate::http) fn kind(&self) -> &'static str {
        use status::Reason as Of;
        match self {
            Self::Connection(..) => "connection",
            Self::Unreadable(..) => "unreadable",
            Self::Unplaced(..) => "channel_unknown",
            Self::Subscription(_, SubscriptionState::Refused(_), _) => "subscription_refused",
            Self::Subscription(..) | Self::NotAsked(_) => "subscription_pending",
            Self::LeftOut(_) => "subscription_left_out",
            Self::Silent(..) => "subscription_silent",
            Self::Token(..) => "token",
            Self::TokenExpires(..) => "token_expires",
            Self::TokenDoubt(..) => "token_doubtful",
            Self::Session(..) => "session",
            Self::Sink(Of::Sink(..) | Of::Unanswered(..)) => "sink",
            Self::Sink(Of::Task(..)) => "task",
            Self::Sink(Of::Lost(..)) => "events_lost",
            Self::Sink(Of::Condition(..)) => "condition_fails",
            Self::Sink(Of::Unheard(..)) => "no_receivers",
            Self::Sink(Of::Unmatched(..)) => "nothing_matched",
            Self::DeadLetters(..) => "dead_letters",
            Self::Cluster(_) => "cluster",
            Self::Unconfigured(_) => "unconfigured",
            Self::Rejected(_) => "configuration_rejected",
        }
    }

    fn state(&self) -> State {
        match self {
            // A condition may be one that seldom holds.
            Self::Sink(status::Reason::Unmatched(..))
            | Self::TokenExpires(..)
            | Self::TokenDoubt(..) => State::Working,
            Self::Unconfigured(_) => State::NotWorking,
            _ => State::Degraded,
        }
    }

    fn about(&self) -> Value {
        use status::Reason as Of;
        match self {
            Self::Connection(number, _) | Self::Unreadable(number, _) => {
                json!({ "connection": number })
            }
            Self::Unplaced(number, topic) => json!({ "connection": number, "topic": topic }),
            Self::Subscription(subscription, ..)
            | Self::LeftOut(subscription)
            | Self::Silent(subscription, ..) => {
                json!({ "channel": &*subscription.channel, "topic": &*subscription.topic })
            }
            Self::Token(label, _)
            | Self::TokenExpires(label, _)
            | Self::TokenDoubt(label, _)
            | Self::Session(label, _) => json!({ "channel": label }),
            Self::Sink(Of::Task(name, _)) => json!({ "task": name }),
            Self::Sink(
                Of::Sink(name, _)
                | Of::Unanswered(name, _)
                | Of::Lost(name, _)
                | Of::Condition(name, _)
                | Of::Unheard(name, _)
                | Of::Unmatched(name, _),
            )
            | Self::DeadLetters(name, ..) => json!({ "sink": name }),
            Self::Unconfigured(what) => json!({ "configuration": what }),
            Self::NotAsked(_) | Self::Cluster(_) | Self::Rejected(_) => json!({}),
        }
    }

    /// Since when, where the tables know it.
    fn since(&self) -> Option<UnixMillis> {
        match self {
            Self::Connection(_, row) => row.down_since,
            Self::Sink(status::Reason::Sink(_, sink)) => Some(sink.since),
            Self::Sink(status::Reason::Unanswered(_, sink)) => sink.unanswered_since,
            Self::Rejected(report) => Some(report.at),
            _ => None,
        }
    }

    fn next_attempt(&self) -> Option<UnixMillis> {
        match self {
            Self::Connection(_, row) => row.next_attempt,
            Self::Subscription(_, _, at) => *at,
            Self::Sink(status::Reason::Sink(_, sink)) => sink.next_attempt,
            _ => None,
        }
    }

    fn action(&self, admin: bool) -> String {
        use status::Reason as Of;
        match self {
            Self::Connection(..) => {
                "nothing is received meanwhile; the relay connects again by itself: check the network \
                 and the proxy of this machine"
                    .into()
            }
            Self::Unreadable(..) => {
                "raise astro.max_message_size if messages are too large; else report the excerpt in \
                 the log"
                    .into()
            }
            Self::Unplaced(..) => {
                "set room to the channel's id in each of these channels; where the messages name none at \
                 all, keep the topic in one channel only, or run a relay for each"
                    .into()
            }
            Self::Subscription(subscription, SubscriptionState::Refused(refusal), _) => {
                about_refusal(subscription, &refusal.code)
            }
            Self::Subscription(..) | Self::NotAsked(_) => {
                "nothing: the gateway has not answered yet".into()
            }
            Self::Silent(subscription, ..) => format!(
                "check that the token of channels.{} is that of its channel and has its scopes \
                 (`astro-relay check --connect`); else reload",
                subscription.channel
            ),
            Self::Token(label, _) | Self::TokenExpires(label, _) => {
                format!("renew the token of channels.{label}; a file is read again by itself")
            }
            Self::TokenDoubt(label, _) => {
                format!("check that the token of channels.{label} is that of its channel")
            }
            Self::Session(label, _) => format!(
                "check the token of channels.{label} and its scopes (`astro-relay check --connect`), or \
                 wait until the REST API answers: the session is fetched again by itself"
            ),
            Self::LeftOut(_) => "raise astro.max_connections, or subscribe fewer topics".into(),
            Self::Sink(Of::Sink(name, sink)) => of_sink(name, sink.state, admin),
            Self::Sink(Of::Task(name, _)) => match name.strip_prefix("state of sink ") {
                Some(sink) => format!(
                    "fix the destination or the login; it is tried again by itself{}",
                    at_once(sink, admin)
                ),
                None => "see docs/operating.md, \"What to do when\"".into(),
            },
            Self::Sink(Of::Unanswered(name, _)) => format!(
                "look at the destination; where it stays so, the relay connects again by itself when \
                 sinks.{name}.timeout is over, and events wait in the journal"
            ),
            Self::Sink(Of::Lost(..)) => {
                "they cannot be had again, but for what a cluster's log has lost and a member's journal \
                 still has (`astro-relay cluster republish`): fix the destination, or give the journal \
                 more room (journal.max_size, journal.max_age); this is shown for an hour"
                    .into()
            }
            Self::Sink(Of::Condition(name, _)) => format!(
                "these events are not sent: correct sinks.{name}.when, or limit sinks.{name}.topics to \
                 those that have the field; `astro-relay check` shows where it fails"
            ),
            Self::Sink(Of::Unheard(..)) => {
                "start the subscriber, or use mode = \"stream\": what is published to nobody is gone"
                    .into()
            }
            Self::Sink(Of::Unmatched(name, _)) => {
                format!("nothing, if it is meant so; else look at sinks.{name}.when")
            }
            Self::DeadLetters(name, ..) => format!(
                "astro-relay dead-letters list --sink {name}; then `retry` or `drop` them, here or on \
                 the page"
            ),
            Self::Cluster(_) => "astro-relay cluster; see docs/cluster.md".into(),
            Self::Unconfigured(_) => "add it to the configuration, and reload".into(),
            Self::Rejected(_) => {
                "the configuration before it stays in force: correct the file (`astro-relay check`) and \
                 reload; a restart would fail"
                    .into()
            }
        }
    }

    fn link(&self) -> String {
        use status::Reason as Of;
        match self {
            Self::Connection(..)
            | Self::Unreadable(..)
            | Self::Unplaced(..)
            | Self::Subscription(..)
            | Self::LeftOut(_)
            | Self::Silent(..)
            | Self::Token(..)
            | Self::TokenExpires(..)
            | Self::TokenDoubt(..)
            | Self::NotAsked(_) => "/#astro".into(),
            Self::Session(..) => "/#sessions".into(),
            Self::Sink(Of::Task("journal", _)) => "/#journal".into(),
            Self::Sink(Of::Task(..)) | Self::Cluster(_) => "/".into(),
            Self::DeadLetters(..) => "/#dead-letters".into(),
            Self::Unconfigured(_) | Self::Rejected(_) => "/#configuration".into(),
            Self::Sink(
                Of::Sink(name, _)
                | Of::Unanswered(name, _)
                | Of::Lost(name, _)
                | Of::Condition(name, _)
                | Of::Unheard(name, _)
                | Of::Unmatched(name, _),
            ) => format!("/#sink-{name}"),
        }
    }
}

/// What to do about a refusal.
pub fn about_refusal(subscription: &Subscription, code: &str) -> String {
    if code != "err_unauthorized" {
        return "look at the topic and the room in the configuration".into();
    }
    let known = CATALOGUE.iter().find(|topic| *topic.name == *subscription.topic);
    let channel = &subscription.channel;
    match known.and_then(|topic| topic.scope) {
        Some(scope) => format!(
            "renew the token of channels.{channel}: it has expired, is of another channel, or lacks the \
             scope {scope}"
        ),
        None => format!(
            "renew the token of channels.{channel}: it has expired, or is of another channel"
        ),
    }
}

/// How a sink need not be waited for.
fn at_once(sink: &str, admin: bool) -> String {
    if admin { format!(", at once with `astro-relay retry {sink}`") } else { String::new() }
}

/// What to do about a sink in that state.
fn of_sink(name: &str, state: &str, admin: bool) -> String {
    let at_once = at_once(name, admin);
    match state {
        "held" => format!(
            "correct the login, permission or address, or make room (see the reason); it goes on by \
             itself{at_once}"
        ),
        "rejecting" => format!("astro-relay dead-letters list --sink {name}: it says why"),
        "gone" if !admin => {
            "remove the sink, or fix the receiver: it is tried again once an hour".into()
        }
        "gone" => {
            format!("remove the sink, or fix the receiver and run `astro-relay retry {name}`")
        }
        "busy" => "nothing: the destination asked for patience".into(),
        "connecting" => "nothing: it is being connected".into(),
        "failed" => "report the message; a reload or restart tries at once".into(),
        _ => format!(
            "fix the destination; delivery resumes by itself{at_once}, and events wait in the journal"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retry_is_advised_only_where_there_is_an_admin_token() {
        for state in ["down", "held", "gone"] {
            let sink = status::Sink { state, ..status::Sink::default() };
            let reason = Reason::Sink(status::Reason::Sink("home", &sink));
            for admin in [true, false] {
                let action = reason.listed(admin).action;
                assert_eq!(action.contains("astro-relay retry home"), admin, "{state}: {action}");
            }
        }
        let reason = Reason::Sink(status::Reason::Task("state of sink home", "refused"));
        for admin in [true, false] {
            let action = reason.listed(admin).action;
            assert_eq!(action.contains("astro-relay retry home"), admin, "{action}");
        }
    }
}
