//! The REST API, `/kappa/v2/…` (sessions, activities, tips, redemptions), the refresh of OAuth2 tokens,
//! `/oauth2/token`, what one is good for, `/oauth2/validate`, and their faults.
//!
//! Where the documentation shows no answer (updates, `top`), the answer here is a guess: a client
//! should look at nothing but the status there.

#![expect(clippy::indexing_slicing, reason = "reading a JSON value by name yields null, no panic")]

use std::{str::FromStr, sync::Arc};

use axum::{
    Json, Router,
    extract::{ConnectInfo, Path, Query, RawQuery, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::Instant;
use url::form_urlencoded;

use crate::clock::{self, UnixMillis};
use crate::{
    faults::RestFault,
    options::{ActivitiesQuery, ResetAnswer},
    peer::Peer,
    session::{LISTED, Session},
    sync::lock,
    world::World,
};

/// The largest page of activities, and the one that is given where none is asked for.
const MAX_LIMIT: usize = 100;
const DEFAULT_LIMIT: usize = 25;

pub(crate) fn routes(world: &Arc<World>) -> Router {
    let sessions = Router::new()
        .route("/sessions/{channel}", get(session).put(update))
        .route("/sessions/{channel}/reset", put(reset))
        .route("/sessions/{channel}/reload", put(reload))
        .route("/sessions/{channel}/settings", get(settings).put(set_settings))
        .route("/sessions/{channel}/top", get(top))
        .route("/activities/{channel}", get(activities))
        .route("/tips/{channel}", get(listed))
        .route("/tips/{channel}/moderation", get(moderated))
        .route("/store/{channel}/redemptions", get(listed))
        .layer(middleware::from_fn_with_state(Arc::clone(world), authorise))
        .layer(middleware::from_fn_with_state(Arc::clone(world), fail))
        .with_state(Arc::clone(world));
    let tokens = Router::new()
        .route("/oauth2/token", post(refresh))
        .route("/oauth2/validate", get(validate))
        .layer(middleware::from_fn_with_state(Arc::clone(world), fail))
        .with_state(Arc::clone(world));
    Router::new().nest("/kappa/v2", sessions).merge(tokens)
}

/// An error as the API writes it.
fn error(status: StatusCode, message: &str, broken: bool) -> Response {
    let body = json!({
        "statusCode": status.as_u16(),
        "error": status.canonical_reason().unwrap_or_default(),
        "message": message,
    })
    .to_string();
    let body = if broken { body.trim_start_matches('{').to_owned() } else { body };
    (status, [(header::CONTENT_TYPE, "application/json; charset=utf-8")], body).into_response()
}

/// Lets the next fault happen.
async fn fail(
    State(world): State<Arc<World>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    world.count(|stats| stats.rest_requests += 1);
    let fault = lock(&world.rest_faults).pop_front();
    match fault {
        None | Some(RestFault::Pass) => next.run(request).await,
        Some(RestFault::Status { status, retry_after, broken_body }) => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
            let mut response = error(status, "simulated", broken_body);
            if let Some(value) = retry_after.and_then(|text| HeaderValue::from_str(&text).ok()) {
                response.headers_mut().insert(header::RETRY_AFTER, value);
            }
            response
        }
        Some(RestFault::Body(body)) => body.into_response(),
        Some(RestFault::Delay(delay)) => {
            tokio::time::sleep(delay).await;
            next.run(request).await
        }
        Some(RestFault::Hang) => {
            world.stop.cancelled().await;
            StatusCode::SERVICE_UNAVAILABLE.into_response()
        }
        Some(RestFault::DropAfter) => {
            let response = next.run(request).await;
            peer.cut();
            response
        }
    }
}

/// Checks the token against the channel in the path, and its scheme against its kind.
async fn authorise(
    State(world): State<Arc<World>>,
    Path(channel): Path<Vec<(String, String)>>,
    request: Request,
    next: Next,
) -> Response {
    let channel = channel.first().map_or("", |(_, channel)| channel);
    let Some((scheme, given)) = authorization(request.headers()) else {
        // The one body that the documentation shows without its opening brace.
        return error(StatusCode::UNAUTHORIZED, "No authorization token was found", true);
    };
    let Ok(token) = world.token(given) else {
        return error(StatusCode::UNAUTHORIZED, "invalid token", false);
    };
    if let Some(token) = &token {
        let oauth = scheme.eq_ignore_ascii_case("OAuth");
        if token.token_type.is_some() && oauth != token.is_oauth() {
            return error(StatusCode::UNAUTHORIZED, "invalid authorization scheme", false);
        }
        if !token.may_access(channel) {
            return error(StatusCode::FORBIDDEN, "no permission for this channel", false);
        }
        let scope = scope(request.uri().path());
        if !token.has(scope) {
            return error(StatusCode::FORBIDDEN, &format!("missing scope {scope}"), false);
        }
    }
    if channel.len() != 24 || !channel.bytes().all(|b| b.is_ascii_hexdigit()) {
        return error(StatusCode::BAD_REQUEST, "channel must be 24 hex digits", false);
    }
    next.run(request).await
}

/// The scope that a path needs. No scope for changing a session is documented: who may read it may.
fn scope(path: &str) -> &'static str {
    let path = path.trim_start_matches("/kappa/v2");
    match path.split('/').nth(1).unwrap_or_default() {
        "activities" => "activities:read",
        "tips" if path.ends_with("/moderation") => "tips:moderation",
        "tips" => "tips:read",
        "store" => "store:read",
        _ => "session:read",
    }
}

