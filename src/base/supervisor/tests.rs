use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use super::{heartbeat::HUNG, *};

fn counting(starts: &Arc<AtomicUsize>, run: fn(CancellationToken) -> Work) -> Factory {
    let starts = Arc::clone(starts);
    Box::new(move |stop| {
        starts.fetch_add(1, Ordering::SeqCst);
        Ok(run(stop))
    })
}

#[tokio::test(start_paused = true)]
async fn a_task_that_panics_is_started_again_until_the_budget_is_spent() {
    let starts = Arc::new(AtomicUsize::new(0));
    let mut supervisor = Supervisor::new();
    let panics: fn(CancellationToken) -> Work = |_| Box::pin(async { panic!("no") });
    supervisor.add_essential("bad", Stage::Intake, counting(&starts, panics));
    let outcome = supervisor.run(CancellationToken::new(), RESTART, || {}).await;
    assert_eq!(outcome, Outcome::GaveUp("bad".into()));
    assert_eq!(starts.load(Ordering::SeqCst), 1 + BUDGET as usize);
}

/// What was reported of a task, in order.
type Reported = Arc<Mutex<Vec<(String, Option<String>)>>>;

fn reports(supervisor: &mut Supervisor) -> Reported {
    let reported = Reported::default();
    let report = Arc::clone(&reported);
    supervisor.report_to(Box::new(move |name, reason| {
        report.lock().unwrap().push((name.to_owned(), reason.map(str::to_owned)));
    }));
    reported
}

async fn run_for(supervisor: Supervisor, time: Duration) -> Outcome {
    let stop = CancellationToken::new();
    let ends = async {
        sleep(time).await;
        stop.cancel();
    };
    tokio::join!(supervisor.run(stop.clone(), RESTART, || {}), ends).0
}

