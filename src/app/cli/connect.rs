//! `astro-relay check --connect`: the configuration against what it names.
//!
//! Subscribes and unsubscribes everything at the real gateway, connects to every sink beside a relay that
//! may be running, and asks for the right to publish where events and state would go. No event is sent; what a kind's
//! probe sends instead is in its row of [`sink::KINDS`]. The expiry of tokens is printed, and whether the
//! sessions can be fetched.
//!
//! It is the relay's own gateway that subscribes, so that what works here works there. Events that come
//! meanwhile are dropped.

mod permissions;

use std::{
    collections::BTreeSet,
    io::{self, Write as _},
    path::Path,
    sync::Arc,
    time::Duration,
};

use rustix::fs::{Access, access};
use tokio::{
    net::TcpListener,
    sync::watch,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use self::permissions::{about_state, permissions, report_permissions};
use super::{Failed, client::reachable, out};
use crate::{
    astro::{
        rest::{CredentialsError, Rest, RestError, is_channel_id},
        session::SubscriptionState,
        token::TokenFacts,
    },
    base::{
        clock, event,
        text::{counted, harmless},
    },
    channel::state::SESSION_TOPICS,
    cluster::{inspect::inspect, report::Configured},
    config::{self, Channel, Config, TokenType, jwt, pasted::shown_address},
    delivery::{
        ha_event::ACTIVITIES,
        route::{Destination, Route},
        task::open_sink,
    },
    gateway::{
        Gateway, Targets,
        intake::Intake,
        table::{Phase, State, Table},
    },
    http::relay_status::about_refusal,
    journal::Journal,
    publish,
    sink::{self, Opening, Permission, Purpose},
};

/// Memory for events that nobody will read.
const MEMORY: usize = 256 * 1024;

/// How long whoever has the endpoint's address may take to answer.
const ANSWER: Duration = Duration::from_secs(3);

/// How long one request to the REST API may take; it makes a few.
const FETCH: Duration = Duration::from_secs(10);

/// A room that no channel has.
const NO_ROOM: &str = "no-room";

/// The REST API. Once it has not answered it is asked no more: each question would take as long.
struct Api {
    rest: Rest,
    /// In which words it has not.
    silence: Option<String>,
}

impl Api {
    fn describe(&mut self, error: &RestError) -> String {
        let text = error.describe();
        if matches!(error, RestError::Unreachable(_)) {
            self.silence = Some(text.clone());
        }
        text
    }
}

/// What does not work.
#[derive(Debug, Default)]
pub(super) struct Failures {
    /// Subscriptions and sinks.
    pub(super) parts: usize,
    /// What a start would come to without its address or its directory; `None` where it has both.
    pub(super) start: Option<&'static str>,
}

/// Connects to everything; answers how much of it failed.
pub(super) async fn connect(config: &Config) -> Result<Failures, Failed> {
    let (mut failed, mut start) = (0, None);
    // The worse of the two is the last.
    for (what, problem, outcome) in [
        ("journal.dir", journal(config), "the relay would keep events in memory only"),
        ("http.listen", endpoint(config).await, "the relay could not start like this"),
    ] {
        if let Err(problem) = problem {
            start = Some(outcome);
            print_line(&format!("{what}: {problem}"))?;
        }
    }
    crate::base::tls::install_provider();
    let mut api = Api { rest: Rest::new(&config.astro).within(FETCH), silence: None };
    tokens(config, &mut api).await?;
    let mut described = config.clone();
    if !config.channels.is_empty() {
        let state = subscribe(config).await?;
        failed += gateway(config, &state, &mut api).await?;
        describe_rooms(&mut described, &state);
    }
    if let Some(settings) = &config.cluster {
        failed += cluster(settings, config).await?;
    }
    for (name, sink) in &config.sinks {
        let checked = check_sink(name, &described)
            .await
            .unwrap_or_else(|why| Checked { lines: vec![format!("failed: {why}")], fit: false });
        failed += usize::from(!checked.fit);
        for (index, line) in checked.lines.iter().enumerate() {
            let margin =
                if index == 0 { format!("sink {name} ({}): ", sink.kind) } else { "  ".into() };
            print_line(&format!("{margin}{line}"))?;
        }
    }
    Ok(Failures { parts: failed, start })
}

/// What the servers of a cluster lack, and what its members do not agree in.
async fn cluster(settings: &config::Cluster, config: &Config) -> Result<usize, Failed> {
    let found = match inspect(settings, &Configured::of(config)).await {
        Ok(found) => found,
        Err(error) => {
            print_line(&format!("cluster: failed: {error}"))?;
            return Ok(1);
        }
    };
    let word = if found.problems.is_empty() { "ok" } else { "failed" };
    print_line(&format!("cluster: {word}"))?;
    for line in found.problems.iter().chain(&found.remarks) {
        print_line(&format!("  {line}"))?;
    }
    Ok(usize::from(!found.problems.is_empty()))
}

/// Prints a line in which others may have chosen words.
fn print_line(line: &str) -> io::Result<()> {
    writeln!(out::text(), "{}", harmless(line))
}

/// Whether the endpoint's address is free, or a relay is there already.
async fn endpoint(config: &Config) -> Result<(), String> {
    let listen = &config.http.listen;
    if listen.is_empty() {
        return Ok(());
    }
    match TcpListener::bind(listen).await {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if is_relay(listen).await {
                return Ok(());
            }
            Err(format!("{listen} is in use by another program: choose another port"))
        }
        Err(error) => Err(format!("cannot listen on {listen}: {error}")),
    }
}

