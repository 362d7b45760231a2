//! The server of the setup page: who may ask, and what each step tries.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, LazyLock},
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Request, State},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use tokio::{net::TcpListener, sync::Mutex};
use tokio_util::sync::CancellationToken;

use super::form;
use crate::{
    app::cli::{
        connect,
        init::{self, InitError, NewSink, Plan, Token, Written},
    },
    astro::{session::SubscriptionState, token::TokenFacts},
    base::clock,
    config::{Config, ConfigError, Secret, TokenType, jwt, pasted},
    delivery::test_event::{self, TestKind},
    http::{BASE_SCRIPT, Document, STYLE, constant_time_eq},
};

/// Wrong codes until the command ends.
const WRONG: u32 = 10;

/// The largest body: a token, some topics and the fields of some sinks.
const BODY: usize = 256 * 1024;

static PAGE: LazyLock<Document> = LazyLock::new(|| {
    Document::new(
        include_str!("page.html"),
        &[STYLE, include_str!("style.css")].concat(),
        &[BASE_SCRIPT, include_str!("page.js")].concat(),
    )
});

#[derive(Debug)]
pub(super) struct Wizard {
    pub(super) code: String,
    pub(super) file: PathBuf,
    /// Keys of `[astro]` that are not the usual ones.
    pub(super) astro: BTreeMap<String, String>,
    pub(super) address: SocketAddr,
    /// How often a wrong code was shown.
    pub(super) wrong: Mutex<u32>,
    pub(super) saved: Mutex<Option<Written>>,
    pub(super) stop: CancellationToken,
}

type Shared = Arc<Wizard>;

/// Serves until the configuration is saved, or it is stopped.
pub(super) async fn serve(listener: TcpListener, wizard: Shared) {
    let stop = wizard.stop.clone();
    let router = Router::new()
        .route("/", get(page))
        .route("/api/setup", get(questions))
        .route("/api/token", post(token))
        .route("/api/sink", post(sink))
        .route("/api/test", post(test))
        .route("/api/save", post(save))
        .layer(DefaultBodyLimit::max(BODY))
        .layer(middleware::from_fn_with_state(Arc::clone(&wizard), guard))
        .with_state(wizard);
    let serving = axum::serve(listener, router);
    // What fails here is seen in the browser.
    drop(serving.with_graceful_shutdown(stop.cancelled_owned()).await);
}

/// Everything but the empty page needs the code; and no other name leads here (DNS rebinding).
async fn guard(State(wizard): State<Shared>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (host, port) = (text(header::HOST), wizard.address.port());
    let ours =
        [format!("{}", wizard.address), format!("localhost:{port}"), format!("127.0.0.1:{port}")];
    if !ours.iter().any(|own| own == host) {
        return (StatusCode::MISDIRECTED_REQUEST, "another host name\n").into_response();
    }
    let shown = text(header::AUTHORIZATION).strip_prefix("Bearer ").unwrap_or_default();
    if request.uri().path() != "/" && !constant_time_eq(shown, &wizard.code) {
        let mut wrong = wizard.wrong.lock().await;
        *wrong += 1;
        if *wrong >= WRONG {
            wizard.stop.cancel();
        }
        return (StatusCode::UNAUTHORIZED, "the code is that in the printed address\n")
            .into_response();
    }
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
    ] {
        headers.insert(name, header::HeaderValue::from_static(value));
    }
    response
}

async fn page() -> impl IntoResponse {
    ([(header::CONTENT_SECURITY_POLICY, &*PAGE.policy)], Html(&*PAGE.html))
}

async fn questions(State(wizard): State<Shared>) -> Json<Value> {
    Json(form::questions(&wizard.file))
}

/// The answers so far, as the page sends them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Answers {
    channel: String,
    #[serde(default)]
    room: String,
    token: String,
    #[serde(default)]
    token_type: TokenType,
    topics: Vec<String>,
    #[serde(default)]
    sinks: Vec<SinkAnswers>,
    /// Which sink is meant, where one is.
    sink: Option<usize>,
    /// Which test event.
    kind: Option<String>,
    #[serde(default)]
    overwrite: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SinkAnswers {
    kind: String,
    settings: Map<String, Value>,
    #[serde(default)]
    secrets: BTreeMap<String, String>,
}

