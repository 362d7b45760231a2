//! The command line: the commands and their shared arguments, exit codes, and the runtime. The commands are
//! one file each.
//!
//! Exit codes are those of sysexits(3): [`EXIT_CODES`].

pub mod check;
mod client;
mod cluster;
mod complete;
mod connect;
pub mod demo;
mod diagnose;
mod help;
mod info;
pub mod init;
mod journal;
mod out;
mod progress;
mod run;
mod send_test;
mod session;
mod setup;
mod simulate;
mod status;
mod tail;
mod top;

use std::{
    io::{self, IsTerminal, Write as _},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, FromArgMatches as _, Parser, Subcommand};

use crate::{
    app::relay::RelayError,
    base::{environment::environment, fault, log},
    config::pasted::looks_secret,
    config::{Config, Log, Secret},
    journal::StoreError,
    loading::{Loaded, Sources, load},
};

/// Relays StreamElements Astro events to MQTT, NATS, Redis and webhooks.
#[derive(Debug, Parser)]
#[command(name = "astro-relay", version, about, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the relay.
    Run(Source),
    /// Validates the configuration: every problem, with line and column.
    Check(Check),
    /// Shows the status of the running relay.
    Status(status::Status),
    /// Live status, refreshed every second.
    Top(top::Top),
    /// Shows the cluster as a running member sees it: members, drivers of sinks, what is wrong.
    Cluster(cluster::Cluster),
    /// Writes a report for a question or a bug, with every secret removed.
    Diagnose(diagnose::Diagnose),
    /// Streams events from the running relay.
    Tail(tail::Tail),
    /// Retries a waiting sink (down, busy, held, gone) now.
    Retry(client::Retry),
    /// Writes a first configuration, asking for what it needs.
    Init(init::Args),
    /// Writes a first configuration in the browser, and tries each answer.
    Setup(setup::Setup),
    /// Lists the known topics, with the scope that a token needs; of one also examples.
    Topics(info::Topics),
    /// Prints the commented reference of the configuration.
    Config(info::ConfigArgs),
    /// Prints the JSON Schema of the configuration.
    Schema,
    /// Runs the relay with a simulated Astro: nothing needs to be installed or configured.
    Demo(demo::Demo),
    /// Runs a simulated Astro and Sessions API, with injectable faults.
    Sim(simulate::Simulate),
    /// Sends one marked synthetic event through the configured sinks.
    SendTest(send_test::SendTest),
    /// Reads and changes a channel's session over the REST API.
    #[command(subcommand)]
    Session(session::SessionCommand),
    /// Inspects the journal.
    #[command(subcommand)]
    Journal(journal::JournalCommand),
    /// Lists, retries and deletes the events that a destination rejected.
    #[command(subcommand)]
    DeadLetters(journal::DeadLetterCommand),
    /// Delivers events of the journal to a sink again.
    Replay(journal::ReplayArgs),
    /// Prints a completion script for a shell.
    Completions(info::Completions),
    /// Prints the manual page.
    Man,
    /// Prints names for a shell's completion.
    #[command(hide = true)]
    Complete(complete::Complete),
}

/// Where the configuration comes from.
#[derive(Debug, Clone, Args)]
pub struct Source {
    /// The configuration file [default: ./astro-relay.toml, /etc/astro-relay/astro-relay.toml]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Sets one key, over file and environment: sinks.home.url=mqtt://broker
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    set: Vec<(String, String)>,
}

#[derive(Debug, Args)]
struct Check {
    #[command(flatten)]
    source: Source,
    /// Does not read secrets: for a configuration of another machine.
    #[arg(long)]
    no_secrets: bool,
    /// Also opens and closes test subscriptions, connects to every sink, and asks for the right to publish
    /// there.
    #[arg(long, conflicts_with = "no_secrets")]
    connect: bool,
}

/// A command failed: what to say, and with which code to end.
#[derive(Debug)]
pub(crate) struct Failed {
    text: String,
    code: u8,
}

impl Failed {
    /// sysexits(3).
    pub(crate) const USAGE: u8 = 64;
    pub(crate) const UNAVAILABLE: u8 = 69;
    pub(crate) const SOFTWARE: u8 = 70;
    pub(crate) const IO: u8 = 74;
    pub(crate) const TEMPORARY: u8 = 75;
    pub(crate) const CONFIG: u8 = 78;

