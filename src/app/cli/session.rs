//! `astro-relay session`: a channel's session, read and changed over the REST API.
//!
//! It uses the vendor's server, not a relay that may be running; that one learns of a change from the
//! gateway, as everybody does. What deletes something asks for confirmation first; without a terminal it
//! needs `--yes`.

use std::io::{self, IsTerminal as _, Write as _};

use clap::{Args, Subcommand};
use serde_json::{Map, Value};

use super::{Done, Failed, Source, on_runtime, out};
use crate::{
    astro::rest::{Credentials, Rest, RestError, SessionAbout, SessionSnapshot, Top, credentials},
    base::{clock, text::harmless},
    channel::state,
    config::{Channel, Config, Log},
};

/// The widest value in a table: with the longest name it fits a terminal of 120 columns.
const WIDEST: usize = 80;

/// `session …`
#[derive(Debug, Subcommand)]
pub(super) enum SessionCommand {
    /// Shows all elements.
    Show(Whose),
    /// Shows one element.
    Get {
        #[command(flatten)]
        whose: Whose,
        /// Its name: follower-latest, or `latest_follower`
        element: String,
    },
    /// Sets an element to another value.
    Set {
        #[command(flatten)]
        whose: Whose,
        #[command(flatten)]
        confirm: Confirm,
        /// Its name.
        element: String,
        /// Its value, as JSON: '{"amount": 40}'
        #[arg(value_parser = json)]
        value: Value,
    },
    /// Resets the session: what it has counted is deleted.
    Reset {
        #[command(flatten)]
        whose: Whose,
        #[command(flatten)]
        confirm: Confirm,
    },
    /// Lets the server recalculate the sums. Newer documents have no such call: the server may answer
    /// 404.
    Reload(Whose),
    /// Shows the settings, or changes them.
    Settings {
        #[command(flatten)]
        whose: Whose,
        /// Whether every stream starts a new session.
        #[arg(long)]
        auto_reset: Option<bool>,
        /// Whether weeks and months are those of the calendar.
        #[arg(long)]
        calendar: Option<bool>,
    },
    /// Shows who gave most.
    Top {
        #[command(flatten)]
        whose: Whose,
        /// tip, cheer, …
        #[arg(long = "type", default_value = "tip")]
        kind: String,
        /// alltime, monthly, weekly, session
        #[arg(long, default_value = "alltime")]
        interval: String,
        /// How many.
        #[arg(long, default_value_t = 10)]
        limit: usize,
        /// How many to leave out.
        #[arg(long, default_value_t = 0)]
        offset: usize,
    },
}

/// Which channel's session, and how it is shown.
#[derive(Debug, Args)]
pub(super) struct Whose {
    #[command(flatten)]
    source: Source,
    /// The channel's label [default: the only one]
    #[arg(long, value_name = "LABEL")]
    channel: Option<String>,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// Asks before something is deleted.
#[derive(Debug, Args)]
pub(super) struct Confirm {
    /// Does not ask for confirmation.
    #[arg(long)]
    yes: bool,
}

/// A channel as the REST API knows it.
struct SelectedChannel {
    credentials: Credentials,
    rest: Rest,
    log: Log,
}

pub(super) fn session(command: SessionCommand) -> Done {
    match command {
        SessionCommand::Show(whose) => {
            let session = snapshot(&whose)?;
            if !whose.json {
                write!(out::text(), "{}", heading(&session.about))?;
            }
            show(&Value::Object(session.data), whose.json)
        }
        SessionCommand::Get { whose, element } => {
            let elements = snapshot(&whose)?.data;
            let name = state::name(&element, |name| elements.contains_key(name));
            let Some(value) = elements.get(&name) else {
                let text = format!("the session has no element {name:?}");
                return Err(Failed::new(Failed::USAGE, text));
            };
            // One value is JSON either way.
            Ok(writeln!(out::json(), "{value}")?)
        }
        SessionCommand::Set { whose, confirm, element, value } => {
            let selected = select(&whose)?;
            let elements =
                selected.request(|rest, target| async move { rest.session(target).await })?;
            let name = state::name(&element, |name| elements.data.contains_key(name));
            let before = elements.data.get(&name).unwrap_or(&Value::Null);
            confirm.ask(&format!("{name} is {before}; make it {value}?"))?;
            let change = Map::from_iter([(name, value)]);
            let change = &change;
            let done =
                selected.request(|rest, target| async move { rest.update(target, change).await });
            done.map(drop)
        }
        SessionCommand::Reset { whose, confirm } => {
            let selected = select(&whose)?;
            confirm.ask("reset the session, and delete what it has counted?")?;
            selected.request(|rest, target| async move { rest.reset(target).await }).map(drop)
        }
        SessionCommand::Reload(whose) => select(&whose)?
            .request(|rest, target| async move { rest.reload(target).await })
            .map(drop),
        SessionCommand::Settings { whose, auto_reset, calendar } => {
            let selected = select(&whose)?;
            let wanted = [("autoReset", auto_reset), ("calendar", calendar)];
            let change: Map<String, Value> = wanted
                .into_iter()
                .filter_map(|(name, value)| Some((name.to_owned(), value?.into())))
                .collect();
            let change = &change;
            let settings = selected.request(|rest, target| async move {
                if !change.is_empty() {
                    rest.set_settings(target, change).await?;
                }
                rest.settings(target).await
            })?;
            show(&Value::Object(settings), whose.json)
        }
        SessionCommand::Top { whose, kind, interval, limit, offset } => {
            let top = Top {
                kind: Some(kind),
                interval: Some(interval),
                limit: Some(limit),
                offset: Some(offset),
            };
            let top = &top;
            let selected = select(&whose)?;
            let top =
                selected.request(|rest, target| async move { rest.top(target, top).await })?;
            show_top(&top, whose.json)
        }
    }
}

fn snapshot(whose: &Whose) -> Result<SessionSnapshot, Failed> {
    select(whose)?.request(|rest, target| async move { rest.session(target).await })
}

/// `session since 2026-…, provider twitch, created 2020-…`, as far as that is known.
fn heading(about: &SessionAbout) -> String {
    let time = |word: &str, at: Option<u64>| at.map(|at| format!("{word} {}", clock::rfc3339(at)));
    let provider = about.provider.as_deref();
    let parts = [
        time("session since", about.last_reset),
        provider.map(|provider| format!("provider {}", harmless(provider))),
        time("created", about.created),
    ];
    let parts: Vec<_> = parts.into_iter().flatten().collect();
    if parts.is_empty() { String::new() } else { format!("{}\n\n", parts.join(", ")) }
}

fn select(whose: &Whose) -> Result<SelectedChannel, Failed> {
    let config = whose.source.load()?;
    let (label, channel) = pick(&config, whose.channel.as_deref())?;
    let asking = credentials(channel.room.as_deref(), &channel.token, channel.token_type);
    let credentials = crate::base::files::blocking(asking)?
        .map_err(|why| Failed::new(Failed::CONFIG, format!("channels.{label}: {why}")))?;
    crate::base::tls::install_provider();
    let rest = Rest::new(&config.astro);
    let log = Log { level: "warn".into(), ..config.log };
    Ok(SelectedChannel { credentials, rest, log })
}

fn pick<'c>(config: &'c Config, label: Option<&str>) -> Result<(&'c str, &'c Channel), Failed> {
    let found = match label {
        Some(label) => config.channels.get_key_value(label),
        None if config.channels.len() == 1 => config.channels.iter().next(),
        None => None,
    };
    found.map(|(label, channel)| (label.as_str(), channel)).ok_or_else(|| {
        let labels: Vec<_> = config.channels.keys().map(String::as_str).collect();
        let text = format!("--channel LABEL is needed, one of: {}", labels.join(", "));
        Failed::new(Failed::USAGE, text)
    })
}