/// The scheme and the token of a request: `Bearer` or `OAuth`.
fn authorization(headers: &HeaderMap) -> Option<(&str, &str)> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let known = ["Bearer", "OAuth"].iter().any(|known| scheme.eq_ignore_ascii_case(known));
    Some((scheme, token.trim())).filter(|(_, token)| known && !token.is_empty())
}

#[derive(Deserialize)]
struct RefreshRequest {
    #[serde(default)]
    grant_type: String,
    #[serde(default)]
    client_id: String,
    #[serde(default)]
    client_secret: String,
    #[serde(default)]
    refresh_token: String,
}

/// The form of RFC 6749, section 6.
async fn refresh(State(world): State<Arc<World>>, body: String) -> Response {
    let fields: Map<String, Value> = form_urlencoded::parse(body.as_bytes())
        .map(|(key, value)| (key.into_owned(), Value::from(value)))
        .collect();
    let refused = |status, code: &str| (status, Json(json!({ "error": code }))).into_response();
    let Ok(request) = serde_json::from_value::<RefreshRequest>(Value::Object(fields)) else {
        return refused(StatusCode::BAD_REQUEST, "invalid_request");
    };
    if request.grant_type != "refresh_token" {
        return refused(StatusCode::BAD_REQUEST, "unsupported_grant_type");
    }
    match world.refresh(&request.client_id, &request.client_secret, &request.refresh_token) {
        Ok(refreshed) => Json(refreshed).into_response(),
        Err(code @ "invalid_client") => refused(StatusCode::UNAUTHORIZED, code),
        Err(code) => refused(StatusCode::BAD_REQUEST, code),
    }
}

/// What a token is good for. No document has this call; public clients make it.
async fn validate(State(world): State<Arc<World>>, headers: HeaderMap) -> Response {
    let given = authorization(&headers).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("OAuth"));
    match given.map(|(_, token)| world.token(token)) {
        Some(Ok(Some(token))) if token.is_oauth() => {
            let left =
                token.expires.map(|at| at.saturating_duration_since(Instant::now()).as_secs());
            document(&json!({
                "channel_id": token.rooms.first(), "expires_in": left, "scopes": token.scopes,
            }))
        }
        _ => error(StatusCode::UNAUTHORIZED, "invalid token", false),
    }
}

/// Works the sums of a session out again; here they are always right.
async fn reload(State(world): State<Arc<World>>, Path(channel): Path<String>) -> Response {
    if world.options.reload {
        document(&world.session(&channel))
    } else {
        error(StatusCode::NOT_FOUND, "Not Found", false)
    }
}