    pub(crate) fn new(code: u8, text: impl Into<String>) -> Self {
        Self { text: text.into(), code }
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// With the causes behind it.
    pub(crate) fn of(code: u8, error: &dyn std::error::Error) -> Self {
        Self { text: fault::chain(error), code }
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        // Whoever read has seen enough (`| head`).
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::new(0, "");
        }
        Self::of(Self::IO, &error)
    }
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Self::of(Self::IO, &error)
    }
}

impl From<RelayError> for Failed {
    fn from(error: RelayError) -> Self {
        let code = match &error {
            RelayError::Config(_)
            | RelayError::Exposed(_)
            | RelayError::Cluster(_)
            | RelayError::Journal(StoreError::Newer { .. }) => Self::CONFIG,
            RelayError::Journal(StoreError::Locked { .. }) => Self::TEMPORARY,
            RelayError::Journal(_) | RelayError::Listen { .. } => Self::IO,
        };
        Self::of(code, &error)
    }
}

pub(crate) type Done = Result<(), Failed>;

/// Exit codes, as the manual page lists them.
pub(crate) const EXIT_CODES: &[(u8, &str)] = &[
    (0, "success; status: the relay works, or is degraded"),
    (1, "status: the relay does not work"),
    (2, "status --check: the relay is degraded"),
    (64, "wrong command line"),
    (69, "the relay or a destination cannot be reached"),
    (70, "the relay gave up, or send-test failed"),
    (74, "trouble with files"),
    (75, "a temporary failure: the journal is in use, Astro does not answer, setup was ended"),
    (78, "wrong configuration; the service manager does not start it again"),
];

/// How long blocking work may take to end when the command has.
const AT_EXIT: std::time::Duration = std::time::Duration::from_secs(1);

