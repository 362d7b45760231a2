//! Whether we may publish at a topic, for `check --connect`.
//!
//! Only a message can ask that. It is empty, is not retained, and goes below the topic, to the level
//! [`PROBE_WORD`](address::PROBE_WORD) at which no event is ever published: a right is seldom given for less
//! than a whole branch.

use std::sync::Arc;

use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::time::timeout;

use super::{
    connection::{Connection, ConnectionOptions, Event, Publication, Tag, Unsent},
    lost::{Lost, Verdict, Why},
    settings::{Settings, Version},
};
use crate::sink::{Failure, Opening, Permission, address};

const TAG: Tag = 0;

pub(super) fn probe(
    opening: &Opening<'_>,
    topics: Vec<Arc<str>>,
) -> BoxFuture<'static, Result<Vec<Permission>, Failure>> {
    probe_exactly(opening, topics.into_iter().map(|topic| below(&topic).into()).collect())
}

/// Where it is asked whether we may publish at a topic.
pub(crate) fn below(topic: &str) -> String {
    format!("{topic}/{}", address::PROBE_WORD)
}

/// The same, asked at these very topics.
pub(crate) fn probe_exactly(
    opening: &Opening<'_>,
    questions: Vec<Arc<str>>,
) -> BoxFuture<'static, Result<Vec<Permission>, Failure>> {
    let settings = Settings::read(opening).map(|settings| {
        // A second client with the id of another connection would end that.
        let client_id = format!("{}-permission", settings.client_id(opening));
        (settings, client_id)
    });
    let limit = opening.config.timeout.0;
    async move {
        let (settings, client_id) = settings.map_err(Failure::down)?;
        if settings.version == Version::V3 {
            return Ok(vec![Permission::Unknown("MQTT 3.1.1 has no word for a refusal")]);
        }
        let options = ConnectionOptions {
            settings: &settings,
            client_id: &client_id,
            will: None,
            receives: false,
        };
        let (mut idle, mut permissions) = (None, Vec::new());
        for question in questions {
            let mut connection = match idle.take() {
                Some(connection) => connection,
                None => Connection::open(&options).await.map_err(Lost::failure)?,
            };
            if connection.qos(settings.qos) == 0 {
                permissions.push(Permission::Unknown("QoS 0 has no answer"));
                break;
            }
            let asked = timeout(limit, try_publish(&mut connection, &question)).await;
            let asked = asked.unwrap_or_else(|_| Err("the broker has not answered".into()));
            permissions.push(match asked {
                Ok(Verdict::Accepted) => {
                    idle = Some(connection);
                    Permission::Granted
                }
                Ok(Verdict::Refused(reason) | Verdict::Denied(reason)) => {
                    address::denied(&reason, &question)
                }
                Ok(Verdict::Busy(_) | Verdict::Pending) => {
                    Permission::Unknown("the broker says: not now")
                }
                // mosquitto 2.0.11 now and then ends the connection at a denied message. After a refusal
                // there is a new connection, so that it can be for no other.
                Err(lost) if lost.why == Why::Closed => {
                    address::denied(&lost.to_string(), &question)
                }
                Err(lost) => return Err(lost.failure()),
            });
        }
        Ok(permissions)
    }
    .boxed()
}

/// Publishes an empty message at `topic` and waits for the broker's answer.
async fn try_publish(connection: &mut Connection, topic: &str) -> Result<Verdict, Lost> {
    let publication = Publication { topic, qos: 1, ..Publication::default() };
    match connection.publish(publication, TAG) {
        Ok(()) => {}
        Err(Unsent::Refused(reason)) => return Ok(Verdict::Refused(reason)),
        Err(Unsent::Lost(lost)) => return Err(lost),
    }
    loop {
        if let Event::Answered(TAG, verdict) = connection.next().await? {
            return Ok(verdict);
        }
    }
}
