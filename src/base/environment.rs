//! The environment of this process: the one place that reads it.

use std::collections::BTreeMap;

/// All variables. What is not text cannot be of ours and is left out.
#[expect(clippy::disallowed_methods, reason = "only this reads the environment")]
pub fn environment() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}
