//! `astro-relay status`: what the running relay reports, as a page for a terminal.
//!
//! [`page`] is a function of the JSON of `/status` and the time; `top` draws the same. The health comes
//! first, with its reasons and what to do; what is permanent (what an acknowledgement is worth) is shown
//! where it is asked for.

use std::{io::Write as _, time::Duration};

use clap::Args;
use serde_json::{Value, value::RawValue};

use super::{
    Done, Failed,
    client::{Which, quiet},
    on_runtime, out,
};
use crate::base::{
    clock,
    terminal::{Line, Tone},
    text::{counted, harmless},
};

/// The relay does not work.
const NOT_WORKING: u8 = 1;

/// With `--check`: it works in part.
const DEGRADED: u8 = 2;

/// Gaps that are shown; `--json` has more.
const GAPS: usize = 5;

/// `status`
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(super) struct Status {
    #[command(flatten)]
    which: Which,
    /// Prints raw JSON.
    #[arg(long, conflicts_with = "check")]
    json: bool,
    /// Prints the health and its reasons only; exit code 0: working, 1: not working, 2: degraded.
    #[arg(long)]
    check: bool,
    /// Asks only whether the process answers, however it works, and prints nothing; exit code 0: it does, 69: it
    /// does not.
    #[arg(long, conflicts_with_all = ["json", "check", "verbose"])]
    alive: bool,
    /// Also prints what the relay knows of each destination, and every subscription.
    #[arg(short, long)]
    verbose: bool,
}

/// Prints it; the exit code says how the relay is.
pub(super) fn status(args: &Status) -> Done {
    let client = args.which.client()?;
    on_runtime(1, &quiet(), async move {
        if args.alive {
            return client.alive().await;
        }
        let text = client.status_text().await?;
        let Ok(status) = serde_json::from_str::<Value>(&text) else {
            return Err(client.failed("does not answer like a relay"));
        };
        if args.json {
            let raw: &RawValue = serde_json::from_str(&text)
                .map_err(|_| client.failed("does not answer like a relay"))?;
            writeln!(out::json(), "{raw}")?;
        } else {
            let now = clock::now();
            let lines = if args.check {
                health(&status, now, false)
            } else {
                page(&status, now, args.verbose)
            };
            let mut out = out::text();
            lines.iter().try_for_each(|line| out.line(line, usize::MAX))?;
        }
        match exit_code(&status, args.check) {
            0 => Ok(()),
            // The output says it all.
            code => Err(Failed::new(code, "")),
        }
    })
}

fn exit_code(status: &Value, check: bool) -> u8 {
    match at(status, "/health/state").as_str() {
        Some("degraded") if check => DEGRADED,
        Some("working" | "degraded") => 0,
        _ => NOT_WORKING,
    }
}

/// The status as a page for a terminal.
pub(super) fn page(status: &Value, now: u64, verbose: bool) -> Vec<Line> {
    let pages = &status["pages"];
    let mut lines = health(status, now, true);
    lines.push(Line::default());
    gateway(pages, now, verbose, &mut lines);
    lines.extend(table(&pages["tokens"]).flat_map(|(label, one)| token_lines(&label, one, now)));
    lines.push(Line::default());
    sinks(status, now, verbose, &mut lines);
    lines.push(Line::default());
    lines.push(journal_line(&status["journal"]));
    let gaps: Vec<&Value> = list(&pages["gaps"]).collect();
    for gap in gaps.iter().rev().take(GAPS) {
        let (from, to) = (gap["from"].as_u64().unwrap_or(0), gap["to"].as_u64().unwrap_or(0));
        lines.push(Line::from(format!(
            "missed {} s on {} from {}: {}",
            to.saturating_sub(from).div_ceil(1000),
            text(&gap["channel"]),
            moment(from),
            text(&gap["cause"])
        )));
    }
    for key in list(at(pages, "/reload/needs_restart")) {
        lines.push(Line::from(format!("{} takes effect at the next start", text(key))));
    }
    lines
}

