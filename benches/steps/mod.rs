//! What the steps of an event's way are fed with, for the benchmarks that look at each alone.
//!
//! The same number always makes the same event, to the byte. What depends on an
//! event's content (digests, compression) then costs the same in every run.

use std::sync::{Arc, LazyLock};

use astro_relay::{
    astro::wire::{self, ServerFrame},
    base::{
        clock::UnixMillis,
        event::{Event, Origin, Place, Record},
    },
    config::Config,
    delivery::route::Route,
    loading::Sources,
    sink,
};

/// Events in one batch: what a busy socket brings at once.
pub(super) const BATCH: u64 = 256;

pub(super) const CHANNEL: &str = "main";
pub(super) const TOPIC: &str = "channel.activities";
pub(super) const ROOM: &str = "5b2e2007760aeb7729487dab";

/// When everything was received: no step may cost more because a clock went on.
pub(super) const RECEIVED: UnixMillis = 1_795_320_780_120;

/// Of all events: the relay has one for each room and topic that it is subscribed to.
static PLACE: LazyLock<Arc<Place>> = LazyLock::new(|| Place::of(TOPIC, ROOM, CHANNEL));

/// A frame of some 600 bytes.
pub(super) fn frame(number: u64) -> String {
    let message = "all the lanterns of the harbour were lit that evening ".repeat(6);
    format!(
        r#"{{"id":"{number:026}","ts":"2026-11-22T04:13:00.120Z","type":"message","topic":"{TOPIC}","room":"{ROOM}","data":{{"n":{number},"type":"cheer","provider":"twitch","channel":"{ROOM}","data":{{"username":"load","amount":100,"message":"{message}"}}}}}}"#
    )
}

/// The event of that frame.
pub(super) fn happening(number: u64) -> Event {
    let text = frame(number);
    let Ok(ServerFrame::Message(envelope)) = wire::read(&text) else { panic!("{text}") };
    let may_have_personal_fields = envelope.may_have_personal_fields();
    Event {
        id: envelope.id.into(),
        distinct_key: None,
        place: Arc::clone(&PLACE),
        ts: envelope.ts.into(),
        received: RECEIVED,
        origin: Origin::Live,
        data: envelope.data,
        message: text.into(),
        may_have_personal_fields,
    }
}

pub(super) fn configured(text: &str) -> Config {
    let sources = Sources { text: Some(text.into()), ..Sources::default() };
    astro_relay::loading::load(&sources).unwrap_or_else(|error| panic!("{error}")).config
}

/// The route of a NATS sink that is configured with `more`.
pub(super) fn route(more: &str) -> Route {
    let text = format!(
        "[channels.main]\ntoken = \"t\"\ntopics = [\"channel.tips\"]\n\
         [sinks.out]\ntype = \"nats\"\nurl = \"nats://127.0.0.1\"\n{more}"
    );
    let config = configured(&text);
    Route::new("out", &config.sinks["out"], sink::kind("nats").unwrap()).unwrap()
}

pub(super) fn record(seq: u64, event: Event) -> Arc<Record> {
    Arc::new(Record::new(seq, event))
}
