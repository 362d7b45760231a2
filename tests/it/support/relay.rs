//! The whole relay in the test's own process, against a simulated Astro.

use std::{path::Path, sync::Arc, time::Duration};

use astro_relay::{
    app::relay::Relay, base::event::Record, config::Config, http::relay_status::RelayStatus,
    journal::Journal, loading::Sources,
};
use astro_sim::Sim;
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::carry::within;

/// A room of the simulation.
pub const ROOM: &str = "0f0e0d0c0b0a090807060504";

/// The token that [`configure`] writes.
pub const TOKEN: &str = "tok-canary";

/// A relay that runs.
pub struct Running {
    pub journal: Journal,
    pub status: Arc<RelayStatus>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// A configuration with one channel, `main`, and what `more` says beside it.
pub fn configure(sim: &Sim, dir: &Path, topics: &[&str], more: &str) -> Config {
    let text = format!(
        "[astro]\nurl = {:?}\napi_url = {:?}\nbackoff_max = \"200ms\"\n\
         [journal]\ndir = '{}'\n[http]\nlisten = \"\"\n\
         [channels.main]\nroom = {ROOM:?}\ntoken = {TOKEN:?}\ntopics = {topics:?}\n{more}",
        sim.url(),
        sim.api_url(),
        dir.display(),
    );
    let sources = Sources { text: Some(text), ..Sources::default() };
    astro_relay::loading::load(&sources).unwrap_or_else(|error| panic!("{error}")).config
}

impl Running {
    /// Starts it.
    #[expect(clippy::disallowed_methods, reason = "a test's own task")]
    pub async fn start(config: Config) -> Self {
        let relay = Relay::new(config, None).await.unwrap();
        let (journal, status) = (relay.journal(), relay.status());
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            relay.run(stopped, || {}).await;
        });
        Self { journal, status, stop, task }
    }

    /// Stops it in order.
    pub async fn stop(self) {
        self.stop.cancel();
        within("stop", self.task).await.unwrap();
    }

    /// Every event in the journal, oldest first.
    pub async fn events(&self) -> Vec<Arc<Record>> {
        let last = self.journal.figures().last;
        let mut records = Vec::new();
        let mut after = 0;
        while after < last {
            let batch = self.journal.read(after, last, 10_000, usize::MAX).await.unwrap();
            after = batch.through;
            records.extend(batch.records);
        }
        records
    }

    /// The data of every event of a topic.
    pub async fn said(&self, topic: &str) -> Vec<Value> {
        let records = self.events().await;
        let of_topic = records.iter().filter(|record| &*record.event.place.topic == topic);
        of_topic.map(|record| serde_json::from_slice(record.event.data()).unwrap()).collect()
    }

    /// Whether every subscription stands.
    pub fn subscribed(&self) -> bool {
        self.status.gateway.read(|state| {
            let mut all = state.assigned().peekable();
            all.peek().is_some() && all.all(|(_, row)| row.state.is_confirmed())
        })
    }

    /// Waits until every subscription stands.
    pub async fn wait_subscribed(&self) {
        super::wait::until("it is subscribed", Duration::from_secs(30), async || {
            self.subscribed().then_some(())
        })
        .await;
    }
}
