//! The built relay as a child process: started, killed, asked.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::{Child, Command},
};

use super::{
    process::{free_port, signal},
    wait::until,
};

/// How long the relay may take to start or to stop, on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

/// The program of this build.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_astro-relay");

/// A relay with a configuration and a journal of its own.
pub struct Relay {
    dir: TempDir,
    port: u16,
    child: Option<Child>,
}

impl Relay {
    /// Prepares one that listens to the gateway at `url`; `sinks` are sections of its configuration.
    pub fn new(url: &str, api_url: &str, topic: &str, room: &str, more: &str) -> Self {
        Self::with_journal(url, api_url, topic, room, "max_size = \"4GiB\"", more)
    }

    /// The same with other limits of its journal.
    pub fn with_journal(
        url: &str,
        api_url: &str,
        topic: &str,
        room: &str,
        limits: &str,
        more: &str,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let journal = dir.path().join("journal").display().to_string();
        let config = format!(
            "[astro]\nurl = {url:?}\napi_url = {api_url:?}\nbackoff_max = \"300ms\"\n\
             [channels.main]\nroom = {room:?}\ntoken = \"secret-canary\"\ntopics = [{topic:?}]\n\
             [http]\nlisten = \"127.0.0.1:{port}\"\n[log]\nlevel = \"info\"\nformat = \"text\"\n\
             [journal]\ndir = {journal:?}\nmin_free = \"0B\"\n{limits}\n{more}\n"
        );
        fs::write(dir.path().join("relay.toml"), config).unwrap();
        Self { dir, port, child: None }
    }

    /// One whose whole configuration the caller writes, for this port and this journal.
    pub fn written(config: impl FnOnce(u16, &str) -> String) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let text = config(port, &dir.path().join("journal").display().to_string());
        fs::write(dir.path().join("relay.toml"), text).unwrap();
        Self { dir, port, child: None }
    }

    /// Sends it a signal by name: `STOP`, `CONT`.
    pub async fn signal(&self, name: &str) {
        signal(self.pid().expect("it runs"), name).await;
    }

    /// Gives the channel another token.
    pub fn set_token(&self, token: &str) {
        let config = fs::read_to_string(self.config()).unwrap();
        fs::write(self.config(), config.replace("secret-canary", token)).unwrap();
    }

    pub fn config(&self) -> PathBuf {
        self.dir.path().join("relay.toml")
    }

    /// Where its endpoint listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn journal(&self) -> PathBuf {
        self.dir.path().join("journal")
    }

    /// What it has said since it was first started.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Starts it.
    pub fn start(&mut self) {
        self.start_in(&[]);
    }

    /// The same, in an environment with these variables.
    pub fn start_in(&mut self, environment: &[(&str, &str)]) {
        let log =
            fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join("log"));
        let child = Command::new(PROGRAM)
            .args(["run", "--config"])
            .arg(self.config())
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    /// Waits until it says that it is ready.
    pub async fn ready(&self) {
        until("the relay is ready", PATIENCE, async || {
            self.get("/readyz").await.filter(|answer| answer.starts_with("HTTP/1.1 200"))
        })
        .await;
    }

    /// Its answer, head and body; `None` while nobody listens.
    pub async fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.ok()?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    }

    /// The process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// `kill -9`, and waits until it is gone.
    pub async fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().await.unwrap();
        }
    }

    /// Asks it to stop, and waits until it has.
    pub async fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let pid = child.id().expect("it runs").to_string();
        assert!(Command::new("kill").arg(pid).status().await.unwrap().success());
        let status = tokio::time::timeout(PATIENCE, child.wait()).await.expect("it stops").unwrap();
        assert!(status.success(), "{status}: {}", self.log());
    }
}

/// Runs a command of the program to its end.
pub async fn run(args: &[&str], dir: &Path) -> Output {
    let output =
        Command::new(PROGRAM).args(args).args(["--dir"]).arg(dir).kill_on_drop(true).output();
    tokio::time::timeout(PATIENCE, output).await.expect("it ends").unwrap()
}
