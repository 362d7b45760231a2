//! The cluster on the page, in a real browser: who is there, who drives what, and that one is gone.

use super::{
    bench::{PATIENCE, room},
    members::page,
    setup::Small,
};
use crate::support::{browser::Browser, nats_server::NatsServer, receiver::Answer, wait::until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_shows_who_drives_what_and_that_a_member_is_gone() {
    let server = NatsServer::start("").await;
    let small = Small::start().await;
    let url = server.url();
    let mut members = [1, 2]
        .map(|number| small.member(&format!("url = {url:?}\nmember = \"relay-{number}\""), ""));
    for member in &mut members {
        member.start();
        member.ready().await;
    }
    let driver = until("a member drives the sink", PATIENCE, async || {
        let answer = members[0].get("/status").await?;
        let status: serde_json::Value =
            serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()?;
        status["pages"]["cluster"]["sinks"]["hook"]["driver"].as_str().map(ToOwned::to_owned)
    })
    .await;
    let first = usize::from(driver == "relay-2");
    let (names, other) = (["relay-1", "relay-2"], 1 - first);
    let mut browser = Browser::start().await;
    browser.open(&format!("http://127.0.0.1:{}/", members[other].port())).await;
    browser.shows("#health", "working").await;
    browser.shows("#cluster tr", &format!("{} (this one) works1", names[other])).await;
    browser.shows("#cluster tr", &format!("{} works1", names[first])).await;
    browser.shows("#cluster tr", &format!("hook{}for", names[first])).await;
    browser.shows("#strip", &format!("driven by {}", names[first])).await;
    let bad = "return document.querySelectorAll('#strip .dot.bad, #cluster .bad').length";
    assert_eq!(browser.run(bad).await, 0, "what another member drives is no fault");

    members[first].kill().await;
    browser.shows("#cluster tr", &format!("{} not heard of for", names[first])).await;
    browser.shows("#cluster tr", &format!("hook{}for", names[other])).await;
    browser
        .until(
            "it is driven here",
            "return !document.getElementById('strip').textContent.includes('driven by')",
        )
        .await;
    browser.size(390, 844).await;
    browser.until("nothing is cut off", "return document.documentElement.scrollWidth <= 390").await;
    assert_eq!(browser.faults, [""; 0]);

    // What waits for a destination is in its chart.
    small.receiver.room(&room(0), Some(Answer::Status(503)));
    small.load(0, 10).await;
    until("the chart shows what is queued", PATIENCE, async || {
        let answer = members[other].get("/api/history").await?;
        let history: serde_json::Value =
            serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()?;
        let queued = history["sinks"]["hook"]["queued"].as_array()?;
        queued.iter().any(|most| most.as_u64() > Some(0)).then_some(())
    })
    .await;
}

/// It has nothing to subscribe to, and so no connection to Astro: that is no fault.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_without_a_channel_says_that_others_hold_them() {
    let server = NatsServer::start("").await;
    let small = Small::start().await;
    let url = server.url();
    let mut members = [1, 2].map(|number| {
        small.member(&format!("url = {url:?}\nmember = \"relay-{number}\"\ncopies = 1"), "")
    });
    for member in &mut members {
        member.start();
        member.ready().await;
    }
    let holder = until("both are there, and one holds the channel", PATIENCE, async || {
        let page = page(&members[0]).await?;
        let both = page["members"].as_object()?.len() == 2;
        page["channels"]["main"][0].as_str().filter(|_| both).map(ToOwned::to_owned)
    })
    .await;
    let other = &members[usize::from(holder == "relay-1")];
    let mut browser = Browser::start().await;
    browser.open(&format!("http://127.0.0.1:{}/", other.port())).await;
    browser.shows("#strip li:first-child", "held by other members").await;
    browser.shows("#health", "working").await;
    let dot = "return document.querySelector('#strip li .dot').className.trim()";
    assert_eq!(browser.run(dot).await, "dot", "neither good nor bad");
    assert_eq!(browser.faults, [""; 0]);
}
