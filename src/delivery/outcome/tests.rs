use std::{collections::VecDeque, sync::Arc};

use async_trait::async_trait;
use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{
    super::{
        flight::Undeliverable,
        requests::Begun,
        route::Route,
        status::{self, Status},
    },
    *,
};
use crate::{
    base::event::{self, Seq, Waited},
    config::SinkConfig,
    journal::Journal,
    sink::{self, Outgoing, Report, Sink, TimeLeft},
};

/// A sink whose reports are all that matters.
#[derive(Default)]
pub(in crate::delivery) struct Reporting {
    reports: VecDeque<Report>,
    /// What it has accepted when it is closed.
    accepted: Vec<(Seq, u8)>,
}

impl Reporting {
    pub(in crate::delivery) fn closing_with(accepted: impl Into<Vec<(Seq, u8)>>) -> Self {
        Self { accepted: accepted.into(), ..Self::default() }
    }
}

#[async_trait]
impl Sink for Reporting {
    async fn connect(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    async fn send(&mut self, events: &[Outgoing]) -> Result<usize, Failure> {
        Ok(events.len())
    }

    async fn acknowledged(&mut self) -> Result<usize, Failure> {
        std::future::pending().await
    }

    async fn close(&mut self, _: Instant) -> Vec<(Seq, u8)> {
        std::mem::take(&mut self.accepted)
    }

    fn report(&mut self) -> Report {
        self.reports.pop_front().unwrap_or_default()
    }
}

/// A delivery that is connected and has an event in flight for each of these ages in milliseconds.
fn reporting(ages: &[u64], reports: impl IntoIterator<Item = Report>) -> Delivery {
    let config = json!({ "type": "stdout", "start": "earliest" });
    let config: SinkConfig = serde_json::from_value(config).unwrap();
    let journal = Journal::in_memory(1 << 20);
    for age in ages {
        let none: Arc<str> = "".into();
        let event = event::own("channel.tips", &none, &none, &json!({}), 1);
        journal.append_waited(&mut vec![event], Waited::already(Duration::from_millis(*age)));
    }
    let route = Route::new("out", &config, sink::kind("stdout").unwrap()).unwrap();
    let sink =
        Box::new(Reporting { reports: reports.into_iter().collect(), ..Reporting::default() });
    let status = Arc::new(Status::default());
    let mut delivery = Delivery::new("out", &config, sink, route, journal, status).unwrap();
    if let Some(batch) = delivery.reader.ready(ages.len()) {
        delivery.take(&batch);
    }
    delivery.waiting.connected();
    delivery.link.connected = true;
    delivery.flight.handed = ages.len();
    delivery.flight.stale = false;
    delivery.show();
    delivery
}

fn in_flight(ages: &[u64]) -> Delivery {
    reporting(ages, [])
}

fn row(delivery: &Delivery) -> status::Sink {
    delivery.row.status.read(|now| now.sinks["out"].clone())
}

fn numbers(delivery: &Delivery) -> Vec<u64> {
    delivery.flight.events.iter().map(|event| event.record.seq).collect()
}

fn busy() -> Cause {
    Cause::Busy { wait: None, reason: "HTTP 429".to_owned() }
}

fn denied() -> Cause {
    Cause::Denied { reason: "no permission".to_owned() }
}

fn rejected() -> Cause {
    Cause::Rejected { reason: "too large".to_owned() }
}

#[tokio::test(start_paused = true)]
async fn what_is_accepted_moves_the_cursor_and_is_shown() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let mut delivery = metrics::with_local_recorder(&recorder, || in_flight(&[10, 10, 30, 20]));
    delivery.failure(&Failure::after(0, busy()));
    (delivery.flight.handed, delivery.flight.full) = (4, true);
    delivery.row.show(|row| row.rejected_in_a_row = 5);
    for _ in 0..2 {
        delivery.suspicion.closed(1, false);
    }
    tokio::time::advance(Duration::from_secs(1)).await;
    delivery.outcome(Ok(3));
    assert_eq!((delivery.reader.cursor, delivery.flight.handed), (3, 1));
    assert_eq!(numbers(&delivery), [4]);
    assert!(!delivery.flight.full && !delivery.suspicion.isolates(1));
    assert_eq!(delivery.link.silent_since, Instant::now());
    let shown = row(&delivery);
    assert_eq!((shown.state, shown.delivered, shown.rejected_in_a_row), ("up", 3, 0));
    assert_eq!((shown.delivery_ms, shown.slowest_ms), (3050, 1030));
    assert!(shown.last_delivered.is_some());
    // More cannot be accepted than is in flight.
    delivery.reader.taken(7);
    delivery.outcome(Ok(9));
    // With nothing in flight, what was not wanted is done, too.
    assert_eq!((delivery.reader.cursor, delivery.flight.handed), (7, 0));
    assert_eq!(row(&delivery).slowest_ms, 1030);
    // Each event is measured once, with its own time.
    let text = recorder.handle().render();
    for line in [
        "astro_relay_delivered_total{sink=\"out\"} 4",
        "astro_relay_delivery_seconds_count{sink=\"out\"} 4",
        "astro_relay_delivery_seconds_sum{sink=\"out\"} 4.07",
    ] {
        assert!(text.lines().any(|shown| shown.starts_with(line)), "{line}\n{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn room_at_the_sink_is_no_failure_and_a_report_of_nothing_is_one() {
    let mut delivery = in_flight(&[0]);
    delivery.flight.full = true;
    delivery.outcome(Ok(0));
    assert_eq!((row(&delivery).state, delivery.flight.full), ("up", false));
    delivery.outcome(Ok(0));
    assert_eq!((row(&delivery).state, delivery.flight.handed), ("down", 0));
}

#[tokio::test(start_paused = true)]
async fn an_event_is_done_when_all_its_messages_are() {
    let mut delivery = in_flight(&[0, 0]);
    let mut second = delivery.flight.events[0].clone();
    second.part = 1;
    delivery.flight.events.insert(1, second);
    delivery.flight.handed = 3;
    delivery.outcome(Ok(1));
    assert_eq!((delivery.reader.cursor, row(&delivery).delivered), (0, 1));
    delivery.outcome(Ok(1));
    assert_eq!((delivery.reader.cursor, row(&delivery).delivered), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_message_that_was_accepted_is_not_rendered_again() {
    let mut delivery = in_flight(&[0, 0]);
    // The first message of the first event is done, the second is lost with its connection.
    delivery.flight.events[0].part = 1;
    delivery.render_again();
    assert_eq!(numbers(&delivery), [2], "this kind has no second one");
}

#[tokio::test(start_paused = true)]
async fn a_rejection_is_no_silence() {
    let mut delivery = in_flight(&[0, 0, 0]);
    for _ in 0..2 {
        tokio::time::advance(Duration::from_secs(100)).await;
        let rejected = Cause::Rejected { reason: "no".to_owned() };
        delivery.outcome(Err(Failure::after(0, rejected)));
        assert_eq!(delivery.link.silent_since, Instant::now());
    }
}

#[test]
fn what_was_found_out_with_another_configuration_is_forgotten() {
    let status = Arc::new(Status::default());
    status.sink("out", |row| {
        (row.unheard_in_a_row, row.rejected_in_a_row, row.considered) = (35, 3, 70);
        row.remarks = vec!["requests are not signed".to_owned()];
        row.next_attempt = Some(7);
        (row.last_error, row.last_error_at) = (Some("connection refused".to_owned()), Some(7));
    });
    let config = json!({ "type": "stdout", "start": "earliest" });
    let config: SinkConfig = serde_json::from_value(config).unwrap();
    let route = Route::new("out", &config, sink::kind("stdout").unwrap()).unwrap();
    let journal = Journal::in_memory(1 << 20);
    let sink = Box::new(Reporting::default());
    let _delivery =
        Delivery::new("out", &config, sink, route, journal, Arc::clone(&status)).unwrap();
    let row = status.read(|now| now.sinks["out"].clone());
    assert_eq!((row.unheard_in_a_row, row.rejected_in_a_row, row.considered), (0, 0, 0));
    assert_eq!((row.remarks.len(), row.next_attempt), (0, None));
    assert_eq!((row.last_error, row.last_error_at), (None, None));
}

#[tokio::test(start_paused = true)]
async fn the_cursor_does_not_pass_an_undeliverable_event_nor_move_for_a_request() {
    let replay = || Begun::Replay { number: 1, position: None };
    for (undeliverable, request, behind, cursor) in [
        (false, None, &[][..], 3),
        (true, None, &[2, 3], 0),
        (false, Some(replay()), &[], 0),
        (true, Some(replay()), &[], 0),
    ] {
        let mut delivery = in_flight(&[0, 0, 0, 0]);
        if undeliverable {
            let record = delivery.flight.events.pop_front().unwrap().record;
            delivery
                .flight
                .undeliverable
                .push_back(Undeliverable { record, reason: String::new() });
        }
        delivery.flight.request = request;
        delivery.accepted(if undeliverable { 2 } else { 3 });
        assert_eq!(delivery.flight.behind, behind);
        assert_eq!(delivery.reader.cursor, cursor);
    }
}

#[tokio::test(start_paused = true)]
async fn a_rejected_event_is_set_aside_and_the_others_stay_in_flight() {
    let mut delivery = in_flight(&[0, 0, 0]);
    delivery.failure(&Failure::after(0, busy()));
    (delivery.flight.handed, delivery.flight.full) = (3, true);
    delivery.failure(&Failure::after(1, rejected()));
    assert_eq!((numbers(&delivery), delivery.flight.handed), (vec![3], 1));
    assert_eq!(delivery.reader.cursor, 2);
    assert!(!delivery.flight.full && delivery.link.connected);
    let shown = row(&delivery);
    // Without a directory there are no dead letters.
    assert_eq!((shown.state, shown.delivered, shown.lost), ("up", 1, 1));
    assert_eq!((shown.rejected_in_a_row, shown.dead_letters), (1, 0));
    assert_eq!(delivery.reader.source.last(), 3);
    // With none accepted before it, and room only after it.
    delivery.flight.full = true;
    delivery.failure(&Failure::after(0, rejected()));
    assert!(delivery.flight.events.is_empty() && !delivery.flight.full);
    assert_eq!(row(&delivery).rejected_in_a_row, 2);
    delivery.report_rejected(false);
    assert_eq!(delivery.reader.source.last(), 4, "one report of both");
    // Of a report that is rejected, too, there is no other.
    let report = event::lost("rejected", "out", 1);
    delivery.rejected.add(&delivery.row, &report);
    delivery.report_rejected(true);
    assert_eq!((delivery.reader.source.last(), row(&delivery).lost), (4, 2));
}

#[tokio::test(start_paused = true)]
async fn an_event_of_several_messages_is_rejected_once() {
    let mut delivery = in_flight(&[0, 0]);
    for part in [1, 2] {
        let mut message = delivery.flight.events[0].clone();
        message.part = part;
        delivery.flight.events.insert(usize::from(part), message);
    }
    // The third of its messages is not sent yet.
    delivery.flight.handed = 2;
    delivery.failure(&Failure::after(0, rejected()));
    delivery.failure(&Failure::after(0, rejected()));
    assert_eq!((numbers(&delivery), delivery.flight.handed), (vec![2], 0));
    let shown = row(&delivery);
    assert_eq!((shown.lost, shown.rejected_in_a_row), (1, 1));
    assert_eq!(delivery.reader.cursor, 1);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_waits_to_be_a_dead_letter_is_not_accepted_with_another_of_its_messages() {
    let mut delivery = in_flight(&[0, 0]);
    let first = delivery.flight.events[0].clone();
    // Its second message is in flight, the first one rejected.
    delivery.flight.events[0].part = 1;
    delivery.flight.handed = 1;
    delivery.flight.reject(1);
    let undeliverable = Undeliverable { record: first.record, reason: String::new() };
    delivery.flight.undeliverable.push_back(undeliverable);
    delivery.accepted(1);
    assert_eq!((delivery.flight.behind.len(), delivery.reader.cursor), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_was_not_in_flight_is_not_rejected() {
    let mut delivery = in_flight(&[0]);
    delivery.flight.handed = 0;
    delivery.failure(&Failure::after(0, rejected()));
    assert_eq!((row(&delivery).state, row(&delivery).lost), ("down", 0));
    assert_eq!(numbers(&delivery), [1]);
    assert!(!delivery.link.connected);
    // With nothing to send there is nothing to reject and nothing to wait for.
    for cause in [rejected(), busy()] {
        let mut delivery = in_flight(&[0]);
        delivery.failure(&Failure::after(0, denied()));
        delivery.flight.events.clear();
        delivery.failure(&Failure::after(0, cause));
        assert_eq!(row(&delivery).state, "up");
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_failure_nothing_is_in_flight() {
    for (cause, word, state, connected) in [
        (busy(), "busy", "busy", true),
        (denied(), "denied", "held", true),
        (Cause::Down("reset".into()), "down", "down", false),
        (Cause::Gone { reason: "410".to_owned() }, "gone", "gone", false),
    ] {
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            let mut delivery = in_flight(&[0, 0]);
            delivery.flight.full = true;
            delivery.row.show(|row| row.since = 1);
            delivery.outcome(Err(Failure::after(1, cause)));
            assert_eq!((delivery.flight.handed, delivery.reader.cursor), (0, 1));
            assert!(delivery.flight.stale && !delivery.flight.full);
            assert_eq!(delivery.link.connected, connected, "{state}");
            let shown = row(&delivery);
            assert_eq!((shown.state, shown.delivered), (state, 1));
            assert!(shown.next_attempt.is_some() && shown.last_error_at.is_some());
            assert!(shown.since > 1 && shown.last_error.is_some());
            let text = recorder.handle().render();
            let up = format!("astro_relay_sink_up{{sink=\"out\"}} {}", u8::from(state == "busy"));
            assert!(text.contains(&up), "{state}: {text}");
            let retry = format!("retries_total{{sink=\"out\",cause=\"{word}\"}} 1");
            assert!(text.contains(&retry), "{state}: {text}");
            // What went wrong last stays to be read.
            delivery.row.show(|row| {
                (row.since, row.next_attempt, row.last_error) = (1, None, None);
            });
            delivery.show();
            let again = row(&delivery);
            assert!(again.next_attempt.is_some());
            assert_eq!((again.since, again.last_error.is_some()), (1, true));
            delivery.waiting.fault = None;
            delivery.show();
            let well = row(&delivery);
            assert_eq!((well.state, well.last_error.is_some()), ("up", true));
            assert!(well.since > 1);
            assert!(recorder.handle().render().contains("astro_relay_sink_up{sink=\"out\"} 1"));
        });
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_fails_is_given_back_unless_its_event_may_be_to_blame() {
    // How many events were blamed before.
    for (cause, blamed, given_back) in [
        (busy(), 0, true),
        (denied(), 0, true),
        (Cause::Down("no answer".into()), 0, true),
        (Cause::closed("reset"), 0, false),
        (Cause::closed("reset"), 3, true),
    ] {
        let mut delivery = in_flight(&[0]);
        delivery.flight.request = Some(Begun::Letter { number: 1, rejected: false });
        for _ in 0..blamed {
            delivery.suspicion.blamed();
        }
        let text = describe(&cause);
        let shown = if matches!(cause, Cause::Down(_)) { "down" } else { "up" };
        delivery.failure(&Failure::after(0, cause));
        let flight = (delivery.flight.is_empty(), delivery.flight.request.is_none());
        assert_eq!(flight, (given_back, given_back), "{text}");
        assert_eq!(delivery.requests.resume_at().is_some(), given_back, "{text}");
        assert_eq!(row(&delivery).state, shown, "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_stays_busy_and_accepts_nothing_is_not_up() {
    let recorder = PrometheusBuilder::new().build_recorder();
    metrics::with_local_recorder(&recorder, || {
        let mut delivery = in_flight(&[0]);
        for up in [1, 1, 0] {
            delivery.flight.handed = 1;
            delivery.failure(&Failure::after(0, busy()));
            assert_eq!(row(&delivery).state, "busy");
            let text = recorder.handle().render();
            let line = format!("astro_relay_sink_up{{sink=\"out\"}} {up}\n");
            assert!(text.contains(&line), "{line}\n{text}");
            // Another state between is no sign that it takes events.
            delivery.show_state("down", |_| ());
            delivery.row.show(|row| {
                row.left_up = row.left_up.map(|at| at.before(Duration::from_secs(40)));
            });
        }
    });
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_takes_no_connection_now_is_down() {
    let recorder = PrometheusBuilder::new().build_recorder();
    metrics::with_local_recorder(&recorder, || {
        let mut delivery = in_flight(&[0]);
        delivery.disconnect();
        let wait = Some(Duration::from_mins(2));
        let cause = Cause::Busy { wait, reason: "it is not available (0x88)".to_owned() };
        delivery.failed(&cause, true);
        let shown = row(&delivery);
        assert_eq!(shown.state, "down");
        assert!(shown.last_error.unwrap().contains("it is not available (0x88)"));
        let text = recorder.handle().render();
        assert!(text.contains("astro_relay_sink_up{sink=\"out\"} 0"), "{text}");
        assert!(text.contains("retries_total{sink=\"out\",cause=\"busy\"} 1"), "{text}");
        // It waits as long as it was asked to, and with a connection all is well.
        let waits = delivery.waiting.reconnect_at().unwrap() - Instant::now();
        assert!(waits >= Duration::from_mins(2), "{waits:?}");
        delivery.connected();
        assert_eq!(row(&delivery).state, "up");
    });
}

#[tokio::test(start_paused = true)]
async fn waits_grow_until_an_event_is_accepted() {
    let mut delivery = in_flight(&[0, 0, 0]);
    let mut held = |accepted| {
        delivery.failure(&Failure::after(accepted, denied()));
        delivery.flight.handed = delivery.flight.events.len();
        (delivery.waiting.resume_at().unwrap() - Instant::now()).as_secs()
    };
    assert_eq!([held(0), held(0), held(1), held(0)], [5, 10, 5, 10]);
}

#[tokio::test(start_paused = true)]
async fn only_an_event_that_was_in_flight_is_blamed_for_closes() {
    // How many events are in flight, how many of them are accepted; what comes of it.
    for (handed, isolated, accused) in [(1, true, true), (2, true, false), (0, false, false)] {
        let mut delivery = in_flight(&[0, 0]);
        for _ in 0..9 {
            delivery.flight.handed = handed;
            delivery.failure(&Failure::after(0, Cause::closed("reset")));
            tokio::time::advance(Duration::from_mins(1)).await;
        }
        assert_eq!(delivery.suspicion.isolates(1), isolated, "{handed}");
        assert_eq!(delivery.suspicion.accused.is_some(), accused, "{handed}");
    }
    // Other failures are not its fault, and a close with nothing in flight excuses it.
    let mut delivery = in_flight(&[0]);
    for round in 0..20 {
        delivery.flight.handed = usize::from(round % 5 > 0);
        delivery.failure(&Failure::after(0, Cause::closed("reset")));
        tokio::time::advance(Duration::from_mins(1)).await;
    }
    assert!(delivery.suspicion.isolates(1) && delivery.suspicion.accused.is_none());
    let mut delivery = in_flight(&[0]);
    for _ in 0..9 {
        delivery.flight.handed = 1;
        delivery.failure(&Failure::down("no answer"));
    }
    assert!(!delivery.suspicion.isolates(1));
}

#[tokio::test(start_paused = true)]
async fn an_accused_event_is_excused_by_a_close_with_nothing_in_flight() {
    let mut delivery = in_flight(&[0]);
    while delivery.suspicion.accused.is_none() {
        delivery.flight.handed = 1;
        delivery.failure(&Failure::after(0, Cause::closed("reset")));
        tokio::time::advance(Duration::from_mins(1)).await;
    }
    // A connect that fails in between proves nothing, for or against it.
    delivery.failed(&Cause::Down("refused".into()), true);
    assert!(delivery.suspicion.accused.is_some());
    delivery.flight.handed = 0;
    delivery.failure(&Failure::after(0, Cause::closed("reset")));
    delivery.try_accused().await;
    assert_eq!((numbers(&delivery), row(&delivery).lost), (vec![1], 0));
}

#[tokio::test(start_paused = true)]
async fn what_a_sink_reports_is_counted_and_shown() {
    let report = |counts: &[(&'static str, u64)], facts: Option<&str>| Report {
        counts: counts.to_vec(),
        facts: facts.map(|fact| vec![fact.to_owned()]),
    };
    let reports = [
        report(&[("unheard", 2)], Some("old")),
        report(&[("unheard", 1), ("other", 7)], None),
        report(&[("other", 1)], Some("new")),
        report(&[("receivers", 3)], None),
        report(&[("unheard", 4)], None),
        report(&[("receivers", 1), ("unheard", 1)], None),
    ];
    let recorder = PrometheusBuilder::new().build_recorder();
    metrics::with_local_recorder(&recorder, || {
        let mut delivery = reporting(&[], reports);
        for (unheard, remark) in
            [(2, "old"), (3, "old"), (3, "new"), (0, "new"), (4, "new"), (0, "new")]
        {
            delivery.report();
            let shown = row(&delivery);
            assert_eq!((shown.unheard_in_a_row, &*shown.remarks), (unheard, &[remark.into()][..]));
        }
    });
    // The sink is asked when events are accepted.
    let mut delivery = reporting(&[0], [report(&[], Some("fact"))]);
    delivery.outcome(Ok(1));
    assert_eq!(row(&delivery).remarks, ["fact"]);
    let text = recorder.handle().render();
    for (note, count) in [("unheard", 8), ("other", 8), ("receivers", 4)] {
        let line = format!("sink_notes_total{{sink=\"out\",note=\"{note}\"}} {count}");
        assert!(text.contains(&line), "{line}\n{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_becomes_too_old_while_it_waits_to_be_sent_is_skipped() {
    let mut delivery = in_flight(&[10, 10, 10]);
    delivery.flight.handed = 1;
    for event in delivery.flight.events.iter_mut().take(2) {
        event.expires_in = Some(TimeLeft::from_now(Duration::from_secs(2)));
    }
    tokio::time::advance(Duration::from_secs(3)).await;
    delivery.turn(&CancellationToken::new()).await;
    // What is in flight stays there.
    assert_eq!((numbers(&delivery), delivery.flight.handed), (vec![1, 3], 2));
    delivery.outcome(Ok(2));
    assert_eq!(delivery.reader.cursor, 3);
    assert!(delivery.flight.is_empty() && delivery.flight.bytes == 0);
}
