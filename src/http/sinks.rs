//! `/api/sinks/<name>/retry`: a waiting sink is retried now, whatever it waits for.

use axum::{
    Json,
    extract::{Path, State as Extract},
    http::StatusCode,
    response::{IntoResponse as _, Response},
};

use super::{State, refused};

pub(super) async fn retry(Extract(state): Extract<State>, Path(name): Path<String>) -> Response {
    if state.status.sinks.retry_sink(&name) {
        return Json(serde_json::json!({ "sink": name })).into_response();
    }
    refused(StatusCode::NOT_FOUND, "there is no sink of that name")
}
