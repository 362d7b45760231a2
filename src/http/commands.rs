//! `/channels/<channel>/session/{set,reset,reload}` and `/channels/<channel>/refresh`: commands.
//!
//! The guard has seen the admin token already. What of it is allowed is `http.commands`: who may reload the
//! configuration need not be who may reset a session.
//!
//! The status of a command that the REST API refused is 502, whatever that answered; its own status is in
//! the answer. Otherwise its 401 would look like ours.

use axum::{
    body::Bytes,
    extract::{Path, State as Extract},
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};

use super::{State, refused};
use crate::{
    command::{ErrorKind, IncomingCommand, ReplyTo},
    config::{Action, Commands},
};

/// Under which name commands from here are logged and counted.
const ORIGIN: &str = "http";

pub(super) async fn command(
    Extract(state): Extract<State>,
    Path((channel, command)): Path<(String, String)>,
    body: Bytes,
) -> Response {
    let allowed = state.access.borrow().commands.clone();
    let path: Vec<&str> = match command.as_str() {
        "refresh" => vec!["relay", "refresh"],
        other => other.split('/').collect(),
    };
    execute(&state, &allowed, &channel, &path, &body).await
}

/// `/api/sessions/<channel>/refresh`: fetches the session again. It changes nothing anywhere, so the admin
/// token is enough.
pub(super) async fn refresh(
    Extract(state): Extract<State>,
    Path(channel): Path<String>,
    body: Bytes,
) -> Response {
    let allowed = Commands::Only(vec![Action::Refresh]);
    execute(&state, &allowed, &channel, &["relay", "refresh"], &body).await
}

async fn execute(
    state: &State,
    allowed: &Commands,
    channel: &str,
    path: &[&str],
    body: &[u8],
) -> Response {
    let (submitter, mut replies) = state.commands.submitter(ORIGIN, None, allowed);
    submitter.submit(IncomingCommand {
        channel,
        path,
        payload: body,
        retained: false,
        redelivered: false,
        late: false,
        reply_to: Some(ReplyTo::default()),
    });
    // With the submitter goes the last sender but the command's own: if that is lost, so is the answer.
    drop(submitter);
    let Some(reply) = replies.recv().await else {
        return refused(StatusCode::SERVICE_UNAVAILABLE, "the relay is stopping");
    };
    let answer = reply.answer;
    let status = match &answer.outcome {
        Ok(()) => StatusCode::OK,
        Err(failure) if failure.kind == ErrorKind::Failed && failure.status < 500 => {
            StatusCode::BAD_GATEWAY
        }
        Err(failure) => StatusCode::from_u16(failure.status).unwrap_or(StatusCode::BAD_GATEWAY),
    };
    (status, [(header::CONTENT_TYPE, "application/json")], answer.json()).into_response()
}