impl Answers {
    fn plan(&self, wizard: &Wizard) -> Result<Plan, String> {
        let sink = |answers: &SinkAnswers| {
            let table = Value::Object(answers.settings.clone());
            let mut settings: toml::Table =
                serde_json::from_value(table).map_err(|error| error.to_string())?;
            let url = settings.remove("url").and_then(|url| url.as_str().map(ToOwned::to_owned));
            let secrets = answers.secrets.iter().filter(|(_, secret)| !secret.is_empty());
            let secrets = secrets.map(|(key, secret)| (key.clone(), Secret::new(secret))).collect();
            Ok(NewSink { kind: answers.kind.clone(), url, settings, secrets })
        };
        Ok(Plan {
            channel: self.channel.clone(),
            room: Some(self.room.trim().to_owned()).filter(|room| !room.is_empty()),
            token: Token::New(Secret::new(pasted::token(&self.token))),
            token_type: self.token_type,
            topics: self.topics.clone(),
            sinks: self.sinks.iter().map(sink).collect::<Result<_, String>>()?,
            astro: wizard.astro.clone(),
            journal: init::journal_dir(&wizard.file),
        })
    }

    /// The name of the sink that is meant, or of all.
    fn chosen(&self, wizard: &Wizard) -> Result<Vec<String>, Problems> {
        let plan = self.plan(wizard).map_err(|why| wrong(&[why]))?;
        let names = Plan::names(&plan.sinks);
        Ok(match self.sink {
            Some(index) => names.into_iter().skip(index).take(1).collect(),
            None => names,
        })
    }

    /// The configuration that these answers make, with its secrets.
    fn config(&self, wizard: &Wizard) -> Result<(Config, Vec<String>), Problems> {
        let plan = self.plan(wizard).map_err(|why| wrong(&[why]))?;
        let loaded = init::tried(&plan, &wizard.file).map_err(|error| problems(&error))?;
        Ok((loaded.config, loaded.warnings.iter().map(ToString::to_string).collect()))
    }
}

/// What is wrong with the answers.
#[derive(Default)]
struct Problems {
    lines: Vec<String>,
    /// A file that is to be written is already there.
    exists: bool,
}

impl IntoResponse for Problems {
    fn into_response(self) -> Response {
        let report = json!({ "problems": self.lines, "exists": self.exists });
        (StatusCode::UNPROCESSABLE_ENTITY, Json(report)).into_response()
    }
}

fn problems(error: &ConfigError) -> Problems {
    // Without the place: nobody has seen that file.
    let lines = error
        .problems
        .iter()
        .map(|problem| format!("{}: {}", problem.key.join("."), problem.message));
    Problems { lines: lines.collect(), ..Problems::default() }
}

fn wrong(problems: &[String]) -> Problems {
    Problems { lines: problems.to_vec(), ..Problems::default() }
}

/// Why nothing was written.
fn unsaved(error: &InitError) -> Problems {
    match error {
        InitError::Exists(path) => {
            let why = format!("{} is already there: tick the box to overwrite it", path.display());
            Problems { lines: vec![why], exists: true }
        }
        error => wrong(&[crate::base::fault::explain(error)]),
    }
}

fn parsed<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problems> {
    serde_json::from_slice(body).map_err(|error| wrong(&[error.to_string()]))
}

