use tokio::sync::oneshot::error::TryRecvError;

use super::*;
use crate::{
    astro::session::Subscription,
    channel::refresh::refreshes,
    config::{Astro, SecretRef, TokenType},
    gateway::Account,
};

const CHANNEL: &str = "main";

const STREAM: &str = "channel.stream.status";

/// A time of a reset, and one long before it.
const RESET_AT: (UnixMillis, UnixMillis) = (1_741_370_400_000, 1_741_300_000_000);

/// One channel. No request can be made in its name: a room that is no id ends a fetch before it is sent.
fn targets(room: &str) -> Targets {
    let [update, reset] = SESSION_TOPICS;
    targets_of(room, &[update, reset, STREAM])
}

/// One that subscribes to these topics.
fn targets_of(room: &str, topics: &[&str]) -> Targets {
    let token = SecretRef::Value("token".into());
    let room: Arc<str> = room.into();
    let subscription = |topic: &&str| {
        Arc::new(Subscription {
            channel: CHANNEL.into(),
            topic: (*topic).into(),
            room: Some(Arc::clone(&room)),
            token_type: TokenType::Jwt,
            token_room: None,
        })
    };
    let subscriptions = topics.iter().map(subscription).collect();
    let room = Some(room);
    let (token_type, known_room) = (TokenType::Jwt, room.clone());
    let account = Account { token, token_type, room, known_room, refresh: None };
    Targets {
        subscriptions,
        channels: HashMap::from([(CHANNEL.into(), account)]),
        ..Targets::default()
    }
}

/// A keeper that a test drives step by step.
struct Driven {
    keeper: SessionKeeper,
    targets: watch::Sender<Targets>,
}

impl Driven {
    fn new() -> Self {
        let (sender, targets) = watch::channel(targets("a"));
        let (_, requests) = refreshes();
        let stores = Stores {
            journal: Journal::in_memory(1 << 20),
            table: Arc::default(),
            store: Arc::default(),
            sessions: Arc::default(),
        };
        let times =
            Times { refresh: Duration::from_mins(15), retry_refused: Duration::from_mins(15) };
        let rest = Rest::new(&Astro::default());
        let keeper = SessionKeeper::new(times, rest, stores, targets, requests).unwrap();
        Self { keeper, targets: sender }
    }

    /// One that knows that the stream is live, and a goal of 5.
    async fn informed() -> Self {
        let mut driven = Self::new();
        driven.receive(STREAM, &json!({"isLive": true}), RESET_AT.1);
        driven.fold().await;
        drop(driven.request(None));
        let fetched = driven.fetch().await;
        driven.end(fetched, 5);
        driven
    }

    fn request(&mut self, answered: Option<Answered>) -> oneshot::Receiver<Outcome> {
        let (done, outcome) = oneshot::channel();
        self.keeper.refresh(RefreshRequest { channel: CHANNEL.into(), answered, done });
        outcome
    }

    /// A fetch begins, as it is due.
    async fn fetch(&mut self) -> Fetched {
        let mut fetches = Fetches::new();
        self.keeper.start(&mut fetches);
        assert_eq!(fetches.len(), 1, "one is due");
        fetches.next().await.unwrap()
    }

    /// It ends with what the server has answered.
    fn end(&mut self, fetched: Fetched, goal: u64) {
        self.keeper.take(Fetched { outcome: Ok(document(goal)), ..fetched });
    }

    fn reload(&mut self, room: &str) {
        self.targets.send(targets(room)).unwrap();
        self.keeper.adopt();
    }

    /// An event is received and reaches the journal.
    fn receive(&self, topic: &str, data: &Value, at: UnixMillis) {
        let event = event::own(topic, &CHANNEL.into(), &"a".into(), data, at);
        self.keeper.stores.journal.append(&mut vec![event]);
    }

    async fn fold(&mut self) {
        let batch = self.keeper.follower.next(BATCH, BATCH_BYTES).await.unwrap();
        self.keeper.fold(&batch);
    }

    fn goal(&self) -> Value {
        let mut elements = self.keeper.channels[CHANNEL].session.iter();
        elements.find(|(name, _)| &***name == "tip-goal").unwrap().1.read()
    }
}

fn document(goal: u64) -> SessionDocument {
    let elements = json!({"tip-goal": goal}).to_string();
    SessionDocument {
        elements: serde_json::from_str(&elements).unwrap(),
        about: SessionAbout { last_reset: Some(RESET_AT.0), ..SessionAbout::default() },
    }
}

