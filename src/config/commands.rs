//! Which commands are allowed, over a sink's destination or over HTTP.
//!
//! The words are those of the configuration and of the addresses. Nothing is allowed that is not
//! configured: [`Commands::default`] allows none.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Action {
    /// Sets an element of the session to another value.
    #[serde(rename = "session/set")]
    Set,
    /// Resets the session: what it has counted is deleted.
    #[serde(rename = "session/reset")]
    Reset,
    /// Lets the server recalculate the session's sums.
    #[serde(rename = "session/reload")]
    Reload,
    /// Lets the relay fetch the session again.
    #[serde(rename = "relay/refresh")]
    Refresh,
    /// Sends a test event through the sinks.
    #[serde(rename = "relay/test")]
    Test,
}

impl Action {
    /// The word in the configuration, in an answer and in a metric.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Set => "session/set",
            Self::Reset => "session/reset",
            Self::Reload => "session/reload",
            Self::Refresh => "relay/refresh",
            Self::Test => "relay/test",
        }
    }
}

/// Which are allowed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Commands {
    /// All or none.
    All(bool),
    /// These.
    Only(Vec<Action>),
}

impl Default for Commands {
    fn default() -> Self {
        Self::All(false)
    }
}

impl Commands {
    /// Whether this one is allowed.
    pub fn allow(&self, action: Action) -> bool {
        match self {
            Self::All(all) => *all,
            Self::Only(actions) => actions.contains(&action),
        }
    }

    /// Whether none is allowed.
    pub fn are_off(&self) -> bool {
        match self {
            Self::All(all) => !all,
            Self::Only(actions) => actions.is_empty(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_named_is_not_allowed() {
        let read = |text: &str| serde_json::from_str::<Commands>(text).unwrap();
        for (text, set, reset, off) in [
            ("false", false, false, true),
            ("true", true, true, false),
            ("[]", false, false, true),
            (r#"["session/set", "relay/refresh"]"#, true, false, false),
        ] {
            let commands = read(text);
            let found =
                (commands.allow(Action::Set), commands.allow(Action::Reset), commands.are_off());
            assert_eq!(found, (set, reset, off), "{text}");
        }
        assert!(Commands::default().are_off());
        assert!(serde_json::from_str::<Commands>(r#"["session/drop"]"#).is_err());
        for action in [Action::Set, Action::Reset, Action::Reload, Action::Refresh, Action::Test] {
            assert_eq!(serde_json::to_value(action).unwrap(), action.as_str());
        }
    }
}