impl SelectedChannel {
    fn request<'a, T, F>(
        &'a self,
        call: impl FnOnce(&'a Rest, &'a Credentials) -> F,
    ) -> Result<T, Failed>
    where
        F: Future<Output = Result<T, RestError>>,
    {
        on_runtime(1, &self.log, async {
            call(&self.rest, &self.credentials).await.map_err(|error| {
                let code = match &error {
                    RestError::Refused { .. } | RestError::Unreadable(_) => Failed::SOFTWARE,
                    RestError::Unreachable(_) | RestError::Unknown(_) => Failed::TEMPORARY,
                    _ => Failed::CONFIG,
                };
                Failed::of(code, &error)
            })
        })
    }
}

impl Confirm {
    fn ask(&self, question: &str) -> Done {
        if self.yes {
            return Ok(());
        }
        if !io::stdin().is_terminal() {
            return Err(Failed::new(
                Failed::USAGE,
                "standard input is not a terminal: --yes is needed",
            ));
        }
        if out::confirmed(question, &mut io::stdin().lock(), &mut out::conversation())? {
            return Ok(());
        }
        Err(Failed::new(Failed::USAGE, "nothing changed"))
    }
}

fn show(value: &Value, json: bool) -> Done {
    let elements = match value {
        Value::Object(elements) if !json => elements,
        _ => return Ok(writeln!(out::json(), "{value:#}")?),
    };
    let rows: Vec<_> =
        elements.iter().map(|(name, value)| [harmless(name).into_owned(), plain(value)]).collect();
    Ok(write!(out::text(), "{}", table(&rows))?)
}

fn show_top(top: &Value, json: bool) -> Done {
    let users = top.get("users").or_else(|| top.get("docs")).unwrap_or(top);
    let (Value::Array(users), false) = (users, json) else { return show(top, true) };
    let field = |user: &Value, name| user.get(name).map_or_else(String::new, plain);
    let rows: Vec<_> =
        users.iter().map(|user| [field(user, "username"), field(user, "amount")]).collect();
    Ok(write!(out::text(), "{}", table(&rows))?)
}

/// A value in a few words: `name=mossy amount=5`, or how many entries a list has.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => harmless(text).into_owned(),
        Value::Array(list) => format!("{} entries", list.len()),
        Value::Object(fields) => {
            let field =
                |(name, value): (&String, &Value)| format!("{}={}", harmless(name), plain(value));
            fields.iter().map(field).collect::<Vec<_>>().join(" ")
        }
        other => other.to_string(),
    }
}

fn table(rows: &[[String; 2]]) -> String {
    let width = rows.iter().map(|[name, _]| name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for [name, value] in rows {
        let mut shown: String = value.chars().take(WIDEST).collect();
        if shown.len() < value.len() {
            shown.push('…');
        }
        text.push_str(format!("{name:width$}  {shown}").trim_end());
        text.push('\n');
    }
    text
}

fn json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("JSON was expected: {error}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_table_shows_values_in_a_few_words() {
        let rows = [
            ["follower-latest".into(), plain(&json!({"name": "mo\nssy"}))],
            ["tip-recent".into(), plain(&json!([1, 2]))],
            ["x".into(), plain(&json!("y".repeat(100)))],
        ];
        let expected = format!(
            "follower-latest  name=mo ssy\ntip-recent       2 entries\nx                {}…\n",
            "y".repeat(80)
        );
        assert_eq!(table(&rows), expected);
    }
}
