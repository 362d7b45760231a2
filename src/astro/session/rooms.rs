//! To which channel a message belongs.
//!
//! Messages carry the canonical room, which may differ from the one asked for; or, in the older
//! revision, none at all. Then their `data` may still say in `channel` whose they are. All subscriptions to the
//! topic count that may bring messages: the confirmed ones first, then those that are asked for, then those
//! that are being left and whose last messages come. The rules, first match first:
//! 1. the subscription whose room (canonical, requested, or canonical before it was asked for anew) the
//!    message names, or, where it names none, its `data.channel`;
//! 2. where it names a room: the only channel whose room is not known. It gets what no other claims, whatever
//!    room that carries. Not known is the room of a subscription that was asked for without one and whose
//!    response named none, and, until the response comes, of one that was asked for without a room or by
//!    a name, which may come under another;
//! 3. where it names none: the only channel;
//! 4. no channel's: the channel stays empty, and so does a room that is not named.
//!
//! Where several channels come into question, none is guessed. Answers are remembered, so that the usual
//! message costs one look-up and no allocation.

use std::{collections::HashMap, sync::Arc};

use foldhash::fast::FixedState;

use super::{
    Session, Subscription, Wanted,
    subscription::{Entry, Leaving},
};
use crate::{base::event::Place, config::Secret};

/// Rooms remembered for one topic beside those that are subscribed: a catch-all may get many.
const REMEMBERED: usize = 4096;

/// Topics remembered without a subscription: the gateway's own notifications, and nonsense.
const UNSUBSCRIBED_TOPICS: usize = 64;

/// The topic of the gateway's own notifications, which are for everybody.
const NOTIFICATIONS: &str = "astro";

/// The rooms that the gateway has named for subscriptions, and the token with which each was asked for.
pub type NamedRooms = HashMap<Arc<Subscription>, (Secret, Arc<str>)>;

/// The subscriptions of a connection that may bring messages, by topic and room.
#[derive(Debug, Default)]
pub(super) struct Rooms {
    topics: HashMap<Box<str>, Topic, FixedState>,
}

#[derive(Debug)]
struct Topic {
    name: Arc<str>,
    channels: Vec<Channel>,
    rooms: HashMap<Box<str>, Heard, FixedState>,
}

/// A channel that may bring messages of a topic.
#[derive(Debug)]
struct Channel {
    label: Arc<str>,
    /// As far as it is known, or empty.
    room: Arc<str>,
    /// Whether its messages come under that room for certain.
    is_room_known: bool,
}

/// A room, and the messages that came for it since that was last asked.
#[derive(Debug)]
struct Heard {
    place: Arc<Place>,
    messages: u64,
    /// Whether it is a subscription's own room, and not one of which a message came.
    is_claimed: bool,
}

impl Topic {
    fn new(name: Arc<str>) -> Self {
        Self { name, channels: Vec::new(), rooms: HashMap::default() }
    }

    /// Where what names this room, or none (empty), and is nobody's by that, may belong.
    fn candidates(&self, room: &str) -> impl Iterator<Item = &Channel> {
        self.channels.iter().filter(move |channel| room.is_empty() || !channel.is_room_known)
    }
}

impl Rooms {
    /// From what is confirmed, asked for, or being left.
    pub(super) fn of(entries: &[Entry], leaving: &[Leaving]) -> Self {
        let mut rooms = Self::default();
        let (mut confirmed, asked): (Vec<_>, Vec<_>) =
            entries.iter().partition(|entry| entry.state.is_confirmed());
        // Where two labels have the same room, the first label has its messages: not whichever was
        // confirmed first.
        confirmed.sort_by_key(|entry| Arc::clone(&entry.wanted.subscription.channel));
        for entry in confirmed.into_iter().chain(asked) {
            let (subscription, named) = (&entry.wanted.subscription, entry.named_room());
            rooms.claim(subscription, named);
            if entry.may_be_subscribed() {
                rooms.brings(subscription, named, entry.is_room_known());
            }
        }
        for left in leaving {
            let room = left.room.as_ref();
            rooms.claim(&left.subscription, room);
            rooms.brings(&left.subscription, room, room.is_some());
        }
        rooms
    }

    fn topic(&mut self, name: &Arc<str>) -> &mut Topic {
        let topic = self.topics.entry((&**name).into());
        topic.or_insert_with(|| Topic::new(Arc::clone(name)))
    }

    /// What comes for the rooms of this subscription, and is not another's already, belongs to it.
    fn claim(&mut self, subscription: &Subscription, named: Option<&Arc<str>>) {
        let topic = self.topic(&subscription.topic);
        for room in [named, subscription.room.as_ref()].into_iter().flatten() {
            let (name, channel) = (&topic.name, &subscription.channel);
            topic.rooms.entry((&**room).into()).or_insert_with(|| Heard {
                place: Place::of(Arc::clone(name), Arc::clone(room), Arc::clone(channel)),
                messages: 0,
                is_claimed: true,
            });
        }
    }

