use std::borrow::Cow;

use serde_json::json;

use super::*;
use crate::{
    base::event::Waited,
    sink::{Kind, Opening, Sink},
};

fn no_sink(_: &Opening<'_>) -> Result<Box<dyn Sink>, ConfigError> {
    Err(ConfigError::at(&[], "only a route is tested"))
}

const KIND: Kind = Kind {
    name: "test",
    summary: "",
    address: Some(Address {
        key: |_| "topic",
        separator: '/',
        default: |_| "astro/{{ channel }}/{{ topic | replace('.', '/') }}",
        escape: |text| Cow::Owned(text.replace('#', "%23")),
    }),
    usual_url: None,
    demo: None,
    session: true,
    secrets: &[],
    schema: || schemars::schema_for!(()),
    open: no_sink,
    validate: None,
    probe: None,
};

fn route(mut config: serde_json::Value) -> Route {
    config["type"] = "test".into();
    let topic = config["topic"].take();
    config.as_object_mut().unwrap().remove("topic");
    let mut config: SinkConfig = serde_json::from_value(config).unwrap();
    config.settings = if topic.is_null() { json!({}) } else { json!({ "topic": topic }) };
    Route::new("s", &config, &KIND).unwrap()
}

const TIP: &str = r#"{"donation":{"amount":5.50,"user":{"username":"Ann","email":"a@b.c","geo":"DE"}},"transactionId":"T1"}"#;

