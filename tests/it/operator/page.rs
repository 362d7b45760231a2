//! The page in a real browser: each of its states, what can be done on it, and that what viewers write is
//! text and nothing else.

use astro_sim::End;
use serde_json::{Value, json};

use super::{ADMIN, PATIENCE, ROOM, Running, channel};
use crate::support::{
    browser::Browser,
    receiver::{Answer, Receiver},
    wait::until,
};

/// Would run in a page that takes text for markup, in one way or another.
const EVIL: &str = "<script>window.evil=1</script><img src=x onerror='window.evil=1'>\
                    \"><svg onload=window.evil=1> javascript:window.evil=1 {{7*7}} </pre></details>";

const TOPICS: &[&str] = &[
    "channel.activities", "channel.tips", "channel.session.update", "channel.session.reset",
    "channel.chat.message",
];

/// How many elements a selector finds, as a script.
fn count(selector: &str, wanted: usize) -> String {
    format!("return document.querySelectorAll({selector:?}).length === {wanted}")
}

fn hook(receiver: &Receiver) -> String {
    format!(
        "[sinks.shop]\ntype = \"webhook\"\nurl = {:?}\nallow_addresses = [\"127.0.0.0/8\"]\n\
         payload = \"data\"\nbackoff_max = \"1s\"\ntopics = [\"channel.activities\", \"channel.tips\"]\n",
        receiver.url()
    )
}

fn activity(kind: &str, name: &str, more: &Value) -> Value {
    let mut data = json!({ "username": name, "displayName": name });
    data.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({ "type": kind, "provider": "twitch", "data": data })
}

/// Opens the page of a relay that has said everything once.
async fn opened(relay: &Running) -> Browser {
    let mut browser = Browser::start().await;
    browser.open(&relay.url("/")).await;
    browser.shows("#health", "working").await;
    browser
}

/// Types into a field.
async fn fill(browser: &mut Browser, selector: &str, text: &str) {
    let script = format!(
        "const field = document.querySelector({selector:?}); field.value = {text:?}; \
         field.dispatchEvent(new Event('input')); field.dispatchEvent(new Event('change'));"
    );
    browser.run(&script).await;
}

/// Presses a button that needs the token, and gives it; a wrong one is refuted at once.
async fn admit(browser: &mut Browser) {
    browser.until("the token is asked for", &count("#token", 1)).await;
    fill(browser, "#token", "wrong").await;
    browser.click("#dialog", "Continue").await;
    browser.shows("#dialog [role=alert]", "this is not the admin token").await;
    fill(browser, "#token", ADMIN).await;
    browser.click("#dialog", "Continue").await;
}

#[tokio::test]
async fn the_page_shows_what_happens_and_the_session_and_holds_still_while_it_is_read() {
    let receiver = Receiver::start();
    let relay = Running::start(&format!("{}{}", channel(TOPICS), hook(&receiver))).await;
    relay.subscribed(TOPICS.len()).await;
    relay.sink_is("shop", "up").await;
    let mut browser = opened(&relay).await;

    // One thing that happened is one row, in words; what changed in the session with it is not.
    relay.sim.activity(
        ROOM,
        activity("tip", "Ann", &json!({ "amount": 5.5, "currency": "USD", "message": "hi" })),
    );
    relay.sim.publish("channel.tips", ROOM, json!({ "_id": "t", "donation": { "user": { "username": "Ann" }, "amount": 5.5, "currency": "USD" } }));
    relay.sim.publish("channel.chat.message", ROOM, json!({ "text": "chat of nobody" }));
    browser.until("the tip is a row", &count("#stream .event", 1)).await;
    browser.shows("#stream .what", "Ann tipped 5.50 USD").await;
    browser.shows("#stream q", "hi").await;
    // The gifts of one bomb are one row.
    for n in 0..3 {
        let mut gift = activity(
            "subscriber",
            &format!("Viewer{n}"),
            &json!({ "gifted": true, "sender": "Bob", "tier": "1000" }),
        );
        gift["activityGroup"] = "bomb".into();
        relay.sim.activity(ROOM, gift);
    }
    browser.shows("#stream .what", "and 2 more").await;
    browser.until("it is one row", &count("#stream .event", 2)).await;
    browser.shows("#sessions .tiles", "5.50").await;
    browser.shows("#sessions .tiles", "latest: Ann 5.50").await;
    let alone = "return document.getElementById('cluster-card').hidden";
    assert_eq!(browser.run(alone).await, true, "one relay alone shows no cluster");

    figures(&mut browser).await;
    choose_and_search(&mut browser).await;
    hold_still(&mut browser, &relay).await;
    keyboard(&mut browser).await;
    layouts(&mut browser).await;
    assert_eq!(browser.faults, [""; 0]);
}

