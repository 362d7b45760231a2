//! What the gateway says, line by line: the session's decisions, the state that follows from it, and
//! what every kind of payload makes of it.
//!
//! Beyond not panicking: a message is handed on byte for byte, its `data` is JSON, nothing is said to
//! the gateway but JSON objects, what goes out is JSON again, and no personal field is missed by who read it first.
#![no_main]

use std::sync::{Arc, LazyLock};

use astro_relay::{
    astro::session::{Effects, Session, Subscription, Wanted},
    base::event::{Event, Record},
    channel::state,
    config::{Secret, SinkConfig, TokenType},
    delivery::route::{Rendered, Route},
    sink,
};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, value::RawValue};
use tokio::time::{Duration, Instant};

const ROOM: &str = "5b2e2007760aeb7729487dab";

/// Their configurations, once: to make them takes longer than a run.
static SINKS: LazyLock<Vec<SinkConfig>> = LazyLock::new(|| {
    ["message", "data", "cloudevent", "{{ data | tojson }}"]
        .map(|payload| {
            let mut config: SinkConfig =
                serde_json::from_value(serde_json::json!({ "type": "mqtt" })).unwrap();
            config.payload = payload.to_owned();
            config
        })
        .into()
});

fn session(now: Instant) -> Session {
    let topics = ["channel.activities", "channel.tips", "channel.session.update"];
    let wanted = topics.map(|topic| Wanted {
        subscription: Arc::new(Subscription {
            channel: "main".into(),
            topic: topic.into(),
            room: Some(ROOM.into()),
            token_type: TokenType::Jwt,
            token_room: None,
        }),
        token: Ok(Secret::new("token")),
    });
    Session::new(1, wanted.into(), Arc::default(), now)
}

fuzz_target!(|input: &[u8]| {
    let mut now = Instant::now();
    let mut session = session(now);
    let mut state = state::Session::default();
    let mut routes: Vec<_> = SINKS
        .iter()
        .map(|config| Route::new("fuzz", config, sink::kind("mqtt").unwrap()).unwrap())
        .collect();
    session.opened(now);
    let mut seq = 0;
    for line in input.split(|byte| *byte == b'\n').take(64) {
        now += Duration::from_secs(1);
        // What is not text the transport does not hand on.
        let Ok(frame) = std::str::from_utf8(line) else { continue };
        let mut effects = Effects::default();
        session.on_text(frame.into(), seq, now, &mut effects);
        session.tick(now, &mut effects);
        for command in &effects.send {
            assert!(serde_json::from_str::<Value>(command).unwrap().is_object(), "{command}");
        }
        for event in effects.events {
            seq += 1;
            // A frame may hold several.
            let message = std::str::from_utf8(&event.message).unwrap();
            assert!(frame.contains(message), "byte for byte: {message}");
            serde_json::from_slice::<&RawValue>(event.data()).expect("data is JSON");
            state.fold(&event, seq);
            let careful = Event { may_have_personal_fields: true, ..event.clone() };
            let [record, careful] = [event, careful].map(|event| Arc::new(Record::new(seq, event)));
            for route in &mut routes {
                let careful = route.render(&careful);
                if let Rendered::Wanted(outgoing, _) = route.render(&record) {
                    serde_json::from_slice::<&RawValue>(&outgoing.payload).expect("JSON goes out");
                    let Rendered::Wanted(careful, _) = careful else { panic!("it goes out") };
                    assert_eq!(outgoing.payload, careful.payload, "no personal field is missed");
                }
            }
        }
        if effects.ended.is_some() {
            session = Session::restored(seq, &session, now);
        }
    }
    // What it has counted and what stands can always be told.
    session.take_counts();
    assert_eq!(session.subscriptions().count(), 3);
    assert!(session.due(now) <= now + Duration::from_secs(3600));
});
