//! Both revisions of the protocol, and what the first leaves open.

use std::time::Duration;

use astro_relay::{
    astro::session::SubscriptionState,
    config::{SecretRef, TokenType},
};
use astro_sim::{Canonical, End, Options, Sim, Success, Token};

use super::{
    OTHER, ROOM, SOON,
    bench::{Bench, Want, targets},
};
use crate::support::wait::until;

const WANTS: [Want<'_>; 3] = [
    ("a", "channel.tips", Some(ROOM)),
    ("b", "channel.tips", Some(OTHER)),
    ("a", "channel.follow", Some(ROOM)),
];

/// Channel, topic and room of what comes out.
async fn heard(bench: &Bench) -> Vec<(String, String, String)> {
    bench.confirmed(WANTS.len()).await;
    for (topic, room) in
        [("channel.tips", ROOM), ("channel.tips", OTHER), ("channel.follow", ROOM), ("astro", "")]
    {
        bench.sim.publish(topic, room, r#"{"amount": 5.50}"#);
    }
    let events = bench.received(4).await;
    assert!(events.iter().all(|event| event.data() == br#"{"amount": 5.50}"#), "untouched");
    let words = |text: &str| text.to_owned();
    let place = |event: &astro_relay::base::event::Event| {
        (words(&event.place.channel), words(&event.place.topic), words(&event.place.room))
    };
    events.iter().map(place).collect()
}

fn expected(rows: [[&str; 3]; 4]) -> Vec<(String, String, String)> {
    rows.map(|[channel, topic, room]| (channel.into(), topic.into(), room.into())).to_vec()
}

#[tokio::test]
async fn the_newer_revision_names_rooms() {
    let bench = Bench::start(Options::default(), &WANTS).await;
    let rows = [
        ["a", "channel.tips", ROOM],
        ["b", "channel.tips", OTHER],
        ["a", "channel.follow", ROOM],
        ["", "astro", ""],
    ];
    assert_eq!(heard(&bench).await, expected(rows));
    let record = bench.connection(1).unwrap();
    let asked = record.commands[0].at - record.opened;
    assert!(asked < 250, "on the welcome, not after its grace: {asked} ms");
    assert_eq!(record.commands.len(), 3);
    bench.stop().await;
}

#[tokio::test]
async fn the_first_revision_has_no_welcome_and_no_rooms() {
    for success in [Success::WithoutRoom, Success::Text] {
        let options = Options { success, ..Options::first_revision() };
        let bench = Bench::start(options, &WANTS).await;
        let rows = [
            // Two channels want this topic: whose it is, is not known.
            ["", "channel.tips", ""],
            ["", "channel.tips", ""],
            ["a", "channel.follow", ROOM],
            ["", "astro", ""],
        ];
        assert_eq!(heard(&bench).await, expected(rows), "{success:?}");
        let record = bench.connection(1).unwrap();
        let asked = record.commands[0].at - record.opened;
        assert!(asked >= 290, "after the grace, not {asked} ms");
    }
}

#[tokio::test]
async fn without_rooms_messages_of_several_channels_are_told_apart_by_their_data() {
    let bench = Bench::start(Options::first_revision(), &WANTS).await;
    bench.confirmed(3).await;
    for room in [ROOM, OTHER, ROOM] {
        bench.sim.publish("channel.tips", room, format!(r#"{{"channel":"{room}"}}"#));
    }
    let events = bench.received(3).await;
    let places = events.iter().map(|event| (&*event.place.channel, &*event.place.room));
    assert_eq!(places.collect::<Vec<_>>(), [("a", ROOM), ("b", OTHER), ("a", ROOM)]);
    assert_eq!(bench.reasons(), [""; 0]);
    // What does not even say that reaches nobody, and health says so.
    bench.sim.publish("channel.tips", ROOM, r#"{"amount":1}"#);
    let reasons = until("health says it", SOON, async || {
        Some(bench.reasons()).filter(|reasons| !reasons.is_empty())
    })
    .await;
    assert_eq!(reasons.len(), 1, "{reasons:?}");
    assert!(reasons[0].contains("messages of channel.tips do not say"), "{reasons:?}");
    assert_eq!(&*bench.received(4).await[3].place.channel, "");
    // It ends with its cause.
    bench.targets.send_replace(targets(&[WANTS[0], WANTS[2]]));
    subscribed(&bench, 1, 2).await;
    until("it is over", SOON, async || bench.reasons().is_empty().then_some(())).await;
    bench.sim.publish("channel.tips", ROOM, r#"{"amount":2}"#);
    assert_eq!(&*bench.received(5).await[4].place.channel, "a");
}

/// Waits until the gateway has subscriptions on a connection, answered or not.
async fn subscribed(bench: &Bench, connection: u64, number: usize) {
    until("the gateway has them", SOON, async || {
        (bench.connection(connection)?.subscriptions.len() == number).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_comes_before_the_answer_has_its_channel() {
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), Options::default()).await.unwrap();
    sim.faults(|faults| faults.answer_delay = Duration::from_hours(1));
    let bench = Bench::at(sim, targets(&[("a", "channel.tips", None)]), |_| {});
    subscribed(&bench, 1, 1).await;
    bench.sim.publish("channel.tips", ROOM, 1);
    let event = &bench.received(1).await[0];
    assert_eq!((&*event.place.channel, &*event.place.room), ("a", ROOM));
    assert_eq!(bench.count("confirmed"), 0);
}

#[tokio::test]
async fn what_comes_before_the_answer_on_the_next_connection_has_its_channel() {
    let tokens = vec![Token::owner("t", ROOM), Token::owner("other", OTHER)];
    let mut wanted = targets(&[("a", "channel.tips", None), ("b", "channel.tips", None)]);
    wanted.channels.get_mut("b").unwrap().token = SecretRef::Value("other".into());
    let options = Options { tokens, ..Options::default() };
    let bench = Bench::with(options, wanted, |_| {}).await;
    bench.confirmed(2).await;
    bench.sim.faults(|faults| faults.answer_delay = Duration::from_hours(1));
    bench.sim.end(None, End::Reset);
    subscribed(&bench, 2, 2).await;
    for room in [OTHER, ROOM] {
        bench.sim.publish("channel.tips", room, 1);
    }
    let events = bench.received(2).await;
    let channels = events.iter().map(|event| &*event.place.channel);
    assert_eq!(channels.collect::<Vec<_>>(), ["b", "a"]);
    assert_eq!(bench.count("confirmed"), 0);
}

#[tokio::test]
async fn messages_of_the_canonical_room_belong_to_the_requested_room() {
    let canonical = Canonical::Rule(|room| format!("canon-{room}"));
    let bench = Bench::start(Options { canonical, ..Options::default() }, &WANTS).await;
    bench.confirmed(3).await;
    bench.sim.publish("channel.tips", &format!("canon-{OTHER}"), 1);
    let event = &bench.received(1).await[0];
    assert_eq!((&*event.place.channel, &*event.place.room), ("b", &*format!("canon-{OTHER}")));
    assert_eq!(
        bench.row("channel.follow").unwrap().state,
        SubscriptionState::Confirmed(Some(format!("canon-{ROOM}").into()))
    );
}

#[tokio::test]
async fn the_word_that_is_configured_is_the_word_that_is_sent() {
    let mut targets = targets(&[]);
    let types = [TokenType::Jwt, TokenType::Apikey, TokenType::Oauth2, TokenType::Oauth];
    for token_type in types {
        let word = token_type.as_str();
        let more = self::targets(&[(word, word, Some(ROOM))]);
        targets.channels.extend(more.channels);
        let mut subscription =
            std::sync::Arc::into_inner(more.subscriptions.into_iter().next().unwrap()).unwrap();
        subscription.token_type = token_type;
        targets.subscriptions.push(subscription.into());
    }
    let bench = Bench::with(Options::default(), targets, |_| {}).await;
    bench.confirmed(4).await;
    for command in bench.connection(1).unwrap().commands {
        assert_eq!(command.token_type.as_deref(), Some(&*command.topic));
        assert_eq!(command.token.unwrap().expose(), "t");
    }
}