/// Whether what listens there answers like a relay.
async fn is_relay(listen: &str) -> bool {
    let http = reqwest::Client::builder().no_proxy().timeout(ANSWER).build();
    let Ok(http) = http else { return false };
    let Ok(answer) = http.get(format!("http://{}/livez", reachable(listen))).send().await else {
        return false;
    };
    answer.text().await.is_ok_and(|text| text == "ok\n")
}

/// Whether the journal can be written. One that a running relay has is right where it is.
fn journal(config: &Config) -> Result<(), String> {
    let dir = &config.journal.dir;
    if dir.as_os_str().is_empty() { Ok(()) } else { writable(dir) }
}

/// Whether this user can write into a directory, or make it.
pub(super) fn writable(dir: &Path) -> Result<(), String> {
    // What is not there is made, so the nearest directory that there is counts.
    let there = dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("."));
    let there = if there.as_os_str().is_empty() { Path::new(".") } else { there };
    if !there.is_dir() {
        return Err(format!("{} is no directory", there.display()));
    }
    access(there, Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|error| format!("{} cannot be written by this user: {error}", there.display()))
}

/// When the tokens end, whose they are, and what of that does not fit what is asked for.
async fn tokens(config: &Config, api: &mut Api) -> Result<(), Failed> {
    for (label, channel) in &config.channels {
        let Known { expiry, facts, remark, is_odd } = known(channel, api).await;
        let when = match expiry {
            None if is_odd => "is no JWT, though token_type is jwt".to_owned(),
            None => "does not say when it expires".to_owned(),
            Some(at) if at > jwt::LATEST => {
                "says a time out of range (milliseconds?): when it expires is unknown".to_owned()
            }
            Some(at) => {
                let millis = at.saturating_mul(1000);
                let left = Duration::from_secs(at.saturating_sub(clock::now() / 1000));
                let when = clock::rfc3339(millis);
                match left.as_secs() / (24 * 3600) {
                    _ if left.is_zero() => format!("expired at {when}"),
                    days => format!("expires at {when}, in {days} days"),
                }
            }
        };
        print_line(&format!("token of {label}: {when}"))?;
        let provider = facts.provider.as_ref().map(|word| format!(" ({word})")).unwrap_or_default();
        let whose = facts.channel.as_ref().map(|one| format!("belongs to channel {one}{provider}"));
        let scopes =
            facts.scopes.as_ref().map(|scopes| format!("has the scopes {}", scopes.join(", ")));
        let topics = channel.topics.iter().map(String::as_str);
        let doubts = facts.doubts(channel.room.as_deref(), topics);
        let doubts = doubts.into_iter().map(|doubt| format!("warning: {doubt}"));
        for line in [whose, scopes, remark].into_iter().flatten().chain(doubts) {
            print_line(&format!("  {line}"))?;
        }
    }
    Ok(())
}

/// What is known of a token.
#[derive(Default)]
struct Known {
    /// When it ends, as it says: in seconds since the epoch.
    expiry: Option<u64>,
    facts: TokenFacts,
    remark: Option<String>,
    /// It should be a JWT, and is none.
    is_odd: bool,
}