/// JSON with the content type that the API sends.
fn document(value: &Value) -> Response {
    let body = value.to_string();
    ([(header::CONTENT_TYPE, "application/json; charset=utf-8")], body).into_response()
}

/// Tips that wait for a moderator, and those that one has looked at.
async fn moderated(State(world): State<Arc<World>>, Path(channel): Path<String>) -> Response {
    let mut recent: Vec<Value> = Vec::new();
    with_session(&world, &channel, |session| {
        let which = LISTED.iter().position(|(topic, _)| *topic == "channel.tips.moderation");
        let items = which.and_then(|which| session.lists.get(which)).into_iter().flatten();
        // A tip stands here as it was told last.
        for item in items {
            if item["_id"].is_null() || recent.iter().all(|known| known["_id"] != item["_id"]) {
                recent.push(item.clone());
            }
        }
    });
    let (pending, recent): (Vec<Value>, Vec<Value>) =
        recent.into_iter().partition(|tip| tip["approved"] == "pending");
    document(&json!({ "recent": recent, "pending": pending }))
}

/// Tips or redemptions, a page of them.
async fn listed(
    State(world): State<Arc<World>>,
    Path(channel): Path<String>,
    uri: Uri,
    RawQuery(query): RawQuery,
) -> Response {
    let wanted = match Wanted::parse(&query.unwrap_or_default()) {
        Ok(wanted) => wanted,
        Err(message) => return error(StatusCode::BAD_REQUEST, &message, false),
    };
    let path = uri.path();
    let which = LISTED.iter().position(|(_, last)| path.ends_with(last));
    let which = which.unwrap_or_default();
    // Redemptions are not listed by time, only by whether they are done.
    let tips = !path.ends_with("redemptions");
    let fits = |item: &Value| {
        if tips { wanted.fits(item) } else { !wanted.pending || item["completed"] != true }
    };
    let mut items: Vec<Value> = with_session(&world, &channel, |session| {
        let items = session.lists.get(which).into_iter().flatten();
        items.filter(|item| fits(item)).cloned().collect()
    });
    if tips {
        wanted.sort(&mut items);
    }
    let total = items.len();
    let limit = wanted.limit.unwrap_or(DEFAULT_LIMIT);
    let docs: Vec<Value> = items.into_iter().skip(wanted.offset).take(limit).collect();
    document(&json!({ "docs": docs, "total": total, "limit": limit, "offset": wanted.offset }))
}

async fn session(State(world): State<Arc<World>>, Path(channel): Path<String>) -> Response {
    document(&world.session(&channel))
}

async fn update(
    State(world): State<Arc<World>>,
    Path(channel): Path<String>,
    body: String,
) -> Response {
    let Ok(elements) = serde_json::from_str::<Map<String, Value>>(&body) else {
        return error(StatusCode::BAD_REQUEST, "the body must be an object", false);
    };
    world.update_session(&channel, elements);
    document(&world.session(&channel))
}

async fn reset(State(world): State<Arc<World>>, Path(channel): Path<String>) -> Response {
    world.reset_session(&channel);
    match world.options.reset_answer {
        ResetAnswer::Session => document(&world.session(&channel)),
        ResetAnswer::Ok => "ok".into_response(),
    }
}

async fn settings(State(world): State<Arc<World>>, Path(channel): Path<String>) -> Response {
    document(&with_session(&world, &channel, |session| session.settings.clone()))
}

async fn set_settings(
    State(world): State<Arc<World>>,
    Path(channel): Path<String>,
    body: String,
) -> Response {
    let Ok(changes) = serde_json::from_str::<Map<String, Value>>(&body) else {
        return error(StatusCode::BAD_REQUEST, "the body must be an object", false);
    };
    let settings = with_session(&world, &channel, |session| {
        if let Value::Object(settings) = &mut session.settings {
            settings.extend(changes);
        }
        session.settings.clone()
    });
    document(&settings)
}

fn with_session<T: Default>(
    world: &World,
    channel: &str,
    look: impl FnOnce(&mut Session) -> T,
) -> T {
    lock(&world.sessions).of(channel).map(look).unwrap_or_default()
}

