//! The task that publishes the state, with a destination that refuses or hangs up.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use astro_relay::{
    channel::store::{Section, StateKey, StateStore},
    config::SinkConfig,
    delivery::{health::TaskHealth, status::Status},
    journal::Journal,
    publish::{Publishing, StatePublisher, scope::Scope},
    sink::{Failure, Part},
};
use async_trait::async_trait;
use bytes::Bytes;
use serde_json::json;
use tokio::{task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    memory,
    scripted::{down, refused},
};
use crate::support::{
    journal::{close, config, open},
    sinks,
    wait::until,
};

const HOUR: Duration = Duration::from_hours(1);

#[derive(Default)]
struct State {
    kept: BTreeMap<StateKey, Bytes>,
    /// Every call with parts: how many, and when.
    calls: Vec<(usize, Instant)>,
    /// Which element it does not take, and whether it hangs up at it.
    bad: Option<(StateKey, bool)>,
}

/// A destination; clones are the same one.
#[derive(Clone, Default)]
struct Destination(Arc<Mutex<State>>);

#[async_trait]
impl StatePublisher for Destination {
    async fn connect(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    async fn publish(&mut self, parts: &[Part]) -> Result<(), Failure> {
        let mut state = self.0.lock().unwrap();
        if !parts.is_empty() {
            state.calls.push((parts.len(), Instant::now()));
        }
        for (place, part) in parts.iter().enumerate() {
            if let Some((bad, hangs_up)) = state.bad.clone()
                && bad == part.path
            {
                return Err(Failure::after(place, if hangs_up { down() } else { refused() }));
            }
            match &part.payload {
                Some(payload) => drop(state.kept.insert(part.path.clone(), payload.clone())),
                None => drop(state.kept.remove(&part.path)),
            }
        }
        Ok(())
    }

    async fn close(&mut self) {}
}

impl Destination {
    fn kept(&self) -> BTreeMap<String, Bytes> {
        let state = self.0.lock().unwrap();
        state.kept.iter().map(|(path, payload)| (path.text(), payload.clone())).collect()
    }

    fn start(
        &self,
        journal: &Journal,
        board: &Arc<StateStore>,
    ) -> (CancellationToken, JoinHandle<()>) {
        self.start_with(journal, board, &Arc::default())
    }

