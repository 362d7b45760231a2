//! `astro-relay demo --cluster nats://…`: three relays as one on the simulated Astro, and a plug to pull.
//!
//! Each relay is a process of its own, with a journal of its own in a directory that goes at the end: so
//! `kill` is `kill -9`. The one that drives the sink `terminal` writes the events to its standard output,
//! which is read here. So one sees who drives it, and what comes once more.

use std::{
    collections::{HashSet, VecDeque},
    fs::{self, DirBuilder, File},
    io::Write as _,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::{fd::AsFd as _, unix::fs::DirBuilderExt as _},
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use futures_util::{
    StreamExt as _,
    stream::{self, BoxStream, SelectAll},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    time::{Instant, interval, timeout},
};

use super::{Demo, document};
use crate::{
    app::cli::{Done, Failed, out},
    astro::summary::Summary,
    base::{clock, event::Origin, json},
    cluster::connection::Connection,
    config,
};
use astro_sim::Sim;

const MEMBERS: usize = 3;

/// How often the relays are asked how they are, and how long an answer may take.
const POLL: Duration = Duration::from_millis(300);
const ANSWER: Duration = Duration::from_secs(2);

/// How long the relays may take to end.
const END: Duration = Duration::from_secs(30);

/// Events that are remembered, to see which come once more.
const REMEMBERED: usize = 20_000;

/// The sink that is watched.
const WATCHED: &str = "terminal";

/// A relay.
struct Member {
    name: String,
    dir: PathBuf,
    address: SocketAddr,
    child: Option<Child>,
    /// Whether it has to come up yet.
    begins: bool,
}

/// What is read of a relay's standard output; `None`: it has ended.
type OutputLine = (usize, Option<String>);

pub(super) struct Show {
    members: Vec<Member>,
    dir: PathBuf,
    settings: config::Cluster,
    output: SelectAll<BoxStream<'static, OutputLine>>,
    seen: HashSet<String>,
    order: VecDeque<String>,
    events: u64,
    again: u64,
    driver: Option<String>,
    /// Which relay was stopped or killed, and when.
    pulled: Option<(String, Instant)>,
    problems: Vec<String>,
}

impl Show {
    /// Writes the configurations; starts nothing yet.
    pub(super) fn new(args: &Demo, url: &str, sim: &Sim) -> Result<Self, Failed> {
        let id = ulid::Ulid::new().to_string().to_lowercase();
        let dir = std::env::temp_dir().join(format!("astro-relay-demo-{id}"));
        DirBuilder::new().mode(0o700).create(&dir)?;
        // Another name each time: two demonstrations on one server do not disturb one another.
        let name = format!("demo-{}", id.get(16..).unwrap_or(&id));
        let cluster =
            json!({ "url": url, "name": name, "replicas": 1, "lease": "2s", "max_age": "1h" });
        let settings = serde_json::from_value(cluster.clone())
            .map_err(|error| Failed::new(Failed::USAGE, format!("--cluster: {error}")))?;
        let mut members = Vec::new();
        for number in 0..MEMBERS {
            let name = format!("relay-{}", number + 1);
            let dir = dir.join(&name);
            DirBuilder::new().mode(0o700).create(&dir)?;
            let address = address(args.listen, number)?;
            let mut config = document(args, sim)
                .map_err(|error| Failed::new(Failed::CONFIG, error.to_string()))?;
            let mut cluster = cluster.clone();
            json::set(&mut cluster, "member", name.as_str().into());
            json::set(&mut config, "cluster", cluster);
            json::set(&mut config, "http", json!({ "listen": address.to_string() }));
            json::set(
                &mut config,
                "journal",
                json!({ "dir": dir.join("journal"), "min_free": "0B" }),
            );
            let text = toml::to_string(&config)
                .map_err(|error| Failed::new(Failed::SOFTWARE, error.to_string()))?;
            fs::write(dir.join("config.toml"), text)?;
            members.push(Member { name, dir, address, child: None, begins: false });
        }
        Ok(Self {
            members,
            dir,
            settings,
            output: SelectAll::new(),
            seen: HashSet::new(),
            order: VecDeque::new(),
            events: 0,
            again: 0,
            driver: None,
            pulled: None,
            problems: Vec::new(),
        })
    }

    /// Runs until `ended`, and takes away what it has made.
    pub(super) async fn run(mut self, ended: impl Future<Output = ()>) -> Done {
        let done = self.watch(ended).await;
        print("The relays are stopped.");
        for member in &self.members {
            member.signal(Signal::TERM);
        }
        for member in &mut self.members {
            if let Some(child) = &mut member.child
                && timeout(END, child.wait()).await.is_err()
            {
                // It is dropped, and so killed.
                print(&format!("{} did not stop in time.", member.name));
            }
        }
        let forgotten = async {
            if let Ok(connection) = Connection::reach(&self.settings, "demo").await {
                connection.delete_all().await;
            }
        };
        // Where no server answers, there is nothing to take away.
        drop(timeout(ANSWER, forgotten).await);
        drop(fs::remove_dir_all(&self.dir));
        let again = match self.again {
            0 => "none of them twice".to_owned(),
            1 => "1 of them twice, with the same key".to_owned(),
            many => format!("{many} of them twice, each with the same key"),
        };
        print(&format!("{} events arrived, {again}.", self.events));
        done
    }

    async fn watch(&mut self, ended: impl Future<Output = ()>) -> Done {
        self.introduce()?;
        for number in 0..MEMBERS {
            self.start(number)?;
        }
        let http = reqwest::Client::builder().no_proxy().timeout(ANSWER).build();
        let http = http.map_err(|error| Failed::of(Failed::SOFTWARE, &error))?;
        // Nobody may be there to type.
        let typed = std::io::stdin().as_fd().try_clone_to_owned().ok();
        let typed = typed.map(|typed| tokio::fs::File::from_std(File::from(typed)));
        let mut typed = typed.map(|typed| BufReader::new(typed).lines());
        let mut ticks = interval(POLL);
        tokio::pin!(ended);
        loop {
            let line = async {
                match &mut typed {
                    Some(typed) => typed.next_line().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = &mut ended => return Ok(()),
                Some((number, line)) = self.output.next() => match line {
                    Some(line) => self.event(number, &line)?,
                    None => self.ended(number).await,
                },
                line = line => match line {
                    Ok(Some(line)) => self.typed(line.trim())?,
                    // Nobody types.
                    _ => typed = None,
                },
                _ = ticks.tick() => self.poll(&http).await,
            }
        }
    }

    fn introduce(&self) -> Done {
        let mut out = out::conversation();
        writeln!(out, "astro-relay demo: a simulated channel, three relays as one")?;
        for member in &self.members {
            writeln!(out, "  {}       page http://{}/", member.name, member.address)?;
        }
        writeln!(out, "  pull the plug kill 1    (kill -9 of relay-1; or 2, or 3)")?;
        writeln!(out, "  in order      stop 1    (as an upgrade does)")?;
        writeln!(out, "  bring it back start 1   (Ctrl-C ends the demonstration)")?;
        Ok(writeln!(out)?)
    }

    fn start(&mut self, number: usize) -> Done {
        let Some(member) = self.members.get_mut(number) else { return Ok(()) };
        let log = File::options().create(true).append(true).open(member.dir.join("log"))?;
        let mut child = Command::new(std::env::current_exe()?)
            .arg("run")
            .arg("--config")
            .arg(member.dir.join("config.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        if let Some(output) = child.stdout.take() {
            let lines = Some(BufReader::new(output).lines());
            let said = stream::unfold(lines, move |lines| async move {
                let mut lines = lines?;
                match lines.next_line().await {
                    Ok(Some(line)) => Some(((number, Some(line)), Some(lines))),
                    _ => Some(((number, None), None)),
                }
            });
            self.output.push(said.boxed());
        }
        (member.child, member.begins) = (Some(child), true);
        Ok(())
    }

    /// The relay that drives the sink has written an event.
    fn event(&mut self, number: usize, line: &str) -> Done {
        let Some(member) = self.members.get(number) else { return Ok(()) };
        let value: Value = serde_json::from_str(line).unwrap_or_default();
        let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
        let key = format!("{} {}", text("topic"), text("id"));
        let is_again = !self.seen.insert(key.clone());
        self.events += 1;
        self.again += u64::from(is_again);
        if !is_again {
            self.order.push_back(key);
        }
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        let data = value.get("data").cloned().unwrap_or_default();
        let summary = Summary::of_data(text("topic"), data.to_string().as_bytes(), Origin::Live);
        let again = if is_again { "  (once more)" } else { "" };
        let Summary { kind, who, amount, .. } = summary;
        Ok(writeln!(out::text(), "[{}] {kind} {who} {amount}{again}", member.name)?)
    }

    /// A relay has closed its standard output: it is gone, or going.
    async fn ended(&mut self, number: usize) {
        let Some(member) = self.members.get_mut(number) else { return };
        let Some(mut child) = member.child.take() else { return };
        let status = timeout(END, child.wait()).await;
        let name = &member.name;
        match status {
            Ok(Ok(status)) if status.success() => print(&format!("{name} has stopped in order.")),
            _ => print(&format!(
                "{name} is gone. Its lease runs for two seconds; then another takes over."
            )),
        }
    }

    /// What somebody has typed.
    fn typed(&mut self, line: &str) -> Done {
        let mut words = line.split_whitespace();
        let (what, which) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let number = which.trim_start_matches("relay-").parse::<usize>().unwrap_or(0);
        let Some(member) = number.checked_sub(1).and_then(|number| self.members.get(number)) else {
            print("kill 1, stop 1 or start 1 was expected; or 2, or 3.");
            return Ok(());
        };
        match (what, member.child.is_some()) {
            ("kill" | "stop", false) => print(&format!("{} does not run.", member.name)),
            ("start", true) => print(&format!("{} runs.", member.name)),
            ("kill" | "stop", true) => {
                let signal = if what == "kill" { Signal::KILL } else { Signal::TERM };
                member.signal(signal);
                let drives = self.driver.as_ref() == Some(&member.name);
                if drives {
                    self.pulled = Some((member.name.clone(), Instant::now()));
                }
                let how = if what == "kill" { "is killed" } else { "is told to stop" };
                let about = if drives { "It drives the sink." } else { "It drives no sink." };
                print(&format!("{} {how}. {about}", member.name));
            }
            ("start", false) => self.start(number - 1)?,
            _ => print("kill 1, stop 1 or start 1 was expected; or 2, or 3."),
        }
        Ok(())
    }

    /// Asks the relays how they are, and prints what has changed.
    async fn poll(&mut self, http: &reqwest::Client) {
        for number in 0..self.members.len() {
            let Some(member) = self.members.get_mut(number).filter(|one| one.child.is_some())
            else {
                continue;
            };
            let url = format!("http://{}/status", member.address);
            let Ok(answer) = http.get(url).send().await else { continue };
            let Ok(text) = answer.text().await else { continue };
            let status: Value = serde_json::from_str(&text).unwrap_or_default();
            let cluster = status.pointer("/pages/cluster").unwrap_or(&Value::Null);
            let own = cluster.pointer(&format!("/members/{}/stands", member.name));
            if member.begins && own.and_then(Value::as_bool) == Some(true) {
                member.begins = false;
                print(&format!("{} is a member, and holds its channels.", member.name));
            }
            let problems: Vec<String> = cluster
                .get("problems")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(|text| Some(format!("{}: {}", member.name, text.as_str()?)))
                .collect();
            let prefix = format!("{}: ", member.name);
            for problem in problems.iter().filter(|one| !self.problems.contains(one)) {
                print(problem);
            }
            self.problems.retain(|one| !one.starts_with(&prefix));
            self.problems.extend(problems);
            let driver = cluster.pointer(&format!("/sinks/{WATCHED}/driver"));
            if let Some(driver) = driver.and_then(Value::as_str) {
                self.driven_by(driver);
            }
        }
    }

    fn driven_by(&mut self, driver: &str) {
        // What another says that has not heard of it yet.
        let is_here = self.members.iter().any(|one| one.name == driver && one.child.is_some());
        if self.driver.as_deref() == Some(driver) || !is_here {
            return;
        }
        let after = self.pulled.take().filter(|(name, _)| name != driver).map(|(name, at)| {
            format!(", {:.1} s after the plug of {name} was pulled", at.elapsed().as_secs_f64())
        });
        print(&format!("{driver} drives the sink {WATCHED} now{}.", after.unwrap_or_default()));
        self.driver = Some(driver.to_owned());
    }
}

impl Member {
    fn signal(&self, signal: Signal) {
        let id = self.child.as_ref().and_then(Child::id);
        let pid = id.and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        // Where it is gone already, that is what was wanted.
        if let Some(pid) = pid {
            kill_process(pid, signal).ok();
        }
    }
}

/// Where a relay listens: one port after the other, or any that is free.
fn address(listen: SocketAddr, number: usize) -> Result<SocketAddr, Failed> {
    let mut address = listen;
    if listen.port() == 0 {
        return Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?);
    }
    let port = u16::try_from(number).ok().and_then(|number| listen.port().checked_add(number));
    address.set_port(
        port.ok_or_else(|| Failed::new(Failed::USAGE, "--listen: the port is too large"))?,
    );
    Ok(address)
}

/// Prints what happens, with the time.
fn print(text: &str) {
    // Nobody need read it.
    let now = clock::rfc3339(clock::now());
    drop(writeln!(out::conversation(), "{}  {text}", now.get(11..19).unwrap_or(&now)));
}
