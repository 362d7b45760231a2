//! To which channel a message belongs.
//!
//! Messages carry the canonical room, which may differ from the one asked for; or, in the older
//! revision, none at all. The rules, first match first:
//! 1. the subscription to this topic whose canonical (or requested) room it names: a confirmed one first, then one
//!    that is asked for, or that is being left and whose last messages come;
//! 2. without a room: the only subscription to this topic, if there is exactly one;
//! 3. a subscription to this topic that was asked for without a room and whose response named none
//!    gets what no other claims, whatever room it carries;
//! 4. no channel's: the channel stays empty, and so does a room that is not named.
//!
//! Answers are remembered, so that the usual message costs one look-up and no
//! allocation.

use std::{collections::HashMap, sync::Arc};

use foldhash::fast::FixedState;

use super::Subscription;
use crate::base::event::Place;

/// Rooms remembered for one topic beside those that are subscribed: a catch-all may get many.
const REMEMBERED: usize = 4096;

/// Topics remembered without a subscription: the gateway's own notifications, and nonsense.
const UNSUBSCRIBED_TOPICS: usize = 64;

/// The confirmed subscriptions of a connection, by topic and room.
#[derive(Debug, Default)]
pub(super) struct Rooms {
    topics: HashMap<Box<str>, Topic, FixedState>,
}

#[derive(Debug)]
struct Topic {
    name: Arc<str>,
    subscribed: usize,
    /// The channel and room of the only subscription, or of the first.
    first: Option<(Arc<str>, Arc<str>)>,
    /// The channel that gets what no other claims.
    catch_all: Option<Arc<str>>,
    rooms: HashMap<Box<str>, Heard, FixedState>,
}

/// A room, and the messages that came for it since that was last asked.
#[derive(Debug)]
struct Heard {
    place: Arc<Place>,
    messages: u64,
}

impl Topic {
    fn new(name: Arc<str>) -> Self {
        Self { name, subscribed: 0, first: None, catch_all: None, rooms: HashMap::default() }
    }

    /// What comes for this room is this channel's, unless it is another's already.
    fn belongs(&mut self, room: &Arc<str>, channel: &Arc<str>) {
        self.rooms.entry((&**room).into()).or_insert_with(|| Heard {
            place: Place::of(Arc::clone(&self.name), Arc::clone(room), Arc::clone(channel)),
            messages: 0,
        });
    }
}

impl Rooms {
    /// From the confirmed subscriptions with their canonical rooms.
    pub(super) fn new<'a>(
        confirmed: impl Iterator<Item = (&'a Arc<Subscription>, Option<Arc<str>>)>,
    ) -> Self {
        let mut rooms = Self::default();
        for (subscription, canonical) in confirmed {
            let topic = rooms
                .topics
                .entry((&*subscription.topic).into())
                .or_insert_with(|| Topic::new(Arc::clone(&subscription.topic)));
            topic.subscribed += 1;
            let channel = Arc::clone(&subscription.channel);
            let known = canonical.clone().or_else(|| subscription.room.clone());
            let room = known.clone().unwrap_or_else(|| "".into());
            topic.first.get_or_insert((Arc::clone(&channel), Arc::clone(&room)));
            if known.is_none() {
                topic.catch_all.get_or_insert(Arc::clone(&channel));
            }
            for alias in [canonical, subscription.room.clone()].into_iter().flatten() {
                topic.belongs(&alias, &channel);
            }
        }
        rooms
    }

    /// A room of a subscription that is asked for or being left: what comes for it, and is no other's, belongs
    /// to that.
    pub(super) fn also(&mut self, subscription: &Subscription, room: &Arc<str>) {
        let Subscription { topic, channel, .. } = subscription;
        let known = self.topics.entry((&**topic).into());
        known.or_insert_with(|| Topic::new(Arc::clone(topic))).belongs(room, channel);
    }

    /// Where a message of this topic and room belongs. It is counted.
    pub(super) fn source(&mut self, topic: &str, room: &str) -> Arc<Place> {
        let known = self.topics.get_mut(topic).and_then(|known| known.rooms.get_mut(room));
        if let Some(known) = known {
            known.messages += 1;
            return Arc::clone(&known.place);
        }
        let place = self.decide(topic, room);
        if let Some(known) = self.topics.get_mut(topic) {
            if known.rooms.len() < REMEMBERED {
                known.rooms.insert(room.into(), Heard { place: Arc::clone(&place), messages: 1 });
            }
        } else if self.topics.len() < UNSUBSCRIBED_TOPICS {
            let mut known = Topic::new(Arc::clone(&place.topic));
            known.rooms.insert(room.into(), Heard { place: Arc::clone(&place), messages: 1 });
            self.topics.insert(topic.into(), known);
        }
        place
    }

