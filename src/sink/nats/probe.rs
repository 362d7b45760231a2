//! Whether the user may publish, asked with a message that is no event.
//!
//! NATS tells nobody what he may do: it has to be tried. An empty message goes to a subject one word below
//! the event's, which says that no stream may keep it.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_nats::HeaderMap;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::time::timeout;

use super::{
    connector::Connector,
    link::{Link, Mark, ServerNotice, Unsent},
    refusal::{self, Refusal},
    stream::{self, KnownStream},
    subject,
};
use crate::sink::{Cause, Failure, Opening, Permission, Purpose, address};

/// A stream that there is not: a message that expects it is kept by none.
const NO_STREAM: &str = "astro-relay-check";

/// How long to wait for refusals when everything is answered.
const LATE: Duration = Duration::from_millis(300);

/// Asks for the right to publish at each address.
pub(super) fn probe(
    opening: &Opening<'_>,
    addresses: Vec<Arc<str>>,
) -> BoxFuture<'static, Result<Vec<Permission>, Failure>> {
    let connector = Connector::new(opening, "");
    let config = (opening.config.timeout.0, opening.config.backoff_max.0);
    Box::pin(async move {
        let mut connector = connector.map_err(Failure::down)?;
        let mut link = connector.connect().await?;
        let mut known = KnownStream::default();
        if connector.settings.jetstream {
            let wanted = super::wanted(&connector, Purpose::Probe, config.0 + config.1);
            known = stream::ensure(&mut link, &wanted).await?;
        }
        let mut asked = Vec::new();
        let mut refusals = Refusals::new();
        for (number, address) in (1..).zip(&addresses) {
            let settings = &connector.settings;
            let why_not = subject::reserved(address, settings.inbox()).map(str::to_owned);
            let denied = match why_not {
                Some(reason) => Some(reason),
                None if known.takes(address) == Some(false) => Some(format!(
                    "the stream {} takes only {}: such events are set aside as dead letters",
                    settings.stream,
                    known.list()
                )),
                None => {
                    let asked =
                        try_publish(&mut link, address, number, connector.timeout, &mut refusals);
                    asked.await?
                }
            };
            asked.push((address, denied));
        }
        late_refusals(&mut link, &mut refusals).await;
        let permission = |(address, denied): (&Arc<str>, Option<String>)| {
            let subject = probe_subject(address);
            match denied.map(Permission::Denied) {
                Some(denied) => denied,
                None => refusals
                    .get(&subject)
                    .map_or(Permission::Granted, |text| address::denied(text, &subject)),
            }
        };
        Ok(asked.into_iter().map(permission).collect())
    })
}

/// The subjects to which we may not publish, and the server's words.
type Refusals = HashMap<String, String>;

/// Where it is tried to publish to `address`.
fn probe_subject(address: &str) -> String {
    format!("{address}.{}", address::PROBE_WORD)
}

/// Publishes to `address`, and waits until the server has looked at it. What it refuses goes into `refusals`,
/// mostly: see [`late_refusals`]. Answers why it cannot be published to at all. `number` tells this question
/// from others of the connection.
async fn try_publish(
    link: &mut Link,
    address: &str,
    number: u64,
    patience: Duration,
    refusals: &mut Refusals,
) -> Result<Option<String>, Cause> {
    let subject = probe_subject(address);
    let mut headers = HeaderMap::new();
    headers.insert(async_nats::header::NATS_EXPECTED_STREAM, NO_STREAM);
    let request = Mark::Request(number);
    match link.publish((&*subject).into(), headers, Bytes::new(), Some(request)).await {
        Ok(()) => {}
        Err(Unsent::Invalid(reason)) => return Ok(Some(reason)),
        Err(Unsent::Lost(reason)) => return Err(Cause::Down(reason.into())),
    }
    // Where no ping comes back, a stream answers, or the server says that there is none.
    let mark = if link.has_loopback() { Mark::Ping(number) } else { request };
    if let Mark::Ping(_) = mark
        && let Err(Unsent::Lost(reason) | Unsent::Invalid(reason)) = link.ping(mark).await
    {
        return Err(Cause::Down(reason.into()));
    }
    let answered = async {
        while !refusals.contains_key(&subject) {
            match link.next().await {
                Ok((found, _)) if found == mark => break,
                Ok(_) => {}
                Err(ServerNotice::Lost(reason)) => return Err(Cause::Down(reason.into())),
                Err(ServerNotice::Refused(text)) => record(text, refusals),
            }
        }
        Ok(())
    };
    let silent = |_| Cause::Down("the server has not answered in time".into());
    timeout(patience, answered).await.map_err(silent)??;
    Ok(None)
}

fn record(text: String, refusals: &mut Refusals) {
    if let Refusal::Publish(subject) = refusal::read(&text) {
        refusals.insert(subject, text);
    }
}

/// Refusals come from a task of the client library that may be late on a busy machine.
async fn late_refusals(link: &mut Link, refusals: &mut Refusals) {
    let coming = async {
        loop {
            match link.next().await {
                Ok(_) => {}
                Err(ServerNotice::Refused(text)) => record(text, refusals),
                Err(ServerNotice::Lost(_)) => return,
            }
        }
    };
    // It ends when the time is over, or with the connection.
    drop(timeout(LATE, coming).await);
}
