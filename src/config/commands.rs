//! What may be ordered from outside: over a sink's far side, or over HTTP.
//!
//! The words are those of the configuration and of the addresses. Nothing is done here.
//!
//! The one thing to know: nothing is allowed that is not configured. [`Commands::default`] allows none.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What can be ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Action {
    /// Gives an element of the session another value.
    #[serde(rename = "session/set")]
    Set,
    /// Begins a new session: what the old one had counted is gone.
    #[serde(rename = "session/reset")]
    Reset,
    /// Lets the server work the session's sums out anew.
    #[serde(rename = "session/reload")]
    Reload,
    /// Lets the relay fetch the session anew.
    #[serde(rename = "relay/refresh")]
    Refresh,
}

impl Action {
    /// The word in the configuration, in an answer and in a metric.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Set => "session/set",
            Self::Reset => "session/reset",
            Self::Reload => "session/reload",
            Self::Refresh => "relay/refresh",
        }
    }
}

/// What of it is allowed.
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
    /// Whether that may be ordered.
    pub fn allow(&self, action: Action) -> bool {
        match self {
            Self::All(all) => *all,
            Self::Only(actions) => actions.contains(&action),
        }
    }

    /// Whether nothing may be ordered at all.
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
        for action in [Action::Set, Action::Reset, Action::Reload, Action::Refresh] {
            assert_eq!(serde_json::to_value(action).unwrap(), action.as_str());
        }
    }
}
