//! Whether the user may publish, asked without publishing.
//!
//! In a transaction the server checks the user's rights when a command is queued, and what is queued is
//! then discarded. Unlike `ACL DRYRUN` that needs no administrator's rights.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use redis::{Cmd, Value};

use super::{
    answer::{self, About},
    link::Link,
    settings::{Mode, Settings},
};
use crate::sink::{Cause, Failure, Opening, Permission};

/// Asks for the right to publish at each address.
pub(super) fn probe(
    opening: &Opening<'_>,
    addresses: Vec<Arc<str>>,
) -> BoxFuture<'static, Result<Vec<Permission>, Failure>> {
    let settings = Settings::read(opening);
    let timeout = opening.config.timeout.0;
    Box::pin(async move {
        let settings = settings.map_err(Failure::down)?;
        let mut link = Link::open(&settings, timeout, &mut 0).await?;
        let mut permissions = Vec::new();
        for address in &addresses {
            let commands = commands(settings.mode, address);
            let permission = may_run(&mut link, &commands).await?;
            let is_unknown = matches!(permission, Permission::Unknown(_));
            permissions.push(permission);
            if is_unknown {
                break;
            }
        }
        Ok(permissions)
    })
}

/// What publishing at `address` takes.
fn commands(mode: Mode, address: &str) -> Vec<Cmd> {
    let command = |words: &[&str]| {
        let mut command = Cmd::new();
        for word in words {
            command.arg(*word);
        }
        command
    };
    match mode {
        Mode::Pubsub => vec![command(&["PUBLISH", address, ""])],
        Mode::Stream => vec![
            command(&["EVAL", "return 0", "1", address]),
            command(&["XADD", address, "*", "id", ""]),
            command(&["XRANGE", address, "-", "-"]),
        ],
    }
}

/// Asks whether the user may run these commands, and runs none.
async fn may_run(link: &mut Link, commands: &[Cmd]) -> Result<Permission, Cause> {
    if !matches!(link, Link::One(_)) {
        return Ok(Permission::Unknown("a cluster has no transaction across its servers"));
    }
    // Outside of one, the commands would run.
    match run(link, &redis::cmd("MULTI")).await? {
        Ok(_) => {}
        Err(_) => return Ok(Permission::Unknown("the user may not begin a transaction (MULTI)")),
    }
    let mut denied = None;
    for command in commands {
        if let Err(reason) = run(link, command).await? {
            denied.get_or_insert(reason);
        }
    }
    run(link, &redis::cmd("DISCARD")).await?.map_err(|reason| Cause::Down(reason.into()))?;
    Ok(denied.map_or(Permission::Granted, Permission::Denied))
}

/// Runs a command: its answer, or a refusal in the server's words.
async fn run(link: &mut Link, command: &Cmd) -> Result<Result<Value, String>, Cause> {
    let answer = link.connection().req_packed_command(command).await;
    match answer.and_then(Value::extract_error) {
        Ok(value) => Ok(Ok(value)),
        Err(error) => match error.code() {
            Some(code) => Ok(Err(format!("{code} {}", error.detail().unwrap_or_default()))),
            None => Err(answer::cause(&error, About::Server)),
        },
    }
}
