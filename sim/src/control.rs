//! The control side, `/control/…`: publishing and faults from outside. Its calls are listed in
//! the README.
//!
//! Only this machine may call it, whatever address the simulator listens on, and no page in a browser.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{ConnectInfo, Query, Request, State},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};

use crate::{
    connection::ConnectionId,
    faults::{End, Malformed, Reception, Refusal, RestFault},
    load::Load,
    peer::Peer,
    world::World,
};

/// A fault for so many at most: a slip of the finger must not fill the memory.
const MAX_TIMES: u32 = 10_000;

pub(crate) fn routes(world: &Arc<World>) -> Router {
    let calls = Router::new()
        .route("/publish", post(publish))
        .route("/raw", post(raw))
        .route("/activity", post(activity))
        .route("/load", post(load))
        .route("/drain", post(drain))
        .route("/fault", post(fault))
        .route("/stats", get(stats))
        .route("/connections", get(connections))
        .layer(middleware::from_fn(local))
        .with_state(Arc::clone(world));
    Router::new().nest("/control", calls)
}

/// Lets only this machine pass. A page of some web site may send requests from it too, but a browser
/// says so.
async fn local(ConnectInfo(peer): ConnectInfo<Peer>, request: Request, next: Next) -> Response {
    let near = peer.address.is_some_and(|address| address.ip().to_canonical().is_loopback());
    if near && !request.headers().contains_key(header::ORIGIN) {
        next.run(request).await
    } else {
        refuse(StatusCode::FORBIDDEN, "only from this machine, and not from a browser")
    }
}

fn refuse(status: StatusCode, message: impl Into<String>) -> Response {
    (status, Json(json!({ "error": message.into() }))).into_response()
}

fn bad(message: impl Into<String>) -> Response {
    refuse(StatusCode::BAD_REQUEST, message)
}

#[derive(Deserialize)]
struct To {
    #[serde(default)]
    topic: String,
    #[serde(default)]
    room: String,
}

async fn publish(State(world): State<Arc<World>>, Query(to): Query<To>, data: String) -> Response {
    if to.topic.is_empty() {
        return bad("topic is missing");
    }
    match serde_json::from_str::<&RawValue>(&data) {
        Ok(data) => Json(json!({ "id": world.publish(&to.topic, &to.room, data) })).into_response(),
        Err(error) => bad(format!("the body must be JSON: {error}")),
    }
}

async fn raw(State(world): State<Arc<World>>, message: String) -> Response {
    match world.publish_raw(&message) {
        Ok(connections) => Json(json!({ "connections": connections })).into_response(),
        Err(error) => bad(format!("the body must be a message: {error}")),
    }
}

async fn activity(State(world): State<Arc<World>>, Query(to): Query<To>, body: String) -> Response {
    match serde_json::from_str::<Value>(&body) {
        Ok(activity) if activity.is_object() => {
            Json(json!({ "_id": world.activity(&to.room, activity) })).into_response()
        }
        _ => bad("the body must be an object with type, provider and data"),
    }
}

#[derive(Deserialize)]
struct LoadQuery {
    n: u64,
    rate: Option<u64>,
    topic: Option<String>,
    rooms: Option<String>,
    size: Option<usize>,
    first: Option<u64>,
}

/// Answers when the last message has been published; a caller that hangs up ends it.
async fn load(State(world): State<Arc<World>>, Query(query): Query<LoadQuery>) -> Response {
    let default = Load::default();
    let rooms = query.rooms.map(|rooms| rooms.split(',').map(str::to_owned).collect());
    let load = Load {
        messages: query.n,
        rate: query.rate,
        topic: query.topic.unwrap_or(default.topic),
        rooms: rooms.unwrap_or(default.rooms),
        size: query.size.unwrap_or(default.size),
        first: query.first.unwrap_or(default.first),
    };
    tokio::select! {
        loaded = world.load(&load) => Json(loaded).into_response(),
        () = world.stop.cancelled() => refuse(StatusCode::SERVICE_UNAVAILABLE, "stopping"),
    }
}

#[derive(Deserialize)]
struct Which {
    connection: Option<ConnectionId>,
}

async fn drain(State(world): State<Arc<World>>, Query(which): Query<Which>) -> Response {
    Json(json!({ "told": world.drain(which.connection) })).into_response()
}

async fn stats(State(world): State<Arc<World>>) -> Response {
    Json(world.stats()).into_response()
}

async fn connections(State(world): State<Arc<World>>) -> Response {
    Json(world.connections()).into_response()
}

/// A fault, as a query spells it.
#[derive(Debug, Default, Deserialize)]
struct FaultQuery {
    kind: String,
    connection: Option<ConnectionId>,
    times: Option<u32>,
    on: Option<bool>,
    ms: Option<u64>,
    code: Option<u16>,
    status: Option<u16>,
    retry_after: Option<String>,
    broken: Option<bool>,
    what: Option<String>,
    size: Option<usize>,
    error: Option<String>,
    message: Option<String>,
    topic: Option<String>,
    room: Option<String>,
    skip: Option<u32>,
    every: Option<u32>,
}

impl FaultQuery {
    fn on(&self) -> bool {
        self.on.unwrap_or(true)
    }

    fn span(&self) -> Duration {
        Duration::from_millis(self.ms.unwrap_or(0))
    }

