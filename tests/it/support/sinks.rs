//! Sinks as the relay would open them, and events for them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use astro_relay::{
    base::event::{Event, Origin, Place, Record, Seq},
    config::{ConfigError, Period, SinkConfig, Start},
    publish::{self, StatePublisher},
    sink::{self, Failure, Opening, Outgoing, Permission, Purpose},
};
use bytes::Bytes;
use serde_json::Value;

use super::driven::Driven;

/// When the first event of a test was heard; event `n` comes `n` milliseconds later.
pub const EPOCH: u64 = 1_700_000_000_000;

/// What all sinks share, with a timeout that does not keep a test waiting.
pub fn config(kind: &str, timeout: Duration) -> SinkConfig {
    SinkConfig {
        kind: kind.to_owned(),
        topics: None,
        channels: None,
        when: None,
        payload: "message".to_owned(),
        max_age: None,
        redact: None,
        start: Start::End,
        window: 512,
        timeout: Period(timeout),
        backoff_max: Period(Duration::from_secs(1)),
        state: false,
        settings: Value::Null,
        feeds: BTreeMap::new(),
    }
}

/// Opens a sink with these settings and a timeout of ten seconds.
pub fn open(kind: &str, settings: Value) -> Result<Driven, ConfigError> {
    open_with(kind, settings, Duration::from_secs(10))
}

/// Opens a sink with these settings and this timeout.
pub fn open_with(kind: &str, settings: Value, timeout: Duration) -> Result<Driven, ConfigError> {
    let config = SinkConfig { settings, ..config(kind, timeout) };
    let kind = sink::kind(kind).expect("a kind of that name");
    (kind.open)(&Opening { name: "test", config: &config, purpose: Purpose::Relay })
        .map(Driven::new)
}

/// Opens what publishes the state of a sink.
pub fn open_publisher(kind: &str, settings: Value) -> Result<Box<dyn StatePublisher>, ConfigError> {
    let config = SinkConfig { state: true, settings, ..config(kind, Duration::from_secs(10)) };
    let kind = publish::kind(kind).expect("a kind that publishes state");
    (kind.open)(&Opening { name: "test", config: &config, purpose: Purpose::Relay })
}

/// Opens a sink as `check --connect` does.
pub fn open_probe(kind: &str, settings: Value) -> Result<Driven, ConfigError> {
    let config = SinkConfig { state: true, settings, ..config(kind, Duration::from_secs(10)) };
    let kind = sink::kind(kind).expect("a kind of that name");
    (kind.open)(&Opening { name: "test", config: &config, purpose: Purpose::Probe })
        .map(Driven::new)
}

/// What a kind's probe finds out about these addresses.
pub async fn probe(
    kind: &str,
    settings: Value,
    addresses: &[&str],
) -> Result<Vec<Permission>, Failure> {
    let config = SinkConfig { settings, ..config(kind, Duration::from_secs(10)) };
    let probe = sink::kind(kind).and_then(|kind| kind.probe).expect("a kind with a probe");
    let opening = Opening { name: "test", config: &config, purpose: Purpose::Probe };
    probe(&opening, addresses.iter().map(|&address| address.into()).collect()).await
}

/// What the probe of a kind's state finds out.
pub async fn probe_state(kind: &str, settings: Value) -> Result<Vec<String>, Failure> {
    let config = SinkConfig { state: true, settings, ..config(kind, Duration::from_secs(10)) };
    let probe = publish::kind(kind).and_then(|kind| kind.probe).expect("a kind with a probe");
    probe(&Opening { name: "test", config: &config, purpose: Purpose::Probe }).await
}

/// The same events as the replay of this name hands them over.
pub fn replayed(events: Vec<Outgoing>, name: &str) -> Vec<Outgoing> {
    let again = |mut outgoing: Outgoing| {
        let mut record = Record::clone(&outgoing.record);
        record.event.origin = Origin::Replayed;
        record.replay = Some(name.into());
        outgoing.record = Arc::new(record);
        outgoing
    };
    events.into_iter().map(again).collect()
}

/// An event for `address` in `room`.
pub fn outgoing(seq: Seq, address: &str, room: &str) -> Outgoing {
    outgoing_with(seq, address, room, &format!(r#"{{"n":{seq}}}"#))
}

/// An event with this payload.
pub fn outgoing_with(seq: Seq, address: &str, room: &str, payload: &str) -> Outgoing {
    let event = Event {
        id: format!("01HQ{seq:022}").into(),
        distinct_key: None,
        place: Place::of("channel.tips", room, "main"),
        ts: "2024-02-15T14:52:42Z".into(),
        received: EPOCH + seq,
        origin: Origin::Live,
        message: Bytes::copy_from_slice(payload.as_bytes()),
        data: 0..0,
        may_have_personal_fields: true,
    };
    Outgoing {
        record: Arc::new(Record::new(seq, event)),
        address: address.into(),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        content_type: "application/json",
        expires_in: None,
        part: 0,
    }
}

/// Events of these numbers for one address and one room.
pub fn batch(seqs: impl IntoIterator<Item = Seq>, address: &str) -> Vec<Outgoing> {
    seqs.into_iter().map(|seq| outgoing(seq, address, "room")).collect()
}

/// The id that [`outgoing`] gives the event of this number.
pub fn id(seq: Seq) -> String {
    format!("01HQ{seq:022}")
}

/// The TLS provider that `main` installs.
pub fn install_tls() {
    // Another test of this process may have been first.
    drop(rustls::crypto::ring::default_provider().install_default());
}

/// The path of a certificate or key that lies beside the tests.
pub fn certificate(name: &str) -> String {
    format!("{}/tests/it/certs/{name}", env!("CARGO_MANIFEST_DIR"))
}