/// The health, and each reason with what to do about it.
fn health(status: &Value, now: u64, with_version: bool) -> Vec<Line> {
    let health = &status["health"];
    let state = text(&health["state"]);
    let mut first = Line::default();
    if with_version {
        first = first.with(Tone::Strong, format!("astro-relay {}: ", text(&status["version"])));
    }
    first = first.with(tone(&state), &state);
    first = first.with(Tone::Plain, format!(" for {}", ago(&health["since"], now)));
    if with_version {
        let up = ago(at(status, "/pages/started"), now);
        first = first.with(Tone::Soft, format!(", started {up} ago"));
    }
    let mut lines = vec![first];
    for reason in list(&health["reasons"]) {
        let notice = reason["state"] == "working";
        let (sign, tone) = if notice { ("i", Tone::Warn) } else { ("!", Tone::Bad) };
        let mut line = Line::default()
            .with(tone, format!("  {sign} "))
            .with(Tone::Plain, text(&reason["what"]));
        let since = format!("  (for {}{})", ago(&reason["since"], now), next(reason, now));
        line = line.with(Tone::Soft, since);
        lines.push(line);
        let action = text(&reason["do"]);
        if !action.is_empty() {
            lines.push(Line::default().with(Tone::Soft, format!("      {action}")));
        }
    }
    if let Some(more @ 1..) = health["more"].as_u64() {
        lines.push(Line::from(format!("    and {}", counted(more, "further reason"))));
    }
    lines
}

/// `, next attempt in 12 s`.
fn next(part: &Value, now: u64) -> String {
    match part["next_attempt"].as_u64() {
        Some(at) if at > now => format!(", next attempt in {}", span(at - now)),
        Some(_) => ", next attempt now".to_owned(),
        None => String::new(),
    }
}

fn gateway(pages: &Value, now: u64, verbose: bool, lines: &mut Vec<Line>) {
    let last = pages["last_event"].as_u64();
    let last = last
        .map_or_else(|| "no event yet".into(), |at| format!("last event {} ago", since(at, now)));
    lines.push(
        Line::default()
            .with(Tone::Strong, "Astro")
            .with(Tone::Soft, format!("  {}, {last}", text(&pages["astro"]))),
    );
    for (number, connection) in table(&pages["connections"]) {
        let word = match text(&connection["state"]) {
            word if word == "open" => "connected".to_owned(),
            word => word,
        };
        let is_open = connection["down_since"].is_null();
        let of = if is_open { &connection["since"] } else { &connection["down_since"] };
        lines.push(
            Line::from(format!("  connection {number}: "))
                .with(if is_open { Tone::Good } else { Tone::Bad }, &word)
                .with(Tone::Plain, format!(" for {}{}", ago(of, now), next(connection, now))),
        );
        let subscriptions: Vec<&Value> = list(&connection["subscriptions"]).collect();
        let confirmed = subscriptions.iter().filter(|one| one["state"] == "confirmed").count();
        let count = format!("    {confirmed} of {} confirmed", counted_of(&subscriptions));
        lines.push(Line::from(count));
        for one in subscriptions {
            if verbose || one["state"] != "confirmed" {
                lines.push(subscription(one, now));
            }
        }
        error_of(connection, now, lines);
    }
}

fn counted_of(list: &[&Value]) -> String {
    counted(u64::try_from(list.len()).unwrap_or(u64::MAX), "subscription")
}

fn subscription(one: &Value, now: u64) -> Line {
    let why = [&one["code"], &one["text"]].into_iter().filter(|value| value.is_string());
    let why = why.map(text).collect::<Vec<_>>().join(": ");
    let again = one["retry_at"].as_u64().filter(|at| *at > now);
    let again = again.map(|at| format!(", again in {}", span(at - now))).unwrap_or_default();
    let state = text(&one["state"]);
    let tone = if state == "confirmed" { Tone::Good } else { Tone::Bad };
    let place = format!("    {:<12} {:<34} ", text(&one["channel"]), text(&one["topic"]));
    Line::from(place).with(tone, format!("{state:<9} ")).with(Tone::Plain, format!("{why}{again}"))
}

