//! `astro-relay diagnose`: a report to put beside a question or a bug, with every secret removed.
//!
//! It holds what the commands of the program print that a reader would ask for next, and each is run as a
//! process of its own with a deadline: one that hangs or ends badly is a line of the report. It changes nothing
//! and sends no event. [`removal`] takes out what is secret; the configuration itself and the payloads of events
//! are not in the report, for in them everything may be.

mod removal;

use std::{
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use clap::Args;
use tokio::{io::AsyncReadExt as _, process::Command, time::timeout};

use self::removal::Removal;
use super::{Done, Source, client::quiet, on_runtime, out};
use crate::{
    base::{clock, environment::environment, files},
    config::{Config, Secret, SecretRef},
    loading::{LARGEST_FILE, configured_secrets, load},
};

/// What each part may take, so that the whole fits into a form of 64 KiB.
const PART: usize = 12 * 1024;

/// Lines of the log.
const LINES: usize = 200;

/// How long `check --connect` may take: each destination has limits of its own.
const CHECKING: Duration = Duration::from_mins(2);

/// How long everything else may take.
const ASKING: Duration = Duration::from_secs(20);

/// The largest text that counts as a secret where it is only found by a name.
const LARGEST_SECRET: usize = 64 * 1024;

/// The largest log file that is read as a whole.
const LARGEST_LOG: u64 = 256 * 1024 * 1024;

/// `diagnose`
#[derive(Debug, Args)]
pub(super) struct Diagnose {
    #[command(flatten)]
    source: Source,
    /// Where the running relay listens: `http://127.0.0.1:9464` [default: as configured]
    #[arg(long)]
    url: Option<String>,
    /// Connects to nothing but the running relay.
    #[arg(long)]
    no_connect: bool,
    /// The log, where it is not in systemd's journal: `docker logs relay >relay.log 2>&1`
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// The unit whose lines are read from systemd's journal.
    #[arg(long, value_name = "UNIT", default_value = "astro-relay.service")]
    unit: String,
}

/// A part of the report.
struct Part {
    title: String,
    text: String,
    keep: Keep,
}

/// What is kept of a part that is too long.
enum Keep {
    Beginning,
    End,
}

pub(super) fn diagnose(args: &Diagnose) -> Done {
    on_runtime(1, &quiet(), async {
        let config = load(&args.source.sources_without_secrets()).ok().map(|loaded| loaded.config);
        let mut removal = secrets(args, config.as_ref()).await;
        let mut report = format!(
            "# astro-relay diagnose\n\n\
             Secrets are removed; equal ones have equal numbers. Names of channels, servers and files are\n\
             not: read it before you publish it.\n\n{}",
            removal.apply(&system(config.as_ref())),
        );
        for Part { title, text, keep } in parts(args, config.as_ref()).await {
            // Before it is cut: what is left of a secret would not be recognised.
            let text = removal.apply(&text).replace("```", "'''");
            let text = match keep {
                Keep::Beginning => beginning(text.trim_end()),
                Keep::End => end(text.trim_end()).to_owned(),
            };
            // Writing to a string does not fail.
            write!(report, "\n## {}\n\n```text\n{text}\n```\n", removal.apply(&title)).ok();
        }
        Ok(write!(out::text(), "{report}")?)
    })
}

/// All secrets that could be in what the commands print.
async fn secrets(args: &Diagnose, config: Option<&Config>) -> Removal {
    let mut removal = Removal::default();
    if let Some(config) = config {
        for secret in configured_secrets(config) {
            for read in read(&secret).await {
                removal.learn(read.expose());
                removal.learn_address(read.expose());
            }
        }
    }
    // What stands in the file and the environment also where it is not used, or cannot be read as it should.
    let mut text = String::new();
    let named = args.source.config.clone();
    let usual = ["astro-relay.toml", "/etc/astro-relay/astro-relay.toml"].map(PathBuf::from);
    for file in named.into_iter().chain(usual) {
        text.push_str(&text_of(&file).await);
        text.push('\n');
    }
    let variables = environment();
    for (name, value) in
        variables.iter().chain(args.source.set.iter().map(|(key, value)| (key, value)))
    {
        let name = name.replace("__", ".");
        // A value of several lines is several secrets.
        for line in value.lines() {
            writeln!(text, "{name}={line}").ok();
        }
    }
    for reference in removal.learn_assignments(&text) {
        for read in read(&reference).await {
            if read.expose().len() <= LARGEST_SECRET {
                removal.learn(read.expose());
            }
        }
    }
    removal
}

/// The secret as it is now, in both ways in which one is read.
async fn read(secret: &SecretRef) -> Vec<Secret> {
    [secret.read().await, secret.read_token().await].into_iter().flatten().collect()
}

/// What is in the file of a configuration, also where that cannot be used; nothing where it does not answer.
async fn text_of(file: &Path) -> String {
    let mut bytes = Vec::new();
    if fs::metadata(file).is_ok_and(|about| about.is_file()) {
        // What was read before an error counts, too.
        fs::File::open(file).and_then(|file| file.take(LARGEST_FILE).read_to_end(&mut bytes)).ok();
    } else if let Ok(content) = files::read(file).await {
        // Into a pipe nobody may ever write.
        bytes.extend_from_slice(&content.bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Version and system, a fact a line.
fn system(config: Option<&Config>) -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| -> String {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or("unknown").trim_matches(['"', ' ', '\t']).to_owned()
    };
    let build = if cfg!(debug_assertions) { "debug" } else { "release" };
    let libc = if cfg!(target_env = "musl") { "musl" } else { "glibc" };
    let arch = std::env::consts::ARCH;
    let container =
        ["/.dockerenv", "/run/.containerenv"].iter().any(|path| Path::new(path).exists());
    let variables = environment();
    let processors = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let mut lines = vec![
        format!("version: {} ({build}, {arch}, {libc})", env!("CARGO_PKG_VERSION")),
        format!("system: {}", field(&read("/etc/os-release"), "PRETTY_NAME=")),
        format!("kernel: {}", read("/proc/sys/kernel/osrelease").trim()),
        format!("processors: {processors}, memory: {}", field(&read("/proc/meminfo"), "MemTotal:")),
        format!("container: {container}, add-on: {}", variables.contains_key("SUPERVISOR_TOKEN")),
        format!("time: {}", clock::rfc3339(clock::now())),
        format!(
            "configuration: {}",
            if config.is_some() { "can be used" } else { "cannot be used" }
        ),
    ];
    if let Some(config) = config {
        let kinds: Vec<_> = config.sinks.values().map(|sink| sink.kind.as_str()).collect();
        lines.push(format!("channels: {}, sinks: {}", config.channels.len(), kinds.join(", ")));
        lines.push(format!("journal: {}", directory(&config.journal.dir)));
    }
    format!("- {}\n", lines.join("\n- "))
}

/// What is in the journal's directory.
fn directory(dir: &Path) -> String {
    if dir.as_os_str().is_empty() {
        return "in memory only".into();
    }
    let mut text = dir.display().to_string();
    match fs::read_dir(dir) {
        Ok(entries) => {
            for entry in entries.flatten() {
                let size = entry.metadata().map_or(0, |data| data.len());
                write!(text, ", {} {size} B", entry.file_name().display()).ok();
            }
        }
        Err(error) => {
            write!(text, ": {error}").ok();
        }
    }
    text
}

async fn parts(args: &Diagnose, config: Option<&Config>) -> Vec<Part> {
    let mut source: Vec<String> = Vec::new();
    if let Some(file) = &args.source.config {
        source.extend(["--config".into(), file.display().to_string()]);
    }
    for (key, value) in &args.source.set {
        source.extend(["--set".into(), format!("{key}={value}")]);
    }
    let url = args.url.iter().flat_map(|url| ["--url".to_owned(), url.clone()]);
    let status: Vec<String> = source.iter().cloned().chain(url).collect();
    let check = if args.no_connect { &["check"][..] } else { &["check", "--connect"] };
    let mut parts = vec![
        own(check, &source, CHECKING).await,
        own(&["status"], &status, ASKING).await,
        own(&["status", "--json"], &status, ASKING).await,
    ];
    // A journal that cannot be opened is in the log and the status; without a configuration none is known.
    if config.is_some_and(|config| !config.journal.dir.as_os_str().is_empty()) {
        parts.push(own(&["journal", "status"], &source, ASKING).await);
    }
    parts.push(match &args.log {
        Some(file) => {
            let title = format!("the last {LINES} lines of the log");
            Part { title, text: last_lines(file, ASKING).await, keep: Keep::End }
        }
        None => systemd(&args.unit).await,
    });
    parts
}

/// What a command of this program prints.
async fn own(command: &[&str], more: &[String], patience: Duration) -> Part {
    // The program itself, also where a newer one lies at its place by now.
    let mut child = Command::new("/proc/self/exe");
    child.args(command).args(more);
    let (code, text) = printed(child, patience).await;
    Part { title: format!("{}: {code}", command.join(" ")), text, keep: Keep::Beginning }
}

async fn systemd(unit: &str) -> Part {
    let mut child = Command::new("journalctl");
    child.args(["--no-pager", "--quiet", "--output=short-iso", "--unit", unit]);
    child.arg(format!("--lines={LINES}"));
    let (code, text) = printed(child, ASKING).await;
    Part { title: format!("the last {LINES} lines of {unit}: {code}"), text, keep: Keep::End }
}

/// How it ended, and what it printed to both outputs.
async fn printed(mut command: Command, patience: Duration) -> (String, String) {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    match timeout(patience, output).await {
        Err(_) => (format!("did not end within {patience:?}"), String::new()),
        Ok(Err(error)) => (format!("cannot be run: {error}"), String::new()),
        Ok(Ok(output)) => {
            let code = output
                .status
                .code()
                .map_or("ended by a signal".into(), |code| format!("exit code {code}"));
            let text = [output.stdout, output.stderr]
                .map(|text| String::from_utf8_lossy(&text).into_owned());
            (code, text.concat())
        }
    }
}

async fn last_lines(file: &Path, patience: Duration) -> String {
    let mut text = Vec::new();
    let read = timeout(patience, async {
        let mut log = tokio::fs::File::open(file).await?.take(LARGEST_LOG + 1);
        log.read_to_end(&mut text).await
    })
    .await;
    let why = match read {
        // A pipe into which nobody writes.
        Err(_) => format!("it does not end within {patience:?}"),
        Ok(Err(error)) => error.to_string(),
        Ok(Ok(_)) if text.len() as u64 > LARGEST_LOG => {
            format!("larger than {LARGEST_LOG} B: give a part of it")
        }
        Ok(Ok(_)) => {
            let text = String::from_utf8_lossy(&text);
            let start = text.lines().count().saturating_sub(LINES);
            let lines: Vec<&str> = text.lines().skip(start).collect();
            return lines.join("\n");
        }
    };
    format!("{} cannot be read: {why}", file.display())
}

/// The beginning, as far as a part may go.
fn beginning(text: &str) -> String {
    if text.len() <= PART {
        return text.to_owned();
    }
    format!(
        "{}\n… {} B more",
        text.get(..text.floor_char_boundary(PART)).unwrap_or_default(),
        text.len() - PART
    )
}

/// The end, as far as a part may go, from the beginning of a line on.
fn end(text: &str) -> &str {
    let from = text.ceil_char_boundary(text.len().saturating_sub(PART));
    let part = text.get(from..).unwrap_or_default();
    if from == 0 { part } else { part.split_once('\n').map_or(part, |(_, rest)| rest) }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[tokio::test]
    async fn a_log_that_nobody_writes_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("log");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let text = last_lines(&pipe, Duration::ZERO).await;
        assert!(text.ends_with("cannot be read: it does not end within 0ns"), "{text}");
        // Lets the thread go that opens it.
        fs::OpenOptions::new().write(true).open(&pipe).unwrap();
    }

    #[test]
    fn a_part_is_limited_at_the_right_end() {
        let text = "ü line\n".repeat(PART);
        assert!(beginning(&text).starts_with("ü line\n") && beginning(&text).ends_with("B more"));
        assert!(end(&text).starts_with("ü line\n") && end(&text).len() <= PART);
        assert_eq!((beginning("a"), end("a")), ("a".to_owned(), "a"));
    }
}
