//! An event in a few words for people: of which kind, who, how much, and what was written.
//!
//! The one function that makes them: the terminal, `tail`, the page and Home Assistant's logbook all show
//! what it answers. It reads the forms that are documented, and of any other the fields that most of them
//! have. It never fails: an event of which nothing is known is its topic.
//!
//! Nothing here is made harmless: whoever shows it does that, for where it goes.

use serde::Serialize;
use serde_json::Value;

use super::activity::{self, ACTIVITIES, ActivityInfo};
use crate::base::{
    event::{Event, Origin},
    json,
    terminal::{Line, Tone, padded},
    text::{counted, cut},
};

/// Characters of a message, and of any other part.
const MESSAGE: usize = 200;
const PART: usize = 80;

/// What an event says, in a few words.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// One or two words: `tip`, `gift`, `hype train`; or an activity's own word, or the topic's.
    pub kind: String,
    /// Who did it; empty where nobody is named.
    pub who: String,
    /// How much, or what of it: `37.82 USD`, `250 bits`, `tier 1, 3 months`.
    pub amount: String,
    /// What was written.
    pub message: String,
    /// `test`, `backfilled` or `replayed`; empty: it came live.
    pub mark: &'static str,
    /// Whether it is one of many that few people want to see: chat, figures of the session, moderation.
    pub quiet: bool,
}

impl Summary {
    /// Of an event whose data may be shown as it is.
    pub fn of(event: &Event) -> Self {
        Self::of_data(&event.place.topic, event.data(), event.origin)
    }

    /// The same, of what is left of the data for those who see it.
    pub fn of_data(topic: &str, data: &[u8], origin: Origin) -> Self {
        Self::of_value(topic, &json::value(data).unwrap_or_default(), origin)
    }

    pub(crate) fn of_value(topic: &str, data: &Value, origin: Origin) -> Self {
        let mut summary = of_topic(topic, data);
        for part in [&mut summary.kind, &mut summary.who, &mut summary.amount] {
            *part = cut(part.trim(), PART);
        }
        summary.message = cut(summary.message.trim(), MESSAGE);
        let is_test = origin == Origin::Test || activity::is_mock(data);
        summary.mark = match origin {
            _ if is_test => "test",
            Origin::Live | Origin::Test => "",
            origin => origin.as_str(),
        };
        summary
    }

    /// All of it in one line, where no columns can be: `tip: Jörmun, 37.82 USD, 'for the new microphone'`.
    pub fn sentence(&self) -> String {
        let said = joined(&[&self.who, &self.amount, &quoted(&self.message)]);
        let mark = bracketed(self.mark);
        let told = [&*said, &mark].into_iter().filter(|part| !part.is_empty());
        let told = told.collect::<Vec<_>>().join(" ");
        if told.is_empty() { self.kind.clone() } else { format!("{}: {told}", self.kind) }
    }
}

/// Events as lines of a terminal. The channel is named once there is more than one.
#[derive(Debug, Default)]
pub(crate) struct EventLines {
    channel: Option<String>,
    several: bool,
}

impl EventLines {
    /// `06:05:21  tip         Jörmun  37.82 USD  'for the new microphone'`. `time` is in RFC 3339.
    pub(crate) fn line(&mut self, time: &str, channel: &str, summary: &Summary) -> Line {
        let first = self.channel.get_or_insert_with(|| channel.to_owned());
        self.several |= *first != channel && !channel.is_empty();
        let time = time.get(11..19).unwrap_or("        ");
        let tone = match summary.kind.as_str() {
            "gap" => Tone::Bad,
            "health" | "backfill" => Tone::Warn,
            _ if summary.quiet => Tone::Soft,
            _ => Tone::Good,
        };
        let mut line = Line::default().with(Tone::Soft, format!("{time}  "));
        if self.several {
            line = line.with(Tone::Soft, format!("{}  ", padded(channel, 10)));
        }
        line = line.with(tone, format!("{}  ", padded(&summary.kind, 10)));
        let parts = [
            (Tone::Strong, summary.who.clone()),
            (Tone::Plain, summary.amount.clone()),
            (Tone::Plain, quoted(&summary.message)),
            (Tone::Warn, bracketed(summary.mark)),
        ];
        let mut gap = "";
        for (tone, part) in parts.into_iter().filter(|(_, part)| !part.is_empty()) {
            line = line.with(Tone::Plain, gap).with(tone, part);
            gap = "  ";
        }
        line
    }
}