    #[expect(clippy::disallowed_methods, reason = "the test is the supervisor")]
    fn start_with(
        &self,
        journal: &Journal,
        board: &Arc<StateStore>,
        status: &Arc<Status>,
    ) -> (CancellationToken, JoinHandle<()>) {
        let config = SinkConfig { state: true, ..sinks::config("mqtt", Duration::from_secs(30)) };
        let scope = Scope::of("far", &config).unwrap();
        let health = Arc::new(TaskHealth::new(Arc::clone(status), "state of sink far".into()));
        let state = (Arc::clone(board), journal.clone());
        let publisher = Box::new(self.clone());
        let publishing = Publishing::new(
            ("far", &config),
            publisher,
            scope,
            state,
            (Arc::clone(status), health),
        );
        let stop = CancellationToken::new();
        (stop.clone(), tokio::spawn(publishing.run(stop)))
    }
}

fn element(name: &str) -> StateKey {
    StateKey { channel: "main".into(), section: Section::Session, name: name.into() }
}

fn put(board: &StateStore, name: &str, value: u64) {
    board.insert([(element(name), Some((&json!(value)).into()))]);
}

#[tokio::test(start_paused = true)]
async fn a_refused_part_is_left_out_and_the_others_are_published() {
    let (journal, board, far) = (memory(), Arc::new(StateStore::default()), Destination::default());
    far.0.lock().unwrap().bad = Some((element("b"), false));
    for name in ["a", "b", "c"] {
        put(&board, name, 1);
    }
    let (stop, task) = far.start(&journal, &board);
    until("the others", HOUR, async || (far.kept().len() == 2).then_some(())).await;
    far.0.lock().unwrap().bad = None;
    put(&board, "b", 2);
    until("it too, when it changes", HOUR, async || {
        (far.kept().get("main/session/b").is_some_and(|value| value == "2")).then_some(())
    })
    .await;
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_part_is_refused_once_however_often_it_is_and_until_it_is_taken() {
    let (journal, board, far) = (memory(), Arc::new(StateStore::default()), Destination::default());
    let status = Arc::new(Status::default());
    far.0.lock().unwrap().bad = Some((element("b"), false));
    put(&board, "b", 0);
    let (stop, task) = far.start_with(&journal, &board, &status);
    let calls = || far.0.lock().unwrap().calls.len();
    for value in 1..=3 {
        until("it is tried", HOUR, async || (calls() >= value).then_some(())).await;
        put(&board, "b", u64::try_from(value).unwrap());
    }
    let reason = || status.snapshot().tasks.get("state of sink far").cloned();
    until("it is said", HOUR, async || reason().filter(|reason| reason.contains("refused"))).await;
    assert!(!reason().unwrap().contains("more"), "{reason:?}", reason = reason());

    // Allowed by now, and unchanged.
    far.0.lock().unwrap().bad = None;
    let since = Instant::now();
    until("it is taken", HOUR, async || far.kept().get("main/session/b").cloned()).await;
    until("all is well", HOUR, async || reason().is_none().then_some(())).await;
    assert!(since.elapsed() < Duration::from_secs(70), "{:?}", since.elapsed());
    assert!(calls() < 10, "{}", calls());
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_was_not_removed_is_removed_over_the_next_connection() {
    let (journal, board, far) = (memory(), Arc::new(StateStore::default()), Destination::default());
    put(&board, "b", 1);
    let (stop, task) = far.start(&journal, &board);
    let calls = || far.0.lock().unwrap().calls.len();
    until("it is kept", HOUR, async || (calls() >= 1).then_some(())).await;
    far.0.lock().unwrap().bad = Some((element("b"), false));
    board.insert([(element("b"), None)]);
    until("its removal is refused", HOUR, async || (calls() >= 2).then_some(())).await;
    far.0.lock().unwrap().bad = Some((element("c"), true));
    put(&board, "c", 1);
    until("the connection is lost", HOUR, async || (calls() >= 3).then_some(())).await;
    far.0.lock().unwrap().bad = None;
    let kept = until("the other is kept", HOUR, async || {
        let kept = far.kept();
        kept.contains_key("main/session/c").then_some(kept)
    })
    .await;
    assert!(!kept.contains_key("main/session/b"), "{kept:?}");
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn state_at_which_the_destination_hangs_up_is_published_rarely() {
    let (journal, board, far) = (memory(), Arc::new(StateStore::default()), Destination::default());
    far.0.lock().unwrap().bad = Some((element("a"), true));
    put(&board, "a", 1);
    let (stop, task) = far.start(&journal, &board);
    let begun = Instant::now();
    tokio::time::sleep(Duration::from_mins(50)).await;
    // Every five minutes, about, once it has waited for so long.
    let tried = far.0.lock().unwrap().calls.len();
    assert!((5..60).contains(&tried), "{tried} times in {:?}", begun.elapsed());
    far.0.lock().unwrap().bad = None;
    until("it is kept at last", HOUR, async || (far.kept().len() == 1).then_some(())).await;
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_burst_is_published_in_few_calls_and_a_stop_publishes_offline() {
    let (journal, board, far) = (memory(), Arc::new(StateStore::default()), Destination::default());
    let status = StateKey::of("main", Section::Status);
    board.insert([(status.clone(), Some((&json!("online")).into()))]);
    let (stop, task) = far.start(&journal, &board);
    for value in 0..1000 {
        put(&board, "a", value);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    until("the newest", HOUR, async || {
        (far.kept().get("main/session/a").is_some_and(|value| value == "999")).then_some(())
    })
    .await;
    // One look in 50 ms for a second of changes.
    let said = far.0.lock().unwrap().calls.len();
    assert!((10..=25).contains(&said), "{said}");
    stop.cancel();
    task.await.unwrap();
    let kept = far.0.lock().unwrap().kept.clone();
    assert_eq!((&*kept[&status], &*kept[&element("a")]), (&b"offline"[..], &b"999"[..]));
}

#[tokio::test]
async fn what_vanished_between_two_processes_is_cleared() {
    let dir = tempfile::tempdir().unwrap();
    let (board, far) = (Arc::new(StateStore::default()), Destination::default());
    put(&board, "a", 1);
    put(&board, "b", 1);
    let journal = open(&config(dir.path())).0;
    let (stop, task) = far.start(&journal, &board);
    until("both", HOUR, async || (far.kept().len() == 2).then_some(())).await;
    stop.cancel();
    task.await.unwrap();
    close(journal).await;
    // The next process knows nothing of `b`: only what was written down of it.
    let board = Arc::new(StateStore::default());
    put(&board, "a", 1);
    let journal = open(&config(dir.path())).0;
    let (stop, task) = far.start(&journal, &board);
    until("one", HOUR, async || (far.kept().len() == 1).then_some(())).await;
    assert!(far.kept().contains_key("main/session/a"));
    stop.cancel();
    task.await.unwrap();
    close(journal).await;
}

#[tokio::test]
async fn what_was_not_removed_is_removed_by_the_next_process() {
    let dir = tempfile::tempdir().unwrap();
    let (board, far) = (Arc::new(StateStore::default()), Destination::default());
    put(&board, "a", 1);
    put(&board, "b", 1);
    let journal = open(&config(dir.path())).0;
    let (stop, task) = far.start(&journal, &board);
    until("both", HOUR, async || (far.kept().len() == 2).then_some(())).await;
    let calls = || far.0.lock().unwrap().calls.len();
    let before = calls();
    far.0.lock().unwrap().bad = Some((element("b"), false));
    board.insert([(element("b"), None)]);
    until("its removal is refused", HOUR, async || (calls() > before).then_some(())).await;
    stop.cancel();
    task.await.unwrap();
    close(journal).await;
    far.0.lock().unwrap().bad = None;
    let journal = open(&config(dir.path())).0;
    let (stop, task) = far.start(&journal, &board);
    until("one", HOUR, async || (far.kept().len() == 1).then_some(())).await;
    assert!(far.kept().contains_key("main/session/a"));
    stop.cancel();
    task.await.unwrap();
    close(journal).await;
}