#[tokio::test]
async fn what_was_received_before_a_fetch_does_not_undo_it() {
    let mut driven = Driven::new();
    driven.receive("channel.session.update", &json!({"key": "tip-goal", "data": 1}), RESET_AT.1);
    driven.receive(RESET, &json!({"tip-goal": 0}), RESET_AT.1);
    let mut outcome = driven.request(None);
    let fetched = driven.fetch().await;
    driven.end(fetched, 2);
    assert_eq!(outcome.try_recv(), Ok(Ok(())));
    // The disk was slow: only now they can be read.
    driven.fold().await;
    assert_eq!(driven.goal(), 2);
    let channel = &driven.keeper.channels[CHANNEL];
    assert_eq!(channel.about.last_reset, Some(RESET_AT.0), "nor the time of the reset");
    driven.receive("channel.session.update", &json!({"key": "tip-goal", "data": 3}), RESET_AT.0);
    driven.fold().await;
    assert_eq!(driven.goal(), 3);
}

#[tokio::test]
async fn a_fetch_that_began_before_a_command_was_answered_is_repeated() {
    let mut driven = Driven::new();
    let mut outcome = driven.request(None);
    let before = driven.fetch().await;
    let since = driven.keeper.stores.journal.figures().last;
    let answered = Answered { since, document: document(99), source: Source::Fetched };
    assert_eq!(driven.request(Some(answered)).try_recv(), Ok(Ok(())));
    driven.end(before, 10);
    assert_eq!(driven.goal(), 99);
    assert_eq!(outcome.try_recv(), Err(TryRecvError::Empty));
    let repeated = driven.fetch().await;
    driven.end(repeated, 100);
    assert_eq!((driven.goal(), outcome.try_recv()), (json!(100), Ok(Ok(()))));
}

#[tokio::test]
async fn an_answer_to_a_command_that_is_older_than_the_snapshot_is_fetched_again() {
    let mut driven = Driven::new();
    let since = driven.keeper.stores.journal.figures().last;
    driven.receive("channel.session.update", &json!({"key": "tip-goal", "data": 2}), RESET_AT.1);
    drop(driven.request(None));
    let fetched = driven.fetch().await;
    driven.end(fetched, 2);
    let answered = Answered { since, document: document(1), source: Source::Fetched };
    let mut outcome = driven.request(Some(answered));
    assert_eq!((driven.goal(), outcome.try_recv()), (json!(2), Err(TryRecvError::Empty)));
    let repeated = driven.fetch().await;
    driven.end(repeated, 3);
    assert_eq!((driven.goal(), outcome.try_recv()), (json!(3), Ok(Ok(()))));
}

#[tokio::test]
async fn a_fetch_of_the_account_before_a_reload_is_dropped_and_repeated() {
    let mut driven = Driven::new();
    let mut first = driven.request(None);
    let old = driven.fetch().await;
    driven.reload("b");
    let mut second = driven.request(None);
    let new = driven.fetch().await;
    driven.end(new, 7);
    assert_eq!((driven.goal(), second.try_recv()), (json!(7), Ok(Ok(()))));
    driven.end(old, 1);
    assert_eq!((driven.goal(), first.try_recv()), (json!(7), Err(TryRecvError::Empty)));
    let repeated = driven.fetch().await;
    driven.end(repeated, 8);
    assert_eq!((driven.goal(), first.try_recv()), (json!(8), Ok(Ok(()))));

    // Who waits for a fetch that has not begun waits for that of the new account.
    let mut third = driven.request(None);
    driven.reload("c");
    let fetched = driven.fetch().await;
    driven.end(fetched, 9);
    assert_eq!((driven.goal(), third.try_recv()), (json!(9), Ok(Ok(()))));
}

#[tokio::test]
async fn the_state_of_a_room_is_gone_when_its_label_is_given_to_another_one() {
    let mut driven = Driven::informed().await;
    let stored = |driven: &Driven| driven.keeper.stores.store.snapshot(|entries, _| entries.len());
    assert_eq!(stored(&driven), 3, "the goal, the stream, and what the session says of itself");

    // Under the name that the gateway has for the same room it is the same.
    driven.keeper.channels.get_mut(CHANNEL).unwrap().room = Some("canonical".into());
    driven.reload("canonical");
    assert_eq!((driven.goal(), stored(&driven)), (json!(5), 3));

    let before = driven.keeper.stores.journal.figures().last;
    driven.reload("b");
    assert!(driven.keeper.channels[CHANNEL].session.is_empty());
    assert_eq!(stored(&driven), 0);
    let journal = &driven.keeper.stores.journal;
    let last = journal.figures().last;
    let told = journal.read(before, last, BATCH, BATCH_BYTES).await.unwrap().records;
    let told: Vec<Value> =
        told.iter().map(|told| serde_json::from_slice(told.event.data()).unwrap()).collect();
    assert_eq!(told.len(), 2);
    assert!(told.iter().all(|told| told.get("after").is_none()), "{told:?}");
    drop(driven.request(None));
    let fetched = driven.fetch().await;
    driven.end(fetched, 6);
    assert_eq!((driven.goal(), stored(&driven)), (json!(6), 2));
}