    /// This subscription may bring messages.
    fn brings(
        &mut self,
        subscription: &Subscription,
        named: Option<&Arc<str>>,
        is_room_known: bool,
    ) {
        let channels = &mut self.topic(&subscription.topic).channels;
        // A label that is given another room is left and asked for at once.
        if channels.iter().any(|other| other.label == subscription.channel) {
            return;
        }
        let room = named.or(subscription.room.as_ref()).cloned();
        let (label, room) = (Arc::clone(&subscription.channel), room.unwrap_or_default());
        channels.push(Channel { label, room, is_room_known });
    }

    /// Where a message of this topic and room belongs, or of that `data.channel` where it names no room. It is
    /// counted.
    pub(super) fn source(
        &mut self,
        topic: &str,
        room: &str,
        data_channel: Option<&str>,
    ) -> Arc<Place> {
        let known = self.topics.get_mut(topic);
        let is_claimed = |channel: &&str| {
            let heard = known.as_ref().and_then(|known| known.rooms.get(*channel));
            heard.is_some_and(|heard| heard.is_claimed)
        };
        let named = data_channel.filter(|_| room.is_empty()).filter(is_claimed);
        let room = named.unwrap_or(room);
        if let Some(heard) = known.and_then(|known| known.rooms.get_mut(room)) {
            heard.messages += 1;
            return Arc::clone(&heard.place);
        }
        let place = self.decide(topic, room);
        let heard = Heard { place: Arc::clone(&place), messages: 1, is_claimed: false };
        if let Some(known) = self.topics.get_mut(topic) {
            if known.rooms.len() < REMEMBERED {
                known.rooms.insert(room.into(), heard);
            }
        } else if self.topics.len() < UNSUBSCRIBED_TOPICS {
            let mut known = Topic::new(Arc::clone(&place.topic));
            known.rooms.insert(room.into(), heard);
            self.topics.insert(topic.into(), known);
        }
        place
    }

    /// Where what is nobody's by its room belongs.
    fn decide(&self, topic: &str, room: &str) -> Arc<Place> {
        let Some(known) = self.topics.get(topic) else { return Place::of(topic, room, "") };
        let name = Arc::clone(&known.name);
        let mut candidates = known.candidates(room);
        let (Some(only), None) = (candidates.next(), candidates.next()) else {
            return Place::of(name, room, "");
        };
        let room = if room.is_empty() { Arc::clone(&only.room) } else { room.into() };
        Place::of(name, room, Arc::clone(&only.label))
    }

    /// Whether a message of this topic and room that belongs to no channel is one of several channels'.
    pub(super) fn is_of_one_of_several(&self, topic: &str, room: &str) -> bool {
        let known = self.topics.get(topic).filter(|_| topic != NOTIFICATIONS);
        known.is_some_and(|known| known.candidates(room).nth(1).is_some())
    }

    /// The places for which messages came since the last call, and how many.
    pub(super) fn take_message_counts(&mut self) -> impl Iterator<Item = (Arc<Place>, u64)> + '_ {
        let rooms = self.topics.values_mut().flat_map(|topic| topic.rooms.values_mut());
        let received = rooms.filter(|room| room.messages > 0);
        received.map(|room| (Arc::clone(&room.place), std::mem::take(&mut room.messages)))
    }
}

impl Session {
    /// The rooms that the gateway has named on this connection, or before: for the one that comes after it.
    pub fn named_rooms(&self) -> NamedRooms {
        // What is said of another token is not said of the one that it has now.
        let entries = self.entries.iter().filter(|entry| !entry.is_renewed);
        let named = entries.filter_map(|entry| {
            let Wanted { subscription, token } = &entry.wanted;
            let (token, room) = (token.as_ref().ok()?.clone(), entry.named_room()?);
            Some((Arc::clone(subscription), (token, Arc::clone(room))))
        });
        named.collect()
    }

