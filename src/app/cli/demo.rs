//! `astro-relay demo`: the relay at work on parts that it carries with it.
//!
//! A simulated Astro with lively traffic, the real relay, events on the terminal and on a feed over
//! HTTP; and, if addresses of real servers are given, through the real sinks into those.

use std::{
    io::{IsTerminal, Write as _},
    net::SocketAddr,
};

use clap::Args;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{Done, Failed, listen, on_runtime, out, simulate::ROOM, told_to_stop};
use crate::{
    app::relay::Relay,
    base::{metrics, supervisor::Outcome},
    config::{Config, ConfigError, Log},
    loading::{Sources, load},
};
use astro_sim::{Options, Sim, Token, Traffic};

/// What `demo` takes.
#[derive(Debug, Args)]
pub(super) struct Demo {
    /// An MQTT broker to publish to as well, as in `mqtt://127.0.0.1:1883`
    #[arg(long, value_name = "URL")]
    mqtt: Option<String>,
    /// A NATS server to publish to as well, as in `nats://127.0.0.1:4222`
    #[arg(long, value_name = "URL")]
    nats: Option<String>,
    /// A Redis server to publish to as well, as in `redis://127.0.0.1:6379`
    #[arg(long, value_name = "URL")]
    redis: Option<String>,
    /// A webhook to post to as well; local addresses are allowed.
    #[arg(long, value_name = "URL")]
    webhook: Option<String>,
    /// Where the feed listens: an address, or a port of the loopback; 0 takes any that is free.
    #[arg(long, default_value = "127.0.0.1:9464", value_parser = listen)]
    listen: SocketAddr,
    /// How lively the traffic is: 1 is a busy channel.
    #[arg(long, default_value_t = 3.0)]
    speed: f64,
    /// Ends by itself after so many seconds.
    #[arg(long)]
    seconds: Option<u64>,
}

/// A signing secret for the demo's webhook: not one, for everybody can read it here.
const SECRET: &str = "whsec_YXN0cm8tcmVsYXktZGVtby1zZWNyZXQtMTIzNA==";

/// The demo's token: the simulated Astro takes no other.
const TOKEN: &str = "demo-token";

pub(super) fn demo(args: Demo) -> Done {
    let log = Log { level: "warn".into(), ..Log::default() };
    on_runtime(2, &log, async move {
        let told = told_to_stop()?;
        let options = Options { tokens: vec![Token::owner(TOKEN, ROOM)], ..Options::default() };
        let sim = Sim::start(([127, 0, 0, 1], 0).into(), options).await?;
        let config = configure(&args, &sim)
            .map_err(|error| Failed::new(Failed::CONFIG, error.to_string()))?;
        let sinks: Vec<String> = config.sinks.keys().cloned().collect();
        let relay = Relay::new(config, metrics::install()).await?;
        // Nobody need read it.
        drop(greet(&args, &sim, relay.listening(), &sinks));
        let stop = CancellationToken::new();
        let rooms = [ROOM.to_owned()];
        let mut traffic = Traffic::new(fastrand::u64(..), &rooms);
        let ending = async {
            match args.seconds {
                Some(seconds) => tokio::time::sleep(std::time::Duration::from_secs(seconds)).await,
                None => std::future::pending().await,
            }
        };
        let running = relay.run(stop.clone(), || {});
        tokio::pin!(running);
        let early = tokio::select! {
            outcome = &mut running => Some(outcome),
            () = told => None,
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
    let mut sinks = json!({ "terminal": { "type": "stdout" } });
    let mut add = |name: &str, sink: Value| {
        if let Some(sinks) = sinks.as_object_mut() {
            sinks.insert(name.to_owned(), sink);
        }
    };
    if let Some(url) = &args.mqtt {
        add("mqtt", json!({ "type": "mqtt", "url": url }));
    }
    if let Some(url) = &args.nats {
        add("nats", json!({ "type": "nats", "url": url }));
    }
    if let Some(url) = &args.redis {
        add("redis", json!({ "type": "redis", "url": url }));
    }
    if let Some(url) = &args.webhook {
        let local = ["127.0.0.0/8", "::1"];
        add(
            "webhook",
            json!({ "type": "webhook", "url": url, "secret": SECRET, "allow_addresses": local }),
        );
    }
    let config = json!({
        "astro": { "url": sim.url(), "api_url": sim.api_url() },
        "journal": { "dir": "" },
        "http": { "listen": args.listen.to_string(), "insecure": !args.listen.ip().is_loopback() },
        "channels": { "demo": { "room": ROOM, "token": TOKEN, "topics": topics() } },
        "sinks": sinks,
    });
    let text = toml::to_string(&config).map_err(|error| ConfigError::at(&[], error.to_string()))?;
    load(&Sources { text: Some(text), ..Sources::default() }).map(|loaded| loaded.config)
}

/// Everything that the simulated channel talks about.
fn topics() -> Vec<&'static str> {
    crate::astro::topics::CATALOGUE.iter().map(|topic| topic.name).collect()
}

fn greet(
    args: &Demo,
    sim: &Sim,
    listening: Option<SocketAddr>,
    sinks: &[String],
) -> std::io::Result<()> {
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
        writeln!(out, "  live feed     curl -N http://{address}/events")?;
        writeln!(out, "  how it is     curl http://{address}/status")?;
        writeln!(out, "  metrics       curl http://{address}/metrics")?;
    }
    let control = format!("http://{}/control", sim.address());
    writeln!(out, "  pull the plug curl -X POST '{control}/fault?kind=reset'  (watch relay.gap)")?;
    writeln!(out, "  move it       curl -X POST {control}/drain")?;
    if args.mqtt.is_some() {
        writeln!(out, "  MQTT          mosquitto_sub -v -t 'astro/#'")?;
    }
    if args.nats.is_some() {
        writeln!(out, "  NATS          nats sub 'astro.>'")?;
    }
    if args.redis.is_some() {
        writeln!(out, "  Redis         redis-cli psubscribe 'astro:*'")?;
    }
    if args.webhook.is_some() {
        writeln!(out, "  webhook       signed with {SECRET}")?;
    }
    if sinks.len() == 1 {
        writeln!(out, "  more          --mqtt URL, --nats URL, --redis URL, --webhook URL")?;
    }
    writeln!(out, "  next          astro-relay init    (Ctrl-C ends this)")?;
    writeln!(out)
}