async fn known(channel: &Channel, api: &mut Api) -> Known {
    let remark = |text: String| Known { remark: Some(text), ..Known::default() };
    let Ok(token) = channel.token.read_token().await else { return Known::default() };
    match channel.token_type {
        TokenType::Jwt => Known {
            expiry: jwt::stated_expiry(token.expose()),
            facts: TokenFacts::of_jwt(token.expose()),
            is_odd: !jwt::is_one(token.expose()),
            remark: None,
        },
        TokenType::Apikey => remark("whether the REST API takes an API key is not verified".into()),
        TokenType::Oauth2 | TokenType::Oauth => {
            let validated = match api.silence.clone() {
                Some(why) => Err(why),
                None => api.rest.validate(&token).await.map_err(|error| api.describe(&error)),
            };
            match validated {
                Ok(said) => Known {
                    expiry: said
                        .left
                        .map(|left| (clock::now() / 1000).saturating_add(left.as_secs())),
                    facts: TokenFacts::of_oauth(said),
                    ..Known::default()
                },
                Err(why) => remark(format!("what it is good for is not known: {why}")),
            }
        }
    }
}

async fn gateway(config: &Config, state: &State, api: &mut Api) -> Result<usize, Failed> {
    let failed = report(config, state)?;
    if state.open_connections() == 0 {
        return Ok(failed);
    }
    Ok(failed + sessions(config, state, api).await?)
}

/// The events of a channel have the room that the gateway has confirmed.
fn describe_rooms(config: &mut Config, state: &State) {
    for (subscription, row) in state.assigned().filter(|(_, row)| row.state.is_confirmed()) {
        let channel = config.channels.get_mut(&*subscription.channel);
        if let (Some(channel), Some(room)) = (channel, row.room(subscription)) {
            channel.room = Some(room.to_string());
        }
    }
}

/// Fetches the sessions, as the relay does. What was missed is fetched under the same id.
async fn sessions(config: &Config, state: &State, api: &mut Api) -> Result<usize, Failed> {
    let mut failed = 0;
    for (label, channel) in &config.channels {
        let has = |wanted: &[&str]| channel.topics.iter().any(|topic| wanted.contains(&&**topic));
        let has_session = has(&SESSION_TOPICS);
        if !has_session && !has(&[ACTIVITIES]) {
            continue;
        }
        let confirmed = state.assigned().find_map(|(subscription, row)| {
            let room = row.room(subscription).filter(|_| row.state.is_confirmed())?;
            (*subscription.channel == **label && is_channel_id(room)).then(|| room.to_string())
        });
        let rooms = confirmed.as_deref().into_iter().chain(channel.room.as_deref());
        let is_known = rooms.clone().any(is_channel_id);
        let is_oauth = matches!(channel.token_type, TokenType::Oauth2 | TokenType::Oauth);
        let is_asked = has_session || (is_oauth && !is_known);
        let outcome = if let Some(why) = api.silence.as_ref().filter(|_| is_asked) {
            Err(format!("cannot be fetched: {why}"))
        } else {
            match api.rest.credentials(rooms, &channel.token, channel.token_type).await {
                Ok(_) if !has_session => continue,
                Ok(credentials) => api
                    .rest
                    .document(&credentials)
                    .await
                    .map(|session| session.elements.len())
                    .map_err(|error| format!("cannot be fetched: {}", api.describe(&error))),
                Err(CredentialsError::NoId) => Err(format!(
                    "neither the token nor Astro says the channel's id: it and what was missed cannot \
                     be fetched; set channels.{label}.room"
                )),
                Err(error) => Err(format!("cannot be fetched: {error}")),
            }
        };
        failed += usize::from(outcome.is_err());
        let what = match outcome {
            Ok(elements) => {
                let elements = u64::try_from(elements).unwrap_or(u64::MAX);
                format!("fetched, {}", counted(elements, "element"))
            }
            Err(why) => why,
        };
        print_line(&format!("session of {label}: {what}"))?;
    }
    Ok(failed)
}

/// Subscribes everything, and answers what became of it when all is answered, or the time is over.
pub(super) async fn subscribe(config: &Config) -> Result<State, Failed> {
    let (_targets, wanted) = watch::channel(Targets::of(config));
    let table: Arc<Table> = Arc::default();
    let intake = Arc::new(Intake::new(Journal::in_memory(MEMORY)));
    let gateway = Gateway::new(&config.astro, Arc::clone(&table), intake, wanted)
        .map_err(|error| Failed::of(Failed::CONFIG, &error))?;
    let count: usize = config.channels.values().map(|channel| channel.topics.len()).sum();
    let (stop, limit) = (CancellationToken::new(), patience(config, count));
    let asking = async {
        // Whether all are answered, or the time is over: what stands then is reported.
        drop(timeout(limit, answered(&table)).await);
        let state = table.snapshot();
        stop.cancel();
        state
    };
    let ((), state) = tokio::join!(gateway.run(stop.clone()), asking);
    Ok(state)
}

