//! How much of a channel's state the journal holds, at most.
//!
//! State is a level that is fetched again, so what has no room is left out, and nothing else goes for it.
//!
//! The one thing to know: an element that has grown beyond the room is removed, so that no older value of
//! it comes back at the next start.

use std::collections::HashMap;

use tracing::warn;

use super::store::{StateElement, StateSize};

/// Bytes of one channel's state: a session has some hundred elements, of some hundred bytes each.
const CHANNEL: usize = 512 * 1024;

/// What an element costs beside its name and its value.
const ELEMENT: usize = 64;

/// What each channel takes.
#[derive(Debug, Default)]
pub(super) struct StateBudget {
    channels: HashMap<Box<str>, Channel>,
}

#[derive(Debug, Default)]
struct Channel {
    bytes: usize,
    elements: HashMap<Box<str>, usize>,
    /// Whether it was said that it has no room.
    said: bool,
}

impl StateBudget {
    /// What stands in the file already.
    pub(super) fn of(elements: Vec<StateSize>) -> Self {
        let mut budget = Self::default();
        for StateSize { channel, element, value } in elements {
            let bytes = ELEMENT + element.len() + value;
            budget.channels.entry(channel).or_default().set(&element, bytes);
        }
        budget
    }

    /// The element as it may be written: without its value where there is no room for that.
    pub(super) fn admit(&mut self, kept: StateElement) -> StateElement {
        let channel = self.channels.entry(kept.channel.clone()).or_default();
        let Some(value) = &kept.value else {
            channel.set(&kept.element, 0);
            return kept;
        };
        let bytes = ELEMENT + kept.element.len() + value.len();
        let before = channel.elements.get(&kept.element).copied().unwrap_or(0);
        if channel.bytes - before + bytes <= CHANNEL {
            channel.set(&kept.element, bytes);
            return kept;
        }
        if !std::mem::replace(&mut channel.said, true) {
            warn!(
                channel = &*kept.channel,
                most = CHANNEL,
                "the channel's state is too large to be written down whole; the rest of it is fetched \
                 again after a restart"
            );
        }
        channel.set(&kept.element, 0);
        StateElement { value: None, ..kept }
    }
}

impl Channel {
    /// That element takes so much; 0: it is gone.
    fn set(&mut self, element: &str, bytes: usize) {
        let before = match bytes {
            0 => self.elements.remove(element),
            bytes => self.elements.insert(element.into(), bytes),
        };
        self.bytes = self.bytes - before.unwrap_or(0) + bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(channel: &str, element: &str, bytes: usize) -> StateElement {
        let value = (bytes > 0).then(|| "x".repeat(bytes).into());
        StateElement { channel: channel.into(), element: element.into(), value, at: 1 }
    }

    #[test]
    fn a_channel_takes_no_more_than_its_room() {
        let mut budget = StateBudget::default();
        let admitted = |budget: &mut StateBudget, one| budget.admit(one).value.is_some();
        let many = (0..10_000).filter(|n| admitted(&mut budget, kept("a", &n.to_string(), 1000)));
        assert!((400..525).contains(&many.count()));
        assert!(budget.channels["a"].bytes <= CHANNEL);
        assert!(admitted(&mut budget, kept("b", "x", 1000)), "another channel has its own");
        // What grows beyond the room goes, and what it took is free again.
        assert!(!admitted(&mut budget, kept("a", "0", CHANNEL)));
        assert!(admitted(&mut budget, kept("a", "new", 900)));
        for n in 0..10_000 {
            budget.admit(kept("a", &n.to_string(), 0));
        }
        budget.admit(kept("a", "new", 0));
        assert_eq!(budget.channels["a"].bytes, 0);
        assert!(!admitted(&mut budget, kept("a", "huge", 10 * CHANNEL)));
    }
}
