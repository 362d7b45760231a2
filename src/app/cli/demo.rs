//! `astro-relay demo`: the relay on a simulated Astro that comes with it.
//!
//! A simulated Astro with lively traffic, the real relay, events on the terminal, on the page and on a feed
//! over HTTP; and, if addresses of real servers are given, through the real sinks into those.

mod cluster;

use std::{
    io::{IsTerminal, Write as _},
    net::SocketAddr,
};

use clap::Args;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use super::{Done, Failed, listen, on_runtime, out, simulate::ROOM, termination};
use crate::{
    app::relay::Relay,
    base::{json, metrics, supervisor::Outcome},
    config::{Config, ConfigError, Log},
    loading::{Sources, load},
    sink::{self, KINDS, Kind},
};
use astro_sim::{Options, Sim, Token, Traffic};

/// What `demo` takes.
#[derive(Debug, Args)]
pub(super) struct Demo {
    #[command(flatten)]
    sinks: DemoSinks,
    /// Three relays as one instead of one, on this server of NATS with JetStream, and a plug to pull.
    #[arg(long, value_name = "URL")]
    cluster: Option<String>,
    /// NATS and Redis get the events in a stream: ASTRO of JetStream, astro:events.
    #[arg(long)]
    streams: bool,
    /// Where the feed listens: an address, or a port of the loopback; 0 takes any that is free.
    #[arg(long, default_value = "127.0.0.1:9464", value_parser = listen)]
    listen: SocketAddr,
    /// How much traffic: 1 is a busy channel.
    #[arg(long, default_value_t = 1.0)]
    speed: f64,
    /// Shows every topic on the terminal: chat and the figures of the session, too.
    #[arg(short, long)]
    all: bool,
    /// Stops after this many seconds.
    #[arg(long)]
    seconds: Option<u64>,
}