    /// How often: once where nothing is said.
    fn times(&self) -> usize {
        self.times.unwrap_or(1).min(MAX_TIMES) as usize
    }

    fn end(&self) -> Option<End> {
        Some(match self.kind.as_str() {
            "fin" => End::Fin,
            "reset" => End::Reset,
            "close" => End::Close(self.code.unwrap_or(1001)),
            _ => return None,
        })
    }

    fn reception(&self) -> Option<Reception> {
        Some(match self.kind.as_str() {
            "accept" => Reception::Accept,
            "refuse" => Reception::Refuse {
                status: self.status.unwrap_or(502),
                retry_after: self.retry_after.clone(),
            },
            "accept_then_close" => {
                Reception::Close { after: self.span(), end: self.code.map_or(End::Fin, End::Close) }
            }
            "accept_silent" => Reception::Silent,
            "never_upgrades" | "deaf" => Reception::NeverUpgrades,
            _ => return None,
        })
    }

    fn malformed(&self) -> Option<Malformed> {
        Some(match self.what.as_deref()? {
            "invalid_json" => Malformed::InvalidJson,
            "invalid_utf8" => Malformed::InvalidUtf8,
            "binary" => Malformed::Binary,
            // More than the 16 MiB that a WebSocket library takes by default.
            "oversized" => Malformed::Oversized(self.size.unwrap_or(17 << 20).min(64 << 20)),
            "deep" => Malformed::Deep(self.size.unwrap_or(100_000).min(16 << 20)),
            "unknown_type" => Malformed::UnknownType,
            "no_object" => Malformed::NoObject,
            "no_topic" => Malformed::NoTopic,
            "reserved_opcode" => Malformed::ReservedOpcode,
            _ => return None,
        })
    }

    fn refusal(&self) -> Refusal {
        let refusal = Refusal::of(self.error.as_deref().unwrap_or("err_internal_error"));
        Refusal {
            topic: self.topic.clone(),
            room: self.room.clone(),
            message: self.message.clone().unwrap_or_else(|| refusal.message.clone()),
            skip: self.skip.unwrap_or(0),
            every: self.every.unwrap_or(1),
            times: self.times,
            ..refusal
        }
    }

    fn rest(&self) -> Option<RestFault> {
        Some(match self.kind.as_str() {
            "rest_status" => RestFault::Status {
                status: self.status.unwrap_or(503),
                retry_after: self.retry_after.clone(),
                broken_body: self.broken.unwrap_or(false),
            },
            "rest_delay" => RestFault::Delay(self.span()),
            "rest_hang" => RestFault::Hang,
            "rest_drop_after" => RestFault::DropAfter,
            _ => return None,
        })
    }
}

async fn fault(State(world): State<Arc<World>>, Query(query): Query<FaultQuery>) -> Response {
    if query.kind == "shut" {
        // The socket opens again also when the caller hangs up.
        let _open = OpenAgain(&world);
        world.listen(false);
        tokio::time::sleep(query.span()).await;
        return StatusCode::NO_CONTENT.into_response();
    }
    if apply(&world, &query) {
        StatusCode::NO_CONTENT.into_response()
    } else {
        bad(format!("there is no fault {:?} of this form", query.kind))
    }
}

/// Lets the fault happen; `false` where there is none of this name.
fn apply(world: &World, query: &FaultQuery) -> bool {
    if let Some(end) = query.end() {
        world.end(query.connection, end);
    } else if let Some(reception) = query.reception() {
        world.faults(|faults| {
            if query.times.is_none() {
                faults.every = reception;
            } else {
                faults.next.extend(std::iter::repeat_n(reception, query.times()));
                faults.next.truncate(MAX_TIMES as usize);
            }
        });
    } else if let Some(fault) = query.rest() {
        world.fail_rest(std::iter::repeat_n(fault, query.times()));
    } else {
        return apply_setting(world, query);
    }
    true
}

fn apply_setting(world: &World, query: &FaultQuery) -> bool {
    let (on, span) = (query.on(), query.span());
    match query.kind.as_str() {
        "silent" => world.silence(query.connection, on),
        "malformed" => match query.malformed() {
            Some(malformed) => world.send_malformed(query.connection, malformed),
            None => return false,
        },
        "error" => world.faults(|faults| {
            if faults.refusals.len() < MAX_TIMES as usize {
                faults.refusals.push(query.refusal());
            }
        }),
        "no_errors" => world.faults(|faults| faults.refusals.clear()),
        "refuse_reconnect" => world.faults(|faults| faults.refuse_reconnect = on),
        "duplicate" => world.faults(|faults| faults.duplicate = on),
        "upgrade_delay" => world.faults(|faults| faults.upgrade_delay = span),
        "welcome_delay" => world.faults(|faults| faults.welcome_delay = span),
        "response_delay" => world.faults(|faults| faults.response_delay = span),
        "answer_delay" => world.faults(|faults| faults.answer_delay = span),
        "trickle" => world.faults(|faults| {
            faults.trickle = Some(span).filter(|span| !span.is_zero());
        }),
        _ => return false,
    }
    true
}

/// Opens the listening socket again when it goes.
struct OpenAgain<'a>(&'a World);

impl Drop for OpenAgain<'_> {
    fn drop(&mut self) {
        self.0.listen(true);
    }
}