/// What is shown of times, and of what the relay says: with a status as it is in other moments.
async fn figures(browser: &mut Browser) {
    let midnight =
        "const at = new Date().setHours(0, 5, 0, 0); return [clock(at), running(at).title]";
    let shown = browser.run(midnight).await;
    assert_eq!(shown[0], "00:05:00", "just after midnight");
    assert!(shown[1].as_str().unwrap().ends_with("00:05:00"), "{shown}");
    // Events come while another connection takes over.
    let moving = "const status = structuredClone(latest); \
                  Object.values(status.pages.connections)[0].state = 'moving'; \
                  return astroNode(status).querySelector('.dot').className";
    assert_eq!(browser.run(moving).await, "dot good");
    // A member of a cluster knows how many events wait in the log, and not for how long.
    let queued = "const [name, sink] = sinksOf(latest)[0]; \
                  const words = (more) => sinkNode([name, { ...sink, lag_events: 3, ...more }]).textContent; \
                  return [words({ lag_seconds: 7 }), words({ lag_seconds: 0 })].map((text) => text.includes('oldest'))";
    assert_eq!(browser.run(queued).await, json!([true, false]));
    // Nor are those the newest of its own journal.
    let behind = "const status = structuredClone(latest); \
                  for (const sink of Object.values(status.pages.sinks)) sink.lag_events = 1000; \
                  const words = () => { drawLag(status); return document.querySelector('#stream').textContent.includes('is behind'); }; \
                  const alone = words(); status.pages.cluster = {}; return [alone, words()]";
    assert_eq!(browser.run(behind).await, json!([true, false]));
}

/// Chips choose kinds, and the search finds words and topics.
async fn choose_and_search(browser: &mut Browser) {
    browser.click("#chips", "tips").await;
    browser.until("without tips", &count("#stream .event", 1)).await;
    browser.click("#chips", "tips").await;
    browser.click("#chips", "chat").await;
    browser.shows("#stream .what", "chat of nobody").await;
    fill(browser, "#search", "ann").await;
    browser.until("what is searched for, on whatever topic", "return document.querySelectorAll('#stream .event').length > 1 && [...document.querySelectorAll('#stream .what')].every((row) => !row.textContent.includes('nobody'))").await;
    fill(browser, "#search", "channel.tips").await;
    browser.until("a topic", &count("#stream .event", 1)).await;
    fill(browser, "#search", "channel.**").await;
    browser
        .until(
            "topics of any depth",
            "return document.querySelectorAll('#stream .event').length > 2",
        )
        .await;
    fill(browser, "#search", "").await;
}

/// An opened row stays where it is; what comes meanwhile is counted.
async fn hold_still(browser: &mut Browser, relay: &Running) {
    browser.run("document.querySelector('#stream .event').click()").await;
    browser.until("it is opened, with all of its group", &count("#stream pre", 3)).await;
    relay.sim.activity(ROOM, activity("follow", "Cara", &json!({})));
    browser.shows("#held", "1 new").await;
    browser
        .until(
            "it holds still",
            "return !document.querySelector('#stream').textContent.includes('Cara')",
        )
        .await;
    browser.run("document.getElementById('held').click()").await;
    browser.shows("#stream li:first-child .what", "Cara followed").await;
    browser.until("and goes on", "return document.getElementById('held').hidden").await;
}

