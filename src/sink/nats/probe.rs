//! Whether the user may publish, asked with a message that is no event.
//!
//! NATS tells nobody what he may do: it has to be tried. An empty message goes to a subject one word below
//! the event's, which says that no stream may keep it.

use std::{sync::Arc, time::Duration};

use async_nats::HeaderMap;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::time::timeout;

use super::{
    connector::Connector,
    link::{Link, Mark, ServerNotice, Unsent},
    refusal::{self, Refusal},
    stream::{self, Known},
    subject,
};
use crate::sink::{Cause, Failure, Opening, Permission, Purpose, address};

/// A stream that there is not: a message that expects it is kept by none.
const NO_STREAM: &str = "astro-relay-check";

/// Asks for the right to publish at each address.
#[expect(clippy::needless_pass_by_value, reason = "the signature is that of the row")]
pub(super) fn probe(
    opening: Opening<'_>,
    addresses: Vec<Arc<str>>,
) -> BoxFuture<'static, Result<Vec<Permission>, Failure>> {
    let connector = Connector::new(&opening, "");
    let config = (opening.config.timeout.0, opening.config.backoff_max.0);
    Box::pin(async move {
        let mut connector = connector.map_err(Failure::down)?;
        let failed = |cause| Failure::after(0, cause);
        let mut link = connector.connect().await.map_err(failed)?;
        let mut known = Known::default();
        if connector.settings.jetstream {
            let wanted = super::wanted(&connector, Purpose::Probe, config.0 + config.1);
            known = stream::ensure(&mut link, &wanted).await.map_err(failed)?;
        }
        let mut permissions = Vec::new();
        for (number, address) in (1..).zip(&addresses) {
            let settings = &connector.settings;
            let why_not = subject::reserved(address, settings.inbox()).map(str::to_owned);
            let permission = match why_not {
                Some(reason) => Permission::Denied(reason),
                None if known.takes(address) == Some(false) => Permission::Denied(format!(
                    "the stream {} takes only {}: such events are set aside as dead letters",
                    settings.stream,
                    known.list()
                )),
                None => {
                    let asked = may_publish(&mut link, address, number, connector.timeout);
                    asked.await.map_err(failed)?
                }
            };
            permissions.push(permission);
        }
        Ok(permissions)
    })
}

/// Asks for the right to publish at `address`. `number` tells this question from others of the connection.
async fn may_publish(
    link: &mut Link,
    address: &str,
    number: u64,
    patience: Duration,
) -> Result<Permission, Cause> {
    let subject = format!("{address}.{}", address::CANARY);
    let mut headers = HeaderMap::new();
    headers.insert(async_nats::header::NATS_EXPECTED_STREAM, NO_STREAM);
    let request = Mark::Request(number);
    match link.publish((&*subject).into(), headers, Bytes::new(), Some(request)).await {
        Ok(()) => {}
        Err(Unsent::Invalid(reason)) => return Ok(Permission::Denied(reason)),
        Err(Unsent::Lost(reason)) => return Err(Cause::Down(reason.into())),
    }
    // A refusal has certainly come when a second ping is back, see `core`. Where no ping comes back, a
    // stream answers, or the server says that there is none.
    let marks = if link.has_loopback() {
        vec![Mark::Ping(2 * number + 1), Mark::Ping(2 * number + 2)]
    } else {
        vec![request]
    };
    for mark in marks {
        if let Mark::Ping(_) = mark
            && let Err(Unsent::Lost(reason) | Unsent::Invalid(reason)) = link.ping(mark).await
        {
            return Err(Cause::Down(reason.into()));
        }
        let answered = async {
            loop {
                match link.next().await {
                    Ok((found, _)) if found == mark => return Ok(None),
                    Ok(_) => {}
                    Err(ServerNotice::Lost(reason)) => return Err(Cause::Down(reason.into())),
                    Err(ServerNotice::Refused(text)) => {
                        if refusal::read(&text) == Refusal::Publish(subject.clone()) {
                            return Ok(Some(text));
                        }
                    }
                }
            }
        };
        let silent = |_| Cause::Down("the server has not answered in time".into());
        if let Some(reason) = timeout(patience, answered).await.map_err(silent)?? {
            return Ok(address::denied(&reason, &subject));
        }
    }
    Ok(Permission::Granted)
}