fn quoted(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("'{text}'") }
}

fn bracketed(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("({text})") }
}

fn of_topic(topic: &str, data: &Value) -> Summary {
    if let Some(info) = ActivityInfo::of(topic, data) {
        return activity(info);
    }
    let kind = |kind: &str| Summary { kind: kind.to_owned(), ..Summary::default() };
    match topic {
        ACTIVITIES => kind("activity"),
        "channel.tips" | "channel.tips.moderation" => {
            let tip = ActivityInfo::tip(data).map(activity).unwrap_or_default();
            let amount = joined(&[&tip.amount, &text(data, &["/approved"])]);
            Summary { amount, ..Summary { quiet: true, kind: "tip held".to_owned(), ..tip } }
        }
        "channel.chat.message" => chat(data),
        "channel.session.update" => session(data, "/key", "/data"),
        "relay.session" => session(data, "/element", "/after"),
        "channel.session.reset" => kind("session reset"),
        "channel.stream.status" => {
            let live = data.get("isLive").and_then(Value::as_bool);
            let word = live.map_or("", |live| if live { "live" } else { "offline" });
            Summary { amount: word.to_owned(), ..kind("stream") }
        }
        "channel.chatbot.counters" => Summary {
            who: text(data, &["/counter"]),
            amount: number(data.get("value")),
            ..kind("counter")
        },
        "channel.chatbot.status" => Summary {
            amount: match (data.get("mod").and_then(Value::as_bool), data.get("duration")) {
                (Some(true), _) => "is moderator".into(),
                (Some(false), _) => "is no moderator".into(),
                (None, Some(duration)) => format!("timed out, {} s", number(Some(duration))),
                (None, None) => String::new(),
            },
            ..kind("bot")
        },
        "channel.announcements" | "astro" => {
            Summary { message: text(data, &["/text", "/message", "/title"]), ..kind("notice") }
        }
        "relay.gap" => gap(data, kind("gap")),
        "relay.backfill" => Summary {
            who: text(data, &["/channel"]),
            amount: joined(&[&text(data, &["/topic"]), &recovery(data)]),
            message: text(data, &["/error"]),
            ..kind("backfill")
        },
        "relay.status" => Summary {
            amount: text(data, &["/health", "/status"]),
            message: text(data, &["/reason"]),
            ..kind("health")
        },
        _ => other(topic, data),
    }
}

fn quiet(kind: &str) -> Summary {
    Summary { kind: kind.to_owned(), quiet: true, ..Summary::default() }
}

fn activity(info: ActivityInfo) -> Summary {
    let much = info.how_much().unwrap_or_default();
    let tier = info.tier.as_deref().map(tier).unwrap_or_default();
    let level = info.level.as_ref().map(|level| format!("level {}", activity::plain(level)));
    let level = level.unwrap_or_default();
    let amount = match &*info.kind {
        "subscriber" if info.gifted => {
            let from = info.sender.as_ref().map(|sender| format!("from {sender}"));
            joined(&[&tier, &from.unwrap_or_default()])
        }
        "subscriber" => joined(&[&tier, &much]),
        "hypetrainStart" => "begins".to_owned(),
        "hypetrainProgress" => level,
        "hypetrainEnd" => joined(&["ends", &level]),
        _ => joined(&[info.item.as_deref().unwrap_or_default(), &much]),
    };
    Summary {
        kind: info.short().to_owned(),
        who: info.user.unwrap_or_default(),
        amount,
        message: info.message.unwrap_or_default(),
        ..Summary::default()
    }
}

/// The platforms' forms differ.
fn chat(data: &Value) -> Summary {
    let names = [
        "/chatter_user_name",
        "/sender/username",
        "/authorDetails/displayName",
        "/content_data/user/display_name",
    ];
    let texts = ["/message/text", "/content", "/snippet/displayMessage", "/message", "/text"];
    let name = text(data, &names);
    let who = if name.is_empty() { who(data) } else { name };
    Summary { who, message: text(data, &texts), ..quiet("chat") }
}