/// One stop in the list of events, arrows within it, and a name for each region.
async fn keyboard(browser: &mut Browser) {
    assert_eq!(
        browser.run("return document.querySelectorAll('#stream [tabindex=\"0\"]').length").await,
        1
    );
    browser.run("document.querySelector('#stream [tabindex=\"0\"]').focus()").await;
    browser.press("ArrowDown").await;
    let at =
        "return [...document.querySelectorAll('#stream .event')].indexOf(document.activeElement)";
    assert_eq!(browser.run(at).await, 1);
    browser.press("Enter").await;
    browser
        .until(
            "Enter opens",
            "return document.activeElement.getAttribute('aria-expanded') === 'true'",
        )
        .await;
    browser.press("Enter").await;
    browser.press("Tab").await;
    assert_eq!(
        browser
            .run("return document.getElementById('stream').contains(document.activeElement)")
            .await,
        false
    );
    let unnamed = "return [...document.querySelectorAll('section, [role=img], [role=group], input, select, dialog')]\
                   .filter((one) => !one.getAttribute('aria-label') && !one.getAttribute('aria-labelledby') && !one.closest('label')).length";
    assert_eq!(browser.run(unnamed).await, 0);
    let live = "return ['health', 'results'].every((id) => document.getElementById(id).getAttribute('role') === 'status') \
                && document.getElementById('reason-list').getAttribute('aria-live') === 'polite'";
    assert_eq!(browser.run(live).await, true);
}

/// Light and dark differ; on a phone nothing is wider than the screen, and events come early.
async fn layouts(browser: &mut Browser) {
    browser.shows("#charts", "No gaps").await;
    let ground = "return getComputedStyle(document.body).backgroundColor";
    browser.scheme("light").await;
    let light = browser.run(ground).await;
    browser.scheme("dark").await;
    assert_ne!(browser.run(ground).await, light);
    browser.size(390, 844).await;
    browser.until("nothing is cut off", "return document.documentElement.scrollWidth <= 390").await;
    let top =
        "return document.querySelector('#stream').getBoundingClientRect().top + window.scrollY";
    let top = browser.run(top).await.as_f64().unwrap();
    assert!(top < 500.0, "events begin at {top}");
    let lines = "return [...document.querySelectorAll('#strip li')].every((one) => one.getBoundingClientRect().height < 60)";
    assert_eq!(browser.run(lines).await, true, "one line a node");
    browser.size(1280, 1400).await;
}

#[tokio::test]
async fn trouble_is_shown_with_what_can_be_done_and_each_action_says_what_came_of_it() {
    let receiver = Receiver::start();
    receiver.script([Answer::Status(422)]);
    let relay = Running::start(&format!("{}{}", channel(TOPICS), hook(&receiver))).await;
    relay.subscribed(TOPICS.len()).await;
    relay.sink_is("shop", "up").await;
    let mut browser = opened(&relay).await;

    // A dead letter is a reason, and deleting asks.
    relay.sim.activity(ROOM, activity("follow", "Ann", &json!({})));
    browser.shows("#dead", "1 event refused").await;
    browser.shows("#reason-list", "shop").await;
    browser.shows("#strip", "1 refused").await;
    letters_are_read_once(&mut browser).await;
    browser.click("#dead", "Delete all").await;
    browser.shows("#dialog", "cannot be had back").await;
    browser.click("#dialog", "Keep").await;
    browser.click("#dead", "Retry all").await;
    admit(&mut browser).await;
    browser.shows("#results", "1 dead letter of shop to be tried again").await;
    browser
        .until("it is delivered and gone", "return document.getElementById('dead-card').hidden")
        .await;

    act_with_the_token(&mut browser, &relay, &receiver).await;
    outages(&mut browser, relay, receiver).await;
    assert_eq!(browser.faults, [""; 0]);
}

