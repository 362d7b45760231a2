//! A real server as a child process on a free port: it can be killed and started again on the same
//! port and data, and it ends with the test.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    process::Stdio,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use tokio::{
    net::TcpStream,
    process::{Child, Command},
};

use super::wait::until;

/// How long a server may take until it accepts connections.
const START: Duration = Duration::from_secs(20);

/// Sends a process a signal by name; after `STOP` it has stopped.
pub async fn signal(pid: u32, name: &str) {
    let kill = Command::new("kill").args(["-s", name, &pid.to_string()]).status().await;
    assert!(kill.unwrap().success());
    if name != "STOP" {
        return;
    }
    until("all its threads have stopped", START, async || {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
        let mut states = threads.map(|thread| {
            let stat = std::fs::read_to_string(thread.ok()?.path().join("stat")).ok()?;
            stat.rsplit_once(") ")?.1.chars().next()
        });
        states.all(|state| state == Some('T')).then_some(())
    })
    .await;
}

/// A server as a child process.
pub struct Server {
    program: PathBuf,
    args: Vec<String>,
    /// Where it listens.
    pub address: SocketAddr,
    child: Option<Child>,
}

/// A port that is free now.
pub fn free_port() -> u16 {
    // Below those that the system gives to whoever connects: nobody takes one meanwhile. No two of this process
    // are the same, and other processes begin elsewhere.
    const FIRST: u32 = 20_000;
    const COUNT: u32 = 12_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(997);
    loop {
        let number = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(FIRST + number % COUNT).unwrap();
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// Finds a server program; Debian puts some of them in `/usr/sbin`, which is not in everybody's path.
///
/// A missing server is a failure of the test: the README says what to install.
#[expect(clippy::disallowed_methods, reason = "a test looks for programs as a shell would")]
pub fn program(name: &str) -> PathBuf {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/usr/local/sbin"])
        .map(|dir| PathBuf::from(dir).join(name))
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| {
            panic!("{name} is not installed: apt-get install mosquitto nats-server redis-server")
        })
}

/// The memory of a process that is in use, in kibibytes, and its open files; as Linux tells.
pub fn resources(pid: u32) -> Option<(u64, usize)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let memory = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some((memory, std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count()))
}

impl Server {
    /// Starts `program` and waits until it accepts connections on `port`.
    pub async fn start(name: &str, args: Vec<String>, port: u16) -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut server = Self { program: program(name), args, address, child: None };
        server.restart().await;
        server
    }

    /// Starts it again with the same arguments; kills it first if it runs.
    pub async fn restart(&mut self) {
        self.kill().await;
        let child = Command::new(&self.program)
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        self.child = Some(child);
        let address = self.address;
        until("the server accepts connections", START, async || {
            TcpStream::connect(address).await.ok()
        })
        .await;
    }

    /// `kill -9`, and waits until it is gone.
    pub async fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().await.unwrap();
        }
    }

    /// Ends it as a service manager would, and waits until it has ended.
    pub async fn end(&mut self) {
        self.signal("TERM").await;
        if let Some(mut child) = self.child.take() {
            child.wait().await.unwrap();
        }
    }

    /// Sends it a signal by name: `STOP`, `CONT`.
    pub async fn signal(&self, name: &str) {
        signal(self.pid().expect("it runs"), name).await;
    }

    /// The process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }
}
