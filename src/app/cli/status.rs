//! `astro-relay status`: what the running relay reports, as a page for a terminal.
//!
//! [`page`] is a function of the JSON of `/status` and the time; `top` draws the same.

use std::{io::Write as _, time::Duration};

use clap::Args;
use serde_json::{Value, value::RawValue};

use super::{
    Done,
    client::{Which, quiet},
    on_runtime, out,
};
use crate::base::{clock, text::harmless};

/// `status`
#[derive(Debug, Args)]
pub(super) struct Status {
    #[command(flatten)]
    which: Which,
    /// Prints raw JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn status(args: &Status) -> Done {
    let client = args.which.client()?;
    on_runtime(1, &quiet(), async move {
        if args.json {
            let text = client.status_text().await?;
            if serde_json::from_str::<&RawValue>(&text).is_err() {
                return Err(client.failed("does not answer like a relay"));
            }
            return Ok(writeln!(out::json(), "{text}")?);
        }
        let status = client.status().await?;
        Ok(write!(out::text(), "{}", page(&status, clock::now()))?)
    })
}

/// The status as a page for a terminal.
pub(super) fn page(status: &Value, now: u64) -> String {
    let pages = &status["pages"];
    let mut lines = vec![format!(
        "astro-relay {}, up for {}: {}",
        text(&status["version"]),
        ago(&pages["started"], now),
        if status["ready"] == true { "ready" } else { "not ready" }
    )];
    for reason in list(&status["reasons"]) {
        lines.push(format!("  ! {}", text(reason)));
    }
    lines.push(String::new());
    lines.push("gateway".into());
    for (number, connection) in table(&pages["connections"]) {
        let state = text(&connection["state"]);
        lines
            .push(format!("  connection {number}: {state} for {}", ago(&connection["since"], now)));
        for subscription in list(&connection["subscriptions"]) {
            let why: Vec<_> = [&subscription["code"], &subscription["text"]]
                .into_iter()
                .filter(|value| value.is_string())
                .map(text)
                .collect();
            lines.push(format!(
                "    {:<12} {:<34} {:<9} {}",
                text(&subscription["channel"]),
                text(&subscription["topic"]),
                text(&subscription["state"]),
                why.join(": ")
            ));
        }
        error_of(connection, &mut lines);
    }
    lines.extend(table(&pages["tokens"]).map(|(label, one)| token_line(&label, one, now)));
    lines.push(String::new());
    lines.push("sinks".into());
    for (name, sink) in table(&pages["sinks"]) {
        let (kind, state) = (text(&sink["kind"]), text(&sink["state"]));
        lines.push(format!("  {name} ({kind}): {state} for {}", ago(&sink["since"], now)));
        let dead = status["dead_letters"].get(&name).and_then(Value::as_u64).unwrap_or(0);
        lines.push(format!(
            "    {} delivered, {} queued, {dead} dead letters, {} lost",
            sink["delivered"], sink["lag_events"], sink["lost"]
        ));
        error_of(sink, &mut lines);
        let remarks = list(&sink["remarks"]).chain(list(&sink["state_remarks"]));
        lines.extend(remarks.map(|remark| format!("    {}", text(remark))));
    }
    lines.push(String::new());
    lines.push(journal_line(&status["journal"]));
    for gap in list(&pages["gaps"]) {
        let (from, to) = (gap["from"].as_u64().unwrap_or(0), gap["to"].as_u64().unwrap_or(0));
        lines.push(format!(
            "missed {} s on {} from {}: {}",
            to.saturating_sub(from).div_ceil(1000),
            text(&gap["channel"]),
            clock::rfc3339(from),
            text(&gap["cause"])
        ));
    }
    let reload = &pages["reload"];
    for problem in list(&reload["problems"]) {
        lines.push(format!("the new configuration was rejected: {}", text(problem)));
    }
    for key in list(&reload["needs_restart"]) {
        lines.push(format!("{} takes effect at the next start", text(key)));
    }
    lines.push(String::new());
    lines.join("\n")
}

/// `token of main: oauth2, channel 5b…, expires in 6days, refreshed 1h ago`.
fn token_line(label: &str, token: &Value, now: u64) -> String {
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
    let remarks = error.into_iter().chain(doubts).map(|remark| harmless(&remark).into_owned());
    std::iter::once(line).chain(remarks).collect::<Vec<_>>().join("\n    ")
}

