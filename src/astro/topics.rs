//! The catalogue of topics: what can be subscribed, what it needs, and what it tells.
//!
//! It serves help, completion and a warning on a likely misspelling. It
//! never forbids. Astro's topics are open-ended, and a topic that is not here is subscribed all the
//! same.

use crate::base::nearest::nearest;

/// A topic that Astro's documents name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topic {
    /// Its name.
    pub name: &'static str,
    /// The scope that a token needs for it; `None` where the documents name none. The scope `*`
    /// covers all.
    pub scope: Option<&'static str>,
    /// What it tells.
    pub meaning: &'static str,
    /// Whether anything is published on it. Some topics are documented, can be subscribed, and bring
    /// nothing (documents of September 2026).
    pub published: bool,
}

impl Topic {
    /// What it tells, and whether it does.
    pub fn description(&self) -> String {
        let note = if self.published { "" } else { NOT_PUBLISHED };
        format!("{}{note}", self.meaning)
    }
}

/// What is said of a topic on which nothing is published.
const NOT_PUBLISHED: &str = " (can be subscribed; Astro publishes nothing on it yet)";

const fn topic(name: &'static str, scope: &'static str, meaning: &'static str) -> Topic {
    Topic { name, scope: Some(scope), meaning, published: true }
}

const fn open(name: &'static str, meaning: &'static str) -> Topic {
    Topic { name, scope: None, meaning, published: true }
}

const fn unpublished(
    name: &'static str,
    scope: Option<&'static str>,
    meaning: &'static str,
) -> Topic {
    Topic { name, scope, meaning, published: false }
}

/// The topics of Astro's documentation (revision of September 2026), and `channel.follow` of the first.
pub const CATALOGUE: &[Topic] = &[
    topic(
        "channel.activities",
        "activities:read",
        "follows, subscriptions, tips, raids and the like",
    ),
    topic("channel.announcements", "channel:read", "notices from StreamElements to the channel"),
    open("channel.chatstats", "figures about the chat"),
    topic("channel.tips", "tips:read", "tips that are through"),
    topic("channel.tips.moderation", "tips:moderation", "tips that wait for, or got, a moderator"),
    topic("channel.chat.message", "overlays:read", "what is written in the chat"),
    topic("channel.session.update", "session:read", "one figure of the session changed"),
    topic("channel.session.reset", "session:read", "the session was reset"),
    topic(
        "channel.chatbot.status",
        "bot:read",
        "the bot became or is no longer moderator, was banned or unbanned (Twitch only)",
    ),
    topic("channel.chatbot.modules.pyramid", "bot:read", "pyramids of emotes in the chat"),
    topic(
        "channel.chatbot.modules.emotecombo",
        "bot:read",
        "somebody broke a run of one emote in the chat",
    ),
    unpublished("channel.chatbot.modules", Some("bot:read"), "a module of the bot was changed"),
    unpublished("channel.chatbot.commands", Some("bot:read"), "a command of the bot was changed"),
    unpublished("channel.chatbot.timers", Some("bot:read"), "a timer of the bot was changed"),
    unpublished("channel.chatbot.filters", Some("bot:read"), "a filter of the bot was changed"),
    unpublished("channel.chatbot.timeout", None, "the bot timed a viewer out"),
    topic(
        "channel.chatbot.audiencequeue",
        "bot:read",
        "the queue of viewers who want to take part moved",
    ),
    open("channel.chatbot.counters", "a counter of the bot changed"),
    topic(
        "channel.stream.status",
        "stream-live:read",
        "the stream went live on the first platform, or ended on the last",
    ),
    topic("channel.overlay.action", "overlays:read", "something was done to an overlay"),
    topic(
        "channel.overlay.broadcast",
        "overlays:broadcast",
        "a message from one overlay to others",
    ),
    topic("channel.overlay.update", "overlays:read", "an overlay was edited"),
    topic("channel.kvstore.update", "kvstore:read", "a value of the key-value store changed"),
    topic("channel.songrequest", "overlays:read", "the queue of requested songs moved"),
    open("channel.contests", "a contest opened, changed or closed"),
    open("channel.giveaways", "a giveaway opened, changed or closed"),
    topic("channel.loyalty.redemptions", "store:read", "somebody redeemed an item of the store"),
    topic("channel.loyalty.items", "store:read", "an item of the store was changed"),
    open("channel.follow", "somebody follows the channel"),
];

/// The relay's own topics, and what they tell.
pub const OWN: [(&str, &str); 4] = [
    ("relay.gap", "something was or may have been missed"),
    ("relay.backfill", "what was fetched of a gap"),
    ("relay.session", "an element of the live session has another value"),
    ("relay.status", "the health of the relay has changed"),
];

/// Whether `name` is a documented topic on which nothing is published.
pub fn is_unpublished(name: &str) -> bool {
    CATALOGUE.iter().any(|topic| topic.name == name && !topic.published)
}

/// The catalogued topic that was probably meant by `name`; `None` where it is catalogued itself, or
/// like nothing that is.
pub fn meant_by(name: &str) -> Option<&'static str> {
    if CATALOGUE.iter().any(|topic| topic.name == name) {
        return None;
    }
    nearest(name, CATALOGUE.iter().map(|topic| topic.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelling_is_recognised_and_the_unknown_is_left_alone() {
        for (name, expected) in [
            ("channel.tips", None),
            ("channel.tip", Some("channel.tips")),
            ("chanel.activities", Some("channel.activities")),
            ("channel.activites", Some("channel.activities")),
            ("channel.session.updates", Some("channel.session.update")),
            ("channel.polls.created", None),
            ("astro", None),
        ] {
            assert_eq!(meant_by(name), expected, "{name}");
        }
    }

    #[test]
    fn a_topic_that_brings_nothing_says_so() {
        assert!(
            is_unpublished("channel.chatbot.timers") && is_unpublished("channel.chatbot.timeout")
        );
        assert!(
            !is_unpublished("channel.chatbot.audiencequeue") && !is_unpublished("channel.polls")
        );
        for topic in CATALOGUE {
            assert_eq!(topic.description().contains("publishes nothing"), !topic.published);
        }
    }

    #[test]
    fn no_topic_stands_twice() {
        let mut names: Vec<&str> = CATALOGUE.iter().map(|topic| topic.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CATALOGUE.len());
    }
}