/// While none comes and none goes, the dead letters are not read with each status.
async fn letters_are_read_once(browser: &mut Browser) {
    let requests = |path: &str| {
        format!(
            "performance.getEntriesByType('resource').filter((one) => new URL(one.name).pathname === {path:?}).length"
        )
    };
    let (letters, statuses) = (requests("/api/dead-letters"), requests("/status"));
    let before = browser.run(&format!("return [{letters}, {statuses}]")).await;
    let more = format!("return {statuses} >= {}", before[1].as_u64().unwrap() + 3);
    browser.until("the status is read some times more", &more).await;
    assert_eq!(browser.run(&format!("return {letters}")).await, before[0]);
}

/// A test event, a replay and a reload: each says what came of it.
async fn act_with_the_token(browser: &mut Browser, relay: &Running, receiver: &Receiver) {
    browser.click("header", "Send a test").await;
    browser.run("document.querySelectorAll('#dialog select')[0].value = 'raid'").await;
    browser.click("#dialog", "Send").await;
    browser.shows("#results", "Test raid. shop: accepted").await;
    browser.shows("#dialog", "accepted").await;
    browser.click("#dialog", "Close").await;
    browser.shows("#stream .side", "shop ✓").await;

    // A replay says first what it would send.
    browser.click("#strip", "Journal").await;
    browser.click("#dialog", "Replay to shop").await;
    browser.run("document.querySelectorAll('#dialog input')[1].value = 'false'").await;
    browser.click("#dialog", "Preview").await;
    browser.shows("#dialog", "0 events would be sent").await;
    browser.run("document.querySelectorAll('#dialog input')[1].value = ''").await;
    browser.click("#dialog", "Preview").await;
    browser.shows("#dialog", "1 event would be sent").await;
    browser.click("#dialog .tools", "Replay").await;
    browser.shows("#results", "The replay to shop was requested").await;
    relay.until("it comes again", |_| receiver.received().len() >= 4).await;

    // A reload says what it brought, and a bad one what is wrong.
    browser.click("header", "Reload").await;
    browser.shows("#results", "Nothing has changed").await;
    relay.rewrite("nonsense = ");
    browser.click("header", "Reload").await;
    browser.shows("#results", "was rejected").await;
    browser.shows("#reload-report", "was rejected").await;
    relay.rewrite(&format!("{}{}", channel(TOPICS), hook(receiver)));
    browser.click("header", "Reload").await;
    browser
        .until("the report goes", "return document.getElementById('reload-report').hidden")
        .await;
}

/// A sink that is down, Astro that is away, and at last the relay itself.
async fn outages(browser: &mut Browser, relay: Running, mut receiver: Receiver) {
    // Since when, and try now.
    receiver.kill();
    relay.sim.activity(ROOM, activity("follow", "Bob", &json!({})));
    relay.sink_is("shop", "down").await;
    browser.shows("#health", "not working").await;
    browser.shows("#strip .bad", "down for").await;
    browser.click("#reason-list", "Try now").await;
    browser.shows("#results", "shop is tried now").await;
    browser.click("#strip", "shop").await;
    browser.shows("#dialog", "Raw values").await;
    browser.click("#dialog", "Close").await;

    // Astro is away.
    relay.sim.listen(false);
    relay.sim.end(None, End::Reset);
    browser.shows("#reason-list", "Astro").await;
    browser
        .until(
            "the strip says so",
            "return document.querySelector('#strip li .dot').classList.contains('bad')",
        )
        .await;
    browser
        .until(
            "and since when",
            "return latest.pages.gaps_running.length > 0 && / for \\d/.test(document.querySelector('#strip li').textContent)",
        )
        .await;

    // The relay itself is gone: at once, in grey, and no clock goes on.
    drop(relay);
    browser.shows("#old", "No answer from the relay since").await;
    browser.shows("#health", "no answer").await;
    let greyed = "return getComputedStyle(document.querySelector('.columns')).opacity < 1";
    assert_eq!(browser.run(greyed).await, true);
    let clocks = "const read = () => [...document.querySelectorAll('[data-time]')].map((one) => one.textContent).join(); \
                  const before = read(); tick(); return before === read()";
    assert_eq!(browser.run(clocks).await, true);
}

