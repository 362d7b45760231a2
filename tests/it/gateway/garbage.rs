//! Frames that are not what they should be: skipped where the protocol allows it.

use astro_relay::sim::{Ended, Malformed, Options};

use super::{
    ROOM, SOON,
    bench::{Bench, Want, targets},
};
use crate::support::wait::until;

const WANTS: [Want<'_>; 1] = [("a", "channel.tips", Some(ROOM))];

#[tokio::test]
async fn nonsense_is_skipped_and_the_link_is_kept() {
    let bench = Bench::start(Options::default(), &WANTS).await;
    bench.confirmed(1).await;
    let nonsense = [
        Malformed::InvalidJson,
        Malformed::Binary,
        Malformed::UnknownType,
        Malformed::NoObject,
        Malformed::NoTopic,
    ];
    for (n, malformed) in (0..).zip(nonsense) {
        for _ in 0..500 {
            bench.sim.garble(None, malformed);
        }
        bench.carries("channel.tips", ROOM, n).await;
    }
    assert_eq!(bench.received(nonsense.len()).await.len(), nonsense.len());
    assert_eq!(bench.sim.stats().opened, 1);
}

#[tokio::test]
async fn a_payload_is_not_looked_into_however_deep_it_is() {
    let bench = Bench::start(Options::default(), &WANTS).await;
    bench.confirmed(1).await;
    bench.sim.garble(None, Malformed::Deep(100_000));
    bench.carries("channel.tips", ROOM, 1).await;
    let events = bench.received(2).await;
    assert_eq!(events[0].data().len(), 200_000);
    assert_eq!(
        (&*events[0].place.topic, &*events[0].place.channel),
        ("channel.deep", ""),
        "nobody's"
    );
    assert_eq!(bench.sim.stats().opened, 1);
}

#[tokio::test]
async fn a_message_in_pieces_is_one_message() {
    let bench = Bench::start(Options::default(), &WANTS).await;
    bench.confirmed(1).await;
    let message =
        format!(r#"{{"type":"message","topic":"channel.tips","room":"{ROOM}","data":1}}"#);
    bench.sim.send_fragmented(None, &message, 5);
    assert_eq!(bench.received(1).await[0].message, message.as_bytes());
}

#[tokio::test]
async fn what_breaks_the_protocol_breaks_the_link() {
    let limit = 64 * 1024;
    let broken = [
        (Malformed::InvalidUtf8, "not UTF-8"),
        (Malformed::Oversized(limit + 100), "max_message_size"),
        (Malformed::Oversized(8 << 20), "max_message_size"),
        (Malformed::ReservedOpcode, "opcode"),
    ];
    let bench = Bench::with(Options::default(), targets(&WANTS), |astro| {
        astro.max_message_size = astro_relay::config::Size(limit as u64);
    })
    .await;
    bench.confirmed(1).await;
    bench.sim.garble(None, Malformed::Oversized(limit - 100));
    bench.carries("channel.tips", ROOM, 0).await;
    assert_eq!(bench.sim.stats().opened, 1, "one that is not too large is taken");
    for (turn, (malformed, words)) in (2..).zip(broken) {
        bench.sim.garble(None, malformed);
        until(&format!("{malformed:?}: another connection"), SOON, async || {
            bench.connection(turn).filter(|record| record.subscriptions.len() == 1)
        })
        .await;
        let error = bench.pages().connections[&1].last_error.clone().unwrap();
        assert!(error.contains(words), "{malformed:?}: {error}");
        // What the server had still to write of eight megabytes may have come in the way.
        let ended = bench.connection(turn - 1).unwrap().ended;
        assert!(matches!(ended, Some(Ended::ByClient | Ended::Gone)), "{malformed:?}: {ended:?}");
        bench.carries("channel.tips", ROOM, turn).await;
    }
    let gaps = bench.gaps().await;
    assert_eq!(gaps.len(), broken.len(), "each is a gap: {gaps:?}");
}