#[derive(Deserialize)]
struct TopQuery {
    limit: Option<usize>,
    offset: Option<usize>,
    #[serde(rename = "type")]
    kind: Option<String>,
}

/// Who gave most. The interval is accepted and makes no difference: nothing here is that old.
async fn top(
    State(world): State<Arc<World>>,
    Path(channel): Path<String>,
    Query(query): Query<TopQuery>,
) -> Response {
    let kind = query.kind.as_deref().unwrap_or("tip");
    let mut totals: Vec<(String, f64)> = Vec::new();
    with_session(&world, &channel, |session| {
        for activity in session.activities.iter().filter(|activity| activity["type"] == kind) {
            let name = activity["data"]["username"].as_str().unwrap_or_default();
            let amount = activity["data"]["amount"].as_f64().unwrap_or_default();
            match totals.iter_mut().find(|(known, _)| known == name) {
                Some((_, total)) => *total += amount,
                None => totals.push((name.to_owned(), amount)),
            }
        }
    });
    totals.sort_by(|a, b| b.1.total_cmp(&a.1));
    let page = totals.iter().skip(query.offset.unwrap_or(0));
    let page = page.take(query.limit.unwrap_or(DEFAULT_LIMIT).min(MAX_LIMIT));
    let rows: Vec<_> = page.map(|(name, n)| json!({ "username": name, "amount": n })).collect();
    document(&json!({ "total": totals.len(), "users": rows }))
}

/// The query of a list.
#[derive(Debug, Default)]
struct Wanted {
    after: Option<UnixMillis>,
    before: Option<UnixMillis>,
    limit: Option<usize>,
    least: Vec<(&'static str, f64)>,
    types: Vec<String>,
    offset: usize,
    sort: Option<Sort>,
    pending: bool,
    /// Which parameters were sent.
    sent: Vec<String>,
}

/// By what tips are sorted, and whether the greatest come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sort {
    by: &'static str,
    descending: bool,
}

impl Sort {
    fn parse(text: &str) -> Option<Self> {
        let (descending, name) = match text.strip_prefix('-') {
            Some(name) => (true, name),
            None => (false, text),
        };
        let known = [
            ("createdAt", "/createdAt"),
            ("donation.amount", "/donation/amount"),
            ("donation.provider", "/provider"),
        ];
        let (_, by) = known.into_iter().find(|(known, _)| *known == name)?;
        Some(Self { by, descending })
    }
}

/// The parameters that the vendor's `OpenAPI` marks as required for activities.
const REQUIRED: [&str; 9] =
    ["after", "before", "limit", "mincheer", "minhost", "minsub", "mintip", "origin", "types"];

/// Types that the vendor has announced, and published no word for.
const UNPUBLISHED: [&str; 2] = ["kicks", "jewels"];

