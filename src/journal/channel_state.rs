//! The state of channels in the journal, element by element, so that a restart need not begin without it.
//!
//! State is a level that is fetched again: what exceeds a channel's budget is left out, and nothing else
//! goes for it. An element that has grown beyond it is removed, so that no older value of it comes back at
//! the next start.
//!
//! Parts of the relay store something of their own here, under a name with a dot, which no channel's label
//! has: of all channels together, and nobody can fetch it again. Such a name has a larger budget.

use std::collections::HashMap;

use tracing::warn;

use super::{
    Journal,
    error::StoreError,
    store::{StateElement, Store},
};

/// Bytes of one channel's state: a session has some hundred elements, of some hundred bytes each.
const CHANNEL: usize = 512 * 1024;

/// Bytes under a name with a dot: the keys of a thousand channels' sessions.
const OWN: usize = 16 * 1024 * 1024;

/// What an element costs beside its name and its value.
const ELEMENT: usize = 64;

impl Journal {
    /// Writes elements of channels' states over what was there, as far as each channel has room. Without a
    /// directory nothing outlives the process, and nothing is stored.
    pub fn store_state(&self, elements: impl IntoIterator<Item = StateElement>) {
        if self.0.dir().is_none() {
            return;
        }
        let mut memory = self.0.lock();
        for element in elements {
            let element = memory.budget.admit(element);
            memory.pending.new.set_state(element);
        }
        self.0.notify_writer(memory);
    }

    /// All elements of channels' states. Blocks on the disk.
    pub fn stored_state(&self) -> Result<Vec<StateElement>, StoreError> {
        // Before the disk: what is written in between is found there too.
        let mut newer = HashMap::new();
        for changes in self.0.lock().pending.unwritten() {
            newer.extend(changes.state.clone());
        }
        let mut found = self.0.read_file(Store::state)?.unwrap_or_default();
        // Most of the time everything is written.
        if !newer.is_empty() {
            let key = |one: &StateElement| (one.channel.clone(), one.element.clone());
            found.retain(|one| !newer.contains_key(&key(one)));
            found.extend(newer.into_values().filter(|one| one.value.is_some()));
        }
        Ok(found)
    }
}

/// What each channel takes.
#[derive(Debug, Default)]
pub(super) struct StateBudget {
    channels: HashMap<Box<str>, Usage>,
}

#[derive(Debug, Default)]
struct Usage {
    bytes: usize,
    elements: HashMap<Box<str>, usize>,
    warned: bool,
}

impl StateBudget {
    /// Of what is in the file already.
    pub(super) fn of(elements: Vec<(String, String, usize)>) -> Self {
        let mut budget = Self::default();
        for (channel, element, value) in elements {
            let bytes = ELEMENT + element.len() + value;
            budget.channels.entry(channel.into()).or_default().set(&element, bytes);
        }
        budget
    }

    /// The element as it may be written: without its value where there is no room for that.
    fn admit(&mut self, one: StateElement) -> StateElement {
        let channel = self.channels.entry(one.channel.clone()).or_default();
        let Some(value) = &one.value else {
            channel.set(&one.element, 0);
            return one;
        };
        let bytes = ELEMENT + one.element.len() + value.len();
        let before = channel.elements.get(&one.element).copied().unwrap_or(0);
        let own = one.channel.contains('.');
        let most = if own { OWN } else { CHANNEL };
        if channel.bytes - before + bytes <= most {
            channel.set(&one.element, bytes);
            return one;
        }
        if !std::mem::replace(&mut channel.warned, true) {
            let name = &*one.channel;
            if own {
                warn!(
                    name,
                    most,
                    "too much state is published for all of its names to be stored; what of the rest \
                     vanishes while the relay is down stays at the destination"
                );
            } else {
                warn!(
                    channel = name,
                    most,
                    "the channel's state is too large to be stored whole; the rest of it is fetched \
                     again after a restart"
                );
            }
        }
        channel.set(&one.element, 0);
        StateElement { value: None, ..one }
    }
}

impl Usage {
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

    fn element(channel: &str, name: &str, bytes: usize) -> StateElement {
        let value = (bytes > 0).then(|| "x".repeat(bytes).into());
        StateElement { channel: channel.into(), element: name.into(), value, at: 1 }
    }

    #[test]
    fn a_channel_s_state_keeps_to_its_budget() {
        let mut budget = StateBudget::default();
        let admitted = |budget: &mut StateBudget, one| budget.admit(one).value.is_some();
        let many =
            (0..10_000).filter(|n| admitted(&mut budget, element("a", &n.to_string(), 1000)));
        assert!((400..525).contains(&many.count()));
        assert!(budget.channels["a"].bytes <= CHANNEL);
        assert!(admitted(&mut budget, element("b", "x", 1000)), "another channel has its own");
        // What grows beyond the room goes, and what it took is free again.
        assert!(!admitted(&mut budget, element("a", "0", CHANNEL)));
        assert!(admitted(&mut budget, element("a", "new", 900)));
        for n in 0..10_000 {
            budget.admit(element("a", &n.to_string(), 0));
        }
        budget.admit(element("a", "new", 0));
        assert_eq!(budget.channels["a"].bytes, 0);
        assert!(!admitted(&mut budget, element("a", "huge", 10 * CHANNEL)));
    }

    #[test]
    fn what_was_published_of_many_channels_is_remembered() {
        let mut budget = StateBudget::default();
        let name = "relay.kept.overlay";
        for n in 0..50_000 {
            let key = format!("channel-{}/session/some-element-of-it-{n}", n / 100);
            assert!(budget.admit(element(name, &key, 4)).value.is_some(), "{n}");
        }
        assert!(!budget.channels[name].warned);
        assert!(budget.admit(element(name, "huge", OWN)).value.is_none(), "it has a bound too");
        assert!(budget.channels[name].bytes <= OWN);
    }
}