    /// The places for which messages came since the last call, and how many.
    pub(super) fn take_message_counts(&mut self) -> impl Iterator<Item = (Arc<Place>, u64)> + '_ {
        let rooms = self.topics.values_mut().flat_map(|topic| topic.rooms.values_mut());
        let received = rooms.filter(|room| room.messages > 0);
        received.map(|room| (Arc::clone(&room.place), std::mem::take(&mut room.messages)))
    }

    fn decide(&self, topic: &str, room: &str) -> Arc<Place> {
        let no_channel = || Place::of(topic, room, "");
        let Some(known) = self.topics.get(topic) else { return no_channel() };
        let name = Arc::clone(&known.name);
        match (&known.first, &known.catch_all) {
            (Some((channel, room_of_it)), _) if room.is_empty() && known.subscribed == 1 => {
                Place::of(name, Arc::clone(room_of_it), Arc::clone(channel))
            }
            (_, Some(channel)) => Place::of(name, room, Arc::clone(channel)),
            _ => no_channel(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TokenType;

    fn rooms(confirmed: &[(&str, &str, Option<&str>, Option<&str>)]) -> Rooms {
        let subscriptions: Vec<_> = confirmed
            .iter()
            .map(|(channel, topic, room, canonical)| {
                let subscription = Subscription {
                    channel: (*channel).into(),
                    topic: (*topic).into(),
                    room: room.map(Into::into),
                    token_type: TokenType::Jwt,
                };
                (Arc::new(subscription), canonical.map(Into::into))
            })
            .collect();
        Rooms::new(subscriptions.iter().map(|(s, canonical)| (s, canonical.clone())))
    }

    #[test]
    fn messages_find_their_channel() {
        let two = [("a", "t", Some("asked"), Some("canon")), ("b", "t", Some("r2"), None)];
        let own = [("a", "t", Some("r1"), Some("r1")), ("b", "t", None, None)];
        let one = [("a", "t", Some("asked"), Some("canon"))];
        let bare = [("a", "t", None, None)];
        // Confirmed, topic, room of the message; channel and room that come out.
        let cases: &[(&[_], &str, &str, &str, &str)] = &[
            (&two, "t", "canon", "a", "canon"),
            (&two, "t", "asked", "a", "asked"),
            (&two, "t", "r2", "b", "r2"),
            (&two, "t", "elsewhere", "", "elsewhere"),
            (&two, "t", "", "", ""),
            (&own, "t", "r1", "a", "r1"),
            (&own, "t", "whatever", "b", "whatever"),
            (&own, "t", "", "b", ""),
            (&one, "t", "", "a", "canon"),
            (&one, "t", "other", "", "other"),
            (&bare, "t", "", "a", ""),
            (&bare, "t", "r9", "a", "r9"),
            (&bare, "astro", "", "", ""),
            (&[], "t", "r", "", "r"),
        ];
        for (confirmed, topic, room, channel, placed) in cases {
            let mut rooms = rooms(confirmed);
            for _ in 0..2 {
                let place = rooms.source(topic, room);
                assert_eq!((&*place.channel, &*place.room), (*channel, *placed), "{topic} {room}");
                assert_eq!(&*place.topic, *topic);
            }
        }
    }

    #[test]
    fn messages_are_counted_by_their_place() {
        let mut rooms = rooms(&[("a", "t", Some("r"), None), ("b", "t", None, None)]);
        for room in ["r", "r", "r", "other", "other"] {
            rooms.source("t", room);
        }
        let mut counts: Vec<_> = rooms
            .take_message_counts()
            .map(|(place, messages)| (place.channel.to_string(), messages))
            .collect();
        counts.sort();
        assert_eq!(counts, [("a".to_owned(), 3), ("b".to_owned(), 2)]);
        assert_eq!(rooms.take_message_counts().count(), 0);
    }

    #[test]
    fn remembered_rooms_are_bounded() {
        let mut rooms = rooms(&[("a", "t", None, None)]);
        for number in 0..10_000 {
            assert_eq!(&*rooms.source("t", &number.to_string()).channel, "a");
            assert_eq!(&*rooms.source(&number.to_string(), "").channel, "");
        }
        assert_eq!(rooms.topics.len(), UNSUBSCRIBED_TOPICS);
        assert_eq!(rooms.topics["t"].rooms.len(), REMEMBERED);
    }
}