#[tokio::test(start_paused = true)]
async fn a_task_that_fails_again_and_again_stays_down_and_the_others_go_on() {
    let panics: fn(CancellationToken) -> Work = |_| Box::pin(async { panic!("no") });
    let cannot = |starts: &Arc<AtomicUsize>| -> Factory {
        let starts = Arc::clone(starts);
        Box::new(move |_| {
            starts.fetch_add(1, Ordering::SeqCst);
            Err("no such file".to_owned())
        })
    };
    let breaks = |starts: &Arc<AtomicUsize>| -> Factory {
        let starts = Arc::clone(starts);
        Box::new(move |_| {
            starts.fetch_add(1, Ordering::SeqCst);
            panic!("while it is made")
        })
    };
    let starts: [Arc<AtomicUsize>; 3] = Default::default();
    let turns = Arc::new(AtomicUsize::new(0));
    let good = Arc::clone(&turns);
    let mut supervisor = Supervisor::new();
    let reported = reports(&mut supervisor);
    supervisor.add("panics", Stage::Delivery, counting(&starts[0], panics));
    supervisor.add("cannot", Stage::Delivery, cannot(&starts[1]));
    supervisor.add("breaks", Stage::Delivery, breaks(&starts[2]));
    let works: Factory = Box::new(move |stop| {
        let good = Arc::clone(&good);
        Ok(Box::pin(async move {
            while timeout(TURN, stop.cancelled()).await.is_err() {
                good.fetch_add(1, Ordering::SeqCst);
            }
        }))
    });
    supervisor.add_essential("works", Stage::Intake, works);
    assert_eq!(run_for(supervisor, Duration::from_hours(1)).await, Outcome::Stopped);
    for (starts, name) in starts.iter().zip(["panics", "cannot", "breaks"]) {
        let starts = starts.load(Ordering::SeqCst);
        assert!((15..=20).contains(&starts), "{name} was started {starts} times in an hour");
    }
    assert!(turns.load(Ordering::SeqCst) > 3500, "the others go on");
    let reported = reported.lock().unwrap();
    for (name, why) in [("panics", "no"), ("cannot", "no such file"), ("breaks", "panic")] {
        let last = reported.iter().rfind(|(task, _)| task == name).unwrap();
        assert!(last.1.as_ref().unwrap().contains(why), "{last:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_task_that_works_again_is_reported_to_work() {
    let starts = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&starts);
    let mut supervisor = Supervisor::new();
    let reported = reports(&mut supervisor);
    let once: Factory = Box::new(move |stop| {
        let first = counted.fetch_add(1, Ordering::SeqCst) == 0;
        Ok(Box::pin(async move {
            assert!(!first, "the first one fails");
            stop.cancelled().await;
        }))
    });
    supervisor.add("once", Stage::Delivery, once);
    assert_eq!(run_for(supervisor, Duration::from_secs(30)).await, Outcome::Stopped);
    let reported: Vec<_> = reported.lock().unwrap().iter().map(|one| one.1.is_some()).collect();
    assert_eq!((reported, starts.load(Ordering::SeqCst)), (vec![true, false], 2));
}

#[tokio::test(start_paused = true)]
async fn an_essential_task_that_waits_for_ever_is_started_again() {
    let starts = Arc::new(AtomicUsize::new(0));
    let mut supervisor = Supervisor::new();
    let reported = reports(&mut supervisor);
    let counted = Arc::clone(&starts);
    let deaf: Factory = Box::new(move |stop| {
        let first = counted.fetch_add(1, Ordering::SeqCst) == 0;
        Ok(Box::pin(async move {
            if first {
                std::future::pending::<()>().await;
            }
            while timeout(TURN, stop.cancelled()).await.is_err() {}
        }))
    });
    supervisor.add_essential("deaf", Stage::Intake, deaf);
    // What is not essential may rest.
    supervisor.add(
        "idle",
        Stage::Display,
        Box::new(|stop| Ok(Box::pin(async move { stop.cancelled().await }))),
    );
    assert_eq!(run_for(supervisor, Duration::from_mins(5)).await, Outcome::Stopped);
    assert_eq!(starts.load(Ordering::SeqCst), 2);
    assert!(reported.lock().unwrap().iter().all(|(name, _)| name == "deaf"));
}

#[expect(clippy::disallowed_methods, reason = "the task hangs, as the test says")]
fn hangs(until: &Arc<AtomicUsize>) -> Factory {
    let until = Arc::clone(until);
    Box::new(move |_| {
        let until = Arc::clone(&until);
        Ok(Box::pin(async move {
            while until.load(Ordering::SeqCst) == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }))
    })
}

/// A poll that never returns can only be seen from outside, by the turns that pass.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_poll_that_never_returns_is_noticed() {
    for essential in [true, false] {
        let over = Arc::new(AtomicUsize::new(0));
        let mut supervisor = Supervisor::new();
        let reported = reports(&mut supervisor);
        supervisor.begun = true;
        supervisor.put("hangs", Stage::Delivery, hangs(&over), essential);
        let made = |supervisor: &Supervisor| supervisor.tasks["hangs"].heartbeat.polls() == 3;
        while !made(&supervisor) {
            tokio::task::yield_now().await;
        }
        let outcomes: Vec<_> = (0..=HUNG).filter_map(|_| supervisor.look_after()).collect();
        over.store(1, Ordering::SeqCst);
        let reported = reported.lock().unwrap();
        assert_eq!(reported.len(), 1, "{reported:?}");
        assert!(reported[0].1.as_ref().unwrap().contains("does not respond"));
        let expected = if essential { vec![Outcome::GaveUp("hangs".into())] } else { vec![] };
        assert_eq!(outcomes, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_task_that_ends_by_itself_has_failed() {
    let starts = Arc::new(AtomicUsize::new(0));
    let mut supervisor = Supervisor::new();
    let ends: fn(CancellationToken) -> Work = |_| Box::pin(async {});
    supervisor.add_essential("idle", Stage::Intake, counting(&starts, ends));
    let outcome = supervisor.run(CancellationToken::new(), RESTART, || {}).await;
    assert_eq!(outcome, Outcome::GaveUp("idle".into()));
}

#[tokio::test(start_paused = true)]
async fn stages_stop_in_order_and_within_the_deadline() {
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut supervisor = Supervisor::new();
    for (name, stage) in [("z", Stage::Intake), ("a", Stage::Delivery), ("m", Stage::Display)] {
        let order = Arc::clone(&order);
        let factory: Factory = Box::new(move |stop| {
            let order = Arc::clone(&order);
            Ok(Box::pin(async move {
                stop.cancelled().await;
                order.lock().unwrap().push(name);
            }))
        });
        supervisor.add(name, stage, factory);
    }
    supervisor.add("deaf", Stage::Delivery, Box::new(|_| Ok(Box::pin(std::future::pending()))));
    let stop = CancellationToken::new();
    stop.cancel();
    let before = Instant::now();
    assert_eq!(supervisor.run(stop, Duration::from_secs(3), || {}).await, Outcome::Stopped);
    assert_eq!(before.elapsed(), Duration::from_secs(3));
    assert_eq!(*order.lock().unwrap(), ["z", "a", "m"]);
}

#[tokio::test(start_paused = true)]
async fn tasks_come_and_go_while_it_runs() {
    let starts = Arc::new(AtomicUsize::new(0));
    let supervisor = Supervisor::new();
    let requests = supervisor.requests();
    let wait: fn(CancellationToken) -> Work =
        |stop| Box::pin(async move { stop.cancelled().await });
    let (stop, counted) = (CancellationToken::new(), Arc::clone(&starts));
    let script = async {
        requests.add("sink", Stage::Delivery, counting(&counted, wait)).await;
        requests.remove("sink").await;
        requests.add("sink", Stage::Delivery, counting(&counted, wait)).await;
        sleep(Duration::from_secs(5)).await;
        stop.cancel();
    };
    let (outcome, ()) = tokio::join!(supervisor.run(stop.clone(), RESTART, || {}), script);
    assert_eq!((outcome, starts.load(Ordering::SeqCst)), (Outcome::Stopped, 2));
}

#[tokio::test(start_paused = true)]
async fn a_task_that_does_not_leave_is_ended_and_its_successor_started() {
    let started = Arc::new(Mutex::new(Vec::new()));
    let supervisor = Supervisor::new();
    let requests = supervisor.requests();
    let stubborn = |name: &'static str| -> Factory {
        let started = Arc::clone(&started);
        Box::new(move |_| {
            started.lock().unwrap().push((name, Instant::now()));
            Ok(Box::pin(std::future::pending()))
        })
    };
    let (stop, before) = (CancellationToken::new(), Instant::now());
    let script = async {
        requests.add("sink", Stage::Delivery, stubborn("old")).await;
        requests.remove("sink").await;
        requests.add("sink", Stage::Delivery, stubborn("new")).await;
        sleep(Duration::from_secs(9)).await;
        stop.cancel();
    };
    let deadline = Duration::from_secs(4);
    let (outcome, ()) = tokio::join!(supervisor.run(stop.clone(), deadline, || {}), script);
    assert_eq!(outcome, Outcome::Stopped);
    let started: Vec<_> = started
        .lock()
        .unwrap()
        .iter()
        .map(|(name, at)| (*name, at.duration_since(before).as_secs()))
        .collect();
    assert_eq!(started, [("old", 0), ("new", 4)]);
}