/// The stages of connecting, the welcome, the answers; and ten commands a second.
fn patience(config: &Config, subscriptions: usize) -> Duration {
    let astro = &config.astro;
    let stages = astro.connect_timeout.0.saturating_mul(4);
    let commands = Duration::from_millis(100) * u32::try_from(subscriptions).unwrap_or(u32::MAX);
    let waits = astro.welcome_grace.0.saturating_add(astro.response_timeout.0);
    stages.saturating_add(waits).saturating_add(commands)
}

/// Waits until every subscription is answered, or the gateway cannot be reached.
async fn answered(table: &Table) {
    let mut changes = table.changes();
    let is_done = |state: &State| {
        let refused = state
            .connections
            .values()
            .any(|row| row.phase == Phase::Waiting && row.last_error.is_some());
        refused || state.subscriptions.values().all(|row| row.state.is_answered())
    };
    while !table.read(is_done) && changes.changed().await.is_ok() {}
}

fn report(config: &Config, state: &State) -> Result<usize, Failed> {
    let mut failed = 0;
    let address = shown_address(&config.astro.url);
    if state.open_connections() == 0 {
        let error = state.connections.values().find_map(|row| row.last_error.as_deref());
        print_line(&format!(
            "gateway {address}: failed: {}",
            error.unwrap_or("no answer in time")
        ))?;
        return Ok(1);
    }
    print_line(&format!("gateway {address}: connected"))?;
    for (subscription, row) in state.assigned() {
        let what = match (&row.state, row.room(subscription)) {
            (SubscriptionState::Confirmed(_), Some(room)) => format!("confirmed, room {room}"),
            (SubscriptionState::Confirmed(_), None) => "confirmed".to_owned(),
            (SubscriptionState::Refused(refusal), _) => {
                format!("refused {}: {}", refusal.code, refusal.text)
            }
            (state, _) => format!("{} ", state.as_str()),
        };
        failed += usize::from(!row.state.is_confirmed());
        print_line(&format!("  {} {}: {what}", subscription.channel, subscription.topic))?;
        if let SubscriptionState::Refused(refusal) = &row.state {
            print_line(&format!("    {}", about_refusal(subscription, &refusal.code)))?;
        }
    }
    Ok(failed)
}

pub(super) struct Checked {
    pub(super) lines: Vec<String>,
    pub(super) fit: bool,
}

/// Connects to a sink, asks for the right to publish, and disconnects.
pub(super) async fn check_sink(name: &str, config: &Config) -> Result<Checked, String> {
    let Some(sink) = config.sinks.get(name) else {
        return Ok(Checked { lines: Vec::new(), fit: true });
    };
    let (mut opened, mut route) =
        open_sink(name, sink, Purpose::Probe).map_err(|error| error.to_string())?;
    let limit = sink.timeout.0;
    timeout(limit, opened.connect())
        .await
        .map_err(|_| "no connection within its timeout".to_owned())?
        .map_err(|failure| crate::delivery::describe(&failure.cause))?;
    let mut lines = vec!["reachable".to_owned()];
    lines.extend(opened.report().facts.unwrap_or_default());
    let publisher = publish::kind(&sink.kind).filter(|kind| (kind.publishes)(sink));
    if let Some(probe) = publisher.and_then(|kind| kind.probe) {
        let facts = probe(&Opening { name, config: sink, purpose: Purpose::Probe });
        let facts = timeout(limit, facts).await.map_err(|_| "no answer about its state in time")?;
        lines.extend(facts.map_err(|failure| crate::delivery::describe(&failure.cause))?);
    }
    let Addresses { mut known, by_data, by_room } = addresses(config, &mut route);
    let is_idle = known.is_empty() && !by_data && by_room.is_empty();
    if is_idle && !config.channels.is_empty() {
        lines.push("nothing that is subscribed goes to this sink".to_owned());
    }
    for label in by_room {
        lines.push(format!(
            "where events of {label} go depends on its room, which is not known; whether it may publish \
             there is not known: set channels.{label}.room"
        ));
    }
    if by_data {
        lines.push(format!(
            "where some events go depends on their data; whether it may publish there is not known: \
             astro-relay send-test --sink {name}"
        ));
    }
    if sink::kind(&sink.kind).is_some_and(|kind| kind.address.is_none()) {
        // It is asked once, whatever is subscribed: a webhook connects to nothing before.
        known.insert("".into());
    }
    let opening = Opening { name, config: sink, purpose: Purpose::Probe };
    // Standard output has none: it takes whatever comes.
    let probe = sink::kind(&sink.kind).and_then(|kind| kind.probe);
    let (mut answers, mut unanswered) =
        permissions(probe, &opening, known.into_iter().collect()).await;
    let mut below = Vec::new();
    if let Some(rights) = publisher.and_then(|kind| kind.rights)
        && unanswered.is_none()
    {
        let questions = (rights.questions)(&opening, &config.channels);
        let questions = questions.map_err(|error| error.to_string())?;
        let (more, why) = permissions(Some(rights.probe), &opening, questions).await;
        let is_below =
            |answer: &(_, Permission)| matches!(answer.1, Permission::DeniedBelow { .. });
        let (denied, more): (Vec<_>, Vec<_>) = more.into_iter().partition(is_below);
        answers.extend(more);
        below = denied;
        unanswered = why;
    }
    if answers.is_empty()
        && below.is_empty()
        && let Some(why) = unanswered
    {
        return Err(why);
    }
    let fit = report_permissions(name, answers, &mut lines) && unanswered.is_none();
    lines.extend(about_state(&below));
    lines.extend(unanswered);
    // How the connection ends changes nothing.
    drop(timeout(limit, opened.close(Instant::now())).await);
    Ok(Checked { lines, fit })
}

