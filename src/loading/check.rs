//! Contradictions: settings of the right shape that cannot work, alone or together.
//!
//! An error is what could never do what it says; a warning is what works, but hardly as meant. Nothing is
//! connected to. What a kind of sink knows of its settings it says itself: [`crate::sink::KINDS`].

mod files;
mod gateway;
mod refresh;
mod samples;
mod sinks;
mod together;

use serde_json::Value;

pub(crate) use self::files::{Tokens, configured_secrets};
use crate::{
    config::{Config, problem::Findings},
    loading::{Sources, places::Places, shape::Shape},
};

/// Looks for contradictions in what is well shaped; also answers what its secrets say.
pub(crate) fn check(
    config: &Config,
    shape: &Shape,
    places: &Places<'_>,
    sources: &Sources,
) -> (Findings, Tokens) {
    let mut found = Findings::default();
    gateway::check(config, &mut found);
    refresh::check(config, &mut found);
    sinks::check(config, shape, &mut found);
    samples::check(config, &mut found);
    together::check(config, shape.problems.is_empty(), &mut found);
    let tokens = files::check(config, places, sources, &mut found);
    (found, tokens)
}

/// The names in a table of the file, whether or not what stands under them is well shaped.
fn named<'v>(value: &'v Value, table: &str) -> impl Iterator<Item = &'v str> {
    value.get(table).and_then(Value::as_object).into_iter().flatten().map(|(key, _)| key.as_str())
}