impl Wanted {
    /// Reads the query; an unknown parameter is ignored, a bad value is an error that names it.
    fn parse(query: &str) -> Result<Self, String> {
        let mut wanted = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let bad = || format!("{name} is invalid");
            wanted.sent.push(name.trim_end_matches("[]").to_owned());
            match &*name {
                "after" => wanted.after = Some(time(&value).ok_or_else(bad)?),
                "before" => wanted.before = Some(time(&value).ok_or_else(bad)?),
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
                    wanted.limit = Some(limit.ok_or_else(bad)?);
                }
                "offset" => wanted.offset = parsed(&value).ok_or_else(bad)?,
                "sort" => wanted.sort = Some(Sort::parse(&value).ok_or_else(bad)?),
                "pending" => wanted.pending = &*value == "true",
                "mincheer" => wanted.least.push(("cheer", parsed(&value).ok_or_else(bad)?)),
                "minhost" => wanted.least.push(("host", parsed(&value).ok_or_else(bad)?)),
                "minsub" => wanted.least.push(("subscriber", parsed(&value).ok_or_else(bad)?)),
                "mintip" => wanted.least.push(("tip", parsed(&value).ok_or_else(bad)?)),
                "types" | "types[]" => wanted.types.extend(value.split(',').map(str::to_owned)),
                // Among them `origin`: no document says what it is, and those who use it send what they like.
                _ => {}
            }
        }
        Ok(wanted)
    }

    /// What is required and was not sent.
    fn missing(&self) -> Option<&'static str> {
        REQUIRED.into_iter().find(|required| !self.sent.iter().any(|sent| sent == required))
    }

    /// Sorts tips, which are newest first.
    fn sort(&self, items: &mut [Value]) {
        let Some(Sort { by, descending }) = self.sort else { return };
        // Of what is equal the oldest comes first, and last where the greatest come first.
        items.reverse();
        items.sort_by(|one, other| {
            let (one, other) = (one.pointer(by), other.pointer(by));
            let number = |value: Option<&Value>| value.and_then(Value::as_f64);
            match (number(one), number(other)) {
                (Some(one), Some(other)) => one.total_cmp(&other),
                _ => one.and_then(Value::as_str).cmp(&other.and_then(Value::as_str)),
            }
        });
        if descending {
            items.reverse();
        }
    }

    fn fits(&self, activity: &Value) -> bool {
        let kind = activity["type"].as_str().unwrap_or_default();
        let at = activity["createdAt"].as_str().and_then(clock::parse_rfc3339).unwrap_or_default();
        let amount = activity["data"]["amount"].as_f64().unwrap_or_default();
        // The documentation does not say whether the bounds belong to the span: here they do.
        self.after.is_none_or(|after| at >= after)
            && self.before.is_none_or(|before| at <= before)
            && self.least.iter().all(|&(of, least)| of != kind || amount >= least)
            && (self.types.is_empty() || self.types.iter().any(|wanted| wanted == kind))
    }
}

fn parsed<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

/// Milliseconds, or RFC 3339.
fn time(text: &str) -> Option<UnixMillis> {
    text.parse().ok().or_else(|| clock::parse_rfc3339(text))
}

async fn activities(
    State(world): State<Arc<World>>,
    Path(channel): Path<String>,
    RawQuery(query): RawQuery,
) -> Response {
    let wanted = match Wanted::parse(&query.unwrap_or_default()) {
        Ok(wanted) => wanted,
        Err(message) => return error(StatusCode::BAD_REQUEST, &message, false),
    };
    let missing =
        wanted.missing().filter(|_| world.options.activities == ActivitiesQuery::Complete);
    if let Some(missing) = missing {
        return error(StatusCode::BAD_REQUEST, &format!("{missing} is required"), false);
    }
    let (lists_types, knows_all) = match world.options.activities {
        ActivitiesQuery::AsSent | ActivitiesQuery::Complete => (false, true),
        ActivitiesQuery::ListedTypes => (true, true),
        ActivitiesQuery::PublishedTypes => (true, false),
    };
    if !knows_all && wanted.types.iter().any(|kind| UNPUBLISHED.contains(&kind.as_str())) {
        return error(StatusCode::BAD_REQUEST, "types is invalid", false);
    }
    if lists_types && wanted.types.is_empty() {
        return document(&json!([]));
    }
    let page: Vec<Value> = with_session(&world, &channel, |session| {
        let fitting = session.activities.iter().filter(|activity| wanted.fits(activity));
        fitting.take(wanted.limit.unwrap_or(DEFAULT_LIMIT)).cloned().collect()
    });
    document(&Value::Array(page))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_history_is_asked_for_by_time_kind_and_amount() {
        let tip = json!({ "type": "tip", "provider": "twitch",
            "createdAt": "2024-02-15T14:52:42.000Z", "data": { "amount": 5 } });
        for (query, expected) in [
            ("", true),
            ("after=1708008762000&before=2024-02-15T14:52:42Z", true),
            ("after=1708008762001", false),
            ("before=1708008761999", false),
            ("mintip=5&mincheer=100", true),
            ("mintip=5.5", false),
            ("types=follow,tip", true),
            ("types=follow&types=cheer", false),
            ("origin=anything", true),
        ] {
            assert_eq!(Wanted::parse(query).unwrap().fits(&tip), expected, "{query}");
        }
        for query in ["limit=0", "limit=101", "after=yesterday", "mintip=x"] {
            assert!(Wanted::parse(query).is_err(), "{query}");
        }
    }
}
