use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::{
    base::event::{Record, own},
    config::SinkConfig,
};

const REFUSED: &str = r#"Permissions Violation for Publish to "astro.main.refused""#;

/// A sink with a stream that has sent these events of the given numbers and subjects.
fn sent(events: &[(Seq, &str)]) -> Nats {
    let mut config: SinkConfig = serde_json::from_value(json!({ "type": "nats" })).unwrap();
    config.settings = json!({ "url": "nats://127.0.0.1:4222", "jetstream": true });
    let opening = Opening { name: "out", config: &config, purpose: Purpose::Relay };
    let mut nats = Nats::new(&opening).unwrap();
    for (seq, subject) in events {
        let event = own("relay.test", &"".into(), &"".into(), &json!({}), 1);
        let payload = event.message.clone();
        nats.flight.push(Outgoing {
            record: Arc::new(Record::new(*seq, event)),
            part: 0,
            address: (*subject).into(),
            payload,
            content_type: "application/json",
            expires_in: None,
        });
        nats.flight.published(true);
    }
    nats
}

fn head(nats: &Nats) -> Outcome {
    nats.flight.head().unwrap().1.clone()
}

/// Another client wrote to the stream, so that all go out again, the first of them alone.
#[tokio::test]
async fn a_late_refusal_does_not_reject_the_one_event_on_its_way() {
    let mut nats = sent(&[(1, "astro.main.taken"), (2, "astro.main.refused")]);
    nats.flight.restart();
    nats.flight.published(true);
    nats.on_refusal(REFUSED);
    assert_eq!(head(&nats), Outcome::Pending);
    assert!(nats.permissions.is_refused("astro.main.refused"), "it is not sent again");
    assert!(nats.progress.lost.is_none());
}

#[tokio::test]
async fn a_refusal_of_a_subject_that_is_not_here_rejects_an_event_only_where_they_go_one_by_one() {
    let mut nats = sent(&[(1, "astro.main.taken")]);
    nats.on_refusal(REFUSED);
    assert_eq!(head(&nats), Outcome::Pending);
    assert!(nats.progress.lost.take().is_some() && nats.progress.one_by_one == 1);
    nats.on_refusal(REFUSED);
    assert!(matches!(head(&nats), Outcome::Failed(Fault::Rejected(_))));
}

/// There is no connection here, so that it ends without an answer.
#[tokio::test]
async fn a_look_at_the_stream_that_is_given_up_sends_nothing_again() {
    let mut nats = sent(&[(1, "astro.main.taken"), (2, "astro.main.taken")]);
    nats.flight.resolve(0, Outcome::NoStream);
    assert!(nats.head_fault().await.is_err());
    assert_eq!((head(&nats), nats.flight.waiting()), (Outcome::NoStream, 1));
    let more = nats.flight.head().unwrap().0.clone();
    assert_eq!(nats.send(&[more]).await.unwrap(), 0);
}