/// Runs the command that the command line names.
pub fn main() -> ExitCode {
    let parsed =
        help::command().try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(mut error) => {
            without_secrets(&mut error);
            let wrong = error.use_stderr();
            // A closed pipe is no reason to complain about a help text.
            drop(error.print());
            return if wrong { ExitCode::from(Failed::USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let done = execute(cli.command);
    log::flush(AT_EXIT);
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // What there was to say stands in the output.
        Err(Failed { text, code }) if text.is_empty() => ExitCode::from(code),
        Err(failed) => {
            out::last_words(format!("astro-relay: {}", failed.text));
            ExitCode::from(failed.code)
        }
    }
}

fn execute(command: Command) -> Done {
    match command {
        Command::Run(source) => run::run(&source),
        Command::Check(check) => check_config(&check),
        Command::Init(init) => initialise(init),
        Command::Setup(args) => setup::setup(args),
        Command::Schema => {
            let schema = serde_json::to_string_pretty(&crate::loading::schema());
            let schema = schema.map_err(|error| Failed::of(Failed::SOFTWARE, &error))?;
            Ok(writeln!(out::json(), "{schema}")?)
        }
        Command::Status(status) => status::status(&status),
        Command::Diagnose(args) => diagnose::diagnose(&args),
        Command::Top(top) => top::top(&top),
        Command::Cluster(args) => cluster::cluster(args),
        Command::Tail(tail) => tail::tail(&tail),
        Command::Retry(retry) => client::retry(&retry),
        Command::Topics(args) => info::topics(&args),
        Command::Config(args) => info::config(&args),
        Command::Complete(args) => complete::complete(&args),
        Command::Completions(args) => info::completions(&args),
        Command::Man => info::man(),
        Command::Demo(demo) => demo::demo(demo),
        Command::Sim(simulate) => simulate::simulate(simulate),
        Command::SendTest(send) => send_test::send_test(&send),
        Command::Session(command) => session::session(command),
        Command::Journal(command) => journal::journal(command),
        Command::DeadLetters(command) => journal::dead_letters(&command),
        Command::Replay(args) => journal::replay(&args),
    }
}

fn check_config(check: &Check) -> Done {
    let sources = Sources { resolve_secrets: !check.no_secrets, ..check.source.sources() };
    let Some(loaded) = check::run(&sources, &mut out::text())? else {
        return Err(Failed::new(Failed::CONFIG, "the configuration cannot be used"));
    };
    if !check.connect {
        return Ok(());
    }
    // The command itself reports what goes wrong.
    let log = Log { level: "off".into(), ..loaded.config.log.clone() };
    let failures = on_runtime(1, &log, connect::connect(&loaded.config))?;
    let parts = failures.parts;
    let verb = if parts == 1 { "does" } else { "do" };
    let parts_fail = format!("{parts} of the subscriptions and sinks {verb} not work");
    let text = match (failures.start, parts) {
        (None, 0) => return Ok(()),
        (None, _) => parts_fail,
        (Some(start), 0) => start.to_owned(),
        (Some(start), _) => format!("{start}, and {parts_fail}"),
    };
    Err(Failed::new(Failed::UNAVAILABLE, text))
}

fn initialise(mut args: init::Args) -> Done {
    args.token = environment().get("ASTRO_RELAY_TOKEN").map(Secret::new);
    let written = if io::stdin().is_terminal() {
        init::run_on_terminal(args)?
    } else {
        init::run(args, None).map_err(|error| Failed::of(Failed::CONFIG, &error))?
    };
    let file = written.file.display();
    let mut out = out::text();
    written.print(&mut out)?;
    writeln!(out, "try it:  astro-relay check --connect --config {file}")?;
    writeln!(out, "test it: astro-relay send-test tip --config {file}")?;
    writeln!(out, "run it:  astro-relay run --config {file}")?;
    Ok(())
}

impl Source {
    fn sources(&self) -> Sources {
        Sources {
            file: self.config.clone(),
            env: environment(),
            set: self.set.clone(),
            ..Sources::default()
        }
    }

    /// Loads the configuration, with the file that it came from.
    pub(crate) fn load_with_file(&self) -> Result<Loaded, Failed> {
        load(&self.sources()).map_err(|error| Failed::new(Failed::CONFIG, error.to_string()))
    }

    /// Loads the configuration, and prints its warnings.
    pub(crate) fn load(&self) -> Result<Config, Failed> {
        Ok(with_warnings(self.load_with_file()?))
    }

    /// For a user who need not be able to read the relay's secrets.
    pub(crate) fn sources_without_secrets(&self) -> Sources {
        Sources { resolve_secrets: false, ..self.sources() }
    }

    pub(crate) fn load_with_file_without_secrets(&self) -> Result<Loaded, Failed> {
        load(&self.sources_without_secrets())
            .map_err(|error| Failed::new(Failed::CONFIG, error.to_string()))
    }

    pub(crate) fn load_without_secrets(&self) -> Result<Config, Failed> {
        Ok(with_warnings(self.load_with_file_without_secrets()?))
    }
}

/// Prints what is hardly meant.
fn with_warnings(loaded: Loaded) -> Config {
    for warning in &loaded.warnings {
        out::aside(&format!("warning: {warning}"));
    }
    loaded.config
}

/// Threads for what blocks (files, standard output), at most. With the others they stay below the
/// service's TasksMax=128.
const BLOCKING: usize = 64;

/// Starts logging, and a runtime with `threads` workers, and runs `work` on it.
pub(crate) fn on_runtime<T>(
    threads: usize,
    config: &Log,
    work: impl Future<Output = Result<T, Failed>>,
) -> Result<T, Failed> {
    log::install(&config.level, config.format)
        .map_err(|error| Failed::of(Failed::CONFIG, &error))?;
    crate::base::tls::install_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .max_blocking_threads(BLOCKING)
        .enable_all()
        .build()
        .map_err(|error| Failed::of(Failed::SOFTWARE, &error))?;
    let outcome = runtime.block_on(work);
    // A reader of standard output that has stalled must not hold up the end.
    runtime.shutdown_timeout(AT_EXIT);
    outcome
}

/// Catches the signals that end the process from now on; the future completes with the first of them.
pub(crate) fn termination() -> io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').ok_or("KEY=VALUE was expected")?;
    Ok((pair.0.to_owned(), pair.1.to_owned()))
}

/// Takes out of an error what looks like a secret that was put into the wrong place, and what `--set`
/// was given, which may be one.
fn without_secrets(error: &mut clap::Error) {
    use clap::error::{ContextKind, ContextValue};
    let argument = error.get(ContextKind::InvalidArg);
    if matches!(argument, Some(ContextValue::String(name)) if name.starts_with("--set")) {
        error.insert(ContextKind::InvalidValue, ContextValue::String("…".to_owned()));
    }
    let secret: Vec<_> = error
        .context()
        .filter(|(_, value)| match value {
            ContextValue::String(text) => looks_secret(text),
            ContextValue::Strings(texts) => texts.iter().any(|text| looks_secret(text)),
            _ => false,
        })
        .map(|(kind, _)| kind)
        .collect();
    for kind in secret {
        error.insert(kind, ContextValue::String("…".to_owned()));
    }
}

/// An address to listen on; a port alone is one of the loopback.
fn listen(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.parse::<u16>() {
        return Ok(([127, 0, 0, 1], port).into());
    }
    text.parse().map_err(|_| "an address such as 127.0.0.1:9900, or a port, was expected".into())
}