/// An element of the session: `tip-session  120`.
fn session(data: &Value, element: &str, value: &str) -> Summary {
    let value = data.pointer(value).unwrap_or(&Value::Null);
    let count = ["amount", "count", "total"].iter().find_map(|key| value.get(*key));
    let amount = number(count.or(Some(value)));
    Summary {
        who: text(data, &[element]),
        amount: joined(&[&text(value, &["/name", "/displayName", "/username"]), &amount]),
        ..quiet("session")
    }
}

fn gap(data: &Value, summary: Summary) -> Summary {
    if let Some(sink) = data.get("sink").and_then(Value::as_str) {
        let lost = data.get("count").and_then(Value::as_u64).unwrap_or(0);
        let amount = format!("{} never delivered", counted(lost, "event"));
        return Summary { who: format!("sink {sink}"), amount, ..summary };
    }
    let seconds = data.get("seconds").map(|seconds| number(Some(seconds)));
    let missed = seconds.map_or_else(|| "missed".into(), |seconds| format!("missed {seconds} s"));
    Summary {
        who: text(data, &["/channel"]),
        amount: joined(&[&missed, &data.get("recovery").map(recovery).unwrap_or_default()]),
        message: text(data, &["/cause"]),
        ..summary
    }
}

/// What became of a gap: `2 recovered, incomplete`.
fn recovery(outcome: &Value) -> String {
    let complete = outcome.get("complete").and_then(Value::as_bool);
    let word = complete.map_or("", |complete| if complete { "complete" } else { "incomplete" });
    joined(&[&amount(outcome.get("recovered"), "recovered"), word])
}

/// Of anything else what most forms have, under the last words of its topic.
fn other(topic: &str, data: &Value) -> Summary {
    let kind = match topic.split('.').skip(1).collect::<Vec<_>>().as_slice() {
        ["chatbot", "modules", word] | ["chatbot" | "overlay", word] => (*word).to_owned(),
        [] => topic.to_owned(),
        words => words.join(" "),
    };
    let kind = match kind.as_str() {
        "giveaways" => "giveaway".to_owned(),
        "contests" => "contest".to_owned(),
        "songrequest" => "song".to_owned(),
        "audiencequeue" => "queue".to_owned(),
        "emotecombo" => "combo".to_owned(),
        _ => kind,
    };
    let payload = data.get("payload").or_else(|| data.get("data")).unwrap_or(&Value::Null);
    let named = who(data);
    let inner = ["/entry", "/winner", "/song/user"].iter().find_map(|path| payload.pointer(path));
    let named = if named.is_empty() { who(inner.unwrap_or(payload)) } else { named };
    let titles = ["/song/title", "/nextSong/title", "/title", "/name"];
    let event = text(data, &["/event", "/action", "/emote", "/word"]);
    Summary {
        kind,
        who: named,
        amount: joined(&[&event.replace("audience-queue:", ""), &text(payload, &titles)]),
        message: text(data, &["/message", "/text"]),
        ..Summary::default()
    }
}

fn who(data: &Value) -> String {
    text(data, &["/displayName", "/display_name", "/username", "/user_name", "/nickname", "/name"])
}

/// The first of these that is a text and says something.
fn text(data: &Value, paths: &[&str]) -> String {
    let texts = paths.iter().filter_map(|path| data.pointer(path)?.as_str());
    texts.map(str::trim).find(|text| !text.is_empty()).unwrap_or_default().to_owned()
}

fn joined(parts: &[&str]) -> String {
    parts.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join(", ")
}

/// A number as people write it, or what was sent in its place.
fn number(value: Option<&Value>) -> String {
    match value {
        Some(number @ Value::Number(_)) => activity::plain(number),
        Some(Value::String(text)) => text.trim().to_owned(),
        _ => String::new(),
    }
}

fn amount(value: Option<&Value>, unit: &str) -> String {
    let number = number(value);
    if number.is_empty() { number } else { format!("{number} {unit}") }
}

