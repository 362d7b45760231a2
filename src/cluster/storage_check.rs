//! Whether what the cluster keeps at NATS is what it was: a stream or a bucket may be deleted, or made again by
//! another member. Then it is made where it is missing, and whatever reads it begins again.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;
use tracing::{debug, warn};

use super::{
    Cluster,
    connection::{Connection, Storage},
};
use crate::base::supervisor::Factory;

/// How often the servers are asked.
const PACE: Duration = Duration::from_secs(5);

pub(crate) fn factory(cluster: &Cluster) -> Factory {
    let cluster = cluster.clone();
    Box::new(move |stop| {
        let cluster = cluster.clone();
        Ok(Box::pin(async move {
            stop.run_until_cancelled(run(&cluster)).await;
        }))
    })
}

async fn run(cluster: &Cluster) {
    loop {
        sleep(PACE).await;
        let storage = cluster.storage().await;
        let connection = &cluster.0.connection;
        if connection.is_reached()
            && has_changed(connection, &storage).await
            && cluster.is_current(&storage)
        {
            cluster.log_is_gone();
        }
    }
}

/// Whether something of it is not there any more, or is another.
async fn has_changed(connection: &Connection, storage: &Storage) -> bool {
    let buckets = [&storage.leases, &storage.cursors, &storage.state, &storage.dead, &storage.done];
    let streams = buckets.map(|bucket| &bucket.stream);
    for stream in streams.into_iter().chain([&storage.log]) {
        let known = stream.cached_info();
        let name = &known.config.name;
        match connection.found(name).await {
            Ok(Some(found)) if found.cached_info().created == known.created => {}
            Ok(Some(_)) => {
                warn!(
                    name,
                    "it was deleted at NATS, and it is made again: it is read from its beginning"
                );
                return true;
            }
            Ok(None) => {
                warn!(name, "it was deleted at NATS: it is made again");
                return true;
            }
            Err(error) => {
                debug!(%error, "what is there at NATS cannot be known now");
                return false;
            }
        }
    }
    false
}

impl Cluster {
    /// Whether this is what the cluster has at NATS, as far as this member knows.
    pub(super) fn is_current(&self, storage: &Arc<Storage>) -> bool {
        self.0.storage.borrow().as_ref().is_some_and(|current| Arc::ptr_eq(current, storage))
    }
}
