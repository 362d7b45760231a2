//! The relay against real brokers, beside the thinnest program that could do the same (the floor).
//!
//! `cargo bench --bench relay [-- [--messages N] [--pairs N] [--peer COMMAND] [CASE…]]`: the simulated Astro is the source, the built
//! relay (or the floor) a child process, and a counting consumer listens on a real broker; all in one
//! run on one machine, so that the columns can be compared with one another and with nothing else.
//!
//! Brokers run as they are installed; what is tuned has a row of its own, and says so in its name.
//! `--peer` adds another program to each case: a command of the shell that connects to `$ASTRO_URL`,
//! subscribes `$TOPIC` in `$ROOMS`, and sends each message to `$DESTINATION` in the manner of `$KIND`.
//!
//! The one thing to know: `cpu` is the processor time of the child alone, for one message.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    unreachable_pub,
    reason = "a benchmark prints, and should stop where it cannot go on"
)]

mod cases;
mod child;
mod cluster;
mod destination;
mod floor;
mod row;
mod setting;
mod tally;
mod wear;

/// The servers that the tests start, too.
#[path = "../../tests/it/support"]
#[expect(dead_code, reason = "the tests use more of it")]
mod support {
    pub mod process;
    pub mod wait;
}

use cases::Plan;

fn main() {
    astro_relay::base::tls::install_provider();
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    if let Some(at) = arguments.iter().position(|a| a == "--floor") {
        return floor::run(&arguments[at + 1..]);
    }
    let mut plan = Plan::default();
    let mut rest = arguments.into_iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--messages" => plan.messages = rest.next().unwrap().parse().unwrap(),
            "--pairs" => plan.pairs = rest.next().unwrap().parse().unwrap(),
            "--peer" => plan.peer = Some(rest.next().unwrap()),
            case => plan.cases.push(case.to_owned()),
        }
    }
    // Two threads: the source and the consumer. The broker and the child want theirs as well.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(cases::run(&plan));
}