    /// Takes over the rooms that were named before, where the token is still the same: until they are named
    /// again.
    pub fn continue_rooms(&mut self, before: &NamedRooms) {
        for entry in &mut self.entries {
            let Some((token, room)) = before.get(&entry.wanted.subscription) else { continue };
            if entry.wanted.token.as_ref() == Ok(token) {
                entry.named_before = Some(Arc::clone(room));
            }
        }
        self.rooms = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TokenType;

    /// Channel, topic, configured and canonical room.
    type Confirmed<'a> = (&'a str, &'a str, Option<&'a str>, Option<&'a str>);

    fn rooms(confirmed: &[Confirmed<'_>]) -> Rooms {
        let mut rooms = Rooms::default();
        for (channel, topic, room, canonical) in confirmed {
            let subscription = Subscription {
                channel: (*channel).into(),
                topic: (*topic).into(),
                room: room.map(Into::into),
                token_type: TokenType::Jwt,
                token_room: None,
            };
            let named = canonical.map(Into::into);
            rooms.claim(&subscription, named.as_ref());
            let is_known = named.is_some() || room.is_some();
            rooms.brings(&subscription, named.as_ref(), is_known);
        }
        rooms
    }

    #[test]
    fn messages_find_their_channel() {
        let two = [("a", "t", Some("asked"), Some("canon")), ("b", "t", Some("r2"), None)];
        let own = [("a", "t", Some("r1"), Some("r1")), ("b", "t", None, None)];
        let one = [("a", "t", Some("asked"), Some("canon"))];
        let bare = [("a", "t", None, None)];
        let twice = [("a", "t", None, None), ("b", "t", None, None)];
        // Confirmed, topic, room of the message; channel and room that come out.
        let cases: &[(&[_], &str, &str, &str, &str)] = &[
            (&two, "t", "canon", "a", "canon"),
            (&two, "t", "asked", "a", "asked"),
            (&two, "t", "r2", "b", "r2"),
            (&two, "t", "elsewhere", "", "elsewhere"),
            (&two, "t", "", "", ""),
            (&own, "t", "r1", "a", "r1"),
            (&own, "t", "whatever", "b", "whatever"),
            (&own, "t", "", "", ""),
            (&one, "t", "", "a", "canon"),
            (&one, "t", "other", "", "other"),
            (&bare, "t", "", "a", ""),
            (&bare, "t", "r9", "a", "r9"),
            (&bare, "astro", "", "", ""),
            (&twice, "t", "r9", "", "r9"),
            (&twice, "t", "", "", ""),
            (&[], "t", "r", "", "r"),
        ];
        for (confirmed, topic, room, channel, placed) in cases {
            let mut rooms = rooms(confirmed);
            for _ in 0..2 {
                let place = rooms.source(topic, room, None);
                assert_eq!((&*place.channel, &*place.room), (*channel, *placed), "{topic} {room}");
                assert_eq!(&*place.topic, *topic);
            }
        }
    }

    #[test]
    fn a_message_without_a_room_finds_its_channel_by_its_data() {
        let mut rooms = rooms(&[
            ("a", "t", Some("asked"), Some("canon")),
            ("b", "t", Some("r2"), None),
            ("a", "u", Some("asked"), None),
        ]);
        // Topic, room and `data.channel` of the message; channel and room that come out.
        let cases = [
            ("t", "", "canon", "a", "canon"),
            ("t", "", "asked", "a", "asked"),
            ("t", "", "r2", "b", "r2"),
            ("t", "", "elsewhere", "", ""),
            ("t", "r2", "canon", "b", "r2"),
            ("t", "elsewhere", "canon", "", "elsewhere"),
            ("u", "", "r2", "a", "asked"),
            ("v", "", "r2", "", ""),
        ];
        for _ in 0..2 {
            for (topic, room, data_channel, channel, placed) in cases {
                let place = rooms.source(topic, room, Some(data_channel));
                assert_eq!(
                    (&*place.channel, &*place.room),
                    (channel, placed),
                    "{topic} {room} {data_channel}"
                );
            }
        }
    }

    #[test]
    fn it_is_known_where_several_channels_come_into_question() {
        let rooms = rooms(&[
            ("a", "t", Some("r1"), None),
            ("b", "t", None, None),
            ("a", "u", None, None),
            ("b", "u", None, None),
            ("a", "astro", None, None),
            ("b", "astro", None, None),
        ]);
        for (topic, room, expected) in [
            ("t", "", true),
            ("t", "r9", false),
            ("u", "", true),
            ("u", "r9", true),
            ("v", "", false),
            ("astro", "", false),
        ] {
            assert_eq!(rooms.is_of_one_of_several(topic, room), expected, "{topic} {room}");
        }
    }

    #[test]
    fn messages_are_counted_by_their_place() {
        let mut rooms = rooms(&[("a", "t", Some("r"), None), ("b", "t", None, None)]);
        for room in ["r", "r", "r", "other", "other"] {
            rooms.source("t", room, None);
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
            assert_eq!(&*rooms.source("t", &number.to_string(), None).channel, "a");
            assert_eq!(&*rooms.source(&number.to_string(), "", None).channel, "");
        }
        assert_eq!(rooms.topics.len(), UNSUBSCRIBED_TOPICS);
        assert_eq!(rooms.topics["t"].rooms.len(), REMEMBERED);
    }
}
