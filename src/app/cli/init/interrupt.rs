//! Questions that a signal can end.
//!
//! A terminal that hides what is typed would go on hiding it when the process has ended.

use std::{io, thread};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

use super::{Args, Terminal, Written, run};
use crate::app::cli::{Failed, client::silent, on_runtime, out};

/// What a shell reports of a process that SIGINT has ended.
const INTERRUPTED: u8 = 128 + 2;

/// The same for SIGTERM.
const TERMINATED: u8 = 128 + 15;

/// Asks on the terminal for what `args` leaves open, and writes the configuration. A thread of its own waits
/// for the answers; a signal meanwhile ends the command, with what is typed shown again.
pub(crate) fn run_on_terminal(args: Args) -> Result<Written, Failed> {
    on_runtime(1, &silent(), async move {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let (done, mut outcome) = oneshot::channel();
        thread::Builder::new().name("questions".into()).spawn(move || {
            let (mut input, mut output) = (io::stdin().lock(), out::conversation());
            let terminal = Terminal { input: &mut input, output: &mut output, echo: &out::echo };
            // After a signal nobody waits for it.
            done.send(run(args, Some(terminal))).ok();
        })?;
        let code = tokio::select! {
            outcome = &mut outcome => {
                let outcome = outcome.map_err(|error| Failed::of(Failed::SOFTWARE, &error))?;
                return outcome.map_err(|error| Failed::of(Failed::CONFIG, &error));
            }
            _ = interrupt.recv() => INTERRUPTED,
            _ = terminate.recv() => TERMINATED,
        };
        out::echo(true);
        // The line of the question has no end yet.
        out::aside("");
        Err(Failed::new(code, ""))
    })
}
