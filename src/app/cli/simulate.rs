//! `astro-relay sim`: a simulated Astro and Sessions API, for trying things out.

use std::{io::Write as _, net::SocketAddr, time::Duration};

use clap::{Args, ValueEnum};

use super::{Done, listen, on_runtime, out, termination};
use crate::config::Log;
use astro_sim::{MessageIds, Options, Refusal, Sim, Token, Traffic};

/// The room of the simulated channel, where none is named.
pub(super) const ROOM: &str = "5b2e2007760aeb7729487dab";

/// What `sim` takes.
#[derive(Debug, Args)]
pub(super) struct Simulate {
    /// Where it listens: an address, or a port of the loopback.
    #[arg(long, default_value = "127.0.0.1:9900", value_parser = listen)]
    listen: SocketAddr,
    /// Speaks the first revision of the protocol: no welcome, no rooms, RESPONSE in capitals.
    #[arg(long, conflicts_with = "revision")]
    first_revision: bool,
    /// The revision of the protocol.
    #[arg(long, value_enum, default_value_t)]
    revision: Revision,
    /// Gives every connection an id of its own for the same message.
    #[arg(long)]
    ids_per_connection: bool,
    /// A token that is accepted, with the room that it owns: TOKEN=ROOM. Without any, every token is.
    #[arg(long = "token", value_name = "TOKEN=ROOM", value_parser = token)]
    tokens: Vec<Token>,
    /// A room of the simulated traffic; may be given several times.
    #[arg(long = "room", value_name = "ROOM", default_value = ROOM)]
    rooms: Vec<String>,
    /// How lively the traffic is: 1 is a busy channel, 0 is silence.
    #[arg(long, default_value_t = 1.0)]
    speed: f64,
    /// The seed of everything that is drawn by lot.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Subscriptions that one connection may hold.
    #[arg(long)]
    subscriptions_per_connection: Option<usize>,
    /// Answers subscriptions to a topic with an error, as in `TOPIC=err_unauthorized`
    #[arg(long = "refuse", value_name = "TOPIC=ERROR", value_parser = refusal)]
    refusals: Vec<Refusal>,
    /// Asks every connection to move to another, again and again at this interval.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    drain_every: Option<Duration>,
}

/// A revision of the protocol, by the month of its documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Revision {
    First,
    #[value(name = "2026-03")]
    March2026,
    #[default]
    #[value(name = "2026-09")]
    September2026,
}

fn token(text: &str) -> Result<Token, String> {
    text.split_once('=')
        .map(|(token, room)| Token::owner(token, room))
        .ok_or_else(|| "TOKEN=ROOM was expected".to_owned())
}

fn refusal(text: &str) -> Result<Refusal, String> {
    text.split_once('=')
        .map(|(topic, error)| Refusal::of(error).topic(topic))
        .ok_or_else(|| "TOPIC=ERROR was expected".to_owned())
}

pub(super) fn simulate(args: Simulate) -> Done {
    on_runtime(2, &Log::default(), async move {
        let ended = termination()?;
        let revision = match args.revision {
            _ if args.first_revision => Options::first_revision(),
            Revision::First => Options::first_revision(),
            Revision::March2026 => Options::march_2026(),
            Revision::September2026 => Options::default(),
        };
        let options = Options {
            tokens: args.tokens,
            seed: args.seed,
            subscriptions_per_connection: args.subscriptions_per_connection,
            message_ids: if args.ids_per_connection {
                MessageIds::PerConnection
            } else {
                MessageIds::Shared
            },
            ..revision
        };
        let sim = Sim::start(args.listen, options).await?;
        sim.faults(|faults| faults.refusals.extend(args.refusals));
        {
            let mut out = out::text();
            writeln!(out, "gateway      {}", sim.url())?;
            writeln!(out, "REST API     {}", sim.api_url())?;
            writeln!(out, "control      http://{}/control/stats", sim.address())?;
            writeln!(out, "rooms        {}", args.rooms.join(" "))?;
            out.flush()?;
        }
        let mut traffic = Traffic::new(args.seed, &args.rooms);
        let playing = async {
            if args.speed > 0.0 {
                sim.play(&mut traffic, args.speed).await;
            }
            std::future::pending::<()>().await;
        };
        let draining = async {
            let Some(every) = args.drain_every else { return std::future::pending().await };
            loop {
                tokio::time::sleep(every).await;
                sim.drain(None);
            }
        };
        tokio::select! {
            () = ended => {}
            () = playing => {}
            () = draining => {}
        }
        sim.stop().await;
        Ok(())
    })
}
