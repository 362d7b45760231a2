//! A child process and what it costs: processor time and memory, from /proc.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use tokio::time::{Instant, sleep};

/// How often something is looked at.
const LOOK: Duration = Duration::from_micros(300);

pub struct Process {
    child: Child,
    started: Instant,
}

impl Process {
    /// The relay with this configuration.
    pub fn relay(config: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_astro-relay"));
        command.arg("run").arg("--config").arg(config);
        Self::start(command, config)
    }

    /// The floor with these arguments.
    pub fn floor(arguments: &[String], beside: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("--floor").args(arguments);
        Self::start(command, beside)
    }

    /// Another program that does the relay's work: a command of the shell, which finds in its environment
    /// what it needs (`ASTRO_URL`, `ASTRO_API_URL`, `TOPIC`, `ROOMS`, `KIND`, `DESTINATION`).
    pub fn peer(command: &str, environment: &[(&str, String)], beside: &Path) -> Self {
        let mut shell = Command::new("sh");
        // In place of the shell, so that its processor time is the program's own.
        shell.arg("-c").arg(format!("exec {command}"));
        shell.envs(environment.iter().map(|(name, value)| (name, value)));
        Self::start(shell, beside)
    }

    fn start(mut command: Command, beside: &Path) -> Self {
        let log = std::fs::File::create(beside.with_extension("log")).unwrap();
        let started = Instant::now();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Self { child, started }
    }

    /// Waits until `ready`; answers how long it took from the start of the process.
    pub async fn until(&self, ready: impl Fn() -> bool) -> Duration {
        while !ready() {
            assert!(
                self.started.elapsed() < Duration::from_mins(2),
                "the child does not get ready"
            );
            sleep(LOOK).await;
        }
        self.started.elapsed()
    }

    /// Processor time so far, user and system.
    pub fn cpu(&self) -> Duration {
        // Nanoseconds on the processor, of every thread (Documentation/scheduler/sched-stats).
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id()));
        let nanos = tasks.into_iter().flatten().flatten().filter_map(|task| {
            let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
            text.split_whitespace().next()?.parse::<u64>().ok()
        });
        Duration::from_nanos(nanos.sum())
    }

    /// Bytes that it had written to disks so far (`write_bytes` of proc(5)), and how often it went to sleep
    /// of its own accord, all threads together: each of these times something woke it.
    pub fn wear(&self) -> (u64, u64) {
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        };
        let io = std::fs::read_to_string(format!("/proc/{}/io", self.child.id()));
        let written = field(&io.unwrap_or_default(), "write_bytes:").expect("/proc/PID/io");
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id()));
        let sleeps = tasks.into_iter().flatten().flatten().filter_map(|task| {
            let text = std::fs::read_to_string(task.path().join("status")).ok()?;
            field(&text, "voluntary_ctxt_switches:")
        });
        (written, sleeps.sum())
    }

    /// Resident memory now, and at its peak, in bytes.
    pub fn memory(&self) -> (u64, u64) {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let text = text.unwrap_or_default();
        let field = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        };
        (field("VmRSS:").unwrap_or(0) * 1024, field("VmHWM:").unwrap_or(0) * 1024)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