fn record(topic: &str, channel: &str, data: &str) -> Arc<Record> {
    let before = format!(r#"{{"id":"01H","type":"message","topic":"{topic}","data":"#);
    Arc::new(Record::new(
        1,
        Event {
            id: "01H".into(),
            distinct_key: None,
            place: Place::of(topic, "r1", channel),
            ts: "2024-02-15T14:52:42Z".into(),
            received: 1_708_008_762_000,
            origin: Origin::Live,
            data: before.len()..before.len() + data.len(),
            message: format!("{before}{data}}}").into(),
            may_have_personal_fields: true,
        },
    ))
}

fn wanted(route: &mut Route, record: &Arc<Record>) -> Outgoing {
    match route.render(record) {
        Rendered::Wanted(outgoing, _) => outgoing,
        other => panic!("{other:?}"),
    }
}

fn skipped(route: &mut Route, record: &Arc<Record>) -> Skip {
    match route.render(record) {
        Rendered::Skipped(skip) => skip,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_message_passes_untouched() {
    let record = record("channel.tips", "main", TIP);
    let outgoing = wanted(&mut route(json!({"redact": []})), &record);
    assert_eq!(outgoing.payload, record.event.message);
    assert_eq!(outgoing.payload.as_ptr(), record.event.message.as_ptr(), "not even copied");
    assert_eq!(&*outgoing.address, "astro/main/channel/tips");
    assert_eq!(outgoing.content_type, "application/json");
}

#[test]
fn personal_fields_are_taken_out_by_default() {
    let record = record("channel.tips", "main", TIP);
    let data = r#"{"donation":{"amount":5.50,"user":{"username":"Ann"}}}"#;
    assert_eq!(wanted(&mut route(json!({"payload": "data"})), &record).payload, data);
    let template =
        json!({"payload": "{{ data.donation.user.username }}:{{ data.donation.user.email }}"});
    assert_eq!(wanted(&mut route(template), &record).payload, "Ann:");
    // A condition may look at what does not leave.
    let mut conditional = route(json!({"when": "data.donation.user.email == 'a@b.c'"}));
    wanted(&mut conditional, &record);
}

#[test]
fn topics_and_channels_choose() {
    let mut default = route(json!({}));
    wanted(&mut default, &record("channel.tips", "main", "{}"));
    wanted(&mut default, &record("relay.gap", "main", "{}"));
    assert_eq!(skipped(&mut default, &record("relay.session", "main", "{}")), Skip::Place);
    let mut tips = route(json!({"topics": ["channel.tips.**"], "channels": ["main"]}));
    wanted(&mut tips, &record("channel.tips.moderation", "main", "{}"));
    assert_eq!(skipped(&mut tips, &record("channel.follow", "main", "{}")), Skip::Place);
    assert_eq!(skipped(&mut tips, &record("channel.tips", "other", "{}")), Skip::Place);
    let mut gaps = route(json!({"topics": ["relay.**"], "channels": ["main"]}));
    wanted(&mut gaps, &record("relay.gap", "", "{}"));
}

#[test]
fn a_condition_that_fails_is_no_match() {
    let mut big = route(json!({"when": "data.donation.amount >= 5"}));
    wanted(&mut big, &record("channel.tips", "main", TIP));
    assert_eq!(skipped(&mut big, &record("channel.follow", "main", "{}")), Skip::ConditionError);
    let mut bigger = route(json!({"when": "data.donation.amount >= 50"}));
    assert_eq!(skipped(&mut bigger, &record("channel.tips", "main", TIP)), Skip::Condition);
}

/// The record, if it was heard that long ago.
fn waited(record: &Record, age: Duration) -> Arc<Record> {
    Arc::new(Record { waited: Waited::already(age), ..record.clone() })
}

fn expires_within(outgoing: &Outgoing, seconds: u64) -> bool {
    let left = outgoing.expires_in.and_then(TimeLeft::left).expect("it expires");
    left <= Duration::from_secs(seconds) && left > Duration::from_secs(seconds - 1)
}

#[test]
fn what_is_too_old_is_skipped_and_the_rest_expires() {
    let record = waited(&record("channel.tips", "main", "{}"), Duration::from_secs(10));
    let outgoing = wanted(&mut route(json!({"max_age": "30s"})), &record);
    assert!(expires_within(&outgoing, 20), "{outgoing:?}");
    assert_eq!(skipped(&mut route(json!({"max_age": "9s"})), &record), Skip::Age);
    // What was fetched was a minute old already when it came.
    let mut fetched = Record::clone(&record);
    fetched.event.origin = Origin::Backfilled;
    fetched.event.received += 60_000;
    let fetched = Arc::new(fetched);
    assert_eq!(skipped(&mut route(json!({"max_age": "69s"})), &fetched), Skip::Age);
    let outgoing = wanted(&mut route(json!({"max_age": "90s"})), &fetched);
    assert!(expires_within(&outgoing, 20), "{outgoing:?}");
}

#[test]
fn what_somebody_asks_for_is_never_too_old_and_does_not_expire() {
    let mut route = route(json!({"max_age": "30s"}));
    for age in [10, 3600] {
        let record = waited(&record("channel.tips", "main", "{}"), Duration::from_secs(age));
        match route.render_of_any_age(&record) {
            Rendered::Wanted(outgoing, _) => assert_eq!(outgoing.expires_in, None),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_wall_clock_makes_nothing_old_and_nothing_young() {
    for wrong in [0, clock::now() - 30 * 86_400_000, clock::now() + 30 * 86_400_000, u64::MAX] {
        let mut record = Record::clone(&record("channel.tips", "main", "{}"));
        record.event.received = wrong;
        let mut young = route(json!({"max_age": "30s"}));
        wanted(&mut young, &waited(&record, Duration::ZERO));
        let old = waited(&record, Duration::from_secs(31));
        assert_eq!(skipped(&mut young, &old), Skip::Age, "received at {wrong}");
    }
}

#[test]
fn a_cloud_event_has_what_the_specification_asks() {
    let record = record("channel.tips", "main", r#"{"n":1.50}"#);
    let outgoing = wanted(&mut route(json!({"payload": "cloudevent"})), &record);
    assert_eq!(outgoing.content_type, "application/cloudevents+json");
    let text = std::str::from_utf8(&outgoing.payload).unwrap();
    assert!(text.ends_with(r#","data":{"n":1.50}}"#), "{text}");
    let event: serde_json::Value = serde_json::from_str(text).unwrap();
    for (name, value) in [
        ("specversion", "1.0"),
        ("id", "01H"),
        ("source", "//astro.streamelements.com/main"),
        ("type", "com.streamelements.channel.tips"),
        ("time", "2024-02-15T14:52:42Z"),
        ("subject", "r1"),
        ("datacontenttype", "application/json"),
    ] {
        assert_eq!(event[name], value, "{name}");
    }
}

#[test]
fn an_address_made_of_data_is_escaped_and_not_remembered() {
    let mut route = route(json!({"topic": "tips/{{ data.name }}"}));
    for (name, address) in [("a#b", "tips/a%23b"), ("c", "tips/c")] {
        let record = record("channel.tips", "main", &json!({ "name": name }).to_string());
        assert_eq!(&*wanted(&mut route, &record).address, address);
    }
}

#[test]
fn a_template_that_cannot_be_rendered_fails_that_event() {
    for template in
        ["{{ data.a.b.c | batch(0) }}", r#"{"a":{{ data.a | default("b", true) | safe }}c}"#]
    {
        let mut route = route(json!({ "payload": template }));
        let outcome = route.render(&record("channel.tips", "main", "{}"));
        assert!(matches!(outcome, Rendered::Failed(_)), "{outcome:?}");
    }
    // What an event does not have is no failure: a condition has the same rule.
    let mut route = route(json!({"payload": "{{ data.a.b.c }}."}));
    assert_eq!(wanted(&mut route, &record("channel.tips", "main", "{}")).payload, ".");
}