/// Where events of what is subscribed would go, and those that tell of a gap.
#[derive(Debug, Default)]
struct Addresses {
    known: BTreeSet<Arc<str>>,
    /// Some go where their data says.
    by_data: bool,
    /// The channels of which some go where their room says, and nobody has said it.
    by_room: BTreeSet<String>,
}

fn addresses(config: &Config, route: &mut Route) -> Addresses {
    let mut found = Addresses::default();
    for (label, channel) in &config.channels {
        let (of, room): (Arc<str>, _) = (label.as_str().into(), config.room_of(label));
        let mut destination = |topic: &str, room: &str| {
            let event = event::test(topic, &of, &room.into(), serde_json::Map::new(), clock::now());
            route.destination(&event)
        };
        for topic in channel.topics.iter().map(String::as_str).chain(["relay.gap"]) {
            let at = destination(topic, room.unwrap_or_default());
            if room.is_none() && destination(topic, NO_ROOM) != at {
                found.by_room.insert(label.clone());
                continue;
            }
            match at {
                Destination::Nowhere => {}
                Destination::At(address) => {
                    found.known.insert(address);
                }
                Destination::ByData => found.by_data = true,
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        astro::session::Subscription,
        gateway::table::{Slot, SubscriptionRow},
    };

    /// A sink whose addresses have the room of the channel, without a configured one.
    fn config() -> Config {
        serde_json::from_value(serde_json::json!({
            "channels": { "main": { "token": { "value": "t" }, "topics": ["channel.tips"] } },
            "sinks": { "home": { "type": "mqtt", "topics": ["channel.tips"] } },
        }))
        .unwrap()
    }

    fn found(config: &Config) -> (Vec<String>, usize) {
        let mut sink = config.sinks["home"].clone();
        sink.settings =
            serde_json::json!({ "url": "mqtt://broker", "topic": "astro/{{ room }}/{{ topic }}" });
        let kind = sink::kind("mqtt").unwrap();
        let mut route = Route::new("home", &sink, kind).unwrap();
        let found = addresses(config, &mut route);
        (found.known.iter().map(ToString::to_string).collect(), found.by_room.len())
    }

    #[test]
    fn addresses_have_the_room_that_the_gateway_has_confirmed_or_the_token_names() {
        let mut config = config();
        assert_eq!(found(&config), (Vec::new(), 1), "a room that nobody has said makes no address");
        config.token_rooms.insert("main".to_owned(), "own".to_owned());
        assert_eq!(found(&config), (vec!["astro/own/channel.tips".to_owned()], 0));
        let subscription = Arc::new(Subscription {
            topic: "channel.tips".into(),
            room: None,
            channel: "main".into(),
            token_type: TokenType::Jwt,
            token_room: None,
        });
        let mut row = SubscriptionRow::new(0);
        row.slot = Slot::On(1);
        row.state = SubscriptionState::Confirmed(Some("canonical".into()));
        let state = State { subscriptions: [(subscription, row)].into(), ..State::default() };
        describe_rooms(&mut config, &state);
        assert_eq!(found(&config), (vec!["astro/canonical/channel.tips".to_owned()], 0));
    }
}
