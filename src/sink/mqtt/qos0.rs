//! The confirmation of QoS 0, which has no acknowledgement.
//!
//! A broker reads a connection in order. So its answer to an unsubscription, from something that was never
//! subscribed, tells that it has read all that was written before. One such question is on its way at a
//! time; what is written meanwhile is confirmed by the next.

use std::collections::VecDeque;

use super::{
    connection::{Connection, Tag},
    lost::Lost,
};

/// What is never subscribed.
const NOTHING: &str = "astro-relay/nothing";

/// Events that were written, and not confirmed.
#[derive(Debug, Default)]
pub(super) struct Unconfirmed {
    written: VecDeque<Tag>,
    /// So many of them will be confirmed by the question that is on its way; 0: there is none.
    asked: usize,
}

impl Unconfirmed {
    pub(super) fn written(&mut self, tag: Tag) {
        self.written.push_back(tag);
    }

    /// Asks for a confirmation, unless that is done or nothing needs one.
    pub(super) fn request(&mut self, connection: &Connection) -> Result<(), Lost> {
        if self.asked == 0 && !self.written.is_empty() {
            connection.unsubscribe(NOTHING)?;
            self.asked = self.written.len();
        }
        Ok(())
    }

    /// The broker has answered: these are confirmed.
    pub(super) fn confirmed(&mut self) -> impl Iterator<Item = Tag> {
        let asked = std::mem::take(&mut self.asked);
        self.written.drain(..asked)
    }

    /// There is no connection any more.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