fn sinks(status: &Value, now: u64, verbose: bool, lines: &mut Vec<Line>) {
    lines.push(Line::default().with(Tone::Strong, "Sinks"));
    for (name, sink) in table(at(status, "/pages/sinks")) {
        let state = state(sink);
        let tone = tone(&state);
        lines.push(
            Line::from(format!("  {name} ({}): ", text(&sink["kind"])))
                .with(tone, &state)
                .with(Tone::Plain, format!(" for {}{}", ago(&sink["since"], now), next(sink, now)))
                .with(Tone::Soft, format!("  {}", text(&sink["address"])).trim_end()),
        );
        let dead = status["dead_letters"].get(&name).and_then(Value::as_u64).unwrap_or(0);
        let last = sink["last_delivered"].as_u64();
        let last = last.map(|at| format!(", the last {} ago", since(at, now))).unwrap_or_default();
        lines.push(
            Line::from(format!(
                "    {} delivered{last}, {} queued{}, ",
                sink["delivered"],
                sink["lag_events"],
                oldest(sink)
            ))
            .with(if dead > 0 { Tone::Bad } else { Tone::Plain }, counted(dead, "dead letter"))
            .with(Tone::Plain, format!(", {} lost", sink["lost"])),
        );
        error_of(sink, now, lines);
        if verbose {
            let remarks = list(&sink["remarks"]).chain(list(&sink["state_remarks"]));
            lines.extend(remarks.map(|remark| {
                Line::default().with(Tone::Soft, format!("    note: {}", text(remark)))
            }));
        }
    }
}

/// The state of a sink in the word for people.
pub(super) fn state(sink: &Value) -> String {
    match text(&sink["state"]) {
        state if state == "up" => "working".to_owned(),
        state => state,
    }
}

/// ` (oldest 3 min)`, where events wait.
fn oldest(sink: &Value) -> String {
    let seconds = sink["lag_seconds"].as_f64().unwrap_or(0.0);
    if sink["lag_events"].as_u64().unwrap_or(0) == 0 || seconds < 1.0 {
        return String::new();
    }
    let whole = Duration::try_from_secs_f64(seconds).unwrap_or_default().as_secs();
    format!(" (oldest {})", humantime::format_duration(Duration::from_secs(whole)))
}

/// `token of main: oauth2, channel 5b…, expires in 6days, refreshed 1h ago`.
fn token_lines(label: &str, token: &Value, now: u64) -> Vec<Line> {
    let mut parts = vec![text(&token["kind"])];
    for name in ["channel", "provider"] {
        parts.extend(token[name].as_str().map(|word| format!("{name} {}", harmless(word))));
    }
    let time = |millis: u64| {
        // Nobody needs the seconds of a week.
        let unit = if millis >= 3_600_000 { 3600 } else { 1 };
        humantime::format_duration(Duration::from_secs(millis / 1000 / unit * unit)).to_string()
    };
    parts.extend(token["expires_at"].as_u64().map(|at| {
        if at > now { format!("expires in {}", time(at - now)) } else { "expired".to_owned() }
    }));
    let refreshed = token["refreshed_at"].as_u64();
    parts.extend(refreshed.map(|at| format!("refreshed {} ago", time(now.saturating_sub(at)))));
    let line = format!("  token of {label}: {}", parts.join(", "));
    let error = token["error"].as_str().map(|error| format!("cannot be refreshed: {error}"));
    let doubts = list(&token["doubts"]).filter_map(Value::as_str).map(str::to_owned);
    let remark = |text: String| Line::default().with(Tone::Warn, format!("    {text}"));
    let remarks = error.into_iter().chain(doubts).map(remark);
    std::iter::once(Line::from(line)).chain(remarks).collect()
}

