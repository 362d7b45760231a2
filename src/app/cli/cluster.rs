//! `astro-relay cluster`: the cluster as a running member sees it; and events of a journal into its log
//! again.

use std::{io::Write as _, path::PathBuf};

use clap::{Args, Subcommand};
use serde_json::Value;

use super::{
    Done, Failed, Source,
    client::{Which, quiet},
    on_runtime, out,
    status::{list, table},
};
use crate::{
    base::{clock, text::harmless},
    cluster::{ClusterError, republish},
};

/// `cluster`
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Cluster {
    #[command(flatten)]
    which: Which,
    /// Also lists the holders of each channel.
    #[arg(long)]
    channels: bool,
    /// Prints raw JSON.
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Puts events of this member's journal into the cluster's log again, after a loss of all NATS servers.
    Republish(Republish),
}

#[derive(Debug, Args)]
struct Republish {
    #[command(flatten)]
    source: Source,
    /// From when on: RFC 3339, as 2026-11-29T12:00:00Z.
    #[arg(long, value_name = "TIME")]
    from: String,
    /// The journal's directory [default: as configured]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub(super) fn cluster(args: Cluster) -> Done {
    match args.action {
        Some(Action::Republish(args)) => republish(&args),
        None => show(&args),
    }
}

fn show(args: &Cluster) -> Done {
    let client = args.which.client()?;
    on_runtime(1, &quiet(), async move {
        let status = client.status().await?;
        let Some(cluster) = status.pointer("/pages/cluster") else {
            return Err(client.failed("is no member of a cluster: it has no section [cluster]"));
        };
        if args.json {
            return Ok(writeln!(out::json(), "{cluster}")?);
        }
        Ok(write!(out::text(), "{}", page(cluster, args.channels, clock::now()))?)
    })
}

/// The cluster as a page for a terminal.
fn page(cluster: &Value, channels: bool, now: u64) -> String {
    let text = |value: &Value| match value {
        Value::String(text) => harmless(text).to_string(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let mut lines = vec![format!(
        "cluster {} as {} sees it: {} holders of each channel",
        text(&cluster["name"]),
        text(&cluster["member"]),
        text(&cluster["copies"])
    )];
    for problem in list(&cluster["problems"]) {
        lines.push(format!("  ! {}", text(problem)));
    }
    lines.push(String::new());
    lines.push(format!(
        "  {:<20} {:<10} {:<10} {:>9} {:>9} {:>9}  {}",
        "MEMBER", "STATE", "VERSION", "CHANNELS", "WAITING", "HEARD", "UP"
    ));
    for (name, member) in table(&cluster["members"]) {
        let state = match (member["draining"].as_bool(), member["stands"].as_bool()) {
            (Some(true), _) => "leaving",
            (_, Some(true)) => "stands",
            _ => "moving",
        };
        let heard = member["heard_seconds"].as_f64().unwrap_or_default();
        let up = now.saturating_sub(member["started"].as_u64().unwrap_or(now)) / 1000;
        lines.push(format!(
            "  {:<20} {:<10} {:<10} {:>9} {:>9} {:>8}s  {up}s",
            name,
            state,
            text(&member["version"]),
            text(&member["channels"]),
            text(&member["waiting"]),
            format!("{heard:.1}"),
        ));
    }
    for (name, heard) in table(&cluster["gone"]) {
        let heard = heard.as_f64().unwrap_or_default();
        lines.push(format!(
            "  {:<20} {:<10} {:<10} {:>9} {:>9} {:>8}s  -",
            name,
            "gone",
            "-",
            "-",
            "-",
            format!("{heard:.1}"),
        ));
    }
    lines.push(String::new());
    lines.push(format!("  {:<20} {:<20} {:>10}", "SINK", "DRIVER", "LAG"));
    for (name, sink) in table(&cluster["sinks"]) {
        lines.push(format!(
            "  {:<20} {:<20} {:>10}",
            name,
            text(&sink["driver"]),
            text(&sink["lag_events"])
        ));
    }
    if channels {
        lines.push(String::new());
        lines.push(format!("  {:<20} HOLDERS", "CHANNEL"));
        for (name, holders) in table(&cluster["channels"]) {
            let holders = list(holders).map(text).collect::<Vec<_>>().join(", ");
            lines.push(format!("  {name:<20} {holders}"));
        }
    }
    lines.push(String::new());
    lines.join("\n")
}

impl From<ClusterError> for Failed {
    fn from(error: ClusterError) -> Self {
        let code = match &error {
            ClusterError::Settings(_) => Self::CONFIG,
            ClusterError::Unavailable(_) => Self::UNAVAILABLE,
            ClusterError::Unusable(_) => Self::IO,
        };
        Self::of(code, &error)
    }
}

fn republish(args: &Republish) -> Done {
    let config = args.source.load()?;
    let Some(settings) = config.cluster.clone() else {
        return Err(Failed::new(Failed::CONFIG, "the configuration has no section [cluster]"));
    };
    let sinks: Vec<String> = config.sinks.keys().cloned().collect();
    let from = clock::parse_rfc3339(&args.from).ok_or_else(|| {
        Failed::new(Failed::USAGE, "--from: a time such as 2026-11-29T12:00:00Z was expected")
    })?;
    let dir = args.dir.clone().unwrap_or_else(|| config.journal.dir.clone());
    on_runtime(1, &quiet(), async move {
        let done = republish::republish(&settings, &sinks, &dir, from).await?;
        Ok(writeln!(
            out::text(),
            "{} events were put into the log; {} more it had already",
            done.published,
            done.duplicates
        )?)
    })
}
