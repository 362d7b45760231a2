//! What is wanted changes while the gateway runs.

use std::{collections::BTreeSet, time::Duration};

use astro_relay::gateway::table::Phase;
use astro_sim::{Ended, Options, Sim};

use super::{
    OTHER, ROOM, SOON,
    bench::{Bench, targets},
};
use crate::support::wait::until;

#[tokio::test]
async fn subscriptions_come_and_go_on_the_open_link() {
    let kept = ("a", "channel.tips", Some(ROOM));
    let dropped = ("a", "channel.follow", Some(ROOM));
    let added = [("b", "channel.tips", Some(OTHER)), ("b", "channel.contests", Some(OTHER))];
    let bench = Bench::start(Options::default(), &[kept, dropped]).await;
    bench.confirmed(2).await;
    bench.targets.send_replace(targets(&[kept, added[0], added[1]]));
    bench.confirmed(3).await;
    let wanted: BTreeSet<_> = [kept, added[0], added[1]]
        .map(|(_, topic, room)| (topic.to_owned(), room.unwrap().to_owned()))
        .into();
    until("Astro has what is wanted", SOON, async || {
        (bench.connection(1).unwrap().subscriptions == wanted).then_some(())
    })
    .await;
    let record = bench.connection(1).unwrap();
    let said: Vec<_> =
        record.commands.iter().map(|c| format!("{} {}", c.kind, c.topic)).skip(2).collect();
    let expected =
        ["unsubscribe channel.follow", "subscribe channel.tips", "subscribe channel.contests"];
    assert_eq!(said, expected, "what stays is not spoken of");
    bench.carries("channel.tips", ROOM, 1).await;
    bench.carries("channel.tips", OTHER, 2).await;
    assert_eq!((bench.sim.stats().opened, bench.gaps().await.len()), (1, 0));
    bench.stop().await;
}

#[tokio::test]
async fn nothing_wanted_is_no_connection() {
    let bench = Bench::start(Options::default(), &[("a", "channel.tips", Some(ROOM))]).await;
    bench.confirmed(1).await;
    bench.targets.send_replace(targets(&[]));
    until("it has left", SOON, async || bench.connection(1).unwrap().ended).await;
    assert_eq!(bench.connection(1).unwrap().ended, Some(Ended::ByClient));
    until("its page is gone", SOON, async || bench.state().connections.is_empty().then_some(()))
        .await;
    bench.targets.send_replace(targets(&[("b", "channel.follow", None)]));
    bench.confirmed(1).await;
    bench.carries("channel.follow", OTHER, 1).await;
    assert_eq!(bench.sim.stats().opened, 2);
}

#[tokio::test]
async fn changes_without_a_connection_count_at_the_next_one() {
    let bench = Bench::start(Options::default(), &[("a", "channel.tips", Some(ROOM))]).await;
    bench.confirmed(1).await;
    bench.sim.listen(false);
    bench.sim.end(None, astro_sim::End::Reset);
    bench.confirmed(0).await;
    bench.targets.send_replace(targets(&[("a", "channel.follow", Some(ROOM))]));
    bench.sim.listen(true);
    bench.confirmed(1).await;
    assert_eq!(bench.sim.connections().last().unwrap().commands.len(), 1);
    bench.carries("channel.follow", ROOM, 1).await;
}

#[tokio::test]
async fn changes_while_a_connection_is_dialled_count_on_it() {
    let kept = ("a", "channel.tips", Some(ROOM));
    let dropped = ("a", "channel.follow", Some(ROOM));
    let added = ("b", "channel.tips", Some(OTHER));
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), Options::default()).await.unwrap();
    sim.faults(|faults| faults.upgrade_delay = Duration::from_secs(1));
    let bench = Bench::at(sim, targets(&[kept, dropped]), |_| {});
    until("it is being dialled", SOON, async || {
        let state = bench.state();
        state.connections.values().any(|row| row.phase == Phase::Dialing).then_some(())
    })
    .await;
    bench.targets.send_replace(targets(&[kept, added]));
    until("Astro has what is wanted", SOON, async || {
        let wanted =
            [kept, added].map(|(_, topic, room)| (topic.to_owned(), room.unwrap().to_owned()));
        (bench.connection(1)?.subscriptions == BTreeSet::from(wanted)).then_some(())
    })
    .await;
    bench.confirmed(2).await;
    bench.carries("channel.tips", OTHER, 1).await;
    assert_eq!((bench.sim.stats().opened, bench.gaps().await.len()), (1, 0));
}