fn journal_line(journal: &Value) -> String {
    let number = |key: &str| journal.get(key).and_then(Value::as_u64).unwrap_or(0);
    let (oldest, last) = (number("oldest"), number("last"));
    // An empty one says which number comes next.
    let events =
        if oldest > last { "no events".into() } else { format!("events {oldest} to {last}") };
    let health = match text(&journal["health"]) {
        health if health == "sound" => "OK".to_owned(),
        health => health,
    };
    format!("journal {health}: {events}, {} KiB", number("bytes") >> 10)
}

fn error_of(part: &Value, lines: &mut Vec<String>) {
    if part["last_error"].is_string() {
        let at = part["last_error_at"].as_u64().map(|at| format!(" at {}", clock::rfc3339(at)));
        let at = at.unwrap_or_default();
        lines.push(format!("    last error{at}: {}", text(&part["last_error"])));
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

pub(super) fn table(value: &Value) -> impl Iterator<Item = (String, &Value)> {
    let table = value.as_object().into_iter().flatten();
    table.map(|(name, value)| (harmless(name).into_owned(), value))
}

fn text(value: &Value) -> String {
    harmless(value.as_str().unwrap_or_default()).into_owned()
}

fn ago(since: &Value, now: u64) -> String {
    let seconds = now.saturating_sub(since.as_u64().unwrap_or(now)) / 1000;
    humantime::format_duration(Duration::from_secs(seconds)).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_empty_journal_has_no_events() {
        let line = |oldest: u64, last: u64| {
            let (health, bytes) = ("sound", 45_056);
            journal_line(
                &json!({ "health": health, "oldest": oldest, "last": last, "bytes": bytes }),
            )
        };
        assert_eq!(line(1, 0), "journal OK: no events, 44 KiB");
        assert_eq!(line(3, 9), "journal OK: events 3 to 9, 44 KiB");
    }

    #[test]
    fn a_token_is_shown_with_what_is_known_of_it() {
        let (hour, day) = (3_600_000, 24 * 3_600_000);
        let token = json!({ "kind": "oauth2", "channel": "5b", "provider": null,
            "expires_at": 7 * day + 5, "refreshed_at": day - 2 * hour, "error": "no \u{1b}answer",
            "doubts": ["it lacks the scope tips:read for channel.tips"] });
        assert_eq!(
            token_line("main", &token, day),
            "  token of main: oauth2, channel 5b, expires in 6days, refreshed 2h ago\n    \
             cannot be refreshed: no \\u{1b}answer\n    \
             it lacks the scope tips:read for channel.tips"
        );
        let ended = json!({ "kind": "jwt", "provider": "kick", "expires_at": 1 });
        assert_eq!(token_line("a", &ended, day), "  token of a: jwt, provider kick, expired");
    }

    #[test]
    fn reasons_stand_first_on_the_page() {
        let status = json!({
            "version": "1", "ready": false, "reasons": ["sink a is \u{1b}[31mdown"],
            "dead_letters": { "a": 2 },
            "journal": { "health": "sound", "oldest": 1, "last": 9, "bytes": 4096 },
            "pages": {
                "started": 0,
                "connections": { "1": { "state": "open", "since": 1000, "last_error": null,
                    "subscriptions": [{ "channel": "main", "topic": "channel.tips",
                    "state": "refused", "code": "err_unauthorized", "text": "no" }] } },
                "sinks": { "a": { "kind": "mqtt", "state": "down", "since": 0, "delivered": 3,
                    "lag_events": 4, "lost": 0, "last_error": "gone", "last_error_at": 1000,
                    "remarks": ["slow"] } },
                "gaps": [{ "channel": "main", "from": 0, "to": 1500, "cause": "away" }],
                "reload": { "problems": ["x"], "needs_restart": [] },
            },
        });
        let page = page(&status, 61_000);
        for part in [
            "astro-relay 1, up for 1m 1s: not ready\n  ! sink a is \\u{1b}[31mdown\n",
            "  connection 1: open for 1m\n    main         channel.tips",
            "refused   err_unauthorized: no\n",
            "  a (mqtt): down for 1m 1s\n    3 delivered, 4 queued, 2 dead letters, 0 lost\n",
            "    last error at 1970-01-01T00:00:01Z: gone\n    slow\n",
            "missed 2 s on main from 1970-01-01T00:00:00Z: away\n",
            "the new configuration was rejected: x\n",
        ] {
            assert!(page.contains(part), "{part:?} in\n{page}");
        }
    }
}