fn tier(word: &str) -> String {
    match word {
        "1000" => "tier 1".into(),
        "2000" => "tier 2".into(),
        "3000" => "tier 3".into(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(topic: &str, data: &Value) -> String {
        let summary = Summary::of_data(topic, data.to_string().as_bytes(), Origin::Live);
        format!("{}{}", if summary.quiet { "*" } else { "" }, summary.sentence())
    }

    #[test]
    fn each_kind_says_who_and_how_much() {
        let activity = |word: &str, data: Value| json!({ "type": word, "data": data });
        let by = |more: Value| {
            let mut data = json!({ "username": "jormun", "displayName": "Jörmun" });
            data.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            data
        };
        for (topic, data, expected) in [
            (
                "channel.activities",
                activity(
                    "tip",
                    by(json!({ "amount": 37.82, "currency": "USD",
                    "message": "for the new microphone" })),
                ),
                "tip: Jörmun, 37.82 USD, 'for the new microphone'",
            ),
            (
                "channel.activities",
                activity("tip", by(json!({ "amount": 5, "currency": "EUR" }))),
                "tip: Jörmun, 5.00 EUR",
            ),
            ("channel.activities", activity("follow", by(json!({}))), "follow: Jörmun"),
            (
                "channel.activities",
                activity("cheer", by(json!({ "amount": 1 }))),
                "cheer: Jörmun, 1 bit",
            ),
            (
                "channel.activities",
                activity("subscriber", by(json!({ "amount": 3, "tier": "1000" }))),
                "sub: Jörmun, tier 1, 3 months",
            ),
            (
                "channel.activities",
                activity("subscriber", by(json!({ "amount": 1, "tier": "2000", "sender": "Kim" }))),
                "gift: Jörmun, tier 2, from Kim",
            ),
            (
                "channel.activities",
                activity("raid", by(json!({ "amount": 532 }))),
                "raid: Jörmun, 532 viewers",
            ),
            (
                "channel.activities",
                activity("brandNewThing", by(json!({ "amount": 7 }))),
                "brandNewThing: Jörmun, 7",
            ),
            (
                "channel.activities",
                activity("kicks", by(json!({ "amount": "50" }))),
                "kicks: Jörmun, 50 KICKs",
            ),
            (
                "channel.activities",
                activity(
                    "channelPointsRedemption",
                    by(json!({ "amount": 1, "redemption": "Hat" })),
                ),
                "points: Jörmun, Hat, 1 point",
            ),
            (
                "channel.activities",
                activity("communityGiftPurchase", by(json!({ "amount": 20, "tier": "1000" }))),
                "gifts: Jörmun, 20 gifts",
            ),
            (
                "channel.activities",
                activity("hypetrainEnd", json!({ "level": 3, "amount": 900 })),
                "hype train: ends, level 3",
            ),
        ] {
            assert_eq!(line(topic, &data), expected, "{topic} {data}");
        }
    }

    #[test]
    fn each_topic_says_what_people_want_to_see_of_it() {
        for (topic, data, expected) in [
            (
                "channel.tips",
                json!({ "donation": { "amount": 4.2, "currency": "USD", "message": "",
                    "user": { "username": "Styler" } } }),
                "tip: Styler, 4.20 USD",
            ),
            (
                "channel.session.update",
                json!({ "key": "follower-total", "data": { "count": 1204 } }),
                "*session: follower-total, 1204",
            ),
            (
                "channel.chat.message",
                json!({ "chatter_user_name": "Kim", "message": { "text": "clip it!! " } }),
                "*chat: Kim, 'clip it!!'",
            ),
            ("channel.stream.status", json!({ "isLive": true }), "stream: live"),
            (
                "channel.giveaways",
                json!({ "event": "winner", "data": { "winner": { "username": "luckyuser" } } }),
                "giveaway: luckyuser, winner",
            ),
            (
                "channel.songrequest",
                json!({ "event": "song.next", "payload": { "nextSong": { "title": "A Song" } } }),
                "song: song.next, A Song",
            ),
            ("channel.never.seen", Value::Null, "never seen"),
            ("astro", json!({ "message": "maintenance" }), "notice: 'maintenance'"),
            (
                "channel.tips",
                json!({ "approved": "pending", "donation": { "amount": 4.2, "currency": "USD",
                    "user": { "username": "Styler" } } }),
                "*tip held: Styler, 4.20 USD, pending",
            ),
            (
                "channel.tips.moderation",
                json!({ "approved": "allowed", "donation": { "amount": 4.2, "currency": "USD",
                    "user": { "username": "Styler" } } }),
                "*tip held: Styler, 4.20 USD, allowed",
            ),
            (
                "channel.loyalty.redemptions",
                json!({ "redeemer": { "username": "Kim" }, "item": { "name": "Foghorn", "cost": 900 },
                    "message": "now" }),
                "store: Kim, Foghorn, 900 points, 'now'",
            ),
            ("channel.follow", json!({ "name": "Kim" }), "follow: Kim"),
        ] {
            assert_eq!(line(topic, &data), expected, "{topic} {data}");
        }
    }

    #[test]
    fn the_relays_own_events_say_what_matters() {
        for (topic, data, expected) in [
            (
                "relay.session",
                json!({ "element": "tip-session", "before": {}, "after": { "amount": 120 } }),
                "*session: tip-session, 120",
            ),
            (
                "relay.gap",
                json!({ "channel": "main", "seconds": 14.25, "cause": "connection lost" }),
                "gap: main, missed 14.25 s, 'connection lost'",
            ),
            (
                "relay.gap",
                json!({ "channel": "main", "seconds": 14.25, "cause": "connection lost",
                    "recovery": { "found": 9, "recovered": 2, "complete": false } }),
                "gap: main, missed 14.25 s, 2 recovered, incomplete, 'connection lost'",
            ),
            (
                "relay.gap",
                json!({ "sink": "home", "count": 1, "cause": "the journal no longer holds them" }),
                "gap: sink home, 1 event never delivered",
            ),
            (
                "relay.backfill",
                json!({ "channel": "main", "topic": "channel.tips", "found": 9, "recovered": 9,
                    "complete": true }),
                "backfill: main, channel.tips, 9 recovered, complete",
            ),
            (
                "relay.backfill",
                json!({ "channel": "main", "topic": "channel.tips", "found": 0, "recovered": 0,
                    "complete": false, "error": "HTTP 403" }),
                "backfill: main, channel.tips, 0 recovered, incomplete, 'HTTP 403'",
            ),
        ] {
            assert_eq!(line(topic, &data), expected, "{topic} {data}");
        }
    }

    #[test]
    fn a_line_names_the_channel_once_there_are_two() {
        let tip = br#"{"type":"tip","data":{"username":"Kim","amount":5,"currency":"EUR"}}"#;
        let tip = Summary::of_data("channel.activities", tip, Origin::Test);
        let mut lines = EventLines::default();
        let mut line = |channel| lines.line("2026-01-02T06:05:21Z", channel, &tip).paint(80, false);
        assert_eq!(line("main"), "06:05:21  tip         Kim  5.00 EUR  (test)");
        assert_eq!(line("other"), "06:05:21  other       tip         Kim  5.00 EUR  (test)");
        assert_eq!(line("main"), "06:05:21  main        tip         Kim  5.00 EUR  (test)");
    }

    #[test]
    fn what_nobody_did_live_is_marked() {
        let tip = br#"{"type":"tip","data":{"username":"a"}}"#;
        for (origin, mark) in [
            (Origin::Live, ""),
            (Origin::Test, "test"),
            (Origin::Backfilled, "backfilled"),
            (Origin::Replayed, "replayed"),
        ] {
            assert_eq!(Summary::of_data("channel.activities", tip, origin).mark, mark);
        }
        let mock = br#"{"type":"tip","isMock":true,"data":{"username":"a"}}"#;
        assert_eq!(Summary::of_data("channel.activities", mock, Origin::Live).mark, "test");
    }

    #[test]
    fn whatever_comes_is_bounded_and_never_fails() {
        let long = "ü".repeat(10_000);
        let data = json!({ "type": long, "data": { "username": long, "message": long } });
        let summary =
            Summary::of_data("channel.activities", data.to_string().as_bytes(), Origin::Live);
        assert!(summary.sentence().chars().count() < 400, "{summary:?}");
        for data in ["", "nonsense", "[1]", "7", "{\"type\":5,\"data\":[]}"] {
            let summary = Summary::of_data("channel.activities", data.as_bytes(), Origin::Live);
            assert_eq!(summary.kind, "activity");
        }
    }
}
