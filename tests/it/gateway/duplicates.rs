//! Messages that come twice, and messages that only look like it.

use astro_sim::Options;

use super::{ROOM, bench::Bench};

#[tokio::test]
async fn a_duplicate_is_appended_once() {
    let bench = Bench::start(Options::default(), &[("a", "channel.tips", Some(ROOM))]).await;
    bench.confirmed(1).await;
    bench.sim.faults(|faults| faults.duplicate = true);
    for n in 0..50 {
        bench.sim.publish("channel.tips", ROOM, n);
    }
    bench.carries("channel.tips", ROOM, 50).await;
    let ids: Vec<_> = bench.events().await.iter().map(|event| event.id.to_string()).collect();
    assert_eq!(ids, bench.connection(1).unwrap().sent);
}

#[tokio::test]
async fn messages_that_share_an_id_keep_keys_of_their_own() {
    let read = |name: &str| {
        let root = env!("CARGO_MANIFEST_DIR");
        let text = std::fs::read_to_string(format!("{root}/sim/messages/{name}.json"));
        serde_json::from_str::<serde_json::Value>(&text.unwrap()).unwrap().to_string()
    };
    let (tip, moderation) = (read("channel-tips"), read("channel-tips-moderation"));
    let wants = [("a", "channel.tips", Some(ROOM)), ("a", "channel.tips.moderation", Some(ROOM))];
    let bench = Bench::start(Options::default(), &wants).await;
    bench.confirmed(2).await;
    bench.sim.faults(|faults| faults.duplicate = true);
    for message in [&tip, &moderation, &tip] {
        assert_eq!(bench.sim.publish_raw(message).unwrap(), 1);
    }
    bench.carries("channel.tips", ROOM, 1).await;
    let events = bench.received(3).await;
    let (first, second) = (&events[0], &events[1]);
    assert_eq!(first.id, second.id, "the documentation shows them under one id");
    assert_eq!(first.message, tip.as_bytes());
    assert_eq!(second.message, moderation.as_bytes());
    assert_ne!(first.key(), second.key());
    // The keys are those of the messages, whatever came before: the other way round they are the same.
    let other = Bench::start(Options::default(), &wants).await;
    other.confirmed(2).await;
    for message in [&moderation, &tip] {
        assert_eq!(other.sim.publish_raw(message).unwrap(), 1);
    }
    let again = other.received(2).await;
    assert_eq!((again[0].key(), again[1].key()), (second.key(), first.key()));
}
