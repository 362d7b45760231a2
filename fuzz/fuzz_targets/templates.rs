//! A template, a condition, a pattern and the data they meet, each behind a zero byte.
//!
//! Beyond not panicking: it ends soon, however the template loops, takes little memory (both are the
//! fuzzer's own limits), and what is said to be JSON is JSON.
#![no_main]

use std::sync::Arc;

use astro_relay::{
    base::{
        event::{self, Record},
        template::{Condition, Template, View},
    },
    delivery::route::Pattern,
};
use libfuzzer_sys::fuzz_target;
use serde_json::value::RawValue;

fuzz_target!(|input: &[u8]| {
    let Ok(input) = std::str::from_utf8(input) else { return };
    let mut parts = input.splitn(4, '\0');
    let mut next = || parts.next().unwrap_or_default();
    let (template, condition, pattern, data) = (next(), next(), next(), next());
    let Ok(data) = serde_json::from_str::<&RawValue>(data) else { return };
    let event = event::own_text("channel.tips", &"main".into(), &"room".into(), data.get(), 1);
    let view = View::of(Arc::new(Record::new(1, event)));
    if let Ok(template) = Template::compile(template) {
        template.uses_only(&["channel", "topic"]);
        drop(template.render(&view));
        if let Ok(payload) = template.payload(&view) {
            let json = serde_json::from_str::<&RawValue>(&payload.text);
            assert!(!payload.json || json.is_ok(), "{}", payload.text);
        }
        drop(template.address(&view, '/', |text| text.into()));
    }
    if let Ok(condition) = Condition::compile(condition) {
        drop(condition.holds(&view));
    }
    if let Ok(pattern) = Pattern::parse(pattern) {
        pattern.matches("channel.tips");
        pattern.matches(template);
    }
});