/// The servers to send to: an option for each kind of sink that has a [`Kind::demo`].
#[derive(Debug)]
struct DemoSinks(Vec<(&'static Kind, String)>);

impl Demo {
    /// The settings for a kind, and how to watch the events there.
    fn way(&self, demo: sink::Demo) -> (&'static str, &'static str) {
        demo.stream.filter(|_| self.streams).unwrap_or((demo.settings, demo.watch))
    }
}

/// The kinds that can be chosen.
fn kinds() -> impl Iterator<Item = (&'static Kind, sink::Demo)> {
    KINDS.iter().filter_map(|kind| Some((kind, kind.demo?)))
}

impl Args for DemoSinks {
    fn augment_args(command: clap::Command) -> clap::Command {
        kinds().fold(command, |command, (kind, _)| {
            let example = kind.usual_url.filter(|url| !url.is_empty());
            let example = example.map(|url| format!(", as in {url}")).unwrap_or_default();
            let help = format!("Also sends to {}{example}", kind.summary);
            command.arg(clap::Arg::new(kind.name).long(kind.name).value_name("URL").help(help))
        })
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for DemoSinks {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        let url = |kind: &'static Kind| Some((kind, matches.get_one::<String>(kind.name)?.clone()));
        Ok(Self(kinds().filter_map(|(kind, _)| url(kind)).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The demo's token: the simulated Astro takes no other.
const TOKEN: &str = "demo-token";

pub(super) fn demo(args: Demo) -> Done {
    let log = Log { level: "warn".into(), ..Log::default() };
    on_runtime(2, &log, async move {
        let ended = termination()?;
        let options = Options { tokens: vec![Token::owner(TOKEN, ROOM)], ..Options::default() };
        let sim = Sim::start(([127, 0, 0, 1], 0).into(), options).await?;
        let rooms = [ROOM.to_owned()];
        let mut traffic = Traffic::new(fastrand::u64(..), &rooms);
        let ending = async {
            match args.seconds {
                Some(seconds) => tokio::time::sleep(std::time::Duration::from_secs(seconds)).await,
                None => std::future::pending().await,
            }
        };
        if let Some(url) = &args.cluster {
            let show = cluster::Show::new(&args, url, &sim)?;
            let ended = async {
                tokio::select! {
                    () = ended => {}
                    () = ending => {}
                    () = sim.play(&mut traffic, args.speed) => {}
                }
            };
            let done = show.run(ended).await;
            sim.stop().await;
            return done;
        }
        let config = configure(&args, &sim)
            .map_err(|error| Failed::new(Failed::CONFIG, error.to_string()))?;
        let relay = Relay::new(config, metrics::install()).await?;
        // Nobody need read it.
        drop(greet(&args, &sim, relay.listening()));
        let stop = CancellationToken::new();
        let running = relay.run(stop.clone(), || {});
        tokio::pin!(running);
        let early = tokio::select! {
            outcome = &mut running => Some(outcome),
            () = ended => None,
            () = ending => None,
            () = sim.play(&mut traffic, args.speed) => None,
        };
        stop.cancel();
        let outcome = match early {
            Some(outcome) => outcome,
            None => running.await,
        };
        sim.stop().await;
        match outcome {
            Outcome::Stopped => Ok(()),
            Outcome::GaveUp(task) => Err(Failed::new(Failed::SOFTWARE, format!("{task} gave up"))),
        }
    })
}

fn configure(args: &Demo, sim: &Sim) -> Result<Config, ConfigError> {
    let config = document(args, sim)?;
    let text = toml::to_string(&config).map_err(|error| ConfigError::at(&[], error.to_string()))?;
    load(&Sources { text: Some(text), ..Sources::default() }).map(|loaded| loaded.config)
}

/// The configuration as it is written.
fn document(args: &Demo, sim: &Sim) -> Result<Value, ConfigError> {
    let mut sinks = Map::new();
    let mut terminal = json!({ "type": "stdout" });
    if !args.all {
        json::set(&mut terminal, "topics", json!(SHOWN));
    }
    sinks.insert("terminal".to_owned(), terminal);
    for (kind, url) in &args.sinks.0 {
        let settings = kind.demo.map_or("{}", |demo| args.way(demo).0);
        let mut sink: Map<String, Value> = serde_json::from_str(settings)
            .map_err(|error| ConfigError::at(&["sinks", kind.name], error.to_string()))?;
        sink.insert("type".to_owned(), kind.name.into());
        sink.insert("url".to_owned(), url.as_str().into());
        sinks.insert(kind.name.to_owned(), sink.into());
    }
    Ok(json!({
        "astro": { "url": sim.url(), "api_url": sim.api_url() },
        "journal": { "dir": "" },
        "http": { "listen": args.listen.to_string(), "insecure": !args.listen.ip().is_loopback() },
        "channels": { "demo": { "room": ROOM, "token": TOKEN, "topics": topics() } },
        "sinks": sinks,
    }))
}

/// What the terminal shows: what happens, once. A tip is an activity too, and chat would hide all else.
const SHOWN: &[&str] = &[
    "channel.activities", "channel.stream.status", "channel.giveaways", "channel.contests",
    "relay.gap", "relay.backfill", "relay.status",
];

/// Everything that the simulated channel talks about.
fn topics() -> Vec<&'static str> {
    crate::astro::topics::CATALOGUE.iter().map(|topic| topic.name).collect()
}

fn greet(args: &Demo, sim: &Sim, listening: Option<SocketAddr>) -> std::io::Result<()> {
    // The events go to standard output; what is said about them goes beside it.
    let mut out = out::conversation();
    let bold = std::io::stderr().is_terminal();
    if bold {
        out.control("\x1b[1m")?;
    }
    write!(out, "astro-relay demo: a simulated channel, the real relay")?;
    if bold {
        out.control("\x1b[0m")?;
    }
    writeln!(out)?;
    if let Some(address) = listening {
        writeln!(out, "  page          http://{address}/    (open it in a browser)")?;
        writeln!(out, "  live feed     curl -N http://{address}/events")?;
        writeln!(out, "  status        astro-relay status --url http://{address}")?;
        writeln!(out, "  metrics       curl http://{address}/metrics")?;
    }
    let control = format!("http://{}/control", sim.address());
    writeln!(out, "  pull the plug curl -X POST '{control}/fault?kind=reset'  (watch relay.gap)")?;
    writeln!(out, "  drain         curl -X POST {control}/drain")?;
    for (kind, _) in &args.sinks.0 {
        if let Some(demo) = kind.demo {
            writeln!(out, "  {:<13} {}", kind.name, args.way(demo).1)?;
        }
    }
    if args.sinks.0.is_empty() {
        let options: Vec<String> =
            kinds().map(|(kind, _)| format!("--{} URL", kind.name)).collect();
        writeln!(out, "  more          {}", options.join(", "))?;
    }
    writeln!(out, "  next          astro-relay init    (Ctrl-C ends this)")?;
    if !args.all {
        writeln!(out, "Chat and the figures of the session are left out here: --all shows them.")?;
    }
    writeln!(out)
}
