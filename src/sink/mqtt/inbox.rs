//! What a link has read that is no command, until the sink looks at it.

use bytes::Bytes;

/// Messages that were read and not yet looked at: what a broker has retained of ours comes all at once.
const MESSAGES: usize = 4096;

/// Bytes of them.
const BYTES: usize = 8 * 1024 * 1024;

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) topic: String,
    pub(super) payload: Bytes,
    /// The broker had kept it, or (in MQTT 5) it keeps it from now on.
    pub(super) retained: bool,
}

/// Messages in the order in which they were read.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    on: bool,
    messages: Vec<Message>,
    bytes: usize,
}

impl Inbox {
    /// One that takes messages in, or leaves them where nothing is subscribed.
    pub(super) fn new(on: bool) -> Self {
        Self { on, messages: Vec::new(), bytes: 0 }
    }

    /// Takes a message in, while there is room.
    pub(super) fn put(&mut self, topic: &[u8], payload: &Bytes, retained: bool) {
        let bytes = self.bytes + topic.len() + payload.len();
        match std::str::from_utf8(topic) {
            Ok(topic) if self.on && self.messages.len() < MESSAGES && bytes <= BYTES => {
                self.bytes = bytes;
                let topic = topic.to_owned();
                self.messages.push(Message { topic, payload: payload.clone(), retained });
            }
            _ => tracing::debug!(
                "a message came that nobody waits for, or for which there is no room"
            ),
        }
    }

    /// Takes them all out.
    pub(super) fn take(&mut self) -> Vec<Message> {
        self.bytes = 0;
        std::mem::take(&mut self.messages)
    }
}