fn journal_line(journal: &Value) -> Line {
    let number = |key: &str| journal.get(key).and_then(Value::as_u64).unwrap_or(0);
    let (oldest, last) = (number("oldest"), number("last"));
    // An empty one says which number comes next.
    let events =
        if oldest > last { "no events".into() } else { format!("events {oldest} to {last}") };
    let health = text(&journal["health"]);
    Line::default()
        .with(Tone::Strong, "Journal")
        .with(Tone::Plain, "  ")
        .with(tone(&health), health)
        .with(Tone::Plain, format!(": {events}, {} KiB", number("bytes") >> 10))
}

/// What went wrong last, where it is over: what is wrong now stands with the reasons.
fn error_of(part: &Value, now: u64, lines: &mut Vec<Line>) {
    if part["last_error"].is_string() {
        let at = part["last_error_at"].as_u64();
        let at = at.map(|at| format!(" {} ago", since(at, now))).unwrap_or_default();
        let text = format!("    last error{at}: {}", text(&part["last_error"]));
        lines.push(Line::default().with(Tone::Soft, text));
    }
}

pub(super) fn tone(state: &str) -> Tone {
    match state {
        "working" => Tone::Good,
        "degraded" | "connecting" | "busy" | "memory only" => Tone::Warn,
        _ => Tone::Bad,
    }
}

pub(super) fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// What stands there; null where nothing does.
pub(super) fn at<'a>(value: &'a Value, pointer: &str) -> &'a Value {
    value.pointer(pointer).unwrap_or(&Value::Null)
}

pub(super) fn table(value: &Value) -> impl Iterator<Item = (String, &Value)> {
    let table = value.as_object().into_iter().flatten();
    table.map(|(name, value)| (harmless(name).into_owned(), value))
}

fn text(value: &Value) -> String {
    harmless(value.as_str().unwrap_or_default()).into_owned()
}

/// A time without milliseconds, in UTC.
fn moment(at: u64) -> String {
    clock::rfc3339(at / 1000 * 1000)
}

fn ago(value: &Value, now: u64) -> String {
    since(value.as_u64().unwrap_or(now), now)
}

pub(super) fn since(at: u64, now: u64) -> String {
    span(now.saturating_sub(at))
}

