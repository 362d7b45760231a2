//! Who is subscribed to what, by topic and canonical room.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use crate::connection::ServerConnection;

#[derive(Default)]
pub(crate) struct Subscribers(HashMap<String, OfTopic>);

#[derive(Default)]
struct OfTopic {
    rooms: HashMap<String, Vec<Arc<ServerConnection>>>,
    /// Those who are subscribed without a room, to every one.
    everywhere: Vec<Arc<ServerConnection>>,
}

impl Subscribers {
    /// Twice is once.
    pub(crate) fn add(&mut self, connection: &Arc<ServerConnection>, topic: String, room: String) {
        if connection.subscriptions(|all| all.insert((topic.clone(), room.clone()))) {
            let of_topic = self.0.entry(topic).or_default();
            let list = if room.is_empty() {
                &mut of_topic.everywhere
            } else {
                of_topic.rooms.entry(room).or_default()
            };
            list.push(Arc::clone(connection));
        }
    }

    pub(crate) fn remove(&mut self, connection: &ServerConnection, topic: &str, room: &str) {
        let Some(of_topic) = self.0.get_mut(topic) else { return };
        let others = |other: &Arc<ServerConnection>| other.id != connection.id;
        if room.is_empty() {
            of_topic.everywhere.retain(others);
        } else if let Some(list) = of_topic.rooms.get_mut(room) {
            list.retain(others);
            if list.is_empty() {
                of_topic.rooms.remove(room);
            }
        }
        if of_topic.rooms.is_empty() && of_topic.everywhere.is_empty() {
            self.0.remove(topic);
        }
    }

    /// Calls `deliver` once for each connection that is subscribed to this topic in this room, or in any
    /// room where none is named.
    pub(crate) fn each(&self, topic: &str, room: &str, mut deliver: impl FnMut(&ServerConnection)) {
        let Some(of_topic) = self.0.get(topic) else { return };
        if room.is_empty() {
            let all = of_topic.rooms.values().flatten().chain(&of_topic.everywhere);
            let once: BTreeMap<_, _> = all.map(|one| (one.id, one)).collect();
            for one in once.values() {
                deliver(one);
            }
            return;
        }
        let here = of_topic.rooms.get(room).map_or(&[][..], Vec::as_slice);
        for one in here {
            deliver(one);
        }
        for one in &of_topic.everywhere {
            if here.iter().all(|own| own.id != one.id) {
                deliver(one);
            }
        }
    }
}