/// Tries the token: what it says of itself, and what Astro says of each topic.
async fn token(State(wizard): State<Shared>, body: Bytes) -> Result<Json<Value>, Problems> {
    let mut answers: Answers = parsed(&body)?;
    answers.sinks.clear();
    let (config, _) = answers.config(&wizard)?;
    let token = pasted::token(&answers.token);
    let token = token.as_str();
    let is_jwt = answers.token_type == TokenType::Jwt;
    if is_jwt && !jwt::is_one(token) {
        let why = "this is no JWT: it has three parts with dots between, and begins with eyJ";
        return Err(wrong(&[why.to_owned()]));
    }
    let facts = if is_jwt { TokenFacts::of_jwt(token) } else { TokenFacts::default() };
    let room = config.channels.values().next().and_then(|channel| channel.room.as_deref());
    let doubts = facts.doubts(room, answers.topics.iter().map(String::as_str));
    let expires = jwt::expiry(token).filter(|_| is_jwt);
    let now = clock::now() / 1000;
    let state =
        connect::subscribe(&config).await.map_err(|failed| wrong(&[failed.text().to_owned()]))?;
    let error = state.connections.values().find_map(|row| row.last_error.clone());
    let connected = state.open_connections() > 0;
    let subscriptions: Vec<Value> = state
        .assigned()
        .map(|(subscription, row)| {
            let why = match &row.state {
                SubscriptionState::Refused(refusal) => {
                    format!("{}: {}", refusal.code, refusal.text)
                }
                _ => String::new(),
            };
            json!({
                "topic": &*subscription.topic, "state": row.state.as_str(), "why": why,
                "room": row.room(subscription).map(|room| &**room),
            })
        })
        .collect();
    Ok(Json(json!({
        "channel": facts.channel, "provider": facts.provider, "scopes": facts.scopes,
        "doubts": doubts,
        "expires": expires.map(|at| clock::rfc3339(at.saturating_mul(1000))),
        "expires_in_days": expires.map(|at| at.saturating_sub(now) / (24 * 3600)),
        "expired": expires.is_some_and(|at| at <= now),
        "connected": connected,
        "error": error.filter(|_| !connected),
        "subscriptions": subscriptions,
    })))
}

/// Connects to a sink, and asks whether it may publish there.
async fn sink(State(wizard): State<Shared>, body: Bytes) -> Result<Json<Value>, Problems> {
    let answers: Answers = parsed(&body)?;
    let (config, mut lines) = answers.config(&wizard)?;
    let mut fit = true;
    for name in answers.chosen(&wizard)? {
        match connect::check_sink(&name, &config).await {
            Ok(checked) => {
                fit &= checked.fit;
                lines.extend(checked.lines);
            }
            Err(why) => {
                fit = false;
                lines.push(why);
            }
        }
    }
    Ok(Json(json!({ "works": fit, "lines": lines })))
}

/// Sends a test event.
async fn test(State(wizard): State<Shared>, body: Bytes) -> Result<Json<Value>, Problems> {
    let answers: Answers = parsed(&body)?;
    let (config, _) = answers.config(&wizard)?;
    let kind: TestKind =
        answers.kind.as_deref().unwrap_or("tip").parse().map_err(|why: String| wrong(&[why]))?;
    let events = test_event::events(&config, None, kind, None).map_err(|why| wrong(&[why]))?;
    let results = test_event::send(&config, &answers.chosen(&wizard)?, &events.events).await;
    Ok(Json(json!({ "note": events.note, "sinks": results })))
}

/// Writes the configuration, and ends.
async fn save(State(wizard): State<Shared>, body: Bytes) -> Result<Json<Value>, Problems> {
    let answers: Answers = parsed(&body)?;
    // All of it is tried once more as it is.
    answers.config(&wizard)?;
    let plan = answers.plan(&wizard).map_err(|why| wrong(&[why]))?;
    let (file, overwrite) = (wizard.file.clone(), answers.overwrite);
    let saving = tokio::task::spawn_blocking(move || init::save(&plan, &file, overwrite)).await;
    let written = match saving {
        Ok(Ok(written)) => written,
        Ok(Err(error)) => return Err(unsaved(&error)),
        Err(_) => return Err(wrong(&["it could not be written".to_owned()])),
    };
    let report = json!({
        "file": written.file.display().to_string(),
        "secrets": written.secrets.iter().map(|path| path.display().to_string()).collect::<Vec<_>>(),
    });
    *wizard.saved.lock().await = Some(written);
    // What is being answered is answered first.
    wizard.stop.cancel();
    Ok(Json(report))
}