fn span(millis: u64) -> String {
    humantime::format_duration(Duration::from_secs(millis / 1000)).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(lines: &[Line]) -> String {
        lines.iter().map(|line| line.paint(200, false) + "\n").collect()
    }

    #[test]
    fn an_empty_journal_has_no_events() {
        let line = |oldest: u64, last: u64| {
            let (health, bytes) = ("working", 45_056);
            let journal =
                json!({ "health": health, "oldest": oldest, "last": last, "bytes": bytes });
            journal_line(&journal).paint(80, false)
        };
        assert_eq!(line(1, 0), "Journal  working: no events, 44 KiB");
        assert_eq!(line(3, 9), "Journal  working: events 3 to 9, 44 KiB");
    }

    #[test]
    fn a_token_is_shown_with_what_is_known_of_it() {
        let (hour, day) = (3_600_000, 24 * 3_600_000);
        let token = json!({ "kind": "oauth2", "channel": "5b", "provider": null,
            "expires_at": 7 * day + 5, "refreshed_at": day - 2 * hour, "error": "no \u{1b}answer",
            "doubts": ["it lacks the scope tips:read for channel.tips"] });
        assert_eq!(
            shown(&token_lines("main", &token, day)),
            "  token of main: oauth2, channel 5b, expires in 6days, refreshed 2h ago\n    \
             cannot be refreshed: no \\u{1b}answer\n    \
             it lacks the scope tips:read for channel.tips\n"
        );
        let ended = json!({ "kind": "jwt", "provider": "kick", "expires_at": 1 });
        let line = shown(&token_lines("a", &ended, day));
        assert_eq!(line, "  token of a: jwt, provider kick, expired\n");
    }

    fn status() -> Value {
        json!({
            "version": "1",
            "health": { "state": "degraded", "since": 31_000, "more": 1, "reasons": [
                { "state": "degraded", "what": "sink a is \u{1b}[31mdown", "since": 1000,
                  "next_attempt": 73_000, "do": "fix it" },
                { "state": "working", "what": "nothing matched", "since": 1000, "do": "" },
            ] },
            "dead_letters": { "a": 2 },
            "journal": { "health": "working", "oldest": 1, "last": 9, "bytes": 4096 },
            "pages": {
                "started": 0, "astro": "wss://astro.example", "last_event": 58_000,
                "connections": { "1": { "state": "open", "since": 1000, "down_since": null,
                    "last_error": null, "subscriptions": [
                    { "channel": "main", "topic": "channel.tips", "state": "refused",
                      "code": "err_unauthorized", "text": "no", "retry_at": 121_000 },
                    { "channel": "main", "topic": "channel.follow", "state": "confirmed" }] } },
                "sinks": { "a": { "kind": "mqtt", "state": "down", "since": 0, "delivered": 3,
                    "address": "mqtt://broker:1883", "last_delivered": 1000, "lag_seconds": 59.0,
                    "lag_events": 4, "lost": 0, "last_error": "gone", "last_error_at": 1000,
                    "next_attempt": 73_000, "remarks": ["slow"] } },
                "gaps": [{ "channel": "main", "from": 0, "to": 1500, "cause": "away" }],
                "reload": { "problems": ["x"], "needs_restart": ["journal.dir"] },
            },
        })
    }

    #[test]
    fn the_health_comes_first_with_what_to_do() {
        let page = shown(&page(&status(), 61_000, false));
        let first = "astro-relay 1: degraded for 30s, started 1m 1s ago\n  \
                     ! sink a is \\u{1b}[31mdown  (for 1m, next attempt in 12s)\n      fix it\n  \
                     i nothing matched  (for 1m)\n    and 1 further reason\n";
        assert!(page.starts_with(first), "{page}");
        for part in [
            "Astro  wss://astro.example, last event 3s ago\n  connection 1: connected for 1m\n",
            "    1 of 2 subscriptions confirmed\n    main         channel.tips",
            "refused   err_unauthorized: no, again in 1m\n",
            "  a (mqtt): down for 1m 1s, next attempt in 12s  mqtt://broker:1883\n",
            "    3 delivered, the last 1m ago, 4 queued (oldest 59s), 2 dead letters, 0 lost\n",
            "    last error 1m ago: gone\n",
            "missed 2 s on main from 1970-01-01T00:00:00Z: away\n",
            "journal.dir takes effect at the next start\n",
        ] {
            assert!(page.contains(part), "{part:?} in\n{page}");
        }
        assert!(!page.contains("slow") && !page.contains("channel.follow"), "{page}");
    }

    #[test]
    fn all_is_shown_where_it_is_asked_for() {
        let page = shown(&page(&status(), 61_000, true));
        assert!(page.contains("note: slow\n") && page.contains("channel.follow"), "{page}");
        let check = shown(&health(&status(), 61_000, false));
        assert!(check.starts_with("degraded for 30s\n  ! sink a"), "{check}");
    }

    #[test]
    fn the_exit_code_says_how_it_is() {
        let code = |state: &str, check| exit_code(&json!({ "health": { "state": state } }), check);
        assert_eq!((code("working", false), code("working", true)), (0, 0));
        assert_eq!((code("degraded", false), code("degraded", true)), (0, 2));
        assert_eq!((code("not working", false), code("not working", true)), (1, 1));
        assert_eq!((code("unheard of", false), code("unheard of", true)), (1, 1));
    }
}
