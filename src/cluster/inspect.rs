//! What can be known of a cluster before a member starts: whether the servers have what it needs and give it
//! the rights, and whether it agrees with the members that run.

use std::time::Duration;

use async_nats::jetstream::kv::{Operation, Store};
use futures_util::StreamExt;
use tokio::time::timeout;

use super::{
    connection::{Connection, member_name},
    error::ClusterError,
    membership::CONFIGURED,
    report::{CLOCK_IS_OFF, Configured},
    view::{MEMBER, Member},
};
use crate::{base::clock, config};

/// How long the members may take to be heard of.
const HEAR: Duration = Duration::from_secs(3);

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) remarks: Vec<String>,
    pub(crate) problems: Vec<String>,
}

/// Looks at the servers and at the members that run; changes nothing but a key that it deletes again.
pub(crate) async fn inspect(
    settings: &config::Cluster,
    configured: &Configured,
) -> Result<Findings, ClusterError> {
    let member = member_name(settings);
    let connection = Connection::reach(settings, &format!("check {member}")).await?;
    let mut found = Findings { remarks: connection.inspect().await?, ..Findings::default() };
    let Some(leases) = connection.bucket("lease").await else { return Ok(found) };
    clock_and_rights(&leases, &member, &mut found).await;
    let cursors = connection.bucket("cursor").await;
    for (name, said) in members(&leases).await {
        if name == member {
            found.remarks.push(format!("a member {name:?} runs: this relay, it is to be hoped"));
            continue;
        }
        found.remarks.push(format!("member {name} runs"));
        if said.version != env!("CARGO_PKG_VERSION") {
            found.problems.push(format!("member {name} has version {}", said.version));
        }
        if said.config != configured.digest()
            && let Some(cursors) = &cursors
            && let Ok(Some(value)) = cursors.get(format!("{CONFIGURED}{name}")).await
        {
            let differences = configured.differences(&value).join(", ");
            found.problems.push(format!("member {name} has another configuration: {differences}"));
        }
    }
    Ok(found)
}

/// Writes a key and deletes it: the user may do that, and the server says what time it is.
async fn clock_and_rights(leases: &Store, member: &str, found: &mut Findings) {
    let key = format!("check.{member}");
    if let Err(error) = leases.put(&*key, "".into()).await {
        found.problems.push(format!(
            "the user cannot write to the bucket {:?}: see the permissions in docs/cluster.md ({error})",
            leases.name
        ));
        return;
    }
    if let Ok(Some(entry)) = leases.entry(&*key).await {
        let server = entry.created.unix_timestamp_nanos() / 1_000_000;
        let by = i128::from(clock::now()) - server;
        if by.unsigned_abs() > CLOCK_IS_OFF.as_millis() {
            let word = if by > 0 { "ahead of" } else { "behind" };
            found.problems.push(format!(
                "this machine's clock is {} s {word} that of the NATS servers",
                by.unsigned_abs() / 1000
            ));
        }
    }
    // The server forgets it by itself.
    drop(leases.delete(key).await);
}

/// The members that have a key.
async fn members(leases: &Store) -> Vec<(String, Member)> {
    let mut members = Vec::new();
    let Ok(mut watch) = leases.watch_with_history(format!("{MEMBER}*")).await else {
        return members;
    };
    while let Ok(Some(Ok(entry))) = timeout(HEAR, watch.next()).await {
        if entry.operation == Operation::Put
            && let Some(name) = entry.key.strip_prefix(MEMBER)
            && let Ok(member) = serde_json::from_slice(&entry.value)
        {
            members.push((name.to_owned(), member));
        }
        if entry.delta == 0 {
            break;
        }
    }
    members
}