#[tokio::test]
async fn a_wrong_token_is_forgotten_and_too_many_are_no_outage() {
    let relay = Running::start_at("0.0.0.0:0", &channel(&["channel.tips"])).await;
    let page = relay.url("/").replace("0.0.0.0", "127.0.0.1");
    let mut browser = Browser::start().await;
    // Of the same origin, and without a script.
    browser.open(&format!("{page}livez")).await;
    browser.until("it is there", "return location.pathname === '/livez'").await;
    browser.run("sessionStorage.setItem('token', 'wrong')").await;
    browser.open(&page).await;
    browser.until("the token is asked for", &count("#token", 1)).await;
    let remembered = browser.run("return [token, sessionStorage.getItem('token')]").await;
    assert_eq!(remembered, json!(["", ""]));

    until("no token is looked at any more", PATIENCE, async || {
        let request = relay.client.get(relay.url("/status")).bearer_auth("wrong");
        (request.send().await.unwrap().status() == 429).then_some(())
    })
    .await;
    let words = "Too many wrong tokens: try again in";
    fill(&mut browser, "#token", ADMIN).await;
    browser.click("#dialog", "Continue").await;
    browser.shows("#dialog [role=alert]", words).await;
    browser.click("#dialog", "Close").await;
    browser.run("token = 'wrong'").await;
    browser.shows("#health", words).await;
    let state = "return [document.getElementById('old').hidden, token, barred > Date.now()]";
    assert_eq!(browser.run(state).await, json!([true, "wrong", true]));
    assert_eq!(browser.faults, [""; 0]);
}

#[tokio::test]
async fn what_viewers_write_is_text_and_nothing_else() {
    let receiver = Receiver::start();
    receiver.script([Answer::Status(422)]);
    let relay = Running::start(&format!("{}{}", channel(&["channel.tips"]), hook(&receiver))).await;
    relay.subscribed(1).await;
    relay.sink_is("shop", "up").await;
    let user = json!({ "username": EVIL, "email": "donor@example.org" });
    let data = json!({ "n": 1, "donation": { "user": user, "message": EVIL, "amount": 5 } });
    relay.sim.publish("channel.tips", ROOM, &data);
    let mut browser = Browser::start().await;
    browser.open(&relay.url("/")).await;

    browser.until("the event is shown", &count("#stream .event", 1)).await;
    browser.shows("#dead", "1 event refused").await;
    browser.run("document.querySelector('#stream .event').click(); document.getElementById('review').click(); \
                 document.querySelector('#dialog details').open = true").await;
    browser.until("the whole event is shown", &count("#stream pre, #dialog pre", 2)).await;
    let shown = browser.run("return document.body.textContent").await;
    assert!(shown.as_str().unwrap().contains("<script>window.evil=1</script>"), "as text: {shown}");
    assert!(!shown.as_str().unwrap().contains("donor@example.org"));
    let foreign = "main script, main img, main iframe, dialog img, dialog svg, [onload], [onerror], main svg:not(.icon, .chart, .outages svg)";
    assert_eq!(browser.run(&count(foreign, 0)).await, true, "no element was made of it");
    assert_eq!(browser.run("return window.evil === undefined").await, true);
    // Nor could it: the policy holds even where a script of ours would let something in.
    let forced = "try { document.body.innerHTML += '<img src=x onerror=\"window.evil=1\">'; \
                  return 'taken' } catch (error) { return error.name }";
    assert_eq!(browser.run(forced).await, "TypeError", "trusted types");
    // What is in JSON and no event says the same.
    let rows = "return document.querySelector('#stream .what').textContent.includes('<img')";
    assert_eq!(browser.run(rows).await, true);
    assert_eq!(browser.faults, [""; 0]);
}
