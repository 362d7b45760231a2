//! Which events the broker retains, so that whoever subscribes later gets the newest of each topic.

use std::sync::Arc;

use super::settings::Retain;
use crate::{
    base::template::{Condition, View},
    sink::Outgoing,
};

#[derive(Debug)]
pub(super) enum RetainPolicy {
    Always(bool),
    When {
        condition: Condition,
        /// Events for which it could not be evaluated.
        errors: u64,
    },
}

impl RetainPolicy {
    pub(super) fn compile(setting: &Retain) -> Result<Self, String> {
        Ok(match setting {
            Retain::Always(always) => Self::Always(*always),
            Retain::When(text) => Self::When { condition: Condition::compile(text)?, errors: 0 },
        })
    }

    pub(super) fn is_always(&self) -> bool {
        matches!(self, Self::Always(true))
    }

    pub(super) fn applies(&mut self, event: &Outgoing) -> bool {
        match self {
            // What Home Assistant gets is never retained: whoever comes late must not take it for news.
            _ if event.part > 0 => false,
            Self::Always(always) => *always,
            Self::When { condition, errors } => {
                condition.holds(&View::of(Arc::clone(&event.record))).unwrap_or_else(|_| {
                    *errors += 1;
                    false
                })
            }
        }
    }

    pub(super) fn take_errors(&mut self) -> u64 {
        match self {
            Self::Always(_) => 0,
            Self::When { errors, .. } => std::mem::take(errors),
        }
    }
}