#[test]
fn a_label_is_another_rooms_only_where_both_are_known_and_differ() {
    let (one, two) = ("1".repeat(24), "2".repeat(24));
    let (one, two) = (one.as_str(), two.as_str());
    for (now, known, may_be) in [
        (None, &[][..], true),
        (None, &[one], true),
        (Some(one), &[], true),
        (Some(one), &[one], true),
        (Some(one), &[two], false),
        // A name, and the id that the gateway has for it.
        (Some(one), &["alice"], true),
        (Some("alice"), &[one], true),
        (Some(one), &["alice", one], true),
        (Some(one), &["alice", two], false),
        (Some("alice"), &["bob"], false),
        (Some("alice"), &["alice"], true),
    ] {
        let mut account = targets("a").channels[CHANNEL].clone();
        account.known_room = now.map(Into::into);
        let channel = Channel::new(&account);
        assert_eq!(channel.may_be(known), may_be, "{now:?} {known:?}");
    }
}

#[tokio::test]
async fn the_state_of_a_topic_that_is_no_longer_subscribed_to_is_gone() {
    let mut driven = Driven::informed().await;
    let reload = |driven: &mut Driven, topics: &[&str]| -> Vec<Section> {
        driven.targets.send(targets_of("a", topics)).unwrap();
        driven.keeper.adopt();
        let store = &driven.keeper.stores.store;
        store.snapshot(|entries, _| entries.keys().map(|key| key.section).collect())
    };
    let session = [Section::Session, Section::SessionInfo];
    assert_eq!(reload(&mut driven, &SESSION_TOPICS), session);
    assert_eq!(driven.goal(), 5);
    assert_eq!(reload(&mut driven, &[STREAM]), []);
    assert!(driven.keeper.channels[CHANNEL].session.is_empty());
}

#[tokio::test]
async fn what_is_no_longer_subscribed_to_is_not_restored_after_a_restart() {
    let mut driven = Driven::new();
    let names = ["tip-goal", "stream.status", "chatbot.counters.deaths", "paid.jewels"];
    let kept = names.map(|name| StateElement {
        channel: CHANNEL.into(),
        element: name.into(),
        value: Some("1".into()),
        at: 1,
    });
    driven.keeper.restore(kept.into(), &BTreeMap::new());
    let restored = driven.keeper.channels[CHANNEL].session.iter();
    let restored: Vec<&str> = restored.map(|(name, _)| &**name).collect();
    assert_eq!(restored, ["tip-goal", "stream.status"]);
}

#[tokio::test]
async fn a_session_that_is_refused_or_cannot_be_fetched_for_a_while_is_failing_until_it_is_fetched()
{
    const FAILS: u16 = 503;
    const REFUSED: u16 = 401;
    let mut driven = Driven::new();
    for (status, expected) in
        [(FAILS, false), (FAILS, false), (FAILS, true), (200, false), (REFUSED, true), (200, false)]
    {
        drop(driven.request(None));
        let fetched = driven.fetch().await;
        if status == 200 {
            driven.end(fetched, 1);
        } else {
            let error = RestError::Refused { status, text: "no".into(), retry_after: None };
            driven.keeper.take(Fetched { outcome: Err(error), ..fetched });
        }
        let shown = driven.keeper.stores.sessions.snapshot().remove(CHANNEL).unwrap();
        assert_eq!((shown.is_failing, shown.error.is_none()), (expected, status == 200));
    }
    // Nor where it is not to be fetched any more.
    drop(driven.request(None));
    let fetched = driven.fetch().await;
    let error = RestError::Refused { status: REFUSED, text: "no".into(), retry_after: None };
    driven.keeper.take(Fetched { outcome: Err(error), ..fetched });
    driven.targets.send(targets_of("a", &[STREAM])).unwrap();
    driven.keeper.adopt();
    assert!(!driven.keeper.stores.sessions.snapshot()[CHANNEL].is_failing);
}

#[tokio::test]
async fn a_fetch_of_a_channel_that_was_removed_meanwhile_is_not_taken_for_its_successor() {
    let mut driven = Driven::new();
    let mut outcome = driven.request(None);
    let old = driven.fetch().await;
    driven.targets.send(Targets::default()).unwrap();
    driven.keeper.adopt();
    driven.reload("b");
    driven.end(old, 1);
    assert!(driven.keeper.channels[CHANNEL].session.is_empty());
    let fetched = driven.fetch().await;
    driven.end(fetched, 2);
    assert_eq!((driven.goal(), outcome.try_recv()), (json!(2), Ok(Ok(()))));
}
