//! The state of channels, shared: the first holder of a channel writes it to a bucket, and every member has
//! in its own store what the others hold. So whoever drives a sink publishes the state of all channels.
//!
//! What a member holds itself it knows best: there nothing is taken from the bucket. A channel that it loses
//! keeps what was known of it, and is brought up to date by its holder. What the relay says of itself stays
//! here: the member that drives a sink speaks there for all.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use async_nats::jetstream::kv::{Operation, Watch};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::StreamExt;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tracing::debug;

use super::{Cluster, connection::Storage};
use crate::{
    base::{clock, json::Json, supervisor::Factory},
    channel::store::{StateKey, StateStore},
};

/// What changes within this time is written together.
const PACE: Duration = Duration::from_millis(100);

/// How long to wait before what failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Values that are on their way to the bucket at once.
const AT_ONCE: usize = 32;

pub(crate) fn factory(cluster: &Cluster, store: &Arc<StateStore>) -> Factory {
    let (cluster, store) = (cluster.clone(), Arc::clone(store));
    Box::new(move |stop| {
        let shared = SharedState {
            cluster: cluster.clone(),
            store: Arc::clone(&store),
            in_bucket: BTreeMap::new(),
            ours: BTreeSet::new(),
        };
        Ok(Box::pin(async move {
            stop.run_until_cancelled(shared.run()).await;
        }))
    })
}

struct SharedState {
    cluster: Cluster,
    store: Arc<StateStore>,
    /// What the bucket has.
    in_bucket: BTreeMap<StateKey, Json>,
    /// What was in our store of the channels that we write.
    ours: BTreeSet<StateKey>,
}

/// The name of a value in the bucket.
fn name_of(key: &StateKey) -> String {
    URL_SAFE_NO_PAD.encode(key.text())
}

fn key_of(name: &str) -> Option<StateKey> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(name).ok()?).ok()?;
    StateKey::from_text(&text)
}

impl SharedState {
    async fn run(mut self) {
        let mut reached = self.cluster.0.connection.reached.clone();
        let mut storages = self.cluster.0.storage.subscribe();
        loop {
            let found = storages.wait_for(Option::is_some).await.map(|found| found.clone());
            // The sender is in the cluster.
            let Ok(Some(storage)) = found else { return };
            reached.mark_unchanged();
            self.in_bucket.clear();
            match storage.state.watch_with_history(">").await {
                Ok(entries) => {
                    let replaced = (&mut reached, &mut storages);
                    self.keep(&storage, entries, replaced).await;
                }
                Err(error) => debug!(%error, "the state of the others cannot be had now"),
            }
            sleep(RETRY).await;
        }
    }

    /// Reads and writes until that fails, or the connection is a new one, or the bucket: the servers may have lost it,
    /// and the client library goes on by itself with one that was made again.
    async fn keep(
        &mut self,
        storage: &Storage,
        mut entries: Watch,
        (reached, storages): (
            &mut watch::Receiver<bool>,
            &mut watch::Receiver<Option<Arc<Storage>>>,
        ),
    ) {
        let mut changes = self.store.changes();
        let mut views = self.cluster.views();
        // What the bucket has is read before anything is written.
        let mut write_at = Some(Instant::now() + RETRY);
        loop {
            tokio::select! {
                Ok(()) = reached.changed() => return,
                Ok(()) = storages.changed() => return,
                entry = entries.next() => match entry {
                    Some(Ok(entry)) => self.take(&entry.key, (entry.operation == Operation::Put).then_some(&entry.value)),
                    _ => return,
                },
                Ok(()) = changes.changed() => {
                    write_at.get_or_insert_with(|| Instant::now() + PACE);
                }
                Ok(()) = views.changed() => {
                    write_at.get_or_insert_with(|| Instant::now() + RETRY);
                }
                () = clock::until(write_at) => {
                    write_at = None;
                    if !self.write(storage).await {
                        write_at = Some(Instant::now() + RETRY);
                    }
                }
            }
        }
    }

    /// The bucket has another value.
    fn take(&mut self, name: &str, value: Option<&bytes::Bytes>) {
        let Some(key) = key_of(name) else { return };
        let value =
            value.and_then(|value| std::str::from_utf8(value).ok()).and_then(Json::from_text);
        match &value {
            Some(value) => drop(self.in_bucket.insert(key.clone(), value.clone())),
            None => drop(self.in_bucket.remove(&key)),
        }
        if self.cluster.is_configured(&key.channel) && !self.cluster.holds(&key.channel) {
            self.store.insert([(key, value)]);
        }
    }

    /// Writes what is ours to write and not there; whether all of it is there now.
    async fn write(&mut self, storage: &Storage) -> bool {
        let cluster = self.cluster.clone();
        // What is configured no more is nobody's.
        self.store.remove(|key| !key.channel.is_empty() && !cluster.is_configured(&key.channel));
        let writes = |channel: &str| {
            !channel.is_empty() && cluster.holds(channel) && cluster.is_first_holder(channel)
        };
        let mut channels: BTreeMap<Arc<str>, bool> = BTreeMap::new();
        let now: BTreeMap<StateKey, Json> = self.store.snapshot(|entries, _| {
            let ours = entries.iter().filter(|(key, _)| {
                *channels.entry(Arc::clone(&key.channel)).or_insert_with(|| writes(&key.channel))
            });
            ours.map(|(key, entry)| (key.clone(), entry.value.clone())).collect()
        });
        let gone = self.ours.iter().filter(|key| !now.contains_key(key) && writes(&key.channel));
        let gone =
            gone.filter(|key| self.in_bucket.contains_key(key)).map(|key| (key.clone(), None));
        let fresh = now.iter().filter(|(key, value)| self.in_bucket.get(key) != Some(value));
        let changes: Vec<(StateKey, Option<Json>)> =
            gone.chain(fresh.map(|(key, value)| (key.clone(), Some(value.clone())))).collect();
        self.ours = now.into_keys().collect();
        let writes = changes.into_iter().map(|(key, value)| async move {
            let name = name_of(&key);
            let done = match &value {
                Some(value) => {
                    storage.state.put(name, value.text().to_owned().into()).await.is_ok()
                }
                None => storage.state.delete(name).await.is_ok(),
            };
            done.then_some((key, value))
        });
        let outcomes: Vec<_> =
            futures_util::stream::iter(writes).buffer_unordered(AT_ONCE).collect().await;
        let all = outcomes.iter().all(Option::is_some);
        for (key, value) in outcomes.into_iter().flatten() {
            match value {
                Some(value) => drop(self.in_bucket.insert(key, value)),
                None => drop(self.in_bucket.remove(&key)),
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::store::Section;

    #[test]
    fn any_name_can_stand_in_the_bucket() {
        for name in ["", "tip-latest", "a/b", "c d.e*>", "ü"] {
            let key =
                StateKey { channel: "main".into(), section: Section::Counters, name: name.into() };
            let word = name_of(&key);
            assert!(
                word.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)),
                "{word}"
            );
            assert_eq!(key_of(&word), Some(key));
        }
        assert_eq!(key_of("%"), None);
    }
}
